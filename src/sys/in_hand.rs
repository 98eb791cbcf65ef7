//! The requests that a worker has had in hand for a while, where the master can read them: it must be able to name
//! them in the log when the worker itself does nothing any more.
//!
//! The worker's I/O thread writes them now and then, never for a request that is answered quickly.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

use crate::limits::{IN_HAND_MAX, IN_HAND_TEXT_BYTES};

const WORDS: usize = IN_HAND_TEXT_BYTES / 8;
const _: () = assert!(IN_HAND_TEXT_BYTES.is_multiple_of(8));

/// One request.
#[derive(Debug, Default)]
struct Entry {
    begun_ms: AtomicU64,
    length: AtomicU32,
    text: [AtomicU64; WORDS],
}

/// The requests in hand of one worker, the oldest ones.
#[derive(Debug, Default)]
#[repr(C, align(128))]
pub struct InHand {
    count: AtomicU32,
    told: AtomicBool,
    entries: [Entry; IN_HAND_MAX],
}

/// A request as it was published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// When it was complete, in milliseconds of the monotonic clock.
    pub begun_ms: u64,
    /// Method, path and peer, for the log.
    pub text: String,
}

impl InHand {
    /// Forgets everything: the record is about to be another worker's.
    pub fn reset(&self) {
        self.count.store(0, Ordering::Relaxed);
        self.told.store(false, Ordering::Relaxed);
    }

    /// Publishes these requests in the place of the last ones; those that find no room are left out, and texts are
    /// cut.
    pub fn publish<'a>(&self, requests: impl Iterator<Item = (u64, &'a str)>) {
        let mut count = 0;
        // Nobody reads while it changes, unless this process is stopped right here: then the master sees fewer.
        self.count.store(0, Ordering::Relaxed);
        fence(Ordering::Release);
        for (entry, (begun_ms, text)) in self.entries.iter().zip(requests) {
            let bytes = &text.as_bytes()[..text.len().min(IN_HAND_TEXT_BYTES)];
            entry.begun_ms.store(begun_ms, Ordering::Relaxed);
            entry.length.store(u32::try_from(bytes.len()).unwrap_or(0), Ordering::Relaxed);
            for (word, part) in entry.text.iter().zip(bytes.chunks(8)) {
                let mut padded = [0; 8];
                padded[..part.len()].copy_from_slice(part);
                word.store(u64::from_ne_bytes(padded), Ordering::Relaxed);
            }
            count += 1;
        }
        self.count.store(count, Ordering::Release);
    }

    /// What was published last.
    #[must_use]
    pub fn published(&self) -> Vec<Published> {
        let count = self.count.load(Ordering::Acquire) as usize;
        let read = |entry: &Entry| {
            let bytes: Vec<u8> =
                entry.text.iter().flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes()).collect();
            let length = (entry.length.load(Ordering::Relaxed) as usize).min(bytes.len());
            // A text may have been cut inside a character.
            let text = String::from_utf8_lossy(&bytes[..length]);
            Published {
                begun_ms: entry.begun_ms.load(Ordering::Relaxed),
                // A client chose the path: what moves a terminal's cursor is not for operators.
                text: text.chars().filter(|letter| !letter.is_control()).collect(),
            }
        };
        self.entries.iter().take(count).map(read).collect()
    }

    /// Notes that the log names these requests already. Returns whether it did before.
    pub fn set_told(&self) -> bool {
        self.told.swap(true, Ordering::AcqRel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_published_is_read_and_replaced() {
        let page = InHand::default();
        assert_eq!(page.published(), []);
        page.publish([(7, "GET /a from 10.0.0.1:5"), (8, "")].into_iter());
        let texts: Vec<_> = page.published().into_iter().map(|one| (one.begun_ms, one.text)).collect();
        assert_eq!(texts, [(7, "GET /a from 10.0.0.1:5".to_owned()), (8, String::new())]);
        page.publish([(9, "POST /\x1b[2Jb")].into_iter());
        assert_eq!(page.published(), [Published { begun_ms: 9, text: "POST /[2Jb".to_owned() }]);
        assert!(!page.set_told());
        assert!(page.set_told());
        page.reset();
        assert_eq!(page.published(), []);
        assert!(!page.set_told());
    }

    #[test]
    fn more_than_there_is_room_for_is_cut() {
        let page = InHand::default();
        let long = "\u{e4}".repeat(IN_HAND_TEXT_BYTES);
        page.publish((0..2 * IN_HAND_MAX as u64).map(|at| (at, &*long)));
        let published = page.published();
        assert_eq!(published.len(), IN_HAND_MAX);
        assert!(published.iter().all(|one| one.text.starts_with('\u{e4}')));
    }
}
