"""`gallery` on a small run: sheets from the store that the record names, the same again, and its errors."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmark import tokenise
from benchmark.cli import main
from benchmark.code_patches import Patch, code_counts, draw_codes, draw_patches
from benchmark.gallery import Request, Source, make_sheet
from benchmark.patch_tiles import patch_tile
from benchmark.plan import Cell, make_plan, select
from benchmark.record_cell import write_cell_record
from benchmark.runtime import Runtime
from benchmark.stage import CellContext
from benchmark.stored_tokens import store_of
from protocols import load_protocol
from protocols.errors import HarnessError
from protocols.files import sha256_of_file

TINY = str(Path(__file__).parent.parent / "tiny.yaml")


def tokenising_cell() -> Cell:
    protocol = load_protocol(TINY)
    return next(cell for cell in make_plan(protocol, select(protocol)) if cell.stage == "tokenise")


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work dir in which k-pixel's tokens are done: 256 images of 16 patches, 16 codes."""
    folder = tmp_path_factory.mktemp("gallery")
    context = context_in(folder)
    result = tokenise.run(context)
    write_cell_record(context.cell, context.protocol, context.runtime, folder, status="done", result=result)
    return folder


def context_in(folder: Path) -> CellContext:
    return CellContext(
        cell=tokenising_cell(),
        protocol=load_protocol(TINY),
        runtime=Runtime(device="cpu", jobs=1, threads=1),
        work_dir=folder,
    )


@pytest.fixture
def source(work_dir: Path) -> Source:
    context = context_in(work_dir)
    record = context.done(context.cell.id)
    images = context.images("pretraining")
    return Source(context=context, record=record, store=store_of(context, record), images=images)


def asked(rule: str, **more: Any) -> Request:
    return Request(**({"rule": rule, "codes": None, "count": 4, "patches": 3, "seed": 5} | more))


def shown_patches(source: Source, codes: tuple[int, ...], *, seed: int = 5) -> dict[int, tuple[Patch, ...]]:
    return draw_patches(source.store, code_counts(source.store), codes, most=3, seed=seed)


def tile_of(source: Source, patch: Patch) -> np.ndarray:
    """The tile of a patch, its image found by id in the part itself."""
    position = source.images.image_ids.index(source.store.image_ids[patch.row])
    return patch_tile(source.images.image(position), grid=4, position=patch.position)


class TestSheet:
    def test_random_shows_the_drawn_patches_of_the_drawn_codes(self, source: Source) -> None:
        sheet = make_sheet(source, asked("random"))
        counts = code_counts(source.store)
        codes = draw_codes(counts, count=4, seed=5)
        assert sheet.codes == codes
        for row, (code, patches) in zip(sheet.rows, shown_patches(source, codes).items(), strict=True):
            (strip,) = row.strips
            assert (strip.code, strip.carriers) == (code, counts[code])
            assert len(strip.tiles) == len(patches)
            for tile, patch in zip(strip.tiles, patches, strict=True):
                assert np.array_equal(tile.pixels, tile_of(source, patch))
                token = source.store.tokens([patch.row])[0, patch.position]
                assert token == code
        assert (sheet.images, sheet.store_digest, sheet.seed) == (256, source.store.digest, 5)

    def test_another_seed_shows_others(self, source: Source) -> None:
        first, other = (make_sheet(source, asked("random", seed=seed)) for seed in (5, 6))
        assert first.codes != other.codes

    def test_nearest_shows_pairs_side_by_side(self, source: Source) -> None:
        sheet = make_sheet(source, asked("nearest"))
        rows_KC = source.tokenizer().codebook_rows().double()
        used = np.flatnonzero(code_counts(source.store))
        distances = sorted(
            (float((rows_KC[a] - rows_KC[b]).norm()), int(a), int(b)) for a in used for b in used if a < b
        )
        assert [(one.strips[0].code, one.strips[1].code) for one in sheet.rows] == [
            (a, b) for _, a, b in distances[:4]
        ]
        assert [one.distance for one in sheet.rows] == pytest.approx([one[0] for one in distances[:4]])

    def test_chosen_codes_are_paired_with_their_nearest(self, source: Source) -> None:
        code = int(np.flatnonzero(code_counts(source.store))[3])
        sheet = make_sheet(source, asked("nearest", codes=(code,)))
        rows_KC = source.tokenizer().codebook_rows().double()
        used = [int(one) for one in np.flatnonzero(code_counts(source.store)) if one != code]
        nearest = min(used, key=lambda one: float((rows_KC[one] - rows_KC[code]).norm()))
        assert sheet.codes == (code, nearest)
        assert "chosen by hand" in sheet.rule_in_words

    def test_farthest_shows_those_of_the_largest_distance_first(
        self, source: Source, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("benchmark.gallery.MOST_SAMPLED", 10_000)  # every patch that carries the code
        monkeypatch.setattr("benchmark.gallery.BATCH", 7)
        sheet = make_sheet(source, asked("farthest", count=2))
        tokenizer = source.tokenizer()
        images = torch.stack([tokenizer.transform(image) for image in source.images.images()])
        distances_nN, tokens_nN = tokenizer.distances(images), tokenizer.encode(images)
        for row in sheet.rows:
            (strip,) = row.strips
            of_code = distances_nN[tokens_nN == strip.code].sort(descending=True).values[:3]
            assert [tile.distance for tile in strip.tiles] == pytest.approx(of_code.tolist())
            row_number, position = divmod(
                int(torch.where(tokens_nN == strip.code, distances_nN, -1.0).argmax()), 16
            )
            first = Patch(row=row_number, position=position)
            assert np.array_equal(strip.tiles[0].pixels, tile_of(source, first))

    def test_farthest_looks_at_a_sample_of_the_stated_size(
        self, source: Source, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("benchmark.gallery.MOST_SAMPLED", 3)
        sheet = make_sheet(source, asked("farthest", count=2))
        assert "among at most 3 drawn at random" in sheet.rule_in_words
        drawn = shown_patches(source, sheet.codes)
        for row in sheet.rows:
            (strip,) = row.strips
            expected = {tile_of(source, patch).tobytes() for patch in drawn[strip.code]}
            assert {tile.pixels.tobytes() for tile in strip.tiles} == expected

    def test_only_images_that_are_shown_are_read(
        self, source: Source, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read: list[int] = []
        kind, plain = type(source.images), type(source.images).image
        monkeypatch.setattr(kind, "image", lambda part, at: read.append(at) or plain(part, at))
        make_sheet(source, asked("random"))
        assert 0 < len(read) <= 4 * 3

    def test_images_that_are_others_now_are_an_error(
        self, source: Source, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kind = type(source.images)
        monkeypatch.setattr(kind, "image", lambda part, at: Image.new("L", (28, 28), 255 * (at % 2)))
        with pytest.raises(HarnessError, match="get another token now: its images have changed"):
            make_sheet(source, asked("farthest"))


def gallery(work_dir: Path, *more: str) -> int:
    return main(["gallery", "--protocol", TINY, "--work-dir", str(work_dir), *more])


class TestCommand:
    def test_it_writes_a_sheet_that_the_page_shows(
        self, work_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        given = ("--count", "3", "--patches", "2", "--seed", "1")
        for rule in ("random", "nearest", "farthest"):
            assert gallery(work_dir, "--rule", rule, *given) == 0
        assert f"report --protocol {TINY} --work-dir {work_dir} puts them" in capsys.readouterr().out
        folder = work_dir / "tiny" / "leaderboard" / "gallery"
        names = [f"k-pixel-{rule}" for rule in ("farthest", "nearest", "random")]
        assert sorted(path.name for path in folder.iterdir()) == sorted(
            f"{name}.{ending}" for name in names for ending in ("png", "json")
        )
        for name in names:
            content = json.loads((folder / f"{name}.json").read_text())
            with Image.open(io.BytesIO((folder / f"{name}.png").read_bytes())) as image:
                assert image.width >= 560
            manifests = list((work_dir / "tokens").rglob("manifest.json"))
            assert content["manifest_sha256"] == sha256_of_file(manifests[0])
            assert content["images"] == 256
        assert main(["report", "--protocol", TINY, "--work-dir", str(work_dir)]) == 0
        page = (work_dir / "tiny" / "leaderboard" / "index.html").read_text(encoding="utf-8")
        assert page.count("data:image/png;base64,") == 3
        assert gallery(work_dir, "--rule", "random", *given, "--out", str(tmp_path / "again")) == 0
        for ending in ("png", "json"):
            again = tmp_path / "again" / f"k-pixel-random.{ending}"
            assert again.read_bytes() == (folder / again.name).read_bytes()

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            (["--codes", "16"], "--codes 16: tokenizer k-pixel has codes 0 to 15"),
            (["--codes", "-1"], "argument --codes"),
            (["--codes", "1", "--count", "2"], "--count and --codes"),
            (["--count", "0"], "'0' is not a whole number from 1 to 100"),
            (["--patches", "17"], "'17' is not a whole number from 1 to 16"),
            (["--rule", "best"], "invalid choice: 'best'"),
            (["--tokenizers", "k-pixle"], "k-pixle"),
            (["--tokenizers", ","], "--tokenizers names nothing"),
        ],
        ids=" ".join,
    )
    def test_mistakes_are_explained(
        self, work_dir: Path, given: list[str], said: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert gallery(work_dir, *given) == 2
        shown = capsys.readouterr()
        assert said in shown.err
        assert not shown.out

    def test_tokens_that_are_not_there_are_named(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert gallery(tmp_path / "none") == 2
        said = capsys.readouterr().err
        assert "the tokens of k-pixel under" in said
        assert f"run_benchmark.py tokenize --protocol {TINY} --tokenizers k-pixel --work-dir " in said

    def test_a_store_that_was_altered_is_refused(
        self, work_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        copied = tmp_path / "copied"
        shutil.copytree(work_dir, copied)
        (tokens,) = (copied / "tokens").rglob("tokens.npy")
        content = bytearray(tokens.read_bytes())
        content[-1] ^= 1
        tokens.write_bytes(content)
        assert gallery(copied) == 2
        assert "tokens.npy" in capsys.readouterr().err
