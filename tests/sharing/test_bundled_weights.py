"""Bundles of version 2: cards, the protocol's file, plug-ins as text, and weights where asked for."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from benchmark.cli import main
from benchmark.plan import make_plan
from benchmark.selection import select
from benchmark.survey import survey
from leaderboard import bundle as format
from leaderboard.bundle import CONFIGURATION, WEIGHTS_NAME
from leaderboard.cards import card_text
from leaderboard.record import RECORD_NAME, Compliance, MethodUse
from protocols import load_protocol
from protocols.errors import HarnessError
from tests.benchmark.made_records import Lab, contents_of, forge, outcomes, refused
from tests.error_settings import TINY
from tests.plugins.plugin_texts import DATA_SET


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """Finished cells of two methods, and the trunk's weights of the one pre-training."""
    made = Lab(tmp_path / "there")
    weights = made.folder("pretrain") / WEIGHTS_NAME
    weights.parent.mkdir()
    weights.write_bytes(content_of(made))
    return made


def content_of(lab: Lab) -> bytes:
    """What the record of the pre-training names as its trunk."""
    return f"{lab.tokens} {WEIGHTS_NAME} {lab.id('pretrain')}".encode()


def bundled(lab: Lab, *more: str, code: int = 0) -> Path:
    out = lab.work_dir.parent / f"bundle{len(list(lab.work_dir.parent.glob('*.tar')))}.tar"
    words = ["bundle", str(out), "--protocol", str(TINY), "--work-dir", str(lab.work_dir), *more]
    assert main(words) == code
    return out


def merge(bundle: Path, here: Path, *more: str) -> int:
    return main(["merge", str(bundle), "--work-dir", str(here), *more])


def test_a_bundle_brings_the_protocols_file_and_cards_that_any_tar_takes_out(
    lab: Lab, tmp_path: Path
) -> None:
    out = bundled(lab)
    with tarfile.open(out) as archive:
        archive.extractall(tmp_path / "out", filter="data")
    copied = tmp_path / "out" / CONFIGURATION
    assert copied.read_bytes() == TINY.read_bytes()
    assert load_protocol(str(copied)).digest == lab.protocol.digest
    cards = {path.parent.name: path.read_text() for path in tmp_path.glob("out/cells/*/card.md")}
    assert set(cards) == {lab.id("pretrain"), lab.id("tokenise")}
    card = cards[lab.id("pretrain")]
    assert card == card_text(lab.records[lab.id("pretrain")], lab.records.values(), protocol=lab.protocol)
    assert f"| slice pretraining | {lab.protocol.slices['pretraining']} |" in card
    assert "| finetune | 0 | top1_percent | 25.00 % | 40 | clean |" in card
    assert "--methods mim --tokenizers k-pixel --trunks vit-tiny-test --seeds 0" in card
    assert not any("weights" in name or "checkpoints" in name for name in contents_of(out)[1])


def test_a_card_says_what_was_changed_and_nothing_of_other_weights(lab: Lab) -> None:
    record = lab.records[lab.id("pretrain")]
    changed = record.model_copy(
        update={
            "compliance": Compliance(status="modified", deviations=("pretraining.epochs=9",)),
            "method": MethodUse(name="<b>a|b", source_digest="s", plugin="ring.py"),
        }
    )
    card = card_text(changed, [], protocol=lab.protocol)
    assert "**Not under the protocol as it stands**" in card
    assert "--set pretraining.epochs=9" in card
    assert "| method | &lt;b>a\\|b (brought by the plug-in ring.py) |" in card
    assert "finetune" not in card
    other = record.model_copy(update={"artefacts": {WEIGHTS_NAME: "0" * 64}})
    assert "finetune" not in card_text(other, lab.records.values(), protocol=lab.protocol)


def test_weights_that_are_asked_for_let_another_lab_evaluate(lab: Lab, tmp_path: Path) -> None:
    here = tmp_path / "here"
    out = bundled(lab, "--weights", "--cells", "pretrain-*")
    assert merge(out, here) == 0
    folder = here / "tiny" / "cells" / lab.id("pretrain")
    assert (folder / WEIGHTS_NAME).read_bytes() == content_of(lab)
    assert not (folder / "card.md").exists()
    protocol = lab.protocol
    plan = make_plan(protocol, select(protocol, methods=["mim"], evaluations=["linear-probe"], seeds=[0]))
    states = {one.cell.stage: one.state for one in survey(plan, protocol, here)}
    assert states == {"tokenise": "done", "pretrain": "done", "linear-probe": "to do"}
    # Without them the same cell waits for them.
    bare = tmp_path / "bare"
    assert merge(bundled(lab, "--cells", "pretrain-*"), bare) == 0
    waits = {one.cell.stage: one for one in survey(plan, protocol, bare)}["linear-probe"]
    assert waits.state == "blocked"
    assert f"came without {WEIGHTS_NAME}" in waits.reasons[0]
    assert "method.safetensors" not in waits.reasons[0]
    # The bundle with weights adds them to the cells that are there already, once.
    assert merge(out, bare, "--dry-run") == 0
    assert not (bare / "tiny" / "cells" / lab.id("pretrain") / WEIGHTS_NAME).exists()
    assert dict(_results(out, bare))[lab.id("pretrain")] == "weights added"
    assert merge(out, bare) == 0
    assert (bare / "tiny" / "cells" / lab.id("pretrain") / WEIGHTS_NAME).read_bytes() == content_of(lab)
    assert set(dict(_results(out, bare)).values()) == {"already here"}


def _results(bundle: Path, work_dir: Path) -> list[tuple[str, str]]:
    return [(entry, result) for entry, (result, _) in outcomes(bundle, work_dir).items()]


def test_weights_that_are_not_the_records_are_bundled_by_nobody_and_merged_by_nobody(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, pretraining = bundled(lab, "--weights"), lab.id("pretrain")
    path = f"cells/{pretraining}/{WEIGHTS_NAME}"
    manifest, files = contents_of(out)
    forged = tmp_path / "forged.tar"
    forge(forged, manifest, files | {path: b"other weights"})
    assert RECORD_NAME in refused(forged)[pretraining]
    assert "its parent" in refused(forged)[lab.id("finetune")]
    # A member whose bytes are not what the manifest states.
    damaged = tmp_path / "damaged.tar"
    damaged.write_bytes(out.read_bytes().replace(content_of(lab), content_of(lab)[::-1]))
    assert "is damaged" in refused(damaged)[pretraining]
    assert merge(damaged, tmp_path / "here") == 1
    assert not (tmp_path / "here" / "tiny" / "cells" / pretraining).exists()

    (lab.folder("pretrain") / WEIGHTS_NAME).write_bytes(b"other weights")
    capsys.readouterr()
    bundled(lab, "--weights", code=1)
    assert f"left out {pretraining}: {WEIGHTS_NAME}: SHA-256" in capsys.readouterr().err
    (lab.folder("pretrain") / WEIGHTS_NAME).unlink()
    bundled(lab, "--weights", code=1)
    assert f"left out {pretraining}/{WEIGHTS_NAME}: it is not in the work dir" in capsys.readouterr().err


def test_weights_alone_may_be_large(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    out = bundled(lab, "--weights")
    largest = max(len(content) for path, content in contents_of(out)[1].items() if WEIGHTS_NAME not in path)
    monkeypatch.setattr(format, "MAX_MEMBER_BYTES", largest)
    monkeypatch.setattr(format, "MAX_BUNDLE_BYTES", out.stat().st_size - len(content_of(lab)))
    assert refused(out) == {}
    monkeypatch.setattr(format, "MAX_WEIGHTS_BYTES", len(content_of(lab)) - 1)
    assert "such a file of a bundle has" in refused(out)[lab.id("pretrain")]
    monkeypatch.setattr(format, "MAX_FILE_BYTES", 1000)
    with pytest.raises(HarnessError, match="too large for a bundle"):
        outcomes(out)


def test_bundles_of_version_1_still_merge_and_hold_nothing_newer(lab: Lab, tmp_path: Path) -> None:
    manifest, files = contents_of(bundled(lab))
    newer = {path for path in files if path.endswith("card.md") or path == CONFIGURATION}
    assert len(newer) == 3
    old = tmp_path / "old.tar"
    forge(old, manifest, {path: files[path] for path in files if path not in newer}, format_version=1)
    assert merge(old, tmp_path / "here") == 0
    forge(old, manifest, files, format_version=1)
    with pytest.raises(HarnessError, match="it is of version 1, and names"):
        outcomes(old)


def test_plug_ins_go_along_as_text_that_merge_never_runs(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "ring.py").write_text(DATA_SET)
    out = bundled(lab, "--with-plugins", "--plugin", str(folder))
    manifest, files = contents_of(out)
    assert files["plugins/mine-ring.py.txt"] == (folder / "ring.py").read_bytes()
    forged = tmp_path / "forged.tar"
    touched = tmp_path / "touched"
    harm = f"open({str(touched)!r}, 'w')".encode()
    forge(forged, manifest, files | {"plugins/mine-ring.py.txt": harm})
    assert merge(forged, tmp_path / "here") == 0
    assert not touched.exists()
    assert not list((tmp_path / "here").rglob("*.txt"))
    forge(forged, manifest, files | {"plugins/mine-ring.py.txt": b"\xff"})
    assert "plugins/mine-ring.py.txt" in refused(forged)

    (folder / "ring.py").write_text(DATA_SET + "# reads /home/somebody/images\n")
    capsys.readouterr()
    bundled(lab, "--with-plugins", "--plugin", str(folder), code=1)
    assert "left out plugins/mine-ring.py.txt: it names /home/somebody/images" in capsys.readouterr().err
    bundled(lab, "--with-plugins", code=2)
    assert "takes the files that --plugin names" in capsys.readouterr().err
