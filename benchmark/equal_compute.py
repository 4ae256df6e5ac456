"""Equal compute: the epochs in which a method spends the training FLOPs that another one spends. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmark.cost import training_flops
from methods import method_spec
from methods.specs import MethodSpec
from protocols.errors import HarnessError
from protocols.recipes import PreTraining
from protocols.schema import Protocol, TrunkSpec
from protocols.views import ViewCells
from tokenizers import list_tokenizers, tokenizer_spec


def resolve_method(
    protocol: Protocol, method: str, trunk: str, trial: Mapping[str, Any], recipe: PreTraining
) -> tuple[TrunkSpec, dict[str, Any]]:
    """The trunk as it is pre-trained, and every hyperparameter of the method, those of `trial` tried.

    Raises HarnessError for hyperparameters that the method's specification does not allow.
    """
    spec = protocol.trunk_spec(trunk, drop_path=recipe.drop_path)
    is_listed = method in protocol.names("methods")
    values = {**(protocol.method_values(method, trunk) if is_listed else {}), **trial}
    known = method_spec(method)
    try:
        resolved = dict(known.resolve(values, trunk=spec))
        _check_group(known, resolved, recipe.global_batch)
        return spec, resolved
    except HarnessError as error:
        where = f"protocol {protocol.name}, methods.{method}"
        raise HarnessError(f"{where}{'' if is_listed else ', of which it sets nothing'}: {error}") from None


def _check_group(spec: MethodSpec, resolved: Mapping[str, Any], global_batch: int) -> None:
    """HarnessError for groups of images, none of which a split may part, that do not fill the batch."""
    group = spec.images_in_a_group(resolved)
    if group < 1 or global_batch % group:
        raise HarnessError(
            f"method {spec.name}: {spec.group} must divide the global batch of {global_batch} images "
            f"(pretraining.global_batch), got {group}"
        )


def resolve_tokenizer(protocol: Protocol, name: str) -> dict[str, Any]:
    """Every hyperparameter of the tokenizer: those that the protocol sets, and its own defaults.

    Of one that no adapter is known for, what the protocol says. HarnessError for what it does not allow.
    """
    given: Mapping[str, Any] = protocol.tokenizers.get(name, {})
    if name not in list_tokenizers():
        return dict(given)
    spec = tokenizer_spec(name)
    if name not in protocol.tokenizers:
        # Tokens lie on the patches of every trunk alike: any of them tells how many there are.
        return dict(spec.resolve({}, trunk=protocol.trunk_spec(protocol.defaults.trunks[0], drop_path=0.0)))
    # What follows from the trunk would not stand in the protocol, and so in no digest of it.
    following = [one.name for one in spec.hyperparameters if one.follows is not None]
    if unset := [one for one in following if one not in given]:
        raise HarnessError(
            f"protocol {protocol.name}, tokenizers.{name}: {', '.join(unset)} must be set: a protocol that "
            "names a tokenizer gives every value that would else follow from its trunk"
        )
    return dict(spec.resolve(given))


def codebook_size(protocol: Protocol, tokenizer: str | None) -> int:
    """V: what the protocol says, else the tokenizer's own default; 0 without a tokenizer.

    HarnessError if neither says it.
    """
    if tokenizer is None:
        return 0
    size = resolve_tokenizer(protocol, tokenizer).get("codebook_size")
    if type(size) is not int:
        raise HarnessError(
            f"protocol {protocol.name}, tokenizers.{tokenizer}: codebook_size must be a whole number; what "
            "a cell costs follows from it"
        )
    return size


def pretraining_flops(
    protocol: Protocol,
    method: str,
    tokenizer: str | None,
    spec: TrunkSpec,
    hyperparameters: Mapping[str, Any],
    recipe: PreTraining,
) -> float:
    """Training FLOPs of a whole pre-training under `recipe`: whole batches alone, a multiply-add as two."""
    codebook = codebook_size(protocol, tokenizer)
    images = protocol.data.pretraining.count // recipe.global_batch * recipe.global_batch
    of_image = training_flops(method, spec, hyperparameters, codebook_size=codebook)
    return of_image * images * recipe.epochs


def equal_epochs(
    protocol: Protocol, *, method: str, reference: str, tokenizer: str | None, trunk: str
) -> int:
    """The whole number of epochs, one at least, whose FLOPs come nearest to those of `reference`.

    Both under the protocol's own recipe and hyperparameters, `reference` for the protocol's epochs.
    """
    recipe = protocol.pretraining

    def flops(name: str) -> float:
        spec, values = resolve_method(protocol, name, trunk, {}, recipe)
        return pretraining_flops(protocol, name, tokenizer, spec, values, recipe)

    return max(1, round(recipe.epochs * flops(reference) / flops(method)))


def check_equal_compute(
    protocol: Protocol, cells: ViewCells, *, view: str | None, method: str, tokenizer: str | None, trunk: str
) -> None:
    """HarnessError if the epochs that `cells` tries are not those of equal compute."""
    assert cells.equal_compute_to is not None
    if tokenizer is None and method_spec(cells.equal_compute_to).uses_tokens:
        raise HarnessError(
            f"view {view} of protocol {protocol.name}: {method} has no tokenizer, and what "
            f"{cells.equal_compute_to} spends depends on one; give {method} cells of its own, with "
            "pretraining: {epochs: [N]} and without equal_compute_to"
        )
    (tried,) = cells.pretraining["epochs"]
    epochs = equal_epochs(
        protocol, method=method, reference=cells.equal_compute_to, tokenizer=tokenizer, trunk=trunk
    )
    if tried != epochs:
        raise HarnessError(
            f"view {view} of protocol {protocol.name}: {method} on {tokenizer} and {trunk} spends what "
            f"{cells.equal_compute_to} spends in {epochs} epochs, not in {tried}; write epochs: [{epochs}]"
        )
