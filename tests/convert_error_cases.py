"""Errors about weights that leave and that come, as tests/error_cases.py builds them into cases."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.error_settings import Setting, file_of

SIZES = {"cls_token": [1, 1, 16], "pos_embed": [1, 17, 16], "patch_embed.proj.weight": [16, 3, 7, 7],
         "blocks.0.mlp.fc1.weight": [32, 16], "blocks.1.mlp.fc1.weight": [32, 16]}  # fmt: skip
CONVERT = "convert weights.safetensors out.safetensors"
IMPORT = "--protocol tiny.yaml --from-checkpoint weights.safetensors --device cpu"


def weights_of(shapes: Mapping[str, list[int]]) -> Setting:
    """`weights.safetensors`, with zeros of these shapes, written without torch."""

    @contextmanager
    def setting(folder: Path) -> Iterator[None]:
        header: dict[str, Any] = {}
        end = 0
        for name, shape in shapes.items():
            start, size = end, 4
            for side in shape:
                size *= side
            end = start + size
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        content = len(text).to_bytes(8, "little") + text + bytes(end)
        (folder / "weights.safetensors").write_bytes(content)
        (folder / "tiny.yaml").write_bytes((Path(__file__).parent / "tiny.yaml").read_bytes())
        yield

    return setting


CONVERT_CASES: tuple[dict[str, Any], ...] = (
    {"title": "weights that are not there", "command": CONVERT, "given": "weights.safetensors",
     "where": "no such file", "remedy": "give a cell's folder, or a file of weights"},
    {"title": "a file that is no weights", "command": CONVERT,
     "setting": file_of("weights.safetensors", "dear diary"), "given": "weights.safetensors",
     "where": "cannot be read as safetensors", "remedy": "fetch it again"},
    {"title": "safetensors under another ending", "command": "convert weights.pth out.safetensors",
     "setting": file_of("weights.pth", "\x02" + 7 * "\0" + "{}"), "given": "weights.pth",
     "where": "safetensors by its content", "remedy": "call it weights.safetensors"},
    {"title": "converted weights under another ending", "command": "convert weights.safetensors out.pth",
     "setting": weights_of(SIZES), "given": "out.pth", "where": "ending",
     "remedy": "give a name that ends in .safetensors"},
    {"title": "a relative position bias", "command": CONVERT,
     "setting": weights_of(SIZES | {"rel_pos_bias.relative_position_bias_table": [52, 2]}),
     "given": "rel_pos_bias.relative_position_bias_table", "where": "relative position bias",
     "remedy": "give weights with absolute positions"},
    {"title": "attention heads that nothing tells", "command": CONVERT, "setting": weights_of(SIZES),
     "given": "width 16 and 2 blocks", "where": "attention heads", "remedy": "--heads N"},
    {"title": "weights that are not whole", "command": f"{CONVERT} --heads 2", "setting": weights_of(SIZES),
     "given": "patch_embed.proj.bias (16,)", "where": "missing", "remedy": "give the whole weights"},
    {"title": "a checkpoint with positions of another grid", "command": IMPORT,
     "setting": weights_of(SIZES | {"pos_embed": [1, 50, 16]}), "given": "a 7 x 7 grid, not 4 x 4",
     "where": "pos_embed", "remedy": "give weights of these sizes"},
    {"title": "methods beside a checkpoint", "command": f"{IMPORT} --methods mim",
     "setting": weights_of(SIZES), "given": "--methods", "where": "--from-checkpoint",
     "remedy": "leave it out"},
    {"title": "a label too many", "command": f"{IMPORT} --label ours theirs", "setting": weights_of(SIZES),
     "given": "2 names for 1 files", "where": "--label", "remedy": "give one for each file"},
)  # fmt: skip
