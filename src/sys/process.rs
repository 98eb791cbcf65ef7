//! Processes: fork, reap, kill, and what a worker sets on itself.

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

use rustix::io::Errno;
pub use rustix::process::Pid;
use rustix::process::{Signal, WaitOptions};

/// Which side of a fork this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fork {
    /// The old process; the child has this id.
    Parent(Pid),
    /// The new process.
    Child,
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It exited with this code.
    Code(i32),
    /// A signal with this number ended it.
    Signal(i32),
}

/// fork(2).
///
/// The child has only the calling thread. Locks that other threads held stay held in it for ever,
/// so a process that forks workers keeps itself single-threaded (see [`thread_count`]).
///
/// # Errors
/// `EAGAIN` at a limit of processes, `ENOMEM`.
pub fn fork() -> io::Result<Fork> {
    // SAFETY: fork(2) has no conditions on memory. In the child, glibc makes malloc usable again;
    // whatever else another thread had locked can only block, not corrupt.
    let result = unsafe { libc::fork() };
    match result {
        0 => Ok(Fork::Child),
        number => match Pid::from_raw(number) {
            Some(pid) if number > 0 => Ok(Fork::Parent(pid)),
            _ => Err(io::Error::last_os_error()),
        },
    }
}

/// Takes one child that has ended, if there is one. Also a child that somebody else left behind:
/// as process 1 of a container we are everybody's parent.
///
/// # Errors
/// What wait4(2) refuses; having no child is no error.
pub fn reap() -> io::Result<Option<(Pid, Ending)>> {
    loop {
        return match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Ok(Some((pid, Ending::Code(code)))),
                (None, Some(signal)) => Ok(Some((pid, Ending::Signal(signal)))),
                // Stopped or continued: not asked for.
                (None, None) => continue,
            },
            Ok(None) | Err(Errno::CHILD) => Ok(None),
            Err(Errno::INTR) => continue,
            Err(error) => Err(error.into()),
        };
    }
}

/// kill(2).
///
/// # Errors
/// `ESRCH`: it is gone. `EPERM`: it is not ours.
pub fn kill(pid: Pid, signal: Signal) -> io::Result<()> {
    Ok(rustix::process::kill_process(pid, signal)?)
}

/// This process's id.
#[must_use]
pub fn id() -> Pid {
    rustix::process::getpid()
}

/// The parent's id; `None` when the parent is outside this process-id namespace.
#[must_use]
pub fn parent_id() -> Option<Pid> {
    rustix::process::getppid()
}

/// Lets the kernel kill this process when its parent dies (PR_SET_PDEATHSIG, SIGKILL).
///
/// SIGKILL, because a worker without a master must not go on: it would hold the port and answer
/// with old code beside the next server. It works in the middle of application code and on a
/// stopped process. A change of user or group clears it, so it is set after that.
///
/// Returns whether `parent` is still the parent; if not it died before this call, and no signal
/// will come.
///
/// # Errors
/// What prctl(2) refuses.
pub fn die_with(parent: Pid) -> io::Result<bool> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    Ok(parent_id() == Some(parent))
}

/// Sends this process `signal` when its parent dies (PR_SET_PDEATHSIG).
///
/// # Errors
/// What prctl(2) refuses.
pub fn hear_of_parents_end(signal: Signal) -> io::Result<()> {
    Ok(rustix::process::set_parent_process_death_signal(Some(signal))?)
}

/// Makes this process the leader of a new session, without a terminal.
///
/// # Errors
/// `EPERM`: it leads a process group already.
///
/// # Source
/// setsid(2).
pub fn lead_session() -> io::Result<()> {
    rustix::process::setsid()?;
    Ok(())
}

/// Sets the mode bits that new files are created without.
pub fn set_umask(mask: u32) {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(mask));
}

/// Points standard input at /dev/null, and unless `keep_output` also standard output and error.
///
/// # Errors
/// /dev/null cannot be opened.
pub fn detach_streams(keep_output: bool) -> io::Result<()> {
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    let last = if keep_output { libc::STDIN_FILENO } else { libc::STDERR_FILENO };
    for stream in libc::STDIN_FILENO..=last {
        // SAFETY: dup2(2) has no conditions on memory; the standard descriptors belong to the process as
        // a whole, and whoever writes to them writes to /dev/null from here on.
        if unsafe { libc::dup2(null.as_raw_fd(), stream) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Names the calling thread (PR_SET_NAME); the kernel keeps 15 bytes.
///
/// # Errors
/// None that a string can cause.
pub fn set_thread_name(name: &CStr) -> io::Result<()> {
    Ok(rustix::thread::set_name(name)?)
}

/// Number of threads of this process; `None` without /proc.
#[must_use]
pub fn thread_count() -> Option<usize> {
    Some(std::fs::read_dir("/proc/self/task").ok()?.count())
}

/// Whom a worker is to run as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User id; `None` keeps it.
    pub user: Option<u32>,
    /// Group id; `None` keeps it.
    pub group: Option<u32>,
    /// Whether to take all groups of `user` in the group database.
    pub initgroups: bool,
}

/// Becomes `identity` for good: real, effective and saved ids, and the supplementary groups.
///
/// Those of the old user are dropped in every case: root's groups would leave a door open. gunicorn
/// keeps them unless `initgroups` is set.
///
/// # Errors
/// `EPERM` without the right to change; `ENOENT` when `initgroups` is set and the user has no entry
/// in the user database. The process may be half-way then and must end.
pub fn assume(identity: Identity) -> io::Result<()> {
    let user = identity.user.filter(|id| *id != rustix::process::geteuid().as_raw());
    let group = identity.group.filter(|id| *id != rustix::process::getegid().as_raw());
    if user.is_none() && group.is_none() {
        return Ok(());
    }
    let group_id = identity.group.unwrap_or_else(|| rustix::process::getegid().as_raw());
    match identity.user.filter(|_| identity.initgroups) {
        Some(id) => take_groups_of(id, group_id)?,
        // Without the right to drop them (not root, a group of ours) they are ours anyway.
        None if rustix::process::geteuid().is_root() => {
            // SAFETY: `group_id` is one readable id, as the count says.
            check(unsafe { libc::setgroups(1, &raw const group_id) })?;
        }
        None => {}
    }
    if let Some(id) = group {
        // SAFETY: setresgid(2) has no conditions on memory.
        check(unsafe { libc::setresgid(id, id, id) })?;
    }
    if let Some(id) = user {
        // SAFETY: setresuid(2) has no conditions on memory.
        check(unsafe { libc::setresuid(id, id, id) })?;
    }
    Ok(())
}

fn take_groups_of(user: u32, group: u32) -> io::Result<()> {
    // Entries of some directories have long member fields; the bound is arbitrary but fixed.
    let mut strings = vec![0 as libc::c_char; 64 * 1024];
    let mut entry = MaybeUninit::<libc::passwd>::uninit();
    let mut found: *mut libc::passwd = std::ptr::null_mut();
    let (room, length) = (strings.as_mut_ptr(), strings.len());
    // SAFETY: `entry`, `found` and the `length` bytes at `room` are writable and outlive the call.
    let result = unsafe { libc::getpwuid_r(user, entry.as_mut_ptr(), room, length, &raw mut found) };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(result));
    }
    if found.is_null() {
        return Err(io::Error::from_raw_os_error(libc::ENOENT));
    }
    // SAFETY: getpwuid_r(3) filled it: `found` points to it.
    let entry = unsafe { entry.assume_init() };
    // SAFETY: `pw_name` is the user's name, ended by NUL, inside `strings`, which is still alive.
    check(unsafe { libc::initgroups(entry.pw_name, group) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets an environment variable, in a process that has one thread only, as after a fork. Otherwise, and for a name
/// that cannot be one, nothing is done and the answer is false.
#[must_use]
pub fn set_variable(name: &str, value: &str) -> bool {
    let is_name = !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0');
    if !is_name || thread_count() != Some(1) {
        return false;
    }
    // SAFETY: no other thread exists that could read or write the environment meanwhile: counted just now, and
    // only this one could start another.
    unsafe { std::env::set_var(name, value) };
    true
}

/// Ends the process at once: no destructors, no handlers of libraries, no flush. For when a thread of the
/// application cannot be waited for any longer.
///
/// # Source
/// `_exit(2)`.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: it has no conditions; what it skips is meant to be skipped.
    unsafe { libc::_exit(code) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn becoming_oneself_changes_nothing() {
        let same = Identity {
            user: Some(rustix::process::geteuid().as_raw()),
            group: Some(rustix::process::getegid().as_raw()),
            initgroups: true,
        };
        assume(same).unwrap();
    }

    #[test]
    fn threads_are_counted() {
        assert!(thread_count().is_some_and(|count| count >= 1));
    }

    #[test]
    fn a_thread_can_be_named() {
        std::thread::spawn(|| {
            set_thread_name(c"ringhorn-test").unwrap();
            let comm = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
            assert_eq!(comm.trim_end(), "ringhorn-test");
        })
        .join()
        .unwrap();
    }
}
