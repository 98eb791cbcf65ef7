//! What the master decides: events in, actions out. It makes no system call and reads no clock, so
//! that its tests can walk through every order of events.
//!
//! A slot is a worker's place: its listeners, its CPU and its record in the shared page stay when
//! the worker goes, and the next worker of the slot takes them over.

use crate::error::Exit;
use crate::sys::process::{Ending, Pid};
use crate::sys::signal::Signal;

/// A worker that dies sooner than this after its fork counts as one that cannot run, in ms.
const EARLY_MS: u64 = 1_000;
/// Wait before a slot is filled again after its worker could not run: it doubles from here, in ms.
const BACK_OFF_FIRST_MS: u64 = 100;
/// Longest such wait, in ms.
const BACK_OFF_MAX_MS: u64 = 10_000;
/// Time between SIGABRT and SIGKILL for a silent worker, in ms. gunicorn: one turn of its loop.
const ABORT_MS: u64 = 1_000;
/// Time workers get for a quick stop that hurries a stop under way, in ms. gunicorn's 2 s.
const HURRY_MS: u64 = 2_000;
/// How often heartbeats are looked at, in ms.
const WATCH_MS: u64 = 1_000;
/// Turns further apart than this mean that the master itself stood still (stopped, starved), in ms.
const STALL_MS: u64 = 2 * WATCH_MS;

/// What the decisions depend on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Number of slots.
    pub(super) workers: usize,
    /// Silence after which a worker is aborted, in ms; 0 = never.
    pub(super) timeout_ms: u64,
    /// Time from a stop to SIGKILL, in ms.
    pub(super) graceful_ms: u64,
}

/// What the master is to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Fork a worker into the slot and answer with [`Slots::forked`] or [`Slots::fork_failed`].
    Fork { slot: usize },
    /// Send a signal to a worker that was not reaped yet.
    Kill { pid: Pid, signal: Signal },
    /// A stop begins: nobody new should find the way here (unix sockets are unlinked).
    StopListening,
    /// Write a line to the log.
    Log(Note),
    /// All workers are gone: leave with this code.
    Finish(Exit),
}

/// What the log should say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Note {
    /// A signal came.
    Handling(Signal),
    /// A signal came whose meaning is still to be built.
    NotYet(Signal),
    /// A worker ended; `sent` is the last signal it got from us.
    Ended { pid: Pid, ending: Ending, sent: Option<Signal> },
    /// The slot's worker could not run; the next one comes after this wait.
    BackOff { slot: usize, delay_ms: u64 },
    /// A worker is silent for longer than `timeout`.
    TimedOut { pid: Pid },
    /// `graceful_timeout` is over and this many workers are killed.
    OutOfTime { workers: usize },
    /// The first worker could not start, so the server will not either.
    CannotBoot(Exit),
}

/// The worker slots and how far the server's life has come.
#[derive(Clone, Debug)]
pub(super) struct Slots {
    rules: Rules,
    slots: Vec<Slot>,
    phase: Phase,
    /// A worker of this run has served: exit codes 3 and 4 are crashes from here on.
    ready_once: bool,
    /// Heartbeats from before this time are not held against a worker: the master was not looking.
    amnesty_ms: u64,
    last_turn_ms: u64,
    actions: Vec<Action>,
}

#[derive(Clone, Debug)]
struct Slot {
    /// Workers in a row that could not run.
    failures: u32,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    /// To be filled at this time.
    Due { at_ms: u64 },
    /// The fork was asked for.
    Forking,
    /// Filled.
    Filled(Worker),
    /// Empty for good.
    Closed,
}

#[derive(Clone, Debug)]
struct Worker {
    pid: Pid,
    forked_ms: u64,
    ready: bool,
    heartbeat_ms: u64,
    /// The last signal we sent that ends it.
    sent: Option<Signal>,
    aborted_ms: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    Stopping { exit: Exit, deadline_ms: u64, expired: bool },
    Finished,
}

impl Slots {
    /// All slots empty and due at once.
    pub(super) fn new(rules: Rules, now_ms: u64) -> Self {
        let empty = Slot { failures: 0, state: State::Due { at_ms: now_ms } };
        Self {
            rules,
            slots: vec![empty; rules.workers],
            phase: Phase::Running,
            ready_once: false,
            amnesty_ms: now_ms,
            last_turn_ms: now_ms,
            actions: Vec::new(),
        }
    }

    /// The actions decided since the last call.
    pub(super) fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// When [`Slots::turn`] has something to do next; `None` when only events can change anything.
    pub(super) fn next_ms(&self, now_ms: u64) -> Option<u64> {
        let due = self.slots.iter().filter_map(|slot| match &slot.state {
            State::Due { at_ms } => Some(*at_ms),
            _ => None,
        });
        let aborted = self.workers().filter_map(|worker| Some(worker.aborted_ms? + ABORT_MS));
        let watch = (self.watching() && self.workers().next().is_some()).then_some(now_ms + self.watch_ms());
        let deadline = match self.phase {
            Phase::Stopping { deadline_ms, expired: false, .. } => Some(deadline_ms),
            _ => None,
        };
        due.chain(aborted).chain(watch).chain(deadline).min()
    }

    /// The process of a slot, while it has one.
    pub(super) fn pid(&self, slot: usize) -> Option<Pid> {
        match &self.slots.get(slot)?.state {
            State::Filled(worker) => Some(worker.pid),
            _ => None,
        }
    }

    /// The slot of a process.
    pub(super) fn slot_of(&self, pid: Pid) -> Option<usize> {
        (0..self.slots.len()).find(|slot| self.pid(*slot) == Some(pid))
    }

    /// A fork asked for has given this process.
    pub(super) fn forked(&mut self, slot: usize, pid: Pid, now_ms: u64) {
        let mut worker = Worker {
            pid,
            forked_ms: now_ms,
            ready: false,
            heartbeat_ms: now_ms,
            sent: None,
            aborted_ms: None,
        };
        if self.phase != Phase::Running {
            // The stop was decided between the wish and the fork.
            send(&mut self.actions, &mut worker, Signal::KILL);
        }
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.state = State::Filled(worker);
        }
    }

    /// A fork asked for was refused by the kernel. It is tried again later.
    pub(super) fn fork_failed(&mut self, slot: usize, now_ms: u64) {
        self.vacate(slot, true, now_ms);
    }

    /// What the shared page says about the worker of a slot.
    pub(super) fn observed(&mut self, slot: usize, ready: bool, heartbeat_ms: u64) {
        if let Some(State::Filled(worker)) = self.slots.get_mut(slot).map(|slot| &mut slot.state) {
            worker.ready |= ready;
            worker.heartbeat_ms = heartbeat_ms;
            self.ready_once |= worker.ready;
        }
    }

    /// A child has been reaped. All slots are to be [`observed`](Slots::observed) after that and
    /// before this call, so that a worker that was ready for a moment counts as one. Children that are not ours are ignored:
    /// as process 1 the master inherits them.
    pub(super) fn ended(&mut self, pid: Pid, ending: Ending, now_ms: u64) {
        let Some(slot) = self.slot_of(pid) else { return };
        let State::Filled(worker) = std::mem::replace(&mut self.slots[slot].state, State::Closed) else {
            return;
        };
        self.actions.push(Action::Log(Note::Ended { pid, ending, sent: worker.sent }));
        if self.phase == Phase::Running
            && !self.ready_once
            && let Some(exit) = boot_failure(ending)
        {
            self.actions.push(Action::Log(Note::CannotBoot(exit)));
            self.stop(exit, Signal::QUIT, now_ms);
        }
        // A worker that served and left in order, however soon, was asked to (by an operator, by
        // `max_requests`). All others that did not last are held back, or they would spin.
        let in_order = worker.ready && ending == Ending::Code(0);
        let early = !worker.ready || now_ms < worker.forked_ms + EARLY_MS;
        self.vacate(slot, early && !in_order, now_ms);
    }

    /// Something went wrong that ends the server: a quick stop, and then `exit`.
    pub(super) fn abandon(&mut self, exit: Exit, now_ms: u64) {
        match self.phase {
            Phase::Running => self.stop(exit, Signal::QUIT, now_ms),
            Phase::Stopping { deadline_ms, expired, .. } => {
                self.phase = Phase::Stopping { exit, deadline_ms, expired };
            }
            Phase::Finished => {}
        }
        self.finish_when_empty();
    }

    /// Whether no worker is to be forked any more.
    pub(super) fn is_ending(&self) -> bool {
        self.phase != Phase::Running
    }

    /// A signal for the master.
    pub(super) fn signal(&mut self, signal: Signal, now_ms: u64) {
        if self.phase == Phase::Finished {
            return;
        }
        match signal {
            Signal::TERM => {
                self.actions.push(Action::Log(Note::Handling(signal)));
                if self.phase == Phase::Running {
                    self.stop(Exit::Done, Signal::TERM, now_ms);
                }
            }
            Signal::INT | Signal::QUIT => {
                self.actions.push(Action::Log(Note::Handling(signal)));
                match self.phase {
                    Phase::Running => self.stop(Exit::Done, Signal::QUIT, now_ms),
                    Phase::Stopping { exit, deadline_ms, expired } => {
                        let deadline_ms = deadline_ms.min(now_ms + HURRY_MS);
                        self.phase = Phase::Stopping { exit, deadline_ms, expired };
                        self.send_all(Signal::QUIT);
                    }
                    Phase::Finished => {}
                }
            }
            Signal::USR1 => {
                self.actions.push(Action::Log(Note::Handling(signal)));
                let pids: Vec<Pid> = self.workers().map(|worker| worker.pid).collect();
                self.actions.extend(pids.into_iter().map(|pid| Action::Kill { pid, signal }));
            }
            Signal::HUP | Signal::USR2 | Signal::TTIN | Signal::TTOU => {
                self.actions.push(Action::Log(Note::Handling(signal)));
                self.actions.push(Action::Log(Note::NotYet(signal)));
            }
            // CHLD only wakes the master up. WINCH comes whenever a terminal is resized.
            _ => {}
        }
    }

    /// Time has passed: fills slots that are due, looks at heartbeats and deadlines.
    pub(super) fn turn(&mut self, now_ms: u64) {
        if now_ms > self.last_turn_ms + STALL_MS {
            // The whole group may have been stopped and continued: let workers beat first.
            self.amnesty_ms = now_ms;
        }
        self.last_turn_ms = now_ms;
        match self.phase {
            Phase::Running => {
                self.fill(now_ms);
                self.watch(now_ms);
            }
            Phase::Stopping { exit, deadline_ms, expired: false } if now_ms >= deadline_ms => {
                self.phase = Phase::Stopping { exit, deadline_ms, expired: true };
                let workers = self.workers().filter(|worker| worker.sent != Some(Signal::KILL)).count();
                if workers > 0 {
                    self.actions.push(Action::Log(Note::OutOfTime { workers }));
                }
                self.send_all(Signal::KILL);
            }
            Phase::Stopping { .. } | Phase::Finished => {}
        }
        self.finish_when_empty();
    }

    fn fill(&mut self, now_ms: u64) {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if matches!(slot.state, State::Due { at_ms } if at_ms <= now_ms) {
                slot.state = State::Forking;
                self.actions.push(Action::Fork { slot: index });
            }
        }
    }

    fn watching(&self) -> bool {
        self.rules.timeout_ms > 0 && self.phase == Phase::Running
    }

    fn watch_ms(&self) -> u64 {
        // Looked at often enough that a short timeout is not doubled by the watching.
        WATCH_MS.min(self.rules.timeout_ms / 2).max(1)
    }

    /// Only workers that serve beat. One that is still loading its application is left to it, as
    /// gunicorn does: an import may take longer than any request.
    fn watch(&mut self, now_ms: u64) {
        if !self.watching() {
            return;
        }
        let (timeout_ms, amnesty_ms) = (self.rules.timeout_ms, self.amnesty_ms);
        let filled = self.slots.iter_mut().filter_map(|slot| match &mut slot.state {
            State::Filled(worker) if worker.ready => Some(worker),
            _ => None,
        });
        for worker in filled {
            match worker.aborted_ms {
                None if now_ms.saturating_sub(worker.heartbeat_ms.max(amnesty_ms)) > timeout_ms => {
                    worker.aborted_ms = Some(now_ms);
                    self.actions.push(Action::Log(Note::TimedOut { pid: worker.pid }));
                    send(&mut self.actions, worker, Signal::ABORT);
                }
                Some(at_ms) if now_ms >= at_ms + ABORT_MS && worker.sent != Some(Signal::KILL) => {
                    send(&mut self.actions, worker, Signal::KILL);
                }
                _ => {}
            }
        }
    }

    fn stop(&mut self, exit: Exit, signal: Signal, now_ms: u64) {
        self.phase = Phase::Stopping { exit, deadline_ms: now_ms + self.rules.graceful_ms, expired: false };
        self.actions.push(Action::StopListening);
        for slot in &mut self.slots {
            if matches!(slot.state, State::Due { .. }) {
                slot.state = State::Closed;
            }
        }
        self.send_all(signal);
    }

    /// A quick stop kills workers that are still loading: they have nothing in hand, and nobody in
    /// them listens before the application is there.
    fn send_all(&mut self, signal: Signal) {
        for slot in &mut self.slots {
            if let State::Filled(worker) = &mut slot.state {
                let signal = if signal == Signal::QUIT && !worker.ready { Signal::KILL } else { signal };
                if worker.sent != Some(Signal::KILL) {
                    send(&mut self.actions, worker, signal);
                }
            }
        }
    }

    /// Empties a slot, to be filled again unless the server stops.
    fn vacate(&mut self, index: usize, failed: bool, now_ms: u64) {
        let running = self.phase == Phase::Running;
        let Some(slot) = self.slots.get_mut(index) else { return };
        if !running {
            slot.state = State::Closed;
        } else if failed {
            let delay_ms = back_off_ms(slot.failures);
            slot.failures = slot.failures.saturating_add(1);
            slot.state = State::Due { at_ms: now_ms + delay_ms };
            self.actions.push(Action::Log(Note::BackOff { slot: index, delay_ms }));
        } else {
            slot.failures = 0;
            slot.state = State::Due { at_ms: now_ms };
        }
        self.finish_when_empty();
    }

    fn finish_when_empty(&mut self) {
        if let Phase::Stopping { exit, .. } = self.phase
            && self.slots.iter().all(|slot| matches!(slot.state, State::Closed))
        {
            self.phase = Phase::Finished;
            self.actions.push(Action::Finish(exit));
        }
    }

    fn workers(&self) -> impl Iterator<Item = &Worker> {
        self.slots.iter().filter_map(|slot| match &slot.state {
            State::Filled(worker) => Some(worker),
            _ => None,
        })
    }
}

fn send(actions: &mut Vec<Action>, worker: &mut Worker, signal: Signal) {
    worker.sent = Some(signal);
    actions.push(Action::Kill { pid: worker.pid, signal });
}

/// gunicorn's meaning of a worker's exit code, before any worker has served.
fn boot_failure(ending: Ending) -> Option<Exit> {
    [Exit::WorkerBoot, Exit::AppLoad].into_iter().find(|exit| ending == Ending::Code(exit.code()))
}

fn back_off_ms(failures: u32) -> u64 {
    BACK_OFF_FIRST_MS
        .checked_shl(failures)
        .unwrap_or(BACK_OFF_MAX_MS)
        .clamp(BACK_OFF_FIRST_MS, BACK_OFF_MAX_MS)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    const RULES: Rules = Rules { workers: 2, timeout_ms: 5_000, graceful_ms: 30_000 };

    /// The machine with a world around it that does what it is told.
    #[derive(Clone)]
    struct World {
        slots: Slots,
        now_ms: u64,
        next_pid: i32,
        alive: Vec<Pid>,
        killed: Vec<(Pid, Signal)>,
        notes: Vec<Note>,
        forks: usize,
        stopping: bool,
        finished: Option<Exit>,
        served: bool,
    }

    impl World {
        fn new(rules: Rules) -> Self {
            let mut world = Self {
                slots: Slots::new(rules, 0),
                now_ms: 0,
                next_pid: 100,
                alive: Vec::new(),
                killed: Vec::new(),
                notes: Vec::new(),
                forks: 0,
                stopping: false,
                finished: None,
                served: false,
            };
            world.pass(0);
            world
        }

        fn act(&mut self) {
            loop {
                let actions = self.slots.take_actions();
                if actions.is_empty() {
                    return;
                }
                for action in actions {
                    assert_eq!(self.finished, None, "nothing follows the end: {action:?}");
                    match action {
                        Action::Fork { slot } => {
                            assert!(!self.stopping, "no fork after a stop began");
                            let pid = Pid::from_raw(self.next_pid).unwrap();
                            self.next_pid += 1;
                            self.forks += 1;
                            self.alive.push(pid);
                            self.slots.forked(slot, pid, self.now_ms);
                        }
                        Action::Kill { pid, signal } => {
                            assert!(self.alive.contains(&pid), "{signal:?} to a reaped process");
                            self.killed.push((pid, signal));
                        }
                        Action::StopListening => {
                            assert!(!self.stopping, "a stop begins once");
                            self.stopping = true;
                        }
                        Action::Log(note) => {
                            let boot = matches!(note, Note::CannotBoot(_));
                            assert!(!boot || !self.served, "a worker has served: this is a crash");
                            self.notes.push(note);
                        }
                        Action::Finish(exit) => {
                            assert!(self.alive.is_empty(), "left {:?} behind", self.alive);
                            self.finished = Some(exit);
                        }
                    }
                }
            }
        }

        fn pass(&mut self, ms: u64) {
            self.now_ms += ms;
            self.slots.turn(self.now_ms);
            self.act();
        }

        /// Time passes in the master's own steps while the workers of these slots beat.
        fn live(&mut self, ms: u64, beating: &[usize]) {
            let end = self.now_ms + ms;
            while self.now_ms < end {
                for slot in beating {
                    self.slots.observed(*slot, true, self.now_ms);
                }
                let step = self.slots.next_ms(self.now_ms).map_or(ms, |at| at.saturating_sub(self.now_ms));
                self.pass(step.clamp(1, end - self.now_ms));
            }
        }

        fn ready(&mut self, slot: usize) {
            self.served = true;
            self.slots.observed(slot, true, self.now_ms);
        }

        fn signal(&mut self, signal: Signal) {
            self.slots.signal(signal, self.now_ms);
            self.act();
        }

        fn end(&mut self, slot: usize, ending: Ending) -> Pid {
            let pid = self.slots.pid(slot).unwrap();
            self.alive.retain(|other| *other != pid);
            self.slots.ended(pid, ending, self.now_ms);
            self.act();
            pid
        }

        fn due(&self) -> Option<u64> {
            self.slots.next_ms(self.now_ms).map(|at| at - self.now_ms)
        }

        fn signals_to(&self, pid: Pid) -> Vec<Signal> {
            self.killed.iter().filter(|(to, _)| *to == pid).map(|(_, signal)| *signal).collect()
        }
    }

    #[test]
    fn every_slot_is_filled_at_once() {
        let world = World::new(RULES);
        assert_eq!((world.forks, world.alive.len()), (2, 2));
    }

    /// reliability.md promise 4: a crash costs the request that crashed, and no time.
    #[test]
    fn a_worker_that_served_for_a_while_is_replaced_at_once() {
        for ending in
            [Ending::Signal(9), Ending::Signal(11), Ending::Code(1), Ending::Code(0), Ending::Code(3)]
        {
            let mut world = World::new(RULES);
            world.ready(0);
            world.live(EARLY_MS, &[0]);
            world.end(0, ending);
            assert_eq!(world.due(), Some(0), "{ending:?}");
            world.pass(0);
            assert_eq!((world.forks, world.finished), (3, None), "{ending:?}");
        }
    }

    /// Promise 5: a worker that cannot boot does not spin.
    #[test]
    fn the_wait_doubles_up_to_ten_seconds_and_ends_with_a_good_worker() {
        let mut world = World::new(Rules { workers: 1, timeout_ms: 0, ..RULES });
        for expected in [100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000] {
            world.end(0, Ending::Code(1));
            assert_eq!(world.due(), Some(expected));
            world.pass(expected - 1);
            assert!(world.alive.is_empty());
            world.pass(1);
            assert_eq!(world.alive.len(), 1);
        }
        world.ready(0);
        world.live(EARLY_MS, &[0]);
        world.end(0, Ending::Code(1));
        assert_eq!(world.due(), Some(0));
        world.pass(0);
        world.end(0, Ending::Code(1));
        assert_eq!(world.due(), Some(100), "the count starts again");
        assert_eq!(back_off_ms(u32::MAX), BACK_OFF_MAX_MS);
    }

    /// `max_requests` under load may recycle a worker many times in a second.
    #[test]
    fn a_worker_that_served_and_left_in_order_is_not_held_back() {
        let mut world = World::new(RULES);
        world.ready(0);
        world.end(0, Ending::Code(0));
        assert_eq!(world.due(), Some(0));
        world.pass(0);
        world.end(0, Ending::Code(0));
        assert_eq!(world.due(), Some(100), "the second one never served");
    }

    #[test]
    fn a_refused_fork_is_tried_again_later() {
        let mut slots = Slots::new(Rules { workers: 1, ..RULES }, 0);
        slots.turn(0);
        assert_eq!(slots.take_actions(), [Action::Fork { slot: 0 }]);
        slots.fork_failed(0, 0);
        assert_eq!(slots.next_ms(0), Some(100));
        slots.turn(100);
        assert!(slots.take_actions().contains(&Action::Fork { slot: 0 }));
        // And a stop does not wait for it.
        slots.signal(Signal::TERM, 100);
        slots.fork_failed(0, 100);
        assert!(slots.take_actions().contains(&Action::Finish(Exit::Done)));
    }

    /// A hook that failed: the workers leave at once, and then the server with the code that the hook asked for.
    #[test]
    fn an_abandoned_server_stops_its_workers_and_ends_with_its_own_code() {
        let mut world = World::new(RULES);
        world.ready(0);
        world.ready(1);
        world.slots.abandon(Exit::Code(255), world.now_ms);
        assert!(world.slots.is_ending());
        world.act();
        let alive = world.alive.clone();
        assert!(alive.iter().all(|pid| world.signals_to(*pid) == [Signal::QUIT]));
        world.end(0, Ending::Code(0));
        assert_eq!(world.finished, None);
        world.end(1, Ending::Code(0));
        assert_eq!(world.finished, Some(Exit::Code(255)));

        // Before the first fork there is nobody to wait for.
        let mut slots = Slots::new(Rules { workers: 1, ..RULES }, 0);
        slots.turn(0);
        assert_eq!(slots.take_actions(), [Action::Fork { slot: 0 }]);
        slots.fork_failed(0, 0);
        slots.abandon(Exit::Code(7), 0);
        assert!(slots.take_actions().contains(&Action::Finish(Exit::Code(7))));
    }

    /// Exit codes 3 and 4 of gunicorn, as long as no worker has served.
    #[test]
    fn a_first_boot_that_fails_ends_the_server_with_the_workers_code() {
        for exit in [Exit::WorkerBoot, Exit::AppLoad] {
            let mut world = World::new(RULES);
            world.end(0, Ending::Code(exit.code()));
            assert!(world.notes.contains(&Note::CannotBoot(exit)));
            let other = world.alive[0];
            assert_eq!(world.signals_to(other), [Signal::KILL], "it has nothing in hand");
            assert_eq!(world.finished, None);
            world.end(1, Ending::Signal(9));
            assert_eq!(world.finished, Some(exit));
        }
    }

    /// gunicorn stops the whole server there; a request that calls `sys.exit(3)` is enough.
    #[test]
    fn after_a_worker_served_the_boot_codes_are_crashes() {
        for code in [3, 4] {
            let mut world = World::new(RULES);
            world.ready(1);
            world.end(0, Ending::Code(code));
            assert_eq!((world.finished, world.stopping), (None, false));
            world.pass(100);
            assert_eq!(world.alive.len(), 2);
        }
    }

    #[test]
    fn term_waits_for_the_workers_and_ends_with_zero() {
        let mut world = World::new(RULES);
        world.ready(0);
        let pids = world.alive.clone();
        world.signal(Signal::TERM);
        for pid in pids {
            assert_eq!(world.signals_to(pid), [Signal::TERM]);
        }
        world.end(0, Ending::Code(0));
        assert_eq!(world.finished, None);
        world.signal(Signal::TERM);
        world.end(1, Ending::Code(0));
        assert_eq!(world.finished, Some(Exit::Done));
        assert_eq!(world.killed.len(), 2, "a second TERM changes nothing");
    }

    #[test]
    fn what_does_not_stop_in_graceful_timeout_is_killed() {
        let mut world = World::new(RULES);
        world.ready(0);
        world.ready(1);
        world.signal(Signal::TERM);
        world.end(1, Ending::Code(0));
        world.pass(RULES.graceful_ms - 1);
        let stuck = world.alive[0];
        assert_eq!(world.signals_to(stuck), [Signal::TERM]);
        world.pass(1);
        assert_eq!(world.signals_to(stuck), [Signal::TERM, Signal::KILL]);
        assert!(world.notes.contains(&Note::OutOfTime { workers: 1 }));
        assert_eq!(world.due(), None, "nothing is left but to reap");
        world.end(0, Ending::Signal(9));
        assert_eq!(world.finished, Some(Exit::Done));
    }

    #[test]
    fn quit_during_term_hurries_and_loading_workers_are_killed() {
        for signal in [Signal::INT, Signal::QUIT] {
            let mut world = World::new(RULES);
            world.ready(0);
            let (serving, loading) = (world.alive[0], world.alive[1]);
            world.signal(Signal::TERM);
            world.signal(signal);
            assert_eq!(world.signals_to(serving), [Signal::TERM, Signal::QUIT]);
            assert_eq!(world.signals_to(loading), [Signal::TERM, Signal::KILL]);
            assert_eq!(world.due(), Some(HURRY_MS));
            world.pass(HURRY_MS);
            assert_eq!(world.signals_to(serving), [Signal::TERM, Signal::QUIT, Signal::KILL]);
        }
    }

    #[test]
    fn a_stop_without_workers_ends_at_once() {
        let mut world = World::new(Rules { workers: 1, ..RULES });
        world.end(0, Ending::Code(1));
        world.signal(Signal::INT);
        world.pass(0);
        assert_eq!(world.finished, Some(Exit::Done));
    }

    #[test]
    fn a_stop_between_wish_and_fork_kills_what_was_forked() {
        let mut slots = Slots::new(Rules { workers: 1, ..RULES }, 0);
        slots.turn(0);
        slots.signal(Signal::TERM, 0);
        let pid = Pid::from_raw(7).unwrap();
        slots.forked(0, pid, 0);
        let actions = slots.take_actions();
        assert!(actions.contains(&Action::Kill { pid, signal: Signal::KILL }), "{actions:?}");
        assert!(!actions.contains(&Action::Finish(Exit::Done)));
        slots.ended(pid, Ending::Signal(9), 0);
        assert!(slots.take_actions().contains(&Action::Finish(Exit::Done)));
    }

    #[test]
    fn a_silent_worker_is_aborted_and_a_second_later_killed() {
        let mut world = World::new(RULES);
        world.ready(0);
        world.ready(1);
        let (silent, beating) = (world.alive[0], world.alive[1]);
        world.live(RULES.timeout_ms, &[1]);
        assert_eq!(world.signals_to(silent), []);
        world.live(WATCH_MS, &[1]);
        assert_eq!(world.signals_to(silent), [Signal::ABORT]);
        assert!(world.notes.contains(&Note::TimedOut { pid: silent }));
        world.live(3 * ABORT_MS, &[1]);
        assert_eq!(world.signals_to(silent), [Signal::ABORT, Signal::KILL]);
        assert_eq!(world.signals_to(beating), []);
        world.end(0, Ending::Signal(9));
        let told = Note::Ended { pid: silent, ending: Ending::Signal(9), sent: Some(Signal::KILL) };
        assert!(world.notes.contains(&told), "the log can tell our own kill from the kernel's");
    }

    #[test]
    fn a_slow_import_is_not_a_timeout_and_zero_is_off() {
        let mut world = World::new(RULES);
        world.live(20 * RULES.timeout_ms, &[]);
        assert!(world.killed.is_empty());
        let mut world = World::new(Rules { timeout_ms: 0, ..RULES });
        world.ready(0);
        world.live(100_000, &[]);
        assert!(world.killed.is_empty());
        assert_eq!(world.due(), None, "an idle master sleeps");
    }

    /// A stopped and continued group (a laptop lid, a debugger) must not cost every worker.
    #[test]
    fn a_master_that_stood_still_lets_the_workers_beat_first() {
        let mut world = World::new(RULES);
        world.ready(0);
        world.ready(1);
        world.pass(60_000);
        assert!(world.killed.is_empty());
        world.live(RULES.timeout_ms + WATCH_MS, &[0]);
        assert_eq!(world.killed.len(), 1, "the one that stays silent is found all the same");
    }

    #[test]
    fn signals_without_a_meaning_yet_change_nothing() {
        let mut world = World::new(RULES);
        for signal in [Signal::HUP, Signal::USR2, Signal::TTIN, Signal::TTOU, Signal::WINCH, Signal::CHILD] {
            world.signal(signal);
        }
        assert!(world.killed.is_empty() && !world.stopping);
        assert_eq!(world.notes.iter().filter(|note| matches!(note, Note::NotYet(_))).count(), 4);
        world.signal(Signal::USR1);
        assert!(world.killed.iter().all(|(_, signal)| *signal == Signal::USR1) && world.killed.len() == 2);
    }

    #[test]
    fn children_that_are_not_ours_are_ignored() {
        let mut world = World::new(RULES);
        world.slots.ended(Pid::from_raw(4_000).unwrap(), Ending::Code(3), 0);
        world.act();
        assert!(world.notes.is_empty() && !world.stopping);
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Pass(u64),
        Signal(Signal),
        Ready(usize),
        End(usize, Ending),
    }

    /// Every order of these events to this depth; `World::act` asserts what must never happen, and
    /// after each step the server can still be stopped: politely, or by killing what does not go.
    #[test]
    fn no_order_of_events_breaks_the_rules() {
        let mut steps = vec![
            Step::Pass(100),
            Step::Pass(40_000),
            Step::Signal(Signal::TERM),
            Step::Signal(Signal::INT),
            Step::Signal(Signal::HUP),
        ];
        for slot in 0..2 {
            steps.push(Step::Ready(slot));
            for ending in [Ending::Code(0), Ending::Code(1), Ending::Code(3), Ending::Signal(9)] {
                steps.push(Step::End(slot, ending));
            }
        }
        let mut count = 0;
        walk(&World::new(RULES), &steps, 5, &mut count);
        assert!(count > 100_000, "{count} states");
    }

    fn walk(world: &World, steps: &[Step], depth: usize, count: &mut usize) {
        *count += 1;
        assert_stoppable(world.clone());
        if depth == 0 || world.finished.is_some() {
            return;
        }
        for step in steps {
            let mut next = world.clone();
            match *step {
                Step::Pass(ms) => next.pass(ms),
                Step::Signal(signal) => next.signal(signal),
                Step::Ready(slot) | Step::End(slot, _) if next.slots.pid(slot).is_none() => continue,
                Step::Ready(slot) => next.ready(slot),
                Step::End(slot, ending) => {
                    next.end(slot, ending);
                }
            }
            next.pass(0);
            walk(&next, steps, depth - 1, count);
        }
    }

    fn assert_stoppable(mut world: World) {
        world.signal(Signal::TERM);
        world.pass(0);
        world.pass(RULES.graceful_ms);
        for pid in world.alive.clone() {
            assert!(world.signals_to(pid).contains(&Signal::KILL), "{pid:?} is left alone");
        }
        for slot in 0..RULES.workers {
            if world.slots.pid(slot).is_some() {
                world.end(slot, Ending::Signal(9));
            }
        }
        let exit = world.finished.expect("all workers are gone");
        assert!(exit == Exit::Done || world.notes.contains(&Note::CannotBoot(exit)));
    }
}
