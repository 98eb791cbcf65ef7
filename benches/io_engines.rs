//! The same echo over four engines: our ring, our epoll, tokio-uring and tokio.
//!
//!     cargo bench --manifest-path loadtest/Cargo.toml --bench io_engines
//!
//! It is there so that the choice not to build on a runtime stays proven. What is told is CPU time of the thread that
//! serves, for one round: a message of 64 bytes on each of 32 connections, sent and received again. How fast the client
//! is does not matter, but it shares a machine: on one with two CPUs, run it alone.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark")]

use std::io::{IoSlice, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use ringhorn::ring::{self, Accepting, Event, Io, Socket, Token};
use ringhorn::sys::thread_clock::ThreadClock;

const CONNECTIONS: usize = 32;
const MESSAGE: [u8; 64] = [b'x'; 64];

/// Serves until all connections have ended.
type Engine = fn(TcpListener);

fn our_ring(listener: TcpListener) {
    ours(&listener, Io::Uring);
}

fn our_epoll(listener: TcpListener) {
    ours(&listener, Io::Epoll);
}

fn ours(listener: &TcpListener, io: Io) {
    let (mut driver, _) = ring::open(io).unwrap();
    driver.accept(0, listener.as_raw_fd(), Accepting::Alone).unwrap();
    let mut sockets: Vec<Socket> = Vec::new();
    let (mut events, mut ended) = (Vec::new(), 0);
    while ended < CONNECTIONS {
        driver.turn(None, &mut events).unwrap();
        for event in events.drain(..) {
            match event {
                Event::Accepted { socket, .. } => {
                    let token = Token { slot: sockets.len() as u32, generation: 0 };
                    driver.receive(token, &socket).unwrap();
                    sockets.push(socket);
                }
                Event::Received { token, bytes } => {
                    let sent = sockets[token.slot as usize].send(&[IoSlice::new(&bytes)]).unwrap();
                    assert_eq!(sent, bytes.len());
                }
                Event::Ended { token } | Event::Failed { token, .. } => {
                    driver.release(token, &sockets[token.slot as usize]);
                    ended += 1;
                }
                _ => {}
            }
        }
    }
}

fn tokio_uring(listener: TcpListener) {
    // As in the load generator: what makes it cheaper on newer kernels.
    let mut setup = tokio_uring::uring_builder();
    setup.setup_coop_taskrun().setup_single_issuer();
    tokio_uring::builder().uring_builder(&setup).start(async move {
        let listener = tokio_uring::net::TcpListener::from_std(listener);
        let mut tasks = Vec::new();
        for _ in 0..CONNECTIONS {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            tasks.push(tokio_uring::spawn(async move {
                let mut buffer = vec![0; 4096];
                loop {
                    let (received, bytes) = stream.read(buffer).await;
                    let Ok(count @ 1..) = received else { return };
                    let rest = tokio_uring::buf::BoundedBuf::slice(bytes, ..count);
                    let (sent, rest) = stream.write_all(rest).await;
                    sent.unwrap();
                    buffer = rest.into_inner();
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
    });
}

fn tokio_epoll(listener: TcpListener) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    let local = tokio::task::LocalSet::new();
    runtime.block_on(local.run_until(async move {
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let mut tasks = Vec::new();
        for _ in 0..CONNECTIONS {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            tasks.push(tokio::task::spawn_local(async move {
                let mut buffer = vec![0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    stream.write_all(&buffer[..count]).await.unwrap();
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
    }));
}

/// One round: every connection sends, then every connection receives.
fn round(clients: &mut [TcpStream]) {
    let mut answer = [0; MESSAGE.len()];
    for client in &mut *clients {
        client.write_all(&MESSAGE).unwrap();
    }
    for client in clients {
        client.read_exact(&mut answer).unwrap();
        assert_eq!(answer, MESSAGE);
    }
}

fn start(engine: Engine) -> (SocketAddr, ThreadClock, thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let (tell, told) = mpsc::channel();
    let server = thread::spawn(move || {
        tell.send(ThreadClock::of_current_thread().unwrap()).unwrap();
        engine(listener);
    });
    (addr, told.recv().unwrap(), server)
}

fn engines(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("32 echoes");
    let all: [(&str, Engine); 4] = [
        ("our ring", our_ring),
        ("our epoll", our_epoll),
        ("tokio-uring", tokio_uring),
        ("tokio", tokio_epoll),
    ];
    let has_uring = ring::probe().is_ok();
    for (name, engine) in all {
        if !has_uring && name != "our epoll" && name != "tokio" {
            println!("{name}: this kernel gives no io_uring");
            continue;
        }
        let (addr, clock, server) = start(engine);
        let connect = |_| {
            let client = TcpStream::connect(addr).unwrap();
            client.set_nodelay(true).unwrap();
            client
        };
        let mut clients: Vec<TcpStream> = (0..CONNECTIONS).map(connect).collect();
        round(&mut clients);
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|rounds| {
                let before = clock.nanoseconds().unwrap();
                for _ in 0..rounds {
                    round(&mut clients);
                }
                Duration::from_nanos(clock.nanoseconds().unwrap() - before)
            });
        });
        drop(clients);
        server.join().unwrap();
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30).warm_up_time(Duration::from_millis(500));
    targets = engines
}
criterion_main!(benches);
