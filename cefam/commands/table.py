"""``cefam table``: tables from the records of one or several evaluations."""

from typing import Literal


def table(
    runs: list[str],
    format: Literal["text", "wide", "md", "csv", "latex"] = "text",  # noqa: A002  the name of the option
    published: str | None = None,
    columns: list[str] | None = None,
    remake: bool = False,
) -> None:
    """Print the table of one or several folders of `cefam evaluate`, made from their records.

    Args:
        runs: the folders. Methods that occur in several folders are named "folder: method".
        format: text (100 columns), wide (all metrics side by side), md (Markdown), csv, or latex.
        published: published numbers to add: a table of the paper ("table1/resnet50"), or a CSV file in the format of table.csv.
        columns: metrics to show: epg, nra, nra_calibrated, hit, auc, auc_high, auc_low, and the measured secondary metrics.
        remake: first regenerate the tables and the contact sheet of each folder.
    """
    from cefam.report import results
    from cefam.report.tables import FORMATS

    for folder in runs if remake else ():
        results.remake(folder)
    found = results.joined(runs, columns or ())
    if published is not None:
        found = results.with_published(found, published)
    print(FORMATS[format](found), end="")
