"""Network Dissection and Net2Vec: literal derivations, and that fitted regions find what they were fitted to."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from cefam import ConceptPairs, ConceptSet, FrozenClassifier, Trained, Translator, load_classifier
from cefam.datasets import Mask, Sample, ShardWriter
from cefam.errors import CefamError
from cefam.images.views import resize_regions
from cefam.methods import Activated, MethodContext, Net2VecRegions, NetworkDissectionRegions, masked, net2vec
from cefam.methods.associations import Associations
from cefam.methods.masked import Masked, MaskedShards, Thresholds, thresholds
from cefam.methods.network_dissection import Overlaps, dissect_by_masks
from tests.commands import run


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masked") / "scenes"
    assert run("prepare", "--kind", "brodenette", "--source", "captioned", "--count", 12, "--folder", folder) == 0
    return str(folder)


@pytest.fixture(scope="module")
def context():
    classifier = load_classifier("brodenette")
    return MethodContext(Trained(classifier, Translator(classifier.channels, 4), ConceptSet.brodenette()))


def test_thresholds_are_exceeded_by_the_share(context, scenes):
    shards = MaskedShards(context.classifier, context.concepts, scenes)
    maps = [torch.cat(stage) for stage in zip(*[batch.maps for batch in shards], strict=True)]
    for found, activation in zip(thresholds(shards, 0.005), maps, strict=True):
        values = activation.transpose(0, 1).flatten(1)
        count = math.floor(0.005 * values.shape[1])
        wanted = values.sort(dim=1, descending=True).values[:, count]
        assert torch.equal(found, wanted)
        assert ((values > found.unsqueeze(1)).sum(dim=1) <= count).all()


def test_thresholds_of_a_regular_part_of_the_positions(monkeypatch):
    monkeypatch.setattr(masked, "HELD", 100)
    values = torch.rand(10, 3, 20, 20)
    found = Thresholds(0.1, 10)
    for image in values:
        found.add(image[None])
    assert found.step == 12
    part = values.flatten(2)[..., ::12].transpose(0, 1).flatten(1)
    assert torch.equal(found.value(), part.sort(dim=1, descending=True).values[:, int(0.1 * part.shape[1])])


def test_overlaps_are_those_of_loops(context, scenes):
    categories = torch.tensor(
        [["object", "part", "color", "material"].index(c.category) for c in context.concepts.concepts]
    )
    batches = list(MaskedShards(context.classifier, context.concepts, scenes, batch_size=5))
    stage, threshold = 2, torch.full((64,), 0.4)
    found = Overlaps(threshold, categories)
    both, label, active = torch.zeros(64, len(categories)), torch.zeros(len(categories)), torch.zeros(64, 4)
    for batch in batches:
        found.add(batch, stage)
        for image in range(len(batch.maps[0])):
            above = resize_regions(batch.maps[stage][image], (96, 96)) > 0.4
            shown = set()
            for row in range(len(batch.concept)):
                if batch.image[row] == image:
                    concept = int(batch.concept[row])
                    both[:, concept] += (above & batch.mask[row]).sum(dim=(1, 2))
                    label[concept] += batch.mask[row].sum()
                    shown.add(int(categories[concept]))
            for category in shown:
                active[:, category] += above.sum(dim=(1, 2))
    wanted = both / (active[:, categories] + label - both).clamp_min(1)
    torch.testing.assert_close(found.iou().float(), wanted)


def test_dissection_ranks_neurons_by_iou_and_can_be_kept(context, scenes, tmp_path):
    every, detectors = dissect_by_masks(context, scenes), dissect_by_masks(context, scenes, every=False)
    assert detectors.score.min() > 0.04
    assert len(set(zip(detectors.stage.tolist(), detectors.channel.tolist(), strict=True))) == len(detectors.score)
    best = every.best(2)
    assert (best.score[:, 0] >= best.score[:, 1]).all()
    every.write(tmp_path / "a")
    stored = NetworkDissectionRegions(context, associations=str(tmp_path / "a"))
    assert torch.equal(stored.associations.best(4).channel, every.best(4).channel)
    assert "network_dissection" in (tmp_path / "a" / "associations.json").read_text()
    with pytest.raises(CefamError, match="is fitted to masks: set `shards`"):
        NetworkDissectionRegions(context)
    assert isinstance(every, Associations)


def test_the_loss_of_net2vec_is_the_published_one():
    torch.manual_seed(0)
    score, mask, alpha = torch.randn(2, 3, 4), torch.rand(2, 3, 4) > 0.5, torch.tensor([0.7, 0.9])
    total = 0.0
    for pair in range(2):
        for row in range(3):
            for column in range(4):
                m = 1 / (1 + math.exp(-float(score[pair, row, column])))
                a, truth = float(alpha[pair]), float(mask[pair, row, column])
                total -= a * truth * m + (1 - a) * (1 - truth) * (1 - m)
    assert float(net2vec.loss(score, mask, alpha)) == pytest.approx(total, rel=1e-5)


def test_scores_are_sums_over_binary_activations():
    maps, concept, image = torch.rand(2, 5, 4, 4), torch.tensor([1, 0, 1]), torch.tensor([0, 0, 1])
    batch = Masked(torch.zeros(1), [maps], image, concept, torch.zeros(3, 8, 8, dtype=torch.bool))
    weight, threshold = torch.randn(2, 5), torch.full((5,), 0.5)
    found = net2vec.scores(weight, threshold, batch, 0)
    for row in range(3):
        wanted = sum(weight[concept[row], k] * (maps[image[row], k] > 0.5).float() for k in range(5))
        torch.testing.assert_close(found[row], resize_regions(wanted[None], (8, 8))[0])


class Bright(torch.nn.Module):
    """Two channels: what is red, and what is blue."""

    def __init__(self):
        super().__init__()
        self.body = torch.nn.Conv2d(3, 2, 1, bias=False)
        with torch.no_grad():
            self.body.weight.copy_(torch.tensor([[1.0, 0, -1], [-1, 0, 1]]).view(2, 3, 1, 1))
        self.head = torch.nn.Linear(2, 2)

    def forward(self, images):
        return self.head(self.body(images).mean(dim=(2, 3)))


def test_fitted_regions_find_the_concept(tmp_path):
    """A red square, a blue one: the neuron and the weights that fit each are found."""
    labels = [{"number": n, "name": name, "category": "object"} for n, name in ((1, "red thing"), (2, "blue thing"))]
    random = np.random.default_rng(0)
    with ShardWriter(tmp_path / "s", source="squares", labels=labels) as writer:
        for number in range(24):
            image, mask = np.full((32, 32, 3), 40, np.uint8), np.zeros((32, 32), np.uint16)
            top, left = random.integers(0, 22, 2)
            kind = number % 2
            image[top : top + 10, left : left + 10] = 30
            image[top : top + 10, left : left + 10, 2 * kind] = random.integers(100, 256, (10, 10))
            mask[top : top + 10, left : left + 10] = kind + 1
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            writer.write(Sample(str(number), buffer.getvalue(), ".png", masks=(Mask("object", mask),)))
    classifier = FrozenClassifier(Bright(), ["body"], input_size=(32, 32))
    concepts = ConceptSet.from_words(["red thing", "blue thing"], category="object")
    context = MethodContext(Trained(classifier, Translator([2], 4), concepts))
    images = torch.full((2, 3, 32, 32), 0.15)
    images[0, 0, 4:14, 4:14], images[1, 2, 20:30, 20:30] = 1.0, 1.0
    activated = Activated(images, classifier(images))
    pairs = ConceptPairs(torch.tensor([0, 1]), torch.tensor([0, 1]))
    dissected = NetworkDissectionRegions(context, shards=str(tmp_path / "s"))
    assert dissected.associations.best(1).channel.flatten().tolist() == [0, 1]
    fitted = Net2VecRegions(context, shards=str(tmp_path / "s"), epochs=20, learning_rate=0.5)
    for method in (dissected, fitted):
        found = method.regions(activated, pairs, (32, 32), 4)
        for row, (top, left) in enumerate([(4, 4), (20, 20)]):
            inside = torch.zeros(32, 32, dtype=torch.bool)
            inside[top : top + 10, left : left + 10] = True
            assert found.maps[row, 0][inside].min() > found.maps[row, 0][~inside].max(), type(method)
    assert fitted.fitted.weight[0][0, 0] > fitted.fitted.weight[0][0, 1]


def test_masks_without_known_labels_are_refused(scenes):
    classifier = load_classifier("brodenette")
    concepts = ConceptSet.from_words(["nothing"], start=5000)
    context = MethodContext(Trained(classifier, Translator(classifier.channels, 4), concepts))
    with pytest.raises(CefamError, match="No label of the masks in"):
        dissect_by_masks(context, scenes)
    with pytest.raises(CefamError, match="epochs and learning_rate must be positive"):
        Net2VecRegions(context, shards=scenes, epochs=0)
