"""What happens around the bare training steps: seeds, and the files of one run."""

import io
import math
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor

from datamodules.base import SegmentationDataset
from experiments.shell.files import PREDICTION, write_atomic, write_whole
from lightning_modules.base import Batch
from lightning_modules.components.scores.reductions import scores
from lightning_modules.components.scores.table import PER_IMAGE

SAMPLES = 4  # test images, spread over the split, that every run stores for figures
EXTREMES = 3  # of its worst test images, and of its best, each run stores as many


class SeedSteps(Callback):
    """Makes what is random inside the network, such as dropout, a function of (seed, step, rank).

    So a resumed run draws what the uninterrupted one would have drawn, with no generator state to store.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        entropy = np.random.SeedSequence([self.seed, trainer.fit_loop.total_batch_idx, trainer.global_rank])
        # torch.manual_seed asks every kind of device, and on a CPU there is one generator alone.
        seed = torch.default_generator.manual_seed if pl_module.device.type == "cpu" else torch.manual_seed
        seed(int(entropy.generate_state(1, np.uint64)[0]))


class MetricsFile(Callback):
    """metrics.csv: one row an epoch. A resumed run keeps the rows before it, and what a checkpoint knew of its
    epoch."""

    def __init__(self, out: Path) -> None:
        self.path = out / "metrics.csv"
        self.started: float | None = None  # when this process began with this epoch
        self.spent = 0.0  # seconds that earlier processes trained for it
        self.lr = math.nan
        self.validated: dict[str, float] = {}  # the scores of the latest validation in this epoch

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._seconds(), "lr": self.lr, "validated": self.validated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.spent, self.lr = state_dict["seconds"], state_dict["lr"]
        self.validated = dict(state_dict["validated"])

    def _seconds(self) -> float:
        return self.spent + (0.0 if self.started is None else time.monotonic() - self.started)

    def read(self) -> pd.DataFrame:
        try:
            if self.path.exists() and not self.path.is_file():  # a pipe would be waited for
                raise ValueError("no regular file")
            rows = pd.read_csv(self.path)
            if missing := {"epoch", "step", "seconds"} - {*rows.columns}:
                raise ValueError(f"it has no column {', '.join(sorted(missing))}")
            return rows
        except FileNotFoundError as error:
            raise ValueError(f"{self.path} is gone: delete its folder to train it from the start") from error
        except ValueError as error:  # what pandas raises for an empty or a broken file
            raise ValueError(
                f"{self.path} is damaged ({error}): delete its folder to train it from the start"
            ) from error

    def summary(self) -> tuple[dict[str, float], float]:
        """The scores of the last validation, and the seconds of all epochs, also of those before a resume."""
        rows = self.read()
        validated = rows.filter(like="val/").dropna(how="all")
        last = {str(name): float(value) for name, value in validated.iloc[-1].items()} if len(validated) else {}
        return last, float(rows["seconds"].sum())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses to go on where the rows of the epochs before are lost."""
        if trainer.is_global_zero and trainer.current_epoch:
            epochs = self.read().get("epoch", pd.Series(dtype=int)).tolist()
            if epochs[: trainer.current_epoch] != list(range(trainer.current_epoch)):
                raise ValueError(
                    f"{self.path} has the epochs {epochs}, where those before {trainer.current_epoch} were trained: "
                    "put it back, or delete its folder to train it from the start"
                )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = time.monotonic()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            logged = trainer.callback_metrics.items()
            self.validated = {name: float(value) for name, value in logged if name.startswith("val/")}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loss = float(pl_module.epoch_loss.compute())  # type: ignore[union-attr,operator]  # of all processes, so all of them ask
        if trainer.is_global_zero:
            row: dict[str, float] = {"epoch": trainer.current_epoch, "step": trainer.global_step}
            row |= {"seconds": self._seconds(), "train/loss": loss, "train/lr": self.lr, **self.validated}
            rows = pd.DataFrame([row])
            if trainer.current_epoch:  # then those before are there, and are not lost in silence
                before = self.read()
                rows = pd.concat([before[before["epoch"] < trainer.current_epoch], rows], ignore_index=True)
            write_atomic(self.path, rows.to_csv(index=False))
        self.started, self.spent, self.validated = None, 0.0, {}


class PerImage(Callback):
    """per_image.npz: scores of each test image, once each and in order, whatever the number of devices.

    Of n images: names (n,), groups (n,) as the data module has them, and what `PER_IMAGE` in `components.scores.table`
    describes, (n, *shape) each.
    """

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
        scored = {name: value for name, value in outputs.items() if name in PER_IMAGE}
        self.rows.append({**scored, "index": batch["index"]})

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        index = self._every("index", trainer)
        order = index.argsort()
        order = order[index[order] >= 0]  # without the padding of distributed evaluation
        ordered = torch.equal(order, torch.arange(len(index), device=order.device))
        arrays = {}
        for name in [*self.rows[0]]:  # which get rid of it, so that not all of it is held twice
            value = self._every(name, trainer)
            if trainer.is_global_zero:
                arrays[name] = (value if ordered else value[order]).cpu().numpy()
        if not trainer.is_global_zero:
            return
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        of_split = datamodule.dataset("test").names
        names = [of_split[i] for i in index[order].tolist()]
        save_npz(self.path, names=np.array(names), groups=np.array(datamodule.groups(names)), **arrays)

    def _every(self, name: str, trainer: Trainer) -> Tensor:
        """Takes `name` out of the rows: (n, ...) of the images of all processes, each of which must call it."""
        mine = torch.cat([row.pop(name) for row in self.rows])
        if trainer.world_size == 1:
            return mine
        # (world, n, ...) -> (world * n, ...); the devices have equally many, with padding
        every: Tensor = trainer.strategy.all_gather(mine).flatten(0, 1)
        return every


class Predictions(Callback):
    """predictions.zip: the labels of every test image, <position in the split>.png, in the colours of the classes."""

    def __init__(self, out: Path) -> None:
        self.path = out / "predictions.zip"
        self.pictures: dict[int, bytes] = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.pictures = {}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        palette: Any = pl_module.palette
        for position, labels in zip(batch["index"].tolist(), outputs["labels"], strict=True):
            if position >= 0:  # no padding of distributed evaluation
                self.pictures[position] = encode_labels(labels, palette)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        every = gathered(trainer, self.pictures)
        if trainer.is_global_zero:
            save_predictions(self.path, every)


class Samples(Callback):
    """samples.npz: some test images with what was scored of them, see `sampled`.

    After `PerImage` and `Predictions`, whose files it reads: another forward, in another precision say, may predict
    other labels than those that were scored.
    """

    def __init__(self, out: Path) -> None:
        self.path = out / "samples.npz"
        self.initial: Tensor | None = None
        self.logits: dict[int, Tensor] = {}  # of the first sample, in the process that scored it

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Before a checkpoint is restored, so that a resumed run too sees the weights that its seed starts with.
        if stage == "fit" and trainer.is_global_zero:
            dataset = trainer.datamodule.dataset("test")  # type: ignore[attr-defined]
            image = dataset[sample_positions(len(dataset))[0]][0]
            with trainer.precision_plugin.forward_context():
                self.initial = predict(pl_module, image)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.logits = {}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        first = sample_positions(len(trainer.datamodule.dataset("test")))[0]  # type: ignore[attr-defined]
        for position, logits in zip(batch["index"].tolist(), outputs["logits"], strict=True):
            if position == first:
                self.logits[position] = logits.cpu()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logits = gathered(trainer, self.logits)
        if not trainer.is_global_zero or self.initial is None:
            return
        dataset = trainer.datamodule.dataset("test")  # type: ignore[attr-defined]
        with np.load(self.path.with_name("per_image.npz"), allow_pickle=False) as stored:
            confusion = stored["confusion"]
        with zipfile.ZipFile(self.path.with_name("predictions.zip")) as pictures:

            def labels(position: int) -> np.ndarray:
                return np.array(Image.open(io.BytesIO(pictures.read(PREDICTION.format(position)))))

            arrays = sampled(dataset, confusion, labels, next(iter(logits.values())))
        save_npz(self.path, initial_logits=half(self.initial), **arrays)


def gathered(trainer: Trainer, mine: dict[int, Any]) -> dict[int, Any]:
    """What all processes hold, by the position of the image in its split; every process must call it."""
    every: list[Any] = [mine]
    if trainer.world_size > 1:
        every = [None] * trainer.world_size
        torch.distributed.all_gather_object(every, mine)
    return {position: value for of_process in every for position, value in of_process.items()}


def sampled(
    dataset: SegmentationDataset, confusion: np.ndarray, labels: Callable[[int], np.ndarray], logits: Tensor
) -> dict[str, np.ndarray]:
    """Images, masks and scored labels of a few images of the test split, and the scored logits (C, H, W) of the first.

    First `SAMPLES` that are the same for every run, then the `EXTREMES` worst and best by the mIoU of the image alone,
    from the confusion matrices of all images (n, C, C). `names` and `kinds`, one word or two of "fixed", "worst" and
    "best" each, tell which is which. `labels` gives those (H, W) of the image at a position.
    """
    miou = scores(confusion)["miou"]
    order = [int(i) for i in np.argsort(miou, kind="stable") if not np.isnan(miou[i])]
    most = min(EXTREMES, len(order) // 2)  # no image is both
    kinds: dict[int, list[str]] = {position: ["fixed"] for position in sample_positions(len(dataset))}
    for kind, positions in (("worst", order[:most]), ("best", order[len(order) - most :][::-1])):
        for position in positions:
            kinds.setdefault(position, []).append(kind)
    arrays = {
        "names": np.array([dataset.names[position] for position in kinds]),
        "kinds": np.array([" ".join(words) for words in kinds.values()]),
        "logits": half(logits),
    }
    for i, position in enumerate(kinds):
        image, mask = dataset[position]
        arrays[f"image_{i}"] = to_rgb(image)
        arrays[f"mask_{i}"] = mask.byte().numpy()
        arrays[f"prediction_{i}"] = labels(position).astype(np.uint8)
    return arrays


def half(logits: Tensor) -> np.ndarray:
    """Logits as they are stored: float16, whose largest number, 65504, stands for all beyond it."""
    largest = torch.finfo(torch.float16).max
    return np.asarray(logits.clamp(-largest, largest).half())


def predict(module: LightningModule, image: Tensor) -> Tensor:
    """The logits (C, H, W), float32 on the CPU, of one image (in_channels, H, W), in the network's own precision."""
    training = module.training
    parameter = next(module.parameters())
    with torch.no_grad():
        logits: Tensor = module.eval()(image[None].to(parameter.device, parameter.dtype))[0].float().cpu()
    module.train(training)
    return logits


def sample_positions(length: int) -> list[int]:
    """`SAMPLES` positions spread over a split: the middles of equal parts of it."""
    count = min(SAMPLES, length)
    return [int((i + 0.5) * length / count) for i in range(count)]


def to_rgb(image: Tensor) -> np.ndarray:
    """(channels, H, W) in [0, 1] -> (H, W, 3) uint8 to look at: three channels as they are, else their mean as grey."""
    shown = image if len(image) == 3 else image.mean(0, keepdim=True).expand(3, -1, -1)
    return np.asarray((shown.clamp(0, 1) * 255).round().byte().permute(1, 2, 0))


def encode_labels(labels: Tensor, palette: Sequence[tuple[int, int, int]]) -> bytes:
    """Labels (H, W) as an indexed PNG."""
    picture = Image.fromarray(labels.byte().cpu().numpy())
    picture.putpalette([level for colour in palette for level in colour])
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def save_predictions(path: Path, pictures: Mapping[int, bytes]) -> None:
    """A zip of PNGs by their position in the split; without dates, so that the same pictures give the same bytes."""

    def write(file: Any) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            for position in sorted(pictures):
                archive.writestr(zipfile.ZipInfo(PREDICTION.format(position)), pictures[position])

    write_whole(path, write)


def save_npz(path: Path, **arrays: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomic(path, buffer.getvalue())
