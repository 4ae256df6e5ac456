"""What a tokenizer declares of itself, readable without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocols.hyperparameters import Hyperparameter, Value, resolve
from protocols.schema import TrunkSpec
from tokenizers.weights_files import PublishedFile, WantedFile, wanted_file

BUILT_IN = "built in"
_REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class TokenizerSpec:
    """One row of the table of tokenizers.

    name             lower case, as the command line and protocols write it
    target           "module:Class", a tokenizers.base.Tokenizer built as Class(spec, config)
    summary          one line for listings
    teacher          how the network behind the features was trained, which tells what labels leak in
    hyperparameters  all that the tokenizer takes, with ranges, defaults and sources
    sources          files, relative to the repository, whose bytes are the tokenizer's code; a plug-in's own
                     lie anywhere, under whole paths
    published        the file of weights that it comes with; None if it is fitted here
    weights_file     configuration -> the file of weights of its feature network; None if there is never one
    origin           who brings it
    """

    name: str
    target: str
    summary: str
    teacher: str
    hyperparameters: tuple[Hyperparameter, ...]
    sources: tuple[str, ...] = ()
    published: PublishedFile | None = None
    weights_file: Callable[[Mapping[str, Value]], WantedFile | None] | None = None
    origin: str = BUILT_IN

    def resolve(self, given: Mapping[str, Any], *, trunk: TrunkSpec | None = None) -> dict[str, Value]:
        """All hyperparameters: those given, checked, the others at their defaults, or as they follow `trunk`.

        HarnessError if wrong.
        """
        return resolve(f"tokenizer {self.name}", self.hyperparameters, given, trunk=trunk)

    def wanted_file(self, resolved: Mapping[str, Value]) -> WantedFile | None:
        """The file of weights that a resolved configuration needs, if any. HarnessError if malformed."""
        if self.published is not None:
            return wanted_file(str(resolved["weights"]), self.published)
        return None if self.weights_file is None else self.weights_file(resolved)

    def source_digest(self) -> str:
        """SHA-256 (hex) over the names and bytes of `sources`, for a record to tell stale results by."""
        total = hashlib.sha256()
        labels = {name: Path(name).name if Path(name).is_absolute() else name for name in self.sources}
        for name, label in sorted(labels.items(), key=lambda item: item[::-1]):
            content = (_REPOSITORY / name).read_bytes()
            # The length separates name and content, so that bytes cannot move between files unseen.
            total.update(f"{label}\0{len(content)}\0".encode())
            total.update(content)
        return total.hexdigest()
