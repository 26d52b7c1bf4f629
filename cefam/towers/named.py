"""Towers by the short names of ``cefam study``: names of libraries, and paths of functions."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from cefam.errors import CefamError
from cefam.towers.candidates import StageCandidate, chosen_by_resolution, stage_candidates
from cefam.towers.classifier import FrozenClassifier
from cefam.towers.loading import load_source
from cefam.towers.vlm import VisionLanguageModel
from cefam.towers.zoo import load_classifier


def named_classifier(
    given: str | nn.Module, stages: Sequence[str] | None = None, class_names: Sequence[str] | None = None
) -> FrozenClassifier:
    """A frozen classifier.

    Args:
        given: a network; or a name of :func:`cefam.load_classifier` ("resnet50", "timm:...", "hf:..."); or the path of a function of
            yours, "my_net.birds", that returns a network or a ``FrozenClassifier``.
        stages: names of modules; ``None``: the family's usual ones, or the last of each resolution.
        class_names: names of the classes.
    """
    source: dict[str, Any] | None = None
    if isinstance(given, str) and is_path(given):
        source = {"class_path": given, "init_args": {}}
        given = load_source("classifier", source)
    if isinstance(given, str):
        return load_classifier(given, stages=stages, class_names=class_names)
    if isinstance(given, FrozenClassifier):
        if stages and list(stages) != given.stage_names:
            raise CefamError(
                f"The FrozenClassifier has the stages {given.stage_names}: leave `stages` out, or wrap it again."
            )
        given.class_names = list(class_names) if class_names else given.class_names
        given.source = given.source or source
        return given
    if not isinstance(given, nn.Module):
        raise CefamError(f"The classifier must be a network, got a {type(given).__name__}.")
    found = stage_candidates(given)
    chosen = list(stages) if stages else chosen_by_resolution(found)
    sizes = {each.name: each for each in found}
    listed = ", ".join(
        f"{n} ({sizes[n].channels} x {sizes[n].rows} x {sizes[n].columns})" for n in chosen if n in sizes
    )
    print(f"Stages: {listed}. `cefam stages` lists the others.")
    if source is not None:
        arguments: dict[str, Any] = {"module": source, "stages": chosen}
        if class_names:
            arguments["class_names"] = list(class_names)
        source = {"class_path": "cefam.FrozenClassifier", "init_args": arguments}
    return FrozenClassifier(given, chosen, class_names=class_names, source=source)


def is_path(name: str) -> bool:
    """Whether a name is the path of a function, "my_net.birds"."""
    return "." in name and ":" not in name


def candidates_of(name: str) -> tuple[list[StageCandidate], list[str]]:
    """The modules of a classifier, named as for :func:`named_classifier`, that can be stages, and the default stages."""
    found = load_source("classifier", {"class_path": name}) if is_path(name) else load_classifier(name)
    if isinstance(found, FrozenClassifier):
        return stage_candidates(found.unfolded().module), found.stage_names
    candidates = stage_candidates(found)
    return candidates, chosen_by_resolution(candidates)


def named_vlm(name: str) -> VisionLanguageModel:
    """A teacher by name: "MODEL:PRETRAINED" of open_clip, "local-dir:/folder", "brodenette", or a function's path."""
    found = load_source("vision-language model", vlm_source(name))
    if not isinstance(found, VisionLanguageModel):
        raise CefamError(f"{name} must return a cefam.VisionLanguageModel, got a {type(found).__name__}.")
    found.source = found.source or vlm_source(name)
    return found


def vlm_source(name: str) -> dict[str, Any]:
    """The class path and arguments that load the teacher of :func:`named_vlm`."""
    if is_path(name):
        return {"class_path": name, "init_args": {}}
    if name.startswith(("local-dir:", "hf-hub:")) or ":" not in name:
        arguments = {"name": name}
    else:
        model, _, pretrained = name.partition(":")
        arguments = {"name": model, "pretrained": pretrained}
    return {"class_path": "cefam.load_vlm", "init_args": arguments}
