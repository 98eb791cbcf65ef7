//! What an application sees of a connection: a [`Request`], and a [`Reply`] to answer it with.
//!
//! This module knows sockets only as something to send to. It is used on runner threads; the I/O
//! thread prepares an [`Exchange`], a runner completes it, and [`Link`] is what both hold of the
//! connection meanwhile.

mod body;
mod exchange;
pub(crate) mod link;
pub mod native;
mod reply;

#[cfg(feature = "python")]
#[expect(unsafe_code, reason = "the interpreter's C interface: reference counts and borrowed pointers")]
pub mod python;

pub use body::{Body, BodyError, BodyStream, BodyWaiter, Progress};
pub use exchange::{Exchange, Listener, Peer, Request, Scheme};
pub use link::{Flushed, Held, Link, Outcome, Port, Standing};
pub(crate) use reply::Date;
pub use reply::{Gone, Reply, ReplyError, Sent, body_bytes, own_answer, refusal};

/// An application, as the worker runs it.
pub trait Application: Send + Sync {
    /// Calls `body` once with a runner for the calling thread, attached to the interpreter if there is one.
    fn with_runner(&self, body: &mut dyn FnMut(&mut dyn Runner));

    /// The stack of a thread (by its pthread_self(3)), or those of all threads, as the log is to show them. Called on
    /// a thread of its own, and waits for a moment at most; `None` when there is nothing to show.
    fn stacks(&self, thread: Option<u64>) -> Option<String> {
        let _ = thread;
        None
    }
}

/// Runs requests on one thread, one after the other.
pub trait Runner {
    /// Answers one request. A reply that is left unfinished is failed by the pool.
    fn run(&mut self, exchange: &mut Exchange);

    /// Tells whoever logs through the runner of a request that was refused, and is answered.
    fn refused(&mut self, exchange: &Exchange) {
        let _ = exchange;
    }

    /// Calls `wait`, which blocks until there is work, with the interpreter released.
    fn park(&mut self, wait: &mut dyn FnMut());

    /// Whether the main thread is to be kept free for handlers of signals that the application has set. Such a handler
    /// may raise an exception, which ends the request that the thread is in.
    fn attends(&self) -> bool {
        false
    }

    /// A signal interrupted the wait on the main thread: lets the interpreter run its handlers.
    fn interrupted(&mut self) {}
}
