//! What the master decides, whatever the order of events.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;

const RULES: Rules = Rules { workers: 2, timeout_ms: 5_000, graceful_ms: 30_000, drain_ms: 0, daemon: false };

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
    /// What a reload reads, if it is good.
    read: Option<Rules>,
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
            read: None,
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
                    Action::Reload => {
                        self.asked.push(action);
                        if let Some(rules) = self.read.take() {
                            self.slots.reloaded(rules, self.now_ms);
                        }
                    }
                    Action::DropGeneration
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
        self.read = Some(Rules { workers, ..RULES });
        self.signal(Signal::HUP);
        self.pass(0);
        // What comes due with the new settings.
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
        world.pass(0);
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
    for ending in [Ending::Signal(9), Ending::Signal(11), Ending::Code(1), Ending::Code(0), Ending::Code(3)] {
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
        world.pass(0);
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

/// All of them read the settings that are in force, so the order is what decides which those are.
#[test]
fn a_reload_begins_when_the_one_before_it_has_ended() {
    let asked = |world: &World| -> Vec<Action> {
        let of_reloads = [Action::Reload, Action::DropGeneration, Action::ForgetEarlier];
        world.asked.iter().filter(|action| of_reloads.contains(action)).cloned().collect()
    };
    // HUP in the same turn as the end of a boot that failed, and as that of the last old worker: signals come first.
    let mut world = World::serving();
    world.reload(2);
    world.asked.clear();
    world.slots.signal(Signal::HUP, world.now_ms);
    world.end(0, Ending::Code(3));
    world.pass(0);
    assert_eq!(asked(&world), [Action::DropGeneration, Action::ForgetEarlier, Action::Reload]);

    let mut world = World::serving();
    let old = world.alive.clone();
    world.reload(2);
    world.ready(0);
    world.pass(0);
    world.ready(1);
    world.end_pid(old[0], Ending::Code(0));
    world.asked.clear();
    world.slots.signal(Signal::HUP, world.now_ms);
    world.end_pid(old[1], Ending::Code(0));
    world.pass(0);
    assert_eq!(asked(&world), [Action::ForgetEarlier, Action::Reload]);

    // The same with a changed file, and a stop that comes before.
    world.asked.clear();
    let seen = Seen { ready: true, changed_ms: world.now_ms + 1, ..Seen::default() };
    world.slots.observed(world.alive[0], seen, world.now_ms);
    world.act();
    assert_eq!(asked(&world), []);
    world.slots.signal(Signal::TERM, world.now_ms);
    world.pass(0);
    assert_eq!(asked(&world), [], "nobody would serve with them");
}

/// It would keep the slot's next worker out for good, and with it the end of every later reload.
#[test]
fn a_later_reload_gives_up_a_worker_that_hangs_while_another_one_of_its_slot_serves() {
    let mut world = World::serving();
    let old = world.alive.clone();
    world.reload(2);
    world.ready(0);
    world.end_pid(old[0], Ending::Code(0));
    world.pass(0);
    let hangs = world.slots.pid(1).unwrap();
    assert_ne!(hangs, old[1]);
    world.carry_on(10_000);
    world.reload(2);
    assert_eq!((world.signals_to(hangs), world.signals_to(old[1])), (vec![Signal::TERM], vec![]));
    world.ready(0);
    world.pass(0);
    world.ready(1);
    assert!(world.slots.is_complete());
    assert_eq!(world.signals_to(old[1]), [Signal::TERM]);
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

/// An import sees no TERM, and takes the CPU of those that are to replace it.
#[test]
fn a_worker_that_still_loads_is_killed_soon_after_it_was_told_to_leave() {
    let mut world = World::serving();
    let old = world.alive.clone();
    for _ in 0..3 {
        world.reload(2);
        world.carry_on(LOADING_MS);
    }
    let told: Vec<Pid> =
        world.alive.iter().copied().filter(|pid| !world.signals_to(*pid).is_empty()).collect();
    assert_eq!(world.all_signals_to(&told), vec![vec![Signal::TERM, Signal::KILL]; 2]);
    assert_eq!(world.notes.iter().filter(|note| matches!(note, Note::GivenUp { .. })).count(), 2);
    for pid in told {
        world.end_pid(pid, Ending::Signal(9));
    }
    assert_eq!(world.departures, [Departure::Reload; 2]);
    // One that is ready in time has what came to it, and finishes that.
    let pid = world.slots.pid(0).unwrap();
    world.reload(2);
    let seen = Seen { ready: true, heartbeat_ms: world.now_ms, ..Seen::default() };
    world.slots.observed(pid, seen, world.now_ms);
    world.carry_on(RULES.graceful_ms - 1);
    assert_eq!(world.signals_to(pid), [Signal::TERM]);
    world.carry_on(1);
    assert_eq!(world.signals_to(pid), [Signal::TERM, Signal::KILL]);
    assert!(old.iter().all(|pid| world.signals_to(*pid).is_empty()));
}

#[test]
fn a_stop_does_not_wait_for_a_worker_that_loads_beside_one_that_serves() {
    let mut world = World::serving();
    world.reload(2);
    let loads = world.slots.pid(0).unwrap();
    world.signal(Signal::TERM);
    assert_eq!(world.due(), Some(LOADING_MS));
    world.pass(LOADING_MS);
    world.pass(0);
    assert_eq!(world.signals_to(loads), [Signal::TERM, Signal::KILL]);
    assert_eq!(world.killed.len(), 4, "the others finish what they have");
    assert_eq!(world.due(), Some(RULES.graceful_ms - LOADING_MS));
    // Where nobody serves, those who wait in the queue have but this one.
    let mut world = World::new(RULES);
    world.ready(0);
    world.signal(Signal::TERM);
    world.pass(RULES.graceful_ms - 1);
    assert_eq!(world.signals_to(world.alive[1]), [Signal::TERM]);
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
    // No signal, in fact: handlers of the application are not for this.
    assert_eq!(world.asked, [Action::Leave { pid: old[0], order: Order::Renew }]);
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

/// Both signals are decided before the other master has been started.
#[test]
fn a_stop_right_after_usr2_leaves_the_listeners_to_the_other_master() {
    let mut world = World::serving();
    world.slots.signal(Signal::USR2, world.now_ms);
    world.slots.signal(Signal::USR2, world.now_ms);
    world.slots.signal(Signal::TERM, world.now_ms);
    world.act();
    let leave = |pid: &Pid| Action::Leave { pid: *pid, order: Order::Leave };
    let left: Vec<Action> = world.alive.iter().map(leave).collect();
    assert_eq!((&world.asked[0], &world.asked[1..]), (&Action::Upgrade, &left[..]), "and one master only");
}

#[test]
fn a_server_whose_upgrade_came_to_nothing_is_alone_with_the_listeners() {
    let mut world = World::serving();
    world.signal(Signal::USR2);
    world.slots.upgrade_failed();
    world.signal(Signal::USR2);
    world.slots.upgrade_failed();
    assert_eq!(world.asked, [Action::Upgrade, Action::Upgrade]);
    world.signal(Signal::TERM);
    assert!(world.asked.iter().any(|asked| matches!(asked, Action::Leave { order: Order::Close, .. })));
}

/// To close a listener ends it for the other master, too.
#[test]
fn a_slot_on_its_way_out_is_closed_when_no_other_master_has_it() {
    let mut world = World::serving();
    let next = Pid::from_raw(9_000).unwrap();
    world.signal(Signal::TTOU);
    world.signal(Signal::USR2);
    world.slots.upgrading(next);
    world.live(SETTLE_MS, &[0, 1]);
    world.end(1, Ending::Code(0));
    world.pass(0);
    assert!(!world.asked.contains(&Action::CloseSlot { slot: 1 }), "{:?}", world.asked);
    world.slots.ended(next, Ending::Code(3), world.now_ms);
    world.act();
    assert_eq!(world.asked.last(), Some(&Action::CloseSlot { slot: 1 }));

    // The same with an upgrade that could not begin.
    let mut world = World::serving();
    world.signal(Signal::TTOU);
    world.live(SETTLE_MS, &[0, 1]);
    world.signal(Signal::USR2);
    world.end(1, Ending::Code(0));
    assert!(!world.asked.contains(&Action::CloseSlot { slot: 1 }), "{:?}", world.asked);
    world.slots.upgrade_failed();
    world.act();
    assert_eq!(world.asked.last(), Some(&Action::CloseSlot { slot: 1 }));
}

/// The old one may have led clients away from a slot that it was about to close, and the kernel still does.
#[test]
fn a_master_that_is_alone_leads_clients_to_all_its_slots() {
    let mut slots = Slots::new(RULES, true, 0);
    slots.keep_slots(2, 0);
    slots.promoted(0);
    assert_eq!(slots.take_actions(), [Action::Steer { slots: 2 }]);
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
        assert!(crashed || next.slots.workers.iter().any(serves), "nobody serves after {step:?}: {next:#?}");
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
