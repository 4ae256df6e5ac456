"""Ring MIM: MIM that sees one region of the image and predicts the ring around it.

Source: the inverse block masks of data2vec 2.0 (arXiv 2212.07525), which keep a region visible in the place
of masking regions; here it is round. All else is MIM's (BEiT, arXiv 2106.08254), and as many patches are
masked, so that the one difference between the two rows is where the visible patches lie.
"""

import torch
from torch import Tensor

from methods.mim import MaskedImageModelling
from methods.patterns import keyed_hash, permutations
from methods.specs import MethodSpec, masked_work
from protocols.hyperparameters import Hyperparameter

STREAM = 4001  # of the keyed random numbers: one that no other use has


class RingMim(MaskedImageModelling):
    """Predict the tokens of the patches that lie farthest from a random one."""

    def draw(self, sample_ids: Tensor, epoch: int, seed: int) -> Tensor:
        """(B, N) bool, True = masked; exactly `mask_count` per image, a pure function of its arguments."""
        grid, patches = self.trunk_spec.grid, self.trunk_spec.patches
        centre = keyed_hash(seed, epoch, sample_ids, stream=STREAM)[:, None] % patches  # (B, 1)
        every = torch.arange(patches, device=sample_ids.device)[None]  # (1, N)
        down, right = every // grid - centre // grid, every % grid - centre % grid
        # Patches that are equally far are told apart by lot.
        lot = permutations(sample_ids, patches=patches, epoch=epoch, seed=seed)
        from_near_to_far = ((down**2 + right**2) * patches + lot).argsort(dim=1)
        is_masked = torch.zeros_like(from_near_to_far, dtype=torch.bool)
        return is_masked.scatter_(1, from_near_to_far[:, patches - self.mask_count :], True)


METHODS = (
    MethodSpec(
        name="ring-mim",
        title="Ring MIM",
        target="RingMim",
        paper="inverse block masks of data2vec 2.0 (arXiv 2212.07525), round, on MIM",
        hyperparameters=(
            Hyperparameter(
                name="mask_count",
                type=int,
                low=1,
                follows=lambda trunk: (trunk.patches + 1) // 2,
                source="this example: half of the patches, as mini masks in MIM",
            ),
        ),
        work=masked_work,  # FLOPs of a pass: the whole trunk, and a head on the masked patches
    ),
)
