"""Strict reading of a protocol: YAML in, a frozen `Protocol` with a source beside every value out.

A value is written `{value: V, source: "where it comes from"}`, or `{value: V, assumed: "why",
alternatives: [...]}` where no source fixes it. In methods and evaluations a field may hold one such
value for each trunk: `{vit-t: {value: ...}, vit-s: {value: ...}}`. Prose, defaults and views, which
move no number, stand bare.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from protocols.errors import HarnessError, unknown
from protocols.files import shown_path
from protocols.frozen import canonical_json
from protocols.lock import check_lock
from protocols.reader import TRUNKWISE, Reader, override_of
from protocols.schema import Protocol

FOLDER = Path(__file__).parent
MAX_FILE_BYTES = 1024 * 1024
BUILT_IN = "built in"
_BROKEN: dict[str, str] = {}
_OF_PLUGINS: dict[str, tuple[Path, str]] = {}  # name -> its file, and who brings it
_METHOD_FIELDS: dict[str, tuple[str, ...]] = {}  # method -> the hyperparameters that --set may name


def list_protocols() -> list[str]:
    """Names of the protocols that come with the harness, then of those of plug-ins."""
    return [*sorted(path.stem for path in FOLDER.glob("*.yaml")), *_OF_PLUGINS]


def register_protocol(path: Path, *, origin: str) -> None:
    """Make a plug-in's protocol known by its file's name without .yaml, which must be the protocol's own."""
    name = load_protocol(str(path)).name
    if name != path.stem:
        raise HarnessError(f"{path}: the protocol's name is {name!r}; call the file {name}.yaml")
    if name in list_protocols():
        raise HarnessError(
            f"protocol {name!r} comes from two places: {protocol_origin(name)}, and {origin}; rename one of "
            "them, or leave one out"
        )
    _OF_PLUGINS[name] = (path, origin)


def unregister_protocol(name: str) -> None:
    """Forget a plug-in's protocol; those that are built in stay."""
    _OF_PLUGINS.pop(name, None)


def register_broken_protocol(name: str, reason: str) -> None:
    """Whoever asks for the protocol `name` is told `reason`; all others are spared it."""
    _BROKEN[name] = reason


def broken_protocols() -> dict[str, str]:
    """Names of protocols that installed packages promise and cannot give, with the reasons."""
    return dict(_BROKEN)


def protocol_origin(name: str) -> str:
    """Who brings the protocol called `name`."""
    return _OF_PLUGINS[name][1] if name in _OF_PLUGINS else BUILT_IN


def register_method_fields(method: str, fields: Sequence[str]) -> None:
    """Let --set name these hyperparameters of `method` where the protocol sets nothing of them."""
    _METHOD_FIELDS[method] = tuple(fields)


def unregister_method_fields(method: str) -> None:
    """Forget them."""
    _METHOD_FIELDS.pop(method, None)


def load_protocol(name: str, *, overrides: Iterable[str] = (), locked: bool = True) -> Protocol:
    """The protocol called `name`, or the one in the file `name` if it ends in .yaml.

    `overrides` are SLICE.FIELD=VALUE texts, for exploration: they are kept as the protocol's
    `deviations`, and every cell that runs under them is recorded as modified. They may name a known
    method's hyperparameters that the protocol leaves unsaid. `locked` False leaves out the comparison with
    the lock, for the commands that fork and lock.
    Raises HarnessError (file, line, what is allowed) for anything that is not exactly right, and
    ProtocolViolation if a released protocol is no longer what was released.
    """
    path = find_protocol(name)
    file = name if name.endswith((".yaml", ".yml")) else ""
    if protocol_origin(name.lower()).startswith("plug-in"):
        file = shown_path(path)  # so that commands that are shown run without --plugin
    reader = Reader(path.name, _bytes_of(path))
    original = reader.protocol().model_copy(update={"file": file})
    if locked:
        check_lock(original, file=str(path))
    overrides = tuple(overrides)
    if not overrides:
        return original
    for override in overrides:
        reader.override(override, further=_unsaid(reader.tree.get("methods")))
    protocol = reader.protocol()
    # Compared after validation: 1 for 1.0, or a value set back again, is no deviation.
    changed = dict(override_of(text) for text in overrides)
    deviations = tuple(
        f"{path}={text}"
        for path, text in changed.items()
        if not is_said(original, path)
        or canonical_json(value_at(protocol, path)) != canonical_json(value_at(original, path))
    )
    return protocol.model_copy(update={"deviations": deviations, "file": file})


def _unsaid(methods: Any) -> list[str]:
    """Paths of known methods' hyperparameters that the `methods` of a file say nothing of."""
    listed = methods if isinstance(methods, dict) else {}
    return [
        f"methods.{name}.{field}"
        for name, fields in _METHOD_FIELDS.items()
        for field in fields
        if field not in listed.get(name, {})
    ]


def is_said(protocol: Protocol, path: str) -> bool:
    """False for a method's hyperparameter that `protocol` leaves to the method."""
    kind, name, *field = [*path.split("."), "", ""]
    if kind != "methods":
        return True
    keys = [key for key in protocol.methods if key.partition("@")[0] == name]
    return any(field[0] in protocol.methods[key] for key in keys)


def value_at(protocol: Protocol, path: str) -> Any:
    """The value at a dotted path of the file, such as `evaluations.finetune.epochs.vit-t`."""
    kind, *names = path.split(".")
    value: Any = getattr(protocol, kind)
    if kind in TRUNKWISE and names[0] not in value:
        # Given per trunk, or shared by recipes that differ between trunks elsewhere.
        trunk = names.pop() if len(names) == 3 else protocol.names("trunks")[0]
        names[0] = f"{names[0]}@{trunk}"
    for name in names:
        value = value[name] if isinstance(value, dict) else getattr(value, name)
    return value


def find_protocol(name: str) -> Path:
    """The file of the protocol called `name`, or the file `name` itself. HarnessError if there is none."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise HarnessError(
                f"no protocol file {name!r}; those that come with the harness are named without .yaml: "
                f"{', '.join(list_protocols())}"
            )
        return path
    known = list_protocols()
    if name.lower() not in known and name.lower() in _BROKEN:
        raise HarnessError(_BROKEN[name.lower()])
    if name.lower() not in known:
        raise unknown("protocol", name, known)
    if name.lower() in _OF_PLUGINS:
        return _OF_PLUGINS[name.lower()][0]
    return FOLDER / f"{name.lower()}.yaml"


def _bytes_of(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise HarnessError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise HarnessError(f"{path.name}: over {MAX_FILE_BYTES:,} bytes is too large for a protocol")
    return content
