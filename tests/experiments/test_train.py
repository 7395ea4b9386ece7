"""The command line and the one code path that trains."""

import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from PIL import Image

from datamodules.shapes import ShapesDataModule
from experiments.runs.callbacks import sample_positions
from experiments.runs.run import Run
from experiments.runs.training import build, train
from experiments.shell.catalogue import ARCHITECTURES, DATAMODULES, load
from experiments.shell.difference import Difference
from experiments.train import main, parse_run
from lightning_modules.components.scores.confusion import confusion_matrix
from lightning_modules.components.scores.reductions import scores
from lightning_modules.components.scores.segments import segments
from lightning_modules.components.scores.table import PER_IMAGE
from lightning_modules.components.scores.trimap import trimap
from lightning_modules.unet import UNetModule

TINY = Run(
    module=UNetModule,
    datamodule=ShapesDataModule,
    hparams={"width": 2, "depth": 2, "norm": "batch"},
    data={"size": 32, "length": 7, "batch_size": 2},
    trainer={"max_epochs": 4},
)
QUIET: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False}


def weights(out: Path) -> dict[str, torch.Tensor]:
    state = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if "scores" not in name}


def test_help_lists_every_architecture_and_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_run(["--help"])
    printed = capsys.readouterr().out
    assert stop.value.code == 0
    for cls in (*ARCHITECTURES.values(), *DATAMODULES.values()):
        assert cls.__name__ in printed
    for flag in ("--model.upsample", "--data.crop", "--trainer.devices", "--trainer.precision", "--resume", "--logger"):
        assert flag in printed


def test_flags_become_the_run_they_describe() -> None:
    command = (
        "--model UNetModule --model.upsample nearest --model.lr 0.1 --data shapes --data.size 32 --trainer.max_epochs 3"
    )
    run, args = parse_run([*command.split(), "--trainer.devices", "2", "--seed", "5"])
    assert (run.module, run.datamodule, run.seed) == (UNetModule, ShapesDataModule, 5)
    same = Run(
        module=UNetModule,
        datamodule=ShapesDataModule,
        hparams={"upsample": "nearest", "lr": 0.1},
        data={"size": 32},
        trainer={"max_epochs": 3},
        seed=5,
    )
    assert run.hash == same.hash  # the devices are not in it
    assert args.where == {"devices": "2"}
    assert args.out == Path("outputs/train/unet-shapes/seed5")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.upsampel", "nearest"], "did you mean --model.upsample?"),
        (["--modle", "UNetModule"], "--modle"),
        (["--model", "UNetModul"], "did you mean UNetModule?"),
        (["--data", "cityscape"], r"--data must be one of BrainDataModule \(brain\), CamVidDataModule \(camvid\)"),
        (["--model.width", "wide"], "wide"),
        (["--trainer.max_epoch", "3"], "did you mean --trainer.max_epochs?"),
        (["--data.crop", "24,32"], r'--data.crop expects a list such as "\[2, 4\]", a whole number, got .24,32.'),
        (["--trainer.precision", "foo"], r"--trainer.precision expects .*16-mixed.*, got 'foo'"),
        (["--model"], "expected one argument: --model takes one of"),
        (["--seed", "-1"], "seed"),
    ],
)
def test_a_wrong_flag_names_the_right_one(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_run(arguments)
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--model.upsample nearst", "nearest"),
        ("--model.class_weights [0,0,0]", "class_weights must be at least 0"),
        ("--model.class_weights [1,2]", r"for each of the 3 classes, or be 'median-frequency', got \[1.0, 2.0\]"),
        ("--model.class_weights median", "or be 'median-frequency', got 'median'"),
        (
            "--model.loss border",
            "loss must be one of ce, ce_sum, ce_per_pixel, focal, dice, jaccard, lovasz, ce_border, got 'border'",
        ),
        ("--data.elastic -1", "elastic must be at least 0 pixels, got -1.0"),
        ("--model.momentum 1.5", "momentum must be at least 0 and less than 1, got 1.5"),
        ("--trainer.max_epochs 0", "max_epochs must be at least 1, got 0"),
        ("--trainer.max_epochs null", "state how long to train"),
        ("--trainer.accumulate_grad_batches 0", "accumulate_grad_batches must be at least 1"),
        ("--trainer.devices foo", "--trainer flags"),
        ("--trainer.gradient_clip_algorithm foo", "--trainer flags"),
        ("--data.length 0", "length must be at least 1|length at least 1"),
        ("--data.crop 0", "crop must be at least 1"),
        ("--model smp --model.encoder tu-nope", "encoder='tu-nope'"),
        ("--resume", "nothing to resume"),
    ],
)
def test_a_value_that_cannot_work_is_refused_in_one_line(
    flags: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--data", "shapes", "--out", str(tmp_path / "run"), *flags.split()])
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert re.search(message, printed)
    assert "Traceback" not in printed
    assert not list((tmp_path / "run").glob("[!.]*"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "masks" / "frame0.png").unlink(), r"frame0.*mask"),
        (lambda root: Image.new("L", (48, 36), 77).save(root / "masks" / "frame0.png"), r"frame0\.png.*77"),
        (lambda root: (root / "images" / "frame0.jpg").write_bytes(b"<html>"), r"frame0\.jpg"),
        (lambda root: shutil.rmtree(root / "images"), r"images"),
    ],
)
def test_bad_data_stop_the_command_before_it_writes_anything(
    spoil: Callable[[Path], object], message: str, camvid_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(camvid_root)
    before = {path: path.read_bytes() for path in camvid_root.rglob("*") if path.is_file()}
    out = camvid_root.parent / "run"
    with pytest.raises(SystemExit) as stop:
        main(["--data", "camvid", "--data.root", str(camvid_root), "--model.width", "2", "--out", str(out)])
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)
    assert not out.exists()
    assert {path: path.read_bytes() for path in camvid_root.rglob("*") if path.is_file()} == before


def test_code_that_differs_from_its_commit_is_told_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = Difference("ab12cd34ef-dirty", {"experiments/ablate_[mine].py": "new"}, b"x", [])
    monkeypatch.setattr("experiments.shell.difference.difference", lambda: code)
    told: list[str] = []

    def stop(*_: Any, **__: Any) -> None:
        told.append(capsys.readouterr().out)
        raise ValueError("enough")

    monkeypatch.setattr("experiments.train.train", stop)
    with pytest.raises(SystemExit):
        main(["--data", "shapes", "--out", str(tmp_path / "run")])
    (sentence,) = told
    assert sentence == (
        "The code differs from commit ab12cd3 in experiments/ablate_[mine].py (new): each run keeps the difference as "
        "code.patch, which reproduce.sh applies. Commit it to make it part of the history.\n"
    )


def test_a_run_leaves_what_reports_need(tmp_path: Path) -> None:
    result = train(TINY, tmp_path / "run", **QUIET)
    out = tmp_path / "run"
    assert json.loads((out / "result.json").read_text())["hash"] == TINY.hash == result["hash"]
    assert Run.from_config(json.loads((out / "run.json").read_text())) == TINY
    rows = pd.read_csv(out / "metrics.csv")
    assert rows["epoch"].tolist() == [0, 1, 2, 3]
    assert rows["step"].tolist() == [3, 6, 9, 12]  # 7 images in batches of 2, the last one dropped
    logged = ("loss", "miou", "pixel_acc", "macc", "fwiou", "boundary_f1", "checkerboard", "iou/disc")
    assert {"train/loss", "train/lr", *(f"val/{name}" for name in logged)} <= set(rows.columns)
    per_image = np.load(out / "per_image.npz")
    assert per_image["names"].tolist() == [f"test{i:04}" for i in range(7)]
    assert per_image["groups"].tolist() == per_image["names"].tolist()
    assert per_image["confusion"].sum(axis=(1, 2)).tolist() == [32 * 31] * 7  # the first row of each mask is ignored
    assert result["test"]["miou"] == pytest.approx(float(scores(per_image["confusion"].sum(0))["miou"]))
    assert per_image["trimap"].shape == (7, 20, 3, 3)
    assert per_image["trimap"].dtype == np.int64
    assert per_image["segments"].shape == (7, 3, 4)
    assert per_image["calibration"].shape == (7, 15, 3)
    assert set(per_image) == {"names", "groups", *PER_IMAGE}
    samples = np.load(out / "samples.npz")
    mious = dict(zip(per_image["names"].tolist(), scores(per_image["confusion"])["miou"], strict=True))
    kinds = dict(zip(samples["names"].tolist(), samples["kinds"].tolist(), strict=True))
    fixed = [f"test{position:04}" for position in sample_positions(7)]
    assert [name for name in kinds if "fixed" in kinds[name]] == fixed == list(kinds)[:4]
    ranked = sorted(mious, key=lambda name: mious[name])
    assert {name for name in kinds if "worst" in kinds[name]} == set(ranked[:3])
    assert {name for name in kinds if "best" in kinds[name]} == set(ranked[-3:])
    assert samples["image_3"].shape == (32, 32, 3)
    assert samples["logits"].shape == samples["initial_logits"].shape == (3, 32, 32)
    torch.manual_seed(TINY.seed)
    untrained, _ = build(TINY)
    first, _ = ShapesDataModule(**TINY.data).dataset("test")[sample_positions(7)[0]]
    expected = untrained.eval()(first[None])[0].detach()
    torch.testing.assert_close(torch.from_numpy(samples["initial_logits"]).float(), expected, rtol=1e-2, atol=1e-3)
    assert (samples["logits"].argmax(0) == samples["prediction_0"]).mean() > 0.99  # the logits are stored in float16
    environment = json.loads((out / "environment.json").read_text())
    assert {"command", "commit", "versions", "device", "processor", "instruction_set", "blas"} <= set(environment)
    assert (out / "code.patch").exists() == ("patch" in environment)
    assert not list(out.rglob("*.tmp"))

    # The checkpoint alone predicts what the test has scored.
    module, data = load(out / "checkpoints" / "last.ckpt"), ShapesDataModule(**TINY.data)
    image, mask = data.dataset("test")[3]
    with torch.no_grad():
        labels = module(image[None]).argmax(1)
    assert confusion_matrix(labels, mask[None], 3, 255)[0].tolist() == per_image["confusion"][3].tolist()
    assert trimap(labels, mask[None], 3, 255)[0].tolist() == per_image["trimap"][3].tolist()
    assert segments(labels, mask[None], 3, 255)[0].tolist() == per_image["segments"][3].tolist()
    with zipfile.ZipFile(out / "predictions.zip") as archive, archive.open("00003.png") as file:
        assert len(archive.namelist()) == 7
        picture = Image.open(file)
        assert np.array_equal(np.array(picture), labels[0].numpy())
        assert np.array_equal(np.array(picture.convert("RGB"))[0, 0], data.palette[int(labels[0, 0, 0])])


def test_the_same_run_gives_the_same_numbers_with_any_number_of_workers(tmp_path: Path) -> None:
    results = [
        train(TINY.but(data={"num_workers": workers}), tmp_path / name, **QUIET)
        for name, workers in (("a", 0), ("b", 0), ("c", 2))
    ]
    assert results[0]["test"] == results[1]["test"] == results[2]["test"]
    for name in ("b", "c"):
        for key, value in weights(tmp_path / name).items():
            assert torch.equal(value, weights(tmp_path / "a")[key]), key
    other = train(TINY.but(seed=1), tmp_path / "d", **QUIET)
    assert other["test"]["miou"] != results[0]["test"]["miou"]


def test_class_weights_are_a_list_or_the_name_of_a_rule() -> None:
    for value, expected in (("median-frequency", "median-frequency"), ("[1,2,0.5]", [1, 2, 0.5]), ("null", None)):
        run, _ = parse_run(["--data", "shapes", "--model.class_weights", value])
        assert run.hparams["class_weights"] == expected
        assert run.hash == Run.from_config(json.loads(json.dumps(run.config()))).hash
    assert len({TINY.but(class_weights=w).hash for w in ("median-frequency", [1, 2, 3], [3, 2, 1], None)}) == 4


def test_median_frequencies_are_counted_before_training_and_live_in_the_checkpoint(tmp_path: Path) -> None:
    run = TINY.but(class_weights="median-frequency")
    module, data = build(run)
    with pytest.raises(ValueError, match="must be counted before the loss is computed"):
        module.loss(torch.rand(1, 3, 32, 32), torch.zeros(1, 32, 32, dtype=torch.int64))

    train(run, tmp_path / "whole", **QUIET)
    masks = [data.dataset("train")[i][1] for i in range(7)]
    labelled = 32 * 31  # the first row of each mask is ignored
    frequencies = [
        sum(int((m == c).sum()) for m in masks) / (labelled * sum(bool((m == c).any()) for m in masks))
        for c in range(3)
    ]
    expected = [sorted(frequencies)[1] / f for f in frequencies]
    loaded = load(tmp_path / "whole" / "checkpoints" / "last.ckpt")
    assert loaded.class_weights.tolist() == pytest.approx(expected, rel=1e-5)
    assert torch.isfinite(loaded.loss(torch.rand(1, 3, 32, 32), masks[0][None]))

    with pytest.raises(RuntimeError, match="power cut"):
        train(run, tmp_path / "cut", callbacks=[Kill()], **QUIET)
    train(run, tmp_path / "cut", resume=True, **QUIET)
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, weights(tmp_path / "cut")[name]), name

    train(TINY.but(class_weights=loaded.class_weights.tolist()), tmp_path / "given", **QUIET)  # the same, by hand
    for name, value in weights(tmp_path / "given").items():
        assert torch.equal(value, weights(tmp_path / "whole")[name]), name
    assert set(weights(tmp_path / "whole")) - set(weights(tmp_path / "given")) == {"weight_of_class"}


def test_the_loss_of_cells_trains_on_deformed_images(tmp_path: Path) -> None:
    run = TINY.but(
        loss="ce_border", padding="valid", tile=24, data={"elastic": 3.0, "flip": False}, trainer={"max_epochs": 1}
    )
    result = train(run, tmp_path / "run", **QUIET)
    assert 0 < result["test"]["miou"] < 1
    other = train(run.but(data={"elastic": 0.0}), tmp_path / "other", **QUIET)
    assert other["test"]["loss"] != result["test"]["loss"]


def test_accumulated_batches_share_the_batch_size(tmp_path: Path) -> None:
    run = TINY.but(norm="none", data={"batch_size": 4}, trainer={"max_epochs": 1})
    train(run, tmp_path / "whole", **QUIET)
    train(run.but(trainer={"accumulate_grad_batches": 2}), tmp_path / "halves", **QUIET)
    assert [pd.read_csv(tmp_path / n / "metrics.csv")["step"].tolist() for n in ("whole", "halves")] == [[1], [1]]
    for name, value in weights(tmp_path / "whole").items():  # the mean of two halves, equal but for labelled pixels
        torch.testing.assert_close(value, weights(tmp_path / "halves")[name], rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="1 devices x 3 accumulated batches and must be a multiple of 3, got 4; try 6"):
        train(run.but(trainer={"accumulate_grad_batches": 3}), tmp_path / "thirds", **QUIET)
    train(run, tmp_path / "thirds", **QUIET)  # nothing was trained there, so the folder is free


class Kill(Callback):
    """Stands for a power cut in the middle of an epoch."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: object, batch: object, batch_idx: int) -> None:
        if trainer.global_step == 7:
            raise RuntimeError("power cut")


def test_a_checkpoint_does_not_tell_where_it_was_written(tmp_path: Path) -> None:
    train(TINY.but(trainer={"max_epochs": 1}), tmp_path, **QUIET)
    with zipfile.ZipFile(tmp_path / "checkpoints" / "last.ckpt") as archive:
        assert not [name for name in archive.namelist() if str(tmp_path).encode() in archive.read(name)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path, workers: int) -> None:
    run = TINY.but(data={"num_workers": workers})
    train(run, tmp_path / "whole", **QUIET)
    with pytest.raises(RuntimeError, match="power cut"):
        train(run, tmp_path / "cut", callbacks=[Kill()], **QUIET)
    assert pd.read_csv(tmp_path / "cut" / "metrics.csv")["epoch"].tolist() == [0, 1]
    train(run, tmp_path / "cut", resume=True, **QUIET)
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, weights(tmp_path / "cut")[name]), name
    rows = [pd.read_csv(tmp_path / name / "metrics.csv").drop(columns="seconds") for name in ("whole", "cut")]
    pd.testing.assert_frame_equal(rows[0], rows[1])
    results = [json.loads((tmp_path / n / "result.json").read_text()) for n in ("whole", "cut")]
    assert results[0]["val"] == results[1]["val"] != {}
    for file, names in (("per_image.npz", ["confusion"]), ("samples.npz", ["logits", "initial_logits"])):
        stored = [np.load(tmp_path / n / file) for n in ("whole", "cut")]
        assert all(np.array_equal(stored[0][name], stored[1][name]) for name in names)
    assert train(run, tmp_path / "cut", resume=True, **QUIET) == results[1]  # what is done stays as it is


def test_a_folder_with_a_run_is_not_written_to_by_accident(tmp_path: Path) -> None:
    train(TINY.but(trainer={"max_epochs": 1}), tmp_path / "run", **QUIET)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="--resume"):
        train(TINY.but(trainer={"max_epochs": 1}), tmp_path / "run", **QUIET)
    with pytest.raises(ValueError, match=r"holds another run \(hparams.lr: .*\): choose another folder with --out"):
        train(TINY.but(lr=0.5, trainer={"max_epochs": 1}), tmp_path / "run", resume=True, **QUIET)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("name", "damage"), [("metrics.csv", 0), ("run.json", 5)])  # checkpoints: test_checkpoints.py
def test_a_damaged_file_is_named(tmp_path: Path, name: str, damage: int) -> None:
    with pytest.raises(RuntimeError, match="power cut"):
        train(TINY, tmp_path / "run", callbacks=[Kill()], **QUIET)
    path = tmp_path / "run" / name
    path.write_bytes(path.read_bytes()[:damage])
    with pytest.raises(ValueError, match=f"{path.name}.*delete"):
        train(TINY, tmp_path / "run", resume=True, **QUIET)


def test_a_loss_that_is_not_a_number_stops_the_run_before_it_is_saved(tmp_path: Path) -> None:
    run = TINY.but(lr=1e30, norm="none", trainer={"check_val_every_n_epoch": 4})  # a validation would stop it too
    with pytest.raises(ValueError, match=r"the training loss is (nan|inf)"):
        train(run, tmp_path / "run", **QUIET)
    assert not (tmp_path / "run" / "result.json").exists()
    assert not list((tmp_path / "run").glob("checkpoints/*"))
