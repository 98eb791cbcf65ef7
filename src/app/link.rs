//! What the I/O thread and a runner share of one connection while a request is being answered.
//!
//! The quick path touches one atomic: the I/O thread marks the link busy when it hands a request
//! over, the runner marks it idle when the whole answer is in the socket. Nobody is woken. Only what
//! is out of the ordinary (an unsent rest, a streamed body, a close, bytes of the next request
//! waiting) goes through the lock and a report to the I/O thread.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task;

use super::{BodyError, Listener, Peer, Progress};
use crate::http;
use crate::limits::{COALESCE_BYTES_MAX, HOLD_BYTES_MAX, RESPONSE_QUEUE_BYTES, RESPONSE_QUEUES_BYTES};
use crate::ring::{Socket, Token, Waker};
use crate::sync::lock;
use crate::sys::clock;

/// Memory of the application that is sent from where it lies. Dropping it must be safe on any thread.
pub type Held = Box<dyn AsRef<[u8]> + Send>;

/// How the runner left the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The answer is complete and the connection goes on.
    Keep,
    /// The last answer of this connection is written, whole or visibly cut.
    Close,
    /// The answer had to be cut and only a reset shows it: its end was to be the connection's end.
    Reset,
}

/// Nobody answers on this connection; the I/O thread may hand the next request over.
const IDLE: u8 = 0;
/// A runner has a request of this connection, or it waits for a runner.
const BUSY: u8 = 1;
/// As `BUSY`, and the I/O thread wants to hear of the end: bytes of the next request wait.
const BUSY_ATTENTION: u8 = 2;
/// The answer is complete, but something remains for the I/O thread: a rest to send, a close.
const FINISHED: u8 = 3;

/// Nobody has begun the answer: runner or I/O thread may.
const UNCLAIMED: u8 = 0;
/// The runner's answer has begun, or is about to.
const ANSWERED: u8 = 1;
/// The I/O thread has answered, because the request's time was over. What the runner says goes nowhere.
const EXPIRED: u8 = 2;

/// The way from runners to the I/O thread: which connections to look at.
pub struct Port {
    waker: Waker,
    reports: Mutex<Reports>,
    /// Answers that are complete may wait for the I/O thread ([`Port::rest`]).
    gathers: AtomicBool,
    /// Whether the worker is leaving: answers announce the close of their connection.
    draining: AtomicBool,
    /// Bytes of memory that wait to be sent, on all connections of the worker.
    queued_bytes: AtomicUsize,
    /// Whether the I/O thread may answer in a runner's place (`request_timeout`). Without it, nobody asks whose answer
    /// it is.
    expires: bool,
    /// Bytes that left through [`Link::flush`] and [`Link::say`]: not by the quick way.
    sent_bytes: AtomicU64,
    /// The longest time that pieces were kept back until the I/O thread looked, for simulations to judge.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) longest_held_ms: AtomicU64,
}

#[derive(Default)]
struct Reports {
    tokens: Vec<Token>,
    /// The I/O thread rests where the waker does not reach it, and looks at the reports next.
    resting: bool,
    /// The I/O thread looks at the reports at least every [`HOLD_MS`](crate::limits::HOLD_MS).
    watching: bool,
    /// One of the tokens has pieces that were kept back.
    held: bool,
}

impl Port {
    /// A port that wakes the driver behind `waker`.
    #[must_use]
    pub fn new(waker: Waker) -> Self {
        Self {
            waker,
            reports: Mutex::new(Reports::default()),
            gathers: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            queued_bytes: AtomicUsize::new(0),
            expires: false,
            sent_bytes: AtomicU64::new(0),
            #[cfg(any(test, feature = "simulation"))]
            longest_held_ms: AtomicU64::new(0),
        }
    }

    /// Lets the I/O thread answer requests whose time is over ([`Link::expire`]).
    #[must_use]
    pub fn expiring(self, expires: bool) -> Self {
        Self { expires, ..self }
    }

    /// Bytes that were sent so far as rests of answers, or as the server's own.
    #[must_use]
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    /// Moves the reports since the last call into `into`. Returns whether pieces are kept back somewhere: then the I/O
    /// thread is to watch (`Port::watch`). For the I/O thread.
    pub fn collect(&self, into: &mut Vec<Token>) -> bool {
        let mut reports = lock(&self.reports);
        into.append(&mut reports.tokens);
        std::mem::take(&mut reports.held)
    }

    /// Whether the I/O thread looks at the reports at least every [`HOLD_MS`](crate::limits::HOLD_MS) from now on, so
    /// that it need not be woken for pieces that are kept back. Returns whether there are reports, which it has to
    /// collect before it sleeps.
    #[must_use]
    pub(crate) fn watch(&self, watching: bool) -> bool {
        let mut reports = lock(&self.reports);
        reports.watching = watching;
        !reports.tokens.is_empty()
    }

    /// Whether pieces are kept back that the I/O thread has not heard of.
    pub(crate) fn has_held(&self) -> bool {
        lock(&self.reports).held
    }

    /// The I/O thread rests: it is not to be woken, and looks at the reports when it has rested. Lets it send complete
    /// answers then, if it `gathers`: many in a row, for one wake-up of the client's side. Ends with [`Port::rise`].
    pub(crate) fn rest(&self, gathers: bool) {
        lock(&self.reports).resting = true;
        self.gathers.store(gathers, Ordering::Relaxed);
    }

    /// The I/O thread has rested. Returns whether there are reports, which it has to collect before it sleeps: nobody has
    /// woken it for them.
    #[must_use]
    pub(crate) fn rise(&self) -> bool {
        self.gathers.store(false, Ordering::Relaxed);
        let mut reports = lock(&self.reports);
        // Whoever saw the old value of `gathers` and comes later than this wakes it.
        reports.resting = false;
        !reports.tokens.is_empty()
    }

    /// From now on every answer ends its connection.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Whether [`Port::drain`] was called.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    fn queued_bytes(&self) -> usize {
        self.queued_bytes.load(Ordering::Relaxed)
    }

    fn report(&self, token: Token, urgent: bool) {
        let mut reports = lock(&self.reports);
        reports.tokens.push(token);
        let deaf = reports.resting;
        drop(reports);
        if urgent && !deaf {
            self.waker.wake();
        }
    }

    /// Pieces are kept back on this connection: the I/O thread is to look at it before long.
    fn report_held(&self, token: Token) {
        let mut reports = lock(&self.reports);
        reports.tokens.push(token);
        reports.held = true;
        let comes = reports.resting || reports.watching;
        drop(reports);
        if !comes {
            self.waker.wake();
        }
    }
}

/// What remains of an answer when the socket had no more room.
pub(super) enum Rest {
    /// Copied bytes, and how many of them were sent.
    Copied(Vec<u8>, usize),
    /// The application's own bytes: the part from the first to the second offset is unsent.
    Held(Held, usize, usize),
    /// A file: offset of the next byte, bytes left.
    File(OwnedFd, u64, u64),
}

impl Rest {
    /// Bytes of memory that this rest keeps in use; a file keeps none.
    fn bytes(&self) -> usize {
        match self {
            Self::Copied(bytes, sent) => bytes.len() - sent,
            Self::Held(_, from, to) => to - from,
            Self::File(..) => 0,
        }
    }

    /// The bytes that are unsent, of memory.
    fn unsent(&self) -> Option<&[u8]> {
        match self {
            Self::Copied(bytes, sent) => Some(&bytes[*sent..]),
            Self::Held(held, from, to) => {
                let bytes: &[u8] = (**held).as_ref();
                Some(&bytes[*from..*to])
            }
            Self::File(..) => None,
        }
    }
}

/// Parts that leave in one sendmsg(2): of pieces in chunks, each has one and what frames it another.
const PARTS: usize = 128;

/// Sends what is taken at once of the memory in front. Returns how many bytes were taken, and how many offered.
fn send_memory(
    rests: &VecDeque<Rest>,
    send: impl FnOnce(&[IoSlice<'_>]) -> io::Result<usize>,
) -> io::Result<(usize, usize)> {
    let mut parts = [IoSlice::new(&[]); PARTS];
    let (mut count, mut offered) = (0, 0);
    for (part, bytes) in parts.iter_mut().zip(rests.iter().map_while(Rest::unsent)) {
        *part = IoSlice::new(bytes);
        count += 1;
        offered += bytes.len();
    }
    Ok((send(&parts[..count])?, offered))
}

/// Sends and drops memory until less is taken than was offered: a client that reads as fast as this sends would hold the
/// runner, and the interpreter with it. Returns how many bytes were taken.
fn send_while_taken(
    rests: &mut VecDeque<Rest>,
    mut send: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut sent = 0;
    while !rests.is_empty() {
        match send_memory(rests, &mut send) {
            Ok((taken, offered)) => {
                drop_sent(rests, taken);
                sent += taken;
                if taken < offered || taken == 0 {
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}

/// Drops what is sent: so many bytes of memory, from the front.
fn drop_sent(rests: &mut VecDeque<Rest>, mut sent: usize) {
    while let Some(rest) = rests.front_mut() {
        let bytes = rest.bytes();
        if matches!(rest, Rest::File(..)) || sent < bytes {
            match rest {
                Rest::Copied(_, from) | Rest::Held(_, from, _) => *from += sent,
                Rest::File(..) => {}
            }
            return;
        }
        sent -= bytes;
        rests.pop_front();
    }
}

impl Gate {
    /// Puts a copy of these bytes behind the rests.
    fn append(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.rest_bytes += bytes.len();
        match self.rests.back_mut() {
            // Not without end: what is sent of it is let go with the last byte.
            Some(Rest::Copied(copied, _)) if copied.len() + bytes.len() <= COALESCE_BYTES_MAX => {
                copied.extend_from_slice(bytes);
            }
            _ => self.rests.push_back(Rest::Copied(bytes.to_vec(), 0)),
        }
    }
}

/// Where a streamed request body stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Arrival {
    Expected,
    Complete,
    Failed(BodyError),
}

struct Gate {
    rests: VecDeque<Rest>,
    /// Threads that wait on `changed`.
    waiting: u32,
    /// The runner keeps `rests` back, and nobody has found the socket full: who comes first sends them.
    held: bool,
    /// Since when.
    #[cfg(any(test, feature = "simulation"))]
    held_since_ms: u64,
    /// Bytes of memory in `rests`.
    rest_bytes: usize,
    /// The peer cannot be reached any more: what is sent goes nowhere.
    gone: bool,
    /// How the answer ended, once `FINISHED`.
    outcome: Outcome,
    body: Vec<u8>,
    /// Which streamed body of this connection `body` belongs to.
    body_serial: u64,
    arrival: Arrival,
    /// The I/O thread stopped receiving because enough of the body waits here.
    body_paused: bool,
    /// Tasks of a native service that wait as threads wait on `changed`: for bytes of the body, and for room.
    tasks: [Option<task::Waker>; 2],
}

/// Places in [`Gate::tasks`].
const BODY: usize = 0;
const ROOM: usize = 1;

/// One connection, as both sides know it.
pub struct Link {
    socket: Socket,
    token: Token,
    port: Arc<Port>,
    listener: Arc<Listener>,
    peer: Peer,
    /// Where the client of a PROXY header had connected to.
    proxied_to: Option<Box<SocketAddr>>,
    state: AtomicU8,
    /// Whose the answer is, where requests expire.
    claim: AtomicU8,
    /// When the last answer was complete, in milliseconds of the monotonic clock.
    idle_since_ms: AtomicU64,
    /// The client waits for `100 Continue` before it sends the body, and no answer has begun.
    continue_owed: AtomicBool,
    /// A rest that belongs to no answer was queued: the answer must queue behind it.
    said: AtomicBool,
    gate: Mutex<Gate>,
    changed: Condvar,
}

/// What the I/O thread finds when it looks at a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The last answer is complete and sent.
    Idle,
    /// A request is being answered.
    Busy,
    /// The answer is complete; rests may be unsent.
    Finished(Outcome),
}

/// What came of sending the rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// Nothing is left.
    All,
    /// The socket is full: wait for room. Bytes went out if `progress`.
    Full {
        /// Whether any byte was taken by the socket.
        progress: bool,
    },
    /// The peer is gone.
    Gone,
}

impl Link {
    /// A new connection, idle.
    #[must_use]
    pub fn new(socket: Socket, token: Token, port: Arc<Port>, listener: Arc<Listener>, peer: Peer) -> Self {
        Self {
            socket,
            token,
            port,
            listener,
            peer,
            proxied_to: None,
            state: AtomicU8::new(IDLE),
            claim: AtomicU8::new(UNCLAIMED),
            idle_since_ms: AtomicU64::new(0),
            continue_owed: AtomicBool::new(false),
            said: AtomicBool::new(false),
            gate: Mutex::new(Gate {
                rests: VecDeque::new(),
                waiting: 0,
                held: false,
                #[cfg(any(test, feature = "simulation"))]
                held_since_ms: 0,
                rest_bytes: 0,
                gone: false,
                outcome: Outcome::Keep,
                body: Vec::new(),
                body_serial: 0,
                arrival: Arrival::Complete,
                body_paused: false,
                tasks: [None, None],
            }),
            changed: Condvar::new(),
        }
    }

    /// Which connection of the worker this is.
    #[must_use]
    pub fn token(&self) -> Token {
        self.token
    }

    /// The socket, to send to.
    #[must_use]
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Who is on the other side.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// A PROXY header said who the client is, for the whole connection, and where it had connected to.
    pub fn announce(&mut self, client: SocketAddr, destination: SocketAddr) {
        self.peer = Peer::from(client);
        self.proxied_to = Some(Box::new(destination));
    }

    /// Where the client that a PROXY header announced had connected to.
    #[must_use]
    pub fn proxied_to(&self) -> Option<SocketAddr> {
        self.proxied_to.as_deref().copied()
    }

    /// Where the connection came in.
    #[must_use]
    pub fn listener(&self) -> &Listener {
        &self.listener
    }

    /// Whether answers must announce the end of the connection.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.port.is_draining()
    }

    // ---- the I/O thread's side -------------------------------------------------------------

    /// Marks the link busy. Called before the request is handed over.
    pub fn hand_over(&self) {
        if self.port.expires {
            self.claim.store(UNCLAIMED, Ordering::Relaxed);
        }
        self.state.store(BUSY, Ordering::Release);
    }

    /// Prepares the streaming of a body. Called before the request is handed over.
    pub fn expect_body(&self, continue_owed: bool) {
        let mut gate = lock(&self.gate);
        gate.body.clear();
        gate.body_serial += 1;
        gate.arrival = Arrival::Expected;
        gate.body_paused = false;
        self.continue_owed.store(continue_owed, Ordering::Relaxed);
    }

    /// Where the link stands.
    #[must_use]
    pub fn standing(&self) -> Standing {
        match self.state.load(Ordering::Acquire) {
            IDLE => Standing::Idle,
            FINISHED => Standing::Finished(lock(&self.gate).outcome),
            _ => Standing::Busy,
        }
    }

    /// Asks to be told when the answer is complete. Returns the standing when it already is.
    #[must_use]
    pub fn want_attention(&self) -> Standing {
        match self.state.compare_exchange(BUSY, BUSY_ATTENTION, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) | Err(BUSY_ATTENTION) => Standing::Busy,
            Err(_) => self.standing(),
        }
    }

    /// Whether bytes of a later request wait behind the one in hand.
    #[must_use]
    pub fn has_more_waiting(&self) -> bool {
        self.state.load(Ordering::Acquire) == BUSY_ATTENTION
    }

    /// After `Finished` was dealt with and the connection goes on.
    pub fn reopen(&self) {
        self.state.store(IDLE, Ordering::Release);
    }

    /// When the last answer was complete (monotonic milliseconds).
    #[must_use]
    pub fn idle_since_ms(&self) -> u64 {
        self.idle_since_ms.load(Ordering::Relaxed)
    }

    /// Sends what it can of the rests, without blocking.
    pub fn flush(&self) -> Flushed {
        let mut gate = lock(&self.gate);
        #[cfg(any(test, feature = "simulation"))]
        if gate.held {
            let held_ms = clock::monotonic_coarse_ms() - gate.held_since_ms;
            self.port.longest_held_ms.fetch_max(held_ms, Ordering::Relaxed);
        }
        let mut progress = false;
        let flushed = loop {
            if gate.gone {
                break Flushed::Gone;
            }
            let Some(rest) = gate.rests.front_mut() else {
                gate.held = false;
                break Flushed::All;
            };
            let sent = match rest {
                Rest::File(file, offset, left) => {
                    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(FILE_SLICE_BYTES);
                    match self.socket.send_file(file.as_fd(), offset, count) {
                        // The file is shorter than promised. The client must see the cut.
                        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                        Ok(sent) => {
                            *left -= sent as u64;
                            if *left == 0 {
                                gate.rests.pop_front();
                            }
                            Ok(sent)
                        }
                        failed => failed,
                    }
                }
                _ => send_memory(&gate.rests, |parts| self.socket.send(parts)).map(|(sent, _)| {
                    self.took(&mut gate, sent);
                    sent
                }),
            };
            match sent {
                Ok(sent) => {
                    progress |= sent > 0;
                    self.port.sent_bytes.fetch_add(sent as u64, Ordering::Relaxed);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    gate.held = false;
                    break Flushed::Full { progress };
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.give_up(&mut gate),
            }
        };
        if progress || flushed != (Flushed::Full { progress: false }) {
            self.announce_change(gate);
        }
        flushed
    }

    /// The socket has taken so many bytes of memory.
    fn took(&self, gate: &mut Gate, sent: usize) {
        drop_sent(&mut gate.rests, sent);
        gate.rest_bytes -= sent;
        self.port.queued_bytes.fetch_sub(sent, Ordering::Relaxed);
    }

    /// Whether rests wait to be sent.
    #[must_use]
    pub fn has_rest(&self) -> bool {
        !lock(&self.gate).rests.is_empty()
    }

    /// The peer cannot be reached any more: whoever waits for it is let go.
    pub fn lose(&self) {
        let mut gate = lock(&self.gate);
        self.give_up(&mut gate);
        if gate.arrival == Arrival::Expected {
            gate.arrival = Arrival::Failed(BodyError::Truncated);
        }
        self.announce_change(gate);
    }

    /// Lets go whoever waits for something on this connection, to look again.
    fn announce_change(&self, mut gate: MutexGuard<'_, Gate>) {
        let tasks = std::mem::take(&mut gate.tasks);
        let waited_for = gate.waiting > 0;
        drop(gate);
        // A system call, also when nobody waits.
        if waited_for {
            self.changed.notify_all();
        }
        tasks.into_iter().flatten().for_each(task::Waker::wake);
    }

    /// Waits for the next change on this connection.
    fn wait_for_change<'a>(&'a self, mut gate: MutexGuard<'a, Gate>) -> MutexGuard<'a, Gate> {
        gate.waiting += 1;
        gate = self.changed.wait(gate).unwrap_or_else(PoisonError::into_inner);
        gate.waiting -= 1;
        gate
    }

    /// Forgets what can no longer be sent.
    fn give_up(&self, gate: &mut Gate) {
        gate.gone = true;
        gate.rests.clear();
        self.port.queued_bytes.fetch_sub(std::mem::take(&mut gate.rest_bytes), Ordering::Relaxed);
    }

    /// Appends body bytes by calling `decode` on the buffer of those that wait. Returns what
    /// `decode` returned and how many bytes now wait.
    pub fn feed_body<R>(&self, decode: impl FnOnce(&mut Vec<u8>) -> R) -> (R, usize) {
        let mut gate = lock(&self.gate);
        let result = decode(&mut gate.body);
        let waiting = gate.body.len();
        self.announce_change(gate);
        (result, waiting)
    }

    /// Notes that receiving pauses until the application has read; the reader reports when it has.
    /// Returns false when it has done so meanwhile.
    #[must_use]
    pub fn pause_body(&self, bytes_max: usize) -> bool {
        let mut gate = lock(&self.gate);
        gate.body_paused = gate.body.len() >= bytes_max;
        gate.body_paused
    }

    /// The body is complete, or will not be.
    pub fn end_body(&self, result: Result<(), BodyError>) {
        let mut gate = lock(&self.gate);
        gate.arrival = match result {
            Ok(()) => Arrival::Complete,
            Err(error) => Arrival::Failed(error),
        };
        self.announce_change(gate);
    }

    /// Drops what nobody will read of a streamed body.
    pub fn discard_body(&self) {
        let mut gate = lock(&self.gate);
        gate.body = Vec::new();
        gate.body_serial += 1;
        gate.body_paused = false;
        self.continue_owed.store(false, Ordering::Relaxed);
        self.announce_change(gate);
    }

    /// Whether the client waits for a `100 Continue` that the application has not decided about.
    #[must_use]
    pub fn owes_continue(&self) -> bool {
        self.continue_owed.load(Ordering::Relaxed)
    }

    /// Sends bytes of the server's own, an interim answer or a refusal, while no answer is being sent. Returns
    /// whether a part of them waits as a rest: [`Link::flush`] sends it, ahead of every later answer.
    #[must_use]
    pub fn say(&self, bytes: &[u8]) -> bool {
        let mut gate = lock(&self.gate);
        if self.claim.load(Ordering::Relaxed) == EXPIRED {
            return false;
        }
        self.say_through(&mut gate, bytes)
    }

    fn say_through(&self, gate: &mut Gate, bytes: &[u8]) -> bool {
        if gate.gone {
            return false;
        }
        // The last answer may still fill the socket, and half an interim answer would be read as the
        // beginning of the final one.
        let sent = if gate.rests.is_empty() { self.socket.send(&[IoSlice::new(bytes)]) } else { Ok(0) };
        let sent = match sent {
            Ok(sent) => sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            // The client is gone, which the receive side reports.
            Err(_) => return false,
        };
        self.port.sent_bytes.fetch_add(sent as u64, Ordering::Relaxed);
        if sent == bytes.len() {
            return false;
        }
        gate.rest_bytes += bytes.len() - sent;
        self.port.queued_bytes.fetch_add(bytes.len() - sent, Ordering::Relaxed);
        gate.rests.push_back(Rest::Copied(bytes[sent..].to_vec(), 0));
        gate.held = false;
        self.said.store(true, Ordering::Relaxed);
        true
    }

    /// Answers with `page` in the place of a runner, unless its answer has begun. Then the page is the last that the
    /// client gets, and whatever the runner says later goes nowhere. Returns whether it was in time.
    #[must_use]
    pub fn expire(&self, page: &[u8]) -> bool {
        let mut gate = lock(&self.gate);
        if self.claim.compare_exchange(UNCLAIMED, EXPIRED, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return false;
        }
        // The runner says nothing of its own from here on: it would have to claim the answer, or hold the gate.
        self.withdraw_continue();
        let _ = self.say_through(&mut gate, page);
        gate.outcome = Outcome::Close;
        if gate.arrival == Arrival::Expected {
            gate.arrival = Arrival::Failed(BodyError::TimedOut);
        }
        self.state.store(FINISHED, Ordering::Release);
        drop(gate);
        self.changed.notify_all();
        true
    }

    /// Ends an answer in a runner's place, after all of it was said.
    pub fn conclude(&self, outcome: Outcome) {
        lock(&self.gate).outcome = outcome;
        self.state.store(FINISHED, Ordering::Release);
    }

    // ---- the runner's side -----------------------------------------------------------------

    /// Sends an interim answer ahead of the one in hand.
    pub(super) fn interim(&self, bytes: &[u8]) {
        if self.say(bytes) {
            self.port.report(self.token, true);
        }
    }

    /// Whether the I/O thread looks for pieces that are kept back, without being woken for them.
    pub(super) fn is_watched(&self) -> bool {
        let reports = lock(&self.port.reports);
        reports.resting || reports.watching
    }

    /// Whether a complete answer may be left to the I/O thread.
    pub(super) fn gathers(&self) -> bool {
        self.port.gathers.load(Ordering::Relaxed)
    }

    /// Whether an answer must be claimed before its first byte is sent.
    pub(super) fn expires(&self) -> bool {
        self.port.expires
    }

    /// Begins the answer. False when the I/O thread has answered already.
    pub(super) fn claim(&self) -> bool {
        self.claim.compare_exchange(UNCLAIMED, ANSWERED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Which streamed body the link is at.
    pub(super) fn body_serial(&self) -> u64 {
        lock(&self.gate).body_serial
    }

    pub(super) fn take_body(&self, serial: u64, into: &mut Vec<u8>) -> Result<Progress, BodyError> {
        let mut gate = lock(&self.gate);
        if gate.body_serial != serial {
            // An application kept its input: its request is over, and the next one's body is not for it.
            return Err(BodyError::Truncated);
        }
        if self.withdraw_continue() {
            self.say_through(&mut gate, http::CONTINUE);
            // Also when all of it has left: from here on the client's time runs.
            self.port.report(self.token, true);
        }
        if gate.body.is_empty() {
            return match gate.arrival {
                Arrival::Expected => Ok(Progress::Pending),
                Arrival::Complete => Ok(Progress::End),
                Arrival::Failed(error) => Err(error),
            };
        }
        into.append(&mut gate.body);
        let resume = std::mem::take(&mut gate.body_paused);
        drop(gate);
        if resume {
            self.port.report(self.token, true);
        }
        Ok(Progress::Ready)
    }

    /// From here on no `100 Continue` is sent: an answer begins, in which it would be taken for a part of the
    /// body (RFC 9110 section 10.1.1). Returns whether one was owed.
    pub(crate) fn withdraw_continue(&self) -> bool {
        self.continue_owed.load(Ordering::Relaxed) && self.continue_owed.swap(false, Ordering::Relaxed)
    }

    /// Whether something was said, once, that may still be on its way.
    pub(super) fn take_said(&self) -> bool {
        self.said.load(Ordering::Relaxed) && self.said.swap(false, Ordering::Relaxed)
    }

    /// Has `task` woken when there is more to take of the body; at once when there is already.
    pub(super) fn wake_for_body(&self, serial: u64, task: &task::Waker) {
        let mut gate = lock(&self.gate);
        if gate.body_serial == serial && gate.body.is_empty() && gate.arrival == Arrival::Expected {
            gate.tasks[BODY] = Some(task.clone());
        } else {
            drop(gate);
            task.wake_by_ref();
        }
    }

    pub(super) fn wait_for_body(&self, serial: u64) {
        let mut gate = lock(&self.gate);
        while gate.body_serial == serial && gate.body.is_empty() && gate.arrival == Arrival::Expected {
            gate = self.wait_for_change(gate);
        }
    }

    /// Queues rests for the I/O thread. Returns false when the peer is gone.
    pub(super) fn queue(&self, rests: impl IntoIterator<Item = Rest>) -> bool {
        let mut gate = lock(&self.gate);
        if gate.gone {
            return false;
        }
        // One that waits already is known to the I/O thread, and so is what comes behind it.
        let known = !gate.rests.is_empty() && !gate.held;
        gate.held = false;
        for rest in rests {
            gate.rest_bytes += rest.bytes();
            self.port.queued_bytes.fetch_add(rest.bytes(), Ordering::Relaxed);
            gate.rests.push_back(rest);
        }
        drop(gate);
        if !known {
            self.port.report(self.token, true);
        }
        true
    }

    /// Keeps bytes back that come quickly behind others, to send all of them at once: `out`, the body's `piece` and what
    /// comes `after` it. The I/O thread sends them if the runner has not done so before it looks. With `due`, or when
    /// [`HOLD_BYTES_MAX`] wait, they leave at once, with all that waited. Returns how many bytes left here; `None` when the
    /// peer is gone.
    pub(super) fn hold(
        &self,
        out: &mut Vec<u8>,
        piece: Option<Rest>,
        after: &[u8],
        due: bool,
    ) -> Option<usize> {
        let mut gate = lock(&self.gate);
        if gate.gone {
            return None;
        }
        let begins = gate.rests.is_empty();
        let before = gate.rest_bytes;
        gate.append(out);
        out.clear();
        if let Some(piece) = piece {
            gate.rest_bytes += piece.bytes();
            gate.rests.push_back(piece);
        }
        gate.append(after);
        self.port.queued_bytes.fetch_add(gate.rest_bytes - before, Ordering::Relaxed);
        gate.held |= begins;
        #[cfg(any(test, feature = "simulation"))]
        if begins {
            gate.held_since_ms = clock::monotonic_coarse_ms();
        }
        if !gate.held || gate.rests.is_empty() {
            // The I/O thread is at it, and sends in order.
            return Some(0);
        }
        if due || gate.rest_bytes >= HOLD_BYTES_MAX {
            return self.release(gate);
        }
        drop(gate);
        if begins {
            self.port.report_held(self.token);
        }
        Some(0)
    }

    /// Sends what was kept back.
    fn release(&self, mut gate: MutexGuard<'_, Gate>) -> Option<usize> {
        // Taken out while they are sent: the I/O thread shall not wait for that. It finds nothing to do, and nobody else
        // puts anything there while the answer is the caller's.
        let mut rests = std::mem::take(&mut gate.rests);
        drop(gate);
        let sent = send_while_taken(&mut rests, |parts| self.socket.send(parts));
        let mut gate = lock(&self.gate);
        if gate.gone {
            return None;
        }
        let Ok(sent) = sent else {
            self.give_up(&mut gate);
            return None;
        };
        gate.rest_bytes -= sent;
        self.port.queued_bytes.fetch_sub(sent, Ordering::Relaxed);
        gate.held = false;
        let full = !rests.is_empty();
        gate.rests = rests;
        drop(gate);
        if full {
            self.port.report(self.token, true);
        }
        Some(sent)
    }

    /// Whether more than the connection's bound waits to be sent.
    ///
    /// When the answer is `complete`, waiting would only hold a thread: its bytes are there already. The runner goes
    /// on unless such answers together take more than the worker's bound.
    pub(crate) fn is_full(&self, complete: bool) -> bool {
        let gate = lock(&self.gate);
        // What is kept back does not wait for the client.
        let full = !gate.gone && !gate.held && gate.rest_bytes > RESPONSE_QUEUE_BYTES;
        full && !(complete && self.port.queued_bytes() <= RESPONSE_QUEUES_BYTES)
    }

    /// Whether there is room for the next piece, or nobody to send it to. If not, `task` is woken when there is.
    pub(super) fn poll_room(&self, task: &task::Waker) -> bool {
        let mut gate = lock(&self.gate);
        if gate.gone || gate.rest_bytes <= RESPONSE_QUEUE_BYTES {
            return true;
        }
        gate.tasks[ROOM] = Some(task.clone());
        false
    }

    /// Whether the peer is known to be gone.
    pub(super) fn is_gone(&self) -> bool {
        lock(&self.gate).gone
    }

    pub(super) fn wait_for_room(&self) {
        let mut gate = lock(&self.gate);
        while !gate.gone && gate.rest_bytes > RESPONSE_QUEUE_BYTES {
            gate = self.wait_for_change(gate);
        }
    }

    /// The answer is complete. With nothing left to do, one atomic exchange ends the request.
    pub(crate) fn finish(&self, outcome: Outcome, behind: bool) {
        if outcome == Outcome::Keep && !behind {
            self.idle_since_ms.store(clock::monotonic_coarse_ms(), Ordering::Relaxed);
            if self.state.swap(IDLE, Ordering::AcqRel) == BUSY_ATTENTION {
                self.port.report(self.token, true);
            }
            return;
        }
        lock(&self.gate).outcome = outcome;
        // The end is announced here when nothing is left to send: the client sees it at once, and
        // the I/O thread need not be woken for it. It looks at the link when the client has closed,
        // or at its next turn.
        let announced = outcome == Outcome::Close && !behind;
        if announced {
            // It fails when the client is gone, which the receive side reports.
            let _ = self.socket.shutdown_write();
        }
        let was = self.state.swap(FINISHED, Ordering::AcqRel);
        self.port.report(self.token, !announced || was == BUSY_ATTENTION);
    }
}

#[cfg(any(test, feature = "simulation"))]
impl Link {
    /// Since when pieces have been kept back, if some are.
    pub(crate) fn held_since_ms(&self) -> Option<u64> {
        let gate = lock(&self.gate);
        (gate.held && !gate.rests.is_empty()).then_some(gate.held_since_ms)
    }

    /// Bytes of the answer, and bytes of the request's body, that wait here.
    pub(crate) fn held_bytes(&self) -> (usize, usize) {
        let gate = lock(&self.gate);
        (gate.rest_bytes, gate.body.len())
    }
}

/// Bytes of a file given to one sendfile(2), so that one download does not hold the I/O thread up.
const FILE_SLICE_BYTES: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::app::BodyStream;
    use crate::ring;

    /// An application that kept the input of an earlier request read the next one's body, which behind a proxy
    /// may be another client's, or waited for ever.
    #[test]
    fn a_kept_body_ends_with_its_request() {
        let (driver, _) = ring::open(ring::Io::Epoll).unwrap();
        let (_client, server) = UnixStream::pair().unwrap();
        let (token, listener) = (Token { slot: 0, generation: 0 }, Arc::new(Listener::unix("/a".into())));
        let port = Arc::new(Port::new(driver.waker()));
        let link = Arc::new(Link::new(OwnedFd::from(server).into(), token, port, listener, Peer::Unix));
        link.expect_body(false);
        let mut kept = BodyStream::new(Arc::clone(&link));
        let mut got = Vec::new();
        assert_eq!(kept.poll(&mut got), Ok(Progress::Pending));
        link.discard_body();
        kept.waiter().wait();
        link.expect_body(false);
        let mut next = BodyStream::new(Arc::clone(&link));
        link.feed_body(|waiting| waiting.extend_from_slice(b"not for the first"));
        assert_eq!(kept.poll(&mut got), Err(BodyError::Truncated));
        assert!(got.is_empty());
        assert_eq!(next.poll(&mut got), Ok(Progress::Ready));
        assert_eq!(got, b"not for the first");
    }

    fn linked() -> (UnixStream, Arc<Port>, Link) {
        let (driver, _) = ring::open(ring::Io::Epoll).unwrap();
        let port = Arc::new(Port::new(driver.waker()));
        let (client, server) = UnixStream::pair().unwrap();
        client.set_nonblocking(true).unwrap();
        let (token, listener) = (Token { slot: 0, generation: 0 }, Arc::new(Listener::unix("/a".into())));
        let link = Link::new(OwnedFd::from(server).into(), token, Arc::clone(&port), listener, Peer::Unix);
        (client, port, link)
    }

    fn received(client: &mut UnixStream) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 20];
        let count = io::Read::read(client, &mut bytes).unwrap_or_default();
        bytes.truncate(count);
        bytes
    }

    #[test]
    fn what_is_kept_back_leaves_in_order_by_the_runner_or_by_the_io_thread() {
        let (mut client, port, link) = linked();
        let mut reports = Vec::new();
        let piece = || Some(Rest::Held(Box::new(*b"piece"), 0, 5));
        for by_runner in [true, false] {
            assert_eq!(link.hold(&mut b"5\r\n".to_vec(), piece(), b"\r\n", false), Some(0));
            assert_eq!(link.hold(&mut b"3\r\nnew\r\n".to_vec(), None, b"", false), Some(0));
            assert_eq!((received(&mut client), port.queued_bytes()), (Vec::new(), 18));
            assert!(port.has_held() && port.collect(&mut reports) && !port.has_held());
            assert_eq!(reports.len(), 1, "one report for all of them");
            reports.clear();
            if by_runner {
                assert_eq!(link.hold(&mut b"0\r\n\r\n".to_vec(), None, b"", true), Some(23));
                assert_eq!(received(&mut client), b"5\r\npiece\r\n3\r\nnew\r\n0\r\n\r\n");
            } else {
                assert_eq!(link.flush(), Flushed::All);
                assert_eq!(received(&mut client), b"5\r\npiece\r\n3\r\nnew\r\n");
            }
            assert_eq!((link.has_rest(), port.queued_bytes()), (false, 0));
        }
    }

    /// The rest of an answer that the I/O thread had emptied before counted as kept back for good, and its runner did not
    /// wait for the client. A seed of the simulation found it.
    #[test]
    fn what_waits_for_the_client_is_not_taken_for_kept_back() {
        let (_client, _port, link) = linked();
        assert_eq!(link.hold(&mut b"piece".to_vec(), None, b"", false), Some(0));
        assert_eq!(link.flush(), Flushed::All);
        while link.socket().send(&[IoSlice::new(&[0; 4096])]).is_ok() {}
        assert!(link.queue([Rest::Copied(vec![0; RESPONSE_QUEUE_BYTES + 1], 0)]));
        assert!(link.held_since_ms().is_none() && link.is_full(false));
    }

    /// As long as the client read, its runner sent, and held the interpreter.
    #[test]
    fn a_runner_sends_no_more_once_less_was_taken_than_offered() {
        let mut rests: VecDeque<_> = (0..=PARTS).map(|_| Rest::Copied(vec![b'x'; 10], 0)).collect();
        let mut offers = Vec::new();
        let sent = send_while_taken(&mut rests, |parts| {
            offers.push(parts.iter().map(|part| part.len()).sum::<usize>());
            // Interrupted once, all that one call can offer, then a part.
            match offers.len() {
                1 => Err(io::ErrorKind::Interrupted.into()),
                2 => Ok(10 * PARTS),
                _ => Ok(3),
            }
        });
        assert_eq!((sent.unwrap(), offers), (10 * PARTS + 3, vec![10 * PARTS, 10 * PARTS, 10]));
        assert_eq!(rests.iter().map(Rest::bytes).sum::<usize>(), 7, "left to the I/O thread");
    }

    /// A rest behind pieces that are kept back waits for the client, and they with it.
    #[test]
    fn what_is_kept_back_waits_for_the_client_when_a_rest_comes_behind_it() {
        let (_client, port, link) = linked();
        assert_eq!(link.hold(&mut b"piece".to_vec(), None, b"", false), Some(0));
        let mut reports = Vec::new();
        assert!(port.collect(&mut reports) && reports.len() == 1);
        assert!(link.queue([Rest::Copied(vec![0; RESPONSE_QUEUE_BYTES + 1], 0)]));
        assert!(link.held_since_ms().is_none() && link.is_full(false));
        assert!(!port.collect(&mut reports) && reports.len() == 2, "the I/O thread is told of the rest");
    }

    /// The runner lets pieces go without the lock, which the I/O thread takes meanwhile.
    #[test]
    fn runner_and_io_thread_send_what_is_kept_back_once_and_in_order() {
        const NUMBERS: u32 = 50_000;
        let (mut client, port, link) = linked();
        client.set_nonblocking(false).unwrap();
        client.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        let done = AtomicBool::new(false);
        let mut got = vec![0; NUMBERS as usize * 4];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) || link.has_rest() {
                    if link.has_rest() {
                        link.flush();
                    }
                }
            });
            scope.spawn(|| {
                for number in 0..NUMBERS {
                    let bytes = number.to_be_bytes();
                    let piece = (number % 3 == 0).then(|| Rest::Held(Box::new(bytes), 0, 4));
                    let mut out = if piece.is_some() { Vec::new() } else { bytes.to_vec() };
                    assert!(link.hold(&mut out, piece, b"", number % 7 == 0).is_some());
                }
                done.store(true, Ordering::Release);
            });
            let read = io::Read::read_exact(&mut client, &mut got);
            // Lets the others go also when bytes are missing.
            if read.is_err() {
                link.lose();
            }
            read.unwrap();
        });
        let numbers = got.chunks_exact(4).map(|bytes| u32::from_be_bytes(bytes.try_into().unwrap()));
        assert!(numbers.eq(0..NUMBERS));
        assert_eq!((link.has_rest(), port.queued_bytes()), (false, 0));
    }

    #[test]
    fn no_more_than_the_bound_is_kept_back() {
        let (mut client, port, link) = linked();
        let (mut kept, mut most, mut got) = (0, 0, 0);
        let piece = vec![b'x'; 10_000];
        while got == 0 {
            link.hold(&mut piece.clone(), None, b"", false).unwrap();
            kept += piece.len();
            most = most.max(port.queued_bytes());
            got = received(&mut client).len();
        }
        assert!(kept >= HOLD_BYTES_MAX && most < HOLD_BYTES_MAX, "{kept} {most}");
        // What the socket did not take is the I/O thread's, and is not kept back for anybody.
        assert!(link.held_since_ms().is_none());
        link.lose();
        assert_eq!((link.hold(&mut piece.clone(), None, b"", true), port.queued_bytes()), (None, 0));
    }

    /// What the server itself said was taken off the worker's sum, and never put on it: the sum went below zero,
    /// and from then on every large answer held its runner.
    #[test]
    fn what_the_server_says_is_counted_while_it_waits() {
        let (driver, _) = ring::open(ring::Io::Epoll).unwrap();
        let port = Arc::new(Port::new(driver.waker()));
        for drained in [true, false] {
            let (mut client, server) = UnixStream::pair().unwrap();
            let listener = Arc::new(Listener::unix("/a".into()));
            let token = Token { slot: 0, generation: 0 };
            let link =
                Link::new(OwnedFd::from(server).into(), token, Arc::clone(&port), listener, Peer::Unix);
            while link.socket().send(&[IoSlice::new(&[0; 4096])]).is_ok() {}
            assert!(link.say(http::CONTINUE), "the socket is full");
            assert_eq!(port.queued_bytes(), http::CONTINUE.len());
            if drained {
                client.set_nonblocking(true).unwrap();
                while io::Read::read(&mut client, &mut [0; 4096]).is_ok() {}
                assert_eq!(link.flush(), Flushed::All);
            } else {
                link.lose();
            }
            assert_eq!(port.queued_bytes(), 0);
        }
    }
}
