"""Names, folders, texts and terminals as they occur."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cefam import ConceptSet, Photograph, Trained, Translator, load_classifier, load_vlm
from cefam.commands._explaining import photographs_of
from cefam.datasets.sources.described import Described
from cefam.datasets.sources.images import list_images
from cefam.explanations.page import LONGEST, page_names
from cefam.images.views import THIN, EvaluationView
from tests.commands import run


@pytest.fixture(scope="module")
def artefact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("artefact") / "artefact"
    torch.manual_seed(0)
    classifier = load_classifier("brodenette")
    concepts = ConceptSet.from_words(["wing", "tail", "red"]).embed(load_vlm("brodenette"))
    return Trained(classifier, Translator(classifier.channels, 64), concepts).write(folder)


def picture(path, size=(96, 96)):
    path = os.fsencode(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        Image.effect_noise(size, 60).convert("RGB").save(file, "PNG")


@given(st.lists(st.text("aAbß_/-.é", min_size=1, max_size=40), min_size=1, max_size=12, unique=True))
def test_no_two_photographs_share_a_page(names):
    pages = page_names(names)
    assert len({page.casefold() for page in pages.values()}) == len(names)
    assert all(len(page.encode()) <= LONGEST + 20 and "/" not in page for page in pages.values())


def test_page_names_are_plain_where_nothing_clashes():
    assert page_names(["a.png", "b/c.png"]) == {"a.png": "a.png.html", "b/c.png": "b__c.png.html"}
    one, other = page_names(["a/b.png", "a__b.png"]).values()
    assert one != other
    assert page_names(["x" * 400]) != page_names(["x" * 401])


NAMES = {
    "a clash": [b"a/b.png", b"a__b.png"],
    "Latin-1": [b"caf\xe9.png", "café.jpg".encode()],
    "240 characters": [b"x" * 240 + b".png", b"x" * 239 + b"y.png"],
    "deep folders": [b"/".join([b"d" * 80] * 3) + b"/a.png", b"/".join([b"d" * 80] * 3) + b"/b.png"],
    "other scripts": ["фото.png".encode(), "写真 1.png".encode()],
    "signs": [b"a&b <c> \"d\" 'e' #1 50%.png", b"[v2] {x} *.png"],
    "a line break": [b"a\nb.png", b"c\td.png"],
    "upper and lower case": [b"A.png", b"a.png"],
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("verb", ["explain", "summarize"])
def test_photographs_with_any_name_have_their_pages(name, verb, artefact, tmp_path):
    for each in NAMES[name]:
        picture(os.path.join(os.fsencode(tmp_path / "photos"), each))
    assert run(verb, tmp_path / "photos", "--artefact", artefact, "--out", tmp_path / "out", "--device", "cpu") == 0
    assert len(list((tmp_path / "out").glob("*.html"))) == (3 if verb == "explain" else 1)
    text = (tmp_path / "out" / ("index.html" if verb == "explain" else "summary.html")).read_text(encoding="utf-8")
    assert "\udce9" not in text


def test_names_that_are_not_utf8_are_shards_too(tmp_path):
    picture(os.path.join(os.fsencode(tmp_path / "photos"), b"caf\xe9.png"))
    assert run("prepare", "--kind=images", "--source", tmp_path / "photos", "--folder", tmp_path / "shards") == 0
    assert [name for name, _ in photographs_of([str(tmp_path / "photos")])] == ["café.png"]


FOLDERS = ["photos", "photos [v2]", "photos (1)", "100% ok", "a?b", "x*y", "[a-z]", "{b}", "my photos", "фото", "a!b"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_with_signs_of_patterns_are_taken_as_they_are(folder, tmp_path):
    for place in (folder, "other"):
        (tmp_path / place).mkdir()
        Image.new("RGB", (60, 40)).save(tmp_path / place / "1.jpg")
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.ones((40, 60), np.uint8)).save(tmp_path / "masks/1.png")
    about = f'images: "{folder}/{{id}}.jpg"\nmasks: [{{category: Object, files: "masks/{{id}}.png"}}]\nlabels: {{OBJECT: [cat]}}\n'
    (tmp_path / "d.yaml").write_text(about, encoding="utf-8")
    source = Described(str(tmp_path / "d.yaml"))
    assert source.ids == ["1"]
    (sample,) = source.samples(0, 1)
    assert [(mask.category, mask.labels) for mask in sample.masks] == [("object", [1])]
    assert [label["category"] for label in source.labels] == ["object"]


@pytest.mark.parametrize("junk", ["__MACOSX", "@eaDir", ".hidden", "#recycle", "class0/.ipynb_checkpoints"])
def test_folders_of_archivers_and_file_servers_are_no_classes(junk, tmp_path):
    for name in ("class1/a.png", "class2/b.png", f"{junk}/._a.png", f"{junk}/c.png"):
        picture(tmp_path / name)
    found = {path.name: label for path, label in list_images(tmp_path)}
    assert found == {"a.png": 0, "b.png": 1}


def test_an_empty_folder_is_no_class_and_is_said(tmp_path):
    for name in ("cat/a.png", "dog/b.png"):
        picture(tmp_path / name)
    (tmp_path / "ant/deeper").mkdir(parents=True)
    with pytest.warns(UserWarning, match=r"1 folder\(s\) .* hold no image and are no classes: ant"):
        assert [label for _, label in list_images(tmp_path)] == [0, 1]


PROMPTS = {
    "prompt of one blank": ("word,prompt\nwing, \n", "a photo of a wing"),
    "prompt of tabs": ("word,prompt\nwing,\t\t\n", "a photo of a wing"),
    "empty prompt": ("word,prompt\nwing,\n", "a photo of a wing"),
    "prompt with blanks around": ("word,prompt\nwing, my wing \n", "my wing"),
    "category 'Color'": ("word,category\nred-c,Color\n", "a photo of a red object"),
    "category 'MATERIAL'": ("word,category\nwood,MATERIAL\n", "a photo of an object made of wood"),
    "two categories": ("word,category\nwood, Material(3); Part(1)\n", "a photo of an object made of wood"),
    "underscores": ("word\nstriped_fur\n", "a photo of a striped fur"),
    "a category of one's own": ("word,category\nround,Shape\n", "a photo of a round"),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_concept_files_as_spreadsheets_write_them(name, tmp_path):
    text, prompt = PROMPTS[name]
    (tmp_path / "a.csv").write_text(text)
    assert ConceptSet.from_file(tmp_path / "a.csv").prompts == [prompt]


def test_lists_of_words_join_words_too_and_other_encodings_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("striped_fur\nlong tail\n")
    assert ConceptSet.from_file(tmp_path / "a.txt").prompts == ["a photo of a striped fur", "a photo of a long tail"]
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        (tmp_path / "b.txt").write_bytes("wing\ntail\n".encode(encoding))
        with pytest.raises(ValueError, match="UTF-8"):
            ConceptSet.from_file(tmp_path / "b.txt")


SIDES = {
    "as the photograph": ((40, 60), True), "half its size": ((20, 30), True), "a third": ((13, 20), True),
    "twice its size": ((80, 120), True), "sides swapped": ((60, 40), False), "square": ((40, 40), False), "a strip": ((40, 6), False),
}  # fmt: skip


@pytest.mark.parametrize("name", SIDES)
def test_masks_whose_sides_contradict_the_photograph_are_told(name, tmp_path, capsys):
    shape, fine = SIDES[name]
    Image.new("RGB", (60, 40)).save(tmp_path / "a.jpg")
    mask = np.zeros(shape, np.uint8)
    mask[: shape[0] // 2] = 1
    Image.fromarray(mask).save(tmp_path / "a.png")
    about = "images: '{id}.jpg'\nmasks: [{category: object, files: '{id}.png'}]\nlabels: {object: [cat]}\n"
    (tmp_path / "d.yaml").write_text(about)
    assert run("prepare", "--kind=described", "--source", tmp_path / "d.yaml", "--folder", tmp_path / "shards") == 0
    said = capsys.readouterr().err
    told = f"The object mask of a is {shape[0]} x {shape[1]}, its photograph 40 x 60: regions will be stretched"
    assert (told in said) != fine


@pytest.mark.parametrize("size", [(1, 2000), (2000, 1), (3, 4000), (1, 4096)])
def test_memory_for_a_thin_photograph_is_bounded_by_the_view(size):
    width, height = size
    image = Image.effect_noise(size, 50).convert("RGB")
    Photograph.of(Image.new("RGB", (300, 200)), 224, "first")  # imports
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20, limits[1]))  # the whole, resized, takes more
    try:
        found = Photograph.of(image, 224, "thin")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert found.view.shape == (3, 224, 224)
    top, left, tall, wide = found.placement
    assert (top + tall / 2, left + wide / 2) == pytest.approx((height / 2, width / 2), abs=1)


@pytest.mark.parametrize("size", [(5, 300), (300, 5), (16, 16 * THIN + 1)])
def test_the_view_of_a_thin_photograph_is_that_of_its_whole(size):
    """Cut first and resized, or resized and cut: the same pixels, and masks and placement with them."""
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (3, *size), np.uint8))
    view = EvaluationView(64, 56)
    whole = EvaluationView(64, 56)
    object.__setattr__(whole, "_middle", lambda height, width: (0, 0, height, width))
    assert (view(pixels).float() - whole(pixels).float()).abs().max() <= 1
    assert view.placement(*size) == pytest.approx(whole.placement(*size), abs=0.5)
    assert (view.mask(pixels[0].int()) == whole.mask(pixels[0].int())).float().mean() > 0.9


@pytest.mark.processes
def test_a_terminal_that_is_not_utf8_shows_other_signs(artefact, tmp_path):
    picture(tmp_path / "a.png")
    words = ["explain", tmp_path / "a.png", "--artefact", artefact, "--out", tmp_path / "a.html", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "cefam", *map(str, words)],
        capture_output=True, env={**os.environ, "PYTHONIOENCODING": "cp1252"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert Path(tmp_path / "a.html").is_file()
    assert b"wing" in done.stdout
