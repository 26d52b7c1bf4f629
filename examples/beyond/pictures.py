"""Draw the pictures of docs/research/beyond.md: where ``beyond`` gains most on fresh scenes, and where it loses most.

python -m examples.beyond.pictures --folder runs/brodenette_results --target docs/pictures
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from cefam import ConceptPairs, Trained
from cefam.brodenette import describe, draw
from cefam.brodenette.vocabulary import NUMBER, SIZE
from cefam.methods import Activated, BeyondRegions, CEFAMRegions, MethodContext
from cefam.metrics.functional import normalized_region_accuracy
from cefam.probe import Probe
from cefam.report import records, results
from cefam.report.plots import SCREEN, save
from examples.beyond.__main__ import FRESH
from examples.brodenette_study.pictures import panel

ROWS = 3  # that gain, and as many that lose


def extremes(folder: Path) -> list[dict[str, Any]]:
    """The pairs that gain most by ``beyond`` over published CE-FAM and those that lose most: of different categories and scenes."""
    values: dict[tuple[str, str, str], dict[str, Any]] = {}
    for record in records.read(folder / results.RECORDS):
        if record["protocol"] == "top1" and record["method"] in ("beyond", "CE-FAM") and record["category"]:
            values.setdefault((record["image"], record["word"], record["category"]), {})[record["method"]] = record
    pairs = sorted(values.values(), key=lambda pair: pair["beyond"]["nra"] - pair["CE-FAM"]["nra"])
    found: list[dict[str, Any]] = []
    for ordered in (reversed(pairs), iter(pairs)):
        chosen: dict[str, dict[str, Any]] = {}
        for pair in ordered:
            record = pair["beyond"]
            if record["category"] not in chosen and all(record["image"] != c["image"] for c in chosen.values()):
                chosen[record["category"]] = record
            if len(chosen) == ROWS:
                break
        found += chosen.values()
    return found


def picture(pairs: list[dict[str, Any]], context: MethodContext) -> Figure:
    """A row each: the scene, the published region of the first choice, and that of ``beyond``, with the edge of the mask."""
    methods = {"published": CEFAMRegions(context), "beyond": BeyondRegions(context)}
    figure = Figure(figsize=(6.6, 2.35 * len(pairs)), layout="constrained")
    grid = figure.subplots(len(pairs), 1 + len(methods), squeeze=False)
    for axes, record in zip(grid, pairs, strict=True):
        split, index = record["image"].removesuffix(".png").split("/")
        drawing = draw(describe(split, int(index)))
        number = NUMBER[record["category"], record["word"]]
        mask = drawing.masks[record["category"]] == number
        axes[0].imshow(drawing.image)
        axes[0].set_title(f"scene {int(index)}\n{record['word']} ({record['category']})", fontsize=9)
        axes[0].set(xticks=[], yticks=[])
        view = torch.from_numpy(drawing.image).permute(2, 0, 1)[None]
        activated = Activated(view, context.classifier(view))
        one = ConceptPairs(torch.tensor([0]), torch.tensor([context.concepts.numbers.index(number)]))
        for place, (name, method) in zip(axes[1:], methods.items(), strict=True):
            found = method.regions(activated, one, (SIZE, SIZE), 1)
            region, stage = found.maps[0, 0], int(found.stage[0, 0])
            nra = float(normalized_region_accuracy(region[None], torch.from_numpy(mask)[None]))
            where = "all stages" if stage < 0 else context.classifier.stage_names[stage]
            if stage < 0:  # as pages show it: of a sharpened map the eye sees the peak alone
                region = (region.log() - region.log().mean()).relu()
            panel(place, drawing.image, mask, region.numpy(), nra, where, name)
    return figure


def main() -> None:
    """Draw, from the first translator of the small ResNet."""
    parser = argparse.ArgumentParser(prog="python -m examples.beyond.pictures", description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/brodenette_results"))
    parser.add_argument("--target", type=Path, default=Path("docs/pictures"))
    options = parser.parse_args()
    folder = options.folder / "brodenette-brodenette"
    trained = Trained.read(folder / "fit" / "seed_0" / "checkpoints" / "best.ckpt")
    context = MethodContext(trained, probe=Probe.read(folder / "probe" / "usual"))
    save(picture(extremes(folder / FRESH / "seed_0"), context), options.target / "beyond.png", SCREEN)
    print(f"The picture is {options.target / 'beyond.png'}.")


if __name__ == "__main__":
    main()
