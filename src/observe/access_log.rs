//! The access log: `access_log_format` compiled once, then a line per request without allocating.
//!
//! Atoms, modifiers and defaults are gunicorn's. Values are untrusted bytes, so whatever could end
//! a quoted field or a line is escaped: `"` and `\` get a backslash, control characters and bytes
//! that are no UTF-8 become `\u00XX`. The result is one line whatever was sent, and a format that
//! writes JSON stays JSON.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt;
use std::sync::OnceLock;
use std::thread::LocalKey;
use std::time::Duration;

use crate::limits::LOG_LINE_BYTES_MAX;
use crate::sys::clock;

/// The facts of one request. Byte strings are as received, and escaped only in the line.
pub trait AccessRecord {
    /// Address of the peer without its port (`REMOTE_ADDR`); empty on a Unix socket.
    fn remote_addr(&self) -> &[u8];
    /// The method.
    fn method(&self) -> &[u8];
    /// The request target as received (`RAW_URI`).
    fn target(&self) -> &[u8];
    /// The path, percent-decoded (`PATH_INFO`).
    fn path(&self) -> Cow<'_, [u8]>;
    /// The query without its question mark.
    fn query(&self) -> &[u8];
    /// `HTTP/1.1`.
    fn protocol(&self) -> &[u8];
    /// Status code of the response.
    fn status(&self) -> u16;
    /// Bytes of the response's body that were sent; `None` when unknown.
    fn body_bytes(&self) -> Option<u64>;
    /// Time from the complete request to the end of the response.
    fn duration(&self) -> Duration;
    /// When the response ended, in nanoseconds of the monotonic clock: the time in the line. Whoever has looked at that
    /// clock for the duration need not look again.
    fn ended_ns(&self) -> u64 {
        clock::monotonic_ns()
    }
    /// How much of it the request waited for a runner, and how much the application had it; `None` when it had none.
    fn parts(&self) -> Option<(Duration, Duration)> {
        None
    }
    /// A request header by its name in lower case; the last one where it is repeated.
    fn request_header(&self, name: &[u8]) -> Option<&[u8]>;
    /// As [`AccessRecord::request_header`] for several names at once, each into the value of the same index.
    fn request_headers<'a>(&'a self, names: &[&[u8]], values: &mut [Option<&'a [u8]>]) {
        for (name, value) in names.iter().zip(values) {
            *value = self.request_header(name);
        }
    }
    /// A header that the application gave, by its name in lower case.
    fn response_header(&self, name: &[u8]) -> Option<&[u8]>;
    /// A variable of the WSGI environ by its name in lower case, `wsgi.url_scheme` for example.
    fn environ(&self, name: &[u8]) -> Option<&[u8]> {
        let _ = name;
        None
    }
}

/// A compiled `access_log_format`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessFormat {
    parts: Vec<Part>,
    /// For JSON: the name of the header with the request's id, in lower case.
    json: Option<Vec<u8>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(Vec<u8>),
    Atom { atom: Atom, style: Style },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Atom {
    RemoteAddr,
    Dash,
    User,
    Time,
    RequestLine,
    Method,
    Status,
    Path,
    Query,
    Protocol,
    BodyText,
    BodyNumber,
    Referer,
    UserAgent,
    Seconds,
    Milliseconds,
    Microseconds,
    SecondsFraction,
    Pid,
    RequestHeader(Vec<u8>),
    ResponseHeader(Vec<u8>),
    Environ(Vec<u8>),
}

/// Python's modifiers between `%(name)` and the conversion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Style {
    left: bool,
    zero: bool,
    sign: Option<u8>,
    width: u16,
    precision: Option<u16>,
    number: bool,
}

/// Why a format is not one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormatError {
    at: usize,
    reason: String,
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at character {}", self.reason, self.at + 1)
    }
}

impl std::error::Error for FormatError {}

impl AccessFormat {
    /// Whether it has atoms of the application's environ, `%({name}e)s`, which only Python knows.
    #[must_use]
    pub fn names_environ(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Atom { atom: Atom::Environ(_), .. }))
    }

    /// Whether each line is a JSON object with everything.
    #[must_use]
    pub fn is_json(&self) -> bool {
        self.json.is_some()
    }

    /// Compiles a format in the language of Python's `%` operator. Unknown atoms give `-`, as in
    /// gunicorn. The word `json` alone is a JSON object with everything.
    ///
    /// # Errors
    /// A `%` that starts nothing; a conversion other than `s`, `d`, `i`, `u`; a number's conversion
    /// of an atom that is text. gunicorn logs a traceback for each request then.
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        if text == "json" {
            return Ok(Self { parts: Vec::new(), json: Some(b"x-request-id".to_vec()) });
        }
        let mut parts = Vec::new();
        let mut literal = Vec::new();
        let mut at = 0;
        let bytes = text.as_bytes();
        while at < bytes.len() {
            if bytes[at] != b'%' {
                literal.push(bytes[at]);
                at += 1;
            } else if bytes.get(at + 1) == Some(&b'%') {
                literal.push(b'%');
                at += 2;
            } else {
                if !literal.is_empty() {
                    parts.push(Part::Literal(std::mem::take(&mut literal)));
                }
                let (part, end) = atom(text, at)?;
                parts.push(part);
                at = end;
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        Ok(Self { parts, json: None })
    }

    /// Says which request header has the request's id, for JSON.
    pub fn set_request_id_header(&mut self, name: &str) {
        if let Some(json) = &mut self.json {
            *json = name.to_ascii_lowercase().into_bytes();
        }
    }

    /// Appends the line for `record`, with its line end.
    pub fn format<R: AccessRecord + ?Sized>(&self, record: &R, out: &mut Vec<u8>) {
        let start = out.len();
        if let Some(request_id) = &self.json {
            append_json(record, request_id, out);
            out.push(b'\n');
            return;
        }
        for part in &self.parts {
            if out.len() - start >= LOG_LINE_BYTES_MAX {
                // The rest would be cut off.
                break;
            }
            match part {
                Part::Literal(literal) => out.extend_from_slice(literal),
                Part::Atom { atom, style } => {
                    let value = out.len();
                    atom.append(record, out);
                    if *style != Style::default() {
                        style.apply(out, value);
                    }
                }
            }
        }
        out.truncate(start + LOG_LINE_BYTES_MAX - 1);
        out.push(b'\n');
    }
}

/// Reads the atom whose `%` stands at `at`; gives it and the place behind it.
fn atom(text: &str, at: usize) -> Result<(Part, usize), FormatError> {
    let error = |reason: &str| FormatError { at, reason: reason.to_owned() };
    let bytes = text.as_bytes();
    if bytes.get(at + 1) != Some(&b'(') {
        return Err(error("a % that starts no atom"));
    }
    let open = at + 2;
    let close = text[open..].find(')').ok_or_else(|| error("an atom whose name has no end"))? + open;
    let name = &text[open..close];
    // A byte that is no conversion stands for the end, and is refused as one below.
    let peek = |at: usize| bytes.get(at).copied().unwrap_or_default();
    let mut end = close + 1;
    let mut style = Style::default();
    loop {
        match peek(end) {
            b'-' => style.left = true,
            b'0' => style.zero = true,
            b'+' => style.sign = Some(b'+'),
            b' ' => style.sign = style.sign.or(Some(b' ')),
            b'#' => {}
            _ => break,
        }
        end += 1;
    }
    let number = |end: &mut usize| {
        let mut value = 0u16;
        while peek(*end).is_ascii_digit() {
            value = value.saturating_mul(10).saturating_add(u16::from(peek(*end) - b'0')).min(WIDTH_MAX);
            *end += 1;
        }
        value
    };
    style.width = number(&mut end);
    if peek(end) == b'.' {
        end += 1;
        style.precision = Some(number(&mut end));
    }
    // C's length modifiers, which Python accepts and ignores.
    if matches!(peek(end), b'h' | b'l' | b'L') {
        end += 1;
    }
    let atom = Atom::from_name(name);
    match peek(end) {
        b's' => {}
        b'd' | b'i' | b'u' if atom.is_number() => style.number = true,
        b'd' | b'i' | b'u' => {
            return Err(error(&format!("%({name})d, but {name} is text; write %({name})s")));
        }
        _ => return Err(error(&format!("%({name}) without its conversion s or d"))),
    }
    // Only numbers have signs and leading zeros.
    if !style.number {
        style = Style { zero: false, sign: None, ..style };
    }
    // Plain `%(D)d` and `%(D)s` are the same.
    if style == (Style { number: true, ..Style::default() }) {
        style = Style::default();
    }
    Ok((Part::Atom { atom, style }, end + 1))
}

/// Widest field. A width pads every line, so a slip must not cost a megabyte each.
const WIDTH_MAX: u16 = 1024;

impl Style {
    /// Pads and cuts the value that starts at `start`.
    fn apply(self, out: &mut Vec<u8>, start: usize) {
        let mut digits = start;
        if self.number {
            if let Some(sign) = self.sign {
                out.insert(start, sign);
                digits += 1;
            }
            let least = usize::from(self.precision.unwrap_or_default());
            pad(out, digits, least.saturating_sub(out.len() - digits), b'0');
        } else if let Some(most) = self.precision {
            // Never within an escape: its backslash would then escape the format's own quote.
            let keep: usize = chars(&out[start..]).take(usize::from(most)).sum();
            out.truncate(start + keep);
        }
        let missing = usize::from(self.width).saturating_sub(chars(&out[start..]).count());
        if self.left {
            out.resize(out.len() + missing, b' ');
        } else if self.zero {
            pad(out, digits, missing, b'0');
        } else {
            pad(out, start, missing, b' ');
        }
    }
}

/// The lengths in bytes of the characters of an escaped value; an escape is one character.
fn chars(mut value: &[u8]) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let len = match (value.first()?, value.get(1)) {
            (b'\\', Some(b'u')) => 6,
            (b'\\', _) => 2,
            (first, _) => match first.leading_ones() {
                0 | 1 => 1,
                bytes => bytes as usize,
            },
        };
        let len = len.min(value.len());
        value = &value[len..];
        Some(len)
    })
}

/// Puts `count` times `byte` in at `at`.
fn pad(out: &mut Vec<u8>, at: usize, count: usize, byte: u8) {
    out.splice(at..at, std::iter::repeat_n(byte, count));
}

impl Atom {
    fn from_name(name: &str) -> Self {
        if let Some((inner, kind)) = name.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
            let inner = inner.to_ascii_lowercase().into_bytes();
            return match kind {
                "i" | "I" => Self::RequestHeader(inner),
                "o" | "O" => Self::ResponseHeader(inner),
                "e" | "E" => Self::Environ(inner),
                _ => Self::Dash,
            };
        }
        match name {
            "h" => Self::RemoteAddr,
            "u" => Self::User,
            "t" => Self::Time,
            "r" => Self::RequestLine,
            "m" => Self::Method,
            "s" => Self::Status,
            "U" => Self::Path,
            "q" => Self::Query,
            "H" => Self::Protocol,
            "b" => Self::BodyText,
            "B" => Self::BodyNumber,
            "f" => Self::Referer,
            "a" => Self::UserAgent,
            "T" => Self::Seconds,
            "M" => Self::Milliseconds,
            "D" => Self::Microseconds,
            "L" => Self::SecondsFraction,
            "p" => Self::Pid,
            // "l" is always "-", and so is everything unknown.
            _ => Self::Dash,
        }
    }

    const fn is_number(&self) -> bool {
        matches!(self, Self::BodyNumber | Self::Seconds | Self::Milliseconds | Self::Microseconds)
    }

    fn append<R: AccessRecord + ?Sized>(&self, record: &R, out: &mut Vec<u8>) {
        match self {
            Self::RemoteAddr => {
                append_or_dash(out, Some(record.remote_addr()).filter(|addr| !addr.is_empty()))
            }
            Self::Dash => out.push(b'-'),
            Self::User => append_user(out, record.request_header(b"authorization")),
            Self::Time => append_time(out, record.ended_ns()),
            Self::RequestLine => {
                append_escaped(out, record.method());
                out.push(b' ');
                append_escaped(out, record.target());
                out.push(b' ');
                append_escaped(out, record.protocol());
            }
            Self::Method => append_escaped(out, record.method()),
            Self::Status => append_number(out, u64::from(record.status())),
            Self::Path => append_escaped(out, &record.path()),
            Self::Query => append_escaped(out, record.query()),
            Self::Protocol => append_escaped(out, record.protocol()),
            Self::BodyText => match record.body_bytes() {
                Some(bytes) => append_number(out, bytes),
                None => out.push(b'-'),
            },
            Self::BodyNumber => append_number(out, record.body_bytes().unwrap_or_default()),
            Self::Referer => append_or_dash(out, record.request_header(b"referer")),
            Self::UserAgent => append_or_dash(out, record.request_header(b"user-agent")),
            Self::Seconds => append_number(out, record.duration().as_secs()),
            Self::Milliseconds => append_number(out, whole_millis(record.duration())),
            Self::Microseconds => append_number(out, whole_micros(record.duration())),
            Self::SecondsFraction => {
                let duration = record.duration();
                append_number(out, duration.as_secs());
                out.push(b'.');
                let micros = itoa_padded(duration.subsec_micros());
                out.extend_from_slice(&micros);
            }
            Self::Pid => {
                out.push(b'<');
                append_number(out, u64::from(own_pid()));
                out.push(b'>');
            }
            Self::RequestHeader(name) => append_or_dash(out, record.request_header(name)),
            Self::ResponseHeader(name) => append_or_dash(out, record.response_header(name)),
            Self::Environ(name) => append_or_dash(out, record.environ(name)),
        }
    }
}

/// A member of a JSON object whose value is a text or `null`. Its name, with all that stands around it, is one piece.
macro_rules! optional_text {
    ($out:expr, $name:literal, $value:expr) => {
        match $value {
            Some(value) => {
                $out.extend_from_slice(concat!(",\"", $name, "\":\"").as_bytes());
                json_text($out, value);
                $out.push(b'"');
            }
            None => $out.extend_from_slice(concat!(",\"", $name, "\":null").as_bytes()),
        }
    };
}

/// Bytes of one escaped text in a JSON line. All texts of a line together stay below [`LOG_LINE_BYTES_MAX`], so that
/// no line has to be cut: it would be no JSON any more.
const JSON_TEXT_BYTES_MAX: usize = 5 * 1024;
const JSON_TEXTS: usize = 12;
const _: () = assert!(JSON_TEXTS * JSON_TEXT_BYTES_MAX + 1024 < LOG_LINE_BYTES_MAX);

/// Texts up to this length need not be looked at for whether they are to be cut: an escape is six bytes at most.
const JSON_TEXT_BYTES_SAFE: usize = JSON_TEXT_BYTES_MAX / 6;

/// One JSON object. Names and numbers are ours and need no escaping; what a client chose is escaped as in every
/// format, and those escapes are JSON's.
///
/// What does not change from line to line stands here in pieces as large as can be. Their length is known to the
/// compiler, so they are copied without a call.
fn append_json<R: AccessRecord + ?Sized>(record: &R, request_id: &[u8], out: &mut Vec<u8>) {
    let names = [&b"authorization"[..], b"host", b"referer", b"user-agent", request_id, b"traceparent"];
    let mut values = [None; 6];
    record.request_headers(&names, &mut values);
    let [authorization, host, referer, user_agent, request_id, traceparent] = values;

    append_json_time(out, record.ended_ns());
    let remote_addr = record.remote_addr();
    optional_text!(out, "remote_addr", Some(remote_addr).filter(|addr| !addr.is_empty()));
    append_json_user(out, authorization);
    out.extend_from_slice(b",\"method\":\"");
    json_text(out, record.method());
    out.extend_from_slice(b"\",\"target\":\"");
    json_text(out, record.target());
    out.extend_from_slice(b"\",\"path\":\"");
    json_text(out, &record.path());
    out.extend_from_slice(b"\",\"query\":\"");
    json_text(out, record.query());
    out.extend_from_slice(b"\",\"protocol\":\"");
    json_text(out, record.protocol());
    out.extend_from_slice(b"\",\"status\":");
    append_number(out, u64::from(record.status()));
    match record.body_bytes() {
        Some(bytes) => {
            out.extend_from_slice(b",\"body_bytes\":");
            append_number(out, bytes);
        }
        None => out.extend_from_slice(b",\"body_bytes\":null"),
    }
    out.extend_from_slice(b",\"duration_us\":");
    append_number(out, whole_micros(record.duration()));
    match record.parts() {
        Some((queue, application)) => {
            out.extend_from_slice(b",\"queue_us\":");
            append_number(out, whole_micros(queue));
            out.extend_from_slice(b",\"application_us\":");
            append_number(out, whole_micros(application));
        }
        None => out.extend_from_slice(b",\"queue_us\":null,\"application_us\":null"),
    }
    optional_text!(out, "host", host);
    optional_text!(out, "referer", referer);
    optional_text!(out, "user_agent", user_agent);
    optional_text!(out, "request_id", request_id);
    optional_text!(out, "traceparent", traceparent);
    out.extend_from_slice(b",\"pid\":");
    append_number(out, u64::from(own_pid()));
    out.push(b'}');
}

/// What stands between the quotes.
fn json_text(out: &mut Vec<u8>, value: &[u8]) {
    let start = out.len();
    // Longer ones are cut in any case, and need not be escaped first.
    append_escaped(out, &value[..value.len().min(JSON_TEXT_BYTES_MAX)]);
    if value.len() > JSON_TEXT_BYTES_SAFE {
        cut_json_text(out, start);
    }
}

/// Cuts the text that begins at `start` to the length that it may have, never within an escape.
#[cold]
fn cut_json_text(out: &mut Vec<u8>, start: usize) {
    if out.len() - start <= JSON_TEXT_BYTES_MAX {
        return;
    }
    let mut keep = 0;
    for length in chars(&out[start..]) {
        if keep + length > JSON_TEXT_BYTES_MAX {
            break;
        }
        keep += length;
    }
    out.truncate(start + keep);
}

fn append_json_user(out: &mut Vec<u8>, authorization: Option<&[u8]>) {
    let start = out.len();
    if authorization.is_some() {
        out.extend_from_slice(b",\"user\":\"");
        let user = out.len();
        append_user(out, authorization);
        if &out[user..] != b"-" {
            return out.push(b'"');
        }
        out.truncate(start);
    }
    out.extend_from_slice(b",\"user\":null");
}

/// A second of the wall clock as the monotonic clock sees it, and its text: a server writes thousands of lines in it.
struct Second {
    /// Its beginning in nanoseconds of the monotonic clock. It wraps around: the machine may be younger.
    from_ns: u64,
    /// How long it may be taken for true, from its beginning: not longer than a second, nor than [`WALL_KEPT_NS`] after
    /// the wall clock was looked at.
    valid_ns: u64,
    text: String,
}

/// How long an answer of the wall clock is good for, in nanoseconds: lines show within this time that it was set. To
/// look at it costs as much as a third of a line.
const WALL_KEPT_NS: u64 = 50_000_000;

const SECOND_NS: u64 = 1_000_000_000;

impl Second {
    const NONE: Self = Self { from_ns: 0, valid_ns: 0, text: String::new() };

    /// Appends the text of the second in which `now_ns` of the monotonic clock is, which `text` makes of the seconds since
    /// 1970. Returns how many nanoseconds of it had passed.
    fn append(
        key: &'static LocalKey<RefCell<Self>>,
        now_ns: u64,
        text: fn(u64) -> String,
        out: &mut Vec<u8>,
    ) -> u64 {
        key.with_borrow_mut(|second| {
            if now_ns.wrapping_sub(second.from_ns) >= second.valid_ns {
                *second = Self::around(now_ns, text);
            }
            out.extend_from_slice(second.text.as_bytes());
            now_ns.wrapping_sub(second.from_ns)
        })
    }

    #[cold]
    fn around(now_ns: u64, text: fn(u64) -> String) -> Self {
        // A thread that loses the CPU between its looks at the two clocks would take them for further apart than they are.
        let looks = std::iter::repeat_with(|| {
            let (before_ns, unix_ns) = (clock::monotonic_ns(), clock::unix_ns());
            (clock::monotonic_ns() - before_ns, before_ns, unix_ns)
        });
        let (_, looked_ns, unix_ns) = looks.take(3).min().unwrap_or_default();
        Self::new(now_ns, looked_ns, unix_ns, text)
    }

    /// The second around `now_ns`, when it was `unix_ns` of the wall clock at `looked_ns`.
    fn new(now_ns: u64, looked_ns: u64, unix_ns: u64, text: fn(u64) -> String) -> Self {
        // The moment was a while ago.
        let unix_ns = unix_ns.saturating_sub(looked_ns.saturating_sub(now_ns));
        let from_ns = now_ns.wrapping_sub(unix_ns % SECOND_NS);
        let valid_ns = looked_ns.wrapping_sub(from_ns).saturating_add(WALL_KEPT_NS).min(SECOND_NS);
        Self { from_ns, valid_ns, text: text(unix_ns / SECOND_NS) }
    }
}

/// `{"time":"2026-11-22T11:00:00.123Z"`.
fn append_json_time(out: &mut Vec<u8>, now_ns: u64) {
    thread_local! {
        static SECOND: RefCell<Second> = const { RefCell::new(Second::NONE) };
    }
    let text = |unix| format!("{{\"time\":\"{}.", clock::rfc3339_utc(unix));
    let millis = Second::append(&SECOND, now_ns, text, out) / 1_000_000;
    let [hundreds, tens, ones] =
        [millis / 100, millis / 10 % 10, millis % 10].map(|digit| b'0' + digit as u8);
    out.extend_from_slice(&[hundreds, tens, ones, b'Z', b'"']);
}

/// This process. To ask is a system call; lines are made in workers only, after their fork.
fn own_pid() -> u32 {
    static PID: OnceLock<u32> = OnceLock::new();
    *PID.get_or_init(std::process::id)
}

fn whole_micros(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1_000_000).saturating_add(u64::from(duration.subsec_micros()))
}

fn whole_millis(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1_000).saturating_add(u64::from(duration.subsec_millis()))
}

/// Appends a number in decimal.
fn append_number(out: &mut Vec<u8>, number: u64) {
    if number >= 100_000_000 {
        return out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    }
    // All eight digits at once, each in a byte of a word, the first one lowest: halves, quarters, eighths. To divide is to
    // multiply and shift: 10486 / 2^20 is 1/100 for what is below 10,000, 103 / 2^10 is 1/10 for what is below 100.
    let halves = (number / 10_000) | ((number % 10_000) << 32);
    let hundreds = ((halves * 10_486) >> 20) & 0x0000_007f_0000_007f;
    let pairs = hundreds | ((halves - 100 * hundreds) << 16);
    let tens = ((pairs * 103) >> 10) & 0x000f_000f_000f_000f;
    let digits = tens | ((pairs - 10 * tens) << 8);
    // Of zero its last digit is left.
    let zeros = (digits | (1 << 56)).trailing_zeros() / 8;
    append_word(out, (digits | 0x3030_3030_3030_3030) >> (8 * zeros), 8 - zeros as usize);
}

/// Appends the `len` lowest bytes of `word`, at most 8. It stores all of them and takes some back, which is no branch and no
/// call.
fn append_word(out: &mut Vec<u8>, word: u64, len: usize) {
    let end = out.len() + len;
    out.extend_from_slice(&word.to_le_bytes());
    out.truncate(end);
}

/// Six digits of microseconds.
fn itoa_padded(micros: u32) -> [u8; 6] {
    let mut digits = [b'0'; 6];
    let mut rest = micros;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    digits
}

fn append_or_dash(out: &mut Vec<u8>, value: Option<&[u8]>) {
    match value {
        Some(value) => append_escaped(out, value),
        None => out.push(b'-'),
    }
}

/// Appends bytes that a client chose.
///
/// Most of them are short, and nearly all need no escape: those are looked at and copied in one or two words, of which the
/// second overlaps the first one.
fn append_escaped(out: &mut Vec<u8>, value: &[u8]) {
    if value.len() > 16 {
        // No line holds more, and it does not get shorter.
        let value = &value[..value.len().min(LOG_LINE_BYTES_MAX)];
        if !is_plain(value) {
            return append_escapes(out, value);
        }
        out.extend_from_slice(value);
    } else if let (Some(first), Some(last)) = (value.first_chunk::<8>(), value.last_chunk::<8>()) {
        if strange(u64::from_le_bytes(*first)) | strange(u64::from_le_bytes(*last)) {
            return append_escapes(out, value);
        }
        append_ends(out, value.len(), first, last);
    } else if let (Some(first), Some(last)) = (value.first_chunk::<4>(), value.last_chunk::<4>()) {
        let word = u64::from(u32::from_le_bytes(*first)) | u64::from(u32::from_le_bytes(*last)) << 32;
        if strange(word) {
            return append_escapes(out, value);
        }
        append_ends(out, value.len(), first, last);
    } else if let [first, .., last] = value {
        // Of two bytes the one in the middle is the last one.
        let middle = value.len() / 2;
        let word = u64::from(*first)
            | u64::from(value[middle]) << (8 * middle)
            | u64::from(*last) << (8 * (value.len() - 1));
        if strange(word | SPACES << (8 * value.len())) {
            return append_escapes(out, value);
        }
        append_word(out, word, value.len());
    } else if let [byte] = value {
        if strange(SPACES << 8 | u64::from(*byte)) {
            return append_escapes(out, value);
        }
        out.push(*byte);
    }
}

/// Appends a text of `len` bytes by its ends, which meet or overlap.
fn append_ends<const N: usize>(out: &mut Vec<u8>, len: usize, first: &[u8; N], last: &[u8; N]) {
    let end = out.len() + len;
    out.extend_from_slice(first);
    out.truncate(end - N);
    out.extend_from_slice(last);
}

const SPACES: u64 = u64::from_ne_bytes([b' '; 8]);

/// Whether one of eight bytes must be escaped, or is beyond ASCII.
fn strange(word: u64) -> bool {
    const ONES: u64 = u64::from_ne_bytes([0x01; 8]);
    const HIGH: u64 = u64::from_ne_bytes([0x80; 8]);
    const QUOTES: u64 = u64::from_ne_bytes([b'"'; 8]);
    const BACKSLASHES: u64 = u64::from_ne_bytes([b'\\'; 8]);
    // The high bit of a byte is left by what is too large (0x7f is when one is added), and by what is below zero when the
    // least plain byte is taken off, or one from the difference to a byte that is not plain. A borrow from the next
    // byte comes from a strange one only, and whether there is one is all that is asked.
    let too_large = word | word.wrapping_add(ONES);
    let control = word.wrapping_sub(SPACES);
    let quote = (word ^ QUOTES).wrapping_sub(ONES);
    let backslash = (word ^ BACKSLASHES).wrapping_sub(ONES);
    (too_large | control | quote | backslash) & HIGH != 0
}

/// Whether none of 16 bytes or more must be escaped.
fn is_plain(value: &[u8]) -> bool {
    // It never stops early, so that the compiler can take 16 bytes at a time: others are rare.
    let mut strange = [0; 16];
    let (blocks, _) = value.as_chunks::<16>();
    // The last block overlaps the one before.
    for block in blocks.iter().chain(value.last_chunk()) {
        for (strange, &byte) in strange.iter_mut().zip(block) {
            let plain = (b' '..=b'~').contains(&byte) & (byte != b'"') & (byte != b'\\');
            *strange |= u8::from(!plain);
        }
    }
    strange == [0; 16]
}

/// Appends bytes of which some are escaped.
#[cold]
fn append_escapes(out: &mut Vec<u8>, value: &[u8]) {
    for chunk in value.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => out.extend_from_slice(b"\\\""),
                '\\' => out.extend_from_slice(b"\\\\"),
                // The last two are line ends to some programs.
                c if c.is_control() || c == '\u{2028}' || c == '\u{2029}' => append_code(out, c as u32),
                c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        for byte in chunk.invalid() {
            append_code(out, u32::from(*byte));
        }
    }
}

/// `\u00e9`: understood by people and by JSON.
fn append_code(out: &mut Vec<u8>, code: u32) {
    out.extend_from_slice(b"\\u");
    for shift in [12, 8, 4, 0] {
        out.push(b"0123456789abcdef"[(code >> shift & 0xf) as usize]);
    }
}

/// `[22/Nov/2026:07:59:29 +0000]`.
fn append_time(out: &mut Vec<u8>, now_ns: u64) {
    thread_local! {
        static SECOND: RefCell<Second> = const { RefCell::new(Second::NONE) };
    }
    let text = |unix| {
        let unix = i64::try_from(unix).unwrap_or(i64::MAX);
        format!("[{}]", clock::local_time(unix).access_log())
    };
    Second::append(&SECOND, now_ns, text, out);
}

/// The user's name in an `Authorization: Basic` header. The password never comes near the log.
fn append_user(out: &mut Vec<u8>, header: Option<&[u8]>) {
    let Some((scheme, credentials)) = header.and_then(|header| header.split_at_checked(6)) else {
        return out.push(b'-');
    };
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return out.push(b'-');
    }
    // 255 octets are more than any name, and keep the decoded text off the heap.
    let mut name = [0; 255];
    match basic_user(credentials.trim_ascii(), &mut name) {
        Some(len) if len > 0 => append_escaped(out, &name[..len]),
        _ => out.push(b'-'),
    }
}

/// Decodes base64 up to the first colon into `name`; gives the length, or `None` where it is no
/// base64, has no colon or a name that is too long.
fn basic_user(encoded: &[u8], name: &mut [u8]) -> Option<usize> {
    let (mut bits, mut count, mut len) = (0u32, 0, 0);
    for byte in encoded {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            let decoded = (bits >> count & 0xff) as u8;
            if decoded == b':' {
                return Some(len);
            }
            *name.get_mut(len)? = decoded;
            len += 1;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;

    use super::*;

    struct Sample {
        remote_addr: Vec<u8>,
        target: Vec<u8>,
        path: Vec<u8>,
        headers: Vec<(Vec<u8>, Vec<u8>)>,
        body: Option<u64>,
        duration: Duration,
    }

    impl Default for Sample {
        fn default() -> Self {
            Self {
                remote_addr: b"10.0.0.7".to_vec(),
                target: b"/a%20b?x=1".to_vec(),
                path: b"/a b".to_vec(),
                headers: vec![
                    (b"referer".to_vec(), b"http://x/\"q\"".to_vec()),
                    (b"user-agent".to_vec(), b"curl/8".to_vec()),
                ],
                body: Some(1234),
                duration: Duration::from_micros(3_004_005),
            }
        }
    }

    impl AccessRecord for Sample {
        fn remote_addr(&self) -> &[u8] {
            &self.remote_addr
        }
        fn method(&self) -> &[u8] {
            b"GET"
        }
        fn target(&self) -> &[u8] {
            &self.target
        }
        fn path(&self) -> Cow<'_, [u8]> {
            Cow::Borrowed(&self.path)
        }
        fn query(&self) -> &[u8] {
            b"x=1"
        }
        fn protocol(&self) -> &[u8] {
            b"HTTP/1.1"
        }
        fn status(&self) -> u16 {
            200
        }
        fn body_bytes(&self) -> Option<u64> {
            self.body
        }
        fn duration(&self) -> Duration {
            self.duration
        }
        fn request_header(&self, name: &[u8]) -> Option<&[u8]> {
            self.headers.iter().rev().find(|header| header.0 == name).map(|header| &*header.1)
        }
        fn response_header(&self, name: &[u8]) -> Option<&[u8]> {
            (name == b"content-type").then_some(b"text/plain")
        }
        fn environ(&self, name: &[u8]) -> Option<&[u8]> {
            (name == b"wsgi.url_scheme").then_some(b"http")
        }
    }

    fn line(format: &str, record: &Sample) -> String {
        let mut out = Vec::new();
        AccessFormat::parse(format).unwrap().format(record, &mut out);
        let mut text = String::from_utf8(out).unwrap();
        assert_eq!(text.pop(), Some('\n'));
        text
    }

    /// The default format is the combined one, which log analysers read.
    #[test]
    fn the_default_format_gives_combined_lines() {
        let settings = crate::config::Settings::default();
        let mut out = Vec::new();
        settings.access_log_format.format(&Sample::default(), &mut out);
        let text = String::from_utf8(out).unwrap();
        let text = text.trim_end();
        let (before, rest) = text.split_once('[').unwrap();
        let (time, after) = rest.split_once(']').unwrap();
        assert_eq!(before, "10.0.0.7 - - ");
        assert_eq!(after, r#" "GET /a%20b?x=1 HTTP/1.1" 200 1234 "http://x/\"q\"" "curl/8""#);
        // 22/Nov/2026:07:59:29 +0000
        assert_eq!(time.len(), 26);
        assert!(time.as_bytes()[2] == b'/' && time.as_bytes()[6] == b'/' && time.as_bytes()[11] == b':');
    }

    #[test]
    fn every_atom_has_its_value() {
        let sample = Sample::default();
        for (format, expected) in [
            ("%(h)s", "10.0.0.7"),
            ("%(l)s", "-"),
            ("%(u)s", "-"),
            ("%(r)s", "GET /a%20b?x=1 HTTP/1.1"),
            ("%(s)s", "200"),
            ("%(m)s", "GET"),
            ("%(U)s", "/a b"),
            ("%(q)s", "x=1"),
            ("%(H)s", "HTTP/1.1"),
            ("%(b)s", "1234"),
            ("%(B)s", "1234"),
            ("%(B)d", "1234"),
            ("%(f)s", r#"http://x/\"q\""#),
            ("%(a)s", "curl/8"),
            ("%(T)s", "3"),
            ("%(M)s", "3004"),
            ("%(D)s", "3004005"),
            ("%(L)s", "3.004005"),
            ("%({User-Agent}i)s", "curl/8"),
            ("%({x-missing}i)s", "-"),
            ("%({Content-Type}o)s", "text/plain"),
            ("%({server}o)s", "-"),
            ("%({wsgi.url_scheme}e)s", "http"),
            ("%({nothing}e)s", "-"),
            ("%({a}z)s", "-"),
            ("%(unknown)s", "-"),
            ("100%%", "100%"),
            ("", ""),
            ("no atom", "no atom"),
        ] {
            assert_eq!(line(format, &sample), expected, "{format}");
        }
        assert_eq!(line("%(p)s", &sample), format!("<{}>", std::process::id()));
    }

    /// Compared with Python's `%` operator.
    #[test]
    fn modifiers_work_as_in_python() {
        let sample = Sample { duration: Duration::from_micros(42), ..Sample::default() };
        for (format, expected) in [
            ("%(m)5s|", "  GET|"),
            ("%(m)-5s|", "GET  |"),
            ("%(m)05s|", "  GET|"),
            ("%(m).2s|", "GE|"),
            ("%(m)-5.1s|", "G    |"),
            ("%(m)2s|", "GET|"),
            ("%(m).s|", "|"),
            ("%(D)5d|", "   42|"),
            ("%(D)05d|", "00042|"),
            ("%(D)-5d|", "42   |"),
            ("%(D)+d|", "+42|"),
            ("%(D)+05d|", "+0042|"),
            ("%(D) d|", " 42|"),
            ("%(D)6.4d|", "  0042|"),
            ("%(D)06.4d|", "000042|"),
            ("%(D)-05d|", "42   |"),
            ("%(D)+05s|", "   42|"),
            ("%(D)+ d|", "+42|"),
            ("%(D)ld|", "42|"),
            ("%(D)i%(D)u", "4242"),
        ] {
            assert_eq!(line(format, &sample), expected, "{format}");
        }
    }

    #[test]
    fn a_malformed_format_says_where_and_what() {
        for (format, wanted) in [
            ("%", "a % that starts no atom at character 1"),
            ("ab %h", "a % that starts no atom at character 4"),
            ("%(h", "no end at character 1"),
            ("%(h)", "%(h) without its conversion"),
            ("%(h)5", "%(h) without its conversion"),
            ("%(h)x", "%(h) without its conversion"),
            ("%(h)d", "h is text; write %(h)s"),
            ("%(s)d", "s is text"),
            ("%(h)l", "conversion s or d"),
        ] {
            let error = AccessFormat::parse(format).unwrap_err().to_string();
            assert!(error.contains(wanted), "{format}: {error}");
        }
    }

    #[test]
    fn unknown_sizes_and_unix_peers_are_dashes() {
        let sample = Sample { remote_addr: Vec::new(), body: None, ..Sample::default() };
        assert_eq!(line("%(h)s %(b)s %(B)s", &sample), "- - 0");
    }

    /// Somebody who chooses bytes must not be able to write lines, or fields, of the log.
    #[test]
    fn a_line_cannot_be_forged() {
        let with_agent = |agent: &[u8]| Sample {
            headers: vec![(b"user-agent".to_vec(), agent.to_vec())],
            ..Sample::default()
        };
        for (agent, expected) in [
            (&b"a\" 200 \""[..], r#""a\" 200 \"""#),
            (b"a\\", r#""a\\""#),
            (b"a\\\"", r#""a\\\"""#),
            (b"a\r\nb", r#""a\u000d\u000ab""#),
            (b"\x1b[2J\x00\x7f", r#""\u001b[2J\u0000\u007f""#),
            (b"caf\xe9", r#""caf\u00e9""#),
            ("caf\u{e9}".as_bytes(), "\"caf\u{e9}\""),
            ("a\u{85}b\u{2028}".as_bytes(), r#""a\u0085b\u2028""#),
            (b"a\tb", r#""a\u0009b""#),
        ] {
            assert_eq!(line("\"%(a)s\"", &with_agent(agent)), expected);
        }
        assert_eq!(line("\"%(a).2s\"", &with_agent(b"a\"b")), r#""a\"""#);
        assert_eq!(line("\"%(a).2s\"", &with_agent(b"a\nb")), r#""a\u000a""#);
        assert_eq!(line("%(a)4.2s|", &with_agent("\u{e9}\u{e8}b".as_bytes())), "  \u{e9}\u{e8}|");
    }

    /// Short texts are looked at a word at a time, longer ones in blocks; none of it may oversee a byte, or copy one more.
    #[test]
    fn each_byte_at_each_place_is_escaped() {
        for length in 1..50 {
            for at in 0..length {
                for byte in 0..=u8::MAX {
                    let mut text = vec![b'a'; length];
                    text[at] = byte;
                    let (mut found, mut wanted) = (b"<".to_vec(), b"<".to_vec());
                    append_escaped(&mut found, &text);
                    append_escapes(&mut wanted, &text);
                    assert_eq!(found, wanted, "{byte:#x} at {at} of {length}");
                    let plain = matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
                    assert_eq!(found[1..] == text, plain);
                }
            }
        }
        let mut out = Vec::new();
        append_escaped(&mut out, b"");
        assert_eq!(out, b"");
    }

    #[test]
    fn numbers_are_as_everywhere() {
        let edges = (0..20).map(|digits| 10_u64.pow(digits));
        let edges = edges.flat_map(|edge| [edge - 1, edge, edge + 1, edge / 3 * 2]);
        for number in (0..20_000).chain((0..100_000_000).step_by(9_973)).chain(edges).chain([u64::MAX]) {
            let mut out = b"x".to_vec();
            append_number(&mut out, number);
            assert_eq!(String::from_utf8(out).unwrap(), format!("x{number}"));
        }
    }

    /// The time in a line is made from the monotonic clock.
    #[test]
    fn a_second_of_the_wall_clock_is_found_on_the_monotonic_one() {
        let text = |unix: u64| unix.to_string();
        // Looked at 100 ms after the moment: that was at 1000.65.
        let second = Second::new(5_200_000_000, 5_300_000_000, 1_000_750_000_000, text);
        assert_eq!((&*second.text, second.from_ns), ("1000", 4_550_000_000));
        assert_eq!(second.valid_ns, 750_000_000 + WALL_KEPT_NS);
        // Near its end it is not good for longer than itself.
        let second = Second::new(5_200_000_000, 5_200_000_000, 1_000_990_000_000, text);
        assert_eq!((&*second.text, second.valid_ns), ("1000", SECOND_NS));
        // A machine that was started within this second, and a wall clock before 1970.
        let second = Second::new(200_000_000, 200_000_000, 1_000_750_000_000, text);
        assert_eq!(200_000_000_u64.wrapping_sub(second.from_ns), 750_000_000);
        assert_eq!(second.valid_ns, 750_000_000 + WALL_KEPT_NS);
        assert_eq!(Second::new(5, 5, 0, text).text, "0");

        thread_local! {
            static SECOND: RefCell<Second> = const { RefCell::new(Second::NONE) };
        }
        let mut last = 0;
        for _ in 0..1000 {
            let mut out = Vec::new();
            let into = Second::append(&SECOND, clock::monotonic_ns(), text, &mut out);
            assert!(into < SECOND_NS);
            let unix: u64 = String::from_utf8(out).unwrap().parse().unwrap();
            last = unix * SECOND_NS + into;
        }
        assert!(last.abs_diff(clock::unix_ns()) < 60 * SECOND_NS);
    }

    #[test]
    fn the_user_of_basic_authorization_is_named_without_the_password() {
        for (header, expected) in [
            ("Basic dXNlcjpzZWNyZXQ=", "user"),
            ("basic  dXNlcjpzZWNyZXQ= ", "user"),
            ("Basic dXNlcg==", "-"),
            ("Basic OnNlY3JldA==", "-"),
            ("Basic !!!", "-"),
            ("Basic", "-"),
            ("Bearer dXNlcjpzZWNyZXQ=", "-"),
            ("Basic dTppOnA=", "u"),
        ] {
            let sample = Sample {
                headers: vec![(b"authorization".to_vec(), header.as_bytes().to_vec())],
                ..Sample::default()
            };
            assert_eq!(line("%(u)s", &sample), expected, "{header}");
        }
    }

    fn json(sample: &Sample) -> serde_json::Value {
        let text = line("json", sample);
        assert!(text.len() < LOG_LINE_BYTES_MAX && !text.contains('\n'), "{text}");
        serde_json::from_str(&text).expect(&text)
    }

    #[test]
    fn json_has_everything_under_readable_names() {
        let mut sample = Sample::default();
        sample.headers.push((b"authorization".to_vec(), b"Basic YWxpY2U6c2VjcmV0".to_vec()));
        sample.headers.push((b"x-request-id".to_vec(), b"7f3a".to_vec()));
        let object = json(&sample);
        assert_eq!(object["remote_addr"], "10.0.0.7");
        assert_eq!(object["user"], "alice");
        assert_eq!(object["target"], "/a%20b?x=1");
        assert_eq!(object["referer"], "http://x/\"q\"");
        assert_eq!(object["duration_us"], 3_004_005);
        assert_eq!(object["request_id"], "7f3a");
        assert_eq!(object["traceparent"], serde_json::Value::Null);
        assert_eq!(object["queue_us"], serde_json::Value::Null);
        let time = object["time"].as_str().unwrap();
        assert!(time.len() == 24 && time.ends_with('Z') && time.starts_with("20"), "{time}");
        assert_eq!(json(&Sample::default())["user"], serde_json::Value::Null);
        assert_eq!(
            json(&Sample { remote_addr: Vec::new(), ..Sample::default() })["remote_addr"],
            serde_json::Value::Null
        );
    }

    /// Nothing that a client sends makes a line that is no JSON, or two.
    #[test]
    fn json_stays_json_however_long_its_texts_are() {
        for piece in
            [&b"a"[..], b"\"", b"\\", b"\x01", b"\xff", "\u{1f600}".as_bytes(), "\u{2028}".as_bytes()]
        {
            let long = piece.repeat(100_000);
            let headers = ["referer", "user-agent", "host", "x-request-id", "traceparent"];
            let headers = headers.map(|name| (name.as_bytes().to_vec(), long.clone())).to_vec();
            json(&Sample { target: long.clone(), path: long, headers, ..Sample::default() });
        }
    }

    #[test]
    fn a_long_line_is_cut() {
        let sample = Sample { target: vec![b'a'; 2 * LOG_LINE_BYTES_MAX], ..Sample::default() };
        assert_eq!(line("%(r)s", &sample).len(), LOG_LINE_BYTES_MAX - 1);
    }

    proptest! {
        #[test]
        fn any_bytes_make_one_line(target in prop::collection::vec(any::<u8>(), 0..80)) {
            let sample = Sample { target: target.clone(), path: target, ..Sample::default() };
            let text = line("\"%(r)s\" \"%(U)s\"", &sample);
            prop_assert!(!text.chars().any(char::is_control));
            // Without escaped characters exactly the format's own quotes are left.
            let mut quotes = 0;
            let mut chars = text.chars();
            while let Some(c) = chars.next() {
                match c {
                    '\\' => { chars.next(); }
                    '"' => quotes += 1,
                    _ => {}
                }
            }
            prop_assert_eq!(quotes, 4);
        }

        #[test]
        fn any_bytes_make_json(
            target in prop::collection::vec(any::<u8>(), 0..80),
            agent in prop::collection::vec(any::<u8>(), 0..80),
        ) {
            let headers = vec![(b"user-agent".to_vec(), agent.clone())];
            let object = json(&Sample { target: target.clone(), headers, ..Sample::default() });
            // Text comes back as it was; a byte that is no text as the character of that number.
            for (name, bytes) in [("target", target), ("user_agent", agent)] {
                let wanted: String = bytes
                    .utf8_chunks()
                    .flat_map(|chunk| chunk.valid().chars().chain(chunk.invalid().iter().map(|byte| char::from(*byte))))
                    .collect();
                prop_assert_eq!(object[name].as_str(), Some(&*wanted));
            }
        }

        #[test]
        fn any_format_is_a_format_or_an_error(text in "[%()\\-0-9.sdhU{}i ]{0,24}") {
            if let Ok(format) = AccessFormat::parse(&text) {
                let mut out = Vec::new();
                format.format(&Sample::default(), &mut out);
                prop_assert_eq!(out.last(), Some(&b'\n'));
            }
        }
    }
}
