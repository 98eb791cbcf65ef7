//! Does one part of a request a number of times and nothing else, for `benches/instructions.py` to count instructions.
//!
//! `instructions` alone does each part a few times, which is its test; `instructions --list` names them.

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

#[allow(dead_code, reason = "each bench takes what it needs")]
mod parts;

use std::process::ExitCode;

fn main() -> ExitCode {
    // cargo adds options of its own.
    let mut words = std::env::args().skip(1).filter(|word| word == "--list" || !word.starts_with("--"));
    let (name, count) = (words.next(), words.next().and_then(|count| count.parse().ok()));
    let mut found = false;
    for mut part in parts::parts() {
        match name.as_deref() {
            Some("--list") => println!("{}", part.name),
            Some(name) if name != part.name => continue,
            _ => (0..count.unwrap_or(3)).for_each(|_| (part.run)()),
        }
        found = true;
    }
    if found { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
