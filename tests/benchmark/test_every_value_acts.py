"""Every value of a protocol acts: change it, and something changes in the objects that run.

Each value of two test protocols, which between them set every field that a released protocol sets, is
changed in turn. The stages that it belongs to are run up to and after their training, the training
itself left out, and what they would train with is compared with the unchanged protocol's. What each
value does exactly is for the other tests of the recipe; here none may be without effect.
"""

from __future__ import annotations

import hashlib
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmark import finetune, knn, pretrain, probe, token_classification, tokenise
from benchmark.engine import Training, TrainingResult
from benchmark.layout import cell_folder
from benchmark.plan import Cell, make_plan, select
from benchmark.record_cell import write_cell_record
from benchmark.runtime import Runtime
from benchmark.stage import CellContext
from benchmark.survey import present_sources
from leaderboard.record import PREDICTIONS_NAME, read_record
from methods import list_methods
from protocols import list_protocols, load_protocol
from protocols.errors import HarnessError
from protocols.load import value_at
from protocols.schema import Protocol
from tokenizers import list_tokenizers

FOLDER = Path(__file__).parent.parent
TINY, FULL = str(FOLDER / "tiny.yaml"), str(FOLDER / "full.yaml")
STAGES = {
    "tokenise": tokenise.run,
    "pretrain": pretrain.run,
    "finetune": finetune.run,
    "linear-probe": probe.run,
    "knn": knn.run,
    "token-classification": token_classification.run,
}
# Only one value is allowed: there is nothing to change. (The other classifier of tokens has other fields,
# which --set cannot add: tests/benchmark/test_token_classification.py builds both.)
SINGLE = {"optimizer", "schedule", "kind", "classifier"}
# Other values where doubling and halving give none that is allowed, or none that shows on so little data.
OTHERS: dict[str, tuple[str, ...]] = {
    "interpolation": ("bilinear",),
    "erasing_mode": ("const",),
    "erasing_probability": ("1.0",),
    "rand_augment": ("rand-m3-mstd0.5", "rand-m9-mstd2.0"),
    "features": ("patch-mean", "class-token"),
    "evaluated_part": ("validation",),
    "mixup_probability": ("0.0",),
    "mixup_switch_probability": ("0.0", "1.0"),
    "mixup_group": ("4", "16"),
    "clip_grad_norm": ("7.0",),
    "layer_decay": ("0.5",),
    "drop_path": ("0.7",),
    "label_smoothing": ("0.3",),
    "horizontal_flip": ("0.0", "1.0"),
    "name": ("another-set",),
    "transfer_set": ("nearby",),
    "warmup_epochs": ("1", "0.5"),
    # Bounds of `labelled_images`: one that is too low is refused.
    "data.training.count": ("100",),
    "transfer_sets.elsewhere.training.count": ("50",),
    "restarts": ("30",),
    "whiten": ("true", "false"),
    "heads": ("4",),
    "data.pretraining.split": ("test data.pretraining.start=1000",),
    "data.training.split": ("test data.training.start=1000",),
    "data.validation.split": ("test data.validation.start=1000",),
    "data.test.split": ("train data.test.start=1000",),
    "data.pretraining.start": ("400",),
    "data.training.start": ("400",),
    "split": ("test", "train"),
    "trunk": ("vit-other-test",),
    "classifier": ("mlp", "vit"),
}
# What must hold for a value to matter at all, with and without the change.
GIVEN = {
    "tiny:data.validation": ("evaluations.finetune.evaluated_part=validation",),
    "full:data.validation": ("evaluations.finetune.evaluated_part=validation",),
    # A rate to warm up from needs a warm-up, and whitening needs features that stay.
    "tiny:evaluations.linear-probe.warmup_lr": ("evaluations.linear-probe.warmup_epochs=1",),
    "full:evaluations.linear-probe.warmup_lr": ("evaluations.linear-probe.warmup_epochs=1",),
    "full:evaluations.linear-probe.whiten": tuple(
        f"evaluations.linear-probe.{field}=null"
        for field in (
            "horizontal_flip", "resized_crop_scale", "resized_crop_ratio", "interpolation",
            "evaluation_crop_fraction",
        )
    ),
}  # fmt: skip


OBSERVED: dict[tuple[Path, str, str], dict[str, Any]] = {}
SOURCES = present_sources()


def capture(training: Training, runtime: Runtime, *, into: dict[str, Any]) -> TrainingResult:
    """Note all that a training is made of; train nothing."""
    torch.manual_seed(0)
    names = {id(parameter): name for name, parameter in training.model.named_parameters()}
    steps = training.data.steps
    into["clip"], into["seed"] = training.clip_grad_norm, training.seed
    into["steps"] = (steps.total, steps.per_epoch, steps.global_batch)
    into["groups"] = [
        (
            sorted(names[id(parameter)] for parameter in group["params"]),
            group["weight_decay"], tuple(group["betas"]), group["eps"], group.get("lr_scale"),
        )
        for group in training.optimizer.param_groups
    ]  # fmt: skip
    into["weights"] = {name: digest(value) for name, value in training.model.state_dict().items()}
    into["rates"] = []
    for step in range(steps.total):
        training.schedule.step_update(step)
        into["rates"].append([group["lr"] for group in training.optimizer.param_groups])
    training.model.train()
    for step in sorted({0, steps.total - 1}):
        batch = training.data[step]
        into[f"batch {step}"] = {name: digest(value) for name, value in batch.items()}
        torch.manual_seed(step)
        with torch.no_grad():
            into[f"loss {step}"] = float(training.model.loss(batch))  # type: ignore[operator]
    training.model.eval()
    return TrainingResult(loss=0.0, loss_images=1, seconds=0.0, images_seen=0)


def digest(value: Tensor) -> str:
    return hashlib.sha256(np.ascontiguousarray(value.detach().numpy()).tobytes()).hexdigest()


def observe(cell: Cell, protocol: Protocol, plan: dict[str, Cell], work_dir: Path) -> dict[str, Any]:
    """What the cell's stage would train with, and what it gives back; parents are made where missing.

    A cell is run once in one work dir: its id says all that moves it.
    """
    known = OBSERVED.setdefault((work_dir, protocol.name, cell.id), {})
    if not known:
        known |= _observe(cell, protocol, plan, work_dir)
    return known


def _observe(cell: Cell, protocol: Protocol, plan: dict[str, Cell], work_dir: Path) -> dict[str, Any]:
    for parent in cell.parents:
        if read_record(cell_folder(work_dir, protocol.name, parent)) is None:
            observe(plan[parent], protocol, plan, work_dir)
    runtime = Runtime(device="cpu", jobs=1, threads=1)
    context = CellContext(cell=cell, protocol=protocol, runtime=runtime, work_dir=work_dir, sources=SOURCES)
    seen: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmark.recipe.train", partial(capture, into=seen))
        result = STAGES[cell.stage](context)
    write_cell_record(cell, protocol, runtime, work_dir, status="done", result=result, sources=SOURCES)
    if cell.stage != "pretrain":  # whose artefacts are the weights seen already
        seen["artefacts"] = result.artefacts if cell.stage == "tokenise" else predictions(context)
        seen["metrics"] = {
            name: metric.value for name, metric in result.metrics.items() if metric.unit != "images/s"
        }
    seen["images"] = result.data.digest
    return seen


def predictions(context: CellContext) -> dict[str, Any]:
    with np.load(context.folder / PREDICTIONS_NAME, allow_pickle=False) as archive:
        return {name: archive[name].tolist() for name in archive}


def cells_of(protocol: Protocol, path: str) -> tuple[list[Cell], dict[str, Cell]]:
    """The cells in which the value at `path` must show, and the whole plan."""
    kind, name, *_ = path.split(".")
    method = name if kind == "methods" else "mim"
    evaluations = protocol.names("evaluations")
    plan = make_plan(protocol, select(protocol, methods=[method], evaluations=evaluations, seeds=[0]))
    by_id = {cell.id: cell for cell in plan}
    if kind == "evaluations":
        chosen = [cell for cell in plan if cell.evaluation == name]
    elif kind == "transfer_sets":
        chosen = [cell for cell in plan if cell.evaluation == "transfer"]
    elif kind == "data":
        chosen = plan
    else:
        stage = {"tokenizers": "tokenise", "trunks": "pretrain"}.get(kind, "pretrain")
        chosen = [cell for cell in plan if cell.stage == stage]
    return chosen, by_id


@cache
def seen_under(file: str, path: str, overrides: tuple[str, ...], work_dir: Path) -> list[dict[str, Any]]:
    """What is observed of all cells in which the value at `path` must show; a refusal counts as seen."""
    try:
        protocol = load_protocol(file, overrides=overrides)
        chosen, plan = cells_of(protocol, path)
        return [observe(cell, protocol, plan, work_dir) for cell in chosen]
    except (HarnessError, ValueError) as refusal:
        return [{"refused": str(refusal)}]


def changes(file: str, path: str, given: tuple[str, ...]) -> list[list[tuple[str, ...]]]:
    """Overrides that change the value at `path`: of each list at least one must show. A pair has one
    list for each of its parts."""
    value = value_at(load_protocol(file), path)
    field = path if path in OTHERS else path.rpartition(".")[2]
    if field in OTHERS:
        groups = [[text for text in OTHERS[field] if text != str(value).lower()]]
    elif isinstance(value, tuple):
        groups = [
            [str([*value[:at], value[at] * factor, *value[at + 1 :]]) for factor in (0.5, 0.9)]
            for at in range(len(value))
        ]
    elif isinstance(value, str):
        groups = [["another"]]
    elif isinstance(value, float) or value is None:
        groups = [[repr(value * 0.5), repr(value * 2)] if value else ["1e-4"]]
    else:
        groups = [[str(each) for each in (value * 2, value // 2, value + 1, value - 1)]]
    return [
        [allowed for text in texts if (allowed := _overrides(file, path, text, given)) is not None]
        for texts in groups
    ]


def _overrides(file: str, path: str, text: str, given: tuple[str, ...]) -> tuple[str, ...] | None:
    """The change as overrides; None if the schema does not allow it."""
    first, *along = text.split(" ") if text[0] != "[" else [text]
    overrides = (*given, f"{path}={first}", *along)
    try:
        load_protocol(file, overrides=overrides)
    except HarnessError:
        return None
    return overrides


# Of the second protocol what the first does not set already.
OF_FULL = (
    "evaluations.finetune.", "evaluations.linear-probe.", "evaluations.token-mlp.", "evaluations.token-vit.",
    "evaluations.knn.",
    "evaluations.transfer.features",
    "evaluations.transfer.transfer_set", "transfer_sets.elsewhere.", "methods.cae.decoder_",
)  # fmt: skip
LEAVES = [(TINY, path) for path in load_protocol(TINY).sources]
LEAVES += [(FULL, path) for path in load_protocol(FULL).sources if path.startswith(OF_FULL)]


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("acts")


@pytest.mark.parametrize(("file", "path"), LEAVES, ids=[f"{Path(file).stem}:{path}" for file, path in LEAVES])
def test_a_changed_value_changes_what_runs(file: str, path: str, work_dir: Path) -> None:
    name = f"{Path(file).stem}:{path}"
    given = next((texts for prefix, texts in GIVEN.items() if name.startswith(prefix)), ())
    groups = changes(file, path, given)
    if path.rpartition(".")[2] in SINGLE:
        assert not any(groups), "there is another value: try it"
        return
    before = seen_under(file, path, given, work_dir)
    assert all("refused" not in seen for seen in before)
    for alternatives in groups:
        assert alternatives, "no other value is allowed"
        shown: list[bool | None] = []
        while True not in shown and len(shown) < len(alternatives):
            shown.append(is_shown(file, path, alternatives[len(shown)], before, work_dir))
        # A stage that refuses the value has looked at it; one that runs with it must show it.
        assert True in shown or set(shown) == {None}


def is_shown(
    file: str, path: str, overrides: tuple[str, ...], before: list[dict[str, Any]], work_dir: Path
) -> bool | None:
    """Whether a cell is seen to differ from `before`, up to the first that does; None for a refusal."""
    try:
        protocol = load_protocol(file, overrides=overrides)
        chosen, plan = cells_of(protocol, path)
        if len(chosen) != len(before):
            return True
        pairs = zip(chosen, before, strict=True)
        return any(observe(cell, protocol, plan, work_dir) != seen for cell, seen in pairs)
    except (HarnessError, ValueError):
        return None


def test_what_is_observed_is_the_same_twice(work_dir: Path, tmp_path: Path) -> None:
    """Or every comparison above would find a difference."""
    for file in (TINY, FULL):
        protocol = load_protocol(file)
        chosen, plan = cells_of(protocol, "data.name")
        first, second = ([observe(cell, protocol, plan, folder) for cell in chosen]
                         for folder in (work_dir, tmp_path))  # fmt: skip
        assert first == second


def test_the_two_protocols_set_all_that_released_ones_set() -> None:
    """But for what this version cannot run: tokenizers without an adapter."""
    covered = {field_of(load_protocol(file), path) for file, path in LEAVES}
    released = [load_protocol(name) for name in list_protocols()]
    wanted = {field_of(protocol, path) for protocol in released for path in protocol.sources} - {None}
    # Further methods' hyperparameters are tried one by one in tests/methods/test_conformance.py.
    further = set(list_methods()) - set(load_protocol("mini").defaults.methods)
    # The supervised teacher's tokenizer needs its network; its own test is below. Those with published
    # weights need a file of them: test_published_files.py and test_kclip.py try their values.
    apart = {("tokenizers", name) for name in ("k-feature", "k-clip", "vq-kd", "dall-e")}
    apart |= {("methods", name) for name in further}
    assert {field for field in wanted - covered if field and field[:2] not in apart} == set()


def field_of(protocol: Protocol, path: str) -> tuple[str, ...] | None:
    """What of a path its code depends on: an evaluation's kind, an adapter's name, the field. None for
    what this version cannot run."""
    kind, *names = path.split(".")
    if kind == "evaluations":
        recipe = protocol.evaluation(names[0], protocol.defaults.trunks[0])
        return (kind, recipe.kind, names[1])
    if kind == "tokenizers" and names[0] not in list_tokenizers():
        return None
    if kind in ("trunks", "transfer_sets"):
        return (kind, *names[1:])
    return (kind, *names[:2])


@pytest.mark.parametrize(
    "change",
    [
        "model=resnet18", "image_size=224", "codebook_size=16", "iterations=1", "restarts=9",
        "max_points_per_centroid=2", "seed=7",
    ],
)  # fmt: skip
def test_a_changed_value_of_the_teachers_tokenizer_changes_its_tokens(change: str, work_dir: Path) -> None:
    few = ("data.pretraining.count=4", "tokenizers.k-feature.codebook_size=8")
    fixed = (*few, "tokenizers.k-feature.iterations=4")
    assert seen_tokens((*fixed, f"tokenizers.k-feature.{change}"), work_dir) != seen_tokens(fixed, work_dir)


@cache
def seen_tokens(overrides: tuple[str, ...], work_dir: Path) -> dict[str, Any]:
    protocol = load_protocol("mini", overrides=overrides)
    plan = make_plan(protocol, select(protocol, methods=["mim"], tokenizers=["k-feature"]))
    try:
        return observe(plan[0], protocol, {}, work_dir)
    except HarnessError as refusal:
        return {"refused": str(refusal)}
