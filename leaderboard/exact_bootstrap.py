"""The paired bootstrap of a difference of two accuracies without a resample: its distribution, computed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Further from its mean than this many standard deviations, and so many images more, the sum is never found.
_DEVIATIONS, _IMAGES = 9.0, 40
# What the transform's rounding may leave of a probability that is 0.
_ROUNDING = 1e-12


def bootstrap_quantiles(
    worse: int, better: int, images: int, probabilities: Sequence[float]
) -> NDArray[np.int64]:
    """Quantiles of (images better) - (images worse) when `images` are drawn with replacement.

    Each drawn image counts -1 with the share of `worse`, +1 with that of `better`, else 0. The sum's
    characteristic function is the n-th power of one image's; its inverse Fourier transform is the
    distribution. A quantile is the smallest sum whose cumulative probability reaches the one given.
    """
    down, up = worse / images, better / images
    deviation = np.sqrt(images * (down + up - (up - down) ** 2))
    mean = round(images * (up - down))
    # Sums are counted modulo `size`, which is wider than all that have any probability.
    half = int(_DEVIATIONS * deviation) + _IMAGES
    size = 1 << (2 * half).bit_length()
    angle = 2 * np.pi * np.arange(size // 2 + 1) / size
    one_image = 1 - down - up + down * np.exp(1j * angle) + up * np.exp(-1j * angle)
    centred = one_image**images * np.exp(1j * angle * (mean - half))
    cumulative = np.cumsum(np.fft.irfft(centred, n=size))
    places = np.searchsorted(cumulative, np.asarray(probabilities) - _ROUNDING, side="left")
    return np.asarray(np.minimum(places, size - 1) + mean - half, dtype=np.int64)
