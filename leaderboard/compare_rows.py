"""Two rows of a board against each other, evaluation by evaluation, at both levels: the command `compare`."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from leaderboard.checkpoint_tests import CheckpointTest, compare_checkpoints, smallest_checkpoint_difference
from leaderboard.comparisons import TOP1, CorrectImages, claim_sentence, seeds_of
from leaderboard.fairness import unlike
from leaderboard.grids import EVALUATION_NAMES
from leaderboard.method_tests import METHOD_ALPHA, TOO_FEW, Seeds, compare_methods, smallest_method_difference
from leaderboard.predictions import PredictionsLoader
from leaderboard.row_names import is_same_row, row_command, row_key, row_name
from leaderboard.runs import RowKey, Run
from leaderboard.statistics import ALPHA, holm
from leaderboard.tables import Board
from protocols.errors import HarnessError, ProtocolViolation, unknown
from protocols.schema import Protocol


@dataclass(frozen=True, kw_only=True)
class SeedComparison:
    """One seed of both rows: their checkpoints' test, and its p adjusted after Holm."""

    seed: int
    test: CheckpointTest
    p_holm: float


@dataclass(frozen=True, kw_only=True)
class EvaluationComparison:
    """One evaluation of both rows. Means and differences (a - b) in per cent and percentage points.

    `says` is what is said of the methods; `low`, `high`, `p` and `p_holm` are NaN where nothing is.
    `without_predictions` are the seeds whose images cannot be paired because a cell kept none.
    """

    evaluation: str
    seeds_a: tuple[int, ...]
    seeds_b: tuple[int, ...]
    a: Seeds
    b: Seeds
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    says: str
    smallest_of_methods: float | None
    checkpoints: tuple[SeedComparison, ...]
    smallest_of_checkpoints: float | None
    without_predictions: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class RowComparison:
    """Two rows by name, what they differ in by name, and each evaluation that both were measured in.

    `untokenised` is the row that was pre-trained without a tokenizer beside one that has one; else empty.
    """

    title: str
    a: str
    b: str
    differ_in: tuple[str, ...]
    evaluations: tuple[EvaluationComparison, ...]
    only_in_one: tuple[str, ...]
    untokenised: str = ""


def compare_rows(
    board: Board,
    protocol: Protocol,
    predictions: PredictionsLoader,
    *,
    a: str,
    b: str,
    evaluations: Sequence[str] = (),
    protocol_argument: str | None = None,
) -> RowComparison:
    """Both levels for the rows named `a` and `b`, in all evaluations that both have, or those named.

    Raises HarnessError for a row or an evaluation that the protocol does not have, a row of which nothing
    on the board was measured, one row given twice, rows without a common evaluation, damaged predictions.
    Raises ProtocolViolation for rows of one trunk of which it is not proven that all else was equal.
    """
    keys = [row_key(protocol, board, name) for name in (a, b)]
    if keys[0] == keys[1]:
        raise HarnessError(f"{a!r} and {b!r} are one row, {row_name(keys[0])}; give two different rows")
    asked = [_evaluation(protocol, name) for name in evaluations]
    start = f"python run_benchmark.py --protocol {shlex.quote(protocol_argument or protocol.name)}"
    if bool(keys[0].method) != bool(keys[1].method):
        raise HarnessError(
            f"{row_name(keys[0])} and {row_name(keys[1])} have no evaluation in common: tokens alone are "
            "classified by evaluations of their own; give two rows of methods, or two of tokens"
        )
    rows = [_measured(board, key, protocol, start) for key in keys]
    names = (row_name(keys[0]), row_name(keys[1]))
    common = [name for name in rows[0] if name in rows[1] and (not asked or name in asked)]
    if not common:
        raise HarnessError(_nothing_common(names, rows, asked, keys, protocol, board, start))
    _check_alike(names, [{name: row[name] for name in common} for row in rows], keys)
    images = CorrectImages(predictions)
    compared = _adjusted([_compared(name, rows[0][name], rows[1][name], images) for name in common], names)
    fields = [name for name in RowKey._fields if getattr(keys[0], name) != getattr(keys[1], name)]
    one_sided = [
        name for name in dict.fromkeys(chain(*rows)) if name not in common and (not asked or name in asked)
    ]
    return RowComparison(
        title=board.title,
        a=names[0],
        b=names[1],
        differ_in=tuple("tried values" if name == "variant" else name for name in sorted(fields)),
        evaluations=tuple(compared),
        only_in_one=tuple(one_sided),
        untokenised=_untokenised(names, keys, rows),
    )


def _untokenised(
    names: Sequence[str], keys: Sequence[RowKey], rows: Sequence[Mapping[str, Mapping[int, Run]]]
) -> str:
    """The one of two rows that alone has no tokenizer, if it was pre-trained."""
    if bool(keys[0].tokenizer) == bool(keys[1].tokenizer) or not keys[0].method:
        return ""
    place = 0 if not keys[0].tokenizer else 1
    runs = (run for row in rows[place].values() for run in row.values())
    return names[place] if any(run.pretraining is not None for run in runs) else ""


def _evaluation(protocol: Protocol, name: str) -> str:
    known = protocol.names("evaluations")
    if name.lower() not in known:
        raise unknown("evaluation", name, known)
    return name.lower()


def _measured(board: Board, key: RowKey, protocol: Protocol, start: str) -> dict[str, dict[int, Run]]:
    """Evaluation -> seed -> run, in the board's order. Raises HarnessError if there is none."""
    found: dict[str, dict[int, Run]] = {}
    standings: Counter[str] = Counter()
    for run in board.cells:
        if not is_same_row(run.key, key) or run.top1_percent is None or run.record.seed is None:
            continue
        if run.standing == "board":
            found.setdefault(run.evaluation, {})[run.record.seed] = run
        else:
            standings[run.standing] += 1
    if found:
        return found
    apart = ", ".join(f"{count} {standing}" for standing, count in standings.items())
    why = f"nothing of {row_name(key)} stands on the board" + (f" ({apart})" if apart else "")
    redo = " --redo-stale" if standings["stale"] else ""
    raise HarnessError(f"{why}; measure it with: {row_command(key, protocol, board, start=start)}{redo}")


def _nothing_common(
    names: Sequence[str],
    rows: Sequence[Mapping[str, object]],
    asked: Sequence[str],
    keys: Sequence[RowKey],
    protocol: Protocol,
    board: Board,
    start: str,
) -> str:
    has = "; ".join(f"{name} was measured by {', '.join(row)}" for name, row in zip(names, rows, strict=True))
    wanted = f"{', '.join(asked)} of both" if asked else "an evaluation of both"
    missing = list(asked) or list(rows[0])
    lacking = [key for key, row in zip(keys, rows, strict=True) if not any(name in row for name in missing)]
    key = (lacking or keys)[0]
    command = row_command(key, protocol, board, start=start, evaluations=missing)
    remedy = f"measure what is missing with: {command}"
    if not command:
        remedy = f"no view of protocol {protocol.name} asks for {', '.join(missing)} of {row_name(key)}"
    return f"the board does not have {wanted}: {has}; {remedy}"


def _check_alike(
    names: Sequence[str], rows: Sequence[Mapping[str, Mapping[int, Run]]], keys: Sequence[RowKey]
) -> None:
    # Two trunks are two recipes: whoever asks for both asks for that difference too, and is told of it.
    if keys[0].trunk != keys[1].trunk:
        return
    for evaluation in rows[0]:
        if unlike([list(row[evaluation].values()) for row in rows]):
            raise ProtocolViolation(
                f"{names[0]} and {names[1]} are not compared: the records of {evaluation} do not prove that "
                "all else was equal; the fairness proof of the command report names the fields"
            )


def _compared(
    evaluation: str, a: Mapping[int, Run], b: Mapping[int, Run], images: CorrectImages
) -> EvaluationComparison:
    seeds = [seeds_of(row, TOP1) for row in (a, b)]
    tests = compare_methods(seeds, [(0, 1)])
    checkpoints, without = [], []
    for seed in sorted(a.keys() & b.keys()):
        right_a, right_b = images.of(a[seed]), images.of(b[seed])
        if right_a is None or right_b is None:
            without.append(seed)
            continue
        test = compare_checkpoints(right_a, right_b)
        checkpoints.append(SeedComparison(seed=seed, test=test, p_holm=float("nan")))
    return EvaluationComparison(
        evaluation=evaluation,
        seeds_a=tuple(sorted(a)),
        seeds_b=tuple(sorted(b)),
        a=seeds[0],
        b=seeds[1],
        difference=float(tests.difference[0]),
        low=float(tests.low[0]),
        high=float(tests.high[0]),
        p=float(tests.p[0]),
        p_holm=float("nan"),
        says="",
        smallest_of_methods=None,
        checkpoints=tuple(checkpoints),
        smallest_of_checkpoints=None,
        without_predictions=tuple(without),
    )


def _adjusted(compared: Sequence[EvaluationComparison], names: tuple[str, ...]) -> list[EvaluationComparison]:
    """The same with Holm's p, each level a family over all evaluations, and what follows from it."""
    methods = holm([one.p for one in compared])
    checkpoints = iter(holm([each.test.p for one in compared for each in one.checkpoints]))
    of_methods = int(np.sum(~np.isnan(methods)))
    of_checkpoints = sum(len(one.checkpoints) for one in compared)
    adjusted = []
    for one, p_holm in zip(compared, methods, strict=True):
        tests = tuple(replace(each, p_holm=float(next(checkpoints))) for each in one.checkpoints)
        full = replace(one, p_holm=float(p_holm), checkpoints=tests)
        adjusted.append(
            replace(
                full,
                says=_said(full, names),
                smallest_of_methods=_smallest_of_methods(full, METHOD_ALPHA / of_methods)
                if of_methods
                else None,
                smallest_of_checkpoints=_smallest_of_checkpoints(full, ALPHA / max(1, of_checkpoints)),
            )
        )
    return adjusted


def _said(one: EvaluationComparison, names: Sequence[str]) -> str:
    if np.isnan(one.p_holm):
        return TOO_FEW.capitalize()
    if one.p_holm >= METHOD_ALPHA:
        return f"{names[0]} and {names[1]} cannot be told apart"
    return claim_sentence(
        level="methods",
        a=names[0],
        b=names[1],
        column=EVALUATION_NAMES.get(one.evaluation, one.evaluation),
        difference=one.difference,
        low=one.low,
        high=one.high,
        p_holm=one.p_holm,
        seeds_or_images=min(len(one.seeds_a), len(one.seeds_b)),
        seed=None,
    )


def _smallest_of_methods(one: EvaluationComparison, alpha: float) -> float | None:
    if np.isnan(one.p):
        return None
    spread = float(np.sqrt((one.a.sd**2 + one.b.sd**2) / 2))
    return smallest_method_difference(spread, seeds=min(len(one.seeds_a), len(one.seeds_b)), alpha=alpha)


def _smallest_of_checkpoints(one: EvaluationComparison, alpha: float) -> float | None:
    if not one.checkpoints:
        return None
    tests = [each.test for each in one.checkpoints]
    unlike = float(np.mean([(test.only_a + test.only_b) / test.images for test in tests]))
    return smallest_checkpoint_difference(
        min(test.images for test in tests), share_unlike=unlike, alpha=alpha
    )
