"""Run a verb: signals and errors are reported in one sentence and converted to an exit status."""

import os
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Any

from cefam.commands import _signals
from cefam.commands._configs import with_configs_first
from cefam.commands._names import check_names, module_of
from cefam.errors import CefamError, CefamWarning


def run_verb(verb: str, arguments: list[str]) -> int:
    """Run a verb: the function of its module that has its name, or ``run(arguments)`` if there is one.

    Returns:
        The exit status.
    """
    try:
        with _signals.as_exceptions():
            check_names(verb, arguments)
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # a class_path may name a class in the user's folder
        module = import_module(module_of(verb))
        run = getattr(module, "run", None)
        if run is None:
            from cefam.commands._options import call

            run = partial(call, verb, getattr(module, module_of(verb).rpartition(".")[2]))
        with _signals.as_exceptions(), warnings.catch_warnings():
            warnings.showwarning = _one_line(verb, warnings.showwarning)
            warnings.filterwarnings("always", category=CefamWarning)  # part of a verb's output
            run(with_configs_first(arguments))
    except (KeyboardInterrupt, _signals.Ended, SystemExit) as error:
        return _stopped(verb, error)
    except BrokenPipeError:  # the reader of the output has gone
        raise
    except Exception as error:
        if _signals.received():  # the error may be a consequence of the signal
            return _stopped(verb, error)
        return _failed(verb, _written_for_the_user(error))
    return 0


def _one_line(verb: str, show: Callable[..., None]) -> Callable[..., None]:
    """A replacement of ``warnings.showwarning`` that prints cefam's warnings without source location."""

    def shown(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, CefamWarning):
            print(f"cefam {verb}: warning: {message}", file=sys.stderr)
        else:
            show(message, category, *where, **more)

    return shown


def _written_for_the_user(error: Exception) -> Exception:
    """The first CefamError among the error and its causes, or else the error: the parser wraps errors of loaders."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, CefamError):
            return cause
        cause = cause.__cause__
    return error


def _stopped(verb: str, error: BaseException) -> int:
    """The exit status of a stopped verb; a Trainer converts Ctrl-C to SystemExit."""
    number = _signals.received() or (signal.SIGINT if isinstance(error, KeyboardInterrupt) else None)
    if number is None:
        raise error  # a regular exit, such as --help
    if isinstance(error, SystemExit) and error.code == 128 + number:
        return 128 + number  # a nested verb has already printed the message
    word = "interrupted" if number == signal.SIGINT else "terminated"
    with suppress(OSError):  # the terminal may be gone
        print(f"cefam {verb}: {word}; finished files are kept.", file=sys.stderr)
    return 128 + number


def _failed(verb: str, error: Exception) -> int:
    """Print an error in one sentence; for an unexpected error, save the traceback to a file."""
    error = _lacks_a_package(error) or error
    expected = isinstance(error, CefamError) or _is_of_the_system(error) or _is_of_a_library(error)
    if not expected and os.environ.get("CEFAM_TRACEBACK"):
        raise error
    store = _store()
    if store is not None and os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(2)  # rank 0 reports first: if it fails too, it terminates this process meanwhile
    try:
        if store is not None and store.check([f"cefam/failed/{error}" if expected else "cefam/failed"]):
            return 1  # another process has reported this error, or its failure caused this one
    except RuntimeError:  # the process that hosts the store has ended
        if not expected:
            print(f"cefam {verb}: another process has ended, and with it this one: see its message.", file=sys.stderr)
            return 1
    print(f"cefam {verb}: {_sentence(error) if expected else _unexpected(verb, error)}", file=sys.stderr)
    with suppress(RuntimeError):
        if store is not None:
            store.set(f"cefam/failed/{error}", verb)
            store.set("cefam/failed", verb)
    return getattr(error, "status", 1) if expected else 70


def _is_of_the_system(error: Exception) -> bool:
    """Whether the operating system rejected a file: no permission, no space, a folder instead of a file."""
    return isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileNotFoundError)


def _lacks_a_package(error: Exception) -> CefamError | None:
    """The error for a missing package; the parser hides it among the errors of other types that it tries."""
    found = re.search(r"Requirement '([^']+)' not met|^No module named '([\w.]+)'", str(error))
    if found is None:
        return None
    package = found[1] or found[2].partition(".")[0]
    return CefamError(f"The package {package} is needed and not installed: `pip install '{package}'`.")


def _is_of_a_library(error: Exception) -> bool:
    """Whether Lightning rejected the Trainer's options (e.g. no GPU), or W&B raised an error (e.g. not logged in)."""
    return type(error).__name__ == "MisconfigurationException" or type(error).__module__.startswith("wandb.")


def _store() -> Any:
    """The key-value store shared by the processes of a distributed run, or ``None``."""
    if "torch" not in sys.modules:
        return None
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    return torch.distributed.distributed_c10d._get_default_store()


def _unexpected(verb: str, error: Exception) -> str:
    """The message for an unexpected error; the traceback is saved to a file."""
    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile("w", prefix=f"cefam-{verb}-", suffix=".txt", delete=False) as file:
            file.write(text)
        where = f"The traceback is in {file.name}."
    except OSError:  # e.g. no space left
        where = f"The traceback could not be kept: {text}"
    message = _sentence(error)
    return (
        f"Unexpected error: {type(error).__name__}: {message}{'' if message.endswith('.') else '.'} {where} If no option, class or file "
        f"of yours explains it, please report it."
    )


def _sentence(error: Exception) -> str:
    """The message of an error in one line; for an error from a data worker, the last line of its traceback."""
    text = str(error).strip()
    if "Original Traceback" in text:
        text = text.splitlines()[-1].split(": ", 1)[-1]
    return " ".join(text.split())
