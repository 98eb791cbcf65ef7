//! The one way in which this crate takes a lock.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex`, also when somebody has panicked who had it: that was a bug of ours, and the data is in order all the
/// same, because what is done under a lock here is to write plain fields.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
