"""Pages in a real browser: what they show, what the scripts add, and that nothing is asked of any network."""

import base64
import io
import os
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from cefam import ConceptSet, Explainer, Photograph, Translator, load_classifier, load_vlm
from cefam.brodenette import describe, draw
from cefam.explanations import maps
from cefam.explanations.overview import Overview, record
from cefam.explanations.page import entry, index
from cefam.explanations.spotlight import spotlight
from cefam.explanations.text import leading, sentence
from tests.conftest import fill

CHROMIUM = os.environ.get("CEFAM_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no Chromium: install it, or name it in CEFAM_CHROMIUM"
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium of the system."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def explained():
    """200 concepts of one scene, a small translator that was not trained."""
    classifier, vlm = load_classifier("brodenette"), load_vlm("brodenette")
    words = ConceptSet.brodenette().words
    concepts = ConceptSet.from_words([*words, *(f"{word} number {n}" for n, word in enumerate(words * 2))]).embed(vlm)
    explainer = Explainer(classifier, fill(Translator(classifier.channels, 64), 3), concepts, vlm, num_channels=2)
    picture = Image.fromarray(draw(describe("test", 1)).image)
    return explainer.explain([Photograph.of(picture, 96, "scene.png")], top_k=200)[0]


@pytest.fixture(scope="module")
def address(explained, tmp_path_factory):
    """The page's file as an address."""
    path = explained.save(tmp_path_factory.mktemp("page") / "page.html")
    assert path.stat().st_size < 2 * 2**20
    return path.as_uri()


@pytest.fixture
def open_page(browser, address):
    """Open the page in a context of these options; what it asked for and complained of is checked at the end."""
    contexts, asked, said = [], [], []

    def opened(more=True, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(address)
        if more:
            page.locator("#more > summary").press("Enter")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [url for url in asked if not url.startswith(("data:", address))] == []
    assert said == []


def test_it_is_complete_without_scripts(open_page, explained):
    page = open_page(java_script_enabled=False)
    assert page.locator("#concepts tbody tr").count() == 200
    for part in explained.concepts[:3]:
        assert page.locator("#concepts").get_by_text(f"{part.contribution:+.3f}").first.is_visible()
    assert page.locator(".grid figure").count() == 8
    assert not page.locator("#tools").is_visible()
    assert page.locator("a[download]").count() == 2
    page.get_by_text("Settings and files").click()
    assert page.get_by_text("num channels").is_visible()


def test_the_region_of_the_concept_that_is_pointed_at(open_page, explained):
    page = open_page()
    row = page.locator("#concepts tbody tr").nth(4)
    before = page.locator("#map").get_attribute("src")
    row.hover()
    assert page.locator("#said strong").inner_text() == explained.concepts[4].concept.word
    assert page.locator("#map").get_attribute("src") != before
    row.focus()
    page.keyboard.press("ArrowDown")
    assert page.locator("#said strong").inner_text() == explained.concepts[5].concept.word
    assert page.locator("tr[aria-selected=true]").count() == 1


def test_it_is_touched(open_page, explained):
    page = open_page(has_touch=True, viewport={"width": 390, "height": 800})
    page.locator("#concepts tbody tr").nth(2).tap()
    assert page.locator("#said strong").inner_text() == explained.concepts[2].concept.word
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_stages_threshold_colors_and_scale(open_page, explained):
    page = open_page()
    part = explained.concepts[0]
    buttons = page.locator("#stages button")
    named = [f"{n} {a:.2f}" for n, a in zip(explained.stages, part.association, strict=True)]
    assert buttons.all_inner_texts() == [*named, "all stages"]
    buttons.nth(1).click()
    assert explained.stages[1] in page.locator("#said").inner_text()
    assert page.locator("#curve polyline").count() == 1
    usual = page.locator("#alpha").get_attribute("tableValues")
    page.locator("#threshold").fill("40")
    assert page.locator("#alpha").get_attribute("tableValues") != usual
    page.locator("#threshold").fill("0")
    assert page.locator("#alpha").get_attribute("tableValues").split() == [
        str(float(v)).removesuffix(".0") for v in usual.split()
    ]
    page.locator("#opacity").fill("10")
    assert page.locator("#map").evaluate("image => getComputedStyle(image).opacity") == "0.1"
    shades = page.locator("#colors feFuncR").get_attribute("tableValues")
    page.locator("#colormap").select_option("grey")
    assert page.locator("#colors feFuncR").get_attribute("tableValues") != shades
    page.locator("#own").check()
    assert page.locator("#map").evaluate("image => image.style.getPropertyValue('--share')") == "1"


def test_sorting(open_page, explained):
    page = open_page()
    page.locator("th button", has_text="probability").click()
    first = page.locator("#concepts tbody tr").first.locator("th").inner_text()
    best = max(explained, key=lambda part: part.score)
    assert first.startswith(best.concept.word)
    page.locator("th button", has_text="concept").click()
    page.locator("th button", has_text="concept").click()
    words = [text.split(" concept")[0] for text in page.locator("#concepts tbody th").all_inner_texts()]
    assert words == sorted(words, key=str.lower)


def pixels(page, selector):
    """The pixels of an image of the page, (H, W, 3)."""
    address = page.locator(selector).get_attribute("src")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))).astype(int)


def test_the_first_screen_answers(open_page, explained):
    page = open_page(more=False, viewport={"width": 1280, "height": 800})
    assert page.locator("h1").inner_text() == sentence(explained)
    shown = leading(explained)
    difference = np.abs(pixels(page, "#spotlight") - pixels(page, "img[alt='the photograph']")).max(axis=-1)
    assert (difference > 16).mean() >= 0.05
    for seen in (page.locator("#spotlight"), page.locator(".rows tbody tr").nth(3)):
        box = seen.bounding_box()
        assert box["y"] + box["height"] <= 800
    assert page.locator("figcaption strong").first.inner_text() == shown[0].concept.word
    for row, part in zip(page.locator(".rows").first.locator("tbody tr").all(), shown, strict=False):
        assert part.concept.word in row.inner_text()
        assert f"{part.contribution:+.3f}" in row.inner_text()
        bar, middle = row.locator("rect"), 50
        left, width = (float(bar.get_attribute(name)) for name in ("x", "width"))
        end = left + width if part.contribution > 0 else left
        assert end == pytest.approx(middle + 50 * max(-1, min(1, part.contribution)), abs=0.006)
        assert ("sign unsure" in row.inner_text()) == (part.direct * part.contribution < 0)
    assert not page.locator("#concepts").is_visible()


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_it_fits(open_page, width):
    page = open_page(viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_headings_descend_by_one(open_page):
    page = open_page()
    levels = page.locator("h1, h2, h3, h4").evaluate_all("all => all.map((each) => Number(each.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


CONTRAST = """
() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (v) => v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const found = [];
  for (const each of document.querySelectorAll("body *")) {
    const own = [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !each.checkVisibility() || each.closest("script, style")) continue;
    let behind = each;
    while (behind && (rgb(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0) behind = behind.parentElement;
    const paper = luminance(rgb(getComputedStyle(behind ?? document.body).backgroundColor));
    const ink = luminance(rgb(getComputedStyle(each).color));
    const contrast = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    if (contrast < 4.5) found.push([each.tagName, each.textContent.trim().slice(0, 40), contrast]);
  }
  return found;
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read(open_page, scheme):
    assert open_page(color_scheme=scheme).evaluate(CONTRAST) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_themes(open_page, scheme):
    page = open_page(color_scheme=scheme)
    ink, paper = (
        page.evaluate(f"getComputedStyle(document.body).{name}.match(/\\d+/g).slice(0, 3).map(Number)")
        for name in ("color", "backgroundColor")
    )

    def luminance(color):
        linear = [(v / 255 / 12.92) if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in color]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted([luminance(ink), luminance(paper)], reverse=True)
    assert (light + 0.05) / (dark + 0.05) > 7  # WCAG AAA
    assert (luminance(paper) < 0.1) == (scheme == "dark")


def test_it_prints_without_controls(open_page):
    page = open_page(viewport={"width": 794, "height": 1123})  # A4 at 96 pixels per inch
    assert page.locator("#tools").is_visible()
    page.emulate_media(media="print")
    assert not page.locator("#tools").is_visible()
    assert page.locator("#concepts").is_visible()
    assert page.locator("#spotlight").bounding_box()["height"] <= 1123 / 3
    bar = page.locator(".rows rect.for, .rows rect.against").first
    assert bar.evaluate("bar => getComputedStyle(bar).fill") not in ("none", "rgb(255, 255, 255)")  # not a background


def test_pictures_have_words(open_page):
    page = open_page()
    labels = page.locator(".picture").evaluate_all("all => all.map((each) => each.getAttribute('aria-label'))")
    assert len(labels) == 9
    assert all("strongest at" in label or "nowhere" in label for label in labels[1:])
    assert page.locator("html").get_attribute("lang") == "en"


def test_the_gallery_is_filtered_by_class_and_concept(browser, explained, tmp_path):
    other = replace(explained, target_name="boletus", concepts=explained.concepts[:0])
    cards = [entry(explained, "a.html"), entry(other, "b.html")]
    (tmp_path / "index.html").write_text(index("Explanations", cards))
    page = browser.new_context(viewport={"width": 390, "height": 800}).new_page()
    page.goto((tmp_path / "index.html").as_uri())
    shown = page.locator(".card:visible p:first-of-type a")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert shown.count() == 2
    page.locator("select[data-key=class]").select_option("boletus")
    assert shown.evaluate_all("all => all.map((each) => each.getAttribute('href'))") == ["b.html"]
    page.locator("select[data-key=class]").select_option("")
    page.locator("select[data-key=concept]").select_option(leading(explained)[0].concept.word)
    assert shown.evaluate_all("all => all.map((each) => each.getAttribute('href'))") == ["a.html"]
    page.context.close()


def test_files_are_saved_out_of_the_page(open_page, explained):
    page = open_page()
    page.get_by_text("Settings and files").click()
    with page.expect_download() as saved:
        page.get_by_text("JSON", exact=True).click()
    assert saved.value.suggested_filename == "scene.json"
    assert explained.concepts[0].concept.word in saved.value.path().read_text()


def test_a_wrong_photograph_is_marked_in_the_gallery(browser, explained, tmp_path):
    cards = [
        entry(explained, "a.html", explained.predicted_name),
        entry(explained, "b.html", "boletus"),
        entry(explained, "c.html"),
    ]
    (tmp_path / "index.html").write_text(index("Explanations", cards))
    page = browser.new_context().new_page()
    page.goto((tmp_path / "index.html").as_uri())
    assert page.locator(".card .tag").all_inner_texts() == ["wrong: it is boletus"]
    page.locator("select[data-key=result]").select_option("wrong")
    assert page.locator(".card:visible").count() == 1
    page.context.close()


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_a_summary_fits_its_window(width, browser, explained, tmp_path):
    records = [record(f"class {n % 3}/photograph-with-a-long-name-{n}.jpg", explained, n % 3) for n in range(6)]
    records = [{**each, "target": n % 3} for n, each in enumerate(records)]
    doubts = {explained.concepts[0].concept.number: "its score does not follow the VLM's"}
    names = {n: f"a class with quite a long name, {n}" for n in range(1000)}
    overview = Overview("All photographs", records, names, doubts)
    picture = maps.jpeg(spotlight(explained.photograph, explained.concepts[0], 200))
    pictures = {
        part.concept.number: [("photograph-with-a-long-name.jpg +0.100", picture, "text")] * 4 for part in explained
    }
    (tmp_path / "summary.html").write_text(overview.page(pictures, 24))
    page = browser.new_context(viewport={"width": width, "height": 800}).new_page()
    page.goto((tmp_path / "summary.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    sides = page.locator(".examples img").first.evaluate("image => [image.clientWidth, image.clientHeight]")
    assert abs(sides[0] - sides[1]) <= 1
    assert page.locator(".card .tag").all_inner_texts() == ["doubtful"]
    assert page.locator(".heat tbody tr").count() == 3
    assert page.locator(".heat tbody td").count() == 3 * 12
    page.context.close()


def test_a_summary_without_labels_says_so(explained):
    page = Overview("All photographs", [record("a.jpg", explained, None)], {explained.target: "x"}).page({}, 3)
    assert "The classes of these photographs are not known" in page
    assert "Misclassified" not in page
