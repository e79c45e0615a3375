"""Keeps a child process from outliving the process that started it with a pipe as its standard input."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


def end_with_parent(last_act: Callable[[], None] = lambda: None) -> None:
    """Ends this process at once, with code 1, when its standard input closes: then the parent is gone.

    Args:
        last_act: called before that, on a thread of its own.
    """

    def watch() -> None:
        try:
            while os.read(0, 4096):  # not sys.stdin: its lock, held by a daemon thread, breaks the interpreter's exit
                pass
        except OSError:  # it was closed from the start
            pass
        try:
            last_act()
        finally:
            os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
