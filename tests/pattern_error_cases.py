"""Errors about pictures of objectives, as tests/error_cases.py builds them into cases."""

from __future__ import annotations

from typing import Any

from tests.error_settings import file_of

PATTERN_CASES: tuple[dict[str, Any], ...] = (
    {"title": "an image that is not there", "command": "patterns --protocol mini --image 6000",
     "given": "6000", "where": "--image", "remedy": "give a number from 0 to 5999"},
    {"title": "a trunk of another protocol", "command": "patterns --protocol mini --trunk vit-b",
     "given": "vit-b", "where": "trunk of protocol mini", "remedy": "did you mean 'vit-mini'?"},
    {"title": "a file in the place of the pictures", "command": "patterns --protocol mini --out pictures",
     "setting": file_of("pictures", ""), "given": "pictures", "where": "pictures need a folder",
     "remedy": "give another with --out"},
)  # fmt: skip
