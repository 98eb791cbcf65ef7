//! Request heads: where one ends, what it says, and whether it may be served.
//!
//! httparse reads the line and the fields. It accepts more than we do (bare LF, any number of empty
//! lines in front, two lengths), so everything that RFC 9112 section 11.2 warns of is checked here.
//! The way between a complete head in one buffer and a filled [`Head`] allocates nothing.

use std::mem::MaybeUninit;
use std::net::Ipv6Addr;

use memchr::{memchr, memchr_iter, memrchr};

use super::policy::{HeaderMap, Policy};
use super::refusal::Refusal;
use super::scan;

/// Fields for which there is room on the stack: gunicorn's default of `limit_request_fields`.
const FIELDS_ON_STACK: usize = 100;

/// Largest Content-Length, in bytes: what fits a signed number of the kernel's interfaces.
const LENGTH_MAX: u64 = i64::MAX as u64;

/// Bytes of input for which the limit of a whole head need not be worked out.
const HEAD_BYTES_FEW: usize = 4096;

/// gunicorn's bounds of a conventional method, in characters.
const METHOD_LEN: std::ops::RangeInclusive<usize> = 3..=20;

/// A part of the bytes that were parsed: offsets from their beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Offset of the first byte.
    pub start: u32,
    /// Offset behind the last byte.
    pub end: u32,
}

impl Span {
    /// The bytes meant, out of the ones that were parsed; nothing out of others that are too short.
    #[inline]
    #[must_use]
    pub fn of(self, bytes: &[u8]) -> &[u8] {
        bytes.get(self.start as usize..self.end as usize).unwrap_or_default()
    }

    /// Where `part`, a slice of what begins at address `base`, lies.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "`Policy::head_limit` is below 2^30 bytes")]
    fn within(base: usize, part: &[u8]) -> Self {
        let start = (part.as_ptr() as usize).wrapping_sub(base) as u32;
        Self { start, end: start + part.len() as u32 }
    }

    /// The part of this span from `from` to `to`, counted from its own beginning.
    #[expect(clippy::cast_possible_truncation, reason = "`Policy::head_limit` is below 2^30 bytes")]
    const fn part(self, from: usize, to: usize) -> Self {
        Self { start: self.start + from as u32, end: self.start + to as u32 }
    }
}

/// The protocol version by which a request is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0: no chunked coding, and a connection ends unless its client asks to keep it.
    Http10,
    /// HTTP/1.1, and every later minor version (RFC 9110 section 2.5).
    #[default]
    Http11,
}

impl Version {
    /// As it stands in a message.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
        }
    }
}

/// One field line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// The name as received; a token.
    pub name: Span,
    /// The value without the blanks around it.
    pub value: Span,
}

/// How the body of a request is delimited (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// There is no body. `Content-Length: 0` is this, too.
    #[default]
    None,
    /// So many bytes; never 0.
    Length(u64),
    /// The chunked transfer coding.
    Chunked,
}

/// The scheme of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// In the clear.
    Http,
    /// Over TLS, here or at a proxy in front.
    Https,
}

/// A request head. Made once and reused; spans are offsets into the bytes that were parsed last.
#[derive(Clone, Debug, Default)]
pub struct Head {
    /// The method as received.
    pub method: Span,
    /// The request target as received, with scheme, authority and fragment if it has them.
    pub target: Span,
    /// The path of the target, still percent-encoded; `*` for the server as a whole; never empty.
    pub path: Span,
    /// What follows the first question mark, without the fragment.
    pub query: Span,
    /// The version to answer by.
    pub version: Version,
    /// The fields that an application may see, in order.
    pub fields: Vec<Field>,
    /// Where the body ends.
    pub framing: Framing,
    /// The number of Content-Length, 0 included.
    pub content_length: Option<u64>,
    /// Whether the client lets the connection go on after this request.
    pub keep_alive: bool,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub expect_continue: bool,
    /// The scheme that a trusted peer announced in one of `secure_scheme_headers`.
    pub scheme_override: Option<Scheme>,
    /// The value of a trusted peer's `SCRIPT_NAME` field.
    pub script_name: Option<Span>,
    /// Whether the method is HEAD, so that the answer has no body. Set for refused requests, too.
    pub is_head: bool,
    /// Whether request line and fields were read, so that the request can be told of. Set for refused requests, too.
    pub is_read: bool,
}

/// What is collected from the fields on the way.
#[derive(Default)]
struct Seen {
    /// Index of the Host field in `Head::fields`.
    host: Option<usize>,
    content_length: bool,
    content_type: bool,
    transfer_encoding: Option<Span>,
    close: bool,
    keep_alive: bool,
    expects: bool,
}

impl Head {
    /// Parses the head at the beginning of `input`.
    ///
    /// `Ok(Some(n))`: it is the first `n` bytes, with one leading CRLF if there is one.
    /// `Ok(None)`: it is not complete. Call again with the same bytes and more; `scanned`, which is
    /// 0 for a new head, remembers how far the end was searched, so that a head that arrives byte
    /// by byte is not read again from its beginning. `trusted` says that the peer is one of
    /// `forwarded_allow_ips`.
    ///
    /// # Errors
    /// 400 for everything malformed or ambiguous, 413 for a body above the limit, 414 and 431 for
    /// lines and fields above theirs (also while the head is incomplete), 417 for an expectation
    /// other than `100-continue`, 501 for a transfer coding other than chunked and for CONNECT.
    ///
    /// # Source
    /// RFC 9112 sections 2 to 6; gunicorn's settings as in [`Policy`].
    #[inline]
    pub fn parse(
        &mut self,
        input: &[u8],
        scanned: &mut usize,
        policy: &Policy,
        trusted: bool,
    ) -> Result<Option<usize>, Refusal> {
        // Also right for a request that is refused, or timed out, before its method is known.
        (self.is_head, self.is_read) = (false, false);
        // RFC 9112 section 2.2 asks to ignore at least one empty line in front. More than one is
        // refused, as by gunicorn.
        let start = match input {
            [b'\r', b'\n', ..] => 2,
            [b'\r'] => return Ok(None),
            _ => 0,
        };
        // Of a few bytes none is too many: a head that breaks the whole's limit breaks that of a line or a field first.
        let limit = match input.len() {
            few @ ..=HEAD_BYTES_FEW => few,
            many => many.min(start + policy.head_limit()),
        };
        let Some(rest) = input.get(start..limit).filter(|rest| !rest.is_empty()) else {
            return Ok(None);
        };
        if matches!(rest, [b'\r' | b'\n', ..]) {
            return Err(NO_LINE);
        }
        self.is_head = rest.starts_with(b"HEAD ");
        // Of a line that is not complete nothing was forgiven yet, so httparse must not see it either.
        let was_searched = *scanned > start || policy.is_relaxed();
        // httparse starts from the first byte each time. So it sees a head when it comes, and then
        // only when it is complete: what came in between is searched for its end.
        let end = if was_searched { find_end(rest, start, scanned, policy)? } else { Some(rest.len()) };
        if let Some(end) = end {
            if let Some(len) = self.parse_lines(&rest[..end], start, policy, trusted)? {
                *scanned = 0;
                return Ok(Some(start + len));
            }
            if was_searched || find_end(rest, start, scanned, policy)?.is_some() {
                return Err(Refusal::new(400, "the request head is malformed"));
            }
        }
        if rest.len() >= policy.head_limit() {
            return Err(Refusal::new(431, "the request head is too long"));
        }
        Ok(None)
    }

    /// Parses `lines`, which lie at `offset` of the caller's bytes. `Ok(None)`: they are incomplete.
    #[inline]
    fn parse_lines(
        &mut self,
        lines: &[u8],
        offset: usize,
        policy: &Policy,
        trusted: bool,
    ) -> Result<Option<usize>, Refusal> {
        let mut room = [const { MaybeUninit::uninit() }; FIELDS_ON_STACK];
        let count = policy.field_count_limit().min(FIELDS_ON_STACK);
        self.parse_into(lines, offset, policy, trusted, &mut room[..count])
    }

    #[inline]
    fn parse_into<'b>(
        &mut self,
        lines: &'b [u8],
        offset: usize,
        policy: &Policy,
        trusted: bool,
        room: &mut [MaybeUninit<httparse::Header<'b>>],
    ) -> Result<Option<usize>, Refusal> {
        let room_len = room.len();
        let mut request = httparse::Request::new(&mut []);
        match request.parse_with_uninit_headers(lines, room) {
            Ok(httparse::Status::Complete(len)) => {
                let lines = &lines[..len.min(lines.len())];
                self.accept(&request, lines, offset, policy, trusted)?;
                Ok(Some(len))
            }
            Ok(httparse::Status::Partial) => Ok(None),
            // Rare also where many fields are allowed, so only such a request pays for the room.
            Err(httparse::Error::TooManyHeaders) if room_len < policy.field_count_limit() => {
                let mut room = Vec::new();
                room.resize_with(policy.field_count_limit(), MaybeUninit::uninit);
                self.parse_into(lines, offset, policy, trusted, &mut room)
            }
            Err(httparse::Error::Version) => self.parse_other_version(lines, offset, policy, trusted),
            Err(error) => Err(explain(error, lines, policy)),
        }
    }

    /// Serves versions that httparse does not know: RFC 9110 section 2.5 has a server treat a
    /// higher minor version as the highest it knows. `lines` are parsed again from a copy that says
    /// so; the spans are the same. Rare, so the copy does not matter.
    #[cold]
    fn parse_other_version(
        &mut self,
        lines: &[u8],
        offset: usize,
        policy: &Policy,
        trusted: bool,
    ) -> Result<Option<usize>, Refusal> {
        let line_end = memchr(b'\n', lines);
        if line_end.is_none() && policy.permit_unconventional_http_version {
            return Ok(None);
        }
        let line = &lines[..line_end.unwrap_or(lines.len())];
        let at = line.iter().enumerate().filter(|(_, byte)| **byte == b' ').nth(1).map(|(at, _)| at + 1);
        let known: &[u8; 8] = match at.and_then(|at| line.get(at..at + 8)) {
            Some([b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'2'..=b'9']) => b"HTTP/1.1",
            Some([b'H', b'T', b'T', b'P', b'/', major @ b'0'..=b'9', b'.', b'0'..=b'9'])
                if policy.permit_unconventional_http_version && *major != b'1' =>
            {
                if *major == b'0' {
                    b"HTTP/1.0"
                } else {
                    b"HTTP/1.1"
                }
            }
            _ => return Err(explain(httparse::Error::Version, lines, policy)),
        };
        // Only a complete head is copied, and no byte behind it: many small requests in one
        // buffer must not cost a copy of the buffer each.
        let mut searched = 0;
        let Some(end) = find_end(lines, 0, &mut searched, policy)? else { return Ok(None) };
        let mut copy = lines[..end].to_vec();
        if let Some(version) = at.and_then(|at| copy.get_mut(at..at + 8)) {
            version.copy_from_slice(known);
        }
        self.parse_lines(&copy, offset, policy, trusted)
    }

    /// Checks what httparse has read out of `lines`, a whole head, and fills `self` with it.
    #[inline]
    fn accept(
        &mut self,
        request: &httparse::Request<'_, '_>,
        lines: &[u8],
        offset: usize,
        policy: &Policy,
        trusted: bool,
    ) -> Result<(), Refusal> {
        // Spans count from the caller's first byte, which lies `offset` bytes before `lines`.
        let base = (lines.as_ptr() as usize).wrapping_sub(offset);
        let target = request.path.unwrap_or_default().as_bytes();
        self.method = Span::within(base, request.method.unwrap_or_default().as_bytes());
        self.target = Span::within(base, target);
        self.version = if request.version == Some(0) { Version::Http10 } else { Version::Http11 };
        self.fields.clear();
        self.framing = Framing::None;
        self.content_length = None;
        self.scheme_override = None;
        self.script_name = None;

        // httparse ends lines at LF with or without CR, and finds CR nowhere else. So the byte in
        // front of each line's LF is the only place to look at, and no scan is needed.
        let line_end = |next: Option<&httparse::Header<'_>>| match next {
            Some(header) => Span::within(base, header.name.as_bytes()).start as usize - offset,
            None => lines.len() - 2,
        };
        let has_crlf = |end: usize| end >= 2 && lines[end - 2] == b'\r';
        let mut line_start = line_end(request.headers.first());
        if !has_crlf(line_start) || !has_crlf(lines.len()) {
            return Err(BARE_LF);
        }
        if line_start - 2 > policy.line_limit() {
            return Err(LONG_LINE);
        }
        let method = request.method.unwrap_or_default().as_bytes();
        check_method(method, policy)?;
        if method == b"CONNECT" {
            // It asks for a tunnel. An application cannot make one, and a success it answered by mistake would
            // turn what follows into bytes of that tunnel (RFC 9110 section 9.3.6).
            (self.path, self.query) = (self.target, self.target.part(0, 0));
            let refused = Refusal::new(501, "CONNECT is not served: this is not a proxy");
            return self.read_rest(refused, base, request.headers);
        }
        let authority = self.split_target(method, target)?;

        let mut seen = Seen::default();
        let field_bytes_max = policy.field_limit();
        for (index, header) in request.headers.iter().enumerate() {
            let end = line_end(request.headers.get(index + 1));
            if !has_crlf(end) {
                return Err(BARE_LF);
            }
            if end - line_start > field_bytes_max {
                return Err(LONG_FIELD);
            }
            line_start = end;
            let field = Field {
                name: Span::within(base, header.name.as_bytes()),
                value: Span::within(base, header.value),
            };
            let name = header.name.as_bytes();
            if let Err(refused) = self.take_field(field, name, header.value, policy, trusted, &mut seen) {
                return self.read_rest(refused, base, &request.headers[index..]);
            }
        }
        self.is_read = true;
        self.decide_host(seen.host, authority)?;
        self.decide_framing(&seen, lines, offset, policy)?;
        self.keep_alive = !seen.close && (self.version == Version::Http11 || seen.keep_alive);
        // A client of HTTP/1.0 does not know interim answers, and without a body there is nothing
        // to wait for (RFC 9110 section 10.1.1).
        self.expect_continue =
            seen.expects && self.version == Version::Http11 && self.framing != Framing::None;
        Ok(())
    }

    /// Takes the rest of the fields of a request that is refused for one of them, for those who are told of it.
    #[cold]
    fn read_rest(
        &mut self,
        refused: Refusal,
        base: usize,
        rest: &[httparse::Header<'_>],
    ) -> Result<(), Refusal> {
        self.fields.extend(rest.iter().map(|header| Field {
            name: Span::within(base, header.name.as_bytes()),
            value: Span::within(base, header.value),
        }));
        self.is_read = true;
        Err(refused)
    }

    /// Splits the target into path and query, and returns its authority if it has one.
    ///
    /// # Source
    /// RFC 9112 section 3.2.
    #[inline]
    fn split_target(&mut self, method: &[u8], target: &[u8]) -> Result<Option<Span>, Refusal> {
        // Nearly all are a path, and perhaps a query; the first kind needs no search.
        if target.first() == Some(&b'/') && scan::is_plain_target(target) {
            (self.path, self.query) = (self.target, self.target.part(target.len(), target.len()));
            return Ok(None);
        }
        let invalid = |why: &str| Err(Refusal::quoting(400, why, target));
        // httparse lets UTF-8 through; RFC 3986 has no such bytes in a URI.
        if !target.is_ascii() {
            return invalid("the request target has bytes outside ASCII");
        }
        let mut path_start = 0;
        let mut authority = None;
        if target.first() != Some(&b'/') {
            if target == b"*" {
                if method != b"OPTIONS" {
                    return invalid("only OPTIONS takes the target *");
                }
                (self.path, self.query) = (self.target, self.target.part(1, 1));
                return Ok(None);
            }
            let Some(scheme_len) = [&b"http://"[..], b"https://"].into_iter().find_map(|scheme| {
                let start = target.get(..scheme.len())?;
                start.eq_ignore_ascii_case(scheme).then_some(scheme.len())
            }) else {
                return invalid("invalid request target");
            };
            let rest = &target[scheme_len..];
            let len = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
            if len == 0 || !is_host(&rest[..len]) {
                return invalid("invalid authority in the request target");
            }
            authority = Some(self.target.part(scheme_len, scheme_len + len));
            path_start = scheme_len + len;
        }
        // gunicorn drops a fragment, which has no business in a target.
        let end = memchr(b'#', target).unwrap_or(target.len());
        let question = memchr(b'?', &target[..end]);
        let path_end = question.unwrap_or(end);
        self.path = if path_start < path_end {
            self.target.part(path_start, path_end)
        } else {
            // An empty path in absolute form means "/" (RFC 9110 section 4.2.3). The seventh byte,
            // a slash in "http://" and in "https://", stands for it: the path is never empty.
            self.target.part(6, 7)
        };
        self.query = self.target.part(question.map_or(end, |at| at + 1), end);
        Ok(authority)
    }

    /// Takes one field into `self` and `seen`.
    #[inline]
    fn take_field(
        &mut self,
        field: Field,
        name: &[u8],
        value: &[u8],
        policy: &Policy,
        trusted: bool,
        seen: &mut Seen,
    ) -> Result<(), Refusal> {
        if trusted {
            self.take_scheme(name, value, policy)?;
        }
        if scan::has_underscore(name) {
            if trusted && policy.is_forwarder_header(name) {
                if name.eq_ignore_ascii_case(b"SCRIPT_NAME") {
                    self.script_name = Some(field.value);
                }
            } else {
                match policy.header_map {
                    HeaderMap::Drop => return Ok(()),
                    HeaderMap::Refuse => {
                        return Err(Refusal::quoting(400, "a field name has an underscore", name));
                    }
                    HeaderMap::Dangerous => {}
                }
            }
        } else {
            match (name.len(), name.first().map_or(0, |byte| byte | 0x20)) {
                (4, b'h') if scan::is_name(name, b"host") => {
                    if seen.host.replace(self.fields.len()).is_some() {
                        return Err(Refusal::new(400, "there is more than one Host field"));
                    }
                    if !value.is_empty() && !is_host(value) {
                        return Err(Refusal::quoting(400, "invalid Host", value));
                    }
                }
                (10, b'c') if scan::is_name(name, b"connection") => {
                    for option in scan::list(value) {
                        seen.close |= option.eq_ignore_ascii_case(b"close");
                        seen.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                    }
                }
                (14, b'c') if scan::is_name(name, b"content-length") => {
                    if std::mem::replace(&mut seen.content_length, true) {
                        return Err(Refusal::new(400, "there is more than one Content-Length field"));
                    }
                    match scan::decimal(value) {
                        Some(length) if length <= LENGTH_MAX => self.content_length = Some(length),
                        _ => return Err(Refusal::quoting(400, "invalid Content-Length", value)),
                    }
                }
                (17, b't') if scan::is_name(name, b"transfer-encoding") => {
                    let before = seen.transfer_encoding.replace(field.value);
                    if before.is_some() {
                        return Err(Refusal::new(400, "there is more than one Transfer-Encoding field"));
                    }
                }
                (12, b'c') if scan::is_name(name, b"content-type") => {
                    let before = std::mem::replace(&mut seen.content_type, true);
                    if before {
                        return Err(Refusal::new(400, "there is more than one Content-Type field"));
                    }
                }
                (6, b'e') if scan::is_name(name, b"expect") => {
                    if !value.eq_ignore_ascii_case(b"100-continue") {
                        return Err(Refusal::quoting(417, "unknown expectation", value));
                    }
                    seen.expects = true;
                }
                // An application would find it as HTTP_PROXY, which libraries of the CGI age take
                // for the proxy of their own requests ("httpoxy").
                (5, b'p') if scan::is_name(name, b"proxy") => return Ok(()),
                _ => {}
            }
        }
        self.fields.push(field);
        Ok(())
    }

    /// Takes the scheme from a trusted peer's field.
    ///
    /// # Source
    /// gunicorn's setting `secure_scheme_headers`: another value than the one listed means http,
    /// and two fields that disagree are refused.
    fn take_scheme(&mut self, name: &[u8], value: &[u8], policy: &Policy) -> Result<(), Refusal> {
        for (known, secure) in &policy.secure_scheme_headers {
            if known.as_bytes().eq_ignore_ascii_case(name) {
                let scheme = if value == secure.as_bytes() { Scheme::Https } else { Scheme::Http };
                if self.scheme_override.replace(scheme).is_some_and(|before| before != scheme) {
                    return Err(Refusal::new(400, "the scheme headers contradict each other"));
                }
            }
        }
        Ok(())
    }

    #[inline]
    fn decide_host(&mut self, host: Option<usize>, authority: Option<Span>) -> Result<(), Refusal> {
        let Some(index) = host else {
            return match self.version {
                Version::Http10 => Ok(()),
                Version::Http11 => Err(Refusal::new(400, "there is no Host field")),
            };
        };
        // RFC 9112 section 3.2.2: the authority of the target counts, the Host field does not.
        if let (Some(authority), Some(field)) = (authority, self.fields.get_mut(index)) {
            field.value = authority;
        }
        Ok(())
    }

    /// Decides where the body ends.
    ///
    /// # Source
    /// RFC 9112 section 6.3. It lets a server repair some of these; a proxy in front might repair
    /// them the other way, so all are refused.
    #[inline]
    fn decide_framing(
        &mut self,
        seen: &Seen,
        lines: &[u8],
        offset: usize,
        policy: &Policy,
    ) -> Result<(), Refusal> {
        if let Some(coding) = seen.transfer_encoding {
            let coding = lines
                .get((coding.start as usize).wrapping_sub(offset)..(coding.end as usize).wrapping_sub(offset))
                .unwrap_or_default();
            if seen.content_length {
                return Err(Refusal::new(400, "Content-Length and Transfer-Encoding are both present"));
            }
            if self.version == Version::Http10 {
                return Err(Refusal::new(400, "Transfer-Encoding in an HTTP/1.0 request"));
            }
            if !coding.eq_ignore_ascii_case(b"chunked") {
                return Err(refuse_coding(coding));
            }
            self.framing = Framing::Chunked;
        } else if let Some(length @ 1..) = self.content_length {
            if policy.body_bytes_max != 0 && length > policy.body_bytes_max {
                return Err(Refusal::new(413, "the request body is larger than limit_request_body"));
            }
            self.framing = Framing::Length(length);
        }
        Ok(())
    }
}

fn check_method(method: &[u8], policy: &Policy) -> Result<(), Refusal> {
    // Nearly all are one of these, and need no look at each letter.
    if !matches!(method, b"GET" | b"POST" | b"HEAD")
        && !policy.permit_unconventional_http_method
        && (!METHOD_LEN.contains(&method.len())
            || method.iter().any(|byte| byte.is_ascii_lowercase() || *byte == b'#'))
    {
        return Err(Refusal::quoting(400, "invalid request method", method));
    }
    Ok(())
}

const NO_LINE: Refusal = Refusal::new(400, "there is no request line");
const BARE_LF: Refusal = Refusal::new(400, "a line of the request head ends with LF alone");
const LONG_LINE: Refusal = Refusal::new(414, "the request line is longer than limit_request_line");
const LONG_FIELD: Refusal = Refusal::new(431, "a field is longer than limit_request_field_size");

/// Searches for the empty line that ends a head, from where `scanned` says. `rest` lies at `offset`
/// of the bytes that `scanned` counts. Also checks the lines on the way, so that a peer whose head
/// never ends is refused when it goes wrong and not when it has filled a buffer.
fn find_end(
    rest: &[u8],
    offset: usize,
    scanned: &mut usize,
    policy: &Policy,
) -> Result<Option<usize>, Refusal> {
    let from = scanned.saturating_sub(offset).min(rest.len());
    let check = |line_start: usize, bytes: usize| {
        if line_start == 0 {
            if bytes > policy.line_limit().saturating_add(2) { Err(LONG_LINE) } else { Ok(()) }
        } else if bytes > policy.field_limit() {
            Err(LONG_FIELD)
        } else {
            Ok(())
        }
    };
    let mut line_start = memrchr(b'\n', &rest[..from]).map_or(0, |lf| lf + 1);
    for lf in memchr_iter(b'\n', &rest[from..]) {
        let end = from + lf + 1;
        let line = &rest[line_start..end];
        if !line.ends_with(b"\r\n") {
            return Err(BARE_LF);
        }
        if line.len() == 2 {
            if line_start == 0 {
                return Err(NO_LINE);
            }
            return Ok(Some(end));
        }
        check(line_start, line.len())?;
        line_start = end;
    }
    check(line_start, rest.len() - line_start)?;
    *scanned = offset + rest.len();
    Ok(None)
}

/// Says why httparse refused `lines`, in gunicorn's order: the length of the line comes first.
#[cold]
fn explain(error: httparse::Error, lines: &[u8], policy: &Policy) -> Refusal {
    let line = &lines[..memchr(b'\n', lines).unwrap_or(lines.len())];
    if line.len() > policy.line_limit().saturating_add(1) {
        return LONG_LINE;
    }
    match error {
        httparse::Error::Token => {
            let method_len = memchr(b' ', line).unwrap_or(line.len());
            if scan::is_token(&line[..method_len]) && method_len < line.len() {
                Refusal::quoting(400, "invalid request target", &line[method_len + 1..])
            } else {
                Refusal::quoting(400, "invalid request method", &line[..method_len])
            }
        }
        httparse::Error::Version => Refusal::quoting(400, "invalid HTTP version in", line),
        httparse::Error::NewLine => Refusal::new(400, "invalid end of a line in the request head"),
        httparse::Error::HeaderName => Refusal::new(400, "invalid field name, or a folded field"),
        httparse::Error::HeaderValue => Refusal::new(400, "invalid character in a field value"),
        httparse::Error::TooManyHeaders => Refusal::new(431, "more fields than limit_request_fields"),
        httparse::Error::Status => Refusal::new(400, "the request head is malformed"),
    }
}

/// Refuses a Transfer-Encoding other than `chunked`: 501 if the message can be delimited but not
/// decoded, 400 if nobody can know where it ends (RFC 9112 section 6.1 and 6.3).
#[cold]
fn refuse_coding(value: &[u8]) -> Refusal {
    let is_chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
    let mut codings = scan::list(value).collect::<Vec<_>>();
    let last = codings.pop().unwrap_or_default();
    if is_chunked(last) && codings.iter().all(|coding| scan::is_token(coding) && !is_chunked(coding)) {
        Refusal::quoting(501, "transfer codings other than chunked are not supported", value)
    } else {
        Refusal::quoting(400, "invalid Transfer-Encoding", value)
    }
}

/// Whether `value` is `uri-host [ ":" port ]` (RFC 9110 section 7.2).
///
/// # Source
/// RFC 3986 section 3.2.2. Of `IP-literal` only IPv6 is accepted: no other was ever defined.
#[inline]
fn is_host(value: &[u8]) -> bool {
    let (host_ok, port) = if let [b'[', rest @ ..] = value {
        let Some(end) = memchr(b']', rest) else { return false };
        let address = std::str::from_utf8(&rest[..end]).ok().and_then(|text| text.parse::<Ipv6Addr>().ok());
        (address.is_some(), &rest[end + 1..])
    } else {
        let end = scan::reg_name_len(value);
        (end > 0, &value[end..])
    };
    host_ok
        && match port {
            [] | [b':'] => true,
            [b':', digits @ ..] => scan::decimal(digits).is_some_and(|port| port <= u64::from(u16::MAX)),
            _ => false,
        }
}

/// Rewrites the head at the beginning of `input` in place, as far as gunicorn's lenient settings
/// ask for it: folded lines are joined, blanks before a colon move behind it, the method becomes
/// upper-case. No length changes. Without this call [`Head::parse`] refuses all of them, whatever
/// the policy says; so only connections under such a policy ([`Policy::is_relaxed`]) pay for it.
/// Call it before each [`Head::parse`] of a head, with the same bytes and the same `scanned`.
///
/// # Source
/// RFC 9112 section 5.2 (a fold is replaced by blanks); gunicorn's settings
/// `permit_obsolete_folding`, `strip_header_spaces`, `casefold_http_method`.
pub fn relax(input: &mut [u8], scanned: usize, policy: &Policy) {
    let start = if input.starts_with(b"\r\n") { 2 } else { 0 };
    // The last LF of the bytes that were there before may be a fold by the bytes that have come.
    let known = scanned.saturating_sub(1).clamp(start, input.len().max(start));
    let mut line_start =
        input.get(start..known).and_then(|old| memrchr(b'\n', old)).map_or(start, |lf| start + lf + 1);
    let mut is_request_line = line_start == start;
    if policy.casefold_http_method && is_request_line {
        let method = input.iter_mut().skip(start).take_while(|byte| scan::is_token_byte(**byte));
        method.for_each(|byte| byte.make_ascii_uppercase());
    }
    let mut searched = line_start;
    while let Some(len) = memchr(b'\n', &input[searched..]) {
        let lf = searched + len;
        searched = lf + 1;
        if !input[line_start..lf].ends_with(b"\r") || line_start + 1 == lf {
            return;
        }
        let is_folded = !is_request_line && matches!(input.get(lf + 1), Some(b' ' | b'\t'));
        // A fold continues a value: it does not bring the colon.
        let is_folded =
            is_folded && policy.permit_obsolete_folding && memchr(b':', &input[line_start..lf]).is_some();
        if is_folded {
            input[lf - 1..=lf].fill(b' ');
            continue;
        }
        if policy.strip_header_spaces && !is_request_line {
            let line = &mut input[line_start..lf];
            if let Some(colon) = memchr(b':', line) {
                let name_len = line[..colon].iter().rposition(|byte| !matches!(byte, b' ' | b'\t'));
                if let Some(last) = name_len.filter(|last| last + 1 < colon) {
                    line[colon] = b' ';
                    line[last + 1] = b':';
                }
            }
        }
        is_request_line = false;
        line_start = lf + 1;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use proptest::prelude::*;

    use super::*;

    /// What a head says, with texts instead of spans.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    struct Said {
        len: usize,
        method: String,
        target: String,
        path: String,
        query: String,
        version: Version,
        fields: Vec<(String, String)>,
        framing: Framing,
        content_length: Option<u64>,
        keep_alive: bool,
        expect_continue: bool,
        scheme: Option<Scheme>,
        script_name: Option<String>,
        is_head: bool,
    }

    impl Said {
        fn field(&self, name: &str) -> Option<&str> {
            self.fields.iter().find(|field| field.0 == name).map(|field| field.1.as_str())
        }
    }

    fn said(head: &Head, input: &[u8], len: usize) -> Said {
        let text = |span: Span| span.of(input).iter().copied().map(char::from).collect::<String>();
        Said {
            len,
            method: text(head.method),
            target: text(head.target),
            path: text(head.path),
            query: text(head.query),
            version: head.version,
            fields: head.fields.iter().map(|field| (text(field.name), text(field.value))).collect(),
            framing: head.framing,
            content_length: head.content_length,
            keep_alive: head.keep_alive,
            expect_continue: head.expect_continue,
            scheme: head.scheme_override,
            script_name: head.script_name.map(text),
            is_head: head.is_head,
        }
    }

    fn once(input: &[u8], policy: &Policy, trusted: bool) -> Result<Option<Said>, u16> {
        let mut head = Head::default();
        match head.parse(input, &mut 0, policy, trusted) {
            Ok(len) => Ok(len.map(|len| said(&head, input, len))),
            Err(refusal) => Err(refusal.status),
        }
    }

    /// Parses `input` as it grows to the given lengths, then whole, with one `Head` for all.
    fn growing(
        input: &[u8],
        lengths: impl Iterator<Item = usize>,
        policy: &Policy,
        trusted: bool,
    ) -> Result<Option<Said>, u16> {
        let (mut head, mut scanned) = (Head::default(), 0);
        for len in lengths.chain([input.len()]) {
            let bytes = &input[..len];
            match head.parse(bytes, &mut scanned, policy, trusted) {
                Ok(None) => {}
                Ok(Some(consumed)) => return Ok(Some(said(&head, bytes, consumed))),
                Err(refusal) => return Err(refusal.status),
            }
        }
        Ok(None)
    }

    /// Parses `input` whole, byte by byte, and cut in two at every byte, with a pipelined request
    /// behind it; all must agree.
    fn parse_with(input: &[u8], policy: &Policy, trusted: bool) -> Result<Said, u16> {
        let whole = once(input, policy, trusted);
        let all = [input, b"GET /smuggled HTTP/1.1\r\nHost: b\r\n\r\n"].concat();
        let label = input.escape_ascii();
        assert_eq!(once(&all, policy, trusted), whole, "{label} with a request behind it");
        assert_eq!(growing(&all, 0..all.len(), policy, trusted), whole, "{label} byte by byte");
        for cut in 0..input.len() {
            assert_eq!(growing(&all, [cut].into_iter(), policy, trusted), whole, "{label} cut at {cut}");
        }
        if let Ok(Some(said)) = &whole {
            assert_eq!(said.len, input.len(), "{label}");
        }
        whole.map(|said| said.expect("the head is complete"))
    }

    fn parse(input: &[u8]) -> Result<Said, u16> {
        parse_with(input, &Policy::default(), false)
    }

    fn get(fields: &[u8]) -> Vec<u8> {
        [b"GET /e HTTP/1.1\r\nHost: bench.example\r\n", fields, b"\r\n"].concat()
    }

    fn target(target: &str) -> Result<Said, u16> {
        parse(format!("GET {target} HTTP/1.1\r\nHost: bench.example\r\n\r\n").as_bytes())
    }

    fn assert_refused<'a>(status: u16, inputs: impl IntoIterator<Item = &'a [u8]>) {
        for input in inputs {
            assert_eq!(parse(input), Err(status), "{}", input.escape_ascii());
        }
    }

    #[test]
    fn a_request_is_taken_apart() {
        let said =
            parse(b"GET /a/b%20c?d=e&f HTTP/1.1\r\nHost: a.example:80\r\nX-A:\t b c \t\r\nx-b:\r\n\r\n")
                .unwrap();
        assert_eq!((said.method.as_str(), said.target.as_str()), ("GET", "/a/b%20c?d=e&f"));
        assert_eq!((said.path.as_str(), said.query.as_str()), ("/a/b%20c", "d=e&f"));
        assert_eq!((said.version, said.framing), (Version::Http11, Framing::None));
        let fields = [("Host", "a.example:80"), ("X-A", "b c"), ("x-b", "")];
        assert_eq!(said.fields, fields.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert!(said.keep_alive && !said.expect_continue && !said.is_head);
        assert_eq!(parse(b"GET /e HTTP/1.0\r\n\r\n").unwrap().version, Version::Http10);
    }

    /// RFC 9112 section 2.2: one empty line in front is forgiven, as by gunicorn.
    #[test]
    fn one_empty_line_in_front_is_ignored() {
        let said = parse(b"\r\nPOST /e HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n").unwrap();
        assert_eq!(
            (said.method.as_str(), said.field("Host"), said.content_length),
            ("POST", Some("a"), Some(3))
        );
        assert_refused(
            400,
            [&b"\r\n\r\nGET /e HTTP/1.1\r\nHost: a\r\n\r\n"[..], b"\nGET /e HTTP/1.1\r\nHost: a\r\n\r\n"],
        );
        assert_eq!(once(b"\r\n\r\n", &Policy::default(), false), Err(400));
        assert_eq!(once(b"\r\n", &Policy::default(), false), Ok(None));
        assert_eq!(once(&b"\r\n".repeat(50_000), &Policy::default(), false), Err(400));
    }

    #[test]
    fn targets_are_split_and_not_decoded() {
        for (given, path, query) in [
            ("/a?", "/a", ""),
            ("/a?b?c", "/a", "b?c"),
            ("/a?b=/c/../d", "/a", "b=/c/../d"),
            ("/a%3Fb?c", "/a%3Fb", "c"),
            ("///x", "///x", ""),
            ("/a:80/b;v=1,c", "/a:80/b;v=1,c", ""),
            ("/a#b?c", "/a", ""),
            ("/a?b#c?d", "/a", "b"),
            ("http://bench.example/a?b", "/a", "b"),
            ("HTTPS://bench.example:443/a#b", "/a", ""),
            ("http://bench.example//evil.example/x", "//evil.example/x", ""),
            ("http://bench.example", "/", ""),
            ("https://bench.example", "/", ""),
            ("http://bench.example?b", "/", "b"),
            ("https://bench.example#b", "/", ""),
        ] {
            let said = target(given).unwrap();
            assert_eq!((said.target.as_str(), said.path.as_str(), said.query.as_str()), (given, path, query));
        }
        let said = parse(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        assert_eq!((said.path.as_str(), said.query.as_str()), ("*", ""));
    }

    /// RFC 9112 section 3.2: what is none of the four forms is refused and not corrected.
    #[test]
    fn other_targets_are_refused() {
        for given in [
            "",
            "a/b",
            "?a=b",
            "*",
            "*/a",
            "/a b",
            "http:///a",
            "http://",
            "http:/a",
            "ftp://a/b",
            "http://u@a/b",
            "http://a b/",
            "http://a:x/",
            "//[::1",
            "http://[::1/",
            "bench.example:80",
            "/caf\u{e9}",
            "/a\u{7f}",
        ] {
            let accepted = given == "//[::1";
            assert_eq!(target(given).map(|_| ()), if accepted { Ok(()) } else { Err(400) }, "{given}");
        }
        assert_refused(
            400,
            [
                &b"GET /caf\xe9 HTTP/1.1\r\nHost: a\r\n\r\n"[..],
                b"OPTIONS */a HTTP/1.1\r\nHost: a\r\n\r\n",
                b"GET /a\rb HTTP/1.1\r\nHost: a\r\n\r\n",
                b"GET /a\x00b HTTP/1.1\r\nHost: a\r\n\r\n",
            ],
        );
        for control in (0..=32).chain([127]) {
            let input = [b"GET /a", &[control][..], b"b HTTP/1.1\r\nHost: a\r\n\r\n"].concat();
            assert!(once(&input, &Policy::default(), false).is_err(), "{control:#x}");
        }
    }

    /// RFC 9112 section 3.2.2: the Host field must not contradict the target.
    #[test]
    fn an_absolute_target_replaces_the_host() {
        let said = parse(b"GET http://target.example:81/a HTTP/1.1\r\nX: y\r\nHost: header.example\r\n\r\n")
            .unwrap();
        assert_eq!((said.field("Host"), said.field("X")), (Some("target.example:81"), Some("y")));
        assert_eq!(parse(b"GET http://bench.example/a HTTP/1.1\r\n\r\n"), Err(400));
        assert_eq!(parse(b"GET http://bench.example/a HTTP/1.0\r\n\r\n").unwrap().path, "/a");
    }

    #[test]
    fn broken_request_lines_are_refused() {
        assert_refused(
            400,
            [
                &b"GET /e  HTTP/1.1\r\nHost: a\r\n\r\n"[..],
                b"GET  /e HTTP/1.1\r\nHost: a\r\n\r\n",
                b"GET  HTTP/1.1\r\nHost: a\r\n\r\n",
                b"GET\r/e\rHTTP/1.1\r\nHost: a\r\n\r\n",
                b" GET /e HTTP/1.1\r\nHost: a\r\n\r\n",
                b"GET /e HTTP/1.1 x\r\nHost: a\r\n\r\n",
                b"GET /e HTTP/1.1 \r\nHost: a\r\n\r\n",
                b"GET\r\n\r\n",
                b"GET /e\r\n\r\n",
                b"GET /e\r\nGET /smuggled HTTP/1.1\r\n\r\n",
                b"GET /e \r\nHost: a\r\n\r\n",
                b"GET: /e HTTP/1.1\r\nHost: a\r\n\r\n",
                b"GET /e HTTP/1.1\rHost: a\r\n\r\n",
                b"GET /e HTTP/1.1\r\r\nHost: a\r\n\r\n",
                b"GET /e\nHTTP/1.1\r\nHost: a\r\n\r\n",
                b"GET\x00/e HTTP/1.1\r\nHost: a\r\n\r\n",
                b"GET /e HTTP/1.1\x00\r\nHost: a\r\n\r\n",
                b"\xef\xbb\xbfGET /e HTTP/1.1\r\nHost: a\r\n\r\n",
                b"GET\xdf /e HTTP/1.1\r\nHost: a\r\n\r\n",
                b"GARBAGE\r\n\r\n",
                b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                b"\x16\x03\x01\x00\xf5\x01\r\n\r\n",
                b"\r\n\r\n\x00\r\nQUIT\n",
                b"*1\r\n$4\r\nPING\r\n\r\n",
                b"EHLO bench.example\r\nMAIL FROM:<a@b>\r\n\r\n",
                b"INVITE sip:a@b SIP/2.0\r\nVia: SIP/2.0/TCP a\r\n\r\n",
                b"OPTIONS rtsp://a/b RTSP/1.0\r\nCSeq: 1\r\n\r\n",
            ],
        );
    }

    /// gunicorn's rule; `permit_unconventional_http_method` lifts it.
    #[test]
    fn methods_are_conventional_unless_permitted() {
        let request = |method: &str| format!("{method} /e HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes();
        for method in ["GET", "PROPFIND", "FROBNICATE", "MY_METHOD", "ABCDEFGHIJKLMNOPQRST", "A-B"] {
            assert_eq!(parse(&request(method)).unwrap().method, method);
        }
        let permissive = Policy { permit_unconventional_http_method: true, ..Policy::default() };
        for method in ["GE", "Post", "get", "A#B", "ABCDEFGHIJKLMNOPQRSTU", "!#$%&'*+-.^_`|~09AZaz"] {
            assert_eq!(parse(&request(method)), Err(400), "{method}");
            assert_eq!(parse_with(&request(method), &permissive, false).unwrap().method, method);
        }
        assert_eq!(parse_with(&request("G(T"), &permissive, false), Err(400));
        assert!(parse(&request("HEAD")).unwrap().is_head);
        assert_eq!(parse(b"CONNECT a.example:80 HTTP/1.1\r\nHost: a.example:80\r\n\r\n"), Err(501));
        assert_eq!(parse(&request("CONNECT")), Err(501));
    }

    #[test]
    fn versions_are_1_0_and_1_1_and_later_minors() {
        let request = |version: &str| format!("GET /e {version}\r\nHost: a\r\nX: y\r\n\r\n").into_bytes();
        for version in ["HTTP/1.1", "HTTP/1.2", "HTTP/1.9"] {
            let said = parse(&request(version)).unwrap();
            assert_eq!(
                (said.version, said.path.as_str(), said.field("X")),
                (Version::Http11, "/e", Some("y"))
            );
        }
        let permissive = Policy { permit_unconventional_http_version: true, ..Policy::default() };
        for version in ["HTTP/0.9", "HTTP/2.0", "HTTP/3.0", "HTTP/9.9"] {
            assert_eq!(parse(&request(version)), Err(400), "{version}");
            let version = parse_with(&request(version), &permissive, false).unwrap().version;
            assert!(matches!(version, Version::Http10 | Version::Http11));
        }
        for version in [
            "http/1.1",
            "HTTP /1.1",
            "HTTP/ 1.1",
            "HTTP/1 .1",
            "HTTP/1. 1",
            "HTTP/\t1.1",
            "HTTP/1.10",
            "HTTP/11.1",
            "HTTP/1",
            "HTTP/1.",
            "HTTP/.1",
            "HTTPS/1.1",
            "HTTP/1.x",
            "HTTP/1.2x",
            "HTTP/+1.1",
            "",
        ] {
            assert_eq!(parse(&request(version)), Err(400), "{version}");
            assert_eq!(parse_with(&request(version), &permissive, false), Err(400), "{version}");
        }
    }

    /// RFC 9112 section 2.2 and 5: ways to make two parsers see different fields.
    #[test]
    fn broken_field_lines_are_refused() {
        for lines in [
            &b"X-A : b\r\n"[..],
            b"X-A\t: b\r\n",
            b":\r\n",
            b": b\r\n",
            b"X-A\r\n",
            b"Content-Length 5\r\n",
            b"X-A: b\r\n c\r\n",
            b"X-A: b\r\n\tc\r\n",
            b"X-A:\r\n b\r\n",
            b"X-A: b\nX-B: c\r\n",
            b"X-A: b\n",
            b"X-A:\nX-B: c\r\n",
            b"X-A: b\rX-B: c\r\n",
            b"X-A: b\r\r\nX-B: c\r\n",
            b"X-A: b\n\rGET / HTTP/1.1\r\n",
            b"X-A: b\x00\r\n",
            b"X\xe9: b\r\n",
            b"X A: b\r\n",
        ] {
            assert_eq!(parse(&get(lines)), Err(400), "{}", lines.escape_ascii());
        }
        assert_refused(
            400,
            [
                &b"GET /e HTTP/1.1\nHost: a\r\n\r\n"[..],
                b"GET /e HTTP/1.1\n\n",
                b"GET /e HTTP/1.1\r\nHost: a\n\r\n",
                b"GET /e HTTP/1.1\r\nHost: a\r\n\n",
                b"GET /e HTTP/1.0\n\r\n",
                b"GET /e HTTP/1.0\r\n\n",
                b"GET /e HTTP/1.1\r\n X-A: b\r\nHost: a\r\n\r\n",
                b"GET /e HTTP/1.1\r\n\tX-A: b\r\nHost: a\r\n\r\n",
                b"GET /e HTTP/1.1\r\n  \r\nHost: a\r\n\r\n",
            ],
        );
        for control in (0..32).filter(|byte| *byte != 9).chain([127]) {
            let line = [b"X-A: b", &[control][..], b"c\r\n"].concat();
            assert!(once(&get(&line), &Policy::default(), false).is_err(), "{control:#x} in a value");
            let line = [b"X", &[control][..], b"A: b\r\n"].concat();
            assert!(once(&get(&line), &Policy::default(), false).is_err(), "{control:#x} in a name");
        }
    }

    #[test]
    fn names_are_tokens_and_values_are_opaque() {
        let said =
            parse(&get(b"X!#$%&'*+-.^`|~9: b\r\nX-B: b:c::d\r\nX-C: caf\xc3\xa9 \xff\r\nClose: b\r\n"))
                .unwrap();
        assert_eq!((said.field("X!#$%&'*+-.^`|~9"), said.field("X-B")), (Some("b"), Some("b:c::d")));
        assert_eq!((said.field("X-C"), said.field("Close")), (Some("caf\u{c3}\u{a9} \u{ff}"), Some("b")));
    }

    #[test]
    fn there_is_one_valid_host() {
        let host = |value: &str| format!("GET /e HTTP/1.1\r\nHost:{value}\r\n\r\n").into_bytes();
        for value in [
            "a",
            "Bench.Example:1234",
            "a:",
            "10.0.0.1:80",
            "[::1]",
            "[2001:db8::1]:443",
            "%41.example",
            "a_b",
            "",
            "a!b;c",
        ] {
            assert_eq!(parse(&host(&format!(" {value}"))).unwrap().field("Host"), Some(value));
        }
        for value in [
            "a.example/b",
            "a?b",
            "a#b",
            "http://a",
            "a\\b",
            "2001:db8::1",
            "a b",
            "a, b",
            "u@a",
            "a:b",
            "a:-1",
            "a:65536",
            ":80",
            "[::1",
            "[::1]80",
            "[x]",
            "[]",
            "a\"b",
            "a<b",
            "a>b",
            "a^b",
            "a`b",
            "a{b",
            "a|b",
            "a}b",
            "caf\u{e9}",
            "a:80:80",
        ] {
            assert_eq!(parse(&host(&format!(" {value}"))), Err(400), "{value}");
        }
        assert_refused(
            400,
            [
                &b"GET /e HTTP/1.1\r\nX-A: b\r\n\r\n"[..],
                b"GET /e HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
                b"GET /e HTTP/1.0\r\nHost: a\r\nX: y\r\nhOST: b\r\n\r\n",
            ],
        );
    }

    #[test]
    fn a_length_is_one_decimal_number() {
        let length = |value: &str| parse(&get(format!("Content-Length:{value}\r\n").as_bytes()));
        for (value, number) in [(" 5", 5), ("5", 5), (" 05", 5), ("\t9223372036854775807 ", i64::MAX as u64)]
        {
            let said = length(value).unwrap();
            assert_eq!((said.content_length, said.framing), (Some(number), Framing::Length(number)));
        }
        let said = length(" 0").unwrap();
        assert_eq!((said.content_length, said.framing), (Some(0), Framing::None));
        for value in [
            "",
            "  ",
            " +5",
            " -5",
            " -0",
            " 0x5",
            " 0 5",
            " \"5\"",
            " five",
            " 5, 5",
            " 5,5",
            " 5;",
            " 5.0",
            " 1_0",
            " 9223372036854775808",
            " 18446744073709551621",
            " 999999999999999999999999999999",
            " \u{b2}",
        ] {
            assert_eq!(length(value).map(|_| ()), Err(400), "{value}");
        }
        for (one, other) in [("5", "5"), ("5", "05"), ("5", "6"), ("", "5"), ("0", "44")] {
            let lines = format!("Content-Length: {one}\r\nX: y\r\ncontent-LENGTH: {other}\r\n");
            assert_eq!(parse(&get(lines.as_bytes())), Err(400), "{lines}");
        }
        assert_eq!(parse(&get(b"Content_Length: 5\r\n")).unwrap().framing, Framing::None);
    }

    #[test]
    fn the_body_limit_holds_from_both_sides() {
        let policy = Policy { body_bytes_max: 10, ..Policy::default() };
        assert!(parse_with(&get(b"Content-Length: 10\r\n"), &policy, false).is_ok());
        assert_eq!(parse_with(&get(b"Content-Length: 11\r\n"), &policy, false), Err(413));
    }

    /// RFC 9112 section 6.1 and 6.3. Whatever is not exactly `chunked` is refused.
    #[test]
    fn chunked_is_the_only_transfer_coding() {
        let coding = |value: &[u8]| parse(&get(&[b"Transfer-Encoding:", value, b"\r\n"].concat()));
        for value in [&b" chunked"[..], b"chunked", b"\tChunKed "] {
            assert_eq!(coding(value).unwrap().framing, Framing::Chunked);
        }
        for value in [&b" gzip, chunked"[..], b" identity,chunked", b" frobnicate , chunked"] {
            assert_eq!(coding(value), Err(501), "{}", value.escape_ascii());
        }
        for value in [
            &b""[..],
            b" identity",
            b" gzip",
            b" chunked, gzip",
            b" chunked, chunked",
            b" chunked;",
            b" chunked;a=b",
            b" xchunked",
            b" x chunked",
            b" ,chunked",
            b" chunked,",
            b" \xa0chunked",
            b" chunked\x85",
            b" \"chunked\"",
            b" chun\xe2\x84\xaaed",
            b" chunked\xff",
            b" gzip chunked",
        ] {
            assert_eq!(coding(value), Err(400), "{}", value.escape_ascii());
        }
        for lines in [
            &b"Transfer-Encoding: chunked\r\nContent-Length: 15\r\n"[..],
            b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
            b"Content-Length: 5\r\nTransfer-Encoding: identity\r\n",
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            b"Transfer-Encoding:\r\ntransfer-encoding: chunked\r\n",
            b"Transfer-Encoding: chunked\r\n , gzip\r\n",
            b"Transfer-\r\nEncoding: chunked\r\n",
        ] {
            assert_eq!(parse(&get(lines)), Err(400), "{}", lines.escape_ascii());
        }
        assert_refused(400, [&b"POST /e HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"[..]]);
        assert_eq!(
            parse(&get(b"Transfer_Encoding: chunked\r\nContent-Length: 5\r\n")).unwrap().framing,
            Framing::Length(5)
        );
    }

    #[test]
    fn connection_options_decide_whether_it_goes_on() {
        let kept = |version: &str, lines: &str| {
            parse(format!("GET /e HTTP/{version}\r\nHost: a\r\n{lines}\r\n").as_bytes()).unwrap().keep_alive
        };
        for (version, lines, expected) in [
            ("1.1", "", true),
            ("1.1", "Connection: close\r\n", false),
            ("1.1", "connection: CLOSE\r\n", false),
            ("1.1", "Connection: keep-alive, close\r\n", false),
            ("1.1", "Connection: te ,\tClose , x\r\n", false),
            ("1.1", "Connection: x\r\nConnection: close\r\n", false),
            ("1.1", "Connection: closed\r\n", true),
            ("1.1", "Connection: \"close\"\r\n", true),
            ("1.1", "Connection: Upgrade\r\nUpgrade: websocket\r\n", true),
            ("1.1", "Connection: Content-Length, keep-alive\r\n", true),
            ("1.0", "", false),
            ("1.0", "Connection: Keep-Alive\r\n", true),
            ("1.0", "Connection: keep-alive, close\r\n", false),
            ("1.0", "Connection: close\r\nConnection: keep-alive\r\n", false),
            ("1.0", "Connection: keep\r\n", false),
        ] {
            assert_eq!(kept(version, lines), expected, "{version} {lines}");
        }
    }

    /// RFC 9110 section 10.1.1.
    #[test]
    fn only_100_continue_can_be_expected() {
        let expects = |lines: &str| parse(&get(lines.as_bytes())).map(|said| said.expect_continue);
        assert_eq!(expects("Expect: 100-Continue\r\nContent-Length: 5\r\n"), Ok(true));
        assert_eq!(expects("Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n"), Ok(true));
        // Nothing will be sent that would have to wait.
        assert_eq!(expects("Expect: 100-continue\r\n"), Ok(false));
        assert_eq!(expects("Expect: 100-continue\r\nContent-Length: 0\r\n"), Ok(false));
        for value in ["", "frobnicate", "100-continue, frobnicate", "100-continue;a"] {
            assert_eq!(expects(&format!("Expect: {value}\r\n")), Err(417), "{value}");
        }
        let old = b"POST /e HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
        assert!(!parse(old).unwrap().expect_continue);
    }

    /// RFC 3875 section 4.1.18: `X_Real_User` and `X-Real-User` would be one variable.
    #[test]
    fn names_with_underscores_follow_header_map() {
        let input = get(b"X-Real-User: good\r\nX_Real_User: evil\r\nProxy: evil\r\n");
        let said = parse(&input).unwrap();
        assert_eq!(said.fields.len(), 2);
        assert_eq!(
            (said.field("X-Real-User"), said.field("X_Real_User"), said.field("Proxy")),
            (Some("good"), None, None)
        );
        let refuse = Policy { header_map: HeaderMap::Refuse, ..Policy::default() };
        assert_eq!(parse_with(&input, &refuse, true), Err(400));
        let dangerous = Policy { header_map: HeaderMap::Dangerous, ..Policy::default() };
        assert_eq!(parse_with(&input, &dangerous, false).unwrap().field("X_Real_User"), Some("evil"));
    }

    /// gunicorn's settings `forwarder_headers` and `forwarded_allow_ips`.
    #[test]
    fn forwarder_headers_are_believed_from_trusted_peers_only() {
        let input = get(b"script_name: /app\r\nREMOTE_USER: root\r\n");
        let policy = Policy::default();
        let said = parse_with(&input, &policy, true).unwrap();
        assert_eq!((said.script_name.as_deref(), said.field("script_name")), (Some("/app"), Some("/app")));
        assert_eq!(said.field("REMOTE_USER"), None);
        let said = parse_with(&input, &policy, false).unwrap();
        assert_eq!((said.script_name, said.fields.len()), (None, 1));
        let all = Policy { forwarder_headers: vec!["*".to_owned()], ..Policy::default() };
        assert_eq!(parse_with(&input, &all, true).unwrap().field("REMOTE_USER"), Some("root"));
        assert_eq!(parse_with(&input, &all, false).unwrap().field("REMOTE_USER"), None);
        let dangerous = Policy { header_map: HeaderMap::Dangerous, ..Policy::default() };
        assert_eq!(parse_with(&input, &dangerous, false).unwrap().script_name, None);
    }

    /// gunicorn's setting `secure_scheme_headers`.
    #[test]
    fn the_scheme_is_believed_from_trusted_peers_only() {
        let scheme = |lines: &str, trusted| {
            parse_with(&get(lines.as_bytes()), &Policy::default(), trusted).map(|said| said.scheme)
        };
        assert_eq!(scheme("X-Forwarded-Proto: https\r\n", true), Ok(Some(Scheme::Https)));
        assert_eq!(scheme("X-Forwarded-Proto: http\r\n", true), Ok(Some(Scheme::Http)));
        assert_eq!(scheme("X-Forwarded-Proto: HTTPS\r\n", true), Ok(Some(Scheme::Http)));
        assert_eq!(
            scheme("X-Forwarded-Ssl: on\r\nX-Forwarded-Protocol: ssl\r\n", true),
            Ok(Some(Scheme::Https))
        );
        assert_eq!(scheme("X-Forwarded-Proto: https\r\nX-Forwarded-Ssl: off\r\n", true), Err(400));
        assert_eq!(scheme("X-Forwarded-Proto: https\r\nX-Forwarded-Ssl: off\r\n", false), Ok(None));
        assert_eq!(scheme("", true), Ok(None));
    }

    #[test]
    fn limits_hold_from_both_sides() {
        let line =
            |len: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(len - 14)).into_bytes();
        assert!(parse(&line(8190)).is_ok());
        assert_eq!(parse(&line(8191)), Err(414));
        let field = |len: usize| get(format!("X: {}\r\n", "v".repeat(len - 5)).as_bytes());
        assert!(once(&field(8190), &Policy::default(), false).is_ok());
        assert_eq!(once(&field(8191), &Policy::default(), false), Err(431));
        let fields = |count: usize| get("X: y\r\n".repeat(count - 1).as_bytes());
        assert!(parse(&fields(100)).is_ok());
        assert_eq!(parse(&fields(101)), Err(431));
        let few = Policy { fields_max: 2, ..Policy::default() };
        assert!(parse_with(&fields(2), &few, false).is_ok());
        assert_eq!(parse_with(&fields(3), &few, false), Err(431));
        let many = Policy { fields_max: 200, ..Policy::default() };
        assert_eq!(once(&fields(200), &many, false).unwrap().unwrap().fields.len(), 200);
        assert_eq!(once(&fields(201), &many, false), Err(431));
    }

    /// A peer that never ends its head is refused when a limit is passed, not when memory is.
    #[test]
    fn limits_hold_while_the_head_is_incomplete() {
        let policy =
            Policy { request_line_bytes_max: 100, fields_max: 3, field_bytes_max: 50, ..Policy::default() };
        let endless_line = [b"GET /".as_slice(), &[b'a'; 200]].concat();
        let endless_name = [b"GET / HTTP/1.1\r\n".as_slice(), &[b'a'; 200]].concat();
        let endless_value = [b"GET / HTTP/1.1\r\nX: ".as_slice(), &[b'a'; 200]].concat();
        for (input, status) in [(endless_line, 414), (endless_name, 431), (endless_value, 431)] {
            assert_eq!(once(&input, &policy, false), Err(status));
            assert_eq!(growing(&input, 0..input.len(), &policy, false), Err(status));
        }
        let endless_fields = [b"GET / HTTP/1.1\r\n".as_slice(), &b"a:b\r\n".repeat(100)].concat();
        assert_eq!(once(&endless_fields, &policy, false), Err(431));
        assert_eq!(growing(&endless_fields, 0..endless_fields.len(), &policy, false), Err(431));
        // Garbage is refused at once, not when it ends.
        assert_eq!(once(b"\x16\x03\x01", &policy, false), Err(400));
        assert_eq!(growing(b"GET / HTTP/1.1\nHost", 0..16, &policy, false), Err(400));
    }

    /// `scanned` belongs to one head: it is 0 again for the next one.
    #[test]
    fn pipelined_heads_follow_each_other() {
        let one = b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n";
        let input = one.repeat(3);
        let (mut head, mut scanned, mut at, mut found) = (Head::default(), 0, 0, 0);
        for end in 0..=input.len() {
            if let Some(len) = head.parse(&input[at..end], &mut scanned, &Policy::default(), false).unwrap() {
                assert_eq!((len, scanned), (one.len(), 0));
                at += len;
                found += 1;
            }
        }
        assert_eq!((found, at), (3, input.len()));
    }

    /// One client's request must leave nothing behind for the next one's.
    #[test]
    fn a_reused_head_forgets_the_request_before() {
        let policy = Policy::default();
        let full =
            b"HEAD http://b/c?d HTTP/1.0\r\nHost: a\r\nSCRIPT_NAME: /app\r\nX-Forwarded-Proto: https\r\n\
            Content-Length: 5\r\nConnection: keep-alive\r\n\r\n";
        let mut head = Head::default();
        head.parse(full, &mut 0, &policy, true).unwrap().unwrap();
        assert!(head.is_head && head.script_name.is_some() && head.scheme_override.is_some());
        let waiting = get(b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n");
        let (before, plain) = (head, get(b""));
        for first in [&full[..], &waiting] {
            let mut head = Head::default();
            head.parse(first, &mut 0, &policy, true).unwrap().unwrap();
            let len = head.parse(&plain, &mut 0, &policy, true).unwrap().unwrap();
            assert_eq!(Ok(Some(said(&head, &plain, len))), once(&plain, &policy, true));
        }
        // Also when it is refused before anything is known of it.
        let mut head = before;
        assert!(head.parse(b"\r\n\r\n", &mut 0, &policy, true).is_err());
        assert!(!head.is_head);
    }

    fn relaxed(input: &[u8], policy: &Policy) -> Result<Said, u16> {
        let mut bytes = input.to_vec();
        relax(&mut bytes, 0, policy);
        let whole = once(&bytes, policy, false);
        // Also when it comes byte by byte.
        let (mut head, mut scanned, mut bytes) = (Head::default(), 0, Vec::new());
        for byte in input {
            bytes.push(*byte);
            relax(&mut bytes, scanned, policy);
            match head.parse(&bytes, &mut scanned, policy, false) {
                Ok(None) => {}
                Ok(Some(len)) => {
                    assert_eq!(Ok(Some(said(&head, &bytes, len))), whole);
                    break;
                }
                Err(refusal) => {
                    assert_eq!(Err(refusal.status), whole);
                    break;
                }
            }
        }
        // And in two pieces: between a name and its colon, a piece was refused that had not been forgiven yet.
        for split in 1..input.len() {
            let (mut head, mut scanned, mut bytes) = (Head::default(), 0, input[..split].to_vec());
            relax(&mut bytes, scanned, policy);
            let first = head.parse(&bytes, &mut scanned, policy, false);
            if first == Ok(None) {
                bytes.extend_from_slice(&input[split..]);
                relax(&mut bytes, scanned, policy);
                let said = head
                    .parse(&bytes, &mut scanned, policy, false)
                    .map(|len| len.map(|len| said(&head, &bytes, len)));
                assert_eq!(said.map_err(|refusal| refusal.status), whole, "split at {split}");
            } else if let Err(refusal) = first {
                assert_eq!(Err(refusal.status), whole, "split at {split}");
            }
        }
        whole.map(|said| said.expect("the head is complete"))
    }

    /// gunicorn's lenient settings.
    #[test]
    fn relax_rewrites_what_the_policy_permits_and_nothing_else() {
        let folded = get(b"X-A: b\r\n c\r\n\t d\r\nX-B: e\r\n");
        let spaced = get(b"X-A \t: b\r\n");
        let after_empty_line = [b"\r\n", &folded[..]].concat();
        let lower = b"get /e HTTP/1.1\r\nHost: a\r\n\r\n";
        for input in [&folded[..], &spaced, lower] {
            assert_eq!(relaxed(input, &Policy::default()), Err(400));
        }
        let policy = Policy { permit_obsolete_folding: true, ..Policy::default() };
        let said = relaxed(&folded, &policy).unwrap();
        assert_eq!((said.field("X-A"), said.field("X-B")), (Some("b   c  \t d"), Some("e")));
        assert_eq!(relaxed(&after_empty_line, &policy).unwrap().fields, said.fields);
        assert_eq!(relaxed(&spaced, &policy), Err(400));
        // The request line cannot be folded, and the body is not part of the head.
        assert_eq!(relaxed(b"GET /e HTTP/1.1\r\n X: y\r\nHost: a\r\n\r\n", &policy), Err(400));
        let mut with_body = get(b"Content-Length: 4\r\n");
        with_body.extend_from_slice(b" a\r\n b\r\n c");
        let before = with_body.clone();
        relax(&mut with_body, 0, &policy);
        assert_eq!(with_body, before);
        let policy = Policy { strip_header_spaces: true, ..Policy::default() };
        assert_eq!(relaxed(&spaced, &policy).unwrap().field("X-A"), Some("b"));
        assert_eq!(relaxed(&get(b" : b\r\n"), &policy), Err(400));
        let policy = Policy { casefold_http_method: true, ..Policy::default() };
        assert_eq!(relaxed(lower, &policy).unwrap().method, "GET");
        assert!(policy.is_relaxed() && !Policy::default().is_relaxed());
        // The name was on the line before, which the settings together made one of.
        let policy = Policy { permit_obsolete_folding: true, strip_header_spaces: true, ..Policy::default() };
        for lines in [
            &b"Transfer-Encoding\r\n : chunked\r\n"[..],
            b"Content-Length\r\n : 3\r\n",
            b"X-A\r\n b\r\n\t: c\r\n",
        ] {
            assert_eq!(relaxed(&get(lines), &policy), Err(400));
        }
        let said = relaxed(&get(b"X-A :\r\n b\r\nX-B: c\r\n : d\r\n"), &policy).unwrap();
        assert_eq!((said.field("X-A"), said.field("X-B")), (Some("b"), Some("c   : d")));
    }

    proptest! {
        /// Any split gives the same answer, on requests that are nearly right. (While a head is
        /// incomplete, a damage in it may be noticed earlier or later.)
        #[test]
        fn any_split_gives_the_same_answer(
            parts in proptest::collection::vec(proptest::sample::select([
                "GET ", "POST ", "/a", "?b", " HTTP/1.1\r\n", " HTTP/1.0\r\n", " HTTP/1.5\r\n", "GET /a HTTP/1.1\r\nHost: a\r\n",
                "Host: a\r\n", "X-A: b\r\n", "X_A: b\r\n", "Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n",
                "Connection: close\r\n", "\r\n", "\r\n\r\n", "\n", "\r", " ", "\t", ":", "a", "\0", "\u{e9}", "http://b",
            ].to_vec()), 0..10),
            cuts in proptest::collection::vec(0_usize..40, 0..10),
        ) {
            let input = [parts.concat().as_bytes(), b"\r\n\r\n"].concat();
            let lengths = cuts.iter().scan(0, |at, cut| { *at += cut; Some(*at) }).take_while(|len| *len < input.len());
            prop_assert_eq!(growing(&input, lengths, &Policy::default(), true), once(&input, &Policy::default(), true));
        }
    }
}
