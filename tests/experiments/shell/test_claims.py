"""Two machines in one folder, as on a network file system whose locks are granted twice."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.shell import claims, files
from experiments.shell.claims import Claim
from experiments.shell.ending import InUseError
from experiments.shell.files import locked, write_json


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT", 0.05)
    monkeypatch.setattr(claims, "SILENCE", 0.6)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes this process one of another machine; the system's lock keeps nobody out, as on NFS without locks."""
    monkeypatch.setattr(files, "_take", lambda file: None)
    return lambda host: monkeypatch.setattr(socket, "gethostname", lambda: host)


def test_a_second_machine_is_kept_out_as_long_as_the_first_one_lives(tmp_path: Path, on: Callable[[str], None]) -> None:
    on("one")
    with locked(tmp_path / "run"):
        on("two")
        said = rf"run is in use by process {os.getpid()} on one, attempt 1: wait for it"
        with pytest.raises(InUseError, match=said), locked(tmp_path / "run"):
            pass
        write_json(tmp_path / "run" / "result.json", {"of": "one"})
    with locked(tmp_path / "run"):
        pass
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == {"of": "one"}
    assert [path.name for path in (tmp_path / "run").iterdir() if "claim" in path.name] == []


def test_one_that_is_gone_is_replaced_and_writes_nothing_when_it_comes_back(
    tmp_path: Path, on: Callable[[str], None], capfd: pytest.CaptureFixture[str]
) -> None:
    on("one")
    with locked(tmp_path):
        write_json(tmp_path / "state.json", {"of": "one"})
        (first,) = files._claims
        first._ended.set()  # its machine is suspended: no sign of life
        time.sleep(0.1)
        on("two")
        with locked(tmp_path):
            assert "on one has given no sign of life for 1 s; taken over" in capfd.readouterr().err
            second = files._claims.pop()
            assert second.attempt == 2
            with pytest.raises(InUseError, match=r"taken over by process \d+ on two, .* has not written"):
                write_json(tmp_path / "state.json", {"of": "one, again"})
            files._claims[:] = [second]
            write_json(tmp_path / "state.json", {"of": "two"})
        files._claims.append(first)
    assert json.loads((tmp_path / "state.json").read_text()) == {"of": "two"}


@pytest.mark.parametrize("another", [False, True])
def test_one_that_comes_back_when_the_new_owner_is_done_writes_nothing(
    another: bool, tmp_path: Path, on: Callable[[str], None]
) -> None:
    on("one")
    first = Claim(tmp_path)
    first._ended.set()
    time.sleep(0.1)
    on("two")
    Claim(tmp_path).release()
    if another:  # which begins with the same number as the first
        on("three")
        assert Claim(tmp_path).attempt == first.attempt
        with pytest.raises(FileNotFoundError):
            first._beat()
    with pytest.raises(InUseError, match=f"taken over by {'process .* on three' if another else 'another process'}"):
        first.check()


def test_of_two_that_take_over_at_the_same_time_one_does(tmp_path: Path, on: Callable[[str], None]) -> None:
    on("gone")
    Claim(tmp_path)._ended.set()
    time.sleep(0.1)
    on("here")
    ended: list[str] = []

    def take() -> None:
        try:
            ended.append(f"attempt {Claim(tmp_path).attempt}")
        except InUseError:
            ended.append("in use")

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ended) == ["attempt 2", "in use", "in use", "in use"]


def test_who_waits_gets_it_when_it_is_free(tmp_path: Path) -> None:
    order: list[str] = []

    def hold() -> None:
        with locked(tmp_path):
            order.append("first")
            time.sleep(0.7)
            order.append("left")

    holder = threading.Thread(target=hold)
    holder.start()
    while not order:
        time.sleep(0.01)
    with locked(tmp_path, patience=20):
        order.append("second")
    holder.join()
    assert order == ["first", "left", "second"]


def test_a_killed_process_of_this_machine_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / ".claim-3").write_text(f"process 1 on {socket.gethostname()} 7", encoding="utf-8")
    started = time.monotonic()
    with locked(tmp_path):
        assert files._claims[-1].attempt == 4
    assert time.monotonic() - started < claims.SILENCE
