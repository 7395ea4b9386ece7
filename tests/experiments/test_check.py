"""The check of a folder by its command: the verdict, what the folder holds, what to type next, and the page."""

import base64
import json
import re
import shlex
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from experiments.check import main
from experiments.show import parse
from experiments.train import complete, parse_run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of 8 frames of two videos with two classes; its colours and labels are known."""
    root = tmp_path / "my data"
    for part in ("images", "masks", "splits"):
        (root / part).mkdir(parents=True)
    (root / "classes.txt").write_text("ground\ntree\n")
    rng = np.random.default_rng(0)
    names = [f"{video}_{frame:03}" for video in "ab" for frame in range(4)]
    for name in names:
        Image.fromarray(rng.integers(256, size=(24, 32, 3)).astype(np.uint8)).save(root / f"images/{name}.png")
        labels = np.zeros((24, 32), dtype=np.uint8)
        labels[:6], labels[-6:] = 1, 255
        Image.fromarray(labels).save(root / f"masks/{name}.png")
    for split, some in (("train", names[:4]), ("val", names[4:6]), ("test", names[6:])):
        (root / f"splits/{split}.txt").write_text("\n".join(some))
    return root


def check(root: Path, *flags: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(root), *flags])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def found(root: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    check(root, "--json", *flags)
    return dict(json.loads(capsys.readouterr().out))


def content(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_sound_folder_is_described_and_left_alone(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(root)
    assert check(root) == 0
    told = capsys.readouterr().out
    assert "can be trained with: 0 problems and 0 warnings in 8 pairs" in told
    assert "Sizes in pixels: 32 x 24 (8)" in told and "Unlabelled: 25 % of the pixels" in told
    assert content(root) == before


def test_shares_and_channels_are_those_of_the_pixels(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = found(root, capsys)
    assert said["usable"] and not said["problems"] and not said["warnings"]
    assert [said["splits"][name]["images"] for name in ("train", "val", "test", "all")] == [4, 2, 2, 8]
    assert said["splits"]["train"]["classes"] == pytest.approx({"ground": 2 / 3, "tree": 1 / 3})
    pixels = np.stack([np.asarray(Image.open(path)) for path in (root / "images").iterdir()]) / 255
    assert said["channels"]["mean"] == pytest.approx(pixels.mean(axis=(0, 1, 2)), abs=1e-4)
    assert said["channels"]["std"] == pytest.approx(pixels.std(axis=(0, 1, 2)), abs=1e-4)
    assert said["sizes"] == [{"width": 32, "height": 24, "images": 8}]
    assert said["unlabelled"] == pytest.approx(0.25)


def test_what_is_wrong_is_listed_with_its_code_and_exit_status_2(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "masks/a_000.png").unlink()
    Image.fromarray(np.zeros((24, 32), dtype=np.uint16)).save(root / "masks/b_000.png")
    assert check(root) == 2
    told = capsys.readouterr().out
    assert "cannot be trained with as it is: 2 problems" in told
    assert (
        "E_MISSING_MASK: images/a_000.png has no mask" in told and "E_MASK_MODE: masks/b_000.png holds 16-bit" in told
    )
    said = found(root, capsys)
    assert not said["usable"] and [p["code"] for p in said["problems"]] == ["E_MISSING_MASK", "E_MASK_MODE"]


def test_a_folder_without_lists_is_told_how_to_make_them(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (root / "splits").iterdir():
        path.unlink()
    (root / "splits").rmdir()
    said = found(root, capsys)
    assert [p["code"] for p in said["problems"]] == ["E_NO_SPLITS"]
    assert "python -m experiments.split '" in said["problems"][0]["said"]
    assert said["splits"]["all"]["images"] == 8


def test_what_to_type_next_can_be_typed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split, train, show = found(root, capsys)["next"]
    assert "2 series" in split["why"]
    assert shlex.split(split["type"])[:4] == ["python", "-m", "experiments.split", str(root)]
    run, args = parse_run(shlex.split(train["type"].partition("experiments.train ")[2]))
    assert args.out == Path("outputs/train/my data") and "2 looked at" not in train["why"] and "rule" in train["why"]
    _, shown = parse(shlex.split(show["type"].partition("experiments.show ")[2]))
    assert shown.data["root"] == str(root)
    assert run.data["root"] == str(root)
    assert "--data.crop" not in train["type"] and "--model.norm" not in train["type"]  # defaults for such data
    chosen = complete(run, args)
    assert chosen and chosen.run.hparams["norm"] == "batch" and chosen.run.trainer["max_epochs"] > 1
    assert {name: chosen.run.data[name] for name in shown.data if name in chosen.run.data} == shown.data


def test_the_page_shows_images_under_their_labels_and_escapes_names(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "classes.txt").write_text("ground[/bold]:cat:\n<script>alert(1)</script>\n")
    page = tmp_path / "check.html"
    assert check(root, "--page", str(page), "--pictures", "3") == 0
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text and "&lt;script&gt;" in text and "default-src 'none'" in text
    uris = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    assert "ground[/bold]:cat:" in capsys.readouterr().out
    pictures = [np.asarray(Image.open(BytesIO(base64.b64decode(uri)))).astype(float) for uri in uris]
    assert len(pictures) == 6
    for plain, over in zip(pictures[::2], pictures[1::2], strict=True):
        assert plain.shape == over.shape == (24, 32, 3)
        assert over[18:].mean() > plain[18:].mean() + 40  # white where unlabelled


@pytest.mark.parametrize("missing", ["images", "classes.txt"])
def test_a_folder_of_another_kind_is_named(missing: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / missing).rename(root / "other")
    assert check(root) == 2
    assert f"has no {missing}" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["check", "split"])
@pytest.mark.parametrize("words", [["--data", "brain"], ["DIR", "--data", "brain"], ["DIR", "--data.root", "x"]])
def test_a_data_set_of_the_catalogue_is_told_what_verifies_it(
    verb: str, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [f"experiments/{verb}.py"])
    with pytest.raises(SystemExit, match="2"):
        import_module(f"experiments.{verb}").main(words)
    said = capsys.readouterr().err
    assert f"{verb} reads a folder: python -m experiments.{verb} DIR" in said and "did you mean" not in said
    assert "verifies itself when it is trained, or shown: python -m experiments.show --data NAME" in said
