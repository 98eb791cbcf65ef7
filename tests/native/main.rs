//! Native services as their users see them: programs, sockets, signals.

mod allocations;
mod demo;
mod examples;
mod faults;
mod server;
#[cfg(feature = "tower")]
mod tower;
