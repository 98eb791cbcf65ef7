//! An axum application on a worker (examples/axum.rs): what is ready at once, what waits, what tokio has to do with.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::Write;

use rustix::process::Signal;

use crate::server::{BACKENDS, Server, example, get, put};

fn on_both(test: impl Fn(&mut Server)) {
    for io in BACKENDS {
        test(&mut Server::start(example("axum"), &["--workers", "1", "--io", io]));
    }
}

fn post(path: &str, body: &str) -> String {
    put(path, body).replacen("PUT", "POST", 1)
}

#[test]
fn handlers_answer_on_a_kept_connection() {
    on_both(|server| {
        let mut client = server.connect();
        for _ in 0..3 {
            assert_eq!(client.ask(&get("/")).text(), "Hello, World!");
            assert_eq!(client.ask(&get("/hello/Ada")).text(), "Hello, Ada!");
            assert_eq!(client.ask(&get("/none")).status, 404);
            assert_eq!(client.ask(&post("/count", "12345")).text(), "5");
            assert_eq!(client.ask(&get("/sleep")).text(), "slept");
            assert_eq!(client.ask(&get("/elsewhere")).text(), "from elsewhere");
            assert_eq!(client.ask(&get("/ticks")).text(), "tick\ntick\ntick\n");
        }
        assert_eq!(client.ask(&get("/visits")).text(), "1");
        assert_eq!(client.ask(&get("/visits")).text(), "2", "one worker, one state");
        assert!(client.ask(&get("/peer")).text().starts_with("127.0.0.1:"));
        let head = client.ask("HEAD /none HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(head.status, 404);
    });
}

#[test]
fn pipelined_requests_are_answered_in_order_also_when_one_waits() {
    on_both(|server| {
        let mut client = server.connect();
        client.send(
            [get("/"), get("/sleep"), get("/hello/1"), get("/ticks"), get("/hello/2")].concat().as_bytes(),
        );
        for wanted in ["Hello, World!", "slept", "Hello, 1!", "tick\ntick\ntick\n", "Hello, 2!"] {
            assert_eq!(client.read().unwrap().text(), wanted);
        }
    });
}

/// Other connections are served while some wait, and nobody waits for the heartbeat.
#[test]
fn those_that_wait_hold_up_nobody() {
    on_both(|server| {
        let mut waiting: Vec<_> = (0..20).map(|_| server.connect()).collect();
        for _ in 0..5 {
            waiting.iter_mut().for_each(|client| client.send(get("/sleep").as_bytes()));
            assert_eq!(server.get("/").text(), "Hello, World!");
            for client in &mut waiting {
                assert_eq!(client.read().unwrap().text(), "slept");
            }
        }
    });
}

#[test]
fn bodies_stream_both_ways() {
    on_both(|server| {
        for length in [0, 10, 100_000, 5_000_000] {
            let body: String = (0..length).map(|n| char::from(b'a' + (n % 23) as u8)).collect();
            let mut client = server.connect();
            let mut sender = client.stream.get_ref().try_clone().unwrap();
            let request = post("/echo", &body);
            let sending = std::thread::spawn(move || sender.write_all(request.as_bytes()).unwrap());
            let answer = client.read().unwrap();
            sending.join().unwrap();
            assert!(answer.body == body.as_bytes(), "{length}: {}", answer.head);
            assert_eq!(client.ask(&get("/")).text(), "Hello, World!");
        }
        assert_eq!(server.ask(&post("/count", &"x".repeat(1_500_000))).text(), "1500000");
    });
}

#[test]
fn a_stop_waits_for_those_that_wait() {
    on_both(|server| {
        let mut client = server.connect();
        assert_eq!(client.ask(&get("/")).status, 200);
        client.send([get("/"), get("/sleep")].concat().as_bytes());
        assert_eq!(client.read().unwrap().text(), "Hello, World!");
        server.signal(Signal::TERM);
        assert_eq!(client.read().unwrap().text(), "slept");
        // Otherwise the worker waits for it, `linger_timeout`.
        drop(client);
        assert_eq!(server.wait(), Some(0));
    });
}
