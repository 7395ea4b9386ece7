"""The comparison of the CRFs runs end to end, and what it compares is the same maths."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.benchmark_crf import TUNED_MALLOC, main
from experiments.crfs.measure import ORACLE, PARAMETERS, Measured
from experiments.crfs.peers import pydensecrf, unaries, unfolded
from lightning_modules.refinement.conv_crf import conv_crf
from lightning_modules.refinement.dense_crf import dense_crf


def write_photograph(folder: Path) -> Path:
    rows, columns = np.mgrid[:60, :80]
    noise = np.random.default_rng(0).integers(20, size=(60, 80, 3))
    colours = np.stack([3 * rows, 3 * columns, 100 * (rows + columns > 70)], 2) + noise
    Image.fromarray(colours.clip(0, 255).astype(np.uint8)).save(folder / "photograph.png")
    return folder / "photograph.png"


def test_the_unfolded_window_is_conv_crf() -> None:
    images = torch.randint(256, (2, 3, 11, 14)).float()
    probabilities = torch.randn(2, 4, 11, 14).softmax(1)
    parameters = {name: value for name, value in PARAMETERS["80/13"].items() if name != "normalization"}
    ours = conv_crf(probabilities, images, **parameters, window=7, shape="square", iterations=3)
    other = unfolded(probabilities, images, **parameters, window=7, iterations=3)
    torch.testing.assert_close(ours, other, atol=1e-5, rtol=0)


@pytest.mark.extra("oracle", "pydensecrf")
@pytest.mark.parametrize("silent", [None, "w_appearance", "w_smoothness"])
def test_the_original_is_asked_the_same_question(silent: str | None) -> None:
    image = np.random.default_rng(0).integers(256, size=(20, 30, 3)).astype(np.uint8)
    probabilities = unaries(3, 20, 30)
    parameters = {**PARAMETERS["80/13"], **({silent: 0.0} if silent else {})}
    theirs = pydensecrf(probabilities, image, 5, parameters)
    ours = dense_crf(probabilities, torch.from_numpy(image).permute(2, 0, 1)[None].float(), iterations=5, **parameters)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_unaries_are_probabilities_of_every_class() -> None:
    probabilities = unaries(5, 64, 96)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(1, 64, 96))
    assert probabilities.argmax(1).unique().tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(probabilities, unaries(5, 64, 96))


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    """A round in which the machine was ten times slower changes nothing."""
    ours, other = Measured(cpu=[1.0, 10.0, 1.0]), Measured(cpu=[4.0, 40.0, 3.0])
    assert ours.ratio(other, "cpu") == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sizes", "320"], "expected HEIGHTxWIDTH"),
        (["--threads", "2"], "--threads needs 1"),
        (["--image", "nowhere.png"], "--image nowhere.png is no file"),
    ],
)
def test_refuses(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(flags)
    assert message in capsys.readouterr().err


def test_quick_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in TUNED_MALLOC.items():
        monkeypatch.setenv(name, value)  # the command sets them; this takes them back
    out = tmp_path / "crf.md"
    main(["--quick", "--image", str(write_photograph(tmp_path)), "--threads", "1", "--out", str(out)])
    printed, page = capsys.readouterr().out, out.read_text()
    tables = [
        [[cell.strip() for cell in row.strip("|").split("|")] for row in block.splitlines()]
        for block in page.split("\n\n")
        if block.startswith("|")
    ]
    for row in tables[0][2:]:  # against the exact sum
        assert all(0 <= float(cell) < 1 for cell in row[1:-1])
        assert float(row[-1].removesuffix(" %")) > 80
    for table in tables[1:-1]:
        for row in table[2:]:
            cpu, _, wall = (float(cell) if cell != "-" else 1 for cell in row[2:5])
            assert cpu > 0 and wall > 0
    bars = {row[0]: row[2] for row in tables[-1][2:]}
    equalities = [verdict for bar, verdict in bars.items() if ": within" in bar or ORACLE in bar]
    assert len(equalities) >= 2 and set(equalities) == {"met"}
    assert set(bars.values()) <= {"met", "MISSED", "not measured"}
    assert (f"{ORACLE} is not installed" in printed) == (find_spec("pydensecrf") is None)
    assert all(bar in printed for bar in bars)
