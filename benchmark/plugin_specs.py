"""What a plug-in's module states that it brings: checked, and completed by where it comes from. No torch."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmark.data_sets import DataSetSpec
from benchmark.plugin_guard import line_of, line_of_hyperparameter, protocol_fields
from benchmark.plugin_import import where_in
from benchmark.plugin_sources import ROOT, built_in_files, own_files
from methods.specs import MethodSpec, Work
from protocols.errors import HarnessError, ProtocolViolation
from protocols.files import shown_path
from protocols.hyperparameters import Hyperparameter
from tokenizers.specs import TokenizerSpec

Spec = MethodSpec | TokenizerSpec | DataSetSpec
CONSTANTS: dict[str, tuple[str, type[Any]]] = {
    "METHODS": ("method", MethodSpec),
    "TOKENIZERS": ("tokenizer", TokenizerSpec),
    "DATA_SETS": ("data set", DataSetSpec),
}
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
# Words that options take in the place of names, and what begins the names of rows that were imported.
_TAKEN = ("all", "all-known", "none")
_IMPORTED = "imported-"
# Which MethodSpec.resolve holds against the trunk, whoever declares them.
_COUNTS = ("mask_count", "cutting_point", "min_block", "decoder_width", "decoder_heads")
_CONTRACTS = {"method": ("methods.base", "Method"), "tokenizer": ("tokenizers.base", "Tokenizer")}


@dataclass
class Brought:
    """Specifications with their kinds and files, in the order in which they are stated."""

    specs: list[tuple[str, Any, Path]] = field(default_factory=list)

    def __iadd__(self, other: Brought) -> Brought:
        self.specs += other.specs
        return self


def brought_by(
    module: ModuleType, file: Path, tree: ast.Module, *, origin: str, folder: Path | None, package: str
) -> Brought:
    """The specifications in the module's constants. HarnessError, with the line, for what is not right."""
    brought = Brought()
    for constant, (kind, expected) in CONSTANTS.items():
        if not hasattr(module, constant):
            continue
        place = f"{shown_path(file)}:{line_of(tree, constant)}"
        given = getattr(module, constant)
        if not isinstance(given, tuple | list) or not given:
            raise HarnessError(
                f"{place}: {constant} must be a tuple of {expected.__name__}(...), got {_shown(given)}; mind "
                f"the comma of a single one: {constant} = ({expected.__name__}(...),)"
            )
        for one in given:
            if not isinstance(one, expected):
                raise HarnessError(f"{place}: {constant} holds {_shown(one)}, not a {expected.__name__}")
            if (kind, one.name) in [(known, spec.name) for known, spec, _ in brought.specs]:
                raise HarnessError(f"{place}: {constant} holds {one.name!r} twice")
            taken = Taken(
                kind=kind, module=module, file=file, tree=tree, place=place, folder=folder, package=package
            )
            brought.specs.append((kind, taken.completed(one, origin=origin), file))
    return brought


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Where a specification was found."""

    kind: str
    module: ModuleType
    file: Path
    tree: ast.Module
    place: str
    folder: Path | None
    package: str

    def completed(self, spec: Any, *, origin: str) -> Any:
        """`spec` with its class found, its origin and the files of its code."""
        self._check_texts(spec)
        if isinstance(spec, DataSetSpec):
            self._check_data_set(spec)
            return replace(spec, origin=origin)
        self._check_hyperparameters(spec)
        target = self._target(spec)
        hyperparameters = tuple(
            replace(one, follows=one.follows and self._answering(one.follows, spec, f"follows of {one.name}"))
            for one in spec.hyperparameters
        )
        named = [self._source(spec, one) for one in spec.sources]
        own = own_files(self.file, self.folder, self.package)
        built_in = built_in_files(self.tree)
        for one in own:
            built_in += built_in_files(ast.parse(one.read_bytes()))
        if isinstance(spec, MethodSpec):
            self._check_method(spec)
            assert spec.work is not None
            of_methods = {one.removeprefix("methods/") for one in built_in if one.startswith("methods/")}
            others = {ROOT / one for one in built_in if not one.startswith("methods/")}
            sources = dict.fromkeys([*own, *sorted(others), *named])
            return replace(
                spec,
                target=target,
                origin=origin,
                hyperparameters=hyperparameters,
                work=self._answering(spec.work, spec, "work", kind=Work),
                files=tuple(sorted({*spec.files, *of_methods})),
                sources=tuple(sorted(sources, key=lambda one: (one.name, str(one)))),
            )
        texts = dict.fromkeys([*map(str, own), *sorted(set(built_in)), *map(str, named)])
        return replace(
            spec, target=target, origin=origin, hyperparameters=hyperparameters, sources=tuple(texts)
        )

    def _source(self, spec: MethodSpec | TokenizerSpec, given: Any) -> Path:
        """A further file of the code, which lies beside the plug-in or in the repository."""
        if isinstance(given, str | Path):
            for folder in (self.file.parent, ROOT):
                if (folder / given).is_file():
                    return folder / given
        raise HarnessError(
            f"{self.place}: {self.kind} {spec.name}: sources names {given!r}, and there is no such file in "
            f"{shown_path(self.file.parent)}"
        )

    def _answering(
        self, function: Callable[..., Any], spec: Spec, what: str, *, kind: type = object
    ) -> Callable[..., Any]:
        """`function`, where a plan asks it: what it raises is the plug-in's error, with its line."""

        def answer(*arguments: Any) -> Any:
            try:
                found = function(*arguments)
            except HarnessError:
                raise
            except (Exception, SystemExit) as error:
                where = where_in(error, self.file, self.folder)
                where = self.place if where == shown_path(self.file) else where
                raise HarnessError(
                    f"{where}: {self.kind} {spec.name}: {what} failed: {type(error).__name__}: {error}"
                ) from error
            if not isinstance(found, kind):
                raise HarnessError(
                    f"{self.place}: {self.kind} {spec.name}: {what} must return a {kind.__name__}, got "
                    f"{_shown(found)}"
                )
            return found

        return answer

    def _check_texts(self, spec: Spec) -> None:
        name = spec.name
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise HarnessError(
                f"{self.place}: {self.kind} name {_shown(name)} must be lower-case letters, digits, - and _, "
                "64 at most, and begin with a letter or digit"
            )
        if name in _TAKEN or name.startswith(_IMPORTED):
            raise HarnessError(
                f"{self.place}: {self.kind} name {name!r} means something else here; choose another"
            )
        for one in fields(spec):
            value = getattr(spec, one.name)
            if one.type == "str" and one.name not in ("group", "folder", "origin") and (
                not isinstance(value, str) or not value.strip() or not value.isprintable()
            ):  # fmt: skip
                raise HarnessError(
                    f"{self.place}: {self.kind} {name}: {one.name} must be a line of text, got "
                    f"{_shown(value)}"
                )

    def _check_hyperparameters(self, spec: MethodSpec | TokenizerSpec) -> None:
        for name in ("hyperparameters", "sources"):
            if not isinstance(given := getattr(spec, name), tuple | list):
                raise HarnessError(
                    f"{self.place}: {self.kind} {spec.name}: {name} must be a tuple, got {_shown(given)}; "
                    f"mind the comma of a single one: {name}=(...,)"
                )
        fixed = protocol_fields()
        seen: set[str] = set()
        for one in spec.hyperparameters:
            if not isinstance(one, Hyperparameter):
                raise HarnessError(
                    f"{self.place}: {self.kind} {spec.name}: hyperparameters holds {_shown(one)}, not a "
                    "Hyperparameter"
                )
            line = line_of_hyperparameter(self.tree, one.name)
            where = f"{shown_path(self.file)}:{line}: {self.kind} {spec.name}"
            if not str(one.name).isidentifier() or one.name in seen:
                raise HarnessError(
                    f"{where}: hyperparameter {one.name!r} is no name of its own, as Python's are"
                )
            seen.add(one.name)
            holder = fixed.get(one.name, "")
            # A tokenizer's sizes are its own.
            if holder and (self.kind == "method" or holder.startswith("pretraining.")):
                raise ProtocolViolation(
                    f"{where}: hyperparameter {one.name!r} is a value that the protocol fixes for all "
                    f"methods ({holder}); read the trunk's sizes from the trunk, change recipes by a "
                    "protocol of your own (see fork), or choose another name for what is the method's own"
                )
            if one.type not in (bool, int, float, str):
                raise HarnessError(
                    f"{where}: hyperparameter {one.name}: type must be bool, int, float or str"
                )
            if self.kind == "method" and one.name in _COUNTS and one.type is not int:
                raise HarnessError(
                    f"{where}: hyperparameter {one.name} is a number of patches, slots, columns or heads in "
                    "every method: give it type=int, or another name"
                )
            if not all(isinstance(bound, int | float | None) for bound in (one.low, one.high)):
                raise HarnessError(f"{where}: hyperparameter {one.name}: low and high must be numbers")
            if not isinstance(one.source, str) or not one.source.strip():
                raise HarnessError(
                    f"{where}: hyperparameter {one.name}: source must say where its value comes from"
                )
            if one.default is not None:
                try:
                    one.check(f"{self.kind} {spec.name}", one.default)
                except HarnessError as error:
                    raise HarnessError(
                        f"{where}: the default of a hyperparameter is wrong: {error}"
                    ) from None

    def _check_method(self, spec: MethodSpec) -> None:
        if spec.work is None or not callable(spec.work):
            raise HarnessError(
                f"{self.place}: method {spec.name}: work is missing, which says what a forward pass costs; "
                "methods.specs.masked_work fits a method that masks mask_count patches of one pass"
            )
        groups = [one for one in spec.hyperparameters if one.name == spec.group]
        if spec.group and not groups:
            raise HarnessError(
                f"{self.place}: method {spec.name}: group names {spec.group!r}, which is none of its "
                "hyperparameters"
            )
        if any(one.type is not int or (one.low or 0) < 1 for one in groups):
            raise HarnessError(
                f"{self.place}: method {spec.name}: group names {spec.group!r}, which counts images: give "
                "that hyperparameter type=int and low=1, or more"
            )
        if any(one.default is None and one.follows is None and not one.required for one in groups):
            raise HarnessError(
                f"{self.place}: method {spec.name}: group names {spec.group!r}, which may be left unset: "
                "give that hyperparameter a default"
            )

    def _check_data_set(self, spec: DataSetSpec) -> None:
        for name in ("classes", "needs"):
            value = getattr(spec, name)
            if not isinstance(value, tuple) or not value or not all(isinstance(one, str) for one in value):
                raise HarnessError(f"{self.place}: data set {spec.name}: {name} must be a tuple of texts")
        if not callable(spec.read):
            raise HarnessError(f"{self.place}: data set {spec.name}: read must be a function (folder, split)")
        try:
            spec.remedy.format(root="DIR")
        except (LookupError, ValueError):
            raise HarnessError(
                f"{self.place}: data set {spec.name}: remedy may name {{root}} alone in braces; write {{{{ "
                "and }} for braces that are to be seen"
            ) from None
        if Path(spec.place).name != spec.place or spec.place in ("", ".."):
            raise HarnessError(
                f"{self.place}: data set {spec.name}: folder must be the name of one folder, got "
                f"{spec.folder!r}"
            )

    def _target(self, spec: MethodSpec | TokenizerSpec) -> str:
        """The class as "module:Class", of a module that is loaded or that can be."""
        module, colon, attribute = spec.target.rpartition(":")
        if not colon:
            found = getattr(self.module, attribute, None)
            if found is None:
                raise HarnessError(
                    f"{self.place}: {self.kind} {spec.name}: target names the class {attribute!r}, which is "
                    f"not in this file; known: {', '.join(self._classes()) or 'no class'}"
                )
            self._check_class(found, spec)
            return f"{self.module.__name__}:{attribute}"
        if self.folder is not None and (self.folder / f"{module.replace('.', '/')}.py").is_file():
            module = f"{self.package}.{module}"
        return f"{module}:{attribute}"

    def _classes(self) -> list[str]:
        return [node.name for node in self.tree.body if isinstance(node, ast.ClassDef)]

    def _check_class(self, found: Any, spec: MethodSpec | TokenizerSpec) -> None:
        """HarnessError, at the class' line, if it is none of the contract's or leaves some of it out."""
        contract_module, contract_name = _CONTRACTS[self.kind]
        line = line_of(self.tree, spec.target)
        where = f"{shown_path(self.file)}:{line}: {self.kind} {spec.name}: {spec.target}"
        # Whoever derives from it has loaded its module.
        contract = getattr(sys.modules.get(contract_module), contract_name, None)
        if not (isinstance(found, type) and contract is not None and issubclass(found, contract)):
            raise HarnessError(f"{where} is no class derived from {contract_module}.{contract_name}")
        if missing := sorted(getattr(found, "__abstractmethods__", ())):
            raise HarnessError(f"{where} does not define {', '.join(missing)}")
        if self.kind == "method":
            parameters: Mapping[str, inspect.Parameter] = inspect.signature(found).parameters
            given = ["trunk", "codebook_size", *(one.name for one in spec.hyperparameters)]
            takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
            if lacking := [one for one in given if one not in parameters and not takes_any]:
                raise HarnessError(
                    f"{where}.__init__ takes no {', '.join(lacking)}; it is called with {', '.join(given)}"
                )


def _shown(value: object) -> str:
    return (
        f"{value!r:.60}" if isinstance(value, str | int | float | type(None)) else f"a {type(value).__name__}"
    )
