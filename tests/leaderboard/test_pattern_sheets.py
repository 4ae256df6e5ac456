"""Pictures of objectives on disk: read strictly, left out once they are no longer true, and their look."""

from __future__ import annotations

import hashlib
import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from leaderboard.figure_patterns import (
    PREDICTED,
    SEEN,
    AttentionRule,
    Seen,
    attention_figure,
    objectives_figure,
    seen_in_words,
)
from leaderboard.pattern_sheets import PatternFacts, read_patterns, shown_slices, write_pattern
from leaderboard.sections import Figure
from protocols.errors import HarnessError
from tests.leaderboard.studies import study_protocol

PROTOCOL = study_protocol()
METHODS = ("mim", "mapet")
SOURCES = {"mim": "a" * 64, "mapet": "b" * 64}


def permuted() -> Seen:
    """Four patches; 2 and 0 are context, 3 is predicted from them, 1 from all three."""
    content = np.array([[1, 0, 1, 0], [1, 0, 1, 1]], dtype=bool)
    return Seen(method="pim", predicted=np.array([3, 1]), content=content, position=content.copy())


@cache
def drawn() -> Figure:
    return objectives_figure([permuted()], np.full((3, 8, 8), 90, np.uint8), grid=2, image_id="a", seed=0)


def facts(**more: Any) -> PatternFacts:
    slices = PROTOCOL.slices
    given: dict[str, Any] = {
        "kind": "objectives", "protocol": "tiny", "protocol_version": 2, "protocol_digest": PROTOCOL.digest,
        "slices": {name: slices[name] for name in shown_slices(PROTOCOL, METHODS, "vit-mini")},
        "sources": SOURCES, "trunk": "vit-mini", "data_set": "shapes", "image_id": "train/0", "sample_id": 0,
        "epoch": 0, "seed": 0, "picture_sha256": hashlib.sha256(drawn().png).hexdigest(),
        "alt_text": "Patterns.", "caption": "The patterns.",
    }  # fmt: skip
    return PatternFacts(**(given | more))


class TestPictures:
    def test_predictions_and_patches_stand_in_the_order_of_what_is_seen(self) -> None:
        seen = permuted()
        assert list(seen.in_order) == [0, 1]
        assert list(seen.columns) == [0, 2, 3, 1]
        assert seen.is_ordered
        assert seen_in_words(seen) == (
            "PIM predicts 2 of 4 patches; a prediction sees the content of 2 to 3 patches, of 0 others the "
            "position alone, and of 1 to 2 nothing"
        )

    def test_the_matrix_is_painted_as_it_is(self) -> None:
        pixels = np.asarray(Image.open(io.BytesIO(drawn().png)).convert("RGB"))
        colours = {tuple(colour) for colour in pixels.reshape(-1, 3)}
        for wanted in (SEEN, PREDICTED):
            assert tuple(int(wanted[start : start + 2], 16) for start in (1, 3, 5)) in colours
        # Nothing is written over the edge.
        assert (pixels[:, :4] == 255).all()
        assert (pixels[:, -4:] == 255).all()

    def test_the_same_is_drawn_again(self) -> None:
        again = objectives_figure(
            [permuted()], np.full((3, 8, 8), 90, np.uint8), grid=2, image_id="a", seed=0
        )
        assert (again.png, again.svg) == (drawn().png, drawn().svg)

    def test_attention_masks_are_told_in_words(self) -> None:
        rule = AttentionRule(
            method="mapet",
            sees=np.tril(np.ones((5, 4), dtype=bool)),
            rows=(("context", 2), ("content stream", 3)),
            keys=(("context", 2), ("mask tokens", 1), ("targets", 1)),
        )
        figure = attention_figure([rule])
        words = "MaPeT: 2 context, 3 content stream as rows over 2 context, 1 mask tokens, 1 targets as keys"
        assert words in figure.alt


class TestReading:
    def test_a_picture_that_is_still_true_is_shown_whole(self, tmp_path: Path) -> None:
        paths = write_pattern(tmp_path, facts(), drawn())
        assert [path.name for path in paths] == ["objectives.png", "objectives.svg", "objectives.json"]
        present = {f"method:{name}": digest for name, digest in SOURCES.items()}
        (sheet,) = read_patterns(tmp_path, PROTOCOL, present).sheets
        with Image.open(io.BytesIO(drawn().png)) as image:
            assert (sheet.width, sheet.height) == image.size
        assert sheet.source.startswith("data:image/png;base64,")
        assert sheet.facts == facts()

    def test_no_folder_is_no_picture(self, tmp_path: Path) -> None:
        assert read_patterns(tmp_path / "none", PROTOCOL).sheets == ()

    @pytest.mark.parametrize(
        ("sources", "changes", "said"),
        [
            ({"method:mapet": "c" * 64}, {}, "the code of mapet changed since"),
            ({}, {"methods": {"mim": {"mask_count": 9}, "mapet": {"cutting_point": 25}}},
             "method:mim of the protocol changed since"),
            ({}, {"methods": {"mim": {"mask_count": 25}}}, "the protocol has no method mapet any more"),
            ({}, {"trunks": {}}, "the protocol has no trunk vit-mini any more"),
        ],
    )  # fmt: skip
    def test_one_that_is_no_longer_true_is_left_out_by_name(
        self, tmp_path: Path, sources: dict[str, str], changes: dict[str, Any], said: str
    ) -> None:
        write_pattern(tmp_path, facts(), drawn())
        found = read_patterns(tmp_path, PROTOCOL.model_copy(update=changes), sources)
        assert found.sheets == ()
        assert found.left_out == (
            f"objectives.png is left out: {said}; python run_benchmark.py patterns --protocol tiny draws it "
            "again.",
        )

    def test_what_it_does_not_show_may_change(self, tmp_path: Path) -> None:
        write_pattern(tmp_path, facts(), drawn())
        changed = PROTOCOL.model_copy(update={"tokenizers": {}, "methods": {**PROTOCOL.methods, "pim": {}}})
        assert read_patterns(tmp_path, changed, {"method:pim": "c" * 64}).left_out == ()

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"seed": "0"}, "is damaged: field seed: "),
            ({"extra": 1}, "is damaged: field extra: "),
            ({"schema_version": 2}, "is damaged: field schema_version: "),
            ({"kind": "attention"}, "holds the facts of attention"),
            ({"picture_sha256": "c" * 64}, "is not what objectives.json tells of"),
        ],
    )
    def test_damage_is_named(self, tmp_path: Path, change: dict[str, Any], said: str) -> None:
        path = write_pattern(tmp_path, facts(), drawn())[-1]
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(HarnessError, match=said) as error:
            read_patterns(tmp_path, PROTOCOL)
        assert f"patterns, or delete {path}" in str(error.value)

    def test_other_bytes_are_no_picture_even_where_their_digest_fits(self, tmp_path: Path) -> None:
        content = b"<svg onload=alert(1)>"
        path = write_pattern(tmp_path, facts(picture_sha256=hashlib.sha256(content).hexdigest()), drawn())[0]
        path.write_bytes(content)
        with pytest.raises(HarnessError, match="is not what"):
            read_patterns(tmp_path, PROTOCOL)
        path.unlink()
        with pytest.raises(HarnessError, match="is missing"):
            read_patterns(tmp_path, PROTOCOL)

    def test_what_is_no_json_or_too_large_is_refused(self, tmp_path: Path) -> None:
        path = write_pattern(tmp_path, facts(), drawn())[-1]
        path.write_text("{")
        with pytest.raises(HarnessError, match="is damaged: Invalid JSON"):
            read_patterns(tmp_path, PROTOCOL)
        path.write_text(" " * 300_000)
        with pytest.raises(HarnessError, match="300000 bytes is too large"):
            read_patterns(tmp_path, PROTOCOL)
