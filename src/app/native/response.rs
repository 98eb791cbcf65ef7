//! The answer that a service gives on the spot.
//!
//! The service fills a draft: status and headers in the [`Encoder`], the body in a buffer. When it returns, head
//! and body are written behind what the connection is already owed, and one send takes it all. The draft and its
//! buffers belong to the worker, so a request allocates nothing once they have grown to its size.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ::http::StatusCode;
use tracing::error;

use super::{Request, Responder};
use crate::app::link::Held;
use crate::app::{BodyStream, Exchange};
use crate::http::{Encoder, ResponseError};
use crate::limits::EXCHANGE_KEEP_BYTES;

/// What is told of every finished exchange that was deferred: the access log, metrics.
pub(crate) type Recorder = Arc<dyn Fn(&Exchange) + Send + Sync>;

/// A body that is not in the draft's buffer.
pub(crate) enum Large {
    Held(Held),
    File(OwnedFd, u64),
}

/// The draft of an answer; one per worker, used again for each request.
#[derive(Default)]
pub(crate) struct Draft {
    pub(crate) encoder: Encoder,
    pub(crate) content: Vec<u8>,
    pub(crate) large: Option<Large>,
    /// Something that does not belong in a response was asked for.
    pub(crate) failed: Option<ResponseError>,
}

impl Draft {
    /// Makes the draft ready for the answer to `request`.
    pub(crate) fn begin(&mut self, request: &Request<'_>) {
        let head = request.head;
        self.encoder.reset(head.version, head.is_head, head.keep_alive && !request.link.is_draining());
        let _ = self.encoder.set_code(200);
        self.content.clear();
        self.large = None;
        self.failed = None;
    }

    /// Gives back memory that an unusual answer needed.
    pub(crate) fn trim(&mut self) {
        if self.content.capacity() > EXCHANGE_KEEP_BYTES {
            self.content.clear();
            self.content.shrink_to(EXCHANGE_KEEP_BYTES);
        }
    }
}

/// What came of calling a service.
pub(crate) enum Answer {
    /// The draft is the answer.
    Drafted,
    /// A responder has the request; bytes of earlier answers wait for room in the socket, if true.
    Deferred(bool),
}

/// The answer to one request, in the making. `200 OK` without a body unless something else is said.
pub struct Response<'a> {
    pub(crate) draft: &'a mut Draft,
    pub(crate) request: Request<'a>,
    /// Answers to earlier requests of the connection, to be sent first.
    pub(crate) out: &'a mut Vec<u8>,
    pub(crate) stream: Option<BodyStream>,
    pub(crate) recorder: Option<&'a Recorder>,
    pub(crate) received_ns: u64,
    pub(crate) answer: Answer,
}

impl Response<'_> {
    /// Sets the status. Headers stay.
    pub fn status(&mut self, status: StatusCode) -> &mut Self {
        if let Err(error) = self.draft.encoder.set_code(status.as_u16()) {
            self.draft.failed = Some(error);
        }
        self
    }

    /// Adds a header. `Content-Length`, `Date`, `Server` and what concerns the connection are the server's to
    /// write; `Connection: close` closes. A [`::http::HeaderName`] will do for `name`, and text.
    ///
    /// One that does not belong in a response (a name that is no token, a control character in the value)
    /// makes the answer a 500, and a line in the log.
    pub fn header(&mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> &mut Self {
        if let Err(error) = self.draft.encoder.header(name.as_ref(), value.as_ref()) {
            self.draft.failed = Some(error);
        }
        self
    }

    /// Appends to the body. The bytes are copied; see [`Response::body_owned`] for large ones.
    pub fn body(&mut self, piece: impl AsRef<[u8]>) -> &mut Self {
        self.draft.content.extend_from_slice(piece.as_ref());
        self
    }

    /// Makes `body` the whole body, sent from its own memory: for more than some 64 KiB.
    pub fn body_owned(&mut self, body: impl AsRef<[u8]> + Send + 'static) -> &mut Self {
        self.draft.large = Some(Large::Held(Box::new(body)));
        self
    }

    /// Makes the first `length` bytes of `file` the whole body, sent with sendfile(2). Opening a file may block:
    /// [`super::Worker::blocking`] and [`Responder::file`] are the way for disks that are slow.
    pub fn file(&mut self, file: File, length: u64) -> &mut Self {
        self.draft.large = Some(Large::File(file.into(), length));
        self
    }

    /// Lets the connection end after this answer.
    pub fn close(&mut self) -> &mut Self {
        self.draft.encoder.force_close();
        self
    }

    /// Takes what was written of the body.
    #[cfg(feature = "tower")]
    pub(crate) fn take_body(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.draft.content)
    }

    /// Puts the answer off: whoever has the [`Responder`] gives it, at any time and from any thread. Status and
    /// headers that were set go with it; a body that was begun does not.
    ///
    /// Called a second time for one request it gives a responder whose answer nobody gets.
    #[must_use = "dropping the responder answers 500"]
    pub fn defer(&mut self) -> Responder {
        if matches!(self.answer, Answer::Deferred(_)) {
            error!("a request was deferred twice; the first responder answers it");
            return Responder::void();
        }
        let link = self.request.link;
        // First what came first: the responder may send at once, on another thread.
        let waits = !self.out.is_empty() && link.say(self.out);
        self.out.clear();
        if !self.request.streamed {
            link.hand_over();
        }
        self.answer = Answer::Deferred(waits);
        let mut exchange = Box::<Exchange>::default();
        exchange.request.bytes.extend_from_slice(self.request.bytes);
        exchange.request.head = self.request.head.clone();
        exchange.request.received_ns = self.received_ns;
        exchange.begin(Arc::clone(link));
        exchange.reply.adopt(&mut self.draft.encoder);
        let failed = self.draft.failed.take();
        Responder::new(exchange, self.stream.take(), self.recorder.cloned(), failed)
    }

    /// Whether [`Response::defer`] was called.
    #[must_use]
    pub fn is_deferred(&self) -> bool {
        matches!(self.answer, Answer::Deferred(_))
    }

    /// After the service returned: a body in its own memory, or in a file, goes the way of deferred answers.
    pub(crate) fn settle(&mut self) {
        if self.is_deferred() {
            return;
        }
        match self.draft.large.take() {
            Some(Large::Held(held)) => self.defer().answer_held(held),
            Some(Large::File(file, length)) => self.defer().answer_file(file, length),
            None => {}
        }
    }
}

/// Writing appends to the body, so `write!` and serializers work.
impl io::Write for Response<'_> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.draft.content.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
