//! The framing of responses: where one ends and the next begins.
//!
//! Pure: bytes in, answers out. Bodies are counted and thrown away. Source: RFC 9112 sections 6 and 7. It knows what a
//! server may send, and calls everything else bad: a load test that takes a broken answer for a good one is worthless.

use std::fmt;

/// Largest head, and largest line of a chunk or a trailer, in bytes.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;
const LINE_BYTES_MAX: usize = 4096;
const FIELDS_MAX: usize = 128;

/// A complete response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its status code; interim (1xx) ones are skipped.
    pub status: u16,
    /// Whether the connection can carry another request.
    pub keeps: bool,
}

/// What [`Parser::step`] did with its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Bytes of the input that are done with. The rest must be given again, with more behind it.
    pub consumed: usize,
    /// The response that ends there, if one does.
    pub answer: Option<Answer>,
}

/// What the end of the connection means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It came between two responses.
    Between,
    /// It was the end of a response without a length.
    Answer(Answer),
    /// It cut a response off.
    Truncated,
}

/// Why something is not a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bad(pub &'static str);

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    Length(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailer,
    UntilClose,
}

/// Reads the responses of one connection.
#[derive(Debug)]
pub struct Parser {
    state: State,
    answer: Answer,
}

impl Default for Parser {
    fn default() -> Self {
        Self { state: State::Head, answer: Answer { status: 0, keeps: false } }
    }
}

impl Parser {
    /// Reads on, to the end of one response at most. `to_head` says whether that response answers a HEAD request.
    ///
    /// # Errors
    /// The bytes are no response. The connection is of no use then.
    pub fn step(&mut self, input: &[u8], to_head: bool) -> Result<Step, Bad> {
        let mut at = 0;
        loop {
            let rest = &input[at..];
            match self.state {
                State::Head => match self.head(rest, to_head)? {
                    Some(consumed) => at += consumed,
                    None => return Ok(Step { consumed: at, answer: None }),
                },
                State::Length(0) => {
                    self.state = State::Head;
                    return Ok(Step { consumed: at, answer: Some(self.answer) });
                }
                State::Length(left) => {
                    let taken = left.min(rest.len() as u64);
                    at += taken as usize;
                    self.state = State::Length(left - taken);
                    if taken < left {
                        return Ok(Step { consumed: at, answer: None });
                    }
                }
                State::ChunkSize => match line(rest)? {
                    Some((text, consumed)) => {
                        at += consumed;
                        self.state = match chunk_size(text)? {
                            0 => State::Trailer,
                            size => State::ChunkData(size),
                        };
                    }
                    None => return Ok(Step { consumed: at, answer: None }),
                },
                State::ChunkData(left) => {
                    let taken = left.min(rest.len() as u64);
                    at += taken as usize;
                    if taken < left {
                        self.state = State::ChunkData(left - taken);
                        return Ok(Step { consumed: at, answer: None });
                    }
                    self.state = State::ChunkEnd;
                }
                State::ChunkEnd => match rest {
                    [b'\r', b'\n', ..] => {
                        at += 2;
                        self.state = State::ChunkSize;
                    }
                    [] | [b'\r'] => return Ok(Step { consumed: at, answer: None }),
                    _ => return Err(Bad("a chunk is longer than its size says")),
                },
                State::Trailer => match line(rest)? {
                    Some((text, consumed)) => {
                        at += consumed;
                        if text.is_empty() {
                            self.state = State::Length(0);
                        }
                    }
                    None => return Ok(Step { consumed: at, answer: None }),
                },
                State::UntilClose => return Ok(Step { consumed: input.len(), answer: None }),
            }
        }
    }

    /// The server has ended the connection, and `rest` bytes of what it sent could not be read yet.
    pub fn end(&mut self, rest: usize) -> End {
        match self.state {
            State::Head if rest == 0 => End::Between,
            State::UntilClose => {
                self.state = State::Head;
                End::Answer(self.answer)
            }
            _ => End::Truncated,
        }
    }

    /// Reads a head, if it is complete; an interim one, too.
    fn head(&mut self, input: &[u8], to_head: bool) -> Result<Option<usize>, Bad> {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut head = httparse::Response::new(&mut fields);
        let consumed = match head.parse(input) {
            Ok(httparse::Status::Complete(consumed)) => consumed,
            Ok(httparse::Status::Partial) if input.len() >= HEAD_BYTES_MAX => {
                return Err(Bad("the head is too large"));
            }
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(httparse::Error::TooManyHeaders) => return Err(Bad("the head has too many fields")),
            Err(_) => return Err(Bad("the head is malformed")),
        };
        let (Some(status), Some(version)) = (head.code, head.version) else {
            return Err(Bad("the head is malformed"));
        };
        if (100..200).contains(&status) {
            // Nobody asked for another protocol.
            return if status == 101 {
                Err(Bad("the server switches protocols"))
            } else {
                Ok(Some(consumed))
            };
        }
        let mut length = None;
        let mut chunked = false;
        let mut keeps = version == 1;
        for field in head.headers.iter() {
            if field.name.eq_ignore_ascii_case("content-length") {
                let value = number(field.value).ok_or(Bad("the Content-Length is no number"))?;
                if length.is_some_and(|before| before != value) {
                    return Err(Bad("two lengths contradict each other"));
                }
                length = Some(value);
            } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
                if chunked || !field.value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                    return Err(Bad("the transfer encoding is not chunked alone"));
                }
                chunked = true;
            } else if field.name.eq_ignore_ascii_case("connection") {
                for option in field.value.split(|byte| *byte == b',') {
                    let option = option.trim_ascii();
                    if option.eq_ignore_ascii_case(b"close") {
                        keeps = false;
                    } else if option.eq_ignore_ascii_case(b"keep-alive") && version == 0 {
                        keeps = true;
                    }
                }
            }
        }
        if chunked && length.is_some() {
            return Err(Bad("the response has a length and is chunked"));
        }
        self.state = if to_head || status == 204 || status == 304 {
            State::Length(0)
        } else if chunked {
            State::ChunkSize
        } else if let Some(length) = length {
            State::Length(length)
        } else {
            keeps = false;
            State::UntilClose
        };
        self.answer = Answer { status, keeps };
        Ok(Some(consumed))
    }
}

/// A line without its end, and its length with it; `None` when the input ends first.
fn line(input: &[u8]) -> Result<Option<(&[u8], usize)>, Bad> {
    match input.iter().position(|byte| *byte == b'\n') {
        Some(end) if end > 0 && input[end - 1] == b'\r' => Ok(Some((&input[..end - 1], end + 1))),
        Some(_) => Err(Bad("a line of the chunked body does not end in CRLF")),
        None if input.len() > LINE_BYTES_MAX => Err(Bad("a line of the chunked body is too long")),
        None => Ok(None),
    }
}

fn chunk_size(line: &[u8]) -> Result<u64, Bad> {
    let end = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
    let rest = line[end..].trim_ascii();
    if end == 0 || end > 15 || !(rest.is_empty() || rest[0] == b';') {
        return Err(Bad("the size of a chunk is no number"));
    }
    Ok(line[..end].iter().fold(0, |size, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            _ => (digit | 0x20) - b'a' + 10,
        };
        size << 4 | u64::from(digit)
    }))
}

fn number(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.len() < 19 && text.iter().all(u8::is_ascii_digit);
    digits.then(|| text.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Reads all responses as a connection does, the bytes coming in pieces that end at the given places.
    fn read(bytes: &[u8], cuts: &[usize], to_head: bool) -> (Vec<Answer>, Result<End, Bad>) {
        let (mut parser, mut answers, mut held) = (Parser::default(), Vec::new(), Vec::new());
        let mut start = 0;
        for &cut in cuts.iter().chain([&bytes.len()]) {
            held.extend_from_slice(&bytes[start..cut]);
            start = cut;
            loop {
                match parser.step(&held, to_head) {
                    Ok(step) => {
                        held.drain(..step.consumed);
                        answers.extend(step.answer);
                        if step.answer.is_none() || held.is_empty() {
                            break;
                        }
                    }
                    Err(bad) => return (answers, Err(bad)),
                }
            }
        }
        (answers, Ok(parser.end(held.len())))
    }

    /// The same wherever the bytes are cut, once or at every place.
    fn expect(bytes: &[u8], to_head: bool, answers: &[Answer], end: Result<End, Bad>) {
        for cut in 0..=bytes.len() {
            assert_eq!(read(bytes, &[cut], to_head), (answers.to_vec(), end), "cut at {cut}");
        }
        let everywhere: Vec<usize> = (0..bytes.len()).collect();
        assert_eq!(read(bytes, &everywhere, to_head), (answers.to_vec(), end), "cut everywhere");
    }

    fn answer(status: u16, keeps: bool) -> Answer {
        Answer { status, keeps }
    }

    #[test]
    fn responses_with_a_length_follow_each_other() {
        let one = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello".as_slice();
        let other = b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n".as_slice();
        let both = [one, other, one].concat();
        expect(&both, false, &[answer(200, true), answer(404, true), answer(200, true)], Ok(End::Between));
    }

    #[test]
    fn a_chunked_response_ends_behind_its_trailers() {
        let one = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
            5\r\nhello\r\nA;x=\"y\"\r\n0123456789\r\n0\r\nX-Sum: 3\r\n\r\n"
            .as_slice();
        expect(&[one, one].concat(), false, &[answer(200, true), answer(200, true)], Ok(End::Between));
    }

    #[test]
    fn without_a_length_the_end_of_the_connection_is_the_end() {
        let bytes = b"HTTP/1.1 200 OK\r\n\r\nanything at all";
        expect(bytes, false, &[], Ok(End::Answer(answer(200, false))));
    }

    #[test]
    fn answers_to_head_and_204_and_304_have_no_body_whatever_they_announce() {
        let next = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".as_slice();
        let announced = [b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n".as_slice(), next].concat();
        expect(&announced, true, &[answer(200, true); 2], Ok(End::Between));
        for status in [204, 304] {
            let head = format!("HTTP/1.1 {status} X\r\nContent-Length: 7\r\n\r\n");
            let bytes = [head.as_bytes(), next].concat();
            expect(&bytes, false, &[answer(status, true), answer(200, true)], Ok(End::Between));
        }
    }

    #[test]
    fn interim_responses_are_skipped() {
        let bytes = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n\
            HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok";
        expect(bytes, false, &[answer(201, true)], Ok(End::Between));
    }

    #[test]
    fn the_connection_header_and_the_version_say_whether_it_goes_on() {
        for (head, keeps) in [
            ("HTTP/1.1 200 OK\r\nConnection: close\r\n", false),
            ("HTTP/1.1 200 OK\r\nConnection: Upgrade, Close\r\n", false),
            ("HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n", true),
            ("HTTP/1.0 200 OK\r\n", false),
            ("HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n", true),
        ] {
            let bytes = format!("{head}Content-Length: 1\r\n\r\nx");
            expect(bytes.as_bytes(), false, &[answer(200, keeps)], Ok(End::Between));
        }
    }

    #[test]
    fn an_end_amid_a_response_is_no_answer() {
        for whole in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ] {
            for end in 1..whole.len() {
                let (answers, end) = read(&whole.as_bytes()[..end], &[], false);
                assert_eq!((answers, end), (vec![], Ok(End::Truncated)));
            }
        }
    }

    #[test]
    fn what_is_no_response_is_bad() {
        for bytes in [
            "SSH-2.0-OpenSSH_9.2\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\nab\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1000000000000000\r\n",
            "HTTP/1.1 101 Switching Protocols\r\n\r\n",
        ] {
            for cut in 0..=bytes.len() {
                let (answers, end) = read(bytes.as_bytes(), &[cut], false);
                assert!(answers.is_empty() && end.is_err(), "{bytes:?} cut at {cut}: {answers:?} {end:?}");
            }
        }
    }

    #[test]
    fn heads_and_lines_without_an_end_are_given_up() {
        let head = [b"HTTP/1.1 200 OK\r\nX: ".as_slice(), &[b'x'; HEAD_BYTES_MAX]].concat();
        assert!(Parser::default().step(&head, false).is_err());
        let mut chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        chunked.extend_from_slice(&[b'0'; LINE_BYTES_MAX + 1]);
        assert!(Parser::default().step(&chunked, false).is_err());
    }
}
