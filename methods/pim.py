"""PIM: predict patches one after the other in a random order, from those before them alone.

Source: XLNet's two-stream attention (arXiv 1906.08237, section 2.3) on image patches, as the ablation
of arXiv 2306.07346. It has no public reference implementation; its tests hold it to its definition.
"""

from __future__ import annotations

from methods.two_stream import PermutedPrediction


class PermutedImageModelling(PermutedPrediction):
    """Rows see the context and earlier targets; of later ones they know nothing, not even positions."""

    has_mask_tokens = False
