"""A terminal that knows ASCII alone makes no command fail, and no file depends on it."""

import ast
import importlib
import io
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile import write_hostile

import experiments
from experiments.grids.study import Study
from experiments.shell.command import forgiving_output
from experiments.shell.files import write_atomic

ROOT = Path(__file__).parents[2]
ASCII = [
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},  # else Python takes UTF-8 for the locale C
]
NAME = "größe ±"
TINY = "--data shapes --data.size 32 --data.length 4 --data.batch_size 2 --model.width 2 --model.depth 1"
# The figures take ten seconds.
REPORT = (
    "from experiments import report; from experiments.reports import figures; figures.FIGURES.clear(); report.main()"
)


def python_files() -> Iterator[Path]:
    for package in ("experiments", "lightning_modules", "datamodules"):
        yield from (ROOT / package).rglob("*.py")


COMMANDS = [
    ".".join(path.relative_to(ROOT / "experiments").with_suffix("").parts)
    for path in sorted((ROOT / "experiments").rglob("*.py"))
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    and path.stem != "process"  # which nobody types, and which answers in ASCII
    and "templates" not in path.parts  # of other programs, tested where they are written
]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_begins_with_forgiving_output(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"experiments.{name}")
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stdout)
    monkeypatch.setattr("sys.argv", [name, "--help"])
    start = getattr(module, "STUDY", None)
    with pytest.raises(SystemExit) as stop:
        if isinstance(start, Study):
            start.command_line(f"{NAME}\n")
        else:
            module.main()
    assert stop.value.code == 0 and stdout.errors == "backslashreplace"


def test_there_are_commands() -> None:
    assert {"train", "report", "explain", "search_crf", "soft_segment", "sync", "dashboard", "grids.cell"} <= set(
        COMMANDS
    )
    studies = {info.name for info in pkgutil.iter_modules(experiments.__path__) if info.name.startswith("ablate_")}
    assert studies < set(COMMANDS)


def test_what_a_stream_cannot_print_is_replaced_and_other_streams_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with pytest.raises(UnicodeEncodeError):
        print("±", flush=True)
    forgiving_output()
    print("a ± \udcff", flush=True)
    assert raw.getvalue() == b"a \\xb1 \\udcff\n"
    monkeypatch.setattr("sys.stdout", None)  # of a process without one
    forgiving_output()


def run(arguments: list[str], environment: dict[str, str], cwd: Path) -> "subprocess.CompletedProcess[bytes]":
    for name in ("LANG", "LC_CTYPE", "PYTHONUTF8"):
        environment = {name: ""} | environment
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, check=False)


def test_a_report_succeeds_and_its_files_are_the_same(tmp_path: Path) -> None:
    folder = write_hostile(tmp_path / "x")
    written, shown = [], []
    for environment in ({"PYTHONIOENCODING": "utf-8", "PYTHONUTF8": "1"}, *ASCII):
        done = run(["-c", REPORT, "x"], environment, tmp_path)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        written.append({path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()})
        shown.append(done.stdout)
    assert written[0] == written[1] == written[2]
    assert "±" in written[0]["table.md"].decode() and "±" in shown[0].decode()
    for printed in shown[1:]:
        assert printed.isascii() and rb"\xb1" in printed


def test_a_training_into_a_folder_of_any_name_succeeds(tmp_path: Path) -> None:
    flags = [*TINY.split(), "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--out", NAME]
    done = run(["-m", "experiments.train", *flags], ASCII[0], tmp_path)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert done.stdout.isascii() and rb"gr\xf6\xdfe \xb1: test/miou" in done.stdout
    assert (tmp_path / NAME / "result.json").exists()


def test_a_name_that_is_no_text_is_written_as_its_number(tmp_path: Path) -> None:
    write_atomic(tmp_path / "x", "a \udcff ±")
    assert (tmp_path / "x").read_bytes() == b"a \\udcff \xc2\xb1"


def without_encoding(source: str) -> list[str]:
    """Calls that read or write text in the encoding of the locale."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        mode = [ast.unparse(value) for value in (*node.args, *([given["mode"]] if "mode" in given else []))]
        text = called.split(".")[-1] in ("read_text", "write_text") or (
            called.split(".")[-1] in ("open", "fdopen", "NamedTemporaryFile", "TextIOWrapper")
            and called not in ("Image.open", "webbrowser.open", "os.open", "archive.open", "library.open")
            and not any(value.strip("'\"") in ("rb", "wb", "ab", "r+b", "w+b", "xb") for value in mode)
        )
        text |= called.startswith("subprocess.") and bool({"text", "universal_newlines"} & given.keys())
        if text and "encoding" not in given:
            found.append(f"{node.lineno} {called}")
    return found


def test_every_file_and_process_is_read_and_written_in_utf8() -> None:
    found = {path.name: without_encoding(path.read_text(encoding="utf-8")) for path in python_files()}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "source",
    [
        "open(p)",
        "p.open('a+')",
        "p.read_text()",
        "p.write_text(t)",
        "subprocess.run(c, text=True)",
        "os.fdopen(h, 'w')",
    ],
)
def test_the_test_before_sees_what_is_amiss(source: str) -> None:
    assert without_encoding(source)
    assert not without_encoding(source[:-1] + ", " * (not source.endswith("()")) + "encoding='utf-8')")
    assert not without_encoding("p.open('rb'); open(p, mode='wb'); Image.open(f)")
