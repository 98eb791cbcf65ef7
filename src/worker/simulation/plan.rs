//! What a client asks for, what the application will do about it, and the answer that is owed for it.

use std::collections::VecDeque;
use std::rc::Rc;

use ::http::StatusCode;

use super::{Dice, MATERIAL_BYTES, material};

/// A part of the material: from, and how many bytes.
pub(super) type Part = (usize, usize);

pub(super) fn bytes_of(part: Part) -> &'static [u8] {
    &material()[part.0..part.0 + part.1]
}

/// How much of the request's body the application reads before it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    Nothing,
    Some(usize),
    All,
}

/// What the application does with one request.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Milliseconds before it does anything.
    pub(super) delay_ms: u64,
    pub(super) read: Read,
    /// Reads only after the first piece of the answer was sent.
    pub(super) reads_late: bool,
    pub(super) status: u16,
    /// The Content-Length that it sets.
    pub(super) declared: Option<usize>,
    /// Tells the length of the whole body with the first piece.
    pub(super) total_known: bool,
    /// Where the body lies in the material.
    pub(super) start: usize,
    /// The lengths of its pieces.
    pub(super) pieces: Vec<usize>,
    /// Lets small pieces be kept back.
    pub(super) more: bool,
    /// Fails before it sends this piece.
    pub(super) fails_at: Option<usize>,
    /// Does not even say that it failed.
    pub(super) abandons: bool,
    /// Sets `Connection: close`.
    pub(super) closes: bool,
    /// Sends its one piece as a file; the file lacks so many bytes of it.
    pub(super) file: Option<usize>,
    /// Waits so many milliseconds before it sends this piece, or behind the last one before it is done.
    pub(super) pause: Option<(usize, u64)>,
}

impl Plan {
    /// Reads everything and answers at once.
    pub(super) fn plain() -> Self {
        Self {
            delay_ms: 0,
            read: Read::All,
            reads_late: false,
            status: 200,
            declared: Some(10),
            total_known: false,
            start: 0,
            pieces: vec![10],
            more: false,
            fails_at: None,
            abandons: false,
            closes: false,
            file: None,
            pause: None,
        }
    }

    /// As a native service says it.
    pub(super) fn code(&self) -> StatusCode {
        StatusCode::from_u16(self.status).expect("a plain status")
    }

    fn roll(dice: &mut Dice, body: usize) -> Self {
        let mut plan = Self::plain();
        plan.delay_ms = match dice.below(8) {
            0 => dice.below(2_000) as u64,
            1 => dice.below(20) as u64,
            _ => 0,
        };
        plan.read = match dice.below(6) {
            0 => Read::Nothing,
            1 => Read::Some(dice.below(body + 1)),
            _ => Read::All,
        };
        plan.reads_late = dice.one_in(5);
        plan.status = [200, 200, 200, 200, 200, 404, 204, 205, 304][dice.below(9)];
        let size = |dice: &mut Dice| match dice.below(24) {
            0 => dice.below(400_000),
            1..=3 => dice.below(60_000),
            4..=8 => dice.below(3_000),
            9 => 0,
            _ => dice.below(40),
        };
        plan.pieces = (0..dice.below(5)).map(|_| size(dice)).collect();
        if dice.one_in(8) {
            plan.pieces = vec![size(dice)];
            plan.file = Some(if dice.one_in(4) { dice.below(plan.pieces[0] + 1) } else { 0 });
        }
        let mut left = MATERIAL_BYTES;
        plan.pieces.retain(|piece| left.checked_sub(*piece).inspect(|rest| left = *rest).is_some());
        let total: usize = plan.pieces.iter().sum();
        plan.start = dice.below(MATERIAL_BYTES - total);
        plan.declared = match dice.below(8) {
            0 => Some(dice.below(total + 1)),
            1 => Some(total + dice.below(100)),
            2..=4 => Some(total),
            _ => None,
        };
        plan.total_known = dice.one_in(3);
        plan.more = dice.one_in(3);
        plan.fails_at = dice.one_in(12).then(|| dice.below(plan.pieces.len() + 1));
        plan.abandons = dice.one_in(2);
        plan.closes = dice.one_in(12);
        let mut dice = Dice(dice.clone().roll());
        if dice.one_in(4) {
            plan.pause = Some((dice.below(plan.pieces.len() + 1), dice.below(30) as u64));
        }
        plan
    }
}

/// A request, and what the application will do about it.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) id: u32,
    pub(super) http10: bool,
    pub(super) is_head: bool,
    pub(super) keep_alive: bool,
    pub(super) expects: bool,
    /// The body, decoded.
    pub(super) body: Part,
    /// Whether a Content-Length announces it to be larger than the body buffer.
    pub(super) announced_large: bool,
    pub(super) head: Vec<u8>,
    /// The body as sent.
    pub(super) wire: Vec<u8>,
    pub(super) plan: Plan,
}

impl Asked {
    /// The client has announced that nothing follows. What it sends all the same meets a socket that nobody reads, if the
    /// answer is small and nothing came before it; and the reset that comes of it may take the answer along.
    pub(super) fn is_last_word(&self) -> bool {
        !self.keep_alive && !self.http10 && self.wire.is_empty()
    }

    fn roll(dice: &mut Dice, id: u32, buffer: usize) -> Self {
        let http10 = dice.one_in(6);
        let has_body = dice.one_in(2);
        let is_head = !has_body && dice.one_in(5);
        let method = match (is_head, has_body) {
            (true, _) => "HEAD",
            (_, true) => ["POST", "PUT", "PATCH"][dice.below(3)],
            (_, false) => ["GET", "DELETE", "OPTIONS"][dice.below(3)],
        };
        let mut head = format!("{method} /r/{id} HTTP/1.{}\r\nHost: a\r\n", u8::from(!http10)).into_bytes();
        let mut keep_alive = !http10;
        if http10 && dice.one_in(2) {
            head.extend_from_slice(b"Connection: keep-alive\r\n");
            keep_alive = true;
        } else if dice.one_in(12) {
            head.extend_from_slice(b"Connection: close\r\n");
            keep_alive = false;
        }
        for number in 0..dice.below(4) {
            let length = if dice.one_in(6) { dice.below(7_000) } else { dice.below(60) };
            head.extend_from_slice(format!("X-{number}: {}\r\n", "v".repeat(length)).as_bytes());
        }
        let (mut body, mut wire, mut expects, mut announced_large) = ((0, 0), Vec::new(), false, false);
        if has_body {
            let length = match dice.below(8) {
                0 => dice.below(150_000),
                1 | 2 => dice.below(buffer * 4),
                3 => buffer - 1 + dice.below(3),
                _ => dice.below(300),
            };
            body = (dice.below(MATERIAL_BYTES - length), length);
            if http10 || dice.one_in(2) {
                head.extend_from_slice(format!("Content-Length: {length}\r\n").as_bytes());
                wire = bytes_of(body).to_vec();
                announced_large = length > buffer;
            } else {
                head.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
                wire = chunked(dice, bytes_of(body));
            }
            if !http10 && !wire.is_empty() && dice.one_in(4) {
                head.extend_from_slice(b"Expect: 100-continue\r\n");
                expects = true;
            }
        }
        head.extend_from_slice(b"\r\n");
        let plan = Plan::roll(dice, body.1);
        Self { id, http10, is_head, keep_alive, expects, body, announced_large, head, wire, plan }
    }
}

fn chunked(dice: &mut Dice, mut body: &[u8]) -> Vec<u8> {
    let mut wire = Vec::new();
    while !body.is_empty() {
        let bound = if dice.one_in(2) { body.len() } else { body.len().min(2_000) };
        let (chunk, rest) = body.split_at(1 + dice.below(bound));
        let extension = if dice.one_in(8) { ";a=\"b;\"" } else { "" };
        wire.extend_from_slice(format!("{:x}{extension}\r\n", chunk.len()).as_bytes());
        wire.extend_from_slice(chunk);
        wire.extend_from_slice(b"\r\n");
        body = rest;
    }
    wire.extend_from_slice(b"0\r\n");
    if dice.one_in(6) {
        wire.extend_from_slice(b"X-Sum: 1\r\n");
    }
    wire.extend_from_slice(b"\r\n");
    wire
}

/// One thing that a client does.
#[derive(Clone, Debug)]
pub(super) enum Action {
    Send(Vec<u8>),
    Wait(u64),
    /// Until the interim answer to this request has come, or its answer; not for ever.
    AwaitContinue(usize),
    /// Until so many answers are complete.
    AwaitAnswers(usize),
    HalfClose,
    Reset,
}

/// How a client's script ends, after all requests that are complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// In order: it half-closes, or waits for the server to close.
    Orderly,
    /// With bytes that are no request.
    Garbage,
    /// Inside a head: half-closed, or (true) silent.
    InHead(bool),
    /// Inside the body of the last request: half-closed, or (true) silent.
    InBody(bool),
    /// It breaks the connection off.
    Reset,
    /// It stops to read.
    Deaf,
    /// Nobody knows what it said.
    Raw,
}

/// All that one client does.
#[derive(Debug)]
pub(super) struct Script {
    /// With [`Ending::InBody`], the last one is incomplete.
    pub(super) asked: Vec<Rc<Asked>>,
    pub(super) actions: VecDeque<Action>,
    pub(super) ending: Ending,
    /// Bytes that it reads at once, at most.
    pub(super) appetite: usize,
    /// The listener that it connects to.
    pub(super) door: usize,
}

impl Script {
    pub(super) fn roll(dice: &mut Dice, next_id: &mut u32, buffer: usize) -> Self {
        let ending = match dice.below(20) {
            0 | 1 => Ending::Garbage,
            2 => Ending::InHead(false),
            3 => Ending::InHead(true),
            4 => Ending::InBody(false),
            5 => Ending::InBody(true),
            6 | 7 => Ending::Reset,
            8 => Ending::Deaf,
            _ => Ending::Orderly,
        };
        let count = if dice.one_in(10) { dice.below(30) } else { 1 + dice.below(5) };
        let pipelined = dice.one_in(2);
        let mut script = Self {
            asked: Vec::new(),
            actions: VecDeque::new(),
            ending,
            appetite: if dice.one_in(3) { 500 + dice.below(5_000) } else { 1 << 20 },
            door: 0,
        };
        let mut pauses = 8;
        for index in 0..count {
            let asked = Asked::roll(dice, *next_id, buffer);
            *next_id += 1;
            script.ask(dice, index, asked, pipelined, &mut pauses);
        }
        script.end(dice, next_id, buffer, &mut pauses);
        script
    }

    /// Lets the application take about as long as it may for some of the answers, and longer for others.
    pub(super) fn linger(&mut self, dice: &mut Dice, request_ms: u64) {
        for asked in &mut self.asked {
            let Some(Asked { plan, .. }) = Rc::get_mut(asked) else { continue };
            let ms = match dice.below(4) {
                0 => request_ms * 2 + dice.below(3_000) as u64,
                1 => dice.below(1_000) as u64,
                _ => request_ms - 3 + dice.below(6) as u64,
            };
            match dice.below(8) {
                0 | 1 => plan.delay_ms = ms,
                2 => plan.pause = Some((dice.below(plan.pieces.len() + 1), ms)),
                _ => {}
            }
        }
    }

    /// Leaves out what a native service cannot do: it tells a length with a body that is whole only, and is done when it
    /// has given a file.
    pub(super) fn simplify(&mut self) {
        for asked in &mut self.asked {
            let Some(Asked { plan, .. }) = Rc::get_mut(asked) else { continue };
            plan.total_known = false;
            if plan.file.is_some() {
                plan.fails_at = plan.fails_at.filter(|at| *at == 0);
                plan.reads_late = false;
            }
        }
    }

    /// A client that sends `bytes`, cut anywhere.
    pub(super) fn raw(bytes: &[u8], dice: &mut Dice, half_closes: bool) -> Self {
        let mut script = Self {
            asked: Vec::new(),
            actions: VecDeque::new(),
            ending: Ending::Raw,
            appetite: 1 << 20,
            door: 0,
        };
        script.send(dice, bytes, &mut 3);
        if half_closes {
            script.actions.push_back(Action::HalfClose);
        }
        script
    }

    /// A script for a test written by hand.
    #[cfg(test)]
    pub(super) fn written(asked: Vec<Asked>, actions: Vec<Action>) -> Self {
        Self {
            asked: asked.into_iter().map(Rc::new).collect(),
            actions: actions.into(),
            ending: Ending::Orderly,
            appetite: 1 << 20,
            door: 0,
        }
    }

    fn ask(&mut self, dice: &mut Dice, index: usize, asked: Asked, pipelined: bool, pauses: &mut u32) {
        let waits = asked.expects && dice.one_in(2);
        if waits || !pipelined || dice.one_in(6) {
            self.actions.push_back(Action::AwaitAnswers(index));
        }
        if waits {
            self.send(dice, &asked.head, pauses);
            self.actions.push_back(Action::AwaitContinue(index));
            self.send(dice, &asked.wire, pauses);
        } else {
            let all = [&asked.head[..], &asked.wire].concat();
            self.send(dice, &all, pauses);
        }
        self.asked.push(Rc::new(asked));
    }

    fn end(&mut self, dice: &mut Dice, next_id: &mut u32, buffer: usize, pauses: &mut u32) {
        match self.ending {
            Ending::Orderly => {
                if dice.one_in(2) {
                    self.actions.push_back(Action::AwaitAnswers(self.asked.len()));
                }
                if !dice.one_in(3) {
                    self.actions.push_back(Action::HalfClose);
                }
            }
            Ending::Garbage => {
                let garbage: [&[u8]; 6] = [
                    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
                    b"GET /\r\n\r\n",
                    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
                    b"GET / HTTP/1.1\r\nHost: a\r\nA: b\nC: d\r\n\r\n",
                    b"GET / HTTP/1.1\r\n\r\n",
                    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
                ];
                self.send(dice, garbage[dice.clone().below(garbage.len())], pauses);
            }
            Ending::InHead(silent) => {
                let asked = Asked::roll(dice, u32::MAX, buffer);
                let cut = dice.below(asked.head.len());
                self.send(dice, &asked.head[..cut], pauses);
                if !silent {
                    self.actions.push_back(Action::HalfClose);
                }
            }
            Ending::InBody(silent) => {
                let mut asked = Asked::roll(dice, *next_id, buffer);
                while asked.wire.is_empty() {
                    asked = Asked::roll(dice, *next_id, buffer);
                }
                *next_id += 1;
                let cut = dice.below(asked.wire.len());
                let all = [&asked.head[..], &asked.wire[..cut]].concat();
                self.asked.push(Rc::new(asked));
                self.send(dice, &all, pauses);
                if !silent {
                    self.actions.push_back(Action::HalfClose);
                }
            }
            Ending::Reset => {
                let keep = dice.below(self.actions.len() + 1);
                self.actions.truncate(keep);
                if dice.one_in(2) {
                    self.actions.push_back(Action::Wait(dice.below(50) as u64));
                }
                self.actions.push_back(Action::Reset);
            }
            Ending::Deaf => {
                self.actions.retain(|action| !matches!(action, Action::AwaitAnswers(_)));
                self.appetite = 0;
            }
            Ending::Raw => {}
        }
    }

    /// Adds the sending of `bytes`, cut anywhere, with a few pauses.
    fn send(&mut self, dice: &mut Dice, mut bytes: &[u8], pauses: &mut u32) {
        while !bytes.is_empty() {
            let count = match dice.below(4) {
                0 => dice.part(bytes.len()).max(bytes.len() / 64),
                _ => bytes.len(),
            };
            let (piece, rest) = bytes.split_at(count.clamp(1, bytes.len()));
            self.actions.push_back(Action::Send(piece.to_vec()));
            bytes = rest;
            if *pauses > 0 && dice.one_in(8) {
                *pauses -= 1;
                self.actions.push_back(Action::Wait(dice.below(400) as u64));
            }
        }
    }
}
