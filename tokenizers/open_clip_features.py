"""Features of an image tower of open_clip's: a ResNet's last map, or a ViT's patch tokens.

Only the tower is built, without what pools its map, and on torch's meta device until weights are loaded.

Shapes: B images, D channels of the map.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import open_clip
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.model import _build_vision_tower
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import Tensor

from protocols.errors import HarnessError, unknown
from tokenizers.features import NetworkFeatures
from tokenizers.weights_files import WantedFile

_RESNET_STRIDE = 32
_RESNET_EXPANSION = 32  # channels of layer4 per channel of the stem
_TOWER = "visual."
_POOLING = ("attnpool.", "attn_pool", "proj")


class OpenClipFeatures(NetworkFeatures):
    """`model` is NAME or NAME/TAG, as open_clip lists networks and their published weights.

    CLIP's modified ResNets: the output of layer4 after its last ReLU and before the attention pool, not
    normalised. ViTs: the patch tokens of the last block as they enter the pooling, so after the final norm
    where that comes first. Of the state dict `visual.*` is used, all of it but the pooling. TAG settles
    mean, standard deviation and activation where NAME's published weights differ in them.
    """

    def __init__(self, *, model: str, image_size: int, wanted: WantedFile | None) -> None:
        name, _, tag = model.partition("/")
        # Of other names open_clip would read a local folder, or ask a server on the network.
        if name not in open_clip.list_models():
            raise unknown("open_clip network", name, open_clip.list_models())
        config: Any = open_clip.get_model_config(name)
        vision = config["vision_cfg"]
        if vision.get("timm_model_name"):
            raise HarnessError(
                f"open_clip network {name} is timm's {vision['timm_model_name']}: give timm/NAME as model"
            )
        mean, std, quick_gelu = _pretrained(name, tag, config)
        with torch.device("meta"):
            tower: Any = _build_vision_tower(config["embed_dim"], vision, quick_gelu=quick_gelu)
        self._norm_first = False
        if isinstance(tower, ModifiedResNet):
            stride, width = _RESNET_STRIDE, tower.conv3.out_channels * _RESNET_EXPANSION
            tower.attnpool = None
        elif isinstance(tower, VisionTransformer):
            stride, width = tower.patch_size[0], tower.conv1.out_channels
            if image_size != tower.image_size[0]:
                raise HarnessError(
                    f"open_clip network {name} has positions for images of size {tower.image_size[0]}, not "
                    f"{image_size}; set image_size so"
                )
            attends_alone = tower.attn_pool is not None and tower.attn_pool_contrastive is None
            self._norm_first = not tower.final_ln_after_pool and not attends_alone
            if not self._norm_first:
                tower.ln_post = None
            tower.proj = tower.attn_pool = tower.attn_pool_contrastive = None
        else:
            raise HarnessError(f"open_clip network {name}: no features are read from {type(tower).__name__}")
        super().__init__(
            tower, image_size=image_size, stride=stride, width=width, mean=mean, std=std, wanted=wanted
        )

    @property
    def is_resnet(self) -> bool:
        """True for CLIP's modified ResNets."""
        return isinstance(self._network, ModifiedResNet)

    def _own(self, reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
        pooling = _POOLING if self.is_resnet or self._norm_first else (*_POOLING, "ln_post.")
        tower = {
            name.removeprefix(_TOWER): tensor for name, tensor in reference.items() if name.startswith(_TOWER)
        }
        return {name: tensor for name, tensor in tower.items() if not name.startswith(pooling)}

    def _map(self, images: Tensor) -> Tensor:
        # Of a ResNet the parts are stem and layers, of a ViT the blocks: the last one either way.
        found = self._network.forward_intermediates(
            images, indices=1, normalize_intermediates=self._norm_first, intermediates_only=True
        )
        map_BDhw: Tensor = found["image_intermediates"][0]
        return map_BDhw


def _pretrained(
    name: str, tag: str, config: Mapping[str, Any]
) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    """Mean, standard deviation, and whether GELU is the quick one, for all published weights of NAME, or for
    those of TAG. HarnessError where they differ, or for an unknown tag."""
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag and tag not in tags:
        raise unknown(f"pretrained tag of open_clip network {name}", tag, tags)
    of_config = bool(config.get("quick_gelu", False))
    is_resnet = not isinstance(config["vision_cfg"]["layers"], int)
    found = {}
    for one in [tag] if tag else tags:
        stated = open_clip.get_pretrained_cfg(name, one)
        mean = tuple(stated.get("mean") or OPENAI_DATASET_MEAN)
        std = tuple(stated.get("std") or OPENAI_DATASET_STD)
        # The ResNets' towers have ReLU alone.
        quick = of_config or (not is_resnet and bool(stated.get("quick_gelu", False)))
        found[mean, std, quick] = one
    if len(found) > 1:
        raise HarnessError(
            f"the published weights of open_clip network {name} differ in statistics or activation: give "
            f"open_clip/{name}/TAG with one of {', '.join(tags)}"
        )
    return next(iter(found), (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, of_config))
