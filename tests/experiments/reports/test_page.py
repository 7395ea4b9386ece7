"""What stands in report.html, read without a browser."""

import base64
import hashlib
import io
import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import handmade
import numpy as np
import pytest
from handmade import write_experiment
from hostile import BASE, CLASSES, IMAGES, IMG, LONG, PALETTE, UNFINISHED, make_section, write_hostile
from PIL import Image

from experiments.evidence.experiment import load_experiment
from experiments.reports.page import MOST_PIXELS, MOST_SIDE, Section, _plotly, _side, render
from experiments.reports.tables import Table


class Page(HTMLParser):
    """Elements with their attributes, the text of the scripts, and the text of everything else."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = self.visible = ""  # all of it, and what is not folded
        self.folded, self.summary = list[bool](), False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "details":
            self.folded.append("open" not in dict(attrs))
        self.summary |= tag == "summary"
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] == "script" and self.cdata_elem == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self.cdata_elem is None:
            self.text += data
            # Of a fold its summary; of one within another not even that.
            self.visible += data if not any(self.folded[: -1 if self.summary else None]) else ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "details":
            self.folded.pop()
        self.summary &= tag != "summary"

    def attributes(self, name: str) -> list[str]:
        return [str(found[name]) for _, found in self.elements if name in found]

    def data(self) -> list[dict[str, Any]]:
        return [json.loads(text) for found, text in self.scripts if found.get("type") == "application/json"]


@pytest.fixture(scope="module")
def section(tmp_path_factory: pytest.TempPathFactory) -> Section:
    return make_section(write_hostile(tmp_path_factory.mktemp("page") / "hostile"))


@pytest.fixture(scope="module")
def html(section: Section) -> str:
    return render([section])


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_only_the_scripts_of_the_page_may_run_and_nothing_is_requested(page: Page) -> None:
    policy = next(found["content"] for tag, found in page.elements if tag == "meta" and "http-equiv" in found) or ""
    own = [text for found, text in page.scripts if "type" not in found]
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in own]
    assert re.search("script-src (.*)$", policy).group(1).split() == hashes  # type: ignore[union-attr]
    assert policy.startswith("default-src 'none'; base-uri 'none'; form-action 'none'; img-src data: blob:;")
    assert not [name for _, found in page.elements for name in found if name.startswith("on") or name == "style"]
    sources = page.attributes("src") + page.attributes("href")
    assert sources and all(one.startswith(("data:image/", "#")) for one in sources)
    assert not [found for tag, found in page.elements if tag in ("link", "iframe", "object", "base")]


def test_names_are_text(html: str) -> None:
    text = html.replace(_plotly(), "")  # whose own addresses the policy of the page shuts off
    assert re.findall(r"https?://|@import|url\(", text) == []
    page = Page(text)
    assert not [tag for tag, _ in page.elements if tag in ("b", "i")]
    assert len([tag for tag, _ in page.elements if tag == "script"]) == 3  # the data, plotly and page.js
    assert all("src" not in found or found["src"] != "x" for _, found in page.elements)
    for name in (IMG, LONG, UNFINISHED, "ablate_<b>hostile</b>", "Does <script>window.ran=1</script> run?"):
        assert name in page.text
    data = page.data()[0]
    assert data["classes"] == CLASSES and [one["name"] for one in data["pictures"]] == IMAGES[:2]
    block = text[text.index('<script type="application/json">') :].split("</script>")[0].split(">", 1)[1]
    assert not set("<>&") & set(block)


def test_the_plots_hold_the_numbers_worked_out_by_hand(page: Page) -> None:
    data = page.data()[0]
    variants = {one["name"]: one for one in data["variants"]}
    base = variants[BASE]
    # 80 of 100 pixels right, 20 called the next class: IoU 80 / 120 of three classes; 84: 84 / 116.
    values = np.array([80 / 120, 84 / 116]) * 100
    assert base["iou"][0] == pytest.approx([values.mean(), values.std(ddof=1)], rel=1e-5)
    assert base["iou"][3] == [None, None]  # in no truth, in no prediction
    assert base["confusion"][0] == [3 * (80 + 84), 3 * (20 + 16), 0, 0]
    assert (base["seeds"], base["images"]) == ([0, 1], 6)
    assert base["miou"] == {"epochs": [2, 4], "seeds": {"0": [10.0, 30.0], "1": [11.0, 31.0]}}
    assert base["loss"]["epochs"] == [1, 2, 3, 4] and base["loss"]["seeds"]["1"][3] == 0.25
    assert (variants[UNFINISHED]["seeds"], variants[UNFINISHED]["confusion"]) == ([], [])
    assert len({(one["colour"], one["dash"]) for one in data["variants"]}) == len(variants)


def test_settings_of_a_variant_are_those_of_the_plan_and_what_its_seeds_found(page: Page) -> None:
    settings = page.data()[0]["settings"]
    assert settings[BASE] == {"trainer.max_epochs": "4", "hparams.width": "4", "hparams.kind": BASE}
    assert settings["constructor"]["threshold"] == "0.5 (seed 0), 1.5 (seed 1)"
    assert list(settings) == [BASE, IMG, "constructor", LONG, UNFINISHED]


def decode(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def test_masks_keep_every_label_and_its_colour(section: Section, page: Page) -> None:
    shown, stored = page.data()[0]["pictures"][0], section.experiment.pictures[0]
    for uri, labels in ((shown["truth"], stored.mask), (shown["predictions"][IMG], stored.predictions[IMG])):
        assert uri.startswith("data:image/png;base64,")
        image = decode(uri)
        assert image.mode == "P" and np.array_equal(np.asarray(image), labels)
        assert image.convert("RGB").getpixel((5, 12)) == tuple(PALETTE[labels[12, 5]])
    assert decode(shown["image"]).size == tuple(shown["size"]) == (40, 24)
    assert shown["kinds"] == ["fixed"] and UNFINISHED not in shown["predictions"]
    assert shown["mious"][IMG] == pytest.approx(100 * 90 / 110, rel=1e-5)


def test_large_pictures_are_shrunk_and_the_page_says_so(tmp_path: Path, page: Page) -> None:
    assert "pixels a side" not in page.text
    large = Page(render([make_section(write_hostile(tmp_path / "large", sides=(500, 1000)))]))
    assert f"no more than {MOST_SIDE} pixels a side" in large.text
    picture = large.data()[0]["pictures"][0]
    assert decode(picture["truth"]).size == decode(picture["image"]).size == (MOST_SIDE, MOST_SIDE // 2)
    assert set(np.unique(np.asarray(decode(picture["truth"])))) == {0, 1, 2, 255}  # no label between two


def test_many_pictures_are_shrunk_further(section: Section) -> None:
    pictures = section.experiment.pictures
    tiles = sum(2 + len(one.predictions) for one in pictures)
    assert _side(pictures) == MOST_SIDE and _side([]) == MOST_SIDE
    side = _side(pictures * 100)
    assert side < MOST_SIDE and 0.99 * MOST_PIXELS < side**2 * tiles * 100 <= MOST_PIXELS


def test_figures_that_a_plot_shows_stand_behind_it(page: Page) -> None:
    assert page.text.count("Figure for print") == 3
    assert sum(len(text) > 1_000_000 for _, text in page.scripts) == 1


def test_the_page_holds_all_that_the_section_does(page: Page) -> None:
    for words in ("A <b>warning</b>.", "A <b>note</b>.", "* a <b>note</b>", "A <b>caption</b>.", "8 of 10", "ab12"):
        assert words in page.text
    for words in (f"{UNFINISHED}, seed 0: not started", "python -m experiments.x --out '<b>'", "Scores of <i>all</i>"):
        assert words in page.text


def test_what_is_not_folded_begins_with_question_answer_and_warning_and_is_short(page: Page) -> None:
    seen = page.visible[page.visible.index("Does <script>window.ran=1</script> run?") :]
    order = ("The <b>answer</b>, of", "More of it.", "A <b>warning</b>.", "A <b>caption</b>.", "Scores of <i>all</i>")
    places = [seen.index(words) for words in order]
    assert places == sorted(places)
    for folded in ("A <b>note</b>.", "By class, against", "hparams.width", "python -m experiments.x"):
        assert folded not in seen and folded in page.text


def test_the_page_of_an_experiment_has_few_words_before_anything_is_unfolded(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    page = Page(render([handmade.section(tmp_path)]))
    assert len(page.visible.split()) < 500 < len(page.text.split())
    assert "Transposed or resize?" in page.visible and "On shapes, skips none" in page.visible


def test_of_many_warnings_the_first_are_not_folded(section: Section) -> None:
    page = Page(render([replace(section, warnings=[f"Warning {n}." for n in range(9)])]))
    assert "Warning 2." in page.visible and "6 more warnings" in page.visible
    assert "Warning 3." not in page.visible and "Warning 8." in page.text


def test_of_a_long_warning_the_beginning_is_not_folded(section: Section) -> None:
    long = f"Cells differ ({', '.join(f'cell {n}' for n in range(90))}): last digits, too."
    page = Page(render([replace(section, warnings=[long, "x" * 500])]))
    assert "Cells differ (cell 0, cell 1," in page.visible and "cell 40" not in page.visible
    assert long in page.text and "x" * 500 in page.text and "x" * 131 not in page.visible


def test_a_phone_gets_the_figure_for_a_column(section: Section) -> None:
    (source,) = [found for tag, found in Page(render([section])).elements if tag == "source"]
    assert source["media"] == "(max-width: 40rem)" and str(source["srcset"]).startswith("data:image/png;base64,")


def test_two_experiments_share_the_scripts_and_no_id(section: Section, tmp_path: Path) -> None:
    summary = Table("summary", "All experiments", ["experiment", "variant", "mIoU (%)"], [["a", "b", "1.00"]], texts=2)
    text = render([section, make_section(write_hostile(tmp_path / "other"))], summary)
    page = Page(text)
    assert max(Counter(page.attributes("id")).values()) == 1
    assert len([found for found, _ in page.scripts if "type" not in found]) == len(re.findall("'sha256-", text))
    assert len(page.data()) == 2
    links = [href[1:] for href in page.attributes("href")]
    assert set(links) <= set(page.attributes("id")) and {"summary-table", "e1-top", "e2-top"} <= set(links)
    assert page.text.index("All experiments") < page.text.index("Does <script>")


def test_the_same_cells_give_the_same_page(section: Section, html: str) -> None:
    again = replace(section, experiment=load_experiment(section.experiment.folder))
    assert render([again]) == html
