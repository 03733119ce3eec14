//! Who a member is: its RSA-3072 identity, private and public, and its X25519 onion key.
//!
//! In: PKCS#8, SPKI or secret bytes, or a random source. Out: keys that sign, verify, encrypt,
//! decrypt and agree. Called by: keys (handshake, store), directory, controller, node.
//!
//! RSA is 3072 bits with e = 65537: PSS with SHA-256 and a salt of 32 bytes, OAEP with SHA-256 and
//! MGF1-SHA-256 (RFC 8017). One key has one accepted encoding, so one key has one node id.

use std::fmt;

use aws_lc_rs::{
    agreement, digest,
    encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der},
    rand::SystemRandom,
    rsa::{
        KeyPair, KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey,
        OaepPublicEncryptingKey, PrivateDecryptingKey, PublicEncryptingKey,
    },
    signature::{self, KeyPair as _, UnparsedPublicKey},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use rand::Rng;
use zeroize::Zeroizing;

use super::KeyError;
use crate::model::NodeId;

/// An RSA modulus, a signature and an OAEP ciphertext, in bytes.
pub const RSA_LEN: usize = 384;
/// The SPKI DER of an accepted public key, in bytes.
pub const SPKI_LEN: usize = 422;
/// The DER of an exponent of 65537, which ends every accepted public key.
const EXPONENT_DER: [u8; 5] = [0x02, 0x03, 0x01, 0x00, 0x01];

/// The first `N` bytes of SHA-256 of `bytes`.
fn sha256<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let hash = digest::digest(&digest::SHA256, bytes);
    let mut first = [0; N];
    first.copy_from_slice(&hash.as_ref()[..N]);
    first
}

/// A member's private identity. The key material lives in the cryptographic library, which
/// erases it when this is dropped.
pub struct Identity {
    signing: KeyPair,
    decrypting: OaepPrivateDecryptingKey,
    public: PublicIdentity,
}

impl Identity {
    /// Draws a new identity; takes up to a second on a small board.
    ///
    /// # Errors
    /// [`KeyError::Generate`] when the cryptographic library fails.
    pub fn generate() -> Result<Self, KeyError> {
        let pair = KeyPair::generate(KeySize::Rsa3072).map_err(|_| KeyError::Generate)?;
        Self::from_pkcs8(&pkcs8_of(&pair)?)
    }

    /// Takes the identity from PKCS#8 DER.
    ///
    /// # Errors
    /// [`KeyError::PrivateKey`] when it is anything but RSA of 3072 bits with e = 65537.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        let refused = |got: String| KeyError::PrivateKey { got };
        let unreadable = || refused(format!("{} bytes that are no such key", der.len()));
        let signing = KeyPair::from_pkcs8(der).map_err(|_| unreadable())?;
        let decrypting = PrivateDecryptingKey::from_pkcs8(der)
            .and_then(|key| Ok(OaepPrivateDecryptingKey::new(key)?))
            .map_err(|_| unreadable())?;
        let spki: PublicKeyX509Der = signing.public_key().as_der().map_err(|_| unreadable())?;
        let public = PublicIdentity::from_spki_der(spki.as_ref()).map_err(|error| match error {
            KeyError::PublicKey { got } => refused(format!("one whose public key is {got}")),
            other => other,
        })?;
        Ok(Self { signing, decrypting, public })
    }

    /// The PKCS#8 DER, erased when dropped.
    ///
    /// # Errors
    /// [`KeyError::Generate`] when the cryptographic library fails.
    pub fn to_pkcs8(&self) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        pkcs8_of(&self.signing)
    }

    /// The public key, SPKI DER ([`SPKI_LEN`] bytes).
    pub fn spki_der(&self) -> &[u8] {
        self.public.spki_der()
    }

    /// The public half.
    pub const fn public(&self) -> &PublicIdentity {
        &self.public
    }

    /// SHA-256 of the public key.
    pub const fn id(&self) -> NodeId {
        self.public.id
    }

    /// Signs with PSS; the signature has [`RSA_LEN`] bytes.
    ///
    /// # Errors
    /// [`KeyError::Sign`] when the cryptographic library fails.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let mut made = vec![0; RSA_LEN];
        self.signing
            .sign(&signature::RSA_PSS_SHA256, &SystemRandom::new(), message, &mut made)
            .map_err(|_| KeyError::Sign)?;
        Ok(made)
    }

    /// Opens an OAEP ciphertext of [`RSA_LEN`] bytes under `label`.
    ///
    /// # Errors
    /// [`KeyError::Decrypt`], without saying which part was wrong.
    pub fn decrypt_oaep(
        &self,
        ciphertext: &[u8],
        label: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let mut plain = Zeroizing::new(vec![0; RSA_LEN]);
        let len = self
            .decrypting
            .decrypt(&OAEP_SHA256_MGF1SHA256, ciphertext, &mut plain, Some(label))
            .map_err(|_| KeyError::Decrypt)?
            .len();
        plain.truncate(len);
        Ok(plain)
    }
}

fn pkcs8_of(pair: &KeyPair) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let der: Pkcs8V1Der = pair.as_der().map_err(|_| KeyError::Generate)?;
    Ok(Zeroizing::new(der.as_ref().to_vec()))
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({}, private part not shown)", self.id().short())
    }
}

/// A member's public identity.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicIdentity {
    spki: Vec<u8>,
    id: NodeId,
}

impl PublicIdentity {
    /// Takes the public key from SPKI DER and checks it.
    ///
    /// # Errors
    /// [`KeyError::PublicKey`] when it is anything but RSA of 3072 bits with e = 65537 in DER.
    pub fn from_spki_der(spki: &[u8]) -> Result<Self, KeyError> {
        let refused = |got: String| KeyError::PublicKey { got };
        if spki.len() != SPKI_LEN {
            return Err(refused(format!("{} bytes", spki.len())));
        }
        let key = PublicEncryptingKey::from_der(spki)
            .map_err(|_| refused("bytes that are no RSA key".into()))?;
        if key.key_size_bits() != RSA_LEN * 8 {
            return Err(refused(format!("RSA of {} bits", key.key_size_bits())));
        }
        let canonical: PublicKeyX509Der =
            key.as_der().map_err(|_| refused("a key that does not encode".into()))?;
        if canonical.as_ref() != spki {
            return Err(refused("another encoding of a key".into()));
        }
        if !spki.ends_with(&EXPONENT_DER) {
            return Err(refused("another exponent".into()));
        }
        Ok(Self { spki: spki.to_vec(), id: NodeId::from_bytes(sha256(spki)) })
    }

    /// The public key, SPKI DER ([`SPKI_LEN`] bytes).
    pub fn spki_der(&self) -> &[u8] {
        &self.spki
    }

    /// SHA-256 of the public key.
    pub const fn id(&self) -> NodeId {
        self.id
    }

    /// Checks a PSS signature over `message`.
    ///
    /// # Errors
    /// [`KeyError::Signature`] when it does not verify.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), KeyError> {
        UnparsedPublicKey::new(&signature::RSA_PSS_2048_8192_SHA256, &self.spki)
            .verify(message, signature)
            .map_err(|_| KeyError::Signature { signer: self.id.short() })
    }

    /// Encrypts at most 318 bytes with OAEP under `label`; the ciphertext has [`RSA_LEN`] bytes.
    ///
    /// # Errors
    /// [`KeyError::Encrypt`] when the plaintext is too long.
    pub fn encrypt_oaep(&self, plain: &[u8], label: &[u8]) -> Result<Vec<u8>, KeyError> {
        let refused = || KeyError::Encrypt { got: plain.len() };
        let key = PublicEncryptingKey::from_der(&self.spki).map_err(|_| refused())?;
        let key = OaepPublicEncryptingKey::new(key).map_err(|_| refused())?;
        let mut ciphertext = vec![0; RSA_LEN];
        key.encrypt(&OAEP_SHA256_MGF1SHA256, plain, &mut ciphertext, Some(label))
            .map_err(|_| refused())?;
        Ok(ciphertext)
    }

    /// The public key as PEM (`-----BEGIN PUBLIC KEY-----`, RFC 7468).
    pub fn to_pem(&self) -> String {
        let text = STANDARD.encode(&self.spki);
        let mut pem = String::from("-----BEGIN PUBLIC KEY-----\n");
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (line, after) = rest.split_at(rest.len().min(64));
            pem.push_str(line);
            pem.push('\n');
            rest = after;
        }
        pem.push_str("-----END PUBLIC KEY-----\n");
        pem
    }
}

impl fmt::Debug for PublicIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicIdentity({})", self.id.short())
    }
}

/// An X25519 key pair that CREATE cells are made for; nodes change it daily.
pub struct OnionKey {
    secret: Zeroizing<[u8; 32]>,
    private: agreement::PrivateKey,
    public: [u8; 32],
}

impl OnionKey {
    /// Draws a new key.
    ///
    /// # Errors
    /// [`KeyError::Generate`] when the cryptographic library fails.
    pub fn generate(rng: &mut impl Rng) -> Result<Self, KeyError> {
        let mut secret = Zeroizing::new([0; 32]);
        rng.fill_bytes(&mut *secret);
        Self::from_secret(*secret)
    }

    /// Takes the key from its 32 secret bytes (RFC 7748).
    ///
    /// # Errors
    /// [`KeyError::Generate`] when the cryptographic library fails.
    pub fn from_secret(secret: [u8; 32]) -> Result<Self, KeyError> {
        let secret = Zeroizing::new(secret);
        let private = agreement::PrivateKey::from_private_key(&agreement::X25519, &*secret)
            .map_err(|_| KeyError::Generate)?;
        let computed = private.compute_public_key().map_err(|_| KeyError::Generate)?;
        let public = computed.as_ref().try_into().map_err(|_| KeyError::Generate)?;
        Ok(Self { secret, private, public })
    }

    /// The 32 secret bytes, for the key file.
    pub fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// The public key.
    pub const fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// The id that CREATE cells name: the first 8 bytes of SHA-256 of the public key.
    pub fn id(&self) -> [u8; 8] {
        onion_key_id(&self.public)
    }

    /// The X25519 secret shared with the owner of `peer`.
    ///
    /// # Errors
    /// [`KeyError::Agreement`] when the result would be all zero.
    pub fn agree(&self, peer: &[u8; 32]) -> Result<Zeroizing<[u8; 32]>, KeyError> {
        let peer = agreement::UnparsedPublicKey::new(&agreement::X25519, peer);
        agreement::agree(&self.private, peer, KeyError::Agreement, |shared| {
            let mut secret = Zeroizing::new([0; 32]);
            if shared.len() != secret.len() {
                return Err(KeyError::Agreement);
            }
            secret.copy_from_slice(shared);
            Ok(secret)
        })
    }
}

/// The id of an onion key: the first 8 bytes of SHA-256 of its public key.
pub fn onion_key_id(public: &[u8; 32]) -> [u8; 8] {
    sha256(public)
}

impl fmt::Debug for OnionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnionKey(secret not shown)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rsa::{
        Oaep, RsaPrivateKey, RsaPublicKey,
        pkcs8::{DecodePrivateKey, DecodePublicKey, EncodePrivateKey, EncodePublicKey, LineEnding},
        pss::{Pss, Signature, SigningKey, VerifyingKey},
        rand_core::OsRng,
        signature::{RandomizedSigner, SignatureEncoding, Verifier},
        traits::PublicKeyParts,
    };
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::keys::test_keys::{identity, pkcs8};

    const LABEL: &[u8] = b"cepa-create-v1";

    fn independent_private() -> RsaPrivateKey {
        RsaPrivateKey::from_pkcs8_der(pkcs8(0)).unwrap()
    }

    fn independent_public() -> RsaPublicKey {
        RsaPublicKey::from_public_key_der(identity(0).spki_der()).unwrap()
    }

    /// OAEP with the label as raw bytes, which the independent crate takes as text only.
    fn oaep() -> Oaep {
        Oaep::new_with_label::<Sha256, _>(std::str::from_utf8(LABEL).unwrap())
    }

    #[test]
    fn encodings_are_those_of_the_independent_crate() {
        let public = independent_public();
        assert_eq!(public, independent_private().to_public_key());
        assert_eq!(public.size(), RSA_LEN);
        assert_eq!(public.to_public_key_der().unwrap().as_bytes(), identity(0).spki_der());
        assert_eq!(
            public.to_public_key_pem(LineEnding::LF).unwrap(),
            identity(0).public().to_pem()
        );
        let again = identity(0).to_pkcs8().unwrap();
        assert_eq!(&*again, pkcs8(0));
        assert_eq!(independent_private().to_pkcs8_der().unwrap().as_bytes(), &*again);
        assert_eq!(
            identity(0).id().as_bytes().as_slice(),
            Sha256::digest(identity(0).spki_der()).as_slice()
        );
    }

    #[test]
    fn oaep_opens_in_both_directions() {
        let plain: Vec<u8> = (0..65).collect();
        let sealed = independent_public().encrypt(&mut OsRng, oaep(), &plain).unwrap();
        assert_eq!(*identity(0).decrypt_oaep(&sealed, LABEL).unwrap(), plain);
        let sealed = identity(0).public().encrypt_oaep(&plain, LABEL).unwrap();
        assert_eq!(sealed.len(), RSA_LEN);
        assert_eq!(independent_private().decrypt(oaep(), &sealed).unwrap(), plain);
    }

    #[test]
    fn oaep_refuses_other_labels_keys_lengths_and_flipped_bits() {
        let sealed = identity(0).public().encrypt_oaep(b"secret", LABEL).unwrap();
        assert!(identity(0).decrypt_oaep(&sealed, b"cepa-create-v2").is_err());
        assert!(identity(0).decrypt_oaep(&sealed, b"").is_err());
        assert!(identity(1).decrypt_oaep(&sealed, LABEL).is_err());
        assert!(identity(0).decrypt_oaep(&sealed[1..], LABEL).is_err());
        assert!(identity(0).decrypt_oaep(&[0; RSA_LEN], LABEL).is_err());
        assert!(identity(0).decrypt_oaep(&[0xff; RSA_LEN], LABEL).is_err());
        for at in [0, 1, 100, RSA_LEN - 1] {
            let mut flipped = sealed.clone();
            flipped[at] ^= 1;
            assert!(identity(0).decrypt_oaep(&flipped, LABEL).is_err());
        }
        assert!(identity(0).public().encrypt_oaep(&[0; 318], LABEL).is_ok());
        assert!(identity(0).public().encrypt_oaep(&[0; 319], LABEL).is_err());
    }

    #[test]
    fn pss_verifies_in_both_directions() {
        let message = b"descriptor";
        let made = identity(0).sign(message).unwrap();
        assert_eq!(made.len(), RSA_LEN);
        let verifying = VerifyingKey::<Sha256>::new(independent_public());
        verifying.verify(message, &Signature::try_from(made.as_slice()).unwrap()).unwrap();
        // The independent verifier with the salt length fixed at 32.
        independent_public()
            .verify(Pss::new_with_salt::<Sha256>(32), &Sha256::digest(message), &made)
            .unwrap();
        let signing = SigningKey::<Sha256>::new_with_salt_len(independent_private(), 32);
        let made = signing.sign_with_rng(&mut OsRng, message).to_vec();
        identity(0).public().verify(message, &made).unwrap();
    }

    #[test]
    fn pss_refuses_other_salts_messages_keys_and_flipped_bits() {
        let made = identity(0).sign(b"one").unwrap();
        let public = identity(0).public();
        assert!(public.verify(b"two", &made).is_err());
        assert!(identity(1).public().verify(b"one", &made).is_err());
        assert!(public.verify(b"one", &made[..RSA_LEN - 1]).is_err());
        assert!(public.verify(b"one", &[]).is_err());
        let mut flipped = made;
        flipped[200] ^= 0x10;
        assert!(public.verify(b"one", &flipped).is_err());
        for salt in [0, 20, 64] {
            let signing = SigningKey::<Sha256>::new_with_salt_len(independent_private(), salt);
            let made = signing.sign_with_rng(&mut OsRng, b"one").to_vec();
            assert!(public.verify(b"one", &made).is_err(), "salt of {salt} bytes");
        }
    }

    #[test]
    fn other_kinds_of_keys_are_refused() {
        let small = RsaPrivateKey::new(&mut OsRng, 2048).unwrap();
        let der = small.to_pkcs8_der().unwrap();
        let error = Identity::from_pkcs8(der.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("294 bytes"), "{error}");
        assert!(Identity::from_pkcs8(&pkcs8(0)[..500]).is_err());
        assert!(Identity::from_pkcs8(&[]).is_err());

        let spki = identity(0).spki_der();
        assert_eq!(spki.len(), SPKI_LEN);
        assert!(PublicIdentity::from_spki_der(&spki[..SPKI_LEN - 1]).is_err());
        let mut longer = spki.to_vec();
        longer.push(0);
        assert!(PublicIdentity::from_spki_der(&longer).is_err());
        let mut even = spki.to_vec();
        even[SPKI_LEN - 1] = 2;
        assert!(PublicIdentity::from_spki_der(&even).is_err());
        let mut exponent = spki.to_vec();
        exponent[SPKI_LEN - 1] = 3;
        let error = PublicIdentity::from_spki_der(&exponent).unwrap_err().to_string();
        assert!(error.contains("another exponent"), "{error}");
    }

    #[test]
    fn a_generated_identity_survives_its_encoding() {
        let fresh = Identity::generate().unwrap();
        let again = Identity::from_pkcs8(&fresh.to_pkcs8().unwrap()).unwrap();
        assert_eq!(fresh.id(), again.id());
        assert_ne!(fresh.id(), identity(0).id());
        let made = again.sign(b"x").unwrap();
        fresh.public().verify(b"x", &made).unwrap();
    }

    #[test]
    fn private_parts_do_not_print() {
        let shown = format!("{:?}", identity(0));
        assert!(shown.contains(&identity(0).id().short()) && shown.len() < 60, "{shown}");
        let key = OnionKey::from_secret([7; 32]).unwrap();
        assert_eq!(format!("{key:?}"), "OnionKey(secret not shown)");
    }

    #[test]
    fn onion_keys_agree_as_rfc_7748_says() {
        // RFC 7748, section 6.1.
        let key = |text: &str| <[u8; 32]>::try_from(hex::decode(text).unwrap()).unwrap();
        let alice = OnionKey::from_secret(key(
            "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
        ))
        .unwrap();
        let bob = OnionKey::from_secret(key(
            "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
        ))
        .unwrap();
        assert_eq!(
            alice.public(),
            &key("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
        );
        assert_eq!(
            bob.public(),
            &key("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
        );
        let shared = key("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");
        assert_eq!(*alice.agree(bob.public()).unwrap(), shared);
        assert_eq!(*bob.agree(alice.public()).unwrap(), shared);
        assert_eq!(alice.id().as_slice(), &Sha256::digest(alice.public())[..8]);
    }

    #[test]
    fn points_of_low_order_are_refused() {
        let key = OnionKey::from_secret([7; 32]).unwrap();
        let mut one = [0; 32];
        one[0] = 1;
        for low in [[0; 32], one] {
            assert!(matches!(key.agree(&low), Err(KeyError::Agreement)));
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_no_key(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            prop_assert!(PublicIdentity::from_spki_der(&bytes).is_err());
            prop_assert!(Identity::from_pkcs8(&bytes).is_err());
        }

        #[test]
        fn a_key_with_one_changed_bit_has_another_id_or_none(at in 0..SPKI_LEN, bit in 0..8u8) {
            let mut spki = identity(0).spki_der().to_vec();
            spki[at] ^= 1 << bit;
            if let Ok(other) = PublicIdentity::from_spki_der(&spki) {
                prop_assert_ne!(other.id(), identity(0).id());
                prop_assert_eq!(other.spki_der(), &spki);
            }
        }
    }
}
