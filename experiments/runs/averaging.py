"""The network that a run is scored by, made beside the one that is trained: see `average` of a recipe."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from datamodules.base import SegmentationDataModule
from experiments.runs.memory import is_divided, micro_batch
from experiments.runs.scoring import Task
from lightning_modules.base import SegmentationModule
from lightning_modules.components.averaging import AVERAGES, decay_of, exponential_average, recalibrated
from lightning_modules.components.checkpoints import read_checkpoint
from lightning_modules.components.choices import one_of

CROPS = 240  # training images, the same for all seeds, that batch-norm statistics are measured on
KEY = "averaging"  # of a checkpoint
HALF = ("16-true", "bf16-true", "transformer-engine", "transformer-engine-float16")  # precisions of all numbers
NETWORK = "network."  # what the names of its weights begin with


class Averaging(Callback):
    """Makes the final network of a run, on a copy, so that the training and its resume stay as they are.

    The test is of the final network, and so is a validation after the last step. Those before it are of the moving
    average, or of the trained weights where there is none. In a checkpoint `state_dict` is what a validation would
    score then, and "averaging" holds all weights as they are trained ("raw"), their moving "average", and whether
    `state_dict` is "final".

    Lightning's `EMAWeightAveraging` swaps the weights themselves for a validation, and saves them swapped within it.
    """

    def __init__(self, average: str, decay: float | None) -> None:
        self.averages, self.recalibrates, self.decay = average.startswith("ema"), "recalibrate" in average, decay
        self.average: AveragedModel | None = None
        self.final: nn.Module | None = None
        self.trained: nn.Module | None = None  # while another network stands in for it
        self.step = 0  # of the latest update
        self.stored: dict[str, Any] = {}  # what a checkpoint had, until the network is on its device

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if KEY not in checkpoint:
            raise ValueError(
                f"the checkpoint in {trainer.default_root_dir} holds no trained weights beside the averaged ones, so "
                "that no training can go on from it: put back the one that belongs there, or begin anew with --out"
            )
        self.stored, self.step = {**checkpoint[KEY], "scored": checkpoint["state_dict"]}, checkpoint["global_step"]
        pl_module.load_state_dict(self.stored["raw"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        network: Any = pl_module.network
        if self.averages:
            steps = int(trainer.estimated_stepping_batches)
            self.average = exponential_average(network, decay_of(steps) if self.decay is None else self.decay)
            if self.stored:
                self.average.module.load_state_dict(_of_network(self.stored["average"]))
                self.average.n_averaged.fill_(self.step)
        if self.stored.get("final"):
            self.final = deepcopy(network)
            self.final.load_state_dict(_of_network(self.stored["scored"]))
        self.stored = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.average is not None and trainer.global_step > self.step:  # else gradients are being accumulated
            self.average.update_parameters(pl_module.network)
        self.step = trainer.global_step

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking:
            return
        if _is_last_step(trainer):
            self._finish(trainer, pl_module)
        if (network := self._scored()) is not None:
            self.trained, pl_module.network = pl_module.network, network.eval()

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if self.trained is not None:
            pl_module.network, self.trained = self.trained, None

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        self.on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Before the last checkpoint, also of a run that ends without a validation."""
        if trainer.should_stop or _is_last_step(trainer):
            self._finish(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._finish(trainer, pl_module)
        pl_module.network, self.average = self.final, None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        rest = {name: value for name, value in state.items() if not name.startswith(NETWORK)}

        def whole(network: nn.Module | None) -> dict[str, Tensor]:
            if network is None:
                return state
            return rest | {NETWORK + name: value for name, value in network.state_dict().items()}

        checkpoint["state_dict"] = whole(self._scored())
        checkpoint[KEY] = {"raw": whole(self.trained), "final": self.final is not None}
        if self.average is not None:
            checkpoint[KEY]["average"] = whole(self.average.module)

    def _scored(self) -> nn.Module | None:
        """What a validation would score now, where that is not the network as it is trained."""
        return self.average.module if self.final is None and self.average is not None else self.final

    def _finish(self, trainer: Trainer, pl_module: Any) -> None:
        if self.final is None:
            network = pl_module.network if self.average is None else self.average.module
            with trainer.precision_plugin.forward_context():
                datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
                most = micro_batch(trainer, datamodule) if is_divided(trainer) else datamodule.batch_size
                self.final = (
                    recalibrate(pl_module, network, datamodule, most) if self.recalibrates else deepcopy(network)
                )


def recalibrate(
    module: SegmentationModule, network: nn.Module, datamodule: SegmentationDataModule, most: int
) -> nn.Module:
    """A copy of `network`, one of the kind of `module`, with batch-norm statistics of `CROPS` training images, of which
    up to `most` are in memory at a time."""
    like = next(network.parameters())
    parts = (part for batch in datamodule.crops(CROPS) for part in batch.split(most))  # type: ignore[no-untyped-call]
    return recalibrated(module, network, (part.to(like.device, like.dtype) for part in parts))


def average_of(task: Task, *, average: str) -> tuple[SegmentationModule, dict[str, Any]]:
    """The step "average": the network of a training with `average="ema"` as another `average` would have left it.

    Raises ValueError where the checkpoint holds no moving average.
    """
    one_of("average", average, AVERAGES)
    (module,), (checkpoint,) = task.modules, task.run.parents
    kept = read_checkpoint(checkpoint).get(KEY, {})
    if "average" not in kept:
        raise ValueError(f"{checkpoint} holds no moving average: train its network with average='ema'")
    module.load_state_dict(kept["average" if average.startswith("ema") else "raw"])
    if "recalibrate" in average:
        module.network = recalibrate(module, module.network, task.datamodule, task.datamodule.batch_size)
    return module.eval(), {}


def check_average(average: str, precision: Any) -> None:
    """Raises ValueError for averages of numbers in half precision, whose small steps would be rounded away."""
    if average != "none" and str(precision) in HALF:
        raise ValueError(
            f"average={average!r} needs weights and statistics in float32, got --trainer.precision {precision}: use "
            "bf16-mixed or 16-mixed, or average='none'"
        )


def _is_last_step(trainer: Trainer) -> bool:
    """Whether the training has no step left, by its length."""
    loop = trainer.fit_loop
    if 0 <= loop.epoch_loop.max_steps <= trainer.global_step:
        return True
    last_epoch = loop.max_epochs is not None and 0 <= loop.max_epochs <= trainer.current_epoch + 1
    return last_epoch and loop.epoch_loop._num_ready_batches_reached()


def _of_network(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(NETWORK): value for name, value in state.items() if name.startswith(NETWORK)}
