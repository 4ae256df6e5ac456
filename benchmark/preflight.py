"""What is checked before anything runs: data, tokenizers, disk, memory, batches; all faults at once.

Loads no torch itself; a data set that torchvision reads into memory loads it when it is checked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from benchmark.batch_checks import image_problems, memory_line, place_all, step_lines
from benchmark.commands.text import size
from benchmark.data import open_part
from benchmark.data_check import DataCheck, check_data
from benchmark.data_manifest import open_manifest
from benchmark.disk import disk_need
from benchmark.forecast import packed_images_bytes
from benchmark.inputs import EMBEDDED_SETS, Missing, damaged_weights
from benchmark.packed import MissingPack, UnusablePack, open_pack
from benchmark.plan import PRETRAINING_PART, Cell
from benchmark.runtime import Runtime
from benchmark.step_costs import StepCosts
from benchmark.survey import CellState
from protocols.errors import HarnessError, ProtocolViolation
from protocols.recipes import LinearProbe
from protocols.schema import Part, Protocol

NOT_MEASURED = "The GPUs' memory is tried with a step of each kind when these are settled."


@dataclass(frozen=True, kw_only=True)
class PreflightReport:
    """What was found to be in order, in the words of `lines`: data, pixels, disk, memory, batches.

    `costs` are those of the steps, as far as they were measured.
    """

    data: tuple[str, ...]
    pixels: str
    disk: str
    memory: str
    steps: tuple[str, ...]
    costs: StepCosts | None

    def lines(self) -> list[str]:
        """What a person is told before the run."""
        return [line for line in (*self.data, self.pixels, self.disk, self.memory, *self.steps) if line]


def preflight(
    plan: Sequence[Cell],
    protocol: Protocol,
    runtime: Runtime,
    work_dir: Path,
    states: Sequence[CellState],
    data_root: Path | None,
    *,
    manifest: Sequence[Path] = (),
    place: Callable[[Cell, StepCosts | None], Runtime] | None = None,
    costs: StepCosts | None = None,
    measure: Callable[[], StepCosts | None] | None = None,
) -> PreflightReport:
    """Check all that the cells of `plan` that are not done need; `states` are theirs, from `survey`.

    `manifest` are files of manifests that do not lie beside their data. `place` gives a cell's runtime by
    what was measured (benchmark.placement.place); without it every cell runs as `runtime` says. `costs` are
    known; `measure`, which takes minutes of a GPU, is called for the others once nothing else is wrong.
    Raises HarnessError that lists everything that is wrong with its remedy, ProtocolViolation if nothing is
    wrong but batches that cannot be split. Writes nothing itself.
    """
    refuse_launcher()
    is_done = {one.cell.id for one in states if one.state == "done"}
    cells = [cell for cell in plan if cell.id not in is_done]
    problems = [one for state in states for one in state.missing]
    problems += damaged_weights(cells, data_root=data_root)
    checks = _check_sets(cells, protocol, data_root, manifest, problems)
    problems += [one for check in checks for one in check.problems]
    problems += image_problems(cells, protocol)
    pixels = _pixels(cells, protocol, checks, runtime.images, work_dir, problems)
    disk = disk_need(cells, protocol, work_dir, at_once=runtime.jobs)
    problems += disk.problems(work_dir) if cells else []

    def runtime_of(cell: Cell) -> Runtime:
        return runtime if place is None else place(cell, costs)

    placed, violations = place_all(cells, protocol, runtime_of, problems)
    if measure is not None and not problems and not violations:
        costs = measure()
        placed, violations = place_all(cells, protocol, runtime_of, problems)
    is_open = measure is not None and bool(problems or violations)
    _refuse(protocol, _unique(problems), violations, note=NOT_MEASURED if is_open and costs is None else "")
    return PreflightReport(
        data=tuple(line for one in checks for line in one.lines()),
        pixels=pixels,
        disk=disk.line(work_dir) if cells else "",
        memory=memory_line(placed, protocol, runtime, costs),
        steps=tuple(step_lines(placed, protocol, costs)),
        costs=costs,
    )


def refuse_launcher() -> None:
    """HarnessError under a launcher's several processes: `run` starts those of its cells itself."""
    if world_size() > 1:
        raise HarnessError(
            f"a launcher started {world_size()} processes (WORLD_SIZE); the harness starts those of each "
            "cell itself: run the command once, without the launcher"
        )


def check_inputs(states: Sequence[CellState], protocol: Protocol) -> None:
    """HarnessError, before anything runs, with all that is missing at once, each with its remedy."""
    _refuse(protocol, _unique(one for state in states for one in state.missing), [])


def check_batches(plan: Sequence[Cell], protocol: Protocol, runtime: Runtime) -> None:
    """ProtocolViolation unless the processes and accumulation steps give every global batch exactly."""
    _refuse(protocol, [], place_all(plan, protocol, lambda cell: runtime, [])[1])


def check_parts(protocol: Protocol) -> None:
    """HarnessError unless embedded data sets hold the images of every part; cells read the others."""
    for data_set, parts in all_parts(protocol).items():
        if data_set in EMBEDDED_SETS:
            for name, part in parts.items():
                open_part(data_set, name, part)


def all_parts(protocol: Protocol) -> dict[str, dict[str, Part]]:
    """Data set -> its parts by name, of everything that the protocol may read."""
    parts: dict[str, dict[str, Part]] = {protocol.data.name: dict(protocol.data.parts)}
    for name in protocol.transfer_sets:
        parts.setdefault(protocol.transfer_sets[name].name, {}).update(_transfer_parts(name, protocol))
    return parts


def parts_read(cells: Iterable[Cell], protocol: Protocol) -> dict[str, dict[str, Part]]:
    """Data set -> the parts by name that these cells read."""
    read: dict[str, dict[str, Part]] = {}
    for cell in cells:
        names: Sequence[str] = (cell.part or PRETRAINING_PART,)
        if cell.evaluation is not None:
            recipe = protocol.evaluation(cell.evaluation, cell.trunk)
            if isinstance(recipe, LinearProbe) and recipe.transfer_set is not None:
                other = protocol.transfer_sets[recipe.transfer_set]
                read.setdefault(other.name, {}).update(_transfer_parts(recipe.transfer_set, protocol))
                continue
            names = ("training", recipe.evaluated_part)
        read.setdefault(protocol.data.name, {}).update({one: protocol.data.parts[one] for one in names})
    return read


def _transfer_parts(name: str, protocol: Protocol) -> dict[str, Part]:
    """Training and test, under the transfer set's name where that is not the data set's."""
    other = protocol.transfer_sets[name]
    prefix = "" if name == other.name != protocol.data.name else f"{name} "
    return {f"{prefix}training": other.training, f"{prefix}test": other.test}


def world_size() -> int:
    """Processes that a launcher says it started, 1 without one."""
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise HarnessError(f"the environment's WORLD_SIZE is {text!r}; it must be a number of processes")
    return int(text)


def _check_sets(
    cells: Sequence[Cell],
    protocol: Protocol,
    data_root: Path | None,
    manifest: Sequence[Path],
    problems: list[Missing],
) -> list[DataCheck]:
    """Check the data sets that the cells read, as far as they are there; `problems` names the others."""
    read = parts_read(cells, protocol)
    given = _manifests(manifest, read, problems)
    checks = []
    for data_set, parts in read.items():
        # Of an embedded set the parts that no cell reads cost nothing to check.
        wanted = all_parts(protocol)[data_set] if data_set in EMBEDDED_SETS else parts
        check = check_data(data_set, wanted, data_root=data_root, manifest=given.get(data_set))
        if check.problems or check.parts:
            checks.append(check)
    return checks


def _manifests(
    files: Sequence[Path], data_sets: Collection[str], problems: list[Missing]
) -> Mapping[str, Path]:
    """Data set -> the file of its manifest, of those given; adds what is wrong with them to `problems`."""
    found: dict[str, Path] = {}
    for path in files:
        try:
            data_set = open_manifest(path).data_set
        except HarnessError as error:
            problems.append(Missing(str(error), "give another with --manifest, or none"))
            continue
        if data_set in data_sets:
            found[data_set] = path
        else:
            known = ", ".join(data_sets) or "none at all"
            what = f"manifest {path} is that of data set {data_set}; what is to run reads {known}"
            problems.append(Missing(what, "give that data set's manifest with --manifest, or none"))
    return found


def _pixels(
    cells: Sequence[Cell],
    protocol: Protocol,
    checks: Sequence[DataCheck],
    choice: str,
    work_dir: Path,
    problems: list[Missing],
) -> str:
    """Where pre-training will read its pixels; a pack that is needed and not there joins `problems`."""
    of_data = [one for one in checks if one.data_set == protocol.data.name and PRETRAINING_PART in one.parts]
    if not of_data or not any(cell.stage == "pretrain" for cell in cells):
        return ""
    part, is_of_files = protocol.data.pretraining, bool(of_data[0].listings)
    packing = (
        "python run_benchmark.py pack with the same --protocol, --plugin, --data-root, --work-dir and --set "
        f"({size(packed_images_bytes(protocol))})"
    )
    if choice != "files":
        images = of_data[0].splits[part.split].cut(part.start, part.start + part.count)
        try:
            pack = open_pack(images, size=protocol.data.image_size, work_dir=work_dir)
            return f"pixels: packed, in {pack.folder}"
        except MissingPack as missing:
            if choice == "packed":
                problems.append(
                    Missing(f"--images packed: {missing}", f"make it: {packing}; or give --images files")
                )
        except UnusablePack as error:
            problems.append(Missing(str(error), f"read the files with --images files, or: {packing}"))
    return f"pixels: decoded from files in every epoch; once is enough after {packing}" if is_of_files else ""


def _refuse(
    protocol: Protocol, problems: Sequence[Missing], violations: Sequence[str], *, note: str = ""
) -> None:
    """Raise what is wrong, if anything is."""
    everything = [*problems, *(Missing(text, "") for text in violations)]
    if not everything:
        return
    error = HarnessError if problems else ProtocolViolation
    if len(everything) == 1 and not everything[0].remedy:
        raise error(everything[0].what)
    what = "1 thing is" if len(everything) == 1 else f"{len(everything)} things are"
    lines = [f"protocol {protocol.name} cannot run here; {what} missing or wrong:"]
    for one, following in zip_longest(everything, everything[1:]):
        lines.append(f"- {one.what}")
        # What the same command provides stands above it together.
        if one.remedy and (following is None or following.remedy != one.remedy):
            lines.append(f"  {one.remedy}")
    raise error("\n".join([*lines, note] if note else lines))


def _unique(problems: Iterable[Missing]) -> list[Missing]:
    return list(dict.fromkeys(problems))
