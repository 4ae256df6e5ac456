"""Strict reading of a protocol: YAML in, a frozen `Protocol` with a source beside every value out.

A value is written `{value: V, source: "where it comes from"}`, or `{value: V, assumed: "why",
alternatives: [...]}` where no source fixes it. Prose and defaults, which move no number, stand bare.
The YAML is read node by node: no tag is executed, duplicate keys are errors, and 1e-3 is a number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from protocols.errors import HarnessError, nearest, unknown
from protocols.schema import Protocol, Source

FOLDER = Path(__file__).parent
MAX_FILE_BYTES = 1024 * 1024
BARE = ("name", "version", "summary", "defaults")
LEAF_KEYS = ("value", "source", "assumed", "alternatives")
_INTEGER = re.compile(r"[-+]?(0|[1-9]\d*)")
_FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def list_protocols() -> list[str]:
    """Names of the protocols that come with the harness."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_protocol(name: str, *, overrides: Iterable[str] = ()) -> Protocol:
    """The protocol called `name`, or the one in the file `name` if it ends in .yaml.

    `overrides` are SLICE.FIELD=VALUE texts, for exploration: they are kept as the protocol's
    `deviations`, and every cell that runs under them is recorded as modified.
    Raises HarnessError (file, line, what is allowed) for anything that is not exactly right.
    """
    path = _find(name)
    text = path.read_bytes()
    if len(text) > MAX_FILE_BYTES:
        raise HarnessError(f"{path.name}: {len(text)} bytes is too large for a protocol")
    reader = _Reader(path.name)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        tree = reader.tree(root)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        where = getattr(error, "problem_mark", None)
        line = f":{where.line + 1}" if where is not None else ""
        problem = getattr(error, "problem", None) or type(error).__name__
        raise HarnessError(f"{path.name}{line}: not valid YAML: {problem}") from None
    changed = dict(reader.override(tree, text) for text in overrides)
    try:
        protocol = Protocol.model_validate({**tree, "sources": reader.sources})
    except ValidationError as error:
        raise HarnessError(reader.explain(error)) from None
    if not changed:
        return protocol
    # Compared after validation: 1 for 1.0, or a value set back again, is no deviation.
    original = load_protocol(name)
    deviations = tuple(
        f"{path}={text}" for path, text in changed.items() if _value(protocol, path) != _value(original, path)
    )
    return protocol.model_copy(update={"deviations": deviations})


def _value(protocol: Protocol, path: str) -> Any:
    value: Any = protocol
    for name in path.split("."):
        value = value[name] if isinstance(value, dict) else getattr(value, name)
    return value


def _find(name: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise HarnessError(f"no protocol file {name!r}")
        return path
    known = list_protocols()
    if name.lower() not in known:
        raise unknown("protocol", name, known)
    return FOLDER / f"{name.lower()}.yaml"


class _Reader:
    """Walks the YAML nodes once, keeping for every dotted path its line and its source."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.sources: dict[str, Source] = {}
        self.lines: dict[str, int] = {}

    def error(self, path: str, message: str) -> HarnessError:
        where = path
        while where and where not in self.lines:
            where = where.rpartition(".")[0]
        return HarnessError(f"{self.file}:{self.lines.get(where, 1)}: {path or 'protocol'}: {message}")

    def tree(self, root: yaml.Node | None) -> dict[str, Any]:
        if not isinstance(root, yaml.MappingNode):
            raise HarnessError(f"{self.file}: a protocol is a mapping of names to values")
        return {key: self._plain(node, key) if key in BARE else self._group(node, key)
                for key, node in self._items(root, "")}  # fmt: skip

    def _items(self, node: yaml.MappingNode, path: str) -> list[tuple[str, yaml.Node]]:
        seen: dict[str, yaml.Node] = {}
        for key_node, value in node.value:
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
                raise self.error(path, f"{key!r} (line {key_node.start_mark.line + 1}) is not a plain name")
            child = f"{path}.{key}" if path else key
            self.lines.setdefault(child, key_node.start_mark.line + 1)
            if key in seen:
                raise HarnessError(
                    f"{self.file}:{key_node.start_mark.line + 1}: {child} is given twice, "
                    f"first in line {self.lines[child]}; keep one"
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
        self.sources[path] = Source(
            source=text, assumed="assumed" in leaf, alternatives=tuple(leaf.get("alternatives", ()))
        )
        return leaf["value"]

    def _plain(self, node: yaml.Node, path: str) -> Any:
        if isinstance(node, yaml.MappingNode):
            return {key: self._plain(child, f"{path}.{key}") for key, child in self._items(node, path)}
        if isinstance(node, yaml.SequenceNode):
            return [self._plain(child, path) for child in node.value]
        return self._scalar(node, path)

    def _scalar(self, node: yaml.Node, path: str) -> bool | int | float | str | None:
        kind = node.tag.rpartition(":")[2]
        text = str(node.value)
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() in ("true", "yes", "on")
        is_number = kind == "str" and node.style is None and _FLOAT.fullmatch(text)
        if kind in ("int", "float") or is_number:
            if not (_INTEGER if kind == "int" else _FLOAT).fullmatch(text):
                raise self.error(path, f"{text!r} is not a plain decimal number")
            return int(text) if kind == "int" else float(text)
        if kind == "str":
            return text
        raise self.error(path, f"the YAML tag {node.tag!r} is not allowed here")

    def override(self, tree: dict[str, Any], text: str) -> tuple[str, str]:
        """Apply one SLICE.FIELD=VALUE to the tree; returns path and value as text."""
        path, equals, value = text.partition("=")
        path = path.strip()
        if path in self.sources and not equals:
            raise HarnessError(f"--set {text}: the value is missing; write {path}=VALUE")
        if path not in self.sources:
            raise HarnessError(f"--set {text}: write SLICE.FIELD=VALUE; {nearest(path, self.sources)}")
        try:
            node = yaml.compose(value, Loader=yaml.SafeLoader)
        except yaml.YAMLError:
            raise HarnessError(f"--set {text}: {value!r} is not a value") from None
        parsed = None if node is None else self._plain(node, path)
        *groups, field = path.split(".")
        holder = tree
        for group in groups:
            holder = holder[group]
        before, holder[field] = holder[field], parsed
        self.sources[path] = Source(source=f"--set on the command line; the protocol says {before}")
        return path, value.strip()

    def explain(self, error: ValidationError) -> str:
        lines = []
        for item in error.errors(include_url=False)[:5]:
            location = item["loc"] or ("protocol",)
            # The tag of a discriminated union stands in pydantic's location but not in the file.
            parts = location[:2] + location[3:] if location[0] == "evaluations" else location
            path = ".".join(str(part) for part in parts)
            message = item["msg"].removeprefix("Value error, ")
            if item["type"] == "extra_forbidden":
                siblings = self._allowed(location)
                message = f"unknown key; {nearest(str(location[-1]), siblings)}"
            elif item["type"] not in ("missing", "value_error"):
                message += f", got {item['input']!r:.80}"
            lines.append(str(self.error(path, message)))
        return "\n".join(lines)

    @staticmethod
    def _allowed(location: tuple[int | str, ...]) -> list[str]:
        from protocols import schema

        models: dict[str, type[schema.Frozen]] = {
            "data": schema.Data,
            "pretraining": schema.PreTraining,
            "trunks": schema.Trunk,
            "defaults": schema.Defaults,
        }
        if len(location) == 1:
            return [name for name in Protocol.model_fields if name not in ("sources", "deviations")]
        if location[0] == "evaluations":
            model: type[schema.Frozen] = (
                schema.FineTuning if "finetune" in location[2:3] else schema.LinearProbe
            )
        elif location[0] == "data" and len(location) == 3:
            model = schema.Part
        else:
            model = models[str(location[0])]
        return list(model.model_fields)
