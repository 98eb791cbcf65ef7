//! Deadlines: which connection to look at when. Pure: the clock is an argument.
//!
//! A hashed timing wheel with one entry per connection slot. It is lazy: moving a deadline to a
//! later time, which every request on a kept-alive connection does, leaves the entry where it is.
//! The entry then comes out early, and the owner, who keeps the true deadline, schedules it again.
//!
//! One entry per slot also bounds the memory: 16 bytes for each slot ever used, however many short
//! connections have come and gone in the meantime.

use super::Token;

/// Length of one tick, in milliseconds, as a power of two. 64 ms is fine for deadlines that are
/// seconds long, and wakes an otherwise idle worker at most 16 times a second.
const TICK_BITS: u32 = 6;
/// Milliseconds in one tick.
pub const TICK_MS: u64 = 1 << TICK_BITS;

/// Buckets of the wheel: 65 seconds. A deadline further away comes out early once a minute.
const BUCKETS: usize = 1024;
const _: () = assert!(BUCKETS.is_power_of_two() && BUCKETS <= 1 << 16);
const MASK: u64 = BUCKETS as u64 - 1;

/// No entry: the end of a list.
const NONE: u32 = u32::MAX;

/// One slot's entry, a link of the doubly linked list of its bucket.
#[derive(Clone, Copy)]
struct Node {
    previous: u32,
    next: u32,
    generation: u32,
    bucket: u16,
    linked: bool,
}
const _: () = assert!(size_of::<Node>() == 16);

/// A timing wheel over connection slots.
pub struct Wheel {
    /// The last tick whose entries have come out.
    tick: u64,
    /// By slot.
    nodes: Vec<Node>,
    /// First entry of each bucket.
    heads: Box<[u32; BUCKETS]>,
    /// One bit per bucket that has entries, so that looking for the next one reads 128 bytes.
    occupied: [u64; BUCKETS / 64],
}

impl Wheel {
    /// An empty wheel at the time `now_ms`.
    #[must_use]
    pub fn new(now_ms: u64) -> Self {
        Self {
            tick: now_ms >> TICK_BITS,
            nodes: Vec::new(),
            heads: Box::new([NONE; BUCKETS]),
            occupied: [0; BUCKETS / 64],
        }
    }

    /// Sees to it that `token` comes out of [`Wheel::expired`] at `deadline_ms` or earlier.
    ///
    /// A slot has one entry. If that is due earlier already it stays, and comes out then, with this
    /// token: the owner schedules the rest of the time again. Whatever an earlier generation of the
    /// slot had scheduled is replaced.
    pub fn schedule(&mut self, token: Token, deadline_ms: u64) {
        // Rounded up: an entry never comes out before its time, except after the lazy moves above.
        let due = deadline_ms.div_ceil(TICK_MS);
        let ahead = due.saturating_sub(self.tick).clamp(1, MASK);
        let index = token.slot as usize;
        if index >= self.nodes.len() {
            let empty = Node { previous: NONE, next: NONE, generation: 0, bucket: 0, linked: false };
            self.nodes.resize(index + 1, empty);
        }
        self.nodes[index].generation = token.generation;
        if self.nodes[index].linked {
            if self.ahead(self.nodes[index].bucket) <= ahead {
                return;
            }
            self.unlink(token.slot);
        }
        self.link(token.slot, ((self.tick + ahead) & MASK) as u16);
    }

    /// Appends the tokens whose time has come to `out`, in no particular order within a tick.
    pub fn expired(&mut self, now_ms: u64, out: &mut Vec<Token>) {
        let now = now_ms >> TICK_BITS;
        // A clock that stood still or went back expires nothing. After a long silence one round
        // over the wheel sees every bucket.
        let ticks = now.saturating_sub(self.tick).min(BUCKETS as u64);
        for tick in self.tick + 1..=self.tick + ticks {
            let bucket = (tick & MASK) as usize;
            let mut slot = std::mem::replace(&mut self.heads[bucket], NONE);
            while slot != NONE {
                let node = &mut self.nodes[slot as usize];
                node.linked = false;
                out.push(Token { slot, generation: node.generation });
                slot = node.next;
            }
            self.occupied[bucket / 64] &= !(1 << (bucket % 64));
        }
        self.tick = self.tick.max(now);
    }

    /// When [`Wheel::expired`] will next have something, on the clock given to it; `None` when the
    /// wheel is empty.
    #[must_use]
    pub fn next_ms(&self) -> Option<u64> {
        let start = ((self.tick + 1) & MASK) as usize;
        let (word, bit) = (start / 64, start % 64);
        let words = self.occupied.len();
        // The starting word is looked at twice: first its bits from `start` on, last the others.
        for step in 0..=words {
            let at = (word + step) % words;
            let bits = match step {
                0 => self.occupied[at] & (u64::MAX << bit),
                _ if step == words => self.occupied[at] & !(u64::MAX << bit),
                _ => self.occupied[at],
            };
            if bits != 0 {
                let bucket = at * 64 + bits.trailing_zeros() as usize;
                return Some((self.tick + self.ahead(bucket as u16)) << TICK_BITS);
            }
        }
        None
    }

    /// Ticks from now until the bucket comes out. An entry's bucket is never the current one, so
    /// this is never 0 for it.
    fn ahead(&self, bucket: u16) -> u64 {
        u64::from(bucket).wrapping_sub(self.tick) & MASK
    }

    fn link(&mut self, slot: u32, bucket: u16) {
        let next = std::mem::replace(&mut self.heads[bucket as usize], slot);
        if next != NONE {
            self.nodes[next as usize].previous = slot;
        }
        let node = &mut self.nodes[slot as usize];
        (node.previous, node.next, node.bucket, node.linked) = (NONE, next, bucket, true);
        self.occupied[bucket as usize / 64] |= 1 << (bucket % 64);
    }

    fn unlink(&mut self, slot: u32) {
        let Node { previous, next, bucket, .. } = self.nodes[slot as usize];
        self.nodes[slot as usize].linked = false;
        if next != NONE {
            self.nodes[next as usize].previous = previous;
        }
        if previous != NONE {
            self.nodes[previous as usize].next = next;
            return;
        }
        self.heads[bucket as usize] = next;
        if next == NONE {
            self.occupied[bucket as usize / 64] &= !(1 << (bucket % 64));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn token(slot: u32, generation: u32) -> Token {
        Token { slot, generation }
    }

    fn expired(wheel: &mut Wheel, now_ms: u64) -> Vec<Token> {
        let mut out = Vec::new();
        wheel.expired(now_ms, &mut out);
        out
    }

    #[test]
    fn an_entry_comes_out_once_and_not_before_its_time() {
        let mut wheel = Wheel::new(1_000);
        wheel.schedule(token(3, 7), 2_000);
        assert!(expired(&mut wheel, 1_999).is_empty());
        assert_eq!(expired(&mut wheel, 2_000 + TICK_MS), [token(3, 7)]);
        assert!(expired(&mut wheel, 500_000).is_empty());
        assert_eq!(wheel.next_ms(), None);
    }

    #[test]
    fn a_deadline_in_the_past_comes_out_at_the_next_tick() {
        let mut wheel = Wheel::new(10_000);
        wheel.schedule(token(0, 0), 3);
        assert_eq!(expired(&mut wheel, 10_000 + TICK_MS), [token(0, 0)]);
    }

    #[test]
    fn a_later_deadline_comes_out_at_the_old_time_with_the_new_generation() {
        let mut wheel = Wheel::new(0);
        wheel.schedule(token(1, 1), 640);
        wheel.schedule(token(1, 2), 6_400);
        assert_eq!(expired(&mut wheel, 640), [token(1, 2)]);
    }

    #[test]
    fn an_earlier_deadline_moves_the_entry() {
        let mut wheel = Wheel::new(0);
        wheel.schedule(token(1, 1), 6_400);
        wheel.schedule(token(1, 1), 640);
        assert_eq!(wheel.next_ms(), Some(640));
        assert_eq!(expired(&mut wheel, 640), [token(1, 1)]);
        assert!(expired(&mut wheel, 6_400).is_empty());
    }

    #[test]
    fn a_clock_that_goes_back_does_no_harm() {
        let mut wheel = Wheel::new(100_000);
        wheel.schedule(token(0, 0), 101_000);
        assert!(expired(&mut wheel, 5).is_empty());
        assert_eq!(expired(&mut wheel, 101_000 + TICK_MS), [token(0, 0)]);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Schedule { slot: u32, after_ms: u64 },
        Pass { ms: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..40u32, prop_oneof![0..500u64, 0..70_000u64, 0..400_000u64])
                .prop_map(|(slot, after_ms)| Step::Schedule { slot, after_ms }),
            3 => prop_oneof![0..10u64, 0..200u64, 0..80_000u64].prop_map(|ms| Step::Pass { ms }),
        ]
    }

    proptest! {
        /// Seen through an owner that keeps the true deadlines, the wheel is a sorted list whose
        /// entries are up to one tick late.
        #[test]
        fn the_wheel_agrees_with_a_sorted_list(start in 0..100_000u64, steps in prop::collection::vec(step(), 1..200)) {
            let mut wheel = Wheel::new(start);
            let mut now = start;
            let mut deadlines: BTreeMap<u32, (u32, u64)> = BTreeMap::new();
            let mut generation = 0;
            for step in steps {
                match step {
                    Step::Schedule { slot, after_ms } => {
                        generation += 1;
                        deadlines.insert(slot, (generation, now + after_ms));
                        wheel.schedule(token(slot, generation), now + after_ms);
                    }
                    Step::Pass { ms } => {
                        now += ms;
                        for found in expired(&mut wheel, now) {
                            let &(generation, deadline) = deadlines.get(&found.slot).expect("an entry came out twice");
                            prop_assert_eq!(found.generation, generation);
                            if deadline <= now {
                                deadlines.remove(&found.slot);
                            } else {
                                wheel.schedule(found, deadline);
                            }
                        }
                        for (slot, (_, deadline)) in &deadlines {
                            prop_assert!(deadline + 2 * TICK_MS > now, "slot {} is late: due {}, now {}", slot, deadline, now);
                        }
                    }
                }
                let earliest = deadlines.values().map(|(_, deadline)| *deadline).min();
                prop_assert_eq!(wheel.next_ms().is_some(), earliest.is_some());
                if let (Some(next), Some(earliest)) = (wheel.next_ms(), earliest) {
                    prop_assert!(next < earliest.max(now) + 2 * TICK_MS, "would sleep until {} past {}", next, earliest);
                }
            }
        }
    }
}
