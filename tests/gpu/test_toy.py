"""The script of `make gpu`, which is to work the first time that a GPU is at hand."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.gpu import __main__ as gpu

ROOT = Path(__file__).parents[2]


def test_the_bundle_script_parses_and_its_packages_are_pinned() -> None:
    script = ROOT / "tests" / "gpu" / "bundle.sh"
    subprocess.run(["bash", "-n", script], check=True)
    names = script.read_text(encoding="utf-8").partition("packages=(")[2].partition(")")[0].split()
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().replace("-", "_").splitlines()
    assert [n for n in names if not any(line.startswith(f"{n.lower().replace('-', '_')}==") for line in pinned)] == []


def test_parts_that_fail_and_that_hang_are_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "BUNDLE", tmp_path)
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "carried-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried.py", "")
    (hung,), seconds = gpu.run_part("crfs", 0.2, toy=True)
    assert hung["failed"].startswith("not done after 0 s") and seconds < 10
    assert (tmp_path / "site" / "carried.py").is_file() and str(tmp_path / "site") in gpu.environment(True)[
        "PYTHONPATH"
    ]
    (failed,), _ = gpu.run_part("nothing", 20, toy=True)
    assert "exit status 2" in failed["failed"] and "invalid choice" in failed["failed"]
    text = gpu.page({"device": "CPU"}, "the command", {"crfs": ([{"ms": 1.5, "CRF": "dense"}, failed], 3.0)}, str.upper)
    assert "its numbers say nothing" in text and "| 1.5 | dense |" in text
    assert "**Failed:** exit status 2" in text


@pytest.mark.slow
def test_the_whole_script_at_toy_size(tmp_path: Path) -> None:
    out = tmp_path / "toy.md"
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu", "--toy", "--only", "tests", "crfs", "waiting", "two", "--out", out],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    text = out.read_text(encoding="utf-8")
    assert done.returncode == 0, text
    assert "Failed" not in text and "| dense | 24x32 |" in text and "times the throughput" in text


@pytest.mark.slow
def test_a_worker_times_rounds_when_asked() -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.gpu.throughput", "U-Net", "--toy"]
    done = subprocess.run(command, cwd=ROOT, input="go\ngo\n", capture_output=True, text=True, check=True, timeout=200)
    about, *rounds = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert about["flops"] > 0 and len(rounds) == 2 and all(one["images/s"] > 0 for one in rounds)
