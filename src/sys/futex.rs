//! A place where one thread sleeps until another wakes it, or until a signal handler has run.
//!
//! `std::thread::park` hides `EINTR`. The main thread of a Python worker must see it: CPython only
//! sets a flag in its C signal handler and calls the Python handler on the main thread later.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::thread::futex;

const EMPTY: u32 = 0;
const NOTIFIED: u32 = 1;
const PARKED: u32 = 2;

/// Why [`Parker::park`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wakeup {
    /// [`Parker::unpark`] was called since the last time.
    Woken,
    /// A signal handler ran on this thread. No wake-up was used up.
    Interrupted,
    /// The time is over. No wake-up was used up.
    TimedOut,
}

/// One thread parks, any thread unparks. An `unpark` before the `park` is not lost; two are one.
///
/// A handler that runs between the caller's last look at its flags and the sleep cannot interrupt
/// what has not begun. Whoever must notice every signal therefore also lets the handler's wake-up
/// descriptor lead to an `unpark` (the I/O thread does: see [`super::signal::Signals::wake_through`]), or
/// looks again from time to time (the main thread does, whose handlers are the interpreter's).
#[derive(Debug, Default)]
pub struct Parker {
    state: AtomicU32,
}

impl Parker {
    /// A parker without a pending wake-up.
    #[must_use]
    pub const fn new() -> Self {
        Self { state: AtomicU32::new(EMPTY) }
    }

    /// Sleeps until woken or interrupted. Only one thread may be in here at a time.
    pub fn park(&self) -> Wakeup {
        self.park_until(None)
    }

    /// Sleeps until woken or interrupted, or until `timeout` is over.
    pub fn park_timeout(&self, timeout: Duration) -> Wakeup {
        self.park_until(Instant::now().checked_add(timeout))
    }

    fn park_until(&self, deadline: Option<Instant>) -> Wakeup {
        // Acquire pairs with the Release in `unpark`: what the waker wrote before is seen after.
        if self.state.compare_exchange(EMPTY, PARKED, Ordering::Acquire, Ordering::Acquire).is_err() {
            // Swapped, not stored: a second `unpark` in between is taken along with its writes.
            self.state.swap(EMPTY, Ordering::Acquire);
            return Wakeup::Woken;
        }
        let reason = loop {
            let left = match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
                None => None,
                Some(Duration::ZERO) => break Wakeup::TimedOut,
                // A time the kernel cannot express is as good as none.
                Some(left) => left.try_into().ok(),
            };
            let slept = futex::wait(&self.state, futex::Flags::PRIVATE, PARKED, left.as_ref());
            if self.state.load(Ordering::Relaxed) == NOTIFIED {
                break Wakeup::Woken;
            }
            match slept {
                Err(Errno::INTR) => break Wakeup::Interrupted,
                Err(Errno::TIMEDOUT) => break Wakeup::TimedOut,
                // Woken without a notification: futex(2) allows it. Sleep on.
                _ => {}
            }
        };
        // A wake-up that came at the last moment counts, whatever ended the sleep.
        match self.state.swap(EMPTY, Ordering::Acquire) {
            NOTIFIED => Wakeup::Woken,
            _ => reason,
        }
    }

    /// Wakes the parked thread, or lets its next `park` return at once. A system call only when a
    /// thread is parked.
    pub fn unpark(&self) {
        if self.state.swap(NOTIFIED, Ordering::Release) == PARKED {
            // It fails only for addresses that are not ours.
            let _ = futex::wake(&self.state, futex::Flags::PRIVATE, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_wake_up_before_the_sleep_is_not_lost_and_two_are_one() {
        let parker = Parker::new();
        parker.unpark();
        parker.unpark();
        assert_eq!(parker.park(), Wakeup::Woken);
        assert_eq!(parker.park_timeout(Duration::from_millis(1)), Wakeup::TimedOut);
    }

    #[test]
    fn a_timeout_leaves_later_wake_ups_alone() {
        let parker = Parker::new();
        assert_eq!(parker.park_timeout(Duration::ZERO), Wakeup::TimedOut);
        parker.unpark();
        assert_eq!(parker.park_timeout(Duration::ZERO), Wakeup::Woken);
    }

    #[test]
    fn a_parked_thread_is_woken_every_time() {
        let there = Arc::new(Parker::new());
        let back = Arc::new(Parker::new());
        let (thread_there, thread_back) = (there.clone(), back.clone());
        let (sent, received) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            for round in 0..1000 {
                while thread_there.park() != Wakeup::Woken {}
                let _ = sent.send(round);
                thread_back.unpark();
            }
        });
        for _ in 0..1000 {
            there.unpark();
            while back.park() != Wakeup::Woken {}
        }
        assert!(thread.join().is_ok());
        assert_eq!(received.iter().collect::<Vec<_>>(), (0..1000).collect::<Vec<_>>());
    }
}
