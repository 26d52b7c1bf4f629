"""The methods of Table 1 in one pass against CE-FAM alone: milliseconds per pair, and the projected time for all of Broden.

    python -m benchmarks.methods --classifier resnet18 --images 16

A batch like Broden's (17.5 concepts per image, masks at 112), random weights and random associations; everything in one run. Each
method is also measured alone, and the bare forward pass of the classifier stands beside.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.regions import Setting, seconds
from cefam import Trained
from cefam.evaluation.evaluator import RegionEvaluator
from cefam.io.files import write_text
from cefam.methods import (
    CEFAMRegions,
    CenterRegions,
    GradCAMRegions,
    LuminanceRegions,
    MethodContext,
    NeuronRegions,
    RandomChannelRegions,
    RandomMapRegions,
    RegionMethod,
)  # fmt: skip
from cefam.methods.associations import Associations, AssociationsAbout

BRODEN = 1_110_000  # pairs


def associations(context: MethodContext, concepts_each: int) -> Associations:
    """So many random concepts for every neuron."""
    random, found = torch.Generator().manual_seed(0), []
    for stage, channels in enumerate(context.classifier.channels):
        channel = torch.arange(channels).repeat_interleave(concepts_each)
        concept = torch.randint(0, len(context.concepts), (len(channel),), generator=random)
        found.append((stage, channel, concept, torch.rand(len(channel), generator=random, dtype=torch.double)))
    about = AssociationsAbout(
        "random", {}, context.classifier.identity(), context.concepts.identity, context.concepts.words
    )
    return Associations.of_stages(about, found)


def rows_of(context: MethodContext) -> dict[str, RegionMethod]:
    """The five methods of Table 1's comparison and the chance rows."""
    return {
        "CE-FAM": CEFAMRegions(context),
        "CLIP-Dissect": NeuronRegions(context, associations(context, 1)),
        "WWW": NeuronRegions(context, associations(context, 3)),
        "Grad-CAM, concept": GradCAMRegions(context, of="concept"),
        "Grad-CAM, class": GradCAMRegions(context),
        "random channel": RandomChannelRegions(context),
        "random map": RandomMapRegions(context),
        "center": CenterRegions(context),
        "luminance": LuminanceRegions(context),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=__doc__.split("\n")[0])
    parser.add_argument("--classifier", default="resnet18")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/methods.json"))
    options = parser.parse_args()
    setting = Setting(options.classifier, options.images, options.device)
    settings = setting.settings.changed(derivative="total")
    context = MethodContext(Trained(setting.classifier, setting.translator, setting.concepts, settings=settings))
    rows, pairs = rows_of(context), len(setting.pairs)

    def measured(methods: Mapping[str, RegionMethod]) -> float:
        evaluator = RegionEvaluator(methods, setting.concepts, 4, settings)

        def run() -> Any:
            return evaluator.evaluate(setting.batch, setting.classifier(setting.batch.image))

        return 1000 * seconds(run) / pairs

    found = {"classifier alone": 1000 * seconds(lambda: setting.classifier(setting.batch.image)) / pairs}
    found |= {name: measured({name: method}) for name, method in rows.items()}
    found["all in one pass"] = measured(rows)
    found["CE-FAM again"] = measured({"CE-FAM": rows["CE-FAM"]})
    for name, value in found.items():
        minutes = value * BRODEN / 60_000
        print(f"{name:20} {value:8.3f} ms a pair {1000 / value:10.0f} pairs a second {minutes:8.1f} min for Broden")
    ratio = found["all in one pass"] / min(found["CE-FAM"], found["CE-FAM again"])
    print(f"all / CE-FAM alone: {ratio:.2f}")
    write_text(options.output, json.dumps({"milliseconds": found, "ratio": ratio, "pairs": pairs}, indent=1))


if __name__ == "__main__":
    main()
