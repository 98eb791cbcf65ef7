//! A connection's socket: sending and ending. Receiving belongs to the [`super::Driver`].
//!
//! Every call returns at once, whatever the socket's mode, and may be made from any thread.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendFlags, Shutdown};

#[cfg(any(test, feature = "simulation"))]
use super::sim;
use crate::sys::atfork;

/// Parts that one sendmsg(2) takes (`UIO_MAXIOV`); the rest is an ordinary short send.
const PARTS_MAX: usize = 1024;

/// A connected stream socket (TCP or unix). Dropping it closes the descriptor.
#[derive(Debug)]
pub struct Socket {
    inner: Inner,
}

/// We have sent our last byte.
const SENT_ALL: u8 = 1;
/// The peer's last byte was received, or nobody wants more.
const GOT_ALL: u8 = 2;

#[derive(Debug)]
enum Inner {
    Kernel {
        fd: OwnedFd,
        /// `O_NONBLOCK` is set; see [`Socket::send_file`].
        nonblocking: AtomicBool,
        /// Which directions have ended, [`SENT_ALL`] and [`GOT_ALL`]: there is nothing left to shut down then.
        ended: AtomicU8,
    },
    #[cfg(any(test, feature = "simulation"))]
    Simulated(sim::ServerHalf),
}

/// Runs one of the two arms; the second only exists in simulations.
macro_rules! either {
    ($inner:expr, $kernel:pat => $real:expr, $half:ident => $simulated:expr) => {
        match $inner {
            $kernel => $real,
            #[cfg(any(test, feature = "simulation"))]
            Inner::Simulated($half) => $simulated,
        }
    };
}

impl Socket {
    /// Sends what the socket has room for and returns the bytes taken; 0 only for no bytes at all.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room: ask for [`super::Event::Writable`]. Otherwise the
    /// connection is broken. Never raises `SIGPIPE`. Source: send(2), sendmsg(2).
    pub fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.send_with(parts, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
    }

    /// As [`Socket::send`], and says that more follows at once, so that a head and the file behind
    /// it share a packet. The next `send` without it, or 200 ms, lets the bytes go.
    /// Source: send(2), `MSG_MORE`.
    ///
    /// # Errors
    /// As [`Socket::send`].
    pub fn send_more(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.send_with(parts, SendFlags::DONTWAIT | SendFlags::NOSIGNAL | SendFlags::MORE)
    }

    /// The descriptor; `None` for a simulated socket.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        either!(&self.inner, Inner::Kernel { fd, .. } => Some(fd.as_fd()), _half => None)
    }

    /// Another descriptor of a simulated connection.
    #[cfg(test)]
    pub(crate) fn duplicate(&self) -> Option<Self> {
        Some(self.simulated()?.duplicate().into())
    }

    #[cfg(any(test, feature = "simulation"))]
    pub(super) fn simulated(&self) -> Option<&sim::ServerHalf> {
        either!(&self.inner, Inner::Kernel { .. } => None, half => Some(half))
    }

    fn send_with(&self, parts: &[IoSlice<'_>], flags: SendFlags) -> io::Result<usize> {
        let fd = either!(&self.inner, Inner::Kernel { fd, .. } => fd, half => return half.send(parts));
        let sent = match parts {
            [] => Ok(0),
            // Most responses are one part, and send(2) is cheaper than sendmsg(2), which copies
            // two more structures into the kernel.
            [part] => rustix::net::send(fd, part, flags),
            _ => {
                let parts = &parts[..parts.len().min(PARTS_MAX)];
                rustix::net::sendmsg(fd, parts, &mut SendAncillaryBuffer::default(), flags)
            }
        };
        Ok(sent?)
    }

    /// Sends up to `count` bytes of `file` from `offset` on, moves `offset` and returns the bytes
    /// taken; 0 when the file ends there.
    ///
    /// sendfile(2) has no flags, and waits for room exactly when the socket is in blocking mode. So
    /// the first call puts this socket, for good, into non-blocking mode. The receive that is armed
    /// on it does not mind. Reading the file may wait for the disk.
    ///
    /// # Errors
    /// `WouldBlock` as for [`Socket::send`]; `EINVAL` when `file` cannot be mapped (a pipe); `EIO`.
    /// A broken connection raises `SIGPIPE` here, which the process must ignore, as CPython does.
    pub fn send_file(&self, file: BorrowedFd<'_>, offset: &mut u64, count: usize) -> io::Result<usize> {
        let (fd, nonblocking) = either!(
            &self.inner,
            Inner::Kernel { fd, nonblocking, .. } => (fd, nonblocking),
            half => return half.send_file(file, offset, count)
        );
        if !nonblocking.load(Ordering::Relaxed) {
            rustix::io::ioctl_fionbio(fd, true)?;
            nonblocking.store(true, Ordering::Relaxed);
        }
        Ok(rustix::fs::sendfile(fd, file, Some(offset), count)?)
    }

    /// Says that nothing more will be sent (TCP: FIN behind the bytes already taken).
    ///
    /// # Errors
    /// `ENOTCONN` when the peer is gone already.
    pub fn shutdown_write(&self) -> io::Result<()> {
        let (fd, ended) =
            either!(&self.inner, Inner::Kernel { fd, ended, .. } => (fd, ended), half => return half.end());
        // Behind the bytes that were sent: whoever sees it knows that they were taken.
        if ended.fetch_or(SENT_ALL, Ordering::Release) & SENT_ALL != 0 {
            return Ok(());
        }
        Ok(rustix::net::shutdown(fd, Shutdown::Write)?)
    }

    /// Whether our last byte and the end of the stream behind it were handed to the kernel, by any thread: an answer
    /// that ends its connection has left whole.
    #[must_use]
    pub(crate) fn has_sent_all(&self) -> bool {
        either!(
            &self.inner,
            Inner::Kernel { ended, .. } => ended.load(Ordering::Acquire) & SENT_ALL != 0,
            half => half.has_ended()
        )
    }

    /// Notes that the peer's last byte was received ([`super::Event::Ended`]).
    pub(crate) fn note_end(&self) {
        either!(
            &self.inner,
            Inner::Kernel { ended, .. } => {
                ended.fetch_or(GOT_ALL, Ordering::Relaxed);
            },
            _half => {}
        );
    }

    /// Whether the peer's last byte was received, or nobody wants more.
    pub(crate) fn has_got_all(&self) -> bool {
        either!(&self.inner, Inner::Kernel { ended, .. } => ended.load(Ordering::Relaxed) & GOT_ALL != 0, _half => false)
    }

    /// Ends both directions. Whoever waits on the socket in this or another process is woken, and sees its end.
    ///
    /// # Errors
    /// `ENOTCONN` when the peer is gone already.
    pub(crate) fn shutdown_both(&self) -> io::Result<()> {
        let (fd, ended) = either!(&self.inner, Inner::Kernel { fd, ended, .. } => (fd, ended), half => return half.end_both());
        if ended.swap(SENT_ALL | GOT_ALL, Ordering::Release) == SENT_ALL | GOT_ALL {
            return Ok(());
        }
        Ok(rustix::net::shutdown(fd, Shutdown::Both)?)
    }

    /// Breaks the connection off: the peer sees a reset at once, and what was not sent is gone. A
    /// unix socket knows no reset and just ends.
    ///
    /// shutdown(2) would send an orderly FIN however `SO_LINGER` is set, and only the last close(2)
    /// resets, which may be in another thread much later. Disconnecting (connect(2) to `AF_UNSPEC`)
    /// resets now; `SO_LINGER` 0 stays as the fallback for the close.
    pub fn abort(&self) {
        let fd = either!(&self.inner, Inner::Kernel { fd, .. } => fd, half => return half.reset());
        let _ = socket2::SockRef::from(fd).set_linger(Some(Duration::ZERO));
        if rustix::net::connect_unspec(fd).is_err() {
            let _ = self.shutdown_both();
        }
    }

    /// The peer's address; `None` for a unix socket. Source: getpeername(2).
    ///
    /// # Errors
    /// `ENOTCONN` when the peer is gone already.
    pub fn peer_addr(&self) -> io::Result<Option<SocketAddr>> {
        let fd =
            either!(&self.inner, Inner::Kernel { fd, .. } => fd, half => return Ok(Some(half.peer_addr())));
        Ok(socket2::SockRef::from(fd).peer_addr()?.as_socket())
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some(fd) = self.fd() {
            atfork::forget(fd.as_raw_fd());
        }
    }
}

impl From<OwnedFd> for Socket {
    fn from(fd: OwnedFd) -> Self {
        // A child that the application forks must not keep the client's connection open.
        atfork::note(fd.as_raw_fd());
        Self { inner: Inner::Kernel { fd, nonblocking: AtomicBool::new(false), ended: AtomicU8::new(0) } }
    }
}

#[cfg(any(test, feature = "simulation"))]
impl From<sim::ServerHalf> for Socket {
    fn from(half: sim::ServerHalf) -> Self {
        Self { inner: Inner::Simulated(half) }
    }
}

impl AsRawFd for Socket {
    /// The descriptor's number; -1 for a simulated socket.
    fn as_raw_fd(&self) -> RawFd {
        self.fd().map_or(-1, |fd| fd.as_raw_fd())
    }
}
