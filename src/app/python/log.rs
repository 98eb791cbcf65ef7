//! Python's `logging` in the place of the server's own logs, for settings that ask for it.
//!
//! Threads that are attached to the interpreter hand a message to Python at once. The others, the I/O
//! thread above all, put it in a bounded queue, which a thread of its own empties: a handler of Python
//! that blocks costs messages then, not requests.

use std::cell::Cell;
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::sync::{Arc, Condvar, Mutex, OnceLock, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use tracing::{error, warn};

use super::hooks::configuration;
use super::object::is_attached;
use super::wsgi::traceback;
use crate::config::Settings;
use crate::limits::LOG_QUEUE_LINES_MAX;
use crate::observe::{self, Level, LogTarget, Sink};
use crate::sync::lock;
use crate::sys::signal;

/// The log of this process, when Python writes it.
static LOG: OnceLock<Arc<PythonLog>> = OnceLock::new();

thread_local! {
    /// Whether this thread is in Python's logger already: what is said there goes to the server's own log.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// A logger of Python, and the messages that wait for it.
pub(super) struct PythonLog {
    logger: Py<PyAny>,
    /// Whether it takes the server's messages, too, and not only its access lines.
    messages: bool,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    lines: VecDeque<(Level, String)>,
    /// Messages for which there was no room.
    lost: u64,
    reopen: bool,
    /// Whether somebody is writing what was taken out.
    writing: bool,
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.lost == 0 && !self.reopen
    }
}

/// Makes the logger that `settings` ask for, and sends all messages to it.
///
/// # Errors
/// What Python raises: no such class, an invalid configuration, a file that cannot be opened.
pub(super) fn divert(py: Python<'_>, settings: &Settings) -> PyResult<()> {
    let made = py.import("ringhorn._logger")?.call_method1("start", (configuration(py, settings)?,))?;
    let (logger, level) = made.extract()?;
    set_level(level);
    install(logger, true);
    Ok(())
}

/// Whether somebody has given a logger, `error` or `access`, a filter, a handler, a level or a formatter that the
/// server did not give it.
fn is_changed(py: Python<'_>, name: &str) -> PyResult<bool> {
    py.import("ringhorn._log")?.call_method1("changed", (name,))?.is_truthy()
}

/// Sends this process's messages through `gunicorn.error` when somebody has changed that logger, as they would go
/// in gunicorn.
///
/// # Errors
/// What Python raises.
pub(super) fn divert_messages(py: Python<'_>, settings: &Settings) -> PyResult<()> {
    if LOG.get().is_none() && is_changed(py, "error")? {
        adopt(py, settings, true, false)?;
    }
    Ok(())
}

/// Tells the loggers of a reload's `loglevel` and `accesslog`.
///
/// # Errors
/// What Python raises.
pub(super) fn configure(py: Python<'_>, settings: &Settings) -> PyResult<()> {
    let configure = py.import("ringhorn._log")?.getattr("configure")?;
    configure.call1((settings.loglevel.name(), access_target(settings))).map(drop)
}

/// `accesslog` as the setting names it.
pub(super) fn access_target(settings: &Settings) -> Option<&OsStr> {
    match &settings.accesslog {
        LogTarget::Off => None,
        LogTarget::Standard => Some(OsStr::new("-")),
        LogTarget::File(path) => Some(path.as_os_str()),
    }
}

/// Decides, once per worker, who writes its logs: Python, where somebody has changed a logger. Returns whether
/// access lines are to be records of `gunicorn.access`.
///
/// # Errors
/// What Python raises.
pub(super) fn decide(py: Python<'_>, settings: &Settings) -> PyResult<bool> {
    if settings.python_log {
        return Ok(true);
    }
    let errors = LOG.get().is_some() || is_changed(py, "error")?;
    let mut access = settings.accesslog != LogTarget::Off && is_changed(py, "access")?;
    if access && settings.access_log_format.is_json() {
        warn!(
            "filters, handlers, level and formatters of gunicorn.access do not apply: access_log_format json is \
             written by the server's own log only"
        );
        access = false;
    }
    if errors || access {
        adopt(py, settings, errors, access)?;
    }
    Ok(access)
}

fn adopt(py: Python<'_>, settings: &Settings, errors: bool, access: bool) -> PyResult<()> {
    let values = configuration(py, settings)?;
    let made = py.import("ringhorn._logger")?.call_method1("adopt", (values, errors, access))?;
    let (logger, level) = made.extract()?;
    if errors {
        set_level(level);
    }
    install(logger, errors);
    Ok(())
}

fn install(logger: Py<PyAny>, messages: bool) {
    let log = Arc::new(PythonLog { logger, messages, queue: Mutex::default(), changed: Condvar::new() });
    if LOG.set(Arc::clone(&log)).is_ok() {
        observe::divert(log);
    }
}

/// Takes the least level of Python's logger for the server's messages.
fn set_level(level: i32) {
    observe::set_level(match level {
        ..=10 => Level::Debug,
        11..=20 => Level::Info,
        21..=30 => Level::Warning,
        31..=40 => Level::Error,
        _ => Level::Critical,
    });
}

/// The logger, when Python writes the logs.
pub(super) fn logger(py: Python<'_>) -> Option<Py<PyAny>> {
    LOG.get().map(|log| log.logger.clone_ref(py))
}

/// Logs that a request failed, with its exception in the record. False when Python does not write the logs.
pub(super) fn request_failed(py: Python<'_>, method: &str, uri: &str, error: &PyErr) -> bool {
    let Some(log) = LOG.get().filter(|log| log.messages) else { return false };
    if let Some(statsd) = observe::statsd::metrics() {
        statsd.logged(Level::Error);
    }
    let told = py.import("ringhorn._logger").and_then(|module| {
        module.call_method1("failed", (&log.logger, method, uri, error.value(py), error.traceback(py)))
    });
    told.is_ok()
}

/// Starts the thread that writes what threads without an interpreter say. Called in each worker.
pub(super) fn start_writer() {
    let Some(log) = LOG.get() else { return };
    let log = Arc::clone(log);
    let started = thread::Builder::new().name("ringhorn-pylog".into()).spawn(move || {
        // Signals are the main thread's.
        if let Err(error) = signal::block_all_in_this_thread() {
            error!("cannot block signals: {error}");
            return;
        }
        loop {
            let queue = lock(&log.queue);
            drop(log.changed.wait_while(queue, |queue| queue.is_empty()));
            Python::attach(|py| log.drain(py));
        }
    });
    if let Err(error) = started {
        error!("cannot start the thread that writes the log: {error}");
    }
}

impl PythonLog {
    /// Writes what waits.
    fn drain(&self, py: Python<'_>) {
        let taken = {
            // Whoever holds it holds it for a few instructions, and without waiting for the interpreter.
            let mut queue = lock(&self.queue);
            if queue.is_empty() {
                return;
            }
            let taken = std::mem::take(&mut *queue);
            queue.writing = true;
            taken
        };
        if taken.reopen {
            self.call(py, "reopen_files", ());
        }
        for (level, text) in taken.lines {
            self.write(py, level, &text);
        }
        if taken.lost > 0 {
            self.write(
                py,
                Level::Warning,
                &format!("{} messages were lost: the log was too slow", taken.lost),
            );
        }
        lock(&self.queue).writing = false;
        self.changed.notify_all();
    }

    fn write(&self, py: Python<'_>, level: Level, text: &str) {
        let method = match level {
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warning => "warning",
            Level::Error => "error",
            Level::Critical => "critical",
        };
        self.call(py, method, (text,));
    }

    fn call<'py>(&self, py: Python<'py>, method: &str, arguments: impl pyo3::call::PyCallArgs<'py>) {
        let outer = INSIDE.replace(true);
        if let Err(error) = self.logger.bind(py).call_method1(method, arguments) {
            error!("logger.{method} failed\n{}", traceback(py, &error));
        }
        INSIDE.set(outer);
    }
}

impl Sink for PythonLog {
    fn line(&self, level: Level, text: &str) -> bool {
        if !self.messages || INSIDE.get() {
            return false;
        }
        if is_attached() {
            Python::attach(|py| {
                self.drain(py);
                self.write(py, level, text);
            });
            return true;
        }
        let mut queue = match self.queue.try_lock() {
            Ok(queue) => queue,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // Never waits. In a child that the application forked the lock may be held for ever.
            Err(TryLockError::WouldBlock) => return false,
        };
        if queue.lines.len() < LOG_QUEUE_LINES_MAX {
            queue.lines.push_back((level, text.to_owned()));
        } else {
            queue.lost += 1;
        }
        drop(queue);
        self.changed.notify_all();
        true
    }

    fn metric(&self, text: &str, name: &str, value: u64, kind: &str) -> bool {
        // The master has no other thread that could say it.
        if !self.messages || !is_attached() {
            return false;
        }
        Python::attach(|py| {
            let told = py.import("ringhorn._logger").and_then(|module| {
                module.call_method1("metric", (&self.logger, text, name, value, kind)).map(drop)
            });
            if let Err(error) = told {
                error!("logger.debug failed\n{}", traceback(py, &error));
            }
        });
        true
    }

    fn reopen(&self) {
        if is_attached() {
            Python::attach(|py| self.call(py, "reopen_files", ()));
            return;
        }
        lock(&self.queue).reopen = true;
        self.changed.notify_all();
    }

    fn flush(&self, patience: Duration) {
        if is_attached() {
            Python::attach(|py| self.drain(py));
            return;
        }
        let end = Instant::now() + patience;
        let mut queue = lock(&self.queue);
        while !queue.is_empty() || queue.writing {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            queue = match self.changed.wait_timeout(queue, left) {
                Ok((queue, _)) => queue,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}
