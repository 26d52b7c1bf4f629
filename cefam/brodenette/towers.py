"""The two towers of Brodenette, shipped with the package: a small ResNet and a small open_clip model.

:func:`cefam.load_classifier` and :func:`cefam.load_vlm` load them under the name "brodenette". They were trained by
``examples/brodenette_recipe``.
"""

from collections import OrderedDict
from importlib.resources import files
from pathlib import Path

from torch import nn
from torchvision.models.resnet import BasicBlock

from cefam.brodenette.rules import CLASSES

STAGES = ("layer1", "layer2", "layer3", "layer4")
WIDTHS = (16, 32, 64, 128)
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def weights_folder() -> Path:
    """Where the shipped weights lie: ``classifier.safetensors``, and ``vlm/`` as open_clip's "local-dir:" wants it."""
    return Path(str(files("cefam.brodenette") / "weights"))


def build_classifier() -> nn.Module:
    """A ResNet of four basic blocks: (B, 3, 96, 96) -> (B, classes), maps of 48, 24, 12 and 6 a side."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, WIDTHS[0], 5, stride=2, padding=2, bias=False), bn1=nn.BatchNorm2d(WIDTHS[0]), relu=nn.ReLU()
    )
    for stage, (before, width) in enumerate(zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False)):
        shortcut = None
        if before != width:
            shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride=2, bias=False), nn.BatchNorm2d(width))
        layers[STAGES[stage]] = BasicBlock(before, width, 1 if before == width else 2, shortcut)
    layers.update(avgpool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(WIDTHS[-1], len(CLASSES)))
    return nn.Sequential(layers)
