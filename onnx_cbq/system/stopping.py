"""Ctrl-C and SIGTERM end a command with one line, wherever it is: in Python, in an import, deep inside a library.

Python runs the handler of a signal between two of its own instructions, so a library that computes for an hour is
not disturbed for an hour. A thread therefore waits for signals too (their numbers come through a pipe), and ends the
process itself where the command has not done so within `PATIENCE` seconds, or when a second signal comes.

The standard library only: this is the first thing that a command imports.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from onnx_cbq.system.temporary import remove_all

CODE = 130
MESSAGE = "stopped; no unfinished file was left behind"
PATIENCE, LONG_PATIENCE = 2.0, 120.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Watch:
    """What is known of signals: whether they raise yet, how long an answer may take, and when both came last."""

    def __init__(self) -> None:
        self.raising = False
        self.patience = PATIENCE
        self.signalled_at = self.answered_at = -1.0
        self.last_word = threading.Lock()

    @property
    def pending(self) -> bool:
        return self.signalled_at > self.answered_at


_watch = _Watch()


def watch() -> None:
    """Take over both signals, even if a shell's background job was told to ignore Ctrl-C: then it was sent on purpose.

    Until `start_raising` they end the process at once.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in _SIGNALS:
        signal.signal(number, _handle)
    threading.Thread(target=_wait, args=(reader,), name="signals", daemon=True).start()


def start_raising() -> None:
    """From now on there may be something to clean up: signals raise KeyboardInterrupt in the main thread."""
    _watch.raising = True


def ignore() -> None:
    """The command is done, and nothing can be stopped any more."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def is_pending() -> bool:
    """Whether a signal came that nobody answered: whatever goes wrong then comes of it."""
    return _watch.pending


@dataclass
class Interruption:
    """Whether a signal came."""

    came: bool = False


@contextlib.contextmanager
def going_on() -> Iterator[Interruption]:
    """A signal ends what is inside, not the command: a training that is stopped is used as far as it came.

    What is inside may take long to notice, as a step of a large net does.
    """
    found = Interruption()
    before, _watch.patience = _watch.patience, LONG_PATIENCE
    try:
        yield found
    except KeyboardInterrupt:
        _watch.answered_at = time.monotonic()
        found.came = True
    finally:
        _watch.patience = before


def leave(*, said: bool = False) -> None:
    """Say that the command was stopped, unless it was `said`, and end the process without waiting for threads."""
    # The other thread may be about to say the same.
    if not _watch.last_word.acquire(blocking=False):
        time.sleep(PATIENCE)
    remove_all()
    if not said:
        with contextlib.suppress(OSError):
            # A progress bar may stand in this line, and have hidden the cursor.
            start = "\r\x1b[K\x1b[?25h" if os.isatty(2) else ""
            os.write(2, f"{start}onnx-cbq: {MESSAGE}\n".encode())
    os._exit(CODE)


def _handle(*_: object) -> None:
    if not _watch.raising:
        leave()
    _watch.signalled_at = time.monotonic()
    raise KeyboardInterrupt


def _wait(reader: int) -> None:
    while True:
        begun = time.monotonic()
        _read_signal(reader)
        end = time.monotonic() + _watch.patience
        while _watch.answered_at < begun:
            again, _, _ = select.select([reader], [], [], 0.02)
            if again or time.monotonic() > end:
                leave()


def _read_signal(reader: int) -> None:
    while os.read(reader, 1)[0] not in _SIGNALS:
        pass
