//! `ringhorn-demo`: every route, on both backends.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::server::{BACKENDS, DEMO, Server, get, put};

fn on_both(test: impl Fn(&Server)) {
    for io in BACKENDS {
        test(&Server::start(DEMO, &["--workers", "1", "--io", io]));
    }
}

#[test]
fn plaintext_and_json_are_what_benchmarks_ask_for() {
    on_both(|server| {
        let answer = server.get("/plaintext");
        assert_eq!((answer.status, answer.text()), (200, "Hello, World!"));
        assert!(answer.head.contains("\r\ncontent-type: text/plain\r\n"), "{}", answer.head);
        assert!(
            answer.head.contains("\r\nserver: ") && answer.head.contains("\r\ndate: "),
            "{}",
            answer.head
        );
        assert_eq!(server.get("/json").text(), r#"{"message":"Hello, World!"}"#);
        assert_eq!(server.get("/nothing").status, 404);
        assert!(server.get("/").text().contains("/plaintext"));
    });
}

/// Small ones are answered from the receive buffer, large ones in pieces while they arrive.
#[test]
fn an_echo_gives_back_bodies_of_every_size() {
    on_both(|server| {
        for length in [0, 1, 5000, 500_000, 3_000_000] {
            let body: String = (0..length).map(|n| char::from(b'a' + (n % 23) as u8)).collect();
            let mut client = server.connect();
            let mut sender = client.stream.get_ref().try_clone().unwrap();
            let request = put("/echo", &body);
            let sending = std::thread::spawn(move || sender.write_all(request.as_bytes()).unwrap());
            let answer = client.read().unwrap();
            sending.join().unwrap();
            assert!(answer.body == body.as_bytes(), "{length}: {}", answer.head);
            assert_eq!(client.ask(&get("/plaintext")).text(), "Hello, World!");
        }
    });
}

#[test]
fn files_are_served_and_nothing_above_them() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("static");
    std::fs::create_dir_all(root.join("css")).unwrap();
    std::fs::write(root.join("css/site.css"), "body {}").unwrap();
    std::fs::write(root.join("large.bin"), vec![7_u8; 2_000_000]).unwrap();
    std::fs::write(directory.path().join("secret"), "secret").unwrap();
    for io in BACKENDS {
        let mut command = Command::new(DEMO);
        command.args(["--bind", "127.0.0.1:0", "--workers", "1", "--io", io]);
        command.env("RINGHORN_DEMO_STATIC", &root);
        let server = Server::run(command);
        let mut client = server.connect();
        let answer = client.ask(&get("/static/css/site.css"));
        assert_eq!((answer.status, answer.text()), (200, "body {}"));
        assert!(answer.head.contains("\r\ncontent-type: text/css"), "{}", answer.head);
        assert!(client.ask(&get("/static/large.bin")).body == vec![7_u8; 2_000_000]);
        for path in ["/static/../secret", "/static/%2e%2e/secret", "/static/css", "/static/none", "/static/"]
        {
            let answer = client.ask(&get(path));
            assert_eq!(answer.status, 404, "{path}");
            assert!(answer.text().starts_with("{\"error\":"), "{path}");
        }
    }
}

#[test]
fn keys_are_put_read_deleted_and_expire() {
    on_both(|server| {
        let mut client = server.connect();
        let mut ask = |request: &str| {
            let answer = client.ask(request);
            (answer.status, String::from_utf8(answer.body).unwrap())
        };
        let empty = String::new;
        assert_eq!(ask(&get("/kv/a")), (404, "{\"error\":\"there is no such key\"}\n".to_owned()));
        assert_eq!(ask(&put("/kv/a", "one")), (201, empty()));
        assert_eq!(ask(&put("/kv/a", "two")), (204, empty()));
        assert_eq!(ask(&get("/kv/a")), (200, "two".to_owned()));
        assert_eq!(ask(&get("/kv/%61")), (200, "two".to_owned()));
        assert_eq!(ask(&put("/kv/short?ttl=0", "gone")), (201, empty()));
        assert_eq!(ask(&get("/kv/short")).0, 404);
        assert_eq!(ask(&put("/kv/long?ttl=3600", "there")), (201, empty()));
        assert_eq!(ask(&get("/kv/long")), (200, "there".to_owned()));
        assert!(ask(&get("/kv/")).1.starts_with("{\"keys\":2,"));
        let delete = "DELETE /kv/a HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(ask(delete), (204, empty()));
        assert_eq!(ask(delete).0, 404);
        assert_eq!(ask(&put("/kv/a?ttl=soon", "x")).0, 400);
        assert_eq!(ask(&put(&format!("/kv/{}", "k".repeat(257)), "x")).0, 400);
        assert_eq!(ask(&put("/kv/", "x")).0, 405);
        assert_eq!(ask(&put("/kv/large", &"v".repeat(900_000))).0, 201);
        // More than `body_buffer`: told so before it was sent, and the connection ends.
        let head =
            "PUT /kv/larger HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2000000\r\n\r\n";
        assert_eq!(ask(head).0, 413);
    });
}

/// The command line is `ringhorn`'s, and so are the log lines.
#[test]
fn the_command_line_is_understood_and_mistakes_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("access.log");
    let arguments =
        ["--workers", "1", "--access-logfile", log.to_str().unwrap(), "--limit-request-line", "100"];
    let mut server = Server::start(DEMO, &arguments);
    assert_eq!(server.get("/plaintext").status, 200);
    assert_eq!(server.get("/static/none").status, 404);
    assert_eq!(server.get(&format!("/{}", "x".repeat(100))).status, 414);
    assert_eq!(server.ask("GET /odd HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").status, 400);
    server.signal(rustix::process::Signal::TERM);
    assert_eq!(server.wait(), Some(0));
    let lines = std::fs::read_to_string(&log).unwrap();
    assert!(lines.contains("\"GET /plaintext HTTP/1.1\" 200 13 "), "{lines}");
    assert!(lines.contains("\"GET /static/none HTTP/1.1\" 404 "), "a deferred answer is logged too: {lines}");
    assert!(lines.contains("\"GET /odd HTTP/1.1\" 400 "), "so is one that no service saw: {lines}");
    for (arguments, code, text) in [
        (&["--workers", "0"][..], 1, "invalid workers '0'"),
        (&["--no-such-option"][..], 2, "--no-such-option"),
        (&["--config", "x.py"][..], 1, "it is Python"),
        (&["app:app"][..], 2, "argument \"app:app\" has no meaning"),
        (
            &["--check-config", "--reload", "--log-syslog"][..],
            0,
            "reload has no effect (--reload on the command line)",
        ),
    ] {
        let output = Command::new(DEMO).args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(text), "{said}");
    }
    assert_eq!(Command::new(DEMO).arg("--check-config").status().unwrap().code(), Some(0));
    let help = Command::new(DEMO).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    assert!(help.starts_with("ringhorn-demo: a native service"), "{help}");
    assert!(help.contains("Usage: ringhorn-demo [OPTIONS]\n") && !help.contains("WSGI"), "{help}");
}

/// The settings of Python's loggers have no effect, and so take no line away.
#[test]
fn a_log_of_python_that_is_asked_for_leaves_the_servers_own() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("access.log");
    let arguments = ["--workers", "1", "--access-logfile", log.to_str().unwrap(), "--log-syslog"];
    let mut server = Server::start(DEMO, &arguments);
    assert_eq!(server.get("/plaintext").status, 200);
    server.signal(rustix::process::Signal::TERM);
    assert_eq!(server.wait(), Some(0));
    let lines = std::fs::read_to_string(&log).unwrap();
    assert!(lines.contains("\"GET /plaintext HTTP/1.1\" 200 13 "), "{lines}");
}

/// Root makes the folder of the logs, and workers are somebody else: they open the files again when the server is told
/// that they were moved away (logrotate without `create`).
#[test]
fn log_files_are_the_workers_users() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    let log = directory.path().join("access.log");
    let arguments = ["--workers", "1", "--user", "65534", "--group", "65534", "--access-logfile"];
    let server = Server::start(DEMO, &[&arguments[..], &[log.to_str().unwrap()]].concat());
    for round in 0..2 {
        assert_eq!(server.get("/plaintext").status, 200);
        let owner = std::fs::metadata(&log).unwrap();
        assert_eq!((owner.uid(), owner.gid()), (65534, 65534));
        std::fs::rename(&log, directory.path().join(format!("old.{round}"))).unwrap();
        server.signal(rustix::process::Signal::USR1);
        wait_until(|| log.exists());
    }
    // Requests before the worker has heard of it are still in the old file.
    wait_until(|| {
        server.get("/plaintext");
        std::fs::read_to_string(&log).unwrap().contains("\"GET /plaintext HTTP/1.1\" 200 13 ")
    });
}

fn wait_until(condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < end, "it did not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Requests are counted as those of Python are, also when they are answered later.
#[test]
fn metrics_count_what_is_answered_at_once_and_later() {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    for io in BACKENDS {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("metrics.sock");
        let bind = format!("unix:{}", socket.display());
        let server = Server::start(DEMO, &["--workers", "1", "--io", io, "--metrics-bind", &bind]);
        let mut client = server.connect();
        for _ in 0..3 {
            assert_eq!(client.ask(&get("/plaintext")).status, 200);
            assert_eq!(client.ask(&get("/static/none")).status, 404);
        }
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        for class in ["2xx", "4xx"] {
            let line = text.lines().find(|line| {
                line.starts_with("ringhorn_requests_total{")
                    && line.contains(class)
                    && line.contains("\"GET\"")
            });
            assert!(line.is_some_and(|line| line.ends_with(" 3")), "{class}: {line:?}\n{text}");
        }
    }
}

/// Without an address for metrics, they are counted while somebody asks for the load.
#[test]
fn what_is_answered_is_counted_while_somebody_looks() {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixStream;

    for io in BACKENDS {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("site.ctl");
        let control = path.to_str().unwrap();
        let server = Server::start(DEMO, &["--workers", "1", "--io", io, "--control-socket", control]);
        let meter = || {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.write_all(b"show load 60\n").unwrap();
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).unwrap();
            let answer: serde_json::Value = serde_json::from_str(&line).unwrap();
            answer["data"]["web_workers"][0]["meter"].clone()
        };
        let mut client = server.connect();
        assert_eq!(client.ask(&get("/plaintext")).status, 200);
        wait_until(|| meter().is_object());
        assert_eq!(meter()["requests"], 0);
        for _ in 0..3 {
            assert_eq!(client.ask(&get("/plaintext")).status, 200);
            // A file: its answer is finished later.
            assert_eq!(client.ask(&get("/static/none")).status, 404);
        }
        wait_until(|| meter()["requests"] == 6);
        let count = |pair: &serde_json::Value| pair[1].as_u64().unwrap();
        assert_eq!(meter()["times"].as_array().unwrap().iter().map(count).sum::<u64>(), 6);
    }
}
