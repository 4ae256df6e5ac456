"""The tokenizer card: how a token store uses its codebook."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from protocols.errors import HarnessError

_ROWS = 65536


def tokenizer_card(tokens: NDArray[np.integer], codebook_size: int) -> dict[str, int | float]:
    """Codebook use over all patches of `tokens` (any shape; may be memory-mapped).

    used_share            share of the codes that occur at all
    dead_codes            number of codes that never occur
    perplexity            exp of the entropy of the codes' frequencies (nats): 1 to codebook_size
    commonest_1_percent   share of the patches held by the commonest 1 % of the codes (rounded up)

    Raises HarnessError for no tokens, or for ids outside the codebook.
    """
    if tokens.size == 0:
        raise HarnessError("a tokenizer card needs at least one token, got none")
    counts = np.zeros(codebook_size, dtype=np.int64)
    for block in _blocks(tokens):
        if block.min() < 0 or block.max() >= codebook_size:
            raise HarnessError(
                f"token ids run from {block.min()} to {block.max()}, outside the codebook of {codebook_size}"
            )
        counts += np.bincount(block, minlength=codebook_size)
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


def _blocks(tokens: NDArray[np.integer]) -> Iterator[NDArray[np.int64]]:
    """Flat int64 blocks, so that a memory-mapped store is never in memory as a whole."""
    flat = tokens.reshape(-1)
    for start in range(0, flat.size, _ROWS):
        yield flat[start : start + _ROWS].astype(np.int64)
