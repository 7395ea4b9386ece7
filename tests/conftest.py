import os
import signal
import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image

from datamodules.camvid import CLASSES


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same random numbers, whichever ran before it."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # two test processes on two cores, and sums in one order


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known of folders of data, and of the costs of networks, stays with each test."""
    monkeypatch.setenv("SEGLAB_CACHE", str(tmp_path_factory.mktemp("cache")))


RANKS = (
    "RANK",
    "LOCAL_RANK",
    "NODE_RANK",
    "GROUP_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)


@pytest.fixture(autouse=True)
def _no_rank_left() -> Iterator[None]:
    """What Lightning writes into the environment of a process stays with the test: the next one would wait for it."""
    before = {name: os.environ.get(name) for name in RANKS}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture
def heard() -> Iterator[None]:
    """Signals that whoever started the tests has them ignore, as nohup does, are heard."""
    before = {signum: signal.signal(signum, signal.default_int_handler) for signum in (signal.SIGHUP, signal.SIGINT)}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def meanwhile() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Does something in a thread while this one runs cells; what it raises is raised at the end of the test."""
    errors: list[BaseException] = []
    threads: list[threading.Thread] = []

    def begin(act: Callable[[], None]) -> None:
        def work() -> None:
            try:
                act()
            except BaseException as error:  # noqa: BLE001
                errors.append(error)

        threads.append(threading.Thread(target=work))
        threads[-1].start()

    yield begin
    for thread in threads:
        thread.join(60)
    assert not errors


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for name, *modules in (mark.args for mark in item.iter_markers("extra")):
            if missing := [module for module in modules if find_spec(module) is None]:
                item.add_marker(pytest.mark.skip(reason=f'needs {missing[0]}: pip install -e ".[{name}]"'))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture
def camvid_root(tmp_path: Path) -> Path:
    """A folder with the classes and the layout of CamVid, and one image in each split."""
    root = tmp_path / "camvid"
    for folder in ("images", "masks", "splits"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(CLASSES)))
    for number, split in enumerate(("train", "val", "test")):
        (root / "splits" / f"{split}.txt").write_text(f"frame{number}\n")
        Image.new("RGB", (48, 36), (40 * number, 90, 120)).save(root / "images" / f"frame{number}.jpg")
        Image.new("L", (48, 36), number).save(root / "masks" / f"frame{number}.png")
    return root
