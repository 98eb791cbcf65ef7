"""Whether it was a signal that ended a request."""

from __future__ import annotations

import signal
import threading
from types import CodeType, TracebackType


def raised_by_handler(error: BaseException, trace: TracebackType | None) -> bool:
    """Whether a handler of a signal that stops a worker raised this, in whatever code the signal met."""
    if isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Python's own handler, which an application has asked for, leaves no trace in the traceback. Handlers run on
        # the main thread only.
        return threading.current_thread() is threading.main_thread()
    codes = [_code(signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)]
    while trace is not None:
        if trace.tb_frame.f_code in codes:
            return True
        trace = trace.tb_next
    return False


def _code(handler: object) -> CodeType | None:
    """The code of a function, of a method, or of an object that can be called."""
    code = getattr(handler, "__code__", None)
    if code is None and callable(handler):
        code = getattr(type(handler).__call__, "__code__", None)
    return code if isinstance(code, CodeType) else None
