"""Tokenizers and data sets of plug-ins: planned, built, read, and refused where they are not as they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmark.data import open_images, open_part, open_split
from benchmark.inputs import external_set, missing_inputs
from benchmark.plan import Cell, make_plan
from benchmark.record_cell import resolved_values
from benchmark.selection import select
from protocols import load_protocol
from protocols.errors import HarnessError
from protocols.frozen import digest_of
from protocols.load import FOLDER
from protocols.schema import Part, Protocol
from tests.plugins.conftest import Load
from tests.plugins.plugin_texts import DATA_SET, METHOD, TOKENIZER, changed
from tokenizers import build_tokenizer, tokenizer_spec

LISTED = "\ntokenizers:\n"


def mini_with(tmp_path: Path, *changes: tuple[str, str]) -> Protocol:
    text = changed((FOLDER / "mini.yaml").read_text(), ("name: mini\n", "name: mine\n"), *changes)
    (tmp_path / "mine.yaml").write_text(text)
    return load_protocol(str(tmp_path / "mine.yaml"))


def rows(cells: list[Cell]) -> set[tuple[str | None, str | None]]:
    return {(cell.method, cell.tokenizer) for cell in cells if cell.stage == "pretrain"}


def test_a_tokenizer_that_the_protocol_does_not_list_joins_its_further_view(load: Load) -> None:
    load(TOKENIZER)
    load(METHOD, "ring.py")
    protocol = load_protocol("mini")
    plan = make_plan(protocol, select(protocol, methods=["mim", "ring-mim"], tokenizers=["Brightness"]))
    assert rows(plan) == {("mim", "brightness"), ("ring-mim", "brightness")}
    assert {view for cell in plan for view in cell.views} == {"further"}
    (tokenise,) = [cell for cell in plan if cell.stage == "tokenise"]
    # Its own defaults, and what follows from the trunk: 7 x 7 patches of 28 x 28 pixels.
    assert dict(tokenise.hyperparameters) == {"codebook_size": 8, "grid": 7, "image_size": 28}
    assert resolved_values(tokenise, protocol)["tokenizer:brightness"] == dict(tokenise.hyperparameters)
    slices = dict(tokenise.slices)
    assert slices == {
        "data": protocol.slices["data"],
        "tokenizer:brightness": digest_of(dict(tokenise.hyperparameters)),
    }
    assert all(cell.train_flops > 0 for cell in plan if cell.stage == "pretrain")
    beside = make_plan(
        protocol, select(protocol, methods=["mim", "ring-mim"], tokenizers=["k-pixel", "brightness"])
    )
    assert rows(beside) == {(one, two) for one in ("mim", "ring-mim") for two in ("k-pixel", "brightness")}
    assert {cell.id for cell in plan} < {cell.id for cell in beside}


def test_a_plug_in_changes_no_cell_of_a_run_that_does_not_ask_for_it(load: Load) -> None:
    protocol = load_protocol("mini")
    before = {words: [cell.id for cell in make_plan(protocol, select(protocol, methods=[words]))]
              for words in ("all", "all-known")}  # fmt: skip
    load(TOKENIZER)
    load(METHOD, "ring.py")
    assert [cell.id for cell in make_plan(protocol, select(protocol))] == before["all"]
    known = [cell.id for cell in make_plan(protocol, select(protocol, methods=["all-known"]))]
    assert set(before["all-known"]) < set(known)
    assert {name.split("-")[1] for name in set(known) - set(before["all-known"])} == {"ring", "probe"}


def test_a_protocol_that_lists_it_gives_every_value_that_else_follows(load: Load, tmp_path: Path) -> None:
    load(TOKENIZER)
    short = f"{LISTED}  brightness:\n    codebook_size: {{value: 16, source: a try}}\n"
    protocol = mini_with(tmp_path, (LISTED, short))
    asked = {"methods": ["mim"], "tokenizers": ["brightness"], "views": ["none"]}
    with pytest.raises(HarnessError, match=r"tokenizers\.brightness: image_size, grid must be set"):
        make_plan(protocol, select(protocol, **asked))
    sizes = "    image_size: {value: 28, source: data}\n    grid: {value: 7, source: a try}\n"
    protocol = mini_with(tmp_path, (LISTED, short + sizes))
    (tokenise,) = [
        cell for cell in make_plan(protocol, select(protocol, **asked)) if cell.stage == "tokenise"
    ]
    assert dict(tokenise.slices)["tokenizer:brightness"] == protocol.slices["tokenizer:brightness"]
    assert dict(tokenise.hyperparameters)["codebook_size"] == 16


def test_its_class_is_built_and_its_code_has_a_digest(load: Load) -> None:
    path = load(TOKENIZER)
    spec = tokenizer_spec("brightness")
    tokenizer = build_tokenizer("brightness", image_size=8, grid=2, codebook_size=4)
    assert tokenizer.name == "brightness"
    assert torch.equal(tokenizer.encode(torch.full((1, 3, 8, 8), 0.6)), torch.tensor([[2, 2, 2, 2]]))
    assert str(path) in spec.sources
    before = spec.source_digest()
    path.write_text(TOKENIZER + "\n# edited\n")
    assert spec.source_digest() != before


@pytest.fixture
def stripes(load: Load, tmp_path: Path) -> Path:
    """The plug-in is loaded; a data root with its files."""
    load(DATA_SET)
    return data_root(tmp_path)


def data_root(tmp_path: Path, *, label: int = 1, dtype: type = np.uint8) -> Path:
    folder = tmp_path / "data" / "stripes"
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 6), ("test", 4)):
        images = np.arange(count * 64, dtype=np.int64).reshape(count, 8, 8).astype(dtype)
        labels = np.arange(count) % 2 * label
        np.savez(folder / f"{split}.npz", images=images, labels=labels)
    return tmp_path / "data"


def test_a_data_set_is_read_by_its_own_reader_and_digested_as_any_other(stripes: Path) -> None:
    part = open_part("stripes", "training", Part(split="train", start=2, count=3), data_root=stripes)
    assert (len(part), part.classes, part.labels.tolist()) == (3, ("lying", "standing"), [0, 1, 0])
    assert part.sample_ids.tolist() == [2, 3, 4]
    assert part.pixels(8).shape == (3, 3, 8, 8)
    whole = open_split("stripes", "test", data_root=stripes)
    found = open_images("stripes", [whole.image_ids[2]], data_root=stripes)
    assert np.array_equal(np.asarray(found.image(0)), np.asarray(whole.image(2)))
    with pytest.raises(HarnessError, match="training wants images 4 to 8 of train, which has 6"):
        open_part("stripes", "training", Part(split="train", start=4, count=4), data_root=stripes)
    with pytest.raises(HarnessError, match="has no image 'train/99'"):
        open_images("stripes", ["train/99"], data_root=stripes)


def test_what_it_lacks_is_said_before_anything_runs(load: Load, tmp_path: Path) -> None:
    load(DATA_SET)
    protocol = mini_with(tmp_path, ("name: {value: fashion-mnist-12k,", "name: {value: stripes,"))
    cell = next(one for one in make_plan(protocol, select(protocol)) if one.stage == "finetune")
    (lacking,) = missing_inputs(cell, protocol, data_root=tmp_path)
    assert lacking.what == f"data set stripes: no folder {tmp_path}/stripes"
    assert lacking.remedy == f"run make_stripes.py {tmp_path}/stripes"
    root = data_root(tmp_path)
    assert missing_inputs(cell, protocol, data_root=root) == []
    (root / "stripes" / "test.npz").unlink()
    external = external_set("stripes")
    assert external is not None
    assert "has no train.npz and test.npz" in str(external.lacking(root, "test"))


def test_image_files_are_listed_and_not_read(load: Load, tmp_path: Path) -> None:
    from PIL import Image

    listing = changed(
        DATA_SET,
        ("    with np.load(", "    found = sorted(folder.glob('*.png'))\n"
                             "    return [(one.name, int(one.stem)) for one in found]\n    with np.load("),
        ('needs=("train.npz", "test.npz")', 'needs=("0.png", "1.png")'),
    )  # fmt: skip
    load(listing)
    (tmp_path / "stripes").mkdir()
    for name in ("0.png", "1.png"):
        Image.new("L", (8, 6), 9).save(tmp_path / "stripes" / name)
    part = open_split("stripes", "train", data_root=tmp_path)
    assert part.image_ids == ("0.png", "1.png")
    assert part.labels.tolist() == [0, 1]
    assert part.image(0).size == (8, 6)
    assert open_images("stripes", ["1.png"], data_root=tmp_path).image(0).size == (8, 6)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            'return archive["images"]',
            r"must return \(images, labels\), or a list of \(path, label\); got a ndarray",
        ),
        (
            'return archive["images"] / 255, archive["labels"]',
            r"uint8 \(n, H, W\) or .*, got float64 \(6, 8, 8\)",
        ),
        ('return archive["images"], archive["labels"][:2]', r"a whole number for each of 6 images .*\(2,\)"),
        ('return archive["images"], archive["labels"] + 1', "gives labels from 1 to 2; it has 2 classes"),
        ('return archive["pixels"], 1', r"mine\.py:10: its reader failed on .*KeyError.*make_stripes\.py"),
        ("raise SystemExit(0)", r"mine\.py:10: its reader failed on .*SystemExit: 0"),
        ('return ["a.png"]', r"must list \(path, label\), got 'a\.png'"),
        ('return [("../a.png", 0)]', r"its lists name '\.\./a\.png', which is no file of"),
        ("return []", "its reader .* lists no image"),
    ],
)
def test_a_reader_that_gives_something_else_is_told_so(
    load: Load, tmp_path: Path, text: str, said: str
) -> None:
    load(changed(DATA_SET, ('return archive["images"], archive["labels"]', text)))
    with pytest.raises(HarnessError, match=said):
        open_split("stripes", "train", data_root=data_root(tmp_path))
