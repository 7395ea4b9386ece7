"""A few hundred inputs of each kind of `python -m tests.fuzz`, and what it does about those that go wrong."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from importlib import import_module
from pathlib import Path

import pytest

from tests.fuzz import harness

ROOT = Path(__file__).parent.parent
COUNTS = {"images": 150, "texts": 200, "stored": 150, "crf": 200, "flags": 40}


@pytest.mark.parametrize("kind", harness.available())
def test_broken_input_is_read_or_refused_by_name(kind: str, tmp_path: Path) -> None:
    one, total = import_module(f"tests.fuzz.{kind}").one, harness.Tally()
    for index in range(COUNTS[kind]):
        total.add(harness.attempt(one, kind, 1, index, tmp_path))
    assert total.inputs == total.read + total.refused == COUNTS[kind] and not total.slow, total.record()
    assert total.read and total.refused  # both sides are reached
    assert not list(tmp_path.iterdir())


def test_an_input_is_the_same_again() -> None:
    assert harness.rng_of(0, "texts", 7).random() == random.Random("0/texts/7").random()
    assert harness.rng_of(0, "texts", 7).random() != harness.rng_of(1, "texts", 7).random()


def test_shares_add_up() -> None:
    assert sum(harness.shares(harness.available(), 20_001).values()) == 20_001
    assert harness.shares(["flags"], 17) == {"flags": 17}


KIND = """
import os, random, signal, time
NAME = "bad"
def one(rng, folder):
    drawn = rng.random()
    index = next(i for i in range(100) if random.Random(f"0/bad/{i}").random() == drawn)
    (folder / "left").write_text("x")
    if index == 3:
        raise KeyError("three")
    if index == 5:
        os.kill(os.getpid(), signal.SIGSEGV)
    if index == 6:
        end = time.process_time() + 1.1
        while time.process_time() < end:
            pass
    return "refused" if index % 2 else "read"
"""


def bad_checkout(folder: Path) -> Path:
    """A folder from which `python -m tests.fuzz` has one kind, whose inputs 3, 5 and 6 go wrong."""
    package = folder / "tests" / "fuzz"
    package.mkdir(parents=True)
    for name in ("__main__.py", "harness.py"):
        text = (ROOT / "tests" / "fuzz" / name).read_text()
        (package / name).write_text(text.replace('"flags": 5}', '"bad": 1}'))
    (package / "bad.py").write_text(textwrap.dedent(KIND))
    return folder


def command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "tests.fuzz", "--only", "bad", *flags]


def test_what_goes_wrong_is_named_counted_and_an_exit_status(tmp_path: Path) -> None:
    done = subprocess.run(
        command("--count", "12"), cwd=bad_checkout(tmp_path), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1, done.stderr
    words = done.stdout.splitlines()[1].split()
    assert words[:6] == ["bad", "12", "6", "4", "2", "1"], done.stdout  # 3 and 5 uncaught, 6 read and slow
    assert "1 x KeyError\n  --only bad --first 3 --count 1: 'three'" in done.stdout
    assert "1 x SIGSEGV\n  --only bad --first 5 --count 1" in done.stdout
    assert "s  --only bad --first 6 --count 1" in done.stdout
    good = subprocess.run(
        command("--first", "7", "--count", "5"), cwd=tmp_path, capture_output=True, timeout=120, check=False
    )
    assert good.returncode == 0


@pytest.mark.usefixtures("heard")
def test_it_can_be_interrupted(tmp_path: Path) -> None:
    folder = bad_checkout(tmp_path)
    text = (folder / "tests/fuzz/bad.py").read_text()
    (folder / "tests/fuzz/bad.py").write_text(
        text.replace('    (folder / "left")', '    time.sleep(0.2)\n    (folder / "left")')
    )
    process = subprocess.Popen(
        command("--first", "20", "--count", "80"),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    for _ in range(300):
        if len(list(tmp_path.glob("fuzz-*/input"))) == 2:
            break
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "stopped" in err and "bad" in out
