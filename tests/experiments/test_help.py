"""`python -m experiments.train --help` explains every flag, and lists the choices of those that have some."""

import ast
import inspect
import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

from experiments.shell.catalogue import ARCHITECTURES
from experiments.train import parse_run

ROOT = Path(__file__).parents[2]


def flags(printed: str, part: str) -> dict[str, tuple[str, str]]:
    """The choices or the place-holder of each flag of a part, and the words that explain it, without its type."""
    value = r"\{.*?\}|\[ITEM,\.\.\.\]|[A-Z_]+"
    flag = rf"^  --{part}\.(\w+) ({value})(?:, --{part}\.\w+\+ (?:{value}))?(.*(?:\n    .*)*)"
    found = re.findall(flag, printed, re.MULTILINE)
    return {name: (shown, " ".join(re.split(r"\((?:type|default):", text)[0].split())) for name, shown, text in found}


def help_of(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "100")
    printed = io.StringIO()
    with redirect_stdout(printed), pytest.raises(SystemExit):
        parse_run(["--model", name, "--help"])
    return printed.getvalue()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_flag_of_a_model_is_explained(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = help_of(name, monkeypatch)
    shown = flags(printed, "model")
    parameters = inspect.signature(ARCHITECTURES[name]).parameters
    assert {*shown} == {*parameters} - {"num_classes", "ignore_index", "in_channels"}
    for flag, (value, text) in shown.items():
        assert len(text.split()) >= 3, flag
        if get_origin(kind := parameters[flag].annotation) is Literal:
            assert value == f"{{{','.join(map(str, get_args(kind)))}}}", flag


def test_every_flag_of_the_trainer_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = flags(help_of("unet", monkeypatch), "trainer")
    assert len(shown) > 20
    assert [flag for flag, (_, text) in shown.items() if len(text.split()) < 3] == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--model.upsample nearst",
            "--model.upsample must be one of transposed-2, .*, got 'nearst'; did you mean 'nearest'",
        ),
        ("--model fcn --model.stride 4", r"--model.stride must be one of 32, 16, 8, got '4' \("),
        ("--model pointrend --model.network vnet", "--model.network must be one of deconvnet, .*; did you mean 'unet'"),
        ("--model.lr null", "--model.lr expects a number, got 'None'"),
    ],
)
def test_a_wrong_choice_names_the_right_ones(flags: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse_run(flags.split())
    assert re.search(message, capsys.readouterr().err)


def test_every_flag_of_every_command_is_explained() -> None:
    flags = 0
    for path in (ROOT / "experiments").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".add_argument"):
                told = {keyword.arg: keyword.value for keyword in node.keywords}.get("help")
                assert told is not None or path.name in ("class_flags.py", "cell.py"), f"{path}:{node.lineno}"
                if isinstance(told, ast.Constant):
                    assert len(str(told.value).split()) >= 3, f"{path}:{node.lineno} {told.value}"
                flags += 1
    assert flags > 80
