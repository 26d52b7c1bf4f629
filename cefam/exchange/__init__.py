"""Artefacts of other programs, in and out, without running anything that is in them."""
