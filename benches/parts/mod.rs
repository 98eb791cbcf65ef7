//! The parts of a request, each as a thing to do once: what `request` times and `instructions` counts.

use std::borrow::Cow;
use std::hint::black_box;
use std::time::Duration;

#[cfg(feature = "python")]
use ringhorn::app::python::Environs;
use ringhorn::http::{BodyDecoder, Encoder, Framing, Head, Policy, Version, imf_fixdate};
use ringhorn::observe::{AccessFormat, AccessRecord};
use ringhorn::ring::{TICK_MS, Token, Wheel};
use ringhorn::worker::simulation::Steady;

/// What wrk sends.
const SMALL: &[u8] = b"GET / HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n\r\n";

/// What a browser sends.
const BROWSER: &[u8] = b"GET /guestbook/entries?page=3&sort=created HTTP/1.1\r\n\
    Host: www.example.org\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
    Accept-Language: en-US,en;q=0.5\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\n\
    Referer: https://www.example.org/guestbook/\r\n\
    Connection: keep-alive\r\n\
    Cookie: csrftoken=d2FikRBd5AsvWqIwzQJBBsPrVrS1ntdH; sessionid=8u2c1o3p5v7x9z1b3d5f7h9j1l3n5p7r\r\n\
    Upgrade-Insecure-Requests: 1\r\n\
    Sec-Fetch-Dest: document\r\n\
    Sec-Fetch-Mode: navigate\r\n\
    Sec-Fetch-Site: same-origin\r\n\
    Priority: u=0, i\r\n\r\n";

/// gunicorn's default.
const ACCESS_FORMAT: &str = r#"%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s""#;

/// Connections whose deadlines the wheel holds.
const DEADLINES: u32 = 1024;

/// Something that can be done again and again.
pub(crate) struct Part {
    /// Its name in the reports.
    pub(crate) name: &'static str,
    /// Bytes that one time works on, where that says something.
    pub(crate) bytes: Option<u64>,
    /// Does it once.
    pub(crate) run: Box<dyn FnMut()>,
}

/// All parts that run on one thread, in the order in which a request meets them.
pub(crate) fn parts() -> Vec<Part> {
    let chunked = chunked_body();
    vec![
        part("head/small", Some(SMALL.len()), head(SMALL)),
        part("head/browser", Some(BROWSER.len()), head(BROWSER)),
        part("chunked/64 of 1 KiB", Some(chunked.len()), chunks(chunked)),
        #[cfg(feature = "python")]
        part("environ/small", None, environ(SMALL)),
        #[cfg(feature = "python")]
        part("environ/browser", None, environ(BROWSER)),
        part("response/three fields", None, response()),
        part("access line", None, access_line(ACCESS_FORMAT)),
        part("access line/json", None, access_line("json")),
        part("timing wheel/reschedule", None, wheel()),
        part("request/simulated ring", None, request(Steady::alone())),
    ]
}

/// Parts that take two threads: their instructions depend on who waits for whom.
pub(crate) fn threaded() -> Vec<Part> {
    vec![part("request/simulated ring, handed to a runner and back", None, request(Steady::with_runner()))]
}

fn part(name: &'static str, bytes: Option<usize>, run: Box<dyn FnMut()>) -> Part {
    Part { name, bytes: bytes.map(|bytes| bytes as u64), run }
}

fn head(bytes: &'static [u8]) -> Box<dyn FnMut()> {
    let policy = Policy::default();
    let mut head = Head::default();
    Box::new(move || {
        black_box(head.parse(black_box(bytes), &mut 0, &policy, false).unwrap());
    })
}

fn chunked_body() -> Vec<u8> {
    let mut body = Vec::new();
    for _ in 0..64 {
        body.extend_from_slice(b"400\r\n");
        body.extend_from_slice(&[b'x'; 1024]);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"0\r\n\r\n");
    body
}

fn chunks(body: Vec<u8>) -> Box<dyn FnMut()> {
    let policy = Policy::default();
    let mut out = Vec::with_capacity(body.len());
    Box::new(move || {
        out.clear();
        black_box(BodyDecoder::new(Framing::Chunked, &policy).decode(black_box(&body), &mut out).unwrap());
    })
}

#[cfg(feature = "python")]
fn environ(head: &'static [u8]) -> Box<dyn FnMut()> {
    // Only where it is asked for: the interpreter takes its time to start, most of all under valgrind.
    let mut environs = None;
    Box::new(move || environs.get_or_insert_with(|| Environs::new(head)).build())
}

fn response() -> Box<dyn FnMut()> {
    let date = imf_fixdate(1_795_000_000);
    let mut encoder = Encoder::new();
    let mut out = Vec::with_capacity(1024);
    Box::new(move || {
        out.clear();
        encoder.reset(Version::Http11, false, true);
        encoder.start(black_box(b"200 OK")).unwrap();
        encoder.header(b"Content-Type", b"text/html; charset=utf-8").unwrap();
        encoder.header(b"X-Frame-Options", b"DENY").unwrap();
        encoder.header(b"Content-Length", b"13").unwrap();
        encoder.begin(&mut out, &date, None).unwrap();
        black_box(encoder.piece(13, &mut out));
        black_box(encoder.finish(&mut out));
    })
}

/// A request of a browser, answered.
struct Record;

impl AccessRecord for Record {
    fn remote_addr(&self) -> &[u8] {
        b"203.0.113.7"
    }

    fn method(&self) -> &[u8] {
        b"GET"
    }

    fn target(&self) -> &[u8] {
        b"/guestbook/entries?page=3&sort=created"
    }

    fn path(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(b"/guestbook/entries")
    }

    fn query(&self) -> &[u8] {
        b"page=3&sort=created"
    }

    fn protocol(&self) -> &[u8] {
        b"HTTP/1.1"
    }

    fn status(&self) -> u16 {
        200
    }

    fn body_bytes(&self) -> Option<u64> {
        Some(5_120)
    }

    fn duration(&self) -> Duration {
        Duration::from_micros(1_234)
    }

    fn request_header(&self, name: &[u8]) -> Option<&[u8]> {
        match name {
            b"host" => Some(b"www.example.org"),
            b"referer" => Some(b"https://www.example.org/guestbook/"),
            b"user-agent" => Some(b"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
            _ => None,
        }
    }

    fn response_header(&self, _: &[u8]) -> Option<&[u8]> {
        None
    }
}

fn access_line(format: &str) -> Box<dyn FnMut()> {
    let format = AccessFormat::parse(format).unwrap();
    let mut line = Vec::with_capacity(1024);
    Box::new(move || {
        line.clear();
        format.format(black_box(&Record), &mut line);
        black_box(&line);
    })
}

/// What a request does to the wheel: its deadline moves on, and now and then time passes and a tick's entries come out.
fn wheel() -> Box<dyn FnMut()> {
    let mut wheel = Wheel::new(0);
    let (mut now_ms, mut number) = (0, 0);
    let mut expired = Vec::new();
    for slot in 0..DEADLINES {
        wheel.schedule(Token { slot, generation: 0 }, 5_000);
    }
    Box::new(move || {
        let token = Token { slot: number % DEADLINES, generation: 0 };
        wheel.schedule(black_box(token), now_ms + 5_000);
        number = number.wrapping_add(1);
        if number % 64 == 0 {
            now_ms += TICK_MS;
            expired.clear();
            wheel.expired(now_ms, &mut expired);
            for token in &expired {
                wheel.schedule(*token, now_ms + 5_000);
            }
            black_box(wheel.next_ms());
        }
    })
}

fn request(mut steady: Steady) -> Box<dyn FnMut()> {
    Box::new(move || steady.request())
}
