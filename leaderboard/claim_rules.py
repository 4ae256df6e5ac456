"""What would show each of the paper's claims: which differences of a table's rows, and how many of them.

The prose says "most" or "is better" and names no test. What each sentence is taken to mean is declared
here, and the page states it beside the verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from leaderboard.lineage import SCRATCH
from leaderboard.view_layout import CUTTING_POINT, own_value, shown_reconstruction_ratio
from protocols.schema import Protocol

# Percentage points: what "comparable" and "far better" are taken to mean.
EQUIVALENCE_MARGIN = 0.3
FAR = 10.0
NEARLY_ALL = 0.8
FINETUNE = "finetune"
Quantifier = Literal["every", "most", "nearly all", "equivalent"]


class PlaceKey(NamedTuple):
    """A place of a table; texts are empty for what it does not have."""

    method: str
    variant: str
    tokenizer: str
    trunk: str
    evaluation: str
    metric: str


class Difference(NamedTuple):
    """For the claim, `above` must lie above `below` by more than `by` percentage points.

    A claim with several groups must hold in each.
    """

    above: PlaceKey
    below: PlaceKey
    by: float = 0.0
    group: str = ""


Places = Collection[PlaceKey]
Finder = Callable[[Places, Protocol], list[Difference]]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """`words` say the rule; `tokenizers` and `trunks` are those that the claim itself names."""

    words: str
    quantifier: Quantifier
    differences: Finder
    tokenizers: tuple[str, ...] = ()
    trunks: tuple[str, ...] = ()


def of_methods(above: Sequence[str], below: Sequence[str], *, by_trunk: bool = False) -> Finder:
    """Each method of `above` less each of `below`, on the same tokens, trunk, evaluation and metric."""

    def find(places: Places, protocol: Protocol) -> list[Difference]:
        return [
            Difference(place, other, group=place.trunk if by_trunk else "")
            for place in places
            if place.method in above and not place.variant
            for method in below
            # A trunk that was not pre-trained has no tokens.
            if (other := _of_method(place, method)) in places
        ]

    return find


def _of_method(place: PlaceKey, method: str) -> PlaceKey:
    return place._replace(method=method, tokenizer="" if method == SCRATCH else place.tokenizer)


def _only(find: Finder, *, tokenizer: str = "", trunks: Collection[str] = (), evaluation: str = "") -> Finder:
    """Those differences whose upper row has that tokenizer, trunk and evaluation; empty for any."""

    def find_some(places: Places, protocol: Protocol) -> list[Difference]:
        return [
            one
            for one in find(places, protocol)
            if tokenizer in ("", one.above.tokenizer)
            and (not trunks or one.above.trunk in trunks)
            and evaluation in ("", one.above.evaluation)
        ]

    return find_some


def _tokenizer_by_trunk(better: Mapping[str, tuple[str, str]]) -> Finder:
    """On each trunk the first tokenizer less the second, for every method and evaluation."""

    def find(places: Places, protocol: Protocol) -> list[Difference]:
        return [
            Difference(place, other, group=place.trunk)
            for place in places
            if place.trunk in better and place.tokenizer == better[place.trunk][0] and not place.variant
            if (other := place._replace(tokenizer=better[place.trunk][1])) in places
        ]

    return find


def _tokens(places: Places, protocol: Protocol) -> list[Difference]:
    """k-CLIP's tokens less VQ-KD's, and each of the two less DALL-E's by far."""
    wanted = (("k-clip", "vq-kd", 0.0), ("k-clip", "dall-e", FAR), ("vq-kd", "dall-e", FAR))
    return [
        Difference(place, other, by=by)
        for place in places
        for above, below, by in wanted
        if place.tokenizer == above and (other := place._replace(tokenizer=below)) in places
    ]


def _ratio(places: Places, protocol: Protocol) -> list[Difference]:
    """The row whose ratio is nearest 0.70 less those nearest 0.50 and 0.85; none if they are not near."""
    found: list[Difference] = []
    alike: dict[PlaceKey, dict[PlaceKey, float]] = {}
    for place in places:
        ratio = _reconstruction_ratio(place, protocol)
        if ratio is not None:
            alike.setdefault(place._replace(variant=""), {})[place] = ratio
    for ratios in alike.values():
        near = {wanted: _nearest(ratios, wanted) for wanted in (0.70, 0.50, 0.85)}
        best, *others = near.values()
        found += [Difference(best, other) for other in others if best and other and other != best]
    return found


def _nearest(ratios: Mapping[PlaceKey, float], wanted: float) -> PlaceKey | None:
    place = min(ratios, key=lambda place: abs(ratios[place] - wanted))
    return place if abs(ratios[place] - wanted) < 0.05 else None


def _reconstruction_ratio(place: PlaceKey, protocol: Protocol) -> float | None:
    name, _, text = place.variant.rpartition(" ")
    value = own_value(protocol, CUTTING_POINT, method=place.method, trunk=place.trunk)
    if name == CUTTING_POINT and text.isdecimal():
        value = int(text)
    if value is None or name not in ("", CUTTING_POINT):
        return None
    if place.trunk not in protocol.trunks:
        return None
    spec = protocol.trunk_spec(place.trunk, drop_path=0.0)
    return float(shown_reconstruction_ratio(value, patches=spec.patches))


_BETTER_TOKENS = {
    "vit-t": ("k-clip", "vq-kd"), "vit-s": ("vq-kd", "k-clip"), "vit-b": ("vq-kd", "k-clip"),
}  # fmt: skip

RULES: Mapping[str, Rule] = {
    "pim-over-mim": Rule(
        words="PIM is above MIM in more than half of the pairs that share tokens, trunk and evaluation",
        quantifier="most",
        differences=of_methods(["pim"], ["mim"]),
    ),
    "mapet-over-pim": Rule(
        words="MaPeT is above PIM in at least 80 % of the pairs that share tokens, trunk and evaluation",
        quantifier="nearly all",
        differences=of_methods(["mapet"], ["pim"]),
    ),
    "beit-over-mim": Rule(
        words="BEiT, whose objective is MIM's with block-wise masks, is above MIM in more than half of the "
        "pairs that share tokens, trunk and evaluation",
        quantifier="most",
        differences=of_methods(["beit"], ["mim"]),
    ),
    "beat-scratch": Rule(
        words="on each trunk more than half of the pre-trained rows are above the trunk from random "
        "initialisation, where that was measured too",
        quantifier="most",
        differences=of_methods(["cae", "beit", "mapet"], [SCRATCH], by_trunk=True),
    ),
    "over-cae": Rule(
        words="BEiT and MaPeT are above CAE in every pair that shares tokens, trunk and evaluation",
        quantifier="every",
        differences=of_methods(["beit", "mapet"], ["cae"]),
    ),
    "mapet-best-kclip": Rule(
        words="fine-tuned, MaPeT with k-CLIP is above every other row with k-CLIP, and above the trunk from "
        "random initialisation, on every trunk",
        quantifier="every",
        differences=_only(
            of_methods(["mapet"], [SCRATCH, "cae", "beit"]), tokenizer="k-clip", evaluation=FINETUNE
        ),
        tokenizers=("k-clip",),
    ),
    "mapet-equal-vqkd": Rule(
        words="fine-tuned, MaPeT and BEiT with VQ-KD differ by less than 0.3 points on ViT-S and on ViT-B "
        "(two one-sided tests); contradicted if one pair differs by more than that",
        quantifier="equivalent",
        differences=_only(
            of_methods(["mapet"], ["beit"]), tokenizer="vq-kd", trunks=("vit-s", "vit-b"), evaluation=FINETUNE
        ),
        tokenizers=("vq-kd",),
        trunks=("vit-s", "vit-b"),
    ),
    "kclip-small-models": Rule(
        words="on ViT-T k-CLIP, on ViT-S and on ViT-B VQ-KD is above the other in more than half of the "
        "pairs that share method and evaluation",
        quantifier="most",
        differences=_tokenizer_by_trunk(_BETTER_TOKENS),
        tokenizers=("k-clip", "vq-kd"),
        trunks=("vit-t", "vit-s", "vit-b"),
    ),
    "tokens-semantic": Rule(
        words="from tokens alone k-CLIP is above VQ-KD, and each of the two above DALL-E by more than 10 "
        "points, in every column",
        quantifier="every",
        differences=_tokens,
        tokenizers=("k-clip", "vq-kd", "dall-e"),
    ),
    "transfer": Rule(
        words="MaPeT is above BEiT and CAE on every other data set of the table",
        quantifier="every",
        differences=of_methods(["mapet"], ["beit", "cae"]),
    ),
    "ratio-70": Rule(
        words="the row whose reconstruction ratio is nearest 0.70 is above those nearest 0.50 and 0.85, each "
        "within 0.05",
        quantifier="every",
        differences=_ratio,
    ),
}
