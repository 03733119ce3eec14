//! CREATE and CREATED, from both ends.
//!
//! In: a hop and randomness, or a CREATE prefix and the node's keys. Out: messages and derived keys.
//! Called by: the client's and the node's circuits; the node's side runs on a thread of its own.

use rand::Rng;
use zeroize::Zeroizing;

use super::HandshakeError;
use crate::{
    keys::{
        HopKeys, Identity, MAC_LEN, OAEP_LABEL, OnionKey, PairKeys, PublicIdentity, mac1, mac2,
        open_cookie, transcript,
    },
    model::{Hop, Suite},
    wire::{ANSWER_LEN, Answer, CreatePrefix, OAEP_LEN, OaepPlain, Status},
};

/// A client's half of a handshake with one hop, until the answer comes.
pub struct ClientHandshake {
    hop: Hop,
    ephemeral: OnionKey,
    plain: OaepPlain,
    prefix: CreatePrefix,
}

impl ClientHandshake {
    /// Draws fresh secrets for `hop`; `link_suite` is for the link in front of it.
    ///
    /// # Errors
    /// When the hop's public keys do not read.
    pub fn start(hop: Hop, link_suite: Suite, rng: &mut impl Rng) -> Result<Self, HandshakeError> {
        let mut plain = OaepPlain { secret: [0; 32], pair: [0; 32], suite: hop.suite, link_suite };
        rng.fill_bytes(&mut plain.secret);
        rng.fill_bytes(&mut plain.pair);
        let ephemeral = OnionKey::generate(rng)?;
        let identity = PublicIdentity::from_spki_der(&hop.identity_spki)?;
        let sealed = identity.encrypt_oaep(plain.emit().as_slice(), OAEP_LABEL)?;
        let sealed: &[u8; OAEP_LEN] =
            sealed.as_slice().try_into().map_err(|_| HandshakeError::Block)?;
        let mut prefix = CreatePrefix::new(hop.onion_key_id, *ephemeral.public(), sealed);
        prefix.set_mac1(mac1(&hop.id, prefix.before_mac1()));
        // Without a cookie there is nothing to prove, and zeros would look alike on every link.
        let mut unproved = [0; MAC_LEN];
        rng.fill_bytes(&mut unproved);
        prefix.set_mac2(unproved);
        Ok(Self { hop, ephemeral, plain, prefix })
    }

    /// What goes to the node.
    pub fn prefix(&self) -> &CreatePrefix {
        &self.prefix
    }

    /// The key of the link in front of the hop.
    pub fn pair(&self) -> &[u8; 32] {
        &self.plain.pair
    }

    /// The suite of that link.
    pub fn link_suite(&self) -> Suite {
        self.plain.link_suite
    }

    /// Takes in a cookie: starts anew, with proof of the sender's address. Nothing of this CREATE
    /// is used again, because the node may have accepted a copy of it all the same.
    ///
    /// # Errors
    /// When the cookie was not sealed for this CREATE.
    pub fn handle_cookie(
        &self,
        salt: &[u8; 32],
        sealed: &[u8; 32],
        rng: &mut impl Rng,
    ) -> Result<Self, HandshakeError> {
        let cookie = open_cookie(&self.hop.id, salt, &self.prefix.mac1(), sealed)
            .map_err(|_| HandshakeError::Cookie)?;
        let mut anew = Self::start(self.hop.clone(), self.plain.link_suite, rng)?;
        anew.prefix.set_mac2(mac2(&cookie, anew.prefix.before_mac2()));
        Ok(anew)
    }

    /// Takes in a CREATED and derives the keys.
    ///
    /// # Errors
    /// When the node does not confirm, or refuses.
    pub fn handle_created(
        &self,
        node_ephemeral: &[u8; 32],
        confirmation: &[u8; 32],
        sealed_status: &[u8; 32],
    ) -> Result<HopKeys, HandshakeError> {
        let transcript = transcript(
            &self.hop.id,
            &self.hop.onion_key_id,
            self.prefix.as_bytes(),
            node_ephemeral,
        );
        let keys = derive(
            self.plain.suite,
            &transcript,
            &*self.ephemeral.agree(node_ephemeral)?,
            &*self.ephemeral.agree(&self.hop.onion_key)?,
            &self.plain.secret,
        );
        if !keys.confirms(&transcript, confirmation) {
            return Err(HandshakeError::Confirmation);
        }
        let status = keys.open_status(sealed_status).map_err(|_| HandshakeError::Confirmation)?;
        match Status::parse(&status) {
            Status::Open => Ok(keys),
            Status::Refused(reason) => Err(HandshakeError::Refused(reason)),
        }
    }
}

/// A node's half of a handshake, done.
pub struct NodeHandshake {
    /// The keys shared with the client.
    pub hop: HopKeys,
    /// The keys shared with the previous neighbour.
    pub pair: PairKeys,
    /// What goes back.
    pub answer: [u8; ANSWER_LEN],
}

/// Answers a CREATE: one RSA private operation and two X25519 agreements.
///
/// # Errors
/// When the block does not open or an agreement is degenerate.
pub fn respond(
    identity: &Identity,
    onion_key: &OnionKey,
    prefix: &CreatePrefix,
    status: Status,
    rng: &mut impl Rng,
) -> Result<NodeHandshake, HandshakeError> {
    let block = identity.decrypt_oaep(prefix.oaep(), OAEP_LABEL)?;
    let plain = OaepPlain::parse(&block).ok_or(HandshakeError::Block)?;
    let ephemeral = OnionKey::generate(rng)?;
    let transcript =
        transcript(&identity.id(), &prefix.onion_key_id(), prefix.as_bytes(), ephemeral.public());
    let hop = derive(
        plain.suite,
        &transcript,
        &*ephemeral.agree(&prefix.ephemeral())?,
        &*onion_key.agree(&prefix.ephemeral())?,
        &plain.secret,
    );
    let pair = PairKeys::derive(plain.link_suite, &plain.pair);
    let mut answer = [0u8; ANSWER_LEN];
    let mut created = Answer::Created {
        ephemeral: *ephemeral.public(),
        confirmation: hop.confirmation(&transcript),
        sealed_status: hop.seal_status(status.emit()),
        mac: [0; 16],
    };
    created.emit(&mut answer);
    if let Answer::Created { mac, .. } = &mut created {
        *mac = pair.created_mac(Answer::before_mac(&answer));
    }
    created.emit(&mut answer);
    Ok(NodeHandshake { hop, pair, answer })
}

fn derive(
    suite: Suite,
    transcript: &[u8; 32],
    ephemeral: &[u8; 32],
    onion: &[u8; 32],
    secret: &[u8; 32],
) -> HopKeys {
    let mut ikm = Zeroizing::new([0u8; 96]);
    ikm[..32].copy_from_slice(ephemeral);
    ikm[32..64].copy_from_slice(onion);
    ikm[64..].copy_from_slice(secret);
    HopKeys::derive(suite, transcript, ikm.as_slice())
}

#[cfg(test)]
mod tests;
