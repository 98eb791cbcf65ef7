//! The pure parts of a request: head, chunked body, response head. `cargo bench --bench http`.

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringhorn::http::{BodyDecoder, Encoder, Framing, Head, Policy, Version, imf_fixdate};

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

fn heads(criterion: &mut Criterion) {
    let policy = Policy::default();
    let mut group = criterion.benchmark_group("head");
    for (name, bytes) in [("small", SMALL), ("browser", BROWSER)] {
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        let mut head = Head::default();
        group.bench_function(name, |bencher| {
            bencher.iter(|| head.parse(black_box(bytes), &mut 0, &policy, false).unwrap());
        });
    }
    group.finish();
}

fn chunks(criterion: &mut Criterion) {
    let policy = Policy::default();
    let mut body = Vec::new();
    for _ in 0..64 {
        body.extend_from_slice(b"400\r\n");
        body.extend_from_slice(&[b'x'; 1024]);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"0\r\n\r\n");
    let mut out = Vec::with_capacity(body.len());
    let mut group = criterion.benchmark_group("chunked");
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function("64 of 1 KiB", |bencher| {
        bencher.iter(|| {
            out.clear();
            BodyDecoder::new(Framing::Chunked, &policy).decode(black_box(&body), &mut out).unwrap()
        });
    });
    group.finish();
}

fn responses(criterion: &mut Criterion) {
    let date = imf_fixdate(1_795_000_000);
    let mut encoder = Encoder::new();
    let mut out = Vec::with_capacity(1024);
    criterion.bench_function("response/three fields", |bencher| {
        bencher.iter(|| {
            out.clear();
            encoder.reset(Version::Http11, false, true);
            encoder.start(black_box(b"200 OK")).unwrap();
            encoder.header(b"Content-Type", b"text/html; charset=utf-8").unwrap();
            encoder.header(b"X-Frame-Options", b"DENY").unwrap();
            encoder.header(b"Content-Length", b"13").unwrap();
            encoder.begin(&mut out, &date, None).unwrap();
            let piece = encoder.piece(13, &mut out);
            (piece, encoder.finish(&mut out))
        });
    });
}

criterion_group!(benches, heads, chunks, responses);
criterion_main!(benches);
