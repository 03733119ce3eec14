//! Keeping a member listed: its descriptor, registered and renewed, with onion keys that rotate.
//!
//! In: what the member says of itself, its keys. Out: how it stands, its accepted onion keys.
//! Called by: the services of nodes and trackers.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use rand::{SeedableRng, rngs::StdRng};
use tokio::sync::{mpsc, oneshot, watch};

use super::{NodeError, contact::Contact};
use crate::{
    config::Secret,
    directory::{
        Backoff, ClientError, ControllerClient, DESCRIPTOR_VALIDITY, Descriptor, JoinToken,
        SignedDescriptor, WIRE_VERSION,
    },
    keys::{Identity, OnionKey, OnionKeys},
    model::{ExitPolicy, Role, Suite},
    telemetry::{
        NodeState,
        control::{Refusal, RefusalKind},
        service_manager,
    },
};

/// How often the member says that it lives.
const RENEW_EVERY: Duration = Duration::from_secs(10);
/// How often onion keys are looked at.
const ROTATION_CHECK: Duration = Duration::from_secs(60);

/// What a member says of itself beside its keys.
pub(super) struct Listing {
    pub(super) name: String,
    pub(super) port: u16,
    /// Its public address, if it is not the one the controller sees.
    pub(super) address: Option<IpAddr>,
    pub(super) join: Option<Secret>,
    pub(super) operator: Option<String>,
    pub(super) roles: Vec<Role>,
    pub(super) exit_policy: ExitPolicy,
    pub(super) suites: Vec<Suite>,
    pub(super) order_key: Option<[u8; 32]>,
}

/// How a member stands with the controller.
#[derive(Clone, Copy, Default)]
pub(super) struct Standing {
    pub(super) state: NodeState,
    pub(super) public_address: Option<SocketAddr>,
    /// When the current onion key came into use.
    pub(super) onion_key_since: Option<Timestamp>,
}

impl Standing {
    /// What its owner should do, if anything; `door` says what has to come through.
    pub(super) fn next_step(&self, is_controller_reachable: bool, door: &str) -> Option<String> {
        match self.state {
            NodeState::NotAdmitted => Some(
                "ask the controller's owner for a token and start with --join TOKEN".to_owned(),
            ),
            _ if !is_controller_reachable => {
                Some("check the network and that the controller runs".to_owned())
            }
            NodeState::Registering if self.public_address.is_some() => {
                Some(format!("let {door} through to this machine: the probe did not arrive"))
            }
            _ => None,
        }
    }
}

/// Who asked for a new onion key, and is told how that went.
pub(super) type Rotated = oneshot::Sender<Result<(), Refusal>>;

/// Asks the registration for a new onion key.
pub(super) async fn rotate_keys(rotate: &mpsc::Sender<Rotated>) -> Result<(), Refusal> {
    let ended = || Refusal::new(RefusalKind::Failed, "the daemon is ending");
    let (asked, rotated) = oneshot::channel();
    rotate.send(asked).await.map_err(|_| ended())?;
    rotated.await.map_err(|_| ended())?
}

/// Keeps a member listed.
pub(super) struct Registration<K> {
    pub(super) listing: Listing,
    pub(super) identity: Arc<Identity>,
    pub(super) onion: OnionKeys,
    pub(super) client: ControllerClient,
    pub(super) contact: Contact,
    pub(super) standing: watch::Sender<Standing>,
    /// Told the keys that are accepted, when they may have changed.
    pub(super) on_keys: K,
    pub(super) rotations: mpsc::Receiver<Rotated>,
}

impl<K: Fn(Arc<Vec<OnionKey>>)> Registration<K> {
    /// Registers and renews for ever; comes back only when the member is not admitted at its start.
    pub(super) async fn keep(mut self) -> Result<(), NodeError> {
        let mut rng = StdRng::from_rng(&mut rand::rng());
        let mut backoff = Backoff::default();
        let mut admitted = false;
        let mut next_rotation = Instant::now() + ROTATION_CHECK;
        self.set_state(NodeState::Registering);
        loop {
            if Instant::now() >= next_rotation {
                next_rotation = Instant::now() + ROTATION_CHECK;
                self.rotate_if_due(&mut rng)?;
            }
            let pause = match self.renew(admitted).await {
                Ok(pause) => {
                    self.contact.answered();
                    admitted = true;
                    backoff.reset();
                    pause
                }
                Err(NodeError::Client(error)) => {
                    if matches!(error, ClientError::NotAdmitted { .. }) {
                        self.set_state(NodeState::NotAdmitted);
                        if !admitted {
                            return Err(error.into());
                        }
                    }
                    let pause = error.retry_after().unwrap_or_else(|| backoff.next_delay(&mut rng));
                    self.contact.failed(&error, pause);
                    pause
                }
                Err(error) => return Err(error),
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                Some(asked) = self.rotations.recv() => {
                    // The next renewal, which follows at once, carries the new key.
                    let result = self.rotate_now(&mut rng);
                    let refusal = |error: NodeError| {
                        Refusal::new(RefusalKind::Failed, error.to_string())
                    };
                    let _ = asked.send(result.map_err(refusal));
                }
            }
        }
    }

    fn set_state(&self, state: NodeState) {
        self.standing.send_modify(|standing| standing.state = state);
    }

    /// One registration or renewal; returns when the next one is due. Each is signed anew: the
    /// same bytes again are no sign of life, for anyone could send them.
    async fn renew(&self, admitted: bool) -> Result<Duration, NodeError> {
        let listing = &self.listing;
        let ip = match listing.address {
            Some(address) => address,
            None => self.client.whoami().await?,
        };
        let addr = SocketAddr::new(ip, listing.port);
        let descriptor = &SignedDescriptor::sign(&self.descriptor(addr), &self.identity)?;
        let registered = match self.client.register(descriptor, None).await {
            Err(ClientError::NotAdmitted { .. }) if !admitted && listing.join.is_some() => {
                let token = listing.join.as_ref().map(|join| join.reveal().parse::<JoinToken>());
                self.client.register(descriptor, token.transpose()?.as_ref()).await
            }
            other => other,
        }?;
        let was = self.standing.borrow().state;
        let state =
            if registered.reachable { NodeState::Registered } else { NodeState::Registering };
        self.standing.send_modify(|standing| {
            (standing.state, standing.public_address) = (state, Some(addr));
        });
        if registered.reachable && was != NodeState::Registered {
            log::info!(event = "registered"; "{} is listed", listing.name);
            service_manager::status("listed");
        }
        Ok(Duration::from_secs(registered.renew_in_s).clamp(Duration::from_secs(1), RENEW_EVERY))
    }

    fn descriptor(&self, addr: SocketAddr) -> Descriptor {
        let (listing, onion, now) = (&self.listing, self.onion.current(), Timestamp::now());
        Descriptor {
            name: listing.name.clone(),
            addrs: vec![addr],
            spki: self.identity.spki_der().to_vec(),
            onion_key: *onion.public(),
            onion_key_id: onion.id(),
            roles: listing.roles.clone(),
            exit_policy: listing.exit_policy.clone(),
            suites: listing.suites.clone(),
            operator: listing.operator.clone(),
            order_key: listing.order_key,
            wire_version: WIRE_VERSION,
            valid_after: now,
            valid_until: now + DESCRIPTOR_VALIDITY,
        }
    }

    fn rotate_now(&mut self, rng: &mut StdRng) -> Result<(), NodeError> {
        let now = Timestamp::now();
        self.onion.rotate(now, rng)?;
        self.standing.send_modify(|standing| standing.onion_key_since = Some(now));
        log::info!(event = "onion_key"; "a new onion key is in use, because somebody asked for it");
        (self.on_keys)(accepted(&self.onion, now)?);
        Ok(())
    }

    fn rotate_if_due(&mut self, rng: &mut StdRng) -> Result<(), NodeError> {
        let now = Timestamp::now();
        if self.onion.rotate_if_due(now, rng)? {
            self.standing.send_modify(|standing| standing.onion_key_since = Some(now));
            log::info!(event = "onion_key"; "a new onion key is in use");
        }
        // The previous key's hour may also be over; who is too busy for the keys gets them next time.
        (self.on_keys)(accepted(&self.onion, now)?);
        Ok(())
    }
}

/// The onion keys that are accepted now, the current one first.
pub(super) fn accepted(onion: &OnionKeys, now: Timestamp) -> Result<Arc<Vec<OnionKey>>, NodeError> {
    let copies = onion.accepted(now).map(|key| OnionKey::from_secret(*key.secret()));
    Ok(Arc::new(copies.collect::<Result<_, _>>()?))
}
