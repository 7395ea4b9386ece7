"""The committed form of an experiment: drafted sentences, what is kept of a person's words, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from handmade import plant, save_npz, section, write_experiment

from experiments.evidence.experiment import load_experiment
from experiments.reports.page import Section
from experiments.reports.record import draft, write_record
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


def test_the_drafted_answer_says_what_differs_what_does_not_and_how_it_is_known(planted: Section) -> None:
    differences, effects, legend = draft(planted.experiment)
    assert differences.startswith("**On shapes, transposed-3+none (-20.00 points, [-2")
    assert r"]\*) and nearest+none (-28.00 points, [" in differences
    assert r"]\*) differ from transposed-3+concat (60.00 ± 0.60 % mIoU). No difference shows for " in differences
    assert "for nearest+concat (0.00 points, [-" in differences
    assert differences.endswith("]).**")
    assert effects.startswith(
        "**Main effects, averaged over the levels of the other factors: upsample transposed-3 to nearest (-4.00"
    )
    assert r"and skips concat to none (-24.00 points, [" in effects
    assert r"Interaction: upsample transposed-3 to nearest x skips concat to none (-8.00 points, [" in effects
    for words in (
        "mean ± standard deviation over seeds",
        "percentage points",
        "from 3 seeds and 12 images",
        "Holm's correction over 3",
    ):
        assert words in legend


def test_an_interval_that_leaves_out_0_without_a_star_is_neither(tmp_path: Path) -> None:
    plant(tmp_path)
    for seed, moved in enumerate((-76, 0, 76)):  # per mille: the standard deviation of the differences is 7.0 points
        path = tmp_path / "transposed-3+none" / f"seed{seed}" / "per_image.npz"
        with np.load(path) as stored:
            arrays = dict(stored)
        arrays["confusion"][:, [0, 1], [0, 1]] += moved
        arrays["confusion"][:, [0, 1], [1, 0]] -= moved // 2
        save_npz(path, **arrays)
    differences = draft(load_experiment(tmp_path))[0]
    assert differences.startswith("**On shapes, nearest+none (-28.00 points, [")
    assert r"\*) differs from transposed-3+concat" in differences
    assert ". For transposed-3+none (-20.00 points, [-3" in differences
    assert differences.endswith(
        "]) the interval leaves out 0, but no star holds for it after the correction for the number of comparisons.**"
    )


def test_what_cannot_be_tested_is_said(tmp_path: Path) -> None:
    write_experiment(tmp_path)  # of two images
    differences, effects, legend = draft(load_experiment(tmp_path))
    known = (
        "**On shapes, no difference to transposed-3+concat (82.00 ± 2.00 % mIoU) is known. Not tested: nearest+concat "
    )
    assert differences.startswith(f"{known}(+6.00 points, no interval), ")
    assert "No difference gets a star: needs 6 images, got 2." in legend
    assert effects.startswith(
        "**Main effects not tested: upsample transposed-3 to nearest (+3.00 points, no interval) and "
    )
    assert "Interaction not tested: upsample" in effects
    assert legend.endswith("Effects of the factors are not tested: needs 6 images, got 2.")


def test_one_seed_speaks_of_its_networks_only(tmp_path: Path) -> None:
    plant(tmp_path, seeds=1)
    differences, _, legend = draft(load_experiment(tmp_path))
    alone = "All of this is of these trained networks alone: 1 seed is too few to tell what other seeds would give.**"
    assert differences.endswith(alone)
    assert "(59.40 ± - % mIoU)" in differences and r"nearest+none (-26.80 points, [-2" in differences
    assert "other images, the same trained networks" in legend and "it says nothing of other seeds" in legend
    assert "Effects of the factors are not tested: needs 3 seeds, got 1." in legend


def test_without_a_baseline_nothing_is_compared(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    shutil.rmtree(tmp_path / "transposed-3+concat")
    (sentence,) = draft(load_experiment(tmp_path))
    assert sentence == "**On shapes, nothing can be compared yet: no variant has a finished seed of the baseline.**"


def test_one_variant_is_compared_with_nothing(tmp_path: Path) -> None:
    plant(tmp_path)
    plan = json.loads((tmp_path / "plan.json").read_text())
    plan["variants"] = {"transposed-3+concat": plan["variants"]["transposed-3+concat"]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert draft(load_experiment(tmp_path)) == ["**On shapes, nothing can be compared: there is one variant.**"]


def test_the_correction_is_blamed_only_for_what_it_took(tmp_path: Path) -> None:
    """An interval by one method and a test by another can disagree without any correction."""
    plant(tmp_path, seeds=1)
    experiment = load_experiment(tmp_path)
    assert experiment.compared is not None
    for name, one in experiment.compared.differences.items():
        tests = {kind: replace(test, p=0.06, adjusted=0.06) for kind, test in one.tests.items()}
        experiment.compared.differences[name] = replace(one, tests=tests)
    differences = draft(experiment)[0]
    assert "out 0, but no star holds for them. " in differences and "correction" not in differences


def test_of_other_images_no_interval_is_called_one_of_the_same(tmp_path: Path) -> None:
    plant(tmp_path)
    path = tmp_path / "nearest+none" / "seed0" / "per_image.npz"
    with np.load(path) as stored:
        save_npz(path, **{key: array[:-1] for key, array in stored.items()})
    legend = draft(load_experiment(tmp_path))[-1]
    assert "seeds, the same images" not in legend and "does not allow for the images being other ones" in legend


def test_an_effect_without_a_common_seed_is_named(tmp_path: Path) -> None:
    plant(tmp_path)
    shutil.rmtree(tmp_path / "nearest+none")
    effects = draft(load_experiment(tmp_path))[1]
    assert "Without a seed that all its variants have finished: upsample transposed-3 to nearest and skips" in effects


def test_a_record_holds_every_seed_commit_command_and_cost(planted: Section, tmp_path: Path) -> None:
    path = write_record([planted], None, tmp_path / "results")
    assert path == tmp_path / "results" / "ablate_up_sampling.md"
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# Transposed or resize?\n\n**On shapes, ")
    for words in (
        "python -m experiments.x --seeds 0 1 2\n```\n\nat commit ab12",
        "12 finished cells (4 variants, 3 seeds) took 38 s together",  # 3.2 s each
        "Failed or missing: no cell.",
        "Deviations: none.",
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
    assert write_record([planted], None, tmp_path).read_text(encoding="utf-8") == written
    plant(tmp_path / "other", seeds=2)
    again = write_record([section(tmp_path / "other")], None, tmp_path).read_text(encoding="utf-8")
    assert WORDS in again and again != written and "2 seeds" in again


def test_an_answer_of_a_person_stays_until_there_is_another(planted: Section, tmp_path: Path) -> None:
    path = write_record([planted], None, tmp_path, answer="**Skips *matter*.**")
    assert "**Skips *matter*.**" in path.read_text() and "No difference shows" not in path.read_text()
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
    assert text.index("**On camvid") < text.index("**On brain") < text.index("## The same variants of 2 experiments")
    assert "\n## ablate_it_camvid: camvid\n" in text and "\n## ablate_it: brain\n" in text
    assert "Failed or missing:\n\n- nearest+none, seed 1: started, not finished" in text
    assert "Deviations:\n\n- Partial: 11 of 12 cells" in text


def test_names_are_escaped_and_make_no_other_path(planted: Section, tmp_path: Path) -> None:
    rename(tmp_path / "planted", "../../<b>x*", "<!-- begin words: -->")
    path = write_record([section(tmp_path / "planted")], None, tmp_path / "deep" / "er")
    assert path == tmp_path / "deep" / "er" / "b-x.md"
    assert "<b>" not in path.read_text() and write_record([section(tmp_path / "planted")], None, path.parent) == path
