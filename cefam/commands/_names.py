"""Rejects misspelt options without importing torch (which takes seconds), by reading option names from the source."""

import ast
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from cefam.errors import CefamError, near

PACKAGE = Path(__file__).parent.parent
ALWAYS = ("help", "config", "print_config")
# Of Lightning's command line, up to the first dot; its parser checks the rest.
TRAINER = (
    *("seed_everything", "trainer", "model", "data", "optimizer", "lr_scheduler", "early_stopping", "checkpoint"),
    *("ckpt_path", "weights_only", "verbose"),
)


class UnknownOptionError(CefamError):
    """An option that a verb does not have."""

    status = 2


def module_of(verb: str) -> str:
    """The module of a verb; its function has the same name."""
    return f"cefam.commands.{'import_' if verb == 'import' else verb.replace('-', '_')}"


def check_names(verb: str, arguments: Sequence[str]) -> None:
    """Check the options' names up to the first dot; unambiguous abbreviations are left to the parser.

    Args:
        verb: name of the verb.
        arguments: command-line arguments.
    """
    known = sorted({*ALWAYS, *option_names(verb)})
    for word in arguments:
        name = word.partition("=")[0].partition(".")[0].removeprefix("--").replace("-", "_")
        if word.startswith("--") and name and not any(each.startswith(name) for each in known):
            hint = near(name, known).replace("'", "`").replace("`", "`--", 1)
            raise UnknownOptionError(f"There is no option `--{name}`.{hint} `cefam {verb} --help` lists the options.")


@cache
def option_names(verb: str) -> tuple[str, ...]:
    """Parameters of a verb's function; those of Lightning's command line if it has none."""
    module = module_of(verb)
    return tuple(_parameters(module.rpartition(".")[2], module)) or TRAINER


def _parameters(function: str, module: str) -> Iterator[str]:
    """Names of a function's parameters, which is defined in the module or imported from another one."""
    path = PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            yield from (each.arg for each in (*node.args.args, *node.args.kwonlyargs))
        for name in node.names if isinstance(node, ast.ImportFrom) else ():
            if function in (name.name, name.asname):
                yield from _parameters(name.name, str(node.module))  # type: ignore[attr-defined]
