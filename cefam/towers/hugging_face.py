"""Load Hugging Face image classifiers from a folder or the hub, with their class names and preprocessing."""

import os
from importlib import import_module
from typing import Any

from torch import nn

from cefam.errors import CefamError, MissingError
from cefam.images.views import Preprocessing

INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # keyed by Pillow's resampling codes


def build(
    name: str, weights: str | None, num_classes: int | None
) -> tuple[nn.Module, Preprocessing, list[str], list[str]]:
    """Load a classifier, its preprocessing, class names (``id2label``) and default stages."""
    try:
        transformers: Any = import_module("transformers")
    except ImportError as error:
        raise MissingError(
            "Classifiers of Hugging Face need the package transformers: `pip install cefam[hf]`."
        ) from error
    if weights not in (None, "DEFAULT") or num_classes is not None:
        raise CefamError(
            f"{name} brings its own weights and classes: leave `weights` and `num_classes` out (`weights: null` for random weights)."
        )
    where = f"Where the hub cannot be reached, name a folder as 'hf:/path'. (HF_HUB_OFFLINE={os.environ.get('HF_HUB_OFFLINE', 'not set')})"
    try:
        config: Any = transformers.AutoConfig.from_pretrained(name)
        processor: Any = transformers.AutoImageProcessor.from_pretrained(name)
        if weights is None:
            module: Any = transformers.AutoModelForImageClassification.from_config(config)
        else:
            # Only safetensors: a pickled file could run code.
            module = transformers.AutoModelForImageClassification.from_pretrained(name, use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise MissingError(f"The classifier {name!r} could not be loaded: {reason} {where}") from error
    count = int(config.num_labels)
    names = [str(config.id2label[index]) for index in range(count)]
    preprocessing = _preprocessing(processor, config)
    if preprocessing.size is not None:
        module.image_size = preprocessing.size  # size of the probe image
    return module, preprocessing, names, _stages(module)


def _preprocessing(processor: Any, config: Any) -> Preprocessing:
    """The image processor's normalization and the fixed input size; views already handle resizing and cropping."""
    mean, std = tuple(processor.image_mean or ()), tuple(processor.image_std or ())
    if not getattr(processor, "do_normalize", True):
        mean, std = (), ()
    interpolation = INTERPOLATIONS.get(int(getattr(processor, "resample", 2) or 2), "bilinear")
    fixed = getattr(config, "image_size", None)  # vision transformers with position embeddings
    size = None if fixed is None else (fixed, fixed) if isinstance(fixed, int) else (fixed[0], fixed[1])
    return Preprocessing(mean, std, size, interpolation)


def _stages(module: nn.Module) -> list[str]:
    """Default stages: the children of a ModuleList "stages" (ResNet, ConvNeXt), else the longest ModuleList's last block."""
    lists = {name: each for name, each in module.named_modules() if isinstance(each, nn.ModuleList) and len(each)}
    staged = next((name for name in lists if name.endswith(".stages")), None)
    if staged is not None:
        return [f"{staged}.{child}" for child, _ in lists[staged].named_children()]
    if not lists:
        return []
    longest = max(lists, key=lambda name: len(lists[name]))
    return [f"{longest}.{list(lists[longest].named_children())[-1][0]}"]
