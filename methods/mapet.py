"""MaPeT (arXiv 2306.07346): PIM plus mask tokens at the positions of all that is not yet seen.

Every row sees exactly 1 + N slots, by content or by position, as it will in fine-tuning.
"""

from __future__ import annotations

from methods.two_stream import PermutedPrediction


class MaskedAndPermutedTransformer(PermutedPrediction):
    """Rows see the context, earlier targets, and the position of every later one."""

    has_mask_tokens = True
