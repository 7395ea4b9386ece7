"""A logger is one entry of a table: the flag, its help, what it needs, what it makes and how to see what it logged."""

import argparse
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger

from experiments.runs.training import Tracking
from experiments.tracking.logger import tracker
from experiments.tracking.loggers import LOGGERS, Kind, Logging, add_logging


def paper(logging: Logging, settings: dict[str, Any], out: Path) -> Tracking:
    return Tracking([CSVLogger(out)])


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOGGERS, "paper", Kind("on paper", make=paper, seen=lambda out: f"read {out}"))


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    add_logging(parser, int)
    return parser


def test_a_logger_is_one_entry(entry: None, tmp_path: Path) -> None:
    assert "paper: on paper" in flags().format_help()
    logging = Logging.of(flags().parse_args(["--logger", "paper"]))
    (logger,) = tracker(logging)({}, tmp_path).loggers
    assert isinstance(logger, CSVLogger) and logging.next_step(tmp_path) == f"read {tmp_path}"


def test_a_logger_whose_package_is_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOGGERS, "paper", Kind("on paper", package="no_such_package"))
    with pytest.raises(ValueError, match=r'--logger paper needs a package: pip install -e "\.\[no_such_package\]"'):
        Logging("paper")


@pytest.mark.parametrize("name", LOGGERS)
def test_every_logger_says_what_it_is(name: str) -> None:
    assert LOGGERS[name].help and LOGGERS[name].help in flags().format_help().replace("\n" + 24 * " ", " ")
