"""Makes a set of kept cells and checkpoints with the code of the checkout that it is started in.

    python tests/data/kept/make.py NAME     from the root of a checkout; the set is tests/data/kept/NAME

tests/experiments/test_kept.py holds every later version to each set: what a version has written stays loadable. An
older commit has a file of its own for that. Single-threaded on a CPU, under a minute.
"""

import argparse
import multiprocessing
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

sys.path.insert(0, os.getcwd())

from datamodules.shapes import ShapesDataModule
from experiments.grids.ablation import Ablation, crossed, variants
from experiments.grids.command import add_arguments
from experiments.grids.command import run_ablation as run_grid
from experiments.runs.run import Run
from experiments.runs.training import count_class_weights, train
from experiments.shell.catalogue import ARCHITECTURES
from experiments.train import parse_run
from lightning_modules.base import SegmentationModule
from lightning_modules.unet import UNetModule

TINY_RESNET = {"encoder": "resnet18", "encoder_width": 1 / 32, "decoder_width": 4}
# The settings of the smallest network of each architecture.
SMALL: dict[str, dict[str, Any]] = {
    "fcn": {"encoder_width": 1 / 32, "fc_width": 4},
    "hypercolumn": {"encoder_width": 1 / 32},
    "hypercolumn_boxes": {"encoder_width": 1 / 32, "fc_width": 4, "size": 10, "lr": 1e-5},
    "unet": {"width": 2, "depth": 2},
    "segnet": {"width": 2, "class_weights": None},
    "deconvnet": {"width": 2, "fc_width": 2},
    "deeplabv1": {"encoder_width": 1 / 32, "fc_width": 4},
    "deeplabv2": {"encoder": "resnet18", "encoder_width": 1 / 32},
    "deeplabv3": TINY_RESNET,
    "deeplabv3plus": {**TINY_RESNET, "low_level_width": 2},
    "pspnet": TINY_RESNET,
    "pointrend": {"network": "unet", "network_options": {"width": 2, "depth": 2}, "head_width": 4, "points": 32},
    "crf_as_rnn": {"network": "unet", "network_options": {"width": 2, "depth": 2}},
    "inverted_net": {"width": 4, "depth": 2, "class_weights": None},
    "smp": {"arch": "PSPNet", "encoder": "tu-mobilenetv3_small_050"},
}
UNET = ["--model", "unet", "--model.width", "2", "--model.depth", "1", "--trainer.accelerator", "cpu"]
SHAPES = ["--data", "shapes", "--data.size", "24", "--data.length", "4", "--data.batch_size", "2"]
TWO_EPOCHS = [*UNET, *SHAPES, "--model.class_weights", "median-frequency", "--trainer.max_epochs", "2"]


class Kill(Callback):
    """Ends the process as the system does, at the start of the second epoch."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def train_as_typed(arguments: list[str], callbacks: Sequence[Callback] = ()) -> None:
    """What `python -m experiments.train` does with these arguments."""
    torch.set_num_threads(1)
    run, args = parse_run(arguments)
    command = shlex.join(["python", "-m", "experiments.train", *arguments])
    train(run, args.out, callbacks=callbacks, command=command, **args.where)


def train_half(arguments: list[str]) -> None:
    child = multiprocessing.get_context("spawn").Process(target=train_as_typed, args=(arguments, [Kill()]))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL, child.exitcode


def make_folder(root: Path) -> None:
    """Six pictures of a disc on a slope of colours, two in each split."""
    for name in ("images", "masks", "splits"):
        (root / name).mkdir(parents=True)
    (root / "classes.txt").write_text("0 ground\n1 disc\n")
    random, (y, x) = np.random.default_rng(0), np.mgrid[:24, :32]
    for number in range(6):
        centre = random.integers(6, 18), random.integers(8, 24)
        mask = ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 < 30).astype(np.uint8)
        pixels = np.stack([4 * x, 6 * y, 20 * number + 0 * x], -1) + 90 * mask[..., None]
        pixels = np.clip(pixels + random.normal(0, 8, pixels.shape), 0, 255).astype(np.uint8)
        mask[0] = 255
        Image.fromarray(pixels).save(root / "images" / f"picture{number}.png")
        Image.fromarray(mask).save(root / "masks" / f"picture{number}.png")
    for split, numbers in {"train": (0, 1), "val": (2, 3), "test": (4, 5)}.items():
        (root / "splits" / f"{split}.txt").write_text("".join(f"picture{number}\n" for number in numbers))


def make_grid(out: Path) -> None:
    base = Run(
        module=UNetModule,
        datamodule=ShapesDataModule,
        hparams={"width": 2, "depth": 1, "lr": 0.01},
        data={"size": 24, "length": 6, "batch_size": 2},
        trainer={"max_epochs": 1},
    )
    factors = {"upsample": ("nearest", "transposed-2"), "skips": ("concat", "none")}
    grid = Ablation(
        name="kept",
        question="Do the cells of this version stay readable?",
        runs=variants(base, crossed(**factors)),
        factors=factors,
        baseline="nearest+concat",
        data="shapes",
        data_note="Discs and squares on noise.",
        scale_note="As small as a network can be.",
    )
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert run_grid(grid, parser.parse_args(["--seeds", "0", "1", "--jobs", "1", "--out", str(out)])) == 0
    # Of the report only the tables stay, as what a later report is compared with: the rest is made from the cells.
    for path in out.iterdir():
        if path.is_file() and path.name not in ("plan.json", "table.md"):
            path.unlink()
    shutil.rmtree(out / "figures")


def scatter(module: nn.Module, image: Tensor) -> None:
    """Gives every layer weights of its own, under which its maps of `image` have a deviation of about one.

    Some layers start at zero or alike, and in a narrow network signals die: then logits would say nothing of the
    layers.
    """

    def unit(layer: nn.Module, _: Any, output: Tensor) -> Tensor:
        size = output.std().clamp(1e-3, 1e3)
        for parameter in layer.parameters(recurse=False):
            parameter.div_(size)
        return output / size

    with torch.no_grad():
        for norm in module.modules():
            if isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None:
                norm.running_mean.normal_(0, 0.1)
                norm.running_var.uniform_(0.5, 1.5)
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        layers = [one for one in module.modules() if isinstance(one, nn.Linear | _ConvNd)]
        handles = [layer.register_forward_hook(unit) for layer in layers]
        module.eval()(image)
        for handle in handles:
            handle.remove()


def keep(module: SegmentationModule, file: Path) -> None:
    """The checkpoint, and beside it an image (H, W, 3), the logits (C, H, W) and the counted class weights, if any."""
    data = ShapesDataModule(length=2)
    module.describe(data.class_names, data.palette)
    pixels = np.random.default_rng(1).integers(256, size=(32, 48, 3), dtype=np.uint8)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    scatter(module, image)
    with torch.no_grad():
        logits = module.eval()(image)[0]
    # Logits that are alike everywhere would not show what a later version does to the network.
    assert logits.isfinite().all() and logits.std((1, 2)).median() > 0.01, (file, logits.std((1, 2)))
    counted = module.class_weights if module.hparams["class_weights"] == "median-frequency" else None
    trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    trainer.strategy.connect(module)
    trainer.save_checkpoint(file, weights_only=True)
    np.savez_compressed(
        file.with_suffix(".npz"),
        image=pixels,
        logits=logits.numpy(),
        **({} if counted is None else {"class_weights": counted.numpy()}),
    )


def make_checkpoints(folder: Path) -> None:
    folder.mkdir()
    if missing := [name for name in ARCHITECTURES if name not in SMALL]:
        sys.exit(f"error: SMALL in {__file__} needs small settings of {', '.join(missing)}")
    for name, module in ARCHITECTURES.items():
        torch.manual_seed(0)
        keep(module(3, 255, **SMALL[name]), folder / f"{name}.ckpt")
    weighed = UNetModule(3, 255, width=2, depth=2, class_weights="median-frequency")
    weighed.set_class_weights(count_class_weights(ShapesDataModule(length=2)))
    keep(weighed, folder / "unet-median-frequency.ckpt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", metavar="NAME", help="of the set: the commit or version that makes it")
    root = Path("tests", "data", "kept", parser.parse_args().name)  # relative: run.json names the folder of pictures so
    if root.exists():
        sys.exit(f"error: {root} exists: a set is made once, choose another name")
    torch.set_num_threads(1)
    make_folder(root / "pictures")
    make_grid(root / "grid")
    train_as_typed([*TWO_EPOCHS, "--out", str(root / "finished")])
    train_half([*TWO_EPOCHS, "--out", str(root / "half")])
    pictures = [
        "--data",
        "folder",
        "--data.root",
        str(root / "pictures"),
        "--data.crop",
        "24",
        "--data.batch_size",
        "2",
    ]
    train_as_typed([*UNET, *pictures, "--trainer.max_epochs", "1", "--out", str(root / "own")])
    make_checkpoints(root / "checkpoints")
    for path in [*root.rglob(".lock"), *root.rglob("log.txt")]:  # processes that are gone; folders of this machine
        path.unlink()


if __name__ == "__main__":
    main()
