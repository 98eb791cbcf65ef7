//! Ringhorn: an application server for Linux, thread per core on io_uring.
//!
//! One master process, and one worker process per CPU, each with its own listener and its own
//! ring. It serves Python (WSGI) through the extension module built with feature `python`, and
//! native Rust services through this crate, where no Python is needed.
//!
//! # A service in Rust
//!
//! ```no_run
//! use std::process::ExitCode;
//!
//! use ringhorn::{Request, Response, Server, StatusCode};
//!
//! fn main() -> ExitCode {
//!     Server::builder()
//!         .bind("127.0.0.1:8000")
//!         .workers(2)
//!         .command_line() // and what the command line says: --bind, --workers, --access-logfile, ...
//!         .serve(|_worker| {
//!             // Called once in each worker: what it makes is this worker's alone, without locks.
//!             let mut visits = 0;
//!             move |request: &Request<'_>, response: &mut Response<'_>| match request.path() {
//!                 b"/" => {
//!                     visits += 1;
//!                     response.header("Content-Type", "text/plain").body(format!("visit {visits}\n"));
//!                 }
//!                 _ => drop(response.status(StatusCode::NOT_FOUND)),
//!             }
//!         })
//! }
//! ```
//!
//! [`Server`] brings all that operators know from the command: graceful stop (TERM), reload (HUP), upgrade (USR2),
//! limits and deadlines for slow clients, access and error logs, socket activation. `docs/settings.md` lists the
//! settings, `docs/native.md` is the guide.
//!
//! - A [`Service`] is called on the thread of its worker's ring, with a [`Request`] that borrows from the receive
//!   buffer and a [`Response`] that fills the send buffer. Steady traffic allocates nothing. **It must not block.**
//! - [`Response::defer`] gives a [`Responder`]: the answer may come later, in pieces, from anywhere.
//! - [`Worker`] runs futures on that thread ([`Worker::spawn`]), timers ([`Worker::after`]), and work that blocks on
//!   a bounded pool of threads ([`Worker::blocking`]).
//! - Bodies up to the setting `body_buffer` are whole when the service is called; larger ones arrive in pieces
//!   ([`Request::is_streamed`], [`Responder::body`]).
//!
//! An answer from a thread:
//!
//! ```no_run
//! use ringhorn::{Request, Response, Server, StatusCode, Worker};
//!
//! # fn main() -> std::process::ExitCode {
//! Server::builder().serve(|worker: &Worker| {
//!     let worker = worker.clone();
//!     move |_request: &Request<'_>, response: &mut Response<'_>| {
//!         let mut responder = response.defer();
//!         let read = worker.blocking(|| std::fs::read("/etc/hostname"));
//!         worker.spawn(async move {
//!             match read.await {
//!                 Ok(Ok(name)) => responder.answer(name),
//!                 // `Err`: too much work waits already.
//!                 _ => {
//!                     responder.status(StatusCode::SERVICE_UNAVAILABLE);
//!                     responder.finish();
//!                 }
//!             }
//!         });
//!     }
//! })
//! # }
//! ```
//!
//! # Modules
//!
//! `ARCHITECTURE.md` tells how the parts fit together.
//!
//! | module | what it is for |
//! | --- | --- |
//! | [`config`] | settings: their table, their sources, their checks |
//! | [`master`] | the arbiter: listeners, fork, reap, signals |
//! | [`worker`] | one process after fork: the I/O thread's loop and the runners |
//! | [`ring`] | completions in, submissions out: io_uring and epoll behind one trait |
//! | [`http`] | HTTP/1.1 without I/O: bytes in, decisions out |
//! | [`native`] | serving Rust: [`Server`] |
//! | [`app`] | what an application sees: requests, replies; `app::python` is the WSGI bridge |
//! | [`observe`] | access log, error log, metrics |
//! | [`ctl`] | the operator's commands: `ringhorn ctl`, `ringhorn top` |
//! | [`sys`] | the system calls that have no safe wrapper elsewhere, and the memory that all processes share |
//! | [`error`] | error families and exit codes |
//! | [`limits`] | every fixed bound, with its unit and its reason |

pub mod app;
pub mod config;
pub mod ctl;
pub mod error;
pub mod http;
pub mod limits;
pub mod master;
pub mod native;
pub mod observe;
pub mod ring;
mod sync;
#[expect(unsafe_code, reason = "system calls without a safe wrapper in a well-kept crate")]
pub mod sys;
pub mod worker;

pub use ::http::{HeaderName, HeaderValue, Method, StatusCode};
pub use app::native::{
    Blocking, BlockingError, BodyReader, Request, Responder, Response, Service, Sleep, Worker,
};
pub use app::{BodyError, Gone, Listener, Peer, Sent};
pub use native::{Builder, Server};
