"""The card that `tokenize` prints: every figure with its unit and meaning, within the width."""

from __future__ import annotations

import pytest

from benchmark.commands.card import card_text
from leaderboard.record import (
    Compliance,
    Cost,
    DataUse,
    Git,
    Metric,
    ProtocolUse,
    Record,
    TokenizerUse,
)

METRICS = {
    "codebook_size": Metric(value=8192.0, n=9, unit="codes"),
    "codebook_use_percent": Metric(value=99.9999, n=9, unit="%"),
    "dead_codes": Metric(value=1.0, n=9, unit="codes"),
    "perplexity": Metric(value=5123.4, n=9, unit="codes"),
    "concentration_percent": Metric(value=7.5, n=9, unit="%"),
    "images_per_second": Metric(value=3069.2, n=64, unit="images/s"),
    "batch_agreement_percent": Metric(value=100.0, n=64, unit="%"),
}


def record(metrics: dict[str, Metric]) -> Record:
    return Record(
        cell_id="tokenise-k-pixel-1",
        stage="tokenise",
        protocol=ProtocolUse(name="mini", version=1, slices={}),
        resolved={},
        compliance=Compliance(status="clean"),
        method=None,
        tokenizer=TokenizerUse(name="k-pixel", digest="t", teacher="none (pixels)"),
        trunk=None,
        data_set=DataUse(name="fashion-mnist-12k", part="pretraining", n=1_281_167, digest="d"),
        seed=None,
        metrics=metrics,
        cost=Cost(wall_seconds=1, images_seen=1, train_flops=0, peak_memory_bytes=1, device="cpu"),
        runtime={},
        environment={},
        git=Git(commit="c", dirty=False),
        parents={},
        artefacts={
            "tokens/k-pixel-0123456789ab/tokenizer.safetensors": "1",
            "tokens/k-pixel-0123456789ab/fashion-mnist-12k-0123456789ab/manifest.json": "2",
        },
        attempts=(),
        status="done",
        error=None,
    )


def test_every_figure_stands_with_its_unit() -> None:
    lines = [" ".join(line.split()) for line in card_text(record(METRICS), 80).splitlines()]
    assert lines[0] == "k-pixel, pretraining images of fashion-mnist-12k"
    for start in (
        "store tokens/k-pixel-0123456789ab/fashion-mnist-12k-0123456789ab",
        "teacher none (pixels)",
        "images 1,281,167",
        "codebook 8,192 codes",
        "codebook use 99.99 % ",  # of 8192 codes one is dead: nothing but all of them is 100
        "dead codes 1 carried",
        "perplexity 5,123 codes ",
        "commonest 1 % 7.50 % ",
        "rate 3,069 images/s ",
        "batch agreement 100.00 % of the tokens of 64 images ",
    ):
        assert any(line.startswith(start) for line in lines), start


@pytest.mark.parametrize("width", [60, 80, 110])
def test_it_keeps_to_the_width(width: int) -> None:
    text = card_text(record(METRICS), width)
    wide = [line for line in text.splitlines() if len(line) > width]
    assert all("tokens/k-pixel" in line for line in wide), "a path is never broken"
    assert text.isascii()
    assert text == "\n".join(line.rstrip() for line in text.splitlines())


def test_figures_that_an_older_record_lacks_are_left_out_and_further_ones_shown() -> None:
    old = {name: METRICS[name] for name in ("codebook_size", "perplexity")}
    text = card_text(record(old | {"entropy": Metric(value=2.5, n=9, unit="nats")}), 80)
    assert "batch agreement" not in text
    assert "rate" not in text
    assert text.splitlines()[-1].split() == ["entropy", "2.50", "nats"]
