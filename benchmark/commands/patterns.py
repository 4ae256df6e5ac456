"""`patterns`: what each objective shows and hides of an image (the paper's Figures 1 and 2)."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

from benchmark.commands.options import MOST_SEED, Parser, add_protocol, check_asked_work_dir, check_least
from protocols import load_protocol
from protocols.errors import HarnessError, unknown
from protocols.schema import Protocol

SUMMARY = "what each objective sees and predicts of an image"
DESCRIPTION = """\
Pictures of the objectives, made from their own code: on a real image what each
method predicts and what its predictions see, and the attention masks of PIM and
MaPeT. SVG, PNG and the facts behind them, under
WORK_DIR/PROTOCOL/leaderboard/patterns; `report` puts them on the page.

examples:
  python run_benchmark.py patterns --protocol mini
  python run_benchmark.py patterns --protocol fair300 --trunk vit-t --image 7
"""


def add_arguments(parser: Parser) -> None:
    """Which image and pattern, and where to."""
    add_protocol(parser)
    parser.add_argument(
        "--trunk", metavar="NAME", help="whose patches to show (default: the protocol's first)"
    )
    parser.add_argument(
        "--image", type=int, default=0, metavar="N", help="which pre-training image to show (default: 0)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the patterns, as a row's seed (default: 0)"
    )
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="folder that holds the data sets")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write the pictures here instead")


def run(options: Namespace) -> int:
    """Two pictures: the objectives, and the attention masks where there are any."""
    check_least(("--image", options.image, 0), ("--seed", options.seed, 0))
    if options.seed > MOST_SEED:
        raise HarnessError(f"--seed must be {MOST_SEED} at most, got {options.seed}")
    protocol = load_protocol(options.protocol)
    check_asked_work_dir(options.work_dir)
    trunk = (options.trunk or protocol.defaults.trunks[0]).lower()
    if trunk not in protocol.trunks:
        raise unknown(f"trunk of protocol {protocol.name}", trunk, protocol.trunks)
    folder = options.out or options.work_dir / protocol.name / "leaderboard" / "patterns"
    if folder.exists() and not folder.is_dir():
        raise HarnessError(f"{folder} is a file, and pictures need a folder; give another with --out")
    for path in _draw(protocol, trunk, options, folder):
        print(os.path.relpath(path))
    if options.out is None:
        where = "" if options.work_dir == Path("runs") else f" --work-dir {options.work_dir}"
        print(f"python run_benchmark.py report --protocol {options.protocol}{where} puts them on the page")
    return 0


def _draw(protocol: Protocol, trunk: str, options: Namespace, folder: Path) -> list[Path]:
    """Draw and write; the paths."""
    # Imported late: torch and matplotlib would slow down every command that draws nothing.
    from benchmark.data import open_part
    from benchmark.image_part import square_pixels

    data = protocol.data
    images = open_part(data.name, "pretraining", data.pretraining, data_root=options.data_root)
    if options.image >= len(images):
        raise HarnessError(
            f"--image {options.image}: protocol {protocol.name} pre-trains on {len(images)} images of "
            f"{data.name}; give a number from 0 to {len(images) - 1}"
        )
    from benchmark.patterns_figure import draw_patterns

    return draw_patterns(
        protocol,
        trunk=trunk,
        pixels=square_pixels(images.image(options.image), data.image_size),
        image_id=images.image_ids[options.image],
        sample_id=int(images.sample_ids[options.image]),
        seed=options.seed,
        folder=folder,
    )
