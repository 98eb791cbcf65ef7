//! A server program, its log, and clients.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// A hung server fails its test after this long. No test waits for it otherwise.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Both backends, as the command line names them.
pub(crate) const BACKENDS: [&str; 2] = ["uring", "epoll"];

pub(crate) const DEMO: &str = env!("CARGO_BIN_EXE_ringhorn-demo");

/// An example program; Cargo builds them beside the other programs.
pub(crate) fn example(name: &str) -> PathBuf {
    Path::new(DEMO).parent().unwrap().join("examples").join(name)
}

/// A running server.
pub(crate) struct Server {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
    pub(crate) port: u16,
    /// Masters that an upgrade started.
    others: Vec<Pid>,
}

impl Server {
    pub(crate) fn start(program: impl AsRef<Path>, arguments: &[&str]) -> Self {
        let mut command = Command::new(program.as_ref());
        command.args(["--bind", "127.0.0.1:0"]).args(arguments);
        Self::run(command)
    }

    pub(crate) fn run(mut command: Command) -> Self {
        let mut child = command
            .env_remove("RINGHORN_CMD_ARGS")
            .env_remove("GUNICORN_CMD_ARGS")
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
        let mut server = Self { child, lines, seen: Vec::new(), port: 0, others: Vec::new() };
        let rest = server.line("Listening at: http://127.0.0.1:");
        server.port = rest.split([' ', ',']).next().unwrap().parse().unwrap();
        server
    }

    /// The rest of the next log line with `text` in it, from there on.
    pub(crate) fn line(&mut self, text: &str) -> String {
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

    pub(crate) fn worker(&mut self) -> Pid {
        Pid::from_raw(self.line("Booting worker with pid: ").parse().unwrap()).unwrap()
    }

    /// The master that an upgrade started.
    pub(crate) fn next_master(&mut self) -> Pid {
        let pid = Pid::from_raw(self.line("Started another master with pid: ").parse().unwrap()).unwrap();
        self.others.push(pid);
        pid
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the end of the process; returns its exit code.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    pub(crate) fn connect(&self) -> Client {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Client { stream: BufReader::new(stream) }
    }

    /// Sends one request on a connection of its own.
    pub(crate) fn ask(&self, request: &str) -> Answer {
        self.connect().ask(request)
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.ask(&get(path))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A failed test leaves no server behind; the workers go with their master.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in &self.others {
            let _ = kill_process(*pid, Signal::KILL);
        }
    }
}

pub(crate) fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")
}

pub(crate) fn put(path: &str, body: &str) -> String {
    format!("PUT {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// One connection.
pub(crate) struct Client {
    pub(crate) stream: BufReader<TcpStream>,
}

/// What came back for one request.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn closes(&self) -> bool {
        self.head.contains("\r\nconnection: close\r\n")
    }
}

impl Client {
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
    }

    pub(crate) fn ask(&mut self, request: &str) -> Answer {
        self.send(request.as_bytes());
        self.read().expect("an answer")
    }

    /// The next answer, with its head in lower case; `None` at the end of the connection.
    pub(crate) fn read(&mut self) -> std::io::Result<Answer> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.stream.read_line(&mut head)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        let head = head.to_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut body = Vec::new();
        if head.contains("\r\ntransfer-encoding: chunked\r\n") {
            loop {
                let mut line = String::new();
                self.stream.read_line(&mut line)?;
                let size = u64::from_str_radix(line.trim(), 16).unwrap();
                let before = body.len();
                (&mut self.stream).take(size).read_to_end(&mut body)?;
                assert_eq!((body.len() - before) as u64, size, "cut");
                self.stream.read_line(&mut line)?;
                if size == 0 {
                    break;
                }
            }
        } else if let Some((_, rest)) = head.split_once("\r\ncontent-length: ") {
            let length: u64 = rest.split("\r\n").next().unwrap().parse().unwrap();
            (&mut self.stream).take(length).read_to_end(&mut body)?;
            assert_eq!(body.len() as u64, length, "cut");
        }
        Ok(Answer { status, head, body })
    }
}
