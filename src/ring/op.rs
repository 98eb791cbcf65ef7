//! The operations and events that every backend shares.
//!
//! A backend is asked for things (`accept`, `receive`, `writable`) and later delivers what happened
//! as [`Event`]s from [`Driver::turn`]. The shape is io_uring's: a receive event carries the bytes.
//! epoll makes the same events out of readiness, so nothing above this trait knows which one runs.
//!
//! Sends are not operations here. A runner thread sends with `send(2)` straight from the response
//! buffer ([`super::Socket::send`]); only a rest that the socket had no room for waits for
//! [`Event::Writable`]. So the kernel never holds a pointer into memory that may move.

use std::io;
use std::time::Duration;

use super::{RecvBuffer, Socket, Waker};

/// Names one use of one connection slot, so that an event of an earlier user of the slot is known
/// to be stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    /// Index into the worker's connection table.
    pub slot: u32,
    /// How often the slot has been used before, modulo 2^24.
    pub generation: u32,
}

impl Token {
    /// Bits that a backend may use for the generation.
    pub const GENERATION_BITS: u32 = 24;

    /// The token of the next user of the same slot.
    #[must_use]
    pub const fn next(self) -> Self {
        Self { slot: self.slot, generation: (self.generation + 1) & ((1 << Self::GENERATION_BITS) - 1) }
    }
}

/// How a listener is accepted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepting {
    /// This process alone accepts from the listener: one operation serves many connections.
    Alone,
    /// Other processes accept from it too (unix sockets, inherited sockets): one operation per
    /// connection, because a multishot accept would give one ring every connection.
    Shared,
}

/// What happened. Events of one connection come in the order of the bytes on the wire.
#[derive(Debug)]
pub enum Event {
    /// A connection on the listener with this index. The accept stays armed.
    Accepted {
        /// The index given to [`Driver::accept`].
        listener: usize,
        /// The new connection: blocking mode, close-on-exec.
        socket: Socket,
    },
    /// Accepting ended with this error and is no longer armed (`EMFILE`, `ENFILE`, `ENOMEM`, ...).
    /// The worker decides when to call [`Driver::accept`] again; at once would spin.
    AcceptFailed {
        /// The index given to [`Driver::accept`].
        listener: usize,
        /// Why.
        error: io::Error,
    },
    /// Bytes from the peer; never empty. The receive stays armed.
    Received {
        /// Whose.
        token: Token,
        /// The bytes, in a buffer that goes back to the pool when dropped.
        bytes: RecvBuffer,
    },
    /// The peer sent its last byte. The receive is no longer armed.
    Ended {
        /// Whose.
        token: Token,
    },
    /// The receive failed (reset, timed out by the kernel). It is no longer armed.
    Failed {
        /// Whose.
        token: Token,
        /// Why.
        error: io::Error,
    },
    /// The socket has room again, or is broken: the next send tells. One-shot.
    Writable {
        /// Whose.
        token: Token,
    },
    /// After [`Driver::detach`]: nothing of this token comes any more, and the socket is only its owner's.
    Detached {
        /// Whose.
        token: Token,
    },
    /// The descriptor given to [`Driver::watch`] has become readable.
    Readable,
    /// A [`Waker`] was used, or a signal arrived.
    Woken,
}

/// One thread's way to the kernel. Created and used on one thread, after the last fork.
///
/// The driver owns none of the descriptors it works with. A connection's socket stays open until
/// [`Driver::release`], a listener as long as the driver; and at most one
/// generation of a slot is in use at a time.
pub trait Driver {
    /// `"io_uring"` or `"epoll"`, for the log.
    fn name(&self) -> &'static str;

    /// Milliseconds on the monotonic clock, read once per turn.
    fn now_ms(&self) -> u64;

    /// Arms accepting on a listening socket. `listener` comes back in events.
    ///
    /// # Errors
    /// What the kernel refuses; an armed accept is left as it is.
    fn accept(&mut self, listener: usize, fd: std::os::fd::RawFd, mode: Accepting) -> io::Result<()>;

    /// Disarms accepting. Connections already taken are still delivered, and one that this driver was woken for in
    /// place of another process.
    fn stop_accept(&mut self, listener: usize);

    /// Arms receiving. Bytes come as [`Event::Received`] until `Ended`, `Failed` or [`Driver::pause`].
    /// Does nothing when it is armed already.
    ///
    /// # Errors
    /// What the kernel refuses at once.
    fn receive(&mut self, token: Token, socket: &Socket) -> io::Result<()>;

    /// Disarms receiving. Bytes that the backend has already taken off the socket are still
    /// delivered, before or after this returns; none are lost.
    fn pause(&mut self, token: Token, socket: &Socket);

    /// Asks for one [`Event::Writable`].
    ///
    /// # Errors
    /// What the kernel refuses at once.
    fn writable(&mut self, token: Token, socket: &Socket) -> io::Result<()>;

    /// Gives the connection up: nothing of this token is delivered afterwards, both directions are
    /// shut down (the peer sees the end at once) and the backend keeps no reference. The descriptor
    /// itself closes when the last owner of the socket drops it.
    fn release(&mut self, token: Token, socket: &Socket);

    /// Gives the connection up and leaves it open: bytes that the backend has already taken off the socket are
    /// still delivered, then [`Event::Detached`], and from there on the backend keeps no reference. So the
    /// socket can go to another process, together with the bytes, and none is lost or read twice. Until then
    /// nothing else is asked for this token, but for [`Driver::release`], after which the event may not come.
    /// After it the same token may be used again, for the same socket.
    fn detach(&mut self, token: Token, socket: &Socket);

    /// Asks for an [`Event::Readable`] each time something arrives at this descriptor: one for each driver, open
    /// as long as it. Whoever gets the event reads until nothing is left; more events may come than there is
    /// to read.
    ///
    /// # Errors
    /// What the kernel refuses at once.
    fn watch(&mut self, fd: std::os::fd::RawFd) -> io::Result<()>;

    /// Submits what was asked for, waits until something happened or `timeout` passed, and appends
    /// the events. `None` waits without limit. `EINTR` counts as [`Event::Woken`].
    ///
    /// # Errors
    /// Only what makes the backend unusable.
    fn turn(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()>;

    /// How often a connection's bytes had to wait, because all receive buffers were in use.
    fn buffer_waits(&self) -> u64 {
        0
    }

    /// Descriptors of which one polls as readable when [`Driver::turn`] has something to deliver, for an event loop
    /// that waits for this one too, edge-triggered: a turn that gave nothing comes before each wait.
    ///
    /// # Errors
    /// No descriptors; or the backend has no such thing, as in simulations.
    fn readiness(&mut self) -> io::Result<Vec<std::os::fd::OwnedFd>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// A handle with which any thread, or a signal handler, makes `turn` return.
    fn waker(&self) -> Waker;
}
