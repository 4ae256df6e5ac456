"""The first half of tokenising: a tokenizer that can encode, fitted here or taken from the parent cell."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from torch import Tensor

from benchmark.encoding import DamagedImages, read_batches, write_as_shards
from benchmark.metrics import MetricsFile
from benchmark.token_work import TokenWork
from protocols.errors import HarnessError
from protocols.files import naming, sha256_of_file
from tokenizers.base import WEIGHTS_NAME
from tokenizers.feature_file import FeatureFile
from tokenizers.kmeans import FitIteration, KMeansTokenizer

# Below this, features wait on disk between fitting and encoding, so that the network runs once per image.
MOST_SPOOLED_BYTES = 2**30
SEEN_SECONDS = 60.0
log = logging.getLogger(__name__)


def make_ready(work: TokenWork) -> None:
    """Leave the work with a tokenizer that can encode."""
    if work.context.cell.part is not None:
        _load_of_parent(work)
    elif isinstance(work.tokenizer, KMeansTokenizer):
        fit_codebook(work, work.tokenizer)


def _load_of_parent(work: TokenWork) -> None:
    """The tokenizer as the parent fitted or loaded it, from the file that its record names."""
    artefacts = work.context.parent().artefacts
    ((path, digest),) = [item for item in artefacts.items() if item[0].endswith(f"/{WEIGHTS_NAME}")]
    file = work.context.work_dir / path
    if not file.is_file() or sha256_of_file(file) != digest:
        raise HarnessError(
            f"{path} is missing or is not the one that was recorded; delete the cell "
            f"{work.context.cell.parents[0]} and run with --redo-failed"
        )
    work.tokenizer.load(file.parent)


def fit_codebook(work: TokenWork, tokenizer: KMeansTokenizer) -> Path:
    """Fit once, in the first process; the codebook's file waits for the others and for a resume."""
    work.agree(work.codebook)
    fitted = work.codebook.folder / WEIGHTS_NAME
    if work.peers.rank == 0:
        _load_what_is_left(tokenizer, fitted)
    if not work.peers.gather("fitted", ["yes"] if tokenizer.is_fitted else []):
        if tokenizer.sampled_features is not None:
            _fit_on_file(work, tokenizer, tokenizer.sampled_features)
        elif work.peers.rank == 0:
            _fit_in_memory(work, tokenizer)
    work.peers.wait_for_all("codebook")
    if not tokenizer.is_fitted:
        _wait_until_seen(fitted)
        tokenizer.load(fitted.parent)
    return fitted


def report_fit(metrics: MetricsFile, iteration: FitIteration) -> None:
    """Write one iteration down. HarnessError where its objective is not finite, which no later one mends."""
    if not math.isfinite(iteration.objective):
        raise HarnessError(
            f"the objective of k-means is {iteration.objective} in iteration {iteration.iteration} of run "
            f"{iteration.restart + 1}: squares of these features overflow; look at the network that they "
            "come from (its weights, its precision), then give the command again with --redo-failed"
        )
    metrics.fit(iteration)


def _load_what_is_left(tokenizer: KMeansTokenizer, fitted: Path) -> None:
    """Take the codebook of an earlier attempt, if there is a whole one."""
    if fitted.is_file():
        try:
            tokenizer.load(fitted.parent)
        except HarnessError as error:
            log.warning("fitted again: %s", error)
            fitted.unlink()


def _wait_until_seen(path: Path) -> None:
    """A shared file system may take seconds to show what another machine has written."""
    deadline = time.monotonic() + SEEN_SECONDS
    while not path.is_file() and time.monotonic() < deadline:
        time.sleep(0.2)


def _fit_in_memory(work: TokenWork, tokenizer: KMeansTokenizer) -> None:
    """A sample in memory; where all features are few, the tokens come out of the same pass."""
    images, patches, width = len(work.images), tokenizer.grid**2, tokenizer.extractor.width
    damaged: list[str] = []
    batches = _whole(work, damaged)
    if 4 * images * patches * width > MOST_SPOOLED_BYTES or work.peers.processes > 1:
        tokenizer.fit(batches, report=partial(report_fit, work.metrics))
        tokenizer.save(work.codebook.folder)
        return
    with naming(work.folder):  # the features' own file in it has no name
        tokens = tokenizer.fit_encode(batches, scratch=work.folder, report=partial(report_fit, work.metrics))
    tokenizer.save(work.codebook.folder)
    work.tokens.shards.prepare()
    write_as_shards(work.tokens, tokens)


def _whole(work: TokenWork, damaged: list[str]) -> Iterator[Tensor]:
    """All images in batches (b, 3, S, S). DamagedImages after the last if any could not be read."""
    workers = work.context.runtime.workers
    progress = work.metrics.images("reading", total=len(work.images))
    positions = range(len(work.images))
    for batch in read_batches(work.tokenizer, work.images, positions, workers=workers):
        damaged += batch.damaged
        progress(len(batch.images) + len(batch.damaged))
        if not damaged:
            yield batch.images
    if damaged:
        raise DamagedImages(damaged, images=len(work.images), listing=work.listing)


def _fit_on_file(work: TokenWork, tokenizer: KMeansTokenizer, rows: int) -> None:
    """Features sampled evenly over the images into one file, by all processes; k-means by the first."""
    features = FeatureFile(
        work.folder / "features",
        images=len(work.images),
        patches=tokenizer.grid**2,
        width=tokenizer.extractor.width,
        rows=rows,
        seed=tokenizer.config["seed"],
        identity=work.identity(),
        content=work.images.content_digest,
    )
    work.agree(features.shards, prepare=features.prepare)
    mine = features.shards.open_shards(rank=work.peers.rank, processes=work.peers.processes)
    open_shards = features.shards.open_shards()
    total = sum(len(features.wanted(shard)) for shard in open_shards)
    work.peers.wait_for_all("sampling")  # all have counted before the first is done
    progress = work.metrics.images("sampling", total=total, processes=work.peers.processes)
    damaged: list[str] = []
    for shard in mine:
        work.peers.check()
        with naming(work.folder / "features"), suppress(_ShardDamaged):
            features.write(
                shard, _sampled(work, tokenizer, features.wanted(shard).tolist(), damaged, progress)
            )
    work.check_damaged("sampled", damaged)
    if work.peers.rank == 0:
        tokenizer.fit_features(features.features(), report=partial(report_fit, work.metrics))
        tokenizer.save(work.codebook.folder)
        shutil.rmtree(work.folder / "features")


class _ShardDamaged(Exception):
    """Images of this shard cannot be read: it stays open."""


def _sampled(
    work: TokenWork,
    tokenizer: KMeansTokenizer,
    positions: Sequence[int],
    damaged: list[str],
    progress: Callable[[int], None],
) -> Iterator[Tensor]:
    """Features (b, N, D) of the images at `positions`; _ShardDamaged after the last if any is damaged."""
    known = len(damaged)
    for batch in read_batches(tokenizer, work.images, positions, workers=work.context.runtime.workers):
        damaged += batch.damaged
        progress(len(batch.images) + len(batch.damaged))
        if len(damaged) == known:
            yield tokenizer.extract(batch.images)
    if len(damaged) > known:
        raise _ShardDamaged
