"""The paper's claims: each can become each verdict, by its declared rule, from made-up tables of fair300."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product

import pytest

from leaderboard.claim_rules import RULES
from leaderboard.claims import JudgedClaim, claims_section, judge_claims
from leaderboard.paper import paper
from leaderboard.runs import RowKey, Run
from leaderboard.view_table import ViewTable
from protocols import load_protocol
from tests.leaderboard.made_tables import Column, made_run, made_table

FAIR300 = load_protocol("fair300")
TRUNKS, TOKENIZERS = ("vit-t", "vit-s", "vit-b"), ("vq-kd", "k-clip")
BOTH = tuple(Column(trunk, name) for trunk in TRUNKS for name in ("finetune", "linear-probe"))
TRANSFER = tuple(Column("vit-b", name) for name in ("stanford-cars", "food-101", "fgvc-aircraft"))
TOKENS = tuple(Column("", name, metric) for name in ("token-mlp", "token-vit-t")
               for metric in ("top1_percent", "top5_percent"))  # fmt: skip
CUTTING_POINTS = (30, 40, 50, 60, 98)
Values = Callable[[str, str, str, Column], float | None]
SPREAD = (-0.02, 0.0, 0.02, 0.01)
CLAIM_IDS = [claim.id for claim in paper().claims]


def _of_table(
    name: str, rows: list[tuple[str, str, str]], columns: tuple[Column, ...], value: Values, seeds: int
) -> tuple[ViewTable, list[Run]]:
    runs = [
        made_run(
            RowKey(column.trunk, tokenizer, method, variant), column.evaluation, seed, mean + SPREAD[seed],
            metric=column.metric,
        )
        for (method, tokenizer, variant), column in product(rows, columns)
        if (mean := value(method, variant, tokenizer, column)) is not None
        for seed in range(seeds)
    ]  # fmt: skip
    return made_table(name, runs, rows=rows, columns=columns), runs


def _judge(
    value: Values, *, seeds: int = 3, protocol: str = "fair300", **more: object
) -> Mapping[str, JudgedClaim]:
    tables, runs = _tables(value, seeds)
    judged = judge_claims(tables, runs, load_protocol(protocol), **more)  # type: ignore[arg-type]
    return {one.id: one for one in judged}


def _tables(value: Values, seeds: int = 3) -> tuple[list[ViewTable], list[Run]]:
    pretrained = list(product(("mim", "pim", "mapet"), TOKENIZERS, ("",)))
    others = [("scratch", "", ""), *product(("cae", "beit", "mapet"), TOKENIZERS, ("",))]
    cuts = [("mapet", "vq-kd", "" if cut == 60 else f"cutting_point {cut}") for cut in CUTTING_POINTS]
    made = [
        _of_table("table1", pretrained, BOTH, value, seeds),
        _of_table("table2", others, BOTH, value, seeds),
        _of_table("table4", [("", name, "") for name in ("dall-e", "vq-kd", "k-clip")], TOKENS, value, seeds),
        _of_table(
            "table5", [(name, "vq-kd", "") for name in ("cae", "beit", "mapet")], TRANSFER, value, seeds
        ),
        _of_table("table6", cuts, (Column("vit-b", "finetune"),), value, seeds),
    ]
    runs = {run.record.cell_id: run for _, here in made for run in here}
    return [table for table, _ in made], list(runs.values())


ORDER = {"scratch": 0, "cae": 1, "mim": 2, "pim": 3, "beit": 4, "mapet": 5, "": 0}


def _as_claimed(method: str, variant: str, tokenizer: str, column: Column) -> float | None:
    """Numbers for which every claim of the paper holds."""
    if not method:
        return {"dall-e": 10.0, "vq-kd": 68.0, "k-clip": 72.0}[tokenizer]
    value = 60.0 + ORDER[method]
    if variant:
        return value - 2
    better = "k-clip" if column.trunk == "vit-t" else "vq-kd"
    value += 10 * (tokenizer == better)
    if (method, tokenizer, column.evaluation) == ("mapet", "vq-kd", "finetune") and column.trunk != "vit-t":
        # Comparable to BEiT.
        value = 60.0 + ORDER["beit"] + 10 + 0.1
    return value


def _turned(method: str, variant: str, tokenizer: str, column: Column) -> float | None:
    """The same upside down."""
    value = _as_claimed(method, variant, tokenizer, column)
    return None if value is None else 100 - value


def _level(method: str, variant: str, tokenizer: str, column: Column) -> float | None:
    """Differences of nothing, of 10 points where the claim is of more, of the margin where it is of less."""
    if not method:
        return {"dall-e": 50.0, "vq-kd": 60.0, "k-clip": 60.0}[tokenizer]
    return 60.3 if (method, tokenizer) == ("beit", "vq-kd") and column.evaluation == "finetune" else 60.0


def test_every_claim_has_a_rule_and_every_rule_a_claim() -> None:
    assert set(RULES) == set(CLAIM_IDS)


@pytest.fixture(scope="module")
def claimed() -> Mapping[str, JudgedClaim]:
    return _judge(_as_claimed)


@pytest.fixture(scope="module")
def turned() -> Mapping[str, JudgedClaim]:
    return _judge(_turned)


@pytest.fixture(scope="module")
def level() -> Mapping[str, JudgedClaim]:
    return _judge(_level)


@pytest.mark.parametrize("name", CLAIM_IDS)
def test_each_claim_can_be_supported(name: str, claimed: Mapping[str, JudgedClaim]) -> None:
    assert (claimed[name].verdict, claimed[name].reason) == ("supported", "")
    assert claimed[name].evidence


@pytest.mark.parametrize("name", [name for name in CLAIM_IDS if name != "mapet-equal-vqkd"])
def test_each_claim_can_be_contradicted(name: str, turned: Mapping[str, JudgedClaim]) -> None:
    assert turned[name].verdict == "contradicted"


def test_equivalence_is_contradicted_by_a_difference_beyond_its_margin() -> None:
    judged = _judge(lambda *place: 60.0 + ORDER[place[0]])["mapet-equal-vqkd"]
    assert (judged.verdict, judged.count("against")) == ("contradicted", 2)


@pytest.mark.parametrize("name", CLAIM_IDS)
def test_each_claim_can_be_undecided(name: str, level: Mapping[str, JudgedClaim]) -> None:
    claim = level[name]
    assert (claim.verdict, claim.count("against")) == ("undecided", 0)
    assert claim.reason == f"{len(claim.evidence) - claim.count('for')} not told apart"


def test_two_seeds_decide_nothing_and_say_why() -> None:
    for claim in _judge(_as_claimed, seeds=2).values():
        assert claim.verdict == "undecided"
        assert "fewer than three seeds" in claim.reason
        assert not claim.count("for") + claim.count("against")


def test_what_is_not_measured_counts_among_what_is_asked() -> None:
    def one_trunk(method: str, variant: str, tokenizer: str, column: Column) -> float | None:
        return _as_claimed(method, variant, tokenizer, column) if column.trunk == "vit-t" else None

    judged = _judge(one_trunk)
    most = judged["pim-over-mim"]
    # Four of twelve speak for it: no majority yet.
    assert (most.verdict, most.count("for"), most.reason) == ("undecided", 4, "8 not measured")
    assert judged["transfer"].reason == "6 not measured"


@pytest.mark.parametrize(("above", "expected"), [(6, "undecided"), (7, "supported"), (0, "contradicted")])
def test_most_is_more_than_half(above: int, expected: str) -> None:
    places = [(tokenizer, column) for tokenizer in TOKENIZERS for column in BOTH]

    def some(method: str, variant: str, tokenizer: str, column: Column) -> float | None:
        if method == "pim" and (tokenizer, column) in places[:above]:
            return 70.0
        if method == "pim":
            return 65.0 if above else 60.0
        return 65.0

    judged = _judge(some)["pim-over-mim"]
    assert judged.count("for") == above
    assert judged.verdict == expected


@pytest.mark.parametrize(("below", "expected"), [(2, "supported"), (3, "contradicted")])
def test_nearly_all_is_at_least_eighty_per_cent(below: int, expected: str) -> None:
    places = [(tokenizer, column) for tokenizer in TOKENIZERS for column in BOTH]

    def some(method: str, variant: str, tokenizer: str, column: Column) -> float | None:
        return 60.0 if method == "mapet" and (tokenizer, column) in places[:below] else 60.0 + ORDER[method]

    judged = _judge(some)["mapet-over-pim"]
    assert (judged.count("against"), judged.count("for")) == (below, 12 - below)
    assert judged.verdict == expected


def test_one_trunk_is_enough_to_contradict_every_size() -> None:
    def small_is_worse(method: str, variant: str, tokenizer: str, column: Column) -> float | None:
        value = _as_claimed(method, variant, tokenizer, column)
        return 90.0 if method == "scratch" and column.trunk == "vit-t" and value else value

    judged = _judge(small_is_worse)["beat-scratch"]
    assert judged.verdict == "contradicted"
    assert judged.count("for") > judged.count("against")


def test_rows_that_are_not_proven_alike_speak_for_nothing() -> None:
    judged = _judge(_as_claimed, left_out={("table5", 2)})
    assert (judged["transfer"].verdict, judged["transfer"].reason) == (
        "undecided", "6 not proven equal in all else",
    )  # fmt: skip
    assert judged["pim-over-mim"].verdict == "supported"


def test_rows_of_two_tables_are_proven_alike_with_each_other() -> None:
    """BEiT and MIM share no table, and each table's proof holds its own rows against one another alone."""
    tables, runs = _tables(_as_claimed)
    other = runs[0].record.data_set.model_copy(update={"digest": "other images"})
    changed = [
        replace(run, record=run.record.model_copy(update={"data_set": other}))
        if run.key in [("vit-t", "vq-kd", name, "") for name in ("mim", "pim", "mapet")]
        else run
        for run in runs
    ]
    judged = {one.id: one for one in judge_claims(tables, changed, FAIR300)}
    unproven = [one for one in judged["beit-over-mim"].evidence if "not proven" in one.says]
    assert {(one.above, one.below) for one in unproven} == {("BEiT, vq-kd", "MIM, vq-kd")}
    assert [one.column_label for one in unproven] == [column.label for column in BOTH[:2]]
    # Those of one table are judged by that table's proof.
    assert judged["pim-over-mim"].verdict == "supported"


def test_claims_about_other_tokens_are_not_of_minis_protocol() -> None:
    mini = _judge(_as_claimed, protocol="mini")
    for name in ("mapet-best-kclip", "mapet-equal-vqkd", "kclip-small-models", "tokens-semantic"):
        assert mini[name].verdict == "undecided"
        assert mini[name].reason.startswith("not of this protocol, which has no ")
    assert mini["pim-over-mim"].verdict == "supported"


def test_the_ratio_is_that_of_the_papers_rows() -> None:
    evidence = _judge(_as_claimed)["ratio-70"].evidence
    assert [one.below for one in evidence] == [
        "MaPeT, vq-kd, cutting_point 98", "MaPeT, vq-kd, cutting_point 30",
    ]  # fmt: skip
    assert {one.above for one in evidence} == {"MaPeT, vq-kd"}


def test_the_section_states_rules_verdicts_and_numbers() -> None:
    tables, runs = _tables(_as_claimed)
    section = claims_section(tables, runs, FAIR300)
    assert section is not None
    # A verdict is one of this protocol's data, not of the paper's.
    assert "protocol fair300" in section.notes[0]
    claims, evidence = section.blocks
    assert [row[0] for row in claims.grid.rows] == [claim.text for claim in paper().claims]
    assert {row[1] for row in claims.grid.rows} == {"supported"}
    for note, claim in zip(claims.notes, paper().claims, strict=True):
        # The evidence names claims by their ids.
        assert f"{claim.text} ({claim.id})" in note
        assert RULES[claim.id].words in note
    assert len(evidence.grid.rows) == int(claims.frame["asked"].sum())
    empty = made_table("table1", [], rows=[("mim", "vq-kd", "")], columns=BOTH)
    assert claims_section([empty], [], FAIR300) is None
