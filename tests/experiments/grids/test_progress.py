"""The line of a grid that runs: one that is rewritten in a terminal, several in a log."""

import io
import re

import pytest
from rich.console import Console

from experiments.grids import progress
from experiments.grids.progress import Progress


def shown(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> str:
    """What is printed of a line every second and, after 20 of them, of a cell that is done."""
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=40, _environ={"TERM": "xterm"})
    with Progress(console) as line:
        for second in range(61):
            line.show(lambda second=second: f"{second} [of] 60")  # type: ignore[misc]
            if second == 20:
                console.print("a cell is done")
            now += 1
    return stream.getvalue()


def test_a_log_has_a_line_every_half_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, terminal=False) == "0 [of] 60\na cell is done\n30 [of] 60\n60 [of] 60\n"


def test_a_terminal_has_one_line_below_what_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = shown(monkeypatch, terminal=True)
    assert raw.index("20 [of] 60") < raw.index("a cell is done") < raw.index("22 [of] 60")
    screen, row = [""], 0  # what is left of it, by the two codes that move and erase
    for part in re.split(r"(\n|\r|\x1b\[2K|\x1b\[1A)", re.sub(r"\x1b\[(?:[\d;]*m|\?25[lh])", "", raw)):
        if part == "\n":
            row += 1
            screen += [""] * (row == len(screen))
        elif part == "\x1b[1A":
            row -= 1
        elif part == "\x1b[2K":
            screen[row] = ""
        else:
            screen[row] += part.strip("\r")
    assert [line for line in screen if line] == ["a cell is done"]
    assert "\n0 [of]" not in raw and "1 [of] 60" not in re.findall(r"\d+ \[of\] 60", raw)
