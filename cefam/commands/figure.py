"""``cefam figure``: the paper's figures from the results of an evaluation."""

from pathlib import Path
from typing import Literal

from cefam.errors import CefamError, near


def figure(
    kind: Literal["points", "methods", "curves", "stages", "epochs"],
    run: str,
    out: str,
    methods: list[str] | None = None,
    example: int = 0,
    log: str | None = None,
    protocol: Literal["top1", "oracle"] = "oracle",
) -> None:
    """Draw a figure for print from a folder of `cefam evaluate`.

    Args:
        kind: "points" (NRA per method and category, with intervals), "methods" (one row per concept, one column per method),
            "curves" (IoU over the threshold), "stages" (stages of the best candidates), "epochs" (Hit Rate during training).
        run: a folder of `cefam evaluate`.
        out: a .png, .pdf or .svg file.
        methods: methods to show; null: all; "stages" uses only the first.
        example: index of the pair for "curves", from 0, in the order of the contact sheet.
        log: metrics.csv of the training, for "epochs".
        protocol: protocol for "points" and "epochs".
    """
    from cefam.report import examples, plots, records, results
    from cefam.report.bootstrap import intervals
    from cefam.report.sums import Sums

    folder, about = Path(run), results.Run.read(run)
    chosen = methods or about.methods
    for name in chosen:
        if name not in about.methods:
            raise CefamError(
                f"{run} has no method {name!r}.{near(name, about.methods)} It has {', '.join(about.methods)}."
            )
    if Path(out).exists():
        raise CefamError(f"{out} already exists: name another file.")
    if kind == "points":
        values = intervals(Sums.of(records.blocks(folder / results.RECORDS)), protocol)
        drawn = plots.points(values, chosen, about.categories, "NRA")
    elif kind == "stages":
        drawn = plots.winning_stages(records.read(folder / results.RECORDS), chosen[0], about.stages, about.categories)
    elif kind == "epochs":
        if log is None:
            raise CefamError("The figure of epochs needs the training's metrics.csv: set `--log`.")
        rows = results.joined([run]).rows
        known = {row.method: row.means["hit"][-1] for row in rows if row.protocol == protocol}
        others = {name: known.get(name) for name in chosen if not name.startswith("CE-FAM")}
        drawn = plots.hit_over_epochs(Path(log), {n: v for n, v in others.items() if v is not None}, protocol)
    else:
        kept = examples.load(folder / results.EXAMPLES)
        if not 0 <= example < len(kept):
            raise CefamError(f"There is no example {example}: {run} holds {len(kept)}, counted from 0.")
        drawn = plots.side_by_side(kept, chosen) if kind == "methods" else plots.iou_thresholds(kept[example], chosen)
    plots.save(drawn, Path(out))
    print(f"{kind}: {out}")
