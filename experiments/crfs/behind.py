"""A CRF behind a trained network: the step that searches its parameters, and the seconds that it adds to an image."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.base import SegmentationDataset
from experiments.crfs.grid import Point, default_grid
from experiments.crfs.outcome import picture
from experiments.crfs.search import Finished, predict, refined, search, search_key, spread
from experiments.grids.ablation import Measured
from experiments.grids.cells import PlannedCell
from experiments.runs.checkpoints import LAST
from experiments.runs.scoring import Task, trained
from experiments.shell.files import write_json
from lightning_modules.base import SegmentationModule
from lightning_modules.components.finite import naming
from lightning_modules.refinement import post_process

TIMED_IMAGES, TIMED_ROUNDS = 16, 3


def crf_behind(task: Task, *, crf: str, images: int) -> tuple[SegmentationModule, dict[str, Any]]:
    """The network with the best CRF of this kind behind it, of those that a search on so many validation images meets.

    Where none beats the network alone, that is the network itself. Finds `best_crf`, the arguments of the best CRF, and
    `crf_options`, those that a training through it starts from. Writes search.csv, from which an interrupted search
    goes on, best.json and search.png. The grid is `default_grid` for the diagonal of the first test image.
    """
    (module,), jobs = task.modules, torch.get_num_threads()
    validation, (height, width) = task.datamodule.dataset("val"), task.datamodule.dataset("test")[0][1].shape
    predicted = predict(module, validation, "val", spread(len(validation), images), _say)
    (checkpoint,) = task.run.parents
    finished = Finished(task.folder / "search.csv", search_key(crf, Path(checkpoint), task.run, "val", predicted.names))
    grid = default_grid(crf, math.hypot(height, width))
    result = search(crf, grid, predicted, finished, jobs=jobs, device=module.device, say=_say)
    write_json(task.folder / "best.json", result.parameters)
    picture(crf, result, predicted, module.palette, task.folder / "search.png", module.device)
    point = result.best.point
    module.refine = None if point is None else post_process(crf, **point)
    return module, {
        "images": len(predicted.names),
        "miou": result.best.miou,
        "without": result.without.miou,
        "best_crf": result.best_crf,
        "crf_options": {**result.best_crf, "normalization": "symmetric"},  # the one that it searched with
    }


def _say(line: str) -> None:
    print(line, flush=True)


def measure_crfs(cells: Sequence[PlannedCell], say: Callable[[str], None]) -> Measured:
    """Of variants that are a network, CRFs behind it and networks trained through a CRF: the seconds of an image,
    and notes on the searches. `cells`: of all seeds, finished or not."""
    compared = [cell for cell in cells if not cell.stage]
    seeds: dict[int, list[PlannedCell]] = {}
    for cell in compared:
        seeds.setdefault(cell.planned.seed, []).append(cell)
    behind = list(dict.fromkeys(cell.variant for cell in compared if cell.planned.step))
    notes = [_about(compared, behind), *(_searched(cells, variant) for variant in behind)]
    whole = next((of_seed for of_seed in seeds.values() if all(cell.result for cell in of_seed)), None)
    if whole is None:
        return Measured(notes=notes)
    say("measuring the seconds of an image")
    return Measured({variant: {"image_seconds": of_one} for variant, of_one in image_seconds(whole).items()}, notes)


def _about(compared: Sequence[PlannedCell], behind: Sequence[str]) -> str:
    network = next(cell.parents[0] for cell in compared if cell.planned.step)
    return (
        f"{' and '.join(behind)} are the networks of {network} with a CRF behind them: what they cost in training is "
        f"what {network} costs, and their seconds include search and test. GMAC is of the network alone. Trimap: the "
        "mIoU of those pixels alone whose distance to a pixel of another class is, in the truth, at most so many."
    )


def _searched(cells: Sequence[PlannedCell], variant: str) -> str:
    """What the searches of a variant found, and who starts from that."""
    found = {c.planned.seed: c.result["found"] for c in cells if c.variant == variant and c.result}
    if not found:
        return f"No search of {variant} is done."
    chosen = [f"seed {seed}: {_settings(of['best_crf'])}, {_gain(of)}" for seed, of in found.items()]
    users = dict.fromkeys(cell.variant for cell in cells if variant in cell.needs)
    starts = f" {' and '.join(users)} starts from these." if users else ""
    return (
        f"Best {variant} CRF on {next(iter(found.values()))['images']} validation images, with its gain there; where "
        f"that is not positive, {variant} is the network itself. {'; '.join(chosen)}.{starts}"
    )


def _settings(point: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in point.items()
    )


def _gain(found: Mapping[str, float]) -> str:
    gain = 100 * (found["miou"] - found["without"])
    return f"{gain:+.2f} points" if gain > 0 else "no gain"


def image_seconds(cells: Sequence[PlannedCell]) -> dict[str, dict[str, float]]:
    """Median seconds of the network and of each CRF on the same test images in turn, on one thread.

    `cells`: one a variant. Behind the network stand the best settings that its search met, also where none was better.
    """
    behind = {c.variant: c for c in cells if c.planned.step}
    network = next(iter(behind.values())).parents[0]
    modules: dict[str, Any] = {
        c.variant: trained(c.folder / "checkpoints" / LAST, c.planned.module) for c in cells if not c.planned.step
    }
    points = {name: (cell.planned.step, cell.result) for name, cell in behind.items()}
    crfs = {
        name: (step.options["crf"], result["found"]["best_crf"])
        for name, (step, result) in points.items()
        if step and result
    }
    planned = next(cell.planned for cell in cells)
    seconds = _timed(network, modules, crfs, planned.datamodule(**planned.data).dataset("test"))
    medians = {variant: statistics.median(values) for variant, values in seconds.items()}
    return {
        variant: {"network": medians[network], "crf": 0.0 if variant == network else median}
        for variant, median in medians.items()
    }


def _timed(
    network: str, modules: Mapping[str, Any], crfs: Mapping[str, tuple[str, Point]], dataset: SegmentationDataset
) -> dict[str, list[float]]:
    """By variant: seconds of the module `network`, of the CRFs behind it, and of those that are a part of a module."""
    seconds: dict[str, list[float]] = {variant: [] for variant in (*modules, *crfs)}
    device, threads = modules[network].device, torch.get_num_threads()

    def timed(variant: str, work: Callable[..., Tensor], *args: Any) -> Tensor:
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        out = work(*args)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds[variant].append(time.perf_counter() - started)
        return out

    torch.set_num_threads(1)
    with torch.no_grad():
        for _ in range(TIMED_ROUNDS):
            for position in spread(len(dataset), TIMED_IMAGES):
                with naming(f"{dataset.names[position]} (test)"):
                    x = dataset[position][0][None].to(device)
                    grey_levels = (255 * x).round()
                    probabilities = timed(network, modules[network].predict, x).softmax(1)
                    for variant, (crf, point) in crfs.items():
                        timed(variant, refined, crf, point, probabilities, grey_levels)
                    for variant, module in modules.items():
                        if (layer := module.network.crf) is not None:
                            probabilities = module.network.network(module.normalise(x)).softmax(1)
                            timed(variant, layer, probabilities, grey_levels)
    torch.set_num_threads(threads)
    return seconds
