"""Two processes on one work dir."""

from __future__ import annotations

from tests.protections import Protection

PROTECTIONS = (
    Protection(
        promise="two runs never share a work dir",
        file="benchmark/execute.py",
        removed="        if not try_lock(lock):\n",
        instead="        if False:\n",
        test="tests/benchmark/test_run.py::test_one_run_at_a_time",
    ),
)
