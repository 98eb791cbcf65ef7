//! What the worker relies on, on both backends, with real sockets.
//!
//! No test waits for time: each turns the driver until what it expects has come, with a limit that
//! only a broken backend reaches.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::epoll::Epoll;
use super::uring::{Sizes, Uring};
use super::*;
use crate::limits::RECV_BUFFER_BYTES;

const LIMIT: Duration = Duration::from_secs(10);

/// A driver, and the events that nobody has looked at yet.
struct Bench {
    driver: Box<dyn Driver>,
    events: Vec<Event>,
}

impl Bench {
    /// One turn that does not wait.
    fn turn(&mut self) {
        self.driver.turn(Some(Duration::ZERO), &mut self.events).unwrap();
    }

    /// Turns until `take` has found what it looks for among the events; it keeps the others.
    fn until<T>(&mut self, mut take: impl FnMut(&mut Vec<Event>) -> Option<T>) -> T {
        let end = Instant::now() + LIMIT;
        loop {
            if let Some(found) = take(&mut self.events) {
                return found;
            }
            let left = end.checked_duration_since(Instant::now());
            let left = left.unwrap_or_else(|| panic!("only these came: {:?}", self.events));
            self.driver.turn(Some(left), &mut self.events).unwrap();
        }
    }

    fn accepted(&mut self) -> Socket {
        self.until(|events| {
            let at = events.iter().position(|event| matches!(event, Event::Accepted { .. }))?;
            let Event::Accepted { socket, .. } = events.remove(at) else { unreachable!() };
            Some(socket)
        })
    }

    /// Bytes of one connection, in order, `count` of them.
    fn bytes(&mut self, token: Token, count: usize) -> Vec<u8> {
        let mut all = Vec::new();
        self.until(|events| {
            events.retain(|event| match event {
                Event::Received { token: whose, bytes } if *whose == token => {
                    assert!(!bytes.is_empty());
                    all.extend_from_slice(bytes);
                    false
                }
                _ => true,
            });
            assert!(all.len() <= count, "too many bytes");
            (all.len() == count).then(|| std::mem::take(&mut all))
        })
    }

    fn ended(&mut self, token: Token) {
        self.until(|events| {
            take_event(events, |event| matches!(event, Event::Ended { token: whose } if *whose == token))
        });
    }

    fn writable(&mut self, token: Token) {
        self.until(|events| {
            take_event(events, |event| matches!(event, Event::Writable { token: whose } if *whose == token))
        });
    }

    /// Makes sure that everything the kernel has reported so far is in `events`: a wake-up goes
    /// through the kernel behind it.
    fn settle(&mut self) {
        for _ in 0..3 {
            self.driver.waker().wake();
            self.until(|events| take_event(events, |event| matches!(event, Event::Woken)));
        }
        self.events.retain(|event| !matches!(event, Event::Woken));
    }
}

fn take_event(events: &mut Vec<Event>, is: impl Fn(&Event) -> bool) -> Option<()> {
    let at = events.iter().position(is)?;
    events.remove(at);
    Some(())
}

fn token(slot: u32) -> Token {
    Token { slot, generation: 0 }
}

fn unix_pair() -> (UnixStream, Socket) {
    let (peer, ours) = UnixStream::pair().unwrap();
    (peer, Socket::from(OwnedFd::from(ours)))
}

fn tcp_pair() -> (TcpStream, Socket) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (peer, Socket::from(OwnedFd::from(listener.accept().unwrap().0)))
}

/// A driver with few buffers.
fn small(io: Io, buffers: u16) -> Bench {
    let driver: Box<dyn Driver> = match io {
        Io::Uring => Box::new(
            Uring::with_sizes(Sizes { submissions: 8, completions: 16, buffers }).map_err(|e| e.1).unwrap(),
        ),
        _ => Box::new(Epoll::with_buffers(buffers).unwrap()),
    };
    Bench { driver, events: Vec::new() }
}

/// Runs a scenario on epoll, and on io_uring where the machine allows it.
fn on_both(scenario: impl Fn(Io, Bench)) {
    for io in [Io::Epoll, Io::Uring] {
        if io == Io::Uring
            && let Err(failure) = probe()
        {
            eprintln!("not run on io_uring: {failure}");
            continue;
        }
        let (driver, choice) = open(io).unwrap();
        assert_eq!(driver.name(), choice.name);
        scenario(io, Bench { driver, events: Vec::new() });
    }
}

#[test]
fn connections_are_accepted_until_accepting_stops_and_after_it_starts_again() {
    for mode in [Accepting::Alone, Accepting::Shared] {
        on_both(|_, mut bench| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let addr = listener.local_addr().unwrap();
            bench.driver.accept(0, listener.as_raw_fd(), mode).unwrap();
            for _ in 0..3 {
                let peer = TcpStream::connect(addr).unwrap();
                let socket = bench.accepted();
                assert_eq!(socket.peer_addr().unwrap(), Some(peer.local_addr().unwrap()));
                let flags = rustix::io::fcntl_getfd(socket.fd().unwrap()).unwrap();
                assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
                let flags = rustix::fs::fcntl_getfl(socket.fd().unwrap()).unwrap();
                assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK));
            }
            bench.driver.stop_accept(0);
            bench.settle();
            let peer = TcpStream::connect(addr).unwrap();
            bench.settle();
            assert!(bench.events.is_empty(), "{:?}", bench.events);
            bench.driver.accept(0, listener.as_raw_fd(), mode).unwrap();
            let socket = bench.accepted();
            assert_eq!(socket.peer_addr().unwrap(), Some(peer.local_addr().unwrap()));
        });
    }
}

#[test]
fn accepting_moves_to_another_listener_of_the_same_index() {
    on_both(|_, mut bench| {
        let (first, second) =
            (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        bench.driver.accept(0, first.as_raw_fd(), Accepting::Alone).unwrap();
        bench.turn();
        bench.driver.stop_accept(0);
        bench.driver.accept(0, second.as_raw_fd(), Accepting::Shared).unwrap();
        bench.settle();
        let _elsewhere = TcpStream::connect(first.local_addr().unwrap()).unwrap();
        let peer = TcpStream::connect(second.local_addr().unwrap()).unwrap();
        assert_eq!(bench.accepted().peer_addr().unwrap(), Some(peer.local_addr().unwrap()));
        bench.settle();
        assert!(bench.events.is_empty(), "{:?}", bench.events);
    });
}

#[test]
fn unix_listeners_are_accepted_from() {
    on_both(|_, mut bench| {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        bench.driver.accept(3, listener.as_raw_fd(), Accepting::Shared).unwrap();
        let mut peer = UnixStream::connect(folder.path().join("socket")).unwrap();
        let socket = bench.accepted();
        assert_eq!(socket.peer_addr().unwrap(), None);
        bench.driver.receive(token(0), &socket).unwrap();
        peer.write_all(b"hello").unwrap();
        assert_eq!(bench.bytes(token(0), 5), b"hello");
    });
}

/// Listeners are shared with processes that may use the other backend, which makes them
/// non-blocking.
#[test]
fn a_nonblocking_listener_is_as_good() {
    for mode in [Accepting::Alone, Accepting::Shared] {
        on_both(|_, mut bench| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            bench.driver.accept(0, listener.as_raw_fd(), mode).unwrap();
            bench.settle();
            assert!(bench.events.is_empty(), "{:?}", bench.events);
            let _peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            bench.accepted();
        });
    }
}

/// The limit belongs to the whole process, so the test runs itself again in one of its own.
#[test]
fn without_descriptors_accepting_ends_with_an_error_and_no_busy_loop() {
    const CHILD: &str = "RINGHORN_TEST_WITHOUT_DESCRIPTORS";
    if std::env::var_os(CHILD).is_none() {
        let name = "ring::tests::without_descriptors_accepting_ends_with_an_error_and_no_busy_loop";
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(CHILD, "1");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
        return;
    }
    for mode in [Accepting::Alone, Accepting::Shared] {
        on_both(|_, mut bench| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let _peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let before = getrlimit(Resource::Nofile);
            setrlimit(Resource::Nofile, Rlimit { current: Some(3), ..before }).unwrap();
            // After the limit: io_uring reads it when the accept is armed.
            bench.driver.accept(0, listener.as_raw_fd(), mode).unwrap();
            let error = bench.until(|events| match events.pop() {
                Some(Event::AcceptFailed { listener: 0, error }) => Some(error),
                Some(other) => panic!("{other:?}"),
                None => None,
            });
            assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
            assert!(is_idle(&mut bench));
            bench.settle();
            assert!(bench.events.is_empty(), "{:?}", bench.events);
            setrlimit(Resource::Nofile, before).unwrap();
            bench.driver.accept(0, listener.as_raw_fd(), mode).unwrap();
            bench.accepted();
        });
    }
}

#[test]
fn two_hundred_connections_each_keep_their_bytes() {
    on_both(|_, mut bench| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        bench.driver.accept(0, listener.as_raw_fd(), Accepting::Alone).unwrap();
        let mut open = Vec::new();
        for slot in 0..200 {
            let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let socket = bench.accepted();
            bench.driver.receive(token(slot), &socket).unwrap();
            open.push((peer, socket));
        }
        for (slot, (peer, _)) in open.iter_mut().enumerate() {
            peer.write_all(&(slot as u32).to_ne_bytes()).unwrap();
        }
        for slot in 0..200 {
            assert_eq!(bench.bytes(token(slot), 4), slot.to_ne_bytes());
        }
        let (peers, _sockets): (Vec<_>, Vec<_>) = open.into_iter().unzip();
        drop(peers);
        for slot in 0..200 {
            bench.ended(token(slot));
        }
    });
}

#[test]
fn bytes_come_in_order_however_many_buffers_they_take() {
    on_both(|_, mut bench| {
        let (mut peer, socket) = tcp_pair();
        bench.driver.receive(token(0), &socket).unwrap();
        let sent: Vec<u8> = (0..300_000u32).map(|at| (at % 251) as u8).collect();
        let copy = sent.clone();
        let writer = std::thread::spawn(move || {
            peer.write_all(&copy).unwrap();
            peer
        });
        assert!(bench.bytes(token(0), sent.len()) == sent);
        drop(writer.join().unwrap());
        bench.ended(token(0));
    });
}

#[test]
fn what_is_sent_while_paused_comes_after_the_pause() {
    on_both(|_, mut bench| {
        let (mut peer, socket) = unix_pair();
        bench.driver.receive(token(0), &socket).unwrap();
        peer.write_all(b"one").unwrap();
        assert_eq!(bench.bytes(token(0), 3), b"one");
        bench.driver.pause(token(0), &socket);
        bench.settle();
        peer.write_all(b"two").unwrap();
        bench.settle();
        assert!(bench.events.is_empty(), "{:?}", bench.events);
        bench.driver.receive(token(0), &socket).unwrap();
        assert_eq!(bench.bytes(token(0), 3), b"two");
    });
}

/// Reads a connection in this many hands, one after the other: each gives it up in the middle of the stream.
#[test]
fn a_connection_given_up_at_any_moment_loses_no_byte_and_stays_open() {
    on_both(|io, mut bench| {
        let (mut other, _) =
            open(io).map(|(driver, choice)| (Bench { driver, events: Vec::new() }, choice)).unwrap();
        let (mut peer, socket) = tcp_pair();
        let sent: Vec<u8> = (0..200_000u32).map(|at| (at % 251) as u8).collect();
        let copy = sent.clone();
        let writer = std::thread::spawn(move || peer.write_all(&copy).map(|()| peer).unwrap());
        let mut got = Vec::new();
        let mut round = 0u32;
        let end = Instant::now() + LIMIT;
        while got.len() < sent.len() {
            assert!(Instant::now() < end, "{} of {} bytes", got.len(), sent.len());
            round += 1;
            let whose = Token { slot: round % 7, generation: 0 };
            bench.driver.receive(whose, &socket).unwrap();
            for _ in 0..round % 3 {
                bench.driver.turn(Some(Duration::from_millis(1)), &mut bench.events).unwrap();
            }
            bench.driver.detach(whose, &socket);
            bench.until(|events| {
                let at = events
                    .iter()
                    .position(|event| matches!(event, Event::Detached { token } if *token == whose))?;
                for event in events.drain(..=at) {
                    if let Event::Received { token, bytes } = event {
                        assert_eq!(token, whose);
                        got.extend_from_slice(&bytes);
                    }
                }
                Some(())
            });
            assert!(bench.events.is_empty(), "{:?}", bench.events);
            std::mem::swap(&mut bench, &mut other);
        }
        assert!(got == sent);
        // Neither direction was shut down.
        assert_eq!(socket.send(&[IoSlice::new(b"still here")]).unwrap(), 10);
        let mut peer = writer.join().unwrap();
        peer.read_exact(&mut [0; 10]).unwrap();
        drop(peer);
        bench.driver.receive(token(0), &socket).unwrap();
        bench.ended(token(0));
    });
}

#[test]
fn giving_up_tells_once_whatever_the_connection_was_doing() {
    on_both(|_, mut bench| {
        let detached = |bench: &mut Bench, whose: Token| {
            bench.until(|events| {
                take_event(events, |event| matches!(event, Event::Detached { token } if *token == whose))
            });
            bench.settle();
            assert!(bench.events.is_empty(), "{:?}", bench.events);
        };
        let (mut peer, socket) = unix_pair();
        // Never seen before; between two requests; paused; its stream ended.
        bench.driver.detach(token(0), &socket);
        detached(&mut bench, token(0));
        bench.driver.receive(token(0), &socket).unwrap();
        bench.settle();
        bench.driver.detach(token(0), &socket);
        detached(&mut bench, token(0));
        bench.driver.receive(token(0), &socket).unwrap();
        bench.driver.pause(token(0), &socket);
        bench.driver.detach(token(0), &socket);
        detached(&mut bench, token(0));
        peer.write_all(b"x").unwrap();
        bench.settle();
        assert!(bench.events.is_empty(), "nobody reads: {:?}", bench.events);
        bench.driver.receive(token(0), &socket).unwrap();
        assert_eq!(bench.bytes(token(0), 1), b"x");
        drop(peer);
        bench.ended(token(0));
        bench.driver.detach(token(0), &socket);
        detached(&mut bench, token(0));
    });
}

#[test]
fn a_watched_descriptor_tells_of_each_arrival() {
    on_both(|_, mut bench| {
        let (mut peer, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        bench.driver.watch(ours.as_raw_fd()).unwrap();
        for _ in 0..3 {
            bench.settle();
            bench.events.retain(|event| !matches!(event, Event::Readable));
            peer.write_all(b"x").unwrap();
            bench.until(|events| take_event(events, |event| matches!(event, Event::Readable)));
            (&ours).read_exact(&mut [0]).unwrap();
        }
    });
}

/// The pause and the bytes race in every combination; none may be lost, doubled or out of order.
#[test]
fn pausing_and_resuming_all_the_time_loses_no_byte() {
    on_both(|_, mut bench| {
        let (mut peer, socket) = tcp_pair();
        let sent: Vec<u8> = (0..200_000u32).map(|at| (at % 251) as u8).collect();
        let copy = sent.clone();
        let writer = std::thread::spawn(move || peer.write_all(&copy).map(|()| peer).unwrap());
        let mut got = Vec::new();
        let mut round = 0u32;
        let end = Instant::now() + LIMIT;
        while got.len() < sent.len() {
            assert!(Instant::now() < end, "{} of {} bytes", got.len(), sent.len());
            round += 1;
            bench.driver.receive(token(0), &socket).unwrap();
            if !round.is_multiple_of(3) {
                bench.turn();
            }
            bench.driver.pause(token(0), &socket);
            if round.is_multiple_of(2) {
                bench.turn();
            }
            if round.is_multiple_of(5) {
                bench.driver.receive(token(0), &socket).unwrap();
                bench.driver.turn(Some(Duration::from_millis(1)), &mut bench.events).unwrap();
            }
            for event in bench.events.drain(..) {
                match event {
                    Event::Received { bytes, .. } => got.extend_from_slice(&bytes),
                    Event::Woken => {}
                    other => panic!("{other:?}"),
                }
            }
        }
        assert!(got == sent);
        drop(writer.join().unwrap());
        bench.driver.receive(token(0), &socket).unwrap();
        bench.ended(token(0));
    });
}

#[test]
fn the_end_comes_behind_the_last_bytes_and_only_once() {
    on_both(|_, mut bench| {
        let (mut peer, socket) = tcp_pair();
        bench.driver.receive(token(0), &socket).unwrap();
        peer.write_all(b"last").unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        assert_eq!(bench.bytes(token(0), 4), b"last");
        bench.ended(token(0));
        bench.settle();
        assert!(bench.events.is_empty(), "{:?}", bench.events);
        // The other direction is still open.
        assert_eq!(socket.send(&[IoSlice::new(b"bye")]).unwrap(), 3);
        socket.shutdown_write().unwrap();
        let mut answer = Vec::new();
        peer.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, b"bye");
    });
}

#[test]
fn a_reset_is_a_failure_and_ends_the_receive() {
    on_both(|_, mut bench| {
        let (peer, socket) = tcp_pair();
        bench.driver.receive(token(0), &socket).unwrap();
        bench.settle();
        Socket::from(OwnedFd::from(peer)).abort();
        let error = bench.until(|events| match events.pop() {
            Some(Event::Failed { error, .. }) => Some(error),
            Some(other) => panic!("{other:?}"),
            None => None,
        });
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        bench.settle();
        assert!(bench.events.is_empty(), "{:?}", bench.events);
    });
}

/// A hang-up is reported by epoll whether asked for or not; it must not turn into a busy loop.
#[test]
fn a_reset_during_a_pause_is_told_when_receiving_starts_again() {
    on_both(|_, mut bench| {
        let (peer, socket) = tcp_pair();
        bench.driver.receive(token(0), &socket).unwrap();
        bench.turn();
        bench.driver.pause(token(0), &socket);
        bench.settle();
        Socket::from(OwnedFd::from(peer)).abort();
        bench.settle();
        assert!(bench.events.is_empty(), "{:?}", bench.events);
        assert!(is_idle(&mut bench));
        bench.driver.receive(token(0), &socket).unwrap();
        bench.until(|events| take_event(events, |event| matches!(event, Event::Failed { .. })));
    });
}

/// A turn that may wait does wait: nothing in the kernel reports itself over and over. A ring that
/// this thread has closed may interrupt one wait, so one full wait of several is proof.
fn is_idle(bench: &mut Bench) -> bool {
    let wait = Duration::from_millis(20);
    (0..5).any(|_| {
        let started = Instant::now();
        bench.driver.turn(Some(wait), &mut bench.events).unwrap();
        bench.events.retain(|event| !matches!(event, Event::Woken));
        started.elapsed() >= wait / 2
    })
}

#[test]
fn a_full_socket_becomes_writable_once_it_is_read() {
    on_both(|_, mut bench| {
        let (mut peer, socket) = unix_pair();
        bench.driver.receive(token(0), &socket).unwrap();
        let block = [7u8; 65_536];
        let mut sent = 0;
        let error = loop {
            match socket.send(&[IoSlice::new(&block), IoSlice::new(&block)]) {
                Ok(count) => sent += count,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        bench.driver.writable(token(0), &socket).unwrap();
        bench.settle();
        assert!(bench.events.is_empty(), "{:?}", bench.events);
        let mut read = vec![0; sent];
        peer.read_exact(&mut read).unwrap();
        bench.writable(token(0));
        bench.settle();
        assert!(bench.events.is_empty(), "one-shot: {:?}", bench.events);
        assert_eq!(socket.send(&[IoSlice::new(b"x")]).unwrap(), 1);
        // Receiving went on all the time.
        peer.write_all(b"request").unwrap();
        assert_eq!(bench.bytes(token(0), 7), b"request");
    });
}

#[test]
fn a_broken_connection_is_writable_so_that_the_send_can_tell() {
    on_both(|_, mut bench| {
        let (peer, socket) = unix_pair();
        while socket.send(&[IoSlice::new(&[0; 65_536])]).is_ok() {}
        bench.driver.writable(token(0), &socket).unwrap();
        bench.settle();
        drop(peer);
        bench.writable(token(0));
        assert_eq!(socket.send(&[IoSlice::new(b"x")]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    });
}

#[test]
fn release_ends_the_connection_and_nothing_comes_afterwards() {
    on_both(|_, mut bench| {
        let (mut peer, socket) = tcp_pair();
        bench.driver.receive(token(0), &socket).unwrap();
        bench.driver.writable(token(0), &socket).unwrap();
        bench.settle();
        bench.events.clear();
        peer.write_all(b"late").unwrap();
        bench.driver.release(token(0), &socket);
        // The descriptor is still open, here and perhaps in a child, and the peer sees the end.
        assert_eq!(peer.read(&mut [0; 1]).unwrap(), 0);
        bench.settle();
        assert!(bench.events.is_empty(), "{:?}", bench.events);
        assert!(is_idle(&mut bench));
    });
}

/// What was asked for in the same turn must not reach the kernel: by then the descriptor's number
/// may belong to somebody else.
#[test]
fn a_released_descriptor_number_is_never_used_again() {
    on_both(|_, mut bench| {
        let (_peer, socket) = unix_pair();
        bench.driver.receive(token(0), &socket).unwrap();
        bench.driver.writable(token(0), &socket).unwrap();
        bench.driver.release(token(0), &socket);
        let number = socket.as_raw_fd();
        drop(socket);
        // Tests run in parallel, so the number is taken by force and not by luck.
        let (mut other_peer, other) = UnixStream::pair().unwrap();
        let other = rustix::io::fcntl_dupfd_cloexec(&other, number).unwrap();
        other_peer.write_all(b"not for the ring").unwrap();
        bench.settle();
        assert!(bench.events.is_empty(), "{:?}", bench.events);
        let mut bytes = [0; 16];
        UnixStream::from(other).read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"not for the ring");
    });
}

#[test]
fn an_event_of_an_earlier_user_of_the_slot_is_dropped() {
    on_both(|io, _| {
        let mut bench = small(io, 4);
        for round in 0..50u32 {
            let generation = round * 2;
            let (mut old_peer, old) = unix_pair();
            let (mut new_peer, new) = unix_pair();
            let (first, second) = (Token { slot: 5, generation }, Token { slot: 5, generation }.next());
            bench.driver.receive(first, &old).unwrap();
            bench.turn();
            old_peer.write_all(b"old").unwrap();
            bench.driver.release(first, &old);
            drop(old);
            bench.driver.receive(second, &new).unwrap();
            new_peer.write_all(b"new").unwrap();
            assert_eq!(bench.bytes(second, 3), b"new");
            // Calls with the old token do nothing to the new connection.
            bench.driver.pause(first, &new);
            new_peer.write_all(b"more").unwrap();
            assert_eq!(bench.bytes(second, 4), b"more");
            bench.driver.release(second, &new);
            bench.settle();
            assert!(bench.events.is_empty(), "{:?}", bench.events);
        }
        // Had a stale event kept its buffer, four would have been used up long ago.
        let (mut peer, socket) = unix_pair();
        bench.driver.receive(token(1), &socket).unwrap();
        peer.write_all(&[1; 4 * RECV_BUFFER_BYTES]).unwrap();
        bench.until(|events| (events.len() == 4).then_some(()));
    });
}

#[test]
fn an_unreasonable_slot_is_refused() {
    on_both(|_, mut bench| {
        let (_peer, socket) = unix_pair();
        let error = bench.driver.receive(token(u32::MAX), &socket).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    });
}

#[test]
fn a_waker_ends_a_wait_without_limit_from_another_thread() {
    on_both(|_, mut bench| {
        for _ in 0..100 {
            let waker = bench.driver.waker();
            let thread = std::thread::spawn(move || waker.wake());
            while bench.events.is_empty() {
                bench.driver.turn(None, &mut bench.events).unwrap();
            }
            assert!(bench.events.drain(..).all(|event| matches!(event, Event::Woken)));
            thread.join().unwrap();
        }
    });
}

#[test]
fn many_wake_ups_of_a_busy_thread_are_one_event() {
    on_both(|_, mut bench| {
        bench.turn();
        let waker = bench.driver.waker();
        for _ in 0..1_000 {
            waker.wake();
        }
        bench.until(|events| take_event(events, |event| matches!(event, Event::Woken)));
        assert!(bench.events.is_empty(), "{:?}", bench.events);
    });
}

/// What a signal handler does.
#[test]
fn a_plain_write_to_the_wakers_descriptor_wakes() {
    on_both(|_, mut bench| {
        let waker = bench.driver.waker();
        let process =
            rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty())
                .unwrap();
        let fd = rustix::process::pidfd_getfd(process, waker.fd(), rustix::process::PidfdGetfdFlags::empty());
        let fd = fd.unwrap();
        for _ in 0..3 {
            rustix::io::write(&fd, &1u64.to_ne_bytes()).unwrap();
            bench.until(|events| take_event(events, |event| matches!(event, Event::Woken)));
        }
    });
}

#[test]
fn a_turn_with_nothing_to_do_ends_with_its_timeout_and_without_events() {
    on_both(|_, mut bench| {
        let before = bench.driver.now_ms();
        let mut turns = 0;
        while bench.driver.now_ms() < before + 30 {
            bench.driver.turn(Some(Duration::from_millis(10)), &mut bench.events).unwrap();
            turns += 1;
        }
        assert!(turns <= 10, "{turns} turns of 10 ms in 30 ms");
        assert!(bench.events.is_empty(), "{:?}", bench.events);
    });
}

#[test]
fn connections_without_a_buffer_wait_until_one_is_given_back() {
    on_both(|io, _| {
        let mut bench = small(io, 4);
        let mut open: Vec<_> = (0..12).map(|_| unix_pair()).collect();
        for (slot, (peer, socket)) in open.iter_mut().enumerate() {
            bench.driver.receive(token(slot as u32), socket).unwrap();
            peer.write_all(&[slot as u8; 10]).unwrap();
        }
        bench.until(|events| (events.len() == 4).then_some(()));
        bench.settle();
        assert_eq!(bench.events.len(), 4, "{:?}", bench.events);
        assert!(is_idle(&mut bench), "spins without a buffer");
        // A pause and a release while waiting for one.
        let waiting: Vec<u32> = (0..12)
            .filter(|slot| {
                !bench
                    .events
                    .iter()
                    .any(|event| matches!(event, Event::Received { token, .. } if token.slot == *slot))
            })
            .collect();
        bench.driver.pause(token(waiting[0]), &open[waiting[0] as usize].1);
        bench.driver.release(token(waiting[1]), &open[waiting[1] as usize].1);
        let mut seen = Vec::new();
        while seen.len() < 10 {
            for event in bench.events.drain(..) {
                if matches!(event, Event::Woken) {
                    continue;
                }
                let Event::Received { token, bytes } = event else { panic!("{event:?}") };
                assert_eq!(*bytes, [token.slot as u8; 10]);
                seen.push(token.slot);
            }
            if seen.len() < 10 {
                bench.until(|events| (!events.is_empty()).then_some(()));
            }
        }
        seen.sort_unstable();
        let expected: Vec<u32> = (0..12).filter(|slot| !waiting[..2].contains(slot)).collect();
        assert_eq!(seen, expected);
        bench.driver.receive(token(waiting[0]), &open[waiting[0] as usize].1).unwrap();
        assert_eq!(bench.bytes(token(waiting[0]), 10), [waiting[0] as u8; 10]);
    });
}

/// More completions in one turn than the queue holds, and more submissions than theirs.
#[test]
fn small_queues_lose_nothing() {
    on_both(|io, _| {
        let mut bench = small(io, 128);
        let mut open: Vec<_> = (0..100).map(|_| unix_pair()).collect();
        for (slot, (_, socket)) in open.iter().enumerate() {
            bench.driver.receive(token(slot as u32), socket).unwrap();
        }
        bench.settle();
        for round in 0..5u8 {
            for (peer, _) in &mut open {
                peer.write_all(&[round]).unwrap();
            }
            for slot in 0..100 {
                assert_eq!(bench.bytes(token(slot), 1), [round]);
            }
        }
        for (slot, (peer, socket)) in open.iter_mut().enumerate() {
            bench.driver.release(token(slot as u32), socket);
            assert_eq!(peer.read(&mut [0]).unwrap(), 0);
        }
        bench.settle();
        assert!(bench.events.is_empty(), "{:?}", bench.events);
    });
}

#[test]
fn the_last_buffer_may_outlive_the_driver() {
    on_both(|_, mut bench| {
        let (mut peer, socket) = unix_pair();
        bench.driver.receive(token(0), &socket).unwrap();
        peer.write_all(b"kept").unwrap();
        let bytes = bench.until(|events| match events.pop()? {
            Event::Received { bytes, .. } => Some(bytes),
            _ => None,
        });
        drop(bench);
        assert_eq!(*bytes, *b"kept");
    });
}

#[test]
fn a_socket_in_nonblocking_mode_is_received_from_all_the_same() {
    on_both(|_, mut bench| {
        let (mut peer, socket) = tcp_pair();
        rustix::io::ioctl_fionbio(socket.fd().unwrap(), true).unwrap();
        bench.driver.receive(token(0), &socket).unwrap();
        bench.settle();
        assert!(is_idle(&mut bench));
        peer.write_all(b"hello").unwrap();
        assert_eq!(bench.bytes(token(0), 5), b"hello");
    });
}

#[test]
fn a_file_is_sent_as_far_as_there_is_room_and_goes_on() {
    on_both(|_, mut bench| {
        // More than both socket buffers together.
        let content = b"0123456789abcde".repeat(2_000_000);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        let (mut peer, socket) = tcp_pair();
        bench.driver.receive(token(0), &socket).unwrap();
        bench.turn();
        assert_eq!(socket.send_more(&[IoSlice::new(b"head"), IoSlice::new(b"")]).unwrap(), 4);
        let mut offset = 0;
        // Nobody reads yet: this must come back instead of waiting.
        while socket.send_file(file.as_fd(), &mut offset, content.len()).is_ok_and(|count| count > 0) {}
        assert!(offset > 0 && (offset as usize) < content.len());
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            peer.read_to_end(&mut all).unwrap();
            all
        });
        while (offset as usize) < content.len() {
            match socket.send_file(file.as_fd(), &mut offset, content.len()) {
                Ok(count) => assert!(count > 0),
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    bench.driver.writable(token(0), &socket).unwrap();
                    bench.writable(token(0));
                }
            }
        }
        assert_eq!(socket.send_file(file.as_fd(), &mut offset, 1).unwrap(), 0, "past the end");
        socket.shutdown_write().unwrap();
        let all = reader.join().unwrap();
        assert!(all[..4] == *b"head" && all[4..] == content);
        assert!(
            bench.events.iter().all(|event| matches!(event, Event::Ended { .. } | Event::Woken)),
            "{:?}",
            bench.events
        );
    });
}

#[test]
fn abort_resets_at_once_while_others_hold_the_socket() {
    on_both(|_, mut bench| {
        let (mut peer, socket) = tcp_pair();
        bench.driver.receive(token(0), &socket).unwrap();
        bench.turn();
        let _elsewhere = socket.fd().unwrap().try_clone_to_owned().unwrap();
        socket.abort();
        assert_eq!(peer.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        bench.driver.release(token(0), &socket);
        bench.settle();
        assert!(bench.events.is_empty(), "{:?}", bench.events);
    });
}

#[test]
fn sending_to_a_closed_connection_is_an_error_and_no_signal() {
    let (peer, socket) = unix_pair();
    drop(peer);
    assert_eq!(socket.send(&[IoSlice::new(b"x")]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    assert_eq!(socket.send(&[IoSlice::new(b"x"); 2]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    assert_eq!(socket.send(&[]).unwrap(), 0);
}

#[test]
fn more_parts_than_the_kernel_takes_are_a_short_send() {
    let (mut peer, socket) = unix_pair();
    let parts = vec![IoSlice::new(b"x"); 2_000];
    let sent = socket.send(&parts).unwrap();
    assert!((1..2_000).contains(&sent));
    let mut read = vec![0; sent];
    peer.read_exact(&mut read).unwrap();
    assert!(read.iter().all(|byte| *byte == b'x'));
}

#[test]
fn every_descriptor_of_a_backend_is_close_on_exec() {
    for io in [Io::Auto, Io::Epoll] {
        let (_driver, choice) = open(io).unwrap();
        assert!(choice.fds.len() >= 2);
        for fd in choice.fds {
            let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
            let flags = i32::from_str_radix(flags, 8).unwrap();
            assert!(flags & libc::O_CLOEXEC != 0, "{info}");
        }
    }
}

/// Runner threads send, and any thread wakes.
#[test]
fn sockets_and_wakers_may_be_used_from_every_thread() {
    fn shared<T: Send + Sync>() {}
    shared::<Socket>();
    shared::<Waker>();
}
