"""Stage `tokenise`: fit a tokenizer on the pre-training images and store their tokens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from benchmark.data import ImagePart
from benchmark.stage import CellContext, StageResult
from leaderboard.record import Metric, TokenizerUse
from protocols.errors import HarnessError
from protocols.files import sha256_of_file
from tokenizers import build_tokenizer, tokenizer_spec
from tokenizers.base import WEIGHTS_NAME, Tokenizer
from tokenizers.store import MANIFEST_NAME, open_store, write_tokens

BATCH = 64


def run(context: CellContext) -> StageResult:
    """Fit, encode and store; an existing store of the same tokens is verified and taken as it is."""
    started = time.perf_counter()
    name = context.cell.tokenizer
    assert name is not None
    images = context.images("pretraining")
    tokenizer = build_tokenizer(name, **dict(context.cell.hyperparameters))
    if context.runtime.device == "cuda":
        tokenizer.to("cuda")
    context.folder.mkdir(parents=True, exist_ok=True)
    tokens = tokenizer.fit_encode(_batches(tokenizer, images), scratch=context.folder)
    base = f"tokens/{name}-{tokenizer.digest[:12]}"
    path = f"{base}/{images.data_set}-{images.digest[:12]}"
    folder = context.work_dir / path
    if not folder.is_dir():
        tokenizer.save(context.work_dir / base)
        write_tokens(
            folder,
            tokenizer=tokenizer,
            data_name=images.data_set,
            data_digest=images.digest,
            image_ids=images.image_ids,
            tokens=tokens,
        )
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
            source_digest=tokenizer_spec(name).source_digest(),
            teacher=tokenizer.teacher,
        ),
    )


def _batches(tokenizer: Tokenizer, images: ImagePart) -> Iterator[Tensor]:
    transformed = (tokenizer.transform(image) for image in images.images())
    while batch := list(islice(transformed, BATCH)):
        yield torch.stack(batch)
