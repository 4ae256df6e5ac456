"""Slices: prose and additions leave every digest and every other cell as they were."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError, create_model

from benchmark.plan import make_plan, select
from protocols import list_protocols, load_protocol
from protocols.errors import HarnessError
from protocols.frozen import canonical_json
from protocols.recipes import FineTuning, PreTraining
from protocols.schema import Protocol

Written = Callable[..., Path]

ROOT = Path(__file__).parent.parent.parent


def ids(protocol: Protocol) -> set[str]:
    return {cell.id for cell in make_plan(protocol, select(protocol, evaluations=["all"]))}


def test_prose_defaults_views_and_sources_are_in_no_digest(written: Written) -> None:
    other = written(
        "fair300", ("the setting of the MaPeT paper", "other words"), ("seeds: [0] ", "seeds: [3] "),
        ('source: "section 5.1"', "source: x1"), ("title: Pre-training objectives", "title: Other"),
        ("hours: 24.0", "hours: 25.0"),
        ("tokenizers: [vq-kd], trunks: [vit-b]", "tokenizers: [k-clip], trunks: [vit-s]"),
    )  # fmt: skip
    assert load_protocol(str(other)).slices == load_protocol("fair300").slices


def test_an_int_for_a_float_is_the_same_protocol(written: Written) -> None:
    other = written("tiny", ("clip_grad_norm: {value: 3.0", "clip_grad_norm: {value: 3"))
    assert load_protocol(str(other)).digest == load_protocol(str(written("tiny"))).digest


TRUNK = """\
  vit-l:
    patch_size: {value: 4, source: test}
    width: {value: 96, source: test}
    depth: {value: 5, source: test}
    heads: {value: 2, source: test}
    mlp_ratio: {value: 4.0, source: test}
    layer_scale: {value: 0.1, source: test}

tokenizers:
"""
TRANSFER_SET = """\
  elsewhere:
    name: {value: elsewhere, source: test}
    training: {split: {value: train, source: test}, count: {value: 10, source: test}}
    test: {split: {value: test, source: test}, count: {value: 10, source: test}}

trunks:
"""
VIEW = """\
  one:
    title: T
    cells:
      - {methods: [scratch, mim, pim, mapet, beit, cae], tokenizers: [k-pixel, k-feature], trunks: [vit-mini],
         evaluations: [finetune, linear-probe]}
      - {tokenizers: [k-pixel, k-feature], evaluations: [token-mlp, token-vit]}
"""
ADDITIONS = {
    "trunk:vit-l": ("tokenizers:\n  k-pixel", f"{TRUNK}  k-pixel"),
    "transfer_set:elsewhere": ("\ntrunks:\n  vit-mini", f"{TRANSFER_SET}  vit-mini"),
    "method:other": ("  scratch: {}\n", "  scratch: {}\n  other:\n    a: {value: 1, source: test}\n"),
    "tokenizer:other": ("  k-feature:\n", "  other:\n    a: {value: 1, source: test}\n  k-feature:\n"),
    "a view": ("  table2:\n", f"{VIEW}  table2:\n"),
}


@pytest.mark.parametrize("added", ADDITIONS)
def test_an_addition_leaves_all_else_as_it_was(written: Written, added: str) -> None:
    before, after = load_protocol("mini"), load_protocol(str(written("mini", ADDITIONS[added])))
    assert set(after.slices) - set(before.slices) == ({added} if ":" in added else set())
    assert {name: after.slices[name] for name in before.slices} == before.slices
    assert ids(after) == ids(before)


def test_a_new_evaluation_adds_its_cells_and_no_others(written: Written) -> None:
    text = (ROOT / "protocols" / "mini.yaml").read_text()
    probe = text[text.index("  linear-probe:\n") :]
    probe = probe[: probe.index("\n  ", probe.index("clip_grad_norm")) + 1]
    probe = probe.replace("  linear-probe:", "  second-probe:", 1)
    in_views = "trunks: [vit-mini], evaluations: [finetune, linear-probe]"
    path = written(
        "mini",
        (in_views, f"{in_views[:-1]}, second-probe]"),
        ("  token-mlp:\n", f"{probe}  token-mlp:\n"),
    )
    before, after = load_protocol("mini"), load_protocol(str(path))
    assert set(after.slices) - set(before.slices) == {"evaluation:second-probe"}
    assert {name: after.slices[name] for name in before.slices} == before.slices
    assert ids(before) < ids(after)
    assert all(one.startswith("second-probe-") for one in ids(after) - ids(before))


def test_a_new_trunk_needs_the_values_that_differ_between_trunks(written: Written) -> None:
    large = """  vit-l: {patch_size: {value: 16, source: x}, width: {value: 1024, source: x},
          depth: {value: 24, source: x},
          heads: {value: 16, source: x}, mlp_ratio: {value: 4.0, source: x},
          layer_scale: {value: 0.1, source: x}}

tokenizers:
"""
    changes = [("tokenizers:\n  k-clip", f"{large}  k-clip")]
    with pytest.raises(
        HarnessError, match=r"methods\.pim\.cutting_point: has values for vit-t, vit-s, vit-b; give"
    ):
        load_protocol(str(written("fair300", *changes)))
    path = written("fair300", *changes)
    text = "".join(
        f"{line}{line.replace('vit-b:', 'vit-l:')}" if line.startswith("      vit-b: {value") else line
        for line in path.read_text().splitlines(keepends=True)
    )
    path.write_text(text)
    before, after = load_protocol("fair300"), load_protocol(str(path))
    assert {name: after.slices[name] for name in before.slices} == before.slices
    assert {name.partition("@")[2] for name in set(after.slices) - set(before.slices)} == {"", "vit-l"}
    assert ids(after) == ids(before)


def test_a_field_more_in_the_schema_changes_no_digest() -> None:
    mini = load_protocol("mini")
    wider = {
        "pretraining": create_model("Wider", __base__=PreTraining, lookahead=(int | None, None)),
        "evaluations": create_model("WiderToo", __base__=FineTuning, lookahead=(int | None, None)),
    }
    pretraining = wider["pretraining"].model_validate(dict(mini.slice("pretraining")))
    finetune = wider["evaluations"].model_validate(dict(mini.slice("evaluation:finetune")))
    assert "lookahead" in dict(pretraining)
    other = mini.model_copy(
        update={"pretraining": pretraining, "evaluations": {**mini.evaluations, "finetune": finetune}}
    )
    assert other.slices == mini.slices
    assert "mixup_group" not in mini.slice("evaluation:finetune")


def test_digests_are_of_one_text() -> None:
    assert canonical_json({"b": [1, 2.0], "a": None}) == '{"a":null,"b":[1,2.0]}'
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json(float("nan"))


def test_unknown_slices_and_names() -> None:
    mini = load_protocol("mini")
    with pytest.raises(
        HarnessError, match="unknown slice of protocol mini 'method:mapeet'; did you mean 'method:mapet'"
    ):
        mini.slice("method:mapeet")
    with pytest.raises(HarnessError, match="unknown evaluation of protocol mini 'probe'"):
        mini.evaluation("probe", "vit-mini")
    with pytest.raises(HarnessError, match="unknown trunk 'vit-b'"):
        mini.trunk_spec("vit-b", drop_path=0.0)


def test_protocols_are_frozen() -> None:
    protocol = load_protocol("mini")
    with pytest.raises(ValidationError):
        protocol.pretraining.peak_lr = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError, match="frozen"):
        protocol.methods["mim"]["mask_count"] = 1
    with pytest.raises(TypeError, match="frozen"):
        protocol.methods |= {}  # type: ignore[misc]
    with pytest.raises(TypeError, match="frozen"):
        protocol.sources.clear()


@pytest.mark.parametrize("name", list_protocols())
def test_protocols_travel_to_child_processes(name: str) -> None:
    protocol = load_protocol(name, overrides=["pretraining.peak_lr=1e-3"])
    copy = pickle.loads(pickle.dumps(protocol))
    assert copy == protocol
    assert copy.slices == protocol.slices
    assert copy.deviations == ("pretraining.peak_lr=1e-3",)
    with pytest.raises(TypeError, match="frozen"):
        copy.methods["mim"]["mask_count"] = 1


def test_another_process_computes_the_same_digest() -> None:
    """Digests depend on neither hash seeds nor what was loaded before."""
    code = "import pickle, sys; sys.stdout.write(pickle.load(sys.stdin.buffer).digest)"
    protocol = load_protocol("fair300")
    child = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(protocol), capture_output=True, cwd=ROOT, check=True
    )
    assert child.stdout.decode() == protocol.digest
