//! The backend for kernels and containers that have no io_uring: readiness turned into completions.
//!
//! Level-triggered. A receive costs one recv(2) per readiness: no second one is made to see
//! `EAGAIN`, because a socket that has more is simply reported again. Interest is changed lazily: a
//! pause costs a system call only when the peer sends during it.
//!
//! Does not own the descriptors it watches: whoever asks keeps a socket open until
//! [`Driver::release`], and a listener until [`Driver::stop_accept`].

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use rustix::event::{Timespec, epoll};

use super::key::{pack, unpack};
use super::op::{Accepting, Driver, Event, Token};
use super::{Pool, Socket, Waker};
use crate::limits::{ACCEPTS_PER_TURN, RECV_BUFFER_BYTES, RECV_BUFFERS, SLOTS_MAX};
use crate::sys::clock::monotonic_ms;
use crate::sys::fd::{accept, epoll_control, receive, set_nonblocking};

/// Readiness reports taken from the kernel in one turn. Connections beyond it are reported first in
/// the next one: the kernel rotates its list.
const REPORTS: usize = 256;

const IN: u32 = libc::EPOLLIN as u32;
const OUT: u32 = libc::EPOLLOUT as u32;
/// What the kernel reports whether asked or not.
const BROKEN: u32 = (libc::EPOLLERR | libc::EPOLLHUP) as u32;

/// Operations in the keys given to the kernel.
mod op {
    pub(super) const CONNECTION: u8 = 0;
    pub(super) const LISTENER: u8 = 1;
    pub(super) const WAKE: u8 = 2;
    pub(super) const WATCH: u8 = 3;
}

/// One connection slot.
#[derive(Clone, Copy, Default)]
struct Slot {
    generation: u32,
    fd: RawFd,
    used: bool,
    /// What the owner waits for: `IN`, `OUT`.
    wanted: u32,
    /// What the kernel watches; 0 when the descriptor is not in the epoll set.
    watched: u32,
    /// Has bytes, and waits in `starved` for a buffer. Belongs to the list and not to the
    /// generation, so that a slot is never in the list twice.
    starved: bool,
}

struct Listener {
    fd: RawFd,
    armed: bool,
    /// Connections to take per turn.
    batch: usize,
}

/// The epoll backend.
pub(super) struct Epoll {
    epoll: OwnedFd,
    waker: Waker,
    pool: Rc<Pool>,
    slots: Vec<Slot>,
    listeners: Vec<Listener>,
    /// Slots that had bytes when no buffer was free. They are taken out of the epoll set, or the
    /// kernel would report them again at once, for ever.
    starved: VecDeque<u32>,
    /// How often one of them began to wait.
    buffer_waits: u64,
    /// Connections given up, to be told in the next turn.
    detached: Vec<Token>,
    reports: Vec<epoll::Event>,
    now_ms: u64,
}

impl Epoll {
    /// # Errors
    /// What epoll_create1(2), eventfd(2) or mmap(2) refuse.
    pub(super) fn new() -> io::Result<Self> {
        Self::with_buffers(RECV_BUFFERS)
    }

    pub(super) fn with_buffers(count: u16) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let waker = Waker::new()?;
        // Edge-triggered, and never read: each write is one edge.
        let events = (libc::EPOLLIN | libc::EPOLLET) as u32;
        let key = pack(op::WAKE, Token { slot: 0, generation: 0 });
        epoll_control(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, waker.fd(), events, key)?;
        Ok(Self {
            epoll,
            waker,
            pool: Pool::new(count, RECV_BUFFER_BYTES)?,
            slots: Vec::new(),
            listeners: Vec::new(),
            starved: VecDeque::new(),
            buffer_waits: 0,
            detached: Vec::new(),
            reports: Vec::with_capacity(REPORTS),
            now_ms: monotonic_ms(),
        })
    }

    /// The descriptors that a child forked by the application must close.
    pub(super) fn fds(&self) -> Vec<RawFd> {
        vec![self.epoll.as_raw_fd(), self.waker.fd()]
    }

    /// The slot of a connection that is known under exactly this token.
    fn known(&mut self, token: Token) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(token.slot as usize)?;
        (slot.used && slot.generation == token.generation).then_some(slot)
    }

    /// The slot of a connection, made ready for it if it is new.
    fn enter(&mut self, token: Token, socket: &Socket) -> io::Result<()> {
        if token.slot >= SLOTS_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let index = token.slot as usize;
        if index >= self.slots.len() {
            self.slots.resize(index + 1, Slot::default());
        }
        let Slot { used, generation, starved, .. } = self.slots[index];
        if used && generation == token.generation {
            return Ok(());
        }
        self.forget(token.slot);
        self.slots[index] = Slot {
            generation: token.generation,
            fd: socket.as_raw_fd(),
            used: true,
            starved,
            ..Slot::default()
        };
        Ok(())
    }

    /// Ends the present use of a slot.
    fn forget(&mut self, slot: u32) {
        let index = slot as usize;
        self.slots[index].wanted = 0;
        // Closing the descriptor would not do it: a child of the application may hold a copy, and
        // then the kernel would go on reporting a connection that nobody knows any more.
        let _ = self.watch(slot, 0);
        self.slots[index].used = false;
    }

    /// Has the kernel watch exactly `events` of the slot's descriptor.
    fn watch(&mut self, index: u32, events: u32) -> io::Result<()> {
        let slot = &mut self.slots[index as usize];
        let operation = match (slot.watched, events) {
            (watched, wanted) if watched == wanted => return Ok(()),
            (0, _) => libc::EPOLL_CTL_ADD,
            (_, 0) => libc::EPOLL_CTL_DEL,
            _ => libc::EPOLL_CTL_MOD,
        };
        let key = pack(op::CONNECTION, Token { slot: index, generation: slot.generation });
        epoll_control(self.epoll.as_raw_fd(), operation, slot.fd, events, key)?;
        slot.watched = events;
        Ok(())
    }

    /// Adds one direction to what is wanted and watched.
    fn want(&mut self, token: Token, socket: &Socket, direction: u32) -> io::Result<()> {
        self.enter(token, socket)?;
        let slot = &mut self.slots[token.slot as usize];
        slot.wanted |= direction;
        // A starved connection is watched again when there is a buffer for it.
        let hidden = if slot.starved { IN } else { 0 };
        let events = (slot.watched | slot.wanted) & !hidden;
        self.watch(token.slot, events)
    }

    /// A report about a connection.
    fn ready(&mut self, token: Token, flags: u32, events: &mut Vec<Event>) {
        let Some(slot) = self.known(token) else { return };
        let wanted = slot.wanted;
        if wanted & OUT != 0 && flags & (OUT | BROKEN) != 0 {
            slot.wanted &= !OUT;
            events.push(Event::Writable { token });
        }
        if wanted & IN != 0 && flags & (IN | BROKEN) != 0 && !slot.starved {
            self.receive_ready(token, events);
        }
        // Level-triggered: whatever is reported and not wanted must not be watched any longer. An
        // error or a hang-up is reported always, so only leaving the set silences it.
        let slot = self.slots[token.slot as usize];
        let hidden = if slot.starved { IN } else { 0 };
        let wanted = slot.wanted & !hidden;
        if flags & slot.watched & !wanted != 0 || (flags & BROKEN != 0 && wanted != slot.watched) {
            let _ = self.watch(token.slot, wanted);
        }
    }

    fn receive_ready(&mut self, token: Token, events: &mut Vec<Event>) {
        let slot = &mut self.slots[token.slot as usize];
        let Some(mut bytes) = self.pool.lease() else {
            slot.starved = true;
            self.starved.push_back(token.slot);
            self.buffer_waits += 1;
            return;
        };
        let fd = slot.fd;
        match bytes.fill(|space| receive(fd, space)) {
            Ok(0) => {
                slot.wanted &= !IN;
                events.push(Event::Ended { token });
            }
            Ok(_) => events.push(Event::Received { token, bytes }),
            Err(error) if is_transient(&error) => {}
            Err(error) => {
                slot.wanted &= !IN;
                events.push(Event::Failed { token, error });
            }
        }
    }

    /// A report about a listener.
    fn accept_ready(&mut self, listener: usize, events: &mut Vec<Event>) {
        let Some(&Listener { fd, armed: true, batch }) = self.listeners.get(listener) else { return };
        for _ in 0..batch {
            match accept(fd) {
                Ok(fd) => events.push(Event::Accepted { listener, socket: Socket::from(fd) }),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    self.stop_accept(listener);
                    events.push(Event::AcceptFailed { listener, error });
                    return;
                }
            }
        }
    }

    /// Lets the kernel report starved connections again, as many as there are buffers for.
    fn feed(&mut self, events: &mut Vec<Event>) {
        let mut buffers = self.pool.free();
        while buffers > 0 {
            let Some(index) = self.starved.pop_front() else { return };
            let slot = &mut self.slots[index as usize];
            slot.starved = false;
            let wanted = slot.wanted;
            if wanted & IN != 0 {
                buffers -= 1;
                let token = Token { slot: index, generation: slot.generation };
                if let Err(error) = self.watch(index, wanted) {
                    self.slots[index as usize].wanted &= !IN;
                    events.push(Event::Failed { token, error });
                }
            }
        }
    }
}

impl Driver for Epoll {
    fn name(&self) -> &'static str {
        "epoll"
    }

    fn now_ms(&self) -> u64 {
        self.now_ms
    }

    fn accept(&mut self, listener: usize, fd: RawFd, mode: Accepting) -> io::Result<()> {
        if listener >= SLOTS_MAX as usize {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        while self.listeners.len() <= listener {
            self.listeners.push(Listener { fd: -1, armed: false, batch: 0 });
        }
        if self.listeners[listener].armed {
            return Ok(());
        }
        // Between the report and the accept another process, or the peer's reset, may take the
        // connection away; a blocking accept would then stop the whole thread.
        set_nonblocking(fd)?;
        let (events, batch) = match mode {
            Accepting::Alone => (IN, ACCEPTS_PER_TURN),
            // One per turn, as with io_uring: what a burst leaves in the queue goes to whichever
            // process is idle.
            Accepting::Shared => (IN | libc::EPOLLEXCLUSIVE as u32, 1),
        };
        let key = pack(op::LISTENER, Token { slot: listener as u32, generation: 0 });
        epoll_control(self.epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, events, key)?;
        self.listeners[listener] = Listener { fd, armed: true, batch };
        Ok(())
    }

    fn stop_accept(&mut self, listener: usize) {
        let Some(known) = self.listeners.get_mut(listener) else { return };
        if std::mem::take(&mut known.armed) {
            let _ = epoll_control(self.epoll.as_raw_fd(), libc::EPOLL_CTL_DEL, known.fd, 0, 0);
        }
    }

    fn receive(&mut self, token: Token, socket: &Socket) -> io::Result<()> {
        self.want(token, socket, IN)
    }

    fn pause(&mut self, token: Token, _socket: &Socket) {
        if let Some(slot) = self.known(token) {
            slot.wanted &= !IN;
        }
    }

    fn writable(&mut self, token: Token, socket: &Socket) -> io::Result<()> {
        self.want(token, socket, OUT)
    }

    fn release(&mut self, token: Token, socket: &Socket) {
        if self.known(token).is_some() {
            self.forget(token.slot);
        }
        // An error means that the peer is gone already.
        let _ = socket.shutdown_both();
    }

    fn detach(&mut self, token: Token, _socket: &Socket) {
        // Nothing was taken off the socket that was not delivered.
        if self.known(token).is_some() {
            self.forget(token.slot);
        }
        self.detached.push(token);
    }

    fn watch(&mut self, fd: RawFd) -> io::Result<()> {
        let events = (libc::EPOLLIN | libc::EPOLLET) as u32;
        let key = pack(op::WATCH, Token { slot: 0, generation: 0 });
        epoll_control(self.epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, events, key)
    }

    fn turn(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        self.feed(events);
        let timeout = if self.detached.is_empty() { timeout } else { Some(Duration::ZERO) };
        events.extend(self.detached.drain(..).map(|token| Event::Detached { token }));
        // The kernel counts whole milliseconds here; rounding down would turn the last one of each
        // wait into a busy loop.
        let timeout = timeout.map(|timeout| {
            let ms = timeout.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as i64;
            Timespec { tv_sec: ms / 1_000, tv_nsec: (ms % 1_000) * 1_000_000 }
        });
        self.reports.clear();
        let mut waited =
            epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.reports), timeout.as_ref());
        if waited == Err(rustix::io::Errno::INTR) {
            events.push(Event::Woken);
            // The process may have stood still (SIGSTOP). What came meanwhile must be seen before the clock is: it came
            // in time, and its deadline is over by now.
            let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
            waited =
                epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.reports), Some(&at_once));
        }
        self.now_ms = monotonic_ms();
        match waited {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for index in 0..self.reports.len() {
            // Copied out field by field: the kernel's structure is packed.
            let epoll::Event { flags, data, .. } = self.reports[index];
            let (op, token) = unpack(data.u64());
            match op {
                op::CONNECTION => self.ready(token, flags.bits(), events),
                op::LISTENER => self.accept_ready(token.slot as usize, events),
                op::WATCH => events.push(Event::Readable),
                _ => {
                    self.waker.taken();
                    events.push(Event::Woken);
                }
            }
        }
        Ok(())
    }

    fn buffer_waits(&self) -> u64 {
        self.buffer_waits
    }

    fn readiness(&mut self) -> io::Result<Vec<OwnedFd>> {
        Ok(vec![self.epoll.try_clone()?])
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

/// Nothing happened after all: ask again.
pub(super) fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// The error was of a connection that broke before it was taken; the next one may be fine. Source:
/// accept(2), "Error handling".
pub(super) fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::EINTR
                | libc::EPROTO
                | libc::ENOPROTOOPT
                | libc::ENETDOWN
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
                | libc::ENONET
        )
    )
}
