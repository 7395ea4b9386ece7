"""Transposed convolution or resize-convolution, with and without skip connections?

    python -m experiments.ablate_upsampling
    python -m experiments.ablate_upsampling --data camvid --root DIR

A U-Net with two factors crossed: the layer that doubles the resolution, and whether the decoder sees the encoder's
maps. Without skips the decoder is widened until the network has as many parameters as with them. Between the layers
nothing is matched: transposed-2 has four weights a pair of channels where the others have nine, a tenth of all
parameters. Odena et al. 2016 predict a checkerboard where the kernel does not divide by the stride (transposed-3).
Answer: experiments/results/ablate_upsampling.md
"""

from datamodules.brain import BrainDataModule
from datamodules.camvid import CamVidDataModule
from datamodules.shapes import ShapesDataModule
from experiments.grids.ablation import Match, crossed
from experiments.grids.study import BRAIN_WEIGHTS, Study
from experiments.runs.run import Run
from lightning_modules.unet import UNetModule

RECIPE = {"norm": "batch", "match_parameters": True, "optimizer": "adamw", "momentum": 0.9, "schedule": "poly"}

# What two CPU cores train in minutes (brain) or in about an hour (CamVid).
BASES = {
    "brain": Run(
        module=UNetModule,
        datamodule=BrainDataModule,
        hparams={**RECIPE, "width": 8, "depth": 3, "lr": 5e-3, "class_weights": BRAIN_WEIGHTS},
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
LAYERS = ("transposed-2", "transposed-3", "nearest", "bilinear")
STUDY = Study(
    name="ablate_upsampling",
    question="Transposed convolution or resize-convolution, with and without skip connections?",
    baseline="transposed-2+concat",  # the paper's up-convolution and skips
    variants=crossed(upsample=LAYERS, skips=("concat", "none")),
    matched={f"{layer}+none": Match(of="parameters", like=f"{layer}+concat") for layer in LAYERS},
    bases=BASES,
    full_size=FULL_SIZE,
)
RUNS = STUDY.runs()

if __name__ == "__main__":
    STUDY.command_line(__doc__)
