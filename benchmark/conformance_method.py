"""A method as it is examined: built at the protocol's sizes, on images and tokens that are drawn here.

Shapes: B images, N patches, V codebook, K targets of one image, P predicted positions of the batch.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmark.equal_compute import codebook_size, resolve_method
from methods import build_method, method_spec
from methods.base import Method
from methods.specs import ROOT, MethodSpec
from protocols.hyperparameters import Value
from protocols.schema import Protocol, TrunkSpec

IMAGES = 6
SMALL_GROUP = 3
SEED = 0


@dataclass(frozen=True)
class MethodUnderTest:
    """`hyperparameters` are resolved; `codebook_size` is that of the protocol's tokens, 0 without any.

    Where images of a batch depend on one another, their groups are made small and the batch two of them.
    """

    spec: MethodSpec
    trunk: TrunkSpec
    hyperparameters: Mapping[str, Value]
    codebook_size: int

    @property
    def name(self) -> str:
        """The method's."""
        return self.spec.name

    @property
    def files(self) -> tuple[Path, ...]:
        """Its own sources."""
        return (*(ROOT / "methods" / name for name in self.spec.files), *self.spec.sources)

    @property
    def group(self) -> int:
        """How many consecutive images depend on one another, as it is built here."""
        return self.spec.images_in_a_group(self.small)

    @cached_property
    def small(self) -> dict[str, Value]:
        """The hyperparameters, but for small groups."""
        if not self.spec.group:
            return dict(self.hyperparameters)
        (declared,) = (one for one in self.spec.hyperparameters if one.name == self.spec.group)
        smallest = max(SMALL_GROUP, int(declared.low or 1))
        return {**self.hyperparameters, self.spec.group: smallest}

    @property
    def size(self) -> int:
        """B: two groups, or some images that each stand alone."""
        return 2 * self.group if self.spec.group else IMAGES

    @cached_property
    def images(self) -> Tensor:
        """(B, 3, H, W)"""
        return self.other_images(0)

    def other_images(self, seed: int) -> Tensor:
        """(B, 3, H, W) of noise on a scale of patches and of pixels, so that all differ everywhere."""
        generator = torch.Generator().manual_seed(seed)
        side, grid = self.trunk.image_size, self.trunk.grid
        coarse = torch.randn(self.size, 3, grid, grid, generator=generator)
        fine = torch.randn(self.size, 3, side, side, generator=generator)
        return torch.nn.functional.interpolate(coarse, size=(side, side)) + 0.5 * fine

    @cached_property
    def tokens(self) -> Tensor:
        """(B, N), or (B, 0) for a method that uses none."""
        if not self.spec.uses_tokens:
            return torch.empty(self.size, 0, dtype=torch.int64)
        generator = torch.Generator().manual_seed(1)
        return torch.randint(self.codebook_size, (self.size, self.trunk.patches), generator=generator)

    @property
    def sample_ids(self) -> Tensor:
        """(B,), not in order."""
        return (torch.arange(self.size) * 7919 + 5) % 100_003

    def build(
        self,
        *,
        seed: int = SEED,
        drop_path: float = 0.0,
        codebook_size: int | None = None,
        changes: Mapping[str, Value] | None = None,
    ) -> Method:
        """A fresh one; `changes` of hyperparameters."""
        return build_method(
            self.name,
            trunk=self.trunk.model_copy(update={"drop_path": drop_path}),
            codebook_size=self.codebook_size if codebook_size is None else codebook_size,
            seed=seed,
            **{**self.small, **(changes or {})},
        )

    def pattern(self, method: Method, *, epoch: int = 0) -> Tensor:
        """The pattern of the batch's images."""
        return method.draw(self.sample_ids, epoch, SEED)

    def forward(self, method: Method) -> dict[str, Tensor]:
        """One pass over the batch."""
        return method(self.images, self.tokens, self.pattern(method))

    @cached_property
    def outcome(self) -> tuple[Method, Tensor, dict[str, Tensor]]:
        """One method that nobody changes, its pattern and its output."""
        method = self.build()
        pattern = self.pattern(method)
        return method, pattern, method(self.images, self.tokens, pattern)


def under_test(name: str, protocol: Protocol, trunk: str) -> MethodUnderTest:
    """The method `name` with the protocol's values, and otherwise its own, on one of the protocol's trunks.

    HarnessError for hyperparameters that its specification does not allow, or that nothing sets.
    """
    spec = method_spec(name)
    sizes, resolved = resolve_method(protocol, name, trunk, {}, protocol.pretraining)
    codes = codebook_size(protocol, protocol.defaults.tokenizers[0]) if spec.uses_tokens else 0
    return MethodUnderTest(spec, sizes, resolved, codes)


@contextmanager
def same_random_numbers(seed: int) -> Iterator[None]:
    """All global generators seeded inside, and as they were afterwards."""
    python, numbers = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)


def consumed_generators(before: tuple[Any, Any, Tensor]) -> list[str]:
    """The global generators that moved since `generator_states`."""
    python, numbers, tensors = generator_states()
    names = []
    if python != before[0]:
        names.append("random")
    if any(not np.array_equal(one, other) for one, other in zip(numbers, before[1], strict=True)):
        names.append("numpy.random")
    if not torch.equal(tensors, before[2]):
        names.append("torch")
    return names


def generator_states() -> tuple[Any, Any, Tensor]:
    """Of python, numpy and torch."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()
