"""Protocols are read strictly, stay frozen, and are identified by slices."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from protocols import list_protocols, load_protocol
from protocols.errors import HarnessError
from protocols.schema import BaseModel, Protocol, canonical_json

TINY = Path(__file__).parent.parent / "tiny.yaml"


def leaves(value: Any, path: str = "") -> list[str]:
    if isinstance(value, BaseModel):
        value = {name: getattr(value, name) for name in type(value).model_fields}
    if isinstance(value, dict):
        return [
            leaf for key, child in value.items() for leaf in leaves(child, f"{path}.{key}" if path else key)
        ]
    return [path]


def hashed_leaves(protocol: Protocol) -> list[str]:
    kinds = ("data", "trunks", "tokenizers", "methods", "pretraining", "evaluations")
    return [leaf for kind in kinds for leaf in leaves(getattr(protocol, kind), kind)]


def slice_of(leaf: str) -> str:
    kind, name, *_ = leaf.split(".")
    return kind if kind in ("data", "pretraining") else f"{kind[:-1]}:{name}"


def changed(protocol: Protocol, leaf: str) -> str:
    """Another allowed value for `leaf`, as --set takes it."""
    special = {
        "data.name": "other",
        "data.image_size": "56",
        "optimizer": None,
        "schedule": None,
        "kind": None,
        "split": None,
        "evaluated_part": "validation",
        "whiten": "false",
        "layer_decay": "0.5",
        "clip_grad_norm": "7.0",
        "model": "another",
    }
    for key, value in special.items():
        if leaf == key or leaf.endswith(f".{key}"):
            return value or ""
    value: Any = protocol
    for key in leaf.split("."):
        value = value[key] if isinstance(value, dict) else getattr(value, key)
    if isinstance(value, tuple):
        return str([part / 2 for part in value])
    if isinstance(value, float):
        return str(value * 0.5 + 1e-9)
    return str(value - 1 if leaf.endswith("count") else value + 1)


@pytest.mark.parametrize("name", list_protocols())
def test_every_value_says_where_it_comes_from(name: str) -> None:
    protocol = load_protocol(name)
    assert sorted(protocol.sources) == sorted(
        leaf for leaf in hashed_leaves(protocol) if leaf != "methods.scratch"
    )
    assert all(len(source.source) > 3 for source in protocol.sources.values())


@pytest.mark.parametrize(
    "leaf", [leaf for leaf in hashed_leaves(load_protocol("mini")) if leaf != "methods.scratch"]
)
def test_a_changed_value_changes_exactly_its_own_slice(leaf: str) -> None:
    before = load_protocol("mini")
    value = changed(before, leaf)
    if not value:
        with pytest.raises(HarnessError):
            load_protocol("mini", overrides=[f"{leaf}=another"])
        return
    overrides = [f"{leaf}={value}"]
    if leaf in ("data.pretraining.start", "data.training.start"):  # or it would run into the held-out images
        overrides.append(leaf.replace("start", "count") + "=5999")
    after = load_protocol("mini", overrides=overrides)
    moved = {name for name in before.slices if before.slices[name] != after.slices[name]}
    assert moved == {slice_of(leaf)}
    assert after.digest != before.digest
    assert after.deviations == tuple(overrides)


def test_prose_defaults_and_sources_are_in_no_digest(tmp_path: Path) -> None:
    text = TINY.read_text()
    other = tmp_path / "other.yaml"
    other.write_text(
        text.replace("tests only", "other words")
        .replace("seeds: [0]", "seeds: [3]")
        .replace("source: test", "source: x")
    )
    assert load_protocol(str(other)).slices == load_protocol(str(TINY)).slices


def test_an_int_for_a_float_is_the_same_protocol(tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(TINY.read_text().replace("clip_grad_norm: {value: 3.0", "clip_grad_norm: {value: 3"))
    assert load_protocol(str(other)).digest == load_protocol(str(TINY)).digest


def test_digests_are_stable() -> None:
    assert canonical_json({"b": [1, 2.0], "a": None}) == '{"a":null,"b":[1,2.0]}'
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json(float("nan"))


def test_protocols_are_frozen_and_travel_to_child_processes() -> None:
    protocol = load_protocol("mini")
    with pytest.raises(ValidationError):
        protocol.pretraining.peak_lr = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError, match="frozen"):
        protocol.methods["mim"]["mask_count"] = 1
    with pytest.raises(TypeError, match="frozen"):
        protocol.methods |= {}  # type: ignore[misc]
    copy = pickle.loads(pickle.dumps(protocol))
    assert copy == protocol
    assert copy.digest == protocol.digest


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "  epochs: {value: 8,",
            "  epoches: {value: 8,",
            r"other\.yaml:\d+: pretraining\.epoches: unknown key; did you mean 'epochs'",
        ),
        ("  epochs: {value: 8,", "  epochs: {value: eight,", r"pretraining\.epochs: .*integer, got 'eight'"),
        ("  epochs: {value: 8,", "  epochs: {value: 8.0,", r"pretraining\.epochs: .*integer"),
        ("  epochs: {value: 8,", "  epochs: {value: true,", r"pretraining\.epochs: .*integer"),
        ("  epochs: {value: 8, source: test}", "  epochs: 8", r"pretraining\.epochs: a bare value"),
        ("  epochs: {value: 8, source: test}", "  epochs: {value: 8}", "either `source` or `assumed`"),
        (
            "  epochs: {value: 8, source: test}",
            "  epochs: {value: 8, source: a, assumed: b}",
            "either `source` or `assumed`",
        ),
        ("  epochs: {value: 8, source: test}", "  epochs: {value: 8, sauce: a}", "did you mean 'source'"),
        ("  epochs: {value: 8,", "  epochs: {value: 0,", "greater than or equal to 1"),
        ("peak_lr: {value: 2e-3,", "peak_lr: {value: .nan,", "not a plain decimal|finite"),
        (
            "drop_path: {value: 0.2, source: test}\n  color",
            "drop_path: {value: 1.0, source: test}\n  color",
            "less than 1",
        ),
        ("warmup_epochs: {value: 0.5,", "warmup_epochs: {value: 8,", "must be less than epochs"),
        ("min_lr: {value: 1e-5,", "min_lr: {value: 1,", "must not exceed peak_lr"),
        (
            "start: {value: 256,",
            "start: {value: 255,",
            r"validation images \(train 255 to 318\) overlap pretraining images",
        ),
        ("seeds: [0]", "seeds: [0]\n  seeds: [1]", r"defaults\.seeds is given twice, first in line"),
        ("seeds: [0]", "seeds: []", r"defaults\.seeds"),
        ("methods: [scratch,", "methods: [swin,", "names 'swin'"),
        (
            "summary: tests only",
            "summary: !!python/object/apply:os.system ['true']",
            "tag|not a plain|valid string",
        ),
        ("summary: tests only", "summary: &a [*a]", "valid string|recursive|YAML"),
        ("summary: tests only", "summary: [", "not valid YAML"),
        ("name: tiny", "name: ../tiny", "name: .*pattern"),
        ("name: tiny", "name: tokens", "'tokens' is taken"),
        ("  vit-tiny-test:", "  ../vit:", "pattern"),
        ("    kind: {value: finetune,", "    kind: {value: finetuning,", r"evaluations\.finetune"),
        (
            "layer_decay: {value: 0.65",
            "layer_decay: {value: 2",
            r"finetune\.layer_decay: .*less than or equal",
        ),
    ],
)
def test_mistakes_are_named_with_file_and_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = TINY.read_text()
    assert text.count(old) >= 1, old
    path = tmp_path / "other.yaml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(HarnessError) as caught:
        load_protocol(str(path))
    assert re.search(message, str(caught.value)), str(caught.value)
    assert str(caught.value).startswith("other.yaml")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "overrides",
    [
        ["trunks.vit-mini.mlp_ratio=4"],
        ["evaluations.linear-probe.min_lr=0"],
        ["pretraining.betas=[0.9, 0.999]"],
        ["pretraining.peak_lr=1e-3", "pretraining.peak_lr=4e-3"],
    ],
)
def test_setting_the_protocols_own_value_is_no_deviation(overrides: list[str]) -> None:
    protocol = load_protocol("mini", overrides=overrides)
    assert protocol.deviations == ()
    assert protocol.slices == load_protocol("mini").slices


def test_unknown_names_and_files() -> None:
    with pytest.raises(HarnessError, match="did you mean 'mini'"):
        load_protocol("minni")
    with pytest.raises(HarnessError, match=r"no protocol file 'none\.yaml'"):
        load_protocol("none.yaml")
    assert load_protocol("MINI").name == "mini"


@pytest.mark.parametrize("text", ["pretraining.epoch=3", "name=x", "pretraining=1", ""])
def test_set_takes_only_values_of_slices(text: str) -> None:
    with pytest.raises(HarnessError, match=r"write SLICE\.FIELD=VALUE"):
        load_protocol("mini", overrides=[text])


def test_numbers_mean_what_they_say(tmp_path: Path) -> None:
    """YAML 1.1 reads 1e-3 as a text and 0x10, 010 and 1_0 as numbers; here only decimals are numbers."""
    assert load_protocol("mini", overrides=["pretraining.peak_lr=1e-3"]).pretraining.peak_lr == 0.001
    for odd in ("0x10", "010", "1_0", "1:30"):
        with pytest.raises(HarnessError):
            load_protocol("mini", overrides=[f"pretraining.epochs={odd}"])
    assert yaml.safe_load("a: 1e-3")["a"] == "1e-3"
