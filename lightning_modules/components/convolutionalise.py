"""Fully connected layers of a classifier as convolutions: FCN, Long, Shelhamer, Darrell 2015, Sec. 3.1 and Fig. 2."""

import torch
from torch import Tensor, nn

from lightning_modules.components.encoders.weights import download, is_path, read_weights

# Of fc6 and fc7 in the files of VGG16 of torchvision and of timm, which has them as convolutions already.
NAMES = (("classifier.0", "classifier.3"), ("pre_logits.fc1", "pre_logits.fc2"))


@torch.no_grad()
def convolutionalise_(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    """Gives `conv`, in place, the weights (out, in * k * k) of a fully connected layer that sees a window of k x k.

    The convolution then says at each position what the layer says of the window there.
    """
    if weight.shape != (conv.out_channels, conv.weight[0].numel()):
        raise ValueError(
            f"a fully connected layer of shape {tuple(weight.shape)} does not fit the convolution "
            f"{tuple(conv.weight.shape)}: VGG16's own need fc_width=4096, got {conv.out_channels}; or pass the file of "
            "an encoder alone as weights"
        )
    conv.weight.copy_(weight.view_as(conv.weight))
    conv.bias.copy_(bias)  # type: ignore[union-attr]


def load_fully_connected_(weights: str | None, pretrained: str | None, fc6: nn.Conv2d, fc7: nn.Conv2d) -> None:
    """Gives `fc6` and `fc7` what the `weights` of VGG16 hold of them.

    A file or folder may hold the encoder alone; "imagenet" is the whole of `pretrained`, a name of timm.
    """
    if weights is None:
        return
    state = read_weights(weights) if is_path(weights) else download("vgg16", str(pretrained))
    for names in NAMES:
        for conv, name in zip((fc6, fc7), names, strict=True):
            if f"{name}.weight" in state:
                convolutionalise_(conv, state[f"{name}.weight"].flatten(1), state[f"{name}.bias"])
