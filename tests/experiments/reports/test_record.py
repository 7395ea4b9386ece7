"""The committed form of an experiment: what stands first, what is folded, what is kept of a person's words."""

import json
import re
from pathlib import Path

import pytest
from handmade import plant, section, write_experiment

from experiments.evidence.power import pilots
from experiments.reports.formats import escape_markdown
from experiments.reports.page import Section
from experiments.reports.record import write_record
from experiments.reports.tables import make_summary
from experiments.shell.files import write_json

WORDS = "Words of a person.\n\n## With a heading\n\n| a | table |\n| --- | --- |"


def rename(folder: Path, name: str, data: str = "shapes") -> None:
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(plan | {"experiment": name, "data": data}))


@pytest.fixture
def planted(tmp_path: Path) -> Section:
    plant(tmp_path / "planted")
    return section(tmp_path / "planted")


def test_it_begins_with_question_answer_table_figure_and_limits_and_folds_the_rest(
    planted: Section, tmp_path: Path
) -> None:
    text = write_record([planted], None, tmp_path).read_text(encoding="utf-8")
    first, folded = text.split("<details>", 1)
    places = [
        first.index(words)
        for words in (
            "# Transposed or resize?",
            f"**{escape_markdown(planted.headline)}**",
            "| variant | mIoU (%) | difference to transposed-3+concat (points) | GMAC |",
            "![ablate_up_sampling: seeds](figures/ablate_up_sampling_seeds.png)",
            "On shapes, upsample nearest scores 4.0 points",
            "This holds for other seeds and these images only (their groups were not stored)",
            "CPU scale.",
            "<!-- spread: ",
            "<!-- begin words",
        )
    ]
    assert places == sorted(places) and first.count("| variant |") == 1
    assert len(re.sub(r"<!--.*?-->", "", first, flags=re.DOTALL).split()) < 300
    assert re.search(r"\| transposed-3\+none \| 40\.00 ± 0\.60 \| -20\.00 \[-2\d\.\d\d, -1\d\.\d\d\]\\\* \|", first)
    for words in (
        "### Evidence",
        "### Effects of the crossed factors",
        "### All test scores",
        "### What each number is",
    ):
        assert words in folded
    assert text.count("<details>") == text.count("</details>") == 1


def test_its_spread_is_a_pilot_of_other_plans(planted: Section, tmp_path: Path) -> None:
    text = write_record([planted], None, tmp_path).read_text(encoding="utf-8")
    (pilot,) = pilots(text)
    assert (pilot.sd, pilot.df) == (pytest.approx(100 * planted.experiment.family.sd, rel=1e-3), 6)
    plant(tmp_path / "single", seeds=1)
    text = write_record([section(tmp_path / "single")], None, tmp_path / "of one").read_text(encoding="utf-8")
    assert "<!-- spread" not in text and " On shapes, 1 seed cannot tell" in text


def test_a_record_holds_every_seed_commit_command_and_cost(planted: Section, tmp_path: Path) -> None:
    path = write_record([planted], None, tmp_path / "results")
    assert path == tmp_path / "results" / "ablate_up_sampling.md"
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# Transposed or resize?\n\n**{escape_markdown(planted.headline)}**")
    for words in (
        "python -m experiments.x --seeds 0 1 2\n```\n\nat commit ab12",
        "12 finished cells (4 variants, 3 seeds) took 38 s together",  # 3.2 s each
        "Failed or missing: no cell.",
        "### Every seed",
        "| nearest+none | 2 |",
        "### Error anatomy",
        "![ablate_up_sampling: scores](figures/ablate_up_sampling_scores.png)\n\ncaption of scores",
    ):
        assert words in text, words
    unknown = (
        "Device of a cell: 1 x CPU; processor: unknown; BLAS: unknown; CPU threads of a cell: 1; versions: unknown."
    )
    assert unknown in text  # of an earlier version
    # Pictures of the data are not passed on.
    assert {file.name for file in (path.parent / "figures").iterdir()} == {
        "ablate_up_sampling_scores.png",
        "ablate_up_sampling_seeds.png",
    }


def test_a_record_names_the_code_that_was_not_committed_and_the_machine(tmp_path: Path) -> None:
    write_experiment(tmp_path / "x")
    for path in tmp_path.glob("x/*/seed*/environment.json"):
        machine = {
            "processor": "EPYC (family 25)",
            "instruction_set": "AVX512",
            "blas": "MKL 2024.2",
            "python": "3.11.7",
        }
        code = {"commit": "ab12-dirty", "patch": "ab" * 32, "versions": {"torch": "2.15.0", "numpy": "2.4.6"}}
        write_json(path, json.loads(path.read_text()) | machine | code)
    found = section(tmp_path / "x")
    text = write_record([found], None, tmp_path / "results").read_text(encoding="utf-8")
    assert "at commit ab12-dirty with code-abababababab.patch. Device of a cell: 1 x CPU; " in text
    assert "processor: EPYC (family 25), AVX512; BLAS: MKL 2024.2; CPU threads of a cell: 1; versions: " in text
    assert "versions: python 3.11.7, torch 2.15.0, numpy 2.4.6. 12 finished cells" in text
    assert "the same numbers on the same kind of processor (EPYC (family 25), AVX512)." in " ".join(found.notes)


def test_recorded_twice_it_is_the_same_and_own_words_are_kept(planted: Section, tmp_path: Path) -> None:
    path = write_record([planted], None, tmp_path)
    first = path.read_bytes()
    assert write_record([planted], None, tmp_path).read_bytes() == first
    written = path.read_text(encoding="utf-8").replace(
        "this file is written again -->\n", f"this file is written again -->\n{WORDS}"
    )
    path.write_text(written, encoding="utf-8")
    kept = write_record([planted], None, tmp_path).read_text(encoding="utf-8")
    assert "<details><summary>More of what was seen</summary>\n\n<!-- begin words" in kept  # no longer empty
    assert WORDS in kept and write_record([planted], None, tmp_path).read_text(encoding="utf-8") == kept
    plant(tmp_path / "other", seeds=2)
    again = write_record([section(tmp_path / "other")], None, tmp_path).read_text(encoding="utf-8")
    assert WORDS in again and again != kept and "2 seeds" in again


def test_an_answer_of_a_person_stays_until_there_is_another(planted: Section, tmp_path: Path) -> None:
    path = write_record([planted], None, tmp_path, answer="**Skips *matter*.**")
    assert "**Skips *matter*.**" in path.read_text() and "**On shapes" not in path.read_text()
    path.write_text(path.read_text().replace("\n<!-- end words", f"{WORDS}\n<!-- end words"))
    write_record([planted], None, tmp_path)
    assert "**Skips *matter*.**" in path.read_text()
    (tmp_path / "answer.txt").write_text("From a file.\n")
    write_record([planted], None, tmp_path, answer=str(tmp_path / "answer.txt"))
    assert "-->\nFrom a file.\n<!--" in path.read_text() and "Skips *" not in path.read_text()
    assert WORDS in path.read_text()
    write_record([planted], None, tmp_path, answer="long " * 100)
    for wrong in ("<!-- end words -->", " "):
        with pytest.raises(ValueError, match="--answer must be a sentence without HTML comments"):
            write_record([planted], None, tmp_path, answer=wrong)


def test_a_file_of_a_person_is_never_replaced(planted: Section, tmp_path: Path) -> None:
    path = tmp_path / "ablate_up_sampling.md"
    path.write_text("# By hand\n\nAn answer.\n")
    with pytest.raises(
        ValueError,
        match=r"was not written by --record.*expected the lines\n<!-- begin words.*\n<!-- end words -->\nPut",
    ):
        write_record([planted], None, tmp_path)
    assert path.read_text() == "# By hand\n\nAn answer.\n" and not (tmp_path / "figures").exists()
    path.write_text("# By hand\n\n<!-- begin words: mine -->\nAn answer.\n<!-- end words -->\n")
    assert "\nAn answer.\n<!-- end words -->" in write_record([planted], None, tmp_path).read_text()

    path.write_text(
        path.read_text().replace("\nAn answer.\n<!-- end", "\n<!-- end")
    )  # without an empty line between the marks
    write_record([planted], None, tmp_path)
    changed = path.read_text().replace("Failed or missing: no cell.", "One cell failed twice.")
    path.write_text(changed)
    with pytest.raises(ValueError, match=r"(?s)was changed outside its marks.*delete the last line"):
        write_record([planted], None, tmp_path)
    assert path.read_text() == changed
    path.write_text(changed.rstrip("\n").rpartition("\n")[0])
    assert "One cell failed twice." not in write_record([planted], None, tmp_path).read_text()


def test_a_file_that_is_not_there_is_no_answer(planted: Section, tmp_path: Path) -> None:
    for answer in ("notes/answer.md", str(tmp_path), "answer.txt"):
        with pytest.raises(ValueError, match=r"--answer must be a sentence or a file.*which is no file"):
            write_record([planted], None, tmp_path, answer=answer)
    binary = tmp_path / "binary.md"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"--answer .*binary\.md must be a text file in UTF-8"):
        write_record([planted], None, tmp_path, answer=str(binary))
    assert "\nYes.\n" in write_record([planted], None, tmp_path, answer="Yes.").read_text()
    mine = tmp_path / "ablate_up_sampling.md"
    mine.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"ablate_up_sampling\.md must be text in UTF-8"):
        write_record([planted], None, tmp_path)
    assert mine.read_bytes() == b"\xff\xfe"


def test_several_experiments_are_one_file_with_a_section_each(tmp_path: Path) -> None:
    for name, data in (("ablate_it_camvid", "camvid"), ("ablate_it", "brain")):
        plant(tmp_path / name)
        rename(tmp_path / name, name, data)
    lost = tmp_path / "ablate_it" / "nearest+none" / "seed1"
    (lost / "result.json").unlink()
    sections = [section(tmp_path / name) for name in ("ablate_it_camvid", "ablate_it")]
    path = write_record(sections, make_summary([one.experiment for one in sections]), tmp_path / "out")
    text = path.read_text(encoding="utf-8")
    assert path.name == "ablate_it.md" and text.count("# Transposed or resize?") == 1
    folded = "<details><summary>The same variants of 2 experiments"
    assert text.index(" On camvid") < text.index(" On brain") < text.index("| variant |") < text.index(folded)
    for name, data in (("ablate_it_camvid", "camvid"), ("ablate_it", "brain")):
        assert f"<details><summary>{name} on {data}: every table, how it was made, what failed</summary>" in text
    assert "Failed or missing:\n\n- nearest+none, seed 1: started, not finished" in text
    assert "\n\nPartial: 11 of 12 cells are finished" in text.split("<details>")[0]


def test_names_are_escaped_and_make_no_other_path(planted: Section, tmp_path: Path) -> None:
    rename(tmp_path / "planted", "../../<b>x*", "<!-- begin words: -->")
    path = write_record([section(tmp_path / "planted")], None, tmp_path / "deep" / "er")
    assert path == tmp_path / "deep" / "er" / "b-x.md"
    text = path.read_text()
    assert "<b>" not in re.sub(r"<!--.*?-->", "", text) and text.count("<!-- begin words") == 1
    assert write_record([section(tmp_path / "planted")], None, path.parent) == path
