"""The list of protections stands for the code as it is; `python -m tests.protections` removes them."""

from __future__ import annotations

import re

import pytest

from tests.protections import ROOT, Protection, groups

ALL = [one for found in groups().values() for one in found]


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.promise[:60])
def test_what_is_removed_and_what_fails_then_exist(one: Protection) -> None:
    assert (ROOT / one.file).read_text().count(one.removed) == 1
    assert one.instead != one.removed
    for test in one.test.split():
        path, _, name = test.partition("::")
        text = (ROOT / path).read_text()
        function = name.partition("[")[0]
        assert not function or re.search(rf"^def {function}\(", text, flags=re.MULTILINE), test


def test_no_promise_is_listed_twice() -> None:
    promises = [one.promise for one in ALL]
    assert len(set(promises)) == len(promises)
