//! Waiting until a moment, closer than tokio's milliseconds: an open loop would be late by half of one on average.

use std::io;
use std::time::{Duration, Instant};

use io_uring::{cqueue, opcode, types};
use tokio_uring::{OneshotOutputTransform, UnsubmittedOneshot};

/// Takes the completion of a timeout for what it is: time has passed.
struct Passed;

impl OneshotOutputTransform for Passed {
    type Output = io::Result<()>;
    type StoredData = Box<types::Timespec>;

    fn transform_oneshot_output(self, _: Self::StoredData, completion: cqueue::Entry) -> Self::Output {
        match io::Error::from_raw_os_error(-completion.result()) {
            error if completion.result() == 0 || error.kind() == io::ErrorKind::TimedOut => Ok(()),
            // ETIME is how a timeout ends that nobody cancelled.
            error if error.raw_os_error() == Some(62) => Ok(()),
            error => Err(error),
        }
    }
}

/// Waits for a time, as a timeout operation of the ring.
///
/// # Errors
/// The kernel knows no such operation (it is as old as io_uring).
pub async fn wait(time: Duration) -> io::Result<()> {
    let spec = Box::new(types::Timespec::new().sec(time.as_secs()).nsec(time.subsec_nanos()));
    let entry = opcode::Timeout::new(&raw const *spec).build();
    UnsubmittedOneshot::new(spec, Passed, entry).submit().await
}

/// Waits until a moment.
///
/// # Errors
/// As [`wait`].
pub async fn wait_until(moment: Instant) -> io::Result<()> {
    match moment.checked_duration_since(Instant::now()) {
        Some(left) if !left.is_zero() => wait(left).await,
        _ => Ok(()),
    }
}
