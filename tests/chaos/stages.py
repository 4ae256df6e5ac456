"""The stages that are killed: the command of each, what it starts from, and what of it can be killed."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PROTOCOL = Path(__file__).parent / "chaos.yaml"
HARNESS = (("harness", "KILL"), ("harness", "INT"), ("harness", "TERM"), ("group", "INT"))
FORKED = (*HARNESS, ("cell", "KILL"), ("cell", "TERM"), ("group", "TERM"), ("server", "KILL"))
READING = (("worker", "KILL"),)
LAUNCHED = (
    *HARNESS, ("rank", "KILL"), ("torchrun", "KILL"), ("rank", "TERM"), ("torchrun", "TERM"),
    ("torchrun", "INT"), *READING,
)  # fmt: skip
# A process is killed before a change of a file that is drawn, whichever process that is.
CHANGE = (("change", "KILL"),)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """`words` follow run_benchmark.py, with `takes` of --workers and --jobs; it starts from a copy of the
    reference without what `removes` matches (None: from nothing). `share` of the kills are its own."""

    name: str
    words: tuple[str, ...]
    removes: tuple[str, ...] | None
    kills: tuple[tuple[str, str], ...]
    share: int
    takes: tuple[str, ...] = ("--workers", "--jobs")
    reference: str = "one"
    with_board: bool = False
    finish: tuple[str, ...] = ()

    def prepare(self, work_dir: Path, reference: Path) -> None:
        """What it starts from."""
        if self.removes is None:
            work_dir.mkdir(parents=True)
            return
        shutil.copytree(reference, work_dir)
        for pattern in self.removes:
            for path in list(work_dir.glob(pattern)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


COMMON = ("--protocol", str(PROTOCOL), "--work-dir", "{work_dir}")
RUN = (*COMMON, "--device", "cpu", "--checkpoint-seconds", "0", "--quiet")
TOKENIZE = ("tokenize", *COMMON, "--device", "cpu", "--quiet")
PROBE = (*RUN, "--evaluations", "linear-probe")
BOTH = (*RUN, "--evaluations", "finetune", "linear-probe")
TWO = (*PROBE, "--gpus-per-cell", "2")
PACK = ("pack", *COMMON, "--quiet")
BUNDLE = ("bundle", "{work_dir}/out.tar", *COMMON)
CELLS = "chaos/cells/{}*"
BOARD = "chaos/leaderboard"
STAGES = (
    Stage(name="tokenise", words=TOKENIZE, removes=None, kills=(*FORKED, *READING, *CHANGE), share=8),
    Stage(name="fit", words=(*TOKENIZE, "--fit"), removes=None, finish=TOKENIZE,
          kills=(*HARNESS, *READING, *CHANGE), share=5, takes=("--workers",)),
    Stage(name="pack", words=PACK, removes=None, kills=(*HARNESS, *READING, *CHANGE), share=6,
          takes=("--workers",)),
    Stage(name="pre-train", words=PROBE, kills=(*FORKED, *READING, *CHANGE), share=10,
          removes=(CELLS.format("[!t]"), BOARD)),
    Stage(name="pre-train, 2 processes", words=TWO, kills=(*LAUNCHED, *CHANGE), share=11, reference="two",
          removes=(CELLS.format("[!t]"), BOARD)),
    Stage(name="fine-tune", words=(*RUN, "--evaluations", "finetune"), share=6,
          kills=(*FORKED, *READING, *CHANGE), removes=(CELLS.format("finetune"), BOARD)),
    Stage(name="probe", words=PROBE, kills=(*FORKED, *CHANGE), share=5,
          removes=(CELLS.format("linear-probe"), BOARD)),
    Stage(name="record", words=BOTH, kills=(*CHANGE, *CHANGE, ("cell", "KILL"), ("harness", "KILL")),
          share=5, removes=(CELLS.format("[!tp]"), BOARD)),
    Stage(name="report", words=("report", *COMMON), removes=(BOARD,), takes=(), with_board=True, share=4,
          kills=(*CHANGE, *HARNESS)),
    Stage(name="bundle", words=BUNDLE, removes=("out.tar",), takes=(), share=2, kills=(*CHANGE, *HARNESS)),
    Stage(name="merge", words=("merge", "{bundle}", *COMMON), removes=None, takes=(), share=3,
          reference="merged", kills=(*CHANGE, *HARNESS)),
)  # fmt: skip
# How each undisturbed work dir is made, from the one before where it says so.
REFERENCES: dict[str, tuple[str | None, tuple[tuple[str, ...], ...]]] = {
    "one": (None, (TOKENIZE, PACK, BOTH, BUNDLE)),
    "two": ("one", (TWO,)),
    "merged": (None, (("merge", "{bundle}", *COMMON),)),
}


def command(words: tuple[str, ...], *, work_dir: Path, bundle: Path) -> list[str]:
    """The command line, its folders filled in."""
    filled = [word.format(work_dir=work_dir, bundle=bundle) for word in words]
    return [sys.executable, str(ROOT / "run_benchmark.py"), *filled]
