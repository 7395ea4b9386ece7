"""Runs that are kept in a folder, in memory and in S3: whole files, in an order that can go on, one owner."""

import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from interrupt import BASE, QUIET, At, PowerCut, cut, outcome, unequal

from experiments.runs.training import train
from experiments.shell import store as stores
from experiments.shell.ending import CannotWriteError, InUseError
from experiments.shell.store import Store


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket of moto's server on the loopback; the environment says where, as it does for a real one."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import fsspec

        fsspec.filesystem("s3").mkdir("grids")
        yield "s3://grids"
    server.stop()


@pytest.fixture(params=["file", "memory", pytest.param("s3", marks=pytest.mark.extra("s3", "s3fs", "moto", "flask"))])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return f"{request.getfixturevalue('bucket')}/{uuid.uuid4().hex}/run"
    return {"file": str(tmp_path / "kept" / "run"), "memory": f"memory://{uuid.uuid4().hex}/run"}[request.param]


def fill(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def test_what_one_machine_sends_another_one_has(url: str, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    fill(one, run_json="{}", checkpoints__last_ckpt="weights", metrics_csv="1", _hidden="mine")
    first = Store(url)
    first.pull(one)
    first.push(one)
    second = Store(url)
    second.pull(two)
    assert content(two) == {"run.json": "{}", "checkpoints/last.ckpt": "weights", "metrics.csv": "1"}
    fill(two, metrics_csv="1 2")
    second.push(two)
    # The first one was taken for gone: it learns so before it replaces anything.
    fill(one, metrics_csv="1, late")
    with pytest.raises(InUseError, match=r"was taken over by .*: this process ends, and leaves its own in"):
        first.push(one)
    third = Store(url)
    third.pull(one)
    assert content(one)["metrics.csv"] == "1 2"
    assert third.names() == ["checkpoints/last.ckpt", "metrics.csv", "run.json"]
    assert third.near(1).at("run").has("run.json") and not third.has("result.json")


def test_a_run_that_is_cut_off_goes_on_on_a_machine_that_has_nothing_of_it(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "EVERY", 0.0)
    train(BASE, tmp_path / "whole", **QUIET)
    one, two = tmp_path / "one", tmp_path / "two"
    with pytest.raises(PowerCut):
        train(BASE, one, store=Store(url), callbacks=[At(14, cut)], **QUIET)
    train(BASE, two, store=Store(url), resume=True, **QUIET)
    assert unequal(outcome(tmp_path / "whole"), outcome(two)) == []
    three = tmp_path / "three"
    Store(url).fetch(three)
    assert _bytes(three) == _bytes(two)
    # A machine that has the finished run trains nothing.
    assert train(BASE, three, store=Store(url), resume=True, **QUIET)["status"] == "done"


def _bytes(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_checkpoints_are_sent_behind_what_they_need_and_the_result_last(tmp_path: Path) -> None:
    kept = Store(f"memory://{uuid.uuid4().hex}/run")
    sent: list[str] = []
    put = kept._put

    def note(path: Path, name: str) -> None:
        sent.append(name)
        put(path, name)

    kept._put = note  # type: ignore[method-assign]
    fill(tmp_path, result_json="{}", checkpoints__last_ckpt="w", checkpoints__previous_ckpt="v", metrics_csv="1")
    (tmp_path / "checkpoints" / "last.ckpt.sha256").write_text("0")
    kept.pull(tmp_path)
    kept.push(tmp_path)
    assert sent[1:-1] == [
        "checkpoints/previous.ckpt", "metrics.csv", "checkpoints/last.ckpt.sha256", "checkpoints/last.ckpt",
        "result.json",
    ]  # fmt: skip
    sent.clear()
    fill(tmp_path, metrics_csv="1 2")
    kept.push(tmp_path)
    assert sent == ["metrics.csv", stores.MARK]  # what has not changed is not sent again


def test_a_transfer_that_breaks_off_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores.time, "sleep", lambda seconds: None)
    fill(tmp_path / "one", metrics_csv="whole")
    kept = Store(str(tmp_path / "kept"))
    kept.pull(tmp_path / "one")
    kept.push(tmp_path / "one")
    fill(tmp_path / "one", metrics_csv="half of it is lost")
    put, broken = kept.fs.put_file, []

    def half(path: str, goal: str, **how: Any) -> None:
        put(path, goal, **how)
        Path(goal).write_text("half")
        broken.append(goal)
        raise OSError("connection reset")

    monkeypatch.setattr(kept.fs, "put_file", half)
    with pytest.raises(CannotWriteError, match=r"cannot send metrics.csv to .*kept \(OSError: connection reset\): see"):
        kept.push(tmp_path / "one")
    assert len(broken) == stores.TRIES
    assert (tmp_path / "kept" / "metrics.csv").read_text() == "whole"
    assert not [path for path in (tmp_path / "kept").iterdir() if path.name.endswith(".tmp")]


def test_a_store_that_is_away_for_a_while_stops_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stores.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(stores, "EVERY", 0.0)
    kept = Store(str(tmp_path / "kept"))
    put, calls = kept.fs.put_file, [0]

    def away(path: str, goal: str, **how: Any) -> None:
        calls[0] += 1
        if 2 <= calls[0] < 2 + stores.TRIES:
            raise OSError("no route to host")
        put(path, goal, **how)

    monkeypatch.setattr(kept.fs, "put_file", away)
    assert train(BASE, tmp_path / "run", store=kept, **QUIET)["status"] == "done"
    assert "no route to host" in capfd.readouterr().err
    assert (tmp_path / "kept" / "result.json").exists()


def test_a_run_that_the_store_does_not_know_is_not_replaced(tmp_path: Path) -> None:
    fill(tmp_path / "one", checkpoints__last_ckpt="theirs")
    kept = Store(str(tmp_path / "kept"))
    kept.pull(tmp_path / "one")
    kept.push(tmp_path / "one")
    fill(tmp_path / "two", checkpoints__last_ckpt="mine")
    with pytest.raises(ValueError, match="both hold a run that the other does not know: choose another folder"):
        Store(str(tmp_path / "kept")).pull(tmp_path / "two")
    assert content(tmp_path / "two") == {"checkpoints/last.ckpt": "mine"}


def test_a_fetch_that_is_broken_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "one", checkpoints__last_ckpt="weights", run_json="{}")
    first = Store(str(tmp_path / "kept"))
    first.pull(tmp_path / "one")
    first.push(tmp_path / "one")
    second = Store(str(tmp_path / "kept"))
    get = second._get

    def cut_off(name: str, path: Path) -> None:
        if name == "checkpoints/last.ckpt":
            path.parent.mkdir()
            raise KeyboardInterrupt
        get(name, path)

    monkeypatch.setattr(second, "_get", cut_off)
    with pytest.raises(KeyboardInterrupt):
        second.pull(tmp_path / "two")
    Store(str(tmp_path / "kept")).pull(tmp_path / "two")
    assert content(tmp_path / "two") == {"checkpoints/last.ckpt": "weights", "run.json": "{}"}


def test_an_older_run_of_the_store_does_not_replace_what_could_not_be_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "one", checkpoints__last_ckpt="1")
    kept = Store(str(tmp_path / "kept"))
    kept.pull(tmp_path / "one")
    kept.push(tmp_path / "one")
    put = kept._put

    def away(path: Path, name: str) -> None:
        if name == stores.MARK:  # the last of a transfer
            raise CannotWriteError("away")
        put(path, name)

    monkeypatch.setattr(kept, "_put", away)
    fill(tmp_path / "one", checkpoints__last_ckpt="1 2")
    with pytest.raises(CannotWriteError):
        kept.push(tmp_path / "one")
    fill(tmp_path / "one", checkpoints__last_ckpt="1 2 3, while it was away")
    Store(str(tmp_path / "kept")).pull(tmp_path / "one")
    assert content(tmp_path / "one") == {"checkpoints/last.ckpt": "1 2 3, while it was away"}


def test_a_store_that_does_not_answer_is_not_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores.time, "sleep", lambda seconds: None)
    kept = Store(f"memory://{uuid.uuid4().hex}/run")
    fill(tmp_path, metrics_csv="1")
    kept.pull(tmp_path)
    kept.push(tmp_path)

    def away(path: str) -> None:
        raise OSError("connection reset")

    monkeypatch.setattr(type(kept.fs), "info", lambda self, path: away(path))
    monkeypatch.setattr(type(kept.fs), "exists", lambda self, path: False)  # as fsspec's own does then
    for ask in (lambda: kept.has("metrics.csv"), kept.names, lambda: Store(kept.url).pull(tmp_path / "other")):
        with pytest.raises(CannotWriteError, match="connection reset"):
            ask()


def test_one_that_is_taken_over_while_it_sends_does_not_take_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Store(str(tmp_path / "kept")), Store(str(tmp_path / "kept"))
    fill(tmp_path / "one", a_csv="1", b_csv="1")
    first.pull(tmp_path / "one")
    put, sent = first._put, []

    def slow(path: Path, name: str) -> None:
        put(path, name)
        sent.append(name)
        if len(sent) == 1:
            second.pull(tmp_path / "two")

    monkeypatch.setattr(first, "_put", slow)
    with pytest.raises(InUseError, match="was taken over by"):
        first.push(tmp_path / "one")
    assert sent == ["a.csv"]
    second.push(tmp_path / "two")


def test_a_store_in_the_folder_that_it_keeps_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "kept"):
        for url in (str(place), f"file://{place}"):
            with pytest.raises(ValueError, match=r"--store .* lies in .*, which it is to keep: choose a place beside"):
                Store(url).pull(tmp_path)


def test_a_relative_store_is_the_same_place_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Store("kept").at("v", "seed0").url == str(tmp_path / "kept" / "v" / "seed0")


@pytest.mark.parametrize("url", ["", "s3://", "memory://", "/"])  # as of a variable that is not set
def test_a_store_without_a_place_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"names no place: give a folder, or a URL such as s3://BUCKET/NAME"):
        Store(url)


def test_stores_that_nothing_opens_are_named() -> None:
    with pytest.raises(ValueError, match="--store nope://x names no store: Protocol not known: nope"):
        Store("nope://x")


def test_a_store_without_its_package_says_what_to_install() -> None:
    hidden = "import sys; sys.modules['s3fs'] = None; from experiments.shell.store import Store; Store('s3://b/x')"
    done = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True, check=False)
    assert 'ValueError: --store s3://b/x needs a package: pip install -e ".[s3]"' in done.stderr


def test_a_place_of_another_run_is_refused_before_it_is_taken_over(tmp_path: Path) -> None:
    url = str(tmp_path / "kept")
    train(BASE, tmp_path / "one", store=Store(url), **QUIET)
    mark = (tmp_path / "kept" / stores.MARK).read_bytes()
    with pytest.raises(ValueError, match=r"kept holds another run \(hparams.lr: .*\): choose another --store"):
        train(BASE.but(lr=0.5), tmp_path / "two", store=Store(url), **QUIET)
    assert (tmp_path / "kept" / stores.MARK).read_bytes() == mark
    assert not [path for path in (tmp_path / "two").rglob("*") if path.is_file()] or not (tmp_path / "two").exists()
