"""A checkpoint as a function of an image gives what its training's test gives, for every architecture and data set."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from trained import CLASSES, checkpoint, module_of, photograph, reading, saved

from datamodules.base import SegmentationDataModule
from experiments import Segmenter
from experiments.prediction import fitting
from experiments.prediction.segmenter import enlarged
from experiments.runs.run import Run
from experiments.runs.scoring import evaluate
from experiments.runs.training import train
from experiments.shell.catalogue import DATAMODULES
from lightning_modules.catalogue import ARCHITECTURES
from lightning_modules.components.scores.reductions import scores
from lightning_modules.refinement import post_process
from lightning_modules.unet import UNetModule

sys.path.append(str(Path(__file__).parents[2] / "datamodules"))
from tiny_data import arguments_of, takes_root, tiny  # the examples of the contract of data sets


def counted(labels: np.ndarray, mask: np.ndarray, classes: int) -> np.ndarray:
    known = mask != 255
    return np.bincount(mask[known] * classes + labels[known], minlength=classes**2).reshape(classes, classes)


@pytest.mark.parametrize("name", DATAMODULES)
def test_a_trained_checkpoint_answers_as_the_test_of_its_training(name: str, tmp_path: Path) -> None:
    stated = arguments_of(name, tmp_path / "data") if takes_root(name) else {}
    arguments = {"crop": (40, 32), **stated, "batch_size": 2}
    scaled = {"scale": 0.5} if "scale" not in DATAMODULES[name].hidden else {"size": 40, "length": 8}
    run = Run(
        module=UNetModule,
        datamodule=DATAMODULES[name],
        hparams={"width": 4, "depth": 2, "norm": "batch", "lr": 1e-3},
        data=arguments | scaled,
        trainer={"max_steps": 2, "accelerator": "cpu"},
    )
    result = train(run, tmp_path / "run")
    segmenter = Segmenter.from_checkpoint(tmp_path / "run/checkpoints/last.ckpt", device="cpu")
    # The images as they are, and the masks at the scale of the training.
    whole: SegmentationDataModule = DATAMODULES[name](**arguments | {k: v for k, v in scaled.items() if k != "scale"})
    small: SegmentationDataModule = DATAMODULES[name](**arguments | scaled)
    with np.load(tmp_path / "run/per_image.npz", allow_pickle=False) as stored:
        of_test = stored["confusion"].astype(np.int64)
    classes = small.num_classes
    images, masks = whole.dataset("test"), small.dataset("test")
    places = range(len(masks))
    mine = np.stack([counted(segmenter(images[i][0]).scaled.labels, masks[i][1].numpy(), classes) for i in places])
    assert abs(float(scores(mine.sum(0))["miou"]) - float(scores(of_test.sum(0))["miou"])) < 1e-12
    assert (mine == of_test).all()
    assert abs(float(scores(mine.sum(0))["miou"]) - result["test"]["miou"]) < 1e-6  # which is stored in float32
    trained = segmenter.module.trained
    assert trained["data"] == DATAMODULES[name].__name__
    assert trained["scores"]["test"]["miou"] == result["test"]["miou"]
    assert trained["run"] == run.identified().hash
    assert trained["commit"]
    assert trained["reads"]["scale"] == scaled.get("scale", 1.0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_answers_as_its_evaluation(name: str, tmp_path: Path) -> None:
    data = tiny("shapes", tmp_path / "data")
    module = module_of(name, in_channels=data.in_channels, classes=data.num_classes)
    channels = {1: "grey", 3: "rgb"}[data.in_channels]
    path = saved(module, tmp_path / "last.ckpt", reading(channels))
    expected, labels, _ = evaluate(module, data.dataset("test"), 1)
    segmenter = Segmenter.from_checkpoint(path, device="cpu")
    for index in range(len(data.dataset("test"))):
        image, mask = data.dataset("test")[index]
        answer = segmenter(image)
        assert (answer.labels == labels[index]).all()
        assert (counted(answer.labels, mask.numpy(), data.num_classes) == expected["confusion"][index]).all()


def test_a_path_a_picture_an_array_and_a_tensor_are_one_image(tmp_path: Path) -> None:
    segmenter = Segmenter.from_checkpoint(checkpoint(tmp_path), device="cpu")
    path = photograph(tmp_path / "a.png")
    picture = Image.open(path)
    array = np.asarray(picture)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    forms = [
        path,
        str(path),
        picture,
        array,
        array.astype(np.float32) / 255,
        tensor,
        tensor.float() / 255,
        tensor[None],
    ]
    answers = [segmenter(form) for form in [*forms, array.astype(np.uint16) * 257]]
    assert answers[0].labels.shape == (60, 83) and answers[0].labels.dtype == np.uint8
    assert len(np.unique(answers[0].labels)) > 1
    assert all((answer.labels == answers[0].labels).all() for answer in answers)
    first = answers[0]
    assert (first.confidence >= 1 / 3).all() and (first.entropy >= 0).all() and (first.entropy <= 1).all()
    assert first.class_names == tuple(CLASSES)
    assert first.disagreement is None and first.probabilities is None


def test_a_photograph_held_on_its_side_is_turned(tmp_path: Path) -> None:
    segmenter = Segmenter.from_checkpoint(checkpoint(tmp_path), device="cpu")
    picture = Image.open(photograph(tmp_path / "a.png"))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "b.png", exif=exif)
    straight, turned = segmenter(tmp_path / "a.png"), segmenter(tmp_path / "b.png")
    assert (straight.labels == turned.labels).all()
    assert (segmenter(Image.open(tmp_path / "b.png")).labels == straight.labels).all()


def test_labels_of_another_scale_are_enlarged_by_the_nearest(tmp_path: Path) -> None:
    segmenter = Segmenter.from_checkpoint(checkpoint(tmp_path, trained=reading(scale=0.4)), device="cpu")
    answer = segmenter(photograph(tmp_path / "a.png"))
    assert answer.scaled.labels.shape == (24, 33)
    assert answer.labels.shape == (60, 83)
    nearest = torch.nn.functional.interpolate(
        torch.from_numpy(answer.scaled.labels)[None, None].float(), size=(60, 83), mode="nearest-exact"
    )
    assert (nearest[0, 0].numpy() == answer.labels).all()
    assert enlarged(answer.labels, (60, 83)) is answer.labels


def test_several_networks_answer_with_their_mean(tmp_path: Path) -> None:
    paths = [checkpoint(tmp_path, f"{seed}.ckpt", seed=seed) for seed in range(3)]
    together = Segmenter.from_checkpoint(*paths, device="cpu", probabilities=True)
    path = photograph(tmp_path / "a.png")
    answer = together(path)
    each = [Segmenter.from_checkpoint(one, device="cpu", probabilities=True)(path) for one in paths]
    mean = np.mean([one.probabilities for one in each], axis=0)
    assert answer.probabilities is not None and answer.disagreement is not None
    assert np.allclose(answer.probabilities, mean, atol=1e-6)
    other = np.mean([one.labels != answer.labels for one in each], axis=0)
    assert np.allclose(answer.disagreement, other, atol=1e-6)
    assert 0 < other.mean() < 1


def test_mirrored_and_scaled_views_are_averaged(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    image = photograph(tmp_path / "a.png")
    plain = Segmenter.from_checkpoint(path, device="cpu", probabilities=True)
    flipped = Segmenter.from_checkpoint(path, device="cpu", probabilities=True, flip=True)(image).probabilities
    mirrored = Image.open(image).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    one, other = plain(image).probabilities, plain(mirrored).probabilities
    assert one is not None and other is not None and flipped is not None
    assert np.allclose(flipped, (one + other[..., ::-1]) / 2, atol=1e-6)
    scaled = Segmenter.from_checkpoint(path, device="cpu", probabilities=True, scales=(0.5, 1.0))(image).probabilities
    assert scaled is not None and scaled.shape == one.shape
    assert not np.allclose(scaled, one, atol=1e-3)
    assert np.allclose(scaled.sum(0), 1, atol=1e-5)


def test_a_crf_stands_behind_the_network(tmp_path: Path) -> None:
    options = {"w_appearance": 4.0, "theta_alpha": 20.0, "theta_beta": 5.0, "w_smoothness": 3.0, "theta_gamma": 3.0}
    path, image = checkpoint(tmp_path), photograph(tmp_path / "a.png")
    answer = Segmenter.from_checkpoint(path, device="cpu", crf="dense", crf_options=options)(image)
    module = Segmenter.from_checkpoint(path, device="cpu").module
    module.refine = post_process("dense", **options)
    with torch.no_grad():
        x = torch.from_numpy(np.asarray(Image.open(image)).copy()).permute(2, 0, 1)[None] / 255
        expected = module(x).argmax(1)[0].numpy()
    assert (answer.labels == expected).all()
    with pytest.raises(ValueError, match="a CRF behind the network needs the whole image at once: leave out tile"):
        Segmenter.from_checkpoint(path, device="cpu", crf="dense", crf_options=options, tile=32)
    with pytest.raises(ValueError, match="crf_options belong to a CRF"):
        Segmenter.from_checkpoint(path, crf_options=options)


@pytest.mark.parametrize("options", [{}, {"probabilities": True}, {"flip": True}])
def test_tiles_give_the_labels_of_the_whole_image(options: dict[str, bool], tmp_path: Path) -> None:
    path, image = checkpoint(tmp_path), photograph(tmp_path / "a.png", 150, 131)
    whole = Segmenter.from_checkpoint(path, device="cpu", **options)(image)
    tiled = Segmenter.from_checkpoint(path, device="cpu", tile=24, **options)(image)
    assert (whole.labels == tiled.labels).all()
    assert np.allclose(whole.confidence, tiled.confidence, atol=1e-5)
    assert np.allclose(whole.entropy, tiled.entropy, atol=1e-5)


def test_an_image_that_does_not_fit_is_cut_by_itself(tmp_path: Path) -> None:
    path, image = checkpoint(tmp_path), photograph(tmp_path / "a.png", 300, 301)
    whole = Segmenter.from_checkpoint(path, device="cpu")
    little = Segmenter.from_checkpoint(path, device="cpu", memory=0.5 * whole.fitting.needs(300, 301))
    cut = little.fitting.cut(300, 301)
    assert cut.kind == "exact" and cut.side < 300
    assert little.fitting.needs(cut.side, cut.side) < 0.5 * whole.fitting.needs(300, 301)
    assert (whole(image).labels == little(image).labels).all()
    none = Segmenter.from_checkpoint(path, device="cpu", memory=1000)
    with pytest.raises(ValueError, match=r"not even a tile of 64 pixels with the 24 around it .* raise --memory to"):
        none(image)


def test_what_runs_out_of_memory_is_halved_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, image = checkpoint(tmp_path), photograph(tmp_path / "a.png", 320, 321)
    said: list[str] = []
    segmenter = Segmenter.from_checkpoint(path, device="cpu", say=said.append)
    expected = Segmenter.from_checkpoint(path, device="cpu")(image)
    before = type(segmenter.module).forward

    def forward(self: UNetModule, images: torch.Tensor) -> torch.Tensor:
        if not images.is_meta and images.shape[-1] > 140:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return before(self, images)

    monkeypatch.setattr(type(segmenter.module), "forward", forward)
    assert (segmenter(image).labels == expected.labels).all()
    assert said == [
        "out of memory at the whole image: going on with tiles of 160 pixels",
        "out of memory at 160: going on with tiles of 80 pixels",
    ]
    said.clear()
    segmenter(image)
    assert not said, "the next image begins with what fitted"
    monkeypatch.setattr(type(segmenter.module), "forward", lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(ValueError, match="does not fit into the memory of cpu"):
        segmenter(image)


def test_exact_tiles_are_refused_where_there_are_none(tmp_path: Path) -> None:
    path = saved(module_of("pspnet"), tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="exact tiles need a local network, and for PSPNetModule it pools the image"):
        Segmenter.from_checkpoint(path, device="cpu", tile=64)
    with pytest.raises(ValueError, match="tile and overlap are two ways"):
        Segmenter.from_checkpoint(path, device="cpu", tile=64, overlap=64)
    with pytest.raises(ValueError, match="overlap must be at least 16 pixels, got 3"):
        Segmenter.from_checkpoint(path, device="cpu", overlap=3)


@pytest.mark.extra("overlap", "monai")
def test_windows_are_blended_and_the_difference_measured(tmp_path: Path) -> None:
    path, image = saved(module_of("pspnet"), tmp_path / "last.ckpt"), photograph(tmp_path / "a.png", 150, 90)
    said: list[str] = []
    segmenter = Segmenter.from_checkpoint(path, device="cpu", overlap=64, probabilities=True, say=said.append)
    answer = segmenter(image)
    assert answer.probabilities is not None and np.allclose(answer.probabilities.sum(0), 1, atol=1e-4)
    assert len(said) == 1 and "blended of overlapping windows of 64 pixels" in said[0] and "% of the labels" in said[0]
    # The measured difference is that to a prediction at once, on the same pixels.
    x = segmenter.image(image)
    most, other, size = fitting.difference(lambda w: segmenter.module(w).detach(), x, 64, 128, 3)
    assert size == (128, 90)
    part = x[:, 11:139]
    with torch.no_grad():
        whole = segmenter.module(part[None]).softmax(1)[0]
        blended = fitting.blended(segmenter.module, part, 64, 3)
    assert most == pytest.approx(float((whole - blended).abs().max()))
    assert other == pytest.approx(float((whole.argmax(0) != blended.argmax(0)).float().mean()))


def test_networks_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    first, other = checkpoint(tmp_path), checkpoint(tmp_path, "other.ckpt", classes=4)
    with pytest.raises(ValueError, match=r"other.ckpt predicts 4 classes \(road, tree, sky, 3\)"):
        Segmenter.from_checkpoint(first, other, device="cpu")
    scaled = checkpoint(tmp_path, "scaled.ckpt", trained=reading(scale=0.5))
    with pytest.raises(ValueError, match="takes other images"):
        Segmenter.from_checkpoint(first, scaled, device="cpu")
    with pytest.raises(ValueError, match="give a checkpoint"):
        Segmenter.from_checkpoint()
    with pytest.raises(ValueError, match="device must be one that is there"):
        Segmenter.from_checkpoint(first, device="cuda:77")
    with pytest.raises(ValueError, match="scales must be factors"):
        Segmenter.from_checkpoint(first, device="cpu", scales=(0.0,))


@pytest.mark.gpu
def test_a_gpu_answers_as_the_cpu(tmp_path: Path) -> None:
    path, image = checkpoint(tmp_path), photograph(tmp_path / "a.png", 300, 301)
    on_cpu, on_gpu = (Segmenter.from_checkpoint(path, device=device)(image) for device in ("cpu", "cuda"))
    assert (on_cpu.labels == on_gpu.labels).mean() > 0.999
    tiled = Segmenter.from_checkpoint(path, device="cuda", tile=64)(image)
    assert (tiled.labels == on_gpu.labels).mean() > 0.9999


@pytest.mark.gpu
def test_a_gpu_that_runs_out_of_memory_goes_on_in_tiles(tmp_path: Path) -> None:
    path, image = checkpoint(tmp_path, width=32), photograph(tmp_path / "a.png", 3000, 3001)
    said: list[str] = []
    total = torch.cuda.get_device_properties(0).total_memory
    segmenter = Segmenter.from_checkpoint(path, device="cuda", memory=1e12, say=said.append)
    torch.cuda.set_per_process_memory_fraction(1.5e9 / total)
    try:
        answer = segmenter(image)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert said and said[0].startswith("out of memory at the whole image: going on with tiles of 1500 pixels")
    expected = Segmenter.from_checkpoint(path, device="cuda")(image)
    assert (answer.labels == expected.labels).mean() > 0.9999
