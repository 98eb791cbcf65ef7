//! What the server tells about itself: its own messages, and a line per request.
//!
//! - [`error_log`] takes `tracing` events and writes them as gunicorn writes its error log. It is
//!   used in every process and writes at once where it can, because these lines are few and matter most
//!   when things go wrong; `outlet` keeps them where nobody takes them.
//! - [`access_log`] turns the facts of one request into a line, and [`writer`] keeps those lines
//!   away from the threads that serve: a slow disk or a full pipe costs lines, not requests.
//! - [`prometheus`] shows what workers and master have counted.
//! - [`statsd`] sends a datagram per request, when somebody collects metrics.
//!
//! Nothing here decides anything; without this module the server would serve the same.

pub mod access_log;
pub mod error_log;
mod outlet;
pub mod prometheus;
pub mod statsd;
pub mod writer;

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::fs::{Gid, Uid};

pub use access_log::{AccessFormat, AccessRecord};
pub use error_log::{CRITICAL, ErrorLog, Level};
pub use outlet::Hold;
pub use writer::LogWriter;

/// Where a log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    /// Nowhere.
    Off,
    /// Standard output for the access log, standard error for the error log.
    Standard,
    /// A file that is appended to.
    File(PathBuf),
}

impl fmt::Display for LogTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("nowhere"),
            Self::Standard => f.write_str("-"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// The error log of this process, for [`reopen`].
static ERROR_LOG: OnceLock<Arc<ErrorLog>> = OnceLock::new();

/// What takes the place of the error log, when somebody wants its messages otherwise.
static SINK: OnceLock<Arc<dyn Sink>> = OnceLock::new();

/// A destination of messages other than the error log's file.
pub trait Sink: Send + Sync {
    /// Takes a message: false leaves it to the error log. Must not block a thread that serves connections.
    fn line(&self, level: Level, text: &str) -> bool;
    /// Takes a metric of the master, with the message that tells of it and its kind, `gauge` or `histogram`. Whoever
    /// writes the messages may send metrics of their own. False when it did not.
    fn metric(&self, text: &str, name: &str, value: u64, kind: &str) -> bool;
    /// Opens files again, after they were moved away (USR1).
    fn reopen(&self);
    /// Waits at most `patience` until every message that was taken has been written.
    fn flush(&self, patience: Duration);
}

/// Sends the messages from here on to `sink`. Only the first one becomes the process's.
pub fn divert(sink: Arc<dyn Sink>) {
    let _ = SINK.set(sink);
}

/// Gives a metric of the master, and the message that tells of it, to the sink. False when there is none that took it.
pub fn metric(text: &str, name: &str, value: u64, kind: &str) -> bool {
    SINK.get().is_some_and(|sink| sink.metric(text, name, value, kind))
}

/// Waits, for a bounded time, until the messages so far are written: the process is about to end.
pub fn flush() {
    let patience = Duration::from_millis(crate::limits::LOG_FLUSH_MS);
    if let Some(sink) = SINK.get() {
        sink.flush(patience);
    }
    if let Some(log) = ERROR_LOG.get() {
        log.flush(patience);
    }
}

/// Keeps other threads from logging while this process forks; a worker then calls [`Hold::begin_worker`].
#[must_use]
pub fn hold() -> Option<Hold<'static>> {
    ERROR_LOG.get().map(|log| log.hold())
}

/// From here on this process, which must not fork any more, writes messages that wait by a thread of its own.
pub fn allow_thread() {
    if let Some(log) = ERROR_LOG.get() {
        log.allow_thread();
    }
}

/// Offers messages that wait to the log once more, for a process without threads. Returns whether some still wait.
pub fn retry() -> bool {
    ERROR_LOG.get().is_some_and(|log| log.retry())
}

/// Opens the error log and makes it the destination of all messages. `capture` sends this process's standard
/// output and error to its file, too (`capture_output`); without a file they stay.
///
/// # Errors
/// The file cannot be opened for appending, or cannot become standard output.
pub fn install(target: &LogTarget, level: Level, capture: bool) -> io::Result<()> {
    let log = ErrorLog::open(target, level)?.capturing(capture)?;
    if let Some(log) = log.install() {
        // Set once: only the first log becomes the process's.
        let _ = ERROR_LOG.set(log);
    }
    Ok(())
}

/// Gives the error log text that is no message of ours, as it is.
pub fn write(text: &str) {
    if let Some(log) = ERROR_LOG.get() {
        log.write(text);
    }
}

/// Opens the error log's file again under its name, after it was moved away (USR1).
pub fn reopen() {
    if let Some(sink) = SINK.get() {
        sink.reopen();
    }
    if let Some(log) = ERROR_LOG.get()
        && let Err(error) = log.reopen()
    {
        tracing::error!("cannot open the error log again: {error}");
    }
}

/// Changes the least level that the error log takes.
pub fn set_level(level: Level) {
    if let Some(log) = ERROR_LOG.get() {
        log.set_level(level);
    }
}

/// Creates the log files that are not there yet, as files of the workers' user and group, who open them again under
/// their names (USR1). Without either there is nothing to do.
///
/// A file that exists stays whose it is: the folder may be the user's, who could have put a link to any file there.
pub fn create_files(targets: &[&LogTarget], user: Option<u32>, group: Option<u32>) {
    if user.is_none() && group.is_none() {
        return;
    }
    for target in targets {
        let LogTarget::File(path) = target else { continue };
        // Whatever fails here is told where the log is opened.
        if let Ok(file) = OpenOptions::new().append(true).create_new(true).open(path) {
            let _ = rustix::fs::fchown(&file, user.map(Uid::from_raw), group.map(Gid::from_raw));
        }
    }
}

/// Opens a log and closes it again: whether it can be opened is to be known before others do it.
///
/// A FIFO is left alone: to open it waits for a reader, who takes the close for the end of the log.
///
/// # Errors
/// The file cannot be opened for appending.
pub fn check(target: &LogTarget) -> io::Result<()> {
    match target {
        LogTarget::File(path) if !is_fifo(path) => open(path).map(drop),
        _ => Ok(()),
    }
}

fn is_fifo(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo())
}

/// Opens a log file for appending, so that several processes write whole lines to one file.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}
