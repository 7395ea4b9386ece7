"""Transposed convolution or resize-convolution, with and without skip connections?

    python -m experiments.ablate_upsampling
    python -m experiments.ablate_upsampling --data camvid --root DIR

A U-Net with two factors crossed: the layer that doubles the resolution, and whether the decoder sees the encoder's
maps. Without skips the decoder is widened until the network has as many parameters as with them. Between the layers
nothing is matched: transposed-2 has four weights a pair of channels where the others have nine, a tenth of all
parameters. Odena et al. 2016 predict a checkerboard where the kernel does not divide by the stride (transposed-3).
Answer: experiments/results/ablate_upsampling.md
"""

from experiments.grids.ablation import Match, crossed
from experiments.grids.study import Study, cpu_scale, full_size
from experiments.runs.run import defaults
from lightning_modules.unet import UNetModule

BASE = cpu_scale(
    UNetModule,
    norm="batch",
    match_parameters=True,
    width=8,
    lr=5e-3,
    weight_decay=defaults(UNetModule)["weight_decay"],
    channels_last=True,
    exceptions={
        "brain": {"depth": 3, "trainer.check_val_every_n_epoch": 4},
        "camvid": {
            "class_weights": None,
            "data.scale": 0.5,
            "data.crop": (128, 176),
            "data.zoom": (0.5, 2.0),
            "trainer.max_epochs": 12,
            "trainer.check_val_every_n_epoch": 4,
        },
        "shapes": {"width": 4},
    },
)
LAYERS = ("transposed-2", "transposed-3", "nearest", "bilinear")
STUDY = Study(
    name="ablate_upsampling",
    question="Transposed convolution or resize-convolution, with and without skip connections?",
    baseline="transposed-2+concat",  # the paper's up-convolution and skips
    seeds=6,  # by the spread of five: single differences to 3 points, and still within 10 minutes on two cores
    variants=crossed(upsample=LAYERS, skips=("concat", "none")),
    matched={f"{layer}+none": Match(of="parameters", like=f"{layer}+concat") for layer in LAYERS},
    base=BASE,
    # The width of the paper and the images' own size.
    full_size=full_size(
        UNetModule,
        norm="batch",
        match_parameters=True,
        optimizer="adamw",
        momentum=0.9,
        schedule="poly",
        lr=1e-3,
        exceptions={"camvid": {"class_weights": None}},
    ),
)
RUNS = STUDY.runs()

if __name__ == "__main__":
    STUDY.command_line(__doc__)
