"""How several devices share the work of a run, where Lightning's own strategies by name are not enough."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch.optim import Optimizer

from lightning_modules.components.sharding import gathered, spread_like

SHARDED = "fsdp2"
# Settings that do not go with it: what it takes instead, and why.
UNSHARDED: dict[str, tuple[Any, str]] = {
    "average": ("none", "an average needs the whole network in every process"),
    "compile": (False, "torch.compile breaks its graph at each part that is gathered"),
    "channels_last": (False, "torch shards weights in their usual order alone"),
}
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "16-true")  # those of Lightning with it, the first by default


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2: every process holds a share of the weights, gradients and optimiser states, and one stage whole at a time.

    A checkpoint is one file, which the first process gathers tensor by tensor: the same as of one device. So any number
    of devices and any strategy goes on from it, and digest, `previous.ckpt` and every reader stay as they are.
    Lightning's distributed form is a folder, which cannot be replaced at once, and whose index torch reads as code
    (`FileSystemReader.read_metadata` unpickles it).

    Running statistics of batch norms are those of the first process, as DDP has them.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        # It warns of outputs that are cropped, as changes of them in place would go wrong: nothing here makes any.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = gathered(self._module().state_dict(), keep=self.is_global_zero)
        return state

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        state: dict[str, Any] = gathered(optimizer.state_dict(), keep=self.is_global_zero)
        return state

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return self.checkpoint_io.load_checkpoint(checkpoint_path)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        module = self._module()
        held = module.state_dict()
        state = {
            name: spread_like(v, held[name]) if name in held else v for name, v in checkpoint["state_dict"].items()
        }
        module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, stored in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            of_parameters = {
                number: {
                    name: spread_like(value, parameters[number]) if isinstance(value, torch.Tensor) else value
                    for name, value in values.items()
                }
                for number, values in stored["state"].items()
            }
            optimizer.load_state_dict({**stored, "state": of_parameters})

    def on_validation_start(self) -> None:
        self._share_statistics()

    def on_test_start(self) -> None:
        self._share_statistics()

    def _share_statistics(self) -> None:
        """Scores are those of what a checkpoint holds."""
        for buffer in self._module().buffers():
            torch.distributed.broadcast(buffer, 0)

    def _module(self) -> LightningModule:
        assert self.lightning_module is not None
        return self.lightning_module


def strategy_of(strategy: str | Strategy, hparams: Mapping[str, Any], precision: Any) -> str | Strategy:
    """What Lightning takes for a strategy that a flag or a caller names.

    Raises ValueError for settings of a run that do not go with "fsdp2".
    """
    if strategy != SHARDED and not isinstance(strategy, ShardedStrategy):
        return strategy
    for name, (wanted, why) in UNSHARDED.items():
        if hparams[name] != wanted:
            raise ValueError(
                f"--trainer.strategy {SHARDED} takes --model.{name} {wanted}, got {hparams[name]}: {why}; leave it "
                "out, or use --trainer.strategy ddp"
            )
    if precision not in (None, 32, "32", *PRECISIONS):
        raise ValueError(
            f"--trainer.strategy {SHARDED} takes --trainer.precision {', '.join(PRECISIONS)}, got {precision}: use one "
            "of them, or --trainer.strategy ddp"
        )
    return ShardedStrategy() if isinstance(strategy, str) else strategy
