"""What `compare` shows of two rows: plain text of 80 columns, and JSON."""

from __future__ import annotations

import json
import math
import textwrap
from dataclasses import asdict
from typing import Any

from leaderboard.compare_rows import EvaluationComparison, RowComparison
from leaderboard.comparisons import shown_p
from leaderboard.grids import EVALUATION_NAMES
from leaderboard.method_tests import MIN_SEEDS, Seeds
from leaderboard.statistics import mean_and_sd

_SEED_NAMES = ("seed", "a", "b", "only a", "only b", "a - b", "95 % interval", "p (Holm)")


def to_text(comparison: RowComparison, *, width: int = 80) -> str:
    """Plain ASCII; lines of prose are at most `width` long, tables fit 80."""
    paragraphs = [
        f"{comparison.title}\n  a: {comparison.a}\n  b: {comparison.b}",
        f"They differ in {', '.join(comparison.differ_in)}. Top-1 in per cent, differences a - b in "
        "percentage points. Each level is adjusted after Holm over its tests on this page; a pair that was "
        "picked from a table needs the table's own adjustment, which the board has.",
    ]
    if comparison.untokenised:
        paragraphs.append(
            f"{comparison.untokenised} is pre-trained without a tokenizer: its targets are made from the "
            "images and are part of the method, so a difference is one of method and targets together."
        )
    for one in comparison.evaluations:
        paragraphs += _evaluation(one)
    if comparison.only_in_one:
        paragraphs.append(f"Measured of one of the two alone: {', '.join(comparison.only_in_one)}.")
    return "\n\n".join(_wrapped(text, width) for text in paragraphs)


def _evaluation(one: EvaluationComparison) -> list[str]:
    name = EVALUATION_NAMES.get(one.evaluation, one.evaluation)
    heading = f"{name}, {one.a.images:,} test images"
    methods = [
        "These methods, over seeds (Welch's t-test; the images are fixed):",
        f"  a  {_mean(one.a)}  {_seeds(one.seeds_a)}",
        f"  b  {_mean(one.b)}  {_seeds(one.seeds_b)}",
    ]
    if not math.isnan(one.p):
        methods += [
            f"  a - b  {one.difference:+.2f}  (95 % interval {one.low:+.2f} to {one.high:+.2f})",
            f"  p {shown_p(one.p)}, Holm-adjusted {shown_p(one.p_holm)}",
        ]
    used = min(len(one.seeds_a), len(one.seeds_b))
    if len(one.seeds_a) != len(one.seeds_b) and used >= MIN_SEEDS:
        methods.append(f"  a - b is of the first {used} seeds of each: tested are equally many.")
    blocks = [f"{heading}\n{'-' * len(heading)}", "\n".join(methods), f"{one.says}."]
    if one.smallest_of_methods is not None:
        blocks.append(
            f"With these seeds and their spread, a difference of methods of {one.smallest_of_methods:.2f} "
            "points would be found in 4 of 5 studies."
        )
    blocks.append("These checkpoints, seed by seed over the same images (McNemar's exact test):")
    if not one.checkpoints:
        reason = (
            f"no predictions of seed {', '.join(map(str, one.without_predictions))}"
            if one.without_predictions
            else "the rows have no seed in common"
        )
        return [*blocks, f"  Nothing can be said: {reason}."]
    blocks.append(_table(one))
    if one.without_predictions:
        blocks.append(f"No predictions of seed {', '.join(map(str, one.without_predictions))}.")
    if one.smallest_of_checkpoints is None:
        blocks.append("Too few images tell these checkpoints apart for any difference to be found.")
    else:
        blocks.append(
            "With these images and the share of them on which the checkpoints differ, a difference of "
            f"checkpoints of {one.smallest_of_checkpoints:.2f} points would be found in 4 of 5 studies."
        )
    return blocks


def _table(one: EvaluationComparison) -> str:
    values = {"a": dict(zip(one.seeds_a, one.a.values, strict=True)),
              "b": dict(zip(one.seeds_b, one.b.values, strict=True))}  # fmt: skip
    rows = [_SEED_NAMES]
    for each in one.checkpoints:
        test = each.test
        rows.append(
            (
                str(each.seed), f"{values['a'][each.seed]:.2f}", f"{values['b'][each.seed]:.2f}",
                f"{test.only_a:,}", f"{test.only_b:,}", f"{test.difference:+.2f}",
                f"{test.low:+.2f} to {test.high:+.2f}", shown_p(each.p_holm),
            )
        )  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(_SEED_NAMES))]
    lines = ("  ".join(cell.rjust(size) for cell, size in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(f"  {line}" for line in lines)


def _mean(seeds: Seeds) -> str:
    mean, sd = mean_and_sd(seeds.values)
    return f"{mean:.2f}" if sd is None else f"{mean:.2f} +- {sd:.2f}"


def _seeds(seeds: tuple[int, ...]) -> str:
    count = "1 seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
    return f"({count}: {', '.join(map(str, seeds))})"


def _wrapped(text: str, width: int) -> str:
    return "\n".join(
        line
        if len(line) <= width or line.startswith(" ")
        else textwrap.fill(line, width, break_long_words=False)
        for line in text.splitlines()
    )


def to_json(comparison: RowComparison) -> str:
    """Everything that is shown, raw; null where nothing is said."""
    whole = asdict(comparison) | {"least_seeds_for_methods": MIN_SEEDS}
    return json.dumps(_plain(whole), indent=1)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
