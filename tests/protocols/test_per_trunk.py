"""Values that differ between trunks: NAME@TRUNK in the slices, NAME.FIELD.TRUNK in the file."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from protocols import load_protocol
from protocols.errors import HarnessError
from protocols.load import value_at

Written = Callable[..., Path]

VIT_B = '      vit-b: {value: 100, source: "Table 8"}\n'
FINETUNE_DROP = '    label_smoothing: {value: 0.1, source: "Table 8"}\n    drop_path: {value: 0.1'


def refused(path: Path) -> list[str]:
    with pytest.raises(HarnessError) as caught:
        load_protocol(str(path), locked=False)
    return str(caught.value).splitlines()


def line_of(path: Path, text: str, nth: int = 0) -> int:
    return [number for number, line in enumerate(path.read_text().splitlines(), 1) if text in line][nth]


def test_recipes_and_hyperparameters_are_asked_for_by_trunk() -> None:
    protocol = load_protocol("fair300")
    assert [protocol.evaluation("finetune", trunk).epochs for trunk in protocol.trunks] == [300, 200, 100]
    assert protocol.evaluation("linear-probe", "vit-s") is protocol.evaluation("linear-probe", "vit-b")
    assert protocol.evaluation_key("finetune", "vit-s") == "finetune@vit-s"
    assert protocol.evaluation_key("linear-probe", "vit-s") == "linear-probe"
    assert protocol.method_key("pim", "vit-b") == "pim@vit-b"
    assert protocol.method_key("mim", "vit-b") == "mim"
    assert protocol.names("methods")[:6] == ("scratch", "mim", "pim", "mapet", "beit", "cae")
    assert "finetune" in protocol.names("evaluations")
    with pytest.raises(HarnessError, match="unknown evaluation of protocol fair300 'finetune'"):
        protocol.evaluation("finetune", "vit-l")


def test_a_missing_or_unknown_trunk_is_named(written: Written) -> None:
    path = written("fair300", (VIT_B, ""))
    number = line_of(path, "    epochs:\n".rstrip())
    assert refused(path) == [
        f"other.yaml:{number}: evaluations.finetune.epochs: has values for vit-t, vit-s; "
        "give one value, or one for each trunk: vit-t, vit-s, vit-b"
    ]
    path = written("fair300", (VIT_B, VIT_B + VIT_B.replace("vit-b", "vit-l")))
    assert refused(path) == [
        f"other.yaml:{number}: evaluations.finetune.epochs: has values for vit-t, vit-s, vit-b, vit-l; "
        "give one value, or one for each trunk: vit-t, vit-s, vit-b"
    ]
    assert "has values for no trunk" in refused(written("mini", ('{value: 25, source: "as pim"}', "{}")))[0]


def test_the_order_of_trunks_is_free(written: Written) -> None:
    path = written("fair300", (VIT_B, ""), ("    epochs:\n", f"    epochs:\n{VIT_B}"))
    assert load_protocol(str(path)).slices == load_protocol("fair300").slices


def test_each_trunks_value_needs_its_own_source(written: Written) -> None:
    path = written("fair300", (VIT_B, "      vit-b: 100\n"))
    assert refused(path)[0].startswith(
        f"other.yaml:{line_of(path, 'vit-b: 100')}: evaluations.finetune.epochs.vit-b: a bare"
    )


def test_pretraining_is_one_recipe_for_all_trunks(written: Written) -> None:
    each = "{vit-t: {value: 1, source: a}, vit-s: {value: 2, source: b}, vit-b: {value: 3, source: c}}"
    for old, path_of_value in (
        ('{value: 0.4, source: "Table 7; section 5.1 and', "pretraining.color_jitter"),
        ('{value: 8192, source: "reference configuration (num_tokens)"}', "tokenizers.k-clip.codebook_size"),
    ):
        path = written("fair300", (old, f"{each} #" if "Table" in old else each))
        assert refused(path) == [
            f"other.yaml:{line_of(path, each)}: {path_of_value}: "
            "one value serves all trunks; only fields of methods and evaluations may differ"
        ]


def test_a_wrong_value_of_one_trunk_is_told_once_with_its_line(written: Written) -> None:
    path = written("fair300", (VIT_B, VIT_B.replace("100", "many")))
    assert refused(path) == [
        f"other.yaml:{line_of(path, 'many')}: evaluations.finetune.epochs.vit-b: "
        "must be a whole number, got 'many'"
    ]


def test_a_wrong_value_that_trunks_share_is_told_once(written: Written) -> None:
    path = written(
        "fair300",
        ("    warmup_epochs: {value: 20,", "    warmup_epochs: {value: -20,"),
        ("    mask_count: {value: 98,", "    mask_count: {value: [98],"),
        (FINETUNE_DROP, FINETUNE_DROP.replace("drop_path", "drop_paths")),
    )
    told = refused(path)
    assert [line.split(": ")[1] for line in told] == [
        "methods.cae.mask_count",
        "evaluations.finetune.warmup_epochs",
        "evaluations.finetune.drop_path",
        "evaluations.finetune.drop_paths",
    ]
    assert told[1].startswith(f"other.yaml:{line_of(path, '-20')}: ")
    assert "did you mean 'drop_path'" in told[3]


def test_a_relation_that_fails_for_some_trunks_names_them(written: Written) -> None:
    path = written("fair300", (VIT_B, VIT_B.replace("100", "20")))
    assert refused(path) == [
        f"other.yaml:{line_of(path, '  finetune:')}: evaluations.finetune: "
        "warmup_epochs 20.0 must be less than epochs 20 (on vit-b)"
    ]
    path = written("fair300", ("    mixup_group: {value: 128,", "    mixup_group: {value: 96,"))
    assert refused(path) == [
        f"other.yaml:{line_of(path, '  finetune:')}: evaluations.finetune: "
        "global_batch 1024 is not a multiple of mixup_group 96"
    ]


@pytest.mark.parametrize(
    ("old", "new"), [("  pim:\n", "  pim@vit-t:\n"), ("  finetune:\n    kind", "  finetune@vit-t:\n    kind")]
)
def test_a_file_gives_trunks_in_the_field_not_in_the_name(written: Written, old: str, new: str) -> None:
    assert re.match(r"other\.yaml:\d+: \w+\.\w+@vit-t: give the value for each trunk in the field",
                    refused(written("fair300", (old, new)))[0])  # fmt: skip


def test_evaluations_of_tokens_belong_to_no_trunk(written: Written) -> None:
    stated = "the text states no recipe: fine-tuning's of ViT-T, for 100 epochs"
    one = f'    epochs: {{value: 100, assumed: "{stated}"}}\n'
    each = "{vit-t: {value: 1, source: a}, vit-s: {value: 2, source: b}, vit-b: {value: 3, source: c}}"
    path = written(
        "fair300",
        (one, f"    epochs: {each}\n"),
        ("warmup_epochs: {value: 20, assumed", "warmup_epochs: {value: 0, assumed"),
    )
    assert refused(path) == [
        f"other.yaml:{line_of(path, '  token-mlp:')}: evaluations.token-mlp: "
        "takes tokens alone and belongs to no trunk: give one value"
    ]


def test_setting_one_trunks_value_touches_that_trunk_alone() -> None:
    before = load_protocol("fair300")
    after = load_protocol("fair300", overrides=["methods.mapet.cutting_point.vit-s=40"])
    assert {name for name in after.slices if after.slices[name] != before.slices[name]} == {
        "method:mapet@vit-s"
    }
    assert after.method_values("mapet", "vit-s") == {"cutting_point": 40}
    assert after.deviations_of(["method:mapet@vit-s"]) == ("methods.mapet.cutting_point.vit-s=40",)
    assert after.deviations_of(["method:mapet@vit-b", "method:pim@vit-s"]) == ()
    with pytest.raises(HarnessError, match=r"did you mean 'evaluations\.finetune\.epochs\.vit-"):
        load_protocol("fair300", overrides=["evaluations.finetune.epochs=3"])
    with pytest.raises(HarnessError, match=r"--set evaluations\.finetune\.epochs\.vit-s=0: must be greater"):
        load_protocol("fair300", overrides=["evaluations.finetune.epochs.vit-s=0"])


def test_value_at_reads_shared_and_per_trunk_paths() -> None:
    protocol = load_protocol("fair300", overrides=["evaluations.finetune.weight_decay=0.5"])
    assert value_at(protocol, "evaluations.finetune.epochs.vit-s") == 200
    assert value_at(protocol, "evaluations.finetune.weight_decay") == 0.5
    assert value_at(protocol, "methods.cae.mask_count") == 98
    assert value_at(protocol, "methods.cae.decoder_heads.vit-b") == 12
    assert value_at(protocol, "transfer_sets.food-101.test.count") == 25250
    assert value_at(protocol, "data.training.start") == 0
