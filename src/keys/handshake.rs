//! The pieces of the CREATE handshake that are cryptography: MACs, cookies, transcript, status.
//!
//! In: bytes of CREATE and its answers, derived keys. Out: MACs, sealed values, checks.
//! Called by: circuit, which knows the messages.
//!
//! "MAC" is keyed BLAKE3, 16 bytes. All comparisons take constant time.

use std::time::{Duration, Instant};

use aws_lc_rs::{
    digest::{Context, SHA256},
    hmac,
};
use rand::Rng;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{
    HopKeys, PairKeys,
    aead::{BadTag, CounterAead},
};
use crate::model::{CELL_LEN, CID_LEN, Direction, NodeId, SEQ_LEN, SLOT_LEN, Suite, TAG_LEN};

/// A keyed MAC.
pub const MAC_LEN: usize = 16;
/// A cookie in clear.
pub const COOKIE_LEN: usize = 16;
/// The OAEP label of a CREATE.
pub const OAEP_LABEL: &[u8] = b"cepa-create-v1";

const TRANSCRIPT_LABEL: &[u8] = b"cepa-transcript-v1";
const MAC1_CONTEXT: &str = "cepa-create-mac1-v1";
const COOKIE_CONTEXT: &str = "cepa-cookie-seal-v1";

/// Proof that a CREATE's sender receives at its address.
pub type Cookie = [u8; COOKIE_LEN];

/// SHA-256 over what both ends saw of a handshake.
pub fn transcript(
    node: &NodeId,
    onion_key_id: &[u8; 8],
    create_prefix: &[u8],
    node_ephemeral: &[u8; 32],
) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    for part in
        [TRANSCRIPT_LABEL, node.as_bytes(), onion_key_id, create_prefix, node_ephemeral.as_slice()]
    {
        context.update(part);
    }
    let mut out = [0u8; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

/// The first MAC of a CREATE: whoever knows the node's identity can make it, noise cannot.
pub fn mac1(node: &NodeId, bytes: &[u8]) -> [u8; MAC_LEN] {
    mac(&blake3::derive_key(MAC1_CONTEXT, node.as_bytes()), &[bytes])
}

/// The second MAC of a CREATE, under a cookie.
pub fn mac2(cookie: &Cookie, bytes: &[u8]) -> [u8; MAC_LEN] {
    let mut key = Zeroizing::new([0u8; 32]);
    key[..COOKIE_LEN].copy_from_slice(cookie);
    mac(&key, &[bytes])
}

/// A node's secret for cookies; drawn anew every two minutes, the previous one still accepted.
pub struct CookieJar {
    secret: Zeroizing<[u8; 32]>,
    previous: Zeroizing<[u8; 32]>,
    drawn: Instant,
}

impl CookieJar {
    const LIFE: Duration = Duration::from_secs(120);

    /// Draws the first secret.
    pub fn new(now: Instant, rng: &mut impl Rng) -> Self {
        let (mut secret, mut previous) = (Zeroizing::new([0; 32]), Zeroizing::new([0; 32]));
        rng.fill_bytes(&mut *secret);
        rng.fill_bytes(&mut *previous);
        Self { secret, previous, drawn: now }
    }

    /// The cookie of a source address.
    pub fn cookie(&mut self, now: Instant, source: &[u8], rng: &mut impl Rng) -> Cookie {
        let age = now.saturating_duration_since(self.drawn);
        if age > Self::LIFE {
            self.previous = std::mem::replace(&mut self.secret, Zeroizing::new([0; 32]));
            rng.fill_bytes(&mut *self.secret);
            if age > Self::LIFE * 2 {
                rng.fill_bytes(&mut *self.previous);
            }
            self.drawn = now;
        }
        mac(&self.secret, &[source])
    }

    /// Whether `mac2` proves a cookie that this jar gave to `source`.
    pub fn proves(
        &self,
        now: Instant,
        source: &[u8],
        covered: &[u8],
        proof: &[u8; MAC_LEN],
    ) -> bool {
        // While nobody needs a cookie no secret is drawn, and the last one grows old.
        let age = now.saturating_duration_since(self.drawn);
        [(&self.secret, Self::LIFE * 2), (&self.previous, Self::LIFE)].into_iter().any(
            |(secret, life)| {
                age <= life && mac2(&mac(secret, &[source]), covered).ct_eq(proof).into()
            },
        )
    }
}

/// Seals a cookie to whoever sent the CREATE with this `mac1`.
pub fn seal_cookie(
    node: &NodeId,
    salt: &[u8; 32],
    mac1: &[u8; MAC_LEN],
    cookie: &Cookie,
) -> [u8; 32] {
    let mut sealed = [0u8; 32];
    sealed[..COOKIE_LEN].copy_from_slice(cookie);
    let (plain, tag) = sealed.split_at_mut(COOKIE_LEN);
    tag.copy_from_slice(&cookie_aead(node, salt).seal(0, mac1, plain));
    sealed
}

/// Opens a sealed cookie.
///
/// # Errors
/// When it was not sealed by this node for this CREATE.
pub fn open_cookie(
    node: &NodeId,
    salt: &[u8; 32],
    mac1: &[u8; MAC_LEN],
    sealed: &[u8; 32],
) -> Result<Cookie, BadTag> {
    let (plain, tag) = sealed.split_at(COOKIE_LEN);
    let mut cookie: Cookie = plain.try_into().map_err(|_| BadTag)?;
    let tag = tag.try_into().map_err(|_| BadTag)?;
    cookie_aead(node, salt).open(0, mac1, tag, &mut cookie)?;
    Ok(cookie)
}

fn cookie_aead(node: &NodeId, salt: &[u8; 32]) -> CounterAead {
    let key = blake3::keyed_hash(&blake3::derive_key(COOKIE_CONTEXT, node.as_bytes()), salt);
    CounterAead::new(Suite::ChaCha20Poly1305, key.as_bytes(), [0; 12])
}

impl HopKeys {
    /// Proves to the client that the node derived these keys.
    pub fn confirmation(&self, transcript: &[u8; 32]) -> [u8; 32] {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &self.confirm), transcript);
        let mut out = [0u8; 32];
        out.copy_from_slice(tag.as_ref());
        out
    }

    /// Whether `confirmation` is this transcript's.
    pub fn confirms(&self, transcript: &[u8; 32], confirmation: &[u8; 32]) -> bool {
        self.confirmation(transcript).ct_eq(confirmation).into()
    }

    /// Seals the status of a CREATED to the client.
    pub fn seal_status(&self, status: [u8; 16]) -> [u8; 32] {
        let mut sealed = [0u8; 32];
        sealed[..16].copy_from_slice(&status);
        let (plain, tag) = sealed.split_at_mut(16);
        tag.copy_from_slice(&self.status_aead().seal(0, &[], plain));
        sealed
    }

    /// Opens the status of a CREATED.
    ///
    /// # Errors
    /// When it was not sealed under these keys.
    pub fn open_status(&self, sealed: &[u8; 32]) -> Result<[u8; 16], BadTag> {
        let (plain, tag) = sealed.split_at(16);
        let mut status: [u8; 16] = plain.try_into().map_err(|_| BadTag)?;
        self.status_aead().open(0, &[], tag.try_into().map_err(|_| BadTag)?, &mut status)?;
        Ok(status)
    }

    fn status_aead(&self) -> CounterAead {
        // One status per handshake, so one nonce. Always ChaCha20-Poly1305: it is rare and short.
        CounterAead::new(Suite::ChaCha20Poly1305, &self.status, [0; 12])
    }
}

impl PairKeys {
    /// The MAC of a CREATED, for the previous neighbour.
    pub fn created_mac(&self, bytes: &[u8]) -> [u8; MAC_LEN] {
        mac(&self.created, &[bytes])
    }

    /// Whether `proof` is the MAC of these bytes.
    pub fn proves_created(&self, bytes: &[u8], proof: &[u8; MAC_LEN]) -> bool {
        self.created_mac(bytes).ct_eq(proof).into()
    }

    /// What the two ends of this link tell each other without the client.
    pub fn control(&self, direction: Direction) -> PairControl {
        let key = match direction {
            Direction::Forward => &self.ctl_fwd,
            Direction::Backward => &self.ctl_bwd,
        };
        PairControl(CounterAead::new(Suite::ChaCha20Poly1305, key, [0; 12]))
    }
}

/// One direction of the neighbours' own messages.
pub struct PairControl(CounterAead);

impl PairControl {
    /// The bit that tells a neighbour cell's counter from a data counter, which starts at 30 random
    /// bits and never reaches it.
    pub const SEQ_BIT: u32 = 0x8000_0000;

    const SEALED_AT: usize = CID_LEN + SLOT_LEN;

    /// Whether a cell with this first counter is a neighbour cell.
    pub const fn is_neighbour_seq(seq: u32) -> bool {
        seq & Self::SEQ_BIT != 0
    }

    /// Seals the plaintext at bytes 36.. of a cell whose circuit id is written.
    pub fn seal(&self, seq: u32, cell: &mut [u8; CELL_LEN]) {
        let seq = seq | Self::SEQ_BIT;
        let (head, sealed) = cell.split_at_mut(Self::SEALED_AT);
        let tag = self.0.seal(seq, &head[..CID_LEN], sealed);
        head[CID_LEN..CID_LEN + SEQ_LEN].copy_from_slice(&seq.to_be_bytes());
        head[CID_LEN + SEQ_LEN..].copy_from_slice(&tag);
    }

    /// Opens a neighbour cell in place and returns its plaintext.
    ///
    /// # Errors
    /// When it was not sealed by the neighbour.
    pub fn open<'cell>(&self, cell: &'cell mut [u8; CELL_LEN]) -> Result<&'cell mut [u8], BadTag> {
        let (head, sealed) = cell.split_at_mut(Self::SEALED_AT);
        let (cid, slot) = head.split_at(CID_LEN);
        let (seq, tag) = slot.split_first_chunk::<SEQ_LEN>().ok_or(BadTag)?;
        let tag: &[u8; TAG_LEN] = tag.try_into().map_err(|_| BadTag)?;
        self.0.open(u32::from_be_bytes(*seq), cid, tag, sealed)?;
        Ok(sealed)
    }
}

fn mac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; MAC_LEN] {
    let mut hasher = blake3::Hasher::new_keyed(key);
    for part in parts {
        hasher.update(part);
    }
    let mut out = [0u8; MAC_LEN];
    out.copy_from_slice(&hasher.finalize().as_bytes()[..MAC_LEN]);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    fn node() -> NodeId {
        NodeId::from_bytes([4; 32])
    }

    #[test]
    fn macs_and_transcript_have_known_answers() {
        assert_eq!(hex::encode(mac1(&node(), b"create")), include_str!("vector_mac1.hex").trim());
        assert_eq!(
            hex::encode(transcript(&node(), &[1; 8], b"prefix", &[2; 32])),
            hex::encode(<sha2::Sha256 as sha2::Digest>::digest(
                [b"cepa-transcript-v1".as_slice(), &[4; 32], &[1; 8], b"prefix", &[2; 32]].concat()
            ))
        );
    }

    #[test]
    fn a_cookie_proves_its_source_for_two_lives() {
        let (start, mut rng) = (Instant::now(), StdRng::seed_from_u64(1));
        let mut jar = CookieJar::new(start, &mut rng);
        let cookie = jar.cookie(start, b"10.77.0.1:5000", &mut rng);
        let proof = mac2(&cookie, b"covered");
        let life = |lives: u32| start + CookieJar::LIFE * lives;
        let proves = |jar: &CookieJar, now| jar.proves(now, b"10.77.0.1:5000", b"covered", &proof);
        assert!(proves(&jar, start));
        assert!(!jar.proves(start, b"10.77.0.2:5000", b"covered", &proof));
        assert!(!jar.proves(start, b"10.77.0.1:5000", b"changed", &proof));
        jar.cookie(life(2), b"", &mut rng);
        assert!(proves(&jar, life(2)));
        jar.cookie(life(4), b"", &mut rng);
        assert!(!proves(&jar, life(4)));
    }

    #[test]
    fn a_cookie_ends_while_nobody_asks_for_another() {
        let (start, mut rng) = (Instant::now(), StdRng::seed_from_u64(1));
        let mut jar = CookieJar::new(start, &mut rng);
        let proof = mac2(&jar.cookie(start, b"source", &mut rng), b"covered");
        let later = start + CookieJar::LIFE * 2;
        assert!(jar.proves(later, b"source", b"covered", &proof));
        let too_late = later + Duration::from_secs(1);
        assert!(!jar.proves(too_late, b"source", b"covered", &proof));
        jar.cookie(too_late, b"another", &mut rng);
        assert!(!jar.proves(too_late, b"source", b"covered", &proof));
    }

    proptest! {
        #[test]
        fn cookies_open_for_their_create_only(salt: [u8; 32], mac: [u8; 16], cookie: Cookie, bit in 0usize..256) {
            let mut sealed = seal_cookie(&node(), &salt, &mac, &cookie);
            prop_assert_eq!(open_cookie(&node(), &salt, &mac, &sealed), Ok(cookie));
            sealed[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(open_cookie(&node(), &salt, &mac, &sealed), Err(BadTag));
        }

        #[test]
        fn neighbour_cells_open_in_their_direction_only(pair: [u8; 32], seq: u32, bit in 0usize..CELL_LEN * 8) {
            let keys = PairKeys::derive(Suite::Aes128Gcm, &pair);
            let mut cell = [0x11u8; CELL_LEN];
            keys.control(Direction::Forward).seal(seq, &mut cell);
            let (mut other, mut changed) = (cell, cell);
            changed[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(keys.control(Direction::Backward).open(&mut other).is_err());
            prop_assert!(keys.control(Direction::Forward).open(&mut changed).is_err());
            let plain = keys.control(Direction::Forward).open(&mut cell);
            prop_assert_eq!(plain.map(|plain| plain.iter().all(|byte| *byte == 0x11)), Ok(true));
        }
    }
}
