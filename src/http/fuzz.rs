//! Entry points for fuzzing, kept beside the code: a fuzzer calls them with what it makes, and the
//! tests here with what a seed makes. They panic when a promise is broken.

use super::{
    BodyDecoder, Encoder, End, Framing, Head, Policy, ProxyInfo, ProxyMode, Span, Version, parse_proxy,
    relax, scan,
};

/// Cuts of an input, made from a seed: lengths of pieces between 1 and 16 bytes.
struct Cuts(u64);

impl Cuts {
    fn piece(&mut self) -> usize {
        // xorshift64: any sequence will do, if only the same seed gives the same one.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        1 + (self.0 & 15) as usize
    }
}

/// Splits what a fuzzer made into a choice and the bytes to work on.
fn choose(data: &[u8]) -> Option<(u8, Cuts, &[u8])> {
    let (&[choice, seed], rest) = data.split_first_chunk()?;
    Some((choice, Cuts(u64::from(seed) + 1), rest))
}

/// A head keeps its promises, and says the same however it arrives.
pub fn fuzz_head(data: &[u8]) {
    let Some((choice, mut cuts, input)) = choose(data) else { return };
    let policy = Policy {
        request_line_bytes_max: if choice & 1 == 0 { 8190 } else { 20 },
        fields_max: if choice & 2 == 0 { 100 } else { 3 },
        permit_unconventional_http_method: choice & 4 != 0,
        permit_unconventional_http_version: choice & 8 != 0,
        permit_obsolete_folding: choice & 16 != 0,
        strip_header_spaces: choice & 32 != 0,
        casefold_http_method: choice & 64 != 0,
        ..Policy::default()
    };
    let trusted = choice & 128 != 0;
    let mut input = input.to_vec();
    let mut head = Head::default();
    let mut growing = input.clone();
    relax(&mut input, 0, &policy);
    let whole = head.parse(&input, &mut 0, &policy, trusted);

    let (mut grown, mut scanned, mut len) = (Head::default(), 0, 0);
    let in_pieces = loop {
        len = (len + cuts.piece()).min(input.len());
        relax(&mut growing[..len], scanned, &policy);
        match grown.parse(&growing[..len], &mut scanned, &policy, trusted) {
            Ok(None) if len < input.len() => {}
            answer => break answer,
        }
    };
    match (&whole, &in_pieces) {
        (Ok(Some(one)), Ok(Some(other))) => {
            assert_eq!(one, other, "lengths of the head");
            assert_eq!(input[..*one], growing[..*one], "what was relaxed");
            assert_eq!(
                (head.method, head.target, head.path, head.query, &head.fields),
                (grown.method, grown.target, grown.path, grown.query, &grown.fields)
            );
            assert_eq!((head.framing, head.keep_alive), (grown.framing, grown.keep_alive));
            check_head(&head, &input[..*one]);
        }
        (Ok(None), Ok(None)) | (Err(_), Err(_)) => {}
        // Damage in a head that never ends may be noticed earlier in one piece than in many.
        (Err(_), Ok(None)) => assert!(!input.windows(4).any(|end| end == b"\r\n\r\n")),
        _ => panic!("{whole:?} in one piece, {in_pieces:?} in many: {}", input.escape_ascii()),
    }
}

fn check_head(head: &Head, bytes: &[u8]) {
    let text = |span: Span| {
        assert!(span.start <= span.end && span.end as usize <= bytes.len(), "{span:?} lies outside");
        span.of(bytes)
    };
    assert!(bytes.ends_with(b"\r\n\r\n"));
    for (at, byte) in bytes.iter().enumerate() {
        assert!(*byte != b'\n' || (at > 0 && bytes[at - 1] == b'\r'), "a bare LF");
        assert!(*byte != b'\r' || bytes.get(at + 1) == Some(&b'\n'), "a bare CR");
    }
    assert!(scan::is_token(text(head.method)));
    assert!(text(head.target).iter().all(u8::is_ascii_graphic));
    let path = text(head.path);
    assert!(path == b"*" || path.starts_with(b"/"));
    assert!(!path.contains(&b'?') && !path.contains(&b'#') && !text(head.query).contains(&b'#'));
    for field in &head.fields {
        assert!(scan::is_token(text(field.name)));
        assert!(scan::is_text(text(field.value)));
        assert_eq!(scan::trim(text(field.value)), text(field.value));
        assert!(!text(field.name).eq_ignore_ascii_case(b"proxy"));
    }
    let count = |name: &str| {
        head.fields.iter().filter(|field| text(field.name).eq_ignore_ascii_case(name.as_bytes())).count()
    };
    assert!(count("host") <= 1 && (count("host") == 1 || head.version == Version::Http10));
    assert!(count("content-length") + count("transfer-encoding") <= 1);
    assert_eq!(head.framing == Framing::Chunked, count("transfer-encoding") == 1);
    assert_eq!(head.content_length.is_some(), count("content-length") == 1);
    if let Framing::Length(length) = head.framing {
        assert!(length > 0 && head.content_length == Some(length));
    }
}

/// A chunked body says the same however it arrives, and nothing is read beyond its end.
pub fn fuzz_body(data: &[u8]) {
    let Some((choice, mut cuts, input)) = choose(data) else { return };
    let policy = Policy { body_bytes_max: u64::from(choice) * 2, ..Policy::default() };
    let mut decoder = BodyDecoder::new(Framing::Chunked, &policy);
    let mut body = Vec::new();
    let whole = decoder.decode(input, &mut body).map_err(|refusal| refusal.status);

    let mut other = BodyDecoder::new(Framing::Chunked, &policy);
    let (mut body_in_pieces, mut at) = (Vec::new(), 0);
    let in_pieces = loop {
        let end = (at + cuts.piece()).min(input.len());
        match other.decode(&input[at..end], &mut body_in_pieces) {
            Ok(consumed) => {
                at += consumed;
                assert!(at == end || other.is_complete(), "bytes left over inside the body");
                if at < end || end == input.len() {
                    break Ok(at);
                }
            }
            Err(refusal) => break Err(refusal.status),
        }
    };
    assert_eq!(whole, in_pieces);
    assert_eq!(body, body_in_pieces);
    assert_eq!(decoder.is_complete(), other.is_complete());
    assert!(body.len() <= input.len() && (choice == 0 || body.len() <= usize::from(choice) * 2));
    if let Ok(consumed) = whole {
        assert_eq!(decoder.received(), body.len() as u64);
        if decoder.is_complete() {
            assert!(input[..consumed].ends_with(b"\r\n"));
        }
    }
}

/// A PROXY header says the same however it arrives.
pub fn fuzz_proxy(data: &[u8]) {
    let Some((choice, mut cuts, input)) = choose(data) else { return };
    let mode = [ProxyMode::Off, ProxyMode::V1, ProxyMode::V2, ProxyMode::Auto][usize::from(choice & 3)];
    let whole = parse_proxy(input, mode);
    let mut len = 0;
    let in_pieces = loop {
        len = (len + cuts.piece()).min(input.len());
        match parse_proxy(&input[..len], mode) {
            Ok(None) if len < input.len() => {}
            answer => break answer,
        }
    };
    if let Ok(Some((consumed, info))) = &whole {
        assert!(*consumed <= input.len() && (*consumed == 0) == (*info == ProxyInfo::Absent));
    }
    let status =
        |answer: &Result<_, super::Refusal>| answer.as_ref().map_or_else(|refusal| refusal.status, |_| 0);
    assert_eq!(status(&whole), status(&in_pieces));
    assert_eq!(whole.ok(), in_pieces.ok());
}

/// Whatever an application passes, the response is one response: a head without a line that was
/// not accepted, and a body whose end a client finds where we think it is.
pub fn fuzz_response(data: &[u8]) {
    let Some((choice, mut cuts, mut input)) = choose(data) else { return };
    let mut next = || {
        let (piece, rest) = input.split_at(cuts.piece().min(input.len()));
        input = rest;
        piece
    };
    let mut encoder = Encoder::new();
    let version = if choice & 1 == 0 { Version::Http11 } else { Version::Http10 };
    let is_head = choice & 2 != 0;
    encoder.reset(version, is_head, choice & 4 == 0);
    if encoder.start(next()).is_err() && encoder.start(b"200 OK").is_err() {
        panic!("a plain status is refused");
    }
    let mut fields = 0;
    for _ in 0..4 {
        let (name, value) = (next(), next());
        fields += usize::from(encoder.header(name, value).is_ok());
    }
    if choice & 8 != 0 && encoder.content_length().is_none() {
        fields += usize::from(encoder.header(b"content-length", b"7").is_ok());
    }
    let mut out = Vec::new();
    assert!(encoder.begin(&mut out, &[b'd'; 29], None).is_ok());
    let lines = out.iter().filter(|byte| **byte == b'\n').count();
    // Status line, Server, Date, Connection, one for the length, and the empty line.
    assert!(out.ends_with(b"\r\n\r\n") && lines <= fields + 6, "{}", out.escape_ascii());
    assert_eq!(out.iter().filter(|byte| **byte == b'\r').count(), lines);
    let head_len = out.len();
    let mut sent = Vec::new();
    for _ in 0..4 {
        let piece = next();
        let what = encoder.piece(piece.len(), &mut out);
        out.extend_from_slice(&piece[..what.send]);
        out.extend_from_slice(what.after);
        sent.extend_from_slice(&piece[..what.send]);
    }
    let end = encoder.finish(&mut out);
    assert_eq!(encoder.body_bytes(), sent.len() as u64);
    let (head, body) = out.split_at(head_len);
    let is_chunked = memchr::memmem::find(head, b"\r\nTransfer-Encoding: chunked\r\n").is_some();
    if is_chunked {
        let mut decoder = BodyDecoder::new(Framing::Chunked, &Policy::default());
        let mut decoded = Vec::new();
        let consumed = decoder.decode(body, &mut decoded).map_err(|refusal| refusal.status);
        assert_eq!(consumed, Ok(body.len()));
        assert!(decoder.is_complete() && decoded == sent && end != End::Cut);
    } else {
        assert_eq!(body, sent);
        let announced = encoder
            .content_length()
            .filter(|_| !is_head && !matches!(encoder.status_code(), 204 | 205 | 304));
        if let Some(length) = announced {
            assert!(sent.len() as u64 <= length);
            assert_eq!(end == End::Cut, (sent.len() as u64) < length);
        }
    }
    assert!(!is_head || body.is_empty());
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    /// Inputs of each test. A fuzzer makes billions; this only keeps the entry points honest.
    const INPUTS: usize = 4000;

    /// Calls `entry` with sequences of `words`, sometimes damaged by a random byte.
    fn run(seed: u64, words: &[&[u8]], entry: fn(&[u8])) {
        let mut state = seed;
        let mut below = |bound: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % bound as u64).unwrap()
        };
        for index in 0..INPUTS {
            let mut data = vec![below(256) as u8, below(256) as u8];
            for _ in 0..below(16) {
                data.extend_from_slice(words[below(words.len())]);
            }
            if below(3) == 0 {
                let at = below(data.len());
                data[at] = below(256) as u8;
            }
            let outcome = std::panic::catch_unwind(|| entry(&data));
            assert!(outcome.is_ok(), "seed {seed}, input {index}: {}", data.escape_ascii());
        }
    }

    #[test]
    fn heads_keep_their_promises() {
        let words: [&[u8]; 26] = [
            b"GET ",
            b"POST /",
            b"/a",
            b"?b",
            b"#c",
            b" HTTP/1.1\r\n",
            b" HTTP/1.0\r\n",
            b" HTTP/1.5\r\n",
            b" HTTP/2.0\r\n",
            b"GET /a HTTP/1.1\r\nHost: a\r\n",
            b"GET http://b?c HTTP/1.1\r\nHost: a\r\n",
            b"OPTIONS * HTTP/1.1\r\n",
            b"Host: a\r\n",
            b"X-A: b\r\n",
            b"X_A: b\r\n",
            b"Proxy: b\r\n",
            b"Content-Length: 5\r\n",
            b"Content-Length: 0\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Connection: close\r\n",
            b" folded\r\n",
            b"X : b\r\n",
            b"\r\n",
            b"\r\n\r\n",
            b"\n",
            b"\r",
        ];
        run(1, &words, fuzz_head);
        // The same, but most of them complete.
        run(2, &words, |data| fuzz_head(&[data, b"\r\n\r\n"].concat()));
        // And on a request line that is right, so that fields come to matter.
        run(3, &words, |data| {
            fuzz_head(&[&data[..2], b"GET /a HTTP/1.1\r\nHost: a\r\n", &data[2..], b"\r\n\r\n"].concat());
        });
    }

    #[test]
    fn bodies_keep_their_promises() {
        let words: [&[u8]; 16] = [
            b"5\r\nhello\r\n",
            b"1\r\nx\r\n",
            b"0\r\n",
            b"\r\n",
            b"0\r\n\r\n",
            b"X: y\r\n",
            b"Host: y\r\n",
            b"3;a=b\r\nabc\r\n",
            b"1 ; a = \"\\\"\" ;b\r\nx\r\n",
            b"f",
            b";",
            b" ",
            b"\r",
            b"\n",
            b"\"",
            b"GET / HTTP/1.1\r\n\r\n",
        ];
        run(4, &words, fuzz_body);
    }

    #[test]
    fn proxy_headers_keep_their_promises() {
        let words: [&[u8]; 12] = [
            b"PROXY ",
            b"TCP4 ",
            b"TCP6 ",
            b"UNKNOWN",
            b"192.0.2.1 ",
            b"::1 ",
            b"443",
            b"\r\n",
            b"\r\n\r\n\0\r\nQUIT\n",
            b"\x21\x11\0\x0c",
            b"\x20\0\0\0",
            b"abcdefghijkl",
        ];
        run(5, &words, fuzz_proxy);
        run(6, &words, |data| {
            fuzz_proxy(&[&data[..2], b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", &data[2..]].concat())
        });
    }

    #[test]
    fn responses_keep_their_promises() {
        let words: [&[u8]; 14] = [
            b"200 OK",
            b"204 ",
            b"304 x",
            b"X-A",
            b"b",
            b"\r\n",
            b"\n",
            b"Injected: yes",
            b"content-length",
            b"5",
            b"connection",
            b"close",
            b"date",
            b"\xff",
        ];
        run(7, &words, fuzz_response);
    }
}
