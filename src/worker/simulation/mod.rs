//! The real I/O thread on simulated sockets and simulated time, with simulated clients and runners, all on
//! one thread. One seed is one run: what clients send and when, how the network cuts it, what the
//! application answers and in which order its runners get on, also in the middle of a turn.
//!
//! What must come of it is known from what was sent: see `oracle`. Everything here panics when a promise
//! is broken; the seed that did it reproduces it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a simulation is a test: it ends at the first surprise"
)]

mod client;
mod oracle;
mod plan;
mod runners;
mod steady;
mod voice;

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use self::client::Client;
#[cfg(test)]
use self::plan::Plan;
use self::plan::Script;
use self::runners::{Limits, Runners};
pub use self::steady::Steady;
use super::access::Recorder;
use super::io::Io;
use super::io::inline::Inline;
use super::overdue::Patience;
use super::pool::Pool;
use super::{Door, Rules, Stop};
use crate::app::native::{Request, Response, Service, Tasks};
use crate::app::{Application, Listener, Port, Runner};
use crate::config::Trusted;
use crate::http::{Policy, ProxyMode};
use crate::limits::{HOLD_BYTES_MAX, HOLD_MS, PIPELINE_BYTES_MAX, RECV_BUFFER_BYTES, RESPONSE_QUEUE_BYTES};
use crate::ring::sim::{Dice, Network, Sim};
use crate::ring::{Accepting, Driver, Event, Socket, Token, Waker};
use crate::sys::clock;

/// Bytes of the material that all bodies are cut from.
const MATERIAL_BYTES: usize = 1 << 20;

/// Turns of one run: far more than any run needs.
const TURNS_MAX: u32 = 400_000;

/// Milliseconds after which nothing that a client has left behind may exist: the sum of all deadlines,
/// and once around the timing wheel.
const PATIENCE_MS: u64 = 300_000;

/// What bodies are made of: every part is different, and looks like messages that an error in framing would
/// take for real ones.
fn material() -> &'static [u8] {
    static MATERIAL: OnceLock<Vec<u8>> = OnceLock::new();
    MATERIAL.get_or_init(|| {
        let mut bytes = Vec::with_capacity(MATERIAL_BYTES + 64);
        let mut number = 0_u32;
        while bytes.len() < MATERIAL_BYTES {
            let text = match number % 4 {
                0 => format!("\r\n\r\nGET /smuggled/{number} HTTP/1.1\r\nHost: a\r\n\r\n"),
                1 => format!("\r\n0\r\n\r\nHTTP/1.1 299 Smuggled {number}\r\nContent-Length: 0\r\n\r\n"),
                2 => format!("material {number:08} "),
                _ => format!("{:x}\r\n", number.wrapping_mul(2_654_435_761)),
            };
            bytes.extend_from_slice(text.as_bytes());
            number += 1;
        }
        bytes.truncate(MATERIAL_BYTES);
        bytes
    })
}

/// Whether to tell what happens, on standard error: `RINGHORN_SIM_TRACE` is set.
fn traces() -> bool {
    static TRACES: OnceLock<bool> = OnceLock::new();
    *TRACES.get_or_init(|| std::env::var_os("RINGHORN_SIM_TRACE").is_some())
}

/// Tells what happens, if somebody wants to know.
macro_rules! trace {
    ($($what:tt)*) => {
        if $crate::worker::simulation::traces() {
            eprintln!($($what)*);
        }
    };
}
use trace;

/// The simulated driver, between whose calls runners get on: a runner can do anything at any moment of a turn.
struct Interleaved {
    sim: Sim,
    runners: Rc<RefCell<Runners>>,
    /// When a client or a runner wants to act next; time must not jump beyond it.
    alarm_ms: Rc<Cell<u64>>,
    /// Whether all receive buffers are back.
    clean: Rc<Cell<bool>>,
    quiet: bool,
}

impl Interleaved {
    fn interleave(&mut self) {
        if !self.quiet {
            self.runners.borrow_mut().sometimes();
        }
    }
}

impl Driver for Interleaved {
    fn name(&self) -> &'static str {
        self.sim.name()
    }

    fn now_ms(&self) -> u64 {
        self.sim.now_ms()
    }

    fn accept(&mut self, listener: usize, fd: RawFd, mode: Accepting) -> io::Result<()> {
        self.sim.accept(listener, fd, mode)
    }

    fn stop_accept(&mut self, listener: usize) {
        self.sim.stop_accept(listener);
    }

    fn receive(&mut self, token: Token, socket: &Socket) -> io::Result<()> {
        trace!("  receive {token:?}");
        self.interleave();
        self.sim.receive(token, socket)
    }

    fn pause(&mut self, token: Token, socket: &Socket) {
        trace!("  pause {token:?}");
        self.interleave();
        self.sim.pause(token, socket);
        self.interleave();
    }

    fn writable(&mut self, token: Token, socket: &Socket) -> io::Result<()> {
        self.interleave();
        self.sim.writable(token, socket)
    }

    fn release(&mut self, token: Token, socket: &Socket) {
        trace!("{}   release {token:?}", self.sim.now_ms());
        self.sim.release(token, socket);
        self.interleave();
    }

    fn detach(&mut self, token: Token, socket: &Socket) {
        trace!("{}   detach {token:?}", self.sim.now_ms());
        self.sim.detach(token, socket);
        self.interleave();
    }

    fn watch(&mut self, fd: RawFd) -> io::Result<()> {
        self.sim.watch(fd)
    }

    fn turn(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        self.clean.set(events.is_empty() && self.sim.has_all_buffers());
        let left = Duration::from_millis(self.alarm_ms.get().saturating_sub(self.sim.now_ms()));
        self.sim.turn(timeout.map(|timeout| timeout.min(left)), events)?;
        clock::simulate(Some(self.sim.now_ms()));
        for event in &*events {
            trace!("{} {event:?}", self.sim.now_ms());
        }
        self.interleave();
        Ok(())
    }

    fn waker(&self) -> Waker {
        self.sim.waker()
    }
}

/// Runs no request: the simulated runners do.
struct Nobody;

impl Application for Nobody {
    fn with_runner(&self, _body: &mut dyn FnMut(&mut dyn Runner)) {
        panic!("the I/O thread has started a runner of its own");
    }
}

/// A native service: answers on the spot, or lets the simulated runners do it later, as work on other threads does.
struct Planned(Rc<RefCell<Runners>>);

impl Service for Planned {
    fn call(&mut self, request: &Request<'_>, response: &mut Response<'_>) {
        self.0.borrow_mut().serve(request, response);
    }
}

/// Deadlines are all different, so that a wrong one shows.
fn rules(body_buffer_bytes: usize, connections_max: usize) -> Rules {
    Rules {
        patience: Patience::ENDLESS,
        queue_ms: u64::MAX,
        queue_max: usize::MAX,
        retry_after_s: 1,
        keep_heads: false,
        policy: Policy::default(),
        trusted: Trusted::default(),
        proxy_mode: ProxyMode::Off,
        proxies: Trusted::default(),
        keep_alive: true,
        connections_max,
        body_buffer_bytes,
        first_byte_ms: 21_000,
        header_ms: 11_000,
        body_ms: 12_000,
        response_ms: 13_000,
        keepalive_ms: 5_000,
        linger_ms: 2_000,
        graceful_ms: 8_000,
        timed: false,
    }
}

/// Gives the requests of some worlds deadlines, and a bound for those that wait.
fn hurry(seed: u64, rules: Rules) -> Rules {
    let mut dice = Dice(seed ^ 0xd00d);
    if !dice.one_in(3) {
        return rules;
    }
    let mut one_of =
        |values: [u64; 3]| if dice.one_in(3) { u64::MAX } else { values[dice.below(values.len())] };
    let request_ms = one_of([300, 900, 2_500]);
    let (queue_ms, queue_max) = (one_of([100, 400, 3_000]), one_of([1, 2, 5]));
    Rules {
        patience: Patience { request_ms, ..rules.patience },
        queue_ms: queue_ms.min(request_ms),
        queue_max: usize::try_from(queue_max).unwrap_or(usize::MAX),
        keep_heads: request_ms != u64::MAX,
        ..rules
    }
}

/// What the simulated runners must know of the rules.
fn limits(rules: &Rules) -> Limits {
    Limits { request_ms: rules.patience.request_ms, queue_ms: rules.queue_ms, queue_max: rules.queue_max }
}

/// The worker's I/O thread, with a listener for each of the ports.
fn io_thread(driver: Box<dyn Driver>, ports: &[u16], rules: Rules, pool: &Arc<Pool>, port: &Arc<Port>) -> Io {
    let door = |port: &u16| Door {
        fd: File::open("/dev/null").expect("/dev/null").into(),
        listener: Arc::new(Listener::inet(([127, 0, 0, 1], *port).into())),
        accepting: Accepting::Shared,
        observer: false,
    };
    let doors = ports.iter().map(door).collect();
    Io::new(driver, doors, Arc::new(rules), Arc::clone(pool), Arc::new(Nobody), Arc::clone(port))
}

/// A worker, its clients and its runners.
struct World {
    io: Io,
    waker: Waker,
    network: Network,
    port: Arc<Port>,
    pool: Arc<Pool>,
    runners: Rc<RefCell<Runners>>,
    clients: Vec<Client>,
    dice: Dice,
    alarm_ms: Rc<Cell<u64>>,
    clean: Rc<Cell<bool>>,
    body_buffer_bytes: usize,
    /// When the worker is told to leave, counted in turns, and how.
    stop: Option<(u32, Stop)>,
    stopped: bool,
    /// Leaving took connections with it.
    cut_off: bool,
    turns: u32,
    quiet_since_ms: u64,
}

impl World {
    fn new(seed: u64, threads: usize, body_buffer_bytes: usize, connections_max: usize) -> Self {
        Self::with_rules(seed, threads, rules(body_buffer_bytes, connections_max))
    }

    fn with_rules(seed: u64, threads: usize, rules: Rules) -> Self {
        let (sim, network) = Sim::new(seed).expect("a simulated driver");
        let mut dice = Dice(!seed);
        let pool = Arc::new(Pool::new(1, Recorder::default()));
        let (body_buffer_bytes, limits) = (rules.body_buffer_bytes, limits(&rules));
        let runners = Runners::new(Arc::clone(&pool), network.clone(), dice.roll(), threads, limits);
        let runners = Rc::new(RefCell::new(runners));
        let (alarm_ms, clean) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(true)));
        let driver = Interleaved {
            sim,
            runners: Rc::clone(&runners),
            alarm_ms: Rc::clone(&alarm_ms),
            clean: Rc::clone(&clean),
            quiet: false,
        };
        clock::simulate(Some(driver.now_ms()));
        let waker = driver.waker();
        let port = Arc::new(Port::new(waker.clone()).expiring(limits.request_ms != u64::MAX));
        let mut io = io_thread(Box::new(driver), &[80, 81], rules, &pool, &port);
        let others = Rc::clone(&runners);
        io.meanwhile = Some(Box::new(move || others.borrow_mut().sometimes()));
        io.open();
        let quiet_since_ms = network.now_ms();
        Self {
            io,
            waker,
            network,
            port,
            pool,
            runners,
            clients: Vec::new(),
            dice,
            alarm_ms,
            clean,
            body_buffer_bytes,
            stop: None,
            stopped: false,
            cut_off: false,
            turns: 0,
            quiet_since_ms,
        }
    }

    /// From now on a native service answers.
    fn serve(&mut self) {
        self.runners.borrow_mut().native = true;
        let service = Box::new(Planned(Rc::clone(&self.runners)));
        let tasks = Rc::new(Tasks::new(self.waker.clone()));
        self.io.serve_with(Inline::new(service, tasks, None, None, None));
    }

    fn connect(&mut self, script: Script) {
        for asked in &script.asked {
            self.runners.borrow_mut().expect(asked);
        }
        let seed = self.dice.roll();
        self.clients.push(Client::new(self.network.clone(), seed, script));
    }

    /// One turn, with clients and runners acting before it. Returns whether anything may still happen.
    fn step(&mut self) -> bool {
        self.turns += 1;
        assert!(self.turns < TURNS_MAX, "no end: {}", self.describe());
        let now_ms = self.network.now_ms();
        let mut alarm_ms = u64::MAX;
        for client in &mut self.clients {
            if !self.dice.one_in(3) {
                client.step(now_ms);
            }
            alarm_ms = alarm_ms.min(client.next_ms());
        }
        if alarm_ms != u64::MAX || self.runners.borrow().is_at_work() {
            self.quiet_since_ms = now_ms;
        }
        // As `Pool::rest` does, where it does: otherwise nothing but the waker tells the I/O thread of a report.
        if self.dice.one_in(2) {
            self.port.rest(self.dice.one_in(2));
            self.runners.borrow_mut().sometimes();
            // It sleeps on while runners get on, but not over pieces that they keep back: `check_bounds` judges.
            for _ in 0..3 {
                if self.port.has_held() || !self.runners.borrow().is_at_work() {
                    break;
                }
                self.network.pass_ms(1);
                clock::simulate(Some(self.network.now_ms()));
                self.runners.borrow_mut().sometimes();
            }
            self.io.reported = self.port.rise();
        } else {
            self.runners.borrow_mut().sometimes();
        }
        alarm_ms = alarm_ms.min(self.runners.borrow_mut().next_ms());
        self.alarm_ms.set(alarm_ms);
        self.io.turn().expect("the simulated driver does not fail");
        assert!(self.clean.get(), "a receive buffer was kept beyond its turn");
        self.check_bounds();
        if let Some((at, stop)) = self.stop
            && self.turns >= at
            && !self.stopped
            && self.io.obey(Some(stop))
        {
            self.cut_off = self.io.connections() > 0;
            self.io.close_all();
            assert_eq!(self.pool.waiting(), 0, "a request is left to runners whose client is gone");
            self.stopped = true;
            return false;
        }
        let waited_ms = self.network.now_ms() - self.quiet_since_ms;
        assert!(waited_ms < PATIENCE_MS, "something is left behind: {}", self.describe());
        let clients_wait = self.clients.iter().any(|client| !client.is_done());
        clients_wait
            || self.io.connections() > 0
            || self.io.next_entry_ms().is_some()
            || self.runners.borrow().is_at_work()
    }

    fn check_bounds(&mut self) {
        // One turn may bring three pieces beyond the bound, before a pause takes effect.
        let slack = 8 * RECV_BUFFER_BYTES;
        let largest = self.runners.borrow().largest_piece;
        let held_ms = self.io.longest_held_ms();
        assert!(held_ms <= HOLD_MS, "a piece was kept back for {held_ms} ms: {}", self.describe());
        for (input, answer, body) in self.io.held_bytes() {
            assert!(input <= PIPELINE_BYTES_MAX + slack, "{input} bytes of input");
            let bound = RESPONSE_QUEUE_BYTES.max(HOLD_BYTES_MAX) + largest + slack;
            assert!(answer <= bound, "{answer} bytes of an answer");
            // What waited behind the request before may be the beginning of this body.
            let bound = self.body_buffer_bytes + PIPELINE_BYTES_MAX + slack;
            assert!(body <= bound, "{body} bytes of a body");
        }
        // One more may wait for the runner that is idle.
        let (waiting, most) = (self.pool.waiting(), self.runners.borrow().limits.queue_max);
        assert!(waiting <= most.saturating_add(1), "{waiting} requests wait");
    }

    /// Runs until nothing is left, and judges.
    fn run(&mut self) {
        while self.step() {}
        if self.stopped {
            // Runners learn that their clients are gone, and end.
            for _ in 0..100_000 {
                self.network.pass_ms(1);
                self.runners.borrow_mut().sometimes();
                if !self.runners.borrow().is_at_work() {
                    break;
                }
            }
            for client in &mut self.clients {
                client.read_out();
            }
        }
        assert!(!self.runners.borrow().is_at_work(), "a runner never came back: {}", self.describe());
        assert_eq!(self.io.connections(), 0, "{}", self.describe());
        assert_eq!(self.pool.waiting(), 0);
        // Reports of the last runners lie in the port; the links themselves hold it.
        assert_eq!(Arc::strong_count(&self.port), 2, "a link outlives its connection");
        let runners = self.runners.borrow();
        for client in &self.clients {
            client.judge(&runners, self.stop.is_some(), self.cut_off);
        }
    }

    fn describe(&self) -> String {
        use std::fmt::Write as _;
        let mut text = format!(
            "at {} ms, turn {}: {} connections, {} requests wait, wheel {:?}, runners {}",
            self.network.now_ms(),
            self.turns,
            self.io.connections(),
            self.pool.waiting(),
            self.io.next_entry_ms(),
            self.runners.borrow().describe(),
        );
        for client in &self.clients {
            let _ = write!(text, "\n  {}", client.describe());
        }
        text
    }
}

impl Drop for World {
    fn drop(&mut self) {
        clock::simulate(None);
    }
}

/// One run: some clients, each with a script of its own.
///
/// # Panics
/// When a promise is broken.
pub fn run(seed: u64) {
    run_with(seed, false);
}

/// As [`run`], with a native service.
///
/// # Panics
/// When a promise is broken.
pub fn run_service(seed: u64) {
    run_with(seed, true);
}

fn run_with(seed: u64, native: bool) {
    let mut dice = Dice(seed ^ 0x5eed);
    let body_buffer_bytes = [1_000, 8_192, 65_536][dice.below(3)];
    let threads = 1 + dice.below(3);
    let connections_max = if dice.one_in(4) { 1 + dice.below(2) } else { 100 };
    let mut rules = rules(body_buffer_bytes, connections_max);
    if !native {
        rules = hurry(seed, rules);
    }
    let request_ms = rules.patience.request_ms;
    let mut world = World::with_rules(seed, threads, rules);
    if native {
        world.serve();
    }
    let mut next_id = 0;
    for _ in 0..=dice.below(4) {
        let mut script = Script::roll(&mut dice, &mut next_id, body_buffer_bytes);
        if request_ms != u64::MAX {
            script.linger(&mut Dice(dice.clone().roll()), request_ms);
        }
        if native {
            script.simplify();
        }
        world.connect(script);
    }
    if dice.one_in(8) {
        world.network.fail_accept(0, libc::EMFILE);
    }
    if dice.one_in(8) {
        let how = if dice.one_in(4) { Stop::Quick } else { Stop::Leave };
        world.stop = Some((dice.below(200) as u32, how));
    }
    world.run();
}

/// A connection on which a fuzzer says anything, in pieces: the worker survives, answers each request that
/// it gives to the application once, and keeps nothing.
///
/// # Panics
/// When a promise is broken.
pub fn fuzz_connection(data: &[u8]) {
    let Some((&[seed, how], bytes)) = data.split_first_chunk() else { return };
    let mut world = World::new(u64::from(seed), 1, 1_000, 100);
    world.connect(Script::raw(bytes, &mut Dice(u64::from(seed)), how & 1 == 0));
    world.run();
}

#[cfg(test)]
mod siblings;
#[cfg(test)]
mod tests;
