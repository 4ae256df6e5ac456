"""What each prediction of an objective sees, found out by disturbing the inputs of the objective's own code.

Nothing is derived here: a method draws its pattern, tells by its targets which patches it predicts, and what
moves the logits of a prediction is what that prediction sees. The attention masks are those of the calls
that two_stream.py makes. None of it depends on the trunk's size or weights: a small one on the same grid
serves.

Legend: N patches, K predictions, R rows and S keys of an attention.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode

from leaderboard.figure_patterns import AttentionRule, Seen, attention_figure, objectives_figure
from leaderboard.pattern_sheets import Kind, PatternFacts, shown_slices, write_pattern
from leaderboard.sections import Figure
from methods import build_method, method_spec
from methods.base import Method
from methods.two_stream import PermutedPrediction
from protocols.errors import HarnessError
from protocols.schema import Protocol, TrunkSpec

EPOCH = 0
# Layer scale 1: an input that is seen moves the logits plainly, far above float64's rounding.
WIDTH, DEPTH, HEADS, LAYER_SCALE = 32, 2, 2, 1.0
LEAST_CHANGE = 1e-9
BATCH = 32
# Sizes of a part of a method, which follow the trunk's unless set.
_SIZES = {"decoder_width", "decoder_heads"}


def draw_patterns(
    protocol: Protocol,
    *,
    trunk: str,
    pixels: NDArray[np.uint8],
    image_id: str,
    sample_id: int,
    seed: int,
    folder: Path,
) -> list[Path]:
    """Draw the objectives of `protocol` on the image `pixels` (3, S, S) and write the pictures; their paths.

    `sample_id` is the image's position in its split, by which patterns are drawn.
    """
    seen: list[Seen] = []
    rules: list[AttentionRule] = []
    for name in shown_methods(protocol):
        method = small_method(protocol, name, trunk)
        seen.append(observe(name, method, sample_id=sample_id, seed=seed))
        rule = attention_rule(name, method, sample_id=sample_id, seed=seed)
        if rule is not None:
            rules.append(rule)
    if not seen:
        raise HarnessError(f"no method of protocol {protocol.name} is pre-trained: there is nothing to draw")
    grid = protocol.trunk_spec(trunk, drop_path=0.0).grid
    drawn: list[tuple[Kind, Figure, tuple[str, ...]]] = [
        (
            "objectives",
            objectives_figure(seen, pixels, grid=grid, image_id=image_id, seed=seed),
            tuple(one.method for one in seen),
        )
    ]
    if rules:
        drawn.append(("attention", attention_figure(rules), tuple(rule.method for rule in rules)))
    paths: list[Path] = []
    for kind, figure, methods in drawn:
        slices = protocol.slices
        facts = PatternFacts(
            kind=kind,
            protocol=protocol.name,
            protocol_version=protocol.version,
            protocol_digest=protocol.digest,
            slices={name: slices[name] for name in shown_slices(protocol, methods, trunk)},
            sources={name: method_spec(name).source_digest for name in methods},
            trunk=trunk,
            data_set=protocol.data.name,
            image_id=image_id,
            sample_id=sample_id,
            epoch=EPOCH,
            seed=seed,
            picture_sha256=hashlib.sha256(figure.png).hexdigest(),
            alt_text=figure.alt,
            caption=figure.caption,
        )
        paths += write_pattern(folder, facts, figure)
    return paths


def shown_methods(protocol: Protocol) -> tuple[str, ...]:
    """The default methods of `protocol` that have an objective, in its order."""
    chosen = protocol.defaults.methods
    return tuple(name for name in protocol.names("methods") if name in chosen and method_spec(name).pretrains)


def small_method(protocol: Protocol, name: str, trunk: str) -> Method:
    """The method as the protocol sets it for `trunk`, on a small trunk with the same patches, in float64.

    It has as many codes as there are patches, so that a patch's token can be its number.
    """
    spec = protocol.trunk_spec(trunk, drop_path=0.0)
    small = TrunkSpec(
        image_size=spec.image_size,
        patch_size=spec.patch_size,
        width=WIDTH,
        depth=DEPTH,
        heads=HEADS,
        layer_scale=LAYER_SCALE,
    )
    given = protocol.method_values(name, trunk)
    values = {key: value for key, value in given.items() if key not in _SIZES}
    method = build_method(name, trunk=small, codebook_size=max(2, small.patches), seed=0, **values)
    return method.double().eval()


def observe(name: str, method: Method, *, sample_id: int, seed: int) -> Seen:
    """What every prediction of `method` sees under the pattern of this image in the first epoch."""
    patches, side = method.trunk_spec.patches, method.trunk_spec.image_size
    pattern = method.draw(torch.tensor([sample_id]), EPOCH, seed)
    tokens = torch.arange(patches)[None]
    generator = torch.Generator().manual_seed(0)
    images, noise = torch.randn(2, 3, side, side, generator=generator, dtype=torch.float64)[:, None]

    @torch.no_grad()
    def logits(images: Tensor) -> Tensor:
        """(B, K, V): methods with masks give their rows image by image."""
        count = len(images)
        out = method(images, tokens.expand(count, -1), pattern.expand(count, -1))
        return out["logits"].reshape(count, -1, method.codebook_size)

    with torch.no_grad():
        predicted = method(images, tokens, pattern)["targets"].flatten()  # (K,) numbers of patches
    base = logits(images)
    content = torch.cat(
        [
            _moved(logits(_disturbed(images, noise, part, method)), base)
            for part in torch.arange(patches).split(BATCH)
        ]
    )
    position = torch.cat(
        [_moved(_elsewhere(method, patch, logits, images), base) for patch in range(patches)]
    )
    return Seen(
        method=name,
        predicted=predicted.numpy(),
        content=content.T.numpy(),
        position=position.T.numpy(),
    )


def _moved(logits: Tensor, base: Tensor) -> Tensor:
    """(B, K) bool: which predictions are not as they were."""
    return (logits - base).abs().amax(dim=-1) > LEAST_CHANGE


def _disturbed(images: Tensor, noise: Tensor, patches: Tensor, method: Method) -> Tensor:
    """(B, 3, S, S): in the b-th copy of the image, patch `patches[b]` holds noise."""
    grid, size = method.trunk_spec.grid, method.trunk_spec.patch_size
    copies = images.repeat(len(patches), 1, 1, 1)
    for copy, patch in zip(copies, patches.tolist(), strict=True):
        row, column = patch // grid * size, patch % grid * size
        copy[:, row : row + size, column : column + size] = noise[
            0, :, row : row + size, column : column + size
        ]
    return copies


def _elsewhere(method: Method, patch: int, logits: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The logits (1, K, V) if every table of positions had another vector for `patch`."""
    tables = _position_tables(method)
    kept = [
        table.data[:, slot].clone() for table, slot in ((one, _slot(one, patch, method)) for one in tables)
    ]
    generator = torch.Generator().manual_seed(1 + patch)
    for table in tables:
        slot = _slot(table, patch, method)
        table.data[:, slot] += torch.randn(table.shape[-1], generator=generator, dtype=torch.float64)
    try:
        return logits(images)
    finally:
        for table, vector in zip(tables, kept, strict=True):
            table.data[:, _slot(table, patch, method)] = vector


def _position_tables(method: Method) -> list[Tensor]:
    """All that has one vector for each patch, (1, N, D), or for each slot, (1, 1 + N, D)."""
    patches = method.trunk_spec.patches
    return [
        one
        for one in (*method.parameters(), *method.buffers())
        if one.ndim == 3 and one.shape[0] == 1 and one.shape[1] in (patches, 1 + patches)
    ]


def _slot(table: Tensor, patch: int, method: Method) -> int:
    """Where a patch stands in a table: after the class token, where that has a slot."""
    return patch + table.shape[1] - method.trunk_spec.patches


class _AttentionCalls(TorchFunctionMode):
    """Keeps queries, keys and masks of every call of torch's attention while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            self.calls.append((args[0], args[1], kwargs.get("attn_mask")))
        return func(*args, **kwargs)


def attention_rule(name: str, method: Method, *, sample_id: int, seed: int) -> AttentionRule | None:
    """The attention of a block of a two-stream method as its forward pass asks for it; None of others."""
    if not isinstance(method, PermutedPrediction):
        return None
    spec = method.trunk_spec
    pattern = method.draw(torch.tensor([sample_id]), EPOCH, seed)
    images = torch.zeros(1, 3, spec.image_size, spec.image_size, dtype=torch.float64)
    with torch.no_grad(), _AttentionCalls() as seen:
        method(images, torch.zeros(1, spec.patches, dtype=torch.int64), pattern)
    targets = method.targets
    masks = targets if method.has_mask_tokens else 0
    segments = {"context": method.cutting_point, "mask tokens": masks, "content stream": targets}
    keys = {"context": method.cutting_point, "mask tokens": masks, "targets": targets}
    return AttentionRule(
        method=name,
        sees=_stacked(seen.calls, rows=sum(segments.values()) + targets),
        rows=tuple((part, count) for part, count in {**segments, "query stream": targets}.items() if count),
        keys=tuple((part, count) for part, count in keys.items() if count),
    )


def _stacked(calls: list[tuple[Tensor, Tensor, Tensor | None]], *, rows: int) -> NDArray[np.bool_]:
    """(R, S) bool of the first block, whose calls follow each other until they have covered all its rows."""
    parts: list[Tensor] = []
    first_keys: Tensor | None = None
    widest = max(key.shape[-2] for _, key, _ in calls)
    for query, key, mask in calls:
        if sum(len(part) for part in parts) == rows:
            break
        # A call on fewer keys must be on the first of them, or columns would not mean the same.
        if first_keys is not None:
            shared = min(first_keys.shape[-2], key.shape[-2])
            if not torch.equal(first_keys[..., :shared, :], key[..., :shared, :]):
                raise AssertionError("the calls of one block attend to different keys")
        first_keys = key if first_keys is None else first_keys
        sees = torch.zeros(query.shape[-2], widest, dtype=torch.bool)
        sees[:, : key.shape[-2]] = True if mask is None else mask
        parts.append(sees)
    stacked = torch.cat(parts)
    if len(stacked) != rows:
        raise AssertionError(f"the first block has {len(stacked)} rows of attention, not {rows}")
    return stacked.numpy()
