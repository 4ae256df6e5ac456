"""k-CLIP: k-means on features of CLIP's modified ResNet, the tokenizer of MaPeT (arXiv 2306.07346).

Features are layer4's output after its last ReLU and before the attention pool, so none is below 0; they
are not normalised, and tokens are L2 nearest centroids.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from protocols.errors import HarnessError
from tokenizers.kmeans import KMeansTokenizer
from tokenizers.open_clip_features import OpenClipFeatures
from tokenizers.specs import TokenizerSpec
from tokenizers.weights_files import OPENAI_RESNETS, clip_file


class ClipKMeans(KMeansTokenizer):
    """The paper's: RN50x64 at 448 pixels gives 14 x 14 features of width 4096."""

    def __init__(self, spec: TokenizerSpec, config: Mapping[str, Any]) -> None:
        model = config["model"]
        wanted = clip_file(config)
        extractor = OpenClipFeatures(model=model, image_size=config["image_size"], wanted=wanted)
        if not extractor.is_resnet:
            raise HarnessError(
                f"tokenizer {spec.name}: model {model} is none of CLIP's ResNets, such as "
                f"{', '.join(OPENAI_RESNETS)}; for another network use k-feature with open_clip/{model}"
            )
        super().__init__(spec, config, extractor=extractor)
        self.teacher = wanted.teacher(spec.teacher)
