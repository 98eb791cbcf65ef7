//! Listeners: opened before the fork and kept for the master's life, so that the connections that
//! wait in them outlive every worker.
//!
//! **TCP** has one `SO_REUSEPORT` listener per worker slot. `SO_REUSEPORT` alone would let a second
//! server start on the port and silently take its share, so the first listener of a group binds
//! *and listens* without it: the kernel then refuses every other listener on the port, and we are
//! refused by any that is there, whatever options it has. Only then is the option switched on, on
//! the socket that already listens, and the other slots' sockets join it. The port is never free in
//! between, nor open to strangers: two servers that start at once meet in `listen(2)`, and one is
//! told `EADDRINUSE`. (Linux looks at the option at the time of each check, and makes the group out
//! of a socket that listens already: `reuseport_add_sock`.) Later servers run the same check.
//!
//! **Unix sockets and inherited descriptors** have one listener that all workers share. Those that an
//! earlier master of ours hands over (USR2) stay what they were.
//!
//! **The number of slots changes while clients come.** A connection belongs to the listener that its
//! handshake began with, and is reset when that listener closes. So a slot that goes is first taken out
//! of the kernel's choice (a filter on the group, `SO_ATTACH_REUSEPORT_CBPF`), its worker serves those
//! that are on their way to it, and only then it closes. A slot that comes is let in when its worker
//! serves. The kernel numbers the sockets of a group in the order in which they joined, and slots come
//! and go at the end: the first n slots are the first n sockets.
//!
//! Listeners are in blocking mode: io_uring answers `EAGAIN` at once on a non-blocking one instead
//! of waiting. A backend that needs it otherwise sets it, in the open file that all processes share.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::FdFlags;
use socket2::{Domain, SockAddr, Socket, Type};

use super::launch::Inherited;
use crate::config::{Bind, Settings};
use crate::error::{Exit, StartError};
use crate::ring::Accepting;
use crate::sys::errno::describe;
use crate::sys::fd::{self, steer_group, take_inherited};

/// How long a port in use is tried again: as long as the server before us may need to leave.
/// gunicorn tries for 5 s, which hides a plain mistake from the operator.
const PATIENCE: Duration = Duration::from_secs(1);
/// Time between two tries.
const RETRY: Duration = Duration::from_millis(100);

/// The address of a listener as the kernel knows it: port 0 has become a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalAddr {
    /// TCP.
    Tcp(SocketAddr),
    /// A unix socket; a path that begins with NUL is an abstract name.
    Unix(PathBuf),
}

/// As gunicorn logs it: `http://127.0.0.1:8000`, `unix:/run/app.sock`.
impl fmt::Display for LocalAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => match path.as_os_str().as_bytes() {
                [0, name @ ..] => write!(f, "unix:@{}", name.escape_ascii()),
                _ => write!(f, "unix:{}", path.display()),
            },
        }
    }
}

/// A listener as a worker gets it.
#[derive(Debug)]
pub struct WorkerListener {
    /// The listening socket: blocking mode, close-on-exec.
    pub fd: OwnedFd,
    /// Where it listens.
    pub local: LocalAddr,
    /// Whether other workers accept from the same socket.
    pub accepting: Accepting,
}

/// A listener of another slot. Its owner accepts from it; a sibling does when the owner cannot.
#[derive(Debug)]
pub struct SiblingListener {
    /// The owner's slot.
    pub slot: usize,
    /// The listener.
    pub listener: WorkerListener,
}

/// All listeners of the server.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    groups: Vec<Group>,
    /// New connections go to the first so many sockets of each group; `None` leaves it to the kernel.
    open: Option<usize>,
    /// By slot: the age of the first worker that has its listeners; 0 in slots that there were from the start.
    ages: Vec<u64>,
}

#[derive(Debug)]
struct Group {
    bind: Bind,
    local: LocalAddr,
    sockets: Sockets,
}

#[derive(Debug)]
enum Sockets {
    /// One per slot, by slot.
    PerSlot(Vec<OwnedFd>),
    /// One for all; with the file to remove at the end, if it has one.
    Shared(OwnedFd, Option<SocketFile>),
}

/// A unix socket's name in the file system, and which file we made there.
#[derive(Clone, Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Listeners {
    /// Opens the listeners of all binds.
    ///
    /// # Errors
    /// The first bind that cannot be had; those opened before are closed, and their files removed.
    pub(super) fn open(settings: &Settings) -> Result<Self, StartError> {
        Self::open_within(settings, None, PATIENCE)
    }

    /// Connections that wait to be accepted, on all TCP listeners; `None` when there is no such listener.
    pub(super) fn waiting_connections(&self) -> Option<u64> {
        let waiting = |group: &Group| -> Vec<u64> {
            let count = |fd: &OwnedFd| fd::waiting_connections(fd.as_fd()).ok().map(u64::from);
            match &group.sockets {
                Sockets::PerSlot(sockets) => sockets.iter().filter_map(count).collect(),
                Sockets::Shared(socket, _) => count(socket).into_iter().collect(),
            }
        };
        let counts: Vec<u64> = self.groups.iter().flat_map(waiting).collect();
        (!counts.is_empty()).then(|| counts.iter().sum())
    }

    /// The listeners for new settings: those of binds that stay are taken along, others are opened.
    ///
    /// # Errors
    /// As for [`Listeners::open`]; `self` goes on as it is.
    pub(super) fn reopen(&self, settings: &Settings) -> Result<Self, StartError> {
        Self::open_within(settings, Some(self), PATIENCE)
    }

    /// The same listeners once more, for settings that do not change them.
    ///
    /// # Errors
    /// No descriptors are left.
    pub(super) fn same(&self) -> Result<Self, StartError> {
        let groups: io::Result<_> = self.groups.iter().map(Group::try_clone).collect();
        let groups = groups.map_err(|error| {
            StartError::new(Exit::Start, format!("cannot keep the listeners: {}", describe(&error)))
        })?;
        Ok(Self { groups, open: self.open, ages: self.ages.clone() })
    }

    /// Changes how many connections may wait to be accepted, of each listener.
    pub(super) fn set_backlog(&self, backlog: u32) {
        if let Some(warning) = backlog_warning(backlog, somaxconn()) {
            tracing::warn!("{warning}");
        }
        for group in &self.groups {
            if let Err(error) = group.set_backlog(backlog) {
                tracing::warn!("the backlog of {} stays as it was: {}", Plain(&group.bind), describe(&error));
            }
        }
    }

    fn open_within(
        settings: &Settings,
        earlier: Option<&Self>,
        patience: Duration,
    ) -> Result<Self, StartError> {
        if let Some(warning) = backlog_warning(settings.backlog, somaxconn()) {
            tracing::warn!("{warning}");
        }
        let open = earlier.and_then(|earlier| earlier.open);
        let mut listeners = Self { groups: Vec::new(), open, ages: Vec::new() };
        let give_up = Instant::now() + patience;
        for (index, bind) in settings.bind.iter().enumerate() {
            let kept = earlier.and_then(|earlier| {
                let taken = |group: &Group| listeners.groups.iter().any(|other| other.local == group.local);
                earlier.groups.iter().find(|group| group.bind == *bind && !taken(group))
            });
            let opened = match bind {
                _ if kept.is_some_and(|group| group.set_backlog(settings.backlog).is_ok()) => {
                    kept.map_or(Err(io::ErrorKind::NotFound.into()), Group::try_clone).map_err(|error| {
                        let what = format!("cannot keep the listener of {bind}: {}", describe(&error));
                        StartError::new(Exit::Start, what)
                    })
                }
                Bind::Fd(_) if settings.bind[..index].contains(bind) => {
                    Err(StartError::new(Exit::Start, format!("cannot listen on {bind} twice"))
                        .from(settings.source("bind")))
                }
                _ => open_patiently(bind, settings, give_up),
            };
            match opened {
                Ok(group) => listeners.groups.push(group),
                Err(error) => {
                    match earlier {
                        Some(earlier) => listeners.close_but(&[earlier]),
                        None => listeners.unlink(),
                    }
                    return Err(error);
                }
            }
        }
        Ok(listeners)
    }

    /// The listeners that somebody hands over: an earlier master (USR2), or a service manager (socket
    /// activation). As in gunicorn they take the place of `bind`.
    ///
    /// # Errors
    /// A number that is no descriptor of a stream socket.
    pub(super) fn inherit(inherited: &Inherited, settings: &Settings) -> Result<Self, StartError> {
        let mut groups: Vec<Group> = Vec::new();
        for socket in inherited.sockets() {
            let bind = Bind::Fd(socket.fd);
            // The mode belongs to the open socket. While an old master's workers accept from it, it is
            // theirs: a blocking accept would stop their I/O threads.
            let opened = open_inherited(socket.fd, settings.backlog, !inherited.in_use());
            let (local, fd) = opened.map_err(|refused| {
                let hint = format!("it comes from {} in the environment", inherited.variable());
                refused.explain(&bind).hint(hint)
            })?;
            let group = groups.iter_mut().find(|group| group.local == local);
            match group.map(|group| &mut group.sockets) {
                Some(Sockets::PerSlot(sockets)) if !socket.shared => sockets.push(fd),
                _ if socket.shared => {
                    // Removed at the end by whoever is alone with it then; not if it is not ours.
                    let file = match &local {
                        LocalAddr::Unix(path) if socket.owned => SocketFile::of(path).ok(),
                        _ => None,
                    };
                    groups.push(Group { bind, local, sockets: Sockets::Shared(fd, file) });
                }
                _ => groups.push(Group { bind, local, sockets: Sockets::PerSlot(vec![fd]) }),
            }
        }
        if groups.len() == settings.bind.len() {
            // So that a reload finds them by their binds, as the first master would.
            for (group, bind) in groups.iter_mut().zip(&settings.bind) {
                group.bind = bind.clone();
            }
        }
        Ok(Self { groups, ..Self::default() })
    }

    /// The listener of the metrics address, which all workers share: whoever has time answers for all. From
    /// `inherited`, when an earlier master hands it over.
    ///
    /// # Errors
    /// As for [`Listeners::open`] and [`Listeners::inherit`].
    pub(super) fn for_metrics(
        bind: &Bind,
        inherited: Option<&Inherited>,
        settings: &Settings,
    ) -> Result<Self, StartError> {
        if let Some(inherited) = inherited {
            return Self::inherit(inherited, settings);
        }
        let mut alone = settings.clone();
        alone.workers = 1;
        let mut group = open_patiently(bind, &alone, Instant::now() + PATIENCE)
            .map_err(|error| error.from(settings.source("metrics_bind")))?;
        if let Sockets::PerSlot(sockets) = &mut group.sockets
            && let Some(socket) = sockets.pop()
        {
            group.sockets = Sockets::Shared(socket, None);
        }
        Ok(Self { groups: vec![group], ..Self::default() })
    }

    /// Whether somebody waits for them with epoll, and has therefore made them non-blocking.
    pub(super) fn is_epolled(&self) -> bool {
        let nonblocking = |(fd, _): (&OwnedFd, _)| {
            rustix::fs::fcntl_getfl(fd).is_ok_and(|flags| flags.contains(OFlags::NONBLOCK))
        };
        self.names().any(nonblocking)
    }

    /// How many slots have listeners of their own; 0 without TCP.
    pub(super) fn slots(&self) -> usize {
        let own = self.groups.iter().filter_map(|group| match &group.sockets {
            Sockets::PerSlot(sockets) => Some(sockets.len()),
            Sockets::Shared(..) => None,
        });
        own.max().unwrap_or(0)
    }

    /// The age of the first worker that has the listeners of this slot: those before it cannot accept for it.
    pub(super) fn age(&self, slot: usize) -> u64 {
        self.ages.get(slot).copied().unwrap_or(0)
    }

    /// No worker has these listeners before the one of this age.
    pub(super) fn begin(&mut self, age: u64) {
        self.ages = vec![age; self.slots()];
    }

    /// Opens the listeners of the slots up to `slot` that have none yet, for a worker of this age. No client is led there
    /// before [`Listeners::steer`] says so.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub(super) fn grow(&mut self, slot: usize, backlog: u32, age: u64) -> io::Result<()> {
        let slots = self.slots();
        let mut grown = false;
        for group in &mut self.groups {
            let LocalAddr::Tcp(local) = group.local else { continue };
            let Sockets::PerSlot(sockets) = &mut group.sockets else { continue };
            let before = sockets.len();
            while sockets.len() <= slot {
                if sockets.len() == before {
                    for socket in sockets.iter() {
                        socket2::SockRef::from(socket).set_reuse_port(true)?;
                    }
                    if before > 1 {
                        steer(sockets, self.open.unwrap_or(before).min(before), true);
                    }
                }
                sockets.push(join_group(local, backlog)?.into());
                steer(sockets, self.open.unwrap_or(before).min(before), false);
                grown = true;
            }
            if grown && self.open.is_none() {
                self.open = Some(before);
            }
        }
        if self.slots() > slots {
            self.ages.resize(slots, 0);
            self.ages.resize(self.slots(), age);
        }
        Ok(())
    }

    /// Leads new connections to the first `slots` slots.
    pub(super) fn steer(&mut self, slots: usize) {
        self.open = Some(slots);
        for group in &self.groups {
            if let Sockets::PerSlot(sockets) = &group.sockets {
                steer(sockets, slots, false);
            }
        }
    }

    /// Closes the listeners of a slot that nobody serves any more, and of those above it.
    pub(super) fn close_slot(&mut self, slot: usize) {
        for group in &mut self.groups {
            if let Sockets::PerSlot(sockets) = &mut group.sockets {
                while sockets.len() > slot.max(1)
                    && let Some(socket) = sockets.pop()
                {
                    shut(&socket);
                }
            }
        }
        // The filter names sockets by their number: with fewer of them it must not be the old one.
        if let Some(open) = self.open {
            self.steer(open);
        }
    }

    /// Closes these listeners but for those that are also among `kept`.
    pub(super) fn close_but(self, kept: &[&Self]) {
        for group in self.groups {
            let stays = |other: &Group| other.local == group.local;
            if kept.iter().any(|listeners| listeners.groups.iter().any(stays)) {
                continue;
            }
            match group.sockets {
                Sockets::PerSlot(sockets) => sockets.iter().for_each(shut),
                Sockets::Shared(_, file) => {
                    if let Some(file) = file {
                        file.remove();
                    }
                }
            }
        }
    }

    /// Lets a program that this process becomes (execve(2)) keep the listeners, and says which they are
    /// in the form that [`Inherited`] reads. For a forked child only.
    ///
    /// # Errors
    /// None that an open descriptor can cause.
    pub(super) fn hand_over(&self) -> io::Result<String> {
        let mut names = Vec::new();
        for (fd, kind) in self.names() {
            rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
            names.push(format!("{}{kind}", fd.as_raw_fd()));
        }
        Ok(names.join(","))
    }

    fn names(&self) -> impl Iterator<Item = (&OwnedFd, &'static str)> {
        self.groups.iter().flat_map(|group| match &group.sockets {
            Sockets::PerSlot(sockets) => sockets.iter().map(|fd| (fd, "")).collect::<Vec<_>>(),
            Sockets::Shared(fd, Some(_)) => vec![(fd, "u")],
            Sockets::Shared(fd, None) => vec![(fd, "s")],
        })
    }

    /// Where the server listens, in the order of the settings, and a descriptor of each: that of the first
    /// slot.
    pub(super) fn described(&self) -> impl Iterator<Item = (&LocalAddr, i32)> {
        self.groups.iter().filter_map(|group| match &group.sockets {
            Sockets::PerSlot(sockets) => Some((&group.local, sockets.first()?.as_raw_fd())),
            Sockets::Shared(fd, _) => Some((&group.local, fd.as_raw_fd())),
        })
    }

    /// Where the server listens, in the order of the settings.
    pub(super) fn addresses(&self) -> impl Iterator<Item = &LocalAddr> {
        self.groups.iter().map(|group| &group.local)
    }

    /// In the worker of `slot`, after the fork: its own and the shared listeners, and those of its
    /// siblings.
    pub(super) fn into_worker(self, slot: usize) -> (Vec<WorkerListener>, Vec<SiblingListener>) {
        let mut own = Vec::new();
        let mut siblings = Vec::new();
        for Group { local, sockets, .. } in self.groups {
            match sockets {
                Sockets::Shared(fd, _) => {
                    own.push(WorkerListener { fd, local, accepting: Accepting::Shared });
                }
                Sockets::PerSlot(sockets) => {
                    for (owner, fd) in sockets.into_iter().enumerate() {
                        let local = local.clone();
                        let listener = WorkerListener { fd, local, accepting: Accepting::Alone };
                        if owner == slot {
                            own.push(listener);
                        } else {
                            siblings.push(SiblingListener { slot: owner, listener });
                        }
                    }
                }
            }
        }
        (own, siblings)
    }

    /// Whether [`Listeners::unlink`] has a file to remove.
    pub(super) fn have_files(&self) -> bool {
        self.groups.iter().any(|group| matches!(group.sockets, Sockets::Shared(_, Some(_))))
    }

    /// Removes the files of our unix sockets, unless somebody else's are there by now. New clients
    /// are refused from here on; those that wait are served. For the master only.
    pub(super) fn unlink(&mut self) {
        for group in &mut self.groups {
            if let Sockets::Shared(_, file) = &mut group.sockets
                && let Some(file) = file.take()
            {
                file.remove();
            }
        }
    }
}

impl Group {
    fn try_clone(&self) -> io::Result<Self> {
        let sockets = match &self.sockets {
            Sockets::PerSlot(sockets) => {
                Sockets::PerSlot(sockets.iter().map(OwnedFd::try_clone).collect::<io::Result<_>>()?)
            }
            Sockets::Shared(fd, file) => Sockets::Shared(fd.try_clone()?, file.clone()),
        };
        Ok(Self { bind: self.bind.clone(), local: self.local.clone(), sockets })
    }

    fn set_backlog(&self, backlog: u32) -> io::Result<()> {
        match &self.sockets {
            Sockets::PerSlot(sockets) => {
                sockets.iter().try_for_each(|fd| listen(&socket2::SockRef::from(fd), backlog))
            }
            Sockets::Shared(fd, _) => listen(&socket2::SockRef::from(fd), backlog),
        }
    }
}

/// Leads new connections of a group to its first `count` sockets, or with `filter` off and all of them
/// open lets the kernel choose by its hash, as it does by itself.
fn steer(sockets: &[OwnedFd], count: usize, filter: bool) {
    let Some(first) = sockets.first().filter(|_| sockets.len() > 1) else { return };
    let count = count.clamp(1, sockets.len());
    let filter = filter || count < sockets.len();
    let count = u32::try_from(count).ok().filter(|_| filter);
    if let Err(error) = steer_group(first.as_fd(), count) {
        // Without it clients of a slot that comes or goes may wait, or be reset. There is nothing to undo.
        tracing::debug!("cannot steer new connections: {}", describe(&error));
    }
}

/// Ends listening for all processes that have the socket. Who waits in its queue is reset: nobody should
/// be there any more.
fn shut(socket: &OwnedFd) {
    if let Err(error) = rustix::net::shutdown(socket, rustix::net::Shutdown::Both) {
        tracing::debug!("cannot close a listener: {}", describe(&error.into()));
    }
}

impl SocketFile {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let metadata = std::fs::symlink_metadata(&path)?;
        Ok(Self { path, device: metadata.dev(), inode: metadata.ino() })
    }

    /// Whether the name still leads to our socket.
    pub(super) fn is_in_place(&self) -> bool {
        std::fs::symlink_metadata(&self.path)
            .is_ok_and(|there| (there.dev(), there.ino()) == (self.device, self.inode))
    }

    pub(super) fn remove(self) {
        if self.is_in_place()
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!("cannot remove unix socket {}: {}", self.path.display(), describe(&error));
        }
    }
}

/// Only an address in use is worth waiting for: workers of a killed master leave a moment after it.
/// Everything else stays as it is.
fn open_patiently(bind: &Bind, settings: &Settings, give_up: Instant) -> Result<Group, StartError> {
    let mut told = false;
    loop {
        match open(bind, settings) {
            Err(Refused::Io(error))
                if error.raw_os_error() == Some(libc::EADDRINUSE) && Instant::now() < give_up =>
            {
                if !told {
                    tracing::warn!("{} is in use; trying a little longer", Plain(bind));
                    told = true;
                }
                std::thread::sleep(RETRY);
            }
            result => return result.map_err(|refused| refused.explain(bind).from(settings.source("bind"))),
        }
    }
}

/// Why a bind cannot be had.
#[derive(Debug)]
pub(super) enum Refused {
    Io(io::Error),
    /// The path of a unix socket is taken by something that is no socket.
    NotASocket,
    /// The inherited descriptor is no stream socket.
    NotAStream,
    /// The host's name has no address.
    NoAddress(io::Error),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Refused {
    fn explain(self, bind: &Bind) -> StartError {
        let why = match &self {
            Self::Io(error) => describe(error),
            Self::NotASocket => "the path exists and is not a socket".to_owned(),
            Self::NotAStream => "not a stream socket".to_owned(),
            Self::NoAddress(error) => format!("no address for this name ({error})"),
        };
        let error = StartError::new(Exit::Start, format!("cannot bind {}: {why}", Plain(bind)));
        let number = match &self {
            Self::Io(error) => error.raw_os_error(),
            _ => None,
        };
        match (bind, number) {
            (_, None) if matches!(self, Self::NotASocket) => {
                error.hint("remove the file, or take another path")
            }
            (Bind::Fd(_), _) => error.hint("let the parent pass a listening socket under this number"),
            (Bind::Tcp { port, .. }, Some(libc::EADDRINUSE)) => error.hint(format!(
                "stop what listens there (`ss -ltnp 'sport = :{port}'` shows it), or take another port"
            )),
            (Bind::Unix(_), Some(libc::EADDRINUSE)) => {
                error.hint("stop the server that answers there, or take another path")
            }
            (Bind::Tcp { .. }, Some(libc::EACCES)) => {
                error.hint("take a port above 1023, or grant CAP_NET_BIND_SERVICE")
            }
            (Bind::Tcp { .. }, Some(libc::EADDRNOTAVAIL)) => {
                error.hint("take an address of this machine, or 0.0.0.0 for all of them")
            }
            (Bind::Tcp { .. }, _) => error.hint("take an address of this machine"),
            (Bind::Unix(_), _) => {
                error.hint("take a path in a directory that exists and that this user may write to")
            }
        }
    }
}

/// A bind as the user wrote it: without `http://`.
struct Plain<'a>(&'a Bind);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        f.write_str(text.strip_prefix("http://").unwrap_or(&text))
    }
}

fn open(bind: &Bind, settings: &Settings) -> Result<Group, Refused> {
    let (local, sockets) = match bind {
        Bind::Tcp { host, port } => {
            let address = resolve(host, *port)?;
            let (local, sockets) = open_tcp(address, settings.workers, settings.backlog)?;
            (LocalAddr::Tcp(local), Sockets::PerSlot(sockets))
        }
        Bind::Unix(path) => {
            let (socket, file) = open_unix(path, settings)?;
            (LocalAddr::Unix(path.clone()), Sockets::Shared(socket, file))
        }
        Bind::Fd(number) => {
            let (local, socket) = open_inherited(*number, settings.backlog, true)?;
            (local, Sockets::Shared(socket, None))
        }
    };
    Ok(Group { bind: bind.clone(), local, sockets })
}

/// gunicorn takes a name's first IPv4 address; so do we, and its IPv6 one when it has no other.
fn resolve(host: &str, port: u16) -> Result<SocketAddr, Refused> {
    let found: Vec<SocketAddr> = (host, port).to_socket_addrs().map_err(Refused::NoAddress)?.collect();
    let first = found.iter().find(|address| address.is_ipv4()).or_else(|| found.first());
    first.copied().ok_or_else(|| Refused::NoAddress(io::Error::from(io::ErrorKind::NotFound)))
}

fn open_tcp(address: SocketAddr, slots: usize, backlog: u32) -> io::Result<(SocketAddr, Vec<OwnedFd>)> {
    // The order is the point: see the module's comment.
    let first = tcp_socket(address)?;
    first.bind(&address.into())?;
    listen(&first, backlog)?;
    let local = first.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
    if slots > 1 {
        first.set_reuse_port(true)?;
    }
    let mut sockets = vec![OwnedFd::from(first)];
    while sockets.len() < slots {
        sockets.push(join_group(local, backlog)?.into());
    }
    Ok((local, sockets))
}

/// One more listener of a group that is open already.
fn join_group(local: SocketAddr, backlog: u32) -> io::Result<Socket> {
    let socket = tcp_socket(local)?;
    socket.set_reuse_port(true)?;
    socket.bind(&local.into())?;
    listen(&socket, backlog)?;
    Ok(socket)
}

/// An IPv6 wildcard takes IPv4 too where the machine's bindv6only says so, as in gunicorn.
fn tcp_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // Connections of the server before us in TIME_WAIT are no obstacle.
    socket.set_reuse_address(true)?;
    set_for_accepted(&socket)?;
    Ok(socket)
}

/// Accepted sockets inherit both on Linux: two system calls less for each connection. NODELAY,
/// because a response leaves in one piece; KEEPALIVE, so that a client that vanished without a word
/// is found out in the end.
fn set_for_accepted(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_keepalive(true)
}

fn listen(socket: &Socket, backlog: u32) -> io::Result<()> {
    // The kernel cuts it down to somaxconn.
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))
}

fn open_unix(path: &Path, settings: &Settings) -> Result<(OwnedFd, Option<SocketFile>), Refused> {
    let address = SockAddr::unix(path)?;
    let named = path.as_os_str().as_bytes().first() != Some(&0);
    if named {
        remove_stale(path, &address)?;
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    {
        let _mask = Umask::set(settings.umask);
        socket.bind(&address)?;
    }
    let file = if named { Some(SocketFile::of(path)?) } else { None };
    let opened = (|| {
        if named && (settings.user.is_some() || settings.group.is_some()) {
            let (user, group) = (settings.user.map(Uid::from_raw), settings.group.map(Gid::from_raw));
            rustix::fs::chown(path, user, group)?;
        }
        listen(&socket, settings.backlog)
    })();
    match opened {
        Ok(()) => Ok((socket.into(), file)),
        Err(error) => {
            if let Some(file) = file {
                file.remove();
            }
            Err(error.into())
        }
    }
}

/// A socket file outlives its server. One that nobody answers on is removed; gunicorn removes also
/// one that is in use, and the server behind it goes on without clients.
pub(super) fn remove_stale(path: &Path, address: &SockAddr) -> Result<(), Refused> {
    let there = match std::fs::symlink_metadata(path) {
        Ok(there) => there,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if !there.file_type().is_socket() {
        return Err(Refused::NotASocket);
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A full queue must answer at once too.
    probe.set_nonblocking(true)?;
    match probe.connect(address) {
        Ok(()) => Err(io::Error::from_raw_os_error(libc::EADDRINUSE).into()),
        Err(error) => match error.raw_os_error() {
            Some(libc::ECONNREFUSED) => Ok(std::fs::remove_file(path)?),
            // It went by itself.
            Some(libc::ENOENT) => Ok(()),
            // EAGAIN: it listens, and many wait. EPROTOTYPE: somebody else's kind of socket.
            Some(libc::EAGAIN | libc::EPROTOTYPE) => {
                Err(io::Error::from_raw_os_error(libc::EADDRINUSE).into())
            }
            _ => Err(error.into()),
        },
    }
}

/// The process's umask while a unix socket is made. The master has one thread.
pub(super) struct Umask(Mode);

impl Umask {
    pub(super) fn set(mask: u32) -> Self {
        Self(rustix::process::umask(Mode::from_raw_mode(mask)))
    }
}

impl Drop for Umask {
    fn drop(&mut self) {
        rustix::process::umask(self.0);
    }
}

fn open_inherited(number: i32, backlog: u32, free: bool) -> Result<(LocalAddr, OwnedFd), Refused> {
    let socket = Socket::from(take_inherited(number)?);
    if socket.r#type()? != Type::STREAM {
        return Err(Refused::NotAStream);
    }
    if free {
        socket.set_nonblocking(false)?;
    }
    if !socket.is_listener()? {
        listen(&socket, backlog)?;
    }
    let address = socket.local_addr()?;
    let local = if let Some(address) = address.as_socket() {
        set_for_accepted(&socket)?;
        LocalAddr::Tcp(address)
    } else if let Some(path) = address.as_pathname() {
        LocalAddr::Unix(path.to_owned())
    } else if let Some(name) = address.as_abstract_namespace() {
        let bytes: Vec<u8> = std::iter::once(0).chain(name.iter().copied()).collect();
        LocalAddr::Unix(std::ffi::OsStr::from_bytes(&bytes).into())
    } else {
        return Err(Refused::NotAStream);
    };
    Ok((local, socket.into()))
}

fn somaxconn() -> Option<u32> {
    std::fs::read_to_string("/proc/sys/net/core/somaxconn").ok()?.trim().parse().ok()
}

fn backlog_warning(backlog: u32, somaxconn: Option<u32>) -> Option<String> {
    let most = somaxconn.filter(|most| backlog > *most)?;
    Some(format!("backlog {backlog} is more than net.core.somaxconn allows: {most} it is, for each listener"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::{AsRawFd, IntoRawFd};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn settings(bind: Vec<Bind>, workers: usize) -> Settings {
        let mut settings = Settings::default();
        (settings.bind, settings.workers, settings.backlog) = (bind, workers, 64);
        settings
    }

    fn tcp(host: &str, port: u16) -> Bind {
        Bind::Tcp { host: host.to_owned(), port }
    }

    fn open_now(settings: &Settings) -> Result<Listeners, StartError> {
        Listeners::open_within(settings, None, Duration::ZERO)
    }

    fn port(listeners: &Listeners) -> u16 {
        match listeners.addresses().next().unwrap() {
            LocalAddr::Tcp(address) => address.port(),
            LocalAddr::Unix(path) => panic!("{path:?} has no port"),
        }
    }

    fn echo_once(listener: WorkerListener) {
        let mut connection = match listener.local {
            LocalAddr::Tcp(_) => TcpListener::from(listener.fd).accept().unwrap().0.into(),
            LocalAddr::Unix(_) => OwnedFd::from(UnixListener::from(listener.fd).accept().unwrap().0),
        };
        let mut byte = [0];
        assert_eq!(rustix::io::read(&connection, &mut byte), Ok(1));
        assert_eq!(rustix::io::write(&mut connection, &byte), Ok(1));
    }

    #[test]
    fn all_slots_listen_on_the_port_the_kernel_chose() {
        for host in ["127.0.0.1", "localhost", "::1"] {
            let listeners = open_now(&settings(vec![tcp(host, 0)], 3)).unwrap();
            let chosen = port(&listeners);
            assert_ne!(chosen, 0);
            let (own, siblings) = listeners.into_worker(1);
            assert_eq!((own.len(), siblings.len()), (1, 2), "{host}");
            assert_eq!(siblings.iter().map(|sibling| sibling.slot).collect::<Vec<_>>(), [0, 2]);
            for listener in own.iter().chain(siblings.iter().map(|sibling| &sibling.listener)) {
                let address = TcpListener::from(listener.fd.try_clone().unwrap()).local_addr().unwrap();
                assert_eq!(LocalAddr::Tcp(address), listener.local);
                assert_eq!((address.port(), address.ip().is_loopback()), (chosen, true));
                assert_eq!(listener.accepting, Accepting::Alone);
            }
        }
    }

    /// With the kernel's hash, 200 connections leave one of two queues empty once in 2^199 runs.
    #[test]
    fn the_kernel_spreads_connections_over_the_slots_the_first_included() {
        let mut settings = settings(vec![tcp("127.0.0.1", 0)], 2);
        settings.backlog = 256;
        let listeners = open_now(&settings).unwrap();
        let address = ("127.0.0.1", port(&listeners));
        let clients: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(address).unwrap()).collect();
        let (own, siblings) = listeners.into_worker(0);
        let counts: Vec<usize> = own
            .into_iter()
            .chain(siblings.into_iter().map(|sibling| sibling.listener))
            .map(|listener| {
                let listener = TcpListener::from(listener.fd);
                listener.set_nonblocking(true).unwrap();
                std::iter::from_fn(|| listener.accept().ok()).count()
            })
            .collect();
        assert_eq!(counts.iter().sum::<usize>(), clients.len());
        assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    }

    /// A second server must not start silently beside the first (reliability.md section 2, point 4).
    #[test]
    fn a_port_of_somebody_else_is_refused_also_with_reuse_port() {
        for reuse_port in [false, true] {
            let foreign = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            foreign.set_reuse_address(true).unwrap();
            foreign.set_reuse_port(reuse_port).unwrap();
            foreign.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
            foreign.listen(1).unwrap();
            let taken = foreign.local_addr().unwrap().as_socket().unwrap().port();
            let error = open_now(&settings(vec![tcp("127.0.0.1", taken)], 2)).unwrap_err();
            let lines: Vec<String> = error.to_string().lines().map(str::to_owned).collect();
            assert_eq!(lines.len(), 3, "{error}");
            let first = format!("error: cannot bind 127.0.0.1:{taken}: address already in use (EADDRINUSE)");
            assert_eq!(lines[0], first);
            assert!(lines[1].starts_with("  from: "), "{error}");
            assert!(lines[2].starts_with("  hint: ") && lines[2].contains(&taken.to_string()));
        }
    }

    #[test]
    fn two_servers_of_ours_do_not_share_a_port() {
        let first = open_now(&settings(vec![tcp("127.0.0.1", 0)], 2)).unwrap();
        let taken = port(&first);
        assert!(open_now(&settings(vec![tcp("127.0.0.1", taken)], 2)).is_err());
        drop(first);
        assert_eq!(port(&open_now(&settings(vec![tcp("127.0.0.1", taken)], 2)).unwrap()), taken);
    }

    #[test]
    fn accepted_sockets_have_the_options_without_asking() {
        let listeners = open_now(&settings(vec![tcp("127.0.0.1", 0)], 1)).unwrap();
        let _client = TcpStream::connect(("127.0.0.1", port(&listeners))).unwrap();
        let listener = listeners.into_worker(0).0.remove(0);
        let accepted = Socket::from(OwnedFd::from(TcpListener::from(listener.fd).accept().unwrap().0));
        assert!(accepted.tcp_nodelay().unwrap() && accepted.keepalive().unwrap());
    }

    #[test]
    fn wrong_addresses_are_plain_errors() {
        // 192.0.2.0/24 is for documentation (RFC 5737): no machine has it. A name of 300 characters
        // is refused before any name server is asked.
        let long = "a".repeat(300);
        for host in ["192.0.2.1", &long] {
            let error = open_now(&settings(vec![tcp(host, 0)], 1)).unwrap_err();
            assert!(error.what().starts_with(&format!("cannot bind {host}:0: ")), "{error}");
            assert_eq!(error.exit(), Exit::Start);
        }
    }

    #[test]
    fn a_unix_socket_is_shared_has_its_mode_and_goes_with_the_master() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.sock");
        let mut settings = settings(vec![Bind::Unix(path.clone())], 2);
        // Not one that other tests of this process could trip over: the umask is everybody's.
        settings.umask = 0o077;
        let mut listeners = open_now(&settings).unwrap();
        assert_eq!(listeners.addresses().next().unwrap().to_string(), format!("unix:{}", path.display()));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(b"x").unwrap();
        listeners.unlink();
        assert!(!path.exists());
        // The one who came before is served all the same.
        let (mut own, siblings) = listeners.into_worker(1);
        assert_eq!((own.len(), siblings.len(), own[0].accepting), (1, 0, Accepting::Shared));
        echo_once(own.remove(0));
        client.read_exact(&mut [0]).unwrap();
    }

    #[test]
    fn a_stale_unix_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.sock");
        let settings = settings(vec![Bind::Unix(path.clone())], 1);
        let live = UnixListener::bind(&path).unwrap();
        let error = open_now(&settings).unwrap_err();
        assert!(error.what().ends_with("address already in use (EADDRINUSE)"), "{error}");
        drop(live);
        assert!(path.exists(), "left behind by the dead");
        let mut listeners = open_now(&settings).unwrap();
        UnixStream::connect(&path).expect("it is ours now");
        // Somebody takes the path from us: it is theirs to remove.
        std::fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        listeners.unlink();
        assert!(path.exists());
    }

    #[test]
    fn a_plain_file_in_the_way_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        std::fs::write(&path, "data").unwrap();
        let error = open_now(&settings(vec![Bind::Unix(path.clone())], 1)).unwrap_err();
        assert!(error.what().contains("is not a socket"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "data");
    }

    #[test]
    fn a_later_bind_that_fails_leaves_no_socket_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.sock");
        let bad = Bind::Unix(directory.path().join("no/such/app.sock"));
        assert!(open_now(&settings(vec![Bind::Unix(path.clone()), bad], 1)).is_err());
        assert!(!path.exists());
    }

    #[test]
    fn abstract_names_work_and_leave_no_file() {
        let name = format!("\0ringhorn-test-{}", std::process::id());
        let listeners = open_now(&settings(vec![Bind::Unix(name.into())], 1)).unwrap();
        let shown = listeners.addresses().next().unwrap().to_string();
        assert_eq!(shown, format!("unix:@ringhorn-test-{}", std::process::id()));
    }

    /// Which socket of the first group the next connections wait in.
    fn waiting(listeners: &Listeners, clients: usize) -> Vec<usize> {
        let Sockets::PerSlot(sockets) = &listeners.groups[0].sockets else { panic!("not TCP") };
        let address = listeners.addresses().next().unwrap().clone();
        let LocalAddr::Tcp(address) = address else { panic!("not TCP") };
        let _clients: Vec<_> = (0..clients).map(|_| TcpStream::connect(address).unwrap()).collect();
        let count = |fd: &OwnedFd| {
            let listener = TcpListener::from(fd.try_clone().unwrap());
            listener.set_nonblocking(true).unwrap();
            std::iter::from_fn(|| listener.accept().ok()).count()
        };
        sockets.iter().map(count).collect()
    }

    /// A slot that comes gets no client before it is let in, one that goes gets none any more, and both
    /// without one being lost.
    #[test]
    fn clients_are_led_to_the_slots_that_are_open() {
        let mut listeners = open_now(&settings(vec![tcp("127.0.0.1", 0)], 1)).unwrap();
        assert_eq!(waiting(&listeners, 10), [10]);
        listeners.grow(2, 64, 7).unwrap();
        assert_eq!(waiting(&listeners, 40), [40, 0, 0]);
        listeners.steer(2);
        let two = waiting(&listeners, 60);
        assert!(two[0] > 0 && two[1] > 0 && two[2] == 0, "{two:?}");
        listeners.steer(3);
        let three = waiting(&listeners, 60);
        assert!(three.iter().all(|count| *count > 0), "{three:?}");
        listeners.steer(1);
        assert_eq!(waiting(&listeners, 40), [40, 0, 0]);
        listeners.close_slot(1);
        assert_eq!(waiting(&listeners, 40), [40]);
        listeners.grow(1, 64, 8).unwrap();
        assert_eq!(waiting(&listeners, 40), [40, 0]);
        listeners.steer(2);
        assert_eq!(waiting(&listeners, 60).iter().sum::<usize>(), 60);
    }

    /// After a reload that was dropped nobody was taken for having the listeners that are in force again.
    #[test]
    fn listeners_know_since_which_worker_they_are_there() {
        let mut listeners = open_now(&settings(vec![tcp("127.0.0.1", 0)], 1)).unwrap();
        listeners.grow(1, 64, 7).unwrap();
        let mut tried = listeners.same().unwrap();
        tried.begin(9);
        let ages = |listeners: &Listeners| [0, 1, 2].map(|slot| listeners.age(slot));
        assert_eq!((ages(&listeners), ages(&tried)), ([0, 7, 0], [9, 9, 0]));
        listeners.close_slot(1);
        listeners.grow(1, 64, 10).unwrap();
        assert_eq!(ages(&listeners), [0, 10, 0]);
    }

    #[test]
    fn new_settings_keep_the_listeners_they_share_with_the_old_ones() {
        let (kept, gone) =
            (tcp("127.0.0.1", 0), Bind::Unix(tempfile::tempdir().unwrap().keep().join("app.sock")));
        let old = open_now(&settings(vec![kept.clone(), gone.clone()], 2)).unwrap();
        let new = old.reopen(&settings(vec![kept, tcp("127.0.0.1", 0)], 2)).unwrap();
        let (was, is): (Vec<_>, Vec<_>) =
            (old.addresses().cloned().collect(), new.addresses().cloned().collect());
        assert_eq!((was[0].clone(), is.len()), (is[0].clone(), 2));
        let Bind::Unix(path) = gone else { unreachable!("made above") };
        assert!(path.exists(), "the old generation still serves there");
        old.close_but(&[&new]);
        assert!(!path.exists());
        assert_eq!(waiting(&new, 10).iter().sum::<usize>(), 10);
        std::fs::remove_dir(path.parent().unwrap()).unwrap();
    }

    #[test]
    fn another_backlog_is_that_of_the_listener_there_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.sock");
        let mut few = settings(vec![Bind::Unix(path.clone())], 1);
        few.backlog = 1;
        let listeners = open_now(&few).unwrap();
        // As many as the queue has room for: nobody accepts.
        let fill = || -> Vec<Socket> {
            let client = |_| {
                let client = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
                client.set_nonblocking(true).unwrap();
                client.connect(&SockAddr::unix(&path).unwrap()).ok().map(|()| client)
            };
            (0..100).map_while(client).collect()
        };
        let first = fill();
        listeners.set_backlog(40);
        let more = fill();
        assert!(first.len() < 10 && (30..100).contains(&more.len()), "{} and {}", first.len(), more.len());
    }

    #[test]
    fn an_inherited_listener_is_shared_and_anything_else_is_refused() {
        let inherited = TcpListener::bind("127.0.0.1:0").unwrap();
        let local = inherited.local_addr().unwrap();
        inherited.set_nonblocking(true).unwrap();
        let number = inherited.into_raw_fd();
        let mut client = TcpStream::connect(local).unwrap();
        client.write_all(b"x").unwrap();
        let listeners = open_now(&settings(vec![Bind::Fd(number)], 2)).unwrap();
        assert_eq!(listeners.addresses().collect::<Vec<_>>(), [&LocalAddr::Tcp(local)]);
        let (mut own, siblings) = listeners.into_worker(0);
        assert!(siblings.is_empty());
        assert_eq!((own[0].accepting, own[0].fd.as_raw_fd()), (Accepting::Shared, number));
        echo_once(own.remove(0));

        let file = std::fs::File::open("/dev/null").unwrap().into_raw_fd();
        let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into_raw_fd();
        for (number, why) in [(file, "ENOTSOCK"), (datagrams, "not a stream"), (i32::MAX, "EBADF")] {
            let error = open_now(&settings(vec![Bind::Fd(number)], 1)).unwrap_err();
            assert!(error.what().contains(why), "{error}");
        }
    }

    #[test]
    fn several_binds_come_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.sock");
        let binds = vec![tcp("127.0.0.1", 0), Bind::Unix(path.clone()), tcp("127.0.0.1", 0)];
        let listeners = open_now(&settings(binds, 2)).unwrap();
        let addresses: Vec<_> = listeners.addresses().cloned().collect();
        assert_eq!((addresses.len(), &addresses[1]), (3, &LocalAddr::Unix(path)));
        let (own, siblings) = listeners.into_worker(0);
        assert_eq!(own.iter().map(|listener| listener.local.clone()).collect::<Vec<_>>(), addresses);
        assert_eq!(siblings.len(), 2);
        assert_ne!(own[0].local, own[2].local);
    }

    #[test]
    fn a_backlog_above_the_kernels_is_said() {
        assert_eq!(backlog_warning(2048, Some(4096)), None);
        assert_eq!(backlog_warning(4096, Some(4096)), None);
        assert_eq!(backlog_warning(4097, None), None);
        assert!(backlog_warning(4097, Some(4096)).is_some_and(|text| text.contains("4096")));
    }
}
