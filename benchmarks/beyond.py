"""The cost of ``beyond``, and of the rows beside it, against published CE-FAM's first choice, 8 pairs per photograph.

    python -m benchmarks.beyond --classifier resnet50 --images 4

Random weights, photographs of 224 x 224, regions at 112 x 112; everything in one run. Published CE-FAM takes the total derivative, and
the association of every stage, which its first choice needs.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import torch

from benchmarks.regions import MASK, Setting, seconds
from cefam import ConceptPairs, Trained
from cefam.io.files import write_text
from cefam.methods import (
    Activated,
    BeyondRegions,
    CEFAMRegions,
    CenterRegions,
    GradCAMRegions,
    GuidedRegions,
    LuminanceRegions,
    MethodContext,
    RandomChannelRegions,
    RandomMapRegions,
    RegionMethod,
)

EACH = 8  # pairs per photograph
CONTROLS = {
    "random channel": RandomChannelRegions,
    "random map": RandomMapRegions,
    "center": CenterRegions,
    "luminance": LuminanceRegions,
}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.beyond", description=__doc__.split("\n")[0])
    parser.add_argument("--classifier", default="resnet50")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/beyond.json"))
    options = parser.parse_args()
    setting = Setting(options.classifier, options.images, options.device)
    settings = setting.settings.changed(derivative="total")
    context = MethodContext(Trained(setting.classifier, setting.translator, setting.concepts, settings=settings))
    images = setting.batch.image
    count = EACH * len(images)
    pairs = ConceptPairs(torch.arange(len(images)).repeat_interleave(EACH), torch.arange(count)).to(images.device)
    rows: dict[str, RegionMethod] = {
        "published CE-FAM, top-1": CEFAMRegions(context),
        "beyond": BeyondRegions(context),
        "beyond, the whole view alone": BeyondRegions(context, scales=[1.0]),
        "Grad-CAM, class": GradCAMRegions(context),
    }
    for name, control in CONTROLS.items():
        rows |= {name: control(context), f"{name}, guided": GuidedRegions(context, control)}

    @torch.no_grad()
    def run(method: RegionMethod) -> None:
        method.regions(Activated(images, setting.classifier(images)), pairs, (MASK, MASK), 1)

    @torch.no_grad()
    def forward() -> None:
        setting.classifier(images)

    times = {"the classifier alone": seconds(forward)}
    times |= {name: seconds(partial(run, method)) for name, method in rows.items()}
    published = times["published CE-FAM, top-1"]
    print(f"{'':30}{'ms per photograph':>20}{'ms per pair':>14}{'of published':>14}")
    for name, value in times.items():
        print(f"{name:30}{1000 * value / len(images):20.0f}{1000 * value / count:14.1f}{value / published:14.2f}")
    write_text(options.output, json.dumps({"options": vars(options) | {"output": None}, "seconds": times}, indent=1))


if __name__ == "__main__":
    main()
