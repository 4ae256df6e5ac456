"""Which records are stale, and for what reason: each reason alone, then what descendants inherit."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from leaderboard.record import Record
from leaderboard.staleness import stale_reasons

PRESENT = {"method:mim": "s", "method:scratch": "s", "tokenizer:k-pixel": "s"}


@pytest.fixture
def line(campaign: Any) -> Any:
    """Tokens, a pre-training on them and two evaluations of it; beside them the random trunk's."""
    campaign.row("mim", "k-pixel", finetune=100, probe=100)
    campaign.row("scratch", None, finetune=50, probe=50)
    return campaign


def _stale(campaign: Any, **changed: str) -> dict[str, tuple[str, ...]]:
    """`changed` names present digests, as `method_mim` for `method:mim`."""
    sources = PRESENT | {name.replace("_", ":").replace("kpixel", "k-pixel"): digest
                         for name, digest in changed.items()}  # fmt: skip
    return stale_reasons(campaign.records.values(), sources)


def _remake(campaign: Any, cell_id: str, **changes: Any) -> None:
    campaign.records[cell_id] = campaign.records[cell_id].model_copy(update=changes)


def test_nothing_is_stale_under_the_code_that_made_it(line: Any) -> None:
    assert _stale(line) == {}


def test_a_methods_code(line: Any) -> None:
    cause = "method mim's code has changed since"
    inherited = (f"its parent mim-k-pixel-0-pretrain is stale: {cause}",)
    assert _stale(line, method_mim="new") == {
        "mim-k-pixel-0-pretrain": (cause,),
        "mim-k-pixel-0-finetune": inherited,
        "mim-k-pixel-0-probe": inherited,
    }


def test_a_tokenizers_code_names_the_root_cause_to_all_descendants(line: Any) -> None:
    cause = "tokenizer k-pixel's code has changed since"
    inherited = (f"its parent mim-k-pixel-0-pretrain is stale: {cause}",)
    assert _stale(line, tokenizer_kpixel="new") == {
        "tok-k-pixel": (cause,),
        "mim-k-pixel-0-pretrain": (f"its parent tok-k-pixel is stale: {cause}",),
        "mim-k-pixel-0-finetune": inherited,
        "mim-k-pixel-0-probe": inherited,
    }


def test_the_random_trunks_code(line: Any) -> None:
    cause = ("method scratch's code has changed since",)
    assert _stale(line, method_scratch="new") == {
        "scratch-none-0-finetune": cause,
        "scratch-none-0-probe": cause,
    }


def test_an_evaluation_uses_its_parents_trunk_alone(line: Any) -> None:
    """Recorded before and after an edit that was taken back: what counts is the code of the pre-training."""
    line.cell("again", "finetune", method="mim", tokenizer="k-pixel", source="other", correct=100,
              parents=("mim-k-pixel-0-pretrain",))  # fmt: skip
    assert _stale(line) == {}


def test_names_without_a_present_digest_and_records_without_one_give_no_claim(line: Any) -> None:
    assert stale_reasons(line.records.values(), {"method:mapet": "new", "tokenizer:k-feature": "new"}) == {}
    line.cell("unsaid", "pretrain", method="mim", tokenizer="k-pixel", source="")
    assert "unsaid" not in _stale(line, method_mim="new")


def test_a_parent_that_was_made_anew(line: Any) -> None:
    _remake(line, "tok-k-pixel", artefacts={"tokens.npy": "other"})
    inherited = ("its parent mim-k-pixel-0-pretrain is stale: parent tok-k-pixel was made anew since",)
    assert _stale(line) == {
        "mim-k-pixel-0-pretrain": ("parent tok-k-pixel was made anew since",),
        "mim-k-pixel-0-finetune": inherited,
        "mim-k-pixel-0-probe": inherited,
    }


def test_a_parent_that_was_made_anew_just_the_same(line: Any) -> None:
    """Redone by new code with the same result, as after an edit of a comment: its children stand."""
    method = line.records["mim-k-pixel-0-pretrain"].method.model_copy(update={"source_digest": "new"})
    _remake(line, "mim-k-pixel-0-pretrain", method=method, attempts=())
    assert _stale(line, method_mim="new") == {}


def test_a_parent_that_failed_when_it_was_run_again(line: Any) -> None:
    artefacts = {"backbone.safetensors": "x"}
    _remake(line, "mim-k-pixel-0-pretrain", status="failed", error="no memory", artefacts=artefacts)
    reason = ("parent mim-k-pixel-0-pretrain was run again since and is now failed",)
    assert _stale(line) == {"mim-k-pixel-0-finetune": reason, "mim-k-pixel-0-probe": reason}


@pytest.mark.parametrize("status", ["failed", "skipped"])
def test_only_what_is_done_is_stale(line: Any, status: str) -> None:
    _remake(line, "mim-k-pixel-0-pretrain", status=status, error="x")
    assert "mim-k-pixel-0-pretrain" not in _stale(line, method_mim="new")


def test_a_cell_whose_parent_has_no_record_any_more_is_stale(line: Any) -> None:
    """What it was made from is unknown: its method's setting, for one, cannot be told."""
    del line.records["mim-k-pixel-0-pretrain"]
    reason = ("parent mim-k-pixel-0-pretrain has no record any more",)
    assert _stale(line) == {"mim-k-pixel-0-finetune": reason, "mim-k-pixel-0-probe": reason}


def test_several_reasons_stand_side_by_side(line: Any) -> None:
    _remake(line, "tok-k-pixel", artefacts={"tokens.npy": "other"})
    own = ("method mim's code has changed since", "parent tok-k-pixel was made anew since")
    stale = _stale(line, method_mim="new", tokenizer_kpixel="new")
    inherited = "its parent tok-k-pixel is stale: tokenizer k-pixel's code has changed since"
    assert stale["mim-k-pixel-0-pretrain"] == (*own, inherited)
    assert len(stale["mim-k-pixel-0-probe"]) == 3


def test_two_parents_with_a_common_root_each_name_it_once(campaign: Any) -> None:
    campaign.tokenizer("k-pixel")
    for part in ("training", "test"):
        campaign.cell(f"tok-{part}", "tokenise", tokenizer="k-pixel", trunk=None, parents=("tok-k-pixel",))
    campaign.cell("classified", "token-classification", tokenizer="k-pixel", trunk=None,
                  parents=("tok-test", "tok-training"))  # fmt: skip
    cause = "tokenizer k-pixel's code has changed since"
    assert _stale(campaign, tokenizer_kpixel="new")["classified"] == (
        f"its parent tok-test is stale: {cause}",
        f"its parent tok-training is stale: {cause}",
    )


def test_the_order_of_records_does_not_matter_and_circles_end(campaign: Any) -> None:
    records: list[Record] = [
        campaign.cell(cell_id, "pretrain", method="mim", tokenizer="k-pixel", source=source)
        for cell_id, source in (("a", "old"), ("b", "s"), ("c", "s"))
    ]
    parents = {"a": "b", "b": "c", "c": "a"}
    digests = {record.cell_id: record.artefact_digest for record in records}
    circle = [
        record.model_copy(update={"parents": {parents[record.cell_id]: digests[parents[record.cell_id]]}})
        for record in records
    ]
    answers = [stale_reasons(order, PRESENT) for order in itertools.permutations(circle)]
    assert all(answer == answers[0] for answer in answers)
    cause = "method mim's code has changed since"
    assert answers[0]["c"] == (f"its parent a is stale: {cause}",)
    assert answers[0]["b"] == (f"its parent c is stale: {cause}",)
