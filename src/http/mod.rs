//! HTTP/1.1 without I/O: slices in, decisions out. No descriptor, no clock, no thread.
//!
//! | file | what it decides |
//! | --- | --- |
//! | `head` | where a request head ends, what it says, and whether it may be served at all |
//! | `policy` | gunicorn's parsing settings, as the parser uses them |
//! | `body` | where a request body ends, and its bytes without the chunked coding |
//! | `response` | what an application may send, and how the response is delimited |
//! | `proxy` | the PROXY protocol in front of the first request |
//! | `date` | the value of the Date field |
//!
//! The rule of the whole module: an ambiguous message is refused, never repaired. After a
//! [`Refusal`] the connection is answered and closed, because nobody can know where the next
//! message would begin (RFC 9112 section 11.2).

mod body;
mod date;
#[doc(hidden)]
pub mod fuzz;
mod head;
mod policy;
mod proxy;
mod refusal;
mod response;
mod scan;

pub use body::BodyDecoder;
pub use date::imf_fixdate;
pub use head::{Field, Framing, Head, Scheme, Span, Version, relax};
pub use policy::{HeaderMap, Policy};
pub use proxy::{ProxyInfo, ProxyMode, parse_proxy};
pub use refusal::Refusal;
pub use response::{CONTINUE, EARLY_HINTS, Encoder, End, Piece, ResponseError, error_page, hint, reason};
pub use scan::percent_decode;
