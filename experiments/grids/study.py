"""A question asked on several data sets: what an `ablate_<factor>.py` declares, and the command line it gets for it."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from datamodules.brain import BrainDataModule
from datamodules.camvid import CamVidDataModule
from datamodules.shapes import ShapesDataModule
from experiments.grids.ablation import Ablation, Match, variants
from experiments.grids.command import add_arguments, run_ablation
from experiments.grids.fairness import matched
from experiments.runs.run import Run, setting
from experiments.shell.command import command
from experiments.shell.flags import Parser, positive
from lightning_modules.base import SegmentationModule

DATA_NOTES = {
    "brain": "One averaged brain (MNI152): the numbers rank designs on its anatomy, they do not measure generalisation "
    "to people. Training and test slices are at least 5 mm apart.",
    "camvid": "Road scenes of the usual 367/101/233 split; validation frames are video neighbours of training frames, "
    "so the test split is the honest one.",
    "shapes": "Discs and squares on noise: shows that the experiment runs, and nothing about segmentation.",
}
# Of the brain: CSF is 2 % of the pixels, one or two pixels wide, and lost without its weight.
BRAIN_WEIGHTS = (0.5, 3.0, 1.0, 1.0)


def cpu_scale(module: type[SegmentationModule], **hparams: Any) -> dict[str, Run]:
    """Runs of `module` on each data set that two CPU cores train in a minute or so, from scratch by AdamW and poly.

    The papers' own recipes fine-tune ImageNet weights over days; they belong to the full-size runs.
    """
    recipe = {"optimizer": "adamw", "momentum": 0.9, "weight_decay": 1e-4, "schedule": "poly", "lr": 2e-3, **hparams}
    return {
        "brain": Run(
            module=module,
            datamodule=BrainDataModule,
            hparams={**recipe, "class_weights": BRAIN_WEIGHTS},
            data={"crop": 96, "zoom": (0.75, 1.5), "jitter": 0.1, "batch_size": 4},
            trainer={"max_epochs": 12, "check_val_every_n_epoch": 4},
        ),
        "camvid": Run(
            module=module,
            datamodule=CamVidDataModule,
            hparams={**recipe, "class_weights": "median-frequency"},
            data={"scale": 0.25, "crop": (80, 112), "zoom": (0.75, 1.5), "batch_size": 4},
            trainer={"max_epochs": 6, "check_val_every_n_epoch": 3},
        ),
        "shapes": Run(
            module=module,
            datamodule=ShapesDataModule,
            hparams=recipe,
            trainer={"max_epochs": 2, "check_val_every_n_epoch": 1},
        ),
    }


def full_size(module: type[SegmentationModule], **hparams: Any) -> dict[str, Run]:
    """Runs of `module` by its paper's recipe, the defaults of the module, on the images' own size, for a GPU."""
    return {
        "brain": Run(
            module=module,
            datamodule=BrainDataModule,
            hparams={"class_weights": BRAIN_WEIGHTS, **hparams},
            data={"crop": 192, "zoom": (0.75, 1.5), "jitter": 0.1, "batch_size": 16},
            trainer={"max_epochs": 200, "check_val_every_n_epoch": 10},
        ),
        "camvid": Run(
            module=module,
            datamodule=CamVidDataModule,
            hparams={"class_weights": "median-frequency", **hparams},
            data={"crop": (352, 480), "batch_size": 16, "num_workers": 8},
            trainer={"max_epochs": 200, "check_val_every_n_epoch": 10},
        ),
    }


@dataclass(frozen=True, kw_only=True)
class Study:
    """Variants of a run on each data set, small enough for two CPU cores, and at the paper's size for a GPU.

    `variants`: the settings by which each differs from the run of the data set, see `Run.but`. `bases` and `full_size`:
    those runs, by the name of the data set. `matched`: the arms that are to be as large as another one.
    """

    name: str
    question: str
    baseline: str
    variants: Mapping[str, Mapping[str, Any]]
    bases: Mapping[str, Run]
    full_size: Mapping[str, Run]
    matched: Mapping[str, Match] = field(default_factory=dict)

    def runs(self, data: str = "brain", *, full_size: bool = False) -> dict[str, Run]:
        return self._runs((self.full_size if full_size else self.bases)[data])

    def _runs(self, base: Run) -> dict[str, Run]:
        runs = variants(base, self.variants)
        return runs | {name: matched(runs[name], runs[how.like], how) for name, how in self.matched.items()}

    def ablation(
        self,
        data: str,
        root: str | None = None,
        *,
        epochs: int | None = None,
        scale: float | None = None,
        full_size: bool = False,
        weights: str | None = None,
    ) -> Ablation:
        """The grid on the data set `data`; `epochs` and `scale` (of the images' sides, and of the crop) set its
        cost."""
        bases = self.full_size if full_size else self.bases
        if data not in bases:
            raise ValueError(f"--full-size has settings for {', '.join(bases)}, got --data {data}")
        base = bases[data]
        if data != "camvid" and root is not None:
            raise ValueError(f"--root belongs to --data camvid, got --data {data}")
        if data == "camvid":
            if root is None:
                raise ValueError(
                    "--data camvid needs --root DIR, a folder with images/, masks/, classes.txt and splits/"
                )
            base = base.but(data={"root": root})
        if epochs is not None:
            self._refuse_varied("--epochs", "trainer.max_epochs")
            # The largest interval that is not longer than the default and ends with the last epoch.
            most = base.resolved()["trainer.check_val_every_n_epoch"]
            every = max(n for n in range(1, most + 1) if epochs % n == 0)
            base = base.but(trainer={"max_epochs": epochs, "check_val_every_n_epoch": every})
        if scale is not None:
            self._refuse_varied("--scale", "data.scale", "data.size", "data.crop")
            if not 0 < scale <= 8:
                raise ValueError(f"--scale must be more than 0 and at most 8, got {scale}")
            base = base.but(data=_scaled(base, scale))
        if weights is not None:
            if "hparams.weights" not in base.resolved():
                raise ValueError(f"--weights is for networks on an encoder, and {base.module.__name__} has none")
            self._refuse_varied("--weights", "weights")
            base = base.but(weights=weights)
        return self._described(base, data, full_size)

    def _refuse_varied(self, flag: str, *names: str) -> None:
        varied = [name for name in names if any(name in changed for changed in self.variants.values())]
        if varied:
            raise ValueError(
                f"{flag} is for studies whose variants share {varied[0]}; the variants of {self.name} have their own"
            )

    def _described(self, base: Run, data: str, full_size: bool) -> Ablation:
        runs = self._runs(base)
        factors: dict[str, list[Any]] = {}  # each setting that a variant gives, and its levels in their order
        for name in dict.fromkeys(key for changed in self.variants.values() for key in changed):
            levels = [run.resolved()[setting(name)] for run in runs.values()]
            factors[name] = [level for i, level in enumerate(levels) if level not in levels[:i]]
        r = base.resolved()
        shown = {key: f"{key.removeprefix('hparams.')} {r[key]}" for key in r if key.endswith("width") and r[key]}
        shown |= {"data.crop": f"crop {r['data.crop']}", "data.batch_size": f"batch {r['data.batch_size']}"}
        shown |= {"trainer.max_epochs": f"{r['trainer.max_epochs']} epochs"}
        size = [text for key, text in shown.items() if key not in map(setting, factors)]
        return Ablation(
            name=self.name + f"_{data}" * (data != "brain") + "_full_size" * full_size,
            question=self.question,
            runs=runs,
            factors=factors,
            baseline=self.baseline,
            matched=self.matched,
            data=data,
            data_note=DATA_NOTES[data],
            scale_note=f"{'Full size' if full_size else 'CPU scale'}: {', '.join(size)}.",
        )

    def command_line(self, description: str | None) -> NoReturn:
        """What `python -m experiments.<name>` does; `description` is the docstring of the file."""
        with command():
            parser = Parser(description=description)
            parser.add_argument(
                "--data", choices=self.bases, default=next(iter(self.bases)), help="the data set that is trained on"
            )
            parser.add_argument("--root", help="folder of the CamVid images, masks, classes.txt and splits")
            parser.add_argument("--epochs", type=positive, help="epochs of each cell (default: those of the study)")
            parser.add_argument("--scale", type=float, help="factor of the sides of images and crop (default: 1)")
            parser.add_argument(
                "--full-size", action="store_true", help="the paper's width and whole images, for a GPU"
            )
            parser.add_argument(
                "--weights", help="the encoder's: imagenet (downloaded), package (see README), a file or a folder"
            )
            add_arguments(parser)
            args = parser.parse_args()
            grid = self.ablation(
                args.data,
                args.root,
                epochs=args.epochs,
                scale=args.scale,
                full_size=args.full_size,
                weights=args.weights,
            )
        sys.exit(run_ablation(grid, args))


def _scaled(base: Run, scale: float) -> dict[str, Any]:
    """Arguments of the data for images whose sides are `scale` times those of `base`."""
    r = base.resolved()
    crop = [round(scale * side) for side in base.datamodule(**base.data).transform.crop]
    if min(crop) < 16:
        raise ValueError(f"--scale {scale} leaves a crop of {crop[0]} x {crop[1]} pixels; at least 16 x 16 are needed")
    if base.datamodule is ShapesDataModule:
        return {"size": round(scale * r["data.size"]), "crop": tuple(crop)}
    return {"scale": scale * r["data.scale"], "crop": tuple(crop)}
