//! The CPU clock and the state of a thread, read from another one. They tell a runner that is blocked
//! (the clock stands still) from one that is busy (the clock runs), or would be if it had the CPU.

use std::io;
use std::mem::MaybeUninit;

use rustix::process::Pid;

/// Names the CPU clock of one thread of this process.
#[derive(Clone, Copy, Debug)]
pub struct ThreadClock {
    clock: libc::clockid_t,
    thread: Pid,
    identifier: u64,
}

impl ThreadClock {
    /// The calling thread's clock, for others to read.
    ///
    /// # Errors
    /// pthread_getcpuclockid(3) on a system without thread clocks.
    pub fn of_current_thread() -> io::Result<Self> {
        let mut clock: libc::clockid_t = 0;
        // SAFETY: pthread_self(3) has no conditions.
        let thread = unsafe { libc::pthread_self() };
        // SAFETY: `thread` is the calling thread, so it is alive, and `clock` is a valid place for
        // the result.
        let result = unsafe { libc::pthread_getcpuclockid(thread, &raw mut clock) };
        if result == 0 {
            Ok(Self { clock, thread: rustix::thread::gettid(), identifier: thread })
        } else {
            Err(io::Error::from_raw_os_error(result))
        }
    }

    /// What pthread_self(3) gives in the thread, which is how Python tells threads apart.
    #[must_use]
    pub fn identifier(self) -> u64 {
        self.identifier
    }

    /// Whether the thread runs or waits for a CPU, as opposed to waiting for anything else. Its clock stands
    /// still in both cases of waiting. About 5 microseconds: a file of /proc is read.
    ///
    /// # Source
    /// proc(5), `/proc/[pid]/task/[tid]/stat`, field 3.
    #[must_use]
    pub fn is_runnable(self) -> bool {
        let path = format!("/proc/self/task/{}/stat", self.thread.as_raw_nonzero());
        let Ok(stat) = std::fs::read(path) else { return false };
        // The name in parentheses may hold anything, also parentheses.
        let after_name = stat.iter().rposition(|byte| *byte == b')').unwrap_or(0);
        stat.get(after_name + 2) == Some(&b'R')
    }

    /// CPU time that the thread has used since its start, in nanoseconds; `None` when it has ended.
    #[must_use]
    pub fn nanoseconds(self) -> Option<u64> {
        let mut time = MaybeUninit::<libc::timespec>::uninit();
        // SAFETY: `time` is a valid place for a timespec; a clock of a thread that is gone only
        // makes the call fail.
        let result = unsafe { libc::clock_gettime(self.clock, time.as_mut_ptr()) };
        if result != 0 {
            return None;
        }
        // SAFETY: clock_gettime(2) filled it: it returned 0.
        let time = unsafe { time.assume_init() };
        let seconds = u64::try_from(time.tv_sec).ok()?;
        Some(seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).ok()?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_blocked_thread_stands_still_and_a_busy_one_does_not() {
        let (clock_sent, clocks) = mpsc::channel();
        let (go, wait) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let own = ThreadClock::of_current_thread().unwrap();
            clock_sent.send(own).unwrap();
            wait.recv().unwrap();
            let start = own.nanoseconds().unwrap();
            while own.nanoseconds().unwrap() < start + 2_000_000 {}
            clock_sent.send(own).unwrap();
            wait.recv().unwrap();
        });
        let clock = clocks.recv().unwrap();
        // The thread may still be on its way into `recv`: wait until it has come to rest.
        let mut blocked = clock.nanoseconds().unwrap();
        loop {
            std::thread::yield_now();
            let now = clock.nanoseconds().unwrap();
            if now == blocked {
                break;
            }
            blocked = now;
        }
        go.send(()).unwrap();
        clocks.recv().unwrap();
        assert!(clock.nanoseconds().unwrap() >= blocked + 2_000_000);
        assert!(ThreadClock::of_current_thread().unwrap().is_runnable());
        while clock.is_runnable() {
            std::thread::yield_now();
        }
        go.send(()).unwrap();
        thread.join().unwrap();
    }
}
