//! The arbiter: listeners, fork, reap, signals.

mod pidfile;
mod slots;
mod sockets;
