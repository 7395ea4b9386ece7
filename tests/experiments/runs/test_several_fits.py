"""More than one training in one process, as in a notebook: with Lightning's own Trainer, and with `train`."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupt import BASE, outcome, unequal
from lightning.pytorch import Trainer
from test_train import QUIET, TINY

from datamodules.shapes import ShapesDataModule
from experiments.runs.training import train
from experiments.shell.catalogue import ARCHITECTURES
from lightning_modules.catalogue import NETWORKS
from lightning_modules.unet import UNetModule

ROOT = Path(__file__).parents[3]
PLAIN: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "max_epochs": 1}
PLAIN |= {"enable_progress_bar": False, "enable_model_summary": False}


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")
def test_a_trainer_of_lightning_validates_and_fits_in_turns() -> None:
    """`validate` leaves tensors of inference mode behind, which no step may need."""
    module, data = UNetModule(3, 255, width=2, depth=2), ShapesDataModule(size=16, length=6, batch_size=2)
    trainer = Trainer(**PLAIN)

    def loss(of: Trainer) -> float:
        return float(of.validate(module, data, verbose=False)[0]["val/loss"])

    before = loss(trainer)
    assert loss(trainer) == before
    first = {name: value.clone() for name, value in module.state_dict().items()}
    trainer.fit(module, data)
    assert trainer.global_step == 3
    assert float(trainer.callback_metrics["val/loss"]) == (after := loss(trainer)) != before
    assert trainer.test(module, data, verbose=False)[0]["test/loss"] > 0
    second = Trainer(**PLAIN)
    second.fit(module, data)
    assert second.global_step == 3
    assert loss(second) != after
    module.load_state_dict(first)
    assert loss(second) == before


@pytest.mark.parametrize("name", NETWORKS)
def test_no_architecture_keeps_what_inference_mode_has_made(name: str) -> None:
    module = ARCHITECTURES[name](3, 255, **NETWORKS[name].small)
    images, masks = torch.rand(2, 3, 64, 64), torch.randint(3, (2, 64, 64))
    with torch.inference_mode():
        module.eval()(images)
    module.train().loss(images, masks).backward()
    assert any(parameter.grad is not None for parameter in module.parameters())


def test_a_run_is_the_same_whatever_was_trained_before_it_in_the_process(tmp_path: Path) -> None:
    handlers = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    train(BASE, tmp_path / "first", **QUIET)
    train(TINY.but(trainer={"max_epochs": 1}, seed=3), tmp_path / "between", **QUIET)
    train(BASE, tmp_path / "second", **QUIET)
    assert not unequal(outcome(tmp_path / "first"), outcome(tmp_path / "second"))
    assert train(BASE, tmp_path / "first", resume=True, **QUIET)["hash"] == BASE.hash  # the lock was let go
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == handlers


@pytest.mark.parametrize("where", [{"devices": 1}, {"devices": "auto"}, {}])
def test_a_notebook_trains_on_one_device(where: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning.pytorch.trainer.connectors.accelerator_connector._IS_INTERACTIVE", True)
    assert train(TINY.but(trainer={"max_epochs": 1}), tmp_path / "run", **where, **QUIET)["status"] == "done"


def test_a_notebook_that_asks_for_processes_of_their_own_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning.pytorch.trainer.connectors.accelerator_connector._IS_INTERACTIVE", True)
    with pytest.raises(ValueError, match=r"Lightning refuses these --trainer flags .*strategy='ddp'.* interactive"):
        train(TINY, tmp_path / "run", devices=2, strategy="ddp", **QUIET)
    assert not list((tmp_path / "run").glob("[!.]*"))


TWICE = """
import sys
from pathlib import Path
from recorded import RECORDED
from experiments.runs.training import train
from experiments.shell.ending import ending

with ending():
    for seed in (0, 1):
        run = RECORDED.but(seed=seed, trainer={"max_epochs": 1})
        train(run, Path(sys.argv[1], str(seed)), resume=True, accelerator="cpu", devices=2, enable_progress_bar=False)
"""


@pytest.mark.slow
def test_a_script_trains_twice_on_two_devices_also_where_the_first_run_is_done(tmp_path: Path) -> None:
    (tmp_path / "twice.py").write_text(TWICE)
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests" / "experiments")))
    for done in (False, True):
        if done:
            (tmp_path / "1" / "result.json").unlink()  # tests its last weights again
        ended = subprocess.run(
            [sys.executable, str(tmp_path / "twice.py"), str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        )
        assert ended.returncode == 0, ended.stderr
        results = [json.loads((tmp_path / seed / "result.json").read_text()) for seed in ("0", "1")]
        assert [result["steps"] for result in results] == [12, 12]
        assert results[0]["hash"] != results[1]["hash"]
