//! The application's side: runners that answer as planned, one small step at a time, in any order.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::rc::Rc;
use std::sync::Arc;

use super::super::pool::Pool;
use super::plan::{Asked, Plan, Read, bytes_of};
use super::{Dice, Network, trace};
use crate::app::{Body, BodyStream, Exchange, Held, Progress, Sent};
use crate::http::Framing;

/// What became of a request.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Record {
    pub(super) runs: u32,
    /// The body could not be read: pieces of the answer that were sent before, and the status for it.
    pub(super) failed: Option<(usize, u16)>,
    pub(super) finished: bool,
    /// The body was streamed, and not read to its end.
    pub(super) left_unread: bool,
}

struct Job {
    exchange: Box<Exchange>,
    asked: Option<Rc<Asked>>,
    plan: Plan,
    id: u32,
    stream: Option<BodyStream>,
    /// Bytes of the body that were read.
    read: usize,
    read_done: bool,
    sent: usize,
    offset: usize,
    wake_ms: u64,
    full: bool,
    /// Nothing to do until the I/O thread has done something.
    waits: bool,
}

/// All runners of the worker.
pub(super) struct Runners {
    pool: Arc<Pool>,
    network: Network,
    dice: Dice,
    threads: usize,
    jobs: Vec<Job>,
    asked: BTreeMap<u32, Rc<Asked>>,
    records: BTreeMap<u32, Record>,
    /// Of the requests that nobody planned, in order: whether they were HEAD.
    pub(super) unplanned: Vec<bool>,
    /// One of them was announced to be its client's last ([`Asked::is_last_word`]).
    pub(super) unplanned_last_word: bool,
    pub(super) largest_piece: usize,
}

impl Runners {
    pub(super) fn new(pool: Arc<Pool>, network: Network, seed: u64, threads: usize) -> Self {
        Self {
            pool,
            network,
            dice: Dice(seed),
            threads,
            jobs: Vec::new(),
            asked: BTreeMap::new(),
            records: BTreeMap::new(),
            unplanned: Vec::new(),
            unplanned_last_word: false,
            largest_piece: 0,
        }
    }

    /// This request may come.
    pub(super) fn expect(&mut self, asked: &Rc<Asked>) {
        self.largest_piece = asked.plan.pieces.iter().copied().fold(self.largest_piece, usize::max);
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
                && let Some(exchange) = self.pool.take_next()
            {
                self.begin(exchange, now_ms);
            }
            if !self.jobs.is_empty() {
                let index = self.dice.below(self.jobs.len());
                self.advance(index, now_ms);
            }
        }
    }

    fn begin(&mut self, mut exchange: Box<Exchange>, now_ms: u64) {
        let target = String::from_utf8_lossy(exchange.request.target()).into_owned();
        let id = target.strip_prefix("/r/").and_then(|id| id.parse().ok());
        let asked = id.and_then(|id: u32| self.asked.get(&id).cloned());
        if asked.is_none() {
            assert!(self.asked.is_empty(), "nobody has sent a request for {target}");
            let head = exchange.request.head();
            self.unplanned.push(head.is_head);
            self.unplanned_last_word |= !head.keep_alive && head.framing == Framing::None;
        }
        let id = asked.as_ref().map_or(u32::MAX, |asked| asked.id);
        let record = self.records.entry(id).or_default();
        record.runs += 1;
        assert!(asked.is_none() || record.runs == 1, "request {id} runs twice");
        let plan = asked.as_ref().map_or_else(Plan::plain, |asked| asked.plan.clone());
        let mut stream = None;
        match std::mem::take(&mut exchange.request.body) {
            Body::Empty => {
                if let Some(asked) = &asked {
                    assert_eq!(asked.body.1, 0, "the body of request {id} is missing");
                }
            }
            Body::Whole(bytes) => {
                if let Some(asked) = &asked {
                    assert!(bytes == bytes_of(asked.body), "the body of request {id} is another");
                }
            }
            Body::Stream(body) => {
                record.left_unread = true;
                stream = Some(body);
            }
        }
        trace!("{now_ms} runner begins {id}: {plan:?}");
        let wake_ms = now_ms + plan.delay_ms;
        let read_done = stream.is_none() || plan.read == Read::Nothing;
        self.jobs.push(Job {
            exchange,
            asked,
            plan,
            id,
            stream,
            read: 0,
            read_done,
            sent: 0,
            offset: 0,
            wake_ms,
            full: false,
            waits: false,
        });
    }

    fn advance(&mut self, index: usize, now_ms: u64) {
        let job = &mut self.jobs[index];
        if job.wake_ms > now_ms {
            return;
        }
        let record = self.records.entry(job.id).or_default();
        if !job.advance(record, &mut self.dice) {
            return;
        }
        record.finished = true;
        trace!("{now_ms} runner ends {}", job.id);
        let Job { mut exchange, asked, .. } = self.jobs.swap_remove(index);
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
    fn advance(&mut self, record: &mut Record, dice: &mut Dice) -> bool {
        self.waits = false;
        if self.full {
            if self.exchange.request.link().is_full(false) {
                self.waits = true;
                return false;
            }
            self.full = false;
        }
        let late = self.plan.reads_late && self.sent == 0 && !self.plan.pieces.is_empty();
        if !self.read_done && !late {
            return self.read(record);
        }
        let reply = &mut self.exchange.reply;
        if self.plan.fails_at == Some(self.sent) {
            // What a runner leaves unfinished the pool fails.
            let _ = self.plan.abandons;
            reply.fail(500, "");
            return true;
        }
        if !reply.is_started() {
            reply.start(format!("{} Planned", self.plan.status).as_bytes()).expect("a plain status");
            if let Some(length) = self.plan.declared {
                reply.header(b"Content-Length", length.to_string().as_bytes()).expect("a plain header");
            }
            if self.plan.closes {
                reply.header(b"Connection", b"close").expect("a plain header");
            }
            return false;
        }
        let Some(&length) = self.plan.pieces.get(self.sent) else {
            reply.finish();
            return true;
        };
        let piece = bytes_of((self.plan.start + self.offset, length));
        let sent = if let Some(lacking) = self.plan.file {
            reply.send_file(file(&piece[..length - lacking]).into(), 0, length as u64)
        } else {
            let total: usize = self.plan.pieces.iter().sum();
            let total = self.plan.total_known.then_some(total as u64);
            reply.send(piece, total, self.plan.more, || Box::new(piece) as Held)
        };
        self.sent += 1;
        self.offset += length;
        match sent {
            Ok(Sent::Room) => {}
            Ok(Sent::Full) => self.full = true,
            Err(_) => {
                if dice.one_in(2) {
                    reply.finish();
                } else {
                    reply.fail(500, "");
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
                self.exchange.reply.fail(error.status(), "");
                true
            }
        }
    }
}

/// A file of these bytes, in memory.
fn file(bytes: &[u8]) -> File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::memfd_create("simulation", flags).expect("a file in memory"));
    file.write_all(bytes).expect("room in memory");
    file
}
