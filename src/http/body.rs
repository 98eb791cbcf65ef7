//! Request bodies: where one ends, and its bytes without the chunked coding.

use super::head::Framing;
use super::policy::Policy;
use super::refusal::Refusal;
use super::scan;
use crate::limits::{CHUNK_EXTENSION_BYTES_MAX, TRAILER_BYTES_MAX};

/// Digits of a chunk size. Leading zeros are allowed by the grammar and of no use.
const SIZE_DIGITS_MAX: u8 = 32;

/// Largest chunk, in bytes.
const CHUNK_BYTES_MAX: u64 = i64::MAX as u64;

/// Fields that a trailer section must not have: they frame, route or authenticate a message, which
/// is too late there (RFC 9110 section 6.5.1). All others are read and dropped.
const FORBIDDEN_TRAILERS: [&[u8]; 7] =
    [b"content-length", b"transfer-encoding", b"host", b"trailer", b"te", b"connection", b"authorization"];

/// Reads one request body. It never takes a byte beyond its end.
#[derive(Debug)]
pub struct BodyDecoder {
    state: State,
    /// Body bytes decoded so far.
    received: u64,
    /// Body bytes allowed; 0 for any number.
    bytes_max: u64,
    /// Bytes of a trailer line allowed, with its CRLF.
    line_bytes_max: usize,
    trailers_left: usize,
    trailer_bytes_left: usize,
    extension_bytes_left: usize,
    /// The trailer line being read. Without trailers it never allocates.
    line: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The message is complete.
    Complete,
    /// So many bytes are still to come; never 0.
    Length { left: u64 },
    /// In the digits of a chunk size.
    Size { size: u64, digits: u8 },
    /// Behind the size, in the part of the line named.
    Extension { size: u64, part: Extension },
    /// The LF of the size line is next.
    SizeEnd { size: u64 },
    /// In the data of a chunk; never 0.
    Data { left: u64 },
    /// The CR behind the data of a chunk is next.
    DataCr,
    /// The LF behind the data of a chunk is next.
    DataLf,
    /// In the trailer section, at or in a line.
    Trailer,
    /// Damaged: nobody knows where the message ends.
    Failed { status: u16, detail: &'static str },
}

/// Where in `*( BWS ";" BWS name [ BWS "=" BWS ( token / quoted-string ) ] )`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extension {
    /// Blanks in front of a semicolon.
    BeforeSemicolon,
    /// Behind a semicolon, before the name.
    BeforeName,
    Name,
    /// Blanks behind a name: a semicolon or an equals sign has to follow.
    AfterName,
    /// Behind an equals sign, before the value.
    BeforeValue,
    Value,
    Quoted,
    /// Behind a backslash in a quoted string.
    Escaped,
    /// Behind the closing quote.
    AfterQuoted,
}

impl BodyDecoder {
    /// A decoder for a body framed by `framing`, under the limits of `policy`.
    #[must_use]
    pub fn new(framing: Framing, policy: &Policy) -> Self {
        Self {
            state: match framing {
                Framing::None | Framing::Length(0) => State::Complete,
                Framing::Length(left) => State::Length { left },
                Framing::Chunked => State::Size { size: 0, digits: 0 },
            },
            received: 0,
            bytes_max: policy.body_bytes_max,
            line_bytes_max: policy.field_limit(),
            trailers_left: policy.field_count_limit(),
            trailer_bytes_left: TRAILER_BYTES_MAX,
            extension_bytes_left: CHUNK_EXTENSION_BYTES_MAX,
            line: Vec::new(),
        }
    }

    /// Appends the body bytes in `input` to `out` and returns how many bytes of `input` belong to
    /// this message: all of them, unless it ends there.
    ///
    /// # Errors
    /// 400 for a damaged chunked coding, 413 for a body above the limit, 431 for too many
    /// trailers. Every later call returns the same. What was appended before is not a whole body.
    ///
    /// # Source
    /// RFC 9112 section 6 and 7.1.
    pub fn decode(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, Refusal> {
        let mut at = 0;
        while let Some(&byte) = input.get(at) {
            match self.state {
                State::Complete => break,
                State::Failed { .. } => return Err(self.failure()),
                State::Length { left } => {
                    let taken = self.take(&input[at..], left, out);
                    self.state = match left - taken as u64 {
                        0 => State::Complete,
                        left => State::Length { left },
                    };
                    at += taken;
                }
                State::Data { left } => {
                    let taken = self.take(&input[at..], left, out);
                    self.state = match left - taken as u64 {
                        0 => State::DataCr,
                        left => State::Data { left },
                    };
                    at += taken;
                }
                State::Trailer => {
                    self.state = self.trailer_byte(byte);
                    at += 1;
                }
                state => {
                    self.state = self.line_byte(state, byte);
                    at += 1;
                }
            }
        }
        match self.state {
            State::Failed { .. } => Err(self.failure()),
            _ => Ok(at),
        }
    }

    /// Whether the message is complete: the next byte of the connection is another request's.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        matches!(self.state, State::Complete)
    }

    /// Bytes still to come, when a Content-Length says so; 0 when complete; `None` inside the
    /// chunked coding, whose length nobody knows in advance.
    #[must_use]
    pub const fn left(&self) -> Option<u64> {
        match self.state {
            State::Complete => Some(0),
            State::Length { left } => Some(left),
            _ => None,
        }
    }

    /// Body bytes decoded so far.
    #[must_use]
    pub const fn received(&self) -> u64 {
        self.received
    }

    fn failure(&self) -> Refusal {
        match self.state {
            State::Failed { status, detail } => Refusal::new(status, detail),
            _ => Refusal::new(400, "the request body is damaged"),
        }
    }

    /// Appends at most `left` bytes and returns their number.
    fn take(&mut self, input: &[u8], left: u64, out: &mut Vec<u8>) -> usize {
        let taken = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
        out.extend_from_slice(&input[..taken]);
        self.received += taken as u64;
        taken
    }

    /// The state after `byte` of a size line or of the CRLF behind a chunk's data.
    fn line_byte(&mut self, state: State, byte: u8) -> State {
        const SIZE: State = State::Failed { status: 400, detail: "invalid chunk size" };
        match state {
            State::Size { size, digits } => {
                if let Some(digit) = char::from(byte).to_digit(16) {
                    match size.checked_mul(16).map(|size| size | u64::from(digit)) {
                        Some(size) if size <= CHUNK_BYTES_MAX && digits < SIZE_DIGITS_MAX => {
                            State::Size { size, digits: digits + 1 }
                        }
                        _ => SIZE,
                    }
                } else if digits == 0 {
                    SIZE
                } else if byte == b'\r' {
                    State::SizeEnd { size }
                } else {
                    extension_byte(size, Extension::BeforeSemicolon, byte).unwrap_or(SIZE)
                }
            }
            State::Extension { size, part } => {
                // A peer that sends one extension after the other makes us read without end.
                match self.extension_bytes_left.checked_sub(1) {
                    Some(left) => self.extension_bytes_left = left,
                    None => return State::Failed { status: 400, detail: "chunk extensions are too long" },
                }
                extension_byte(size, part, byte)
                    .unwrap_or(State::Failed { status: 400, detail: "invalid chunk extension" })
            }
            State::SizeEnd { size } => match (byte, size) {
                (b'\n', 0) => State::Trailer,
                (b'\n', _) if self.bytes_max != 0 && size > self.bytes_max - self.received => State::Failed {
                    status: 413,
                    detail: "the request body is larger than limit_request_body",
                },
                (b'\n', _) => State::Data { left: size },
                _ => State::Failed { status: 400, detail: "a chunk size line does not end with CRLF" },
            },
            State::DataCr if byte == b'\r' => State::DataLf,
            State::DataLf if byte == b'\n' => State::Size { size: 0, digits: 0 },
            _ => State::Failed { status: 400, detail: "the data of a chunk does not end with CRLF" },
        }
    }

    /// The state after `byte` of the trailer section.
    fn trailer_byte(&mut self, byte: u8) -> State {
        const TOO_MANY: State = State::Failed { status: 431, detail: "the trailer section is too long" };
        match self.trailer_bytes_left.checked_sub(1) {
            Some(left) => self.trailer_bytes_left = left,
            None => return TOO_MANY,
        }
        self.line.push(byte);
        if self.line.len() > self.line_bytes_max.max(2) {
            return TOO_MANY;
        }
        if byte != b'\n' {
            return State::Trailer;
        }
        if self.line == b"\r\n" {
            return State::Complete;
        }
        match self.trailers_left.checked_sub(1) {
            Some(left) => self.trailers_left = left,
            None => return TOO_MANY,
        }
        if !is_trailer(&self.line) {
            return State::Failed { status: 400, detail: "invalid or forbidden trailer field" };
        }
        self.line.clear();
        State::Trailer
    }
}

/// The state after `byte` behind a chunk size; `None` if it is not allowed there.
///
/// # Source
/// RFC 9112 section 7.1.1. Blanks are allowed only where the grammar has BWS.
fn extension_byte(size: u64, part: Extension, byte: u8) -> Option<State> {
    use Extension as E;
    let part = match (part, byte) {
        (E::Name | E::Value | E::AfterQuoted, b'\r') => return Some(State::SizeEnd { size }),
        (E::BeforeSemicolon | E::Name | E::AfterName | E::Value | E::AfterQuoted, b';') => E::BeforeName,
        (E::BeforeSemicolon | E::Value | E::AfterQuoted, b' ' | b'\t') => E::BeforeSemicolon,
        (E::BeforeName | E::BeforeValue, b' ' | b'\t') => part,
        (E::Name | E::AfterName, b' ' | b'\t') => E::AfterName,
        (E::Name | E::AfterName, b'=') => E::BeforeValue,
        (E::BeforeValue, b'"') => E::Quoted,
        (E::BeforeName | E::Name, _) if scan::is_token_byte(byte) => E::Name,
        (E::BeforeValue | E::Value, _) if scan::is_token_byte(byte) => E::Value,
        (E::Quoted, b'"') => E::AfterQuoted,
        (E::Quoted, b'\\') => E::Escaped,
        (E::Quoted | E::Escaped, _) if scan::is_text_byte(byte) => E::Quoted,
        _ => return None,
    };
    Some(State::Extension { size, part })
}

/// Whether `line` is a field line with its CRLF that may stand in a trailer section.
fn is_trailer(line: &[u8]) -> bool {
    let Some(line) = line.strip_suffix(b"\r\n") else { return false };
    let Some(colon) = memchr::memchr(b':', line) else { return false };
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    scan::is_token(name)
        && scan::is_text(value)
        && !FORBIDDEN_TRAILERS.iter().any(|forbidden| name.eq_ignore_ascii_case(forbidden))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use proptest::prelude::*;

    use super::*;

    /// Decodes `input` in pieces of the given lengths (then the rest), as a connection would.
    fn decode(policy: &Policy, input: &[u8], cuts: &[usize]) -> Result<(Vec<u8>, usize, bool), u16> {
        let mut decoder = BodyDecoder::new(Framing::Chunked, policy);
        let (mut out, mut at) = (Vec::new(), 0_usize);
        for cut in cuts.iter().copied().chain([usize::MAX]) {
            let piece = &input[at..at.saturating_add(cut).min(input.len())];
            let consumed = decoder.decode(piece, &mut out).map_err(|refusal| refusal.status)?;
            at += consumed;
            if consumed < piece.len() {
                assert!(decoder.is_complete(), "only the end of the message may leave bytes");
                break;
            }
        }
        assert_eq!(decoder.received(), out.len() as u64);
        Ok((out, at, decoder.is_complete()))
    }

    fn whole(input: &[u8]) -> Result<(Vec<u8>, usize, bool), u16> {
        decode(&Policy::default(), input, &[])
    }

    /// What the coding of `input` is however it arrives; `behind` must stay unread.
    fn check(input: &[u8], expected: &Result<&[u8], u16>) {
        let behind = b"GET /smuggled HTTP/1.1\r\n\r\n";
        let all = [input, behind].concat();
        for cut in 0..=all.len() {
            let got = decode(&Policy::default(), &all, &[cut]);
            let wanted = (*expected).map(|body| (body.to_vec(), input.len(), true));
            assert_eq!(got, wanted, "{} cut at {cut}", all.escape_ascii());
        }
    }

    #[test]
    fn chunks_are_joined_and_the_next_request_stays_unread() {
        for (input, body) in [
            (&b"5\r\nhello\r\n0\r\n\r\n"[..], &b"hello"[..]),
            (b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", b"hello world"),
            (b"0\r\n\r\n", b""),
            (b"5\r\nhello\r\n000\r\n\r\n", b"hello"),
            (b"000000000000000000005\r\nhello\r\n0\r\n\r\n", b"hello"),
            (b"aB\r\n012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890\r\n0\r\n\r\n",
             b"012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890"),
            (b"5;a=b\r\nhello\r\n0;c\r\n\r\n", b"hello"),
            (b"5 ;a=b\r\nhello\r\n0\r\n\r\n", b"hello"),
            (b"5; a=b\r\nhello\r\n0\r\n\r\n", b"hello"),
            (b"5;a = b\r\nhello\r\n0\r\n\r\n", b"hello"),
            (b"5\t;\ta=b\r\nhello\r\n0\r\n\r\n", b"hello"),
            (b"5;a=\"b;\\\" =c\xe9\";d=e;f\r\nhello\r\n0\r\n\r\n", b"hello"),
            (b"5\r\nhello\r\n0\r\nX-T: v\r\nX-U:\r\n\r\n", b"hello"),
        ] {
            check(input, &Ok(body));
        }
    }

    /// RFC 9112 section 7.1; each of these was a request smuggling somewhere.
    #[test]
    fn damaged_chunks_are_refused_wherever_they_are_cut() {
        for input in [
            &b"5h\r\nhello\r\n0\r\n\r\n"[..],
            b"+5\r\nhello\r\n0\r\n\r\n",
            b"-1\r\n\r\n",
            b"5\r\nhello\r\n-0\r\n\r\n",
            b"0x5\r\nhello\r\n0\r\n\r\n",
            b"five\r\nhello\r\n0\r\n\r\n",
            b" 5\r\nhello\r\n0\r\n\r\n",
            b"\t5\r\nhello\r\n0\r\n\r\n",
            b"5 \r\nhello\r\n0\r\n\r\n",
            b"5_0\r\nhello\r\n0\r\n\r\n",
            b"\r\nhello\r\n0\r\n\r\n",
            b"5\r\nhello\r\n\r\n\r\n",
            b"\xb2\r\nhe\r\n0\r\n\r\n",
            b"\xef\xbc\x95\r\nhello\r\n0\r\n\r\n",
            b"5\nhello\r\n0\r\n\r\n",
            b"5\r\r;ABCD\r\n",
            b"ffffffffffffffffffff\r\n",
            b"8000000000000000\r\n",
            b"0000000000000000000000000000000005\r\nhello\r\n0\r\n\r\n",
            b"5\r\nhello!\r\n0\r\n\r\n",
            b"6\r\nhello\r\n0\r\n\r\n",
            b"5\r\nhello\r0\r\n\r\n",
            b"5\r\nhello\rX0\r\n\r\n",
            b"5\r\nhelloX\n0\r\n\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"5\r\nhelloXY0\r\n\r\n",
            b"5\r\nhello\r\n0\n\r\n",
            b"5;\r\nhello\r\n0\r\n\r\n",
            b"5;;a\r\nhello\r\n0\r\n\r\n",
            b"5;a=\r\nhello\r\n0\r\n\r\n",
            b"5;a b\r\nhello\r\n0\r\n\r\n",
            b"5;a \r\nhello\r\n0\r\n\r\n",
            b"5;a=b \r\nhello\r\n0\r\n\r\n",
            b"5;a=\"b\r\nhello\r\n0\r\n\r\n",
            b"5;a=\"b\"c\r\nhello\r\n0\r\n\r\n",
            b"5;a=\x00b\r\nhello\r\n0\r\n\r\n",
            b"5;a=\x7fb\r\nhello\r\n0\r\n\r\n",
            b"5;a\r\r\nhello\r\n0\r\n\r\n",
            b"2;\nxx\r\n",
            b"5;a\n0\r\n\r\n",
            b"0\r\n X: folded\r\n\r\n",
            b"0\r\nX : v\r\n\r\n",
            b"0\r\nX\r\n\r\n",
            b"0\r\n: v\r\n\r\n",
            b"0\r\nX: a\x00b\r\n\r\n",
            b"0\r\nX: a\rb\r\n\r\n",
            b"0\r\nX: v\n\r\n",
            b"0\r\n\n",
            b"0\r\nContent-Length: 50\r\n\r\n",
            b"0\r\ntransfer-ENCODING: gzip\r\n\r\n",
            b"0\r\nHost: evil.example\r\n\r\n",
            b"0\r\nAuthorization: Basic eA==\r\n\r\n",
        ] {
            check(input, &Err(400));
        }
    }

    #[test]
    fn an_unfinished_body_is_not_complete() {
        for input in [
            &b""[..],
            b"5",
            b"5\r\nhello\r\n",
            b"5\r\nhello\r\n0\r\n",
            b"0\r\n\r",
            b"0\r\nXY",
            b"100000005\r\nhello",
        ] {
            let (_, consumed, complete) = whole(input).unwrap();
            assert!(!complete && consumed == input.len(), "{}", input.escape_ascii());
        }
    }

    #[test]
    fn a_failed_decoder_stays_failed() {
        let mut decoder = BodyDecoder::new(Framing::Chunked, &Policy::default());
        let mut out = Vec::new();
        assert!(decoder.decode(b"x", &mut out).is_err());
        assert_eq!(decoder.decode(b"5\r\nhello\r\n0\r\n\r\n", &mut out).unwrap_err().status, 400);
        assert!(!decoder.is_complete() && out.is_empty());
        assert_eq!(decoder.left(), None);
    }

    #[test]
    fn a_length_takes_its_bytes_and_no_more() {
        let mut decoder = BodyDecoder::new(Framing::Length(5), &Policy::default());
        let mut out = Vec::new();
        assert_eq!(decoder.decode(b"he", &mut out), Ok(2));
        assert_eq!((decoder.left(), decoder.is_complete()), (Some(3), false));
        assert_eq!(decoder.decode(b"lloGET / HTTP/1.1", &mut out), Ok(3));
        assert_eq!((decoder.left(), decoder.is_complete()), (Some(0), true));
        assert_eq!(decoder.decode(b"GET / HTTP/1.1", &mut out), Ok(0));
        assert_eq!(out, b"hello");
        assert!(BodyDecoder::new(Framing::None, &Policy::default()).is_complete());
    }

    #[test]
    fn the_body_limit_holds_from_both_sides() {
        let policy = Policy { body_bytes_max: 10, ..Policy::default() };
        let exact = b"5\r\nhello\r\n5\r\nworld\r\n0\r\n\r\n";
        assert_eq!(decode(&policy, exact, &[]), Ok((b"helloworld".to_vec(), exact.len(), true)));
        assert_eq!(decode(&policy, b"5\r\nhello\r\n6\r\nworld!\r\n0\r\n\r\n", &[]), Err(413));
        // Refused when announced, not when sent.
        assert_eq!(decode(&policy, b"b\r\n", &[]), Err(413));
    }

    #[test]
    fn extensions_and_trailers_are_bounded() {
        let extension =
            |bytes: usize| [b"5;a=", &vec![b'b'; bytes - 4][..], b"\r\nhello\r\n0\r\n\r\n"].concat();
        // The semicolon ends the size, so it is not counted; the CR is.
        assert!(whole(&extension(CHUNK_EXTENSION_BYTES_MAX)).is_ok());
        assert_eq!(whole(&extension(CHUNK_EXTENSION_BYTES_MAX + 2)), Err(400));
        let many = [b"0\r\n".as_slice(), &b"X: v\r\n".repeat(100), b"\r\n"].concat();
        assert!(whole(&many).is_ok());
        let too_many = [b"0\r\n".as_slice(), &b"X: v\r\n".repeat(101), b"\r\n"].concat();
        assert_eq!(whole(&too_many), Err(431));
        assert_eq!(whole(&[b"0\r\nX: ", &vec![b'v'; 9000][..]].concat()), Err(431));
        let large =
            [b"0\r\n".as_slice(), &[b"X: ", &vec![b'v'; 4000][..], b"\r\n"].concat().repeat(20)].concat();
        assert_eq!(whole(&large), Err(431));
    }

    /// A second decoder, as plain as possible: the whole input at once, no extensions, no trailers.
    fn reference(mut input: &[u8]) -> Option<(Vec<u8>, usize)> {
        let (all, mut out) = (input.len(), Vec::new());
        loop {
            let line = input.windows(2).position(|pair| pair == b"\r\n")?;
            let digits = std::str::from_utf8(&input[..line]).ok()?;
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return None;
            }
            let size = usize::from_str_radix(digits, 16).ok()?;
            input = &input[line + 2..];
            out.extend_from_slice(input.get(..size)?);
            input = input[size..].strip_prefix(b"\r\n")?;
            if size == 0 {
                return Some((out, all - input.len()));
            }
        }
    }

    proptest! {
        /// Whatever the pieces, a valid body comes out as the reference reads it.
        #[test]
        fn any_split_of_a_valid_body_gives_the_same_bytes(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..8),
            behind in proptest::collection::vec(any::<u8>(), 0..20),
            cuts in proptest::collection::vec(0_usize..30, 0..20),
        ) {
            let mut input = Vec::new();
            for chunk in &chunks {
                input.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                input.extend_from_slice(chunk);
                input.extend_from_slice(b"\r\n");
            }
            input.extend_from_slice(b"0\r\n\r\n");
            let len = input.len();
            input.extend_from_slice(&behind);
            let (body, consumed, complete) = decode(&Policy::default(), &input, &cuts).unwrap();
            prop_assert_eq!(reference(&input), Some((body.clone(), consumed)));
            prop_assert_eq!(body, chunks.concat());
            prop_assert!(complete && consumed == len);
        }

        /// On noise that looks like chunks: a complete body is one that the reference accepts.
        #[test]
        fn what_is_accepted_is_what_the_reference_accepts(
            parts in proptest::collection::vec(proptest::sample::select(
                ["0", "1", "3", "\r\n", "\r", "\n", "a", "xyz", " ", "+", "1\r\nx\r\n", "0\r\n\r\n"].to_vec(),
            ), 0..12),
            cuts in proptest::collection::vec(0_usize..6, 0..12),
        ) {
            let input = parts.concat().into_bytes();
            let got = decode(&Policy::default(), &input, &cuts).ok().filter(|(_, _, complete)| *complete);
            prop_assert_eq!(got.map(|(body, consumed, _)| (body, consumed)), reference(&input));
        }
    }
}
