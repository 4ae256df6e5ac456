"""Stage `tokenise`: fit a tokenizer on the pre-training images, or load it, and store their tokens."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from benchmark.data import ImagePart
from benchmark.inputs import weights_folder
from benchmark.stage import CellContext, StageResult
from leaderboard.record import Metric, TokenizerUse
from protocols.errors import HarnessError
from protocols.files import sha256_of_file
from tokenizers import build_tokenizer
from tokenizers.base import WEIGHTS_NAME, Tokenizer
from tokenizers.network import NetworkTokenizer
from tokenizers.store import MANIFEST_NAME, TokenStore, open_store, write_tokens

BATCH = 64
log = logging.getLogger(__name__)


def run(context: CellContext) -> StageResult:
    """Fit or load, encode and store; an existing whole store of the same tokens stays as it is."""
    started = time.perf_counter()
    name = context.cell.tokenizer
    assert name is not None
    images = context.images("pretraining")
    tokenizer = build_tokenizer(name, **dict(context.cell.hyperparameters))
    if context.runtime.device == "cuda":
        tokenizer.to("cuda")
    context.folder.mkdir(parents=True, exist_ok=True)
    batches = _batches(tokenizer, images)
    tokens: Iterator[Tensor]
    if isinstance(tokenizer, NetworkTokenizer):
        tokenizer.load_published(weights_folder(context.data_root))
        tokens = map(tokenizer.encode, batches)
    else:
        tokens = tokenizer.fit_encode(batches, scratch=context.folder)
    base = f"tokens/{name}-{tokenizer.digest[:12]}"
    path = f"{base}/{images.data_set}-{images.digest[:12]}"
    folder = context.work_dir / path
    tokenizer.save(context.work_dir / base)
    # Written beside what may be there: weights and configuration name a store, the code that encoded
    # with them does not.
    fresh = folder.with_name(f".{folder.name}.{context.cell.id}")
    shutil.rmtree(fresh, ignore_errors=True)
    write_tokens(
        fresh,
        tokenizer=tokenizer,
        data_name=images.data_set,
        data_digest=images.digest,
        image_ids=images.image_ids,
        tokens=tokens,
    )
    if is_same_store(folder, open_store(fresh)):
        shutil.rmtree(fresh)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    store = open_store(folder)
    made_by = (store.manifest.tokenizer.digest, store.manifest.data_digest)
    if made_by != (tokenizer.digest, images.digest):
        raise HarnessError(f"{path} holds other tokens than its name says; delete it and run again")
    card = store.manifest.card
    n = len(images)
    return StageResult(
        metrics={
            "codebook_size": Metric(value=store.codebook_size, n=n, unit="codes"),
            "codebook_use_percent": Metric(value=100 * card["used_share"], n=n, unit="%"),
            "dead_codes": Metric(value=card["dead_codes"], n=n, unit="codes"),
            "perplexity": Metric(value=card["perplexity"], n=n, unit="codes"),
            "concentration_percent": Metric(value=100 * card["commonest_1_percent"], n=n, unit="%"),
        },
        data=images,
        seconds=time.perf_counter() - started,
        images_seen=n,
        train_flops=0.0,
        artefacts={
            f"{base}/{WEIGHTS_NAME}": sha256_of_file(context.work_dir / base / WEIGHTS_NAME),
            f"{path}/{MANIFEST_NAME}": sha256_of_file(folder / MANIFEST_NAME),
        },
        tokenizer=TokenizerUse(
            name=name,
            digest=tokenizer.digest,
            teacher=tokenizer.teacher,
        ),
    )


def is_same_store(folder: Path, fresh: TokenStore) -> bool:
    """True if `folder` holds a whole store of the very tokens of `fresh`."""
    if not folder.is_dir():
        return False
    try:
        return open_store(folder).digest == fresh.digest
    except HarnessError as error:
        log.warning("the store that was there is replaced: %s", error)
        return False


def _batches(tokenizer: Tokenizer, images: ImagePart) -> Iterator[Tensor]:
    transformed = (tokenizer.transform(image) for image in images.images())
    while batch := list(islice(transformed, BATCH)):
        yield torch.stack(batch)
