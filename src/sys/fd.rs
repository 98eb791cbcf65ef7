//! System calls on descriptors that belong to somebody else.
//!
//! A ring backend is told a descriptor's number and uses it until it is told to let go; it owns none
//! of them. These functions take the bare number. A wrong number is an error from the kernel
//! (`EBADF`, `ENOTSOCK`), never undefined behaviour.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

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
