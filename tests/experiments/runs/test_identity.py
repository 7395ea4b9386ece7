"""What decides a run's hash: settings and what files hold, not where they lie, nor an argument that came later."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from interrupt import BASE, QUIET
from PIL import Image

import datamodules.checks.pairs
from datamodules.camvid import CamVidDataModule
from datamodules.fingerprint import fingerprint, stored_record
from datamodules.layouts.source import Source
from experiments.evidence.experiment import load_experiment
from experiments.evidence.join import join
from experiments.grids.ablation import Ablation, variants
from experiments.grids.command import add_arguments, run_ablation
from experiments.reports.write import write_report
from experiments.runs.run import Run, changes, identified
from experiments.runs.training import train
from experiments.shell.files import read_json, write_json
from experiments.shell.flags import Parser
from lightning_modules.unet import UNetModule


@pytest.fixture
def camvid(tmp_path: Path, camvid_root: Path) -> Path:
    """CamVid's layout with pictures that differ, three for training."""
    draw = np.random.default_rng(0)
    for split, names in (("train", ("frame0", "a", "b")), ("val", ("frame1",)), ("test", ("frame2",))):
        (camvid_root / "splits" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            (camvid_root / "images" / f"{name}.jpg").unlink(missing_ok=True)
            Image.fromarray(draw.integers(0, 255, (36, 48, 3), np.uint8)).save(camvid_root / "images" / f"{name}.png")
            Image.fromarray(draw.integers(0, 11, (36, 48), np.uint8)).save(camvid_root / "masks" / f"{name}.png")
    return camvid_root


def run_on(root: Path) -> Run:
    return Run(
        module=UNetModule,
        datamodule=CamVidDataModule,
        hparams={"width": 2, "depth": 2},
        data={"root": str(root), "crop": 16, "batch_size": 2},
        trainer={"max_epochs": 1},
    )


def test_data_count_by_what_they_hold_wherever_they_lie(camvid: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(camvid, tmp_path / "elsewhere" / "deep"))
    (tmp_path / "link").symlink_to(moved)
    assert len({run_on(root).hash for root in (camvid, moved, tmp_path / "link")}) == 1
    assert run_on(camvid).identified().resolved().keys().isdisjoint({"data.root"})
    assert run_on(camvid).resolved()["data.fingerprint"] is None  # without reading anything


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "masks" / "a.png").write_bytes((root / "masks" / "b.png").read_bytes()),
        lambda root: (root / "images" / "a.png").write_bytes((root / "images" / "b.png").read_bytes()),
        lambda root: (root / "splits" / "train.txt").write_text("a\nframe0\nb\n"),  # another order of training
        lambda root: (root / "splits" / "train.txt").write_text("a\nframe0\n"),
        lambda root: (root / "classes.txt").write_text((root / "classes.txt").read_text().replace("sky", "heaven")),
    ],
)
def test_other_contents_are_another_run(change: Callable[[Path], object], camvid: Path) -> None:
    before = fingerprint(Source(camvid))
    change(camvid)
    assert fingerprint(Source(camvid)) != before


def test_what_no_split_names_changes_no_run(camvid: Path) -> None:
    before = fingerprint(Source(camvid))
    for folder in ("images", "masks"):
        shutil.copy(camvid / folder / "a.png", camvid / folder / "unused.png")
    assert fingerprint(Source(camvid)) == before


@pytest.mark.usefixtures("one_figure", "in_process")
def test_moved_data_are_not_trained_again_and_a_report_needs_none(
    camvid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run_ablation(grid(camvid), arguments("--out", str(out), "--seeds", "0")) == 0
    stamp = (out / "nearest" / "seed0" / "result.json").stat().st_mtime_ns
    moved = camvid.rename(tmp_path / "moved")
    assert run_ablation(grid(moved), arguments("--out", str(out), "--seeds", "0")) == 0
    assert (out / "nearest" / "seed0" / "result.json").stat().st_mtime_ns == stamp
    assert read_json(out / "nearest" / "seed0" / "run.json")["fingerprint"] == fingerprint(Source(moved))

    # A second machine with the same data elsewhere adds a seed.
    other = Path(shutil.copytree(moved, tmp_path / "there"))
    assert run_ablation(grid(other), arguments("--out", str(tmp_path / "out2"), "--seeds", "1")) == 0
    for folder in (moved, other):
        shutil.rmtree(folder)
    (whole,) = join([load_experiment(out), load_experiment(tmp_path / "out2")])
    assert whole.plan["seeds"] == [0, 1]
    write_report(out)

    # A dry run without data shows the plan that is stored, or says what it cannot know.
    capsys.readouterr()
    assert run_ablation(grid(moved), arguments("--out", str(out), "--seeds", "0", "--dry-run")) == 0
    printed = capsys.readouterr().out
    assert "This is the plan stored in" in printed
    assert "GMAC" in printed
    assert run_ablation(grid(moved), arguments("--out", str(tmp_path / "new"), "--dry-run")) == 0
    printed = capsys.readouterr().out
    assert "Not known without the data: steps" in printed
    assert "bilinear" in printed
    assert run_ablation(grid(moved), arguments("--out", str(out), "--seeds", "0")) == 2
    assert "does not exist" in capsys.readouterr().err


def grid(root: Path) -> Ablation:
    runs = variants(run_on(root), {"nearest": {"upsample": "nearest"}, "bilinear": {"upsample": "bilinear"}})
    return Ablation(
        name="moved", question="?", runs=runs, factors={"upsample": ("nearest", "bilinear")}, baseline="nearest"
    )


def arguments(*flags: str) -> Any:
    parser = Parser(description=None)
    add_arguments(parser)
    return parser.parse_args(["--jobs", "2", *flags])


def test_data_that_changed_since_the_plan_are_refused(camvid: Path, tmp_path: Path) -> None:
    planned = run_on(camvid).identified()
    (camvid / "splits" / "train.txt").write_text("a\nframe0\n")
    with pytest.raises(ValueError, match=r"the data in .*camvid are not those that this run was planned for"):
        train(planned, tmp_path / "run", **QUIET)


def test_a_folder_is_read_once_until_a_file_changes(
    camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datamodules.fingerprint.FRESH", 0)
    read: list[Path] = []
    for module in (datamodules.checks.pairs, datamodules.fingerprint):
        monkeypatch.setattr(module, "read_bytes", lambda path: (read.append(path), path.read_bytes())[1])
    module = CamVidDataModule(str(camvid))
    module.verify()
    assert len(read) == 10
    before = fingerprint(Source(camvid))
    module.verify()
    assert len(read) == 10
    (camvid / "masks" / "a.png").write_bytes((camvid / "masks" / "b.png").read_bytes())
    assert stored_record(Source(camvid)) is None
    assert fingerprint(Source(camvid)) != before
    read.clear()
    module.verify()
    assert len(read) == 10


def test_a_folder_that_has_just_changed_is_not_remembered(
    camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a clock tick a file may change again without another time."""
    monkeypatch.setenv("SEGLAB_CACHE", str(tmp_path / "cache"))
    CamVidDataModule(str(camvid)).verify()
    assert stored_record(Source(camvid)) is None


@pytest.mark.parametrize("content", ["", "[]", '{"files": 3}', '{"version": 1, "files": {}, "evil": 1}'])
def test_a_damaged_record_is_no_record(
    content: str, camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datamodules.fingerprint.FRESH", 0)
    CamVidDataModule(str(camvid)).verify()
    (record,) = (tmp_path / "cache" / "data").iterdir()
    record.write_text(content)
    assert stored_record(Source(camvid)) is None
    CamVidDataModule(str(camvid)).verify()
    assert stored_record(Source(camvid)) is not None


def test_warnings_are_given_each_time(camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datamodules.fingerprint.FRESH", 0)
    for folder in ("images", "masks"):
        shutil.copy(camvid / folder / "a.png", camvid / folder / "unused.png")
    Image.effect_noise((48, 36), 50).convert("RGB").save(camvid / "images" / "unused.png")
    for _ in range(2):
        with pytest.warns(UserWarning, match="in no split, which stay unused: unused"):
            CamVidDataModule(str(camvid)).verify()
    assert stored_record(Source(camvid)) is not None


def test_a_cell_of_a_version_that_named_data_by_their_folder_is_done(camvid: Path) -> None:
    run = run_on(camvid)
    older = run.resolved() | {"data.root": str(camvid.resolve())}
    del older["data.fingerprint"]
    before = hashlib.sha256(json.dumps(older, sort_keys=True).encode()).hexdigest()[:16]
    assert run.hashes == {run.hash, before}
    assert before not in run_on(Path(shutil.copytree(camvid, camvid.with_name("copy")))).hashes


def test_weights_and_parents_count_by_what_they_hold(tmp_path: Path) -> None:
    paths = [tmp_path / "a.pt", tmp_path / "b.pt", tmp_path / "c.pt"]
    for path, value in zip(paths, (1.0, 1.0, 2.0), strict=True):
        torch.save({"w": torch.tensor(value)}, path)
    shutil.copy(paths[0], paths[1])
    hashes = [BASE.but(weights=str(path)).hash for path in paths]
    assert hashes[0] == hashes[1] != hashes[2]
    assert BASE.but(weights="imagenet").resolved()["hparams.weights"] == "imagenet"
    nested = [BASE.but(network_options={"weights": str(path)}).hash for path in paths]
    assert nested[0] == nested[1] != nested[2]

    # Of a checkpoint its run counts: trained again elsewhere, it has other bytes, such as the seconds in it.
    run = BASE.but(trainer={"max_epochs": 1})
    for name in ("one", "two"):
        train(run, tmp_path / name, **QUIET)
    parents = [BASE.but(init_from=str(tmp_path / name / "checkpoints" / "last.ckpt")) for name in ("one", "two")]
    assert parents[0].hash == parents[1].hash
    assert parents[0].resolved()["hparams.init_from"] == f"run:{run.hash}@3"
    longer = BASE.but(trainer={"max_epochs": 2})
    train(longer, tmp_path / "longer", **QUIET)
    halves = [str(tmp_path / "longer" / "checkpoints" / name) for name in ("last.ckpt", "previous.ckpt")]
    assert len({BASE.but(init_from=path).hash for path in halves}) == 2  # of one run, but not of one step


class Later(UNetModule):
    """U-Net of a version that has learnt to average, and that has corrected how it does without norm."""

    __module__ = "lightning_modules.later"

    def __init__(
        self, num_classes: int, ignore_index: int, *, average: Annotated[str, ("neutral", "none")] = "ema", **rest: Any
    ) -> None:
        super().__init__(num_classes, ignore_index, **rest)

    @classmethod
    def corrections(cls, hparams: Mapping[str, Any]) -> dict[str, str]:
        return {"late": "without norm the bias was forgotten"} if hparams["norm"] == "none" else {}


def test_an_argument_that_came_later_changes_no_run_while_it_is_neutral() -> None:
    before = UNetModule
    hparams = {"width": 2, "norm": "batch"}

    def settings(module: Any, **more: Any) -> dict[str, Any]:
        run = Run(module=module, datamodule=BASE.datamodule, hparams=hparams | more, trainer={"max_epochs": 1})
        return run.resolved() | {"module": "the same"}

    assert settings(Later, average="none") == settings(before)
    assert settings(before, channels_last=False) == settings(before) != settings(before, channels_last=True)
    assert settings(Later) == settings(before) | {"hparams.average": "ema"}  # its default is not neutral


def test_a_corrected_recipe_is_another_run_and_says_why() -> None:
    run = Run(module=Later, datamodule=BASE.datamodule, hparams={"norm": "none"}, trainer={"max_epochs": 1})
    kept = run.but(norm="batch")
    assert "corrections" not in kept.resolved()
    stored = json.loads(json.dumps(run.record()))
    assert changes(stored, run) == []
    del stored["settings"]["corrections"]
    assert changes(stored, run) == ["corrected since: without norm the bias was forgotten"]


def test_a_changed_default_is_seen_in_what_was_stored(tmp_path: Path) -> None:
    """run.json holds the defaults of its day: a finished run whose default has changed is not taken for the same."""
    run = BASE.but(trainer={"max_epochs": 1})
    train(run, tmp_path / "run", **QUIET)
    stored = read_json(tmp_path / "run" / "run.json")
    assert stored["settings"] == json.loads(json.dumps(run.resolved()))
    stored["settings"]["hparams.momentum"] = 0.5
    write_json(tmp_path / "run" / "run.json", stored)
    with pytest.raises(ValueError, match=r"holds another run \(hparams.momentum: 0.5 -> 0.99\)"):
        train(run, tmp_path / "run", resume=True, **QUIET)
    # Of an earlier version, without them, the hash of the result tells.
    del stored["settings"]
    write_json(tmp_path / "run" / "run.json", stored)
    result = read_json(tmp_path / "run" / "result.json")
    assert train(run, tmp_path / "run", resume=True, **QUIET) == result
    write_json(tmp_path / "run" / "result.json", result | {"hash": "0" * 16})
    with pytest.raises(ValueError, match=r"result.json is the result of another run"):
        train(run, tmp_path / "run", resume=True, **QUIET)


def test_many_runs_on_one_folder_read_it_once(camvid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    original = CamVidDataModule.identify
    monkeypatch.setattr(CamVidDataModule, "identify", lambda data: (asked.append(data), original(data))[1])
    runs = identified({str(seed): run_on(camvid).but(seed=seed) for seed in range(5)})
    assert len({run.fingerprint for run in runs.values()}) == len(asked) == 1
    assert run_on(camvid).identified().but(data={"root": "other"}).fingerprint is None
