"""The token store that a tokenising cell's record names, opened for what is trained on it."""

from __future__ import annotations

from benchmark.layout import cell_folder
from benchmark.stage import CellContext
from leaderboard.record import Record
from protocols.errors import HarnessError
from protocols.files import sha256_of_file
from protocols.schema import TrunkSpec
from tokenizers.store import MANIFEST_NAME, TokenStore, open_store


def store_of(context: CellContext, tokenised: Record) -> TokenStore:
    """The store that `tokenised` names, whose manifest must be the very one that it recorded.

    Raises HarnessError if it is missing, damaged or another one.
    """
    ((path, digest),) = [
        item for item in tokenised.artefacts.items() if item[0].endswith(f"/{MANIFEST_NAME}")
    ]
    manifest = context.work_dir / path
    if not manifest.is_file() or sha256_of_file(manifest) != digest:
        raise HarnessError(
            f"{path} is missing or is not the one that was recorded; to tokenise again, delete "
            f"{manifest.parent} and the cell {tokenised.cell_id}, and run with --redo-failed"
        )
    try:
        return open_store(manifest.parent)
    except HarnessError as error:
        folder = cell_folder(context.work_dir, context.protocol.name, tokenised.cell_id)
        raise HarnessError(f"{error}: delete the folder {folder} too, and run with --redo-failed") from None


def check_geometry(trunk: TrunkSpec, *, tokens: int, tokenizer: str) -> None:
    """HarnessError unless the tokenizer gives exactly one token for each patch of the trunk."""
    if tokens != trunk.patches:
        raise HarnessError(
            f"tokenizer {tokenizer} gives {tokens} tokens an image, the trunk has {trunk.patches} patches; "
            "choose image and patch sizes that agree"
        )
