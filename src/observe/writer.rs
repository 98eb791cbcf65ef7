//! Keeps a slow disk or a full pipe away from the threads that serve.
//!
//! Lines are appended to a buffer in memory, and one thread writes them out. When the buffer is
//! full because the destination does not keep up, lines are dropped and counted, and the count is
//! logged when writing works again. The thread is started by the first line.
//!
//! A thread does not survive a fork, so a writer is made in the worker, after its fork. Children
//! that the application forks must not use it.

use std::fs::File;
use std::io::{self, Write};
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tracing::warn;

use super::LogTarget;
use crate::limits::{LOG_BUFFER_BYTES, LOG_LINE_BYTES_MAX};
use crate::sync::lock;
use crate::sys::signal;

/// How long lines are gathered before they are written. One wake-up for many lines keeps the
/// writer's thread from taking the CPU after each request; nobody reads a log faster.
const GATHER: Duration = Duration::from_millis(10);

/// Bytes that are written before that time is over. To write half as many at once cost 1 % of a hello world more, twice as
/// many nothing less; much more would leave the CPU's cache before they are taken.
const GATHER_BYTES: usize = 128 * 1024;
const _: () = assert!(GATHER_BYTES + LOG_LINE_BYTES_MAX < LOG_BUFFER_BYTES);

/// Where so many bytes were gathered, more are likely to come within the same time.
const OFTEN_BYTES: usize = 4 * 1024;

/// Least time between two reports of lost lines.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// A log that is written by its own thread. Dropping it writes nothing more: call
/// [`LogWriter::flush`] before.
pub struct LogWriter {
    shared: Arc<Shared>,
    path: Option<PathBuf>,
}

struct Shared {
    name: &'static str,
    state: Mutex<State>,
    // The thread waits on `work`, and `flush` on `done`.
    work: Condvar,
    done: Condvar,
}

#[derive(Default)]
struct State {
    /// Lines that wait; at most [`LOG_BUFFER_BYTES`].
    lines: Vec<u8>,
    /// Lines that were dropped since they were last reported.
    dropped: u64,
    /// The file of a reopened log, for the thread to take.
    reopened: Option<OwnedFd>,
    /// The descriptor that the thread will write to; `None` once it has it.
    output: Option<OwnedFd>,
    /// The thread runs.
    started: bool,
    /// The thread sleeps until there is a line. Otherwise it writes, or comes to look by itself.
    idle: bool,
    /// The thread holds lines that it took out of `lines`.
    writing: bool,
    /// Somebody waits for everything to be written.
    flushing: bool,
    /// The writer was dropped; the thread ends.
    closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl LogWriter {
    /// Opens a log for lines; `name` stands in reports, "access log" for example. `None` for
    /// [`LogTarget::Off`].
    ///
    /// # Errors
    /// The file cannot be opened for appending, or there is no standard output.
    pub fn open(name: &'static str, target: &LogTarget) -> io::Result<Option<Self>> {
        let (path, output) = match target {
            LogTarget::Off => return Ok(None),
            LogTarget::Standard => (None, io::stdout().as_fd().try_clone_to_owned()?),
            LogTarget::File(path) => (Some(path.clone()), OwnedFd::from(super::open(path)?)),
        };
        Ok(Some(Self::new(name, path, output)))
    }

    fn new(name: &'static str, path: Option<PathBuf>, output: OwnedFd) -> Self {
        let state = State { output: Some(output), ..State::default() };
        let shared = Shared { name, state: Mutex::new(state), work: Condvar::new(), done: Condvar::new() };
        Self { shared: Arc::new(shared), path }
    }

    /// Takes a line, which ends in a line end. Never waits for the destination.
    pub fn write(&self, line: &[u8]) {
        self.append(|lines| lines.extend_from_slice(line));
    }

    /// As [`LogWriter::write`], of a line that `line` appends to those that wait, under their lock: at most
    /// [`LOG_LINE_BYTES_MAX`] bytes.
    pub fn append(&self, line: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.shared.lock();
        let before = state.lines.len();
        // Any line has room, so none is made in vain, and they do not grow beyond it.
        if before > LOG_BUFFER_BYTES - LOG_LINE_BYTES_MAX {
            state.dropped += 1;
            return;
        }
        line(&mut state.lines);
        let due = (before == 0 && state.idle)
            || (before < GATHER_BYTES && state.lines.len() >= GATHER_BYTES && !state.writing);
        if !state.started {
            state.started = true;
            let Some(output) = state.output.take() else { return };
            let shared = Arc::clone(&self.shared);
            let spawned = thread::Builder::new()
                .name("ringhorn-log".to_owned())
                .spawn(move || run(&shared, File::from(output)));
            if let Err(error) = spawned {
                drop(state);
                warn!("the {} is lost: its thread cannot start: {error}", self.shared.name);
            }
        } else if due {
            drop(state);
            self.shared.work.notify_one();
        }
    }

    /// Waits until every line is written, at most `timeout`. Returns whether it was.
    pub fn flush(&self, timeout: Duration) -> bool {
        let mut state = self.shared.lock();
        if !state.started {
            return true;
        }
        state.flushing = true;
        self.shared.work.notify_one();
        let busy = |state: &mut State| state.writing || !state.lines.is_empty();
        let (mut state, _) =
            self.shared.done.wait_timeout_while(state, timeout, busy).unwrap_or_else(PoisonError::into_inner);
        state.flushing = false;
        !busy(&mut state)
    }

    /// Opens the file again under its name, after it was moved away (USR1, logrotate). Nothing to
    /// do for standard output.
    ///
    /// # Errors
    /// The file cannot be opened; the log goes on with the old one.
    pub fn reopen(&self) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let file = OwnedFd::from(super::open(path)?);
        let mut state = self.shared.lock();
        if state.started {
            state.reopened = Some(file);
        } else {
            state.output = Some(file);
        }
        Ok(())
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.work.notify_one();
    }
}

/// The thread: gathers lines, writes them, reports what was lost.
fn run(shared: &Shared, mut output: File) {
    // Signals are the main thread's: one that lands here would not end its wait. Without the block the log is
    // still written, which is worth more.
    if let Err(error) = signal::block_all_in_this_thread() {
        warn!("the thread of the {} cannot block signals: {error}", shared.name);
    }
    let mut batch = Vec::new();
    let mut lost = 0;
    let mut reported: Option<Instant> = None;
    let mut state = shared.lock();
    // Whether lines come often. Then it sleeps for as long as lines are gathered without being told of the first one:
    // a wake-up takes the CPU from those who serve, and costs as much as many lines.
    let mut often = false;
    loop {
        if !often {
            state.idle = true;
            let idle = |state: &mut State| state.lines.is_empty() && !state.closed;
            state = shared.work.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
            state.idle = false;
        }
        let gathering =
            |state: &mut State| !state.flushing && !state.closed && state.lines.len() < GATHER_BYTES;
        state = shared
            .work
            .wait_timeout_while(state, GATHER, gathering)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
        if state.closed {
            lost += state.dropped + count_lines(&state.lines);
            drop(state);
            if lost > 0 {
                warn!(
                    "{lost} lines of the {} are lost: the server ended before they were taken",
                    shared.name
                );
            }
            return;
        }
        often = state.lines.len() >= OFTEN_BYTES;
        if state.lines.is_empty() {
            continue;
        }
        mem::swap(&mut state.lines, &mut batch);
        if let Some(file) = state.reopened.take() {
            output = File::from(file);
        }
        lost += mem::take(&mut state.dropped);
        state.writing = true;
        drop(state);

        let failure = write_all(&mut output, &batch);
        if let Some((_, unwritten)) = &failure {
            lost += count_lines(&batch[batch.len() - unwritten..]);
        }
        batch.clear();
        if lost > 0 && reported.is_none_or(|last| last.elapsed() >= REPORT_EVERY) {
            let reason = match &failure {
                Some((error, _)) => crate::sys::errno::describe(error),
                None => "it was not taken fast enough".to_owned(),
            };
            warn!("{lost} lines of the {} are lost: {reason}", shared.name);
            reported = Some(Instant::now());
            lost = 0;
        }
        state = shared.lock();
        state.writing = false;
        if state.lines.is_empty() {
            shared.done.notify_all();
        }
    }
}

/// Writes everything, or gives the error and how many bytes are left.
fn write_all(output: &mut File, bytes: &[u8]) -> Option<(io::Error, usize)> {
    let mut rest = bytes;
    while !rest.is_empty() {
        match output.write(rest) {
            Ok(0) => return Some((io::ErrorKind::WriteZero.into(), rest.len())),
            Ok(count) => rest = &rest[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Standard output may be a pipe that somebody else made non-blocking.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(GATHER),
            Err(error) => return Some((error, rest.len())),
        }
    }
    None
}

fn count_lines(bytes: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', bytes).count() as u64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::io::Read;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn file_writer() -> (tempfile::TempDir, PathBuf, LogWriter) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let writer = LogWriter::open("access log", &LogTarget::File(path.clone())).unwrap().unwrap();
        (dir, path, writer)
    }

    #[test]
    fn lines_arrive_whole_and_in_order() {
        let (_dir, path, writer) = file_writer();
        let mut expected = String::new();
        for number in 0..1000 {
            let line = format!("line {number}\n");
            writer.write(line.as_bytes());
            expected.push_str(&line);
        }
        assert!(writer.flush(LONG));
        assert_eq!(std::fs::read_to_string(path).unwrap(), expected);
    }

    /// The thread is not woken for the first line where lines come often: it comes by itself.
    #[test]
    fn lines_that_nobody_flushes_arrive_too() {
        let (_dir, path, writer) = file_writer();
        let mut expected = String::new();
        for count in [1, 1, 3 * OFTEN_BYTES / 100, 1, 1, 3 * GATHER_BYTES / 100, 1] {
            for number in 0..count {
                let line = format!("{number:0>99}\n");
                writer.write(line.as_bytes());
                expected.push_str(&line);
            }
            let until = Instant::now() + LONG;
            while std::fs::read_to_string(&path).unwrap() != expected {
                assert!(Instant::now() < until, "a line waits for the next one");
                thread::yield_now();
            }
        }
    }

    #[test]
    fn nothing_is_started_for_a_log_without_lines() {
        let (_dir, _path, writer) = file_writer();
        assert!(writer.flush(Duration::ZERO));
        assert!(!writer.shared.lock().started);
        assert!(LogWriter::open("access log", &LogTarget::Off).unwrap().is_none());
    }

    #[test]
    fn reopen_follows_the_name() {
        let (dir, path, writer) = file_writer();
        writer.write(b"first\n");
        assert!(writer.flush(LONG));
        let old = dir.path().join("old.log");
        std::fs::rename(&path, &old).unwrap();
        writer.reopen().unwrap();
        writer.write(b"second\n");
        assert!(writer.flush(LONG));
        assert_eq!(std::fs::read_to_string(old).unwrap(), "first\n");
        assert_eq!(std::fs::read_to_string(path).unwrap(), "second\n");
    }

    #[test]
    fn reopen_before_the_first_line_works_too() {
        let (dir, path, writer) = file_writer();
        std::fs::rename(&path, dir.path().join("old.log")).unwrap();
        writer.reopen().unwrap();
        writer.write(b"first\n");
        assert!(writer.flush(LONG));
        assert_eq!(std::fs::read_to_string(path).unwrap(), "first\n");
    }

    /// A pipe that nobody reads: the server goes on, memory stays bounded, nothing is reordered.
    #[test]
    fn a_full_pipe_costs_lines_and_not_time() {
        let (mut reader, output) = io::pipe().unwrap();
        let writer = LogWriter::new("access log", None, output.into());
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        // Twice the buffer and more than a pipe holds, so that something must be dropped.
        let count = 4 * LOG_BUFFER_BYTES / line.len();
        for _ in 0..count {
            writer.write(&line);
        }
        let state = writer.shared.lock();
        assert!(state.lines.len() <= LOG_BUFFER_BYTES);
        assert!(state.dropped > 0);
        drop(state);
        assert!(!writer.flush(Duration::from_millis(1)), "a flush is bounded");

        // A reader comes back: what was kept arrives in whole lines.
        let reading = thread::spawn(move || {
            let mut text = Vec::new();
            reader.read_to_end(&mut text).unwrap();
            text
        });
        assert!(writer.flush(LONG));
        drop(writer);
        let text = reading.join().unwrap();
        assert!(text.len() < count * line.len());
        assert!(text.chunks(line.len()).all(|chunk| chunk == line));
    }

    /// A disk that is full, or a pipe whose reader is gone.
    #[test]
    fn lines_that_cannot_be_written_are_counted_and_the_log_goes_on() {
        let full = super::super::open(std::path::Path::new("/dev/full")).unwrap();
        let writer = LogWriter::new("access log", None, full.into());
        writer.write(b"lost\n");
        assert!(writer.flush(LONG));
        writer.write(b"lost too\n");
        assert!(writer.flush(LONG));
        let mut full = super::super::open(std::path::Path::new("/dev/full")).unwrap();
        let (error, rest) = write_all(&mut full, b"one\ntwo\n").unwrap();
        assert_eq!((error.raw_os_error(), rest), (Some(libc::ENOSPC), 8));
        assert_eq!(count_lines(b"one\ntwo\n"), 2);
    }
}
