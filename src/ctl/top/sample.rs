//! What the server answered at one moment, and what happened between two of them.

use std::collections::HashMap;

use serde_json::Value;

/// One answer to `show load`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sample {
    /// The server's monotonic clock, in seconds.
    pub(super) now: f64,
    pub(super) server: Server,
    pub(super) workers: Vec<Worker>,
}

/// The server as a whole.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Server {
    pub(super) app: String,
    pub(super) pid: u64,
    pub(super) state: String,
    pub(super) uptime: f64,
    pub(super) target: u64,
    /// Since the start, those of workers that have ended among them.
    pub(super) requests: u64,
    pub(super) listeners: Vec<String>,
}

/// One worker.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Worker {
    pub(super) slot: u64,
    pub(super) pid: u64,
    pub(super) state: String,
    pub(super) cpu_seconds: f64,
    pub(super) memory_bytes: Option<u64>,
    pub(super) requests: u64,
    pub(super) connections: u64,
    /// What the worker counts only while somebody looks; `None` before it does.
    pub(super) meter: Option<Meter>,
}

/// What is counted only while somebody looks.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Meter {
    pub(super) requests: u64,
    pub(super) in_hand: u64,
    pub(super) waiting: u64,
    pub(super) blocked: u64,
    pub(super) runners: u64,
    /// Microseconds, and how many requests took so long; since the worker's start.
    pub(super) times: Vec<(u64, u64)>,
}

/// A line of the screen.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Row {
    pub(super) slot: u64,
    pub(super) pid: u64,
    pub(super) state: String,
    /// Percent of one CPU.
    pub(super) cpu: f64,
    /// Requests in a second.
    pub(super) rate: f64,
    /// Microseconds; `None` when no request ended in between.
    pub(super) p50: Option<u64>,
    pub(super) p99: Option<u64>,
    pub(super) in_hand: Option<u64>,
    pub(super) waiting: Option<u64>,
    /// Runners that wait for something other than the CPU, of all.
    pub(super) blocked: Option<(u64, u64)>,
    pub(super) connections: u64,
    pub(super) memory_bytes: Option<u64>,
}

impl Sample {
    /// Reads an answer. What is missing is nothing: an older server is shown as far as it tells.
    pub(super) fn read(answer: &Value) -> Self {
        let stats = &answer["stats"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let number = |value: &Value| value.as_u64().unwrap_or_default();
        let worker = |worker: &Value| Worker {
            slot: number(&worker["slot"]),
            pid: number(&worker["pid"]),
            state: text(&worker["state"]),
            cpu_seconds: worker["cpu_seconds"].as_f64().unwrap_or_default(),
            memory_bytes: worker["memory_bytes"].as_u64(),
            requests: number(&worker["requests"]),
            connections: number(&worker["connections"]),
            meter: worker["meter"].as_object().map(|meter| Meter {
                requests: meter.get("requests").map(number).unwrap_or_default(),
                in_hand: meter.get("in_hand").map(number).unwrap_or_default(),
                waiting: meter.get("waiting").map(number).unwrap_or_default(),
                blocked: meter.get("blocked").map(number).unwrap_or_default(),
                runners: meter.get("runners").map(number).unwrap_or_default(),
                times: meter
                    .get("times")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                    .map(|pair| (number(&pair[0]), number(&pair[1])))
                    .collect(),
            }),
        };
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        Self {
            now: answer["now"].as_f64().unwrap_or_default(),
            server: Server {
                app: text(&stats["app"]),
                pid: number(&stats["pid"]),
                state: text(&stats["state"]),
                uptime: stats["uptime"].as_f64().unwrap_or_default(),
                target: number(&stats["workers_target"]),
                requests: number(&stats["requests"]),
                listeners: list(&answer["listeners"])
                    .iter()
                    .map(|listener| text(&listener["address"]))
                    .collect(),
            },
            workers: list(&answer["web_workers"]).iter().map(worker).collect(),
        }
    }

    /// Whether all workers that serve count.
    pub(super) fn is_counted(&self) -> bool {
        self.workers.iter().all(|worker| worker.state != "ready" || worker.meter.is_some())
    }

    /// What happened since `earlier`: a row for each worker, and all of them together.
    pub(super) fn since(&self, earlier: &Self) -> (Vec<Row>, Row) {
        // Two answers within a blink tell nothing about a second.
        let seconds = (self.now - earlier.now).max(0.001);
        let before: HashMap<u64, &Worker> =
            earlier.workers.iter().map(|worker| (worker.pid, worker)).collect();
        let mut all = Row { state: self.server.state.clone(), ..Row::default() };
        let mut all_times: HashMap<u64, u64> = HashMap::new();
        let mut rows = Vec::new();
        for worker in &self.workers {
            let before = before.get(&worker.pid).copied();
            // Of a new worker everything is new, but for its meter: that goes on where the slot's last worker
            // stopped.
            let meters = worker.meter.as_ref().zip(before.and_then(|before| before.meter.as_ref()));
            let times = meters.map(|(now, then)| difference(&now.times, &then.times)).unwrap_or_default();
            // The meter counts answers as they end, the worker's record requests as they begin, and tells it
            // only twice a second when there is little to do.
            let requests = match meters {
                Some((now, then)) => now.requests.saturating_sub(then.requests),
                None => worker.requests.saturating_sub(before.map_or(0, |before| before.requests)),
            };
            let cpu_seconds = worker.cpu_seconds - before.map_or(0.0, |before| before.cpu_seconds);
            let meter = worker.meter.as_ref();
            let row = Row {
                slot: worker.slot,
                pid: worker.pid,
                state: worker.state.clone(),
                cpu: (cpu_seconds / seconds * 100.0).max(0.0),
                #[expect(clippy::cast_precision_loss, reason = "requests of one interval")]
                rate: requests as f64 / seconds,
                p50: quantile(&times, 0.5),
                p99: quantile(&times, 0.99),
                in_hand: meter.map(|meter| meter.in_hand),
                waiting: meter.map(|meter| meter.waiting),
                blocked: meter.map(|meter| (meter.blocked, meter.runners)),
                connections: worker.connections,
                memory_bytes: worker.memory_bytes,
            };
            all.cpu += row.cpu;
            all.rate += row.rate;
            all.in_hand = sum(all.in_hand, row.in_hand);
            all.waiting = sum(all.waiting, row.waiting);
            all.memory_bytes = sum(all.memory_bytes, row.memory_bytes);
            all.connections += row.connections;
            if let Some((blocked, runners)) = row.blocked {
                let (b, r) = all.blocked.unwrap_or_default();
                all.blocked = Some((b + blocked, r + runners));
            }
            for (time, count) in times {
                *all_times.entry(time).or_default() += count;
            }
            rows.push(row);
        }
        let mut all_times: Vec<(u64, u64)> = all_times.into_iter().collect();
        all_times.sort_unstable();
        (all.p50, all.p99) = (quantile(&all_times, 0.5), quantile(&all_times, 0.99));
        (rows, all)
    }
}

fn sum(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a + b),
        (a, b) => a.or(b),
    }
}

/// How many more of each time there are, in the order of the times.
fn difference(now: &[(u64, u64)], then: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let then: HashMap<u64, u64> = then.iter().copied().collect();
    let mut more: Vec<(u64, u64)> = now
        .iter()
        .map(|(time, count)| (*time, count.saturating_sub(then.get(time).copied().unwrap_or_default())))
        .filter(|(_, count)| *count > 0)
        .collect();
    more.sort_unstable();
    more
}

/// The time that `part` of all do not exceed; `times` in their order.
fn quantile(times: &[(u64, u64)], part: f64) -> Option<u64> {
    let count: u64 = times.iter().map(|(_, count)| count).sum();
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "requests of one interval"
    )]
    let wanted = ((count as f64 * part).ceil() as u64).max(1);
    let mut seen = 0;
    times.iter().find_map(|(time, count)| {
        seen += count;
        (seen >= wanted).then_some(*time)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer(now: f64, requests: u64, times: Value) -> Value {
        json!({
            "now": now,
            "stats": { "app": "a:b", "pid": 1, "state": "serving", "workers_target": 2, "requests": requests },
            "listeners": [{ "address": "http://127.0.0.1:8000" }],
            "web_workers": [
                { "slot": 0, "pid": 10, "state": "ready", "cpu_seconds": now / 2.0, "requests": requests,
                  "connections": 3, "memory_bytes": 1000,
                  "meter": { "requests": requests, "in_hand": 1, "waiting": 2, "blocked": 1, "runners": 4,
                             "times": times } },
                { "slot": 1, "pid": 11, "state": "booting" },
            ],
        })
    }

    #[test]
    fn rates_are_of_the_time_between_two_answers() {
        let first = Sample::read(&answer(100.0, 50, json!([[100, 40], [5000, 10]])));
        let second = Sample::read(&answer(102.0, 250, json!([[100, 140], [200, 98], [5000, 12]])));
        let (rows, all) = second.since(&first);
        assert_eq!((rows.len(), rows[0].slot, rows[0].pid), (2, 0, 10));
        assert!(first.is_counted(), "who boots does not count yet");
        assert!((rows[0].rate - 100.0).abs() < 1e-9 && (rows[0].cpu - 50.0).abs() < 1e-9, "{rows:?}");
        // Of the interval: 100 of 100 us, 98 of 200 us, 2 of 5 ms.
        assert_eq!((rows[0].p50, rows[0].p99), (Some(100), Some(200)));
        assert_eq!((rows[0].in_hand, rows[0].waiting, rows[0].blocked), (Some(1), Some(2), Some((1, 4))));
        assert_eq!((rows[1].p50, rows[1].in_hand, rows[1].blocked), (None, None, None));
        assert_eq!((all.p50, all.p99, all.in_hand, all.connections), (Some(100), Some(200), Some(1), 3));
        assert!((all.rate - 100.0).abs() < 1e-9);
    }

    /// The counts of a slot's next worker go on where those of the last one stopped: they are not this second's.
    #[test]
    fn a_new_worker_brings_no_spike() {
        let first = Sample::read(&answer(100.0, 0, json!([])));
        let mut later = answer(101.0, 7, json!([[100, 1_000_000]]));
        later["web_workers"][0]["pid"] = json!(99);
        later["web_workers"][0]["meter"]["requests"] = json!(1_000_000);
        let (rows, all) = Sample::read(&later).since(&first);
        assert!((rows[0].rate - 7.0).abs() < 1e-9 && rows[0].p50.is_none() && all.p99.is_none());
    }

    #[test]
    fn an_answer_without_anything_is_shown_as_nothing() {
        let empty = Sample::read(&json!({}));
        assert!(empty.is_counted());
        assert_eq!(empty, Sample::default());
        let (rows, all) = empty.since(&empty);
        assert!(rows.is_empty() && all.rate == 0.0);
    }
}
