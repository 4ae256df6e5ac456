"""A method against its contract: how it is built, what it draws, what it returns, what it refuses.

Shapes: B images, N patches, V codebook, K targets of one image, P predicted positions of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from benchmark.conformance import Blocked, Check, Finding, failed, info, judged, not_applicable, ok
from benchmark.conformance_method import (
    SEED,
    MethodUnderTest,
    consumed_generators,
    generator_states,
    same_random_numbers,
)
from methods.base import Method
from methods.trunk import build_trunk
from protocols.hyperparameters import Hyperparameter, Value

FEATURES_AGREE = 1e-5


def builds(subject: MethodUnderTest) -> Iterator[Finding]:
    """A Method, whose weights are a function of the seed."""
    method = subject.build()
    is_method = isinstance(method, Method) and method.pattern_dtype in (torch.bool, torch.int64)
    yield judged(
        "class",
        is_method,
        good=f"{type(method).__name__} is a methods.base.Method, its patterns are {_dtype(method)}",
        bad=f"{type(method).__name__} is no Method with a pattern_dtype of torch.bool or torch.int64",
        remedy="inherit from methods.base.Method, or from a built-in method, and set pattern_dtype",
    )
    if not is_method:
        raise Blocked
    again, other = subject.build(), subject.build(seed=SEED + 1)
    repeats = _same(method.state_dict(), again.state_dict())
    yield judged(
        "initialisation",
        repeats and not _same(method.state_dict(), other.state_dict()),
        good="equal seeds give equal weights, other seeds others",
        bad="equal seeds give other weights" if not repeats else "all seeds give the same weights",
        remedy="draw weights from torch's global generator alone: the harness seeds it before it builds",
    )


def trunk(subject: MethodUnderTest) -> Iterator[Finding]:
    """The trunk that every method has, and nothing but it."""
    method = subject.build()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        plain = build_trunk(subject.trunk)
    is_timms = type(method.trunk) is VisionTransformer
    drawn, wanted = method.trunk.state_dict(), plain.state_dict()
    moved = [name for name in wanted if name not in drawn or not torch.equal(drawn[name], wanted[name])]
    further = [name for name in drawn if name not in wanted]
    yield judged(
        "equal trunk",
        is_timms and not moved and not further,
        good=f"timm's VisionTransformer, its {len(wanted)} tensors those that every method starts from",
        bad=f"{type(method.trunk).__name__}; tensors that differ: {few([*moved, *further]) or 'none'}",
        remedy="call super().__init__ first, leave self.trunk as it is, and draw own weights after it",
    )
    before = method.export_backbone()
    kept = {name: value.clone() for name, value in before.items()}
    with torch.no_grad():  # as training would
        for value in method.trunk.parameters():
            value.add_(0.01)
    exported = method.export_backbone()
    is_copy = _same(before, kept)
    yield judged(
        "exported backbone",
        is_copy and _same(exported, method.trunk.state_dict()),
        good="the trunk's weights, as a copy",
        bad="not the trunk's weights" if is_copy else "no copy: it changes as the trunk trains",
        remedy="leave export_backbone as Method has it",
    )
    bare = VisionTransformer(
        img_size=subject.trunk.image_size,
        patch_size=subject.trunk.patch_size,
        embed_dim=subject.trunk.width,
        depth=subject.trunk.depth,
        num_heads=subject.trunk.heads,
        mlp_ratio=subject.trunk.mlp_ratio,
        init_values=subject.trunk.layer_scale,
        num_classes=0,
    )
    bare.load_state_dict(exported, strict=True)
    with torch.no_grad():
        features = bare.eval().forward_features(subject.images[:2])
        difference = float((features - method.trunk.eval().forward_features(subject.images[:2])).abs().max())
    yield judged(
        "loads in timm",
        difference <= FEATURES_AGREE,
        good=f"strictly, in plain timm; its features differ by {difference:.1g}",
        bad=f"features differ by {difference:.1g}, more than {FEATURES_AGREE:g}",
        remedy="leave export_backbone as Method has it",
    )
    missing = {"trunk.pos_embed", "trunk.cls_token"} - method.no_weight_decay()
    unknown = method.no_weight_decay() - {name for name, _ in method.named_parameters()}
    yield judged(
        "weight decay",
        not missing and not unknown,
        good=f"left out of it: {few(sorted(method.no_weight_decay()))}",
        bad=f"no_weight_decay lacks {few(sorted(missing)) or 'nothing'}, knows no {few(sorted(unknown))}",
        remedy="return super().no_weight_decay() | {names of own parameters}",
    )


def draw(subject: MethodUnderTest) -> Iterator[Finding]:
    """Patterns are a pure function of (seed, epoch, sample id)."""
    method, patches = subject.build(), subject.trunk.patches
    ids = subject.sample_ids + 2**40 * (torch.arange(subject.size) % 2)
    kept, before = ids.clone(), generator_states()
    together = method.draw(ids, 3, 1)
    consumed = consumed_generators(before)
    shape = (len(ids), patches if method.pattern_dtype == torch.bool else 1 + patches)
    is_good = (
        isinstance(together, Tensor)
        and together.dtype == method.pattern_dtype
        and tuple(together.shape) == shape
    )
    is_order = not is_good or _is_order(together)
    yield judged(
        "pattern",
        is_good and is_order,
        good=f"{_dtype(method)} of shape {shape}",
        bad=_shape(together)
        + ("" if is_order else ", no permutation of the trunk's slots, or 0 is not first"),
        remedy=f"return {_dtype(method)} of shape (B, {shape[1]}), "
        + ("True = masked" if shape[1] == patches else "an order of the trunk's slots that begins with 0"),
    )
    if not (is_good and is_order):
        raise Blocked
    yield judged(
        "draw takes no random number",
        not consumed and torch.equal(kept, ids),
        good="the global generators stand where they stood, and the sample ids too",
        bad=f"it moved {few(consumed) or 'its argument'}",
        remedy="draw from methods.patterns (keyed_hash, permutations), which hash (seed, epoch, sample id)",
    )
    with same_random_numbers(99):
        alone = torch.cat([method.draw(one[None], 3, 1) for one in ids])
        backwards = method.draw(ids.flip(0), 3, 1).flip(0)
    other_weights = subject.build(seed=SEED + 1).draw(ids, 3, 1)
    causes = {
        "the batch": not torch.equal(alone, together),
        "the order": not torch.equal(backwards, together),
        "the weights": not torch.equal(other_weights, together),
    }
    yield judged(
        "draw is pure",
        not any(causes.values()),
        good="the same alone, in another order, under other weights and other global seeds",
        bad=f"it depends on {few([cause for cause, acts in causes.items() if acts])}",
        remedy="let each row of the pattern depend on (seed, epoch, its sample id) and on nothing else",
    )
    stays = {
        "epoch": torch.equal(together, method.draw(ids, 4, 1)),
        "seed": torch.equal(together, method.draw(ids, 3, 2)),
        "image": all(torch.equal(row, together[0]) for row in together),
    }
    yield judged(
        "draw varies",
        not any(stays.values()),
        good="other epochs, seeds and images have other patterns",
        bad=f"it is the same for every {few([name for name, is_same in stays.items() if is_same])}",
        remedy="pass epoch, seed and sample ids on to methods.patterns",
    )


def output(subject: MethodUnderTest) -> Iterator[Finding]:
    """What forward returns."""
    method, pattern, out = subject.outcome
    names = ("loss", "logits", "targets")
    found = out if isinstance(out, dict) else {}
    if lacking := [name for name in names if not isinstance(found.get(name), Tensor)]:
        remedy = "return loss, logits and targets; Method._prediction makes them of rows and target tokens"
        yield failed("output", f"forward returns no tensor {few(lacking)}", remedy)
        raise Blocked
    loss, logits, targets = out["loss"], out["logits"], out["targets"]
    if not (loss.ndim == 0 and loss.dtype == torch.float32 and loss.isfinite() and loss.requires_grad):
        value = f", {loss.item():.4g}" if loss.numel() == 1 else ""
        cut = "" if loss.requires_grad else ", cut off from all weights"
        remedy = "return the mean over all predicted positions of the batch, finite, in float32, not detached"
        yield failed("loss", f"{_shape(loss)}{value}{cut}", remedy)
        raise Blocked
    words = f"a float32 scalar, {loss.item():.3f} {subject.spec.loss_unit} before training"
    yield ok("loss", words)
    rows = targets if subject.spec.uses_tokens else targets[..., 0]
    counted = method.count_targets(pattern)
    yield judged(
        "shapes",
        logits.shape[: rows.ndim] == rows.shape and rows.numel() == int(counted),
        good=f"logits {tuple(logits.shape)}, targets {tuple(targets.shape)}: as many as count_targets says",
        bad=f"logits {tuple(logits.shape)}, targets {tuple(targets.shape)}, count_targets {int(counted)}",
        remedy="give one row of logits and one target per predicted position, and count them",
    )
    if subject.spec.uses_tokens:
        is_code = targets.dtype == torch.int64 and logits.shape[-1] == subject.codebook_size
        yield judged(
            "targets",
            is_code,
            good=f"tokens, one of {subject.codebook_size:,}",
            bad=f"{targets.dtype} against {logits.shape[-1]} logits, {subject.codebook_size} codes",
            remedy="predict one of codebook_size tokens at each position: methods.base.token_head",
        )
    else:
        yield info("targets", f"from the images: {targets.shape[-1]} numbers a position, {targets.dtype}")
    given = {"images": subject.images, "tokens": subject.tokens, "pattern": pattern}
    before = {name: value.clone() for name, value in (given | method.state_dict()).items()}
    with same_random_numbers(5):
        again = method(*given.values())
    is_same = torch.equal(again["loss"], loss) and torch.equal(again["logits"], logits)
    now = given if is_same else given | method.state_dict()
    changed = [name for name, value in now.items() if not torch.equal(value, before[name])]
    yield judged(
        "forward repeats",
        is_same and not changed,
        good="the same twice, whatever the global seeds, and its arguments stay as they are",
        bad=f"it changes {few(changed)}" if changed else "its loss or logits depend on global random numbers",
        remedy="draw what is random in draw; change no argument and no weight in place",
    )
    if changed:
        raise Blocked  # what follows would be tried on other images, or with other weights
    lean = subject.build()
    lean.keeps_logits = False
    without = lean(subject.images, subject.tokens, pattern)
    difference = abs(without["loss"].item() - loss.item())
    yield judged(
        "without logits",
        difference <= 1e-5 and "logits" not in without,
        good="where keeps_logits is False they are left out, and the loss is the same",
        bad=f"the loss differs by {difference:.1g}"
        if difference > 1e-5
        else "they are returned all the same",
        remedy="leave logits out where self.keeps_logits is False: Method._prediction does",
    )


def refusals(subject: MethodUnderTest) -> Iterator[Finding]:
    """Wrong shapes and types are named, not computed with."""
    method, pattern, _ = subject.outcome
    images, tokens = subject.images, subject.tokens
    other = torch.zeros(len(images), 1 + tokens.shape[1], dtype=torch.int64)
    cases: list[tuple[str, Callable[[], Any]]] = [
        ("tokens of another width", lambda: method(images, other, pattern)),
        ("tokens of another type", lambda: method(images, tokens.int(), pattern)),
        ("a pattern of another width", lambda: method(images, tokens, pattern[:, :-1])),
        ("a pattern of another type", lambda: method(images, tokens, pattern.float())),
    ]
    if method.pattern_dtype == torch.bool:
        cases.append(
            ("a pattern that predicts nothing", lambda: method(images, tokens, torch.zeros_like(pattern)))
        )
    cases.append(
        ("weights of nothing known", lambda: method.load_reference({"no.such.weight": torch.zeros(1)}))
    )
    taken = []
    for name, call in cases:
        argument = next((one for one in ("tokens", "pattern") if f"{one} of another" in name), "")
        try:
            call()
        except ValueError as error:
            if argument not in str(error):
                taken.append(f"{name} that names it")
        except Exception as error:  # of the code under examination: any other error is the finding
            taken.append(f"{name} ({type(error).__name__})")
        else:
            taken.append(name)
    yield judged(
        "refusals",
        not taken,
        good=f"ValueError for {few([name for name, _ in cases], most=9)}",
        bad=f"no ValueError for {few(taken, most=9)}",
        remedy="call self._check first; a bool pattern without True is an error (mean_cross_entropy says so)",
    )


def hyperparameters(subject: MethodUnderTest) -> Iterator[Finding]:
    """Each has a source, and each does something."""
    declared = subject.spec.hyperparameters
    if not declared:
        yield not_applicable("hyperparameters", "it declares none")
        return
    without = [one.name for one in declared if len(one.source.split()) < 2]
    yield judged(
        "sources",
        not without,
        good=f"{few([one.name for one in declared], most=9)}: each says where its value comes from",
        bad=f"no source for {few(without)}",
        remedy="say in Hyperparameter(source=...) which paper and section, or why",
    )
    idle = [one.name for one in declared if one.name in subject.small and not _acts(subject, one)]
    yield judged(
        "hyperparameters act",
        not idle,
        good="another value of each changes patterns, weights or loss",
        bad=f"other values of {few(idle)} change nothing",
        remedy="use it, or do not declare it",
    )


def _acts(subject: MethodUnderTest, one: Hyperparameter) -> bool:
    """Whether some other value, if any can be built, changes what is drawn, built or returned."""
    method, pattern, out = subject.outcome
    tried = False
    is_group = one.name == subject.spec.group  # of which the batch has to be a multiple
    for value in [subject.size] if is_group else _others(one, subject.small[one.name]):
        try:
            other = subject.build(changes={one.name: value})
        except ValueError:
            continue
        tried = True
        drawn = subject.pattern(other)
        if not torch.equal(drawn, pattern) or not _same(method.state_dict(), other.state_dict()):
            return True
        images, tokens = subject.images, subject.tokens
        if not torch.equal(other(images, tokens, pattern)["loss"], out["loss"]):
            return True
    return not tried


def _others(one: Hyperparameter, value: Value) -> list[Value]:
    """Values beside `value`, the most careful first; none for words, whose choices are not known."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, str):
        return []
    steps: list[Value] = (
        [value + 1, value - 1, value + 3] if isinstance(value, int) else [value * 1.5 + 0.01, value / 2]
    )
    low = float("-inf") if one.low is None else one.low
    high = float("inf") if one.high is None else one.high
    return [other for other in steps if low <= float(other) <= high]


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].shape == other[name].shape and torch.equal(one[name], other[name]) for name in one
    )


def _is_order(pattern: Tensor) -> bool:
    """True for a mask, and for orders of all slots that begin with the class token's."""
    if pattern.dtype == torch.bool:
        return True
    slots = torch.arange(pattern.shape[1])
    return bool((pattern[:, 0] == 0).all()) and torch.equal(
        pattern.sort(1).values, slots.expand(len(pattern), -1)
    )


def _shape(found: Any) -> str:
    if not isinstance(found, Tensor):
        return f"no Tensor but a {type(found).__name__}"
    return f"{str(found.dtype).removeprefix('torch.')} of shape {tuple(found.shape)}"


def _dtype(method: Method) -> str:
    return str(method.pattern_dtype).removeprefix("torch.")


def few(names: list[str], *, most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


CONTRACT: tuple[Check[MethodUnderTest], ...] = (
    Check("class", builds, is_essential=True),
    Check("equal trunk", trunk),
    Check("draw", draw, is_essential=True),
    Check("output", output, is_essential=True),
    Check("refusals", refusals),
    Check("hyperparameters", hyperparameters),
)
# What a method without pre-training has to be held against.
TRUNK_ALONE: tuple[Check[MethodUnderTest], ...] = CONTRACT[:2]
