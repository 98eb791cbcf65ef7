//! Waking the I/O thread from other threads and from signal handlers.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// Makes [`super::Driver::turn`] return with [`super::Event::Woken`].
///
/// The counter behind it is never read back: both backends are woken by each write, not by the
/// counter's value, which saves a system call per wake-up. It would take 2^64 writes to fill it.
#[derive(Clone, Debug)]
pub struct Waker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    fd: OwnedFd,
    /// A write is on its way and its event has not been delivered. While the I/O thread is busy,
    /// further wake-ups cost one atomic instruction and no system call.
    pending: AtomicBool,
}

impl Waker {
    /// # Errors
    /// What eventfd(2) refuses: no descriptors, no memory.
    pub(super) fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { shared: Arc::new(Shared { fd, pending: AtomicBool::new(false) }) })
    }

    /// Makes the driver's current or next turn return. What the caller wrote before is visible to
    /// the I/O thread when it sees the event. Async-signal-safe: an atomic and write(2).
    pub fn wake(&self) {
        if !self.shared.pending.swap(true, Ordering::AcqRel) {
            // The write can only fail with a full counter, and then the driver is being woken.
            let _ = rustix::io::write(&self.shared.fd, &1u64.to_ne_bytes());
        }
    }

    /// The eventfd(2) for a signal handler that writes eight bytes (a native-endian 1) itself. It
    /// stays open as long as any clone of this waker, or the driver.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.shared.fd.as_raw_fd()
    }

    #[cfg(any(test, feature = "simulation"))]
    pub(super) fn borrowed(&self) -> std::os::fd::BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.shared.fd)
    }

    /// A wake-up has not been delivered.
    #[cfg(any(test, feature = "simulation"))]
    pub(super) fn is_pending(&self) -> bool {
        self.shared.pending.load(Ordering::Acquire)
    }

    /// A descriptor of the caller's own for the eventfd, for a signal handler that outlives this waker.
    ///
    /// # Errors
    /// No descriptors.
    pub fn try_clone_fd(&self) -> io::Result<OwnedFd> {
        self.shared.fd.try_clone()
    }

    /// The driver is about to deliver the event: from here on a wake-up writes again.
    ///
    /// A swap and not a store: it reads the waker's swap, and with it everything that happened
    /// before, also when that waker saw `true` and wrote nothing.
    pub(super) fn taken(&self) {
        self.shared.pending.swap(false, Ordering::AcqRel);
    }
}
