//! The answer to one request, from the application's status line to the last byte in the socket.
//!
//! Used on a runner thread. Head and first piece leave in one `send(2)`; only what the socket has no
//! room for is left to the I/O thread.

use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::Link;
use super::link::{Held, Outcome, Rest};
use crate::http::{Encoder, End, Head, ResponseError, Version, error_page, imf_fixdate};
use crate::limits::{
    COALESCE_BYTES_MAX, EXCHANGE_KEEP_BYTES, HOLD_US, LAST_ANSWER_BYTES_MAX, REST_COPY_BYTES_MAX,
};
use crate::sys::clock;

/// The client is gone: nothing more can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the client closed the connection")
    }
}

impl std::error::Error for Gone {}

/// Why an application's answer cannot be sent as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyError {
    /// The head was sent already.
    HeadSent,
    /// What the application gave does not belong in a response.
    Invalid(ResponseError),
}

impl fmt::Display for ReplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HeadSent => f.write_str("the response head has been sent already"),
            Self::Invalid(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ReplyError {}

/// What came of sending a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The socket, or the connection's bound, had room.
    Room,
    /// The client reads slower than the application writes: call [`Reply::wait`], without the
    /// interpreter, before the next piece.
    Full,
}

/// An answer in the making.
#[derive(Default)]
pub struct Reply {
    encoder: Encoder,
    out: Vec<u8>,
    link: Option<Arc<Link>>,
    date: Date,
    is_head: bool,
    started: bool,
    /// Rests were queued: later bytes must queue behind them.
    behind: bool,
    gone: bool,
    /// The application was told so, though its answer was complete before: nothing of that is missing.
    unheard: bool,
    end: Option<End>,
    finished: bool,
    /// Status and body bytes of the error page that took the application's place.
    failed: Option<(u16, u64)>,
    /// The answer is ours: the I/O thread will not answer in our place.
    claimed: bool,
    /// The I/O thread has answered, because the request's time was over.
    expired: bool,
    /// The client has said that it sends nothing more.
    client_ends: bool,
    /// Bytes that the socket took on the runner's thread.
    sent_bytes: u64,
    /// Pieces that come quickly one behind the other may leave together.
    holds: bool,
    /// When the last part of an answer left whose pieces may be kept back (monotonic nanoseconds); 0 before the first.
    left_ns: u64,
    /// More than one has left.
    goes_on: bool,
    /// A field that the answer has unless the application sets it: its name and value; empty for none.
    echo: (Vec<u8>, Vec<u8>),
}

impl Reply {
    pub(super) fn begin(&mut self, link: Arc<Link>, version: Version, is_head: bool, keep_alive: bool) {
        self.encoder.reset(version, is_head, keep_alive && !link.is_draining());
        self.claimed = !link.expires();
        self.expired = false;
        self.client_ends = false;
        self.link = Some(link);
        self.is_head = is_head;
        self.started = false;
        self.behind = false;
        self.gone = false;
        self.unheard = false;
        self.end = None;
        self.finished = false;
        self.failed = None;
        self.sent_bytes = 0;
        self.holds = false;
        self.left_ns = 0;
        self.goes_on = false;
        self.echo.0.clear();
        self.echo.1.clear();
        self.out.clear();
    }

    /// Lets the answer have this field, unless the application sets one of the name. For a request just begun.
    pub(crate) fn echo(&mut self, name: &[u8], value: &[u8]) {
        let echo = &mut self.echo;
        echo.0.clear();
        echo.1.clear();
        echo.0.extend_from_slice(name);
        echo.1.extend_from_slice(value);
    }

    /// Lets pieces that come quickly one behind the other leave together. For a request just begun.
    pub fn hold_pieces(&mut self) {
        self.holds = true;
    }

    /// The client has announced that this request, the first of its connection, is its last, and has sent all of it. For
    /// a request just begun.
    ///
    /// Then no byte is awaited after the last one of a small answer, and both directions end with it. Otherwise the
    /// client's end of the stream would wake the I/O thread once more, which is a tenth of what a connection with one
    /// request costs. A byte that comes all the same is met by a reset, which destroys what the client has not received
    /// (RFC 9112 section 9.6): only what its window holds is safe then.
    pub(crate) fn client_ends(&mut self) {
        self.client_ends = true;
    }

    pub(super) fn clear(&mut self) {
        self.link = None;
        self.out.clear();
        self.out.shrink_to(EXCHANGE_KEEP_BYTES);
    }

    #[expect(clippy::expect_used, reason = "a reply in hand has its link: `begin` sets it")]
    pub(super) fn link(&self) -> &Arc<Link> {
        self.link.as_ref().expect("a reply in hand has a link")
    }

    /// Sets the status line and forgets headers given before (PEP 3333, `exc_info`).
    ///
    /// # Errors
    /// When the head was sent, or `status` is not three digits and a reason.
    pub fn start(&mut self, status: &[u8]) -> Result<(), ReplyError> {
        if self.encoder.head_sent() {
            return Err(ReplyError::HeadSent);
        }
        self.encoder.start(status).map_err(ReplyError::Invalid)?;
        self.started = true;
        Ok(())
    }

    /// Sets the status by its number; headers given before stay.
    ///
    /// # Errors
    /// When the head was sent, or there is no such final status.
    pub fn set_code(&mut self, code: u16) -> Result<(), ReplyError> {
        self.encoder.set_code(code).map_err(ReplyError::Invalid)?;
        self.started = true;
        Ok(())
    }

    /// Takes over a head that was begun elsewhere, for the same request.
    pub(super) fn adopt(&mut self, encoder: &mut Encoder) {
        std::mem::swap(&mut self.encoder, encoder);
        self.started = true;
    }

    /// Adds a header.
    ///
    /// # Errors
    /// When it does not belong in a response (not a token, control characters, a bad Content-Length).
    pub fn header(&mut self, name: &[u8], value: &[u8]) -> Result<(), ReplyError> {
        self.encoder.header(name, value).map_err(|error| {
            // An application that swallows the error must not have its answer sent without what it asked for.
            self.started = false;
            ReplyError::Invalid(error)
        })
    }

    /// Lets the connection end after this answer.
    pub fn force_close(&mut self) {
        self.encoder.force_close();
    }

    /// Takes a [`Reply::start`] back whose headers cannot be sent: without another, the answer is 500.
    pub fn unstart(&mut self) {
        self.started = false;
    }

    /// Whether [`Reply::start`] was called.
    #[must_use]
    pub fn is_started(&self) -> bool {
        self.started
    }

    /// Whether the head has been written: nothing of it can change any more.
    #[must_use]
    pub fn head_sent(&self) -> bool {
        self.encoder.head_sent()
    }

    /// Whether the I/O thread has answered in the application's place (`request_timeout`).
    #[must_use]
    pub fn is_expired(&self) -> bool {
        self.expired
    }

    /// Makes the answer ours before its first byte, where requests expire. Otherwise a look at one field.
    fn claim(&mut self) -> Result<(), Gone> {
        if !self.claimed {
            self.claimed = true;
            if !self.link().claim() {
                // The application sees what it sees when its client leaves.
                self.expired = true;
                self.gone = true;
                self.failed = Some((503, 0));
                self.out.clear();
            }
        }
        if self.gone { Err(Gone) } else { Ok(()) }
    }

    /// Whether the reply was ended, by [`Reply::finish`] or [`Reply::fail`].
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// The status code that the client got, or is to get.
    #[must_use]
    pub fn status_code(&self) -> u16 {
        self.failed.map_or_else(|| self.encoder.status_code(), |(status, _)| status)
    }

    /// Bytes of the body that were let through to the client.
    #[must_use]
    pub fn body_bytes(&self) -> u64 {
        self.failed.map_or_else(|| self.encoder.body_bytes(), |(_, bytes)| bytes)
    }

    /// Bytes, the head's included, that left at once; the I/O thread sends what the socket had no room for.
    #[must_use]
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// The framing: status code, body bytes, length.
    #[must_use]
    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    /// Whether [`Reply::interim`] has somebody to send to: the head has not left, and the client understands it.
    #[must_use]
    pub fn takes_interim(&self) -> bool {
        self.link.is_some() && self.encoder.takes_interim()
    }

    /// Sends an interim response at once, ahead of the head; see [`Reply::takes_interim`].
    pub fn interim(&mut self, bytes: &[u8]) -> Sent {
        let Some(link) = self.link.as_ref().filter(|_| self.encoder.takes_interim()) else {
            return Sent::Room;
        };
        link.interim(bytes);
        if link.is_full(false) { Sent::Full } else { Sent::Room }
    }

    /// Writes the head, if it is not written. `total` is the length of the whole body, when known.
    pub fn send_head(&mut self, total: Option<u64>) {
        if !self.encoder.head_sent() {
            // Asked at the last moment: a worker that began to leave meanwhile says so.
            if self.link().is_draining() {
                self.encoder.force_close();
            }
            if self.link().withdraw_continue() {
                // The client may send the body all the same, or leave it out and send its next request: nobody could tell
                // one from the other (RFC 9110 section 10.1.1).
                self.encoder.force_close();
            }
            let (name, value) = &self.echo;
            if !name.is_empty() && self.encoder.field(&name.to_ascii_lowercase()).is_none() {
                // It was a field of the request, so it can be one of the answer.
                let _ = self.encoder.header(name, value);
            }
            // Refused only without a status, of which `finish` and the application's side take care.
            let _ = self.encoder.begin(&mut self.out, self.date.now(), total);
        }
    }

    /// Sends one piece of the body, behind the head if that is still to go.
    ///
    /// `total` is the length of the whole body, when the caller knows it before the head is sent.
    /// With `more`, small pieces are kept back to leave together with the next. `hold` is called when a
    /// large rest must wait for the socket: it gives what keeps `piece` in memory.
    ///
    /// # Errors
    /// [`Gone`] when the client left.
    pub fn send(
        &mut self,
        piece: &[u8],
        total: Option<u64>,
        more: bool,
        hold: impl FnOnce() -> Held,
    ) -> Result<Sent, Gone> {
        if self.gone {
            return Err(Gone);
        }
        self.send_head(total);
        let framed = self.encoder.piece(piece.len(), &mut self.out);
        let body = &piece[..framed.send];
        if body.len() <= COALESCE_BYTES_MAX {
            self.out.extend_from_slice(body);
            self.out.extend_from_slice(framed.after);
            // The last byte that Content-Length promised, or the caller's last piece.
            if more && self.out.len() <= COALESCE_BYTES_MAX {
                return Ok(Sent::Room);
            }
            return self.pass(&[], b"", || unreachable_hold());
        }
        self.pass(body, framed.after, hold)
    }

    /// Sends `out`, a piece and what comes after it; or keeps them back, if they come quickly behind others. The first
    /// piece leaves at once, and so does the last one that Content-Length has room for. The second, too, if the I/O thread
    /// would have to be woken for it: most answers of few pieces end with it.
    fn pass(&mut self, body: &[u8], after: &'static [u8], hold: impl FnOnce() -> Held) -> Result<Sent, Gone> {
        let done = self.encoder.is_body_done();
        if !self.holds || self.left_ns == 0 {
            let sent = self.transmit(body, after, hold);
            if self.holds && !done {
                self.left_ns = clock::monotonic_ns();
            }
            return sent;
        }
        let now_ns = clock::monotonic_ns();
        let due = done
            || now_ns.saturating_sub(self.left_ns) >= HOLD_US * 1_000
            || !(self.goes_on || self.link().is_watched());
        self.goes_on = true;
        if due {
            self.left_ns = now_ns;
            if !self.behind || !self.link().has_rest() {
                return self.transmit(body, after, hold);
            }
        }
        let piece = (!body.is_empty()).then(|| Rest::Held(hold(), 0, body.len()));
        self.hold(piece, after, due)
    }

    /// Keeps `out` and a piece back, or lets them go with all that was kept back.
    fn hold(&mut self, piece: Option<Rest>, after: &'static [u8], due: bool) -> Result<Sent, Gone> {
        let link = self.link.as_ref().ok_or(Gone)?;
        self.behind = true;
        let Some(sent) = link.hold(&mut self.out, piece, after, due) else {
            self.gone = true;
            return Err(Gone);
        };
        self.sent_bytes += sent as u64;
        // Of a lost connection nothing waits either, and its cut must not look like an end. It is asked last: what is lost
        // stays so.
        if due && self.is_last() && !link.has_rest() && !link.is_gone() {
            self.end_connection(link, false);
        }
        Ok(if link.is_full(self.encoder.is_complete()) { Sent::Full } else { Sent::Room })
    }

    /// Whether what is sent now is the last of its connection.
    fn is_last(&self) -> bool {
        match self.end {
            None => self.encoder.is_body_done() && !self.encoder.keep_alive(),
            Some(end) => end == End::Close,
        }
    }

    /// Ends the connection behind its last byte, which the socket has taken. Not later: the application may not be done
    /// for long, and until then the answer would count as cut. `small`: the client has all of it, or room for it.
    fn end_connection(&self, link: &Link, small: bool) {
        // It fails when the client is gone, which the receive side reports. Bytes that are here against what
        // the client announced are taken in first, or they would reset the connection.
        let _ = if small && self.client_ends && !link.has_more_waiting() {
            link.socket().shutdown_both()
        } else {
            link.socket().shutdown_write()
        };
    }

    /// Lets everything go that was kept back, before the answer ends.
    fn let_go(&mut self) {
        if self.left_ns != 0 && self.behind {
            let _ = self.hold(None, b"", true);
        } else if !self.out.is_empty() {
            // A client that left is the I/O thread's to deal with.
            let _ = self.transmit(&[], b"", || unreachable_hold());
        }
    }

    /// Sends one piece of the body that owns its memory; see [`Reply::send`].
    pub(super) fn send_owned(&mut self, held: Held, total: Option<u64>) -> Result<Sent, Gone> {
        if self.gone {
            return Err(Gone);
        }
        self.send_head(total);
        let bytes: &[u8] = (*held).as_ref();
        let framed = self.encoder.piece(bytes.len(), &mut self.out);
        match self.send_now(&bytes[..framed.send], framed.after)? {
            None => Ok(Sent::Room),
            Some(sent) => {
                self.queue_unsent(sent, framed.send, framed.after, |from| Rest::Held(held, from, framed.send))
            }
        }
    }

    /// Sends the head, if it is still to go, and whatever was kept back.
    pub(super) fn flush(&mut self) -> Result<Sent, Gone> {
        if self.gone {
            return Err(Gone);
        }
        self.send_head(None);
        if self.out.is_empty() { Ok(Sent::Room) } else { self.transmit(&[], b"", || unreachable_hold()) }
    }

    /// Hands the I/O thread `count` bytes of `file` from `offset` on, as the body.
    ///
    /// # Errors
    /// [`Gone`] when the client left.
    pub fn send_file(&mut self, file: OwnedFd, offset: u64, count: u64) -> Result<Sent, Gone> {
        if self.gone {
            return Err(Gone);
        }
        self.claim()?;
        self.send_head(Some(count));
        let length = usize::try_from(count).unwrap_or(usize::MAX);
        let framed = self.encoder.piece(length, &mut self.out);
        if self.out.is_empty() && framed.send == 0 && framed.after.is_empty() {
            // All that was announced has left, and the end of the connection perhaps with it: not even nothing can be sent.
            return Ok(Sent::Room);
        }
        let head = (!self.out.is_empty()).then(|| Rest::Copied(std::mem::take(&mut self.out), 0));
        let body = Rest::File(file, offset, framed.send as u64);
        let after = Rest::Copied(framed.after.to_vec(), 0);
        self.behind = true;
        let rests = [head, (framed.send > 0).then_some(body), (!framed.after.is_empty()).then_some(after)];
        if self.link().queue(rests.into_iter().flatten()) {
            Ok(Sent::Room)
        } else {
            self.gone = true;
            Err(Gone)
        }
    }

    /// Blocks until the client has read enough. Call it without the interpreter.
    pub fn wait(&self) {
        self.link().wait_for_room();
    }

    /// Ends the answer: sends what was kept back and the end of the body, and gives the connection back.
    pub fn finish(&mut self) {
        if self.finished {
            return;
        }
        if !self.started {
            self.fail(500, "");
            return;
        }
        if !self.gone {
            self.send_head(Some(0));
            let end = self.encoder.finish(&mut self.out);
            self.end = Some(end);
            self.let_go();
        }
        self.leave();
    }

    /// Ends the answer after a failure: with an error page when the head was not sent yet, else cut.
    pub fn fail(&mut self, status: u16, message: &str) {
        self.fail_for(status, message, None);
    }

    /// As [`Reply::fail`], and tells the client to come again after this many seconds.
    pub fn fail_for(&mut self, status: u16, message: &str, retry_after: Option<u64>) {
        if self.finished {
            return;
        }
        if self.unheard {
            // Requests behind this one may be owed their answers.
            return self.finish();
        }
        if self.encoder.head_sent() {
            // What was kept back is still the application's answer up to the failure.
            if !self.gone {
                self.let_go();
            }
            self.end = Some(End::Cut);
        } else {
            self.out.clear();
            self.link().withdraw_continue();
            error_page(status, message, self.is_head, retry_after, self.date.now(), &mut self.out);
            let (name, value) = &self.echo;
            if !name.is_empty()
                && let Some(line) = self.out.windows(2).position(|end| end == b"\r\n")
            {
                let field = [name, &b": "[..], value, b"\r\n"].concat();
                self.out.splice(line + 2..line + 2, field);
            }
            self.failed = Some((status, body_bytes(&self.out)));
            self.end = Some(End::Close);
            if !self.gone {
                let _ = self.transmit(&[], b"", || unreachable_hold());
            }
        }
        self.leave();
    }

    /// Notes the answer that was given in an application's place, with so many bytes of body. Nothing is sent.
    pub fn note_refusal(&mut self, status: u16, body_bytes: u64) {
        self.failed = Some((status, body_bytes));
        self.finished = true;
    }

    fn leave(&mut self) {
        self.finished = true;
        if self.expired {
            // The connection is the I/O thread's, and may be somebody else's by now.
            return;
        }
        let outcome = match self.end {
            _ if self.gone => Outcome::Reset,
            Some(End::Keep) => Outcome::Keep,
            Some(End::Close) => Outcome::Close,
            Some(End::Cut) if self.encoder.is_until_close() => Outcome::Reset,
            Some(End::Cut) | None => Outcome::Close,
        };
        let link = self.link();
        link.finish(outcome, self.behind && link.has_rest());
    }

    /// Sends `out`, `body` and `after` in this order; queues what the socket does not take.
    fn transmit(
        &mut self,
        body: &[u8],
        after: &'static [u8],
        hold: impl FnOnce() -> Held,
    ) -> Result<Sent, Gone> {
        match self.send_now(body, after)? {
            None => Ok(Sent::Room),
            Some(sent) => self.queue_unsent(sent, body.len(), after, |from| {
                if body.len() - from <= REST_COPY_BYTES_MAX {
                    Rest::Copied(body[from..].to_vec(), 0)
                } else {
                    Rest::Held(hold(), from, body.len())
                }
            }),
        }
    }

    /// Sends what the socket has room for. `None`: that was all; else how many bytes of the three it took.
    fn send_now(&mut self, body: &[u8], after: &[u8]) -> Result<Option<usize>, Gone> {
        self.claim()?;
        let link = self.link.as_ref().ok_or(Gone)?;
        self.behind |= link.take_said();
        if self.behind && !link.has_rest() {
            self.behind = false;
        }
        let total = self.out.len() + body.len() + after.len();
        if total == 0 {
            // What an application gives beyond its Content-Length is not sent; the socket may have been told the end. Nor
            // would sending tell of a client that has left, for which it may go on without end.
            self.unheard = self.encoder.is_body_done() && (link.socket().has_got_all() || link.is_gone());
            return if self.unheard { Err(Gone) } else { Ok(None) };
        }
        let mut sent = 0;
        // A whole answer that is one piece can wait for others. Of a longer one, the application may still be at work; and
        // one that ends its connection leaves with that end.
        let waits = self.sent_bytes == 0
            && body.is_empty()
            && self.encoder.keep_alive()
            && (self.end.is_some() || self.encoder.is_body_done())
            && link.gathers();
        if !self.behind && !waits {
            let parts = [IoSlice::new(&self.out), IoSlice::new(body), IoSlice::new(after)];
            let used = match (self.out.is_empty(), body.is_empty(), after.is_empty()) {
                (false, true, true) => &parts[..1],
                (true, false, true) => &parts[1..2],
                _ => &parts[..],
            };
            // The end of the connection travels with its last byte: one packet, and one wake-up of the client, less.
            let last = self.is_last();
            sent = loop {
                let taken = if last { link.socket().send_more(used) } else { link.socket().send(used) };
                match taken {
                    Ok(n) => break n,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break 0,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => {
                        self.gone = true;
                        self.out.clear();
                        return Err(Gone);
                    }
                }
            };
            self.sent_bytes += sent as u64;
            if sent == total {
                if last {
                    // Of a longer answer, earlier parts may still be on their way.
                    let small = self.sent_bytes == total as u64 && total <= LAST_ANSWER_BYTES_MAX;
                    self.end_connection(link, small);
                }
                self.out.clear();
                return Ok(None);
            }
        }
        Ok(Some(sent))
    }

    /// Leaves to the I/O thread what [`Reply::send_now`] did not get rid of. `rest` gives the body's part.
    fn queue_unsent(
        &mut self,
        sent: usize,
        body_len: usize,
        after: &'static [u8],
        rest: impl FnOnce(usize) -> Rest,
    ) -> Result<Sent, Gone> {
        let link = self.link.as_ref().ok_or(Gone)?;
        // Part by part.
        let from_out = sent.min(self.out.len());
        let from_body = sent.saturating_sub(self.out.len()).min(body_len);
        let from_after = sent.saturating_sub(self.out.len() + body_len);
        let first =
            (from_out < self.out.len()).then(|| Rest::Copied(std::mem::take(&mut self.out), from_out));
        let second = (from_body < body_len).then(|| rest(from_body));
        let third = (from_after < after.len()).then(|| Rest::Copied(after[from_after..].to_vec(), 0));
        self.out.clear();
        self.behind = true;
        if !link.queue([first, second, third].into_iter().flatten()) {
            self.gone = true;
            return Err(Gone);
        }
        Ok(if link.is_full(self.encoder.is_complete()) { Sent::Full } else { Sent::Room })
    }
}

/// Stands for the owner of a piece that is empty, and so is never asked for.
fn unreachable_hold() -> Held {
    Box::new([0_u8; 0])
}

/// Bytes of the body of an error page.
#[must_use]
pub fn body_bytes(page: &[u8]) -> u64 {
    let end = page.windows(4).position(|end| end == b"\r\n\r\n");
    end.map_or(0, |at| page.len() - at - 4) as u64
}

/// The complete answer to a request that was refused before any application saw it.
#[must_use]
pub fn refusal(status: u16, message: &str, is_head: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    error_page(status, message, is_head, None, Date::default().now(), &mut out);
    out
}

/// A whole answer of the server's own, to a request with this head; `keep_alive` when the connection may go on.
/// Returns whether it does.
#[must_use]
pub fn own_answer(
    head: &Head,
    keep_alive: bool,
    status: &[u8],
    content_type: &str,
    body: &[u8],
) -> (Vec<u8>, bool) {
    let mut encoder = Encoder::new();
    encoder.reset(head.version, head.is_head, keep_alive);
    let mut out = Vec::with_capacity(256 + body.len());
    // Ours are valid: none of these is refused.
    let _ = encoder.start(status);
    let _ = encoder.header(b"Content-Type", content_type.as_bytes());
    let _ = encoder.header(b"Cache-Control", b"no-store");
    // For HEAD, too, where the length is not needed to find the end.
    let _ = encoder.header(b"Content-Length", itoa::Buffer::new().format(body.len()).as_bytes());
    let _ = encoder.begin(&mut out, Date::default().now(), Some(body.len() as u64));
    let piece = encoder.piece(body.len(), &mut out);
    out.extend_from_slice(&body[..piece.send]);
    out.extend_from_slice(piece.after);
    let end = encoder.finish(&mut out);
    (out, end == End::Keep)
}

/// The Date of responses, formatted once a second.
pub(crate) struct Date {
    second: u64,
    text: [u8; 29],
}

impl Default for Date {
    fn default() -> Self {
        Self { second: 0, text: imf_fixdate(0) }
    }
}

impl Date {
    /// The date of this second.
    pub(crate) fn now(&mut self) -> &[u8; 29] {
        self.refresh();
        &self.text
    }

    /// Looks at the clock.
    pub(crate) fn refresh(&mut self) {
        let second = clock::unix_seconds();
        if second != self.second {
            *self = Self { second, text: imf_fixdate(second) };
        }
    }

    /// The date when it was last refreshed.
    pub(crate) const fn text(&self) -> &[u8; 29] {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::super::{Flushed, Listener, Peer, Port, Standing};
    use super::*;
    use crate::ring::{self, Token};

    /// Sent in two packets, the end of the connection cost a fifth of a request with a connection of its own. That it
    /// leaves with the last byte shows in its not waiting for `finish`.
    #[test]
    fn the_end_of_the_connection_leaves_with_the_last_byte() {
        let (driver, _) = ring::open(ring::Io::Epoll).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let socket = OwnedFd::from(listener.accept().unwrap().0).into();
        let port = Arc::new(Port::new(driver.waker()));
        let token = Token { slot: 0, generation: 0 };
        let listens = Arc::new(Listener::inet(listener.local_addr().unwrap()));
        let link = Arc::new(Link::new(socket, token, port, listens, Peer::Unix));
        let mut reply = Reply::default();
        reply.begin(link, Version::Http11, false, false);
        reply.start(b"200 OK").unwrap();
        reply.send(b"all of it", Some(9), false, || unreachable_hold()).unwrap();
        // Nothing of this is sent. It met the end that was, and the connection was reset.
        assert!(reply.send(b"and more", None, false, || unreachable_hold()).is_ok());
        let mut got = Vec::new();
        client.read_to_end(&mut got).unwrap();
        assert!(got.ends_with(b"\r\n\r\nall of it"), "{}", got.escape_ascii());
        reply.finish();
        assert!(reply.is_finished());
    }

    /// The empty rest behind it met the end that was sent, and the connection was reset, with answers on their way.
    #[test]
    fn a_file_behind_an_answer_that_has_left_whole_is_not_sent() {
        for is_head in [false, true] {
            let (driver, _) = ring::open(ring::Io::Epoll).unwrap();
            let (mut client, server) = UnixStream::pair().unwrap();
            let port = Arc::new(Port::new(driver.waker()));
            let listens = Arc::new(Listener::unix("/a".into()));
            let token = Token { slot: 0, generation: 0 };
            let link = Arc::new(Link::new(OwnedFd::from(server).into(), token, port, listens, Peer::Unix));
            let mut reply = Reply::default();
            link.hand_over();
            reply.begin(Arc::clone(&link), Version::Http11, is_head, false);
            reply.start(b"200 OK").unwrap();
            reply.header(b"Content-Length", b"5").unwrap();
            reply.send(b"whole", None, false, || unreachable_hold()).unwrap();
            let file = std::fs::File::open("/dev/null").unwrap();
            assert_eq!(reply.send_file(file.into(), 0, 100), Ok(Sent::Room));
            assert_eq!((link.has_rest(), link.flush()), (false, Flushed::All));
            reply.finish();
            assert_eq!(link.standing(), Standing::Finished(Outcome::Close));
            let mut got = Vec::new();
            client.read_to_end(&mut got).unwrap();
            let end: &[u8] = if is_head { b"\r\n\r\n" } else { b"\r\n\r\nwhole" };
            assert!(got.ends_with(end), "{}", got.escape_ascii());
        }
    }

    /// Each answer by itself woke the client's CPU, where many were to follow at once.
    #[test]
    fn a_whole_answer_waits_for_the_io_thread_while_that_rests() {
        let (mut driver, _) = ring::open(ring::Io::Epoll).unwrap();
        let port = Arc::new(Port::new(driver.waker()));
        let (mut client, server) = UnixStream::pair().unwrap();
        client.set_nonblocking(true).unwrap();
        let token = Token { slot: 0, generation: 0 };
        let listens = Arc::new(Listener::unix("/a".into()));
        let link =
            Arc::new(Link::new(OwnedFd::from(server).into(), token, Arc::clone(&port), listens, Peer::Unix));
        let (mut reply, mut got, mut reports) = (Reply::default(), Vec::new(), Vec::new());
        let answer = |reply: &mut Reply, total| {
            link.hand_over();
            reply.begin(Arc::clone(&link), Version::Http11, false, true);
            reply.start(b"200 OK").unwrap();
            reply.send(b"piece", total, false, || unreachable_hold()).unwrap();
        };
        port.rest(true);
        answer(&mut reply, Some(5));
        reply.finish();
        assert_eq!(client.read_to_end(&mut got).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(got.is_empty(), "{}", got.escape_ascii());
        assert!(port.rise(), "nobody was woken");
        port.collect(&mut reports);
        assert!(reports.contains(&token));
        assert_eq!(link.flush(), Flushed::All);
        let _ = client.read_to_end(&mut got);
        assert!(got.ends_with(b"\r\n\r\npiece"), "{}", got.escape_ascii());
        link.reopen();
        // An application may be at work on the rest of this one for long.
        port.rest(true);
        answer(&mut reply, None);
        let _ = client.read_to_end(&mut got);
        assert!(got.ends_with(b"5\r\npiece\r\n"), "{}", got.escape_ascii());
        reply.finish();
        let _ = port.rise();
        // Its end leaves with it.
        port.rest(true);
        link.reopen();
        link.hand_over();
        reply.begin(Arc::clone(&link), Version::Http11, false, false);
        reply.start(b"200 OK").unwrap();
        got.clear();
        reply.send(b"last", Some(4), false, || unreachable_hold()).unwrap();
        client.read_to_end(&mut got).unwrap();
        assert!(got.ends_with(b"\r\n\r\nlast"), "{}", got.escape_ascii());
        reply.finish();
        let _ = port.rise();
        // From here on somebody has to be told.
        reports.clear();
        link.reopen();
        link.hand_over();
        assert_eq!(link.want_attention(), Standing::Busy);
        link.finish(Outcome::Keep, false);
        let mut events = Vec::new();
        driver.turn(Some(Duration::from_secs(60)), &mut events).unwrap();
        assert!(matches!(events[..], [ring::Event::Woken]), "{events:?}");
    }
}
