"""doctor: limits, clock, work dir, checkpoints, two processes and GPUs, with faults really present."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmark import checkpoint, doctor_clock, doctor_disk, doctor_gpu, doctor_machine, doctor_torch
from benchmark.cli import main
from benchmark.doctor import Asked, Finding
from protocols.files import sha256_of_file
from tests.benchmark.doctor_findings import found, only


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return Asked(work_dir=tmp_path / "runs", scratch=scratch)


# --- limits of the machine ---


def test_limits_of_a_container(asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = tmp_path / "cgroup"
    groups.mkdir()
    monkeypatch.setattr(doctor_machine, "CGROUPS", groups)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(8))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert doctor_machine.cpu_limit() is None
    (groups / "cpu.max").write_text("200000 100000\n")
    (groups / "memory.max").write_text("5000000000\n")
    (groups / "memory.current").write_text("1000000000\n")
    findings = found(doctor_machine.cores_and_memory, asked)
    assert (only(findings, "cores").status, only(findings, "cores").remedy) == ("warning", "give --jobs 2")
    assert (only(findings, "memory").status, only(findings, "memory").remedy) == ("warning", "give --jobs 2")
    assert only(findings, "OMP_NUM_THREADS").status == "ok"
    # The first version of control groups has other names.
    for one in groups.iterdir():
        one.unlink()
    for name, value in (("cpu/cpu.cfs_quota_us", "50000"), ("cpu/cpu.cfs_period_us", "100000"),
                        ("memory/memory.limit_in_bytes", "900000000")):  # fmt: skip
        (groups / name).parent.mkdir(exist_ok=True)
        (groups / name).write_text(value)
    assert doctor_machine.cpu_limit() == 0.5
    assert only(found(doctor_machine.cores_and_memory, asked), "memory").status == "FAILED"


def test_a_container_that_does_not_tell_its_memory(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_machine, "MEMORY", tmp_path / "none")
    monkeypatch.setattr(doctor_machine, "CGROUPS", tmp_path / "none")
    one = only(found(doctor_machine.cores_and_memory, asked), "memory")
    assert (one.status, one.remedy.startswith("mount /proc, or give --jobs")) == ("warning", True)


@pytest.mark.parametrize("threads", ["many", "0", "4096"])
def test_a_number_of_threads_that_makes_no_sense(
    threads: str, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    one = only(found(doctor_machine.cores_and_memory, asked), "OMP_NUM_THREADS")
    assert (one.status, one.remedy) == ("warning", "unset it, or set it to 1: cells set their own")


@pytest.mark.parametrize(
    ("free", "workers", "status"),
    [(64 << 20, 0, "warning"), (64 << 20, 1, "FAILED"), (7 << 30, 8, "ok"), (2 << 30, 8, "FAILED")],
)
def test_shared_memory_for_the_batches_of_reading_processes(
    free: int, workers: int, status: str, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.statvfs", lambda path: SimpleNamespace(f_bavail=free // 4096, f_frsize=4096))
    (one,) = found(doctor_machine.shared_memory, asked, workers=workers)
    assert (one.status, "--shm-size" in one.remedy) == (status, status != "ok")


def test_no_shared_memory_at_all(asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_machine, "SHARED_MEMORY", tmp_path / "none")
    (one,) = found(doctor_machine.shared_memory, asked)
    assert (one.status, "--workers 0" in one.remedy) == ("FAILED", True)


@pytest.mark.parametrize(("workers", "status"), [(0, "warning"), (16, "FAILED")])
def test_a_low_limit_on_open_files(workers: int, status: str, asked: Asked) -> None:
    def with_few(asked: Asked) -> Iterator[Finding]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, 1000))
        yield from doctor_machine.open_files(asked)

    (one,) = found(with_few, asked, workers=workers)
    assert (one.status, one.remedy.startswith("ulimit -n ")) == (status, True)
    assert "the limit is 300" in one.found


def test_a_clock_that_is_wrong(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    long_ago, now = time.gmtime(0), time.time
    monkeypatch.setattr(doctor_clock.time, "gmtime", lambda: long_ago)
    monkeypatch.setattr(doctor_clock.time, "time", lambda: now() + 3600)
    date, folder = found(doctor_clock.clock, asked)
    assert (date.status, date.found.startswith("it says 1970-01-01")) == ("FAILED", True)
    assert (folder.status, "s behind this machine" in folder.found) == ("warning", True)
    assert date.remedy
    assert folder.remedy
    monkeypatch.undo()
    assert [one.status for one in found(doctor_clock.clock, asked)] == ["ok", "ok"]


# --- the work dir ---


def test_a_work_dir_that_cannot_be_one(asked: Asked, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    (one,) = found(doctor_disk.work_dir, asked)
    assert (one.status, one.remedy) == ("FAILED", "give another with --work-dir")


def refused(*, prefix: str, dir: Path) -> str:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(dir))


def test_a_folder_that_cannot_be_made_is_said_once(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (one,) = found(doctor_disk.work_dir, asked, scratch=None)
    assert (one.status, bool(one.remedy)) == ("FAILED", True)
    monkeypatch.setattr("tempfile.mkdtemp", refused)
    assert main(["doctor", "--quick", "--json", "--work-dir", str(tmp_path / "runs")]) == 1
    stated = json.loads(capsys.readouterr().out)
    assert {"locks", "renames", "disk speed", "save and load"} < set(stated["left_out"])
    assert not {one["what"] for one in stated["findings"]} & {"locks", "renames"}


@pytest.mark.parametrize(
    ("free", "files", "status"),
    [(10**8, 10**6, "FAILED"), (10**10, 10**6, "warning"), (10**12, 10, "warning"), (10**12, 10**6, "ok")],
)
def test_little_room(
    free: int, files: int, status: str, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free))
    monkeypatch.setattr("os.statvfs", lambda path: SimpleNamespace(f_files=10**7, f_favail=files))
    (one,) = found(doctor_disk.work_dir, asked)
    assert (one.status, bool(one.remedy)) == (status, status != "ok")
    if status == "FAILED":
        assert found(doctor_disk.speed, asked) == []  # nothing is filled up to see how fast that goes


def test_locks_that_keep_nobody_out(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [one.status for one in found(doctor_disk.locks, asked)] == ["ok"]
    monkeypatch.setattr("fcntl.flock", lambda file, how: None)
    (one,) = found(doctor_disk.locks, asked)
    assert one.status == "FAILED"
    assert one.found == "a second process got the same lock: two runs could write the same cell"
    assert "--work-dir on another" in one.remedy


def test_a_file_system_without_locks(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(file: object, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuses)
    (one,) = found(doctor_disk.locks, asked)
    assert (one.status, "keeps no locks" in one.found) == ("FAILED", True)
    assert "mounted with locks" in one.remedy


def test_a_lock_that_outlives_its_owner(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that the killed process left behind holds the same open file."""
    original = doctor_disk._lock_and_die
    reader, writer = os.pipe()

    def leaves_a_child(path: Path) -> None:
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fork() == 0:
                for descriptor in set(map(int, os.listdir("/proc/self/fd"))) - {file.fileno(), reader}:
                    with suppress(OSError):
                        os.close(descriptor)
                os.read(reader, 1)
                os._exit(0)
            original(path)

    monkeypatch.setattr(doctor_disk, "_lock_and_die", leaves_a_child)
    monkeypatch.setattr(doctor_disk, "FREE_SECONDS", 0.2)
    findings = found(doctor_disk.locks, asked)
    os.close(reader)
    os.close(writer)
    assert [one.status for one in findings] == ["FAILED"]
    assert findings[0].found.startswith("the lock of a process that was killed stays")


def test_files_that_are_not_replaced_whole(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [one.status for one in found(doctor_disk.renames, asked)] == ["ok"]
    monkeypatch.setattr(doctor_disk, "write_atomically", lambda path, content: path.write_bytes(content))
    (one,) = found(doctor_disk.renames, asked)
    assert (one.status, one.found) == ("FAILED", "a reader saw parts of two files")
    assert one.remedy


def test_a_slow_disk(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_disk, "WRITTEN_BYTES", 1024**2)
    monkeypatch.setattr(doctor_disk, "SMALL_FILES", 2)
    sync = os.fsync
    monkeypatch.setattr("os.fsync", lambda descriptor: (time.sleep(0.15), sync(descriptor)))
    (one,) = found(doctor_disk.speed, asked)
    assert (one.status, "a local disk" in one.remedy) == ("warning", True)
    assert " MB/s in a file of 64 MB; " in one.found


# --- torch ---


def test_checkpoints_are_loaded_as_saved_and_damage_is_noticed(asked: Asked) -> None:
    findings = found(doctor_torch.save_and_load, asked)
    assert [(one.status, one.what) for one in findings] == [("ok", "checkpoints"), ("ok", "weights")]


def test_checkpoints_that_notice_nothing(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    def trusting(path: Path, *, digest: str) -> dict[str, torch.Tensor]:
        return original(path, digest=sha256_of_file(path))

    original = checkpoint.load_weights
    monkeypatch.setattr(checkpoint, "load_weights", trusting)
    one = found(doctor_torch.save_and_load, asked)[-1]
    assert (one.status, one.what, one.found) == ("FAILED", "weights", "one flipped byte is not noticed")
    assert one.remedy


@pytest.mark.parametrize(
    ("loaded", "said"),
    [({"step": 2, "weights": torch.zeros(4096)}, "what was saved is not what was loaded"),
     ({"step": 2, "weights": torch.arange(4096.0) + 2}, "one flipped byte is not noticed")],
)  # fmt: skip
def test_checkpoints_that_are_not_what_was_saved(
    loaded: dict[str, object], said: str, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "load_newest", lambda folder: loaded)
    (one,) = found(doctor_torch.save_and_load, asked)
    assert (one.status, one.what, one.found, bool(one.remedy)) == ("FAILED", "checkpoints", said, True)


def test_two_processes_meet_and_add_up(asked: Asked) -> None:
    (one,) = found(doctor_torch.two_processes, asked, device="cpu")
    assert (one.status, one.what) == ("ok", "two processes (gloo)")


@pytest.mark.parametrize("fault", ["a wrong sum", "one dies", "no device"])
def test_two_processes_that_do_not(fault: str, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    def goes_wrong(rank: int, device: str) -> str:
        if fault == "no device":
            raise RuntimeError("unable to find a device\nsecond line")
        if fault == "one dies" and rank == 1:
            os._exit(3)
        return "" if rank == 0 else "the sum is 4, not 3"

    monkeypatch.setattr(doctor_torch, "_sum_of_ranks", goes_wrong)
    (one,) = found(doctor_torch.two_processes, asked, device="cpu")
    said = {
        "a wrong sum": "rank 1: the sum is 4, not 3",
        "one dies": "rank 1: ended with code 3",
        "no device": "rank 0: unable to find a device; rank 1: unable to find a device",
    }
    assert (one.status, one.found) == ("FAILED", said[fault])
    assert "127.0.0.1" in one.remedy


def test_a_process_that_never_comes_is_not_waited_for(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_torch, "JOIN_SECONDS", 0.2)
    monkeypatch.setattr(doctor_torch, "_sum_of_ranks", lambda rank, device: time.sleep(rank * 3600) or "")
    (one,) = found(doctor_torch.two_processes, asked, device="cpu")
    assert (one.status, one.found.endswith("rank 1: no answer within 0.2 s")) == ("FAILED", True)


@pytest.mark.parametrize(
    ("device", "visible", "status"),
    [
        ("auto", "0", "FAILED"),
        ("auto", "", "ok"),
        ("auto", "-1", "ok"),
        ("cpu", "0", "ok"),
        ("cuda", "", "FAILED"),
    ],
)
def test_a_gpu_that_is_promised_and_cannot_be_used(
    device: str, visible: str, status: str, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    (one,) = found(doctor_gpu.gpus, asked, device=device)
    assert (one.status, bool(one.remedy)) == (status, status != "ok")
    if (device, visible) == ("auto", "0"):
        assert one.found.startswith("CUDA_VISIBLE_DEVICES is 0, but torch ")


def test_a_device_node_promises_a_gpu(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(doctor_gpu, "visible_gpus", lambda: ("0",))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (one,) = found(doctor_gpu.gpus, asked)
    assert (one.status, one.found.startswith("there is /dev/nvidia0, but torch ")) == ("FAILED", True)


def test_what_is_said_of_gpus_that_work_and_of_one_that_computes_wrong(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the driver: no GPU is needed to see what is said of one."""
    of = SimpleNamespace(name="Some GPU", total_memory=80e9, major=9, minor=0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    for name, value in (
        ("is_available", lambda: True), ("device_count", lambda: 2),
        ("get_device_properties", lambda index: of), ("is_bf16_supported", lambda: True),
        ("device", lambda index: torch.no_grad()),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27, 5))
    off = {"cuda:0": 1e-5, "cuda:1": 0.3}
    monkeypatch.setattr(doctor_gpu, "matmul_difference", off.__getitem__)
    monkeypatch.setattr("faiss.get_num_gpus", lambda: 0)
    findings = found(doctor_gpu.gpus, asked)
    first, second, faiss = (only(findings, what) for what in ("GPU 0", "GPU 1", "faiss"))
    assert first.found.startswith("Some GPU, 80 GB, compute capability 9.0, with bf16")
    assert (first.status, second.status, faiss.status) == ("ok", "FAILED", "warning")
    assert "is off by 3.0e-01" in second.found
    assert "CUDA_VISIBLE_DEVICES" in second.remedy
    assert faiss.found.startswith("it sees 0 of 2 GPUs")


def test_the_product_that_a_gpu_is_held_to() -> None:
    assert doctor_gpu.matmul_difference("cpu") < doctor_gpu.MATMUL_TOLERANCE / 2
