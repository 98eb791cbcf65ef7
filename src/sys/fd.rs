//! System calls on descriptors that this process did not open, or that belong to somebody else.
//!
//! A ring backend is told a descriptor's number and uses it until it is told to let go; it owns none
//! of them. These functions take the bare number. A wrong number is an error from the kernel
//! (`EBADF`, `ENOTSOCK`), never undefined behaviour.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::FdFlags;

/// Takes over an inherited descriptor (`fd://N`, socket activation) and sets close-on-exec on it.
///
/// The caller takes each number once: the settings are checked for repeats before this is called.
///
/// # Errors
/// `EBADF` when `number` is not an open descriptor, or one of the three standard ones: those have
/// other owners in every process.
pub fn take_inherited(number: i32) -> io::Result<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the borrow ends with this function, and a number that names no open descriptor only
    // makes fcntl(2) fail with EBADF. It is not -1: checked above.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    // SAFETY: the descriptor is open (fcntl answered) and was named to us by whoever started the
    // process, who gave it for this use; nothing in this process opened it, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Connections that wait in a TCP listener's queue. Source: tcp(7), `TCP_INFO`; of a listener `tcpi_unacked` is the
/// length of its queue.
///
/// # Errors
/// As getsockopt(2); `EOPNOTSUPP` for other sockets.
pub fn waiting_connections(listener: BorrowedFd<'_>) -> io::Result<u32> {
    // `struct tcp_info` as far as that field: eight bytes, then numbers of 32 bits.
    let mut info = [0_u32; 7];
    let mut length = libc::socklen_t::try_from(std::mem::size_of_val(&info)).unwrap_or(0);
    // SAFETY: the kernel writes at most `length` bytes to `info`, and how many it wrote to `length`.
    let result = unsafe {
        libc::getsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(info[6]) } else { Err(io::Error::last_os_error()) }
}

/// Takes one waiting connection: blocking mode, close-on-exec. Whether it waits for one depends on
/// the listener's own mode. Source: accept4(2).
///
/// # Errors
/// As accept4(2).
pub fn accept(listener: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: no address is asked for, so the kernel writes to no memory of ours.
    let fd =
        unsafe { libc::accept4(listener, std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Receives what is there, without waiting whatever the socket's mode; 0 is the end of the stream.
/// Source: recv(2), `MSG_DONTWAIT`.
///
/// # Errors
/// As recv(2); `EAGAIN` when nothing is there.
pub fn receive(socket: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `len` bytes to `buffer`, which is borrowed exclusively.
    let count = unsafe { libc::recv(socket, buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Whether a read, or an accept, would find something now. Source: poll(2).
#[must_use]
pub fn is_readable(fd: RawFd) -> bool {
    let mut watched = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one `pollfd`, which lives until the call returns; a timeout of 0 does not wait.
    let count = unsafe { libc::poll(&raw mut watched, 1, 0) };
    count == 1 && watched.revents & libc::POLLIN != 0
}

/// Adds, changes or removes what an epoll instance watches of `fd`. `operation` is `EPOLL_CTL_ADD`,
/// `EPOLL_CTL_MOD` or `EPOLL_CTL_DEL`. Source: epoll_ctl(2).
///
/// # Errors
/// As epoll_ctl(2).
pub fn epoll_control(
    epoll: RawFd,
    operation: libc::c_int,
    fd: RawFd,
    events: u32,
    data: u64,
) -> io::Result<()> {
    let mut event = libc::epoll_event { events, u64: data };
    // SAFETY: the kernel copies `event` before the call returns.
    let result = unsafe { libc::epoll_ctl(epoll, operation, fd, &raw mut event) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes `accept` on a listener return `EAGAIN` instead of waiting. The mode belongs to the open
/// socket, so every process that shares the listener sees it. Source: ioctl(2), `FIONBIO`.
///
/// # Errors
/// As ioctl(2).
pub fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    let mut on: libc::c_int = 1;
    // SAFETY: `FIONBIO` reads one int behind the pointer, and `on` lives until the call returns.
    let result = unsafe { libc::ioctl(fd, libc::FIONBIO, &raw mut on) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Leads new connections of a `SO_REUSEPORT` group to its first `count` sockets, at random, or with
/// `None` to any of them by the kernel's hash. `member` is any listener of the group.
///
/// # Errors
/// `EINVAL`: the socket belongs to no group. `ENOENT`: there was no filter to remove.
///
/// # Source
/// socket(7), `SO_ATTACH_REUSEPORT_CBPF` (Linux 4.6 for TCP), `SO_DETACH_REUSEPORT_BPF`.
pub fn steer_group(member: BorrowedFd<'_>, count: Option<u32>) -> io::Result<()> {
    // linux/filter.h: where a program finds a random number in place of a packet's bytes.
    const RANDOM: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_RANDOM).cast_unsigned();
    let instruction = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    if let Some(count) = count {
        let mut program = [
            instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, RANDOM),
            instruction(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, count.max(1)),
            instruction(libc::BPF_RET | libc::BPF_A, 0),
        ];
        return attach(member, libc::SO_ATTACH_REUSEPORT_CBPF, &mut program);
    }
    let nothing: libc::c_int = 0;
    // SAFETY: the kernel reads one int, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            member.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_DETACH_REUSEPORT_BPF,
            (&raw const nothing).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives a socket a program of the classic packet filter.
fn attach(socket: BorrowedFd<'_>, option: libc::c_int, program: &mut [libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: `program` and the instructions it points to are initialised and outlive the call; the kernel copies and
    // checks them.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets no handshake begin any more on a TCP listener: it does not see first packets, which clients repeat after a second.
/// Handshakes that have begun are completed, and its queue stays as it is. Sockets that are accepted from then on have the
/// same filter, and nothing to lose by it.
///
/// # Errors
/// As setsockopt(2).
///
/// # Source
/// socket(7), `SO_ATTACH_FILTER`; RFC 9293, section 3.1: the flags are the fourteenth byte of a segment.
pub fn ignore_handshakes(listener: BorrowedFd<'_>) -> io::Result<()> {
    const FLAGS_AT: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    let instruction = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut program = [
        instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, FLAGS_AT),
        instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, SYN | ACK),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, SYN),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
    ];
    attach(listener, libc::SO_ATTACH_FILTER, &mut program)
}

/// Who is at the other end of a connected unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The process; 0 when it is outside this process-id namespace.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
}

/// Who connected to this socket, or who listens behind it when we connected.
///
/// # Errors
/// `ENOTSOCK` and its like: no unix socket.
///
/// # Source
/// unix(7), `SO_PEERCRED`. rustix reads it too, into a type that has no room for process 0.
pub fn peer_of(socket: BorrowedFd<'_>) -> io::Result<Credentials> {
    let mut found = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `found`, and both live until the call returns.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut found).cast(),
            &raw mut len,
        )
    };
    match result {
        0 => Ok(Credentials { pid: found.pid, uid: found.uid }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::os::fd::{AsRawFd, IntoRawFd};

    use super::*;

    #[test]
    fn standard_and_closed_descriptors_are_refused() {
        for number in [-1, 0, 1, 2, i32::MAX] {
            let error = take_inherited(number).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EBADF), "fd {number}");
        }
    }

    #[test]
    fn the_other_end_of_a_unix_socket_is_known() {
        use std::os::fd::AsFd;
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let peer = peer_of(one.as_fd()).unwrap();
        assert_eq!(peer.pid.cast_unsigned(), std::process::id());
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(peer_of(file.as_fd()).is_err());
    }

    #[test]
    fn a_taken_descriptor_closes_on_exec() {
        let file = std::fs::File::open("/dev/null").unwrap();
        rustix::io::fcntl_setfd(&file, FdFlags::empty()).unwrap();
        let number = file.into_raw_fd();
        let owned = take_inherited(number).unwrap();
        assert_eq!(owned.as_raw_fd(), number);
        assert_eq!(rustix::io::fcntl_getfd(&owned).unwrap(), FdFlags::CLOEXEC);
    }
}
