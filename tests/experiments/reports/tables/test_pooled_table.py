"""The same variants on several data sets: each by itself, and their mean where it is asked for."""

import json
import shutil
from pathlib import Path

import pytest
from handmade import write_experiment

from experiments.evidence.experiment import Experiment, load_experiment
from experiments.evidence.pooled import error_of, pool
from experiments.report import main
from experiments.reports.tables import make_summary


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same cells as if of four data sets; tests only read them."""
    outputs = tmp_path_factory.mktemp("outputs")
    write_experiment(outputs / "a")
    for name in "bcd":
        shutil.copytree(outputs / "a", outputs / name)
    for name in "abcd":
        path = outputs / name / "plan.json"
        plan = json.loads(path.read_text(encoding="utf-8")) | {"experiment": f"ablate_{name}", "data": f"set {name}"}
        path.write_text(json.dumps(plan), encoding="utf-8")
    return [outputs / name for name in "abcd"]


@pytest.fixture(scope="module")
def experiments(folders: list[Path]) -> list[Experiment]:
    return [load_experiment(folder) for folder in folders]


def test_nothing_is_pooled_unasked(experiments: list[Experiment]) -> None:
    table = make_summary(experiments)
    assert "Nothing is pooled over data sets" in table.notes[0] and not [c for c in table.columns if "mean over" in c]


def test_a_mean_stands_beside_each_difference(experiments: list[Experiment]) -> None:
    plain, table = make_summary(experiments), make_summary(experiments, pooled=True)
    assert [column for column in table.columns if column not in plain.columns] == table.columns[2:4]
    rows = {row[0]: row for row in table.rows}
    assert rows["transposed-3+concat"][2:4] == ["baseline", "-"]
    row = experiments[0].comparisons["nearest+concat"].times(100)
    wanted = pool([row.estimate] * 4, [error_of(row.own_low, row.own_high, row.df)] * 4)
    assert rows["nearest+concat"][2] == f"+{wanted.mean:.2f} [{wanted.low:.2f}, {wanted.high:.2f}]"
    assert rows["nearest+concat"][3] == "0.00, 0"  # they agree
    assert "DerSimonian" in table.notes[0] and "Nothing is pooled" not in table.notes[0]
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_it_is_asked_for_by_a_flag(folders: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "together"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["report", *map(str, folders[:3]), "--out", str(out), "--pool"])
        main()
    assert "mean over data sets [95 % interval]" in (out / "table.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ([0], "--pool takes the folders of several experiments"),
        ([0, 1], "--pool takes at least 3 experiments, each on a data set of its own, got set a, set b"),
    ],
)
def test_too_few_data_sets_are_refused(
    chosen: list[int], said: str, folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        some = [str(folders[k]) for k in chosen]
        patch.setattr("sys.argv", ["report", *some, "--out", str(tmp_path / "together"), "--pool"])
        with pytest.raises(SystemExit):
            main()
    assert said in capsys.readouterr().err


def test_other_variants_and_the_same_data_twice_are_refused(experiments: list[Experiment]) -> None:
    with pytest.raises(
        ValueError, match="at least 3 experiments, each on a data set of its own, got set a, set a, set b"
    ):
        make_summary([experiments[0], experiments[0], experiments[1]], pooled=True)
