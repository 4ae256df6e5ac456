"""Errors about clusters and about classifiers' files, as tests/error_cases.py builds them into cases."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from tests.error_settings import Setting, file_of

NODES = "time: 24:00:00\ngpus_per_node: 4\n"
SUBMIT = "--protocol mini --work-dir runs --cluster cluster.yaml"


def cluster_of(text: str) -> Setting:
    """`cluster.yaml`: a cluster file."""
    return file_of("cluster.yaml", text)


@contextmanager
def no_slurm(folder: Path) -> Iterator[None]:
    """A good cluster file, where there is no sbatch."""
    with cluster_of(NODES)(folder), mock.patch.dict(os.environ, {"PATH": str(folder)}):
        yield


@contextmanager
def damaged_ledger(folder: Path) -> Iterator[None]:
    """A work dir whose ledger is no JSON."""
    (folder / "runs" / "mini" / "cells").mkdir(parents=True)
    (folder / "runs" / "mini" / "cluster.json").write_text("{")
    yield


class Listing:
    """Pickled, a call of os.system."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("ls",)


@contextmanager
def weights_with_code(folder: Path) -> Iterator[None]:
    """`weights.pth`, which would run a program if it were unpickled."""
    (folder / "weights.pth").write_bytes(pickle.dumps(Listing(), protocol=2))
    yield


CLUSTER_CASES: tuple[dict[str, Any], ...] = (
    {"title": "a key of a cluster file", "command": SUBMIT,
     "setting": cluster_of(f"{NODES}partitoin: gpu\n"), "given": "partitoin", "where": "cluster.yaml:3",
     "remedy": "did you mean 'partition'"},
    {"title": "a time that leaves nothing to work in", "command": SUBMIT,
     "setting": cluster_of(NODES.replace("24:00", "00:02")), "given": "00:02:00", "where": "cluster.yaml",
     "remedy": "or fewer stop_seconds"},
    {"title": "an option that the harness gives sbatch itself", "command": SUBMIT,
     "setting": cluster_of(f"{NODES}sbatch: {{output: my.log}}\n"), "given": "--output",
     "where": "cluster.yaml:3", "remedy": "leave it out"},
    {"title": "a cluster file that is not there", "command": SUBMIT, "given": "cluster.yaml",
     "where": "--cluster", "remedy": "docs/cluster.md shows one"},
    {"title": "more GPUs for a cell than the nodes have", "command": f"{SUBMIT} --gpus-per-cell 8 --dry-run",
     "setting": cluster_of(NODES), "given": "--gpus-per-cell 8",
     "where": "1 node (max_nodes_per_cell)", "remedy": "give 4 or fewer, or change the file"},
    {"title": "an option of one machine", "command": f"{SUBMIT} --jobs 2", "setting": cluster_of(NODES),
     "given": "--jobs", "where": "on a cluster", "remedy": "array_parallelism in the file"},
    {"title": "a dry run of nothing", "command": "--protocol mini --dry-run", "given": "--dry-run",
     "where": "--cluster FILE.yaml", "remedy": "`plan` shows what a run would do"},
    {"title": "no Slurm", "command": f"{SUBMIT} --methods scratch --quiet", "setting": no_slurm,
     "given": "there is no sbatch", "where": "on this machine", "remedy": "on a login node"},
    {"title": "a damaged ledger of what was submitted", "command": "status --protocol mini --work-dir runs",
     "setting": damaged_ledger, "given": "cannot be read", "where": "cluster.json",
     "remedy": "then delete the file"},
)  # fmt: skip
CLASSIFIER = "validate weights.pth --protocol mini --trunk vit-mini --work-dir runs"
CLASSIFIER_CASES: tuple[dict[str, Any], ...] = (
    {"title": "a classifier's file that is not there", "command": CLASSIFIER, "given": "weights.pth",
     "where": "no such file", "remedy": "give the file of a fine-tuned classifier"},
    {"title": "a classifier's trunk", "command": CLASSIFIER.replace("vit-mini", "vit-x"),
     "setting": file_of("weights.pth", "x"), "given": "'vit-x'", "where": "trunk", "remedy": "vit-mini"},
    {"title": "a classifier's file that is cut short", "command": CLASSIFIER,
     "setting": file_of("weights.pth", "x"), "given": "weights.pth", "where": "or it is damaged",
     "remedy": "fetch it again"},
    {"title": "a classifier's file that would run code", "command": CLASSIFIER, "setting": weights_with_code,
     "given": "posix.system", "where": "nothing of it was run", "remedy": "fetch the published file"},
    {"title": "a published classifier without the images", "command": "validate weights.pth --trunk vit-t",
     "setting": file_of("weights.pth", "x"), "given": "imagenet-1k", "where": "data root",
     "remedy": "give --data-root DIR"},
)  # fmt: skip
