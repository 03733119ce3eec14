//! The modern wire in virtual time: delivery, fairness, anonymity of the transcript, churn,
//! equivocation, and the blame of every kind of liar.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[path = "dcnet/net.rs"]
mod net;

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use cepa::dcnet::{
    blame::{Blamed, Case, View},
    client::{ClientEvent, SIGN_EVERY},
    error::DcnetError,
    member::PartyRef,
    message::{Down, kind},
};
use net::{Lie, Net};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

const SECOND: Duration = Duration::from_secs(1);
const LIES: [Lie; 6] = [
    Lie::Bits,
    Lie::BitsThenOneFalse,
    Lie::Key,
    Lie::KeyThenHonest,
    Lie::KeyThenOneFalse,
    Lie::KeyThenClaimed,
];

fn pattern(len: usize, salt: u8) -> Vec<u8> {
    (0..len).map(|at| (at % 249) as u8 ^ salt).collect()
}

#[test]
fn everybody_speaks_and_hears_its_echo() {
    let mut net = Net::full(6, 3, 1);
    net.echo = true;
    let mut conns = Vec::new();
    for at in 0..6 {
        conns.push(net.say(at, &pattern(5000, at as u8)));
    }
    let all = net.run_until(5 * SECOND, |net| {
        (0..6).all(|at| {
            net.node(PartyRef::Client(at)).got.get(&conns[usize::from(at)]).map(Vec::len)
                == Some(5000)
        })
    });
    assert!(all, "{:?}", net.relay.status());
    for at in 0..6 {
        let got = &net.node(PartyRef::Client(at)).got[&conns[usize::from(at)]];
        assert_eq!(*got, pattern(5000, at as u8));
    }
    assert_eq!(net.relay.status().counters.jammed, 0);
    assert!(net.disconnected.is_empty(), "{:?}", net.disconnected);
}

/// Runs a net with one liar until somebody is convicted; gives whom, and when.
fn convict(party: PartyRef, lie: Lie, seed: u64) -> (Net, Option<Blamed>) {
    let mut net = Net::with_liar(5, 3, seed, Some((party, lie, 40)));
    net.echo = true;
    for at in 0..5 {
        net.say(at, &pattern(20_000, at as u8));
    }
    net.run_until(10 * SECOND, |net| {
        net.verdicts.iter().any(|(blamed, _)| !matches!(blamed, Blamed::Nobody))
    });
    let blamed = net.verdicts.last().map(|(blamed, _)| *blamed);
    (net, blamed)
}

#[test]
fn every_kind_of_liar_is_convicted_and_everybody_agrees() {
    let parties = [PartyRef::Client(2), PartyRef::Trustee(1)];
    for (seed, party) in parties.into_iter().enumerate() {
        for lie in LIES {
            let (mut net, blamed) = convict(party, lie, 10 + seed as u64);
            assert_eq!(
                blamed,
                Some(Blamed::Party(party)),
                "{party} {lie:?}: {:?}",
                net.disconnected
            );
            net.run(SECOND / 10);
            for (other, node) in &net.nodes {
                assert_eq!(node.error, None, "{other} after {lie:?} of {party}");
                let last = node.verdicts.last();
                assert_eq!(last, Some(&Blamed::Party(party)), "{other} on {lie:?} of {party}");
            }
        }
    }
}

#[test]
fn a_convicted_party_is_out_and_the_others_lose_nothing() {
    let (mut net, _) = convict(PartyRef::Client(3), Lie::Bits, 3);
    let done = net.run_until(20 * SECOND, |net| {
        [0, 1, 2, 4].into_iter().all(|at| {
            net.node(PartyRef::Client(at)).got.values().next().map(Vec::len) == Some(20_000)
        })
    });
    assert!(done, "{:?}", net.relay.status());
    for at in [0, 1, 2, 4] {
        let got = net.node(PartyRef::Client(at)).got.values().next().unwrap();
        assert_eq!(*got, pattern(20_000, at as u8));
    }
    assert!(!net.nodes.contains_key(&PartyRef::Client(3)));
    net.join(PartyRef::Client(3));
    assert!(!net.nodes.contains_key(&PartyRef::Client(3)), "it is not let in again");
}

/// A member that was away when a trustee was convicted hears of it when it joins: it would not take
/// part in intervals without that trustee otherwise.
#[test]
fn whoever_joins_later_hears_of_the_verdicts_there_were() {
    let mut net = Net::new(4, 3, net::settings(), 18);
    net.lies(PartyRef::Trustee(2), Lie::Bits, 40);
    (0..3).for_each(|at| net.join(PartyRef::Trustee(at)));
    (0..3).for_each(|at| net.join(PartyRef::Client(at)));
    net.run(SECOND / 10);
    for at in 0..3 {
        net.say(at, &pattern(20_000, 1));
    }
    net.run_until(10 * SECOND, |net| !net.verdicts.is_empty());
    assert_eq!(net.verdicts[0].0, Blamed::Party(PartyRef::Trustee(2)));
    net.run(SECOND / 2);
    net.join(PartyRef::Client(3));
    net.run(SECOND / 2);
    assert_eq!(net.node(PartyRef::Client(3)).error, None);
    let (_, members) = net.relay.status().interval.unwrap();
    assert_eq!(members, [0, 1, 2, 3]);
}

#[test]
fn a_verdict_convinces_a_reader_of_its_file_and_a_bent_one_does_not() {
    let (net, blamed) = convict(PartyRef::Client(1), Lie::Bits, 4);
    let bytes = &net.verdicts.last().unwrap().1;
    let interval = net.relay.status();
    assert!(interval.counters.jammed > 0);
    let signed = net.clients_heard[&PartyRef::Client(0)]
        .iter()
        .find_map(|body| cepa::dcnet::member::parse_interval(body).ok())
        .unwrap()
        .1;
    let hash = signed.interval.hash();
    let view = View::of_trustee(&net.group, &signed.interval, &hash);
    assert_eq!(Some(Case::parse(bytes).unwrap().judge(&view).unwrap()), blamed);
    let mut rng = StdRng::seed_from_u64(9);
    for _ in 0..200 {
        let mut bent = bytes.clone();
        let at = rng.random_range(0..bent.len());
        bent[at] ^= 1 << rng.random_range(0..8);
        // A bent case is refused, or without its evidence points at nobody but the relay.
        if let Ok(Ok(other)) = Case::parse(&bent).map(|case| case.judge(&view)) {
            assert!(other == blamed.unwrap() || other == Blamed::Relay, "{other}");
        }
    }
}

#[test]
fn a_relay_that_cannot_show_who_did_it_did_it_itself() {
    let (net, _) = convict(PartyRef::Client(1), Lie::Bits, 4);
    let mut case = Case::parse(&net.verdicts.last().unwrap().1).unwrap();
    assert!(case.evidence.take().is_some());
    let heard = &net.clients_heard[&PartyRef::Client(0)];
    let signed = heard.iter().find_map(|body| cepa::dcnet::member::parse_interval(body).ok());
    let signed = signed.unwrap().1;
    let hash = signed.interval.hash();
    let view = View::of_trustee(&net.group, &signed.interval, &hash);
    assert_eq!(case.judge(&view), Ok(Blamed::Relay));
    case.answers.pop();
    assert!(case.judge(&view).is_err(), "a case needs everybody's answer");
}

#[test]
fn a_relay_that_tells_one_client_something_else_is_caught_by_it() {
    let mut net = Net::full(4, 2, 5);
    net.echo = true;
    for at in 0..4 {
        net.say(at, &pattern(60_000, 0));
    }
    net.run(SECOND / 50);
    let before = net.relay.status().counters.clone();
    // One byte of one downstream frame's foreign slot number, for one client only.
    let mut bent = false;
    net.bend = Some(Box::new(move |party, kind, body| {
        if !bent && party == PartyRef::Client(1) && kind == kind::DOWN && body.len() > 200 {
            *body.last_mut().unwrap() ^= 1;
            bent = true;
        }
    }));
    net.run(SECOND / 4);
    let error = &net.node(PartyRef::Client(1)).error;
    assert!(matches!(error, Some(DcnetError::Equivocation { .. })), "{error:?}");
    let after = net.relay.status().counters;
    assert!(after.jammed > before.jammed, "the slot went on opening");
    for at in [0, 2, 3] {
        assert_eq!(net.node(PartyRef::Client(at)).error, None);
    }
    assert!(net.verdicts.iter().all(|(blamed, _)| !matches!(blamed, Blamed::Party(_))));
}

/// Where no slot is open nothing is jammed for a while and nobody asks: the next signature tells,
/// before a turn unasked does.
#[test]
fn a_silent_client_that_was_told_something_else_finds_it_in_the_signed_history() {
    let mut net = Net::full(3, 2, 19);
    let mut bent = false;
    // A frame more, for a slot that is none of theirs.
    net.bend = Some(Box::new(move |party, kind, body| {
        if !bent && party == PartyRef::Client(1) && kind == kind::DOWN {
            body.extend_from_slice(&[0, 77, 0, 0]);
            bent = true;
        }
    }));
    net.run(SECOND / 2);
    let error = |at| net.node(PartyRef::Client(at)).error.clone();
    let Some(DcnetError::Equivocation { round }) = error(1) else { panic!("{:?}", error(1)) };
    assert_eq!(round, SIGN_EVERY, "found by a later question");
    assert_eq!((error(0), error(2)), (None, None));
}

#[test]
fn joins_and_leaves_lose_no_byte_and_pause_shortly() {
    let mut net = Net::new(6, 3, net::settings(), 6);
    net.echo = true;
    for at in 0..3 {
        net.join(PartyRef::Trustee(at));
    }
    for at in 0..4 {
        net.join(PartyRef::Client(at));
    }
    net.run(SECOND / 10);
    let conns: Vec<u32> = (0..2).map(|at| net.say(at, &pattern(60_000, at as u8))).collect();
    let mut longest = Duration::ZERO;
    let mut last = (net.now, 0);
    for step in 0..40_u32 {
        match step % 8 {
            1 => net.join(PartyRef::Client(4)),
            3 => net.join(PartyRef::Client(5)),
            5 => net.leave(PartyRef::Client(4)),
            7 => net.leave(PartyRef::Client(5)),
            _ => {}
        }
        let end = net.now + Duration::from_millis(25);
        while net.now < end {
            net.run(Duration::from_millis(1));
            let total: usize = net.exits.values().map(Vec::len).sum();
            if total > last.1 || total == 120_000 {
                last = (net.now, total);
            }
            longest = longest.max(net.now - last.0);
        }
    }
    let done = net.run_until(20 * SECOND, |net| {
        (0..2).all(|at| {
            net.node(PartyRef::Client(at)).got.get(&conns[usize::from(at)]).map(Vec::len)
                == Some(60_000)
        })
    });
    assert!(done, "{:?}", net.relay.status());
    for at in 0..2_u16 {
        let got = &net.node(PartyRef::Client(at)).got[&conns[usize::from(at)]];
        assert_eq!(*got, pattern(60_000, at as u8));
    }
    assert!(longest <= SECOND, "paused for {longest:?}");
    assert!(net.relay.status().counters.intervals > 4);
    assert!(net.disconnected.is_empty(), "{:?}", net.disconnected);
}

#[test]
fn one_connection_that_is_not_read_stops_alone() {
    let mut net = Net::full(3, 2, 7);
    net.echo = true;
    let stuck = net.say(0, &[]);
    let slot = (0..3)
        .find(|slot| {
            let mut net = Net::full(3, 2, 7);
            net.say(0, b"x");
            net.run(SECOND / 10);
            net.exits.keys().any(|(at, _)| at == slot)
        })
        .unwrap();
    net.stuck.push((slot, stuck));
    let flowing = net.say(0, &[]);
    let mut sent = 0;
    let end = net.now + 20 * SECOND;
    while sent < 300_000 && net.now < end {
        for conn in [stuck, flowing] {
            let room = net.client(0).mux.room(conn).min(8000);
            net.client(0).mux.write(conn, &vec![7; room]);
            if conn == flowing {
                sent += room;
            }
        }
        net.run(SECOND / 50);
    }
    let got = net.node(PartyRef::Client(0)).got.get(&flowing).map_or(0, Vec::len);
    assert!(got > 200_000, "{got}");
}

/// The transcript of a run in which one of two clients sends, as lengths and virtual times.
fn transcript(speaker: u16) -> Vec<(Duration, PartyRef, usize)> {
    let mut net = Net::full(4, 2, 8);
    net.say(speaker, &pattern(3000, 1));
    net.run(SECOND / 2);
    assert_eq!(net.exits.values().map(Vec::len).sum::<usize>(), 3000);
    net.transcript
}

#[test]
fn either_of_two_senders_leaves_the_same_transcript() {
    let (first, second) = (transcript(1), transcript(3));
    assert_eq!(first, second);
    assert!(first.len() > 1000);
}

#[test]
fn a_round_is_answered_once_and_never_over_two_sets() {
    let mut net = Net::full(3, 2, 9);
    net.say(0, b"hello");
    net.run(SECOND / 10);
    let heard = net.clients_heard[&PartyRef::Client(0)].clone();
    let interval = heard.iter().find(|body| cepa::dcnet::member::parse_interval(body).is_ok());
    let interval = interval.unwrap().clone();
    let down = heard.iter().rfind(|body| body.len() < 100).unwrap().clone();
    let mut rng = StdRng::seed_from_u64(1);
    let again = net.client(0).handle_message(kind::DOWN, &down, &mut rng);
    assert!(matches!(again, Err(DcnetError::OutOfPlace { .. })), "{again:?}");
    let again = net.client(0).handle_message(kind::INTERVAL, &interval, &mut rng);
    assert!(again.is_err());
    // The same interval without one client: the signatures do not cover it.
    let (_, mut signed) = cepa::dcnet::member::parse_interval(&interval).unwrap();
    signed.interval.clients.pop();
    signed.interval.number += 1;
    let forged = [&interval[..32], &signed.to_bytes()].concat();
    let refused = net.client(0).handle_message(kind::INTERVAL, &forged, &mut rng);
    assert!(matches!(refused, Err(DcnetError::BadProof { .. })), "{refused:?}");
    // A client that starts anew has a new nonce: the old interval is not its own.
    net.leave(PartyRef::Client(0));
    net.join(PartyRef::Client(0));
    let replayed = net.client(0).handle_message(kind::INTERVAL, &interval, &mut rng);
    assert!(replayed.is_err());
}

#[test]
fn a_set_too_small_is_refused_and_an_intersection_too_small_silences() {
    let mut small = net::settings();
    small.min_anonymity_set = 3;
    let mut net = Net::new(6, 2, small, 10);
    for at in 0..2 {
        net.join(PartyRef::Trustee(at));
        net.join(PartyRef::Client(at));
    }
    net.run(SECOND);
    assert_eq!(net.relay.status().interval, None, "two are too few");
    net.join(PartyRef::Client(2));
    net.run(SECOND / 2);
    assert_eq!(net.relay.status().interval.unwrap().1, [0, 1, 2]);
    net.say(0, b"spoken among 0, 1, 2");
    net.run(SECOND / 2);
    for (old, new) in [(1, 3), (2, 4)] {
        net.join(PartyRef::Client(new));
        net.run(SECOND / 2);
        net.leave(PartyRef::Client(old));
        net.run(SECOND / 2);
    }
    let events = &net.node(PartyRef::Client(0)).events;
    assert!(events.contains(&ClientEvent::Paused(2)), "{events:?}");
    let heard = |net: &Net| net.exits.values().map(Vec::len).sum::<usize>();
    let before = heard(&net);
    net.say(0, b"not to be heard");
    net.run(SECOND / 2);
    assert_eq!(heard(&net), before);
    // A relay that breaks the link does not make it forget.
    net.relink(PartyRef::Client(0));
    net.run(SECOND / 2);
    net.say(0, b"nor now");
    net.run(SECOND / 2);
    assert_eq!(heard(&net), before);
    // Nor does the end of its program.
    net.restart(PartyRef::Client(0));
    net.run(SECOND / 2);
    net.say(0, b"nor with a new program");
    net.run(SECOND / 2);
    assert_eq!(heard(&net), before);
    for back in [1, 2] {
        net.join(PartyRef::Client(back));
        net.run(SECOND / 2);
    }
    let events = &net.node(PartyRef::Client(0)).events;
    assert!(events.contains(&ClientEvent::Resumed(3)), "{events:?}");
    assert!(heard(&net) > before);
}

/// The relay tells all clients the same, and what it has for one slot does not open. Whose slot
/// it is must not show: the owner goes on as everybody else does.
#[test]
fn a_frame_that_does_not_open_moves_no_owner() {
    let mut net = Net::full(4, 2, 12);
    net.echo = true;
    let conn = net.say(2, &pattern(60_000, 3));
    net.run(SECOND / 200);
    let got = net.node(PartyRef::Client(2)).got[&conn].len();
    let mut left = 4;
    net.bend = Some(Box::new(move |_, kind, body| {
        if left > 0 && kind == kind::DOWN && body.len() > 200 {
            *body.last_mut().unwrap() ^= 1;
            left -= 1;
        }
    }));
    net.transcript.clear();
    net.run(Duration::from_millis(2));
    let events = &net.node(PartyRef::Client(2)).events;
    assert!(events.contains(&ClientEvent::Garbled), "{events:?}");
    assert!(net.node(PartyRef::Client(2)).got[&conn].len() < got + 20_000);
    let sent_by = |at| -> Vec<(Duration, usize)> {
        let own = net.transcript.iter().filter(|(_, party, _)| *party == PartyRef::Client(at));
        own.map(|(at, _, len)| (*at, *len)).collect()
    };
    // This relay signs what it meant to say, so in the end all of them leave, and at once.
    assert!(sent_by(2).len() > 2);
    for at in 0..4 {
        let (error, owners) =
            (&net.node(PartyRef::Client(at)).error, &net.node(PartyRef::Client(2)).error);
        assert_eq!(error, owners, "client {at}");
        assert_eq!(sent_by(at), sent_by(2), "client {at}");
    }
}

/// A pseudonym with open connections fills its turns even when it has nothing to say; one without
/// leaves them empty, as an absent member's are.
#[test]
fn an_open_slot_is_never_seen_to_be_idle() {
    let mut net = Net::full(4, 2, 13);
    net.say(1, b"once");
    net.run(SECOND / 5);
    let (open, closed) = (net.slot(1), net.slot(2));
    let mut turns = [0, 0];
    net.run(SECOND);
    for body in &net.clients_heard[&PartyRef::Client(0)] {
        let Ok(down) = Down::parse(body, net::settings().cell_size) else { continue };
        let Some(cell) = net.cells.get(&(down.number, down.round)) else { continue };
        let empty = cell.iter().all(|byte| *byte == 0);
        if down.next_slot == open && down.round > 100 {
            turns[0] += 1;
            assert!(!empty, "round {}", down.round);
        } else if down.next_slot == closed {
            turns[1] += 1;
            assert!(empty, "round {}", down.round);
        }
    }
    assert!(turns[0] > 3 && turns[1] > 0, "{turns:?}");
    assert_eq!(net.relay.status().counters.cells, 1, "idle cells are no data");
}

/// The longest time in which nothing came out at the exit, until so many bytes have.
fn longest_pause(net: &mut Net, bytes: usize) -> Duration {
    let (mut last, mut longest) = ((net.now, 0), Duration::ZERO);
    let done = net.run_until(20 * SECOND, |net| {
        let total: usize = net.exits.values().map(Vec::len).sum();
        longest = longest.max(net.now - last.0);
        if total > last.1 {
            last = (net.now, total);
        }
        total >= bytes
    });
    assert!(done, "{:?}", net.relay.status());
    longest
}

#[test]
fn a_hung_client_or_two_hold_the_others_up_for_less_than_a_second() {
    for hung in [&[3][..], &[3, 4]] {
        let mut net = Net::full(5, 2, 16);
        net.say(0, &pattern(60_000, 1));
        net.run(SECOND / 200);
        hung.iter().for_each(|at| net.hang(PartyRef::Client(*at)));
        let longest = longest_pause(&mut net, 60_000);
        assert!(longest < Duration::from_millis(850), "{longest:?}");
        let out: Vec<PartyRef> = net.disconnected.iter().map(|(party, _)| *party).collect();
        assert_eq!(out, hung.iter().map(|at| PartyRef::Client(*at)).collect::<Vec<_>>());
    }
}

/// A path that takes long is no hung party, and neither is one that waits for a relay which was
/// itself stopped.
#[test]
fn who_is_far_away_has_more_time_and_a_relay_that_was_stopped_leaves_nobody_out() {
    let mut net = Net::full(4, 2, 17);
    net.delay = Duration::from_millis(60);
    net.echo = true;
    net.say(0, &pattern(20_000, 1));
    net.run(3 * SECOND);
    net.hang(PartyRef::Client(3));
    net.run(SECOND * 9 / 10);
    net.resume(PartyRef::Client(3));
    net.run(SECOND / 2);
    assert_eq!(net.disconnected, []);
    net.delay = Duration::from_micros(100);
    net.run(20 * SECOND);
    net.say(1, &pattern(20_000, 1));
    net.run(SECOND / 100);
    let late = net.now + 5 * SECOND;
    net.relay.handle_timeout(late);
    net.now = late;
    net.run(SECOND);
    assert_eq!(net.disconnected, []);
}

/// On a path of 20 ms an echo takes a round trip and what lies between two turns; one round trip more
/// where the slot has to ask. An answer is followed by a turn, so who speaks again waits for less.
#[test]
fn on_a_long_path_a_turn_is_never_far_and_an_answer_is_followed_by_one() {
    let mut net = Net::full(6, 2, 18);
    net.delay = Duration::from_millis(10);
    net.echo = true;
    let echo = |net: &mut Net, at: u16| {
        let said = net.now;
        let conn = net.say(at, &pattern(40, 1));
        let is_back = |net: &Net| {
            net.node(PartyRef::Client(at)).got.get(&conn).is_some_and(|got| got.len() == 40)
        };
        assert!(net.run_until(SECOND, |net| is_back(net)), "{:?}", net.relay.status());
        net.now - said
    };
    // What the path was before is forgotten, and the window grows.
    net.run(6 * SECOND);
    for _ in 0..20 {
        echo(&mut net, 0);
    }
    let (mut open, mut asked) = (Vec::new(), Vec::new());
    for pause in 0..40 {
        net.run(Duration::from_micros(700));
        open.push(echo(&mut net, 0));
        net.run(Duration::from_micros(700 * pause));
        asked.push(echo(&mut net, 1 + u16::try_from(pause % 5).unwrap()));
        net.run(Duration::from_micros(700 * pause));
        echo(&mut net, 0);
    }
    open.sort();
    asked.sort();
    // The turn of somebody who did not ask, every 32nd, may come between.
    assert!(open[30] < Duration::from_millis(26), "{open:?}");
    assert!(asked[30] < Duration::from_millis(50), "{asked:?}");
}

/// Slots that speak without end do not keep the others from their turns: a member whose requests
/// are jammed is heard all the same.
#[test]
fn everybody_has_a_turn_while_others_speak() {
    let mut net = Net::full(8, 2, 15);
    for at in 0..3 {
        net.say(at, &pattern(60_000, 1));
    }
    let all = net.run_until(SECOND, |net| {
        (0..8).all(|at| net.node(PartyRef::Client(at)).events.contains(&ClientEvent::FirstSlot))
    });
    assert!(all, "{:?}", net.relay.status());
    assert!(net.exits.values().map(Vec::len).sum::<usize>() < 180_000, "they had stopped");
}

#[test]
fn a_relay_cannot_leave_out_more_members_than_the_trustees_allow() {
    let mut few = net::settings();
    few.removals_per_hour = 1;
    let mut net = Net::new(5, 2, few, 14);
    net.join_all();
    net.run(SECOND / 2);
    net.leave(PartyRef::Client(4));
    net.run(SECOND / 2);
    assert_eq!(net.relay.status().interval.unwrap().1, [0, 1, 2, 3]);
    net.leave(PartyRef::Client(3));
    net.run(SECOND / 2);
    assert_eq!(net.relay.status().interval, None);
    // Nor by breaking a trustee's link: it remembers.
    for at in 0..2 {
        let trustee = PartyRef::Trustee(at);
        assert!(matches!(net.node(trustee).error, Some(DcnetError::Malformed { .. })));
        net.revive(trustee);
    }
    net.run(SECOND / 2);
    assert_eq!(net.relay.status().interval, None);
    // Nor by having them started again.
    for at in 0..2 {
        net.restart(PartyRef::Trustee(at));
    }
    net.run(SECOND / 2);
    assert_eq!(net.relay.status().interval, None);
    net.join(PartyRef::Client(3));
    for at in 0..2 {
        net.revive(PartyRef::Trustee(at));
    }
    net.run(SECOND / 2);
    assert_eq!(net.relay.status().interval.unwrap().1, [0, 1, 2, 3]);
}

#[test]
fn malformed_messages_end_only_that_link() {
    let mut rng = StdRng::seed_from_u64(11);
    for seed in 0..30 {
        let mut net = Net::full(4, 2, 11);
        net.echo = true;
        let conn = net.say(0, &pattern(2000, 5));
        let party = if seed % 2 == 0 { PartyRef::Client(3) } else { PartyRef::Client(2) };
        let mut junk = vec![0; rng.random_range(0..200)];
        rng.fill_bytes(&mut junk);
        let kind = rng.random_range(0..14);
        let now = net.now;
        if net.relay.handle_message(now, party, kind, &junk, &mut rng).is_err() {
            net.leave(party);
        }
        assert!(
            net.run_until(10 * SECOND, |net| {
                net.node(PartyRef::Client(0)).got.get(&conn).map(Vec::len) == Some(2000)
            }),
            "kind {kind}: {:?}",
            net.disconnected
        );
    }
}

/// One seeded run: a random liar among random parties; an honest party is never convicted.
fn byzantine_run(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let (clients, trustees) = (rng.random_range(2..6), rng.random_range(1..4));
    let lie = LIES[rng.random_range(0..LIES.len())];
    let liar = if rng.random_bool(0.5) {
        PartyRef::Client(rng.random_range(0..clients) as u16)
    } else {
        PartyRef::Trustee(rng.random_range(0..trustees) as u16)
    };
    let from = rng.random_range(0..100);
    let mut net = Net::with_liar(clients, trustees, seed, Some((liar, lie, from)));
    net.echo = rng.random_bool(0.5);
    net.delay = Duration::from_micros(rng.random_range(1..5000));
    for at in 0..clients {
        net.say(at as u16, &pattern(rng.random_range(0..6000), at as u8));
    }
    net.run_until(5 * SECOND, |net| !net.verdicts.is_empty());
    for (blamed, _) in &net.verdicts {
        // A client that breaks its own slot can only be silenced.
        assert!(
            *blamed == Blamed::Party(liar) || *blamed == Blamed::Nobody,
            "seed {seed}: {lie:?} by {liar}, blamed {blamed}"
        );
    }
    for (party, node) in &net.nodes {
        assert_eq!(node.error, None, "seed {seed}: {party}");
    }
    for (party, why) in &net.disconnected {
        assert!(party == &liar, "seed {seed}: {party} was left out: {why}");
    }
}

/// How many seeds: 200 here, 10,000 in the named job, by `CEPA_DCNET_BYZANTINE_RUNS`.
#[test]
fn an_honest_party_is_never_blamed() {
    let runs = std::env::var("CEPA_DCNET_BYZANTINE_RUNS").map_or(200, |runs| runs.parse().unwrap());
    let next = AtomicU64::new(0);
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= runs {
                return;
            }
            byzantine_run(seed);
            if seed % 1000 == 999 {
                println!("{} of {runs} runs", seed + 1);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
}
