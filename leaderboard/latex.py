"""A view's table in LaTeX, ruled by the booktabs package."""

from __future__ import annotations

import re

import pandas as pd

from leaderboard.grids import ASCII_PLUS_MINUS, MISSING, PLUS_MINUS, clean
from leaderboard.view_table import ViewTable
from leaderboard.view_text import SHOWS, has_reported, wide

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "'": r"\textquotesingle{}",
    PLUS_MINUS: r"$\pm$",
}
# In text, two hyphens would become a dash: --seeds. An empty group keeps them apart.
_HYPHENS = re.compile(r"-(?=-)")
_NUMBER = re.compile(r"^[+-](?=\d)")


def view_latex(table: ViewTable) -> str:
    """The table as measured and, where something is reported, as reported, its differences, its verdicts."""
    shows = SHOWS if has_reported(table) else SHOWS[:1]
    parts = [
        latex_table(
            wide(table, show, plus_minus=PLUS_MINUS),
            row_headers=len(table.row_headers),
            caption=f"{table.title} ({show})",
            label=f"tab:{table.name}-{show}",
            notes=table.notes if show == shows[0] else (),
        )
        for show in shows
    ]
    return (
        "% Needs \\usepackage{booktabs} and \\usepackage[T1]{fontenc}, \\usepackage{textcomp}.\n"
        + "\n".join(parts)
    )


def latex_table(
    frame: pd.DataFrame, *, row_headers: int, caption: str, label: str, notes: tuple[str, ...] = ()
) -> str:
    """A frame of texts, the first `row_headers` columns flush left and the others flush right.

    Every text is escaped, so that none can act as a command. `label` is letters, digits, `:` and `-`.
    """
    if not re.fullmatch(r"[A-Za-z0-9:_-]+", label):
        raise ValueError(f"label {label!r} may hold letters, digits, ':', '_' and '-' alone")
    alignment = "l" * row_headers + "r" * (len(frame.columns) - row_headers)
    rows = [_row(values) for values in frame.itertuples(index=False, name=None)]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escaped(caption)}}}",
        rf"\label{{{label}}}",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        _row(tuple(frame.columns)),
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"\par\footnotesize {escaped(note)}" for note in notes),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """`text` on one line with nothing in it that LaTeX would act on."""
    plain = clean(text).replace(ASCII_PLUS_MINUS, PLUS_MINUS)
    return _HYPHENS.sub("-{}", "".join(_ESCAPES.get(one, one) for one in plain))


def _row(values: tuple[object, ...]) -> str:
    return " & ".join(map(_cell, values)) + r" \\"


def _cell(value: object) -> str:
    """A dash for what is not there, and a minus sign, not a hyphen, before a number."""
    text = str(value)
    if text == MISSING:
        return "--"
    if _NUMBER.match(text):
        return rf"${text[0]}${escaped(text[1:])}"
    return escaped(text)
