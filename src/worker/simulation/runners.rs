//! The application's side: runners that answer as planned, one small step at a time, in any order.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use super::super::pool::Pool;
use super::plan::{Asked, Plan, Read, bytes_of};
use super::voice::{Stream, Voice, file};
use super::{Dice, Network, trace};
use crate::app::native::{Request, Response};
use crate::app::{Body, Exchange, Progress, Sent};
use crate::http::{Framing, Version};
use crate::limits::INLINE_OUT_BYTES;

/// Milliseconds by which a deadline may be late: a worker looks at what is in hand with its heartbeat, and stands still
/// at times.
pub(super) const LATE_MS: u64 = 2_000;

/// What became of a request.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Record {
    pub(super) runs: u32,
    /// The body could not be read: pieces of the answer that were sent before, and the status for it.
    pub(super) failed: Option<(usize, u16)>,
    pub(super) finished: bool,
    /// The body was streamed, and not read to its end.
    pub(super) left_unread: bool,
    /// Milliseconds from when it was complete until its runner was done with the answer.
    pub(super) took_ms: u64,
    /// The I/O thread has answered, because its time was over.
    pub(super) expired: bool,
    /// It was answered in the place of `100 Continue`.
    pub(super) unasked: bool,
    /// The runner has sent the last byte of the connection, and the end behind it.
    pub(super) sent_all: bool,
    /// A service has answered on the spot: with a body of known length; and, if true, written where the answers to the
    /// next requests come.
    pub(super) on_the_spot: Option<bool>,
}

struct Job {
    voice: Voice,
    asked: Option<Rc<Asked>>,
    plan: Plan,
    id: u32,
    /// When the request was complete.
    queued_ms: u64,
    stream: Option<Stream>,
    /// Bytes of the body that were read.
    read: usize,
    read_done: bool,
    started: bool,
    sent: usize,
    offset: usize,
    wake_ms: u64,
    /// [`Plan::pause`] is over, or going on.
    paused: bool,
    full: bool,
    /// Nothing to do until the I/O thread has done something.
    waits: bool,
    /// The number of the request, at whose seat the runner is.
    number: u64,
    /// The answer is ended, and the runner has not said so yet.
    done: bool,
}

/// A request, as somebody is given it.
struct Seen<'a> {
    target: &'a [u8],
    is_head: bool,
    last_word: bool,
    body: &'a [u8],
    streamed: bool,
}

/// How long requests may take, in milliseconds, and how many may wait; `MAX` is no limit.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) request_ms: u64,
    pub(super) queue_ms: u64,
    pub(super) queue_max: usize,
}

impl Limits {
    /// Whether requests may be refused before a runner takes them.
    pub(super) fn turns_away(&self) -> bool {
        self.queue_ms != u64::MAX || self.queue_max != usize::MAX
    }
}

/// All runners of the worker.
pub(super) struct Runners {
    pool: Arc<Pool>,
    network: Network,
    dice: Dice,
    threads: usize,
    pub(super) limits: Limits,
    jobs: Vec<Job>,
    asked: BTreeMap<u32, Rc<Asked>>,
    records: BTreeMap<u32, Record>,
    /// Of the requests that nobody planned, in order: whether they were HEAD.
    pub(super) unplanned: Vec<bool>,
    /// One of them was announced to be its client's last ([`Asked::is_last_word`]).
    pub(super) unplanned_last_word: bool,
    pub(super) largest_piece: usize,
    /// They answer for a native service, which is called by the I/O thread.
    pub(super) native: bool,
}

impl Runners {
    pub(super) fn new(pool: Arc<Pool>, network: Network, seed: u64, threads: usize, limits: Limits) -> Self {
        Self {
            pool,
            network,
            dice: Dice(seed),
            threads,
            limits,
            jobs: Vec::new(),
            asked: BTreeMap::new(),
            records: BTreeMap::new(),
            unplanned: Vec::new(),
            unplanned_last_word: false,
            largest_piece: 0,
            native: false,
        }
    }

    /// This request may come.
    pub(super) fn expect(&mut self, asked: &Rc<Asked>) {
        let pieces = asked.plan.pieces.iter();
        // A service may answer with all of it at once, behind answers to requests before.
        let largest = if self.native {
            pieces.sum::<usize>() + INLINE_OUT_BYTES
        } else {
            pieces.copied().max().unwrap_or(0)
        };
        self.largest_piece = self.largest_piece.max(largest);
        self.asked.insert(asked.id, Rc::clone(asked));
    }

    pub(super) fn record(&self, id: u32) -> Record {
        self.records.get(&id).copied().unwrap_or_default()
    }

    /// From now on so many run at the same time; 0: all are stuck, and nobody takes a request.
    #[cfg(test)]
    pub(super) fn set_threads(&mut self, threads: usize) {
        self.threads = threads;
    }

    /// Adds what other runners have done. No request was run by both.
    #[cfg(test)]
    pub(super) fn absorb(&mut self, other: &Self) {
        for (id, record) in &other.records {
            if record.runs > 0 {
                assert_eq!(self.record(*id).runs, 0, "request {id} ran in two workers");
                self.records.insert(*id, *record);
            }
        }
    }

    pub(super) fn is_at_work(&self) -> bool {
        !self.jobs.is_empty() || self.pool.waiting() > 0
    }

    pub(super) fn describe(&self) -> String {
        let jobs: Vec<_> =
            self.jobs.iter().map(|job| (job.id, job.read, job.sent, job.full, job.waits)).collect();
        format!("(id, read, sent, full, waits) {jobs:?}")
    }

    /// When somebody can get on: now, later, or (`u64::MAX`) when the I/O thread has done something.
    pub(super) fn next_ms(&mut self) -> u64 {
        let now_ms = self.network.now_ms();
        for index in (0..self.jobs.len()).rev() {
            if self.jobs[index].waits {
                self.advance(index, now_ms);
            }
        }
        if self.jobs.len() < self.threads && self.pool.waiting() > 0 {
            return now_ms;
        }
        self.jobs.iter().filter(|job| !job.waits).map(|job| job.wake_ms).min().unwrap_or(u64::MAX)
    }

    /// Lets some runners get on, or none.
    pub(super) fn sometimes(&mut self) {
        let now_ms = self.network.now_ms();
        for _ in 0..self.dice.below(6) {
            if self.jobs.len() < self.threads
                && self.dice.one_in(2)
                && let Some((exchange, number)) = self.take()
            {
                self.begin(exchange, number, now_ms);
            }
            if !self.jobs.is_empty() {
                let index = self.dice.below(self.jobs.len());
                self.advance(index, now_ms);
            }
        }
    }

    /// The next request, and its number at a seat; 0 without a seat, when nobody looks at it.
    fn take(&self) -> Option<(Box<Exchange>, u64)> {
        if self.limits.request_ms == u64::MAX {
            return Some((self.pool.take_next()?, 0));
        }
        self.pool.take_next_seated()
    }

    fn begin(&mut self, mut exchange: Box<Exchange>, number: u64, now_ms: u64) {
        let queued_ms = exchange.request.queued_ms;
        let waited_ms = now_ms - queued_ms;
        let bound_ms = self.limits.queue_ms.saturating_add(LATE_MS);
        assert!(waited_ms <= bound_ms, "a request has waited {waited_ms} ms: {}", self.describe());
        let stream = match std::mem::take(&mut exchange.request.body) {
            Body::Stream(body) => Some(Stream::Runner(body)),
            body => {
                exchange.request.body = body;
                None
            }
        };
        let body = match &exchange.request.body {
            Body::Whole(bytes) => &bytes[..],
            Body::Empty | Body::Stream(_) => &[],
        };
        let (target, head) = (exchange.request.target().to_vec(), exchange.request.head());
        let last_word = !head.keep_alive && head.version == Version::Http11 && head.framing == Framing::None;
        let seen =
            Seen { target: &target, is_head: head.is_head, last_word, body, streamed: stream.is_some() };
        let asked = self.meet(&seen);
        exchange.request.body = Body::Empty;
        // As the Python side does for every request.
        if self.dice.one_in(2) {
            exchange.reply.hold_pieces();
        }
        self.push(Voice::Runner(exchange), asked, stream, queued_ms, number);
    }

    /// Somebody was given a request to answer: it is one of those that were sent, and it comes for the first time.
    fn meet(&mut self, seen: &Seen<'_>) -> Option<Rc<Asked>> {
        let target = String::from_utf8_lossy(seen.target);
        let id = target.strip_prefix("/r/").and_then(|id| id.parse().ok());
        let asked = id.and_then(|id: u32| self.asked.get(&id).cloned());
        if asked.is_none() {
            assert!(self.asked.is_empty(), "nobody has sent a request for {target}");
            self.unplanned.push(seen.is_head);
            self.unplanned_last_word |= seen.last_word;
        }
        let id = asked.as_ref().map_or(u32::MAX, |asked| asked.id);
        let record = self.records.entry(id).or_default();
        record.runs += 1;
        assert!(asked.is_none() || record.runs == 1, "request {id} runs twice");
        record.left_unread = seen.streamed;
        if let Some(asked) = asked.as_ref().filter(|_| !seen.streamed) {
            assert!(seen.body == bytes_of(asked.body), "the body of request {id} is another");
        }
        asked
    }

    /// Answers a request as a native service: on the spot, or later.
    pub(super) fn serve(&mut self, request: &Request<'_>, response: &mut Response<'_>) {
        let seen = Seen {
            target: request.target(),
            is_head: request.method_bytes() == b"HEAD",
            // What it sends behind that is read.
            last_word: false,
            body: request.body(),
            streamed: request.is_streamed(),
        };
        let asked = self.meet(&seen);
        let plan = asked.as_ref().map_or_else(Plan::plain, |asked| asked.plan.clone());
        let id = asked.as_ref().map_or(u32::MAX, |asked| asked.id);
        let later = seen.streamed || plan.delay_ms > 0 || !matches!(plan.fails_at, None | Some(0));
        if later || self.dice.one_in(4) {
            let mut responder = response.defer();
            let stream = responder.body().map(Stream::Service);
            assert_eq!(stream.is_some(), seen.streamed);
            let now_ms = self.network.now_ms();
            self.push(Voice::Service(Some(responder)), asked, stream, now_ms, 0);
            return;
        }
        let record = self.records.entry(id).or_default();
        let owned = plan.file.is_some() || (!plan.pieces.is_empty() && self.dice.one_in(4));
        record.on_the_spot = Some(!owned);
        record.finished = true;
        trace!("the service answers {id}: {plan:?}, {record:?}");
        if plan.fails_at == Some(0) {
            response.header("no token", "");
            return;
        }
        response.status(plan.code());
        if let Some(length) = plan.declared {
            response.header("Content-Length", length.to_string());
        }
        if plan.closes {
            response.close();
        }
        let total: usize = plan.pieces.iter().sum();
        let body = bytes_of((plan.start, total));
        if let Some(lacking) = plan.file {
            response.file(file(&body[..total - lacking]), total as u64);
        } else if owned {
            response.body_owned(body);
        } else {
            let mut rest = body;
            for length in &plan.pieces {
                let (piece, behind) = rest.split_at(*length);
                response.body(piece);
                rest = behind;
            }
        }
    }

    fn push(
        &mut self,
        voice: Voice,
        asked: Option<Rc<Asked>>,
        stream: Option<Stream>,
        queued_ms: u64,
        number: u64,
    ) {
        let now_ms = self.network.now_ms();
        let plan = asked.as_ref().map_or_else(Plan::plain, |asked| asked.plan.clone());
        let id = asked.as_ref().map_or(u32::MAX, |asked| asked.id);
        trace!("{now_ms} runner begins {id}: {plan:?}");
        let wake_ms = now_ms + plan.delay_ms;
        let read_done = stream.is_none() || plan.read == Read::Nothing;
        self.jobs.push(Job {
            voice,
            asked,
            plan,
            id,
            queued_ms,
            stream,
            read: 0,
            read_done,
            started: false,
            sent: 0,
            offset: 0,
            wake_ms,
            paused: false,
            full: false,
            waits: false,
            number,
            done: false,
        });
    }

    fn advance(&mut self, index: usize, now_ms: u64) {
        let job = &mut self.jobs[index];
        if job.wake_ms > now_ms {
            return;
        }
        if !job.done {
            let record = self.records.entry(job.id).or_default();
            let had_sent_all = job.voice.has_sent_all();
            let ended = job.advance(record, &mut self.dice, now_ms);
            record.sent_all |= !had_sent_all && job.voice.has_sent_all();
            if !ended {
                return;
            }
            record.finished = true;
            record.took_ms = now_ms - job.queued_ms;
            record.expired = job.voice.is_expired();
            trace!("{now_ms} runner ends {}: {record:?}", job.id);
            // The client may have the answer, and ask for more, before the runner has left its seat.
            job.done = job.number != 0 && self.dice.one_in(3);
            if job.done {
                return;
            }
        }
        let Job { voice, asked, number, .. } = self.jobs.swap_remove(index);
        if number != 0 {
            self.pool.leave_seat(number);
        }
        let Voice::Runner(mut exchange) = voice else { return };
        if let Some(asked) = &asked {
            let bound: usize = asked.plan.pieces.iter().sum();
            assert!(exchange.reply.body_bytes() <= bound.max(1_000) as u64);
        }
        exchange.clear();
        self.pool.give_back(exchange);
    }
}

impl Job {
    /// One step. Returns whether the request is done.
    fn advance(&mut self, record: &mut Record, dice: &mut Dice, now_ms: u64) -> bool {
        self.waits = false;
        if self.full {
            if self.voice.is_full() {
                self.waits = true;
                return false;
            }
            self.full = false;
        }
        if let Some((at, ms)) = self.plan.pause
            && at == self.sent
            && !std::mem::replace(&mut self.paused, true)
        {
            self.wake_ms = now_ms + ms;
            return false;
        }
        let late = self.plan.reads_late && self.sent == 0 && !self.plan.pieces.is_empty();
        if !self.read_done && !late {
            return self.read(record);
        }
        record.unasked |= self.voice.owes_continue();
        if self.plan.fails_at == Some(self.sent) {
            self.voice.fail(500, self.plan.abandons);
            return true;
        }
        if !std::mem::replace(&mut self.started, true) {
            self.voice.start(&self.plan);
            return false;
        }
        let Some(&length) = self.plan.pieces.get(self.sent) else {
            self.voice.finish();
            return true;
        };
        let piece = bytes_of((self.plan.start + self.offset, length));
        let was_complete = self.voice.is_complete();
        let sent = self.voice.send(&self.plan, piece);
        if sent.is_ok() && !was_complete && self.voice.is_complete() && !self.plan.more {
            assert!(
                !self.voice.owes_end(),
                "the last byte of {} has left without the connection's end",
                self.id
            );
        }
        self.sent += 1;
        self.offset += length;
        match sent {
            Ok(Sent::Room) => {}
            Ok(Sent::Full) => self.full = true,
            Err(_) => {
                if dice.one_in(2) {
                    self.voice.finish();
                } else {
                    self.voice.fail(500, false);
                }
                return true;
            }
        }
        false
    }

    fn read(&mut self, record: &mut Record) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        let mut bytes = Vec::new();
        match stream.poll(&mut bytes) {
            Ok(Progress::Ready) => {
                assert!(!bytes.is_empty());
                if let Some(asked) = &self.asked {
                    let expected = &bytes_of(asked.body)[self.read..];
                    assert!(expected.starts_with(&bytes), "the body of request {} is another", self.id);
                }
                self.read += bytes.len();
                self.read_done = matches!(self.plan.read, Read::Some(enough) if self.read >= enough);
                false
            }
            Ok(Progress::Pending) => {
                self.waits = true;
                false
            }
            Ok(Progress::End) => {
                if let Some(asked) = &self.asked {
                    assert_eq!(self.read, asked.body.1, "the body of request {} is too short", self.id);
                }
                record.left_unread = false;
                self.read_done = true;
                false
            }
            Err(error) => {
                record.failed = Some((self.sent, error.status()));
                self.voice.fail(error.status(), false);
                true
            }
        }
    }
}
