"""The energy of a training: from counters alone, summed over its attempts, and without a trace in its numbers."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from interrupt import BASE, QUIET, At, outcome, terminate, unequal

from experiments.evidence import schema
from experiments.runs import energy, training
from experiments.runs.energy import Energy, Meter
from experiments.runs.training import train
from experiments.shell.ending import Interrupted

SHORT = BASE.but(trainer={"max_epochs": 2})
NEEDS = pytest.mark.extra("energy", "codecarbon")
TURN = 1_000_000_000  # microjoules after which the counters made here begin again


def domain(powercap: Path, name: str, kind: str, microjoules: int) -> Path:
    """A domain of RAPL as the kernel shows it; returns the file of its counter."""
    folder = powercap / name
    folder.mkdir(parents=True)
    for file, text in (("name", kind), ("energy_uj", microjoules), ("max_energy_range_uj", TURN)):
        (folder / file).write_text(f"{text}\n", encoding="utf-8")
    return folder / "energy_uj"


def add(counter: Path, joules: float) -> None:
    """What is used by a package, whose counter begins again where it is full."""
    counter.write_text(f"{(int(counter.read_text()) + round(1e6 * joules)) % TURN}\n", encoding="utf-8")


@pytest.fixture
def powercap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a package, its cores and its DRAM, which a training reads instead of this one."""
    folder = tmp_path / "powercap"
    domain(folder, "intel-rapl:0", "package-0", 990_000_000)
    domain(folder, "intel-rapl:0:0", "core", 1_000)
    domain(folder, "intel-rapl:0:2", "dram", 5_000)
    domain(folder, "intel-rapl:1", "psys", 7_000)
    monkeypatch.setattr(training, "Energy", lambda: Energy(folder))
    return folder


def burn(powercap: Path, *, package: float = 3.0, dram: float = 0.5) -> Callable[..., None]:
    """What a moment of a training does: it uses joules."""

    def use(*arguments: Any) -> None:
        add(powercap / "intel-rapl:0" / "energy_uj", package)
        add(powercap / "intel-rapl:0:2" / "energy_uj", dram)

    return use


def stored(out: Path) -> Any:
    return schema.read(out / "result.json", schema.Result).get("energy")


# ---- counters


@NEEDS
def test_counters_count_up_and_begin_again(powercap: Path) -> None:
    meter = Meter([], powercap)
    assert meter.counted == {"cpu": "1 CPU package, whatever else ran", "dram": "all DRAM, whatever else ran"}
    assert meter.missing == ["GPU (trained on no NVIDIA GPU)"]
    assert meter.total() == {"cpu": 0.0, "dram": 0.0}
    for _ in range(4):  # 10 J before the counter of the package is full
        burn(powercap, package=6.0)()
        assert meter.read() == []
    assert meter.total() == pytest.approx({"cpu": 24.0, "dram": 2.0})


@NEEDS
def test_each_package_and_the_dram_of_each_count_once(tmp_path: Path) -> None:
    counters = {
        name: domain(tmp_path, name, kind, start)
        for name, kind, start in (
            ("intel-rapl:0", "package-0", 10_000_000),
            ("intel-rapl:0:0", "dram", 20_000_000),
            ("intel-rapl:1", "package-1", 400_000_000),
            ("intel-rapl:1:0", "dram", 60_000_000),
            ("intel-rapl-mmio:0", "package-0", 10_000_000),
        )
    }
    meter = Meter([], tmp_path)
    assert meter.counted["cpu"] == "2 CPU packages, whatever else ran"
    for number, counter in enumerate(counters.values()):
        add(counter, 2.0**number)
    meter.read()
    assert meter.total() == pytest.approx({"cpu": 5.0, "dram": 10.0})


@NEEDS
@pytest.mark.parametrize(("second", "expected"), [(50.0, 50.0), (80.0, 130.0)], ids=["a mirror", "a package"])
def test_dies_that_show_one_counter_are_one_package(second: float, expected: float, tmp_path: Path) -> None:
    first = domain(tmp_path, "intel-rapl:0", "package-0-die-0", 123_456_789)
    other = domain(tmp_path, "intel-rapl:1", "package-0-die-1", 123_456_800)
    meter = Meter([], tmp_path)
    add(first, 50.0)
    add(other, second)
    meter.read()
    assert meter.total() == pytest.approx({"cpu": expected})


@NEEDS
def test_a_part_of_which_one_counter_cannot_be_read_is_not_counted(powercap: Path) -> None:
    domain(powercap, "intel-rapl:2", "package-1", 1).unlink()
    (powercap / "intel-rapl:2" / "energy_uj").mkdir()  # root reads every file, and this is none
    meter = Meter([], powercap)
    assert [*meter.counted] == ["dram"]
    assert meter.missing[0] == f"CPU package ({powercap}/intel-rapl:2/energy_uj cannot be read (root reads it))"


@NEEDS
def test_a_counter_that_begins_again_at_an_unknown_place_is_dropped(powercap: Path) -> None:
    meter = Meter([], powercap)
    (powercap / "intel-rapl:0" / "max_energy_range_uj").unlink()
    meter = Meter([], powercap)
    burn(powercap, package=20.0)()
    assert meter.read() == ["cpu"]
    assert meter.total() == pytest.approx({"dram": 0.5}) and [*meter.counted] == ["dram"]


class Nvml:
    """Stands in for the library of NVIDIA's driver: two GPUs, by their UUIDs, with millijoules."""

    class NVMLError(Exception):
        pass

    NVMLError_NotSupported = NVMLError

    def __init__(self) -> None:
        self.used: dict[bytes, int | None] = {b"GPU-a": 7_000_000, b"GPU-b": 1_000}
        self.nvmlDeviceGetHandleByUUID = self.handle
        self.nvmlDeviceGetTotalEnergyConsumption = self.total
        self.nvmlDeviceGetName = lambda handle: "NVIDIA Thing"
        self.nvmlDeviceGetUUID = lambda handle: handle
        self.nvmlDeviceGetMemoryInfo = lambda handle: SimpleNamespace(total=1)
        self.nvmlDeviceGetEnforcedPowerLimit = lambda handle: 300_000
        self.nvmlDeviceGetPowerUsage = lambda handle: 250_000  # which would be an estimate

    def handle(self, uuid: bytes) -> bytes:
        if uuid not in self.used:
            raise self.NVMLError("Not Found")
        return uuid

    def total(self, handle: bytes) -> int:
        if (used := self.used[handle]) is None:
            raise self.NVMLError("Not Supported")
        return used


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    from codecarbon.core import gpu_nvidia

    monkeypatch.setattr(gpu_nvidia, "pynvml", made := Nvml())
    return made


@NEEDS
def test_the_gpus_of_the_training_count_and_no_other(nvml: Nvml, tmp_path: Path) -> None:
    one, both = Meter(["GPU-a"], tmp_path), Meter(["GPU-a", "GPU-b"], tmp_path)
    nvml.used = {b"GPU-a": 7_500_000, b"GPU-b": 3_000}
    for meter, joules in ((one, 500.0), (both, 502.0)):
        assert meter.read() == []
        assert meter.total() == pytest.approx({"gpu": joules})
    assert one.counted == {"gpu": "1 x NVIDIA Thing, whatever else ran on it"}
    assert both.counted == {"gpu": "2 x NVIDIA Thing, whatever else ran on them"}
    assert one.missing == [f"CPU package ({tmp_path} has none)", f"DRAM ({tmp_path} has none)"]


@NEEDS
def test_no_power_stands_in_for_a_counter_of_a_gpu(nvml: Nvml, tmp_path: Path) -> None:
    nvml.used[b"GPU-b"] = None
    assert Meter(["GPU-a", "GPU-b"], tmp_path).missing[2] == "GPU (NVIDIA Thing has no counter of energy)"
    assert "NVML does not know GPU-c" in Meter(["GPU-c"], tmp_path).missing[2]
    for later in (None, 6_000_000):  # it fails, or begins again with the driver
        meter = Meter(["GPU-a"], tmp_path)
        nvml.used[b"GPU-a"] = later
        assert meter.read() == ["gpu"] and meter.total() == {}
        nvml.used[b"GPU-a"] = 7_000_000


@NEEDS
def test_without_the_library_of_the_driver_no_gpu_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from codecarbon.core import gpu_nvidia

    monkeypatch.setattr(gpu_nvidia, "pynvml", None)
    assert "NVML" in Meter(["GPU-a"], tmp_path).missing[2]


# ---- trainings


@NEEDS
def test_a_training_stores_what_it_used_and_nothing_else_changes(
    powercap: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    train(SHORT, tmp_path / "without", **QUIET)
    capfd.readouterr()
    moments = At(6, burn(powercap)), At(9, burn(powercap, package=11.0))
    train(SHORT, tmp_path / "with", energy=True, callbacks=moments, **QUIET)
    told = [line for line in capfd.readouterr().err.splitlines() if "energy" in line or "codecarbon" in line]
    counted = "1 CPU package, whatever else ran; all DRAM, whatever else ran"
    assert told == [f"energy: {counted}; no counter of GPU (trained on no NVIDIA GPU)"]
    without, measured = outcome(tmp_path / "without"), outcome(tmp_path / "with")
    assert "energy" in measured["result"] and "energy" not in without["result"]
    measured["result"].pop("energy")
    assert not unequal(without, measured)
    found = stored(tmp_path / "with")
    assert found["joules"] == pytest.approx({"cpu": 14.0, "dram": 1.0})
    assert found["counted"]["cpu"] == "1 CPU package, whatever else ran" and found["by"].startswith("codecarbon ")
    assert stored(tmp_path / "without") is None
    assert not (tmp_path / "home").exists()
    runs = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("with", "without")]
    assert runs[0] == runs[1]


@NEEDS
def test_the_test_is_not_counted(powercap: Path, tmp_path: Path) -> None:
    class Tested(energy.Callback):
        def on_test_start(self, trainer: Any, pl_module: Any) -> None:
            burn(powercap, package=100.0)()

    train(SHORT, tmp_path, energy=True, callbacks=[At(6, burn(powercap)), Tested()], **QUIET)
    assert stored(tmp_path)["joules"] == pytest.approx({"cpu": 3.0, "dram": 0.5})


@NEEDS
def test_a_resumed_training_has_the_sum_of_its_attempts(powercap: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(SHORT, tmp_path, energy=True, callbacks=[At(6, burn(powercap)), At(8, terminate)], **QUIET)
    burn(powercap, package=50.0)()  # of nobody here
    train(SHORT, tmp_path, resume=True, energy=True, callbacks=[At(4, burn(powercap, package=2.0))], **QUIET)
    assert stored(tmp_path)["joules"] == pytest.approx({"cpu": 5.0, "dram": 1.0})


@NEEDS
def test_a_part_that_one_attempt_did_not_count_is_not_stored(
    powercap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    (powercap / "intel-rapl:0:2" / "name").write_text("hidden\n")
    with pytest.raises(Interrupted):
        train(SHORT, out, energy=True, callbacks=[At(6, burn(powercap)), At(8, terminate)], **QUIET)
    (powercap / "intel-rapl:0:2" / "name").write_text("dram\n")
    train(SHORT, out, resume=True, energy=True, callbacks=[At(4, burn(powercap))], **QUIET)
    assert stored(out)["joules"] == pytest.approx({"cpu": 6.0})


@NEEDS
def test_energy_of_a_training_that_began_without_is_not_stored(
    powercap: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Interrupted):
        train(SHORT, tmp_path, callbacks=[At(8, terminate)], **QUIET)
    train(SHORT, tmp_path, resume=True, energy=True, callbacks=[At(4, burn(powercap))], **QUIET)
    assert stored(tmp_path) is None
    assert "steps before were trained without --energy" in capfd.readouterr().err


@NEEDS
def test_a_counter_that_vanishes_takes_its_part_along_and_the_training_goes_on(
    powercap: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def vanish(*arguments: Any) -> None:
        (powercap / "intel-rapl:0" / "energy_uj").unlink()

    moments = [At(5, burn(powercap)), At(8, vanish)]
    train(SHORT, tmp_path, energy=True, callbacks=moments, **QUIET)
    assert stored(tmp_path)["joules"] == pytest.approx({"dram": 0.5})
    assert [*stored(tmp_path)["counted"]] == ["dram"]
    assert capfd.readouterr().err.count("no energy of CPU package: its counter could not be read any more") == 1


@NEEDS
def test_where_nothing_can_be_measured_a_line_says_so_and_nothing_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "Energy", lambda: Energy(tmp_path / "none"))
    assert "energy" not in train(SHORT, tmp_path / "run", energy=True, **QUIET)
    none = f"{tmp_path / 'none'} has none"
    line = f"no energy: no counter of CPU package ({none}), DRAM ({none}), GPU (trained on no NVIDIA GPU)"
    assert line in capfd.readouterr().err.splitlines()
    (tmp_path / "run" / "log.txt").write_text(f"something\n{line}\n", encoding="utf-8")
    assert energy.why_none(tmp_path / "run") == line.removeprefix("no energy: ")
    assert energy.why_none(tmp_path) == "trained without --energy"


@NEEDS
def test_the_energy_of_a_gpu_is_that_of_its_training(
    nvml: Nvml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def use(*arguments: Any) -> None:
        nvml.used[b"GPU-b"] = 361_000

    monkeypatch.setattr(energy, "gpus_of", lambda trainer: ["GPU-b"])
    monkeypatch.setattr(training, "Energy", lambda: Energy(tmp_path / "none"))
    train(SHORT, tmp_path / "run", energy=True, callbacks=[At(6, use)], **QUIET)
    assert stored(tmp_path / "run")["joules"] == pytest.approx({"gpu": 360.0})


def test_a_missing_package_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    monkeypatch.setattr(energy, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'--energy needs a package: pip install -e "\.\[energy\]"'):
        train(SHORT, tmp_path / "run", energy=True, **QUIET)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changed",
    [
        *({"joules": {}}, {"joules": {"cpu": -1.0}}, {"joules": {"cpu": 1.0}, "counted": {}}, {"joules": 3}),
        *({"by": "x [@y]"}, {"joules": {"[@y]": 1.0}, "counted": {"[@y]": "z"}}),
    ],
)
def test_a_damaged_entry_is_refused(changed: dict[str, Any], tmp_path: Path) -> None:
    whole = {"joules": {"cpu": 1.0}, "counted": {"cpu": "1 CPU package"}, "by": "codecarbon 3"}
    for entry, fine in ((whole, True), (whole | changed, False)):
        result = {"status": "done", "seconds": 1.0, "epochs": 1, "energy": entry}
        (tmp_path / "result.json").write_text(json.dumps(result), encoding="utf-8")
        if fine:
            assert schema.read(tmp_path / "result.json", schema.Result)["energy"] == entry
        else:
            with pytest.raises(ValueError, match=r"result\.json energy"):
                schema.read(tmp_path / "result.json", schema.Result)
