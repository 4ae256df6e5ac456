"""Submitting to a cluster without one: the file, the arrays, the scripts, the ledger, what squeue says."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from benchmark import elastic
from benchmark.cli import main
from benchmark.cluster import open_cells
from benchmark.cluster_arrays import Array, Task, make_arrays, shape_of
from benchmark.cluster_file import ClusterFile, load_cluster_file
from benchmark.cluster_queue import Ledger, Queue
from benchmark.cluster_queue import Task as QueueTask
from benchmark.commands.submit import check_cluster, cluster_runtime
from benchmark.die_with_parent import PARENT_VARIABLE
from benchmark.plan import Cell, make_plan, select
from benchmark.runtime import Runtime
from benchmark.survey import survey
from protocols import load_protocol
from protocols.errors import HarnessError
from tests.benchmark.submitting import TINY, cluster_file, options_of, words_of

GPU_FILE = """\
partition: gpu
account: vision
time: 24:00:00
gpus_per_node: 4
cpus_per_process: 8
memory_per_process: 48G
max_nodes_per_cell: 2
requeues: 5
setup: [source /opt/venv/bin/activate]
sbatch: {exclude: "node07,node08"}
stages:
  pretrain: {time: 2-00:00:00, constraint: nvlink, array_parallelism: 3}
"""
CHOICE = ("--methods", "mim", "pim", "--evaluations", "linear-probe")


@pytest.fixture
def gpu_file(tmp_path: Path) -> Path:
    path = tmp_path / "gpu.yaml"
    path.write_text(GPU_FILE)
    return path


def runtime(processes: int = 1) -> Runtime:
    return Runtime(device="cuda", jobs=8, threads=8, processes=processes)


def plan_of(protocol: str, **names: list[str]) -> list[Cell]:
    loaded = load_protocol(protocol)
    return make_plan(loaded, select(loaded, **names))


def arrays_of(cells: list[Cell], queued: dict[str, Task] | None = None) -> list[Array]:
    numbers = iter(range(1000))
    return make_arrays(
        cells,
        ClusterFile(time="01:00:00", gpus_per_node=4),
        queued=queued or {},
        runtime_of=lambda cell: runtime(),
        name_of=lambda title: f"{title}-{next(numbers)}",
    )


# The file


def test_a_file_says_what_each_stage_asks_for(gpu_file: Path) -> None:
    cluster = load_cluster_file(gpu_file)
    assert (cluster.device, cluster.slots_per_node) == ("cuda", 4)
    assert cluster.of_stage("finetune").time == "24:00:00"
    pretrain = cluster.of_stage("pretrain")
    assert (pretrain.time, pretrain.constraint, pretrain.partition) == ("2-00:00:00", "nvlink", "gpu")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("partitoin: gpu", r"gpu.yaml:1: partitoin: unknown key; did you mean 'partition'"),
        ("gpus_per_node: four", r"gpu.yaml:1: gpus_per_node: must be a whole number, got 'four'"),
        ("gpus_per_node: -1", r"gpus_per_node: must be"),
        ("time: 90", r"time: must be a text, got 90"),
        ("time: 24:99:00", r"time: must be HOURS:MM:SS or DAYS-HH:MM:SS, such as 24:00:00, got '24:99:00'"),
        ("memory_per_process: 48 GB", r"memory_per_process: must be a whole number with M, G or T"),
        ("sbatch: {output: /tmp/x}", r"sbatch: --output is the harness's own"),
        ("sbatch: {--exclude: x}", r"sbatch: '--exclude' is no long option of sbatch"),
        ("stages: {pretrian: {}}", r"stages.pretrian: unknown stage; did you mean 'pretrain'"),
        ("stages: {pretrain: {gpus: 2}}", r"stages.pretrain.gpus: unknown key"),
        ('setup: ["a\\nb"]', r"setup.0: must be one line of text"),
        (
            "time: 01:00:00\ngpus_per_node: 4\nprocesses_per_node: 2",
            r"processes_per_node is for nodes without GPUs",
        ),
        ("time: 01:00:00\ntime: 02:00:00", r"gpu.yaml:2: time is given twice, first in line 1"),
        ("scheduler: !!python/name:os.system x", r"the YAML tag .* is not allowed here"),
        ("setup: &a [*a]", r"aliases are not allowed"),
        ("[1, 2", r"not valid YAML"),
    ],
)
def test_a_wrong_file_is_told_by_line(given: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "gpu.yaml"
    path.write_text(given + "\n")
    with pytest.raises(HarnessError, match=told):
        load_cluster_file(path)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--device", "cpu"], "--device cpu, and the cluster file has gpus_per_node 4"),
        (["--jobs", "2"], "--jobs is for one machine"),
    ],
)
def test_options_that_contradict_the_file_are_refused(
    arguments: list[str], told: str, gpu_file: Path, tmp_path: Path
) -> None:
    options = options_of(tmp_path, gpu_file, *arguments)
    with pytest.raises(HarnessError, match=told):
        cluster_runtime(options, load_cluster_file(gpu_file))


def test_the_runtime_is_the_nodes_and_not_this_machines(gpu_file: Path, tmp_path: Path) -> None:
    options = options_of(tmp_path, gpu_file, "--precision", "bf16", "--workers", "7")
    of_nodes = cluster_runtime(options, load_cluster_file(gpu_file))
    assert (of_nodes.device, of_nodes.jobs, of_nodes.threads) == ("cuda", 8, 8)
    assert (of_nodes.precision, of_nodes.workers, of_nodes.processes) == ("bf16", 7, 1)


def test_a_dry_run_without_a_cluster_is_refused(gpu_file: Path, tmp_path: Path) -> None:
    options = options_of(tmp_path, gpu_file, "--dry-run")
    options.cluster = None
    with pytest.raises(HarnessError, match="--dry-run belongs to --cluster"):
        check_cluster(options)


# Arrays


def test_a_cell_waits_for_its_own_parents_and_for_no_other(tmp_path: Path) -> None:
    cells = plan_of("fair300")
    by_id = {cell.id: cell for cell in cells}
    arrays = arrays_of(cells)
    assert sorted(cell.id for array in arrays for cell in array.cells.values()) == sorted(by_id)
    place = {Task(array.name, index): cell.id for array in arrays for index, cell in array.cells.items()}
    for array in arrays:
        for index, cell in array.cells.items():
            waits = [Task(array.corresponds, index)] if array.corresponds else array.after
            assert sorted(place[task] for task in waits) == sorted(cell.parents), cell.id
    order = {array.name: position for position, array in enumerate(arrays)}
    assert all(order[task.array] < order[array.name] for array in arrays for task in array.after)
    # 122 cells would be 122 jobs without arrays.
    assert len(arrays) < 30
    assert any(array.corresponds for array in arrays)


def test_children_of_queued_cells_wait_for_their_jobs() -> None:
    tokenise, first, second, *_ = plan_of(str(TINY), methods=["mim", "pim"], evaluations=["linear-probe"])
    first, second = [c for c in plan_of(str(TINY), methods=["mim", "pim"]) if c.stage == "pretrain"]
    (array,) = arrays_of([first, second], queued={tokenise.id: Task("71", 0)})
    assert array.after == (Task("71", 0),)
    assert list(array.cells.values()) == [first, second]


@pytest.mark.parametrize(("processes", "nodes", "each"), [(1, 1, 1), (4, 1, 4), (8, 2, 4), (6, 2, 3)])
def test_processes_are_spread_over_the_fewest_nodes(processes: int, nodes: int, each: int) -> None:
    (cell, *_) = plan_of(str(TINY), methods=["mim"])
    request = ClusterFile(time="01:00:00", gpus_per_node=4, max_nodes_per_cell=2)
    shape = shape_of(cell, runtime(processes), request)
    assert (shape.nodes, shape.processes_per_node, shape.processes) == (nodes, each, processes)


def test_more_processes_than_the_file_allows_are_refused() -> None:
    (cell, *_) = plan_of(str(TINY), methods=["mim"])
    request = ClusterFile(time="01:00:00", gpus_per_node=4, max_nodes_per_cell=2)
    with pytest.raises(HarnessError, match=r"up to 2 nodes \(max_nodes_per_cell\) with up to 4 processes"):
        shape_of(cell, runtime(16), request)


@pytest.mark.parametrize(
    ("ended", "code"),
    [
        (SignalException("told to stop", signal.SIGTERM), 143),
        (ChildFailedError("cell", {1: ProcessFailure(1, 77, 75, "<N/A>")}), 75),
        (ChildFailedError("cell", {0: ProcessFailure(0, 77, -9, "<N/A>")}), 137),
    ],
    ids=["told to stop", "a process failed", "a process was killed"],
)
def test_torchrun_tells_the_batch_script_how_a_cell_ended(
    ended: Exception, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torchrun() -> None:
        raise ended

    monkeypatch.setattr("torch.distributed.run.main", torchrun)
    monkeypatch.setattr("benchmark.elastic.die_with_parent", lambda: None)
    monkeypatch.setenv(PARENT_VARIABLE, "")  # so that what is set below is undone
    with pytest.raises(SystemExit) as told:
        elastic.main()
    assert told.value.code == code


# What is open


def test_what_is_submitted_is_what_a_run_would_run(tmp_path: Path) -> None:
    protocol = load_protocol(str(TINY))
    plan = plan_of(str(TINY), methods=["mim", "pim"], evaluations=["linear-probe"])
    states = {f"{one.cell.stage} {one.cell.method}": one for one in survey(plan, protocol, tmp_path)}

    def told(queue: Queue, *, redo_failed: bool = False, **changed: str) -> tuple[set[str], dict[str, int]]:
        of = [
            replace(one, state=changed.get(name.replace("-", "_").replace(" ", "_"), one.state))
            for name, one in states.items()
        ]
        found = open_cells(of, queue, redo_failed=redo_failed)
        names = {f"{cell.stage} {cell.method}" for cell in found.cells}
        return names, dict(found.held)

    idle = Queue(Ledger())
    assert told(idle) == (set(states), {})
    failed = {"failed (--redo-failed)": 1, "waiting for a cell that is not submitted": 1}
    names, held = told(idle, tokenise_None="done", pretrain_mim="failed", linear_probe_mim="blocked")
    assert (names, held) == ({"pretrain pim", "linear-probe pim"}, failed)
    names, held = told(
        idle, redo_failed=True, tokenise_None="done", pretrain_mim="failed", linear_probe_mim="blocked"
    )
    assert (names, held) == (set(states) - {"tokenise None"}, {})
    assert told(idle, tokenise_None="running") == (
        set(),
        {"running outside the queue": 1, "waiting for a cell that is not submitted": 4},
    )
    pretrain = states["pretrain mim"].cell
    queue = Queue(Ledger(), {pretrain.id: QueueTask("7", 0, "PENDING", "Priority")})
    assert told(queue, tokenise_None="done")[0] == {"linear-probe mim", "pretrain pim", "linear-probe pim"}
    gone = Queue(Ledger(), {pretrain.id: QueueTask("7", 0, "TIMEOUT")})
    assert "pretrain mim" in told(gone, tokenise_None="done")[0]


# Scripts


def scripts(work_dir: Path, file: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert main(words_of(work_dir, file, *CHOICE, "--dry-run", *arguments)) == 0
    shown = capsys.readouterr()
    assert "5 cells would be submitted" in shown.err
    assert not work_dir.exists(), "nothing is written"
    return shown.out.split("### array ")[1:]


def test_a_dry_run_shows_the_scripts_and_needs_no_slurm(
    gpu_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    tokenise, pretrain, probe = scripts(tmp_path / "runs", gpu_file, capsys)
    assert tokenise.startswith("1 of 3: tokenise, 1 task; its id is JOB1 below")
    header = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", pretrain, re.MULTILINE))
    name = header.pop("job-name")
    assert re.fullmatch(r"tiny-pretrain-[0-9a-f]{8}", name)
    assert header.pop("output") == f"{tmp_path}/runs/tiny/cluster/{name}/%a/slurm-%A_%a.out"
    assert header == {
        "account": "vision",
        "array": "0-1%3",
        "chdir": os.getcwd(),
        "constraint": "nvlink",
        "cpus-per-task": "8",
        "exclude": "node07,node08",
        "gpus-per-node": "1",
        "mem": "48G",
        "nodes": "1",
        "ntasks-per-node": "1",
        "open-mode": "append",
        "partition": "gpu",
        "requeue": "",
        "signal": "TERM@90",
        "time": "2-00:00:00",
    }
    assert "source /opt/venv/bin/activate" in pretrain
    assert re.search(
        r'^srun --nodes=1 --ntasks=1 .*run_benchmark\.py cell "\$cell" .*--device cuda', pretrain, re.M
    )
    assert "torch" not in pretrain
    assert f"sbatch --dependency=afterok:JOB1_0 --kill-on-invalid-dep=yes {tmp_path}" in pretrain
    assert f"sbatch --dependency=aftercorr:JOB2 --kill-on-invalid-dep=yes {tmp_path}" in probe
    assert "#SBATCH --time=24:00:00" in probe


def test_a_cell_of_several_nodes_meets_by_torchrun(
    gpu_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, pretrain, _ = scripts(tmp_path / "runs", gpu_file, capsys, "--gpus-per-cell", "8")
    for line in ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=4", "--cpus-per-task=32", "--mem=192G"):
        assert f"#SBATCH {line}\n" in pretrain
    (command,) = re.findall(r"^srun .*$", pretrain, re.MULTILINE)
    for word in ("--nodes=2 --ntasks=2", "--kill-on-bad-exit=1", "--nnodes=2 --nproc-per-node=4",
                 "--rdzv-backend=c10d", '--rdzv-endpoint="$head:$port"'):  # fmt: skip
        assert word in command


@pytest.mark.parametrize(("code", "earlier", "is_requeued"), [
    (0, 0, False), (1, 0, False), (143, 0, True), (143, 4, True), (143, 5, False), (75, 0, False),
])  # fmt: skip
def test_a_cell_that_saved_itself_is_requeued_and_not_for_ever(
    code: int,
    earlier: int,
    is_requeued: bool,
    gpu_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = scripts(tmp_path / "runs", gpu_file, capsys)[1].partition("#!/bin/bash")[2]
    script = script.partition("### submitted")[0].replace("source /opt/venv/bin/activate", "")
    programs = {
        "srun": f'echo "$@" > {tmp_path}/ran; exit {code}',
        "scontrol": f'echo "$@" > {tmp_path}/asked',
    }
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", script],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "12",
             "SLURM_RESTART_COUNT": str(earlier)},
        capture_output=True,
        timeout=20,
        check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "cell pretrain-pim-k-pixel" in (tmp_path / "ran").read_text()
    assert (tmp_path / "asked").exists() == is_requeued
    if is_requeued:
        assert (tmp_path / "asked").read_text().split() == ["requeue", "12"]


def test_local_cells_pass_over_children_of_failed_parents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/bash\necho "$3" >> {tmp_path}/ran\n[[ $3 != pretrain-mim* ]]\n')
    python.chmod(0o755)
    file = cluster_file(tmp_path, scheduler="local", python=str(python))
    main(words_of(tmp_path / "runs", file, *CHOICE, "--dry-run"))
    script = capsys.readouterr().out
    done = subprocess.run(["bash", "-c", script], capture_output=True, timeout=20, check=False)
    assert done.returncode == 1
    ran = (tmp_path / "ran").read_text().split()
    assert [name.split("-k-pixel")[0] for name in ran] == [
        "tokenise", "pretrain-mim", "pretrain-pim", "linear-probe-pim",
    ]  # fmt: skip
