"""One string with all that acts somewhere: a page, a terminal, a spreadsheet, LaTeX, Markdown, matplotlib."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from html.parser import HTMLParser
from typing import Any

# The first characters are those that spreadsheets and old Markdown look at.
POISON = (
    '=HYPERLINK("http://evil.example","x")<script>alert(1)</script><img src=x onerror=alert(1)>'
    "\"'><svg/onload=alert(1)>\x1b]0;owned\x07\x1b[2J\x9b31m\u202eevil\u2066\u2028# head\r\n> quote\n"
    "[click](javascript:alert(1))![i](http://evil.example/i.png)`rm`|x|**b**\\input{/etc/passwd}"
    "\\write18{id}$\\frac{$ #1 %2 &amp;&lt;b&gt; ~^_{}{{7*7}}{%raw%} \ud83d\udca9"
).replace("\ud83d\udca9", "\U0001f4a9")
FORMULAS = ("=1+1", "+1+1", "-1+cmd|' /C calc'!A0", "@SUM(1)", "\t=1", "\r=1", " =1", "\u200b=1", "\uff1d1+1")


def poisoned(value: Any, *, kept: frozenset[str] = frozenset()) -> Any:
    """`value` of a record with every string in it POISON, but in the fields of `kept`."""
    if isinstance(value, str):
        return POISON
    if isinstance(value, dict):
        return {name: one if name in kept else poisoned(one, kept=kept) for name, one in value.items()}
    if isinstance(value, list):
        return [poisoned(one, kept=kept) for one in value]
    return value


def acting(text: str, *, but: str = "\n") -> set[str]:
    """What of `text` a terminal would act on."""
    return {
        one for one in text if one not in but and unicodedata.category(one) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    }


class Page(HTMLParser):
    """What of an HTML page could run, or ask a server."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.scripts = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        if tag in ("iframe", "object", "embed", "base", "form", "marquee", "audio", "video"):
            self.faults.append(f"<{tag}>")
        for name, value in attrs:
            goes_out = re.match(r"\s*(javascript|data:text|https?|//)", value or "", flags=re.IGNORECASE)
            if name.startswith("on") or (name in ("href", "src", "xlink:href", "action") and goes_out):
                self.faults.append(f"<{tag} {name}={value!r:.80}>")


def formulas(text: str) -> list[str]:
    """The fields of a CSV file that a spreadsheet would run."""
    return [
        field
        for line in csv.reader(io.StringIO(text))
        for field in line
        if re.match(r"[\s\u200b]*[=+\-@\uff1d\uff0b\uff0d\uff20]", field) and not _is_number(field)
    ]


def markdown_faults(text: str, *, own: frozenset[str]) -> list[str]:
    """Links and pictures that lead elsewhere than to `own` files, and HTML."""
    links = re.findall(r"(?<!\\)\]\(([^)]*)\)", text)
    return [link for link in links if link not in own] + re.findall(r"<[a-zA-Z/!]", text)


def latex_faults(text: str) -> list[str]:
    """Commands that no table of ours has."""
    return re.findall(r"\\(?:input|write|immediate|include|openin|read|csname|def)\b", text)


def strings_of(value: Any) -> list[str]:
    """Every string in what JSON can hold."""
    return [json.loads(f'"{one}"') for one in re.findall(r'"((?:[^"\\]|\\.)*)"', json.dumps(value))]


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?", text) is not None
