"""Converted weights give timm the very features that their source gives; and what their cards say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from benchmark.checkpoint import save_weights
from benchmark.classification import evaluation_batches
from benchmark.convert import convert
from benchmark.convert_sizes import sizes_of
from benchmark.equal_compute import resolve_method
from leaderboard.record import read_record, write_record
from methods import build_method, list_methods, method_spec
from methods.trunk import build_trunk
from protocols import load_protocol
from tests.benchmark.conftest import Line
from tests.benchmark.made_classifiers import as_reference, timm_vit_tiny
from tests.convert.made_weights import (
    REFERENCES,
    embedded,
    golden,
    published,
    run_card,
    tokens_of,
    weights_of,
)

ATOL = 1e-5


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=ATOL)


# Published weights --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, VisionTransformer]:
    """What the cards of converted reference weights load, each with timm alone."""
    folder, loaded = tmp_path_factory.mktemp("published"), {}
    for name, (_, _, heads) in REFERENCES.items():
        source = published(folder / f"{name}.pth", name)
        done = convert(source, folder / f"{name}.safetensors", heads=heads)
        assert not any(
            key.startswith(("decoder", "mask", "lm_head", "teacher")) for key in load_file(done.out)
        )
        loaded[name] = run_card(done.card)["model"]
    return loaded


def test_mapets_tokens_are_the_references_own(models: dict[str, VisionTransformer]) -> None:
    data, model = golden("mapet_tiny"), models["mapet"]
    close(tokens_of(model, embedded(model, data["images"])), data["vit_tokens_before_norm"])


@torch.inference_mode()
def test_beits_logits_are_the_references_own(models: dict[str, VisionTransformer]) -> None:
    """Its mask token and head, which are no part of the trunk, are put around timm's model here."""
    data, model = golden("beit_pretrain_tiny_abspos"), models["beit"]
    own, is_masked = weights_of(data, "w."), data["in.mask"].bool()
    patches = model.patch_embed(data["in.images"])
    patches = torch.where(is_masked[..., None], own["mask_token"], patches)
    rows = model.norm(tokens_of(model, embedded(model, data["in.images"], patches)))[:, 1:]
    logits = rows @ own["lm_head.weight"].T + own["lm_head.bias"]
    close(logits[is_masked], data["out.logits_masked"])


@torch.inference_mode()
def test_caes_encoding_is_the_references_own(models: dict[str, VisionTransformer]) -> None:
    """Of the visible patches alone, as its encoder sees them."""
    data, model = golden("cae_tiny_projdim"), models["cae"]
    whole = embedded(model, data["in.images"])
    is_seen = torch.cat([torch.ones(len(whole), 1, dtype=torch.bool), ~data["in.mask"].bool()], dim=1)
    seen = whole[is_seen].reshape(len(whole), -1, whole.shape[-1])
    close(model.norm(tokens_of(model, seen)), data["s1.encoder_out_visible"])


def test_a_classifier_in_the_papers_format_loads_by_timms_name(tmp_path: Path) -> None:
    """ViT-T at 224 with separate q and kv, as arXiv 2306.07346's authors saved theirs; weights are random."""
    model = timm_vit_tiny()
    source = tmp_path / "vit_standard_tiny_patch16_224_KCLIP.tar"
    torch.save({"state_dict": as_reference(model.state_dict()), "epoch": 99}, source)
    done = convert(source, tmp_path / "vit-t.safetensors")
    card = done.card.read_text()
    assert 'timm.create_model("vit_tiny_patch16_224", init_values=0.1, num_classes=1000' in card
    for known in ("Not known:", done.facts.sha256, "reports\n75.5 % top-1", "No digest was published"):
        assert known in card
    names = run_card(done.card)
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        close(names["model"](images), model(images))
    assert names["logits"].shape == (1, 1000)


def test_every_width_of_an_mlp_is_the_one_that_timm_builds(tmp_path: Path) -> None:
    # 240 / 176 * 176 is a little less than 240 in floating point, and timm cuts it off.
    given = VisionTransformer(
        img_size=32, embed_dim=176, depth=1, num_heads=2, mlp_ratio=241 / 176, num_classes=0
    )
    wide = {
        name: torch.ones(tuple(240 if size == 241 else size for size in one.shape))
        for name, one in given.state_dict().items()
    }
    save_file(wide, tmp_path / "wide.safetensors")
    done = convert(tmp_path / "wide.safetensors", tmp_path / "out.safetensors", heads=2)
    run_card(done.card)


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_timms_names_fit_the_papers_trunks_strictly(size: str) -> None:
    """By shapes alone: the model that the card names has the very tensors, with a head and without."""
    spec = load_protocol("fair300").trunk_spec(f"vit-{size[0]}", drop_path=0.0)
    with torch.device("meta"):
        trunk = build_trunk(spec).state_dict()
    tuned = {name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: one
             for name, one in trunk.items()}  # fmt: skip
    tuned |= {"head.weight": torch.zeros(1000, spec.width), "head.bias": torch.zeros(1000)}
    for given in (trunk, tuned):
        sizes = sizes_of(Path("weights"), given)
        assert sizes.timm_name(spec.heads) == f"vit_{size}_patch16_224"
        with torch.device("meta"):
            model = timm.create_model(f"vit_{size}_patch16_224", weight_init="skip", **sizes.beside_sizes)
        assert {name: one.shape for name, one in model.state_dict().items()} == {
            name: one.shape for name, one in given.items()
        }


# The harness's own ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in list_methods() if method_spec(name).pretrains])
def test_every_method_leaves_its_trunk_as_it_was(name: str, tmp_path: Path) -> None:
    """A copied method.safetensors, beside which no record lies: its own parts go, the features stay."""
    protocol = load_protocol("mini")
    spec, resolved = resolve_method(protocol, name, "vit-mini", {}, protocol.pretraining)
    codes = 16 if method_spec(name).uses_tokens else 0
    method = build_method(name, trunk=spec, codebook_size=codes, seed=1, **resolved).eval()
    source = tmp_path / "method.safetensors"
    save_weights(source, method.state_dict())
    done = convert(source, tmp_path / "out.safetensors", heads=spec.heads)
    assert done.facts.form == "a method of this harness"
    side = spec.image_size
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    model = run_card(done.card)["model"]
    with torch.inference_mode():
        close(model.forward_features(images), method.trunk.forward_features(images))


def test_a_pretraining_cell(row: Line, tmp_path: Path) -> None:
    folder = row.context("pretrain").folder
    done = convert(folder, tmp_path / "mim.safetensors")
    trunk = build_trunk(row.context("pretrain").trunk(drop_path=0.0)).eval()
    trunk.load_state_dict(row.export)
    images = torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    names = run_card(done.card)
    with torch.inference_mode():
        close(names["model"](images), trunk(images))
    for file in ("backbone", "method"):
        again = convert(folder / "checkpoints" / f"{file}.safetensors", tmp_path / f"{file}.safetensors")
        assert {key: one.tolist() for key, one in load_file(again.out).items()} == {
            key: one.tolist() for key, one in load_file(done.out).items()
        }
    with safe_open(done.out, framework="pt") as file:
        facts = json.loads(file.metadata()["facts"])
    record = read_record(folder)
    assert record is not None
    assert facts["cell"]["id"] == record.cell_id
    assert facts["heads"] == 2
    assert facts["source"]["sha256"] == record.artefacts["checkpoints/backbone.safetensors"]
    # What was converted before says by itself how many heads it has.
    convert(done.out, tmp_path / "again.safetensors")
    assert (tmp_path / "again.md").read_text().count("2 attention heads\n(as its header says)") == 1


def test_the_classifier_of_a_finetuning_cell_predicts_as_recorded(row: Line, tmp_path: Path) -> None:
    """timm's model, loaded by the card's lines, gives the predictions that the cell kept, image by image."""
    done = convert(row.context("finetune").folder, tmp_path / "tuned.safetensors")
    model = run_card(done.card)["model"]
    images = row.context("finetune").images("test")
    recipe = row.protocol.evaluation("finetune", "vit-tiny-test")
    batches = evaluation_batches(images, recipe, row.protocol.data)  # type: ignore[arg-type]
    with torch.inference_mode():
        predicted = torch.cat([model(batch).argmax(dim=1) for batch in batches])
    assert np.array_equal(predicted.numpy(), row.predictions("finetune")["predicted"])


def test_the_card_says_what_the_records_say(row: Line, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first = convert(row.context("pretrain").folder, tmp_path / "one" / "mim.safetensors")
    second = convert(row.context("pretrain").folder, tmp_path / "two" / "mim.safetensors")
    assert first.out.read_bytes() == second.out.read_bytes()
    card = first.card.read_text()
    assert card == second.card.read_text()
    record = read_record(row.context("pretrain").folder)
    assert record is not None
    assert record.tokenizer is not None
    stated = [record.cell_id, record.git.commit, str(record.tokenizer.digest), record.data_set.digest,
              *record.protocol.slices.values(), "mask_count 8", "peak_lr 0.002", "Apache-2.0", "NOTICE",
              "--methods mim --tokenizers k-pixel --trunks vit-tiny-test --seeds 3"]  # fmt: skip
    for one in stated:
        assert one in card
    for name in ("finetune", "linear-probe"):
        measured = read_record(row.context(name).folder)
        assert measured is not None
        value = measured.metrics["top1_percent"].value
        assert f"| these weights | {name} | 3 | top1_percent | {value:.2f} % | 203 | clean |" in card
    tuned = convert(row.context("finetune").folder, tmp_path / "tuned.safetensors").card.read_text()
    assert "| these weights | finetune |" in tuned
    assert "| their pre-training | linear-probe |" in tuned


def test_a_record_of_a_stranger_begins_no_line_of_the_card(row: Line, tmp_path: Path) -> None:
    """Nor does a file's name end the string that it stands in."""
    folder = row.context("pretrain").folder
    record = read_record(folder)
    assert record is not None
    environment = {**record.environment, "timm": "1\n```python\nimport os\n```\x1b[2J"}
    write_record(folder, record.model_copy(update={"environment": environment}))
    try:
        card = convert(folder, tmp_path / 'a"b.safetensors').card
    finally:
        write_record(folder, record)
    assert "\x1b" not in card.read_text()
    assert card.read_text().count("\n```python\n") == 1
    assert run_card(card)["features"].shape == (1, 16)


def test_measurements_of_an_earlier_pretraining_are_not_on_the_card(row: Line, tmp_path: Path) -> None:
    """A record that names other files of its parent was measured on other weights."""
    folder = row.context("linear-probe").folder
    record = read_record(folder)
    assert record is not None
    parents = dict.fromkeys(record.parents, "0" * 64)
    write_record(folder, record.model_copy(update={"parents": parents}))
    try:
        card = convert(row.context("pretrain").folder, tmp_path / "mim.safetensors").card.read_text()
    finally:
        write_record(folder, record)
    assert "| these weights | finetune |" in card
    assert "linear-probe |" not in card


def test_nor_on_a_classifiers_card_those_of_a_pretraining_that_came_later(row: Line, tmp_path: Path) -> None:
    folder = row.context("finetune").folder
    record = read_record(folder)
    assert record is not None
    write_record(folder, record.model_copy(update={"parents": dict.fromkeys(record.parents, "0" * 64)}))
    try:
        card = convert(folder, tmp_path / "tuned.safetensors").card.read_text()
    finally:
        write_record(folder, record)
    assert "| these weights | finetune |" in card
    assert "| their pre-training |" not in card
