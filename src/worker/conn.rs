//! What the I/O thread keeps of one connection.

use std::sync::Arc;

use super::overdue::RequestLine;
use crate::app::{Exchange, Link, Standing};
use crate::http::BodyDecoder;

/// Whether no more than the beginning of an empty line has come, which a client may send behind a request (RFC 9112
/// section 2.2).
pub(super) fn is_blank(input: &[u8]) -> bool {
    matches!(input, b"\r" | b"\r\n")
}

/// Where a connection stands between one request and the next.
pub(super) enum Phase {
    /// Between requests, or inside a head. An end of stream without a byte of a head is a clean close.
    Head,
    /// The head is complete; the body is read before a runner is taken.
    Body(Box<Gathering>),
    /// A runner has the request, or it waits for one. With a decoder, its body still arrives.
    InHand(Option<Box<BodyDecoder>>),
    /// The request goes to a sibling, of this slot, that has a runner for it: nobody has begun it here. The
    /// driver is giving the connection up.
    Moving(Box<Exchange>, usize),
    /// The answer is complete, the request's body is not: its rest is read and dropped.
    Drain(Box<BodyDecoder>, u64),
    /// We have sent our last byte. What still comes is dropped until the client closes too: closing
    /// earlier would send a reset that may destroy the answer on its way (RFC 9112 section 9.6).
    Linger(u64),
}

/// A request whose body is being read.
pub(super) struct Gathering {
    pub(super) exchange: Box<Exchange>,
    pub(super) decoder: BodyDecoder,
    pub(super) body: Vec<u8>,
}

/// One connection. About 300 bytes beside its [`Link`] while it is idle.
pub(super) struct Conn {
    pub(super) link: Arc<Link>,
    pub(super) phase: Phase,
    /// Bytes received and not yet understood: an incomplete head, or requests behind the one in hand.
    pub(super) input: Vec<u8>,
    /// How far the end of the head was searched in `input`.
    pub(super) scanned: usize,
    /// Requests of this connection that were handed over.
    pub(super) requests: u32,
    /// Receiving is paused because enough bytes wait.
    pub(super) paused: bool,
    /// The peer has sent its last byte.
    pub(super) ended: bool,
    /// What was in `input` is being understood: it is not all there.
    pub(super) consuming: bool,
    /// The framing of what follows is lost: this answer is the last.
    pub(super) broken: bool,
    /// Rests of the answer wait for room in the socket.
    pub(super) writing: bool,
    /// The client was not told to send the body, when this was last looked at (`100 Continue`).
    pub(super) awaits_continue: bool,
    /// A head has begun to arrive.
    pub(super) in_head: bool,
    /// Whether the peer may speak for others (`forwarded_allow_ips`).
    pub(super) trusted: bool,
    /// It came in on the metrics address: no application is behind it.
    pub(super) observer: bool,
    /// The connection may still begin with a PROXY header.
    pub(super) before_proxy: bool,
    /// The request in hand has, or had, a streamed body: the link is to be cleared of it.
    pub(super) streamed: bool,
    /// When the client connected, or was last given the time for another request, in milliseconds. The end of an
    /// answer that nobody reported is in the link.
    pub(super) idle_ms: u64,
    /// When to act if nothing happens, in milliseconds; the wheel may hold an earlier entry.
    pub(super) deadline_ms: u64,
    /// When to give up if the client takes nothing of its answer. Its own deadline, because a request's body
    /// may arrive meanwhile.
    pub(super) writing_deadline_ms: u64,
    /// When the wheel's earliest entry for this connection fires; `u64::MAX` without one.
    pub(super) wheel_ms: u64,
    /// When the request in hand was complete.
    pub(super) begun_ms: u64,
    /// How it begins, for the log.
    pub(super) line: RequestLine,
    /// Its whole head, when the settings ask for lines about single requests.
    pub(super) head: Vec<u8>,
}

impl Conn {
    pub(super) fn new(link: Arc<Link>, trusted: bool, before_proxy: bool, opened_ms: u64) -> Self {
        Self {
            link,
            phase: Phase::Head,
            input: Vec::new(),
            scanned: 0,
            requests: 0,
            paused: false,
            ended: false,
            consuming: false,
            broken: false,
            writing: false,
            awaits_continue: false,
            in_head: false,
            trusted,
            observer: false,
            before_proxy,
            streamed: false,
            idle_ms: opened_ms,
            deadline_ms: u64::MAX,
            writing_deadline_ms: u64::MAX,
            wheel_ms: u64::MAX,
            begun_ms: 0,
            line: RequestLine::EMPTY,
            head: Vec::new(),
        }
    }

    /// Whether the client has been told to send the body in hand since this was asked last.
    pub(super) fn is_told_to_send(&mut self) -> bool {
        let told = self.awaits_continue && !self.link.owes_continue();
        self.awaits_continue &= !told;
        told && matches!(self.phase, Phase::InHand(Some(_)))
    }

    /// Since when nothing has been going on here: no request, no answer, no part of either.
    pub(super) fn idle_since_ms(&self) -> Option<u64> {
        // Between two requests the phase may still be that of the last one: nobody reports the end of an answer.
        let between = match self.phase {
            Phase::Head => !self.in_head,
            Phase::InHand(None) => {
                self.link.standing() == Standing::Idle && !self.writing && !self.link.has_rest()
            }
            _ => false,
        };
        let between = between && (self.input.is_empty() || is_blank(&self.input));
        let idle = between && !self.ended;
        idle.then(|| self.link.idle_since_ms().max(self.idle_ms))
    }
}
