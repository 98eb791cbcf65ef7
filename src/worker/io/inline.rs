//! A native service on the I/O thread.
//!
//! The quick path never leaves [`Io::serve_inline`]: requests that lie whole in what was received are parsed where
//! they lie, answered into one buffer, and sent with one send(2); the connection stays between requests, and its
//! link, which threads share, is not touched. All that is out of the ordinary goes the way that runners' requests
//! go: a body that is still to come is gathered or streamed, and a deferred answer, or a rest that the socket
//! has no room for, is an answer in hand.

use std::io::{self, IoSlice};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tracing::error;

use super::Io;
use crate::app::native::{Answer, Draft, Recorder, Request, Response, Service, Tasks};
use crate::app::{Body, BodyStream, Date, Exchange, Link, Outcome};
use crate::http::{BodyDecoder, End, Framing, Head, Refusal, error_page};
use crate::limits::INLINE_OUT_BYTES;
use crate::observe::statsd;
use crate::ring::{Driver, Event, Token};
use crate::sync::lock;
use crate::sys::clock;
use crate::sys::metrics::{method_index, status_index};
use crate::sys::shared::Meter;
use crate::worker::access::{self, AccessLog};
use crate::worker::conn::{Conn, Phase};

/// What runs beside the ring on the same thread, and must get its turn: an async runtime.
pub(crate) trait Beside {
    /// Whether it has anything to run or to wait for.
    fn is_busy(&self) -> bool;

    /// Lets it run, and wait, until something came for the ring or `timeout` is over.
    ///
    /// # Errors
    /// Its own means of waiting failed.
    fn park(&mut self, timeout: Duration) -> io::Result<()>;
}

/// A native service, and what it works with.
pub(in crate::worker) struct Inline {
    service: Box<dyn Service>,
    tasks: Rc<Tasks>,
    beside: Option<Box<dyn Beside>>,
    access: Option<Arc<AccessLog>>,
    /// Told of deferred answers when they are finished.
    recorder: Option<Recorder>,
    /// Somebody always wants to know how long requests take.
    always_timed: bool,
    /// Somebody does now.
    timed: bool,
    /// Where to count while somebody looks. Responders on other threads count there, too, and what is behind
    /// it is made for one writer.
    meter: Option<Arc<Mutex<Meter>>>,
    /// Somebody looks.
    counting: Arc<AtomicBool>,
    head: Head,
    draft: Draft,
    /// Answers to the requests of one receive.
    out: Vec<u8>,
    /// Refreshed once for the requests of one receive.
    date: Date,
    /// More than fits one turn waits to be done.
    hurried: bool,
}

/// Why the answering of one receive's requests ended.
enum Next {
    /// All bytes are used.
    Done,
    /// A head is not complete.
    Incomplete,
    /// Enough is written for one send, or the bytes of the next head are to be forgiven something first.
    Full,
    /// A head is complete, of so many bytes, and its body is not.
    Body(usize),
    /// A request that is not served.
    Refused(Refusal),
    /// The last answer ends the connection.
    Close,
    /// A responder has the last request; earlier answers wait for room, if true.
    Deferred(bool),
}

impl Inline {
    pub(in crate::worker) fn new(
        service: Box<dyn Service>,
        tasks: Rc<Tasks>,
        beside: Option<Box<dyn Beside>>,
        access: Option<Arc<AccessLog>>,
        meter: Option<Meter>,
    ) -> Self {
        let always_timed = access.is_some() || statsd::metrics().is_some();
        let meter = meter.map(|meter| Arc::new(Mutex::new(meter)));
        let counting = Arc::new(AtomicBool::new(false));
        let recorder: Option<Recorder> = (always_timed || meter.is_some()).then(|| {
            let told = access::Recorder::new(access.clone(), false);
            let (meter, counting) = (meter.clone(), Arc::clone(&counting));
            Arc::new(move |exchange: &Exchange| {
                let now_ns = clock::monotonic_ns();
                told.record(exchange, now_ns);
                if let Some(meter) = meter.as_ref().filter(|_| counting.load(Ordering::Relaxed)) {
                    let (request, reply) = (&exchange.request, &exchange.reply);
                    let meter = lock(meter);
                    meter.runner_sent_bytes.add(reply.sent_bytes());
                    count(
                        &meter,
                        request.method(),
                        reply.status_code(),
                        now_ns.saturating_sub(request.received_ns),
                    );
                }
            }) as Recorder
        });
        Self {
            service,
            tasks,
            beside,
            access,
            recorder,
            always_timed,
            timed: always_timed,
            meter,
            counting,
            head: Head::default(),
            draft: Draft::default(),
            out: Vec::new(),
            date: Date::default(),
            hurried: false,
        }
    }

    /// From now on counts, or no longer.
    pub(super) fn count(&mut self, on: bool) {
        self.counting.store(on, Ordering::Relaxed);
        self.timed = on || self.always_timed;
    }

    /// Waits for events, as [`Driver::turn`], and lets what runs beside the ring have its turn.
    pub(super) fn wait(
        &mut self,
        driver: &mut dyn Driver,
        now_ms: u64,
        timeout: Duration,
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        let mut timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        timeout_ms = if self.hurried { 0 } else { self.tasks.before_wait(now_ms, timeout_ms) };
        if let Some(beside) = self.beside.as_mut().filter(|beside| beside.is_busy()) {
            // What is asked for is submitted, and what came is taken, before anybody sleeps: the runtime hears
            // only of what comes from then on.
            driver.turn(Some(Duration::ZERO), events)?;
            beside.park(Duration::from_millis(if events.is_empty() { timeout_ms } else { 0 }))?;
            timeout_ms = 0;
        }
        driver.turn(Some(Duration::from_millis(timeout_ms)), events)?;
        self.tasks.after_wait();
        Ok(())
    }

    /// Polls the tasks that were woken.
    pub(super) fn run_tasks(&mut self, now_ms: u64) {
        self.hurried = self.tasks.run(now_ms);
    }

    /// Calls the service for one request. A drafted answer is in `out` afterwards; returned is what becomes of the
    /// connection, or that a responder has the request.
    fn call(&mut self, bytes: &[u8], body: &[u8], link: &Arc<Link>, stream: Option<BodyStream>) -> Called {
        let received_ns = if self.timed { clock::monotonic_ns() } else { 0 };
        let request = Request { bytes, head: &self.head, body, streamed: stream.is_some(), link };
        self.draft.begin(&request);
        let mut response = Response {
            draft: &mut self.draft,
            request,
            out: &mut self.out,
            stream,
            recorder: if self.timed { self.recorder.as_ref() } else { None },
            received_ns,
            answer: Answer::Drafted,
        };
        let service = &mut self.service;
        let called = catch_unwind(AssertUnwindSafe(|| {
            service.call(&request, &mut response);
            response.settle();
        }));
        if let Answer::Deferred(waits) = response.answer {
            return Called::Deferred(waits);
        }
        let mut failed = called.is_err();
        if failed {
            error!("the service panicked; the client gets status 500");
        }
        let draft = &mut self.draft;
        if let Some(error) = draft.failed.take() {
            error!("a response cannot be sent: {error}; the client gets status 500");
            failed = true;
        }
        let ended = if failed {
            // Nothing of this answer has been written yet.
            let _ = draft.encoder.set_code(500);
            error_page(500, "", request.head.is_head, None, self.date.text(), &mut self.out);
            Called::Close
        } else {
            if request.streamed && link.withdraw_continue() {
                // As `Reply::send_head`.
                draft.encoder.force_close();
            }
            write_answer(draft, request.head.is_head, self.date.text(), &mut self.out)
        };
        if self.timed {
            if let Some(access) = &self.access {
                access.record_inline(&request, &draft.encoder, received_ns);
            }
            let status = draft.encoder.status_code();
            tell_statsd(status, received_ns);
            if let Some(meter) = self.meter.as_ref().filter(|_| self.counting.load(Ordering::Relaxed)) {
                let taken_ns = clock::monotonic_ns().saturating_sub(received_ns);
                count(&lock(meter), request.method_bytes(), status, taken_ns);
            }
        }
        draft.trim();
        ended
    }

    /// Sends what was answered, straight from the buffer. Returns whether a rest waits in the link.
    fn flush(&mut self, conn: &Conn) -> bool {
        if self.out.is_empty() {
            return false;
        }
        let sent = if conn.writing {
            // An interim answer is still on its way: behind it.
            0
        } else {
            match conn.link.socket().send(&[IoSlice::new(&self.out)]) {
                Ok(sent) => sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                // The client is gone, which the receive side reports.
                Err(_) => {
                    self.out.clear();
                    return false;
                }
            }
        };
        if let Some(meter) = self.meter.as_ref().filter(|_| self.counting.load(Ordering::Relaxed)) {
            lock(meter).runner_sent_bytes.add(sent as u64);
        }
        let rest = sent < self.out.len() && conn.link.say(&self.out[sent..]);
        self.out.clear();
        if self.out.capacity() > 4 * INLINE_OUT_BYTES {
            self.out.shrink_to(INLINE_OUT_BYTES);
        }
        rest
    }
}

/// What came of one call.
#[derive(Clone, Copy)]
enum Called {
    Keep,
    Close,
    Deferred(bool),
}

/// Writes a drafted answer to `out`.
fn write_answer(draft: &mut Draft, is_head: bool, date: &[u8; 29], out: &mut Vec<u8>) -> Called {
    let encoder = &mut draft.encoder;
    let length = draft.content.len();
    if is_head && length > 0 && encoder.content_length().is_none() {
        // The service answered as to GET: the length is that of the body left out (RFC 9110 section 9.3.2).
        let _ = encoder.header(b"content-length", itoa::Buffer::new().format(length).as_bytes());
    }
    // Refused only without a status or twice; `Draft::begin` has set one.
    let _ = encoder.begin(out, date, Some(length as u64));
    let piece = encoder.piece(length, out);
    out.extend_from_slice(&draft.content[..piece.send]);
    out.extend_from_slice(piece.after);
    match encoder.finish(out) {
        End::Keep => Called::Keep,
        // A body that is shorter than the service announced is seen by the close.
        End::Close | End::Cut => Called::Close,
    }
}

/// Counts an answer that took so many nanoseconds. No request waits for a runner here.
fn count(meter: &Meter, method: &[u8], status: u16, taken_ns: u64) {
    meter.application.record(taken_ns);
    meter.total.record(taken_ns);
    // Last: whoever finds the request counted finds its times, too.
    meter.requests[method_index(method)][status_index(status)].add(1);
}

fn tell_statsd(status: u16, received_ns: u64) {
    if let Some(statsd) = statsd::metrics() {
        statsd.request(status, Duration::from_nanos(clock::monotonic_ns().saturating_sub(received_ns)));
    }
}

impl Io {
    /// From now on requests are answered here, by a service.
    pub(in crate::worker) fn serve_with(&mut self, inline: Inline) {
        self.inline = Some(Box::new(inline));
    }

    /// Answers the requests at the beginning of `data`, a connection's bytes between two requests. Returns how
    /// many bytes were used, and whether the connection's phase is to be looked at for the others.
    pub(super) fn serve_inline(&mut self, token: Token, data: &[u8]) -> (usize, bool) {
        let Self { inline: Some(inline), conns, rules, begun, status, .. } = self else { return (0, false) };
        let Some(conn) = conns.get(token) else { return (data.len(), false) };
        inline.date.refresh();
        let mut used = 0;
        let mut answered = false;
        let next = loop {
            let rest = &data[used..];
            if rest.is_empty() {
                break Next::Done;
            }
            let length = match inline.head.parse(rest, &mut conn.scanned, &rules.policy, conn.trusted) {
                Ok(Some(length)) => length,
                Ok(None) => break Next::Incomplete,
                Err(refused) => break Next::Refused(refused),
            };
            if status.as_ref().is_some_and(|status| status.concerns(inline.head.path.of(rest), conn.observer))
            {
                // Answered by the server, once it has the head to itself.
                break Next::Body(length);
            }
            let body = match inline.head.framing {
                Framing::None => &[][..],
                Framing::Length(count) if count <= (rest.len() - length) as u64 => {
                    // It fits: the rest is in memory.
                    #[expect(clippy::cast_possible_truncation, reason = "not more than a slice's length")]
                    &rest[length..length + count as usize]
                }
                _ => break Next::Body(length),
            };
            used += length + body.len();
            conn.in_head = false;
            answered = true;
            *begun += 1;
            inline.head.keep_alive &= rules.keep_alive;
            match inline.call(&rest[..length], body, &conn.link, None) {
                Called::Keep if inline.out.len() < INLINE_OUT_BYTES && !rules.policy.is_relaxed() => {}
                Called::Keep => break Next::Full,
                Called::Close => break Next::Close,
                Called::Deferred(waits) => break Next::Deferred(waits),
            }
        };
        if inline.flush(conn) {
            // As a runner's answer of which a rest waits: the next request is read when it is sent.
            let outcome = if matches!(next, Next::Close) { Outcome::Close } else { Outcome::Keep };
            conn.link.conclude(outcome);
            conn.phase = Phase::InHand(None);
            self.set_deadline(token, self.rules.keepalive_ms);
            self.look(token);
            // It may be sent already, and then the bytes behind it are to be looked at.
            return if outcome == Outcome::Close { (data.len(), false) } else { (used, true) };
        }
        match next {
            Next::Done => {
                self.set_idle_deadline(token);
                (used, false)
            }
            Next::Full => (used, true),
            Next::Incomplete => {
                if answered {
                    self.set_idle_deadline(token);
                }
                self.on_head_begins(token, &data[used..]);
                (used, false)
            }
            Next::Body(length) => {
                let mut exchange = self.blank.take().unwrap_or_default();
                std::mem::swap(&mut exchange.request.head, &mut inline.head);
                exchange.request.bytes.extend_from_slice(&data[used..used + length]);
                conn.in_head = false;
                used += length;
                self.on_head(token, exchange, data.len() > used);
                (used, true)
            }
            Next::Refused(refused) => {
                let mut exchange = self.blank.take().unwrap_or_default();
                std::mem::swap(&mut exchange.request.head, &mut inline.head);
                self.refuse_head(token, &refused, exchange, &data[used..]);
                (data.len(), false)
            }
            Next::Close => {
                self.linger(token);
                (data.len(), false)
            }
            Next::Deferred(waits) => {
                debug_assert!(answered, "what is deferred was called");
                conn.phase = Phase::InHand(None);
                self.set_deadline(token, self.rules.keepalive_ms);
                if waits {
                    self.write(token);
                }
                // Its answer may be given already, and then the bytes behind it are to be looked at.
                (used, true)
            }
        }
    }

    /// Answers a request whose body was read first, or arrives while it is being answered.
    pub(super) fn serve_gathered(
        &mut self,
        token: Token,
        mut exchange: Box<Exchange>,
        stream: Option<BodyDecoder>,
    ) {
        let Self { inline: Some(inline), conns, rules, begun, .. } = self else { return };
        let Some(conn) = conns.get(token) else { return };
        let link = Arc::clone(&conn.link);
        let (body, reader) = match std::mem::take(&mut exchange.request.body) {
            Body::Empty => (Vec::new(), None),
            Body::Whole(bytes) => (bytes, None),
            Body::Stream(stream) => (Vec::new(), Some(stream)),
        };
        let streamed = stream.is_some();
        if streamed {
            // A body of which more comes needs what runners have: a link in hand, whose end does not pass
            // unnoticed. `Response::defer` does the same for the others.
            link.hand_over();
            let _ = link.want_attention();
        }
        *begun += 1;
        exchange.request.head.keep_alive &= rules.keep_alive;
        conn.streamed = streamed;
        conn.phase = Phase::InHand(stream.map(Box::new));
        std::mem::swap(&mut exchange.request.head, &mut inline.head);
        inline.date.refresh();
        let called = inline.call(&exchange.request.bytes, &body, &link, reader);
        std::mem::swap(&mut exchange.request.head, &mut inline.head);
        exchange.clear();
        self.blank = Some(exchange);
        let outcome = match called {
            Called::Keep => Outcome::Keep,
            Called::Close => Outcome::Close,
            Called::Deferred(waits) => {
                let next_ms = if streamed { self.rules.body_ms } else { self.rules.keepalive_ms };
                self.set_deadline(token, next_ms);
                if waits {
                    self.write(token);
                }
                return;
            }
        };
        let Self { inline: Some(inline), conns, .. } = self else { return };
        let Some(conn) = conns.get(token) else { return };
        let rest = inline.flush(conn);
        if streamed {
            // Reported, and looked at in the next turn: the rest of the body is to be dealt with.
            link.finish(outcome, rest);
            self.set_deadline(token, self.rules.keepalive_ms);
        } else if rest || outcome != Outcome::Keep {
            link.conclude(outcome);
            self.set_deadline(token, self.rules.keepalive_ms);
            self.look(token);
        } else {
            conn.phase = Phase::Head;
            self.set_idle_deadline(token);
        }
    }
}
