"""Kept weights that were trained elsewhere, as evaluations load them."""

from __future__ import annotations

from torch import Tensor

from benchmark.checkpoint import load_weights
from benchmark.imported import Imports, digest_of_weights
from benchmark.plan import Cell
from protocols.errors import HarnessError


def imported_trunk(imports: Imports, cell: Cell) -> dict[str, Tensor]:
    """The trunk of an imported cell. HarnessError where its weights are missing, or not those kept."""
    sha256, trunk = digest_of_weights(cell), cell.trunk or ""
    kept, path = imports.kept(sha256, trunk), imports.weights(sha256, trunk)
    if kept is None or not path.is_file():
        raise HarnessError(
            f"{path} is missing; run again with --from-checkpoint and the file whose SHA-256 is {sha256}"
        )
    return load_weights(path, digest=kept.weights_sha256)
