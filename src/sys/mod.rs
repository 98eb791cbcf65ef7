//! The system calls that have no safe wrapper in a well-kept crate, behind safe functions, and the
//! few that need more than one call to be used rightly. What leaves this module is safe to call
//! with any argument.

pub mod account;
pub mod atfork;
pub mod clock;
pub mod errno;
pub mod fd;
pub mod futex;
pub mod in_hand;
pub mod mailbox;
pub mod metrics;
pub mod process;
pub mod rlimit;
pub mod shared;
pub mod signal;
pub mod thread_clock;
pub mod title;
pub mod usage;
