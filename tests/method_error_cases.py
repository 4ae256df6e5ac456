"""Errors about the further methods' values, as tests/error_cases.py builds them into cases."""

from __future__ import annotations

from typing import Any

METHOD_CASES: tuple[dict[str, Any], ...] = (
    {"title": "cells of MaskFeat that cut no patch evenly",
     "command": "plan --protocol mini --methods maskfeat --set methods.maskfeat.cells_per_side=3",
     "given": "got 3", "where": "--set methods.maskfeat.cells_per_side=3",
     "remedy": "must divide the patch's 4 pixels"},
    {"title": "a block of BEiT v2's that the trunk does not have",
     "command": "plan --protocol mini --methods beit-v2 --set methods.beit-v2.early_layer=5",
     "given": "got 5", "where": "--set methods.beit-v2.early_layer=5",
     "remedy": "at most 4, the trunk's depth"},
    {"title": "a contrast of SplitMask among images that do not fill the batch",
     "command": "plan --protocol mini --methods splitmask --set methods.splitmask.contrast_group=48",
     "given": "got 48", "where": "methods.splitmask", "remedy": "must divide the global batch of 64 images"},
)  # fmt: skip
