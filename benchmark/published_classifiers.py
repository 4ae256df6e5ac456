"""The fine-tuned classifiers that a paper's authors released, and what the paper reports of each. No torch.

The list is published_classifiers.yaml. A reported number stands beside a measured one only where the same
images were measured: the same data set, as many of them, under ImageNet's own class names.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml

from protocols.frozen import Frozen, Name, NonNegativeFloat, PositiveInt

_LIST = Path(__file__).with_suffix(".yaml")


class PublishedClassifier(Frozen):
    """One file: its trunk, the tokenizer of its pre-training, and its top-1 in per cent as reported."""

    trunk: Name
    tokenizer: Name
    top1_percent: NonNegativeFloat


class Publication(Frozen):
    """The files of one paper, by name. `key` is the entry of each file that holds the classifier.

    The reported numbers are of `images` images, all of `data_set`'s test images.
    """

    source: str
    method: str
    data_set: Name
    images: PositiveInt
    key: str
    files: dict[str, PublishedClassifier]

    def top1_percent(self, file_name: str, *, trunk: str, data_set: str, images: int) -> float | None:
        """What the paper reports of a file of this name on these images; None where it says nothing."""
        known = self.files.get(file_name)
        if known is None or (known.trunk, self.data_set, self.images) != (trunk, data_set, images):
            return None
        return known.top1_percent


@cache
def publication() -> Publication:
    """The paper's list."""
    return Publication.model_validate(yaml.safe_load(_LIST.read_text(encoding="utf-8")))
