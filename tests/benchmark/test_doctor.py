"""doctor: no check takes the command down; packages and images with faults really present."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from benchmark import decode_probe, doctor_packages, provenance
from benchmark.cli import main
from benchmark.commands import doctor as command
from benchmark.doctor import Asked, Check, Finding, examine, failed, ok, scratch_folder, warning
from leaderboard.record import Git
from protocols.errors import HarnessError
from tests.benchmark.doctor_findings import found, only


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return Asked(work_dir=tmp_path / "runs", scratch=scratch)


# --- whatever a check does, the others are made ---


def crashes(asked: Asked) -> Iterator[Finding]:
    yield ok("before", "it went well so far")
    os.kill(os.getpid(), signal.SIGKILL)


def hangs(asked: Asked) -> Iterator[Finding]:
    time.sleep(20)  # of which nobody waits for more than its limit
    yield ok("hang", "it has ended by itself")


def raises(asked: Asked) -> Iterator[Finding]:
    raise RuntimeError("first line\nsecond line")
    yield


def finds_no_room(asked: Asked) -> Iterator[Finding]:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a-file")
    yield


def finds_no_file(asked: Asked) -> Iterator[Finding]:
    Path("/proc/no-such-file").read_text()
    yield


def is_refused(asked: Asked) -> Iterator[Finding]:
    raise HarnessError("it is not there; fetch it")
    yield


def goes_well(asked: Asked) -> Iterator[Finding]:
    yield ok("well", "it is")


def test_a_check_that_crashes_hangs_or_raises_has_failed_and_the_others_go_on(asked: Asked) -> None:
    checks = [
        Check("crash", crashes), Check("hang", hangs, 0.2), Check("raise", raises), Check("well", goes_well),
        Check("refused", is_refused), Check("room", finds_no_room), Check("file", finds_no_file),
        Check("again", goes_well),
    ]  # fmt: skip
    findings = list(examine(checks, asked))
    assert [(one.status, one.what) for one in findings] == [
        ("ok", "before"), ("FAILED", "crash"), ("FAILED", "hang"), ("FAILED", "raise"), ("ok", "well"),
        ("FAILED", "refused"), ("FAILED", "room"), ("FAILED", "file"), ("ok", "well"),
    ]  # fmt: skip
    said = {one.what: one for one in findings}
    assert said["crash"].found == "the process that tried it was ended by SIGKILL"
    assert said["hang"].found == "no answer within 0.2 s"
    assert said["raise"].found == "RuntimeError: first line"
    assert said["room"].found == "a-file: No space left on device"
    assert said["room"].remedy.startswith("make room")
    assert said["file"].found == "/proc/no-such-file: No such file or directory"
    assert "its container, does not give" in said["file"].remedy
    assert (said["refused"].found, said["refused"].remedy) == ("it is not there", "fetch it")
    assert all(one.remedy for one in findings if one.status != "ok")


def test_what_a_check_started_ends_with_it(asked: Asked) -> None:
    reader, writer = os.pipe()

    def leaves_one_behind(asked: Asked) -> Iterator[Finding]:
        if os.fork() == 0:
            time.sleep(20)
            os.write(writer, b"still here")
        yield from hangs(asked)

    findings = list(examine([Check("hang", leaves_one_behind, 0.3)], asked))
    os.close(writer)
    assert [one.status for one in findings] == ["FAILED"]
    assert os.read(reader, 1) == b""  # once nobody is left who holds the other end
    os.close(reader)


@pytest.mark.parametrize(
    ("findings", "code", "counted"),
    [
        ([ok("a", "b")], 0, "1 finding: 1 ok, 0 warnings, 0 FAILED"),
        ([ok("a", "b"), warning("c", "d", "e")], 0, "2 findings: 1 ok, 1 warning, 0 FAILED"),
        ([failed("c", "d " * 60, "do this"), warning("c", "d", "e")], 1, "0 ok, 1 warning, 1 FAILED"),
    ],
)
def test_the_exit_code_and_the_lines(
    findings: list[Finding],
    code: int,
    counted: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checks = (Check("fast", lambda asked: iter(findings)), Check("slow", crashes, is_slow=True))
    monkeypatch.setattr(command, "CHECKS", checks)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["doctor", "--quick", "--work-dir", str(tmp_path / "runs")]) == code
    printed = capsys.readouterr().out
    assert f"{counted}; not tried (--quick): slow" in printed
    assert all(len(line) <= 80 for line in printed.splitlines())
    for one in findings:
        assert f"\n{one.status.ljust(9)}{one.what}: " in f"\n{printed}"
        assert not one.remedy or f"\n         -> {one.remedy}\n" in printed
    assert main(["doctor", "--quick", "--json", "--work-dir", str(tmp_path / "runs")]) == code
    stated = json.loads(capsys.readouterr().out)
    assert [one["found"] for one in stated["findings"]] == [one.found for one in findings]
    assert stated["left_out"] == ["slow"]
    assert list(tmp_path.iterdir()) == []


def test_all_quick_checks_of_this_machine_in_one_go(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["doctor", "--quick", "--json", "--work-dir", str(tmp_path), "--data-root", str(tmp_path)])
    stated = json.loads(capsys.readouterr().out)
    assert code == (1 if stated["counts"]["FAILED"] else 0)
    statuses = {one["what"]: one["status"] for one in stated["findings"]}
    assert statuses["work dir"] != "FAILED", "what doctor makes in an empty one is not taken for another's"
    assert {"Python", "packages", "image decoding", "cores", "open files", "clock", "locks"} <= set(statuses)
    assert stated["left_out"] == ["disk speed", "torch", "save and load", "two processes", "GPU"]
    assert statuses["data root"] == "warning"


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--workers", "-1"]) == 2
    assert "--workers must be 0 or more" in capsys.readouterr().err


def test_without_its_packages_the_command_says_how_to_get_them() -> None:
    script = Path(decode_probe.__file__).parents[1] / "run_benchmark.py"
    bare = [sys.executable, "-I", "-S", "-c", f"import runpy, sys; sys.path[:0] = [{str(script.parent)!r}]; "
            f"sys.argv[:] = ['run_benchmark.py', 'doctor']; runpy.run_path({str(script)!r}, "
            "run_name='__main__')"]  # fmt: skip
    ended = subprocess.run(bare, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: No module named ")
    assert ended.stderr.endswith("; pip install -r requirements.txt installs all packages\n")


# --- packages and what comes with the repository ---


def test_versions_are_held_against_the_pins(asked: Asked, tmp_path: Path) -> None:
    numpy = doctor_packages.installed("numpy")
    file = tmp_path / "pins.txt"
    file.write_text(f"numpy=={numpy}\npillow==1.0\nno-such-package==2.0\n# development\nruff==0.0.1\n")
    findings = found(doctor_packages.packages, asked, requirements=file)
    pillow, absent = only(findings, "pillow"), only(findings, "no-such-package")
    assert (pillow.status, pillow.remedy) == ("warning", "pip install pillow==1.0")
    assert "1.0 is pinned" in pillow.found
    assert (absent.status, absent.remedy) == ("FAILED", "pip install no-such-package==2.0")
    assert [one.found for one in findings if one.what == "packages"] == [
        "1 of 3 are as pins.txt pins them", "for the tests alone, and not as pinned: ruff",
    ]  # fmt: skip
    file.write_text("numpy>=2\n")
    (unread,) = found(doctor_packages.packages, asked, requirements=file)
    assert unread.status == "FAILED"
    assert "'numpy>=2' is no NAME==VERSION" in unread.found
    assert unread.remedy == "restore it with git checkout pins.txt"


def test_the_pins_themselves_can_be_read() -> None:
    run, development = doctor_packages.pins(Asked(work_dir=Path()).requirements)
    assert {"torch", "pillow", "faiss-gpu"} <= set(run)
    assert {"pytest", "mypy"} <= set(development)


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [("OLDEST", (99, 0), "FAILED"), ("TRIED", (3, 0), "warning"), ("TRIED", sys.version_info[:2], "ok")],
)
def test_another_python(
    name: str, value: tuple[int, int], status: str, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_packages, name, value)
    (one,) = found(doctor_packages.python, asked)
    assert one.status == status
    assert bool(one.remedy) is (status != "ok")


def test_a_lock_line_or_an_embedded_file_that_is_damaged(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(decode_probe.__file__).parent
    folder = tmp_path / "embedded"
    shutil.copytree(root / "embedded", folder)
    _flip(folder / "digits.npz")
    monkeypatch.setattr("benchmark.data.EMBEDDED", folder)
    one = found(doctor_packages.checkout, asked)[-1]
    assert (one.status, one.what) == ("FAILED", "it")
    assert one.remedy == "restore it with git checkout benchmark/embedded/digits.npz"
    lock = tmp_path / "digests.lock"
    lock.write_text((root.parent / "protocols" / "digests.lock").read_text().replace("0.004", "0.005", 1))
    monkeypatch.setattr("protocols.lock.LOCK", lock)
    (one,) = found(doctor_packages.checkout, asked)
    assert one.status == "FAILED"
    assert one.remedy == "restore the file with git checkout protocols/digests.lock"


def test_which_code_it_is(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_packages, "list_protocols", lambda: ())
    monkeypatch.setattr(doctor_packages, "READERS", {})
    for state, status in (
        (Git(commit="c" * 40, dirty=False), "ok"),
        (Git(commit="c" * 40, dirty=True), "warning"),
        (Git(commit="unknown", dirty=True), "warning"),
    ):
        monkeypatch.setattr(doctor_packages, "git_state", lambda state=state: state)
        one = only(found(doctor_packages.checkout, asked), "git")
        assert (one.status, bool(one.remedy)) == (status, status == "warning")


def test_a_data_root_without_data(asked: Asked, tmp_path: Path) -> None:
    (one,) = found(doctor_packages.data_root, asked, data_root=tmp_path / "none")
    assert (one.status, one.remedy) == ("FAILED", "give another with --data-root")
    (one,) = found(doctor_packages.data_root, asked, data_root=tmp_path)
    assert one.status == "warning"
    (tmp_path / "cifar-100" / "cifar-100-python").mkdir(parents=True)
    (one,) = found(doctor_packages.data_root, asked, data_root=tmp_path)
    assert (one.status, one.found.partition(" ")[0]) == ("ok", "cifar-100")


# --- images ---


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture
def probe_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that may be damaged."""
    folder = tmp_path / "probe_images"
    shutil.copytree(decode_probe.FOLDER, folder)
    monkeypatch.setattr(decode_probe, "FOLDER", folder)
    return folder


def test_the_probe_images_decode_to_the_expected_pixels(asked: Asked) -> None:
    findings = found(doctor_packages.images, asked)
    assert [one.status for one in findings] == ["ok", "ok"]
    listed = decode_probe.expected()
    here = decode_probe.found(listed)
    assert here == listed.pixels
    assert here["sixteen-bits.png"].decoded == decode_probe.REFUSED
    others = {one.decoded for name, one in here.items() if name != "sixteen-bits.png"}
    assert len(others) == len(here) - 1
    assert set(listed.files) == {path.name for path in decode_probe.FOLDER.iterdir()} - {"digests.json"}


def test_another_decoder_is_noticed_and_named(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """One grey level in one pixel of one image."""
    original = decode_probe.decoded

    def rounds_otherwise(source: Path, *, image_id: str) -> Image.Image:
        image = original(source, image_id=image_id)
        if image_id == "progressive-422.jpg":
            red, green, blue = image.getpixel((100, 75))
            image.putpixel((100, 75), (red, green, blue ^ 1))
        return image

    monkeypatch.setattr(decode_probe, "decoded", rounds_otherwise)
    decoding, resized = found(doctor_packages.images, asked)
    assert (decoding.status, resized.status) == ("warning", "warning")
    assert "1 of 11 probe images give other pixels than with Pillow 13.0.0, " in decoding.found
    assert "progressive-422.jpg" in decoding.found
    assert "boards do not compare rows" in decoding.found
    assert decoding.remedy.endswith("--only-binary :all: pillow==13.0.0")
    decode_probe.decode_digest.cache_clear()
    other = decode_probe.decode_digest()
    monkeypatch.undo()
    decode_probe.decode_digest.cache_clear()
    assert decode_probe.decode_digest() != other


def test_another_resize_is_told_from_another_decoder(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    original = decode_probe.square_pixels
    monkeypatch.setattr(decode_probe, "square_pixels", lambda image, size: original(image, size) ^ 1)
    assert [one.status for one in found(doctor_packages.images, asked)] == ["ok", "warning"]


@pytest.mark.parametrize("damage", ["flipped", "missing", "list"])
def test_a_damaged_probe_image_says_nothing_of_decoders(
    damage: str, probe_images: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "digests.json" if damage == "list" else "grey.jpg"
    path = probe_images / name
    if damage == "flipped":
        _flip(path)
    elif damage == "missing":
        path.unlink()
    else:
        path.write_text("{}")
    (one,) = found(doctor_packages.images, asked)
    assert (one.status, one.remedy) == (
        "FAILED",
        f"restore it with git checkout benchmark/probe_images/{name}",
    )
    # A record that is written then says that it does not know, and the cell is not lost.
    monkeypatch.setattr(provenance, "decode_digest", decode_probe.decode_digest.__wrapped__)
    said = provenance.environment.__wrapped__()["decode digest"]
    assert said.startswith("unknown: ")
    assert name in said


def test_every_record_says_how_this_machine_decodes() -> None:
    digest = provenance.environment()["decode digest"]
    assert digest == decode_probe.decode_digest()
    assert len(digest) == 64


def test_the_scratch_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    with scratch_folder(tmp_path / "runs" / "deep") as folder:
        assert folder is not None
        assert folder.parent == tmp_path
    assert list(tmp_path.iterdir()) == []
