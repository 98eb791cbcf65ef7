//! The title that `ps` and `top -c` show for this process: what stands where its arguments stood.
//!
//! Only that room is used, and the kernel itself says where it is and does the writing, so that nothing can
//! be hit that is not there. The room ends where the environment begins, to which libraries hold pointers:
//! a title that is longer than the command line was is cut.

use std::fs::{File, OpenOptions, read, read_to_string};
use std::io;
use std::os::unix::fs::FileExt;

const MEMORY: &str = "/proc/self/mem";

/// Where the arguments of this process are in its memory. Holds for forked children, too.
#[derive(Clone, Debug)]
pub struct Title {
    start: u64,
    room: usize,
}

impl Title {
    /// Finds the room for a title, before anything is written there.
    ///
    /// # Errors
    /// There is no /proc, or what it says does not fit together.
    ///
    /// # Source
    /// proc_pid_stat(5), `arg_start` and `arg_end`.
    pub fn find() -> io::Result<Self> {
        let stat = read_to_string("/proc/self/stat")?;
        let (start, end) = arguments(&stat).ok_or(io::ErrorKind::InvalidData)?;
        let command = read("/proc/self/cmdline")?;
        let room = usize::try_from(end.saturating_sub(start)).unwrap_or_default();
        if room != command.len() || command.last() != Some(&0) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut found = vec![0; room];
        File::open(MEMORY)?.read_exact_at(&mut found, start)?;
        if found != command {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Self { start, room })
    }

    /// Sets the title. Whoever reads the arguments from memory afterwards finds the title, cut into as many
    /// strings as there were.
    ///
    /// # Errors
    /// The kernel does not allow it: after a change of user, for one.
    pub fn set(&self, title: &str) -> io::Result<()> {
        let mut text = title.replace('\0', " ").into_bytes();
        // The last byte stays 0: it ends the last string.
        text.truncate(self.room - 1);
        text.resize(self.room, 0);
        // Opened each time: the file belongs to the memory of the process that opened it.
        OpenOptions::new().write(true).open(MEMORY)?.write_all_at(&text, self.start)
    }
}

/// `arg_start` and `arg_end`: fields 48 and 49. The second field, in parentheses, may hold anything.
fn arguments(stat: &str) -> Option<(u64, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(45);
    let start = fields.next()?.parse().ok()?;
    let end = fields.next()?.parse().ok()?;
    (start != 0 && end > start).then_some((start, end))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rustix::process::{WaitOptions, waitpid};

    use super::*;
    use crate::sys::process::{Fork, exit_now, fork};

    /// In a child: the title of the process that runs the tests stays.
    #[test]
    fn the_title_is_what_others_see_and_is_cut_to_its_room() {
        let title = Title::find().unwrap();
        let shows = |wanted: &str| {
            let shown = read("/proc/self/cmdline").unwrap();
            String::from_utf8_lossy(&shown).trim_end_matches('\0') == wanted
        };
        let before = read("/proc/self/cmdline").unwrap();
        let child = fork().unwrap();
        if child == Fork::Child {
            let long = "x".repeat(title.room + 1);
            let right = title.set("ringhorn").is_ok()
                && shows("ringhorn")
                && title.set(&long).is_ok()
                && shows(&long[..title.room - 1])
                && title.set("short").is_ok()
                && shows("short");
            exit_now(i32::from(!right));
        }
        let Fork::Parent(pid) = child else { unreachable!("the child has left") };
        let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(0));
        assert_eq!(read("/proc/self/cmdline").unwrap(), before);
    }

    #[test]
    fn a_name_with_parentheses_and_a_kernel_that_tells_nothing() {
        let fields = |from: &str, to: &str| format!("1 (a) b (c)) R {}{from} {to} 7 8", "0 ".repeat(44));
        assert_eq!(arguments(&fields("100", "200")), Some((100, 200)));
        assert_eq!(arguments(&fields("0", "0")), None);
        assert_eq!(arguments(&fields("200", "100")), None);
        assert_eq!(arguments("1 (short) R 1"), None);
    }
}
