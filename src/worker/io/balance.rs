//! No stranded clients: what siblings do for each other.
//!
//! A TCP connection waits in the queue of one slot's listener, and then lives in one worker, whatever the other workers
//! have to do. Here that is made good, only when there is something to make good:
//!
//! - A worker in which requests wait for a runner, and have for [`STALL_MS`], is **stalled**. It says so in its
//!   record, calls idle siblings, stops accepting, and hands the requests that wait to siblings: the socket with
//!   the bytes received ([`Parcel`]). The connection lives there from then on.
//! - The **queue of a slot** whose workers are stalled, full, dead, booting, stopped or silent is accepted by the
//!   siblings that are not. So are letters in the mailbox of a slot where nobody is.
//! - A **new connection** in a worker that has far more than the least loaded sibling goes there.
//!
//! Idle connections of a stalled worker stay: its I/O thread lives, and a request that comes on one is handed over
//! within a turn. Moving them before would cost the more the more there are, and leave the others uneven.
//!
//! Siblings are looked at at each heartbeat, when one of them calls, and while requests wait in a stalled worker. A
//! turn of the ordinary kind costs two stores into this worker's own record.

use super::*;
use crate::http::Head;
use crate::limits::{
    CALLS_MAX, LETTERS_PER_TURN, PARCEL_BYTES_MAX, STALL_MS, STALLED_PEEK_MS, STALLED_SURVEY_MS,
    STALLED_WAITING_MAX, UNEVEN_CONNECTIONS,
};
use crate::ring::Accepting;
use crate::worker::parcel::{self, Parcel};
use crate::worker::pool::Progress;
use crate::worker::siblings::{Helper, Siblings, Survey};

/// The I/O thread's dealings with its siblings.
pub(super) struct Balance {
    siblings: Box<dyn Siblings>,
    /// The listeners of other slots. The driver knows them by the numbers behind our own.
    foreign: Vec<Foreign>,
    /// Requests wait too long, and no runner has come back since.
    stalled: bool,
    /// What the record says: stalled, or as many connections as may be.
    engaged: bool,
    /// Our own listeners are left alone, because the worker is stalled.
    shut: bool,
    /// When to look at their queues all the same.
    peek_ms: u64,
    mark: Option<Mark>,
    survey_ms: u64,
    /// When the queues that are accepted from are looked at next.
    recheck_ms: u64,
    /// Our own listeners were let go of for a turn, to be taken up afresh.
    reopen: bool,
    helpers: Vec<Helper>,
    /// Letters may be left in the mailbox, of which no event tells.
    letters_left: bool,
    letter: Vec<u8>,
    /// Listeners of an earlier generation, whose connections came from a sibling. Kept, as our own are: runners know
    /// a listener by its place in memory.
    adopted: Vec<Arc<Listener>>,
}

/// A listener of another slot.
struct Foreign {
    slot: usize,
    door: Door,
    armed: bool,
    /// Let go of until the next look.
    rests: bool,
    /// It was closed: its slot is gone, or has another listener by now.
    closed: bool,
}

/// A moment since which some requests wait.
#[derive(Clone, Copy, Debug)]
struct Mark {
    since_ms: u64,
    /// Requests taken by then.
    taken: u64,
    /// As many as must be taken until none that waited then waits.
    until: u64,
}

impl Balance {
    fn new(siblings: Box<dyn Siblings>, foreign: Vec<(usize, Door)>) -> Self {
        let foreign = foreign.into_iter();
        Self {
            siblings,
            foreign: foreign
                .map(|(slot, door)| Foreign { slot, door, armed: false, rests: false, closed: false })
                .collect(),
            stalled: false,
            engaged: false,
            shut: false,
            peek_ms: 0,
            mark: None,
            survey_ms: 0,
            recheck_ms: 0,
            reopen: false,
            helpers: Vec::new(),
            letters_left: true,
            letter: Vec::new(),
            adopted: Vec::new(),
        }
    }

    /// Whether requests wait for too long, by what `progress` says.
    fn judge(&mut self, progress: Progress, now_ms: u64) -> bool {
        if progress.waiting == 0 {
            self.mark = None;
            return false;
        }
        let mark =
            Mark { since_ms: now_ms, taken: progress.taken, until: progress.taken + progress.waiting as u64 };
        let before = *self.mark.get_or_insert(mark);
        if progress.taken >= before.until {
            self.mark = Some(mark);
            return false;
        }
        // While runners are still being woken one by one, a queue that moves is no reason to call.
        now_ms >= before.since_ms + STALL_MS && (progress.all_out || progress.taken == before.taken)
    }

    /// The sibling to give a request to: the best that may still get one.
    fn next_helper(&mut self) -> Option<usize> {
        // In turns, beginning with the best: of equal ones this finds the last.
        let helpers = self.helpers.iter_mut().rev();
        let helper = helpers.max_by_key(|helper| helper.quota).filter(|helper| helper.quota > 0)?;
        helper.quota -= 1;
        helper.connections += 1;
        Some(helper.slot)
    }
}

impl Io {
    /// Lets this worker and its siblings help each other.
    pub(in crate::worker) fn join(&mut self, siblings: Box<dyn Siblings>, mut foreign: Vec<(usize, Door)>) {
        for (_, door) in &mut foreign {
            // Of one address runners need to know one listener, not one for each slot.
            if let Some(own) = self.doors.iter().find(|own| own.listener == door.listener) {
                door.listener = Arc::clone(&own.listener);
            }
        }
        if let Some(drawer) = siblings.drawer()
            && let Err(error) = self.driver.watch(drawer)
        {
            // Letters are then found at the next heartbeat.
            debug!("cannot watch the mailbox: {error}");
        }
        self.balance = Some(Balance::new(siblings, foreign));
    }

    /// At the end of a turn.
    pub(super) fn even_out(&mut self) {
        let clients = self.clients();
        let Some(balance) = &mut self.balance else { return };
        balance.siblings.publish(clients, self.waiting);
        if self.waiting > 0 || balance.stalled {
            self.watch_runners();
        } else {
            balance.mark = None;
        }
        self.note_engaged();
        let Some(balance) = &mut self.balance else { return };
        if std::mem::take(&mut balance.reopen) {
            // Room and orders may have changed since. Whoever watches the server is let in until the end, and whoever waits at
            // another door only as long as it would be open.
            self.open_doors(true);
            if !self.crowded && matches!(self.entrance, Entrance::Open | Entrance::Closing { .. }) {
                self.open_doors(false);
            }
        }
        let Some(balance) = &mut self.balance else { return };
        if balance.survey_ms <= self.now_ms {
            self.recheck();
            self.survey();
        }
        if self.waiting > 0 {
            self.relieve();
        }
        self.gate();
    }

    /// When the next turn must be over, for this.
    pub(super) fn balance_timeout_ms(&self) -> u64 {
        match &self.balance {
            Some(balance) if balance.letters_left || balance.reopen => 0,
            Some(balance) if balance.stalled => STALLED_SURVEY_MS,
            _ => u64::MAX,
        }
    }

    /// Whether our own listeners are to be left alone.
    pub(super) fn is_shut(&self) -> bool {
        self.balance.as_ref().is_some_and(|balance| balance.shut)
    }

    /// This worker begins to leave: others help the siblings, and what waits in our own queue is ours again.
    pub(super) fn stop_helping(&mut self) {
        let Some(balance) = &mut self.balance else { return };
        for (index, foreign) in balance.foreign.iter_mut().enumerate() {
            if std::mem::take(&mut foreign.armed) {
                self.driver.stop_accept(self.doors.len() + index);
            }
        }
        if std::mem::take(&mut balance.shut) && !self.crowded {
            self.open();
        }
    }

    /// The listeners of other slots.
    pub(super) fn foreign_doors(&self) -> impl Iterator<Item = &Door> {
        self.balance.iter().flat_map(|balance| &balance.foreign).map(|foreign| &foreign.door)
    }

    fn watch_runners(&mut self) {
        let Some(balance) = &mut self.balance else { return };
        let progress = self.pool.progress();
        self.waiting = progress.waiting;
        let stalled = if balance.stalled && progress.called {
            true
        } else if balance.stalled {
            // A runner has come back. What it did not take still waits.
            balance.mark = None;
            self.pool.call(&self.driver.waker())
        } else {
            balance.judge(progress, self.now_ms) && self.pool.call(&self.driver.waker())
        };
        if std::mem::replace(&mut balance.stalled, stalled) != stalled {
            balance.survey_ms = self.now_ms;
        }
    }

    /// Tells the siblings when this worker can take on nothing more, or can again.
    fn note_engaged(&mut self) {
        let Some(balance) = &mut self.balance else { return };
        let engaged = balance.stalled || self.crowded;
        if engaged == balance.engaged {
            return;
        }
        balance.engaged = engaged;
        balance.siblings.set_engaged(engaged);
        self.survey();
        if let Some(balance) = &mut self.balance
            && engaged
        {
            for index in 0..balance.helpers.len().min(CALLS_MAX) {
                let slot = balance.helpers[index].slot;
                balance.siblings.poke(slot);
            }
        }
    }

    /// Looks at the siblings, and accepts for those who cannot.
    pub(super) fn survey(&mut self) {
        let Some(balance) = &mut self.balance else { return };
        // The worker that takes this one's place has the same mailbox: letters to it must not be read here.
        let Survey { helpers, engaged, deserted } =
            balance.siblings.survey(self.now_ms, self.leaving == Some(Stop::Retire));
        balance.helpers = helpers;
        balance.survey_ms = self.now_ms
            + match (balance.stalled, self.waiting) {
                (true, 1..) => STALL_MS,
                (true, 0) => STALLED_SURVEY_MS,
                _ => HEARTBEAT_MS,
            };
        let helps = !balance.engaged && self.leaving.is_none();
        // The server stops. All listeners are emptied by whoever can: their owners may be gone, or busy.
        let empties = self.leaving == Some(Stop::Close)
            && matches!(self.entrance, Entrance::Closing { .. })
            && !self.crowded;
        for (index, foreign) in balance.foreign.iter_mut().enumerate() {
            let needed = engaged.contains(&foreign.slot) || deserted.contains(&foreign.slot);
            let rests = std::mem::take(&mut foreign.rests);
            if rests {
                balance.survey_ms = self.now_ms;
            }
            let wanted = (helps && needed || empties) && !foreign.closed && !rests;
            let number = self.doors.len() + index;
            if wanted && !foreign.armed {
                // One by one: whoever of the siblings is idle gets the next.
                match self.driver.accept(number, foreign.door.fd(), Accepting::Shared) {
                    Ok(()) => foreign.armed = true,
                    Err(error) => debug!("cannot accept for slot {}: {error}", foreign.slot),
                }
            } else if !wanted && std::mem::take(&mut foreign.armed) {
                self.driver.stop_accept(number);
            }
        }
        // When all leave, nobody comes who would read what was sent to one that has left a moment before.
        if helps || matches!(self.leaving, Some(Stop::Leave | Stop::Close)) {
            for slot in deserted {
                self.read_letters(Some(slot));
            }
        }
        // No event tells again of letters that had to wait for a descriptor.
        self.on_letters();
        self.read_own_letters();
    }

    /// Looks once more, before this worker ends, for what was sent to siblings that had left. Returns whether there is
    /// something to do.
    pub(super) fn finds_strays(&mut self) -> bool {
        self.survey();
        self.conns.len() > 0
    }

    /// Accepts afresh where somebody waits although we accept there: of all who do, the kernel wakes one, and that one
    /// may have been killed or stopped at that moment.
    fn recheck(&mut self) {
        let Some(balance) = &mut self.balance else { return };
        if balance.recheck_ms > self.now_ms || self.leaving.is_some() {
            return;
        }
        balance.recheck_ms = self.now_ms + HEARTBEAT_MS;
        for (index, foreign) in balance.foreign.iter_mut().enumerate() {
            if foreign.armed && foreign.door.has_waiting() {
                foreign.armed = false;
                self.driver.stop_accept(self.doors.len() + index);
                // The survey that follows would take the wish back before the kernel hears of it.
                foreign.rests = true;
            }
        }
        if self.accept_again_ms.is_some() {
            return;
        }
        let open = !self.crowded && !balance.shut;
        for (index, door) in self.doors.iter().enumerate() {
            // The metrics address is everybody's, and is asked most when a worker hangs or is crowded.
            if (door.observer || open) && door.has_waiting() {
                balance.reopen = true;
                self.driver.stop_accept(index);
            }
        }
    }

    /// Accepting for a sibling failed.
    pub(super) fn foreign_accept_failed(&mut self, listener: usize, error: &io::Error) -> bool {
        let Some(index) = listener.checked_sub(self.doors.len()) else { return false };
        if let Some(balance) = &mut self.balance
            && let Some(foreign) = balance.foreign.get_mut(index)
        {
            foreign.armed = false;
            // A slot was given up (TTOU). Anything else is tried again at the next look.
            foreign.closed |= error.raw_os_error() == Some(libc::EINVAL);
            debug!("cannot accept for slot {}: {error}", foreign.slot);
        }
        true
    }

    /// The listener with this number, ours or a sibling's.
    pub(super) fn listener(&self, number: usize) -> Option<Arc<Listener>> {
        let foreign = || {
            let balance = self.balance.as_ref()?;
            Some(&balance.foreign.get(number.checked_sub(self.doors.len())?)?.door)
        };
        self.doors.get(number).or_else(foreign).map(|door| Arc::clone(&door.listener))
    }

    /// Accepts on demand: while this worker is stalled, its queue is left to the siblings.
    ///
    /// With nobody to help, the clients wait here as well as there, and connections that only ask for the server's own
    /// pages are answered: it goes on accepting until [`STALLED_WAITING_MAX`] requests wait, and a little beyond it.
    fn gate(&mut self) {
        let Some(balance) = &mut self.balance else { return };
        if self.leaving.is_some() || self.crowded || !(balance.stalled || balance.shut) {
            return;
        }
        let alone = !balance.helpers.iter().any(|helper| helper.knows_us);
        let mut shut = balance.stalled && (!alone || self.waiting >= STALLED_WAITING_MAX);
        if shut && alone && self.now_ms >= balance.peek_ms {
            balance.peek_ms = self.now_ms + STALLED_PEEK_MS;
            shut = false;
        }
        if std::mem::replace(&mut balance.shut, shut) == shut {
            return;
        }
        if shut {
            self.stop_accepting(false);
        } else {
            self.open();
        }
    }

    // ---- giving --------------------------------------------------------------------------------

    /// Gives requests that wait here to siblings that have runners for them.
    fn relieve(&mut self) {
        let Self { balance: Some(balance), conns, pool, .. } = self else { return };
        let quota: usize = balance.helpers.iter().map(|helper| helper.quota).sum();
        if !balance.stalled || quota == 0 {
            return;
        }
        let mut moved = Vec::new();
        pool.take_back(
            quota,
            |exchange| {
                let token = exchange.request.link().token();
                conns.get(token).is_some_and(|conn| may_move(conn, exchange))
            },
            &mut moved,
        );
        for exchange in moved {
            let token = exchange.request.link().token();
            let helper = balance.next_helper();
            if let (Some(conn), Some(slot)) = (conns.get(token), helper) {
                conn.phase = Phase::Moving(exchange, slot);
                self.driver.detach(token, conn.link.socket());
            }
        }
        self.waiting = self.pool.waiting();
    }

    /// The driver has given a connection up: it goes on in the sibling, or, when that fails, here.
    pub(super) fn on_detached(&mut self, token: Token) {
        let Some(conn) = self.conns.get(token) else { return };
        let Phase::Moving(exchange, slot) = std::mem::replace(&mut conn.phase, Phase::InHand(None)) else {
            return;
        };
        let sent = match &mut self.balance {
            Some(balance) => {
                write_letter(conn, &exchange, &mut balance.letter);
                balance.siblings.send(slot, &balance.letter, conn.link.socket())
            }
            None => Err(io::ErrorKind::NotFound.into()),
        };
        match sent {
            Ok(()) => {
                // Only our copy of the socket is closed: the connection is the sibling's.
                self.begun = self.begun.saturating_sub(1);
                if let Some(meter) = self.meter.as_ref().filter(|_| self.counting) {
                    meter.handed_over.add(1);
                }
                drop(self.conns.remove(token));
                self.use_room();
            }
            Err(error) => {
                debug!("cannot hand a connection over to slot {slot}: {error}");
                if let Some(balance) = &mut self.balance {
                    balance.helpers.retain(|helper| helper.slot != slot);
                }
                self.batch.push(exchange);
                self.has_elders = true;
                self.receive(token);
                self.settle(token);
            }
        }
    }

    /// Passes a new connection on when this worker has far more than the least loaded sibling. Returns whether.
    pub(super) fn pass_on(&mut self, listener: &Listener, socket: &Socket) -> bool {
        let count = self.clients();
        let Some(balance) = &mut self.balance else { return false };
        if count <= UNEVEN_CONNECTIONS || self.leaving.is_some() {
            return false;
        }
        let Some(helper) = balance.helpers.iter_mut().min_by_key(|helper| helper.connections) else {
            return false;
        };
        if count <= 2 * helper.connections || count <= helper.connections + UNEVEN_CONNECTIONS {
            return false;
        }
        parcel::address(listener, None, true, self.now_ms, &mut balance.letter);
        match balance.siblings.send(helper.slot, &balance.letter, socket) {
            Ok(()) => {
                helper.connections += 1;
                if let Some(meter) = self.meter.as_ref().filter(|_| self.counting) {
                    meter.handed_over.add(1);
                }
                true
            }
            // It is busy enough; the next look tells.
            Err(_) => {
                helper.connections = usize::MAX / 4;
                false
            }
        }
    }

    // ---- taking --------------------------------------------------------------------------------

    /// Something lies in the mailbox.
    pub(in crate::worker) fn on_letters(&mut self) {
        if let Some(balance) = &mut self.balance {
            balance.letters_left = true;
        }
    }

    /// Takes the letters that lie in our own mailbox.
    pub(super) fn read_own_letters(&mut self) {
        let Some(balance) = &mut self.balance else { return };
        if !std::mem::take(&mut balance.letters_left) {
            return;
        }
        // A worker that takes this one's place reads them, or siblings do.
        if self.leaving != Some(Stop::Retire) {
            self.read_letters(None);
        }
    }

    fn read_letters(&mut self, slot: Option<usize>) {
        for _ in 0..LETTERS_PER_TURN {
            let Some(balance) = &mut self.balance else { return };
            let mut letter = std::mem::take(&mut balance.letter);
            let Some(socket) = balance.siblings.receive(slot, &mut letter) else {
                balance.letter = letter;
                return;
            };
            match (socket, Parcel::read(&letter)) {
                (Some(socket), Some(parcel)) => self.admit(socket, &parcel),
                // A call for help.
                _ => balance.survey_ms = self.now_ms,
            }
            if let Some(balance) = &mut self.balance {
                balance.letter = letter;
            }
        }
        if slot.is_none() {
            self.on_letters();
        }
    }

    /// Takes a connection over from a sibling, as if what it has received had been received here.
    fn admit(&mut self, socket: Socket, parcel: &Parcel<'_>) {
        let Some(balance) = &mut self.balance else { return };
        let own = self.doors.iter().map(|door| &door.listener);
        let known = own.chain(&balance.adopted).find(|listener| ***listener == parcel.listener);
        let listener = known.map_or_else(|| Arc::new(parcel.listener.clone()), Arc::clone);
        if known.is_none() {
            balance.adopted.push(Arc::clone(&listener));
        }
        let Some(token) = self.enter(listener, socket, false) else { return };
        if parcel.fresh {
            return;
        }
        let Some(conn) = self.conns.get(token) else { return };
        conn.before_proxy = false;
        // It had requests elsewhere, whose answers may still be on their way: how many is not known here.
        conn.requests = 1;
        if let Some((client, destination)) = parcel.proxied
            // Nobody else has the link before the first request is handed over.
            && let Some(link) = Arc::get_mut(&mut conn.link)
        {
            link.announce(client, destination);
        }
        conn.input.extend_from_slice(parcel.bytes);
        // Its time runs on: it has not begun to wait here.
        self.elder_ms = Some(parcel.queued_ms.min(self.now_ms));
        self.consume_input(token);
        self.elder_ms = None;
        self.settle(token);
    }
}

/// Whether a request that waits can be handed over: nothing of its answer exists, and all of it is here. One that was
/// turned away may wait, too, for a runner to tell of it.
fn may_move(conn: &Conn, exchange: &Exchange) -> bool {
    let body = match &exchange.request.body {
        Body::Empty => 0,
        Body::Whole(bytes) => bytes.len(),
        Body::Stream(_) => return false,
    };
    matches!(conn.phase, Phase::InHand(None))
        && !exchange.reply.is_finished()
        && !(conn.writing || conn.broken || conn.streamed || conn.link.has_rest())
        && exchange.request.bytes.len() + body + conn.input.len() <= PARCEL_BYTES_MAX
}

/// All that was received of the connection and is not answered, as it could have been received.
fn write_letter(conn: &Conn, exchange: &Exchange, letter: &mut Vec<u8>) {
    let proxied = conn.link.proxied_to().and_then(|destination| match conn.link.peer() {
        Peer::Inet { ip, port, .. } => Some(((*ip, port.parse().ok()?).into(), destination)),
        Peer::Unix => None,
    });
    parcel::address(conn.link.listener(), proxied, false, exchange.request.queued_ms, letter);
    let head = &exchange.request.bytes;
    letter.extend_from_slice(&head[..exchange.request.head_bytes.min(head.len())]);
    let body = match &exchange.request.body {
        Body::Whole(bytes) => &bytes[..],
        Body::Empty | Body::Stream(_) => &[],
    };
    let head: &Head = exchange.request.head();
    if head.framing == Framing::Chunked {
        // It was decoded: one chunk says the same.
        if !body.is_empty() {
            letter.extend_from_slice(format!("{:x}\r\n", body.len()).as_bytes());
            letter.extend_from_slice(body);
            letter.extend_from_slice(b"\r\n");
        }
        letter.extend_from_slice(b"0\r\n\r\n");
    } else {
        letter.extend_from_slice(body);
    }
    letter.extend_from_slice(&conn.input);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::VecDeque;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::{OwnedFd, RawFd};
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::ring;
    use crate::sys::shared::SharedPage;
    use crate::worker::Nobody;
    use crate::worker::access::Recorder;
    use crate::worker::tests::{on_both, rules};

    /// One sibling, in slot 1, of which nothing is heard: what lies in its mailbox is to be taken.
    #[derive(Default)]
    struct Deserted {
        letters: VecDeque<(Vec<u8>, Socket)>,
    }

    impl Siblings for Deserted {
        fn publish(&mut self, _connections: usize, _waiting: usize) {}

        fn set_engaged(&mut self, _engaged: bool) {}

        fn survey(&mut self, _now_ms: u64, _leaving: bool) -> Survey {
            Survey { deserted: vec![1], ..Survey::default() }
        }

        fn send(&mut self, _slot: usize, _letter: &[u8], _socket: &Socket) -> io::Result<()> {
            Ok(())
        }

        fn poke(&mut self, _slot: usize) {}

        fn receive(&mut self, slot: Option<usize>, into: &mut Vec<u8>) -> Option<Option<Socket>> {
            let (letter, socket) = slot.and_then(|_| self.letters.pop_front())?;
            *into = letter;
            Some(Some(socket))
        }

        fn drawer(&self) -> Option<RawFd> {
            None
        }
    }

    fn worker(backend: ring::Io, siblings: Deserted) -> Io {
        let (driver, _) = ring::open(backend).unwrap();
        let port = Arc::new(Port::new(driver.waker()));
        let pool = Arc::new(Pool::new(1, Recorder::default()));
        let mut io = Io::new(driver, Vec::new(), Arc::new(rules()), pool, Arc::new(Nobody), port);
        io.join(Box::new(siblings), Vec::new());
        io
    }

    fn listener() -> Listener {
        Listener::inet(([192, 0, 2, 1], 80).into())
    }

    fn socket() -> (UnixStream, Socket) {
        let (client, server) = UnixStream::pair().unwrap();
        (client, OwnedFd::from(server).into())
    }

    /// Its client had 503, and the sibling ran it all the same.
    #[test]
    fn a_request_that_was_turned_away_is_not_handed_over() {
        on_both(|backend| {
            let mut io = worker(backend, Deserted::default());
            let (_client, socket) = socket();
            let token = io.enter(Arc::new(listener()), socket, false).unwrap();
            let conn = io.conns.get(token).unwrap();
            conn.phase = Phase::InHand(None);
            let mut exchange = Exchange::default();
            exchange.begin(Arc::clone(&conn.link));
            assert!(may_move(conn, &exchange));
            exchange.reply.fail(503, "");
            assert!(!may_move(conn, &exchange));
        });
    }

    fn letter(client: &mut Vec<UnixStream>) -> (Vec<u8>, Socket) {
        let (near, far) = socket();
        client.push(near);
        let mut letter = Vec::new();
        parcel::address(&listener(), None, false, 0, &mut letter);
        letter.extend_from_slice(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        (letter, far)
    }

    /// Each connection brought a listener of its own, which went with it. The next one had its place in memory, and so,
    /// for the runners, its address.
    #[test]
    fn connections_of_a_listener_that_is_not_ours_share_one_that_stays() {
        on_both(|backend| {
            let mut clients = Vec::new();
            let letters = [letter(&mut clients), letter(&mut clients)].into();
            let mut io = worker(backend, Deserted { letters });
            io.turn().unwrap();
            let tokens = io.conns.tokens();
            let mut place = |at: usize| std::ptr::from_ref(io.conns.get(tokens[at]).unwrap().link.listener());
            assert_eq!(place(0), place(1));
            let stays = Arc::downgrade(&io.balance.as_ref().unwrap().adopted[0]);
            io.close_all();
            assert!(stays.upgrade().is_some());
        });
    }

    /// It lay there until the next heartbeat, or until something else happened.
    #[test]
    fn a_request_out_of_a_deserted_mailbox_goes_to_the_runners_at_once() {
        on_both(|backend| {
            let mut clients = Vec::new();
            let letters = [letter(&mut clients)].into();
            let mut io = worker(backend, Deserted { letters });
            io.turn().unwrap();
            assert_eq!((io.batch.len(), io.timeout()), (1, Duration::ZERO));
            io.turn().unwrap();
            assert_eq!((io.batch.len(), io.pool.waiting()), (0, 1));
        });
    }

    /// A worker with one door, at which nobody is let in yet, and a client who waits there.
    fn besieged(backend: ring::Io, observer: bool) -> (Io, TcpStream) {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = socket.local_addr().unwrap();
        let client = TcpStream::connect(addr).unwrap();
        let mut io = worker(backend, Deserted::default());
        let listener = Arc::new(Listener::inet(addr));
        io.doors.push(Door { fd: socket.into(), listener, accepting: Accepting::Shared, observer });
        (io, client)
    }

    /// As many turns as accepting takes, and not a heartbeat more, at which everybody is looked for once again.
    fn accepts(io: &mut Io) -> bool {
        io.balance.as_mut().unwrap().recheck_ms = u64::MAX;
        for _ in 0..20 {
            io.balance.as_mut().unwrap().letters_left = true;
            io.turn().unwrap();
        }
        io.conns.len() > 0
    }

    /// With listeners that all workers share there are no others to help at, and nobody looked at these.
    #[test]
    fn whoever_waits_at_a_door_is_found_without_listeners_of_siblings() {
        on_both(|backend| {
            for observer in [true, false] {
                let (mut io, _client) = besieged(backend, observer);
                io.turn().unwrap();
                assert!(accepts(&mut io), "observer: {observer}");
            }
        });
    }

    /// It was let go of for a turn, in which the last connection came that there was room for, or the order to leave,
    /// and was never taken up again.
    #[test]
    fn observers_are_let_in_when_nobody_else_is() {
        on_both(|backend| {
            let (mut io, _client) = besieged(backend, true);
            io.turn().unwrap();
            io.crowded = true;
            assert!(accepts(&mut io), "it became crowded");
            let (mut io, _client) = besieged(backend, true);
            io.crowded = true;
            io.turn().unwrap();
            // To say so to the siblings, it has looked at them already.
            io.balance.as_mut().unwrap().survey_ms = 0;
            io.turn().unwrap();
            assert!(accepts(&mut io), "it was crowded");
            let (mut io, _client) = besieged(backend, true);
            io.turn().unwrap();
            io.leaving = Some(Stop::Leave);
            assert!(accepts(&mut io), "it leaves");
            let (mut io, _client) = besieged(backend, true);
            io.turn().unwrap();
            io.unobserved_turns = Some(0);
            assert!(!accepts(&mut io), "observation has ended");
        });
    }

    #[test]
    fn a_door_that_was_let_go_of_stays_closed_without_room() {
        on_both(|backend| {
            let (mut io, _client) = besieged(backend, false);
            io.turn().unwrap();
            io.crowded = true;
            assert!(!accepts(&mut io));
        });
    }

    /// Its worker had crashed: nobody looked into its queue any more, which new clients still found.
    #[test]
    fn a_server_that_stops_empties_and_closes_the_listeners_of_slots_without_a_worker() {
        on_both(|backend| {
            let socket = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = socket.local_addr().unwrap();
            let _client = TcpStream::connect(address).unwrap();
            let mut io = worker(backend, Deserted::default());
            let listener = Arc::new(Listener::inet(address));
            let door = Door { fd: socket.into(), listener, accepting: Accepting::Alone, observer: false };
            io.join(Box::new(Deserted::default()), vec![(1, door)]);
            while io.entrance != (Entrance::Closed { turns: CLOSED_TURNS }) {
                assert!(!io.obey(Some(Stop::Close)));
                io.turn().unwrap();
            }
            assert_eq!(io.conns.len(), 1, "who waited is served");
            assert_eq!(TcpStream::connect(address).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        });
    }

    /// The client had been promised service, and was left to wait until the door closed.
    #[test]
    fn a_worker_that_begins_to_leave_lets_in_who_waits_at_a_door_that_was_let_go_of() {
        on_both(|backend| {
            let (mut io, _client) = besieged(backend, false);
            io.turn().unwrap();
            assert!(!io.obey(Some(Stop::Leave)));
            assert!(accepts(&mut io));
        });
    }

    /// The metric was there, and always 0.
    #[test]
    fn a_connection_that_was_handed_over_is_counted() {
        on_both(|backend| {
            let mut io = worker(backend, Deserted::default());
            let shared = Arc::new(SharedPage::new().unwrap());
            io.observe(None, shared.meter(0, true));
            let (_client, socket) = socket();
            let token = io.enter(Arc::new(listener()), socket, false).unwrap();
            io.conns.get(token).unwrap().phase = Phase::Moving(Box::default(), 1);
            io.on_detached(token);
            assert_eq!((io.conns.len(), shared.metrics(0).unwrap().handed_over.get()), (0, 1));
        });
    }
}
