"""Transposed convolution or resize-convolution, with and without skip connections?

    python -m experiments.ablate_upsampling
    python -m experiments.ablate_upsampling --data camvid --root DIR

A U-Net with two factors crossed: the layer that doubles the resolution, and whether the decoder sees the encoder's
maps. Without skips the decoder is widened until the network has as many parameters as with them.
Odena et al. 2016 predict a checkerboard where the kernel does not divide by the stride (transposed-3).
Answer: experiments/results/ablate_upsampling.md
"""

import sys
from typing import Any

from datamodules.brain import BrainDataModule
from datamodules.camvid import CamVidDataModule
from datamodules.shapes import ShapesDataModule
from experiments.ablation import Ablation, add_arguments, crossed, main
from experiments.flags import Parser, positive, refuse
from experiments.run import Run
from lightning_modules.unet import UNetModule

FACTORS = {"upsample": ("transposed-2", "transposed-3", "nearest", "bilinear"), "skips": ("concat", "none")}
BASELINE = "transposed-2+concat"  # the paper's up-convolution and skips
QUESTION = "Transposed convolution or resize-convolution, with and without skip connections?"

RECIPE = {"norm": "batch", "match_parameters": True, "optimizer": "adamw", "momentum": 0.9, "schedule": "poly"}
BRAIN_NOTE = (
    "One averaged brain (MNI152): the numbers rank designs on its anatomy, they do not measure generalisation to people. "
    "Training and test slices are at least 5 mm apart."
)
CAMVID_NOTE = (
    "Road scenes of the usual 367/101/233 split; validation frames are video neighbours of training frames, so the test "
    "split is the honest one."
)

# What two CPU cores train in minutes (brain) or in about an hour (CamVid).
BASES = {
    "brain": Run(
        module=UNetModule,
        datamodule=BrainDataModule,
        # CSF is 2 % of the pixels, one or two pixels wide, and lost without its weight.
        hparams={**RECIPE, "width": 8, "depth": 3, "lr": 5e-3, "class_weights": (0.5, 3.0, 1.0, 1.0)},
        data={"crop": 96, "zoom": (0.75, 1.5), "jitter": 0.1, "batch_size": 4},
        trainer={"max_epochs": 12, "check_val_every_n_epoch": 2},
    ),
    "camvid": Run(
        module=UNetModule,
        datamodule=CamVidDataModule,
        hparams={**RECIPE, "width": 8, "lr": 5e-3},
        data={"scale": 0.5, "crop": (128, 176), "batch_size": 4},
        trainer={"max_epochs": 12, "check_val_every_n_epoch": 4},
    ),
    "shapes": Run(
        module=UNetModule,
        datamodule=ShapesDataModule,
        hparams={**RECIPE, "width": 4, "lr": 5e-3},
        trainer={"max_epochs": 2, "check_val_every_n_epoch": 1},
    ),
}
# The width of the paper and the images' own size, for a GPU.
FULL_SIZE = {
    "brain": BASES["brain"].but(
        width=64, depth=4, lr=1e-3, data={"crop": 192, "batch_size": 16}, trainer={"max_epochs": 200}
    ),
    "camvid": BASES["camvid"].but(
        width=64,
        lr=1e-3,
        data={"scale": 1.0, "crop": (352, 480), "batch_size": 16, "num_workers": 8},
        trainer={"max_epochs": 200},
    ),
}
NOTES = {
    "brain": BRAIN_NOTE,
    "camvid": CAMVID_NOTE,
    "shapes": "Discs and squares on noise: shows that the experiment runs, and nothing about segmentation.",
}

RUNS = crossed(BASES["brain"], **FACTORS)


def ablation(
    data: str,
    root: str | None = None,
    *,
    epochs: int | None = None,
    scale: float | None = None,
    full_size: bool = False,
) -> Ablation:
    """The grid on the data set `data`; `epochs` and `scale` (of the images' sides, and of the crop) set its cost."""
    bases = FULL_SIZE if full_size else BASES
    if data not in bases:
        raise ValueError(f"--full-size has settings for {', '.join(bases)}, got --data {data}")
    base = bases[data]
    if data != "camvid" and root is not None:
        raise ValueError(f"--root belongs to --data camvid, got --data {data}")
    if data == "camvid":
        if root is None:
            raise ValueError("--data camvid needs --root DIR, a folder with images/, masks/, classes.txt and splits/")
        base = base.but(data={"root": root})
    if epochs is not None:
        # The largest interval that is not longer than the default and ends with the last epoch.
        most = base.resolved()["trainer.check_val_every_n_epoch"]
        every = max(n for n in range(1, most + 1) if epochs % n == 0)
        base = base.but(trainer={"max_epochs": epochs, "check_val_every_n_epoch": every})
    if scale is not None:
        if not 0 < scale <= 8:
            raise ValueError(f"--scale must be more than 0 and at most 8, got {scale}")
        base = base.but(data=_scaled(base, scale))
    return _described(base, data, full_size)


def _scaled(base: Run, scale: float) -> dict[str, Any]:
    """Arguments of the data for images whose sides are `scale` times those of `base`."""
    r = base.resolved()
    crop = [round(scale * side) for side in base.datamodule(**base.data).transform.crop]
    if min(crop) < 16:
        raise ValueError(f"--scale {scale} leaves a crop of {crop[0]} x {crop[1]} pixels; at least 16 x 16 are needed")
    if base.datamodule is ShapesDataModule:
        return {"size": round(scale * r["data.size"]), "crop": tuple(crop)}
    return {"scale": scale * r["data.scale"], "crop": tuple(crop)}


def _described(base: Run, data: str, full_size: bool) -> Ablation:
    r = base.resolved()
    size = f"width {r['hparams.width']}, crop {r['data.crop']}, batch {r['data.batch_size']}, {r['trainer.max_epochs']} epochs"
    return Ablation(
        name="ablate_upsampling" + f"_{data}" * (data != "brain") + "_full_size" * full_size,
        question=QUESTION,
        runs=crossed(base, **FACTORS),
        factors=FACTORS,
        baseline=BASELINE,
        data=data,
        data_note=NOTES[data],
        scale_note=f"{'Full size' if full_size else 'CPU scale'}: {size}.",
    )


def command_line() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--data", choices=BASES, default="brain")
    parser.add_argument("--root", help="folder of the CamVid images, masks, classes.txt and splits")
    parser.add_argument("--epochs", type=positive, help="of each cell")
    parser.add_argument("--scale", type=float, help="of the images' sides, relative to the default")
    parser.add_argument("--full-size", action="store_true", help="the paper's width and whole images, for a GPU")
    add_arguments(parser)
    args = parser.parse_args()
    try:
        grid = ablation(args.data, args.root, epochs=args.epochs, scale=args.scale, full_size=args.full_size)
    except (ValueError, FileNotFoundError) as error:
        refuse(str(error))
    return main(grid, args)


if __name__ == "__main__":
    sys.exit(command_line())
