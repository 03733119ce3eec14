//! The wire written out from its specification, with other libraries than the program uses:
//! SHA-2, AES-GCM, ChaCha20-Poly1305 and RSA of `RustCrypto`, X25519 of `dalek`; HMAC, HKDF and the
//! ChaCha20 keystream by hand. Nothing of `cepa` is named here.

use aes_gcm::{
    Aes128Gcm,
    aead::{AeadInPlace, KeyInit},
};
use chacha20poly1305::ChaCha20Poly1305;
use curve25519_dalek::montgomery::MontgomeryPoint;
use rsa::{Oaep, RsaPrivateKey, RsaPublicKey, rand_core::OsRng};
use sha2::{Digest, Sha256};

pub(crate) const AES: u8 = 1;
pub(crate) const CHACHA: u8 = 2;
pub(crate) type Cell = [u8; 1408];

pub(crate) fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

/// RFC 2104, for keys of at most one block.
pub(crate) fn hmac_sha256(key: &[u8], message: &[u8]) -> [u8; 32] {
    assert!(key.len() <= 64);
    let pad = |with: u8| {
        let mut block = [with; 64];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        block
    };
    sha256(&[&pad(0x5c), &sha256(&[&pad(0x36), message])])
}

/// RFC 5869, for outputs of at most one hash.
pub(crate) fn hkdf_expand(prk: &[u8; 32], info: &[u8], length: usize) -> Vec<u8> {
    hmac_sha256(prk, &[info, &[1]].concat())[..length].to_vec()
}

pub(crate) fn x25519(secret: &[u8; 32], point: &[u8; 32]) -> [u8; 32] {
    MontgomeryPoint(*point).mul_clamped(*secret).0
}

pub(crate) fn x25519_public(secret: &[u8; 32]) -> [u8; 32] {
    MontgomeryPoint::mul_base_clamped(*secret).0
}

pub(crate) fn keyed_mac(key: &[u8; 32], bytes: &[u8]) -> [u8; 16] {
    blake3::keyed_hash(key, bytes).as_bytes()[..16].try_into().unwrap()
}

/// The nonce: a salt, with the counter in its last four bytes.
fn nonce(salt: &[u8], seq: u32) -> [u8; 12] {
    let mut nonce: [u8; 12] = salt.try_into().unwrap();
    let last = u32::from_be_bytes(nonce[8..].try_into().unwrap()) ^ seq;
    nonce[8..].copy_from_slice(&last.to_be_bytes());
    nonce
}

pub(crate) fn seal(
    suite: u8,
    key: &[u8],
    nonce: &[u8; 12],
    aad: &[u8],
    bytes: &mut [u8],
) -> [u8; 16] {
    match suite {
        AES => Aes128Gcm::new_from_slice(&key[..16])
            .unwrap()
            .encrypt_in_place_detached(nonce.into(), aad, bytes)
            .unwrap()
            .into(),
        _ => ChaCha20Poly1305::new_from_slice(key)
            .unwrap()
            .encrypt_in_place_detached(nonce.into(), aad, bytes)
            .unwrap()
            .into(),
    }
}

pub(crate) fn open(
    suite: u8,
    key: &[u8],
    nonce: &[u8; 12],
    aad: &[u8],
    tag: &[u8],
    bytes: &mut [u8],
) -> bool {
    match suite {
        AES => Aes128Gcm::new_from_slice(&key[..16])
            .unwrap()
            .decrypt_in_place_detached(nonce.into(), aad, bytes, tag.into())
            .is_ok(),
        _ => ChaCha20Poly1305::new_from_slice(key)
            .unwrap()
            .decrypt_in_place_detached(nonce.into(), aad, bytes, tag.into())
            .is_ok(),
    }
}

/// The keystream of a suite's stream cipher: counter block = nonce, then a block number, from 0 with
/// AES and from 1 with ChaCha20.
fn keystream(suite: u8, key: &[u8], nonce: &[u8; 12], length: usize) -> Vec<u8> {
    let mut stream = Vec::new();
    for number in u32::from(suite == CHACHA).. {
        if stream.len() >= length {
            break;
        }
        match suite {
            AES => stream.extend(aes_block(&key[..16], nonce, number)),
            _ => stream.extend(chacha_block(key, nonce, number)),
        }
    }
    stream.truncate(length);
    stream
}

fn aes_block(key: &[u8], nonce: &[u8; 12], number: u32) -> [u8; 16] {
    use aes_gcm::aes::{Aes128, cipher::BlockEncrypt};
    let mut block = [0u8; 16];
    block[..12].copy_from_slice(nonce);
    block[12..].copy_from_slice(&number.to_be_bytes());
    Aes128::new_from_slice(key).unwrap().encrypt_block((&mut block).into());
    block
}

/// RFC 8439, 2.3.
fn chacha_block(key: &[u8], nonce: &[u8; 12], number: u32) -> [u8; 64] {
    let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
    let mut start = [0u32; 16];
    start[..4].copy_from_slice(&[0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574]);
    start[12] = number;
    for index in 0..8 {
        start[4 + index] = word(&key[4 * index..][..4]);
    }
    for index in 0..3 {
        start[13 + index] = word(&nonce[4 * index..][..4]);
    }
    let mut state = start;
    let mut quarter = |a: usize, b: usize, c: usize, d: usize| {
        for (to, from, mixed, by) in [(a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)] {
            state[to] = state[to].wrapping_add(state[from]);
            state[mixed] = (state[mixed] ^ state[to]).rotate_left(by);
        }
    };
    for _ in 0..10 {
        for column in 0..4 {
            quarter(column, 4 + column, 8 + column, 12 + column);
        }
        for column in 0..4 {
            quarter(column, 4 + (column + 1) % 4, 8 + (column + 2) % 4, 12 + (column + 3) % 4);
        }
    }
    let mut block = [0u8; 64];
    for (bytes, (one, other)) in block.chunks_mut(4).zip(state.iter().zip(start)) {
        bytes.copy_from_slice(&one.wrapping_add(other).to_le_bytes());
    }
    block
}

fn xor(bytes: &mut [u8], with: &[u8]) {
    assert!(bytes.len() <= with.len());
    bytes.iter_mut().zip(with).for_each(|(byte, with)| *byte ^= with);
}

/// The keys of one hop, by their labels.
#[derive(Clone)]
pub(crate) struct HopKeys {
    pub(crate) suite: u8,
    prk: [u8; 32],
}

impl HopKeys {
    pub(crate) const LABELS: [(&'static str, usize); 9] = [
        ("fwd-aead", 32),
        ("fwd-salt", 12),
        ("fwd-fill", 16),
        ("bwd-aead", 32),
        ("bwd-aead-salt", 12),
        ("bwd-stream", 32),
        ("bwd-stream-salt", 12),
        ("confirm", 32),
        ("status", 32),
    ];

    pub(crate) fn derive(suite: u8, transcript: &[u8; 32], ikm: &[u8]) -> Self {
        Self { suite, prk: hmac_sha256(transcript, ikm) }
    }

    pub(crate) fn key(&self, label: &str) -> Vec<u8> {
        let length = Self::LABELS.iter().find(|(known, _)| *known == label).unwrap().1;
        hkdf_expand(&self.prk, format!("cepa-hop-v1 {label}").as_bytes(), length)
    }

    fn filler(&self, seq: u32) -> Vec<u8> {
        // The counter block is seq, then 96 zero bits, counted up from its end.
        let mut start = [0u8; 12];
        start[..4].copy_from_slice(&seq.to_be_bytes());
        keystream(AES, &self.key("fwd-fill"), &start, 20)
    }

    fn forward_nonce(&self, seq: u32) -> [u8; 12] {
        nonce(&self.key("fwd-salt"), seq)
    }

    /// What a node does with a forward cell; the next link's id is not written.
    pub(crate) fn peel_forward(&self, cell: &mut Cell) -> bool {
        let seq = u32::from_be_bytes(cell[16..20].try_into().unwrap());
        let tag: [u8; 16] = cell[20..36].try_into().unwrap();
        let (suite, key, nonce) = (self.suite, self.key("fwd-aead"), self.forward_nonce(seq));
        if !open(suite, &key, &nonce, &[], &tag, &mut cell[36..]) {
            return false;
        }
        let later = cell[36..96].to_vec();
        cell[16..76].copy_from_slice(&later);
        cell[76..96].copy_from_slice(&self.filler(seq));
        true
    }

    fn backward_stream(&self, seq: u32, cell: &mut Cell) {
        let nonce = nonce(&self.key("bwd-stream-salt"), seq);
        let stream = keystream(self.suite, &self.key("bwd-stream"), &nonce, 1388);
        xor(&mut cell[20..], &stream);
    }

    /// Seals a body to the client; what the originator draws at random is all `random`.
    pub(crate) fn originate(&self, seq: u32, body: &[u8; 1312], random: u8) -> Cell {
        let mut cell = [random; 1408];
        cell[16..20].copy_from_slice(&seq.to_be_bytes());
        cell[96..].copy_from_slice(body);
        let (head, body) = cell.split_at_mut(96);
        let nonce = nonce(&self.key("bwd-aead-salt"), seq);
        let tag = seal(self.suite, &self.key("bwd-aead"), &nonce, &head[64..96], body);
        cell[48..64].copy_from_slice(&tag);
        cell
    }

    /// What a hop does with a backward cell of its neighbour, but for the ids and the link tag.
    pub(crate) fn add_backward(&self, seq: u32, cell: &mut Cell) {
        let strip = cell[16..28].to_vec();
        cell[20..32].copy_from_slice(&strip);
        cell[16..20].copy_from_slice(&seq.to_be_bytes());
        self.backward_stream(seq, cell);
    }

    /// What the client does with each hop's layer.
    pub(crate) fn peel_backward(&self, cell: &mut Cell) {
        let seq = u32::from_be_bytes(cell[16..20].try_into().unwrap());
        self.backward_stream(seq, cell);
        let strip = cell[20..32].to_vec();
        cell[16..28].copy_from_slice(&strip);
    }

    /// The body, if this hop sealed it.
    pub(crate) fn open_backward(&self, cell: &Cell) -> Option<[u8; 1312]> {
        let mut body: [u8; 1312] = cell[96..].try_into().unwrap();
        let seq = u32::from_be_bytes(cell[16..20].try_into().unwrap());
        let nonce = nonce(&self.key("bwd-aead-salt"), seq);
        let (key, tag) = (self.key("bwd-aead"), &cell[48..64]);
        open(self.suite, &key, &nonce, &cell[64..96], tag, &mut body).then_some(body)
    }

    pub(crate) fn confirmation(&self, transcript: &[u8; 32]) -> [u8; 32] {
        hmac_sha256(&self.key("confirm"), transcript)
    }

    pub(crate) fn seal_status(&self, status: [u8; 16]) -> [u8; 32] {
        let mut sealed = status;
        let tag = seal(CHACHA, &self.key("status"), &[0; 12], &[], &mut sealed);
        [sealed, tag].concat().try_into().unwrap()
    }

    pub(crate) fn open_status(&self, sealed: &[u8]) -> Option<[u8; 16]> {
        let mut status: [u8; 16] = sealed[..16].try_into().unwrap();
        open(CHACHA, &self.key("status"), &[0; 12], &[], &sealed[16..], &mut status)
            .then_some(status)
    }
}

/// Wraps a body for the last of `hops`; what the client draws at random is all `random`.
pub(crate) fn wrap(hops: &[HopKeys], seqs: &[u32], body: &[u8; 1312], random: u8) -> Cell {
    // The fillers as they stand in the slots when the last hop opens them: each hop appends its
    // own, and its decryption of zeros is what happens to those before it.
    let mut fillers = Vec::new();
    for (hop, seq) in hops.iter().zip(seqs) {
        let mut stream = [0u8; 60];
        seal(hop.suite, &hop.key("fwd-aead"), &hop.forward_nonce(*seq), &[], &mut stream);
        let start = 60 - fillers.len();
        xor(&mut fillers, &stream[start..]);
        if fillers.len() < 20 * (hops.len() - 1) {
            fillers.extend(hop.filler(*seq));
        }
    }
    let mut sealed = vec![random; 60 - fillers.len()];
    sealed.extend(fillers);
    sealed.extend(body);
    let mut cell = [0u8; 1408];
    for (index, (hop, seq)) in hops.iter().zip(seqs).enumerate().rev() {
        let nonce = hop.forward_nonce(*seq);
        let tag = seal(hop.suite, &hop.key("fwd-aead"), &nonce, &[], &mut sealed);
        cell[16..20].copy_from_slice(&seq.to_be_bytes());
        cell[20..36].copy_from_slice(&tag);
        cell[36..].copy_from_slice(&sealed);
        if index > 0 {
            // The slot just made becomes the next hop's first, and the last filler falls off.
            let body = sealed.split_off(60);
            sealed = [&cell[16..36], &sealed[..40], &body].concat();
        }
    }
    cell
}

/// The keys of one link, by their labels.
#[derive(Clone)]
pub(crate) struct PairKeys {
    suite: u8,
    prk: [u8; 32],
}

impl PairKeys {
    pub(crate) const LABELS: [&'static str; 4] =
        ["pair-bwd", "pair-ctl-fwd", "pair-ctl-bwd", "pair-created"];

    pub(crate) fn derive(suite: u8, pair: &[u8; 32]) -> Self {
        Self { suite, prk: hmac_sha256(&[], pair) }
    }

    pub(crate) fn key(&self, label: &str) -> [u8; 32] {
        let info = format!("cepa-pair-v1 {label}");
        hkdf_expand(&self.prk, info.as_bytes(), 32).try_into().unwrap()
    }

    fn link_tag_of(&self, cell: &Cell) -> [u8; 16] {
        let mut covered = *cell;
        covered[32..48].fill(0);
        let seq = u32::from_be_bytes(cell[16..20].try_into().unwrap());
        seal(self.suite, &self.key("pair-bwd"), &nonce(&[0; 12], seq), &covered, &mut [])
    }

    pub(crate) fn tag(&self, cell: &mut Cell) {
        let tag = self.link_tag_of(cell);
        cell[32..48].copy_from_slice(&tag);
    }

    pub(crate) fn verify(&self, cell: &Cell) -> bool {
        self.link_tag_of(cell) == cell[32..48]
    }

    /// A cell between neighbours: `label` says in which direction.
    pub(crate) fn neighbour_cell(
        &self,
        label: &str,
        cid: [u8; 16],
        seq: u32,
        plain: &[u8],
    ) -> Cell {
        let seq = seq | 0x8000_0000;
        let mut cell = [0u8; 1408];
        cell[..16].copy_from_slice(&cid);
        cell[16..20].copy_from_slice(&seq.to_be_bytes());
        cell[36..36 + plain.len()].copy_from_slice(plain);
        let key = self.key(label);
        let tag = seal(CHACHA, &key, &nonce(&[0; 12], seq), &cid, &mut cell[36..]);
        cell[20..36].copy_from_slice(&tag);
        cell
    }
}

pub(crate) fn node_id(spki: &[u8]) -> [u8; 32] {
    sha256(&[spki])
}

pub(crate) fn onion_key_id(public: &[u8; 32]) -> [u8; 8] {
    sha256(&[public])[..8].try_into().unwrap()
}

fn oaep() -> Oaep {
    Oaep::new_with_label::<Sha256, _>("cepa-create-v1")
}

pub(crate) fn oaep_encrypt(key: &RsaPublicKey, plain: &[u8]) -> [u8; 384] {
    key.encrypt(&mut OsRng, oaep(), plain).unwrap().try_into().unwrap()
}

pub(crate) fn oaep_decrypt(key: &RsaPrivateKey, sealed: &[u8]) -> Option<Vec<u8>> {
    key.decrypt(oaep(), sealed).ok()
}

/// The CREATE prefix without a cookie's proof; `mac2` is then drawn at random.
pub(crate) fn create_prefix(
    node_id: &[u8; 32],
    onion_key_id: &[u8; 8],
    ephemeral: &[u8; 32],
    oaep: &[u8],
    mac2: [u8; 16],
) -> [u8; 458] {
    let covered = [&[0, 1], &onion_key_id[..], ephemeral, oaep].concat();
    let mac1 = keyed_mac(&blake3::derive_key("cepa-create-mac1-v1", node_id), &covered);
    [&covered[..], &mac1, &mac2].concat().try_into().unwrap()
}

/// Writes the proof of a cookie into a CREATE prefix.
pub(crate) fn prove_cookie(prefix: &mut [u8; 458], cookie: &[u8; 16]) {
    let mut key = [0u8; 32];
    key[..16].copy_from_slice(cookie);
    let mac2 = keyed_mac(&key, &prefix[..442]);
    prefix[442..].copy_from_slice(&mac2);
}

fn cookie_key(node_id: &[u8; 32], salt: &[u8]) -> [u8; 32] {
    *blake3::keyed_hash(&blake3::derive_key("cepa-cookie-seal-v1", node_id), salt).as_bytes()
}

/// A COOKIE answer; what the node draws at random behind it is all `random`.
pub(crate) fn cookie_answer(
    node_id: &[u8; 32],
    salt: &[u8; 32],
    mac1: &[u8],
    cookie: &[u8; 16],
    random: u8,
) -> [u8; 113] {
    let mut sealed = *cookie;
    let tag = seal(CHACHA, &cookie_key(node_id, salt), &[0; 12], mac1, &mut sealed);
    let mut answer = [random; 113];
    answer[0] = 2;
    answer[1..33].copy_from_slice(salt);
    answer[33..49].copy_from_slice(&sealed);
    answer[49..65].copy_from_slice(&tag);
    answer
}

pub(crate) fn open_cookie(node_id: &[u8; 32], answer: &[u8], mac1: &[u8]) -> Option<[u8; 16]> {
    assert_eq!(answer[0], 2);
    let mut cookie: [u8; 16] = answer[33..49].try_into().unwrap();
    let key = cookie_key(node_id, &answer[1..33]);
    open(CHACHA, &key, &[0; 12], mac1, &answer[49..65], &mut cookie).then_some(cookie)
}

/// What both ends hold after a handshake.
pub(crate) struct Shared {
    pub(crate) transcript: [u8; 32],
    pub(crate) hop: HopKeys,
    pub(crate) pair: PairKeys,
}

/// A node that was never compiled from the program's sources.
pub(crate) struct Node {
    pub(crate) rsa: RsaPrivateKey,
    pub(crate) id: [u8; 32],
    pub(crate) onion_secret: [u8; 32],
}

impl Node {
    /// Answers a CREATE prefix with a CREATED of 113 bytes.
    pub(crate) fn answer(
        &self,
        prefix: &[u8],
        ephemeral_secret: &[u8; 32],
        status: [u8; 16],
    ) -> Option<([u8; 113], Shared)> {
        let prefix = &prefix[..458];
        if prefix[..2] != [0, 1]
            || prefix[2..10] != onion_key_id(&x25519_public(&self.onion_secret))
        {
            return None;
        }
        let client: [u8; 32] = prefix[10..42].try_into().unwrap();
        let (key_id, oaep) = (prefix[2..10].try_into().unwrap(), &prefix[42..426]);
        let expected = create_prefix(&self.id, key_id, &client, oaep, [0; 16]);
        if expected[..442] != prefix[..442] {
            return None;
        }
        let plain = oaep_decrypt(&self.rsa, &prefix[42..426])?;
        let (secret, rest) = plain.split_at_checked(32)?;
        let &[ref pair @ .., suite, link_suite] = rest else { return None };
        let public = x25519_public(ephemeral_secret);
        let transcript =
            sha256(&[b"cepa-transcript-v1", &self.id, &prefix[2..10], prefix, &public]);
        let agreed =
            [x25519(ephemeral_secret, &client), x25519(&self.onion_secret, &client)].concat();
        let hop = HopKeys::derive(suite, &transcript, &[&agreed, secret].concat());
        let pair = PairKeys::derive(link_suite, pair.try_into().ok()?);
        let mut answer = vec![1];
        answer.extend(public);
        answer.extend(hop.confirmation(&transcript));
        answer.extend(hop.seal_status(status));
        answer.extend(keyed_mac(&pair.key("pair-created"), &answer));
        Some((answer.try_into().unwrap(), Shared { transcript, hop, pair }))
    }
}

/// A client's half of a handshake that was never compiled from the program's sources.
pub(crate) struct Client {
    pub(crate) node_id: [u8; 32],
    pub(crate) onion_key: [u8; 32],
    pub(crate) ephemeral_secret: [u8; 32],
    pub(crate) secret: [u8; 32],
    pub(crate) pair: [u8; 32],
    pub(crate) suite: u8,
    pub(crate) link_suite: u8,
}

impl Client {
    pub(crate) fn plain(&self) -> Vec<u8> {
        [&self.secret[..], &self.pair, &[self.suite, self.link_suite]].concat()
    }

    /// The CREATE prefix without proof; mac2 is all `random`.
    pub(crate) fn prefix(&self, oaep: &[u8], random: u8) -> [u8; 458] {
        create_prefix(
            &self.node_id,
            &onion_key_id(&self.onion_key),
            &x25519_public(&self.ephemeral_secret),
            oaep,
            [random; 16],
        )
    }

    /// Checks a CREATED and derives what it is good for; the status with it.
    pub(crate) fn finish(&self, prefix: &[u8; 458], answer: &[u8]) -> Option<(Shared, [u8; 16])> {
        if answer[0] != 1 {
            return None;
        }
        let public: [u8; 32] = answer[1..33].try_into().unwrap();
        let transcript =
            sha256(&[b"cepa-transcript-v1", &self.node_id, &prefix[2..10], prefix, &public]);
        let ikm = [
            x25519(&self.ephemeral_secret, &public),
            x25519(&self.ephemeral_secret, &self.onion_key),
            self.secret,
        ]
        .concat();
        let hop = HopKeys::derive(self.suite, &transcript, &ikm);
        let pair = PairKeys::derive(self.link_suite, &self.pair);
        if hop.confirmation(&transcript) != answer[33..65]
            || keyed_mac(&pair.key("pair-created"), &answer[..97]) != answer[97..113]
        {
            return None;
        }
        let status = hop.open_status(&answer[65..97])?;
        Some((Shared { transcript, hop, pair }, status))
    }
}

/// RFC 8439, 2.3.2: the keystream by hand is the standard one.
#[test]
fn the_chacha_block_by_hand_is_the_standard_one() {
    let key: [u8; 32] = std::array::from_fn(|index| index as u8);
    let block = chacha_block(&key, &[0, 0, 0, 9, 0, 0, 0, 0x4a, 0, 0, 0, 0], 1);
    assert_eq!(hex::encode(&block[..16]), "10f1e7e4d13b5915500fdd1fa32071c4");
    assert_eq!(hex::encode(&block[48..]), "b5129cd1de164eb9cbd083e8a2503c4e");
}

/// RFC 4231, case 2, and RFC 5869, A.1.
#[test]
fn hmac_and_hkdf_by_hand_are_the_standard_ones() {
    assert_eq!(
        hex::encode(hmac_sha256(b"Jefe", b"what do ya want for nothing?")),
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    );
    let salt: Vec<u8> = (0..13).collect();
    let prk = hmac_sha256(&salt, &[0x0b; 22]);
    let info: Vec<u8> = (0xf0..0xfa).collect();
    assert_eq!(
        hex::encode(hkdf_expand(&prk, &info, 32)),
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
    );
}

/// RFC 7748, 5.2: the iterated test.
#[test]
fn x25519_is_the_standard_one() {
    let (mut secret, mut point) = ([0u8; 32], [0u8; 32]);
    (secret[0], point[0]) = (9, 9);
    for round in 1..=1000 {
        (secret, point) = (x25519(&secret, &point), secret);
        if round == 1 {
            assert_eq!(
                hex::encode(secret),
                "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"
            );
        }
    }
    assert_eq!(
        hex::encode(secret),
        "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"
    );
}
