//! What is told at the end: text for people, JSON for programs, an HdrHistogram log for both.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use serde_json::{Map, Value, json};

use crate::cli::Arguments;
use crate::load::{Outcome, Plan};
use crate::tally::Failure;

const PERCENTILES: [(&str, f64); 8] = [
    ("p50", 0.5),
    ("p75", 0.75),
    ("p90", 0.9),
    ("p95", 0.95),
    ("p99", 0.99),
    ("p99.9", 0.999),
    ("p99.99", 0.9999),
    ("max", 1.0),
];

/// The report for people.
pub fn text(arguments: &Arguments, plan: &Plan, outcome: &Outcome) -> String {
    let tally = &outcome.tally;
    let seconds = outcome.elapsed.as_secs_f64();
    let per_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
    let mut out = String::new();
    let loops = match plan.rate {
        Some(rate) => format!("open loop at {rate} requests/s"),
        None => "closed loop".to_owned(),
    };
    let what = match plan.mix.requests.as_slice() {
        [one] => one.name.clone(),
        all => format!("{} kinds of requests", all.len()),
    };
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    line(format!("{}: {what}", arguments.url));
    line(format!(
        "{} connections{}, {} threads, {loops}, {seconds:.2} s",
        plan.connections,
        if plan.keep_alive { "" } else { ", one for each request" },
        plan.threads,
    ));
    line(String::new());
    line(format!("  answers     {:>12}  {:>12.1}/s", tally.answers(), per_second(tally.answers())));
    line(format!(
        "  received    {:>12}  {:>12}/s",
        bytes(tally.received as f64),
        bytes(per_second(tally.received))
    ));
    line(format!("  sent        {:>12}  {:>12}/s", bytes(tally.sent as f64), bytes(per_second(tally.sent))));
    line(format!("  connections {:>12}", tally.connections));
    let statuses: Vec<String> = tally
        .statuses
        .iter()
        .enumerate()
        .filter(|(_, count)| **count > 0)
        .map(|(status, count)| format!("{status}: {count}"))
        .collect();
    line(format!("  statuses    {}", if statuses.is_empty() { "none".into() } else { statuses.join(", ") }));
    let failures: Vec<String> = Failure::ALL
        .into_iter()
        .filter(|failure| tally.failures[*failure as usize] > 0)
        .map(|failure| format!("{}: {}", failure.name(), tally.failures[failure as usize]))
        .collect();
    line(format!("  failures    {}", if failures.is_empty() { "none".into() } else { failures.join(", ") }));
    if let Some(bad) = outcome.bad {
        line(format!("              the first bad response: {bad}"));
    }
    if tally.unsent > 0 {
        line(format!(
            "  unsent      {:>12}  no connection was free in time: the server is slower than the rate",
            tally.unsent
        ));
        line("              and the latencies below leave these out".into());
    }
    if !tally.latency.is_empty() {
        line(String::new());
        line(format!(
            "  latency     mean {}, standard deviation {}, least {}",
            duration(tally.latency.mean()),
            duration(tally.latency.stdev()),
            duration(tally.latency.min() as f64)
        ));
        for (name, quantile) in PERCENTILES {
            line(format!("  {name:>11} {:>12}", duration(value(&tally.latency, quantile))));
        }
    }
    if !tally.by_kind.is_empty() {
        line(String::new());
        line(format!("  {:<40} {:>10} {:>10} {:>10} {:>10}", "kind", "answers", "p50", "p99", "max"));
        for (request, latency) in plan.mix.requests.iter().zip(&tally.by_kind) {
            line(format!(
                "  {:<40} {:>10} {:>10} {:>10} {:>10}",
                request.name,
                latency.len(),
                duration(value(latency, 0.5)),
                duration(value(latency, 0.99)),
                duration(value(latency, 1.0)),
            ));
        }
    }
    out
}

/// The report for programs. Latencies are in microseconds.
pub fn json(arguments: &Arguments, plan: &Plan, outcome: &Outcome) -> Value {
    let tally = &outcome.tally;
    let seconds = outcome.elapsed.as_secs_f64();
    let statuses: Map<String, Value> = tally
        .statuses
        .iter()
        .enumerate()
        .filter(|(_, count)| **count > 0)
        .map(|(status, count)| (status.to_string(), json!(count)))
        .collect();
    let classes: Map<String, Value> =
        (1..6).map(|class| (format!("{class}xx"), json!(tally.class(class)))).collect();
    let failures: Map<String, Value> = Failure::ALL
        .into_iter()
        .map(|failure| (failure.name().to_owned(), json!(tally.failures[failure as usize])))
        .collect();
    let kinds: Vec<Value> = plan
        .mix
        .requests
        .iter()
        .zip(&tally.by_kind)
        .map(|(request, histogram)| {
            json!({"name": request.name, "answers": histogram.len(), "latency_us": latencies(histogram)})
        })
        .collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "url": arguments.url,
        "connections": plan.connections,
        "threads": plan.threads,
        "pipeline": plan.pipeline,
        "keep_alive": plan.keep_alive,
        "rate": plan.rate,
        "seconds": seconds,
        "answers": tally.answers(),
        "answers_per_second": if seconds > 0.0 { tally.answers() as f64 / seconds } else { 0.0 },
        "connections_made": tally.connections,
        "bytes_sent": tally.sent,
        "bytes_received": tally.received,
        "latency_us": latencies(&tally.latency),
        "statuses": statuses,
        "status_classes": classes,
        "failed": tally.failed(),
        "failures": failures,
        "first_bad_response": outcome.bad.map(|bad| bad.0),
        "unsent": tally.unsent,
        "kinds": kinds,
    })
}

/// Writes the latencies as an HdrHistogram log of one interval, in nanoseconds.
///
/// # Errors
/// It cannot be written.
pub fn hdr_log<W: Write>(out: &mut W, outcome: &Outcome) -> io::Result<()> {
    let failed = |error: &dyn std::fmt::Debug| io::Error::other(format!("{error:?}"));
    let mut serializer = V2DeflateSerializer::new();
    let now = SystemTime::now();
    let mut log = IntervalLogWriterBuilder::new()
        .with_start_time(now.checked_sub(outcome.elapsed).unwrap_or(now))
        .with_max_value_divisor(1e6)
        .begin_log_with(out, &mut serializer)?;
    let none = Duration::ZERO;
    log.write_histogram(&outcome.tally.latency, none, outcome.elapsed, None)
        .map_err(|error| failed(&error))?;
    for (index, histogram) in outcome.tally.by_kind.iter().enumerate() {
        let name = format!("kind-{}", index + 1);
        log.write_histogram(histogram, none, outcome.elapsed, Tag::new(&name))
            .map_err(|error| failed(&error))?;
    }
    Ok(())
}

fn latencies(histogram: &Histogram<u64>) -> Value {
    if histogram.is_empty() {
        return Value::Null;
    }
    let us = |nanoseconds: f64| (nanoseconds / 10.0).round() / 100.0;
    let mut map = Map::new();
    map.insert("mean".into(), json!(us(histogram.mean())));
    map.insert("stdev".into(), json!(us(histogram.stdev())));
    map.insert("min".into(), json!(us(histogram.min() as f64)));
    for (name, quantile) in PERCENTILES {
        map.insert(name.into(), json!(us(value(histogram, quantile))));
    }
    Value::Object(map)
}

fn value(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    histogram.value_at_quantile(quantile).min(histogram.max()) as f64
}

/// Nanoseconds in the unit that gives a readable number.
fn duration(nanoseconds: f64) -> String {
    match nanoseconds {
        _ if nanoseconds >= 1e9 => format!("{:.2} s", nanoseconds / 1e9),
        _ if nanoseconds >= 1e6 => format!("{:.2} ms", nanoseconds / 1e6),
        _ => format!("{:.1} us", nanoseconds / 1e3),
    }
}

fn bytes(count: f64) -> String {
    let mut out = String::new();
    let (scale, unit) = match count {
        _ if count >= 1073741824.0 => (1073741824.0, "GiB"),
        _ if count >= 1048576.0 => (1048576.0, "MiB"),
        _ if count >= 1024.0 => (1024.0, "KiB"),
        _ => (1.0, "B"),
    };
    // Writing to a string cannot fail.
    let _ = write!(out, "{:.1} {unit}", count / scale);
    out
}
