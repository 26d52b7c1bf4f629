"""Ctrl-C, SIGTERM and SIGHUP are exceptions while a verb runs: open files are closed and half-written ones removed."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

SIGNALS = [signal.SIGINT, signal.SIGTERM]
if hasattr(signal, "SIGHUP"):
    SIGNALS.append(signal.SIGHUP)


class Ended(BaseException):
    """SIGTERM or SIGHUP came: raised where the program is."""


# Handlers of signals belong to the process, and so does what they note.
_came: list[int] = []
_held: list[str] = []
_open: list[bool] = []  # one entry for each `caught` that is open


@contextmanager
def caught() -> Iterator[None]:
    """While open, the signals are exceptions; afterwards they are as before (an interrupted Trainer leaves Ctrl-C off)."""
    _came.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, hook = {number: signal.getsignal(number) for number in SIGNALS}, sys.unraisablehook
    sys.unraisablehook = _unraisable
    _open.append(True)
    for number, handler in before.items():
        # What is ignored stays so (nohup), but for Ctrl-C, which shells switch off for all that runs in the background.
        if handler is not signal.SIG_IGN or number == signal.SIGINT:
            signal.signal(number, end)
    try:
        yield
    finally:
        _open.pop()
        sys.unraisablehook = hook
        for number, handler in before.items():  # None: it was not set from Python
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def held(what: str) -> Iterator[None]:
    """While open, signals wait: they are raised when it closes."""
    _held.append(what)
    try:
        yield
    finally:
        _held.remove(what)
    if _came:
        _raise()


def end(number: int, frame: Any) -> None:
    """The handler."""
    _came.append(number)
    if not _held:
        _raise()


def _unraisable(what: Any) -> None:
    """Send a signal again that came where Python drops exceptions: in a destructor, or in the middle of a fork.

    What else is dropped once a signal has come is the noise of being ended: of data workers that are gone, say.
    """
    if not _came:
        sys.__unraisablehook__(what)
    elif issubclass(what.exc_type, (Ended, KeyboardInterrupt)):
        threading.Timer(0.1, os.kill, (os.getpid(), _came[-1])).start()


def _leave_to_the_parent() -> None:
    """In a forked process, a data worker say: Ctrl-C is the parent's to handle, the others end it without a word."""
    for number in SIGNALS if _open else ():
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
    if _open:
        sys.excepthook = _but_lost_connections


def _but_lost_connections(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Python's word on an error that nobody caught, but for those of a worker whose parent went in the middle of a handover."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_the_parent)


def _raise() -> None:
    raise KeyboardInterrupt if _came[-1] == signal.SIGINT else Ended


def first() -> int | None:
    """The first signal that has come; what came after it must not end the sentence about it and is ignored from now on."""
    for number in set(_came):
        signal.signal(number, signal.SIG_IGN)
    return _came[0] if _came else None
