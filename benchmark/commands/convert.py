"""`convert SOURCE OUT.safetensors`: weights as timm loads them, with a model card."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

from benchmark.commands.options import Parser

SUMMARY = "weights as timm loads them, with a model card"
DESCRIPTION = """\
Turn weights into a safetensors file that timm loads strictly, and write a
model card beside it (OUT.md). SOURCE is the folder of a finished pre-training
or fine-tuning cell, a file in its checkpoints/, or a file from elsewhere: what
torch.save wrote, or safetensors, with a ViT under the names of timm, MaPeT,
BEiT (absolute positions) or CAE. Nothing in a file is run; nothing is resized
or drawn; no file is overwritten.

examples:
  python run_benchmark.py convert runs/mini/cells/CELL_ID mapet.safetensors
  python run_benchmark.py convert mapet_tiny.pth mapet.safetensors --key model

exit codes: 0 written; 2 SOURCE is missing, damaged or no such ViT, or OUT
exists
"""


def add_arguments(parser: Parser) -> None:
    """What to convert, and where to."""
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a cell's folder, or a file of weights")
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="the file to write, .safetensors; OUT.md beside it"
    )
    parser.add_argument(
        "--key", metavar="NAME", help="the entry of the file that holds the weights, where it has several"
    )
    parser.add_argument(
        "--heads",
        type=int,
        metavar="N",
        help="attention heads, where neither a record nor the sizes tell (no shape does)",
    )


def run(options: Namespace) -> int:
    """Convert, and say how the file is loaded."""
    from benchmark.convert import convert  # late: torch takes seconds, which no mistake should wait for

    done = convert(options.source, options.out, key=options.key, heads=options.heads)
    print(f"{os.path.relpath(done.out)}, and its card {os.path.relpath(done.card)}")
    facts = done.facts
    print(f"  {facts.sizes.described}, {facts.heads} attention heads ({facts.heads_by})")
    for change in facts.changes:
        print(f"  {change}")
    print("\n".join(["", *(f"    {line}" for line in facts.python)]))
    return 0
