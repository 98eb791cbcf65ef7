//! One connection: made, sent to and received from through the ring of its thread.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;

use rustix::net::{SendFlags, send};
use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::{TcpStream, UnixStream};

/// Where the server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

/// A connection.
pub enum Wire {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a unix socket.
    Unix(UnixStream),
}

impl Wire {
    /// Connects.
    ///
    /// # Errors
    /// What connect(2) says.
    pub async fn connect(place: &Place) -> io::Result<Self> {
        Ok(match place {
            Place::Tcp(addr) => {
                let stream = TcpStream::connect(*addr).await?;
                stream.set_nodelay(true)?;
                Self::Tcp(stream)
            }
            Place::Unix(path) => Self::Unix(UnixStream::connect(path).await?),
        })
    }

    /// Sends all. What fits goes out at once with send(2), from the caller's memory: a queued write would cost a
    /// submission, a completion and two wake-ups of tasks, and the request would leave one turn of the loop later. Only
    /// a rest that finds no room is copied and left to the ring.
    ///
    /// # Errors
    /// What send(2) says.
    pub async fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let sent = match send(self.fd(), bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(sent) => sent,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        if sent == bytes.len() {
            return Ok(());
        }
        let rest = bytes[sent..].to_vec();
        match self {
            Self::Tcp(stream) => stream.write_all(rest).await.0,
            Self::Unix(stream) => stream.write_all(rest).await.0,
        }
    }

    /// Receives behind the bytes that `buffer` already holds, and gives the buffer back with how many bytes came; 0 at
    /// the end of the connection. The buffer needs room.
    pub async fn receive(&self, buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        let held = buffer.len();
        let room = buffer.slice(held..);
        let (received, room) = match self {
            Self::Tcp(stream) => stream.read(room).await,
            Self::Unix(stream) => stream.read(room).await,
        };
        (received, room.into_inner())
    }

    /// Ends the connection in both directions: a receive that waits ends, too. Dropping it would not do that, because
    /// the operation in the ring keeps the descriptor open.
    pub fn shut_down(&self) {
        // It fails only when the connection is gone already.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }

    fn fd(&self) -> BorrowedFd<'_> {
        let fd = match self {
            Self::Tcp(stream) => stream.as_raw_fd(),
            Self::Unix(stream) => stream.as_raw_fd(),
        };
        borrow(self, fd)
    }
}

#[expect(unsafe_code, reason = "tokio-uring lends its descriptors as numbers only")]
fn borrow(_owner: &Wire, fd: i32) -> BorrowedFd<'_> {
    // SAFETY: the descriptor belongs to the stream in `_owner`, which is borrowed as long as the result and closes it
    // only when it is dropped.
    unsafe { BorrowedFd::borrow_raw(fd) }
}
