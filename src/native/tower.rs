//! tower services, and so axum, on a worker.
//!
//! A tokio runtime of one thread stands beside the ring, on the same thread. A request's future is polled where the
//! request is parsed: most are ready at once, and then the answer leaves with the others of its batch and tokio was not
//! involved. One that waits becomes a task of the worker. Only while such tasks, or tasks of tokio's own, exist does
//! the worker wait in tokio, which hears from the ring through a descriptor; otherwise it waits in the ring.

use std::cell::Cell;
use std::fmt::Display;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, Version};
use bytes::{Buf, Bytes};
use http_body::{Frame, SizeHint};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Handle, Runtime};
use tower_service::Service as TowerService;
use tracing::error;

use super::{Builder, make};
use crate::app::native::{BodyReader, Request, Responder, Response, Service, Worker};
use crate::app::{BodyError, Link, Peer, Sent};
use crate::error::{Exit, StartError};
use crate::limits::INLINE_OUT_BYTES;
use crate::worker::{Beside, Served};

impl Builder {
    /// Serves a tower service, for example an axum `Router`, until the server is told to stop: as
    /// [`Builder::serve`], with a tokio runtime of one thread in each worker.
    ///
    /// `factory` makes the service of each worker, inside its runtime. The service is cloned for requests that
    /// wait. Its futures stay on their worker and need not be `Send`; `tokio::spawn` works, and so does everything
    /// that needs tokio's timers and sockets. A [`Connection`] is among each request's extensions.
    ///
    /// The future of a request is not dropped when its client leaves; the answer is.
    #[must_use = "the exit code is the process's to return"]
    pub fn serve_tower<S, B>(self, mut factory: impl FnMut(&Worker) -> S) -> ExitCode
    where
        S: TowerService<::http::Request<Body>, Response = ::http::Response<B>> + Clone + 'static,
        S::Error: Display,
        S::Future: 'static,
        B: http_body::Body + 'static,
        B::Error: Display,
    {
        self.run(&mut |worker, readiness| {
            let failed = |error: io::Error| {
                StartError::new(Exit::WorkerBoot, format!("cannot start the tokio runtime: {error}"))
            };
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
            let waiting = Rc::new(Cell::new(0));
            let (service, ring) = {
                let _inside = runtime.enter();
                let service = make(|| factory(worker))?;
                let ring: io::Result<Vec<_>> = readiness().map_err(failed)?.into_iter().map(watch).collect();
                (service, ring.map_err(failed)?)
            };
            let tower = Tower {
                service,
                worker: worker.clone(),
                handle: runtime.handle().clone(),
                waiting: Rc::clone(&waiting),
            };
            Ok(Served { service: Box::new(tower), beside: Some(Box::new(Tokio { ring, runtime, waiting })) })
        })
    }
}

/// Has tokio watch a descriptor. Called inside the runtime.
#[allow(
    deprecated,
    reason = "what takes its place is unsafe, for types that change their descriptor; ours cannot"
)]
fn watch(ring: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(ring, Interest::READABLE)
}

/// The runtime beside the ring.
struct Tokio {
    /// Before the runtime: it is dropped first, while the runtime is there to let it go.
    ring: Vec<AsyncFd<OwnedFd>>,
    runtime: Runtime,
    /// Futures of requests that wait for something.
    waiting: Rc<Cell<usize>>,
}

impl Beside for Tokio {
    fn is_busy(&self) -> bool {
        self.waiting.get() > 0 || self.runtime.metrics().num_alive_tasks() > 0
    }

    fn park(&mut self, timeout: Duration) -> io::Result<()> {
        let ring = &self.ring;
        self.runtime.block_on(async {
            if timeout.is_zero() {
                // Tasks that are ready run, and tokio looks at its own descriptors.
                tokio::task::yield_now().await;
                return Ok(());
            }
            // Over time is as good: the turn of the ring that follows takes all that there is.
            tokio::time::timeout(timeout, poll_fn(|context| poll_any(ring, context))).await.unwrap_or(Ok(()))
        })
    }
}

/// Ready when one of the descriptors has become readable since it was last.
fn poll_any(ring: &[AsyncFd<OwnedFd>], context: &mut Context<'_>) -> Poll<io::Result<()>> {
    let mut found = Poll::Pending;
    for fd in ring {
        if let Poll::Ready(ready) = fd.poll_read_ready(context) {
            ready?.clear_ready();
            found = Poll::Ready(Ok(()));
        }
    }
    found
}

/// The connection of a request: an extension of the requests that a tower service gets.
#[derive(Clone)]
pub struct Connection(Arc<Link>);

impl Connection {
    /// Who is on the other side.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        self.0.peer()
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Connection").field(self.peer()).finish()
    }
}

/// The body of a request to a tower service: whole, or in pieces while it arrives.
#[derive(Debug, Default)]
pub struct Body(Inner);

#[derive(Debug, Default)]
enum Inner {
    #[default]
    Empty,
    Whole(Bytes),
    Pieces(BodyReader),
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.0 {
            Inner::Empty => Poll::Ready(None),
            Inner::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                self.0 = Inner::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Inner::Pieces(reader) => {
                reader.poll_next(context).map_ok(|piece| Frame::data(Bytes::from(piece)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.0, Inner::Empty)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Empty => SizeHint::with_exact(0),
            Inner::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Inner::Pieces(_) => SizeHint::new(),
        }
    }
}

/// A tower service as a service of the worker.
struct Tower<S> {
    service: S,
    worker: Worker,
    handle: Handle,
    waiting: Rc<Cell<usize>>,
}

impl<S, B> Service for Tower<S>
where
    S: TowerService<::http::Request<Body>, Response = ::http::Response<B>> + Clone + 'static,
    S::Error: Display,
    S::Future: 'static,
    B: http_body::Body + 'static,
    B::Error: Display,
{
    fn call(&mut self, request: &Request<'_>, response: &mut Response<'_>) {
        let Some(mut asked) = owned(request) else {
            response.status(StatusCode::BAD_REQUEST).close();
            return;
        };
        // A body in pieces can only be read by somebody who may wait for it.
        let responder = request.is_streamed().then(|| {
            let mut responder = response.defer();
            *asked.body_mut() = Body(responder.body().map_or(Inner::Empty, Inner::Pieces));
            responder
        });
        let inside = self.handle.enter();
        let mut idle = Context::from_waker(Waker::noop());
        // As a rule the service is ready and its future too. What waits is polled again as a task, and tells that
        // task's waker then.
        let mut answering = match self.service.poll_ready(&mut idle) {
            Poll::Ready(Ok(())) => Answering::Called(Box::pin(self.service.call(asked))),
            Poll::Ready(Err(error)) => return fail(&error, response, responder),
            Poll::Pending => Answering::Waiting(self.service.clone(), Some(Box::new(asked))),
        };
        let answered = answering.poll(&mut idle);
        drop(inside);
        match (answered, responder) {
            (Poll::Ready(Ok(answer)), None) => self.write(answer, response),
            (Poll::Ready(Ok(answer)), Some(responder)) => self.spawn(deliver(answer, responder)),
            (Poll::Ready(Err(error)), responder) => fail(&error, response, responder),
            (Poll::Pending, responder) => {
                let responder = responder.unwrap_or_else(|| response.defer());
                self.spawn(async move {
                    match poll_fn(|context| answering.poll(context)).await {
                        Ok(answer) => deliver(answer, responder).await,
                        Err(error) => {
                            error!("the service failed: {error}; the client gets status 500");
                            responder.fail(StatusCode::INTERNAL_SERVER_ERROR);
                        }
                    }
                });
            }
        }
    }
}

/// A call on its way to its answer.
enum Answering<S: TowerService<::http::Request<Body>>> {
    /// The service is not ready.
    Waiting(S, Option<Box<::http::Request<Body>>>),
    Called(Pin<Box<S::Future>>),
}

impl<S: TowerService<::http::Request<Body>>> Answering<S> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<S::Response, S::Error>> {
        if let Self::Waiting(service, asked) = self {
            match service.poll_ready(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) => {}
            }
            let called = Box::pin(service.call(*asked.take().unwrap_or_default()));
            *self = Self::Called(called);
        }
        match self {
            Self::Called(called) => called.as_mut().poll(context),
            Self::Waiting(..) => Poll::Pending,
        }
    }
}

impl<S> Tower<S> {
    /// Runs what waits as a task of the worker, inside the runtime.
    fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        self.waiting.set(self.waiting.get() + 1);
        let mut future = Box::pin(future);
        let (handle, counted) = (self.handle.clone(), Counted(Rc::clone(&self.waiting)));
        self.worker.spawn(async move {
            poll_fn(|context| {
                let _inside = handle.enter();
                future.as_mut().poll(context)
            })
            .await;
            drop(counted);
        });
    }

    /// Writes an answer on the spot, as far as its body is there already.
    fn write<B>(&self, answer: ::http::Response<B>, response: &mut Response<'_>)
    where
        B: http_body::Body + 'static,
        B::Error: Display,
    {
        let (head, body) = answer.into_parts();
        response.status(head.status);
        for (name, value) in &head.headers {
            response.header(name, value);
        }
        let _inside = self.handle.enter();
        let mut body = Box::pin(body);
        let mut idle = Context::from_waker(Waker::noop());
        let mut length = 0;
        while length < INLINE_OUT_BYTES {
            if body.is_end_stream() {
                return;
            }
            match body.as_mut().poll_frame(&mut idle) {
                Poll::Ready(None) => return,
                Poll::Ready(Some(Ok(frame))) => {
                    // Trailers are not sent.
                    let Ok(mut data) = frame.into_data() else { continue };
                    while data.has_remaining() {
                        let piece = data.chunk();
                        let count = piece.len();
                        response.body(piece);
                        length += count;
                        data.advance(count);
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    error!("the body of a response failed: {error}; the client gets status 500");
                    return response.defer().fail(StatusCode::INTERNAL_SERVER_ERROR);
                }
                Poll::Pending => break,
            }
        }
        if length >= INLINE_OUT_BYTES && body.is_end_stream() {
            return;
        }
        let begun = response.take_body();
        self.spawn(stream(body, begun, response.defer()));
    }
}

/// Counts one waiting future, until it is dropped.
struct Counted(Rc<Cell<usize>>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// The request as the `http` crate has it. The head is copied once; names that are known and values need no more.
/// `None` when its target is no URI.
fn owned(request: &Request<'_>) -> Option<::http::Request<Body>> {
    let bytes = Bytes::copy_from_slice(request.bytes);
    let slice = |part: &[u8]| bytes.slice_ref(anchored(&bytes, request.bytes, part));
    let mut headers = HeaderMap::with_capacity(request.head.fields.len());
    for (name, value) in request.headers() {
        // The parser has checked both: nothing is dropped here.
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name), HeaderValue::from_maybe_shared(slice(value)))
        {
            headers.append(name, value);
        }
    }
    let mut asked = ::http::Request::new(Body(match request.body() {
        [] => Inner::Empty,
        body => Inner::Whole(Bytes::copy_from_slice(body)),
    }));
    *asked.method_mut() = request.method();
    *asked.uri_mut() = Uri::from_maybe_shared(slice(request.target())).ok()?;
    *asked.version_mut() =
        if request.version() == Version::HTTP_10 { Version::HTTP_10 } else { Version::HTTP_11 };
    *asked.headers_mut() = headers;
    asked.extensions_mut().insert(Connection(Arc::clone(request.link)));
    Some(asked)
}

/// The part of `copy` that stands where `part` stands in `original`.
fn anchored<'c>(copy: &'c [u8], original: &[u8], part: &[u8]) -> &'c [u8] {
    let start = (part.as_ptr() as usize).wrapping_sub(original.as_ptr() as usize);
    copy.get(start..start.wrapping_add(part.len())).unwrap_or_default()
}

/// Answers a request whose service failed.
fn fail(error: &impl Display, response: &mut Response<'_>, responder: Option<Responder>) {
    error!("the service failed: {error}; the client gets status 500");
    responder.unwrap_or_else(|| response.defer()).fail(StatusCode::INTERNAL_SERVER_ERROR);
}

/// Gives an answer through a responder.
async fn deliver<B>(answer: ::http::Response<B>, mut responder: Responder)
where
    B: http_body::Body + 'static,
    B::Error: Display,
{
    let (head, body) = answer.into_parts();
    responder.status(head.status);
    for (name, value) in &head.headers {
        responder.header(name, value);
    }
    if let Some(length) = body.size_hint().exact()
        && !head.headers.contains_key(::http::header::CONTENT_LENGTH)
    {
        responder.header(::http::header::CONTENT_LENGTH, length.to_string());
    }
    stream(Box::pin(body), Vec::new(), responder).await;
}

/// Sends a body as it comes, no faster than the client takes it.
async fn stream<B>(mut body: Pin<Box<B>>, begun: Vec<u8>, mut responder: Responder)
where
    B: http_body::Body,
    B::Error: Display,
{
    if !begun.is_empty() && responder.write_owned(begun).is_err() {
        return;
    }
    let mut waited = false;
    loop {
        let frame = poll_fn(|context| {
            let frame = body.as_mut().poll_frame(context);
            if frame.is_pending() && !std::mem::replace(&mut waited, true) {
                // The first piece may be long in coming; the client shall see that there is an answer.
                let _ = responder.flush();
            }
            frame
        });
        let data = match frame.await {
            None => break responder.finish(),
            Some(Ok(frame)) => frame.into_data(),
            Some(Err(error)) => {
                error!("the body of a response failed: {error}; its client sees it cut");
                return responder.fail(StatusCode::INTERNAL_SERVER_ERROR);
            }
        };
        // Trailers are not sent.
        let Ok(mut data) = data else { continue };
        let piece = data.copy_to_bytes(data.remaining());
        match responder.write_owned(piece) {
            Ok(Sent::Room) => {}
            Ok(Sent::Full) => responder.room().await,
            Err(_) => return,
        }
    }
}
