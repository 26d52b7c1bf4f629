"""``cefam validate``: losses, agreement with the VLM, and regions of a checkpoint."""

from functools import partial

from cefam.commands._lightning import run_trainer

run = partial(run_trainer, "validate")
