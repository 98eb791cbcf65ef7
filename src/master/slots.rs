//! What the master decides: events in, actions out. It makes no system call and reads no clock, so
//! that its tests can walk through every order of events.
//!
//! A slot is a worker's place: its listeners and its CPU stay when the worker goes, and the next
//! worker of the slot takes them over. Two may overlap: a successor is forked beside the worker that
//! it replaces (reload, `max_requests`), and the old one is told to leave when the new one is ready.

use crate::error::Exit;
use crate::limits::WORKERS_MAX;
use crate::sys::metrics::Departure;
use crate::sys::process::{Ending, Pid};
use crate::sys::shared::Order;
use crate::sys::signal::Signal;

/// Wait before a slot is filled again after its worker could not run: it doubles from here, in ms. No slot is filled
/// more often than that after deaths.
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
/// Time between the steering of new connections away from a slot and the retirement of its worker, in
/// ms: handshakes that have begun with its listener are completed by clients a round trip later.
const SETTLE_MS: u64 = 1_000;
/// Workers that are replaced at the same time: one of this many, and at least one.
const REPLACED_SHARE: usize = 4;

/// What the decisions depend on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Number of slots.
    pub(super) workers: usize,
    /// Silence after which a worker is aborted, in ms; 0 = never.
    pub(super) timeout_ms: u64,
    /// Time from a stop to SIGKILL, in ms.
    pub(super) graceful_ms: u64,
    /// Time from TERM to the stop, in ms.
    pub(super) drain_ms: u64,
    /// Whether the server is in the background: then WINCH is an operator's, not a terminal's.
    pub(super) daemon: bool,
}

/// What the master is to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Fork a worker into the slot and answer with [`Slots::forked`] or [`Slots::fork_failed`].
    Fork { slot: usize },
    /// Send a signal to a worker that was not reaped yet.
    Kill { pid: Pid, signal: Signal },
    /// Tell a worker to finish what it has and leave: the order into its record, then TERM.
    Leave { pid: Pid, order: Order },
    /// Read the settings again and answer with [`Slots::reloaded`], or with nothing when they are bad.
    Reload,
    /// The new generation cannot boot: return to the settings and listeners before it.
    DropGeneration,
    /// Nobody of an earlier generation is left: what only they needed can go.
    ForgetEarlier,
    /// Start another master beside this one and answer with [`Slots::upgrading`], or nothing.
    Upgrade,
    /// Lead new connections to the listeners of the first `slots` slots only.
    Steer { slots: usize },
    /// The last slot has no worker any more: close its listeners.
    CloseSlot { slot: usize },
    /// The server stops in a while, and serves until then: load balancers are to send nobody any more.
    NotReady,
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
    /// The stop begins after `drain_delay`, which is this long.
    Drains { delay_ms: u64 },
    /// A signal came that has no effect now; why.
    Ignored(Signal, &'static str),
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
    /// The first worker of a new generation could not start: the old one goes on.
    GenerationDropped { pid: Pid },
    /// The master started by USR2 has ended, and this one goes on.
    UpgradeEnded { pid: Pid, ending: Ending },
}

/// One worker, as an operator is shown it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Overview {
    pub(super) pid: Pid,
    pub(super) slot: usize,
    pub(super) forked_ms: u64,
    /// It was told to leave.
    pub(super) leaving: bool,
    /// It did not beat for longer than `timeout`.
    pub(super) aborted: bool,
}

/// What a worker's record says.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// It serves, or has served.
    pub(super) ready: bool,
    /// It has answered `max_requests` and wants to be replaced.
    pub(super) spent: bool,
    /// Its only runner is stuck in a request for longer than `timeout`.
    pub(super) stuck: bool,
    /// When it last said that it is alive.
    pub(super) heartbeat_ms: u64,
    /// When a file of the application was changed last, as far as it knows; 0 = never.
    pub(super) changed_ms: u64,
}

/// The worker slots and how far the server's life has come.
#[derive(Clone, Debug)]
pub(super) struct Slots {
    rules: Rules,
    /// Slots that are to have a worker; those above are on their way out.
    target: usize,
    /// Slots to whose listeners new connections are led.
    open: usize,
    slots: Vec<Slot>,
    /// In the order of their forks.
    workers: Vec<Worker>,
    phase: Phase,
    /// The generation that new workers belong to.
    generation: u64,
    generation_last: u64,
    /// The generation and rules to return to, until a worker of the new generation was ready.
    fallback: Option<(u64, Rules)>,
    /// Workers of an earlier generation may be left.
    earlier: bool,
    /// WINCH: no workers until HUP.
    resting: bool,
    /// TERM came, and the stop begins at this time (`drain_delay`).
    stop_ms: Option<u64>,
    /// The master that USR2 started.
    next_master: Option<Pid>,
    /// This master was started by USR2, and the old one is still there.
    junior: bool,
    /// A worker of this run has served: exit codes 3 and 4 are crashes from here on.
    ready_once: bool,
    /// Heartbeats from before this time are not held against a worker: the master was not looking.
    amnesty_ms: u64,
    last_turn_ms: u64,
    /// The last reload was asked for at this time: changes of files before it are in it.
    asked_ms: u64,
    actions: Vec<Action>,
}

#[derive(Clone, Debug)]
struct Slot {
    /// Workers in a row that could not run.
    failures: u32,
    /// Not to be forked into before this time.
    due_ms: u64,
    /// A fork was asked for.
    forking: bool,
    /// For a slot on its way out: when its worker is told to leave.
    retire_ms: u64,
}

#[derive(Clone, Debug)]
struct Worker {
    pid: Pid,
    slot: usize,
    generation: u64,
    forked_ms: u64,
    seen: Seen,
    /// The last signal we sent that ends it.
    sent: Option<Signal>,
    aborted_ms: Option<u64>,
    /// It was told to leave, and is killed at this time.
    leave_ms: Option<u64>,
}

impl Worker {
    fn stays(&self) -> bool {
        self.leave_ms.is_none()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    Stopping { exit: Exit, deadline_ms: u64, expired: bool },
    Finished,
}

impl Slots {
    /// All slots empty and due at once. `junior`: an old master serves beside this one.
    pub(super) fn new(rules: Rules, junior: bool, now_ms: u64) -> Self {
        let mut slots = Self {
            rules,
            target: 0,
            open: rules.workers,
            slots: Vec::new(),
            workers: Vec::new(),
            phase: Phase::Running,
            generation: 0,
            generation_last: 0,
            fallback: None,
            earlier: false,
            resting: false,
            stop_ms: None,
            next_master: None,
            junior,
            ready_once: false,
            amnesty_ms: now_ms,
            last_turn_ms: now_ms,
            asked_ms: now_ms,
            actions: Vec::new(),
        };
        slots.set_target(rules.workers, now_ms);
        slots.actions.clear();
        slots
    }

    /// The actions decided since the last call.
    pub(super) fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// When [`Slots::turn`] has something to do next; `None` when only events can change anything.
    pub(super) fn next_ms(&self, now_ms: u64) -> Option<u64> {
        let due = self.wishes().into_iter().map(|(_, at_ms)| at_ms);
        let running = self.phase == Phase::Running;
        let living = || self.workers.iter().filter(|worker| running && worker.sent != Some(Signal::KILL));
        let aborted = living().filter_map(|worker| Some(worker.aborted_ms? + ABORT_MS));
        let leave = living().filter_map(|worker| worker.leave_ms);
        let watch =
            (self.watching() && self.workers.iter().any(Worker::stays)).then_some(now_ms + self.watch_ms());
        let retire = self.slots.iter().enumerate().skip(self.target).filter_map(|(index, slot)| {
            self.workers.iter().any(|worker| worker.slot == index && worker.stays()).then_some(slot.retire_ms)
        });
        let deadline = match self.phase {
            Phase::Stopping { deadline_ms, expired: false, .. } => Some(deadline_ms),
            _ => None,
        };
        let retire = retire.filter(|_| running);
        let deadline = deadline.or(self.stop_ms.filter(|_| running));
        due.chain(aborted).chain(watch).chain(retire).chain(leave).chain(deadline).min()
    }

    /// Whether every slot has a worker of the wanted generation that serves.
    pub(super) fn is_complete(&self) -> bool {
        let serves = |slot| {
            self.workers.iter().any(|worker| {
                worker.slot == slot
                    && worker.stays()
                    && worker.seen.ready
                    && worker.generation == self.generation
            })
        };
        self.phase == Phase::Running && !self.resting && (0..self.target).all(serves)
    }

    /// How many slots there are, those on their way out included.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.slots.len()
    }

    /// The generation that new workers belong to.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// How many workers there are to be.
    pub(super) fn target(&self) -> usize {
        self.target
    }

    /// Those who work, in the order of their forks, for people to look at.
    pub(super) fn workers(&self) -> impl Iterator<Item = Overview> {
        self.workers.iter().map(|worker| Overview {
            pid: worker.pid,
            slot: worker.slot,
            forked_ms: worker.forked_ms,
            leaving: !worker.stays(),
            aborted: worker.aborted_ms.is_some(),
        })
    }

    /// Whether WINCH has sent the workers away.
    pub(super) fn is_resting(&self) -> bool {
        self.resting
    }

    /// An operator wants so many workers. Their number is that of the settings again after a reload, as with
    /// TTIN and TTOU.
    ///
    /// # Errors
    /// Why that cannot be.
    pub(super) fn scale(&mut self, workers: usize, now_ms: u64) -> Result<(), String> {
        if self.phase != Phase::Running {
            return Err("the server is stopping".to_owned());
        }
        if self.is_sharing() {
            return Err("an upgrade is under way, and the number of workers stays until one master is gone"
                .to_owned());
        }
        if self.resting {
            return Err("the workers were sent away (WINCH); reload to bring them back".to_owned());
        }
        if !(1..=WORKERS_MAX).contains(&workers) {
            return Err(format!("there can be 1 to {WORKERS_MAX} workers, not {workers}"));
        }
        self.set_target(workers, now_ms);
        Ok(())
    }

    /// An operator wants a new worker in the slot: it is forked beside the old one, which leaves when the new
    /// one serves, as with `max_requests`. Gives the process that will go.
    ///
    /// # Errors
    /// Why that cannot be.
    pub(super) fn replace(&mut self, slot: usize) -> Result<Pid, String> {
        if self.phase != Phase::Running {
            return Err("the server is stopping".to_owned());
        }
        let worker = self.workers.iter_mut().rev().find(|worker| worker.slot == slot && worker.stays());
        match worker {
            Some(worker) => {
                worker.seen.spent = true;
                Ok(worker.pid)
            }
            None => Err(format!("there is no worker in slot {slot}")),
        }
    }

    /// Whether another master shares the listeners: before it or after it in an upgrade.
    pub(super) fn is_sharing(&self) -> bool {
        self.junior || self.next_master.is_some()
    }

    /// Whether the generation has not shown yet that it can boot, so that it may be dropped.
    pub(super) fn may_drop(&self) -> bool {
        self.fallback.is_some()
    }

    /// A fork asked for has given this process.
    pub(super) fn forked(&mut self, slot: usize, pid: Pid, now_ms: u64) {
        let mut worker = Worker {
            pid,
            slot,
            generation: self.generation,
            forked_ms: now_ms,
            seen: Seen { heartbeat_ms: now_ms, ..Seen::default() },
            sent: None,
            aborted_ms: None,
            leave_ms: None,
        };
        if self.phase != Phase::Running {
            // The stop was decided between the wish and the fork.
            send(&mut self.actions, &mut worker, Signal::KILL);
        }
        self.workers.push(worker);
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.forking = false;
        }
    }

    /// A fork asked for was refused by the kernel. It is tried again later.
    pub(super) fn fork_failed(&mut self, slot: usize, now_ms: u64) {
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.forking = false;
        }
        self.vacate(slot, true, now_ms, now_ms);
    }

    /// What the record of a worker says.
    pub(super) fn observed(&mut self, pid: Pid, seen: Seen, now_ms: u64) {
        let Some(index) = self.workers.iter().position(|worker| worker.pid == pid) else { return };
        let worker = &mut self.workers[index];
        let comes = seen.ready && !worker.seen.ready;
        worker.seen.ready |= seen.ready;
        worker.seen.spent |= seen.spent;
        worker.seen.stuck = seen.stuck;
        worker.seen.heartbeat_ms = seen.heartbeat_ms;
        // Every worker that has the file says so, some of them late: one reload is enough for all.
        if seen.changed_ms > self.asked_ms
            && self.phase == Phase::Running
            && self.stop_ms.is_none()
            && !self.resting
        {
            self.asked_ms = now_ms.max(seen.changed_ms);
            self.actions.push(Action::Reload);
        }
        let worker = &mut self.workers[index];
        if !comes {
            return;
        }
        self.ready_once = true;
        let (slot, generation) = (worker.slot, worker.generation);
        if !self.workers[index].stays() || self.phase != Phase::Running {
            return;
        }
        if generation == self.generation {
            // It can boot: there is no way back.
            self.fallback = None;
        }
        let before: Vec<Pid> =
            self.workers[..index].iter().filter(|other| other.slot == slot).map(|other| other.pid).collect();
        for pid in before {
            self.retire(pid, now_ms);
        }
        self.open_ready();
        self.forget_earlier();
    }

    /// A child has been reaped. All workers are to be [`observed`](Slots::observed) after that and
    /// before this call, so that a worker that was ready for a moment counts as one. Children that
    /// are not ours are ignored: as process 1 the master inherits them. Returns why a worker has ended.
    pub(super) fn ended(&mut self, pid: Pid, ending: Ending, now_ms: u64) -> Option<Departure> {
        if self.next_master == Some(pid) {
            self.next_master = None;
            self.actions.push(Action::Log(Note::UpgradeEnded { pid, ending }));
            return None;
        }
        let index = self.workers.iter().position(|worker| worker.pid == pid)?;
        let worker = self.workers.remove(index);
        let why = self.departure(&worker, ending);
        self.actions.push(Action::Log(Note::Ended { pid, ending, sent: worker.sent }));
        if self.phase == Phase::Running
            && !self.ready_once
            && let Some(exit) = boot_failure(ending)
        {
            self.actions.push(Action::Log(Note::CannotBoot(exit)));
            self.stop(exit, Signal::QUIT, now_ms);
        }
        let dropped = worker.stays()
            && !worker.seen.ready
            && worker.generation == self.generation
            && self.phase == Phase::Running
            && self.drop_generation(pid, now_ms);
        // A worker that served and left in order, however soon, was asked to (by an operator). One that served and
        // died is replaced at once, or whoever kills workers stops the server; only a crash that follows the fork
        // at once is slowed down. Those that never served are held back longer and longer, or they would spin.
        let in_order = worker.seen.ready && ending == Ending::Code(0);
        let from_ms = if in_order { now_ms } else { worker.forked_ms + BACK_OFF_FIRST_MS };
        self.forget_earlier();
        if worker.stays() {
            self.vacate(worker.slot, !worker.seen.ready && !dropped, from_ms, now_ms);
        } else {
            self.close_slots();
            self.finish_when_empty();
        }
        Some(why)
    }

    /// Why this worker has ended: what we did about it says more than its exit code.
    fn departure(&self, worker: &Worker, ending: Ending) -> Departure {
        match ending {
            _ if self.phase != Phase::Running => Departure::Stop,
            _ if worker.aborted_ms.is_some() => Departure::Timeout,
            _ if worker.stays() && !worker.seen.ready => Departure::Boot,
            Ending::Code(_) if worker.stays() => Departure::Exit,
            Ending::Signal(_) if worker.stays() => Departure::Signal,
            // Its successor is of a later generation, even when it had also answered enough.
            _ if worker.generation != self.generation => Departure::Reload,
            _ if worker.slot >= self.target || self.resting => Departure::Scale,
            _ => Departure::Recycle,
        }
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
        let running = self.phase == Phase::Running;
        match signal {
            // It only wakes the master up.
            Signal::CHILD => return,
            // It comes whenever a terminal is resized.
            Signal::WINCH if !self.rules.daemon => return,
            _ => self.actions.push(Action::Log(Note::Handling(signal))),
        }
        let drains = self.stop_ms.is_some() && running;
        match signal {
            // In an upgrade another master takes what load balancers send.
            Signal::TERM if running && !drains && self.rules.drain_ms > 0 && !self.is_sharing() => {
                self.stop_ms = Some(now_ms + self.rules.drain_ms);
                self.actions.push(Action::NotReady);
                self.actions.push(Action::Log(Note::Drains { delay_ms: self.rules.drain_ms }));
            }
            // The second one ends the delay.
            Signal::TERM if running => self.stop(Exit::Done, Signal::TERM, now_ms),
            Signal::HUP | Signal::USR2 | Signal::TTIN | Signal::TTOU | Signal::WINCH if drains => {
                self.ignore(signal, "the server is about to stop");
            }
            Signal::INT | Signal::QUIT => match self.phase {
                Phase::Running => self.stop(Exit::Done, Signal::QUIT, now_ms),
                Phase::Stopping { exit, deadline_ms, expired } => {
                    let deadline_ms = deadline_ms.min(now_ms + HURRY_MS);
                    self.phase = Phase::Stopping { exit, deadline_ms, expired };
                    self.send_all(Signal::QUIT);
                }
                Phase::Finished => {}
            },
            Signal::USR1 => {
                let pids: Vec<Pid> = self.workers.iter().map(|worker| worker.pid).collect();
                self.actions.extend(pids.into_iter().map(|pid| Action::Kill { pid, signal }));
            }
            Signal::HUP if running => {
                self.asked_ms = now_ms;
                self.actions.push(Action::Reload);
            }
            Signal::USR2 if running => {
                let why = match (self.next_master, self.junior) {
                    (Some(_), _) => "the master started by the last one is still there",
                    (None, true) => "the old master is still there",
                    (None, false) => return self.actions.push(Action::Upgrade),
                };
                self.ignore(signal, why);
            }
            Signal::TTIN | Signal::TTOU if running => {
                if self.is_sharing() {
                    self.ignore(signal, "an upgrade is under way");
                } else if signal == Signal::TTIN && self.target == WORKERS_MAX {
                    self.ignore(signal, "there are as many workers as there can be");
                } else if signal == Signal::TTOU && self.target == 1 {
                    self.ignore(signal, "it is the last worker");
                } else if signal == Signal::TTIN {
                    self.set_target(self.target + 1, now_ms);
                } else {
                    self.set_target(self.target - 1, now_ms);
                }
            }
            Signal::WINCH if running => {
                self.resting = true;
                let pids: Vec<Pid> = self.workers.iter().map(|worker| worker.pid).collect();
                for pid in pids {
                    self.retire(pid, now_ms);
                }
            }
            _ => {}
        }
    }

    fn ignore(&mut self, signal: Signal, why: &'static str) {
        self.actions.push(Action::Log(Note::Ignored(signal, why)));
    }

    /// The settings were read again: workers of a new generation replace the others, slot by slot.
    pub(super) fn reloaded(&mut self, rules: Rules, now_ms: u64) {
        // A generation that has not shown that it can boot is no place to return to.
        let fallback = self.fallback.unwrap_or((self.generation, self.rules));
        self.fallback = Some(fallback);
        self.generation_last += 1;
        self.generation = self.generation_last;
        self.rules = rules;
        self.resting = false;
        self.earlier = true;
        // What still loads of the generation to return to may be all there is: it stays until then.
        let skipped: Vec<Pid> = self
            .workers
            .iter()
            .filter(|worker| worker.generation > fallback.0)
            .map(|worker| worker.pid)
            .collect();
        for pid in skipped {
            self.retire(pid, now_ms);
        }
        for slot in &mut self.slots {
            (slot.failures, slot.due_ms) = (0, now_ms);
        }
        if self.is_sharing() {
            // The other master's workers hold the listeners too: their number stays.
            self.rules.workers = self.target;
        } else {
            self.set_target(rules.workers, now_ms);
        }
        self.forget_earlier();
    }

    /// USR2 has started this master.
    pub(super) fn upgrading(&mut self, pid: Pid) {
        self.next_master = Some(pid);
    }

    /// The old master is gone: this one is alone with the listeners from now on.
    pub(super) fn promoted(&mut self, now_ms: u64) {
        self.junior = false;
        if self.phase == Phase::Running {
            self.set_target(self.rules.workers, now_ms);
        }
    }

    /// Keeps as many slots as an old master has, until it is gone.
    pub(super) fn keep_slots(&mut self, slots: usize, now_ms: u64) {
        if slots > self.target {
            self.set_target(slots, now_ms);
            self.open = self.target;
            self.actions.clear();
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
            Phase::Running if self.stop_ms.is_some_and(|at_ms| now_ms >= at_ms) => {
                self.stop(Exit::Done, Signal::TERM, now_ms);
            }
            Phase::Running => {
                self.retire_slots(now_ms);
                self.fill(now_ms);
                self.watch(now_ms);
            }
            Phase::Stopping { exit, deadline_ms, expired: false } if now_ms >= deadline_ms => {
                self.phase = Phase::Stopping { exit, deadline_ms, expired: true };
                let workers = self.workers.iter().filter(|worker| worker.sent != Some(Signal::KILL)).count();
                if workers > 0 {
                    self.actions.push(Action::Log(Note::OutOfTime { workers }));
                }
                self.send_all(Signal::KILL);
            }
            Phase::Stopping { .. } | Phase::Finished => {}
        }
        self.finish_when_empty();
    }

    /// The slots that are to be forked into, and when.
    fn wishes(&self) -> Vec<(usize, u64)> {
        if self.phase != Phase::Running || self.resting {
            return Vec::new();
        }
        let at_once = (self.target / REPLACED_SHARE).max(1);
        let staying = |slot| self.workers.iter().filter(move |worker| worker.slot == slot && worker.stays());
        // Successors that load, and workers that leave: the capacity that is in motion.
        let mut loading = (0..self.target)
            .filter(|slot| {
                let count = staying(*slot).count();
                count > 1 || (count == 1 && self.slots[*slot].forking)
            })
            .count();
        let leaving = self.workers.iter().filter(|worker| !worker.stays()).count();
        let mut wishes = Vec::new();
        for (index, slot) in self.slots.iter().enumerate().take(self.target) {
            if slot.forking {
                continue;
            }
            let mut workers = staying(index);
            match (workers.next(), workers.next()) {
                (None, _) => wishes.push((index, slot.due_ms)),
                (Some(worker), None) => {
                    let outdated = worker.generation != self.generation;
                    if loading < at_once && (outdated || (worker.seen.spent && loading + leaving < at_once)) {
                        loading += 1;
                        wishes.push((index, slot.due_ms));
                    }
                }
                _ => {}
            }
        }
        wishes
    }

    fn fill(&mut self, now_ms: u64) {
        for (slot, at_ms) in self.wishes() {
            if at_ms <= now_ms {
                self.slots[slot].forking = true;
                self.actions.push(Action::Fork { slot });
            }
        }
    }

    /// Tells a worker to leave for another one, or for none. Whoever is told already is not told again.
    fn retire(&mut self, pid: Pid, now_ms: u64) {
        let leave_ms = now_ms + self.rules.graceful_ms;
        if let Some(worker) = self.workers.iter_mut().find(|worker| worker.pid == pid && worker.stays()) {
            worker.leave_ms = Some(leave_ms);
            if worker.sent.is_none() {
                worker.sent = Some(Signal::TERM);
                self.actions.push(Action::Leave { pid, order: Order::Retire });
            }
        }
    }

    fn set_target(&mut self, target: usize, now_ms: u64) {
        let before = self.target;
        self.target = target;
        while self.slots.len() < target {
            self.slots.push(Slot { failures: 0, due_ms: now_ms, forking: false, retire_ms: 0 });
        }
        // Of a slot that was on its way out.
        for slot in self.slots.iter_mut().take(target).skip(before) {
            slot.due_ms = now_ms;
        }
        for slot in self.slots.iter_mut().take(before).skip(target) {
            slot.retire_ms = now_ms + SETTLE_MS;
        }
        if self.open > target {
            self.open = target;
            self.actions.push(Action::Steer { slots: target });
        }
        self.open_ready();
        self.close_slots();
    }

    /// Leads connections to the slots added last once somebody serves there.
    fn open_ready(&mut self) {
        let before = self.open;
        while self.open < self.target
            && self
                .workers
                .iter()
                .any(|worker| worker.slot == self.open && worker.seen.ready && worker.stays())
        {
            self.open += 1;
        }
        if self.open != before {
            self.actions.push(Action::Steer { slots: self.open });
        }
    }

    fn retire_slots(&mut self, now_ms: u64) {
        let due: Vec<Pid> = self
            .workers
            .iter()
            .filter(|worker| worker.slot >= self.target && self.slots[worker.slot].retire_ms <= now_ms)
            .map(|worker| worker.pid)
            .collect();
        for pid in due {
            self.retire(pid, now_ms);
        }
    }

    /// Slots at the end that nobody needs any more.
    fn close_slots(&mut self) {
        while self.slots.len() > self.target
            && let Some(last) = self.slots.last()
        {
            let slot = self.slots.len() - 1;
            if last.forking || self.workers.iter().any(|worker| worker.slot == slot) {
                return;
            }
            self.slots.pop();
            self.actions.push(Action::CloseSlot { slot });
        }
    }

    /// A worker of the new generation could not start. Returns whether there was a generation to return
    /// to; its workers never stopped serving.
    fn drop_generation(&mut self, pid: Pid, now_ms: u64) -> bool {
        let Some((generation, rules)) = self.fallback.take() else { return false };
        self.actions.push(Action::Log(Note::GenerationDropped { pid }));
        self.actions.push(Action::DropGeneration);
        let dropped: Vec<Pid> = self
            .workers
            .iter()
            .filter(|worker| worker.generation > generation)
            .map(|worker| worker.pid)
            .collect();
        (self.generation, self.rules) = (generation, rules);
        for pid in dropped {
            self.retire(pid, now_ms);
        }
        if !self.is_sharing() {
            self.set_target(rules.workers, now_ms);
        }
        true
    }

    fn forget_earlier(&mut self) {
        if self.earlier
            && self.fallback.is_none()
            && self.workers.iter().all(|worker| worker.generation == self.generation)
        {
            self.earlier = false;
            self.actions.push(Action::ForgetEarlier);
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
    /// gunicorn does: an import may take longer than any request. One that leaves has its own deadline.
    fn watch(&mut self, now_ms: u64) {
        let (watching, timeout_ms, amnesty_ms) = (self.watching(), self.rules.timeout_ms, self.amnesty_ms);
        for worker in self.workers.iter_mut().filter(|worker| worker.sent != Some(Signal::KILL)) {
            let silent_ms = now_ms.saturating_sub(worker.seen.heartbeat_ms.max(amnesty_ms));
            let watched = watching && worker.seen.ready && worker.stays();
            match (worker.aborted_ms, worker.leave_ms) {
                (Some(at_ms), _) if now_ms >= at_ms + ABORT_MS => {
                    send(&mut self.actions, worker, Signal::KILL);
                }
                (None, Some(at_ms)) if now_ms >= at_ms => {
                    self.actions.push(Action::Log(Note::OutOfTime { workers: 1 }));
                    send(&mut self.actions, worker, Signal::KILL);
                }
                (None, None) if watched && (silent_ms > timeout_ms || worker.seen.stuck) => {
                    worker.aborted_ms = Some(now_ms);
                    self.actions.push(Action::Log(Note::TimedOut { pid: worker.pid }));
                    send(&mut self.actions, worker, Signal::ABORT);
                }
                _ => {}
            }
        }
    }

    fn stop(&mut self, exit: Exit, signal: Signal, now_ms: u64) {
        self.phase = Phase::Stopping { exit, deadline_ms: now_ms + self.rules.graceful_ms, expired: false };
        self.actions.push(Action::StopListening);
        self.send_all(signal);
    }

    /// A quick stop kills workers that are still loading: they have nothing in hand, and nobody in
    /// them listens before the application is there.
    fn send_all(&mut self, signal: Signal) {
        let order = if self.is_sharing() { Order::Leave } else { Order::Close };
        for worker in &mut self.workers {
            if worker.sent == Some(Signal::KILL) {
                continue;
            }
            if signal == Signal::TERM {
                worker.sent = Some(signal);
                self.actions.push(Action::Leave { pid: worker.pid, order });
            } else {
                let loading = signal == Signal::QUIT && !worker.seen.ready;
                send(&mut self.actions, worker, if loading { Signal::KILL } else { signal });
            }
        }
    }

    /// A worker of the slot is gone: the slot is filled again, unless somebody is there or the server
    /// stops.
    fn vacate(&mut self, index: usize, failed: bool, from_ms: u64, now_ms: u64) {
        if self.phase == Phase::Running {
            if index < self.target
                && let Some(slot) = self.slots.get_mut(index)
            {
                if failed {
                    let delay_ms = back_off_ms(slot.failures);
                    slot.failures = slot.failures.saturating_add(1);
                    slot.due_ms = now_ms + delay_ms;
                    self.actions.push(Action::Log(Note::BackOff { slot: index, delay_ms }));
                } else {
                    slot.failures = 0;
                    slot.due_ms = now_ms.max(from_ms);
                }
            }
            self.close_slots();
        }
        self.finish_when_empty();
    }

    fn finish_when_empty(&mut self) {
        if let Phase::Stopping { exit, .. } = self.phase
            && self.workers.is_empty()
            && self.slots.iter().all(|slot| !slot.forking)
        {
            self.phase = Phase::Finished;
            self.actions.push(Action::Finish(exit));
        }
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
    // A shift drops the bits that leave the number, so the power is bounded, too.
    (BACK_OFF_FIRST_MS << failures.min(BACK_OFF_MAX_MS.ilog2())).min(BACK_OFF_MAX_MS)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    const RULES: Rules =
        Rules { workers: 2, timeout_ms: 5_000, graceful_ms: 30_000, drain_ms: 0, daemon: false };

    impl Slots {
        /// The newest process of a slot.
        fn pid(&self, slot: usize) -> Option<Pid> {
            self.workers.iter().rev().find(|worker| worker.slot == slot).map(|worker| worker.pid)
        }
    }

    /// The machine with a world around it that does what it is told.
    #[derive(Clone, Debug)]
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
        /// What happened to generations, listeners and masters, in order.
        asked: Vec<Action>,
        /// Why workers ended.
        departures: Vec<Departure>,
    }

    impl World {
        fn new(rules: Rules) -> Self {
            let mut world = Self {
                slots: Slots::new(rules, false, 0),
                now_ms: 0,
                next_pid: 100,
                alive: Vec::new(),
                killed: Vec::new(),
                notes: Vec::new(),
                forks: 0,
                stopping: false,
                finished: None,
                served: false,
                asked: Vec::new(),
                departures: Vec::new(),
            };
            world.pass(0);
            world
        }

        /// Two workers that serve.
        fn serving() -> Self {
            let mut world = Self::new(RULES);
            world.ready(0);
            world.ready(1);
            world.live(1_000, &[0, 1]);
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
                        Action::Leave { pid, .. } => {
                            assert!(self.alive.contains(&pid), "a reaped process is told to leave");
                            self.killed.push((pid, Signal::TERM));
                            self.asked.push(action);
                        }
                        Action::CloseSlot { slot } => {
                            assert!(slot >= self.slots.len(), "slots close from the end");
                            assert!(self.slots.pid(slot).is_none(), "somebody is left in a closed slot");
                            self.asked.push(action);
                        }
                        Action::Reload
                        | Action::DropGeneration
                        | Action::ForgetEarlier
                        | Action::Upgrade
                        | Action::NotReady
                        | Action::Steer { .. } => self.asked.push(action),
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
                    self.see(*slot, false);
                }
                let step = self.slots.next_ms(self.now_ms).map_or(ms, |at| at.saturating_sub(self.now_ms));
                self.pass(step.clamp(1, end - self.now_ms));
            }
        }

        /// Time passes while everybody who serves beats.
        fn carry_on(&mut self, ms: u64) {
            let end = self.now_ms + ms;
            while self.now_ms < end {
                let now_ms = self.now_ms;
                for worker in &mut self.slots.workers {
                    worker.seen.heartbeat_ms = now_ms;
                }
                let step = self.slots.next_ms(now_ms).map_or(ms, |at| at.saturating_sub(now_ms));
                self.pass(step.clamp(1, end - now_ms));
            }
        }

        /// The newest worker of the slot beats.
        fn see(&mut self, slot: usize, spent: bool) {
            let pid = self.slots.pid(slot).unwrap();
            self.slots.observed(
                pid,
                Seen { ready: true, spent, stuck: false, heartbeat_ms: self.now_ms, changed_ms: 0 },
                self.now_ms,
            );
        }

        fn ready(&mut self, slot: usize) {
            self.served = true;
            self.see(slot, false);
            self.act();
        }

        /// The settings were read, and are good.
        fn reload(&mut self, workers: usize) {
            self.signal(Signal::HUP);
            self.slots.reloaded(Rules { workers, ..RULES }, self.now_ms);
            self.pass(0);
        }

        fn signal(&mut self, signal: Signal) {
            self.slots.signal(signal, self.now_ms);
            self.act();
        }

        fn end(&mut self, slot: usize, ending: Ending) -> Pid {
            let pid = self.slots.pid(slot).unwrap();
            self.end_pid(pid, ending);
            pid
        }

        fn end_pid(&mut self, pid: Pid, ending: Ending) {
            self.alive.retain(|other| *other != pid);
            let why = self.slots.ended(pid, ending, self.now_ms);
            self.departures.extend(why);
            self.act();
        }

        fn all_signals_to(&self, pids: &[Pid]) -> Vec<Vec<Signal>> {
            pids.iter().map(|pid| self.signals_to(*pid)).collect()
        }

        fn due(&self) -> Option<u64> {
            self.slots.next_ms(self.now_ms).map(|at| at - self.now_ms)
        }

        fn signals_to(&self, pid: Pid) -> Vec<Signal> {
            self.killed.iter().filter(|(to, _)| *to == pid).map(|(_, signal)| *signal).collect()
        }
    }

    /// Each worker notices by itself, and not at the same time.
    #[test]
    fn a_changed_file_is_one_reload_whoever_tells_of_it_and_a_later_change_is_another() {
        let mut world = World::serving();
        let started_ms = world.now_ms;
        let old = [world.slots.pid(0).unwrap(), world.slots.pid(1).unwrap()];
        let tell = |world: &mut World, pid: Pid, changed_ms: u64| {
            let seen = Seen { ready: true, heartbeat_ms: world.now_ms, changed_ms, ..Seen::default() };
            world.slots.observed(pid, seen, world.now_ms);
            world.act();
            world.asked.iter().filter(|action| **action == Action::Reload).count()
        };
        world.carry_on(10);
        assert_eq!(tell(&mut world, old[0], started_ms + 5), 1);
        assert_eq!(tell(&mut world, old[0], started_ms + 5), 1, "the record still says so");
        world.slots.reloaded(RULES, world.now_ms);
        world.pass(0);
        world.carry_on(100);
        assert_eq!(tell(&mut world, old[1], started_ms + 5), 1, "the other one had the same file");
        // The new generation loads the file while it is written once more.
        assert_eq!(tell(&mut world, old[1], started_ms + 50), 2);
        world.slots.reloaded(RULES, world.now_ms);
        world.pass(0);
        // By hand, and the workers tell of the change afterwards.
        world.carry_on(100);
        let changed_ms = world.now_ms;
        world.signal(Signal::HUP);
        assert_eq!(tell(&mut world, old[1], changed_ms), 3);
        world.signal(Signal::TERM);
        assert_eq!(tell(&mut world, old[1], changed_ms + 10_000), 3, "the server stops");
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
            world.live(1_000, &[0]);
            world.end(0, ending);
            assert_eq!(world.due(), Some(0), "{ending:?}");
            world.pass(0);
            assert_eq!((world.forks, world.finished), (3, None), "{ending:?}");
        }
    }

    /// Killed again and again soon after it began to serve (an impatient operator, the kernel's memory killer): the
    /// wait does not grow, or the server would be gone for as long as ten seconds at a time.
    #[test]
    fn a_worker_that_served_is_replaced_at_once_however_soon_and_often_it_is_killed() {
        let mut world = World::new(Rules { workers: 1, ..RULES });
        for _ in 0..10 {
            world.ready(0);
            world.pass(200);
            world.end(0, Ending::Signal(9));
            assert_eq!(world.due(), Some(0));
            world.pass(0);
        }
        world.ready(0);
        world.end(0, Ending::Signal(11));
        assert_eq!(world.due(), Some(BACK_OFF_FIRST_MS), "it crashed with its first request");
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
        world.live(1_000, &[0]);
        world.end(0, Ending::Code(1));
        assert_eq!(world.due(), Some(0));
        world.pass(0);
        world.end(0, Ending::Code(1));
        assert_eq!(world.due(), Some(100), "the count starts again");
        // 62 doublings leave nothing of the number but zeroes.
        for failures in [7, 62, 63, 64, u32::MAX] {
            assert_eq!(back_off_ms(failures), BACK_OFF_MAX_MS, "{failures}");
        }
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
        let mut slots = Slots::new(Rules { workers: 1, ..RULES }, false, 0);
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
        let mut slots = Slots::new(Rules { workers: 1, ..RULES }, false, 0);
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

    /// Load balancers take a while to notice that nobody should be sent here any more.
    #[test]
    fn term_with_a_delay_serves_on_replaces_the_dead_and_then_stops() {
        let mut world = World::serving();
        world.slots.rules.drain_ms = 10_000;
        let pid = world.slots.pid(1).unwrap();
        world.signal(Signal::TERM);
        assert!(!world.stopping && world.asked.contains(&Action::NotReady));
        assert_eq!(world.signals_to(pid), []);
        world.end(0, Ending::Signal(9));
        world.pass(1);
        world.ready(0);
        for signal in [Signal::HUP, Signal::USR2, Signal::TTIN, Signal::TTOU] {
            let before = world.asked.len();
            world.signal(signal);
            assert_eq!(world.asked.len(), before, "{signal:?} changes a server that is about to stop");
        }
        world.carry_on(9_000);
        assert!(!world.stopping);
        world.carry_on(1_000);
        assert!(world.stopping);
        assert_eq!(world.signals_to(pid), [Signal::TERM]);
        // graceful_timeout counts from here.
        world.pass(29_000);
        assert_eq!(world.signals_to(pid), [Signal::TERM]);
        world.end(0, Ending::Code(0));
        world.end(1, Ending::Code(0));
        assert_eq!(world.finished, Some(Exit::Done));
    }

    #[test]
    fn a_second_term_ends_the_delay_and_int_and_quit_know_none() {
        for signals in [&[Signal::TERM, Signal::TERM][..], &[Signal::TERM, Signal::INT], &[Signal::QUIT]] {
            let mut world = World::serving();
            world.slots.rules.drain_ms = 10_000;
            for signal in signals {
                assert!(!world.stopping);
                world.signal(*signal);
            }
            assert!(world.stopping, "{signals:?}");
        }
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
        let mut slots = Slots::new(Rules { workers: 1, ..RULES }, false, 0);
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

    /// Its I/O thread beats, and its only runner is stuck: as gunicorn's sync worker, it is ended.
    #[test]
    fn a_stuck_worker_is_aborted_and_killed_though_it_beats() {
        for (timeout_ms, wanted) in [(5_000, vec![Signal::ABORT, Signal::KILL]), (0, vec![])] {
            let mut world = World::serving();
            world.slots.rules.timeout_ms = timeout_ms;
            let pid = world.slots.pid(0).unwrap();
            for _ in 0..3 {
                let seen = Seen { ready: true, stuck: true, heartbeat_ms: world.now_ms, ..Seen::default() };
                world.slots.observed(pid, seen, world.now_ms);
                world.pass(ABORT_MS);
            }
            assert_eq!(world.signals_to(pid), wanted);
        }
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
    fn usr1_is_passed_on_and_a_resized_terminal_is_nobodys_business() {
        let mut world = World::new(RULES);
        world.signal(Signal::WINCH);
        world.signal(Signal::CHILD);
        assert!(world.killed.is_empty() && !world.stopping && world.notes.is_empty());
        world.signal(Signal::USR1);
        assert!(world.killed.iter().all(|(_, signal)| *signal == Signal::USR1) && world.killed.len() == 2);
    }

    // ---- reload ------------------------------------------------------------------------------

    /// reliability.md promise 3: the old worker is told to leave when the new one serves, not before.
    #[test]
    fn a_reload_replaces_slot_by_slot_and_only_by_workers_that_serve() {
        let mut world = World::serving();
        let old = world.alive.clone();
        world.reload(2);
        assert_eq!((world.forks, world.alive.len()), (3, 3), "one successor at a time for two slots");
        world.carry_on(60_000);
        assert!(world.killed.is_empty(), "a slow import costs nobody anything");
        world.ready(0);
        assert_eq!(world.all_signals_to(&old), [vec![Signal::TERM], vec![]]);
        world.pass(0);
        assert_eq!(world.forks, 4, "the next slot does not wait until the old worker has left");
        world.ready(1);
        assert_eq!(world.all_signals_to(&old), [vec![Signal::TERM], vec![Signal::TERM]]);
        assert!(world.slots.is_complete());
        assert!(!world.asked.contains(&Action::ForgetEarlier), "its workers are still leaving");
        for pid in old {
            world.end_pid(pid, Ending::Code(0));
        }
        assert!(world.asked.contains(&Action::ForgetEarlier));
        world.pass(0);
        assert_eq!((world.forks, world.alive.len()), (4, 2), "nobody takes the place of who was replaced");
    }

    #[test]
    fn a_quarter_of_the_workers_is_replaced_at_once() {
        let rules = Rules { workers: 8, ..RULES };
        let mut world = World::new(rules);
        for slot in 0..8 {
            world.ready(slot);
        }
        world.reload(8);
        assert_eq!(world.forks, 10);
        world.ready(0);
        world.pass(0);
        assert_eq!(world.forks, 11);
    }

    /// Promise 2: a reload that cannot work changes nothing, and the next one works.
    #[test]
    fn a_generation_that_cannot_boot_is_dropped_and_the_old_one_serves_on() {
        for ending in [Ending::Code(3), Ending::Code(4), Ending::Code(1), Ending::Signal(11)] {
            let mut world = World::serving();
            let old = world.alive.clone();
            world.reload(2);
            let new = world.end(0, ending);
            assert!(world.notes.contains(&Note::GenerationDropped { pid: new }), "{ending:?}");
            assert!(world.asked.contains(&Action::DropGeneration));
            world.live(60_000, &[0, 1]);
            assert_eq!((world.forks, &world.alive), (3, &old), "no further try, nobody told to leave");
            assert!(world.slots.is_complete());
            world.reload(2);
            world.ready(0);
            world.pass(0);
            world.ready(1);
            assert_eq!(world.all_signals_to(&old), [vec![Signal::TERM], vec![Signal::TERM]]);
        }
    }

    /// After one worker of the new code has served, another one's crash is a crash.
    #[test]
    fn a_generation_that_has_served_is_not_dropped() {
        let mut world = World::serving();
        world.reload(2);
        world.ready(0);
        world.pass(0);
        world.end(1, Ending::Code(3));
        assert!(!world.asked.contains(&Action::DropGeneration));
        assert_eq!(world.due(), Some(100), "tried again, with a wait; the old one still serves the slot");
        world.pass(100);
        assert_eq!(world.alive.len(), 4);
    }

    /// The second worker of a server that has just been started may load for longer than the first.
    #[test]
    fn a_reload_that_fails_costs_no_worker_that_still_loads() {
        let mut world = World::new(RULES);
        world.ready(0);
        let old = world.alive.clone();
        world.reload(2);
        world.end(0, Ending::Code(3));
        assert_eq!((&world.alive, world.killed.len()), (&old, 0));
        world.ready(1);
        assert!(world.slots.is_complete());
        // And a first generation that hangs while it loads does not keep the next one out.
        let mut world = World::new(RULES);
        world.reload(2);
        world.ready(0);
        world.pass(0);
        world.ready(1);
        assert!(world.slots.is_complete());
    }

    #[test]
    fn a_second_reload_gives_up_the_first_which_is_still_loading() {
        let mut world = World::serving();
        let old = world.alive.clone();
        world.reload(2);
        let first = world.slots.pid(0).unwrap();
        world.reload(2);
        assert_eq!(world.signals_to(first), [Signal::TERM]);
        let second = world.slots.pid(0).unwrap();
        assert_ne!(first, second);
        world.end_pid(first, Ending::Code(3));
        assert!(!world.asked.contains(&Action::DropGeneration), "nobody waits for it any more");
        world.end_pid(second, Ending::Code(3));
        assert!(world.asked.contains(&Action::DropGeneration), "back to the one that serves");
        world.live(60_000, &[0, 1]);
        assert_eq!(world.alive, old);
    }

    #[test]
    fn a_worker_that_does_not_leave_is_killed_when_its_time_is_over() {
        let mut world = World::serving();
        let old = world.alive[0];
        world.reload(2);
        world.ready(0);
        world.live(RULES.graceful_ms - 1, &[0, 1]);
        assert_eq!(world.signals_to(old), [Signal::TERM]);
        world.live(1_000, &[0, 1]);
        assert_eq!(world.signals_to(old), [Signal::TERM, Signal::KILL]);
    }

    // ---- max_requests ------------------------------------------------------------------------

    /// The metrics tell why workers were replaced; a deploy must not look like a crash.
    #[test]
    fn every_end_of_a_worker_has_its_reason() {
        let mut world = World::serving();
        world.end(0, Ending::Signal(libc::SIGSEGV));
        world.pass(0);
        world.end(0, Ending::Code(1));
        world.pass(BACK_OFF_FIRST_MS);
        world.ready(0);
        world.end(1, Ending::Code(0));
        world.pass(0);
        world.ready(1);
        assert_eq!(world.departures, [Departure::Signal, Departure::Boot, Departure::Exit]);
        world.departures.clear();
        // Silent.
        world.live(RULES.timeout_ms + WATCH_MS + 1, &[1]);
        world.end(0, Ending::Signal(libc::SIGABRT));
        world.pass(BACK_OFF_FIRST_MS);
        world.ready(0);
        // Spent, then fewer, then a new generation.
        let old = world.slots.pid(0).unwrap();
        world.see(0, true);
        world.pass(0);
        world.ready(0);
        world.end_pid(old, Ending::Code(0));
        world.signal(Signal::TTOU);
        world.carry_on(SETTLE_MS);
        world.end(1, Ending::Code(0));
        let old = world.slots.pid(0).unwrap();
        world.reload(1);
        world.ready(0);
        world.end_pid(old, Ending::Code(0));
        world.signal(Signal::TERM);
        world.end(0, Ending::Code(0));
        assert_eq!(
            world.departures,
            [Departure::Timeout, Departure::Recycle, Departure::Scale, Departure::Reload, Departure::Stop]
        );
    }

    /// Promise 6: the replacement is there before the old worker leaves, and not all go together.
    #[test]
    fn spent_workers_are_replaced_one_after_the_other() {
        let mut world = World::serving();
        let old = world.alive.clone();
        world.see(0, true);
        world.see(1, true);
        world.pass(0);
        assert_eq!((world.forks, world.killed.len()), (3, 0));
        world.ready(0);
        world.pass(0);
        assert_eq!(world.all_signals_to(&old), [vec![Signal::TERM], vec![]]);
        assert_eq!(world.forks, 3, "the first one has not left yet");
        world.end_pid(old[0], Ending::Code(0));
        world.pass(0);
        assert_eq!(world.forks, 4);
        world.ready(1);
        assert_eq!(world.signals_to(old[1]), [Signal::TERM]);
    }

    #[test]
    fn a_replacement_that_cannot_boot_is_tried_again_while_the_spent_worker_serves() {
        let mut world = World::serving();
        let old = world.alive.clone();
        world.see(0, true);
        world.pass(0);
        world.end(0, Ending::Code(3));
        assert_eq!((world.due(), &world.alive), (Some(100), &old));
        world.pass(100);
        world.end(0, Ending::Code(3));
        assert_eq!(world.due(), Some(200));
        assert!(world.killed.is_empty() && !world.stopping);
    }

    // ---- scale -------------------------------------------------------------------------------

    #[test]
    fn ttin_adds_a_slot_that_gets_clients_when_it_serves() {
        let mut world = World::serving();
        world.signal(Signal::TTIN);
        world.pass(0);
        assert_eq!((world.forks, world.slots.target()), (3, 3));
        assert_eq!(world.asked, []);
        world.ready(2);
        assert_eq!(world.asked, [Action::Steer { slots: 3 }]);
    }

    #[test]
    fn ttou_leads_clients_away_before_the_worker_leaves_and_its_listener_closes_last() {
        let mut world = World::serving();
        let last = world.alive[1];
        world.signal(Signal::TTOU);
        assert_eq!(world.asked, [Action::Steer { slots: 1 }]);
        world.live(SETTLE_MS - 1, &[0, 1]);
        assert!(world.killed.is_empty(), "it serves those that are on their way to it");
        world.live(1, &[0, 1]);
        world.pass(0);
        assert_eq!(world.signals_to(last), [Signal::TERM]);
        world.end_pid(last, Ending::Code(0));
        assert_eq!(world.asked.last(), Some(&Action::CloseSlot { slot: 1 }));
        world.pass(0);
        assert_eq!((world.forks, world.slots.len()), (2, 1));
        // The floor.
        world.signal(Signal::TTOU);
        assert!(world.notes.iter().any(|note| matches!(note, Note::Ignored(Signal::TTOU, _))));
        assert_eq!(world.slots.target(), 1);
    }

    #[test]
    fn ttin_right_after_ttou_takes_it_back() {
        let mut world = World::serving();
        world.signal(Signal::TTOU);
        world.signal(Signal::TTIN);
        world.live(10 * SETTLE_MS, &[0, 1]);
        assert!(world.killed.is_empty());
        assert_eq!(world.asked, [Action::Steer { slots: 1 }, Action::Steer { slots: 2 }]);
    }

    #[test]
    fn a_reload_returns_to_the_number_in_the_settings() {
        let mut world = World::serving();
        world.signal(Signal::TTIN);
        world.pass(0);
        world.ready(2);
        world.reload(1);
        assert_eq!(world.slots.target(), 1);
        world.ready(0);
        world.live(SETTLE_MS + 1, &[0]);
        for slot in [2, 1] {
            world.end(slot, Ending::Code(0));
        }
        assert_eq!(world.slots.len(), 1);
    }

    // ---- upgrade -----------------------------------------------------------------------------

    #[test]
    fn usr2_starts_one_master_at_a_time() {
        let mut world = World::serving();
        let next = Pid::from_raw(9_000).unwrap();
        world.signal(Signal::USR2);
        world.slots.upgrading(next);
        world.signal(Signal::USR2);
        assert_eq!(world.asked, [Action::Upgrade]);
        assert!(world.slots.is_sharing());
        // Slots do not change while two masters share their listeners.
        world.signal(Signal::TTOU);
        assert_eq!(world.slots.target(), 2);
        // A broken new binary leaves the old one alone.
        let ending = Ending::Code(3);
        world.slots.ended(next, ending, world.now_ms);
        world.act();
        assert!(world.notes.contains(&Note::UpgradeEnded { pid: next, ending }));
        assert!(world.killed.is_empty() && !world.stopping && !world.slots.is_sharing());
        world.signal(Signal::USR2);
        assert_eq!(world.asked, [Action::Upgrade, Action::Upgrade]);
    }

    #[test]
    fn a_stop_beside_another_master_leaves_the_listeners_open() {
        for sharing in [false, true] {
            let mut world = World::serving();
            if sharing {
                world.slots.upgrading(Pid::from_raw(9_000).unwrap());
            }
            world.signal(Signal::TERM);
            let order = if sharing { Order::Leave } else { Order::Close };
            assert!(
                world
                    .asked
                    .iter()
                    .all(|asked| matches!(asked, Action::Leave { order: given, .. } if *given == order))
            );
            assert_eq!(world.asked.len(), 2);
        }
    }

    #[test]
    fn winch_rests_a_daemon_until_hup() {
        let mut world = World::new(Rules { daemon: true, ..RULES });
        world.ready(0);
        world.ready(1);
        world.signal(Signal::WINCH);
        for slot in [0, 1] {
            assert_eq!(world.end(slot, Ending::Code(0)), Pid::from_raw(100 + slot as i32).unwrap());
        }
        world.live(10_000, &[]);
        assert_eq!((world.alive.len(), world.forks, world.stopping), (0, 2, false));
        world.reload(2);
        assert_eq!(world.alive.len(), 2);
    }

    #[test]
    fn a_new_master_has_the_slots_of_the_old_one_until_it_is_alone() {
        let mut world = World::new(Rules { workers: 1, ..RULES });
        world.slots = Slots::new(Rules { workers: 1, ..RULES }, true, 0);
        world.slots.keep_slots(3, 0);
        world.alive.clear();
        world.pass(0);
        assert_eq!(world.alive.len(), 3);
        for slot in 0..3 {
            world.ready(slot);
        }
        world.signal(Signal::USR2);
        assert!(world.asked.is_empty(), "not before the old one is gone");
        world.slots.promoted(world.now_ms);
        world.act();
        assert_eq!((world.slots.target(), &world.asked[..]), (1, &[Action::Steer { slots: 1 }][..]));
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
        Reload,
        /// The worker has answered `max_requests`.
        Spent(usize),
        /// The newest worker of the slot ends before it was ready.
        FailToBoot(usize),
        /// Everybody who was told to leave has left.
        LeaveInOrder,
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
            Step::Signal(Signal::TTOU),
            Step::Reload,
        ];
        for slot in 0..2 {
            steps.push(Step::Ready(slot));
            for ending in [Ending::Code(0), Ending::Code(3), Ending::Signal(9)] {
                steps.push(Step::End(slot, ending));
            }
        }
        let mut count = 0;
        walk(&World::new(RULES), &steps, 5, &mut count);
        assert!(count > 100_000, "{count} states");
    }

    /// Once two workers serve, no order of reloads, recycles, changes of their number and failures of
    /// new workers ever leaves the server without one that serves.
    #[test]
    fn no_order_of_reloads_leaves_nobody_serving() {
        let mut steps = vec![
            Step::Pass(100),
            Step::Pass(SETTLE_MS),
            Step::Signal(Signal::TTIN),
            Step::Signal(Signal::TTOU),
            Step::Reload,
            Step::Spent(0),
            Step::LeaveInOrder,
        ];
        for slot in 0..2 {
            steps.push(Step::Ready(slot));
            steps.push(Step::FailToBoot(slot));
        }
        let mut count = 0;
        walk(&World::serving(), &steps, 5, &mut count);
        assert!(count > 50_000, "{count} states");
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
                Step::Ready(slot) | Step::End(slot, _) | Step::Spent(slot) | Step::FailToBoot(slot)
                    if next.slots.pid(slot).is_none() =>
                {
                    continue;
                }
                Step::FailToBoot(slot) => {
                    let pid = next.slots.pid(slot);
                    if next.slots.workers.iter().any(|worker| Some(worker.pid) == pid && worker.seen.ready) {
                        continue;
                    }
                    next.end(slot, Ending::Code(3));
                }
                Step::Spent(slot) => next.see(slot, true),
                Step::Reload if next.stopping => next.signal(Signal::HUP),
                Step::Reload => next.reload(2),
                Step::LeaveInOrder => {
                    let told = |worker: &&Worker| !worker.stays();
                    let left: Vec<Pid> =
                        next.slots.workers.iter().filter(told).map(|worker| worker.pid).collect();
                    for pid in left {
                        next.end_pid(pid, Ending::Code(0));
                    }
                }
                Step::Ready(slot) => next.ready(slot),
                Step::End(slot, ending) => {
                    next.end(slot, ending);
                }
            }
            next.pass(0);
            let crashed = steps.iter().any(|step| matches!(step, Step::End(..)));
            let serves = |worker: &Worker| worker.seen.ready && worker.stays();
            assert!(
                crashed || next.slots.workers.iter().any(serves),
                "nobody serves after {step:?}: {next:#?}"
            );
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
        for pid in world.alive.clone() {
            world.end_pid(pid, Ending::Signal(9));
        }
        let exit = world.finished.expect("all workers are gone");
        assert!(exit == Exit::Done || world.notes.contains(&Note::CannotBoot(exit)));
    }
}
