"""All verbs of ``cefam``, listed in VERBS. Each verb is a separate module, imported only when the verb is called."""

import io
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from cefam.commands._configs import shipped_configs
from cefam.commands._process import run_verb
from cefam.errors import near


class Verb(NamedTuple):
    """Location of a verb's function ("module:function"), and its line in the help."""

    where: str
    help: str


VERBS = {
    "demo": Verb(
        "cefam.commands.demo:run", "run the complete pipeline on drawn scenes in minutes, without any download"
    ),
    "study": Verb("cefam.commands.study:run", "from your classifier, photographs and words to pages, in one command"),
    "stages": Verb("cefam.commands.stages:run", "the modules of a classifier that can be stages"),
    "prepare": Verb(
        "cefam.commands.prepare:run", "convert ImageNet, ImageNet-S, Broden, images or drawn scenes into shards"
    ),
    "verify": Verb("cefam.commands.verify:run", "check shards, features or an artefact for damage"),
    "features": Verb("cefam.commands.features:run", "run both frozen networks once and cache their outputs"),
    "probe": Verb("cefam.commands.probe:run", "record activations on a probe set, to associate neurons with concepts"),
    "associate": Verb("cefam.commands.associate:run", "associate neurons with concepts, from a probe"),
    "fit": Verb("cefam.commands.fit:run", "train a translator"),
    "validate": Verb("cefam.commands.validate:run", "measure losses, VLM agreement, and regions of a checkpoint"),
    "evaluate": Verb("cefam.commands.evaluate:run", "measure the regions of several methods against masks"),
    "table": Verb("cefam.commands.table:run", "print tables from the records of one or several evaluations"),
    "figure": Verb("cefam.commands.figure:run", "draw figures for print from the results of an evaluation"),
    "explain": Verb(
        "cefam.commands.explain:run", "explain photographs: which concepts, where, and how much each contributes"
    ),
    "summarize": Verb("cefam.commands.summarize:run", "find the leading concepts of a class or a set of photographs"),
    "doctor": Verb("cefam.commands.doctor:run", "check the installation, and which concepts can be trusted"),
    "contribution-benchmark": Verb(
        "cefam.commands.contribution_benchmark:run", "compare contributions with the effects of editing drawn scenes"
    ),
    "import": Verb("cefam.commands.import_:run", "import files of the original CE-FAM, CLIP-Dissect and WWW programs"),
    "export": Verb("cefam.commands.export:run", "write a checkpoint as safetensors + JSON + model card"),
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
        verbs = "\n".join(f"  {name:22} {verb.help}" for name, verb in VERBS.items())
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
    return run_verb(verb, VERBS[verb].where, rest)
