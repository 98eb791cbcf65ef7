//! Request ids (`request_id_header`): the client's when it is sane, else one of ours.

use std::hash::{BuildHasher, RandomState};

use crate::app::Exchange;
use crate::http::{Field, Span};

/// Bytes of an id that is taken from a client. Common ones (UUID, ULID, AWS, Cloudflare) have 16 to 64.
const ID_BYTES_MAX: usize = 128;

/// Gives requests their ids.
pub(super) struct RequestIds {
    header: Vec<u8>,
    /// Two keys that the kernel chose for this thread. A keyed hash of a count repeats no sooner than random
    /// numbers do, and costs no system call.
    keys: [RandomState; 2],
    count: u64,
}

impl RequestIds {
    pub(super) fn new(header: &str) -> Self {
        Self { header: header.as_bytes().to_vec(), keys: [RandomState::new(), RandomState::new()], count: 0 }
    }

    /// Sees to it that the request has exactly one id, and that its answer has the same.
    pub(super) fn identify(&mut self, exchange: &mut Exchange) {
        let Exchange { request, reply } = exchange;
        let is_ours = |field: &Field, bytes: &[u8]| field.name.of(bytes).eq_ignore_ascii_case(&self.header);
        let mut given = request.head.fields.iter().filter(|field| is_ours(field, &request.bytes));
        if let (Some(field), None) = (given.next(), given.next())
            && is_sane(field.value.of(&request.bytes))
        {
            reply.echo(&self.header, field.value.of(&request.bytes));
            return;
        }
        // None, several, or one that should not get into logs and other systems.
        request.head.fields.retain(|field| !is_ours(field, &request.bytes));
        self.count += 1;
        let [high, low] = [0, 1].map(|half| self.keys[half].hash_one(self.count));
        let id = format!("{high:016x}{low:016x}");
        reply.echo(&self.header, id.as_bytes());
        // As a line behind the head: the spans of the others stay what they are.
        let mut append = |text: &[u8]| {
            let start = request.bytes.len();
            request.bytes.extend_from_slice(text);
            let place = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
            Span { start: place(start), end: place(request.bytes.len()) }
        };
        let name = append(&self.header);
        append(b": ");
        let value = append(id.as_bytes());
        append(b"\r\n");
        request.head.fields.push(Field { name, value });
    }
}

/// Whether an id may go on into logs, headers and queries without a thought: visible ASCII, nothing that quotes or
/// separates.
fn is_sane(id: &[u8]) -> bool {
    let sane = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=@~".contains(byte);
    (1..=ID_BYTES_MAX).contains(&id.len()) && id.iter().all(sane)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::http::Policy;

    fn ids_of(fields: &str) -> (Vec<String>, Vec<String>) {
        let mut exchange = Exchange::default();
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        exchange.request.bytes.extend_from_slice(head.as_bytes());
        exchange.request.head.parse(head.as_bytes(), &mut 0, &Policy::default(), false).unwrap().unwrap();
        let mut ids = RequestIds::new("X-Request-ID");
        ids.identify(&mut exchange);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let found = exchange.request.fields().filter(|(name, _)| name.eq_ignore_ascii_case(b"x-request-id"));
        let others =
            exchange.request.fields().filter(|(name, _)| !name.eq_ignore_ascii_case(b"x-request-id"));
        (
            found.map(|(_, value)| text(value)).collect(),
            others.map(|(name, value)| format!("{}={}", text(name), text(value))).collect(),
        )
    }

    #[test]
    fn a_sane_id_is_kept_and_anything_else_is_replaced() {
        for sane in ["7", "01JD-abc_9.~:/+=@", &"a".repeat(128)] {
            assert_eq!(ids_of(&format!("x-request-id: {sane}\r\n")).0, [sane]);
        }
        for fields in [
            String::new(),
            "X-Request-ID:\r\n".to_owned(),
            "X-Request-ID: a b\r\n".to_owned(),
            "X-Request-ID: \"a\"\r\n".to_owned(),
            "X-Request-ID: \u{e9}\r\n".to_owned(),
            format!("X-Request-ID: {}\r\n", "a".repeat(129)),
            "X-Request-ID: a\r\nx-request-id: b\r\n".to_owned(),
        ] {
            let (ids, others) = ids_of(&format!("{fields}Accept: */*\r\n"));
            assert_eq!(others, ["Host=a", "Accept=*/*"], "{fields}");
            let [id] = &*ids else { panic!("{ids:?}") };
            assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
        }
    }

    #[test]
    fn ids_differ() {
        let ids: std::collections::HashSet<_> = (0..1000).map(|_| ids_of("").0).collect();
        assert_eq!(ids.len(), 1000);
    }
}
