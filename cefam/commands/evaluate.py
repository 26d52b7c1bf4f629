"""``cefam evaluate``: measure the regions of several methods against masks."""

from cefam.commands._lightning import run_evaluation as run

__all__ = ["run"]
