"""The arithmetic of a training on many GPUs, by hand."""

from pathlib import Path

import pytest

from experiments import plan_cluster
from experiments.machines.plan import Assumed, Network, Plan, plans, told

ASSUMED = Assumed(rate=50.0, gmac=50.0, tflops=300.0, bandwidth=1e10, latency=1e-5, hidden=0.5, kept=0.8, price=2.0)
NETWORK = Network("a network", 769, 100.0, 25_000_000)


def test_a_training() -> None:
    plan = Plan(NETWORK, 8, 64, 36_000, ASSUMED)
    assert plan.rate == 25 and plan.utilisation == pytest.approx(0.05)  # 6 x 100e9 x 25 / 300e12
    assert plan.compute == pytest.approx(0.32)  # 8 images by 25 a second
    assert plan.exchange == pytest.approx(2 * 7 * (1e8 / 8 / 1e10 + 1e-5))  # 17.64 ms
    assert plan.step == pytest.approx((0.32 + 0.00882) / 0.8)
    assert plan.hours == pytest.approx(36_000 * 0.411025 / 3600) and plan.efficiency == pytest.approx(0.32 / 0.411025)


def test_one_gpu_exchanges_nothing() -> None:
    assert Plan(NETWORK, 1, 16, 1, ASSUMED).exchange == 0


def test_no_gpu_is_without_an_image() -> None:
    found = plans(NETWORK, 64, [16, 64, 12], [10, 20], ASSUMED)
    assert [(p.steps, p.batch, p.gpus) for p in found[:7]] == [
        (10, 16, 1),
        (10, 16, 8),
        (10, 16, 16),
        (10, 64, 1),
        (10, 64, 8),
        (10, 64, 64),
        (10, 12, 1),
    ]
    assert {p.gpus for p in found if p.batch == 12} == {1, 12}
    assert {p.gpus for p in plans(NETWORK, 4, [16], [10], ASSUMED)} == {1, 4}


def test_the_formulas_have_the_numbers_of_the_last_row() -> None:
    plan = Plan(NETWORK, 8, 64, 36_000, ASSUMED)
    text = told([plan], 64)
    assert "| 769 | 64 | 36,000 | 774 | 8 | 155.7 | 78% | 4.1 | 33 | 66 | 46.7 |" in text
    for part in ("= 64 / 8 / 25.0 = 320.0 ms", "2 x 7 x (100,000,000 / 8 / 1e+10 + 1e-05) = 17.6 ms"):
        assert part in text
    assert "floor(64 / n) x 24 / hours = 8 x 5.8 = 46.7" in text


def test_the_command_writes_its_sections(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--crops 65 --batches 16 --steps 10 --cells 10 --machines 3 --save-every 10 --draws 1 --record"
    plan_cluster.main([*flags.split(), str(tmp_path / "scaling.md")])
    text = (tmp_path / "scaling.md").read_text()
    assert text.count("<!-- begin ") == text.count("<!-- end ") == 2
    assert "DeepLab v3+ with Xception-65 of 41,048,755 parameters" in text and "10 cells of" in text
    assert "| 10 min, none queued |" in capsys.readouterr().out


@pytest.mark.parametrize(("flag", "value", "said"), [("--kept", "1.5", "a share"), ("--price", "0", "above 0")])
def test_a_wrong_assumption_is_refused(flag: str, value: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        plan_cluster.main([flag, value])
    assert said in capsys.readouterr().err
