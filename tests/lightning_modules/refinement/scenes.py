"""What the tests of the fully connected CRF share: parameters, and a picture with probabilities that fit it."""

import torch
import torch.nn.functional as F
from torch import Tensor

# The example of pydensecrf, and DeepLab v2's numbers under the same normalization.
POINTS = [
    {"w_appearance": 10.0, "theta_alpha": 80.0, "theta_beta": 13.0, "w_smoothness": 3.0, "theta_gamma": 3.0},
    {"w_appearance": 4.0, "theta_alpha": 67.0, "theta_beta": 3.0, "w_smoothness": 3.0, "theta_gamma": 1.0},
]
TINY = {"w_appearance": 1.5, "theta_alpha": 3.0, "theta_beta": 60.0, "w_smoothness": 0.7, "theta_gamma": 1.2}


def scene(height: int, width: int, classes: int) -> tuple[Tensor, Tensor]:
    """Probabilities (1, classes, H, W) of blurred random labels and a picture (1, 3, H, W) of noisy, smooth regions."""
    regions = torch.randint(classes, (1, 1, height // 12, width // 12))
    labels = F.interpolate(regions.float(), (height, width))[0, 0].long()
    likely = F.avg_pool2d(F.one_hot(labels, classes).permute(2, 0, 1)[None].float(), 9, stride=1, padding=4)
    logits = 4 * likely + 0.5 * torch.randn(1, classes, height, width)
    colours = 255 * torch.rand(classes, 3)[labels].permute(2, 0, 1)[None]
    shade = 20 * torch.sin(torch.arange(width) / 9) + 12 * torch.randn(1, 3, height, width)
    return logits.softmax(1), (F.avg_pool2d(colours, 3, stride=1, padding=1) + shade).clamp(0, 255).round()
