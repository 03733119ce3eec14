//! QUIC sealed with the keys that two peers agreed on, instead of TLS.
//!
//! In: the secrets of one session. Out: the crypto halves of a quinn client and server.
//! Called by: quic.
//!
//! ```text
//! client -> server   Initial     u16 length | transport parameters C
//! server -> client   Initial     u16 length | transport parameters S      -> handshake keys
//! server -> client   Handshake   1 byte                                   -> 1-RTT keys
//! client -> server   Handshake   1 byte                                   -> 1-RTT keys
//! key of a level = KDF(secret of the direction, level, phase, connection id or hash of C and S)
//! ```
//!
//! Both ends prove that they hold the secrets with the first packet that opens. C and S hold random
//! connection ids, so no two connections use the same keys.

use std::{any::Any, fmt, sync::Arc};

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey, quic};
use bytes::BytesMut;
use quinn_proto::{
    ConnectError, ConnectionId, Side, TransportError, TransportErrorCode,
    crypto::{
        AeadKey, ClientConfig, CryptoError, ExportKeyingMaterialError, HandshakeTokenKey,
        HeaderKey, HmacKey, KeyPair, Keys, PacketKey, ServerConfig, Session, UnsupportedVersion,
    },
    transport_parameters::TransportParameters,
};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

use crate::peer::agreement::SessionSecrets;

const KDF: &str = "cepa peer quic v1";
const KEY_LEN: usize = 16;
const NONCE_LEN: usize = 12;
const TAG_LEN: usize = 16;
/// The byte of the handshake level.
const FINISHED: u8 = 0xf1;
/// RFC 9001, 6.6, for AES-128-GCM.
const CONFIDENTIALITY_LIMIT: u64 = 1 << 23;
const INTEGRITY_LIMIT: u64 = 1 << 52;

#[derive(Clone, Copy)]
enum Level {
    Initial = 0,
    Handshake = 1,
    OneRtt = 2,
}

/// What one direction of one level seals with.
struct Material {
    key: [u8; KEY_LEN],
    nonce: [u8; NONCE_LEN],
    header: [u8; KEY_LEN],
}

impl Drop for Material {
    fn drop(&mut self) {
        self.key.zeroize();
        self.nonce.zeroize();
        self.header.zeroize();
    }
}

fn material(secret: &[u8; 32], level: Level, phase: u64, context: &[u8]) -> Material {
    let mut hasher = blake3::Hasher::new_derive_key(KDF);
    hasher.update(secret).update(&[level as u8]).update(&phase.to_be_bytes()).update(context);
    let mut bytes = Zeroizing::new([0; 2 * KEY_LEN + NONCE_LEN]);
    hasher.finalize_xof().fill(bytes.as_mut());
    let mut made = Material { key: [0; KEY_LEN], nonce: [0; NONCE_LEN], header: [0; KEY_LEN] };
    made.key.copy_from_slice(&bytes[..KEY_LEN]);
    made.header.copy_from_slice(&bytes[KEY_LEN..2 * KEY_LEN]);
    made.nonce.copy_from_slice(&bytes[2 * KEY_LEN..]);
    made
}

/// Seals and opens packets of one direction.
struct Packets {
    key: LessSafeKey,
    nonce: [u8; NONCE_LEN],
}

impl Packets {
    fn new(material: &Material) -> Self {
        let key = UnboundKey::new(&AES_128_GCM, &material.key)
            .unwrap_or_else(|_| unreachable!("a key of the right length"));
        Self { key: LessSafeKey::new(key), nonce: material.nonce }
    }

    fn nonce(&self, packet: u64) -> Nonce {
        let mut nonce = self.nonce;
        for (byte, number) in nonce[NONCE_LEN - 8..].iter_mut().zip(packet.to_be_bytes()) {
            *byte ^= number;
        }
        Nonce::assume_unique_for_key(nonce)
    }
}

impl PacketKey for Packets {
    fn encrypt(&self, packet: u64, buf: &mut [u8], header_len: usize) {
        let (header, payload) = buf.split_at_mut(header_len);
        let (plain, tag) = payload.split_at_mut(payload.len() - TAG_LEN);
        let sealed = self
            .key
            .seal_in_place_separate_tag(self.nonce(packet), Aad::from(&*header), plain)
            .unwrap_or_else(|_| unreachable!("a packet is far shorter than AES-GCM's limit"));
        tag.copy_from_slice(sealed.as_ref());
    }

    fn decrypt(
        &self,
        packet: u64,
        header: &[u8],
        payload: &mut BytesMut,
    ) -> Result<(), CryptoError> {
        let plain = self
            .key
            .open_in_place(self.nonce(packet), Aad::from(header), payload)
            .map_err(|_| CryptoError)?
            .len();
        payload.truncate(plain);
        Ok(())
    }

    fn tag_len(&self) -> usize {
        TAG_LEN
    }

    fn confidentiality_limit(&self) -> u64 {
        CONFIDENTIALITY_LIMIT
    }

    fn integrity_limit(&self) -> u64 {
        INTEGRITY_LIMIT
    }
}

/// Masks packet numbers of one direction (RFC 9001, 5.4).
struct Headers(quic::HeaderProtectionKey);

impl Headers {
    fn new(material: &Material) -> Self {
        let key = quic::HeaderProtectionKey::new(&quic::AES_128, &material.header)
            .unwrap_or_else(|_| unreachable!("a key of the right length"));
        Self(key)
    }

    fn mask(&self, pn_offset: usize, packet: &mut [u8], is_masked: bool) {
        const LONG_HEADER: u8 = 0x80;
        let sample_at = pn_offset + 4;
        let Some(sample) = packet.get(sample_at..sample_at + self.sample_size()) else { return };
        let Ok([first_mask, pn_mask @ ..]) = self.0.new_mask(sample) else { return };
        let bits = if packet[0] & LONG_HEADER == 0 { 0x1f } else { 0x0f };
        let masked_first = packet[0] ^ (first_mask & bits);
        let plain_first = if is_masked { masked_first } else { packet[0] };
        packet[0] = masked_first;
        let pn_len = usize::from(plain_first & 3) + 1;
        for (byte, mask) in packet[pn_offset..pn_offset + pn_len].iter_mut().zip(pn_mask) {
            *byte ^= mask;
        }
    }
}

impl HeaderKey for Headers {
    fn decrypt(&self, pn_offset: usize, packet: &mut [u8]) {
        self.mask(pn_offset, packet, true);
    }

    fn encrypt(&self, pn_offset: usize, packet: &mut [u8]) {
        self.mask(pn_offset, packet, false);
    }

    fn sample_size(&self) -> usize {
        self.0.algorithm().sample_len()
    }
}

/// The secrets of a session, by who sends.
#[derive(Clone)]
struct Ends {
    secrets: SessionSecrets,
}

impl Ends {
    /// What `side` sends with; the downloader is the client.
    const fn sending(&self, side: Side) -> &[u8; 32] {
        match side {
            Side::Client => &self.secrets.to_uploader,
            Side::Server => &self.secrets.to_downloader,
        }
    }

    const fn receiving(&self, side: Side) -> &[u8; 32] {
        match side {
            Side::Client => self.sending(Side::Server),
            Side::Server => self.sending(Side::Client),
        }
    }

    fn keys(&self, side: Side, level: Level, context: &[u8]) -> Keys {
        let local = material(self.sending(side), level, 0, context);
        let remote = material(self.receiving(side), level, 0, context);
        Keys {
            header: KeyPair {
                local: Box::new(Headers::new(&local)),
                remote: Box::new(Headers::new(&remote)),
            },
            packet: KeyPair {
                local: Box::new(Packets::new(&local)),
                remote: Box::new(Packets::new(&remote)),
            },
        }
    }
}

/// Both halves of the configuration; quinn asks the one it needs.
pub(super) struct AgreedCrypto(Ends);

impl AgreedCrypto {
    pub(super) fn new(secrets: SessionSecrets) -> Arc<Self> {
        Arc::new(Self(Ends { secrets }))
    }

    fn session(&self, side: Side, params: &TransportParameters) -> Box<dyn Session> {
        let mut own = vec![0; 2];
        params.write(&mut own);
        // Transport parameters are a few hundred bytes.
        let length = (own.len() - 2) as u16;
        own[..2].copy_from_slice(&length.to_be_bytes());
        Box::new(AgreedSession {
            ends: self.0.clone(),
            side,
            own,
            theirs: Vec::new(),
            params: None,
            step: if side == Side::Client { Step::WriteParams } else { Step::ReadParams },
            phase: 0,
        })
    }
}

impl ClientConfig for AgreedCrypto {
    fn start_session(
        self: Arc<Self>,
        _version: u32,
        _server_name: &str,
        params: &TransportParameters,
    ) -> Result<Box<dyn Session>, ConnectError> {
        Ok(self.session(Side::Client, params))
    }
}

impl ServerConfig for AgreedCrypto {
    fn initial_keys(&self, _: u32, dst_cid: &ConnectionId) -> Result<Keys, UnsupportedVersion> {
        Ok(self.0.keys(Side::Server, Level::Initial, dst_cid))
    }

    fn retry_tag(&self, _version: u32, _orig_dst_cid: &ConnectionId, _packet: &[u8]) -> [u8; 16] {
        // Retries are never sent: there are no addresses to prove.
        [0; 16]
    }

    fn start_session(
        self: Arc<Self>,
        _version: u32,
        params: &TransportParameters,
    ) -> Box<dyn Session> {
        self.session(Side::Server, params)
    }
}

/// What a session does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    WriteParams,
    ReadParams,
    HandshakeKeys,
    ReadFinished,
    WriteFinished,
    Established,
}

struct AgreedSession {
    ends: Ends,
    side: Side,
    /// Transport parameters as sent, length in front.
    own: Vec<u8>,
    theirs: Vec<u8>,
    params: Option<TransportParameters>,
    step: Step,
    phase: u64,
}

impl fmt::Debug for AgreedSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgreedSession").field("step", &self.step).finish_non_exhaustive()
    }
}

fn broken(reason: &str) -> TransportError {
    TransportError {
        code: TransportErrorCode::PROTOCOL_VIOLATION,
        frame: None,
        reason: reason.to_owned(),
    }
}

impl AgreedSession {
    /// What both sides have said.
    fn transcript(&self) -> [u8; 32] {
        let (client, server) = match self.side {
            Side::Client => (&self.own, &self.theirs),
            Side::Server => (&self.theirs, &self.own),
        };
        blake3::Hasher::new().update(client).update(server).finalize().into()
    }

    /// Whether the other side's parameters are whole now.
    fn read_params(&mut self) -> Result<bool, TransportError> {
        let Some((length, rest)) = self.theirs.split_first_chunk::<2>() else { return Ok(false) };
        let length = usize::from(u16::from_be_bytes(*length));
        if rest.len() < length {
            return Ok(false);
        }
        if rest.len() > length {
            return Err(broken("bytes after the transport parameters"));
        }
        let params = TransportParameters::read(self.side, &mut &rest[..])?;
        self.params = Some(params);
        Ok(true)
    }
}

impl Session for AgreedSession {
    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> Keys {
        self.ends.keys(side, Level::Initial, dst_cid)
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        None
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        None
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        None
    }

    fn early_data_accepted(&self) -> Option<bool> {
        None
    }

    fn is_handshaking(&self) -> bool {
        self.step != Step::Established
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        match self.step {
            Step::ReadParams => {
                self.theirs.extend_from_slice(buf);
                if self.read_params()? {
                    self.step = match self.side {
                        Side::Client => Step::HandshakeKeys,
                        Side::Server => Step::WriteParams,
                    };
                }
                Ok(false)
            }
            Step::ReadFinished if buf == [FINISHED] => {
                self.step = match self.side {
                    Side::Client => Step::WriteFinished,
                    Side::Server => Step::Established,
                };
                Ok(false)
            }
            _ => Err(broken("a handshake message that is not due")),
        }
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        Ok(self.params)
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        match (self.step, self.side) {
            (Step::WriteParams, Side::Client) => {
                buf.extend_from_slice(&self.own);
                self.step = Step::ReadParams;
                None
            }
            (Step::WriteParams, Side::Server) => {
                buf.extend_from_slice(&self.own);
                self.step = Step::WriteFinished;
                Some(self.ends.keys(self.side, Level::Handshake, &self.transcript()))
            }
            (Step::HandshakeKeys, _) => {
                self.step = Step::ReadFinished;
                Some(self.ends.keys(self.side, Level::Handshake, &self.transcript()))
            }
            (Step::WriteFinished, side) => {
                buf.push(FINISHED);
                self.step = match side {
                    Side::Client => Step::Established,
                    Side::Server => Step::ReadFinished,
                };
                Some(self.ends.keys(side, Level::OneRtt, &self.transcript()))
            }
            _ => None,
        }
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        self.phase += 1;
        let transcript = self.transcript();
        let key = |secret| -> Box<dyn PacketKey> {
            Box::new(Packets::new(&material(secret, Level::OneRtt, self.phase, &transcript)))
        };
        let local = key(self.ends.sending(self.side));
        let remote = key(self.ends.receiving(self.side));
        Some(KeyPair { local, remote })
    }

    fn is_valid_retry(&self, _: &ConnectionId, _header: &[u8], _payload: &[u8]) -> bool {
        false
    }

    fn export_keying_material(
        &self,
        _output: &mut [u8],
        _label: &[u8],
        _context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        Err(ExportKeyingMaterialError)
    }
}

/// The key of stateless resets and address tokens; neither means anything on a bridge, so it is
/// drawn for each connection and goes with it.
pub(super) struct LocalKey(pub(super) [u8; 32]);

impl HmacKey for LocalKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(blake3::keyed_hash(&self.0, data).as_bytes());
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let expected = blake3::keyed_hash(&self.0, data);
        if expected.as_bytes()[..].ct_eq(signature).into() { Ok(()) } else { Err(CryptoError) }
    }
}

impl HandshakeTokenKey for LocalKey {
    fn aead_from_hkdf(&self, random_bytes: &[u8]) -> Box<dyn AeadKey> {
        let key = blake3::keyed_hash(&self.0, random_bytes);
        let mut short = [0; KEY_LEN];
        short.copy_from_slice(&key.as_bytes()[..KEY_LEN]);
        let key = UnboundKey::new(&AES_128_GCM, &short)
            .unwrap_or_else(|_| unreachable!("a key of the right length"));
        Box::new(TokenKey(LessSafeKey::new(key)))
    }
}

/// One key per token, so the nonce may be constant.
struct TokenKey(LessSafeKey);

impl AeadKey for TokenKey {
    fn seal(&self, data: &mut Vec<u8>, additional_data: &[u8]) -> Result<(), CryptoError> {
        let nonce = Nonce::assume_unique_for_key([0; NONCE_LEN]);
        self.0
            .seal_in_place_append_tag(nonce, Aad::from(additional_data), data)
            .map_err(|_| CryptoError)
    }

    fn open<'a>(
        &self,
        data: &'a mut [u8],
        additional_data: &[u8],
    ) -> Result<&'a mut [u8], CryptoError> {
        let nonce = Nonce::assume_unique_for_key([0; NONCE_LEN]);
        self.0.open_in_place(nonce, Aad::from(additional_data), data).map_err(|_| CryptoError)
    }
}
