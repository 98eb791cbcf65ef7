//! The control socket: where operators ask the master and tell it what to do (`ringhorn ctl`).
//!
//! One request, one answer, as often as a client likes. The master has one thread and must not wait for
//! anybody: everything here is non-blocking, the descriptors stand in the master's own poll(2), a client may
//! hold a few kilobytes and has a deadline for each step, and there are few of them. Clients of the *service*
//! never come here; these are operators, who could send the master signals as well.
//!
//! Two ways of writing a message are understood, told apart by its first byte, and answered alike:
//!
//! - a line: `{"command": "show workers"}`, or only the words of the command, as one types them into `nc -U`;
//! - gunicorn's: four bytes with the length and then the same JSON. So `gunicornc -s PATH` works too.
//!
//! The answer is `{"id": .., "status": "ok", "data": {..}}` or `{"id": .., "status": "error", "error": ".."}`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags};
use serde_json::{Value, json};
use socket2::{Domain, SockAddr, Socket, Type};
use tracing::{debug, info, warn};

use super::launch::Launch;
use super::sockets::{Refused, SocketFile, Umask, remove_stale};
use crate::config::ControlSettings;
use crate::limits::{
    CONTROL_CLIENTS_MAX, CONTROL_IDLE_MS, CONTROL_NAMES_MAX, CONTROL_PATIENCE_MS, CONTROL_REQUEST_BYTES_MAX,
};
use crate::sys::errno::describe;
use crate::sys::fd::{Credentials, peer_of};
use crate::sys::process;
use crate::sys::signal::{PollFd, PollFlags};

/// The socket's name in a runtime directory.
const NAME: &str = "ringhorn";
/// What its name ends in; gunicorn's.
const SUFFIX: &str = ".ctl";
/// Milliseconds before accepting is tried again when it fails.
const ACCEPT_RETRY_MS: u64 = 1_000;

/// What answers the words of a request: with data, or with why not.
pub(super) type Answer<'a> = &'a mut dyn FnMut(&[String], Credentials) -> Result<Value, String>;

/// The listening socket and those who came.
#[derive(Debug)]
pub(super) struct Control {
    /// Only our own user and root are heard, whatever the file's mode has become.
    private: bool,
    listener: OwnedFd,
    file: SocketFile,
    clients: Vec<Client>,
    accept_ms: u64,
}

#[derive(Debug)]
struct Client {
    socket: OwnedFd,
    peer: Credentials,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
    deadline_ms: u64,
    /// Closed as soon as it has its answer.
    last: bool,
}

/// A request as it was written.
#[derive(Debug, PartialEq, Eq)]
enum Framed {
    /// More bytes are needed.
    Partial,
    /// It takes this many bytes of the input.
    Line(usize),
    /// gunicorn's: four bytes and this many more.
    Counted(usize),
    /// Longer than a request may be.
    TooLong,
}

impl Control {
    /// Opens the socket that the settings ask for. What fails is logged, unless nobody has asked for a
    /// socket by name: a server without a runtime directory is as good as one with. `take_over` when an old
    /// master of ours may listen under the name.
    pub(super) fn open(settings: &ControlSettings, launch: &Launch, take_over: bool) -> Option<Self> {
        let (path, asked) = match &settings.path {
            Some(path) => (std::path::absolute(path).unwrap_or_else(|_| path.clone()), true),
            None => (default_path(launch, take_over)?, false),
        };
        match Self::open_at(&path, settings.mode, take_over) {
            Ok(control) => {
                info!("Control socket listening at {}", path.display());
                Some(control)
            }
            Err(why) if asked => {
                warn!("cannot open control_socket {}: {why}; `ringhorn ctl` will not work", path.display());
                None
            }
            Err(why) => {
                debug!("no control socket at {}: {why}", path.display());
                None
            }
        }
    }

    fn open_at(path: &Path, mode: u32, take_over: bool) -> Result<Self, String> {
        let explain = |error: io::Error| describe(&error);
        let address = SockAddr::unix(path)
            .map_err(|_| "the path is longer than the kernel takes, 107 bytes".to_owned())?;
        match remove_stale(path, &address) {
            Ok(()) => {}
            // The old master has it; its clients stay connected to it.
            Err(Refused::Io(error)) if take_over && error.raw_os_error() == Some(libc::EADDRINUSE) => {
                std::fs::remove_file(path).map_err(explain)?;
            }
            Err(Refused::Io(error)) if error.raw_os_error() == Some(libc::EADDRINUSE) => {
                return Err("another server listens there".to_owned());
            }
            Err(Refused::Io(error)) => return Err(explain(error)),
            Err(_) => return Err("the path exists and is not a socket".to_owned()),
        }
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(explain)?;
        socket.set_nonblocking(true).map_err(explain)?;
        {
            // Made with its final mode: nobody can connect in between.
            let _mask = Umask::set(!mode & 0o777);
            socket.bind(&address).map_err(explain)?;
        }
        let file = SocketFile::of(path).map_err(explain)?;
        if let Err(error) = socket.listen(i32::try_from(CONTROL_CLIENTS_MAX).unwrap_or(1)) {
            file.remove();
            return Err(explain(error));
        }
        Ok(Self {
            private: mode & 0o077 == 0,
            listener: socket.into(),
            file,
            clients: Vec::new(),
            accept_ms: 0,
        })
    }

    /// Whether clients still find the way here by its name.
    pub(super) fn is_in_place(&self) -> bool {
        self.file.is_in_place()
    }

    /// Closes it and removes its file, unless another server has taken the name over.
    pub(super) fn close(self) {
        self.file.remove();
    }

    /// What to wait for.
    pub(super) fn polled(&self, now_ms: u64) -> Vec<PollFd<'_>> {
        let listener = (self.accept_ms <= now_ms).then_some((&self.listener, PollFlags::IN));
        let clients = self.clients.iter().map(|client| {
            (&client.socket, if client.output.is_empty() { PollFlags::IN } else { PollFlags::OUT })
        });
        listener.into_iter().chain(clients).map(|(fd, flags)| PollFd::new(fd, flags)).collect()
    }

    /// When [`Control::turn`] has something to do although no descriptor says so.
    pub(super) fn next_ms(&self, now_ms: u64) -> Option<u64> {
        let client = |client: &Client| {
            let more = client.output.is_empty() && framed(&client.input) != Framed::Partial;
            if more { now_ms } else { client.deadline_ms }
        };
        let accept = (self.accept_ms > now_ms).then_some(self.accept_ms);
        self.clients.iter().map(client).chain(accept).min()
    }

    /// Takes new clients, reads, answers through `answer`, and drops who took too long.
    pub(super) fn turn(&mut self, now_ms: u64, answer: Answer<'_>) {
        if self.accept_ms <= now_ms {
            self.accept(now_ms);
        }
        self.clients.retain_mut(|client| client.step(now_ms, answer));
    }

    /// At most a queue's worth each time: the master has more to do.
    fn accept(&mut self, now_ms: u64) {
        for _ in 0..CONTROL_CLIENTS_MAX {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = match rustix::net::accept_with(&self.listener, flags) {
                Ok(socket) => socket,
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(error) => {
                    debug!("cannot accept on the control socket: {}", describe(&error.into()));
                    self.accept_ms = now_ms + ACCEPT_RETRY_MS;
                    return;
                }
            };
            let Ok(peer) = peer_of(socket.as_fd()) else { continue };
            let mut client = Client {
                socket,
                peer,
                input: Vec::new(),
                output: Vec::new(),
                sent: 0,
                deadline_ms: now_ms + CONTROL_PATIENCE_MS,
                last: true,
            };
            let ours = [0, rustix::process::geteuid().as_raw()].contains(&peer.uid);
            if self.private && !ours {
                warn!("control: user {} is refused (pid:{})", peer.uid, peer.pid);
                client.refuse("only the server's user and root are heard here");
            } else if self.clients.len() >= CONTROL_CLIENTS_MAX {
                client.refuse("too many clients; try again when another one has gone");
                // It is not kept: the answer fits the socket's buffer.
                let _ = client.flush();
                continue;
            } else {
                client.last = false;
            }
            self.clients.push(client);
        }
    }
}

impl Client {
    fn refuse(&mut self, why: &str) {
        self.write(&json!({ "id": null, "status": "error", "error": why }), false);
        self.last = true;
    }

    fn write(&mut self, message: &Value, counted: bool) {
        let text = message.to_string();
        if counted {
            let len = u32::try_from(text.len()).unwrap_or(u32::MAX);
            self.output.extend_from_slice(&len.to_be_bytes());
        }
        self.output.extend_from_slice(text.as_bytes());
        if !counted {
            self.output.push(b'\n');
        }
    }

    /// One request at most. Returns whether the client stays.
    fn step(&mut self, now_ms: u64, answer: Answer<'_>) -> bool {
        if now_ms >= self.deadline_ms {
            return false;
        }
        if self.output.is_empty() {
            let before = self.input.len();
            let open = self.receive();
            match framed(&self.input) {
                Framed::Partial if !open => return false,
                Framed::Partial => {
                    // The time for a request runs from its first byte: one that trickles gets no more.
                    if before == 0 && !self.input.is_empty() {
                        self.deadline_ms = now_ms + CONTROL_PATIENCE_MS;
                    }
                    return true;
                }
                Framed::TooLong => self.refuse("the request is too long"),
                Framed::Line(len) => {
                    let message: Vec<u8> = self.input.drain(..len).collect();
                    self.answer(&message, false, answer);
                }
                Framed::Counted(len) => {
                    let message: Vec<u8> = self.input.drain(..4 + len).skip(4).collect();
                    self.answer(&message, true, answer);
                }
            }
            self.deadline_ms = now_ms + CONTROL_PATIENCE_MS;
        }
        if !self.flush() {
            return false;
        }
        if self.output.is_empty() {
            self.deadline_ms =
                now_ms + if self.input.is_empty() { CONTROL_IDLE_MS } else { CONTROL_PATIENCE_MS };
        }
        !(self.last && self.output.is_empty())
    }

    fn answer(&mut self, message: &[u8], counted: bool, answer: Answer<'_>) {
        let (id, words) = read(message);
        let result = words.and_then(|words| answer(&words, self.peer));
        let message = match result {
            Ok(data) => json!({ "id": id, "status": "ok", "data": data }),
            Err(error) => json!({ "id": id, "status": "error", "error": error }),
        };
        self.write(&message, counted);
    }

    /// Reads what is there, up to a request's bound. Returns whether more may come.
    fn receive(&mut self) -> bool {
        let mut buf = [0; 4096];
        while self.input.len() <= CONTROL_REQUEST_BYTES_MAX {
            match rustix::net::recv(&self.socket, &mut buf, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return false,
                Ok((count, _)) => self.input.extend_from_slice(&buf[..count.min(buf.len())]),
                Err(Errno::AGAIN) => return true,
                Err(Errno::INTR) => {}
                Err(_) => {
                    self.input.clear();
                    return false;
                }
            }
        }
        true
    }

    /// Sends what the socket takes. Returns whether the client is still there.
    fn flush(&mut self) -> bool {
        while self.sent < self.output.len() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match rustix::net::send(&self.socket, &self.output[self.sent..], flags) {
                Ok(count) => self.sent += count,
                Err(Errno::AGAIN) => return true,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        self.output.clear();
        self.sent = 0;
        true
    }
}

/// Where the first request in `input` ends.
fn framed(input: &[u8]) -> Framed {
    let framed = match input {
        [] => return Framed::Partial,
        // No text begins with NUL, and no request of gunicorn's is so long that its length does not.
        [0, rest @ ..] => match rest {
            [a, b, c, rest @ ..] => {
                let len = u32::from_be_bytes([0, *a, *b, *c]) as usize;
                if len <= CONTROL_REQUEST_BYTES_MAX && rest.len() < len {
                    return Framed::Partial;
                }
                Framed::Counted(len)
            }
            _ => return Framed::Partial,
        },
        line => match line.iter().position(|byte| *byte == b'\n') {
            Some(at) => Framed::Line(at + 1),
            None if line.len() > CONTROL_REQUEST_BYTES_MAX => Framed::TooLong,
            None => return Framed::Partial,
        },
    };
    match framed {
        Framed::Counted(len) | Framed::Line(len) if len > CONTROL_REQUEST_BYTES_MAX => Framed::TooLong,
        framed => framed,
    }
}

/// The number of a request and its words.
fn read(message: &[u8]) -> (Value, Result<Vec<String>, String>) {
    let Ok(text) = std::str::from_utf8(message) else {
        return (Value::Null, Err("the request is not UTF-8 text".to_owned()));
    };
    let text = text.trim();
    if !text.starts_with('{') {
        let words = text.split_ascii_whitespace().map(str::to_owned).collect();
        return (Value::Null, Ok(words));
    }
    let mut message = match serde_json::from_str::<Value>(text) {
        Ok(message) => message,
        Err(error) => return (Value::Null, Err(format!("the request is not JSON: {error}"))),
    };
    let id = message["id"].take();
    let Some(command) = message["command"].as_str() else {
        return (id, Err("the request has no \"command\"".to_owned()));
    };
    let mut words: Vec<String> = command.split_ascii_whitespace().map(str::to_owned).collect();
    for word in message["args"].as_array().into_iter().flatten() {
        words.push(word.as_str().map_or_else(|| word.to_string(), str::to_owned));
    }
    (id, Ok(words))
}

/// Where the socket goes when nobody says: the service's own directory (systemd), the user's, or root's;
/// `None` when there is no such directory, or it is somebody else's (`sudo` keeps the user's variables).
///
/// The second server in a directory has its number in the name: `ringhorn-4711.ctl`.
fn default_path(launch: &Launch, take_over: bool) -> Option<PathBuf> {
    let directory = directories(&|name| launch.variable(name).map(PathBuf::from)).into_iter().next()?;
    forget_stale(&directory);
    let path = directory.join(format!("{NAME}{SUFFIX}"));
    let own = directory.join(format!("{NAME}-{}{SUFFIX}", process::id()));
    if take_over {
        // That of the old master: which of the two names it has is seen by who listens there.
        let theirs =
            launch.earlier_master().is_some_and(|old| listener_of(&path) == Some(old.as_raw_nonzero().get()));
        return Some(if theirs { path } else { own });
    }
    Some(if listener_of(&path).is_some() { own } else { path })
}

/// The directories where servers of this user have their sockets, in the order in which they are taken.
/// `variable` reads the environment.
#[must_use]
pub fn directories(variable: &dyn Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    let user = rustix::process::geteuid();
    let usable = |path: &PathBuf| {
        path.is_absolute()
            && rustix::fs::stat(path).is_ok_and(|found| found.st_uid == user.as_raw())
            && rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
    };
    // systemd gives several directories with colons when a unit has several.
    let service = variable("RUNTIME_DIRECTORY")
        .and_then(|list| list.to_str().and_then(|list| list.split(':').next().map(PathBuf::from)));
    let root = user.is_root().then(|| PathBuf::from("/run"));
    [service, variable("XDG_RUNTIME_DIR"), root].into_iter().flatten().filter(usable).collect()
}

/// The control sockets in a directory, by name.
#[must_use]
pub fn sockets_in(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let ours = |name: &str| {
        let stem = name.strip_prefix(NAME).and_then(|rest| rest.strip_suffix(SUFFIX));
        stem.is_some_and(|stem| {
            stem.is_empty()
                || stem
                    .strip_prefix('-')
                    .is_some_and(|pid| !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit()))
        })
    };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(ours))
        .map(|entry| entry.path())
        .take(CONTROL_NAMES_MAX)
        .collect();
    found.sort();
    found
}

/// The process that listens at `path`, as the kernel tells those who connect; 0 is one of another namespace.
#[must_use]
pub fn listener_of(path: &Path) -> Option<i32> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).ok()?;
    // A full queue must answer at once too.
    socket.set_nonblocking(true).ok()?;
    socket.connect(&SockAddr::unix(path).ok()?).ok()?;
    Some(peer_of(socket.as_fd()).ok()?.pid)
}

/// Removes what servers that were killed have left. Their numbers come again, but in another order.
fn forget_stale(directory: &Path) {
    for path in sockets_in(directory) {
        if let Ok(address) = SockAddr::unix(&path) {
            // In use, or not ours to remove: it stays.
            let _ = remove_stale(&path, &address);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn control(path: &Path) -> Control {
        Control::open_at(path, 0o600, false).unwrap()
    }

    /// Serves until `client` has read `len` bytes, or everything.
    fn turns(control: &mut Control, now_ms: u64) {
        for _ in 0..4 {
            control.turn(now_ms, &mut |words, _| match words.first().map(String::as_str) {
                Some("long") => Ok(Value::from("x".repeat(4 << 20))),
                Some("bad") => Err("no".to_owned()),
                _ => Ok(Value::from(words.join(" "))),
            });
        }
    }

    fn line(client: &mut UnixStream) -> Value {
        let mut text = Vec::new();
        let mut byte = [0];
        while client.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
            text.push(byte[0]);
        }
        serde_json::from_slice(&text).unwrap()
    }

    /// Split anywhere, a request is the same; two in one piece are two.
    #[test]
    fn both_framings_are_understood_wherever_they_are_cut() {
        let json = br#"{"id": 7, "command": "worker add", "args": [2]}"#;
        let mut counted = u32::try_from(json.len()).unwrap().to_be_bytes().to_vec();
        counted.extend_from_slice(json);
        let text = [&json[..], b"\n"].concat();
        for (message, whole) in
            [(&counted, Framed::Counted(json.len())), (&text, Framed::Line(json.len() + 1))]
        {
            for cut in 0..message.len() {
                assert_eq!(framed(&message[..cut]), Framed::Partial, "{cut}");
            }
            assert_eq!(framed(message), whole);
            let mut two = message.clone();
            two.extend_from_slice(message);
            assert_eq!(framed(&two), whole);
        }
        let words = vec!["worker".to_owned(), "add".to_owned(), "2".to_owned()];
        assert_eq!(read(json), (Value::from(7), Ok(words)));
        let words = vec!["show".to_owned(), "workers".to_owned()];
        assert_eq!(read(b" show  workers\r\n"), (Value::Null, Ok(words)));
    }

    #[test]
    fn what_is_no_request_is_an_error_and_never_more_than_that() {
        for message in [&b"{"[..], b"{}", b"{\"command\": 3}", b"\xff\xfe", b"{\"id\": 1}"] {
            assert!(read(message).1.is_err(), "{}", message.escape_ascii());
        }
        assert_eq!(framed(&vec![b'x'; CONTROL_REQUEST_BYTES_MAX + 1]), Framed::TooLong);
        assert_eq!(framed(&vec![b'x'; CONTROL_REQUEST_BYTES_MAX]), Framed::Partial);
        assert_eq!(framed(&[0, 255, 255, 255]), Framed::TooLong);
    }

    #[test]
    fn a_client_that_stops_in_the_middle_is_dropped_at_its_deadline() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.ctl");
        let mut control = control(&path);
        let mut slow = UnixStream::connect(&path).unwrap();
        slow.write_all(b"show wor").unwrap();
        turns(&mut control, 0);
        assert_eq!(control.next_ms(0), Some(CONTROL_PATIENCE_MS));
        // One byte more is no more time.
        slow.write_all(b"k").unwrap();
        turns(&mut control, CONTROL_PATIENCE_MS - 1);
        assert_eq!(control.clients.len(), 1);
        turns(&mut control, CONTROL_PATIENCE_MS);
        assert!(control.clients.is_empty());
        assert_eq!(slow.read(&mut [0]).unwrap(), 0);
    }

    /// Its answer does not fit the socket: the master keeps the rest, serves others, and does not wait.
    #[test]
    fn a_client_that_does_not_read_holds_nobody_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.ctl");
        let mut control = control(&path);
        let mut lazy = UnixStream::connect(&path).unwrap();
        lazy.write_all(b"long\n").unwrap();
        let mut quick = UnixStream::connect(&path).unwrap();
        quick.write_all(b"a\nbad\n").unwrap();
        turns(&mut control, 0);
        assert_eq!(line(&mut quick)["data"], "a");
        assert_eq!(line(&mut quick)["error"], "no");
        assert_eq!(control.clients.len(), 2);
        turns(&mut control, CONTROL_PATIENCE_MS);
        assert_eq!(control.clients.len(), 1, "the quick one may idle, the lazy one may not");
        turns(&mut control, CONTROL_IDLE_MS);
        assert!(control.clients.is_empty());
    }

    #[test]
    fn one_client_too_many_is_told_so() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.ctl");
        let mut control = control(&path);
        let mut clients = Vec::new();
        for _ in 0..CONTROL_CLIENTS_MAX {
            clients.push(UnixStream::connect(&path).unwrap());
            turns(&mut control, 0);
        }
        let mut late = UnixStream::connect(&path).unwrap();
        turns(&mut control, 0);
        assert!(line(&mut late)["error"].as_str().unwrap().contains("too many"));
        clients.pop();
        turns(&mut control, 0);
        let mut next = UnixStream::connect(&path).unwrap();
        next.write_all(b"hello\n").unwrap();
        turns(&mut control, 0);
        assert_eq!(line(&mut next)["data"], "hello");
    }

    #[test]
    fn the_file_has_its_mode_and_goes_with_the_server_unless_another_has_it() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.ctl");
        let first = control(&path);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(Control::open_at(&path, 0o600, false).unwrap_err().contains("another server"));
        assert_eq!(listener_of(&path), Some(i32::try_from(std::process::id()).unwrap()));
        // An upgrade: the next master takes the name, and the old one leaves it alone.
        let second = Control::open_at(&path, 0o660, true).unwrap();
        assert!(!first.is_in_place() && second.is_in_place());
        first.close();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        drop(second);
        // A server that was killed has left its file.
        assert!(path.exists());
        control(&path).close();
        assert!(!path.exists());
        // What is no socket is not ours to remove.
        std::fs::write(&path, b"notes").unwrap();
        assert!(Control::open_at(&path, 0o600, true).unwrap_err().contains("not a socket"));
    }

    #[test]
    fn a_runtime_directory_is_taken_in_order_and_only_if_it_is_ours() {
        let service = tempfile::tempdir().unwrap();
        let user = tempfile::tempdir().unwrap();
        let variable = |name: &str| match name {
            "RUNTIME_DIRECTORY" => Some(format!("{}:/nowhere", service.path().display()).into()),
            "XDG_RUNTIME_DIR" => Some(user.path().to_owned()),
            _ => None,
        };
        let found = directories(&variable);
        assert_eq!(found[..2], [service.path(), user.path()]);
        let none = directories(&|_| Some("relative".into()));
        assert!(none.iter().all(|path| path == Path::new("/run")), "{none:?}");
        std::fs::write(user.path().join("ringhorn-12.ctl"), b"").unwrap();
        std::fs::write(user.path().join("ringhorn.ctl"), b"").unwrap();
        for other in ["ringhorn-.ctl", "ringhorn-x.ctl", "gunicorn.ctl", "ringhorn-1.ctl.bak"] {
            std::fs::write(user.path().join(other), b"").unwrap();
        }
        let names = sockets_in(user.path());
        assert_eq!(names, ["ringhorn-12.ctl", "ringhorn.ctl"].map(|name| user.path().join(name)));
    }
}
