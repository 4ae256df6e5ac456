"""No prediction may see what it is to predict: found by changing it and looking whether the prediction moves.

Which row of the logits predicts which patch is found from the targets themselves: every patch of the batch
gets a token of its own. So nothing is assumed of the order of rows, of streams, or of branches.

Shapes: B images, N patches, V codebook, R rows of logits, each the prediction of one patch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from benchmark.conformance import Check, Finding, info, judged, not_applicable
from benchmark.conformance_method import MethodUnderTest
from methods.base import Method

ROUNDS = 8
# Of the spread of the logits. What is computed twice alike differs by nothing, or by rounding.
MOVED = 1e-4


@dataclass(frozen=True)
class Predictions:
    """Rows of logits, and the image and the patch that each predicts."""

    subject: MethodUnderTest
    method: Method
    pattern: Tensor
    tokens: Tensor

    @cached_property
    def logits(self) -> Tensor:
        """(R, V) of the images as they are."""
        return self.of(self.subject.images, self.tokens)

    def of(self, images: Tensor, tokens: Tensor) -> Tensor:
        """(R, V) of these images and tokens under the same pattern."""
        with torch.no_grad():
            logits = self.method(images, tokens, self.pattern)["logits"]
        return logits.flatten(0, -2).float()

    @cached_property
    def places(self) -> tuple[Tensor, Tensor] | None:
        """(R,) images and (R,) patches; None if the rows do not say."""
        patches = self.subject.trunk.patches
        if self.subject.spec.uses_tokens:
            with torch.no_grad():
                targets = self.method(self.subject.images, self.tokens, self.pattern)["targets"].flatten()
            return targets // patches, targets % patches
        if self.pattern.dtype == torch.bool and len(self.logits) == int(self.pattern.sum()):
            image, patch = self.pattern.nonzero(as_tuple=True)
            return image, patch
        return None

    def moved(self, images: Tensor, tokens: Tensor) -> Tensor:
        """(R,) by how much the largest logit of each row moves, in spreads of the logits."""
        spread = self.logits.std().clamp_min(1e-6)
        return (self.of(images, tokens) - self.logits).abs().amax(1) / spread


def _predictions(subject: MethodUnderTest) -> Predictions:
    """Of a method whose blocks speak up: at its start layer scale keeps them down to a tenth."""
    patches = subject.trunk.patches
    tokens, codes = subject.tokens, 0
    if subject.spec.uses_tokens:
        tokens = torch.arange(subject.size * patches).view(subject.size, patches)
        codes = subject.size * patches
    method = subject.build(codebook_size=codes)
    with torch.no_grad():
        for name, value in method.named_parameters():
            if name.endswith(".gamma"):
                value.fill_(1.0)
    return Predictions(subject, method, subject.pattern(method), tokens)


def leaks(subject: MethodUnderTest) -> Iterator[Finding]:
    """Its own patch's pixels and token do not reach a prediction; other images do not; the image does."""
    found = _predictions(subject)
    if found.places is None:
        why = "no token says which patch a row of its logits predicts, and they are not the masked ones"
        yield not_applicable("own content", why)
        return
    image, patch = found.places
    yield _own(found, image, patch, what="own pixels", is_pixels=True)
    if subject.spec.uses_tokens:
        yield _own(found, image, patch, what="own token", is_pixels=False)
    if found.pattern.dtype == torch.bool:
        yield _hidden_pixels(found)
    yield _other_images(found, image)
    reached = found.moved(subject.other_images(17), found.tokens)
    blind = int((reached <= MOVED).sum())
    yield judged(
        "sees the image",
        blind == 0,
        good=f"each of {len(reached)} predictions moves with the image",
        bad=f"{blind} of {len(reached)} predictions stay where they are whatever the image",
        remedy="let what is predicted depend on the visible patches",
    )


def _own(found: Predictions, image: Tensor, patch: Tensor, *, what: str, is_pixels: bool) -> Finding:
    """Change one predicted patch of each image at a time; no row that predicts it may move."""
    others = found.subject.other_images(17)
    chosen = [torch.unique(patch[image == one]) for one in range(found.subject.size)]
    rounds = min(ROUNDS, max(len(one) for one in chosen))
    looked_at, worst = 0, 0.0
    for number in range(rounds):
        images, tokens = found.subject.images.clone(), found.tokens.clone()
        is_own = torch.zeros(len(image), dtype=torch.bool)
        for row, patches in enumerate(chosen):
            if not len(patches):
                continue
            one = int(patches[number * len(patches) // rounds])
            if is_pixels:
                where = _pixels_of(found.subject, one)
                images[row, :, where[0], where[1]] = others[row, :, where[0], where[1]]
            else:
                tokens[row, one] = (tokens[row, one] + 1) % found.method.codebook_size
            is_own |= (image == row) & (patch == one)
        moved = found.moved(images, tokens)[is_own]
        looked_at += len(moved)
        worst = max(worst, float(moved.max()))
    content = "pixels" if is_pixels else "token"
    return judged(
        what,
        worst <= MOVED,
        good=f"{looked_at} predictions tried: none moves with the {content} of the patch it predicts",
        bad=f"a prediction moves by {worst:.1g} of the logits' spread with its own patch's {content}",
        remedy="hide the patch: from its embedding, from attention, and from every later layer"
        if is_pixels
        else "let tokens be targets, and nothing that is computed from",
    )


def _hidden_pixels(found: Predictions) -> Finding:
    """Change all masked patches at once: does the loss, with whatever terms beside the logits', mind?"""
    subject, method = found.subject, found.method
    grid, side = subject.trunk.grid, subject.trunk.patch_size
    is_masked = found.pattern.view(-1, 1, grid, grid).repeat_interleave(side, 2).repeat_interleave(side, 3)
    images = torch.where(is_masked, subject.other_images(17), subject.images)
    with torch.no_grad():
        losses = [method(one, found.tokens, found.pattern)["loss"] for one in (subject.images, images)]
    moved = abs(losses[1] - losses[0]).item() / abs(losses[0]).item()
    if moved <= MOVED:
        return info("masked pixels", "the loss does not move with any of them")
    return info(
        "masked pixels", f"the loss moves by {100 * moved:.1g} % with them: as targets, or seen elsewhere"
    )


def _other_images(found: Predictions, image: Tensor) -> Finding:
    """Change the first image, or the first group; no row of another may move."""
    group = found.subject.group
    images, tokens = found.subject.images.clone(), found.tokens
    images[:group] = found.subject.other_images(17)[:group]
    worst = float(found.moved(images, tokens)[image >= group].max())
    return judged(
        "images stand alone",
        worst <= MOVED,
        good=f"predictions of a group of {group} images do not move with the pixels of another group"
        if group > 1
        else "predictions of an image do not move with another's pixels",
        bad=f"a prediction moves by {worst:.1g} of the logits' spread with another "
        + ("group's images" if group > 1 else "image"),
        remedy="mix nothing across the batch; or name the hyperparameter of its groups in MethodSpec.group",
    )


def _pixels_of(subject: MethodUnderTest, patch: int) -> tuple[slice, slice]:
    """Rows and columns of a patch's pixels."""
    side = subject.trunk.patch_size
    top, left = divmod(patch, subject.trunk.grid)
    return slice(top * side, (top + 1) * side), slice(left * side, (left + 1) * side)


LEAKS: tuple[Check[MethodUnderTest], ...] = (Check("own content", leaks),)
