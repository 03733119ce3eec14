//! What a body is for, which way it goes, and why a circuit ends.
//!
//! In: wire numbers. Out: typed values. Called by: wire, circuit, forward.

/// Which way a cell travels.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Direction {
    /// Client to exit.
    Forward,
    /// Exit to client.
    Backward,
}

/// The kind byte of a body.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum BodyKind {
    /// A piece of the stream of inner packets.
    Data = 0,
    /// A control message.
    Control = 1,
    /// Cover: dropped where it is recognised.
    Cover = 2,
    /// Asks for an echo.
    Echo = 3,
    /// Answers an echo.
    EchoReply = 4,
    /// A datagram for a bridge between two circuits.
    Bridge = 5,
}

impl BodyKind {
    /// The kind of a wire number, if known.
    pub const fn from_wire(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Data,
            1 => Self::Control,
            2 => Self::Cover,
            3 => Self::Echo,
            4 => Self::EchoReply,
            5 => Self::Bridge,
            _ => return None,
        })
    }
}

/// The coarse reason of a DESTROY or of a refused CREATE.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum DestroyReason {
    /// The client is done with it.
    Finished = 1,
    /// The node is at its configured maximum, or over a limit.
    ResourceLimit = 2,
    /// The next node cannot be reached, does not answer or is gone.
    NextHopGone = 3,
    /// Idle for too long.
    Idle = 4,
    /// The node shuts down.
    ShuttingDown = 5,
    /// A message that makes no sense in this state.
    Protocol = 6,
    /// The named next node is not a member of the directory.
    NotAMember = 7,
    /// The circuit's counters are used up.
    Expired = 8,
}

impl DestroyReason {
    /// All reasons.
    pub const ALL: [Self; 8] = [
        Self::Finished,
        Self::ResourceLimit,
        Self::NextHopGone,
        Self::Idle,
        Self::ShuttingDown,
        Self::Protocol,
        Self::NotAMember,
        Self::Expired,
    ];

    /// The reason of a wire number; unknown numbers read as [`Self::Protocol`].
    pub fn from_wire(number: u8) -> Self {
        Self::ALL.into_iter().find(|reason| *reason as u8 == number).unwrap_or(Self::Protocol)
    }

    /// A few words for people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::ResourceLimit => "resource limit",
            Self::NextHopGone => "next hop gone",
            Self::Idle => "idle",
            Self::ShuttingDown => "shutting down",
            Self::Protocol => "protocol error",
            Self::NotAMember => "next hop is not a member",
            Self::Expired => "expired",
        }
    }
}
