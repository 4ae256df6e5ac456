"""`doctor`: does this machine give what runs rely on? And what to do where it does not."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from benchmark import doctor_clock, doctor_disk, doctor_gpu, doctor_machine, doctor_packages, doctor_torch
from benchmark.commands.options import Parser, check_least
from benchmark.commands.text import count, paragraph
from benchmark.doctor import Asked, Check, Finding, examine, scratch_folder

SUMMARY = "check this machine: packages, GPUs, limits, disk, decoders"
DESCRIPTION = """\
Does this machine give what runs rely on? Versions against the pins, GPUs,
memory, limits, the clock, the work dir's locks, renames and speed, a real
checkpoint, two real processes, and fixed images decoded to the expected
pixels. Each line is ok, warning or FAILED, and says what to do about it.

examples:
  python run_benchmark.py doctor
  python run_benchmark.py doctor --work-dir DIR --data-root DIR --workers 16
  python run_benchmark.py doctor --quick

exit codes: 0 nothing FAILED (there may be warnings); 1 something did; 2 usage
"""
GOOD, BAD = 0, 1
NO_WORK_DIR = "no work dir"
# torch is loaded once, by the first that needs it, and CUDA after all that fork.
CHECKS = (
    Check("Python", doctor_packages.python),
    Check("packages", doctor_packages.packages),
    Check("checkout", doctor_packages.checkout, 60),
    Check("image decoding", doctor_packages.images, 60),
    Check("data root", doctor_packages.data_root),
    Check("cores and memory", doctor_machine.cores_and_memory),
    Check("shared memory", doctor_machine.shared_memory),
    Check("open files", doctor_machine.open_files),
    Check("clock", doctor_clock.clock),
    Check("work dir", doctor_disk.work_dir),
    Check("locks", doctor_disk.locks, 60, needs_scratch=True),
    Check("renames", doctor_disk.renames, needs_scratch=True),
    Check("disk speed", doctor_disk.speed, 120, is_slow=True, needs_scratch=True),
    Check("torch", doctor_torch.loads, 300, is_slow=True),
    Check("save and load", doctor_torch.save_and_load, 60, is_slow=True, needs_scratch=True),
    Check("two processes", doctor_torch.two_processes, 150, is_slow=True),
    Check("GPU", doctor_gpu.gpus, 120, is_slow=True),
)
INDENT = 9


def add_arguments(parser: Parser) -> None:
    """What a run would be given."""
    parser.add_argument(
        "--work-dir", type=Path, default=Path("runs"), help="where results would be (default: runs)"
    )
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="folder that holds the data sets")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: GPUs if any")
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="data-loading processes that a run would have"
    )
    slow = ", ".join(check.name for check in CHECKS if check.is_slow)
    parser.add_argument("--quick", action="store_true", help=f"leave out what takes seconds: {slow}")
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def run(options: Namespace) -> int:
    """Try everything, say what was found as it comes."""
    check_least(("--workers", options.workers, 0))
    asked = Asked(
        work_dir=options.work_dir,
        data_root=options.data_root,
        device=options.device,
        workers=options.workers,
    )
    found: list[Finding] = []
    with scratch_folder(asked.work_dir) as scratch:
        left_out = {check.name: NO_WORK_DIR for check in CHECKS if check.needs_scratch and scratch is None}
        left_out |= {check.name: "--quick" for check in CHECKS if options.quick and check.is_slow}
        chosen = [check for check in CHECKS if check.name not in left_out]
        for finding in examine(chosen, replace(asked, scratch=scratch)):
            found.append(finding)
            if not options.json:
                print(lines(finding), flush=True)
    counts = {status: sum(one.status == status for one in found) for status in ("ok", "warning", "FAILED")}
    if options.json:
        content = {"findings": [asdict(one) for one in found], "counts": counts, "left_out": list(left_out)}
        print(json.dumps(content, indent=1))
    else:
        print(summary(counts, left_out))
    return BAD if counts["FAILED"] else GOOD


def lines(finding: Finding) -> str:
    """A finding as it is printed: the status, what was found, and below it the remedy."""
    first = finding.status.ljust(INDENT)
    text = paragraph(f"{finding.what}: {finding.found}", first=first, rest=" " * INDENT)
    if not finding.remedy:
        return text
    return f"{text}\n{paragraph(finding.remedy, first=f'{chr(32) * INDENT}-> ', rest=' ' * (INDENT + 3))}"


def summary(counts: dict[str, int], left_out: Mapping[str, str]) -> str:
    """How many of each, and what was not tried, with the reason."""
    warnings = count(counts["warning"], "warning")
    findings = count(sum(counts.values()), "finding")
    text = f"{findings}: {counts['ok']} ok, {warnings}, {counts['FAILED']} FAILED"
    for why in dict.fromkeys(left_out.values()):
        text += f"; not tried ({why}): {', '.join(name for name in left_out if left_out[name] == why)}"
    return paragraph(text)
