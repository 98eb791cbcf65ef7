//! Why a request is not served.

use std::borrow::Cow;
use std::fmt;

/// How much of the offending bytes a refusal quotes, in bytes. Enough to recognise the mistake in a
/// log, too little to fill one.
const QUOTED_BYTES_MAX: usize = 64;

/// A request that is not served: the peer gets `status`, and then the connection is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status code of the answer.
    pub status: u16,
    /// What is wrong, for the log and for the error page. Bytes of the peer are escaped.
    pub detail: Cow<'static, str>,
}

impl Refusal {
    /// A refusal whose reason needs no bytes of the peer.
    #[cold]
    #[must_use]
    pub const fn new(status: u16, detail: &'static str) -> Self {
        Self { status, detail: Cow::Borrowed(detail) }
    }

    /// A refusal that shows the start of the `offending` bytes, escaped.
    #[cold]
    #[must_use]
    pub fn quoting(status: u16, detail: &str, offending: &[u8]) -> Self {
        let shown = &offending[..offending.len().min(QUOTED_BYTES_MAX)];
        let more = if shown.len() < offending.len() { "..." } else { "" };
        Self { status, detail: Cow::Owned(format!("{detail}: \"{}{more}\"", shown.escape_ascii())) }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.status, self.detail)
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    /// A log line stays one line, whatever a peer sends (log injection).
    #[test]
    fn quoted_bytes_are_escaped_and_bounded() {
        let refusal = Refusal::quoting(400, "invalid method", b"a\r\n\x1b[0m\xff");
        assert_eq!(refusal.detail, r#"invalid method: "a\r\n\x1b[0m\xff""#);
        let long = Refusal::quoting(400, "x", &[b'v'; 100_000]);
        assert!(long.detail.len() < 100 && long.detail.ends_with("v...\""));
    }
}
