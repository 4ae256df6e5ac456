"""--from-checkpoint: cells of weights that were trained elsewhere, in the place of the protocol's rows."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.commands.options import Parser, read_selection
from benchmark.imported import Asked, Imports, known_cells, note_asked
from benchmark.plan import Cell
from benchmark.selection import Selection
from protocols import load_protocol
from protocols.errors import HarnessError
from protocols.schema import Protocol

if TYPE_CHECKING:
    from benchmark.from_checkpoint import Import


@dataclass(frozen=True, kw_only=True)
class AskedImports:
    """The files of a command as rows, and their cells, those that --set moves marked."""

    protocol: Protocol
    selection: Selection
    imports: tuple[Import, ...]
    asked: tuple[Asked, ...]
    cells: list[Cell]

    @property
    def chosen(self) -> tuple[Protocol, Selection, list[Cell]]:
        """As `chosen_cells` gives them of the protocol's own rows."""
        return self.protocol, self.selection, self.cells

    def keep(self, work_dir: Path) -> None:
        """Put the weights into the work dir, and leave word of the cells."""
        from benchmark.from_checkpoint import keep_import

        for one in self.imports:
            keep_import(one, Imports(work_dir=work_dir, protocol=self.protocol.name))
        note_asked(work_dir, self.protocol, self.asked)


def add_from_checkpoint(parser: Parser) -> None:
    """--from-checkpoint and --label."""
    parser.add_argument(
        "--from-checkpoint",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="evaluate these weights (a ViT's, as convert reads them) and pre-train nothing; shown apart",
    )
    parser.add_argument(
        "--label",
        nargs="+",
        metavar="NAME",
        help="what their rows are called, one for each file (default: its name)",
    )


def asked_imports(options: Namespace) -> AskedImports | None:
    """What --from-checkpoint asks for; None without it.

    Raises HarnessError for a file that does not fit, and for options that say nothing of such rows.
    """
    files: Sequence[Path] = options.from_checkpoint
    if not files:
        if options.label:
            raise HarnessError(
                "--label names rows of --from-checkpoint; give a FILE with it, or leave it out"
            )
        return None
    protocol, selection = read_selection(options)
    idle = [f"--{kind}" for kind in ("methods", "tokenizers") if kind in selection.narrowed]
    idle += ["--views"] if options.views is not None else []
    if idle:
        raise HarnessError(
            f"{' and '.join(idle)}: nothing is pre-trained for --from-checkpoint, and no view holds such a "
            "row; leave it out, and run the protocol's own rows with a command of their own"
        )
    labels: Sequence[str | None] = options.label or [None] * len(files)
    if len(labels) != len(files):
        raise HarnessError(
            f"--label gives {len(labels)} names for {len(files)} files; give one for each file"
        )
    from benchmark.from_checkpoint import evaluations_of, read_import  # late: it loads torch

    evaluations = evaluations_of(protocol, selection)
    found = tuple(
        read_import(path, label=label, protocol=protocol, trunks=selection.trunks, evaluations=evaluations)
        for path, label in zip(files, labels, strict=True)
    )
    rows = [(one.label, one.trunk) for one in found]
    twice = next((label for label, trunk in rows if rows.count((label, trunk)) > 1), None)
    if twice is not None:
        raise HarnessError(
            f"two files would be called {twice!r}; tell them apart with --label, a name for each"
        )
    asked = tuple(each for one in found for each in one.asked(evaluations, selection.seeds))
    return AskedImports(
        protocol=protocol,
        selection=selection,
        imports=found,
        asked=asked,
        cells=[one.cell(protocol, _without_set(options, protocol)) for one in asked],
    )


def with_known_imports(
    plan: Sequence[Cell], options: Namespace, protocol: Protocol, selection: Selection
) -> list[Cell]:
    """`plan`, and the imported cells of the work dir where the options do not ask for other rows alone."""
    if selection.narrowed & {"methods", "tokenizers"} or options.views is not None:
        return list(plan)
    return [*plan, *known_cells(options.work_dir, protocol, _without_set(options, protocol))]


def _without_set(options: Namespace, protocol: Protocol) -> Protocol | None:
    """The protocol as its file has it, where --set changes it."""
    return load_protocol(options.protocol) if options.set and protocol.deviations else None
