"""What the environment brings of W&B's: of variables, settings files and agents only what says where to log, and as
whom."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wandb
import yaml
from test_logger import RUN
from wandb_server import WandbServer

from experiments.runs.training import train
from experiments.shell.difference import git_commit
from experiments.tracking.client import GIVEN, Client, agent_settings, given_settings, own_environ
from experiments.tracking.logger import WandbLogger, histogram, tracker, tracking
from experiments.tracking.loggers import Logging
from experiments.tracking.records import read_records, values

ROOT = Path(__file__).parents[3]
STRANGE = {
    **{f"WANDB_{name.upper()}": "7" for name in wandb.Settings.model_fields if not name.startswith("x_")},
    **{f"WANDB__{name[2:].upper()}": "7" for name in wandb.Settings.model_fields if name.startswith("x_")},
    **{f"WANDB_{name.upper()}": "7" for name in wandb.Settings.model_fields if name.startswith("x_")},
    **{getattr(wandb.env, name): "7" for name in dir(wandb.env) if str(getattr(wandb.env, name)).startswith("WANDB_")},
    "WANDB_SWEEP_ID": "sweep7",
    "WANDB_RUN_ID": "run7",
    "WANDB_RESUME": "must",
    "WANDB_NAME": "seven",
    "WANDB_RUN_GROUP": "all",
    "WANDB_SERVICE": "3-1-unix-/nowhere",
    "WANDB_START_METHOD": "thread",
    "WANDB_CONFIG_PATHS": "/nowhere.yaml",
    "WANDB_SWEEP_PARAM_PATH": "/nowhere.yaml",
    "WANDB_LAUNCH": "true",
    "WANDB_RESUME_FROM": "run7?_step=3",
    "WANDB_FORK_FROM": "run7?_step=3",
    "WANDB_INIT_TIMEOUT": "soon",
    "KUBERNETES_SERVICE_HOST": "10.255.255.1",
    "SM_TRAINING_ENV": "{",
    "TRAINING_JOB_NAME": "job",
    "WANDB_DIR": "/nowhere",
    "WANDB_DATA_DIR": "/nowhere",
    "WANDB_CACHE_DIR": "/nowhere",
    "WANDB_SILENT": "maybe",
}


@pytest.fixture(autouse=True)
def _nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def logged(out: Path, logging: Logging | None = None, **settings: Any) -> tuple[Any, dict[str, Any]]:
    """The record of a run, and its config, that logs one row with these settings of W&B; what else it holds by kind."""
    found = records(out, logging, **settings)
    (run,) = found["run"]
    return run, values(run.config.update)


def records(out: Path, logging: Logging | None = None, rows: int = 1, **settings: Any) -> dict[str, list[Any]]:
    tracked = tracking(logging or Logging("wandb"), RUN.resolved() | {"hash": "0"}, out)
    (logger,) = tracked.loggers
    assert isinstance(logger, WandbLogger)
    logger.client.start_message["settings"] |= settings
    tracked.start({"commit": git_commit(), "device": "1 x CPU"})
    for step in range(rows):
        logger.log_metrics({"train/loss": 1.0}, step)
    tracked.finish(0)
    assert logger.client.whole
    (file,) = out.glob("wandb/*run-*-*/*.wandb")
    found: dict[str, list[Any]] = {}
    for record in read_records(file):
        kind = record.WhichOneof("record_type")
        found.setdefault(kind, []).append(getattr(record, kind))
    return found


def test_no_variable_of_any_name_merges_renames_moves_or_stops_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = {f"WANDB_{name}" for name in GIVEN}
    for name, value in STRANGE.items():
        if name not in mine | {"WANDB_CONFIG_DIR", "WANDB_FINISH_TIMEOUT", "WANDB_DISABLED"}:
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_MODE", "offline")
    out = tmp_path / "experiment" / "variant" / "seed0"
    run, config = logged(out)
    assert (run.project, run.run_group, run.display_name) == ("seglab", "experiment", "variant-s0")
    assert (run.job_type, run.sweep_id, run.entity, run.host) == ("train", "", "", "unnamed")
    assert run.run_id != "run7" and list(run.tags) == ["UNetModule", "ShapesDataModule", "variant"]
    assert config["variant"] == "variant"


def test_no_settings_file_does_either_and_where_to_log_is_taken_from_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "settings").write_text(
        "[default]\nmode = offline\nproject = theirs\nentity = team\nrun_id = run7\nrun_name = seven\nconsole = wrap\n"
    )
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text("[default]\nproject = nearer\nrun_group = all\n")
    monkeypatch.chdir(tmp_path)
    run, _ = logged(tmp_path / "experiment" / "variant" / "seed0")
    assert (run.project, run.entity, run.run_group, run.display_name) == ("nearer", "team", "experiment", "variant-s0")
    monkeypatch.setenv("WANDB_PROJECT", "nearest")
    assert given_settings(os.environ, tmp_path)["project"] == "nearest"


def test_a_settings_file_that_is_none_is_said(tmp_path: Path, heard: list[str]) -> None:
    (tmp_path / "config").mkdir()
    for content in (b"no section", b"\xff\xfe", b"[default]\nproject = a\nproject = b\n"):
        (tmp_path / "config" / "settings").write_bytes(content)
        assert given_settings(os.environ, tmp_path) == {}


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"WANDB_PROJECT": "a/b:c"}, "project 'a/b:c' is not used"),
        ({"WANDB_BASE_URL": "localhost:8080", "WANDB_MODE": "online"}, "base_url 'localhost:8080' is not used"),
        ({"WANDB_MODE": "ofline"}, "WANDB_MODE must be one of online, run, offline, dryrun, disabled, got 'ofline'"),
        ({"WANDB_API_KEY": "too short"}, ""),
        ({"WANDB_FINISH_TIMEOUT": "soon"}, "WANDB_FINISH_TIMEOUT must be a number of seconds, got 'soon'"),
        ({"WANDB_TAGS": "a" * 65 + ",b"}, "tags"),
        ({"HOME": ""}, ""),
    ],
)
def test_a_value_that_w_and_b_refuses_is_said_and_ends_nothing(
    environ: dict[str, str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, value in ({"WANDB_MODE": "offline"} | environ).items():
        monkeypatch.setenv(name, value)
    run, _ = logged(tmp_path / "experiment" / "variant" / "seed0")
    assert run.project == "seglab"
    assert said in caplog.text


def test_names_of_any_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run, config = logged(tmp_path / ("e" * 200) / ("v" * 200) / "seed0")
    assert run.display_name == "v" * 125 + "..."
    assert run.run_group == "e" * 125 + "..."
    assert list(run.tags)[2] == "v" * 61 + "..."
    assert config["variant"] == "v" * 200


def test_somebody_without_a_name_and_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs as a number: no HOME, and nobody knows the user."""
    (tmp_path / "sitecustomize.py").write_text(
        "import pwd\ndef missing(number):\n    raise KeyError(f'getpwuid(): uid not found: {number}')\n"
        "pwd.getpwuid = missing\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "WANDB_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    for variable in ("WANDB_MODE", "WANDB_API_KEY"):  # offline by its name, and by itself
        monkeypatch.setenv("WANDB_MODE", "offline" if variable == "WANDB_MODE" else "")
        run, _ = logged(tmp_path / "experiment" / variable / "seed0")
        assert run.host == "unnamed"


def test_hardware_metrics_are_there_unless_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")

    def run(name: str, **flags: Any) -> tuple[set[str], dict[str, Any]]:
        out = tmp_path / "experiment" / name / "seed0"
        # Rows at once, and the machine once a second instead of every 15: the run lasts as long as its 400 rows.
        tracked = tracking(Logging("wandb", **flags), RUN.resolved(), out)
        (logger,) = tracked.loggers
        assert isinstance(logger, WandbLogger)
        logger.client.start_message["settings"] |= {"x_stats_sampling_interval": 0.1}
        tracked.start({"commit": git_commit(), "device": "1 x CPU"})
        while not logger.client.mode:
            logger.client.thread.join(0.1)  # type: ignore[union-attr]
        logger.client.thread.join(2)  # type: ignore[union-attr]
        tracked.finish(0)
        (file,) = out.glob("wandb/offline-run-*/*.wandb")
        found = list(read_records(file))
        keys = {item.key for record in found if record.HasField("stats") for item in record.stats.item}
        return keys, values(next(record.run for record in found if record.HasField("run")).config.update)

    keys, config = run("open")
    assert {"proc.memory.rssMB", "proc.cpu.threads", "memory_percent"} <= keys
    assert (config["commit"], config["device"]) == (git_commit(), "1 x CPU")
    keys, config = run("private", private=True)
    assert keys == set() and "device" not in config and config["commit"] == git_commit()


def test_a_histogram_of_gradients_counts_every_value(tmp_path: Path) -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    found = histogram(values)
    expected, edges = np.histogram(values.numpy(), bins=64)
    assert sum(found["counts"]) == 1000
    assert np.allclose(found["edges"], edges)
    assert np.abs(np.array(found["counts"]) - expected).sum() <= 4  # of values at an edge, in float32
    odd = histogram(torch.tensor([float("nan"), float("inf"), 2.0, 2.0]))
    assert sum(odd["counts"]) == 2 and odd["edges"][0] < 2 < odd["edges"][-1]
    assert sum(histogram(torch.tensor([float("nan")]))["counts"]) == 0


def test_gradients_and_the_checkpoint_are_logged_on_request_and_change_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    plain, out = (tmp_path / "experiment" / name / "seed0" for name in ("plain", "logged"))
    quiet = {"accelerator": "cpu", "enable_progress_bar": False}
    train(RUN, plain, **quiet)
    train(RUN, out, tracker=tracker(Logging("wandb", checkpoints=True, gradients=3)), **quiet)
    numbers = ["epoch", "train/loss_epoch", "val/loss", "val/miou"]
    rows = [[line.split(",") for line in (one / "metrics.csv").read_text().splitlines()] for one in (plain, out)]
    kept = [[row[index] for index, name in enumerate(table[0]) if name in numbers for row in table] for table in rows]
    assert kept[0] == kept[1] and len(kept[0]) > 4

    (file,) = out.glob("wandb/offline-run-*/*.wandb")
    found = list(read_records(file))
    steps = [
        row["trainer/global_step"]
        for row in (values(record.history.item) for record in found if record.HasField("history"))
        if any(name.startswith("gradients/network.") for name in row)
    ]
    assert steps == [0, 3]  # of 4
    (model,) = (record.artifact for record in found if record.HasField("artifact") and record.artifact.type == "model")
    (content,) = model.manifest.contents
    checkpoint = out / "checkpoints" / "last.ckpt"
    assert (content.path, content.size) == ("last.ckpt", checkpoint.stat().st_size)
    copy = out / "wandb" / "staged" / "artifacts" / "staging" / Path(content.local_path).name
    assert copy.read_bytes() == checkpoint.read_bytes()
    assert '"variant":"logged"' in model.metadata.replace(" ", "")


AGENT = {"WANDB_SWEEP_ID": "sweep7", "WANDB_RUN_ID": "run7", "WANDB_SWEEP_PARAM_PATH": "sweep.yaml"}


def test_only_the_command_that_an_agent_started_is_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in AGENT.items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "experiment" / "variant" / "seed0"
    settings = RUN.resolved() | {"hash": "0"}
    (cell,) = tracking(Logging("wandb"), settings, out).loggers
    (trial,) = tracking(Logging("wandb", agent=True), settings, out).loggers
    assert cell.version != "run7" and trial.version == "run7"
    assert isinstance(trial, WandbLogger)
    assert trial.client.start_message["settings"]["sweep_id"] == "sweep7"
    assert agent_settings({"WANDB_RUN_ID": "run7"}) == {}  # a variable that somebody has left behind


def test_the_upload_of_what_was_logged_offline_sees_no_more_of_it() -> None:
    environ = STRANGE | {"WANDB_API_KEY": "k", "PATH": "/bin", "WANDB_BASE_URL": "http://a"}
    seen = own_environ(environ)
    assert seen["PATH"] == "/bin" and seen["WANDB_API_KEY"] == "k" and seen["WANDB_BASE_URL"] == "http://a"
    assert not {"WANDB_RUN_ID", "WANDB_NAME", "WANDB_SERVICE", "WANDB_RESUME", "WANDB_SWEEP_ID"} & seen.keys()


@pytest.mark.slow
def test_the_sweep_of_the_page_runs(tmp_path: Path, wandb_server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "wandb.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    sweep = yaml.safe_load(text)
    (tmp_path / "sweep.yaml").write_text(text)
    wandb_server.commands = [
        [{"type": "run", "run_id": f"trial{index}", "program": "train", "args": {"model.lr": {"value": lr}}}]
        for index, lr in enumerate(sweep["parameters"]["model.lr"]["values"][:2])
    ]
    environ = os.environ | {
        "PYTHONPATH": str(ROOT),
        "WANDB_BASE_URL": wandb_server.url,
        "WANDB_API_KEY": "0123456789" * 4,
    }
    environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environ['PATH']}"

    def call(*words: str) -> str:
        command = [sys.executable, "-m", "wandb", *words]
        done = subprocess.run(
            command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False, timeout=240
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    said = call("sweep", "--project", "seglab", "sweep.yaml")
    assert "sweep1" in said
    said = call("agent", "--count", "2", "someone/seglab/sweep1")
    began = [given for given in wandb_server.variables("UpsertBucket") if given.get("sweep")]
    assert {given["sweep"] for given in began} == {"sweep1"}, said
    assert {given["name"] for given in began} == {"trial0", "trial1"}
    for index in (0, 1):
        assert (tmp_path / "outputs" / "sweeps" / "sweep1" / f"trial{index}" / "seed0" / "result.json").exists(), said
    assert wandb_server.exit_code("trial0") == wandb_server.exit_code("trial1") == 0
    names = {key for row in wandb_server.rows("trial0") for key in row}
    assert sweep["metric"]["name"] in names


def test_the_client_drops_what_nobody_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.tracking.client.WAITING", 1000)
    client = Client({"settings": {}}, tmp_path)
    client.send("row", {})  # not started: nobody is to be told
    assert client.sent == 0
    client.thread = threading.Thread()
    client.send("row", {"a": "x" * 900})
    client.send("row", {"a": "x" * 900})
    assert client.dropped == 1 and client.sent < 1000
