"""The final table of docs/research/beyond.md: two classifiers x two vision-language models x three translators, on fresh scenes.

    python -m examples.beyond --folder runs/brodenette_results

Translators, features and probes are those of ``examples.brodenette_results`` in the same folder; what is there is kept. Prints the
tables, and writes them to ``beyond.md``.
"""

import argparse
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from cefam.io.files import write_text
from cefam.report import records, results
from cefam.report.bootstrap import differences
from cefam.report.sums import Sums
from cefam.report.tables import Row
from examples.brodenette_results.__main__ import SEEDS, Comparison, Pair, Training, pairs, row_of
from examples.kept import kept

FRESH = "regions_fifth"
SCENES = 100
COMPARED = ("CE-FAM", "beyond, without rivals", "TCAV", "center")
FOUR = """{beyond: BeyondRegions, CE-FAM: CEFAMRegions}"""


def measured(comparison: Comparison, seed: int, *options: str, zero_shot: bool = False) -> Path:
    """The folder of an evaluation on fresh scenes."""
    root, training = comparison.root, Training(f"seed_{seed}", seed)
    shards = root / "scenes" / (f"{FRESH}_zero_shot" if zero_shot else FRESH)
    drawn = ["--source", FRESH, "--count", SCENES, "--folder", shards]
    if zero_shot:
        drawn += ["--masks", "[color, object, part, material, composition]"]
        options = (*options, "--model.concepts", "brodenette_zero_shot", *comparison.pair.towers("model.")[4:])
    kept(shards / "manifest.json", "prepare", "--kind", "brodenette", *drawn)
    output = comparison.folder / shards.name / training.name
    arguments = ["--model.artefact", comparison.train(training), "--model.probe", comparison.probe(())]
    arguments += ["--model.output", output, "--data.shards", shards, "--trainer.logger", "false", *options]
    kept(output / "table.csv", "evaluate", *arguments)
    return output


def cells(values: Sequence[float | None]) -> str:
    """Cells of a table."""
    return " | ".join("-" if value is None else f"{value:.3f}" for value in values)


def line(name: str, row: Row) -> str:
    """A method: NRA of the categories and their mean, Hit, EPG, specific NRA likewise, and the mean of present."""
    means = [*row.means["nra"], row.means["hit"][-1], row.means["epg"][-1]]
    return f"| {name} | {cells(means)} | {cells(row.means['specific'])} | {cells(row.means['present'])} |"


def head(folder: Path) -> list[str]:
    """Of :func:`line`'s table."""
    names = [*results.joined([folder]).categories, "avg"]
    titles = [*(f"NRA {name}" for name in names), "Hit", "EPG"]
    titles += [f"{control} {name}" for control in ("specific", "present") for name in names]
    return [f"| method | {' | '.join(titles)} |", "|---|" + "---:|" * len(titles)]


def lines(folder: Path, prefix: str = "") -> list[str]:
    """A line for every method that was measured with top-1."""
    table = results.joined([folder])
    rows = {row.method: row for row in table.rows if row.protocol == "top1"}
    found = [line(prefix + name, row) for name, row in rows.items()]
    return [*found, line(f"{prefix}CE-FAM, *oracle*", row_of(table, "oracle", "CE-FAM"))]


def intervals(folder: Path) -> list[str]:
    """Beyond minus other rows, in all and by category: paired 95 % intervals over images."""
    found, measured_pairs = [], list(records.read(folder / results.RECORDS))
    top1 = [record for record in measured_pairs if record["protocol"] == "top1"]
    for category in ("", *sorted({record["category"] for record in top1 if record["category"]})):
        of_category = [record for record in top1 if category in ("", record["category"])]
        for metric in ("nra", "hit", "epg", "specific", "present"):
            each = differences(Sums.of_records(of_category, metric), order=["beyond"])
            found += [f"* {category or 'all'}, {metric}: {d}" for d in each if d.other in COMPARED]
    return found


def by_source(folder: Path) -> list[str]:
    """NRA, specific and present of every method, by source (the first folder of an image's name) and category, top-1."""
    values: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for record in records.read(folder / results.RECORDS):
        if record["protocol"] == "top1" and record["category"]:
            for metric in ("nra", "specific", "present"):
                key = (record["image"].partition("/")[0], record["method"], metric, record["category"])
                values[key].append(record[metric])
    known = {key: [value for value in each if not math.isnan(value)] for key, each in values.items()}
    return [
        f"* {', '.join(key)}: {sum(each) / len(each):.3f} ({len(each)} pairs)" for key, each in known.items() if each
    ]


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(prog="python -m examples.beyond", description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/brodenette_results"))
    parser.add_argument("--intervals", type=Path, help="only print those of this folder of `cefam evaluate`")
    parser.add_argument("--by-source", type=Path, help="only print the means by source of this folder")
    options = parser.parse_args()
    if options.by_source is not None:
        print("\n".join(by_source(options.by_source)))
        return
    if options.intervals is not None:
        print("\n".join(intervals(options.intervals)))
        return
    folder: Path = options.folder
    parts: list[str] = []
    for pair in pairs():
        parts += _of_pair(Comparison(folder, pair, False), pair)
    text = "\n".join([*parts, ""])
    write_text(folder / "beyond.md", text)
    print(text)


def _of_pair(comparison: Comparison, pair: Pair) -> list[str]:
    evaluate = ["--config", "evaluate/broden", "--model.metrics", "[specific, present]"]
    first = measured(comparison, SEEDS[0], *evaluate, "--config", "methods/beyond")
    parts = [f"## {pair.classifier}, {pair.vlm}", "", *head(first), *lines(first)]
    for seed in SEEDS[1:]:
        rows = lines(measured(comparison, seed, *evaluate, "--model.methods", " ".join(FOUR.split())), f"seed {seed}: ")
        parts += rows
    parts += ["", "beyond minus others, seed 0:", "", *intervals(first)]
    unseen = measured(comparison, SEEDS[0], *evaluate, "--model.methods", " ".join(FOUR.split()), zero_shot=True)
    return [*parts, "", "Words never seen:", "", *head(unseen), *lines(unseen), ""]


if __name__ == "__main__":
    main()
