"""Every value of every built-in protocol: a change moves its own slices and redoes their cells alone."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from typing import Any

import pytest

from benchmark.plan import Cell, make_plan, select
from protocols import list_protocols, load_protocol
from protocols.errors import HarnessError
from protocols.load import value_at
from protocols.schema import Protocol

CHOICES = {
    "name": ["another"],
    "split": ["test", "train"],
    "mean": ["[0.1, 0.2, 0.3]"],
    "std": ["[0.1, 0.2, 0.3]"],
    "betas": ["[0.8, 0.9]"],
    "resized_crop_scale": ["[0.5, 0.9]"],
    "resized_crop_ratio": ["[0.5, 1.0]"],
    "interpolation": ["bilinear"],
    "rand_augment": ["rand-m5-mstd0.5"],
    "erasing_mode": ["const"],
    "clip_grad_norm": ["7.0"],
    "layer_decay": ["0.5"],
    "features": ["class-token"],
    "trunk": ["vit-s"],
    "model": ["another"],
    "weights": ["another"],
}
# Sizes must still divide one another; what doubles is even.
DOUBLED = ("image_size", "width", "hidden_width", "heads", "decoder_width", "decoder_heads",
           "global_batch")  # fmt: skip
LOWERED = ("count", "mask_count", "min_block", "cutting_point", "labelled_images")
# A cell knows of a recipe no more than its slice's digest: some values of each recipe stand for all.
IDENTIFYING = ("epochs", "peak_lr", "transfer_set", "trunk")
FIXED = ("kind", "optimizer", "schedule", "classifier")


@cache
def original(name: str) -> Protocol:
    return load_protocol(name)


@cache
def digests_of(name: str) -> dict[str, str]:
    return original(name).slices


def field_of(path: str) -> str:
    parts = path.split(".")
    return parts[2] if parts[0] in ("methods", "evaluations") else parts[-1]


def change(protocol: Protocol, path: str) -> list[str]:
    """--set texts: another allowed value for `path`, and what else of its slice it makes necessary."""
    field, value = field_of(path), value_at(protocol, path)
    group = path.rpartition(".")[0]
    companions: list[str] = []
    if field == "split":  # far from all that is held out
        companions = [f"{group}.start=10000000"]
    elif field == "start":
        companions = [f"{group}.count={value_at(protocol, f'{group}.count') - 1}"]
    elif field == "whiten" and not value and not path.startswith("evaluations.knn."):
        # A probe's whitening needs features that do not change.
        names = ("resized_crop_scale", "resized_crop_ratio", "interpolation", "evaluation_crop_fraction")
        companions = [f"{group}.{name}=null" for name in names] + [f"{group}.horizontal_flip=0.0"]
    if field == "transfer_set":
        new = next((name for name in protocol.transfer_sets if name != value), "another")
    elif field in CHOICES:
        new = next(choice for choice in CHOICES[field] if choice != str(value))
    elif field == "mixup_group":
        new = str(value // 2)
    elif isinstance(value, bool):
        new = str(not value).lower()
    elif isinstance(value, float):
        new = str(value / 2 or 1e-7)
    elif field in ("codebook_size", "patch_size"):
        new = str(value // 2)
    else:
        new = str(value * 2 if field in DOUBLED else value - 1 if field in LOWERED else value + 1)
    return [f"{path}={new}", *companions]


def slices_of(protocol_name: str, path: str) -> set[str]:
    """The slices that hold the value at `path`: with a trunk in the path, that trunk's alone."""
    kind, name, *rest = path.split(".")
    if kind in ("data", "pretraining"):
        return {kind}
    prefix = f"{kind.removesuffix('s')}:"
    if kind in ("methods", "evaluations") and len(rest) == 2:
        return {f"{prefix}{name}@{rest[1]}"}
    return {one for one in digests_of(protocol_name) if one.partition("@")[0] == f"{prefix}{name}"}


@cache
def plan_of(name: str) -> list[Cell]:
    return planned(original(name))


def planned(protocol: Protocol) -> list[Cell]:
    # A view that tries several values does not use the protocol's own.
    views = [
        name
        for name, view in protocol.views.items()
        if view.cells and not any(cells.hyperparameters or cells.pretraining for cells in view.cells)
    ]
    return make_plan(protocol, select(protocol, views=views or ["none"]))


def uses(cell: Cell) -> set[str]:
    """The slices that a cell's numbers come from, by what the cell is."""
    used = {name for name, _ in cell.slices}
    if cell.stage == "pretrain":
        used |= {f"method:{cell.method}", f"method:{cell.method}@{cell.trunk}"}  # one of them exists
    return used


def cases() -> list[tuple[str, str]]:
    return [(name, path) for name in list_protocols() for path in original(name).sources]


@pytest.mark.parametrize(("name", "path"), [case for case in cases() if field_of(case[1]) not in FIXED])
def test_a_change_moves_its_slices_and_redoes_their_cells_alone(name: str, path: str) -> None:
    before = original(name)
    is_transfer = f"{path.rpartition('.')[0]}.transfer_set" in before.sources
    if field_of(path) == "evaluated_part" and (before.data.validation is None or is_transfer):
        with pytest.raises(HarnessError, match="validation"):
            load_protocol(name, overrides=[f"{path}=validation"])
        return
    if path == "evaluations.token-vit.trunk":  # of the one protocol that has but one
        with pytest.raises(HarnessError, match="names 'vit-s', which trunks does not define"):
            load_protocol(name, overrides=change(before, path))
        return
    if field_of(path) == "transfer_set" and len(before.transfer_sets) == 1:
        with pytest.raises(HarnessError, match="names 'another', which is no transfer set"):
            load_protocol(name, overrides=change(before, path))
        return
    overrides = [f"{path}=validation"] if field_of(path) == "evaluated_part" else change(before, path)
    after = load_protocol(name, overrides=overrides, locked=False)

    digests, now = digests_of(name), after.slices
    moved = {one for one in digests if digests[one] != now[one]}
    assert moved == slices_of(name, path)
    assert list(digests) == list(now)
    assert after.deviations == tuple(overrides)
    for one in digests:
        assert after.deviations_of([one]) == (tuple(overrides) if one in moved else ())

    if name == "mini" or not path.startswith("evaluations.") or field_of(path) in IDENTIFYING:
        check_plan(name, path, after, moved)


def check_plan(name: str, path: str, after: Protocol, moved: set[str]) -> None:
    """The cells that use what moved, and their descendants, have other ids; all others keep theirs."""
    redone: set[str] = set()
    for cell in plan_of(name):
        if uses(cell) & moved or redone & set(cell.parents):
            redone.add(cell.id)
    old, new = {cell.id: cell for cell in plan_of(name)}, {cell.id: cell for cell in planned(after)}
    assert set(old) - set(new) == redone
    kinds = [
        Counter(
            (cell.stage, cell.method, cell.tokenizer, cell.evaluation, cell.seed)
            for cell in cells
            if cell.part is None  # another part that is labelled or evaluated needs tokens of its own
        )
        for cells in ([old[one] for one in redone], [new[one] for one in set(new) - set(old)])
    ]
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize(("name", "path"), [case for case in cases() if field_of(case[1]) in FIXED])
def test_a_value_with_one_allowed_literal_cannot_be_set(name: str, path: str) -> None:
    other = {"kind": "another", "classifier": "vit" if "mlp" in path else "mlp"}.get(field_of(path), "sgd")
    with pytest.raises(HarnessError) as refused:
        load_protocol(name, overrides=[f"{path}={other}"], locked=False)
    if field_of(path) == "classifier":  # the other one needs other fields
        assert "classifier mlp takes width and hidden_width; vit takes trunk" in str(refused.value)
    else:
        said = f"--set {path}={other}: (must be '|must be one of finetune, linear-probe, knn, token-)"
        assert re.match(said, str(refused.value))


@pytest.mark.parametrize("name", list_protocols())
def test_every_value_that_is_hashed_says_where_it_comes_from(name: str) -> None:
    protocol = original(name)
    assert {leaf for one in protocol.slices for leaf in leaves(protocol, one)} == {
        tuple(path.split(".")) for path in protocol.sources
    }
    for path, source in protocol.sources.items():
        assert len(source.source) > 3, path


def leaves(protocol: Protocol, slice_name: str) -> list[tuple[str, ...]]:
    """The paths of all values of a slice as its file must spell them."""
    kind, _, name = slice_name.partition(":")
    name, _, trunk = name.partition("@")
    start = (f"{kind}s", name) if name else (kind,)
    found: list[tuple[str, ...]] = []

    def walk(values: dict[str, Any], path: tuple[str, ...]) -> None:
        for key, value in values.items():
            if isinstance(value, dict):
                walk(value, (*path, key))
            else:
                per_trunk = (*path, key, trunk)
                found.append(per_trunk if ".".join(per_trunk) in protocol.sources else (*path, key))

    walk(dict(protocol.slice(slice_name)), start)
    return found


@pytest.mark.parametrize("name", list_protocols())
def test_value_at_finds_what_the_slices_hold(name: str) -> None:
    protocol = original(name)
    for path in protocol.sources:
        value: Any = value_at(protocol, path)
        for one in slices_of(name, path):
            held: Any = protocol.slice(one)
            parts = path.split(".")
            inner = (
                parts[1:] if parts[0] in ("data", "pretraining") else
                parts[2:3] if parts[0] in ("methods", "evaluations") else parts[2:]
            )  # fmt: skip
            for part in inner:
                held = held[part]
            assert held == (list(value) if isinstance(value, tuple) else value), path
