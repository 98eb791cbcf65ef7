//! One connection that asks again and again, for benches: the whole of the server's work for a request, without a
//! kernel under it. Nothing is judged here but that an answer comes.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use super::super::access::Recorder;
use super::super::io::Io;
use super::super::pool::Pool;
use super::{io_thread, rules};
use crate::app::{Exchange, Held, Port, Runner};
use crate::ring::Driver;
use crate::ring::sim::{Client, Sim};
use crate::sys::clock;

const REQUEST: &[u8] =
    b"GET /hello HTTP/1.1\r\nHost: localhost\r\nUser-Agent: bench/1\r\nAccept: */*\r\n\r\n";
const BODY: &[u8] = b"Hello, World!";

/// How often the I/O thread may turn for one request: the simulated network delivers late sometimes.
const TURNS_MAX: u32 = 10_000;

/// A worker with one client.
pub struct Steady {
    io: Io,
    pool: Arc<Pool>,
    client: Client,
    runner: Option<JoinHandle<()>>,
    /// What has come of the answer so far.
    answer: Vec<u8>,
}

/// Answers at once.
struct Hello;

impl Runner for Hello {
    fn run(&mut self, exchange: &mut Exchange) {
        let reply = &mut exchange.reply;
        reply.start(b"200 OK").expect("a plain status");
        reply.header(b"Content-Type", b"text/plain").expect("a plain header");
        reply.header(b"Content-Length", b"13").expect("a plain header");
        let _ = reply.send(BODY, Some(BODY.len() as u64), false, || Box::new(BODY) as Held);
        reply.finish();
    }

    fn park(&mut self, wait: &mut dyn FnMut()) {
        wait();
    }
}

impl Steady {
    /// The calling thread is the I/O thread and the runner, by turns.
    ///
    /// # Panics
    /// There are no descriptors.
    #[must_use]
    pub fn alone() -> Self {
        let (sim, network) = Sim::new(1).expect("a simulated driver");
        clock::simulate(Some(sim.now_ms()));
        let port = Arc::new(Port::new(sim.waker()));
        let pool = Arc::new(Pool::new(1, Recorder::default()));
        let mut io = io_thread(Box::new(sim), &[80], rules(65_536, 100), &pool, &port);
        io.open();
        let client = network.connect(0);
        Self { io, pool, client, runner: None, answer: Vec::new() }
    }

    /// Requests are handed to a runner on a thread of its own, which parks between them.
    ///
    /// # Panics
    /// As [`Steady::alone`], or there is no thread.
    #[must_use]
    pub fn with_runner() -> Self {
        let mut steady = Self::alone();
        let pool = Arc::clone(&steady.pool);
        let runner = thread::Builder::new().spawn(move || pool.run_main(&mut Hello));
        steady.runner = Some(runner.expect("a thread"));
        steady
    }

    /// One request, from the client's send to the end of its answer.
    ///
    /// # Panics
    /// No answer comes.
    pub fn request(&mut self) {
        self.client.send(REQUEST);
        for _ in 0..TURNS_MAX {
            self.io.turn().expect("the simulated driver does not fail");
            if self.runner.is_none() {
                while let Some(mut exchange) = self.pool.take_next() {
                    Hello.run(&mut exchange);
                    exchange.clear();
                    self.pool.give_back(exchange);
                }
            } else {
                self.look_out();
            }
            if self.client.has_bytes() {
                self.answer.extend(self.client.take(usize::MAX));
                if self.answer.ends_with(BODY) {
                    self.answer.clear();
                    return;
                }
            }
        }
        panic!("no answer comes");
    }

    /// Gives the runner a moment. It may have nothing yet, because the network is late, so not for ever.
    fn look_out(&self) {
        for _ in 0..200 {
            if self.client.has_bytes() {
                return;
            }
            thread::yield_now();
        }
    }
}

impl Drop for Steady {
    fn drop(&mut self) {
        self.pool.close();
        if let Some(runner) = self.runner.take() {
            // A runner that panicked has said so.
            let _ = runner.join();
        }
        clock::simulate(None);
    }
}
