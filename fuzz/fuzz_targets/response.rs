//! Responses, from anything that an application may pass.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| ringhorn::http::fuzz::fuzz_response(data));
