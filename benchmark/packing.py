"""Makes packs (benchmark/packed.py), shard by shard, in processes that share the work. Loads no torch.

    WORK_DIR/packed/.DATA_SET-LISTING-SIZE.unfinished/   the file, and which shards of it are whole
    WORK_DIR/packed/.DATA_SET-LISTING-SIZE.lock          held while one command packs

Unfinished work is kept under the digest of the ids alone: an image that was damaged and is fetched again
moves its own shard, not the others. The folder gets its name when every shard is whole.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmark.file_lock import try_lock
from benchmark.image_files import DamagedImage
from benchmark.image_part import ImagePart, square_pixels
from benchmark.packed import (
    DIGEST_CHARACTERS,
    MANIFEST_NAME,
    PACKED_NAME,
    PIXELS_NAME,
    SUMS_NAME,
    PackManifest,
    UnusablePack,
    check_decoders,
    decoders,
    file_bytes,
    header_of,
    open_pack,
    pack_folder,
    place_of,
    read_manifest,
    row_sum,
    sums_content,
)
from benchmark.shard_processes import in_processes
from protocols.errors import HarnessError
from protocols.files import naming, remove_leftovers, sha256_of_file, sync_folder, write_atomically
from tokenizers.shards import Shards

PACK_SHARD_IMAGES = 512  # 77 MB at 224 x 224: seconds of one process's work
DAMAGED_NAME = "damaged.tsv"
MOST_NAMED = 10


@dataclass(frozen=True)
class Progress:
    """`images` of `total` were decoded, or read again for their digest, by this command."""

    what: str
    images: int
    total: int


@dataclass(frozen=True)
class DamagedRow:
    """An image that cannot be decoded."""

    position: int
    image_id: str
    reason: str


@dataclass(frozen=True)
class _Shard:
    """What a process tells of one shard; `digest` is None if an image of it is damaged."""

    shard: int
    digest: str | None
    damaged: tuple[DamagedRow, ...] = ()
    sums: tuple[int, ...] = ()


class Packing:
    """The work on the pack of one part. `progress` hears of every shard, `say` what a person should know."""

    def __init__(self, images: ImagePart, *, size: int, work_dir: Path) -> None:
        self.images, self.size, self.work_dir = images, size, work_dir
        self.folder = pack_folder(images, size=size, work_dir=work_dir)
        listing = images.listing_digest[:DIGEST_CHARACTERS]
        name = f".{images.data_set}-{listing}-{size}"
        self.unfinished = work_dir / PACKED_NAME / f"{name}.unfinished"
        self.lock = work_dir / PACKED_NAME / f"{name}.lock"
        self.shards = self._shards_in(self.unfinished)

    @property
    def bytes(self) -> int:
        """Size of the whole pack."""
        return file_bytes(len(self.images), self.size)

    def is_whole(self) -> bool:
        """True if the pack is there. UnusablePack if it is damaged or of other decoders."""
        if read_manifest(self.folder) is None:
            return False
        open_pack(self.images, size=self.size, work_dir=self.work_dir)
        return True

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the lock. HarnessError if another process packs these images."""
        self.lock.parent.mkdir(parents=True, exist_ok=True)
        with self.lock.open("a") as lock:
            if not try_lock(lock):
                raise HarnessError(
                    f"another process packs these images ({self.lock}); wait for it, or end it"
                )
            yield

    def make(
        self, *, workers: int, progress: Callable[[Progress], None], say: Callable[[str], None]
    ) -> list[DamagedRow]:
        """Make what is still open, then the whole pack. If some images are damaged they are given back, all
        of them, and there is no pack; the shards without any are kept. Under `exclusive`."""
        self._take_up(say)
        self._check_room()
        self._prepare_file()
        open_shards = self.shards.open_shards()
        total = sum(len(self.shards.span(shard)) for shard in open_shards)
        done, damaged = 0, list[DamagedRow]()
        progress(Progress("packing", 0, total))
        for made in in_processes(self._make_shard, open_shards, workers=workers):
            if made.digest is not None:
                self.shards.mark_done(made.shard, sha256=made.digest, sums=made.sums)
            damaged += made.damaged
            done += len(self.shards.span(made.shard))
            progress(Progress("packing", done, total))
        if damaged:
            damaged.sort(key=lambda row: row.position)
            lines = (f"{row.image_id}\t{row.reason}\n" for row in damaged)
            write_atomically(self.unfinished / DAMAGED_NAME, "".join(lines))
        else:
            self._finish()
        return damaged

    def verify(
        self, *, workers: int, progress: Callable[[Progress], None], say: Callable[[str], None]
    ) -> int:
        """Read every shard that is whole; what is not as it was written is opened again, for `make`.

        Gives the number of images that were read. Under `exclusive`. UnusablePack if other decoders made it.
        """
        folder, digests = self._stated_digests(say)
        total = sum(len(self.shards.span(shard)) for shard in digests)
        read, differing = 0, list[int]()
        progress(Progress("verifying", 0, total))
        for found in in_processes(partial(self._read_shard, folder), list(digests), workers=workers):
            read += len(self.shards.span(found.shard))
            progress(Progress("verifying", read, total))
            if found.digest != digests[found.shard]:
                differing.append(found.shard)
        is_formed = self._is_formed(folder / PIXELS_NAME) and self._has_sums(folder)
        if differing:
            named = ", ".join(map(str, sorted(differing)[:MOST_NAMED]))
            more = f" and {len(differing) - MOST_NAMED} more" if len(differing) > MOST_NAMED else ""
            say(f"not as it was written, and made anew: shard {named}{more} of {self.shards.count}")
        elif not is_formed and folder == self.folder:
            say(f"{folder}: a header, a length or the rows' sums are not as they were written, and made anew")
        # The manifest goes last: whatever ends this command before, the next one finds the damage again.
        for shard in differing:
            self._shards_in(folder).mark_open(shard)
        if folder == self.folder and (differing or not is_formed):
            (folder / MANIFEST_NAME).unlink()
        return read

    def _stated_digests(self, say: Callable[[str], None]) -> tuple[Path, dict[int, str]]:
        """Where the rows are, and the SHA-256 of each whole shard: as the manifest states it, or, where
        there is no good one, the marker that was written with the shard."""
        path = self.folder / MANIFEST_NAME
        try:
            manifest = read_manifest(self.folder)
        except UnusablePack:
            manifest = None
        if manifest is not None and manifest.data_digest == self.images.digest:
            check_decoders(self.folder, manifest.decoders)
            return self.folder, dict(enumerate(manifest.shards))
        if path.exists():
            say(f"{path}: not as it was written, and made anew; shards are held against their own digests")
            path.unlink()
        self._take_up(say)
        done = [shard for shard in range(self.shards.count) if self.shards.is_done(shard)]
        return self.unfinished, {shard: self.shards.facts(shard)["sha256"] for shard in done}

    def _take_up(self, say: Callable[[str], None]) -> None:
        """Make the unfinished folder ready, with what is left of this very work."""
        if self.folder.exists() and not (self.folder / MANIFEST_NAME).exists():
            if self.unfinished.exists():
                shutil.rmtree(self.unfinished)
            self.folder.rename(self.unfinished)
            sync_folder(self.unfinished.parent)
        if self.unfinished.exists() and not self.shards.is_prepared():
            say(f"{self.unfinished}: unfinished work of another kind (other decoders, say) is dropped")
        self.shards.prepare()
        remove_leftovers(self.unfinished, older_than=0.0)

    def _shards_in(self, folder: Path) -> Shards:
        return Shards(
            folder,
            images=len(self.images),
            identity={
                "data_set": self.images.data_set,
                "listing": self.images.listing_digest,
                "image_size": self.size,
                "decoders": decoders(),
            },
            content=self.images.content_digest,
            size=PACK_SHARD_IMAGES,
        )

    def _check_room(self) -> None:
        path = self.unfinished / PIXELS_NAME
        there = path.stat().st_blocks * 512 if path.is_file() else 0  # a file has holes until it is whole
        needed, free = self.bytes - there, shutil.disk_usage(self.unfinished).free
        if needed > free:
            raise HarnessError(
                f"packing needs {needed / 1e9:,.1f} GB more in {self.unfinished.parent}, where "
                f"{free / 1e9:,.1f} GB are free; make room, give another --work-dir, or train without a pack"
            )

    def _prepare_file(self) -> None:
        """The file with its header at its whole length; shards of which it has lost rows are open again."""
        path = self.unfinished / PIXELS_NAME
        path.touch()
        found = path.stat().st_size
        for shard in range(self.shards.count):
            # A shard from before rows had sums is made again, too.
            is_lost = self._place(shard).stop > found
            if is_lost or (self.shards.is_done(shard) and "sums" not in self.shards.facts(shard)):
                self.shards.mark_open(shard)
        with naming(path), path.open("r+b") as stream:
            stream.write(header_of(len(self.images), self.size))
            stream.truncate(self.bytes)

    def _is_formed(self, path: Path) -> bool:
        """True if the file has its header and its length."""
        header = header_of(len(self.images), self.size)
        if not path.is_file() or path.stat().st_size != self.bytes:
            return False
        with path.open("rb") as stream:
            return stream.read(len(header)) == header

    def _has_sums(self, folder: Path) -> bool:
        """True if the rows' sums, of a whole pack that has them, are as they were written."""
        manifest = read_manifest(folder) if folder == self.folder else None
        if manifest is None or not manifest.sums:
            return True
        path = folder / SUMS_NAME
        return path.is_file() and sha256_of_file(path) == manifest.sums

    def _place(self, shard: int) -> range:
        """The shard's bytes in the file."""
        span = self.shards.span(shard)
        first, stop = (
            place_of(position, len(self.images), self.size) for position in (span.start, span.stop)
        )
        return range(first, stop)

    def _make_shard(self, shard: int) -> _Shard:
        """Decode the shard's images into their rows, which are on disk when this returns."""
        digest, damaged = hashlib.sha256(), list[DamagedRow]()
        sums = list[int]()
        path = self.unfinished / PIXELS_NAME
        with naming(path), path.open("r+b") as stream:
            stream.seek(self._place(shard).start)
            for position in self.shards.span(shard):
                try:
                    image = self.images.image(position)
                except DamagedImage as error:
                    damaged.append(DamagedRow(position, error.image_id, error.reason))
                    continue
                if damaged:
                    continue  # the shard stays open: what is of interest is who else is damaged
                row = np.ascontiguousarray(square_pixels(image, self.size).transpose(1, 2, 0))
                digest.update(row.data)
                sums.append(row_sum(row))
                stream.write(row.data)
            stream.flush()
            os.fsync(stream.fileno())
        return _Shard(shard, None if damaged else digest.hexdigest(), tuple(damaged), tuple(sums))

    def _read_shard(self, folder: Path, shard: int) -> _Shard:
        """The digest of the shard's rows as they are on disk."""
        digest, left = hashlib.sha256(), len(self._place(shard))
        path = folder / PIXELS_NAME
        if path.is_file():
            with path.open("rb") as stream:
                stream.seek(self._place(shard).start)
                while left and (content := stream.read(min(left, 2**20))):
                    digest.update(content)
                    left -= len(content)
        return _Shard(shard, digest.hexdigest())

    def _finish(self) -> None:
        """Every shard is whole: say so, and give the folder its name."""
        facts = [self.shards.facts(shard) for shard in range(self.shards.count)]
        sums = sums_content([one for shard in facts for one in shard["sums"]])
        manifest = PackManifest(
            data_set=self.images.data_set,
            data_digest=self.images.digest,
            listing_digest=self.images.listing_digest,
            images=len(self.images),
            image_size=self.size,
            bytes=self.bytes,
            decoders=decoders(),
            images_per_shard=self.shards.size,
            shards=tuple(str(one["sha256"]) for one in facts),
            sums=hashlib.sha256(sums).hexdigest(),
        ).sealed()
        write_atomically(self.unfinished / SUMS_NAME, sums)
        (self.unfinished / DAMAGED_NAME).unlink(missing_ok=True)
        write_atomically(self.unfinished / MANIFEST_NAME, manifest.model_dump_json(indent=1) + "\n")
        self.unfinished.rename(self.folder)
        sync_folder(self.folder.parent)
