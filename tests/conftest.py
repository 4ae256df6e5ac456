"""Shared fixtures: golden files, and one thread per test process so that results repeat."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from benchmark.die_with_parent import PARENT_VARIABLE
from benchmark.stopping import STOPPING
from protocols import load, lock, reader

GOLDEN = Path(__file__).parent / "golden"
# Files whose tests take longest, longest first: both processes begin with them and end together.
LONGEST = (
    "benchmark/test_run.py",
    "benchmark/test_cluster_slurm.py",  # it mostly waits, while the one above keeps two cores busy
    "benchmark/test_launched_cells.py",
    "benchmark/test_every_value_acts.py",
    "chaos/test_chaos.py",
    "conformance/test_newcomer.py",
    "methods/test_conformance.py",
    "benchmark/test_fair300_miniature.py",
    "protocols/test_every_value.py",
    "benchmark/test_cluster_local.py",
    "benchmark/test_step_choices.py",
    "benchmark/test_tokenize_command.py",
    "benchmark/test_engine.py",
    "test_errors.py",
    "leaderboard/test_browser.py",
    "convert/test_from_checkpoint.py",
    "conformance/test_method_checks.py",
    "sharing/test_pages_of_sharing.py",
    "benchmark/test_plan_probe.py",
    "benchmark/test_run_endings.py",
    "disks/test_full_run.py",
    "campaigns/test_two_at_once.py",
    "campaigns/test_long_campaigns.py",
    "campaigns/test_redo.py",
    "chaos/test_gaps.py",
    "benchmark/test_tokenise_kclip.py",
    "benchmark/test_exactly_n.py",
    "benchmark/test_cost.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """A protocol's text and the lock's lines are parsed once by each process; then the order of files."""
    reader.composed = lru_cache(64)(reader.composed)
    lock._parsed = lru_cache(1024)(lock._parsed)
    load.Reader = _read
    config.option.loadscopereorder = False  # pytest-xdist's own order is by the number of tests


@lru_cache(64)
def _read_once(file: str, text: bytes) -> tuple[reader.Reader, bytes]:
    read = reader.Reader(file, text)
    return read, pickle.dumps(read.tree)


def _read(file: str, text: bytes) -> reader.Reader:
    """What `load_protocol` reads of a file, which --set then changes: its own, of what was read once."""
    read, tree = _read_once(file, text)
    own = copy.copy(read)
    own.tree, own.overridden = pickle.loads(tree), {}
    own.sources, own.lines = {**read.sources}, {**read.lines}
    return own


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; the order of all others, and within each file, stays."""
    ranks = {GOLDEN.parent / name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch  # not above: the process that gives out the files needs none of it

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_parent_is_left() -> Iterator[None]:
    """A process that is told of another parent than its own ends itself: later tests would wait for it."""
    yield
    assert PARENT_VARIABLE not in os.environ


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, Any]]:
    """Loads one golden .npz as a dict of tensors."""
    import numpy as np
    import torch

    def load(name: str) -> dict[str, Any]:
        with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as archive:
            return {key: torch.from_numpy(np.array(archive[key])) for key in archive.files}

    return load


@pytest.fixture(scope="module")
def boards_without_drawings() -> Iterator[None]:
    """Boards of this process have empty pictures: a second less for each, where nobody looks at them."""
    from leaderboard import contents, figure_style
    from leaderboard.sections import Figure

    def undrawn(draw: object, *, name: str, alt: str, caption: str, **_: object) -> Figure:
        return Figure(name=name, svg="<svg />", png=b"", alt=alt, caption=caption)

    drawn, modules = figure_style.drawn, list(sys.modules.items())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contents, "probe_figure", lambda board: None)
        for name, module in modules:
            if name.startswith("leaderboard.") and getattr(module, "drawn", None) is drawn:
                patch.setattr(module, "drawn", undrawn)
        yield


@pytest.fixture(autouse=True)
def _signal_handlers() -> Iterator[None]:
    """A command leaves its handlers to the end of its process; here the next test must not see them.

    Nor what a shell leaves to processes in its background: they begin with Ctrl-C ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    handlers = {number: signal.getsignal(number) for number in STOPPING}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
