//! Who answers a request: a runner through its reply, or a native service through its responder.

use std::fs::File;
use std::io::Write;
use std::task::{Context, Poll, Waker};

use ::http::StatusCode;

use super::plan::Plan;
use crate::app::native::{BodyReader, Responder};
use crate::app::{BodyError, BodyStream, Exchange, Gone, Held, Progress, Sent};

pub(super) enum Voice {
    Runner(Box<Exchange>),
    /// `None` when the answer is given.
    Service(Option<Responder>),
}

impl Voice {
    pub(super) fn is_full(&self) -> bool {
        match self {
            Self::Runner(exchange) => exchange.request.link().is_full(false),
            Self::Service(responder) => responder.as_ref().is_some_and(|responder| {
                responder.poll_room(&mut Context::from_waker(Waker::noop())).is_pending()
            }),
        }
    }

    /// Whether the connection has ended behind the answer, as far as a runner knows.
    pub(super) fn has_sent_all(&self) -> bool {
        match self {
            Self::Runner(exchange) => exchange.request.link().socket().has_sent_all(),
            Self::Service(_) => false,
        }
    }

    /// Whether every byte was given of a length that was told.
    pub(super) fn is_complete(&self) -> bool {
        matches!(self, Self::Runner(exchange) if exchange.reply.encoder().is_complete())
    }

    /// Whether nothing of an answer waits that is the last of its connection, and the end behind it has not left.
    pub(super) fn owes_end(&self) -> bool {
        let Self::Runner(exchange) = self else { return false };
        let link = exchange.request.link();
        !exchange.reply.encoder().keep_alive() && !link.has_rest() && !link.socket().has_sent_all()
    }

    /// Whether the client waits for `100 Continue`, and nobody has begun to answer.
    pub(super) fn owes_continue(&self) -> bool {
        match self {
            Self::Runner(exchange) => exchange.request.link().owes_continue(),
            Self::Service(responder) => responder.as_ref().is_some_and(Responder::owes_continue),
        }
    }

    pub(super) fn is_expired(&self) -> bool {
        matches!(self, Self::Runner(exchange) if exchange.reply.is_expired())
    }

    pub(super) fn start(&mut self, plan: &Plan) {
        let length = plan.declared.map(|length| length.to_string());
        match self {
            Self::Runner(exchange) => {
                let reply = &mut exchange.reply;
                reply.start(format!("{} Planned", plan.status).as_bytes()).expect("a plain status");
                if let Some(length) = length {
                    reply.header(b"Content-Length", length.as_bytes()).expect("a plain header");
                }
                if plan.closes {
                    reply.header(b"Connection", b"close").expect("a plain header");
                }
            }
            Self::Service(Some(responder)) => {
                responder.status(plan.code());
                if let Some(length) = length {
                    responder.header("Content-Length", length);
                }
                if plan.closes {
                    responder.header("Connection", "close");
                }
            }
            Self::Service(None) => {}
        }
    }

    pub(super) fn send(&mut self, plan: &Plan, piece: &'static [u8]) -> Result<Sent, Gone> {
        let count = piece.len() as u64;
        let file = plan.file.map(|lacking| file(&piece[..piece.len() - lacking]));
        match (self, file) {
            (Self::Runner(exchange), Some(file)) => exchange.reply.send_file(file.into(), 0, count),
            (Self::Runner(exchange), None) => {
                let total = plan.total_known.then(|| plan.pieces.iter().sum::<usize>() as u64);
                exchange.reply.send(piece, total, plan.more, || Box::new(piece) as Held)
            }
            (Self::Service(responder), Some(file)) => {
                if let Some(responder) = responder.take() {
                    responder.file(file, count);
                }
                Ok(Sent::Room)
            }
            (Self::Service(Some(responder)), None) if plan.more => responder.write_owned(piece),
            (Self::Service(Some(responder)), None) => responder.write(piece),
            (Self::Service(None), None) => Ok(Sent::Room),
        }
    }

    pub(super) fn finish(&mut self) {
        match self {
            Self::Runner(exchange) => exchange.reply.finish(),
            Self::Service(responder) => {
                if let Some(responder) = responder.take() {
                    responder.finish();
                }
            }
        }
    }

    /// Fails the answer; or leaves it to others to fail what it `abandons`.
    pub(super) fn fail(&mut self, status: u16, abandons: bool) {
        match self {
            // The pool does it.
            Self::Runner(exchange) => exchange.reply.fail(status, ""),
            Self::Service(responder) => {
                if let Some(responder) = responder.take().filter(|_| !abandons) {
                    responder.fail(StatusCode::from_u16(status).expect("a plain status"));
                }
            }
        }
    }
}

/// A body that arrives in pieces.
pub(super) enum Stream {
    Runner(BodyStream),
    Service(BodyReader),
}

impl Stream {
    pub(super) fn poll(&mut self, into: &mut Vec<u8>) -> Result<Progress, BodyError> {
        match self {
            Self::Runner(stream) => stream.poll(into),
            Self::Service(reader) => match reader.poll_next(&mut Context::from_waker(Waker::noop())) {
                Poll::Pending => Ok(Progress::Pending),
                Poll::Ready(None) => Ok(Progress::End),
                Poll::Ready(Some(piece)) => {
                    into.extend(piece?);
                    Ok(Progress::Ready)
                }
            },
        }
    }
}

/// A file of these bytes, in memory.
pub(super) fn file(bytes: &[u8]) -> File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::memfd_create("simulation", flags).expect("a file in memory"));
    file.write_all(bytes).expect("room in memory");
    file
}
