"""Grad-CAM rows: equal to captum's, and to a slow literal second derivation."""

import captum.attr
import pytest
import torch

from cefam import ConceptPairs, Trained
from cefam.images.views import resize_regions
from cefam.methods import Activated, GradCAMRegions, MethodContext
from tests.test_explain import RAGGED, explainer_of

KINDS = ["resnet", "vit", "swin", "bypass"]


def bench_of(explainer):
    return MethodContext(Trained(explainer.classifier, explainer.translator, explainer.concepts))


def literal(explainer, image, score_of):
    """Grad-CAM of one image by a hook and autograd on the module itself."""
    classifier, stage = explainer.classifier, explainer.classifier.stages[-1]
    held = {}

    def keep(module, inputs, output):
        held["raw"] = output if output.requires_grad else output.requires_grad_()
        return held["raw"]

    handle = classifier.module.get_submodule(stage.tap).register_forward_hook(keep)
    logits = classifier.module(image[None])
    handle.remove()
    activation = stage.to_map(held["raw"], stage.grid(held["raw"], image.shape[-2:]))[0]
    (gradient,) = torch.autograd.grad(score_of(logits, activation), held["raw"])
    gradient = stage.to_map(gradient, tuple(activation.shape[-2:]))[0]
    found = torch.zeros(activation.shape[-2:])
    for channel in range(activation.shape[1]):
        found += gradient[0, channel].mean() * activation[0, channel].detach()
    return found.relu()


@pytest.mark.parametrize("kind", KINDS)
def test_the_class_map_is_captums_and_the_literal_one(kind):
    explainer, images = explainer_of(kind)
    classifier = explainer.classifier
    activated = Activated(images, classifier(images))
    method = GradCAMRegions(bench_of(explainer))
    predicted = activated.output.logits.argmax(dim=1)
    size = activated.output.activations[-1].shape[-2:]
    for target in (None, torch.tensor([4, 0, 6]) % classifier.num_classes):
        found = method.regions(activated, RAGGED, size, 4, target=target)
        assert found.maps.shape == (len(RAGGED), 1, *size)
        assert found.stage.unique().tolist() == [len(classifier.stages) - 1]
        classes = predicted if target is None else target
        for row, image in enumerate(RAGGED.image.tolist()):
            wanted = literal(explainer, images[image], lambda y, _, c=int(classes[image]): y[0, c])
            torch.testing.assert_close(found.maps[row, 0], wanted, rtol=1e-3, atol=1e-6)
    if classifier.stages[-1].layout == "channels_first":  # captum averages over the dimensions behind the second
        view = classifier.unfolded()
        layer = view.module.get_submodule(classifier.stage_names[-1])
        captums = captum.attr.LayerGradCam(view, layer).attribute(images, target=predicted, relu_attributions=True)
        maps = method.maps(activated, torch.arange(len(images)), predicted)
        torch.testing.assert_close(maps, captums[:, 0].detach(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_concept_map_is_the_literal_one(kind):
    explainer, images = explainer_of(kind)
    activated = Activated(images, explainer.classifier(images))
    size = activated.output.activations[-1].shape[-2:]
    found = GradCAMRegions(bench_of(explainer), of="concept").regions(activated, RAGGED, size, 1)
    for row, (image, concept) in enumerate(zip(RAGGED.image.tolist(), RAGGED.concept.tolist(), strict=True)):
        pooled = [a[image : image + 1].mean(dim=(2, 3)) for a in activated.output.activations]

        def score(logits, activation, concept=concept, pooled=pooled):
            z = [*pooled[:-1], activation.mean(dim=(2, 3))]
            return explainer.networks.similarity(explainer.translator(z))[0, concept]

        torch.testing.assert_close(found.maps[row, 0], literal(explainer, images[image], score), rtol=1e-3, atol=1e-6)


def test_the_concept_map_of_a_cnn_is_ce_fams_last_stage():
    explainer, images = explainer_of("resnet")
    activated = Activated(images, explainer.classifier(images))
    found = GradCAMRegions(bench_of(explainer), of="concept").regions(activated, RAGGED, (30, 40), 1)
    last = explainer.regions(images, RAGGED).maps[-1]
    torch.testing.assert_close(found.maps[:, 0], resize_regions(last, (30, 40)), rtol=1e-4, atol=1e-6)


def test_a_batch_is_derived_once_and_no_pairs_are_no_regions():
    explainer, images = explainer_of("resnet")
    activated = Activated(images, explainer.classifier(images))
    method, calls = GradCAMRegions(bench_of(explainer)), []
    original = method.maps
    method.maps = lambda *given: calls.append(1) or original(*given)
    for rows in (slice(0, 2), slice(2, 5)):
        method.regions(activated, RAGGED[rows], (8, 8), 1)
    assert calls == [1]
    none = ConceptPairs(torch.zeros(0).long(), torch.zeros(0).long())
    assert method.regions(activated, none, (8, 8), 1).maps.shape == (0, 1, 8, 8)
    with pytest.raises(ValueError, match="of must be 'class' or 'concept'"):
        GradCAMRegions(bench_of(explainer), of="words")


def test_class_maps_work_where_the_towers_run_in_half_precision():
    explainer, images = explainer_of("resnet")
    method = GradCAMRegions(bench_of(explainer))

    def maps():
        activated = Activated(images, explainer.classifier(images))
        return method.maps(activated, torch.arange(len(images)), activated.output.logits.argmax(dim=1))

    expected = maps()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halved = maps()
    assert halved.dtype == torch.float32
    assert float((halved - expected).abs().max()) < 0.1 * float(expected.max())
