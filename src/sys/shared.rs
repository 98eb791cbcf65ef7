//! Memory that the master and all workers see: a record of the server, and per worker process a record and
//! its metrics.
//!
//! It is mapped before the fork and holds nothing but atomics. The worker writes its record, the
//! master and the siblings read it; only the master resets it, before it forks the worker. Two workers
//! of one slot, the old one and its successor, have a record each.
//!
//! Metrics are never reset, so that they survive the worker that counted them: the next worker with the
//! record counts on. For that a record, once used for a slot, is used for this slot again
//! ([`SharedPage::free_record`]); what a slot has counted is the sum over its records.

use std::io;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::clock::monotonic_ms;
use super::in_hand::InHand;
use super::metrics::{ServerMetrics, WorkerMetrics};
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

/// How a worker is to leave, in rising urgency. The order stands in its record before TERM is sent, if it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Order {
    /// As [`Order::Retire`], because the worker has done its share. No signal follows: gunicorn's workers leave by
    /// themselves then, and the application's handlers are not for this.
    Renew = 1,
    /// Another worker goes on with the same listeners, and clients should not notice: idle connections
    /// are kept as long as they would have been, and the next answer on each announces the close.
    Retire = 2,
    /// This server stops, another one goes on with the listeners: as above, but soon.
    Leave = 3,
    /// The server stops: serve what waits in the listeners, then close them.
    Close = 4,
}

/// The record of one worker. Two cache lines, because processors fetch lines in pairs: a
/// worker's beat must not slow its neighbour down.
#[derive(Debug, Default)]
#[repr(C, align(128))]
pub struct WorkerRecord {
    heartbeat_ms: AtomicU64,
    requests: AtomicU64,
    changed_ms: AtomicU64,
    age: AtomicU64,
    connections: AtomicU32,
    state: AtomicU32,
    pid: AtomicU32,
    /// One more than the slot; 0 when the record was never used.
    slot: AtomicU32,
    order: AtomicU32,
    generation: AtomicU32,
    waiting: AtomicU32,
    spent: AtomicBool,
    stuck: AtomicBool,
    engaged: AtomicBool,
}

impl WorkerRecord {
    /// Makes the record that of a worker about to be forked into `slot`.
    pub fn reset(&self, slot: u32) {
        self.generation.store(0, Ordering::Relaxed);
        self.waiting.store(0, Ordering::Relaxed);
        self.engaged.store(false, Ordering::Relaxed);
        self.pid.store(0, Ordering::Relaxed);
        self.slot.store(slot.saturating_add(1), Ordering::Relaxed);
        self.order.store(0, Ordering::Relaxed);
        self.spent.store(false, Ordering::Relaxed);
        self.stuck.store(false, Ordering::Relaxed);
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
        self.last_slot().unwrap_or_default()
    }

    /// The slot of the worker, or of the last one when there is none; `None` in a record that was never used.
    #[must_use]
    pub fn last_slot(&self) -> Option<u32> {
        self.slot.load(Ordering::Relaxed).checked_sub(1)
    }

    /// Says how the worker is to leave.
    pub fn set_order(&self, order: Order) {
        self.order.store(order as u32, Ordering::Release);
    }

    /// How the worker is to leave; `None` when the master did not say.
    #[must_use]
    pub fn order(&self) -> Option<Order> {
        match self.order.load(Ordering::Acquire) {
            1 => Some(Order::Renew),
            2 => Some(Order::Retire),
            3 => Some(Order::Leave),
            4 => Some(Order::Close),
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

    /// Says whether the worker's only runner is stuck in a request for longer than `timeout`. Said once the log tells
    /// which: the master ends the worker.
    pub fn set_stuck(&self, stuck: bool) {
        self.stuck.store(stuck, Ordering::Release);
    }

    /// Whether the worker's only runner is stuck.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        self.stuck.load(Ordering::Acquire)
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

    /// Says how many workers the master had forked when it forked this one.
    pub fn set_age(&self, age: u64) {
        self.age.store(age, Ordering::Relaxed);
    }

    /// How many workers the master had forked when it forked this one.
    #[must_use]
    pub fn age(&self) -> u64 {
        self.age.load(Ordering::Relaxed)
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

    /// Says how many connections the worker has open, and how many requests wait for a runner there.
    pub fn set_load(&self, connections: u32, waiting: u32) {
        self.connections.store(connections, Ordering::Relaxed);
        self.waiting.store(waiting, Ordering::Relaxed);
    }

    /// Requests that wait for a runner.
    #[must_use]
    pub fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Says whether the worker can take on nothing more: its runners are all taken, or it has as many connections
    /// as it may.
    pub fn set_engaged(&self, engaged: bool) {
        self.engaged.store(engaged, Ordering::Release);
    }

    /// Whether the worker can take on nothing more.
    #[must_use]
    pub fn is_engaged(&self) -> bool {
        self.engaged.load(Ordering::Acquire)
    }

    /// Says which reload the worker came with. For the master, before the fork.
    pub fn set_generation(&self, generation: u32) {
        self.generation.store(generation, Ordering::Relaxed);
    }

    /// Which reload the worker came with: newer ones have higher numbers.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Connections the worker has open.
    #[must_use]
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }
}

/// What is known of the server as a whole. Only the master writes it.
#[derive(Debug, Default)]
#[repr(C, align(128))]
pub struct ServerRecord {
    stopping: AtomicBool,
    watched_ms: AtomicU64,
    metrics: ServerMetrics,
}

impl ServerRecord {
    /// Says that the server is about to stop: no load balancer should send it anybody new.
    pub fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// Whether the server is about to stop.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Says that somebody looks at what workers count, until this time of [`monotonic_ms`] at least.
    pub fn watch_until(&self, end_ms: u64) {
        self.watched_ms.fetch_max(end_ms, Ordering::Relaxed);
    }

    /// Whether somebody looks at what workers count.
    #[must_use]
    pub fn is_watched(&self, now_ms: u64) -> bool {
        now_ms < self.watched_ms.load(Ordering::Relaxed)
    }

    /// What the master counts.
    #[must_use]
    pub fn metrics(&self) -> &ServerMetrics {
        &self.metrics
    }
}

/// What may live in a [`Mapping`].
///
/// # Safety
/// All bytes zero are a valid value, and everything in it is atomic: other processes change it at any time.
unsafe trait Shared {}

// SAFETY: atomics all through, and 0 is `Empty`.
unsafe impl Shared for WorkerRecord {}
// SAFETY: atomics all through, none of which has a wrong value.
unsafe impl Shared for ServerRecord {}
// SAFETY: as above.
unsafe impl Shared for WorkerMetrics {}
// SAFETY: as above.
unsafe impl Shared for InHand {}

/// Memory shared with the children that are forked from here on. The kernel provides the pages that are
/// touched, and no others.
#[derive(Debug)]
struct Mapping<T> {
    // Invariant: points to a live mapping of `count` values until drop.
    values: NonNull<T>,
    count: usize,
}

// SAFETY: the mapping belongs to no thread, and all access to it is through shared references to
// atomics.
unsafe impl<T: Shared> Send for Mapping<T> {}
// SAFETY: as above.
unsafe impl<T: Shared> Sync for Mapping<T> {}

impl<T: Shared> Mapping<T> {
    fn new(count: usize) -> io::Result<Self> {
        let bytes = count * size_of::<T>();
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // Not accounted for in advance: most of it is for workers that there will never be.
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a new anonymous mapping at an address that the kernel chooses touches nothing of
        // ours.
        let mapped = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, protection, flags) }?;
        // Zeroed memory is valid, and a mapping is aligned to a page.
        NonNull::new(mapped.cast::<T>())
            .map(|values| Self { values, count })
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))
    }

    fn values(&self) -> &[T] {
        // SAFETY: by the invariant the mapping has `count` values and lives as long as `self`; other
        // processes change them only through the same atomics.
        unsafe { std::slice::from_raw_parts(self.values.as_ptr(), self.count) }
    }
}

impl<T> Drop for Mapping<T> {
    fn drop(&mut self) {
        // SAFETY: `new` mapped exactly these bytes, and references to them cannot outlive `self`.
        let result = unsafe { munmap(self.values.as_ptr().cast(), self.count * size_of::<T>()) };
        debug_assert!(result.is_ok(), "munmap of our own mapping: {result:?}");
    }
}

/// The metrics of one worker, for its own threads.
#[derive(Clone, Debug)]
pub struct Meter {
    page: Arc<SharedPage>,
    record: usize,
    /// Somebody may look at any time.
    always: bool,
}

impl Meter {
    /// Whether the worker is to count, at `now_ms` of [`monotonic_ms`]. One load of memory that hardly ever changes.
    #[must_use]
    pub fn is_wanted(&self, now_ms: u64) -> bool {
        self.always || self.page.server().is_watched(now_ms)
    }
}

impl Deref for Meter {
    type Target = WorkerMetrics;

    fn deref(&self) -> &WorkerMetrics {
        // `SharedPage::meter` has looked at the number.
        &self.page.metrics.values()[self.record]
    }
}

/// The shared memory: [`RECORDS_MAX`] records and as many metrics, and the server's record.
#[derive(Debug)]
pub struct SharedPage {
    server: Mapping<ServerRecord>,
    records: Mapping<WorkerRecord>,
    metrics: Mapping<WorkerMetrics>,
    in_hand: Mapping<InHand>,
}

impl SharedPage {
    /// Maps the page. Children forked from now on share it.
    ///
    /// # Errors
    /// No memory.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            server: Mapping::new(1)?,
            records: Mapping::new(RECORDS_MAX)?,
            metrics: Mapping::new(RECORDS_MAX)?,
            in_hand: Mapping::new(RECORDS_MAX)?,
        })
    }

    /// What is known of the server as a whole.
    #[must_use]
    pub fn server(&self) -> &ServerRecord {
        &self.server.values()[0]
    }

    /// The record with this number; `None` from [`RECORDS_MAX`] on.
    #[must_use]
    pub fn record(&self, index: usize) -> Option<&WorkerRecord> {
        self.records().get(index)
    }

    /// All records; those in use are not [`WorkerState::Empty`].
    #[must_use]
    pub fn records(&self) -> &[WorkerRecord] {
        self.records.values()
    }

    /// The requests that the worker of this record has in hand; `None` from [`RECORDS_MAX`] on.
    #[must_use]
    pub fn in_hand(&self, index: usize) -> Option<&InHand> {
        self.in_hand.values().get(index)
    }

    /// What the workers of this record have counted; `None` from [`RECORDS_MAX`] on.
    #[must_use]
    pub fn metrics(&self, index: usize) -> Option<&WorkerMetrics> {
        self.metrics.values().get(index)
    }

    /// A way to the same for as long as it is kept. It is wanted `always`, or only while the server is watched.
    #[must_use]
    pub fn meter(self: &Arc<Self>, index: usize, always: bool) -> Option<Meter> {
        self.metrics(index).map(|_| Meter { page: Arc::clone(self), record: index, always })
    }

    /// Every record that was used, with its metrics. Records are taken from the front, so this ends early.
    pub fn used(&self) -> impl Iterator<Item = (&WorkerRecord, &WorkerMetrics)> {
        let pairs = self.records().iter().zip(self.metrics.values());
        pairs.take_while(|(record, _)| record.last_slot().is_some())
    }

    /// A record for a new worker of `slot`: one of this slot, or one that was never used. When there is neither,
    /// which takes thousands of workers, one of another slot: its counts then show under this slot.
    #[must_use]
    pub fn free_record(&self, slot: u32) -> Option<usize> {
        let empty = |record: &WorkerRecord| record.state() == WorkerState::Empty;
        let mut used = 0;
        for record in self.records() {
            match record.last_slot() {
                Some(last) if last == slot && empty(record) => return Some(used),
                Some(_) => used += 1,
                None => return Some(used),
            }
        }
        self.records().iter().position(empty)
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

    /// So that what a slot has counted survives its workers, and stays its own.
    #[test]
    fn a_slot_gets_its_record_again() {
        let page = SharedPage::new().unwrap();
        let begin = |slot| {
            let index = page.free_record(slot).unwrap();
            page.record(index).unwrap().reset(slot);
            index
        };
        let end = |index| page.record(index).unwrap().set_state(WorkerState::Empty);
        assert_eq!((begin(0), begin(1)), (0, 1));
        // A successor beside the worker, then one after both have left.
        assert_eq!(begin(0), 2);
        page.metrics(2).unwrap().accepted.add(7);
        end(2);
        end(1);
        assert_eq!(begin(0), 2);
        assert_eq!(page.metrics(2).unwrap().accepted.get(), 7);
        assert_eq!(begin(2), 3, "the record of slot 1 is kept for it");
        assert_eq!(begin(1), 1);
        assert_eq!(page.used().count(), 4);
    }

    #[test]
    fn counts_are_wanted_while_somebody_looks() {
        let page = Arc::new(SharedPage::new().unwrap());
        let (always, watched) = (page.meter(0, true).unwrap(), page.meter(0, false).unwrap());
        assert!(always.is_wanted(0) && !watched.is_wanted(0));
        page.server().watch_until(100);
        // Who looks for a shorter time takes nothing from the others.
        page.server().watch_until(50);
        assert!(watched.is_wanted(99) && !watched.is_wanted(100) && always.is_wanted(100));
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
