//! Completions in, submissions out: descriptors and bytes, not HTTP.

/// How a listener is accepted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepting {
    /// This process alone accepts from the listener: one operation serves many connections.
    Alone,
    /// Other processes accept from it too (unix sockets, inherited sockets): one operation per
    /// connection, because a multishot accept would give one ring every connection.
    Shared,
}
