"""The cost model against torch's own counter, for every method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmark.cost import evaluation_flops, forward_flops, token_classification_flops, training_flops
from methods import build_method, list_methods, method_spec
from methods.base import Method
from methods.trunk import build_classifier, build_trunk, encode, with_cls
from protocols import load_protocol
from protocols.recipes import FineTuning, LinearProbe, TokenClassification
from protocols.schema import Protocol, TrunkSpec

TRUNKS = {
    "mini": TrunkSpec(image_size=28, patch_size=4, width=64, depth=4, heads=2),
    "wide": TrunkSpec(image_size=64, patch_size=8, width=192, depth=3, heads=3),
}
OWN: dict[str, dict[str, int]] = {
    "mim": {"mask_count": 20},
    "beit": {"mask_count": 20, "min_block": 4},
    "pim": {"cutting_point": 15},
    "mapet": {"cutting_point": 15},
    "cae": {"mask_count": 20, "min_block": 4, "regressor_depth": 2, "decoder_depth": 1, "decoder_width": 32,
            "decoder_heads": 2},
    "splitmask": {"contrast_group": 4},
    "maskfeat": {"mask_count": 20, "min_block": 4},
    "beit-v2": {"mask_count": 20, "min_block": 4, "head_depth": 1},
}  # fmt: skip
FURTHER = ("splitmask", "maskfeat", "beit-v2")
# Exactly as many as their target, which is what the model counts.
FALLS_SHORT = ("beit", "maskfeat", "beit-v2")


def codes(name: str, size: int) -> int:
    return size if method_spec(name).uses_tokens else 0


def counted(module: torch.nn.Module, run: object) -> float:
    # The mathematical kernel is made of products that the counter knows, forward and backward.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()  # type: ignore[operator]
    return float(counter.get_total_flops())


@pytest.mark.parametrize("trunk", TRUNKS.values(), ids=TRUNKS)
@pytest.mark.parametrize("name", [name for name in list_methods() if method_spec(name).pretrains])
def test_training_flops_agree_with_torch(name: str, trunk: TrunkSpec) -> None:
    method = build_method(name, trunk=trunk, codebook_size=codes(name, 50), seed=0, **OWN[name])
    images = torch.randn(4, 3, trunk.image_size, trunk.image_size)
    tokens = torch.zeros(4, trunk.patches if codes(name, 50) else 0, dtype=torch.int64)
    if name in FALLS_SHORT:
        pattern = torch.zeros(4, trunk.patches, dtype=torch.bool)
        pattern[:, :20] = True
    else:
        pattern = method.draw(torch.arange(4), 0, 0)
    measured = counted(method, lambda: method(images, tokens, pattern)["loss"].backward()) / 4
    resolved = method_spec(name).resolve(OWN[name], trunk=trunk)
    assert training_flops(name, trunk, resolved, codebook_size=codes(name, 50)) == pytest.approx(
        measured, rel=0.02
    )


@pytest.mark.parametrize("trunk", TRUNKS.values(), ids=TRUNKS)
def test_forward_flops_agree_with_torch(trunk: TrunkSpec) -> None:
    model = build_trunk(trunk)
    images = torch.randn(2, 3, trunk.image_size, trunk.image_size)
    measured = counted(model, lambda: model.forward_features(images)) / 2
    assert forward_flops(trunk) == pytest.approx(measured, rel=0.02)


DRAWS = ("kaiming_uniform_", "uniform_", "normal_", "erfinv_", "trunc_normal_")
PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm)


class Uncomputed(TorchDispatchMode):
    """Products are not computed: the counter, which sees each of them first, goes by shapes alone."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket not in PRODUCTS:
            return func(*args, **(kwargs or {}))
        of_shapes = [one.to("meta") if isinstance(one, Tensor) else one for one in args]
        product: Tensor = func(*of_shapes, **(kwargs or {}))
        return torch.empty_like(product, device=args[0].device)


class Zeros(TorchFunctionMode):
    """Weights are zero and not drawn: what a pass costs does not depend on them, but drawing takes longer."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in DRAWS:
            drawn: Tensor = args[0] if args else kwargs["tensor"]
            drawn.detach().zero_()
            return drawn
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def fair() -> Protocol:
    return load_protocol("fair300")


@pytest.mark.parametrize(
    ("name", "trunk"),
    [  # the paper's own on all trunks
        (name, trunk)
        for name in OWN
        for trunk in (("vit-s",) if name in FURTHER else ("vit-t", "vit-s", "vit-b"))
    ],
)
def test_training_flops_of_fair300_agree_with_torch(name: str, trunk: str, fair: Protocol) -> None:
    """At 224/16 with the protocol's own hyperparameters and 8,192 codes; one image, forward and backward."""
    spec = fair.trunk_spec(trunk, drop_path=fair.pretraining.drop_path)
    resolved = method_spec(name).resolve(fair.method_values(name, trunk), trunk=spec)
    # Two streams have shapes that do not depend on what was drawn: tensors without memory count the same.
    device = "meta" if name in ("pim", "mapet") else "cpu"
    with Zeros():
        built = build_method(name, trunk=spec, codebook_size=codes(name, 8192), **resolved)
    method: Method = built.to(device)
    pattern = method.draw(torch.arange(1), 0, 0)
    if name in FALLS_SHORT:
        pattern = torch.arange(spec.patches)[None] < resolved["mask_count"]
    images = torch.randn(1, 3, 224, 224).to(device)
    tokens = torch.zeros(1, spec.patches if codes(name, 8192) else 0, dtype=torch.int64).to(device)
    with Uncomputed():
        measured = counted(method, lambda: method(images, tokens, pattern.to(device))["loss"].backward())
    assert training_flops(name, spec, resolved, codebook_size=codes(name, 8192)) == pytest.approx(
        measured, rel=0.02
    )


def test_finetuning_flops_agree_with_torch(fair: Protocol) -> None:
    """Of one image; three passes' worth for every image of every whole batch of every epoch."""
    trunk = TRUNKS["mini"]
    model = build_classifier(trunk, classes=10, backbone=None)
    images = torch.randn(2, 3, trunk.image_size, trunk.image_size)
    one = counted(model, lambda: model(images).sum().backward()) / 2
    recipe = load_protocol("mini").evaluation("finetune", "vit-mini")
    assert isinstance(recipe, FineTuning)
    recipe = recipe.model_copy(update={"labelled_images": 100, "global_batch": 32, "epochs": 7})
    assert evaluation_flops(recipe, trunk) == pytest.approx(96 * 7 * one, rel=0.02)


def test_probe_flops_agree_with_torch(fair: Protocol) -> None:
    """Features are computed once for each image, or anew in every epoch where images are augmented."""
    trunk = TRUNKS["mini"]
    model = build_trunk(trunk).requires_grad_(False)
    images = torch.randn(2, 3, trunk.image_size, trunk.image_size)
    one = counted(model, lambda: model.forward_features(images)) / 2
    once = load_protocol("mini").evaluation("linear-probe", "vit-mini")
    anew = fair.evaluation("linear-probe", "vit-b")
    assert isinstance(once, LinearProbe)
    assert isinstance(anew, LinearProbe)
    few = {"labelled_images": 100, "global_batch": 32, "epochs": 7}
    assert evaluation_flops(once.model_copy(update=few), trunk) == pytest.approx(100 * one, rel=0.02)
    assert evaluation_flops(anew.model_copy(update=few), trunk) == pytest.approx(96 * 7 * one, rel=0.02)


class TokenMlp(nn.Module):
    """Table 4 (a): embedding, Linear, ReLU, mean over positions, Linear."""

    def __init__(self, codes: int, width: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, width)
        self.hidden = nn.Linear(width, hidden)
        self.head = nn.Linear(hidden, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N) -> logits (B, 10)."""
        logits: Tensor = self.head(self.hidden(self.embedding(tokens)).relu().mean(1))
        return logits


class TokenVit(nn.Module):
    """Table 4 (b): a trunk on learned embeddings of the tokens in the place of patches."""

    def __init__(self, codes: int, trunk: TrunkSpec) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, trunk.width)
        self.trunk = build_trunk(trunk)
        self.head = nn.Linear(trunk.width, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N) -> logits (B, 10)."""
        rows = encode(self.trunk, with_cls(self.trunk, self.embedding(tokens)))
        logits: Tensor = self.head(rows[:, 1:].mean(1))
        return logits


@pytest.mark.parametrize("evaluation", ["token-mlp", "token-vit-t"])
def test_token_classification_flops_agree_with_torch(evaluation: str, fair: Protocol) -> None:
    trunk = TRUNKS["mini"]
    recipe = fair.evaluation(evaluation, None)
    assert isinstance(recipe, TokenClassification)
    few = {"labelled_images": 100, "global_batch": 32, "epochs": 7}
    if recipe.classifier == "mlp":
        recipe = recipe.model_copy(update={**few, "width": 96, "hidden_width": 160})
        model: nn.Module = TokenMlp(50, 96, 160)
    else:
        recipe = recipe.model_copy(update=few)
        model = TokenVit(50, trunk)
    tokens = torch.randint(50, (2, trunk.patches))
    one = counted(model, lambda: model(tokens).sum().backward()) / 2
    assert token_classification_flops(recipe, trunk) == pytest.approx(96 * 7 * one, rel=0.02)


def test_scratch_costs_no_pretraining() -> None:
    assert training_flops("scratch", TRUNKS["mini"], {}, codebook_size=50) == 0
