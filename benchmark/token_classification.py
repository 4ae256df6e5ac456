"""Stage `token-classification`: images classified from their visual tokens alone (the paper's Table 4).

No pixel is seen: what is measured is how much of an image's class its tokens still tell. (a) an MLP, (b) a
trunk that takes learned embeddings of the tokens in the place of its patches. The paper names no
initialisation: here it is torch's own for the MLP, and for the trunk timm's.

B images, N patches, V codebook, D width, H hidden width, C classes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from timm.layers import trunc_normal_
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from benchmark.batches import Batch
from benchmark.classification import (
    EVALUATION_BATCH,
    Classification,
    evaluation_result,
    most_likely_classes,
)
from benchmark.image_part import ImagePart
from benchmark.recipe import train_recipe
from benchmark.stage import CellContext, StageResult
from benchmark.stored_tokens import check_geometry, store_of
from methods.trunk import build_classifier
from protocols.errors import HarnessError
from protocols.recipes import TokenClassification
from protocols.schema import TrunkSpec
from tokenizers.store import TokenStore


class TokenMlp(nn.Module):
    """Table 4 (a): embedding, Linear, ReLU, mean over positions, Linear. It knows nothing of positions."""

    def __init__(self, *, codebook_size: int, width: int, hidden_width: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, width)
        self.hidden = nn.Linear(width, hidden_width)
        self.head = nn.Linear(hidden_width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N) int64 -> logits (B, C)."""
        hidden = self.hidden(self.embedding(tokens)).relu()  # (B, N, H)
        logits: Tensor = self.head(hidden.mean(dim=1))
        return logits


def token_vit(trunk: TrunkSpec, *, codebook_size: int, classes: int) -> VisionTransformer:
    """Table 4 (b): fine-tuning's model, tokens (B, N) int64 -> logits (B, C).

    An embedding (V, D) stands where the patch embedding was: class token, positions, drop path, the mean
    over patches and the head are as in fine-tuning.
    """
    model = build_classifier(trunk, classes=classes, backbone=None)
    embedding = nn.Embedding(codebook_size, trunk.width)
    trunc_normal_(embedding.weight, std=0.02)  # as timm draws the positions that are added to it
    model.patch_embed = embedding
    return model


class StoredTokens:
    """Tokens of the images of one part, read from the store as they are asked for, and their labels."""

    def __init__(self, store: TokenStore, images: ImagePart) -> None:
        self.store, self.labels = store, images.labels
        self.rows = store.rows(images.image_ids)

    def __call__(self, positions: npt.NDArray[np.int64], epoch: int) -> Batch:
        """The images at `positions`; the same in every epoch."""
        return {
            "inputs": torch.from_numpy(self.store.tokens(self.rows[positions])),
            "labels": torch.from_numpy(self.labels[positions]),
        }

    def in_order(self) -> list[Tensor]:
        """All tokens, in batches (B, N), the last shorter."""
        starts = range(0, len(self.rows), EVALUATION_BATCH)
        rows = (self.rows[start : start + EVALUATION_BATCH] for start in starts)
        return [torch.from_numpy(self.store.tokens(chosen)) for chosen in rows]


def run(context: CellContext) -> StageResult:
    """Train the classifier on the labelled images' tokens; every evaluated image is predicted once."""
    recipe = context.protocol.evaluation(context.cell.evaluation or "", None)
    assert isinstance(recipe, TokenClassification)
    labelled = context.images("training").first(recipe.labelled_images)
    evaluated = context.images(recipe.evaluated_part)
    if labelled.classes != evaluated.classes:
        raise HarnessError(
            f"data set {labelled.data_set}: the classes of its training images ({len(labelled.classes)}) are "
            f"not those of its {recipe.evaluated_part} images ({len(evaluated.classes)}); check the data root"
        )
    labelled_store, evaluated_store = _stores(context)
    classifier = seeded_classifier(context, recipe, store=labelled_store, classes=len(labelled.classes))
    result = train_recipe(
        context,
        recipe,
        objective=Classification(classifier, label_smoothing=recipe.label_smoothing),
        weights=classifier,
        undecayed=set(classifier.no_weight_decay()) if isinstance(classifier, VisionTransformer) else set(),
        images=labelled,
        make_batch=StoredTokens(labelled_store, labelled),
    )
    most_likely = most_likely_classes(
        classifier.eval(),
        StoredTokens(evaluated_store, evaluated).in_order(),
        device=context.runtime.device,
        image_ids=evaluated.image_ids,
    )
    return evaluation_result(context, result, evaluated, most_likely[:, 0], most_likely=most_likely)


def seeded_classifier(
    context: CellContext, recipe: TokenClassification, *, store: TokenStore, classes: int
) -> nn.Module:
    """The recipe's classifier of the tokens of `store`, drawn from the row's seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        if recipe.drop_path is not None:
            trunk = context.trunk(drop_path=recipe.drop_path)
            check_geometry(trunk, tokens=store.grid**2, tokenizer=context.cell.tokenizer or "")
            return token_vit(trunk, codebook_size=store.codebook_size, classes=classes)
        assert recipe.width is not None
        assert recipe.hidden_width is not None
        return TokenMlp(
            codebook_size=store.codebook_size,
            width=recipe.width,
            hidden_width=recipe.hidden_width,
            classes=classes,
        )


def _stores(context: CellContext) -> tuple[TokenStore, TokenStore]:
    """Those of the labelled and of the evaluated images, which one tokenizer must have made."""
    parents = [context.done(cell_id) for cell_id in context.cell.parents]
    labelled, evaluated = (store_of(context, parent) for parent in parents)
    if labelled.manifest.tokenizer.digest != evaluated.manifest.tokenizer.digest:
        raise HarnessError(
            f"the tokens of {parents[0].cell_id} and of {parents[1].cell_id} were made by differently "
            f"fitted tokenizers {context.cell.tokenizer}; run with --redo-stale to make the latter anew"
        )
    return labelled, evaluated
