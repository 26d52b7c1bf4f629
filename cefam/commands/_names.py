"""Names of a verb's options, read from its source: a misspelt option is refused before torch is imported, which takes seconds."""

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


def check_names(verb: str, where: str, arguments: Sequence[str]) -> None:
    """Check the options' names up to the first dot; unambiguous abbreviations are left to the parser.

    Args:
        verb: name of the verb, for the message.
        where: its function, "module:function".
        arguments: command-line arguments.

    Raises:
        UnknownOptionError: for the first unknown name, with a similar one.
    """
    known = sorted({*ALWAYS, *option_names(where.partition(":")[0])})
    for word in arguments:
        name = word.partition("=")[0].partition(".")[0].removeprefix("--").replace("-", "_")
        if word.startswith("--") and name and not any(each.startswith(name) for each in known):
            hint = near(name, known).replace("'", "`").replace("`", "`--", 1)
            raise UnknownOptionError(f"There is no option `--{name}`.{hint} `cefam {verb} --help` lists the options.")


@cache
def option_names(module: str) -> tuple[str, ...]:
    """Parameters of the function that a verb's module passes to ``call``; those of Lightning's command line if there is none."""
    tree = _tree(module)
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "call":
            found = tuple(_parameters(ast.unparse(call.args[1]), tree))
            if found:
                return found
    return TRAINER


def _tree(module: str) -> ast.Module:
    path = PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def _parameters(function: str, tree: ast.Module) -> Iterator[str]:
    """Names of a function's parameters, which is defined in the module or imported from another one."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            yield from (each.arg for each in (*node.args.args, *node.args.kwonlyargs))
        if isinstance(node, ast.ImportFrom) and any(name.name == function for name in node.names):
            yield from _parameters(function, _tree(str(node.module)))
