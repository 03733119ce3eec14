//! The two ends of a sealed channel between a peer and the tracker: Noise_NK to the tracker's key.
//!
//! In: frames of the other side, the time. Out: frames, an open [`Conversation`].
//! Called by: the tracker's state, the client's tracker link.
//!
//! ```text
//! peer     hello (asked again) -> awaits welcome -> open        reset -> hello with new keys
//! tracker  hello -> welcome, open; the same hello again -> the same welcome
//! ```

use std::time::{Duration, Instant};

use snow::{Builder, HandshakeState, params::NoiseParams};
use zeroize::Zeroizing;

use super::{Conversation, TrackerError};
use crate::{model::NodeId, wire::share::ChannelFrame};

const PATTERN: &str = "Noise_NK_25519_ChaChaPoly_BLAKE2s";
const PROLOGUE: &[u8] = b"cepa-tracker-v1";
/// The first wait for a welcome; doubles each time.
const PATIENCE: Duration = Duration::from_millis(300);
/// The longest wait.
const MOST_PATIENCE: Duration = Duration::from_secs(4);
/// What a Noise message of a handshake holds at most.
const MOST_HANDSHAKE: usize = 256;

/// A peer's end.
pub struct PeerChannel {
    tracker: [u8; 32],
    exit: NodeId,
    state: State,
}

enum State {
    Greeting { noise: Box<HandshakeState>, hello: Vec<u8>, due: Instant, attempts: u32 },
    Open(Box<Conversation>),
}

impl PeerChannel {
    /// Opens a channel to the tracker with this X25519 key, through a circuit that ends at `exit`.
    ///
    /// # Errors
    /// When the key is none.
    pub fn open(now: Instant, tracker: [u8; 32], exit: NodeId) -> Result<Self, TrackerError> {
        Ok(Self { tracker, exit, state: greeting(now, &tracker, &exit)? })
    }

    /// The conversation, once the tracker has answered.
    pub fn conversation(&mut self) -> Option<&mut Conversation> {
        match &mut self.state {
            State::Open(conversation) => Some(conversation),
            State::Greeting { .. } => None,
        }
    }

    /// How often the tracker was greeted without an answer.
    pub fn attempts(&self) -> u32 {
        match &self.state {
            State::Greeting { attempts, .. } => *attempts,
            State::Open(_) => 0,
        }
    }

    /// A frame of the tracker; says whether the channel has just been opened.
    ///
    /// # Errors
    /// When it does not belong here; nothing changes then.
    pub fn handle_frame(&mut self, now: Instant, frame: &[u8]) -> Result<bool, TrackerError> {
        match (ChannelFrame::parse(frame)?, &mut self.state) {
            (ChannelFrame::Welcome(message), State::Greeting { .. }) => {
                let fresh = greeting(now, &self.tracker, &self.exit)?;
                let State::Greeting { mut noise, .. } = std::mem::replace(&mut self.state, fresh)
                else {
                    return Ok(false);
                };
                // A welcome that does not verify leaves a fresh greeting in place.
                noise.read_message(message, &mut []).map_err(|_| TrackerError::Seal)?;
                let noise =
                    noise.into_stateless_transport_mode().map_err(|_| TrackerError::Seal)?;
                self.state = State::Open(Box::new(Conversation::new(now, noise)));
                Ok(true)
            }
            (ChannelFrame::Data { nonce, sealed }, State::Open(conversation)) => {
                conversation.handle_data(now, nonce, sealed).map(|()| false)
            }
            (ChannelFrame::Reset, State::Open(_)) => {
                self.state = greeting(now, &self.tracker, &self.exit)?;
                Ok(false)
            }
            _ => Ok(false),
        }
    }

    /// The next frame to send.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Vec<u8>> {
        match &mut self.state {
            State::Greeting { hello, due, attempts, .. } if now >= *due => {
                let wait = PATIENCE.saturating_mul(1 << (*attempts).min(8));
                *due = now + wait.min(MOST_PATIENCE);
                *attempts += 1;
                Some(hello.clone())
            }
            State::Greeting { .. } => None,
            State::Open(conversation) => {
                let frame = conversation.poll_transmit(now);
                if conversation.is_dead()
                    && let Ok(fresh) = greeting(now, &self.tracker, &self.exit)
                {
                    self.state = fresh;
                }
                frame
            }
        }
    }

    /// When [`Self::poll_transmit`] has something to send.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Greeting { due, .. } => Some(*due),
            State::Open(conversation) => conversation.poll_timeout(),
        }
    }
}

fn greeting(now: Instant, tracker: &[u8; 32], exit: &NodeId) -> Result<State, TrackerError> {
    let mut noise = builder()?
        .remote_public_key(tracker)
        .and_then(Builder::build_initiator)
        .map_err(|_| TrackerError::Key)?;
    let mut message = vec![0; MOST_HANDSHAKE];
    let length =
        noise.write_message(exit.as_bytes(), &mut message).map_err(|_| TrackerError::Key)?;
    let hello = ChannelFrame::Hello(&message[..length]).emit();
    Ok(State::Greeting { noise: Box::new(noise), hello, due: now, attempts: 0 })
}

/// The tracker's answer to a hello: the conversation, the peer's exit, and the welcome to send.
pub struct Accepted {
    /// The open conversation.
    pub conversation: Conversation,
    /// The exit that the peer's circuit ends at, as the peer says.
    pub exit: NodeId,
    /// The frame to answer with.
    pub welcome: Vec<u8>,
}

/// Accepts a hello with the tracker's X25519 secret.
///
/// # Errors
/// When it was not made for this key.
pub fn accept(now: Instant, secret: &[u8; 32], hello: &[u8]) -> Result<Accepted, TrackerError> {
    let secret = Zeroizing::new(*secret);
    let mut noise = builder()?
        .local_private_key(&*secret)
        .and_then(Builder::build_responder)
        .map_err(|_| TrackerError::Key)?;
    let mut exit = [0; MOST_HANDSHAKE];
    let length = noise.read_message(hello, &mut exit).map_err(|_| TrackerError::Seal)?;
    let exit: [u8; 32] = exit[..length].try_into().map_err(|_| TrackerError::Seal)?;
    let mut message = vec![0; MOST_HANDSHAKE];
    let length = noise.write_message(&[], &mut message).map_err(|_| TrackerError::Seal)?;
    let noise = noise.into_stateless_transport_mode().map_err(|_| TrackerError::Seal)?;
    Ok(Accepted {
        conversation: Conversation::new(now, noise),
        exit: NodeId::from_bytes(exit),
        welcome: ChannelFrame::Welcome(&message[..length]).emit(),
    })
}

fn builder<'a>() -> Result<Builder<'a>, TrackerError> {
    let params: NoiseParams = PATTERN.parse().map_err(|_| TrackerError::Key)?;
    Builder::new(params).prologue(PROLOGUE).map_err(|_| TrackerError::Key)
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;
    use crate::keys::OnionKey;

    fn open_pair(now: Instant) -> (PeerChannel, Conversation) {
        let key = OnionKey::from_secret([7; 32]).unwrap();
        let exit = NodeId::from_bytes([3; 32]);
        let mut peer = PeerChannel::open(now, *key.public(), exit).unwrap();
        let hello = peer.poll_transmit(now).unwrap();
        let ChannelFrame::Hello(message) = ChannelFrame::parse(&hello).unwrap() else { panic!() };
        let accepted = accept(now, key.secret(), message).unwrap();
        assert_eq!(accepted.exit, exit);
        assert!(peer.handle_frame(now, &accepted.welcome).unwrap());
        (peer, accepted.conversation)
    }

    #[test]
    fn messages_arrive_once_whole_and_in_order_through_a_bad_network() {
        for seed in 0..20 {
            let mut rng = StdRng::seed_from_u64(seed);
            let start = Instant::now();
            let (mut peer, mut tracker) = open_pair(start);
            let messages: Vec<Vec<u8>> =
                (0..30u8).map(|number| vec![number; rng.random_range(0..4000)]).collect();
            let (mut to_send, mut received) = (messages.iter(), Vec::new());
            let mut pending = to_send.next();
            let mut late: Vec<Vec<u8>> = Vec::new();
            for step in 0..4_000u64 {
                let now = start + Duration::from_millis(step * 50);
                while let Some(message) = pending
                    && peer.conversation().unwrap().send(message).is_ok()
                {
                    pending = to_send.next();
                }
                while let Some(frame) = peer.poll_transmit(now) {
                    if rng.random_ratio(3, 10) {
                        continue;
                    }
                    if rng.random_ratio(1, 10) {
                        late.push(frame.clone());
                    }
                    let ChannelFrame::Data { nonce, sealed } = ChannelFrame::parse(&frame).unwrap()
                    else {
                        panic!()
                    };
                    tracker.handle_data(now, nonce, sealed).unwrap();
                }
                if let Some(frame) = late.pop().filter(|_| step % 7 == 0)
                    && let Ok(ChannelFrame::Data { nonce, sealed }) = ChannelFrame::parse(&frame)
                {
                    tracker.handle_data(now, nonce, sealed).unwrap();
                }
                received.extend(std::iter::from_fn(|| tracker.poll_message()));
                while let Some(frame) = tracker.poll_transmit(now) {
                    if rng.random_ratio(7, 10) {
                        peer.handle_frame(now, &frame).unwrap();
                    }
                }
                if received.len() == messages.len() {
                    break;
                }
            }
            assert_eq!(received, messages, "seed {seed}");
        }
    }

    #[test]
    fn nothing_changed_on_the_way_is_taken() {
        let now = Instant::now();
        let (mut peer, mut tracker) = open_pair(now);
        peer.conversation().unwrap().send(b"hello").unwrap();
        let frame = peer.poll_transmit(now).unwrap();
        for at in 1..frame.len() {
            let mut flipped = frame.clone();
            flipped[at] ^= 1;
            let ChannelFrame::Data { nonce, sealed } = ChannelFrame::parse(&flipped).unwrap()
            else {
                panic!()
            };
            assert!(tracker.handle_data(now, nonce, sealed).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_reset_opens_again_with_other_keys() {
        let now = Instant::now();
        let (mut peer, _) = open_pair(now);
        peer.handle_frame(now, &ChannelFrame::Reset.emit()).unwrap();
        assert!(peer.conversation().is_none());
        assert!(peer.poll_transmit(now).is_some());
        let other = OnionKey::from_secret([8; 32]).unwrap();
        let again = peer.poll_transmit(now + Duration::from_secs(1)).unwrap();
        let ChannelFrame::Hello(message) = ChannelFrame::parse(&again).unwrap() else { panic!() };
        assert!(accept(now, other.secret(), message).is_err(), "sealed to the tracker's key alone");
    }

    #[test]
    fn a_silent_tracker_is_given_up_and_greeted_again() {
        let start = Instant::now();
        let (mut peer, _) = open_pair(start);
        peer.conversation().unwrap().send(b"hello").unwrap();
        let mut now = start;
        while peer.conversation().is_some() && now < start + Duration::from_secs(60) {
            now += Duration::from_millis(100);
            let _ = peer.poll_transmit(now);
        }
        assert!(peer.conversation().is_none());
    }
}
