"""What does a CRF buy: none, a dense or a convolutional one, behind a trained network or trained end to end with it?

    python -m experiments.ablate_crf
    python -m experiments.ablate_crf --data camvid --root DIR --weights package
    python -m experiments.ablate_crf --data camvid --root DIR --weights imagenet --full-size

A base network is trained for `--epochs`; every variant goes on from it for `--finetune` more, so that all have the same
budget. `none` goes on without a CRF. `dense` and `conv` are `none` with a CRF behind it, whose parameters are searched
on validation images (experiments/search_crf.py) for each seed; where no setting beats none, they are `none`.
`dense-trained` and `conv-trained` go on through the mean field of that CRF, whose weights and compatibility start from
what was found and learn with the network (CRF-as-RNN, Zheng et al. 2015; ConvCRF, Teichmann & Cipolla 2018). Beside the
usual scores: the trimap, mIoU within 1 to 20 pixels of a true boundary, and the seconds of an image. SegNet
(Badrinarayanan et al. 2017) reports DeepLab-LargeFOV with and without its dense CRF: 54.74 and 53.88 % mIoU on CamVid,
24.13 and 32.08 % on SUN RGB-D. So a CRF can hurt.
Answer: experiments/results/ablate_crf.md
"""

import argparse
import hashlib
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from datamodules.base import SegmentationDataModule, SegmentationDataset
from experiments.crfs.grid import Grid, default_grid
from experiments.crfs.outcome import picture
from experiments.crfs.search import Finished, predict, refined, search, search_key, spread, workers
from experiments.grids.ablation import Ablation, variants
from experiments.grids.cells import PlannedCell, clock, run_cells
from experiments.grids.command import add_arguments, run_command
from experiments.grids.cost import Cost, gmac, measure
from experiments.grids.fairness import Budget, check_fair
from experiments.grids.plan_table import EVALUATION_STEPS, START_SECONDS
from experiments.grids.study import cpu_scale, full_size
from experiments.runs.callbacks import encode_labels, sample_positions, sampled, save_npz, save_predictions
from experiments.runs.run import Run, defaults
from experiments.runs.training import build
from experiments.shell.catalogue import DATAMODULES, load
from experiments.shell.command import forgiving_output
from experiments.shell.difference import git_commit, tell_difference
from experiments.shell.environment import command_line, write_environment
from experiments.shell.files import locked, read_json, write_atomic, write_json
from experiments.shell.flags import Parser, positive
from experiments.tracking.loggers import Logging
from lightning_modules.base import SegmentationModule
from lightning_modules.components.finite import labelled_logits, naming
from lightning_modules.components.scores.metrics import Scores
from lightning_modules.components.scores.reductions import scores
from lightning_modules.crf_as_rnn import CRFasRNNModule
from lightning_modules.fcn import FCNModule
from lightning_modules.refinement import post_process
from lightning_modules.unet import UNetModule

BASELINE = "none"
CRFS = ("dense", "conv")
LEVELS = {  # of each variant: its CRF, and what its last epochs are trained through
    BASELINE: {"crf": "none", "trained": "network alone"},
    **{crf: {"crf": crf, "trained": "network alone"} for crf in CRFS},
    **{f"{crf}-trained": {"crf": crf, "trained": "end to end"} for crf in CRFS},
}
LR_FACTOR = 0.1  # of the base network's rate: the variants fine-tune it
CRF_LR_FACTOR = (
    100.0  # AdamW steps by its rate: of the kernels' weights, 3 to 10, by at most 0.01 (CamVid) or 0.02 (brain)
)
NETWORKS: dict[type[SegmentationModule], str] = {FCNModule: "fcn", UNetModule: "unet"}  # as CRFasRNNModule names them
IMAGES = 50  # validation images of a search, which is repeated for each seed; DeepLab took 100, once
TIMED_IMAGES, TIMED_ROUNDS = 16, 3


@dataclass(frozen=True)
class Setting:
    """A base network, and the epochs of every variant after its own."""

    base: Run
    finetune: int


SETTINGS = {
    "brain": Setting(
        cpu_scale(UNetModule, width=8, depth=3)
        .run(DATAMODULES["brain"])[0]
        .but(trainer={"check_val_every_n_epoch": 12}),
        finetune=4,
    ),
    # FCN-8s is the network that CRF-as-RNN stands on.
    "camvid": Setting(
        cpu_scale(FCNModule, stride=8, at_once=False, loss="ce", lr=1e-3, encoder="tu-tf_efficientnet_lite0")
        .run(DATAMODULES["camvid"])[0]
        .but(data={"scale": 0.5, "crop": (160, 224)}, trainer={"max_epochs": 8, "check_val_every_n_epoch": 8}),
        finetune=2,
    ),
    "shapes": Setting(
        cpu_scale(UNetModule, width=4, depth=2)
        .run(DATAMODULES["shapes"])[0]
        .but(data={"size": 32, "length": 8}, trainer={"check_val_every_n_epoch": 2}),
        finetune=1,
    ),
}
FULL_SIZE = {
    "brain": Setting(full_size(UNetModule).run(DATAMODULES["brain"])[0], finetune=20),
    # On VGG16 and whole images, as in CRF-as-RNN (--weights imagenet); the published rates are for a sum over pixels.
    "camvid": Setting(
        full_size(FCNModule, loss="ce", optimizer="adamw", momentum=0.9, lr=1e-4, schedule="poly")
        .run(DATAMODULES["camvid"])[0]
        .but(data={"crop": (360, 480), "batch_size": 4}),
        finetune=20,
    ),
}


def trained_variants(base: Run, epochs: int, diagonal: float) -> dict[str, Run]:
    """Those that are trained on from the base network. Their CRFs start in the middle of the grid for images of this
    diagonal in pixels, until a search has found better."""
    recipe = {name: value for name, value in base.hparams.items() if name in defaults(SegmentationModule)}
    options = {name: value for name, value in base.hparams.items() if name not in recipe and name != "weights"}
    without = Run(
        module=CRFasRNNModule,
        datamodule=base.datamodule,
        hparams={
            **recipe,
            "lr": LR_FACTOR * base.resolved()["hparams.lr"],
            "network": NETWORKS[base.module],
            "network_options": options,
            "crf": "none",
            "crf_lr_factor": CRF_LR_FACTOR,
        },
        data=base.data,
        trainer={**base.trainer, "max_epochs": epochs, "check_val_every_n_epoch": epochs},
        fingerprint=base.fingerprint,
    )
    middle = {crf: {k: v[len(v) // 2] for k, v in default_grid(crf, diagonal).items()} for crf in CRFS}
    arms = {f"{crf}-trained": {"crf": crf, "crf_options": crf_options(middle[crf])} for crf in CRFS}
    return variants(without, {BASELINE: {}, **arms})


def crf_options(searched: Mapping[str, Any]) -> dict[str, Any]:
    """Where training starts from: what a search found, and the normalisation that it searched with."""
    return {**searched, "normalization": "symmetric"}


RUNS = trained_variants(SETTINGS["brain"].base, SETTINGS["brain"].finetune, math.hypot(233, 197))


def base_run(args: argparse.Namespace) -> tuple[Run, int]:
    """The base network that the flags describe, and the epochs after its own."""
    settings = FULL_SIZE if args.full_size else SETTINGS
    if args.data not in settings:
        raise ValueError(f"--full-size has settings for {', '.join(settings)}, got --data {args.data}")
    base = settings[args.data].base
    if args.data == "camvid" and args.root is None:
        raise ValueError("--data camvid needs --root DIR, a folder with images/, masks/, classes.txt and splits/")
    if args.data != "camvid" and args.root is not None:
        raise ValueError(f"--root belongs to --data camvid, got --data {args.data}")
    if args.root is not None:
        base = base.but(data={"root": args.root})
    if args.epochs is not None:
        base = base.but(trainer={"max_epochs": args.epochs, "check_val_every_n_epoch": args.epochs})
    if args.weights is not None:
        if "hparams.weights" not in base.resolved():
            raise ValueError(f"--weights is for networks on an encoder, and {base.module.__name__} has none")
        base = base.but(weights=args.weights)
    batch = base.resolved()["data.batch_size"]
    if args.devices != "auto" and batch % int(args.devices):
        raise ValueError(f"--devices must divide the batch of {batch} images, got {args.devices}")
    return base, args.finetune or settings[args.data].finetune


@dataclass(frozen=True, kw_only=True)
class CrfPlan:
    """What is trained, searched and scored in `out`, and what it costs."""

    ablation: Ablation  # of the variants that are trained, but for where their CRFs start
    base: Run
    out: Path
    seeds: Sequence[int]
    images: int  # of a search
    diagonal: float  # of an image, in pixels
    split_sizes: Mapping[str, int]
    budgets: Mapping[str, Budget]  # of the variants that are trained, beyond the base network
    parameters: Mapping[str, int]
    gmac: float  # of the network
    costs: Mapping[str, Cost]
    class_names: Sequence[str]
    palette: Sequence[Sequence[int]]
    device: str

    def folder(self, variant: str, seed: int) -> Path:
        return self.out / variant / f"seed{seed}"

    def checkpoint(self, variant: str, seed: int) -> Path:
        return self.folder(variant, seed) / "checkpoints" / "last.ckpt"

    def grid(self, crf: str) -> Grid:
        return default_grid(crf, self.diagonal)

    def base_cell(self, seed: int) -> PlannedCell:
        return PlannedCell("base", self.base.but(seed=seed), self.folder("base", seed), self.base.trainer["max_epochs"])

    def cell(self, variant: str, seed: int) -> PlannedCell:
        """Of a variant that is trained, from where the search of its seed ended, if it has."""
        run = self.ablation.runs[variant].but(seed=seed, init_from=str(self.checkpoint("base", seed)))
        crf = LEVELS[variant]["crf"]
        if crf in CRFS and (searched := self.searched(crf, seed)):
            run = run.but(crf_options=crf_options(searched["best_crf"]))
        return PlannedCell(variant, run, self.folder(variant, seed), run.trainer["max_epochs"])

    def searched(self, crf: str, seed: int) -> dict[str, Any] | None:
        """What the finished search of this very plan found; None before."""
        path = self.folder(crf, seed) / "run.json"
        stored = read_json(path) if path.exists() else {}
        run = self.cell(BASELINE, seed).run
        same = {self._search_hash(crf, trained) for trained in run.hashes}
        return stored["search"] if stored.get("hash") in same else None

    def search_hash(self, crf: str, seed: int) -> str:
        """A name for what decides the numbers of a CRF behind the network."""
        return self._search_hash(crf, self.cell(BASELINE, seed).run.hash)

    def _search_hash(self, crf: str, trained: str) -> str:
        decides = [crf, trained, self.images, self.grid(crf)]
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]

    def hashes(self) -> dict[str, str]:
        """Of all settings but the seed."""
        trained = {name: run.hash for name, run in self.ablation.runs.items()}
        return {"base": self.base.hash, **trained, "images": str(self.images)}

    def is_of(self, hashes: Mapping[str, str]) -> bool:
        """Whether a stored plan, perhaps of an earlier version, has these settings."""
        runs = {"base": self.base, **self.ablation.runs}
        same = hashes.keys() == {*runs, "images"} and hashes["images"] == str(self.images)
        return same and all(hashes[name] in run.hashes for name, run in runs.items())

    def cost(self, variant: str) -> Cost:
        """Of a training step; the base network's is that of the network alone."""
        return self.costs.get(variant, self.costs[BASELINE])

    def seconds(self, cell: PlannedCell) -> float:
        """An estimate, from the measured step."""
        batch = cell.run.resolved()["data.batch_size"]
        evaluated = self.split_sizes["val"] + self.split_sizes["test"]
        steps = cell.epochs * (self.split_sizes["train"] // batch) + EVALUATION_STEPS * evaluated / batch
        return START_SECONDS + steps * self.cost(cell.variant).step_seconds

    def budget(self, variant: str) -> Budget:
        """What a variant is trained for; a CRF behind the network is trained for what the network is."""
        before = self.base.trainer["max_epochs"] * (
            self.split_sizes["train"] // self.base.resolved()["data.batch_size"]
        )
        of_variant = self.budgets.get(variant, self.budgets[BASELINE])
        return of_variant | {"start": "the base network of the same seed", "steps_before": before}

    def write(self, image_seconds: Mapping[str, Mapping[str, float]], notes: Sequence[str]) -> None:
        """plan.json, as a report reads it."""
        a, without = self.ablation, self.ablation.runs[BASELINE]
        common = without.resolved()
        if "root" in without.data:
            common["data.root"] = without.data["root"]  # as it was typed
        for key in ("hparams.crf", "hparams.crf_options", "hparams.init_from", "seed"):
            common.pop(key)
        rows = {
            name: {
                "levels": levels,
                "parameters": self.parameters.get(name, self.parameters[BASELINE]),
                "gmac": self.gmac,
                "step_ratio": self.cost(name).step_seconds / self.costs[BASELINE].step_seconds,
                **asdict(self.cost(name)),
                **({"image_seconds": image_seconds[name]} if name in image_seconds else {}),
            }
            for name, levels in LEVELS.items()
        }
        write_json(
            self.out / "plan.json",
            {
                "experiment": a.name,
                "question": a.question,
                "baseline": BASELINE,
                "factors": {key: list(dict.fromkeys(v[key] for v in LEVELS.values())) for key in ("crf", "trained")},
                "variants": rows,
                "seeds": list(self.seeds),
                "data": a.data,
                "data_note": a.data_note,
                "scale_note": a.scale_note,
                "notes": list(notes),
                "common": common,
                "budget": {name: self.budget(name) for name in LEVELS},
                "not_compared": ["base"],
                "hashes": self.hashes(),
                "class_names": self.class_names,
                "palette": self.palette,
                "command": command_line(),
                "device": self.device,
                "commit": git_commit(),
            },
        )


def make_crf_plan(args: argparse.Namespace, say: Callable[[str], None]) -> CrfPlan:
    """Builds every variant, verifies the data and measures the cost of a step, before anything is trained."""
    if len(set(args.seeds)) != len(args.seeds):
        raise ValueError(f"--seeds must differ from one another, got {list(args.seeds)}")
    base, epochs = base_run(args)
    out = output(args)
    stored = read_json(out / "plan.json") if (out / "plan.json").exists() else {}
    _, datamodule = build(base)
    say("verifying the data")
    datamodule.verify()
    base = base.identified()
    height, width = datamodule.dataset("test")[0][1].shape
    diagonal = math.hypot(height, width)
    runs = trained_variants(base, epochs, diagonal)
    r = base.resolved()
    ablation = Ablation(
        name=name(args),
        question="What does a CRF buy: none, dense or convolutional, behind a network or trained end to end with it?",
        runs=runs,
        factors={key: [run.resolved()[f"hparams.{key}"] for run in runs.values()] for key in ("crf", "crf_options")},
        baseline=BASELINE,
        data=args.data,
        data_note=DATAMODULES[args.data].note,
        scale_note=f"{'Full size' if args.full_size else 'CPU scale'}: {base.module.__name__}, crop {r['data.crop']}, "
        f"batch {r['data.batch_size']}, {r['trainer.max_epochs']} epochs, then {epochs} more of every variant.",
    )
    budgets = check_fair(ablation)
    parameters = {}
    for variant, run in runs.items():
        with torch.device("meta"):
            parameters[variant] = sum(p.numel() for p in build(run)[0].parameters())
    costs: dict[str, Cost] = {}
    plan = CrfPlan(
        ablation=ablation,
        base=base,
        out=out,
        seeds=args.seeds,
        images=args.images,
        diagonal=diagonal,
        split_sizes={split: len(datamodule.dataset(split)) for split in ("train", "val", "test")},
        budgets=budgets,
        parameters=parameters,
        gmac=gmac(runs[BASELINE], height, width),
        costs=costs,
        class_names=datamodule.class_names,
        palette=[list(colour) for colour in datamodule.palette],
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
    )
    if stored and not plan.is_of(stored.get("hashes", {})):
        raise ValueError(
            f"{out} holds the results of another grid (other data, epochs, weights or --images): choose another folder "
            "with --out, or remove it"
        )
    if stored and stored["device"] == plan.device:
        costs_stored = {variant: stored["variants"][variant] for variant in runs}
        costs |= {variant: Cost(v["step_seconds"], v["peak_memory_mb"]) for variant, v in costs_stored.items()}
    else:
        batch = next(iter(datamodule.train_dataloader()))["image"]
        costs |= measure(runs, threads=args.threads, images=batch, progress=say)
    return plan


def name(args: argparse.Namespace) -> str:
    return "ablate_crf" + f"_{args.data}" * (args.data != "brain") + "_full_size" * args.full_size


def output(args: argparse.Namespace) -> Path:
    return args.out or Path("outputs") / name(args)


def show_crf_plan(plan: CrfPlan, console: Console, jobs: int) -> None:
    """What is to be trained and searched, and about how long the training takes."""
    cells = [plan.base_cell(seed) for seed in plan.seeds]
    cells += [plan.cell(variant, seed) for seed in plan.seeds for variant in plan.ablation.runs]
    done = [cell for cell in cells if cell.result is not None]
    table = Table("trained", title=f"{plan.ablation.name}: {len(LEVELS)} variants x {len(plan.seeds)} seeds")
    for column in ("parameters", "ms/step", "peak MB", "cells", "done", "est. time"):
        table.add_column(column, justify="right")
    for variant in ("base", *plan.ablation.runs):
        cost, of_variant = plan.cost(variant), [cell for cell in cells if cell.variant == variant]
        table.add_row(
            variant,
            f"{plan.parameters.get(variant, plan.parameters[BASELINE]):,}",
            f"{1000 * cost.step_seconds:.0f}",
            f"{cost.peak_memory_mb:.0f}",
            str(len(of_variant)),
            str(sum(cell in done for cell in of_variant)),
            clock(sum(plan.seconds(cell) for cell in of_variant)),
        )
    console.print(table)
    todo = sum(plan.seconds(cell) for cell in cells if cell not in done)
    images = min(plan.images, plan.split_sizes["val"])
    console.print(
        f"Training: about {clock(todo / jobs)} with {jobs} at a time on {plan.device}. For each seed, "
        f"{' and '.join(CRFS)} are searched on {images} validation images and scored on {plan.split_sizes['test']} "
        f"test images. Results: {plan.out}",
        soft_wrap=True,
    )


def score_behind(
    plan: CrfPlan, crf: str, seed: int, datamodule: SegmentationDataModule, jobs: int, say: Callable[[str], None]
) -> None:
    """Searches the parameters of a CRF behind the network `none`, and scores the two together on the test split."""
    folder, network = plan.folder(crf, seed), plan.folder(BASELINE, seed)
    wanted = plan.search_hash(crf, seed)
    if plan.searched(crf, seed) and (folder / "result.json").exists():
        return
    say(f"{folder}: searching")
    started = time.monotonic()
    module = trained_module(plan, BASELINE, seed)
    validation = datamodule.dataset("val")
    predicted = predict(module, validation, "val", spread(len(validation), plan.images), say)
    key = search_key(crf, plan.checkpoint(BASELINE, seed), plan.base, "val", predicted.names)
    finished = Finished(folder / "search.csv", key)
    result = search(crf, plan.grid(crf), predicted, finished, jobs=jobs, device=module.device, say=say)
    write_json(folder / "best.json", result.parameters)
    picture(crf, result, predicted, plan.palette, folder / "search.png", module.device)

    point = result.best.point
    module.refine = None if point is None else post_process(crf, **point)
    dataset = datamodule.dataset("test")
    arrays, labels, logits = evaluate(module, dataset, jobs)
    save_npz(folder / "per_image.npz", **arrays)
    maps = enumerate(torch.from_numpy(label_map) for label_map in labels)
    pictures = {position: encode_labels(label_map, module.palette) for position, label_map in maps}
    save_predictions(folder / "predictions.zip", pictures)
    with np.load(network / "samples.npz", allow_pickle=False) as stored:
        initial = {"initial_logits": stored["initial_logits"]}
    save_npz(folder / "samples.npz", **initial, **sampled(dataset, arrays["confusion"], labels.__getitem__, logits))
    write_atomic(folder / "metrics.csv", "epoch,train/loss,val/miou\n")  # nothing is trained
    where, trained = read_json(network / "environment.json"), read_json(network / "result.json")
    write_environment(folder, **{k: where[k] for k in ("device", "torch_threads")})
    test = {k: float(v) for k, v in scores(arrays["confusion"].sum(0)).items() if v.ndim == 0}
    seconds = time.monotonic() - started
    summary = {"hash": wanted, "status": "done", "test": test, "seconds": trained["seconds"] + seconds}
    write_json(folder / "result.json", summary | {"epochs": trained["epochs"], "params": trained["params"]})
    searched = {"images": len(predicted.names), "miou": result.best.miou, "without": result.without.miou}
    of_network = {"network": f"{BASELINE}/seed{seed}", "crf": crf, "parameters": result.parameters, "seed": seed}
    write_json(folder / "run.json", of_network | {"search": searched | {"best_crf": result.best_crf}, "hash": wanted})
    before = trained["test"]["miou"]
    say(f"{folder}: test/miou {test['miou']:.4f}, without CRF {before:.4f} ({clock(seconds)})")


def trained_module(plan: CrfPlan, variant: str, seed: int) -> CRFasRNNModule:
    module = load(path := plan.checkpoint(variant, seed))
    if isinstance(module, CRFasRNNModule):
        return module.to("cuda" if torch.cuda.is_available() else "cpu")
    raise ValueError(f"{path} holds {type(module).__name__}, and this experiment trains CRFasRNNModule")


def evaluate(
    module: SegmentationModule, dataset: SegmentationDataset, jobs: int
) -> tuple[dict[str, np.ndarray], list[np.ndarray], Tensor]:
    """What per_image.npz holds, the labels (H, W) of each image, and the logits (C, H, W) of the first sample.

    Raises NonFiniteError, naming the image, for a logit at a labelled pixel that is NaN or infinite.
    """
    first = sample_positions(len(dataset))[0]

    def one(index: int) -> dict[str, Tensor]:
        image, mask = dataset[index]
        name = f"{dataset.names[index]} (test)"
        with torch.no_grad(), naming(name):
            logits = module(image[None].to(module.device)).float().cpu()
        labelled_logits(logits, mask[None], module.ignore_index, [name], module.class_names)
        of_one = Scores(module.num_classes, module.ignore_index, detailed=True)
        row = of_one.update(logits, mask[None], torch.zeros(1))
        return row if index == first else {key: value for key, value in row.items() if key != "logits"}

    with workers(jobs) as pool:
        rows = list(pool.map(one, range(len(dataset))))
    logits = rows[first].pop("logits")[0]
    labels = [row.pop("labels")[0].byte().numpy() for row in rows]
    arrays = {key: torch.cat([row[key] for row in rows]).numpy() for key in rows[0]}
    return {"names": np.array(dataset.names), **arrays}, labels, logits


def time_images(plan: CrfPlan, seed: int, dataset: SegmentationDataset) -> dict[str, dict[str, float]]:
    """Median seconds of the network and of each CRF on the same test images in turn, on one thread.

    Behind the network stand the best settings that the search of this seed met, also where none was better.
    """
    modules = {variant: trained_module(plan, variant, seed) for variant in plan.ablation.runs}
    points = {crf: (plan.searched(crf, seed) or {})["best_crf"] for crf in CRFS}
    seconds: dict[str, list[float]] = {variant: [] for variant in LEVELS}
    device, threads = modules[BASELINE].device, torch.get_num_threads()

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
                    probabilities = timed(BASELINE, modules[BASELINE].predict, x).softmax(1)
                    for crf, point in points.items():
                        timed(crf, refined, crf, point, probabilities, grey_levels)
                    for variant, module in modules.items():
                        if (layer := module.network.crf) is not None:
                            probabilities = module.network.network(module.normalise(x)).softmax(1)
                            timed(variant, layer, probabilities, grey_levels)
    torch.set_num_threads(threads)
    medians = {variant: statistics.median(values) for variant, values in seconds.items()}
    return {
        variant: {"network": medians[BASELINE], "crf": 0.0 if variant == BASELINE else median}
        for variant, median in medians.items()
    }


def describe(plan: CrfPlan, seeds: Sequence[int]) -> list[str]:
    """What the report says of these variants beside its other notes."""
    lines = [
        (
            "All variants have the same number of epochs behind them. dense and conv are the networks of none with a "
            "CRF behind them: what they cost in training is what none costs, and their seconds include search and "
            "test. GMAC is of the network alone. Trimap: the mIoU of those pixels alone whose distance to a pixel of "
            "another class, in the truth, is at most so many pixels."
        )
    ]
    for crf in CRFS:
        of_seeds = {seed: read_json(plan.folder(crf, seed) / "run.json") for seed in seeds}
        chosen = [
            f"seed {seed}: {_settings(run['search']['best_crf'])}, {_gain(run['search'])}"
            for seed, run in of_seeds.items()
        ]
        lines.append(
            f"Best {crf} CRF on {min(plan.images, plan.split_sizes['val'])} validation images, with its gain there; "
            f"where that is not positive, {crf} is the network itself. {'; '.join(chosen)}. {crf}-trained starts from "
            "these."
        )
    return lines


def _settings(point: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in point.items()
    )


def _gain(searched: Mapping[str, float]) -> str:
    gain = 100 * (searched["miou"] - searched["without"])
    return f"{gain:+.2f} points" if gain > 0 else "no gain"


def parse_grid_flags(argv: list[str] | None = None) -> argparse.Namespace:
    forgiving_output()
    parser = Parser(description=__doc__)
    parser.add_argument("--data", choices=list(SETTINGS), default="brain", help="the data set that is trained on")
    parser.add_argument("--root", help="folder of the CamVid images, masks, classes.txt and splits")
    parser.add_argument("--epochs", type=positive, help="epochs of the base network")
    parser.add_argument("--finetune", type=positive, help="epochs of every variant after them")
    parser.add_argument("--images", type=positive, default=IMAGES, help="validation images of a search")
    parser.add_argument("--full-size", action="store_true", help="the paper's network and whole images, for a GPU")
    parser.add_argument(
        "--weights", help="the encoder's: imagenet (downloaded), package (see README), a file or a folder"
    )
    add_arguments(parser)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    """Trains, searches, scores and reports; the same command continues what was interrupted. Returns the exit
    status."""

    def work(console: Console, jobs: int) -> list[PlannedCell]:
        with locked(output(args)):
            try:
                plan = make_crf_plan(args, lambda line: console.print(line, style="dim"))
            except FileNotFoundError as error:
                if not args.dry_run:
                    raise
                show_without_data(args, str(error), console)
                return []
            show_crf_plan(plan, console, jobs)
            tell_difference(console)
            return [] if args.dry_run else carry_out(plan, args, console, jobs)

    return run_command(args, lambda: output(args), work)


def show_without_data(args: argparse.Namespace, reason: str, console: Console) -> None:
    """What a dry run can tell where the data are not: the variants, and what was stored of a plan with them."""
    out, stored = output(args), {}
    if (out / "plan.json").exists():
        stored = read_json(out / "plan.json")["variants"]
    table = Table("variant", "CRF", "trained", "parameters", "ms/step", title=f"{name(args)}: {len(args.seeds)} seeds")
    for variant, levels in LEVELS.items():
        variant_stored = stored.get(variant, {})
        size, step = variant_stored.get("parameters"), variant_stored.get("step_seconds")
        shown = ("?" if size is None else f"{size:,}", "?" if step is None else f"{1000 * step:.0f}")
        table.add_row(variant, str(levels["crf"]), str(levels["trained"]), *shown)
    console.print(table)
    unknown = (
        f"Numbers are of the plan stored in {out}." if stored else "Not known without the data: steps, sizes, times."
    )
    console.print(f"{unknown} {reason}", soft_wrap=True, markup=False)


def carry_out(plan: CrfPlan, args: argparse.Namespace, console: Console, jobs: int) -> list[PlannedCell]:
    """Does what is not done yet and writes the report; returns the cells that failed."""
    from experiments.reports.write import write_report  # imports pyplot, which the cells need not

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False)

    def train(cells: Sequence[PlannedCell]) -> list[PlannedCell]:
        return run_cells(
            cells,
            console,
            jobs=jobs,
            threads=args.threads,
            devices=args.devices,
            logging=Logging.of(args),
            save_every=args.save_every,
            command=command_line(),
            seconds=plan.seconds,
        )

    plan.write({}, [])
    _, datamodule = build(plan.base)
    failed = train([plan.base_cell(seed) for seed in plan.seeds])
    seeds = [seed for seed in plan.seeds if plan.base_cell(seed).result]
    failed += train([plan.cell(BASELINE, seed) for seed in seeds])
    seeds = [seed for seed in seeds if plan.cell(BASELINE, seed).result]
    for seed in seeds:
        for crf in CRFS:
            score_behind(plan, crf, seed, datamodule, jobs, say)
    arms = [variant for variant in plan.ablation.runs if variant != BASELINE]
    failed += train([plan.cell(variant, seed) for seed in seeds for variant in arms])
    whole = [seed for seed in seeds if all(plan.cell(variant, seed).result for variant in arms)]
    image_seconds = {}
    if whole:
        say("measuring the seconds of an image")
        image_seconds = time_images(plan, whole[0], datamodule.dataset("test"))
    plan.write(image_seconds, describe(plan, seeds))
    if seeds:
        write_report(plan.out)
    return failed


if __name__ == "__main__":
    sys.exit(main(parse_grid_flags()))
