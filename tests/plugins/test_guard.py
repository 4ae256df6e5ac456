"""What a plug-in may not touch is found in its text, when it was imported, and when its method is built."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

import methods.trunk
from benchmark.plugin_guard import check_source, protocol_fields
from methods import build_method, list_methods
from methods.mim import MaskedImageModelling
from protocols.errors import HarnessError, ProtocolViolation
from protocols.recipes import PreTraining
from protocols.schema import Data, TrunkSpec
from protocols.untouched import Untouched
from tests.plugin_error_cases import built, inside
from tests.plugins.conftest import Load
from tests.plugins.plugin_texts import METHOD, changed

TRUNK = TrunkSpec(image_size=8, patch_size=2, width=16, depth=2, heads=2, layer_scale=0.1, drop_path=0.1)
HIDDEN = "trunk = getattr(self, 'tru' + 'nk')\n"  # what the text does not show


def build(name: str = "ring-mim", **values: int) -> torch.nn.Module:
    return build_method(name, trunk=TRUNK, codebook_size=16, seed=3, **values)


def test_an_honest_plug_in_stands_on_the_very_trunk_of_the_others(load: Load) -> None:
    load(METHOD)
    ours, theirs = build(), build("mim", mask_count=8)
    expected = theirs.trunk.state_dict()
    assert ours.trunk.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in ours.trunk.state_dict().items())
    assert ours.mask_count == 8, "it follows the trunk"
    # Without a seed as well: from the state of the process.
    torch.manual_seed(11)
    free = build_method("ring-mim", trunk=TRUNK, codebook_size=16)
    torch.manual_seed(11)
    other = build_method("mim", trunk=TRUNK, codebook_size=16, mask_count=8)
    assert torch.equal(free.trunk.pos_embed, other.trunk.pos_embed)


OWN_DECAY = "\n    def no_weight_decay(self):\n        return set()\n"
MORE_DECAY = OWN_DECAY.replace("set()", "super().no_weight_decay() | {'trunk.blocks.0.mlp.fc1.weight'}")
OWN_BACKBONE = (
    "\n    def export_backbone(self):\n"
    "        return {name: value * 2 for name, value in super().export_backbone().items()}\n"
)
BEFORE = ("        super().__init__(trunk", "        spare = torch.randn(3)\n        super().__init__(trunk")
METHODS = "\n\nMETHODS = ("
# In the constructor, on the trunk, in words that the text does not show -> what is found.
ON_THE_TRUNK = {
    "trunk.pos_embed.data.zero_()": "pos_embed of trunk has other values",
    "trunk.pos_embed.requires_grad = False": "pos_embed is frozen",
    "trunk.blocks = trunk.blocks[:1]": "the trunk lacks a part blocks.1",
    "trunk.blocks[1].drop_path1.drop_prob = 0.5": "drop_prob",
    "trunk.blocks[0].ls1.gamma.data.fill_(1.0)": "ls1.gamma of trunk",
    "trunk.blocks[0].register_forward_hook(print)": "trunk.blocks.0 has a hook",
    "trunk.norm.forward = print": "trunk.norm has a hook, or a forward",
    "trunk.norm = torch.nn.Identity()": "trunk.norm is Identity",
    "trunk.norm.eps = 1e-5": "trunk.norm is LayerNorm",
    "vars(self)['_modules']['trunk'] = torch.nn.Identity()": "Identity, not timm's",
    "self.codebook_size = 99": "codebook_size is 99, the tokenizer's is 16",
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        *([[built(HIDDEN + line)], said] for line, said in ON_THE_TRUNK.items()),
        ([built("pass"), BEFORE], "has other values than under the same seed"),
        ([(METHODS, OWN_DECAY + METHODS)], "leaves out trunk.cls_token"),
        ([(METHODS, MORE_DECAY + METHODS)], "spares the trunk's blocks.0.mlp"),
        ([(METHODS, OWN_BACKBONE + METHODS)], r"export_backbone\(\) has other values"),
    ],
    ids=[*ON_THE_TRUNK, "drawn before", "no decay", "more without decay", "export_backbone"],
)
def test_a_trunk_that_is_not_the_shared_one_is_refused_where_it_is_built(
    load: Load, changes: list[tuple[str, str]], said: str
) -> None:
    path = load(changed(METHOD, *changes))
    with pytest.raises(ProtocolViolation, match=said) as caught:
        build()
    assert str(caught.value).startswith(f"{path}:11: method ring-mim")


def test_what_its_constructor_raises_is_told_with_its_line(load: Load) -> None:
    path = load(changed(METHOD, built("raise KeyError('depth')")))
    with pytest.raises(
        HarnessError, match="KeyError: 'depth'; it is given trunk, codebook_size, mask_count"
    ) as caught:
        build()
    assert str(caught.value).startswith(f"{path}:14: method ring-mim cannot be built")


def test_a_change_that_the_text_hides_is_found_after_the_import(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods.trunk, "build_trunk", methods.trunk.build_trunk)
    monkeypatch.setattr(torch.nn.LayerNorm, "forward", torch.nn.LayerNorm.forward)
    helper = "\n\ndef own(thing, name):\n    setattr(thing, name, None)\n\n\n"
    hidden = helper + "own(MaskedImageModelling.__mro__[1], 'eyes')\n"
    try:
        with pytest.raises(ProtocolViolation, match=r"changed methods\.base\.Method\.eyes"):
            load(changed(METHOD, ("\n\n\nclass RingMim", f"{hidden}\n\nclass RingMim")))
    finally:
        del methods.base.Method.eyes
    for call, named in (
        ("__import__('methods.trunk').trunk, 'build_trunk'", r"methods\.trunk\.build_trunk"),
        ("torch.nn.LayerNorm, 'forward'", r"torch\.nn\.modules\.normalization\.LayerNorm\.forward"),
    ):
        lines = hidden.replace("MaskedImageModelling.__mro__[1], 'eyes'", call)
        with pytest.raises(ProtocolViolation, match=named):
            load(changed(METHOD, ("\n\n\nclass RingMim", f"{lines}\n\nclass RingMim")))
        monkeypatch.undo()
    assert "ring-mim" not in list_methods()


def test_what_is_registered_behind_the_loader_is_found() -> None:
    before = Untouched()
    methods._TABLE["ghost"] = methods._TABLE["mim"]
    try:
        assert before.changes() == ["methods._TABLE"]
    finally:
        del methods._TABLE["ghost"]
    assert before.changes() == []


@pytest.mark.parametrize(
    "line",
    [
        "import methods.trunk as t; t.build_trunk = None",
        "from methods import trunk; trunk.build_trunk = None",
        "from methods.mim import MaskedImageModelling as M; M.draw = None",
        "import torch; torch.backends.cudnn.deterministic = False",
        "import torch.nn.functional as F; F.linear = None",
        "import timm; del timm.models.vision_transformer.Block.forward",
        "import methods.specs; methods.specs.SPECS += ()",
        "import tokenizers; vars(tokenizers)['build_tokenizer'] = None",
        "from benchmark import pretrain as p; (a, p.run) = 1, 2",
        "import methods\nfor methods.x in (1, 2): pass",
        "import methods\nwith open('x') as methods.x: pass",
        "from protocols import schema; object.__setattr__(schema.Data, 'mean', 1)",
        "import random; random.seed(0)",
        "import numpy as np; np.random.seed(0)",
        "def f(self): self.trunk.blocks[0].attn.scale = 1.0",
        "def f(self): setattr(self.trunk, 'pos_embed', None)",
        "def f(self): self.trunk.eval()",
    ],
)
def test_the_text_shows_it(line: str) -> None:
    with pytest.raises(ProtocolViolation, match=r"^mine\.py:[12]: "):
        check_source(Path("mine.py"), ast.parse(line), has_methods=True)


@pytest.mark.parametrize(
    "line",
    [
        "import torch; generator = torch.Generator().manual_seed(0)",
        "def f(self): self.trunk_tokens = 1; self.head = 2; trunk = self.trunk",
        "from methods.trunk import encode\nencode = encode",
        "from methods.mim import MaskedImageModelling as M\nclass A(M): pattern_dtype = 1\nA.name = 2",
        "import torch\nx: torch.Tensor\nself = 1",
        "def f(self, images): images[0] = 1; out = {}; out['loss'] = 2",
    ],
)
def test_what_is_its_own_may_be_changed(line: str) -> None:
    check_source(Path("mine.py"), ast.parse(line), has_methods=True)


def test_a_tokenizer_may_have_a_trunk_of_its_own() -> None:
    check_source(Path("mine.py"), ast.parse("def f(self): self.trunk = 1"), has_methods=False)


def test_no_hyperparameter_may_bear_the_name_of_what_the_protocol_fixes(load: Load) -> None:
    fixed = protocol_fields()
    assert {*PreTraining.model_fields, *Data.model_fields, *TrunkSpec.model_fields} <= fixed.keys()
    assert {"epochs", "peak_lr", "width", "depth", "image_size", "drop_path", "global_batch", "weight_decay",
            "seed", "layer_scale", "patch_size", "codebook_size"} <= fixed.keys()  # fmt: skip
    own = {one.name for name in list_methods() for one in methods.method_spec(name).hyperparameters}
    assert not own & fixed.keys(), "a built-in method keeps to it too"
    with pytest.raises(ProtocolViolation, match=r"mine\.py:30: .*'width' .*trunks\.NAME\.width"):
        load(changed(METHOD, ('name="mask_count"', 'name="width"')))


def test_a_line_of_another_function_is_no_line_of_the_plug_in(load: Load) -> None:
    with pytest.raises(HarnessError, match=r"mine\.py:10: cannot be imported: TypeError"):
        load(changed(METHOD, inside("MaskedImageModelling(1, 2, 3)")))
    assert issubclass(MaskedImageModelling, torch.nn.Module)


def test_a_hidden_patch_of_an_optimiser_is_found_after_the_import(load: Load) -> None:
    hidden = (
        "import importlib\n_optim = importlib.import_module('torch.op' + 'tim')\n"
        "type.__setattr__(_optim.AdamW, 'is_mine', True)\n"
    )
    try:
        with pytest.raises(ProtocolViolation, match=r"changed torch\.optim\.adamw\.AdamW\.is_mine"):
            load(METHOD + hidden)
    finally:
        del torch.optim.AdamW.is_mine  # type: ignore[attr-defined]
