"""The paper's comparison on Brodenette: classifiers x vision-language models, all methods, and CE-FAM's ablations.

    python -m examples.brodenette_results --folder runs/brodenette_results

Everything runs through the public commands; what is there is kept. Prints the tables of ``docs/research/results.md`` and writes them to
``results.md``. Towers that have no weights are left out, and named.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cefam.brodenette.towers import CLASSIFIERS, classifier_weights
from cefam.io.files import write_text
from cefam.report import results
from cefam.report.tables import Row, Table
from cefam.towers.vlm import BRODENETTE
from examples.kept import kept

SCENES = {"train": 4000, "val": 500, "captioned": 400, "evaluation": 200}  # captioned: Network Dissection and Net2Vec
SEEDS = (0, 1, 2)
LAST = {"brodenette": "layer4", "brodenette_vit": "encoder.layers.encoder_layer_3"}
# All stages of the ViT are its blocks; the paper takes the last alone.
BLOCKS = [f"encoder.layers.encoder_layer_{block}" for block in range(4)]
METHODS = """{{
CE-FAM: CEFAMRegions, CLIP-Dissect: CLIPDissectRegions, WWW: WWWRegions,
'Grad-CAM, concept': {{class_path: GradCAMRegions, init_args: {{of: concept}}}}, 'Grad-CAM, class': GradCAMRegions,
'Grad-CAM++, concept': GradCAMPlusPlusRegions,
'Integrated Gradients, concept': {{class_path: IntegratedGradientsRegions, init_args: {{steps: 16}}}},
'Score-CAM, concept': ScoreCAMRegions, 'RISE, concept': {{class_path: RISERegions, init_args: {{count: 200}}}},
TCAV: TCAVRegions, CRAFT: {{class_path: CRAFTRegions, init_args: {{images: {train}}}}},
'Network Dissection (masks)': {{class_path: NetworkDissectionRegions, init_args: {{shards: {masks}}}}},
'Net2Vec (masks)': {{class_path: Net2VecRegions, init_args: {{shards: {masks}}}}},
random channel: RandomChannelRegions, random map: RandomMapRegions, center: CenterRegions, luminance: LuminanceRegions
}}"""
ALONE = "{{CE-FAM: CEFAMRegions, CLIP-Dissect: CLIPDissectRegions, WWW: WWWRegions}}"


@dataclass(frozen=True)
class Pair:
    """A classifier and a vision-language model, by name."""

    classifier: str
    vlm: str

    @property
    def name(self) -> str:
        """Of the folder."""
        return f"{self.classifier}-{self.vlm}"

    def towers(self, prefix: str = "") -> list[str]:
        """Options that name both."""
        return [
            f"--{prefix}classifier.class_path", "cefam.load_classifier",
            f"--{prefix}classifier.init_args.name", self.classifier,
            f"--{prefix}vlm.class_path", "cefam.load_vlm", f"--{prefix}vlm.init_args.name", self.vlm,
        ]  # fmt: skip


@dataclass(frozen=True)
class Training:
    """A translator: seed, similarity loss, stages (none: the usual ones)."""

    name: str
    seed: int = 0
    similarity: bool = True
    stages: tuple[str, ...] = ()


class Comparison:
    """Runs what is not there yet, below one folder."""

    def __init__(self, folder: Path, pair: Pair, quick: bool) -> None:
        self.folder, self.root, self.pair, self.quick = folder / pair.name, folder, pair, quick

    def scenes(self, split: str) -> Path:
        """Shards of a split."""
        target = self.root / "scenes" / split
        masks = [] if split in ("evaluation", "captioned") else ["--masks", "[]"]
        options = ["--source", split, "--count", SCENES[split], "--folder", target, *masks]
        kept(target / "manifest.json", "prepare", "--kind", "brodenette", *options)
        return target

    def train(self, training: Training) -> Path:
        """The checkpoint of a training."""
        stages = ["classifier.init_args.stages", f"[{', '.join(training.stages)}]"] if training.stages else []
        features = self.folder / "features" / ("_".join(training.stages) or "usual")
        for split in ("train", "val"):
            options = [*self.pair.towers(), "--images", self.scenes(split), "--folder", features / split]
            options += [f"--{stages[0]}", stages[1]] if stages else []
            options += ["--size", 96, "--resize", 96]
            kept(features / split / "manifest.json", "features", *options)
        run = self.folder / "fit" / training.name
        options = [*self.pair.towers("model."), "--seed_everything", training.seed]
        options += [f"--model.{stages[0]}", stages[1]] if stages else []
        options += [] if training.similarity else ["--model.similarity_weight", 0]
        if self.pair.classifier.startswith("brodenette_vit"):  # one seed of three ends in infinity without it
            options += ["--trainer.gradient_clip_val", 1.0]
        options += [f"--data.init_args.{split}={features / split}" for split in ("train", "val")]
        options += [f"--trainer.logger.init_args.{k}={v}" for k, v in (("save_dir", run.parent), ("name", run.name))]
        kept(run / "finished", "fit", "--config", "demo", *options)
        return run / "checkpoints" / "best.ckpt"

    def probe(self, stages: Sequence[str]) -> Path:
        """The probe of the training scenes."""
        target = self.folder / "probe" / ("_".join(stages) or "usual")
        options = [
            *self.pair.towers(),
            "--images",
            self.scenes("train"),
            "--folder",
            target,
            "--size",
            96,
            "--resize",
            96,
        ]
        options += ["--classifier.init_args.stages", f"[{', '.join(stages)}]"] if stages else []
        kept(target / "manifest.json", "probe", *options)
        return target

    def measure(self, training: Training, everything: bool) -> Path:
        """The folder of an evaluation: of all methods, or of the three that are compared."""
        output = self.folder / "evaluation" / (training.name + ("_all" if everything else ""))
        places = {"train": self.scenes("train"), "masks": self.scenes("captioned")}
        methods = " ".join((METHODS if everything else ALONE).format(**places).split())
        options = ["--model.artefact", self.train(training), "--model.output", output, "--model.methods", methods]
        options += ["--model.probe", self.probe(training.stages), *self.pair.towers("model.")[4:]]
        options += ["--data.shards", self.scenes("evaluation"), "--model.metrics", "[pointing, iou, auprc]"]
        options += ["--model.presence_scores", "true", "--trainer.logger", "false"]
        options += ["--trainer.limit_test_batches", 2] if self.quick else []
        kept(output / "table.csv", "evaluate", *options)
        return output


def trainings(pair: Pair) -> Iterator[tuple[Training, bool]]:
    """Three seeds, then the ablations of Table 4; all methods with the first seed."""
    for seed in SEEDS:
        yield Training(f"seed_{seed}", seed), seed == 0
    yield Training("no_similarity", similarity=False), False
    if pair.classifier.startswith("brodenette_vit"):
        yield Training("blocks", stages=tuple(BLOCKS)), False
    else:
        yield Training("last", stages=(LAST[pair.classifier],)), False


def row_of(table: Table, protocol: str, method: str) -> Row:
    """One row of a table."""
    return next(row for row in table.rows if (row.protocol, row.method) == (protocol, method))


def summary(folders: dict[str, Path]) -> str:
    """NRA avg and Hit avg of the three methods, top-1, oracle and common pairs, a row per training."""
    head = "| translator | method | top-1 NRA | top-1 Hit | common NRA | oracle NRA | oracle Hit | coverage |"
    lines = [head, "|---|---|" + "---:|" * 6]
    for name, folder in folders.items():
        table = results.joined([folder])
        common = {row.method: row for row in table.rows if row.protocol == "top1 common"}
        for method in ("CE-FAM", "CLIP-Dissect", "WWW"):
            first, best = row_of(table, "top1", method), row_of(table, "oracle", method)
            both = common.get(method, first)
            cells = [first.means["nra"][-1], first.means["hit"][-1], both.means["nra"][-1]]
            cells += [best.means["nra"][-1], best.means["hit"][-1], first.coverage]
            lines.append(f"| {name} | {method} | " + " | ".join("-" if v is None else f"{v:.3f}" for v in cells) + " |")
    return "\n".join(lines)


def every_method(folder: Path) -> str:
    """All methods of an evaluation: top-1 by category, Hit Rate, common pairs, oracle, coverage."""
    table = results.joined([folder])
    names = [*table.categories, "avg"]
    head = [
        "method",
        *(f"NRA {name}" for name in names),
        "Hit avg",
        "common NRA",
        "oracle NRA",
        "oracle Hit",
        "coverage",
    ]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    for row in (row for row in table.rows if row.protocol == "top1"):
        common, best = row_of(table, "top1 common", row.method), row_of(table, "oracle", row.method)
        cells = [*row.means["nra"], row.means["hit"][-1], common.means["nra"][-1]]
        cells += [best.means["nra"][-1], best.means["hit"][-1], row.coverage]
        lines.append(f"| {row.method} | " + " | ".join("-" if v is None else f"{v:.3f}" for v in cells) + " |")
    lines += [
        "",
        "Difference of CE-FAM in NRA avg on the pairs that all methods can express, top-1, 95 % interval:",
        "",
    ]
    lines += [f"* {str(d).removeprefix('CE-FAM - ')}" for d in table.differences if d.protocol == "top1 common"]
    return "\n".join(lines)


def pairs() -> list[Pair]:
    """Those whose towers have weights."""
    names = [name for name in CLASSIFIERS if not name.endswith("_edited") and classifier_weights(name).is_file()]
    return [Pair(classifier, vlm) for classifier in names for vlm in BRODENETTE]


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(prog="python -m examples.brodenette_results", description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/brodenette_results"))
    parser.add_argument("--quick", action="store_true", help="two batches of each evaluation, to try the way")
    options = parser.parse_args()
    parts = []
    for pair in pairs():
        comparison = Comparison(options.folder, pair, options.quick)
        folders, whole = {}, None
        for training, everything in trainings(pair):
            folders[training.name] = comparison.measure(training, everything=False)
            if everything:
                whole = comparison.measure(training, everything=True)
        parts.append(f"## {pair.classifier}, {pair.vlm}\n\n{summary(folders)}\n")
        if whole is not None:
            parts.append(f"All methods, seed 0:\n\n{every_method(whole)}\n")
    text = "\n".join(parts)
    write_text(options.folder / "results.md", text)
    print(text)


if __name__ == "__main__":
    main()
