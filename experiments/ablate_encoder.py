"""What does the encoder buy, and what do its ImageNet weights?

    pip install -e ".[pretrained]"
    python -m experiments.ablate_encoder
    python -m experiments.ablate_encoder --data camvid --root DIR

One decoder, that of DeepLab v3+ at output stride 16, on encoders of this project and of other libraries, from scratch.
On EfficientNet-Lite0 also with ImageNet weights, which come inside a Python package and need no network.
Answer: experiments/results/ablate_encoder.md
"""

from experiments.grids.study import Study, cpu_scale, full_size
from lightning_modules.deeplabv3plus import DeepLabV3PlusModule

STUDY = Study(
    name="ablate_encoder",
    question="What does the encoder buy, and what do its ImageNet weights?",
    baseline="efficientnet-lite0",
    variants={
        "mobilenet-v1": {"encoder": "mobilenet_v1"},
        "smp-mobilenet-v2": {"encoder": "smp-mobilenet_v2"},
        "smp-resnet18": {"encoder": "smp-resnet18"},
        "efficientnet-lite0": {"encoder": "tu-tf_efficientnet_lite0"},
        "efficientnet-lite0+imagenet": {"encoder": "tu-tf_efficientnet_lite0", "weights": "package"},
    },
    # Without image pooling, whose batch norm sees one value an image and batches here are of four.
    base=cpu_scale(DeepLabV3PlusModule, decoder_width=64, batch_norm_decay=0.9, image_pooling=False),
    full_size=full_size(DeepLabV3PlusModule),
)
RUNS = STUDY.runs()

if __name__ == "__main__":
    STUDY.command_line(__doc__)
