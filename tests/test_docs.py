"""Commands, Python, links, numbers and diffs of the documentation hold; and what reads them sees what does not."""

import inspect
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from documents import (
    DOCUMENTS,
    ROOT,
    Reader,
    added,
    applied,
    blocks,
    commands,
    new_python,
    patches,
    slugs,
    spans,
    unread,
    with_own_lines,
    wrong_diffs,
    wrong_links,
    wrong_python,
)

from experiments.shell.catalogue import ARCHITECTURES, DATAMODULES

TEXTS = {path: path.read_text(encoding="utf-8") for path in DOCUMENTS}
README = TEXTS[ROOT / "README.md"]
EXTRAS = {
    "statistics.md": pytest.mark.extra("dev", "statsmodels"),
    "export.md": pytest.mark.extra("export", "onnxruntime"),
}  # that Python of a document needs
each_document = pytest.mark.parametrize("path", [pytest.param(p, id=p.name) for p in DOCUMENTS])


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader(tmp_path_factory.mktemp("documents"))


@each_document
def test_every_command_is_one(path: Path, reader: Reader) -> None:
    wrong = {" ".join(words): reader.wrong(words) for words in commands(TEXTS[path])}
    assert {line: said for line, said in wrong.items() if said} == {}


@pytest.mark.parametrize("path", [pytest.param(p, id=p.name, marks=EXTRAS.get(p.name, ())) for p in DOCUMENTS])
def test_every_python_block_compiles_and_finds_what_it_imports(path: Path, tmp_path: Path) -> None:
    python = [block for block in blocks(TEXTS[path]) if block.language == "python"]
    wrong = {block.line: wrong_python(block.text) for block in python}
    assert {line: said for line, said in wrong.items() if said} == {}


RUNNABLE = {f"{p.name}:{block.line}": block for p, text in TEXTS.items() for block in blocks(text) if block.runnable}


@pytest.mark.parametrize("place", RUNNABLE)
def test_what_is_marked_as_runnable_runs(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "block.py").write_text(RUNNABLE[place].text)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("block.py", run_name="block")


def test_something_is_marked_as_runnable() -> None:
    assert len(RUNNABLE) >= 3


@each_document
def test_every_link_leads_somewhere(path: Path) -> None:
    assert wrong_links(path, TEXTS[path]) == []


def test_every_document_is_linked() -> None:
    linked = {
        name
        for text in TEXTS.values()
        for name in re.findall(r"\((?:\.\./|docs/|architectures/)?([\w-]+\.md)[#)]", text)
    }
    assert {path.name for path in DOCUMENTS} - linked == {"README.md"}


@each_document
def test_every_diff_applies(path: Path) -> None:
    assert wrong_diffs(TEXTS[path]) == ""


@each_document
def test_every_attribute_of_what_the_diffs_add_is_read(path: Path) -> None:
    for place, text in new_python(TEXTS[path]):
        with added(place, text) as module:
            own = [cls for cls in vars(module).values() if isinstance(cls, type) and cls.__module__ == module.__name__]
            assert [unread(cls) for cls in own] == [set()] * len(own)


def test_a_misspelt_attribute_is_seen() -> None:
    text = "class Base:\n    note = ''\n    x: int\nclass Own(Base):\n    ntoe, note, x, y = 1, 2, 3, 4\n    y: int\n"
    with added("own/made.py", text) as module:
        assert module.__name__ == "own.made" and unread(module.Own) == {"ntoe"}


def test_every_flag_that_is_named_exists(reader: Reader) -> None:
    for name in ARCHITECTURES:
        assert reader.parse("train", ["--model", name]) == ""
    for name, datamodule in DATAMODULES.items():
        root = inspect.signature(datamodule).parameters.get("root")
        needed = ["--data.root", "DIR"] * (root is not None and root.default is root.empty)
        assert reader.parse("train", ["--data", name, *needed]) == ""
    for words in (words for text in TEXTS.values() for words in commands(text)):
        reader.wrong(words)  # for the flags that its parser knows
    told = {(path.name, code) for path, text in TEXTS.items() for code in spans(text) if code.startswith("--")}
    assert len(told) > 50
    for document, code in told:
        for flag in re.findall(r"(?<!\S)--[\w.-]+", code):
            assert re.search(r"\.[A-Z]+$", flag) or flag in reader.flags | {"--model", "--data"}, (document, code)


def test_the_readme_is_short_and_its_numbers_are_those_of_the_record() -> None:
    assert len(README.splitlines()) <= 100 and len(README.split()) <= 1000
    record = (ROOT / "experiments/results/ablate_upsampling.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+-?\d?\+\w+) \| (.*) \|$", README, re.MULTILINE)
    assert len(rows) == 4
    for variant, cells in rows:
        known = {
            cell
            for line in re.findall(rf"^\| {re.escape(variant)} \| (.*) \|$", record, re.MULTILINE)
            for cell in line.split(" | ")
        }
        # A difference is a cell with its interval and its star.
        assert {*cells.split(" | ")} <= known, (variant, {*cells.split(" | ")} - known)


def test_the_intervals_of_the_answers_are_those_that_the_records_begin_with() -> None:
    """Those of the sentence and of the first table, which hold together; a row's own, further down, are narrower."""
    page = TEXTS[ROOT / "docs/ablations.md"].split("## Answers")[1]
    pattern, checked = r"[\[(](-?[\d.]+)(?:, | to )(-?[\d.]+)[\])]", 0
    for row in re.findall(r"^\| \[`ablate.*$", page, re.MULTILINE):
        records = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in re.findall(r"\((\S+\.md)\)", row)]
        begun = "".join(text.split("<!-- begin words")[0] for text in records)
        known = [(float(low), float(high)) for low, high in re.findall(pattern, begun)]
        known += [(-high, -low) for low, high in known]  # of the effect the other way round
        for low, high in re.findall(pattern, row):
            assert any((float(low), float(high)) == pytest.approx(one, abs=0.051) for one in known), (row, low, high)
            checked += 1
    assert checked >= 10


def test_architectures_are_those_of_the_catalogue() -> None:
    page = TEXTS[ROOT / "docs" / "architectures.md"]
    all_of_them, some = (
        set(re.findall(r"^\| \[?`(\w+)`(?:\]\(architectures/\1\.md\))? \| ", text.split(end)[0], re.MULTILINE))
        for text, end in ((page, "## Encoders"), (README, "## Your own"))
    )
    assert all_of_them == {*ARCHITECTURES}, "docs/architectures.md has a row for each"
    assert some and some <= all_of_them
    for count in re.findall(r"\d+,\d{3},\d{3}", README):
        assert count in page


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("python -m experiments.train --model unet --model.widht 4", "did you mean --model.width"),
        ("python -m experiments.train --model unet --model.upsample nearst", "did you mean 'nearest'"),
        ("python -m experiments.ablate_upsampling --sceeds 0", "did you mean --seeds"),
        ("python -m experiments.ablate_upsampling --seeds x", "seeds"),
        ("python -m experiments.report --margin none", "expected a number of percentage points"),
        ("python -m experiments.search_crf CHECKPOINT --crf none", "invalid choice"),
        ("python -m experiments.explain MODEL --num-classes N --size 1", "size"),
        ("WANDB_MODE=offline .venv/bin/python -m experiments.tune", "there is no experiments/tune.py"),
        ("python -m tests.fault", "there is no tests.fault"),
        ("python -m pytest tests/no_such", "there is no tests/no_such"),
        ("make tests", "no target tests"),
        ("make test ARG=-k", "no variable ARG"),
        ('pip install -e ".[sotf]"', "no extra sotf"),
        ("pip install seglab", "this project alone"),
        ("pytest -n 2", "no program of the project: pytest"),
    ],
)
def test_a_wrong_command_is_seen(line: str, said: str, reader: Reader) -> None:
    ((words),) = commands(f"```sh\n{line}  # a comment\n```\n")
    assert said in reader.wrong(words)


def test_commands_are_found_in_blocks_and_in_inline_code() -> None:
    text = "`make test`, `python -m experiments.train\n--seed 1` and `make`\n\n```sh\na && b 'c d'\n# none\n```\n"
    expected = [["a"], ["b", "c d"], ["make", "test"], ["python", "-m", "experiments.train", "--seed", "1"]]
    assert [*commands(text)] == expected


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("x = (", "was never closed"),
        ("import no_such", "No module named 'no_such'"),
        ("from experiments import Nothing", "experiments has no Nothing"),
        ("def f():\n    from experiments.none import x", "No module named 'experiments.none'"),
    ],
)
def test_wrong_python_is_seen(code: str, said: str) -> None:
    assert said in wrong_python(code)


def test_a_dead_link_is_seen(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# A title: `x`, and more\n\n```sh\n# no title\n```\n")
    text = "# Own\n[1](b.md) [2](c.md) [3](b.md#a-title-x-and-more) [4](b.md#no-title) [5](#own) [6](#none) [7](https://a.b)"
    assert wrong_links(tmp_path / "a.md", text) == ["c.md", "b.md#no-title", "#none"]
    assert slugs("## One factor: 95 % of `a_b`") == {"one-factor-95--of-a_b"}


def test_a_diff_of_another_version_is_seen() -> None:
    diff = "--- a/Makefile\n+++ b/Makefile\n@@ -1,2 +1,2 @@\n-no such line\n+another\n PYTHON ?= python3\n"
    assert "patch does not apply" in wrong_diffs(f"```diff\n{diff}```\n")


EXTENDING = TEXTS[ROOT / "docs/extending.md"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that the diffs of extending.md change."""
    for path, _ in patches(EXTENDING):
        if (ROOT / path).exists():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, tmp_path / path)
    return tmp_path


def test_the_diffs_apply_where_one_has_been_applied(checkout: Path) -> None:
    for block in blocks(EXTENDING):
        for path, patch in patches(f"```diff\n{block.text}```\n" if block.language == "diff" else ""):
            if not applied(patch, checkout, "--check"):  # not in the checkout of a reader who has applied it
                assert applied(patch, checkout) == ""
            assert (checkout / path).exists()
        assert wrong_diffs(EXTENDING, checkout) == ""


def test_the_diffs_apply_where_the_reader_has_added_an_entry(checkout: Path) -> None:
    own = [with_own_lines(patch) for _, patch in patches(EXTENDING) if not patch.startswith("--- /dev/null")]
    assert len(own) > 10 and all("# an entry" in patch for patch in own)
    for patch in own:
        assert applied(patch, checkout) == ""
    assert wrong_diffs(EXTENDING, checkout) == ""


@pytest.mark.slow
def test_what_the_diffs_add_passes_its_contract(tmp_path: Path) -> None:
    for name in ("datamodules", "experiments", "lightning_modules", "tests", "setup.cfg"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    for path, patch in patches(EXTENDING):
        assert (said := applied(patch, tmp_path)) == "" or (ROOT / path).exists(), said
    folders = ["lightning_modules", "datamodules/test_contract.py", "experiments/reports/tables/test_table_entry.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"tests/{name}" for name in folders)]
    command += ["-k", "linknet or isbi or chest or absolute or title"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) > 40
