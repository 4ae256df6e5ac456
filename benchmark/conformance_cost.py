"""What a method costs, beside the built-in ones: FLOPs declared and counted, time of a step, weights.

Times are those of this machine, now: steps of all methods take turns, so that what else runs on it slows
all alike, and what is told is a ratio of medians.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmark.commands.text import count, table
from benchmark.conformance import Check, Finding, info, judged
from benchmark.conformance_method import MethodUnderTest, under_test
from benchmark.cost import forward_flops, training_flops
from benchmark.forecast import method_parameters
from methods import method_spec
from protocols.schema import Protocol

AGREE = 0.05
ROUNDS = 7
STEP_FLOPS = 4e9  # of a timed step, about: mini's is that of its global batch
MOST_IMAGES = 64
REFERENCE = "mim"


def flops(subject: MethodUnderTest) -> Iterator[Finding]:
    """What `work` declares against torch's own counter."""
    method, size = subject.build(), subject.size
    pattern = subject.pattern(method)
    # The mathematical kernel is made of products that the counter knows, forward and backward.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        method(subject.images, subject.tokens, pattern)["loss"].backward()
    counted = counter.get_total_flops() / size
    declared = _declared(subject)
    off = declared / counted - 1
    words = f"{declared:.4g} a training image; torch counts {counted:.4g} ({100 * off:+.1f} %)"
    yield judged(
        "FLOPs",
        abs(off) <= AGREE,
        good=f"declared {words}",
        bad=f"declared {words}, more than {100 * AGREE:.0f} % apart",
        remedy="declare in MethodSpec.work each pass through blocks, the head's rows, and projections beside",
    )


def weights(subject: MethodUnderTest) -> Iterator[Finding]:
    """Parameters beside the trunk's; memory and disk are planned from them."""
    method = subject.build()
    trunk = sum(value.numel() for value in method.trunk.parameters())
    everything = sum(value.numel() for value in method.parameters())
    expected = method_parameters(
        subject.name, subject.trunk, subject.small, codebook_size=subject.codebook_size
    )
    off = expected / everything - 1
    yield info(
        "weights",
        f"{everything:,} parameters, {everything - trunk:,} of them beside the trunk's; plans of disk and "
        f"memory reckon with {expected:,} ({100 * off:+.0f} %)",
    )


def time_beside_others(protocol: Protocol, trunk: str) -> Check[MethodUnderTest]:
    """The time of a step beside those of the methods that the protocol compares."""
    return Check("time of a step", partial(times, protocol=protocol, trunk=trunk))


def times(subject: MethodUnderTest, *, protocol: Protocol, trunk: str) -> Iterator[Finding]:
    """A training step of it and of each of the protocol's own methods, in turns."""
    names = [one for one in protocol.defaults.methods if method_spec(one).pretrains and one != subject.name]
    subjects = [subject, *(under_test(one, protocol, trunk) for one in names)]
    images = _images(subjects)
    steps = [_Step(one, images) for one in subjects]
    for one in steps:
        one.take()  # the first warms up
    seconds: list[list[float]] = [[] for _ in steps]
    for _ in range(ROUNDS):
        for taken, step in zip(seconds, steps, strict=True):
            taken.append(step.take())
    medians = [statistics.median(taken) for taken in seconds]
    costs = [_declared(one) for one in subjects]
    names = [one.name for one in subjects]
    base = names.index(REFERENCE) if REFERENCE in names else 0  # itself, in a protocol without it
    rows = [
        (name, f"{1000 * median:.1f}", f"{median / medians[base]:.2f}", f"{cost / costs[base]:.2f}")
        for name, median, cost in zip(names, medians, costs, strict=True)
    ]
    header = ("method", "ms a step", f"of {names[base]}", "by FLOPs")
    yield info(
        "time of a step",
        f"{rows[0][2]} of {names[base]}'s (by FLOPs {rows[0][3]}); forward and backward of "
        f"{count(images, 'image')}, medians of {ROUNDS} in turns, "
        f"{count(torch.get_num_threads(), 'thread')}\n" + table(header, rows, right={1, 2, 3}),
    )


class _Step:
    """Forward and backward of one method on a batch of the size that all have."""

    def __init__(self, subject: MethodUnderTest, images: int) -> None:
        times = images // subject.size
        self._method = subject.build().train()
        self._method.keeps_logits = False
        self._batch = (
            subject.images.repeat(times, 1, 1, 1),
            subject.tokens.repeat(times, 1),
            self._method.draw(torch.arange(images), 0, 0),
        )

    def take(self) -> float:
        """Seconds of one step."""
        self._method.zero_grad(set_to_none=True)
        start = time.perf_counter()
        self._method(*self._batch)["loss"].backward()
        return time.perf_counter() - start


def _images(subjects: Sequence[MethodUnderTest]) -> int:
    """So many whole groups of each that a step takes a moment."""
    whole = math.lcm(*(one.size for one in subjects))
    return whole * max(1, min(MOST_IMAGES, int(STEP_FLOPS / (3 * forward_flops(subjects[0].trunk)))) // whole)


def _declared(subject: MethodUnderTest) -> float:
    return training_flops(subject.name, subject.trunk, subject.small, codebook_size=subject.codebook_size)


COSTS: tuple[Check[MethodUnderTest], ...] = (Check("FLOPs", flops), Check("weights", weights))
