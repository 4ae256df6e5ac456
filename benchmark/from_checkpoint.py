"""A file of weights -> the protocol's trunk with them, kept in the work dir, and the cells that evaluate it.

The file has to be that trunk exactly: patches, width, depth, MLP and the grid of position embeddings.
Nothing is interpolated. The head is left out, as every evaluation draws its own; and where the file has no
layer scale there is one of ones, which computes the same. Both stand in the record.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmark.checkpoint import save_weights
from benchmark.convert import ReadVit, check_whole, read_vit
from benchmark.convert_sizes import VitSizes
from benchmark.imported import Asked, Imports, Kept, clean_label
from benchmark.selection import Selection
from protocols.errors import HarnessError
from protocols.files import sha256_of_file, write_atomically
from protocols.recipes import FineTuning
from protocols.schema import Protocol, TrunkSpec

UNKNOWN_ORIGIN = (
    "pre-trained elsewhere: on which images, with which objective and recipe, and for how long, is not known"
)
_CHOICE = "convert it first, with convert FILE OUT.safetensors, and choose with --key"


@dataclass(frozen=True, kw_only=True)
class Import:
    """One file that fits one trunk of the protocol, and that trunk's tensors, or all but its last norm."""

    label: str
    trunk: str
    read: ReadVit
    tensors: dict[str, Tensor]
    deviations: tuple[str, ...]

    def asked(self, evaluations: Iterable[str], seeds: Iterable[int]) -> list[Asked]:
        """All that is to be measured of it."""
        sha256 = self.read.sha256
        return [
            Asked(label=self.label, sha256=sha256, trunk=self.trunk, evaluation=evaluation, seed=seed)
            for evaluation in evaluations
            for seed in seeds
        ]


def read_import(
    path: Path, *, label: str | None, protocol: Protocol, trunks: Sequence[str], evaluations: Sequence[str]
) -> Import:
    """The weights in `path` as one of the protocol's `trunks`, for `evaluations`.

    Raises HarnessError, naming what differs, for a file that cannot be read or is none of these trunks.
    """
    read = read_vit(path, choice=_CHOICE)
    trunk = _trunk_of(read, protocol, trunks)
    spec = protocol.trunk_spec(trunk, drop_path=0.0)
    check_whole(read, spec.heads)
    _check_norm(read, protocol, trunk, evaluations)
    tensors, changes = _as_trunk(read, spec)
    if read.heads is None:
        changes.append(f"taken to have {spec.heads} attention heads, as {trunk} has: no shape tells")
    name = path.resolve().name if path.is_dir() else path.stem
    origin = UNKNOWN_ORIGIN
    if read.record is not None:
        origin = f"trained by cell {read.record.cell_id} of protocol {read.record.protocol.name}"
    return Import(
        label=clean_label(name if label is None else label),
        trunk=trunk,
        read=read,
        tensors=tensors,
        deviations=(
            f"weights of {read.path.name} (SHA-256 {read.sha256})",
            origin,
            *read.changes,
            *changes,
        ),
    )


def evaluations_of(protocol: Protocol, selection: Selection) -> tuple[str, ...]:
    """The selection's evaluations of trunks. HarnessError if it names those of tokens alone."""
    of_rows = tuple(name for name in selection.evaluations if name not in protocol.token_evaluations)
    dropped = [name for name in selection.evaluations if name not in of_rows]
    is_everything = set(selection.evaluations) == set(protocol.names("evaluations"))
    if dropped and not is_everything:
        raise HarnessError(
            f"--evaluations {' '.join(dropped)}: taken of tokens alone, which no checkpoint has; leave it out"
        )
    return of_rows


def keep_import(one: Import, imports: Imports) -> None:
    """Put the weights and what is known of them into the work dir, unless they are there."""
    path, sha256 = imports.weights(one.read.sha256, one.trunk), one.read.sha256
    kept = imports.kept(sha256, one.trunk)
    if kept is not None and path.is_file() and sha256_of_file(path) == kept.weights_sha256:
        return
    facts = Kept(
        file=one.read.path.name,
        sha256=sha256,
        key=one.read.key,
        form=one.read.form,
        weights_sha256=save_weights(path, one.tensors),
        deviations=one.deviations,
    )
    text = json.dumps(facts.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False)
    write_atomically(imports.facts(sha256, one.trunk), text + "\n")


def _trunk_of(read: ReadVit, protocol: Protocol, trunks: Sequence[str]) -> str:
    """Which of `trunks` the file is."""
    specs = {name: protocol.trunk_spec(name, drop_path=0.0) for name in trunks}
    fitting = [name for name, spec in specs.items() if not _differences(read.sizes, spec)]
    if not fitting:
        name = min(specs, key=lambda one: len(_differences(read.sizes, specs[one])))
        raise HarnessError(
            f"{read.path}: is no trunk {' or '.join(specs)} of protocol {protocol.name}; next to {name} it"
            f" has {'; '.join(_differences(read.sizes, specs[name]))}; nothing is interpolated or resized: "
            "give weights of these sizes, or a protocol that has theirs (see fork)"
        )
    if read.heads is not None:
        same = [name for name in fitting if specs[name].heads == read.heads]
        if not same:
            raise HarnessError(
                f"{read.path}: has {read.heads} attention heads ({read.heads_by}), and {fitting[0]} of "
                f"protocol {protocol.name} has {specs[fitting[0]].heads}; give weights of that trunk"
            )
        fitting = same
    if len(fitting) > 1:
        raise HarnessError(
            f"{read.path}: has the sizes of {' and of '.join(fitting)}, which differ in what no shape tells; "
            "name one with --trunks"
        )
    return fitting[0]


def _differences(found: VitSizes, spec: TrunkSpec) -> list[str]:
    """What of the file's sizes is not the trunk's, for people; the grid of positions by its own name."""
    pairs = {
        "patches of": (found.patch_size, spec.patch_size),
        "width": (found.width, spec.width),
        "blocks": (found.depth, spec.depth),
        "MLP width": (found.hidden, int(spec.width * spec.mlp_ratio)),
    }
    said = [f"{name} {its}, not {own}" for name, (its, own) in pairs.items() if its != own]
    grid = found.image_size // found.patch_size
    if grid != spec.grid:
        said.append(
            f"position embeddings (pos_embed) of a {grid} x {grid} grid, not {spec.grid} x {spec.grid} "
            f"(images of {spec.image_size})"
        )
    return said


def _check_norm(read: ReadVit, protocol: Protocol, trunk: str, evaluations: Sequence[str]) -> None:
    """Probes and neighbours look through the norm that ends pre-training: HarnessError without it."""
    probes = [name for name in evaluations if not isinstance(protocol.evaluation(name, trunk), FineTuning)]
    if read.sizes.pooling != "avg" or not probes:
        return
    tuned = [name for name in evaluations if name not in probes]
    instead = f"evaluate it with --evaluations {' '.join(tuned)}, or " if tuned else ""
    raise HarnessError(
        f"{read.path}: is a fine-tuned classifier, whose norm (fc_norm) comes after its pooling; "
        f"{', '.join(probes)} look at tokens behind a norm of their own, which it has not; {instead}measure "
        "it as it is with validate"
    )


def _as_trunk(read: ReadVit, spec: TrunkSpec) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of the protocol's trunk, in float32, and what was done for that."""
    left_out = [name for name in read.tensors if name.startswith(("head.", "fc_norm."))]
    tensors = {name: one.float() for name, one in read.tensors.items() if name not in left_out}
    changes = []
    if left_out:
        changes.append(f"left out, as evaluations draw their own: {', '.join(sorted(left_out))}")
    if not read.sizes.has_layer_scale:
        for index in range(spec.depth):
            for name in ("ls1", "ls2"):
                tensors[f"blocks.{index}.{name}.gamma"] = torch.ones(spec.width)
        changes.append("has no layer scale: ones in its place, which compute the same")
    stored = sorted({str(one.dtype).removeprefix("torch.") for one in read.tensors.values()} - {"float32"})
    if stored:
        changes.append(f"stored in {', '.join(stored)}, computed in float32")
    return tensors, changes
