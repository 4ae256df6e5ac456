"""Errors about metric back-ends and about what bundles hold beside records, for tests/error_cases.py."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from leaderboard.bundle import WEIGHTS_NAME
from tests.benchmark.made_records import Lab, contents_of, forge
from tests.bundle_error_cases import MERGE, bundle_of
from tests.error_settings import file_of

TRACK = "track --protocol mini --work-dir runs"


@contextmanager
def no_wandb(folder: Path) -> Iterator[None]:
    """A machine on which wandb is not installed, whatever this one has."""
    find = importlib.util.find_spec

    def found(name: str, package: str | None = None) -> Any:
        return None if name == "wandb" else find(name, package)

    with mock.patch("importlib.util.find_spec", found):
        yield


def _finish_here(lab: Lab, bundle: Path) -> None:
    Lab(bundle.parent / "runs", methods=["scratch"])


def _replace_weights(lab: Lab, bundle: Path) -> None:
    manifest, files = contents_of(bundle)
    path = f"cells/{lab.id('pretrain')}/{WEIGHTS_NAME}"
    forge(bundle, manifest, {**files, path: b"weights of another training"})


def _damage_plugin(lab: Lab, bundle: Path) -> None:
    manifest, files = contents_of(bundle)
    forge(bundle, manifest, {**files, "plugins/ring.py.txt": b"\xff\xfe"})


SHARING_CASES: tuple[dict[str, Any], ...] = (
    {"title": "a metric back-end that is not known", "command": "--protocol mini --track tensorbord",
     "given": "'tensorbord'", "where": "metric back-end", "remedy": "did you mean 'tensorboard'"},
    {"title": "a metric back-end whose package is missing", "command": "--protocol mini --track wandb",
     "setting": no_wandb, "given": "wandb", "where": "not installed", "remedy": "pip install wandb"},
    {"title": "a metric back-end beside a cluster's jobs",
     "command": "--protocol mini --track tensorboard --cluster cluster.yaml", "given": "--track",
     "where": "--cluster leaves this process", "remedy": "`track --follow`"},
    {"title": "curves of cells that are not there", "command": f"{TRACK} --to tensorboard",
     "given": "no cells of protocol mini", "where": "under runs", "remedy": "with --work-dir"},
    {"title": "what was handed over cannot be read", "command": f"{TRACK} --to tensorboard --follow",
     "setting": file_of("runs/mini/tracking/tensorboard.json", "{"), "given": "tensorboard.json",
     "where": "is damaged", "remedy": "delete the folder"},
    {"title": "plug-ins to bundle, and none given",
     "command": "bundle here.tar --protocol tiny.yaml --work-dir runs --with-plugins",
     "setting": bundle_of(_finish_here),
     "given": "--with-plugins", "where": "the files that --plugin names", "remedy": "leave it out"},
    {"title": "a bundle's weights that are not the record's", "command": MERGE, "exit_code": 1,
     "setting": bundle_of(_replace_weights), "given": WEIGHTS_NAME, "where": "refused pretrain-mim",
     "remedy": "record.json names"},
    {"title": "a bundle's plug-in that is no text", "command": MERGE, "exit_code": 1,
     "setting": bundle_of(_damage_plugin), "given": "plugins/ring.py.txt", "where": "refused",
     "remedy": "can't decode byte"},
)  # fmt: skip
