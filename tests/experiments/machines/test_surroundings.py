"""Of a folder, a variable, a host or a server that is not as it should be, what is said and how it is mended."""

import errno
import fcntl
import os
import shutil
import socket
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from wandb_server import WandbServer

from experiments.machines import storage, surroundings
from experiments.shell.ending import CANNOT_WRITE, NO_SPACE

Usage = namedtuple("Usage", "total used free")


def states(found: list[storage.Finding]) -> list[str]:
    return [one.state for one in found]


def test_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**40, 0, 2**29))
    found = storage.space(tmp_path / "a" / "b", 10, "choose")
    assert (found.state, found.status, found.mend) == ("wrong", NO_SPACE, "choose")
    assert storage.cache(lambda: tmp_path).state == "warning" and "SEGLAB_CACHE" in storage.cache(lambda: tmp_path).mend
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**40, 0, 2**32))
    assert storage.space(tmp_path, 10, "choose").state == "warning" and storage.cache(lambda: tmp_path).state == "ok"


def test_no_cache(tmp_path: Path) -> None:
    def homeless() -> Path:
        raise RuntimeError("no home")

    assert storage.cache(homeless).state == "warning" and "(no home)" in storage.cache(homeless).said
    (tmp_path / "file").touch()
    found = storage.cache(lambda: tmp_path / "file" / "cache")
    assert found.state == "warning" and "cannot be written to" in found.said


def test_a_folder_that_is_well(tmp_path: Path) -> None:
    assert states(storage.probe(tmp_path / "new")) == ["ok", "ok", "ok"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("code", "status"), [(errno.ENOSPC, NO_SPACE), (errno.EROFS, CANNOT_WRITE)])
def test_a_folder_that_cannot_be_written(
    code: int, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    (found,) = storage.probe(tmp_path)
    assert (
        (found.state, found.status) == ("wrong", status) and "--out" in found.mend and os.strerror(code) in found.said
    )
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    _, found, _ = storage.probe(tmp_path)
    assert found.state == "wrong" and found.about == "locks" and "without nolock" in found.mend
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    assert "two processes could write" in storage.probe(tmp_path)[1].said


def test_locks_of_one_machine(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        f"/dev/a / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw,local_lock=flock,hard 0 0\nproc /proc proc\n"
    )
    with (tmp_path / "file").open("w+b") as file:
        found = storage.locking(file, tmp_path / "file", mounts)
    assert found.state == "warning" and "nfs4 with local_lock=flock" in found.said and "mount it" in found.mend
    assert storage.mount_of(Path("/etc"), mounts) == ("ext4", ["rw"])
    assert storage.mount_of(Path("/etc"), tmp_path / "none") == ("", [])


def test_a_slow_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 3.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks))
    found = storage.probe(tmp_path)[0]
    assert found.state == "warning" and "3000 ms" in found.said and "local disk" in found.mend


def test_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        storage.clock(-30).state == "warning" and "-30 s" in storage.clock(-30).said and "NTP" in storage.clock(9).mend
    )
    assert storage.clock(0.5).state == "ok"
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert "before the files of this code" in storage.clock(0).said


def test_variables_that_change_what_happens() -> None:
    given = {
        "OMP_NUM_THREADS": "4",
        "NCCL_P2P_DISABLE": "1",
        "WANDB_API_KEY": "secret",
        "HOME": "/x",
        "TORCH_HOME": "/y",
    }
    found = surroundings.overrides(given)
    assert states(found) == ["warning", "warning", "ok", "ok"]
    assert found[1].mend == "unset OMP_NUM_THREADS, unless you mean it" and "last digits" in found[1].said
    assert not any("secret" in one.said for one in found)
    assert states(surroundings.overrides({"HOME": "/x", "NCCL_DEBUG": ""})) == ["ok"]


@pytest.mark.parametrize(
    ("environ", "state", "mend"),
    [
        ({}, "ok", ""),
        ({"LOCAL_RANK": "0", "WORLD_SIZE": "4"}, "wrong", "unset LOCAL_RANK WORLD_SIZE"),
        ({"LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "a"}, "ok", ""),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "train"}, "warning", "srun"),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "train", "SLURM_STEP_ID": "0"}, "ok", ""),
        ({"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "interactive"}, "ok", ""),
    ],
)
def test_what_a_launcher_has_left(environ: dict[str, str], state: str, mend: str) -> None:
    found = surroundings.ranks(environ)
    assert found.state == state and mend in found.mend


def test_host(monkeypatch: pytest.MonkeyPatch) -> None:
    address = ("192.0.2.1", 0)  # of no machine
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address)])
    found = surroundings.host()
    assert found.state == "warning" and "192.0.2.1, which is not it" in found.said and "/etc/hosts" in found.mend
    address = ("127.0.0.1", 0)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address)])
    assert surroundings.host().state == "ok" and "NCCL_SOCKET_IFNAME" in surroundings.host().said

    def fail(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert "leads nowhere" in surroundings.host().said and "GLOO_SOCKET_IFNAME" in surroundings.host().mend


@pytest.fixture
def nobody(tmp_path: Path) -> dict[str, str]:
    """The environment of somebody who has never used W&B."""
    return {"WANDB_CONFIG_DIR": str(tmp_path / "config"), "NETRC": str(tmp_path / "netrc")}


def test_wandb_is_not_asked_without_reason(
    nobody: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surroundings.urllib.request, "urlopen", None)  # a call would be a TypeError
    assert "no key" in surroundings.wandb(nobody, tmp_path).said
    for mode in ("offline", "disabled"):
        key = {"WANDB_MODE": mode, "WANDB_API_KEY": "a"}
        assert surroundings.wandb(nobody | key, tmp_path).said == f"{mode}: nobody is asked"
    assert "wandb login" in surroundings.wandb(nobody | {"WANDB_MODE": "online"}, tmp_path).mend


def test_wandb_that_answers(nobody: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with WandbServer() as server:
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password secret\n")
        (tmp_path / "netrc").chmod(0o600)
        environ = nobody | {"WANDB_BASE_URL": server.url}
        found = surroundings.wandb(environ, tmp_path)
        assert found.state == "ok" and "with the same time" in found.said
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now - 3600)
        found = surroundings._answered(server.url, "Mon, 30 Nov 2015 00:00:00 GMT")
        assert found.state == "warning" and "NTP" in found.mend


@pytest.mark.parametrize("state", ["403", "404", "500", "portal", "empty", "garbage", "closes"])
def test_wandb_behind_something_else(state: str, nobody: dict[str, str], tmp_path: Path) -> None:
    with WandbServer(state) as server:
        found = surroundings.wandb(nobody | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "a"}, tmp_path)
    assert found.state == "warning" and "answer" in found.said and "HTTPS_PROXY" in found.mend


def test_wandb_that_does_not_answer(nobody: dict[str, str], tmp_path: Path) -> None:
    environ = nobody | {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "a"}  # nobody listens
    found = surroundings.wandb(environ, tmp_path)
    assert found.state == "warning" and "does not answer" in found.said and "experiments.sync" in found.mend
