//! Lines to a destination that may stall, without a thread that waits for it.
//!
//! Standard error is often a pipe or a socket that many processes share, so it cannot be made non-blocking: that is
//! a property of what is behind the descriptor, not of the descriptor. A line is therefore offered in ways that give
//! up at once (`MSG_DONTWAIT`, `RWF_NOWAIT`), and what is not taken waits in memory, in order and bounded.
//!
//! - In a worker that serves, what waits is written by a thread of its own, which only the first such line starts. So
//!   is every line to a destination that knows no way to give up: files on most file systems, terminals.
//! - The master forks and has no threads, nor has a worker that boots. It offers what waits with each next line and each turn of its loop. Files
//!   it writes at once; it serves nobody.
//! - In a child that the application forked nothing of this exists, and lines are written at once.
//!
//! Lines that find no room, or that cannot be written, are counted, and the count is a line when writing works again.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice, Write as _};
use std::mem;
use std::process;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockWriteGuard};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FileType;
use rustix::io::{Errno, ReadWriteFlags};
use rustix::net::SendFlags;

use crate::limits::LOG_BUFFER_BYTES;
use crate::sync::lock;
use crate::sys::{errno, signal};

/// Bytes that a pipe takes whole or not at all, when it can be written to (`PIPE_BUF`).
const PIPE_BYTES: usize = 4096;

/// Where lines go.
struct Target {
    file: File,
    kind: Kind,
    /// Whether the kernel can be asked to give up at once. Taken as true until it refuses.
    gives_up: AtomicBool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    Socket,
    /// A pipe, a terminal.
    Other,
}

impl Target {
    fn new(file: File) -> Self {
        let kind = match rustix::fs::fstat(&file).map(|stat| FileType::from_raw_mode(stat.st_mode)) {
            Ok(FileType::RegularFile) => Kind::File,
            Ok(FileType::Socket) => Kind::Socket,
            _ => Kind::Other,
        };
        Self { file, kind, gives_up: AtomicBool::new(true) }
    }

    /// Writes what is taken without waiting. `WouldBlock` when that is nothing, or when it cannot be known.
    /// `alone`: nobody else can write it later, so that a file is written whatever it takes.
    fn offer(&self, bytes: &[u8], alone: bool) -> io::Result<usize> {
        if self.kind == Kind::Socket {
            return Ok(rustix::net::send(&self.file, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?);
        }
        if self.kind == Kind::File && alone {
            return (&self.file).write(bytes);
        }
        if self.gives_up.load(Ordering::Relaxed) {
            // The offset says: where the file stands, as write(2).
            match rustix::io::pwritev2(&self.file, &[IoSlice::new(bytes)], u64::MAX, ReadWriteFlags::NOWAIT) {
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::SPIPE) => {
                    self.gives_up.store(false, Ordering::Relaxed);
                }
                other => return Ok(other?),
            }
        }
        if !alone {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // An old kernel's pipe, or a terminal. Somebody else may fill it between these two calls: it is the best
        // there is without a thread.
        if !self.has_room(Duration::ZERO) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        (&self.file).write(&bytes[..bytes.len().min(PIPE_BYTES)])
    }

    /// Writes all of it, however long that takes.
    fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match (&self.file).write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Somebody else made it non-blocking.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.has_room(Duration::from_secs(1));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits at most so long for room.
    fn has_room(&self, patience: Duration) -> bool {
        let timeout = Timespec {
            tv_sec: patience.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: patience.subsec_nanos().into(),
        };
        matches!(poll(&mut [PollFd::new(&self.file, PollFlags::OUT)], Some(&timeout)), Ok(1))
    }
}

/// A destination of lines. Dropping it writes nothing more: call [`Outlet::flush`] before.
pub(super) struct Outlet {
    shared: Arc<Shared>,
}

struct Shared {
    /// Makes the line about lines that were lost, of their number and the reason.
    report: fn(u64, &str) -> String,
    // Held for writing only while the file is exchanged, so a child that the application forks from any thread
    // finds it free or shared.
    target: RwLock<Option<Arc<Target>>>,
    /// The process that the state belongs to. Its children have a copy, perhaps locked for ever.
    owner: AtomicU32,
    state: Mutex<State>,
    // The thread waits on `work`, and `flush` on `done`.
    work: Condvar,
    done: Condvar,
}

#[derive(Default)]
struct State {
    /// Lines that wait.
    lines: VecDeque<Vec<u8>>,
    /// Their bytes; at most [`LOG_BUFFER_BYTES`].
    bytes: usize,
    /// Bytes of the first line that were taken already.
    begun: usize,
    /// Lines lost since that was last told.
    lost: u64,
    /// Why, if writing failed.
    reason: Option<String>,
    /// A thread may write what waits.
    threaded: bool,
    /// It runs.
    started: bool,
    /// It holds lines that it took out of `lines`.
    writing: bool,
    /// The outlet was dropped; the thread ends.
    closed: bool,
}

impl State {
    fn is_done(&self) -> bool {
        self.lines.is_empty() && !self.writing
    }

    fn queue(&mut self, line: &[u8]) {
        if self.bytes + line.len() > LOG_BUFFER_BYTES {
            self.lost += 1;
            return;
        }
        self.bytes += line.len();
        self.lines.push_back(line.to_vec());
    }

    fn lose(&mut self, error: &io::Error) {
        self.lost += 1;
        self.reason = Some(errno::describe(error));
    }

    /// Queues the line about lost lines, if there are any. Called when writing works.
    fn tell(&mut self, report: fn(u64, &str) -> String) {
        let lost = mem::take(&mut self.lost);
        if lost > 0 {
            let reason = self.reason.take();
            let line = report(lost, reason.as_deref().unwrap_or("it was not taken fast enough"));
            // Behind those that were kept, and also when these fill the bound.
            self.bytes += line.len();
            self.lines.push_back(line.into_bytes());
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn target(&self) -> Option<Arc<Target>> {
        self.target.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Offers what waits, in order, for as long as it is taken at once.
    fn drain(&self, state: &mut State, target: &Target) {
        while let Some(line) = state.lines.front() {
            let mut works = true;
            match target.offer(&line[state.begun..], true) {
                Ok(count) if count > 0 && state.begun + count < line.len() => {
                    state.begun += count;
                    continue;
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    state.lose(&error);
                    works = false;
                }
            }
            let written = state.lines.pop_front().map_or(0, |line| line.len());
            state.bytes -= written;
            state.begun = 0;
            if works && state.lines.is_empty() {
                state.tell(self.report);
            }
        }
    }
}

impl Outlet {
    /// An outlet to `file`; without one, lines go nowhere. `report` makes the line about lines that were lost, of
    /// their number and the reason.
    pub(super) fn new(file: Option<File>, report: fn(u64, &str) -> String) -> Self {
        Self {
            shared: Arc::new(Shared {
                report,
                target: RwLock::new(file.map(|file| Arc::new(Target::new(file)))),
                owner: AtomicU32::new(process::id()),
                state: Mutex::default(),
                work: Condvar::new(),
                done: Condvar::new(),
            }),
        }
    }

    /// Takes a line, which ends in a line end. Never waits, except as the module says.
    pub(super) fn write(&self, line: &[u8]) {
        let Some(target) = self.shared.target() else { return };
        if process::id() != self.shared.owner.load(Ordering::Relaxed) {
            // A child of the application. What it cannot write is lost.
            let _ = target.write_all(line);
            return;
        }
        let mut state = self.shared.lock();
        if !state.threaded {
            self.shared.drain(&mut state, &target);
        }
        if !state.is_done() {
            state.queue(line);
            return self.leave_to_thread(state);
        }
        let offered = loop {
            match target.offer(line, !state.threaded) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        match offered {
            Ok(count) if count == line.len() => state.tell(self.shared.report),
            Ok(count) => state.queue(&line[count..]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => state.queue(line),
            Err(error) => state.lose(&error),
        }
        if state.lines.is_empty() {
            return;
        }
        if !state.threaded {
            self.shared.drain(&mut state, &target);
            return;
        }
        self.leave_to_thread(state);
    }

    /// Has a thread write what waits, where there may be one.
    fn leave_to_thread(&self, mut state: MutexGuard<'_, State>) {
        if !state.threaded || state.lines.is_empty() {
            return;
        }
        if !mem::replace(&mut state.started, true) {
            let shared = Arc::clone(&self.shared);
            let spawned =
                thread::Builder::new().name("ringhorn-errlog".to_owned()).spawn(move || run(&shared));
            // The next line tries again; these wait meanwhile.
            state.started = spawned.is_ok();
        }
        drop(state);
        self.shared.work.notify_one();
    }

    /// Offers what waits once more. Returns whether something still waits.
    pub(super) fn retry(&self) -> bool {
        let mut state = self.shared.lock();
        if !state.threaded
            && !state.lines.is_empty()
            && let Some(target) = self.shared.target()
        {
            self.shared.drain(&mut state, &target);
        }
        !state.lines.is_empty()
    }

    /// Waits until every line is written, at most `patience`.
    pub(super) fn flush(&self, patience: Duration) {
        if process::id() != self.shared.owner.load(Ordering::Relaxed) {
            return;
        }
        let end = Instant::now() + patience;
        let mut state = self.shared.lock();
        while !state.is_done() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            if state.started {
                let waited = self.shared.done.wait_timeout(state, left);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            } else {
                let Some(target) = self.shared.target() else { return };
                self.shared.drain(&mut state, &target);
                if !state.is_done() {
                    target.has_room(left);
                }
            }
        }
    }

    /// From here on a thread may write what waits. Only when the process is what it will be: a thread of before has
    /// another user and other CPUs.
    pub(super) fn allow_thread(&self) {
        let mut state = self.shared.lock();
        state.threaded = true;
        self.leave_to_thread(state);
    }

    /// Goes on with another file.
    pub(super) fn replace(&self, file: File) {
        let target = Some(Arc::new(Target::new(file)));
        *self.shared.target.write().unwrap_or_else(PoisonError::into_inner) = target;
    }

    /// Calls `act` with the file, if there is one.
    pub(super) fn with_file<R>(&self, act: impl FnOnce(&File) -> R) -> Option<R> {
        self.shared.target().map(|target| act(&target.file))
    }

    /// Keeps other threads from writing during a fork, so that the child finds nothing locked.
    pub(super) fn hold(&self) -> Hold<'_> {
        let state = self.shared.lock();
        let target = self.shared.target.write().unwrap_or_else(PoisonError::into_inner);
        Hold { shared: &self.shared, state, _target: target }
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.work.notify_one();
    }
}

/// Nobody writes while this lives.
pub struct Hold<'a> {
    shared: &'a Shared,
    state: MutexGuard<'a, State>,
    _target: RwLockWriteGuard<'a, Option<Arc<Target>>>,
}

impl Hold<'_> {
    /// In the child of a fork that becomes a worker: what waits is the master's to write.
    pub fn begin_worker(mut self) {
        *self.state = State::default();
        self.shared.owner.store(process::id(), Ordering::Relaxed);
    }
}

/// The thread: writes what waits, each line with one call, so that lines of several processes do not mix.
fn run(shared: &Shared) {
    // Signals are the main thread's.
    if signal::block_all_in_this_thread().is_err() {
        shared.lock().started = false;
        return;
    }
    let mut state = shared.lock();
    loop {
        let idle = |state: &mut State| state.lines.is_empty() && !state.closed;
        state = shared.work.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return;
        }
        let mut lines = mem::take(&mut state.lines);
        if let Some(first) = lines.front_mut() {
            // Of this one a part was taken while there was no thread.
            first.drain(..state.begun);
        }
        (state.bytes, state.begun, state.writing) = (0, 0, true);
        drop(state);
        let mut failures = Vec::new();
        let mut works = true;
        for line in &lines {
            let Some(target) = shared.target() else { break };
            let written = target.write_all(line);
            works = written.is_ok();
            failures.extend(written.err());
        }
        state = shared.lock();
        failures.iter().for_each(|error| state.lose(error));
        if works {
            state.tell(shared.report);
        }
        state.writing = false;
        if state.lines.is_empty() {
            shared.done.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::path::Path;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn report(lost: u64, reason: &str) -> String {
        format!("{lost} lost: {reason}\n")
    }

    fn outlet(file: impl Into<OwnedFd>, worker: bool) -> Outlet {
        let outlet = Outlet::new(Some(File::from(file.into())), report);
        if worker {
            outlet.hold().begin_worker();
            outlet.allow_thread();
        }
        outlet
    }

    /// Each way to write: the reading end and an outlet to it.
    fn ends() -> Vec<(Box<dyn Read + Send>, Outlet)> {
        let mut ends: Vec<(Box<dyn Read + Send>, Outlet)> = Vec::new();
        for worker in [true, false] {
            let (reader, writer) = io::pipe().unwrap();
            ends.push((Box::new(reader), outlet(writer, worker)));
            let (reader, writer) = UnixStream::pair().unwrap();
            ends.push((Box::new(reader), outlet(writer, worker)));
            // As on a kernel that cannot give up on a pipe.
            let (reader, writer) = io::pipe().unwrap();
            let old = outlet(writer, worker);
            old.shared.target().unwrap().gives_up.store(false, Ordering::Relaxed);
            ends.push((Box::new(reader), old));
        }
        ends
    }

    /// The pipe is full and nobody reads: nothing waits, memory is bounded. A reader comes back: what was kept comes in
    /// order and whole, and the rest is told of.
    #[test]
    fn a_stalled_reader_costs_lines_and_not_time() {
        for (mut reader, outlet) in ends() {
            let count = 3 * LOG_BUFFER_BYTES / 1000;
            for number in 0..count {
                outlet.write(format!("{number:0>999}\n").as_bytes());
            }
            let state = outlet.shared.lock();
            assert!(state.bytes <= LOG_BUFFER_BYTES);
            let lost = state.lost;
            assert!(lost > 0);
            drop(state);
            outlet.flush(Duration::from_millis(1));

            let reading = thread::spawn(move || {
                let mut text = String::new();
                reader.read_to_string(&mut text).unwrap();
                text
            });
            outlet.flush(LONG);
            outlet.write(b"after\n");
            outlet.flush(LONG);
            // The thread has its own reference to the writing end.
            drop(outlet);
            let text = reading.join().unwrap();
            let mut lines: Vec<&str> = text.lines().collect();
            assert_eq!(lines.pop(), Some("after"));
            let told = format!("{lost} lost: it was not taken fast enough");
            assert!(lines.contains(&told.as_str()), "{:?}", lines.last());
            lines.retain(|line| *line != told);
            assert_eq!(lines.len(), count - usize::try_from(lost).unwrap());
            assert!(lines.iter().all(|line| line.len() == 999), "a line is cut");
            // Filled with zeros, they sort as numbers do.
            assert!(lines.is_sorted(), "the order is lost");
        }
    }

    /// Nobody wrote such lines any more, nor those that came behind them. And the thread would have written a line from
    /// its beginning of which the pipe had taken a part already.
    #[test]
    fn what_waits_when_a_thread_is_allowed_is_written_by_it() {
        for gives_up in [true, false] {
            let (mut reader, writer) = io::pipe().unwrap();
            let outlet = outlet(writer, false);
            outlet.shared.target().unwrap().gives_up.store(gives_up, Ordering::Relaxed);
            let mut expected = String::new();
            for letter in ["a", "b", "c"] {
                let line = letter.repeat(60_000) + "\n";
                outlet.write(line.as_bytes());
                expected += &line;
            }
            let mut text = vec![0; 8192];
            reader.read_exact(&mut text).unwrap();
            assert!(outlet.retry());
            assert!(outlet.shared.lock().begun > 0, "a part of a line was taken");
            outlet.allow_thread();
            assert!(outlet.shared.lock().started, "nobody writes what waits");
            outlet.write(b"last\n");
            let reading = thread::spawn(move || {
                reader.read_to_end(&mut text).unwrap();
                text
            });
            outlet.flush(LONG);
            drop(outlet);
            assert!(reading.join().unwrap() == (expected + "last\n").as_bytes(), "a part comes twice");
        }
    }

    #[test]
    fn lines_arrive_at_once_and_in_order_where_somebody_reads() {
        for (mut reader, outlet) in ends() {
            let mut expected = String::new();
            for number in 0..20 {
                let line = format!("{number}\n");
                outlet.write(line.as_bytes());
                expected.push_str(&line);
            }
            let mut text = vec![0; expected.len()];
            reader.read_exact(&mut text).unwrap();
            assert_eq!(String::from_utf8(text).unwrap(), expected);
        }
    }

    #[test]
    fn files_are_written_in_both_kinds_of_process() {
        for worker in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("log");
            let outlet = outlet(super::super::open(&path).unwrap(), worker);
            for number in 0..100 {
                outlet.write(format!("{number}\n").as_bytes());
            }
            outlet.flush(LONG);
            let text = std::fs::read_to_string(path).unwrap();
            assert!(text.lines().enumerate().all(|(at, line)| line == at.to_string()), "{text}");
            assert_eq!(text.lines().count(), 100);
        }
    }

    /// A disk that was full and has room again.
    #[test]
    fn lines_that_could_not_be_written_are_told_of_when_it_works_again() {
        for worker in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("log");
            let outlet = outlet(super::super::open(Path::new("/dev/full")).unwrap(), worker);
            for _ in 0..3 {
                outlet.write(b"lost\n");
                outlet.flush(LONG);
            }
            outlet.replace(super::super::open(&path).unwrap());
            outlet.write(b"first\n");
            outlet.flush(LONG);
            outlet.write(b"second\n");
            outlet.flush(LONG);
            let text = std::fs::read_to_string(path).unwrap();
            assert_eq!(text, "first\n3 lost: no space left on device (ENOSPC)\nsecond\n");
        }
    }

    /// A log without a reader stays one: nothing is held for ever.
    #[test]
    fn a_pipe_whose_reader_is_gone_loses_its_lines() {
        for (reader, outlet) in ends() {
            drop(reader);
            for _ in 0..3 {
                outlet.write(b"lost\n");
                outlet.flush(LONG);
            }
            assert_eq!(outlet.shared.lock().lost, 3);
        }
    }
}
