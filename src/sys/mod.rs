//! sys.

pub mod errno;
pub mod fd;
