"""Will the disk hold what open cells write? The plan's need, less what they wrote, against what is free.

No torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmark.commands.text import size
from benchmark.forecast import disk_use
from benchmark.inputs import Missing
from benchmark.layout import cell_folder
from benchmark.plan import Cell
from protocols.schema import Protocol


@dataclass(frozen=True, kw_only=True)
class DiskNeed:
    """Bytes that stay, bytes beside them while the hungriest cells run at once, and bytes that are free."""

    kept: int
    while_running: int
    free: int

    @property
    def needed(self) -> int:
        """Bytes that have to be free."""
        return self.kept + self.while_running

    def problems(self, work_dir: Path) -> list[Missing]:
        """What to say where it does not fit."""
        if self.needed <= self.free:
            return []
        return [
            Missing(
                f"disk: the open cells need {size(self.needed)} under {work_dir} ({size(self.kept)} that "
                f"stay, {size(self.while_running)} while cells run); {size(self.free)} are free",
                "make room, give another folder with --work-dir, or run fewer cells (--methods, --trunks, "
                "--tokenizers, --jobs)",
            )
        ]

    def line(self, work_dir: Path) -> str:
        """What a person is told of it."""
        return (
            f"disk: {size(self.needed)} needed ({size(self.kept)} that stay, {size(self.while_running)} "
            f"while cells run), {size(self.free)} free under {work_dir}"
        )


def disk_need(cells: Sequence[Cell], protocol: Protocol, work_dir: Path, *, at_once: int) -> DiskNeed:
    """What `cells` need under `work_dir` if `at_once` of them run side by side."""
    kept, running = 0, []
    for cell in cells:
        use, written = disk_use(cell, protocol), _bytes_under(cell_folder(work_dir, protocol.name, cell.id))
        # What an interrupted cell has written is no longer free, and it goes on from there.
        kept += use.kept
        running.append(max(0, use.while_running - written))
    at_the_same_time = sorted(running, reverse=True)[:at_once]
    return DiskNeed(kept=kept, while_running=sum(at_the_same_time), free=free_bytes(work_dir))


def _bytes_under(folder: Path) -> int:
    """Of all files in it; those that go meanwhile are none."""
    written = 0
    for holder, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                written += os.lstat(os.path.join(holder, name)).st_size
    return written


def free_bytes(folder: Path) -> int:
    """Bytes that this user may still write where `folder` is, or will be."""
    holder = folder.absolute()
    while not holder.exists() and holder != holder.parent:
        holder = holder.parent
    status = os.statvfs(holder)
    return status.f_bavail * status.f_frsize
