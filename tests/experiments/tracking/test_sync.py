"""Fragments of W&B are made by hand, record by record, and once by a training that is killed and continued."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from wandb_server import WandbServer

from datamodules.shapes import ShapesDataModule
from experiments.runs.run import Run
from experiments.runs.training import train
from experiments.sync import main
from experiments.tracking.attempts import Fragment, LoggedRun, find_runs
from experiments.tracking.logger import tracker
from experiments.tracking.merge import _point_to_staged, merge
from experiments.tracking.records import pb, read_records, values, write_records
from lightning_modules.unet import UNetModule

ROOT = Path(__file__).parents[3]


def write_fragment(
    cell: Path,
    steps: dict[int, float],
    *,
    start: int,
    run_id: str = "abcd1234",
    exit_code: int | None = None,
    online: bool = False,
) -> Path:
    """An attempt that logged these losses by step, and at each an image; returns its .wandb file."""
    folder = cell / "wandb" / f"{'' if online else 'offline-'}run-20260101_00000{start}-{run_id}"
    records = [pb.Record(header=pb.HeaderRecord())]
    records.append(pb.Record(run=pb.RunRecord(run_id=run_id, project="seglab", run_group="group", display_name="v-s0")))
    records[-1].run.start_time.seconds = start
    config = {"attempt": start, "lr": 0.1, "_wandb": {"mask/class_labels": {f"labels{start}": "x"}}}
    for name, value in config.items():
        records[-1].run.config.update.add(key=name, value_json=json.dumps(value))
    for row, (step, loss) in enumerate(steps.items()):
        image = f"media/images/{start}-{step}.png"
        (folder / "files" / image).parent.mkdir(parents=True, exist_ok=True)
        (folder / "files" / image).write_bytes(b"picture")
        records.append(pb.Record(files=pb.FilesRecord(files=[pb.FilesItem(path=image)])))
        records.append(pb.Record(history=pb.HistoryRecord()))
        own = {"_step": row, "_runtime": 10.0 + row, "trainer/global_step": step, "loss": loss}
        for name, value in own.items():
            records[-1].history.item.add(nested_key=[name], value_json=json.dumps(value))
        records[-1].history.item.add(nested_key=["image", "path"], value_json=json.dumps(image))
    if exit_code is not None:
        records.append(pb.Record(exit=pb.RunExitRecord(exit_code=exit_code)))
    path = folder / f"run-{run_id}.wandb"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_records(path, records)
    return path


def rows(folder: Path) -> list[dict[str, Any]]:
    (file,) = folder.glob("*.wandb")
    return [values(record.history.item) for record in read_records(file) if record.HasField("history")]


def the(kind: str, folder: Path) -> Any:
    """The only record of its kind."""
    (file,) = folder.glob("*.wandb")
    (found,) = Fragment(file, list(read_records(file))).of(kind)
    return found


def test_records_of_every_length_survive_the_blocks(tmp_path: Path) -> None:
    path = tmp_path / "run-x.wandb"
    # Up to two blocks long, and at every distance from the end of a block, where a chunk's header has no room.
    lengths = [1, 40_000, 70_000, *range(32_600, 32_760, 3), *([20] * 50)]
    write_records(path, [pb.Record(uuid="a" * length) for length in lengths])
    found = list(read_records(path))
    assert [len(record.uuid) for record in found] == lengths
    assert [record.num for record in found] == list(range(1, len(lengths) + 1))
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])  # torn by a kill
    assert len(list(read_records(path))) == len(lengths) - 1
    path.write_bytes(whole[:100_000] + b"?" + whole[100_001:])
    with pytest.raises(ValueError, match=r"run-x\.wandb is damaged at byte \d+"):
        list(read_records(path))
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="is no W&B record"):
        list(read_records(path))
    path.write_bytes(b"")
    assert list(read_records(path)) == []


def test_of_a_step_done_again_the_last_version_stays(tmp_path: Path) -> None:
    cell = tmp_path / "v" / "seed0"
    write_fragment(cell, {0: 9.0, 1: 8.0, 2: 7.0, 3: 6.0}, start=1)
    write_fragment(cell, {2: 7.2, 3: 6.2, 4: 5.2}, start=2)  # from a checkpoint after two steps
    write_fragment(cell, {4: 5.3, 5: 4.3}, start=3, exit_code=0)
    empty = cell / "wandb" / "offline-run-20260101_000004-abcd1234"
    empty.mkdir()
    (empty / "run-abcd1234.wandb").write_bytes(b":W&B\xe1\xbe\x00")
    before = {path: path.read_bytes() for path in cell.rglob("*") if path.is_file()}

    (found,) = find_runs(tmp_path)
    assert (len(found.fragments), found.empty, found.finished, found.run_id) == (3, 1, True, "abcd1234")
    merged = merge(found, tmp_path / "merged")

    history = rows(merged)
    assert [row["trainer/global_step"] for row in history] == [0, 1, 2, 3, 4, 5]
    assert [row["loss"] for row in history] == [9.0, 8.0, 7.2, 6.2, 5.3, 4.3]
    assert [row["_step"] for row in history] == [0, 1, 2, 3, 4, 5]
    assert [row["_runtime"] for row in history] == [10, 11, 21, 22, 32, 33]  # the clock of an attempt goes on
    summary = values(the("summary", merged).update)
    assert summary["loss"] == 4.3 and summary["trainer/global_step"] == 5 and summary["_wandb"] == {"runtime": 33}
    run = the("run", merged)
    config = values(run.config.update)
    assert (config["attempt"], config["lr"]) == (3, 0.1)
    assert set(config["_wandb"]["mask/class_labels"]) == {"labels1", "labels2", "labels3"}
    assert (run.run_id, run.display_name, run.start_time.seconds) == ("abcd1234", "v-s0", 1)
    assert the("exit", merged).exit_code == 0
    pictures = {path.name for path in merged.rglob("*.png")}
    assert pictures == {"1-0.png", "1-1.png", "2-2.png", "2-3.png", "3-4.png", "3-5.png"}
    assert {path: path.read_bytes() for path in cell.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("way", ["absolute", "above", "link"])
def test_no_file_from_elsewhere_is_uploaded(way: str, tmp_path: Path) -> None:
    """A record that somebody else has written may name any file of this machine."""
    secret = tmp_path / "secret.txt"
    secret.write_text("mine")
    folder = tmp_path / "v" / "seed0"
    write_fragment(folder, {0: 9.0}, start=1, exit_code=0)
    (file,) = folder.glob("wandb/*/*.wandb")
    inside = "link.txt"
    (file.parent / "files" / inside).symlink_to(secret)
    named = {"absolute": str(secret), "above": "../../../../../secret.txt", "link": inside}[way]
    hostile = pb.Record()
    hostile.files.files.add(path=named)
    write_records(file, [*read_records(file), hostile])
    (cell,) = find_runs(tmp_path)
    with pytest.raises(ValueError, match="names a file outside of it"):
        merge(cell, tmp_path / "merged")
    assert not list((tmp_path / "merged").rglob("secret.txt"))


def test_a_record_that_is_none_is_the_error_of_its_run_alone(tmp_path: Path) -> None:
    """A stranger's id becomes the name of a file, and its values may be of any kind."""
    write_fragment(tmp_path / "good" / "seed0", {0: 9.0}, start=1, exit_code=0)
    for name in ("id", "kind", "contents"):
        write_fragment(tmp_path / name / "seed0", {0: 9.0}, start=1, exit_code=0)
        (file,) = (tmp_path / name).glob("*/wandb/*/*.wandb")
        records = list(read_records(file))
        hostile = pb.Record()
        if name == "id":
            next(one for one in records if one.HasField("run")).run.run_id = "a/../../b"
        elif name == "kind":
            hostile.history.item.add(nested_key=["trainer/global_step"], value_json='"two"')
        else:
            hostile.artifact.manifest.manifest_file_path = "/etc/hostname"
        write_records(file, [*records, hostile] if name != "id" else records)
    cells = {cell.folder.parent.name: cell for cell in find_runs(tmp_path)}
    assert "no name of a run" in cells["id"].error and "record of W&B is none" in cells["kind"].error
    assert cells["good"].error == ""
    assert merge(cells["good"], tmp_path / "merged")


def test_a_file_with_the_contents_of_an_artifact_is_not_read(tmp_path: Path) -> None:
    artifact = pb.Record().artifact
    artifact.manifest.manifest_file_path = "/etc/hostname"
    with pytest.raises(ValueError, match="which is not read"):
        _point_to_staged(artifact, LoggedRun(tmp_path))


def test_what_is_uploaded_and_what_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_fragment(tmp_path / "a" / "seed0", {0: 1.0}, start=1, exit_code=0)
    write_fragment(tmp_path / "b" / "seed0", {0: 1.0}, start=1)
    write_fragment(tmp_path / "c" / "seed0", {0: 1.0}, start=1, exit_code=0, online=True)
    write_fragment(tmp_path / "d" / "seed0", {0: 1.0}, start=1, online=True)
    write_fragment(tmp_path / "d" / "seed0", {1: 0.5}, start=2, exit_code=0)
    write_fragment(tmp_path / "e" / "seed0.old1", {0: 1.0}, start=1, exit_code=0)
    write_fragment(tmp_path / "f" / "seed0", {0: 1.0}, start=1, exit_code=0).with_suffix(".wandb.synced").touch()
    damaged = write_fragment(tmp_path / "g" / "seed0", {0: 1.0}, start=1, exit_code=0)
    damaged.write_bytes(damaged.read_bytes().replace(b"seglab", b"selgab"))
    with pytest.raises(SystemExit, match="1"):
        call(tmp_path, "--dry-run")
    printed = capsys.readouterr().out
    for what in (
        "upload as abcd1234 ",
        "not finished",
        "abcd1234-2, a run of its own; delete abcd1234",
        "on the server",
        "damaged",
    ):
        assert what in " ".join(printed.split()), what
    assert "seed0.old1" not in printed and "c/seed0" not in printed
    with pytest.raises(SystemExit, match="2"):
        call(tmp_path / "e")
    assert "train with --logger wandb" in capsys.readouterr().err


def call(folder: Path, *flags: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["sync", str(folder), *flags])
        main()


@pytest.mark.usefixtures("nobody_logged_in")
def test_without_a_key_it_says_how_to_log_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_fragment(tmp_path / "a" / "seed0", {0: 1.0}, start=1, exit_code=0)
    with pytest.raises(SystemExit, match="2"):
        call(tmp_path)
    assert "wandb login" in capsys.readouterr().err


def test_every_run_is_uploaded_once_and_a_broken_one_does_not_stop_the_others(
    tmp_path: Path, wandb_server: WandbServer, capfd: pytest.CaptureFixture[str]
) -> None:
    good, broken = tmp_path / "good" / "seed0", tmp_path / "broken" / "seed0"
    write_fragment(good, {0: 9.0, 1: 8.0, 2: 7.0}, start=1)
    write_fragment(good, {2: 7.2, 3: 6.2}, start=2, exit_code=0)
    write_fragment(broken, {0: 1.0}, start=1, run_id="broken00", exit_code=0).write_bytes(b"not a record")
    with pytest.raises(SystemExit, match="1"):
        call(tmp_path)
    assert "1 uploaded, 1 failed" in capfd.readouterr().out
    assert set(wandb_server.streamed) == {"abcd1234"}
    assert [row["loss"] for row in wandb_server.rows("abcd1234")] == [9.0, 8.0, 7.2, 6.2]
    assert wandb_server.exit_code("abcd1234") == 0
    assert {Path(name).name for name in wandb_server.files} >= {"1-0.png", "1-1.png", "2-2.png", "2-3.png"}
    asked = len(wandb_server.queries)

    shutil.rmtree(broken)
    with pytest.raises(SystemExit, match="0"):
        call(tmp_path)
    assert "on the server" in capfd.readouterr().out
    assert len(wandb_server.queries) == asked

    # Continued after it was uploaded as it was: the whole goes to a run of its own.
    write_fragment(good, {4: 5.3}, start=3, exit_code=0)
    (again,) = find_runs(tmp_path)
    assert (again.run_id, again.known) == ("abcd1234-3", {"abcd1234"})


SLOWLY = """
import json, sys, time
from pathlib import Path
from lightning.pytorch import Callback
from experiments.runs.run import Run
from experiments.runs.training import train
from experiments.tracking.logger import tracker

class Slow(Callback):
    def on_train_start(self, trainer, *args, **kwargs):
        while not trainer.loggers[0].client.mode:  # what is logged does not wait for W&B: here it shall
            time.sleep(0.1)

    def on_train_batch_end(self, trainer, *args, **kwargs):
        time.sleep(0.1 if trainer.global_step < 7 else 30)  # in the second epoch, of which rows are to be on the disk

run = Run.from_config(json.loads(sys.argv[1]))
where = {"accelerator": "cpu", "enable_progress_bar": False}
train(run, Path(sys.argv[2]), callbacks=[Slow()], tracker=tracker("wandb"), **where)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> LoggedRun:
    """A training that was killed in the middle of an epoch, with rows after its checkpoint, and continued."""
    run = Run(
        module=UNetModule,
        datamodule=ShapesDataModule,
        hparams={"width": 2, "depth": 1},
        data={"size": 48, "length": 10, "batch_size": 2},
        trainer={"max_epochs": 3, "log_every_n_steps": 1},
    )
    out = tmp_path_factory.mktemp("outputs") / "ablate_something" / "nearest+none" / "seed0"
    environment = os.environ | {"WANDB_MODE": "offline", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {"TMPDIR": str(tmp_path_factory.mktemp("scratch"))}
    environment.pop("WANDB_SERVICE", None)  # that of other tests would outlive the kill
    command = [sys.executable, "-c", SLOWLY, json.dumps(run.config()), str(out)]
    with subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL) as process:
        while not _beyond_checkpoint(out):
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        train(run, out, resume=True, accelerator="cpu", enable_progress_bar=False, tracker=tracker("wandb"))
    (cell,) = find_runs(out)
    return cell


def _beyond_checkpoint(out: Path) -> bool:
    """Whether rows of the second epoch, of five steps, are on the disk, and the checkpoint of the first."""
    if not (out / "checkpoints" / "last.ckpt").exists():
        return False
    (file,) = out.glob("wandb/offline-run-*/*.wandb")
    return any(row.get("trainer/global_step", 0) >= 6 for row in rows(file.parent))


def test_a_killed_and_continued_training_leaves_one_history(killed: LoggedRun, tmp_path: Path) -> None:
    first, second = killed.fragments
    assert first.run.run_id == second.run.run_id and [one.exit_code for one in first.of("exit")] in ([], [1])
    again = [values(row.item) for row in second.of("history")]
    assert min(row["trainer/global_step"] for row in again) == 5
    merged = merge(killed, tmp_path)

    history = rows(merged)
    assert [row["_step"] for row in history] == list(range(len(history)))
    clock = [row["_runtime"] for row in history]
    assert clock == sorted(clock)
    assert [row["trainer/global_step"] for row in history if "train/loss" in row] == list(range(15))
    for name, steps in (("val/miou", [4, 9, 14]), ("val/samples", [4, 9, 14]), ("test/miou", [15])):
        assert [row["trainer/global_step"] for row in history if name in row] == steps, name
    result = json.loads((killed.folder / "result.json").read_text())
    summary = values(the("summary", merged).update)
    assert summary["test/miou"] == pytest.approx(result["test"]["miou"])
    assert summary["train/loss"] == [row["train/loss"] for row in history if "train/loss" in row][-1]
    config = values(the("run", merged).config.update)
    assert (config["attempt"], config["hparams.width"], config["variant"]) == (2, 2, "nearest+none")
    assert len(config["_wandb"]["mask/class_labels"]) == 4  # prediction and truth, of validation and test

    shown = [row["val/samples"] for row in history if "val/samples" in row]
    paths = [path for one in shown for path in one["filenames"]]
    paths += [mask["path"] for one in shown for masks in one["all_masks"] for mask in masks.values()]
    paths += [row["test/per_class"]["path"] for row in history if "test/per_class" in row]
    assert paths and all((merged / "files" / path).stat().st_size for path in paths)
    (file,) = merged.glob("*.wandb")
    tables = Fragment(file, list(read_records(file))).of("artifact")
    assert len(tables) == 8 and all(Path(one.manifest.contents[0].local_path).is_file() for one in tables)


def test_the_joined_run_is_one_that_wandb_reads(killed: LoggedRun, tmp_path: Path) -> None:
    (file,) = merge(killed, tmp_path).glob("*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    theirs = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert len(theirs) == len(list(read_records(file)))


def test_wandb_sync_takes_it(killed: LoggedRun, wandb_server: WandbServer) -> None:
    with pytest.raises(SystemExit, match="0"):
        call(killed.folder)
    run_id = killed.fragments[0].run.run_id
    history = wandb_server.rows(run_id)
    assert [row["trainer/global_step"] for row in history if "train/loss" in row] == list(range(15))
    assert wandb_server.exit_code(run_id) == 0
    (name,) = {variables["displayName"] for variables in wandb_server.variables("UpsertBucket")} - {None}
    assert name == "nearest+none-s0"
    assert len(wandb_server.variables("CreateArtifact")) == 8
