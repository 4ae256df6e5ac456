"""What every registered method must do, whatever its objective: what `check` tries, and some more."""

from __future__ import annotations

import ast
from functools import cache
from typing import Any

import pytest
import torch

from benchmark.conformance import Check, Finding, examined
from benchmark.conformance_contract import CONTRACT, TRUNK_ALONE
from benchmark.conformance_leaks import LEAKS
from benchmark.conformance_method import MethodUnderTest
from benchmark.conformance_training import TRAINING
from methods import build_method, list_methods, method_spec
from methods.base import Method
from methods.specs import _SHARED_SOURCES, ROOT
from protocols.errors import HarnessError
from protocols.schema import TrunkSpec

TRUNK = TrunkSpec(image_size=32, patch_size=4, width=32, depth=3, heads=2)
CODES = 20
OWN: dict[str, dict[str, Any]] = {
    "mim": {"mask_count": 30},
    "pim": {"cutting_point": 35},
    "mapet": {"cutting_point": 35},
    "beit": {"mask_count": 30, "min_block": 5},
    "cae": {
        "mask_count": 30,
        "min_block": 5,
        "regressor_depth": 2,
        "decoder_depth": 1,
        "alignment_weight": 0.5,
    },
    "scratch": {},
    "splitmask": {"contrast_group": 2},
    "maskfeat": {"min_block": 5},
    "beit-v2": {"mask_count": 30, "min_block": 5},
}
# What no training runs.
NOT_TRAINED_WITH = {"reference.py"}
PRETRAINED = [name for name in list_methods() if method_spec(name).pretrains]


def build(name: str, *, seed: int = 0, drop_path: float = 0.0, **changes: Any) -> Method:
    trunk = TRUNK.model_copy(update={"drop_path": drop_path})
    return build_method(name, trunk=trunk, codebook_size=codes(name), seed=seed, **(OWN[name] | changes))


def codes(name: str) -> int:
    return CODES if method_spec(name).uses_tokens else 0


@cache
def under_test(name: str) -> MethodUnderTest:
    """The method as `check` examines it, at these sizes."""
    spec = method_spec(name)
    return MethodUnderTest(spec, TRUNK, spec.resolve(OWN[name], trunk=TRUNK), codes(name))


def test_every_method_has_a_configuration_here() -> None:
    assert set(OWN) == set(list_methods())


def failures(name: str, check: Check[MethodUnderTest]) -> list[Finding]:
    found = list(examined([check], under_test(name)))
    assert found
    return [one for one in found if one.status == "FAILED"]


@pytest.mark.parametrize("check", [*CONTRACT[2:], *LEAKS, *TRAINING], ids=lambda check: check.name)
@pytest.mark.parametrize("name", PRETRAINED)
def test_the_method_does_what_check_asks_of_every_method(name: str, check: Check[MethodUnderTest]) -> None:
    assert not failures(name, check)


@cache
def trunk_findings(name: str) -> dict[str, str]:
    return {one.what: one.status for one in examined(TRUNK_ALONE, under_test(name))}


@pytest.mark.parametrize("name", list_methods())
def test_equal_seeds_give_equal_trunks_in_every_method(name: str) -> None:
    found = trunk_findings(name)
    assert (found["initialisation"], found["equal trunk"]) == ("ok", "ok")


@pytest.mark.parametrize("name", list_methods())
def test_backbone_loads_strictly_in_plain_timm(name: str) -> None:
    found = trunk_findings(name)
    assert (found["exported backbone"], found["loads in timm"]) == ("ok", "ok")
    assert found["weight decay"] == "ok"


@pytest.mark.parametrize("name", list_methods())
def test_without_a_seed_the_global_generator_decides(name: str) -> None:
    trunks = []
    for _ in range(2):
        torch.manual_seed(7)
        method = build_method(name, trunk=TRUNK, codebook_size=codes(name), **OWN[name])
        trunks.append(method.export_backbone())
    assert torch.equal(trunks[0]["pos_embed"], trunks[1]["pos_embed"])


class TestErrors:
    def test_unknown_method_names_the_nearest(self) -> None:
        with pytest.raises(HarnessError, match="did you mean 'mapet'"):
            build_method("mappet", trunk=TRUNK, codebook_size=CODES)

    def test_unknown_hyperparameter_names_the_nearest(self) -> None:
        with pytest.raises(HarnessError, match="did you mean 'mask_count'"):
            build("mim", mask_counts=3)

    def test_required_hyperparameter(self) -> None:
        with pytest.raises(HarnessError, match="cutting_point must be set"):
            build_method("pim", trunk=TRUNK, codebook_size=CODES)

    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("mim", {"mask_count": 0}),
            ("mim", {"mask_count": 65}),
            ("mim", {"mask_count": 3.0}),
            ("mim", {"mask_count": True}),
            ("pim", {"cutting_point": 0}),
            ("pim", {"cutting_point": 65}),
            ("cae", {"decoder_width": 30, "decoder_heads": 4}),
            ("cae", {"alignment_weight": -1.0}),
            ("cae", {"min_block": 60, "mask_count": 60}),
            ("beit", {"min_block": 60, "mask_count": 60}),
            ("maskfeat", {"mask_count": 65}),
            ("beit-v2", {"head_depth": 0}),
            ("splitmask", {"contrast_group": 1}),
            ("splitmask", {"temperature": 0.0}),
        ],
    )
    def test_out_of_range(self, name: str, change: dict[str, Any]) -> None:
        with pytest.raises(HarnessError, match=next(iter(change))):
            build(name, **change)

    def test_nothing_masked(self) -> None:
        images, tokens = torch.zeros(6, 3, 32, 32), torch.zeros(6, TRUNK.patches, dtype=torch.int64)
        with pytest.raises(ValueError, match="predicts nothing"):
            build("beit")(images, tokens, torch.zeros(6, TRUNK.patches, dtype=torch.bool))

    def test_scratch_has_no_objective(self) -> None:
        method = build("scratch")
        with pytest.raises(ValueError, match="no pre-training"):
            method.draw(torch.arange(2), 0, 0)
        with pytest.raises(ValueError, match="no reference"):
            method.load_reference({})


@pytest.mark.parametrize("name", list_methods())
def test_the_source_digest_covers_what_a_method_imports(name: str) -> None:
    """Or a change of it would leave records that pass for the new code's."""
    files, folder = method_spec(name).files, ROOT / "methods"
    covered = {*files, *_SHARED_SOURCES}
    for file in sorted(covered):
        nodes = [
            one for one in ast.walk(ast.parse((folder / file).read_text())) if isinstance(one, ast.ImportFrom)
        ]
        names = {f"{(node.module or '').removeprefix('methods.')}.py" for node in nodes}
        names |= {f"{alias.name}.py" for node in nodes if node.module == "methods" for alias in node.names}
        used = {one for one in names if (folder / one).is_file()}
        assert used <= covered | NOT_TRAINED_WITH, f"{file} imports {used - covered}"
