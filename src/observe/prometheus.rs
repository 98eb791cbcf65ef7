//! The metrics page: what `sys::metrics` has counted, in Prometheus' text format.
//!
//! Each worker's numbers stand under the number of its slot, so that they go on when the worker is replaced;
//! whoever reads them adds them up.
//!
//! # Source
//! Prometheus, "Exposition formats", text format 0.0.4.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};

use crate::sys::clock::monotonic_ms;
use crate::sys::metrics::{Counter, Departure, METHODS, STATUSES, Times};
use crate::sys::shared::{SharedPage, WorkerState};

/// The type of the page.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds of the histograms' buckets: nanoseconds, and seconds as text.
const BOUNDS: [(u64, &str); 18] = [
    (100_000, "0.0001"),
    (250_000, "0.00025"),
    (500_000, "0.0005"),
    (1_000_000, "0.001"),
    (2_500_000, "0.0025"),
    (5_000_000, "0.005"),
    (10_000_000, "0.01"),
    (25_000_000, "0.025"),
    (50_000_000, "0.05"),
    (100_000_000, "0.1"),
    (250_000_000, "0.25"),
    (500_000_000, "0.5"),
    (1_000_000_000, "1"),
    (2_500_000_000, "2.5"),
    (5_000_000_000, "5"),
    (10_000_000_000, "10"),
    (30_000_000_000, "30"),
    (60_000_000_000, "60"),
];

/// The sum over the workers of one slot.
#[derive(Default)]
struct Slot {
    requests: [[u64; STATUSES.len()]; METHODS.len()],
    refused: [u64; STATUSES.len()],
    accepted: u64,
    handed_over: u64,
    received_bytes: u64,
    sent_bytes: u64,
    buffer_waits: u64,
    interpreter_wait_ns: u64,
    queue_wait: Times,
    application: Times,
    total: Times,
    // Of living workers only.
    connections: u64,
    waiting: u64,
    in_hand: u64,
    runners: u64,
    runners_awake: u64,
    runners_blocked: u64,
    /// Milliseconds since the sign of life of the worker that is silent longest.
    silent_ms: Option<u64>,
}

/// All slots that ever had a worker, and how many workers are in each state.
#[derive(Default)]
struct Reading {
    slots: BTreeMap<u32, Slot>,
    booting: u64,
    ready: u64,
    draining: u64,
}

impl Reading {
    fn of(shared: &SharedPage) -> Self {
        let mut reading = Self::default();
        let now_ms = monotonic_ms();
        for (record, metrics) in shared.used() {
            let Some(number) = record.last_slot() else { continue };
            let slot = reading.slots.entry(number).or_default();
            for (sums, counters) in slot.requests.iter_mut().zip(&metrics.requests) {
                add_each(sums, counters);
            }
            add_each(&mut slot.refused, &metrics.refused);
            slot.accepted += metrics.accepted.get();
            slot.handed_over += metrics.handed_over.get();
            slot.received_bytes += metrics.received_bytes.get();
            slot.sent_bytes += metrics.io_sent_bytes.get() + metrics.runner_sent_bytes.get();
            slot.buffer_waits += metrics.buffer_waits.get();
            slot.interpreter_wait_ns += metrics.interpreter_wait_ns.get();
            slot.queue_wait.merge(&metrics.queue_wait);
            slot.application.merge(&metrics.application);
            slot.total.merge(&metrics.total);
            match record.state() {
                WorkerState::Empty => continue,
                WorkerState::Booting => reading.booting += 1,
                WorkerState::Ready => reading.ready += 1,
                WorkerState::Draining | WorkerState::Exited => reading.draining += 1,
            }
            slot.connections += metrics.connections.get();
            slot.waiting += metrics.waiting.get();
            slot.in_hand += metrics.in_hand.get();
            slot.runners += metrics.runners.get();
            slot.runners_awake += metrics.runners_awake.get();
            slot.runners_blocked += metrics.runners_blocked.get();
            let silent_ms = now_ms.saturating_sub(record.heartbeat_ms());
            slot.silent_ms = slot.silent_ms.max(Some(silent_ms));
        }
        reading
    }
}

fn add_each(sums: &mut [u64], counters: &[Counter]) {
    for (sum, counter) in sums.iter_mut().zip(counters) {
        *sum += counter.get();
    }
}

/// The page for the server that serves `application`. Takes some 30 microseconds per worker.
#[must_use]
pub fn page(shared: &SharedPage, application: &str) -> Vec<u8> {
    let reading = Reading::of(shared);
    let mut out = Page(String::with_capacity(4096 * (reading.slots.len() + 2)));
    out.family("ringhorn_info", "gauge", "The server; always 1.");
    let version = escape(env!("CARGO_PKG_VERSION"));
    out.line(&format!("ringhorn_info{{version=\"{version}\",application=\"{}\"}}", escape(application)), 1);
    write_server(&mut out, shared, &reading);
    write_requests(&mut out, &reading);
    write_workers(&mut out, &reading);
    out.0.into_bytes()
}

fn write_server(out: &mut Page, shared: &SharedPage, reading: &Reading) {
    let server = shared.server();
    out.family("ringhorn_stopping", "gauge", "Whether the server is about to stop.");
    out.line("ringhorn_stopping", u8::from(server.is_stopping()));
    out.family("ringhorn_workers", "gauge", "Worker processes by state.");
    let states = [("booting", reading.booting), ("ready", reading.ready), ("draining", reading.draining)];
    for (state, count) in states {
        out.line(&format!("ringhorn_workers{{state=\"{state}\"}}"), count);
    }
    out.family("ringhorn_worker_forks_total", "counter", "Worker processes started.");
    out.line("ringhorn_worker_forks_total", server.metrics().forks.get());
    out.family("ringhorn_worker_exits_total", "counter", "Worker processes ended, by reason.");
    for (name, counter) in Departure::NAMES.iter().zip(&server.metrics().departures) {
        out.line(&format!("ringhorn_worker_exits_total{{reason=\"{name}\"}}"), counter.get());
    }
    out.family("ringhorn_reloads_total", "counter", "Reloads asked for.");
    out.line("ringhorn_reloads_total", server.metrics().reloads.get());
}

fn write_requests(out: &mut Page, reading: &Reading) {
    out.family("ringhorn_requests_total", "counter", "Requests answered by the application.");
    for (worker, slot) in &reading.slots {
        for (method, counts) in METHODS.iter().zip(&slot.requests) {
            // All classes at once, so that the first error is a step from 0 and not a new series.
            if *method != "GET" && counts.iter().all(|count| *count == 0) {
                continue;
            }
            for (status, count) in STATUSES.iter().zip(counts) {
                out.line(
                    &format!(
                        "ringhorn_requests_total{{worker=\"{worker}\",method=\"{method}\",status=\"{status}\"}}"
                    ),
                    count,
                );
            }
        }
    }
    out.family("ringhorn_refused_requests_total", "counter", "Requests that no application saw.");
    for (worker, slot) in &reading.slots {
        for (status, count) in STATUSES.iter().zip(&slot.refused) {
            if *count > 0 || ["4xx", "5xx"].contains(status) {
                let name = "ringhorn_refused_requests_total";
                out.line(&format!("{name}{{worker=\"{worker}\",status=\"{status}\"}}"), count);
            }
        }
    }
    type Pick = fn(&Slot) -> &Times;
    let histograms: [(&str, &str, Pick); 3] = [
        ("ringhorn_queue_wait_seconds", "From the complete request to its runner.", |slot| &slot.queue_wait),
        ("ringhorn_application_seconds", "From there to the end of the answer.", |slot| &slot.application),
        ("ringhorn_request_seconds", "From the complete request to the end of the answer.", |slot| {
            &slot.total
        }),
    ];
    for (name, help, times) in histograms {
        out.family(name, "histogram", help);
        for (worker, slot) in &reading.slots {
            let times = times(slot);
            for (bound_ns, bound) in BOUNDS {
                out.line(
                    &format!("{name}_bucket{{worker=\"{worker}\",le=\"{bound}\"}}"),
                    times.count_to(bound_ns),
                );
            }
            let count = times.count();
            out.line(&format!("{name}_bucket{{worker=\"{worker}\",le=\"+Inf\"}}"), count);
            out.line(&format!("{name}_sum{{worker=\"{worker}\"}}"), Seconds(times.sum_ns));
            out.line(&format!("{name}_count{{worker=\"{worker}\"}}"), count);
        }
    }
}

fn write_workers(out: &mut Page, reading: &Reading) {
    type Pick = fn(&Slot) -> u64;
    let numbers: [(&str, &str, &str, Pick); 11] = [
        ("requests_in_flight", "gauge", "Requests that wait for a runner or are with one.", |slot| {
            slot.waiting + slot.in_hand
        }),
        ("queue_depth", "gauge", "Requests that wait for a runner.", |slot| slot.waiting),
        ("connections", "gauge", "Connections open.", |slot| slot.connections),
        ("accepted_connections_total", "counter", "Connections accepted.", |slot| slot.accepted),
        ("handed_over_connections_total", "counter", "Connections given to another worker.", |slot| {
            slot.handed_over
        }),
        ("received_bytes_total", "counter", "Bytes received from clients.", |slot| slot.received_bytes),
        ("sent_bytes_total", "counter", "Bytes sent to clients.", |slot| slot.sent_bytes),
        ("receive_buffer_waits_total", "counter", "Times that no receive buffer was free.", |slot| {
            slot.buffer_waits
        }),
        ("runners", "gauge", "Runner threads.", |slot| slot.runners),
        ("runners_awake", "gauge", "Runner threads that are not parked.", |slot| slot.runners_awake),
        ("runners_blocked", "gauge", "Runner threads that wait inside a request.", |slot| {
            slot.runners_blocked
        }),
    ];
    for (name, kind, help, number) in numbers {
        out.family(&format!("ringhorn_{name}"), kind, help);
        for (worker, slot) in &reading.slots {
            out.line(&format!("ringhorn_{name}{{worker=\"{worker}\"}}"), number(slot));
        }
    }
    let name = "ringhorn_interpreter_wait_seconds_total";
    out.family(name, "counter", "Time that woken runners waited for the interpreter.");
    for (worker, slot) in &reading.slots {
        out.line(&format!("{name}{{worker=\"{worker}\"}}"), Seconds(slot.interpreter_wait_ns));
    }
    let name = "ringhorn_worker_silence_seconds";
    out.family(name, "gauge", "Time since the worker's last sign of life; up to 0.5 is usual.");
    for (worker, slot) in &reading.slots {
        if let Some(silent_ms) = slot.silent_ms {
            out.line(&format!("{name}{{worker=\"{worker}\"}}"), Seconds(silent_ms * 1_000_000));
        }
    }
}

struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to memory cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, series: &str, value: impl Display) {
        let _ = writeln!(self.0, "{series} {value}");
    }
}

/// Nanoseconds, shown in seconds.
struct Seconds(u64);

impl Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:09}", self.0 / 1_000_000_000, self.0 % 1_000_000_000)
    }
}

/// The value of a label: quotes, backslashes and line ends are written with a backslash.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn line<'a>(page: &'a str, series: &str) -> &'a str {
        page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')).unwrap_or("nothing")
    }

    #[test]
    fn workers_of_one_slot_are_added_up_and_gauges_are_of_those_that_live() {
        let shared = SharedPage::new().unwrap();
        for (index, slot) in [(0, 0), (1, 1), (2, 0)] {
            shared.record(index).unwrap().reset(slot);
            let metrics = shared.metrics(index).unwrap();
            metrics.accepted.add(3);
            metrics.connections.set(2);
            metrics.requests[0][0].add(5);
            metrics.total.record(3_000_000);
        }
        shared.record(1).unwrap().set_state(WorkerState::Ready);
        shared.record(2).unwrap().set_state(WorkerState::Empty);
        let page = String::from_utf8(page(&shared, "app:make(\"a\\b\")")).unwrap();
        assert!(page.contains(r#"application="app:make(\"a\\b\")"} 1"#), "{page}");
        for (series, value) in [
            ("ringhorn_accepted_connections_total{worker=\"0\"}", "6"),
            ("ringhorn_accepted_connections_total{worker=\"1\"}", "3"),
            ("ringhorn_connections{worker=\"0\"}", "2"),
            ("ringhorn_requests_total{worker=\"0\",method=\"GET\",status=\"2xx\"}", "10"),
            ("ringhorn_requests_total{worker=\"0\",method=\"GET\",status=\"5xx\"}", "0"),
            ("ringhorn_requests_total{worker=\"0\",method=\"PUT\",status=\"2xx\"}", "nothing"),
            ("ringhorn_request_seconds_bucket{worker=\"0\",le=\"0.0025\"}", "0"),
            ("ringhorn_request_seconds_bucket{worker=\"0\",le=\"0.005\"}", "2"),
            ("ringhorn_request_seconds_bucket{worker=\"0\",le=\"+Inf\"}", "2"),
            ("ringhorn_request_seconds_sum{worker=\"0\"}", "0.006000000"),
            ("ringhorn_workers{state=\"ready\"}", "1"),
            ("ringhorn_workers{state=\"booting\"}", "1"),
            ("ringhorn_stopping", "0"),
        ] {
            assert_eq!(line(&page, series), value, "{series}\n{page}");
        }
    }
}
