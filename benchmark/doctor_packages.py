"""Is what a run imports and reads as it should be: Python, packages, protocols, embedded images? No torch."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmark.data import READERS
from benchmark.decode_probe import Expected, Pixels, check_files, digest_over, expected, found
from benchmark.doctor import ROOT, Asked, Finding, failed, ok, warning
from benchmark.inputs import EXTERNAL_SETS
from benchmark.provenance import git_state
from protocols import list_protocols, load_protocol
from protocols.errors import HarnessError

OLDEST, TRIED = (3, 11), (3, 11)
_PIN = re.compile(r"^([A-Za-z0-9_.-]+)==(\S+)$")
DEVELOPMENT = "# development"
MOST_NAMED = 4


def python(asked: Asked) -> Iterator[Finding]:
    """Its version."""
    here, tried = platform.python_version(), ".".join(map(str, TRIED))
    if sys.version_info[:2] < OLDEST:
        yield failed("Python", f"{here} is too old", f"make an environment with Python {tried}")
    elif sys.version_info[:2] > TRIED:
        yield warning("Python", f"{here}; what is published was made with {tried}", f"use Python {tried}")
    else:
        yield ok("Python", here)


def packages(asked: Asked) -> Iterator[Finding]:
    """Every package against its pin in requirements.txt."""
    pinned, for_development = pins(asked.requirements)
    file, as_pinned = asked.requirements.name, 0
    for name, wanted in pinned.items():
        here = installed(name)
        remedy = f"pip install {name}=={wanted}"
        if here is None:
            yield failed(name, f"not installed; {file} pins {wanted}", remedy)
        elif here.partition("+")[0] != wanted:  # of 2.15.0+cu130 the end names a build
            yield warning(
                name,
                f"{here} is installed, {wanted} is pinned: numbers may differ from those of other machines",
                remedy,
            )
        else:
            as_pinned += 1
    yield ok("packages", f"{as_pinned} of {len(pinned)} are as {file} pins them")
    unlike = [name for name, wanted in for_development.items() if installed(name) != wanted]
    if unlike:
        yield ok("packages", f"for the tests alone, and not as pinned: {', '.join(unlike)}")


def pins(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Name -> version, of what runs import and of what only tests do. HarnessError if the file is not one."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise HarnessError(
            f"{path.name}: {error.strerror}; restore it with git checkout {path.name}"
        ) from None
    kinds: tuple[dict[str, str], dict[str, str]] = {}, {}
    is_development = False
    for line in map(str.strip, lines):
        is_development |= line == DEVELOPMENT
        if not line or line.startswith("#"):
            continue
        pin = _PIN.match(line)
        if pin is None:
            raise HarnessError(
                f"{path.name}: {line[:60]!r} is no NAME==VERSION; restore it with git checkout {path.name}"
            )
        kinds[is_development][pin[1]] = pin[2]
    return kinds


def installed(package: str) -> str | None:
    """Its version, None if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def checkout(asked: Asked) -> Iterator[Finding]:
    """Protocols as they were released, embedded images as they were embedded, and the commit."""
    names = list_protocols()
    for name in names:
        load_protocol(name)  # raises where a slice is not as the lock has it
    yield ok("protocols", f"{', '.join(names)} are as they were released")
    for read in READERS.values():
        read("train")
    yield ok("embedded images", f"{' and '.join(READERS)} are the files that were embedded")
    state = git_state()
    if state.commit == "unknown":
        yield warning(
            "git",
            "no checkout: records cannot say which code made them",
            "run from a git clone, with git installed; in a container, tell git that it may read "
            f"it: git config --global --add safe.directory {ROOT}",
        )
    elif state.dirty:
        yield warning(
            "git",
            f"commit {state.commit[:12]} with changes: records will say so, and nobody else has this code",
            "commit the changes, or undo them, before a campaign",
        )
    else:
        yield ok("git", f"commit {state.commit[:12]}, unchanged")


def images(asked: Asked) -> Iterator[Finding]:
    """The probe images: their files, what they decode to, and what is made of them at 224 x 224."""
    listed = expected()
    check_files(listed)
    here = found(listed)
    made_with = ", ".join(f"{name} {one}" for name, one in listed.made_with.items())
    for what, title in (("decoded", "image decoding"), ("square", "image decoding, cropped and resized")):
        unlike = differing(listed, here, what)
        digest = digest_over(here, what)[:12]
        if not unlike:
            yield ok(title, f"{len(here)} probe images as expected (digest {digest}...)")
            continue
        named = ", ".join(unlike[:MOST_NAMED]) + (", ..." if len(unlike) > MOST_NAMED else "")
        yield warning(
            title,
            f"{len(unlike)} of {len(here)} probe images give other pixels than with {made_with}: {named} "
            f"(digest {digest}...). Such variants have moved published accuracies by points, and boards do "
            "not compare rows whose images were decoded otherwise",
            "install the pinned wheel, which brings its own libjpeg: pip install --force-reinstall "
            f"--only-binary :all: {_pillow_pin(asked)}",
        )


def differing(listed: Expected, here: dict[str, Pixels], what: str) -> list[str]:
    """The probe images that do not give what they gave where they were made."""
    return [name for name in here if getattr(here[name], what) != getattr(listed.pixels[name], what)]


def data_root(asked: Asked) -> Iterator[Finding]:
    """Which data sets lie under it; whether they are whole is what `data NAME` finds out."""
    root = asked.data_root
    if root is None:
        yield ok("data root", "none given; the protocol mini needs none")
        return
    if not root.is_dir():
        yield failed("data root", f"{root} is no folder", "give another with --data-root")
        return
    there = [
        name
        for name, one in EXTERNAL_SETS.items()
        if all(one.way(root, split) for split in ("train", "test"))
    ]
    if there:
        yield ok("data root", f"{', '.join(there)} in {root}; data NAME says whether they are whole")
    else:
        yield warning(
            "data root",
            f"none of {', '.join(EXTERNAL_SETS)} lies in {root}",
            "data NAME --data-root DIR says what is missing and how it gets there",
        )


def _pillow_pin(asked: Asked) -> str:
    return f"pillow=={pins(asked.requirements)[0].get('pillow', '')}".removesuffix("==")
