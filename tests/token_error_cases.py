"""Errors about tokens and token stores, as tests/error_cases.py builds them into cases."""

from __future__ import annotations

from typing import Any

from tests.error_settings import file_of, folder_of, launched

TOKEN_CASES: tuple[dict[str, Any], ...] = (
    {"title": "tokenising without the data and the weights",
     "command": "tokenize --protocol fair300 --tokenizers vq-kd", "given": "imagenet-1k",
     "where": "protocol fair300 cannot run here", "remedy": "curl -L --create-dirs"},
    {"title": "a launcher that did not launch", "command": "tokenize --protocol mini",
     "setting": launched(WORLD_SIZE="2"), "given": "WORLD_SIZE", "where": "MASTER_ADDR",
     "remedy": "start with torchrun, or unset WORLD_SIZE"},
    {"title": "a negative number of reading processes", "command": "tokenize --protocol mini --workers -1",
     "given": "-1", "where": "--workers", "remedy": "must be 0 or more"},
    {"title": "evaluations of tokens alone for one method",
     "command": "--protocol mini --methods mim --evaluations token-mlp", "given": "token-mlp",
     "where": "--methods", "remedy": "leave one of them out"},
    {"title": "a store that is not there", "command": "verify nothing", "given": "nothing",
     "where": "no such folder", "remedy": "give folders of token stores"},
    {"title": "a folder that is no store", "command": "verify pictures", "setting": folder_of("pictures"),
     "given": "pictures", "where": "is not a finished token store", "remedy": "tokenise first"},
    {"title": "a store's damaged manifest", "command": "verify store",
     "setting": file_of("store/manifest.json", "{"), "given": "store/manifest.json", "where": "Invalid JSON",
     "remedy": "delete the store and tokenise again"},
    {"title": "a negative sample", "command": "verify store --sample -1", "given": "-1", "where": "--sample",
     "remedy": "must be 0 or more"},
    {"title": "a gallery before there are tokens", "command": "gallery --protocol mini --tokenizers k-pixel",
     "given": "k-pixel", "where": "under runs are to do", "remedy": "run_benchmark.py tokenize"},
    {"title": "a gallery's rule", "command": "gallery --protocol mini --rule best", "given": "'best'",
     "where": "--rule", "remedy": "'random', 'nearest', 'farthest'"},
)  # fmt: skip
