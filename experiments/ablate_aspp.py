"""What does context buy: atrous pyramid, its rates, image pooling, or pyramid pooling?

    python -m experiments.ablate_aspp
    python -m experiments.ablate_aspp --data camvid --root DIR

One DeepLab v3 whose head sees the encoder's map directly, through an atrous spatial pyramid of small or large rates,
with and without pooling of the whole image, or through the pyramid pooling of PSPNet. Chen et al. 2017, Table 5: image
pooling adds 0.75 points to the pyramid; Zhao et al. 2017, Table 1: pyramid pooling adds 4.45 points to a plain head.
Answer: experiments/results/ablate_aspp.md
"""

from experiments.grids.study import Study, cpu_scale, full_size
from lightning_modules.deeplabv3 import DeepLabV3Module

BASE = cpu_scale(
    DeepLabV3Module,
    encoder="resnet50",
    encoder_width=0.25,
    decoder_width=64,
    batch_norm_decay=0.9,
    channels_last=True,
    # Batch norm of a pooled map sees one value an image, and what it pools in training should resemble the whole image.
    exceptions={
        "brain": {"data.batch_size": 8, "data.crop": 128, "trainer.max_epochs": 16},
        "camvid": {"data.batch_size": 8, "trainer.max_epochs": 8, "trainer.check_val_every_n_epoch": 4},
    },
)

STUDY = Study(
    name="ablate_aspp",
    question="What does context buy: atrous pyramid, its rates, image pooling, or pyramid pooling?",
    baseline="aspp-6-12-18+image",
    variants={
        "none": {"context": "none"},
        "aspp-2-4-6": {"context": "aspp", "rates": (2, 4, 6), "image_pooling": False},
        "aspp-6-12-18": {"context": "aspp", "rates": (6, 12, 18), "image_pooling": False},
        "aspp-2-4-6+image": {"context": "aspp", "rates": (2, 4, 6), "image_pooling": True},
        "aspp-6-12-18+image": {"context": "aspp", "rates": (6, 12, 18), "image_pooling": True},
        "pyramid-pooling": {"context": "pyramid"},
    },
    base=BASE,
    full_size=full_size(DeepLabV3Module),
)
RUNS = STUDY.runs()

if __name__ == "__main__":
    STUDY.command_line(__doc__)
