"""The probe: one pass over a set of photographs, from which neurons are associated with any concepts later.

What CLIP-Dissect and WWW need of the photographs is small: for every neuron (channel of a stage) the photographs that activate it
most, the VLM's embeddings of those, and a few sums. ``BeyondRegions`` needs the correlation of all channels and their covariance with
the embeddings, of a sample of the photographs. A folder of ``cefam probe`` holds

* ``probe.safetensors``: of a size that does not grow with the number of photographs, but for the embeddings of those that some
  neuron chose;
* ``manifest.json``: what it was computed with;
* until it is finished, or where everything is kept, ``probe-NNNNNNNN.safetensors``: at most 64 parts (first photograph).
"""

from cefam.probe.stored import Pooling, Probe, ProbeManifest

__all__ = ["Pooling", "Probe", "ProbeManifest"]
