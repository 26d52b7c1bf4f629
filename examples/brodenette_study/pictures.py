"""Draw the pictures of ``docs/research/brodenette.md`` and of the README.

    python -m examples.brodenette_study.pictures --folder runs/demo --target docs/pictures

``--folder`` is a finished ``cefam demo``.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from cefam import ConceptPairs, Explainer, Trained
from cefam.brodenette import LABELS, Scene, class_of, describe, draw
from cefam.brodenette.vocabulary import BACKGROUNDS, NUMBER, SIZE
from cefam.images.views import resize_regions
from cefam.metrics.functional import iou_curves, normalized_region_accuracy
from cefam.report.plots import COLORMAP, SCREEN, save

PALETTE = np.concatenate([[[0, 0, 0]], np.random.default_rng(3).integers(60, 256, (500, 3))]).astype(np.uint8)


def sheet(rows: Sequence[Sequence[np.ndarray]], scale: int) -> Image.Image:
    """Pictures (SIZE, SIZE, 3) side by side, with thin white gaps, enlarged without smoothing."""
    gap = 255
    framed = [[np.pad(cell, ((0, 1), (0, 1), (0, 0)), constant_values=gap) for cell in row] for row in rows]
    pixels = np.concatenate([np.concatenate(row, axis=1) for row in framed])
    return Image.fromarray(pixels.repeat(scale, axis=0).repeat(scale, axis=1))


def world(target: Path) -> None:
    """Scenes, masks, and edits of one scene."""
    shown = [draw(describe("evaluation", index)).image for index in range(24)]
    sheet([shown[:8], shown[8:16], shown[16:]], 1).save(target / "scenes.png")
    drawings = [draw(describe("evaluation", index)) for index in (0, 6, 9, 10, 13)]
    colored = [
        [PALETTE[drawing.masks[category]] for drawing in drawings]
        for category in ("object", "part", "color", "material")
    ]
    sheet([[drawing.image for drawing in drawings], *colored], 2).save(target / "masks.png")
    scene = describe("train", 2)
    main = next(place for place in scene.objects if class_of(scene.elements[place]))
    edits: list[Scene] = [
        scene,
        scene.edited(main, color="purple"),
        scene.edited(main, part=scene.elements[main].parts[0], material="brick"),
        scene.without(main),
    ]
    pictures = [draw(edited).image for edited in edits]
    changes = [np.abs(picture.astype(int) - pictures[0]).max(axis=2, keepdims=True) > 0 for picture in pictures]
    sheet([pictures, [np.repeat(change, 3, axis=2).astype(np.uint8) * 255 for change in changes]], 2).save(
        target / "edits.png"
    )


CATEGORIES = ("object", "part", "color", "material")


def panels_of(explainer: Explainer, index: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """A scene and, per category, the concept in it (no background) with the highest score, with its region."""
    drawing = draw(describe("evaluation", index))
    encoding = explainer.encode(torch.from_numpy(drawing.image).permute(2, 0, 1)[None])
    scores = explainer.scores(encoding)[0]
    position = {number: place for place, number in enumerate(explainer.concepts.numbers)}
    found = []
    for category in CATEGORIES:
        labels, counts = np.unique(drawing.masks[category], return_counts=True)
        there = [
            int(v) for v, n in zip(labels, counts, strict=True) if v and n > 100 and _name(int(v)) not in BACKGROUNDS
        ]
        number = max(there, key=lambda number: float(scores[position[number]]))
        mask = drawing.masks[category] == number
        region, nra, stage = region_of(explainer, encoding, position[number], mask)
        title = f"{_name(number)} ({category})"
        found.append({"mask": mask, "region": region, "nra": nra, "stage": stage, "title": title})
    return drawing.image, found


def picture_of_regions(explainer: Explainer, among: int = 40, count: int = 3) -> Figure:
    """The scenes of highest mean NRA among the first ``among``, a row each.

    The white line is the edge of the ground truth; the region is that of the stage with the largest association.
    """
    every = [(index, *panels_of(explainer, index)) for index in range(among)]
    best = sorted(every, key=lambda one: -sum(panel["nra"] for panel in one[2]))[:count]
    figure = Figure(figsize=(2.1 * (1 + len(CATEGORIES)), 2.35 * count), layout="constrained")
    grid = figure.subplots(count, 1 + len(CATEGORIES), squeeze=False)
    for row, (index, image, found) in zip(grid, best, strict=True):
        row[0].imshow(image)
        row[0].set_title(f"scene {index}", fontsize=9)
        row[0].set(xticks=[], yticks=[])
        for axes, one in zip(row[1:], found, strict=True):
            panel(axes, image, **one)
    return figure


def _name(number: int) -> str:
    return LABELS[number - 1].name


def region_of(explainer: Explainer, encoding: Any, concept: int, mask: np.ndarray) -> tuple[np.ndarray, float, str]:
    """Region of the stage with the largest association, its NRA, and the stage's name."""
    pairs = ConceptPairs(torch.tensor([0]), torch.tensor([concept]))
    regions = explainer.regions(encoding, pairs)
    stage = int(explainer.association(encoding, pairs, regions=regions)[0].argmax())
    region = resize_regions(regions.maps[stage].float(), (SIZE, SIZE))
    nra = float(normalized_region_accuracy(region, torch.from_numpy(mask)[None]))
    return region[0].numpy(), nra, explainer.classifier.stage_names[stage]


def panel(
    axes: Any, image: np.ndarray, mask: np.ndarray, region: np.ndarray, nra: float, stage: str, title: str
) -> None:
    """A region over its scene in grey, with the edge of the mask."""
    axes.imshow(image.mean(axis=2), cmap="gray", vmin=0, vmax=255)
    axes.imshow(region, cmap=COLORMAP, vmin=0, vmax=max(float(region.max()), 1e-12), alpha=0.6)
    axes.contour(mask.astype(float), levels=[0.5], colors="white", linewidths=1.2)
    axes.set_title(f"{title}\nNRA {nra:.2f}, {stage}", fontsize=9)
    axes.set(xticks=[], yticks=[])


def failures(explainer: Explainer, records: Path) -> Figure:
    """Pairs where the chosen stage misses: two where another stage has it (largest loss), two where none has (largest mask)."""
    best: dict[tuple[str, str, str], dict[str, dict[str, str]]] = {}
    with records.open(newline="", encoding="utf-8") as lines:
        for line in csv.DictReader(lines):
            if line["method"] == "CE-FAM" and line["nra"] != "nan":
                best.setdefault((line["image"], line["word"], line["category"]), {})[line["protocol"]] = line
    pairs = list(best.values())
    wrong_stage = sorted(pairs, key=lambda p: float(p["top1"]["nra"]) - float(p["oracle"]["nra"]))
    nowhere = sorted(
        (p for p in pairs if float(p["oracle"]["nra"]) < 0.05), key=lambda p: -float(p["oracle"]["auc_low"])
    )
    figure = Figure(figsize=(10.5, 10), layout="constrained")
    grid = figure.subplots(4, 5)
    for row, pair in zip(grid, [*_apart(wrong_stage, 2), *_apart(nowhere, 2)], strict=True):
        line = pair["top1"]
        split, index = line["image"].removesuffix(".png").split("/")
        drawing = draw(describe(split, int(index)))
        number = NUMBER[line["category"], line["word"]]
        mask = drawing.masks[line["category"]] == number
        concept = explainer.concepts.numbers.index(number)
        encoding = explainer.encode(torch.from_numpy(drawing.image).permute(2, 0, 1)[None])
        one = ConceptPairs(torch.tensor([0]), torch.tensor([concept]))
        regions = explainer.regions(encoding, one)
        association = explainer.association(encoding, one, regions=regions)[0]
        row[0].imshow(drawing.image)
        row[0].set_title(f"{split} {int(index)}", fontsize=9)
        row[0].set(xticks=[], yticks=[])
        for stage, axes in enumerate(row[1:]):
            region = resize_regions(regions.maps[stage].float(), (SIZE, SIZE))
            nra = float(normalized_region_accuracy(region, torch.from_numpy(mask)[None]))
            title = f"{line['word']} ({line['category']})" if stage == 0 else f"association {association[stage]:.2f}"
            panel(axes, drawing.image, mask, region[0].numpy(), nra, explainer.classifier.stage_names[stage], title)
    return figure


def way_of_the_data(explainer: Explainer, index: int) -> Figure:
    """One scene and its best-scoring concept from the pixels to the numbers, a row each: which, where, how much, how good."""
    drawing = draw(describe("evaluation", index))
    encoding = explainer.encode(torch.from_numpy(drawing.image).permute(2, 0, 1)[None])
    scores = explainer.scores(encoding)[0]
    best = scores.topk(6)
    known = [
        int(c)
        for c in best.indices
        if (drawing.masks[_category(explainer, int(c))] == _number(explainer, int(c))).any()
    ]
    concept = known[0]
    name = explainer.concepts.words[concept]
    mask = drawing.masks[_category(explainer, concept)] == _number(explainer, concept)
    pairs = ConceptPairs(torch.tensor([0]), torch.tensor([concept]))
    regions = explainer.regions(encoding, pairs)
    association = explainer.association(encoding, pairs, regions=regions)[0]
    contribution = explainer.contribution(encoding, pairs, regions=regions, stage=association.argmax()[None])
    names, stages = explainer.classifier.stage_names, len(regions.maps)

    figure = Figure(figsize=(12, 9.4), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.08)
    which, where, how = figure.subfigures(3, 1)
    axes = which.subplots(1, stages + 3)
    which.suptitle(
        "WHICH: image -> stage maps A -> pooled z -> translator -> similarity with every concept's text", fontsize=11
    )
    axes[0].imshow(drawing.image)
    axes[0].set_title("image (3, H, W)", fontsize=9)
    for stage, activation in enumerate(encoding.output.activations):
        axes[1 + stage].imshow(activation[0].mean(dim=0), cmap="gray")
        axes[1 + stage].set_title(f"A of {names[stage]}\n{tuple(activation.shape[1:])}, mean", fontsize=9)
    axes[-2].plot(torch.cat(encoding.pooled, dim=1)[0], linewidth=0.6)
    axes[-2].set_title("z, all stages", fontsize=9)
    order = best.indices.flip(0).tolist()
    axes[-1].barh([explainer.concepts.words[c] for c in order], best.values.flip(0))
    axes[-1].set_title("score of concepts", fontsize=9)
    axes[-1].tick_params(labelsize=8)

    axes = where.subplots(1, stages + 1)
    where.suptitle(
        f'WHERE: region of "{name}" at every stage = ReLU(sum of maps, weighted by the gradient of its score)',
        fontsize=11,
    )
    resized = [resize_regions(region.float(), (SIZE, SIZE)) for region in regions.maps]
    values = [float(normalized_region_accuracy(region, torch.from_numpy(mask)[None])) for region in resized]
    for stage, (region, nra) in enumerate(zip(resized, values, strict=True)):
        panel(
            axes[stage],
            drawing.image,
            mask,
            region[0].numpy(),
            nra,
            names[stage],
            f"association {association[stage]:.2f}",
        )
    chosen = int(association.argmax())
    channels = regions.importance[chosen][0].sort(descending=True).values
    axes[-1].plot(channels)
    axes[-1].set_title(f"importance of {names[chosen]}'s\nchannels, sorted", fontsize=9)

    axes = how.subplots(1, 3)
    how.suptitle(
        "HOW MUCH: mask its channels one by one.   HOW GOOD: compare its ranking of pixels with the mask", fontsize=11
    )
    target = int(encoding.output.logits[0].argmax())
    axes[0].plot(contribution.curve[0])
    axes[0].set(xlabel=f"masked channels of {names[chosen]}", ylabel="relative decrease")
    axes[0].set_title(
        f"contribution to {explainer.classifier.class_names[target]!r}: {float(contribution.value):+.2f}", fontsize=9
    )
    curves = iou_curves(resized[chosen], torch.from_numpy(mask)[None])
    for curve, label in zip(curves, ("region", "the mask itself", "chance"), strict=True):
        axes[1].plot(curve[0], label=label)
    axes[1].set(xlabel="percent of the pixels, best first", ylabel="IoU with the mask")
    axes[1].legend(fontsize=8)
    axes[1].set_title(f"NRA {values[chosen]:.2f}: area between chance and ideal", fontsize=9)
    axes[2].imshow(mask, cmap="gray")
    axes[2].set_title("mask of the concept", fontsize=9)
    for ax in figure.get_axes():
        if ax.get_images():
            ax.set(xticks=[], yticks=[])
    return figure


def _number(explainer: Explainer, concept: int) -> int:
    return explainer.concepts.numbers[concept]


def _category(explainer: Explainer, concept: int) -> str:
    return explainer.concepts.concepts[concept].category


def _apart(pairs: Sequence[Any], count: int) -> list[Any]:
    """The first pairs of different scenes."""
    found: dict[str, Any] = {}
    for pair in pairs:
        found.setdefault(pair["top1"]["image"], pair)
        if len(found) == count:
            break
    return list(found.values())


def main() -> None:
    """Draw everything."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.brodenette_study.pictures", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/demo"))
    parser.add_argument("--target", type=Path, default=Path("docs/pictures"))
    options = parser.parse_args()
    options.target.mkdir(parents=True, exist_ok=True)
    world(options.target)
    explainer = Trained.read(options.folder / "fit" / "checkpoints" / "best.ckpt").explainer()
    save(picture_of_regions(explainer), options.target / "regions.png", SCREEN)
    save(failures(explainer, options.folder / "evaluation" / "records.csv"), options.target / "failures.png", SCREEN)
    save(way_of_the_data(explainer, 6), options.target / "way_of_the_data.png", SCREEN)
    print(f"Pictures are in {options.target}.")


if __name__ == "__main__":
    main()
