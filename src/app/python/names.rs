//! Ready-made environ keys: `HTTP_ACCEPT` for `Accept`, as interned strings.
//!
//! Building a key anew costs a string, its hash and a comparison in every later lookup; an interned
//! string that is used again costs one probe of a small table here. The table is bounded, and holds
//! names exactly as received, so that finding one needs no case folding.

use pyo3::prelude::*;
use pyo3::types::PyString;

use super::object::intern_latin1;

/// Names kept. Clients send a few dozen different ones; an attacker's flood of fresh names fills the table
/// once and is then served without it.
const NAMES_MAX: usize = 256;
const SLOTS: usize = 1024;
const _: () = assert!(SLOTS.is_power_of_two() && SLOTS >= 4 * NAMES_MAX);
/// Longer names are not kept.
const NAME_BYTES_MAX: usize = 48;

struct Entry {
    name: Box<[u8]>,
    key: Py<PyString>,
}

/// The keys, by field name as received. One per runner, so that it needs no lock.
pub(super) struct Names {
    slots: Vec<Option<Entry>>,
    used: usize,
}

impl Names {
    pub(super) fn new() -> Self {
        Self { slots: std::iter::repeat_with(|| None).take(SLOTS).collect(), used: 0 }
    }

    /// The environ key of a request field.
    pub(super) fn key<'py>(&mut self, py: Python<'py>, name: &[u8]) -> Bound<'py, PyString> {
        let mut at = hash(name) & (SLOTS - 1);
        while let Some(entry) = &self.slots[at] {
            if *entry.name == *name {
                return entry.key.bind(py).clone();
            }
            at = (at + 1) & (SLOTS - 1);
        }
        let key = intern_latin1(py, &variable(name));
        if self.used < NAMES_MAX && name.len() <= NAME_BYTES_MAX {
            self.slots[at] = Some(Entry { name: name.into(), key: key.clone().unbind() });
            self.used += 1;
        }
        key
    }
}

/// FNV-1a over the first bytes and the length: names differ early.
fn hash(name: &[u8]) -> usize {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ name.len() as u64;
    for byte in name.iter().take(24) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    // The low bits of a product depend on the low bits alone; fold the high ones in.
    usize::try_from((hash ^ (hash >> 32)) & 0xffff_ffff).unwrap_or(0)
}

/// The environ variable of a field name (RFC 3875 section 4.1.18): upper case, `-` as `_`. A name that only looks like
/// one of the two special ones then is a field like any other (as in gunicorn).
fn variable(name: &[u8]) -> Vec<u8> {
    let mut upper: Vec<u8> = name.iter().map(u8::to_ascii_uppercase).collect();
    for byte in &mut upper {
        if *byte == b'-' {
            *byte = b'_';
        }
    }
    if name.eq_ignore_ascii_case(b"content-type") || name.eq_ignore_ascii_case(b"content-length") {
        return upper;
    }
    [b"HTTP_", upper.as_slice()].concat()
}
