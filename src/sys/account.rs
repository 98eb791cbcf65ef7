//! Users and groups by name, through the system's name services (files, LDAP, ...).

use std::ffi::CString;
use std::io;

/// Bytes up to which the buffer for an entry grows. A group with thousands of members needs many.
const ENTRY_BYTES_MAX: usize = 1 << 20;

/// The id of the user `name`; `None` when there is no such user.
///
/// # Errors
/// The name service's error.
///
/// # Source
/// getpwnam_r(3).
pub fn user_id(name: &str) -> io::Result<Option<u32>> {
    lookup(name, |name, buf| {
        let mut entry = std::mem::MaybeUninit::<libc::passwd>::uninit();
        let mut found = std::ptr::null_mut();
        // SAFETY: `name` is a C string and `buf` is writable for its length; both, and the places
        // for the answer, live until the call returns.
        let error = unsafe {
            libc::getpwnam_r(name.as_ptr(), entry.as_mut_ptr(), buf.as_mut_ptr(), buf.len(), &raw mut found)
        };
        // SAFETY: a pointer that is not null points at `entry`, which the call has filled then.
        (error, unsafe { found.as_ref() }.map(|user| user.pw_uid))
    })
}

/// The id of the group `name`; `None` when there is no such group.
///
/// # Errors
/// The name service's error.
///
/// # Source
/// getgrnam_r(3).
pub fn group_id(name: &str) -> io::Result<Option<u32>> {
    lookup(name, |name, buf| {
        let mut entry = std::mem::MaybeUninit::<libc::group>::uninit();
        let mut found = std::ptr::null_mut();
        // SAFETY: as in `user_id`.
        let error = unsafe {
            libc::getgrnam_r(name.as_ptr(), entry.as_mut_ptr(), buf.as_mut_ptr(), buf.len(), &raw mut found)
        };
        // SAFETY: a pointer that is not null points at `entry`, which the call has filled then.
        (error, unsafe { found.as_ref() }.map(|group| group.gr_gid))
    })
}

fn lookup(
    name: &str,
    call: impl Fn(&CString, &mut [libc::c_char]) -> (libc::c_int, Option<u32>),
) -> io::Result<Option<u32>> {
    // A name with a zero byte in it cannot exist.
    let Ok(name) = CString::new(name) else { return Ok(None) };
    let mut buf = vec![0; 4096];
    loop {
        match call(&name, &mut buf) {
            (0, id) => return Ok(id),
            // What name services answer for "no such name", besides 0; see getpwnam_r(3).
            (libc::ENOENT | libc::ESRCH | libc::EBADF | libc::EPERM, _) => return Ok(None),
            (libc::EINTR, _) => {}
            (libc::ERANGE, _) if buf.len() < ENTRY_BYTES_MAX => buf.resize(buf.len() * 2, 0),
            (error, _) => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn root_is_found_and_nobody_else_of_that_kind() {
        assert_eq!(user_id("root").unwrap(), Some(0));
        assert_eq!(group_id("root").unwrap(), Some(0));
        assert_eq!(user_id("no-such-user-here").unwrap(), None);
        assert_eq!(group_id("no-such-group-here").unwrap(), None);
        assert_eq!(user_id("ro\0ot").unwrap(), None);
    }
}
