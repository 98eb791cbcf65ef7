//! Services in Rust: what a native application sees of a request, and how it answers.
//!
//! A [`Service`] lives on one worker's I/O thread and is called there, between two system calls: the request is
//! borrowed from the receive buffer, the answer goes into the worker's send buffer, and the requests of one
//! receive are answered with one send. What takes longer is finished later through a [`Responder`], from a task
//! ([`Worker::spawn`]) or from a thread ([`Worker::blocking`]).
//!
//! This module knows no descriptors and no table of connections: `worker::io` calls it.

mod blocking;
mod request;
mod responder;
mod response;
mod tasks;

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

pub use blocking::{Blocking, BlockingError};
pub use request::Request;
pub use responder::{BodyReader, Responder};
pub use response::Response;
pub(crate) use response::{Answer, Draft, Recorder};
pub use tasks::Sleep;
pub(crate) use tasks::Tasks;

use self::blocking::Threads;
use super::Port;

/// A native application: one per worker, made on the worker's own thread, so it needs neither locks nor `Send`.
///
/// Any `FnMut(&Request<'_>, &mut Response<'_>)` is a service.
pub trait Service {
    /// Answers one request.
    ///
    /// Runs on the thread that serves all connections of this worker, so it must not block: hand work that
    /// does to [`Worker::blocking`] and answer through [`Response::defer`]. What `response` holds on return is
    /// the answer; untouched, it is `200 OK` without a body. A panic costs this request (status 500, and the
    /// connection ends), not the worker.
    fn call(&mut self, request: &Request<'_>, response: &mut Response<'_>);
}

impl<F: FnMut(&Request<'_>, &mut Response<'_>)> Service for F {
    fn call(&mut self, request: &Request<'_>, response: &mut Response<'_>) {
        self(request, response);
    }
}

impl Service for Box<dyn Service> {
    fn call(&mut self, request: &Request<'_>, response: &mut Response<'_>) {
        (**self).call(request, response);
    }
}

/// The worker that a service lives on: its tasks, timers and threads. Cheap to clone; it stays on its thread.
#[derive(Clone)]
pub struct Worker {
    shared: Rc<Shared>,
}

struct Shared {
    slot: usize,
    age: u64,
    port: Arc<Port>,
    tasks: Rc<Tasks>,
    threads: Threads,
}

impl Worker {
    pub(crate) fn new(slot: usize, age: u64, threads_max: usize, port: Arc<Port>, tasks: Rc<Tasks>) -> Self {
        let threads = Threads::new(threads_max);
        Self { shared: Rc::new(Shared { slot, age, port, tasks, threads }) }
    }

    /// The worker's place, from 0 to one less than the number of workers. A replacement has its predecessor's.
    #[must_use]
    pub fn slot(&self) -> usize {
        self.shared.slot
    }

    /// How many workers the master had forked when it forked this one; from 1.
    #[must_use]
    pub fn age(&self) -> u64 {
        self.shared.age
    }

    /// Whether the worker was told to leave: answers end their connections from now on.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.shared.port.is_draining()
    }

    /// Runs a future on this thread, beside the requests. It is dropped when the worker leaves; a
    /// [`Responder`] in it keeps the worker until it has answered, or `graceful_timeout` is over.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        self.shared.tasks.spawn(Box::pin(future));
    }

    /// A future that is ready after `delay`, within a few milliseconds.
    #[must_use]
    pub fn sleep(&self, delay: Duration) -> Sleep {
        Sleep::new(Rc::clone(&self.shared.tasks), delay)
    }

    /// Calls `work` on this thread after `delay`.
    pub fn after(&self, delay: Duration, work: impl FnOnce() + 'static) {
        let sleep = self.sleep(delay);
        self.spawn(async move {
            sleep.await;
            work();
        });
    }

    /// Runs `work`, which may block, on a thread of the worker's pool. There are at most `threads` of them
    /// (the setting), started as they are needed.
    ///
    /// The work goes on when the future is dropped; nobody gets its result then.
    ///
    /// # Errors
    /// The future gives [`BlockingError::Full`] when too much work waits already, and
    /// [`BlockingError::Panicked`] when `work` panicked.
    pub fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Blocking<T> {
        self.shared.threads.run(work)
    }
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("slot", &self.slot()).field("age", &self.age()).finish_non_exhaustive()
    }
}
