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
/// Time that a worker gets which is told to leave while it loads, in ms. It serves nobody, and an import sees no TERM:
/// it would load on until `graceful_timeout`, and take the CPU of its successor meanwhile. The time is for those that
/// are about to be ready, and leave in order.
const LOADING_MS: u64 = 1_000;
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
    /// Tell a worker to finish what it has and leave: the order into its record, then TERM unless it goes without.
    Leave { pid: Pid, order: Order },
    /// Read the settings again and answer with [`Slots::reloaded`], or with nothing when they are bad.
    Reload,
    /// The new generation cannot boot: return to the settings and listeners before it.
    DropGeneration,
    /// Nobody of an earlier generation is left: what only they needed can go.
    ForgetEarlier,
    /// Start another master beside this one and answer with [`Slots::upgrading`] or [`Slots::upgrade_failed`].
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
    /// A worker that was told to leave still loads, and is killed.
    GivenUp { pid: Pid },
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
    /// Another master was asked for. The listeners count as shared from here on: what is decided in the same turn is
    /// done when that master has them.
    upgrading: bool,
    /// The master that USR2 started.
    next_master: Option<Pid>,
    /// This master was started by USR2, and the old one is still there.
    junior: bool,
    /// A worker of this run has served: exit codes 3 and 4 are crashes from here on.
    ready_once: bool,
    /// Heartbeats from before this time are not held against a worker: the master was not looking.
    amnesty_ms: u64,
    last_turn_ms: u64,
    /// A reload was asked for. It begins with the next turn, when all that the deaths of the workers before it mean has
    /// been decided: what ends the reload before it comes first.
    reload: bool,
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
    /// It was told to leave, and is killed at this time. In a stop only those that load have a time of their own.
    leave_ms: Option<u64>,
}

impl Worker {
    fn stays(&self) -> bool {
        self.leave_ms.is_none()
    }

    /// It has not served yet.
    fn loads(&self) -> bool {
        !self.seen.ready
    }

    /// Tells it to leave, if it was not told before.
    fn leave(&mut self, now_ms: u64, graceful_ms: u64) {
        let time_ms = if self.loads() { graceful_ms.min(LOADING_MS) } else { graceful_ms };
        self.leave_ms.get_or_insert(now_ms + time_ms);
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
            upgrading: false,
            next_master: None,
            junior,
            ready_once: false,
            amnesty_ms: now_ms,
            last_turn_ms: now_ms,
            reload: false,
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
        let leaves = |worker: &&Worker| worker.sent != Some(Signal::KILL) && (running || worker.loads());
        let leave = self.workers.iter().filter(leaves).filter_map(|worker| worker.leave_ms);
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
        self.junior || self.upgrading || self.next_master.is_some()
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
            self.reload = true;
        }
        let worker = &mut self.workers[index];
        if !comes {
            return;
        }
        if let Some(leave_ms) = &mut worker.leave_ms {
            // It has served after all, and finishes what it has.
            *leave_ms = now_ms + self.rules.graceful_ms;
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
            self.close_slots();
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
                    self.send_all(Signal::QUIT, now_ms);
                }
                Phase::Finished => {}
            },
            Signal::USR1 => {
                let pids: Vec<Pid> = self.workers.iter().map(|worker| worker.pid).collect();
                self.actions.extend(pids.into_iter().map(|pid| Action::Kill { pid, signal }));
            }
            Signal::HUP if running => {
                self.asked_ms = now_ms;
                self.reload = true;
            }
            Signal::USR2 if running => {
                if self.upgrading || self.next_master.is_some() {
                    self.ignore(signal, "the master started by the last one is still there");
                } else if self.junior {
                    self.ignore(signal, "the old master is still there");
                } else {
                    self.upgrading = true;
                    self.actions.push(Action::Upgrade);
                }
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
        // What still loads of the generation to return to may be all there is: it stays until then. Beside a worker
        // that serves it is given up: it might hang, and would keep the slot's next worker out for good.
        let served = |slot| {
            self.workers.iter().any(|worker| worker.slot == slot && worker.stays() && worker.seen.ready)
        };
        let superfluous =
            |worker: &&Worker| worker.generation > fallback.0 || (!worker.seen.ready && served(worker.slot));
        let skipped: Vec<Pid> = self.workers.iter().filter(superfluous).map(|worker| worker.pid).collect();
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
        self.upgrading = false;
        self.next_master = Some(pid);
    }

    /// No other master could be started: this one stays alone with the listeners.
    pub(super) fn upgrade_failed(&mut self) {
        self.upgrading = false;
        self.close_slots();
    }

    /// The old master is gone: this one is alone with the listeners from now on.
    pub(super) fn promoted(&mut self, now_ms: u64) {
        self.junior = false;
        if self.phase == Phase::Running {
            let open = self.open;
            self.set_target(self.rules.workers, now_ms);
            if self.open == open {
                // The old master may have led clients away from a slot that it was about to close.
                self.actions.push(Action::Steer { slots: open });
            }
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
        if std::mem::take(&mut self.reload) && self.phase == Phase::Running {
            self.actions.push(Action::Reload);
        }
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
                self.send_all(Signal::KILL, now_ms);
            }
            Phase::Stopping { expired: false, .. } => {
                let overdue = |worker: &&mut Worker| {
                    worker.loads()
                        && worker.sent != Some(Signal::KILL)
                        && worker.leave_ms.is_some_and(|at_ms| now_ms >= at_ms)
                };
                for worker in self.workers.iter_mut().filter(overdue) {
                    self.actions.push(Action::Log(Note::GivenUp { pid: worker.pid }));
                    send(&mut self.actions, worker, Signal::KILL);
                }
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
        let graceful_ms = self.rules.graceful_ms;
        if let Some(worker) = self.workers.iter_mut().find(|worker| worker.pid == pid && worker.stays()) {
            worker.leave(now_ms, graceful_ms);
            if worker.sent.is_none() {
                worker.sent = Some(Signal::TERM);
                let spent = worker.seen.spent && worker.generation == self.generation;
                let order = if spent { Order::Renew } else { Order::Retire };
                self.actions.push(Action::Leave { pid, order });
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

    /// Slots at the end that nobody needs any more. Their listeners stay while another master has them, too: to close
    /// them ends them for its workers.
    fn close_slots(&mut self) {
        if self.is_sharing() {
            return;
        }
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
                (None, Some(at_ms)) if now_ms >= at_ms && worker.loads() => {
                    self.actions.push(Action::Log(Note::GivenUp { pid: worker.pid }));
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
        self.send_all(signal, now_ms);
    }

    /// A quick stop kills workers that are still loading: they have nothing in hand, and nobody in
    /// them listens before the application is there. So does a graceful one after a moment, where another worker of
    /// the slot serves: who waits in its queue is answered by that one.
    fn send_all(&mut self, signal: Signal, now_ms: u64) {
        let order = if self.is_sharing() { Order::Leave } else { Order::Close };
        let serves = |worker: &&Worker| !worker.loads() && worker.aborted_ms.is_none();
        let served: Vec<usize> = self.workers.iter().filter(serves).map(|worker| worker.slot).collect();
        for worker in &mut self.workers {
            if worker.sent == Some(Signal::KILL) {
                continue;
            }
            if signal == Signal::TERM {
                worker.sent = Some(signal);
                if worker.loads() && served.contains(&worker.slot) {
                    worker.leave(now_ms, self.rules.graceful_ms);
                }
                self.actions.push(Action::Leave { pid: worker.pid, order });
            } else {
                let loading = signal == Signal::QUIT && worker.loads();
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
mod tests;
