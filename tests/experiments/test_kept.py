"""What earlier versions wrote stays loadable, resumable and reportable: tests/data/kept/make.py made it, a set a
version."""

import argparse
import io
import json
import re
import shlex
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.grids.ablation import Ablation
from experiments.grids.command import add_arguments
from experiments.grids.command import run_ablation as run_grid
from experiments.runs.run import Run
from experiments.runs.training import build
from experiments.shell.catalogue import load
from experiments.shell.files import PREDICTION
from experiments.train import main, parse_run

ROOT = Path(__file__).parents[2]
SETS = sorted(path for path in (ROOT / "tests" / "data" / "kept").iterdir() if (path / "checkpoints").is_dir())
FINISHED = [path.parent for one in SETS for path in sorted(one.rglob("result.json"))]
# Its hash of a run on a folder holds where that folder lies, which is another place in every checkout.
OF_A_PLACE = [path for path in FINISHED if path.relative_to(path.parents[1]).as_posix() == "67a3901/own"]


def name(path: Path) -> str:
    return path.relative_to(ROOT / "tests" / "data" / "kept").as_posix()


each_set = pytest.mark.parametrize("kept", SETS, ids=name)


def cells_of(grid: Path) -> list[str]:
    return sorted(path.parent.relative_to(grid).as_posix() for path in grid.glob("*/seed*/run.json"))


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # run.json names the folder of pictures from there


def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / folder.name))


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def typed(folder: Path, out: Path) -> list[str]:
    """The arguments that trained the run in `folder`, for `out` instead."""
    command = shlex.split(json.loads((folder / "environment.json").read_text())["command"])
    assert command[:3] == ["python", "-m", "experiments.train"] and command[-2] == "--out"
    return [*command[3:-1], str(out)]


def stored_run(folder: Path) -> Run:
    return Run.from_config(json.loads((folder / "run.json").read_text()))


def test_there_is_a_set_with_each_of_its_parts() -> None:
    assert SETS
    for kept in SETS:
        assert {path.name for path in kept.iterdir()} >= {"checkpoints", "grid", "finished", "half", "own", "pictures"}
        assert len([*(kept / "checkpoints").glob("*.ckpt")]) >= 15
        for cell in [path.parent for path in kept.rglob("result.json")]:
            written = {"run.json", "metrics.csv", "per_image.npz", "predictions.zip", "samples.npz", "environment.json"}
            assert {path.name for path in cell.iterdir()} >= written
            assert (cell / "checkpoints" / "last.ckpt").is_file()


JUDGED = ("## Test scores", "## Evidence", "## Effects", "## How many seeds", "## One factor at a time")


@each_set
def test_a_set_names_no_place_of_a_machine(kept: Path) -> None:
    for path in [path for path in kept.rglob("*") if path.is_file()]:
        contents = [path.read_bytes()]
        if zipfile.is_zipfile(path):  # npz, checkpoints and predictions.zip
            with zipfile.ZipFile(path) as archive:
                contents += [archive.read(name) for name in archive.namelist()]
        for content in contents:
            assert not re.search(rb"/(home|root|tmp|work|usr|opt|mnt|Users)/", content), path


@pytest.mark.parametrize(
    "checkpoint", [path for one in SETS for path in sorted((one / "checkpoints").glob("*.ckpt"))], ids=name
)
def test_a_checkpoint_predicts_what_it_did(checkpoint: Path) -> None:
    module = load(checkpoint)
    with np.load(checkpoint.with_suffix(".npz")) as stored:
        image = torch.from_numpy(stored["image"]).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            logits = module(image)[0]
        torch.testing.assert_close(logits, torch.from_numpy(stored["logits"]), atol=1e-5, rtol=1e-5)
        counted = stored.get("class_weights")
    assert (counted is not None) == (module.hparams["class_weights"] == "median-frequency")
    if counted is not None:
        assert module.class_weights is not None
        assert module.class_weights.tolist() == counted.tolist()
    assert module.class_names == ["background", "disc", "square"]


@pytest.mark.parametrize("folder", FINISHED, ids=name)
def test_the_data_and_the_weights_give_the_stored_predictions(folder: Path) -> None:
    module, (_, data) = load(folder / "checkpoints" / "last.ckpt"), build(stored_run(folder))
    dataset = data.dataset("test")
    with zipfile.ZipFile(folder / "predictions.zip") as archive, torch.no_grad():
        assert len(archive.namelist()) == len(dataset)
        for index in range(len(dataset)):
            with Image.open(io.BytesIO(archive.read(PREDICTION.format(index)))) as picture:
                stored = np.asarray(picture)
            found = module(dataset[index][0][None])[0].argmax(0).numpy()
            assert (found != stored).mean() < 0.002  # logits that are equal but for their last bits


@pytest.mark.parametrize("folder", [path for path in FINISHED if path not in OF_A_PLACE], ids=name)
def test_a_stored_run_keeps_its_hash(folder: Path) -> None:
    assert stored_run(folder).hash == json.loads((folder / "result.json").read_text())["hash"]


@pytest.mark.parametrize("folder", OF_A_PLACE, ids=name)
def test_a_result_whose_run_cannot_be_known_is_refused_and_stays(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its hash is of a place that is not there; that nothing else has changed since cannot be told."""
    out = copy(folder, tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main([*typed(folder, out), "--resume"])
    assert "is the result of another run" in capsys.readouterr().err
    assert contents(out) == contents(folder)


@pytest.mark.parametrize(
    "folder",
    [path for one in SETS for path in (one / "finished", one / "own") if path not in OF_A_PLACE],
    ids=name,
)
def test_a_finished_run_with_resume_returns_its_result(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copy(folder, tmp_path)
    main([*typed(folder, out), "--resume"])
    result = json.loads((folder / "result.json").read_text())
    assert f"test/miou {result['test']['miou']:.4f}" in capsys.readouterr().out
    assert contents(out) == contents(folder)


@each_set
def test_a_half_finished_run_ends_as_the_one_that_was_not_stopped(kept: Path, tmp_path: Path) -> None:
    half, whole = kept / "half", kept / "finished"
    assert not (half / "result.json").exists()
    assert parse_run(typed(half, half))[0].hash == stored_run(half).hash == stored_run(whole).hash
    out = copy(half, tmp_path)
    main([*typed(half, out), "--resume"])
    found, expected = (json.loads((folder / "result.json").read_text()) for folder in (out, whole))
    for key in ("hash", "epochs", "steps", "params"):
        assert found[key] == expected[key]
    first, second, third = (out / "metrics.csv").read_text().splitlines()
    assert (half / "metrics.csv").read_text().splitlines() == [first, second] and third
    weights, others = (load(folder / "checkpoints" / "last.ckpt").state_dict() for folder in (out, whole))
    assert weights.keys() == others.keys()
    for key, weight in weights.items():
        torch.testing.assert_close(weight, others[key], atol=1e-4, rtol=1e-4, msg=key)


@each_set
def test_a_grid_that_is_started_again_trains_nothing_and_reports_every_table(
    kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copy(kept / "grid", tmp_path)
    before, tables = {folder: contents(out / folder) for folder in cells_of(out)}, (out / "table.md").read_text()
    (out / "table.md").unlink()
    plan = json.loads((out / "plan.json").read_text())
    runs = {variant: stored_run(out / variant / f"seed{plan['seeds'][0]}") for variant in plan["variants"]}
    grid = Ablation(
        name=plan["experiment"],
        runs={variant: run.but(seed=0) for variant, run in runs.items()},
        **{key: plan[key] for key in ("question", "baseline", "factors", "data", "data_note", "scale_note")},
    )
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert run_grid(grid, parser.parse_args(["--seeds", *map(str, plan["seeds"]), "--out", str(out)])) == 0
    count = len(plan["variants"]) * len(plan["seeds"])
    assert len(before) == count and f"{count} cells, {count} already done" in capsys.readouterr().out
    assert {folder: contents(out / folder) for folder in cells_of(out)} == before

    now = (out / "table.md").read_text()
    titles, scores = re.findall(r"^#+ .*$", tables, re.MULTILINE), re.findall(r"\d+\.\d+ ± \d+\.\d+", tables)
    # Scores, differences and their intervals stand in other tables since stars are judged as one family.
    kept_tables = [title for title in titles if not title.startswith(JUDGED)]
    assert len(kept_tables) > 6 and len(scores) >= 8
    assert [text for text in (*kept_tables, *scores) if text not in now] == []
    assert "needs 3 seeds, got 2" in now and "2 seeds cannot tell what other seeds would give" in now
    assert (out / "report.html").stat().st_size > 10_000 and [*(out / "figures" / "print").glob("*.pdf")]
