"""The probe: statistics from one pass over photographs, used later to associate neurons with any concepts.

CLIP-Dissect and WWW need, for every neuron (channel of a stage), the photographs that activate it most, their VLM embeddings,
and a few sums. ``BeyondRegions`` needs the correlation of all channels and their covariance with the embeddings, on a sample of
the photographs. A folder of ``cefam probe`` holds

* ``probe.safetensors``: the statistics; only the embeddings of the selected photographs grow with the number of photographs;
* ``manifest.json``: the towers, photographs and options of the pass;
* ``probe-NNNNNNNN.safetensors`` (index of the first photograph): at most 64 parts, deleted at the end without ``keep_pooled``.
"""

from cefam.probe.stored import Pooling, Probe, ProbeManifest

__all__ = ["Pooling", "Probe", "ProbeManifest"]
