"""The contract of a tokenizer: transform an image, encode a batch, keep and identify its weights.

Shapes: B images, N tokens of one image (grid x grid, row-major), S image side in pixels.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from protocols.errors import HarnessError
from protocols.files import write_atomically
from protocols.frozen import canonical_json, digest_of
from protocols.geometry import square_crop_box
from tokenizers.specs import TokenizerSpec

if TYPE_CHECKING:
    from tokenizers.clustering import Report

WEIGHTS_NAME = "tokenizer.safetensors"


class Tokenizer(ABC):
    """Image -> `grid` x `grid` token ids below `codebook_size`.

    A subclass is built as Class(spec, config) with every hyperparameter resolved, and sets
    `image_size` (S, pixels), `grid` (tokens along one side) and `codebook_size`.
    """

    resampling: ClassVar[Image.Resampling] = Image.Resampling.BICUBIC
    image_size: int
    grid: int
    codebook_size: int

    def __init__(self, spec: TokenizerSpec, config: Mapping[str, Any]) -> None:
        self.name = spec.name
        self.teacher = spec.teacher
        self.config = dict(config)

    @property
    def input_transform(self) -> str:
        """`transform` in words, for manifests."""
        size, how = self.image_size, self.resampling.name.lower()
        return f"centre square, {how} to {size} x {size}, RGB in [0, 1]"

    def transform(self, image: Image.Image) -> Tensor:
        """One image of any size and mode -> (3, S, S) float32 in [0, 1].

        The centre square of the original is cropped before anything is resized, as everywhere here.
        """
        square = image.convert("RGB").crop(square_crop_box(*image.size))
        resized = square.resize((self.image_size, self.image_size), self.resampling)
        pixels_HWC = torch.from_numpy(np.array(resized, dtype=np.float32))
        return pixels_HWC.permute(2, 0, 1).contiguous() / 255

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) as `transform` gives them -> (B, N) int64 on the CPU, row-major.

        An image's ids do not depend on the others in the batch. HarnessError if not fitted.
        """

    def codebook_rows(self) -> Tensor:
        """The row of every code (K, C), in the space in which the nearest row is sought.

        HarnessError if not fitted, or if tokens of this kind are not nearest rows.
        """
        raise self._no_rows()

    def distances(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, N) float64: how far each patch lies from the row of its own token.

        Euclidean, in the space of `codebook_rows`. HarnessError as there.
        """
        raise self._no_rows()

    def _no_rows(self) -> HarnessError:
        return HarnessError(
            f"tokenizer {self.name} has no codebook rows, and so no distances: its token is no nearest row "
            "but the largest of the network's outputs; --rule random needs neither"
        )

    @property
    @abstractmethod
    def is_fitted(self) -> bool:
        """True when `encode` can be called."""

    @property
    def needs_weights(self) -> bool:
        """True while a file of weights has to be loaded, by `load_published`, before anything is encoded."""
        return False

    def load_published(self, source: Path, *, accept_unknown: bool = False) -> None:
        """Load the weights file `source`, or the one in the folder `source` that the configuration names.

        The file must be the published one, or the one whose SHA-256 the configuration states, unless
        `accept_unknown`. HarnessError if it is missing, another, damaged or unsuitable, or if this
        tokenizer takes none.
        """
        raise HarnessError(f"tokenizer {self.name} takes no file of weights, so not {source} either")

    def fit(self, images: Iterable[Tensor], *, report: Report | None = None) -> None:
        """Fit on batches (B, 3, S, S), replacing an earlier fit. HarnessError if this kind is not fitted.

        `report` is told of every iteration as it ends.
        """
        raise HarnessError(f"tokenizer {self.name} is not fitted: it comes with published weights")

    def fit_encode(
        self, images: Iterable[Tensor], *, scratch: Path | None = None, report: Report | None = None
    ) -> Iterator[Tensor]:
        """Fit on `images`, then their tokens in batches (b, N): as `fit` and `encode`, in one pass.

        `scratch` is a folder for what has to be kept in between, None the system's temporary one.
        """
        raise HarnessError(f"tokenizer {self.name} is not fitted: it comes with published weights")

    def to(self, device: torch.device | str) -> Tokenizer:
        """Compute on `device` from now on; tokens still come back on the CPU. Returns self."""
        raise HarnessError(f"tokenizer {self.name} runs on the CPU only, not on {device}")

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """The tensors that `save` keeps, on the CPU. HarnessError if not fitted."""

    @abstractmethod
    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take what `weights` gave. HarnessError for a missing, unexpected or misshapen tensor."""

    def frozen_weights_digest(self) -> str | None:
        """SHA-256 of weights that were used but never fitted here, None if there are none."""
        return None

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of name, configuration and all weights: equal only for equal tokens."""
        return self._digest_with(self.weights())

    def save(self, folder: Path) -> None:
        """Keep the weights as `folder`/tokenizer.safetensors, atomically. HarnessError if not fitted."""
        weights = self.weights()
        content = save(weights, metadata={"tokenizer": self._identity_with(weights)})
        write_atomically(folder / WEIGHTS_NAME, content)

    def load(self, folder: Path) -> None:
        """Take the weights that `save` kept.

        Raises HarnessError if the file is missing or damaged, or if it was saved by another tokenizer,
        configuration or feature network.
        """
        path = folder / WEIGHTS_NAME
        if not path.is_file():
            raise HarnessError(f"{path}: no such file; fit tokenizer {self.name} and save it there first")
        try:
            with safe_open(path, framework="pt") as opened:
                saved = (opened.metadata() or {}).get("tokenizer")
                weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise HarnessError(f"{path}: damaged ({error}); fit the tokenizer again") from None
        expected = self._identity_with(weights)
        if saved != expected:
            raise HarnessError(
                f"{path} says it was saved by {saved}, but its weights in this tokenizer are {expected}; "
                "build the tokenizer that the file was saved by, or fit this one again"
            )
        self.set_weights(weights)

    def _digest_with(self, weights: Mapping[str, Tensor]) -> str:
        return digest_of(
            {
                "name": self.name,
                "config": self.config,
                "frozen": self.frozen_weights_digest(),
                "fitted": digest_of_tensors(weights),
            }
        )

    def _identity_with(self, weights: Mapping[str, Tensor]) -> str:
        return canonical_json(
            {"name": self.name, "config": self.config, "digest": self._digest_with(weights)}
        )

    def check_images(self, images: Tensor) -> None:
        """HarnessError unless `images` is a floating (B, 3, S, S)."""
        size = self.image_size
        if images.ndim != 4 or images.shape[1:] != (3, size, size) or not images.is_floating_point():
            raise HarnessError(
                f"tokenizer {self.name} takes float images (B, 3, {size}, {size}), got {images.dtype} "
                f"{tuple(images.shape)}; apply its `transform` first"
            )


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over names, types, shapes and bytes, whatever the order of the mapping."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name].cpu().numpy())
        total.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        total.update(array.tobytes())
    return total.hexdigest()
