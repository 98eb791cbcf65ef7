//! A key-value API with expiry.
//!
//! Each worker has its own store and nobody else touches it, so there is no lock. A client talks to the worker that
//! its connection came to: with more than one worker this is a cache, and one worker makes it a store.
//!
//! | request | answer |
//! | --- | --- |
//! | `PUT /kv/KEY?ttl=SECONDS` | 201 when the key is new, else 204; without `ttl` it stays |
//! | `GET /kv/KEY` | 200 with the value and `Expires-In`, or 404 |
//! | `DELETE /kv/KEY` | 204, or 404 |
//! | `GET /kv/` | the number of keys and of bytes |
//!
//! Errors are JSON: `{"error":"..."}`.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::io::Write;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ringhorn::{Method, Request, Response, StatusCode, Worker};

/// Bytes of a key, percent-decoded.
const KEY_BYTES_MAX: usize = 256;
/// Bytes of all keys and values of one worker.
const STORE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes that an entry takes beside its key and value, about.
const ENTRY_BYTES: usize = 128;
/// The longest time to live: a year.
const TTL_SECONDS_MAX: u64 = 366 * 24 * 3600;
/// Between two sweeps for what has expired and nobody asked for.
const SWEEP: Duration = Duration::from_millis(500);

struct Entry {
    value: Vec<u8>,
    expires: Option<Instant>,
}

#[derive(Default)]
struct Inner {
    entries: HashMap<Vec<u8>, Entry>,
    /// Keys that expire, the next one first.
    expiring: BTreeSet<(Instant, Vec<u8>)>,
    bytes: usize,
}

/// The store of one worker.
#[derive(Default)]
pub(crate) struct Store {
    inner: RefCell<Inner>,
}

impl Store {
    /// An empty store, swept as long as the worker lives.
    pub(crate) fn new(worker: &Worker) -> Rc<Self> {
        let store = Rc::new(Self::default());
        let (swept, sweeper) = (Rc::downgrade(&store), worker.clone());
        worker.spawn(async move {
            while let Some(store) = swept.upgrade() {
                store.inner.borrow_mut().sweep(Instant::now());
                drop(store);
                sweeper.sleep(SWEEP).await;
            }
        });
        store
    }

    /// Answers a request below `/kv/`.
    pub(crate) fn serve(&self, request: &Request<'_>, response: &mut Response<'_>) {
        let name = request.path().strip_prefix(b"/kv/").unwrap_or_default();
        let key = match decode(name) {
            Some(key) if key.len() <= KEY_BYTES_MAX => key,
            _ => return error(response, StatusCode::BAD_REQUEST, "the key is too long or not well encoded"),
        };
        let mut inner = self.inner.borrow_mut();
        let now = Instant::now();
        match (request.method(), key.is_empty()) {
            (Method::GET | Method::HEAD, true) => {
                inner.sweep(now);
                response.header("Content-Type", "application/json");
                let _ = writeln!(response, "{{\"keys\":{},\"bytes\":{}}}", inner.entries.len(), inner.bytes);
            }
            (Method::GET | Method::HEAD, false) => match inner.live(&key, now) {
                Some(entry) => {
                    if let Some(expires) = entry.expires {
                        let left = (expires - now).as_secs_f64().ceil();
                        response.header("Expires-In", format!("{left}"));
                    }
                    response.header("Content-Type", "application/octet-stream").body(&entry.value);
                }
                None => error(response, StatusCode::NOT_FOUND, "there is no such key"),
            },
            (Method::PUT, false) => {
                let expires = match ttl(request.query()) {
                    Ok(ttl) => ttl.map(|ttl| now + ttl),
                    Err(()) => {
                        return error(response, StatusCode::BAD_REQUEST, "ttl is not a number of seconds");
                    }
                };
                if request.is_streamed() {
                    return error(response, StatusCode::PAYLOAD_TOO_LARGE, "the value is too large");
                }
                inner.sweep(now);
                let is_new = inner.remove(&key).is_none();
                if inner.bytes + key.len() + request.body().len() + ENTRY_BYTES > STORE_BYTES_MAX {
                    return error(response, StatusCode::INSUFFICIENT_STORAGE, "the store is full");
                }
                inner.insert(key, Entry { value: request.body().to_vec(), expires });
                response.status(if is_new { StatusCode::CREATED } else { StatusCode::NO_CONTENT });
            }
            (Method::DELETE, false) => {
                let found = inner.live(&key, now).is_some();
                inner.remove(&key);
                match found {
                    true => drop(response.status(StatusCode::NO_CONTENT)),
                    false => error(response, StatusCode::NOT_FOUND, "there is no such key"),
                }
            }
            (_, is_index) => {
                response.header("Allow", if is_index { "GET, HEAD" } else { "GET, HEAD, PUT, DELETE" });
                error(response, StatusCode::METHOD_NOT_ALLOWED, "this method does nothing here");
            }
        }
    }
}

impl Inner {
    fn insert(&mut self, key: Vec<u8>, entry: Entry) {
        self.bytes += key.len() + entry.value.len() + ENTRY_BYTES;
        if let Some(expires) = entry.expires {
            self.expiring.insert((expires, key.clone()));
        }
        self.entries.insert(key, entry);
    }

    fn remove(&mut self, key: &[u8]) -> Option<Entry> {
        let (key, entry) = self.entries.remove_entry(key)?;
        self.bytes -= key.len() + entry.value.len() + ENTRY_BYTES;
        if let Some(expires) = entry.expires {
            self.expiring.remove(&(expires, key));
        }
        Some(entry)
    }

    /// The entry of `key`, unless it has expired.
    fn live(&self, key: &[u8], now: Instant) -> Option<&Entry> {
        self.entries.get(key).filter(|entry| entry.expires.is_none_or(|expires| expires > now))
    }

    fn sweep(&mut self, now: Instant) {
        while let Some((_, key)) = self.expiring.first().filter(|(expires, _)| *expires <= now) {
            let key = key.clone();
            self.remove(&key);
        }
    }
}

/// The time to live that a query asks for.
fn ttl(query: &[u8]) -> Result<Option<Duration>, ()> {
    let Some(text) = query.split(|byte| *byte == b'&').find_map(|pair| pair.strip_prefix(b"ttl=")) else {
        return Ok(None);
    };
    let seconds: u64 = std::str::from_utf8(text).map_err(drop)?.parse().map_err(drop)?;
    if seconds <= TTL_SECONDS_MAX { Ok(Some(Duration::from_secs(seconds))) } else { Err(()) }
}

/// Answers with an error in JSON.
pub(crate) fn error(response: &mut Response<'_>, status: StatusCode, message: &str) {
    response.status(status).header("Content-Type", "application/json");
    let _ = writeln!(response, "{{\"error\":\"{message}\"}}");
}

/// Percent-decodes; `None` when it is damaged.
pub(crate) fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || char::from(bytes.next()?).to_digit(16);
            let value = digit()? * 16 + digit()?;
            decoded.push(u8::try_from(value).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    Some(decoded)
}
