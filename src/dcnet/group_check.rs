//! Do the files of a group agree: every id, key, proof, signature and shuffle.
//!
//! In: `system.json`, `session.json`, `pseudonym.json` as parsed. Out: a [`Group`], or the file
//! and field that is wrong. Called by: [`crate::dcnet::store`] at the start of every party.

use curve25519_dalek::{RistrettoPoint, Scalar};
use zeroize::Zeroizing;

use crate::dcnet::{
    error::DcnetError,
    group::{Group, Pseudonyms, Session, SessionClient, SessionPrivate, System},
    hex::Hex,
    identity::{PartyId, PublicKey},
    proof::{self, Schnorr},
    shuffle,
};

fn session_error(field: String, problem: impl Into<String>) -> DcnetError {
    DcnetError::config("session.json", field, problem)
}

impl Group {
    /// Checks everything against everything.
    ///
    /// # Errors
    /// The first file and field that does not hold.
    pub fn check(
        system: System,
        session: Session,
        pseudonyms: &Pseudonyms,
    ) -> Result<Self, DcnetError> {
        let (relay, clients, trustees) = system.keys()?;
        let group_id = system.group_id();
        let other_group = |file: &str, got: &Hex<32>| {
            DcnetError::config(
                file,
                "group-id",
                format!("expected {} (the hash of system.json), got {got}", Hex(group_id)),
            )
        };
        if session.group_id.0 != group_id {
            return Err(other_group("session.json", &session.group_id));
        }
        if pseudonyms.group_id.0 != group_id {
            return Err(other_group("pseudonym.json", &pseudonyms.group_id));
        }
        let (client_keys, pseudonym_keys) = check_clients(&session, &clients, &group_id)?;
        let trustee_keys = check_trustees(&session, &trustees, &group_id)?;
        let expected = Session::compute_id(&group_id, &session.clients, &session.trustees);
        if session.session_id != expected {
            return Err(session_error(
                "session-id".into(),
                format!(
                    "expected {expected} (the hash of the session), got {}",
                    session.session_id
                ),
            ));
        }
        let slots = check_pseudonyms(&session, pseudonyms, &trustees, &pseudonym_keys)?;
        Ok(Self {
            system,
            session,
            group_id,
            relay,
            clients,
            trustees,
            client_keys,
            trustee_keys,
            slots,
        })
    }

    /// The place of a client.
    pub fn client_index(&self, id: &PartyId) -> Option<usize> {
        self.system.clients.iter().position(|entry| entry.id == *id)
    }

    /// The place of a trustee.
    pub fn trustee_index(&self, id: &PartyId) -> Option<usize> {
        self.system.trustees.iter().position(|entry| entry.id == *id)
    }

    /// The slot whose key is `secret` on the shuffled base.
    pub fn own_slot(&self, secret: &Scalar) -> Option<usize> {
        let own = secret * self.slots.base;
        self.slots.keys.iter().position(|key| *key == own)
    }
}

impl SessionPrivate {
    /// The Diffie-Hellman secret.
    ///
    /// # Errors
    /// When the bytes are no canonical scalar.
    pub fn scalar(&self) -> Result<Zeroizing<Scalar>, DcnetError> {
        parse_scalar(&self.id, "secret", &self.secret)
    }

    /// The pseudonym secret.
    ///
    /// # Errors
    /// When there is none, or its bytes are no canonical scalar.
    pub fn pseudonym(&self) -> Result<Zeroizing<Scalar>, DcnetError> {
        let file = format!("{}-*.json", self.id);
        let secret = self.pseudonym_secret.as_ref().ok_or_else(|| {
            DcnetError::config(file, "pseudonym-secret", "is missing; only a client's file has one")
        })?;
        parse_scalar(&self.id, "pseudonym-secret", secret)
    }
}

fn parse_scalar(
    id: &PartyId,
    field: &str,
    bytes: &Hex<32>,
) -> Result<Zeroizing<Scalar>, DcnetError> {
    let scalar = Scalar::from_canonical_bytes(bytes.0).into_option().map(Zeroizing::new);
    scalar.filter(|scalar| **scalar != Scalar::ZERO).ok_or_else(|| {
        DcnetError::config(format!("{id}-*.json"), field, "is not a canonical, non-zero scalar")
    })
}

fn possession(key: &Hex<32>, proof_bytes: &Hex<64>, context: &[u8]) -> Option<RistrettoPoint> {
    let base = RistrettoPoint::mul_base(&Scalar::ONE);
    let point = proof::point(&key.0)?;
    Schnorr::from_bytes(&proof_bytes.0)?.verify(&point, &base, context).then_some(point)
}

type Keys = Vec<RistrettoPoint>;

fn check_clients(
    session: &Session,
    identities: &[PublicKey],
    group_id: &[u8; 32],
) -> Result<(Keys, Keys), DcnetError> {
    if session.clients.len() != identities.len() {
        return Err(session_error(
            "clients".into(),
            format!("expected {} entries, got {}", identities.len(), session.clients.len()),
        ));
    }
    let (mut keys, mut pseudonym_keys) = (Vec::new(), Vec::new());
    for (at, (entry, identity)) in session.clients.iter().zip(identities).enumerate() {
        let field = |name: &str| format!("clients[{at}].{name}");
        if entry.id != identity.id() {
            return Err(session_error(
                field("id"),
                format!("expected {} as in system.json, got {}", identity.id(), entry.id),
            ));
        }
        let context = SessionClient::context(group_id, &entry.id);
        let proven = |key: &Hex<32>, at: usize, name: &str| {
            possession(key, &entry.proofs[at], &context)
                .ok_or_else(|| session_error(field(name), "its proof of possession does not hold"))
        };
        keys.push(proven(&entry.key, 0, "key")?);
        let pseudonym = proven(&entry.pseudonym_key, 1, "pseudonym-key")?;
        if pseudonym_keys.contains(&pseudonym) {
            return Err(session_error(field("pseudonym-key"), "is there twice"));
        }
        pseudonym_keys.push(pseudonym);
        if !identity.verify("session", &entry.signed(group_id), &entry.signature.0) {
            return Err(session_error(field("signature"), "is not by this member"));
        }
    }
    Ok((keys, pseudonym_keys))
}

fn check_trustees(
    session: &Session,
    identities: &[PublicKey],
    group_id: &[u8; 32],
) -> Result<Keys, DcnetError> {
    if session.trustees.len() != identities.len() {
        return Err(session_error(
            "trustees".into(),
            format!("expected {} entries, got {}", identities.len(), session.trustees.len()),
        ));
    }
    let mut keys = Vec::new();
    for (at, (entry, identity)) in session.trustees.iter().zip(identities).enumerate() {
        let field = |name: &str| format!("trustees[{at}].{name}");
        if entry.id != identity.id() {
            return Err(session_error(
                field("id"),
                format!("expected {} as in system.json, got {}", identity.id(), entry.id),
            ));
        }
        let context =
            crate::dcnet::group::SessionTrustee::context(group_id, &entry.id, &entry.nonce);
        keys.push(
            possession(&entry.key, &entry.proof, &context).ok_or_else(|| {
                session_error(field("key"), "its proof of possession does not hold")
            })?,
        );
        if !identity.verify("session", &entry.signed(group_id), &entry.signature.0) {
            return Err(session_error(field("signature"), "is not by this trustee"));
        }
    }
    Ok(keys)
}

fn check_pseudonyms(
    session: &Session,
    pseudonyms: &Pseudonyms,
    trustees: &[PublicKey],
    pseudonym_keys: &[RistrettoPoint],
) -> Result<shuffle::KeyList, DcnetError> {
    let wrong =
        |field: String, problem: String| DcnetError::config("pseudonym.json", field, problem);
    if pseudonyms.session_id != session.session_id {
        return Err(wrong(
            "session-id".into(),
            format!("expected {}, got {}", session.session_id, pseudonyms.session_id),
        ));
    }
    if pseudonyms.steps.len() != trustees.len() {
        return Err(wrong(
            "steps".into(),
            format!(
                "expected one shuffle by each of {} trustees, got {}",
                trustees.len(),
                pseudonyms.steps.len()
            ),
        ));
    }
    for (at, (step, trustee)) in pseudonyms.steps.iter().zip(trustees).enumerate() {
        if step.trustee != trustee.id() {
            return Err(wrong(
                format!("steps[{at}].trustee"),
                format!("expected {}, got {}", trustee.id(), step.trustee),
            ));
        }
        if !trustee.verify("shuffle", &step.signed(&session.session_id.0), &step.signature.0) {
            return Err(wrong(format!("steps[{at}].signature"), "is not by this trustee".into()));
        }
    }
    let slots = shuffle::verify_all(&session.session_id.0, pseudonym_keys, &pseudonyms.steps)?;
    let same = proof::bytes(&slots.base) == pseudonyms.base.0
        && slots.keys.len() == pseudonyms.slots.len()
        && slots.keys.iter().zip(&pseudonyms.slots).all(|(key, slot)| proof::bytes(key) == slot.0);
    if !same {
        return Err(wrong("slots".into(), "expected the last shuffle's base and keys".into()));
    }
    Ok(slots)
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::dcnet::{
        ceremony::{self, Files, Plan},
        group::Settings,
        identity::Identity,
    };

    fn files() -> Files {
        let plan = Plan {
            clients: 3,
            trustees: 2,
            host: "relay".into(),
            port: 1,
            settings: Settings::default(),
        };
        ceremony::generate(&plan, &mut StdRng::seed_from_u64(5)).unwrap()
    }

    fn field(files: Files) -> String {
        match Group::check(files.system, files.session, &files.pseudonyms) {
            Err(DcnetError::Config { file, field, .. }) => format!("{file}: {field}"),
            Err(error) => error.to_string(),
            Ok(_) => "no complaint".into(),
        }
    }

    #[test]
    fn a_generated_group_holds_and_everybody_has_one_slot() {
        let files = files();
        let group =
            Group::check(files.system.clone(), files.session.clone(), &files.pseudonyms).unwrap();
        let mut slots: Vec<usize> = files.sessions[..3]
            .iter()
            .map(|session| group.own_slot(&session.pseudonym().unwrap()).unwrap())
            .collect();
        slots.sort_unstable();
        assert_eq!(slots, [0, 1, 2]);
    }

    /// Twice the victim's key would, after the shuffle, stand at twice the victim's slot key.
    #[test]
    fn a_multiple_of_anothers_key_is_refused() {
        let mut files = files();
        let victim = proof::point(&files.session.clients[0].pseudonym_key.0).unwrap();
        let attacker = Identity::from_secret(&files.parties[1].secret.0);
        let group = files.system.group_id();
        let entry = &mut files.session.clients[1];
        entry.pseudonym_key = Hex(proof::bytes(&(victim + victim)));
        entry.signature = attacker.sign("session", &entry.signed(&group));
        assert_eq!(field(files), "session.json: clients[1].pseudonym-key");
    }

    #[test]
    fn a_forged_shuffle_is_refused_by_name() {
        let mut files = files();
        let trustee = Identity::from_secret(&files.parties[3].secret.0);
        let session = files.session.session_id.0;
        let step = &mut files.pseudonyms.steps[0];
        step.keys.swap(0, 1);
        step.signature = trustee.sign("shuffle", &step.signed(&session));
        let told = field(files);
        assert!(told.contains("shuffle") && told.contains(&trustee.id().to_string()), "{told}");
    }

    #[test]
    fn a_step_by_nobody_and_a_missing_step_are_refused() {
        let mut unsigned = files();
        unsigned.pseudonyms.steps[1].signature = Hex([1; 64]);
        assert_eq!(field(unsigned), "pseudonym.json: steps[1].signature");
        let mut missing = files();
        missing.pseudonyms.steps.pop();
        assert_eq!(field(missing), "pseudonym.json: steps");
        let mut other = files();
        other.session.session_id.0[0] ^= 1;
        assert_eq!(field(other), "session.json: session-id");
    }
}
