//! How many CPUs this process may use: its affinity mask and its cgroup's quota.
//!
//! A container with half a machine's time still sees every CPU in its mask, and workers beyond the
//! quota only wait for each other, so the quota (rounded up) is a limit too. Sources: cgroups(7),
//! the kernel's `cgroup-v2` and `sched-bwc` documents, proc(5) for mountinfo.

use std::fmt;
use std::path::{Path, PathBuf};

/// The CPUs that this process may use.
#[derive(Clone, Debug, PartialEq)]
pub struct Available {
    /// Numbers of the CPUs in the affinity mask, ascending. Empty when the mask cannot be read.
    pub mask: Vec<usize>,
    /// CPUs' worth of time that the tightest cgroup above the process grants; `None` without one.
    pub quota: Option<f64>,
}

impl Available {
    /// Asks the kernel about this process.
    #[must_use]
    pub fn of_this_process() -> Self {
        let mut mask: Vec<_> =
            core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect();
        mask.sort_unstable();
        Self { mask, quota: quota(&|path| std::fs::read_to_string(path).ok()) }
    }

    /// The number of workers that keep these CPUs busy; at least 1.
    #[must_use]
    pub fn count(&self) -> usize {
        let mask = self.mask.len().max(1);
        match self.quota {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "bounded by the mask"
            )]
            Some(quota) => (quota.ceil().clamp(1.0, 1e6) as usize).min(mask),
            None => mask,
        }
    }
}

/// Says what decided, for the start-up summary and `--print-config`.
impl fmt::Display for Available {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.mask.len() == 1 { "" } else { "s" };
        match self.quota {
            Some(quota) if self.count() < self.mask.len() => {
                write!(f, "cgroup quota of {quota:.2} of {} CPUs", self.mask.len())
            }
            _ => write!(f, "affinity mask of {} CPU{plural}", self.mask.len().max(1)),
        }
    }
}

/// CPUs' worth of time that this process's cgroups grant: the least of every level, because a
/// parent's quota limits its children whatever theirs says.
///
/// `read` gives the text of a file, or `None` when there is no such file.
#[must_use]
pub fn quota(read: &dyn Fn(&Path) -> Option<String>) -> Option<f64> {
    let groups = read(Path::new("/proc/self/cgroup"))?;
    let mounts = read(Path::new("/proc/self/mountinfo"))?;
    let v2 = group_v2(&groups)
        .zip(mount(&mounts, "cgroup2", None))
        .and_then(|(group, mount)| least(&mount.levels(group), |dir| quota_v2(&read(&dir.join("cpu.max"))?)));
    let v1 = group_v1(&groups).zip(mount(&mounts, "cgroup", Some("cpu"))).and_then(|(group, mount)| {
        least(&mount.levels(group), |dir| {
            quota_v1(&read(&dir.join("cpu.cfs_quota_us"))?, &read(&dir.join("cpu.cfs_period_us"))?)
        })
    });
    [v1, v2].into_iter().flatten().min_by(f64::total_cmp)
}

fn least(levels: &[PathBuf], quota: impl Fn(&Path) -> Option<f64>) -> Option<f64> {
    levels.iter().filter_map(|dir| quota(dir)).min_by(f64::total_cmp)
}

/// The quota in a `cpu.max`: `max 100000`, or microseconds granted and microseconds of a period.
fn quota_v2(text: &str) -> Option<f64> {
    let mut words = text.split_ascii_whitespace();
    let granted = words.next()?;
    ratio(granted, words.next().unwrap_or("100000"))
}

/// The quota in `cpu.cfs_quota_us` and `cpu.cfs_period_us`; -1 means none.
fn quota_v1(granted: &str, period: &str) -> Option<f64> {
    ratio(granted, period)
}

fn ratio(granted: &str, period: &str) -> Option<f64> {
    let granted: f64 = granted.trim().parse::<u32>().ok()?.into();
    let period: f64 = period.trim().parse::<u32>().ok()?.into();
    (granted > 0.0 && period > 0.0).then_some(granted / period)
}

/// This process's group in the unified hierarchy: the line `0::PATH` of `/proc/self/cgroup`.
fn group_v2(groups: &str) -> Option<&str> {
    groups.lines().find_map(|line| line.strip_prefix("0::"))
}

/// This process's group in the hierarchy of the v1 controller `cpu`: the line `N:cpu,...:PATH`.
fn group_v1(groups: &str) -> Option<&str> {
    groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let controllers = parts.nth(1)?;
        controllers.split(',').any(|name| name == "cpu").then(|| parts.next())?
    })
}

/// Where a cgroup hierarchy is mounted, and which of its groups is the root of that mount.
struct Mount {
    root: String,
    point: PathBuf,
}

impl Mount {
    /// The directories of `group` and of every group above it that can be seen.
    fn levels(&self, group: &str) -> Vec<PathBuf> {
        let below = if self.root == "/" { Some(group) } else { group.strip_prefix(self.root.as_str()) };
        let below = below.filter(|path| path.is_empty() || path.starts_with('/'));
        // Without a cgroup namespace a container sees the host's path, which is not in its mount;
        // with one, a group outside shows as "/..". Both times the mount point is the nearest.
        let below = below.filter(|path| !path.contains("..")).unwrap_or("");
        let mut levels = vec![self.point.clone()];
        for name in below.split('/').filter(|name| !name.is_empty()) {
            let next = levels[levels.len() - 1].join(name);
            levels.push(next);
        }
        levels
    }
}

/// The first mount in a mountinfo of file system `kind`, with `controller` among its options.
fn mount(mounts: &str, kind: &str, controller: Option<&str>) -> Option<Mount> {
    mounts.lines().find_map(|line| {
        // "31 23 0:28 ROOT POINT rw,relatime shared:1 - KIND SOURCE OPTIONS"
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        let matches = after.next()? == kind
            && controller.is_none_or(|name| {
                after.nth(1).is_some_and(|options| options.split(',').any(|option| option == name))
            });
        let mut before = before.split(' ').skip(3);
        let (root, point) = (before.next()?, before.next()?);
        matches.then(|| Mount { root: unescape(root), point: unescape(point).into() })
    })
}

/// Undoes the octal escapes (`\040` for a space) of a mountinfo.
fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if first == b'\\' => {
                out.push(byte);
                rest = &after[3..];
            }
            _ => {
                out.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::collections::HashMap;

    use super::*;

    const MOUNTS_V2: &str = "24 1 259:1 / / rw - ext4 /dev/root rw\n\
        35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
    const MOUNTS_V1: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
        33 31 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
        32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:5 - cgroup cgroup rw,cpu,cpuacct\n";

    fn quota_of(files: &[(&str, &str)]) -> Option<f64> {
        let files: HashMap<PathBuf, String> =
            files.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned())).collect();
        quota(&|path| files.get(path).cloned())
    }

    #[test]
    fn v2_takes_the_least_of_all_levels() {
        let files = [
            ("/proc/self/cgroup", "0::/kube/pod/box\n"),
            ("/proc/self/mountinfo", MOUNTS_V2),
            ("/sys/fs/cgroup/kube/pod/box/cpu.max", "400000 100000\n"),
            ("/sys/fs/cgroup/kube/pod/cpu.max", "150000 100000\n"),
            ("/sys/fs/cgroup/kube/cpu.max", "max 100000\n"),
        ];
        assert_eq!(quota_of(&files), Some(1.5));
    }

    #[test]
    fn v2_without_a_limit_has_no_quota() {
        let files = [
            ("/proc/self/cgroup", "0::/a\n"),
            ("/proc/self/mountinfo", MOUNTS_V2),
            ("/sys/fs/cgroup/a/cpu.max", "max 100000\n"),
        ];
        assert_eq!(quota_of(&files), None);
    }

    /// Docker with a cgroup namespace: the process sees its own group as the root.
    #[test]
    fn v2_in_a_container_reads_the_mount_point() {
        for group in ["0::/\n", "0::/../other\n"] {
            let files = [
                ("/proc/self/cgroup", group),
                ("/proc/self/mountinfo", MOUNTS_V2),
                ("/sys/fs/cgroup/cpu.max", "50000 100000\n"),
            ];
            assert_eq!(quota_of(&files), Some(0.5), "{group}");
        }
    }

    #[test]
    fn v1_divides_quota_by_period() {
        let files = [
            ("/proc/self/cgroup", "4:cpuset:/\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/x\n"),
            ("/proc/self/mountinfo", MOUNTS_V1),
            ("/sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us", "250000\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us", "100000\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
        ];
        assert_eq!(quota_of(&files), Some(2.5));
    }

    /// Docker on v1: the container's mount shows only its own group, the path is the host's.
    #[test]
    fn v1_in_a_container_takes_the_mount_root_off_the_path() {
        let mounts = "9 8 0:29 /docker/abc /sys/fs/cgroup/cpu\\040x ro - cgroup cgroup rw,cpu\n";
        let files = [
            ("/proc/self/cgroup", "3:cpu:/docker/abc\n"),
            ("/proc/self/mountinfo", mounts),
            ("/sys/fs/cgroup/cpu x/cpu.cfs_quota_us", "100000\n"),
            ("/sys/fs/cgroup/cpu x/cpu.cfs_period_us", "50000\n"),
        ];
        assert_eq!(quota_of(&files), Some(2.0));
    }

    /// Hybrid systems mount both; the controller is on the v1 side.
    #[test]
    fn hybrid_hosts_read_both_hierarchies() {
        let mounts = format!("{MOUNTS_V1}41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
        let files = [
            ("/proc/self/cgroup", "3:cpu:/a\n0::/a\n"),
            ("/proc/self/mountinfo", &mounts),
            ("/sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", "300000\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us", "100000\n"),
        ];
        assert_eq!(quota_of(&files), Some(3.0));
    }

    #[test]
    fn rubbish_is_no_quota() {
        for text in ["", "100000", "abc def", "-5 100000", "100000 0", "0 100000"] {
            let files = [
                ("/proc/self/cgroup", "0::/\n"),
                ("/proc/self/mountinfo", MOUNTS_V2),
                ("/sys/fs/cgroup/cpu.max", text),
            ];
            let expected = (text == "100000").then_some(1.0);
            assert_eq!(quota_of(&files), expected, "{text:?}");
        }
        assert_eq!(quota_of(&[]), None);
        assert_eq!(quota_of(&[("/proc/self/cgroup", "::\n:\n"), ("/proc/self/mountinfo", "- - -\n")]), None);
    }

    #[test]
    fn the_count_rounds_up_and_stays_within_the_mask() {
        let count = |cpus: usize, quota| Available { mask: (0..cpus).collect(), quota }.count();
        assert_eq!(count(8, None), 8);
        assert_eq!(count(8, Some(1.5)), 2);
        assert_eq!(count(8, Some(0.1)), 1);
        assert_eq!(count(2, Some(16.0)), 2);
        assert_eq!(count(0, None), 1);
    }

    #[test]
    fn this_process_has_a_cpu() {
        assert!(!Available::of_this_process().mask.is_empty());
    }
}
