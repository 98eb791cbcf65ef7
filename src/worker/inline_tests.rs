//! Native services on the I/O thread, over real sockets, on both backends.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ::http::StatusCode;

use super::access::Recorder;
use super::io::Io;
use super::io::inline::Inline;
use super::pool::Pool;
use super::tests::{Server, get, on_both, read_all, read_until, rules};
use super::{Nobody, Rules};
use crate::app::native::{Request, Responder, Response, Service, Tasks, Worker};
use crate::app::{Port, Sent};
use crate::ring;

fn start<S: Service + 'static>(io: ring::Io, make: impl FnOnce(&Worker) -> S + Send + 'static) -> Server {
    start_with(io, rules(), make)
}

fn start_with<S: Service + 'static>(
    io: ring::Io,
    rules: Rules,
    make: impl FnOnce(&Worker) -> S + Send + 'static,
) -> Server {
    Server::with_io_thread(io, move |driver, doors, order| {
        let port = Arc::new(Port::new(driver.waker()));
        let tasks = Rc::new(Tasks::new(driver.waker()));
        let worker = Worker::new(0, 1, 2, Arc::clone(&port), Rc::clone(&tasks));
        let service = Box::new(make(&worker));
        let pool = Arc::new(Pool::new(1, Recorder::default()));
        let mut io = Io::new(driver, doors, Arc::new(rules), pool, Arc::new(Nobody), port);
        io.serve_with(Inline::new(service, Rc::clone(&tasks), None, None, None));
        io.open();
        io.run(order, &mut |_, _| ()).unwrap();
        tasks.clear();
    })
}

/// Answers with the method, target and body length.
fn echo(request: &Request<'_>, response: &mut Response<'_>) {
    let (method, target) = (request.method(), request.target().escape_ascii());
    let _ = writeln!(response, "{method} {target} {}", request.body().len());
}

#[test]
fn requests_are_answered_one_after_the_other() {
    on_both(|io| {
        let server = start(io, |_| echo);
        let mut stream = server.connect();
        for n in 0..20 {
            stream.write_all(get(&format!("/{n}")).as_bytes()).unwrap();
            let got = read_until(&mut stream, &format!("GET /{n} 0\n"));
            assert!(got.starts_with("HTTP/1.1 200 OK\r\n") && got.contains("\r\nContent-Length: "), "{got}");
        }
    });
}

/// With bodies that are whole in the receive buffer, and others that are not.
#[test]
fn pipelined_requests_are_answered_in_order_at_every_split() {
    let post = |n, length: usize| {
        format!("POST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{}", "x".repeat(length))
    };
    let chunked = "PUT /4 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let all = [get("/1"), post(2, 5), get("/3"), chunked.to_owned(), get("/5")].concat();
    let wanted = ["GET /1 0\n", "POST /2 5\n", "GET /3 0\n", "PUT /4 3\n", "GET /5 0\n"];
    on_both(|io| {
        let server = start(io, |_| echo);
        for split in 1..all.len() {
            let mut stream = server.connect();
            stream.set_nodelay(true).unwrap();
            stream.write_all(&all.as_bytes()[..split]).unwrap();
            stream.write_all(&all.as_bytes()[split..]).unwrap();
            let got = read_until(&mut stream, "GET /5 0\n");
            let at: Vec<usize> = wanted.iter().map(|text| got.find(text).expect(text)).collect();
            assert!(at.is_sorted(), "split at {split}: {got}");
        }
    });
}

/// One send(2) for all answers to one receive: a client that reads once has them all.
#[test]
fn the_answers_to_one_receive_come_in_one_piece() {
    on_both(|io| {
        let server = start(io, |_| echo);
        let mut stream = server.connect();
        stream.write_all(get("/warm").as_bytes()).unwrap();
        read_until(&mut stream, "GET /warm 0\n");
        stream.write_all(get("/x").repeat(16).as_bytes()).unwrap();
        let mut buffer = [0; 16 * 1024];
        let n = stream.read(&mut buffer).unwrap();
        assert_eq!(String::from_utf8_lossy(&buffer[..n]).matches("GET /x 0\n").count(), 16);
    });
}

#[test]
fn a_body_larger_than_a_buffer_is_whole_when_the_service_is_called() {
    on_both(|io| {
        let server = start(io, |_| echo);
        for length in [4000, 5000, 60_000] {
            let mut request =
                format!("PUT /b HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n").into_bytes();
            request.extend_from_slice(&vec![b'x'; length]);
            request.extend_from_slice(get("/next").as_bytes());
            let got = server.exchange(&request);
            assert!(got.contains(&format!("PUT /b {length}\n")) && got.ends_with("GET /next 0\n"), "{got}");
        }
    });
}

/// Counts a body that arrives in pieces, in a task.
fn count(worker: &Worker) -> impl Service + use<> {
    let worker = worker.clone();
    move |request: &Request<'_>, response: &mut Response<'_>| {
        if !request.is_streamed() {
            return echo(request, response);
        }
        let mut responder = response.defer();
        let mut body = responder.body().expect("it is streamed");
        worker.spawn(async move {
            let mut length = 0;
            while let Some(piece) = body.next().await {
                match piece {
                    Ok(piece) => length += piece.len(),
                    Err(error) => {
                        responder.status(StatusCode::from_u16(error.status()).unwrap());
                        return responder.answer(error.to_string());
                    }
                }
            }
            responder.answer(format!("streamed {length}\n"));
        });
    }
}

#[test]
fn a_large_body_arrives_in_pieces_and_the_connection_goes_on() {
    on_both(|io| {
        let server = start(io, count);
        let mut stream = server.connect();
        stream.write_all(b"PUT /big HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n").unwrap();
        stream.write_all(&vec![b'x'; 3_000_000]).unwrap();
        stream.write_all(get("/next").as_bytes()).unwrap();
        let got = read_until(&mut stream, "GET /next 0\n");
        assert!(got.contains("streamed 3000000\n"), "{got}");
        // A client that waits to be asked for it is asked, when the service reads.
        let mut stream = server.connect();
        let head = "PUT /e HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 100000\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        assert_eq!(read_until(&mut stream, "\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(&[b'x'; 100_000]).unwrap();
        read_until(&mut stream, "streamed 100000\n");
        // One that leaves in the middle.
        let mut cut = b"PUT /big HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n".to_vec();
        cut.extend_from_slice(&[b'x'; 200_000]);
        assert!(server.exchange(&cut).starts_with("HTTP/1.1 400 "));
    });
}

#[test]
fn a_body_is_read_and_sent_back_by_a_thread_that_may_block() {
    let make = |worker: &Worker| {
        let worker = worker.clone();
        move |request: &Request<'_>, response: &mut Response<'_>| {
            if !request.is_streamed() {
                return echo(request, response);
            }
            let mut responder = response.defer();
            let mut body = responder.body().expect("it is streamed");
            drop(worker.blocking(move || {
                let mut all = Vec::new();
                while let Some(piece) = body.next_blocking() {
                    match piece {
                        Ok(piece) => all.extend_from_slice(&piece),
                        Err(error) => {
                            responder.status(StatusCode::from_u16(error.status()).unwrap());
                            return responder.answer(error.to_string());
                        }
                    }
                }
                responder.answer_owned(all);
            }));
        }
    };
    on_both(|io| {
        let server = start(io, make);
        let head = "PUT /back HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n";
        let mut stream = server.connect();
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&vec![b'z'; 2_000_000]).unwrap();
        stream.write_all(get("/next").as_bytes()).unwrap();
        let got = read_until(&mut stream, "GET /next 0\n");
        assert_eq!(got.matches('z').count(), 2_000_000);
        let cut = [head.as_bytes(), &[b'z'; 200_000]].concat();
        assert!(server.exchange(&cut).starts_with("HTTP/1.1 400 "));
    });
}

/// The answer is given without reading: the client must get it, and the next request must not be read out of the body.
#[test]
fn a_large_body_that_nobody_reads_costs_the_connection_and_not_the_answer() {
    on_both(|io| {
        let server = start(io, |_| echo);
        let mut stream = server.connect();
        stream.write_all(b"PUT /big HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n").unwrap();
        stream.write_all(&vec![b'x'; 2_000_000]).unwrap();
        assert!(read_all(&mut stream).ends_with("PUT /big 0\n"));
    });
}

/// As a runner's answer in that place.
#[test]
fn an_answer_in_the_place_of_100_continue_is_the_last() {
    on_both(|io| {
        for defers in [false, true] {
            let server = start(io, move |_| {
                move |_: &Request<'_>, response: &mut Response<'_>| {
                    if defers {
                        response.defer().answer("not read\n");
                    } else {
                        response.body("not read\n");
                    }
                }
            });
            let mut stream = server.connect();
            let head = "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 66000\r\n\r\n";
            stream.write_all(head.as_bytes()).unwrap();
            let got = read_all(&mut stream);
            assert!(got.starts_with("HTTP/1.1 200 OK\r\n") && got.ends_with("not read\n"), "{got}");
            assert!(got.to_lowercase().contains("connection: close\r\n"), "{got}");
        }
    });
}

/// What a service may do with its responder: keep it for another request, a timer, a thread.
fn later(worker: &Worker) -> impl Service + use<> {
    let worker = worker.clone();
    let kept: Rc<RefCell<Vec<Responder>>> = Rc::default();
    move |request: &Request<'_>, response: &mut Response<'_>| match request.path() {
        b"/keep" => kept.borrow_mut().push(response.defer()),
        b"/release" => {
            for mut responder in kept.borrow_mut().drain(..) {
                responder.status(StatusCode::ACCEPTED).header("x-from", "another request");
                responder.answer("released\n");
            }
        }
        b"/timer" => {
            let responder = response.defer();
            worker.after(Duration::from_millis(5), move || responder.answer("in time\n"));
        }
        b"/thread" => {
            let (responder, worker) = (response.defer(), worker.clone());
            let work = worker.blocking(|| thread::current().name().unwrap_or_default().to_owned());
            worker.spawn(async move { responder.answer(format!("on {}\n", work.await.unwrap())) });
        }
        b"/when-leaving" => {
            let (responder, worker) = (response.defer(), worker.clone());
            worker.clone().spawn(async move {
                while !worker.is_leaving() {
                    worker.sleep(Duration::from_millis(1)).await;
                }
                responder.answer("bye\n");
            });
        }
        b"/at-once" => response.defer().answer("at once\n"),
        b"/drop" => drop(response.status(StatusCode::CREATED).defer()),
        b"/panic" => panic!("as asked"),
        b"/task-panic" => {
            let responder = response.defer();
            worker.spawn(async move {
                let _responder = responder;
                panic!("as asked");
            });
        }
        _ => echo(request, response),
    }
}

#[test]
fn an_answer_may_be_given_later_from_anywhere() {
    on_both(|io| {
        let server = start(io, later);
        let mut first = server.connect();
        first.write_all([get("/before"), get("/keep"), get("/behind")].concat().as_bytes()).unwrap();
        // What was answered before is sent before.
        read_until(&mut first, "GET /before 0\n");
        let got = server.exchange(get("/release").as_bytes());
        assert!(got.contains("Content-Length: 0\r\n"), "{got}");
        let got = read_until(&mut first, "GET /behind 0\n");
        assert!(got.starts_with("HTTP/1.1 202 Accepted\r\n"), "{got}");
        assert!(got.contains("x-from: another request\r\n") && got.contains("released\n"), "{got}");
        for (path, wanted) in
            [("/timer", "in time\n"), ("/thread", "on ringhorn-block\n"), ("/at-once", "at once\n")]
        {
            let got = server.exchange([get(path), get("/next")].concat().as_bytes());
            assert!(got.contains(wanted) && got.ends_with("GET /next 0\n"), "{path}: {got}");
        }
    });
}

#[test]
fn a_panic_and_a_dropped_responder_cost_their_request_only() {
    on_both(|io| {
        let server = start(io, later);
        for path in ["/panic", "/drop", "/task-panic"] {
            let got = server.exchange([get("/1"), get(path), get("/3")].concat().as_bytes());
            assert!(got.contains("GET /1 0\n") && got.contains("HTTP/1.1 500 "), "{path}: {got}");
            assert!(!got.contains("GET /3 0\n"), "an error page ends the connection: {got}");
        }
        assert!(server.exchange(get("/").as_bytes()).ends_with("GET / 0\n"));
    });
}

/// They were taken for mistakes of the service, and the answer was cut.
#[test]
fn status_and_header_behind_the_first_piece_have_no_effect() {
    on_both(|io| {
        let server = start(io, |_| {
            |_: &Request<'_>, response: &mut Response<'_>| {
                let mut responder = response.defer();
                let _ = responder.write(b"begun ");
                responder.status(StatusCode::NOT_FOUND).header("x-late", "yes");
                let _ = responder.write(b"and ended");
                responder.finish();
            }
        });
        let got = server.exchange([get("/1"), get("/2")].concat().as_bytes());
        assert_eq!(got.matches("HTTP/1.1 200 OK\r\n").count(), 2, "{got}");
        assert_eq!(got.matches("6\r\nbegun \r\n9\r\nand ended\r\n0\r\n\r\n").count(), 2, "{got}");
        assert!(!got.contains("x-late"), "{got}");
    });
}

#[test]
fn what_does_not_belong_in_a_response_is_a_500() {
    on_both(|io| {
        let server = start(io, |_| {
            |request: &Request<'_>, response: &mut Response<'_>| {
                response.header("x", "a\r\nb: c");
                if request.path() == b"/later" {
                    response.defer().answer("no");
                }
            }
        });
        for path in ["/", "/later"] {
            let got = server.exchange(get(path).as_bytes());
            assert!(got.starts_with("HTTP/1.1 500 ") && !got.contains("b: c"), "{got}");
        }
    });
}

/// Much more than the socket takes, in one answer and in pieces; the next request waits its turn.
#[test]
fn answers_larger_than_the_socket_arrive_whole() {
    const LENGTH: usize = 5_000_000;
    let make = |worker: &Worker| {
        let worker = worker.clone();
        move |request: &Request<'_>, response: &mut Response<'_>| match request.path() {
            b"/body" => {
                response.body(vec![b'z'; LENGTH]);
            }
            b"/owned" => {
                response.body_owned(vec![b'z'; LENGTH]);
            }
            b"/pieces" => {
                let mut responder = response.defer();
                worker.spawn(async move {
                    for _ in 0..50 {
                        match responder.write(&vec![b'z'; LENGTH / 50]) {
                            Ok(Sent::Room) => {}
                            Ok(Sent::Full) => responder.room().await,
                            Err(_) => return,
                        }
                    }
                    responder.finish();
                });
            }
            _ => echo(request, response),
        }
    };
    on_both(|io| {
        let server = start(io, make);
        for path in ["/body", "/owned", "/pieces"] {
            let mut stream = server.connect();
            stream.write_all([get(path), get("/next")].concat().as_bytes()).unwrap();
            // The answer fills the socket before the client reads any of it.
            let mut other = server.connect();
            other.write_all(get("/other").as_bytes()).unwrap();
            read_until(&mut other, "GET /other 0\n");
            stream.shutdown(Shutdown::Write).unwrap();
            let got = read_all(&mut stream);
            assert_eq!(got.matches('z').count(), LENGTH, "{path}");
            assert!(got.ends_with("GET /next 0\n"), "{path}");
        }
    });
}

#[test]
fn a_file_is_sent_and_a_head_request_gets_its_length_only() {
    on_both(|io| {
        let server = start(io, |_| {
            |request: &Request<'_>, response: &mut Response<'_>| {
                if request.path() == b"/file" {
                    let mut file = tempfile::tempfile().unwrap();
                    file.write_all(&vec![b'f'; 300_000]).unwrap();
                    response.file(file, 300_000);
                } else {
                    response.body("hello");
                }
            }
        });
        let got = server.exchange([get("/file"), get("/")].concat().as_bytes());
        assert_eq!(got.matches('f').count(), 300_000);
        assert!(got.contains("Content-Length: 300000\r\n") && got.ends_with("hello"));
        let got = server.exchange(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(got.contains("Content-Length: 5\r\n") && got.ends_with("\r\n\r\n"), "{got}");
    });
}

#[test]
fn connection_close_and_http_1_0_end_the_connection() {
    on_both(|io| {
        let server = start(io, |_| echo);
        for request in ["GET /1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "GET /1 HTTP/1.0\r\n\r\n"]
        {
            let mut stream = server.connect();
            stream.write_all(format!("{request}{}", get("/2")).as_bytes()).unwrap();
            let got = read_all(&mut stream);
            assert!(got.contains("Connection: close\r\n") && got.ends_with("GET /1 0\n"), "{got}");
        }
    });
}

#[test]
fn garbage_behind_an_answer_is_refused_behind_it() {
    on_both(|io| {
        let server = start(io, |_| echo);
        let got = server.exchange(format!("{}garbage\r\n\r\n", get("/1")).as_bytes());
        let (first, second) = (got.find("GET /1 0\n").unwrap(), got.find("HTTP/1.1 400 ").unwrap());
        assert!(first < second, "{got}");
        assert!(server.exchange(get("/").as_bytes()).ends_with("GET / 0\n"));
    });
}

/// A slow head, a slow body and an idle connection each have their time.
#[test]
fn deadlines_hold_as_for_runners() {
    on_both(|io| {
        let rules = Rules { header_ms: 200, body_ms: 200, keepalive_ms: 200, ..rules() };
        let server = start_with(io, rules, |_| echo);
        for begun in ["GET / HT", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhello"] {
            let mut stream = server.connect();
            stream.write_all(begun.as_bytes()).unwrap();
            assert!(read_all(&mut stream).starts_with("HTTP/1.1 408 "), "{begun}");
        }
        let mut stream = server.connect();
        stream.write_all(get("/").as_bytes()).unwrap();
        assert!(read_all(&mut stream).ends_with("GET / 0\n"), "and then the end");
    });
}

/// A deferred answer holds the worker; it announces the end of its connection.
#[test]
fn a_worker_that_leaves_gives_the_answers_it_owes() {
    on_both(|io| {
        let server = start(io, later);
        let mut stream = server.connect();
        stream.write_all([get("/1"), get("/when-leaving")].concat().as_bytes()).unwrap();
        read_until(&mut stream, "GET /1 0\n");
        server.order(1);
        let got = read_all(&mut stream);
        assert!(got.contains("Connection: close\r\n") && got.ends_with("bye\n"), "{got}");
    });
}

/// Settings that forgive old clients work on each head's bytes before it is parsed.
#[test]
fn pipelined_heads_are_each_forgiven() {
    on_both(|io| {
        let policy = crate::http::Policy { strip_header_spaces: true, ..crate::http::Policy::default() };
        let server = start_with(io, Rules { policy, ..rules() }, |_| echo);
        let get = |n| format!("GET /{n} HTTP/1.1\r\nHost : a\r\n\r\n");
        let put = "PUT /2 HTTP/1.1\r\nHost : a\r\nTransfer-Encoding : chunked\r\n\r\n4\r\na : \r\n0\r\n\r\n";
        let all = [&get(1), put, &get(3), &get(4)].concat();
        for split in 1..all.len() {
            let mut stream = server.connect();
            stream.set_nodelay(true).unwrap();
            stream.write_all(&all.as_bytes()[..split]).unwrap();
            stream.write_all(&all.as_bytes()[split..]).unwrap();
            let got = read_until(&mut stream, "GET /4 0\n");
            assert!(got.contains("PUT /2 4\n"), "split at {split}: {got}");
            assert_eq!(got.matches("HTTP/1.1 200 OK").count(), 4, "split at {split}: {got}");
        }
    });
}
