"""``cefam features``: run both frozen networks once and cache their outputs."""

from cefam.commands._options import call
from cefam.datasets.features import compute_features


def run(arguments: list[str]) -> None:
    """Run the verb with these options."""
    manifest = call("features", compute_features, arguments)
    print(f"{manifest.num_rows} rows of features.")
