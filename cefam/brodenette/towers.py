"""The towers of Brodenette, shipped with the package: small classifiers and a small open_clip model.

:func:`cefam.load_classifier` loads "brodenette" (a ResNet) and "brodenette_vit"; the suffix "_edited" selects the same
networks, additionally trained on edited scenes. :func:`cefam.load_vlm` loads "brodenette" (softmax, like CLIP) and
"brodenette_sigmoid" (the same weights with a bias and a sigmoid, like SigLIP). They were trained by
``examples/brodenette_recipe``.
"""

from collections import OrderedDict
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from torch import nn
from torchvision.models.resnet import BasicBlock
from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer

from cefam.brodenette.rules import CLASSES
from cefam.brodenette.vocabulary import SIZE

STAGES = ("layer1", "layer2", "layer3", "layer4")
VIT_STAGES = ("encoder.layers.encoder_layer_3",)
WIDTHS = (16, 32, 64, 128)
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def weights_folder() -> Path:
    """Folder of the shipped weights: one file per classifier, and folders in the layout of open_clip's "local-dir:"."""
    return Path(str(files("cefam.brodenette") / "weights"))


def build_resnet() -> nn.Module:
    """A ResNet of four basic blocks: (B, 3, 96, 96) -> (B, classes), maps of side 48, 24, 12 and 6."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, WIDTHS[0], 5, stride=2, padding=2, bias=False), bn1=nn.BatchNorm2d(WIDTHS[0]), relu=nn.ReLU()
    )
    for stage, (before, width) in enumerate(zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False)):
        shortcut = None
        if before != width:
            shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride=2, bias=False), nn.BatchNorm2d(width))
        layers[STAGES[stage]] = BasicBlock(before, width, 1 if before == width else 2, shortcut)
    layers.update(avgpool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(WIDTHS[-1], len(CLASSES)))
    network = nn.Sequential(layers)
    network.image_size = SIZE  # type: ignore[assignment]  # input size, also for probing the stages
    return network


def build_vit() -> nn.Module:
    """A vision transformer of four blocks with a convolutional stem: (B, 3, 96, 96) -> (B, classes), maps of side 12."""
    stem = [ConvStemConfig(width, kernel_size=3, stride=2) for width in (24, 48, 96)]
    network: nn.Module = VisionTransformer(
        SIZE, 8, num_layers=4, num_heads=3, hidden_dim=96, mlp_dim=192, num_classes=len(CLASSES), conv_stem_configs=stem
    )
    return network


CLASSIFIERS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "brodenette": (build_resnet, STAGES),
    "brodenette_edited": (build_resnet, STAGES),
    "brodenette_vit": (build_vit, VIT_STAGES),
    "brodenette_vit_edited": (build_vit, VIT_STAGES),
}


def classifier_weights(name: str, folder: Path | None = None) -> Path:
    """Path of a classifier's weights, in the package or in ``folder``."""
    stem = {"brodenette": "classifier"}.get(name, name.removeprefix("brodenette_"))
    return (folder or weights_folder()) / f"{stem}.safetensors"
