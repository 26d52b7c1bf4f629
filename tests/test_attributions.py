"""Saliency rows against independent references: the libraries, completeness, and literal sums."""

import numpy as np
import pytest
import torch
from pytorch_grad_cam import GradCAMPlusPlus, ScoreCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from scipy.optimize import nnls

from cefam import ConceptPairs, ConceptSet, Trained, Translator, load_classifier, load_vlm
from cefam.brodenette import describe, draw
from cefam.errors import CefamError
from cefam.images.views import resize_regions
from cefam.methods import (
    Activated,
    CRAFTRegions,
    GradCAMPlusPlusRegions,
    IntegratedGradientsRegions,
    MethodContext,
    RISERegions,
    ScoreCAMRegions,
)  # fmt: skip
from cefam.methods import saliency as method_views
from cefam.methods.saliency import ScoreModel
from tests.commands import run

PAIRS = ConceptPairs(image=torch.tensor([0, 0, 1]), concept=torch.tensor([3, 40, 3]))


@pytest.fixture(scope="module")
def context():
    classifier, vlm = load_classifier("brodenette"), load_vlm("brodenette")
    torch.manual_seed(0)
    translator = Translator(classifier.channels, vlm.embedding_dim).eval()
    return MethodContext(Trained(classifier, translator, ConceptSet.brodenette().embed(vlm)), vlm)


@pytest.fixture(scope="module")
def activated(context):
    pictures = [torch.from_numpy(draw(describe("evaluation", i)).image).permute(2, 0, 1) for i in range(2)]
    images = torch.stack(pictures)
    return Activated(images, context.classifier(images))


def targets(context, activated, of):
    return activated.output.logits.argmax(1)[PAIRS.image] if of == "class" else PAIRS.concept


def test_the_concept_view_is_the_explainers_similarity(context, activated):
    explainer = context.trained.explainer()
    found = ScoreModel(explainer, "concept")(activated.images)
    torch.testing.assert_close(found, explainer.encode(activated.images).similarity, rtol=1e-4, atol=1e-4)
    classes = ScoreModel(explainer, "class")(activated.images)
    torch.testing.assert_close(classes, activated.output.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("of", ["class", "concept"])
def test_integrated_gradients_sum_to_the_difference_of_the_scores(context, activated, of):
    method = IntegratedGradientsRegions(context, of=of, steps=80)
    images = (activated.images.float() / 255)[PAIRS.image]
    target = targets(context, activated, of)
    signed = method.attribution(method.view).attribute(images, target=target, n_steps=80)
    change = method.view(images) - method.view(torch.zeros_like(images))
    wanted = change.gather(1, target.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(signed.flatten(1).sum(1), wanted, rtol=0.03, atol=0.05)
    found = method.regions(activated, PAIRS, (96, 96), 4)
    torch.testing.assert_close(found.maps[:, 0], signed.abs().sum(1), rtol=1e-3, atol=1e-5)
    assert found.stage.unique().tolist() == [-1]


@pytest.mark.parametrize("of", ["class", "concept"])
@pytest.mark.parametrize(("cls", "library"), [(GradCAMPlusPlusRegions, GradCAMPlusPlus), (ScoreCAMRegions, ScoreCAM)])
def test_cams_are_grad_cams(context, activated, cls, library, of, capsys):
    method = cls(context, of=of)
    found = method.regions(activated, PAIRS, (96, 96), 4).maps[:, 0]
    images, target = (activated.images.float() / 255)[PAIRS.image], targets(context, activated, of)
    with library(method.view, target_layers=[method.view.last_stage]) as cam:
        wanted = torch.from_numpy(
            cam(input_tensor=images.requires_grad_(), targets=[ClassifierOutputTarget(int(t)) for t in target])
        )

    def scaled(maps):  # the library scales every map to 1
        low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
        return (maps - low) / (high - low).clamp_min(1e-7)

    assert (scaled(found) - scaled(wanted)).abs().mean() < 0.02  # it enlarges with another interpolation
    for mine, theirs in zip(found, wanted, strict=True):
        assert torch.corrcoef(torch.stack([mine.flatten(), theirs.flatten()]))[0, 1] > 0.99


def test_rise_is_the_literal_sum(context, activated):
    method = RISERegions(context, count=40, cells=5, seed=3)
    found = method.regions(activated, PAIRS, (96, 96), 4).maps[:, 0]
    masks = method.masks(activated.images.float()[:1])[0]
    assert masks.shape == (40, 96, 96)
    assert 0 <= masks.min() < masks.max() <= 1
    explainer = context.trained.explainer()
    for row in range(len(PAIRS)):
        image, total = activated.images[int(PAIRS.image[row])].float() / 255, torch.zeros(96, 96)
        for mask in masks:
            total += float(explainer.scores((image * mask)[None])[0, PAIRS.concept[row]]) * mask
        torch.testing.assert_close(found[row], total / masks.sum(0), rtol=1e-3, atol=1e-6)
    assert torch.equal(masks, RISERegions(context, count=40, cells=5, seed=3).masks(activated.images.float()[:1])[0])


def test_a_class_that_is_not_predicted_can_be_explained(context, activated):
    method = RISERegions(context, of="class", count=8, cells=5)
    predicted = activated.output.logits.argmax(dim=1)
    other = (predicted + 1) % context.classifier.num_classes
    found = method.regions(activated, PAIRS, (96, 96), 1, target=other).maps[:, 0]
    torch.testing.assert_close(found, method.maps(activated, PAIRS.image, other[PAIRS.image]))
    usual = method.regions(activated, PAIRS, (96, 96), 1).maps[:, 0]
    torch.testing.assert_close(usual, method.maps(activated, PAIRS.image, predicted[PAIRS.image]))
    assert not torch.equal(found, usual)


def test_pixels_that_no_mask_of_rise_shows_are_0(context, activated):
    method = RISERegions(context, count=1, cells=7, share=0.1, seed=3)
    hidden = method.masks(activated.images[:1])[0, 0] == 0
    found = method.regions(activated, PAIRS, (96, 96), 4).maps[:, 0]
    assert hidden.any()
    assert (found[:, hidden] == 0).all()
    assert found.isfinite().all()


def test_a_package_that_is_missing_is_named(context, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(method_views, "import_module", missing)
    for cls, package in ((IntegratedGradientsRegions, "captum.attr"), (GradCAMPlusPlusRegions, "pytorch_grad_cam")):
        with pytest.raises(
            CefamError, match=rf"needs {package}, which is not installed: pip install 'cefam\[methods\]'"
        ):
            cls(context)
    with pytest.raises(CefamError, match="of must be 'class' or 'concept', got 'both'"):
        RISERegions(context, of="both")


def test_regions_of_factors(context, activated, tmp_path):
    options = ["--kind", "brodenette", "--source", "train", "--count", 40, "--masks", "[]", "--folder", tmp_path / "s"]
    assert run("prepare", *options) == 0
    method = CRAFTRegions(context, str(tmp_path / "s"), factors=12, examples=5)
    pairs = ConceptPairs(
        torch.arange(2).repeat_interleave(len(context.concepts)), torch.arange(len(context.concepts)).repeat(2)
    )
    found = method.regions(activated, pairs, (24, 24), 2)
    assert found.valid.any()
    assert not found.valid.all()
    named = set(method.associations.concept.tolist())
    assert all(bool(found.valid[row, 0]) == (int(pairs.concept[row]) in named) for row in range(len(pairs)))
    values = activated.output.activations[-1]
    factors = method.nmf.components_.astype(float)
    unit = factors / np.linalg.norm(factors, axis=1, keepdims=True)
    cells = values.flatten(2).transpose(1, 2).flatten(0, 1).double().numpy()
    parts = torch.tensor(np.stack([nnls(unit.T, cell)[0] for cell in cells])).view(2, 36, 12).float()
    row = int(found.valid[:, 0].nonzero()[0])
    factor = int(method.best(2, torch.device("cpu")).channel[pairs.concept[row], 0])
    wanted = resize_regions(parts[pairs.image[row], :, factor].view(1, 6, 6), (24, 24))[0]
    torch.testing.assert_close(found.maps[row, 0], wanted, rtol=0.02, atol=0.02 * float(wanted.max()))
    with pytest.raises(CefamError, match=r"holds 40 photograph.s., fewer than the 60 that name a factor"):
        CRAFTRegions(context, str(tmp_path / "s"), examples=60)
