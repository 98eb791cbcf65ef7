//! What a worker knows of the others, and its way to them.
//!
//! Each worker publishes its load in its record of the shared page, and has a mailbox ([`Mailboxes`]). It knows the
//! slots that there were when it was forked: it has no descriptors of those that come later (TTIN). A newcomer
//! has them all, and so can help, but is not asked to by those before it, until they are replaced.

use std::cmp::Reverse;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use crate::limits::{HAND_OVER_BATCH, LETTER_BYTES_MAX, SILENT_MS};
use crate::ring::Socket;
use crate::sys::mailbox::Mailboxes;
use crate::sys::shared::{SharedPage, WorkerRecord, WorkerState};

/// A sibling that can take something on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Helper {
    pub(super) slot: usize,
    /// It has our listeners, and so can accept for us.
    pub(super) knows_us: bool,
    /// Connections that it has, and those sent to it since.
    pub(super) connections: usize,
    /// Requests that may still be sent to it before it is looked at again.
    pub(super) quota: usize,
}

/// How things stand among the siblings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Survey {
    /// Who can help, best first. During a reload only those of the new generation, once there is one: the others
    /// are about to leave.
    pub(super) helpers: Vec<Helper>,
    /// Slots in which nobody takes on anything, but whose I/O thread is at work and looks at its mailbox.
    pub(super) engaged: Vec<usize>,
    /// Slots in which nobody is: dead, booting, stopped, silent, leaving.
    pub(super) deserted: Vec<usize>,
}

/// The siblings of an I/O thread.
pub(super) trait Siblings {
    /// Says how many connections and waiting requests this worker has. Once in a turn.
    fn publish(&mut self, connections: usize, waiting: usize);

    /// Says whether this worker can take on nothing more.
    fn set_engaged(&mut self, engaged: bool);

    /// Looks at all of them. `leaving`: another worker of this slot may be one of them.
    fn survey(&mut self, now_ms: u64, leaving: bool) -> Survey;

    /// Sends a letter to a slot, with a copy of the socket. Never waits.
    ///
    /// # Errors
    /// The letter was not sent.
    fn send(&mut self, slot: usize, letter: &[u8], socket: &Socket) -> io::Result<()>;

    /// Asks a slot's worker to look at its siblings.
    fn poke(&mut self, slot: usize);

    /// Takes a letter out of the slot's mailbox, or with `None` out of this worker's. Never waits.
    fn receive(&mut self, slot: Option<usize>, into: &mut Vec<u8>) -> Option<Option<Socket>>;

    /// What becomes readable when there is a letter.
    fn drawer(&self) -> Option<RawFd>;
}

/// The other workers of the same master.
pub(super) struct Kin {
    pub(super) shared: Arc<SharedPage>,
    pub(super) mailboxes: Mailboxes,
    /// This worker's record.
    pub(super) record: usize,
    pub(super) slot: usize,
    /// The first worker that has our listeners.
    pub(super) listeners_age: u64,
}

impl Kin {
    fn own(&self) -> Option<&WorkerRecord> {
        self.shared.record(self.record)
    }
}

impl Siblings for Kin {
    fn publish(&mut self, connections: usize, waiting: usize) {
        if let Some(record) = self.own() {
            let count = |count| u32::try_from(count).unwrap_or(u32::MAX);
            record.set_load(count(connections), count(waiting));
        }
    }

    fn set_engaged(&mut self, engaged: bool) {
        if let Some(record) = self.own() {
            record.set_engaged(engaged);
        }
    }

    fn survey(&mut self, now_ms: u64, leaving: bool) -> Survey {
        let own_slot = (!leaving).then_some(self.slot);
        let records = self.shared.used().map(|(record, _)| record).enumerate();
        let records = records.filter(|(index, _)| *index != self.record);
        let records = records.map(|(_, record)| record);
        survey(records, self.mailboxes.count(), own_slot, self.listeners_age, now_ms)
    }

    fn send(&mut self, slot: usize, letter: &[u8], socket: &Socket) -> io::Result<()> {
        if letter.len() > LETTER_BYTES_MAX {
            // The client has sent on while its connection was being let go of.
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        self.mailboxes.send(slot, letter, socket.fd())
    }

    fn poke(&mut self, slot: usize) {
        self.mailboxes.poke(slot);
    }

    fn receive(&mut self, slot: Option<usize>, into: &mut Vec<u8>) -> Option<Option<Socket>> {
        into.resize(LETTER_BYTES_MAX, 0);
        let (length, socket) = self.mailboxes.receive(slot.unwrap_or(self.slot), into)?;
        into.truncate(length);
        Some(socket.map(Socket::from))
    }

    fn drawer(&self) -> Option<RawFd> {
        self.mailboxes.drawer(self.slot)
    }
}

/// Judges the others by their records. `own_slot` is served by whoever asks.
fn survey<'a>(
    records: impl Iterator<Item = &'a WorkerRecord>,
    slots: usize,
    own_slot: Option<usize>,
    listeners_age: u64,
    now_ms: u64,
) -> Survey {
    let mut found = Survey::default();
    let mut ranks: Vec<(Reverse<u32>, u32, u32, u64, usize)> = Vec::new();
    for record in records {
        let silent = now_ms.saturating_sub(record.heartbeat_ms()) > SILENT_MS;
        let slot = record.slot() as usize;
        if record.state() != WorkerState::Ready || silent || slot >= slots || own_slot == Some(slot) {
            continue;
        }
        if record.is_engaged() {
            found.engaged.push(slot);
        } else if !ranks.iter().any(|(.., other)| *other == slot) {
            let (waiting, connections) = (record.waiting(), record.connections());
            ranks.push((Reverse(record.generation()), waiting, connections, record.age(), slot));
        }
    }
    ranks.sort_unstable();
    found.engaged.retain(|slot| !ranks.iter().any(|(.., other)| other == slot));
    let attended: Vec<usize> =
        ranks.iter().map(|(.., slot)| *slot).chain(found.engaged.iter().copied()).chain(own_slot).collect();
    let newest = ranks.first().map(|(generation, ..)| *generation);
    found.helpers = ranks
        .iter()
        .filter(|(generation, ..)| Some(*generation) == newest)
        .map(|&(_, _, connections, age, slot)| Helper {
            slot,
            knows_us: age >= listeners_age,
            connections: connections as usize,
            quota: HAND_OVER_BATCH,
        })
        .collect();
    found.deserted = (0..slots).filter(|slot| !attended.contains(slot)).collect();
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// It arrived cut: what the client had sent on after its request was taken out of the socket, and lost.
    #[test]
    fn a_letter_that_is_larger_than_can_be_taken_is_not_sent() {
        let mut mailboxes = Mailboxes::default();
        mailboxes.grow(0).unwrap();
        let shared = Arc::new(SharedPage::new().unwrap());
        let mut kin = Kin { shared, mailboxes, record: 0, slot: 0, listeners_age: 0 };
        let (_client, server) = UnixStream::pair().unwrap();
        let socket = Socket::from(OwnedFd::from(server));
        kin.send(0, &vec![7; LETTER_BYTES_MAX], &socket).unwrap();
        let mut letter = Vec::new();
        assert!(kin.receive(None, &mut letter).unwrap().is_some());
        assert_eq!(letter, vec![7; LETTER_BYTES_MAX]);
        assert!(kin.send(0, &vec![7; LETTER_BYTES_MAX + 1], &socket).is_err());
        assert!(kin.receive(None, &mut letter).is_none());
    }

    #[test]
    fn who_helps_and_who_needs_help_is_told_from_the_records() {
        let page = SharedPage::new().unwrap();
        let now_ms = 1_000_000;
        let mut count = 0;
        let mut worker = |slot: u32, state, age_ms: u64, generation, load: (u32, u32), engaged| {
            let record = page.record(count).unwrap();
            count += 1;
            record.reset(slot);
            record.beat(now_ms - age_ms);
            record.set_age(count as u64);
            record.set_generation(generation);
            record.set_load(load.0, load.1);
            record.set_engaged(engaged);
            record.set_state(state);
        };
        worker(0, WorkerState::Ready, 0, 1, (9, 9), false);
        worker(1, WorkerState::Ready, 400, 1, (5, 1), false);
        worker(2, WorkerState::Ready, 0, 0, (0, 0), false);
        worker(3, WorkerState::Ready, 0, 1, (0, 0), true);
        worker(4, WorkerState::Booting, 0, 1, (0, 0), false);
        worker(5, WorkerState::Ready, 2_000, 1, (0, 0), false);
        worker(6, WorkerState::Draining, 0, 0, (0, 0), false);
        worker(6, WorkerState::Ready, 0, 1, (4, 1), false);
        worker(7, WorkerState::Ready, 0, 0, (0, 0), true);
        worker(7, WorkerState::Ready, 0, 1, (8, 8), false);
        // In a slot that this worker has no mailbox of.
        worker(99, WorkerState::Ready, 0, 1, (0, 0), false);
        let found = survey(page.used().map(|(record, _)| record).skip(1), 9, Some(0), 8, now_ms);
        let helper = |helper: &Helper| (helper.slot, helper.connections, helper.knows_us);
        let helpers: Vec<_> = found.helpers.iter().map(helper).collect();
        assert_eq!(helpers, [(6, 4, true), (1, 5, false), (7, 8, true)]);
        assert_eq!(found.engaged, [3]);
        assert_eq!(found.deserted, [4, 5, 8]);
    }
}
