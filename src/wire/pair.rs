//! What two neighbours of a circuit tell each other without the client.
//!
//! In: the opened plaintext of a neighbour cell. Out: a typed message. Called by: circuit, forward.
//!
//! ```text
//! cell   CID 16 | seq 4 | tag 16 | sealed 1372
//! plain  type 1 | reason 1 | zeros
//! ```

use crate::model::{CELL_LEN, CID_LEN, DestroyReason, SLOT_LEN};

/// The sealed part of a neighbour cell.
pub const PAIR_PLAIN_LEN: usize = CELL_LEN - CID_LEN - SLOT_LEN;

const DESTROY: u8 = 1;

/// A message between neighbours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PairMessage {
    /// The circuit ends here; free its state and tell the neighbour on the other side.
    Destroy(DestroyReason),
}

impl PairMessage {
    /// Reads an opened neighbour cell; `None` for a type this program does not know.
    pub fn parse(plain: &[u8]) -> Option<Self> {
        match plain {
            [DESTROY, reason, ..] => Some(Self::Destroy(DestroyReason::from_wire(*reason))),
            _ => None,
        }
    }

    /// Writes the plaintext, zeros included.
    pub fn emit(self, plain: &mut [u8]) {
        plain.fill(0);
        let Self::Destroy(reason) = self;
        if let [kind, value, ..] = plain {
            *kind = DESTROY;
            *value = reason as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destroy_round_trips() {
        for reason in DestroyReason::ALL {
            let mut plain = [7u8; PAIR_PLAIN_LEN];
            PairMessage::Destroy(reason).emit(&mut plain);
            assert_eq!(PairMessage::parse(&plain), Some(PairMessage::Destroy(reason)));
        }
        assert_eq!(PairMessage::parse(&[0, 0]), None);
        assert_eq!(PairMessage::parse(&[]), None);
    }
}
