//! Errors of system calls in words: `address in use (EADDRINUSE)`.

use std::io;

/// What an operator reads: the meaning in plain words and the errno by name.
///
/// An error without an errno, or with one that is rare at the places we report, keeps the text of
/// the standard library.
#[must_use]
pub fn describe(error: &io::Error) -> String {
    let Some(number) = error.raw_os_error() else {
        return error.to_string();
    };
    match number {
        libc::EACCES => "permission denied (EACCES)".to_owned(),
        libc::EADDRINUSE => "address in use (EADDRINUSE)".to_owned(),
        libc::EADDRNOTAVAIL => "no such address on this machine (EADDRNOTAVAIL)".to_owned(),
        libc::EAFNOSUPPORT => "address family not supported (EAFNOSUPPORT)".to_owned(),
        libc::EAGAIN => "not now (EAGAIN)".to_owned(),
        libc::EBADF => "not an open descriptor (EBADF)".to_owned(),
        libc::EINVAL => "invalid (EINVAL)".to_owned(),
        libc::EISDIR => "is a directory (EISDIR)".to_owned(),
        libc::EMFILE => "out of descriptors in this process (EMFILE)".to_owned(),
        libc::ENAMETOOLONG => "name too long (ENAMETOOLONG)".to_owned(),
        libc::ENFILE => "out of descriptors on this machine (ENFILE)".to_owned(),
        libc::ENOENT => "no such file or directory (ENOENT)".to_owned(),
        libc::ENOMEM => "out of memory (ENOMEM)".to_owned(),
        libc::ENOSPC => "no space left (ENOSPC)".to_owned(),
        libc::ENOTDIR => "not a directory (ENOTDIR)".to_owned(),
        libc::ENOTSOCK => "not a socket (ENOTSOCK)".to_owned(),
        libc::EPERM => "operation not permitted (EPERM)".to_owned(),
        libc::EROFS => "read-only file system (EROFS)".to_owned(),
        _ => error.to_string(),
    }
}

/// The name of an error number, for those that rings, sockets and processes meet.
#[must_use]
pub fn name(errno: i32) -> Option<&'static str> {
    macro_rules! names {
        ($($name:ident)*) => {
            match errno {
                $(libc::$name => Some(stringify!($name)),)*
                _ => None,
            }
        };
    }
    names! {
        EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT EBUSY EEXIST
        ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY ETXTBSY EFBIG ENOSPC ESPIPE EROFS EMLINK EPIPE ERANGE
        ENAMETOOLONG ENOSYS ENOTEMPTY ELOOP ETIME EPROTO EOVERFLOW EBADR ENOTSOCK EDESTADDRREQ EMSGSIZE
        EPROTOTYPE ENOPROTOOPT EPROTONOSUPPORT EOPNOTSUPP EAFNOSUPPORT EADDRINUSE EADDRNOTAVAIL ENETDOWN
        ENETUNREACH ENETRESET ECONNABORTED ECONNRESET ENOBUFS EISCONN ENOTCONN ETIMEDOUT ECONNREFUSED EHOSTDOWN
        EHOSTUNREACH EALREADY EINPROGRESS ESTALE EDQUOT ECANCELED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_errors_have_their_name_and_others_keep_their_number() {
        let in_use = io::Error::from_raw_os_error(libc::EADDRINUSE);
        assert_eq!(describe(&in_use), "address in use (EADDRINUSE)");
        let rare = io::Error::from_raw_os_error(libc::EXDEV);
        assert!(describe(&rare).contains("18"));
        assert_eq!(describe(&io::Error::other("no host")), "no host");
    }
}
