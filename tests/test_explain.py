"""The method against a literal second derivation: one pair, one stage, one masked channel at a time, with autograd."""

import gc

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.models import ResNet, VisionTransformer
from torchvision.models.resnet import BasicBlock

from cefam import ConceptPairs, Explainer, FrozenClassifier, Trained, Translator
from cefam.attribution.batching import PairTable
from cefam.images.views import resize_regions
from cefam.methods import Activated, CEFAMRegions, MethodContext
from tests.conftest import fill
from tests.test_classifier import Bypass

TEXTS, DIM = 12, 16


def resnet():
    return fill(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=7), 5), ["layer1", "layer2", "layer3", "layer4"], 64


def vit():
    stages = [f"encoder.layers.encoder_layer_{index}" for index in (0, 2)]
    return fill(VisionTransformer(48, 8, 3, 2, 24, 32, num_classes=7), 6), stages, 48


def timm_vit():
    options = {"img_size": 32, "embed_dim": 24, "depth": 3, "num_heads": 2, "patch_size": 8, "num_classes": 7}
    return fill(timm.create_model("vit_tiny_patch16_224", **options), 7), ["blocks.1", "blocks.2"], 32


def swin():
    module = torchvision.models.SwinTransformer([4, 4], 12, [1, 1], [2, 2], [4, 4], num_classes=7)
    return fill(module, 8), ["features.1", "features.3"], 64


def bypass():
    return fill(Bypass(), 9), ["one", "two"], 16


BUILDERS = {"resnet": resnet, "vit": vit, "timm vit": timm_vit, "swin": swin, "bypass": bypass}


def explainer_of(kind, preset="published", probability="softmax", **options):
    module, stages, size = BUILDERS[kind]()
    classifier = FrozenClassifier.from_module(module, stages, input_size=(size, size))
    translator = fill(Translator(classifier.channels, DIM, [20, 18]), 77)
    torch.manual_seed(1)
    explainer = Explainer.from_tensors(
        classifier, translator, torch.randn(TEXTS, DIM), 20.0, -3.0, probability, preset=preset, **options
    )
    return explainer, torch.randn(3, 3, size, size)


RAGGED = ConceptPairs(image=torch.tensor([2, 0, 2, 1, 2]), concept=torch.tensor([4, 4, 0, 11, 7]))


class Literal:
    """One image, run with plain hooks and autograd, as the paper writes it."""

    def __init__(self, explainer, image):
        self.explainer, self.image = explainer, image[None]
        self.module, self.stages = explainer.classifier.module, explainer.classifier.stages

    def forward(self, replace=None):
        """Raw stage outputs (leaves for autograd), their inputs, logits; ``replace``: {stage: function of the output}."""
        raw, before, handles = {}, {}, []

        def hook(index):
            def run(module, inputs, output):
                if index == 0 and replace is None:
                    output = output.detach().requires_grad_()
                if replace is not None and index in replace:
                    output = replace[index](output)
                raw[index], before[index] = output, inputs[0]
                return output.clone()

            return run

        for index, stage in enumerate(self.stages):
            handles.append(self.module.get_submodule(stage.tap).register_forward_hook(hook(index)))
        logits = self.module(self.image)
        for handle in handles:
            handle.remove()
        return raw, before, logits

    def as_map(self, index, raw):
        stage = self.stages[index]
        if stage.layout == "channels_first":
            return raw
        if stage.layout == "channels_last":
            return raw.permute(0, 3, 1, 2)
        patches = raw[:, stage.num_prefix :].transpose(1, 2)
        side = round(patches.shape[2] ** 0.5)
        return patches.reshape(1, -1, side, side)

    def log_score(self, pooled, concept):
        explainer = self.explainer
        text = nn.functional.normalize(explainer.concepts.embeddings, dim=1)
        h = nn.functional.normalize(explainer.translator(pooled), dim=1)
        s = (explainer.concepts.logit_scale * h @ text.t() + explainer.concepts.logit_bias)[0]
        p = s.softmax(0) if explainer.concepts.probability == "softmax" else s.sigmoid()
        return s[concept], p[concept]

    def regions(self, concept, derivative):
        raw, before, _ = self.forward()
        maps = [self.as_map(i, raw[i]) for i in range(len(self.stages))]
        pooled = [m.mean(dim=(2, 3)) for m in maps]
        if derivative == "branch":
            pooled = [z.detach().requires_grad_() for z in pooled]
        score, _ = self.log_score(pooled, concept)
        weights = []
        for index, stage in enumerate(self.stages):
            normed = stage.tap != stage.name and self.explainer.settings.preset == "published"
            if derivative == "branch":
                gradient = torch.autograd.grad(score, pooled[index], retain_graph=True)[0]
                spatial = (gradient / maps[index][0, 0].numel())[..., None, None].expand_as(maps[index])
                if normed:
                    source = before[index].detach().requires_grad_()
                    after = self.as_map(index, self.module.get_submodule(stage.tap)(source))
                    spatial = self.as_map(index, torch.autograd.grad(after, source, spatial)[0])
            else:
                source = before[index] if normed else raw[index]
                spatial = self.as_map(index, torch.autograd.grad(score, source, retain_graph=True)[0])
            weights.append(spatial.mean(dim=(2, 3))[0])
        regions = [(w[:, None, None] * m[0]).sum(0).relu() for w, m in zip(weights, maps, strict=True)]
        importance = [w * m.mean(dim=(2, 3))[0] for w, m in zip(weights, maps, strict=True)]
        return weights, regions, importance, [z.detach() for z in pooled]

    def association(self, concept, importance, pooled, k):
        result = []
        for index in range(len(self.stages)):
            order = sorted(range(len(importance[index])), key=lambda c: -float(importance[index][c]))[:k]
            z, first, total = [p.clone() for p in pooled], float(self.log_score(pooled, concept)[1]), 0.0
            for channel in order:
                z[index][0, channel] = pooled[index].mean()
                total += (first - float(self.log_score(z, concept)[1])) / first
            result.append(total / len(order))
        return result

    def contribution(self, index, importance, target, k):
        order = sorted(range(len(importance[index])), key=lambda c: -float(importance[index][c]))[:k]
        stage, curve, first = self.stages[index], [], None
        for n in range(len(order) + 1):

            def mask(output, n=n):
                output = output.clone()
                fixed = self.as_map(index, output).clone()
                for channel in order[:n]:
                    own = fixed[0, channel].mean()
                    everything = fixed.mean()
                    last = index == len(self.stages) - 1
                    value = everything if last or self.explainer.settings.preset == "paper" else own
                    if stage.layout == "channels_first":
                        output[0, channel] = value
                    else:  # every token, class token too; every position
                        output[..., channel] = value
                return output

            probability = float(self.forward({index: mask})[2].softmax(1)[0, target])
            first = probability if first is None else first
            curve.append((first - probability) / first)
        return curve, sum(curve) / len(order)


@pytest.mark.parametrize("preset", ["published", "paper"])
@pytest.mark.parametrize("derivative", ["total", "branch"])
@pytest.mark.parametrize("kind", BUILDERS)
def test_regions_are_the_literal_ones(kind, derivative, preset):
    explainer, images = explainer_of(kind, preset)
    found = explainer.regions(images, RAGGED, derivative)
    for row in range(len(RAGGED)):
        literal = Literal(explainer, images[RAGGED.image[row]])
        weights, regions, importance, _ = literal.regions(int(RAGGED.concept[row]), derivative)
        for stage in range(len(weights)):
            torch.testing.assert_close(found.weights[stage][row], weights[stage], rtol=1e-3, atol=1e-6)
            torch.testing.assert_close(found.maps[stage][row], regions[stage], rtol=1e-3, atol=1e-6)
            torch.testing.assert_close(found.importance[stage][row], importance[stage], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("k", [5, 30])  # 30: more than some stages have channels
@pytest.mark.parametrize("probability", ["softmax", "sigmoid"])
@pytest.mark.parametrize("kind", BUILDERS)
def test_association_is_the_literal_one(kind, probability, k):
    explainer, images = explainer_of(kind, probability=probability)
    found = explainer.association(images, RAGGED, num_channels=k)
    for row in range(len(RAGGED)):
        literal, concept = Literal(explainer, images[RAGGED.image[row]]), int(RAGGED.concept[row])
        _, _, importance, pooled = literal.regions(concept, "total")
        expected = literal.association(concept, importance, pooled, k)
        torch.testing.assert_close(found[row], torch.tensor(expected).double(), rtol=1e-3, atol=1e-5)


def test_a_share_of_the_channels_bounds_k():
    """With a quarter of the channels, each stage has a K of its own; contributions mask as many."""
    explainer, images = explainer_of("resnet")
    narrow = Explainer(explainer.classifier, explainer.translator, explainer.concepts, channel_share=0.25)
    found = narrow.association(images, RAGGED)
    counts = [min(20, channels // 4) for channels in explainer.classifier.channels]
    assert len(set(counts)) > 1
    effect = narrow.contribution(images, RAGGED, target=3, stage=torch.zeros(len(RAGGED), dtype=torch.long))
    for row in range(len(RAGGED)):
        literal, concept = Literal(explainer, images[RAGGED.image[row]]), int(RAGGED.concept[row])
        _, _, importance, pooled = literal.regions(concept, "total")
        expected = [literal.association(concept, importance, pooled, k)[stage] for stage, k in enumerate(counts)]
        torch.testing.assert_close(found[row], torch.tensor(expected).double(), rtol=1e-3, atol=1e-5)
        assert effect.value[row].item() == pytest.approx(
            literal.contribution(0, importance, 3, counts[0])[1], rel=1e-3, abs=1e-5
        )
    with pytest.raises(ValueError, match="channel_share must be above 0 and at most 1, got 2"):
        Explainer(explainer.classifier, explainer.translator, explainer.concepts, channel_share=2)


@pytest.mark.parametrize("preset", ["published", "paper"])
@pytest.mark.parametrize("kind", ["resnet", "vit", "timm vit", "swin"])
def test_contribution_is_the_literal_one_at_every_stage(kind, preset):
    explainer, images = explainer_of(kind, preset)
    for stage in range(len(explainer.classifier.stages)):
        at = torch.full((len(RAGGED),), stage)
        found = explainer.contribution(images, RAGGED, target=3, num_channels=6, stage=at)
        for row in range(len(RAGGED)):
            literal = Literal(explainer, images[RAGGED.image[row]])
            importance = literal.regions(int(RAGGED.concept[row]), "total")[2]
            curve, value = literal.contribution(stage, importance, 3, 6)
            torch.testing.assert_close(found.curve[row], torch.tensor(curve).double(), rtol=1e-3, atol=1e-5)
            assert found.value[row].item() == pytest.approx(value, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("derivative", ["total", "branch"])
def test_candidates_are_the_stages_maps_by_association_descending(derivative):
    explainer, images = explainer_of("resnet")
    context = MethodContext(Trained(explainer.classifier, explainer.translator, explainer.concepts))
    method = CEFAMRegions(context, derivative=derivative, num_channels=5)
    activated = Activated(images, explainer.classifier(images))
    found = method.regions(activated, RAGGED, (40, 30), num_candidates=3)
    regions = explainer.regions(images, RAGGED, derivative)
    association = explainer.association(images, RAGGED, 5, regions)
    assert found.maps.shape == (5, 3, 40, 30)
    for pair in range(len(RAGGED)):
        order = sorted(range(4), key=lambda stage: -float(association[pair, stage]))[:3]
        assert found.stage[pair].tolist() == order
        for place, stage in enumerate(order):
            assert found.score[pair, place] == association[pair, stage]
            resized = resize_regions(regions.maps[stage][pair : pair + 1], (40, 30))[0]
            torch.testing.assert_close(found.maps[pair, place], resized)


def test_masking_more_channels_than_there_are_masks_all_of_them():
    explainer, images = explainer_of("vit")
    at = torch.zeros(len(RAGGED), dtype=torch.long)
    few = explainer.contribution(images, RAGGED, num_channels=24, stage=at)
    many = explainer.contribution(images, RAGGED, num_channels=100, stage=at)
    torch.testing.assert_close(few.value, many.value)
    assert many.curve.shape == (5, 101)
    torch.testing.assert_close(many.curve[:, 24:], many.curve[:, 24:25].expand(-1, 77))


def test_contributions_are_refused_where_a_stage_is_no_cut_and_explanations_go_without():
    explainer, images = explainer_of("bypass")
    with pytest.raises(ValueError, match="contributions are not; choose another stage"):
        explainer.contribution(images, RAGGED, stage=torch.ones(5, dtype=torch.long))
    explanation = explainer.explain(images, top_k=3)[0]
    assert [part.contribution for part in explanation.concepts] == [None] * 3


@pytest.mark.parametrize("kind", ["resnet", "vit", "bypass"])
def test_the_memory_limit_bounds_the_pairs_that_run_together(kind, monkeypatch):
    together = []
    usual = FrozenClassifier.gradients

    def counted(classifier, outputs, sources, gradients):
        together.append(gradients[0].shape[0] * gradients[0].shape[1])
        return usual(classifier, outputs, sources, gradients)

    monkeypatch.setattr(FrozenClassifier, "gradients", counted)
    explainer, images = explainer_of(kind)
    each = 2 * 4 * explainer.networks.elements(explainer.encode(images), 0)
    explainer.settings = explainer.settings.changed(memory_limit=2.5 * each / 2**20)
    explainer.regions(images, RAGGED)
    assert together == [2, 1, 2]  # three pairs of one image, one each of two others


def test_images_with_like_numbers_of_pairs_are_worked_on_together():
    image = torch.tensor([0] * 8 + [1] * 2 + [3] * 7 + [4] * 6 + [5] * 5)
    layout = PairTable(image, 6)
    assert list(layout.groups(room=100)) == [([0, 3, 4], 8), ([5], 5), ([1], 2)]
    assert [group for group, _ in layout.groups(room=16)] == [[0, 3], [4, 5], [1]]
    assert list(PairTable(image[:0], 6).groups(room=16)) == []


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_the_memory_limit_changes_nothing_but_memory(kind):
    whole, images = explainer_of(kind)
    small, _ = explainer_of(kind, memory_limit=0.01)
    for one, other in zip(whole.regions(images, RAGGED).weights, small.regions(images, RAGGED).weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        whole.association(images, RAGGED), small.association(images, RAGGED), rtol=1e-4, atol=1e-6
    )
    one, other = whole.contribution(images, RAGGED), small.contribution(images, RAGGED)
    torch.testing.assert_close(one.value, other.value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["resnet", "vit", "timm vit", "swin"])
def test_a_batch_is_its_images_one_by_one(kind):
    explainer, images = explainer_of(kind)
    last = torch.full((len(RAGGED),), len(explainer.classifier.stages) - 1)

    def explained(images, pairs, stage):
        regions = explainer.regions(images, pairs)
        association = explainer.association(images, pairs, 3, regions)
        contribution = explainer.contribution(images, pairs, None, 3, stage, regions)
        return [
            *regions.maps,
            association,
            contribution.value,
            explainer.contribution(images, pairs, None, 3, last[: len(pairs)]).value,
        ]

    chosen = torch.zeros_like(last)
    whole = explained(images, RAGGED, chosen)
    for row in range(len(RAGGED)):
        image = RAGGED.image[row]
        pair = ConceptPairs(torch.zeros(1).long(), RAGGED.concept[row : row + 1])
        alone = explained(images[image : image + 1], pair, chosen[:1])
        for ours, theirs in zip(whole, alone, strict=True):
            torch.testing.assert_close(ours[row], theirs[0], rtol=1e-4, atol=1e-5)


def test_inference_mode_is_no_obstacle():
    explainer, images = explainer_of("vit")
    expected = explainer.regions(images, RAGGED)
    with torch.inference_mode():
        found = explainer.regions(images * 1.0, RAGGED)
        effect = explainer.contribution(images * 1.0, RAGGED)
    for one, other in zip(found.maps, expected.maps, strict=True):
        torch.testing.assert_close(one, other)
    assert effect.value.isfinite().all()


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_after_the_towers_everything_is_in_single_precision(kind):
    explainer, images = explainer_of(kind)
    encoding = explainer.encode(images)

    def values():
        regions = explainer.regions(encoding, RAGGED)
        association = explainer.association(encoding, RAGGED, regions=regions)
        return [
            *regions.maps,
            *regions.weights,
            association,
            explainer.contribution(encoding, RAGGED, regions=regions).value,
        ]

    expected = values()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = values()
        halved = explainer.regions(images, RAGGED)  # from the images on: the first pass is in half precision
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert all(m.dtype == torch.float32 and m.isfinite().all() for m in halved.maps)


class Held:
    """What a graph keeps for its way back; counted while it is alive."""

    made = alive = 0

    def __init__(self, tensor):
        self.tensor = tensor.detach()  # with its graph it would hold itself
        Held.made, Held.alive = Held.made + 1, Held.alive + 1

    def __del__(self):
        Held.alive -= 1


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_graphs_never_outlive_a_call(kind, monkeypatch):
    explainer, images = explainer_of(kind)
    Held.made = 0
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        found = explainer.regions(images, RAGGED)
        explanations = explainer.explain(images, top_k=2)
        monkeypatch.setattr(FrozenClassifier, "gradients", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            explainer.regions(images, RAGGED)
    gc.collect()
    assert Held.made > 0
    assert Held.alive == 0
    assert not any(tensor.requires_grad for tensor in [*found.maps, *found.weights, *found.importance])
    assert not any(concept.region.requires_grad for e in explanations for concept in e.concepts)


def test_no_pairs_give_empty_results():
    explainer, images = explainer_of("resnet")
    none = ConceptPairs(torch.zeros(0).long(), torch.zeros(0).long())
    regions = explainer.regions(images, none)
    assert [m.shape[0] for m in regions.maps] == [0] * 4
    assert explainer.association(images, none, regions=regions).shape == (0, 4)
    assert explainer.contribution(images, none).value.shape == (0,)


def test_a_black_image_gives_finite_values():
    explainer, images = explainer_of("resnet")
    regions = explainer.regions(torch.zeros_like(images), RAGGED)
    assert all(m.isfinite().all() for m in regions.maps)
    assert explainer.association(torch.zeros_like(images), RAGGED).isfinite().all()


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"preset": "both"}, "'published' or 'paper'"),
        ({"memory_limit": 0}, "must be positive"),
        ({}, "another vision-language"),
    ],
)
def test_what_does_not_fit_is_refused(options, advice):
    explainer, _ = explainer_of("resnet")
    text = torch.randn(3, DIM if options else DIM + 1)
    with pytest.raises(ValueError, match=advice):
        Explainer.from_tensors(explainer.classifier, explainer.translator, text, **options)


@pytest.mark.parametrize(
    ("image", "concept", "advice"), [(3, 0, "no image 3"), (0, -1, "no concept -1"), (0, 12, "12")]
)
def test_pairs_of_nothing_are_refused(image, concept, advice):
    explainer, images = explainer_of("resnet")
    with pytest.raises(ValueError, match=advice):
        explainer.regions(images, ConceptPairs(torch.tensor([0, image]), torch.tensor([0, concept])))


@pytest.mark.parametrize(
    ("stage", "advice"), [([4] * 5, "no stage 4: there are 4"), ([-1] * 5, "no stage -1"), ([0], "one entry per pair")]
)
def test_stages_of_nothing_are_refused(stage, advice):
    explainer, images = explainer_of("resnet")
    with pytest.raises(ValueError, match=advice):
        explainer.contribution(images, RAGGED, stage=torch.tensor(stage))
