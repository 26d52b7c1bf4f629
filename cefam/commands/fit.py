"""``cefam fit``: train a translator."""

from functools import partial

from cefam.commands._lightning import run_trainer

run = partial(run_trainer, "fit")
