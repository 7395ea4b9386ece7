"""A network in whole numbers of 8 bits: calibrated on training images, and what that costs on validation images."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.base import SegmentationDataModule, SegmentationDataset
from experiments.exporting.formats import INPUT, Runner, Size, extra
from lightning_modules.base import SegmentationModule
from lightning_modules.components.scores.confusion import confusion_matrix, predict_labels
from lightning_modules.components.scores.reductions import scores

Images = Callable[[], Iterator[Tensor]]  # (1, C, H, W) each, anew at every call


@dataclass(frozen=True)
class Cost:
    """What 8 bits cost on `images` validation images: IoU of each class, NaN where neither truth nor prediction has it.

    The mean is over the classes that are there.
    """

    names: Sequence[str]
    images: int
    before: dict[str, np.ndarray]
    after: dict[str, np.ndarray]

    @property
    def sentence(self) -> str:
        before, after = (float(one["miou"]) for one in (self.before, self.after))
        gains = 100 * np.nan_to_num(self.after["iou"] - self.before["iou"])
        worst = int(gains.argmin())
        return (
            f"mIoU on {self.images} validation images: float32 {before:.2%}, int8 {after:.2%} "
            f"({100 * (after - before):+.2f} points); of the classes {self.names[worst]} fares worst "
            f"({gains[worst]:+.2f})"
        )


def spread(length: int, count: int) -> list[int]:
    """Positions of `count` items spread evenly over `length`: the next frame of a video shows nothing new."""
    count = min(length, count)
    return [int((i + 0.5) * length / count) for i in range(count)]


def check_data(module: SegmentationModule, datamodule: SegmentationDataModule, size: Size | None) -> None:
    """ValueError where the network was trained for other classes or channels, or takes images of one other size.

    `size` is that of a network for one size; None where it is free.
    """
    for what, ours, theirs in (
        ("classes", list(module.class_names), list(datamodule.class_names)),
        ("channels", module.hparams["in_channels"], datamodule.in_channels),
    ):
        if ours != theirs:
            raise ValueError(
                f"the checkpoint has the {what} {ours}, and the data of --int8 {theirs}: choose the data that it was "
                "trained on with --data and --data.root"
            )
    datamodule.verify()
    if size is None:
        return
    for split in ("train", "val"):
        dataset = datamodule.dataset(split)
        height, width = dataset[0][1].shape
        if (height, width) != size:
            raise ValueError(
                f"--int8 looks at images of the data, {height} x {width} pixels, and the network is exported for "
                f"{size[0]} x {size[1]}: give --dynamic, or --size {height} {width}"
            )


def quantise(data: bytes, images: Iterator[Tensor]) -> bytes:
    """The ONNX network `data` with weights and maps of 8 bits (QDQ), whose ranges are those that the `images` need.

    Weights have a scale for each channel. The metadata stays.
    """
    onnx, quantization = extra("onnx"), extra("onnxruntime.quantization")
    prepare: Any = extra("onnxruntime.quantization.shape_inference").quant_pre_process

    class Calibration(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(images, None)
            return None if image is None else {INPUT: image.numpy()}

    with tempfile.TemporaryDirectory() as folder:
        before, plain, after = (Path(folder) / f"{name}.onnx" for name in ("before", "plain", "after"))
        before.write_bytes(data)
        prepare(str(before), str(plain), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(plain),
            str(after),
            Calibration(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        made = onnx.load(str(after))
    facts = {fact.key: fact.value for fact in onnx.load_from_string(data).metadata_props}
    onnx.helper.set_model_props(made, {**facts, "weights": "int8"})
    whole: bytes = made.SerializeToString()
    return whole


def images_of(dataset: SegmentationDataset, count: int) -> Iterator[Tensor]:
    """The images (1, C, H, W) of `count` spread evenly over a split."""
    return (dataset[position][0][None] for position in spread(len(dataset), count))


def cost(module: SegmentationModule, dataset: SegmentationDataset, count: int, before: Runner, after: Runner) -> Cost:
    """The scores of the networks `before` and `after` quantisation on `count` images of a split, all together."""
    positions = spread(len(dataset), count)
    confusions = [torch.zeros(module.num_classes, module.num_classes, dtype=torch.int64) for _ in range(2)]
    for image, mask in (dataset[position] for position in positions):
        for runner, confusion in zip((before, after), confusions, strict=True):
            labels = predict_labels(runner(image[None]))
            confusion += confusion_matrix(labels, mask[None], module.num_classes, module.ignore_index)[0]
    found = [scores(confusion.numpy()) for confusion in confusions]
    return Cost(module.class_names, len(positions), found[0], found[1])
