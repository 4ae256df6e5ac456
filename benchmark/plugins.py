"""Plug-ins: methods, tokenizers, data sets and protocols from files outside the repository.

A file is a Python module that states what it brings, in one or more of

    METHODS = (MethodSpec(...),)            # methods.specs; target="ClassName" in the same file
    TOKENIZERS = (TokenizerSpec(...),)      # tokenizers.specs; likewise
    DATA_SETS = (DataSetSpec(...),)         # benchmark.data_sets

A folder is a package of such files: every *.py in it whose name does not begin with _, and every protocol
*.yaml; its files import one another by `from . import`. Installed packages: benchmark/plugin_packages.py.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmark.plugin_guard import import_guarded, line_of, parsed
from benchmark.plugin_import import import_file, make_package
from benchmark.plugin_packages import load_packages
from benchmark.plugin_registry import forget, register
from benchmark.plugin_specs import CONSTANTS, Brought, brought_by
from protocols.errors import HarnessError
from protocols.files import shown_path
from protocols.load import BUILT_IN

INIT = "__init__.py"


@dataclass(kw_only=True)
class _Loaded:
    """One plug-in: its files with their digest, its modules, and the names that it brought."""

    digest: str
    modules: list[str] = field(default_factory=list)
    names: list[tuple[str, str]] = field(default_factory=list)


_LOADED: dict[Path, _Loaded] = {}


def load_plugins(paths: Sequence[str | Path], *, packages: bool = True) -> None:
    """Make known what is in these files and folders, and in installed packages.

    What is loaded already stays as it is; a file that was edited since is loaded anew. Raises HarnessError,
    with file and line, for a plug-in that is not one, and ProtocolViolation for one that touches what the
    protocol fixes.
    """
    if packages:
        load_packages()
    for given in paths:
        _load(_whole(Path(given)), str(given))


@contextmanager
def plugins_loaded(paths: Sequence[str | Path]) -> Iterator[None]:
    """As `load_plugins`, for as long as this lasts."""
    before = set(_LOADED)
    try:
        load_plugins(paths)
        yield
    finally:
        for path in [one for one in _LOADED if one not in before]:
            _unload(path)


def loaded_plugins() -> tuple[str, ...]:
    """Whole paths of the files and folders that are loaded: what other processes of a run are told."""
    return tuple(map(str, _LOADED))


def words_of_plugins() -> list[str]:
    """`--plugin` with all that is loaded, for a command that is shown and would not run without it."""
    return ["--plugin", *map(shown_path, _LOADED)] if _LOADED else []


def plugin_of(origin: str) -> str:
    """What a record says of an adapter's origin: the plug-in's file, or the package; "" if it is built in."""
    return "" if origin == BUILT_IN else origin.partition(" ")[2]


def unload_plugins() -> None:
    """Forget every file and folder that was loaded."""
    for path in list(_LOADED):
        _unload(path)


def _load(path: Path, given: str) -> None:
    files = _files_of(path, given)
    contents = {file: file.read_bytes() for file in files}
    digest = hashlib.sha256()
    for file, content in contents.items():
        digest.update(f"{file}\0{len(content)}\0".encode())
        digest.update(content)
    known = _LOADED.get(path)
    if known is not None and known.digest == digest.hexdigest():
        return
    if known is not None:
        _unload(path)
    is_folder = path.is_dir()
    label = f"plug-in {path.name}" if not is_folder else f"plug-in {path.name}/"
    loaded = _Loaded(digest=digest.hexdigest())
    name = f"plugin_{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}_{loaded.digest[:8]}"
    _LOADED[path] = loaded
    try:
        if is_folder:
            loaded.modules.append(name)
            make_package(name, path)
        brought = Brought()
        modules = [file for file in files if file.suffix == ".py"]
        public = [file for file in modules if not is_folder or _is_public(file, path)]
        has_methods = any(line_of(parsed(file), "METHODS", absent=0) for file in modules)
        for file in public:
            module = name if not is_folder or file.name == INIT else f"{name}.{file.stem}"
            folder = path if is_folder else None
            loaded.modules.append(module)
            found = import_guarded(
                [file, *(one for one in modules if one != file)],
                partial(import_file, file, module, folder=folder),
                has_methods=has_methods,
            )
            if not is_folder and not any(hasattr(found, one) for one in CONSTANTS):
                raise HarnessError(
                    f"{shown_path(file)}: this file has none of {', '.join(CONSTANTS)}; a plug-in says in "
                    "one of them what it brings"
                )
            origin = label + (file.name if is_folder else "")
            brought += brought_by(found, file, parsed(file), origin=origin, folder=folder, package=name)
        protocols = [file for file in files if file.suffix == ".yaml"]
        if is_folder and not brought.specs and not protocols:
            raise HarnessError(f"{given}: no file of this folder has one of {', '.join(CONSTANTS)}")
        register(brought, protocols, origin=label, names=loaded.names)
    except BaseException:
        _unload(path)
        raise


def _unload(path: Path) -> None:
    loaded = _LOADED.pop(path)
    for kind, name in loaded.names:
        forget(kind, name)
    packages = set(loaded.modules)
    for module in [one for one in sys.modules if one in packages or one.rpartition(".")[0] in packages]:
        del sys.modules[module]


def _whole(path: Path) -> Path:
    """The one whole path of a file however it is spelt; its own name stays, even of a link."""
    return path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name


def _is_public(file: Path, folder: Path) -> bool:
    """True for a file of the folder itself that is loaded, and does not only serve others."""
    return file.parent == folder and (file.name == INIT or not file.name.startswith("_"))


def _files_of(path: Path, given: str) -> list[Path]:
    """The files that a plug-in is made of. HarnessError if there are none."""
    if path.is_dir():
        found = [*path.rglob("*.py"), *path.glob("*.yaml")]
        # What is hidden is no part of it: an environment (.venv), a cache.
        found = [one for one in found if not any(part[0] == "." for part in one.relative_to(path).parts)]
        files = sorted(found, key=lambda one: (one.name != INIT, one))
        if not any(one.suffix == ".yaml" or _is_public(one, path) for one in files):
            raise HarnessError(
                f"--plugin {given}: no *.py and no protocol *.yaml in this folder (names that begin with _ "
                "do not count)"
            )
        return files
    if not path.is_file():
        raise HarnessError(
            f"--plugin {given}: no such file or folder; the words after --plugin, up to the next option, are "
            "plug-ins: give other words before it"
        )
    if path.suffix in (".yaml", ".yml"):
        raise HarnessError(
            f"--plugin {given}: a protocol of its own needs no plug-in; give --protocol {given}"
        )
    if path.suffix != ".py":
        raise HarnessError(f"--plugin {given}: a plug-in is a .py file, or a folder of them")
    return [path]
