//! A page that the master and all workers see: one record per worker slot.
//!
//! It is mapped before the fork and holds nothing but atomics. The worker writes its record, the
//! master and the siblings read it; only the master resets it, before it forks into the slot.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::clock::monotonic_ms;
use crate::limits::WORKERS_MAX;

/// Where a worker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum WorkerState {
    /// Nobody was ever forked into the slot, or its worker was reaped.
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

/// The record of one worker slot. Two cache lines, because processors fetch lines in pairs: a
/// worker's beat must not slow its neighbour down.
#[derive(Debug, Default)]
#[repr(C, align(128))]
pub struct SlotRecord {
    heartbeat_ms: AtomicU64,
    requests: AtomicU64,
    connections: AtomicU32,
    state: AtomicU32,
    pid: AtomicU32,
}

impl SlotRecord {
    /// Makes the record that of a worker about to be forked.
    pub fn reset(&self) {
        self.pid.store(0, Ordering::Relaxed);
        self.requests.store(0, Ordering::Relaxed);
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

    /// Says which process serves the slot; 0 is none.
    pub fn set_pid(&self, pid: u32) {
        self.pid.store(pid, Ordering::Relaxed);
    }

    /// Which process serves the slot; 0 is none.
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

/// The mapping: [`WORKERS_MAX`] records, of which the kernel provides only those touched.
#[derive(Debug)]
pub struct SharedPage {
    // Invariant: points to a live mapping of `WORKERS_MAX` records until drop.
    records: NonNull<SlotRecord>,
}

// SAFETY: the mapping belongs to no thread, and all access to it is through shared references to
// atomics.
unsafe impl Send for SharedPage {}
// SAFETY: as above.
unsafe impl Sync for SharedPage {}

const BYTES: usize = WORKERS_MAX * size_of::<SlotRecord>();

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
        NonNull::new(mapped.cast::<SlotRecord>())
            .map(|records| Self { records })
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))
    }

    /// The record of a slot; `None` from [`WORKERS_MAX`] on.
    #[must_use]
    pub fn slot(&self, index: usize) -> Option<&SlotRecord> {
        self.records().get(index)
    }

    /// The records of all slots.
    #[must_use]
    pub fn records(&self) -> &[SlotRecord] {
        // SAFETY: by the invariant the mapping has `WORKERS_MAX` records and lives as long as
        // `self`; other processes change them only through the same atomics.
        unsafe { std::slice::from_raw_parts(self.records.as_ptr(), WORKERS_MAX) }
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // SAFETY: `new` mapped exactly these bytes, and references to them cannot outlive `self`.
        let result = unsafe { munmap(self.records.as_ptr().cast(), BYTES) };
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
        let record = page.slot(3).unwrap();
        assert_eq!(record.state(), WorkerState::Empty);
        record.set_pid(7);
        record.add_requests(7);
        record.reset();
        assert_eq!((record.state(), record.pid(), record.requests()), (WorkerState::Booting, 0, 0));
        assert!(record.heartbeat_ms() > 0);
        // Its neighbours are untouched, and there is an end.
        assert_eq!(page.slot(2).unwrap().state(), WorkerState::Empty);
        assert_eq!(page.slot(4).unwrap().state(), WorkerState::Empty);
        assert!(page.slot(WORKERS_MAX).is_none());
    }

    #[test]
    fn a_state_reads_back_as_it_was_set() {
        let page = SharedPage::new().unwrap();
        let record = page.slot(WORKERS_MAX - 1).unwrap();
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
