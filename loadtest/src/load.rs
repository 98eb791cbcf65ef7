//! The load: threads, their connections, and when each request is sent.
//!
//! Every thread has a ring, a share of the connections and counts of its own; nothing is shared while requests fly but
//! one counter per thread for the progress bar.
//!
//! - A *closed* loop sends the next request of a connection when an answer has come. It finds the most that a server
//!   can do, but it is blind to a server that stalls: while it stalls, nothing is sent that could be late.
//! - An *open* loop has a time for each request beforehand. Latency counts from that time, whether or not a connection
//!   was free then, so a stall shows in all requests that should have been sent during it.
//!
//! Whatever was begun is waited for, up to the timeout: every request ends as an answer or as a failure.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use tokio_uring::Runtime;

use crate::clock;
use crate::mix::Mix;
use crate::response::{Bad, End, HEAD_BYTES_MAX, Parser};
use crate::tally::{Failure, Tally};
use crate::wire::{Place, Wire};

/// Receive buffers of few connections; with thousands of them the caches would hold none.
const BUFFER_BYTES: usize = 2 * HEAD_BYTES_MAX;
const BUFFER_BYTES_MANY: usize = 16 * 1024;
const MANY: usize = 512;

/// Wait after a connection could not be made, so that a server that is gone is not asked a million times.
const RETRY: Duration = Duration::from_millis(10);

/// How often timeouts are looked for. A timer for each request would cost more than the request.
const TIMEOUT_TICK: Duration = Duration::from_millis(20);

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where.
    pub place: Place,
    /// What.
    pub mix: Mix,
    /// Connections, over all threads.
    pub connections: usize,
    /// Threads, at most one for each connection.
    pub threads: usize,
    /// CPUs for the threads, in turn; none are pinned if empty.
    pub cpus: Vec<usize>,
    /// How long requests are begun, after the warm-up.
    pub duration: Option<Duration>,
    /// How many requests are begun, after the warm-up.
    pub requests: Option<u64>,
    /// Requests per second of an open loop; a closed loop if `None`.
    pub rate: Option<f64>,
    /// Requests in flight on each connection.
    pub pipeline: usize,
    /// Whether connections carry more than one request.
    pub keep_alive: bool,
    /// Requests begun in this time are sent but not counted.
    pub warm_up: Duration,
    /// Longest wait for a connection or an answer.
    pub timeout: Duration,
}

/// What came of it.
pub struct Outcome {
    /// The counts of all threads.
    pub tally: Tally,
    /// From the end of the warm-up to the last answer.
    pub elapsed: Duration,
    /// What the first bad response was.
    pub bad: Option<Bad>,
}

/// Requests done so far, one counter for each thread. Each has a cache line of its own.
#[derive(Default)]
#[repr(align(128))]
pub struct Progress(pub AtomicU64);

/// Makes the ring of a thread, with the options that make it cheaper where the kernel has them.
///
/// # Errors
/// What io_uring_setup(2) refuses.
pub fn ring(connections: usize) -> io::Result<Runtime> {
    let entries = connections.next_power_of_two().clamp(64, 4096) as u32;
    let mut setup = tokio_uring::uring_builder();
    setup.setup_clamp().setup_cqsize(entries * 4).setup_coop_taskrun().setup_single_issuer();
    let made = Runtime::new(tokio_uring::builder().entries(entries).uring_builder(&setup));
    made.or_else(|_| Runtime::new(tokio_uring::builder().entries(entries)))
}

/// Runs the plan.
///
/// # Errors
/// A thread has no ring.
pub fn run(plan: &Arc<Plan>, progress: &Arc<Vec<Progress>>) -> io::Result<Outcome> {
    let threads = progress.len();
    let barrier = Arc::new(Barrier::new(threads));
    let spawn = |index: usize| {
        let (plan, progress, barrier) = (Arc::clone(plan), Arc::clone(progress), Arc::clone(&barrier));
        thread::Builder::new().name(format!("load-{index}")).spawn(move || {
            if let Some(&cpu) = plan.cpus.get(index % plan.cpus.len().max(1)) {
                core_affinity::set_for_current(core_affinity::CoreId { id: cpu });
            }
            let made = ring(plan.connections.div_ceil(threads));
            barrier.wait();
            one_thread(&plan, made?, index, &progress)
        })
    };
    let handles: Vec<_> = (0..threads).map(spawn).collect::<io::Result<_>>()?;
    let mut all = Outcome { tally: Tally::new(plan.mix.requests.len()), elapsed: Duration::ZERO, bad: None };
    for handle in handles {
        let one =
            handle.join().map_err(|_| io::Error::other("a thread of the load generator panicked"))??;
        all.tally.add(&one.tally);
        all.elapsed = all.elapsed.max(one.elapsed);
        all.bad = all.bad.or(one.bad);
    }
    Ok(all)
}

fn one_thread(
    plan: &Arc<Plan>,
    runtime: Runtime,
    index: usize,
    progress: &Arc<Vec<Progress>>,
) -> io::Result<Outcome> {
    let threads = progress.len();
    let share = |total: u64| total / threads as u64 + u64::from((index as u64) < total % threads as u64);
    let connections = share(plan.connections as u64) as usize;
    let begin = Instant::now();
    let measured = begin + plan.warm_up;
    let local = Rc::new(Local {
        plan: Arc::clone(plan),
        progress: Arc::clone(progress),
        index,
        begin,
        measured,
        end: plan.duration.map(|duration| measured + duration),
        left: plan.requests.map(|count| Cell::new(share(count))),
        sent: Cell::new(0),
        // A thread takes every n-th request of the mix, and of the times of an open loop.
        next: Cell::new(0),
        last: Cell::new(measured),
        done: Cell::new(0),
        tally: RefCell::new(Tally::new(plan.mix.requests.len())),
        bad: Cell::new(None),
        guards: RefCell::new(Vec::new()),
    });
    runtime.block_on(async {
        let watch = tokio_uring::spawn(watch(Rc::clone(&local)));
        let tasks: Vec<_> = (0..connections)
            .map(|_| tokio_uring::spawn(Connection::new(&local, connections).run()))
            .collect();
        for task in tasks {
            if task.await.is_err() {
                return Err(io::Error::other("a connection of the load generator panicked"));
            }
        }
        watch.abort();
        Ok(())
    })?;
    // Dropping the runtime would wait for operations that nobody waits for, like a connect that was given up.
    std::mem::forget(runtime);
    let mut tally = local.tally.replace(Tally::new(0));
    tally.unsent = local.unsent();
    let elapsed = local.last.get().saturating_duration_since(measured);
    Ok(Outcome { tally, elapsed, bad: local.bad.get() })
}

/// What the connections of one thread share.
struct Local {
    plan: Arc<Plan>,
    progress: Arc<Vec<Progress>>,
    index: usize,
    begin: Instant,
    /// The end of the warm-up.
    measured: Instant,
    /// When no more requests are begun.
    end: Option<Instant>,
    /// Requests that may still be begun, of those that count.
    left: Option<Cell<u64>>,
    /// Requests begun: the place in the mix.
    sent: Cell<u64>,
    /// The next time of an open loop.
    next: Cell<u64>,
    /// When the last request ended.
    last: Cell<Instant>,
    done: Cell<u64>,
    tally: RefCell<Tally>,
    bad: Cell<Option<Bad>>,
    guards: RefCell<Vec<Rc<Guard>>>,
}

/// A request that may be sent now.
#[derive(Clone, Copy)]
struct Ticket {
    /// Latency counts from here.
    since: Instant,
    kind: usize,
    counts: bool,
}

impl Local {
    /// The moment of the open loop's request with this number of this thread.
    fn moment(&self, rate: f64, number: u64) -> Instant {
        let number = number * self.progress.len() as u64 + self.index as u64;
        self.begin + Duration::from_secs_f64(number as f64 / rate)
    }

    /// A request to send now, or when the open loop's next time comes; `None` when there are no more. `wait` says
    /// whether there is time to wait.
    async fn ticket(&self, wait: bool) -> Option<Ticket> {
        let now = Instant::now();
        // An open loop that is behind stops at the end, too: what it owes then is `unsent`.
        if self.end.is_some_and(|end| now >= end) {
            return None;
        }
        let mut since = now;
        if let Some(rate) = self.plan.rate {
            let moment = self.moment(rate, self.next.get());
            if self.end.is_some_and(|end| moment >= end) || (moment > now && !wait) {
                return None;
            }
            since = moment;
        }
        let counts = since >= self.measured;
        if let Some(left) = &self.left
            && counts
        {
            left.set(left.get().checked_sub(1)?);
        }
        self.next.set(self.next.get() + 1);
        if since > now {
            // Without the timer it would be sent too early; the kernel has had it since the first io_uring.
            clock::wait_until(since).await.ok()?;
        }
        let number = self.sent.get() * self.progress.len() as u64 + self.index as u64;
        self.sent.set(self.sent.get() + 1);
        Some(Ticket { since, kind: self.plan.mix.kind(number), counts })
    }

    fn answer(&self, ticket: Ticket, status: u16) {
        let now = Instant::now();
        if ticket.counts {
            let nanoseconds = now.saturating_duration_since(ticket.since).as_nanos() as u64;
            self.tally.borrow_mut().answer(ticket.kind, status, nanoseconds);
        }
        self.ended(now, ticket);
    }

    fn failure(&self, ticket: Ticket, failure: Failure) {
        if ticket.counts {
            self.tally.borrow_mut().failure(failure);
        }
        self.ended(Instant::now(), ticket);
    }

    fn ended(&self, now: Instant, ticket: Ticket) {
        self.last.set(now);
        if ticket.counts {
            self.done.set(self.done.get() + 1);
            self.progress[self.index].0.store(self.done.get(), Ordering::Relaxed);
        }
    }

    /// Times of the open loop that have passed without a request.
    fn unsent(&self) -> u64 {
        let (Some(rate), Some(end)) = (self.plan.rate, self.end) else { return 0 };
        let mut number = self.next.get();
        while self.moment(rate, number) < end && self.left.as_ref().is_none_or(|left| left.get() > 0) {
            number += 1;
        }
        number - self.next.get()
    }
}

/// Lets the watch end a connection that takes too long.
#[derive(Default)]
struct Guard {
    deadline: Cell<Option<Instant>>,
    expired: Cell<bool>,
    wire: RefCell<Option<Rc<Wire>>>,
}

/// Ends connections whose time is up: a receive that waits on one of them ends then.
async fn watch(local: Rc<Local>) {
    loop {
        if clock::wait(TIMEOUT_TICK).await.is_err() {
            return;
        }
        let now = Instant::now();
        for guard in &*local.guards.borrow() {
            if guard.deadline.get().is_some_and(|deadline| now >= deadline) {
                guard.deadline.set(None);
                guard.expired.set(true);
                if let Some(wire) = &*guard.wire.borrow() {
                    wire.shut_down();
                }
            }
        }
    }
}

struct Connection {
    local: Rc<Local>,
    guard: Rc<Guard>,
    wire: Option<Rc<Wire>>,
    parser: Parser,
    /// What was received and not understood yet.
    buffer: Vec<u8>,
    /// Requests in flight, the oldest first.
    flying: VecDeque<Ticket>,
    /// Requests to send in one go, when there can be more than one.
    out: Vec<u8>,
}

impl Connection {
    fn new(local: &Rc<Local>, connections: usize) -> Self {
        let guard = Rc::new(Guard::default());
        local.guards.borrow_mut().push(Rc::clone(&guard));
        // A head must fit even with thousands of connections, so the buffer grows when one does not.
        let bytes = if connections > MANY { BUFFER_BYTES_MANY } else { BUFFER_BYTES };
        Self {
            local: Rc::clone(local),
            guard,
            wire: None,
            parser: Parser::default(),
            buffer: Vec::with_capacity(bytes),
            flying: VecDeque::new(),
            out: Vec::new(),
        }
    }

    async fn run(mut self) {
        let plan = Arc::clone(&self.local.plan);
        loop {
            // A connection that is kept is made before the request's time, and is no part of its latency.
            let mut failure = None;
            if plan.keep_alive && self.wire.is_none() {
                failure = self.connect().await.err();
            }
            while self.flying.len() < plan.pipeline {
                let Some(ticket) = self.local.ticket(self.flying.is_empty()).await else { break };
                self.flying.push_back(ticket);
                if plan.pipeline > 1 {
                    self.out.extend_from_slice(&plan.mix.requests[ticket.kind].bytes);
                }
            }
            if self.flying.is_empty() {
                break;
            }
            if failure.is_none() && self.wire.is_none() {
                failure = self.connect().await.err();
            }
            if let Some(failure) = failure {
                self.fail(failure);
                if clock::wait(RETRY).await.is_err() {
                    break;
                }
                continue;
            }
            self.guard.deadline.set(Some(Instant::now() + plan.timeout));
            let exchanged = self.exchange(&plan).await;
            self.guard.deadline.set(None);
            match exchanged {
                Ok(true) if plan.keep_alive => {}
                Ok(_) => self.disconnect(),
                Err(_) if self.guard.expired.get() => self.fail(Failure::Timeout),
                Err(failure) => self.fail(failure),
            }
        }
        self.disconnect();
        self.guard.deadline.set(None);
    }

    async fn connect(&mut self) -> Result<(), Failure> {
        let plan = &self.local.plan;
        let wire = match tokio::time::timeout(plan.timeout, Wire::connect(&plan.place)).await {
            Ok(Ok(wire)) => Rc::new(wire),
            Ok(Err(error)) => return Err(Failure::of_connect(&error)),
            Err(_) => return Err(Failure::Timeout),
        };
        self.local.tally.borrow_mut().connections += 1;
        self.guard.expired.set(false);
        *self.guard.wire.borrow_mut() = Some(Rc::clone(&wire));
        self.wire = Some(wire);
        Ok(())
    }

    fn disconnect(&mut self) {
        self.guard.wire.borrow_mut().take();
        self.wire = None;
        self.parser = Parser::default();
        self.buffer.clear();
        self.out.clear();
        // Pipelined requests that the server did not answer before it closed.
        for ticket in self.flying.drain(..) {
            self.local.failure(ticket, Failure::Closed);
        }
    }

    /// The oldest request failed so, and took the connection with it.
    fn fail(&mut self, failure: Failure) {
        if let Some(ticket) = self.flying.pop_front() {
            self.local.failure(ticket, failure);
        }
        self.disconnect();
    }

    /// Sends what is to be sent, and receives until an answer is complete. Returns whether the connection can go on.
    async fn exchange(&mut self, plan: &Plan) -> Result<bool, Failure> {
        let Some(wire) = self.wire.clone() else { return Err(Failure::Connect) };
        let sent = if plan.pipeline > 1 {
            let sent = wire.send(&self.out).await.map(|()| self.out.len());
            self.out.clear();
            sent
        } else if let Some(ticket) = self.flying.back() {
            let bytes = &plan.mix.requests[ticket.kind].bytes;
            wire.send(bytes).await.map(|()| bytes.len())
        } else {
            Ok(0)
        };
        // A server may refuse a body before it is sent, close, and be right: its answer can lie there already.
        let broken = match sent {
            Ok(count) => {
                self.local.tally.borrow_mut().sent += count as u64;
                None
            }
            Err(error) => Some(Failure::of_io(&error)),
        };
        let received_before = self.buffer.len();
        let mut received_all = 0;
        loop {
            if self.buffer.len() == self.buffer.capacity() {
                self.buffer.reserve(HEAD_BYTES_MAX);
            }
            let (received, buffer) = wire.receive(std::mem::take(&mut self.buffer)).await;
            self.buffer = buffer;
            let received = match received {
                Ok(count) => count,
                Err(error) => return Err(broken.unwrap_or_else(|| Failure::of_io(&error))),
            };
            self.local.tally.borrow_mut().received += received as u64;
            received_all += received;
            if received == 0 {
                return match self.parser.end(self.buffer.len()) {
                    End::Answer(answer) => {
                        self.take_answer(answer.status);
                        Ok(false)
                    }
                    End::Between if received_before == 0 && received_all == 0 => {
                        Err(broken.unwrap_or(Failure::Closed))
                    }
                    End::Between | End::Truncated => Err(Failure::Truncated),
                };
            }
            if let Some(keeps) = self.understand(plan)? {
                return Ok(keeps && broken.is_none());
            }
        }
    }

    /// Reads the answers in the buffer. `None` when none is complete, else whether the connection can go on.
    fn understand(&mut self, plan: &Plan) -> Result<Option<bool>, Failure> {
        let mut at = 0;
        let mut keeps = None;
        while at < self.buffer.len() {
            let Some(ticket) = self.flying.front() else { break };
            let to_head = plan.mix.requests[ticket.kind].is_head;
            let step = match self.parser.step(&self.buffer[at..], to_head) {
                Ok(step) => step,
                Err(bad) => return Err(self.bad(bad)),
            };
            at += step.consumed;
            let Some(answer) = step.answer else { break };
            // A client that goes on would take it for the answer to its next request.
            if answer.keeps && self.flying.len() == 1 && at < self.buffer.len() {
                return Err(self.bad(Bad("bytes follow the answer that nobody asked for")));
            }
            self.take_answer(answer.status);
            keeps = Some(answer.keeps);
            if !answer.keeps {
                break;
            }
        }
        self.buffer.drain(..at.min(self.buffer.len()));
        Ok(keeps)
    }

    fn take_answer(&mut self, status: u16) {
        if let Some(ticket) = self.flying.pop_front() {
            self.local.answer(ticket, status);
        }
        // The next one has as long.
        self.guard.deadline.set(Some(Instant::now() + self.local.plan.timeout));
    }

    fn bad(&self, bad: Bad) -> Failure {
        if self.local.bad.get().is_none() {
            self.local.bad.set(Some(bad));
        }
        Failure::Bad
    }
}
