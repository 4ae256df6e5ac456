"""What is refused before anything runs: an incomplete lock, leaked test images, recipes without a batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark.plan import make_plan, select
from benchmark.preflight import check_images
from protocols import load_protocol, lock
from protocols.errors import HarnessError, ProtocolViolation

FULL = str(Path(__file__).parent.parent / "full.yaml")


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
        check_images(make_plan(protocol, select(protocol)), protocol)
