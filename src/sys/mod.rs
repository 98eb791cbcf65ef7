//! The system calls that have no safe wrapper elsewhere.

pub mod account;
pub mod clock;
