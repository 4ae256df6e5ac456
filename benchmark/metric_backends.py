"""Where people already look at curves: TensorBoard and Weights & Biases, fed from the cells' metrics files.

`metrics.jsonl` stays the truth. A back-end is an optional package, it is handed what stands in the file, and
it is never on the path of a training: benchmark/metric_follower.py feeds it from a process of its own.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from benchmark.layout import TRACKING_NAME
from protocols.errors import HarnessError, unknown

PROJECT = "fair-mim"
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}
MOST_PART = 80  # characters of a phase: a merged file may say anything
_NO_NAME = re.compile(r"[^A-Za-z0-9_.-]+|^\.+")


class Run(Protocol):
    """One curve of a back-end. `log` gets steps that rise, except after `rewind`."""

    def rewind(self, step: int) -> None:
        """What was logged from `step` on is run again: training went on from an earlier checkpoint."""
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One line of the metrics file."""
        ...

    def result(self, step: int, values: Mapping[str, float], facts: Mapping[str, str]) -> None:
        """What the cell's record says once it has ended: its metrics, and texts such as its seed."""
        ...

    def close(self) -> None:
        """Everything was handed over: keep it."""
        ...


class Backend(Protocol):
    """A kind of place where runs are shown."""

    name: str

    def run(self, *, cell_id: str, part: str, attempt: int, after: int) -> Run:
        """The run of `part` of a cell ("" for its training, else a phase of encoding).

        `attempt` is 1 but for a cell that was begun again from its first step. Steps up to `after` were
        handed over before, by another process.
        """
        ...


def check_backends(names: Sequence[str]) -> list[str]:
    """`names` in lower case, each once. HarnessError for one that is unknown, or whose package is missing."""
    chosen = list(dict.fromkeys(name.lower() for given in names for name in given.split(",") if name))
    if not chosen:
        raise HarnessError(f"no metric back-end is named; known: {', '.join(PACKAGES)}")
    for name in chosen:
        if name not in PACKAGES:
            raise unknown("metric back-end", name, PACKAGES)
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise HarnessError(
                f"metric back-end {name} needs a package that is not installed; "
                f"pip install {PACKAGES[name]}, or leave it out: metrics.jsonl is written in any case"
            )
    return chosen


def make_backend(name: str, *, folder: Path, protocol: str) -> Backend:
    """The back-end called `name`, for the protocol whose folder is `folder`."""
    if name == "tensorboard":
        return TensorBoard(folder / TRACKING_NAME / name)
    return WeightsAndBiases(folder / TRACKING_NAME / name, group=protocol)


class TensorBoard:
    """Event files under `folder`, a subfolder for each run: `tensorboard --logdir FOLDER`."""

    name = "tensorboard"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def run(self, *, cell_id: str, part: str, attempt: int, after: int) -> Run:
        # A cell that was begun again keeps its folder: what it had logged is purged by `rewind`.
        made = _EventFile(self._folder / cell_id / _NO_NAME.sub("-", part)[:MOST_PART])
        if after:
            made.rewind(after + 1)  # what was handed over and not noted is handed over again
        return made


class _EventFile:
    """Scalars in an event file. The writer and the messages are TensorBoard's own; torch is not loaded."""

    def __init__(self, folder: Path) -> None:
        writer = importlib.import_module("tensorboard.summary.writer.event_file_writer")
        self._events = importlib.import_module("tensorboard.compat.proto.event_pb2")
        self._summaries = importlib.import_module("tensorboard.compat.proto.summary_pb2")
        self._writer = writer.EventFileWriter(str(folder))

    def rewind(self, step: int) -> None:
        start = self._events.SessionLog(status=self._events.SessionLog.START)
        self._writer.add_event(self._events.Event(step=step, session_log=start))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        made = [self._summaries.Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        summary = self._summaries.Summary(value=made)
        self._writer.add_event(self._events.Event(step=step, summary=summary))

    def result(self, step: int, values: Mapping[str, float], facts: Mapping[str, str]) -> None:
        self.log(step, {f"result/{name}": value for name, value in values.items()})

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A W&B run for each run, resumable by its id; the project and the account are wandb's own settings."""

    name = "wandb"

    def __init__(self, folder: Path, *, group: str) -> None:
        self._folder, self._group = folder, group

    def run(self, *, cell_id: str, part: str, attempt: int, after: int) -> Run:
        name = "-".join([cell_id, *([part] if part else []), *([str(attempt)] if attempt > 1 else [])])
        name = _NO_NAME.sub("-", name)
        return _WandbRun(self._folder, group=self._group, name=name, cell_id=cell_id, after=after)


class _WandbRun:
    """`wandb.init` with an id of ours and resume="allow", `define_metric`, `log`, `summary`, `finish`."""

    def __init__(self, folder: Path, *, group: str, name: str, cell_id: str, after: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        wandb: Any = importlib.import_module("wandb")
        self._run = wandb.init(
            project=PROJECT,
            group=group,
            name=name,
            id=name,
            resume="allow",
            dir=str(folder),
            config={"cell": cell_id, "protocol": group},
            reinit="create_new",  # cells run side by side
        )
        # Steps of ours, not wandb's own count of calls: a run that is resumed goes on where it was.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self._seen = after

    def rewind(self, step: int) -> None:
        """W&B has no way back: lines up to the last step are the same to the bit, and are not sent again."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step > self._seen:
            self._run.log({"step": step, **values})
            self._seen = step

    def result(self, step: int, values: Mapping[str, float], facts: Mapping[str, str]) -> None:
        self._run.summary.update({**{f"result/{name}": value for name, value in values.items()}, **facts})

    def close(self) -> None:
        self._run.finish()
