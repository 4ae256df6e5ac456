"""Frozen feature extractors: image -> one feature vector per patch. They know nothing of k-means.

Shapes: B images, N patches of one image (grid x grid, row-major), D width of a feature, S image side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from protocols.errors import HarnessError
from tokenizers.precision import exact_float32
from tokenizers.published import check_tensors, read_wanted
from tokenizers.weights_files import WantedFile


class FeatureExtractor(ABC):
    """(B, 3, S, S) in [0, 1] -> (B, N, D). `grid` = patches along one side, `width` = D.

    `weights_digest` is the SHA-256 of the file of weights, where it is known and there is one.
    """

    image_size: int
    grid: int
    width: int
    weights_digest: str | None = None
    needs_weights: bool = False

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, N, D) float32 on the CPU; an image's bytes do not depend on its batch."""

    @abstractmethod
    def to(self, device: torch.device | str) -> None:
        """Compute on `device` from now on."""

    def load_published(self, source: Path, *, accept_unknown: bool = False) -> None:
        """Take the weights in the folder or file `source`. HarnessError if missing or unsuitable."""
        raise HarnessError(f"no file of weights belongs to {type(self).__name__}, so not {source} either")


class PixelPatches(FeatureExtractor):
    """The pixels of each patch, rows then columns then channels: D = 3 x patch_size^2.

    All three channels are kept, whatever the images: those of a grey image are equal, which scales its
    squared distances by 3 and leaves every comparison as it was, and whitening drops the directions
    without variance. So grey and colour data need no flag to tell them apart.
    """

    def __init__(self, *, patch_size: int, image_size: int) -> None:
        if image_size % patch_size:
            raise HarnessError(
                f"image_size {image_size} is not a multiple of patch_size {patch_size}; change one of them"
            )
        self.image_size, self.patch_size = image_size, patch_size
        self.grid = image_size // patch_size
        self.width = 3 * patch_size**2

    def features(self, images: Tensor) -> Tensor:
        grid, side = self.grid, self.patch_size
        patches = images.float().reshape(-1, 3, grid, side, grid, side).permute(0, 2, 4, 3, 5, 1)
        return patches.reshape(-1, grid**2, self.width)

    def to(self, device: torch.device | str) -> None:
        """Nothing to move: cutting an image into patches is no computation."""


class NetworkFeatures(FeatureExtractor):
    """A map of a frozen network, read row by row. A subclass builds the network and says which map.

    Images get the network's own mean and standard deviation here. `wanted` is the file of weights that
    has to be loaded first, None where the subclass brings them.
    """

    # The network always sees blocks of this many images, the last one padded, so that the same
    # arithmetic runs whatever the batch. Of 4 to 64, 8 and 16 were the fastest on one CPU thread.
    block: ClassVar[int] = 16

    def __init__(
        self,
        network: Any,
        *,
        image_size: int,
        stride: int,
        width: int,
        mean: Sequence[float],
        std: Sequence[float],
        wanted: WantedFile | None,
    ) -> None:
        if image_size % stride:
            raise HarnessError(f"image_size {image_size} is not a multiple of the stride {stride}")
        self.image_size, self.grid, self.width = image_size, image_size // stride, width
        self.wanted, self.needs_weights = wanted, wanted is not None
        self.weights_digest = None if wanted is None else wanted.sha256
        self._network = network.requires_grad_(False).eval()
        self._mean, self._std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (mean, std))
        self._device = torch.device("cpu")

    @abstractmethod
    def _map(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, S, S) -> (B, D, grid, grid)."""

    @abstractmethod
    def _own(self, reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a published state dict holds for this network, under the network's names."""

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Take the weights of a published state dict, under its names and of any float type.

        Raises HarnessError naming the first key that is missing, unexpected, misshapen or not finite.
        """
        expected = self._network.state_dict()
        given = {name: tensor for name, tensor in self._own(state_dict).items() if not _is_count(name)}
        shapes = {name: tensor.shape for name, tensor in expected.items() if not _is_count(name)}
        check_tensors("weights of the feature network", given, shapes)
        own = {name: torch.zeros((), dtype=torch.int64) for name in expected if _is_count(name)}
        # A copy of its own: what the caller does to its tensors later must not change features.
        own |= {name: tensor.detach().to(torch.float32, copy=True) for name, tensor in given.items()}
        self._network.load_state_dict(own, strict=True, assign=True)
        self._network.requires_grad_(False).eval()
        self._network = self._network.to(self._device, memory_format=torch.channels_last)
        self.needs_weights = False

    def load_published(self, source: Path, *, accept_unknown: bool = False) -> None:
        if self.wanted is None:
            super().load_published(source)
        else:
            read = read_wanted("feature network", source, self.wanted, accept_unknown=accept_unknown)
            try:
                self.load_reference(read.tensors)
            except HarnessError as error:
                raise HarnessError(f"{read.path}: {error}") from None
            self.weights_digest = read.sha256

    def features(self, images: Tensor) -> Tensor:
        if self.needs_weights:
            raise HarnessError(
                "the feature network's weights are not loaded, so nothing can be fitted or encoded: call "
                "load_published(folder)"
            )
        blocks = [self._features_of_block(block) for block in self._padded_blocks(images)]
        if not blocks:
            return torch.empty(0, self.grid**2, self.width)
        return torch.cat(blocks)[: len(images)]

    def to(self, device: torch.device | str) -> None:
        self._device = torch.device(device)
        self._mean, self._std = self._mean.to(self._device), self._std.to(self._device)
        if not self.needs_weights:
            self._network = self._network.to(self._device)

    def _padded_blocks(self, images: Tensor) -> Iterator[Tensor]:
        for block in images.split(self.block) if len(images) else ():
            missing = self.block - len(block)
            yield torch.cat([block, block.new_zeros(missing, *block.shape[1:])]) if missing else block

    def _features_of_block(self, images: Tensor) -> Tensor:
        normalised = (images.to(self._device, torch.float32) - self._mean) / self._std
        with torch.no_grad(), exact_float32(self._device):
            map_BDhw = self._map(normalised.contiguous(memory_format=torch.channels_last))
        expected = (len(images), self.width, self.grid, self.grid)
        if map_BDhw.shape != expected:
            raise HarnessError(
                f"the feature network gives maps {tuple(map_BDhw.shape)}, not {expected}; choose another "
                "image_size, stride or model"
            )
        features_BND: Tensor = map_BDhw.flatten(2).transpose(1, 2).contiguous()
        return features_BND.cpu()


def _is_count(name: str) -> bool:
    """True for what batch normalisation counts in training, which not every file holds."""
    return name.endswith("num_batches_tracked")
