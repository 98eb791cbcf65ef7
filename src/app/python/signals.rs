//! Python's view of the signals that a worker handles itself.
//!
//! gunicorn's workers set Python functions for them. Applications and libraries ask for these, call them from handlers of
//! their own, and put them back (`signal.getsignal`, `signal.signal`). So such functions stand in Python's table here
//! as well. The kernel has the server's own handler all the same: a stop must not wait for the main thread to run
//! Python. An application's `signal.signal` puts Python's handler in the kernel's table, and from then on it is
//! Python that decides.

use pyo3::exceptions::{PyException, PyKeyboardInterrupt};
use pyo3::prelude::*;
use tracing::{debug, error};

use super::wsgi::traceback;
use crate::sys::signal::{self, Signal};

/// Imports what workers need of Python here, in the master: they may run as a user who cannot read Python's library.
///
/// # Errors
/// What Python raises.
pub(super) fn prepare(py: Python<'_>) -> PyResult<()> {
    for module in ["signal", "ringhorn._signals"] {
        py.import(module)?;
    }
    Ok(())
}

/// What stands in Python's table for the signals of a worker.
pub(super) struct Handlers(Vec<Entry>);

struct Entry {
    signal: Signal,
    function: Py<PyAny>,
    /// The kernel's handler while Python decides.
    pythons: usize,
}

impl Handlers {
    /// Shows Python the functions. Called in a worker, on its main thread, before it loads its application; what a preloaded
    /// application or a hook has set before is gone then, as in gunicorn.
    ///
    /// # Errors
    /// What Python raises, or the kernel refuses.
    pub(super) fn show(py: Python<'_>) -> PyResult<Self> {
        let module = py.import("signal")?;
        let exit = wrap_pyfunction!(handle_exit, py)?.into_any();
        let quit = wrap_pyfunction!(handle_quit, py)?.into_any();
        let usr1 = wrap_pyfunction!(handle_usr1, py)?.into_any();
        let winch = wrap_pyfunction!(handle_winch, py)?.into_any();
        let mut entries = Vec::new();
        for (signal, function) in [
            (Signal::TERM, &exit),
            (Signal::INT, &quit),
            (Signal::QUIT, &quit),
            (Signal::USR1, &usr1),
            (Signal::WINCH, &winch),
        ] {
            // One that comes between these calls is Python's, whose function does the same a little later.
            module.call_method1("signal", (signal.as_raw(), function))?;
            let pythons = signal::handler(signal)?;
            signal::handle_again(signal)?;
            entries.push(Entry { signal, function: function.clone().unbind(), pythons });
        }
        Ok(Self(entries))
    }

    /// Acts natively again where an application, while it was loaded, has set a handler and put ours back. Returns whether
    /// one of its own stands for a signal that stops the worker.
    ///
    /// # Errors
    /// What Python raises, or the kernel refuses.
    pub(super) fn reclaim(&self, py: Python<'_>) -> PyResult<bool> {
        let module = py.import("signal")?;
        let mut replaced = false;
        for Entry { signal, function, pythons } in &self.0 {
            let set = module.call_method1("getsignal", (signal.as_raw(),))?;
            replaced |= set.is_callable()
                && !set.is(function)
                && matches!(*signal, Signal::TERM | Signal::INT | Signal::QUIT);
            // Another handler in the kernel's table was put there behind Python's back: by faulthandler, or a library in C.
            if set.is(function) && signal::handler(*signal)? == *pythons {
                signal::handle_again(*signal)?;
            }
        }
        Ok(replaced)
    }
}

// The arguments are those of any handler. They are not looked at, as in gunicorn: whoever calls one may pass anything.

/// Makes this worker leave when it has answered the requests in hand.
#[pyfunction]
#[pyo3(signature = (sig=None, frame=None))]
fn handle_exit(sig: Option<&Bound<'_, PyAny>>, frame: Option<&Bound<'_, PyAny>>) {
    let _ = (sig, frame);
    signal::inject(Signal::TERM);
}

/// Makes this worker leave at once.
#[pyfunction]
#[pyo3(signature = (sig=None, frame=None))]
fn handle_quit(sig: Option<&Bound<'_, PyAny>>, frame: Option<&Bound<'_, PyAny>>) {
    let _ = (sig, frame);
    signal::inject(Signal::QUIT);
}

/// Opens the log files of this worker again.
#[pyfunction]
#[pyo3(signature = (sig=None, frame=None))]
fn handle_usr1(sig: Option<&Bound<'_, PyAny>>, frame: Option<&Bound<'_, PyAny>>) {
    let _ = (sig, frame);
    signal::inject(Signal::USR1);
}

/// Does nothing: terminals tell of their size.
#[pyfunction]
#[pyo3(signature = (sig=None, frame=None))]
fn handle_winch(sig: Option<&Bound<'_, PyAny>>, frame: Option<&Bound<'_, PyAny>>) {
    let _ = (sig, frame);
}

/// Deals with what a handler of the application raised while the main thread was idle. What would end a Python program
/// ends this worker (in gunicorn it does so by passing through the worker's loop); anything else is a failure of the
/// handler alone.
pub(super) fn raised_when_idle(py: Python<'_>, error: &PyErr) {
    if error.is_instance_of::<PyException>(py) {
        error!("a signal handler of the application failed\n{}", traceback(py, error));
    } else {
        leave(py, error);
    }
}

/// The same for what a request failed with. A `sys.exit()` of the request itself is the request's own affair.
pub(super) fn raised_in_request(py: Python<'_>, error: &PyErr) {
    if error.is_instance_of::<PyException>(py) {
        return;
    }
    let handlers = py
        .import("ringhorn._signals")
        .and_then(|module| module.call_method1("raised_by_handler", (error.value(py), error.traceback(py))))
        .and_then(|answer| answer.extract::<bool>());
    match handlers {
        Ok(true) => leave(py, error),
        Ok(false) => {}
        // A second signal, while this one was looked at.
        Err(failure) if !failure.is_instance_of::<PyException>(py) => leave(py, &failure),
        Err(failure) => debug!("cannot tell who raised an exception: {failure}"),
    }
}

fn leave(py: Python<'_>, error: &PyErr) {
    debug!("a signal handler of the application ends this worker: {error}");
    signal::inject(if error.is_instance_of::<PyKeyboardInterrupt>(py) { Signal::INT } else { Signal::TERM });
}
