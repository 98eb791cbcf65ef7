//! Futures on the I/O thread, and their timers.
//!
//! A list of futures and a list of those that were woken. Nothing here costs anything while there is no task:
//! the I/O thread asks [`Tasks::is_empty`], a plain flag, once per turn.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Wake, Waker as TaskWaker};
use std::time::Duration;

use tracing::error;

use crate::ring::Waker;
use crate::sync::lock;
use crate::sys::clock;

type Boxed = Pin<Box<dyn Future<Output = ()>>>;

/// Polls in one turn of the I/O thread. Tasks that wake themselves again and again must not keep it from its
/// connections.
const POLLS_PER_TURN: usize = 256;

struct Task {
    future: Boxed,
    signal: Arc<TaskSignal>,
}

/// What wakes one task, from any thread.
struct TaskSignal {
    index: usize,
    /// It is in the list of woken tasks.
    woken: AtomicBool,
    woken_list: Arc<Woken>,
}

struct Woken {
    state: Mutex<WokenState>,
    waker: Waker,
}

#[derive(Default)]
struct WokenState {
    /// In the order of their wakes.
    list: VecDeque<Arc<TaskSignal>>,
    /// The I/O thread waits in the kernel, or is about to.
    asleep: bool,
}

impl Woken {
    fn lock(&self) -> MutexGuard<'_, WokenState> {
        lock(&self.state)
    }
}

impl Wake for TaskSignal {
    fn wake(self: Arc<Self>) {
        if self.woken.swap(true, Ordering::AcqRel) {
            return;
        }
        let list = Arc::clone(&self.woken_list);
        let mut state = list.lock();
        state.list.push_back(self);
        let asleep = std::mem::take(&mut state.asleep);
        drop(state);
        // On the I/O thread itself, and while it works, the list is looked at before it sleeps.
        if asleep {
            list.waker.wake();
        }
    }
}

/// The tasks of one worker.
pub(crate) struct Tasks {
    tasks: RefCell<Vec<Option<Task>>>,
    free: RefCell<Vec<usize>>,
    alive: Cell<usize>,
    woken: Arc<Woken>,
    /// Due times in monotonic milliseconds, made distinct by a number.
    timers: RefCell<BTreeMap<(u64, u64), TaskWaker>>,
    timers_made: Cell<u64>,
}

impl Tasks {
    /// Tasks of the I/O thread that `waker` wakes.
    pub(crate) fn new(waker: Waker) -> Self {
        Self {
            tasks: RefCell::default(),
            free: RefCell::default(),
            alive: Cell::new(0),
            woken: Arc::new(Woken { state: Mutex::default(), waker }),
            timers: RefCell::default(),
            timers_made: Cell::new(0),
        }
    }

    /// Whether there is no task, and so nothing to run or to wait for.
    pub(crate) fn is_empty(&self) -> bool {
        self.alive.get() == 0
    }

    pub(super) fn spawn(&self, future: Boxed) {
        let index = self.free.borrow_mut().pop().unwrap_or_else(|| {
            let mut tasks = self.tasks.borrow_mut();
            tasks.push(None);
            tasks.len() - 1
        });
        let signal = Arc::new(TaskSignal {
            index,
            woken: AtomicBool::new(false),
            woken_list: Arc::clone(&self.woken),
        });
        self.tasks.borrow_mut()[index] = Some(Task { future, signal: Arc::clone(&signal) });
        self.alive.set(self.alive.get() + 1);
        signal.wake();
    }

    /// Wakes the timers that are due and polls the tasks that were woken. Returns whether some are left for the
    /// next turn.
    pub(crate) fn run(&self, now_ms: u64) -> bool {
        if self.is_empty() {
            return false;
        }
        loop {
            let mut timers = self.timers.borrow_mut();
            let Some(entry) = timers.first_entry().filter(|entry| entry.key().0 <= now_ms) else { break };
            let task = entry.remove();
            drop(timers);
            task.wake();
        }
        for _ in 0..POLLS_PER_TURN {
            let Some(signal) = self.woken.lock().list.pop_front() else { return false };
            self.poll(signal);
        }
        true
    }

    fn poll(&self, signal: Arc<TaskSignal>) {
        let index = signal.index;
        // Taken out while it runs: it may spawn others.
        let Some(mut task) = self
            .tasks
            .borrow_mut()
            .get_mut(index)
            .and_then(|place| place.take_if(|task| Arc::ptr_eq(&task.signal, &signal)))
        else {
            // It ended, and was woken once more.
            return;
        };
        signal.woken.store(false, Ordering::Release);
        let waker = TaskWaker::from(signal);
        let mut context = Context::from_waker(&waker);
        match catch_unwind(AssertUnwindSafe(|| task.future.as_mut().poll(&mut context))) {
            Ok(Poll::Pending) => {
                self.tasks.borrow_mut()[index] = Some(task);
                return;
            }
            Ok(Poll::Ready(())) => {}
            Err(_) => error!("a task of the service panicked; it is dropped"),
        }
        self.alive.set(self.alive.get() - 1);
        self.free.borrow_mut().push(index);
        // What the future owns may spawn and wake when it is dropped: last of all.
        drop(task);
    }

    /// Says that the I/O thread is about to wait, for at most `ms`. Returns how long it may: not at all when a
    /// task was woken meanwhile.
    pub(crate) fn before_wait(&self, now_ms: u64, ms: u64) -> u64 {
        if self.is_empty() {
            return ms;
        }
        let mut state = self.woken.lock();
        if !state.list.is_empty() {
            return 0;
        }
        state.asleep = true;
        drop(state);
        let due_ms = self.timers.borrow().first_key_value().map(|(key, _)| key.0);
        due_ms.map_or(ms, |due_ms| ms.min(due_ms.saturating_sub(now_ms)))
    }

    /// The I/O thread is awake: wakes need not wake it.
    pub(crate) fn after_wait(&self) {
        if !self.is_empty() {
            self.woken.lock().asleep = false;
        }
    }

    /// Drops all tasks, with what they own.
    pub(crate) fn clear(&self) {
        // One at a time, outside of the borrow: a task may spawn and sleep while it is dropped.
        while let Some(task) = { self.tasks.borrow_mut().pop() } {
            drop(task);
        }
        self.free.borrow_mut().clear();
        self.alive.set(0);
    }
}

/// A future that is ready at a time; made by [`super::Worker::sleep`].
pub struct Sleep {
    tasks: Rc<Tasks>,
    key: (u64, u64),
}

impl Sleep {
    pub(super) fn new(tasks: Rc<Tasks>, delay: Duration) -> Self {
        let delay_ms = u64::try_from(delay.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        let number = tasks.timers_made.get();
        tasks.timers_made.set(number.wrapping_add(1));
        Self { tasks, key: (clock::monotonic_ms().saturating_add(delay_ms), number) }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut timers = self.tasks.timers.borrow_mut();
        if self.key.0 <= clock::monotonic_ms() {
            timers.remove(&self.key);
            return Poll::Ready(());
        }
        timers.insert(self.key, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        // A timer that nobody waits for any more must not stay until its time.
        self.tasks.timers.borrow_mut().remove(&self.key);
    }
}
