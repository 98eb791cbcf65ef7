//! Threads for work that blocks: bounded in their number and in what waits for them.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;

use tracing::{debug, error};

use crate::limits::BLOCKING_QUEUE_MAX;
use crate::sync::lock;
use crate::sys::signal;

type Job = Box<dyn FnOnce() + Send>;

/// Why blocking work gave no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockingError {
    /// Too much work waits for the threads already: answer 503.
    Full,
    /// The work panicked.
    Panicked,
}

impl fmt::Display for BlockingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "too much work waits for the worker's threads",
            Self::Panicked => "the work panicked",
        })
    }
}

impl std::error::Error for BlockingError {}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Threads that wait for a job.
    idle: usize,
    threads: usize,
}

struct Shared {
    queue: Mutex<Queue>,
    arrived: Condvar,
}

/// The threads of one worker. They end with the process.
pub(super) struct Threads {
    shared: Arc<Shared>,
    threads_max: usize,
}

impl Threads {
    pub(super) fn new(threads_max: usize) -> Self {
        let shared = Shared { queue: Mutex::default(), arrived: Condvar::new() };
        Self { shared: Arc::new(shared), threads_max: threads_max.max(1) }
    }

    pub(super) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Blocking<T> {
        let place = Arc::new(Mutex::new(Place { result: None, task: None }));
        let job: Job = {
            let place = Arc::clone(&place);
            Box::new(move || {
                let result = catch_unwind(AssertUnwindSafe(work)).map_err(|_| {
                    error!("blocking work panicked; its request is told so");
                    BlockingError::Panicked
                });
                let mut place = lock(&place);
                place.result = Some(result);
                let task = place.task.take();
                drop(place);
                if let Some(task) = task {
                    task.wake();
                }
            })
        };
        if !self.submit(job) {
            lock(&place).result = Some(Err(BlockingError::Full));
        }
        Blocking { place }
    }

    /// Queues a job, and starts a thread when none waits. Returns false when there is no room.
    fn submit(&self, job: Job) -> bool {
        let mut queue = lock(&self.shared.queue);
        if queue.jobs.len() >= BLOCKING_QUEUE_MAX {
            return false;
        }
        queue.jobs.push_back(job);
        if queue.idle >= queue.jobs.len() {
            self.shared.arrived.notify_one();
            return true;
        }
        if queue.threads < self.threads_max {
            let shared = Arc::clone(&self.shared);
            match thread::Builder::new().name("ringhorn-block".into()).spawn(move || work_on(&shared)) {
                Ok(_) => queue.threads += 1,
                Err(error) => {
                    error!(%error, "cannot start a thread for blocking work");
                    if queue.threads == 0 {
                        queue.jobs.pop_back();
                        return false;
                    }
                }
            }
        }
        true
    }
}

/// The life of one thread.
fn work_on(shared: &Shared) {
    // Signals are the main thread's.
    if let Err(error) = signal::block_all_in_this_thread() {
        debug!("cannot block signals: {error}");
    }
    let mut queue = lock(&shared.queue);
    loop {
        if let Some(job) = queue.jobs.pop_front() {
            drop(queue);
            job();
            queue = lock(&shared.queue);
        } else {
            queue.idle += 1;
            queue = shared.arrived.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.idle -= 1;
        }
    }
}

struct Place<T> {
    result: Option<Result<T, BlockingError>>,
    task: Option<Waker>,
}

/// The result of blocking work, to come; made by [`super::Worker::blocking`].
pub struct Blocking<T> {
    place: Arc<Mutex<Place<T>>>,
}

impl<T> Future for Blocking<T> {
    type Output = Result<T, BlockingError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut place = lock(&self.place);
        match place.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                place.task = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}
