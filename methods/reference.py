"""Reading weights of public reference implementations under their own names, strictly.

A `ReferenceReader` hands out tensors by name and shape and, at the end, names everything that was
missing, misshapen or left over, in one ValueError.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_BLOCK_PARTS = (
    "norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "attn.proj.weight", "attn.proj.bias",
    "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias",
)  # fmt: skip
_STEM = (
    "cls_token",
    "pos_embed",
    "patch_embed.proj.weight",
    "patch_embed.proj.bias",
    "norm.weight",
    "norm.bias",
)


class ReferenceReader:
    """Maps one reference state dict onto one module."""

    def __init__(self, state_dict: Mapping[str, Tensor], module: nn.Module) -> None:
        self._left = dict(state_dict)
        self._module = module
        self._own = module.state_dict()
        self._loaded: dict[str, Tensor] = {}
        self._problems: list[str] = []

    def ignore(self, keys: list[str]) -> None:
        """Accept these keys unused."""
        for key in keys:
            self._left.pop(key, None)

    def copy(self, own: str, *theirs: str, shares: tuple[int, ...] = (1,)) -> None:
        """`own` = the reference tensors `theirs` joined along dimension 0, in these shares of its rows."""
        found = {name: self._take(name) for name in theirs}
        self._put(own, {name: value for name, value in found.items() if value is not None}, shares)

    def copy_all(self, own: str, theirs: str, names: tuple[str, ...]) -> None:
        """Each of `names` under the prefixes `own` and `theirs`."""
        for name in names:
            self.copy(own + name, theirs + name)

    def beit_block(self, own: str, theirs: str) -> None:
        """A block of BEiT or CAE: q and v biases, no k bias, layer scale as gamma."""
        self.copy_all(own, theirs, _BLOCK_PARTS)
        self.copy(own + "attn.qkv.weight", theirs + "attn.qkv.weight")
        names = (theirs + "attn.q_bias", theirs + "attn.v_bias")
        query, value = (self._take(name) for name in names)
        if query is not None and value is not None:
            parts = {names[0]: query, "": torch.zeros_like(value), names[1]: value}
            self._put(own + "attn.qkv.bias", parts, (1, 1, 1))
        self.copy(own + "ls1.gamma", theirs + "gamma_1")
        self.copy(own + "ls2.gamma", theirs + "gamma_2")

    def beit_trunk(self, own: str, theirs: str, depth: int) -> None:
        """Stem, blocks and final norm under BEiT's names."""
        self.copy_all(own, theirs, _STEM)
        for index in range(depth):
            self.beit_block(f"{own}blocks.{index}.", f"{theirs}blocks.{index}.")

    def mapet_trunk(self, own: str, depth: int) -> None:
        """Stem, blocks and final norm under MaPeT's names: separate q and kv, biases on all."""
        self.copy_all(own, "", _STEM)
        for index in range(depth):
            block = f"blocks.{index}."
            self.copy_all(own + block, block, (*_BLOCK_PARTS, "ls1.gamma", "ls2.gamma"))
            for kind in ("weight", "bias"):
                theirs = (f"{block}attn.q.{kind}", f"{block}attn.kv.{kind}")
                self.copy(f"{own}{block}attn.qkv.{kind}", *theirs, shares=(1, 2))

    def finish(self) -> None:
        """Load everything into the module, or raise ValueError with every problem and change nothing."""
        self._problems += [f"unexpected {key}" for key in sorted(self._left)]
        if self._problems:
            raise ValueError("the reference weights do not fit: " + "; ".join(self._problems))
        self._module.load_state_dict(self._loaded)

    def _take(self, key: str) -> Tensor | None:
        if key not in self._left:
            self._problems.append(f"missing {key}")
            return None
        return self._left.pop(key)

    def _put(self, own: str, parts: Mapping[str, Tensor], shares: tuple[int, ...]) -> None:
        if len(parts) < len(shares):
            return
        whole = self._own[own].shape
        fits = True
        for (name, part), share in zip(parts.items(), shares, strict=True):
            expected = (whole[0] * share // sum(shares), *whole[1:]) if whole else ()
            if tuple(part.shape) != expected:
                self._problems.append(f"{name} has shape {tuple(part.shape)}, not {expected}")
                fits = False
        if fits:
            self._loaded[own] = torch.cat(list(parts.values())) if whole else next(iter(parts.values()))
