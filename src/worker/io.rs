//! The I/O thread: accept, receive, parse, time out, and send what the runners could not.
//!
//! One turn collects what happened on all connections, moves each of them one step, and hands the
//! requests that became complete to the runners in one batch. Everything here is bookkeeping on bytes;
//! nothing blocks but [`Driver::turn`], and nothing attaches to an interpreter.

mod balance;
pub(super) mod inline;
mod late;
mod leave;

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tracing::{debug, warn};

use self::balance::Balance;
use self::inline::Inline;
use super::conn::{Conn, Gathering, Phase, is_blank};
use super::overdue::{Overdue, Reporter};
use super::pool::{Pool, Watch, Work};
use super::request_id::RequestIds;
use super::status::{Answer, Status};
use super::table::Table;
use super::{CONNECTIONS, Door, Notices, Rules, Stop};
use crate::app::{
    Application, Body, BodyError, BodyStream, Exchange, Flushed, Link, Listener, Outcome, Peer, Port,
    Standing, body_bytes, own_answer, refusal,
};
use crate::http::{
    BodyDecoder, CONTINUE, Framing, ProxyInfo, ProxyMode, Refusal, Version, parse_proxy, relax,
};
use crate::limits::{
    ACCEPT_RETRY_MS, ACCEPT_WARN_MS, BATCH_CHECK_MS, DRAIN_BYTES_MAX, HEARTBEAT_MS, HOLD_MS,
    LINGER_BYTES_MAX, LINGERING_MAX, OBSERVERS_MAX, PIPELINE_BYTES_MAX, ROOM_CHECK_MS, ROOM_IDLE_MS,
    ROOM_SHARE,
};
use crate::ring::{Driver, Event, RecvBuffer, Socket, Token, Wheel};
use crate::sys::clock;
use crate::sys::metrics::status_index;
use crate::sys::shared::Meter;

/// Turns after accepting ended in which a connection may still be delivered: one that submits the end, one that
/// brings what was on its way.
const CLOSED_TURNS: u8 = 2;

/// Milliseconds that the I/O thread looks for more pieces that are kept back, behind the last ones: an application that
/// gives some gives more.
const WATCH_MS: u64 = 2;

/// The state of one worker's I/O thread.
pub(super) struct Io {
    driver: Box<dyn Driver>,
    now_ms: u64,
    conns: Table<Conn>,
    /// How many of them wait for the client to close.
    lingering: usize,
    wheel: Wheel,
    doors: Vec<Door>,
    /// Accepting is off until there is room (`worker_connections`).
    crowded: bool,
    /// When to look again whether somebody waits for room.
    room_ms: u64,
    /// When to try again to accept, after the process ran out of descriptors.
    accept_again_ms: Option<u64>,
    /// When the log was last told that accepting fails.
    accept_warned_ms: Option<u64>,
    rules: Arc<Rules>,
    pool: Arc<Pool>,
    app: Arc<dyn Application>,
    /// A native service, which answers on this thread; then no request goes to the pool.
    inline: Option<Box<Inline>>,
    port: Arc<Port>,
    blank: Option<Box<Exchange>>,
    #[expect(
        clippy::vec_box,
        reason = "boxes go round between threads; moving them must not move 500 bytes"
    )]
    batch: Vec<Box<Exchange>>,
    /// Decoded bytes of bodies that nobody wants.
    waste: Vec<u8>,
    /// How this worker leaves, once it was told to.
    leaving: Option<Stop>,
    /// When it leaves, whatever is still open.
    draining: Option<u64>,
    /// When idle connections are looked at again, while it leaves.
    sweep_ms: u64,
    entrance: Entrance,
    /// The time of this turn in nanoseconds, once somebody has asked.
    turn_ns: Option<u64>,
    /// Requests handed over since the last pulse.
    begun: u64,
    /// Connections that were closed in this turn while their request was in hand, or waited.
    lost: HashSet<Token>,
    /// Since when the request has waited that a sibling has handed over, while it is taken on.
    elder_ms: Option<u64>,
    /// The batch has requests that waited before this turn.
    has_elders: bool,
    /// Requests that waited for too long.
    #[expect(
        clippy::vec_box,
        reason = "boxes go round between threads; moving them must not move 500 bytes"
    )]
    late: Vec<Box<Exchange>>,
    /// Requests that were turned away since the log was told, and when that was.
    turned_away: (u64, Option<u64>),
    overdue: Overdue,
    reporter: Reporter,
    /// What runners have in hand, at the last look.
    works: Vec<Work>,
    /// Where the master is told of them; nobody in tests.
    notices: Option<Notices>,
    /// The only runner is stuck, and the log is being told of it: until then, or this time.
    stuck: Option<(Arc<AtomicBool>, u64)>,
    /// The log was told of the requests that will not be finished in `graceful_timeout`.
    told_last: bool,
    /// Requests that waited for a runner at the end of the last turn.
    waiting: usize,
    /// What siblings do for each other; `None` for a worker without any.
    balance: Option<Balance>,
    /// It has slept already since the last turn.
    rested: bool,
    /// Runners have reported meanwhile, and woken nobody.
    pub(super) reported: bool,
    /// When pieces that were kept back were last heard of, while it looks every [`HOLD_MS`] whether there are more.
    watches: Option<u64>,
    events: Vec<Event>,
    reports: Vec<Token>,
    expired: Vec<Token>,
    /// What is answered here, if anything.
    status: Option<Status>,
    /// Where to count while somebody looks.
    meter: Option<Meter>,
    /// Somebody looks.
    counting: bool,
    /// Somebody wants to know how long requests take.
    timed: bool,
    /// Gives requests their ids, if somebody wants them.
    request_ids: Option<RequestIds>,
    /// Connections to the metrics address.
    observers: usize,
    /// Turns since no more of them are accepted, because the worker has nothing left to do.
    unobserved_turns: Option<u8>,
    /// Their port, so that what is sent to them is not counted.
    observer_port: Arc<Port>,
    /// What the meter knows of the port's bytes, and of the driver's waits for buffers.
    metered: (u64, u64),
    /// When to look again at which runners are blocked.
    look_ms: u64,
    /// What other threads do between two events of a turn.
    #[cfg(any(test, feature = "simulation"))]
    pub(super) meanwhile: Option<Box<dyn FnMut()>>,
}

/// Whether connections come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entrance {
    Open,
    /// They do until this is over, for handshakes that had begun, and the queues are empty; or until that time.
    Closing {
        settled_ms: u64,
        until_ms: u64,
    },
    /// They do not. The backend may still deliver one that it had taken; turns since then.
    Closed {
        turns: u8,
    },
}

impl Io {
    pub(super) fn new(
        driver: Box<dyn Driver>,
        doors: Vec<Door>,
        rules: Arc<Rules>,
        pool: Arc<Pool>,
        app: Arc<dyn Application>,
        port: Arc<Port>,
    ) -> Self {
        let now_ms = driver.now_ms();
        let observer_port = Arc::new(Port::new(driver.waker()));
        let overdue = Overdue::new(rules.patience, now_ms);
        let reporter = Reporter::new(&pool, Arc::clone(&app));
        let timed = rules.timed;
        Self {
            driver,
            now_ms,
            conns: Table::new(),
            lingering: 0,
            wheel: Wheel::new(now_ms),
            doors,
            crowded: false,
            room_ms: 0,
            accept_again_ms: None,
            accept_warned_ms: None,
            rules,
            pool,
            app,
            inline: None,
            port,
            blank: None,
            batch: Vec::new(),
            waste: Vec::new(),
            leaving: None,
            draining: None,
            sweep_ms: 0,
            entrance: Entrance::Open,
            turn_ns: None,
            begun: 0,
            lost: HashSet::new(),
            elder_ms: None,
            has_elders: false,
            late: Vec::new(),
            turned_away: (0, None),
            overdue,
            reporter,
            works: Vec::new(),
            notices: None,
            stuck: None,
            told_last: false,
            waiting: 0,
            balance: None,
            rested: false,
            reported: false,
            watches: None,
            events: Vec::new(),
            reports: Vec::new(),
            expired: Vec::new(),
            status: None,
            meter: None,
            counting: false,
            timed,
            request_ids: None,
            observers: 0,
            unobserved_turns: None,
            observer_port,
            metered: (0, 0),
            look_ms: 0,
            #[cfg(any(test, feature = "simulation"))]
            meanwhile: None,
        }
    }

    /// From now on answers what `status` says, and counts with `meter` while that is wanted.
    pub(super) fn observe(&mut self, status: Option<Status>, meter: Option<Meter>) {
        (self.status, self.meter) = (status, meter);
        self.heed_meter();
    }

    /// Begins to count when somebody looks, and stops when nobody does.
    fn heed_meter(&mut self) {
        let Some(meter) = &self.meter else { return };
        let wanted = meter.is_wanted(self.now_ms);
        if wanted == self.counting {
            return;
        }
        (self.counting, self.timed) = (wanted, wanted || self.rules.timed);
        if let Some(inline) = &mut self.inline {
            inline.count(wanted);
        }
        if wanted {
            self.pool.count(true);
            // What happened while nobody looked is not counted afterwards.
            self.metered = (self.port.sent_bytes(), self.driver.buffer_waits());
            self.look_ms = self.now_ms;
            self.publish();
        }
        if let Some(meter) = &self.meter {
            // Who reads this knows that the rest is up to date.
            meter.counting.set(wanted);
        }
        if !wanted {
            self.pool.count(false);
        }
    }

    /// From now on gives every request an id.
    pub(super) fn identify(&mut self, request_ids: Option<RequestIds>) {
        self.request_ids = request_ids;
    }

    /// Arms accepting on every listener of our own, unless they are left to the siblings.
    pub(super) fn open(&mut self) {
        self.open_doors(true);
        self.open_doors(false);
    }

    /// Arms accepting on our own listeners: those of observers until their time is over, or those of everybody else.
    fn open_doors(&mut self, observers: bool) {
        let closed = if observers { self.unobserved_turns.is_some() } else { self.is_shut() };
        if closed {
            return;
        }
        for index in 0..self.doors.len() {
            let door = &self.doors[index];
            if door.observer != observers {
                continue;
            }
            if let Err(error) = self.driver.accept(index, door.fd(), door.accepting) {
                self.accept_failed(index, &error);
            }
        }
    }

    /// Runs until `stop` says so and the connections are done. `pulse` is told, at each turn, the time and how many
    /// requests were begun since the last one. Returns the milliseconds that are left for the runners.
    ///
    /// # Errors
    /// When the backend fails.
    pub(super) fn run(
        &mut self,
        stop: &dyn Fn() -> Option<Stop>,
        pulse: &mut dyn FnMut(u64, u64),
    ) -> io::Result<u64> {
        let mut watch = Watch::default();
        loop {
            // A single client waits for nothing but its answer.
            let several = self.inline.is_none() && self.conns.len() > 1;
            if (self.waiting > 0 || several)
                && let Some(reported) = self.pool.rest(several, &self.port)
            {
                self.waiting = self.pool.waiting();
                (self.rested, self.reported) = (true, reported);
            }
            self.turn()?;
            CONNECTIONS.store(self.conns.len(), Ordering::Relaxed);
            pulse(self.now_ms, std::mem::take(&mut self.begun));
            if self.waiting > 0 {
                self.pool.supervise(&mut watch, &self.app);
            }
            if self.obey(stop()) {
                break;
            }
        }
        self.close_all();
        Ok(self.draining.map_or(0, |deadline| deadline.saturating_sub(self.now_ms)))
    }

    /// Waits until something happens, and moves every connection that it concerns one step.
    ///
    /// # Errors
    /// When the backend fails.
    pub(super) fn turn(&mut self) -> io::Result<()> {
        if self.watches.is_some_and(|heard_ms| self.now_ms > heard_ms + WATCH_MS) {
            self.watches = None;
            self.reported |= self.port.watch(false);
        }
        let timeout = if self.reported { Duration::ZERO } else { self.timeout() };
        (self.rested, self.reported) = (false, false);
        let mut events = std::mem::take(&mut self.events);
        match &mut self.inline {
            None => self.driver.turn(Some(timeout), &mut events)?,
            Some(inline) => inline.wait(&mut *self.driver, self.now_ms, timeout, &mut events)?,
        }
        self.now_ms = self.driver.now_ms();
        self.turn_ns = None;
        self.heed_meter();

        // Reports first: a connection that became idle can take the bytes that came in this turn.
        let mut reports = std::mem::take(&mut self.reports);
        if self.port.collect(&mut reports) {
            if self.watches.is_none() {
                let _ = self.port.watch(true);
            }
            self.watches = Some(self.now_ms);
        }
        for token in reports.drain(..) {
            self.look(token);
        }
        self.reports = reports;
        for event in events.drain(..) {
            #[cfg(any(test, feature = "simulation"))]
            if let Some(meanwhile) = &mut self.meanwhile {
                meanwhile();
            }
            self.on_event(event);
        }
        self.events = events;
        self.read_own_letters();
        let mut expired = std::mem::take(&mut self.expired);
        self.wheel.expired(self.now_ms, &mut expired);
        for token in expired.drain(..) {
            self.on_expired(token);
        }
        self.expired = expired;
        if self.accept_again_ms.is_some_and(|at| at <= self.now_ms) {
            self.accept_again_ms = None;
            // Without room, the next connection that closes opens the doors.
            if !self.crowded {
                self.open();
            }
        }
        if self.crowded && self.room_ms <= self.now_ms {
            self.make_room();
        }
        if let Some(inline) = &mut self.inline {
            inline.run_tasks(self.now_ms);
        }
        if !self.lost.is_empty() {
            self.forget_lost();
        }
        if !self.batch.is_empty() {
            self.waiting = self.pool.submit(&mut self.batch);
            if std::mem::take(&mut self.has_elders) {
                self.pool.sort_by_age();
            }
        } else if self.waiting > 0 {
            self.waiting = self.pool.waiting();
        }
        if self.waiting > 0 && self.rules.queue_ms != u64::MAX {
            self.turn_away_late();
        }
        if self.counting {
            self.publish();
        }
        if self.overdue.next_ms() <= self.now_ms {
            self.look_at_requests();
        }
        self.even_out();
        Ok(())
    }

    /// Once a turn: what is cheaper to count together, and what only is there at a moment.
    fn publish(&mut self) {
        let Some(meter) = &self.meter else { return };
        meter.connections.set(self.clients() as u64);
        let metered = (self.port.sent_bytes(), self.driver.buffer_waits());
        if metered != self.metered {
            meter.io_sent_bytes.add(metered.0 - self.metered.0);
            meter.buffer_waits.add(metered.1 - self.metered.1);
            self.metered = metered;
        }
        if self.look_ms <= self.now_ms {
            self.look_ms = self.now_ms + HEARTBEAT_MS;
            meter.runners_blocked.set(self.pool.blocked() as u64);
        }
    }

    /// Closes what is open. An answer that is cut by it is reset: its end may be the connection's end, and
    /// would look complete.
    pub(super) fn close_all(&mut self) {
        for token in self.conns.tokens() {
            let Some(conn) = self.conns.get(token) else { continue };
            // Not if the last byte has left, and only the application is not done: it closes what it has returned.
            let begun = conn.link.standing() == Standing::Busy && !conn.link.socket().has_sent_all();
            if begun || conn.link.has_rest() {
                conn.link.socket().abort();
            }
            self.close(token);
        }
        // Runners take what waits before they leave, and these answers would reach nobody.
        self.forget_lost();
    }

    fn timeout(&self) -> Duration {
        if !self.batch.is_empty() {
            // Taken out of a mailbox after the runners had been given theirs.
            return Duration::ZERO;
        }
        let mut ms = HEARTBEAT_MS;
        if self.waiting > 0 {
            ms = if self.rested { 0 } else { BATCH_CHECK_MS };
        }
        if self.watches.is_some() {
            ms = ms.min(HOLD_MS);
        }
        if !matches!(self.entrance, Entrance::Open | Entrance::Closed { turns: CLOSED_TURNS })
            || self.unobserved_turns.is_some_and(|turns| turns < CLOSED_TURNS)
        {
            ms = 1;
        }
        ms = ms.min(self.balance_timeout_ms());
        if self.crowded {
            ms = ms.min(self.room_ms.saturating_sub(self.now_ms));
        }
        for at in [self.wheel.next_ms(), self.accept_again_ms, self.draining, Some(self.overdue.next_ms())]
            .into_iter()
            .flatten()
        {
            ms = ms.min(at.saturating_sub(self.now_ms));
        }
        Duration::from_millis(ms)
    }

    // ---- accepting ---------------------------------------------------------------------------

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Received { token, bytes } => self.on_received(token, &bytes),
            Event::Accepted { listener, socket } => self.on_accepted(listener, socket),
            Event::Ended { token } => self.on_ended(token),
            Event::Failed { token, error } => {
                debug!(%error, "connection failed");
                self.close(token);
            }
            Event::Writable { token } => self.flush(token),
            Event::AcceptFailed { listener, error } => self.accept_failed(listener, &error),
            Event::Detached { token } => self.on_detached(token),
            Event::Readable => self.on_letters(),
            Event::Woken => {}
        }
    }

    fn on_accepted(&mut self, at: usize, socket: Socket) {
        let Some(listener) = self.listener(at) else { return };
        let observer = self.doors.get(at).is_some_and(|door| door.observer);
        // Here, and not where it is taken on: it may be by a sibling, now or later.
        if let Some(meter) = self.meter.as_ref().filter(|_| self.counting && !observer) {
            meter.accepted.add(1);
        }
        if observer || !self.pass_on(&listener, &socket) {
            self.enter(listener, socket, observer);
        }
    }

    /// Takes a connection on. Returns its token, unless the client has left already.
    fn enter(&mut self, listener: Arc<Listener>, socket: Socket, observer: bool) -> Option<Token> {
        let peer = if listener.unix.is_some() {
            Peer::Unix
        } else {
            match socket.peer_addr() {
                Ok(Some(addr)) => Peer::from(addr),
                Ok(None) => Peer::Unix,
                // It left already.
                Err(_) => return None,
            }
        };
        if observer && self.observers >= OBSERVERS_MAX {
            return None;
        }
        let trusted = self.rules.trusts(&peer);
        let before_proxy = self.rules.proxy_mode != ProxyMode::Off && !observer;
        let port = Arc::clone(if observer { &self.observer_port } else { &self.port });
        let now_ms = self.now_ms;
        let token = self.conns.insert(|token| {
            Conn::new(Arc::new(Link::new(socket, token, port, listener, peer)), trusted, before_proxy, now_ms)
        });
        if observer {
            self.observers += 1;
            if let Some(conn) = self.conns.get(token) {
                conn.observer = true;
            }
        }
        self.set_deadline(token, self.rules.first_byte_ms);
        self.receive(token);
        if self.clients() >= self.rules.connections_max && !self.crowded {
            // The rest waits in the kernel's queue, where other workers' clients are not disturbed.
            self.crowded = true;
            self.room_ms = self.now_ms;
            self.stop_accepting(false);
        }
        Some(token)
    }

    /// Connections that count: those of observers do not.
    fn clients(&self) -> usize {
        self.conns.len() - self.observers
    }

    /// Accepts no more on our own listeners: those of observers, or those of everybody else. Returns how many.
    fn stop_accepting(&mut self, observers: bool) -> usize {
        let doors = self.doors.iter().enumerate().filter(|(_, door)| door.observer == observers);
        doors.map(|(index, _)| self.driver.stop_accept(index)).count()
    }

    /// Ends the longest idle connections if there is no room for clients that wait. An idle client can connect
    /// again; one that waits has no other way in.
    fn make_room(&mut self) {
        self.room_ms = self.now_ms + ROOM_CHECK_MS;
        let wanted = |door: &Door| !door.observer && door.has_waiting();
        if self.leaving.is_some() || !self.doors.iter().any(wanted) {
            return;
        }
        let mut idle = Vec::new();
        for token in self.conns.tokens() {
            if let Some(since_ms) =
                self.conns.get(token).filter(|conn| !conn.observer).and_then(|conn| conn.idle_since_ms())
                && since_ms + ROOM_IDLE_MS <= self.now_ms
            {
                idle.push((since_ms, token));
            }
        }
        // Some at once, because looking for them means looking at all.
        let count = idle.len().min(self.conns.len().div_ceil(ROOM_SHARE));
        if count == 0 {
            return;
        }
        if count < idle.len() {
            idle.select_nth_unstable_by_key(count, |&(since_ms, _)| since_ms);
        }
        if self.accept_warned_ms.is_none_or(|at| self.now_ms - at >= ACCEPT_WARN_MS) {
            self.accept_warned_ms = Some(self.now_ms);
            warn!(
                "all {} connections of this worker are taken (worker_connections): idle ones end for newcomers",
                self.rules.connections_max
            );
        }
        for &(_, token) in &idle[..count] {
            self.close(token);
        }
    }

    fn accept_failed(&mut self, listener: usize, error: &io::Error) {
        if self.leaving.is_some() || self.foreign_accept_failed(listener, error) {
            return;
        }
        if error.raw_os_error() == Some(libc::EINVAL) {
            // The server stops, and a sibling that heard of it before has closed all listeners.
            debug!("a listener was closed");
            return;
        }
        // Out of descriptors or memory: at once again would spin; a while later some may be free.
        if self.accept_warned_ms.is_none_or(|at| self.now_ms - at >= ACCEPT_WARN_MS) {
            self.accept_warned_ms = Some(self.now_ms);
            warn!(
                "cannot accept on {}: {error}; trying again every {ACCEPT_RETRY_MS} ms",
                self.doors[listener].listener.name
            );
        }
        self.accept_again_ms = Some(self.now_ms + ACCEPT_RETRY_MS);
    }

    // ---- receiving ---------------------------------------------------------------------------

    fn receive(&mut self, token: Token) {
        let Some(conn) = self.conns.get(token) else { return };
        conn.paused = false;
        if conn.ended {
            return;
        }
        if let Err(error) = self.driver.receive(token, conn.link.socket()) {
            debug!(%error, "cannot receive");
            self.close(token);
        }
    }

    fn pause(&mut self, token: Token) {
        if let Some(conn) = self.conns.get(token)
            && !conn.paused
            && !conn.ended
        {
            conn.paused = true;
            self.driver.pause(token, conn.link.socket());
        }
    }

    fn on_received(&mut self, token: Token, bytes: &RecvBuffer) {
        let Some(conn) = self.conns.get(token) else { return };
        if self.counting
            && let Some(meter) = &self.meter
            && !conn.observer
        {
            meter.received_bytes.add(bytes.len() as u64);
        }
        // The quick way from one request to the next, when the last one has left nothing behind: then
        // nobody has reported the end of its answer. Otherwise `settle` finds it.
        if let Phase::InHand(None) = conn.phase
            && !(conn.paused || conn.streamed)
            && conn.input.is_empty()
            && conn.link.standing() == Standing::Idle
        {
            conn.phase = Phase::Head;
        }
        if conn.before_proxy && matches!(conn.phase, Phase::Head) {
            conn.input.extend_from_slice(bytes);
            self.on_proxy_header(token);
        } else if conn.input.is_empty() && !self.rules.policy.is_relaxed() {
            let used = self.consume(token, bytes);
            if let Some(rest) = bytes.get(used..).filter(|rest| !rest.is_empty())
                && let Some(conn) = self.conns.get(token)
            {
                conn.input.extend_from_slice(rest);
            }
        } else {
            conn.input.extend_from_slice(bytes);
            self.consume_input(token);
        }
        self.settle(token);
    }

    /// The first bytes of a connection that may begin with a PROXY header. What follows it is a request.
    fn on_proxy_header(&mut self, token: Token) {
        let Some(conn) = self.conns.get(token) else { return };
        let parsed = parse_proxy(&conn.input, self.rules.proxy_mode);
        if matches!(parsed, Ok(None)) {
            if !conn.in_head {
                conn.in_head = true;
                self.set_deadline(token, self.rules.header_ms);
            }
            return;
        }
        if !matches!(parsed, Ok(Some((_, ProxyInfo::Absent)))) && !self.rules.is_proxy(conn.link.peer()) {
            self.refuse(token, &Refusal::new(403, "this peer may not send a PROXY header"), false);
            return;
        }
        match parsed {
            Ok(Some((used, info))) => {
                conn.before_proxy = false;
                conn.in_head = false;
                conn.input.drain(..used);
                if let ProxyInfo::Proxied { source, destination } = info
                    // Nobody else has the link before the first request is handed over.
                    && let Some(link) = Arc::get_mut(&mut conn.link)
                {
                    link.announce(source, destination);
                }
                // The proxy may connect long before its client asks.
                self.set_deadline(token, self.rules.first_byte_ms);
                self.consume_input(token);
            }
            Err(refused) => {
                self.refuse(token, &refused, false);
            }
            Ok(None) => {}
        }
    }

    /// Understands what waits in the connection's input.
    fn consume_input(&mut self, token: Token) {
        let relaxed = self.rules.policy.is_relaxed();
        loop {
            let Some(conn) = self.conns.get(token) else { return };
            let mut input = std::mem::take(&mut conn.input);
            let outer = std::mem::replace(&mut conn.consuming, true);
            if relaxed && matches!(conn.phase, Phase::Head) {
                // The settings that forgive old clients work on the bytes, before they are parsed.
                relax(&mut input, conn.scanned, &self.rules.policy);
            }
            let used = self.consume(token, &input);
            let Some(conn) = self.conns.get(token) else { return };
            conn.consuming = outer;
            if used < input.len() {
                input.drain(..used);
                conn.input = input;
            }
            // A head behind a body that was dropped: its bytes are to be forgiven, too.
            if !relaxed || used == 0 || conn.input.is_empty() || !matches!(conn.phase, Phase::Head) {
                return;
            }
        }
    }

    /// After bytes were taken in: asks to be told of the answer's end when something waits behind it, bytes
    /// or the end of the client's stream.
    fn settle(&mut self, token: Token) {
        let Some(conn) = self.conns.get(token) else { return };
        if !matches!(conn.phase, Phase::InHand(_)) || (conn.input.is_empty() && !conn.ended && !conn.paused) {
            return;
        }
        if conn.link.want_attention() != Standing::Busy {
            self.look(token);
        }
        // Also when the answer is complete, but not sent.
        let full =
            |conn: &Conn| matches!(conn.phase, Phase::InHand(_)) && conn.input.len() > PIPELINE_BYTES_MAX;
        if self.conns.get(token).is_some_and(|conn| full(conn)) {
            self.pause(token);
        }
    }

    /// Moves the connection on by `data`; returns how many bytes of it were used. What is left belongs
    /// to a head that is incomplete or to requests behind the one in hand.
    fn consume(&mut self, token: Token, data: &[u8]) -> usize {
        let mut used = 0;
        loop {
            let Some(conn) = self.conns.get(token) else { return data.len() };
            let rest = &data[used..];
            if rest.is_empty() {
                return used;
            }
            match &mut conn.phase {
                // `consume_input` goes on, with what the next head is forgiven.
                Phase::Head if used > 0 && self.rules.policy.is_relaxed() => return used,
                Phase::Head if self.inline.is_some() => {
                    let (count, goes_on) = self.serve_inline(token, rest);
                    used += count;
                    if !goes_on {
                        return used;
                    }
                }
                Phase::Head => {
                    let mut exchange = self.blank.take().unwrap_or_else(|| self.pool.blank());
                    let parsed = exchange.request.head.parse(
                        rest,
                        &mut conn.scanned,
                        &self.rules.policy,
                        conn.trusted,
                    );
                    match parsed {
                        Ok(Some(length)) => {
                            conn.scanned = 0;
                            conn.in_head = false;
                            // Copied once: the bytes go with the request, and the receive buffer is free
                            // again at the end of this turn whatever the runners do.
                            exchange.request.bytes.extend_from_slice(&rest[..length]);
                            exchange.request.head_bytes = length;
                            used += length;
                            self.on_head(token, exchange, data.len() > used);
                        }
                        Ok(None) => {
                            self.blank = Some(exchange);
                            self.on_head_begins(token, rest);
                            return used;
                        }
                        Err(refused) => {
                            self.refuse_head(token, &refused, exchange, rest);
                            return data.len();
                        }
                    }
                }
                Phase::Body(gathering) => {
                    match gathering.decoder.decode(rest, &mut gathering.body) {
                        Ok(count) => used += count,
                        Err(refused) => {
                            self.refuse_gathering(token, &refused);
                            return data.len();
                        }
                    }
                    self.on_gathered(token);
                }
                Phase::InHand(None) | Phase::Moving(..) => return used,
                Phase::InHand(Some(_)) if conn.link.standing() == Standing::Busy => {
                    used += self.feed(token, rest);
                }
                Phase::InHand(Some(_)) => {
                    // Answered without reading it all.
                    self.look(token);
                    if self.conns.get(token).is_some_and(|conn| matches!(conn.phase, Phase::InHand(_))) {
                        // The answer is still on its way out; this waits for its end.
                        return used;
                    }
                }
                Phase::Drain(decoder, left) => {
                    self.waste.clear();
                    let result = decoder.decode(rest, &mut self.waste);
                    let complete = decoder.is_complete();
                    *left = left.saturating_sub(self.waste.len() as u64);
                    let spent = *left == 0;
                    match result {
                        Ok(count) if complete => {
                            used += count;
                            conn.phase = Phase::Head;
                            self.set_idle_deadline(token);
                            if self.rules.policy.is_relaxed() {
                                // `consume_input` goes on, with what the next head is forgiven.
                                return used;
                            }
                        }
                        Ok(count) if !spent => {
                            used += count;
                            self.set_deadline(token, self.rules.body_ms);
                        }
                        _ => {
                            self.linger(token);
                            return data.len();
                        }
                    }
                }
                Phase::Linger(dropped) => {
                    *dropped += rest.len() as u64;
                    if *dropped > LINGER_BYTES_MAX {
                        self.close(token);
                    }
                    return data.len();
                }
            }
        }
    }

    /// A head has begun, or goes on, with `input`: from its first byte on it has its own time. An empty line is none.
    fn on_head_begins(&mut self, token: Token, input: &[u8]) {
        let Some(conn) = self.conns.get(token) else { return };
        if is_blank(input) {
            // The deadline may still be that of the answer, whose end nobody has reported.
            if conn.link.idle_since_ms() > 0 {
                self.set_idle_deadline(token);
            }
        } else if !std::mem::replace(&mut conn.in_head, true) {
            self.set_deadline(token, self.rules.header_ms);
        }
    }

    /// A head is complete: hands the request over, or begins to read its body.
    fn on_head(&mut self, token: Token, mut exchange: Box<Exchange>, more: bool) {
        if let Some(status) = &self.status {
            let observer = self.conns.get(token).is_some_and(|conn| conn.observer);
            if let Some(answer) = status.answer(&exchange.request, observer) {
                self.answer(token, exchange, &answer);
                return;
            }
        }
        let head = &exchange.request.head;
        let framing = head.framing;
        let expects = head.expect_continue;
        if framing == Framing::None {
            self.hand_over(token, exchange, None);
            return;
        }
        let decoder = BodyDecoder::new(framing, &self.rules.policy);
        let streamed =
            matches!(framing, Framing::Length(length) if length > self.rules.body_buffer_bytes as u64);
        let Some(conn) = self.conns.get(token) else { return };
        if expects && !more {
            if streamed {
                // A large upload that the application may not want: it decides, by reading or not.
                conn.link.expect_body(true);
                conn.awaits_continue = true;
                exchange.request.body = Body::Stream(BodyStream::new(Arc::clone(&conn.link)));
                self.hand_over(token, exchange, Some(decoder));
                return;
            }
            if conn.link.say(CONTINUE) {
                self.write(token);
            }
        }
        if self.timed {
            // If it comes to no application: from here on it counts.
            exchange.request.received_ns = clock::monotonic_ns();
        }
        let Some(conn) = self.conns.get(token) else { return };
        conn.phase = Phase::Body(Box::new(Gathering { exchange, decoder, body: Vec::new() }));
        self.set_deadline(token, self.rules.body_ms);
    }

    /// More of a body was read: complete, it goes to a runner with its request; too large to hold, the
    /// runner reads the rest as it comes.
    fn on_gathered(&mut self, token: Token) {
        let bound = self.rules.body_buffer_bytes;
        let Some(conn) = self.conns.get(token) else { return };
        let Phase::Body(gathering) = &conn.phase else { return };
        let complete = gathering.decoder.is_complete();
        if !complete && gathering.body.len() < bound {
            self.set_deadline(token, self.rules.body_ms);
            return;
        }
        let Phase::Body(gathering) = std::mem::replace(&mut conn.phase, Phase::Head) else { return };
        let Gathering { mut exchange, decoder, mut body } = *gathering;
        if complete {
            exchange.request.body = if body.is_empty() { Body::Empty } else { Body::Whole(body) };
            self.hand_over(token, exchange, None);
        } else {
            conn.link.expect_body(false);
            conn.awaits_continue = false;
            conn.link.feed_body(|waiting| waiting.append(&mut body));
            exchange.request.body = Body::Stream(BodyStream::new(Arc::clone(&conn.link)));
            self.hand_over(token, exchange, Some(decoder));
            self.hold_body(token);
        }
    }

    fn hand_over(&mut self, token: Token, mut exchange: Box<Exchange>, stream: Option<BodyDecoder>) {
        if self.inline.is_some() {
            return self.serve_gathered(token, exchange, stream);
        }
        let Some(conn) = self.conns.get(token) else { return };
        let head = &mut exchange.request.head;
        // Old clients send a line end behind a body, announced or not; HTTP/1.0 announces no end. What is left of earlier
        // answers may fill the client's window.
        let client_ends = !head.keep_alive
            && head.version == Version::Http11
            && head.content_length.is_none()
            && head.framing == Framing::None
            && conn.requests == 0;
        head.keep_alive &= self.rules.keep_alive;
        exchange.begin(Arc::clone(&conn.link));
        if client_ends {
            exchange.reply.client_ends();
        }
        if let Some(request_ids) = &mut self.request_ids {
            request_ids.identify(&mut exchange);
        }
        // One look at the clock for all requests of a turn, which came together as far as we know. What was noted
        // before the body came, when somebody still looked, is no time of this.
        exchange.request.received_ns =
            if self.timed { *self.turn_ns.get_or_insert_with(clock::monotonic_ns) } else { 0 };
        let queued_ms = self.elder_ms.take().inspect(|_| self.has_elders = true).unwrap_or(self.now_ms);
        exchange.request.queued_ms = queued_ms;
        conn.begun_ms = queued_ms;
        conn.line.set(&exchange.request.bytes);
        if self.rules.keep_heads {
            conn.head.clear();
            conn.head.extend_from_slice(&exchange.request.bytes);
        }
        conn.requests = conn.requests.wrapping_add(1);
        exchange.request.number = conn.requests;
        conn.link.hand_over();
        if stream.is_some() {
            // The end of this answer must not pass unnoticed: the rest of the body is to be dealt with.
            let _ = conn.link.want_attention();
        }
        conn.streamed = stream.is_some();
        conn.phase = Phase::InHand(stream.map(Box::new));
        if self.is_full() {
            self.turn_away(exchange, "is full");
        } else {
            self.begun += 1;
            self.batch.push(exchange);
        }
        // Far in the future as a rule: the wheel's entry finds the connection idle or busy and is set anew.
        let next = if matches!(self.conns.get(token), Some(conn) if matches!(conn.phase, Phase::InHand(Some(_))))
        {
            self.rules.body_ms
        } else {
            self.rules.keepalive_ms
        };
        self.set_deadline(token, next);
    }

    /// Decodes body bytes into what the application reads. Returns how many were used.
    fn feed(&mut self, token: Token, data: &[u8]) -> usize {
        let Some(conn) = self.conns.get(token) else { return data.len() };
        let Phase::InHand(Some(decoder)) = &mut conn.phase else { return 0 };
        let (result, _) = conn.link.feed_body(|waiting| decoder.decode(data, waiting));
        let complete = decoder.is_complete();
        match result {
            Ok(used) if complete => {
                conn.link.end_body(Ok(()));
                conn.phase = Phase::InHand(None);
                used
            }
            Ok(used) => {
                self.set_deadline(token, self.rules.body_ms);
                self.hold_body(token);
                used
            }
            Err(refused) => {
                let error = if refused.status == 413 { BodyError::TooLarge } else { BodyError::Malformed };
                self.break_body(token, error);
                data.len()
            }
        }
    }

    /// Stops receiving while enough of a streamed body waits for the application.
    fn hold_body(&mut self, token: Token) {
        let Some(conn) = self.conns.get(token) else { return };
        if conn.link.pause_body(self.rules.body_buffer_bytes) {
            self.pause(token);
            // Now the application is slow, not the client.
            self.set_deadline(token, u64::MAX);
        }
    }

    /// The body cannot be completed: the application learns of it when it reads on, and this answer is the
    /// last on the connection.
    fn break_body(&mut self, token: Token, error: BodyError) {
        let Some(conn) = self.conns.get(token) else { return };
        conn.link.end_body(Err(error));
        conn.phase = Phase::InHand(None);
        conn.broken = true;
        conn.input = Vec::new();
        self.set_deadline(token, self.rules.keepalive_ms);
    }

    fn on_ended(&mut self, token: Token) {
        let Some(conn) = self.conns.get(token) else { return };
        conn.ended = true;
        conn.link.socket().note_end();
        match &conn.phase {
            Phase::Body(_) => {
                let refused = Refusal { status: 400, detail: BodyError::Truncated.to_string().into() };
                self.refuse_gathering(token, &refused);
            }
            Phase::InHand(Some(_)) if conn.link.standing() == Standing::Busy => {
                self.break_body(token, BodyError::Truncated);
            }
            // The answer is given, and the rest of the body may wait behind it.
            Phase::InHand(Some(_)) => self.look(token),
            // Half closed: the answer, and those to requests already received, still go out.
            Phase::InHand(None) if conn.link.want_attention() == Standing::Busy => {}
            Phase::InHand(None) => self.look(token),
            // The sibling finds the end behind the bytes.
            Phase::Moving(..) => {}
            Phase::Head | Phase::Drain(..) | Phase::Linger(_) => self.close(token),
        }
    }

    // ---- answering ---------------------------------------------------------------------------

    /// Something about the answer in hand changed: it is complete, left a rest, or its body was read.
    fn look(&mut self, token: Token) {
        let Some(conn) = self.conns.get(token) else { return };
        if !matches!(conn.phase, Phase::InHand(_)) {
            return;
        }
        let standing = conn.link.standing();
        if !conn.writing && conn.link.has_rest() {
            self.write(token);
            return;
        }
        match standing {
            Standing::Busy => {
                if conn.paused && matches!(conn.phase, Phase::InHand(Some(_))) {
                    self.resume(token);
                } else if conn.is_told_to_send() {
                    self.set_deadline(token, self.rules.body_ms);
                }
            }
            // Flushing ends with another look.
            _ if conn.writing => {}
            Standing::Idle => self.next_request(token),
            Standing::Finished(Outcome::Keep) => {
                conn.link.reopen();
                self.next_request(token);
            }
            Standing::Finished(Outcome::Close) => self.linger(token),
            Standing::Finished(Outcome::Reset) => {
                conn.link.socket().abort();
                self.close(token);
            }
        }
    }

    /// The answer is complete and the connection goes on.
    fn next_request(&mut self, token: Token) {
        let Some(conn) = self.conns.get(token) else { return };
        let Phase::InHand(stream) = std::mem::replace(&mut conn.phase, Phase::Head) else { return };
        conn.link.discard_body();
        if let Some(decoder) = stream {
            if decoder.left().is_some_and(|left| left > DRAIN_BYTES_MAX) {
                self.linger(token);
                return;
            }
            conn.phase = Phase::Drain(decoder, DRAIN_BYTES_MAX);
            self.set_deadline(token, self.rules.body_ms);
        } else if conn.broken {
            self.linger(token);
            return;
        } else {
            self.set_idle_deadline(token);
        }
        self.consume_input(token);
        let Some(conn) = self.conns.get(token) else { return };
        if conn.ended {
            // What the end means depends on what the bytes before it have become. An answer that was sent while they were
            // being looked at leaves that to whoever looks.
            if !conn.consuming {
                self.on_ended(token);
            }
            return;
        }
        if conn.paused {
            self.resume(token);
        }
        self.settle(token);
    }

    /// Receives again after a pause, unless enough still waits.
    fn resume(&mut self, token: Token) {
        let Some(conn) = self.conns.get(token) else { return };
        match conn.phase {
            Phase::InHand(None) if conn.input.len() > PIPELINE_BYTES_MAX => {}
            Phase::InHand(Some(_)) => {
                if !conn.link.pause_body(self.rules.body_buffer_bytes) {
                    self.receive(token);
                    self.set_deadline(token, self.rules.body_ms);
                }
            }
            _ => self.receive(token),
        }
    }

    /// Begins to send what was queued.
    fn write(&mut self, token: Token) {
        let Some(conn) = self.conns.get(token) else { return };
        conn.writing = true;
        self.flush(token);
    }

    fn flush(&mut self, token: Token) {
        let Some(conn) = self.conns.get(token) else { return };
        match conn.link.flush() {
            Flushed::All => {
                conn.writing = false;
                conn.writing_deadline_ms = u64::MAX;
                self.look(token);
            }
            Flushed::Full { progress } => {
                if let Err(error) = self.driver.writable(token, conn.link.socket()) {
                    debug!(%error, "cannot wait for room to send");
                    self.close(token);
                } else if progress || conn.writing_deadline_ms == u64::MAX {
                    self.set_writing_deadline(token);
                }
            }
            Flushed::Gone => {
                conn.link.socket().abort();
                self.close(token);
            }
        }
    }

    /// Answers a request in an application's place, from this thread. The connection goes on as it would have.
    fn answer(&mut self, token: Token, mut exchange: Box<Exchange>, answer: &Answer) {
        let Some(conn) = self.conns.get(token) else { return };
        let head = &exchange.request.head;
        let may_go_on = head.keep_alive && self.rules.keep_alive && self.leaving.is_none() && !answer.last;
        let (bytes, goes_on) = own_answer(head, may_go_on, answer.status, answer.content_type, &answer.body);
        exchange.clear();
        self.blank = Some(exchange);
        let waits = conn.link.say(&bytes);
        if !goes_on {
            self.end_with_this(token);
        } else if waits {
            // The next request must wait for the end of this answer, or a client that reads nothing would fill
            // the memory. Not flushed here: what follows in the buffer at hand is not in `input` yet.
            conn.link.conclude(Outcome::Keep);
            conn.phase = Phase::InHand(None);
            conn.writing = true;
            if let Err(error) = self.driver.writable(token, conn.link.socket()) {
                debug!(%error, "cannot wait for room to send");
                self.close(token);
                return;
            }
            self.set_writing_deadline(token);
        } else {
            self.set_idle_deadline(token);
        }
    }

    /// Answers a request that no application sees, and ends the connection. To a HEAD request the page has no body
    /// (RFC 9110 section 9.3.2).
    ///
    /// Returns the bytes of the page's body.
    fn refuse(&mut self, token: Token, refused: &Refusal, is_head: bool) -> u64 {
        let Some(conn) = self.conns.get(token) else { return 0 };
        // gunicorn's words, which programs that ban addresses look for.
        warn!("Invalid request from ip={}: {}", conn.link.peer().host(), refused.detail);
        let page = refusal(refused.status, &refused.detail, is_head);
        if self.counting
            && let Some(meter) = &self.meter
            && !conn.observer
        {
            // First, so that whoever has the answer finds it counted.
            meter.refused[status_index(refused.status)].add(1);
        }
        // What the socket does not take is sent like the rest of any other last answer.
        let _ = conn.link.say(&page);
        self.end_with_this(token);
        body_bytes(&page)
    }

    /// What was said is the last that this connection sees.
    fn end_with_this(&mut self, token: Token) {
        let Some(conn) = self.conns.get(token) else { return };
        conn.link.conclude(Outcome::Close);
        conn.phase = Phase::InHand(None);
        conn.broken = true;
        conn.input = Vec::new();
        self.look(token);
    }

    /// Refuses a request for its head, with which `input` begins; tells of it if the head was read.
    fn refuse_head(&mut self, token: Token, refused: &Refusal, mut exchange: Box<Exchange>, input: &[u8]) {
        let head = &exchange.request.head;
        if head.is_read && self.timed {
            let last = head.fields.last().map_or(head.target, |field| field.value);
            let lines = input.get(..last.end as usize).unwrap_or(input);
            exchange.request.bytes.extend_from_slice(lines);
            exchange.request.received_ns = clock::monotonic_ns();
            self.refuse_read(token, refused, exchange);
        } else {
            let is_head = head.is_head;
            self.blank = Some(exchange);
            self.refuse(token, refused, is_head);
        }
    }

    /// Refuses a request whose head was read, and tells of it.
    fn refuse_read(&mut self, token: Token, refused: &Refusal, exchange: Box<Exchange>) {
        let Some(conn) = self.conns.get(token) else { return };
        let observer = conn.observer;
        // The connection may be gone when it has been answered.
        let link = Arc::clone(&conn.link);
        let bytes = self.refuse(token, refused, exchange.request.head.is_head);
        if observer {
            // Who watches is in no log.
            return;
        }
        self.tell_of(exchange, link, refused.status, bytes);
    }

    /// Refuses a request whose body was being read.
    fn refuse_gathering(&mut self, token: Token, refused: &Refusal) {
        let Some(conn) = self.conns.get(token) else { return };
        if let Phase::Body(gathering) = std::mem::replace(&mut conn.phase, Phase::Head) {
            self.refuse_read(token, refused, gathering.exchange);
        }
    }

    /// Tells those who log of a request that no application sees.
    fn tell_of(&mut self, mut exchange: Box<Exchange>, link: Arc<Link>, status: u16, body_bytes: u64) {
        if !self.timed {
            exchange.clear();
            self.blank = Some(exchange);
            return;
        }
        exchange.begin(link);
        exchange.reply.note_refusal(status, body_bytes);
        self.batch.extend(self.pool.refused(exchange));
    }

    /// Sends the end of our stream and waits, bounded, for the client's.
    fn linger(&mut self, token: Token) {
        let Some(conn) = self.conns.get(token) else { return };
        // It fails when the client is gone, which the receive side reports.
        let _ = conn.link.socket().shutdown_write();
        // Entered once: nothing but the close follows.
        conn.phase = Phase::Linger(0);
        conn.input = Vec::new();
        self.lingering += 1;
        if conn.ended || self.lingering > LINGERING_MAX {
            self.close(token);
            return;
        }
        if conn.paused {
            self.receive(token);
        }
        self.set_deadline(token, self.rules.linger_ms);
    }

    fn close(&mut self, token: Token) {
        let Some(conn) = self.conns.remove(token) else { return };
        match conn.phase {
            Phase::Linger(_) => self.lingering -= 1,
            // If it still waits for a runner, nobody needs its answer.
            Phase::InHand(_) if conn.link.standing() == Standing::Busy => {
                self.lost.insert(token);
            }
            _ => {}
        }
        self.driver.release(token, conn.link.socket());
        if let Phase::Body(gathering) = conn.phase {
            let status = self.status_of_lost();
            self.tell_of(gathering.exchange, Arc::clone(&conn.link), status, 0);
        }
        // A runner that waits for this client is let go; the descriptor closes with the last reference.
        conn.link.lose();
        if conn.observer {
            self.observers -= 1;
        }
        self.use_room();
    }

    /// For the one line of a request that no application has seen: its client reset the connection, or this worker has
    /// no time left.
    fn status_of_lost(&self) -> u16 {
        if self.draining.is_some() { 503 } else { 400 }
    }

    /// A connection is gone: accepts again, if there was no room.
    fn use_room(&mut self) {
        let closed = matches!(self.entrance, Entrance::Closed { .. });
        if self.crowded && self.clients() < self.rules.connections_max && !closed {
            self.crowded = false;
            self.open();
        }
    }

    // ---- time --------------------------------------------------------------------------------

    /// Acts on the connection in `after_ms` unless a later deadline is set before. `u64::MAX`: never.
    fn set_deadline(&mut self, token: Token, after_ms: u64) {
        let Some(conn) = self.conns.get(token) else { return };
        conn.deadline_ms = self.now_ms.saturating_add(after_ms);
        self.arm(token);
    }

    /// Gives the client the time until its next request.
    fn set_idle_deadline(&mut self, token: Token) {
        // The close of an answer whose head left before the draining began could not be announced.
        let idle_ms = self.leaving.map_or(u64::MAX, |stop| self.last_idle_ms(stop));
        self.set_deadline(token, idle_ms.min(self.rules.keepalive_ms));
        if let Some(conn) = self.conns.get(token) {
            conn.idle_ms = self.now_ms;
        }
    }

    /// Gives the client `response_timeout` to take something of its answer.
    fn set_writing_deadline(&mut self, token: Token) {
        let Some(conn) = self.conns.get(token) else { return };
        conn.writing_deadline_ms = self.now_ms.saturating_add(self.rules.response_ms);
        self.arm(token);
    }

    fn arm(&mut self, token: Token) {
        let Some(conn) = self.conns.get(token) else { return };
        let due_ms = conn.deadline_ms.min(conn.writing_deadline_ms);
        // An earlier entry fires first and is set anew then: moving a deadline costs nothing.
        if due_ms < conn.wheel_ms {
            conn.wheel_ms = due_ms;
            self.wheel.schedule(token, due_ms);
        }
    }

    fn on_expired(&mut self, token: Token) {
        let Some(conn) = self.conns.get(token) else { return };
        // The wheel keeps one entry for each slot, the earliest: it may stem from the slot's last user.
        conn.wheel_ms = u64::MAX;
        if conn.writing_deadline_ms <= self.now_ms {
            debug!("{} stopped reading its answer", conn.link.peer());
            conn.link.socket().abort();
            self.close(token);
            return;
        }
        if conn.deadline_ms > self.now_ms {
            self.arm(token);
            return;
        }
        let told = conn.is_told_to_send();
        match &conn.phase {
            Phase::Head if conn.in_head => {
                self.refuse(
                    token,
                    &Refusal { status: 408, detail: "the request head did not arrive in time".into() },
                    false,
                );
            }
            Phase::Body(_) => {
                let refused = Refusal { status: 408, detail: BodyError::TimedOut.to_string().into() };
                self.refuse_gathering(token, &refused);
            }
            // Told a moment ago.
            Phase::InHand(Some(_)) if told => self.set_deadline(token, self.rules.body_ms),
            // The body is not what holds this up: the application has not asked for it, or has answered.
            Phase::InHand(Some(_)) if conn.link.owes_continue() || conn.link.standing() != Standing::Busy => {
                self.set_deadline(token, self.rules.body_ms);
            }
            Phase::InHand(Some(_)) => self.break_body(token, BodyError::TimedOut),
            Phase::InHand(None) => {
                if conn.link.standing() == Standing::Idle {
                    let idle_ms = self.now_ms.saturating_sub(conn.link.idle_since_ms());
                    if idle_ms >= self.rules.keepalive_ms {
                        self.close(token);
                    } else {
                        self.set_deadline(token, self.rules.keepalive_ms - idle_ms);
                    }
                } else {
                    self.set_deadline(token, self.rules.keepalive_ms);
                }
            }
            Phase::Moving(..) => self.set_deadline(token, self.rules.keepalive_ms),
            Phase::Head | Phase::Drain(..) | Phase::Linger(_) => self.close(token),
        }
    }
}

/// What a simulation asks between two turns.
#[cfg(any(test, feature = "simulation"))]
impl Io {
    pub(super) fn connections(&self) -> usize {
        self.conns.len()
    }

    /// When the wheel's next entry is due.
    pub(super) fn next_entry_ms(&self) -> Option<u64> {
        self.wheel.next_ms()
    }

    /// The longest time that pieces have been kept back on a connection, now or before the I/O thread sent them.
    pub(super) fn longest_held_ms(&mut self) -> u64 {
        let mut longest_ms = self.port.longest_held_ms.load(Ordering::Relaxed);
        for token in self.conns.tokens() {
            let since_ms = self.conns.get(token).and_then(|conn| conn.link.held_since_ms());
            longest_ms = longest_ms.max(since_ms.map_or(0, |since_ms| self.now_ms - since_ms));
        }
        longest_ms
    }

    /// For each connection: bytes of input, of the answer, and of the streamed body that it holds.
    pub(super) fn held_bytes(&mut self) -> Vec<(usize, usize, usize)> {
        let tokens = self.conns.tokens();
        let mut held = Vec::with_capacity(tokens.len());
        for token in tokens {
            if let Some(conn) = self.conns.get(token) {
                let (answer, body) = conn.link.held_bytes();
                held.push((conn.input.len(), answer, body));
            }
        }
        held
    }
}
