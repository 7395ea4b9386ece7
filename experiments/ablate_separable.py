"""What does depthwise separable convolution cost in score, and save in parameters, multiply-adds and time?

    python -m experiments.ablate_separable
    python -m experiments.ablate_separable --data camvid --root DIR

DeepLab v3+ whose pyramid and decoder are made of standard or of depthwise separable 3x3 convolutions. `separable` has
the same widths and costs less; `separable-wide` spends what it saves on wider maps, until a training crop costs what it
costs the standard network. Chen et al. 2018, Table 5: 33 to 41 % fewer multiply-adds at a similar score; wall time need
not follow.
Answer: experiments/results/ablate_separable.md
"""

from experiments.grids.ablation import Match
from experiments.grids.study import Study, cpu_scale, full_size
from lightning_modules.deeplabv3plus import DeepLabV3PlusModule

STUDY = Study(
    name="ablate_separable",
    question="What does depthwise separable convolution cost in score, and save in parameters, multiply-adds and time?",
    baseline="standard",
    variants={
        "standard": {"separable": False},
        "separable": {"separable": True},
        "separable-wide": {"separable": True},
    },
    matched={"separable-wide": Match(of="gmac", like="standard", by="decoder_width")},
    # Without image pooling, whose batch norm sees one value an image and batches here are of four.
    base=cpu_scale(
        DeepLabV3PlusModule,
        encoder="resnet50",
        encoder_width=0.25,
        decoder_width=64,
        batch_norm_decay=0.9,
        image_pooling=False,
    ),
    full_size=full_size(DeepLabV3PlusModule, encoder="resnet101"),
)
RUNS = STUDY.runs()

if __name__ == "__main__":
    STUDY.command_line(__doc__)
