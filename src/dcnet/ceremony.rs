//! How a group comes to be: identities, a session, the shuffles, the first interval.
//!
//! In: how many, where the relay is, the settings, randomness. Out: all the files of
//! [`crate::dcnet::group`], or one step of them when each party makes its own.
//! Called by: `cepa dcnet config`, tests and the bench.

use curve25519_dalek::{RistrettoPoint, Scalar};
use rand::Rng;
use zeroize::Zeroizing;

use crate::dcnet::{
    error::DcnetError,
    group::{
        PartyEntry, PrivateFile, Pseudonyms, RelayEntry, Session, SessionClient, SessionPrivate,
        SessionTrustee, Settings, System,
    },
    hex::Hex,
    identity::Identity,
    interval::{Interval, Member, SignedInterval},
    proof,
    shuffle::{self, KeyList, ShuffleStep},
};

/// What a new group is made of.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Members.
    pub clients: usize,
    /// Trustees.
    pub trustees: usize,
    /// Host of the relay.
    pub host: String,
    /// Port of the relay.
    pub port: u16,
    /// What all do alike.
    pub settings: Settings,
}

/// Everything `cepa dcnet config` writes.
pub struct Files {
    /// `system.json`
    pub system: System,
    /// `session.json`
    pub session: Session,
    /// `pseudonym.json`
    pub pseudonyms: Pseudonyms,
    /// `interval.json`
    pub interval: SignedInterval,
    /// `relay.json`
    pub relay: PrivateFile,
    /// `{id}.json` of clients, then trustees.
    pub parties: Vec<PrivateFile>,
    /// `{id}-{session}.json` of clients, then trustees.
    pub sessions: Vec<SessionPrivate>,
}

/// The private file of an identity.
pub fn private_file(identity: &Identity) -> PrivateFile {
    PrivateFile { id: identity.id(), secret: Hex(*identity.secret()) }
}

/// Adds one trustee's shuffle.
pub fn shuffle_step(
    session: &Session,
    steps: &[ShuffleStep],
    trustee: &Identity,
    rng: &mut impl Rng,
) -> Result<ShuffleStep, DcnetError> {
    let members = session
        .clients
        .iter()
        .enumerate()
        .map(|(at, client)| {
            proof::point(&client.pseudonym_key.0).ok_or_else(|| {
                DcnetError::config(
                    "session.json",
                    format!("clients[{at}].pseudonym-key"),
                    "is not a Ristretto point",
                )
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    let input = shuffle::verify_all(&session.session_id.0, &members, steps)?;
    Ok(shuffled(session, &input, trustee, rng).0)
}

/// A trustee's shuffle of `input`, and the list after it.
fn shuffled(
    session: &Session,
    input: &KeyList,
    trustee: &Identity,
    rng: &mut impl Rng,
) -> (ShuffleStep, KeyList) {
    let context = shuffle::step_context(&session.session_id.0, &trustee.id());
    let (output, proof_bytes) = shuffle::prove(&context, input, rng);
    let mut step = ShuffleStep {
        trustee: trustee.id(),
        base: Hex(proof::bytes(&output.base)),
        keys: output.keys.iter().map(|key| Hex(proof::bytes(key))).collect(),
        proof: proof_bytes,
        signature: Hex([0; 64]),
    };
    step.signature = trustee.sign("shuffle", &step.signed(&session.session_id.0));
    (step, output)
}

/// Makes every file of a group at once, for one machine.
///
/// # Errors
/// When the plan asks for no clients, no trustees, or more than fit.
pub fn generate(plan: &Plan, rng: &mut impl Rng) -> Result<Files, DcnetError> {
    let relay = Identity::generate(rng);
    let clients: Vec<Identity> = (0..plan.clients).map(|_| Identity::generate(rng)).collect();
    let trustees: Vec<Identity> = (0..plan.trustees).map(|_| Identity::generate(rng)).collect();
    let entry = |identity: &Identity| PartyEntry {
        id: identity.id(),
        key: Hex(identity.public().to_bytes()),
    };
    let system = System {
        version: 1,
        relay: RelayEntry {
            host: plan.host.clone(),
            port: plan.port,
            key: Hex(relay.public().to_bytes()),
        },
        clients: clients.iter().map(entry).collect(),
        trustees: trustees.iter().map(entry).collect(),
        settings: plan.settings.clone(),
    };
    system.keys()?;
    let group = system.group_id();
    let mut sessions = Vec::new();
    let mut session_clients = Vec::new();
    for identity in &clients {
        let (entry, [secret, pseudonym]) = SessionClient::generate(&group, identity, rng);
        sessions.push((entry.id, secret, Some(pseudonym)));
        session_clients.push(entry);
    }
    let mut session_trustees = Vec::new();
    for identity in &trustees {
        let (entry, secret) = SessionTrustee::generate(&group, identity, rng);
        sessions.push((entry.id, secret, None));
        session_trustees.push(entry);
    }
    let session_id = Session::compute_id(&group, &session_clients, &session_trustees);
    let session = Session {
        group_id: Hex(group),
        session_id,
        clients: session_clients,
        trustees: session_trustees,
    };
    let pseudonyms = shuffle_all(&session, &trustees, rng)?;
    let interval = first_interval(&system, &session, &trustees);
    let hexed = |scalar: Zeroizing<Scalar>| Hex(scalar.to_bytes());
    Ok(Files {
        system,
        session,
        pseudonyms,
        interval,
        relay: private_file(&relay),
        parties: clients.iter().chain(&trustees).map(private_file).collect(),
        sessions: sessions
            .into_iter()
            .map(|(id, secret, pseudonym)| SessionPrivate {
                id,
                session_id,
                secret: hexed(secret),
                pseudonym_secret: pseudonym.map(hexed),
            })
            .collect(),
    })
}

fn shuffle_all(
    session: &Session,
    trustees: &[Identity],
    rng: &mut impl Rng,
) -> Result<Pseudonyms, DcnetError> {
    // The steps before are not verified again here: this program made them itself.
    let mut list = KeyList {
        base: RistrettoPoint::mul_base(&Scalar::ONE),
        keys: session
            .clients
            .iter()
            .filter_map(|client| proof::point(&client.pseudonym_key.0))
            .collect(),
    };
    let mut steps = Vec::new();
    for trustee in trustees {
        let step;
        (step, list) = shuffled(session, &list, trustee, rng);
        steps.push(step);
    }
    Ok(finish(session, steps, &list))
}

/// `pseudonym.json` once every trustee has shuffled.
pub fn finish(session: &Session, steps: Vec<ShuffleStep>, list: &KeyList) -> Pseudonyms {
    Pseudonyms {
        group_id: session.group_id,
        session_id: session.session_id,
        steps,
        base: Hex(proof::bytes(&list.base)),
        slots: list.keys.iter().map(|key| Hex(proof::bytes(key))).collect(),
    }
}

/// Interval 0: everybody, as the source has it; the modern wire counts on from it.
fn first_interval(system: &System, session: &Session, trustees: &[Identity]) -> SignedInterval {
    let all = |count: usize| {
        (0..count)
            .map(|at| Member { index: u16::try_from(at).unwrap_or(u16::MAX), nonce: [0; 16] })
            .collect()
    };
    let interval = Interval {
        group: session.group_id.0,
        session: session.session_id.0,
        number: 0,
        cell_size: u16::try_from(system.settings.cell_size).unwrap_or(u16::MAX),
        window: u16::try_from(system.settings.client_window).unwrap_or(u16::MAX),
        clients: all(system.clients.len()),
        trustees: all(system.trustees.len()),
    };
    let signatures =
        trustees.iter().map(|trustee| trustee.sign("interval", &interval.to_bytes()).0).collect();
    SignedInterval { interval, signatures }
}
