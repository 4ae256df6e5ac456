"""`gallery`: sheets of image patches by code, from a token store (the paper's Figures 3 to 5)."""

from __future__ import annotations

import hashlib
import os
import shlex
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from pathlib import Path

from benchmark.commands.options import MOST_SEED, Parser, add_protocol, check_asked_work_dir
from benchmark.plan import Cell, make_plan, select
from benchmark.plugins import words_of_plugins
from benchmark.survey import survey
from leaderboard.record import Record
from protocols import load_protocol
from protocols.errors import HarnessError
from protocols.schema import Protocol

SUMMARY = "image patches that carry a code, from a token store"
DESCRIPTION = """\
Sheets of image patches by code, each framed in its surroundings: what do the
codes of a tokenizer stand for? One PNG per tokenizer under
WORK_DIR/PROTOCOL/leaderboard/gallery; `report` puts them on the page.

rules:
  random    codes drawn at random, patches drawn at random among those that
            carry them (the paper's Figure 3)
  nearest   the pairs of codes whose rows in the codebook lie nearest (Figure 4)
  farthest  of each code the patches farthest from its row (Figure 5)

examples:
  python run_benchmark.py gallery --protocol mini --tokenizers k-pixel
  python run_benchmark.py gallery --protocol mini --rule nearest --count 5
  python run_benchmark.py gallery --protocol mini --tokenizers k-feature \\
      --rule farthest --codes 3 17 200
"""
RULES = ("random", "nearest", "farthest")
CODES, PATCHES, PATCHES_OF_PAIRS = 10, 8, 4
MOST_CODES, MOST_PATCHES = 100, 16


def add_arguments(parser: Parser) -> None:
    """Which tokenizers, which rule, and where to."""
    add_protocol(parser)
    parser.add_argument(
        "--tokenizers", nargs="+", default=["all"], metavar="NAME", help="tokenizers to show (default: all)"
    )
    parser.add_argument("--rule", choices=RULES, default="random", help="what to show (default: random)")
    parser.add_argument(
        "--codes", nargs="+", type=_number(0), metavar="N", help="these codes, not drawn ones or all pairs"
    )
    parser.add_argument(
        "--count",
        type=_number(1, MOST_CODES),
        metavar="CODES",
        help=f"codes on a sheet; pairs of them with nearest (default: {CODES})",
    )
    parser.add_argument(
        "--patches",
        type=_number(1, MOST_PATCHES),
        metavar="PER_CODE",
        help=f"patches of each code (default: {PATCHES}; with nearest {PATCHES_OF_PAIRS})",
    )
    parser.add_argument(
        "--seed", type=_number(0, MOST_SEED), default=0, metavar="N", help="of all that is drawn (default: 0)"
    )
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="folder that holds the data sets")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write the sheets here instead")


def _number(least: int, most: int | None = None) -> Callable[[str], int]:
    """The type of an argument that is a whole number within bounds."""

    def number(text: str) -> int:
        allowed = f"{least} or more" if most is None else f"from {least} to {most}"
        if not (text.isascii() and text.isdecimal()) or int(text) < least or int(text) > (most or int(text)):
            raise ArgumentTypeError(f"{text!r} is not a whole number {allowed}")
        return int(text)

    return number


def run(options: Namespace) -> int:
    """One sheet per tokenizer."""
    if options.codes is not None and options.count is not None:
        raise HarnessError("--count and --codes: the one draws codes, the other names them; give one of them")
    if options.codes is not None and len(options.codes) > MOST_CODES:
        raise HarnessError(f"--codes: {len(options.codes)} codes; a sheet holds at most {MOST_CODES}")
    protocol = load_protocol(options.protocol)
    check_asked_work_dir(options.work_dir)
    cells = _tokenised(protocol, options)
    folder = options.out or options.work_dir / protocol.name / "leaderboard" / "gallery"
    for cell, record in cells:
        print(_make(cell, record, protocol, options, folder))
    if options.out is None:
        where = "" if options.work_dir == Path("runs") else f" --work-dir {options.work_dir}"
        print(f"python run_benchmark.py report --protocol {options.protocol}{where} puts them on the page")
    return 0


def _tokenised(protocol: Protocol, options: Namespace) -> list[tuple[Cell, Record]]:
    """The done cells that tokenised the pre-training images. HarnessError for one that is not done."""
    names = [name for value in options.tokenizers for name in value.split(",") if name]
    if not names:
        raise HarnessError("--tokenizers names nothing; give at least one name, or all")
    selection = select(protocol, tokenizers=names)
    plan = [
        cell
        for cell in make_plan(protocol, selection)
        if cell.stage == "tokenise" and cell.part is None and cell.tokenizer in selection.tokenizers
    ]
    found = []
    for one in survey(plan, protocol, options.work_dir, data_root=options.data_root):
        if one.state != "done" or one.record is None:
            name = one.cell.tokenizer
            why = f" ({'; '.join(one.reasons)})" if one.reasons else ""
            redo = {"stale": " --redo-stale", "failed": " --redo-failed"}.get(one.state, "")
            raise HarnessError(
                f"the tokens of {name} under {options.work_dir} are {one.state}{why}; make them with python "
                f"run_benchmark.py tokenize --protocol {options.protocol} --tokenizers {name} --work-dir "
                f"{shlex.join([str(options.work_dir), *words_of_plugins()])}{redo}, or name "
                "other --tokenizers"
            )
        found.append((one.cell, one.record))
    return found


def _make(cell: Cell, record: Record, protocol: Protocol, options: Namespace, folder: Path) -> str:
    """Write one sheet; a line that says what it is."""
    # Imported late: torch and matplotlib would slow down every command that shows no sheet.
    from benchmark.gallery import Request, Source, make_sheet
    from benchmark.runtime import detect_runtime
    from benchmark.stage import CellContext
    from benchmark.stored_tokens import store_of
    from leaderboard.gallery import alt_text, draw_sheet
    from leaderboard.sheets import SheetFacts, write_sheet
    from tokenizers.store import MANIFEST_NAME

    context = CellContext(
        cell=cell,
        protocol=protocol,
        runtime=detect_runtime(),
        work_dir=options.work_dir,
        data_root=options.data_root,
    )
    store, images = store_of(context, record), context.images("pretraining")
    sheet = make_sheet(
        Source(context=context, record=record, store=store, images=images),
        Request(
            rule=options.rule,
            codes=None if options.codes is None else tuple(options.codes),
            count=options.count or CODES,
            patches=options.patches or (PATCHES_OF_PAIRS if options.rule == "nearest" else PATCHES),
            seed=options.seed,
        ),
    )
    picture = draw_sheet(sheet)
    (manifest_sha256,) = [
        digest for path, digest in record.artefacts.items() if path.endswith(f"/{MANIFEST_NAME}")
    ]
    facts = SheetFacts(
        tokenizer=sheet.tokenizer,
        rule=options.rule,
        rule_in_words=sheet.rule_in_words,
        seed=sheet.seed,
        codes=sheet.codes,
        images=sheet.images,
        store_digest=sheet.store_digest,
        manifest_sha256=manifest_sha256,
        picture_sha256=hashlib.sha256(picture).hexdigest(),
        alt_text=alt_text(sheet),
    )
    path = write_sheet(folder, facts, picture)
    return f"{os.path.relpath(path)}: {sheet.title} of {sheet.tokenizer}"
