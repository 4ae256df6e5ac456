"""FLOPs of a cell in plain arithmetic; no torch.

A multiply-add counts as two. Counted are matrix products: patch embedding, projections, attention
products, MLPs and heads; norms, activations and softmax are left out, as torch's own counter does.
A backward pass costs twice its forward pass; the patch embedding needs no gradient of its input.
"""

from __future__ import annotations

from collections.abc import Mapping

from methods import method_spec
from methods.specs import Pass, Work
from protocols.hyperparameters import Value
from protocols.recipes import FineTuning, LinearProbe, NearestNeighbours, TokenClassification
from protocols.schema import TrunkSpec

CHANNELS = 3


def block_flops(work: Pass) -> float:
    """Forward FLOPs of all blocks of one pass over one image."""
    width, hidden = work.width, int(work.width * work.mlp_ratio)
    projections = 2 * width * width * (2 * work.query_rows + 2 * work.key_rows)
    attention = 2 * 2 * work.pairs * width
    mlp = 2 * 2 * work.query_rows * width * hidden
    return float(work.blocks * (projections + attention + mlp))


def embedding_flops(trunk: TrunkSpec) -> float:
    """Forward FLOPs of the patch convolution over one image."""
    return float(2 * trunk.patches * CHANNELS * trunk.patch_size**2 * trunk.width)


def forward_flops(trunk: TrunkSpec) -> float:
    """Forward FLOPs of the plain trunk over one image: class token and all patches."""
    rows = 1 + trunk.patches
    full = Pass(
        blocks=trunk.depth,
        width=trunk.width,
        query_rows=rows,
        key_rows=rows,
        pairs=rows * rows,
        mlp_ratio=trunk.mlp_ratio,
    )
    return embedding_flops(trunk) + block_flops(full)


def evaluation_flops(recipe: FineTuning | LinearProbe, trunk: TrunkSpec) -> float:
    """FLOPs of training under an evaluation's recipe; heads and the evaluated images are left out.

    A probe without augmentation passes each labelled image through the trunk once.
    """
    seen = recipe.labelled_images // recipe.global_batch * recipe.global_batch * recipe.epochs
    if isinstance(recipe, FineTuning):
        return 3 * forward_flops(trunk) * seen
    is_augmented = recipe.resized_crop_scale is not None or bool(recipe.horizontal_flip)
    return forward_flops(trunk) * (seen if is_augmented else recipe.labelled_images)


def nearest_neighbour_flops(recipe: NearestNeighbours, trunk: TrunkSpec, *, evaluated_images: int) -> float:
    """FLOPs of the features of all images, labelled and evaluated; the search is left out."""
    return forward_flops(trunk) * (recipe.labelled_images + evaluated_images)


def token_classification_flops(recipe: TokenClassification, trunk: TrunkSpec) -> float:
    """FLOPs of training on learned embeddings of the tokens, which cost no products; heads left out."""
    seen = recipe.labelled_images // recipe.global_batch * recipe.global_batch * recipe.epochs
    if recipe.width is not None and recipe.hidden_width is not None:
        return 3.0 * 2 * trunk.patches * recipe.width * recipe.hidden_width * seen
    return 3 * (forward_flops(trunk) - embedding_flops(trunk)) * seen


def training_flops(
    method: str, trunk: TrunkSpec, hyperparameters: Mapping[str, Value], *, codebook_size: int
) -> float:
    """Forward and backward FLOPs of one image under the method's objective; 0 without one.

    Block-wise masks that fall short of their target count as if they met it.
    """
    describe = method_spec(method).work
    if describe is None:
        return 0.0
    work: Work = describe(trunk, hyperparameters)
    total = 2 * embedding_flops(trunk)
    for stack in work.passes:
        total += block_flops(stack) * (3 if stack.has_gradient else 1)
    for rows, inputs, outputs, has_gradient in work.projections:
        total += 2.0 * rows * inputs * outputs * (3 if has_gradient else 1)
    outputs = codebook_size if work.head_outputs is None else work.head_outputs
    return total + 3 * 2.0 * work.predicted * work.head_width * outputs
