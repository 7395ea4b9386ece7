"""An offline W&B run is read back from its file, by the format's own reader: 32 KiB blocks of checksummed records."""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from wandb.proto import wandb_internal_pb2 as pb

from datamodules.shapes import ShapesDataModule
from experiments.run import Run, train
from experiments.tracking import mode, sync_line
from lightning_modules.unet import UNetModule

RUN = Run(
    module=UNetModule,
    datamodule=ShapesDataModule,
    hparams={"width": 2, "depth": 1},
    data={"size": 48, "length": 4, "batch_size": 2},
    trainer={"max_epochs": 2, "log_every_n_steps": 1},
)


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: after a header of 7 bytes, chunks of [crc32, length, kind, data] in 32 KiB blocks."""
    data = path.read_bytes()
    assert struct.unpack("<4sHB", data[:7]) == (b":W&B", 0xBEE1, 0)
    position, parts = 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:  # the rest of a block that holds no header is padding
            position += 32768 - position % 32768
            continue
        checksum, length, kind = struct.unpack("<IHB", data[position : position + 7])
        chunk = data[position + 7 : position + 7 + length]
        assert zlib.crc32(chunk, zlib.crc32(bytes([kind]))) == checksum
        position, parts = position + 7 + length, parts + chunk
        if kind in (1, 4):  # a whole record, or the last part of one
            record = pb.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def items(entries: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for entry in entries:
        name, *inner = entry.nested_key or [entry.key]
        if inner:
            found.setdefault(name, {})[inner[0]] = json.loads(entry.value_json)
        else:
            found[name] = json.loads(entry.value_json)
    return found


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("outputs") / "ablate_something" / "nearest+none" / "seed3"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        run = RUN.but(seed=3)
        train(run, out, accelerator="cpu", enable_progress_bar=False, wandb=True)
    return out


def test_an_offline_run_holds_curves_masks_table_and_confusion_matrix(logged: Path) -> None:
    (folder,) = logged.glob("wandb/offline-run-*")
    (file,) = folder.glob("*.wandb")
    found: dict[str, list[Any]] = {}
    for record in records(file):
        kind = record.WhichOneof("record_type")
        found.setdefault(kind, []).append(getattr(record, kind))
    (run,) = found["run"][:1]
    assert (run.project, run.run_group, run.job_type, run.display_name) == (
        "seglab",
        "ablate_something",
        "train",
        "nearest+none-s3",
    )
    assert set(run.tags) == {"UNetModule", "ShapesDataModule", "nearest+none"}
    assert found["exit"][0].exit_code == 0

    config: dict[str, Any] = {}
    for update in (run.config, *found.get("config", [])):
        config |= items(update.update)
    assert config["hparams.width"] == 2
    assert config["hash"] == RUN.but(seed=3).hash
    assert str(logged) not in json.dumps(config)  # no path of this machine

    rows = [items(history.item) for history in found["history"]]
    steps = [row["train/loss"] for row in rows if "train/loss" in row]
    assert len(steps) == 4  # 2 epochs of 2 steps
    assert {"train/lr", "val/miou", "val/iou/disc", "test/boundary_f1"} <= {key for row in rows for key in row}

    media = {name: row[name] for row in rows for name in row if name.split("/")[-1] in ("samples", "per_class")}
    images = media["val/samples"]
    assert images["count"] == 4
    truth = folder / "files" / images["all_masks"][0]["ground_truth"]["path"]
    mask = np.array(Image.open(truth))
    expected = ShapesDataModule(**RUN.data).dataset("val")[0][1].numpy()
    assert np.array_equal(mask, expected)
    assert set(images["all_masks"][0]) == {"ground_truth", "prediction"}
    labels = next(v for k, v in config["_wandb"]["mask/class_labels"].items() if "ground_truth" in k)["value"]
    assert labels == {"0": "background", "1": "disc", "2": "square", "255": "ignored"}

    table = json.loads((folder / "files" / media["test/per_class"]["path"]).read_text())
    assert table["columns"] == ["class", "iou", "acc", "dice", "pixels"]
    assert [row[0] for row in table["data"]] == ["background", "disc", "square"]
    path = next(row["test/confusion"]["path"] for row in rows if "test/confusion" in row)
    pixels = {
        (truth, prediction): n for truth, prediction, n in json.loads((folder / "files" / path).read_text())["data"]
    }
    stored = np.load(logged / "per_image.npz")["confusion"].sum(0)
    assert pixels[("disc", "background")] == stored[1, 0]
    assert sum(pixels.values()) == 4 * 47 * 48  # the first row of each mask is ignored


def test_the_one_line_that_uploads_it(logged: Path) -> None:
    out = logged.parents[1]
    assert sync_line(out) == f"wandb sync {out}/*/*/wandb/offline-run-*"
    assert sync_line(logged) == f"wandb sync {logged}/wandb/offline-run-*"
    assert sync_line(logged / "checkpoints") is None


def test_without_key_or_network_it_is_offline_by_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert mode() == "offline"
    monkeypatch.setenv("WANDB_MODE", "ofline")
    assert mode() == "offline"
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens
    assert mode() == "offline"


def test_an_error_of_wandb_does_not_reach_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")

    def crashed(*args: Any, **kwargs: Any) -> None:
        raise BrokenPipeError("the W&B service is gone")

    monkeypatch.setattr("wandb.sdk.wandb_run.Run.log", crashed)
    out = tmp_path / "experiment" / "variant" / "seed0"
    result = train(RUN, out, accelerator="cpu", enable_progress_bar=False, wandb=True)
    assert result["status"] == "done"
    assert "training goes on" in caplog.text
