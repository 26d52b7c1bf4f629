"""One photograph explained, top 8 of 1,197 concepts with contributions, against the literal procedure one by one.

    python -m benchmarks.explaining --classifier resnet50

The literal procedure: for each of the eight concepts one forward and one backward pass for the maps, the translator once per
masked channel for the association, and the classifier once per masked channel for the contribution.
"""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.literal import LiteralPair
from benchmarks.regions import Setting, seconds
from cefam import ConceptPairs
from cefam.io.files import write_text

TOP, K = 8, 20


def ours(setting: Setting, stage: int) -> tuple[list[int], Any]:
    """The eight best concepts: scores, maps of all stages, associations, and contributions through one stage."""
    explainer, image = setting.explainer, setting.batch.image
    encoding = explainer.encode(image)
    best = explainer.scores(encoding)[0].topk(TOP).indices
    pairs = ConceptPairs(torch.zeros_like(best), best)
    regions = explainer.regions(encoding, pairs)
    explainer.association(encoding, pairs, K, regions)
    chosen = torch.full_like(best, stage)
    return best.tolist(), explainer.contribution(encoding, pairs, None, K, chosen, regions).value


def literally(setting: Setting, stage: int, concepts: Sequence[int]) -> Any:
    """The same, each concept by itself."""
    values = []
    for concept in concepts:
        pair = LiteralPair(setting.literal, setting.batch.image[0], concept)
        pair.association(K)
        values.append(pair.contribution(setting.batch.image[0], stage, K))
    return torch.tensor(values, dtype=torch.double)


def main() -> None:
    """Measure per stage, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.explaining", description=__doc__.split("\n")[0])
    parser.add_argument("--classifier", default="resnet50")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/explaining.json"))
    options = parser.parse_args()
    setting = Setting(options.classifier, 1, "cpu")
    rows = {}
    for stage, name in enumerate(setting.classifier.stage_names):
        concepts, values = ours(setting, stage)
        worst = float((values - literally(setting, stage, concepts)).abs().max())
        here = seconds(partial(ours, setting, stage))
        there = seconds(partial(literally, setting, stage, concepts), repeats=1)
        rows[name] = {"seconds": here, "literal_seconds": there, "share": here / there, "largest_difference": worst}
        print(
            f"{name:10} {here:6.2f} s, literally {there:6.2f} s, share {here / there:.2f}, difference {worst:.0e}",
            flush=True,
        )
    write_text(
        options.output,
        json.dumps({"classifier": options.classifier, "threads": torch.get_num_threads(), "stages": rows}, indent=1),
    )


if __name__ == "__main__":
    main()
