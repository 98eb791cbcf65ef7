//! The floor: what one thread with epoll, recv(2) and send(2) needs for an answer, when it neither parses nor decides.
//! `cargo run --release --bench floor -- 127.0.0.1:8000`, and then a load generator.
//!
//! What a server costs above it is what it does for the request. Each receive is taken for as many requests as it has
//! heads' ends.

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

/// The bytes that ringhorn-demo sends for /plaintext.
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nServer: ringhorn\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\
    Content-Length: 13\r\nContent-Type: text/plain\r\n\r\nHello, World!";

fn main() {
    // `cargo bench` and `cargo test` pass options of their own, and no address.
    let Some(address) = std::env::args().skip(1).find(|argument| !argument.starts_with('-')) else { return };
    let listener = TcpListener::bind(address).unwrap();
    listener.set_nonblocking(true).unwrap();
    let epoll = epoll::create(CreateFlags::CLOEXEC).unwrap();
    epoll::add(&epoll, &listener, EventData::new_u64(0), EventFlags::IN).unwrap();
    let mut streams: Vec<Option<TcpStream>> = Vec::new();
    let mut events: Vec<Event> = Vec::with_capacity(256);
    let mut buffer = [0; 4096];
    let answers = ANSWER.repeat(64);
    loop {
        events.clear();
        epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None).unwrap();
        for event in &events {
            let key = usize::try_from(event.data.u64()).unwrap();
            if key == 0 {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true).unwrap();
                    let at = index(stream.as_raw_fd());
                    epoll::add(&epoll, &stream, EventData::new_u64(at as u64 + 1), EventFlags::IN).unwrap();
                    if streams.len() <= at {
                        streams.resize_with(at + 1, || None);
                    }
                    streams[at] = Some(stream);
                }
                continue;
            }
            let Some(stream) = &mut streams[key - 1] else { continue };
            let ended = match stream.read(&mut buffer) {
                Ok(0) => true,
                Ok(count) => {
                    // One comparison for the usual case, so that the floor stays one.
                    let requests = if count < 128 { 1 } else { ends(&buffer[..count]) };
                    stream.write_all(&answers[..ANSWER.len() * requests.min(64)]).is_err()
                }
                Err(error) => error.kind() != ErrorKind::WouldBlock,
            };
            if ended {
                streams[key - 1] = None;
            }
        }
    }
}

fn index(fd: RawFd) -> usize {
    usize::try_from(fd).unwrap()
}

/// How many heads end in `bytes`.
fn ends(bytes: &[u8]) -> usize {
    bytes.windows(4).filter(|window| window == b"\r\n\r\n").count()
}
