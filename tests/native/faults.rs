//! Kill, reload, upgrade and stop under load: no request that was sent goes without its answer.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use rustix::process::{Signal, kill_process};

use crate::server::{Client, DEMO, PATIENCE, Server, get};

/// Clients that ask again and again, on connections that they keep.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(port: u16) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let clients = (0..4)
            .map(|number| {
                let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
                thread::spawn(move || client(port, number, &stop, &answered))
            })
            .collect();
        Self { stop, answered, clients }
    }

    /// Waits until so many more requests were answered.
    fn pass(&self, count: u64) {
        let until = self.answered.load(Ordering::Relaxed) + count;
        while self.answered.load(Ordering::Relaxed) < until {
            assert!(self.clients.iter().any(|client| !client.is_finished()), "all clients gave up");
            thread::yield_now();
        }
    }

    /// What was lost.
    fn end(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    }
}

fn client(port: u16, number: usize, stop: &AtomicBool, answered: &AtomicU64) -> Vec<String> {
    let mut lost = Vec::new();
    let mut connection: Option<Client> = None;
    // Some answers come at once, some by way of the worker's threads; one client never keeps its connection.
    let paths = ["/plaintext", "/static/none"];
    let mut request = 0_u64;
    while !stop.load(Ordering::Relaxed) && lost.len() < 10 {
        request += 1;
        let mut kept = connection.take().unwrap_or_else(|| {
            let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            Client { stream: std::io::BufReader::new(stream) }
        });
        kept.send(get(paths[usize::try_from(request % 2).unwrap()]).as_bytes());
        match kept.read() {
            Ok(answer) => {
                answered.fetch_add(1, Ordering::Relaxed);
                if !answer.closes() && number != 0 {
                    connection = Some(kept);
                }
            }
            Err(error) => lost.push(format!("client {number}, request {request}: {error}")),
        }
    }
    lost
}

#[test]
fn a_reload_and_an_upgrade_lose_nothing() {
    let mut server = Server::start(DEMO, &["--workers", "2"]);
    let load = Load::start(server.port);
    load.pass(200);
    server.signal(Signal::HUP);
    server.line("Reload complete: all workers are new");
    load.pass(200);
    server.signal(Signal::USR2);
    let next = server.next_master();
    // Both serve; then the old one leaves.
    server.worker();
    server.worker();
    load.pass(200);
    server.signal(Signal::TERM);
    assert_eq!(server.wait(), Some(0));
    load.pass(200);
    assert_eq!(load.end(), Vec::<String>::new());
    kill_process(next, Signal::TERM).unwrap();
    server.line("Shutting down: Master");
}

#[test]
fn a_stop_answers_what_was_sent() {
    let mut server = Server::start(DEMO, &["--workers", "2"]);
    let mut clients: Vec<Client> = (0..32).map(|_| server.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.ask(&get("/plaintext")).status, 200);
    }
    // The request is on its way when the order comes.
    clients.iter_mut().for_each(|client| client.send(get("/plaintext").as_bytes()));
    server.signal(Signal::TERM);
    for client in &mut clients {
        let answer = client.read().expect("an answer, and then the end");
        assert_eq!(answer.text(), "Hello, World!");
        if !answer.closes() {
            assert!(client.read().is_err(), "and then the end");
        }
    }
    assert_eq!(server.wait(), Some(0));
}

/// Only connections of the killed worker are lost, and its place is taken.
#[test]
fn a_killed_worker_costs_its_own_connections_only() {
    use std::io::Write;
    let mut server = Server::start(DEMO, &["--workers", "2"]);
    server.worker();
    let mut kept = 0;
    // While one boots, the other one takes the connections of both: that may have been the one that is killed.
    for _ in 0..10 {
        let killed = server.worker();
        let mut clients: Vec<Client> = (0..32).map(|_| server.connect()).collect();
        for client in &mut clients {
            assert_eq!(client.ask(&get("/plaintext")).status, 200);
        }
        kill_process(killed, Signal::KILL).unwrap();
        server.line("SIGKILL");
        // Those that come now wait in the queue of the dead until its successor is there, or a sibling takes them.
        let late: Vec<Client> = (0..32).map(|_| server.connect()).collect();
        for mut client in late {
            assert_eq!(client.ask(&get("/plaintext")).text(), "Hello, World!");
        }
        for mut client in clients {
            // One whose worker is gone has been reset, which the write or the read tells.
            if client.stream.get_mut().write_all(get("/plaintext").as_bytes()).is_ok()
                && let Ok(answer) = client.read()
            {
                assert_eq!(answer.text(), "Hello, World!");
                kept += 1;
            }
        }
        if kept > 0 {
            return;
        }
    }
    panic!("the other worker's connections go on");
}
