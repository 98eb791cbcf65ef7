//! The end of a worker: what was accepted is answered, and nobody new comes in.

use super::*;
use crate::limits::{CLOSE_ENTRANCE_MS, DRAIN_IDLE_MS, RETIRE_IDLE_MS};

impl Io {
    /// Does what the order says; returns whether the loop is to end.
    pub(in crate::worker) fn obey(&mut self, stop: Option<Stop>) -> bool {
        match stop {
            Some(Stop::Quick) => {
                self.draining = None;
                return true;
            }
            Some(stop) if self.leaving < Some(stop) => self.drain(stop),
            _ => {}
        }
        if let Some(stop) = self.leaving
            && self.sweep_ms <= self.now_ms
        {
            self.sweep(stop);
        }
        self.close_entrance();
        let served = self.clients() == 0 && self.entrance == Entrance::Closed { turns: CLOSED_TURNS };
        let empty = served && self.end_observation() && self.conns.len() == 0 && !self.finds_strays();
        self.draining.is_some_and(|deadline| empty || self.now_ms >= deadline)
    }

    /// Begins to leave, or hurries: what was accepted is answered, and each connection ends after its answer.
    fn drain(&mut self, stop: Stop) {
        let first = self.leaving.is_none();
        debug!("told to leave ({stop:?}): connections {}", self.conns.len());
        self.leaving = Some(stop);
        if first {
            self.port.drain();
            self.observer_port.drain();
            self.draining = Some(self.now_ms + self.rules.graceful_ms);
            self.accept_again_ms = None;
            self.stop_helping();
        }
        let entrance_ms = if stop == Stop::Retire { self.rules.graceful_ms / 2 } else { CLOSE_ENTRANCE_MS };
        if matches!(self.entrance, Entrance::Open | Entrance::Closing { .. }) {
            self.entrance = Entrance::Closing { until_ms: self.now_ms + entrance_ms };
        } else if stop == Stop::Close {
            self.doors.iter().for_each(Door::close);
        }
        self.sweep_ms = self.now_ms;
    }

    /// How long an idle connection is kept by a worker that leaves.
    pub(super) fn last_idle_ms(&self, stop: Stop) -> u64 {
        match stop {
            // Nobody waits for us, and a client that was promised time for its next request gets it. Not to
            // the last moment: the master's patience ends then.
            Stop::Retire => RETIRE_IDLE_MS.min(self.rules.graceful_ms / 2),
            _ => DRAIN_IDLE_MS,
        }
    }

    /// Shortens the time that idle connections have. Again and again while the worker leaves: some are accepted,
    /// and some answers were begun, before the order came.
    fn sweep(&mut self, stop: Stop) {
        self.sweep_ms = self.now_ms + DRAIN_IDLE_MS;
        let idle_ms = self.last_idle_ms(stop);
        for token in self.conns.tokens() {
            let Some(conn) = self.conns.get(token) else { continue };
            // Of answers in hand, the end shall not pass unnoticed.
            if matches!(conn.phase, Phase::InHand(None)) && conn.link.want_attention() == Standing::Idle {
                self.look(token);
            }
            let idle = |conn: &&mut Conn| matches!(conn.phase, Phase::Head) && !conn.in_head;
            if let Some(conn) = self.conns.get(token).filter(idle) {
                let left = conn.deadline_ms.saturating_sub(self.now_ms);
                // Who watches is not promised anything: another worker answers as well.
                let idle_ms = if conn.observer { DRAIN_IDLE_MS } else { idle_ms };
                // A request may be on its way: it is answered, with the close announced.
                self.set_deadline(token, idle_ms.min(left));
            }
        }
    }

    /// Whoever watches the server may do so until its clients are served, and then no longer. Returns whether nobody
    /// new can come any more.
    fn end_observation(&mut self) -> bool {
        let Some(turns) = self.unobserved_turns else {
            let doors = self.stop_accepting(true);
            self.unobserved_turns = Some(if doors == 0 { CLOSED_TURNS } else { 0 });
            return doors == 0;
        };
        self.unobserved_turns = Some((turns + 1).min(CLOSED_TURNS));
        turns == CLOSED_TURNS
    }

    /// Goes on taking connections until nobody waits in the queues, then stops. What waits there was
    /// promised service by the kernel.
    fn close_entrance(&mut self) {
        match self.entrance {
            Entrance::Open => {}
            Entrance::Closing { until_ms } => {
                let patient = self.now_ms < until_ms && !self.crowded;
                if patient && self.doors.iter().any(|door| !door.observer && door.has_waiting()) {
                    return;
                }
                self.stop_accepting(false);
                if self.leaving == Some(Stop::Close) {
                    self.doors.iter().for_each(Door::close);
                }
                self.entrance = Entrance::Closed { turns: 0 };
            }
            Entrance::Closed { turns } => {
                self.entrance = Entrance::Closed { turns: (turns + 1).min(CLOSED_TURNS) };
            }
        }
    }
}
