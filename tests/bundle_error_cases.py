"""Errors about bundles, as tests/error_cases.py builds them into cases."""

from __future__ import annotations

import contextlib
import gzip
import io
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from benchmark.cli import main
from tests.benchmark.made_records import Lab, changed_record, contents_of, forge
from tests.error_settings import TINY, Setting, file_of

BUNDLE = "bundle here.tar --protocol tiny.yaml"
MERGE = "merge there.tar --protocol tiny.yaml"
NEEDED = "--protocol tiny.yaml --methods mim --evaluations finetune --seeds 1 --device cpu --jobs 1"


def bundle_of(harm: Callable[[Lab, Path], None]) -> Setting:
    """`tiny.yaml`, and `there.tar`, another lab's bundle, to which `harm` is then done."""

    @contextmanager
    def setting(folder: Path) -> Iterator[None]:
        shutil.copy(TINY, folder)
        lab, bundle = _there()
        (folder / "there.tar").write_bytes(bundle)
        harm(lab, folder / "there.tar")
        yield

    return setting


@cache
def _there() -> tuple[Lab, bytes]:
    """The other lab, whose work dir is gone, and its bundle."""
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder) / "there")
        lab.bundle(Path(folder) / "there.tar")
        return lab, (Path(folder) / "there.tar").read_bytes()


def _nothing(lab: Lab, bundle: Path) -> None:
    return None


def _compress(lab: Lab, bundle: Path) -> None:
    bundle.write_bytes(gzip.compress(bundle.read_bytes(), mtime=0))


def _change_manifest(lab: Lab, bundle: Path) -> None:
    bundle.write_bytes(bundle.read_bytes().replace(b'"done"', b'"DONE"', 1))


def _raise_accuracy(lab: Lab, bundle: Path) -> None:
    manifest, files = contents_of(bundle)
    path = f"cells/{lab.id('linear-probe', 'scratch')}/record.json"
    better = {"top1_percent": {"value": 90.0, "n": 40, "unit": "%"}}
    forge(bundle, manifest, {**files, path: changed_record(files[path], metrics=better)})


def _drop_tokens(lab: Lab, bundle: Path) -> None:
    manifest, files = contents_of(bundle)
    tokens = lab.id("tokenise")
    kept = {path: content for path, content in files.items() if tokens not in path}
    cells = tuple(one for one in manifest.cells if one.cell_id != tokens)
    forge(bundle, manifest, kept, cells=cells)


def _other_results_here(lab: Lab, bundle: Path) -> None:
    Lab(bundle.parent / "runs", methods=["scratch"], correct=11)


def _finish_here(lab: Lab, bundle: Path) -> None:
    Lab(bundle.parent / "runs", methods=["scratch"])


def _fail_with_a_path(lab: Lab, bundle: Path) -> None:
    here = Lab(bundle.parent / "runs", methods=["scratch"])
    failed = here.cell("finetune", "scratch")
    (here.folder("finetune", "scratch") / "predictions.npz").unlink()
    here.finish(failed, status="failed", error="no room in /home/alice/runs", artefacts={}, metrics={})
    (here.folder("finetune", "scratch") / "predictions.npz").unlink()


def _merge(lab: Lab, bundle: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["merge", str(bundle), "--work-dir", str(bundle.parent / "runs")]) == 0


BUNDLE_CASES: tuple[dict[str, Any], ...] = (
    {"title": "a bundle of nothing", "command": BUNDLE, "setting": bundle_of(_nothing),
     "given": "no records of protocol tiny", "where": "under runs", "remedy": "with --work-dir"},
    {"title": "a bundle of another kind", "command": BUNDLE.replace(".tar", ".zip"),
     "setting": bundle_of(_finish_here), "given": "here.zip", "where": "plain tar file",
     "remedy": "ends in .tar"},
    {"title": "a bundle onto a file that exists", "command": BUNDLE.replace("here", "there"),
     "setting": bundle_of(_finish_here), "given": "there.tar", "where": "exists already",
     "remedy": "give another name"},
    {"title": "a cell to bundle that is not there", "command": f"{BUNDLE} --cells finetune-mim-1",
     "setting": bundle_of(_finish_here), "given": "'finetune-mim-1'", "where": "--cells",
     "remedy": "finetune-scratch-vit-tiny-test-s0"},
    {"title": "a failed cell that names a folder", "command": f"{BUNDLE} --work-dir runs --failed",
     "exit_code": 1, "setting": bundle_of(_fail_with_a_path), "given": "/home/alice/runs",
     "where": "left out finetune-scratch", "remedy": "a bundle names no machine's folders"},
    {"title": "a file that is no bundle", "command": "merge notes.tar --work-dir runs",
     "setting": file_of("notes.tar", "dear diary"), "given": "notes.tar", "where": "is no bundle",
     "remedy": "get it again"},
    {"title": "a bundle that is compressed", "command": MERGE, "setting": bundle_of(_compress),
     "given": "there.tar", "where": "is compressed", "remedy": "unpack it first"},
    {"title": "a bundle whose manifest was changed", "command": MERGE,
     "setting": bundle_of(_change_manifest), "given": "there.tar", "where": "its manifest is damaged",
     "remedy": "compare SHA-256"},
    {"title": "a bundle of another protocol", "command": "merge there.tar --protocol mini",
     "setting": bundle_of(_nothing), "given": "there.tar", "where": "is of protocol tiny, not mini",
     "remedy": "leave out --protocol"},
    {"title": "an accuracy that its predictions do not bear", "command": MERGE, "exit_code": 1,
     "setting": bundle_of(_raise_accuracy), "given": "25.0000 % top-1", "where": "predictions.npz",
     "remedy": "it cannot be used"},
    {"title": "a bundle without the cells that others were made from", "command": MERGE, "exit_code": 1,
     "setting": bundle_of(_drop_tokens), "given": "its parent tokenise-k-pixel", "where": "refused pretrain",
     "remedy": "is not there"},
    {"title": "a bundle's result beside another of the same cell", "command": f"{MERGE} --work-dir runs",
     "exit_code": 1, "setting": bundle_of(_other_results_here), "given": "another record of it is here",
     "where": "refused finetune-scratch", "remedy": "another --work-dir"},
    {"title": "a run that needs a merged cell's weights", "command": f"{NEEDED} --work-dir runs",
     "setting": bundle_of(_merge), "given": "that came without tokens/", "where": "tokenise-k-pixel",
     "remedy": "put the files there"},
)  # fmt: skip
