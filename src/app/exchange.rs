//! One request, parsed and owned, together with the reply to it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use super::{Body, Link, Reply};
use crate::http::{Head, Version};
use crate::limits::EXCHANGE_KEEP_BYTES;

/// `http` or `https`, as the application is to see it.
pub use crate::http::Scheme;

/// Where connections come in, as an application sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// `SERVER_NAME`: the address, or the path of a unix socket.
    pub name: String,
    /// `SERVER_PORT`: the port in decimal; empty for a unix socket.
    pub port: String,
    /// The path of a unix socket.
    pub unix: Option<PathBuf>,
}

impl Listener {
    /// The listener of a TCP address.
    #[must_use]
    pub fn inet(addr: SocketAddr) -> Self {
        Self { name: addr.ip().to_string(), port: addr.port().to_string(), unix: None }
    }

    /// The listener of a unix socket.
    #[must_use]
    pub fn unix(path: PathBuf) -> Self {
        Self { name: path.display().to_string(), port: String::new(), unix: Some(path) }
    }
}

/// Who sent a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// An address and port.
    Inet {
        /// `REMOTE_ADDR`: the address as text, made once per connection.
        host: Box<str>,
        /// `REMOTE_PORT`: the port as text.
        port: Box<str>,
        /// The address.
        ip: IpAddr,
    },
    /// The other end of a unix socket, which has no name.
    Unix,
}

impl Peer {
    /// `REMOTE_ADDR`: the address as text; empty for a unix socket's peer.
    #[must_use]
    pub fn host(&self) -> &str {
        match self {
            Self::Inet { host, .. } => host,
            Self::Unix => "",
        }
    }
}

impl From<SocketAddr> for Peer {
    fn from(addr: SocketAddr) -> Self {
        // An IPv4 client of an IPv6 listener is shown, and trusted, as what it is.
        let ip = addr.ip().to_canonical();
        Self::Inet { host: ip.to_string().into(), port: addr.port().to_string().into(), ip }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet { host, port, ip: IpAddr::V6(_) } => write!(f, "[{host}]:{port}"),
            Self::Inet { host, port, .. } => write!(f, "{host}:{port}"),
            Self::Unix => f.write_str("unix"),
        }
    }
}

/// A request: its head as it was received, what the head means, and its body.
#[derive(Default)]
pub struct Request {
    /// The bytes that the spans of `head` index.
    pub(crate) bytes: Vec<u8>,
    /// How many of them were received; a request id may stand behind them.
    pub(crate) head_bytes: usize,
    pub(crate) head: Head,
    /// The body. A runner takes it.
    pub body: Body,
    pub(crate) link: Option<Arc<Link>>,
    /// When it was handed over to wait for a runner (monotonic milliseconds).
    pub(crate) queued_ms: u64,
    /// When the request was handed to the runners (monotonic nanoseconds), as of the I/O thread's turn; 0 unless
    /// somebody asks for durations.
    pub(crate) received_ns: u64,
    /// Which request of its connection it is, from 1.
    pub(crate) number: u32,
    /// When a runner took it.
    pub(crate) taken_ns: u64,
}

impl Request {
    /// The method, as received.
    #[must_use]
    pub fn method(&self) -> &[u8] {
        self.head.method.of(&self.bytes)
    }

    /// The request target, as received.
    #[must_use]
    pub fn target(&self) -> &[u8] {
        self.head.target.of(&self.bytes)
    }

    /// The path, percent-encoded as received.
    #[must_use]
    pub fn path(&self) -> &[u8] {
        self.head.path.of(&self.bytes)
    }

    /// The query, without its `?`.
    #[must_use]
    pub fn query(&self) -> &[u8] {
        self.head.query.of(&self.bytes)
    }

    /// The protocol version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.head.version
    }

    /// The header fields in order: name as received, value without surrounding blanks.
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.head.fields.iter().map(|field| (field.name.of(&self.bytes), field.value.of(&self.bytes)))
    }

    /// What the head says beyond its text.
    #[must_use]
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The connection it came on.
    ///
    /// # Panics
    /// On a request that was not handed to a runner; none such leaves the worker.
    #[must_use]
    #[expect(clippy::expect_used, reason = "a handed-over request has its link: `Exchange::begin` sets it")]
    pub fn link(&self) -> &Arc<Link> {
        self.link.as_ref().expect("a request in hand has a link")
    }
}

/// A request and the reply to it. Boxes of these go round between the I/O thread and the runners,
/// so that a request allocates nothing once the buffers have grown to its size.
#[derive(Default)]
pub struct Exchange {
    /// What is asked.
    pub request: Request,
    /// What is answered.
    pub reply: Reply,
}

impl Exchange {
    /// Ties a parsed request to its connection and makes the reply ready.
    pub fn begin(&mut self, link: Arc<Link>) {
        let head = &self.request.head;
        self.reply.begin(link.clone(), head.version, head.is_head, head.keep_alive);
        self.request.link = Some(link);
    }

    /// Forgets the request, keeps the buffers (within [`EXCHANGE_KEEP_BYTES`]).
    pub fn clear(&mut self) {
        self.request.link = None;
        // It is set only while somebody asks: left here, it would be taken for the next request's.
        self.request.received_ns = 0;
        self.request.taken_ns = 0;
        self.request.body = Body::Empty;
        self.request.bytes.clear();
        self.request.bytes.shrink_to(EXCHANGE_KEEP_BYTES);
        self.reply.clear();
    }
}
