"""Errors about packed images, as tests/error_cases.py builds them into cases."""

from __future__ import annotations

from typing import Any

from tests.error_settings import file_of

# The pack of mini's pre-training images; its name holds their digest.
PACK = "runs/packed/fashion-mnist-12k-7bb05012d24d-28"

PACK_CASES: tuple[dict[str, Any], ...] = (
    {"title": "packing without the images", "command": "pack --protocol fair300", "given": "imagenet-1k",
     "where": "lies under the data root", "remedy": "give --data-root DIR"},
    {"title": "a negative number of packing processes", "command": "pack --protocol mini --workers -1",
     "given": "-1", "where": "--workers", "remedy": "must be 0 or more"},
    {"title": "a pack's damaged manifest", "command": "pack --protocol mini",
     "setting": file_of(f"{PACK}/manifest.json", "{"), "given": "manifest.json", "where": "damaged",
     "remedy": "give the command pack with --verify"},
)  # fmt: skip
