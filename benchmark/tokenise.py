"""Stage `tokenise`: fit a tokenizer on the pre-training images, or load it, and store the tokens of a part.

The same bytes come out of any number of processes on one kind of device, interrupted or not.
"""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path

import numpy as np
import torch

from benchmark.encoding import DamagedImages, encode_shards
from benchmark.fitting import fit_codebook, make_ready
from benchmark.image_part import ImagePart
from benchmark.peers import CellEnded
from benchmark.stage import CellContext, StageResult
from benchmark.token_work import TokenWork, begin
from leaderboard.record import Metric, TokenizerUse
from protocols.errors import HarnessError
from protocols.files import sha256_of_file
from tokenizers.base import WEIGHTS_NAME, Tokenizer
from tokenizers.card import batch_agreement
from tokenizers.kmeans import KMeansTokenizer
from tokenizers.store import MANIFEST_NAME, TokenStore, open_store, write_tokens

COMPARED = 64
log = logging.getLogger(__name__)


def run(context: CellContext) -> StageResult:
    """Fit or load, encode and store; an existing whole store of the same tokens stays as it is."""
    started = time.perf_counter()
    work = begin(context)
    make_ready(work)
    _encode(work)
    result = _store(work, started)
    work.peers.end()
    return result


def assist(context: CellContext) -> None:
    """In a further process of the cell: do its share of the images. Makes no record."""
    try:
        work = begin(context)
        make_ready(work)
        _encode(work)
    except (CellEnded, DamagedImages) as ended:
        log.info("cell %s: %s; the first process says so", context.cell.id, ended)


def fit(context: CellContext) -> Path:
    """Only fit the tokenizer: its codebook waits where `run` looks for it. Returns the codebook's file."""
    work = begin(context)
    assert isinstance(work.tokenizer, KMeansTokenizer)
    return fit_codebook(work, work.tokenizer)


def _encode(work: TokenWork) -> None:
    """All shards that are still open, each by its process. DamagedImages, naming all, at the end."""
    peers, tokens, damaged = work.peers, work.tokens, list[str]()
    work.agree(tokens.shards)
    if peers.rank == 0:
        tokens.drop_damaged()
    peers.wait_for_all("encoding")
    mine = tokens.shards.open_shards(rank=peers.rank, processes=peers.processes)
    total = sum(len(tokens.shards.span(shard)) for shard in tokens.shards.open_shards())
    peers.wait_for_all("counted")  # before the first shard is done
    progress = work.metrics.images("encoding", total=total, processes=peers.processes)
    for read, unreadable in encode_shards(
        tokens,
        work.tokenizer,
        work.images,
        mine,
        workers=work.context.runtime.workers,
        check=peers.check,
    ):
        damaged += unreadable
        progress(read)
    work.check_damaged("encoded", damaged)


def _store(work: TokenWork, started: float) -> StageResult:
    """Put the shards together, in the first process, and say what came out."""
    context, tokenizer, images = work.context, work.tokenizer, work.images
    base = f"tokens/{tokenizer.name}-{tokenizer.digest[:12]}"
    path = f"{base}/{images.data_set}-{images.digest[:12]}"
    folder = context.work_dir / path
    tokenizer.save(context.work_dir / base)
    # Written beside what may be there: weights and configuration name a store, the code that encoded
    # with them does not.
    fresh = folder.with_name(f".{folder.name}.{context.cell.id}")
    for left in (fresh, *folder.parent.glob(f".{fresh.name}.unfinished-*")):
        shutil.rmtree(left, ignore_errors=True)
    write_tokens(
        fresh,
        tokenizer=tokenizer,
        data_name=images.data_set,
        data_digest=images.digest,
        image_ids=images.image_ids,
        labels=images.labels,
        tokens=work.tokens.read(),
    )
    if is_same_store(folder, open_store(fresh, verify=False)):
        shutil.rmtree(fresh)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    store = open_store(folder, verify=False)  # its bytes were written, or compared, just now
    made_by = (store.manifest.tokenizer.digest, store.manifest.data_digest)
    if made_by != (tokenizer.digest, images.digest):
        raise HarnessError(f"{path} holds other tokens than its name says; delete it and run again")
    card, n = store.manifest.card, len(images)
    return StageResult(
        metrics={
            "codebook_size": Metric(value=store.codebook_size, n=n, unit="codes"),
            "codebook_use_percent": Metric(value=100 * card["used_share"], n=n, unit="%"),
            "dead_codes": Metric(value=card["dead_codes"], n=n, unit="codes"),
            "perplexity": Metric(value=card["perplexity"], n=n, unit="codes"),
            "concentration_percent": Metric(value=100 * card["commonest_1_percent"], n=n, unit="%"),
            **_tried_out(tokenizer, images),
        },
        data=images,
        seconds=time.perf_counter() - started,
        images_seen=n,
        train_flops=0.0,
        artefacts={
            f"{base}/{WEIGHTS_NAME}": sha256_of_file(context.work_dir / base / WEIGHTS_NAME),
            f"{path}/{MANIFEST_NAME}": sha256_of_file(folder / MANIFEST_NAME),
        },
        tokenizer=TokenizerUse(name=tokenizer.name, digest=tokenizer.digest, teacher=tokenizer.teacher),
    )


def _tried_out(tokenizer: Tokenizer, images: ImagePart) -> dict[str, Metric]:
    """Rate, and agreement between batch sizes, on images spread evenly over the part."""
    positions = np.unique(np.linspace(0, len(images) - 1, COMPARED).astype(int)).tolist()
    sample = torch.stack([tokenizer.transform(images.image(position)) for position in positions])
    agreement = batch_agreement(tokenizer, sample)
    return {
        "images_per_second": Metric(value=agreement.images_per_second, n=len(sample), unit="images/s"),
        "batch_agreement_percent": Metric(value=agreement.percent, n=agreement.images, unit="%"),
    }


def is_same_store(folder: Path, fresh: TokenStore) -> bool:
    """True if `folder` holds a whole store of the very tokens of `fresh`."""
    if not folder.is_dir():
        return False
    try:
        return open_store(folder).digest == fresh.digest
    except HarnessError as error:
        log.warning("the store that was there is replaced: %s", error)
        return False
