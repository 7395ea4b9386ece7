"""The grid search of CRF parameters finds what is planted, lets "no CRF" win, and continues."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from datamodules.shapes import Shapes, ShapesDataModule
from experiments.crfs.grid import CRFS, Grid, Point, default_grid, parse_grid
from experiments.crfs.search import Finished, Predicted, SearchResult, search
from experiments.runs.run import Run
from experiments.runs.training import train
from experiments.search_crf import main, verdict
from lightning_modules.components.scores.confusion import predict_labels
from lightning_modules.unet import UNetModule

FIXED: Point = {"theta_alpha": 8.0, "w_smoothness": 1.0, "theta_gamma": 1.0, "iterations": 3}
GRID: Grid = {
    "w_appearance": [1.0, 4.0, 16.0],
    "theta_beta": [2.0, 20.0, 200.0],
    **{name: [value] for name, value in FIXED.items()},
}
TINY = Run(
    module=UNetModule,
    datamodule=ShapesDataModule,
    hparams={"width": 2, "depth": 1, "lr": 0.01},
    data={"size": 24, "length": 4, "batch_size": 2},
    trainer={"max_epochs": 1},
)


def noisy(crf: str, planted: Point | None) -> Predicted:
    """Images of discs and squares, noisy probabilities, and as the truth what the planted CRF makes of them."""
    dataset = Shapes("val", 3, 24)
    images, probabilities, truth = [], [], []
    for image, mask in (dataset[i] for i in range(3)):
        logits = 2.0 * torch.nn.functional.one_hot(mask.clamp(max=2), 3).permute(2, 0, 1)[None] + torch.randn(
            1, 3, 24, 24
        )
        images.append((255 * image[None]).clamp(max=255).round())
        probabilities.append(logits.softmax(1))
        marginals = CRFS[crf](probabilities[-1], images[-1], **planted) if planted else probabilities[-1]
        truth.append(predict_labels(marginals))
    return Predicted("val", dataset.names, images, truth, probabilities, 3, 255)


def run(crf: str, kept: Predicted, folder: Path, grid: Grid = GRID, rounds: int = 1, key: str = "a") -> SearchResult:
    return search(crf, grid, kept, Finished(folder / "search.csv", key), rounds=rounds, jobs=2)


@pytest.mark.parametrize("crf", ["dense", "conv"])
def test_the_planted_parameters_are_found(crf: str, tmp_path: Path) -> None:
    planted: Point = {"w_appearance": 4.0, "theta_beta": 20.0, **FIXED}
    found = run(crf, noisy(crf, planted), tmp_path)
    assert found.parameters == planted
    assert found.best.miou == 1
    assert len(found.rows) == 1 + 3 * 3
    assert found.rows[1].miou < 1


def test_a_second_round_finds_what_lies_between_and_beyond(tmp_path: Path) -> None:
    planted: Point = {"w_appearance": 8.0, "theta_beta": 20.0, **FIXED}
    grid = GRID | {"w_appearance": [1.0, 4.0], "theta_beta": [20.0]}
    coarse = run("dense", noisy("dense", planted), tmp_path, grid)
    fine = run("dense", noisy("dense", planted), tmp_path, grid, rounds=2)
    tried = {row.point["w_appearance"] for row in fine.rows if row.point}
    assert coarse.best_crf["w_appearance"] == 4
    assert tried == {1, 2, 4, 8}  # half of a step of 4 to both sides of the best
    assert fine.parameters == planted


def test_no_crf_wins_where_it_is_best_and_of_equals(tmp_path: Path) -> None:
    kept = noisy("dense", None)
    found = run("dense", kept, tmp_path)
    assert found.best.point is None and found.best.miou == 1
    assert next(iter(verdict("dense", found, "val", 3))).startswith("No CRF wins: 100.00% mIoU without")
    assert found.parameters["w_appearance"] == found.parameters["w_smoothness"] == 0
    assert torch.allclose(
        CRFS["dense"](kept.probabilities[0], kept.images[0], **found.parameters), kept.probabilities[0]
    )

    certain = [(1e6 * p).softmax(1) for p in kept.probabilities]  # no CRF changes a label
    equal = run("conv", Predicted("val", kept.names, kept.images, kept.masks, certain, 3, 255), tmp_path, key="b")
    assert {row.miou for row in equal.rows} == {1.0}
    assert [row.point and row.point["w_appearance"] for row in equal.rows] == [
        None,
        *[1.0] * 3,
        *[4.0] * 3,
        *[16.0] * 3,
    ]


def test_a_finished_combination_is_not_scored_again(tmp_path: Path) -> None:
    kept, path = noisy("conv", None), tmp_path / "search.csv"
    first = run("conv", kept, tmp_path, GRID | {"theta_beta": [20.0]})
    whole = path.read_text().splitlines()
    assert len(whole) == 1 + 1 + 3
    path.write_text("\n".join([*whole[:-1], whole[-1].rpartition(",")[0] + ",1.5"]) + "\n")
    again = run("conv", kept, tmp_path, GRID | {"theta_beta": [20.0]})
    assert again.best.miou == 1.5 and again.parameters["w_appearance"] == 16  # the row as it is in the file
    assert len(path.read_text().splitlines()) == len(whole)

    other = run("conv", kept, tmp_path, GRID | {"theta_beta": [20.0]}, key="b")  # other images, say
    assert other == first
    assert len(path.read_text().splitlines()) == len(whole) + 4
    assert run("conv", kept, tmp_path, GRID | {"theta_beta": [20.0]}) == again

    path.write_text("key,miou\na,what\n")
    with pytest.raises(ValueError, match=r"search\.csv is damaged.*delete it to search from the start"):
        Finished(path, "a")


def test_the_default_grid_grows_with_the_images() -> None:
    small, large = (default_grid("dense", diagonal) for diagonal in (625.0, 1250.0))
    assert large["theta_alpha"] == [2 * theta for theta in small["theta_alpha"]] == [60, 120, 240]
    assert large["theta_gamma"] == [6.0]
    for name in ("w_appearance", "theta_beta", "w_smoothness"):
        assert large[name] == small[name]
    for crf, run_crf in CRFS.items():
        point = {name: values[0] for name, values in default_grid(crf, 300.0).items()}
        assert run_crf(torch.full((1, 2, 5, 5), 0.5), torch.zeros(1, 1, 5, 5), **point).shape == (1, 2, 5, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("w_apearance=3", r"got 'w_apearance'; did you mean w_appearance\?"),
        ("engine=c\\+\\+", "got 'engine'"),
        ("theta_beta", "must list numbers, such as theta_beta=3,4,5, got 'theta_beta'"),
        ("theta_beta=3,x", "must list numbers"),
        ("iterations=2.5", "--grid iterations must list whole numbers"),
    ],
)
def test_a_wrong_grid_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_grid("dense", [text])
    assert parse_grid("conv", ["window=5,7", "shape=square"]) == {"window": [5, 7], "shape": ["square"]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("outputs") / "seed0"
    train(TINY, out, accelerator="cpu", enable_progress_bar=False)
    return out


def test_the_command_searches_continues_and_tests_once(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        "--crf",
        "conv",
        "--images",
        "3",
        "--grid",
        "w_appearance=1,3",
        "theta_beta=10",
        "blur=1",
        "--out",
        str(tmp_path),
    ]
    command = [str(trained / "checkpoints" / "last.ckpt"), *flags, "--jobs", "2"]
    main(command)
    printed = capsys.readouterr().out
    assert "round 1: 3 combinations on 3 images, 3 of them to do" in printed
    assert "no CRF" in printed
    assert not (tmp_path / "test.json").exists()
    found = json.loads((tmp_path / "best.json").read_text())
    probabilities = torch.full((1, 3, 9, 9), 1 / 3)
    assert CRFS["conv"](probabilities, torch.zeros(1, 3, 9, 9), **found).shape == probabilities.shape
    assert (tmp_path / "search.png").stat().st_size > 5000

    main([*command, "--test"])
    printed = capsys.readouterr().out
    assert "round 1: 3 combinations on 3 images, 0 of them to do" in printed
    assert "4 images, scored once" in printed and "This is the honest number" in printed
    tested = json.loads((tmp_path / "test.json").read_text())
    assert tested["parameters"] == found and tested["images"] == 4
    assert math.isclose(
        tested["without"], json.loads((trained / "result.json").read_text())["test"]["miou"], abs_tol=1e-6
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "brain"], "the checkpoint predicts 3 classes (background, disc, square), the data have 4"),
        (["--grid", "theta_bta=3"], "did you mean theta_beta?"),
        (["--grid", "theta_beta=0"], "theta_beta must be more than 0"),
        (["--data.sise", "32"], "did you mean --data.size?"),
        (["--root", "/nowhere"], "--root belongs to data in a folder, and ShapesDataModule has none"),
    ],
)
def test_wrong_flags_are_refused_before_the_work(
    trained: Path, tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(trained / "checkpoints" / "last.ckpt"), "--out", str(tmp_path / "out"), *flags])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_checkpoint_and_one_without_its_run_are_named(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path / "last.ckpt")])
    assert "is not a file: give a checkpoint such as outputs/" in capsys.readouterr().err
    shutil.copy(trained / "checkpoints" / "last.ckpt", tmp_path / "last.ckpt")
    with pytest.raises(SystemExit):
        main([str(tmp_path / "last.ckpt")])
    assert "there is no run.json beside" in capsys.readouterr().err
