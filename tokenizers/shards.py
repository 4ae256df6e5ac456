"""Work on many images, cut into shards that are each done once, by whichever process gets to them.

    FOLDER/identity.json    what the work is; work of another identity is dropped and begun again
    FOLDER/done/00042.json  written last and atomically: shard 42 is whole, and what is known of it

Shards are fixed ranges of images, whatever the number of processes, so what comes out of them does not
depend on it; what was done before a kill stays done.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from protocols.errors import HarnessError
from protocols.files import write_atomically
from protocols.frozen import canonical_json

IDENTITY_NAME = "identity.json"
SHARD_IMAGES = 1024  # seconds of work on a GPU; a multiple of every encoder's block
log = logging.getLogger(__name__)


class Shards:
    """Which of the shards of `images` images are done.

    `identity` is all that moves the results' bytes but the images themselves; `content` gives a digest of
    the images of a range, so that replacing an image opens its shard again and no other.
    """

    def __init__(
        self,
        folder: Path,
        *,
        images: int,
        identity: Mapping[str, Any],
        content: Callable[[range], str] | None = None,
        size: int | None = None,
    ) -> None:
        self.folder, self.images, self.size = folder, images, SHARD_IMAGES if size is None else size
        self._content = content
        self._identity = canonical_json(
            {"work": dict(identity), "images": images, "images_per_shard": self.size}
        )

    @property
    def count(self) -> int:
        """Number of shards; the last may be shorter than the others."""
        return -(-self.images // self.size)

    def span(self, shard: int) -> range:
        """Positions of the shard's images."""
        return range(shard * self.size, min((shard + 1) * self.size, self.images))

    def prepare(self) -> None:
        """Make the folder ready, in one process: what other work left there is dropped, with a log line."""
        if self.is_prepared():
            return
        if self.folder.exists():
            log.info("%s: unfinished work of another kind is dropped", self.folder)
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)
        write_atomically(self.folder / IDENTITY_NAME, self._identity + "\n")

    def is_prepared(self) -> bool:
        """True once the folder holds work of this identity."""
        try:
            return (self.folder / IDENTITY_NAME).read_text(encoding="utf-8") == self._identity + "\n"
        except (FileNotFoundError, IsADirectoryError, UnicodeDecodeError):
            return False

    def is_done(self, shard: int) -> bool:
        """True if the shard's results are whole, and its images are those that they were made from."""
        try:
            facts = self.facts(shard)
        except HarnessError:
            return False
        return facts.get("work") == self._work and facts.get("content") == self._content_of(shard)

    def mark_done(self, shard: int, **facts: Any) -> None:
        """Say so; what the shard made must be on disk before. `facts` are plain JSON values."""
        stated = {**facts, "work": self._work, "content": self._content_of(shard)}
        write_atomically(self._marker(shard), json.dumps(stated) + "\n")

    def mark_open(self, shard: int) -> None:
        """Say that the shard has to be done again."""
        self._marker(shard).unlink(missing_ok=True)

    def facts(self, shard: int) -> dict[str, Any]:
        """What `mark_done` was told. HarnessError if the shard is not done, or its file is damaged."""
        path = self._marker(shard)
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise HarnessError(f"{path}: shard {shard} is not done; run the command again") from None
        except (ValueError, RecursionError, IsADirectoryError):
            facts = None
        if not isinstance(facts, dict):
            raise HarnessError(f"{path}: damaged; delete it and run the command again")
        return facts

    def open_shards(self, *, rank: int = 0, processes: int = 1) -> list[int]:
        """The shards that are this process's share and not done."""
        return [shard for shard in range(rank, self.count, processes) if not self.is_done(shard)]

    def done_count(self) -> int:
        """How many shards are done."""
        return sum(self.is_done(shard) for shard in range(self.count))

    @property
    def _work(self) -> str:
        """Whose marker it is: a process of an earlier run may still write its last one."""
        return hashlib.sha256(self._identity.encode()).hexdigest()

    def _content_of(self, shard: int) -> str | None:
        return None if self._content is None else self._content(self.span(shard))

    def _marker(self, shard: int) -> Path:
        return self.folder / "done" / f"{shard:05d}.json"
