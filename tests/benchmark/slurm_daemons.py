"""A Slurm of one node for tests: munged, slurmctld and slurmd on free ports, ended with the block."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
START_SECONDS = 15.0
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
KillWait=3
JobRequeue=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


class NoSlurm(Exception):
    """This machine cannot run it; the text says why."""


@contextmanager
def slurm_of_one_node(folder: Path) -> Iterator[None]:
    """Within, Slurm's commands reach a Slurm whose state lies in `folder`. Raises NoSlurm."""
    missing = [name for name in PROGRAMS if _program(name) is None]
    if missing:
        raise NoSlurm(f"not installed: {', '.join(missing)} (Debian: slurm-wlm)")
    host = socket.gethostname().split(".")[0]
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir()
    munge = folder / "munge"
    (munge / "key").write_bytes(os.urandom(1024))
    (munge / "key").chmod(0o600)
    munge.chmod(0o700)
    controller_port, node_port = _free_ports(2)
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(
            host=host,
            user=getpass.getuser(),
            folder=folder,
            controller_port=controller_port,
            node_port=node_port,
        )
    )
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(configuration)
    try:
        _start("munged", "--force", f"--socket={munge}/socket", f"--key-file={munge}/key",
               f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed")  # fmt: skip
        _start("slurmctld", "-f", str(configuration))
        _start("slurmd", "-f", str(configuration))
        _wait_until_idle(folder)
        yield
    finally:
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run(
                ["scancel", f"--user={getpass.getuser()}"], capture_output=True, timeout=10, check=False
            )
        _end(folder / "slurmd.pid", folder / "slurmctld.pid")
        _end(munge / "pid")
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before


def _program(name: str) -> str | None:
    # The daemons lie where a user's PATH may not look.
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")


def _start(name: str, *arguments: str) -> None:
    """Start a daemon, which leaves for the background by itself."""
    program = _program(name)
    assert program is not None
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=START_SECONDS, check=False
    )
    if done.returncode:
        raise NoSlurm(f"{name} does not start here: {(done.stderr or done.stdout).strip()}")


def _wait_until_idle(folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        shown = subprocess.run(
            ["sinfo", "--noheader", "--format=%T"], capture_output=True, text=True, timeout=10, check=False
        )
        if shown.stdout.strip() == "idle":
            return
        time.sleep(0.2)
    log = (folder / "slurmd.log").read_text() if (folder / "slurmd.log").exists() else "no log of slurmd"
    raise NoSlurm(f"its node does not come up here: {log.strip().splitlines()[-1]}")


def _end(*pid_files: Path) -> None:
    """End the daemons of these pid files, and return when they have gone."""
    pids = []
    for pid_file in pid_files:
        with suppress(OSError, ValueError):
            pids.append(int(pid_file.read_text()))
            os.kill(pids[-1], signal.SIGTERM)
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _free_ports(number: int) -> list[int]:
    with_sockets = [socket.socket() for _ in range(number)]
    for one in with_sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in with_sockets]
    for one in with_sockets:
        one.close()
    return ports
