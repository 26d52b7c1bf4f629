"""load_classifier: torchvision, timm and Hugging Face classifiers by name, with weights by enum name, timm tag or file.

Weights are downloaded if necessary. With ``HF_HUB_OFFLINE=1`` nothing is downloaded; an error names the missing file and
where to put it.
"""

import logging
import os
import urllib.error
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cefam.concepts.sets import ConceptSet
from cefam.errors import CefamError, MissingError, near
from cefam.images.views import IMAGENET, Preprocessing
from cefam.towers import hugging_face
from cefam.towers.candidates import chosen_by_resolution, stage_candidates
from cefam.towers.classifier import FrozenClassifier
from cefam.towers.outputs import Outputs

log = logging.getLogger(__name__)

# Default stages by prefix of the model name; the first match wins. The last stage is the map that is pooled for
# classification (section 3.1).
TORCHVISION_STAGES = {
    "vit": ["encoder.layers.-1"],
    "swin": ["features.1", "features.3", "features.5", "features.7"],
    "convnext": ["features.1", "features.3", "features.5", "features.7"],
    "efficientnet": ["features.2", "features.3", "features.5", "features.-1"],
    "": ["layer1", "layer2", "layer3", "layer4"],  # ResNet, ResNeXt, Wide ResNet
}
# Keys under which training checkpoints store the state dict.
WRAPPERS = ("state_dict", "model_state_dict", "model")
OFFLINE = ("1", "true", "yes", "on")


def load_classifier(
    name: str,
    weights: str | None = "DEFAULT",
    stages: Sequence[str] | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_size: Sequence[int] | None = None,
    outputs: Outputs | None = None,
) -> FrozenClassifier:
    """Load a classifier by name and freeze it.

    Args:
        name: a torchvision model ("resnet50", "vit_b_16", "convnext_tiny", "swin_t", "efficientnet_b0"); a timm architecture
            with the prefix "timm:" ("timm:resnet50", "timm:tf_efficientnet_lite0"); the folder or name of a Hugging Face image
            classifier with the prefix "hf:" ("hf:microsoft/resnet-50"); or one of the package's small classifiers: "brodenette"
            (a ResNet), "brodenette_vit", "brodenette_edited", "brodenette_vit_edited".
        weights: name of a torchvision weights entry ("IMAGENET1K_V2", "DEFAULT"), a timm tag ("a1_in1k"), or a local
            state dict (.pth, .pt, .safetensors); ``None``: random weights (explanations are meaningless).
        stages: names of the tapped submodules in the order they run; ``None``: the family's default stages.
        num_classes: number of classes of a local state dict, if not 1000.
        class_names: class names; ``None``: taken from the weights.
        mean: per channel, of pixels in [0, 1]; ``None``: the values the weights were trained with.
        std: per channel, as ``mean``.
        input_size: (H, W) of the probe image; ``None``: taken from the model. (Views are resized only for networks with a
            fixed input size.)
        outputs: type of the outputs: "softmax" or "sigmoid" logits, or "probabilities"; ``None``: inferred from the probe.

    Raises:
        CefamError: for an unknown name (similar names are suggested), stage or weights entry, or a mismatched weights file.
        MissingError: if weights are neither available locally nor downloadable.

    >>> classifier = load_classifier("brodenette")
    >>> classifier.stage_names, classifier.channels
    (['layer1', 'layer2', 'layer3', 'layer4'], [16, 32, 64, 128])
    """
    arguments: dict[str, Any] = {"name": name, "weights": weights}
    for option, value in (
        ("stages", stages), ("num_classes", num_classes), ("class_names", class_names), ("mean", mean), ("std", std),
        ("input_size", input_size), ("outputs", outputs),
    ):  # fmt: skip
        if value is not None:
            arguments[option] = value if isinstance(value, str | int) else list(value)
    build = _build_torchvision
    for start, other in (("timm:", _build_timm), ("hf:", hugging_face.build), ("brodenette", _build_brodenette)):
        build = other if name.startswith(start) else build
    if num_classes is not None and num_classes < 1:
        raise CefamError(f"num_classes must be at least 1, got {num_classes}.")
    module, preprocessing, known_names, usual = build(
        name.removeprefix("timm:").removeprefix("hf:"), weights, num_classes
    )
    if mean is not None or std is not None:
        preprocessing = replace(
            preprocessing, mean=tuple(mean or preprocessing.mean), std=tuple(std or preprocessing.std)
        )
    if class_names is None:
        class_names = known_names
    if stages is None and not usual:
        usual = chosen_by_resolution(stage_candidates(module))
        log.warning("No usual stages are known for %s; the last of each resolution: %s.", name, ", ".join(usual))
    return FrozenClassifier(
        module,
        list(stages) if stages is not None else usual,
        input_size=input_size,
        preprocessing=preprocessing,
        class_names=class_names,
        source={"class_path": "cefam.load_classifier", "init_args": arguments},
        outputs=outputs,
    )


Built = tuple[nn.Module, Preprocessing, Sequence[str] | None, list[str]]


def _build_torchvision(name: str, weights: str | None, num_classes: int | None) -> Built:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        hint = near(name, known) or near(name, known, 0.3)
        raise CefamError(f"torchvision has no classifier {name!r}.{hint} A timm architecture is written 'timm:{name}'.")
    entry = None
    if weights is not None and not _is_file(weights):
        try:
            entry = models.get_model_weights(name)[weights]
        except KeyError:
            have = [w.name for w in models.get_model_weights(name)] + ["DEFAULT"]
            raise CefamError(
                f"{name} has no weights {weights!r} (it has {', '.join(have)}), and there is no file of that name."
            ) from None
    names = entry.meta.get("categories") if entry else None
    if num_classes is None:
        num_classes = len(names) if names else 1000
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    module = models.get_model(name, weights=None, num_classes=num_classes, **extra)
    preprocessing = IMAGENET
    if entry is not None:
        transforms = entry.transforms()
        preprocessing = Preprocessing(tuple(transforms.mean), tuple(transforms.std))
        try:
            module.load_state_dict(_fetched(entry))
        except RuntimeError as error:
            raise CefamError(
                f"The weights {entry} need another input size or head; {str(error).splitlines()[1].strip()}"
            ) from error
    elif weights is not None:
        _load_file(module, Path(weights))
    if hasattr(module, "image_size"):  # vision transformers have a fixed input size
        preprocessing = replace(preprocessing, size=(module.image_size, module.image_size))
    usual = next(stages for family, stages in TORCHVISION_STAGES.items() if name.startswith(family))
    try:
        usual = [_resolve_last(module, stage) for stage in usual]
    except AttributeError:
        usual = []  # a family that is not listed
    known_modules = dict(module.named_modules())
    return module, preprocessing, names, [stage for stage in usual if stage in known_modules]


def _fetched(entry: Any) -> dict[str, Any]:
    """The state dict of a torchvision weights entry, from torch's cache or, if allowed, downloaded."""
    cached = Path(torch.hub.get_dir()) / "checkpoints" / entry.url.rsplit("/", 1)[-1]
    advice = f"Put the file {cached.name} into {cached.parent}, or name a local file as `weights`."
    if not cached.exists() and os.environ.get("HF_HUB_OFFLINE", "").lower() in OFFLINE:
        raise MissingError(
            f"The weights {entry} are not on this machine, and HF_HUB_OFFLINE forbids fetching them. {advice}"
        )
    try:
        state: dict[str, Any] = entry.get_state_dict(progress=True, check_hash=True)
        return state
    except (urllib.error.URLError, OSError) as error:
        raise MissingError(f"The weights {entry} could not be fetched ({error}). {advice}") from error


def _build_timm(name: str, weights: str | None, num_classes: int | None) -> Built:
    import timm
    from timm.data.imagenet_info import infer_imagenet_subset

    if not timm.is_model(name.split(".")[0]):
        raise CefamError(f"timm has no architecture {name!r}.{near(name, timm.list_models())}")
    from_file = weights is not None and _is_file(weights)
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    tagged = name if weights in (None, "DEFAULT") or from_file else f"{name}.{weights}"
    try:
        module: Any = timm.create_model(tagged, pretrained=weights is not None and not from_file, **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise MissingError(
            f"timm could not load {tagged!r} with weights {weights!r} ({str(error).splitlines()[0]}). Where the hub cannot be "
            f"reached, name a local state dict as `weights`, or put the weights into the hub's cache (HF_HOME)."
        ) from error
    if from_file:
        _load_file(module, Path(str(weights)))
    config = module.pretrained_cfg
    size = tuple(config["input_size"][1:]) if config.get("fixed_input_size") else None
    interpolation = (
        config["interpolation"] if size and config["interpolation"] in ("bilinear", "bicubic") else "bilinear"
    )
    preprocessing = Preprocessing(tuple(config["mean"]), tuple(config["std"]), size, interpolation)
    if hasattr(module, "blocks") and hasattr(module, "patch_embed"):
        usual = [_resolve_last(module, "blocks.-1")]
    else:
        usual = [entry["module"] for entry in module.feature_info][-4:]
        usual = [stage.removesuffix(".act") for stage in usual]
        known_modules = dict(module.named_modules())
        usual = [stage for stage in usual if stage in known_modules]  # some exist only in timm's feature wrapper
        if hasattr(module, "conv_head") and hasattr(module, "bn2"):
            usual[-1] = "bn2"  # EfficientNet: the pooled map comes after the head's convolution
    ours = weights is not None and num_classes is None and infer_imagenet_subset(module) == "imagenet-1k"
    return module, preprocessing, ConceptSet.imagenet().words if ours else None, usual


def _build_brodenette(name: str, weights: str | None, num_classes: int | None) -> Built:
    from cefam.brodenette import towers
    from cefam.brodenette.rules import CLASSES
    from cefam.brodenette.vocabulary import SIZE

    if name not in towers.CLASSIFIERS:
        raise CefamError(f"Brodenette has no classifier {name!r}.{near(name, towers.CLASSIFIERS, 0)}")
    if num_classes not in (None, len(CLASSES)):
        raise CefamError(
            f"The classifiers of Brodenette have {len(CLASSES)} classes, not {num_classes}: leave `num_classes` out."
        )
    network, stages = towers.CLASSIFIERS[name]
    module = network()
    if weights is not None:
        path = towers.classifier_weights(name) if weights == "DEFAULT" else Path(weights)
        if weights == "DEFAULT" and not path.is_file():
            raise MissingError(
                f"The weights of {name} do not come with cefam: train them, in a clone of the repository, with `python -m "
                f"examples.brodenette_recipe --towers {name} --install`, or give a file as `weights`."
            )
        _load_file(module, path)
    size = (SIZE, SIZE) if "vit" in name else None  # the ResNets take any size
    return module, Preprocessing(towers.MEAN, towers.STD, size), CLASSES, list(stages)


def _is_file(weights: str) -> bool:
    return Path(weights).suffix in (".pth", ".pt", ".bin", ".safetensors") or Path(weights).is_file()


def _load_file(module: nn.Module, path: Path) -> None:
    """Load a local state dict into the module, strictly."""
    state = _without_prefix(read_state_dict(path), set(module.state_dict()), path)
    missing, unexpected = [], []
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise CefamError(
            f"The weights in {path} do not fit the architecture: {str(error).splitlines()[1].strip()}"
        ) from error
    if missing or unexpected:
        raise CefamError(
            f"The weights in {path} do not fit the architecture: {len(missing)} missing (as {missing[:2]}), {len(unexpected)} "
            f"unexpected (as {unexpected[:2]}). Was the file saved from another model, or from a wrapper of this one?"
        )


def _without_prefix(state: dict[str, torch.Tensor], expected: set[str], path: Path) -> dict[str, torch.Tensor]:
    """Remove prefixes that all names share and the module does not have (from DataParallel or torch.compile)."""
    prefix = ""
    while state and not expected & set(state):
        first = {name.partition(".")[0] for name in state}
        if len(first) != 1 or not all("." in name for name in state):
            break
        prefix += f"{first.pop()}."
        state = {name.partition(".")[2]: value for name, value in state.items()}
    if prefix:
        log.warning("The prefix %r of all names in %s is left out.", prefix, path)
    return state


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict from a .safetensors or torch file (with ``weights_only=True``, so no code is run)."""
    if not path.is_file():
        raise MissingError(f"There is no weights file {path}: name an existing .pth, .pt or .safetensors file.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each library raises its own error types for a broken file
        raise CefamError(
            f"{path} is not a readable state dict ({type(error).__name__}): it is truncated, empty, or holds a pickled object. "
            f"Save `model.state_dict()` again."
        ) from error
    wrapper = next((key for key in WRAPPERS if isinstance(state, dict) and isinstance(state.get(key), dict)), None)
    if wrapper is not None:
        log.warning("The weights in %s are taken from its entry %r.", path, wrapper)
        state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CefamError(f"{path} does not hold a state dict (names -> tensors). Save `model.state_dict()`.")
    return state


def _resolve_last(module: nn.Module, stage: str) -> str:
    """Replace "-1" in "blocks.-1" by the name of the last child of ``blocks``."""
    if not stage.endswith(".-1"):
        return stage
    parent = stage.removesuffix(".-1")
    return f"{parent}.{list(module.get_submodule(parent).named_children())[-1][0]}"
