"""Every number of the golden files, through the public functions."""

import numpy as np
import pytest
import torch
from torchvision.models import ResNet, VisionTransformer
from torchvision.models.resnet import BasicBlock

from cefam import ConceptPairs, Explainer, FrozenClassifier, Translator
from cefam.images.views import resize_regions
from cefam.metrics.functional import energy_pointing_game, iou_curves, normalized_region_accuracy
from cefam.training.schedule import sgd
from cefam.translator import distillation_losses
from tests.conftest import GOLDEN, assert_golden, fill

STAGES = ["layer1", "layer2", "layer3", "layer4"]


def load(name):
    with np.load(GOLDEN / f"{name}.npz") as stored:
        return {key: torch.from_numpy(np.asarray(value)) for key, value in stored.items()}


def explainer_of(stored, classifier, seed, probability):
    translator = fill(Translator(classifier.channels, 64), seed + 1)
    return Explainer.from_tensors(
        classifier,
        translator,
        text_embeddings=stored["E_text"],
        logit_scale=float(stored["scale"]),
        logit_bias=float(stored["bias"]),
        probability=probability,
    )


@pytest.fixture(scope="module", params=[("clip", 1234, "softmax"), ("siglip", 2345, "sigmoid")], ids=["clip", "siglip"])
def resnet(request):
    kind, seed, probability = request.param
    stored = load(f"cefam_resnet10_{kind}")
    module = fill(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10), seed)
    return stored, explainer_of(stored, FrozenClassifier.from_module(module, STAGES), seed, probability)


@pytest.fixture(scope="module")
def vit():
    stored = load("cefam_vit")
    module = VisionTransformer(
        image_size=112, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10
    )
    classifier = FrozenClassifier.from_module(fill(module, 4321), ["encoder.layers.encoder_layer_1"])
    return stored, explainer_of(stored, classifier, 4321, "softmax")


def pairs_of(stored, key="concepts"):
    concept = stored[key]
    return ConceptPairs(image=torch.zeros_like(concept), concept=concept)


def test_resnet_activations_embedding_and_scores(resnet):
    stored, explainer = resnet
    encoding = explainer.encode(stored["x"])
    assert_golden(encoding.output.logits, stored["logits"])
    for stage, (activation, z) in enumerate(zip(encoding.output.activations, encoding.pooled, strict=True), start=1):
        assert_golden(activation[0].sum(dim=(1, 2)), stored[f"A{stage}_sum"])
        assert_golden((activation[0] ** 2).sum(), stored[f"A{stage}_sq"])
        assert_golden(z[0], stored[f"z{stage}"])
    assert_golden(encoding.embedding[0], stored["h"])
    assert_golden(encoding.similarity[0], stored["S"])
    ranked = explainer.scores(encoding)[0].argsort(descending=True)
    assert ranked[[0, 1, 2, 19]].tolist() == stored["concepts"].tolist()


def test_resnet_regions(resnet):
    stored, explainer = resnet
    regions = explainer.regions(stored["x"], pairs_of(stored))
    for row in range(4):
        for stage in range(4):
            assert_golden(regions.weights[stage][row], stored[f"c{row}_beta{stage + 1}"])
            assert_golden(regions.maps[stage][row], stored[f"c{row}_map{stage + 1}"])
            assert_golden(regions.importance[stage][row], stored[f"c{row}_importance{stage + 1}"])
            resized = resize_regions(regions.maps[stage][row : row + 1], stored["mask"].shape)
            assert_golden(energy_pointing_game(resized, stored["mask"][None])[0], stored[f"c{row}_epg{stage + 1}"])


def test_resnet_association(resnet):
    stored, explainer = resnet
    association = explainer.association(stored["x"], pairs_of(stored), num_channels=20)
    for row in range(4):
        assert_golden(association[row], stored[f"c{row}_association"])
        assert association[row].argmax() == stored[f"c{row}_layer"] - 1


def test_resnet_contribution(resnet):
    stored, explainer = resnet
    assert explainer.encode(stored["x"]).output.logits.argmax() == stored["target"]
    assert_golden(explainer.classifier(stored["x"]).logits.softmax(1).max(), stored["p_target"])
    effect = explainer.contribution(stored["x"], pairs_of(stored, "contribution_concepts"), num_channels=20)
    assert_golden(effect.value, stored["contribution"])
    assert_golden(effect.curve, stored["contribution_curves"])
    assert (effect.stage + 1).tolist() == stored["contribution_layer"].tolist()


def test_resnet_explanation_lists_the_five_best_by_absolute_contribution(resnet):
    stored, explainer = resnet
    (explanation,) = explainer.explain(stored["x"], top_k=5)
    assert [part.concept.number for part in explanation.concepts] == stored["contribution_concepts"].tolist()
    assert_golden([part.contribution for part in explanation.concepts], stored["contribution"])


def test_vit(vit):
    stored, explainer = vit
    encoding = explainer.encode(stored["x"])
    regions = explainer.regions(encoding, pairs_of(stored))
    assert_golden(encoding.output.logits, stored["logits"])
    assert_golden(encoding.pooled[0][0], stored["z1"])
    assert_golden(encoding.embedding[0], stored["h"])
    assert_golden(encoding.similarity[0], stored["S"])
    assert explainer.scores(encoding)[0].topk(3).indices.tolist() == stored["concepts"].tolist()
    for row in range(3):
        assert_golden(regions.weights[0][row], stored[f"c{row}_beta1"])
        assert_golden(regions.maps[0][row], stored[f"c{row}_map1"])
        assert_golden(regions.importance[0][row], stored[f"c{row}_importance1"])
        resized = resize_regions(regions.maps[0][row : row + 1], stored["mask"].shape)
        assert_golden(energy_pointing_game(resized, stored["mask"][None])[0], stored[f"c{row}_epg1"])


def test_metrics():
    stored = load("metrics")
    for index in range(16):
        region, mask = stored[f"map{index}"][None], stored[f"mask{index}"][None]
        assert_golden(normalized_region_accuracy(region, mask), stored["nra"][index : index + 1])
        assert_golden(energy_pointing_game(region, mask), stored["epg"][index : index + 1])
        curves = iou_curves(region, mask)
        assert_golden(curves.predicted[0], stored[f"iou{index}"])
        assert_golden(curves.ideal[0], stored[f"iou_high{index}"])
        assert_golden(curves.random[0], stored[f"iou_low{index}"])


@pytest.mark.parametrize(("kind", "seed"), [("clip", 31), ("siglip", 32)])
def test_three_training_steps(kind, seed):
    stored = load(f"train_{kind}")
    translator = fill(Translator([64, 128, 256, 512], 64), seed)
    optimizer = sgd(translator.parameters())
    pooled = [stored[f"z{stage}"] for stage in range(1, 5)]
    for step in range(3):
        losses = distillation_losses(
            translator(pooled),
            stored["e_image"],
            stored["E_text"],
            float(stored["scale"]),
            float(stored["bias"]),
            0.001,
        )
        for name, loss in zip(("loss", "loss_emb", "loss_sim"), losses, strict=True):
            assert_golden(loss, stored[name][step])
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    for layer in ("fc1", "fc2", "fc3"):
        for part in ("weight", "bias"):
            assert_golden(getattr(getattr(translator, layer), part).norm(), stored[f"norm_{layer}_{part}"])
