"""What files, lines and reports say of data without a test split, and of a network that predicts one class."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import save_npz, section, write_experiment
from studied import TINY, asked
from studied import run as run_study
from test_train import QUIET
from test_train import TINY as RUN
from torch import Tensor

from datamodules.shapes import ShapesDataModule
from experiments.ablate_crf import STUDY as CRFS
from experiments.evidence.experiment import load_experiment
from experiments.evidence.scored import FLATTERS, WARNING, as_scored
from experiments.grids import tuning
from experiments.reports.figures.captions import CAPTIONS, caption
from experiments.reports.figures.forms import COLUMN
from experiments.reports.formats import to_csv, to_latex, to_markdown
from experiments.reports.methods import methods
from experiments.reports.page import render
from experiments.reports.record import write_record
from experiments.reports.tables import make_summary
from experiments.reports.write import warnings
from experiments.runs.run import Run
from experiments.runs.scored import told, what_was_scored
from experiments.runs.scoring import carry_out
from experiments.runs.step import Step
from experiments.runs.training import Tracking, train
from experiments.search_crf import main as search_crf
from experiments.train import main
from lightning_modules.unet import UNetModule

WEIGHTED = "--model.class_weights median-frequency"
FLAGS = "--model.width 2 --model.depth 1 --data shapes --data.size 24 --data.length 4 --trainer.max_epochs 1"


@pytest.fixture
def on_val(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes without a test split."""
    monkeypatch.setattr(ShapesDataModule, "scored", "val")


def stored(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "result.json").read_text()))


@pytest.mark.usefixtures("on_val")
def test_a_run_is_scored_on_val_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*FLAGS.split(), "--out", str(tmp_path)])
    last = capsys.readouterr().out.splitlines()[-1]
    result = stored(tmp_path)
    assert result["scored"] == "val"
    assert last.startswith(f"{tmp_path}: val/miou {result['test']['miou']:.4f}, ")
    assert "; scored on val: no test split" in last
    assert result["test"]["miou"] == pytest.approx(result["val"]["miou"])  # of the same images
    with np.load(tmp_path / "per_image.npz") as arrays:
        assert [*arrays["names"]] == [f"val{index:04}" for index in range(4)]


def test_data_with_a_test_split_have_no_such_entry(tmp_path: Path) -> None:
    result = train(RUN, tmp_path, **QUIET)
    assert "scored" not in result and "scored" not in stored(tmp_path)
    assert told(result).startswith("test/miou ") and "scored on" not in told(result)


@pytest.mark.usefixtures("on_val")
def test_a_tracker_is_told_while_metrics_keep_their_names(tmp_path: Path) -> None:
    class Noting(Tracking):
        def start(self, config: Any) -> None:
            noted.update(config)

    noted: dict[str, Any] = {}
    result = train(RUN, tmp_path, tracker=lambda settings, out: Noting(), **QUIET)
    assert noted["scored"] == "val" and {"commit", "device"} <= noted.keys()
    assert "miou" in result["test"]


@pytest.mark.usefixtures("on_val", "in_process")
def test_a_plan_names_the_split_and_says_what_it_flatters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_study(tmp_path / "grid")["scored"] == "val"
    printed = " ".join(capsys.readouterr().out.split())
    assert WARNING in printed
    assert "GMAC of a validation image" in printed and "test image" not in printed


@pytest.mark.usefixtures("in_process")
def test_a_plan_of_data_with_a_test_split_is_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "scored" not in run_study(tmp_path / "grid")
    assert "Scored on val" not in capsys.readouterr().out


@pytest.mark.usefixtures("on_val", "in_process")
def test_trials_do_not_choose_on_the_images_that_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(AssertionError):
        run_study(tmp_path / "grid", "--tune", "lr", "1e-3", "1e-2")
    said = capsys.readouterr().err
    assert "--tune chooses settings by validation images" in said and "no test split" in said
    assert "Leave --tune out, or make a test split with experiments.split" in said
    assert not (tmp_path / "grid" / "tuning").exists()


@pytest.mark.usefixtures("on_val")
def test_a_step_that_searches_on_validation_images_is_refused() -> None:
    grid = asked("--data", "shapes", study=CRFS)
    with pytest.raises(ValueError, match=r"the step crf of dense chooses .* no test split, .* Make a test split"):
        tuning.check_scored(grid)
    tuning.check_scored(asked(*TINY))


@pytest.mark.usefixtures("on_val")
def test_a_search_has_no_images_to_test_its_choice_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(RUN, tmp_path, **QUIET)
    with pytest.raises(SystemExit) as stop:
        search_crf([str(tmp_path / "checkpoints" / "last.ckpt"), "--test", "--out", str(tmp_path / "found")])
    assert stop.value.code == 2
    assert "--test scores the choice on images that chose nothing, and these data have no test split" in (
        capsys.readouterr().err
    )


@pytest.fixture
def on_val_by_hand(tmp_path: Path) -> Path:
    write_experiment(tmp_path / "made")
    plan = json.loads((tmp_path / "made/plan.json").read_text())
    (tmp_path / "made/plan.json").write_text(json.dumps(plan | {"scored": "val"}))
    return tmp_path / "made"


def test_methods_and_captions_of_a_paper_name_no_test_images(on_val_by_hand: Path) -> None:
    experiment = load_experiment(on_val_by_hand)
    texts = [text for _, text in methods(experiment)]
    texts += [caption(name, experiment, COLUMN) for name in CAPTIONS]
    assert any("on these validation images" in text for text in texts)
    assert any("of the validation pixels" in text for text in texts)
    assert not [text for text in texts if re.search(r"(?i)\btest (?!split)", text)]


def test_every_form_of_a_report_says_it(on_val_by_hand: Path, tmp_path: Path) -> None:
    one = section(on_val_by_hand, {})
    one = replace(one, warnings=warnings(one.experiment))
    forms = {
        "table.md": to_markdown([one]),
        "table.tex": to_latex([one]),
        "report.html": render([one]).split("<script>")[0],
        "record": write_record([one], None, tmp_path / "record").read_text(encoding="utf-8"),
    }
    for name, text in forms.items():
        words = " ".join(text.split())
        assert WARNING in words, name
        assert "val split of shapes" in words, name
        assert words.count("test split") == words.count("no test split"), name
        assert "test image" not in words and "test scores" not in words, name
    head, first, *_ = to_csv([one]).splitlines()
    assert head.split(",")[2] == "scored" and first.split(",")[2] == "val"
    assert any(f"images of the val split of shapes (as {FLATTERS})" in note for note in one.notes)
    assert any(WARNING in note for note in make_summary([one.experiment]).notes)


def test_a_plan_with_another_split_is_damaged(on_val_by_hand: Path) -> None:
    plan = json.loads((on_val_by_hand / "plan.json").read_text())
    (on_val_by_hand / "plan.json").write_text(json.dumps(plan | {"scored": "<script>"}))
    with pytest.raises(ValueError, match="scored"):
        load_experiment(on_val_by_hand)


def test_sentences_are_in_the_words_of_the_split() -> None:
    said = "Test images: mIoU of a test image of the test split; these have no test split; In no test image."
    assert as_scored(said, {}) == said
    assert as_scored(said, {"scored": "val"}) == (
        "Validation images: mIoU of a validation image of the val split; these have no test split; In no validation "
        "image."
    )


@pytest.fixture
def only_discs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that predict the class 1 at every pixel, whatever they are trained to."""
    predict = UNetModule.predict

    def constant(self: UNetModule, images: Tensor) -> Tensor:
        logits = predict(self, images)
        if not self.training:
            logits = logits.clone()
            logits[:, 1] = logits.amax() + 1
        return logits

    monkeypatch.setattr(UNetModule, "predict", constant)


@pytest.mark.usefixtures("only_discs")
@pytest.mark.parametrize(
    ("weights", "way_out"),
    [
        (
            [],
            f"train longer (--trainer.max_epochs), raise --model.lr, or weight the classes ({WEIGHTED})",
        ),
        (["--model.class_weights", "[1,2,2]"], "train longer (--trainer.max_epochs), or raise --model.lr"),
    ],
)
def test_one_class_everywhere_is_said_in_the_last_line(
    weights: list[str], way_out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*FLAGS.split(), *weights, "--out", str(tmp_path)])
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"; it predicts disc everywhere: {way_out}")
    assert stored(tmp_path)["constant"] == "disc"


def test_a_result_of_anybody_steers_no_terminal() -> None:
    result = {"test": {"miou": 0.5}, "seconds": 1.0, "scored": "\x1b[31m", "constant": "\x1b[31mred"}
    assert told(result).startswith("test/miou 0.5000, 1 s; it predicts ") and "\x1b" not in told(result)


@pytest.mark.usefixtures("only_discs")
def test_a_step_says_it_too(tmp_path: Path) -> None:
    run = Run(
        module=UNetModule,
        datamodule=ShapesDataModule,
        hparams={"width": 2, "depth": 1, "average": "ema"},
        data={"size": 24, "length": 4, "batch_size": 2},
        trainer={"max_epochs": 1},
    )
    result = train(run, tmp_path / "trained", **QUIET)
    checkpoint = str(tmp_path / "trained/checkpoints/last.ckpt")
    step = run.but(step=Step("average", {"average": "none"})).after(
        {checkpoint: f"run:{result['hash']}@{result['steps']}"}
    )
    assert carry_out(step, tmp_path / "step")["constant"] == "disc"


def test_a_result_no_better_than_chance_is_said_in_the_last_line() -> None:
    data, guessed = ShapesDataModule(), np.full((3, 3), 100)
    assert what_was_scored(data, np.eye(3, dtype=int)) == {}
    entries = what_was_scored(data, guessed)
    assert entries == {"chance": pytest.approx(1 / 3)}
    line = told({"test": {"miou": 0.2}, "seconds": 1.0, **entries}, [1, 2, 2])
    ways = "train longer (--trainer.max_epochs), or raise --model.lr"
    assert line.endswith(f"; its class accuracy, 33.3 %, is no better than chance: {ways}")
    assert "\x1b" not in told({"test": {"miou": 0.2}, "seconds": 1.0, "chance": "\x1b[31m"})


def test_images_of_one_class_alone_are_rightly_predicted_so(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    change(tmp_path / "nearest+none/seed0", lambda confusion: np.diag([5, 0, 0]) * np.ones((2, 1, 1), dtype=np.int64))
    assert load_experiment(tmp_path).cells["nearest+none"][0].constant == ""


def put(true: np.ndarray) -> np.ndarray:
    """The matrices (n, C, C) of networks that predict the class 0 at all these true pixels (n, C)."""
    confusion = np.zeros((*true.shape, true.shape[-1]), dtype=np.int64)
    confusion[..., 0] = true
    return confusion


def change(cell: Path, to: Callable[[np.ndarray], np.ndarray]) -> None:
    with np.load(cell / "per_image.npz") as stored_arrays:
        arrays = dict(stored_arrays)
    save_npz(cell / "per_image.npz", **{**arrays, "confusion": to(arrays["confusion"])})
