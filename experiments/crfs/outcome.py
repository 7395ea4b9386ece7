"""What a search for CRF parameters has found, as a table and as a picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rich.table
import torch
from matplotlib.figure import Figure

from experiments.crfs.search import Predicted, SearchResult, confusions, refined
from experiments.reports.figures import drawing, label_colours, save_figure
from experiments.runs.callbacks import to_rgb
from experiments.runs.scoring import workers
from lightning_modules.components.scores.confusion import predict_labels
from lightning_modules.components.scores.reductions import scores

SHOWN = 10  # rows of the printed table


def table(result: SearchResult) -> rich.table.Table:
    """The best combinations and the network alone."""
    names = list(result.best_crf)
    shown = rich.table.Table(*["", *names, "mIoU (%)", "gain"])
    for place, row in enumerate(result.rows):
        if place < SHOWN or row.point is None:
            values = [str(row.point[name]) for name in names] if row.point else ["no CRF", *["-"] * (len(names) - 1)]
            gain = "" if row.point is None else f"{100 * (row.miou - result.without.miou):+.2f}"
            shown.add_row(str(place + 1), *values, f"{100 * row.miou:.2f}", gain)
    return shown


def picture(
    crf: str,
    result: SearchResult,
    predicted: Predicted,
    palette: Sequence[Sequence[int]],
    path: Path,
    device: torch.device,
) -> None:
    """Writes a figure of three images, with the most to gain, the middle one and the most to lose by the best CRF."""
    with workers(1) as pool:
        per_image = [
            scores(confusions(crf, point, predicted, pool, device))["miou"] for point in (None, result.best_crf)
        ]
    order = np.argsort(np.nan_to_num(per_image[0] - per_image[1]), kind="stable")
    rows = list(dict.fromkeys([int(order[0]), int(order[len(order) // 2]), int(order[-1])]))
    colours = label_colours(palette)
    height, width = predicted.masks[rows[0]].shape[-2:]
    with drawing():
        figure = Figure(figsize=(11, 0.4 + len(rows) * (0.3 + 2.7 * height / width)), layout="constrained")
        axes = figure.subplots(len(rows), 4, squeeze=False)
        for line, index in zip(axes, rows, strict=True):
            probabilities, image = predicted.probabilities[index].to(device), predicted.images[index].to(device)
            with torch.no_grad():
                labels = [predict_labels(refined(crf, p, probabilities, image))[0] for p in (None, result.best_crf)]
            tiles = [
                to_rgb(predicted.images[index][0] / 255),
                *(colours[x.cpu()] for x in (predicted.masks[index][0], *labels)),
            ]
            titles = [predicted.names[index], "truth"]
            titles += [
                f"{name}: mIoU {100 * s[index]:.1f} %" for name, s in zip(("no CRF", crf), per_image, strict=True)
            ]
            for axis, tile, title in zip(line, tiles, titles, strict=True):
                axis.imshow(tile, interpolation="nearest")
                axis.set_title(title, fontsize=8)
                axis.set_axis_off()
        save_figure(figure, path, {"Software": None})
