"""Has the steps of a plan timed in a child process, so that who plans loads no torch; keeps what was found.

What is known of this machine already is not measured again. Each step is kept as soon as it is measured, so
a measuring that is interrupted goes on where it stopped.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from benchmark.commands.text import count
from benchmark.die_with_parent import die_with_parent
from benchmark.plan import Cell
from benchmark.plugins import load_plugins, loaded_plugins
from benchmark.runtime import Runtime
from benchmark.step_costs import (
    DamagedCosts,
    Kept,
    Machine,
    StepCost,
    StepCosts,
    costs_path,
    known_costs,
    of_machine,
    read_kept,
    step_name,
    step_shape,
    write_kept,
)
from protocols.errors import HarnessError
from protocols.frozen import digest_of
from protocols.schema import Protocol

GRACE_SECONDS = 5.0


def measure_steps(
    cells: Sequence[Cell],
    protocol: Protocol,
    work_dir: Path,
    runtime: Runtime,
    *,
    report: Callable[[str], None],
) -> StepCosts | None:
    """The costs of all steps of `cells` on this runtime's device; None if none of them has steps.

    `report` gets a line for each step that is measured. A damaged file of costs is replaced, with a line.
    HarnessError if a step cannot be measured; what was measured before it is kept.
    """
    path = costs_path(work_dir, protocol.name)
    try:
        known = known_costs(work_dir, protocol.name, runtime)
    except DamagedCosts as error:
        report(f"{error}: all steps are measured anew")
        write_kept(path, [])
        known = None
    wanted = _one_of_each_shape(cells, protocol)
    if known is not None and all(shape in known.costs for shape in wanted):
        return known
    if not wanted:
        return None
    with _child(protocol, runtime) as connection:
        machine = _received(connection, "the device")
        assert isinstance(machine, Machine)
        found = of_machine(read_kept(path), machine)
        unknown = {shape: cell for shape, cell in wanted.items() if shape not in found.costs}
        if unknown:
            kinds = count(len(unknown), "kind")
            report(f"measuring {kinds} of step on {machine.described}; kept in {path}")
        for number, cell in enumerate(unknown.values(), start=1):
            connection.send(cell)
            cost = _received(connection, step_name(cell))
            assert isinstance(cost, StepCost)
            report(f"  {number} of {len(unknown)}: {described(cost)}")
            # Read again: another machine may have measured meanwhile.
            write_kept(path, [*read_kept(path), Kept(machine=machine, cost=cost)])
    return of_machine(read_kept(path), machine)


def described(cost: StepCost) -> str:
    """One line for a step that was measured."""
    if not cost.timings:
        return f"{cost.step}: out of memory with one image"
    last = cost.timings[-1]
    rate = f"{cost.step}: {last.images / last.seconds:,.1f} images/s in micro-batches of {last.images}"
    return rate if cost.out_of_memory_at is None else f"{rate}, out of memory at {cost.out_of_memory_at}"


def _one_of_each_shape(cells: Sequence[Cell], protocol: Protocol) -> dict[str, Cell]:
    wanted: dict[str, Cell] = {}
    for cell in cells:
        shape = step_shape(cell, protocol)
        if shape is not None:
            wanted.setdefault(digest_of(shape), cell)
    return wanted


@contextmanager
def _child(protocol: Protocol, runtime: Runtime) -> Iterator[Connection]:
    """A process that says what it runs on, then answers each cell with its cost or with an error's text."""
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_serve, args=(there, protocol, runtime, loaded_plugins()), daemon=True)
    process.start()
    there.close()
    try:
        yield here
    except (EOFError, ConnectionError):
        process.join(GRACE_SECONDS)
        code = process.exitcode or 0
        ending = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        raise HarnessError(
            f"the process that measures steps {ending}; give --device cpu, or free the memory, and try again"
        ) from None
    finally:
        here.close()
        process.join(GRACE_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


def _received(connection: Connection, what: str) -> object:
    answer = connection.recv()
    if isinstance(answer, str):
        raise HarnessError(f"{what} cannot be measured: {answer}")
    return answer


def _serve(connection: Connection, protocol: Protocol, runtime: Runtime, plugins: tuple[str, ...]) -> None:
    """The child's side. Its parent may be printing JSON, so all that it prints itself goes to stderr."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)
    import torch

    from benchmark.step_probe import measure, this_machine

    torch.set_num_threads(runtime.threads)
    try:
        load_plugins(plugins)
        connection.send(this_machine(runtime))
        while True:
            connection.send(measure(connection.recv(), protocol, runtime))
    except EOFError:
        return
    except HarnessError as error:
        connection.send(str(error))
    except Exception as error:
        # Said where the user is; the parent ends this process.
        connection.send(f"{type(error).__name__}: {error}")
