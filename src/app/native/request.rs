//! A request as a native service sees it: borrowed, from the receive buffer where that is possible.

use std::sync::Arc;

use ::http::{Method, Version};

use crate::app::{Link, Listener, Peer, Scheme};
use crate::http::{self, Head};

/// One request, while [`super::Service::call`] runs.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// The bytes that the spans of `head` index.
    pub(crate) bytes: &'a [u8],
    pub(crate) head: &'a Head,
    pub(crate) body: &'a [u8],
    /// The body is not in `body`: it arrives in pieces.
    pub(crate) streamed: bool,
    pub(crate) link: &'a Arc<Link>,
}

impl<'a> Request<'a> {
    /// The method.
    #[must_use]
    pub fn method(&self) -> Method {
        // The parser lets through tokens only, of which every one is a method.
        Method::from_bytes(self.method_bytes()).unwrap_or_default()
    }

    /// The method, as received.
    #[must_use]
    pub fn method_bytes(&self) -> &'a [u8] {
        self.head.method.of(self.bytes)
    }

    /// The request target, as received: path and query, as a rule.
    #[must_use]
    pub fn target(&self) -> &'a [u8] {
        self.head.target.of(self.bytes)
    }

    /// The path, percent-encoded as received; never empty.
    #[must_use]
    pub fn path(&self) -> &'a [u8] {
        self.head.path.of(self.bytes)
    }

    /// The query without its `?`; empty when there is none.
    #[must_use]
    pub fn query(&self) -> &'a [u8] {
        self.head.query.of(self.bytes)
    }

    /// HTTP/1.0 or HTTP/1.1.
    #[must_use]
    pub fn version(&self) -> Version {
        match self.head.version {
            http::Version::Http10 => Version::HTTP_10,
            http::Version::Http11 => Version::HTTP_11,
        }
    }

    /// The value of a header by its name in any case, the first one where it is repeated. A
    /// [`::http::HeaderName`] will do for `name`, and text.
    #[must_use]
    pub fn header(&self, name: impl AsRef<[u8]>) -> Option<&'a [u8]> {
        let name = name.as_ref();
        self.headers().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The headers in their order: name as received, value without the blanks around it.
    pub fn headers(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let bytes = self.bytes;
        self.head.fields.iter().map(move |field| (field.name.of(bytes), field.value.of(bytes)))
    }

    /// The whole body; empty when there is none, and when it is [streamed](Self::is_streamed).
    #[must_use]
    pub fn body(&self) -> &'a [u8] {
        self.body
    }

    /// Whether the body is larger than `body_buffer` and arrives in pieces: see
    /// [`super::Responder::body`].
    #[must_use]
    pub fn is_streamed(&self) -> bool {
        self.streamed
    }

    /// Who sent it; a client that a PROXY header announced, where that is allowed.
    #[must_use]
    pub fn peer(&self) -> &'a Peer {
        self.link.peer()
    }

    /// Where the connection came in.
    #[must_use]
    pub fn listener(&self) -> &'a Listener {
        self.link.listener()
    }

    /// The scheme that a trusted proxy announced (`secure_scheme_headers`), else `http`.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.head.scheme_override.unwrap_or(Scheme::Http)
    }

    /// Whether the connection may go on after the answer.
    #[must_use]
    pub fn keep_alive(&self) -> bool {
        self.head.keep_alive
    }
}
