"""Where the processes of a run are: what Lightning is told of those that torchrun or SLURM has started."""

import os
import warnings
from collections.abc import Mapping
from typing import Any

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from experiments.shell.processes import Started, first_process, started
from lightning_modules.base import SegmentationModule


class Srun(SLURMEnvironment):
    """The tasks of a step of SLURM. Lightning's own knows the job alone, and only some ways to ask for tasks."""

    def __init__(self, tasks: Started) -> None:
        self.tasks = tasks
        super().__init__(auto_requeue=False)  # a signal saves and ends: see `experiments.runs.checkpoints.Signals`

    @staticmethod
    def _validate_srun_variables() -> None:
        """Nothing: `started` has checked what counts."""

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Nothing: `placed` has."""

    def world_size(self) -> int:
        return self.tasks.each * self.tasks.machines

    @property
    def main_address(self) -> str:
        nodes = next((os.environ[name] for name in ("SLURM_STEP_NODELIST", "SLURM_NODELIST") if name in os.environ), "")
        return os.environ.setdefault("MASTER_ADDR", self.resolve_root_node_address(nodes or "127.0.0.1"))


def cluster() -> list[ClusterEnvironment]:
    """What Lightning takes for the environment, where it would guess otherwise than `started`."""
    others = started()
    if others is not None and others.by == "srun":
        return [Srun(others)]
    # Lightning would wait for the tasks of a job of which this process is the only one.
    return [LightningEnvironment()] if others is None and "SLURM_NTASKS" in os.environ else []


def placed(where: Mapping[str, Any]) -> dict[str, Any]:
    """`where` a run computes, with the devices and machines that processes were started for, unless it states them.

    Raises ValueError where it states others, and for several machines on which nothing has started processes.
    """
    others = started()
    if others is None:
        if where.get("num_nodes", 1) != 1 and not {"NODE_RANK", "GROUP_RANK"} & os.environ.keys():
            raise ValueError(
                f"--trainer.num_nodes {where['num_nodes']} needs a process on every machine: start the command with "
                "torchrun or srun, or on each machine with NODE_RANK, MASTER_ADDR and MASTER_PORT set"
            )
        return dict(where)
    stated = {"devices": others.each, "num_nodes": others.machines}
    for name, count in stated.items():
        if name in where and str(where[name]) not in (str(count), "auto"):
            raise ValueError(
                f"{others.by} has started {others.machines} x {others.each} processes, so --trainer.{name} must be "
                f"{count}, got {where[name]}: leave it out"
            )
    return {**where, **stated}


def check_first(trainer: Trainer) -> None:
    """Raises ValueError where Lightning counts the processes of a run otherwise than `first_process`."""
    if trainer.is_global_zero != first_process():
        raise ValueError(
            f"process {trainer.global_rank} of {trainer.world_size} was started in a way that is not known here: use "
            "torchrun, srun, or --trainer.devices alone"
        )


def synchronise_batch_norm(trainer: Trainer, module: SegmentationModule) -> None:
    """Batch statistics over all devices, so that their number does not change what is normalised."""
    if trainer.world_size == 1 or not any(isinstance(part, _BatchNorm) for part in module.network.modules()):
        return
    if trainer.strategy.root_device.type == "cuda":
        module.network = synchronised(module.network)
    else:
        warnings.warn(
            "batch norm cannot be synchronised over CPU processes: each normalises its own share of the batch, so the "
            "result depends on --trainer.devices; use one device, or --model.norm group",
            stacklevel=2,
        )


def synchronised(network: nn.Module) -> nn.Module:
    """The network with its weights, and batch norms that take their statistics over all devices."""
    if any(type(part).__module__.startswith("timm.") for part in network.modules()):
        from timm.layers.norm_act import (
            convert_sync_batchnorm,
        )  # torch's own loses the activation within timm's batch norms

        converted: nn.Module = convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return converted
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    return converted
