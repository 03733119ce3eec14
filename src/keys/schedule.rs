//! The key schedule: from shared secrets to the keys of one hop and of one link.
//!
//! In: the secrets of a handshake. Out: [`HopKeys`], [`PairKeys`]. Called by: the handshake.
//!
//! HKDF-SHA256 (RFC 5869); every key has a label of its own, and none serves two directions or
//! two purposes.

use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use zeroize::ZeroizeOnDrop;

use crate::model::Suite;

const HOP_LABEL: &[u8] = b"cepa-hop-v1 ";
const PAIR_LABEL: &[u8] = b"cepa-pair-v1 ";

/// The keys of one hop, shared by the client and that hop. Suites with shorter keys use a prefix.
#[derive(Clone, ZeroizeOnDrop)]
pub struct HopKeys {
    /// The suite of the layers.
    #[zeroize(skip)]
    pub suite: Suite,
    pub(super) fwd_aead: [u8; 32],
    pub(super) fwd_salt: [u8; 12],
    pub(super) fwd_fill: [u8; 16],
    pub(super) bwd_aead: [u8; 32],
    pub(super) bwd_aead_salt: [u8; 12],
    pub(super) bwd_stream: [u8; 32],
    pub(super) bwd_stream_salt: [u8; 12],
    pub(super) confirm: [u8; 32],
    pub(super) status: [u8; 32],
    pub(super) consent: [u8; 32],
}

/// The keys of one link, shared by its two ends.
#[derive(Clone, ZeroizeOnDrop)]
pub struct PairKeys {
    /// The suite of the link tags.
    #[zeroize(skip)]
    pub link_suite: Suite,
    pub(super) bwd: [u8; 32],
    pub(super) ctl_fwd: [u8; 32],
    pub(super) ctl_bwd: [u8; 32],
    pub(super) created: [u8; 32],
}

/// What a node needs to install a circuit in its data path.
pub struct RelayKeys {
    /// The layers shared with the client.
    pub hop: HopKeys,
    /// The link towards the client.
    pub pair: PairKeys,
    /// BLAKE3 of the CREATE prefix.
    pub create: [u8; 32],
}

impl HopKeys {
    /// Derives the keys of a hop: `ikm` is the concatenation of the shared secrets, `transcript`
    /// the salt.
    pub fn derive(suite: Suite, transcript: &[u8; 32], ikm: &[u8]) -> Self {
        let prk = Salt::new(HKDF_SHA256, transcript).extract(ikm);
        let label = |label| expand_chunk::<32>(&prk, HOP_LABEL, label);
        Self {
            suite,
            fwd_aead: label(b"fwd-aead"),
            fwd_salt: expand_chunk(&prk, HOP_LABEL, b"fwd-salt"),
            fwd_fill: expand_chunk(&prk, HOP_LABEL, b"fwd-fill"),
            bwd_aead: label(b"bwd-aead"),
            bwd_aead_salt: expand_chunk(&prk, HOP_LABEL, b"bwd-aead-salt"),
            bwd_stream: label(b"bwd-stream"),
            bwd_stream_salt: expand_chunk(&prk, HOP_LABEL, b"bwd-stream-salt"),
            confirm: label(b"confirm"),
            status: label(b"status"),
            consent: label(b"consent"),
        }
    }
}

impl PairKeys {
    /// Derives the keys of a link from its pair key.
    pub fn derive(link_suite: Suite, pair: &[u8; 32]) -> Self {
        let prk = Salt::new(HKDF_SHA256, &[]).extract(pair);
        let label = |label| expand_chunk::<32>(&prk, PAIR_LABEL, label);
        Self {
            link_suite,
            bwd: label(b"pair-bwd"),
            ctl_fwd: label(b"pair-ctl-fwd"),
            ctl_bwd: label(b"pair-ctl-bwd"),
            created: label(b"pair-created"),
        }
    }
}

impl std::fmt::Debug for HopKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HopKeys(redacted)")
    }
}

impl std::fmt::Debug for PairKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PairKeys(redacted)")
    }
}

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

fn expand_chunk<const N: usize>(prk: &Prk, prefix: &[u8], label: &[u8]) -> [u8; N] {
    let mut out = [0u8; N];
    let info = [prefix, label];
    // Fails only for outputs above 255 hash lengths; ours have 32 bytes at most.
    let filled = prk.expand(&info, Length(N)).and_then(|okm| okm.fill(&mut out));
    assert!(filled.is_ok(), "HKDF-SHA256 gives {N} bytes");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hop_keys_have_known_answers() {
        let keys = HopKeys::derive(Suite::Aes128Gcm, &[1; 32], &[2; 96]);
        assert_eq!(
            hex::encode(keys.fwd_aead),
            hkdf_reference(&[1; 32], &[2; 96], b"cepa-hop-v1 fwd-aead", 32)
        );
        assert_eq!(
            hex::encode(keys.bwd_stream_salt),
            hkdf_reference(&[1; 32], &[2; 96], b"cepa-hop-v1 bwd-stream-salt", 12)
        );
    }

    #[test]
    fn no_two_labels_give_one_key() {
        let keys = HopKeys::derive(Suite::Aes128Gcm, &[1; 32], &[2; 96]);
        let pair = PairKeys::derive(Suite::Aes128Gcm, &[3; 32]);
        let all = [
            keys.fwd_aead,
            keys.bwd_aead,
            keys.bwd_stream,
            keys.confirm,
            keys.status,
            keys.consent,
            pair.bwd,
            pair.ctl_fwd,
            pair.ctl_bwd,
            pair.created,
        ];
        for (index, key) in all.iter().enumerate() {
            assert!(!all[index + 1..].contains(key));
        }
    }

    /// HKDF written out from HMAC, independent of the library's own HKDF.
    fn hkdf_reference(salt: &[u8], ikm: &[u8], info: &[u8], length: usize) -> String {
        use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};
        let prk = sign(&Key::new(HMAC_SHA256, salt), ikm);
        let mut message = info.to_vec();
        message.push(1);
        hex::encode(&sign(&Key::new(HMAC_SHA256, prk.as_ref()), &message).as_ref()[..length])
    }
}
