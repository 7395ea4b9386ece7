"""The zip of a report: whoever has it alone can check its first table, and it says of no place where it was made."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from handmade import change_plan, write_experiment

from experiments.report import main
from experiments.reports import archive

SMALL = ("--figures", "seeds")


@pytest.fixture(scope="module")
def zipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A written archive; tests only read it."""
    folder = tmp_path_factory.mktemp("outputs") / "study"
    write_experiment(folder)
    for path in sorted(folder.glob("*/seed*/run.json")):  # as those of an own data set
        run = json.loads(path.read_text(encoding="utf-8"))
        run["data"] = {"root": "/home/somebody/data", "crop": 96}
        path.write_text(json.dumps(run), encoding="utf-8")
    _main(folder, "--archive")
    (path,) = folder.glob("*.zip")
    return path


def _main(folder: Path, *flags: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["report", str(folder), *flags])
        main()


def unpacked(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path) as opened:
        opened.extractall(folder)
    (inner,) = folder.iterdir()
    return inner


def verified(folder: Path, encoding: str = "utf-8") -> subprocess.CompletedProcess[str]:
    """In an interpreter that knows nothing of this checkout: -I leaves out its folder and its environment."""
    hide = "import runpy, sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f)]"
    hide += f"; sys.stdout.reconfigure(encoding={encoding!r})"
    code = f"{hide}; runpy.run_path({str(folder / 'verify.py')!r}, run_name='__main__')"
    return subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, encoding="utf-8", check=False)


def test_a_console_without_letters_for_it_is_no_obstacle(zipped: Path, tmp_path: Path) -> None:
    done = verified(unpacked(zipped, tmp_path), "ascii")
    assert done.returncode == 0 and " ? " in done.stdout, done.stderr


def test_the_zip_alone_recomputes_the_first_table(zipped: Path, tmp_path: Path) -> None:
    folder = unpacked(zipped, tmp_path)
    done = verified(folder)
    assert done.returncode == 0 and done.stdout.endswith("every number is as printed\n"), done.stdout + done.stderr
    table = (folder / "table.md").read_text(encoding="utf-8")
    rows = re.findall(r"^  (.+?) \| (.+?) \| (.+?) \| (.+?)   as printed$", done.stdout, re.MULTILINE)
    assert len(rows) == len(json.loads((folder / "first_table.json").read_text(encoding="utf-8"))[0]["rows"]) > 2
    for variant, score, difference, _ in rows:
        assert f"| {variant} | {score} | {difference.replace('*', chr(92) + '*')} |" in table


def test_a_number_that_was_changed_is_found(zipped: Path, tmp_path: Path) -> None:
    folder = unpacked(zipped, tmp_path)
    path = folder / "cells.csv"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    head, cells = lines[0].rstrip().split(","), lines[1].rstrip().split(",")
    place = head.index("intersection")
    cells[place] = str(int(cells[place]) // 2)
    path.write_text("".join([lines[0], ",".join(cells) + "\n", *lines[2:]]), encoding="utf-8")
    done = verified(folder)
    assert done.returncode == 1 and "PRINTED:" in done.stdout and "differ from what is printed" in done.stdout


def test_what_is_in_it(zipped: Path, tmp_path: Path) -> None:
    folder = unpacked(zipped, tmp_path)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    wanted = {
        "README.md",
        "LICENSE",
        "verify.py",
        "cells.csv",
        "reproduce.sh",
        "report.html",
        "methods.tex",
        "paper.tex",
    }
    assert wanted | {"table.csv", "table.tex", "references.bib", "environment.json"} <= files
    assert any(name.startswith("figures/") for name in files) and "runs/ablate_up_sampling/plan.json" in files
    cells = {name for name in files if re.fullmatch(r"runs/[^/]+/[^/]+/seed\d+/(run|result)\.json", name)}
    assert len(cells) > 8
    assert not [name for name in files if name.endswith((".ckpt", "log.txt", "samples.npz", "predictions.zip"))]
    readme = (folder / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"`([\w.]+\.\w+)`", readme):
        assert (folder / name).is_file(), name


def test_the_paper_of_several_experiments_finds_what_it_takes(tmp_path: Path) -> None:
    for data in ("shapes", "discs"):
        write_experiment(tmp_path / data)
        change_plan(tmp_path / data, experiment=f"of_{data}", data=data)
    _main(tmp_path / "shapes", str(tmp_path / "discs"), "--out", str(tmp_path / "both"), "--archive", *SMALL)
    (path,) = (tmp_path / "both").glob("*.zip")
    folder = unpacked(path, tmp_path / "unpacked")
    for file, pattern in (
        ("paper.tex", r"\\(?:input|includegraphics)\{([^}]+)\}"),
        ("table.md", r"!\[[^]]*\]\((.+)\)"),
    ):
        taken = re.findall(pattern, (folder / file).read_text(encoding="utf-8"))
        assert any(name.startswith("of_discs/") for name in taken), file
        assert [name for name in taken if not (folder / name).is_file()] == [], file


def test_it_names_no_place_user_or_machine(zipped: Path, tmp_path: Path) -> None:
    folder = unpacked(zipped, tmp_path)
    run = next(iter(sorted(folder.glob("runs/*/*/seed*/run.json"))))
    assert json.loads(run.read_text(encoding="utf-8"))["data"] == {"root": "PLACE", "crop": 96}
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for word in ("somebody", str(zipped.parent.parent), str(archive.ROOT)):
                assert word.encode() not in content, (path, word)


def test_what_would_name_the_machine_is_refused(
    zipped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = zipped.read_bytes()
    monkeypatch.setattr("platform.node", lambda: "nearest")  # what a variant is called
    with pytest.raises(SystemExit):
        _main(zipped.parent, "--archive")
    assert "the archive would say 'nearest' in " in capsys.readouterr().err
    assert zipped.read_bytes() == before


def test_the_same_report_is_the_same_file(zipped: Path) -> None:
    before = zipped.read_bytes()
    _main(zipped.parent, "--archive")
    assert zipped.read_bytes() == before


def test_predictions_go_in_where_they_are_asked_for(zipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _main(zipped.parent, "--predictions")
    assert "--predictions go into the zip: add --archive" in capsys.readouterr().err
