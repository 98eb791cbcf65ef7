//! Descriptors that end with this process, also when the application forks.
//!
//! A child that the application forks (`multiprocessing`, `os.fork`) inherits the ring, the listeners and
//! the clients' connections. As long as it lives, the kernel keeps them open after the worker has died:
//! clients wait for an end that does not come, and a ring's pending receives hold every connection. So
//! these descriptors are noted, and a handler that runs in every forked child closes them.

use std::os::fd::RawFd;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Descriptors that can be noted: the kernel's own bound on `RLIMIT_NOFILE` by default (`fs.nr_open`). A
/// bit each; pages that no descriptor needs are never touched.
const DESCRIPTORS_MAX: usize = 1 << 20;

static NOTED: [AtomicU64; DESCRIPTORS_MAX / 64] = [const { AtomicU64::new(0) }; DESCRIPTORS_MAX / 64];

fn place(fd: RawFd) -> Option<(&'static AtomicU64, u64)> {
    let fd = usize::try_from(fd).ok()?;
    Some((NOTED.get(fd / 64)?, 1 << (fd % 64)))
}

/// From now on the descriptor is closed in children that are forked. Call [`forget`] before it is closed.
pub fn note(fd: RawFd) {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: the handler lives as long as the process, and does nothing but atomics and close(2).
        unsafe { libc::pthread_atfork(None, None, Some(close_noted)) };
    });
    if let Some((word, bit)) = place(fd) {
        word.fetch_or(bit, Ordering::Relaxed);
    }
}

/// The descriptor is about to be closed: its number may be somebody else's next.
pub fn forget(fd: RawFd) {
    if let Some((word, bit)) = place(fd) {
        word.fetch_and(!bit, Ordering::Relaxed);
    }
}

/// Descriptors that are noted until this is dropped, which comes before they are closed.
#[derive(Debug, Default)]
pub struct Noted(Vec<RawFd>);

impl Extend<RawFd> for Noted {
    fn extend<I: IntoIterator<Item = RawFd>>(&mut self, fds: I) {
        for fd in fds {
            note(fd);
            self.0.push(fd);
        }
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        self.0.iter().copied().for_each(forget);
    }
}

/// Whether this process was forked from one that had noted descriptors: a child of the application, in which
/// nothing of the server lives.
#[must_use]
pub fn is_child() -> bool {
    CHILD.load(Ordering::Relaxed)
}

static CHILD: AtomicBool = AtomicBool::new(false);

/// Runs in the child of a fork, on its only thread.
extern "C" fn close_noted() {
    CHILD.store(true, Ordering::Relaxed);
    for (index, word) in (0_i32..).zip(NOTED.iter()) {
        // Most words are 0: to write them would copy their pages for the child.
        if word.load(Ordering::Relaxed) == 0 {
            continue;
        }
        let mut bits = word.swap(0, Ordering::Relaxed);
        while bits != 0 {
            let fd = index * 64 + bits.trailing_zeros().cast_signed();
            bits &= bits - 1;
            // SAFETY: the parent noted this descriptor as its own, so nothing in the child refers to it but
            // objects that the child never uses: the threads that did are not in it.
            unsafe { libc::close(fd) };
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::sys::process::{Fork, exit_now, fork};

    /// The other end sees the end of the stream although a forked child lives on.
    #[test]
    fn a_forked_child_does_not_hold_noted_descriptors() {
        let (mut client, server) = UnixStream::pair().unwrap();
        let (mut child_lives, child_end) = UnixStream::pair().unwrap();
        note(server.as_raw_fd());
        if let Fork::Child = fork().unwrap() {
            // It holds `child_end` open until the parent has seen what it came to see.
            drop(child_lives);
            let mut byte = [0; 1];
            let _ = (&child_end).read(&mut byte);
            exit_now(0);
        }
        forget(server.as_raw_fd());
        drop(server);
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
        drop(child_end);
        child_lives.set_nonblocking(true).unwrap();
        let still = child_lives.read(&mut [0; 1]).unwrap_err();
        assert_eq!(still.kind(), std::io::ErrorKind::WouldBlock, "the child holds its own descriptor");
    }

    /// Numbers come again: at the end of a worker a child lost what the application had opened after the listeners were
    /// closed.
    #[test]
    fn what_is_noted_no_longer_stays_open_in_a_child() {
        let (mut client, mut server) = UnixStream::pair().unwrap();
        let mut noted = Noted::default();
        noted.extend([server.as_raw_fd()]);
        drop(noted);
        if let Fork::Child = fork().unwrap() {
            exit_now(i32::from(server.write_all(b"x").is_err()));
        }
        drop(server);
        assert_eq!(client.read(&mut [0; 2]).unwrap(), 1);
    }

    #[test]
    fn numbers_out_of_bounds_are_passed_over() {
        note(-1);
        note(i32::MAX);
        forget(-1);
        forget(i32::MAX);
    }
}
