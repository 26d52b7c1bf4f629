"""Explanations: what they hold against the explainer's own steps, and the forms they take."""

import csv
import html.parser
import io
import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra import numpy as arrays
from PIL import Image

from cefam import ConceptPairs, ConceptSet, Explainer, Photograph, Translator, load_classifier, load_vlm
from cefam.attribution.types import Activated
from cefam.brodenette import describe, draw
from cefam.errors import CefamError, CefamWarning
from cefam.explanations import maps
from cefam.explanations.text import sentence, spotlit, summary
from cefam.explanations.types import run_lengths
from cefam.images.views import EvaluationView
from cefam.towers.naming import class_number
from tests.conftest import fill
from tests.test_explain import explainer_of

MARKUP = '<b>"it\'s" & </script>'


@pytest.fixture(scope="module")
def explainer():
    """Brodenette's towers with a translator that was not trained; one concept's name is markup."""
    classifier, vlm = load_classifier("brodenette"), load_vlm("brodenette")
    concepts = ConceptSet.from_words([*ConceptSet.brodenette().words, MARKUP]).embed(vlm)
    translator = fill(Translator(classifier.channels, 64), 3)
    return Explainer(classifier, translator, concepts, vlm, num_channels=6)


@pytest.fixture(scope="module")
def photographs():
    """Two scenes; the first in a wider photograph, of which the view is a part."""
    scenes = [Image.fromarray(draw(describe("test", index)).image) for index in (1, 3)]
    wide = Image.new("RGB", (160, 96))
    wide.paste(scenes[0], (32, 0))
    return [
        Photograph.of(wide, EvaluationView(None, 96), f"wide {MARKUP}.png"),
        Photograph.of(scenes[1], 96, "scene.png"),
    ]


@pytest.fixture(scope="module")
def explained(explainer, photographs):
    return explainer.explain(photographs, top_k=5, every_stage=True)


def test_an_explanation_is_what_the_steps_give(explainer, photographs, explained):
    images = torch.stack([photograph.view for photograph in photographs])
    scores, encoding = explainer.scores(images), explainer.encode(images)
    said = explainer.vlm.encode_image(images)
    text = explainer.concepts.embeddings
    cosine = torch.nn.functional.cosine_similarity(said[:, None], text[None], dim=-1)
    for index, explanation in enumerate(explained):
        pool, best = scores[index].topk(15).indices.tolist(), []
        pairs = ConceptPairs(torch.full((15,), index), torch.tensor(pool))
        maps = explainer.fused_maps(Activated(images, encoding.output), pairs).flatten(1)
        for place in range(15):  # those that share a region with a better one do not get an entry of their own
            if len(best) < 5 and all(torch.corrcoef(maps[[place, other]])[0, 1] <= 0.9 for other in best):
                best.append(place)
        best += [place for place in range(15) if place not in best][: 5 - len(best)]
        words = [explainer.concepts.words[pool[place]] for place in best]
        assert sorted(part.concept.word for part in explanation) == sorted(words)
        strengths = [abs(part.contribution) for part in explanation]
        assert strengths == sorted(strengths, reverse=True)
        for part in explanation:
            concept = explainer.concepts.words.index(part.concept.word)
            pair = ConceptPairs(torch.tensor([index]), torch.tensor([concept]))
            association = explainer.association(images, pair)[0]
            assert part.association == pytest.approx(association.tolist(), rel=1e-4, abs=1e-4)
            assert part.stage == int(association.argmax())
            assert part.score == pytest.approx(float(scores[index, concept]), rel=1e-5)
            assert part.similarity == pytest.approx(float(encoding.similarity[index, concept]), abs=1e-4)
            assert part.vlm_similarity == pytest.approx(
                explainer.vlm.logit_scale * float(cosine[index, concept]), rel=1e-4
            )
            assert part.present == (part.similarity >= float(encoding.similarity[index].mean()))
            for stage, found in enumerate(part.contributions):
                masked = explainer.contribution(images, pair, stage=torch.tensor([stage]))
                assert found == pytest.approx(float(masked.value), rel=1e-4, abs=1e-4)
                if stage == part.stage:
                    assert part.contribution == found
                    assert part.curve == pytest.approx(masked.curve[0].tolist(), rel=1e-4, abs=1e-4)
            activation = encoding.output.activations[-1][index : index + 1].clone().requires_grad_()
            with torch.enable_grad():
                p = explainer.classifier.probabilities(explainer.classifier.resume(3, activation))[
                    0, explanation.target
                ]
                (gradient,) = torch.autograd.grad(torch.log(p / (1 - p)), activation)
            importance, gradient = explainer.regions(images, pair).importance[-1][0], gradient[0].mean(dim=(-2, -1))
            expected = importance @ gradient / importance.norm() / gradient.norm()
            assert part.direct == pytest.approx(float(expected), rel=1e-3, abs=1e-5)
            torch.testing.assert_close(part.maps[part.stage], explainer.regions(images, pair).maps[part.stage][0])


def test_regions_lie_on_the_photograph(explained):
    wide = explained[0].concepts[0].region
    assert wide.shape == (96, 160)
    assert not wide[:, :31].any()
    assert not wide[:, 129:].any()
    assert explained[1].concepts[0].region.shape == (96, 96)


def test_any_class_and_any_text(explainer, photographs):
    one = explainer.explain(photographs, target=3, concepts=["wing", "a text of the moment"])[0]
    assert (one.target, one.target_name) == (3, explainer.classifier.class_names[3])
    assert {part.concept.word for part in one} == {"wing", "a text of the moment"}
    extended = explainer.with_texts(["a text of the moment"])
    scores = extended.scores(torch.stack([photograph.view for photograph in photographs]))
    new = next(part for part in one if part.concept.word.startswith("a text"))
    assert new.score == pytest.approx(float(scores[0, -1]), rel=1e-5)  # it competes with the stored set
    each = explainer.explain(photographs, target=torch.tensor([1, 2]), top_k=1)
    assert [explanation.target for explanation in each] == [1, 2]


def test_tensors_are_explained_as_they_are(explainer):
    found = explainer.explain(torch.rand(2, 3, 96, 96), top_k=2)
    assert [(explanation.name, len(explanation.concepts)) for explanation in found] == [("image 0", 2), ("image 1", 2)]
    assert explainer.explain([], top_k=2) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"target": 99}, "There is no class 99"),
        ({"concepts": []}, "No concept was given"),
        ({"concepts": [500]}, "There is no concept 500"),
        ({"concepts": ["long " * 50]}, "shorten the concept"),
    ],
)
def test_bad_questions_are_refused(explainer, photographs, options, message):
    with pytest.raises(CefamError, match=message):
        explainer.explain(photographs, **options)


def test_what_is_absent_does_not_light_up(explained):
    explanation = explained[0]
    part = explanation.concepts[0]
    assert maps.density(part, 0, part.evidence - 1).max() == pytest.approx(float(part.maps[0].max()) * 48 * 48)
    dimmed = maps.density(part, 0, part.evidence + 10)
    assert float(dimmed.max()) == pytest.approx(float(part.maps[0].max()) * 48 * 48 * np.exp(-10), rel=1e-4)


def test_the_spotlight_shows_what_the_sentence_names(explained):
    parts = [
        replace(part, present=True, distrust="", contribution=0.5, direct=0.1) for part in explained[0].concepts[:3]
    ]
    parts[0] = replace(parts[0], direct=-0.1)  # of unsure sign: the sentence leaves it out
    explanation = replace(explained[0], concepts=parts)
    assert spotlit(explanation) is parts[1]
    words = [part.concept.word for part in parts]
    assert f": {words[1]} and {words[2]} speak for it most" in sentence(explanation)
    assert f"where {words[1]} is seen" in explanation._repr_html_()
    parts[1:] = [replace(part, contribution=-0.5, direct=-0.1) for part in parts[1:]]
    assert f": {words[1]} speaks against it" in sentence(replace(explanation, concepts=parts))
    assert spotlit(replace(explanation, concepts=parts[:1])) is parts[0]


def test_the_terminal_summary_fits_any_width(explained):
    for width in (30, 40, 80, 200):
        lines = summary(explained[0], width).splitlines()
        assert max(map(len, lines)) <= width
        assert len(lines) >= 6
    text = str(explained[1])
    for part in explained[1]:
        assert f"{part.contribution:+.3f}" in text


@given(arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_run_lengths_are_coco_s(mask):
    from pycocotools import mask as coco

    found = run_lengths(torch.from_numpy(mask.copy()))
    assert sum(found["counts"]) == mask.size
    packed = coco.frPyObjects(found, *mask.shape)
    assert (coco.decode(packed) == mask).all()


def test_files_hold_the_explanation(explained, tmp_path):
    explanation = explained[0]
    written = json.loads(explanation.save(tmp_path / "x.json").read_text())
    assert written == json.loads(json.dumps(explanation.to_dict()))
    assert [part["word"] for part in written["concepts"]] == [part.concept.word for part in explanation]
    rows = list(csv.DictReader(io.StringIO(explanation.save(tmp_path / "x.csv").read_text())))
    assert [float(row["contribution"]) for row in rows] == [part.contribution for part in explanation]
    assert [float(row["contribution layer2"]) for row in rows] == [part.contributions[1] for part in explanation]
    with np.load(explanation.save(tmp_path / "x.npz")) as found:
        assert found["regions"].shape == (5, 96, 160)
        assert found["attributions"].shape == (5, 1, 96, 96)
        np.testing.assert_array_equal(found["regions"][2], explanation.concepts[2].region)
    for kind, start in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".jpeg", b"\xff\xd8"), (".pdf", b"%PDF")):
        assert explanation.save(tmp_path / f"x{kind}").read_bytes().startswith(start)
    with pytest.raises(FileExistsError, match="already exists"):
        explanation.save(tmp_path / "x.png")
    with pytest.raises(CefamError, match=r"saved as one of \.html"):
        explanation.save(tmp_path / "x.bmp")


class Outline(html.parser.HTMLParser):
    """Tags, addresses and text of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.addresses, self.text, self.handlers = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data):
        self.text.append(data)


def outline(text):
    found = Outline()
    found.feed(text)
    return found


def test_the_page_needs_nothing_from_outside_and_escapes_names(explainer, photographs):
    explanation = explainer.explain(photographs[:1], concepts=[MARKUP, "wing"])[0]
    page = explanation.save("page.html").read_text()
    found = outline(page)
    assert all(address.startswith("data:") for address in found.addresses)
    assert "url(http" not in page
    assert not found.handlers
    assert found.tags.count("script") == 2  # data, and ours: no name opened another one
    assert "b" not in found.tags
    assert MARKUP in "".join(found.text)
    assert len(page) < 2**20


def test_the_notebook_s_form_is_static(explained):
    found = outline(explained[0]._repr_html_())
    assert not {"script", "svg", "link"} & set(found.tags)
    assert all(address.startswith("data:image/jpeg") for address in found.addresses)
    assert "b" in found.tags  # the title's own
    assert found.tags.count("b") == 1


def test_a_notebook_s_form_escapes_words(explainer, photographs):
    explanation = explainer.explain(photographs[:1], concepts=['x"><script>alert(1)</script>'])[0]
    assert not {"script"} & set(outline(explanation._repr_html_()).tags)


def test_one_word_is_one_concept(explainer, photographs):
    (part,) = explainer.explain(photographs[:1], concepts="wing")[0]
    assert part.concept.word == "wing"


def test_pictures_of_all_kinds_are_read(tmp_path):
    rgb = Image.fromarray(draw(describe("test", 2)).image)
    rgb.save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("RGB", (96, 96))])
    rgb.convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.new("RGB", (1, 1), (9, 9, 9)).save(tmp_path / "dot.png")
    with pytest.warns(CefamWarning, match="has 2 frames: the first one"):
        assert Photograph.open(tmp_path / "a.gif", 96).size == (96, 96)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("cmyk.jpg", "deep.png", "dot.png"):
            assert Photograph.open(tmp_path / name, 96).view.shape == (3, 96, 96)
    with pytest.warns(CefamWarning, match="10000 x 5000 pixels: it is reduced to 4096 x 2048"):
        assert Photograph.of(Image.new("RGB", (10000, 5000)), 96, "huge").size == (2048, 4096)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(CefamError, match="cannot be read"):
        Photograph.open(tmp_path / "text.png", 96)


def test_why_not(explainer, photographs):
    predicted = explainer.explain(photographs[:1])[0].target
    other = (predicted + 1) % 24
    compared = explainer.why_not(photographs[0], other, top_k=3)
    assert (compared.predicted.target, compared.other.target) == (predicted, other)
    assert len(compared.predicted.concepts) == len(compared.other.concepts) == 3
    for flip in compared.flips:
        assert (flip.counts[0], flip.counts[-1]) == (0, flip.patches)
        hidden = explainer.classifier.probabilities(explainer.classifier(flip.view[None]).logits)[0]
        last = -1 if flip.at is None else flip.counts.index(flip.at)
        assert flip.probabilities[last].tolist() == pytest.approx(hidden[[predicted, other]].tolist(), rel=1e-4)
        assert (flip.at is None) == (flip.becomes == "")
        if flip.at is not None:
            assert explainer.classifier.class_names[int(hidden.argmax())] == flip.becomes
    page = compared.save("why.html").read_text()
    with pytest.raises(ValueError, match=r"why\.html already exists: name another file"):
        compared.save("why.html")
    with pytest.raises(ValueError, match=r"why.png has the extension '.png': a comparison is saved as .html"):
        compared.save("why.png")
    assert not Path("why.png").exists()
    assert compared.save("why.html", overwrite=True).read_text() == page
    assert outline(page).tags.count("script") == 0
    assert compared.predicted.target_name in str(compared)
    assert compared.answer in page
    flip, name = compared.flips[0], compared.other.target_name
    for becomes, said in ((name, f"makes it {name}."), ("heron", "it became heron."), ("", "it stays ")):
        turned = replace(flip, becomes=becomes, at=flip.patches if becomes else None)
        assert said in replace(compared, flips=[turned]).answer
    with pytest.raises(CefamError, match="name a class that it is not taken for"):
        explainer.why_not(photographs[0], predicted)


def test_a_decision_changes_from_that_of_the_whole_photograph(explainer, photographs):
    """Also where another class than the predicted one is compared."""
    predicted = explainer.explain(photographs[:1])[0].target
    compared = explainer.why_not(photographs[0], predicted, target=(predicted + 1) % 24)
    assert all(flip.at != 0 for flip in compared.flips)


def test_classes_by_name():
    names = ["crane", "heron", "crane"]
    assert class_number(names, 3, " Heron ") == 1
    assert class_number(names, 3, 2) == 2
    for wanted, message in (
        ("crane", "2 classes are called 'crane': name one by its index, 0, 2"),
        ("hern", "Did you mean 'heron'"),
        ("7", "There is no class 7"),
    ):
        with pytest.raises(CefamError, match=message):
            class_number(names, 3, wanted)
    with pytest.raises(CefamError, match="give the index of 'heron', below 5"):
        class_number(None, 5, "heron")


@pytest.mark.parametrize("kind", ["resnet", "vit", "timm vit", "swin", "bypass"])
@pytest.mark.parametrize(("preset", "probability"), [("published", "softmax"), ("paper", "sigmoid")])
def test_every_architecture_is_explained(kind, preset, probability, tmp_path):
    explainer, images = explainer_of(kind, preset, probability, num_channels=3)
    for explanation in explainer.explain(images, top_k=3, every_stage=True):
        index = int(explanation.name.split()[1])
        for part in explanation:
            pair = ConceptPairs(torch.tensor([index]), torch.tensor([int(part.concept.word)]))
            assert len(part.maps) - 1 == len(part.association) == len(explainer.classifier.stages)
            assert -1 <= part.direct <= 1
            if kind == "bypass":
                assert part.contribution is None
                continue
            expected = explainer.contribution(images, pair, stage=torch.tensor([part.stage]))
            assert part.contribution == pytest.approx(float(expected.value), rel=1e-3, abs=1e-5)
            assert part.contributions[part.stage] == part.contribution
        said = " ".join(explanation.warnings)
        assert ("by-passes" in said) == (kind == "bypass")
        assert explanation.save(tmp_path / f"{index}.html").stat().st_size > 1000
