//! The bytes on the wire: parse and emit only, no keys and no state.
//!
//! In: bytes from outside, or typed messages. Out: typed messages, or bytes.
//! Called by: circuit, forward, directory, node; `share` by tracker too.
//!
//! One type per message, each with `parse` and `emit`; layouts and vectors are in `docs/wire.md`.

mod body;
mod cell;
mod control;
mod create;
mod pair;
mod probe;
pub mod share;

pub use body::{BodyHeader, NO_PACKET_START, UnknownKind, body_mut, body_ref};
pub use cell::{cid_of, first_seq, set_cid};
pub use control::{
    CONTROL_HEADER_LEN, CONTROL_VALUE_LEN, ControlError, ControlFragment, ControlType, ExtendValue,
    MAX_CONTROL_FRAGMENTS, fragments,
};
pub use create::{
    ANSWER_LEN, Answer, AnswerError, CREATE_LEN, CREATE_VERSION, CreateError, CreatePrefix,
    OAEP_LEN, OAEP_PLAIN_LEN, OaepPlain, SEALED_STATUS_LEN, STATUS_LEN, Status,
};
pub use pair::{PAIR_PLAIN_LEN, PairMessage};
pub use probe::{PROBE_SIGNATURE_LEN, Probe, ProbeAnswer, ProbeError};
