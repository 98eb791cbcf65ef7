//! `ringhorn-loadtest`: an HTTP/1.1 load generator on io_uring.
//!
//! | module | what it is for |
//! | --- | --- |
//! | `cli` | the command line, made into a plan |
//! | `mix` | requests, made ready once, and their order |
//! | `load` | threads, connections, and when each request is sent |
//! | `wire` | one connection on the ring |
//! | `response` | where a response ends; pure |
//! | `clock` | waiting until a moment, on the ring |
//! | `tally` | what is counted |
//! | `report` | what is told |

mod cli;
mod clock;
mod load;
mod mix;
mod report;
mod response;
mod tally;
mod wire;

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use cli::Arguments;
use load::{Outcome, Plan, Progress};

const NO_URING: u8 = 3;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let plan = match arguments.plan() {
        Ok(plan) => Arc::new(plan),
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    raise_descriptors(plan.connections);
    // Asked before anything is sent, so that the answer is about io_uring and nothing else.
    if let Err(error) = load::ring(plan.connections.div_ceil(plan.threads)) {
        eprintln!("error: this kernel gives no io_uring ({error}), and the load generator has no other way");
        eprintln!(
            "  hint: `sysctl kernel.io_uring_disabled` must be 0, a container's seccomp profile must allow \
             io_uring_setup, and RLIMIT_MEMLOCK must have room; elsewhere, wrk does for simple loads"
        );
        return ExitCode::from(NO_URING);
    }
    let outcome = match run(&plan, &arguments) {
        Ok(outcome) => outcome,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    if let Err(error) = tell(&arguments, &plan, &outcome) {
        eprintln!("error: {error}");
        return ExitCode::FAILURE;
    }
    let tally = &outcome.tally;
    let failed = tally.failed() + tally.class(4) + tally.class(5) > 0;
    if tally.answers() == 0 || (arguments.strict && failed) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Runs the plan, with a progress bar while somebody watches.
fn run(plan: &Arc<Plan>, arguments: &Arguments) -> io::Result<Outcome> {
    let progress: Arc<Vec<Progress>> = Arc::new((0..plan.threads).map(|_| Progress::default()).collect());
    if arguments.quiet || !io::stderr().is_terminal() {
        return load::run(plan, &progress);
    }
    let others = Arc::clone(plan);
    let counters = Arc::clone(&progress);
    let work = thread::Builder::new().name("load".into()).spawn(move || load::run(&others, &counters))?;
    let begin = Instant::now();
    let (length, by_count) = match (plan.requests, plan.duration) {
        (Some(count), _) => (count, true),
        (None, duration) => ((duration.unwrap_or_default() + plan.warm_up).as_millis() as u64, false),
    };
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr_with_hz(5));
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {elapsed_precise} {msg}") {
        bar.set_style(style);
    }
    while !work.is_finished() {
        let done: u64 = progress.iter().map(|each| each.0.load(Ordering::Relaxed)).sum();
        bar.set_message(format!("{done} answers"));
        let at = if by_count { done } else { begin.elapsed().as_millis() as u64 };
        bar.set_position(at.min(length));
        thread::sleep(Duration::from_millis(100));
    }
    bar.finish_and_clear();
    work.join().map_err(|_| io::Error::other("the load generator panicked"))?
}

fn tell(arguments: &Arguments, plan: &Plan, outcome: &Outcome) -> io::Result<()> {
    let json = |out: &mut dyn Write| writeln!(out, "{:#}", report::json(arguments, plan, outcome));
    match arguments.json.as_deref() {
        Some(file) if file == Path::new("-") => json(&mut io::stdout().lock())?,
        other => {
            if let Some(file) = other {
                json(&mut create(file)?)?;
            }
            io::stdout().lock().write_all(report::text(arguments, plan, outcome).as_bytes())?;
        }
    }
    if let Some(file) = &arguments.hdr_log {
        report::hdr_log(&mut create(file)?, outcome)?;
    }
    Ok(())
}

fn create(file: &Path) -> io::Result<File> {
    File::create(file)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot write {}: {error}", file.display())))
}

/// Many connections need many descriptors; the soft limit may be raised to the hard one by anybody.
fn raise_descriptors(connections: usize) {
    let limit = getrlimit(Resource::Nofile);
    let wanted = connections as u64 + 100;
    if limit.current.is_some_and(|current| current < wanted) {
        // If it stays too low, connections fail and say so.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
}
