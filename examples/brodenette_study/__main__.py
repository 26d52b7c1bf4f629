"""Measure what moves CE-FAM's numbers in Brodenette: seeds, derivative, epochs, L_sim, stages, K, and zero-shot texts.

    python -m examples.brodenette_study --folder runs/brodenette_study

Everything runs through the public commands; what is there is kept. Prints the tables of ``docs/research/brodenette.md`` and writes
them to ``study.md``.
"""

import argparse
import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cefam.io.files import write_text
from examples.kept import kept

SCENES, VAL_SCENES, EVALUATION_SCENES, EPOCHS = 4000, 500, 200, 60  # those of `cefam demo`
ALL = ("layer1", "layer2", "layer3", "layer4")


@dataclass(frozen=True)
class Training:
    """One translator: what differs from ``--config demo``."""

    name: str
    options: tuple[str, ...] = ()
    stages: tuple[str, ...] = ALL


@dataclass(frozen=True)
class Measurement:
    """One row: a translator, measured with these options."""

    name: str
    training: Training
    options: tuple[str, ...] = ()
    chance: bool = False  # with the chance rows, which differ by the evaluation scenes alone


SEEDS = [Training(f"seed_{seed}", ("--seed_everything", str(seed))) for seed in range(3)]
DEFAULT = SEEDS[0]
WITHOUT = Training("without_similarity", ("--model.similarity_weight", "0"))
K = "--model.num_channels"
SHARE = "--model.channel_share"


def after(epochs: int) -> Training:
    """A training of so many epochs."""
    return Training(f"epochs_{epochs}", ("--trainer.max_epochs", str(epochs)))


def tapped(*stages: str) -> Training:
    """A training on these stages alone."""
    return Training("stages_" + "_".join(stages), stages=stages)


SECTIONS: dict[str, list[Measurement]] = {
    "Three seeds of the translator": [Measurement(f"seed {seed}", SEEDS[seed], chance=True) for seed in range(3)],
    "Derivative": [
        Measurement("total (default)", DEFAULT, chance=True),
        Measurement("branch", DEFAULT, ("--model.derivative", "branch")),
    ],
    "Epochs": [
        *(Measurement(f"{epochs}", after(epochs)) for epochs in (1, 3, 10, 30)),
        Measurement(f"{EPOCHS} (default)", DEFAULT, chance=True),
        Measurement("150", after(150)),
    ],
    "L_sim": [Measurement("with (default)", DEFAULT, chance=True), Measurement("without", WITHOUT)],
    "Stages": [
        Measurement("four (default)", DEFAULT, chance=True),
        Measurement("layer3, layer4", tapped("layer3", "layer4")),
        Measurement("layer4", tapped("layer4")),
        Measurement("layer1", tapped("layer1")),
    ],
    "K": [
        Measurement("min(20, C/8) (default)", DEFAULT, chance=True),
        *(Measurement(f"{k}", DEFAULT, (K, str(k), SHARE, "1")) for k in (1, 2, 5, 20)),
    ],
}
ZERO_SHOT = [Measurement("with L_sim", DEFAULT, chance=True), Measurement("without L_sim", WITHOUT)]
ALONE = "CE-FAM: CEFAMRegions"
CHANCE = "random channel: RandomChannelRegions, random map: RandomMapRegions, center: CenterRegions, luminance: LuminanceRegions"


class Study:
    """Runs what is not there yet, below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def draw(self) -> None:
        """Scenes of all splits; one more evaluation set with masks of compositions."""
        for split, count, masks in (
            ("train", SCENES, "[]"),
            ("val", VAL_SCENES, "[]"),
            ("evaluation", EVALUATION_SCENES, "[color,object,part,material]"),
            ("evaluation", EVALUATION_SCENES, "[color,object,part,material,composition]"),
        ):
            target = self.folder / "scenes" / (f"{split}_zero_shot" if "composition" in masks else split)
            options = ["--source", split, "--count", count, "--masks", masks, "--folder", target]
            kept(target / "manifest.json", "prepare", "--kind", "brodenette", *options)

    def train(self, training: Training) -> Path:
        """The checkpoint of a training; features are cached per choice of stages."""
        stages = f"[{', '.join(training.stages)}]"
        features = self.folder / "features" / "_".join(training.stages)
        for split in ("train", "val"):
            target = features / split
            options = ["--images", self.folder / "scenes" / split, "--folder", target]
            options += ["--classifier.init_args.stages", stages]
            kept(target / "manifest.json", "features", "--config", "features/demo", *options)
        run = self.folder / "fit" / training.name
        options = ["--trainer.max_epochs", EPOCHS, *training.options, "--model.classifier.init_args.stages", stages]
        options += [f"--data.init_args.{split}={features / split}" for split in ("train", "val")]
        options += [f"--trainer.logger.init_args.{k}={v}" for k, v in (("save_dir", run.parent), ("name", run.name))]
        kept(run / "finished", "fit", "--config", "demo", *options)
        return run / "checkpoints" / "best.ckpt"

    def measure(self, measurement: Measurement, *options: str, shards: str = "evaluation") -> Path:
        """The folder of the results."""
        checkpoint = self.train(measurement.training)
        extra = (*measurement.options, *options)
        chance = [
            "--model.methods",
            f"{{{ALONE}, {CHANCE}}}" if measurement.chance else f"{{{ALONE}}}",
            "--model.probe",
            "null",
        ]
        name = "_".join([measurement.training.name, *(option.lstrip("-").split(".")[-1] for option in extra)])
        output = self.folder / shards / name
        arguments = ["--model.artefact", checkpoint, "--model.output", output, *extra, *chance]
        arguments += ["--data.shards", self.folder / "scenes" / shards]
        kept(output / "table.csv", "evaluate", "--config", "evaluate/demo", *arguments)
        return output


def rows(path: Path) -> list[dict[str, str]]:
    """A CSV file."""
    with path.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def markdown(header: Sequence[str], body: Iterable[Sequence[Any]]) -> str:
    """A table."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *body]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def knobs(study: Study, measurements: Sequence[Measurement]) -> str:
    """CE-FAM under both protocols, a row per measurement, with the fit of the embedding."""
    body = []
    for measurement in measurements:
        folder = study.measure(measurement)
        table = {row["protocol"]: row for row in rows(folder / "table.csv") if row["method"] == "CE-FAM"}
        curve = rows(study.folder / "fit" / measurement.training.name / "metrics.csv")
        losses = [(float(row["val/loss"]), float(row["val/cosine"])) for row in curve if row["val/loss"]]
        values = [
            f"{float(table[protocol][column]):.3f}"
            for protocol in ("top1", "oracle")
            for column in (*(f"NRA {c}" for c in ("object", "part", "color", "material", "avg")), "Hit Rate avg")
        ]
        body.append([measurement.name, f"{min(losses)[1]:.3f}", *values])
    short = ("object", "part", "color", "material", "avg", "Hit")
    header = ["", "cosine", *(f"top-1 {name}" for name in short), *(f"best of 4 {name}" for name in short)]
    return markdown(header, body)


def intervals(study: Study) -> str:
    """CE-FAM minus every chance row, for each seed."""
    found = [rows(study.measure(measurement) / "differences.csv") for measurement in SECTIONS[next(iter(SECTIONS))]]
    body = [
        [f"{row['protocol']}: {row['other']}"]
        + [f"{float(one['value']):+.3f} [{float(one['low']):+.3f}, {float(one['high']):+.3f}]" for one in same]
        for same in zip(*found, strict=True)
        for row in same[:1]
    ]
    return markdown(["CE-FAM minus", *(f"seed {seed}" for seed in range(len(found)))], body)


def stages_shown(study: Study) -> str:
    """How often each stage is shown (largest association), and how often it would have been the best one."""
    shares: dict[tuple[str, str], Counter[str]] = {}
    for row in rows(study.measure(SECTIONS["Derivative"][0]) / "records.csv"):
        if row["method"] == "CE-FAM":
            shares.setdefault((row["category"], row["protocol"]), Counter())[row["stage"]] += 1
    body = [
        [category, {"top1": "shown", "oracle": "best"}[protocol]]
        + [f"{counts[str(stage)] / counts.total():.2f}" for stage in range(len(ALL))]
        for (category, protocol), counts in sorted(
            shares.items(), key=lambda item: (item[0][0], item[0][1] == "oracle")
        )
    ]
    return markdown(["concept", "stage", *ALL], body)


def zero_shot(study: Study) -> str:
    """Texts that something never saw: NRA and Hit Rate of every method and category, top-1."""
    options = (
        "--model.concepts",
        "brodenette_zero_shot",
        "--model.vlm",
        "cefam.load_vlm",
        "--model.vlm.name",
        "brodenette",
    )
    categories = ("object", "part", "color", "material", "captions only", "unseen composition")
    body = []
    for measurement in ZERO_SHOT:
        folder = study.measure(measurement, *options, shards="evaluation_zero_shot")
        for row in rows(folder / "table.csv"):
            if row["protocol"] == "top1" and (row["method"] == "CE-FAM" or measurement is ZERO_SHOT[0]):
                name = f"CE-FAM {measurement.name}" if row["method"] == "CE-FAM" else row["method"]
                body.append([name, *(f"{float(row[f'NRA {c}']):.3f}" for c in categories)])
    body.sort(key=lambda line: not line[0].startswith("CE-FAM"))
    return markdown(["NRA, top-1", *categories], body)


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(prog="python -m examples.brodenette_study", description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/brodenette_study"))
    study = Study(parser.parse_args().folder)
    study.draw()
    parts = [f"## {title}\n\n{knobs(study, measurements)}\n" for title, measurements in SECTIONS.items()]
    parts.insert(1, f"## Against chance\n\n{intervals(study)}\n")
    parts.append(f"## Stages shown and best\n\n{stages_shown(study)}\n")
    parts.append(f"## Zero-shot\n\n{zero_shot(study)}\n")
    write_text(study.folder / "study.md", "\n".join(parts))
    print("\n".join(parts))


if __name__ == "__main__":
    main()
