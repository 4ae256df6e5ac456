"""From the YAML text of a protocol to plain values, keeping every value's line and source for errors.

The YAML is read node by node: no tag is executed, duplicate keys and aliases are errors, and 1e-3 is a
number. What pydantic finds wrong afterwards is told in the file's own paths and lines.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import yaml
from pydantic import ValidationError

from protocols.errors import HarnessError, nearest, shown
from protocols.frozen import Frozen
from protocols.recipes import FineTuning, LinearProbe, NearestNeighbours, PreTraining, TokenClassification
from protocols.schema import (
    Data,
    Defaults,
    Part,
    Protocol,
    ReportedCost,
    Source,
    Spending,
    TransferSet,
    Trunk,
)
from protocols.views import View, ViewCells

BARE = ("name", "version", "summary", "defaults", "views", "reported_cost")
TRUNKWISE = ("methods", "evaluations")
LEAF_KEYS = ("value", "source", "assumed", "alternatives")
KINDS = tuple(name for name in Protocol.model_fields if name not in ("sources", "deviations", "file"))
RECIPES: dict[str, type[Frozen]] = {
    "finetune": FineTuning,
    "linear-probe": LinearProbe,
    "knn": NearestNeighbours,
    "token-classification": TokenClassification,
}
MOST_ERRORS = 20
MOST_NESTED = 20  # libyaml's composer calls itself for each level: thousands of brackets would end Python
MOST_DIGITS = 40

# libyaml's parser reads the same nodes ten times as fast; not every build of PyYAML has it.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_YAML = "tag:yaml.org,2002:"
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_NULLS = ("", "~", "null", "Null", "NULL")
_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
# pydantic's kinds of mistakes as sentences; {} is the bound or the choice that it names.
_SENTENCES = {
    "missing": "is missing",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be a text",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a group of names with values",
    "model_type": "must be a group of names with values",
    "model_attributes_type": "must be a group of names with values",
    "finite_number": "must be a finite number",
    "literal_error": "must be {expected}",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be greater than or equal to {ge:g}",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be less than or equal to {le:g}",
    "multiple_of": "must be a multiple of {multiple_of:g}",
}
_SCALAR_TAGS = ("bool", "int", "float", "str")


def override_of(text: str) -> tuple[str, str]:
    """SLICE.FIELD=VALUE as path and value, both as text."""
    path, _, value = text.partition("=")
    return path.strip(), value.strip()


class Reader:
    """One file: `tree` holds its plain values, `sources` where each comes from, `lines` where it stands."""

    def __init__(self, file: str, text: bytes) -> None:
        self.file = file
        self.sources: dict[str, Source] = {}
        self.lines: dict[str, int] = {}
        self.overridden: dict[str, str] = {}
        try:
            root = composed(text)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            where = getattr(error, "problem_mark", None)
            line = f":{where.line + 1}" if where is not None else ""
            problem = getattr(error, "problem", None) or getattr(error, "reason", None)
            raise HarnessError(f"{file}{line}: not valid YAML: {problem or type(error).__name__}") from None
        if not isinstance(root, yaml.MappingNode):
            raise HarnessError(f"{file}: a protocol is a mapping of names to values")
        self.tree: dict[str, Any] = {}
        for key, node in self._items(root, ""):
            if key not in KINDS:
                raise self.error(key, f"unknown key; {nearest(key, KINDS)}")
            self.tree[key] = self._plain(node, key) if key in BARE else self._group(node, key)

    def error(self, path: str, message: str) -> HarnessError:
        """The error about the value at `path`: the line of it, or of the nearest group that has one."""
        if self.overridden:
            return HarnessError(f"{self._blamed(path)}: {message}")
        where = path
        while where and where not in self.lines:
            where = where.rpartition(".")[0]
        return HarnessError(f"{self.file}:{self.lines.get(where, 1)}: {path or 'protocol'}: {message}")

    def _blamed(self, path: str) -> str:
        """Each --set of the value at `path`, or of a part of what stands there; all of them where none is.

        The file was right without them, so whatever is wrong now is theirs.
        """
        near = [
            one for one in self.overridden if f"{path}.".startswith(f"{one}.") or one.startswith(f"{path}.")
        ]
        flags = " ".join(f"--set {one}={self.overridden[one]:.80}" for one in near or self.overridden)
        if not near and path:
            return f"{flags}: {path}"
        item = path.removeprefix(f"{near[0]}.") if near else ""
        return f"{flags}: item {int(item) + 1}" if item.isdecimal() else flags

    def override(self, text: str, *, further: Collection[str] = ()) -> None:
        """Apply one SLICE.FIELD=VALUE to the tree; `further` are paths beside those that the file has."""
        path, value = override_of(text)
        known = {*self.sources, *further}
        if path in known and "=" not in text:
            raise HarnessError(f"--set {text:.200}: the value is missing; write {path}=VALUE")
        if path not in known:
            group = path.rpartition(".")[0] if path.startswith("methods.") else path
            inside = [one for one in known if one.startswith((f"{path}.", f"{group}."))]
            raise HarnessError(
                f"--set {text:.200}: write SLICE.FIELD=VALUE; {nearest(path, inside or known)}"
            )
        try:
            node = composed(value)
        except (yaml.YAMLError, UnicodeError):
            raise HarnessError(
                f"--set {path}: {value[:MOST_DIGITS]!r} is not a value; write a number, a word, true, false, "
                "null, or a list such as [0.9, 0.999]"
            ) from None
        *groups, field = path.split(".")
        holder = self.tree
        for group in groups:
            holder = holder.setdefault(group, {})
        said = f"says {holder[field]}" if path in self.sources else "says nothing of it"
        source = self.sources.get(path)
        if source is None or path not in self.overridden:
            source = Source(source=f"--set on the command line; the protocol {said}")
        self.overridden[path] = value
        parsed = None if node is None else self._value(self._plain(node, path), path)
        if isinstance(holder.get(field), float) and type(parsed) is int:
            parsed = float(parsed)  # 1 for 1.0 is the same value, also where any scalar is allowed
        holder[field] = parsed
        self.sources[path] = source

    def protocol(self) -> Protocol:
        """The tree as a Protocol; HarnessError with one line for each thing that is wrong."""
        try:
            return Protocol.model_validate({**self._spread(), "sources": self.sources})
        except ValidationError as error:
            raise HarnessError(self._explain(error)) from None

    def _items(self, node: yaml.MappingNode, path: str) -> list[tuple[str, yaml.Node]]:
        if node.tag != f"{_YAML}map":
            raise self.error(path, f"the YAML tag {node.tag!r} is not allowed here")
        seen: dict[str, yaml.Node] = {}
        for key_node, value in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != f"{_YAML}str":
                shown = repr(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "a key"
                raise self.error(path, f"{shown} (line {line}) is not a plain name")
            key = str(key_node.value)
            child = f"{path}.{key}" if path else key
            self.lines.setdefault(child, line)
            if key in seen:
                raise HarnessError(
                    f"{self.file}:{line}: {child} is given twice, first in line {self.lines[child]}; keep one"
                )
            seen[key] = value
        return list(seen.items())

    def _group(self, node: yaml.Node, path: str) -> Any:
        if not isinstance(node, yaml.MappingNode):
            raise self.error(path, "a bare value; write {value: ..., source: ...} to say where it comes from")
        items = self._items(node, path)
        if not any(key == "value" for key, _ in items):
            return {key: self._group(child, f"{path}.{key}") for key, child in items}
        leaf = {key: self._plain(child, f"{path}.{key}") for key, child in items}
        for key in leaf:
            if key not in LEAF_KEYS:
                raise self.error(path, f"unknown key {key!r} beside a value; {nearest(key, LEAF_KEYS)}")
        if ("source" in leaf) == ("assumed" in leaf):
            raise self.error(path, "a value needs either `source` or `assumed` (with the reason)")
        text = leaf.get("source", leaf.get("assumed"))
        if not isinstance(text, str) or not text.strip():
            raise self.error(path, "`source` or `assumed` must be a sentence")
        alternatives = leaf.get("alternatives", [])
        if not isinstance(alternatives, list) or any(
            not isinstance(one, bool | int | float | str) for one in alternatives
        ):
            raise self.error(path, "`alternatives` must be a list of numbers or texts")
        self.sources[path] = Source(source=text, assumed="assumed" in leaf, alternatives=tuple(alternatives))
        return self._value(leaf["value"], path)

    def _value(self, value: Any, path: str) -> Any:
        # A mapping here would hide many values behind one source.
        if isinstance(value, dict):
            raise self.error(path, "a mapping is not a value; give each of its fields a value and a source")
        return value

    def _plain(self, node: yaml.Node, path: str) -> Any:
        if isinstance(node, yaml.MappingNode):
            return {key: self._plain(child, f"{path}.{key}") for key, child in self._items(node, path)}
        if isinstance(node, yaml.SequenceNode):
            if node.tag != f"{_YAML}seq":
                raise self.error(path, f"the YAML tag {node.tag!r} is not allowed here")
            items = []
            for position, child in enumerate(node.value):
                self.lines.setdefault(f"{path}.{position}", child.start_mark.line + 1)
                items.append(self._plain(child, f"{path}.{position}"))
            return items
        return self._scalar(node, path)

    def _scalar(self, node: yaml.Node, path: str) -> bool | int | float | str | None:
        kind = node.tag.removeprefix(_YAML)
        text = str(node.value)
        if kind == "null" and text in _NULLS:
            return None
        if kind == "bool" and text.lower() in _BOOLS:
            return _BOOLS[text.lower()]
        is_number = kind == "str" and not node.style and _FLOAT.fullmatch(text)
        if kind in ("int", "float") or is_number:
            is_plain = (_INTEGER if kind == "int" else _FLOAT).fullmatch(text)
            if not is_plain or len(text) > MOST_DIGITS or not math.isfinite(float(text)):
                raise self.error(path, f"{text[:MOST_DIGITS]!r} is not a plain decimal number")
            return int(text) if kind == "int" else float(text)
        if kind == "str":
            # It is shown in terminals and on pages, where blanks and line ends of all kinds are blanks.
            if any(shown(word) != word for word in text.split()):
                raise self.error(path, f"{text[:MOST_DIGITS]!r} holds characters that no text shows")
            return text
        raise self.error(path, f"the YAML tag {node.tag!r} is not allowed for {text[:MOST_DIGITS]!r}")

    def _spread(self) -> dict[str, Any]:
        """The tree with NAME@TRUNK in the place of NAME wherever a field holds a value per trunk."""
        trunks = self._trunks()
        result = dict(self.tree)
        for kind in TRUNKWISE:
            if not isinstance(self.tree.get(kind), dict):
                continue
            result[kind] = {}
            for name, fields in self.tree[kind].items():
                if "@" in name:
                    raise self.error(
                        f"{kind}.{name}", "give the value for each trunk in the field: {TRUNK: {value: ...}}"
                    )
                differing = [
                    field
                    for field, value in (fields.items() if isinstance(fields, dict) else ())
                    if isinstance(value, dict)
                ]
                for field in differing:
                    if sorted(fields[field]) != sorted(trunks):
                        raise self.error(
                            f"{kind}.{name}.{field}",
                            f"has values for {', '.join(fields[field]) or 'no trunk'}; "
                            f"give one value, or one for each trunk: {', '.join(trunks)}",
                        )
                if not differing:
                    result[kind][name] = fields
                    continue
                for trunk in trunks:
                    result[kind][f"{name}@{trunk}"] = {
                        field: value[trunk] if field in differing else value
                        for field, value in fields.items()
                    }
        return result

    def _trunks(self) -> list[str]:
        trunks = self.tree.get("trunks")
        return list(trunks) if isinstance(trunks, dict) else []

    def _explain(self, error: ValidationError) -> str:
        # A wrong value that all trunks share is wrong for each of them; it is named once.
        found: dict[tuple[str, str], list[str]] = {}
        for item in error.errors(include_url=False):
            path, message, trunk = self._mistake(item)
            found.setdefault((path, message), []).append(trunk)
        lines: dict[str, None] = {}
        spread = self._spread()
        for (path, message), trunks in found.items():
            kind, name, *field = [*path.split("."), ""]
            known = spread.get(kind)
            keys = known if kind in TRUNKWISE and isinstance(known, dict) else {}
            siblings = [key for key in keys if key.partition("@")[0] == name]
            is_shared = len(siblings) == len(set(trunks))
            where = "" if is_shared or not trunks[0] or trunks[0] in field else f" (on {', '.join(trunks)})"
            lines[f"{self.error(path, message)}{where}"] = None
        more = len(lines) - MOST_ERRORS
        return "\n".join([*list(lines)[:MOST_ERRORS], *([f"and {more} more"] if more > 0 else [])])

    def _mistake(self, item: Mapping[str, Any]) -> tuple[str, str, str]:
        """What pydantic found as (path in the file, message, the trunk that it concerns or '')."""
        location, message = item["loc"], item["msg"].removeprefix("Value error, ")
        value = item["input"]
        if item["type"] in _SENTENCES:
            message = _SENTENCES[item["type"]].format(**item.get("ctx", {}))
        elif item["type"] in ("too_short", "too_long"):
            least, most = (item["ctx"].get(bound) for bound in ("min_length", "max_length"))
            bound = "at least one value" if least == 1 else f"{least or most} values"
            message = f"must have {bound}"
        if not location:
            # What no single field has wrong opens with the path that it is about.
            first, _, rest = message.partition(" ")
            path, _ = self._path_of(tuple(first.split(".")))
            return (path, rest, "") if path in self.lines else ("", message, "")
        parts = list(location)
        if parts[-1] == "[key]":
            parts.pop()
        if item["type"] in ("bool_type", "int_type", "float_type", "string_type") and (
            parts[-1] in _SCALAR_TAGS
        ):
            parts.pop()  # the four branches of "any scalar" say one thing
            message = "must be a number, a text, true or false"
        if item["type"] in ("union_tag_invalid", "union_tag_not_found"):
            path, trunk = self._path_of((*parts, "kind"))
            found = f", got {value['kind']!r:.80}" if path in self.lines else ""
            return path, f"must be one of {', '.join(RECIPES)}{found}", trunk
        path, trunk = self._path_of(tuple(parts), is_tagged=location[0] == "evaluations")
        if item["type"] == "extra_forbidden":
            return path, f"unknown key; {nearest(str(location[-1]), self._allowed(location))}", trunk
        if item["type"] == "string_pattern_mismatch" and item["ctx"]["pattern"].startswith("^[a-z0-9]"):
            message = "a name is 1 to 64 lower-case letters, digits, - and _"
        if isinstance(value, dict) and value and set(value) <= set(self._trunks()):
            message = "one value serves all trunks; only fields of methods and evaluations may differ"
        elif item["type"] not in ("missing", "value_error"):
            message += f", got {value!r:.80}"
        return path, message, trunk

    def _path_of(self, location: tuple[int | str, ...], *, is_tagged: bool = False) -> tuple[str, str]:
        """The dotted path in the file of what pydantic calls `location`, and the trunk in it or ''."""
        parts, trunk = [str(part) for part in location], ""
        if is_tagged:
            # The tag of a discriminated union stands in pydantic's location but not in the file.
            del parts[2:3]
        if parts[0] in TRUNKWISE and len(parts) > 1:
            parts[1], _, trunk = parts[1].partition("@")
            if trunk and ".".join([*parts, trunk]) in self.lines:
                parts.append(trunk)
        return ".".join(parts), trunk

    @staticmethod
    def _allowed(location: tuple[int | str, ...]) -> list[str]:
        models: dict[str, type[Frozen]] = {
            "data": Part if len(location) > 2 else Data,
            "pretraining": PreTraining,
            "trunks": Trunk,
            "transfer_sets": Part if len(location) > 3 else TransferSet,
            "defaults": Defaults,
            "views": ViewCells if len(location) > 3 else View,
            "reported_cost": Spending if len(location) > 2 else ReportedCost,
        }
        model = RECIPES[str(location[2])] if location[0] == "evaluations" else models[str(location[0])]
        return list(model.model_fields)


def composed(text: bytes | str) -> yaml.Node | None:
    """The nodes of one YAML document without aliases, nested no deeper than MOST_NESTED."""
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="aliases are not allowed; write the value out", problem_mark=event.start_mark
            )
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MOST_NESTED:
                raise yaml.MarkedYAMLError(
                    problem=f"nested more than {MOST_NESTED} deep", problem_mark=event.start_mark
                )
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    node: yaml.Node | None = yaml.compose(text, Loader=_LOADER)
    return node
