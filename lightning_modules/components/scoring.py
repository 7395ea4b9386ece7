"""Scores of predicted labels and of logits, each by one rule wherever a number is printed.

Labels and masks are (N, H, W) integers, the logits (N, C, H, W). Pixels whose mask is `ignore_index` count nowhere. What
collects them over batches and devices is in `metrics`, apart from here: torchmetrics takes 200 MB, and a report needs none.
"""

import math

import numpy as np
import torch
from torch import Tensor

NO_FLOAT64 = ("mps",)  # kinds of devices that have none


def for_float64(values: Tensor) -> Tensor:
    """The same on a device that has float64: on the CPU instead of Apple's GPUs."""
    return values.cpu() if values.device.type in NO_FLOAT64 else values


def predict_labels(logits: Tensor) -> Tensor:
    """Logits (N, C, H, W) -> labels (N, H, W) int64: the class of the largest logit, the first one of a tie.

    NaN counts as -inf, on every device and in every memory format.
    """
    if logits.is_cuda or logits.stride(1) == 1:
        best, labels = logits.max(1)
    else:  # torch's search over the strided classes of an NCHW map costs about four times this running maximum on a CPU
        best, labels = logits[:, 0].clone(), torch.zeros_like(logits[:, 0], dtype=torch.int64)
        for index in range(1, logits.shape[1]):
            labels.masked_fill_(logits[:, index] > best, index)
            torch.maximum(best, logits[:, index], out=best)
    if best.isnan().any():  # the one search lets NaN win, the other lets it hide all classes behind it
        return predict_labels(logits.masked_fill(logits.isnan(), -torch.inf))
    return labels


def true_classes(labels: Tensor, masks: Tensor, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """The masks with class 0 where ignored, and where that is; ValueError for other shapes or classes."""
    if labels.shape != masks.shape:
        raise ValueError(f"labels {tuple(labels.shape)} and masks {tuple(masks.shape)} must have the same shape")
    ignored = masks == ignore_index
    truth = masks.long().masked_fill(ignored, 0)
    for name, values in (("labels", labels), ("masks", truth)):
        if not values.numel():
            continue
        low, high = (int(v) for v in torch.aminmax(values))
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"{name} must hold classes 0 to {num_classes - 1} (masks also {ignore_index} where ignored), got "
                f"{low if low < 0 else high}: check num_classes, and that masks are class indices rather than colours"
            )
    return truth, ignored


def confusion_matrix(labels: Tensor, masks: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Pixels of each image by true class (row) and predicted class (column): (N, C, C) int64.

    Exact, and as fast and deterministic on every device: ignored pixels fall into one more bin of `torch.bincount`,
    which is thrown away, where selecting the others first would cost about six times as much.

    Raises ValueError for a label outside the classes that is not `ignore_index`, naming it.
    """
    truth, ignored = true_classes(labels, masks, num_classes, ignore_index)
    cells = num_classes**2
    pairs = (truth * num_classes + labels).masked_fill_(ignored, cells)
    counts = [torch.bincount(image.flatten(), minlength=cells + 1)[:cells] for image in pairs]
    return torch.stack(counts).view(-1, num_classes, num_classes)


def scores(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Scores in [0, 1] of confusion matrices (..., C, C), rows truth and columns prediction, as float64.

    Per class (..., C), with t true pixels, p predicted and h right: `iou` h / (t + p - h), `dice` 2h / (t + p), `acc`
    h / t. Their means (...): `miou`, `mdice`, `macc`. Over pixels (...): `pixel_acc` and `fwiou`, the IoU weighted by t.

    A class absent from both truth and prediction is NaN and left out of the mean; one that is only predicted has IoU
    and Dice 0 and no accuracy. Without a labelled pixel everything is NaN.
    """
    counts = confusion.astype(np.float64)  # exact up to 2^53 pixels
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    true, predicted = counts.sum(-1), counts.sum(-2)
    pixels = true.sum(-1)
    iou = _ratio(right, true + predicted - right)
    dice = _ratio(2 * right, true + predicted)
    acc = _ratio(right, true)
    return {
        "iou": iou,
        "dice": dice,
        "acc": acc,
        "miou": _mean_of_present(iou),
        "mdice": _mean_of_present(dice),
        "macc": _mean_of_present(acc),
        "pixel_acc": _ratio(right.sum(-1), pixels),
        "fwiou": _ratio(np.nansum(true * iou, -1), pixels),
    }


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full_like(a, np.nan), where=b > 0)


def _mean_of_present(values: np.ndarray) -> np.ndarray:
    return _ratio(np.nansum(values, -1), (~np.isnan(values)).sum(-1).astype(np.float64))


def boundary_f1(labels: Tensor, masks: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """How well predicted outlines follow the true ones: F1 of each class in each image, (N, C) float64.

    The measure of Csurka et al. 2013 ("What is a good evaluation measure for semantic segmentation?") as SegNet uses
    it (Badrinarayanan et al. 2017): a boundary pixel of a class is a pixel of it with a 4-neighbour of another
    class. Precision is the share of the predicted boundary pixels within 0.75 % of the image diagonal (Euclidean, in
    pixels) of a true one of the same class, recall the share of the true ones that near to a predicted one; F1 is their
    harmonic mean. Ignored pixels neither make a boundary nor belong to one, in the prediction too.

    NaN for a class absent from the truth; 0 for a true class that is not predicted; where neither side has a boundary
    pixel of a class that both hold (it fills the image), 1, and 0 where only one side has. The score of an image is the
    mean over the classes in its truth, `nanmean(1)`; that of a data set the mean over its images.

    Raises ValueError for a label outside the classes that is not `ignore_index`, naming it.
    """
    truth, ignored = true_classes(labels, masks, num_classes, ignore_index)
    n = len(labels)
    maps = torch.stack([labels, truth])  # (2, N, H, W): prediction, truth
    edges = _edges(maps, ~ignored)

    # The boundaries of 31 classes at a time are the bits of one integer map, so one dilation does for all of them.
    side, image, row, column = edges.nonzero(as_tuple=True)
    classes = maps[side, image, row, column]
    met = torch.zeros_like(classes)
    for first in range(0, num_classes, 31):
        shift = classes - first
        here = (shift >= 0) & (shift < 31)
        bits = torch.zeros(maps.shape, dtype=torch.int32, device=maps.device)
        bits[side, image, row, column] = torch.where(here, 1 << shift.clamp(0, 30), 0).int()
        other = _dilate(bits)[1 - side, image, row, column]
        met += torch.where(here, (other >> shift.clamp(0, 30)) & 1, 0)

    group = (side * n + image) * num_classes + classes
    size, shape = 2 * n * num_classes, (2, n, num_classes)
    drawn = torch.bincount(group, minlength=size).view(shape)
    hits = torch.bincount(group[met.bool()], minlength=size).view(shape)
    offset = torch.arange(2 * n, device=maps.device).view(2, n, 1, 1) * num_classes
    pixels = (maps + offset).masked_fill_(ignored, size)
    held = torch.bincount(pixels.flatten(), minlength=size + 1)[:size].view(shape) > 0

    hits, drawn, held = map(for_float64, (hits, drawn, held))
    precision, recall = hits.double() / drawn  # NaN without a boundary pixel
    f1 = (2 * precision * recall / (precision + recall)).nan_to_num(0)
    f1[held.all(0) & (drawn == 0).all(0)] = 1
    f1[~held[1]] = torch.nan
    return f1


def _edges(maps: Tensor, valid: Tensor) -> Tensor:
    """Where a valid pixel of maps (2, N, H, W) has a valid 4-neighbour of another class: bool of the same shape."""
    edges = torch.zeros_like(maps, dtype=torch.bool)
    for dim in (-2, -1):
        last = maps.shape[dim] - 1
        differ = maps.narrow(dim, 0, last) != maps.narrow(dim, 1, last)
        differ &= valid.narrow(dim, 0, last) & valid.narrow(dim, 1, last)
        edges.narrow(dim, 0, last).logical_or_(differ)
        edges.narrow(dim, 1, last).logical_or_(differ)
    return edges


def _dilate(bits: Tensor) -> Tensor:
    """Spreads the set bits of (..., H, W) integers over a disc of 0.75 % of the diagonal."""
    height, width = bits.shape[-2:]
    radius2 = 9 * (height**2 + width**2) // 160_000  # 0.0075^2 = 9 / 160,000: whole numbers, so that ties are exact
    out, spread, reach = torch.zeros_like(bits), bits.clone(), 0
    for down in range(min(math.isqrt(radius2), height - 1), -1, -1):  # the disc widens towards its middle row
        while reach < math.isqrt(radius2 - down**2):
            reach += 1
            spread[..., reach:] |= bits[..., :-reach]
            spread[..., :-reach] |= bits[..., reach:]
        out[..., down:, :] |= spread[..., : height - down, :]
        out[..., : height - down, :] |= spread[..., down:, :]
    return out


def checkerboard_energy(logits: Tensor, period: int = 2) -> Tensor:
    """Share, in [0, 1], of the spectral power of logits (N, C, H, W) that an upsampling grid put there: (N,) float64.

    1. Less their mean over the classes, so that it is blind to what softmax is blind to; cropped to whole periods.
    2. Less each channel's mean and times a Hann window, so that the image's border does not spread over all
       frequencies. P is the power |FFT|^2, summed over the channels.
    3. A pattern that repeats every `period` pixels lives at the grid frequencies g = (i, j) / period other than 0; the
       window spreads each over 3 x 3 bins. S(f) is the sum of P over the 3 x 3 bins around f.
    4. excess(g) = max(0, S(g) - max over d of (S(g - d) + S(g + d)) / 2), with d three bins away along rows, columns
       and both diagonals. The largest of the four, because a straight edge draws a ridge through g: only a peak that
       stands out in every direction is a grid.
    5. Energy: the sum of excess(g) over the grid frequencies, divided by the sum of P.

    Smooth maps and white noise score about 0, a pure checkerboard 1, constant logits 0. NaN for images with a side
    under 9 periods, whose spectrum has no room for step 4.

    The last 2x upsampling of a network leaves a pattern of period 2, the one before it 4, and so on. The default is 2
    because it sees least of the image: label maps with sharp edges score up to 0.0002 there, ten times that at 8.
    """
    height, width = (size // period * period for size in logits.shape[-2:])
    if min(height, width) < 9 * period:
        return for_float64(logits.new_full((len(logits),), torch.nan, dtype=torch.float32)).double()
    x = logits[..., :height, :width].float()
    x = x - x.mean(1, keepdim=True)
    # In the type of x: the default one may be that of a network in half precision.
    down, along = (torch.hann_window(side, dtype=x.dtype, device=x.device) for side in (height, width))
    window = torch.outer(down, along)
    x = x - (x * window).sum((-2, -1), keepdim=True) / window.sum()  # weighted, so that the window leaves no mean
    power = for_float64(torch.fft.fft2(x * window).abs().square()).sum(1, dtype=torch.float64)  # (N, H, W)

    rows, columns = (_grid_bins(size, period, power.device) for size in (height, width))
    around = power[:, rows[:, None], columns]  # (N, 9 * period, 9 * period): 9 x 9 bins around each grid frequency
    sums = around.view(-1, period, 3, 3, period, 3, 3).sum((3, 6)).transpose(2, 3)  # (N, period, period, 3, 3)
    sums = sums.flatten(1, 2)[:, 1:].flatten(-2)  # (N, period^2 - 1, 9): the first frequency is 0
    pairs = (sums + sums.flip(-1)) / 2  # the fifth is S(g), the first four are its directions
    excess = (pairs[..., 4] - pairs[..., :4].amax(-1)).clamp(min=0).sum(-1)
    tiny = torch.finfo(torch.float64).tiny
    return (excess / power.sum((-2, -1)).clamp(min=tiny)).clamp(max=1)


def _grid_bins(size: int, period: int, device: torch.device) -> Tensor:
    """Indices (9 * period,) of the nine FFT bins around each multiple of 1 / period."""
    near = torch.arange(-4, 5, device=device)
    return (torch.arange(period, device=device)[:, None] * (size // period) + near).flatten() % size
