"""`python -m experiments.predict`: what is written, what is refused, and how it goes on."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from trained import CLASSES, PALETTE, checkpoint, module_of, photograph, reading, saved

from experiments import Segmenter
from experiments.predict import main
from experiments.prediction import job
from experiments.prediction.sources import items


def called(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert isinstance(stop.value.code, int)
    return stop.value.code


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images in a tree, of which two have one name."""
    for name in ("a.jpg", "a.png", "deep/er/b.png", "deep/c d.bmp", "grey.tif"):
        photograph(tmp_path / "pictures" / name, mode="L" if "grey" in name else "RGB", seed=len(name))
    return tmp_path / "pictures"


NAMES = ["a.jpg", "a.png", "grey", "deep/c d", "deep/er/b"]  # the files of a folder, then its folders


def files(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file() and p.name[0] != "."}


def test_results_have_the_size_name_and_place_of_their_images(folder: Path, tmp_path: Path) -> None:
    ckpt, out = checkpoint(tmp_path), tmp_path / "out"
    assert called(folder, "--checkpoint", ckpt, "--out", out, "--device", "cpu") == 0
    expected = {f"{kind}/{name}.png" for kind in ("labels", "overlay", "confidence") for name in NAMES}
    assert {*files(out)} == expected | {"stats.csv", "predict.json"}
    segmenter = Segmenter.from_checkpoint(ckpt, device="cpu")
    for item in items([str(folder)], out=out):
        answer = segmenter(item.path)
        labels = Image.open(out / "labels" / f"{item.name}.png")
        assert labels.mode == "P" and labels.size == (83, 60)
        assert (np.asarray(labels) == answer.labels).all()
        assert labels.getpalette()[:9] == [level for colour in PALETTE for level in colour]  # type: ignore[index]
        confidence = np.asarray(Image.open(out / "confidence" / f"{item.name}.png"))
        assert np.abs(confidence / 255 - answer.confidence).max() < 1 / 255
    rows = [*csv.DictReader((out / "stats.csv").open(encoding="utf-8"))]
    assert [row["image"] for row in rows[::4]] == NAMES
    assert [row["class"] for row in rows[:4]] == [*CLASSES, "all"]
    answer = segmenter(folder / "a.jpg")
    for label, row in enumerate(rows[:3]):
        of_class = answer.labels == label
        assert int(row["pixels"]) == of_class.sum()
        assert float(row["share"]) == pytest.approx(of_class.mean(), abs=1e-6)
        if of_class.any():
            assert float(row["confidence"]) == pytest.approx(answer.confidence[of_class].mean(), abs=1e-4)
            assert float(row["entropy"]) == pytest.approx(answer.entropy[of_class].mean(), abs=1e-4)
    assert "area" not in rows[0] and "disagreement" not in rows[0]


def test_a_broken_image_is_named_and_left_out(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "deep" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    ckpt, out = checkpoint(tmp_path), tmp_path / "out"
    assert called(folder, "--checkpoint", ckpt, "--out", out, "--device", "cpu") == 3
    printed = capsys.readouterr()
    assert "5 of 6 images are in" in printed.out
    last = printed.err.splitlines()
    assert "deep/broken.png" in last[-2] and last[-1] == "error: 1 of 6 images could not be predicted"
    assert not any("broken" in name for name in files(out))
    # Mended, it is all that is left to do.
    photograph(folder / "deep" / "broken.png")
    assert called(folder, "--checkpoint", ckpt, "--out", out, "--device", "cpu") == 0
    assert "5 of 6 images are done already" in capsys.readouterr().out
    for path in folder.rglob("*.*"):
        path.write_bytes(b"nothing")
    shutil.rmtree(out)
    assert called(folder, "--checkpoint", ckpt, "--out", out, "--device", "cpu") == 2


def test_what_was_interrupted_ends_as_if_it_had_not_been(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ckpt = checkpoint(tmp_path)
    arguments = [folder, "--checkpoint", ckpt, "--device", "cpu"]
    assert called(*arguments, "--out", tmp_path / "whole") == 0
    one, count = job.Job._one, []

    def interrupted(self: job.Job, item: Any) -> Any:
        count.append(item)
        if len(count) == 4:
            raise KeyboardInterrupt
        return one(self, item)

    monkeypatch.setattr(job.Job, "_one", interrupted)
    assert called(*arguments, "--out", tmp_path / "parts") == 130
    with (tmp_path / "parts/.done.jsonl").open("a") as file:
        file.write('{"image": "deep/er/b", "ro')  # a kill within a line
    monkeypatch.undo()
    assert called(*arguments, "--out", tmp_path / "parts") == 0
    assert len(count) == 4
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_all_that_is_asked_for_is_written(folder: Path, tmp_path: Path) -> None:
    for seed in range(2):
        checkpoint(tmp_path / f"variant/seed{seed}/checkpoints", seed=seed)
    out = tmp_path / "out"
    flags = ["--tta", "--probabilities", "--no-overlay", "--no-confidence"]
    assert called(folder / "a.png", "--ensemble", tmp_path / "variant", "--out", out, *flags, "--device", "cpu") == 0
    assert {*files(out)} == {
        "labels/a.png", "disagreement/a.png", "probabilities/a.npz", "stats.csv", "predict.json",
    }  # fmt: skip
    with np.load(out / "probabilities/a.npz", allow_pickle=False) as stored:
        assert stored["probabilities"].shape == (3, 60, 83) and stored["probabilities"].dtype == np.float16
        assert stored["class_names"].tolist() == CLASSES
        labels = np.asarray(Image.open(out / "labels/a.png"))
        assert (stored["probabilities"].argmax(0) == labels).mean() > 0.99
    rows = [*csv.DictReader((out / "stats.csv").open(encoding="utf-8"))]
    assert 0 < float(rows[-1]["disagreement"]) < 1


def test_more_than_255_classes_are_written_with_16_bits(folder: Path, tmp_path: Path) -> None:
    ckpt = checkpoint(tmp_path, classes=300)
    assert called(folder / "a.png", "--checkpoint", ckpt, "--out", tmp_path / "out", "--device", "cpu") == 0
    labels = Image.open(tmp_path / "out/labels/a.png")
    assert labels.mode == "I;16"
    assert (np.asarray(labels) == Segmenter.from_checkpoint(ckpt, device="cpu")(folder / "a.png").labels).all()


def listed(folder: Path) -> list[str]:
    (folder / "list.txt").write_text(f"a.png\n{folder / 'deep/er/b.png'}\n")
    return [str(folder / "list.txt")]


def test_a_range_is_applied_once(tmp_path: Path) -> None:
    values = np.asarray(Image.open(photograph(tmp_path / "a.png", mode="L"))).astype(np.uint16) * 4 + 100
    (tmp_path / "in").mkdir()
    Image.fromarray(values).save(tmp_path / "in/a.png")
    ckpt = checkpoint(tmp_path, trained=reading(value_range=[100.0, 1120.0], bits=16))
    assert called(tmp_path / "in", "--checkpoint", ckpt, "--out", tmp_path / "out", "--device", "cpu") == 0
    expected = Segmenter.from_checkpoint(ckpt, device="cpu")(tmp_path / "in/a.png").labels
    assert len(np.unique(expected)) > 1
    assert (np.asarray(Image.open(tmp_path / "out/labels/a.png")) == expected).all()
    in_8_bits = Segmenter.from_checkpoint(checkpoint(tmp_path, "b.ckpt"), device="cpu")(tmp_path / "a.png").labels
    assert (in_8_bits == expected).all()


SOURCES: dict[str, tuple[Callable[[Path], list[str]], list[str]]] = {
    "an image": (lambda folder: [f"{folder}/a.png"], ["a"]),
    "two images": (lambda folder: [f"{folder}/a.png", f"{folder}/deep/er/b.png"], ["a", "deep/er/b"]),
    "a folder": (lambda folder: [str(folder)], NAMES),
    "a pattern": (lambda folder: [f"{folder}/**/*.png"], ["a", "deep/er/b"]),
    "a list": (listed, ["a", "deep/er/b"]),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_sources(kind: str, folder: Path, tmp_path: Path) -> None:
    make, names = SOURCES[kind]
    assert [item.name for item in items(make(folder), out=tmp_path / "out")] == names


def test_results_within_the_source_are_no_images(folder: Path) -> None:
    photograph(folder / "out/labels/a.png")
    assert [item.name for item in items([str(folder)], out=folder / "out")] == NAMES


def test_a_list_that_leads_elsewhere_does_not_lead_results_there(folder: Path, tmp_path: Path) -> None:
    photograph(tmp_path / "secret.png")
    (folder / "list.txt").write_text("a.png\n../secret.png\n")
    found = items([str(folder / "list.txt")], out=tmp_path / "out")
    assert [item.name for item in found] == ["pictures/a", "secret"]
    assert all(".." not in item.name and not item.name.startswith("/") for item in found)


def test_no_two_images_have_results_of_one_name(tmp_path: Path) -> None:
    for name in ("one/x.png", "two/x.png", "two/a.jpg", "two/a.png", "two/a.png.png", "two/B.png", "two/b.jpg"):
        photograph(tmp_path / name)
    found = items([str(tmp_path / "one"), str(tmp_path / "two")], out=tmp_path / "out")
    assert [item.name for item in found] == [
        "one/x", "two/B.png", "two/a.jpg", "two/a.png", "two/a.png.png", "two/b.jpg", "two/x",
    ]  # fmt: skip


def test_results_of_another_image_of_this_name_stay(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--checkpoint", checkpoint(tmp_path), "--out", tmp_path / "out", "--device", "cpu"]
    assert called(folder / "a.png", *common) == 0
    before = files(tmp_path / "out")
    photograph(tmp_path / "other/a.png", seed=8)
    assert called(tmp_path / "other/a.png", *common) == 2
    assert "other/a.png would have, too: choose another folder" in capsys.readouterr().err
    assert files(tmp_path / "out") == before
    photograph(folder / "a.png", 40, 41)  # the image itself has changed, and is predicted again
    assert called(folder / "a.png", *common) == 0
    assert Image.open(tmp_path / "out/labels/a.png").size == (41, 40)


def test_a_name_too_long_for_its_results_is_left_out(folder: Path, tmp_path: Path) -> None:
    photograph(folder / f"{'n' * 245}.png")
    out = tmp_path / "out"
    assert called(folder, "--checkpoint", checkpoint(tmp_path), "--out", out, "--device", "cpu") == 3
    assert len([*(out / "labels").rglob("*.png")]) == 5


def test_a_folder_of_results_that_is_a_link_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out/labels").symlink_to(tmp_path / "elsewhere")
    assert called(folder, "--checkpoint", checkpoint(tmp_path), "--out", tmp_path / "out", "--device", "cpu") == 73
    assert not any((tmp_path / "elsewhere").iterdir())


def _tampered(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    return path


def _truncated(path: Path) -> Path:
    path.with_name(f"{path.name}.sha256").unlink()
    path.write_bytes(path.read_bytes()[:-400])
    return path


def _text(path: Path) -> Path:
    path.with_name("notes.ckpt").write_text("weights")
    return path.with_name("notes.ckpt")


WRONG: dict[str, tuple[Callable[[Path, Path], list[Any]], int, str]] = {
    "tampered": (lambda c, f: [f, "--checkpoint", _tampered(c)], 2, "is damaged: its SHA-256"),
    "truncated": (lambda c, f: [f, "--checkpoint", _truncated(c)], 2, "is not a checkpoint of experiments.train"),
    "no checkpoint": (lambda c, f: [f, "--checkpoint", _text(c)], 2, "is not a checkpoint of experiments.train"),
    "none there": (lambda c, f: [f, "--checkpoint", "none.ckpt"], 2, "none.ckpt is not a file"),
    "neither": (lambda c, f: [f], 2, "give --checkpoint with a trained network, or --ensemble"),
    "both": (lambda c, f: [f, "--checkpoint", c, "--ensemble", f], 2, "give --checkpoint"),
    "no variant": (lambda c, f: [f, "--ensemble", f], 2, "holds no seed*/checkpoints/last.ckpt"),
    "no image": (lambda c, f: [c.parent, "--checkpoint", c], 2, "holds no image: images end in"),
    "nothing there": (lambda c, f: [f / "none.png", "--checkpoint", c], 2, "none.png is not there"),
    "not a match": (lambda c, f: [f / "*.webp", "--checkpoint", c], 2, "matches 0 files"),
    "no device": (lambda c, f: [f, "--checkpoint", c, "--device", "abacus"], 2, "device must be one that is there"),
    "no memory": (lambda c, f: [f, "--checkpoint", c, "--memory", "0"], 2, "--memory must be more than 0"),
    "no range": (lambda c, f: [f, "--checkpoint", c, "--value-range", "5", "5"], 2, "value_range must be two numbers"),
    "no scale": (lambda c, f: [f, "--checkpoint", c, "--scale", "-1"], 2, "scale must be more than 0"),
    "no end": (lambda c, f: [f, "--checkpoint", c, "--value-range", "0", "inf"], 2, "value_range must be two numbers"),
    "no parameters": (lambda c, f: [f, "--checkpoint", c, "--crf", "dense", "--crf-options", c], 2, "is no file of"),
    "small tile": (lambda c, f: [f, "--checkpoint", c, "--tile", "3"], 2, "tile must be at least 16 pixels"),
    "no CRF file": (lambda c, f: [f, "--checkpoint", c, "--crf", "dense"], 2, "experiments.search_crf"),
    "options alone": (lambda c, f: [f, "--checkpoint", c, "--crf-options", "x"], 2, "belong to --crf"),
    "groups alone": (lambda c, f: [f, "--checkpoint", c, "--groups", "x"], 2, "--groups belongs to --score"),
    "no masks": (lambda c, f: [f, "--checkpoint", c, "--score", f / "deep"], 2, "images have no mask in"),
    "no mask folder": (lambda c, f: [f, "--checkpoint", c, "--score", f / "x"], 2, "is no folder"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_said_before_anything_is_written(
    kind: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, status, said = WRONG[kind]
    ckpt = checkpoint(tmp_path / "weights")
    assert called(*make(ckpt, folder), "--out", tmp_path / "out") == status
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and said in last
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert called(folder, "--checkpoint", checkpoint(tmp_path), "--out", tmp_path / "file/out") == 73
    assert "file/out" in capsys.readouterr().err.splitlines()[-1]


def test_a_folder_of_other_results_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ckpt, out = checkpoint(tmp_path), tmp_path / "out"
    assert called(folder, "--checkpoint", ckpt, "--out", out, "--device", "cpu") == 0
    before = files(out)
    other = checkpoint(tmp_path, "other.ckpt", seed=5)
    assert called(folder, "--checkpoint", other, "--out", out, "--device", "cpu") == 2
    assert "another checkpoint: choose another folder with --out" in capsys.readouterr().err
    assert called(folder, "--checkpoint", ckpt, "--out", out, "--device", "cpu", "--tta") == 2
    assert "another --tta" in capsys.readouterr().err
    assert files(out) == before


@pytest.fixture
def labelled(folder: Path, tmp_path: Path) -> Path:
    """Masks of the images, of classes 0 to 2 and 255."""
    rng = np.random.default_rng(0)
    for item in items([str(folder)], out=tmp_path / "out"):
        mask = rng.integers(0, 3, (60, 83)).astype(np.uint8)
        mask[:5] = 255
        path = tmp_path / "masks" / f"{item.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
    return tmp_path / "masks"


def test_a_labelled_folder_is_scored_without_training(
    folder: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ckpt, out = checkpoint(tmp_path), tmp_path / "out"
    common = [folder, "--score", labelled, "--device", "cpu", "--no-overlay"]
    assert called(*common, "--checkpoint", ckpt, "--out", out) == 0
    printed, told = capsys.readouterr().out, (out / "scores.md").read_text()
    segmenter, total = Segmenter.from_checkpoint(ckpt, device="cpu"), np.zeros((3, 3), np.int64)
    for item in items([str(folder)], out=out):
        mask = np.asarray(Image.open(labelled / f"{item.name}.png"))
        known, labels = mask != 255, segmenter(item.path).labels
        total += np.bincount(3 * mask[known] + labels[known], minlength=9).reshape(3, 3)
    with np.load(out / "per_image.npz", allow_pickle=False) as stored:
        assert (stored["confusion"].sum(0) == total).all()
        assert stored["names"].tolist() == NAMES and stored["groups"].tolist() == NAMES
    iou = np.diag(total) / (total.sum(0) + total.sum(1) - np.diag(total))
    assert f"| mIoU (%) | {100 * iou.mean():.2f} |" in printed
    assert f"| tree | {100 * iou[1]:.2f} |" in told and "- NSD at 2 px: normalised surface distance" in told
    values = {(r["score"], r["class"]): float(r["value"] or 0) for r in csv.DictReader((out / "scores.csv").open())}
    assert values["mIoU", ""] == pytest.approx(100 * iou.mean(), abs=1e-4)
    other = checkpoint(tmp_path, "other.ckpt", seed=3)
    assert called(*common, "--checkpoint", other, "--out", tmp_path / "two", "--compare", out) == 0
    told = capsys.readouterr().out
    assert (
        "a difference of" in told and "of others nothing can be said: 5 independent images or groups of images" in told
    )
    assert called(*common, "--checkpoint", other, "--out", tmp_path / "two", "--compare", tmp_path / "none") == 2


def test_networks_are_compared_with_an_interval_by_groups(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for number in range(20):
        photograph(tmp_path / f"many/i{number:02}.png", 20, 24, seed=number)
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 3, (20, 24)).astype(np.uint8)).save(tmp_path / f"masks/i{number:02}.png")
    (tmp_path / "groups.csv").write_text(
        "image,group\n" + "".join(f"i{number:02},g{number // 2}\n" for number in range(20))
    )
    common = [tmp_path / "many", "--score", tmp_path / "masks", "--device", "cpu", "--no-overlay"]
    common += ["--groups", tmp_path / "groups.csv"]
    first, other = checkpoint(tmp_path), checkpoint(tmp_path, "other.ckpt", seed=3)
    assert called(*common, "--checkpoint", first, "--out", tmp_path / "one") == 0
    assert called(*common, "--checkpoint", other, "--out", tmp_path / "two", "--compare", tmp_path / "one") == 0
    assert "95 % interval by the jackknife over 10 groups of images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (np.full((60, 83), 257, np.uint16), "is an image of mode I;16, and a mask has labels of 8 bits"),
        (np.zeros((60, 83, 3), np.uint8), "is an image of mode RGB"),
        (np.zeros((5, 5), np.uint8), "has 5 x 5 pixels, and its image 83 x 60"),
        (np.full((60, 83), 7, np.uint8), "holds the label 7, and the network has 3 classes"),
    ],
)
def test_a_mask_that_does_not_fit_is_named(
    mask: np.ndarray, said: str, folder: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(mask).save(labelled / "grey.png")
    ckpt, out = checkpoint(tmp_path), tmp_path / "out"
    assert called(folder, "--checkpoint", ckpt, "--out", out, "--score", labelled, "--device", "cpu") == 3
    assert said in capsys.readouterr().err


def test_a_search_gives_the_crf_its_parameters(folder: Path, tmp_path: Path) -> None:
    ckpt = checkpoint(tmp_path / "run/checkpoints")
    best = {"w_appearance": 3.0, "theta_alpha": 20.0, "theta_beta": 5.0, "w_smoothness": 3.0, "theta_gamma": 3.0}
    (tmp_path / "run/search_dense").mkdir()
    (tmp_path / "run/search_dense/best.json").write_text(json.dumps(best))
    common = [folder / "a.png", "--checkpoint", ckpt, "--device", "cpu", "--crf", "dense"]
    assert called(*common, "--out", tmp_path / "out") == 0
    expected = Segmenter.from_checkpoint(ckpt, device="cpu", crf="dense", crf_options=best)(folder / "a.png").labels
    assert (np.asarray(Image.open(tmp_path / "out/labels/a.png")) == expected).all()
    assert called(*common, "--crf-options", "deeplab_v2", "--out", tmp_path / "two") == 0
    (tmp_path / "odd.json").write_text('{"sigma": 3}')
    assert called(*common, "--crf-options", tmp_path / "odd.json", "--out", tmp_path / "three") == 2


def test_not_a_number_is_named_with_its_image(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = module_of("unet")
    module.network.head.bias.data[:] = 1e38
    module.network.head.weight.data[:] = 1e38
    ckpt = saved(module, tmp_path / "last.ckpt")
    assert called(folder / "a.png", "--checkpoint", ckpt, "--out", tmp_path / "out", "--device", "cpu") == 2
    assert "the network answers with NaN or infinity" in capsys.readouterr().err
