//! A client that jams, for the bench: it flips bits of other slots and signs what it sent.
//!
//! In: a client's secrets. Out: disrupted rounds, until a verdict ends its link.
//! Called by: the bench.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use rand::Rng;

use crate::{
    dcnet::{
        client::Client,
        member::{self, CHECK_EVERY, Chain},
        message::{self, Share, kind},
    },
    dcnet_run::{
        party::{Secrets, in_thread},
        party_link::PartyLink,
    },
};

/// Joins, behaves until told to jam, and jams from then on; ends with its link.
///
/// # Errors
/// When its link ends.
pub async fn run(
    secrets: Secrets,
    slot: u16,
    pseudonym: zeroize::Zeroizing<curve25519_dalek::Scalar>,
    jam: Arc<AtomicBool>,
) -> anyhow::Result<()> {
    let member = secrets.member();
    let link = secrets.link(member.nonce).await?;
    let client = Client::new(member, slot, pseudonym, &mut rand::rng());
    in_thread(move || bend(&secrets, link, client, &jam)).await?
}

fn bend(
    secrets: &Secrets,
    mut link: PartyLink,
    mut client: Client,
    jam: &AtomicBool,
) -> anyhow::Result<()> {
    // Of the interval that runs, and of the one that is prepared meanwhile.
    let (mut hash, mut chain, mut number) = ([0; 32], Chain([0; 32]), 0);
    let mut prepared = hash;
    let cell_size = secrets.group.system.settings.cell_size;
    let mut plain = Vec::new();
    loop {
        link.receive(&mut plain)?;
        let mut rest = plain.as_slice();
        while let Some((what, body, used)) = message::next_frame(rest)? {
            if what == kind::INTERVAL {
                prepared = member::parse_interval(body)?.1.interval.hash();
            }
            client.handle_message(what, body, &mut rand::rng())?;
            while client.poll_event().is_some() {}
            rest = &rest[used..];
        }
        plain.clear();
        let (mut honest, mut out) = (Vec::new(), Vec::new());
        client.poll_transmit(&mut honest);
        client.settle(&mut rand::rng());
        let mut rest = honest.as_slice();
        while let Some((what, body, used)) = message::next_frame(rest)? {
            rest = &rest[used..];
            match what {
                kind::UP => {
                    let share = Share::parse(body, cell_size)?;
                    if share.number != number {
                        (number, hash, chain) = (share.number, prepared, Chain::new(&prepared));
                    }
                    let mut cell = share.slot.as_ref().map(|(_, cell)| cell.to_vec());
                    if let Some(cell) = &mut cell
                        && jam.load(Ordering::Relaxed)
                    {
                        rand::rng().fill_bytes(&mut cell[..16]);
                    }
                    let slot = share.slot.as_ref().map(|(key, _)| *key).zip(cell.as_deref());
                    let bent = Share { slot, ..share.clone() }.to_bytes();
                    message::frame(&mut out, kind::UP, &[&bent]);
                    chain.push(&bent);
                    if share.round % CHECK_EVERY == CHECK_EVERY - 1 {
                        let signed = chain.signed(&hash, share.round);
                        let signature = secrets.identity.sign("check", &signed);
                        let parts: [&[u8]; 3] =
                            [&share.number.to_be_bytes(), &share.round.to_be_bytes(), &signature.0];
                        message::frame(&mut out, kind::CHECK, &parts);
                    }
                }
                kind::CHECK => {}
                _ => message::frame(&mut out, what, &[body]),
            }
        }
        link.send(&out)?;
    }
}
