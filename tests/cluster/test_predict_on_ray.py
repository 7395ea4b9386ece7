"""Images that the workers of a Ray cluster predict: each exactly once, also where a node is lost, from a bucket too."""

import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from interrupt import wait_for

sys.path.append(str(Path(__file__).parents[1] / "experiments" / "prediction"))
from test_predict import called, files
from trained import checkpoint, photograph

pytestmark = [pytest.mark.slow, pytest.mark.extra("cluster", "ray", "pyarrow")]

COUNT = 24


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(COUNT):
        photograph(folder / f"in {number % 3}" / f"{number:02}.png", seed=number)
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def images_of(out: Path) -> list[str]:
    """What is counted, in the order in which it was done."""
    return [json.loads(line)["image"] for line in (out / ".done.jsonl").read_text().splitlines()]


def test_a_lost_node_leaves_every_image_once_and_as_one_machine_has_it(
    tmp_path: Path, nodes: Any, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ckpt, here, there = checkpoint(tmp_path), tmp_path / "here", tmp_path / "there"
    network = ["--checkpoint", ckpt, "--device", "cpu"]
    assert called(pictures, *network, "--out", here) == 3
    capsys.readouterr()

    def lose_a_node() -> None:
        wait_for(lambda: len([*there.glob("labels/**/*.png")]) >= 3, 120)
        nodes.kill(nodes.workers[0])

    thread = threading.Thread(target=lose_a_node)
    thread.start()
    cluster = ["--launcher", "ray", "--address", nodes.address, "--jobs", "2"]
    assert called(pictures, *network, "--out", there, *cluster) == 3
    thread.join()
    told = capsys.readouterr()
    assert "left out broken: " in told.out and "error: 1 of 25 images could not be predicted" in told.err
    assert sorted(images_of(there)) == sorted({*images_of(there)}) and len(images_of(there)) == COUNT
    mine, theirs = files(here), files(there)
    assert mine.keys() == theirs.keys()
    assert {name for name in mine if mine[name] != theirs[name]} <= {".done.jsonl", "predict.json"}
    # What is done is not done again.
    assert called(pictures, *network, "--out", there, *cluster) == 3
    assert f"{COUNT} of {COUNT + 1} images are done already" in capsys.readouterr().out
    assert len(images_of(there)) == COUNT


@pytest.mark.extra("s3", "s3fs", "moto", "flask")
def test_images_of_a_bucket(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As those of a folder, also by one machine."""
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    fsspec.config.conf.pop("s3", None)
    s3 = fsspec.filesystem("s3", skip_instance_cache=True)
    s3.mkdir("scans")
    s3.put(f"{pictures}/", "scans/pictures", recursive=True)
    network = ["--checkpoint", checkpoint(tmp_path), "--device", "cpu"]
    assert called(pictures, *network, "--out", tmp_path / "here") == 3
    for _ in range(2):
        assert called("s3://scans/pictures", *network, "--out", tmp_path / "there") == 3
    assert f"{COUNT} of {COUNT + 1} images are done already" in capsys.readouterr().out
    mine, theirs = files(tmp_path / "here"), files(tmp_path / "there")
    assert mine.keys() == theirs.keys()
    assert {name for name in mine if mine[name] != theirs[name]} <= {".done.jsonl", "predict.json"}
    assert called("s3://scans/nothing", *network, "--out", tmp_path / "none") == 2
    assert "s3://scans/nothing holds no image" in capsys.readouterr().err
    server.stop()
