//! The I/O thread and the runners together, over real sockets, on both backends.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::access::Recorder;
use super::io::Io;
use super::overdue::Patience;
use super::pool::Pool;
use super::{Door, Rules, Stop};
use crate::app::{Application, Body, Exchange, Listener, Port, Progress, Runner};
use crate::config::Trusted;
use crate::error::Exit;
use crate::http::{Policy, ProxyMode};
use crate::ring::{self, Accepting, Driver, Waker};
use crate::sys::process::{Fork, exit_now, fork};

type Handler = dyn Fn(&mut Exchange) + Send + Sync;

struct Native(Box<Handler>);

struct NativeRunner<'a>(&'a Handler);

impl Application for Native {
    fn with_runner(&self, body: &mut dyn FnMut(&mut dyn Runner)) {
        body(&mut NativeRunner(&self.0));
    }
}

impl Runner for NativeRunner<'_> {
    fn run(&mut self, exchange: &mut Exchange) {
        (self.0)(exchange);
    }

    fn park(&mut self, wait: &mut dyn FnMut()) {
        wait();
    }
}

/// A worker in this process.
pub(super) struct Server {
    addr: SocketAddr,
    stop: Arc<AtomicU8>,
    waker: Waker,
    threads: Vec<JoinHandle<()>>,
}

pub(super) fn rules() -> Rules {
    Rules {
        patience: Patience::ENDLESS,
        queue_ms: u64::MAX,
        queue_max: usize::MAX,
        retry_after_s: 1,
        keep_heads: false,
        policy: Policy::default(),
        trusted: Trusted::default(),
        proxy_mode: ProxyMode::Off,
        proxies: Trusted::default(),
        connections_max: 1000,
        body_buffer_bytes: 64 * 1024,
        first_byte_ms: 30_000,
        header_ms: 30_000,
        body_ms: 30_000,
        response_ms: 30_000,
        keep_alive: true,
        keepalive_ms: 30_000,
        linger_ms: 2_000,
        graceful_ms: 10_000,
        timed: false,
    }
}

impl Server {
    fn start(
        io: ring::Io,
        threads: usize,
        rules: Rules,
        handler: impl Fn(&mut Exchange) + Send + Sync + 'static,
    ) -> Self {
        let app: Arc<dyn Application> = Arc::new(Native(Box::new(handler)));
        let pool = Arc::new(Pool::new(threads, Recorder::default()));
        let (runners, application) = (Arc::clone(&pool), Arc::clone(&app));
        let mut server = Self::with_io_thread(io, move |driver, doors, order| {
            let port = Arc::new(Port::new(driver.waker()));
            let mut io = Io::new(driver, doors, Arc::new(rules), Arc::clone(&pool), app, port);
            io.open();
            io.run(order, &mut |_, _| ()).unwrap();
            pool.close();
        });
        server.threads.push(thread::spawn(move || {
            application.with_runner(&mut |runner| runners.run_main(runner));
        }));
        server
    }

    /// A worker whose I/O thread does `serve`, which is given what tells it to leave.
    pub(super) fn with_io_thread(
        io: ring::Io,
        serve: impl FnOnce(Box<dyn Driver>, Vec<Door>, &dyn Fn() -> Option<Stop>) + Send + 'static,
    ) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = socket.local_addr().unwrap();
        let stop = Arc::new(AtomicU8::new(0));
        let told = Arc::clone(&stop);
        let (send, receive) = mpsc::channel();
        let io_thread = thread::spawn(move || {
            let (driver, _) = ring::open(io).unwrap();
            send.send(driver.waker()).unwrap();
            let listener = Arc::new(Listener::inet(addr));
            let door = Door { fd: socket.into(), listener, accepting: Accepting::Alone, observer: false };
            serve(driver, vec![door], &|| match told.load(Ordering::Acquire) {
                0 => None,
                1 => Some(Stop::Leave),
                _ => Some(Stop::Quick),
            });
        });
        let waker = receive.recv().unwrap();
        Self { addr, stop, waker, threads: vec![io_thread] }
    }

    pub(super) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    /// As a client with so small a receive buffer, in bytes.
    fn connect_with_window(&self, bytes: usize) -> TcpStream {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(bytes).unwrap();
        socket.connect(&self.addr.into()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket.into()
    }

    /// Sends `request`, half-closes, and returns all that comes back.
    pub(super) fn exchange(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        read_all(&mut stream)
    }

    pub(super) fn order(&self, stop: u8) {
        self.stop.store(stop, Ordering::Release);
        self.waker.wake();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.order(2);
        for thread in self.threads.drain(..) {
            let joined = thread.join();
            if !thread::panicking() {
                joined.unwrap();
            }
        }
    }
}

pub(super) fn read_all(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads until `text` has come and returns all of it.
pub(super) fn read_until(stream: &mut TcpStream, text: &str) -> String {
    let mut got = Vec::new();
    let mut buffer = [0; 4096];
    while !String::from_utf8_lossy(&got).contains(text) {
        let n = stream.read(&mut buffer).unwrap();
        assert_ne!(n, 0, "the connection ended before {text:?}: {:?}", String::from_utf8_lossy(&got));
        got.extend_from_slice(&buffer[..n]);
    }
    String::from_utf8_lossy(&got).into_owned()
}

/// Reads the whole body; runs on a runner thread.
fn body_of(exchange: &mut Exchange) -> Result<Vec<u8>, crate::app::BodyError> {
    match std::mem::take(&mut exchange.request.body) {
        Body::Empty => Ok(Vec::new()),
        Body::Whole(bytes) => Ok(bytes),
        Body::Stream(mut stream) => {
            let mut bytes = Vec::new();
            loop {
                match stream.poll(&mut bytes)? {
                    Progress::Ready => {}
                    Progress::End => return Ok(bytes),
                    Progress::Pending => stream.waiter().wait(),
                }
            }
        }
    }
}

/// Answers with the method, path and body length.
fn echo(exchange: &mut Exchange) {
    let body = match body_of(exchange) {
        Ok(body) => body,
        Err(error) => return exchange.reply.fail(error.status(), &error.to_string()),
    };
    let text = format!(
        "{} {} {}\n",
        exchange.request.method().escape_ascii(),
        exchange.request.target().escape_ascii(),
        body.len()
    );
    answer(exchange, text.as_bytes());
}

fn answer(exchange: &mut Exchange, body: &[u8]) {
    exchange.reply.start(b"200 OK").unwrap();
    let owned = body.to_vec();
    let _ = exchange.reply.send(body, Some(body.len() as u64), false, || Box::new(owned));
    exchange.reply.finish();
}

const BACKENDS: [ring::Io; 2] = [ring::Io::Uring, ring::Io::Epoll];

pub(super) fn on_both(test: impl Fn(ring::Io)) {
    for io in BACKENDS {
        test(io);
    }
}

pub(super) fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")
}

#[test]
fn keep_alive_answers_one_request_after_the_other() {
    on_both(|io| {
        let server = Server::start(io, 1, rules(), echo);
        let mut stream = server.connect();
        for n in 0..20 {
            stream.write_all(get(&format!("/{n}")).as_bytes()).unwrap();
            let got = read_until(&mut stream, &format!("GET /{n} 0\n"));
            assert!(got.starts_with("HTTP/1.1 200 OK\r\n"), "{got}");
        }
    });
}

#[test]
fn pipelined_requests_are_answered_in_order_at_every_split() {
    let all = [get("/1"), "POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello".into(), get("/3")]
        .concat();
    on_both(|io| {
        let server = Server::start(io, 2, rules(), echo);
        for split in 1..all.len() {
            let mut stream = server.connect();
            stream.set_nodelay(true).unwrap();
            stream.write_all(&all.as_bytes()[..split]).unwrap();
            stream.write_all(&all.as_bytes()[split..]).unwrap();
            let got = read_until(&mut stream, "GET /3 0\n");
            let (first, second) = (got.find("GET /1 0\n").unwrap(), got.find("POST /2 5\n").unwrap());
            assert!(first < second, "{got}");
        }
    });
}

/// Found by seeded garbage: the end of the stream was forgotten while the first request was in hand.
#[test]
fn a_half_closed_client_whose_second_request_is_cut_is_told_so() {
    on_both(|io| {
        let server = Server::start(io, 1, rules(), echo);
        let cut = format!("{}POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhello", get("/1"));
        let got = server.exchange(cut.as_bytes());
        assert!(got.contains("GET /1 0\n") && got.contains("HTTP/1.1 400 Bad Request\r\n"), "{got}");
    });
}

/// Receiving was not taken up again when the large request behind the first became the one in hand.
#[test]
fn a_large_upload_behind_a_pipelined_request_is_received_whole() {
    on_both(|io| {
        for (length, buffer) in [(500_000, 64 * 1024), (500_000, 1024 * 1024)] {
            let server = Server::start(io, 1, Rules { body_buffer_bytes: buffer, ..rules() }, |exchange| {
                if exchange.request.target() == b"/first" {
                    while !exchange.request.link().has_more_waiting() {
                        thread::yield_now();
                    }
                }
                echo(exchange);
            });
            let mut request = get("/first").into_bytes();
            request.extend_from_slice(
                format!("PUT /2 HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n").as_bytes(),
            );
            request.extend_from_slice(&vec![b'x'; length]);
            let mut stream = server.connect();
            let mut sender = stream.try_clone().unwrap();
            let sending = thread::spawn(move || sender.write_all(&request).unwrap());
            read_until(&mut stream, &format!("PUT /2 {length}\n"));
            sending.join().unwrap();
        }
    });
}

#[test]
fn a_half_closed_client_still_gets_all_its_answers() {
    on_both(|io| {
        let server = Server::start(io, 1, rules(), echo);
        let got = server.exchange([get("/1"), get("/2")].concat().as_bytes());
        assert!(got.contains("GET /1 0\n") && got.ends_with("GET /2 0\n"), "{got}");
    });
}

#[test]
fn connection_close_ends_in_order_and_ignores_what_follows() {
    on_both(|io| {
        let server = Server::start(io, 1, rules(), echo);
        let mut stream = server.connect();
        let request = format!("GET /1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n{}", get("/2"));
        stream.write_all(request.as_bytes()).unwrap();
        let got = read_all(&mut stream);
        assert!(got.contains("Connection: close\r\n") && got.ends_with("GET /1 0\n"), "{got}");
    });
}

/// Answers that were left to the I/O thread waited for its next heartbeat, half a second later: it rested, and then slept.
#[test]
fn answers_that_were_gathered_do_not_wait_for_something_else_to_happen() {
    const CLIENTS: usize = 20;
    const ROUNDS: usize = 200;
    on_both(|io| {
        let server = Server::start(io, 1, rules(), |exchange| {
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_micros(100) {
                std::hint::spin_loop();
            }
            echo(exchange);
        });
        let begun = Instant::now();
        thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    let mut stream = server.connect();
                    for round in 0..ROUNDS {
                        stream.write_all(get(&format!("/{round}")).as_bytes()).unwrap();
                        read_until(&mut stream, &format!("GET /{round} 0\n"));
                    }
                });
            }
        });
        // Work for half a second; with the stalls it took half a minute.
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    });
}

/// The client's end of a connection that it had announced to be over woke the I/O thread once more: with a connection
/// for each request, that was a quarter of the CPU.
#[test]
fn nothing_is_awaited_of_a_client_that_has_announced_its_last_request() {
    on_both(|io| {
        let server = Server::start(io, 1, Rules { linger_ms: 600_000, ..rules() }, echo);
        let mut stream = server.connect();
        stream.write_all(b"GET /1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        assert!(read_all(&mut stream).ends_with("GET /1 0\n"));
        let until = Instant::now() + Duration::from_secs(10);
        while stream.write_all(b"x").is_ok() {
            assert!(Instant::now() < until, "the server still listens");
            thread::yield_now();
        }
    });
}

/// A reset took the rest of an answer along that the kernel had, and the client's window had no room for.
#[test]
fn a_byte_behind_the_last_request_destroys_no_large_answer() {
    on_both(|io| {
        let (send, answered) = mpsc::channel();
        let rules = Rules { linger_ms: 600_000, ..rules() };
        let server = Server::start(io, 1, rules, move |exchange| {
            answer(exchange, &[b'x'; 100_000]);
            send.send(()).unwrap();
        });
        for request in [
            "GET /1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            "GET /1 HTTP/1.0\r\n\r\n",
            "POST /1 HTTP/1.0\r\nContent-Length: 0\r\n\r\n",
        ] {
            let mut stream = server.connect_with_window(8_192);
            stream.write_all(request.as_bytes()).unwrap();
            answered.recv_timeout(Duration::from_secs(10)).unwrap();
            stream.write_all(b"\r\n").unwrap();
            assert!(read_all(&mut stream).ends_with(&"x".repeat(100_000)));
        }
    });
}

/// Old clients send a line end behind the body that nobody announced. Met by a reset, it would take the answer along.
#[test]
fn behind_a_body_something_may_still_come() {
    on_both(|io| {
        let server = Server::start(io, 1, Rules { linger_ms: 600_000, ..rules() }, echo);
        let mut stream = server.connect();
        let head = "POST /1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\n";
        stream.write_all(format!("{head}ab").as_bytes()).unwrap();
        assert!(read_all(&mut stream).ends_with("POST /1 2\n"));
        stream.write_all(b"\r\n").unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "an end, no reset");
        let mut stream = server.connect();
        let head = "POST /1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        assert!(read_all(&mut stream).ends_with("POST /1 0\n"));
        stream.write_all(b"\r\n").unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "an end, no reset");
    });
}

#[test]
fn garbage_is_refused_and_the_worker_serves_on() {
    on_both(|io| {
        let server = Server::start(io, 1, rules(), echo);
        for garbage in [
            &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"[..],
            b"GET /\r\n\r\n",
            b"\0\0\0\0\r\n\r\n",
        ] {
            let got = server.exchange(garbage);
            assert!(got.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{got}");
        }
        assert!(server.exchange(get("/").as_bytes()).ends_with("GET / 0\n"));
    });
}

#[test]
fn a_body_larger_than_the_buffer_arrives_whole_with_back_pressure() {
    on_both(|io| {
        let server = Server::start(io, 2, rules(), echo);
        let body = vec![b'x'; 3_000_000];
        let mut stream = server.connect();
        stream
            .write_all(
                format!("PUT /big HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(),
            )
            .unwrap();
        stream.write_all(&body).unwrap();
        stream.write_all(get("/next").as_bytes()).unwrap();
        let got = read_until(&mut stream, "GET /next 0\n");
        assert!(got.contains("PUT /big 3000000\n"), "{got}");
    });
}

#[test]
fn a_chunked_body_larger_than_the_buffer_arrives_whole() {
    on_both(|io| {
        let server = Server::start(io, 2, rules(), echo);
        let mut request = b"POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for _ in 0..100 {
            request.extend_from_slice(b"2710\r\n");
            request.extend_from_slice(&[b'y'; 10_000]);
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"0\r\n\r\n");
        request.extend_from_slice(get("/next").as_bytes());
        let got = server.exchange(&request);
        assert!(got.contains("POST /c 1000000\n") && got.ends_with("GET /next 0\n"), "{got}");
    });
}

#[test]
fn a_large_unread_body_costs_the_connection_and_not_the_answer() {
    on_both(|io| {
        let server = Server::start(io, 2, rules(), |exchange| answer(exchange, b"not read\n"));
        let mut stream = server.connect();
        stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n").unwrap();
        stream.write_all(&vec![b'z'; 2_000_000]).unwrap();
        assert!(read_all(&mut stream).ends_with("not read\n"));
    });
}

#[test]
fn a_truncated_body_is_refused_and_never_called_complete() {
    on_both(|io| {
        let server = Server::start(io, 1, rules(), echo);
        let got = server.exchange(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello");
        assert!(got.starts_with("HTTP/1.1 400 "), "{got}");
        let mut long = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n".to_vec();
        long.extend_from_slice(&[b'x'; 100_000]);
        let got = server.exchange(&long);
        assert!(got.starts_with("HTTP/1.1 400 "), "{got}");
    });
}

#[test]
fn expect_continue_is_answered_before_the_body() {
    on_both(|io| {
        let server = Server::start(io, 2, rules(), echo);
        for length in [5, 100_000] {
            let mut stream = server.connect();
            let head = format!(
                "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).unwrap();
            assert_eq!(read_until(&mut stream, "\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
            stream.write_all(&vec![b'x'; length]).unwrap();
            let got = read_until(&mut stream, &format!("POST / {length}\n"));
            assert!(got.starts_with("HTTP/1.1 200 OK\r\n"), "{got}");
        }
    });
}

/// The connection was kept, and what a client that leaves its body out then sends next was read as that body.
#[test]
fn an_answer_in_the_place_of_100_continue_is_the_last() {
    on_both(|io| {
        let rules = Rules { body_buffer_bytes: 8_192, ..rules() };
        let server = Server::start(io, 1, rules, |exchange| answer(exchange, b"not read\n"));
        for length in [15_000, 1_500_000] {
            let mut stream = server.connect();
            let head = format!(
                "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).unwrap();
            let got = read_all(&mut stream);
            assert!(got.starts_with("HTTP/1.1 200 OK\r\n") && got.ends_with("not read\n"), "{got}");
            assert!(got.contains("Connection: close\r\n"), "{got}");
        }
    });
}

/// What is not sent meets no error: the application went on for a client that had left, and kept its thread, for good.
#[test]
fn an_endless_answer_to_a_head_request_ends_when_its_client_leaves() {
    on_both(|io| {
        let (send, ended) = mpsc::channel();
        let server = Server::start(io, 1, rules(), move |exchange| {
            if exchange.request.target() == b"/next" {
                return answer(exchange, b"next\n");
            }
            exchange.reply.start(b"200 OK").unwrap();
            exchange.reply.hold_pieces();
            let until = Instant::now() + Duration::from_secs(10);
            while exchange.reply.send(b"x", None, false, || Box::new(*b"x")).is_ok() && Instant::now() < until
            {
                thread::yield_now();
            }
            send.send(Instant::now() < until).unwrap();
            exchange.reply.fail(500, "");
        });
        let request = "HEAD /events HTTP/1.1\r\nHost: a\r\n\r\n";
        let mut stream = server.connect();
        stream.write_all(request.as_bytes()).unwrap();
        read_until(&mut stream, "\r\n\r\n");
        drop(stream);
        assert!(ended.recv().unwrap(), "it goes on");
        // A client that has said all may wait for answers behind this one.
        let got = server.exchange([request, &get("/next")].concat().as_bytes());
        assert!(ended.recv().unwrap(), "it goes on");
        assert!(got.ends_with("\r\n\r\nnext\n"), "{got}");
    });
}

#[test]
fn a_slow_reader_gets_every_byte_and_holds_no_runner() {
    let piece: Arc<Vec<u8>> = Arc::new((0..4_000_000_u32).map(|n| n.to_le_bytes()[1]).collect());
    on_both(|io| {
        let body = Arc::clone(&piece);
        let server = Server::start(io, 1, rules(), move |exchange| {
            if exchange.request.target() == b"/big" {
                exchange.reply.start(b"200 OK").unwrap();
                let held = body.as_ref().clone();
                let _ = exchange.reply.send(&body, Some(body.len() as u64), false, || Box::new(held));
                exchange.reply.finish();
            } else {
                answer(exchange, b"quick\n");
            }
        });
        let mut slow = server.connect();
        slow.write_all(get("/big").as_bytes()).unwrap();
        // The only runner is free although nobody has read a byte of the large answer.
        assert!(server.exchange(get("/").as_bytes()).ends_with("quick\n"));
        slow.shutdown(Shutdown::Write).unwrap();
        let mut got = Vec::new();
        slow.read_to_end(&mut got).unwrap();
        assert!(got.ends_with(&piece), "{} bytes", got.len());
    });
}

#[test]
fn a_generator_waits_for_a_slow_reader_and_ends_when_it_leaves() {
    on_both(|io| {
        let (send, ended) = mpsc::channel();
        let send = Mutex::new(send);
        let server = Server::start(io, 1, rules(), move |exchange| {
            exchange.reply.start(b"200 OK").unwrap();
            let piece = vec![b'p'; 100_000];
            loop {
                let owned = piece.clone();
                match exchange.reply.send(&piece, None, false, || Box::new(owned)) {
                    Ok(crate::app::Sent::Full) => exchange.reply.wait(),
                    Ok(crate::app::Sent::Room) => {}
                    Err(_) => break,
                }
            }
            exchange.reply.finish();
            send.lock().unwrap().send(()).unwrap();
        });
        let mut stream = server.connect();
        stream.write_all(get("/").as_bytes()).unwrap();
        read_until(&mut stream, "ppp");
        drop(stream);
        ended.recv_timeout(Duration::from_secs(10)).unwrap();
    });
}

/// Pieces that come quickly may leave together, but the client must not wait for what the application does next.
#[test]
fn a_piece_that_is_kept_back_leaves_while_its_application_waits() {
    on_both(|io| {
        for others in [0, 3] {
            let (send, go_on) = mpsc::channel::<()>();
            let go_on = Mutex::new(go_on);
            let server = Server::start(io, 1, rules(), move |exchange| {
                exchange.reply.hold_pieces();
                exchange.reply.start(b"200 OK").unwrap();
                for round in 0..20 {
                    for name in ["a", "b", "c"] {
                        let piece = format!("{name}{round},").repeat(if name == "b" { 10_000 } else { 1 });
                        let owned = piece.clone().into_bytes();
                        let sent = exchange.reply.send(piece.as_bytes(), None, false, || Box::new(owned));
                        if sent.unwrap() == crate::app::Sent::Full {
                            exchange.reply.wait();
                        }
                    }
                    go_on.lock().unwrap().recv_timeout(Duration::from_secs(20)).unwrap();
                }
                exchange.reply.finish();
            });
            // With other connections the I/O thread rests while the runner has work.
            let _idle: Vec<_> = (0..others).map(|_| server.connect()).collect();
            let mut stream = server.connect();
            stream.write_all(get("/").as_bytes()).unwrap();
            for round in 0..20 {
                read_until(&mut stream, &format!("c{round},\r\n"));
                send.send(()).unwrap();
            }
            assert_eq!(read_until(&mut stream, "0\r\n\r\n"), "0\r\n\r\n");
        }
    });
}

#[test]
fn blocked_runners_get_company_up_to_the_bound() {
    on_both(|io| {
        // Four requests that each wait until all four are there: they end only when they run at once.
        let gate = Arc::new((Mutex::new(0), Condvar::new()));
        let server = Server::start(io, 4, rules(), move |exchange| {
            let (count, all) = &*gate;
            let mut count = count.lock().unwrap();
            *count += 1;
            all.notify_all();
            while *count < 4 {
                let (guard, timeout) = all.wait_timeout(count, Duration::from_secs(10)).unwrap();
                assert!(!timeout.timed_out());
                count = guard;
            }
            drop(count);
            answer(exchange, b"together\n");
        });
        let mut streams: Vec<_> = (0..4).map(|_| server.connect()).collect();
        for stream in &mut streams {
            stream.write_all(get("/").as_bytes()).unwrap();
        }
        for stream in &mut streams {
            read_until(stream, "together\n");
        }
    });
}

/// The runners waited for an I/O thread that was gone, and the master for a worker that looked ready.
#[test]
fn a_panic_of_the_io_thread_ends_its_worker() {
    let error = super::or_failed(|| panic!("on purpose")).unwrap_err();
    assert_eq!(error.exit(), Exit::Start);
}

/// In a program that had used a hash table before it forked, all workers had the same jitter, and were replaced
/// together.
#[test]
fn forked_workers_roll_different_numbers() {
    let _ = std::hash::RandomState::new();
    let numbers = [(); 2].map(|()| {
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        if let Fork::Child = fork().unwrap() {
            let written = writer.write_all(&super::random_up_to(u64::MAX).to_ne_bytes());
            exit_now(i32::from(written.is_err()));
        }
        let mut number = [0; 8];
        reader.read_exact(&mut number).unwrap();
        number
    });
    assert_ne!(numbers[0], numbers[1]);
}

#[test]
fn one_thread_never_runs_two_requests_at_once() {
    on_both(|io| {
        let running = Arc::new(AtomicU64::new(0));
        let server = Server::start(io, 1, rules(), move |exchange| {
            assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0);
            // So that another runner, if there were one, would be here too.
            (0..100).for_each(|_| thread::yield_now());
            running.fetch_sub(1, Ordering::SeqCst);
            answer(exchange, b"alone\n");
        });
        let mut streams: Vec<_> = (0..8).map(|_| server.connect()).collect();
        for stream in &mut streams {
            stream.write_all(get("/").as_bytes()).unwrap();
        }
        for stream in &mut streams {
            read_until(stream, "alone\n");
        }
    });
}

#[test]
fn deadlines_close_silent_clients_and_answer_half_sent_requests() {
    on_both(|io| {
        let quick = Rules { first_byte_ms: 100, ..rules() };
        let waiting = Server::start(io, 1, quick, echo);
        let mut silent = waiting.connect();
        let quick = Rules { header_ms: 100, body_ms: 100, keepalive_ms: 100, ..rules() };
        let server = Server::start(io, 1, quick, echo);
        let mut head = server.connect();
        head.write_all(b"GET / HT").unwrap();
        let mut body = server.connect();
        body.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhel").unwrap();
        let mut idle = server.connect();
        idle.write_all(get("/").as_bytes()).unwrap();
        assert_eq!(read_all(&mut silent), "");
        assert!(read_all(&mut head).starts_with("HTTP/1.1 408 "));
        assert!(read_all(&mut body).starts_with("HTTP/1.1 408 "));
        let idle = read_all(&mut idle);
        assert!(idle.starts_with("HTTP/1.1 200 ") && idle.ends_with("GET / 0\n"), "{idle}");
    });
}

/// An idle connection got the time of a body, which may be without end, after the rest of an unwanted one was read.
#[test]
fn a_connection_whose_unwanted_body_was_read_is_closed_when_it_stays_idle() {
    on_both(|io| {
        let rules = Rules {
            body_buffer_bytes: 10,
            body_ms: u64::MAX,
            keepalive_ms: 100,
            linger_ms: 3_600_000,
            ..rules()
        };
        let server = Server::start(io, 1, rules, |exchange| answer(exchange, b"unread"));
        let mut stream = server.connect();
        let head = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 20\r\n\r\n";
        stream.write_all(head).unwrap();
        read_until(&mut stream, "unread");
        stream.write_all(&[b'x'; 20]).unwrap();
        assert_eq!(read_all(&mut stream), "");
    });
}

/// An application that goes on after a status was refused has started nothing: the client got no answer at all.
#[test]
fn a_refused_status_does_not_start_an_answer() {
    on_both(|io| {
        let server = Server::start(io, 1, rules(), |exchange| {
            assert!(exchange.reply.start(b"bad").is_err());
            exchange.reply.finish();
        });
        let got = server.exchange(get("/").as_bytes());
        assert!(got.starts_with("HTTP/1.1 500 "), "{got:?}");
    });
}

#[test]
fn a_client_that_stops_reading_is_dropped_at_its_deadline() {
    on_both(|io| {
        let quick = Rules { response_ms: 200, ..rules() };
        let server = Server::start(io, 1, quick, |exchange| {
            exchange.reply.start(b"200 OK").unwrap();
            let body = vec![0; 30_000_000];
            let owned = body.clone();
            let _ = exchange.reply.send(&body, Some(body.len() as u64), false, || Box::new(owned));
            exchange.reply.finish();
        });
        let mut stream = server.connect();
        stream.write_all(get("/").as_bytes()).unwrap();
        let mut first = [0; 1];
        stream.read_exact(&mut first).unwrap();
        // Not reading on; the end comes as a reset once what was under way is read.
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(1) {
            thread::yield_now();
        }
        let mut rest = Vec::new();
        let end = stream.read_to_end(&mut rest);
        assert!(end.is_err() || rest.len() < 29_999_000, "{end:?}");
    });
}

#[test]
fn above_the_connection_limit_clients_wait_and_are_served_later() {
    on_both(|io| {
        let few = Rules { connections_max: 2, ..rules() };
        let server = Server::start(io, 1, few, echo);
        let mut first = server.connect();
        first.write_all(get("/1").as_bytes()).unwrap();
        read_until(&mut first, "GET /1 0\n");
        let mut second = server.connect();
        second.write_all(get("/2").as_bytes()).unwrap();
        read_until(&mut second, "GET /2 0\n");
        let mut third = server.connect();
        third.write_all(get("/3").as_bytes()).unwrap();
        drop(first);
        read_until(&mut third, "GET /3 0\n");
    });
}

/// Without it, as many idle clients as `worker_connections` shut everybody else out until `keepalive` ends them.
#[test]
fn an_idle_connection_ends_for_a_client_that_finds_no_room() {
    on_both(|io| {
        let few = Rules { connections_max: 2, ..rules() };
        let server = Server::start(io, 1, few, echo);
        let mut first = server.connect();
        first.write_all(get("/1").as_bytes()).unwrap();
        read_until(&mut first, "GET /1 0\n");
        let mut second = server.connect();
        second.write_all(get("/2").as_bytes()).unwrap();
        read_until(&mut second, "GET /2 0\n");
        let mut third = server.connect();
        third.write_all(get("/3").as_bytes()).unwrap();
        read_until(&mut third, "GET /3 0\n");
        // Idle for as long as the clock can tell: either may be the one. Its end came before the third was let in.
        let ended = [&mut first, &mut second].map(|stream| {
            stream.set_nonblocking(true).unwrap();
            stream.read(&mut [0; 1]).is_ok_and(|count| count == 0)
        });
        assert!(ended[0] != ended[1], "{ended:?}");
    });
}

#[test]
fn a_graceful_stop_finishes_what_was_begun_and_announces_the_close() {
    on_both(|io| {
        let (entered, inside) = mpsc::channel();
        let (release, wait) = mpsc::channel::<()>();
        let (entered, wait) = (Mutex::new(entered), Mutex::new(wait));
        let server = Server::start(io, 1, rules(), move |exchange| {
            entered.lock().unwrap().send(()).unwrap();
            wait.lock().unwrap().recv().unwrap();
            while !exchange.request.link().is_draining() {
                thread::yield_now();
            }
            answer(exchange, b"finished\n");
        });
        let mut busy = server.connect();
        busy.write_all(get("/").as_bytes()).unwrap();
        inside.recv().unwrap();
        let mut queued = server.connect();
        queued.write_all(get("/").as_bytes()).unwrap();
        server.order(1);
        release.send(()).unwrap();
        release.send(()).unwrap();
        for stream in [&mut busy, &mut queued] {
            let got = read_all(stream);
            assert!(got.contains("Connection: close\r\n") && got.ends_with("finished\n"), "{got}");
        }
    });
}

/// The application was in `close()` of what it had returned, so the link was busy, and the answer counted as cut: the client
/// met a reset in the place of what it had not read.
#[test]
fn an_answer_that_has_left_outlives_its_worker() {
    const LENGTH: usize = 40_000;
    on_both(|io| {
        // Of several pieces, the last ones are kept back, and leave by another way.
        for (order, pieces) in [(1, 1), (2, 1), (1, 4), (2, 4)] {
            let (sent, left) = mpsc::channel();
            let (done, wait) = mpsc::channel::<()>();
            let (sent, wait) = (Mutex::new(sent), Mutex::new(wait));
            let rules = Rules { graceful_ms: 50, ..rules() };
            let server = Server::start(io, 1, rules, move |exchange| {
                exchange.reply.hold_pieces();
                exchange.reply.start(b"200 OK").unwrap();
                let body = vec![b'x'; LENGTH / pieces];
                for _ in 0..pieces {
                    let held = body.clone();
                    let _ = exchange.reply.send(&body, Some(LENGTH as u64), false, || Box::new(held));
                }
                while exchange.request.link().has_rest() {
                    thread::yield_now();
                }
                sent.lock().unwrap().send(()).unwrap();
                let _ = wait.lock().unwrap().recv_timeout(Duration::from_secs(10));
                exchange.reply.finish();
            });
            // Most of it stays on the server's side of the connection, where a reset destroys it.
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.set_recv_buffer_size(4_096).unwrap();
            socket.connect(&server.addr.into()).unwrap();
            let mut stream = TcpStream::from(socket);
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
            left.recv_timeout(Duration::from_secs(10)).unwrap();
            server.order(order);
            let until = Instant::now() + Duration::from_secs(10);
            while !server.threads[0].is_finished() {
                assert!(Instant::now() < until, "the worker has time");
                thread::yield_now();
            }
            let got = read_all(&mut stream);
            assert!(got.ends_with(&"x".repeat(LENGTH)), "{} bytes", got.len());
            drop(done);
        }
    });
}

#[test]
fn a_refused_head_request_gets_no_body() {
    on_both(|io| {
        let server = Server::start(io, 1, rules(), echo);
        let got = server.exchange(b"HEAD / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n");
        assert!(got.starts_with("HTTP/1.1 400 Bad Request\r\n") && got.ends_with("\r\n\r\n"), "{got}");
    });
}

/// Its head had left before the draining began, so its close could not be announced; the worker does not wait for the
/// keep-alive time.
#[test]
fn draining_does_not_wait_for_a_connection_whose_answer_began_before() {
    on_both(|io| {
        let (begun, inside) = mpsc::channel();
        let begun = Mutex::new(begun);
        let patient = Rules { keepalive_ms: 3_600_000, graceful_ms: 3_600_000, ..rules() };
        let server = Server::start(io, 1, patient, move |exchange| {
            exchange.reply.start(b"200 OK").unwrap();
            let _ = exchange.reply.send(b"first ", None, false, || Box::new(*b"first "));
            begun.lock().unwrap().send(()).unwrap();
            while !exchange.request.link().is_draining() {
                thread::yield_now();
            }
            let _ = exchange.reply.send(b"last", None, false, || Box::new(*b"last"));
            exchange.reply.finish();
        });
        let mut stream = server.connect();
        stream.write_all(get("/").as_bytes()).unwrap();
        inside.recv().unwrap();
        server.order(1);
        assert!(read_all(&mut stream).contains("last\r\n0\r\n\r\n"));
    });
}

#[test]
fn a_reset_while_a_request_is_in_hand_disturbs_nobody() {
    on_both(|io| {
        let server = Server::start(io, 2, rules(), echo);
        for _ in 0..50 {
            let mut stream = server.connect();
            stream.write_all(get("/gone").as_bytes()).unwrap();
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
            drop(stream);
        }
        assert!(server.exchange(get("/here").as_bytes()).ends_with("GET /here 0\n"));
    });
}

/// Of what an old client is forgiven, the head behind a body that nobody had read was forgiven nothing.
#[test]
fn a_head_behind_a_dropped_body_is_forgiven_as_any_other() {
    on_both(|io| {
        let policy = Policy { strip_header_spaces: true, ..Policy::default() };
        let forgiving = Rules { policy, body_buffer_bytes: 10, ..rules() };
        let server = Server::start(io, 1, forgiving, |exchange| answer(exchange, b"answered\n"));
        let mut stream = server.connect();
        stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n").unwrap();
        // More than is gathered before the application is called: the rest is dropped after its answer.
        stream.write_all(&[b'x'; 50]).unwrap();
        read_until(&mut stream, "answered\n");
        let next = [&[b'x'; 50][..], b"GET /next HTTP/1.1\r\nHost : a\r\nConnection: close\r\n\r\n"].concat();
        stream.write_all(&next).unwrap();
        let got = read_all(&mut stream);
        assert!(got.starts_with("HTTP/1.1 200 OK\r\n"), "{got}");
    });
}
