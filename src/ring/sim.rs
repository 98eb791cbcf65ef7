//! A driver whose network is two queues of bytes per connection, for tests of what is built on
//! [`Driver`]. One seed reproduces a run: where reads are split, how much a send takes, which events
//! of a turn come first, what is late by a turn, how much a reset destroys.
//!
//! It does not imitate the kernel's timing. Time stands still while there is something to do, and
//! jumps to the end of the timeout when there is not.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{BorrowedFd, RawFd};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::op::{Accepting, Driver, Event, Token};
use super::{Pool, Socket, Waker};
use crate::limits::RECV_BUFFER_BYTES;
use crate::sync::lock;

/// Bytes that a simulated connection holds in the server's direction to the client, unread.
const WINDOW_BYTES: usize = 48 * 1024;

/// Buffers of the simulated pool: few, so that running out of them is part of ordinary runs.
const BUFFERS: u16 = 16;

/// How long a turn without a timeout waits in real time for another thread's wake-up.
const STUCK: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// A small generator of well-mixed numbers (splitmix64): not for secrets, only for variety.
#[derive(Clone, Debug)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.roll() % bound.max(1) as u64) as usize
    }

    pub(crate) fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    /// How much of `count` goes through at once: often all, often one byte, else anything between.
    pub(crate) fn part(&mut self, count: usize) -> usize {
        match self.below(4) {
            0 | 1 => count,
            2 => count.min(1),
            _ => self.below(count) + usize::from(count > 0),
        }
    }
}

/// One connection: what both halves see.
#[derive(Debug)]
struct Wire {
    dice: Dice,
    number: u16,
    to_server: VecDeque<u8>,
    to_client: VecDeque<u8>,
    client_ended: bool,
    server_ended: bool,
    /// The server's half no longer takes bytes; it is closed, or has shut both directions.
    server_gone: bool,
    reset: bool,
}

impl Wire {
    /// Bytes met a server that has closed: it answers with a reset, which destroys some of what the client has
    /// not read (RFC 2525 section 2.17).
    fn bounce(&mut self) {
        if self.server_gone && !self.to_server.is_empty() && !self.reset {
            let kept = self.dice.below(self.to_client.len() + 1);
            self.to_client.truncate(kept);
            self.reset = true;
        }
    }
}

type SharedWire = Arc<Mutex<Wire>>;

/// The end of a simulated connection that is inside a [`Socket`].
#[derive(Debug)]
pub struct ServerHalf {
    wire: SharedWire,
    /// Copies of the descriptor, in all processes.
    #[cfg_attr(not(test), expect(dead_code, reason = "held for what its drop tells the other side"))]
    copies: Arc<Copies>,
}

/// The last copy of a descriptor closes the connection.
#[derive(Debug)]
struct Copies {
    wire: SharedWire,
}

impl Drop for Copies {
    fn drop(&mut self) {
        end_both(&self.wire);
    }
}

fn end_both(wire: &SharedWire) {
    let mut wire = lock(wire);
    (wire.server_ended, wire.server_gone) = (true, true);
    wire.bounce();
}

impl ServerHalf {
    fn new(wire: SharedWire) -> Self {
        let copies = Arc::new(Copies { wire: Arc::clone(&wire) });
        Self { wire, copies }
    }

    /// Another descriptor of the same connection, as a process gets one in a letter.
    #[cfg(test)]
    pub(super) fn duplicate(&self) -> Self {
        Self { wire: Arc::clone(&self.wire), copies: Arc::clone(&self.copies) }
    }

    pub(super) fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut wire = lock(&self.wire);
        if wire.reset {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if wire.server_ended {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let room = WINDOW_BYTES - wire.to_client.len();
        if total == 0 {
            return Ok(0);
        }
        // Sometimes there is no room although there is: the kernel's buffers have other users.
        if room == 0 || wire.dice.one_in(16) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = wire.dice.part(total.min(room));
        wire.to_client.extend(parts.iter().flat_map(|part| part.iter()).take(count));
        Ok(count)
    }

    pub(super) fn send_file(
        &self,
        file: BorrowedFd<'_>,
        offset: &mut u64,
        count: usize,
    ) -> io::Result<usize> {
        let mut bytes = vec![0; count.min(WINDOW_BYTES)];
        let read = rustix::io::pread(file, &mut bytes, *offset)?;
        let sent = self.send(&[IoSlice::new(&bytes[..read])])?;
        *offset += sent as u64;
        Ok(sent)
    }

    pub(super) fn end(&self) -> io::Result<()> {
        lock(&self.wire).server_ended = true;
        Ok(())
    }

    pub(super) fn has_ended(&self) -> bool {
        lock(&self.wire).server_ended
    }

    pub(super) fn end_both(&self) -> io::Result<()> {
        end_both(&self.wire);
        Ok(())
    }

    pub(super) fn reset(&self) {
        let mut wire = lock(&self.wire);
        wire.reset = true;
        wire.to_client.clear();
    }

    pub(super) fn peer_addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, lock(&self.wire).number).into()
    }
}

/// The client's end of a simulated connection. Dropping it ends the client's direction.
#[derive(Debug)]
pub struct Client {
    wire: SharedWire,
}

impl Client {
    /// Puts bytes on the wire.
    pub fn send(&self, bytes: &[u8]) {
        let mut wire = lock(&self.wire);
        wire.to_server.extend(bytes);
        wire.bounce();
    }

    /// Says that no more bytes follow.
    pub fn end(&self) {
        lock(&self.wire).client_ended = true;
    }

    /// Breaks the connection off. Some of the bytes on their way are lost.
    pub fn reset(&self) {
        let mut wire = lock(&self.wire);
        let left = wire.to_server.len();
        let kept = wire.dice.part(left);
        wire.to_server.truncate(kept);
        wire.to_client.clear();
        wire.reset = true;
    }

    /// Reads up to `count` bytes of what has come.
    #[must_use]
    pub fn take(&self, count: usize) -> Vec<u8> {
        let mut wire = lock(&self.wire);
        let count = count.min(wire.to_client.len());
        wire.to_client.drain(..count).collect()
    }

    /// Something has come that was not read.
    #[must_use]
    pub fn has_bytes(&self) -> bool {
        !lock(&self.wire).to_client.is_empty()
    }

    /// The server has ended its direction, and every byte before the end has been read.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        let wire = lock(&self.wire);
        wire.server_ended && wire.to_client.is_empty()
    }

    /// Either side has reset the connection.
    #[must_use]
    pub fn is_reset(&self) -> bool {
        lock(&self.wire).reset
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.end();
    }
}

/// The network, as the test sees it: makes connections and lets time pass.
#[derive(Clone, Debug)]
pub struct Network {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    dice: Dice,
    now_ms: u64,
    connections: u16,
    /// Connections that nobody has accepted, with the index of their listener.
    waiting: VecDeque<(usize, SharedWire)>,
    /// Errors that accepting will end with.
    accept_errors: VecDeque<(usize, i32)>,
}

impl Network {
    /// A client connects to the listener with this index.
    #[must_use]
    pub fn connect(&self, listener: usize) -> Client {
        let mut shared = lock(&self.shared);
        shared.connections = shared.connections.wrapping_add(1);
        let wire = Arc::new(Mutex::new(Wire {
            dice: Dice(shared.dice.roll()),
            number: shared.connections,
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
            client_ended: false,
            server_ended: false,
            server_gone: false,
            reset: false,
        }));
        shared.waiting.push_back((listener, Arc::clone(&wire)));
        Client { wire }
    }

    /// Accepting on this listener ends with `errno`, once.
    pub fn fail_accept(&self, listener: usize, errno: i32) {
        lock(&self.shared).accept_errors.push_back((listener, errno));
    }

    /// The time, in milliseconds.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        lock(&self.shared).now_ms
    }

    /// Lets time pass.
    pub fn pass_ms(&self, ms: u64) {
        lock(&self.shared).now_ms += ms;
    }
}

#[derive(Default)]
struct Slot {
    /// Who uses the slot.
    user: Option<(Token, SharedWire)>,
    receiving: bool,
    writable: bool,
    /// Given up; what a ring may have taken off the socket by then is still to be delivered.
    detaching: bool,
}

/// The simulated driver.
pub struct Sim {
    shared: Arc<Mutex<Shared>>,
    dice: Dice,
    waker: Waker,
    pool: Rc<Pool>,
    listeners: Vec<Option<Accepting>>,
    slots: Vec<Slot>,
    /// Connections given up that had no slot.
    detached: Vec<Token>,
    /// What is added to the number of a listener of the network, modulo the second number, to get this driver's.
    numbers: (usize, usize),
    now_ms: u64,
}

impl Sim {
    /// A driver and its network. The seed decides everything that chance decides.
    ///
    /// # Errors
    /// No descriptor for the waker, or no memory for the buffers.
    pub fn new(seed: u64) -> io::Result<(Self, Network)> {
        let mut dice = Dice(seed);
        let now_ms = dice.roll() % 1_000_000;
        let (connections, waiting, accept_errors) = (1_024, VecDeque::new(), VecDeque::new());
        let shared = Shared { dice: dice.clone(), now_ms, connections, waiting, accept_errors };
        let network = Network { shared: Arc::new(Mutex::new(shared)) };
        let sim = Self {
            shared: Arc::clone(&network.shared),
            dice,
            waker: Waker::new()?,
            pool: Pool::new(BUFFERS, RECV_BUFFER_BYTES)?,
            listeners: Vec::new(),
            slots: Vec::new(),
            detached: Vec::new(),
            numbers: (0, usize::MAX),
            now_ms,
        };
        Ok((sim, network))
    }

    /// A driver on a network that has others, of `count` in all, each with one listener of the network. Each knows
    /// its own, with this index, as number 0, and those of the others by the numbers behind it.
    ///
    /// # Errors
    /// As [`Sim::new`].
    #[cfg(test)]
    pub fn among(seed: u64, network: &Network, index: usize, count: usize) -> io::Result<Self> {
        let now_ms = network.now_ms();
        let numbers = (count - index, count);
        Ok(Self { shared: Arc::clone(&network.shared), numbers, now_ms, ..Self::new(seed)?.0 })
    }

    fn number(&self, listener: usize) -> usize {
        (listener + self.numbers.0) % self.numbers.1
    }

    /// Whether every receive buffer is free.
    #[must_use]
    pub fn has_all_buffers(&self) -> bool {
        self.pool.free() == usize::from(self.pool.count())
    }

    fn known(&mut self, token: Token) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(token.slot as usize)?;
        slot.user.as_ref().is_some_and(|(user, _)| *user == token).then_some(slot)
    }

    fn enter(&mut self, token: Token, socket: &Socket) -> io::Result<&mut Slot> {
        let half = socket.simulated().ok_or(io::ErrorKind::InvalidInput)?;
        let index = token.slot as usize;
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, Slot::default);
        }
        if self.known(token).is_none() {
            assert!(!self.slots[index].detaching, "a connection that is given up is used");
            let user = Some((token, Arc::clone(&half.wire)));
            self.slots[index] = Slot { user, ..Slot::default() };
        }
        Ok(&mut self.slots[index])
    }

    /// Everything that can happen now; `lazy` leaves some of it for later.
    fn happen(&mut self, lazy: bool, events: &mut Vec<Event>) {
        if self.waker.is_pending() {
            self.waker.taken();
            events.push(Event::Woken);
        }
        self.happen_accepts(lazy, events);
        // A different connection is first each time.
        let count = self.slots.len();
        let first = self.dice.below(count);
        for step in 0..count {
            if !(lazy && self.dice.one_in(4)) {
                self.happen_slot((first + step) % count, events);
            }
        }
    }

    fn happen_accepts(&mut self, lazy: bool, events: &mut Vec<Event>) {
        let mut shared = lock(&self.shared);
        if let Some(&(listener, errno)) = shared.accept_errors.front()
            && let Some(armed @ Some(_)) = self.listeners.get_mut(listener)
        {
            *armed = None;
            shared.accept_errors.pop_front();
            events.push(Event::AcceptFailed { listener, error: io::Error::from_raw_os_error(errno) });
        }
        let mut at = 0;
        while at < shared.waiting.len() {
            let listener = shared.waiting[at].0;
            let number = self.number(listener);
            let armed = matches!(self.listeners.get(number), Some(Some(_)));
            if !armed || (lazy && self.dice.one_in(4)) {
                at += 1;
            } else if let Some((_, wire)) = shared.waiting.remove(at) {
                events
                    .push(Event::Accepted { listener: number, socket: Socket::from(ServerHalf::new(wire)) });
            }
        }
    }

    fn happen_slot(&mut self, index: usize, events: &mut Vec<Event>) {
        let slot = &mut self.slots[index];
        let Some((token, wire)) = &slot.user else { return };
        let token = *token;
        if slot.detaching && self.dice.one_in(2) {
            events.push(Event::Detached { token });
            *slot = Slot::default();
            return;
        }
        let mut wire = lock(wire);
        let room = wire.to_client.len() < WINDOW_BYTES || wire.reset || wire.server_ended;
        if slot.writable && room {
            slot.writable = false;
            events.push(Event::Writable { token });
        }
        // Up to three pieces in a turn, as from a multishot receive.
        for _ in 0..=self.dice.below(3) {
            if !slot.receiving {
                return;
            }
            if wire.to_server.is_empty() {
                if wire.reset {
                    slot.receiving = false;
                    let error = io::ErrorKind::ConnectionReset.into();
                    events.push(Event::Failed { token, error });
                } else if wire.client_ended || wire.server_gone {
                    slot.receiving = false;
                    events.push(Event::Ended { token });
                }
                return;
            }
            let Some(mut bytes) = self.pool.lease() else { return };
            let there = wire.to_server.len();
            let filled = bytes.fill(|space| {
                let count = self.dice.part(there.min(space.len()));
                for (place, byte) in space.iter_mut().zip(wire.to_server.drain(..count)) {
                    *place = byte;
                }
                Ok(count)
            });
            if filled.is_ok_and(|count| count > 0) {
                events.push(Event::Received { token, bytes });
            }
        }
    }
}

impl Driver for Sim {
    fn name(&self) -> &'static str {
        "simulation"
    }

    fn now_ms(&self) -> u64 {
        self.now_ms
    }

    fn accept(&mut self, listener: usize, _fd: RawFd, mode: Accepting) -> io::Result<()> {
        if self.listeners.len() <= listener {
            self.listeners.resize(listener + 1, None);
        }
        self.listeners[listener].get_or_insert(mode);
        Ok(())
    }

    fn stop_accept(&mut self, listener: usize) {
        if let Some(armed) = self.listeners.get_mut(listener) {
            *armed = None;
        }
    }

    fn receive(&mut self, token: Token, socket: &Socket) -> io::Result<()> {
        self.enter(token, socket)?.receiving = true;
        Ok(())
    }

    fn pause(&mut self, token: Token, _socket: &Socket) {
        if let Some(slot) = self.known(token) {
            slot.receiving = false;
        }
    }

    fn writable(&mut self, token: Token, socket: &Socket) -> io::Result<()> {
        self.enter(token, socket)?.writable = true;
        Ok(())
    }

    fn release(&mut self, token: Token, socket: &Socket) {
        let _ = socket.shutdown_both();
        if let Some(slot) = self.known(token) {
            *slot = Slot::default();
        }
    }

    fn detach(&mut self, token: Token, _socket: &Socket) {
        match self.known(token) {
            Some(slot) => (slot.writable, slot.detaching) = (false, true),
            None => self.detached.push(token),
        }
    }

    fn watch(&mut self, _fd: RawFd) -> io::Result<()> {
        Ok(())
    }

    fn turn(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        let before = events.len();
        events.extend(self.detached.drain(..).map(|token| Event::Detached { token }));
        self.happen(true, events);
        if events.len() == before {
            self.happen(false, events);
        }
        if events.len() == before && self.slots.iter().any(|slot| slot.detaching) {
            // The last report of a cancelled receive needs no time.
            return Ok(());
        }
        if events.len() == before {
            match timeout {
                Some(timeout) => {
                    // Rounded up, so that a wait for less than a millisecond gets there too.
                    let ms = timeout.as_nanos().div_ceil(1_000_000);
                    lock(&self.shared).now_ms += u64::try_from(ms).unwrap_or(u64::MAX >> 1);
                }
                None => self.wait_for_another_thread(events)?,
            }
        }
        self.now_ms = lock(&self.shared).now_ms;
        Ok(())
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

impl Sim {
    /// Only another thread can make something happen now: really waits for its wake-up.
    fn wait_for_another_thread(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        let fd = self.waker.borrowed();
        // Earlier wake-ups have left their count in the eventfd.
        let _ = rustix::io::read(fd, &mut [0u8; 8]);
        if !self.waker.is_pending() {
            let woken = poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&STUCK))?;
            if woken == 0 {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the simulation waits for nobody"));
            }
        }
        self.waker.taken();
        events.push(Event::Woken);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    fn token(slot: u32) -> Token {
        Token { slot, generation: 0 }
    }

    /// Echoes until every client has its bytes back; returns what happened, in short.
    fn echo(seed: u64) -> Vec<String> {
        let (mut sim, network) = Sim::new(seed).unwrap();
        sim.accept(0, -1, Accepting::Alone).unwrap();
        let clients: Vec<_> = (0..5u8)
            .map(|number| {
                let client = network.connect(0);
                let request: Vec<u8> = (0..20_000u32).map(|at| (at % 241) as u8 ^ number).collect();
                client.send(&request);
                client.end();
                (client, request)
            })
            .collect();
        let mut log = Vec::new();
        let mut conns: Vec<(Socket, Vec<u8>, bool)> = Vec::new();
        let mut answers = vec![Vec::new(); clients.len()];
        let mut events = Vec::new();
        for _ in 0..200_000 {
            sim.turn(Some(Duration::from_millis(1)), &mut events).unwrap();
            for event in events.drain(..) {
                log.push(format!("{event:?}"));
                match event {
                    Event::Accepted { socket, .. } => {
                        sim.receive(token(conns.len() as u32), &socket).unwrap();
                        conns.push((socket, Vec::new(), false));
                    }
                    Event::Received { token, bytes } => {
                        conns[token.slot as usize].1.extend_from_slice(&bytes)
                    }
                    Event::Ended { token } => conns[token.slot as usize].2 = true,
                    Event::Writable { .. } => {}
                    other => panic!("seed {seed}: {other:?}"),
                }
            }
            for (slot, (socket, rest, ended)) in conns.iter_mut().enumerate() {
                if rest.is_empty() && *ended {
                    socket.shutdown_write().unwrap();
                    continue;
                }
                match socket.send(&[IoSlice::new(rest)]) {
                    Ok(count) => drop(rest.drain(..count)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        sim.writable(token(slot as u32), socket).unwrap();
                    }
                    Err(error) => panic!("seed {seed}: {error}"),
                }
            }
            for ((client, request), answer) in clients.iter().zip(&mut answers) {
                answer.extend(client.take(5_000));
                assert!(request.starts_with(answer), "seed {seed}");
            }
            if clients.iter().zip(&answers).all(|((_, request), answer)| request == answer) {
                return log;
            }
        }
        panic!("seed {seed}: no end");
    }

    #[test]
    fn every_byte_arrives_once_and_in_order_under_every_seed() {
        for seed in 0..50 {
            echo(seed);
        }
    }

    #[test]
    fn one_seed_is_one_run_and_another_is_another() {
        assert_eq!(echo(7), echo(7));
        assert_ne!(echo(7), echo(8));
    }

    #[test]
    fn time_passes_only_when_nothing_happens() {
        let (mut sim, network) = Sim::new(1).unwrap();
        sim.accept(0, -1, Accepting::Alone).unwrap();
        let _client = network.connect(0);
        let start = sim.now_ms();
        let mut events = Vec::new();
        sim.turn(Some(Duration::from_secs(9)), &mut events).unwrap();
        assert!(matches!(events[..], [Event::Accepted { .. }]));
        assert_eq!(sim.now_ms(), start);
        sim.turn(Some(Duration::from_secs(9)), &mut events).unwrap();
        assert_eq!(sim.now_ms(), start + 9_000);
    }

    #[test]
    fn a_reset_fails_the_receive_and_the_send() {
        let (mut sim, network) = Sim::new(3).unwrap();
        sim.accept(0, -1, Accepting::Alone).unwrap();
        let client = network.connect(0);
        let mut events = Vec::new();
        sim.turn(None, &mut events).unwrap();
        let Some(Event::Accepted { socket, .. }) = events.pop() else { panic!() };
        sim.receive(token(0), &socket).unwrap();
        client.reset();
        sim.turn(None, &mut events).unwrap();
        assert!(matches!(events[..], [Event::Failed { .. }]));
        assert_eq!(socket.send(&[IoSlice::new(b"x")]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_wait_without_limit_ends_with_a_wake_up() {
        let (mut sim, _network) = Sim::new(4).unwrap();
        let mut events = Vec::new();
        for _ in 0..20 {
            let waker = sim.waker();
            let thread = std::thread::spawn(move || waker.wake());
            while events.is_empty() {
                sim.turn(None, &mut events).unwrap();
            }
            assert!(events.drain(..).all(|event| matches!(event, Event::Woken)));
            thread.join().unwrap();
        }
    }

    #[test]
    fn release_ends_both_directions_and_silences_the_slot() {
        let (mut sim, network) = Sim::new(5).unwrap();
        sim.accept(0, -1, Accepting::Shared).unwrap();
        let client = network.connect(0);
        let mut events = Vec::new();
        sim.turn(None, &mut events).unwrap();
        let Some(Event::Accepted { socket, .. }) = events.pop() else { panic!() };
        sim.receive(token(0), &socket).unwrap();
        sim.release(token(0), &socket);
        assert!(client.is_ended() && !client.is_reset());
        client.send(b"late");
        assert!(client.is_reset(), "nobody reads it any more");
        sim.turn(Some(Duration::ZERO), &mut events).unwrap();
        assert!(events.is_empty(), "{events:?}");
    }

    #[test]
    fn a_failed_accept_stays_disarmed_until_it_is_armed_again() {
        let (mut sim, network) = Sim::new(6).unwrap();
        sim.accept(2, -1, Accepting::Alone).unwrap();
        network.fail_accept(2, libc::EMFILE);
        let mut events = Vec::new();
        sim.turn(None, &mut events).unwrap();
        assert!(matches!(events.pop(), Some(Event::AcceptFailed { listener: 2, .. })));
        let _client = network.connect(2);
        sim.turn(Some(Duration::ZERO), &mut events).unwrap();
        assert!(events.is_empty(), "{events:?}");
        sim.accept(2, -1, Accepting::Alone).unwrap();
        sim.turn(None, &mut events).unwrap();
        assert!(matches!(events.pop(), Some(Event::Accepted { listener: 2, .. })));
    }
}
