"""Errors about `check`, as tests/error_cases.py builds them into cases."""

from __future__ import annotations

from typing import Any

CHECK_CASES: tuple[dict[str, Any], ...] = (
    {"title": "an adapter that is not known", "command": "check mimm", "given": "'mimm'",
     "where": "unknown method, tokenizer or data set", "remedy": "did you mean 'mim'"},
    {"title": "a method that is asked for as a tokenizer", "command": "check mim --kind tokenizer",
     "given": "'mim'", "where": "unknown tokenizer", "remedy": "known: dall-e"},
    {"title": "a check at the sizes of no trunk", "command": "check mim --trunk vit-huge",
     "given": "'vit-huge'", "where": "unknown trunk of protocol mini", "remedy": "known: vit-mini"},
    {"title": "a check of a data set that is not there", "command": "check cifar-10", "given": "cifar-10",
     "where": "lies under the data root", "remedy": "give --data-root DIR"},
    {"title": "a check of a method with a value out of range",
     "command": "check mim --set methods.mim.mask_count=99", "given": "mask_count must be at most 49",
     "where": "protocol mini, methods.mim", "remedy": "the trunk's patches"},
)  # fmt: skip
