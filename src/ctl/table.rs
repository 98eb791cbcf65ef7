//! Answers of the server as plain text: columns for people, without lines or colours.

use std::fmt::Write as _;

use serde_json::Value;

/// The workers, one on each line.
pub(super) fn workers(workers: &Value) -> String {
    let rows: Vec<Vec<String>> = list(workers)
        .map(|worker| {
            vec![
                text(&worker["slot"]),
                text(&worker["pid"]),
                text(&worker["age"]),
                text(&worker["state"]),
                text(&worker["cpu"]),
                duration(&worker["uptime"]),
                duration(&worker["cpu_seconds"]),
                bytes(&worker["memory_bytes"]),
                text(&worker["requests"]),
                text(&worker["connections"]),
                worker["last_heartbeat"].as_f64().map_or("-".to_owned(), |beat| format!("{beat:.1}s")),
            ]
        })
        .collect();
    if rows.is_empty() {
        return "no workers\n".to_owned();
    }
    let heads = [
        "SLOT",
        "PID",
        "AGE",
        "STATE<",
        "CPU",
        "UPTIME",
        "CPU TIME",
        "MEMORY",
        "REQUESTS",
        "CONNECTIONS",
        "HEARTBEAT",
    ];
    columns(&heads, &rows)
}

/// The requests in hand, one on each line.
pub(super) fn requests(requests: &Value) -> String {
    let row = |request: &Value| {
        let [slot, pid, text] = ["slot", "pid", "request"].map(|name| text(&request[name]));
        vec![duration(&request["seconds"]), slot, pid, text]
    };
    let rows: Vec<_> = list(requests).map(row).collect();
    if rows.is_empty() {
        return "no request has been in hand for a second\n".to_owned();
    }
    columns(&["FOR", "SLOT", "PID", "REQUEST<"], &rows)
}

/// Where the server listens.
pub(super) fn listeners(listeners: &Value) -> String {
    let row = |listener: &Value| ["address", "type", "fd"].map(|name| text(&listener[name])).to_vec();
    columns(&["ADDRESS<", "TYPE<", "FD"], &list(listeners).map(row).collect::<Vec<_>>())
}

/// Every setting with its source.
pub(super) fn settings(settings: &Value) -> String {
    let row = |setting: &Value| ["name", "value", "source"].map(|name| text(&setting[name])).to_vec();
    columns(&["SETTING<", "VALUE<", "SOURCE<"], &list(settings).map(row).collect::<Vec<_>>())
}

/// The server as a whole.
pub(super) fn stats(stats: &Value) -> String {
    let mut rows = vec![
        ("Application", text(&stats["app"])),
        ("Version", text(&stats["version"])),
        ("PID", text(&stats["pid"])),
        ("State", text(&stats["state"])),
        ("Uptime", duration(&stats["uptime"])),
        ("Workers", format!("{} of {}", text(&stats["workers_current"]), text(&stats["workers_target"]))),
        ("Threads", format!("up to {} per worker", text(&stats["threads"]))),
        ("Workers spawned", text(&stats["workers_spawned"])),
        ("Workers killed", text(&stats["workers_killed"])),
        ("Reloads", format!("{} ({} failed)", text(&stats["reloads"]), text(&stats["reloads_failed"]))),
        ("Requests", text(&stats["requests"])),
        ("Connections", text(&stats["connections"])),
    ];
    for (name, key) in [("Next master", "next_master_pid"), ("Earlier master", "earlier_master_pid")] {
        if !stats[key].is_null() {
            rows.push((name, text(&stats[key])));
        }
    }
    let wide = rows.iter().map(|row| row.0.len()).max().unwrap_or_default() + 1;
    rows.iter().fold(String::new(), |mut out, (name, value)| {
        let _ = writeln!(out, "{:wide$}  {value}", format!("{name}:"));
        out
    })
}

/// A mapping, one entry on each line.
pub(super) fn pairs(object: &Value) -> String {
    let rows: Vec<Vec<String>> = object
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| vec![name.clone(), text(value)])
        .collect();
    columns(&["<", "<"], &rows)
}

/// Columns as wide as they need to be. A head that ends in `<` is that of a column of text; numbers stand to
/// the right. Without heads there is no first line.
fn columns(heads: &[&str], rows: &[Vec<String>]) -> String {
    let names: Vec<&str> = heads.iter().map(|head| head.trim_end_matches('<')).collect();
    let wide = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([names[column].len()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..heads.len()).map(wide).collect();
    let mut out = String::new();
    let mut line = |cells: &[&str]| {
        let mut text = String::new();
        for ((cell, head), width) in cells.iter().zip(heads).zip(&widths) {
            let _ = if head.ends_with('<') {
                write!(text, "{cell:<width$}  ")
            } else {
                write!(text, "{cell:>width$}  ")
            };
        }
        let _ = writeln!(out, "{}", text.trim_end());
    };
    if names.iter().any(|name| !name.is_empty()) {
        line(&names);
    }
    for row in rows {
        line(&row.iter().map(String::as_str).collect::<Vec<_>>());
    }
    out
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A value in one line; what comes from outside may hold control characters, which a terminal would obey.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => {
            text.chars().map(|char| if char.is_control() { '\u{fffd}' } else { char }).collect()
        }
        other => other.to_string(),
    }
}

/// Seconds as people say them: `4.2s`, `3m 07s`, `5h 12m`, `8d 3h`.
pub(super) fn duration(seconds: &Value) -> String {
    let Some(seconds) = seconds.as_f64() else { return "-".to_owned() };
    if seconds < 59.95 {
        return format!("{seconds:.1}s");
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time since a start")]
    let whole = seconds.round() as u64;
    let (minutes, hours, days) = (whole / 60, whole / 3600, whole / 86400);
    match (days, hours) {
        (0, 0) => format!("{minutes}m {:02}s", whole % 60),
        (0, _) => format!("{hours}h {:02}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

/// Bytes as people say them: `812K`, `53.1M`, `2.0G`.
pub(super) fn bytes(bytes: &Value) -> String {
    let Some(bytes) = bytes.as_f64() else { return "-".to_owned() };
    let kib = bytes / 1024.0;
    match kib {
        ..1024.0 => format!("{kib:.0}K"),
        ..1_048_576.0 => format!("{:.1}M", kib / 1024.0),
        _ => format!("{:.1}G", kib / 1_048_576.0),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_line_up_and_nothing_reaches_the_terminal_raw() {
        let rows = json!([
            { "slot": 0, "pid": 12, "state": "ready", "requests": 1_234_567, "uptime": 3.25, "last_heartbeat": 0.25 },
            { "slot": 10, "pid": 4_194_303, "state": "\u{1b}[2Jbooting" },
        ]);
        let text = workers(&rows);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        let end = lines[0].find("REQUESTS").map(|at| at + "REQUESTS".len());
        assert_eq!(lines[1].find("1234567").map(|at| at + 7), end, "{text}");
        assert!(lines[1].ends_with("0.2s"), "{text}");
        assert!(!text.contains('\u{1b}'));
        assert_eq!(workers(&json!([])), "no workers\n");
    }

    #[test]
    fn times_and_sizes_are_said_as_people_do() {
        for (seconds, said) in [
            (0.0, "0.0s"),
            (59.94, "59.9s"),
            (59.96, "1m 00s"),
            (3599.0, "59m 59s"),
            (3600.0, "1h 00m"),
            (86_400.0, "1d 0h"),
        ] {
            assert_eq!(duration(&json!(seconds)), said);
        }
        for (size, said) in [(0_u64, "0K"), (1_047_000, "1022K"), (1 << 20, "1.0M"), (3 << 30, "3.0G")] {
            assert_eq!(bytes(&json!(size)), said);
        }
        assert_eq!((duration(&Value::Null), bytes(&Value::Null)), ("-".to_owned(), "-".to_owned()));
    }
}
