//! The io_uring backend.
//!
//! One io_uring_enter(2) per turn submits what was asked for and waits. Receives are multishot into
//! the buffer ring, so a connection costs one submission for its whole life; accepts are multishot
//! on a listener of our own.
//!
//! What is asked for between two turns is only noted down, as "wanted" in the slot. The turn
//! compares it with what the kernel has and submits the difference. So a pause that is taken back
//! costs nothing, a receive asked for while its cancellation is under way ends up armed exactly once,
//! and, most of all, **no submission with a descriptor's number in it ever waits while other code
//! runs**: after a release the descriptor may be closed and its number belong to a database
//! connection of the application, whose bytes a late submission would steal.
//!
//! Does not own the sockets and listeners: whoever asks keeps a socket open until
//! [`Driver::release`], and a listener until [`Driver::stop_accept`]. An operation that the kernel
//! has already holds its own reference.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use io_uring::types::{BufRingEntry, Fd, SubmitArgs, Timespec};

use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};

use rustix::event::{EventfdFlags, eventfd};

use super::buffers::{map_anonymous, unmap};
use super::epoll::{is_of_one_connection, is_transient};
use super::key::{pack, unpack};
use super::op::{Accepting, Driver, Event, Token};
use super::{Pool, RecvBuffer, Socket, Waker};
use crate::limits::{RECV_BUFFER_BYTES, RECV_BUFFERS, SLOTS_MAX};
use crate::sys::clock::monotonic_ms;
use crate::sys::fd::is_readable;

/// The buffer group of the ring's receives.
const GROUP: u16 = 0;

/// Submissions that one slot can need at once: a cancellation, a receive, a poll.
const SUBMISSIONS_PER_SLOT: usize = 3;

/// Buffers lent to the kernel at first. It hands them out in a circle, so all that are lent are
/// touched sooner or later; a small circle stays in the cache and keeps a quiet worker small. Each
/// time the kernel runs dry it doubles, up to the whole pool.
const LENT_FIRST: u16 = 128;

/// Rounds that a turn goes on submitting when the kernel takes only a part (no memory, a full
/// completion queue that each round empties).
const SUBMIT_ROUNDS: usize = 64;

/// Operations in the keys given to the kernel.
mod op {
    pub(super) const RECEIVE: u8 = 1;
    pub(super) const WRITABLE: u8 = 2;
    pub(super) const ACCEPT: u8 = 3;
    pub(super) const WAKE: u8 = 4;
    /// Of a receive or an accept whose last report is awaited.
    pub(super) const CANCEL_RECEIVE: u8 = 5;
    pub(super) const CANCEL_ACCEPT: u8 = 6;
    /// Of something that nobody waits for any more.
    pub(super) const CANCEL_STALE: u8 = 7;
    pub(super) const WATCH: u8 = 8;
}

/// Sizes of a ring.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// Entries of the submission queue.
    pub(super) submissions: u32,
    /// Entries of the completion queue.
    pub(super) completions: u32,
    /// Receive buffers; a power of two.
    pub(super) buffers: u16,
}

impl Sizes {
    /// About 100 KiB of locked memory: 64-byte submissions, 16-byte completions and buffer entries.
    pub(super) const FULL: Self = Self { submissions: 256, completions: 4096, buffers: RECV_BUFFERS };
    /// For users whose locked memory is nearly used up: about 16 KiB.
    pub(super) const SMALL: Self = Self { submissions: 64, completions: 512, buffers: 256 };
    /// For the probe.
    pub(super) const PROBE: Self = Self { submissions: 4, completions: 8, buffers: 2 };
}

/// What the kernel has of an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Armed {
    /// Nothing.
    #[default]
    No,
    /// The operation; it will report.
    Yes,
    /// The operation and its cancellation; its last report is still to come.
    Cancelling,
}

/// One connection slot: 16 bytes.
#[derive(Clone, Copy, Default)]
struct Slot {
    generation: u32,
    fd: RawFd,
    used: bool,
    receive_wanted: bool,
    receive: Armed,
    writable_wanted: bool,
    writable_armed: bool,
    /// Given up, and to be told so once the kernel has nothing of it any more.
    detaching: bool,
    /// In `changed`. This and `starved` belong to the lists and not to the generation, so that a
    /// slot is never in a list twice and the lists are never longer than the table.
    changed: bool,
    /// In `starved`.
    starved: bool,
}
const _: () = assert!(size_of::<Slot>() == 16);

#[derive(Clone, Copy)]
struct Listener {
    fd: RawFd,
    mode: Accepting,
    wanted: bool,
    armed: Armed,
    /// What the kernel has been told, while `armed`.
    armed_as: (RawFd, Accepting),
    /// A cancelled accept may have been woken in place of another process: one more is due.
    owes_one: bool,
    changed: bool,
}

/// What failed when a ring could not be made, and how.
pub(super) type Failure = (&'static str, io::Error);

/// The io_uring backend.
pub(super) struct Uring {
    ring: IoUring,
    enter_flags: u32,
    state: State,
}

/// Everything but the ring itself, so that completions can be handled while they are being read.
struct State {
    buffers: BufferRing,
    waker: Waker,
    wake_armed: bool,
    /// What [`Driver::watch`] was given, and whether the kernel watches it.
    watched: Option<(RawFd, bool)>,
    /// Connections given up that the kernel had nothing of, to be told in this turn.
    detached: Vec<Token>,
    slots: Vec<Slot>,
    listeners: Vec<Listener>,
    /// Slots whose wishes may differ from what the kernel has.
    changed: Vec<u32>,
    /// The same for listeners.
    listeners_changed: Vec<u32>,
    /// Keys of operations to cancel that no slot knows any more.
    cancels: Vec<u64>,
    /// Slots that want to receive and wait for a buffer. A receive armed while there is none fails
    /// at once (`ENOBUFS`), so arming it again before one has come back would spin.
    starved: VecDeque<u32>,
    /// How often one of them began to wait.
    buffer_waits: u64,
    now_ms: u64,
}

impl Uring {
    /// Makes a ring, trying from the best to the most modest.
    ///
    /// # Errors
    /// The step that failed last, and how.
    pub(super) fn new() -> Result<Self, Failure> {
        let mut failure = None;
        for sizes in [Sizes::FULL, Sizes::SMALL] {
            match Self::with_sizes(sizes) {
                Ok(ring) => return Ok(ring),
                // Less memory may do. With any other error it would only fail again.
                Err((step, error)) if error.raw_os_error() == Some(libc::ENOMEM) => {
                    failure = Some((step, error));
                }
                Err(failure) => return Err(failure),
            }
        }
        Err(failure.unwrap_or(("io_uring_setup", io::ErrorKind::Unsupported.into())))
    }

    pub(super) fn with_sizes(sizes: Sizes) -> Result<Self, Failure> {
        let ring = setup(sizes).map_err(|error| ("io_uring_setup", error))?;
        let mut enter_flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
        if ring.params().is_feature_no_iowait() {
            // Otherwise an idle worker is counted as a CPU that waits for a disk.
            enter_flags |= EnterFlags::NO_IOWAIT;
        }
        let waker = Waker::new().map_err(|error| ("eventfd", error))?;
        let buffers = BufferRing::register(&ring, sizes.buffers)?;
        Ok(Self {
            ring,
            enter_flags: enter_flags.bits(),
            state: State {
                buffers,
                waker,
                wake_armed: false,
                watched: None,
                detached: Vec::new(),
                slots: Vec::new(),
                listeners: Vec::new(),
                changed: Vec::new(),
                listeners_changed: Vec::new(),
                cancels: Vec::new(),
                starved: VecDeque::new(),
                buffer_waits: 0,
                now_ms: monotonic_ms(),
            },
        })
    }

    /// The descriptors that a child forked by the application must close: as long as one copy of
    /// the ring's descriptor is open, a dead worker's receives keep its clients' connections open.
    pub(super) fn fds(&self) -> Vec<RawFd> {
        vec![self.ring.as_raw_fd(), self.state.waker.fd()]
    }

    /// Whether the kernel still has this connection's receive. For the probe.
    pub(super) fn receive_armed(&self, token: Token) -> bool {
        let slot = self.state.slots.get(token.slot as usize);
        slot.is_some_and(|slot| slot.generation == token.generation && slot.receive == Armed::Yes)
    }

    /// Puts into the submission queue what differs between wishes and kernel. Whatever finds no
    /// room stays in its list for the next round.
    fn prepare(&mut self) {
        let Self { ring, state, .. } = self;
        state.buffers.refill();
        state.feed();
        let mut queue = ring.submission();
        if !state.wake_armed && room(&mut queue, 1) {
            let poll = opcode::PollAdd::new(Fd(state.waker.fd()), libc::POLLIN as u32).multi(true);
            push(&mut queue, &poll.build().user_data(pack(op::WAKE, Token { slot: 0, generation: 0 })));
            state.wake_armed = true;
        }
        if let Some((fd, armed @ false)) = &mut state.watched
            && room(&mut queue, 1)
        {
            let poll = opcode::PollAdd::new(Fd(*fd), libc::POLLIN as u32).multi(true);
            push(&mut queue, &poll.build().user_data(pack(op::WATCH, Token { slot: 0, generation: 0 })));
            *armed = true;
        }
        while room(&mut queue, 1) {
            let Some(key) = state.cancels.pop() else { break };
            push(&mut queue, &cancel(key, op::CANCEL_STALE));
        }
        while room(&mut queue, 2) {
            let Some(index) = state.listeners_changed.pop() else { break };
            state.submit_listener(index, &mut queue);
        }
        while room(&mut queue, SUBMISSIONS_PER_SLOT) {
            let Some(index) = state.changed.pop() else { break };
            state.submit_slot(index, &mut queue);
        }
    }

    /// Submits, and waits for one completion or the end of `timeout`.
    fn enter(&mut self, timeout: Option<Duration>) -> io::Result<usize> {
        let count = self.ring.submission().len() as u32;
        let timespec = timeout.map(Timespec::from);
        let mut args = SubmitArgs::new();
        if let Some(timespec) = &timespec {
            args = args.timespec(timespec);
        }
        // One completion is asked for also with a timeout of zero: that never blocks, and GETEVENTS
        // runs the deferred work, without which nothing would ever complete.
        // SAFETY: the arguments are of the type that EXT_ARG announces, and they and the timespec
        // they point to live until the call returns. The entries were pushed by `prepare`.
        unsafe { self.ring.submitter().enter(count, 1, self.enter_flags, Some(&args)) }
    }

    /// Whether less time than `wait` has passed since the last turn.
    fn is_early(before_ms: u64, wait: Option<Duration>) -> bool {
        let passed_ms = monotonic_ms().saturating_sub(before_ms);
        wait.is_none_or(|wait| u128::from(passed_ms) < wait.as_millis())
    }

    /// Turns completions into events and returns how many there were.
    fn complete(&mut self, events: &mut Vec<Event>) -> usize {
        let Self { ring, state, .. } = self;
        let mut count = 0;
        for completion in ring.completion() {
            count += 1;
            state.complete(completion.user_data(), completion.result(), completion.flags(), events);
        }
        count
    }
}

impl State {
    /// Nothing is left to submit.
    fn is_settled(&self) -> bool {
        self.changed.is_empty() && self.listeners_changed.is_empty() && self.cancels.is_empty()
    }

    fn known(&mut self, token: Token) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(token.slot as usize)?;
        (slot.used && slot.generation == token.generation).then_some(slot)
    }

    /// The slot of a connection, made ready for it if it is new.
    fn enter(&mut self, token: Token, socket: &Socket) -> io::Result<&mut Slot> {
        if token.slot >= SLOTS_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let index = token.slot as usize;
        if index >= self.slots.len() {
            self.slots.resize(index + 1, Slot::default());
        }
        let Slot { used, generation, changed, starved, .. } = self.slots[index];
        if !used || generation != token.generation {
            self.forget(token.slot, true);
            self.slots[index] = Slot {
                generation: token.generation,
                fd: socket.as_raw_fd(),
                used: true,
                changed,
                starved,
                ..Slot::default()
            };
        }
        Ok(&mut self.slots[index])
    }

    /// Ends the present use of a slot. What the kernel still reports for it is stale from here on.
    fn forget(&mut self, index: u32, cancel_receive: bool) {
        let slot = &mut self.slots[index as usize];
        if !std::mem::take(&mut slot.used) {
            return;
        }
        let token = Token { slot: index, generation: slot.generation };
        if slot.writable_armed {
            self.cancels.push(pack(op::WRITABLE, token));
        }
        if slot.receive == Armed::Yes && cancel_receive {
            self.cancels.push(pack(op::RECEIVE, token));
        }
    }

    /// Notes that a slot has to be compared with what the kernel has.
    fn change(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        if !std::mem::replace(&mut slot.changed, true) {
            self.changed.push(index);
        }
    }

    fn change_listener(&mut self, index: usize) {
        let listener = &mut self.listeners[index];
        if !std::mem::replace(&mut listener.changed, true) {
            self.listeners_changed.push(index as u32);
        }
    }

    /// Wakes as many starved slots as there are buffers for, the longest waiting first.
    fn feed(&mut self) {
        for _ in 0..self.buffers.lent {
            let Some(index) = self.starved.pop_front() else { return };
            self.slots[index as usize].starved = false;
            self.change(index);
        }
    }

    fn submit_slot(&mut self, index: u32, queue: &mut squeue::SubmissionQueue<'_>) {
        let slot = &mut self.slots[index as usize];
        slot.changed = false;
        if !slot.used {
            return;
        }
        let token = Token { slot: index, generation: slot.generation };
        match (slot.receive_wanted, slot.receive) {
            (true, Armed::No) if slot.starved => {}
            (true, Armed::No) if self.buffers.lent == 0 => {
                slot.starved = true;
                self.starved.push_back(index);
                self.buffer_waits += 1;
            }
            (true, Armed::No) => {
                let receive = opcode::RecvMulti::new(Fd(slot.fd), GROUP);
                push(queue, &receive.build().user_data(pack(op::RECEIVE, token)));
                slot.receive = Armed::Yes;
            }
            (false, Armed::Yes) => {
                push(queue, &cancel(pack(op::RECEIVE, token), op::CANCEL_RECEIVE));
                slot.receive = Armed::Cancelling;
            }
            // Under way or as it should be. The last report of a cancelled receive comes back here.
            (_, Armed::Cancelling) | (true, Armed::Yes) | (false, Armed::No) => {}
        }
        if slot.writable_wanted && !slot.writable_armed {
            let poll = opcode::PollAdd::new(Fd(slot.fd), libc::POLLOUT as u32);
            push(queue, &poll.build().user_data(pack(op::WRITABLE, token)));
            slot.writable_armed = true;
        }
        if self.detach(token) {
            self.detached.push(token);
        }
    }

    /// Ends the use of a slot that is given up, if the kernel has nothing of its receive. Returns whether.
    fn detach(&mut self, token: Token) -> bool {
        let slot = &self.slots[token.slot as usize];
        let done = slot.detaching && slot.receive == Armed::No;
        if done {
            self.forget(token.slot, false);
        }
        done
    }

    fn submit_listener(&mut self, index: u32, queue: &mut squeue::SubmissionQueue<'_>) {
        let listener = &mut self.listeners[index as usize];
        listener.changed = false;
        let key = pack(op::ACCEPT, Token { slot: index, generation: 0 });
        match (listener.wanted, listener.armed) {
            (true, Armed::No) => {
                let fd = Fd(listener.fd);
                let flags = libc::SOCK_CLOEXEC;
                let accept = match listener.mode {
                    Accepting::Alone => opcode::AcceptMulti::new(fd).flags(flags).build(),
                    Accepting::Shared => opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut())
                        .flags(flags)
                        .build(),
                };
                push(queue, &accept.user_data(key));
                listener.armed = Armed::Yes;
                listener.armed_as = (listener.fd, listener.mode);
            }
            (true, Armed::Yes) if listener.armed_as == (listener.fd, listener.mode) => {}
            (_, Armed::Yes) => {
                push(queue, &cancel(key, op::CANCEL_ACCEPT));
                listener.armed = Armed::Cancelling;
            }
            (false, Armed::No) if std::mem::take(&mut listener.owes_one) => {
                let accept = opcode::Accept::new(Fd(listener.fd), std::ptr::null_mut(), std::ptr::null_mut());
                push(queue, &accept.flags(libc::SOCK_CLOEXEC).build().user_data(key));
                // Somebody else may have been quicker.
                push(queue, &cancel(key, op::CANCEL_ACCEPT));
                listener.armed = Armed::Cancelling;
            }
            (_, Armed::Cancelling) | (false, Armed::No) => {}
        }
    }

    fn complete(&mut self, key: u64, result: i32, flags: u32, events: &mut Vec<Event>) {
        let (op, token) = unpack(key);
        let more = cqueue::more(flags);
        match op {
            op::RECEIVE => self.complete_receive(token, result, flags, events),
            op::WRITABLE => {
                if let Some(slot) = self.known(token) {
                    slot.writable_armed = false;
                    // An error too: the next send tells what it is.
                    if std::mem::take(&mut slot.writable_wanted) {
                        events.push(Event::Writable { token });
                    }
                }
            }
            op::ACCEPT => self.complete_accept(token.slot as usize, result, more, events),
            op::WAKE => {
                self.wake_armed = more;
                self.waker.taken();
                events.push(Event::Woken);
            }
            op::WATCH => {
                if let Some((_, armed)) = &mut self.watched {
                    *armed = more;
                }
                events.push(Event::Readable);
            }
            // A cancellation that worked reports nothing. One that did not find its operation, or
            // found it busy, has usually been overtaken by the operation's last report, and then
            // nobody is in `Cancelling` any more. Otherwise it is sent once more.
            op::CANCEL_RECEIVE => {
                if let Some(slot) = self.known(token)
                    && slot.receive == Armed::Cancelling
                {
                    slot.receive = Armed::Yes;
                    self.change(token.slot);
                }
            }
            op::CANCEL_ACCEPT => {
                if let Some(listener) = self.listeners.get_mut(token.slot as usize)
                    && listener.armed == Armed::Cancelling
                {
                    listener.armed = Armed::Yes;
                    self.change_listener(token.slot as usize);
                }
            }
            _ => {}
        }
    }

    fn complete_receive(&mut self, token: Token, result: i32, flags: u32, events: &mut Vec<Event>) {
        self.received(token, result, flags, events);
        if self.known(token).is_some() && self.detach(token) {
            events.push(Event::Detached { token });
        }
    }

    fn received(&mut self, token: Token, result: i32, flags: u32, events: &mut Vec<Event>) {
        // First of all the buffer: whatever the result and whoever the owner, it is ours again, and
        // goes back to the pool if it is not delivered.
        let bytes = cqueue::buffer_select(flags)
            .and_then(|id| self.buffers.reclaim(id, u32::try_from(result).unwrap_or(0)));
        let Some(slot) = self.known(token) else { return };
        if !cqueue::more(flags) {
            slot.receive = Armed::No;
        }
        match (result, bytes) {
            (1.., Some(bytes)) => events.push(Event::Received { token, bytes }),
            (0, _) => {
                slot.receive_wanted = false;
                events.push(Event::Ended { token });
            }
            (1.., None) => {
                // The kernel says that it has put bytes into a buffer that it did not have. They
                // cannot be found, so the stream has a hole.
                slot.receive_wanted = false;
                events.push(Event::Failed { token, error: io::ErrorKind::InvalidData.into() });
            }
            (..0, _) => match -result {
                libc::ENOBUFS => {
                    self.buffers.dry = true;
                    return self.starve(token.slot);
                }
                // A cancellation; if the receive is wanted again by now, it is armed again below.
                libc::ECANCELED => {}
                errno => {
                    let error = io::Error::from_raw_os_error(errno);
                    if !is_transient(&error) {
                        slot.receive_wanted = false;
                        events.push(Event::Failed { token, error });
                    }
                }
            },
        }
        // A multishot receive may end with data in its last report, when the completion queue was
        // full: what decides is the flag, not the result.
        if slot.receive_wanted != (slot.receive == Armed::Yes) {
            self.change(token.slot);
        }
    }

    /// Has a slot wait until buffers have come back.
    fn starve(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        if slot.receive_wanted && !std::mem::replace(&mut slot.starved, true) {
            self.starved.push_back(index);
            self.buffer_waits += 1;
        }
    }

    fn complete_accept(&mut self, index: usize, result: i32, more: bool, events: &mut Vec<Event>) {
        if let Ok(fd) = RawFd::try_from(result)
            && fd >= 0
        {
            events.push(Event::Accepted { listener: index, socket: own(fd) });
        }
        let Some(listener) = self.listeners.get_mut(index) else { return };
        if !more {
            listener.armed = Armed::No;
        }
        if result < 0 {
            let error = io::Error::from_raw_os_error(-result);
            if -result != libc::ECANCELED && !is_of_one_connection(&error) {
                listener.wanted = false;
                events.push(Event::AcceptFailed { listener: index, error });
            }
        }
        // The kernel wakes one of those who wait for a connection. If that was us, and the cancellation came before
        // we took it, the others sleep on: then we take it after all, at once, without waiting.
        listener.owes_one = result == -libc::ECANCELED && !listener.wanted && is_readable(listener.fd);
        if listener.owes_one || listener.wanted != (listener.armed == Armed::Yes) {
            self.change_listener(index);
        }
    }
}

impl Driver for Uring {
    fn name(&self) -> &'static str {
        "io_uring"
    }

    fn now_ms(&self) -> u64 {
        self.state.now_ms
    }

    fn accept(&mut self, listener: usize, fd: RawFd, mode: Accepting) -> io::Result<()> {
        if listener >= SLOTS_MAX as usize {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let state = &mut self.state;
        if state.listeners.len() <= listener {
            let (armed, armed_as) = (Armed::No, (-1, mode));
            let none =
                Listener { fd: -1, mode, wanted: false, armed, armed_as, owes_one: false, changed: false };
            state.listeners.resize(listener + 1, none);
        }
        let known = &mut state.listeners[listener];
        if !known.wanted {
            (known.fd, known.mode, known.wanted) = (fd, mode, true);
            state.change_listener(listener);
        }
        Ok(())
    }

    fn stop_accept(&mut self, listener: usize) {
        if let Some(known) = self.state.listeners.get_mut(listener)
            && std::mem::take(&mut known.wanted)
        {
            self.state.change_listener(listener);
        }
    }

    fn receive(&mut self, token: Token, socket: &Socket) -> io::Result<()> {
        let slot = self.state.enter(token, socket)?;
        if !std::mem::replace(&mut slot.receive_wanted, true) {
            self.state.change(token.slot);
        }
        Ok(())
    }

    fn pause(&mut self, token: Token, _socket: &Socket) {
        if let Some(slot) = self.state.known(token)
            && std::mem::take(&mut slot.receive_wanted)
        {
            self.state.change(token.slot);
        }
    }

    fn writable(&mut self, token: Token, socket: &Socket) -> io::Result<()> {
        let slot = self.state.enter(token, socket)?;
        if !std::mem::replace(&mut slot.writable_wanted, true) {
            self.state.change(token.slot);
        }
        Ok(())
    }

    fn release(&mut self, token: Token, socket: &Socket) {
        // The shutdown ends an armed receive all by itself, with one report, and costs less than a
        // cancellation. When it fails the peer is gone, and the receive with it in all cases we
        // know; cancelling makes sure of the rest. IORING_OP_SHUTDOWN would start a kernel thread.
        let failed = socket.shutdown_both().is_err();
        if self.state.known(token).is_some() {
            self.state.forget(token.slot, failed);
        }
    }

    fn detach(&mut self, token: Token, _socket: &Socket) {
        let Some(slot) = self.state.known(token) else {
            self.state.detached.push(token);
            return;
        };
        (slot.receive_wanted, slot.writable_wanted, slot.detaching) = (false, false, true);
        self.state.change(token.slot);
    }

    fn watch(&mut self, fd: RawFd) -> io::Result<()> {
        self.state.watched.get_or_insert((fd, false));
        Ok(())
    }

    fn turn(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        let before_ms = self.state.now_ms;
        let mut wait = timeout;
        let mut completed = 0;
        let mut looked = false;
        for round in 0.. {
            self.prepare();
            if !self.state.detached.is_empty() {
                events.extend(self.state.detached.drain(..).map(|token| Event::Detached { token }));
                wait = Some(Duration::ZERO);
            }
            if !self.state.is_settled() {
                // More changes than submissions fit: the caller comes back for the rest.
                wait = Some(Duration::ZERO);
            }
            let entered = self.enter(wait);
            completed += self.complete(events);
            let errno = entered.as_ref().err().and_then(io::Error::raw_os_error);
            let interrupted = match errno {
                // A wait that also submitted reports the submissions and hides the signal.
                None => completed == 0 && Self::is_early(before_ms, wait),
                Some(libc::EINTR) => true,
                // The time is over; or the kernel had no memory, or no room for completions, and
                // left submissions behind.
                Some(libc::ETIME | libc::EAGAIN | libc::EBUSY) => false,
                Some(errno) => return Err(io::Error::from_raw_os_error(errno)),
            };
            if interrupted && !looked {
                events.push(Event::Woken);
            }
            // The process may have stood still (SIGSTOP). What came meanwhile must be seen before the clock is: it came
            // in time, and its deadline is over by now.
            let hidden = errno.is_none() && completed == 0 && wait != Some(Duration::ZERO);
            if (interrupted || hidden) && !looked {
                (looked, wait) = (true, Some(Duration::ZERO));
                continue;
            }
            // No submission may be left over: see the head of this file.
            if self.ring.submission().is_empty() {
                break;
            }
            if round == SUBMIT_ROUNDS {
                return Err(io::Error::from_raw_os_error(errno.unwrap_or(libc::EBUSY)));
            }
            wait = Some(Duration::ZERO);
        }
        self.state.now_ms = monotonic_ms();
        Ok(())
    }

    fn buffer_waits(&self) -> u64 {
        self.state.buffer_waits
    }

    fn readiness(&mut self) -> io::Result<Vec<OwnedFd>> {
        // The ring's own descriptor does not do: with DEFER_TASKRUN, waiting on it slept over completions (6.18).
        // An eventfd that is never read gives one edge for each write.
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        self.ring.submitter().register_eventfd(event.as_raw_fd())?;
        // A write to one eventfd cannot signal another at once: the kernel leaves that to RCU, which took up to half
        // a second. So the waker's is watched, too.
        Ok(vec![event, self.state.waker.try_clone_fd()?])
    }

    fn waker(&self) -> Waker {
        self.state.waker.clone()
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // Connections that were accepted and never looked at are closed with their events.
        self.complete(&mut Vec::new());
        // The kernel takes a closed ring apart later, in its own time. Without its buffers it can
        // write nowhere, so they may be unmapped; if it keeps them, they stay for good.
        if self.ring.submitter().unregister_buf_ring(GROUP).is_err() {
            self.state.buffers.leak();
        }
    }
}

/// The ring of buffers that the kernel takes one from whenever bytes arrive.
struct BufferRing {
    pool: Rc<Pool>,
    /// Invariant: a mapping of as many entries as the pool has buffers, registered with the kernel.
    entries: NonNull<BufRingEntry>,
    /// Our end of the ring, counted modulo 2^16.
    tail: u16,
    /// Buffers that the kernel has.
    lent: u16,
    /// Buffers that it should have.
    target: u16,
    /// The kernel ran out of buffers since the last refill.
    dry: bool,
    /// The mapping must outlive this value.
    leaked: bool,
}

impl BufferRing {
    fn register(ring: &IoUring, count: u16) -> Result<Self, Failure> {
        let pool = Pool::new(count, RECV_BUFFER_BYTES).map_err(|error| ("mmap", error))?;
        let area = map_anonymous(ring_bytes(count)).map_err(|error| ("mmap", error))?;
        // The kernel pins these pages. A forked child must not get them copied from under it.
        // SAFETY: advice on our own new mapping; the child, which has no use for it, has none.
        let _ = unsafe {
            rustix::mm::madvise(area.as_ptr().cast(), ring_bytes(count), rustix::mm::Advice::LinuxDontFork)
        };
        let address = area.as_ptr().expose_provenance() as u64;
        // SAFETY: the mapping has room for `count` entries and is unmapped only by `Drop`, after
        // `Uring::drop` has unregistered it.
        let registered = unsafe { ring.submitter().register_buf_ring_with_flags(address, count, GROUP, 0) };
        let target = LENT_FIRST.min(count);
        let entries = area.cast();
        let buffers = Self { pool, entries, tail: 0, lent: 0, target, dry: false, leaked: false };
        match registered {
            Ok(()) => Ok(buffers),
            Err(error) => Err(("io_uring_register", error)),
        }
    }

    /// Lends the kernel free buffers up to the target. Costs nothing but memory writes: the kernel
    /// reads the tail when it needs a buffer.
    fn refill(&mut self) {
        if std::mem::take(&mut self.dry) {
            self.target = self.target.saturating_mul(2).min(self.pool.count());
        }
        let before = self.tail;
        while self.lent < self.target {
            let Some((id, address, bytes)) = self.pool.lend() else { break };
            let index = self.tail & (self.pool.count() - 1);
            // SAFETY: the index is below the count, so the entry is inside the mapping.
            let entry = unsafe { self.entries.add(usize::from(index)) };
            // SAFETY: the kernel reads entries between its head and the tail it has been shown.
            // This one is behind the tail, and free: no more buffers exist than entries.
            let entry = unsafe { &mut *entry.as_ptr() };
            entry.set_addr(address);
            entry.set_len(bytes);
            entry.set_bid(id);
            self.tail = self.tail.wrapping_add(1);
            self.lent += 1;
        }
        if self.tail != before {
            // SAFETY: `entries` is the start of the ring, where the tail overlaps the first entry.
            let tail = unsafe { BufRingEntry::tail(self.entries.as_ptr()) };
            // SAFETY: aligned and inside the mapping; everybody accesses it atomically, the kernel
            // only reads it.
            let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
            tail.store(self.tail, Ordering::Release);
        }
    }

    fn reclaim(&mut self, id: u16, len: u32) -> Option<RecvBuffer> {
        let buffer = self.pool.reclaim(id, len)?;
        self.lent -= 1;
        Some(buffer)
    }

    fn leak(&mut self) {
        self.leaked = true;
        std::mem::forget(Rc::clone(&self.pool));
    }
}

impl Drop for BufferRing {
    fn drop(&mut self) {
        if !self.leaked {
            // SAFETY: our own mapping; the kernel has let go of it (`Uring::drop`), or never had it
            // (`register` failed).
            unsafe { unmap(self.entries.cast(), ring_bytes(self.pool.count())) };
        }
    }
}

fn ring_bytes(count: u16) -> usize {
    usize::from(count) * size_of::<BufRingEntry>()
}

/// Creates the ring. `DEFER_TASKRUN` (Linux 6.1) is a must: without it completions interrupt the
/// thread, and a worker that is busy still takes connections that nobody else can then have.
fn setup(sizes: Sizes) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder
        .dontfork()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_submit_all()
        .setup_clamp()
        .setup_cqsize(sizes.completions);
    // Linux 6.6 can do without one indirection.
    let mut best = builder.clone();
    best.setup_no_sqarray().build(sizes.submissions).or_else(|_| builder.build(sizes.submissions))
}

fn room(queue: &mut squeue::SubmissionQueue<'_>, count: usize) -> bool {
    queue.capacity() - queue.len() >= count
}

fn push(queue: &mut squeue::SubmissionQueue<'_>, entry: &squeue::Entry) {
    // SAFETY: no entry of ours points into memory. Its descriptor is open: `prepare` runs right
    // before the submission, and owners keep descriptors open until they have told us.
    let pushed = unsafe { queue.push(entry) };
    debug_assert!(pushed.is_ok(), "`prepare` asks for room first");
}

/// Cancels the operation with this key; reports, with `op` and the same token, only if it cannot.
fn cancel(key: u64, op: u8) -> squeue::Entry {
    let (_, token) = unpack(key);
    opcode::AsyncCancel::new(key).build().flags(squeue::Flags::SKIP_SUCCESS).user_data(pack(op, token))
}

fn own(fd: RawFd) -> Socket {
    // SAFETY: the kernel has made this descriptor for our accept; nobody else knows its number.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    Socket::from(fd)
}
