//! Requests that take too long: what is known of them, and when something is to be done about them.
//!
//! Nothing here runs for each request. A runner leaves the number of the request that it has in hand at its seat,
//! which it does anyway; the I/O thread looks at the seats with its heartbeat, and what is still there at the next
//! look is slow. Only then its text is made, and a thread is started that asks the application for stacks.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, SyncSender, TrySendError};
use std::sync::{Arc, Weak};
use std::thread;

use tracing::{error, warn};

use super::pool::{Pool, Work};
use crate::app::Application;
use crate::limits::{
    HEARTBEAT_MS, IN_HAND_PUBLISH_MS, REPORTS_WAITING_MAX, REQUEST_LINE_NOTE_BYTES, STACK_PATIENCE_MS,
};
use crate::sys::in_hand::InHand;
use crate::sys::signal;

/// A gap between two looks that means that the whole process stood still (SIGSTOP, a starved machine), in ms: that
/// time is not the application's.
const STANDSTILL_MS: u64 = 4 * HEARTBEAT_MS;

/// How often it is looked whether the log has been told, in ms.
pub(super) const SOON_MS: u64 = 20;

/// The value of `X-Request-ID` in a head, escaped.
pub(super) fn request_id(head: &[u8]) -> Option<String> {
    head.split(|byte| *byte == b'\n').find_map(|line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let value = line[colon + 1..].trim_ascii();
        line[..colon]
            .eq_ignore_ascii_case(b"x-request-id")
            .then(|| value[..value.len().min(REQUEST_LINE_NOTE_BYTES)].escape_ascii().to_string())
    })
}

/// The beginning of a request, kept beside its connection for the log. The request itself is the runner's.
#[derive(Clone, Copy)]
pub(super) struct RequestLine {
    bytes: [u8; REQUEST_LINE_NOTE_BYTES],
    length: u8,
}

impl RequestLine {
    pub(super) const EMPTY: Self = Self { bytes: [0; REQUEST_LINE_NOTE_BYTES], length: 0 };

    /// Notes the first bytes of a head. A few instructions, because every request pays them.
    pub(super) fn set(&mut self, head: &[u8]) {
        let length = head.len().min(REQUEST_LINE_NOTE_BYTES);
        self.bytes[..length].copy_from_slice(&head[..length]);
        self.length = length as u8;
    }

    /// Method and path, escaped; without the query, which may hold secrets.
    pub(super) fn shown(&self) -> String {
        let bytes = &self.bytes[..usize::from(self.length)];
        let line =
            bytes.trim_ascii_start().split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
        let cut = line.len() == bytes.len() && self.length as usize == REQUEST_LINE_NOTE_BYTES;
        let mut words = line.splitn(3, |byte| *byte == b' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
        let more = if cut && path.len() == target.len() && words.next().is_none() { "..." } else { "" };
        format!("{} {}{more}", method.escape_ascii(), path.escape_ascii())
    }
}

/// After how many milliseconds something is to be done about a request; `u64::MAX` is never.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// The log tells of it, once, with its stack.
    pub(super) slow_ms: u64,
    /// Its client gets an answer from us.
    pub(super) request_ms: u64,
    /// It has the only runner, and so holds up everybody (`timeout` of gunicorn's sync worker).
    pub(super) lone_ms: u64,
}

impl Patience {
    /// Whatever takes long is left alone.
    #[cfg(any(test, feature = "simulation"))]
    pub(super) const ENDLESS: Self = Self { slow_ms: u64::MAX, request_ms: u64::MAX, lone_ms: u64::MAX };
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    /// Tell of a slow request.
    Tell(Held),
    /// The request's time is over.
    Expire(Held),
    /// A runner has not come back since its request's time was over: this worker is to be replaced.
    Retire(Held),
    /// The only runner is stuck: tell of everything in hand, and let the master end this worker.
    Stuck,
}

/// A request that a runner has in hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) work: Work,
    /// When the request was complete.
    pub(super) begun_ms: u64,
    /// For how long the whole process stood still since: that is not the application's time.
    still_ms: u64,
    /// When a look found it with its runner for the first time.
    pub(super) since_ms: u64,
    /// Method, path, peer.
    pub(super) text: String,
    told: bool,
    expired_ms: Option<u64>,
    retired: bool,
}

impl Held {
    /// As the log shows it.
    pub(super) fn shown(&self, now_ms: u64) -> String {
        format!("{}, {} s", self.text, seconds(now_ms.saturating_sub(self.counts_from_ms())))
    }

    /// From when on its time counts. `begun_ms` itself tells one request of a connection from another, and stays.
    fn counts_from_ms(&self) -> u64 {
        self.begun_ms.saturating_add(self.still_ms)
    }
}

/// The requests in hand, as the last look saw them.
pub(super) struct Overdue {
    patience: Patience,
    held: Vec<Held>,
    looked_ms: u64,
    next_ms: u64,
    published: usize,
    stuck: bool,
}

impl Overdue {
    pub(super) fn new(patience: Patience, now_ms: u64) -> Self {
        Self { patience, held: Vec::new(), looked_ms: now_ms, next_ms: now_ms, published: 0, stuck: false }
    }

    /// When to look again.
    pub(super) fn next_ms(&self) -> u64 {
        self.next_ms
    }

    /// Looks again at this time, or before.
    pub(super) fn look_by(&mut self, at_ms: u64) {
        self.next_ms = self.next_ms.min(at_ms);
    }

    /// The requests in hand at the last look.
    pub(super) fn held(&self) -> &[Held] {
        &self.held
    }

    /// Takes in what the seats say: `text` is asked for each request that is seen for the first time, and gives when
    /// it was complete, and what it is.
    pub(super) fn look(&mut self, works: &[Work], now_ms: u64, mut text: impl FnMut(&Work) -> (u64, String)) {
        let gap_ms = now_ms.saturating_sub(self.looked_ms);
        if gap_ms > STANDSTILL_MS {
            for held in &mut self.held {
                held.since_ms += gap_ms;
                held.still_ms += gap_ms;
            }
        }
        self.looked_ms = now_ms;
        self.held.retain(|held| works.contains(&held.work));
        for work in works {
            if !self.held.iter().any(|held| held.work == *work) {
                let (begun_ms, text) = text(work);
                self.held.push(Held {
                    work: *work,
                    begun_ms,
                    still_ms: 0,
                    since_ms: now_ms,
                    text,
                    told: false,
                    expired_ms: None,
                    retired: false,
                });
            }
        }
        if self.held.is_empty() {
            self.stuck = false;
        }
    }

    /// What is due now. Each deed comes once.
    pub(super) fn due(&mut self, now_ms: u64) -> Vec<Deed> {
        let Patience { slow_ms, request_ms, lone_ms } = self.patience;
        let mut deeds = Vec::new();
        let mut next_ms = now_ms + HEARTBEAT_MS.min(shortest(self.patience) / 2).max(1);
        for held in &mut self.held {
            let from_ms = held.counts_from_ms();
            let age_ms = now_ms.saturating_sub(from_ms);
            if !held.told && age_ms >= slow_ms {
                held.told = true;
                deeds.push(Deed::Tell(held.clone()));
            }
            match held.expired_ms {
                None if age_ms >= request_ms => {
                    held.expired_ms = Some(now_ms);
                    deeds.push(Deed::Expire(held.clone()));
                }
                // The same time once more to come back.
                Some(at_ms) if !held.retired && now_ms - at_ms >= request_ms.max(HEARTBEAT_MS) => {
                    held.retired = true;
                    deeds.push(Deed::Retire(held.clone()));
                }
                _ => {}
            }
            if !self.stuck && now_ms.saturating_sub(held.since_ms) >= lone_ms {
                self.stuck = true;
                deeds.push(Deed::Stuck);
            }
            let ends = [
                (!held.told).then(|| from_ms.saturating_add(slow_ms)),
                held.expired_ms.is_none().then(|| from_ms.saturating_add(request_ms)),
                (!self.stuck).then(|| held.since_ms.saturating_add(lone_ms)),
            ];
            next_ms = ends.into_iter().flatten().fold(next_ms, u64::min).max(now_ms + 1);
        }
        self.next_ms = next_ms;
        deeds
    }

    /// Publishes the requests that have been in hand for a while.
    pub(super) fn publish(&mut self, page: &InHand, now_ms: u64) {
        let old = |held: &&Held| now_ms.saturating_sub(held.counts_from_ms()) >= IN_HAND_PUBLISH_MS;
        let mut shown: Vec<&Held> = self.held.iter().filter(old).collect();
        if shown.is_empty() && self.published == 0 {
            return;
        }
        shown.sort_by_key(|held| held.counts_from_ms());
        page.publish(shown.iter().map(|held| (held.counts_from_ms(), &*held.text)));
        self.published = shown.len();
    }
}

fn shortest(patience: Patience) -> u64 {
    patience.slow_ms.min(patience.request_ms).min(patience.lone_ms)
}

fn seconds(ms: u64) -> String {
    format!("{:.1}", ms as f64 / 1000.0)
}

/// What a thread of its own writes to the log: it may wait for the interpreter, which the I/O thread may not.
pub(super) struct Reporter {
    pool: Weak<Pool>,
    app: Arc<dyn Application>,
    thread: Option<SyncSender<Report>>,
}

enum Report {
    /// A request, with the stack of the runner that has it.
    One { what: String, work: Work },
    /// Everything in hand, with the stacks of all threads; says when it is written.
    All { what: String, done: Arc<AtomicBool> },
}

impl Reporter {
    pub(super) fn new(pool: &Arc<Pool>, app: Arc<dyn Application>) -> Self {
        Self { pool: Arc::downgrade(pool), app, thread: None }
    }

    /// Logs a line of what is known, and the stack behind it.
    pub(super) fn one(&mut self, what: String, work: Work) {
        self.send(Report::One { what, work });
    }

    /// Logs what is known, and all stacks. Returns what becomes true when it is in the log.
    pub(super) fn all(&mut self, what: String) -> Arc<AtomicBool> {
        let done = Arc::new(AtomicBool::new(false));
        self.send(Report::All { what, done: Arc::clone(&done) });
        done
    }

    fn send(&mut self, report: Report) {
        if self.thread.is_none() {
            self.thread = start(self.pool.clone(), Arc::clone(&self.app));
        }
        let refused = match &self.thread {
            None => Some(report),
            Some(thread) => match thread.try_send(report) {
                Ok(()) => None,
                Err(TrySendError::Full(report) | TrySendError::Disconnected(report)) => Some(report),
            },
        };
        // Many at once: the lines matter more than the stacks.
        match refused {
            Some(Report::One { what, .. }) => warn!("{what}"),
            Some(Report::All { what, done }) => {
                error!("{what}");
                done.store(true, Ordering::Release);
            }
            None => {}
        }
    }
}

fn start(pool: Weak<Pool>, app: Arc<dyn Application>) -> Option<SyncSender<Report>> {
    let (sender, reports) = mpsc::sync_channel(REPORTS_WAITING_MAX);
    let started = thread::Builder::new().name("ringhorn-watch".into()).spawn(move || {
        // Signals are the main thread's.
        if let Err(error) = signal::block_all_in_this_thread() {
            error!("cannot block signals: {error}");
            return;
        }
        for report in reports {
            match report {
                Report::One { what, work } => {
                    let stacks = app.stacks(Some(work.thread));
                    // Still the same request, so this is its stack.
                    let same = pool.upgrade().is_some_and(|pool| pool.still_has(&work));
                    match stacks.filter(|_| same) {
                        Some(stacks) => warn!("{what}\n{}", stacks.trim_end()),
                        None if same => warn!("{what}"),
                        None => warn!("{what}; it has ended since"),
                    }
                }
                Report::All { mut what, done } => {
                    if let Some(stacks) = app.stacks(None) {
                        let _ = write!(what, "\n{}", stacks.trim_end());
                    }
                    error!("{what}");
                    done.store(true, Ordering::Release);
                }
            }
        }
    });
    match started {
        Ok(_) => Some(sender),
        Err(error) => {
            error!("cannot start the thread that tells of slow requests: {error}");
            None
        }
    }
}

/// How long the master waits for [`Reporter::all`] at most: twice what the application is waited for.
pub(super) const REPORT_PATIENCE_MS: u64 = 2 * STACK_PATIENCE_MS;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::Token;

    const PATIENCE: Patience = Patience { slow_ms: 2_000, request_ms: 5_000, lone_ms: 30_000 };

    fn work(taken: u64) -> Work {
        Work { taken, token: Token { slot: 1, generation: 0 }, thread: 7 }
    }

    /// The deeds of each of these times, for a request that was complete at 1000 and is at its seat until `end_ms`.
    fn deeds(patience: Patience, times: impl Iterator<Item = u64>, end_ms: u64) -> Vec<(u64, &'static str)> {
        let mut overdue = Overdue::new(patience, 1_000);
        let mut all = Vec::new();
        for now_ms in times {
            let works = if now_ms < end_ms { vec![work(1)] } else { Vec::new() };
            overdue.look(&works, now_ms, |_| (1_000, "GET / from unix".into()));
            for deed in overdue.due(now_ms) {
                let name = match deed {
                    Deed::Tell(_) => "tell",
                    Deed::Expire(_) => "expire",
                    Deed::Retire(_) => "retire",
                    Deed::Stuck => "stuck",
                };
                all.push((now_ms, name));
            }
        }
        all
    }

    #[test]
    fn each_deed_comes_once_and_in_its_time() {
        let wanted = [(3_000, "tell"), (6_000, "expire"), (11_000, "retire"), (31_500, "stuck")];
        assert_eq!(deeds(PATIENCE, (1_500..60_000).step_by(500), u64::MAX), wanted);
        assert_eq!(deeds(PATIENCE, (1_500..60_000).step_by(500), 7_000), wanted[..2]);
        assert_eq!(deeds(Patience::ENDLESS, (1_500..60_000).step_by(500), u64::MAX), []);
    }

    /// A process that is stopped for a minute and continued has done nothing wrong.
    #[test]
    fn time_in_which_the_process_stood_still_does_not_count() {
        let times = [1_500, 2_000, 62_000, 62_500, 63_000].into_iter();
        assert_eq!(deeds(PATIENCE, times, u64::MAX), [(63_000, "tell")]);
    }

    /// Looked at often enough that a request cannot be slow and gone between two looks.
    #[test]
    fn a_look_comes_exactly_when_something_is_due() {
        let mut overdue = Overdue::new(PATIENCE, 0);
        assert_eq!(overdue.next_ms(), 0);
        overdue.look(&[], 0, |_| unreachable!());
        overdue.due(0);
        assert_eq!(overdue.next_ms(), HEARTBEAT_MS);
        overdue.look(&[work(1)], 500, |_| (17, String::new()));
        for now_ms in [500, 1_000, 1_500] {
            assert_eq!(overdue.due(now_ms), []);
            assert_eq!(overdue.next_ms(), now_ms + HEARTBEAT_MS);
        }
        assert_eq!(overdue.due(2_000), []);
        assert_eq!(overdue.next_ms(), 2_017);
    }

    #[test]
    fn only_requests_of_a_certain_age_are_published() {
        let (page, mut overdue) = (InHand::default(), Overdue::new(PATIENCE, 0));
        overdue.look(&[work(1), work(2)], 1_500, |work| (work.taken * 400, format!("GET /{}", work.taken)));
        overdue.publish(&page, 1_500);
        assert_eq!(page.published().len(), 1);
        assert_eq!(page.published()[0].text, "GET /1");
        overdue.look(&[], 2_000, |_| unreachable!());
        overdue.publish(&page, 2_000);
        assert_eq!(page.published(), []);
    }

    #[test]
    fn a_request_line_is_shown_without_its_query_and_escaped() {
        let shown = |head: &[u8]| {
            let mut line = RequestLine::EMPTY;
            line.set(head);
            line.shown()
        };
        assert_eq!(shown(b"GET /a?secret HTTP/1.1\r\nHost: a\r\n\r\n"), "GET /a");
        assert_eq!(shown(b"\r\nGET / HTTP/1.1\r\n\r\n"), "GET /");
        assert_eq!(shown(b"GET /\xff HTTP/1.1\r\n\r\n"), "GET /\\xff");
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(500));
        assert!(shown(long.as_bytes()).ends_with("xxx..."));
        assert_eq!(shown(b""), " ");
    }
}
