"""`verify STORE`: is a token store whole, and do its images give its tokens?"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from pathlib import Path

from benchmark.commands.options import Parser
from benchmark.commands.text import count
from benchmark.runtime import detect_runtime
from protocols.errors import HarnessError

SUMMARY = "check a token store's digests, and encode some of its images again"
DESCRIPTION = """\
Re-read every byte of a token store and hold it against its digests; then
encode a random sample of its images again, with the tokenizer whose weights
lie beside it, and report every image whose tokens differ.

Tokens are the same to the bit on one kind of device. On another, a patch that
lies almost as near to a second code may differ.

examples:
  python run_benchmark.py verify runs/tokens/k-pixel-*/fashion-mnist-12k-*
  python run_benchmark.py verify STORE --sample 1000 --data-root DIR

exit codes: 0 no mismatch; 1 some image's tokens differ; 2 the store, its
tokenizer or its images are missing or damaged
"""
MATCHES, DIFFERS = 0, 1
MOST_SHOWN = 20


def add_arguments(parser: Parser) -> None:
    """Which stores, and how many images."""
    parser.add_argument("stores", nargs="+", type=Path, metavar="STORE", help="folders of token stores")
    parser.add_argument(
        "--sample", type=int, default=64, metavar="N", help="images to encode again (default: 64; 0: none)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="chooses the images (default: 0)")
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="folder of data sets and weights")
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: a GPU if any"
    )


def run(options: Namespace) -> int:
    """Every store in turn; the worst exit code."""
    for flag, given in (("--sample", options.sample), ("--seed", options.seed)):
        if given < 0:
            raise HarnessError(f"{flag} must be 0 or more, got {given}")
    from tokenizers.store import MANIFEST_NAME

    folders = [path.parent if path.name == MANIFEST_NAME else path for path in options.stores]
    worst = MATCHES
    for folder in folders:
        try:
            if not folder.is_dir():
                raise HarnessError(f"{folder}: no such folder; give folders of token stores")
            worst = max(worst, _verify(folder, options))
        except HarnessError as error:
            print(f"error: {error}", file=sys.stderr)
            worst = HarnessError.exit_code
    return worst


def _verify(folder: Path, options: Namespace) -> int:
    from benchmark.verification import compare, load_tokenizer, sample_rows
    from tokenizers.store import open_store

    store = open_store(folder, verify=True)
    made_by = store.manifest.tokenizer
    images = f"{count(len(store), 'image')} of {store.manifest.data_name}"
    _say(f"{folder}\n  {made_by.name}, {images}: all digests agree")
    if not options.sample:
        return MATCHES
    runtime = detect_runtime(device=options.device)
    tokenizer = load_tokenizer(store, folder, data_root=options.data_root, device=runtime.device)
    rows = sample_rows(len(store), options.sample, seed=options.seed).tolist()
    compared, found = 0, []
    for number, mismatches in compare(store, tokenizer, rows, data_root=options.data_root):
        compared += number
        found += mismatches
        if sys.stderr.isatty():
            print(f"\r  {compared} of {len(rows)} images", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r" + " " * 40 + "\r", end="", file=sys.stderr, flush=True)
    found.sort(key=lambda one: one.row)
    for one in found[:MOST_SHOWN]:
        _say(f"  {one.reason or f'{one.image_id}: {one.differing} of {one.patches} tokens differ'}")
    if len(found) > MOST_SHOWN:
        _say(f"  and {len(found) - MOST_SHOWN} more images")
    unread = sum(bool(one.reason) for one in found)
    tokens = sum(one.differing for one in found)
    verdict = (
        f"{count(len(found) - unread, 'image')} differ, in {tokens} tokens" if tokens else "no token differs"
    )
    verdict += f"; {count(unread, 'image')} could not be read" if unread else ""
    again = len(rows) - unread
    _say(f"  encoded again: {count(again, 'image')} (seed {options.seed}); {verdict}")
    return DIFFERS if found else MATCHES


def _say(text: str) -> None:
    """Print; if the reader of a pipe has seen enough, the verdict must still become the exit code."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
