//! The program against a small server that does what the path says. Counts must be exact.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;

/// What the server saw.
#[derive(Default)]
struct Seen {
    connections: AtomicU64,
    requests: AtomicU64,
    body_bytes: AtomicU64,
    posts: AtomicU64,
}

struct Server {
    addr: SocketAddr,
    seen: Arc<Seen>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let others = Arc::clone(&seen);
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                stream.set_nodelay(true).unwrap();
                serve(stream.try_clone().unwrap(), stream, Arc::clone(&others));
            }
        });
        Self { addr, seen }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    fn requests(&self) -> u64 {
        self.seen.requests.load(Ordering::SeqCst)
    }
}

/// Serves one connection on a thread of its own.
fn serve(read: impl Read + Send + 'static, mut write: impl Write + Send + 'static, seen: Arc<Seen>) {
    seen.connections.fetch_add(1, Ordering::SeqCst);
    thread::spawn(move || {
        let mut read = BufReader::with_capacity(1, read);
        loop {
            let mut line = String::new();
            if read.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let mut words = line.split_whitespace();
            let (method, path) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
            let number = seen.requests.fetch_add(1, Ordering::SeqCst);
            if path == "/reset" {
                // Closing a socket whose bytes were not read resets the connection.
                return;
            }
            let mut length = 0;
            loop {
                let mut field = String::new();
                read.read_line(&mut field).unwrap();
                if field == "\r\n" {
                    break;
                }
                if let Some(value) = field.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
            }
            let mut body = vec![0; length];
            read.read_exact(&mut body).unwrap();
            seen.body_bytes.fetch_add(length as u64, Ordering::SeqCst);
            if method == "POST" {
                seen.posts.fetch_add(1, Ordering::SeqCst);
            }
            let (answer, goes_on): (&[u8], bool) = match path.as_str() {
                "/chunked" => (
                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
                    true,
                ),
                "/interim" => {
                    (b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", true)
                }
                "/close" => (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", false),
                "/eof" => (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", false),
                "/truncated" => (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", false),
                "/silent-close" => (b"", false),
                "/garbage" => (b"this is no HTTP\r\n\r\n", false),
                "/unasked" => (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokmore", true),
                "/never" => {
                    thread::sleep(Duration::from_secs(60));
                    return;
                }
                "/stall-once" => {
                    if number == 0 {
                        thread::sleep(Duration::from_millis(400));
                    }
                    (b"HTTP/1.1 204 No\r\n\r\n", true)
                }
                "/503" => (b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", true),
                _ if method == "HEAD" => (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", true),
                _ => (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", true),
            };
            if write.write_all(answer).is_err() || !goes_on {
                return;
            }
        }
    });
}

fn output(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringhorn-loadtest")).args(arguments).output().unwrap()
}

/// Runs it, and gives its JSON; `None` where io_uring is forbidden, which the program says itself.
fn run(arguments: &[&str]) -> Option<Value> {
    let output = output(&[&["--quiet", "--json", "-"], arguments].concat());
    if output.status.code() == Some(3) {
        eprintln!("skipped: {}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    let text = String::from_utf8(output.stdout).unwrap();
    Some(serde_json::from_str(&text).unwrap_or_else(|error| {
        panic!("{error}: {text:?} {}", String::from_utf8_lossy(&output.stderr));
    }))
}

fn count(result: &Value, path: &str) -> u64 {
    result.pointer(path).and_then(Value::as_u64).unwrap_or(0)
}

fn temporary(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("ringhorn-loadtest-{}-{name}", std::process::id()))
}

#[test]
fn every_request_of_a_number_is_sent_and_counted_once() {
    for (path, kept) in
        [("/", true), ("/chunked", true), ("/interim", true), ("/close", false), ("/eof", false)]
    {
        let server = Server::start();
        let Some(result) = run(&["-c", "3", "-t", "2", "-n", "100", &server.url(path)]) else { return };
        assert_eq!((server.requests(), count(&result, "/answers")), (100, 100), "{path}");
        assert_eq!(count(&result, "/statuses/200"), 100);
        assert_eq!(count(&result, "/failed"), 0, "{result}");
        let connections = server.seen.connections.load(Ordering::SeqCst);
        assert_eq!(count(&result, "/connections_made"), connections);
        assert!(if kept { connections == 3 } else { connections >= 100 }, "{path}: {connections}");
    }
}

#[test]
fn answers_to_head_are_understood() {
    let server = Server::start();
    let Some(result) = run(&["-c", "1", "-n", "50", "-X", "HEAD", &server.url("/")]) else { return };
    assert_eq!((count(&result, "/answers"), count(&result, "/failed")), (50, 0));
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    for path in ["/", "/chunked", "/interim"] {
        let server = Server::start();
        let Some(result) = run(&["-c", "2", "-n", "101", "--pipeline", "8", &server.url(path)]) else {
            return;
        };
        assert_eq!((server.requests(), count(&result, "/answers"), count(&result, "/failed")), (101, 101, 0));
        assert_eq!(server.seen.connections.load(Ordering::SeqCst), 2);
    }
}

#[test]
fn without_keep_alive_each_request_has_its_connection() {
    let server = Server::start();
    let Some(result) = run(&["-c", "4", "-n", "60", "--no-keep-alive", &server.url("/")]) else { return };
    assert_eq!((count(&result, "/answers"), count(&result, "/failed")), (60, 0));
    assert_eq!(server.seen.connections.load(Ordering::SeqCst), 60);
}

#[test]
fn what_fails_is_called_by_its_name() {
    for (path, kind) in [
        ("/truncated", "truncated"),
        ("/silent-close", "closed"),
        ("/garbage", "bad_response"),
        ("/reset", "reset"),
    ] {
        let server = Server::start();
        let Some(result) = run(&["-c", "2", "-n", "10", &server.url(path)]) else { return };
        assert_eq!(count(&result, &format!("/failures/{kind}")), 10, "{path}: {result}");
        assert_eq!((count(&result, "/failed"), count(&result, "/answers"), server.requests()), (10, 0, 10));
    }
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let Some(result) = run(&["-c", "2", "-n", "10", &format!("http://{nobody}/")]) else { return };
    assert_eq!((count(&result, "/failures/refused"), count(&result, "/failed")), (10, 10));
    let Some(result) = run(&["-c", "1", "-n", "3", "--unix", "/nowhere/at/all", "http://localhost/"]) else {
        return;
    };
    assert_eq!((count(&result, "/failures/connect"), count(&result, "/failed")), (3, 3));
}

#[test]
fn bytes_that_nobody_asked_for_are_a_bad_response() {
    let server = Server::start();
    let Some(result) = run(&["-c", "1", "-n", "3", &server.url("/unasked")]) else { return };
    assert_eq!((count(&result, "/failures/bad_response"), count(&result, "/answers")), (3, 0), "{result}");
}

#[test]
fn an_answer_that_never_comes_is_a_timeout() {
    let server = Server::start();
    let Some(result) = run(&["-c", "3", "-n", "3", "--timeout", "200ms", &server.url("/never")]) else {
        return;
    };
    assert_eq!((count(&result, "/failures/timeout"), count(&result, "/failed")), (3, 3));
}

#[test]
fn statuses_are_counted_by_class_and_strict_minds_them() {
    let server = Server::start();
    let url = server.url("/503");
    let Some(result) = run(&["-c", "1", "-n", "7", &url]) else { return };
    assert_eq!((count(&result, "/status_classes/5xx"), count(&result, "/statuses/503")), (7, 7));
    assert_eq!(output(&["-q", "-c", "1", "-n", "2", &url]).status.code(), Some(0));
    assert_eq!(output(&["-q", "-c", "1", "-n", "2", "--strict", &url]).status.code(), Some(1));
    assert_eq!(output(&["-q", "-c", "1", "-n", "2", "--strict", &server.url("/")]).status.code(), Some(0));
}

#[test]
fn bodies_arrive_whole() {
    let server = Server::start();
    let file = temporary("body");
    std::fs::write(&file, vec![b'x'; 3_000_000]).unwrap();
    let path = file.to_str().unwrap();
    // Larger than what a socket takes at once.
    let Some(result) = run(&["-c", "2", "-n", "4", "--body-file", path, &server.url("/")]) else { return };
    std::fs::remove_file(&file).unwrap();
    assert_eq!((count(&result, "/answers"), count(&result, "/failed")), (4, 0));
    assert_eq!(server.seen.body_bytes.load(Ordering::SeqCst), 12_000_000);
    assert_eq!(server.seen.posts.load(Ordering::SeqCst), 4);
}

#[test]
fn a_mix_is_sent_in_its_proportions_and_told_by_kind() {
    let server = Server::start();
    let file = temporary("mix.json");
    std::fs::write(&file, r#"[{"weight": 3, "path": "/503"}, {"path": "/chunked", "body": "abcd"}]"#)
        .unwrap();
    let path = file.to_str().unwrap();
    let Some(result) = run(&["-c", "1", "-n", "80", "--mix", path, &server.url("/")]) else { return };
    std::fs::remove_file(&file).unwrap();
    assert_eq!((count(&result, "/statuses/503"), count(&result, "/statuses/200")), (60, 20));
    assert_eq!((count(&result, "/kinds/0/answers"), count(&result, "/kinds/1/answers")), (60, 20));
    assert_eq!(result["kinds"][1]["name"], "POST /chunked");
    assert_eq!(server.seen.body_bytes.load(Ordering::SeqCst), 80);
}

#[test]
fn a_unix_socket_is_reached() {
    let path = temporary("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let seen = Arc::new(Seen::default());
    let others = Arc::clone(&seen);
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            serve(stream.try_clone().unwrap(), stream, Arc::clone(&others));
        }
    });
    let result = run(&["-c", "2", "-n", "20", "--unix", path.to_str().unwrap(), "http://localhost/x"]);
    std::fs::remove_file(&path).unwrap();
    let Some(result) = result else { return };
    assert_eq!((count(&result, "/answers"), seen.requests.load(Ordering::SeqCst)), (20, 20));
}

/// Coordinated omission: while a server stalls, a closed loop sends nothing that could be late, and the stall is one
/// slow answer among many quick ones. In an open loop all that should have been sent meanwhile is late.
#[test]
fn an_open_loop_counts_a_stall_for_all_that_it_held_up() {
    let server = Server::start();
    let arguments = ["-c", "1", "-n", "60", "--rate", "100"];
    let Some(open) = run(&[&arguments[..], &[&server.url("/stall-once")]].concat()) else { return };
    assert_eq!((count(&open, "/answers"), count(&open, "/failed")), (60, 0));
    // 40 of the 60 were due during the 400 ms; the 20th last of them is 200 ms late or more.
    assert!(open["latency_us"]["p50"].as_f64().unwrap() > 50_000.0, "{open}");
    let server = Server::start();
    let Some(closed) = run(&["-c", "1", "-n", "60", &server.url("/stall-once")]) else { return };
    let latency = |name: &str| closed["latency_us"][name].as_f64().unwrap();
    assert!(latency("max") >= 400_000.0 && latency("p50") < latency("max") / 2.0, "{closed}");
}

#[test]
fn what_an_open_loop_could_not_send_is_told() {
    let server = Server::start();
    let arguments = ["-c", "1", "-d", "300ms", "--timeout", "100ms", "--rate", "100"];
    let Some(result) = run(&[&arguments[..], &[&server.url("/never")]].concat()) else { return };
    // 30 were due. Each one that was sent took a tenth of a second at least.
    assert_eq!(count(&result, "/failed") + count(&result, "/unsent"), 30, "{result}");
    assert!(count(&result, "/unsent") >= 20);
}

#[test]
fn what_the_warm_up_sends_does_not_count() {
    let server = Server::start();
    let Some(result) = run(&["-c", "1", "-n", "20", "--warm-up", "100ms", &server.url("/")]) else { return };
    assert_eq!(count(&result, "/answers"), 20);
    assert!(server.requests() > 20);
}

#[test]
fn the_logs_hold_what_was_counted() {
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    let server = Server::start();
    let (json, log) = (temporary("out.json"), temporary("out.hdr"));
    let files = ["--json", json.to_str().unwrap(), "--hdr-log", log.to_str().unwrap()];
    let output = output(&[&["-q", "-c", "2", "-n", "40"], &files[..], &[&server.url("/")]].concat());
    if output.status.code() == Some(3) {
        return;
    }
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("answers") && text.contains("p99.99"), "{text}");
    let result: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(count(&result, "/answers"), 40);
    let bytes = std::fs::read(&log).unwrap();
    let mut seen = 0;
    for entry in IntervalLogIterator::new(&bytes) {
        if let LogEntry::Interval(interval) = entry.unwrap() {
            let packed = base64(interval.encoded_histogram());
            let histogram = Deserializer::new().deserialize::<u64, _>(&mut packed.as_slice()).unwrap();
            seen += histogram.len();
            assert!(histogram.max() < 60_000_000_000, "nanoseconds");
        }
    }
    assert_eq!(seen, 40);
    for file in [json, log] {
        std::fs::remove_file(file).unwrap();
    }
}

fn base64(text: &str) -> Vec<u8> {
    let value = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let (mut out, mut bits, mut held) = (Vec::new(), 0, 0_u32);
    for byte in text.bytes().filter(|byte| *byte != b'=') {
        held = held << 6 | u32::from(value(byte));
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push((held >> bits) as u8);
        }
    }
    out
}

#[test]
fn mistakes_on_the_command_line_are_told() {
    for (arguments, part) in [
        (&["https://localhost/"][..], "https"),
        (&["http://localhost:99999/"], "port"),
        (&["-c", "0", "http://localhost/"], "--connections"),
        (&["--rate", "0", "http://localhost/"], "rate"),
        (&["-H", "no colon", "http://localhost/"], "colon"),
        (&["--mix", "/nowhere.json", "http://localhost/"], "/nowhere.json"),
    ] {
        let output = output(arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && text.contains(part), "{arguments:?}: {text}");
    }
}

/// Containers forbid io_uring. That is said, with what to do about it; no panic, and no request.
#[test]
fn without_io_uring_it_says_so() {
    let wrapper = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/python/without_io_uring.py");
    let server = Server::start();
    let output = Command::new("python3")
        .arg(wrapper)
        .args([env!("CARGO_BIN_EXE_ringhorn-loadtest"), "-q", "-n", "1", &server.url("/")])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("io_uring") && text.contains("hint"), "{text}");
    assert_eq!(server.requests(), 0);
}
