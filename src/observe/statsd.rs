//! Metrics for a statsd server (`statsd_host`), with gunicorn's names.
//!
//! One datagram per request, with three metrics in lines of their own, sent by the thread that answered.
//! Nothing waits: a server that is away or slow costs metrics.

use std::cell::RefCell;
use std::io::{self, Write as _};
use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use super::Level;

/// The port of a statsd server that is named without one.
const PORT: u16 = 8125;

/// The metrics of this process and of those that it forks.
static STATSD: OnceLock<Statsd> = OnceLock::new();

/// Makes `statsd` the destination of this process's metrics. Only the first one becomes that.
pub fn install(statsd: Statsd) {
    let _ = STATSD.set(statsd);
}

/// Where metrics go, if they go anywhere.
#[must_use]
pub fn metrics() -> Option<&'static Statsd> {
    STATSD.get()
}

enum Socket {
    Udp(UdpSocket),
    Unix(UnixDatagram, PathBuf),
}

/// A statsd server, and how metrics are named for it.
pub struct Statsd {
    socket: Socket,
    prefix: String,
    /// What follows each metric: `|#tag:value`, or nothing.
    tags: String,
}

impl Statsd {
    /// Metrics for the server `host`: `HOST:PORT`, `HOST` or `unix:PATH`.
    ///
    /// # Errors
    /// The name has no address, or there is no socket.
    pub fn open(host: &str, prefix: &str, tags: &str) -> io::Result<Self> {
        let prefix = match prefix.trim_end_matches('.') {
            "" => String::new(),
            prefix => format!("{prefix}."),
        };
        let tags = if tags.is_empty() { String::new() } else { format!("|#{tags}") };
        // `unix:8125` is a host called unix, as in gunicorn.
        let path = host.strip_prefix("unix:").filter(|path| path.parse::<u16>().is_err());
        let socket = match path {
            Some(path) => {
                let socket = UnixDatagram::unbound()?;
                socket.set_nonblocking(true)?;
                Socket::Unix(socket, path.strip_prefix("//").unwrap_or(path).into())
            }
            None => Socket::Udp(udp(host)?),
        };
        Ok(Self { socket, prefix, tags })
    }

    /// A request was answered.
    pub fn request(&self, status: u16, duration: Duration) {
        let millis = duration.as_secs_f64() * 1000.0;
        self.send(|out, prefix, tags| {
            writeln!(out, "{prefix}gunicorn.request.duration:{millis:.3}|ms{tags}")?;
            writeln!(out, "{prefix}gunicorn.requests:1|c|@1.0{tags}")?;
            write!(out, "{prefix}gunicorn.request.status.{status}:1|c|@1.0{tags}")
        });
    }

    /// There are now `count` workers.
    pub fn workers(&self, count: usize) {
        self.send(|out, prefix, tags| write!(out, "{prefix}gunicorn.workers:{count}|g{tags}"));
    }

    /// `count` connections wait to be accepted.
    pub fn backlog(&self, count: u64) {
        self.send(|out, prefix, tags| write!(out, "{prefix}gunicorn.backlog:{count}|h{tags}"));
    }

    /// A message was logged; those below a warning are not counted.
    pub fn logged(&self, level: Level) {
        let name = match level {
            Level::Critical => "critical",
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Info | Level::Debug => return,
        };
        self.send(|out, prefix, tags| write!(out, "{prefix}gunicorn.log.{name}:1|c|@1.0{tags}"));
    }

    fn send(&self, write: impl FnOnce(&mut Vec<u8>, &str, &str) -> io::Result<()>) {
        thread_local! {
            static DATAGRAM: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        // A thread that is ending has no buffer any more.
        let _ = DATAGRAM.try_with(|datagram| {
            let mut datagram = datagram.borrow_mut();
            datagram.clear();
            // Writing to memory cannot fail; and what cannot be sent is lost, as datagrams are.
            let _ = write(&mut datagram, &self.prefix, &self.tags);
            let _ = match &self.socket {
                Socket::Udp(socket) => socket.send(&datagram),
                Socket::Unix(socket, path) => socket.send_to(&datagram, path),
            };
        });
    }
}

fn udp(host: &str) -> io::Result<UdpSocket> {
    let bare = host.strip_prefix("udp://").unwrap_or(host);
    // A port is what follows the last colon, unless the colon is part of an IPv6 address.
    let has_port = bare.rsplit_once(':').is_some_and(|(name, port)| {
        port.parse::<u16>().is_ok() && (!name.contains(':') || name.ends_with(']'))
    });
    let found: Vec<SocketAddr> = if has_port {
        bare.to_socket_addrs()?.collect()
    } else {
        (bare.trim_matches(['[', ']']), PORT).to_socket_addrs()?.collect()
    };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in found {
        let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        match UdpSocket::bind(any).and_then(|socket| {
            socket.connect(address)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        }) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn received(socket: &UdpSocket) -> String {
        let mut buffer = [0; 1024];
        let count = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    }

    #[test]
    fn metrics_have_gunicorns_names() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let host = server.local_addr().unwrap().to_string();
        let statsd = Statsd::open(&host, "shop..", "env:prod,a:b").unwrap();
        statsd.request(404, Duration::from_micros(1500));
        assert_eq!(
            received(&server),
            "shop.gunicorn.request.duration:1.500|ms|#env:prod,a:b\n\
             shop.gunicorn.requests:1|c|@1.0|#env:prod,a:b\n\
             shop.gunicorn.request.status.404:1|c|@1.0|#env:prod,a:b"
        );
        let plain = Statsd::open(&host, "", "").unwrap();
        plain.workers(3);
        assert_eq!(received(&server), "gunicorn.workers:3|g");
        plain.logged(Level::Info);
        plain.logged(Level::Warning);
        assert_eq!(received(&server), "gunicorn.log.warning:1|c|@1.0");
    }

    #[test]
    fn a_server_that_is_away_or_full_costs_metrics_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("statsd");
        let statsd = Statsd::open(&format!("unix://{}", path.display()), "", "").unwrap();
        statsd.workers(1);
        let server = UnixDatagram::bind(&path).unwrap();
        // Far more than a socket holds; nobody reads meanwhile.
        for count in 0..5000 {
            statsd.workers(count);
        }
        let mut buffer = [0; 64];
        let count = server.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"gunicorn.workers:0|g");
    }

    #[test]
    fn hosts_may_leave_out_the_port() {
        for host in ["127.0.0.1", "udp://127.0.0.1", "[::1]", "::1"] {
            // A machine without IPv6 has no route there; the address is understood all the same.
            if let Err(error) = Statsd::open(host, "", "") {
                assert_ne!(error.kind(), io::ErrorKind::InvalidInput, "{host}");
            }
        }
        assert!(Statsd::open("127.0.0.1:no", "", "").is_err());
    }
}
