"""``cefam probe``: record activations on a probe set, to associate neurons with concepts."""

from cefam.commands._options import call
from cefam.probe.compute import compute_probe


def run(arguments: list[str]) -> None:
    """Run the verb with these options."""
    call("probe", compute_probe, arguments)
