//! How an uploader and a downloader agree on the keys between them, past tracker and exits.
//!
//! In: the keys and notes that the tracker carried. Out: the secrets of one session.
//! Called by: peer_run.
//!
//! ```text
//! downloader -> tracker -> uploader    X25519 key D | note: version
//! uploader -> tracker -> downloader    X25519 key U | note: version, and for a catalogue entry
//!                                      sharer's Ed25519 key 32, signature 64 over id, D and U
//! session secret = KDF(X25519(D, U), link secret or nothing, id, D, U)
//! ```
//!
//! A tracker that puts its own keys between the two cannot compute the session secret of a link
//! share (it lacks the link's secret), nor sign for the sharer of a catalogue entry.

use std::fmt;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use rand::Rng;
use zeroize::{ZeroizeOnDrop, Zeroizing};

use super::link::LinkSecret;
use crate::keys::{KeyError, OnionKey};

const VERSION: u8 = 1;
const SESSION: &str = "cepa peer session v1";
const SIGNED: &[u8] = b"cepa uploader v1";
/// A sharer's public key, in bytes.
pub const SHARER_KEY_LEN: usize = 32;
const SIGNATURE_LEN: usize = 64;

/// Why two peers do not agree.
#[derive(Debug, thiserror::Error)]
pub enum AgreementError {
    /// The other peer's note is of another version, or broken.
    #[error("expected a note of version {VERSION}, got {0} bytes of something else")]
    Note(usize),
    /// The signature over the uploader's key does not hold.
    #[error("the uploader's signature does not hold; the tracker or an exit may be lying")]
    Signature,
    /// An X25519 key is of no use, or the cryptographic library fails.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A stored key is broken.
    #[error("expected the 32-byte seed of an Ed25519 key")]
    Seed,
}

/// Who shares: the key that catalogue entries carry.
pub struct Sharer(Ed25519KeyPair);

impl fmt::Debug for Sharer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sharer(redacted)")
    }
}

impl Sharer {
    /// The sharer of a seed.
    ///
    /// # Errors
    /// [`AgreementError::Seed`] if the library refuses it.
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self, AgreementError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| AgreementError::Seed)?;
        Ok(Self(pair))
    }

    /// The public key.
    pub fn public(&self) -> [u8; SHARER_KEY_LEN] {
        let mut key = [0; SHARER_KEY_LEN];
        key.copy_from_slice(self.0.public_key().as_ref());
        key
    }
}

/// The secrets of one session, one for each way.
#[derive(Clone, PartialEq, Eq, ZeroizeOnDrop)]
pub struct SessionSecrets {
    /// From the downloader to the uploader.
    pub to_uploader: [u8; 32],
    /// From the uploader to the downloader.
    pub to_downloader: [u8; 32],
}

impl fmt::Debug for SessionSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionSecrets(redacted)")
    }
}

fn signed(id: &[u8; 32], downloader: &[u8; 32], uploader: &[u8; 32]) -> Vec<u8> {
    [SIGNED, id, downloader, uploader].concat()
}

fn secrets(
    agreed: &[u8; 32],
    secret: Option<&LinkSecret>,
    [id, downloader, uploader]: [&[u8; 32]; 3],
) -> SessionSecrets {
    let none = LinkSecret([0; 32]);
    let mut hasher = blake3::Hasher::new_derive_key(SESSION);
    for part in [agreed, &secret.unwrap_or(&none).0, id, downloader, uploader] {
        hasher.update(part);
    }
    let mut both = Zeroizing::new([0; 64]);
    hasher.finalize_xof().fill(both.as_mut());
    let mut made = SessionSecrets { to_uploader: [0; 32], to_downloader: [0; 32] };
    made.to_uploader.copy_from_slice(&both[..32]);
    made.to_downloader.copy_from_slice(&both[32..]);
    made
}

/// The downloader's half: one per request, whatever number of uploaders answers.
pub struct Asking {
    id: [u8; 32],
    secret: Option<LinkSecret>,
    key: OnionKey,
}

impl Asking {
    /// Draws the key of a request for `id`.
    ///
    /// # Errors
    /// If the cryptographic library fails.
    pub fn new(
        id: [u8; 32],
        secret: Option<LinkSecret>,
        rng: &mut impl Rng,
    ) -> Result<Self, KeyError> {
        Ok(Self { id, secret, key: OnionKey::generate(rng)? })
    }

    /// The public key that the tracker carries.
    pub fn public(&self) -> [u8; 32] {
        *self.key.public()
    }

    /// What goes with it.
    pub fn note(&self) -> Vec<u8> {
        vec![VERSION]
    }

    /// Takes an uploader's answer: the secrets, and for a catalogue entry the key of who signed it.
    ///
    /// # Errors
    /// If the note is broken or its signature does not hold.
    pub fn agree(
        &self,
        uploader: &[u8; 32],
        note: &[u8],
    ) -> Result<(SessionSecrets, Option<[u8; SHARER_KEY_LEN]>), AgreementError> {
        let Some((&VERSION, proof)) = note.split_first() else {
            return Err(AgreementError::Note(note.len()));
        };
        let mut sharer = None;
        if self.secret.is_none() {
            let (key, signature) = proof
                .split_first_chunk::<SHARER_KEY_LEN>()
                .filter(|(_, signature)| signature.len() == SIGNATURE_LEN)
                .ok_or(AgreementError::Note(note.len()))?;
            let message = signed(&self.id, self.key.public(), uploader);
            UnparsedPublicKey::new(&ED25519, key)
                .verify(&message, signature)
                .map_err(|_| AgreementError::Signature)?;
            sharer = Some(*key);
        }
        let agreed = self.key.agree(uploader)?;
        let ends = [&self.id, self.key.public(), uploader];
        Ok((secrets(&agreed, self.secret.as_ref(), ends), sharer))
    }
}

/// The uploader's half, all at once.
#[derive(Debug)]
pub struct Answer {
    /// The public key that the tracker carries back.
    pub public: [u8; 32],
    /// What goes with it.
    pub note: Vec<u8>,
    /// What is agreed.
    pub secrets: SessionSecrets,
}

/// Answers a downloader's key and note. A link share is known by its `secret`, anything else is
/// signed by `sharer`.
///
/// # Errors
/// If the downloader's note is broken or its key of no use.
pub fn answer(
    id: [u8; 32],
    secret: Option<&LinkSecret>,
    sharer: &Sharer,
    (downloader, note): (&[u8; 32], &[u8]),
    rng: &mut impl Rng,
) -> Result<Answer, AgreementError> {
    if note.first() != Some(&VERSION) {
        return Err(AgreementError::Note(note.len()));
    }
    let key = OnionKey::generate(rng)?;
    let public = *key.public();
    let agreed = key.agree(downloader)?;
    let mut note = vec![VERSION];
    if secret.is_none() {
        note.extend_from_slice(&sharer.public());
        note.extend_from_slice(sharer.0.sign(&signed(&id, downloader, &public)).as_ref());
    }
    let secrets = secrets(&agreed, secret, [&id, downloader, &public]);
    Ok(Answer { public, note, secrets })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    const ID: [u8; 32] = [3; 32];

    fn sharer() -> Sharer {
        Sharer::from_seed(&[9; 32]).unwrap()
    }

    fn asking(secret: Option<LinkSecret>, rng: &mut StdRng) -> Asking {
        Asking::new(ID, secret, rng).unwrap()
    }

    #[test]
    fn both_agree() {
        let rng = &mut StdRng::seed_from_u64(1);
        for secret in [None, Some(LinkSecret([5; 32]))] {
            let asking = asking(secret.clone(), rng);
            let hello = (&asking.public(), &asking.note()[..]);
            let answer = answer(ID, secret.as_ref(), &sharer(), hello, rng).unwrap();
            let (agreed, signer) = asking.agree(&answer.public, &answer.note).unwrap();
            assert_eq!(signer, secret.is_none().then(|| sharer().public()));
            assert_eq!(agreed, answer.secrets);
            assert_ne!(agreed.to_uploader, agreed.to_downloader);
            assert_eq!(answer.note.len() > 1, secret.is_none(), "a link share names nobody");
        }
    }

    #[test]
    fn a_tracker_in_the_middle_gets_nowhere() {
        let rng = &mut StdRng::seed_from_u64(2);
        let evil = Sharer::from_seed(&[6; 32]).unwrap();
        let asked = asking(None, rng);
        let hello = (&asked.public(), &asked.note()[..]);
        let forged = answer(ID, None, &evil, hello, rng).unwrap();
        let (_, signer) = asked.agree(&forged.public, &forged.note).unwrap();
        assert_ne!(signer, Some(sharer().public()), "it cannot sign as the sharer");
        // The true signature, with another key under it.
        let honest = answer(ID, None, &sharer(), hello, rng).unwrap();
        let refused = asked.agree(&forged.public, &honest.note);
        assert!(matches!(refused, Err(AgreementError::Signature)));
        // A link share: without the secret, the secrets differ.
        let asked = asking(Some(LinkSecret([5; 32])), rng);
        let hello = (&asked.public(), &asked.note()[..]);
        let guess = answer(ID, Some(&LinkSecret([0; 32])), &evil, hello, rng).unwrap();
        let (agreed, _) = asked.agree(&guess.public, &guess.note).unwrap();
        assert_ne!(agreed, guess.secrets);
    }

    proptest! {
        #[test]
        fn any_note_is_taken_or_refused(key: [u8; 32], note: Vec<u8>, versioned: bool) {
            let rng = &mut StdRng::seed_from_u64(3);
            let note = if versioned { [&[VERSION], &note[..]].concat() } else { note };
            let _ = asking(None, rng).agree(&key, &note);
            let _ = asking(Some(LinkSecret([1; 32])), rng).agree(&key, &note);
            let _ = answer(ID, None, &sharer(), (&key, &note), rng);
        }
    }
}
