//! Limits of this process, raised as far as it may.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Most descriptors we ask for. Some containers offer a thousand million, and programs that the
/// application starts may walk through all of them.
const DESCRIPTORS_MAX: u64 = 1 << 20;

/// Raises the soft limit of open descriptors to the hard one, up to 2^20. Returns the soft limit
/// that holds now.
///
/// # Errors
/// What setrlimit(2) refuses; the limit is as it was.
pub fn raise_descriptors() -> io::Result<u64> {
    raise(Resource::Nofile, DESCRIPTORS_MAX)
}

/// Raises the soft limit of locked memory to the hard one; rings are charged to it, before Linux 5.12 and again since
/// about 6.14. That needs no privilege. Returns the soft limit that holds now, in bytes.
///
/// # Errors
/// What setrlimit(2) refuses; the limit is as it was.
pub fn raise_locked_memory() -> io::Result<u64> {
    raise(Resource::Memlock, u64::MAX)
}

/// `None` in an `Rlimit` is "no limit", here `u64::MAX`.
fn raise(resource: Resource, most: u64) -> io::Result<u64> {
    let old = getrlimit(resource);
    let current = old.current.unwrap_or(u64::MAX);
    let wanted = old.maximum.unwrap_or(u64::MAX).min(most);
    if wanted <= current {
        return Ok(current);
    }
    let soft = if wanted == u64::MAX { None } else { Some(wanted) };
    setrlimit(resource, Rlimit { current: soft, maximum: old.maximum })?;
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_soft_limit_reaches_the_hard_one_or_our_cap() {
        let soft = raise_descriptors().unwrap();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current.unwrap_or(u64::MAX), soft);
        assert!(soft >= limit.maximum.unwrap_or(u64::MAX).min(DESCRIPTORS_MAX));
        // A second time there is nothing left to raise.
        assert_eq!(raise_descriptors().unwrap(), soft);
    }
}
