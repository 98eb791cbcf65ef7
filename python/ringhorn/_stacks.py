"""The Python stacks of a worker's threads, for the log of requests that take too long."""

from __future__ import annotations

import os
import sys
import threading
import traceback


def of(thread: int | None, own: int) -> str:
    """Give the stack of the thread with this identifier, or those of all threads but `own`."""
    # Not `threading.enumerate()`: its lock may be what everybody waits for.
    names = {ident: known.name for ident, known in dict(threading._active).items()}
    text = []
    for ident, frame in sys._current_frames().items():
        if ident == thread or (thread is None and ident != own):
            if thread is None:
                text.append(f"Thread {ident:#x} ({names.get(ident, 'runner')}), the latest call last:\n")
            text += traceback.format_list(_from_the_application_on(traceback.extract_stack(frame)))
    return "".join(text)


def _from_the_application_on(stack: list[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    """Leave out how the server itself was started, which is below every stack of the main thread."""
    own = os.path.dirname(__file__)
    first = max((at + 1 for at, frame in enumerate(stack) if frame.filename.startswith(own)), default=0)
    return stack[first:] or stack
