"""LaTeX of a table: booktabs' rules, one line per row, and no text that acts as a command."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from leaderboard.latex import escaped, latex_table, view_latex
from leaderboard.view_table import ViewTable
from leaderboard.views import view_tables, wide
from protocols import load_protocol
from tests.leaderboard.planned_records import board_of


def test_a_frame_line_by_line() -> None:
    frame = pd.DataFrame(
        [["MIM", "k-pixel", "74.60 ± 0.12 (3)", "-0.30"], ["CAE & co", "-", "missing", "-"]],
        columns=["method", "tokenizer", "top-1 %", "difference"],
    )
    text = latex_table(frame, row_headers=2, caption="50 % of it", label="tab:one", notes=("See --views.",))
    assert text.splitlines() == [
        r"\begin{table}",
        r"\centering",
        r"\caption{50 \% of it}",
        r"\label{tab:one}",
        r"\begin{tabular}{llrr}",
        r"\toprule",
        r"method & tokenizer & top-1 \% & difference \\",
        r"\midrule",
        r"MIM & k-pixel & 74.60 $\pm$ 0.12 (3) & $-$0.30 \\",
        r"CAE \& co & -- & missing & -- \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\par\footnotesize See -\{}-views.".replace(r"\{", "{"),
        r"\end{table}",
    ]


def test_every_character_that_latex_acts_on_is_escaped() -> None:
    assert escaped(r"\input{x} 100% $a_b^2$ #1 & ~ <script>|`'" + '"') == (
        r"\textbackslash{}input\{x\} 100\% \$a\_b\textasciicircum{}2\$ \#1 \& \textasciitilde{} "
        r"\textless{}script\textgreater{}\textbar{}\textasciigrave{}\textquotesingle{}\textquotedbl{}"
    )
    assert escaped("a +- b") == escaped("a ± b") == r"a $\pm$ b"
    assert escaped("two\nlines\x1b[0m") == "two lines[0m"


@pytest.mark.parametrize("number", ["+0.12", "-4.40"])
def test_a_sign_before_a_number_is_one(number: str) -> None:
    text = latex_table(pd.DataFrame([[number]], columns=["d"]), row_headers=0, caption="c", label="l")
    assert f"${number[0]}${number[1:]} \\\\" in text


def test_a_label_is_plain() -> None:
    with pytest.raises(ValueError, match="label"):
        latex_table(pd.DataFrame([["a"]], columns=["b"]), row_headers=1, caption="", label="a}b")


@pytest.fixture(scope="module")
def tables() -> dict[str, ViewTable]:
    """fair300's tables, where nothing is measured yet."""
    protocol = load_protocol("fair300")
    return {one.name: one for one in view_tables(board_of(protocol, []), protocol)}


def test_every_table_is_whole(tables: dict[str, ViewTable]) -> None:
    """Balanced environments and braces, as many cells in each line as columns, every row of every form."""
    for name, table in tables.items():
        text = view_latex(table)
        shows = ["measured", "reported", "difference", "verdict"][: 4 if name != "neighbours" else 1]
        assert re.findall(r"\\label\{tab:(.*?)\}", text) == [f"{name}-{show}" for show in shows]
        for environment in ("table", "tabular"):
            starts = text.count(rf"\begin{{{environment}}}")
            assert starts == text.count(rf"\end{{{environment}}}") == len(shows)
        assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == len(shows)
        plain = re.sub(r"\\[{}]", "", text)
        assert plain.count("{") == plain.count("}")
        lines = [line for line in text.splitlines() if line.endswith(r" \\")]
        assert len(lines) == len(shows) * (1 + len(table.rows))
        width = len(table.row_headers) + len(table.columns)
        assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {width - 1}
    assert r"MIM & VQ-KD & 74.6 & 55.3 & 82.0 & 69.9 & 83.8 & 72.3 \\" in view_latex(tables["table1"])


def test_the_text_is_of_the_one_frame(tables: dict[str, ViewTable]) -> None:
    table = tables["table6"]
    frame = wide(table, "reported")
    for row in frame.itertuples(index=False, name=None):
        assert " & ".join(row) + r" \\" in view_latex(table)
