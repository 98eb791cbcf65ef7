//! The programs in examples/, each over a real socket.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use crate::server::{BACKENDS, Server, example, get, put};

#[test]
fn hello_says_hello() {
    for io in BACKENDS {
        let server = Server::start(example("hello"), &["--workers", "1", "--io", io]);
        assert_eq!(server.get("/").text(), "Hello, World!");
    }
}

#[test]
fn json_greets_and_refuses_what_is_no_json() {
    let server = Server::start(example("json"), &["--workers", "1"]);
    let post = |body: &str| put("/greet", body).replacen("PUT", "POST", 1);
    let answer = server.ask(&post(r#"{"name":"Ada"}"#));
    assert_eq!(answer.text(), r#"{"greeting":"Hello, Ada!","guests":1}"#);
    assert_eq!(server.ask(&post("{")).status, 400);
}

#[test]
fn kv_keeps_what_it_is_given() {
    let server = Server::start(example("kv"), &[]);
    assert_eq!(server.ask(&put("/kv/a", "value")).status, 201);
    assert_eq!(server.get("/kv/a").text(), "value", "one worker: every connection sees one store");
    assert_eq!(server.ask(&get("/other")).status, 404);
}
