"""The batch script of a job array, and its submission by submitit's Slurm executor.

submitit writes the header, calls sbatch and reads the job's id. Its pickled functions are not used: a cell is
a command line of its own, that anybody can give again, and what it returns stands in its record. Neither is
its requeueing, which needs the pickle: the script below puts a cell back into the queue that saved itself.
"""

from __future__ import annotations

import io
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.cell_command import PROGRAM
from benchmark.cluster_arrays import Array
from benchmark.cluster_file import memory_of
from protocols.errors import HarnessError

if TYPE_CHECKING:
    import submitit

CELL = "@CELL@"  # stands for a cell's id in the words that all cells of an array share
LOG_PATTERN = "slurm-%A_%a.out"
# Processes of one machine meet at a port that is free there, under no name that a network would have to know.
_MEETING_HERE = "--standalone --local-addr=127.0.0.1"
# What sbatch needs of Slurm's variables; any other would change silently what the cluster file asks for, as
# those of the job do in which the command may be given.
_KEPT_VARIABLES = ("SLURM_CONF", "SLURM_JWT")
# sbatch may fail so though the controller has taken the job.
_UNSURE = re.compile(r"timed out|Zero Bytes|Unexpected message|Communication", re.IGNORECASE)
_REQUEUE = """\
if [ "$code" -eq 143 ]; then
    # The cell was told to stop, as Slurm does before its time is up or it is preempted, and has saved itself.
    if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {most} ]; then
        echo "to be requeued at $(date), after ${{SLURM_RESTART_COUNT:-0}} of {most} requeues"
        # Slurm ends this script as soon as it has said yes; it is asked again where it cannot be reached.
        for wait in 2 4 8 0; do
            scontrol requeue "$SLURM_JOB_ID" && break
            sleep "$wait"
        done
    else
        echo "stopped after {most} requeues; 'run --cluster' goes on from the checkpoint"
    fi
fi
"""


class Unsure(HarnessError):
    """sbatch failed, and the array may be in the queue all the same."""


def script_of(array: Array, words: Sequence[str], *, python: str) -> str:
    """What the array's tasks run, in bash: `words` follow run_benchmark.py, with CELL for the cell's id."""
    shape = array.shape
    threads = array.runtime.threads
    cells = [f"    {index}) cell={shlex.quote(cell.id)} ;;" for index, cell in sorted(array.cells.items())]
    cpus = shape.processes_per_node * array.request.cpus_per_process
    srun = f"srun --nodes={shape.nodes} --ntasks={shape.nodes} --ntasks-per-node=1 --cpus-per-task={cpus}"
    lines = [
        'case "$SLURM_ARRAY_TASK_ID" in',
        *cells,
        '    *) echo "no cell has this index"; exit 2 ;;',
        "esac",
        f"export OMP_NUM_THREADS={threads} MKL_NUM_THREADS={threads} OPENBLAS_NUM_THREADS={threads}",
    ]
    if shape.nodes > 1:
        # A node that fails must not leave the others waiting; one that has ended may, for evaluations.
        srun += " --kill-on-bad-exit=1 --wait=0"
    if shape.processes > 1:
        lines.append(f'export PYTHONPATH={shlex.quote(str(PROGRAM.parent))}"${{PYTHONPATH:+:$PYTHONPATH}}"')
        meeting = _MEETING_HERE
        if shape.nodes > 1:
            lines += [
                'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
                # Below the kernel's own choices, and another than that of a job on the same node.
                "port=$((20000 + SLURM_JOB_ID % 12000))",
            ]
            meeting = (
                '--rdzv-backend=c10d --rdzv-endpoint="$head:$port" '
                '--rdzv-id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"'
            )
        lines.append(f"{srun} {python} {_torchrun(array, meeting)} {_cell_words(words)}")
    else:
        lines.append(f"{srun} {python} {_cell_words(words)}")
    lines += ["code=$?", _REQUEUE.format(most=array.request.requeues) + 'exit "$code"']
    return "\n".join(lines)


def local_command(array: Array, words: Sequence[str], cell_id: str, *, python: str) -> str:
    """The same cell without Slurm, on this machine."""
    path = f"env PYTHONPATH={shlex.quote(str(PROGRAM.parent))} " if array.shape.processes > 1 else ""
    launcher = f"{_torchrun(array, _MEETING_HERE)} " if path else ""
    return f"{path}{python} {launcher}{_cell_words(words, cell=shlex.quote(cell_id))}"


def executor_of(
    array: Array, *, folder: Path, output: str, working_folder: Path, jobs: Mapping[str, str]
) -> submitit.SlurmExecutor:
    """submitit's executor for one array. `jobs` maps names of arrays that it waits for to their jobs' ids."""
    import submitit

    class ArrayExecutor(submitit.SlurmExecutor):
        """Submits one command as an array. Without a Slurm, too, it tells what it would submit."""

        @classmethod
        def affinity(cls) -> int:
            return 2

        def _make_submission_command(self, submission_file_path: Path) -> list[str]:
            return sbatch_command(array, jobs, str(submission_file_path))

    request, shape = array.request, array.shape
    processes = shape.processes_per_node
    more: dict[str, object] = {
        "array": _indices(array),
        "chdir": str(working_folder),
        "output": output,
        "signal": f"TERM@{request.stop_seconds}",
        "time": request.time,
        ("requeue" if request.requeues else "no-requeue"): True,
    }
    if request.gpus_per_node:
        more["gpus-per-node"] = f"{request.gpu_type}:{processes}" if request.gpu_type else processes
    more |= {name: value for name, value in request.sbatch.items() if value is not False}
    executor = ArrayExecutor(folder=folder)
    executor.update_parameters(
        job_name=array.name,
        partition=request.partition,
        account=request.account,
        qos=request.qos,
        constraint=request.constraint,
        nodes=shape.nodes,
        ntasks_per_node=1,
        cpus_per_task=processes * request.cpus_per_process,
        mem=None if request.memory_per_process is None else memory_of(request.memory_per_process, processes),
        setup=list(request.setup) or None,
        wckey=None,
        stderr_to_stdout=True,
        use_srun=False,  # the script calls it, and looks at what it returns
        additional_parameters=more,
    )
    return executor


def whole_script(script: str, executor: submitit.SlurmExecutor) -> str:
    """The whole batch script, as submitit writes it."""
    return executor._make_submission_file_text(script, "")


def submit_script(script: str, executor: submitit.SlurmExecutor) -> str:
    """Submit; returns the job's id.

    HarnessError with sbatch's own words if it refuses, Unsure if it does not tell whether it does.
    """
    import submitit

    Path(executor.folder).mkdir(parents=True, exist_ok=True)
    try:
        with _own_environment(), redirect_stderr(io.StringIO()):  # submitit prints what is raised below
            return executor._submit_command(script).job_id
    except FileNotFoundError:
        raise HarnessError(
            "there is no sbatch on this machine: give the command on a login node of the cluster, or add "
            "--dry-run to see what it would submit"
        ) from None
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        lines = str(error).splitlines()
        said = " ".join(([line for line in lines if "sbatch: error" in line] or lines)[:3])
        if _UNSURE.search(said) or isinstance(error, submitit.core.utils.FailedSubmissionError):
            raise Unsure(
                f"sbatch gave no clear answer: {said}; the array may be in the queue all the same: wait "
                "until Slurm answers again, and give the same command again, which looks for it there first"
            ) from None
        raise HarnessError(
            f"sbatch refused an array: {said}; what was submitted before it stays submitted: mend the "
            "cluster file, or wait where a limit is reached, and give the same command again for the rest"
        ) from None


@contextmanager
def _own_environment() -> Iterator[None]:
    """Within, sbatch asks for what the script's header says, and no other job's variables are passed on."""
    import submitit

    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    with submitit.helpers.clean_env():
        os.environ.update(kept)
        yield


def sbatch_command(array: Array, jobs: Mapping[str, str], script: str) -> list[str]:
    """sbatch with what the array waits for; a child whose parent failed leaves the queue by itself."""
    words = ["sbatch"]
    if array.corresponds is not None:
        words.append(f"--dependency=aftercorr:{jobs[array.corresponds]}")
    elif array.after:
        tasks = ":".join(f"{jobs[task.array]}_{task.index}" for task in array.after)
        words.append(f"--dependency=afterok:{tasks}")
    if len(words) > 1:
        words.append("--kill-on-invalid-dep=yes")
    return [*words, script]


def _indices(array: Array) -> str:
    indices = sorted(array.cells)
    is_range = indices == list(range(indices[0], indices[-1] + 1)) and len(indices) > 1
    text = f"{indices[0]}-{indices[-1]}" if is_range else ",".join(map(str, indices))
    most = array.request.array_parallelism
    return text if most is None else f"{text}%{most}"


def _torchrun(array: Array, meeting: str) -> str:
    shape = array.shape
    return (
        f"-m benchmark.elastic --nnodes={shape.nodes} --nproc-per-node={shape.processes_per_node} "
        f"--max-restarts=0 {meeting}"
    )


def _cell_words(words: Sequence[str], *, cell: str = '"$cell"') -> str:
    return shlex.join([str(PROGRAM), *words]).replace(CELL, cell)
