"""BatchNorm folded into convolutions: the same values, nothing left over, and left alone where it is not safe."""

import threading

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cefam import ConceptPairs, Explainer, FrozenClassifier, Translator
from cefam.towers.folding import folded
from tests.conftest import fill


def network(name):
    if name.startswith("timm:"):
        return fill(timm.create_model(name.removeprefix("timm:"), num_classes=10), 3).eval()
    return fill(torchvision.models.get_model(name, weights=None, num_classes=10), 3).eval()


def norms(module):
    return [child for child in module.modules() if isinstance(child, nn.BatchNorm2d)]


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("resnet18", ["layer1", "layer4"]),
        ("efficientnet_b0", ["features.2", "features.8"]),
        ("timm:resnet18", ["layer1", "layer4"]),
        ("timm:efficientnet_lite0", ["blocks.1", "conv_head"]),
    ],
)
def test_folding_changes_no_value(name, stages):
    module, images = network(name), torch.rand(2, 3, 64, 64)
    as_it_is = FrozenClassifier(module, stages, input_size=(64, 64), fold=False)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    faster = FrozenClassifier(module, stages, input_size=(64, 64))
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert len(norms(module)) > 10
    assert len(norms(faster.module)) == (stages[-1] == "conv_head")  # a tapped convolution keeps its output
    assert faster.fingerprint == as_it_is.fingerprint
    wanted, found = as_it_is(images), faster(images)
    torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(found.activations, wanted.activations, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


class Net(nn.Module):
    """One convolution with BatchNorm, and whatever the forward does with them."""

    def __init__(self, forward, norm=None):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), norm or nn.BatchNorm2d(4)
        self.other, self.head = nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.path = forward

    def forward(self, images):
        return self.head(self.path(self, images).relu().mean(dim=(2, 3)))


def used_beside(net, images):
    map_ = net.convolution(images)
    return net.norm(map_) + map_


def normed_twice(net, images):
    map_ = net.convolution(images)
    return net.norm(map_) + net.other(map_)


def run_twice(net, images):
    return net.norm(net.convolution(images)) + net.norm(net.convolution(images.flip(-1)))


def not_in_sequence(net, images):
    return net.norm(net.convolution(images) * 2)


@pytest.mark.parametrize("forward", [used_beside, normed_twice, run_twice, not_in_sequence])
def test_what_cannot_be_folded_is_left_alone(forward):
    module = fill(Net(forward), 5).eval()
    assert folded(module, torch.rand(1, 3, 8, 8)) is module


def test_batch_statistics_hooks_subclasses_and_locks_are_left_alone():
    def straight(net, images):
        return net.norm(net.convolution(images))

    image = torch.rand(1, 3, 8, 8)
    module = fill(Net(straight), 5).eval()
    assert not norms(folded(module, image).norm)
    assert folded(module, image, {"convolution"}) is module
    without = fill(Net(straight, nn.BatchNorm2d(4, track_running_stats=False)), 5).eval()
    assert folded(without, image) is without

    class Shifted(nn.BatchNorm2d):
        def forward(self, map_):
            return super().forward(map_) + 1

    subclass = fill(Net(straight, Shifted(4)), 5).eval()
    assert folded(subclass, image) is subclass
    module.lock = threading.Lock()  # cannot be copied
    assert folded(module, image) is module
    del module.lock
    module.convolution.register_forward_hook(lambda *_: None)
    assert folded(module, image) is module


class PreActivation(nn.Module):
    """A stage that ends in a convolution; the BatchNorm behind it belongs to the next one."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3))
        self.block = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Linear(6, 5)

    def forward(self, images):
        return self.head(self.block(self.stem(images)).mean(dim=(2, 3)))


def test_a_stage_that_ends_in_a_convolution_keeps_its_map():
    module, images = fill(PreActivation(), 4).eval(), torch.rand(2, 3, 16, 16)
    plain = FrozenClassifier(module, ["stem", "block"], input_size=(16, 16), fold=False)(images)
    classifier = FrozenClassifier(module, ["stem", "block"], input_size=(16, 16))
    assert len(norms(classifier.module)) == 1  # the other one is folded
    for ours, theirs in zip(classifier(images).activations, plain.activations, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


class Counting(TorchDispatchMode):
    """Counts the backward passes of convolutions."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        Counting.count += function is torch.ops.aten.convolution_backward.default
        return function(*args, **(kwargs or {}))


def test_all_concepts_of_an_image_go_back_together():
    classifier = FrozenClassifier(network("resnet18"), ["layer1", "layer2"], input_size=(64, 64))
    explainer = Explainer.from_tensors(classifier, Translator(classifier.channels, 8, (16, 16)), torch.randn(9, 8))
    counts = []
    for concepts in (1, 9):
        pairs = ConceptPairs(torch.zeros(concepts, dtype=torch.long), torch.arange(concepts))
        Counting.count = 0
        with Counting():
            explainer.regions(torch.rand(1, 3, 64, 64), pairs)
        counts.append(Counting.count)
    assert counts[0] == counts[1] > 0
