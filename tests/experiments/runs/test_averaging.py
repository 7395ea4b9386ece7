"""The network that is scored: an average of the weights, batch norms measured anew, and what a training keeps of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interrupt import BASE, QUIET, At, terminate
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from experiments.runs.averaging import CROPS
from experiments.runs.checkpoints import LAST, digest_file
from experiments.runs.scoring import carry_out, evaluate
from experiments.runs.step import Step
from experiments.runs.training import build, train
from experiments.shell.catalogue import load
from experiments.shell.ending import Interrupted
from lightning_modules.components.averaging import AVERAGES, decay_of, exponential_average, recalibrated
from lightning_modules.components.blocks import freeze_batch_norms
from lightning_modules.components.checkpoints import read_checkpoint
from lightning_modules.components.scores.reductions import scores

DECAY = 0.7


class Weights(Callback):
    """The weights after each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.steps.append({name: value.clone() for name, value in pl_module.state_dict().items()})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Weights]]:
    """The same run with each average."""
    torch.set_num_threads(1)
    runs = {}
    for average in AVERAGES:
        out, weights = tmp_path_factory.mktemp("averaging") / average, Weights()
        decay = DECAY if average.startswith("ema") else None
        train(BASE.but(average=average, ema_decay=decay), out, callbacks=[weights], **QUIET)
        runs[average] = out, weights
    return runs


def _stored(out: Path) -> dict[str, Any]:
    return read_checkpoint(out / "checkpoints" / LAST)


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("average", AVERAGES[1:])
def test_what_is_trained_is_the_same_with_every_average(average: str, trained: dict[str, tuple[Path, Weights]]) -> None:
    plain, other = (_stored(trained[name][0]) for name in ("none", average))
    assert _equal(plain["state_dict"], other["averaging"]["raw"])
    assert not _equal(plain["state_dict"], other["state_dict"])
    rows = [np.genfromtxt(trained[name][0] / "metrics.csv", delimiter=",", names=True) for name in ("none", average)]
    assert (rows[0]["trainloss"] == rows[1]["trainloss"]).all()


def test_the_average_is_exponential_and_begins_with_the_first_step(trained: dict[str, tuple[Path, Weights]]) -> None:
    out, weights = trained["ema"]
    first, *others = weights.steps
    expected = {name: value.double() for name, value in first.items()}
    for step in others:
        expected = {name: DECAY * value + (1 - DECAY) * step[name] for name, value in expected.items()}
    got = _stored(out)["state_dict"]
    assert _equal(got, _stored(out)["averaging"]["average"])
    for name, value in got.items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[name].double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("average", ["recalibrate", "ema+recalibrate"])
def test_statistics_are_the_mean_over_the_batches(average: str, trained: dict[str, tuple[Path, Weights]]) -> None:
    stored = _stored(trained[average][0])
    before = stored["averaging"]["average" if "ema" in average else "raw"]
    module, datamodule = build(BASE)
    module.load_state_dict(before)
    seen: list[Tensor] = []
    norm = next(m for m in module.network.modules() if isinstance(m, nn.BatchNorm2d))
    norm.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    module.eval()
    with torch.no_grad():
        for batch in datamodule.crops(CROPS):
            module(batch)
    name = next(name for name, part in module.named_modules() if part is norm)
    mean = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    var = torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0)
    torch.testing.assert_close(stored["state_dict"][f"{name}.running_mean"], mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stored["state_dict"][f"{name}.running_var"], var, rtol=1e-4, atol=1e-5)
    changed = {name for name, value in stored["state_dict"].items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "running" in name or "num_batches_tracked" in name}


@pytest.mark.parametrize("average", AVERAGES)
def test_the_last_validation_and_the_test_are_of_the_final_network(
    average: str, trained: dict[str, tuple[Path, Weights]]
) -> None:
    out, _ = trained[average]
    module, (_, datamodule) = load(out / "checkpoints" / LAST).eval(), build(BASE)
    rows = np.genfromtxt(out / "metrics.csv", delimiter=",", names=True)
    validated, _, _ = evaluate(module, datamodule.dataset("val"), 1)
    assert float(scores(validated["confusion"].sum(0))["miou"]) == pytest.approx(rows["valmiou"][-1], rel=1e-6)
    tested, _, _ = evaluate(module, datamodule.dataset("test"), 1)
    with np.load(out / "per_image.npz") as arrays:
        assert (arrays["confusion"] == tested["confusion"]).all()


@pytest.mark.parametrize("average", AVERAGES)
def test_the_step_scores_what_a_training_with_that_average_scores(
    average: str, trained: dict[str, tuple[Path, Weights]], tmp_path: Path
) -> None:
    parent = trained["ema"][0]
    checkpoint = parent / "checkpoints" / LAST
    step = BASE.but(average="ema", ema_decay=DECAY, step=Step("average", {"average": average}))
    stored = _stored(parent)
    run = step.after({str(checkpoint): f"run:{stored['run']}@{stored['global_step']}"})
    carry_out(run, tmp_path / "step")
    whole, of_step = trained[average][0], tmp_path / "step"
    assert (whole / "predictions.zip").read_bytes() == (of_step / "predictions.zip").read_bytes()
    with np.load(whole / "per_image.npz") as one, np.load(of_step / "per_image.npz") as other:
        assert set(one.files) == set(other.files)
        for name in one.files:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_a_step_without_a_moving_average_says_how_to_train_one(
    trained: dict[str, tuple[Path, Weights]], tmp_path: Path
) -> None:
    checkpoint = trained["recalibrate"][0] / "checkpoints" / LAST
    stored = read_checkpoint(checkpoint)
    run = BASE.but(average="recalibrate", step=Step("average", {"average": "none"}))
    run = run.after({str(checkpoint): f"run:{stored['run']}@{stored['global_step']}"})
    with pytest.raises(ValueError, match=r"last\.ckpt holds no moving average: train its network with average='ema'"):
        carry_out(run, tmp_path / "step")


def test_before_the_end_a_checkpoint_opens_as_the_average_and_goes_on_from_the_weights(tmp_path: Path) -> None:
    run, weights = BASE.but(average="ema+recalibrate", ema_decay=DECAY), Weights()
    with pytest.raises(Interrupted):
        train(run, tmp_path / "cut", callbacks=[weights, At(9, terminate)], **QUIET)
    stored = _stored(tmp_path / "cut")
    assert not stored["averaging"]["final"]
    assert _equal(stored["state_dict"], stored["averaging"]["average"])
    assert _equal(stored["averaging"]["raw"], weights.steps[-1])
    assert _equal(dict(load(tmp_path / "cut" / "checkpoints" / LAST).state_dict()), stored["state_dict"])


class Parts(nn.Module):
    """A frozen batch norm, a trained one behind a dropout, and one that evaluation does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.trained, self.training_only = (nn.BatchNorm2d(2, momentum=0.3) for _ in range(3))
        self.dropout = nn.Dropout(0.9)

    def train(self, mode: bool = True) -> "Parts":
        super().train(mode)
        freeze_batch_norms(self.frozen)
        return self

    def forward(self, x: Tensor) -> Tensor:
        x = self.trained(self.dropout(self.frozen(x)))
        return self.training_only(x) if self.training else x


class Holder:
    """As much of a module as is needed."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.training = network, False

    def predict(self, images: Tensor) -> Tensor:
        out: Tensor = self.network(images)
        return out


def test_only_trained_batch_norms_that_images_reach_are_measured_and_without_dropout() -> None:
    network = Parts()
    for norm in (network.frozen, network.trained, network.training_only):
        norm.running_mean.fill_(0.25)  # type: ignore[union-attr]
        norm.running_var.fill_(4.0)  # type: ignore[union-attr]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = [torch.rand(3, 2, 4, 4) for _ in range(5)]
    holder = Holder(network)
    after = recalibrated(holder, network, images)
    assert holder.network is network
    assert _equal(before, dict(network.state_dict()))
    state = dict(after.state_dict())
    assert {name for name in state if not torch.equal(state[name], before[name])} == {
        f"trained.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")
    }
    frozen = [(x - 0.25) / (4 + network.frozen.eps) ** 0.5 for x in images]
    torch.testing.assert_close(state["trained.running_mean"], torch.stack([x.mean((0, 2, 3)) for x in frozen]).mean(0))
    assert isinstance(after, Parts)
    assert after.trained.momentum == 0.3
    assert not any(part.training for part in after.modules())


@pytest.mark.parametrize("settings", [{"norm": "group"}, {"norm": "none"}])
def test_a_network_without_batch_norm_is_left_as_it_is_and_reads_no_image(settings: dict[str, Any]) -> None:
    module, _ = build(BASE.but(**settings))

    def refused() -> Any:
        raise AssertionError("an image was read")
        yield

    after = recalibrated(module, module.network, refused())
    assert _equal(dict(module.network.state_dict()), dict(after.state_dict()))


def test_crops_are_the_same_for_all_seeds_and_each_pass_is_augmented_anew() -> None:
    batches = [list(build(BASE.but(seed=seed))[1].crops(17)) for seed in (0, 1)]
    assert [len(batch) for batch in batches[0]] == [2] * 8 + [1]
    assert all(torch.equal(one, other) for one, other in zip(*batches, strict=True))
    images = torch.cat(batches[0])  # of 7 training images
    assert len({image.numpy().tobytes() for image in images}) == 17


def test_statistics_are_those_of_whole_crops_whether_or_not_the_last_epoch_is_validated(tmp_path: Path) -> None:
    """A U-Net that predicts by tiles does so in evaluation alone."""
    run = BASE.but(padding="valid", tile=16, depth=1, average="recalibrate", data={"size": 48})
    final = []
    for every in (1, 2):
        train(run.but(trainer={"check_val_every_n_epoch": every}), tmp_path / str(every), **QUIET)
        final.append(_stored(tmp_path / str(every))["state_dict"])
    assert _equal(*final)


def test_the_memory_of_the_average_is_a_fifth_of_the_steps(tmp_path: Path) -> None:
    """9 steps keep 1 - 5/9 each; a training of fewer than 5 is not averaged."""
    train(BASE.but(average="ema"), tmp_path / "null", **QUIET)
    train(BASE.but(average="ema", ema_decay=1 - 5 / 9), tmp_path / "given", **QUIET)
    assert _equal(_stored(tmp_path / "null")["state_dict"], _stored(tmp_path / "given")["state_dict"])
    assert decay_of(250) == pytest.approx(0.98)
    assert decay_of(4) == 0


def test_the_copy_shares_nothing_with_the_network() -> None:
    module, _ = build(BASE)
    average = exponential_average(module.network, 0.5)
    average.update_parameters(module.network)
    theirs = {p.data_ptr() for p in module.network.parameters()}
    assert not theirs & {p.data_ptr() for p in average.module.parameters()}


def test_none_is_neutral_in_the_hash_and_the_rest_is_in_it() -> None:
    assert BASE.but(average="none").hash == BASE.hash
    assert BASE.but(average="none", ema_decay=None).hash == BASE.hash
    assert len({BASE.but(average=average).hash for average in AVERAGES}) == len(AVERAGES)
    assert BASE.but(average="ema", ema_decay=0.9).hash != BASE.but(average="ema").hash


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"average": "ema+recalibrat"}, r"average must be one of none, .*did you mean 'ema\+recalibrate'"),
        ({"average": "ema", "ema_decay": 1.0}, "ema_decay must be at least 0 and less than 1, got 1.0"),
        ({"average": "ema", "trainer.precision": "bf16-true"}, "average='ema' needs weights and stat.*use bf16-mixed"),
        ({"average": "recalibrate", "trainer.precision": "16-true"}, "average='recalibrate' needs .* got .* 16-true"),
        ({"average": "recalibrate", "ema_decay": 0.9}, "ema_decay is of average='ema', got 0.9 with average='recal"),
    ],
)
def test_what_cannot_be_averaged_is_said_before_anything_is_written(
    settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        train(BASE.but(**settings), tmp_path / "run", **QUIET)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_without_the_trained_weights_is_named(tmp_path: Path) -> None:
    run = BASE.but(average="ema")
    with pytest.raises(Interrupted):
        train(run, tmp_path, callbacks=[At(9, terminate)], **QUIET)
    last = tmp_path / "checkpoints" / LAST
    stored = _stored(tmp_path)
    del stored["averaging"]
    torch.save(stored, last)
    digest_file(last).unlink()
    with pytest.raises(ValueError, match=f"the checkpoint in {tmp_path} holds no trained weights.*--out"):
        train(run, tmp_path, resume=True, **QUIET)
