//! A whole connection, in the simulated worker.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| ringhorn::worker::simulation::fuzz_connection(data));
