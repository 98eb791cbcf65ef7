//! The environ of one request, built again and again, for benches: what a runner does before it calls the application.

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use pyo3::ffi;
use pyo3::prelude::*;

use super::{Wsgi, WsgiRunner};
use crate::app::python::stacks::Stacks;
use crate::app::{Exchange, Link, Listener, Peer, Port};
use crate::http::Policy;
use crate::ring::{self, Token};

/// A runner that never calls its application.
pub struct Environs {
    runner: WsgiRunner<'static, 'static>,
    exchange: Exchange,
    input: Bound<'static, PyAny>,
}

impl Environs {
    /// For a request with this head and no body. Starts the interpreter if there is none, and attaches the calling thread
    /// to it for as long as the process lives: a runner is attached all the time, too.
    ///
    /// # Panics
    /// The head is refused, or there are no descriptors.
    #[must_use]
    #[expect(clippy::expect_used, reason = "a bench ends at the first surprise")]
    pub fn new(head: &[u8]) -> Self {
        let py = attach_for_good();
        let wsgi = Wsgi {
            application: py.None(),
            multithread: true,
            attended: false,
            multiprocess: true,
            script_name: Vec::new(),
            errors: py.None(),
            hooks: None,
            stacks: Stacks::new(py),
            sendfile: true,
        };
        let mut exchange = Exchange::default();
        let request = &mut exchange.request;
        request.bytes.extend_from_slice(head);
        let length = request.head.parse(head, &mut 0, &Policy::default(), false).expect("a valid head");
        request.head_bytes = length.expect("a whole head");
        exchange.begin(Arc::new(link()));
        let runner = WsgiRunner::new(py, Box::leak(Box::new(wsgi))).expect("a runner");
        let input = runner.no_input.clone();
        Self { runner, exchange, input }
    }

    /// Builds one environ, and lets it go.
    ///
    /// # Panics
    /// Python has no memory left.
    #[expect(clippy::expect_used, reason = "a bench ends at the first surprise")]
    pub fn build(&mut self) {
        black_box(self.runner.environ(&self.exchange.request, &self.input, None).expect("an environ"));
    }
}

fn attach_for_good() -> Python<'static> {
    Python::initialize();
    // SAFETY: the interpreter is there. The state is never given back, so the thread stays attached.
    unsafe { ffi::PyGILState_Ensure() };
    // SAFETY: this thread is attached, from here on for good, and the token cannot leave it.
    unsafe { Python::assume_attached() }
}

/// The connection of a client on the network, as far as an environ tells of it.
#[expect(clippy::expect_used, reason = "a bench ends at the first surprise")]
fn link() -> Link {
    let (driver, _) = ring::open(ring::Io::Epoll).expect("an epoll instance");
    let (_client, server) = UnixStream::pair().expect("a pair of sockets");
    let listener = Listener::inet(SocketAddr::from((Ipv4Addr::LOCALHOST, 8000)));
    let peer = Peer::from(SocketAddr::from(([203, 0, 113, 7], 54_321)));
    let port = Arc::new(Port::new(driver.waker()));
    let token = Token { slot: 0, generation: 0 };
    Link::new(OwnedFd::from(server).into(), token, port, Arc::new(listener), peer)
}
