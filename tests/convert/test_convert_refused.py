"""Files and cells that `convert` refuses: nothing is written then, and nothing is ever left half."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import benchmark.convert as convert_module
from benchmark.classifier_file import read_weights
from benchmark.convert import convert
from leaderboard.record import read_record, write_record
from protocols.errors import HarnessError
from protocols.files import write_atomically
from tests.benchmark.conftest import Line
from tests.convert.made_weights import RELATIVE, golden, published, weights_of


@dataclass(frozen=True)
class Refused:
    """What is done to MaPeT's weights, the options, and what the error says."""

    make: Callable[[Path, dict[str, Tensor]], Any]
    said: str
    options: dict[str, Any]


def _saved(change: Callable[[dict[str, Tensor]], dict[str, Any]]) -> Callable[[Path, dict[str, Tensor]], Any]:
    return lambda path, weights: torch.save(change(weights), path)


class _Command:
    """Runs when it is unpickled by whoever trusts it."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch here",)


WHOLE = {"heads": 3}
REFUSED = {
    "heads that nothing tells": Refused(_saved(dict), "no shape tells it; say it with --heads N", {}),
    "heads that do not divide": Refused(_saved(dict), "heads 5 does not divide the width", {"heads": 5}),
    "relative positions": Refused(
        _saved(lambda _: weights_of(golden(RELATIVE[0]), RELATIVE[1])),
        r"relative position bias \(rel_pos_bias", WHOLE,
    ),
    "no ViT": Refused(_saved(lambda _: {"conv.weight": torch.ones(3)}), r"begin with conv\.weight", WHOLE),
    "a tensor is missing": Refused(
        _saved(lambda weights: {name: one for name, one in weights.items() if name != "norm.bias"}),
        r"missing: norm\.bias \(24,\)", WHOLE,
    ),
    "a tensor too many": Refused(
        _saved(lambda weights: weights | {"reg_token": torch.zeros(1, 4, 24)}), "unexpected: reg_token", WHOLE
    ),
    "no patches": Refused(
        _saved(lambda weights: weights | {"pos_embed": torch.zeros(1, 1, 24)}),
        r"pos_embed is \(1, 1, 24\)", WHOLE,
    ),
    "safetensors under another ending": Refused(
        lambda path, weights: save_file(weights, path), r"call it weights\.safetensors", WHOLE
    ),
    "no width": Refused(
        _saved(lambda weights: weights | {"patch_embed.proj.weight": torch.zeros(0, 3, 4, 4)}),
        r"patch_embed\.proj\.weight is \(0, 3, 4, 4\)", WHOLE,
    ),
    "another width in one block": Refused(
        _saved(lambda weights: weights | {"blocks.1.mlp.fc1.weight": torch.zeros(96, 32)}),
        r"another shape: blocks\.1\.mlp\.fc1\.weight \(96, 32\), not \(96, 24\)", WHOLE,
    ),
    "not finite": Refused(
        _saved(lambda weights: weights | {"norm.bias": torch.full((24,), torch.nan)}),
        "not finite floats", WHOLE,
    ),
    "more than a float32 holds": Refused(
        _saved(lambda weights: weights | {"norm.bias": torch.full((24,), 1e300, dtype=torch.float64)}),
        r"not finite floats: norm\.bias \(torch\.float64\)", WHOLE,
    ),
    "no square of patches": Refused(
        _saved(lambda weights: weights | {"pos_embed": torch.zeros(1, 64, 24)}),
        r"pos_embed is \(1, 64, 24\)", WHOLE,
    ),
    "q without kv": Refused(
        _saved(lambda weights: {name: one for name, one in weights.items() if ".0.attn.kv.w" not in name}),
        r"stands without blocks\.0\.attn\.kv\.weight", WHOLE,
    ),
    "several sets": Refused(
        _saved(lambda weights: {"model": weights, "model_ema": weights}), "choose it with --key", WHOLE
    ),
    "a damaged file": Refused(lambda path, _: path.write_bytes(b"PK\x03\x04 cut"), "or it is damaged", WHOLE),
    "a hostile pickle": Refused(
        _saved(lambda weights: {"model": weights, "by": _Command()}),
        r"names posix\.system, which is no part", WHOLE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_whole_vit_is_refused_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    case = REFUSED[name]
    source = tmp_path / "weights.pth"
    case.make(source, weights_of(golden("mapet_tiny"), "weight/"))
    with pytest.raises(HarnessError, match=case.said):
        convert(source, tmp_path / "out.safetensors", **case.options)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pth"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    source, out = published(tmp_path / "mapet.pth", "mapet"), tmp_path / "out.safetensors"
    with pytest.raises(HarnessError, match=r"give a name that ends in \.safetensors"):
        convert(source, tmp_path / "out.pth", heads=3)
    with pytest.raises(HarnessError, match="no folder"):
        convert(source, tmp_path / "not" / "there.safetensors", heads=3)
    out.with_suffix(".md").write_text("mine")
    with pytest.raises(HarnessError, match=r"out\.md exists already"):
        convert(source, out, heads=3)
    assert out.with_suffix(".md").read_text() == "mine"
    assert not out.exists()


def test_no_weights_stay_without_their_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends it; and a card that a kill left alone is no reason to refuse the same command."""
    source, out = published(tmp_path / "mapet.pth", "mapet"), tmp_path / "out.safetensors"

    def stopped_before_the_weights(path: Path, content: bytes | str) -> None:
        if path == out:
            raise KeyboardInterrupt
        write_atomically(path, content)

    monkeypatch.setattr(convert_module, "write_atomically", stopped_before_the_weights)
    with pytest.raises(KeyboardInterrupt):
        convert(source, out, heads=3)
    assert [path.name for path in tmp_path.iterdir()] == ["mapet.pth"]
    monkeypatch.undo()
    card = convert(source, out, heads=3).card
    text = card.read_text()
    out.unlink()
    assert convert(source, out, heads=3).card.read_text() == text
    out.unlink()
    out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(HarnessError, match=r"out\.safetensors exists already"):
        convert(source, out, heads=3)


def test_a_file_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or its digest would stand for weights that were never measured."""
    source = published(tmp_path / "mapet.pth", "mapet")

    def read_and_replaced(path: Path, **options: Any) -> Any:
        found = read_weights(path, **options)
        path.write_bytes(b"another")
        return found

    monkeypatch.setattr(convert_module, "read_weights", read_and_replaced)
    with pytest.raises(HarnessError, match="was changed while it was read"):
        convert(source, tmp_path / "out.safetensors", heads=3)


def test_cells_without_weights_of_a_vit(row: Line, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    probe, pretraining = row.context("linear-probe").folder, row.context("pretrain").folder
    with pytest.raises(HarnessError, match=f"such as its parent {pretraining.name}"):
        convert(probe, out)
    with pytest.raises(
        HarnessError, match=r"folder without a record\.json; give the folder of a finished cell"
    ):
        convert(row.work_dir, out)
    with pytest.raises(HarnessError, match="no such file or folder"):
        convert(tmp_path / "absent", out)
    state = pretraining / "checkpoints" / "step-000000001.pt"
    state.write_bytes(b"")
    with pytest.raises(HarnessError, match="finish the cell, and give its folder"):
        convert(state, out)
    state.unlink()
    with pytest.raises(HarnessError, match=r"has 2 attention heads \(as its record says\), not 4"):
        convert(pretraining, out, heads=4)
    with pytest.raises(HarnessError, match="leave --key model away"):
        convert(pretraining, out, key="model")


def test_weights_that_are_not_those_of_the_record(row: Line, tmp_path: Path) -> None:
    path = row.context("pretrain").folder / "checkpoints" / "backbone.safetensors"
    before = path.read_bytes()
    save_file({name: one + 1 for name, one in load_file(path).items()}, path)
    try:
        with pytest.raises(HarnessError, match=r"SHA-256 is .*, the record says"):
            convert(path.parent.parent, tmp_path / "out.safetensors")
    finally:
        path.write_bytes(before)


def test_a_finetuning_of_before_there_were_classifiers(row: Line, tmp_path: Path) -> None:
    folder = row.context("finetune").folder
    record = read_record(folder)
    assert record is not None
    older = {name: one for name, one in record.artefacts.items() if "classifier" not in name}
    write_record(folder, record.model_copy(update={"artefacts": older}))
    try:
        with pytest.raises(HarnessError, match="earlier versions did not keep"):
            convert(folder, tmp_path / "out.safetensors")
    finally:
        write_record(folder, record)
