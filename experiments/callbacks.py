"""What happens around the bare training steps: seeds, files and checkpoints of one run."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from experiments.files import write_atomic, write_whole
from lightning_modules.base import Batch

SAMPLES = 4  # test images whose predictions are stored for figures


class SeedSteps(Callback):
    """Makes what is random inside the network, such as dropout, a function of (seed, step, rank).

    So a resumed run draws what the uninterrupted one would have drawn, with no generator state to store.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        entropy = np.random.SeedSequence([self.seed, trainer.fit_loop.total_batch_idx, trainer.global_rank])
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]))


class StopOnNonFinite(Callback):
    """Stops at the end of an epoch whose loss is NaN or infinite, before its weights are saved."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loss = trainer.callback_metrics.get("train/loss_epoch")
        if loss is not None and not torch.isfinite(loss):
            raise ValueError(
                f"the training loss is {float(loss)} in epoch {trainer.current_epoch}: lower --model.lr, or clip gradients "
                f"with --trainer.gradient_clip_val; the weights of the epoch before are in checkpoints/last.ckpt"
            )


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints written whole, in the folder they belong to.

    Lightning's own stage in the system's temporary folder and copy from there, so that a kill can leave half a file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        write_whole(Path(path), lambda file: torch.save(checkpoint, file))


def last_checkpoint(out: Path) -> ModelCheckpoint:
    """checkpoints/last.ckpt, after every epoch."""
    return ModelCheckpoint(
        out / "checkpoints",
        filename="last",
        save_top_k=1,
        every_n_epochs=1,
        enable_version_counter=False,
        save_on_train_epoch_end=True,
    )


class MetricsFile(Callback):
    """metrics.csv: one row an epoch. A resumed run keeps the rows of the epochs before it."""

    def __init__(self, out: Path) -> None:
        self.path = out / "metrics.csv"

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        row: dict[str, float] = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        row["train/loss"] = logged.pop("train/loss_epoch")
        row["train/lr"] = logged.pop("train/lr")
        validated = trainer.fit_loop.epoch_loop._should_check_val_epoch()
        row |= {name: value for name, value in logged.items() if name.startswith("val/") and validated}
        rows = pd.DataFrame([row])
        if self.path.exists():
            before = pd.read_csv(self.path)
            rows = pd.concat([before[before["epoch"] < trainer.current_epoch], rows], ignore_index=True)
        write_atomic(self.path, rows.to_csv(index=False))


class PerImage(Callback):
    """per_image.npz: scores of each test image, once each and in order, whatever the number of devices."""

    def __init__(self, out: Path) -> None:
        self.path = out / "per_image.npz"
        self.rows: list[dict[str, Tensor]] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rows = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        kept = {name: outputs[name] for name in ("confusion", "boundary_f1", "checkerboard")} | {
            "index": batch["index"]
        }
        self.rows.append(kept)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        mine = {name: torch.cat([row[name] for row in self.rows]) for name in self.rows[0]}
        every = mine
        if trainer.world_size > 1:  # (world, n, ...) -> (world * n, ...); the devices have equally many, with padding
            every = {name: trainer.strategy.all_gather(value).flatten(0, 1) for name, value in mine.items()}
        if not trainer.is_global_zero:
            return
        order = every["index"].argsort()
        order = order[every["index"][order] >= 0]  # without the padding of distributed evaluation
        names = trainer.datamodule.dataset("test").names  # type: ignore[attr-defined]
        arrays = {name: value[order].cpu().numpy() for name, value in every.items() if name != "index"}
        save_npz(self.path, names=np.array([names[i] for i in every["index"][order].tolist()]), **arrays)


class Samples(Callback):
    """samples.npz: a few fixed test images with their predictions, and the logits of the first before and after training."""

    def __init__(self, out: Path) -> None:
        self.path, self.initial = out / "samples.npz", out / "initial_logits.npz"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and not self.initial.exists():
            image, _ = self._sample(trainer, 0)
            save_npz(self.initial, logits=self._logits(pl_module, image).half().numpy())

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        positions = sample_positions(len(trainer.datamodule.dataset("test")))  # type: ignore[attr-defined]
        arrays: dict[str, np.ndarray] = {}
        for i, position in enumerate(positions):
            image, mask = self._sample(trainer, position)
            logits = self._logits(pl_module, image)
            arrays[f"image_{i}"] = to_rgb(image)
            arrays[f"mask_{i}"] = mask.byte().numpy()
            arrays[f"prediction_{i}"] = logits.argmax(0).byte().numpy()
            if i == 0:
                arrays["logits"] = logits.half().numpy()
        names = [trainer.datamodule.dataset("test").names[p] for p in positions]  # type: ignore[attr-defined]
        if self.initial.exists():
            arrays["initial_logits"] = np.load(self.initial)["logits"]
        save_npz(self.path, names=np.array(names), **arrays)
        self.initial.unlink(missing_ok=True)

    def _sample(self, trainer: Trainer, position: int) -> tuple[Tensor, Tensor]:
        image, mask = trainer.datamodule.dataset("test")[position]  # type: ignore[attr-defined]
        return image, mask

    def _logits(self, pl_module: LightningModule, image: Tensor) -> Tensor:
        training = pl_module.training
        with torch.no_grad():
            logits: Tensor = pl_module.eval()(image[None].to(pl_module.device))[0].float().cpu()
        pl_module.train(training)
        return logits


def sample_positions(length: int) -> list[int]:
    """`SAMPLES` positions spread over a split: the middles of equal parts of it."""
    count = min(SAMPLES, length)
    return [int((i + 0.5) * length / count) for i in range(count)]


def to_rgb(image: Tensor) -> np.ndarray:
    """(1 or 3 channels, H, W) in [0, 1] -> (H, W, 3) uint8; of other channel counts the first three."""
    shown = image.expand(3, -1, -1) if len(image) == 1 else image[:3]
    return np.asarray((shown.clamp(0, 1) * 255).round().byte().permute(1, 2, 0))


def save_npz(path: Path, **arrays: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomic(path, buffer.getvalue())
