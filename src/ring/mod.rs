//! Completions in, submissions out: descriptors and bytes, not HTTP.
//!
//! One [`Driver`] per I/O thread, made after the last fork by the thread that uses it. [`open`]
//! finds out which of the two backends works here.

#[expect(unsafe_code, reason = "hands memory to the kernel and back")]
mod buffers;
mod epoll;
mod key;
mod op;
mod probe;
#[cfg(any(test, feature = "simulation"))]
pub mod sim;
mod socket;
#[cfg(test)]
mod tests;
mod timer;
#[expect(unsafe_code, reason = "fills submissions and buffers that the kernel reads and writes through")]
mod uring;
mod waker;

use std::io;
use std::os::fd::RawFd;

pub use buffers::{Pool, RecvBuffer};
pub use op::{Accepting, Driver, Event, Token};
pub use probe::{ProbeFailure, probe};
pub use socket::Socket;
pub use timer::{TICK_MS, Wheel};
pub use waker::Waker;

use crate::sys::rlimit;

/// Which backend the user asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Io {
    /// io_uring where it works, else epoll.
    #[default]
    Auto,
    /// io_uring or nothing.
    Uring,
    /// epoll.
    Epoll,
}

/// Which backend is in use, for the log and for the at-fork hook.
#[derive(Clone, Debug)]
pub struct Choice {
    /// `"io_uring"` or `"epoll"`.
    pub name: &'static str,
    /// Why [`Io::Auto`] did not take io_uring: the step and the errno, `"io_uring_setup: EPERM"`.
    pub reason: Option<String>,
    /// The backend's own descriptors, all close-on-exec. A child that the application forks must
    /// close them: an open copy of a ring keeps the connections of a dead worker open.
    pub fds: Vec<RawFd>,
}

/// Opens a backend on the thread that will use it.
///
/// # Errors
/// [`Io::Uring`] and io_uring does not work (the error displays the step and the errno), or there
/// are no descriptors or no memory for epoll either.
pub fn open(io: Io) -> io::Result<(Box<dyn Driver>, Choice)> {
    let reason = match io {
        Io::Epoll => None,
        Io::Auto | Io::Uring => match open_uring() {
            Ok(ring) => {
                let choice = Choice { name: ring.name(), reason: None, fds: ring.fds() };
                return Ok((Box::new(ring), choice));
            }
            Err(failure) if io == Io::Uring => return Err(io::Error::new(failure.error.kind(), failure)),
            Err(failure) => Some(failure.to_string()),
        },
    };
    let epoll = epoll::Epoll::new()?;
    let choice = Choice { name: epoll.name(), reason, fds: epoll.fds() };
    Ok((Box::new(epoll), choice))
}

fn open_uring() -> Result<uring::Uring, ProbeFailure> {
    // A refusal shows in the setup.
    let _ = rlimit::raise_locked_memory();
    probe()?;
    Ok(uring::Uring::new()?)
}
