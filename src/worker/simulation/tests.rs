//! Seeds, and scripts for what they have found. Each script runs under many seeds, because the network's cuts
//! and the runners' order decide whether it hits.

use super::plan::{Action, Asked, Read};
use super::*;

/// Runs of an ordinary test. `RINGHORN_SIM_SEEDS` asks for more.
const SEEDS: u64 = 300;

/// Runs of a script.
const SCRIPT_SEEDS: u64 = 60;

const BUFFER: usize = 8_192;

fn with_seed(seed: u64, run: impl Fn(u64) + std::panic::RefUnwindSafe) {
    let outcome = std::panic::catch_unwind(|| run(seed));
    assert!(outcome.is_ok(), "seed {seed} breaks a promise: `RINGHORN_SIM_SEED={seed}` repeats it");
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs the seed that the environment names, or as many as it asks for.
fn every_seed(run: fn(u64)) {
    if let Some(seed) = number("RINGHORN_SIM_SEED") {
        return run(seed);
    }
    let first = number("RINGHORN_SIM_FIRST").unwrap_or(0);
    for seed in first..first + number("RINGHORN_SIM_SEEDS").unwrap_or(SEEDS) {
        with_seed(seed, run);
    }
}

#[test]
fn every_client_gets_exactly_what_it_is_owed_under_every_seed() {
    every_seed(run);
}

#[test]
fn every_client_of_a_service_gets_exactly_what_it_is_owed_under_every_seed() {
    every_seed(run_service);
}

#[test]
fn one_seed_is_one_run() {
    let turns = |seed| {
        let mut world = World::new(seed, 2, BUFFER, 100);
        world.connect(Script::roll(&mut Dice(seed), &mut 0, BUFFER));
        world.run();
        (world.turns, world.network.now_ms())
    };
    for seed in 0..20 {
        assert_eq!(turns(seed), turns(seed));
    }
}

pub(super) fn get(id: u32, plan: Plan) -> Asked {
    let head = format!("GET /r/{id} HTTP/1.1\r\nHost: a\r\n\r\n");
    Asked {
        id,
        http10: false,
        is_head: false,
        keep_alive: true,
        expects: false,
        body: (0, 0),
        announced_large: false,
        head: head.into_bytes(),
        wire: Vec::new(),
        plan,
    }
}

fn post(id: u32, length: usize, plan: Plan) -> Asked {
    let head = format!("POST /r/{id} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
    Asked {
        body: (0, length),
        announced_large: length > BUFFER,
        head: head.into_bytes(),
        wire: material()[..length].to_vec(),
        ..get(id, plan)
    }
}

fn expecting(asked: Asked) -> Asked {
    let mut head = asked.head.clone();
    head.splice(head.len() - 2.., *b"Expect: 100-continue\r\n\r\n");
    Asked { head, expects: true, ..asked }
}

/// Answers with these pieces, in chunks.
fn pieces(pieces: &[usize]) -> Plan {
    Plan { declared: None, pieces: pieces.to_vec(), ..Plan::plain() }
}

/// Sends the whole request at once.
pub(super) fn send(asked: &Asked) -> Action {
    Action::Send([&asked.head[..], &asked.wire].concat())
}

/// Plays one client's script under many seeds; `inspect` sees each world at its end.
fn play(asked: impl Fn() -> Vec<Asked>, actions: impl Fn(&[Asked]) -> Vec<Action>, inspect: impl Fn(&World)) {
    for seed in 0..SCRIPT_SEEDS {
        let asked = asked();
        let actions = actions(&asked);
        let mut world = World::new(seed, 1, BUFFER, 100);
        trace!("seed {seed}");
        world.connect(Script::written(asked, actions));
        world.run();
        inspect(&world);
    }
}

#[test]
fn an_interim_answer_waits_behind_a_full_socket() {
    play(
        || vec![get(0, pieces(&[48_000])), expecting(post(1, 100, Plan::plain()))],
        |asked| {
            let (head, body) = (asked[1].head.clone(), asked[1].wire.clone());
            vec![
                send(&asked[0]),
                Action::Send(head),
                Action::AwaitContinue(1),
                Action::Send(body),
                Action::HalfClose,
            ]
        },
        |_| (),
    );
}

#[test]
fn a_refusal_waits_behind_a_full_socket() {
    // `play` compares with an orderly end; here the last answer is the server's own.
    for seed in 0..SCRIPT_SEEDS {
        let asked = get(0, pieces(&[48_000]));
        let actions = vec![send(&asked), Action::Send(b"GET /\r\n\r\n".to_vec())];
        let mut world = World::new(seed, 1, BUFFER, 100);
        world.connect(Script { ending: plan::Ending::Garbage, ..Script::written(vec![asked], actions) });
        let start_ms = world.network.now_ms();
        let mut open_ms = start_ms;
        while world.step() {
            if world.io.connections() > 0 {
                open_ms = world.network.now_ms();
            }
        }
        // The end is told at once, not when the worker is tired of waiting for the client's.
        assert!(open_ms < start_ms + 1_000, "seed {seed}");
        world.run();
    }
}

#[test]
fn no_interim_answer_inside_an_answer() {
    let late = || Plan { reads_late: true, ..pieces(&[100, 20]) };
    play(
        || vec![expecting(post(0, 20_000, late()))],
        |asked| {
            let (head, body) = (asked[0].head.clone(), asked[0].wire.clone());
            vec![Action::Send(head), Action::AwaitContinue(0), Action::Send(body), Action::HalfClose]
        },
        |_| (),
    );
}

/// What the application takes until it asks for the body counted as the client's time, which got 408.
#[test]
fn the_time_for_a_body_begins_when_its_client_is_told_to_send() {
    for service in [false, true] {
        for seed in 0..SCRIPT_SEEDS {
            // The first deadline (12 s) was moved by as much, because 100 was owed: the second is near.
            let asked = expecting(post(0, 20_000, Plan { delay_ms: 23_500, ..Plan::plain() }));
            let (head, body) = (asked.head.clone(), asked.wire.clone());
            let actions =
                vec![Action::Send(head), Action::Wait(25_000), Action::Send(body), Action::AwaitAnswers(1)];
            let mut world = World::new(seed, 1, BUFFER, 100);
            if service {
                world.serve();
            }
            world.connect(Script::written(vec![asked], actions));
            world.run();
            assert_eq!(world.runners.borrow().record(0).failed, None, "seed {seed}");
        }
    }
}

/// It counted as the beginning of a head: its client, who had sent nothing else, got a 408 that nobody had asked for, and
/// later than the end of an idle connection.
#[test]
fn an_empty_line_behind_a_request_is_not_the_beginning_of_another() {
    for (service, line) in [(false, &b"\r\n"[..]), (false, b"\r"), (true, b"\r\n"), (true, b"\r")] {
        for seed in 0..SCRIPT_SEEDS {
            let (first, second) =
                (post(0, 3, Plan::plain()), get(1, Plan { delay_ms: 4_990, ..Plan::plain() }));
            let (together, apart) = (seed % 2 == 0, seed % 3 == 0);
            let mut actions = vec![Action::Send([&first.head[..], &first.wire].concat())];
            if together {
                actions = vec![Action::Send([&first.head[..], &first.wire, line].concat())];
            } else {
                actions.extend([Action::AwaitAnswers(1), Action::Send(line.to_vec())]);
            }
            let mut asked = vec![first];
            if apart {
                // It makes the line whole, and is understood behind it.
                actions.extend([Action::AwaitAnswers(1), Action::Wait(1_000)]);
                actions.push(Action::Send([&b"\r\n"[line.len()..], &second.head].concat()));
                actions.extend([Action::AwaitAnswers(2), Action::Send(line.to_vec())]);
                asked.push(second);
            }
            let mut world = World::new(seed, 1, BUFFER, 100);
            if service {
                world.serve();
            }
            world.connect(Script::written(asked, actions));
            let count = if apart { 2 } else { 1 };
            let mut answered_ms = 0;
            while world.step() {
                let now_ms = world.network.now_ms();
                let runners = world.runners.borrow();
                if answered_ms == 0 && runners.record(count - 1).finished {
                    answered_ms = now_ms;
                }
                if world.io.connections() > 0 && answered_ms > 0 {
                    assert!(now_ms < answered_ms + 7_000, "seed {seed}: the connection is not idle");
                } else if answered_ms > 0 {
                    assert!(now_ms > answered_ms + 4_500, "seed {seed}: {now_ms} {answered_ms}");
                    break;
                }
            }
            world.run();
        }
    }
}

#[test]
fn body_bytes_behind_an_unsent_answer_wait_for_its_end() {
    // Without its fix the I/O thread spins for ever.
    let careless = || Plan { read: Read::Nothing, ..pieces(&[150_000]) };
    play(
        || vec![expecting(post(0, 60_000, careless())), get(1, Plan::plain())],
        |asked| {
            let (head, body) = (asked[0].head.clone(), asked[0].wire.clone());
            // It neither waits for permission nor reads before it has sent everything.
            vec![Action::Send(head), Action::Wait(50), Action::Send(body), send(&asked[1]), Action::HalfClose]
        },
        |_| (),
    );
    // The same on a connection that goes on.
    play(
        || vec![post(0, 60_000, careless()), get(1, Plan::plain())],
        |asked| {
            let (begin, end) = asked[0].wire.split_at(10_000);
            let begin = [&asked[0].head[..], begin].concat();
            let end = Action::Send(end.to_vec());
            vec![Action::Send(begin), Action::Wait(50), end, send(&asked[1]), Action::HalfClose]
        },
        |_| (),
    );
}

/// The body that was whole counted as cut, and the request behind it was dropped.
#[test]
fn a_half_close_behind_an_unsent_answer_cuts_nothing() {
    for seed in 0..SCRIPT_SEEDS {
        let careless = Plan { read: Read::Some(10_000), ..pieces(&[13, 58_000, 1_800]) };
        let (first, second) = (post(0, 17_000, careless), get(1, Plan::plain()));
        let (begin, end) = first.wire.split_at(16_000);
        let actions = vec![
            Action::Send([&first.head[..], begin].concat()),
            Action::Wait(1),
            Action::Send([end, &second.head].concat()),
            Action::HalfClose,
        ];
        let mut world = World::new(seed, 1, BUFFER, 100);
        world.connect(Script { appetite: 500, ..Script::written(vec![first, second], actions) });
        world.run();
    }
}

#[test]
fn a_client_that_reads_but_stops_to_send_does_not_hold_its_runner() {
    let late = || Plan { reads_late: true, ..pieces(&[150_000, 10]) };
    for seed in 0..SCRIPT_SEEDS {
        let asked = expecting(post(0, 30_000, late()));
        let (head, cut) = (asked.head.clone(), asked.wire[..5_000].to_vec());
        let mut world = World::new(seed, 1, BUFFER, 100);
        let actions = vec![Action::Send(head), Action::Wait(50), Action::Send(cut)];
        let script = Script::written(vec![asked], actions);
        world.connect(Script { ending: plan::Ending::InBody(true), appetite: 500, ..script });
        world.run();
        assert_eq!(world.runners.borrow().record(0).failed, Some((1, 408)), "seed {seed}");
    }
}

#[test]
fn an_idle_connection_is_closed_after_an_answer_that_was_partly_queued() {
    // The end of the script waits for the server's close; `World::step` bounds the wait.
    let mut lengths = vec![60_000];
    lengths.resize(100, 1);
    play(|| vec![get(0, pieces(&lengths))], |asked| vec![send(&asked[0]), Action::AwaitAnswers(1)], |_| ());
}

#[test]
fn receiving_goes_on_behind_a_full_pipeline() {
    let many = || {
        let slow = Plan { delay_ms: 1_000, ..Plan::plain() };
        let mut all = vec![get(0, slow)];
        // More than the pipeline holds, the last part of it in a body.
        for id in 1..10 {
            all.push(post(id, if id == 9 { 7_000 } else { 8_000 }, Plan::plain()));
        }
        all.push(get(10, Plan::plain()));
        all
    };
    play(
        many,
        |asked| asked.iter().map(send).chain([Action::AwaitAnswers(11), Action::HalfClose]).collect(),
        |_| (),
    );
}

#[test]
fn a_cut_body_behind_another_request_is_refused_at_once() {
    for seed in 0..SCRIPT_SEEDS {
        let slow = Plan { delay_ms: 1_000, ..Plan::plain() };
        let (first, second) = (get(0, slow), post(1, 100, Plan::plain()));
        let cut = [&second.head[..], &second.wire[..50]].concat();
        let actions = vec![send(&first), Action::Send(cut), Action::HalfClose];
        let mut world = World::new(seed, 1, BUFFER, 100);
        let script = Script::written(vec![first, second], actions);
        world.connect(Script { ending: plan::Ending::InBody(false), ..script });
        let start_ms = world.network.now_ms();
        while world.io.connections() > 0 || world.network.now_ms() == start_ms {
            assert!(world.step());
        }
        assert!(world.network.now_ms() < start_ms + 2_000, "seed {seed}");
        world.run();
    }
}

#[test]
fn what_follows_a_damaged_body_is_never_a_request() {
    for seed in 0..4 * SCRIPT_SEEDS {
        // It reads some, so that receiving goes on, and answers.
        let careless = Plan { read: Read::Some(10), ..Plan::plain() };
        let head = b"POST /r/0 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        let asked = Asked { head, wire: b"2710\r\n".to_vec(), ..post(0, 10_000, careless) };
        let behind = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n".to_vec();
        let mut actions = vec![send(&asked), Action::Send(material()[..10_000].to_vec())];
        actions.push(Action::Send(b"no end of a chunk".to_vec()));
        actions.extend((0..20).map(|_| Action::Send(behind.clone())));
        let mut world = World::new(seed, 2, BUFFER, 100);
        let script = Script::written(vec![asked], actions);
        world.connect(Script { ending: plan::Ending::InBody(false), ..script });
        // Others keep the I/O thread busy, so that runners get on in the middle of its turns.
        for id in 1..6 {
            let asked = get(id, pieces(&[3_000]));
            let actions = vec![send(&asked), Action::AwaitAnswers(1), Action::HalfClose];
            world.connect(Script::written(vec![asked], actions));
        }
        world.run();
    }
}

#[test]
fn a_crowded_worker_stays_closed_when_accepting_is_tried_again() {
    for seed in 0..SCRIPT_SEEDS {
        let mut world = World::new(seed, 1, BUFFER, 2);
        let connect = |world: &mut World, id| {
            let asked = get(id, Plan { delay_ms: 3_000, ..Plan::plain() });
            let actions = vec![send(&asked), Action::AwaitAnswers(1), Action::HalfClose];
            world.connect(Script { door: 1, ..Script::written(vec![asked], actions) });
        };
        world.network.fail_accept(0, libc::EMFILE);
        (0..2).for_each(|id| connect(&mut world, id));
        while world.io.connections() < 2 {
            assert!(world.step());
        }
        (2..6).for_each(|id| connect(&mut world, id));
        let full_ms = world.network.now_ms();
        while world.network.now_ms() < full_ms + 2_000 {
            assert!(world.step());
            assert_eq!(world.io.connections(), 2, "seed {seed}");
        }
        world.run();
    }
}

/// A slot's wheel has one entry. The entry of an earlier user fires first, and must not be taken for the
/// deadline of the one who uses the slot now, nor take that deadline away.
#[test]
fn the_deadline_of_a_slots_new_user_fires_after_an_entry_of_the_old_one() {
    for seed in 0..SCRIPT_SEEDS {
        let mut world = World::new(seed, 1, BUFFER, 100);
        let first = get(0, Plan::plain());
        // It leaves an entry for its idle time (5 s) behind, the next user's first byte is due after 21 s.
        let actions = vec![send(&first), Action::AwaitAnswers(1), Action::HalfClose];
        world.connect(Script::written(vec![first], actions));
        let start_ms = world.network.now_ms();
        while world.clients[0].next_ms() != u64::MAX || world.io.connections() > 0 || world.turns < 3 {
            assert!(world.step());
        }
        world.connect(Script::written(Vec::new(), Vec::new()));
        while world.io.connections() == 0 {
            assert!(world.step());
        }
        let connected_ms = world.network.now_ms();
        assert!(connected_ms < start_ms + 5_000);
        while world.io.connections() > 0 {
            assert!(world.step());
        }
        let lived_ms = world.network.now_ms() - connected_ms;
        assert!((21_000..22_000).contains(&lived_ms), "seed {seed}: closed after {lived_ms} ms");
        world.run();
    }
}

/// As a fuzzer would, but with requests that are nearly right.
#[test]
fn whatever_a_client_says_the_worker_survives() {
    let words: [&[u8]; 16] = [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3000\r\nExpect: 100-continue\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"hello",
        &[b'x'; 3_000],
        b"800\r\n",
        b"\r\n",
        b"Connection: close\r\n",
        b"Host: a\r\n",
        b"GET ",
        b"\0",
    ];
    for seed in 0..number("RINGHORN_SIM_SEEDS").unwrap_or(1_000) {
        let mut dice = Dice(seed);
        let mut data = vec![dice.roll() as u8, dice.roll() as u8];
        for _ in 0..dice.below(8) {
            data.extend_from_slice(words[dice.below(words.len())]);
        }
        if dice.one_in(3) {
            let at = dice.below(data.len());
            data[at] = dice.roll() as u8;
        }
        let outcome = std::panic::catch_unwind(|| fuzz_connection(&data));
        assert!(outcome.is_ok(), "seed {seed}: {}", data.escape_ascii());
    }
}

#[test]
fn an_answer_until_close_that_leaving_cuts_does_not_look_complete() {
    for seed in 0..SCRIPT_SEEDS {
        let asked = get(0, pieces(&[150_000]));
        let head = b"GET /r/0 HTTP/1.0\r\n\r\n".to_vec();
        let asked = Asked { http10: true, keep_alive: false, head, ..asked };
        let mut world = World::new(seed, 1, BUFFER, 100);
        let actions = vec![send(&asked)];
        world.connect(Script { appetite: 500, ..Script::written(vec![asked], actions) });
        world.stop = Some((40, Stop::Quick));
        world.run();
        assert!(world.cut_off, "seed {seed}: the script is too quick");
    }
}

/// Rules with a deadline for requests, which may wait for half of it.
fn hurried(request_ms: u64) -> Rules {
    let patience = Patience { request_ms, ..Patience::ENDLESS };
    Rules { patience, queue_ms: request_ms / 2, keep_heads: true, ..rules(BUFFER, 100) }
}

/// Runner and deadline at the same millisecond, in each order: the client gets one answer, and all of it.
#[test]
fn a_request_whose_time_is_over_has_one_answer() {
    let (mut answered, mut expired) = (0, 0);
    for seed in 0..4 * SCRIPT_SEEDS {
        let mut world = World::with_rules(seed, 2, hurried(900));
        let plan = Plan { delay_ms: 898 + seed % 4, ..pieces(&[30, 3_000]) };
        let asked = vec![get(0, plan.clone()), get(1, plan)];
        let mut actions: Vec<Action> = asked.iter().map(send).collect();
        actions.push(Action::HalfClose);
        world.connect(Script::written(asked, actions));
        world.run();
        let record = world.runners.borrow().record(0);
        (answered, expired) = (answered + u32::from(!record.expired), expired + u32::from(record.expired));
    }
    assert!(answered > 0 && expired > 0, "{answered} answered, {expired} expired");
}

/// What the log and the client are told of a request was found by the time when it was complete; and that was moved on by
/// the time in which the process stood still, so its client got no answer.
#[test]
fn a_request_expires_also_after_its_process_stood_still() {
    for seed in 0..SCRIPT_SEEDS {
        let mut world = World::with_rules(seed, 1, hurried(2_000));
        let asked = get(0, Plan { delay_ms: 100_000, ..Plan::plain() });
        let actions = vec![send(&asked), Action::AwaitAnswers(1)];
        world.connect(Script::written(vec![asked], actions));
        let start_ms = world.network.now_ms();
        while world.network.now_ms() < start_ms + 1_000 {
            assert!(world.step());
        }
        world.network.pass_ms(60_000);
        world.run();
        let record = world.runners.borrow().record(0);
        assert!(record.expired, "seed {seed}: {record:?}");
    }
}

/// The application is still in `close()` when the time of its request is over, or its worker's: the client, who is slow to
/// read, had been sent all of the answer.
#[test]
fn an_answer_that_has_left_is_not_taken_back() {
    for seed in 0..SCRIPT_SEEDS {
        for (stop, count) in
            [None, Some((60, Stop::Quick))].into_iter().flat_map(|stop| [(stop, 1), (stop, 5)])
        {
            // The last of several pieces leaves with those that were kept back.
            let (declared, pieces) = (Some(10 * count), vec![10; count]);
            let pause = Some((count, 50_000));
            let asked = get(0, Plan { closes: true, declared, pieces, pause, ..Plan::plain() });
            let actions = vec![send(&asked), Action::Wait(40_000), Action::AwaitAnswers(1)];
            let mut world = World::with_rules(seed, 1, hurried(if stop.is_none() { 900 } else { u64::MAX }));
            world.stop = stop;
            world.connect(Script::written(vec![asked], actions));
            // Compares what came with what had left.
            world.run();
        }
    }
}

/// Neither runs twice nor is lost what is turned away, and its bytes are nobody else's.
#[test]
fn what_waits_too_long_or_behind_too_many_is_turned_away() {
    for seed in 0..SCRIPT_SEEDS {
        let queue_max = if seed % 2 == 0 { 2 } else { usize::MAX };
        let mut world = World::with_rules(seed, 1, Rules { queue_max, ..hurried(4_000) });
        for id in 0..8 {
            let asked = get(id, Plan { delay_ms: 1_500, ..Plan::plain() });
            let actions = vec![send(&asked), Action::AwaitAnswers(1), Action::HalfClose];
            world.connect(Script::written(vec![asked], actions));
        }
        world.run();
        let ran = (0..8).filter(|id| world.runners.borrow().record(*id).runs == 1).count();
        assert!((1..8).contains(&ran), "seed {seed}: {ran} ran");
    }
}

/// The runners of a worker that ends take what waits before they leave: the application did what nobody could hear of, and
/// what the client, who had met a reset, might have asked of somebody else by then.
#[test]
fn nothing_is_begun_for_clients_that_a_worker_leaves_behind() {
    for seed in 0..SCRIPT_SEEDS {
        let mut world = World::new(seed, 1, BUFFER, 100);
        for id in 0..4 {
            let asked = get(id, Plan { delay_ms: 50_000, ..Plan::plain() });
            let actions = vec![send(&asked), Action::AwaitAnswers(1)];
            world.connect(Script::written(vec![asked], actions));
        }
        world.stop = Some((60, Stop::Quick));
        world.run();
        let ran = (0..4).filter(|id| world.runners.borrow().record(*id).runs == 1).count();
        assert_eq!(ran, 1, "seed {seed}");
    }
}

/// What the answers before had to wait for room was sent within the reading of what had been received; and there the end of
/// the client's stream was acted on, as if nothing was left to read.
#[test]
fn a_half_close_behind_requests_to_a_service_loses_none() {
    for seed in 0..SCRIPT_SEEDS {
        let mut world = World::new(seed, 1, BUFFER, 100);
        world.serve();
        let late = get(0, Plan { delay_ms: 50, ..Plan::plain() });
        let asked: Vec<Asked> =
            std::iter::once(late).chain((1..30).map(|id| get(id, pieces(&[10])))).collect();
        let mut actions: Vec<Action> = asked.iter().map(send).collect();
        actions.push(Action::HalfClose);
        world.connect(Script::written(asked, actions));
        world.run();
    }
}

/// An application that pauses behind pieces which came quickly: `World::check_bounds` judges when they leave.
#[test]
fn pieces_that_are_kept_back_leave_while_their_application_pauses() {
    let asked = || {
        let plan = |at| Plan { pause: Some((at, 20)), ..pieces(&[50; 8]) };
        (2..40).map(|id| get(id, plan(id as usize % 7 + 2))).collect()
    };
    play(asked, |asked| asked.iter().map(send).collect(), |_| ());
}
