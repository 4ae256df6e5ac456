"""The sentences under a board: what its numbers were measured on, and what they do not support."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from leaderboard.environments import environment_notes
from leaderboard.lineage import LINEAR_PROBE, SCRATCH, harness_version, runtime_choice
from leaderboard.record import Record
from leaderboard.runs import RowKey, Run
from leaderboard.statistics import CONFIDENCE

TOKENIZER_NOTE = (
    "Codebook use % is the share of the codes that some patch carries; dead codes are the others. Perplexity "
    "is the number of codes that, used evenly, would be as hard to guess (exp of the entropy). Commonest 1% "
    "hold % is the share of all patches, in per cent, whose token is among the commonest 1% of the "
    "codebook's entries (their number rounded up). Encoding images/s leaves out reading and resizing images "
    "and depends on the machine. Batch agreement % is the share of the tokens of a sample of images that are "
    "the same whether the images are encoded one by one or 64 at a time."
)


TOKEN_TITLE = "Classification from tokens alone"
TOKEN_NOTE = (
    "Classifiers that see an image's tokens and nothing else: what the tokens tell of its class. These are "
    "figures of tokenizers; no pre-training is in them. Top-5 counts an image as right if its label is among "
    "the classifier's five most likely classes."
)
STALE_NOTE = (
    "Made by code, or from a parent, that has changed since: in no row, gain or floor of the board. The "
    "command that made these cells makes them anew if --redo-stale is added to it."
)


def board_notes(runs: Sequence[Run]) -> tuple[str, ...]:
    """The notes for `runs`, of all standings."""
    shown = [run for run in runs if run.standing == "board"]
    done = [run for run in shown if run.top1_percent is not None]
    notes = ["Rows stand in the protocol's order, not by score. There are no ranks."]
    stale = sum(run.standing == "stale" and run.top1_percent is not None for run in runs)
    apart = f"{stale} {'measurement is' if stale == 1 else 'measurements are'} stale, and shown apart."
    if not done:
        return (*notes, apart if stale else "Nothing has been measured yet.")
    notes += _images_and_seeds(done)
    notes += _unlike_seeds(done)
    notes += _teachers(done)
    if any(run.record.stage == LINEAR_PROBE and run.key.method != SCRATCH for run in done):
        notes.append(_gain(done))
    if any(not run.is_of_tokens for run in done):
        notes.append(
            "Total is the wall time of one seed of a row: tokenising, pre-training and every evaluation "
            "(fine-tuning, linear probe)."
        )
    notes += _unlike_runtimes(done)
    notes += environment_notes(done)
    notes += _unchecked(done)
    superseded = [
        run.record.cell_id for run in runs if run.standing == "superseded" and run.top1_percent is not None
    ]
    if superseded:
        notes.append(
            "Not shown, because the same row was pre-trained again later with other hyperparameters of the "
            f"method: {_listed(superseded)}."
        )
    if stale:
        notes.append(apart)
    return tuple(notes)


def _images_and_seeds(done: Sequence[Run]) -> tuple[str, str]:
    sizes: dict[str, set[int]] = {}
    for run in done:
        sizes.setdefault(run.record.data_set.part, set()).add(run.record.metrics["top1_percent"].n)
    images = " and ".join(
        f"{' or '.join(f'{size:,}' for size in sorted(sizes[part]))} {part} images" for part in sorted(sizes)
    )
    seeds = sorted({run.record.seed for run in done if run.record.seed is not None})
    listed = ", ".join(map(str, seeds))
    measured = f"Top-1 is in per cent of {images}."
    if len(seeds) < 2:
        return measured, f"One seed ({listed or 'not stated'}): nothing is said about methods."
    return measured, (
        f"{len(seeds)} seeds ({listed}): mean and sample standard deviation over seeds. "
        "The images are the same for every seed, so the deviation leaves out the chance in choosing them."
    )


def _unlike_seeds(done: Sequence[Run]) -> list[str]:
    """What `3/1` in the column of seeds means, if a row has such."""
    seeds: dict[RowKey, Counter[str]] = {}
    for run in done:
        if not (run.is_of_tokens or run.key.variant):
            seeds.setdefault(run.key, Counter())[run.evaluation] += 1
    if all(len(set(counts.values())) == 1 for counts in seeds.values()):
        return []
    return [
        "Not every evaluation of a row has as many seeds: several numbers under seeds, as in 3/1, are in the "
        "columns' order."
    ]


def _teachers(done: Sequence[Run]) -> list[str]:
    """A tokenizer whose features were learned from labels hands them on to every row that uses it."""
    taught = {run.record.tokenizer.name: run.record.tokenizer.teacher for run in done if run.record.tokenizer}
    return [
        f"{name} has a teacher, {teacher}: rows on it learn from what that teacher was told."
        for name, teacher in sorted(taught.items())
        # Nothing more of "none": a user's own text may begin with the word and go on.
        if teacher and teacher != "none" and not teacher.startswith("none (")
    ]


def _gain(done: Sequence[Run]) -> str:
    text = (
        "Gain is the linear probe's top-1 less that of the random trunk of the same seed, in percentage "
        f"points. {CONFIDENCE:.0%} bound is the smallest over seeds of its one-sided {CONFIDENCE:.0%} lower "
        "confidence bound (paired bootstrap over images, its distribution computed, not drawn). Above 0 it "
        "says only that the frozen features of the pre-trained trunk classify these test images better than "
        "those of the random trunk of the same seed. It compares no two methods."
    )
    probes = [run for run in done if run.record.stage == LINEAR_PROBE and run.key.method != SCRATCH]
    without = sum(run.gain_points is None for run in probes)
    if without:
        text += f" {without} of {len(probes)} probes have no random trunk of their seed to be held against."
    return text


def _unlike_runtimes(done: Sequence[Run]) -> list[str]:
    """What no protocol fixes and may yet differ between the cells behind the rows."""
    cells: dict[str, Record] = {}
    for run in done:
        for record in (run.record, run.pretraining):
            if record is not None:
                cells[record.cell_id] = record
    notes = []
    for choice, title in (("precision", "precision"), ("device", "kind of device")):
        used = Counter(runtime_choice(record, choice) for record in cells.values())
        if len(used) > 1:
            counted = ", ".join(
                f"{value} in {count} {'cell' if count == 1 else 'cells'}"
                for value, count in sorted(used.items())
            )
            notes.append(
                f"Rows differ in {title}: {counted} (evaluations and their "
                "pre-trainings; runs.csv says which). Such differences move numbers."
            )
    versions = sorted({harness_version(record) for record in cells.values()})
    if len(versions) > 1:
        notes.append(
            f"The cells were made by {len(versions)} versions of the harness (git {', '.join(versions)}; "
            "runs.csv says which). Such differences may move numbers."
        )
    return notes


def _unchecked(done: Sequence[Run]) -> list[str]:
    """Records that an edit by hand would not show in, of the rows and of what they were made from."""
    digests = {record.cell_id: record.digest for run in done for record in (run.record, *run.ancestors)}
    without = sum(not digest for digest in digests.values())
    if not without:
        return []
    return [
        f"{without} of {len(digests)} records {'was' if without == 1 else 'were'} written by a version that "
        "kept no digest of them: whether somebody edited them since cannot be checked."
    ]


def _listed(cell_ids: Iterable[str]) -> str:
    return ", ".join(sorted(cell_ids))
