//! Whether io_uring can be used here, found out by using it.
//!
//! Kernel versions do not tell: distributions port io_uring back, and containers, sysctls and
//! security modules forbid it, sometimes one system call of the three and not the others. So a
//! small ring does once what the real one will do, and is thrown away.

use std::fmt;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::Socket;
use super::op::{Driver, Event, Token};
use super::uring::{Sizes, Uring};
use crate::sys::errno;

/// What an available ring could not do.
#[derive(Debug)]
pub struct ProbeFailure {
    /// The system call or operation that failed.
    pub step: &'static str,
    /// How.
    pub error: io::Error,
}

impl fmt::Display for ProbeFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.error.raw_os_error().and_then(errno::name) {
            Some(name) => write!(f, "{}: {name}", self.step),
            None => write!(f, "{}: {}", self.step, self.error),
        }
    }
}

impl std::error::Error for ProbeFailure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

impl From<(&'static str, io::Error)> for ProbeFailure {
    fn from((step, error): (&'static str, io::Error)) -> Self {
        Self { step, error }
    }
}

/// Receives one byte through a ring of its own: setup, register and enter are allowed, and a
/// multishot receive takes its buffer from the ring and stays armed.
///
/// # Errors
/// The first step that this kernel, or what guards it, refuses.
pub fn probe() -> Result<(), ProbeFailure> {
    let mut ring = Uring::with_sizes(Sizes::PROBE)?;
    let (mut peer, socket) = UnixStream::pair().map_err(|error| ("socketpair", error))?;
    let socket = Socket::from(OwnedFd::from(socket));
    let token = Token { slot: 0, generation: 0 };
    ring.receive(token, &socket).map_err(|error| ("receive", error))?;
    peer.write_all(&[1]).map_err(|error| ("write", error))?;
    let mut events = Vec::new();
    // The byte is there before the receive is, so one turn is enough; a signal may take it away.
    for _ in 0..3 {
        ring.turn(Some(Duration::from_secs(1)), &mut events).map_err(|error| ("io_uring_enter", error))?;
        for event in events.drain(..) {
            match event {
                Event::Received { bytes, .. } if *bytes == [1] && ring.receive_armed(token) => return Ok(()),
                Event::Received { .. } => {
                    return Err(("multishot receive", io::ErrorKind::Unsupported.into()).into());
                }
                Event::Failed { error, .. } => return Err(("multishot receive", error).into()),
                _ => {}
            }
        }
    }
    Err(("multishot receive", io::ErrorKind::TimedOut.into()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_step_and_the_errno() {
        let failure =
            ProbeFailure { step: "io_uring_setup", error: io::Error::from_raw_os_error(libc::EPERM) };
        assert_eq!(failure.to_string(), "io_uring_setup: EPERM");
    }
}
