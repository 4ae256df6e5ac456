"""Plain text for terminals of 80 columns and for pipes: tables, paragraphs, quantities.

The letters are the same everywhere; a terminal sees some of them bold or in colour.
"""

from __future__ import annotations

import io
import re
import shutil
import sys
import textwrap
from collections.abc import Collection, Sequence

from rich.console import Console
from rich.text import Text

from protocols.errors import shown

NARROWEST, WIDEST = 60, 110
_RULE = re.compile(r"[-=]{3,}[-= ]*")
# States of cells, as `status` and `plan` name them: what stands in the way is red.
_STYLES = {
    r"\b(failed|damaged|blocked|refused)\b": "red",
    r"\b(stale|resumable)\b": "yellow",
    r"\brunning\b": "cyan",
    r"\bdone\b": "green",
}


def width() -> int:
    """Columns to write to: the terminal's within reason, 80 in a pipe."""
    return max(NARROWEST, min(WIDEST, shutil.get_terminal_size((80, 24)).columns))


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[int] = (), total: bool = False
) -> str:
    """Columns two spaces apart, those in `right` flush right; `total` sets the last row apart."""
    everything = [header, *rows]
    widths = [max(len(row[column]) for row in everything) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = (
            text.rjust(size) if column in right else text.ljust(size)
            for column, (text, size) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    lines = [line(header), "-" * max(len(line(row)) for row in everything), *map(line, rows)]
    if total:
        lines.insert(-1, lines[1])
    return "\n".join(lines)


def styled(text: str, *, has_states: bool = False, names: bool = False) -> str:
    """`text` as it is in a pipe or a file; on a terminal with heads of tables bold, rules dim, alarms red.

    `has_states`: words for the state of a cell have their colours. `names`: each line that is not indented
    begins with a name, which is bold. Without colours where NO_COLOR or the terminal asks for none.
    """
    if not Console(file=sys.stdout).is_terminal:
        return text
    lines = [Text(line, no_wrap=True) for line in text.split("\n")]
    for line, following in zip(lines, [*lines[1:], Text()], strict=True):
        if _RULE.fullmatch(line.plain):
            line.stylize("dim")
        elif line.plain.startswith("!! "):
            line.stylize("bold red")
        elif _RULE.fullmatch(following.plain):
            line.stylize("bold")
        elif has_states:
            for words, style in _STYLES.items():
                line.highlight_regex(words, style)
        if names and line.plain and not line.plain[0].isspace():
            line.stylize("bold", 0, len(line.plain.split(" ", 1)[0]))
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=max(1, *(len(line.plain) for line in lines)))
    for line in lines:
        console.print(line, overflow="ignore", crop=False, highlight=False)
    return stream.getvalue().removesuffix("\n")


def paragraph(text: str, *, first: str = "", rest: str = "") -> str:
    """`text` wrapped to the terminal; a command or an address in it is never broken."""
    return textwrap.fill(
        shown(text),
        width(),
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def quantity(value: float) -> str:
    """A large number to three digits: 3.41e+15 as 3.41e15."""
    digits, exponent = f"{value:.2e}".split("e")
    return f"{digits}e{int(exponent)}"


def duration(hours: float) -> str:
    """A time in the unit that says most: seconds, minutes or hours."""
    if hours < 1 / 3600:
        return "< 1 s"
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} s"
    if hours < 1:
        return f"{60 * hours:.0f} min"
    return f"{hours:.1f} h" if hours < 10 else f"{hours:,.0f} h"


def size(count_of_bytes: float) -> str:
    """Bytes in decimal units."""
    for unit, one in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count_of_bytes >= one:
            return f"{count_of_bytes / one:,.1f} {unit}"
    return f"{count_of_bytes / 1e3:,.0f} kB"


def count(number: int, noun: str) -> str:
    """`1 cell`, `2 cells`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
