//! Responses: what an application may send, and how a client knows where the response ends.
//!
//! The bytes of a body are not copied here. [`Encoder::piece`] says how many of a piece may be sent
//! and what goes around them; the caller sends them from where they are.

use std::fmt;

use super::head::Version;
use super::scan;
use crate::limits::RESPONSE_FIELDS_BYTES_MAX;

/// The interim response to a client that waits with its body (RFC 9110 section 15.2.1).
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The beginning of an interim response with hints (RFC 8297). [`hint`] adds its fields, and an empty line ends it.
pub const EARLY_HINTS: &[u8] = b"HTTP/1.1 103 Early Hints\r\n";

/// Appends a field of an interim response to `out`. What concerns only this connection, or the length of a body
/// that an interim response does not have, is left out.
///
/// # Errors
/// [`ResponseError::FieldName`], [`ResponseError::FieldValue`], [`ResponseError::TooLarge`].
pub fn hint(name: &[u8], value: &[u8], out: &mut Vec<u8>) -> Result<(), ResponseError> {
    if !scan::is_token(name) {
        return Err(ResponseError::FieldName);
    }
    if !scan::is_text(value) {
        return Err(ResponseError::FieldValue);
    }
    let ours = [&b"content-length"[..], b"connection"].into_iter().any(|own| name.eq_ignore_ascii_case(own));
    if ours || is_hop_by_hop(name) {
        return Ok(());
    }
    let value = scan::trim(value);
    if out.len() + name.len() + value.len() + 4 > RESPONSE_FIELDS_BYTES_MAX {
        return Err(ResponseError::TooLarge);
    }
    for part in [name, b": ", value, b"\r\n"] {
        out.extend_from_slice(part);
    }
    Ok(())
}

/// Bytes of the lines that [`Encoder::begin`] adds to status and fields, at most.
const OWN_LINES_BYTES_MAX: usize = 160;

/// Why something that the application wants to send cannot be sent. The answer is 500.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseError {
    /// The status is not three digits, alone or with a blank and a reason behind them.
    Status,
    /// An interim status (1xx) as the final one: the client would go on waiting.
    Interim,
    /// A field name is not a token.
    FieldName,
    /// A field value has a control character.
    FieldValue,
    /// A Content-Length is not a number, or there are two.
    ContentLength,
    /// The fields take more than [`RESPONSE_FIELDS_BYTES_MAX`] bytes.
    TooLarge,
    /// The head has left already.
    HeadSent,
    /// There is no status yet.
    NoStatus,
}

impl fmt::Display for ResponseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Status => "the status is not of the form \"200 OK\"",
            Self::Interim => "an interim status (1xx) cannot be the status of a response",
            Self::FieldName => "a header name is not a token",
            Self::FieldValue => "a header value has a control character",
            Self::ContentLength => "Content-Length is not one decimal number",
            Self::TooLarge => "the headers take more than 1 MiB",
            Self::HeadSent => "the headers have been sent already",
            Self::NoStatus => "there is no status yet",
        })
    }
}

impl std::error::Error for ResponseError {}

/// How much of a piece of the body is to be sent, behind what [`Encoder::piece`] has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Number of the piece's bytes to send, from its beginning.
    pub send: usize,
    /// What follows them.
    pub after: &'static [u8],
}

/// What becomes of the connection after a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is ready for the next request.
    Keep,
    /// It is closed in an orderly way.
    Close,
    /// It is closed at once: the body is shorter than announced, and the client has to see that.
    Cut,
}

/// How the client knows where the body ends (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Delimiter {
    /// Request method or status say that there is no body.
    #[default]
    NoBody,
    /// So many bytes are left of the Content-Length.
    Length(u64),
    /// The chunked transfer coding.
    Chunked,
    /// The end of the connection.
    Close,
}

/// Formats one response. Made once per runner and reused.
#[derive(Debug, Default)]
pub struct Encoder {
    version: Version,
    is_head: bool,
    keep_alive: bool,
    /// Status line from the code on, with CRLF; empty before [`Self::start`].
    status: Vec<u8>,
    code: u16,
    /// The application's field lines.
    fields: Vec<u8>,
    content_length: Option<u64>,
    has_server: bool,
    has_date: bool,
    head_sent: bool,
    delimiter: Delimiter,
    body_bytes: u64,
}

impl Encoder {
    /// An encoder; [`Self::reset`] comes first.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins a response to a request of `version`, which was HEAD if `is_head`. `keep_alive`: both
    /// sides let the connection go on.
    pub fn reset(&mut self, version: Version, is_head: bool, keep_alive: bool) {
        (self.version, self.is_head, self.keep_alive) = (version, is_head, keep_alive);
        (self.head_sent, self.delimiter) = (false, Delimiter::NoBody);
        self.body_bytes = 0;
        self.clear();
    }

    /// Sets the status, for example `200 OK`, and forgets fields that were set before: so a second
    /// call of `start_response` with `exc_info` replaces the first (PEP 3333).
    ///
    /// # Errors
    /// [`ResponseError::Status`], [`ResponseError::Interim`], [`ResponseError::HeadSent`]. Nothing
    /// is changed then.
    pub fn start(&mut self, status: &[u8]) -> Result<(), ResponseError> {
        if self.head_sent {
            return Err(ResponseError::HeadSent);
        }
        let (digits, reason) = status.split_at_checked(3).ok_or(ResponseError::Status)?;
        let code = scan::decimal(digits).and_then(|code| u16::try_from(code).ok());
        let code = code.filter(|code| *code >= 100).ok_or(ResponseError::Status)?;
        if !matches!(reason, [] | [b' ', ..]) || !scan::is_text(reason) {
            return Err(ResponseError::Status);
        }
        if reason.len() > RESPONSE_FIELDS_BYTES_MAX {
            return Err(ResponseError::TooLarge);
        }
        if code < 200 {
            return Err(ResponseError::Interim);
        }
        self.clear();
        self.code = code;
        self.status.extend_from_slice(status);
        // The blank belongs to the line also without a reason (RFC 9112 section 4).
        self.status.extend_from_slice(if reason.is_empty() { b" \r\n" } else { b"\r\n" });
        Ok(())
    }

    /// Sets the status by its number, with the reason that RFC 9110 gives it. Fields stay.
    ///
    /// # Errors
    /// [`ResponseError::Status`], [`ResponseError::Interim`], [`ResponseError::HeadSent`]. Nothing
    /// is changed then.
    pub fn set_code(&mut self, code: u16) -> Result<(), ResponseError> {
        if self.head_sent {
            return Err(ResponseError::HeadSent);
        }
        match code {
            200..=999 => {}
            100..=199 => return Err(ResponseError::Interim),
            _ => return Err(ResponseError::Status),
        }
        self.code = code;
        self.status.clear();
        // Most answers are this one, and it needs no search and no formatting.
        if code == 200 {
            self.status.extend_from_slice(b"200 OK\r\n");
            return Ok(());
        }
        self.status.extend_from_slice(itoa::Buffer::new().format(code).as_bytes());
        self.status.push(b' ');
        self.status.extend_from_slice(reason(code).as_bytes());
        self.status.extend_from_slice(b"\r\n");
        Ok(())
    }

    /// Adds a field. What concerns only this connection is ours to decide: hop-by-hop fields are
    /// dropped (PEP 3333), but `Connection: close` closes. Blanks around the value are left out.
    ///
    /// # Errors
    /// [`ResponseError::FieldName`], [`ResponseError::FieldValue`], [`ResponseError::ContentLength`],
    /// [`ResponseError::TooLarge`], [`ResponseError::HeadSent`], [`ResponseError::NoStatus`].
    pub fn header(&mut self, name: &[u8], value: &[u8]) -> Result<(), ResponseError> {
        if self.head_sent {
            return Err(ResponseError::HeadSent);
        }
        if self.status.is_empty() {
            return Err(ResponseError::NoStatus);
        }
        if !scan::is_token(name) {
            return Err(ResponseError::FieldName);
        }
        if !scan::is_text(value) {
            return Err(ResponseError::FieldValue);
        }
        let value = scan::trim(value);
        match (name.len(), name[0] | 0x20) {
            (14, b'c') if scan::is_name(name, b"content-length") => {
                let length = scan::decimal(value).ok_or(ResponseError::ContentLength)?;
                if self.content_length.replace(length).is_some() {
                    return Err(ResponseError::ContentLength);
                }
                return Ok(());
            }
            (10, b'c') if scan::is_name(name, b"connection") => {
                if scan::list(value).any(|option| option.eq_ignore_ascii_case(b"close")) {
                    self.keep_alive = false;
                }
                return Ok(());
            }
            // Both are single by definition: of two, the first counts.
            (4, b'd') if scan::is_name(name, b"date") => {
                let before = std::mem::replace(&mut self.has_date, true);
                if before {
                    return Ok(());
                }
            }
            (6, b's') if scan::is_name(name, b"server") => {
                let before = std::mem::replace(&mut self.has_server, true);
                if before {
                    return Ok(());
                }
            }
            (2 | 7 | 8 | 10 | 16 | 17 | 18 | 19, b't' | b'k' | b'p' | b'u') if is_hop_by_hop(name) => {
                return Ok(());
            }
            _ => {}
        }
        let len = name.len() + value.len() + 4;
        if self.fields.len() + len > RESPONSE_FIELDS_BYTES_MAX {
            return Err(ResponseError::TooLarge);
        }
        self.fields.reserve(len);
        self.fields.extend_from_slice(name);
        self.fields.extend_from_slice(b": ");
        self.fields.extend_from_slice(value);
        self.fields.extend_from_slice(b"\r\n");
        Ok(())
    }

    /// Appends the head to `out`, with `date` from [`imf_fixdate`](super::imf_fixdate). `total` is
    /// the length of the whole body, when the caller knows it. From here on nothing of the head can
    /// be changed. Called once, after [`Self::start`].
    ///
    /// The body is delimited by the application's Content-Length, else by `total`, else in chunks,
    /// else (HTTP/1.0) by the end of the connection.
    ///
    /// # Errors
    /// [`ResponseError::NoStatus`], [`ResponseError::HeadSent`].
    pub fn begin(
        &mut self,
        out: &mut Vec<u8>,
        date: &[u8; 29],
        total: Option<u64>,
    ) -> Result<(), ResponseError> {
        if self.head_sent {
            return Err(ResponseError::HeadSent);
        }
        if self.status.is_empty() {
            return Err(ResponseError::NoStatus);
        }
        self.head_sent = true;
        let (delimiter, length) = self.delimit(total);
        self.delimiter = delimiter;
        if delimiter == Delimiter::Close {
            self.keep_alive = false;
        }

        out.reserve(OWN_LINES_BYTES_MAX + self.status.len() + self.fields.len());
        out.extend_from_slice(match self.version {
            Version::Http11 => b"HTTP/1.1 ",
            Version::Http10 => b"HTTP/1.0 ",
        });
        out.extend_from_slice(&self.status);
        // Of a fixed length each, so that the compiler copies them without a call. The usual case has fewer of them.
        // Joined on the stack first they took longer: wide loads of what was just stored in parts wait.
        match (self.has_server, self.has_date) {
            (false, false) => out.extend_from_slice(b"Server: ringhorn\r\nDate: "),
            (false, true) => out.extend_from_slice(b"Server: ringhorn\r\n"),
            (true, false) => out.extend_from_slice(b"Date: "),
            (true, true) => {}
        }
        if !self.has_date {
            out.extend_from_slice(date);
            out.extend_from_slice(b"\r\n");
        }
        if !self.keep_alive {
            out.extend_from_slice(b"Connection: close\r\n");
        } else if self.version == Version::Http10 {
            out.extend_from_slice(b"Connection: keep-alive\r\n");
        }
        if let Some(length) = length {
            out.extend_from_slice(b"Content-Length: ");
            out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
            out.extend_from_slice(b"\r\n");
        } else if delimiter == Delimiter::Chunked {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        }
        out.extend_from_slice(&self.fields);
        out.extend_from_slice(b"\r\n");
        Ok(())
    }

    /// Appends what stands in front of a piece of `len` body bytes to `out`, and says how many of
    /// them to send and what comes behind. Call it after [`Self::begin`]; a piece before it is not
    /// sent. An empty piece makes nothing, in chunks too, where it would be the end.
    pub fn piece(&mut self, len: usize, out: &mut Vec<u8>) -> Piece {
        let (send, after) = match &mut self.delimiter {
            Delimiter::NoBody => (0, &b""[..]),
            Delimiter::Length(left) => {
                let send = usize::try_from(*left).unwrap_or(usize::MAX).min(len);
                *left -= send as u64;
                (send, &b""[..])
            }
            Delimiter::Chunked if len == 0 => (0, &b""[..]),
            Delimiter::Chunked => {
                write_chunk_size(len, out);
                (len, &b"\r\n"[..])
            }
            Delimiter::Close => (len, &b""[..]),
        };
        self.body_bytes += send as u64;
        Piece { send, after }
    }

    /// Appends what ends the body to `out`, and says what becomes of the connection. If the
    /// application failed instead, do not call this: a body in chunks must not look complete.
    pub fn finish(&mut self, out: &mut Vec<u8>) -> End {
        match self.delimiter {
            Delimiter::Length(1..) => {
                self.keep_alive = false;
                return End::Cut;
            }
            Delimiter::Chunked => out.extend_from_slice(b"0\r\n\r\n"),
            _ => {}
        }
        // Whatever comes now is too much.
        self.delimiter = Delimiter::NoBody;
        if self.keep_alive && self.head_sent { End::Keep } else { End::Close }
    }

    /// Lets the connection end after this response. Before [`Self::begin`] the client is told so.
    pub fn force_close(&mut self) {
        self.keep_alive = false;
    }

    /// Whether the head is written: errors can no longer become another response.
    #[must_use]
    pub const fn head_sent(&self) -> bool {
        self.head_sent
    }

    /// The value of a field that the application gave, by its name in any case; of several the last.
    #[must_use]
    pub fn field(&self, name: &[u8]) -> Option<&[u8]> {
        let lines = self.fields.split(|byte| *byte == b'\n').rev();
        lines
            .filter_map(|line| line.strip_suffix(b"\r"))
            .filter_map(|line| line.split_at_checked(name.len()))
            .find(|(start, rest)| start.eq_ignore_ascii_case(name) && rest.starts_with(b": "))
            .map(|(_, rest)| &rest[2..])
    }

    /// The fields that the application gave, in their order, without its Content-Length and without those that
    /// were dropped.
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let lines = self.fields.split(|byte| *byte == b'\n').filter_map(|line| line.strip_suffix(b"\r"));
        lines.filter_map(|line| {
            // A name has no colon, so the first one ends it.
            let colon = memchr::memchr(b':', line)?;
            Some((&line[..colon], line.get(colon + 2..)?))
        })
    }

    /// Whether the body is sent in chunks. Known after [`Self::begin`].
    #[must_use]
    pub fn is_chunked(&self) -> bool {
        self.delimiter == Delimiter::Chunked
    }

    /// Whether the body ends with the connection, so that only a reset shows that it was cut.
    #[must_use]
    pub fn is_until_close(&self) -> bool {
        self.delimiter == Delimiter::Close
    }

    /// Whether every byte of the announced Content-Length was let through.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.head_sent && matches!(self.delimiter, Delimiter::Length(0))
    }

    /// Whether an interim response may still be sent: the head is not, and the client knows of such (RFC 9110
    /// section 15.2).
    #[must_use]
    pub fn takes_interim(&self) -> bool {
        !self.head_sent && self.version == Version::Http11
    }

    /// The status code; 0 before [`Self::start`].
    #[must_use]
    pub const fn status_code(&self) -> u16 {
        self.code
    }

    /// The status as the application gave it, for example `200 OK`; empty before [`Self::start`].
    #[must_use]
    pub fn status(&self) -> &[u8] {
        self.status.strip_suffix(b"\r\n").unwrap_or_default()
    }

    /// The Content-Length that the application set.
    #[must_use]
    pub const fn content_length(&self) -> Option<u64> {
        self.content_length
    }

    /// Body bytes let through so far, without chunk lines (for the access log).
    #[must_use]
    pub const fn body_bytes(&self) -> u64 {
        self.body_bytes
    }

    /// Whether the connection goes on after this response, as far as is known.
    #[must_use]
    pub const fn keep_alive(&self) -> bool {
        self.keep_alive
    }

    /// Whether no byte of the body is wanted any more, so that a caller may stop asking for it:
    /// there is none, or all of Content-Length has been sent. Known after [`Self::begin`].
    #[must_use]
    pub const fn is_body_done(&self) -> bool {
        self.head_sent && matches!(self.delimiter, Delimiter::NoBody | Delimiter::Length(0))
    }

    fn clear(&mut self) {
        self.status.clear();
        self.fields.clear();
        self.code = 0;
        self.content_length = None;
        (self.has_server, self.has_date) = (false, false);
    }

    /// How the body is delimited, and the Content-Length to write.
    ///
    /// # Source
    /// RFC 9112 section 6.3; RFC 9110 sections 8.6 and 15.3.6.
    fn delimit(&self, total: Option<u64>) -> (Delimiter, Option<u64>) {
        match self.code {
            204 => (Delimiter::NoBody, None),
            205 => (Delimiter::NoBody, Some(0)),
            // The length of what GET would bring is known to the application alone: `total` is
            // that of an empty body more often than not.
            304 => (Delimiter::NoBody, self.content_length),
            _ if self.is_head => (Delimiter::NoBody, self.content_length),
            _ => match self.content_length.or(total) {
                Some(length) => (Delimiter::Length(length), Some(length)),
                None if self.version == Version::Http11 => (Delimiter::Chunked, None),
                None => (Delimiter::Close, None),
            },
        }
    }
}

/// Whether a field is for one connection only: the names of PEP 3333's `is_hop_by_hop`, those of
/// RFC 9110 section 7.6.1, and Trailer, because we send no trailer section.
fn is_hop_by_hop(name: &[u8]) -> bool {
    const NAMES: [&[u8]; 9] = [
        b"te",
        b"trailer",
        b"trailers",
        b"upgrade",
        b"keep-alive",
        b"proxy-connection",
        b"transfer-encoding",
        b"proxy-authenticate",
        b"proxy-authorization",
    ];
    NAMES.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// Appends the size line of a chunk (RFC 9112 section 7.1).
fn write_chunk_size(size: usize, out: &mut Vec<u8>) {
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    let mut line = [0; 18];
    let mut at = 16;
    line[16..].copy_from_slice(b"\r\n");
    let mut rest = size;
    loop {
        at -= 1;
        line[at] = DIGITS[rest & 15];
        rest >>= 4;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&line[at..]);
}

/// Appends a complete error response of the server's own to `out`: a small HTML page with the
/// reason phrase and `message`, which is escaped. It closes the connection. To a HEAD request the
/// page itself is left out.
///
/// `retry_after` is how many seconds the client is to wait before it asks again (RFC 9110 section 10.2.3).
pub fn error_page(
    status: u16,
    message: &str,
    is_head: bool,
    retry_after: Option<u64>,
    date: &[u8; 29],
    out: &mut Vec<u8>,
) {
    let reason = reason(status);
    let mut page = format!(
        "<!doctype html>\n<html>\n<head><title>{status} {reason}</title></head>\n<body>\n<h1>{reason}</h1>\n"
    );
    if !message.is_empty() {
        page.push_str("<p>");
        for letter in message.chars() {
            match letter {
                '<' => page.push_str("&lt;"),
                '>' => page.push_str("&gt;"),
                '&' => page.push_str("&amp;"),
                '"' => page.push_str("&quot;"),
                '\'' => page.push_str("&#39;"),
                _ if letter.is_control() => page.push('\u{fffd}'),
                _ => page.push(letter),
            }
        }
        page.push_str("</p>\n");
    }
    page.push_str("</body>\n</html>\n");
    out.extend_from_slice(format!("HTTP/1.1 {status} {reason}\r\nServer: ringhorn\r\nDate: ").as_bytes());
    out.extend_from_slice(date);
    if let Some(seconds) = retry_after {
        out.extend_from_slice(format!("\r\nRetry-After: {seconds}").as_bytes());
    }
    out.extend_from_slice(
        format!(
            "\r\nConnection: close\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {}\r\n\r\n",
            page.len()
        )
        .as_bytes(),
    );
    if !is_head {
        out.extend_from_slice(page.as_bytes());
    }
}

/// The reason phrase of a status code (RFC 9110 section 15, RFC 6585); "Unknown" for others.
#[must_use]
pub const fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use proptest::prelude::*;

    use super::*;

    const DATE: &[u8; 29] = b"Sun, 06 Nov 1994 08:49:37 GMT";

    struct Asked {
        version: Version,
        is_head: bool,
        keep_alive: bool,
    }

    const GET: Asked = Asked { version: Version::Http11, is_head: false, keep_alive: true };
    const GET_CLOSE: Asked = Asked { keep_alive: false, ..GET };
    const HEAD: Asked = Asked { is_head: true, ..GET };
    const GET10: Asked = Asked { version: Version::Http10, keep_alive: false, ..GET };
    const GET10_KEEP: Asked = Asked { version: Version::Http10, ..GET };

    /// The whole response as sent, and what becomes of the connection.
    fn respond(
        asked: &Asked,
        status: &str,
        fields: &[(&str, &str)],
        pieces: &[&str],
        total: Option<u64>,
    ) -> (String, End) {
        let mut encoder = Encoder::new();
        encoder.reset(asked.version, asked.is_head, asked.keep_alive);
        encoder.start(status.as_bytes()).unwrap();
        for (name, value) in fields {
            encoder.header(name.as_bytes(), value.as_bytes()).unwrap();
        }
        let mut out = Vec::new();
        encoder.begin(&mut out, DATE, total).unwrap();
        for piece in pieces {
            let Piece { send, after } = encoder.piece(piece.len(), &mut out);
            out.extend_from_slice(&piece.as_bytes()[..send]);
            out.extend_from_slice(after);
        }
        let end = encoder.finish(&mut out);
        assert_eq!(encoder.keep_alive(), end == End::Keep);
        (String::from_utf8(out).unwrap(), end)
    }

    const OWN: &str = "Server: ringhorn\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n";

    #[test]
    fn a_known_length_is_announced() {
        let (out, end) = respond(&GET, "200 OK", &[("X-A", "b")], &["hello"], Some(5));
        assert_eq!(out, format!("HTTP/1.1 200 OK\r\n{OWN}Content-Length: 5\r\nX-A: b\r\n\r\nhello"));
        assert_eq!(end, End::Keep);
        let (out, _) = respond(&GET, "200 OK", &[], &[], Some(0));
        assert_eq!(out, format!("HTTP/1.1 200 OK\r\n{OWN}Content-Length: 0\r\n\r\n"));
    }

    #[test]
    fn an_unknown_length_is_chunked_and_empty_pieces_do_not_end_it() {
        let long = "x".repeat(0x1ab);
        let (out, end) = respond(&GET, "200 OK", &[], &["", "alpha ", "", &long, ""], None);
        let body = format!("6\r\nalpha \r\n1ab\r\n{long}\r\n0\r\n\r\n");
        assert_eq!(out, format!("HTTP/1.1 200 OK\r\n{OWN}Transfer-Encoding: chunked\r\n\r\n{body}"));
        assert_eq!(end, End::Keep);
    }

    /// RFC 9112 section 6.1: a client of HTTP/1.0 does not know the chunked coding.
    #[test]
    fn http_1_0_gets_a_length_or_the_end_of_the_connection() {
        let (out, end) = respond(&GET10_KEEP, "200 OK", &[], &["alpha"], None);
        assert_eq!(out, format!("HTTP/1.0 200 OK\r\n{OWN}Connection: close\r\n\r\nalpha"));
        assert_eq!(end, End::Close);
        let (out, end) = respond(&GET10_KEEP, "200 OK", &[], &["alpha"], Some(5));
        assert_eq!(
            out,
            format!("HTTP/1.0 200 OK\r\n{OWN}Connection: keep-alive\r\nContent-Length: 5\r\n\r\nalpha")
        );
        assert_eq!(end, End::Keep);
        let (out, end) = respond(&GET10, "200 OK", &[], &["alpha"], Some(5));
        assert!(out.contains("Connection: close\r\n") && end == End::Close);
    }

    /// `post_request` reads them when the response has been sent.
    #[test]
    fn the_applications_fields_can_be_read_after_the_end() {
        let mut encoder = Encoder::new();
        encoder.reset(Version::Http11, false, true);
        encoder.start(b"200 OK").unwrap();
        for (name, value) in
            [("A", "1: 2"), ("Content-Length", "0"), ("Connection", "close"), ("b", ""), ("A", "3")]
        {
            encoder.header(name.as_bytes(), value.as_bytes()).unwrap();
        }
        let mut out = Vec::new();
        encoder.begin(&mut out, b"Sun, 06 Nov 1994 08:49:37 GMT", None).unwrap();
        encoder.finish(&mut out);
        let fields: Vec<(&[u8], &[u8])> = encoder.fields().collect();
        assert_eq!(fields, [(&b"A"[..], &b"1: 2"[..]), (b"b", b""), (b"A", b"3")]);
        assert_eq!(encoder.content_length(), Some(0));
        assert!(!encoder.is_chunked());
    }

    #[test]
    fn the_applications_length_is_kept_in_both_directions() {
        let length = [("Content-Length", "5")];
        let (out, end) = respond(&GET, "200 OK", &length, &["123", "45678", "9"], None);
        assert!(out.ends_with("Content-Length: 5\r\n\r\n12345"), "{out}");
        assert_eq!((out.matches("Content-Length").count(), end), (1, End::Keep));
        let (out, end) = respond(&GET, "200 OK", &length, &["1234567890"], Some(10));
        assert!(out.ends_with("\r\n\r\n12345") && end == End::Keep, "{out}");
        // Too short: the client must not take what follows for the missing bytes.
        let (out, end) = respond(&GET, "200 OK", &length, &["1234"], None);
        assert!(out.ends_with("\r\n\r\n1234"), "{out}");
        assert_eq!(end, End::Cut);
        let (_, end) = respond(&GET10_KEEP, "200 OK", &length, &["1234"], Some(4));
        assert_eq!(end, End::Cut);
    }

    #[test]
    fn responses_without_a_body_have_none() {
        for total in [None, Some(0), Some(26)] {
            let (out, end) = respond(&GET, "204 No Content", &[("Content-Length", "26")], &["body"], total);
            assert_eq!((out, end), (format!("HTTP/1.1 204 No Content\r\n{OWN}\r\n"), End::Keep));
            let (out, _) = respond(&GET, "304 Not Modified", &[("ETag", "\"a\"")], &["body"], total);
            assert_eq!(out, format!("HTTP/1.1 304 Not Modified\r\n{OWN}ETag: \"a\"\r\n\r\n"));
            let (out, _) = respond(&GET, "304 Not Modified", &[("Content-Length", "1234")], &[], total);
            assert_eq!(out, format!("HTTP/1.1 304 Not Modified\r\n{OWN}Content-Length: 1234\r\n\r\n"));
            let (out, _) = respond(&GET, "205 Reset Content", &[("Content-Length", "9")], &["body"], total);
            assert_eq!(out, format!("HTTP/1.1 205 Reset Content\r\n{OWN}Content-Length: 0\r\n\r\n"));
            let (out, end) = respond(&HEAD, "200 OK", &[("Content-Length", "26")], &["body"], total);
            assert_eq!(
                (out, end),
                (format!("HTTP/1.1 200 OK\r\n{OWN}Content-Length: 26\r\n\r\n"), End::Keep)
            );
            let (out, _) = respond(&HEAD, "200 OK", &[], &[], total);
            assert_eq!(out, format!("HTTP/1.1 200 OK\r\n{OWN}\r\n"));
        }
        let (out, end) = respond(&GET10, "304 Not Modified", &[], &["body"], None);
        assert_eq!(out, format!("HTTP/1.0 304 Not Modified\r\n{OWN}Connection: close\r\n\r\n"));
        assert_eq!(end, End::Close);
    }

    #[test]
    fn connection_fields_of_the_application_are_ours() {
        let fields = [
            ("Connection", "X-Private"),
            ("Keep-Alive", "timeout=99"),
            ("TE", "trailers"),
            ("Trailer", "X-T"),
            ("Transfer-Encoding", "chunked"),
            ("upgrade", "h2c"),
            ("Proxy-Authenticate", "Basic"),
            ("Proxy-Connection", "keep-alive"),
        ];
        let (out, end) = respond(&GET, "200 OK", &fields, &["a"], Some(1));
        assert_eq!((out, end), (format!("HTTP/1.1 200 OK\r\n{OWN}Content-Length: 1\r\n\r\na"), End::Keep));
        let (out, end) = respond(&GET, "200 OK", &[("connection", "x, Close")], &["a"], None);
        assert!(out.contains("\r\nConnection: close\r\n") && end == End::Close, "{out}");
        let (out, end) = respond(&GET_CLOSE, "200 OK", &[], &["a"], None);
        assert!(out.contains("\r\nConnection: close\r\n") && end == End::Close, "{out}");
    }

    #[test]
    fn server_and_date_of_the_application_win_and_stay_single() {
        let fields = [
            ("Server", "app/1"),
            ("Date", "then"),
            ("date", "later"),
            ("Set-Cookie", "a"),
            ("Set-Cookie", "b"),
        ];
        let (out, _) = respond(&GET, "200 OK", &fields, &[], Some(0));
        assert_eq!(
            out,
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nServer: app/1\r\nDate: then\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\n"
        );
    }

    #[test]
    fn a_status_is_three_digits_and_a_reason() {
        let mut encoder = Encoder::new();
        encoder.reset(Version::Http11, false, true);
        for wrong in [
            &b""[..],
            b"OK",
            b"20",
            b"20 OK",
            b"2000 OK",
            b"abc OK",
            b"-20 OK",
            b"+20 OK",
            b"200OK",
            b"099 Low",
            b"200 OK\r\nInjected: yes",
            b"200 OK\nInjected: yes",
            b"200 O\x00K",
            b"200 \x7f",
            b"\xb2\xb2\xb2 OK",
        ] {
            assert_eq!(encoder.start(wrong), Err(ResponseError::Status), "{}", wrong.escape_ascii());
        }
        assert_eq!(encoder.start(b"101 Switching Protocols"), Err(ResponseError::Interim));
        assert_eq!(encoder.header(b"X-A", b"b"), Err(ResponseError::NoStatus));
        assert_eq!(encoder.begin(&mut Vec::new(), DATE, None), Err(ResponseError::NoStatus));
        assert_eq!(encoder.status_code(), 0);
        let mut out = Vec::new();
        encoder.start(b"299").unwrap();
        assert_eq!((encoder.status_code(), encoder.status()), (299, &b"299 "[..]));
        encoder.start(b"299 Tr\xe8s bien").unwrap();
        encoder.begin(&mut out, DATE, None).unwrap();
        assert!(out.starts_with(b"HTTP/1.1 299 Tr\xe8s bien\r\n"));
    }

    /// PEP 3333: `start_response` with `exc_info` replaces status and headers, until they are sent.
    #[test]
    fn a_second_start_forgets_the_first_until_the_head_is_sent() {
        let mut encoder = Encoder::new();
        encoder.reset(Version::Http11, false, true);
        encoder.start(b"200 OK").unwrap();
        for (name, value) in [("X-First", "1"), ("Content-Length", "5"), ("Date", "then"), ("Server", "app")]
        {
            encoder.header(name.as_bytes(), value.as_bytes()).unwrap();
        }
        encoder.start(b"503 Replaced").unwrap();
        assert_eq!(encoder.content_length(), None);
        let mut out = Vec::new();
        encoder.begin(&mut out, DATE, Some(0)).unwrap();
        assert_eq!(
            String::from_utf8(out.clone()).unwrap(),
            format!("HTTP/1.1 503 Replaced\r\n{OWN}Content-Length: 0\r\n\r\n")
        );
        assert_eq!(encoder.start(b"200 OK"), Err(ResponseError::HeadSent));
        assert_eq!(encoder.header(b"X-A", b"b"), Err(ResponseError::HeadSent));
        assert_eq!(encoder.begin(&mut out, DATE, None), Err(ResponseError::HeadSent));
        assert_eq!(encoder.status_code(), 503);
    }

    #[test]
    fn wrong_fields_are_refused() {
        let mut encoder = Encoder::new();
        encoder.reset(Version::Http11, false, true);
        encoder.start(b"200 OK").unwrap();
        for name in [&b""[..], b"X A", b"X:A", b"X\x00A", b"X-\xe9", b"X-A\r\nInjected", b"X-A\n"] {
            assert_eq!(encoder.header(name, b"v"), Err(ResponseError::FieldName), "{}", name.escape_ascii());
        }
        for value in [
            &b"a\r\nInjected: yes"[..],
            b"a\rb",
            b"a\nb",
            b"a\x00b",
            b"a\x01b",
            b"a\x7fb",
            b"a\n",
            b"a\r\n b",
            b"\r",
        ] {
            assert_eq!(
                encoder.header(b"X", value),
                Err(ResponseError::FieldValue),
                "{}",
                value.escape_ascii()
            );
        }
        for value in [&b"abc"[..], b"-1", b"+5", b"", b"0x5", b"5, 5", b"99999999999999999999"] {
            assert_eq!(encoder.header(b"content-length", value), Err(ResponseError::ContentLength));
        }
        encoder.header(b"Content-Length", b" 5 ").unwrap();
        assert_eq!(encoder.header(b"Content-Length", b"5"), Err(ResponseError::ContentLength));
        encoder.header(b"X-Latin", b"\t caf\xe9\tx ").unwrap();
        encoder.header(b"X-Big", &vec![b'v'; 60_000]).unwrap();
        assert_eq!(encoder.header(b"X-Big", &vec![b'v'; 1024 * 1024]), Err(ResponseError::TooLarge));
        let mut out = Vec::new();
        encoder.begin(&mut out, DATE, None).unwrap();
        assert!(out.windows(22).any(|part| part == b"\r\nX-Latin: caf\xe9\tx\r\nX-B"));
        assert!(!out.windows(8).any(|part| part == b"Injected"));
    }

    #[test]
    fn accounting_tells_what_was_sent() {
        let mut encoder = Encoder::new();
        encoder.reset(Version::Http11, false, true);
        encoder.start(b"200 OK").unwrap();
        encoder.header(b"Content-Length", b"5").unwrap();
        let mut out = Vec::new();
        assert!(!encoder.is_body_done() && !encoder.head_sent());
        encoder.begin(&mut out, DATE, None).unwrap();
        assert!(!encoder.is_body_done() && encoder.head_sent());
        assert_eq!(encoder.piece(7, &mut out).send, 5);
        assert!(encoder.is_body_done());
        assert_eq!(encoder.body_bytes(), 5);
        // Reused, nothing of it is left.
        encoder.reset(Version::Http11, false, true);
        assert_eq!((encoder.body_bytes(), encoder.status_code()), (0, 0));
        assert_eq!((encoder.content_length(), encoder.head_sent()), (None, false));
    }

    #[test]
    fn error_pages_are_delimited_escaped_and_close() {
        let mut out = Vec::new();
        error_page(400, "a <b> & \"c\" 'd' \r\n", false, Some(3), DATE, &mut out);
        assert!(out.windows(18).any(|at| at == b"\r\nRetry-After: 3\r\n"));
        let page = String::from_utf8(out).unwrap();
        let (head, body) = page.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with("HTTP/1.1 400 Bad Request\r\n") && head.contains("\r\nConnection: close\r\n")
        );
        assert!(head.ends_with(&format!("Content-Length: {}", body.len())), "{head}");
        assert!(body.contains("a &lt;b&gt; &amp; &quot;c&quot; &#39;d&#39; \u{fffd}\u{fffd}</p>"), "{body}");
        let mut out = Vec::new();
        error_page(500, "", true, None, DATE, &mut out);
        assert!(!out.windows(5).any(|at| at == b"Retry"));
        assert!(out.ends_with(b"\r\n\r\n") && !out.windows(3).any(|part| part == b"<p>"));
    }

    #[test]
    fn chunk_sizes_are_hexadecimal_at_every_length() {
        for size in [1, 9, 10, 15, 16, 255, 256, 65535, 65536, usize::MAX] {
            let mut out = Vec::new();
            write_chunk_size(size, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), format!("{size:x}\r\n"));
        }
    }

    proptest! {
        /// Response splitting: whatever an application passes, the head has only the lines that
        /// were accepted.
        #[test]
        fn the_head_has_no_line_that_was_not_asked_for(
            status in proptest::collection::vec(any::<u8>(), 0..12),
            fields in proptest::collection::vec((
                proptest::collection::vec(prop_oneof![b'a'..b'f', any::<u8>()], 0..4),
                proptest::collection::vec(prop_oneof![3 => b' '..b'~', 1 => any::<u8>(), 1 => Just(b'\r'), 1 => Just(b'\n')], 0..6),
            ), 0..6),
        ) {
            let mut encoder = Encoder::new();
            encoder.reset(Version::Http11, false, true);
            if encoder.start(&status).is_err() {
                encoder.start(b"200 OK").unwrap();
            }
            let mut accepted = 0;
            for (name, value) in &fields {
                let before = encoder.fields.len();
                accepted += usize::from(encoder.header(name, value).is_ok() && encoder.fields.len() > before);
            }
            let mut out = Vec::new();
            encoder.begin(&mut out, DATE, Some(0)).unwrap();
            prop_assert!(out.ends_with(b"\r\n\r\n"));
            let lines = out.split(|byte| *byte == b'\n').collect::<Vec<_>>();
            // Status, Server, Date, Content-Length, the empty line, and nothing behind it.
            prop_assert_eq!(lines.len(), accepted + 6);
            prop_assert!(lines.iter().rev().skip(1).all(|line| line.ends_with(b"\r")));
            prop_assert_eq!(out.iter().filter(|byte| **byte == b'\r').count(), accepted + 5);
        }
    }
}
