"""Convert Ctrl-C, SIGTERM and SIGHUP to exceptions, so that a stopped verb closes its files and removes partial ones."""

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
    """Raised by the signal handler on SIGTERM or SIGHUP."""


_received: list[int] = []  # global, because signal handlers are per process
_handlers: dict[int, Any] = {}


@contextmanager
def as_exceptions() -> Iterator[None]:
    """Raise signals as exceptions, and restore the handlers on exit (an interrupted Trainer leaves Ctrl-C disabled)."""
    _received.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    owner = os.getpid()

    def handle(number: int, frame: Any) -> None:
        if os.getpid() != owner:  # in a forked data worker, ignore Ctrl-C and let other signals end it
            signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
            if number != signal.SIGINT:
                os.kill(os.getpid(), number)
            return
        _received.append(number)
        raise KeyboardInterrupt if number == signal.SIGINT else Ended

    for number, handler in before.items():
        # Keep ignored signals ignored (nohup), except SIGINT, which shells disable for background processes.
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
    """Restore the handlers of the running verb after a library has replaced them."""
    for number, handler in _handlers.items():
        signal.signal(number, handler)


def received() -> int | None:
    """The first signal received since the verb began, or ``None``."""
    return _received[0] if _received else None
