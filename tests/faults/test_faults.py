"""The quickest faults and attacks, each a process of its own; `make faults` has more of them, `make full` all, with the
page."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

if sys.platform != "linux":
    pytest.skip("faults are brought about by fork and seen in /proc", allow_module_level=True)

from tests.faults import page
from tests.faults.attacks import ATTACKS
from tests.faults.faults import FAULTS
from tests.faults.harness import Ended, Wrong, check_ended, check_files

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "RELIABILITY.md"
QUICK = [entry.name for entry in (*FAULTS, *ATTACKS) if entry.when == "test"]


@pytest.fixture(scope="module")
def judged() -> Iterator[Callable[[str], dict[str, Any]]]:
    """Asks a process that has imported the project once, and has no thread of these tests."""
    command = [sys.executable, "-m", "tests.faults", "--serve"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def ask(name: str) -> dict[str, Any]:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(f"{name}\n")
            process.stdin.flush()
            found: dict[str, Any] = json.loads(process.stdout.readline())
            return found

        yield ask
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.parametrize("name", QUICK)
def test_it_is_bounded_and_named(name: str, judged: Callable[[str], dict[str, Any]]) -> None:
    found = judged(name)
    if found["skipped"]:
        pytest.skip(found["skipped"])
    assert not found["wrong"]


def test_every_fault_and_attack_has_a_name_and_a_number_of_its_own() -> None:
    names = [entry.name for entry in (*FAULTS, *ATTACKS)]
    assert len({*names}) == len(names)
    numbers = [fault.number for fault in FAULTS]
    assert len({*numbers}) == len(numbers)
    assert len(ATTACKS) == 44
    assert {entry.when for entry in (*FAULTS, *ATTACKS)} == {"test", "push", "full"}


def test_the_page_is_what_its_writer_makes_of_its_data_and_has_every_fault() -> None:
    """It may say that something failed: that is for `make faults` to refuse, and for the page not to hide."""
    found = json.loads(page.beside(PAGE).read_text(encoding="utf-8"))
    assert PAGE.read_text(encoding="utf-8") == page.write(found), "python -m tests.faults --record docs/RELIABILITY.md"
    assert [fault["number"] for fault in found["faults"]] == [fault.number for fault in FAULTS]
    for part, entries in (("faults", FAULTS), ("attacks", ATTACKS)):
        assert [(one["name"], one["does"]) for one in found[part]] == [(entry.name, entry.does) for entry in entries]
    statuses = {one["status"] for part in ("faults", "attacks") for one in found[part]} - {
        None,
        137,
    }  # 137: it was killed
    table = (ROOT / "docs" / "exit-codes.md").read_text(encoding="utf-8")
    assert statuses <= {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}


def test_what_security_md_names_is_tried() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    shown = [row.split("|")[3] for row in text.splitlines() if row.startswith("| ")][1:]
    named = [name for cell in shown for name in re.findall(r"`([^`]+)`", cell)]
    names = [entry.name for entry in (*FAULTS, *ATTACKS)]
    for name in named:
        is_file, is_target = (ROOT / name).is_file(), name.startswith("make ")
        assert is_file or is_target or any(one.startswith(name) for one in names), name
    unnamed = [attack.name for attack in ATTACKS if not any(attack.name.startswith(name) for name in named)]
    assert {name.partition(":")[0] for name in unnamed} <= {"the same"}
    assert f"{len(ATTACKS)} attacks" in text


def test_a_page_says_what_failed_and_what_was_not_tried() -> None:
    one = {"name": "a | <b>", "does": "x", "status": None, "seconds": 1.0, "took": 1.0, "real": False, "ended": ""}
    speed = {"slow": [], "slowest_s": 0.5, "per_s": 9}
    found = {
        "command": "c",
        "commit": "0123456789abcdef",
        "machine": "m",
        "faults": [one | {"number": 1, "wrong": "it hung\nfor ever", "skipped": ""}],
        "attacks": [one | {"wrong": "", "skipped": "no compiler"}],
        "kills": [{"name": "k", "kills": 3, "met": 2, "steps": [1, 2], "wrong": "differs"}],
        "fuzz": {
            "seed": 1,
            "count": 5,
            "commit": "0" * 40,
            "kinds": {"png": {"inputs": 5, "read": 3, "refused": 1, "uncaught": ["x"], **speed}},
        },
    }  # fmt: skip
    text = page.write(found)
    assert "0 of 1 faults bounded and named, 0 of 1 attacks succeed, 0 of 3 kills bit-equal, 5 random inputs" in text
    assert "| **no:** it hung for ever |" in text
    assert "not tried: no compiler" in text
    assert "a \\| &lt;b>" in text
    assert "no: differs" in text
    assert "1 could not be brought about" in text


@pytest.mark.parametrize(
    ("ended", "wrong"),
    [
        (Ended(2, 1.0, "error: a.png is damaged"), ""),
        (Ended(None, 60.0, ""), "hung"),
        (Ended(1, 1.0, "error: a.png is damaged"), "exit status 1"),
        (Ended(2, 1.0, "Traceback (most recent call last):\nerror: a.png is damaged"), "a traceback"),
        (Ended(2, 1.0, "error: a file is damaged"), "does not say"),
        (Ended(2, 61.0, "error: a.png is damaged"), "61 s"),
    ],
)
def test_the_harness_sees_what_is_not_bounded_and_named(ended: Ended, wrong: str) -> None:
    if not wrong:
        check_ended(ended, 2, r"^error: a\.png")
        return
    with pytest.raises(Wrong, match=wrong):
        check_ended(ended, 2, r"^error: a\.png")


def test_the_harness_sees_what_is_left(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,step\n0,1\n1,2\n")
    assert check_files(tmp_path) == 0
    (tmp_path / ".last.ckpt.1.abcdefgh.tmp").touch()
    check_files(tmp_path, stale=True)
    with pytest.raises(Wrong, match="left behind"):
        check_files(tmp_path)
    (tmp_path / "metrics.csv").write_text("epoch,step\n0,1\n2,2\n")
    with pytest.raises(Wrong, match="has the epochs"):
        check_files(tmp_path, stale=True)
