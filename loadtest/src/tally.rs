//! What is counted.

use std::io;

use hdrhistogram::Histogram;

/// Longest latency told apart, in nanoseconds: an hour. Longer ones count as one.
const LATENCY_NS_MAX: u64 = 3_600_000_000_000;

/// How a request can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The connection could not be made, for another reason than the next two.
    Connect,
    /// Nobody listens.
    Refused,
    /// The connection was reset.
    Reset,
    /// The connection ended before the first byte of the answer.
    Closed,
    /// The connection ended amid the answer.
    Truncated,
    /// The answer did not come in time, or the connection.
    Timeout,
    /// What came is no response.
    Bad,
    /// Anything else that a send or a receive can meet.
    Io,
}

impl Failure {
    /// All kinds, in the order of the report.
    pub const ALL: [Self; 8] = [
        Self::Connect,
        Self::Refused,
        Self::Reset,
        Self::Closed,
        Self::Truncated,
        Self::Timeout,
        Self::Bad,
        Self::Io,
    ];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Closed => "closed",
            Self::Truncated => "truncated",
            Self::Timeout => "timeout",
            Self::Bad => "bad_response",
            Self::Io => "io",
        }
    }

    /// What a failed connect(2) is called.
    pub fn of_connect(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::ConnectionReset => Self::Reset,
            io::ErrorKind::TimedOut => Self::Timeout,
            _ => Self::Connect,
        }
    }

    /// What a failed send or receive is called.
    pub fn of_io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Reset,
            io::ErrorKind::TimedOut => Self::Timeout,
            _ => Self::Io,
        }
    }
}

/// Counts of one thread, or of all.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Latencies of complete responses in nanoseconds, of all kinds of requests.
    pub latency: Histogram<u64>,
    /// The same by kind of request; empty when there is one kind only.
    pub by_kind: Vec<Histogram<u64>>,
    /// Complete responses by status code.
    pub statuses: Vec<u64>,
    /// Failed requests, in the order of [`Failure::ALL`].
    pub failures: [u64; Failure::ALL.len()],
    /// Bytes sent.
    pub sent: u64,
    /// Bytes received.
    pub received: u64,
    /// Connections made.
    pub connections: u64,
    /// Requests of an open loop whose time came and that nobody was free to send before the end.
    pub unsent: u64,
}

impl Tally {
    /// Nothing yet. `kinds` is how many kinds of requests there are.
    pub fn new(kinds: usize) -> Self {
        let by_kind = if kinds > 1 { kinds } else { 0 };
        Self {
            latency: histogram(),
            by_kind: (0..by_kind).map(|_| histogram()).collect(),
            statuses: vec![0; 1000],
            failures: [0; Failure::ALL.len()],
            sent: 0,
            received: 0,
            connections: 0,
            unsent: 0,
        }
    }

    /// A response of this status came, this long after its request.
    pub fn answer(&mut self, kind: usize, status: u16, nanoseconds: u64) {
        self.latency.saturating_record(nanoseconds);
        if let Some(histogram) = self.by_kind.get_mut(kind) {
            histogram.saturating_record(nanoseconds);
        }
        if let Some(count) = self.statuses.get_mut(usize::from(status)) {
            *count += 1;
        }
    }

    /// A request failed.
    pub fn failure(&mut self, failure: Failure) {
        self.failures[failure as usize] += 1;
    }

    /// Complete responses.
    pub fn answers(&self) -> u64 {
        self.latency.len()
    }

    /// Failed requests.
    pub fn failed(&self) -> u64 {
        self.failures.iter().sum()
    }

    /// Complete responses of the statuses `100 * class` to `100 * class + 99`.
    pub fn class(&self, class: usize) -> u64 {
        self.statuses[class * 100..class * 100 + 100].iter().sum()
    }

    /// Adds another thread's counts.
    pub fn add(&mut self, other: &Self) {
        // Both have the same bounds, so it cannot fail.
        let _ = self.latency.add(&other.latency);
        for (mine, others) in self.by_kind.iter_mut().zip(&other.by_kind) {
            let _ = mine.add(others);
        }
        for (mine, others) in self.statuses.iter_mut().zip(&other.statuses) {
            *mine += others;
        }
        for (mine, others) in self.failures.iter_mut().zip(&other.failures) {
            *mine += others;
        }
        self.sent += other.sent;
        self.received += other.received;
        self.connections += other.connections;
        self.unsent += other.unsent;
    }
}

/// Three digits of any latency from a tenth of a microsecond to an hour.
fn histogram() -> Histogram<u64> {
    #[expect(clippy::expect_used, reason = "the bounds are constants that the crate takes")]
    Histogram::new_with_bounds(100, LATENCY_NS_MAX, 3).expect("bounds of a histogram")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_the_report_is_that_of_the_counts() {
        for (index, failure) in Failure::ALL.into_iter().enumerate() {
            assert_eq!(failure as usize, index);
        }
    }

    #[test]
    fn threads_add_up() {
        let (mut one, mut other) = (Tally::new(2), Tally::new(2));
        one.answer(0, 200, 1_000);
        other.answer(1, 404, 2_000_000);
        other.failure(Failure::Reset);
        one.add(&other);
        assert_eq!((one.answers(), one.failed(), one.class(2), one.class(4)), (2, 1, 1, 1));
        assert_eq!((one.by_kind[0].len(), one.by_kind[1].len()), (1, 1));
        assert!(one.latency.max() >= 2_000_000);
    }
}
