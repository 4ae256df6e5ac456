"""What needs torch: that it loads, a checkpoint and its damage, and two processes that add up.

These are forked, so they come before anything that starts CUDA.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from benchmark.die_with_parent import die_with_parent
from benchmark.doctor import REINSTALL, Asked, Finding, failed, ok
from benchmark.runtime import visible_gpus
from protocols.errors import HarnessError

PROCESSES = 2
JOIN_SECONDS = 60.0


def loads(asked: Asked) -> Iterator[Finding]:
    """Its version, what it was built for, and how long the import took."""
    began = time.perf_counter()
    import torch

    seconds = time.perf_counter() - began
    cuda = torch.version.cuda
    build = f"CUDA {cuda}" if cuda else "CPU alone"
    yield ok("torch", f"{torch.__version__}, built for {build}, imported in {seconds:.0f} s")


def save_and_load(asked: Asked) -> Iterator[Finding]:
    """A checkpoint and a weights file, whole and with one flipped byte."""
    import torch

    from benchmark.checkpoint import load_newest, load_weights, save_checkpoint, save_weights

    assert asked.scratch is not None
    folder = asked.scratch / "checkpoints"
    states = [{"weights": torch.arange(4096, dtype=torch.float32) + step} for step in (1, 2)]
    for step, state in enumerate(states, start=1):
        save_checkpoint(folder, step, state)
    logging.getLogger("benchmark.checkpoint").setLevel(logging.ERROR)  # that one is damaged is the point
    newest, before = load_newest(folder), states[0]["weights"]
    if newest is None or newest["step"] != 2 or not torch.equal(newest["weights"], states[1]["weights"]):
        yield failed("checkpoints", "what was saved is not what was loaded", REINSTALL)
        return
    flip(max(folder.glob("*.pt")))
    newest = load_newest(folder)
    if newest is None or newest["step"] != 1 or not torch.equal(newest["weights"], before):
        yield failed(
            "checkpoints", "one flipped byte is not noticed", "this is a fault of the harness: say so"
        )
        return
    yield ok("checkpoints", "loaded as saved; with one flipped byte the one before is taken")
    path = asked.scratch / "checkpoints" / "backbone.safetensors"
    digest = save_weights(path, states[0])
    if not torch.equal(load_weights(path, digest=digest)["weights"], before):
        yield failed("weights", "what was saved is not what was loaded", REINSTALL)
        return
    flip(path)
    try:
        load_weights(path, digest=digest)
    except HarnessError:
        yield ok("weights", "safetensors loaded as saved; one flipped byte is refused")
    else:
        yield failed("weights", "one flipped byte is not noticed", "this is a fault of the harness: say so")


def flip(path: Path) -> None:
    """One bit in the middle of the file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def two_processes(asked: Asked) -> Iterator[Finding]:
    """They meet as those of a cell do, and add up: on a CPU, and on GPUs where there are two."""
    kinds = ["cpu"] if asked.device != "cuda" else []
    if asked.device != "cpu" and len(visible_gpus()) >= PROCESSES:
        kinds.append("cuda")
    for device in kinds:
        what = f"two processes ({'gloo' if device == 'cpu' else 'NCCL'})"
        began = time.perf_counter()
        errors = add_up(device)
        if errors:
            yield failed(
                what,
                f"{'; '.join(errors)}",
                "let processes of this machine reach each other at 127.0.0.1 (firewall, proxy variables, "
                "NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME); without it, --gpus-per-cell 1",
            )
        else:
            yield ok(what, f"met and added up in {time.perf_counter() - began:.1f} s")


def add_up(device: str) -> list[str]:
    """What went wrong between two processes, by rank; nothing if all went well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes, pipes = [], []
    for rank in range(PROCESSES):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_one_of_two, args=(rank, port, device, sender))
        process.start()
        sender.close()
        processes.append(process)
        pipes.append(receiver)
    deadline = time.monotonic() + JOIN_SECONDS
    errors = []
    for rank, (process, pipe) in enumerate(zip(processes, pipes, strict=True)):
        said = f"no answer within {JOIN_SECONDS:g} s"
        if pipe.poll(max(0.0, deadline - time.monotonic())):
            try:
                said = pipe.recv()
            except EOFError:
                process.join()
                said = f"ended with code {process.exitcode}"
        if said:
            errors.append(f"rank {rank}: {said}")
    for process, pipe in zip(processes, pipes, strict=True):
        process.join(1.0 if errors else None)
        process.kill()
        process.join()
        pipe.close()
    return errors


def _one_of_two(rank: int, port: int, device: str, answer: Connection) -> None:
    die_with_parent()
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(PROCESSES),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    try:
        answer.send(_sum_of_ranks(rank, device))
    except Exception as error:  # whatever it is, it is the finding
        answer.send((str(error).strip().splitlines() or [type(error).__name__])[0])


def _sum_of_ranks(rank: int, device: str) -> str:
    """Nothing if the sum is right, else what it is."""
    import torch
    import torch.distributed as dist

    from benchmark.peers import hosting, launched, leave_together
    from benchmark.process_group import join, leave

    if device == "cuda":
        torch.cuda.set_device(rank)
    with hosting():
        peers = launched()
        join(peers, device=device)
        mine = torch.full((1000,), float(rank + 1), device=device)
        dist.all_reduce(mine)
        expected = sum(range(1, PROCESSES + 1))
        wrong = "" if bool((mine == expected).all()) else f"the sum is {mine[0].item():g}, not {expected}"
        leave()
        leave_together(peers)
    return wrong
