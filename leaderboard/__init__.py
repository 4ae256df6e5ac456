"""Reads records and shows them: boards, statistics and the page. Never loads torch."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["load_curves", "load_records"]


def load_records(
    work_dir: str | PathLike[str] = "runs",
    protocol: str | Sequence[str] | None = None,
    *,
    metrics: Literal["wide", "long"] = "wide",
) -> pd.DataFrame:
    """The cells of a work dir, a line each, whatever became of them: `leaderboard.notebook.COLUMNS` says
    what each column is, in which unit. See `leaderboard.notebook.load_records`."""
    from leaderboard import notebook  # pandas is loaded by who asks for frames

    return notebook.load_records(work_dir, protocol, metrics=metrics)


def load_curves(
    work_dir: str | PathLike[str] = "runs", protocol: str | Sequence[str] | None = None
) -> pd.DataFrame:
    """What the cells of a work dir wrote while they trained. See `leaderboard.notebook.load_curves`."""
    from leaderboard import notebook

    return notebook.load_curves(work_dir, protocol)
