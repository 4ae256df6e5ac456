"""Three further methods, declared without torch: the paper lists them as others report them.

Legend: N patches, M masked patches, G images of a group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from methods.specs import MethodSpec, Pass, Work, full_attention, masked_work
from protocols.errors import HarnessError
from protocols.hyperparameters import Hyperparameter, Value
from protocols.schema import TrunkSpec

BINS, CHANNELS = 9, 3


def _own_blocks(trunk: TrunkSpec, *, blocks: int, rows: int, pairs: int) -> Pass:
    """Blocks like the trunk's that are not the trunk's."""
    return replace(full_attention(trunk, rows), blocks=blocks, pairs=pairs, is_own=True)


def _splitmask_work(trunk: TrunkSpec, given: Mapping[str, Value]) -> Work:
    patches, group = trunk.patches, int(given["contrast_group"])
    half = patches // 2
    decoder = _own_blocks(
        trunk, blocks=int(given["decoder_depth"]), rows=2 * patches, pairs=2 * patches * patches
    )
    return Work(
        passes=(full_attention(trunk, 1 + patches - half), full_attention(trunk, 1 + half), decoder),
        predicted=patches,
        head_width=trunk.width,
        # An image's two views against all views of its group.
        projections=((2, trunk.width, 2 * group, True),),
    )


def _maskfeat_work(trunk: TrunkSpec, given: Mapping[str, Value]) -> Work:
    cells = int(given["cells_per_side"])
    if trunk.patch_size % cells:
        raise HarnessError(
            f"method maskfeat: cells_per_side must divide the patch's {trunk.patch_size} pixels, got {cells}"
        )
    return replace(masked_work(trunk, given), head_outputs=cells**2 * BINS * CHANNELS)


def _beit_v2_work(trunk: TrunkSpec, given: Mapping[str, Value]) -> Work:
    rows, early = 1 + trunk.patches, int(given["early_layer"])
    if early > trunk.depth:
        raise HarnessError(
            f"method beit-v2: early_layer must be at most {trunk.depth}, the trunk's depth, got {early}"
        )
    head = _own_blocks(trunk, blocks=int(given["head_depth"]), rows=rows, pairs=rows * rows)
    return Work(
        passes=(full_attention(trunk, rows), head),
        predicted=2 * int(given["mask_count"]),
        head_width=trunk.width,
    )


_MASK_COUNT = Hyperparameter(
    name="mask_count",
    type=int,
    low=1,
    follows=lambda trunk: max(1, round(0.4 * trunk.patches)),
    source="two fifths of the patches: BEiT, section 2.3, and BEiT v2 and MaskFeat after it",
)
_MIN_BLOCK = Hyperparameter(
    name="min_block",
    type=int,
    low=1,
    follows=lambda trunk: max(1, round(trunk.patches * 16 / 196)),
    source="BEiT, section 2.3: 16 of 196 patches; assumed: the same share of another grid",
)

FURTHER: tuple[MethodSpec, ...] = (
    MethodSpec(
        name="splitmask",
        title="SplitMask",
        target="methods.splitmask:SplitMask",
        paper="arXiv 2112.10740",
        files=("splitmask.py", "trunk_blocks.py"),
        group="contrast_group",
        hyperparameters=(
            Hyperparameter(
                name="decoder_depth",
                type=int,
                low=1,
                default=2,
                source="section 3.3: a decoder of two layers",
            ),
            Hyperparameter(
                name="contrast_weight",
                type=float,
                low=0,
                default=1.0,
                source="assumed: the two losses are added, and no weight is known",
            ),
            Hyperparameter(
                name="temperature",
                type=float,
                low=0.01,
                default=0.2,
                source="assumed: MoCo v2's and v3's; the paper's is not at hand. Others: 0.1, 0.07",
            ),
            Hyperparameter(
                name="contrast_group",
                type=int,
                low=2,
                default=64,
                source="assumed: the paper contrasts within a mini-batch; what one GPU can hold of it",
            ),
        ),
        work=_splitmask_work,
    ),
    MethodSpec(
        name="maskfeat",
        title="MaskFeat",
        target="methods.maskfeat:MaskedFeaturePrediction",
        paper="histograms of oriented gradients as targets (arXiv 2112.09133)",
        files=("maskfeat.py",),
        uses_tokens=False,
        loss_unit="squared error",
        hyperparameters=(
            _MASK_COUNT,
            _MIN_BLOCK,
            Hyperparameter(
                name="cells_per_side",
                type=int,
                low=1,
                default=2,
                source="the paper: cells of 8 pixels in patches of 16; assumed: half of other patches too",
            ),
        ),
        work=_maskfeat_work,
    ),
    MethodSpec(
        name="beit-v2",
        title="BEiT v2",
        target="methods.beit_v2:PatchAggregation",
        paper="BEiT with patch aggregation (arXiv 2208.06366, section 3.3)",
        files=("beit_v2.py", "beit.py", "mim.py", "trunk_blocks.py"),
        hyperparameters=(
            _MASK_COUNT,
            _MIN_BLOCK,
            Hyperparameter(
                name="early_layer",
                type=int,
                low=1,
                follows=lambda trunk: max(1, round(0.75 * trunk.depth)),
                source="released code: block 9 of ViT-B's 12; assumed: the same share of another depth",
            ),
            Hyperparameter(name="head_depth", type=int, low=1, default=2, source="released code: two blocks"),
        ),
        work=_beit_v2_work,
    ),
)
