//! Requests that take too long: with a runner, or on their way to one.

use super::*;
use crate::limits::OVERLOAD_WARN_MS;
use crate::worker::access::Expired;
use crate::worker::overdue::{Deed, Held, REPORT_PATIENCE_MS, SOON_MS, request_id};
use crate::worker::pool::is_lost;

impl Io {
    /// Where the master is told of requests that take too long.
    pub(in crate::worker) fn tell(&mut self, notices: Notices) {
        self.notices = Some(notices);
    }

    /// Looks at what the runners have in hand: with each heartbeat, and when something is due.
    pub(in crate::worker) fn look_at_requests(&mut self) {
        let now_ms = self.now_ms;
        self.works.clear();
        self.pool.works(&mut self.works);
        let (conns, rules) = (&mut self.conns, &self.rules);
        self.overdue.look(&self.works, now_ms, |work| match conns.get(work.token) {
            Some(conn) => {
                let mut text = format!("{} from {}", conn.line.shown(), conn.link.peer());
                if let Some(id) = rules.keep_heads.then(|| request_id(&conn.head)).flatten() {
                    text.push_str(&format!(", request id {id}"));
                }
                (conn.begun_ms, text)
            }
            None => (now_ms, "a request whose client has left".into()),
        });
        for deed in self.overdue.due(now_ms) {
            match deed {
                Deed::Tell(held) => {
                    self.reporter.one(format!("Slow request: {}", held.shown(now_ms)), held.work);
                }
                Deed::Expire(held) => self.expire(&held),
                Deed::Retire(held) => {
                    warn!("{} has not come back: this worker is replaced", held.shown(now_ms));
                    if let Some(notices) = &self.notices {
                        notices.spent();
                    }
                }
                Deed::Stuck => {
                    let what =
                        self.all_in_hand("timeout is over, and the only thread of this worker is stuck");
                    self.stuck = Some((self.reporter.all(what), now_ms + REPORT_PATIENCE_MS));
                }
            }
        }
        self.say_stuck();
        if let Some(deadline) = self.draining
            && !self.told_last
        {
            let last_ms = deadline.saturating_sub(self.rules.last_words_ms());
            if now_ms < last_ms {
                self.overdue.look_by(last_ms);
            } else {
                self.told_last = true;
                if !self.works.is_empty() {
                    let what = self.all_in_hand("graceful_timeout is nearly over");
                    self.reporter.all(what);
                }
            }
        }
        if let Some(notices) = &self.notices {
            notices.publish(&mut self.overdue, now_ms);
        }
    }

    /// The time of a request is over that a runner has: its client is answered, or its answer is cut visibly.
    fn expire(&mut self, held: &Held) {
        let mut what = format!("Request timed out: {}", held.shown(self.now_ms));
        // Not the connection's next request, if the runner came back right now.
        if self.pool.still_has(&held.work)
            && let Some(conn) = self.conns.get(held.work.token)
            && matches!(conn.phase, Phase::InHand(_))
            && conn.begun_ms == held.begun_ms
        {
            let is_head = conn.head.trim_ascii_start().starts_with(b"HEAD ");
            // No Retry-After: the application has the request, and to ask again would be to do it twice.
            let page = refusal(503, "The application did not answer in time.", is_head);
            if conn.link.expire(&page) {
                what.push_str("; its client got 503");
                self.pool.expired(&Expired {
                    peer: conn.link.peer(),
                    head: &conn.head,
                    status: 503,
                    body_bytes: body_bytes(&page),
                    duration: Duration::from_millis(self.now_ms.saturating_sub(held.begun_ms)),
                });
                conn.phase = Phase::InHand(None);
                conn.broken = true;
                conn.input = Vec::new();
                self.look(held.work.token);
            } else if conn.link.standing() == Standing::Busy && conn.link.socket().has_sent_all() {
                what.push_str("; its answer had left");
                self.linger(held.work.token);
            } else if conn.link.standing() == Standing::Busy {
                what.push_str("; its answer had begun, and the connection was reset");
                conn.link.socket().abort();
                self.close(held.work.token);
            }
        }
        self.pool.excuse(&held.work);
        self.reporter.one(what, held.work);
    }

    // ---- overload ------------------------------------------------------------------------------

    /// Whether no further request may wait for a runner (`queue_max`).
    pub(super) fn is_full(&mut self) -> bool {
        let queue_max = self.rules.queue_max;
        // What waited at the end of the last turn may have been taken since: asked again before anybody is refused.
        self.waiting + self.batch.len() >= queue_max && self.batch.len() >= self.pool.room(queue_max)
    }

    /// Answers a request that never reaches the application, because there are too many.
    pub(super) fn turn_away(&mut self, mut exchange: Box<Exchange>, why: &str) {
        let (count, told) = &mut self.turned_away;
        *count += 1;
        if told.is_none_or(|at_ms| self.now_ms - at_ms >= OVERLOAD_WARN_MS) {
            warn!("the queue for threads {why}: 503 for {count} request(s) since the last such line");
            self.turned_away = (0, Some(self.now_ms));
        }
        exchange.reply.fail_for(
            503,
            "The server has more requests than it can answer.",
            Some(self.rules.retry_after_s),
        );
        if let Some(meter) = self.meter.as_ref().filter(|_| self.counting) {
            meter.refused[status_index(503)].add(1);
        }
        // If a runner has to tell of it, it waits with the others.
        exchange.request.queued_ms = self.now_ms;
        self.batch.extend(self.pool.refused(exchange));
    }

    /// Turns away what has waited for too long. In front of the queue is the oldest, so this looks at one request.
    pub(super) fn turn_away_late(&mut self) {
        let mut late = std::mem::take(&mut self.late);
        self.pool.take_waiting_since(self.now_ms.saturating_sub(self.rules.queue_ms), &mut late);
        self.waiting = self.waiting.saturating_sub(late.len());
        for exchange in late.drain(..).filter(|exchange| !exchange.reply.is_finished()) {
            self.turn_away(exchange, "is too slow (queue_timeout, request_timeout)");
        }
        self.late = late;
    }

    /// Drops requests that wait for a runner while their clients have gone, and tells of them.
    pub(super) fn forget_lost(&mut self) {
        let mut dropped: Vec<_> =
            self.batch.extract_if(.., |exchange| is_lost(exchange, &self.lost)).collect();
        if self.waiting > 0 {
            let withdrawn = self.pool.withdraw(&self.lost);
            self.waiting = self.waiting.saturating_sub(withdrawn.len());
            dropped.extend(withdrawn);
        }
        self.lost.clear();
        if !dropped.is_empty() {
            debug!("requests dropped, because their clients have gone: {}", dropped.len());
        }
        let status = self.status_of_lost();
        for mut exchange in dropped.into_iter().filter(|_| self.timed) {
            exchange.reply.note_refusal(status, 0);
            self.batch.extend(self.pool.refused(exchange));
        }
    }

    /// Tells the master that the only runner is stuck, once the log has it.
    fn say_stuck(&mut self) {
        let Some((done, until_ms)) = &self.stuck else { return };
        if self.overdue.held().is_empty() {
            // It came back at the last moment.
            self.stuck = None;
        } else if done.load(Ordering::Acquire) || self.now_ms >= *until_ms {
            if let Some(notices) = &self.notices {
                notices.stuck();
            }
            self.stuck = None;
        } else {
            self.overdue.look_by(self.now_ms + SOON_MS);
        }
    }

    fn all_in_hand(&self, why: &str) -> String {
        let mut what = format!("{why}; requests in hand: {}", self.overdue.held().len());
        for held in self.overdue.held() {
            what.push_str("\n  ");
            what.push_str(&held.shown(self.now_ms));
        }
        what
    }
}
