"""Images as people hand them over: accepted where the meaning is sure, else one sentence; classes and concepts by any integer."""

import numpy as np
import pytest
import torch
from PIL import Image

from cefam import CEFAM, ConceptSet, Photograph, Trained, Translator, load_classifier, load_vlm
from cefam.brodenette import describe, draw
from tests.test_wrapping import Net, explainer_of


@pytest.fixture(scope="module")
def explainer():
    torch.manual_seed(0)
    classifier = load_classifier("brodenette")
    concepts = ConceptSet.brodenette().embed(load_vlm("brodenette"))
    return Trained(classifier, Translator(classifier.channels, 64), concepts).explainer()


@pytest.fixture(scope="module")
def pixels():
    """One photograph of 96 x 96: uint8 (1, 3, 96, 96)."""
    return torch.from_numpy(draw(describe("test", 3)).image.copy()).permute(2, 0, 1)[None]


def told(explainer, images):
    found = explainer.explain(images, top_k=3)
    return [
        (each.target, [(p.concept.number, round(p.score, 4), round(p.contribution, 3)) for p in each]) for each in found
    ]


def test_every_sure_form_is_the_same_photograph(explainer, pixels, tmp_path):
    expected = told(explainer, pixels)
    picture = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    path = tmp_path / "a.png"
    picture.save(path)
    same = {
        "floats": pixels.float() / 255, "channels last": pixels.permute(0, 2, 3, 1), "picture": picture, "path": path,
        "text": str(path), "list": [path], "photograph": [Photograph.open(path, 96)], "double": pixels.double() / 255,
    }  # fmt: skip
    for name, images in same.items():
        assert told(explainer, images) == expected, name
    assert told(explainer, [picture, path, Photograph.open(path, 96)]) == expected * 3
    assert explainer.explain(path)[0].photograph.name == "a.png"
    assert len(explainer.why_not(path, other=(expected[0][0] + 1) % 12).flips) <= 3
    assert explainer.explain([]) == []


BAD = {
    "0 .. 255 in floats": (lambda x: x.float(), r"values from 0 to 255; .* uint8 or floats in \[0, 1\]"),
    "normalized": (lambda x: (x.float() / 255 - 0.5) / 0.25, "undo a normalization"),
    "from -1 to 1": (lambda x: x.float() / 127.5 - 1, "values from -1 to"),
    "bicubic overshoot": (lambda x: x.float() / 255 * 1.1 - 0.05, "clamp what interpolation overshot"),
    "half precision": (lambda x: x.half(), "values from 0 to 255"),
    "NaN": (lambda x: (x.float() / 255).masked_fill(x == x.max(), torch.nan), "not finite: look for NaN"),
    "infinity": (lambda x: (x.float() / 255).masked_fill(x == x.max(), torch.inf), "not finite"),
    "channels last in floats": (
        lambda x: x.permute(0, 2, 3, 1).float() / 255,
        r"must be \(B, 3, H, W\), got \(1, 96, 96, 3\)",
    ),
    "without a batch": (lambda x: x[0], r"must be \(B, 3, H, W\), got \(3, 96, 96\)"),
    "one channel": (lambda x: x[:, :1], r"must be \(B, 3, H, W\)"),
    "64-bit whole numbers": (lambda x: x.long(), "must be uint8 or floats"),
    "an array": (lambda x: x.numpy(), "got a ndarray"),
    "a number": (lambda x: [5], "got a int"),
}


@pytest.mark.parametrize("name", BAD)
def test_other_forms_and_ranges_are_one_sentence(name, explainer, pixels):
    change, advice = BAD[name]
    with pytest.raises(ValueError, match=advice) as error:
        explainer.explain(change(pixels))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["0 .. 255 in floats", "normalized", "NaN", "channels last in floats"])
def test_regions_and_contributions_refuse_them_too(name, explainer, pixels):
    from cefam import ConceptPairs

    change, advice = BAD[name]
    pairs = ConceptPairs(torch.tensor([0]), torch.tensor([3]))
    for use in (explainer.regions, explainer.association, explainer.contribution, explainer.direct_effect):
        with pytest.raises(ValueError, match=advice):
            use(change(pixels), pairs)
    with pytest.raises(ValueError, match=advice):
        explainer.scores(change(pixels))


def test_a_network_that_normalizes_itself_takes_any_finite_range():
    explainer = explainer_of(Net())
    assert explainer.explain(torch.randn(2, 3, 32, 32), top_k=1)
    with pytest.raises(ValueError, match="not finite"):
        explainer.explain(torch.full((1, 3, 32, 32), torch.nan))


def test_pictures_for_a_classifier_of_other_sides_need_a_view_of_ones_own():
    explainer = explainer_of(Net(), input_size=(32, 48), layout="channels_first")
    with pytest.raises(ValueError, match="takes images of 32 x 48, and pictures are cut to squares"):
        explainer.explain(Image.new("RGB", (48, 32)))
    assert explainer.explain(torch.zeros(1, 3, 32, 48), top_k=1)


def test_indices_of_any_kind_and_classes_that_do_not_exist(explainer, pixels):
    for kind in (int, np.int64, np.uint8):
        found = explainer.explain(pixels, concepts=[kind(3)], target=kind(2))[0]
        assert (found.target, found.concepts[0].concept.number) == (2, explainer.concepts.concepts[3].number)
    assert explainer.explain(pixels, target=torch.tensor([4]))[0].target == 4
    classes = explainer.classifier.num_classes
    for target in (classes, -1, torch.tensor([classes + 5])):
        with pytest.raises(ValueError, match=f"There is no class .*: there are {classes}, counted from 0"):
            explainer.explain(pixels, target=target)
    with pytest.raises(ValueError, match="named by its word or its index, got a float"):
        explainer.explain(pixels, concepts=[3.0])
    with pytest.raises(ValueError, match=r"There is no concept 5000"):
        explainer.explain(pixels, concepts=[np.int64(5000)])


@pytest.mark.parametrize("name", ["0 .. 255 in floats", "normalized", "NaN"])
def test_training_refuses_images_of_another_range(name, pixels):
    change, advice = BAD[name]
    module = CEFAM(load_classifier("brodenette"), load_vlm("brodenette"), concepts="brodenette")
    module.log_dict = lambda *logged, **options: None  # without a Trainer
    assert module.training_step({"image": pixels}, 0).isfinite()
    with pytest.raises(ValueError, match=advice):
        module.training_step({"image": change(pixels)}, 0)
