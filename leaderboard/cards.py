"""The card of a cell in a bundle whose files others use, a pre-training or a tokenizer.

Nothing is said that no record says, and the same records give the same text. The card of converted weights,
which knows the file and how timm loads it, is made in benchmark/model_card.py.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator

from leaderboard.card_parts import as_table, command, measured, one_line, plain, stated, values
from leaderboard.lineage import TOKENISE, Lineage, harness_version
from leaderboard.record import Record
from protocols.schema import Protocol

CARD_NAME = "card.md"


def card_text(record: Record, relatives: Iterable[Record], *, protocol: Protocol) -> str:
    """The card of `record` in Markdown. `relatives`: records among which its parents and children stand;
    `protocol`: the one that the bundle is of."""
    known = list(relatives)
    lineage = Lineage([*known, record])
    sections = (
        _opening(record, lineage),
        ("## What it is", "", *as_table(stated(record, lineage, protocol))),
        ("## What was measured", "", *measured(record, known)),
        ("## The values that it was made with", "", *values(record)),
        _command(record, lineage, protocol),
    )
    return "\n".join("\n".join(lines) + "\n" for lines in sections)


def _opening(record: Record, lineage: Lineage) -> Iterator[str]:
    yield f"# {plain(record.cell_id)}"
    yield ""
    images = f"{record.data_set.n:,} images of {plain(record.data_set.name)}"
    if record.stage == TOKENISE:
        name = record.tokenizer.name if record.tokenizer else "a tokenizer"
        yield f"The tokens of {images} by the tokenizer {plain(name)}: one token for each patch."
    else:
        method = record.method.name if record.method else "no method"
        yield (
            f"A trunk {plain(record.trunk or '')} pre-trained by {plain(method)} on {images}, "
            f"seed {record.seed}."
        )
    deviations = lineage.deviations(record)
    if deviations is not None:
        yield ""
        changed = "; ".join(map(plain, deviations))
        yield f"**Not under the protocol as it stands**, and not comparable with its board: {changed}."


def _command(record: Record, lineage: Lineage, protocol: Protocol) -> Iterator[str]:
    yield "## How to make it again"
    yield ""
    yield f"At commit {plain(harness_version(record))}; a file that is named here is for the reader to bring:"
    yield ""
    yield "    " + one_line(shlex.join(command(record, lineage, protocol)))
