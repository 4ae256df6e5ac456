"""What a plug-in may not touch: found in its text, with file and line, before any of it runs. No torch.

The text shows what is meant to be seen; what it hides is found when the plug-in was imported
(protocols/untouched.py) and when its method is built (methods/equal_trunk.py).
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType

from benchmark.plugin_sources import harness_modules
from methods import build_method
from protocols.errors import HarnessError, ProtocolViolation
from protocols.files import shown_path
from protocols.recipes import PreTraining
from protocols.schema import Data, Trunk, TrunkSpec
from protocols.untouched import ROOMS, Untouched

_GUARDED = (*ROOMS, "torch", "timm", "torchvision")
# They set what all of a process shares: its random numbers and its arithmetic.
_OF_THE_PROCESS = frozenset(
    {
        "numpy.random.seed",
        "random.seed",
        "torch.cuda.manual_seed",
        "torch.cuda.manual_seed_all",
        "torch.manual_seed",
        "torch.random.manual_seed",
        "torch.seed",
        "torch.set_default_device",
        "torch.set_default_dtype",
        "torch.set_float32_matmul_precision",
        "torch.set_num_threads",
        "torch.set_rng_state",
        "torch.use_deterministic_algorithms",
    }
)
# What a module of torch does to itself, beside being called.
_CHANGING = frozenset(
    {"add_module", "apply", "eval", "init_weights", "load_state_dict", "requires_grad_", "reset_classifier",
     "set_input_size", "set_submodule", "train"}
)  # fmt: skip


class Touched(ProtocolViolation):
    """What was imported changed the harness: nothing that runs in this process can be trusted any more."""


def import_guarded(
    files: Sequence[Path], run: Callable[[], ModuleType], *, has_methods: bool | None = None
) -> ModuleType:
    """What `run` imports, which is made of `files`, the first of them foremost; it must change no harness.

    `has_methods` None looks whether one of them has METHODS. Raises ProtocolViolation for what the text
    changes, and Touched for what was changed.
    """
    trees = {file: parsed(file) for file in files}
    if has_methods is None:
        has_methods = any(line_of(tree, "METHODS", absent=0) for tree in trees.values())
    for file, tree in trees.items():
        check_source(file, tree, has_methods=has_methods)
    # What they build on is loaded before, so that a change of it is seen.
    for name in sorted({name for tree in trees.values() for name in harness_modules(tree)}):
        importlib.import_module(name)
    before = Untouched()
    with redirect_stdout(sys.stderr):  # standard output is the command's: it may be JSON
        module = run()
    changed = before.changes()
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise Touched(
            f"{shown_path(files[0])}: importing this plug-in changed {', '.join(changed[:5])}{more}; what "
            "the harness and its libraries do belongs to the protocol: keep to classes and functions of your "
            "own"
        )
    return module


def parsed(file: Path) -> ast.Module:
    """The file's text as a tree. HarnessError, with the line, if it is no Python."""
    try:
        return ast.parse(file.read_bytes(), filename=str(file))
    except SyntaxError as error:
        raise HarnessError(f"{shown_path(file)}:{error.lineno or 1}: not valid Python: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise HarnessError(f"{shown_path(file)}: not valid Python: {error}") from None


def protocol_fields() -> dict[str, str]:
    """Names that no hyperparameter of a method may have -> where the protocol fixes the value."""
    fixed = {name: f"data.{name}" for name in Data.model_fields}
    fixed |= {name: f"trunks.NAME.{name}" for name in (*TrunkSpec.model_fields, *Trunk.model_fields)}
    fixed |= {name: f"pretraining.{name}" for name in PreTraining.model_fields}
    fixed["image_size"] = "data.image_size"
    given = inspect.signature(build_method).parameters
    return dict.fromkeys(given, "every method is built with it") | fixed


def check_source(file: Path, tree: ast.Module, *, has_methods: bool) -> None:
    """ProtocolViolation, at its line, for the first thing of harness, torch or timm that the text changes.

    With `has_methods` a class' own trunk counts among them.
    """
    found = sorted(_faults(tree, has_methods=has_methods))
    if found:
        line, what = found[0]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ProtocolViolation(f"{shown_path(file)}:{line}: {what}{more}")


def line_of_hyperparameter(tree: ast.Module, name: str) -> int:
    """The line in which `Hyperparameter(name=...)` stands, 1 if it is made otherwise."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.keyword) or node.arg != "name":
            continue
        if isinstance(node.value, ast.Constant) and node.value.value == name:
            return node.value.lineno
    return 1


def line_of(tree: ast.Module, name: str, *, absent: int = 1) -> int:
    """The line of the module's constant, class or function `name`; `absent` if it is not there."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(one, ast.Name) and one.id == name for one in targets):
            return node.lineno
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node.lineno
    return absent


def _faults(tree: ast.Module, *, has_methods: bool) -> Iterator[tuple[int, str]]:
    names = _imported(tree)
    for node in ast.walk(tree):
        target = _target(node)
        dotted = None if target is None else _dotted(target, names)
        if target is not None and dotted is not None:
            shown = ast.unparse(target)
            if dotted.partition(".")[0] in _GUARDED:
                yield (
                    target.lineno,
                    f"{shown} is changed, which is {dotted}: the harness and its libraries are the same for "
                    "all methods; derive a class or write a function of your own",
                )
            elif has_methods and _is_trunk(dotted):
                yield (
                    target.lineno,
                    f"{shown} is changed: the trunk belongs to the protocol; keep your own parts beside it",
                )
        if isinstance(node, ast.Call) and (dotted := _dotted(node.func, names)):
            if dotted in _OF_THE_PROCESS:
                yield (
                    node.lineno,
                    (
                        f"{ast.unparse(node.func)}() sets what the whole process shares: randomness and "
                        "arithmetic are the run's; draw from methods.patterns, or from a torch.Generator of "
                        "your own"
                    ),
                )
            owner, _, last = dotted.rpartition(".")
            if has_methods and _is_trunk(owner) and (last in _CHANGING or last.startswith("register_")):
                yield (
                    node.lineno,
                    f"{ast.unparse(node.func)}() changes the trunk, which belongs to the protocol",
                )


def _target(node: ast.AST) -> ast.Attribute | ast.Subscript | None:
    """What `node` changes: something that is stored or deleted, or that setattr or delattr is given."""
    if isinstance(node, ast.Attribute | ast.Subscript):
        return None if isinstance(node.ctx, ast.Load) else node
    if isinstance(node, ast.Call) and node.args:
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        if name in ("setattr", "delattr", "__setattr__", "__delattr__"):
            return ast.copy_location(_attribute(node.args), node)
    return None


def _attribute(arguments: list[ast.expr]) -> ast.Attribute:
    name = arguments[1].value if len(arguments) > 1 and isinstance(arguments[1], ast.Constant) else "..."
    return ast.Attribute(value=arguments[0], attr=str(name), ctx=ast.Store())


def _imported(tree: ast.Module) -> dict[str, str]:
    """Names as the text uses them -> what they were imported as."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _dotted(node: ast.expr, names: dict[str, str]) -> str | None:
    """The dotted name of an expression of names, attributes and subscripts, the first one as imported."""
    parts: list[str] = []
    while True:
        if isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        elif isinstance(node, ast.Subscript):
            node = node.value
            parts.append("[]")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "vars":
            node = node.args[0] if node.args else node.func
        elif isinstance(node, ast.Name):
            return ".".join([names.get(node.id, node.id), *reversed(parts)])
        else:
            return None


def _is_trunk(dotted: str) -> bool:
    """True for self.trunk, and for whatever is in it."""
    return f"{dotted}.".startswith("self.trunk.")
