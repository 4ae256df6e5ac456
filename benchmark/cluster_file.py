"""The one YAML file that says how cells ask a cluster for nodes; errors name the line and what is allowed.

It moves no number and is part of no identity. Read node by node, as a protocol is: no tag is executed,
keys stand once, and 24:00:00 is a time and not a number of base 60.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, ValidationError, model_validator

from benchmark.plan import STAGES, Stage
from protocols.errors import HarnessError, nearest
from protocols.frozen import Frozen, FrozenDict, NonNegativeInt, PositiveInt
from protocols.reader import composed

MAX_FILE_BYTES = 256 * 1024
# What the harness itself gives sbatch, or another key of the file: an option of `sbatch` must not undo it.
# The last lines' options ask for other shapes than the keys do, submit nothing, or submit where squeue is not
# asked, and what was submitted there would be submitted again.
OWN_OPTIONS = (
    "account", "array", "chdir", "constraint", "cpus-per-task", "dependency", "error", "gpus-per-node",
    "job-name", "kill-on-invalid-dep", "mem", "no-requeue", "nodes", "ntasks", "ntasks-per-node",
    "open-mode", "output", "parsable", "partition", "qos", "requeue", "signal", "time", "wait",
    "cpus-per-gpu", "gpus", "gpus-per-task", "mem-per-cpu", "mem-per-gpu", "ntasks-per-gpu",
    "cluster-constraint", "clusters", "test-only", "wrap",
)  # fmt: skip
# Slurm looks at the time once a minute: it may send its signal so much earlier than asked.
_EARLIER_SECONDS = 60
_TIME = re.compile(r"(?:(\d{1,3})-)?(\d{1,3}):([0-5]\d):([0-5]\d)")
_MEMORY = re.compile(r"([1-9]\d*)([MGT])")
_YAML = "tag:yaml.org,2002:"
_BOOLS = {"true": True, "false": False}
_SENTENCES = {
    "missing": "is missing",
    "int_type": "must be a whole number",
    "string_type": "must be a text",
    "tuple_type": "must be a list",
    "dict_type": "must be a group of names with values",
    "model_type": "must be a group of names with values",
    "greater_than_equal": "must be {ge} or more",
    "literal_error": "must be {expected}",
    "string_pattern_mismatch": "must be one line of text",
}


def _time(text: str) -> str:
    if not _TIME.fullmatch(text):
        raise ValueError("must be HOURS:MM:SS or DAYS-HH:MM:SS, such as 24:00:00")
    return text


def _memory(text: str) -> str:
    if not _MEMORY.fullmatch(text):
        raise ValueError("must be a whole number with M, G or T, such as 48G")
    return text


def _options(options: Mapping[str, Any]) -> FrozenDict:
    for name in options:
        if not re.fullmatch(r"[a-z][a-z-]*", name):
            raise ValueError(f"{name!r} is no long option of sbatch; write it without its --")
        if name in OWN_OPTIONS:
            raise ValueError(f"--{name} is the harness's own, or a key of this file; leave it out")
    return FrozenDict(options)


Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f]+$")]
Time = Annotated[Line, AfterValidator(_time)]
Memory = Annotated[Line, AfterValidator(_memory)]
Options = Annotated[dict[str, bool | int | Line], AfterValidator(_options)]
Lines = Annotated[tuple[Line, ...], Field(strict=False)]


class StageRequest(Frozen):
    """What one stage asks for where it differs from the rest of the file; None: as the rest."""

    partition: Line | None = None
    account: Line | None = None
    qos: Line | None = None
    constraint: Line | None = None
    time: Time | None = None
    cpus_per_process: PositiveInt | None = None
    memory_per_process: Memory | None = None
    max_nodes_per_cell: PositiveInt | None = None
    array_parallelism: PositiveInt | None = None


class ClusterFile(Frozen):
    """A cluster file. A process drives one GPU, or one share of the CPUs where `gpus_per_node` is 0.

    `requeues` is how often a cell that saved itself before its time was up, or before it was preempted, is
    put back into the queue; `stop_seconds` is how long before the end of its time it is told to.
    `array_parallelism` bounds the tasks of one array that run at once. `setup` lines run before the cell,
    on its first node. `sbatch` holds further long options.
    """

    scheduler: Literal["slurm", "local"] = "slurm"
    partition: Line | None = None
    account: Line | None = None
    qos: Line | None = None
    constraint: Line | None = None
    time: Time
    gpus_per_node: NonNegativeInt
    gpu_type: Line | None = None
    processes_per_node: PositiveInt | None = None
    cpus_per_process: PositiveInt = 1
    memory_per_process: Memory | None = None
    max_nodes_per_cell: PositiveInt = 1
    requeues: NonNegativeInt = 20
    stop_seconds: PositiveInt = 90
    array_parallelism: PositiveInt | None = None
    python: Line | None = None
    setup: Lines = ()
    sbatch: Options = Field(default_factory=dict)
    stages: Annotated[dict[Stage, StageRequest], AfterValidator(FrozenDict)] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> ClusterFile:
        if self.gpus_per_node and self.processes_per_node not in (None, self.gpus_per_node):
            raise ValueError(
                f"processes_per_node is for nodes without GPUs: with "
                f"gpus_per_node {self.gpus_per_node} there are as many: leave it out"
            )
        if self.gpu_type and not self.gpus_per_node:
            raise ValueError("gpu_type has no meaning with gpus_per_node 0; leave it out")
        least = self.stop_seconds + _EARLIER_SECONDS
        for time in (self.time, *(one.time for one in self.stages.values() if one.time is not None)):
            if seconds_of(time) <= least:
                raise ValueError(
                    f"time {time} leaves a cell nothing to work in: stop_seconds {self.stop_seconds} before "
                    f"its end, or up to {_EARLIER_SECONDS} s earlier, it is told to save itself; give more "
                    f"than {least} s, or fewer stop_seconds"
                )
        return self

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """What cells are told to run on: an `auto` would take the CPU of a node whose GPU is lost."""
        return "cuda" if self.gpus_per_node else "cpu"

    @property
    def slots_per_node(self) -> int:
        """Processes of one cell that a node can hold."""
        return self.gpus_per_node or self.processes_per_node or 1

    def of_stage(self, stage: Stage) -> ClusterFile:
        """The same file with what `stages` says of one stage."""
        request = self.stages.get(stage)
        return self if request is None else self.model_copy(update=request.model_dump(exclude_none=True))


def memory_of(memory: str, processes: int) -> str:
    """`processes` times a memory: ("48G", 2) is 96G."""
    match = _MEMORY.fullmatch(memory)
    assert match is not None
    return f"{int(match[1]) * processes}{match[2]}"


def seconds_of(time: str) -> int:
    """The seconds of a time such as 24:00:00 or 2-00:00:00."""
    match = _TIME.fullmatch(time)
    assert match is not None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((24 * days + hours) * 60 + minutes) * 60 + seconds


def minutes_of(time: str) -> int:
    """The minutes of a time, a begun one whole."""
    return -(-seconds_of(time) // 60)


def load_cluster_file(path: Path) -> ClusterFile:
    """The cluster file at `path`. HarnessError with one line for everything that is wrong."""
    try:
        # A pipe would wait for ever, and a device has no end.
        if path.exists() and not path.is_file():
            raise HarnessError(f"--cluster {path}: no file; docs/cluster.md shows one")
        with path.open("rb") as stream:
            text = stream.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            raise HarnessError(f"--cluster {path}: too large for a cluster file")
    except OSError as error:
        raise HarnessError(
            f"--cluster {path}: cannot be read: {error.strerror}; docs/cluster.md shows one"
        ) from None
    return _Reader(path.name, text).cluster_file()


class _Reader:
    def __init__(self, file: str, text: bytes) -> None:
        self.file = file
        self.lines: dict[str, int] = {}
        try:
            root = composed(text)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            where = getattr(error, "problem_mark", None)
            line = f":{where.line + 1}" if where is not None else ""
            problem = getattr(error, "problem", None) or getattr(error, "reason", None)
            raise HarnessError(f"{file}{line}: not valid YAML: {problem or type(error).__name__}") from None
        if not isinstance(root, yaml.MappingNode):
            raise HarnessError(f"{file}: a cluster file is a mapping of names to values")
        self.tree = self._plain(root, "")

    def cluster_file(self) -> ClusterFile:
        try:
            return ClusterFile.model_validate(self.tree)
        except ValidationError as error:
            found = {self._mistake(item): None for item in error.errors(include_url=False)}
            raise HarnessError("\n".join(found)) from None

    def _error(self, path: str, message: str) -> HarnessError:
        where = path
        while where and where not in self.lines:
            where = where.rpartition(".")[0]
        return HarnessError(f"{self.file}:{self.lines.get(where, 1)}: {path + ': ' if path else ''}{message}")

    def _plain(self, node: yaml.Node, path: str) -> Any:
        kind = node.tag.removeprefix(_YAML)
        if isinstance(node, yaml.MappingNode) and kind == "map":
            values: dict[str, Any] = {}
            for key_node, value in node.value:
                line = key_node.start_mark.line + 1
                key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "a key"
                child = f"{path}.{key}" if path else key
                if key in values:
                    first = self.lines[child]
                    raise HarnessError(
                        f"{self.file}:{line}: {child} is given twice, first in line {first}; keep one"
                    )
                self.lines[child] = line
                values[key] = self._plain(value, child)
            return values
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            for position, child_node in enumerate(node.value):
                self.lines[f"{path}.{position}"] = child_node.start_mark.line + 1
            return [self._plain(child, f"{path}.{position}") for position, child in enumerate(node.value)]
        text = str(node.value)
        if kind == "null":
            return None
        if kind == "bool" and text.lower() in _BOOLS:
            return _BOOLS[text.lower()]
        if kind == "int" and re.fullmatch(r"[1-9]\d{0,17}|0", text):
            return int(text)
        if kind in ("bool", "int", "float", "str", "timestamp"):
            return text
        raise self._error(path, f"the YAML tag {node.tag!r} is not allowed here")

    def _mistake(self, item: Mapping[str, Any]) -> str:
        location = [str(part) for part in item["loc"] if part not in ("[key]", "bool", "int")]
        path, message = ".".join(location), item["msg"].removeprefix("Value error, ")
        if location[:1] == ["sbatch"] and len(location) > 1:
            # The branches of "a flag, a number or a text" say one thing.
            path, message = ".".join(location[:2]), "must be true, a number or one line of text"
        elif item["type"] == "extra_forbidden":
            known = StageRequest.model_fields if location[0] == "stages" else ClusterFile.model_fields
            message = f"unknown key; {nearest(location[-1], known)}"
        elif location[:1] == ["stages"] and len(location) == 2 and item["type"] == "literal_error":
            message = f"unknown stage; {nearest(location[1], STAGES)}"
        elif item["type"] in _SENTENCES:
            message = _SENTENCES[item["type"]].format(**item.get("ctx", {}))
        if item["type"] not in ("missing", "extra_forbidden") and isinstance(item["input"], str | int):
            message += f", got {item['input']!r:.80}"
        return str(self._error(path, message))
