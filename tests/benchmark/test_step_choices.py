"""A run's choices of how steps are computed: what they leave as it is, and what happens where one fails."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.registry import lookup_backend

from benchmark.batches import Batch
from benchmark.cell_command import cell_arguments
from benchmark.classification import Classification
from benchmark.commands import run
from benchmark.commands.options import Parser
from benchmark.interrupt import StopFlag
from benchmark.pretrain import PretrainingObjective
from benchmark.recipe import train_recipe
from benchmark.runtime import Runtime
from benchmark.step_choices import computed_as_chosen
from benchmark.step_costs import _Here
from benchmark.step_probe import this_machine
from methods import build_method, method_spec
from methods.trunk import build_classifier
from protocols import load_protocol
from protocols.schema import TrunkSpec

TRUNK = TrunkSpec(image_size=16, patch_size=4, width=16, depth=2, heads=2, layer_scale=0.1, drop_path=0.3)
METHODS: dict[str, dict[str, object]] = {
    "mim": {"mask_count": 6},
    "mapet": {"cutting_point": 7},
    "cae": {
        "mask_count": 6, "min_block": 2, "regressor_depth": 1, "decoder_depth": 1, "decoder_width": 16,
        "decoder_heads": 2, "alignment_weight": 1.0,
    },
    "splitmask": {"contrast_group": 3},
    "maskfeat": {"mask_count": 6, "min_block": 2},
    "beit-v2": {"mask_count": 6, "min_block": 2, "head_depth": 1},
}  # fmt: skip


def runtime(**choices: bool) -> Runtime:
    return Runtime.model_validate({"device": "cpu", "jobs": 1, "threads": 1, **choices})


def pretraining(name: str) -> tuple[nn.Module, Batch]:
    codes = 11 if method_spec(name).uses_tokens else 0
    method = build_method(name, trunk=TRUNK, codebook_size=codes, seed=0, **METHODS[name])
    generator = torch.Generator().manual_seed(0)
    batch = {
        "pixels": torch.randint(256, (6, 3, 16, 16), dtype=torch.uint8, generator=generator),
        "tokens": torch.randint(11, (6, 16 if codes else 0), generator=generator),
        "pattern": method.draw(torch.arange(6), 0, 0),
    }
    return PretrainingObjective(method, mean=(0.5,) * 3, std=(0.5,) * 3), batch


def fine_tuning() -> tuple[nn.Module, Batch]:
    torch.manual_seed(0)
    classifier = build_classifier(TRUNK, classes=5, backbone=None)
    return Classification(classifier), {"inputs": torch.randn(6, 3, 16, 16), "labels": torch.arange(6) % 5}


OBJECTIVES: dict[str, Callable[[], tuple[nn.Module, Batch]]] = {
    **{name: (lambda name=name: pretraining(name)) for name in METHODS},
    "finetune": fine_tuning,
}


def step(objective: nn.Module, batch: Batch, chosen: Runtime) -> list[Tensor]:
    """Loss and gradients of one training step, drop path drawn from one seed."""
    with computed_as_chosen(objective, lambda: batch, chosen) as ran:
        assert ran == chosen
        objective.train()
        torch.manual_seed(3)
        loss: Tensor = objective.loss(batch)  # type: ignore[operator]
        loss.backward()
    return [loss.detach(), *[one.grad.clone() for one in objective.parameters() if one.grad is not None]]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_recomputed_blocks_change_no_bit_and_keep_less(name: str) -> None:
    kept: list[int] = []

    def counted(tensor: Tensor) -> Tensor:
        kept[-1] += tensor.nbytes
        return tensor

    results = []
    for is_recomputed in (False, True):
        kept.append(0)
        objective, batch = OBJECTIVES[name]()
        with torch.autograd.graph.saved_tensors_hooks(counted, lambda tensor: tensor):
            results.append(step(objective, batch, runtime(activation_checkpointing=is_recomputed)))
    usual, recomputed = results
    assert all(torch.equal(one, other) for one, other in zip(usual, recomputed, strict=True))
    assert kept[1] < kept[0] / 2, "what is in blocks was not kept"


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(  # mim's blocks are finetune's
    ("name", "backend"), [("mapet", "aot_eager_decomp_partition"), ("cae", "eager"), ("finetune", "eager")]
)
def test_compiled_and_eager_steps_agree_with_drop_path(
    name: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captured as for the compiler, MaPeT differentiated and decomposed too; the compiler's own part would
    take minutes here: tests/performance/step_choices.py has it."""
    graphs = []

    def captured(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        compiled: Callable[..., object] = lookup_backend(backend)(graph, inputs)
        return compiled

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=captured))
    torch._dynamo.reset()
    eager = step(*OBJECTIVES[name](), runtime())
    objective, batch = OBJECTIVES[name]()
    names = list(objective.state_dict())
    compiled = step(objective, batch, runtime(compile=True, activation_checkpointing=True))
    assert graphs
    assert list(objective.state_dict()) == names
    for one, other in zip(compiled, eager, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    graphs.clear()
    torch._dynamo.reset()
    objective.loss(batch)  # type: ignore[operator]
    assert not graphs, "what was trained is measured eagerly"


@pytest.mark.filterwarnings("default")
def test_without_a_compiler_a_cell_trains_eagerly_and_says_why_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("/nonexistent/compiler",))
    assert_eager_with_one_warning("InvalidCxxCompiler", caplog)


@pytest.mark.filterwarnings("default")
def test_with_too_many_graphs_a_cell_trains_eagerly_and_its_record_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two blocks of different rates of drop path are two graphs of the same code."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr("benchmark.step_choices.MOST_GRAPHS", 1)
    torch._dynamo.reset()
    assert_eager_with_one_warning("recompile_limit", caplog)
    objective, batch = fine_tuning()
    context = SimpleNamespace(runtime=runtime(compile=True), seed=0, folder=tmp_path, stop=StopFlag(), ran={})
    monkeypatch.setattr("benchmark.recipe.train", lambda training, chosen: None)
    train_recipe(
        context,  # type: ignore[arg-type]
        load_protocol(str(Path(__file__).parents[1] / "tiny.yaml")).pretraining,
        objective=objective,
        weights=objective,
        undecayed=set(),
        images=range(64),  # type: ignore[arg-type]
        make_batch=lambda positions, epoch: batch,
    )
    assert context.ran == {"compile": False}, "what the record is told"


def assert_eager_with_one_warning(reason: str, caplog: pytest.LogCaptureFixture) -> None:
    eager = step(*fine_tuning(), runtime())
    objective, batch = fine_tuning()
    with (
        caplog.at_level(logging.WARNING),
        computed_as_chosen(objective, lambda: batch, runtime(compile=True)) as ran,
    ):
        assert not ran.compile
        found = step(objective, batch, ran)
    (warning,) = [one for one in caplog.records if one.name == "benchmark.step_choices"]
    assert "--compile: the compiler failed, so this cell trains without it" in warning.getMessage()
    assert reason in warning.getMessage()
    assert all(torch.equal(one, other) for one, other in zip(found, eager, strict=True))


@pytest.mark.parametrize("flags", [[], ["--compile"], ["--activation-checkpointing", "--compile"]])
def test_what_is_chosen_reaches_launched_cells(flags: list[str], tmp_path: Path) -> None:
    parser = Parser(prog="run_benchmark.py", description="")
    run.add_arguments(parser)
    options = parser.parse_args(
        ["--protocol", "mini", "--device", "cpu", "--work-dir", str(tmp_path), *flags]
    )
    words = cell_arguments(options, "some-cell", run._runtime(options))
    assert {word for word in words if word in ("--compile", "--activation-checkpointing")} == set(flags)


def test_costs_are_kept_for_each_choice_apart() -> None:
    plain, chosen = (this_machine(runtime(activation_checkpointing=given)) for given in (False, True))
    assert plain != chosen
    assert "with activation checkpointing" in chosen.described
    assert _Here(runtime()).matches(plain)
    assert not _Here(runtime()).matches(chosen)
    assert _Here(runtime(activation_checkpointing=True)).matches(chosen)
