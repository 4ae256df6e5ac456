"""How a plug-in's file becomes a module: under a name of its own, from the bytes that are there. No torch.

No bytecode is read or written: an edit within the same second counts, and a folder of others stays as it is.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType, TracebackType

from protocols.errors import HarnessError
from protocols.files import shown_path


class _SourceAlone(SourceFileLoader):
    """A loader that compiles the text every time."""

    def get_code(self, fullname: str) -> CodeType | None:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class _OfPlugins(MetaPathFinder):
    """Finds the files of those packages that are plug-ins."""

    def __init__(self) -> None:
        self.packages: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As the import system asks for it."""
        if path is None or fullname.partition(".")[0] not in self.packages:
            return None
        for folder in path:
            found = FileFinder(folder, (_SourceAlone, SOURCE_SUFFIXES)).find_spec(fullname)
            if found is not None:
                return found
        return None


_FINDER = _OfPlugins()


def make_package(name: str, folder: Path) -> None:
    """A package called `name` of the files in `folder`; its __init__.py, if there is one, is not yet run."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    _FINDER.packages.add(name)
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    package = module_from_spec(spec)
    sys.modules[name] = package


def import_file(file: Path, name: str, *, folder: Path | None) -> ModuleType:
    """Run `file` as the module `name`. HarnessError, with its own line, for whatever it raises."""
    try:
        if folder is not None and file.name != "__init__.py":
            return importlib.import_module(name)
        spec = spec_from_file_location(
            name,
            file,
            loader=_SourceAlone(name, str(file)),
            submodule_search_locations=None if folder is None else [str(folder)],
        )
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module
    except HarnessError as error:
        raise type(error)(f"{where_in(error, file, folder)}: {error}") from error
    except (Exception, SystemExit) as error:
        hint = ""
        if isinstance(error, ImportError) and folder is None and "relative import" in str(error):
            hint = "; a file that imports its neighbours is loaded with them: give --plugin the folder"
        elif isinstance(error, ModuleNotFoundError) and _is_neighbour(error.name, file):
            whole = "" if folder else "; give --plugin the folder"
            hint = f"; {error.name}.py lies beside it: write from . import {error.name}{whole}"
        elif isinstance(error, ModuleNotFoundError):
            hint = "; install it in this environment, or leave the plug-in out"
        raise HarnessError(
            f"{where_in(error, file, folder)}: cannot be imported: {type(error).__name__}: {error}{hint}"
        ) from error


def where_in(error: BaseException, file: Path, folder: Path | None) -> str:
    """FILE:LINE of the plug-in's innermost line that led to `error`."""
    if isinstance(error, SyntaxError) and error.filename and _is_of(error.filename, file, folder):
        return f"{shown_path(error.filename)}:{error.lineno}"
    found, trace = shown_path(file), error.__traceback__
    while isinstance(trace, TracebackType):
        code = trace.tb_frame.f_code.co_filename
        if _is_of(code, file, folder):
            found = f"{shown_path(code)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found


def _is_neighbour(module: str | None, file: Path) -> bool:
    return bool(module) and file.with_name(f"{module}.py").is_file()


def _is_of(code: str, file: Path, folder: Path | None) -> bool:
    return Path(code) == file or (folder is not None and folder in Path(code).parents)
