"""What is refused before anything runs: damaged data, no disk, no tokenizer, recipes without a batch."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchmark.data import open_part
from benchmark.data_check import manifest_path
from benchmark.data_listing import list_class_folders
from benchmark.data_manifest import write_manifest
from benchmark.disk import disk_need
from benchmark.layout import cell_folder
from benchmark.placement import DoesNotFit, place_among_others
from benchmark.plan import Cell, make_plan, select
from benchmark.preflight import PreflightReport, preflight
from benchmark.runtime import Runtime
from benchmark.step_costs import StepCosts
from benchmark.survey import survey
from protocols import load_protocol, lock
from protocols.errors import HarnessError, ProtocolViolation
from protocols.schema import Part, Protocol
from tests.benchmark.made_costs import costs_of, step_cost

FULL = str(Path(__file__).parent.parent / "full.yaml")
CLASSES = ("n01440764", "n01443537", "n02119789", "n02123045")
SPLITS = {"train": ("train", 6), "test": ("val", 2)}  # its folder, and images of each class
MINIATURE = (
    "data.pretraining.count=24",
    "data.training.count=24",
    "data.test.count=8",
    "pretraining.global_batch=16",
    "evaluations.finetune.global_batch=16",
    "evaluations.finetune.mixup_group=4",
    "evaluations.finetune.labelled_images=24",
)
CPU = Runtime(device="cpu", jobs=2, threads=1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a miniature ImageNet, its manifest, and a tokenizer's file that is not looked into."""
    root = tmp_path_factory.mktemp("whole")
    folder = root / "imagenet-1k"
    rng = np.random.default_rng(0)
    for name, count in SPLITS.values():
        for class_name in CLASSES:
            (folder / name / class_name).mkdir(parents=True)
            for number in range(count):
                stream = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (9, 8, 3), dtype=np.uint8)).save(stream, "JPEG")
                (folder / name / class_name / f"{class_name}_{number}.JPEG").write_bytes(stream.getvalue())
    write_manifest_of(root)
    return root


def write_manifest_of(root: Path) -> None:
    listings = [
        list_class_folders(root / "imagenet-1k", split=split, name=name)
        for split, (name, _) in SPLITS.items()
    ]
    entries = [entry for listing in listings for entry in listing.entries()]
    write_manifest(manifest_path("imagenet-1k", root), "imagenet-1k", entries)


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "data"))


@pytest.fixture(scope="module")
def miniature() -> Protocol:
    return load_protocol("fair300", overrides=MINIATURE)


def check(
    protocol: Protocol,
    root: Path | None,
    *,
    runtime: Runtime = CPU,
    methods: Sequence[str] = ("scratch",),
    evaluations: Sequence[str] = ("finetune",),
    work_dir: Path | None = None,
    **options: object,
) -> PreflightReport:
    """Preflight of a few cells of one trunk."""
    chosen = select(protocol, methods=methods, trunks=["vit-t"], evaluations=evaluations, views=["none"])
    plan = make_plan(protocol, chosen)
    work_dir = work_dir or Path("no-such-runs")
    states = survey(plan, protocol, work_dir, data_root=root)
    return preflight(plan, protocol, runtime, work_dir, states, root, **options)  # type: ignore[arg-type]


def files_under(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_whole_miniature_passes_and_is_told(whole: Path, miniature: Protocol) -> None:
    report = check(miniature, whole)
    part = open_part("imagenet-1k", "training", Part(split="train", count=24), data_root=whole)
    data, disk, header, _, steps = report.lines()
    assert data.startswith("data imagenet-1k: training 24 images of 4 classes")
    assert f"digest {part.digest[:12]}" in data
    assert data.endswith(f"sizes of all files as in {manifest_path('imagenet-1k', whole)}")
    assert "needed" in disk
    rate = miniature.evaluation("finetune", "vit-t").peak_lr
    assert header.split("  ") == ["batch", "= processes", "x steps", "x images", "peak lr", "stage"]
    assert steps.split() == ["16", "1", "1", "16", f"{rate:g}", "finetune", "vit-t"]


def test_everything_that_is_wrong_is_named_in_one_go(
    root: Path, miniature: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = root / "imagenet-1k"
    shutil.rmtree(folder / "train" / CLASSES[1])
    cut = folder / "train" / CLASSES[2] / f"{CLASSES[2]}_3.JPEG"
    size = cut.stat().st_size
    cut.write_bytes(cut.read_bytes()[:100])
    (folder / "val" / CLASSES[0] / "holiday.jpg").write_bytes(b"x")
    (folder / "val" / CLASSES[3] / f"{CLASSES[3]}_1.JPEG").write_bytes(b"")
    (folder / "val" / CLASSES[3] / "notes.txt").write_bytes(b"x")
    monkeypatch.setattr(
        os, "statvfs", lambda path: SimpleNamespace(f_bavail=3, f_frsize=1_000_000, f_blocks=9)
    )
    before = files_under(root)
    work_dir = tmp_path / "runs"
    with pytest.raises(HarnessError) as caught:
        check(
            miniature,
            root,
            methods=("mim", "mapet"),
            work_dir=work_dir,
            runtime=CPU.model_copy(update={"accumulation": 3}),
        )
    text = str(caught.value)
    assert caught.value.exit_code == 2
    assert text.startswith("protocol fair300 cannot run here; 11 things are missing or wrong:\n- ")
    for part in (
        f"1 class of the manifest missing: train/{CLASSES[1]} (6 images)",
        f"1 file not as long as the manifest says: train/{CLASSES[2]}/{cut.name} (100 of {size} bytes)",
        f"1 file not in the manifest: val/{CLASSES[0]}/holiday.jpg",
        f"test: 1 file is empty (0 bytes): val/{CLASSES[3]}/{CLASSES[3]}_1.JPEG",
        f"{folder}/val/{CLASSES[3]}/notes.txt",
        "train: 18 images in 3 classes; the first 24 are wanted",
        "tokenizer k-clip: no file",
        "tokenizer vq-kd: no file",
        "disk: the open cells need",
        "3.0 MB are free",
        "cannot give the protocol's global batch of 16",
        f"python run_benchmark.py data imagenet-1k --data-root {root} --write-manifest",
    ):
        assert part in text
    assert files_under(root) == before
    assert not work_dir.exists()


def test_without_a_manifest_sizes_are_not_compared_and_it_says_so(root: Path, miniature: Protocol) -> None:
    manifest_path("imagenet-1k", root).unlink()
    cut = root / "imagenet-1k" / "train" / CLASSES[0] / f"{CLASSES[0]}_0.JPEG"
    cut.write_bytes(cut.read_bytes()[:100])
    (line, *_) = check(miniature, root).lines()
    assert "file sizes were not compared" in line
    assert f"data imagenet-1k --data-root {root} --write-manifest" in line
    shutil.rmtree(root / "imagenet-1k" / "train" / CLASSES[2])
    cut.write_bytes(b"")
    with pytest.raises(HarnessError) as caught:
        check(miniature, root)
    assert f"train: no folder of 1 class that another split has: {CLASSES[2]}" in str(caught.value)
    assert f"train: 1 file is empty (0 bytes): train/{CLASSES[0]}/{cut.name}" in str(caught.value)


def test_the_whole_protocol_wants_the_published_counts(whole: Path) -> None:
    with pytest.raises(HarnessError) as caught:
        check(load_protocol("fair300"), whole)
    for images, split in (("24", "train"), ("8", "test")):
        assert f"data set imagenet-1k, {split}: {images} images in 4 classes" in str(caught.value)
    assert "the published data set has 1,281,167 in 1,000" in str(caught.value)
    assert "the published data set has 50,000 in 1,000" in str(caught.value)


def test_at_most_ten_names_are_listed(root: Path, miniature: Protocol) -> None:
    for class_name in CLASSES[:2]:
        for number in range(6):
            (root / "imagenet-1k" / "train" / class_name / f"extra_{number}.png").write_bytes(b"x")
    with pytest.raises(
        HarnessError, match=r"12 files not in the manifest: .*extra_3\.png and 2 more"
    ) as caught:
        check(miniature, root)
    assert f"{CLASSES[1]}/extra_4.png" not in str(caught.value)


def test_a_class_of_one_split_alone_is_found_where_only_the_other_is_read(
    root: Path, miniature: Protocol
) -> None:
    """Tokenising reads the training images; its reader asks for the same classes in both splits."""
    manifest_path("imagenet-1k", root).unlink()
    (root / "imagenet-1k" / "val" / "n09999999").mkdir()
    chosen = select(miniature, methods=["mim"], trunks=["vit-t"], tokenizers=["vq-kd"], views=["none"])
    plan = [cell for cell in make_plan(miniature, chosen) if cell.stage == "tokenise"]
    states = survey(plan, miniature, root / "runs", data_root=root)
    with pytest.raises(HarnessError, match=r"not of the same classes: 1 only in test \(n09999999\)"):
        preflight(plan, miniature, CPU, root / "runs", states, root)


@pytest.mark.parametrize("damage", ["cut", "another set's", "a split left out"])
def test_a_wrong_manifest_is_one_of_the_things(damage: str, root: Path, miniature: Protocol) -> None:
    path = manifest_path("imagenet-1k", root)
    listing = list_class_folders(root / "imagenet-1k", split="train", name="train")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif damage == "another set's":
        write_manifest(path, "food-101", listing.entries())
    else:
        write_manifest(path, "imagenet-1k", listing.entries())
    expected = {
        "cut": "is damaged",
        "another set's": "is that of data set food-101, not of imagenet-1k",
        "a split left out": "lists no images of test",
    }
    with pytest.raises(HarnessError, match="1 thing is missing or wrong") as caught:
        check(miniature, root)
    assert expected[damage] in str(caught.value)
    assert "--write-manifest" in str(caught.value)


def test_a_manifest_may_lie_elsewhere(root: Path, miniature: Protocol, tmp_path: Path) -> None:
    elsewhere = tmp_path / "mine.tsv.gz"
    manifest_path("imagenet-1k", root).rename(elsewhere)
    (line, *_) = check(miniature, root, manifest=[elsewhere]).lines()
    assert str(elsewhere) in line
    listing = list_class_folders(root / "imagenet-1k", split="train", name="train")
    write_manifest(elsewhere, "food-101", listing.entries())
    with pytest.raises(HarnessError, match="is that of data set food-101; what is to run reads imagenet-1k"):
        check(miniature, root, manifest=[elsewhere])
    with pytest.raises(HarnessError, match="no such file"):
        check(miniature, root, manifest=[tmp_path / "none.tsv.gz"])


def test_a_batch_that_cannot_be_split_is_a_violation_of_its_own() -> None:
    protocol = load_protocol(FULL)
    with pytest.raises(ProtocolViolation, match=r"3 steps .* cannot give the protocol's global batch of"):
        check_full(protocol, runtime=CPU.model_copy(update={"accumulation": 3}))


def check_full(protocol: Protocol, **options: object) -> PreflightReport:
    plan = make_plan(protocol, select(protocol, methods=["mim"], evaluations=["linear-probe", "transfer"]))
    runtime = options.pop("runtime", CPU)
    work_dir = Path("no-such-runs")
    states = survey(plan, protocol, work_dir)
    return preflight(plan, protocol, runtime, work_dir, states, None, **options)  # type: ignore[arg-type]


def test_embedded_sets_are_told_without_a_manifest() -> None:
    protocol = load_protocol(FULL)
    lines = check_full(protocol).lines()
    assert lines[0].startswith("data fashion-mnist-12k: pretraining 256 images of 10 classes")
    assert "elsewhere test 90 images" in lines[0]
    assert lines[0].endswith("comes with the repository")
    batch = str(protocol.pretraining.global_batch)
    (pretrain,) = [line.split() for line in lines if line.endswith("pretrain vit-tiny-test")]
    assert pretrain[:4] == [batch, "1", "1", batch]


def test_a_gpu_that_is_too_small_is_one_of_the_things() -> None:
    """As benchmark.placement says it; every other problem stands beside it."""

    def place(cell: object, costs: object) -> Runtime:
        raise DoesNotFit("GPU memory: pretrain needs 90.0 GB", "give GPUs with more memory")

    protocol = load_protocol(FULL, overrides=["evaluations.linear-probe.labelled_images=63"])
    with pytest.raises(HarnessError, match="2 things are missing or wrong") as caught:
        check_full(protocol, place=place)
    assert "- GPU memory: pretrain needs 90.0 GB\n  give GPUs with more memory" in str(caught.value)
    assert "63 images do not fill" in str(caught.value)


def test_methods_that_divide_a_batch_differently_are_named() -> None:
    def place(cell: object, costs: object) -> Runtime:
        is_hungry = getattr(cell, "method", None) == "beit"
        return CPU.model_copy(update={"processes": 2, "accumulation": 4 if is_hungry else 1})

    protocol = load_protocol(str(Path(FULL).with_name("tiny.yaml")))
    plan = make_plan(protocol, select(protocol, methods=["mim", "beit"], evaluations=["linear-probe"]))
    states = survey(plan, protocol, Path("no-such-runs"))
    report = preflight(plan, protocol, CPU, Path("no-such-runs"), states, None, place=place)
    batch, rate = protocol.pretraining.global_batch, f"{protocol.pretraining.peak_lr:g}"
    mim, beit = (line.split() for line in report.steps[2:4])
    assert mim == [str(batch), "2", "1", str(batch // 2), rate, "pretrain", "mim/vit-tiny-test"]
    assert beit == [str(batch), "2", "4", str(batch // 8), rate, "pretrain", "beit/vit-tiny-test"]


@pytest.mark.parametrize("wrong", ["labelled images", "a batch"])
def test_no_gpu_is_used_before_all_else_is_right(wrong: str) -> None:
    asked = ["evaluations.linear-probe.labelled_images=63"] if wrong == "labelled images" else []
    runtime = CPU.model_copy(update={"accumulation": 3 if wrong == "a batch" else 1})
    with pytest.raises(HarnessError, match=r"The GPUs' memory is tried .* when these are settled"):
        check_full(load_protocol(FULL, overrides=asked), runtime=runtime, measure=never)


def never() -> StepCosts:
    raise AssertionError("a step was measured")


def test_what_was_measured_places_the_cells_and_is_told() -> None:
    protocol = load_protocol("fair300")
    plan = make_plan(protocol, select(protocol, methods=["scratch"], trunks=["vit-b"]))
    costs = costs_of([step_cost(one, protocol, per_image=180_000_000) for one in plan])
    gpus = Runtime(device="cuda", jobs=8, threads=1, precision="bf16")

    def placed(cell: Cell, known: StepCosts | None) -> Runtime:
        return place_among_others(cell, protocol, gpus, costs=known, gpus=8)

    states = survey(plan, protocol, Path("no-such-runs"))
    present = [replace(one, missing=(), state="to do") for one in states]
    report = preflight(
        plan, protocol, gpus, Path("no-such-runs"), present, None, place=placed, measure=lambda: costs
    )
    assert report.costs is costs
    assert report.steps[0].split()[-2:] == ["memory", "stage"]
    # 256 images of 180 MB, 2 GB, and 0.5 GB of gradients to exchange.
    assert report.steps[2].split() == ["1024", "4", "1", "256", "0.0005", "48.6", "GB", "finetune", "vit-b"]
    assert report.memory.startswith("memory: 1 cell fits")
    crowded = gpus.model_copy(update={"jobs": 16})
    with pytest.raises(HarnessError, match="--jobs 16: some cells take several of the 8 GPUs"):
        place_among_others(plan[0], protocol, crowded, costs=costs, gpus=8)


def test_cells_that_share_a_gpu_share_its_memory() -> None:
    protocol = load_protocol("fair300")
    (cell,) = make_plan(protocol, select(protocol, methods=["scratch"], trunks=["vit-b"]))
    costs = costs_of([step_cost(cell, protocol, per_image=40_000_000)])  # 43 of 80 GB for all 1024 images
    for jobs, steps in ((1, 1), (2, 2), (4, 4)):
        gpu = Runtime(device="cuda", jobs=jobs, threads=1, precision="bf16")
        placed = place_among_others(cell, protocol, gpu, costs=costs, gpus=1)
        assert (placed.processes, placed.accumulation) == (1, steps)


def test_what_an_interrupted_cell_wrote_is_not_needed_again(tmp_path: Path) -> None:
    protocol = load_protocol(FULL)
    plan = make_plan(protocol, select(protocol, methods=["mim"], evaluations=["linear-probe"]))
    (pretrain, *_) = [one for one in plan if one.stage == "pretrain"]
    before = disk_need([pretrain], protocol, tmp_path, at_once=1)
    folder = cell_folder(tmp_path, protocol.name, pretrain.id) / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "step-000000008.pt").write_bytes(bytes(1000))
    assert before.needed - disk_need([pretrain], protocol, tmp_path, at_once=1).needed == 1000
    (folder / "step-000000016.pt").write_bytes(bytes(before.needed))
    assert disk_need([pretrain], protocol, tmp_path, at_once=1).needed == before.kept


def test_a_pack_that_was_asked_for_and_is_not_there(whole: Path, miniature: Protocol) -> None:
    packed = CPU.model_copy(update={"images": "packed"})
    with pytest.raises(HarnessError, match="--images packed: there is no whole pack") as caught:
        check(miniature, whole, methods=("mim",), runtime=packed)
    assert "python run_benchmark.py pack" in str(caught.value)
    with pytest.raises(HarnessError) as caught:
        check(miniature, whole, methods=("mim",))
    assert "pack" not in str(caught.value)


def test_a_launcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(HarnessError, match=r"2 processes \(WORLD_SIZE\).* without the launcher"):
        check_full(load_protocol(FULL))


def test_a_protocol_of_the_harness_must_be_locked_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that is gone would let its slice change unseen."""
    lines = lock.LOCK.read_text().splitlines(keepends=True)
    shorter = tmp_path / "digests.lock"
    shorter.write_text("".join(line for line in lines if not line.startswith("mini 1 pretraining ")))
    monkeypatch.setattr(lock, "LOCK", shorter)
    with pytest.raises(ProtocolViolation, match="has no line for pretraining of mini, version 1"):
        load_protocol("mini")
    load_protocol("fair300")


def test_a_transfer_sets_test_images_are_not_pretrained_on() -> None:
    leaked = ["transfer_sets.elsewhere.test.split=train", "transfer_sets.elsewhere.test.start=100"]
    with pytest.raises(HarnessError, match=r"elsewhere\.test.* overlap pretraining images"):
        load_protocol(FULL, overrides=leaked)


def test_recipes_that_fill_no_batch_are_refused() -> None:
    protocol = load_protocol(FULL, overrides=["evaluations.linear-probe.labelled_images=63"])
    with pytest.raises(HarnessError, match="63 images do not fill one global batch of 64"):
        check_full(protocol)
