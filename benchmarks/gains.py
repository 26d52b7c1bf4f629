"""What each way of running the frozen classifier gave: batching, BatchNorm folding, channels last, half precision.

    python -m benchmarks.gains --classifier resnet50 --images 8

Milliseconds of the forward pass per image and of the regions by total derivative per pair; the largest difference of
channel weights from those of the network as it is, one pair at a time, relative to the largest weight of the stage.
"""

import argparse
import copy
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.regions import Setting, seconds
from cefam import Explainer, FrozenClassifier
from cefam.images.views import IMAGENET
from cefam.io.files import write_text
from cefam.towers.folding import folded

ONE_BY_ONE = 1e-6  # a memory limit that leaves room for one pair
Precision = Callable[[], AbstractContextManager[Any]]


def ways(setting: Setting) -> dict[str, tuple[FrozenClassifier, float, Precision]]:
    """Classifier, memory limit and precision of the first pass, by name."""
    plain, stages = setting.plain, setting.plain.stage_names
    wrap = partial(FrozenClassifier, stages=stages, preprocessing=IMAGENET, fold=False)
    image = torch.rand(1, 3, 224, 224)
    without = folded(plain.module, image, set(stages)).to(memory_format=torch.contiguous_format)
    last = copy.deepcopy(plain.module).to(memory_format=torch.channels_last)
    half = partial(torch.autocast, "cpu", torch.bfloat16)
    return {
        "as it is, one pair at a time": (plain, ONE_BY_ONE, nullcontext),
        "as it is, batched": (plain, 1024, nullcontext),
        "BatchNorm folded": (wrap(without), 1024, nullcontext),
        "channels last": (wrap(last), 1024, nullcontext),
        "both": (setting.classifier, 1024, nullcontext),
        "both, first pass in bf16": (setting.classifier, 1024, half),
    }


def weights(setting: Setting, classifier: FrozenClassifier, limit: float, precision: Precision) -> list[Tensor]:
    """Channel weights of all pairs by the total derivative."""
    explainer = Explainer(classifier, setting.translator, setting.concepts, memory_limit=limit)
    with precision():
        encoding = explainer.encode(setting.batch.image)
    return explainer.regions(encoding, setting.pairs).weights


def worst_difference(found: list[Tensor], reference: list[Tensor]) -> float:
    """The largest difference of a weight, relative to the largest weight of its stage."""
    both = zip(found, reference, strict=True)
    return max(float((ours - theirs).abs().max() / theirs.abs().max()) for ours, theirs in both)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gains", description=__doc__.split("\n")[0])
    parser.add_argument("--classifier", default="resnet50")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/gains.json"))
    options = parser.parse_args()
    setting = Setting(options.classifier, options.images, "cpu")
    reference: list[Tensor] = []
    rows = {}
    for name, (classifier, limit, precision) in ways(setting).items():
        found = weights(setting, classifier, limit, precision)
        reference = reference or found
        worst = worst_difference(found, reference)
        with precision():
            forward = seconds(partial(classifier, setting.batch.image)) / options.images
        backward = seconds(partial(weights, setting, classifier, limit, precision), repeats=2) / len(setting.pairs)
        rows[name] = {
            "forward, ms per image": 1000 * forward,
            "regions, ms per pair": 1000 * backward,
            "difference": worst,
        }
        print(f"{name:30} {1000 * forward:8.1f} {1000 * backward:8.1f} {worst:10.1e}", flush=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # other sums, rounded otherwise: how well the numbers are known at all
    again = worst_difference(weights(setting, setting.plain, 1024, nullcontext), reference)
    rows["as it is, on one thread"] = {"difference": again}
    print(f"{'as it is, on one thread':30} {'':8} {'':8} {again:10.1e}")
    about = {"classifier": options.classifier, "pairs": len(setting.pairs), "threads": threads}
    write_text(options.output, json.dumps({**about, "ways": rows}, indent=1))


if __name__ == "__main__":
    main()
