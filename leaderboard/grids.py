"""A board's frames as grids of text: the one place where numbers are rounded and columns get their names."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from leaderboard.lineage import LINEAR_PROBE, SCRATCH, TOKEN_CLASSIFICATION
from leaderboard.statistics import CONFIDENCE
from leaderboard.tables import Evaluation

MISSING = "-"
PRETRAIN_PART = "pretraining"
DISPLAY_NAMES = {
    "mim": "MIM",
    "pim": "PIM",
    "mapet": "MaPeT",
    "beit": "BEiT",
    "cae": "CAE",
    "splitmask": "SplitMask",
    "maskfeat": "MaskFeat",
    "beit-v2": "BEiT v2",
    SCRATCH: "scratch",
}
EVALUATION_NAMES = {
    "finetune": "fine-tuning",
    "linear-probe": "linear probe",
    "knn": "kNN",
    "fashion": "Fashion-MNIST",
    "stanford-cars": "Stanford Cars",
    "food-101": "Food-101",
    "fgvc-aircraft": "FGVC-Aircraft",
    "token-mlp": "tokens MLP",
    "token-vit": "tokens ViT",
    "token-vit-t": "tokens ViT-T",
}
CARD_METRICS = (
    "codebook_use_percent", "perplexity", "dead_codes", "concentration_percent", "images_per_second",
    "batch_agreement_percent",
)  # fmt: skip
CARD_NAMES = {"concentration_percent": "commonest 1% hold %", "images_per_second": "encoding images/s"}
# What a browser, a terminal and a plain file can each show between a mean and its deviation.
PLUS_MINUS, ASCII_PLUS_MINUS = "±", "+-"


@dataclass(frozen=True)
class Column:
    """`is_number` columns are set flush right and never broken."""

    name: str
    is_number: bool


@dataclass(frozen=True)
class Grid:
    """Text cells, row by row, as wide as `columns`. Nothing is escaped yet."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]


def score_grid(
    frame: pd.DataFrame, evaluations: Sequence[Evaluation], *, plus_minus: str = PLUS_MINUS
) -> Grid:
    """Top-1 of every evaluation and, of probes, gain and bound; `seeds` has one count where all agree."""
    makers = _name_makers(frame)
    for evaluation in evaluations:
        name = evaluation.name
        makers.append((EVALUATION_NAMES.get(name, name), True, _mean_and_sd(name, plus_minus)))
        if evaluation.stage == LINEAR_PROBE:
            makers.append(("gain", True, _maker(f"{name}_gain_points", signed)))
            makers.append(
                (f"{CONFIDENCE:.0%} bound", True, _maker(f"{name}_gain_lower_bound_points", signed))
            )
    makers.append(("seeds", True, _seeds(evaluations)))
    return _grid(frame, makers)


def token_grid(frame: pd.DataFrame, evaluations: Sequence[str], *, plus_minus: str = PLUS_MINUS) -> Grid:
    """Top-1 and top-5 of classification from tokens alone; `seeds` has one count where all agree."""
    makers: list[_Maker] = [("tokenizer", False, _maker("tokenizer", text))]
    for name in evaluations:
        shown = EVALUATION_NAMES.get(name, name)
        makers.append((f"{shown} top-1", True, _mean_and_sd(name, plus_minus)))
        makers.append((f"{shown} top-5", True, _mean_and_sd(name, plus_minus, figure="top5")))
    asked = [Evaluation(name=name, stage=TOKEN_CLASSIFICATION, is_default=True) for name in evaluations]
    makers.append(("seeds", True, _seeds(asked)))
    return _grid(frame, makers)


def cost_grid(frame: pd.DataFrame) -> Grid:
    """What pre-training and all of the row's cells together (`total`) cost: means over seeds."""
    makers = _name_makers(frame)
    makers += [
        ("images seen", True, _maker("pretraining_images_seen", magnitude)),
        ("train FLOPs", True, _maker("pretraining_flops", power_of_ten)),
        ("pre-training", True, _maker("pretraining_wall_seconds", duration)),
        ("total", True, _maker("row_wall_seconds", duration)),
    ]
    return _grid(frame, makers)


def board_grid(frame: pd.DataFrame, evaluations: Sequence[Evaluation]) -> Grid:
    """Scores and costs side by side, for pages that may be wide."""
    scores, costs = score_grid(frame, evaluations), cost_grid(frame)
    names = len(_name_makers(frame))
    rows = tuple(left + right[names:] for left, right in zip(scores.rows, costs.rows, strict=True))
    return Grid(columns=scores.columns + costs.columns[names:], rows=rows)


def tokenizer_grid(frame: pd.DataFrame) -> Grid:
    """One row per token store: its codebook, its teacher, the figures of its card."""
    fixed = {
        "tokenizer", "standing", "data", "codebook_size", "teacher", "wall_seconds", "stale_reason",
        "store", "cell_id", "plugin",
    }  # fmt: skip
    # Figures that older records lack have their rows all the same.
    cards = [*CARD_METRICS, *sorted(set(frame) - fixed - set(CARD_METRICS))]
    frame = frame.reindex(columns=list(dict.fromkeys([*frame.columns, *CARD_METRICS])))
    makers: list[_Maker] = [
        ("tokenizer", False, lambda row: _marked(_store_name(row), row["standing"])),
        # Before the figures, so that a narrow page never hides it.
        ("teacher", False, _maker("teacher", text)),
        ("codebook", True, _maker("codebook_size", integer)),
    ]
    shows = {"batch_agreement_percent": almost}
    makers += [(_card_name(name), True, _maker(name, shows.get(name, compact))) for name in cards]
    makers.append(("wall time", True, _maker("wall_seconds", duration)))
    return _grid(frame, makers)


def modified_grid(frame: pd.DataFrame) -> Grid:
    """Runs that changed what the protocol holds equal, and what they changed."""
    makers: list[_Maker] = [
        *_name_makers(frame),
        ("evaluation", False, _maker("evaluation", text)),
        ("seed", True, _maker("seed", integer)),
        ("top-1", True, _maker("top1_percent", percent)),
        ("deviations", False, _maker("deviations", text)),
    ]
    return _grid(frame, makers)


def stale_grid(frame: pd.DataFrame) -> Grid:
    """Cells that present code and parents would make anew, and why."""
    makers: list[_Maker] = [
        ("cell", False, lambda row: text(row["evaluation"] or row["stage"])),
        *_name_makers(frame),
        ("seed", True, _maker("seed", integer)),
        ("top-1", True, _maker("top1_percent", percent)),
        ("reason", False, stale_reason),
    ]
    return _grid(frame, makers)


def stale_reason(row: Any) -> str:
    """Why a cell is stale, and why it would stand on no board even if it were not."""
    parts = [row["stale_reason"]]
    if row["deviations"]:
        parts.append(f"modified: {row['deviations']}")
    if row["differing_slices"]:
        parts.append(f"not as in the current protocol: {row['differing_slices']}")
    return clean("; ".join(parts))


def failure_grid(frame: pd.DataFrame) -> Grid:
    """Failed and skipped cells: which, what they changed of the protocol, why, and where the log is."""
    makers: list[_Maker] = [
        ("status", False, _maker("status", text)),
        ("cell", False, cell_name),
        ("seed", True, _maker("seed", integer)),
        ("deviations", False, _maker("deviations", text)),
        ("reason", False, _maker("error", text)),
        ("log", False, _maker("log", text)),
    ]
    return _grid(frame, makers)


_Maker = tuple[str, bool, Callable[[Any], str]]


def _grid(frame: pd.DataFrame, makers: Sequence[_Maker]) -> Grid:
    columns = tuple(Column(name, is_number) for name, is_number, _ in makers)
    rows = tuple(tuple(make(row) for _, _, make in makers) for _, row in frame.iterrows())
    return Grid(columns=columns, rows=rows)


def _maker(column: str, show: Callable[[Any], str]) -> Callable[[Any], str]:
    return lambda row: show(row[column])


def _name_makers(frame: pd.DataFrame) -> list[_Maker]:
    """The columns that name a row; a trunk that all rows share is left to the caption."""
    makers: list[_Maker] = [
        ("method", False, lambda row: text(method_label(row))),
        ("tokenizer", False, _maker("tokenizer", text)),
    ]
    if len({trunk for trunk in frame["trunk"] if trunk}) > 1:
        makers.append(("trunk", False, _maker("trunk", text)))
    return makers


def _mean_and_sd(evaluation: str, plus_minus: str, *, figure: str = "top1") -> Callable[[Any], str]:
    def show(row: Any) -> str:
        mean, deviation = row[f"{evaluation}_{figure}_percent"], row[f"{evaluation}_{figure}_sd"]
        return percent(mean) if pd.isna(deviation) else f"{percent(mean)} {plus_minus} {percent(deviation)}"

    return show


def _seeds(evaluations: Sequence[Evaluation]) -> Callable[[Any], str]:
    """How many seeds were measured; an evaluation that is not asked of every row counts only where it was."""

    def show(row: Any) -> str:
        counts = [(row[f"{evaluation.name}_seeds"], evaluation.is_default) for evaluation in evaluations]
        shown = dict.fromkeys(integer(count) for count, is_default in counts if count or is_default)
        return "/".join(shown) or "0"

    return show


def cell_name(row: Any) -> str:
    """What was done to which row, on one line."""
    stage = row.get("evaluation") or row["stage"]
    parts = (clean(stage), method_label(row), clean(row["tokenizer"]), clean(row["trunk"]))
    return " ".join(part for part in parts if part)


def _store_name(row: Any) -> str:
    """The tokenizer, what brought it, and of which images the store is where they are not pre-trained on."""
    is_apart = row["data"] not in ("", PRETRAIN_PART)
    plugin = row.get("plugin")
    brought = f" (plug-in {plugin})" if isinstance(plugin, str) and plugin else ""
    return f"{row['tokenizer']}{brought}" + (f", {row['data']} images" if is_apart else "")


def _marked(name: str, standing: str) -> str:
    return clean(name) if standing == "board" else f"{clean(name)} ({standing})"


def _card_name(metric: str) -> str:
    return CARD_NAMES.get(metric, metric.replace("_percent", " %").replace("_", " "))


def method_name(name: str) -> str:
    """The method's name as its paper writes it."""
    return DISPLAY_NAMES.get(name, clean(name))


def plugin_method_name(name: str, *, title: str, plugin: str) -> str:
    """How a plug-in's method calls itself, and what brought it: `Ring MIM (plug-in ring_mim.py)`."""
    return f"{clean(title) or clean(name)} (plug-in {clean(plugin)})"


def method_label(row: Any) -> str:
    """The row's method, and what a view tries in place of the protocol's: `MaPeT, cutting point 30`.

    A board that has rows of plug-ins says of each row what brought its method.
    """
    name = method_name(row["method"])
    if row.get("plugin"):
        name = plugin_method_name(row["method"], title=row["method_title"], plugin=row["plugin"])
    return f"{name}, {clean(row['variant'].replace('_', ' '))}" if row["variant"] else name


def clean(value: str) -> str:
    """`value` on one line, without control characters: an error may hold a terminal's escape codes."""
    kept = ("" if unicodedata.category(one) in ("Cc", "Cf", "Cs") else one for one in " ".join(value.split()))
    return "".join(kept)


def text(value: Any) -> str:
    """A text cell."""
    return clean(str(value)) if not pd.isna(value) and str(value) else MISSING


def integer(value: Any) -> str:
    """A count, thousands apart."""
    return MISSING if pd.isna(value) else f"{int(value):,}"


def percent(value: Any) -> str:
    """Two decimals, as one image of ten thousand is 0.01 per cent."""
    return MISSING if pd.isna(value) else f"{value:.2f}"


def almost(value: Any) -> str:
    """Per cent of what should be the same throughout: nothing but 100 reads as 100."""
    return percent(min(value, 99.99) if not pd.isna(value) and value < 100 else value)


def signed(value: Any) -> str:
    """Percentage points, with their sign unless they round to zero."""
    if pd.isna(value):
        return MISSING
    return f"{value:+.2f}" if round(value, 2) else "0.00"


def compact(value: Any) -> str:
    """A figure of a card: whole numbers whole, others to three or more digits."""
    if pd.isna(value):
        return MISSING
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 100 else f"{value:.3g}"


def magnitude(value: Any) -> str:
    """A large count to three digits: 1.25M."""
    if pd.isna(value):
        return MISSING
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        # What would round to 1000 of the smaller unit is one of the larger.
        if value >= 0.9995 * size:
            return f"{_three_digits(value / size)}{unit}"
    return f"{value:.0f}"


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def power_of_ten(value: Any) -> str:
    """A FLOP count: 3.41e15."""
    if pd.isna(value):
        return MISSING
    digits, exponent = f"{value:.2e}".split("e")
    return f"{digits}e{int(exponent)}"


def duration(seconds: Any) -> str:
    """Hours and minutes, minutes and seconds, or seconds, whichever says most."""
    if pd.isna(seconds):
        return MISSING
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    if whole < 60:
        return f"{whole}s"
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60:,}h{minutes % 60:02d}m"
