"""Pictures that lie beside a board, each with a file of facts: read strictly, and put into the page."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from protocols.errors import HarnessError

MAX_FACTS_BYTES = 256 * 1024
MAX_PICTURE_BYTES = 32 * 1024 * 1024
_PNG = b"\x89PNG\r\n\x1a\n"

Facts = TypeVar("Facts", bound=BaseModel)


def read_facts(path: Path, schema: type[Facts], *, what: str, remedy: str) -> Facts:
    """The facts in the file `path`, of `what` ("a sheet"). HarnessError, ending in `remedy`, if damaged."""
    try:
        size = path.stat().st_size
        if size > MAX_FACTS_BYTES:
            raise HarnessError(f"{path}: {size} bytes is too large for {what}'s facts; {remedy}")
        return schema.model_validate_json(path.read_bytes())
    except OSError as error:
        raise HarnessError(f"{path}: {error.strerror}; {remedy}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = f"field {'.'.join(map(str, first['loc']))}: " if first["loc"] else ""
        raise HarnessError(f"{path} is damaged: {where}{first['msg']}; {remedy}") from None


def inlined_png(path: Path, *, facts_path: Path, sha256: str, remedy: str) -> tuple[str, int, int]:
    """The picture as a data URI, its width and its height in pixels.

    Raises HarnessError if it is missing, too large, or not the one whose SHA-256 its facts tell.
    """
    if not path.is_file():
        raise HarnessError(f"{path} is missing, and {facts_path.name} tells of it; {remedy}")
    size = path.stat().st_size
    if size > MAX_PICTURE_BYTES:
        raise HarnessError(f"{path}: {size} bytes is too large for a page; {remedy}")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256 or not content.startswith(_PNG):
        raise HarnessError(f"{path} is not what {facts_path.name} tells of; {remedy}")
    # A PNG begins with its header: width and height stand in bytes 16 to 24.
    width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
    return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}", width, height
