//! What an application sees of a connection: a [`Request`], and a [`Reply`] to answer it with.
//!
//! This module knows sockets only as something to send to. It is used on runner threads; the I/O
//! thread prepares an [`Exchange`], a runner completes it, and [`Link`] is what both hold of the
//! connection meanwhile.

mod body;
mod exchange;
mod link;
mod reply;

#[cfg(feature = "python")]
#[expect(unsafe_code, reason = "the interpreter's C interface: reference counts and borrowed pointers")]
pub mod python;

pub use body::{Body, BodyError, BodyStream, Progress};
pub use exchange::{Exchange, Listener, Peer, Request, Scheme};
pub use link::{Held, Link};
pub use reply::{Gone, Reply, ReplyError, Sent};

/// An application, as the worker runs it: a maker of runners, one for each runner thread.
pub trait Application: Send + Sync {
    /// A runner for the calling thread. Called on the thread that will use it.
    fn runner(&self) -> Box<dyn Runner + '_>;
}

/// Runs requests on one thread, one after the other.
pub trait Runner {
    /// Answers one request. Must leave the reply finished or failed; a reply that is neither is
    /// failed by the pool. Must not panic on anything a peer or an application does.
    fn run(&mut self, exchange: &mut Exchange);

    /// Calls `wait`, which blocks until there is work, with the interpreter released.
    fn park(&mut self, wait: &mut dyn FnMut());

    /// A signal interrupted the wait on the main thread: lets the interpreter run its handlers.
    fn interrupted(&mut self) {}
}
