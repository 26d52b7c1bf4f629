"""Ctrl-C, SIGTERM and SIGHUP are exceptions while a verb runs: open files are closed and half-written ones removed."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = [signal.SIGINT, signal.SIGTERM]
if hasattr(signal, "SIGHUP"):
    SIGNALS.append(signal.SIGHUP)


class Ended(BaseException):
    """SIGTERM or SIGHUP came: raised where the program is."""


_received: list[int] = []  # handlers belong to the process, and so does what they note
_handlers: dict[int, Any] = {}


@contextmanager
def as_exceptions() -> Iterator[None]:
    """While open, signals are exceptions; afterwards they are as before (an interrupted Trainer leaves Ctrl-C off)."""
    _received.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    owner = os.getpid()

    def handle(number: int, frame: Any) -> None:
        if os.getpid() != owner:  # a forked data worker: Ctrl-C is its parent's to handle, the others end it
            signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
            if number != signal.SIGINT:
                os.kill(os.getpid(), number)
            return
        _received.append(number)
        raise KeyboardInterrupt if number == signal.SIGINT else Ended

    for number, handler in before.items():
        # What is ignored stays so (nohup), but for Ctrl-C, which shells switch off for all that runs in the background.
        if handler is not signal.SIG_IGN or number == signal.SIGINT:
            signal.signal(number, handle)
            _handlers[number] = handle
    try:
        yield
    finally:
        _handlers.clear()
        for number, handler in before.items():  # None: it was not set from Python
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def take_back() -> None:
    """Set the handlers of the running verb again, where a library has set its own."""
    for number, handler in _handlers.items():
        signal.signal(number, handler)


def received() -> int | None:
    """The first signal that has come since the verb began."""
    return _received[0] if _received else None
