"""A method as it trains: gradients, batches in parts, precision, dropped paths, saved and loaded weights.

Shapes: B images, N patches, V codebook, P predicted positions of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmark.conformance import Check, Finding, info, judged, not_applicable
from benchmark.conformance_contract import few
from benchmark.conformance_method import MethodUnderTest, same_random_numbers
from methods.base import Method

ROUNDING = 1e-5  # relative, of a float32 loss or gradient
BFLOAT16 = 0.05
STEPS, RATE, FALL = 10, 3e-3, 0.02
DROPPED = 0.5


def loss_of_logits(subject: MethodUnderTest) -> Iterator[Finding]:
    """Whether the loss is the mean cross-entropy of the logits, or has further terms."""
    _, _, out = subject.outcome
    if not subject.spec.uses_tokens:
        yield not_applicable("loss of logits", "its targets are no tokens")
        return
    entropy = F.cross_entropy(out["logits"].flatten(0, -2).float(), out["targets"].flatten()).item()
    loss = out["loss"].item()
    if math.isclose(entropy, loss, rel_tol=ROUNDING):
        yield info("loss of logits", "the loss is the mean cross-entropy of logits and targets")
    else:
        rest = f"{loss - entropy:+.3f} {subject.spec.loss_unit} of further terms"
        yield info("loss of logits", f"their mean cross-entropy {entropy:.3f}, and {rest}")


def gradients(subject: MethodUnderTest) -> Iterator[Finding]:
    """Every parameter that trains gets a finite gradient, and not for ever zero."""
    method = subject.build()
    images, tokens, pattern = subject.images, subject.tokens, subject.pattern(method)
    trained = {name: value for name, value in method.named_parameters() if value.requires_grad}
    without, broken, silent = list[str](), list[str](), set(trained)
    for _ in range(2):  # what starts behind a zero gets its first gradient after a step
        method.zero_grad(set_to_none=True)
        method(images, tokens, pattern)["loss"].backward()
        without = [name for name, value in trained.items() if value.grad is None]
        broken += [n for n, one in trained.items() if one.grad is not None and not one.grad.isfinite().all()]
        silent -= {n for n, one in trained.items() if one.grad is not None and one.grad.abs().sum() > 0}
        with torch.no_grad():
            for value in trained.values():
                if value.grad is not None:
                    value.sub_(value.grad, alpha=0.01)
    silent -= {*without}
    fixed = [name for name, value in method.named_parameters() if not value.requires_grad]
    frozen = [name for name in fixed if name.startswith("trunk.")]
    words = [f"none for {few(without)}"] * bool(without) + [f"not finite: {few(broken)}"] * bool(broken)
    words += [f"always zero: {few(sorted(silent))}"] * bool(silent)
    words += [f"the trunk does not train: {few(frozen)}"] * bool(frozen)
    own = [name for name in fixed if name not in frozen]
    yield judged(
        "gradients",
        not words,
        good=f"finite, for each of {len(trained)} parameters"
        + (f"; not trained on purpose: {few(own)}" if own else ""),
        bad="; ".join(words),
        remedy="use every parameter in the loss, or make it a buffer, or set requires_grad False on own ones",
    )


def parts_of_a_batch(subject: MethodUnderTest) -> Iterator[Finding]:
    """Micro-batches, weighted by their predicted positions, give the whole batch's loss and gradient."""
    method = subject.build()
    images, tokens, pattern = subject.images, subject.tokens, subject.pattern(method)
    whole = method(images, tokens, pattern)["loss"]
    whole.backward()
    wanted = _trunk_gradient(method)
    method.zero_grad(set_to_none=True)
    first = subject.group if subject.spec.group else 2
    total, sum_of_parts = int(method.count_targets(pattern)), 0.0
    for part in (slice(0, first), slice(first, None)):
        share = int(method.count_targets(pattern[part])) / total
        loss = method(images[part], tokens[part], pattern[part])["loss"] * share
        loss.backward()
        sum_of_parts += loss.item()
    difference = abs(sum_of_parts - whole.item()) / max(abs(whole.item()), 1e-6)
    off = float((_trunk_gradient(method) - wanted).norm() / wanted.norm().clamp_min(1e-12))
    yield judged(
        "parts of a batch",
        difference <= ROUNDING and off <= 100 * ROUNDING,
        good=f"{first} and {subject.size - first} images give the loss and gradient of all {subject.size}",
        bad=f"{first} and {subject.size - first} images give another loss (by {difference:.1g}) or gradient "
        f"(by {off:.1g}) than all {subject.size}",
        remedy="return the mean over predicted positions, which count_targets counts; a contrast among "
        "images needs MethodSpec.group",
    )


def recomputed_blocks(subject: MethodUnderTest) -> Iterator[Finding]:
    """With activation checkpointing the gradient is the same."""
    found = []
    for recomputes in (False, True):
        method = subject.build().train()
        method.recomputes_blocks = recomputes
        method(subject.images, subject.tokens, subject.pattern(method))["loss"].backward()
        found.append(_trunk_gradient(method))
    off = float((found[1] - found[0]).norm() / found[0].norm().clamp_min(1e-12))
    yield judged(
        "recomputed blocks",
        off <= ROUNDING,
        good="with --activation-checkpointing the gradient is the same",
        bad=f"with --activation-checkpointing the gradient differs by {off:.1g}",
        remedy="pass each block through self._through: encode(self.trunk, rows, through=self._through)",
    )


def half_precision(subject: MethodUnderTest) -> Iterator[Finding]:
    """bf16 autocast gives a finite float32 loss, near the exact one."""
    _, _, out = subject.outcome
    method = subject.build()
    with torch.autocast("cpu", torch.bfloat16):
        loss = subject.forward(method)["loss"]
    loss.backward()
    norm = float(_trunk_gradient(method).norm())
    difference = abs(loss.item() - out["loss"].item())
    limit = BFLOAT16 * max(1.0, abs(out["loss"].item()))
    yield judged(
        "bf16",
        loss.dtype == torch.float32 and difference <= limit and math.isfinite(norm),
        good=f"under autocast the loss is float32 and differs by {difference:.1g}",
        bad=f"under autocast the loss is {loss.dtype}, differs by {difference:.1g}, gradient norm {norm:.1g}",
        remedy="compute the loss in float32: logits.float() before a cross-entropy or a square",
    )


def dropped_paths(subject: MethodUnderTest) -> Iterator[Finding]:
    """The trunk's drop path acts in training, and follows the global generator, which the engine seeds."""
    method = subject.build(drop_path=DROPPED).train()
    losses = []
    for seed in (1, 1, 2):
        with same_random_numbers(seed):
            losses.append(subject.forward(method)["loss"].item())
    yield judged(
        "drop path",
        losses[0] == losses[1] != losses[2],
        good="acts in training, the same under the same seed",
        bad="the loss differs under one seed" if losses[0] != losses[1] else "no path is ever dropped",
        remedy="run the trunk's blocks as modules (methods.trunk.encode); draw from no generator of its own",
    )


def saved_weights(subject: MethodUnderTest) -> Iterator[Finding]:
    """A state dict carries all that the loss depends on."""
    method, pattern, out = subject.outcome
    other = subject.build(seed=4)
    other.load_state_dict(method.state_dict(), strict=True)
    loss = other(subject.images, subject.tokens, pattern)["loss"]
    difference = (loss - out["loss"]).item()
    yield judged(
        "saved weights",
        torch.equal(loss, out["loss"]),
        good="loaded into another instance they give the same loss, bit by bit",
        bad=f"loaded into another instance they give a loss that differs by {difference:.1g}",
        remedy="register what is drawn in __init__ as a parameter or a persistent buffer",
    )


def learns(subject: MethodUnderTest) -> Iterator[Finding]:
    """The loss of one batch falls in a few steps."""
    method = subject.build()
    pattern = subject.pattern(method)
    optimizer = torch.optim.AdamW([one for one in method.parameters() if one.requires_grad], lr=RATE)
    losses = []
    for _ in range(STEPS):
        loss = method(subject.images, subject.tokens, pattern)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    fall = (losses[0] - losses[-1]) / abs(losses[0])
    words = f"from {losses[0]:.3f} to {losses[-1]:.3f} {subject.spec.loss_unit} in {STEPS} steps on one batch"
    yield judged(
        "learns",
        fall >= FALL,
        good=f"the loss falls {words}",
        bad=f"the loss goes {words}",
        remedy="see that the targets are those of the predicted positions, in the order of the logits",
    )


def _trunk_gradient(method: Method) -> Tensor:
    """All gradients of the trunk in one row; zeros where there are none."""
    return torch.cat(
        [
            (torch.zeros_like(one) if one.grad is None else one.grad).flatten()
            for one in method.trunk.parameters()
        ]
    )


TRAINING: tuple[Check[MethodUnderTest], ...] = (
    Check("loss of logits", loss_of_logits),
    Check("gradients", gradients),
    Check("parts of a batch", parts_of_a_batch),
    Check("recomputed blocks", recomputed_blocks),
    Check("bf16", half_precision),
    Check("drop path", dropped_paths),
    Check("saved weights", saved_weights),
    Check("learns", learns),
)
