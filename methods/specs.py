"""What each method declares without torch: hyperparameters of its own, and the work of one pass.

Legend: N patches, c cutting point (counts the class token), K = 1 + N - c targets, M masked patches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from protocols.errors import HarnessError
from protocols.hyperparameters import Hyperparameter, Value, resolve
from protocols.schema import TrunkSpec

ROOT = Path(__file__).parent.parent
# specs.py is not among them: what it declares reaches a cell through its hyperparameters alone.
BUILT_IN = "built in"
_SHARED_SOURCES = ("base.py", "chunked_loss.py", "trunk.py", "patterns.py")


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A stack of equal transformer blocks in one forward pass, for one image.

    `query_rows` go through q, output projection and MLP; `key_rows` through k and v; `pairs` are the
    query-key products that attention computes, masked ones included. `is_own` blocks have weights of
    their own; all others are the trunk's.
    """

    blocks: int
    width: int
    query_rows: int
    key_rows: int
    pairs: int
    mlp_ratio: float
    has_gradient: bool = True
    is_own: bool = False


@dataclass(frozen=True, kw_only=True)
class Work:
    """All that the cost model needs of one image's forward pass beside the patch embedding.

    `predicted` rows of width `head_width` meet the head, which has `head_outputs` columns: as many as the
    codebook has tokens where it is None. `projections` are (rows, inputs, outputs, has_gradient) of linear
    maps outside the blocks.
    """

    passes: tuple[Pass, ...]
    predicted: int
    head_width: int
    head_outputs: int | None = None
    projections: tuple[tuple[int, int, int, bool], ...] = ()


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """A method as the planner sees it.

    target           "module:Class", a methods.base.Method
    paper            where its definition stands
    files            its sources in methods/; with `sources`, their digest identifies its code
    sources          further files of its code, wherever they lie: a plug-in's own
    uses_tokens      False: its targets come from the images, so it has one row and not one per tokenizer
    group            the hyperparameter that says how many consecutive images of a batch depend on one another
                     (a contrast among images); micro-batches are whole groups of them. Empty: none do
    loss_unit        of the loss in the record
    origin           who brings it
    """

    name: str
    title: str
    target: str
    paper: str
    files: tuple[str, ...] = ()
    hyperparameters: tuple[Hyperparameter, ...] = ()
    work: Callable[[TrunkSpec, Mapping[str, Value]], Work] | None = None
    uses_tokens: bool = True
    group: str = ""
    loss_unit: str = "nats"
    sources: tuple[Path, ...] = ()
    origin: str = BUILT_IN

    @property
    def pretrains(self) -> bool:
        """False for the baseline that has no pre-training stage and so no tokenizer."""
        return self.work is not None

    def images_in_a_group(self, resolved: Mapping[str, Value]) -> int:
        """How many consecutive images of a batch have to stay in one micro-batch; 1: each stands alone."""
        return int(resolved[self.group]) if self.group else 1

    def resolve(self, given: Mapping[str, Value], *, trunk: TrunkSpec) -> dict[str, Value]:
        """All hyperparameters, checked against their ranges and the trunk; HarnessError if wrong."""
        resolved = resolve(f"method {self.name}", self.hyperparameters, given, trunk=trunk)
        limits = {"mask_count": trunk.patches, "cutting_point": trunk.patches, "min_block": trunk.patches}
        for name, high in limits.items():
            if name in resolved and int(resolved[name]) > high:
                raise HarnessError(
                    f"method {self.name}: {name} must be at most {high}, the trunk's "
                    f"patches, got {resolved[name]}"
                )
        if {"min_block", "mask_count"} <= resolved.keys():
            smallest = min(int(resolved["min_block"]), int(resolved["mask_count"]))
            if smallest >= (trunk.grid - 0.5) ** 2:
                raise HarnessError(
                    f"method {self.name}: no block of {smallest} patches is smaller than the {trunk.grid} x "
                    f"{trunk.grid} grid in both directions; choose a smaller min_block"
                )
        if {"decoder_width", "decoder_heads"} <= resolved.keys() and int(resolved["decoder_width"]) % int(
            resolved["decoder_heads"]
        ):
            raise HarnessError(
                f"method {self.name}: decoder_width {resolved['decoder_width']} is not a multiple of "
                f"decoder_heads {resolved['decoder_heads']}"
            )
        return resolved

    @property
    def source_digest(self) -> str:
        """SHA-256 over the method's source files, for staleness: never part of a cell's id."""
        digest = hashlib.sha256()
        for name in sorted({*self.files, *_SHARED_SOURCES}):
            digest.update(f"{name}\0".encode())
            digest.update((ROOT / "methods" / name).read_bytes())
        for path in self.sources:
            content = path.read_bytes()
            digest.update(f"{path.name}\0{len(content)}\0".encode())
            digest.update(content)
        return digest.hexdigest()


def full_attention(trunk: TrunkSpec, rows: int, *, has_gradient: bool = True) -> Pass:
    return Pass(
        blocks=trunk.depth,
        width=trunk.width,
        query_rows=rows,
        key_rows=rows,
        pairs=rows * rows,
        mlp_ratio=trunk.mlp_ratio,
        has_gradient=has_gradient,
    )


def masked_work(trunk: TrunkSpec, given: Mapping[str, Value]) -> Work:
    return Work(
        passes=(full_attention(trunk, 1 + trunk.patches),),
        predicted=int(given["mask_count"]),
        head_width=trunk.width,
    )


def _two_stream_work(trunk: TrunkSpec, given: Mapping[str, Value], *, mask_tokens: bool) -> Work:
    context = int(given["cutting_point"])
    targets = 1 + trunk.patches - context
    dense = context + targets * mask_tokens
    keys = dense + targets
    sizes = {"width": trunk.width, "key_rows": keys, "mlp_ratio": trunk.mlp_ratio}
    inner = Pass(
        blocks=trunk.depth - 1,
        query_rows=keys + targets,
        pairs=dense * dense + 2 * targets * keys,
        **sizes,  # type: ignore[arg-type]
    )
    last = Pass(blocks=1, query_rows=targets, pairs=targets * keys, **sizes)  # type: ignore[arg-type]
    return Work(passes=(inner, last), predicted=targets, head_width=trunk.width)


def _pim_work(trunk: TrunkSpec, given: Mapping[str, Value]) -> Work:
    return _two_stream_work(trunk, given, mask_tokens=False)


def _mapet_work(trunk: TrunkSpec, given: Mapping[str, Value]) -> Work:
    return _two_stream_work(trunk, given, mask_tokens=True)


def _cae_work(trunk: TrunkSpec, given: Mapping[str, Value]) -> Work:
    masked, width = int(given["mask_count"]), int(given["decoder_width"])
    visible = trunk.patches - masked
    regressor = Pass(
        blocks=int(given["regressor_depth"]),
        width=width,
        query_rows=masked,
        key_rows=trunk.patches,
        pairs=masked * trunk.patches,
        mlp_ratio=4.0,
        is_own=True,
    )
    decoder = Pass(
        blocks=int(given["decoder_depth"]),
        width=width,
        query_rows=masked,
        key_rows=masked,
        pairs=masked * masked,
        mlp_ratio=4.0,
        is_own=True,
    )
    projections = ((visible, trunk.width, width, True), (masked, trunk.width, width, False))
    return Work(
        passes=(
            full_attention(trunk, 1 + visible),
            full_attention(trunk, 1 + masked, has_gradient=False),
            regressor,
            decoder,
        ),
        predicted=masked,
        head_width=width,
        projections=projections if width != trunk.width else (),
    )


_MASK_COUNT = Hyperparameter(
    name="mask_count", type=int, low=1, required=True, source="patches masked per image; the protocol sets it"
)
_CUTTING_POINT = Hyperparameter(
    name="cutting_point",
    type=int,
    low=1,
    required=True,
    source="slots of context, the class token counted (the reference's rule); the protocol sets it",
)
_MIN_BLOCK = Hyperparameter(
    name="min_block", type=int, low=1, default=16, source="BEiT, section 2.3: at least 16 patches a block"
)

SPECS: tuple[MethodSpec, ...] = (
    MethodSpec(
        name="mim",
        title="MIM",
        target="methods.mim:MaskedImageModelling",
        paper="BEiT (arXiv 2106.08254) with random masks, the paper's baseline",
        files=("mim.py",),
        hyperparameters=(_MASK_COUNT,),
        work=masked_work,
    ),
    MethodSpec(
        name="pim",
        title="PIM",
        target="methods.pim:PermutedImageModelling",
        paper="two-stream attention of XLNet (arXiv 1906.08237) on patches",
        files=("pim.py", "two_stream.py", "banded_attention.py"),
        hyperparameters=(_CUTTING_POINT,),
        work=_pim_work,
    ),
    MethodSpec(
        name="mapet",
        title="MaPeT",
        target="methods.mapet:MaskedAndPermutedTransformer",
        paper="masked and permuted image modelling (arXiv 2306.07346)",
        files=("mapet.py", "two_stream.py", "banded_attention.py"),
        hyperparameters=(_CUTTING_POINT,),
        work=_mapet_work,
    ),
    MethodSpec(
        name="beit",
        title="BEiT",
        target="methods.beit:BlockMaskedImageModelling",
        paper="arXiv 2106.08254",
        files=("beit.py", "mim.py"),
        hyperparameters=(_MASK_COUNT, _MIN_BLOCK),
        work=masked_work,
    ),
    MethodSpec(
        name="cae",
        title="CAE",
        target="methods.cae:ContextAutoencoder",
        paper="arXiv 2202.03026",
        files=("cae.py", "cae_blocks.py"),
        hyperparameters=(
            _MASK_COUNT,
            _MIN_BLOCK,
            Hyperparameter(
                name="regressor_depth", type=int, low=1, default=4, source="reference implementation"
            ),
            Hyperparameter(
                name="decoder_depth", type=int, low=1, default=4, source="reference implementation"
            ),
            Hyperparameter(
                name="decoder_width",
                type=int,
                low=4,
                follows=lambda trunk: trunk.width,
                source="the trunk's width unless set",
            ),
            Hyperparameter(
                name="decoder_heads",
                type=int,
                low=1,
                follows=lambda trunk: trunk.heads,
                source="the trunk's heads unless set",
            ),
            Hyperparameter(
                name="alignment_weight", type=float, low=0, default=2.0, source="reference implementation"
            ),
        ),
        work=_cae_work,
    ),
    MethodSpec(
        name="scratch",
        title="scratch",
        target="methods.scratch:Scratch",
        paper="ViT from random initialisation, Table 2 of arXiv 2306.07346",
        files=("scratch.py",),
    ),
)
