//! One worker process after its fork: the I/O thread's loop, and the runners.
//!
//! The main thread becomes the first runner, because some libraries want the application on it. The I/O
//! thread is started after the fork, owns the ring, and never attaches to an interpreter.

mod conn;
mod io;
mod pool;
mod table;
#[cfg(test)]
mod tests;

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing::{debug, error, info, warn};

use crate::app::{Application, Listener, Peer, Port, Runner};
use crate::config::Settings;
use crate::http::Policy;
use crate::limits::QUICK_STOP_MS;
use crate::master::WorkerContext;
use crate::ring::{self, Accepting, Socket};
use crate::sys::{fd, process, signal};

use io::Io;
use pool::Pool;

/// One listening socket of this worker.
struct Door {
    fd: OwnedFd,
    listener: Arc<Listener>,
    accepting: Accepting,
}

impl Door {
    fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// A connection that waits in the queue of a listener of this worker's own. Shared queues are left to
    /// the others.
    fn accept_queued(&self) -> Option<Socket> {
        if self.accepting == Accepting::Shared {
            return None;
        }
        let mut waiting = [PollFd::new(&self.fd, PollFlags::IN)];
        match poll(&mut waiting, Some(&Timespec::default())) {
            Ok(1) => fd::accept(self.fd()).ok().map(Socket::from),
            _ => None,
        }
    }
}

/// What the I/O thread needs of the settings, in its own units.
struct Rules {
    policy: Policy,
    trusted: Vec<IpNet>,
    trust_all: bool,
    connections_max: usize,
    body_buffer_bytes: usize,
    first_byte_ms: u64,
    header_ms: u64,
    body_ms: u64,
    response_ms: u64,
    keepalive_ms: u64,
    graceful_ms: u64,
}

impl Rules {
    /// Whether the peer may speak for others (`forwarded_allow_ips`; gunicorn trusts unix peers always).
    fn trusts(&self, peer: &Peer) -> bool {
        match peer {
            Peer::Unix => true,
            Peer::Inet { ip, .. } => self.trust_all || self.trusted.iter().any(|net| net.contains(ip)),
        }
    }
}

/// How the worker was told to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Finish what was accepted.
    Graceful,
    /// Leave now.
    Quick,
}

