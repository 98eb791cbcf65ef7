//! Answers that are given later, or in pieces; and bodies that arrive in pieces.

use std::fmt;
use std::fs::File;
use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll};

use ::http::StatusCode;
use tracing::error;

use super::Recorder;
use crate::app::link::Held;
use crate::app::{BodyError, BodyStream, Exchange, Gone, Progress, Reply, ReplyError, Sent};
use crate::http::ResponseError;

/// Owes the answer to one request. It may be kept, sent to another thread, and finished whenever that suits;
/// later requests of the same connection wait meanwhile.
///
/// Dropped without an answer it answers 500; dropped within one, the client sees that it was cut.
pub struct Responder {
    inner: Option<Inner>,
    body: Option<BodyStream>,
}

struct Inner {
    exchange: Box<Exchange>,
    recorder: Option<Recorder>,
    failed: Option<ResponseError>,
}

impl Responder {
    pub(super) fn new(
        exchange: Box<Exchange>,
        body: Option<BodyStream>,
        recorder: Option<Recorder>,
        failed: Option<ResponseError>,
    ) -> Self {
        Self { inner: Some(Inner { exchange, recorder, failed }), body }
    }

    /// One that answers nobody.
    pub(super) fn void() -> Self {
        Self { inner: None, body: None }
    }

    /// The body that arrives in pieces; `None` when the request was not
    /// [streamed](super::Request::is_streamed), or it was taken already. What is not read when the answer is
    /// finished is dropped.
    #[must_use]
    pub fn body(&mut self) -> Option<BodyReader> {
        self.body.take().map(|stream| BodyReader { stream, piece: Vec::new() })
    }

    /// Sets the status. Headers stay. Without effect once a piece of the body was sent.
    pub fn status(&mut self, status: StatusCode) -> &mut Self {
        self.change_head(|reply| reply.set_code(status.as_u16()));
        self
    }

    /// Adds a header: as [`super::Response::header`]. Without effect once a piece of the body was sent.
    pub fn header(&mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> &mut Self {
        self.change_head(|reply| reply.header(name.as_ref(), value.as_ref()));
        self
    }

    fn change_head(&mut self, change: impl FnOnce(&mut Reply) -> Result<(), ReplyError>) {
        if let Some(inner) = &mut self.inner
            && !inner.exchange.reply.head_sent()
            && let Err(ReplyError::Invalid(error)) = change(&mut inner.exchange.reply)
        {
            inner.failed = Some(error);
        }
    }

    /// Sends a piece of the body now, behind the head if that is still to go: in chunks, unless a
    /// `Content-Length` header was given. After [`Sent::Full`] wait for [`Responder::room`] before the next
    /// one, or what the client has not read yet takes more and more memory.
    ///
    /// # Errors
    /// [`Gone`] when the client left.
    pub fn write(&mut self, piece: &[u8]) -> Result<Sent, Gone> {
        let inner = self.ready()?;
        inner.exchange.reply.send(piece, None, false, || Box::new(piece.to_vec()))
    }

    /// As [`Responder::write`], for a large piece: what the socket does not take waits in its own memory.
    ///
    /// # Errors
    /// [`Gone`] when the client left.
    pub fn write_owned(&mut self, piece: impl AsRef<[u8]> + Send + 'static) -> Result<Sent, Gone> {
        self.ready()?.exchange.reply.send_owned(Box::new(piece), None)
    }

    /// Sends the head now, before there is a body: for an answer whose first piece may be long in coming.
    ///
    /// # Errors
    /// [`Gone`] when the client left.
    pub fn flush(&mut self) -> Result<Sent, Gone> {
        let inner = self.ready()?;
        inner.exchange.reply.flush()
    }

    /// Waits until there is room for the next piece, or the client is gone.
    pub async fn room(&self) {
        poll_fn(|context| self.poll_room(context)).await;
    }

    /// As [`Responder::room`], for futures that are written by hand.
    pub fn poll_room(&self, context: &mut Context<'_>) -> Poll<()> {
        match &self.inner {
            Some(inner) if !inner.exchange.reply.link().poll_room(context.waker()) => Poll::Pending,
            _ => Poll::Ready(()),
        }
    }

    /// Blocks until there is room for the next piece, or the client is gone. For threads of
    /// [`super::Worker::blocking`], never for the worker's own.
    pub fn wait_for_room(&self) {
        if let Some(inner) = &self.inner {
            inner.exchange.reply.wait();
        }
    }

    /// Whether the client is known to have left.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.inner.as_ref().is_none_or(|inner| inner.exchange.reply.link().is_gone())
    }

    /// Ends the answer. Without a body before it, it has none.
    pub fn finish(mut self) {
        if self.ready().is_ok()
            && let Some(inner) = &mut self.inner
        {
            inner.exchange.reply.finish();
        }
    }

    /// Answers with `body`, all of it.
    pub fn answer(mut self, body: impl AsRef<[u8]>) {
        let body = body.as_ref();
        if let Ok(inner) = self.ready() {
            let _ =
                inner.exchange.reply.send(body, Some(body.len() as u64), true, || Box::new(body.to_vec()));
            inner.exchange.reply.finish();
        }
    }

    /// Answers with `body`, all of it, sent from its own memory.
    pub fn answer_owned(self, body: impl AsRef<[u8]> + Send + 'static) {
        self.answer_held(Box::new(body));
    }

    pub(super) fn answer_held(mut self, body: Held) {
        if let Ok(inner) = self.ready() {
            let length = (*body).as_ref().len() as u64;
            let _ = inner.exchange.reply.send_owned(body, Some(length));
            inner.exchange.reply.finish();
        }
    }

    /// Answers with the first `length` bytes of `file`, sent with sendfile(2). A file that is shorter cuts the
    /// answer.
    pub fn file(self, file: File, length: u64) {
        self.answer_file(file.into(), length);
    }

    pub(super) fn answer_file(mut self, file: OwnedFd, length: u64) {
        if let Ok(inner) = self.ready() {
            let _ = inner.exchange.reply.send_file(file, 0, length);
            inner.exchange.reply.finish();
        }
    }

    /// Ends the answer with an error: a page of the server's own, or, when the head was sent already, a cut.
    pub fn fail(mut self, status: StatusCode) {
        if let Some(inner) = &mut self.inner {
            inner.exchange.reply.fail(status.as_u16(), "");
        }
    }

    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn owes_continue(&self) -> bool {
        self.inner.as_ref().is_some_and(|inner| inner.exchange.reply.link().owes_continue())
    }

    /// The reply, when nothing wrong was asked of it.
    fn ready(&mut self) -> Result<&mut Inner, Gone> {
        let inner = self.inner.as_mut().ok_or(Gone)?;
        if let Some(failed) = inner.failed.take() {
            error!("a response cannot be sent: {failed}; the client gets status 500");
            inner.exchange.reply.fail(500, "");
        }
        if inner.exchange.reply.is_finished() { Err(Gone) } else { Ok(inner) }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        let Some(mut inner) = self.inner.take() else { return };
        if !inner.exchange.reply.is_finished() {
            inner.exchange.reply.fail(500, "");
        }
        if let Some(recorder) = &inner.recorder {
            recorder(&inner.exchange);
        }
    }
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Responder").finish_non_exhaustive()
    }
}

/// A request body that arrives in pieces. While nobody reads, the client is held back by its own socket.
pub struct BodyReader {
    stream: BodyStream,
    piece: Vec<u8>,
}

impl BodyReader {
    /// The next piece, `None` at the end. The first call sends `100 Continue` when the client waits for it.
    ///
    /// # Errors
    /// [`BodyError`] when the body cannot be completed, and again at every later call.
    pub async fn next(&mut self) -> Option<Result<Vec<u8>, BodyError>> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// As [`BodyReader::next`], for futures that are written by hand.
    ///
    /// # Errors
    /// As [`BodyReader::next`].
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Vec<u8>, BodyError>>> {
        match self.stream.poll(&mut self.piece) {
            Ok(Progress::Ready) => Poll::Ready(Some(Ok(std::mem::take(&mut self.piece)))),
            Ok(Progress::End) => Poll::Ready(None),
            Ok(Progress::Pending) => {
                self.stream.wake(context.waker());
                Poll::Pending
            }
            Err(error) => Poll::Ready(Some(Err(error))),
        }
    }

    /// The next piece, `None` at the end; blocks until there is one. For threads of
    /// [`super::Worker::blocking`], never for the worker's own.
    ///
    /// # Errors
    /// As [`BodyReader::next`].
    pub fn next_blocking(&mut self) -> Option<Result<Vec<u8>, BodyError>> {
        loop {
            match self.stream.poll(&mut self.piece) {
                Ok(Progress::Ready) => return Some(Ok(std::mem::take(&mut self.piece))),
                Ok(Progress::End) => return None,
                Ok(Progress::Pending) => self.stream.waiter().wait(),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl fmt::Debug for BodyReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyReader").finish_non_exhaustive()
    }
}
