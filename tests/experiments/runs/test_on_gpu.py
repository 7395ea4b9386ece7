"""On a GPU too, the same run gives the same weights, also where it was killed and resumed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sharded_runs import UNET, back_to_previous

from experiments.runs.run import Run
from experiments.runs.training import train
from lightning_modules.deeplabv3plus import DeepLabV3PlusModule

pytestmark = pytest.mark.gpu
WHERE: dict[str, Any] = {"accelerator": "gpu", "devices": 1, "enable_progress_bar": False, "num_sanity_val_steps": 0}
DETERMINISTIC = {"deterministic": True, "gradient_clip_val": None}
RUNS = {
    "unet": UNET.but(width=8, norm="batch", dropout=0.5, trainer=DETERMINISTIC),
    "bf16": UNET.but(width=8, channels_last=True, trainer={**DETERMINISTIC, "precision": "bf16-mixed"}),
    "16": UNET.but(width=8, trainer={**DETERMINISTIC, "precision": "16-mixed"}),
    "deeplabv3plus": Run(
        module=DeepLabV3PlusModule,
        datamodule=UNET.datamodule,
        hparams={"encoder": "resnet18", "encoder_width": 0.25, "decoder_width": 16},
        data=UNET.data,
        trainer={**UNET.trainer, **DETERMINISTIC},
    ),
}


def weights(out: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return state


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", RUNS)
def test_two_runs_are_equal_and_so_is_one_that_was_interrupted(name: str, tmp_path: Path) -> None:
    for out in ("first", "second"):
        train(RUNS[name], tmp_path / out, **WHERE)
    back_to_previous(tmp_path / "second")
    again = weights(tmp_path / "second")
    train(RUNS[name], tmp_path / "second", resume=True, **WHERE)
    resumed = weights(tmp_path / "second")
    for key, value in weights(tmp_path / "first").items():
        assert torch.equal(value, resumed[key]), key
    assert any(not torch.equal(value, again[key]) for key, value in resumed.items())  # or nothing was done again


def test_what_makes_it_faster_learns_as_much(tmp_path: Path) -> None:
    """Compiled, in bfloat16 and channels last, and with stages computed again: the same but for rounding."""
    plain = UNET.but(width=16, loss="ce", lr=1e-3, trainer={"gradient_clip_val": None, "max_epochs": 10})
    fast = plain.but(channels_last=True, compile=True, trainer={"precision": "bf16-mixed"})
    results = [
        train(run, tmp_path / name, test=False, **WHERE)
        for name, run in (("plain", plain), ("fast", fast), ("again", plain.but(checkpointing=True)))
    ]
    losses = [result["val"]["loss"] for result in results]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    assert losses[2] == pytest.approx(losses[0], rel=0.02)
