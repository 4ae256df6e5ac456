"""Adapters and weights of others: they move nothing that is held equal, and are told from our own."""

from __future__ import annotations

from tests.protections import Protection

_FURTHER = "tests/benchmark/test_further_plan.py"

PROTECTIONS = (
    Protection(
        promise="a name that is taken is refused, with both origins",
        file="methods/__init__.py",
        removed="    if other is not None:\n",
        instead="    if False:\n",
        test="tests/plugins/test_loading.py::test_a_name_is_taken_once_and_both_origins_are_named",
    ),
    Protection(
        promise="a plug-in's method stands on the trunk that all others stand on",
        file="methods/__init__.py",
        removed="        if spec.origin != BUILT_IN:\n            from methods.equal_trunk",
        instead="        if False:\n            from methods.equal_trunk",
        test="tests/plugins/test_guard.py::test_a_trunk_that_is_not_the_shared_one_is_refused_where_it_is_built",
    ),
    Protection(
        promise="images that depend on one another stay in one micro-batch",
        file="benchmark/placement.py",
        removed='    if cell.stage == "pretrain":\n',
        instead="    if False:\n",
        test=f"{_FURTHER}::test_images_that_depend_on_one_another_stay_in_one_micro_batch",
    ),
    Protection(
        promise="--methods all runs the protocol's own, whatever else is known",
        file="benchmark/plan.py",
        removed='        if (kind in selection.narrowed or kind == "methods") and names:\n',
        instead="        if kind in selection.narrowed and names:\n",
        test=f"{_FURTHER}::test_all_means_the_protocols_six_and_all_known_the_further_ones_too",
    ),
    Protection(
        promise="imported weights stand apart from rows that were pre-trained here",
        file="leaderboard/tables.py",
        removed="    own = [record for record in records if not is_imported(record)]\n",
        instead="    own = list(records)\n",
        test="tests/convert/test_from_checkpoint.py::test_the_board_shows_them_apart_and_compares_them_with_nothing",
    ),
)
