"""How much the order of the methods depends on choices: the share of predicted patches, the learning rate.

The view `sensitivity` of a protocol says what is tried. A setting is what all methods share: `19 of 49
predicted` is a mask count of one method and a cutting point of another.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pandas as pd

from leaderboard.figure_curves import Curve, CurvePanel, draw_curves
from leaderboard.figure_style import drawn
from leaderboard.figures import UNTOKENISED, interval_over_seeds
from leaderboard.grids import EVALUATION_NAMES, MISSING, Column, Grid, clean, method_name, percent, signed
from leaderboard.row_runs import RowRuns, left_out_note, left_out_rows
from leaderboard.runs import RowKey
from leaderboard.sections import Block, Figure, Section
from leaderboard.stability import Stability, stability
from leaderboard.tables import Board
from leaderboard.tried import number, patches_of, predicted_of, setting_label, tried_values
from leaderboard.view_table import ViewTable
from protocols.schema import Protocol

VIEW_NAME = "sensitivity"
SECTION_NAME = "sensitivity-study"  # an anchor of the page, as the view's table has one
OWN = "the protocol's"
SHARES = ("mask_count", "cutting_point")
ENOUGH_SEEDS = 3


@dataclass(frozen=True, kw_only=True)
class Study:
    """One trunk, tokenizer and evaluation: `rows` maps a setting to the methods' rows, OWN first.

    Only what was measured is in it; `wanted` counts the places that the view asks for.
    """

    trunk: str
    tokenizer: str
    evaluation: str
    methods: tuple[str, ...]
    rows: Mapping[str, Mapping[str, RowKey]]
    wanted: int

    @property
    def measured(self) -> int:
        """Places of which something was measured."""
        return sum(len(of_setting) for of_setting in self.rows.values())

    @property
    def title(self) -> str:
        """`linear probe, k-feature, vit-mini`."""
        name = EVALUATION_NAMES.get(self.evaluation, clean(self.evaluation))
        return ", ".join([name, clean(self.tokenizer) or UNTOKENISED, clean(self.trunk)])

    @property
    def file_name(self) -> str:
        """What the names of its files end in."""
        return "-".join([self.evaluation, self.tokenizer or "no-tokenizer", self.trunk])


def sensitivity_section(
    board: Board,
    protocol: Protocol,
    tables: Sequence[ViewTable] = (),
    *,
    left_out: Collection[tuple[str, int]] = (),
) -> Section | None:
    """The study that the protocol's view asks for, as far as it was measured; None before any of it was.

    `left_out` are (table, row) of `tables` of which it is not proven that all else was equal.
    """
    apart = left_out_rows([table for table in tables if table.name == VIEW_NAME], left_out)
    runs = RowRuns.of(board, without=apart)
    studies = [study for study in find_studies(runs, protocol) if set(study.rows) - {OWN}]
    if not studies:
        return None
    blocks: list[Block] = []
    figures: list[Figure] = []
    notes: list[str] = []
    for study in studies:
        means = study_means(study, runs)
        stabilities = {
            name: stability(*_over_shared_seeds(study, runs, name))
            for name in means
            if name != OWN and OWN in means
        }
        blocks.append(_settings_block(study, runs, means, stabilities))
        if stabilities and len(means[OWN]) > 1:
            blocks.append(_pairs_block(study, means, stabilities))
        figures += _figures(study, runs, protocol)
        notes.append(_in_words(study, runs, means, stabilities))
    notes += left_out_note(apart.values())
    notes.append(
        "Kendall's tau is 1 where the means stand in the order of the protocol's setting and -1 where they "
        "stand in the reverse; a pair changes sides where the sign of its difference does. Both describe "
        "means: which methods differ is said under the statistics."
    )
    return Section(
        name=SECTION_NAME,
        title="How much the order depends on the settings",
        blocks=tuple(blocks),
        figures=tuple(figures),
        notes=tuple(notes),
    )


def find_studies(runs: RowRuns, protocol: Protocol) -> list[Study]:
    """What the view asks for and the board has, one for each trunk, tokenizer and evaluation.

    A method whose rows have no tokenizer stands in a study without one, whatever its cells name.
    """
    view = protocol.views.get(VIEW_NAME)
    if view is None:
        return []
    by_setting = {(*key[:3], frozenset(tried_values(key.variant).items())): key for key in runs.rows}
    without = {key.method for key in runs.rows if not key.tokenizer}
    found: dict[tuple[str, str, str], dict[str, dict[str, RowKey]]] = {}
    wanted: dict[tuple[str, str, str], set[tuple[str, str]]] = {}
    asked: dict[tuple[str, str, str], dict[str, None]] = {}
    for cells in view.cells:
        tried = [
            f"{name} {value}"
            for name, values in {**cells.hyperparameters, **cells.pretraining}.items()
            for value in values
        ]
        for trunk in cells.trunks:
            for method in cells.methods:
                own = {**protocol.method_values(method, trunk), **protocol.slice("pretraining")}
                # A value that is the protocol's own is its own setting.
                variants = [one for one in tried if not _is_own(one, own)]
                for variant in dict.fromkeys(["", *variants]):
                    label = setting_label(protocol, method, trunk, variant) or OWN
                    values = frozenset(tried_values(variant).items())
                    for tokenizer in ("",) if method in without else cells.tokenizers or ("",):
                        for evaluation in cells.evaluations:
                            group = (trunk, tokenizer, evaluation)
                            asked.setdefault(group, {}).setdefault(method)
                            wanted.setdefault(group, set()).add((label, method))
                            row = by_setting.get((trunk, tokenizer, method, values))
                            of_group = found.setdefault(group, {OWN: {}})
                            if row is not None and runs.tops(row, evaluation):
                                of_group.setdefault(label, {})[method] = row
    order = list(protocol.names("methods"))
    return [
        Study(
            trunk=group[0],
            tokenizer=group[1],
            evaluation=group[2],
            methods=tuple(sorted(asked[group], key=order.index)),
            rows={label: rows for label, rows in of_group.items() if rows},
            wanted=len(wanted[group]),
        )
        for group, of_group in found.items()
    ]


def _is_own(variant: str, own: Mapping[str, Any]) -> bool:
    ((name, value),) = tried_values(variant).items()
    set_to = str(own.get(name))
    return value == set_to or (number(value) is not None and number(value) == number(set_to))


def study_means(study: Study, runs: RowRuns) -> dict[str, dict[str, float]]:
    """Setting -> method -> mean top-1 over seeds."""
    means: dict[str, dict[str, float]] = {}
    for setting, rows in study.rows.items():
        for method in study.methods:
            if method in rows and (mean := runs.mean(rows[method], study.evaluation)) is not None:
                means.setdefault(setting, {})[method] = mean
    return means


def _over_shared_seeds(
    study: Study, runs: RowRuns, setting: str
) -> tuple[dict[str, float], dict[str, float]]:
    """Method -> mean top-1 at OWN, and at `setting`, over the seeds that were measured at both.

    Means of other seeds would put down to the setting what the seeds make of it.
    """
    own: dict[str, float] = {}
    other: dict[str, float] = {}
    for method in study.methods:
        rows = [study.rows[one].get(method) for one in (OWN, setting)]
        here, there = (runs.scores.get((row, study.evaluation), {}) if row else {} for row in rows)
        shared = sorted(here.keys() & there.keys(), key=str)
        if shared:
            own[method] = sum(here[seed] for seed in shared) / len(shared)
            other[method] = sum(there[seed] for seed in shared) / len(shared)
    return own, other


def spreads(means: Mapping[str, Mapping[str, float]], methods: Sequence[str]) -> dict[str, float | None]:
    """Method -> highest less lowest of its means over the settings, in points; None with fewer than two."""
    of_method = {name: [one[name] for one in means.values() if name in one] for name in methods}
    return {
        name: max(values) - min(values) if len(values) > 1 else None for name, values in of_method.items()
    }


def _settings_block(
    study: Study,
    runs: RowRuns,
    means: Mapping[str, Mapping[str, float]],
    stabilities: Mapping[str, Stability],
) -> Block:
    lines: list[dict[str, Any]] = []
    rows: list[tuple[str, ...]] = []
    for setting, of_setting in means.items():
        counts = {
            method: len(runs.tops(study.rows[setting][method], study.evaluation)) for method in of_setting
        }
        stable = stabilities.get(setting)
        lines += [
            {
                "trunk": study.trunk, "tokenizer": study.tokenizer, "evaluation": study.evaluation,
                "setting": setting, "method": method, "variant": study.rows[setting][method].variant,
                "top1_percent": mean, "seeds": counts[method],
                "kendall_tau": stable.tau if stable else None,
            }
            for method, mean in of_setting.items()
        ]  # fmt: skip
        rows.append(
            (
                setting,
                *(percent(of_setting.get(method)) for method in study.methods),
                _range(list(counts.values())),
                f"{stable.tau:.2f}" if stable and stable.tau is not None else MISSING,
                f"{len(stable.flipped)} of {len(stable.pairs)}" if stable and stable.pairs else MISSING,
            )
        )
    of_method = spreads(means, study.methods)
    rows.append(("spread (points)", *(percent(of_method[one]) for one in study.methods), *[MISSING] * 3))
    columns = (
        Column("setting", False), *(Column(method_name(method), True) for method in study.methods),
        Column("seeds", True), Column("tau", True), Column("flips", True),
    )  # fmt: skip
    return Block(
        name=f"{VIEW_NAME}-{study.file_name}",
        caption=f"Mean top-1 by setting: {study.title}",
        grid=Grid(columns=columns, rows=tuple(rows)),
        frame=pd.DataFrame(lines),
        notes=(
            "Tau and flips: the order of the means, and the pairs that change sides, against the protocol's "
            "setting, over the seeds that both have. Spread: the highest less the lowest mean of a method.",
        ),
    )


def _range(counts: Sequence[int]) -> str:
    return str(min(counts)) if min(counts) == max(counts) else f"{min(counts)}-{max(counts)}"


def _pairs_block(
    study: Study, means: Mapping[str, Mapping[str, float]], stabilities: Mapping[str, Stability]
) -> Block:
    lines: list[dict[str, Any]] = []
    for a, b in combinations([one for one in study.methods if one in means[OWN]], 2):
        compared = [name for name, stable in stabilities.items() if (a, b) in stable.pairs]
        flipped = [name for name in compared if (a, b) in stabilities[name].flipped]
        lines.append(
            {
                "trunk": study.trunk, "tokenizer": study.tokenizer, "evaluation": study.evaluation,
                "a": a, "b": b, "difference": means[OWN][a] - means[OWN][b],
                "settings": len(compared), "flips": len(flipped), "flipped_at": "; ".join(flipped),
            }
        )  # fmt: skip
    names = ("pair", "difference", "flips", "at")
    columns = tuple(
        Column(name, is_number) for name, is_number in zip(names, (False, True, True, False), strict=True)
    )
    rows = tuple(
        (
            f"{method_name(line['a'])} - {method_name(line['b'])}",
            signed(line["difference"]),
            f"{line['flips']} of {line['settings']}",
            line["flipped_at"] or MISSING,
        )
        for line in lines
    )
    return Block(
        name=f"{VIEW_NAME}-pairs-{study.file_name}",
        caption=f"How often a pair changes sides: {study.title}",
        grid=Grid(columns=columns, rows=rows),
        frame=pd.DataFrame(lines),
        notes=("Difference: of the means at the protocol's setting, in points.",),
    )


def _in_words(
    study: Study,
    runs: RowRuns,
    means: Mapping[str, Mapping[str, float]],
    stabilities: Mapping[str, Stability],
) -> str:
    """What the tables show, and what they do not support."""
    parts = []
    compared = {name: one for name, one in stabilities.items() if one.pairs}
    if compared:
        same = sum(not one.flipped for one in compared.values())
        taus = [one.tau for one in compared.values() if one.tau is not None]
        pairs = {pair for one in compared.values() for pair in one.pairs}
        flipped = {pair for one in compared.values() for pair in one.flipped}
        parts.append(
            f"at {same} of {len(compared)} other settings the means stand in the order of the protocol's "
            f"setting, and {len(flipped)} of {len(pairs)} pairs of methods change sides at some setting"
        )
        if taus:
            parts.append(f"Kendall's tau is {min(taus):.2f} at the least")
    known = {name: value for name, value in spreads(means, study.methods).items() if value is not None}
    if known:
        listed = ", ".join(f"{method_name(name)} {value:.2f}" for name, value in known.items())
        parts.append(f"means spread over, in points: {listed}")
    sentence = f"{study.title[0].upper()}{study.title[1:]}: {'; '.join(parts)}."
    if study.measured < study.wanted:
        sentence += f" {study.measured} of {study.wanted} places are measured so far."
    tops = [runs.tops(row, study.evaluation) for rows in study.rows.values() for row in rows.values()]
    if min(map(len, tops)) < ENOUGH_SEEDS:
        sentence += f" Fewer than {ENOUGH_SEEDS} seeds: this is said of these trainings, not of methods."
    return sentence


def _figures(study: Study, runs: RowRuns, protocol: Protocol) -> list[Figure]:
    """A figure per kind of value that was tried alone: the share of patches, fields of the recipe."""
    axes = {name for rows in study.rows.values() for row in rows.values() for name in _only(row)}
    figures = []
    if axes & set(SHARES):
        figures.append(_figure(study, runs, protocol, "share"))
    for name in sorted(axes - set(SHARES)):
        if isinstance(getattr(protocol.pretraining, name, None), int | float):
            figures.append(_figure(study, runs, protocol, name))
    return [figure for figure in figures if figure is not None]


def _only(row: RowKey) -> list[str]:
    """The one name that a variant tries; none of several at once, which lie on no one axis."""
    names = list(tried_values(row.variant))
    return names if len(names) == 1 else []


def _place(row: RowKey, protocol: Protocol, axis: str) -> float | None:
    """Where a row lies on the axis; None if it tries something else."""
    if row.variant and not (set(_only(row)) & (set(SHARES) if axis == "share" else {axis})):
        return None
    if axis == "share":
        predicted = predicted_of(protocol, row.method, row.trunk, row.variant)
        return None if predicted is None else 100 * predicted / patches_of(protocol, row.trunk)
    return number(str(tried_values(row.variant).get(axis, getattr(protocol.pretraining, axis))))


def _figure(study: Study, runs: RowRuns, protocol: Protocol, axis: str) -> Figure | None:
    curves = []
    for method in study.methods:
        points: list[tuple[float, tuple[float, ...]]] = []
        for rows in study.rows.values():
            if method in rows and (x := _place(rows[method], protocol, axis)) is not None:
                points.append((x, runs.tops(rows[method], study.evaluation)))
        if len(points) > 1:
            points.sort()
            bounds = [interval_over_seeds(tops) or (None, None) for _, tops in points]
            curves.append(
                Curve(
                    method=method,
                    xs=tuple(x for x, _ in points),
                    ys=tuple(sum(tops) / len(tops) for _, tops in points),
                    lows=tuple(low for low, _ in bounds),
                    highs=tuple(high for _, high in bounds),
                )
            )
    if not curves:
        return None
    label = "patches predicted (%)" if axis == "share" else axis.replace("_", " ")
    own = None if axis == "share" else float(getattr(protocol.pretraining, axis))
    words = "; ".join(
        f"{method_name(curve.method)} "
        + ", ".join(f"{x:.3g}: {y:.2f}" for x, y in zip(curve.xs, curve.ys, strict=True))
        for curve in curves
    )
    panel = CurvePanel(title="", curves=tuple(curves), own=own)
    return drawn(
        lambda: draw_curves([panel], x=label, y="top-1 (%)", is_log=own is not None and own > 0, height=2.1),
        name=f"{VIEW_NAME}-{axis.replace('_', '-')}-{study.file_name}",
        alt=f"{study.title}, mean top-1 by {label}: {words}.",
        caption=(
            f"{study.title}: mean top-1 by {label}, all else as the protocol sets it. Lines up and down: "
            "95% t interval over seeds, where there are two or more."
            + (" Dashed: the protocol's value." if own is not None else "")
        ),
    )
