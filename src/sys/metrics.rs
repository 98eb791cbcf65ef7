//! What workers and master count, in memory that all of them see.
//!
//! Everything here has one writer at a time, so counting is a load and a store, not a locked operation: the I/O
//! thread writes its own fields, runners write theirs while they hold the lock of their queue, the master
//! writes the server's. Readers may see a request in one number and not yet in another, never a number that
//! goes back. Nothing is counted unless somebody looks: at the metrics address, or through the control socket.

use std::array;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A number that only grows, or that is set.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `count`. For the only writer: two at once lose one's count.
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    /// Makes it this number.
    pub fn set(&self, number: u64) {
        self.0.store(number, Ordering::Relaxed);
    }

    /// The number now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Whether the numbers beside it can be relied on: whoever reads that it is set sees what was written before.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Flag(AtomicBool);

impl Flag {
    /// Makes it so.
    pub fn set(&self, on: bool) {
        self.0.store(on, Ordering::Release);
    }

    /// Whether it is set now.
    #[must_use]
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Methods that are counted apart; the last is all others, so that clients cannot make up new ones.
pub const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other"];

/// Classes of statuses; the last is all others.
pub const STATUSES: [&str; 5] = ["2xx", "3xx", "4xx", "5xx", "other"];

/// The place of a method in [`METHODS`].
#[must_use]
pub fn method_index(method: &[u8]) -> usize {
    match method {
        b"GET" => 0,
        b"HEAD" => 1,
        b"POST" => 2,
        b"PUT" => 3,
        b"PATCH" => 4,
        b"DELETE" => 5,
        b"OPTIONS" => 6,
        _ => 7,
    }
}

/// The place of a status code in [`STATUSES`].
#[must_use]
pub fn status_index(status: u16) -> usize {
    match status / 100 {
        class @ 2..=5 => usize::from(class) - 2,
        _ => 4,
    }
}

/// Each doubling of a time has as many buckets: 16, so that a time is known to one sixteenth.
const STEPS: usize = 16;
/// Times below `STEPS << UNIT_BITS` nanoseconds (16 us) are told apart in steps of 1.024 us.
const UNIT_BITS: u32 = 10;
/// Buckets up to 2^40 ns, 18 minutes. Longer times count as that long.
const BUCKETS: usize = 27 * STEPS;

/// Times as HdrHistogram keeps them: buckets whose width follows the time. 3.4 KiB.
#[derive(Debug)]
pub struct Histogram {
    buckets: [Counter; BUCKETS],
    sum_ns: Counter,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: array::from_fn(|_| Counter::default()), sum_ns: Counter::default() }
    }
}

impl Histogram {
    /// Counts one time. Two loads and two stores.
    pub fn record(&self, ns: u64) {
        self.buckets[bucket_of(ns)].add(1);
        self.sum_ns.add(ns);
    }
}

fn bucket_of(ns: u64) -> usize {
    let units = ns >> UNIT_BITS;
    if units < STEPS as u64 {
        return units as usize;
    }
    let doublings = units.ilog2() as usize - STEPS.ilog2() as usize;
    let step = (units >> doublings) as usize - STEPS;
    ((doublings + 1) * STEPS + step).min(BUCKETS - 1)
}

/// The least time of a bucket, in nanoseconds.
fn floor_ns(bucket: usize) -> u64 {
    let (row, step) = (bucket / STEPS, bucket % STEPS);
    match row {
        0 => (step as u64) << UNIT_BITS,
        _ => ((STEPS + step) as u64) << (row - 1) << UNIT_BITS,
    }
}

/// Histograms read at one moment and added up.
#[derive(Clone, Debug)]
pub struct Times {
    buckets: Vec<u64>,
    /// All times together, in nanoseconds.
    pub sum_ns: u64,
}

impl Default for Times {
    fn default() -> Self {
        Self { buckets: vec![0; BUCKETS], sum_ns: 0 }
    }
}

impl Times {
    /// Adds what `histogram` has now.
    pub fn merge(&mut self, histogram: &Histogram) {
        // Of a time that is counted meanwhile the sum may lack, and never be there alone.
        self.sum_ns = self.sum_ns.wrapping_add(histogram.sum_ns.get());
        for (sum, bucket) in self.buckets.iter_mut().zip(&histogram.buckets) {
            *sum += bucket.get();
        }
    }

    /// How many times there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// How many times are at most `ns`. Those of the bucket that `ns` lies in count when the bucket's middle does.
    #[must_use]
    pub fn count_to(&self, ns: u64) -> u64 {
        let within = |bucket: &usize| (floor_ns(*bucket) + floor_ns(bucket + 1)) / 2 <= ns;
        (0..BUCKETS - 1).take_while(within).map(|bucket| self.buckets[bucket]).sum()
    }

    /// The times that there are, each in nanoseconds and with how often it was, the shortest first.
    pub fn filled(&self) -> impl Iterator<Item = (u64, u64)> {
        let buckets = self.buckets.iter().enumerate().filter(|(_, count)| **count > 0);
        buckets.map(|(bucket, count)| ((floor_ns(bucket) + floor_ns(bucket + 1)) / 2, *count))
    }
}

/// What one worker counts: 12 KiB. Several cache lines apart from every other worker's.
#[derive(Debug, Default)]
#[repr(C, align(128))]
pub struct WorkerMetrics {
    // ---- written by the I/O thread
    /// Set while the worker counts: then all numbers of now are right, too.
    pub counting: Flag,
    /// Connections accepted.
    pub accepted: Counter,
    /// Connections open now.
    pub connections: Counter,
    /// Connections handed over to another worker.
    pub handed_over: Counter,
    /// Bytes received from clients.
    pub received_bytes: Counter,
    /// Bytes that the I/O thread sent to clients: what was left of answers, and its own.
    pub io_sent_bytes: Counter,
    /// Times that a connection's bytes had to wait, because all receive buffers were in use.
    pub buffer_waits: Counter,
    /// Requests that no application saw, by status: refused, or too late.
    pub refused: [Counter; STATUSES.len()],
    /// Runners with a request that wait for something else than the CPU, as of the last look.
    pub runners_blocked: Counter,

    // ---- written under the lock of the runners' queue
    /// Requests that were answered, by method and status.
    pub requests: [[Counter; STATUSES.len()]; METHODS.len()],
    /// Bytes that runners sent to clients.
    pub runner_sent_bytes: Counter,
    /// Requests that wait for a runner now.
    pub waiting: Counter,
    /// Requests that a runner has in hand now.
    pub in_hand: Counter,
    /// Runner threads that there are now.
    pub runners: Counter,
    /// Those of them that are not parked.
    pub runners_awake: Counter,
    /// Nanoseconds that runners waited for the interpreter after they were woken.
    pub interpreter_wait_ns: Counter,
    /// From the complete request to the runner that takes it.
    pub queue_wait: Histogram,
    /// From there to the end of the answer.
    pub application: Histogram,
    /// Both together.
    pub total: Histogram,
}

impl WorkerMetrics {
    /// A new worker begins: what tells of now and not of all time is 0.
    pub fn begin(&self) {
        self.counting.set(false);
        for gauge in [
            &self.connections,
            &self.runners_blocked,
            &self.waiting,
            &self.in_hand,
            &self.runners,
            &self.runners_awake,
        ] {
            gauge.set(0);
        }
    }
}

/// Why a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Departure {
    /// It could not start.
    Boot = 0,
    /// It ended by itself, with an exit code.
    Exit = 1,
    /// A signal that was not ours ended it.
    Signal = 2,
    /// It was silent for too long (`timeout`).
    Timeout = 3,
    /// It had answered enough (`max_requests`), or was to be replaced for another reason of its own.
    Recycle = 4,
    /// A new generation took over.
    Reload = 5,
    /// There are to be fewer workers.
    Scale = 6,
    /// The server stops.
    Stop = 7,
}

impl Departure {
    /// The names of all, in their order.
    pub const NAMES: [&str; 8] = ["boot", "exit", "signal", "timeout", "recycle", "reload", "scale", "stop"];
}

/// What the master counts.
#[derive(Debug, Default)]
pub struct ServerMetrics {
    /// Workers forked.
    pub forks: Counter,
    /// Workers that have ended, by [`Departure`].
    pub departures: [Counter; Departure::NAMES.len()],
    /// Reloads asked for.
    pub reloads: Counter,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_without_gaps() {
        assert_eq!(bucket_of(0), 0);
        for bucket in 1..BUCKETS {
            let floor = floor_ns(bucket);
            assert_eq!((bucket_of(floor - 1), bucket_of(floor)), (bucket - 1, bucket));
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        assert_eq!(floor_ns(BUCKETS), 1 << 40);
    }

    #[test]
    fn a_time_is_known_to_a_sixteenth() {
        for ns in [20_000_u64, 123_456, 1_000_000, 4_999_999, 77_000_000, 3_000_000_000, 900_000_000_000] {
            let histogram = Histogram::default();
            histogram.record(ns);
            let mut times = Times::default();
            times.merge(&histogram);
            assert_eq!((times.count(), times.sum_ns), (1, ns));
            let told = times.filled().next().map_or(0, |(time, _)| time);
            assert!(told.abs_diff(ns) <= ns / 16, "{ns} is told as {told}");
            assert_eq!((times.count_to(ns - ns / 16), times.count_to(ns + ns / 16)), (0, 1), "{ns}");
        }
    }

    #[test]
    fn times_are_all_that_was_merged() {
        let (quick, slow) = (Histogram::default(), Histogram::default());
        for _ in 0..98 {
            quick.record(1_000_000);
        }
        slow.record(2_000_000_000);
        slow.record(u64::MAX / 4);
        let mut times = Times::default();
        assert_eq!((times.count(), times.filled().count()), (0, 0));
        times.merge(&quick);
        times.merge(&slow);
        assert_eq!(times.count(), 100);
        let filled: Vec<(u64, u64)> = times.filled().collect();
        assert_eq!(filled.iter().map(|(_, count)| *count).collect::<Vec<_>>(), [98, 1, 1]);
        assert!(filled[0].0.abs_diff(1_000_000) < 65_000 && filled.is_sorted());
        assert!(filled[1].0.abs_diff(2_000_000_000) < 125_000_000);
        assert_eq!(times.count_to(u64::MAX), 99, "what is longer than all buckets is below no bound");
    }

    #[test]
    fn statuses_and_methods_have_their_places() {
        for (status, name) in
            [(200, "2xx"), (304, "3xx"), (404, "4xx"), (599, "5xx"), (600, "other"), (0, "other")]
        {
            assert_eq!(STATUSES[status_index(status)], name);
        }
        for name in METHODS {
            assert_eq!(METHODS[method_index(name.as_bytes())], name);
        }
        assert_eq!(METHODS[method_index(b"get")], "other");
    }
}
