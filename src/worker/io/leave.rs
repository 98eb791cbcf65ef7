//! The end of a worker: what was accepted is answered, and nobody new comes in.

use super::*;
use crate::limits::{CLOSE_ENTRANCE_MS, DRAIN_IDLE_MS, HANDSHAKE_MS, RETIRE_IDLE_MS};

impl Io {
    /// Does what the order says; returns whether the loop is to end.
    pub(in crate::worker) fn obey(&mut self, stop: Option<Stop>) -> bool {
        match stop {
            Some(Stop::Quick) => {
                self.draining = None;
                return true;
            }
            Some(stop) if self.leaving < Some(stop) => self.drain(stop),
            _ => {}
        }
        if let Some(stop) = self.leaving
            && self.sweep_ms <= self.now_ms
        {
            self.sweep(stop);
        }
        self.close_entrance();
        let served = self.clients() == 0 && self.entrance == Entrance::Closed { turns: CLOSED_TURNS };
        let empty = served && self.end_observation() && self.conns.len() == 0 && !self.finds_strays();
        self.draining.is_some_and(|deadline| empty || self.now_ms >= deadline)
    }

    /// Begins to leave, or hurries: what was accepted is answered, and each connection ends after its answer.
    fn drain(&mut self, stop: Stop) {
        let first = self.leaving.is_none();
        debug!("told to leave ({stop:?}): connections {}", self.conns.len());
        self.leaving = Some(stop);
        if first {
            self.port.drain();
            self.observer_port.drain();
            self.draining = Some(self.now_ms + self.rules.graceful_ms);
            self.accept_again_ms = None;
            self.stop_helping();
        }
        let closes = stop == Stop::Close;
        if closes {
            // First of all, so that the queues can come to an end.
            self.emptied_doors().for_each(Door::ignore_handshakes);
        }
        let settle_ms = if closes { HANDSHAKE_MS } else { 0 };
        let ends = stop == Stop::Retire || closes && self.emptied_doors().all(Door::is_ours);
        let entrance_ms = if ends { self.rules.graceful_ms / 2 } else { CLOSE_ENTRANCE_MS };
        self.sweep_ms = self.now_ms;
        if matches!(self.entrance, Entrance::Closed { .. }) {
            if !closes {
                return;
            }
            // The listener ends for its successor too, which may not have taken everybody yet.
            if !self.crowded {
                self.open_doors(false);
            }
        }
        self.entrance =
            Entrance::Closing { settled_ms: self.now_ms + settle_ms, until_ms: self.now_ms + entrance_ms };
        if closes {
            self.survey();
        }
    }

    /// The listeners whose queues are to be empty before nobody comes in any more: our own, and when all end with the server
    /// also those of the siblings, who may be gone.
    fn emptied_doors(&self) -> impl Iterator<Item = &Door> {
        let closes = self.leaving == Some(Stop::Close);
        let foreign = self.foreign_doors().filter(move |_| closes);
        self.doors.iter().filter(|door| !door.observer).chain(foreign)
    }

    /// How long an idle connection is kept by a worker that leaves.
    pub(super) fn last_idle_ms(&self, stop: Stop) -> u64 {
        match stop {
            // Nobody waits for us, and a client that was promised time for its next request gets it. Not to
            // the last moment: the master's patience ends then.
            Stop::Retire => RETIRE_IDLE_MS.min(self.rules.graceful_ms / 2),
            _ => DRAIN_IDLE_MS,
        }
    }

    /// Shortens the time that idle connections have. Again and again while the worker leaves: some are accepted,
    /// and some answers were begun, before the order came.
    fn sweep(&mut self, stop: Stop) {
        self.sweep_ms = self.now_ms + DRAIN_IDLE_MS;
        let idle_ms = self.last_idle_ms(stop);
        for token in self.conns.tokens() {
            let Some(conn) = self.conns.get(token) else { continue };
            // Of answers in hand, the end shall not pass unnoticed.
            if matches!(conn.phase, Phase::InHand(None)) && conn.link.want_attention() == Standing::Idle {
                self.look(token);
            }
            let idle = |conn: &&mut Conn| matches!(conn.phase, Phase::Head) && !conn.in_head;
            if let Some(conn) = self.conns.get(token).filter(idle) {
                let left = conn.deadline_ms.saturating_sub(self.now_ms);
                // Who watches is not promised anything: another worker answers as well.
                let idle_ms = if conn.observer { DRAIN_IDLE_MS } else { idle_ms };
                // A request may be on its way: it is answered, with the close announced.
                self.set_deadline(token, idle_ms.min(left));
            }
        }
    }

    /// Whoever watches the server may do so until its clients are served, and then no longer. Returns whether nobody
    /// new can come any more.
    fn end_observation(&mut self) -> bool {
        let Some(turns) = self.unobserved_turns else {
            let doors = self.stop_accepting(true);
            self.unobserved_turns = Some(if doors == 0 { CLOSED_TURNS } else { 0 });
            return doors == 0;
        };
        self.unobserved_turns = Some((turns + 1).min(CLOSED_TURNS));
        turns == CLOSED_TURNS
    }

    /// Goes on taking connections until nobody waits in the queues, then stops. What waits there was
    /// promised service by the kernel.
    fn close_entrance(&mut self) {
        match self.entrance {
            Entrance::Open => {}
            Entrance::Closing { settled_ms, until_ms } => {
                let closes = self.leaving == Some(Stop::Close);
                // Somebody else goes on with the queue, or else there will be room when idle connections have ended.
                let patient = self.now_ms < until_ms && (closes || !self.crowded);
                let comes = |door: &Door| self.now_ms < settled_ms || door.has_waiting();
                if patient && self.emptied_doors().any(comes) {
                    return;
                }
                self.entrance = Entrance::Closed { turns: 0 };
                self.stop_accepting(false);
                if closes {
                    self.survey();
                    self.emptied_doors().for_each(Door::close);
                }
            }
            Entrance::Closed { turns } => {
                self.entrance = Entrance::Closed { turns: (turns + 1).min(CLOSED_TURNS) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::ring::{self, Accepting};
    use crate::worker::Nobody;
    use crate::worker::access::Recorder;
    use crate::worker::tests::{on_both, rules};

    fn door() -> (Door, TcpListener) {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let fd = socket.try_clone().unwrap().into();
        let listener = Arc::new(Listener::inet(socket.local_addr().unwrap()));
        (Door { fd, listener, accepting: Accepting::Alone, observer: false }, socket)
    }

    /// A worker that serves with one listener of its own.
    fn worker(backend: ring::Io, rules: Rules) -> (Io, TcpListener) {
        let (door, socket) = door();
        let (driver, _) = ring::open(backend).unwrap();
        let port = Arc::new(Port::new(driver.waker()));
        let pool = Arc::new(Pool::new(1, Recorder::default()));
        let mut io = Io::new(driver, vec![door], Arc::new(rules), pool, Arc::new(Nobody), port);
        io.open();
        io.turn().unwrap();
        (io, socket)
    }

    /// Turns of a worker that leaves, until nobody comes in any more.
    fn turn_until_closed(io: &mut Io, stop: Stop) {
        loop {
            assert!(!io.obey(Some(stop)), "its client is there");
            if io.entrance == (Entrance::Closed { turns: CLOSED_TURNS }) {
                return;
            }
            io.turn().unwrap();
        }
    }

    /// Between the last look at the queue and the close a handshake came to its end, and the client was reset.
    #[test]
    fn no_handshake_begins_at_a_listener_that_is_to_close() {
        on_both(|backend| {
            let (mut io, socket) = worker(backend, rules());
            let address = socket.local_addr().unwrap();
            let _before = TcpStream::connect(address).unwrap();
            assert!(!io.obey(Some(Stop::Close)));
            // On loopback a handshake is over when connect(2) returns.
            let late = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            late.set_nonblocking(true).unwrap();
            let begun = late.connect(&address.into()).unwrap_err();
            assert_eq!(begun.raw_os_error(), Some(libc::EINPROGRESS));
            assert!(late.peer_addr().is_err(), "it is connected");
            turn_until_closed(&mut io, Stop::Close);
            assert_eq!(io.conns.len(), 1, "who waited is served");
            assert_eq!(TcpStream::connect(address).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        });
    }

    /// A worker that is replaced has left the queue to its successor, who might not have come to it.
    #[test]
    fn a_replaced_worker_looks_once_more_into_the_queue_before_it_closes_it() {
        on_both(|backend| {
            let (mut io, socket) = worker(backend, rules());
            let address = socket.local_addr().unwrap();
            let _kept = TcpStream::connect(address).unwrap();
            turn_until_closed(&mut io, Stop::Retire);
            assert_eq!(io.conns.len(), 1);
            let _next = TcpStream::connect(address).unwrap();
            io.turn().unwrap();
            assert_eq!(io.conns.len(), 1, "it is the successor's");
            turn_until_closed(&mut io, Stop::Close);
            assert_eq!(io.conns.len(), 2);
        });
    }

    /// It had no room, and reset who waited, although it does not take long until there is some.
    #[test]
    fn who_waits_for_room_is_served_at_a_stop() {
        on_both(|backend| {
            let (mut io, socket) = worker(backend, Rules { connections_max: 1, ..rules() });
            let address = socket.local_addr().unwrap();
            let _idle = TcpStream::connect(address).unwrap();
            while io.conns.len() < 1 {
                io.turn().unwrap();
            }
            let mut waits = TcpStream::connect(address).unwrap();
            // Answered, and no reset: the server has sent its end.
            waits.shutdown(std::net::Shutdown::Write).unwrap();
            waits.set_read_timeout(Some(std::time::Duration::from_millis(1))).unwrap();
            loop {
                io.turn().unwrap();
                assert!(!io.obey(Some(Stop::Close)) || io.conns.len() == 0);
                match std::io::Read::read(&mut waits, &mut [0]) {
                    Ok(count) => break assert_eq!(count, 0),
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
            }
        });
    }

    /// It waited until the queue of the closed listener was empty, which it seemed never to be.
    #[test]
    fn a_listener_that_another_worker_has_closed_keeps_nobody() {
        let (door, socket) = door();
        let _waiting = TcpStream::connect(socket.local_addr().unwrap()).unwrap();
        assert!(door.has_waiting());
        socket2::SockRef::from(&socket).shutdown(std::net::Shutdown::Both).unwrap();
        assert!(!door.has_waiting());
    }
}
