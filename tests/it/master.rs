//! The master with real processes. Each test starts this test program again as a server
//! ([`scenario`]), because a process in which other tests run must not fork workers: a test's lock
//! would stay held in them. There the runner's main thread does nothing but wait for the scenario.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::field_reassign_with_default)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use ringhorn::config::{Bind, Settings};
use ringhorn::master::{LocalAddr, NativeHost, WorkerContext, WorkerListener, run};
use ringhorn::observe::{Level, LogTarget};
use ringhorn::sys::process::{Pid, kill};
use ringhorn::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, poll};

/// A hung server fails its test after this long. No test waits for it otherwise.
const PATIENCE: Duration = Duration::from_secs(30);

/// An id that is nobody's on any system.
const NOBODY: u32 = 65_534;

const SCENARIO: &str = "RINGHORN_TEST_SCENARIO";
const DIRECTORY: &str = "RINGHORN_TEST_DIRECTORY";
const PORT: &str = "RINGHORN_TEST_PORT";

/// Not a test of its own: with a scenario in the environment this process becomes that server.
#[test]
fn scenario() {
    let Ok(name) = std::env::var(SCENARIO) else { return };
    // The fields of the log are not looked at, its lines are.
    ringhorn::observe::install(&LogTarget::Standard, Level::Info, false).unwrap();
    let directory = PathBuf::from(std::env::var_os(DIRECTORY).unwrap());
    let port = std::env::var(PORT).map_or(0, |port| port.parse().unwrap());
    let mut settings = Settings::default();
    settings.app = "scenario".to_owned();
    settings.bind = vec![Bind::Tcp { host: "127.0.0.1".to_owned(), port }];
    settings.workers = 2;
    let serve: fn(WorkerContext) -> i32 = match name.as_str() {
        "serve" => serve,
        "unix" => {
            settings.bind = vec![Bind::Unix(directory.join("app.sock"))];
            settings.pidfile = Some(directory.join("server.pid"));
            serve
        }
        "as_nobody" => {
            (settings.user, settings.group) = (Some(NOBODY), Some(NOBODY));
            settings.bind.push(Bind::Unix(directory.join("app.sock")));
            serve
        }
        "first_two_do_not_accept" => |worker| if worker.age <= 2 { hold(&worker) } else { serve(worker) },
        "may_not_change_user" => {
            // Root first becomes somebody who may not.
            let identity =
                ringhorn::sys::process::Identity { user: Some(NOBODY), group: None, initgroups: false };
            let _ = ringhorn::sys::process::assume(identity);
            settings.user = Some(NOBODY - 1);
            serve
        }
        "boot_fails" => |_| 3,
        "app_fails" => |_| 4,
        "fails_later" => |worker| match worker.age {
            // Its neighbour serves before it gives up.
            2 => {
                while worker.shared.records()[0].pid() == 0 || !is_ready(&worker, 0) {
                    std::thread::yield_now();
                }
                3
            }
            _ => serve(worker),
        },
        "panics_once" => |worker| {
            assert!(worker.age > 2, "as asked");
            serve(worker)
        },
        "silent" => {
            settings.workers = 1;
            settings.timeout = Duration::from_secs(1);
            |worker| if worker.age == 1 { hold(&worker) } else { serve(worker) }
        }
        "deaf" => {
            settings.graceful_timeout = Duration::from_secs(1);
            |worker| hold(&worker)
        }
        other => panic!("no scenario {other}"),
    };
    std::process::exit(run(settings, &mut NativeHost::new(serve)));
}

fn is_ready(worker: &WorkerContext, slot: usize) -> bool {
    worker.shared.records()[slot].state() == ringhorn::sys::shared::WorkerState::Ready
}

/// A worker that is ready, and then neither accepts, beats, nor hears.
fn hold(worker: &WorkerContext) -> i32 {
    worker.set_ready();
    loop {
        std::thread::park();
    }
}

/// A worker that answers every connection with what it knows, until a signal comes.
fn serve(worker: WorkerContext) -> i32 {
    worker.set_ready();
    loop {
        worker.record().beat(ringhorn::sys::clock::monotonic_ms());
        let mut waiting = vec![PollFd::from_borrowed_fd(worker.signals.event(), PollFlags::IN)];
        let listeners = worker.listeners.iter();
        waiting.extend(listeners.map(|listener| PollFd::new(&listener.fd, PollFlags::IN)));
        let beat = Duration::from_millis(100).try_into().unwrap();
        let _ = poll(&mut waiting, Some(&beat));
        let ready: Vec<bool> = waiting.iter().map(|entry| !entry.revents().is_empty()).collect();
        let signals = worker.signals.take();
        if [Signal::TERM, Signal::INT, Signal::QUIT].into_iter().any(|signal| signals.contains(signal)) {
            return 0;
        }
        for (listener, ready) in worker.listeners.iter().zip(&ready[1..]) {
            if *ready {
                answer(&worker, listener);
            }
        }
    }
}

fn answer(worker: &WorkerContext, listener: &WorkerListener) {
    worker.record().add_requests(1);
    let seen: u64 = worker.shared.records().iter().map(|record| record.requests()).sum();
    let cpus = core_affinity::get_core_ids().unwrap().len();
    let (slot, pid, siblings) = (worker.slot, std::process::id(), worker.siblings.len());
    let text =
        format!("slot={slot} pid={pid} age={} cpus={cpus} seen={seen} siblings={siblings}\n", worker.age);
    let fd = listener.fd.as_fd().try_clone_to_owned().unwrap();
    match listener.local {
        LocalAddr::Tcp(_) => {
            let listener = TcpListener::from(fd);
            // Several workers may race for a shared listener, but not for one of their own.
            say(listener.accept().unwrap().0, &text);
        }
        LocalAddr::Unix(_) => {
            let listener = UnixListener::from(fd);
            listener.set_nonblocking(true).unwrap();
            if let Ok((client, _)) = listener.accept() {
                say(client, &text);
            }
        }
    }
}

/// Answers and keeps the connection for the life of the process, so that its end can be seen.
fn say(mut client: impl Write, text: &str) {
    client.write_all(text.as_bytes()).unwrap();
    std::mem::forget(client);
}

/// A server of this program, and its log.
struct Server {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
    directory: Option<tempfile::TempDir>,
}

impl Server {
    fn start(scenario: &str) -> Self {
        Self::start_on(scenario, 0)
    }

    fn start_on(scenario: &str, port: u16) -> Self {
        Self::start_in(scenario, port, tempfile::tempdir().unwrap())
    }

    fn start_in(scenario: &str, port: u16, directory: tempfile::TempDir) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["master::scenario", "--exact", "--nocapture", "--test-threads=1"])
            .env(SCENARIO, scenario)
            .env(DIRECTORY, directory.path())
            .env(PORT, port.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, lines, seen: Vec::new(), directory: Some(directory) }
    }

    /// The rest of the next log line with `text` in it, from there on.
    fn line(&mut self, text: &str) -> String {
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => {
                    let rest = line.find(text).map(|at| line[at + text.len()..].trim().to_owned());
                    self.seen.push(line);
                    if let Some(rest) = rest {
                        return rest;
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("{text:?} did not come:\n{:#?}", self.seen),
                Err(RecvTimeoutError::Disconnected) => panic!("no {text:?}:\n{:#?}", self.seen),
            }
        }
    }

    fn port(&mut self) -> u16 {
        let rest = self.line("Listening at: http://127.0.0.1:");
        rest.split([' ', ',']).next().unwrap().parse().unwrap()
    }

    fn worker(&mut self) -> Pid {
        Pid::from_raw(self.line("Booting worker with pid: ").parse().unwrap()).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the end of the process and of its log.
    fn wait(mut self) -> (ExitStatus, Vec<String>, tempfile::TempDir) {
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            self.seen.push(line);
        }
        let status = self.child.wait().unwrap();
        (status, std::mem::take(&mut self.seen), self.directory.take().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.as_ref().unwrap().path().join(name)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A failed test leaves no server behind; the workers go with their master.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connect(port: u16) -> BufReader<TcpStream> {
    let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    BufReader::new(client)
}

fn read(client: &mut BufReader<impl Read>) -> String {
    let mut text = String::new();
    client.read_line(&mut text).unwrap();
    assert!(text.starts_with("slot="), "{text:?}");
    text
}

fn field(text: &str, name: &str) -> u64 {
    let mut pairs = text.split_whitespace().filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| *key == name).unwrap().1.parse().unwrap()
}

fn count(lines: &[String], text: &str) -> usize {
    lines.iter().filter(|line| line.contains(text)).count()
}

#[test]
fn each_worker_has_its_slot_its_cpu_and_sees_the_other() {
    let mut server = Server::start("serve");
    let port = server.port();
    let workers = [server.worker(), server.worker()].map(|pid| pid.to_string());
    let mut answers: Vec<String> = Vec::new();
    // Until both have answered: the kernel chooses by the client's port.
    while (0..2).any(|slot| answers.iter().all(|text| field(text, "slot") != slot)) {
        assert!(answers.len() < 1_000, "{answers:?}");
        answers.push(read(&mut connect(port)));
    }
    let pinned = core_affinity::get_core_ids().unwrap().len() == 2;
    for text in &answers {
        assert!(workers.contains(&field(text, "pid").to_string()), "{text}");
        assert_eq!(field(text, "siblings"), 1, "every listener of the other slots is there too");
        assert!(!pinned || field(text, "cpus") == 1, "{text}");
    }
    assert_eq!(field(answers.last().unwrap(), "seen"), answers.len() as u64, "the page is shared");
    server.signal(Signal::TERM);
    let (status, lines, _) = server.wait();
    assert_eq!(status.code(), Some(0), "{lines:#?}");
    for text in ["Handling signal: term", "Shutting down: Master"] {
        assert_eq!(count(&lines, text), 1, "{text}: {lines:#?}");
    }
}

/// The queue belongs to the master: reliability.md section 2. A plain SO_REUSEPORT server resets
/// these clients.
#[test]
fn connections_that_wait_when_a_worker_is_killed_are_served_by_the_next() {
    let mut server = Server::start("first_two_do_not_accept");
    let port = server.port();
    let workers = [server.worker(), server.worker()];
    let clients: Vec<_> = (0..64).map(|_| connect(port)).collect();
    for pid in workers {
        kill(pid, Signal::KILL).unwrap();
    }
    let mut slots = [0, 0];
    for mut client in clients {
        let text = read(&mut client);
        assert!(field(&text, "age") > 2, "{text}");
        slots[usize::try_from(field(&text, "slot")).unwrap()] += 1;
    }
    assert!(slots[0] > 0 && slots[1] > 0, "both queues were waited in: {slots:?}");
    server.signal(Signal::TERM);
    let (status, lines, _) = server.wait();
    assert_eq!(status.code(), Some(0));
    assert_eq!(count(&lines, "was sent SIGKILL! Perhaps out of memory?"), 2, "{lines:#?}");
}

#[test]
fn interrupt_and_quit_end_with_zero_too() {
    for (signal, name) in [(Signal::INT, "int"), (Signal::QUIT, "quit")] {
        let mut server = Server::start("serve");
        let port = server.port();
        read(&mut connect(port));
        server.signal(signal);
        let (status, lines, _) = server.wait();
        assert_eq!(status.code(), Some(0), "{lines:#?}");
        assert_eq!(count(&lines, &format!("Handling signal: {name}")), 1, "{lines:#?}");
    }
}

#[test]
fn a_worker_that_cannot_boot_ends_the_server_with_its_code() {
    for (scenario, code, reason) in [
        ("boot_fails", 3, "Reason: Worker failed to boot."),
        ("app_fails", 4, "Reason: App failed to load."),
        ("may_not_change_user", 3, "Reason: Worker failed to boot."),
    ] {
        let (status, lines, _) = Server::start(scenario).wait();
        assert_eq!(status.code(), Some(code), "{lines:#?}");
        assert_eq!((count(&lines, reason), count(&lines, "Shutting down: Master")), (1, 1), "{lines:#?}");
        assert!(count(&lines, "Perhaps out of memory") == 0, "our own kill is not the kernel's: {lines:#?}");
    }
}

/// gunicorn ends the whole server when a request calls `sys.exit(3)`.
#[test]
fn the_same_code_later_is_one_crash() {
    let mut server = Server::start("fails_later");
    let port = server.port();
    server.line("exited with code 3.");
    server.line("the next try is in 0.1 s");
    while field(&read(&mut connect(port)), "age") != 3 {}
    server.signal(Signal::TERM);
    assert_eq!(server.wait().0.code(), Some(0));
}

/// A panic in a worker must not run on in the master's code: there would be two masters.
#[test]
fn a_worker_that_panics_is_replaced() {
    let mut server = Server::start("panics_once");
    let port = server.port();
    server.line("exited with code 255.");
    read(&mut connect(port));
    server.signal(Signal::TERM);
    assert_eq!(server.wait().0.code(), Some(0));
}

#[test]
fn a_silent_worker_is_replaced_and_its_queue_served() {
    let mut server = Server::start("silent");
    let port = server.port();
    let first = server.worker();
    let mut client = connect(port);
    assert_eq!(server.line("WORKER TIMEOUT "), format!("(pid:{first})"));
    assert_eq!(field(&read(&mut client), "age"), 2);
    server.signal(Signal::TERM);
    assert_eq!(server.wait().0.code(), Some(0));
}

#[test]
fn workers_that_do_not_hear_are_killed_when_graceful_timeout_is_over() {
    let mut server = Server::start("deaf");
    server.worker();
    server.worker();
    server.signal(Signal::TERM);
    let (status, lines, _) = server.wait();
    assert_eq!(status.code(), Some(0), "{lines:#?}");
    assert_eq!(count(&lines, "graceful_timeout is over"), 1, "{lines:#?}");
}

/// An orphan would go on answering with old code beside the next server.
#[test]
fn workers_die_with_their_master_and_the_port_is_free() {
    let mut server = Server::start("serve");
    let port = server.port();
    let mut clients: Vec<_> = (0..16).map(|_| connect(port)).collect();
    clients.iter_mut().for_each(|client| drop(read(client)));
    server.signal(Signal::KILL);
    for mut client in clients {
        // The end or a reset, by the kernel: the worker wrote nothing more.
        assert_eq!(client.read_to_string(&mut String::new()).unwrap_or(0), 0);
    }
    drop(server);
    let mut next = Server::start_on("serve", port);
    assert_eq!(next.port(), port);
    read(&mut connect(port));
}

/// reliability.md promise 23: ids and supplementary groups are gone, and a change of user does not
/// undo that workers die with their master (the kernel forgets that at each change).
#[test]
fn workers_drop_root_completely_and_still_die_with_the_master() {
    if !rustix::process::geteuid().is_root() {
        // Only root can become somebody else.
        return;
    }
    let mut server = Server::start("as_nobody");
    let port = server.port();
    let mut client = connect(port);
    let pid = field(&read(&mut client), "pid");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let nobody = NOBODY.to_string();
    assert_eq!(line("Uid:"), vec![nobody.clone(); 4]);
    assert_eq!(line("Gid:"), vec![nobody.clone(); 4]);
    assert_eq!(line("Groups:"), [nobody]);
    assert_eq!(line("CapEff:"), ["0000000000000000"]);
    let socket = std::fs::metadata(server.path("app.sock")).unwrap();
    assert_eq!((socket.uid(), socket.gid()), (NOBODY, NOBODY));
    server.signal(Signal::KILL);
    assert_eq!(client.read_to_string(&mut String::new()).unwrap_or(0), 0);
}

#[test]
fn a_port_in_use_is_an_error_of_three_lines_and_code_one() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port();
    let (status, lines, _) = Server::start_on("serve", port).wait();
    assert_eq!(status.code(), Some(1), "{lines:#?}");
    let at = lines.iter().position(|line| line.contains("cannot bind")).unwrap();
    assert!(
        lines[at].contains(&format!("127.0.0.1:{port}: address already in use (EADDRINUSE)")),
        "{lines:#?}"
    );
    assert!(lines[at + 1].starts_with("  from: ") && lines[at + 2].starts_with("  hint: "), "{lines:#?}");
    assert_eq!(count(&lines, "Booting worker"), 0);
}

#[test]
fn a_unix_socket_and_a_pidfile_are_there_while_the_server_is() {
    let mut server = Server::start("unix");
    server.line("Listening at: unix:");
    let (socket, pidfile) = (server.path("app.sock"), server.path("server.pid"));
    let client = UnixStream::connect(&socket).unwrap();
    read(&mut BufReader::new(client));
    assert_eq!(std::fs::read_to_string(&pidfile).unwrap(), format!("{}\n", server.child.id()));
    server.signal(Signal::TERM);
    let (status, lines, directory) = server.wait();
    assert_eq!(status.code(), Some(0), "{lines:#?}");
    assert!(names(directory.path()).is_empty(), "{:?}", names(directory.path()));
}

/// reliability.md promise 20: what a killed server leaves behind is no obstacle.
#[test]
fn files_of_a_killed_server_are_taken_over() {
    let mut server = Server::start("unix");
    server.line("Listening at: unix:");
    read(&mut BufReader::new(UnixStream::connect(server.path("app.sock")).unwrap()));
    server.signal(Signal::KILL);
    let (_, _, directory) = server.wait();
    assert_eq!(names(directory.path()), ["app.sock", "server.pid"]);
    let mut next = Server::start_in("unix", 0, directory);
    next.line("Listening at: unix:");
    read(&mut BufReader::new(UnixStream::connect(next.path("app.sock")).unwrap()));
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
