//! The request body as an application reads it.

use std::fmt;
use std::sync::Arc;

use super::Link;

/// A request body.
#[derive(Default)]
pub enum Body {
    /// There is none.
    #[default]
    Empty,
    /// All of it, read before a runner was taken.
    Whole(Vec<u8>),
    /// Larger than the body buffer: it arrives while the application reads.
    Stream(BodyStream),
}

/// What came of a step of reading.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// At least one byte was appended.
    Ready,
    /// Nothing has arrived: wait with [`BodyStream::waiter`] without the interpreter, then again.
    Pending,
    /// The body is complete and all of it was handed out.
    End,
}

/// Why a body cannot be read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyError {
    /// The peer left, or stopped sending, before the body was complete.
    Truncated,
    /// The peer made no progress within `body_timeout`.
    TimedOut,
    /// The chunked coding is damaged: answer 400.
    Malformed,
    /// Larger than `limit_request_body`: answer 413.
    TooLarge,
}

impl BodyError {
    /// The status that tells the peer.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::Truncated | Self::Malformed => 400,
            Self::TimedOut => 408,
            Self::TooLarge => 413,
        }
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "the client left before the request body was complete",
            Self::TimedOut => "the client stopped sending the request body",
            Self::Malformed => "the request body's chunked coding is damaged",
            Self::TooLarge => "the request body is larger than limit_request_body",
        })
    }
}

impl std::error::Error for BodyError {}

/// A body on its way, shared with the I/O thread, which stops receiving while `body_buffer` bytes
/// wait here.
pub struct BodyStream {
    link: Arc<Link>,
    /// Which of the connection's bodies it is.
    serial: u64,
}

impl BodyStream {
    /// The reader of the body that the I/O thread feeds into `link`, from [`Link::expect_body`] on.
    #[must_use]
    pub fn new(link: Arc<Link>) -> Self {
        Self { serial: link.body_serial(), link }
    }

    /// Appends what has arrived to `into`, without waiting. The first call sends
    /// `100 Continue` when the client waits for it.
    ///
    /// # Errors
    /// [`BodyError`] once, and at every later call.
    pub fn poll(&mut self, into: &mut Vec<u8>) -> Result<Progress, BodyError> {
        self.link.take_body(self.serial, into)
    }

    /// Has `task` woken when there is something to poll; at once when there is already.
    pub(crate) fn wake(&self, task: &std::task::Waker) {
        self.link.wake_for_body(self.serial, task);
    }

    /// A handle to wait with while the stream itself is free for others.
    #[must_use]
    pub fn waiter(&self) -> BodyWaiter {
        BodyWaiter(Arc::clone(&self.link), self.serial)
    }
}

/// Waits for body bytes.
pub struct BodyWaiter(Arc<Link>, u64);

impl BodyWaiter {
    /// Blocks until there is something to poll. Call it without the interpreter.
    pub fn wait(&self) {
        self.0.wait_for_body(self.1);
    }
}
