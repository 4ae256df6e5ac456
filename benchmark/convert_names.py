"""Weights under the names of public implementations -> the names of timm's VisionTransformer.

Read are timm's own names, a method of this harness (`trunk.` before the trunk's), MaPeT's (separate `attn.q`
and `attn.kv`), BEiT's (`gamma_1`, `q_bias`; absolute positions) and CAE's (BEiT's behind `encoder.`). What a
pre-training objective has beside the trunk, its head, mask tokens and decoders, is left out by name;
nothing else is. D width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmark.classifier_file import JOINED, joined_attention
from protocols.errors import HarnessError

# What the published objectives keep beside their trunk under plain names; the first of MaPeT, then BEiT's.
_BESIDE_TRUNK = re.compile(r"mask_positional_token|decoder\.(weight|bias)|mask_token|lm_head\.(weight|bias)")
_BESIDE_ENCODER = re.compile(r"teacher\..+|pretext_neck\..+|encoder_to_decoder(_norm)?\.\w+|mask_token")
_MAPET_OWN = "mask_positional_token"


@dataclass(frozen=True, kw_only=True)
class NamedVit:
    """A ViT under timm's names. `form` says whose names the file had; `left_out` are names that it lost."""

    tensors: dict[str, Tensor]
    form: str
    left_out: tuple[str, ...]
    changes: tuple[str, ...]


def with_timms_names(path: Path, tensors: Mapping[str, Tensor]) -> NamedVit:
    """`tensors` of the file `path` under timm's names, joined and renamed but never resized.

    Raises HarnessError for a relative position bias, and for parts that do not belong together.
    """
    relative = next((name for name in tensors if "relative_position" in name), None)
    if relative is not None:
        raise HarnessError(
            f"{path}: has a relative position bias ({relative}), which no ViT of timm has; give weights with "
            "absolute positions (pos_embed), or load these as one of timm's beit models"
        )
    kept, left_out, form = _trunk_of(tensors)
    changes = []
    joined = joined_attention(path, kept)
    if joined.keys() != kept.keys():
        changes.append(JOINED)
        form = form or ("MaPeT's pre-training" if _MAPET_OWN in left_out else "MaPeT's")
    renamed = _beit_parts(path, joined)
    if renamed.keys() != joined.keys():
        changes.append(
            "gamma_1 and gamma_2 named ls1.gamma and ls2.gamma; q_bias and v_bias joined, k's bias 0"
        )
        form = form or "BEiT's"
    if left_out:
        changes.append(f"left out, as no part of the trunk: {_grouped(left_out)}")
    return NamedVit(tensors=renamed, form=form or "timm's", left_out=left_out, changes=tuple(changes))


def _trunk_of(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...], str]:
    """The trunk's tensors without what stands before all of their names, the names left out, and the form."""
    if any(name.startswith("trunk.blocks.") for name in tensors):
        prefix, form, beside = "trunk.", "a method of this harness", None
    elif any(name.startswith("encoder.blocks.") for name in tensors):
        prefix, form, beside = "encoder.", "CAE's pre-training", _BESIDE_ENCODER
    else:
        prefix, form, beside = "", "", _BESIDE_TRUNK
    left_out = [
        name
        for name in tensors
        if not (prefix and name.startswith(prefix)) and (beside is None or beside.fullmatch(name))
    ]
    # What stays of a foreign file and is no part of a ViT is named when the sizes are held against it.
    kept = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name not in left_out}
    return kept, tuple(sorted(left_out)), form


def _beit_parts(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BEiT's layer scale and biases under timm's names; q's and v's bias (D,) become one of (3D,)."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        scale = re.fullmatch(r"(blocks\.\d+\.)gamma_([12])", name)
        bias = re.fullmatch(r"(blocks\.\d+\.attn\.)([qv])_bias", name)
        if scale is not None:
            renamed[f"{scale[1]}ls{scale[2]}.gamma"] = tensor
        elif bias is None:
            renamed[name] = tensor
        else:
            query, value = (tensors.get(f"{bias[1]}{part}_bias") for part in "qv")
            if query is None or value is None or query.shape != value.shape or query.ndim != 1:
                raise HarnessError(
                    f"{path}: {bias[1]}q_bias and {bias[1]}v_bias do not belong together; fetch the "
                    "published file"
                )
            renamed[f"{bias[1]}qkv.bias"] = torch.cat([query, torch.zeros_like(value), value])
    return renamed


def _grouped(names: tuple[str, ...]) -> str:
    """`teacher.*` for many names that begin alike."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.partition(".")[0], []).append(name)
    return ", ".join(held[0] if len(held) == 1 else f"{start}.*" for start, held in groups.items())
