"""Image files that would fill the memory, run a program, or are none: each is named, and nothing happens."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from benchmark import image_files
from benchmark.image_files import DamagedImage, decoded
from tests.untrusted.watching import nothing_escapes, refused_shortly


def _png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    parts = (header, *chunks, (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""))
    made = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    )
    return b"\x89PNG\r\n\x1a\n" + made


def _swollen(size: int) -> bytes:
    return zlib.compress(bytes(size), 9)


def _saved(kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, kind, **options)
    return stream.getvalue()


def _jpeg_of(width: int, height: int) -> bytes:
    whole = bytearray(_saved("JPEG"))
    at = whole.index(b"\xff\xc0") + 5
    whole[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(whole)


IMAGES: dict[str, Callable[[], bytes]] = {
    "a PNG of 3.6 gigapixels": lambda: _png(60_000, 60_000),
    "a PNG of 100 megapixels": lambda: _png(10_000, 10_000),
    "a JPEG of 4 gigapixels": lambda: _jpeg_of(65_500, 65_500),
    "a GIF of 4 gigapixels": lambda: b"GIF89a" + b"\xff\xff" * 2 + b"\x80\x00\x00" + bytes(6) + b";",
    "a BMP of gigapixels": lambda: _saved("BMP").replace(
        struct.pack("<ii", 8, 8), struct.pack("<ii", 90_000, 90_000)
    ),
    "a swollen profile": lambda: _png(4, 4, (b"iCCP", b"x\0\0" + _swollen(5_000_000))),
    "swollen text": lambda: _png(4, 4, *[(b"zTXt", b"x\0\0" + _swollen(900_000))] * 80),
    "PostScript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(evil) (w) file\n%%EOF\n",
    "SVG": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "a Photoshop file": lambda: b"8BPS\0\1" + bytes(100),
    "cut short": lambda: _saved("PNG")[:-30],
    "nothing": lambda: b"",
}


@pytest.mark.parametrize("kind", IMAGES)
def test_strange_images_are_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "odd.jpg"
    path.write_bytes(IMAGES[kind]())
    for source in (path, io.BytesIO(path.read_bytes())):  # a folder's file, and a tar's member
        with refused_shortly(
            tmp_path, match=r"train/a/odd\.jpg cannot be read as an image", error=DamagedImage
        ):
            decoded(source, image_id="train/a/odd.jpg")


def test_a_size_is_refused_by_its_name_and_not_when_the_memory_is_gone(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(IMAGES["a PNG of 100 megapixels"]())
    with refused_shortly(tmp_path, match="10000 x 10000 are more than 89,478,485 pixels", error=DamagedImage):
        decoded(tmp_path / "large.png", image_id="large.png")


def test_no_picture_calls_ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow has it run EPS, which is a program, whatever the file is called."""
    asked: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given, **_: asked.append(given))
    Image.init()
    path = tmp_path / "evil.jpg"
    Image.new("RGB", (8, 8)).save(path, "EPS")
    with Image.open(path) as opened:
        assert opened.format == "EPS", "Pillow itself would take it"
    with refused_shortly(tmp_path, error=DamagedImage):
        decoded(path, image_id="evil.jpg")
    assert not asked


def test_frames_beyond_the_first_are_left_alone(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)) for value in range(40)]
    for kind in ("GIF", "TIFF"):
        frames[0].save(tmp_path / "many.tif", kind, save_all=True, append_images=frames[1:])
        with nothing_escapes(tmp_path):
            assert decoded(tmp_path / "many.tif", image_id="many.tif").size == (8, 8)


def test_the_largest_image_that_is_read_is_one_that_pillow_does_not_warn_of() -> None:
    assert image_files.MOST_PIXELS == Image.MAX_IMAGE_PIXELS
