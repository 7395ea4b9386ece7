"""W&B may refuse, hang, lie or go away: a training ends as it would without, in a stated time."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch import Callback
from test_logger import RUN
from wandb_server import STATES, WandbServer

from experiments.runs.training import train
from experiments.tracking.attempts import find_runs, state
from experiments.tracking.client import FINISH, Client
from experiments.tracking.logger import WandbLogger, tracker, tracking
from experiments.tracking.loggers import Logging
from experiments.tracking.records import read_records, values

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
KEY = "0123456789" * 4
STAYS_ONLINE = ("slow", "stops", "dies", "hangs")
CUT_OFF = ("dies", "hangs")
SPARE = 5.0  # seconds that a busy machine may add to a promise


@dataclass(frozen=True)
class Outcome:
    """How a run ended that was logged while its server was in a state."""

    sending: float  # seconds for all that is done in a training: the start, the rows
    finishing: float
    mode: str
    whole: bool
    rows: list[int]  # the steps that lie on this disk
    upload: list[str]  # what experiments.sync would do


def logged_while(name: str, out: Path, patch: pytest.MonkeyPatch) -> tuple[WandbServer, WandbLogger]:
    server = WandbServer(name)
    patch.setenv("WANDB_BASE_URL", server.url)  # read here, once
    (logger,) = tracking(Logging("wandb"), RUN.resolved() | {"hash": "0"}, out).loggers
    assert isinstance(logger, WandbLogger)
    return server, logger


def outcome(server: WandbServer, logger: WandbLogger, out: Path) -> Outcome:
    with server:
        began = time.monotonic()
        logger.start({"commit": "0" * 40, "device": "1 x CPU"})
        for step in range(5):
            logger.log_metrics({"train/loss": float(step)}, step)
        sending = time.monotonic() - began
        while not logger.client.mode and not logger.client.over:
            time.sleep(0.1)
        time.sleep(2)
        server.spoil()
        began = time.monotonic()
        for step in range(5, 8):
            logger.log_metrics({"train/loss": float(step)}, step)
        sending += time.monotonic() - began
        began = time.monotonic()
        logger.finish(0)
        finishing = time.monotonic() - began
    (file,) = out.glob("wandb/*run-*-*/*.wandb")
    rows = [values(record.history.item) for record in read_records(file) if record.HasField("history")]
    steps = [row["trainer/global_step"] for row in rows]
    upload = [state(cell, unfinished=True) for cell in find_runs(out)]
    return Outcome(sending, finishing, logger.client.mode, logger.client.whole, steps, upload)


def judged(name: str, found: Outcome) -> list[str]:
    """What is wrong with the end of a run whose server was in this state; for each promise, whether it was kept."""
    is_offline, is_cut = name not in STAYS_ONLINE, name in CUT_OFF
    promises = {
        "the start and the rows take less than the second of an epoch": found.sending < 1,
        "the end takes no longer than is said": found.finishing < FINISH + SPARE,
        "it is logged where it can be": found.mode == ("offline" if is_offline else "online"),
        "it is known whether the server has it": found.whole == (not is_cut),
        "it lies on this disk in any case": found.rows == list(range(8)),
        "what the server lacks can be uploaded": [one.split(" as ")[0] for one in found.upload]
        == ["upload"] * (is_offline or is_cut),
    }
    return [promise for promise, kept in promises.items() if not kept]


def test_whatever_the_server_does_nothing_waits_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All states in one test, four at a time: most of it is waiting."""
    folders = {name: tmp_path / name / "experiment" / "variant" / "seed0" for name in STATES}
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    made = {name: logged_while(name, out, monkeypatch) for name, out in folders.items()}
    with ThreadPoolExecutor(4) as pool:
        ends = dict(zip(STATES, pool.map(lambda name: outcome(*made[name], folders[name]), STATES), strict=True))
    assert {name: (wrong, end) for name, end in ends.items() if (wrong := judged(name, end))} == {}
    fine = Outcome(0.1, 0.1, "online", True, list(range(8)), [])
    assert judged("stops", fine) == [] and judged("dies", fine) and judged("401", fine)


class Spoils(Callback):
    """The server changes its state after the first epoch."""

    def __init__(self, server: WandbServer) -> None:
        self.server = server

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == 0:
            logger = next(one for one in trainer.loggers if isinstance(one, WandbLogger))
            while not logger.client.mode and not logger.client.over:
                time.sleep(0.1)
            self.server.spoil()


@pytest.mark.parametrize("name", ["hangs", pytest.param("dies", marks=pytest.mark.slow)])
def test_a_training_whose_server_goes_away_ends_as_without_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    results_at_the_end = []
    finish = Client.finish

    def finished(client: Client, exit_code: int) -> None:
        results_at_the_end.append(json.loads((client.out / "result.json").read_text())["status"])
        finish(client, exit_code)

    monkeypatch.setattr(Client, "finish", finished)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "3")  # it waits in vain, however long
    plain, out = (tmp_path / "experiment" / name / "seed0" for name in ("plain", "logged"))
    quiet = {"accelerator": "cpu", "enable_progress_bar": False}
    train(RUN, plain, **quiet)
    with WandbServer(name) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        result = train(RUN, out, callbacks=[Spoils(server)], tracker=tracker("wandb"), **quiet)
    assert result["status"] == "done"
    assert results_at_the_end == ["done"]  # it stands before W&B is waited for
    assert "did not take all" in caplog.text
    for file in ("per_image.npz", "predictions.zip"):
        with np.load(plain / file) as before, np.load(out / file) as after:
            assert all(
                np.array_equal(before[key], after[key]) or np.array_equal(before[key], after[key], equal_nan=True)
                for key in before
            )


def test_an_error_of_wandb_does_not_reach_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A package of W&B that breaks at its import: as of another version, or half installed."""
    broken = tmp_path / "broken" / "wandb"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise AttributeError('half installed')\n")
    monkeypatch.setenv("PYTHONPATH", str(broken.parent))
    out = tmp_path / "experiment" / "variant" / "seed0"
    result = train(RUN, out, accelerator="cpu", enable_progress_bar=False, tracker=tracker("wandb"))
    assert result["status"] == "done"
    assert "half installed (training goes on" in caplog.text


def test_a_stop_pressed_on_the_server_is_said_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "experiment" / "variant" / "seed0"
    logger = tracking(Logging("wandb"), RUN.resolved(), out).loggers[0]
    assert isinstance(logger, WandbLogger)
    answers = b'{"kind": "stop"}\n{"kind": "hello"}\n'
    process = subprocess.Popen(["printf", answers.decode()], stdout=subprocess.PIPE)
    with caplog.at_level(logging.WARNING, "lightning.pytorch"):
        logger.client._listen(process)
    assert process.wait() == 0
    assert "press Ctrl-C here instead" in caplog.text
    assert [logger.client.answers.get()["kind"] for _ in range(2)] == ["hello", "ended"]


def children(parent: int) -> set[int]:
    """The processes that this one has started, whatever session they are in."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == parent:
                found.add(int(path.parent.name))
    return found


def alive(process: int) -> bool:
    try:
        return Path("/proc", str(process), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc, to look for processes")
@pytest.mark.parametrize("name", ["hangs", pytest.param("", marks=pytest.mark.slow)])
def test_nothing_is_left_of_a_training_that_was_killed(name: str, tmp_path: Path) -> None:
    script = tmp_path / "training.py"
    script.write_text(
        "import sys, time\n"
        f"sys.path[:0] = {[str(path) for path in (ROOT, HERE.parent, HERE)]!r}\n"
        "from pathlib import Path\n"
        "from test_logger import RUN\n"
        "from experiments.tracking.loggers import Logging\n"
        "from experiments.tracking.logger import tracking\n"
        "(logger,) = tracking(Logging('wandb'), RUN.resolved(), "
        f"Path({str(tmp_path / 'e' / 'v' / 'seed0')!r})).loggers\n"
        "logger.start({})\n"
        "while not logger.client.mode:\n    time.sleep(0.1)\n"
        "print(logger.client.process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with WandbServer(name) as server:
        environ = os.environ | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
        environ.pop("WANDB_MODE", None)
        training = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=environ)
        assert training.stdout is not None
        child = int(training.stdout.readline())
        ours = {child, *children(child)}
        assert len(ours) == 2 and all(map(alive, ours))  # W&B's own service is the other
        server.spoil()
        training.send_signal(signal.SIGKILL)
        training.wait()
        late = time.monotonic() + 15 + SPARE
        while any(map(alive, ours)) and time.monotonic() < late:
            time.sleep(0.2)
        assert not any(map(alive, ours))


@pytest.fixture(autouse=True)
def _without_the_environment_of_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for variable in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    yield
