//! sys.

pub mod fd;
