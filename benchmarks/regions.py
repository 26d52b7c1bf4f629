"""Evaluation against its floor and against the published procedure: ragged pairs as in Broden, 1,197 concepts, masks at 112.

    python -m benchmarks.regions --classifier resnet50 --images 16 --literal_pairs 12

Random weights; the floor is the bare forward and backward pass of the classifier after its first stage, for the same pairs,
once of the network as it is and once as cefam runs it (BatchNorm folded, channels last).
Prints a table and writes JSON. Everything is measured in one run, on an otherwise idle machine, and the values of the
first pairs are compared with the literal ones.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import models

from benchmarks import literal
from cefam import (
    ConceptPairs,
    ConceptSet,
    Explainer,
    FrozenClassifier,
    MethodSettings,
    Trained,
    Translator,
    load_classifier,
)
from cefam.evaluation.evaluator import RegionEvaluator
from cefam.images.views import IMAGENET, resize_regions
from cefam.io.files import write_text
from cefam.methods import CEFAMRegions, MethodContext
from cefam.metrics.functional import normalized_region_accuracy
from cefam.pairs import Candidates, RegionBatch

MASK, CONCEPTS, DIM = 112, 1197, 512


class Unordered(CEFAMRegions):
    """CE-FAM's regions in the order of the stages: what it costs without the association, which orders them."""

    def regions(self, activated: Any, pairs: Any, size: Any, num_candidates: int) -> Candidates:
        """One candidate per stage."""
        maps = self.explainer.regions(self.encoding(activated), pairs).maps
        resized = torch.stack([resize_regions(region, size) for region in maps], dim=1)
        stage = torch.arange(len(maps)).expand(len(pairs), -1)
        return Candidates(resized, -stage.double(), stage, torch.ones_like(stage, dtype=torch.bool))


class Setting:
    """A classifier with random weights, a translator, concepts, and a batch like Broden's."""

    def __init__(self, name: str, images: int, device: str, pairs_each: float = 17.5) -> None:
        torch.manual_seed(0)
        stages = load_classifier(name, weights=None).stage_names
        module = models.get_model(name, weights=None)
        # The same network twice: as it is, for floor and literal procedure, and as cefam runs it.
        self.plain = FrozenClassifier(module, stages, preprocessing=IMAGENET, fold=False).to(device)
        self.classifier = FrozenClassifier(module, stages, preprocessing=IMAGENET).to(device)
        self.translator = Translator(self.classifier.channels, DIM).to(device)
        words = ConceptSet.from_words([str(index) for index in range(CONCEPTS)])
        text = F.normalize(torch.randn(CONCEPTS, DIM, device=device), dim=1)
        self.concepts = ConceptSet(words.concepts, text, 100.0)
        counts = torch.poisson(torch.full((images,), pairs_each)).long().clamp_min(1)
        label = torch.cat([torch.randperm(CONCEPTS)[:count] + 1 for count in counts.tolist()])
        side = 14  # blobs: every pair has a mask of its own
        blobs = torch.rand(len(label), 1, side, side) > 0.8
        masks = F.interpolate(blobs.float(), MASK)[:, 0].int() * label.view(-1, 1, 1).int()
        owner = torch.arange(images).repeat_interleave(counts)
        self.batch = RegionBatch(
            image=torch.randint(0, 256, (images, 3, 224, 224), dtype=torch.uint8).to(device),
            ids=[f"{index}.jpg" for index in range(images)],
            masks=masks.to(device),
            mask_image=owner.to(device),
            mask_category=["object"] * len(label),
            pair_mask=torch.arange(len(label), device=device),
            pair_label=label.to(device),
        )
        self.pairs = ConceptPairs(owner.to(device), (label - 1).to(device))
        self.settings = MethodSettings(preset="paper" if len(self.classifier.stages) == 1 else "published")

    def evaluate(self, derivative: Any, chunk: float = 1024.0, kind: type[CEFAMRegions] = CEFAMRegions) -> Any:
        """The evaluation of a batch, as ``cefam evaluate`` does it (CE-FAM alone)."""
        settings = self.settings.changed(derivative=derivative, memory_limit=chunk)
        trained = Trained(self.classifier, self.translator, self.concepts, settings=settings)
        evaluator = RegionEvaluator({"CE-FAM": kind(MethodContext(trained))}, self.concepts, 4, settings)
        return evaluator.evaluate(self.batch, self.classifier(self.batch.image))

    @property
    def explainer(self) -> Explainer:
        """The explainer of this setting."""
        return Explainer(self.classifier, self.translator, self.concepts, settings=self.settings)

    @property
    def literal(self) -> Explainer:
        """The same for the network as it is."""
        return Explainer(self.plain, self.translator, self.concepts, settings=self.settings)


def floor(setting: Setting, classifier: FrozenClassifier, together: int) -> None:
    """Bare forward and backward of what follows the first stage, ``together`` pairs at a time."""
    output = classifier(setting.batch.image)
    for chosen in setting.pairs.image.split(together):
        rest = [classifier.module.get_submodule(stage.tap) for stage in classifier.stages[1:]]
        maps = [output.activations[0][chosen].requires_grad_()]
        with torch.enable_grad():
            for module in rest:
                maps.append(module(maps[-1]))
            pooled = [activation.mean(dim=(-2, -1)) for activation in maps]
            torch.autograd.grad(pooled, maps[:-1], [torch.ones_like(z) for z in pooled])


def seconds(function: Callable[[], Any], repeats: int = 3, at_least: float = 5.0) -> float:
    """The shortest of a few runs, more of them where they are short; the first one warms up."""
    times: list[float] = []
    while len(times) <= repeats or sum(times) < at_least:
        _wait()
        start = time.perf_counter()
        function()
        _wait()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def literally(setting: Setting, count: int) -> tuple[float, float, float, float]:
    """Seconds per pair of the published procedure and of its association, seconds per NRA, largest difference of a value."""
    found = setting.evaluate("total")
    regions = setting.explainer.regions(setting.batch.image, setting.pairs[:count])
    association = setting.explainer.association(setting.batch.image, setting.pairs[:count])
    worst, alone, masking = 0.0, 0.0, 0.0
    start = time.perf_counter()
    for row in range(count):
        image, concept = int(setting.pairs.image[row]), int(setting.pairs.concept[row])
        pair = literal.LiteralPair(setting.literal, setting.batch.image[image], concept)
        mask = (setting.batch.masks[row] == setting.batch.pair_label[row]).cpu().numpy()
        values = []
        for region in pair.maps:
            resized = resize_regions(region[None], (MASK, MASK))[0].cpu().numpy()
            literal.epg(resized, mask)
            before = time.perf_counter()
            values.append(literal.nra(resized, mask))
            alone += time.perf_counter() - before
        before = time.perf_counter()
        theirs = pair.association() if len(pair.maps) > 1 else [1.0]
        masking += time.perf_counter() - before
        for stage, region in enumerate(pair.maps):
            scale = float(region.abs().max()) + 1e-12
            worst = max(worst, float((regions.maps[stage][row] - region).abs().max()) / scale)
            if len(pair.maps) > 1:
                worst = max(worst, abs(float(association[row, stage]) - theirs[stage]))
    del found
    total = time.perf_counter() - start
    return total / count, masking / count, alone / count / len(setting.classifier.stages), worst


def alone(setting: Setting) -> dict[str, float]:
    """Seconds per pair of the association, of resizing all maps, and of their NRA."""
    pairs, explainer = len(setting.pairs), setting.explainer
    encoding = explainer.encode(setting.batch.image)
    regions = explainer.regions(encoding, setting.pairs)
    masks = setting.batch.masks == setting.batch.pair_label.view(-1, 1, 1)
    together = [slice(start, start + 64) for start in range(0, pairs, 64)]

    def resized() -> list[list[Tensor]]:
        return [[resize_regions(region[rows], (MASK, MASK)) for region in regions.maps] for rows in together]

    maps = resized()

    def measured() -> None:
        for rows, chunk in zip(together, maps, strict=True):
            for region in chunk:
                normalized_region_accuracy(region, masks[rows])

    return {
        "association alone": seconds(lambda: explainer.association(encoding, setting.pairs, regions=regions)) / pairs,
        "resize alone": seconds(resized) / pairs,
        "NRA alone": seconds(measured) / pairs,
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All rows for one classifier."""
    setting = Setting(options.classifier, options.images, options.device)
    pairs = len(setting.pairs)
    rows: dict[str, float] = {
        "forward pass, per image": seconds(lambda: setting.plain(setting.batch.image)) / options.images,
        "forward pass, folded, per image": seconds(lambda: setting.classifier(setting.batch.image)) / options.images,
    }
    if len(setting.classifier.stages) > 1:
        for name, classifier in (("floor", setting.plain), ("floor, folded", setting.classifier)):
            rows[name] = seconds(partial(floor, setting, classifier, options.together)) / pairs
    for name in ("total", "branch"):
        rows[f"evaluation, {name} derivative"] = seconds(partial(setting.evaluate, name)) / pairs
        row = f"without association, {name} derivative"
        rows[row] = seconds(partial(setting.evaluate, name, kind=Unordered)) / pairs
    rows |= alone(setting)
    result: dict[str, Any] = {
        "classifier": options.classifier, "images": options.images, "pairs": pairs, "device": options.device,
        "threads": torch.get_num_threads(), "torch": torch.__version__, "seconds_per_pair": rows,
    }  # fmt: skip
    if options.literal_pairs:
        whole, masking, of_nra, result["largest_difference"] = literally(setting, options.literal_pairs)
        rows |= {"published procedure": whole, "published procedure without association": whole - masking}
        rows["published NRA, per map"] = of_nra
    return result | {"ratios": ratios(rows, options.images / pairs, len(setting.classifier.stages))}


def ratios(rows: Mapping[str, float], images_per_pair: float, stages: int) -> dict[str, float]:
    """What ``docs/reference/performance.md`` compares, as far as it was measured."""
    found = {}
    if "published procedure" in rows:
        for name in ("total", "branch"):
            whole, bare = rows[f"evaluation, {name} derivative"], rows[f"without association, {name} derivative"]
            found[f"published / {name}"] = rows["published procedure"] / whole
            found[f"the same without association, {name}"] = rows["published procedure without association"] / bare
        found["published NRA / ours, per map"] = rows["published NRA, per map"] / (rows["NRA alone"] / stages)
    if "floor" in rows:
        for kind in ("", ", folded"):
            light = rows[f"forward pass{kind}, per image"] * images_per_pair + rows["resize alone"] + rows["NRA alone"]
            found |= {
                f"total / floor{kind}": rows["evaluation, total derivative"] / rows[f"floor{kind}"],
                f"association / floor{kind}": rows["association alone"] / rows[f"floor{kind}"],
                f"branch / (forward{kind} + resize + NRA)": rows["evaluation, branch derivative"] / light,
                f"without association / (forward{kind} ...)": rows["without association, branch derivative"] / light,
            }
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.regions", description=__doc__.split("\n")[0])
    parser.add_argument("--classifier", default="resnet50")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--together", type=int, default=8, help="pairs in a batch of the floor")
    parser.add_argument("--literal_pairs", type=int, default=12)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()
    result = measure(options)
    print(f"{options.classifier}, {options.images} images, {result['pairs']} pairs, {result['threads']} thread(s)")
    for name, value in result["seconds_per_pair"].items():
        print(f"  {name:40} {1000 * value:10.2f} ms")
    for name, value in result["ratios"].items():
        print(f"  {name:40} {value:10.2f}")
    if "largest_difference" in result:
        print(f"  {'largest difference from the published':36} {result['largest_difference']:10.1e}")
    write_text(
        options.output or Path("runs/benchmarks") / f"regions_{options.classifier}.json", json.dumps(result, indent=1)
    )


if __name__ == "__main__":
    main()
