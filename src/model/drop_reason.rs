//! Why a packet or a cell was dropped, and one counter per reason.
//!
//! In: nothing. Out: reasons and counters. Called by: forward, circuit, capture, telemetry.

/// A dropped packet is not an error: it has a reason, and each reason is counted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum DropReason {
    /// A datagram that is not one cell long.
    BadLength,
    /// No circuit has this id, and it is no valid CREATE.
    UnknownCircuit,
    /// A cell of a known circuit from a place that neither neighbour uses.
    WrongSender,
    /// The tag does not verify.
    BadTag,
    /// The sequence number was seen, or is too old.
    Replay,
    /// The sequence numbers of a circuit are used up.
    CounterExhausted,
    /// A body of a kind this program does not know.
    UnknownKind,
    /// Cover traffic, dropped as meant.
    Cover,
    /// A body that reached the last hop unrecognised.
    NotRecognised,
    /// A CREATE whose first MAC does not verify, or that is malformed.
    BadCreate,
    /// A CREATE whose ephemeral key was used before.
    ReplayedCreate,
    /// A CREATE for an onion key this node does not have.
    UnknownOnionKey,
    /// A CREATE that was answered with a cookie or dropped, under load.
    CreateOverload,
    /// A source over its rate of CREATEs.
    RateLimited,
    /// A control message that does not parse or makes no sense in this state.
    BadControl,
    /// A reachability probe that is malformed, unsigned or over its rate.
    BadProbe,
    /// An inner packet that does not parse.
    BadInnerPacket,
    /// An inner packet with an inner source that is not the client's.
    InnerSource,
    /// An inner packet that the exit policy rejects.
    ExitPolicy,
    /// An inner packet between two circuits of one exit.
    PoolToPool,
    /// A packet from outside for a pool address that no circuit has.
    NoSuchPoolAddress,
    /// A circuit over its rate of packets at the exit.
    ExitRate,
    /// A circuit over its number of connections at the exit.
    ExitConnections,
    /// A data cell at a node that is not an exit.
    NotAnExit,
    /// A fragment of an inner packet whose neighbours were lost.
    FragmentLost,
    /// An inner packet larger than the inner MTU.
    TooLarge,
    /// No circuit is open, and packets are not let out otherwise.
    NoCircuit,
    /// A packet of a flow that belongs to another device of this client.
    FlowInUse,
    /// A bounded queue was full.
    QueueFull,
    /// The device or socket refused the write.
    DeviceError,
    /// A datagram of a session that has no bridge here.
    NoBridge,
    /// A bridge over its share of a full link.
    BridgeShare,
    /// A queue stayed long: one packet, so that its sender slows down.
    Congestion,
    /// A tracking code that is not for this node, was changed, or ran out.
    BadCode,
}

impl DropReason {
    /// All reasons, in counter order.
    pub const ALL: [Self; 34] = [
        Self::BadLength,
        Self::UnknownCircuit,
        Self::WrongSender,
        Self::BadTag,
        Self::Replay,
        Self::CounterExhausted,
        Self::UnknownKind,
        Self::Cover,
        Self::NotRecognised,
        Self::BadCreate,
        Self::ReplayedCreate,
        Self::UnknownOnionKey,
        Self::CreateOverload,
        Self::RateLimited,
        Self::BadControl,
        Self::BadProbe,
        Self::BadInnerPacket,
        Self::InnerSource,
        Self::ExitPolicy,
        Self::PoolToPool,
        Self::NoSuchPoolAddress,
        Self::ExitRate,
        Self::ExitConnections,
        Self::NotAnExit,
        Self::FragmentLost,
        Self::TooLarge,
        Self::NoCircuit,
        Self::FlowInUse,
        Self::QueueFull,
        Self::DeviceError,
        Self::NoBridge,
        Self::BridgeShare,
        Self::Congestion,
        Self::BadCode,
    ];

    /// The name used in status, JSON and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BadLength => "bad_length",
            Self::UnknownCircuit => "unknown_circuit",
            Self::WrongSender => "wrong_sender",
            Self::BadTag => "bad_tag",
            Self::Replay => "replay",
            Self::CounterExhausted => "counter_exhausted",
            Self::UnknownKind => "unknown_kind",
            Self::Cover => "cover",
            Self::NotRecognised => "not_recognised",
            Self::BadCreate => "bad_create",
            Self::ReplayedCreate => "replayed_create",
            Self::UnknownOnionKey => "unknown_onion_key",
            Self::CreateOverload => "create_overload",
            Self::RateLimited => "rate_limited",
            Self::BadControl => "bad_control",
            Self::BadProbe => "bad_probe",
            Self::BadInnerPacket => "bad_inner_packet",
            Self::InnerSource => "inner_source",
            Self::ExitPolicy => "exit_policy",
            Self::PoolToPool => "pool_to_pool",
            Self::NoSuchPoolAddress => "no_such_pool_address",
            Self::ExitRate => "exit_rate",
            Self::ExitConnections => "exit_connections",
            Self::NotAnExit => "not_an_exit",
            Self::FragmentLost => "fragment_lost",
            Self::TooLarge => "too_large",
            Self::NoCircuit => "no_circuit",
            Self::FlowInUse => "flow_in_use",
            Self::QueueFull => "queue_full",
            Self::DeviceError => "device_error",
            Self::NoBridge => "no_bridge",
            Self::BridgeShare => "bridge_share",
            Self::Congestion => "congestion",
            Self::BadCode => "bad_code",
        }
    }
}

/// One counter per [`DropReason`].
#[derive(Clone, Debug)]
pub struct DropCounters([u64; DropReason::ALL.len()]);

impl Default for DropCounters {
    fn default() -> Self {
        Self([0; DropReason::ALL.len()])
    }
}

impl DropCounters {
    /// Counts one drop.
    pub fn count(&mut self, reason: DropReason) {
        self.0[reason as usize] += 1;
    }

    /// How often `reason` was counted.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    /// Every reason that was counted at least once.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL
            .into_iter()
            .map(|reason| (reason, self.get(reason)))
            .filter(|(_, count)| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counter_order_is_the_order_of_the_enum() {
        for (index, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index, "{}", reason.name());
        }
    }
}
