//! One worker process after its fork: the I/O thread's loop, and the runners.
//!
//! The main thread becomes the first runner, because some libraries want the application on it. The I/O
//! thread is started after the fork, owns the ring, and never attaches to an interpreter.

mod access;
mod conn;
#[cfg(test)]
mod inline_tests;
mod io;
mod overdue;
mod parcel;
mod pool;
mod request_id;
mod siblings;
#[cfg(any(test, feature = "simulation"))]
#[doc(hidden)]
pub mod simulation;
mod status;
mod table;
#[cfg(test)]
mod tests;

use std::hash::{BuildHasher, RandomState};
use std::io as std_io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{Shutdown, shutdown};
use tracing::{debug, error, info, warn};

use self::access::{AccessLog, Recorder};
use self::io::Io;
pub(crate) use self::io::inline::Beside;
use self::io::inline::Inline;
use self::overdue::{Overdue, Patience};
use self::pool::Pool;
use self::request_id::RequestIds;
use self::siblings::Kin;
use self::status::Status;
use crate::app::native::{Service, Tasks, Worker};
use crate::app::{Application, Listener, Peer, Port, Runner};
use crate::config::{Settings, Trusted};
use crate::error::{Exit, StartError};
use crate::http::{Policy, ProxyMode};
use crate::limits::{DESCRIPTORS_RESERVED, HEARTBEAT_MS, QUICK_STOP_MS, STACK_PATIENCE_MS};
use crate::master::{LocalAddr, SiblingListener, WorkerContext, WorkerListener};
use crate::observe;
use crate::ring::{self, Accepting, Choice};
use crate::sys::atfork::Noted;
use crate::sys::errno::describe;
use crate::sys::fd::ignore_handshakes;
use crate::sys::shared::{Meter, Order, SharedPage, WorkerRecord, WorkerState};
use crate::sys::signal::{Signal, SignalSet, Signals};
use crate::sys::usage::Usage;
use crate::sys::{clock, process, rlimit, signal};

/// One listening socket of this worker.
struct Door {
    fd: OwnedFd,
    listener: Arc<Listener>,
    accepting: Accepting,
    /// It is the metrics address.
    observer: bool,
}

impl Door {
    fn new(from: WorkerListener) -> Self {
        let listener = match from.local {
            LocalAddr::Tcp(addr) => Listener::inet(addr),
            LocalAddr::Unix(path) => Listener::unix(path),
        };
        Self { fd: from.fd, listener: Arc::new(listener), accepting: from.accepting, observer: false }
    }

    /// The metrics address.
    fn for_observers(from: WorkerListener) -> Self {
        Self { observer: true, ..Self::new(from) }
    }

    fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Whether a connection waits in its queue.
    fn has_waiting(&self) -> bool {
        let mut waiting = [PollFd::new(&self.fd, PollFlags::IN)];
        // A listener that another worker has closed hangs up, and is readable for ever.
        matches!(poll(&mut waiting, Some(&Timespec::default())), Ok(1))
            && !waiting[0].revents().contains(PollFlags::HUP)
    }

    /// Whether it ends with the server: TCP sockets of our own. Shared ones may be somebody else's.
    fn is_ours(&self) -> bool {
        self.accepting == Accepting::Alone
    }

    /// Lets nobody new into the queue, for all processes that have the socket, if it is ours.
    fn ignore_handshakes(&self) {
        if self.is_ours()
            && let Err(error) = ignore_handshakes(self.fd.as_fd())
        {
            // Without it a handshake that ends between the last look at the queue and the close is reset.
            debug!("cannot filter what a listener gets: {error}");
        }
    }

    /// Ends listening, for all processes that have the socket, if it is ours: new clients are refused.
    fn close(&self) {
        if self.is_ours()
            && let Err(error) = shutdown(&self.fd, Shutdown::Both)
        {
            debug!("cannot close a listener: {error}");
        }
    }
}

/// What the I/O thread needs of the settings, in its own units.
struct Rules {
    policy: Policy,
    trusted: Trusted,
    /// Which PROXY headers connections may begin with, and who may send them.
    proxy_mode: ProxyMode,
    proxies: Trusted,
    connections_max: usize,
    body_buffer_bytes: usize,
    first_byte_ms: u64,
    header_ms: u64,
    body_ms: u64,
    response_ms: u64,
    /// Whether connections go on after their first request.
    keep_alive: bool,
    keepalive_ms: u64,
    linger_ms: u64,
    graceful_ms: u64,
    /// Whether somebody always wants to know how long requests take.
    timed: bool,
    patience: Patience,
    /// How long a request may wait for a runner.
    queue_ms: u64,
    /// How many may wait.
    queue_max: usize,
    /// After how many seconds those who were turned away are to come again.
    retry_after_s: u64,
    /// Whether heads are kept beside their connections, because the log tells of single requests.
    keep_heads: bool,
}

/// Where the I/O thread tells the master of requests that take too long.
struct Notices {
    shared: Arc<SharedPage>,
    record: usize,
    master_event: BorrowedFd<'static>,
}

impl Notices {
    fn publish(&self, overdue: &mut Overdue, now_ms: u64) {
        if let Some(page) = self.shared.in_hand(self.record) {
            overdue.publish(page, now_ms);
        }
    }

    /// This worker is to be replaced: a runner does not come back.
    fn spent(&self) {
        if let Some(record) = self.shared.record(self.record)
            && !record.is_spent()
        {
            record.set_spent();
            signal::notify(self.master_event);
        }
    }

    /// The only runner is stuck, and the log knows all about it.
    fn stuck(&self) {
        if let Some(record) = self.shared.record(self.record) {
            if let Some(page) = self.shared.in_hand(self.record) {
                page.set_told();
            }
            record.set_stuck(true);
            signal::notify(self.master_event);
        }
    }
}

impl Rules {
    fn new(settings: &Settings, timed: bool) -> Self {
        // Zero means "no limit" for these.
        let limit = |time: Duration| if time.is_zero() { u64::MAX } else { milliseconds(time) };
        Self {
            policy: Policy {
                request_line_bytes_max: settings.limit_request_line,
                fields_max: settings.limit_request_fields,
                field_bytes_max: settings.limit_request_field_size,
                body_bytes_max: settings.limit_request_body,
                header_map: settings.header_map,
                forwarder_headers: settings.forwarder_headers.clone(),
                secure_scheme_headers: settings.secure_scheme_headers.clone(),
                permit_obsolete_folding: settings.permit_obsolete_folding,
                strip_header_spaces: settings.strip_header_spaces,
                permit_unconventional_http_method: settings.permit_unconventional_http_method,
                permit_unconventional_http_version: settings.permit_unconventional_http_version,
                casefold_http_method: settings.casefold_http_method,
            },
            trusted: settings.forwarded_allow_ips.clone(),
            proxy_mode: settings.proxy_protocol,
            proxies: settings.proxy_allow_ips.clone(),
            connections_max: settings.worker_connections.unwrap_or_else(connections_max),
            body_buffer_bytes: settings.body_buffer,
            first_byte_ms: limit(settings.first_byte_timeout),
            header_ms: limit(settings.header_timeout),
            body_ms: limit(settings.body_timeout),
            response_ms: limit(settings.response_timeout),
            keep_alive: !settings.keepalive.is_zero(),
            // Also how often a busy connection is looked at, so never 0.
            keepalive_ms: milliseconds(settings.keepalive).max(HEARTBEAT_MS / 10),
            linger_ms: milliseconds(settings.linger_timeout),
            graceful_ms: milliseconds(settings.graceful_timeout),
            timed,
            patience: Patience {
                slow_ms: limit(settings.slow_request),
                request_ms: limit(settings.request_timeout),
                // As gunicorn's sync worker: with more threads one request does not stop the others.
                lone_ms: if settings.threads == 1 { limit(settings.timeout) } else { u64::MAX },
            },
            queue_ms: limit(settings.queue_timeout).min(limit(settings.request_timeout)),
            queue_max: if settings.queue_max == 0 { usize::MAX } else { settings.queue_max },
            // By then the queue has moved on once.
            retry_after_s: settings.queue_timeout.as_secs().max(1),
            keep_heads: !(settings.slow_request.is_zero() && settings.request_timeout.is_zero()),
        }
    }

    /// How long before the end of `graceful_timeout` the log is told what is still in hand.
    fn last_words_ms(&self) -> u64 {
        (self.graceful_ms / 2).min(2 * STACK_PATIENCE_MS)
    }

    /// Whether the peer may speak for others (`forwarded_allow_ips`).
    fn trusts(&self, peer: &Peer) -> bool {
        is_among(&self.trusted, peer)
    }

    /// Whether the peer may send a PROXY header (`proxy_allow_ips`).
    fn is_proxy(&self, peer: &Peer) -> bool {
        is_among(&self.proxies, peer)
    }
}

/// Peers of unix sockets are among the trusted always, as in gunicorn: who may connect is a matter of the
/// file's permissions.
fn is_among(trusted: &Trusted, peer: &Peer) -> bool {
    match peer {
        Peer::Unix => true,
        Peer::Inet { ip, .. } => trusted.contains(*ip),
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// As many connections as there are descriptors for, less what the application and the server open.
fn connections_max() -> usize {
    let descriptors = rlimit::raise_descriptors().unwrap_or(1024);
    usize::try_from(descriptors)
        .unwrap_or(usize::MAX)
        .saturating_sub(DESCRIPTORS_RESERVED)
        .max(DESCRIPTORS_RESERVED)
}

/// Whether this process is a worker that was told to leave.
static LEAVING: AtomicBool = AtomicBool::new(false);

/// Connections of this process, as of the I/O thread's last turn.
static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);

/// Connections that this process, a worker, has open. For any thread.
#[must_use]
pub fn connections() -> usize {
    CONNECTIONS.load(Ordering::Relaxed)
}

/// Whether this process is a worker that was told to leave. For any thread.
#[must_use]
pub fn is_leaving() -> bool {
    LEAVING.load(Ordering::Relaxed)
}

/// How the worker was told to leave, in rising urgency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stop {
    /// Somebody else goes on: finish what was accepted, and let idle connections end by themselves.
    Retire = 1,
    /// Finish what was accepted, soon.
    Leave = 2,
    /// The same, and nobody comes after us: serve what waits in the listeners, and close them.
    Close = 3,
    /// Leave now.
    Quick = 4,
}

/// The orders that signals and the master give this worker.
struct Orders {
    signals: Signals,
    access: Option<Arc<AccessLog>>,
    shared: Arc<SharedPage>,
    record: usize,
    stop: AtomicU8,
}

impl Orders {
    fn stop(&self) -> Option<Stop> {
        let arrived = self.signals.take();
        if !arrived.is_empty() {
            self.obey(arrived);
        }
        match self.stop.load(Ordering::Relaxed) {
            0 => {
                let record = self.shared.record(self.record)?;
                (record.order()? == Order::Renew).then(|| self.leave(Stop::Retire))
            }
            1 => Some(Stop::Retire),
            2 => Some(Stop::Leave),
            3 => Some(Stop::Close),
            _ => Some(Stop::Quick),
        }
    }

    fn obey(&self, arrived: SignalSet) {
        if arrived.contains(Signal::QUIT) || arrived.contains(Signal::INT) {
            LEAVING.store(true, Ordering::Relaxed);
            self.stop.store(Stop::Quick as u8, Ordering::Relaxed);
        } else if arrived.contains(Signal::TERM) {
            self.leave(match self.shared.record(self.record).and_then(WorkerRecord::order) {
                Some(Order::Retire) => Stop::Retire,
                // Without an order, or with one that needs no signal, somebody else has sent it.
                Some(Order::Renew | Order::Leave) | None => Stop::Leave,
                Some(Order::Close) => Stop::Close,
            });
        }
        if arrived.contains(Signal::USR1) {
            observe::reopen();
            if let Some(access) = &self.access {
                access.reopen();
            }
        }
    }

    fn leave(&self, stop: Stop) -> Stop {
        LEAVING.store(true, Ordering::Relaxed);
        self.stop.fetch_max(stop as u8, Ordering::Relaxed);
        if let Some(record) = self.shared.record(self.record) {
            record.set_state(WorkerState::Draining);
        }
        stop
    }
}

/// What allows io_uring, for messages.
const ALLOW_URING: &str = "`sysctl kernel.io_uring_disabled=0`, or allow io_uring_setup, io_uring_enter and \
                           io_uring_register in the container's seccomp profile";

/// Serves until told to leave. Called on the main thread of the worker, which becomes the first runner.
/// Returns the exit code.
pub fn run(context: WorkerContext, app: Arc<dyn Application>) -> i32 {
    let access = match AccessLog::open(&context.settings) {
        Ok(access) => access.map(Arc::new),
        Err(error) => {
            error!("{}", error.in_log());
            return error.exit().code();
        }
    };
    let recorder = Recorder::new(access.clone(), context.settings.python_log);
    let pool = Arc::new(Pool::new(context.settings.threads, recorder).measured_by(meter(&context)));
    let started = {
        let (pool, app, access) = (Arc::clone(&pool), Arc::clone(&app), access.clone());
        thread::Builder::new()
            .name("ringhorn-io".into())
            .spawn(move || io_thread(context, &pool, app, access))
    };
    let mut io = match started {
        Ok(io) => Some(io),
        Err(error) => {
            error!("cannot start the I/O thread: {error}");
            return Exit::Start.code();
        }
    };
    let mut code = Exit::Start.code();
    app.with_runner(&mut |runner| {
        if !(runner.attends() && pool.attend(runner, &app)) {
            pool.run_main(runner);
        }
        // The I/O thread waits for the other runners, and these for the interpreter: it must be free meanwhile.
        runner.park(&mut || {
            if let Some(Ok(ended)) = io.take().map(thread::JoinHandle::join) {
                code = ended;
            }
        });
    });
    if let Some(access) = access {
        access.flush();
    }
    info!("Worker exiting (pid: {})", process::id());
    code
}

/// A native service, and what runs beside its ring.
pub(crate) struct Served {
    /// What answers.
    pub(crate) service: Box<dyn Service>,
    /// An async runtime on the same thread.
    pub(crate) beside: Option<Box<dyn Beside>>,
}

/// Makes a worker's service, on the worker's thread. The second argument gives descriptors of which one is readable
/// when the ring has something to deliver.
pub(crate) type Make<'a> =
    dyn FnMut(&Worker, &mut dyn FnMut() -> std_io::Result<Vec<OwnedFd>>) -> Result<Served, StartError> + 'a;

/// Serves a native service until told to leave: the I/O thread is this one, the worker's main thread. Returns the
/// exit code.
pub(crate) fn run_native(context: WorkerContext, make: &mut Make<'_>) -> i32 {
    let access = match AccessLog::open(&context.settings) {
        Ok(access) => access.map(Arc::new),
        Err(error) => {
            error!("{}", error.in_log());
            return error.exit().code();
        }
    };
    // Without a thread. It only tells of refused requests.
    let pool = Arc::new(Pool::new(1, Recorder::new(access.clone(), false)));
    let served = serve(context, &pool, Arc::new(Nobody), access.clone(), Some(make));
    if let Err(error) = &served {
        error!("{}", error.in_log());
    }
    if let Some(access) = access {
        access.flush();
    }
    info!("Worker exiting (pid: {})", process::id());
    observe::flush();
    served.as_ref().err().map_or(Exit::Done, StartError::exit).code()
}

/// The application of a worker that has a service instead.
struct Nobody;

impl Application for Nobody {
    fn with_runner(&self, _body: &mut dyn FnMut(&mut dyn Runner)) {}
}

/// The I/O thread from its first line to its last. Returns the worker's exit code.
fn io_thread(
    context: WorkerContext,
    pool: &Arc<Pool>,
    app: Arc<dyn Application>,
    access: Option<Arc<AccessLog>>,
) -> i32 {
    let shared = Arc::clone(&context.shared);
    let record = context.record;
    let served = or_failed(|| serve(context, pool, app, access.clone(), None));
    let code = served.as_ref().err().map_or(Exit::Done, StartError::exit).code();
    if let Err(error) = &served {
        error!("{}", error.in_log());
    }
    // Runners finish what they have in hand, the main thread too, and `run` returns there.
    pool.close();
    let patience = served.as_ref().copied().unwrap_or(Duration::from_millis(QUICK_STOP_MS));
    if !pool.join(Instant::now() + patience) {
        // Somebody is still in the application, and its time is over.
        warn!("Worker exiting (pid: {}) while a request is still in the application", process::id());
        if let Some(access) = access {
            access.flush();
        }
        observe::flush();
        // One that was never ready stays so: the master takes it for a worker that cannot boot.
        if let Some(record) = shared.record(record)
            && record.state() >= WorkerState::Ready
        {
            record.set_state(WorkerState::Exited);
        }
        process::exit_now(code);
    }
    code
}

/// A panic is a bug of ours, and ends the worker as an error does. With the I/O thread alone gone, it would look ready and
/// serve nobody, until the master's patience is over.
fn or_failed(serve: impl FnOnce() -> Result<Duration, StartError>) -> Result<Duration, StartError> {
    catch_unwind(AssertUnwindSafe(serve)).unwrap_or_else(|_| {
        Err(StartError::new(Exit::Start, "the I/O thread panicked; this is a bug of the server"))
    })
}

/// Opens the ring, accepts, and works until told to leave. Returns how long the runners have to finish.
fn serve(
    mut context: WorkerContext,
    pool: &Arc<Pool>,
    app: Arc<dyn Application>,
    access: Option<Arc<AccessLog>>,
    make: Option<&mut Make<'_>>,
) -> Result<Duration, StartError> {
    let failed = |error: std_io::Error| {
        StartError::new(Exit::Start, format!("the I/O thread failed: {}", describe(&error)))
    };
    if make.is_none() {
        // Signals are the main thread's: Python's handlers run there.
        signal::block_all_in_this_thread().map_err(failed)?;
    }
    let (mut driver, choice) =
        ring::open(context.settings.io).map_err(|error| match context.settings.io {
            // It would fail again: that ends the start, instead of being tried for ever.
            ring::Io::Uring => {
                StartError::new(Exit::WorkerBoot, format!("io_uring is not available: {error}"))
                    .from(context.settings.source("io"))
                    .hint(format!("{ALLOW_URING}; or leave the choice to --io auto"))
            }
            _ => failed(error),
        })?;
    let mut noted = Noted::default();
    noted.extend(choice.fds.iter().copied());
    announce(&context, &choice);
    let waker = driver.waker();
    let mut doors: Vec<Door> = std::mem::take(&mut context.listeners).into_iter().map(Door::new).collect();
    doors.extend(std::mem::take(&mut context.metrics_listeners).into_iter().map(Door::for_observers));
    noted.extend(doors.iter().map(Door::fd));
    let meter = meter(&context);
    let rules = Arc::new(Rules::new(
        &context.settings,
        access.is_some() || context.settings.python_log || observe::statsd::metrics().is_some(),
    ));
    let status = Status::new(&context.settings, &context.shared);
    let port = Arc::new(Port::new(waker.clone()).expiring(rules.patience.request_ms != u64::MAX));
    let tasks = Rc::new(Tasks::new(waker.clone()));
    let inline = match make {
        None => None,
        Some(make) => {
            let (slot, age, threads) = (context.slot, context.age, context.settings.threads);
            let worker = Worker::new(slot, age, threads, Arc::clone(&port), Rc::clone(&tasks));
            let Served { service, beside } = make(&worker, &mut || driver.readiness())?;
            Some(Inline::new(service, Rc::clone(&tasks), beside, access.clone(), meter.clone()))
        }
    };
    let mut io = Io::new(driver, doors, rules, Arc::clone(pool), app, port);
    if let Some(inline) = inline {
        io.serve_with(inline);
    }
    io.observe(status, meter);
    io.identify(context.settings.request_id_header.as_deref().map(RequestIds::new));
    // What was said until here is written; from here on nobody waits for that.
    observe::allow_thread();
    io.open();
    context.set_ready();
    let mut life = Life::new(&context.settings, clock::monotonic_ms());
    let WorkerContext {
        shared,
        record,
        slot,
        mut signals,
        master_event,
        mailboxes,
        siblings,
        listeners_age,
        ..
    } = context;
    noted.extend(mailboxes.fds());
    noted.extend(siblings.iter().map(|sibling| sibling.listener.fd.as_raw_fd()));
    // They need not accept for this slot any longer.
    for other in shared.used().map(|(other, _)| other).filter(|other| other.state() == WorkerState::Ready) {
        mailboxes.poke(other.slot() as usize);
    }
    let foreign = siblings.into_iter().map(|SiblingListener { slot, listener }| (slot, Door::new(listener)));
    io.join(
        Box::new(Kin { shared: Arc::clone(&shared), mailboxes, record, slot, listeners_age }),
        foreign.collect(),
    );
    io.tell(Notices { shared: Arc::clone(&shared), record, master_event });
    signals.wake_through(waker.try_clone_fd().map_err(failed)?);
    let orders = Orders { signals, access, shared: Arc::clone(&shared), record, stop: AtomicU8::new(0) };
    let left = io.run(&|| orders.stop(), &mut |now_ms, begun| {
        let Some(record) = shared.record(record) else { return };
        record.beat(now_ms);
        if begun > 0 {
            record.add_requests(begun);
        }
        if let Some(why) = life.is_over(now_ms, begun, record) {
            // gunicorn's words. It serves on until the replacement is ready, and tells it to leave.
            info!("Autorestarting worker after current request. ({why})");
            record.set_spent();
            signal::notify(master_event);
        }
    });
    // From here on they are closed, and what the application opens at its end gets their numbers.
    drop(noted);
    // Responders that are still owed an answer are dropped while their connections can hear of it.
    tasks.clear();
    let left = left.map_err(failed)?;
    Ok(Duration::from_millis(left).max(Duration::from_millis(QUICK_STOP_MS)))
}

/// Where this worker counts: always when there is an address to read it at, otherwise while somebody watches through
/// the control socket.
fn meter(context: &WorkerContext) -> Option<Meter> {
    context.shared.meter(context.record, context.settings.metrics_bind.is_some())
}

/// How long a worker lives: until it has answered `max_requests`, grown to `max_worker_memory`, or reached
/// `max_worker_age`.
struct Life {
    requests_max: u64,
    memory_bytes_max: u64,
    end_ms: u64,
    /// When memory and age are looked at again.
    look_ms: u64,
}

impl Life {
    fn new(settings: &Settings, now_ms: u64) -> Self {
        // Zero means "never" for all of them.
        let limit = |most: u64, jitter: u64| match most {
            0 => u64::MAX,
            _ => most.saturating_add(random_up_to(jitter)),
        };
        let age_ms =
            limit(milliseconds(settings.max_worker_age), milliseconds(settings.max_worker_age_jitter));
        Self {
            requests_max: limit(settings.max_requests, settings.max_requests_jitter),
            memory_bytes_max: limit(settings.max_worker_memory, 0),
            end_ms: now_ms.saturating_add(age_ms),
            look_ms: 0,
        }
    }

    /// Why the worker is to be replaced, once. Called at each turn, so what takes a system call is asked once in a
    /// heartbeat.
    fn is_over(&mut self, now_ms: u64, begun: u64, record: &WorkerRecord) -> Option<&'static str> {
        if begun > 0 && record.requests() >= self.requests_max {
            return (!record.is_spent()).then_some("max_requests");
        }
        if now_ms < self.look_ms {
            return None;
        }
        self.look_ms = now_ms + HEARTBEAT_MS;
        let why = if now_ms >= self.end_ms {
            "max_worker_age"
        } else if self.memory_bytes_max != u64::MAX
            && Usage::of(process::id()).is_some_and(|usage| usage.resident_bytes >= self.memory_bytes_max)
        {
            "max_worker_memory"
        } else {
            return None;
        };
        (!record.is_spent()).then_some(why)
    }
}

/// A random number from 0 to `most`.
fn random_up_to(most: u64) -> u64 {
    // The standard library seeds its hashes from the kernel's random numbers: good enough, and there. But once for a
    // thread, and forked workers have the master's: what makes them differ is their number.
    let random = RandomState::new().hash_one(std::process::id());
    most.checked_add(1).map_or(random, |count| random % count)
}

/// The first worker says for all which backend serves, and why not the other.
fn announce(context: &WorkerContext, choice: &Choice) {
    match &choice.reason {
        // One line: collectors of logs take lines apart.
        Some(reason) if context.age == 1 => warn!(
            "io_uring is not available ({reason}), serving with {}; to use it: {ALLOW_URING}; --io {} is silent",
            choice.name, choice.name
        ),
        None if context.age == 1 => info!("Using I/O backend: {}", choice.name),
        _ => debug!("I/O backend: {}", choice.name),
    }
}
