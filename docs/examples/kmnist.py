"""Kuzushiji-MNIST as its makers publish it: four .npz files, read where they lie.

Source: Clanuwat et al., Deep Learning for Classical Japanese Literature (arXiv 1812.01718).
"""

from pathlib import Path

import numpy as np

from benchmark.data_sets import DataSetSpec

CLASSES = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
FILES = tuple(f"kmnist-{split}-{what}.npz" for split in ("train", "test") for what in ("imgs", "labels"))


def read(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (n, 28, 28) and labels (n,) of a split, always in the same order."""
    arrays = []
    for what in ("imgs", "labels"):
        with np.load(folder / f"kmnist-{split}-{what}.npz", allow_pickle=False) as archive:
            arrays.append(archive["arr_0"])
    return arrays[0], arrays[1]


DATA_SETS = (
    DataSetSpec(
        name="kmnist",
        summary="Kuzushiji-MNIST: 70,000 cursive Japanese characters, 28 x 28, ten classes",
        licence="CC BY-SA 4.0, http://codh.rois.ac.jp/kmnist",
        classes=CLASSES,
        needs=FILES,
        remedy=f"put {', '.join(FILES)} of http://codh.rois.ac.jp/kmnist into {{root}}/kmnist",
        read=read,
    ),
)
