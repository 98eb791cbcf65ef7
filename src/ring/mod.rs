//! Completions in, submissions out: descriptors and bytes, not HTTP.

#[expect(unsafe_code, reason = "hands memory to the kernel and back")]
mod buffers;
mod key;
mod op;
mod socket;
mod timer;
mod waker;

pub use buffers::{Pool, RecvBuffer};
pub use op::{Accepting, Driver, Event, Token};
pub use socket::Socket;
pub use timer::{TICK_MS, Wheel};
pub use waker::Waker;
