"""Weights of a cell, or of a published file -> safetensors that timm loads strictly, and a model card.

A cell's weights are held to the digests in its record, and its card says all that the records say of them. Of
a file from elsewhere nothing is known but its bytes, and its card says so. No tensor is resized or drawn.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from benchmark.checkpoint import load_weights
from benchmark.classifier_file import read_weights
from benchmark.convert_names import with_timms_names
from benchmark.convert_sizes import VitSizes, check_fits, heads_of, sizes_of
from benchmark.finetune import CLASSIFIER
from benchmark.layout import CHECKPOINTS_NAME
from benchmark.model_card import CardFacts, model_card
from benchmark.pretrain import BACKBONE
from leaderboard.record import RECORD_NAME, Record, read_record, read_records
from protocols.errors import HarnessError
from protocols.files import sha256_of_file, write_atomically
from protocols.frozen import canonical_json

ENDING = ".safetensors"
FACTS = "facts"  # the one entry of the header: of several, safetensors writes any order
CONVERTIBLE = {"pretrain": BACKBONE, "finetune": CLASSIFIER}
_WANTED = "weights of a ViT"


@dataclass(frozen=True, kw_only=True)
class ReadVit:
    """A ViT under timm's names, with what is known of where it comes from.

    `record` is that of the cell that made it; None for a file from elsewhere. `heads` is how many attention
    heads the record, or the header of a file that was converted before, states.
    """

    path: Path
    sha256: str
    key: str
    form: str
    tensors: dict[str, Tensor]
    changes: tuple[str, ...]
    sizes: VitSizes
    heads: int | None
    record: Record | None

    @property
    def heads_by(self) -> str:
        """Who states the attention heads."""
        return "as its record says" if self.record is not None else "as its header says"


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What was written, and how timm loads it."""

    out: Path
    card: Path
    facts: CardFacts


def convert(source: Path, out: Path, *, key: str | None = None, heads: int | None = None) -> Converted:
    """Write `out` and its card beside it. Raises HarnessError, and writes nothing, for what cannot be read,
    fits no ViT of timm, or would replace a file."""
    card_path = out.with_suffix(".md")
    _check_out(out)
    read = read_vit(source, key=key)
    if read.heads is not None and heads not in (None, read.heads):
        raise HarnessError(
            f"{read.path}: has {read.heads} attention heads ({read.heads_by}), not {heads}; leave --heads "
            "away"
        )
    number, by = heads_of(read.path, read.sizes, stated=heads if read.heads is None else read.heads)
    check_whole(read, number)
    facts = CardFacts(
        out_name=out.name,
        file_name=read.path.name,
        sha256=read.sha256,
        key=read.key,
        form=read.form,
        stored=", ".join(sorted({str(one.dtype).removeprefix("torch.") for one in read.tensors.values()})),
        changes=read.changes,
        sizes=read.sizes,
        heads=number,
        heads_by=by if read.heads is None else read.heads_by,
        record=read.record,
        relatives=_relatives(read),
    )
    content = save(
        {name: read.tensors[name].contiguous() for name in sorted(read.tensors)},
        metadata={FACTS: canonical_json(_header(facts))},
    )
    text = model_card(facts)
    # The card comes first, so that no weights are without one; and one that a kill left alone says the same.
    if os.path.lexists(card_path) and not _says(card_path, text):
        raise _exists(card_path)
    write_atomically(card_path, text)
    try:
        write_atomically(out, content)
    finally:
        if not out.exists():
            card_path.unlink(missing_ok=True)
    return Converted(out=out, card=card_path, facts=facts)


def read_vit(source: Path, *, key: str | None = None, choice: str = "choose it with --key") -> ReadVit:
    """The ViT in `source`: a cell's folder, one of its checkpoints, or a file from elsewhere.

    `key` and `choice` are those of `read_weights`. Raises HarnessError for what cannot be read, and for what
    is no ViT; whether it is a whole one, `check_whole` tells.
    """
    path, record = _found(source)
    if record is None:
        sha256 = sha256_of_file(path)
        read = read_weights(path, key=key, wanted=_WANTED, choice=choice)
        tensors, chosen, changes = read.tensors, read.key, read.changes
        heads = _header_of(path).get("heads")
        if sha256_of_file(path) != sha256:  # or the digest would be that of other weights
            raise HarnessError(
                f"{path}: was changed while it was read; wait until it is written, and try again"
            )
    else:
        if key is not None:
            raise HarnessError(f"{path}: a cell's file holds one set of weights; leave --key {key} away")
        sha256 = record.artefacts[f"{CHECKPOINTS_NAME}/{path.name}"]
        tensors, chosen, changes = load_weights(path, digest=sha256), "", ()
        heads = record.resolved.get(f"trunk:{record.trunk}", {}).get("heads")
    named = with_timms_names(path, tensors)
    return ReadVit(
        path=path,
        sha256=sha256,
        key=chosen,
        form=named.form,
        tensors=named.tensors,
        changes=(*changes, *named.changes),
        sizes=sizes_of(path, named.tensors),
        heads=heads,
        record=record,
    )


def check_whole(read: ReadVit, heads: int) -> None:
    """HarnessError, naming tensors, unless timm's model of these sizes loads them strictly."""
    remedy = "nothing is left out, resized or drawn: give the whole weights of a ViT with absolute positions"
    check_fits(read.path, read.tensors, read.sizes.empty_model(heads), remedy=remedy)


def _check_out(out: Path) -> None:
    if out.suffix != ENDING:
        raise HarnessError(f"{out}: timm knows the format by its ending; give a name that ends in {ENDING}")
    if not out.parent.is_dir():
        raise HarnessError(f"{out}: no folder {out.parent}; make it, or give a file in another one")
    if os.path.lexists(out):
        raise _exists(out)


def _exists(path: Path) -> HarnessError:
    return HarnessError(f"{path} exists already, and nothing is overwritten; give another name")


def _says(card: Path, text: str) -> bool:
    return card.is_file() and card.read_bytes() == text.encode()


def _found(source: Path) -> tuple[Path, Record | None]:
    """The file of weights that `source` means, and the record of its cell where it is a cell's."""
    if source.is_dir():
        record = read_record(source)
        if record is None:
            raise HarnessError(
                f"{source}: is a folder without a {RECORD_NAME}; give the folder of a finished cell "
                "(WORK_DIR/PROTOCOL/cells/CELL_ID), or a file of weights"
            )
        return source / _weights_name(source, record), record
    if not source.is_file():
        raise HarnessError(f"{source}: no such file or folder; give a cell's folder, or a file of weights")
    if source.parent.name == CHECKPOINTS_NAME:
        record = read_record(source.parent.parent)
        if record is not None and f"{CHECKPOINTS_NAME}/{source.name}" in record.artefacts:
            return source, record
        if source.name.startswith("step-"):
            raise HarnessError(
                f"{source}: is the state of a training that goes on, which a run removes at its end; "
                "finish the cell, and give its folder"
            )
    return source, None


def _weights_name(folder: Path, record: Record) -> str:
    """What of a cell is converted. HarnessError for a cell that is not done, or that trains no ViT."""
    name = CONVERTIBLE.get(record.stage)
    if record.status != "done":
        raise HarnessError(
            f"{folder}: the cell is {record.status}, so it has no weights; run it, or give another"
        )
    if name is None:
        raise HarnessError(
            f"{folder}: a {record.stage} cell trains no ViT; give a cell of {' or '.join(CONVERTIBLE)}"
            + (f", such as its parent {min(record.parents)}" if record.parents else "")
        )
    if name not in record.artefacts:
        raise HarnessError(
            f"{folder}: its record names no {name}, which earlier versions did not keep; delete the folder "
            "and run the cell again, or convert the pre-training that it began with"
        )
    return name


def _relatives(read: ReadVit) -> tuple[Record, ...]:
    """The records beside the cell's: of what it was made from, and of what was made from these weights."""
    cells = read.path.parent.parent.parent
    if read.record is None or cells.name != "cells":
        return ()  # also of a cell's folder that was taken out of its work dir
    return tuple(read_records(cells.parent.parent, cells.parent.name))


def _header(facts: CardFacts) -> Mapping[str, Any]:
    """What the safetensors' header says, for machines; the card says more, for people."""
    record = facts.record
    return {
        "architecture": facts.sizes.timm_name(facts.heads) or "VisionTransformer",
        "arguments": facts.sizes.arguments(facts.heads),
        "heads": facts.heads,
        "source": {"file": facts.file_name, "sha256": facts.sha256, "key": facts.key},
        "cell": None
        if record is None
        else {
            "id": record.cell_id,
            "protocol": record.protocol.model_dump(mode="json"),
            "method": None if record.method is None else record.method.name,
            "tokenizer": None if record.tokenizer is None else record.tokenizer.model_dump(mode="json"),
            "seed": record.seed,
        },
    }


def _header_of(path: Path) -> dict[str, Any]:
    """What this harness once wrote into the header of `path`; nothing where it did not."""
    if path.suffix != ENDING:
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get(FACTS, "{}"))
    except (SafetensorError, ValueError, RecursionError):
        return {}
    heads = facts.get("heads") if isinstance(facts, dict) else None
    is_number = isinstance(heads, int) and not isinstance(heads, bool) and heads > 0
    return facts if is_number else {}
