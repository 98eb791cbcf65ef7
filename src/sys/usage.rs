//! What a process has used, as the kernel counts it.

use std::time::Duration;

use super::process::Pid;

/// CPU time and memory of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// CPU time of all its threads since its start. The kernel tells it in steps of 10 ms.
    pub cpu: Duration,
    /// Memory in RAM, in bytes; what it shares with other processes counts in each.
    pub resident_bytes: u64,
}

impl Usage {
    /// That of the process; `None` when it is gone, or without /proc.
    #[must_use]
    pub fn of(pid: Pid) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Self::parse(&stat, rustix::param::clock_ticks_per_second(), rustix::param::page_size() as u64)
    }

    /// # Source
    /// proc_pid_stat(5): `utime` and `stime` are fields 14 and 15, `rss` is field 24.
    fn parse(stat: &str, ticks_per_second: u64, page_bytes: u64) -> Option<Self> {
        // The name in parentheses may hold anything, also parentheses and blanks.
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
        let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
        let pages: u64 = fields.nth(8)?.parse().ok()?;
        let cpu = Duration::from_millis(ticks.saturating_mul(1_000).checked_div(ticks_per_second)?);
        Some(Self { cpu, resident_bytes: pages.saturating_mul(page_bytes) })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::sys::process;

    #[test]
    fn a_name_with_blanks_and_parentheses_moves_no_field() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 250 50 16 17 18 19 20 21 22 23000 300 25 26";
        let usage = Usage::parse(stat, 100, 4096).unwrap();
        assert_eq!(usage, Usage { cpu: Duration::from_secs(3), resident_bytes: 300 * 4096 });
        assert_eq!(Usage::parse("7 (a", 100, 4096), None);
        assert_eq!(Usage::parse("7 (a) S 1", 100, 4096), None);
    }

    #[test]
    fn memory_that_is_written_is_resident_and_an_impossible_process_has_none() {
        let resident = || Usage::of(process::id()).unwrap().resident_bytes;
        let before = resident();
        let held = std::hint::black_box(vec![1_u8; 64 << 20]);
        assert!(resident() > before + (32 << 20));
        drop(held);
        assert_eq!(Usage::of(Pid::from_raw(i32::MAX).unwrap()), None);
    }
}
