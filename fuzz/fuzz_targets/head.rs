//! Request heads, whole and in pieces.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| ringhorn::http::fuzz::fuzz_head(data));
