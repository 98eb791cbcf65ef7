//! What was owed, and what came. Responses are read by rules of their own, stricter than any client's.

use std::rc::Rc;

use super::plan::{Asked, Ending, Part, Script, bytes_of};
use super::runners::{LATE_MS, Runners};
use crate::limits::{DRAIN_BYTES_MAX, LAST_ANSWER_BYTES_MAX};

/// How a response's end is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Nothing,
    Length(usize),
    Chunked,
    UntilClose,
}

/// A response as it came.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    status: u16,
    http10: bool,
    close: bool,
    keep_alive: bool,
    /// It says when to come again.
    retry: bool,
    length: Option<usize>,
    framing: Framing,
    body: Vec<u8>,
    interim: bool,
}

/// Reads the responses of one connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Reader {
    at: usize,
    pub(super) answers: Vec<Answer>,
    /// The head of the response that is not complete, and what came of its body.
    partial: Option<Answer>,
    /// Bytes of a head that is not complete.
    in_head: bool,
    /// `100 Continue` has come, and its response is not complete.
    pub(super) interim: bool,
}

impl Reader {
    /// Reads on in all that was `received`. `ended`: nothing more comes.
    pub(super) fn advance(&mut self, received: &[u8], asked: &[Rc<Asked>], ended: bool) {
        self.read(received, ended, &|index| asked.get(index).is_some_and(|asked| asked.is_head));
    }

    fn read(&mut self, received: &[u8], ended: bool, is_head: &dyn Fn(usize) -> bool) {
        loop {
            let rest = &received[self.at..];
            self.partial = None;
            self.in_head = false;
            if rest.is_empty() {
                return;
            }
            let Some(length) = memchr::memmem::find(rest, b"\r\n\r\n").map(|at| at + 4) else {
                let start = b"HTTP/1.";
                let seen = rest.len().min(start.len());
                assert_eq!(rest[..seen], start[..seen], "not a response: {}", rest[..seen].escape_ascii());
                self.in_head = true;
                return;
            };
            let mut answer = head(&rest[..length], is_head(self.answers.len()));
            if answer.status == 100 {
                assert!(!self.interim, "two interim answers");
                self.interim = true;
                self.at += length;
                continue;
            }
            answer.interim = self.interim;
            let (used, complete) = body(&mut answer, &rest[length..], ended);
            if !complete {
                self.partial = Some(answer);
                return;
            }
            self.interim = false;
            self.at += length + used;
            self.answers.push(answer);
        }
    }
}

fn head(bytes: &[u8], is_head: bool) -> Answer {
    let text = std::str::from_utf8(bytes).expect("heads are ASCII here");
    let mut lines = text.trim_end_matches("\r\n").split("\r\n");
    let line = lines.next().unwrap_or_default();
    let status = line.get(9..12).and_then(|code| code.parse().ok()).expect("a status line");
    assert!(line.starts_with("HTTP/1.1 ") || line.starts_with("HTTP/1.0 "), "{line}");
    assert_eq!(line.as_bytes().get(12), Some(&b' '), "{line}");
    let mut answer = Answer {
        status,
        http10: line.starts_with("HTTP/1.0 "),
        close: false,
        keep_alive: false,
        retry: false,
        length: None,
        framing: Framing::Nothing,
        body: Vec::new(),
        interim: false,
    };
    let (mut chunked, mut dates, mut servers) = (false, 0, 0);
    for field in lines {
        let (name, value) = field.split_once(": ").unwrap_or_else(|| panic!("not a field: {field}"));
        match name {
            "Content-Length" => {
                assert!(answer.length.is_none(), "two lengths");
                answer.length = Some(value.parse().expect("a length"));
            }
            "Transfer-Encoding" => {
                assert!(value == "chunked" && !chunked);
                chunked = true;
            }
            "Connection" => {
                answer.close |= value == "close";
                answer.keep_alive |= value == "keep-alive";
            }
            "Date" => dates += 1,
            "Server" => servers += 1,
            "Content-Type" => {}
            "Retry-After" => answer.retry = value == "1",
            other => panic!("an unknown field: {other}"),
        }
    }
    if status == 100 {
        assert_eq!(bytes, b"HTTP/1.1 100 Continue\r\n\r\n");
        return answer;
    }
    assert!(status >= 200 && dates == 1 && servers == 1, "{text}");
    assert!(!(chunked && answer.length.is_some()), "two framings: {text}");
    assert!(!(chunked && answer.http10), "chunks for HTTP/1.0");
    answer.framing = if is_head || matches!(status, 204 | 304) {
        Framing::Nothing
    } else if chunked {
        Framing::Chunked
    } else {
        answer.length.map_or(Framing::UntilClose, Framing::Length)
    };
    answer
}

/// Reads the body; returns the bytes used, and whether it is complete.
fn body(answer: &mut Answer, rest: &[u8], ended: bool) -> (usize, bool) {
    match answer.framing {
        Framing::Nothing => (0, true),
        Framing::Length(length) => {
            let there = length.min(rest.len());
            answer.body.extend_from_slice(&rest[..there]);
            (there, there == length)
        }
        Framing::UntilClose => {
            answer.body.extend_from_slice(rest);
            (rest.len(), ended)
        }
        Framing::Chunked => {
            let mut at = 0;
            loop {
                let Some(end) = memchr::memmem::find(&rest[at..], b"\r\n") else { return (at, false) };
                let digits = std::str::from_utf8(&rest[at..at + end]).expect("a chunk size");
                let size = usize::from_str_radix(digits, 16).expect("a chunk size");
                at += end + 2;
                let there = size.min(rest.len() - at);
                answer.body.extend_from_slice(&rest[at..at + there]);
                let Some(behind) = rest.get(at + size..at + size + 2) else { return (at, false) };
                assert_eq!(behind, b"\r\n", "a chunk without its end");
                at += size + 2;
                if size == 0 {
                    return (at, true);
                }
            }
        }
    }
}

/// What becomes of the connection behind an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Last {
    Keep,
    Close,
    Reset,
}

/// The answer that is owed.
#[derive(Debug)]
struct Owed {
    status: u16,
    /// The server's own error page.
    page: bool,
    /// What stands in it.
    text: &'static str,
    /// It says when to come again.
    retry: bool,
    framing: Framing,
    length: Option<usize>,
    /// The part of the material that comes, whole or cut.
    body: Part,
    complete: bool,
    /// Whether the head announces the close.
    close: bool,
    last: Last,
}

impl Owed {
    fn page(status: u16) -> Self {
        Self {
            status,
            page: true,
            text: "",
            retry: false,
            framing: Framing::Length(0),
            length: None,
            body: (0, 0),
            complete: true,
            close: true,
            last: Last::Close,
        }
    }

    /// To a request that the application had for too long.
    fn expired() -> Self {
        Self { text: "The application did not answer in time.", ..Self::page(503) }
    }

    /// To a request that no runner has taken, because too many waited, or it for too long.
    fn turned_away() -> Self {
        Self { text: "more requests than it can answer", retry: true, ..Self::page(503) }
    }

    fn to(asked: &Asked, runners: &Runners) -> Self {
        let record = runners.record(asked.id);
        let plan = &asked.plan;
        if record.expired {
            return Self::expired();
        }
        let (fails_at, status) = match record.failed {
            Some((at, status)) => (Some(at), status),
            None => (plan.fails_at, 500),
        };
        if fails_at == Some(0) {
            return Self::page(status);
        }
        let total: usize = plan.pieces.iter().sum();
        let spot = record.on_the_spot;
        let known = plan.total_known || spot.is_some() || plan.pieces.is_empty() || plan.file.is_some();
        let length = plan.declared.or(known.then_some(total));
        let (framing, length) = match plan.status {
            204 => (Framing::Nothing, None),
            205 => (Framing::Length(0), Some(0)),
            // As to GET, when the body is there to be measured.
            _ if asked.is_head && spot == Some(true) && total > 0 => (Framing::Nothing, length),
            _ if plan.status == 304 || asked.is_head => (Framing::Nothing, plan.declared),
            _ => match length {
                Some(length) => (Framing::Length(length), Some(length)),
                None if asked.http10 => (Framing::UntilClose, None),
                None => (Framing::Chunked, None),
            },
        };
        let framing = if asked.is_head { Framing::Nothing } else { framing };
        let failed = fails_at.is_some_and(|at| at <= plan.pieces.len());
        let pieces = fails_at.map_or(&plan.pieces[..], |at| &plan.pieces[..at.min(plan.pieces.len())]);
        let sent: usize = pieces.iter().sum();
        let (bytes, mut complete) = match framing {
            Framing::Nothing => (0, true),
            Framing::Length(length) => (sent.min(length), sent >= length),
            Framing::Chunked | Framing::UntilClose => (sent, !failed),
        };
        let keep = asked.keep_alive && !plan.closes && !record.unasked && framing != Framing::UntilClose;
        let mut last = if keep && complete && !failed { Last::Keep } else { Last::Close };
        if framing == Framing::UntilClose && failed {
            last = Last::Reset;
        }
        if let Some(lacking) = plan.file
            && !pieces.is_empty()
            && bytes > plan.pieces[0] - lacking
        {
            (complete, last) = (false, Last::Reset);
        }
        Self {
            status: plan.status,
            page: false,
            text: "",
            retry: false,
            framing,
            length,
            body: (plan.start, bytes),
            complete,
            close: !keep,
            last,
        }
    }
}

/// What is known of a connection's end.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    pub(super) ended: bool,
    pub(super) reset: bool,
    /// The client, or the order to leave, broke it.
    pub(super) broken: bool,
    /// The client did.
    pub(super) broken_by_client: bool,
    /// The worker was told to leave meanwhile.
    pub(super) stopped: bool,
}

fn compare(answer: &Answer, owed: &Owed, asked: Option<&Asked>, end: End) {
    let what = || format!("{answer:?}\nowed {owed:?}\nfor {:?}", asked.map(|asked| (asked.id, &asked.plan)));
    assert_eq!(answer.status, owed.status, "status: {}", what());
    assert_eq!(answer.retry, owed.retry, "{}", what());
    if owed.page {
        assert!(answer.close, "{}", what());
        assert!(matches!(answer.framing, Framing::Length(_) | Framing::Nothing), "{}", what());
        return;
    }
    assert_eq!(answer.framing, owed.framing, "{}", what());
    assert_eq!(answer.length, owed.length, "{}", what());
    assert!(answer.close == owed.close || (end.stopped && answer.close), "{}", what());
    if let Some(asked) = asked {
        assert_eq!(answer.http10, asked.http10, "{}", what());
        assert_eq!(answer.keep_alive, asked.http10 && !answer.close, "{}", what());
        assert!(asked.expects || !answer.interim, "100 Continue for nobody: {}", what());
    }
    assert!(bytes_of(owed.body).starts_with(&answer.body), "body: {}", what());
}

/// Whether the connection's reset may have taken away what was on its way to the client, from answer number `count` on.
fn may_be_cut(script: &Script, runners: &Runners, count: usize) -> bool {
    let limits = runners.limits;
    script.asked.iter().enumerate().any(|(index, asked)| {
        let record = runners.record(asked.id);
        // Only what is sent behind the last word meets a socket that nobody reads.
        let talks_on = !is_silent_behind(script, index);
        let turned_away = record.runs == 0 && limits.turns_away();
        let reset = index >= count
            && (asked.is_last_word()
                && index == 0
                && Owed::to(asked, runners).body.1 <= LAST_ANSWER_BYTES_MAX
                && talks_on
                && !runners.native
                && (record.runs == 1 || turned_away)
                || record.runs == 1 && Owed::to(asked, runners).last == Last::Reset);
        // It may even be there, and the application not be done.
        reset || index + 1 >= count && was_cut_late(asked, runners)
    })
}

/// Whether an answer had begun when the time of its request was over, and had not left.
fn was_cut_late(asked: &Asked, runners: &Runners) -> bool {
    let record = runners.record(asked.id);
    let late = record.runs == 1 && record.took_ms >= runners.limits.request_ms;
    late && !(record.expired || record.sent_all)
}

/// Whether the client sends nothing behind this request.
fn is_silent_behind(script: &Script, index: usize) -> bool {
    index + 1 == script.asked.len()
        && !matches!(script.ending, Ending::Garbage | Ending::InHead(_) | Ending::InBody(_))
}

/// Compares the answers to a script with what was owed.
pub(super) fn judge(reader: &Reader, script: &Script, runners: &Runners, end: End) {
    let cut_short = matches!(script.ending, Ending::InBody(_));
    let whole = script.asked.len() - usize::from(cut_short);
    for asked in &script.asked {
        let record = runners.record(asked.id);
        let overdue = record.took_ms > runners.limits.request_ms.saturating_add(LATE_MS);
        assert!(
            !overdue || record.expired || record.sent_all || end.reset || end.broken,
            "nobody has minded the time of request {}: {record:?}",
            asked.id
        );
    }
    if let Some(asked) = script.asked.last()
        && (is_silent_behind(script, script.asked.len() - 1) && asked.body.1 == 0)
        && (runners.record(asked.id).sent_all && Owed::to(asked, runners).complete)
        && !end.broken_by_client
    {
        // Neither a deadline nor the end of the worker takes it back.
        assert!(!end.reset && reader.answers.len() >= script.asked.len(), "an answer that had left was cut");
    }
    // Whether the connection was to end behind the last answer, or could.
    let (mut over, mut may_be_over) = (false, false);
    let all = reader.answers.iter().map(|answer| (answer, true));
    let all = all.chain(reader.partial.iter().map(|answer| (answer, false)));
    let mut count = 0;
    for (index, (answer, complete)) in all.enumerate() {
        assert!(!over, "an answer behind the last one, number {index}: {answer:?}");
        count = index + 1;
        let asked = script.asked.get(index).map(|asked| &**asked);
        let owed = match asked {
            Some(asked)
                if runners.record(asked.id).runs == 0
                    && runners.limits.turns_away()
                    && answer.status == 503 =>
            {
                Owed::turned_away()
            }
            // A body that never became complete, refused before anybody ran the request.
            Some(asked) if index >= whole && runners.record(asked.id).runs == 0 => {
                Owed::page(if script.ending == Ending::InBody(true) { 408 } else { 400 })
            }
            Some(asked) => {
                assert_eq!(runners.record(asked.id).runs, 1, "request {index} was never run");
                Owed::to(asked, runners)
            }
            None => refusal(script.ending, answer),
        };
        compare(answer, &owed, asked, end);
        if complete {
            assert!(owed.complete, "a cut answer looks complete: {answer:?}\n{owed:?}");
            assert!(owed.page || answer.body.len() == owed.body.1, "{answer:?}\n{owed:?}");
            let text = String::from_utf8_lossy(&answer.body);
            assert!(
                answer.framing == Framing::Nothing || !owed.page || text.contains(owed.text),
                "{text}\n{owed:?}"
            );
        } else if !end.broken {
            assert!(!owed.complete || end.reset, "an answer was cut: {answer:?}\n{owed:?}");
            assert!(
                end.reset || answer.body.len() == owed.body.1,
                "bytes before the cut are missing: {answer:?}\n{owed:?}"
            );
            assert!(owed.last != Last::Reset || end.reset, "the cut cannot be seen: {answer:?}");
        }
        over = owed.last != Last::Keep || answer.close || index >= whole || (!complete && !end.reset);
        may_be_over = asked.is_some_and(|asked| {
            runners.record(asked.id).left_unread && asked.body.1 as u64 >= DRAIN_BYTES_MAX
        });
    }
    if end.broken {
        return;
    }
    if over
        && end.reset
        && let Some(asked) = script.asked.get(count - 1)
        && (is_silent_behind(script, count - 1) && asked.body.1 == 0)
    {
        let cut = runners.record(asked.id).runs == 1 && Owed::to(asked, runners).last == Last::Reset;
        assert!(cut || was_cut_late(asked, runners), "a reset for a client that was silent");
    }
    // A client that goes on with a body that nobody reads is reset when the worker is tired of it.
    let may_be_over = over || may_be_over;
    assert!(!(over && reader.in_head), "an answer behind the last one");
    if end.reset && (!may_be_over || reader.in_head) {
        // A reset takes with it what is on its way: the answer that it cuts, and even some before it.
        assert!(may_be_cut(script, runners, count), "a reset instead of answer {count}");
        return;
    }
    assert!(!reader.in_head, "a head was cut");
    assert!(
        end.ended || (may_be_over && end.reset) || (end.stopped && count == 0),
        "the connection has no end"
    );
    if may_be_over {
        return;
    }
    if end.stopped {
        // What was not taken on is not answered; what was, is.
        let mut behind = script.asked.iter().skip(count);
        assert!(
            behind.all(|asked| runners.record(asked.id).runs == 0),
            "a request that was taken on has no answer"
        );
        return;
    }
    assert!(count >= whole, "answers are missing: {count} of {whole} have come");
    match script.ending {
        Ending::Garbage | Ending::InBody(_) => panic!("the broken request has no answer"),
        _ => {}
    }
}

/// The answer to what is no request.
fn refusal(ending: Ending, answer: &Answer) -> Owed {
    match ending {
        Ending::Garbage => {
            assert!((400..=505).contains(&answer.status), "{answer:?}");
            Owed::page(answer.status)
        }
        Ending::InHead(true) => Owed::page(408),
        _ => panic!("an answer that nobody has asked for: {answer:?}"),
    }
}

/// Compares the answers to unknown bytes with what runners have answered.
pub(super) fn judge_raw(reader: &mut Reader, received: &[u8], runners: &Runners, end: End) {
    if end.reset && runners.unplanned_last_word {
        return;
    }
    let heads = &runners.unplanned;
    reader.read(received, end.ended, &|index| heads.get(index).copied().unwrap_or(false));
    for (index, answer) in reader.answers.iter().enumerate() {
        let page = (400..=505).contains(&answer.status) && answer.close;
        let last = index + 1 == reader.answers.len();
        assert!(page && last || index < heads.len() && answer.status == 200, "{answer:?}");
        assert!(!answer.close || last, "an answer behind the last one");
        if !page && !heads[index] {
            assert_eq!(answer.body, bytes_of((0, 10)));
        }
    }
    assert!(reader.answers.len() >= heads.len(), "answers are missing");
    // The page for a refused HEAD request has a length and no body; which of unknown bytes are one is not known here.
    let bare_page =
        |answer: &Answer| (400..=505).contains(&answer.status) && answer.close && answer.body.is_empty();
    let cut = reader.partial.as_ref().is_some_and(|answer| !bare_page(answer));
    assert!(!cut && !reader.in_head && !end.reset, "an answer was cut");
}
