"""What a row's variant tries, as numbers: `mask_count 19` is 19 predicted patches, `epochs 13` 13 epochs.

Methods name their share of predicted patches in two ways: those with masks by the masks (`mask_count`),
those with permutations by the context (`cutting_point`, which counts the class token).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from protocols.schema import Protocol

_OF_SHARE = ("mask_count", "cutting_point")


def tried_values(variant: str) -> dict[str, str]:
    """Name -> text of the value, of each value that `variant` tries; none for the protocol's own setting."""
    pairs = (part.rpartition(" ") for part in variant.split(", ") if part)
    return {name: value for name, _, value in pairs}


def number(text: str) -> float | None:
    """`text` as a number, None where it is none."""
    try:
        return float(text)
    except ValueError:
        return None


def predicted_patches(values: Mapping[str, Any], *, patches: int) -> int | None:
    """How many of an image's `patches` a method predicts under these values; None where they do not say."""
    for name in _OF_SHARE:
        given = number(str(values[name])) if name in values else None
        if given is not None:
            return int(given) if name == "mask_count" else 1 + patches - int(given)
    return None


def predicted_of(protocol: Protocol, method: str, trunk: str, variant: str = "") -> int | None:
    """How many patches `method` predicts on `trunk`, set as `variant` says and otherwise as the protocol."""
    if method not in protocol.names("methods") or trunk not in protocol.trunks:
        return None
    values = dict(protocol.method_values(method, trunk)) | tried_values(variant)
    return predicted_patches(values, patches=patches_of(protocol, trunk))


def reconstruction_ratio(protocol: Protocol, method: str, trunk: str, variant: str) -> float | None:
    """The predicted share, 0 to 1; of a cutting point as the paper counts it, the class token included."""
    predicted = predicted_of(protocol, method, trunk, variant)
    if predicted is None:
        return None
    is_permuted = "mask_count" not in protocol.method_values(method, trunk)
    return predicted / (patches_of(protocol, trunk) + is_permuted)


def patches_of(protocol: Protocol, trunk: str) -> int:
    """N: patches of one image on `trunk`."""
    return protocol.trunk_spec(trunk, drop_path=0.0).patches


def setting_label(protocol: Protocol, method: str, trunk: str, variant: str) -> str:
    """One name for one setting, whatever the method calls it: `19 of 49 predicted`, `peak lr 0.002`."""
    values = tried_values(variant)
    parts = []
    for name, value in values.items():
        count = predicted_of(protocol, method, trunk, f"{name} {value}") if name in _OF_SHARE else None
        parts.append(
            f"{name.replace('_', ' ')} {value}"
            if count is None
            else f"{count} of {patches_of(protocol, trunk)} predicted"
        )
    return ", ".join(parts)
