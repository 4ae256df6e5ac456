"""What stands under a view's table: how to read it, and how to fill it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from leaderboard.verdicts import STANDARD_ERRORS, TOLERANCE_POINTS

_STANDING = {
    "stale": "present code, or a parent made anew, would make the cell again; compared with nothing",
    "modified": "the cell changed what the protocol holds equal; compared with nothing",
}


def notes_of(
    frame: pd.DataFrame,
    *,
    source: str,
    lost: str,
    fill: Mapping[str, Sequence[str]],
    has_dashes: bool,
    only_trunk: str,
    untokenised: str,
    not_run: str,
) -> tuple[str, ...]:
    """The notes of one table. `source` and `lost` are of what is reported, `fill` the commands by verdict.

    `untokenised` are the methods that are pre-trained without tokens, `not_run` says which have no rows.
    """
    measured = frame[frame["mean"].notna()]
    compared = measured[measured["reported"].notna()]
    notes = [f"Trunk: {only_trunk}."] if only_trunk else []
    if len(measured):
        notes.append("Measured: mean ± standard deviation over seeds (how many), in per cent.")
    if source:
        notes.append(f"Reported: {source}.")
    notes += [lost] if lost else []
    if len(compared):
        notes.append(
            f"Reproduced: the two differ by at most {TOLERANCE_POINTS:g} points, or by {STANDARD_ERRORS:g} "
            "standard errors of the measured mean if that is more; off: by more."
        )
        if (compared["seeds"] == 1).any():
            notes.append(
                "Of one seed the standard error is not known: there, "
                f"{TOLERANCE_POINTS:g} points alone decide."
            )
    if not frame["is_ours"].all():
        notes.append(
            "Rows that are as reported are what other works say of their own, under other settings: not "
            "compared."
        )
    if untokenised:
        notes.append(
            f"Without a tokenizer: {untokenised}, whose targets are made from the images and are part of the "
            "method. Such a row has no tokenizer to be held equal in: a difference from it is one of method "
            "and targets together."
        )
    if has_dashes:
        notes.append("Where nothing but a dash stands, the table has no cell.")
    places = int(frame["is_ours"].sum())
    for said, commands in fill.items():
        count = int((frame["verdict"] == said).sum())
        verb = "is" if count == 1 else "are"
        why = f" ({_STANDING[said]})" if said in _STANDING else ""
        notes.append(f"{count} of {places} places {verb} {said}{why}; filled by: {' && '.join(commands)}")
    return tuple([*notes, not_run] if not_run else notes)
