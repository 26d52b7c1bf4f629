"""All verbs of ``cefam``, listed in VERBS with their lines in the help. Each is a module with a function of that name, or `run`."""

import io
import os
import sys
from collections.abc import Sequence

from cefam.commands._configs import shipped_configs
from cefam.commands._process import run_verb
from cefam.errors import near

VERBS = {
    "demo": "run the complete pipeline on drawn scenes in minutes, without any download",
    "study": "from your classifier, photographs and words to pages, in one command",
    "stages": "the modules of a classifier that can be stages",
    "prepare": "convert ImageNet, ImageNet-S, Broden, images or drawn scenes into shards",
    "verify": "check shards, features or an artefact for damage",
    "features": "run both frozen networks once and cache their outputs",
    "probe": "record activations on a probe set, to associate neurons with concepts",
    "associate": "associate neurons with concepts, from a probe",
    "fit": "train a translator",
    "validate": "measure losses, VLM agreement, and regions of a checkpoint",
    "evaluate": "measure the regions of several methods against masks",
    "table": "print tables from the records of one or several evaluations",
    "figure": "draw figures for print from the results of an evaluation",
    "explain": "explain photographs: which concepts, where, and how much each contributes",
    "summarize": "find the leading concepts of a class or a set of photographs",
    "doctor": "check the installation, and which concepts can be trusted",
    "contribution-benchmark": "compare contributions with the effects of editing drawn scenes",
    "import": "import files of the original CE-FAM, CLIP-Dissect and WWW programs",
    "export": "write a checkpoint as safetensors + JSON + model card",
}

USAGE = """usage: cefam VERB [options]     (cefam VERB --help explains a verb)

{verbs}

Configs are given by path, or by name if shipped with cefam (`--config train/features`):
{configs}"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb.

    Returns:
        The exit status: 0 done, 1 bad input, 2 bad options, 70 unexpected error, 128 + n stopped by signal n.
    """
    status = 0
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # replace characters that the terminal cannot encode
            stream.reconfigure(errors="replace")
    try:
        status = _main(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader closed the pipe, as in `cefam --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python flushes to the pipe at exit
    return status


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        verbs = "\n".join(f"  {name:22} {line}" for name, line in VERBS.items())
        print(USAGE.format(verbs=verbs, configs="\n".join(f"  {name}" for name in shipped_configs())))
        return 0
    if arguments[0] == "--version":
        from cefam import __version__

        print(f"cefam {__version__}")
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        print(
            f"cefam: there is no verb {verb!r}.{near(verb, VERBS)} The verbs are {', '.join(VERBS)}.", file=sys.stderr
        )
        return 2
    return run_verb(verb, rest)
