"""From a protocol and a selection to ordered cells. Pure: no files, no torch.

A cell is one stage of one row. Its id is a hash of exactly what moves its numbers: the digests of the
slices it uses, its method's hyperparameters, its seed and its parents' ids.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from benchmark.cost import forward_flops, training_flops
from methods import list_methods, method_spec
from protocols.errors import HarnessError, unknown
from protocols.schema import FineTuning, Protocol, TrunkSpec, digest_of
from tokenizers import tokenizer_spec

Stage = Literal["tokenise", "pretrain", "finetune", "linear-probe"]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which rows to run; every name in its canonical spelling, known to the protocol."""

    methods: tuple[str, ...]
    tokenizers: tuple[str, ...]
    trunks: tuple[str, ...]
    evaluations: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One stage of one row. `slices` maps slice names to digests, `resolved` to their values."""

    stage: Stage
    method: str | None = None
    tokenizer: str | None = None
    trunk: str | None = None
    evaluation: str | None = None
    seed: int | None = None
    slices: tuple[tuple[str, str], ...]
    hyperparameters: tuple[tuple[str, Any], ...] = ()
    parents: tuple[str, ...] = ()
    train_flops: float = 0.0

    @property
    def id(self) -> str:
        """Readable parts, then 12 hex digits of the SHA-256 over all that moves this cell's numbers."""
        identity = {
            "stage": self.stage,
            "method": self.method,
            "seed": self.seed,
            "slices": dict(self.slices),
            "hyperparameters": dict(self.hyperparameters),
            "parents": list(self.parents),
        }
        seed = None if self.seed is None else f"s{self.seed}"
        name = self.evaluation or self.stage
        parts = [part for part in (name, self.method, self.tokenizer, self.trunk, seed) if part]
        return "-".join([*parts, digest_of(identity)[:12]])

    @property
    def row(self) -> str:
        """What a person calls it: method/tokenizer/trunk, and the seed."""
        parts = [part for part in (self.method, self.tokenizer, self.trunk) if part]
        return "/".join(parts) + (f" seed {self.seed}" if self.seed is not None else "")


def select(
    protocol: Protocol,
    *,
    methods: Iterable[str] = ("all",),
    tokenizers: Iterable[str] = ("all",),
    trunks: Iterable[str] = ("all",),
    evaluations: Iterable[str] = ("all",),
    seeds: Iterable[int] | None = None,
) -> Selection:
    """Names as a user gives them (any case, `all` for the protocol's defaults) -> Selection.

    Raises HarnessError, naming the nearest known one, for a name that the protocol does not define.
    """

    def chosen(kind: str, names: Iterable[str]) -> tuple[str, ...]:
        defaults: tuple[str, ...] = getattr(protocol.defaults, kind)
        given = [each for name in names for each in (defaults if name.lower() == "all" else (name.lower(),))]
        known = getattr(protocol, kind)
        for name in given:
            if name not in known:
                if kind == "methods" and name in list_methods():
                    raise HarnessError(f"protocol {protocol.name} does not set {name}'s hyperparameters")
                raise unknown(f"{kind[:-1]} of protocol {protocol.name}", name, known)
        return tuple(dict.fromkeys(given))

    picked = tuple(dict.fromkeys(protocol.defaults.seeds if seeds is None else seeds))
    if any(seed < 0 for seed in picked):
        raise HarnessError(f"seeds are 0 or more, got {min(picked)}")
    return Selection(
        methods=chosen("methods", methods),
        tokenizers=chosen("tokenizers", tokenizers),
        trunks=chosen("trunks", trunks),
        evaluations=chosen("evaluations", evaluations),
        seeds=picked,
    )


def make_plan(protocol: Protocol, selection: Selection) -> list[Cell]:
    """All cells of the selection, parents before children, each once.

    Raises HarnessError for hyperparameters that the method's specification does not allow.
    """
    planner = _Planner(protocol)
    for seed in selection.seeds:
        for trunk in selection.trunks:
            for method in selection.methods:
                for tokenizer in _tokenizers_of(method, selection):
                    planner.row(method, tokenizer, trunk, seed, selection.evaluations)
    return list(planner.cells.values())


def _tokenizers_of(method: str, selection: Selection) -> tuple[str | None, ...]:
    return selection.tokenizers if method_spec(method).pretrains else (None,)


class _Planner:
    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self.digests = protocol.slices
        self.cells: dict[str, Cell] = {}

    def row(
        self, method: str, tokenizer: str | None, trunk: str, seed: int, evaluations: tuple[str, ...]
    ) -> None:
        parents: tuple[str, ...] = ()
        if tokenizer is not None:
            parents = (self.pretrain(method, tokenizer, trunk, seed),)
        for evaluation in evaluations:
            self.evaluation(evaluation, method, tokenizer, trunk, seed, parents)

    def tokenise(self, tokenizer: str) -> str:
        config = tokenizer_spec(tokenizer).resolve(self.protocol.tokenizers[tokenizer])
        return self._add(
            Cell(
                stage="tokenise",
                tokenizer=tokenizer,
                slices=self._slices("data", f"tokenizer:{tokenizer}"),
                hyperparameters=tuple(sorted(config.items())),
            )
        )

    def pretrain(self, method: str, tokenizer: str, trunk: str, seed: int) -> str:
        recipe = self.protocol.pretraining
        spec = self.protocol.trunk_spec(trunk, drop_path=recipe.drop_path)
        resolved = method_spec(method).resolve(self.protocol.methods[method], trunk=spec)
        codebook = int(self.protocol.tokenizers[tokenizer]["codebook_size"])
        images = self.protocol.data.pretraining.count // recipe.global_batch * recipe.global_batch
        return self._add(
            Cell(
                stage="pretrain",
                method=method,
                tokenizer=tokenizer,
                trunk=trunk,
                seed=seed,
                slices=self._slices("data", f"trunk:{trunk}", "pretraining"),
                hyperparameters=tuple(sorted(resolved.items())),
                parents=(self.tokenise(tokenizer),),
                train_flops=training_flops(method, spec, resolved, codebook_size=codebook)
                * images
                * recipe.epochs,
            )
        )

    def evaluation(
        self, name: str, method: str, tokenizer: str | None, trunk: str, seed: int, parents: tuple[str, ...]
    ) -> None:
        recipe = self.protocol.evaluations[name]
        spec = self.protocol.trunk_spec(trunk, drop_path=0.0)
        flops = forward_flops(spec)
        if isinstance(recipe, FineTuning):
            images = recipe.labelled_images // recipe.global_batch * recipe.global_batch * recipe.epochs
            flops = 3 * flops * images
        else:
            flops = flops * recipe.labelled_images
        self._add(
            Cell(
                stage=recipe.kind,
                method=method,
                tokenizer=tokenizer,
                trunk=trunk,
                evaluation=name,
                seed=seed,
                slices=self._slices("data", f"trunk:{trunk}", f"evaluation:{name}"),
                parents=parents,
                train_flops=flops,
            )
        )

    def _slices(self, *names: str) -> tuple[tuple[str, str], ...]:
        return tuple((name, self.digests[name]) for name in sorted(names))

    def _add(self, cell: Cell) -> str:
        self.cells.setdefault(cell.id, cell)
        return cell.id


def check_geometry(trunk: TrunkSpec, *, tokens: int, tokenizer: str) -> None:
    """HarnessError unless the tokenizer gives exactly one token for each patch of the trunk."""
    if tokens != trunk.patches:
        raise HarnessError(
            f"tokenizer {tokenizer} gives {tokens} tokens an image, the trunk has {trunk.patches} patches; "
            "choose image and patch sizes that agree"
        )
