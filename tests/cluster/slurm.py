"""A stand-in for SLURM: sbatch, srun, sacct, scancel and scontrol of a cluster that is this machine.

It runs the scripts that are submitted, arrays with as many jobs at a time as they say, and tells jobs what SLURM tells
them. `install` writes the commands into a folder, which belongs at the beginning of PATH.
"""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

FOLDER = Path(os.environ.get("SLURM_STAND_IN", "."))
COMMANDS = ("sbatch", "srun", "sacct", "scancel", "scontrol")


def install(folder: Path) -> dict[str, str]:
    """Writes the commands; what the environment of whoever calls them has to have."""
    for name in COMMANDS:
        path = folder / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).resolve()} {name} "$@"\n')
        path.chmod(0o755)
    return {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "SLURM_STAND_IN": str(folder)}


def read(job: str) -> dict[str, object]:
    return dict(json.loads((FOLDER / f"{job}.json").read_text()))


def write(job: str, **state: object) -> None:
    path = FOLDER / f"{job}.json"
    old = read(job) if path.exists() else {}
    new = path.with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps(old | state))
    new.replace(path)


def sbatch(script: str) -> None:
    text = Path(script).read_text()
    array = re.search(r"#SBATCH --array=0-(\d+)%(\d+)", text)
    number = 1 + sum(1 for _ in FOLDER.glob("*.sh"))
    (FOLDER / f"{number}.sh").write_text(text)
    tasks = [f"{number}_{task}" for task in range(int(array[1]) + 1)] if array else [str(number)]
    for job in tasks:
        write(job, State="PENDING", starts=0)
    at_a_time = int(array[2]) if array else 1
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [sys.executable, __file__, "serve", str(at_a_time), *tasks]
    subprocess.Popen(command, start_new_session=True, **quiet)  # type: ignore[call-overload]
    print(f"Submitted batch job {number}")


def serve(at_a_time: str, *tasks: str) -> None:
    """The controller: runs the jobs of one script until each has ended."""
    running: dict[str, subprocess.Popen[bytes]] = {}
    while True:
        for job, process in [*running.items()]:
            if process.poll() is not None:
                del running[job]
                if read(job)["State"] == "RUNNING":
                    write(job, State="FAILED" if process.returncode else "COMPLETED")
        waiting = [job for job in tasks if read(job)["State"] == "PENDING" and job not in running]
        for job in waiting[: int(at_a_time) - len(running)]:
            running[job] = begin(job)
        if not waiting and not running:
            return
        time.sleep(0.1)


def begin(job: str) -> "subprocess.Popen[bytes]":
    number, _, task = job.partition("_")
    of_job = {"SLURM_JOB_ID": str(10_000 * int(number) + int(task or 0)), "SLURM_NODELIST": "localhost"}
    of_array = {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": task} if task else {}
    of_job |= {"SLURM_JOB_ID": number} if not task else {}
    starts = int(str(read(job)["starts"]))
    process = subprocess.Popen(
        ["bash", str(FOLDER / f"{number}.sh")],
        # What a script may leave of another launcher, which no cell must take for its own.
        env={**os.environ, **of_job, **of_array, "SLURM_RESTART_COUNT": str(starts), "RANK": "1", "WORLD_SIZE": "2"},
        start_new_session=True,
    )
    write(job, State="RUNNING", process=process.pid, starts=starts + 1)
    return process


def srun(*words: str) -> None:
    """The step: writes where the script says, with the numbers of the only task."""
    files = dict(itertools.pairwise(words))
    command = list(words[words.index(sys.executable) :])
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    for flag, descriptor in (("--output", 1), ("--error", 2)):
        path = files[flag].replace("%A_%a", job).replace("%j", job).replace("%t", "0")
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), descriptor)
    os.environ |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1", "SLURM_NODEID": "0"}
    os.environ |= {"SLURM_JOB_NUM_NODES": "1"}
    os.execvp(command[0], command)


def sacct(*words: str) -> None:
    print("JobID|State|NodeList")
    for number in (words[place + 1] for place, word in enumerate(words) if word == "-j"):
        for path in [*FOLDER.glob(f"{number}.json"), *FOLDER.glob(f"{number}_*.json")]:
            print(f"{path.stem}|{read(path.stem)['State']}|localhost")


def processes(job: str) -> list[int]:
    """All below the script of a job, which are its steps."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(") ")[2].split()[1])
    found = [int(str(read(job)["process"]))]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def scancel(job: str) -> None:
    """Tells the steps, and the rest after a while."""
    jobs = [path.stem for path in [*FOLDER.glob(f"{job}.json"), *FOLDER.glob(f"{job}_*.json")]]
    for one in jobs:
        was = read(one)["State"]
        write(one, State="CANCELLED")
        if was == "RUNNING":
            tell(one, signal.SIGTERM)


def tell(job: str, signum: int) -> None:
    for process in processes(job)[1:]:
        with suppress(ProcessLookupError):
            os.kill(process, signum)


def preempt(job: str) -> None:
    """As SLURM does for a job of more weight: SIGTERM, then the signal that the script asked for."""
    tell(job, signal.SIGTERM)
    time.sleep(1)
    tell(job, signal.SIGUSR2)


def scontrol(verb: str, *words: str) -> None:
    if verb == "requeue":
        write(words[0], State="PENDING")
    else:
        print("localhost")


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
