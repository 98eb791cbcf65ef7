//! Ringhorn: an application server for Linux, thread per core on io_uring.
//!
//! One master process, and one worker process per CPU, each with its own listener and its own
//! ring. It serves Python (WSGI) through the extension module built with feature `python`, and
//! native Rust services through this crate. `ARCHITECTURE.md` tells how the parts fit together.
//!
//! | module | what it is for |
//! | --- | --- |
//! | [`config`] | settings: their table, their sources, their checks |
//! | [`master`] | the arbiter: listeners, fork, reap, signals |
//! | [`worker`] | one process after fork: the I/O thread's loop and the runners |
//! | [`ring`] | completions in, submissions out: io_uring and epoll behind one trait |
//! | [`http`] | HTTP/1.1 without I/O: bytes in, decisions out |
//! | [`app`] | what an application sees: requests, replies; `app::python` is the WSGI bridge |
//! | [`observe`] | access log, error log |
//! | [`ctl`] | the operator's command `ringhorn ctl` |
//! | [`sys`] | the system calls that have no safe wrapper elsewhere |

pub mod app;
pub mod config;
pub mod ctl;
pub mod error;
pub mod http;
pub mod limits;
pub mod master;
pub mod observe;
pub mod ring;
#[expect(unsafe_code, reason = "system calls without a safe wrapper in a well-kept crate")]
pub mod sys;
pub mod worker;
