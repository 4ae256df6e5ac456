"""Published weights on disk: what a file is called, where it lies, which bytes are trusted. No torch.

A tokenizer's hyperparameter `weights` is a name, or NAME@SHA256 with all 64 hex digits. The name alone
stands for the published file and nothing else. The longer form is how a user says that another file is
meant: the protocol's value differs then, so the record keeps the digest and calls its cell modified.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from protocols.errors import HarnessError

ENDINGS = (".safetensors", ".pth", ".pkl")


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """The file of weights that a tokenizer's authors released.

    weights  its name in the hyperparameter `weights` and, before its ending, on disk
    ending   the ending that the published file has
    sha256   how its SHA-256 (hex) begins, None where no publisher states one
    url      where the authors publish it
    """

    weights: str
    ending: str
    sha256: str | None
    url: str

    def remedy(self, folder: str, name: str) -> str:
        """How the file `name` gets into `folder`: for the published one, a command."""
        if name != self.weights:
            return f"put it there under that name, ending in {', '.join(ENDINGS)}"
        return f"curl -L --create-dirs -o {folder}/{name}{self.ending} {self.url}"


@dataclass(frozen=True, kw_only=True)
class WantedFile:
    """What `weights` asks for: a file's name without ending, and how its SHA-256 has to begin.

    `sha256` is None where nothing is known of the file's bytes.
    """

    name: str
    sha256: str | None


def wanted_file(weights: str, published: PublishedFile) -> WantedFile:
    """`weights`, NAME or NAME@SHA256, taken apart. HarnessError if it has another form."""
    matched = re.fullmatch(r"([\w-][\w.-]*)(?:@([0-9a-fA-F]{64}))?", weights)
    if matched is None:
        raise HarnessError(
            f"weights {weights!r} is neither a file's name without its ending, such as "
            f"{published.weights}, nor NAME@SHA256 with 64 hex digits"
        )
    name, pinned = matched.groups()
    if pinned is not None:
        return WantedFile(name=name, sha256=pinned.lower())
    return WantedFile(name=name, sha256=published.sha256 if name == published.weights else None)


def find_file(folder: Path, name: str) -> Path | None:
    """The file `name` in `folder` under one of the endings, None if there is none.

    HarnessError if there are several: which one is meant would be a guess.
    """
    found = [path for ending in ENDINGS if (path := folder / f"{name}{ending}").is_file()]
    if len(found) > 1:
        raise HarnessError(
            f"{folder}: {' and '.join(path.name for path in found)} could both be the weights {name}; "
            "keep one of them there"
        )
    return found[0] if found else None
