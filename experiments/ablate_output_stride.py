"""What does a finer feature map buy: DeepLab v3 at output stride 32, 16 or 8?

    python -m experiments.ablate_output_stride
    python -m experiments.ablate_output_stride --data camvid --root DIR

The same weights in number and shape: strides of the last stages are replaced by atrous convolution. The head sees the
map as it is, without a pyramid whose rates would have to change too. Time and memory pay for it, parameters do not.
Chen et al. 2017, Table 1 (ResNet-50, cascaded blocks): 70.06, 73.88 and 75.18 % mean IoU on PASCAL VOC 2012.
Answer: experiments/results/ablate_output_stride.md
"""

from experiments.grids.study import Study, cpu_scale, full_size
from lightning_modules.deeplabv3 import DeepLabV3Module

STUDY = Study(
    name="ablate_output_stride",
    question="What does a finer feature map buy: DeepLab v3 at output stride 32, 16 or 8?",
    baseline="stride-16",
    variants={f"stride-{stride}": {"output_stride": stride} for stride in (32, 16, 8)},
    base=cpu_scale(
        DeepLabV3Module,
        context="none",
        encoder="resnet50",
        encoder_width=0.25,
        decoder_width=64,
        batch_norm_decay=0.9,
        channels_last=True,
    ),
    full_size=full_size(DeepLabV3Module, context="none", encoder="resnet50"),
)
RUNS = STUDY.runs()

if __name__ == "__main__":
    STUDY.command_line(__doc__)
