//! A request to a native service allocates nothing once buffers have grown.

#![allow(clippy::unwrap_used, clippy::expect_used)]
#![expect(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use ringhorn::{Request, Response};

use crate::server::{BACKENDS, Server, get};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the conditions of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the conditions of `dealloc`, and the system's allocator gave the memory.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as for `dealloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const SCENARIO: &str = "RINGHORN_TEST_SCENARIO";

/// Not a test of its own: with a backend in the environment this process becomes that server.
#[test]
fn scenario() {
    let Ok(io) = std::env::var(SCENARIO) else { return };
    let server = ringhorn::Server::builder().bind("127.0.0.1:0").workers(1).setting("io", io);
    let code = server.serve(|_| {
        |request: &Request<'_>, response: &mut Response<'_>| {
            response.header("Content-Type", "text/plain");
            match request.path() {
                b"/allocations" => drop(write!(response, "{}", ALLOCATIONS.load(Ordering::Relaxed))),
                _ => drop(response.body("Hello, World!")),
            }
        }
    });
    assert_eq!(format!("{code:?}"), format!("{:?}", std::process::ExitCode::SUCCESS));
}

#[test]
fn plaintext_allocates_nothing() {
    for io in BACKENDS {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["allocations::scenario", "--exact", "--nocapture", "--test-threads=1"])
            .env(SCENARIO, io);
        let server = Server::run(command);
        let mut client = server.connect();
        let pipelined = get("/plaintext").repeat(16);
        let mut round = || {
            for _ in 0..200 {
                assert_eq!(client.ask(&get("/plaintext")).status, 200);
            }
            client.send(pipelined.as_bytes());
            for _ in 0..16 {
                assert_eq!(client.read().unwrap().text(), "Hello, World!");
            }
            client.ask(&get("/allocations")).text().parse::<u64>().unwrap()
        };
        round();
        round();
        let (before, after) = (round(), round());
        assert_eq!(after - before, 0, "allocations in 217 requests with {io}");
    }
}
