//! The error log: `tracing` events as lines in gunicorn's format.
//!
//! ```text
//! [2026-11-22 07:59:29 +0000] [4242] [INFO] Listening at: http://127.0.0.1:8000 slots=2
//! ```
//!
//! The process id is asked for with each line, because the master sets the log up before it forks.
//! Fields follow the message as `key=value`. Spans are accepted and not shown.
//!
//! `tracing` has no level CRITICAL. An event at level `ERROR` whose target is [`CRITICAL`] is one;
//! [`critical!`](crate::critical) writes such events. `TRACE` events count as debug.
//!
//! Each line is one `write(2)`, so that lines of several processes do not mix. `outlet` keeps a destination
//! that stalls away from those who serve; [`ErrorLog::flush`] comes before the end of a process.

use std::cell::RefCell;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use super::LogTarget;
use super::outlet::{Hold, Outlet};
use crate::limits::LOG_LINE_BYTES_MAX;
use crate::sys::clock;

/// The target that makes an error critical.
pub const CRITICAL: &str = "critical";

/// Logs at level CRITICAL: the server is ending, or has to kill one of its parts.
#[macro_export]
macro_rules! critical {
    ($($arg:tt)+) => { ::tracing::error!(target: $crate::observe::CRITICAL, $($arg)+) };
}

/// Levels of the error log, from the least to the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// For finding out how something came about.
    Debug,
    /// What the server does.
    Info,
    /// Something is not as it should be, and the server goes on.
    Warning,
    /// Something failed.
    Error,
    /// The server is ending, or has to kill one of its parts.
    Critical,
}

impl Level {
    const ALL: [Self; 5] = [Self::Debug, Self::Info, Self::Warning, Self::Error, Self::Critical];

    /// The level that `loglevel` names, in any case.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.name().eq_ignore_ascii_case(name.trim()))
    }

    /// The name as the log shows it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Debug => "DEBUG",
            Self::Info => "INFO",
            Self::Warning => "WARNING",
            Self::Error => "ERROR",
            Self::Critical => "CRITICAL",
        }
    }

    fn of(metadata: &Metadata<'_>) -> Self {
        match *metadata.level() {
            tracing::Level::ERROR if metadata.target() == CRITICAL => Self::Critical,
            tracing::Level::ERROR => Self::Error,
            tracing::Level::WARN => Self::Warning,
            tracing::Level::INFO => Self::Info,
            _ => Self::Debug,
        }
    }
}

/// The error log of this process: a `tracing` subscriber.
pub struct ErrorLog {
    level: AtomicU8,
    path: Option<PathBuf>,
    /// Whether standard output and error go to the file, too.
    capture: bool,
    outlet: Outlet,
}

impl ErrorLog {
    /// Opens the log. [`LogTarget::Off`] gives a log that says nothing.
    ///
    /// # Errors
    /// The file cannot be opened for appending.
    pub fn open(target: &LogTarget, level: Level) -> io::Result<Self> {
        let (path, file) = match target {
            LogTarget::Off => (None, None),
            // A copy, because the standard library's own handle has a lock that may be held when the
            // application forks. Without a standard error there is nobody to tell.
            LogTarget::Standard => (None, io::stderr().as_fd().try_clone_to_owned().ok().map(File::from)),
            LogTarget::File(path) => (Some(path.clone()), Some(super::open(path)?)),
        };
        let outlet = Outlet::new(file, lost_lines);
        Ok(Self { level: AtomicU8::new(level as u8), path, capture: false, outlet })
    }

    /// Sends standard output and error to the log's file when `capture` says so; the log stays what it is when
    /// it has no file of its own.
    ///
    /// # Errors
    /// What dup2(2) refuses.
    pub fn capturing(mut self, capture: bool) -> io::Result<Self> {
        self.capture = capture && self.path.is_some();
        self.take_streams()?;
        Ok(self)
    }

    fn take_streams(&self) -> io::Result<()> {
        let take = |file: &File| -> io::Result<()> {
            rustix::stdio::dup2_stdout(file)?;
            rustix::stdio::dup2_stderr(file)?;
            Ok(())
        };
        if self.capture { self.outlet.with_file(take).unwrap_or(Ok(())) } else { Ok(()) }
    }

    /// Makes this the log of the process and gives it back for [`ErrorLog::reopen`].
    /// Returns `None`, and changes nothing, when the process has another subscriber already, as an
    /// embedding program may have.
    pub fn install(self) -> Option<Arc<Self>> {
        let log = Arc::new(self);
        tracing::subscriber::set_global_default(Arc::clone(&log)).is_ok().then_some(log)
    }

    /// Opens the file again under its name, after it was moved away (USR1, logrotate). Nothing to
    /// do for standard error.
    ///
    /// # Errors
    /// The file cannot be opened; the log goes on with the old one.
    pub fn reopen(&self) -> io::Result<()> {
        if let Some(path) = &self.path {
            self.outlet.replace(super::open(path)?);
            self.take_streams()?;
        }
        Ok(())
    }

    /// Changes the least level that is logged.
    pub fn set_level(&self, level: Level) {
        self.level.store(level as u8, Ordering::Relaxed);
        tracing::callsite::rebuild_interest_cache();
    }

    /// Keeps other threads from logging while this process forks.
    pub(super) fn hold(&self) -> Hold<'_> {
        self.outlet.hold()
    }

    /// From here on a thread may write what waits.
    pub(super) fn allow_thread(&self) {
        self.outlet.allow_thread();
    }

    /// Offers lines that wait to the log once more. Returns whether some still wait.
    pub(super) fn retry(&self) -> bool {
        self.outlet.retry()
    }

    /// Waits until every line is written, at most `patience`.
    pub fn flush(&self, patience: Duration) {
        self.outlet.flush(patience);
    }

    /// Writes text as it is, or what else is whole in itself: a line.
    pub(super) fn write(&self, text: &str) {
        self.outlet.write(text.as_bytes());
    }
}

impl Subscriber for ErrorLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && Level::of(metadata) as u8 >= self.level.load(Ordering::Relaxed)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(match self.level.load(Ordering::Relaxed) {
            0 => LevelFilter::TRACE,
            1 => LevelFilter::INFO,
            2 => LevelFilter::WARN,
            _ => LevelFilter::ERROR,
        })
    }

    fn event(&self, event: &Event<'_>) {
        if let Some(statsd) = super::statsd::metrics() {
            statsd.logged(Level::of(event.metadata()));
        }
        if let Some(sink) = super::SINK.get() {
            let mut taken = false;
            with_line(|line| {
                event.record(&mut Fields { line, message: true });
                event.record(&mut Fields { line, message: false });
                cut(line, LOG_LINE_BYTES_MAX - 1);
                taken = sink.line(Level::of(event.metadata()), line);
            });
            if taken {
                return;
            }
        }
        with_line(|line| {
            start(line, Level::of(event.metadata()));
            event.record(&mut Fields { line, message: true });
            event.record(&mut Fields { line, message: false });
            cut(line, LOG_LINE_BYTES_MAX - 1);
            line.push('\n');
            self.write(line);
        });
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

thread_local! {
    static LINE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Calls `write` with an empty line: the thread's own, unless the thread is at a line already,
/// because a value logs while it is shown.
fn with_line(write: impl FnOnce(&mut String)) {
    // Taken out rather than borrowed: an inner call finds an empty string in its place. A thread
    // that is ending has no string of its own any more.
    let mut line = LINE.try_with(RefCell::take).unwrap_or_default();
    line.clear();
    write(&mut line);
    let _ = LINE.try_with(|kept| kept.replace(line));
}

/// `[time] [pid] [LEVEL] `
fn start(line: &mut String, level: Level) {
    let time = clock::local_time(clock::unix_now()).error_log();
    // Writing to a String cannot fail.
    let _ = write!(line, "[{time}] [{}] [{}] ", std::process::id(), level.name());
}

/// The line about lines that were lost.
fn lost_lines(lost: u64, reason: &str) -> String {
    let mut line = String::new();
    start(&mut line, Level::Warning);
    let _ = writeln!(line, "{lost} lines of the error log are lost: {reason}");
    line
}

/// Cuts `line` to `most` bytes, between two characters.
fn cut(line: &mut String, most: usize) {
    if line.len() > most {
        let end = (0..=most).rev().find(|end| line.is_char_boundary(*end)).unwrap_or_default();
        line.truncate(end);
    }
}

/// Appends an event's message, or in a second pass its other fields.
struct Fields<'a> {
    line: &'a mut String,
    message: bool,
}

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.append(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.append(field, &value.to_string());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if self.wants(field) {
            self.append(field, &format!("{value:?}"));
        }
    }
}

impl Fields<'_> {
    fn wants(&self, field: &Field) -> bool {
        (field.name() == "message") == self.message
    }

    fn append(&mut self, field: &Field, value: &str) {
        if !self.wants(field) {
            return;
        }
        if self.message {
            // Tracebacks have several lines. Other control characters would let somebody else's
            // bytes rewrite what a terminal shows.
            append_escaped(self.line, value, |c| c == '\n' || c == '\t');
            return;
        }
        let _ = write!(self.line, " {}=", field.name());
        if value.is_empty() || value.contains([' ', '"', '=']) || value.chars().any(char::is_control) {
            let _ = write!(self.line, "{value:?}");
        } else {
            self.line.push_str(value);
        }
    }
}

fn append_escaped(line: &mut String, text: &str, passes: impl Fn(char) -> bool) {
    for c in text.chars() {
        if c.is_control() && !passes(c) {
            let _ = write!(line, "\\x{:02x}", c as u32);
        } else {
            line.push(c);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use tracing::{debug, error, info, warn};

    use super::*;

    /// The lines that `write` logs at `level`, without their times.
    fn logged(level: Level, write: impl FnOnce()) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("error.log");
        let log = ErrorLog::open(&LogTarget::File(path.clone()), level).unwrap();
        tracing::subscriber::with_default(log, write);
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| line.split_once("] ").unwrap_or(("", line)).1.to_owned()).collect()
    }

    #[test]
    fn lines_are_gunicorns() {
        let pid = std::process::id();
        let lines = logged(Level::Debug, || {
            info!("Listening at: {}", "http://127.0.0.1:8000");
            warn!("careful");
            error!("broken");
            debug!("why");
            critical!("WORKER TIMEOUT (pid:{})", 7);
        });
        assert_eq!(
            lines,
            [
                format!("[{pid}] [INFO] Listening at: http://127.0.0.1:8000"),
                format!("[{pid}] [WARNING] careful"),
                format!("[{pid}] [ERROR] broken"),
                format!("[{pid}] [DEBUG] why"),
                format!("[{pid}] [CRITICAL] WORKER TIMEOUT (pid:7)"),
            ]
        );
    }

    #[test]
    fn fields_follow_the_message_and_are_quoted_where_they_must_be() {
        let lines = logged(Level::Info, || {
            info!(conn = 7, peer = %"10.0.0.7:5", text = "two words", forged = "a\n[x] b", empty = "", "refused");
        });
        let wanted = r#"[INFO] refused conn=7 peer=10.0.0.7:5 text="two words" forged="a\n[x] b" empty="""#;
        assert!(lines[0].ends_with(wanted), "{}", lines[0]);
        assert_eq!(lines.len(), 1);
    }

    #[test]
    fn a_terminal_is_not_at_the_mercy_of_a_message() {
        let lines = logged(Level::Info, || info!("a\x1b[2Jb\rc\n  traceback"));
        assert!(lines[0].ends_with("a\\x1b[2Jb\\x0dc"), "{}", lines[0]);
        assert_eq!(lines[1], "  traceback");
    }

    #[test]
    fn the_level_decides_what_is_logged() {
        let write = || {
            debug!("debug");
            info!("info");
            warn!("warning");
            error!("error");
            critical!("critical");
        };
        for (level, count) in [
            (Level::Debug, 5),
            (Level::Info, 4),
            (Level::Warning, 3),
            (Level::Error, 2),
            (Level::Critical, 1),
        ] {
            assert_eq!(logged(level, write).len(), count, "{level:?}");
            assert_eq!(Level::from_name(&level.name().to_lowercase()), Some(level));
        }
        assert_eq!(Level::from_name("verbose"), None);
    }

    #[test]
    fn reopen_follows_the_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("error.log");
        let log = Arc::new(ErrorLog::open(&LogTarget::File(path.clone()), Level::Info).unwrap());
        tracing::subscriber::with_default(Arc::clone(&log), || {
            info!("first");
            std::fs::rename(&path, dir.path().join("old.log")).unwrap();
            info!("second");
            log.reopen().unwrap();
            info!("third");
        });
        let old = std::fs::read_to_string(dir.path().join("old.log")).unwrap();
        let new = std::fs::read_to_string(&path).unwrap();
        assert!(old.contains("first") && old.contains("second") && !old.contains("third"));
        assert!(new.contains("third") && !new.contains("second"));
    }

    /// A full disk must not keep the server from serving.
    #[test]
    fn a_write_that_fails_is_not_an_error() {
        let log = ErrorLog::open(&LogTarget::File("/dev/full".into()), Level::Info).unwrap();
        tracing::subscriber::with_default(log, || info!("lost"));
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_an_error() {
        assert!(ErrorLog::open(&LogTarget::File("/no/such/dir/log".into()), Level::Info).is_err());
    }

    #[test]
    fn a_very_long_line_is_cut_between_characters() {
        let lines = logged(Level::Info, || info!("{}", "\u{e4}".repeat(LOG_LINE_BYTES_MAX)));
        assert_eq!(lines.len(), 1);
        assert!(lines[0].len() < LOG_LINE_BYTES_MAX);
    }

    /// A value that logs while it is shown must not find the line in use.
    #[test]
    fn a_value_that_logs_does_not_disturb_the_line() {
        struct Noisy;
        impl fmt::Display for Noisy {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                ErrorLog::open(&LogTarget::Off, Level::Info).unwrap().write("");
                with_line(|line| line.push_str("inner"));
                f.write_str("outer")
            }
        }
        let lines = logged(Level::Info, || info!("{Noisy}"));
        assert!(lines[0].ends_with("[INFO] outer"), "{}", lines[0]);
    }
}
