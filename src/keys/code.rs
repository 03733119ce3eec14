//! The layers of a tracking code: what a relay opens, and how a sender builds all of them at once.
//!
//! In: onion keys of relays, slots, a payload. Out: a code and payload that change at every relay.
//! Called by: the exits' codes (`forward`), the tracker (sealed routes).
//!
//! ```text
//! key i     X25519(b i-1, .. X25519(b 0, X25519(x, onion key i)) ..), as relay i computes from X i
//! X i+1     X25519(b i, X i)                          b i comes from key i: the set-up's key changes, too
//! open      check the mac; code | 48 zeros, plus 432 bytes of keystream: slot | code of the next
//! ```
//! What a relay appends is therefore its keystream: to others a random digit, to the sender known, so
//! that the mac of every relay covers all of the code.

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{BadTag, KeyError, OnionKey, aead::CounterAead};
use crate::model::{NodeId, Suite, TAG_LEN};

const SLOT_LEN: usize = 48;
const CODE_LEN: usize = 384;
const KEYS_LABEL: &str = "cepa tracking code v1";
const ROUTE_LABEL: &str = "cepa tracking route v1";
const ROUTE_HEAD_LEN: usize = 8 + 32 + TAG_LEN;

/// What the sender of codes and one relay share.
pub struct CodeKeys {
    code: Zeroizing<[u8; 32]>,
    payload: Zeroizing<[u8; 32]>,
    mac: Zeroizing<[u8; 32]>,
    /// Where this relay's numbers begin, so that numbers of two links cannot be matched.
    start: u32,
}

/// A relay of a route, for the sender: its keys, and the key that its set-up shows.
pub struct CodeRelayKeys {
    /// The keys.
    pub keys: CodeKeys,
    /// The key of the set-up on the link to this relay.
    pub ephemeral: [u8; 32],
}

/// What a relay finds in a set-up that is for it.
pub struct Recognised {
    /// The keys.
    pub keys: CodeKeys,
    /// The key of the set-up on the next link.
    pub next_ephemeral: [u8; 32],
}

impl CodeKeys {
    fn derive(
        relay: &NodeId,
        ephemeral: &[u8; 32],
        shared: &[u8; 32],
    ) -> (Self, Zeroizing<[u8; 32]>) {
        let mut hasher = blake3::Hasher::new_derive_key(KEYS_LABEL);
        hasher.update(relay.as_bytes());
        hasher.update(ephemeral);
        hasher.update(shared);
        let mut out = hasher.finalize_xof();
        let mut key = || {
            let mut key = Zeroizing::new([0; 32]);
            out.fill(&mut *key);
            key
        };
        let (code, payload, mac, blinding) = (key(), key(), key(), key());
        let mut start = [0; 4];
        out.fill(&mut start);
        let start = 1 + (u32::from_be_bytes(start) & 0x7fff_fffe);
        (Self { code, payload, mac, start }, blinding)
    }

    /// The number, on the link to this relay, of the sender's message `count` (from 1); nothing when
    /// they are used up.
    pub fn number(&self, count: u32) -> Option<u32> {
        self.start.checked_add(count)
    }

    /// Opens a code and its payload in place: what is left is for the next relay. A set-up has the
    /// number 0.
    ///
    /// # Errors
    /// When the sender did not make exactly this for this relay.
    pub fn open(
        &self,
        number: u32,
        mac: &[u8; 16],
        code: &mut [u8; CODE_LEN],
        payload: &mut [u8],
    ) -> Result<[u8; SLOT_LEN], BadTag> {
        if !bool::from(self.mac(number, code, payload).ct_eq(mac)) {
            return Err(BadTag);
        }
        let mut long = [0; CODE_LEN + SLOT_LEN];
        long[..CODE_LEN].copy_from_slice(code);
        add(&self.code, number, &mut long);
        add(&self.payload, number, payload);
        code.copy_from_slice(&long[SLOT_LEN..]);
        let mut slot = [0; SLOT_LEN];
        slot.copy_from_slice(&long[..SLOT_LEN]);
        Ok(slot)
    }

    fn mac(&self, number: u32, code: &[u8; CODE_LEN], payload: &[u8]) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new_keyed(&self.mac);
        hasher.update(&number.to_be_bytes()).update(code).update(payload);
        let mut mac = [0; 16];
        mac.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        mac
    }
}

/// Agrees on keys with every relay of a route, in its order, by one fresh key.
///
/// # Errors
/// When a relay's key is a point of small order.
pub fn agree_along<'a>(
    fresh: &OnionKey,
    route: impl IntoIterator<Item = (&'a NodeId, &'a [u8; 32])>,
) -> Result<Vec<CodeRelayKeys>, KeyError> {
    let mut relays: Vec<CodeRelayKeys> = Vec::new();
    let mut blindings: Vec<OnionKey> = Vec::new();
    let mut ephemeral = *fresh.public();
    for (id, onion_key) in route {
        let mut shared = fresh.agree(onion_key)?;
        for blinding in &blindings {
            shared = blinding.agree(&shared)?;
        }
        let (keys, blinding) = CodeKeys::derive(id, &ephemeral, &shared);
        let blinding = OnionKey::from_secret(*blinding)?;
        let next = *blinding.agree(&ephemeral)?;
        relays.push(CodeRelayKeys { keys, ephemeral });
        blindings.push(blinding);
        ephemeral = next;
    }
    Ok(relays)
}

/// The keys that a set-up would have for this relay; whether it is for this relay, its mac tells.
///
/// # Errors
/// When the set-up's key is a point of small order.
pub fn recognise(
    own: &OnionKey,
    id: &NodeId,
    ephemeral: &[u8; 32],
) -> Result<Recognised, KeyError> {
    let shared = own.agree(ephemeral)?;
    let (keys, blinding) = CodeKeys::derive(id, ephemeral, &shared);
    let next_ephemeral = *OnionKey::from_secret(*blinding)?.agree(ephemeral)?;
    Ok(Recognised { keys, next_ephemeral })
}

/// Builds a code over a payload, which is sealed in place. `relays` are the keys and numbers along
/// the route, 1 to 8; `slot` gives the entry of relay `i` from the mac of the one behind it. The last
/// relay could tell the length of the route by what fills its code, so `padding` is a secret of the
/// sender from which that is drawn. Returns the mac for the first relay.
pub fn build_code(
    relays: &[(&CodeKeys, u32)],
    slot: impl Fn(usize, Option<[u8; 16]>) -> [u8; SLOT_LEN],
    code: &mut [u8; CODE_LEN],
    payload: &mut [u8],
    padding: &[u8; 32],
) -> [u8; 16] {
    // What the relays before the last append.
    let mut filler = [0; CODE_LEN + SLOT_LEN];
    let mut from = filler.len();
    for (keys, number) in relays.iter().take(relays.len().saturating_sub(1)) {
        filler.copy_within(from.., from - SLOT_LEN);
        from -= SLOT_LEN;
        filler[CODE_LEN..].fill(0);
        let mut stream = [0; CODE_LEN + SLOT_LEN];
        add(&keys.code, *number, &mut stream);
        for (byte, stream) in filler[from..].iter_mut().zip(&stream[from..]) {
            *byte ^= stream;
        }
    }
    let fill_at = from - SLOT_LEN;
    code.fill(0);
    add(padding, relays.first().map_or(0, |(_, number)| *number), code);
    let mut behind: Option<[u8; 16]> = None;
    for (index, (keys, number)) in relays.iter().enumerate().rev() {
        if behind.is_some() {
            code.copy_within(..CODE_LEN - SLOT_LEN, SLOT_LEN);
        }
        code[..SLOT_LEN].copy_from_slice(&slot(index, behind));
        add(&keys.code, *number, code);
        if behind.is_none() {
            code[fill_at..].copy_from_slice(&filler[from..]);
        }
        add(&keys.payload, *number, payload);
        behind = Some(keys.mac(*number, code, payload));
    }
    behind.unwrap_or_default()
}

/// Seals the relays of a route to the exit with this onion key: the way between exit and tracker does
/// not show them.
///
/// # Errors
/// When the key is a point of small order.
pub fn seal_route(
    onion_key: &[u8; 32],
    fresh: &OnionKey,
    relays: &[NodeId],
) -> Result<Vec<u8>, KeyError> {
    let shared = fresh.agree(onion_key)?;
    let mut plain: Vec<u8> = relays.iter().flat_map(|id| *id.as_bytes()).collect();
    let tag = route_key(onion_key, fresh.public(), &shared).seal(1, &[], &mut plain);
    let id = super::onion_key_id(onion_key);
    Ok([id.as_slice(), fresh.public(), &tag, &plain].concat())
}

/// Opens a route that was sealed to one of these keys.
///
/// # Errors
/// When it was not, or was changed.
pub fn open_route(own: &[OnionKey], sealed: &[u8]) -> Result<Vec<u8>, BadTag> {
    let (head, plain) = sealed.split_at_checked(ROUTE_HEAD_LEN).ok_or(BadTag)?;
    let (id, head) = head.split_at(8);
    let (ephemeral, tag) = head.split_first_chunk::<32>().ok_or(BadTag)?;
    let tag: &[u8; TAG_LEN] = tag.try_into().map_err(|_| BadTag)?;
    let own = own.iter().find(|key| key.id() == id).ok_or(BadTag)?;
    let shared = own.agree(ephemeral).map_err(|_| BadTag)?;
    let mut plain = plain.to_vec();
    route_key(own.public(), ephemeral, &shared).open(1, &[], tag, &mut plain)?;
    Ok(plain)
}

fn route_key(onion_key: &[u8; 32], ephemeral: &[u8; 32], shared: &[u8; 32]) -> CounterAead {
    let mut hasher = blake3::Hasher::new_derive_key(ROUTE_LABEL);
    hasher.update(onion_key).update(ephemeral).update(shared);
    let key = Zeroizing::new(*hasher.finalize().as_bytes());
    CounterAead::new(Suite::ChaCha20Poly1305, &key, [0; 12])
}

/// Adds the keystream of a number to `bytes`.
fn add(key: &[u8; 32], number: u32, bytes: &mut [u8]) {
    let mut stream = blake3::Hasher::new_keyed(key).update(&number.to_be_bytes()).finalize_xof();
    let mut block = [0; 64];
    for chunk in bytes.chunks_mut(block.len()) {
        stream.fill(&mut block);
        for (byte, stream) in chunk.iter_mut().zip(&block) {
            *byte ^= stream;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    fn relays(count: u8) -> Vec<(NodeId, OnionKey)> {
        (1..=count)
            .map(|at| (NodeId::from_bytes([at; 32]), OnionKey::from_secret([at; 32]).unwrap()))
            .collect()
    }

    fn slot(index: usize, behind: Option<[u8; 16]>) -> [u8; SLOT_LEN] {
        let mut slot = [index as u8; SLOT_LEN];
        slot[32..].copy_from_slice(&behind.unwrap_or_default());
        slot
    }

    proptest! {
        /// Every relay of every length of route finds its own slot and nothing else; code and
        /// payload keep their length and share nothing with what came before.
        #[test]
        fn each_relay_opens_its_own(count in 1u8..=8, seed: u64, message in 0u32..1000,
            payload in prop::collection::vec(any::<u8>(), 1..990)) {
            let mut rng = StdRng::seed_from_u64(seed);
            let relays = relays(count);
            let fresh = OnionKey::generate(&mut rng).unwrap();
            let route = agree_along(&fresh, relays.iter().map(|(id, key)| (id, key.public()))).unwrap();
            let number = |keys: &CodeKeys| match message {
                0 => 0,
                count => keys.number(count).unwrap(),
            };
            let hops: Vec<_> = route.iter().map(|hop| (&hop.keys, number(&hop.keys))).collect();
            let (mut code, mut sealed) = ([0; CODE_LEN], payload.clone());
            let mut mac = build_code(&hops, slot, &mut code, &mut sealed, &[9; 32]);
            let mut ephemeral = *fresh.public();
            for (index, (id, own)) in relays.iter().enumerate() {
                prop_assert_eq!(ephemeral, route[index].ephemeral);
                let mine = recognise(own, id, &ephemeral).unwrap();
                // Nobody else recognises it.
                for (other, key) in &relays {
                    if other != id {
                        let not_mine = recognise(key, other, &ephemeral).unwrap();
                        let (mut code, mut sealed) = (code, sealed.clone());
                        prop_assert!(not_mine.keys.open(hops[index].1, &mac, &mut code, &mut sealed).is_err());
                    }
                }
                let before = (code, sealed.clone());
                let opened = mine.keys.open(hops[index].1, &mac, &mut code, &mut sealed).unwrap();
                mac.copy_from_slice(&opened[32..]);
                prop_assert_eq!(opened, slot(index, (index + 1 < relays.len()).then_some(mac)));
                let same = code.iter().zip(&before.0[SLOT_LEN..]).filter(|(a, b)| a == b).count();
                prop_assert!(same < 40, "the code is another on the next link: {}", same);
                if payload.len() > 64 {
                    prop_assert!(sealed != before.1);
                }
                prop_assert_ne!(ephemeral, mine.next_ephemeral);
                ephemeral = mine.next_ephemeral;
            }
            prop_assert_eq!(sealed, payload);
        }

        #[test]
        fn a_changed_bit_anywhere_is_noticed_by_the_next_relay(at in 0usize..CODE_LEN + 100, seed: u64) {
            let mut rng = StdRng::seed_from_u64(seed);
            let relays = relays(3);
            let fresh = OnionKey::generate(&mut rng).unwrap();
            let route = agree_along(&fresh, relays.iter().map(|(id, key)| (id, key.public()))).unwrap();
            let hops: Vec<_> = route.iter().map(|hop| (&hop.keys, hop.keys.number(1).unwrap())).collect();
            let (mut code, mut payload) = ([0; CODE_LEN], [7; 100]);
            let mac = build_code(&hops, slot, &mut code, &mut payload, &[9; 32]);
            match at.checked_sub(CODE_LEN) {
                Some(at) => payload[at] ^= 1,
                None => code[at] ^= 1,
            }
            prop_assert!(hops[0].0.open(hops[0].1, &mac, &mut code, &mut payload).is_err());
        }

        #[test]
        fn routes_open_for_their_exit_only(seed: u64, count in 1u8..8) {
            let mut rng = StdRng::seed_from_u64(seed);
            let ids: Vec<NodeId> = relays(count).into_iter().map(|(id, _)| id).collect();
            let own = [OnionKey::generate(&mut rng).unwrap(), OnionKey::generate(&mut rng).unwrap()];
            let fresh = OnionKey::generate(&mut rng).unwrap();
            let mut sealed = seal_route(own[1].public(), &fresh, &ids).unwrap();
            let plain: Vec<u8> = ids.iter().flat_map(|id| *id.as_bytes()).collect();
            prop_assert_eq!(open_route(&own, &sealed).unwrap(), plain);
            prop_assert!(open_route(&own[..1], &sealed).is_err());
            let last = sealed.len() - 1;
            sealed[last] ^= 1;
            prop_assert!(open_route(&own, &sealed).is_err());
        }
    }

    #[test]
    fn numbers_run_out_instead_of_starting_again() {
        let own = OnionKey::from_secret([1; 32]).unwrap();
        let keys = recognise(&own, &NodeId::from_bytes([1; 32]), own.public()).unwrap().keys;
        assert!(keys.number(1).is_some_and(|number| number > 1));
        assert_eq!(keys.number(u32::MAX), None);
    }
}
