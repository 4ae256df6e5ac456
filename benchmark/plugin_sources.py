"""Which files a plug-in is made of: its own, and those of built-in adapters that it builds on. No torch.

Found in the text, as far as imports lead, so that a source digest notices a change of any of them. Modules
that a plug-in imports by a name that it computes, and files that it reads, are not seen: it names them in its
specification's `sources`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from protocols.untouched import is_watched

ROOT = Path(__file__).parent.parent
# What they say of an adapter reaches a cell by its hyperparameters, or moves no number.
_NO_CODE = {
    "methods": ("__init__.py", "specs.py", "reference.py", "equal_trunk.py"),
    "tokenizers": ("__init__.py", "specs.py", "card.py", "store.py", "store_files.py", "shards.py"),
}
_GEOMETRY = "protocols/geometry.py"


def imported_names(tree: ast.AST, *, package: str = "") -> set[str]:
    """Dotted names that the code imports anywhere: modules, and what may be modules or things in them.

    `package` is what relative imports are relative to. What is imported for a type checker alone is left out.
    """
    found: set[str] = set()
    for node in _walked(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = parents[: len(parents) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def built_in_files(tree: ast.AST) -> tuple[str, ...]:
    """Files of built-in adapters, relative to the repository, that the code builds on, however far."""
    return tuple(sorted(_reached(frozenset(imported_names(tree)))))


def harness_modules(tree: ast.AST) -> list[str]:
    """Modules of the harness, and of the trunk's libraries, that the code imports by name."""
    return sorted(
        name
        for name in imported_names(tree)
        if (is_watched(name) or name == "timm.layers") and (_file_of(name) or not _is_of_a_room(name))
    )


def own_files(path: Path, folder: Path | None, package: str) -> tuple[Path, ...]:
    """`path`, and the files of its package in `folder` that it imports, however far, by name."""
    found, waiting = {path: None}, [path]
    while waiting and folder is not None:
        current = waiting.pop()
        inner = ".".join([package, *current.relative_to(folder).parent.parts])
        tree = ast.parse(current.read_bytes())
        for name in imported_names(tree, package=inner):
            for one in _files_in(name, folder, package):
                if one not in found:
                    found[one] = None
                    waiting.append(one)
    return tuple(sorted(found, key=lambda one: (one.name, str(one))))


def _files_in(name: str, folder: Path, package: str) -> Iterator[Path]:
    """The module `name` of the package in `folder`, and the packages around it."""
    if name.partition(".")[0] not in (package.partition(".")[0], folder.name):
        return
    parts = name.split(".")[1:]
    for length in range(len(parts) + 1):
        place = folder.joinpath(*parts[:length])
        for one in (place / "__init__.py", place.with_suffix(".py")):
            if one.is_file():
                yield one


@cache
def _reached(names: frozenset[str]) -> frozenset[str]:
    found: set[str] = set()
    waiting = [file for name in names if (file := _file_of(name))]
    while waiting:
        file = waiting.pop()
        room, _, inside = file.partition("/")
        if file in found or (file != _GEOMETRY and inside in _NO_CODE.get(room, (inside,))):
            continue
        found.add(file)
        if room in _NO_CODE:
            tree = ast.parse((ROOT / file).read_bytes())
            waiting += [one for name in imported_names(tree) if (one := _file_of(name))]
    return frozenset(found)


def _file_of(name: str) -> str | None:
    """The file of a module of the harness, relative to the repository; None for what is no such module."""
    if not _is_of_a_room(name):
        return None
    path = name.replace(".", "/")
    return next((one for one in (f"{path}.py", f"{path}/__init__.py") if (ROOT / one).is_file()), None)


def _is_of_a_room(name: str) -> bool:
    return name.partition(".")[0] in ("protocols", "methods", "tokenizers", "leaderboard", "benchmark")


def _walked(tree: ast.AST) -> Iterator[ast.AST]:
    """As ast.walk, without what stands under `if TYPE_CHECKING`."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)
