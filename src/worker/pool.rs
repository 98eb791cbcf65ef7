//! Runner threads: who answers the requests that the I/O thread has read.
//!
//! One queue, one lock. A runner takes one request at a time, and stays attached to the interpreter
//! from one to the next. How many runners are awake is managed as the kernel manages the workers of
//! its work queues:
//!
//! - one while requests are quick, because threads that share an interpreter lock and a core only fight;
//! - another each time requests wait and every runner with a request is blocked ([`Pool::supervise`]), or at once where
//!   nearly all requests have blocked;
//! - a runner that finishes a quick request and sees that others took requests meanwhile parks again: it
//!   is one too many. If nobody did, the others are blocked, because this one held the interpreter lock all
//!   the time, and it goes on.

use std::collections::{HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tracing::{debug, error};

use super::access::{Expired, Recorder};
use crate::app::{Application, Exchange, Port, Runner};
use crate::limits::{
    BATCH_CHECK_MS, HEARTBEAT_MS, REFUSED_WAITING_MAX, REST_MS, SHORT_REST_US, SPARE_EXCHANGES_MAX,
};
use crate::ring::{Token, Waker};
use crate::sync::lock;
use crate::sys::clock;
use crate::sys::futex::{Parker, Wakeup};
use crate::sys::metrics::{method_index, status_index};
use crate::sys::shared::Meter;
use crate::sys::signal;
use crate::sys::thread_clock::ThreadClock;

/// A request that took longer than this on the wall, and less than half of it on the CPU, has blocked.
const BLOCKING_NS: u64 = 1_000_000;
/// A runner that computes for longer than this gets company, so that short requests pass it: twice as long as Python
/// lets a thread keep the interpreter from another one.
const COMPANY_NS: u64 = 10_000_000;
/// So many requests in a row have blocked where all are taken to block. A quick one undoes two.
const BLOCKING_MAX: u8 = 8;
/// Requests that wait where answers are gathered ([`Pool::rest`]): one that has waited for so many can wait a little more.
const GATHER_WAITING: usize = 4;

/// One runner thread, as the others see it.
struct Seat {
    parker: Parker,
    clock: Mutex<Option<ThreadClock>>,
    /// The number of the request that it has in hand ([`Turn::taken`]); 0 is none.
    taken: AtomicU64,
    /// That request's connection, as a [`Token`] in 64 bits.
    token: AtomicU64,
    /// The time of its request is over: it does not count as one of `threads` until it has come back.
    excused: AtomicBool,
}

impl Seat {
    fn is_at_work(&self) -> bool {
        self.taken.load(Ordering::Relaxed) != 0
    }

    /// What it has in hand.
    fn work(&self) -> Option<Work> {
        let taken = self.taken.load(Ordering::Acquire);
        let bits = self.token.load(Ordering::Acquire);
        let thread = lock(&self.clock).map(ThreadClock::identifier)?;
        let token = Token { slot: bits as u32, generation: (bits >> 32) as u32 };
        // Looked at again: it may have taken the next one in between. Whoever sees that one's connection sees also that
        // this one has ended, which was stored before it.
        let same = taken != 0 && self.taken.load(Ordering::Acquire) == taken;
        same.then_some(Work { taken, token, thread })
    }
}

/// A request that a runner has in hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Work {
    /// Its number: no two requests of a worker have the same.
    pub(super) taken: u64,
    /// Its connection.
    pub(super) token: Token,
    /// The runner's thread, by its pthread_self(3).
    pub(super) thread: u64,
}

/// How a runner's last request went, when others were awake.
#[derive(Clone, Copy)]
struct Ended {
    /// Its number.
    taken: u64,
    /// It waited for something, more than it computed.
    blocked: bool,
}

/// A request taken from the queue.
struct Turn {
    exchange: Box<Exchange>,
    /// Its number: how many were taken from the queue by then.
    taken: u64,
    /// No other runner is awake.
    alone: bool,
    /// It was there at once.
    at_once: bool,
}

struct Queue {
    ready: VecDeque<Box<Exchange>>,
    #[expect(
        clippy::vec_box,
        reason = "boxes go round between threads; moving them must not move 500 bytes"
    )]
    spare: Vec<Box<Exchange>>,
    /// Indices of parked runners; the last one parked is woken first, because its memory is warm.
    parked: Vec<usize>,
    awake: usize,
    seats: Vec<Arc<Seat>>,
    /// Requests taken from the queue since the start.
    taken: u64,
    /// Requests that a runner has.
    in_hand: usize,
    /// Rises with each request that blocked and falls with each that did not, to [`BLOCKING_MAX`].
    blocking: u8,
    /// The I/O thread rests until no runner is awake ([`Pool::rest`]).
    resting: bool,
    /// `taken` when it began to rest the last time.
    rested: u64,
    closing: bool,
    /// The main thread has taken its seat.
    main_came: bool,
    /// Whom the next runner that looks for a request wakes.
    caller: Option<Waker>,
    /// Runner threads that have not left yet, the main thread included.
    alive: usize,
    /// Runners that do not count as one of `threads` ([`Seat::excused`]).
    excused: usize,
}

/// The runners of one worker.
pub(super) struct Pool {
    queue: Mutex<Queue>,
    threads_max: usize,
    recorder: Recorder,
    meter: Option<Meter>,
    /// Whether it counts now. Changed by the I/O thread, under the lock of the queue.
    counting: AtomicBool,
    /// Where the I/O thread rests.
    rest: Parker,
    /// Where the main thread waits for signals ([`Pool::attend`]).
    attendant: Parker,
    left: std::sync::Condvar,
}

/// How far the runners are, as the I/O thread sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    /// Requests taken from the queue since the start.
    pub(super) taken: u64,
    /// Requests in the queue.
    pub(super) waiting: usize,
    /// There are as many runners as there may be, and all have a request.
    pub(super) all_out: bool,
    /// [`Pool::call`] was not answered yet.
    pub(super) called: bool,
}

/// A request that was answered, as the metrics count it.
struct Sample {
    method: usize,
    status: usize,
    /// 0 when it came before anybody looked: it has no times then.
    received_ns: u64,
    taken_ns: u64,
    ended_ns: u64,
    sent_bytes: u64,
}

impl Sample {
    /// Counts it: some twenty loads and stores to lines that this worker alone writes.
    fn count(&self, meter: &Meter) {
        meter.runner_sent_bytes.add(self.sent_bytes);
        if self.received_ns > 0 {
            meter.queue_wait.record(self.taken_ns.saturating_sub(self.received_ns));
            meter.application.record(self.ended_ns.saturating_sub(self.taken_ns));
            meter.total.record(self.ended_ns.saturating_sub(self.received_ns));
        }
        // Last: whoever finds the request counted finds its times, too.
        meter.requests[self.method][self.status].add(1);
    }
}

/// A request that its runner is done with.
struct Done {
    exchange: Box<Exchange>,
    sample: Option<Sample>,
}

/// The I/O thread's notes for [`Pool::supervise`].
#[derive(Default)]
pub(super) struct Watch {
    taken: u64,
    /// Since when no request was taken (monotonic nanoseconds).
    still_ns: u64,
    /// Since when somebody computes while requests wait.
    busy_ns: u64,
    /// The requests that had computed for [`COMPANY_NS`] when others were last given company.
    long: Vec<u64>,
}

impl Pool {
    /// A pool of at most `threads_max` runners (at least one).
    #[must_use]
    pub(super) fn new(threads_max: usize, recorder: Recorder) -> Self {
        Self {
            queue: Mutex::new(Queue {
                ready: VecDeque::new(),
                spare: Vec::new(),
                parked: Vec::new(),
                awake: 0,
                seats: Vec::new(),
                taken: 0,
                in_hand: 0,
                blocking: 0,
                resting: false,
                rested: 0,
                closing: false,
                main_came: false,
                caller: None,
                alive: 0,
                excused: 0,
            }),
            threads_max: threads_max.max(1),
            recorder,
            meter: None,
            counting: AtomicBool::new(false),
            rest: Parker::new(),
            attendant: Parker::new(),
            left: std::sync::Condvar::new(),
        }
    }

    /// Counts with `meter` whenever it is told to ([`Pool::count`]).
    #[must_use]
    pub(super) fn measured_by(mut self, meter: Option<Meter>) -> Self {
        self.meter = meter;
        self
    }

    /// From now on counts, or no longer. How the queue and the runners stand is shown at once.
    pub(super) fn count(&self, on: bool) {
        let queue = lock(&self.queue);
        self.counting.store(on, Ordering::Relaxed);
        self.show(&queue);
    }

    /// Where to count now. While nobody looks it costs a load of memory that the runners have in their cache.
    fn meter(&self) -> Option<&Meter> {
        if self.counting.load(Ordering::Relaxed) { self.meter.as_ref() } else { None }
    }

    /// An empty exchange to parse the next request into.
    #[must_use]
    pub(super) fn blank(&self) -> Box<Exchange> {
        lock(&self.queue).spare.pop().unwrap_or_default()
    }

    /// Queues a turn's requests, and wakes a runner when none is awake. Returns how many now wait.
    #[expect(clippy::vec_box, reason = "boxes go round between threads; moving them must not move 500 bytes")]
    pub(super) fn submit(&self, batch: &mut Vec<Box<Exchange>>) -> usize {
        if batch.is_empty() {
            return 0;
        }
        let mut queue = lock(&self.queue);
        if queue.ready.is_empty() {
            // The runners have something to do again.
            queue.rested = u64::MAX;
        }
        queue.ready.extend(batch.drain(..));
        let waiting = queue.ready.len();
        let woken = if queue.awake == 0 { queue.wake() } else { None };
        // Where nearly all requests block, waiting to see this one block too would only hold up those behind it. An
        // empty vector is no allocation.
        let mut more = Vec::new();
        if queue.blocking == BLOCKING_MAX {
            while more.len() + usize::from(woken.is_some()) < waiting
                && queue.awake < self.threads_max + queue.excused
                && let Some(seat) = queue.wake()
            {
                more.push(seat);
            }
        }
        self.show(&queue);
        drop(queue);
        for seat in woken.into_iter().chain(more) {
            seat.parker.unpark();
        }
        waiting
    }

    /// Puts what has waited longest in front, after requests were submitted that had waited elsewhere before.
    pub(super) fn sort_by_age(&self) {
        let mut queue = lock(&self.queue);
        queue.ready.make_contiguous().sort_by_key(|exchange| exchange.request.queued_ms);
    }

    /// Tells of a request that was refused and is answered. Gives the exchange back when a runner has to hear of it,
    /// too: as one of the next batch.
    pub(super) fn refused(&self, mut exchange: Box<Exchange>) -> Option<Box<Exchange>> {
        self.recorder.record(&exchange, clock::monotonic_ns());
        // A flood of refused requests while all runners are blocked costs access lines; the error log has them.
        if self.recorder.needs_runner() && self.waiting() < REFUSED_WAITING_MAX {
            return Some(exchange);
        }
        exchange.clear();
        let mut queue = lock(&self.queue);
        if queue.spare.len() < SPARE_EXCHANGES_MAX {
            queue.spare.push(exchange);
        }
        None
    }

    /// Takes the next request, for runners that a simulation plays on its own thread.
    #[cfg(any(test, feature = "simulation"))]
    pub(super) fn take_next(&self) -> Option<Box<Exchange>> {
        let mut queue = lock(&self.queue);
        queue.caller = None;
        let exchange = queue.ready.pop_front()?;
        queue.taken += 1;
        Some(exchange)
    }

    /// As [`Pool::take_next`], at a seat of its own, where the I/O thread sees what is in hand. Returns the number of
    /// the request, too.
    #[cfg(any(test, feature = "simulation"))]
    pub(super) fn take_next_seated(&self) -> Option<(Box<Exchange>, u64)> {
        let exchange = self.take_next()?;
        let Token { slot, generation } = exchange.request.link().token();
        let mut queue = lock(&self.queue);
        let taken = queue.taken;
        queue.seats.push(Arc::new(Seat {
            parker: Parker::new(),
            clock: Mutex::new(ThreadClock::of_current_thread().ok()),
            taken: AtomicU64::new(taken),
            token: AtomicU64::new(u64::from(slot) | u64::from(generation) << 32),
            excused: AtomicBool::new(false),
        }));
        Some((exchange, taken))
    }

    /// Gives the seat up at which the request with this number was in hand.
    #[cfg(any(test, feature = "simulation"))]
    pub(super) fn leave_seat(&self, number: u64) {
        lock(&self.queue).seats.retain(|seat| seat.taken.load(Ordering::Relaxed) != number);
    }

    /// Takes an exchange back that is done, as a runner does.
    #[cfg(any(test, feature = "simulation"))]
    pub(super) fn give_back(&self, exchange: Box<Exchange>) {
        lock(&self.queue).spare.push(exchange);
    }

    /// Tells the metrics how the queue and the runners stand.
    fn show(&self, queue: &Queue) {
        if let Some(meter) = self.meter() {
            meter.waiting.set(queue.ready.len() as u64);
            meter.in_hand.set(queue.in_hand as u64);
            meter.runners.set(queue.alive as u64);
            meter.runners_awake.set(queue.awake as u64);
        }
    }

    /// How many runners with a request wait for something else than the CPU. About 5 microseconds for each.
    #[must_use]
    pub(super) fn blocked(&self) -> usize {
        let queue = lock(&self.queue);
        let at_work = queue.seats.iter().filter(|seat| seat.is_at_work());
        let clocks: Vec<ThreadClock> = at_work.filter_map(|seat| *lock(&seat.clock)).collect();
        drop(queue);
        clocks.iter().filter(|clock| !clock.is_runnable()).count()
    }

    /// What the runners have in hand.
    pub(super) fn works(&self, into: &mut Vec<Work>) {
        into.extend(lock(&self.queue).seats.iter().filter_map(|seat| seat.work()));
    }

    /// Whether a runner still has this request in hand.
    #[must_use]
    pub(super) fn still_has(&self, work: &Work) -> bool {
        lock(&self.queue).seats.iter().any(|seat| seat.taken.load(Ordering::Acquire) == work.taken)
    }

    /// Lets another runner take the place of one that does not come back in time. Not in a worker with one thread,
    /// whose application relies on being called by one at a time.
    pub(super) fn excuse(&self, work: &Work) {
        if self.threads_max == 1 {
            return;
        }
        let mut queue = lock(&self.queue);
        let Some(seat) = queue.seats.iter().find(|seat| seat.work().as_ref() == Some(work)).cloned() else {
            return;
        };
        // As many again as there may be, and no more: somebody's database does not answer.
        if queue.excused < self.threads_max && !seat.excused.swap(true, Ordering::Relaxed) {
            queue.excused += 1;
        }
    }

    /// Takes out the requests that have waited since `before_ms` or longer.
    #[expect(clippy::vec_box, reason = "boxes go round between threads; moving them must not move 500 bytes")]
    pub(super) fn take_waiting_since(&self, before_ms: u64, into: &mut Vec<Box<Exchange>>) {
        let mut queue = lock(&self.queue);
        // The oldest is in front.
        while queue.ready.front().is_some_and(|exchange| exchange.request.queued_ms <= before_ms)
            && let Some(exchange) = queue.ready.pop_front()
        {
            into.push(exchange);
        }
        self.show(&queue);
    }

    /// Takes the requests that wait on these connections out of the queue: their clients are gone.
    #[expect(clippy::vec_box, reason = "boxes go round between threads; moving them must not move 500 bytes")]
    pub(super) fn withdraw(&self, connections: &HashSet<Token>) -> Vec<Box<Exchange>> {
        let mut queue = lock(&self.queue);
        let (withdrawn, ready): (VecDeque<_>, _) =
            queue.ready.drain(..).partition(|exchange| is_lost(exchange, connections));
        queue.ready = ready;
        self.show(&queue);
        withdrawn.into()
    }

    /// How many more requests runners, and a queue of `queue_max`, have room for.
    #[must_use]
    pub(super) fn room(&self, queue_max: usize) -> usize {
        let queue = lock(&self.queue);
        // Not `awake`: one that waits for the interpreter has no request, and takes the next.
        let idle = (self.threads_max + queue.excused).saturating_sub(queue.in_hand);
        (queue_max + idle).saturating_sub(queue.ready.len())
    }

    /// Tells of a request that the I/O thread has answered while a runner has it.
    pub(super) fn expired(&self, expired: &Expired<'_>) {
        self.recorder.record_expired(expired);
    }

    /// Requests that wait for a runner.
    #[must_use]
    pub(super) fn waiting(&self) -> usize {
        lock(&self.queue).ready.len()
    }

    /// How far the runners are.
    #[must_use]
    pub(super) fn progress(&self) -> Progress {
        let queue = lock(&self.queue);
        Progress {
            taken: queue.taken,
            waiting: queue.ready.len(),
            all_out: queue.awake >= self.threads_max + queue.excused,
            called: queue.caller.is_some(),
        }
    }

    /// Has the next runner that looks for a request wake the I/O thread: no polling while all are taken. Returns false
    /// when no request waits, so that none may ever look.
    #[must_use]
    pub(super) fn call(&self, caller: &Waker) -> bool {
        let mut queue = lock(&self.queue);
        let waits = !queue.ready.is_empty();
        if waits {
            queue.caller = Some(caller.clone());
        }
        waits
    }

    /// Takes up to `count` requests that wait out of the queue, oldest first, of those that `may` go elsewhere.
    #[expect(clippy::vec_box, reason = "boxes go round between threads; moving them must not move 500 bytes")]
    pub(super) fn take_back(
        &self,
        count: usize,
        mut may: impl FnMut(&Exchange) -> bool,
        into: &mut Vec<Box<Exchange>>,
    ) {
        let mut queue = lock(&self.queue);
        let mut index = 0;
        while into.len() < count
            && let Some(exchange) = queue.ready.get(index)
        {
            if may(exchange) {
                into.extend(queue.ready.remove(index));
            } else {
                index += 1;
            }
        }
        self.show(&queue);
    }

    /// Lets the I/O thread sleep while the runners have enough to do: until they have answered all that waits, at most
    /// [`REST_MS`], and no longer than a millisecond in which no request was taken. With `several` connections it rests for
    /// [`SHORT_REST_US`] also when none waits but a runner has one in hand. `None`: it did not
    /// sleep; else whether there are reports to collect.
    ///
    /// What arrives meanwhile waits in the kernel and wakes nobody. Asleep in the ring or in epoll, the I/O thread
    /// is woken by the first arrival: an interrupt from the CPU that brings it, and a preemption of the runner. As
    /// `SCHED_BATCH` it does not preempt while nothing else wants this CPU, but beside a compiler it did, 0.5 times per
    /// request of a Django view, and an idle server waited there for its turn: 2,400 microseconds to the answer of a
    /// single client instead of 60. Resting took that view from 124 to 105 microseconds of CPU.
    ///
    /// While many requests wait, answers are gathered meanwhile, and sent by the I/O thread when it has rested: each by
    /// itself would wake its client, which costs an interrupt of another CPU, and on CPUs that share a core the
    /// interpreter slows down while the client runs. On two such CPUs a view of Flask went from 78 microseconds of CPU
    /// to 61, Django's JSON view from 112 to 90, Falcon's from 18.2 to 16.0, and the latency of all went down, too.
    pub(super) fn rest(&self, several: bool, port: &Port) -> Option<bool> {
        let mut queue = lock(&self.queue);
        if queue.rested == queue.taken || queue.closing || queue.awake == 0 {
            return None;
        }
        let (slice, slices) = match queue.ready.len() {
            0 if several => (Duration::from_micros(SHORT_REST_US), 1),
            // A single client waits for nothing but its answer: nobody is spared, and two switches cost it.
            0 => return None,
            1 if !several => return None,
            _ => (Duration::from_millis(BATCH_CHECK_MS), REST_MS / BATCH_CHECK_MS),
        };
        queue.resting = true;
        port.rest(queue.ready.len() >= GATHER_WAITING && queue.awake == 1);
        for _ in 0..slices {
            queue.rested = queue.taken;
            drop(queue);
            let wakeup = self.rest.park_timeout(slice);
            queue = lock(&self.queue);
            if wakeup == Wakeup::Woken
                || queue.rested == queue.taken
                || queue.ready.is_empty()
                || port.has_held()
            {
                break;
            }
        }
        queue.resting = false;
        drop(queue);
        Some(port.rise())
    }

    /// Called while requests wait, at least every millisecond: gives blocked runners company.
    ///
    /// When no request was taken for a millisecond, the runners that have one are asked for their state. If all
    /// wait for something (a database, a sleep), another is woken or started. If one runs, or lacks nothing but
    /// the CPU, another would only fight with it - until the queue has stood still for [`COMPANY_NS`]: then
    /// requests are stuck behind a long computation, and quick ones shall pass it.
    pub(super) fn supervise(self: &Arc<Self>, watch: &mut Watch, app: &Arc<dyn Application>) {
        let now = clock::monotonic_ns();
        let queue = lock(&self.queue);
        if watch.taken != queue.taken || queue.ready.is_empty() || queue.closing {
            (watch.taken, watch.still_ns, watch.busy_ns) = (queue.taken, now, now);
            return;
        }
        let threads_max = self.threads_max + queue.excused;
        // One place is the main thread's, which may come later: its application is still being bound.
        let seats = queue.seats.len() + usize::from(!queue.main_came);
        let all_out = queue.awake >= threads_max || (seats >= threads_max && queue.parked.is_empty());
        if all_out || now - watch.still_ns < BLOCKING_NS {
            return;
        }
        // About 5 microseconds each, once in a millisecond in which nothing moves anyway.
        let at_work = queue.seats.iter().filter(|seat| seat.is_at_work());
        let clocks: Vec<(u64, ThreadClock)> = at_work
            .filter_map(|seat| Some((seat.taken.load(Ordering::Relaxed), (*lock(&seat.clock))?)))
            .collect();
        drop(queue);
        watch.still_ns = now;
        let mut running: Vec<u64> =
            clocks.iter().filter(|(_, clock)| clock.is_runnable()).map(|(taken, _)| *taken).collect();
        // Beside one that has shown how long it is, nobody waits for it again.
        if running.iter().any(|taken| !watch.long.contains(taken)) {
            if now - watch.busy_ns < COMPANY_NS {
                return;
            }
            watch.busy_ns = now;
            std::mem::swap(&mut watch.long, &mut running);
        }
        let mut queue = lock(&self.queue);
        if let Some(seat) = queue.wake() {
            drop(queue);
            seat.parker.unpark();
        } else if seats < threads_max {
            drop(queue);
            self.spawn(app);
        }
    }

    /// Starts one more runner thread; it begins awake. Returns whether it could.
    fn spawn(self: &Arc<Self>, app: &Arc<dyn Application>) -> bool {
        let seat = self.sit();
        let (pool, app) = (Arc::clone(self), Arc::clone(app));
        let spawned = thread::Builder::new().name("ringhorn-run".into()).spawn(move || {
            // Signals are the main thread's.
            if let Err(error) = signal::block_all_in_this_thread() {
                debug!("cannot block signals: {error}");
            }
            let _place = Place { pool: &pool, index: seat };
            app.with_runner(&mut |runner| pool.run(seat, runner, false));
        });
        if let Err(error) = spawned {
            error!(%error, "cannot start a runner thread; the others go on");
            let mut queue = lock(&self.queue);
            queue.awake -= 1;
            queue.alive -= 1;
            // The seat stays, unused: indices of the others must not move.
            self.left.notify_all();
            return false;
        }
        true
    }

    fn sit(&self) -> usize {
        let mut queue = lock(&self.queue);
        queue.seats.push(Arc::new(Seat {
            parker: Parker::new(),
            clock: Mutex::new(None),
            taken: AtomicU64::new(0),
            token: AtomicU64::new(0),
            excused: AtomicBool::new(false),
        }));
        queue.awake += 1;
        queue.alive += 1;
        queue.seats.len() - 1
    }

    /// Leaves the requests to other threads and gives signals to the runner on the calling (main) thread, until the pool
    /// is closed. Returns false at once when no other thread can be started.
    pub(super) fn attend(self: &Arc<Self>, runner: &mut dyn Runner, app: &Arc<dyn Application>) -> bool {
        lock(&self.queue).main_came = true;
        if !self.spawn(app) {
            return false;
        }
        while !lock(&self.queue).closing {
            runner.interrupted();
            runner.park(&mut || {
                self.attendant.park_timeout(Duration::from_millis(HEARTBEAT_MS));
            });
        }
        true
    }

    /// Runs requests on the calling (main) thread until the pool is closed. A signal that interrupts
    /// the wait is given to the runner at once.
    pub(super) fn run_main(&self, runner: &mut dyn Runner) {
        let seat = self.sit();
        lock(&self.queue).main_came = true;
        let _place = Place { pool: self, index: seat };
        self.run(seat, runner, true);
    }

    fn run(&self, index: usize, runner: &mut dyn Runner, main: bool) {
        let seat = Arc::clone(&lock(&self.queue).seats[index]);
        *lock(&seat.clock) = ThreadClock::of_current_thread().ok();
        let mut ended = None;
        let mut done = None;
        // When the last request ended: the next one begins then, unless there was none.
        let mut ended_ns = None;
        while let Some(turn) = self.take(index, &seat, runner, main, done.take(), ended.take()) {
            let Turn { mut exchange, taken, alone, at_once } = turn;
            if exchange.reply.is_finished() {
                runner.refused(&exchange);
                exchange.clear();
                ended_ns = None;
                done = Some(Done { exchange, sample: None });
                continue;
            }
            let received_ns = exchange.request.received_ns;
            let timed = received_ns > 0;
            if timed {
                let begun_ns = ended_ns.filter(|_| at_once).unwrap_or_else(clock::monotonic_ns);
                exchange.request.taken_ns = begun_ns.max(received_ns);
            }
            // With others awake, the CPU clock tells afterwards whether this request blocked: a system call.
            let begin = (!alone).then(|| (clock::monotonic_ns(), own_cpu_ns(&seat)));
            let Token { slot, generation } = exchange.request.link().token();
            seat.token.store(u64::from(slot) | u64::from(generation) << 32, Ordering::Release);
            seat.taken.store(taken, Ordering::Release);
            // A panic is a bug of ours; it shall cost the request that met it, not the runner and its client's wait.
            if catch_unwind(AssertUnwindSafe(|| runner.run(&mut exchange))).is_err() {
                error!("a runner panicked; this is a bug of the server");
            }
            if !exchange.reply.is_finished() {
                exchange.reply.fail(500, "");
            }
            seat.taken.store(0, Ordering::Release);
            // One look at the clock for everybody who asks, and for the beginning of the next request.
            ended_ns = timed.then(clock::monotonic_ns);
            let now_ns = ended_ns.unwrap_or_default();
            self.recorder.record(&exchange, now_ns);
            let sample = self.meter().map(|_| Sample {
                method: method_index(exchange.request.method()),
                status: status_index(exchange.reply.status_code()),
                received_ns,
                taken_ns: exchange.request.taken_ns,
                ended_ns: now_ns,
                sent_bytes: exchange.reply.sent_bytes(),
            });
            exchange.clear();
            ended = begin.map(|begin| Ended { taken, blocked: has_blocked(&seat, begin) });
            done = Some(Done { exchange, sample });
        }
    }

    /// The next request; `None` when the pool closes. Parks while there is none. `ended` is how the
    /// runner's last request went.
    fn take(
        &self,
        index: usize,
        seat: &Seat,
        runner: &mut dyn Runner,
        main: bool,
        done: Option<Done>,
        ended: Option<Ended>,
    ) -> Option<Turn> {
        let mut queue = lock(&self.queue);
        if let Some(Done { exchange, sample }) = done {
            queue.in_hand -= 1;
            if let (Some(meter), Some(sample)) = (self.meter(), sample) {
                sample.count(meter);
            }
            if queue.spare.len() < SPARE_EXCHANGES_MAX {
                queue.spare.push(exchange);
            }
        }
        if let Some(ended) = ended {
            let blocking = queue.blocking;
            queue.blocking =
                if ended.blocked { (blocking + 1).min(BLOCKING_MAX) } else { blocking.saturating_sub(2) };
        }
        let mut at_once = true;
        if seat.excused.load(Ordering::Relaxed) && seat.excused.swap(false, Ordering::Relaxed) {
            queue.excused -= 1;
        }
        // Others took requests while this one held the interpreter for a quick one: one too many is awake. Or it comes
        // back when another runner has taken its place.
        let mut surplus = !queue.closing
            && (ended.is_some_and(|ended| !ended.blocked && queue.taken != ended.taken) && queue.awake > 1
                || queue.awake > self.threads_max + queue.excused);
        loop {
            // Here and not once: a runner that was woken may find that its request was taken back.
            if let Some(caller) = queue.caller.take() {
                caller.wake();
            }
            if !surplus && let Some(exchange) = queue.ready.pop_front() {
                queue.taken += 1;
                queue.in_hand += 1;
                self.show(&queue);
                return Some(Turn { exchange, taken: queue.taken, alone: queue.awake == 1, at_once });
            }
            if queue.closing && queue.ready.is_empty() {
                return None;
            }
            surplus = false;
            queue.parked.push(index);
            queue.awake -= 1;
            self.show(&queue);
            let rested = queue.awake == 0 && std::mem::take(&mut queue.resting);
            drop(queue);
            if rested {
                self.rest.unpark();
            }
            at_once = false;
            let mut woken_ns = None;
            let mut wakeup = Wakeup::Woken;
            loop {
                if main {
                    // Signals that came since the last look.
                    runner.interrupted();
                }
                // One that comes between this look and the sleep cannot interrupt what has not begun. It
                // is a matter of a microsecond; the next look finds it.
                let most = Duration::from_millis(HEARTBEAT_MS);
                runner.park(&mut || {
                    wakeup = if main { seat.parker.park_timeout(most) } else { seat.parker.park() };
                    woken_ns = self.meter().map(|_| clock::monotonic_ns());
                });
                if wakeup != Wakeup::TimedOut {
                    break;
                }
            }
            if main && wakeup == Wakeup::Interrupted {
                runner.interrupted();
            }
            let waited_ns = woken_ns.map(|woken_ns| clock::monotonic_ns().saturating_sub(woken_ns));
            queue = lock(&self.queue);
            if let (Some(meter), Some(waited_ns)) = (self.meter(), waited_ns) {
                meter.interpreter_wait_ns.add(waited_ns);
            }
            // Woken by an unpark, somebody took this runner off the list and counted it awake. After an
            // interruption it still stands there.
            if let Some(at) = queue.parked.iter().position(|parked| *parked == index) {
                queue.parked.remove(at);
                queue.awake += 1;
            }
        }
    }

    /// No more requests come: runners leave when the queue is empty.
    pub(super) fn close(&self) {
        let mut queue = lock(&self.queue);
        queue.closing = true;
        let mut seats = Vec::new();
        while let Some(seat) = queue.wake() {
            seats.push(seat);
        }
        drop(queue);
        for seat in seats {
            seat.parker.unpark();
        }
        self.attendant.unpark();
    }

    /// Waits until all runner threads but the caller's have left, at most until `deadline`.
    /// Returns whether they have.
    pub(super) fn join(&self, deadline: Instant) -> bool {
        let mut queue = lock(&self.queue);
        while queue.alive > 0 {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return false };
            queue = self.left.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

/// A runner's place among the others. It is given up also when the runner could not be made, or panicked.
struct Place<'a> {
    pool: &'a Pool,
    index: usize,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut queue = lock(&self.pool.queue);
        let seat = Arc::clone(&queue.seats[self.index]);
        seat.taken.store(0, Ordering::Release);
        if seat.excused.swap(false, Ordering::Relaxed) {
            queue.excused -= 1;
        }
        *lock(&seat.clock) = None;
        match queue.parked.iter().position(|parked| *parked == self.index) {
            Some(at) => drop(queue.parked.remove(at)),
            None => queue.awake -= 1,
        }
        queue.alive -= 1;
        drop(queue);
        self.pool.left.notify_all();
    }
}

/// Whether it is to be answered on one of these connections. Those that were refused are only to be told of.
pub(super) fn is_lost(exchange: &Exchange, connections: &HashSet<Token>) -> bool {
    !exchange.reply.is_finished() && connections.contains(&exchange.request.link().token())
}

/// Whether a request that began at this time and reading of the CPU clock has blocked.
fn has_blocked(seat: &Seat, (wall_ns, cpu_ns): (u64, u64)) -> bool {
    let wall_ns = clock::monotonic_ns() - wall_ns;
    wall_ns > BLOCKING_NS && own_cpu_ns(seat).saturating_sub(cpu_ns) < wall_ns / 2
}

fn own_cpu_ns(seat: &Seat) -> u64 {
    lock(&seat.clock).and_then(ThreadClock::nanoseconds).unwrap_or(0)
}

impl Queue {
    /// Counts the runner parked last as awake and returns it, to be unparked.
    fn wake(&mut self) -> Option<Arc<Seat>> {
        let index = self.parked.pop()?;
        self.awake += 1;
        Some(Arc::clone(&self.seats[index]))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used)]

    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::app::{Link, Listener, Peer};
    use crate::sys::shared::SharedPage;

    /// An application that cannot make a runner, for lack of memory for example.
    struct Barren;

    impl Application for Barren {
        fn with_runner(&self, _body: &mut dyn FnMut(&mut dyn Runner)) {}
    }

    /// It slept on when nothing was left to do, and what had arrived meanwhile waited.
    #[test]
    fn the_io_thread_rests_until_its_runner_does_and_not_beside_a_stuck_one() {
        /// Closes the pool in place of waiting.
        struct Closer<'a>(&'a Pool);
        impl Runner for Closer<'_> {
            fn run(&mut self, _exchange: &mut Exchange) {}

            fn park(&mut self, _wait: &mut dyn FnMut()) {
                self.0.close();
            }
        }
        let (driver, _) = crate::ring::open(crate::ring::Io::Epoll).expect("epoll");
        let port = Port::new(driver.waker());
        let pool = Pool::new(1, Recorder::default());
        let index = pool.sit();
        let seat = Arc::clone(&lock(&pool.queue).seats[index]);
        let take = || pool.take(index, &seat, &mut Closer(&pool), false, None, None).map(|turn| turn.taken);
        assert!(pool.rest(true, &port).is_none(), "nothing is in hand");
        pool.submit(&mut vec![pool.blank()]);
        assert!(pool.rest(false, &port).is_none(), "a single client is spared the way round");
        pool.submit(&mut vec![pool.blank(), pool.blank()]);
        assert_eq!(take(), Some(1));
        assert_eq!(pool.rest(false, &port), Some(false), "requests wait");
        assert!(pool.rest(false, &port).is_none(), "none was taken since");
        // A wake-up that comes before the sleep is not lost, so this has one order and no race.
        lock(&pool.queue).resting = true;
        assert_eq!((take(), take(), take()), (Some(2), Some(3), None));
        assert_eq!(pool.rest.park_timeout(Duration::from_secs(60)), Wakeup::Woken);
    }

    /// One was woken each millisecond, and 64 clients of a view that sleeps waited for each other.
    #[test]
    fn where_all_requests_block_each_gets_a_runner_at_once() {
        for (blocking, awake) in [(BLOCKING_MAX - 1, 1), (BLOCKING_MAX, 2)] {
            let pool = Pool::new(2, Recorder::default());
            for _ in 0..3 {
                let index = pool.sit();
                let mut queue = lock(&pool.queue);
                queue.parked.push(index);
                queue.awake -= 1;
            }
            lock(&pool.queue).blocking = blocking;
            pool.submit(&mut vec![pool.blank(), pool.blank(), pool.blank()]);
            assert_eq!(lock(&pool.queue).awake, awake, "never more than threads");
        }
    }

    /// Requests came before the main thread did, and a runner was started for them: with `--threads 1` there were two.
    /// With a short queue, 503 was said to who could be served.
    #[test]
    fn a_runner_without_a_request_is_room() {
        let pool = Pool::new(2, Recorder::default());
        // Awake: woken, and they wait for the interpreter.
        pool.sit();
        pool.sit();
        assert_eq!(pool.room(1), 3);
    }

    #[test]
    fn the_main_threads_place_is_kept_for_it() {
        let app: Arc<dyn Application> = Arc::new(Barren);
        for (threads, may_spawn) in [(1, false), (2, true)] {
            let pool = Arc::new(Pool::new(threads, Recorder::default()));
            pool.submit(&mut vec![Box::default()]);
            let mut watch = Watch::default();
            let until = Instant::now() + Duration::from_millis(50);
            while Instant::now() < until && lock(&pool.queue).seats.is_empty() {
                pool.supervise(&mut watch, &app);
            }
            assert_eq!(!lock(&pool.queue).seats.is_empty(), may_spawn, "{threads} threads");
        }
    }

    /// The worker stayed stalled for ever: its runner was woken for a request, found that it had been handed over, and
    /// parked again without a word.
    #[test]
    fn a_runner_whose_request_was_taken_back_still_tells_that_it_is_there() {
        struct Idle;
        impl Runner for Idle {
            fn run(&mut self, _exchange: &mut Exchange) {}
            fn park(&mut self, wait: &mut dyn FnMut()) {
                wait();
            }
        }
        let pool = Arc::new(Pool::new(1, Recorder::default()));
        let (driver, _) = crate::ring::open(crate::ring::Io::Epoll).expect("epoll");
        let main = {
            let pool = Arc::clone(&pool);
            thread::spawn(move || pool.run_main(&mut Idle))
        };
        let until = Instant::now() + Duration::from_secs(10);
        let parked = || lock(&pool.queue).parked.len() == 1;
        while !parked() {
            assert!(Instant::now() < until, "the runner never parks");
            thread::yield_now();
        }
        // All under the lock, so that the runner finds nothing, as when it gets no CPU for a while.
        let mut queue = lock(&pool.queue);
        queue.caller = Some(driver.waker());
        let seat = queue.wake().expect("it is parked");
        drop(queue);
        seat.parker.unpark();
        while pool.progress().called || !parked() {
            assert!(Instant::now() < until, "the runner says nothing");
            thread::yield_now();
        }
        pool.close();
        assert!(main.join().is_ok());
    }

    /// While all runners were blocked, requests that had been turned away or had lost their clients were shown as waiting.
    #[test]
    fn a_queue_that_gets_shorter_without_a_runner_is_shown() {
        let shared = Arc::new(SharedPage::new().expect("shared memory"));
        let pool = Pool::new(1, Recorder::default()).measured_by(shared.meter(0, true));
        pool.count(true);
        let shown = || shared.metrics(0).map(|metrics| metrics.waiting.get());
        let (driver, _) = crate::ring::open(crate::ring::Io::Epoll).expect("epoll");
        let port = Arc::new(Port::new(driver.waker()));
        let listener = Arc::new(Listener::inet(([127, 0, 0, 1], 80).into()));
        let tokens = [1, 2, 3].map(|slot| Token { slot, generation: 0 });
        let mut batch = Vec::new();
        for (token, queued_ms) in tokens.into_iter().zip(1..) {
            let (socket, _) = UnixStream::pair().expect("a socket");
            let link = Link::new(
                OwnedFd::from(socket).into(),
                token,
                Arc::clone(&port),
                Arc::clone(&listener),
                Peer::Unix,
            );
            let mut exchange = pool.blank();
            exchange.begin(Arc::new(link));
            exchange.request.queued_ms = queued_ms;
            batch.push(exchange);
        }
        pool.submit(&mut batch);
        assert_eq!(shown(), Some(3));
        pool.take_waiting_since(1, &mut batch);
        assert_eq!((batch.len(), shown()), (1, Some(2)));
        assert_eq!((pool.withdraw(&HashSet::from([tokens[2]])).len(), shown()), (1, Some(1)));
    }

    /// It counted as awake and alive for ever: nobody was woken for a request, and the worker's end waited for it.
    #[test]
    fn a_runner_that_could_not_be_made_is_not_counted() {
        let pool = Arc::new(Pool::new(2, Recorder::default()));
        let app: Arc<dyn Application> = Arc::new(Barren);
        pool.spawn(&app);
        assert!(pool.join(Instant::now() + Duration::from_secs(5)), "somebody is missing");
        assert_eq!(lock(&pool.queue).awake, 0);
    }
}
