"""A tokenizer against its contract, on the first pre-training images of a protocol.

Shapes: B images, N tokens of one image (grid x grid, row-major), S image side in pixels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmark.commands.text import count
from benchmark.conformance import Blocked, Check, Finding, failed, info, judged, not_applicable
from benchmark.conformance_method import consumed_generators, generator_states, same_random_numbers
from benchmark.image_part import ImagePart
from benchmark.inputs import weights_folder
from protocols.errors import HarnessError
from protocols.hyperparameters import Value
from protocols.schema import Protocol
from tokenizers import build_tokenizer
from tokenizers.base import Tokenizer
from tokenizers.card import batch_agreement, tokenizer_card
from tokenizers.kmeans import KMeansTokenizer
from tokenizers.specs import TokenizerSpec

IMAGES = 96
MOST_CODES = 65536  # a token store holds 16 bits
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class TokenizerUnderTest:
    """`config` is resolved; `part` are the images that a run would fit it on."""

    spec: TokenizerSpec
    config: Mapping[str, Value]
    protocol: Protocol
    part: ImagePart
    data_root: Path | None = None

    @property
    def name(self) -> str:
        """The tokenizer's."""
        return self.spec.name

    @property
    def files(self) -> tuple[Path, ...]:
        """Its own sources; an absolute path stays as it is."""
        return tuple(ROOT / name for name in self.spec.sources)

    @cached_property
    def pictures(self) -> list[Image.Image]:
        """The first images, as stored."""
        return [self.part.image(position) for position in range(min(IMAGES, len(self.part)))]

    def build(self) -> Tokenizer:
        """A fresh one, with its published weights where it has some, not yet fitted."""
        tokenizer = build_tokenizer(self.name, **self.config)
        if tokenizer.needs_weights:
            tokenizer.load_published(weights_folder(self.data_root))
        return tokenizer

    def images(self, tokenizer: Tokenizer) -> Tensor:
        """(B, 3, S, S)"""
        return torch.stack([tokenizer.transform(picture) for picture in self.pictures])

    def ready(self) -> Tokenizer:
        """A fresh one that can encode."""
        tokenizer = self.build()
        if not tokenizer.is_fitted:
            tokenizer.fit(self.images(tokenizer).split(40))
        return tokenizer

    @cached_property
    def outcome(self) -> tuple[Tokenizer, Tensor, Tensor]:
        """One that can encode, the images and their tokens."""
        tokenizer = self.ready()
        images = self.images(tokenizer)
        return tokenizer, images, tokenizer.encode(images)


def builds(subject: TokenizerUnderTest) -> Iterator[Finding]:
    """A Tokenizer that a run can make ready."""
    tokenizer = subject.build()
    is_tokenizer = isinstance(tokenizer, Tokenizer)
    yield judged(
        "class",
        is_tokenizer,
        good=f"{type(tokenizer).__name__} is a tokenizers.base.Tokenizer",
        bad=f"{type(tokenizer).__name__} is no tokenizers.base.Tokenizer",
        remedy="inherit from tokenizers.base.Tokenizer, or from tokenizers.kmeans.KMeansTokenizer",
    )
    if not is_tokenizer:
        raise Blocked
    can_be_made = tokenizer.is_fitted or isinstance(tokenizer, KMeansTokenizer)
    yield judged(
        "is made ready",
        can_be_made,
        good="needs no fit" if tokenizer.is_fitted else "a run fits its k-means on the pre-training images",
        bad="it is not fitted when it is built, and a run fits none but those of KMeansTokenizer",
        remedy="inherit from tokenizers.kmeans.KMeansTokenizer with a feature extractor of your own",
    )
    patches = {
        name: subject.protocol.trunk_spec(name, drop_path=0.0).patches for name in subject.protocol.trunks
    }
    known = ", ".join(f"{name} {number}" for name, number in patches.items())
    fits = [name for name, number in patches.items() if number == tokenizer.grid**2]
    yield judged(
        "grid",
        bool(fits),
        good=f"{tokenizer.grid} x {tokenizer.grid} tokens, one for each patch of {', '.join(fits)}",
        bad=f"{tokenizer.grid} x {tokenizer.grid} tokens, and no trunk of {subject.protocol.name} has as "
        f"many patches ({known})",
        remedy="choose image_size and patch_size so that each trunk patch has its token",
    )
    yield judged(
        "codebook",
        2 <= tokenizer.codebook_size <= MOST_CODES
        and tokenizer.codebook_size == int(subject.config.get("codebook_size", tokenizer.codebook_size)),
        good=f"{tokenizer.codebook_size:,} codes",
        bad=f"{tokenizer.codebook_size:,} codes, configured {subject.config.get('codebook_size', 'nothing')}",
        remedy=f"set codebook_size, from 2 to {MOST_CODES:,}; where a hyperparameter is called so, to it",
    )


def transform(subject: TokenizerUnderTest) -> Iterator[Finding]:
    """One image becomes (3, S, S) in [0, 1], whatever its size and mode."""
    tokenizer = subject.build()
    size, wrong = tokenizer.image_size, list[str]()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    for mode in ("RGB", "L", "RGBA", "P"):
        image = tokenizer.transform(picture.convert(mode))
        if tuple(image.shape) != (3, size, size) or image.dtype != torch.float32:
            wrong.append(f"{mode}: {image.dtype} {tuple(image.shape)}")
        elif image.min() < 0 or image.max() > 1:
            wrong.append(f"{mode}: from {float(image.min()):.2f} to {float(image.max()):.2f}")
    yield judged(
        "transform",
        not wrong,
        good=f"{tokenizer.input_transform}",
        bad="; ".join(wrong),
        remedy="leave transform as Tokenizer has it: other statistics belong into encode",
    )
    square = picture.crop((10, 0, 50, 40))
    same = torch.equal(tokenizer.transform(picture), tokenizer.transform(square))
    yield judged(
        "geometry",
        same,
        good="the centred square alone counts, as in pre-training",
        bad="what lies outside of the centred square changes the image",
        remedy="crop protocols.geometry.square_crop_box first, then resize: tokens lie on trunk patches",
    )


def tokens(subject: TokenizerUnderTest) -> Iterator[Finding]:
    """Encoding: one code per patch, of each image for itself."""
    unfitted = subject.build()
    if not unfitted.is_fitted:
        try:
            unfitted.encode(subject.images(unfitted)[:1])
        except HarnessError:
            pass
        else:
            yield failed(
                "unfitted", "it encodes before it is fitted", "raise HarnessError in encode until then"
            )
    before = generator_states()
    tokenizer, images, found = subject.outcome
    kept = images.clone()
    shape = (len(images), tokenizer.grid**2)
    if not isinstance(found, Tensor):
        yield failed("tokens", f"encode returns a {type(found).__name__}", f"return a Tensor, int64 {shape}")
        raise Blocked
    is_good = found.dtype == torch.int64 and tuple(found.shape) == shape and found.device.type == "cpu"
    spread = f", from {int(found.min())} to {int(found.max())}" if found.numel() else ""
    in_range = is_good and int(found.min()) >= 0 and int(found.max()) < tokenizer.codebook_size
    yield judged(
        "tokens",
        in_range,
        good=f"int64 {shape}{spread}",
        bad=f"{found.dtype} {tuple(found.shape)} on {found.device}{spread}",
        remedy="return int64 (B, grid x grid) on the CPU, each at least 0 and below codebook_size",
    )
    if not in_range:
        raise Blocked
    with same_random_numbers(7):
        alone = torch.cat([tokenizer.encode(one) for one in images[:8].split(1)])
        backwards = tokenizer.encode(images.flip(0)).flip(0)
        again = tokenizer.encode(images)
    causes = {
        "the batch": not torch.equal(alone, found[:8]),
        "the order": not torch.equal(backwards, found),
        "the call": not torch.equal(again, found),
    }
    blame = [cause for cause, acts in causes.items() if acts]
    consumed = consumed_generators(before)
    yield judged(
        "independence",
        not blame and torch.equal(kept, images),
        good="an image's tokens are the same alone, in another order and a second time",
        bad=f"tokens depend on {', '.join(blame)}" if blame else "encode changes its images",
        remedy="let an image's tokens depend on its own pixels alone: a network in eval(), say",
    )
    yield judged(
        "no random numbers",
        not consumed,
        good="fitting and encoding move no global generator",
        bad=f"fitting or encoding moves {', '.join(consumed)}",
        remedy="draw from a generator of your own, seeded by a hyperparameter",
    )
    local = _moved_where(tokenizer, images, found)
    yield info("reach", local)
    card = tokenizer_card(found.numpy(), tokenizer.codebook_size)
    used = round(card["used_share"] * tokenizer.codebook_size)
    yield judged(
        "use",
        used > 1,
        good=f"{used} of {tokenizer.codebook_size} codes on {len(images)} images, perplexity "
        f"{card['perplexity']:.1f}; the commonest 1 % hold {100 * card['commonest_1_percent']:.0f} %",
        bad="every patch has the same code",
        remedy="a constant is nothing to predict: look at the features",
    )
    rate = batch_agreement(tokenizer, images).images_per_second
    yield info("rate", f"{rate:,.0f} images/s on {count(torch.get_num_threads(), 'thread')}")


def keeps(subject: TokenizerUnderTest) -> Iterator[Finding]:
    """Its identity: fitted twice it is the same; saved and loaded too; another configuration is another."""
    tokenizer, images, found = subject.outcome
    again = subject.ready()
    yield judged(
        "repeats",
        again.digest == tokenizer.digest and torch.equal(again.encode(images), found),
        good=f"made a second time it is the same, digest {tokenizer.digest[:12]}",
        bad=f"made a second time it is another: {again.digest[:12]} after {tokenizer.digest[:12]}",
        remedy="seed all that fitting draws by a hyperparameter",
    )
    with tempfile.TemporaryDirectory() as name:
        tokenizer.save(Path(name))
        loaded = subject.build()
        loaded.load(Path(name))
    yield judged(
        "saved and loaded",
        loaded.digest == tokenizer.digest and torch.equal(loaded.encode(images), found),
        good="from its file it is the same, digest and tokens",
        bad="from its file it is another",
        remedy="give in weights() all that encode needs and take it in set_weights()",
    )


def sources(subject: TokenizerUnderTest) -> Iterator[Finding]:
    """What it says of itself."""
    declared = subject.spec.hyperparameters
    without = [one.name for one in declared if len(one.source.split()) < 2]
    if not declared:
        yield not_applicable("sources", "it declares no hyperparameters")
    else:
        yield judged(
            "sources",
            not without,
            good=f"each of {len(declared)} hyperparameters says where its value comes from",
            bad=f"no source for {', '.join(without)}",
            remedy="say in Hyperparameter(source=...) which paper and section, or why",
        )
    yield info("teacher", f"{subject.spec.teacher}: what labels may be in its features stands on every board")


def _moved_where(tokenizer: Tokenizer, images: Tensor, found: Tensor) -> str:
    """Whether a token sees more than its patch: one corner changes, and some tokens follow."""
    side = tokenizer.image_size // tokenizer.grid
    changed = images.clone()
    changed[:, :, :side, :side] = 1 - changed[:, :, :side, :side]
    moved = (tokenizer.encode(changed) != found).any(0)
    if not moved.any():
        return "turning the first patch to its negative changes no token: codes may not mind the sign"
    far = int(moved.sum())
    return (
        "a token depends on its own patch alone"
        if far == 1 and bool(moved[0])
        else f"a token depends on more than its patch: the first patch reaches {far} of {len(moved)} tokens"
    )


TOKENIZER: tuple[Check[TokenizerUnderTest], ...] = (
    Check("class", builds, is_essential=True),
    Check("transform", transform),
    Check("tokens", tokens, is_essential=True),
    Check("identity", keeps),
    Check("sources", sources),
)
