//! What operators ask of the master through the control socket, and its answers.
//!
//! Names of commands, and of what gunicorn's answers hold too, are gunicorn's.

use serde_json::{Map, Value, json};
use tracing::info;

use super::control::Control;
use super::{LocalAddr, Master, kill};
use crate::limits::{LOAD_WATCH_SECONDS, LOAD_WATCH_SECONDS_MAX};
use crate::sys::clock::monotonic_ms;
use crate::sys::fd::Credentials;
use crate::sys::in_hand::InHand;
use crate::sys::metrics::{Counter, Times, WorkerMetrics};
use crate::sys::process::Pid;
use crate::sys::shared::WorkerState;
use crate::sys::signal::Signal;
use crate::sys::usage::Usage;

/// Every command with what it does, in the order of the help.
const COMMANDS: [(&str, &str); 21] = [
    ("show all", "Everything there is about the processes, in one answer"),
    ("show workers", "The workers: state, requests, connections, CPU, memory"),
    ("show requests", "The requests in hand for a second and more: age, method, path, peer"),
    ("show load [SECS]", "The workers, and what they count from now on for so long (default 10)"),
    ("show stats", "The server: uptime, workers, reloads, requests"),
    ("show listeners", "Where the server listens"),
    ("show settings", "Every setting with its value and its source"),
    ("show config", "Every setting with its value"),
    ("show dirty", "gunicorn's dirty workers, of which there are none"),
    ("scale N", "Have N workers; +N and -N for more and less"),
    ("worker add [N]", "N workers more (default 1)"),
    ("worker remove [N]", "N workers less (default 1)"),
    ("worker kill PID", "Let a worker finish what it has and leave; another one takes its place"),
    ("retire SLOT", "Fork a new worker into the slot; the old one leaves when the new one serves"),
    ("reload", "Read the settings again and replace all workers, as HUP does"),
    ("upgrade", "Start another master beside this one, as USR2 does"),
    ("reopen", "Open the log files again, as USR1 does"),
    ("shutdown [graceful|quick]", "Stop, as TERM or QUIT does"),
    ("stop [quick]", "The same"),
    ("ping", "Answer with the master's process id"),
    ("help", "These commands"),
];

/// What the master counts for its operators.
#[derive(Debug)]
pub(super) struct Counts {
    started_ms: u64,
    /// Requests of workers that have ended.
    pub(super) requests: u64,
    /// Workers that were sent KILL.
    pub(super) killed: u64,
    /// Generations of workers that were begun.
    pub(super) reloads: u64,
    /// Reloads that left the old workers in place.
    pub(super) reloads_failed: u64,
}

impl Counts {
    pub(super) const fn new(now_ms: u64) -> Self {
        Self { started_ms: now_ms, requests: 0, killed: 0, reloads: 0, reloads_failed: 0 }
    }
}

impl Master<'_> {
    pub(super) fn open_control(&mut self) {
        let settings = self.settings.control.as_ref();
        let take_over = self.earlier_master.is_some();
        self.control = settings.and_then(|settings| Control::open(settings, &self.launch, take_over));
    }

    pub(super) fn close_control(&mut self) {
        if let Some(control) = self.control.take() {
            control.close();
        }
    }

    /// A next master had taken the name over, and has ended.
    pub(super) fn reopen_control(&mut self) {
        if self.control.as_ref().is_some_and(|control| !control.is_in_place()) {
            self.open_control();
        }
    }

    /// Answers who asks.
    pub(super) fn take_commands(&mut self) {
        // Out of its place while its requests act on the rest.
        if let Some(mut control) = self.control.take() {
            control.turn(monotonic_ms(), &mut |words, peer| self.command(words, peer));
            self.control = Some(control);
        }
    }

    fn command(&mut self, words: &[String], peer: Credentials) -> Result<Value, String> {
        let lower: Vec<String> = words.iter().map(|word| word.to_ascii_lowercase()).collect();
        let lower: Vec<&str> = lower.iter().map(String::as_str).collect();
        let acts = !matches!(lower[..], [] | ["show" | "help" | "ping", ..]);
        let result = self.execute(&lower);
        if acts {
            // Who did what to a server is asked later.
            let outcome = result.as_ref().err().map(|error| format!(": {error}")).unwrap_or_default();
            let words: Vec<String> = words.iter().map(|word| word.escape_default().to_string()).collect();
            info!("control: {} (uid:{} pid:{}){outcome}", words.join(" "), peer.uid, peer.pid);
        }
        result
    }

    fn execute(&mut self, words: &[&str]) -> Result<Value, String> {
        match *words {
            [] => Err("the request has no command; try help".to_owned()),
            ["show", "all"] => Ok(self.show_all()),
            ["show", "workers"] => {
                let workers = self.show_workers();
                Ok(json!({ "count": workers.len(), "workers": workers, "now": seconds(monotonic_ms()) }))
            }
            ["show", "load"] => Ok(self.show_load(LOAD_WATCH_SECONDS)),
            ["show", "load", time] => match time.parse() {
                Ok(time @ 1..=LOAD_WATCH_SECONDS_MAX) => Ok(self.show_load(time)),
                _ => Err(format!("{time} is no number of seconds from 1 to {LOAD_WATCH_SECONDS_MAX}")),
            },
            ["show", "requests"] => {
                let requests = self.show_requests();
                Ok(json!({ "count": requests.len(), "requests": requests }))
            }
            ["show", "stats"] => Ok(self.show_stats()),
            ["show", "listeners"] => Ok(self.show_listeners()),
            ["show", "settings"] => {
                let rows = self.settings.rows().into_iter();
                let row = |(name, value, source)| json!({ "name": name, "value": value, "source": source });
                Ok(json!({ "settings": rows.map(row).collect::<Vec<_>>() }))
            }
            ["show", "config"] => {
                let rows = self.settings.rows().into_iter();
                Ok(Value::Object(rows.map(|(name, value, _)| (name.to_owned(), value.into())).collect()))
            }
            ["show", "dirty"] => Ok(json!({ "enabled": false, "pid": null, "workers": [], "apps": [] })),
            ["scale", count] => {
                let number = |text: &str| {
                    text.parse::<usize>().map_err(|_| format!("{count} is no number of workers"))
                };
                let before = self.slots.target();
                let target = match count.split_at_checked(1) {
                    Some(("+", more)) => before.saturating_add(number(more)?),
                    Some(("-", less)) => before.saturating_sub(number(less)?),
                    _ => number(count)?,
                };
                self.scale(target)
            }
            ["worker", "add"] => self.execute(&["worker", "add", "1"]),
            ["worker", "remove"] => self.execute(&["worker", "remove", "1"]),
            ["worker", "add", count] => {
                let count: usize = count.parse().map_err(|_| format!("{count} is no number of workers"))?;
                let mut data = self.scale(self.slots.target().saturating_add(count))?;
                data["added"] = count.into();
                Ok(data)
            }
            ["worker", "remove", count] => {
                let count: usize = count.parse().map_err(|_| format!("{count} is no number of workers"))?;
                let before = self.slots.target();
                // gunicorn leaves one, whatever it is told.
                let target = before.saturating_sub(count).max(1);
                let mut data = self.scale(target)?;
                data["removed"] = (before - target).into();
                Ok(data)
            }
            ["worker", "kill", pid] => self.kill_worker(pid),
            ["retire", slot] => {
                let slot: usize = slot.parse().map_err(|_| format!("{slot} is no number of a slot"))?;
                let pid = self.slots.replace(slot)?;
                Ok(json!({ "slot": slot, "retiring": number(pid) }))
            }
            ["reload"] => {
                self.refuse_when_stopping()?;
                let earlier = (self.counts.reloads, self.counts.reloads_failed);
                self.slots.signal(Signal::HUP, monotonic_ms());
                Ok(json!({ "status": "reloading", "reloads": earlier.0, "reloads_failed": earlier.1 }))
            }
            ["upgrade"] => {
                self.refuse_when_stopping()?;
                if self.slots.is_sharing() {
                    return Err("an upgrade is under way".to_owned());
                }
                self.slots.signal(Signal::USR2, monotonic_ms());
                Ok(json!({ "status": "upgrading" }))
            }
            ["reopen"] => {
                self.slots.signal(Signal::USR1, monotonic_ms());
                Ok(json!({ "status": "reopening" }))
            }
            ["shutdown" | "stop"] => self.execute(&["stop", "graceful"]),
            ["shutdown" | "stop", mode @ ("graceful" | "quick")] => {
                let signal = if mode == "quick" { Signal::QUIT } else { Signal::TERM };
                self.slots.signal(signal, monotonic_ms());
                Ok(json!({ "status": "shutting_down", "mode": mode }))
            }
            ["ping"] => Ok(json!({ "pid": number(self.pid) })),
            ["help"] => {
                let commands = COMMANDS.iter().map(|(name, doc)| ((*name).to_owned(), (*doc).into()));
                Ok(json!({ "commands": commands.collect::<Map<_, Value>>() }))
            }
            _ => {
                let first = words.first().copied().unwrap_or_default();
                let near: Vec<&str> = COMMANDS
                    .iter()
                    .filter(|(name, _)| name.split(' ').next() == Some(first))
                    .map(|(name, _)| *name)
                    .collect();
                let words: Vec<String> = words.iter().map(|word| word.escape_default().to_string()).collect();
                let known = if near.is_empty() { "help".to_owned() } else { near.join(", ") };
                Err(format!("there is no command {:?}; try {known}", words.join(" ")))
            }
        }
    }

    fn refuse_when_stopping(&self) -> Result<(), String> {
        if self.slots.is_ending() { Err("the server is stopping".to_owned()) } else { Ok(()) }
    }

    fn scale(&mut self, target: usize) -> Result<Value, String> {
        let before = self.slots.target();
        self.slots.scale(target, monotonic_ms())?;
        Ok(json!({ "previous": before, "total": target }))
    }

    fn kill_worker(&mut self, pid: &str) -> Result<Value, String> {
        let worker = self.slots.workers().find(|worker| number(worker.pid).to_string() == pid);
        let Some(worker) = worker else { return Err(format!("there is no worker with pid {pid}")) };
        kill(worker.pid, Signal::TERM);
        Ok(json!({ "success": true, "killed": number(worker.pid) }))
    }

    fn show_all(&self) -> Value {
        let workers = self.show_workers();
        json!({
            "arbiter": { "pid": number(self.pid), "type": "arbiter", "role": "master" },
            "web_worker_count": workers.len(),
            "web_workers": workers,
            "dirty_arbiter": null,
            "dirty_workers": [],
            "dirty_worker_count": 0,
            "stats": self.show_stats(),
            "listeners": self.show_listeners()["listeners"],
            "now": seconds(monotonic_ms()),
        })
    }

    /// Has the workers count for so many seconds more. They begin at their next sign of life, and until then
    /// have no meter in the answer.
    fn show_load(&self, watch_seconds: u64) -> Value {
        let now_ms = monotonic_ms();
        self.shared.server().watch_until(now_ms.saturating_add(watch_seconds.saturating_mul(1_000)));
        json!({
            "now": seconds(now_ms),
            "stats": self.show_stats(),
            "listeners": self.show_listeners()["listeners"],
            "web_workers": self.show_workers(),
        })
    }

    /// In the order of their slots, an old worker before its successor.
    fn show_workers(&self) -> Vec<Value> {
        let now_ms = monotonic_ms();
        let mut workers: Vec<_> = self.slots.workers().collect();
        workers.sort_by_key(|worker| worker.slot);
        let show = |worker: &super::slots::Overview| {
            let record = self.record_of(worker.pid);
            let state = record.map_or(WorkerState::Booting, |record| record.state());
            let ready = state >= WorkerState::Ready;
            let usage = Usage::of(worker.pid);
            let metrics = self.metrics_of(worker.pid);
            json!({
                "type": "web",
                "pid": number(worker.pid),
                "slot": worker.slot,
                "age": record.map_or(0, |record| record.age()),
                "booted": ready,
                "aborted": worker.aborted,
                "last_heartbeat": record.map(|record| seconds(now_ms.saturating_sub(record.heartbeat_ms()))),
                "state": match state {
                    _ if worker.aborted => "aborted",
                    WorkerState::Booting | WorkerState::Empty => "booting",
                    WorkerState::Ready if worker.leaving => "leaving",
                    WorkerState::Ready => "ready",
                    WorkerState::Draining => "draining",
                    WorkerState::Exited => "gone",
                },
                "uptime": seconds(now_ms.saturating_sub(worker.forked_ms)),
                "cpu": self.cpus.as_ref().and_then(|cpus| cpus.get(worker.slot).copied()),
                "cpu_seconds": usage.map(|usage| usage.cpu.as_secs_f64()),
                "memory_bytes": usage.map(|usage| usage.resident_bytes),
                "requests": record.map_or(0, |record| record.requests()),
                "connections": match metrics {
                    Some(metrics) => metrics.connections.get(),
                    None => record.map_or(0, |record| record.connections().into()),
                },
                "meter": metrics.map(meter),
            })
        };
        workers.iter().map(show).collect()
    }

    /// The requests that workers have published, those in hand for longest first.
    fn show_requests(&self) -> Vec<Value> {
        let now_ms = monotonic_ms();
        let mut requests = Vec::new();
        for worker in self.slots.workers() {
            for request in self.requests_of(worker.pid).map(InHand::published).unwrap_or_default() {
                requests.push((request.begun_ms, worker.slot, worker.pid, request.text));
            }
        }
        requests.sort_by_key(|(begun_ms, slot, ..)| (*begun_ms, *slot));
        let show = |(begun_ms, slot, pid, text): &(u64, usize, Pid, String)| json!({ "slot": slot, "pid": number(*pid), "seconds": seconds(now_ms.saturating_sub(*begun_ms)), "request": text });
        requests.iter().map(show).collect()
    }

    /// What a worker counts, while it does.
    fn metrics_of(&self, pid: Pid) -> Option<&WorkerMetrics> {
        self.shared.metrics(self.record_index(pid)?).filter(|metrics| metrics.counting.get())
    }

    fn show_stats(&self) -> Value {
        let records = || self.records.iter().filter_map(|(_, record)| self.shared.record(*record));
        let requests: u64 = records().map(|record| record.requests()).sum();
        let connections: u64 = records().map(|record| u64::from(record.connections())).sum();
        let metered = self.records.iter().filter_map(|(pid, _)| self.metrics_of(*pid));
        let connections = connections.max(metered.map(|metrics| metrics.connections.get()).sum());
        let state = match () {
            () if self.slots.is_ending() => "stopping",
            () if self.slots.is_resting() => "resting",
            () if self.slots.is_sharing() => "upgrading",
            () if self.reloading => "reloading",
            () if !self.slots.is_complete() => "starting workers",
            () => "serving",
        };
        json!({
            "pid": number(self.pid),
            "version": env!("CARGO_PKG_VERSION"),
            "app": self.settings.app,
            "state": state,
            "uptime": seconds(monotonic_ms().saturating_sub(self.counts.started_ms)),
            "workers_current": self.slots.workers().count(),
            "workers_target": self.slots.target(),
            "workers_spawned": self.age,
            "workers_killed": self.counts.killed,
            "threads": self.settings.threads,
            "reloads": self.counts.reloads,
            "reloads_failed": self.counts.reloads_failed,
            "requests": self.counts.requests + requests,
            "connections": connections,
            "next_master_pid": self.next_master.map(number),
            "earlier_master_pid": self.earlier_master.map(number),
            "dirty_arbiter_pid": null,
        })
    }

    fn show_listeners(&self) -> Value {
        let show = |(local, fd): (&LocalAddr, i32)| {
            let kind = match local {
                LocalAddr::Tcp(address) if address.is_ipv6() => "tcp6",
                LocalAddr::Tcp(_) => "tcp",
                LocalAddr::Unix(_) => "unix",
            };
            json!({ "address": local.to_string(), "fd": fd, "type": kind })
        };
        let listeners: Vec<Value> = self.listeners.described().map(show).collect();
        json!({ "count": listeners.len(), "listeners": listeners })
    }
}

fn meter(metrics: &WorkerMetrics) -> Value {
    let mut total = Times::default();
    total.merge(&metrics.total);
    let times: Vec<(u64, u64)> = total.filled().map(|(ns, count)| (ns / 1_000, count)).collect();
    let requests: u64 = metrics.requests.iter().flatten().map(Counter::get).sum();
    let refused: u64 = metrics.refused.iter().map(Counter::get).sum();
    json!({
        "requests": requests + refused,
        "in_hand": metrics.in_hand.get(),
        "waiting": metrics.waiting.get(),
        "blocked": metrics.runners_blocked.get(),
        "runners": metrics.runners.get(),
        "times": times,
    })
}

fn number(pid: Pid) -> i32 {
    pid.as_raw_nonzero().get()
}

/// Milliseconds as seconds with a fraction, which JSON's readers expect of times.
fn seconds(ms: u64) -> f64 {
    std::time::Duration::from_millis(ms).as_secs_f64()
}
