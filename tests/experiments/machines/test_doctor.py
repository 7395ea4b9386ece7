"""experiments.doctor: what it says, what it ends with, and that nothing stops it."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import doctor
from experiments.machines import finding
from experiments.machines.finding import Check, Finding, examined, ok, warning, wrong
from experiments.shell.ending import CANNOT_WRITE, USAGE

ROOT = Path(__file__).parents[3]


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        doctor.main(argv)
    assert isinstance(stop.value.code, int)
    return stop.value.code, capsys.readouterr().out


def test_a_check_that_fails_or_hangs_is_a_finding() -> None:
    def fails() -> Finding:
        raise ZeroDivisionError("by\nzero")

    def ends() -> Finding:
        sys.exit(3)

    never = threading.Event()
    hangs: Callable[[], Finding] = lambda: ok(str(never.wait()))
    checks = [Check("a", fails), Check("b", ends), Check("c", hangs, "look after it", CANNOT_WRITE)]
    checks += [Check("d", lambda: ok("there"), "look"), Check("e", lambda: [ok("1"), Finding("ok", "2", about="f")])]
    found = examined(checks, seconds=0.2)
    never.set()
    assert [name for name, _ in found] == ["a", "b", "c", "d", "e", "f"]
    told = dict(found)
    assert told["a"].state == "warning" and "ZeroDivisionError: by zero" in told["a"].said
    assert "SystemExit: 3" in told["b"].said
    assert told["c"] == wrong("no answer within 0.2 s", "look after it", CANNOT_WRITE)
    assert told["d"] == ok("there")


def test_what_is_not_ok_has_a_mend_and_what_is_wrong_a_status() -> None:
    assert warning("a", "b").status == 0 and wrong("a", "b").status == USAGE
    assert finding.ok("a").mend == ""


def test_it_says_each_check_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "runs" / "deep"
    status, text = shown(capsys, "--out", str(folder), "--json")
    told = json.loads(text)
    states = {row["name"]: row["state"] for row in told["checks"]}
    assert {"torch", "torchvision", "packages", "gpu", "shared memory", "locks", "clock", "W&B"} <= {*states}
    assert {*states.values()} <= {"ok", "warning", "wrong"}
    assert status == told["status"] and (status == 0) == ("wrong" not in states.values())
    assert all(row["mend"] for row in told["checks"] if row["state"] != "ok")
    assert not list(tmp_path.rglob("*seglab*")) and not folder.exists()

    monkeypatch.setenv("LOCAL_RANK", "1")
    (tmp_path / "file").touch()
    status, text = shown(capsys, "--out", str(tmp_path / "file" / "runs"))
    lines = text.splitlines()
    assert len(lines) >= 20 and status in (USAGE, CANNOT_WRITE)
    assert any(line.startswith("wrong    writing: ") and "choose another folder with --out" in line for line in lines)
    assert any(
        line.startswith("wrong    launcher: ") and "-> unset " in line and "LOCAL_RANK" in line for line in lines
    )
    assert " wrong, in " in lines[-1]


def test_it_runs_where_nothing_is_installed(tmp_path: Path) -> None:
    """-S: the interpreter knows no package."""
    command = [sys.executable, "-S", "-m", "experiments.doctor", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == USAGE and done.stderr == ""
    assert "wrong    torch: No module named 'torch' -> python -m pip install --requirement" in done.stdout
    assert "ok       locks: " in done.stdout
