//! Errors of system calls in words: `address already in use (EADDRINUSE)`.

use std::io;

/// What an operator reads: the meaning in plain words and the errno by name. An error without an
/// errno keeps its text.
#[must_use]
pub fn describe(error: &io::Error) -> String {
    let text = error.to_string();
    let Some(number) = error.raw_os_error() else { return text };
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    let lower: String =
        letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect());
    match name(number) {
        Some(name) => format!("{lower} ({name})"),
        None => format!("{lower} (errno {number})"),
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
        assert_eq!(describe(&in_use), "address already in use (EADDRINUSE)");
        let rare = io::Error::from_raw_os_error(libc::EXDEV);
        assert!(describe(&rare).contains("errno 18"));
        assert_eq!(describe(&io::Error::other("no host")), "no host");
    }
}
