//! Descriptors that this process did not open itself.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

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
    fn a_taken_descriptor_closes_on_exec() {
        let file = std::fs::File::open("/dev/null").unwrap();
        rustix::io::fcntl_setfd(&file, FdFlags::empty()).unwrap();
        let number = file.into_raw_fd();
        let owned = take_inherited(number).unwrap();
        assert_eq!(owned.as_raw_fd(), number);
        assert_eq!(rustix::io::fcntl_getfd(&owned).unwrap(), FdFlags::CLOEXEC);
    }
}
