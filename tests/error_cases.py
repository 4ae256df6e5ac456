"""The errors that a user can cause, by what causes them: `python -m tests.error_cases > docs/errors.md`.

tests/test_errors.py causes each one and checks its exit code, its form and the page.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from benchmark.cli import main
from tests.data_set_error_cases import DATA_SET_CASES
from tests.error_settings import (
    SMALL,
    CopyOfMini,
    Setting,
    begin_with_other_code,
    change_tokens,
    corrupt_record,
    cut_tokens,
    damaged_lock,
    delete_backbone,
    delete_predictions,
    delete_tokens,
    edit_record,
    edited_release,
    empty,
    file_of,
    finished_run,
    folder_of,
    launched,
    locked_work_dir,
    mine,
    no_images,
    no_permission,
    no_permission_to_write,
    replace_record,
    tampered_images,
    write_notes,
)
from tests.further_error_cases import FURTHER_CASES
from tests.preflight_error_cases import DATA_CASES
from tests.token_error_cases import TOKEN_CASES


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to go wrong. `given`, `where` and `remedy` are parts of the text that must not get lost."""

    title: str
    command: str
    given: str
    where: str
    remedy: str
    exit_code: int = 2
    setting: Setting = empty


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a case ended with; paths and digests of this one machine are named in words."""

    exit_code: int
    text: str


VIEW_OF_TOKENS = """\
  mine:
    title: Mine
    cells:
      - {methods: [mim], tokenizers: [k-pixel], trunks: [vit-mini], evaluations: [token-mlp]}
  table2:
"""
PLAN = "plan --protocol"
TINY = "--protocol tiny.yaml"
GO_ON = " ".join(["--protocol tiny.yaml --work-dir runs", *SMALL])
MIM = "mask_count: {value: 25,"
EPOCHS = "epochs: {value: 5,"
RATE = "min_lr: {value: 1e-5"
TWICE = f"epochs: {{value: 4, source: a try}}\n  {RATE}"
START = 'start: {value: 6000, source: "what pre-training and training leave"}'
HALF = (
    'mask_count: {value: 25, assumed: "half of 49, equal for the mask methods and the permuted ones", '
    "alternatives: [19, 37]}"
)

SECTIONS: dict[str, tuple[Case, ...]] = {
    "Names": (
        Case(title="a command", command="raport", given="'raport'", where="command",
             remedy="did you mean 'report'"),
        Case(title="an option", command="--protocal mini", given="--protocal", where="option",
             remedy="did you mean --protocol?"),
        Case(title="an option of another command", command="report --protocol mini --seeds 0",
             given="--seeds", where="option", remedy="report --help"),
        Case(title="an option that is needed", command="", given="--protocol", where="required",
             remedy="run_benchmark.py --help"),
        Case(title="an option without its value", command="--protocol", given="--protocol", where="argument",
             remedy="run_benchmark.py --help"),
        Case(title="a kind of names", command="list cats", given="'cats'", where="KIND",
             remedy="'protocols', 'methods'"),
        Case(title="a shell", command="completion csh", given="'csh'", where="shell", remedy="'bash'"),
        Case(title="a choice", command="--protocol mini --device tpu", given="'tpu'", where="--device",
             remedy="'auto', 'cpu', 'cuda'"),
        Case(title="a protocol", command="--protocol minni", given="'minni'", where="protocol",
             remedy="did you mean 'mini'"),
        Case(title="a protocol without its option", command="plan mini", given="'mini'",
             where="stands alone", remedy="did you mean --protocol mini?"),
        Case(title="a folder as a protocol", command="--protocol mine", setting=folder_of("mine"),
             given="'mine'", where="--protocol", remedy="is a folder, not a file"),
        Case(title="a protocol's file", command="--protocol other.yaml", given="'other.yaml'",
             where="protocol file", remedy="no protocol file"),
        Case(title="a method", command="--protocol mini --methods mappet", given="'mappet'",
             where="method of protocol mini", remedy="did you mean 'mapet'"),
        Case(title="a tokenizer", command="--protocol mini --tokenizers k-clip", given="'k-clip'",
             where="tokenizer of protocol mini", remedy="known: k-feature, k-pixel"),
        Case(title="a trunk", command="--protocol mini --trunks vit-b", given="'vit-b'",
             where="trunk of protocol mini", remedy="vit-mini"),
        Case(title="an evaluation", command="--protocol mini --evaluations probe", given="'probe'",
             where="evaluation of protocol mini", remedy="did you mean 'linear-probe'"),
        Case(title="a view", command="--protocol fair300 --views table9", given="'table9'",
             where="view of protocol fair300", remedy="did you mean 'table8'"),
        Case(title="no names at all", command="--protocol mini --methods ,", given="','", where="--methods",
             remedy="at least one name, or all"),
        Case(title="a seed", command="--protocol mini --seeds one", given="'one'", where="--seeds",
             remedy="from 0 to 4294967295"),
        Case(title="a part of a protocol", command="explain mini evaluation", given="'evaluation'",
             where="protocol mini", remedy="evaluations"),
        Case(title="cells that no view holds",
             command=f"{PLAN} fair300 --methods scratch --evaluations linear-probe", given="table1",
             where="protocol fair300", remedy="every combination with --views none"),
        Case(title="a view that asks an evaluation of tokens of methods", command=f"{PLAN} mine.yaml",
             setting=mine("  table2:\n", VIEW_OF_TOKENS), given="token-mlp",
             where="views.mine.cells.0.evaluations", remedy="without methods and trunks"),
    ),
    "Values on the command line": (
        Case(title="an unknown value", command="--protocol mini --set pretraining.epoch=1",
             given="pretraining.epoch=1", where="--set", remedy="did you mean 'pretraining.epochs'"),
        Case(title="a value that is missing", command="--protocol mini --set pretraining.peak_lr",
             given="pretraining.peak_lr", where="--set", remedy="write pretraining.peak_lr=VALUE"),
        Case(title="a value that is none", command="--protocol mini --set pretraining.epochs=[", given="'['",
             where="--set", remedy="is not a value"),
        Case(title="a value of another type", command="--protocol mini --set pretraining.epochs=many",
             given="'many'", where="pretraining.epochs", remedy="must be a whole number"),
        Case(title="values that do not fit together",
             command="--protocol mini --set pretraining.warmup_epochs=9", given="9",
             where="--set pretraining.warmup_epochs=9", remedy="must be less than epochs 5"),
        Case(title="a value out of range", command="--protocol mini --set pretraining.drop_path=1.5",
             given="1.5", where="pretraining.drop_path", remedy="less than 1"),
        Case(title="a method's own value out of range",
             command="--protocol mini --set methods.mim.mask_count=50", given="50",
             where="method mim: mask_count", remedy="at most 49"),
        Case(title="sizes that do not fit", command="--protocol mini --set trunks.vit-mini.patch_size=5",
             given="patch_size 5", where="trunk vit-mini", remedy="not a multiple"),
        Case(title="more images than there are", command="--protocol mini --set data.test.count=4001",
             given="4001", where="data set fashion-mnist-12k: test", remedy="which has 4000"),
        Case(title="a number that is none", command="--protocol mini --workers two", given="'two'",
             where="--workers", remedy="run_benchmark.py --help"),
        Case(title="a number of data workers", command="--protocol mini --workers -1", given="got -1",
             where="--workers", remedy="must be 0 or more"),
        Case(title="a number of cells side by side", command="--protocol mini --jobs 0", given="got 0",
             where="--jobs", remedy="must be 1 or more"),
        Case(title="a rate for the plan", command=f"{PLAN} mini --tflops 0", given="got 0", where="--tflops",
             remedy="more than 0"),
        Case(title="GPUs for the plan", command=f"{PLAN} mini --gpus 0", given="got 0", where="--gpus",
             remedy="1 or more"),
    ),
    "Protocol files": (
        Case(title="not YAML", command=f"{PLAN} mine.yaml",
             setting=file_of("mine.yaml", "name: mine\nversion: [1\n"), given="YAML", where="mine.yaml:3",
             remedy="expected"),
        Case(title="no mapping", command=f"{PLAN} mine.yaml", setting=file_of("mine.yaml", "- mini\n"),
             given="mapping", where="mine.yaml", remedy="a mapping of names to values"),
        Case(title="a tag that would run code", command=f"{PLAN} mine.yaml",
             setting=mine(EPOCHS, "epochs: {value: !!python/name:os.system '',"),
             given="python/name:os.system", where="pretraining.epochs", remedy="not allowed"),
        Case(title="a key that stands twice", command=f"{PLAN} mine.yaml",
             setting=mine(RATE, TWICE),
             given="pretraining.epochs", where="mine.yaml:", remedy="keep one"),
        Case(title="an unknown key", command=f"{PLAN} mine.yaml", setting=mine(EPOCHS, "epoch: {value: 5,"),
             given="epoch", where="pretraining.epoch: unknown key", remedy="did you mean 'epochs'"),
        Case(title="an unknown key beside a value", command=f"{PLAN} mine.yaml",
             setting=mine("count: {value: 4000, source:", "count: {value: 4000, sauce: x, source:"),
             given="'sauce'", where="data.test.count", remedy="did you mean 'source'"),
        Case(title="a value without a source", command=f"{PLAN} mine.yaml",
             setting=mine(START, "start: {value: 6000}"), given="data.validation.start", where="mine.yaml:",
             remedy="`source` or `assumed`"),
        Case(title="a bare value", command=f"{PLAN} mine.yaml", setting=mine(START, "start: 6000"),
             given="data.validation.start", where="mine.yaml:", remedy="write {value: ..., source: ...}"),
        Case(title="a wrong type", command=f"{PLAN} mine.yaml",
             setting=mine(EPOCHS, "epochs: {value: five,"), given="'five'", where="pretraining.epochs",
             remedy="must be a whole number"),
        Case(title="out of range", command=f"{PLAN} mine.yaml",
             setting=mine("start: {value: 6000,", "start: {value: -1,"), given="-1",
             where="data.validation.start", remedy="greater than or equal to 0"),
        Case(title="values for some trunks only", command=f"{PLAN} mine.yaml",
             setting=mine(HALF, "mask_count: {vit-b: {value: 25, source: a try}}"), given="vit-b",
             where="methods.mim.mask_count", remedy="one for each trunk: vit-mini"),
        Case(title="a method's unknown value", command=f"{PLAN} mine.yaml",
             setting=mine(MIM, "masks: {value: 25,"), given="'masks'", where="method mim",
             remedy="known: mask_count"),
        Case(title="a name that nothing defines", command=f"{PLAN} mine.yaml",
             setting=mine("tokenizers: [k-pixel, k-feature]", "tokenizers: [k-pixel, k-clip]"),
             given="'k-clip'", where="defaults.tokenizers", remedy="which tokenizers does not define"),
        Case(title="test images among the training images", command=f"{PLAN} mine.yaml",
             setting=mine("start: {value: 6000,", "start: {value: 5999,"), given="validation images",
             where="mine.yaml", remedy="overlap"),
        Case(title="a released protocol that was edited", command=f"{PLAN} edited.yaml", exit_code=3,
             setting=edited_release("value: 5, ", "value: 50, "), given="epochs was 5, is 50",
             where="edited.yaml is not protocol mini, version 1", remedy="fork edited.yaml NEW_NAME"),
        Case(title="a damaged lock", command=f"{PLAN} mini", setting=damaged_lock, given="damaged",
             where="digests.lock:", remedy="git checkout protocols/digests.lock"),
        Case(title="a fork without a proper name", command="fork mini My.Mini", given="'My.Mini'",
             where="name", remedy="lower-case letters, digits, - and _"),
        Case(title="a fork under a name that is taken", command="fork mini fair300", given="'fair300'",
             where="taken by another protocol", remedy="give another name"),
        Case(title="a fork under a name that means something else", command="fork mini tokens",
             given="'tokens'", where="tokens.yaml", remedy="is taken by the folder of the token stores"),
        Case(title="a fork onto a file that exists", command="fork mini mine",
             setting=file_of("mine.yaml", ""), given="mine.yaml", where="exists already", remedy="--out"),
        Case(title="a fork into a folder that is not there", command="fork mini longer --out new/longer.yaml",
             given="new/longer.yaml", where="there is no folder new", remedy="make it, or give another file"),
        Case(title="a fork into another kind of file", command="fork mini mine --out mine.txt",
             given="mine.txt", where="protocol's file", remedy="ends in .yaml"),
    ),
    "Tokens": tuple(Case(**case) for case in TOKEN_CASES),
    "Data sets": tuple(Case(**case) for case in (*DATA_SET_CASES, *DATA_CASES)),
    **{title: tuple(Case(**case) for case in cases) for title, cases in FURTHER_CASES.items()},
    "Machine, data and work dir": (
        Case(title="everything that fair300 needs", command="--protocol fair300", given="imagenet-1k",
             where="protocol fair300 cannot run here", remedy="https://image-net.org"),
        Case(title="a folder without the data",
             command="--protocol fair300 --evaluations food-101 --data-root data", setting=folder_of("data"),
             given="no folder data/food-101", where="data set food-101",
             remedy="d.Food101('data', download=True)"),
        Case(title="embedded images that were changed", command="--protocol mini", setting=tampered_images,
             given="SHA-256", where="fashion_mnist_12k.npz", remedy="git checkout"),
        Case(title="embedded images that are gone", command="--protocol mini", setting=no_images,
             given="missing", where="fashion_mnist_12k.npz", remedy="git checkout"),
        Case(title="a GPU where there is none", command="--protocol mini --device cuda",
             setting=launched(CUDA_VISIBLE_DEVICES=""), given="cuda", where="--device cuda",
             remedy="--device cpu or auto"),
        Case(title="accumulation that cannot give the global batch",
             command="--protocol mini --accumulation 3", exit_code=3, given="3 steps (--accumulation)",
             where="global batch of", remedy="must be one of 1, 2, 4, 8"),
        Case(title="processes that cannot give the global batch",
             command="--protocol mini --device cpu --gpus-per-cell 3", exit_code=3, given="3 processes",
             where="global batch of", remedy="must be one of 1, 2, 4, 8"),
        Case(title="a launcher's processes", command="--protocol mini", setting=launched(WORLD_SIZE="2"),
             given="2 processes", where="WORLD_SIZE", remedy="without the launcher"),
        Case(title="a launcher's nonsense", command="--protocol mini", setting=launched(WORLD_SIZE="many"),
             given="'many'", where="WORLD_SIZE", remedy="a number of processes"),
        Case(title="a work dir under a file", command="--protocol mini --work-dir notes/runs",
             setting=file_of("notes", ""), given="notes/runs", where="work dir", remedy="with --work-dir"),
        Case(title="a file as the work dir, for plan", command=f"{PLAN} mini --work-dir notes",
             setting=file_of("notes", ""), given="notes is not a folder", where="work dir notes",
             remedy="with --work-dir"),
        Case(title="other things in the work dir, for status",
             command="status --protocol mini --work-dir holidays", setting=file_of("holidays/beach.jpg", ""),
             given="beach.jpg", where="work dir holidays", remedy="with --work-dir"),
        Case(title="a work dir without permission", command="--protocol mini --work-dir shared",
             setting=no_permission, given="work dir shared", where="no permission to write to shared",
             remedy="with --work-dir"),
        Case(title="a work dir with other things in it", command="--protocol mini --work-dir holidays",
             setting=file_of("holidays/beach.jpg", ""), given="beach.jpg", where="work dir holidays",
             remedy="with --work-dir"),
        Case(title="a work dir that another run uses", command="--protocol mini", setting=locked_work_dir,
             given="another run", where="runs/mini", remedy="give another --work-dir"),
        Case(title="a board of nothing", command="report --protocol mini",
             given="no records of protocol mini", where="under runs",
             remedy="python run_benchmark.py --protocol mini, or"),
    ),
    "What was written before": (
        Case(title="half of a record, for the board", command=f"report {TINY}",
             setting=finished_run(corrupt_record), given="damaged", where="record.json",
             remedy="delete the folder"),
        Case(title="half of a record, for a run", command=GO_ON, setting=finished_run(corrupt_record),
             given="damaged", where="record.json", remedy="delete the folder"),
        Case(title="half of a record, for status",
             command=f"status {TINY} --methods mim --evaluations finetune", exit_code=0,
             setting=finished_run(corrupt_record), given="damaged", where="record.json",
             remedy="delete the folder"),
        Case(title="a record that was edited", command=f"report {TINY}", setting=finished_run(edit_record),
             given="status", where="record.json", remedy="'done', 'failed' or 'skipped'"),
        Case(title="a folder in the place of a record, for the board", command=f"report {TINY}",
             setting=finished_run(replace_record), given="it is a folder", where="record.json",
             remedy="delete the folder"),
        Case(title="predictions that are gone, for the board", command=f"report {TINY}",
             setting=finished_run(delete_predictions), given="is missing", where="predictions.npz",
             remedy="delete the folder"),
        Case(title="a file in the place of the board", command=f"report {TINY} --out notes",
             setting=finished_run(write_notes), given="notes is a file", where="a board is a folder",
             remedy="give another with --out"),
        Case(title="a board into a folder without permission", command=f"report {TINY} --out board",
             setting=no_permission_to_write, given="Permission denied", where="cannot be written to board",
             remedy="--out FOLDER"),
        Case(title="a token store cut short", command=f"{GO_ON} --seeds 1", exit_code=1,
             setting=finished_run(cut_tokens), given="cut short", where="tokens.npy",
             remedy="delete the store and tokenise again"),
        Case(title="a token store that was changed", command=f"{GO_ON} --seeds 1", exit_code=1,
             setting=finished_run(change_tokens), given="SHA-256", where="tokens.npy",
             remedy="delete the store and tokenise again"),
        Case(title="a token store that is gone", command=f"{GO_ON} --seeds 1", exit_code=1,
             setting=finished_run(delete_tokens), given="is missing", where="manifest.json",
             remedy="run with --redo-failed"),
        Case(title="a pre-trained trunk that is gone", command=f"{GO_ON} --evaluations finetune",
             exit_code=1, setting=finished_run(delete_backbone), given="is missing",
             where="backbone.safetensors", remedy="run again with --redo-failed"),
        Case(title="a pre-training begun by other code", command=GO_ON, exit_code=1,
             setting=finished_run(begin_with_other_code), given="begun with other code", where="method mim",
             remedy="--redo-failed --redo-stale"),
    ),
}  # fmt: skip
CASES = {f"{section}: {case.title}": case for section, cases in SECTIONS.items() for case in cases}

INTRODUCTION = """\
# Errors

The errors that a user can cause, as they are shown: what was given, where it stands, what is allowed, and
what to do. This page is written by `python -m tests.error_cases > docs/errors.md`, which causes each of
them; a test checks that they still read like this.

| exit code | meaning |
|---|---|
| 0 | all done |
| 1 | some cell failed; its error is in its record, in `status` and in its log |
| 2 | a usage error, or something is missing or damaged; found before anything runs |
| 3 | the protocol would be violated, or differs from what was released; found before anything runs |
| 129, 130, 143 | interrupted; the same command goes on |

Errors go to standard error. `--debug` with any command shows the traceback too. In the texts below `runs` is
the work dir, and digests that depend on the machine are written DIGEST.
"""


def provoke(case: Case, folder: Path) -> Outcome:
    """Cause `case` in the empty `folder`."""
    errors, output = io.StringIO(), io.StringIO()
    # Cells run in processes that do not follow this one's changes of folder: their paths are whole.
    words = [str(folder / word) if word == "runs" else word for word in shlex.split(case.command)]
    with (
        contextlib.chdir(folder),
        mock.patch.dict(os.environ, {"COLUMNS": "80"}),
        mock.patch("benchmark.disk.free_bytes", return_value=10**12),  # fair300 needs more than some have
        case.setting(folder),
        contextlib.redirect_stderr(errors),
        contextlib.redirect_stdout(output),
    ):
        code = main(words)
    text = errors.getvalue() if code else output.getvalue()
    return Outcome(exit_code=code, text=_readable(text, folder))


def _readable(text: str, folder: Path) -> str:
    text = re.sub(r"(?m)^disk: [^:]*? free\s+under\s+", "disk: ... under ", text.replace(f"{folder}/", ""))
    # Of tokens, whose k-means differs in the last bits between processors.
    text = re.sub(r"\b[0-9a-f]{64}\b", "DIGEST", text)
    return re.sub(r"(tokens/[a-z-]+)-[0-9a-f]{12}/([a-z0-9-]+)-[0-9a-f]{12}", r"\1-DIGEST/\2-DIGEST", text)


def page(outcomes: Iterable[tuple[str, Outcome]]) -> str:
    """docs/errors.md, of an outcome for every key of CASES."""
    known = dict(outcomes)
    lines = [INTRODUCTION]
    for section, cases in SECTIONS.items():
        lines.append(f"## {section}\n")
        for case in cases:
            outcome = known[f"{section}: {case.title}"]
            lines += [f"**{case.title[0].upper()}{case.title[1:]}** (exit code {outcome.exit_code})\n"]
            if isinstance(case.setting, CopyOfMini):
                lines += [case.setting.described + "\n"]
            lines += ["```"]
            lines += [f"$ python run_benchmark.py {case.command}".rstrip(), outcome.text.rstrip(), "```\n"]
    return "\n".join(lines).rstrip() + "\n"


def provoke_all(folder: Path) -> dict[str, Outcome]:
    """Cause every case, each in a folder of its own under `folder`."""
    outcomes = {}
    for number, (name, case) in enumerate(CASES.items()):
        place = folder / str(number)
        place.mkdir()
        outcomes[name] = provoke(case, place)
    return outcomes


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        print(page(provoke_all(Path(temporary)).items()), end="")
