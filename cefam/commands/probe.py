"""``cefam probe``: record activations on a probe set, to associate neurons with concepts."""

from cefam.probe.compute import compute_probe as probe

__all__ = ["probe"]
