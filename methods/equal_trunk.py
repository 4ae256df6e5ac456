"""A plug-in's method must stand on the trunk that all methods stand on, to the last weight.

Held against the trunk that the harness builds itself, from the same random state, when the method is built.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from methods.base import Method
from methods.specs import MethodSpec
from methods.trunk import build_trunk
from protocols.errors import HarnessError, ProtocolViolation
from protocols.files import shown_path
from protocols.schema import TrunkSpec
from protocols.untouched import Untouched

_UNDECAYED = {"trunk.pos_embed", "trunk.cls_token"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def build_checked(
    spec: MethodSpec, method_class: type[Method], *, trunk: TrunkSpec, codebook_size: int, **values: Any
) -> Method:
    """The method, built from torch's present random state.

    ProtocolViolation if its trunk is not the shared one; HarnessError, with the line, for what it raises.
    """
    where = place_of(method_class)
    state, harness = torch.get_rng_state(), Untouched()
    try:
        method = method_class(trunk=trunk, codebook_size=codebook_size, **values)
    except HarnessError:
        raise
    except Exception as error:
        raise HarnessError(
            f"{_line_of(error, where)}: method {spec.name} cannot be built: {type(error).__name__}: {error}; "
            f"it is given trunk, codebook_size{''.join(f', {name}' for name in values)}"
        ) from error
    if changed := harness.changes():
        raise ProtocolViolation(
            f"{where}: method {spec.name} changes {', '.join(changed[:5])} while it is built; what the "
            "harness and the trunk's libraries do belongs to the protocol: keep to objects of your own"
        )
    found = next(faults(method, trunk=trunk, codebook_size=codebook_size, state=state), None)
    if found is not None:
        raise ProtocolViolation(
            f"{where}: method {spec.name}: {found}; the trunk belongs to the protocol: call super().__init__("
            "trunk=trunk, codebook_size=codebook_size) first, and leave self.trunk as it is"
        )
    return method


def faults(method: Method, *, trunk: TrunkSpec, codebook_size: int, state: Tensor) -> Iterator[str]:
    """What is not as in every other method, a sentence each; `state` is the random state it began with."""
    if not isinstance(method, Method):
        yield f"{type(method).__name__} is no methods.base.Method"
        return
    if getattr(method, "codebook_size", None) != codebook_size:
        yield f"codebook_size is {getattr(method, 'codebook_size', None)}, the tokenizer's is {codebook_size}"
    if getattr(method, "trunk_spec", None) != trunk:
        yield "trunk_spec is not the trunk that it was given"
    given = getattr(method, "trunk", None)
    if type(given) is not VisionTransformer:
        yield f"self.trunk is {type(given).__name__}, not timm's VisionTransformer itself"
        return
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(state)
        shared = build_trunk(trunk)
    yield from _differing_modules(given, shared)
    weights, expected = given.state_dict(), shared.state_dict()
    yield from differing_weights(weights, expected, what="trunk")
    trained = {name for name, weight in given.named_parameters() if weight.requires_grad}
    if frozen := sorted({name for name, _ in shared.named_parameters()} - trained):
        yield f"the trunk's {frozen[0]} is frozen, and is trained in every other method"
    yield from differing_weights(method.export_backbone(), weights, what="export_backbone()")
    if decayed := sorted(_UNDECAYED - set(method.no_weight_decay())):
        yield f"no_weight_decay() leaves out {decayed[0]}, which no method decays"
    own = {name for name, _ in given.named_parameters()} | {name for name, _ in given.named_buffers()}
    spared = {name.removeprefix("trunk.") for name in method.no_weight_decay() if name.startswith("trunk.")}
    if more := sorted((spared & own) - {name.removeprefix("trunk.") for name in _UNDECAYED}):
        yield f"no_weight_decay() spares the trunk's {more[0]}, which every other method decays"


def differing_weights(given: dict[str, Tensor], expected: dict[str, Tensor], *, what: str) -> Iterator[str]:
    """The first of the tensors that are missing, too many, misshapen or of other values."""
    for name in sorted(given.keys() ^ expected.keys()):
        yield f"{what} {'lacks' if name in expected else 'has'} {name}"
        return
    for name, value in expected.items():
        if given[name].shape != value.shape:
            yield f"{name} of {what} has shape {tuple(given[name].shape)}, not {tuple(value.shape)}"
            return
        if given[name].dtype != value.dtype or not (value.is_meta or torch.equal(given[name], value)):
            yield f"{name} of {what} has other values than under the same seed in every other method"
            return


def _differing_modules(given: nn.Module, shared: nn.Module) -> Iterator[str]:
    """Sizes, kinds and rates of the trunk's parts; what was put in their place or hooked on to them."""
    parts, expected = dict(given.named_modules()), dict(shared.named_modules())
    for name in sorted(parts.keys() ^ expected.keys()):
        yield f"the trunk {'lacks' if name in expected else 'has'} a part {name}"
        return
    for name, part in parts.items():
        other, where = expected[name], f"trunk.{name}".rstrip(".")
        if type(part) is not type(other) or part.extra_repr() != other.extra_repr():
            yield f"{where} is {_described(part)}, not {_described(other)}"
            return
        if any(getattr(part, one) for one in _HOOKS) or {"forward", "__call__"} & vars(part).keys():
            yield f"{where} has a hook, or a forward of its own"
            return
        for attribute, value in vars(other).items():
            # Rates, counts and switches that a part keeps and does not show.
            if isinstance(value, bool | int | float | str) and vars(part).get(attribute) != value:
                yield f"{where}.{attribute} is {vars(part).get(attribute)}, not {value}"
                return


def _described(part: nn.Module) -> str:
    return f"{type(part).__name__}({part.extra_repr()})"


def place_of(thing: object) -> str:
    """FILE:LINE where a class or a function begins."""
    try:
        file, (_, line) = inspect.getsourcefile(thing), inspect.getsourcelines(thing)  # type: ignore[arg-type]
        return f"{shown_path(file or '')}:{line}"
    except (OSError, TypeError):
        return getattr(sys.modules.get(getattr(thing, "__module__", "")), "__file__", None) or repr(thing)


def _line_of(error: Exception, where: str) -> str:
    """The innermost line of the file of `where` that raised `error`; `where` if none of it did."""
    file, found, trace = where.rpartition(":")[0], where, error.__traceback__
    while trace is not None:
        if file and shown_path(trace.tb_frame.f_code.co_filename) == file:
            found = f"{shown_path(file)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found
