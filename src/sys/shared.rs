//! A page that the master and all workers see: one record per worker process, and one of the server.
//!
//! It is mapped before the fork and holds nothing but atomics. The worker writes its record, the
//! master and the siblings read it; only the master resets it, before it forks the worker. Two workers
//! of one slot, the old one and its successor, have a record each.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::clock::monotonic_ms;
use crate::limits::RECORDS_MAX;

/// Where a worker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum WorkerState {
    /// The record is free: it was never used, or its worker was reaped.
    Empty = 0,
    /// Forked; the application is being loaded.
    Booting = 1,
    /// It serves.
    Ready = 2,
    /// It accepts no more and finishes what it has.
    Draining = 3,
    /// It is about to leave.
    Exited = 4,
}

impl WorkerState {
    const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Booting,
            2 => Self::Ready,
            3 => Self::Draining,
            4 => Self::Exited,
            _ => Self::Empty,
        }
    }
}

/// How a worker is to leave, in rising urgency. The order stands in its record before TERM is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Order {
    /// Another worker goes on with the same listeners, and clients should not notice: idle connections
    /// are kept as long as they would have been, and the next answer on each announces the close.
    Retire = 1,
    /// This server stops, another one goes on with the listeners: as above, but soon.
    Leave = 2,
    /// The server stops: serve what waits in the listeners, then close them.
    Close = 3,
}

/// The record of one worker. Two cache lines, because processors fetch lines in pairs: a
/// worker's beat must not slow its neighbour down.
#[derive(Debug, Default)]
#[repr(C, align(128))]
pub struct WorkerRecord {
    heartbeat_ms: AtomicU64,
    requests: AtomicU64,
    changed_ms: AtomicU64,
    connections: AtomicU32,
    state: AtomicU32,
    pid: AtomicU32,
    slot: AtomicU32,
    order: AtomicU32,
    spent: AtomicBool,
}

impl WorkerRecord {
    /// Makes the record that of a worker about to be forked into `slot`.
    pub fn reset(&self, slot: u32) {
        self.pid.store(0, Ordering::Relaxed);
        self.slot.store(slot, Ordering::Relaxed);
        self.order.store(0, Ordering::Relaxed);
        self.spent.store(false, Ordering::Relaxed);
        self.requests.store(0, Ordering::Relaxed);
        self.changed_ms.store(0, Ordering::Relaxed);
        self.connections.store(0, Ordering::Relaxed);
        self.heartbeat_ms.store(monotonic_ms(), Ordering::Relaxed);
        self.state.store(WorkerState::Booting as u32, Ordering::Release);
    }

    /// Says that the worker is alive, at `now_ms` of [`monotonic_ms`].
    pub fn beat(&self, now_ms: u64) {
        self.heartbeat_ms.store(now_ms, Ordering::Relaxed);
    }

    /// When the worker last said that it is alive.
    #[must_use]
    pub fn heartbeat_ms(&self) -> u64 {
        self.heartbeat_ms.load(Ordering::Relaxed)
    }

    /// Says where the worker stands.
    pub fn set_state(&self, state: WorkerState) {
        self.state.store(state as u32, Ordering::Release);
    }

    /// Where the worker stands.
    #[must_use]
    pub fn state(&self) -> WorkerState {
        WorkerState::from_number(self.state.load(Ordering::Acquire))
    }

    /// The slot of the worker, while there is one.
    #[must_use]
    pub fn slot(&self) -> u32 {
        self.slot.load(Ordering::Relaxed)
    }

    /// Says how the worker is to leave. The signal follows.
    pub fn set_order(&self, order: Order) {
        self.order.store(order as u32, Ordering::Release);
    }

    /// How the worker is to leave; `None` when the master did not say.
    #[must_use]
    pub fn order(&self) -> Option<Order> {
        match self.order.load(Ordering::Acquire) {
            1 => Some(Order::Retire),
            2 => Some(Order::Leave),
            3 => Some(Order::Close),
            _ => None,
        }
    }

    /// Says that the worker has answered enough requests (`max_requests`) and is to be replaced.
    pub fn set_spent(&self) {
        self.spent.store(true, Ordering::Release);
    }

    /// Whether the worker is to be replaced.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        self.spent.load(Ordering::Acquire)
    }

    /// Says that a file of the application was changed, at `at_ms` of [`monotonic_ms`] (`reload`).
    pub fn set_changed(&self, at_ms: u64) {
        self.changed_ms.fetch_max(at_ms, Ordering::Release);
    }

    /// When a file of the application was changed last, as far as the worker has noticed; 0 is never.
    #[must_use]
    pub fn changed_ms(&self) -> u64 {
        self.changed_ms.load(Ordering::Acquire)
    }

    /// Says which process this is; 0 is none.
    pub fn set_pid(&self, pid: u32) {
        self.pid.store(pid, Ordering::Relaxed);
    }

    /// Which process this is; 0 is none.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// Counts requests begun by this worker.
    pub fn add_requests(&self, count: u64) {
        self.requests.fetch_add(count, Ordering::Relaxed);
    }

    /// Requests begun by this worker.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Says how many connections the worker has open.
    pub fn set_connections(&self, count: u32) {
        self.connections.store(count, Ordering::Relaxed);
    }

    /// Connections the worker has open.
    #[must_use]
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }
}

/// What all workers should know of the server. Only the master writes it.
#[derive(Debug, Default)]
#[repr(C, align(128))]
pub struct ServerRecord {
    stopping: AtomicBool,
}

/// The mapping's layout.
#[derive(Debug)]
#[repr(C)]
struct Layout {
    server: ServerRecord,
    records: [WorkerRecord; RECORDS_MAX],
}

/// The mapping: [`RECORDS_MAX`] records and one more, of which the kernel provides only those touched.
#[derive(Debug)]
pub struct SharedPage {
    // Invariant: points to a live mapping of one `Layout` until drop.
    layout: NonNull<Layout>,
}

// SAFETY: the mapping belongs to no thread, and all access to it is through shared references to
// atomics.
unsafe impl Send for SharedPage {}
// SAFETY: as above.
unsafe impl Sync for SharedPage {}

const BYTES: usize = size_of::<Layout>();

impl SharedPage {
    /// Maps the page. Children forked from now on share it.
    ///
    /// # Errors
    /// No memory.
    pub fn new() -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new anonymous mapping at an address that the kernel chooses touches nothing of
        // ours.
        let mapped = unsafe { mmap_anonymous(std::ptr::null_mut(), BYTES, protection, MapFlags::SHARED) }?;
        // Zeroed memory is a valid record: all fields are atomics, and 0 is `Empty`. A mapping is
        // aligned to a page.
        NonNull::new(mapped.cast::<Layout>())
            .map(|layout| Self { layout })
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))
    }

    /// The record with this number; `None` from [`RECORDS_MAX`] on.
    #[must_use]
    pub fn record(&self, index: usize) -> Option<&WorkerRecord> {
        self.records().get(index)
    }

    /// All records; those in use are not [`WorkerState::Empty`].
    #[must_use]
    pub fn records(&self) -> &[WorkerRecord] {
        &self.layout().records
    }

    /// Says that the server is about to stop: it serves what comes, and nobody should send more
    /// (`drain_delay`, and the stop itself).
    pub fn set_stopping(&self) {
        self.layout().server.stopping.store(true, Ordering::Release);
    }

    /// Whether clients should be sent here: a worker serves, and the server does not stop. What a readiness probe
    /// asks.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let serves = |record: &WorkerRecord| record.state() == WorkerState::Ready;
        // Records are handed out from the front; those behind the first that was never touched are not looked at,
        // because each look would have the kernel provide a page.
        let used = |record: &&WorkerRecord| record.heartbeat_ms() != 0;
        !self.layout().server.stopping.load(Ordering::Acquire)
            && self.records().iter().take_while(used).any(serves)
    }

    fn layout(&self) -> &Layout {
        // SAFETY: by the invariant the mapping is one `Layout` and lives as long as `self`; other processes change
        // it only through the same atomics.
        unsafe { self.layout.as_ref() }
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // SAFETY: `new` mapped exactly these bytes, and references to them cannot outlive `self`.
        let result = unsafe { munmap(self.layout.as_ptr().cast(), BYTES) };
        debug_assert!(result.is_ok(), "munmap of our own mapping: {result:?}");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn records_are_apart_and_have_an_end() {
        let page = SharedPage::new().unwrap();
        let record = page.record(3).unwrap();
        assert_eq!(record.state(), WorkerState::Empty);
        record.set_pid(7);
        record.add_requests(7);
        record.reset(5);
        assert_eq!(record.slot(), 5);
        assert_eq!((record.state(), record.pid(), record.requests()), (WorkerState::Booting, 0, 0));
        assert!(record.heartbeat_ms() > 0);
        // Its neighbours are untouched, and there is an end.
        assert_eq!(page.record(2).unwrap().state(), WorkerState::Empty);
        assert_eq!(page.record(4).unwrap().state(), WorkerState::Empty);
        assert!(page.record(RECORDS_MAX).is_none());
    }

    #[test]
    fn a_server_is_ready_while_a_worker_serves_and_it_does_not_stop() {
        let page = SharedPage::new().unwrap();
        assert!(!page.is_ready(), "nobody was forked");
        for slot in 0..2 {
            page.record(slot).unwrap().reset(0);
        }
        assert!(!page.is_ready(), "they load");
        page.record(0).unwrap().set_state(WorkerState::Draining);
        page.record(1).unwrap().set_state(WorkerState::Ready);
        assert!(page.is_ready());
        page.set_stopping();
        assert!(!page.is_ready());
    }

    #[test]
    fn a_state_reads_back_as_it_was_set() {
        let page = SharedPage::new().unwrap();
        let record = page.record(RECORDS_MAX - 1).unwrap();
        for state in [WorkerState::Ready, WorkerState::Draining, WorkerState::Exited, WorkerState::Empty] {
            record.set_state(state);
            assert_eq!(record.state(), state);
        }
    }

    #[test]
    fn monotonic_time_does_not_go_back() {
        let before = monotonic_ms();
        assert!(before > 0 && monotonic_ms() >= before);
    }
}
