"""Do image files give the pixels here that they give under the pins? Fixed probe images, decoded. No torch.

Pillow and libjpeg come in variants that round differently, and published accuracies have moved by points with
them. `probe_images` holds one small file for each path through the decoders; `digests.json` beside them says
what came out of each where it was made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import features

from benchmark.image_files import DamagedImage, decoded
from benchmark.image_part import square_pixels
from protocols.errors import HarnessError
from protocols.files import sha256_of_file
from protocols.frozen import digest_of

FOLDER = Path(__file__).parent / "probe_images"
DIGESTS_NAME = "digests.json"
SIZE = 224  # what the paper's models see
REFUSED = "refused"  # stands for pixels where the harness does not take such a file
NO_CODEC = "no codec"


@dataclass(frozen=True)
class Pixels:
    """SHA-256 over an image's pixels as RGB, and over its square of 224 x 224."""

    decoded: str
    square: str


@dataclass(frozen=True)
class Expected:
    """What `digests.json` says: the decoders that it was made with, and by file the bytes and the pixels."""

    made_with: Mapping[str, str]
    files: Mapping[str, str]
    pixels: Mapping[str, Pixels]


@cache
def decode_digest() -> str:
    """SHA-256 over the decoded pixels of all probe images: two environments with the same one decode alike.

    HarnessError if a probe image is not the file that it was: what it decodes to says nothing then.
    """
    listed = expected()
    check_files(listed)
    return digest_over(found(listed), "decoded")


def expected() -> Expected:
    """HarnessError if the list is missing or damaged."""
    path = FOLDER / DIGESTS_NAME
    try:
        listed = json.loads(path.read_bytes())
        return Expected(
            made_with=dict(listed["made_with"]),
            files={name: str(of["file"]) for name, of in listed["images"].items()},
            pixels={name: Pixels(of["decoded"], of["square"]) for name, of in listed["images"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise HarnessError(
            f"{DIGESTS_NAME} of the probe images is missing or damaged; {_remedy(DIGESTS_NAME)}"
        ) from None


def check_files(listed: Expected) -> None:
    """HarnessError unless every probe image has the bytes that are listed."""
    for name, digest in listed.files.items():
        path = FOLDER / name
        if not path.is_file():
            raise HarnessError(f"probe image {name} is missing from the checkout; {_remedy(name)}")
        if sha256_of_file(path) != digest:
            raise HarnessError(f"probe image {name} is damaged (its SHA-256 differs); {_remedy(name)}")


def found(listed: Expected) -> dict[str, Pixels]:
    """What each probe image gives here, through the decoder and the geometry that training reads with."""
    return {name: _pixels(FOLDER / name) for name in listed.files}


def digest_over(pixels: Mapping[str, Pixels], what: str) -> str:
    """One digest over `decoded` or `square` of all images."""
    return digest_of({name: getattr(pixels[name], what) for name in sorted(pixels)})


def _pixels(path: Path) -> Pixels:
    if path.suffix == ".webp" and not features.check("webp"):
        return Pixels(NO_CODEC, NO_CODEC)
    try:
        image = decoded(path, image_id=path.name)
    except DamagedImage:
        return Pixels(REFUSED, REFUSED)
    plain = image.convert("RGB")
    size = f"{plain.width}x{plain.height} "
    return Pixels(
        decoded=hashlib.sha256(size.encode() + plain.tobytes()).hexdigest(),
        square=hashlib.sha256(square_pixels(image, SIZE).tobytes()).hexdigest(),
    )


def _remedy(name: str) -> str:
    return f"restore it with git checkout benchmark/{FOLDER.name}/{name}"
