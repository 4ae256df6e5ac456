"""What a plug-in may not do: a learning rate of its own. docs/protocols.md shows the refusal."""

from methods.mim import MaskedImageModelling
from methods.specs import MethodSpec, masked_work
from protocols.hyperparameters import Hyperparameter


class GreedyMim(MaskedImageModelling):
    """MIM as it is; the specification below wants more than a method may have."""


METHODS = (
    MethodSpec(
        name="greedy-mim",
        title="Greedy MIM",
        target="GreedyMim",
        paper="none: an example of a mistake",
        hyperparameters=(
            Hyperparameter(name="mask_count", type=int, low=1, default=25, source="as mim on mini"),
            Hyperparameter(name="peak_lr", type=float, low=0, default=3e-3, source="it works better"),
        ),
        work=masked_work,
    ),
)
