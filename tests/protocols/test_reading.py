"""Protocols are read strictly: every mistake is told with file, line, path and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from protocols import list_protocols, load_protocol
from protocols.errors import HarnessError
from protocols.load import MAX_FILE_BYTES

Written = Callable[..., Path]

EPOCHS = "  epochs: {value: 8, source: test}"
COLOR = "  color_jitter: {value: 0.4, source: test}\n"
MISTAKES = [
    # Names.
    (
        "  epochs: {value: 8,",
        "  epoches: {value: 8,",
        r":\d+: pretraining\.epoches: unknown key; did you mean 'epochs'",
    ),
    ("summary: tests only", "sumary: tests only", r":4: sumary: unknown key; did you mean 'summary'"),
    ("summary: tests only", "summary: a\nsources: {}", r":5: sources: unknown key; "),
    ("summary: tests only", "summary: a\ndeviations: []", r":5: deviations: unknown key; "),
    (
        "  image_size: {value: 28,",
        "  size: {value: 28,",
        r"15: data\.size: unknown key; did you mean 'image_size'",
    ),
    (
        "    split: {value: train,",
        "    spilt: {value: train,",
        r"data\.pretraining\.spilt: unknown key; did you mean 'split'",
    ),
    (
        "    width: {value: 16,",
        "    witdh: {value: 16,",
        r"trunks\.vit-tiny-test\.witdh: .*did you mean 'width'",
    ),
    (
        "    whiten: {value: true,",
        "    white: {value: true,",
        r"evaluations\.linear-probe\.white: .*did you mean 'whiten'",
    ),
    ("  seeds: [0]", "  seeds: [0]\n  tables: [a]", r":12: defaults\.tables: unknown key"),
    ("name: tiny", "name: ../tiny", r":2: name: a name is 1 to 64 lower-case"),
    ("name: tiny", "name: Tiny", r":2: name: a name is 1 to 64 lower-case"),
    ("name: tiny", "name: tokens", r":2: name: 'tokens' is taken"),
    ("  vit-tiny-test:", "  ../vit:", r":\d+: trunks.*a name is 1 to 64 lower-case"),
    ("  vit-tiny-test:", "  [a]:", r"a key \(line \d+\) is not a plain name"),
    ("  vit-tiny-test:", "  on:", r"trunks: 'on' \(line \d+\) is not a plain name"),
    (
        "methods: [scratch,",
        "methods: [swin,",
        r":7: defaults\.methods: names 'swin', which methods does not define",
    ),
    (
        "  seeds: [0]",
        "  seeds: [0]\n  seeds: [1]",
        r":12: defaults\.seeds is given twice, first in line 11; keep one",
    ),
    # Types and ranges.
    ("  epochs: {value: 8,", "  epochs: {value: eight,", r"epochs: must be a whole number, got 'eight'"),
    ("  epochs: {value: 8,", "  epochs: {value: 8.0,", r"epochs: must be a whole number, got 8\.0"),
    ("  epochs: {value: 8,", "  epochs: {value: true,", r"epochs: must be a whole number, got True"),
    ("  epochs: {value: 8,", "  epochs: {value: 0,", r"greater than or equal to 1, got 0"),
    (
        "peak_lr: {value: 2e-3,",
        "peak_lr: {value: .nan,",
        r"pretraining\.peak_lr\S*: '\.nan' is not a plain decimal",
    ),
    ("peak_lr: {value: 2e-3,", "peak_lr: {value: 1e999,", r"'1e999' is not a plain decimal number"),
    ("peak_lr: {value: 2e-3,", "peak_lr: {value: 0x1F,", r"'0x1F' is not a plain decimal number"),
    ("  epochs: {value: 8,", f"  epochs: {{value: {'8' * 5000},", r"is not a plain decimal number"),
    (
        "mean: {value: [0.286, 0.286, 0.286]",
        "mean: {value: [0.286]",
        r"data\.mean.*is missing|data\.mean.*tuple",
    ),
    (
        "std: {value: [0.353, 0.353, 0.353]",
        "std: {value: [0.353, 0.0, 0.353]",
        r"data\.std\.1: .*greater than 0",
    ),
    ("betas: {value: [0.9, 0.999]", "betas: {value: [0.9, 1.0]", r"pretraining\.betas\.1: .*less than 1"),
    (
        "mask_count: {value: 8,",
        "mask_count: {value: [8],",
        r"methods\.mim\.mask_count: must be a number, a text, true",
    ),
    (
        "mask_count: {value: 8,",
        "mask_count: {value: null,",
        r"methods\.mim\.mask_count: must be a number, a text, true",
    ),
    ("seeds: [0]", "seeds: []", r":11: defaults\.seeds: must have at least one value"),
    ("seeds: [0]", "seeds: [-1]", r":11: defaults\.seeds\.0: .*greater than or equal to 0"),
    (
        "    kind: {value: finetune,",
        "    kind: {value: finetuning,",
        r"finetune\.kind: must be one of finetune, linear-probe, knn, token",
    ),
    (
        "    kind: {value: finetune, source: test}\n",
        "",
        r"evaluations\.finetune\.kind: must be one of finetune",
    ),
    ("  warmup_epochs: {value: 0.5, source: test}\n", "", r"pretraining\.warmup_epochs: is missing"),
    # Relations.
    (
        "warmup_epochs: {value: 0.5,",
        "warmup_epochs: {value: 8,",
        r"warmup_epochs 8\S* must be less than epochs 8",
    ),
    (
        "min_lr: {value: 1e-5,",
        "min_lr: {value: 1,",
        r"pretraining: min_lr and warmup_lr must not exceed peak_lr",
    ),
    (
        "start: {value: 256,",
        "start: {value: 255,",
        r"validation images \(train 255 to 318\) overlap pretraining images",
    ),
    (
        "split: {value: test,",
        "split: {value: train,",
        r"data: test images \(train 0 to 202\) overlap pretraining images",
    ),
    # Sources.
    (EPOCHS, "  epochs: 8", r"pretraining\.epochs: a bare value; write"),
    (EPOCHS, "  epochs: {value: 8}", r"pretraining\.epochs: .*either `source` or `assumed`"),
    (EPOCHS, "  epochs: {value: 8, source: a, assumed: b}", r"either `source` or `assumed`"),
    (EPOCHS, "  epochs: {value: 8, sauce: a}", r"did you mean 'source'"),
    (EPOCHS, "  epochs: {value: 8, source: ' '}", r"must be a sentence"),
    (EPOCHS, "  epochs: {value: 8, source: 7}", r"must be a sentence"),
    (
        EPOCHS,
        "  epochs: {value: 8, assumed: a, alternatives: 3}",
        r"pretraining\.epochs: `alternatives` must be a list",
    ),
    (
        EPOCHS,
        "  epochs: {value: 8, assumed: a, alternatives: [[3]]}",
        r"`alternatives` must be a list of numbers",
    ),
    (
        EPOCHS,
        "  epochs: {value: 8, assumed: a, alternatives: null}",
        r"`alternatives` must be a list of numbers",
    ),
    (
        EPOCHS,
        "  epochs: {value: {a: 8}, source: a}",
        r"pretraining\.epochs: a mapping is not a value; give each",
    ),
    ("trunks:\n", "trunks: {value: 3, source: a}\nold:\n", r"unknown key|trunks: .*valid dict"),
    # YAML.
    (
        "summary: tests only",
        "summary: !!python/object/apply:os.system ['true']",
        r":4: summary: the YAML tag",
    ),
    ("summary: tests only", "summary: !!set {a}", r":4: summary: the YAML tag"),
    (
        "whiten: {value: true",
        "whiten: {value: !!bool maybe",
        r"the YAML tag .*bool' is not allowed for 'maybe'",
    ),
    (
        "epochs: {value: 8",
        "epochs: {value: !other:int 8",
        r"the YAML tag '!other:int' is not allowed for '8'",
    ),
    ("epochs: {value: 8", "epochs: {value: 2020-01-01", r"the YAML tag .*timestamp' is not allowed"),
    ("summary: tests only", "summary: &a [*a]", r":4: not valid YAML: aliases are not allowed"),
    ("summary: tests only", "summary: [", r"not valid YAML"),
    ("summary: tests only", "summary: " + "[" * 900_000, r":4: not valid YAML: nested more than 20 deep"),
    ("summary: tests only", "summary: \t'\x07'", r"not valid YAML"),
]


@pytest.mark.parametrize(("old", "new", "message"), MISTAKES, ids=range(len(MISTAKES)))
def test_mistakes_are_named_with_file_and_line(written: Written, old: str, new: str, message: str) -> None:
    with pytest.raises(HarnessError) as caught:
        load_protocol(str(written("tiny", (old, new))))
    told = str(caught.value)
    assert re.search(message, told), told[:1000]
    assert told.startswith("other.yaml:")
    assert len(told) < 2000
    assert caught.value.exit_code == 2


def test_several_mistakes_are_told_at_once(written: Written) -> None:
    path = written(
        "tiny", ("  epochs: {value: 8,", "  epochs: {value: a,"), ("width: {value: 16,", "width: {value: 0,")
    )
    with pytest.raises(HarnessError) as caught:
        load_protocol(str(path))
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == [
        "trunks.vit-tiny-test.width",
        "pretraining.epochs",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "other.yaml: a protocol is a mapping"),
        (b"- 1\n", "other.yaml: a protocol is a mapping"),
        (b"a: 1\n---\nb: 2\n", "not valid YAML"),
        (b"\xff\xfe\xfa", "not valid YAML"),
        (b"name: \xe9\n", "not valid YAML"),
        (b"#" * (MAX_FILE_BYTES + 1), "too large for a protocol"),
    ],
)
def test_what_is_no_protocol_at_all(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "other.yaml"
    path.write_bytes(content)
    with pytest.raises(HarnessError, match=message):
        load_protocol(str(path))


def test_unknown_names_and_files() -> None:
    with pytest.raises(HarnessError, match="did you mean 'mini'"):
        load_protocol("minni")
    with pytest.raises(HarnessError, match=r"no protocol file 'none\.yaml'"):
        load_protocol("none.yaml")
    assert load_protocol("MINI").name == "mini"
    assert list_protocols() == ["cifar", "fair300", "mini"]


def test_numbers_mean_what_they_say() -> None:
    """YAML 1.1 reads 1e-3 as a text and 0x10, 010 and 1_0 as numbers; here only decimals are numbers."""
    assert load_protocol("mini", overrides=["pretraining.peak_lr=1e-3"]).pretraining.peak_lr == 0.001
    assert yaml.safe_load("a: 1e-3")["a"] == "1e-3"
    for odd in ("0x10", "010", "1_0", "1:30"):
        with pytest.raises(
            HarnessError, match=rf"--set pretraining\.epochs={odd}: '{odd}' is not a plain dec"
        ):
            load_protocol("mini", overrides=[f"pretraining.epochs={odd}"])


@pytest.mark.parametrize(
    "overrides",
    [
        ["trunks.vit-mini.mlp_ratio=4"],
        ["evaluations.linear-probe.min_lr=0"],
        ["pretraining.betas=[0.9, 0.999]"],
        ["pretraining.peak_lr=1e-3", "pretraining.peak_lr=4e-3"],
        ["tokenizers.k-pixel.whitening_epsilon=0.01", "methods.cae.alignment_weight=0.10"],
    ],
)
def test_setting_the_protocols_own_value_is_no_deviation(overrides: list[str]) -> None:
    protocol = load_protocol("mini", overrides=overrides)
    assert protocol.deviations == ()
    assert protocol.slices == load_protocol("mini").slices


def test_a_whole_number_for_a_methods_fraction_is_the_same_value() -> None:
    """Where any scalar is allowed no type tells that 2 stands for 2.0: the value that was there does."""
    protocol = load_protocol("fair300", overrides=["methods.cae.alignment_weight=2"])
    assert protocol.slices == load_protocol("fair300").slices
    assert protocol.deviations == ()
    other = load_protocol("mini", overrides=["methods.mim.mask_count=25.0"])
    assert other.deviations == ("methods.mim.mask_count=25.0",)  # the method will refuse it


def test_the_last_set_of_a_value_counts_and_its_source_says_so() -> None:
    protocol = load_protocol("mini", overrides=["pretraining.epochs=3", " pretraining.epochs = 4 "])
    assert protocol.pretraining.epochs == 4
    assert protocol.deviations == ("pretraining.epochs=4",)
    assert protocol.sources["pretraining.epochs"].source == "--set on the command line; the protocol says 5"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pretraining.epoch=3", "write SLICE.FIELD=VALUE; did you mean 'pretraining.epochs'"),
        ("name=x", "write SLICE.FIELD=VALUE"),
        ("pretraining=1", "write SLICE.FIELD=VALUE"),
        ("", "write SLICE.FIELD=VALUE"),
        ("pretraining.epochs", "the value is missing; write pretraining.epochs=VALUE"),
        ("pretraining.epochs=", "--set pretraining.epochs=: must be a whole number, got None"),
        ("pretraining.epochs=0", "--set pretraining.epochs=0: must be greater than or equal to 1"),
        ("pretraining.epochs=[", "--set pretraining.epochs: '[' is not a value"),
        ("pretraining.epochs=&a [*a]", "is not a value"),
        ("pretraining.epochs=\udc80", "is not a value"),
        ("pretraining.epochs={a: 1}", "a mapping is not a value"),
        ("pretraining.epochs=" + "[" * 100_000, "is not a value"),
        ("evaluations.finetune.epochs={vit-mini: 3}", "a mapping is not a value"),
    ],
)  # fmt: skip
def test_what_set_refuses(text: str, message: str) -> None:
    with pytest.raises(HarnessError, match=re.escape(message)) as caught:
        load_protocol("mini", overrides=[text])
    assert len(str(caught.value)) < 2000
