"""A tokenizer that is one frozen network with published weights: loading them, encoding, keeping them.

Shapes: B images, N tokens of one image, S image side. The network is (B, 3, S, S) in [0, 1] -> ids (B, N).
Until weights are loaded it has shapes and no memory (torch's meta device), so building it costs nothing.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from protocols.errors import HarnessError
from tokenizers.base import Tokenizer
from tokenizers.precision import exact_float32
from tokenizers.published import check_tensors, read_wanted
from tokenizers.specs import TokenizerSpec
from tokenizers.weights_files import PublishedFile, wanted_file

Shapes = dict[str, torch.Size]


class NetworkTokenizer(Tokenizer):
    """A subclass gives the network, on the meta device, and its weights' names in the published file."""

    # As in features.py: always blocks of as many images, so that the same arithmetic runs for any batch.
    block: ClassVar[int] = 16

    def __init__(
        self, spec: TokenizerSpec, config: Mapping[str, Any], *, network: nn.Module, grid: int
    ) -> None:
        super().__init__(spec, config)
        assert spec.published is not None
        self.published: PublishedFile = spec.published
        self.wanted = wanted_file(self.config["weights"], self.published)
        self.teacher = self.wanted.teacher(spec.teacher)
        self.image_size, self.grid = self.config["image_size"], grid
        self.codebook_size = self.config["codebook_size"]
        self.network = network.requires_grad_(False).eval()
        self._device = torch.device("cpu")
        self._is_loaded = False

    @abstractmethod
    def reference_shapes(self) -> Shapes:
        """Names and shapes of the weights that are used, as the published state dict has them."""

    @abstractmethod
    def _renamed(self, reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Exactly the tensors of `reference_shapes` -> the network's own state dict."""

    def _is_unused(self, name: str) -> bool:
        """True for further names of the published state dict that tokenising does without."""
        return False

    @property
    def needs_weights(self) -> bool:
        """True until weights are loaded."""
        return not self._is_loaded

    @property
    def is_fitted(self) -> bool:
        """True once weights are loaded; nothing is fitted here."""
        return self._is_loaded

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Take the weights of a published state dict, under its names.

        Raises HarnessError naming the first key that is missing, unexpected, misshapen or not finite.
        """
        used = {name: tensor for name, tensor in state_dict.items() if not self._is_unused(name)}
        self._check(used, self.reference_shapes())
        self.set_weights(self._renamed(used))

    def load_published(self, source: Path, *, accept_unknown: bool = False) -> None:
        """Load the weights file `source`, or the one in the folder `source` that `weights` names.

        The file must be the published one, or the one whose SHA-256 stands in `weights`, unless
        `accept_unknown`. Raises HarnessError as `read_published` and `load_reference` do.
        """
        owner = f"tokenizer {self.name}"
        read = read_wanted(owner, source, self.wanted, accept_unknown=accept_unknown)
        try:
            self.load_reference(read.tensors)
        except HarnessError as error:
            raise HarnessError(f"{read.path}: {error}") from None

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] -> (B, N) int64 on the CPU, row-major. HarnessError before loading."""
        self.check_images(images)
        self._require_weights()
        ids = [self._exactly(self.network, block) for block in self._padded_blocks(images)]
        return torch.cat(ids)[: len(images)] if ids else torch.empty(0, self.grid**2, dtype=torch.int64)

    def to(self, device: torch.device | str) -> NetworkTokenizer:
        """Run the network on `device`; tokens still come back on the CPU."""
        self._device = torch.device(device)
        if self._is_loaded:
            self.network = self.network.to(self._device)
        return self

    def weights(self) -> dict[str, Tensor]:
        """The network's state dict, on the CPU. HarnessError before loading."""
        self._require_weights()
        return {name: tensor.cpu() for name, tensor in self.network.state_dict().items()}

    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take what `weights` gave. HarnessError for a missing, unexpected or misshapen tensor."""
        self._check(weights, {name: tensor.shape for name, tensor in self.network.state_dict().items()})
        own = {
            # A copy of its own: what the caller does to its tensors later must not change tokens.
            name: tensor.detach().to(self._device, torch.float32, copy=True).contiguous()
            for name, tensor in weights.items()
        }
        self.network.load_state_dict(own, strict=True, assign=True)
        self.network.requires_grad_(False)
        self._is_loaded = True

    def _require_weights(self) -> None:
        if not self._is_loaded:
            raise HarnessError(
                f"tokenizer {self.name} is not fitted but published, and its weights are not loaded: call "
                "load_published(path), load_reference(state_dict) or load(folder)"
            )

    def _check(self, given: Mapping[str, Tensor], expected: Shapes) -> None:
        check_tensors(f"tokenizer {self.name}, weights", given, expected)

    def _padded_blocks(self, images: Tensor) -> Iterator[Tensor]:
        for block in images.split(self.block) if len(images) else ():
            missing = self.block - len(block)
            yield torch.cat([block, block.new_zeros(missing, *block.shape[1:])]) if missing else block

    def _exactly(self, compute: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        with torch.no_grad(), exact_float32(self._device):
            return compute(images.to(self._device, torch.float32)).cpu()
