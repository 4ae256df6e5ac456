"""The section of classifiers that were only measured: its words, its table, and the same for one of them."""

from __future__ import annotations

from typing import Any

import pandas as pd

from leaderboard.frames import Order
from leaderboard.grids import Column, Grid, clean, duration, integer, percent, signed, text
from leaderboard.lineage import Lineage
from leaderboard.record import Record
from leaderboard.statistics import INTERVAL
from leaderboard.validation_rows import validations_frame

TITLE = "Published classifiers, evaluated as they are"
_NOTE = (
    "Files of fine-tuned weights that this harness did not train, measured as they are: they stand on no row "
    "and are compared with none. Reported is the paper's top-1 for a file of that name, rounded to 0.1; no "
    "digest is published to tell the file by. Difference is measured less reported, in percentage points, "
    f"with its {INTERVAL:.0%} interval: exact binomial (Clopper and Pearson) over the measured images, the "
    "reported number taken as exact. It says how far the difference could move with other images of the "
    "same kind. The paper's number is of these very images, so the authors' own file, measured as they did, "
    "should differ by little more than the rounding."
)
CSV_NAME = "published.csv"


def validation_note(frame: pd.DataFrame) -> str:
    """What the figures of the section's table mean."""
    sizes = " or ".join(integer(size) for size in sorted(set(frame["images"])))
    return f"{_NOTE} Top-1 and top-5 are in per cent of {sizes} images."


def validation_grid(frame: pd.DataFrame) -> Grid:
    """File, trunk, what was measured, what is reported, and how far they lie apart."""
    columns = [Column("file", False), Column("trunk", False)]
    names = ("top-1", "top-5", "reported", "difference", f"{INTERVAL:.0%} interval")
    rows = [
        (
            _file(row),
            text(row["trunk"]),
            percent(row["top1_percent"]),
            percent(row["top5_percent"]),
            _one_decimal(row["reported_top1_percent"]),
            signed(row["difference_points"]),
            _interval(row),
        )
        for _, row in frame.iterrows()
    ]
    return Grid(columns=(*columns, *(Column(name, True) for name in names)), rows=tuple(rows))


def summary(record: Record) -> str:
    """What was measured of one classifier, for a terminal."""
    frame = validations_frame(
        [record],
        Lineage([record]),
        record.protocol.slices,
        Order(methods=(), tokenizers=(), trunks=(), evaluations=()),
    )
    row = frame.iloc[0]
    top5 = "" if pd.isna(row["top5_percent"]) else f", top-5 {percent(row['top5_percent'])} %"
    lines = [
        f"{text(row['file'])}, SHA-256 {row['sha256'][:12]}",
        f"  {text(row['trunk'])}; {integer(row['images'])} {clean(record.data_set.part)} images of "
        f"{text(row['data'])}; {clean(row['precision'])} on {text(row['hardware'])}; "
        f"{duration(row['wall_seconds'])}",
        f"  top-1 {percent(row['top1_percent'])} %{top5}",
    ]
    if pd.isna(row["reported_top1_percent"]):
        lines.append(f"  {INTERVAL:.0%} interval of top-1: {_bounds(row, 'top1', 'percent', percent)} %")
    else:
        reported = f"{_one_decimal(row['reported_top1_percent'])} % ({text(row['reported_by'])})"
        lines.append(
            f"  reported {reported}: difference {signed(row['difference_points'])} points, "
            f"{INTERVAL:.0%} interval {_interval(row)}"
        )
    return "\n".join(lines + [f"  {clean(deviation)}" for deviation in record.compliance.deviations[1:]])


def _file(row: Any) -> str:
    """The file's name, and what sets its row apart: arithmetic, pooling, another version of the protocol."""
    apart = [] if row["precision"] == "fp32" else [row["precision"]]
    if row["pooling"] == "class-token":
        apart.append("class token")
    if row["differing_slices"]:
        apart.append(f"not as in the current protocol: {row['differing_slices']}")
    return text(row["file"]) + (f" ({clean('; '.join(apart))})" if apart else "")


def _interval(row: Any) -> str:
    return _bounds(row, "difference", "points", signed)


def _bounds(row: Any, figure: str, unit: str, show: Any) -> str:
    low, high = row[f"{figure}_low_{unit}"], row[f"{figure}_high_{unit}"]
    return text(None) if pd.isna(low) else f"{show(low)} to {show(high)}"


def _one_decimal(value: Any) -> str:
    """As papers print it."""
    return text(None) if pd.isna(value) else f"{value:.1f}"
