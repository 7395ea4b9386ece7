"""report.html in headless Chromium, where there is one."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from handmade import write_experiment
from hostile import BASE, IMG, LONG, UNFINISHED, make_section, write_hostile

from experiments.reports.page import render
from experiments.reports.write import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.extra("browser", "playwright"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
TABLE = "[id=e1] .wide[aria-label='Scores of <i>all</i>'] table"
PHONE, WIDE = {"width": 390, "height": 844}, {"width": 1600, "height": 1000}
WORDS = 1500  # on the page as it is opened


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two experiments with the same names on one page."""
    folder = tmp_path_factory.mktemp("browser")
    sections = [make_section(write_hostile(folder / name)) for name in ("one", "two")]
    (folder / "report.html").write_text(render(sections), encoding="utf-8")
    return folder / "report.html"


@pytest.fixture(scope="module")
def handmade_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a person gets, with all figures."""
    folder = tmp_path_factory.mktemp("browser") / "handmade"
    write_experiment(folder)
    return write_report(folder)


def folded(browser: Any, report: Path, **options: Any) -> Any:
    """The page in a context of its own, as it is on load; `page.complaints` gathers errors and requests beyond the
    file."""
    page = browser.new_context(**{"viewport": WIDE, **options}).new_page()
    page.complaints = []
    page.on("console", lambda said: page.complaints.append(said.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on(
        "request",
        lambda one: None if one.url.startswith(("file:", "data:", "blob:")) else page.complaints.append(one.url),
    )
    page.goto(report.as_uri())
    return page


def wait_until(page: Any, expression: str) -> None:
    """Playwright's own would evaluate text within the page, which its policy forbids."""
    for _ in range(200):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {expression}")


def opened(browser: Any, report: Path, **options: Any) -> Any:
    """The same with everything unfolded."""
    page = folded(browser, report, **options)
    page.evaluate("for (const part of document.querySelectorAll('main details')) part.open = true")
    wait_until(page, "document.querySelectorAll('.js-plotly-plot .main-svg').length >= 6")
    return page


@pytest.fixture(scope="module")
def page(browser: Any, report: Path) -> Any:
    """A wide page; a test leaves it as it was."""
    return opened(browser, report)


def test_it_loads_without_a_complaint_and_runs_no_name(page: Any) -> None:
    assert page.complaints == [] and page.evaluate("window.ran") is None
    assert page.evaluate("document.querySelectorAll('main b').length") == page.locator(".tile b").count()
    page.locator("#e1 [data-choose=confusion]").select_option(label=IMG)
    page.locator("#e1 .plot").nth(2).hover()
    page.locator("#e1 [data-choose=confusion]").select_option(label=BASE)
    # A policy that held no script back would let this one run.
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = 1'}))")
    assert page.evaluate("window.ran") is None
    page.complaints[:] = [text for text in page.complaints if "Content Security Policy" not in text]
    assert page.complaints == []


def test_what_a_point_says_is_text(page: Any) -> None:
    texts = page.evaluate(
        """[...document.querySelectorAll('#e1 [data-plot]')].flatMap((plot) => plot.data).flatMap(
        (trace) => (trace.hovertext || []).flat())"""
    )
    assert len(texts) > 40
    assert {tag for text in texts for tag in re.findall("<[^>]*>", text)} == {"<br>"}
    curve = "base<br>epochs trained: 4<br>mean of 2: mIoU 30.50 %<br>seed 0: mIoU 30.00 %<br>seed 1: mIoU 31.00 %"
    assert curve in texts
    # 492 = 3 images x (80 + 84) pixels.
    assert any("82.00 % of its pixels<br>492 pixels, seeds 0, 1, 6 predicted images in all" in text for text in texts)


def test_a_plot_offers_to_save_it_here_and_nowhere_else(page: Any) -> None:
    plot = page.locator("#e1 [data-plot=curves]")
    titles = page.evaluate("[...document.querySelectorAll('.modebar-btn')].map((one) => one.dataset.title)")
    assert set(titles) == {"Download plot as a PNG", "Zoom", "Pan", "Reset axes"}
    plot.hover()
    with page.expect_download() as download:
        plot.locator("[data-title='Download plot as a PNG']").click()
    assert download.value.path().read_bytes().startswith(b"\x89PNG")
    assert page.complaints == []


def column(page: Any) -> list[str]:
    return [text[:11] for text in page.locator(f"{TABLE} tbody tr td:first-child").all_inner_texts()]


@pytest.mark.parametrize(
    ("title", "ascending"),
    [
        ("variant", [BASE, "constructor", LONG[:11], IMG[:11]]),
        ("mIoU (%)", [IMG[:11], BASE, LONG[:11], "constructor"]),
        ("difference", [IMG[:11], LONG[:11], "constructor", BASE]),
        ("p", [IMG[:11], "constructor", LONG[:11], BASE]),
        ("images", [IMG[:11], "constructor", BASE, LONG[:11]]),
    ],
)
def test_a_click_sorts_and_the_third_gives_the_given_order_back(page: Any, title: str, ascending: list[str]) -> None:
    given = [BASE, IMG[:11], "constructor", LONG[:11]]
    head = page.locator(f"{TABLE} th", has=page.get_by_text(title, exact=True))
    missing = {"variant": 0}.get(title, 1)  # what has no value comes last both ways
    known = ascending[: len(ascending) - missing]
    if title == "variant":  # collation puts signs before letters
        known = ascending = [IMG[:11], BASE, "constructor", LONG[:11]]
    for order, expected in (
        ("ascending", ascending),
        ("descending", [*known[::-1], *ascending[len(known) :]]),
        ("none", given),
    ):
        head.get_by_role("button").press("Enter")
        assert head.get_attribute("aria-sort") == order
        assert column(page) == expected, order
    # The other experiment's table is left alone.
    assert page.locator("#e2 th[aria-sort=ascending], #e2 th[aria-sort=descending]").count() == 0


VISIBLE = """(key) => [...document.querySelectorAll(`#${key} [data-plot]`)].slice(0, 2).map((plot) =>
    [...new Set(plot.data.filter((trace) => trace.visible !== false).map((trace) => trace.meta.variant))])"""


def test_a_button_hides_a_variant_in_all_plots_of_its_experiment(page: Any) -> None:
    finished = [BASE, IMG, "constructor", LONG]
    chip = page.locator("#e1 .chips").get_by_role("button", name=IMG, exact=True)
    assert page.evaluate(VISIBLE, "e1") == [finished, finished]
    chip.click()
    assert chip.get_attribute("aria-pressed") == "false"
    assert page.evaluate(VISIBLE, "e1") == [[BASE, "constructor", LONG]] * 2
    assert page.evaluate(VISIBLE, "e2") == [finished, finished]
    page.locator("#e1 .none").click()
    assert page.evaluate(VISIBLE, "e1") == [[], []]
    page.locator("#e1 .all").click()
    assert page.evaluate(VISIBLE, "e1") == [finished, finished]


def test_zooming_in_the_scores_zooms_in_the_losses(page: Any) -> None:
    ranges = """async () => {
        const plot = document.querySelector('#e1 [data-plot=curves]');
        await Plotly.relayout(plot, {'xaxis.range': [1.5, 2.5]});
        const found = [plot.layout.xaxis.range, plot.layout.xaxis2.range];
        await Plotly.relayout(plot, {'xaxis.autorange': true});
        return found;
    }"""
    assert page.evaluate(ranges) == [[1.5, 2.5], [1.5, 2.5]]


def clip(page: Any, name: str) -> str:
    return str(page.evaluate(f"getComputedStyle(document.querySelector('#e1 .stage .{name}')).clipPath"))


def test_the_slider_moves_the_border_between_truth_and_prediction(page: Any) -> None:
    split = page.locator("#e1 .split")
    split.scroll_into_view_if_needed()
    box = split.bounding_box()
    page.mouse.click(box["x"] + 0.25 * box["width"], box["y"] + box["height"] / 2)
    assert float(split.input_value()) == pytest.approx(25, abs=1)
    at = float(re.findall(r"([\d.]+)%", clip(page, "prediction"))[0])
    assert at == pytest.approx(25, abs=1)
    assert clip(page, "truth") == f"inset(0px {100 - at:g}% 0px 0px)"
    split.press("ArrowRight")
    assert clip(page, "prediction") == f"inset(0px 0px 0px {at + 0.5:g}%)"
    assert page.evaluate("document.querySelector('#e2 .split').value") == "50"
    images = "[...document.querySelectorAll('#e1 .stage img')].map((one) => one.naturalWidth)"
    assert page.evaluate(images) == [40, 40, 40]
    assert page.evaluate("getComputedStyle(document.querySelector('#e1 .stage .truth')).imageRendering") == "pixelated"


def test_images_and_variants_are_chosen_by_list_button_and_key(page: Any) -> None:
    gallery = page.locator("#e1 .gallery")
    source, said = gallery.locator(".stage .prediction"), gallery.locator(".said")
    first = source.get_attribute("src")
    gallery.locator(".tile").nth(3).click()  # image, truth, base, then this
    assert IMG in said.inner_text() and "mIoU 81.82 %" in said.inner_text()  # 90 / 110
    assert gallery.locator(".tag.right").inner_text() == IMG
    assert source.get_attribute("src") != first
    gallery.locator("[data-choose=prediction]").select_option(label=BASE)
    assert source.get_attribute("src") == first
    gallery.get_by_role("button", name="next image").click()
    assert said.inner_text().startswith("b (fixed)")
    page.keyboard.press("n")
    assert said.inner_text().startswith("'\"><img src=x")
    options = gallery.locator("[data-choose=prediction] option").all_inner_texts()
    assert options == [BASE, IMG, "constructor", LONG]
    gallery.locator("[data-choose=opacity]").fill("40")
    assert page.evaluate("getComputedStyle(document.querySelector('#e1 .stage .truth')).opacity") == "0.4"
    gallery.locator("[data-choose=opacity]").fill("100")


def test_the_difference_of_two_configurations_is_shown(page: Any) -> None:
    part = page.locator("#e1 .difference")
    rows = part.locator("tbody tr")
    assert rows.all_inner_texts() == [f"hparams.kind\t{BASE}\t{IMG}"]
    part.locator("[data-choose=other]").select_option(label="constructor")
    expected = [f"hparams.kind\t{BASE}\tconstructor", "threshold\t-\t0.5 (seed 0), 1.5 (seed 1)"]
    assert rows.all_inner_texts() == expected
    assert part.locator(".said").inner_text() == (
        "2 settings are equal and not shown. Both have the finished seeds 0, 1."
    )
    part.locator("[data-choose=one]").select_option(label=UNFINISHED)
    assert "Finished seeds of the first: none finished" in part.locator(".said").inner_text()


# Luminance and contrast of WCAG 2: of each element with text of its own, against the nearest background below it.
CONTRAST = """() => {
  const parse = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const light = (rgb) => {
    const [r, g, b] = rgb.slice(0, 3).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const texts = 'h1,h2,h3,p,li,td,th,dt,dd,figcaption,summary,a,label,select,button,bdi,code';
  for (const node of document.querySelectorAll(texts)) {
    if (!node.checkVisibility() || node.closest('.stage,.skip') || !node.textContent.trim()) continue;
    let below = node;
    while (below && parse(getComputedStyle(below).backgroundColor)[3] === 0) below = below.parentElement;
    const [a, b] = [light(parse(getComputedStyle(node).color)),
                    light(parse(getComputedStyle(below || document.body).backgroundColor))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), node.tagName + ' ' + node.textContent.slice(0, 30)]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_light_and_dark(page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    found = page.evaluate(CONTRAST)
    assert len(found) > 100
    assert [one for one in found if one[0] < 4.5] == []
    plotted = page.evaluate("document.querySelector('#e1 [data-plot=curves]').layout.font.color")
    assert plotted == {"light": "#1c2126", "dark": "#e4e8eb"}[scheme]  # the plots change along
    page.emulate_media(color_scheme="light")


def test_print_is_light_and_without_buttons(page: Any) -> None:
    page.emulate_media(color_scheme="dark", media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("document.querySelector('#e1 [data-plot=curves]').layout.font.color") == "#1c2126"
    assert not page.locator("#e1 .controls").first.is_visible()
    page.emulate_media(color_scheme="light", media="screen")


def test_a_phone_scrolls_down_and_never_aside(browser: Any, report: Path) -> None:
    page = opened(browser, report, viewport=PHONE, has_touch=True, is_mobile=True)
    assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [390, 390]
    # The columns of long names stay narrow inside of their tables, and the first table needs no scrolling at all.
    widths = page.evaluate("[...document.querySelectorAll('#e1 th, #e1 td')].map((cell) => cell.offsetWidth)")
    assert max(widths) < 300
    page.locator("#e1 .stage").scroll_into_view_if_needed()
    box = page.locator("#e1 .stage").bounding_box()
    page.touchscreen.tap(box["x"] + 0.75 * box["width"], box["y"] + box["height"] / 2)
    assert "75" in clip(page, "prediction") or "74.5" in clip(page, "prediction")
    assert page.complaints == []
    page.context.close()


def test_on_load_there_is_the_answer_with_its_figure_and_table_and_nothing_else(
    browser: Any, handmade_report: Path
) -> None:
    page = folded(browser, handmade_report)
    assert len(page.evaluate("document.body.innerText").split()) < WORDS / 2  # of four variants
    assert page.locator("main details[open]").count() == 0
    assert page.locator("main img:visible").count() == page.locator("main table:visible").count() == 1
    assert page.locator(".main-svg").count() == 0  # a plot is drawn when it is unfolded
    assert page.complaints == []
    page.emulate_media(media="print")
    assert page.locator("main details[open]").count() == 0
    page.context.close()


def test_a_link_of_the_contents_unfolds_what_it_points_into(browser: Any, report: Path) -> None:
    page = folded(browser, report)
    for link in page.locator("nav a").all():
        link.click()
        name = link.get_attribute("href")[1:]
        wait_until(page, f"document.getElementById('{name}').checkVisibility()")
        wait_until(page, f"document.getElementById('{name}').getBoundingClientRect().top < innerHeight")
    part = page.locator("#e1-plots")
    assert part.get_attribute("open") is not None
    part.locator("summary").first.click()
    page.locator("nav a[href='#e1-curves']").click()  # folded again: the link still works
    page.locator("nav a[href='#e1-curves']").click()
    assert page.locator("#e1-curves").is_visible()
    page.goto(f"{report.as_uri()}#e2-curves")
    page.reload()
    assert page.locator("#e2-curves").is_visible() and not page.locator("#e1-curves").is_visible()
    assert page.complaints == []
    page.context.close()


def test_a_plot_has_the_width_of_the_page_when_it_is_unfolded(browser: Any, report: Path) -> None:
    page = folded(browser, report)
    plot = "document.querySelector('#e1 [data-plot=curves]')"
    page.locator("#e1-plots > summary").click()
    wait_until(page, f"{plot}.querySelector('.main-svg')")
    page.locator("#e1-plots > summary").click()
    page.set_viewport_size({"width": 700, "height": 900})
    page.emulate_media(color_scheme="dark")
    page.locator("#e1-plots > summary").click()
    width = f"{plot}.querySelector('.main-svg').getBoundingClientRect().width"
    wait_until(page, f"Math.abs({width} - {plot}.parentNode.clientWidth) < 1")
    assert page.evaluate(f"{plot}.layout.font.color") == "#e4e8eb"
    page.context.close()


def test_on_a_phone_answer_and_figure_stand_on_two_screens(browser: Any, handmade_report: Path) -> None:
    page = folded(browser, handmade_report, viewport=PHONE, has_touch=True, is_mobile=True)
    picture = page.locator("#e1-figure-seeds img")
    box = picture.bounding_box()
    assert box["y"] + box["height"] <= 2 * PHONE["height"]
    # The form for a column, and all of it: nothing to scroll aside for.
    assert picture.evaluate("(one) => one.naturalHeight > one.naturalWidth")
    assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"]
    assert page.locator("#e1 .whole").evaluate("(one) => one.scrollWidth - one.clientWidth") <= 1
    page.context.close()


def test_reading_needs_no_script(browser: Any, report: Path) -> None:
    page = browser.new_context(viewport=PHONE, java_script_enabled=False).new_page()
    page.goto(report.as_uri())
    assert "83.98 ± 2.82" in page.locator(TABLE).inner_text()
    assert not page.locator("#e1 .gallery").is_visible() and not page.locator("#e1 .chips").is_visible()
    page.context.close()
