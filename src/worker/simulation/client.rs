//! One client: it does what its script says, and keeps what it gets.

use super::oracle::{self, Reader};
use super::plan::{Action, Ending, Script};
use super::runners::Runners;
use super::{Dice, Network, trace};
use crate::ring::sim;

/// Milliseconds that a client waits for `100 Continue` before it sends the body all the same.
const CONTINUE_MS: u64 = 3_000;

pub(super) struct Client {
    wire: sim::Client,
    dice: Dice,
    script: Script,
    received: Vec<u8>,
    reader: Reader,
    /// Bytes that it reads before it stops to, if it does.
    reads: usize,
    wake_ms: u64,
    /// When it gives up to wait for an interim answer.
    patience_ms: Option<u64>,
    has_reset: bool,
    closed: bool,
    waits: bool,
}

impl Client {
    pub(super) fn new(network: Network, seed: u64, script: Script) -> Self {
        let mut dice = Dice(seed);
        let deaf = script.ending == Ending::Deaf;
        let reads = if deaf { dice.below(3_000) } else { usize::MAX };
        Self {
            wire: network.connect(script.door),
            dice,
            script,
            received: Vec::new(),
            reader: Reader::default(),
            reads,
            wake_ms: 0,
            patience_ms: None,
            has_reset: false,
            closed: false,
            waits: false,
        }
    }

    /// When it wants to act: at once, later, or (`u64::MAX`) when something has come.
    pub(super) fn next_ms(&self) -> u64 {
        if self.closed {
            u64::MAX
        } else if self.readable() || (!self.waits && !self.script.actions.is_empty()) {
            self.wake_ms
        } else {
            self.patience_ms.unwrap_or(u64::MAX)
        }
    }

    /// Nothing more will come of it.
    pub(super) fn is_done(&self) -> bool {
        self.closed || (self.script.ending == Ending::Deaf && self.script.actions.is_empty())
    }

    fn readable(&self) -> bool {
        self.reads > 0 && (self.wire.has_bytes() || self.wire.is_ended() || self.wire.is_reset())
    }

    pub(super) fn step(&mut self, now_ms: u64) {
        if self.closed || now_ms < self.wake_ms {
            return;
        }
        let appetite = if self.script.ending == Ending::Deaf { 1_000 } else { self.script.appetite };
        let count = self.dice.part(appetite).min(self.reads);
        let bytes = self.wire.take(count);
        self.reads -= bytes.len();
        self.received.extend_from_slice(&bytes);
        if self.wire.is_reset() || (self.wire.is_ended() && self.reads > 0) {
            // A client that was told the end closes, too.
            self.wire.end();
            self.closed = true;
            return;
        }
        let Some(action) = self.script.actions.front().cloned() else { return };
        self.waits = false;
        match action {
            Action::Send(bytes) => self.wire.send(&bytes),
            Action::Wait(ms) => self.wake_ms = now_ms + ms,
            Action::HalfClose => self.wire.end(),
            Action::Reset => {
                self.wire.reset();
                self.has_reset = true;
                self.closed = true;
            }
            Action::AwaitContinue(index) => {
                self.reader.advance(&self.received, &self.script.asked, false);
                let come = self.reader.answers.len() > index || self.reader.interim;
                let until_ms = *self.patience_ms.get_or_insert(now_ms + CONTINUE_MS);
                if !come && now_ms < until_ms {
                    self.waits = true;
                    return;
                }
                // For the first request the connection may not even be accepted yet, and a large body is for
                // the application to decide about.
                assert!(
                    come || index == 0
                        || self.script.ending == Ending::Deaf
                        || self.script.asked[index].announced_large,
                    "no 100 Continue for a body that is wanted: {}",
                    self.describe()
                );
                self.patience_ms = None;
            }
            Action::AwaitAnswers(count) => {
                self.reader.advance(&self.received, &self.script.asked, false);
                if self.reader.answers.len() < count {
                    self.waits = true;
                    return;
                }
            }
        }
        trace!("{now_ms} {} has done its first action", self.describe());
        self.script.actions.pop_front();
    }

    /// Reads what is left, after the worker has gone.
    pub(super) fn read_out(&mut self) {
        self.received.extend(self.wire.take(usize::MAX));
    }

    /// Compares what came with what was owed.
    pub(super) fn judge(&self, runners: &Runners, stopped: bool, cut_off: bool) {
        let mut reader = self.reader.clone();
        let reset = self.wire.is_reset();
        let ended = !reset && (self.closed || (stopped && self.wire.is_ended()));
        let broken_by_client = self.has_reset || self.script.ending == Ending::Deaf;
        let end = oracle::End {
            ended,
            reset,
            // Whatever is missing, the client or the order to leave is to blame for it.
            broken: broken_by_client || cut_off || (stopped && reset),
            broken_by_client,
            stopped,
        };
        if self.script.ending == Ending::Raw {
            oracle::judge_raw(&mut reader, &self.received, runners, end);
        } else {
            reader.advance(&self.received, &self.script.asked, ended);
            oracle::judge(&reader, &self.script, runners, end);
        }
    }

    pub(super) fn describe(&self) -> String {
        format!(
            "client: {:?}, {} requests, {} actions left ({:?}), {} answers in {} bytes, closed {}",
            self.script.ending,
            self.script.asked.len(),
            self.script.actions.len(),
            self.script.actions.front().map(|action| match action {
                Action::Send(bytes) => format!("send {}", bytes.len()),
                other => format!("{other:?}"),
            }),
            self.reader.answers.len(),
            self.received.len(),
            self.closed,
        )
    }
}
