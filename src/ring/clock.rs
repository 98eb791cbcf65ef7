//! The clock of deadlines: monotonic, so that a corrected wall clock expires nothing.

use rustix::time::{ClockId, clock_gettime};

/// Milliseconds on the monotonic clock. Source: clock_gettime(2); answered without entering the
/// kernel on the usual clock sources.
pub(super) fn monotonic_ms() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // The monotonic clock starts at zero, so neither part is negative.
    now.tv_sec.unsigned_abs() * 1_000 + now.tv_nsec.unsigned_abs() / 1_000_000
}
