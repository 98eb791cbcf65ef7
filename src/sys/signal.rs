//! Signals: a handler that only sets a bit and writes an eventfd, so that the process's own loop
//! does the work at a time of its choosing.
//!
//! One [`Signals`] serves a process. A forked child calls [`Signals::install`] again, with signals
//! blocked in between ([`block`]), so that none is lost or seen by the wrong process.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd, poll};
pub use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
pub use rustix::process::Signal;

use super::atfork;

/// Bit n is signal n. Signals that came and were not taken yet.
static PENDING: AtomicU64 = AtomicU64::new(0);
/// Signals whose handler is ours.
static HANDLED: AtomicU64 = AtomicU64::new(0);
/// Eventfd that the handler writes to; -1 before the first install. It is never closed.
static WAKE_FD: AtomicI32 = AtomicI32::new(-1);

/// A set of signals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SignalSet(u64);

impl SignalSet {
    /// The empty set.
    pub const EMPTY: Self = Self(0);

    /// The set of these signals.
    #[must_use]
    pub fn of(signals: &[Signal]) -> Self {
        Self(signals.iter().fold(0, |bits, signal| bits | bit(*signal)))
    }

    /// Whether `signal` is in the set.
    #[must_use]
    pub fn contains(self, signal: Signal) -> bool {
        self.0 & bit(signal) != 0
    }

    /// Whether no signal is in the set.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The signals of the set, by number.
    pub fn iter(self) -> impl Iterator<Item = Signal> {
        (1..64).filter(move |number| self.0 & (1 << number) != 0).filter_map(Signal::from_named_raw)
    }

    fn to_mask(self) -> libc::sigset_t {
        let mut mask = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `mask` is a valid place for a sigset_t.
        unsafe { libc::sigemptyset(mask.as_mut_ptr()) };
        for signal in self.iter() {
            // SAFETY: sigemptyset(3) initialised `mask`; a number it does not know is refused.
            unsafe { libc::sigaddset(mask.as_mut_ptr(), signal.as_raw()) };
        }
        // SAFETY: sigemptyset(3) initialised it.
        unsafe { mask.assume_init() }
    }
}

fn bit(signal: Signal) -> u64 {
    // Named signals are 1..=31 on Linux.
    1 << signal.as_raw()
}

/// The name of a signal as gunicorn logs it: `SIGKILL`. A number without a name is `Unknown`.
#[must_use]
pub fn name(number: i32) -> &'static str {
    match number {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGILL => "SIGILL",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGKILL => "SIGKILL",
        libc::SIGUSR1 => "SIGUSR1",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGUSR2 => "SIGUSR2",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGALRM => "SIGALRM",
        libc::SIGTERM => "SIGTERM",
        libc::SIGCHLD => "SIGCHLD",
        libc::SIGTTIN => "SIGTTIN",
        libc::SIGTTOU => "SIGTTOU",
        libc::SIGXCPU => "SIGXCPU",
        libc::SIGXFSZ => "SIGXFSZ",
        libc::SIGWINCH => "SIGWINCH",
        libc::SIGSYS => "SIGSYS",
        _ => "Unknown",
    }
}

/// The signals that this process handles itself.
#[derive(Debug)]
pub struct Signals {
    // The handler may be running on another thread at any time and must not write into a file that
    // got the same number: the descriptor lives as long as the process.
    event: &'static OwnedFd,
}

impl Signals {
    /// Handles the signals of `set` from now on, and those of an earlier call no longer: these go
    /// back to their defaults. Signals recorded before are forgotten; in a forked child they were
    /// the parent's.
    ///
    /// # Errors
    /// No descriptor for the eventfd, or a signal that cannot be handled (`KILL`, `STOP`).
    pub fn install(set: SignalSet) -> io::Result<Self> {
        let event = lasting_eventfd()?;
        PENDING.store(0, Ordering::SeqCst);
        WAKE_FD.store(event.as_raw_fd(), Ordering::SeqCst);
        let earlier = SignalSet(HANDLED.swap(set.0, Ordering::SeqCst) & !set.0);
        for signal in earlier.iter() {
            set_action(signal, libc::SIG_DFL)?;
        }
        for signal in set.iter() {
            handle_again(signal)?;
        }
        Ok(Self { event })
    }

    /// Lets the handler write to `event` (an eventfd, such as that of a ring's waker) instead of
    /// its own descriptor, so that a signal wakes the loop that waits there.
    pub fn wake_through(&mut self, event: OwnedFd) {
        self.event = Box::leak(Box::new(event));
        WAKE_FD.store(self.event.as_raw_fd(), Ordering::SeqCst);
        // One that came just before went to the old descriptor.
        if PENDING.load(Ordering::SeqCst) != 0 {
            notify(self.event);
        }
    }

    /// The descriptor that becomes readable when a signal comes, and that others may write to
    /// ([`notify`]) to end a [`Signals::wait`].
    #[must_use]
    pub fn event(&self) -> BorrowedFd<'static> {
        self.event.as_fd()
    }

    /// The signals that came since the last call.
    #[must_use]
    pub fn take(&self) -> SignalSet {
        SignalSet(PENDING.swap(0, Ordering::SeqCst))
    }

    /// Sleeps until a signal comes, somebody writes to [`Signals::event`], something happens on one of `others`, or
    /// `timeout` is over; `None` is for ever. May return early.
    ///
    /// # Errors
    /// poll(2) fails for lack of memory.
    pub fn wait(&self, timeout: Option<Duration>, mut others: Vec<PollFd<'_>>) -> io::Result<()> {
        // A time the kernel cannot express is as good as none.
        let timeout = timeout.and_then(|left| left.try_into().ok());
        others.push(PollFd::new(self.event, PollFlags::IN));
        match poll(&mut others, timeout.as_ref()) {
            Ok(0) | Err(Errno::INTR) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let mut count = [0_u8; 8];
        match rustix::io::read(self.event, &mut count) {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Handles `signal`, one of those that [`Signals::install`] was given, where somebody has put another handler.
///
/// # Errors
/// A signal that cannot be handled.
pub fn handle_again(signal: Signal) -> io::Result<()> {
    let handler: extern "C" fn(libc::c_int) = on_signal;
    set_action(signal, handler as libc::sighandler_t)
}

/// The process's handler of a signal, to be compared with another.
///
/// # Errors
/// None that a named signal can cause.
pub fn handler(signal: Signal) -> io::Result<usize> {
    handler_of(signal.as_raw())
}

fn handler_of(number: i32) -> io::Result<libc::sighandler_t> {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: the new action is not given, and `action` is a valid place for the old one.
    if unsafe { libc::sigaction(number, std::ptr::null(), action.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: sigaction(2) filled it: it returned 0.
    Ok(unsafe { action.assume_init() }.sa_sigaction)
}

/// Records `signal` as if it had come, and wakes whoever waits for signals. For a handler that took its place.
pub fn inject(signal: Signal) {
    on_signal(signal.as_raw());
}

/// A signal that nobody uses: not sent from outside, not known to libraries.
#[must_use]
pub fn spare() -> i32 {
    libc::SIGRTMAX() - 2
}

/// Sends the calling thread this signal and runs its handler before it returns. The signal may be blocked in this
/// thread, and is so afterwards.
///
/// # Errors
/// The signal has no handler: it would end the process.
pub fn raise_in_this_thread(number: i32) -> io::Result<()> {
    let handler = handler_of(number)?;
    if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the signal has no handler"));
    }
    let mut mask = SignalSet::EMPTY.to_mask();
    // SAFETY: `mask` is an initialised set; a number it does not know is refused.
    unsafe { libc::sigaddset(&raw mut mask, number) };
    let before = change_mask(libc::SIG_UNBLOCK, &mask)?;
    // SAFETY: raise(3) has no conditions; the signal has a handler.
    let raised = unsafe { libc::raise(number) };
    change_mask(libc::SIG_SETMASK, &before)?;
    if raised == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Adds 1 to an eventfd: whoever waits for it wakes up.
pub fn notify(event: impl AsFd) {
    // EAGAIN means that the counter is full: then it is readable already.
    let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
}

/// Signals blocked in the calling thread until this is dropped.
#[derive(Debug)]
#[must_use = "dropping it at once unblocks the signals again"]
pub struct Blocked {
    before: libc::sigset_t,
}

/// Blocks the signals of `set` in the calling thread. They stay pending and are delivered when the
/// returned value is dropped. A forked child starts with the mask, but without what is pending.
///
/// # Errors
/// None that a valid set can cause.
pub fn block(set: SignalSet) -> io::Result<Blocked> {
    let before = change_mask(libc::SIG_BLOCK, &set.to_mask())?;
    Ok(Blocked { before })
}

/// Blocks all signals in the calling thread for good, so that the process's signals go to the main
/// thread. For native threads, at their start. Signals that a fault of the thread itself raises are
/// not affected: the kernel delivers them or ends the process.
///
/// # Errors
/// None that a full set can cause.
pub fn block_all_in_this_thread() -> io::Result<()> {
    let mut mask = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `mask` is a valid place for a sigset_t.
    unsafe { libc::sigfillset(mask.as_mut_ptr()) };
    // SAFETY: sigfillset(3) initialised it.
    let mask = unsafe { mask.assume_init() };
    change_mask(libc::SIG_BLOCK, &mask).map(|_| ())
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // It cannot fail: the mask came from the same call.
        let _ = change_mask(libc::SIG_SETMASK, &self.before);
    }
}

fn change_mask(how: libc::c_int, mask: &libc::sigset_t) -> io::Result<libc::sigset_t> {
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `mask` is an initialised set and `before` a valid place for one.
    let result = unsafe { libc::pthread_sigmask(how, mask, before.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(result));
    }
    // SAFETY: pthread_sigmask(3) filled it: it returned 0.
    Ok(unsafe { before.assume_init() })
}

fn lasting_eventfd() -> io::Result<&'static OwnedFd> {
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    Ok(Box::leak(Box::new(event)))
}

fn set_action(signal: Signal, handler: libc::sighandler_t) -> io::Result<()> {
    let action = libc::sigaction {
        sa_sigaction: handler,
        sa_mask: SignalSet::EMPTY.to_mask(),
        // RESTART: our handlers must not disturb the application's system calls. poll(2) and
        // io_uring_enter(2) return EINTR all the same. NOCLDSTOP: a stopped child is not dead.
        sa_flags: libc::SA_RESTART | libc::SA_ONSTACK | libc::SA_NOCLDSTOP,
        sa_restorer: None,
    };
    // SAFETY: `action` is initialised and its handler, `on_signal` or SIG_DFL, may run at any time
    // and on any thread: see there. The old action is not asked for.
    let result = unsafe { libc::sigaction(signal.as_raw(), &raw const action, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Runs in a signal handler: atomics and write(2) only (signal-safety(7)), errno kept.
extern "C" fn on_signal(number: libc::c_int) {
    // A child of the application is no worker, and may have opened something of its own under the eventfd's number.
    if atfork::is_child() {
        return;
    }
    // SAFETY: the errno of the calling thread always has an address.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: `place` is this thread's errno, valid while the thread lives.
    let errno = unsafe { place.read() };
    PENDING.fetch_or(1 << (number & 63), Ordering::SeqCst);
    let event = WAKE_FD.load(Ordering::SeqCst);
    let one = 1_u64.to_ne_bytes();
    // SAFETY: `one` is 8 readable bytes. `event` is -1 (the call fails) or an eventfd that is never
    // closed: `lasting_eventfd` and `wake_through` leak it.
    unsafe { libc::write(event, one.as_ptr().cast(), one.len()) };
    // SAFETY: as for the read above.
    unsafe { place.write(errno) };
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_set_knows_its_members() {
        let set = SignalSet::of(&[Signal::TERM, Signal::CHILD]);
        assert!(set.contains(Signal::TERM) && !set.contains(Signal::INT));
        assert_eq!(set.iter().collect::<Vec<_>>(), [Signal::TERM, Signal::CHILD]);
        assert!(SignalSet::EMPTY.is_empty() && !set.is_empty());
    }

    /// One test for all that touches the process's handlers: tests share a process. The signals
    /// are directed to this thread so that its mask decides.
    #[test]
    fn signals_are_recorded_once_held_back_while_blocked_and_wake_the_waiter() {
        let mut signals = Signals::install(SignalSet::of(&[Signal::USR1, Signal::WINCH])).unwrap();
        let raise = |signal: Signal| {
            // SAFETY: raise(3) has no conditions; both signals are handled.
            assert_eq!(unsafe { libc::raise(signal.as_raw()) }, 0);
        };

        raise(Signal::USR1);
        raise(Signal::USR1);
        signals.wait(None, Vec::new()).unwrap();
        assert_eq!(signals.take(), SignalSet::of(&[Signal::USR1]));
        assert!(signals.take().is_empty());

        let blocked = block(SignalSet::of(&[Signal::WINCH])).unwrap();
        raise(Signal::WINCH);
        assert!(signals.take().is_empty());
        drop(blocked);
        signals.wait(None, Vec::new()).unwrap();
        assert_eq!(signals.take(), SignalSet::of(&[Signal::WINCH]));

        notify(signals.event());
        signals.wait(None, Vec::new()).unwrap();
        assert!(signals.take().is_empty());

        let other = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let watch = rustix::io::dup(&other).unwrap();
        signals.wake_through(other);
        raise(Signal::USR1);
        let mut count = [0; 8];
        assert_eq!(rustix::io::read(&watch, &mut count), Ok(8));
        assert!(signals.take().contains(Signal::USR1));

        // Installed again without WINCH: it is back to its default, which is to be ignored.
        let signals = Signals::install(SignalSet::of(&[Signal::USR1])).unwrap();
        raise(Signal::WINCH);
        assert!(signals.take().is_empty());
    }

    #[test]
    fn a_signal_without_a_handler_is_not_raised() {
        assert!(raise_in_this_thread(spare()).is_err());
        assert!(raise_in_this_thread(libc::SIGRTMAX() + 1).is_err());
    }

    #[test]
    fn a_signal_that_cannot_be_handled_is_an_error() {
        assert!(set_action(Signal::KILL, libc::SIG_DFL).is_err());
    }
}
