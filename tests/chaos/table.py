"""What a campaign of kills came to, as Markdown."""

from __future__ import annotations

import signal
import statistics
from collections.abc import Sequence

from tests.chaos.campaign import Kill

HEADER = (
    "| stage | killed by | kills | landed | resumed | lost | orphans | s to end, median / most |\n"
    "|---|---|---|---|---|---|---|---|"
)


def table(kills: Sequence[Kill]) -> str:
    """A row for each stage and way of killing it, and one for all."""
    rows: dict[tuple[str, str], list[Kill]] = {}
    for kill in kills:
        rows.setdefault((kill.stage, kill.moment), []).append(kill)
    lines = [HEADER, *(_row(*name, found) for name, found in rows.items()), _row("**all**", "", kills)]
    return "\n".join(lines)


def _row(stage: str, moment: str, kills: Sequence[Kill]) -> str:
    landed = [kill for kill in kills if kill.landed]
    lost = sum(bool(kill.lost) for kill in kills)
    resumed = sum(not kill.lost for kill in landed)
    seconds = [kill.seconds for kill in kills if kill.seconds is not None and kill.number == signal.SIGINT]
    ended = f"{statistics.median(seconds):.1f} / {max(seconds):.1f}" if seconds else ""
    orphans = sum(kill.orphans for kill in kills)
    cells = (stage, moment, len(kills), len(landed), resumed, lost, orphans, ended)
    return f"| {' | '.join(map(str, cells))} |"
