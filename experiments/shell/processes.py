"""Which of the processes that train one run this is, whatever started them: nothing, Lightning, torchrun or SLURM."""

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Started:
    """Processes that something else has started: this one's number, and how many there are."""

    by: str  # its command
    rank: int  # of all
    each: int  # on every machine
    machines: int


def started(environ: Mapping[str, str] = os.environ) -> Started | None:
    """By whom this process is one of several, torchrun or srun; None where it is alone or starts the others itself.

    SLURM sets its variables for a batch script and for a step of one task, too: such a process starts its own. Raises
    ValueError where srun deals its tasks unevenly.
    """
    if "TORCHELASTIC_RUN_ID" in environ:
        world, each = int(environ["WORLD_SIZE"]), int(environ["LOCAL_WORLD_SIZE"])
        return Started("torchrun", int(environ["RANK"]), each, world // each)
    tasks = _slurm(environ, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    if "SLURM_STEP_ID" in environ and tasks > 1:
        machines = _slurm(environ, "SLURM_STEP_NUM_NODES", "SLURM_NNODES")
        if tasks % machines:
            raise ValueError(
                f"srun must start as many tasks on each of its {machines} machines, got {tasks} in all: use "
                "--ntasks-per-node"
            )
        return Started("srun", int(environ["SLURM_PROCID"]), tasks // machines, machines)
    return None


def _slurm(environ: Mapping[str, str], *names: str) -> int:
    """The first of these that is set: of the step, which is what srun has started, before that of the job."""
    return int(next((environ[name] for name in names if environ.get(name)), "1"))


def first_process() -> bool:
    """Whether this is the first of all processes that train one run: the one that writes, and speaks."""
    others = started()
    if others is not None:
        return others.rank == 0
    machine = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    return int(machine) == 0 and not by_lightning()


def by_lightning() -> bool:
    """Whether Lightning started this process for another one of the same machine, which it kills when this one ends
    with another status than 0."""
    return started() is None and int(os.environ.get("LOCAL_RANK", "0")) > 0


def restarted() -> bool:
    """Whether torchrun or SLURM started this again after it had ended: it goes on, as with --resume."""
    return any(int(os.environ.get(name) or "0") > 0 for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
