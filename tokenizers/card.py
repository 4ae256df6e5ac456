"""The tokenizer card: how a token store uses its codebook."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from protocols.errors import HarnessError

if TYPE_CHECKING:
    from torch import Tensor

    from tokenizers.base import Tokenizer

TOGETHER, ALONE = 64, 8
_ROWS = 65536


def tokenizer_card(tokens: NDArray[np.integer], codebook_size: int) -> dict[str, int | float]:
    """Codebook use over all patches of `tokens` (any shape; may be memory-mapped).

    used_share            share of the codes that occur at all
    dead_codes            number of codes that never occur
    perplexity            exp of the entropy of the codes' frequencies (nats): 1 to codebook_size
    commonest_1_percent   share of the patches held by the commonest 1 % of the codes (rounded up)

    Raises HarnessError for no tokens, or for ids outside the codebook.
    """
    return card_of_counts(code_counts(tokens, codebook_size))


def code_counts(tokens: NDArray[np.integer], codebook_size: int) -> NDArray[np.int64]:
    """How often each code occurs, (codebook_size,). HarnessError for ids outside the codebook."""
    counts = np.zeros(codebook_size, dtype=np.int64)
    for block in _blocks(tokens):
        if block.min() < 0 or block.max() >= codebook_size:
            raise HarnessError(
                f"token ids run from {block.min()} to {block.max()}, outside the codebook of {codebook_size}"
            )
        counts += np.bincount(block, minlength=codebook_size)
    return counts


def card_of_counts(counts: NDArray[np.int64]) -> dict[str, int | float]:
    """`tokenizer_card` of tokens whose `code_counts` these are. HarnessError if there are none."""
    if counts.sum() == 0:
        raise HarnessError("a tokenizer card needs at least one token, got none")
    codebook_size = len(counts)
    shares = counts / counts.sum()
    used = shares[shares > 0]
    commonest = np.sort(shares)[::-1][: math.ceil(codebook_size / 100)]
    return {
        "codebook_size": codebook_size,
        "patches": int(counts.sum()),
        "used_share": len(used) / codebook_size,
        "dead_codes": codebook_size - len(used),
        "perplexity": float(np.exp(-(used * np.log(used)).sum())),
        "commonest_1_percent": float(commonest.sum()),
    }


@dataclass(frozen=True, kw_only=True)
class BatchAgreement:
    """What encoding the same images at two batch sizes showed.

    percent             of the tokens of `images` images, those that are the same; 100 only if every one is
    images_per_second   at the larger size: encoding alone, without reading and transforming
    """

    percent: float
    images: int
    images_per_second: float


def batch_agreement(tokenizer: Tokenizer, images: Tensor, *, alone: int = ALONE) -> BatchAgreement:
    """Encode `images` (n, 3, S, S) by 64, and `alone` of them, evenly chosen, one by one; compare the tokens.

    Few are encoded alone, since a network that always sees whole blocks takes a block's time for each.
    Raises HarnessError for no images, or if the tokenizer is not fitted.
    """
    if not len(images):
        raise HarnessError("batch agreement needs at least one image, got none")
    chosen = np.unique(np.linspace(0, len(images) - 1, alone).astype(int))
    one_by_one = np.concatenate([tokenizer.encode(images[[position]]).numpy() for position in chosen])
    # Timed second: what the first call of a network costs is no rate.
    started = time.perf_counter()
    together = np.concatenate([tokenizer.encode(batch).numpy() for batch in images.split(TOGETHER)])
    seconds = time.perf_counter() - started
    return BatchAgreement(
        percent=100 * int((one_by_one == together[chosen]).sum()) / one_by_one.size,
        images=len(chosen),
        images_per_second=len(images) / seconds,
    )


def _blocks(tokens: NDArray[np.integer]) -> Iterator[NDArray[np.int64]]:
    """Flat int64 blocks, so that a memory-mapped store is never in memory as a whole."""
    flat = tokens.reshape(-1)
    for start in range(0, flat.size, _ROWS):
        yield flat[start : start + _ROWS].astype(np.int64)
