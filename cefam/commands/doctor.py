"""``cefam doctor``: check the installation, and which concepts can be trusted."""

import platform
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from cefam.commands._explaining import DEMO, LoadedArtefact, open_artefact, photographs_of
from cefam.datasets.contract import Manifest, Sample
from cefam.datasets.shards import read_samples
from cefam.doctor import checkup, doubts
from cefam.errors import CefamError, ExistsError
from cefam.explanations import Photograph
from cefam.explanations.photograph import stacked
from cefam.explanations.text import percent
from cefam.trained import find_artefact

PACKAGES = (
    "torch", "torchvision", "lightning", "open_clip_torch", "torchmetrics", "timm", "webdataset", "wandb", "jsonargparse",
    "transformers", "captum", "grad-cam",
)  # fmt: skip
BATCH = 32
LISTED = 20  # doubtful concepts that are printed


def doctor(
    artefact: str | None = None,
    images: list[str] | None = None,
    count: int = 1000,
    resize: int | None = None,
    crop: int | None = None,
    overwrite: bool = False,
    device: str = "auto",
) -> None:
    """Check the environment; with photographs, also which concepts of an artefact can be trusted.

    Doubtful concepts are stored beside the artefact and marked in every explanation.

    Args:
        artefact: a folder of `cefam export`, or a checkpoint of `cefam fit`; null: the demo's.
        images: photographs that were not used for training: files, folders, or shards (whose masks give the ground truth).
        count: maximum number of photographs.
        resize: short side of a photograph before the central crop; null: 8/7 of the crop.
        crop: side of the central crop, in pixels; null: the classifier's input size.
        overwrite: judge the concepts again, and replace the stored result.
        device: "cpu", "cuda:0", ...; "auto": a GPU if there is one.
    """
    if count < checkup.FEWEST:
        raise CefamError(f"count must be at least {checkup.FEWEST}, got {count}.")
    place = doubts.place_of(find_artefact(artefact or DEMO))
    if images and place.exists() and not overwrite:
        raise ExistsError(f"{place} already exists: pass `--overwrite true` to judge the concepts again.")
    if artefact is not None or images:
        opened, _ = open_artefact(artefact, None, device, resize, crop)
        if images:
            _judge(opened, images, count, str(find_artefact(artefact or DEMO)))
        else:
            marked, number = len(opened.explainer.doubts), len(opened.explainer.concepts)
            print(f"{number:,} concepts, {marked:,} marked doubtful before; without `--images` they are not judged.")
        if opened.explainer.vlm is None:
            print("The vision-language model is not available here: the translator was not compared with it.")
        print()
    print("Environment")
    problems = [*_environment(), *_self_test()]
    if problems:
        raise CefamError(f"{len(problems)} problem(s): {' '.join(problems)}")
    print("\nThe environment is in order.")


def _environment() -> Iterator[str]:
    """Print versions, devices and weights; yield the problems."""
    print(f"  Python {platform.python_version()} on {platform.platform()}")
    for name in PACKAGES:
        try:
            print(f"  {name} {version(name)}")
        except PackageNotFoundError:
            print(f"  {name}: not installed")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            print(f"  cuda:{index}: {torch.cuda.get_device_name(index)}")
    else:
        print(f"  no GPU; {torch.get_num_threads()} threads")
    yield from _weights()


def _weights() -> Iterator[str]:
    """Print which weights are present and where missing ones belong; yield the problems."""
    from cefam.brodenette.towers import CLASSIFIERS, classifier_weights, weights_folder

    places = {f"classifier {name}": classifier_weights(name) for name in CLASSIFIERS}
    places["VLM brodenette"] = weights_folder() / "vlm" / "open_clip_model.safetensors"
    for name, place in places.items():
        print(f"  weights of {name}: {'found' if place.is_file() else f'missing, expected at {place}'}")
        if not place.is_file() and name in ("classifier brodenette", "VLM brodenette"):
            yield f"The weights of {name} are missing ({place}): install cefam again."
    hub = Path(torch.hub.get_dir()) / "checkpoints"
    held = sorted(path.name for path in hub.glob("*.pth")) if hub.is_dir() else []
    print(f"  torchvision's weights go to {hub}: {', '.join(held) or 'none there'}")
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return
    cached = sorted(path.name for path in Path(HF_HUB_CACHE).glob("models--*"))
    print(f"  timm's and open_clip's weights go to {HF_HUB_CACHE}: {', '.join(cached) or 'none there'}")


def _self_test() -> Iterator[str]:
    """Run the shipped classifier and VLM on drawn scenes; yield the problems."""
    from cefam import ConceptSet, Explainer, Translator, load_classifier, load_vlm
    from cefam.brodenette import CLASSES, describe, draw

    start = time.monotonic()
    classifier, vlm = load_classifier("brodenette"), load_vlm("brodenette")
    scenes = [describe("test", index) for index in range(40)]
    images = torch.stack([torch.from_numpy(draw(scene).image.copy()).permute(2, 0, 1) for scene in scenes])
    found = [CLASSES[index] for index in classifier(images).logits.argmax(dim=1).tolist()]
    right = sum(name == scene.label for name, scene in zip(found, scenes, strict=True))
    explainer = Explainer(
        classifier, Translator(classifier.channels, 64), ConceptSet.brodenette().embed(vlm), vlm, num_channels=4
    )
    part = explainer.explain(images[:1], top_k=1)[0].concepts[0]
    finite = all(bool(region.isfinite().all()) for region in part.maps)
    print(f"  self-test: {right} of 40 scenes named, a concept explained, {time.monotonic() - start:.1f} s")
    if right < 28 or not finite:  # mean accuracy is 87 %: fewer than 28 do not occur by chance
        yield f"The self-test failed ({right} of 40 scenes named): the installed torch computes something else."


def _judge(opened: LoadedArtefact, images: list[str], count: int, artefact: str) -> None:
    """Judge the concepts; store the doubtful ones, and print how many, where, and the first of them."""
    explainer = opened.explainer
    measured = checkup.measure(explainer, _batches(opened, images, count))
    reasons = checkup.judge(measured)
    about = {"photographs": len(measured.said), "vlm": measured.vlm is not None, "masks": measured.there is not None}
    key = doubts.key_of(explainer.classifier, explainer.translator, explainer.concepts)
    place = doubts.write(artefact, key, reasons, about)
    total, seen = len(explainer.concepts), len(measured.said)
    print(
        f"{len(reasons):,} of {total:,} concepts are doubtful, judged from {seen:,} photographs; the list is in {place}."
    )
    words = {concept.number: concept.word for concept in explainer.concepts.concepts}
    for number, reason in list(reasons.items())[:LISTED]:
        print(f"  {words[number]}: {reason}")
    if len(reasons) > LISTED:
        print(f"  and {len(reasons) - LISTED:,} more")
    if measured.there is not None:
        present, absent = checkup.called(measured.said, measured.there)
        print(
            f"By masks, {percent(present)} of the concepts called present are there, and {percent(absent)} of those called absent."
        )


def _batches(opened: LoadedArtefact, images: list[str], count: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield batches of views, and the states of their concepts if known."""
    from rich.progress import track

    where = next(opened.explainer.translator.parameters()).device
    total, found = _samples(opened, images, count)
    following = iter(track(found, "doctor", total=total))
    while part := list(islice(following, BATCH)):
        photographs, known = zip(*part, strict=True)
        yield stacked(photographs).to(where), None if known[0] is None else torch.stack(known)


def _samples(
    opened: LoadedArtefact, images: list[str], count: int
) -> tuple[int, Iterator[tuple[Photograph, Tensor | None]]]:
    """The number of photographs, and an iterator over photographs and the states of their concepts, if known."""
    manifest = Manifest.find(images[0]) if len(images) == 1 else None
    if manifest is not None:
        total = min(count, manifest.num_samples)
        return total, (_of_sample(opened, sample) for sample in read_samples(manifest.placed(images[0]), 0, total))
    paths = [path for _, path in photographs_of(images)[:count]]
    return len(paths), ((opened.photograph(path), None) for path in paths)


def _of_sample(opened: LoadedArtefact, sample: Sample) -> tuple[Photograph, Tensor]:
    """A photograph of a shard, and the state of every concept: 1 present, 0 absent, -1 unknown."""
    concepts = opened.explainer.concepts.concepts
    photograph = Photograph.of(sample.picture(), opened.view, sample.id)
    shown = {label for mask in sample.masks for label in mask.labels}
    marked = {mask.category for mask in sample.masks}
    known = sample.present is not None
    shown |= set(sample.present or ())
    states = [1 if c.number in shown else 0 if known or c.category in marked else -1 for c in concepts]
    return photograph, torch.tensor(states)
