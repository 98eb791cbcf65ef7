//! Logs.

/// The target that makes an error critical.
pub const CRITICAL: &str = "critical";
