//! The keys of a bridge between two exits, and of a client's consent to one.
//!
//! In: onion keys, an ephemeral, the names of the bridge. Out: MACs, a layer per direction.
//! Called by: the exits' bridges (`forward`), the client's data path.
//!
//! ```text
//! join key  HKDF-SHA256(salt = BLAKE3(label, bridge, session, maker, receiver, ephemeral);
//!                       X25519(ephemeral, receiver's onion) | X25519(maker's onion, receiver's onion))
//! ```
//! Only the two exits of the directory can compute it; the ephemeral makes it fresh, and the onion
//! keys' daily change makes old traffic unreadable.

use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{
    HopKeys, KeyError, OnionKey,
    aead::{BadTag, CounterAead},
};
use crate::model::{CELL_LEN, CID_LEN, Cid, NodeId, SEQ_LEN, SLOT_LEN, Suite, TAG_LEN};

const LABEL: &str = "cepa bridge v1 salt";
const SEALED_AT: usize = CID_LEN + SLOT_LEN;

/// The key by which a client consents to a bridge at its exit.
#[derive(Clone)]
pub struct ConsentKey(Zeroizing<[u8; 32]>);

impl HopKeys {
    /// The key by which the client consents to bridges at this hop.
    pub fn consent_key(&self) -> ConsentKey {
        ConsentKey(Zeroizing::new(self.consent))
    }
}

impl ConsentKey {
    /// The token over the bytes of a bridge.
    pub fn token(&self, bytes: &[u8]) -> [u8; 16] {
        short_mac(&self.0, bytes)
    }

    /// Whether a token is this client's over these bytes.
    pub fn accepts(&self, bytes: &[u8], token: &[u8; 16]) -> bool {
        self.token(bytes).ct_eq(token).into()
    }
}

impl std::fmt::Debug for ConsentKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ConsentKey(redacted)")
    }
}

/// What a bridge is: its keys serve no other.
#[derive(Clone, Copy, Debug)]
pub struct BridgeNames {
    /// The id of the link between the exits.
    pub bridge: Cid,
    /// The session's 16 bytes.
    pub session: [u8; 16],
    /// The exit that joins: the uploader's.
    pub maker: NodeId,
    /// The exit that is joined: the downloader's.
    pub receiver: NodeId,
}

/// The keys of one bridge.
pub struct BridgeKeys {
    join: Zeroizing<[u8; 32]>,
    accept: Zeroizing<[u8; 32]>,
    to_receiver: BridgeLayer,
    to_maker: BridgeLayer,
}

impl BridgeKeys {
    /// The keys as the maker computes them.
    ///
    /// # Errors
    /// When a key of the receiver is a point of small order.
    pub fn of_maker(
        names: &BridgeNames,
        suite: Suite,
        own: &OnionKey,
        ephemeral: &OnionKey,
        receiver: &[u8; 32],
    ) -> Result<Self, KeyError> {
        let (fresh, standing) = (ephemeral.agree(receiver)?, own.agree(receiver)?);
        Ok(Self::derive(names, suite, ephemeral.public(), &fresh, &standing))
    }

    /// The keys as the receiver computes them.
    ///
    /// # Errors
    /// When a key of the maker is a point of small order.
    pub fn of_receiver(
        names: &BridgeNames,
        suite: Suite,
        own: &OnionKey,
        ephemeral: &[u8; 32],
        maker: &[u8; 32],
    ) -> Result<Self, KeyError> {
        let (fresh, standing) = (own.agree(ephemeral)?, own.agree(maker)?);
        Ok(Self::derive(names, suite, ephemeral, &fresh, &standing))
    }

    fn derive(
        names: &BridgeNames,
        suite: Suite,
        ephemeral: &[u8; 32],
        fresh: &[u8; 32],
        standing: &[u8; 32],
    ) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(LABEL);
        hasher.update(names.bridge.as_bytes());
        hasher.update(&names.session);
        hasher.update(names.maker.as_bytes());
        hasher.update(names.receiver.as_bytes());
        hasher.update(ephemeral);
        let mut ikm = Zeroizing::new([0; 64]);
        ikm[..32].copy_from_slice(fresh);
        ikm[32..].copy_from_slice(standing);
        let prk = Salt::new(HKDF_SHA256, hasher.finalize().as_bytes()).extract(&*ikm);
        let key = |label| Zeroizing::new(expand::<32>(&prk, label));
        let layer = |key_label, salt_label| {
            BridgeLayer(CounterAead::new(suite, &key(key_label), expand(&prk, salt_label)))
        };
        Self {
            join: key(b"join"),
            accept: key(b"accept"),
            to_receiver: layer(b"to-receiver", b"to-receiver-salt"),
            to_maker: layer(b"to-maker", b"to-maker-salt"),
        }
    }

    /// Proves that a join by tracking code is accepted: over the set-up that carries the answer.
    pub fn code_accept_mac(&self, bytes: &[u8]) -> [u8; 16] {
        short_mac(&self.accept, bytes)
    }

    /// Whether a MAC accepts over these bytes.
    pub fn proves_code_accept(&self, bytes: &[u8], mac: &[u8; 16]) -> bool {
        self.code_accept_mac(bytes).ct_eq(mac).into()
    }

    /// Proves a join.
    pub fn join_mac(&self, bytes: &[u8]) -> [u8; 16] {
        short_mac(&self.join, bytes)
    }

    /// Whether a join is proved.
    pub fn proves_join(&self, bytes: &[u8], mac: &[u8; 16]) -> bool {
        self.join_mac(bytes).ct_eq(mac).into()
    }

    /// Accepts the join.
    pub fn accept_mac(&self) -> [u8; 16] {
        short_mac(&self.accept, b"")
    }

    /// Whether the join is accepted.
    pub fn proves_accept(&self, mac: &[u8]) -> bool {
        self.accept_mac().as_slice().ct_eq(mac).into()
    }

    /// The layers of the maker: to send with, to receive with.
    pub fn maker_layers(self) -> (BridgeLayer, BridgeLayer) {
        (self.to_receiver, self.to_maker)
    }

    /// The layers of the receiver: to send with, to receive with.
    pub fn receiver_layers(self) -> (BridgeLayer, BridgeLayer) {
        (self.to_maker, self.to_receiver)
    }
}

/// One direction of a bridge: bytes 36.. of a cell, under the counter in bytes 16..20.
pub struct BridgeLayer(CounterAead);

impl BridgeLayer {
    /// Seals a cell whose circuit id and body are written.
    pub fn seal(&self, seq: u32, cell: &mut [u8; CELL_LEN]) {
        let (head, sealed) = cell.split_at_mut(SEALED_AT);
        let tag = self.0.seal(seq, &head[..CID_LEN], sealed);
        head[CID_LEN..CID_LEN + SEQ_LEN].copy_from_slice(&seq.to_be_bytes());
        head[CID_LEN + SEQ_LEN..].copy_from_slice(&tag);
    }

    /// Opens a cell in place.
    ///
    /// # Errors
    /// When the other exit did not seal it.
    pub fn open(&self, cell: &mut [u8; CELL_LEN]) -> Result<(), BadTag> {
        let (head, sealed) = cell.split_at_mut(SEALED_AT);
        let (cid, slot) = head.split_at(CID_LEN);
        let (seq, tag) = slot.split_first_chunk::<SEQ_LEN>().ok_or(BadTag)?;
        let tag: &[u8; TAG_LEN] = tag.try_into().map_err(|_| BadTag)?;
        self.0.open(u32::from_be_bytes(*seq), cid, tag, sealed)
    }
}

fn short_mac(key: &[u8; 32], bytes: &[u8]) -> [u8; 16] {
    let mut mac = [0; 16];
    mac.copy_from_slice(&blake3::keyed_hash(key, bytes).as_bytes()[..16]);
    mac
}

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

fn expand<const N: usize>(prk: &Prk, label: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    let info = [b"cepa-bridge-v1 ".as_slice(), label];
    // Fails only for outputs above 255 hash lengths; ours have 32 bytes at most.
    let filled = prk.expand(&info, Length(N)).and_then(|okm| okm.fill(&mut out));
    assert!(filled.is_ok(), "HKDF-SHA256 gives {N} bytes");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> BridgeNames {
        BridgeNames {
            bridge: Cid::from_bytes([1; 16]),
            session: [2; 16],
            maker: NodeId::from_bytes([3; 32]),
            receiver: NodeId::from_bytes([4; 32]),
        }
    }

    fn both(names_of_receiver: &BridgeNames) -> (BridgeKeys, BridgeKeys) {
        let key = |byte| OnionKey::from_secret([byte; 32]).unwrap();
        let (maker, receiver, ephemeral) = (key(5), key(6), key(7));
        let suite = Suite::ChaCha20Poly1305;
        let one =
            BridgeKeys::of_maker(&names(), suite, &maker, &ephemeral, receiver.public()).unwrap();
        let other = BridgeKeys::of_receiver(
            names_of_receiver,
            suite,
            &receiver,
            ephemeral.public(),
            maker.public(),
        )
        .unwrap();
        (one, other)
    }

    #[test]
    fn both_exits_have_the_same_keys_and_no_other_bridge_has_them() {
        let (maker, receiver) = both(&names());
        assert!(receiver.proves_join(b"x", &maker.join_mac(b"x")));
        assert!(!receiver.proves_join(b"y", &maker.join_mac(b"x")));
        assert!(maker.proves_accept(&receiver.accept_mac()));
        let (maker_send, maker_recv) = maker.maker_layers();
        let (send, recv) = receiver.receiver_layers();
        let mut cell = [9; CELL_LEN];
        maker_send.seal(7, &mut cell);
        let mut flipped = cell;
        flipped[1000] ^= 1;
        assert!(recv.open(&mut flipped).is_err());
        assert!(maker_recv.open(&mut { cell }).is_err(), "a direction of its own");
        recv.open(&mut cell).unwrap();
        assert_eq!(cell[SEALED_AT..], [9; CELL_LEN - SEALED_AT]);
        send.seal(1, &mut cell);
        maker_recv.open(&mut cell).unwrap();
        let (maker, receiver) = both(&BridgeNames { session: [8; 16], ..names() });
        assert!(!receiver.proves_join(b"x", &maker.join_mac(b"x")));
    }

    #[test]
    fn consent_is_for_the_bytes_it_was_given_for() {
        let key = HopKeys::derive(Suite::Aes128Gcm, &[1; 32], &[2; 96]).consent_key();
        let other = HopKeys::derive(Suite::Aes128Gcm, &[9; 32], &[2; 96]).consent_key();
        let token = key.token(b"bridge");
        assert!(key.accepts(b"bridge", &token));
        assert!(!key.accepts(b"bridgf", &token) && !other.accepts(b"bridge", &token));
    }
}
