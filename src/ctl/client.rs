//! Finding a server's control socket, and asking through it.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::{Exit, StartError};
use crate::master::control::{directories, listener_of, sockets_in};
use crate::sys::errno::describe;

/// Longest wait for an answer. The master answers at once, unless it forks, preloads or runs a hook.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection to a server.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the control socket at `path`.
    ///
    /// # Errors
    /// Nobody listens there, or this user may not connect.
    pub fn connect(path: &Path) -> Result<Self, StartError> {
        let stream = UnixStream::connect(path).and_then(|stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(stream)
        });
        match stream {
            Ok(stream) => Ok(Self { path: path.to_owned(), stream: BufReader::new(stream) }),
            Err(error) => Err(unreachable(path, &error)),
        }
    }

    /// Connects to whoever has the socket's name now.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn again(&self) -> Result<Self, StartError> {
        Self::connect(&self.path)
    }

    /// Sends a command and waits for what the server says.
    ///
    /// # Errors
    /// The server refuses, or it is gone.
    pub fn ask(&mut self, words: &[String]) -> Result<Value, StartError> {
        let mut answer = self.exchange(words).map_err(|error| {
            let why = match error.kind() {
                io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => {
                    "it has closed the connection".to_owned()
                }
                io::ErrorKind::WouldBlock => format!("no answer in {} s", PATIENCE.as_secs()),
                _ => describe(&error),
            };
            StartError::new(
                Exit::Start,
                format!("the server at {} does not answer: {why}", self.path.display()),
            )
        })?;
        match answer["status"].as_str() {
            Some("ok") => Ok(answer["data"].take()),
            _ => {
                let why = answer["error"].as_str().unwrap_or("the answer is not understood");
                Err(StartError::new(Exit::Start, why))
            }
        }
    }

    fn exchange(&mut self, words: &[String]) -> io::Result<Value> {
        let mut request = json!({ "id": 1, "command": words.join(" ") }).to_string();
        request.push('\n');
        // One that is refused is told why before it has asked, and then the connection is closed.
        let written = self.stream.get_mut().write_all(request.as_bytes());
        let mut line = Vec::new();
        if self.stream.read_until(b'\n', &mut line)? == 0 {
            return Err(written.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(serde_json::from_slice(&line)?)
    }
}

fn unreachable(path: &Path, error: &io::Error) -> StartError {
    let what = format!("cannot reach a server at {}: {}", path.display(), describe(error));
    let is_socket = std::fs::metadata(path).is_ok_and(|found| found.file_type().is_socket());
    StartError::new(Exit::Start, what).hint(match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "be the server's user or root, or let its group in with --control-socket-mode 0660"
        }
        // The kernel says the same of any other file.
        io::ErrorKind::ConnectionRefused if !is_socket => "that is no socket; `--pid` takes a pidfile",
        io::ErrorKind::ConnectionRefused => "the server that made this socket is gone",
        io::ErrorKind::NotFound => "its log says `Control socket listening at`, or why there is none",
        _ => "name the control socket of a running server",
    })
}

/// The one server that can be found: in the first of the directories that has a control socket. One whose server was
/// killed counts: in its place another server would be told to stop.
///
/// # Errors
/// There is none, it was killed, or there are several.
pub(super) fn find() -> Result<PathBuf, StartError> {
    find_in(&directories(&|name| std::env::var_os(name).map(PathBuf::from)))
}

fn find_in(directories: &[PathBuf]) -> Result<PathBuf, StartError> {
    let sockets =
        directories.iter().map(|path| sockets_in(path)).find(|found| !found.is_empty()).unwrap_or_default();
    let listening = |path: &PathBuf| listener_of(path).map(|pid| (path.clone(), pid));
    let found: Vec<(PathBuf, i32)> = sockets.iter().filter_map(listening).collect();
    match &found[..] {
        [(path, _)] => Ok(path.clone()),
        [] if !sockets.is_empty() => {
            Err(StartError::new(Exit::Start, "the server that made this control socket is gone")
                .from(sockets[0].display().to_string())
                .hint("start it again, or name another server's socket with --socket"))
        }
        [] => {
            let places: Vec<String> = directories.iter().map(|path| path.display().to_string()).collect();
            let places = if places.is_empty() { "nowhere to look".to_owned() } else { places.join(", ") };
            Err(StartError::new(Exit::Start, "no running server is found")
                .from(places)
                .hint("name its control socket with --socket, or its pidfile with --pid"))
        }
        several => {
            let list: Vec<String> =
                several.iter().map(|(path, pid)| format!("  {} (pid:{pid})", path.display())).collect();
            Err(StartError::new(Exit::Usage, format!("{} servers are running", several.len()))
                .hint("say which one with --socket")
                .detail(list.join("\n")))
        }
    }
}

/// The control socket of the server whose pidfile this is; a bare number is the process itself.
///
/// The kernel is asked, so that it is found wherever `control_socket` has put it: the process's own
/// descriptors, and the names of the sockets that listen.
///
/// # Errors
/// There is no such file, no such process, or it has no control socket that this user may see.
pub(super) fn socket_of(pidfile: &Path) -> Result<PathBuf, StartError> {
    let shown = pidfile.display();
    let number = |text: &str| text.trim().parse::<u32>().ok();
    let pid = match (pidfile.to_str().and_then(number), std::fs::read_to_string(pidfile)) {
        (_, Ok(text)) => number(&text).ok_or_else(|| {
            StartError::new(Exit::Start, format!("{shown} holds no process id")).hint("it is no pidfile")
        })?,
        (Some(pid), Err(_)) => pid,
        (None, Err(error)) => {
            let what = format!("cannot read the pidfile {shown}: {}", describe(&error));
            return Err(StartError::new(Exit::Start, what));
        }
    };
    let failed = |what: String| StartError::new(Exit::Start, what).from(format!("--pid {shown}"));
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => failed(format!("there is no process {pid}")).hint("the server is gone"),
        _ => failed(format!("cannot look at process {pid}: {}", describe(&error)))
            .hint("be the server's user or root"),
    })?;
    let sockets: Vec<String> = fds
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let names = std::fs::read_to_string(format!("/proc/{pid}/net/unix")).unwrap_or_default();
    let candidates = listening(&names, &sockets);
    // A server may also serve clients on a unix socket: only the control socket knows a command.
    let ours = |path: &PathBuf| {
        let answer = Client::connect(path).and_then(|mut client| client.ask(&["ping".to_owned()]));
        answer.is_ok_and(|answer| answer["pid"].as_u64() == Some(pid.into()))
    };
    candidates.into_iter().find(ours).ok_or_else(|| {
        failed(format!("process {pid} has no control socket"))
            .hint("give the server one: --control-socket /run/myapp.ctl")
    })
}

/// The names of those of `inodes` that listen, from the text of /proc/net/unix. The likely ones first.
///
/// # Source
/// proc_pid_net(5); `__SO_ACCEPTCON` is bit 16 of the flags.
fn listening(names: &str, inodes: &[String]) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = names
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace().skip(3);
            let flags = u32::from_str_radix(fields.next()?, 16).ok()?;
            let inode = fields.nth(2)?;
            let path = fields.next()?;
            let ours = flags & 1 << 16 != 0 && inodes.iter().any(|other| other == inode);
            (ours && path.starts_with('/')).then(|| PathBuf::from(path))
        })
        .collect();
    found.sort_by_key(|path| path.extension().is_none_or(|end| end != "ctl"));
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_server_is_found_in_the_first_directory_that_has_one() {
        let directories = [0; 3].map(|_| tempfile::tempdir().unwrap());
        let paths = directories.each_ref().map(|directory| directory.path().to_owned());
        let error = find_in(&paths).unwrap_err().to_string();
        assert!(error.contains("no running server") && error.contains("--socket"), "{error}");
        let second = paths[1].join("ringhorn.ctl");
        let third = paths[2].join("ringhorn.ctl");
        let _listeners = [&second, &third].map(|path| UnixListener::bind(path).unwrap());
        assert_eq!(find_in(&paths).unwrap(), second);
        // Of a server that was killed: nobody answers, and no other server is taken for it.
        let killed = paths[0].join("ringhorn.ctl");
        drop(UnixListener::bind(&killed).unwrap());
        let error = find_in(&paths).unwrap_err().to_string();
        assert!(error.contains("is gone") && error.contains(killed.to_str().unwrap()), "{error}");
        std::fs::remove_file(&killed).unwrap();
        let _other = UnixListener::bind(paths[1].join("ringhorn-7.ctl")).unwrap();
        let error = find_in(&paths).unwrap_err().to_string();
        assert!(error.contains("2 servers") && error.contains("ringhorn-7.ctl"), "{error}");
    }

    #[test]
    fn only_sockets_of_the_process_that_listen_and_have_a_file_are_candidates() {
        let names = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0: 00000002 00000000 00010000 0001 01 11 /run/app.sock\n\
            1: 00000003 00000000 00000000 0001 03 12 /run/ringhorn.ctl\n\
            2: 00000002 00000000 00010000 0001 01 13 @abstract\n\
            3: 00000002 00000000 00010000 0001 01 14 /run/ringhorn.ctl\n\
            4: 00000002 00000000 00010000 0001 01 15 /run/other.ctl\n\
            5: 00000002 00000000 00010000 0001 01 16\n";
        let inodes = ["11", "12", "13", "14", "16"].map(str::to_owned);
        let found = listening(names, &inodes);
        assert_eq!(found, [PathBuf::from("/run/ringhorn.ctl"), PathBuf::from("/run/app.sock")]);
    }
}
