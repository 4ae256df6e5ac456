"""`tokenize` and `verify` as a user calls them, alone and under a launcher."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmark.cli import main
from tests.benchmark.forked_ranks import in_processes, run_command
from tests.benchmark.imagenet_folder import COUNT, imagenet_protocol, make_imagenet
from tests.benchmark.test_tokenise_shards import K_PIXEL, damage_keeping_sizes, stored
from tokenizers.store import open_store


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenize")
    make_imagenet(folder / "data")
    imagenet_protocol(folder, tokenizers=K_PIXEL)
    return folder


def tokenize(root: Path, work_dir: str, *more: str) -> list[str]:
    paths = ["--protocol", str(root / "mine.yaml"), "--work-dir", str(root / work_dir)]
    return ["tokenize", *paths, "--data-root", str(root / "data"), *more]


@pytest.fixture(scope="module")
def store(root: Path) -> Path:
    """The store that the command made."""
    assert main(tokenize(root, "runs", "--quiet")) == 0
    (manifest,) = (root / "runs" / "tokens").rglob("manifest.json")
    return manifest.parent


def test_it_prints_a_card_and_again_changes_nothing(
    root: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stored(root)
    assert main(tokenize(root, "runs")) == 0
    printed = capsys.readouterr().out
    assert "k-pixel" in printed
    assert f"images           {COUNT}" in printed
    for figure in ("perplexity", "images/s", "100.00 %"):
        assert figure in printed
    assert max(map(len, printed.splitlines())) <= 80
    assert stored(root) == before


def test_fit_alone_shows_every_iteration_and_encoding_goes_on_from_it(
    root: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tokenize(root, "fitted", "--fit")) == 0
    shown = capsys.readouterr()
    lines = [line for line in shown.err.splitlines() if "objective" in line]
    assert [line.partition(", ")[2].partition(":")[0] for line in lines] == [
        f"iteration {number} of 3" for number in (1, 2, 3)
    ]
    objectives = [float(line.rpartition(" ")[2]) for line in lines]
    assert objectives == sorted(objectives, reverse=True)
    assert objectives[0] > objectives[-1] > 0
    codebook = Path(shown.out.partition("codebook in ")[2].partition(";")[0])
    assert codebook.is_file()
    assert not (root / "fitted" / "tokens").exists()
    assert main(tokenize(root, "fitted", "--quiet")) == 0
    assert stored(root, "fitted") == stored(root)


def test_damaged_images_end_it_with_code_1_and_their_names(
    root: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ((path, content),) = damage_keeping_sizes(root, 30).items()
    try:
        assert main(tokenize(root, "damaged")) == 1
        shown = " ".join(capsys.readouterr().err.split())
        assert (
            f"1 of {COUNT} images cannot be read: {path.relative_to(root / 'data' / 'imagenet-1k')}" in shown
        )
        assert "--redo-failed" in shown
        assert main(tokenize(root, "damaged", "--quiet")) == 1
    finally:
        path.write_bytes(content)
    assert main(tokenize(root, "damaged", "--quiet", "--redo-failed")) == 0
    assert stored(root, "damaged") == stored(root)


def tokenize_as_one_of_two(rank: int, port: int, root: Path) -> None:
    """What a launcher starts; standard output goes to a file."""
    with (root / f"{rank}.out").open("w") as out, contextlib.redirect_stdout(out):
        run_command(rank, port, 2, tokenize(root, "two", "--device", "cpu"))


def test_two_processes_under_a_launcher_make_the_same_bytes(root: Path, store: Path) -> None:
    in_processes(tokenize_as_one_of_two, root, processes=2)
    assert "perplexity" in (root / "0.out").read_text()
    assert (root / "1.out").read_text() == ""
    assert stored(root, "two") == stored(root)
    (record,) = (root / "two" / "mine" / "cells").glob("*/record.json")
    assert json.loads(record.read_text())["runtime"]["processes"] == 2


def test_verify_agrees_with_a_store_as_it_was_made(
    root: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["verify", str(store), "--data-root", str(root / "data"), "--sample"]
    assert main([*arguments, "20", "--seed", "3"]) == 0
    printed = capsys.readouterr().out
    assert "all digests agree" in printed
    assert "encoded again: 20 images (seed 3); no token differs" in printed
    assert main([*arguments, "1000"]) == 0
    assert f"encoded again: {COUNT} images" in capsys.readouterr().out
    assert main([*arguments, "0"]) == 0
    assert "encoded again" not in capsys.readouterr().out
    assert main([*arguments, "-1"]) == 2


def test_verify_names_the_images_whose_tokens_differ(
    root: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = sorted((root / "data" / "imagenet-1k").rglob("*.JPEG"))
    first, second = images[5], images[33]
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(b"no image")
    try:
        code = main(["verify", str(store), "--data-root", str(root / "data"), "--sample", str(COUNT)])
    finally:
        first.write_bytes(contents[0])
        second.write_bytes(contents[1])
    assert code == 1
    printed = capsys.readouterr().out
    names = [str(path.relative_to(root / "data" / "imagenet-1k")) for path in (first, second)]
    assert f"{names[0]}: " in printed
    assert f"  {names[1]} cannot be read as an image" in printed
    assert f"encoded again: {COUNT - 1} images (seed 0); 1 image differ, in " in printed
    assert "; 1 image could not be read" in printed


def test_verify_ends_with_code_2_where_bytes_or_the_tokenizer_were_altered(
    root: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["verify", str(store), "--data-root", str(root / "data")]
    tokens = store / "tokens.npy"
    whole = tokens.read_bytes()
    tokens.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        assert main(arguments) == 2
        assert hashlib.sha256(whole).hexdigest() in capsys.readouterr().err
    finally:
        tokens.write_bytes(whole)
    weights = store.parent / "tokenizer.safetensors"
    kept = weights.read_bytes()
    weights.unlink()
    try:
        assert main(arguments) == 2
        assert "tokenizer.safetensors: no such file" in capsys.readouterr().err
    finally:
        weights.write_bytes(kept)
    assert main(["verify", str(store / "nothing")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main(["verify", str(store.parent)]) == 2
    assert "is not a finished token store" in capsys.readouterr().err
    assert np.all(open_store(store).tokens([0]) < 16)


@pytest.mark.parametrize(
    ("launched", "said"),
    [
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK 2 is not below its WORLD_SIZE 2"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, "WORLD_SIZE is set without MASTER_ADDR"),
        ({"WORLD_SIZE": "2"}, "or unset WORLD_SIZE"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
    ],
)
def test_a_senseless_launch_is_an_error(
    root: Path,
    launched: dict[str, str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    assert main(tokenize(root, "none")) == 2
    assert said in capsys.readouterr().err


def test_reading_processes_of_a_cell_change_nothing(root: Path, store: Path) -> None:
    assert main(tokenize(root, "workers", "--workers", "2", "--quiet")) == 0
    assert stored(root, "workers") == stored(root)


def test_every_store_is_looked_at_and_the_worst_code_counts(
    root: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["verify", str(root / "data"), str(store), "--data-root", str(root / "data"), "--sample", "4"]
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert "is not a finished token store" in shown.err
    assert "no token differs" in shown.out


@pytest.mark.parametrize("harm", ["deleted", "altered"])
def test_a_store_that_is_gone_or_altered_is_made_again(
    root: Path, store: Path, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stored(root)
    tokens = store / "tokens.npy"
    if harm == "deleted":
        shutil.rmtree(store)
    else:
        content = tokens.read_bytes()
        tokens.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert main(tokenize(root, "runs", "--quiet")) == 0
    assert "made again: " in capsys.readouterr().err
    assert stored(root) == before
