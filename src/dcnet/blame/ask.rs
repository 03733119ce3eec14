//! What the relay asks all parties.
//!
//! In: a jammed round, an accusation, two answers that contradict. Out: signed questions.
//! Called by: [`crate::dcnet::blame`].
//!
//! ```text
//! number 4 | round 8 | slot 2 | h 32 | k 32 | question 1 | ... | relay's signature 64
//! BIT   accused bit 4 | pseudonym's signature 64 | answers of clients (for trustees only)
//! KEY   nothing
//! PAIR  client 2 | trustee 2 | the question before | the client's answer | the trustee's answer
//! ```

use curve25519_dalek::Scalar;

use crate::dcnet::{error::DcnetError, identity::Identity, message::Reader};

use super::{Accusation, View};

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// Open one bit of a slot whose owner says it left it 0. Trustees get the clients' answers,
    /// as only clients know whose slot the round was.
    Bit(Accusation, Vec<Vec<u8>>),
    /// Prove the share of the slot's key.
    Key,
    /// Reveal the key of a pair whose answers to an earlier question contradict.
    Pair {
        /// The client.
        client: u16,
        /// The trustee.
        trustee: u16,
        /// The earlier question.
        ask: Vec<u8>,
        /// Its answers by the two.
        answers: [Vec<u8>; 2],
    },
}

/// A signed question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// The interval.
    pub number: u32,
    /// The jammed round.
    pub round: u64,
    /// Its slot.
    pub slot: u16,
    /// The history's scalar in that round.
    pub h: Scalar,
    /// The key the relay recovered.
    pub k: Scalar,
    /// What is asked.
    pub question: Question,
    /// By the relay.
    pub signature: [u8; 64],
}

/// Appends a byte string with its length.
pub(super) fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// Reads a byte string with its length.
pub(super) fn get(reader: &mut Reader<'_>) -> Result<Vec<u8>, DcnetError> {
    let len = reader.u32()?;
    Ok(reader.take(usize::try_from(len).unwrap_or(usize::MAX))?.to_vec())
}

impl Ask {
    fn unsigned(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&self.number.to_be_bytes());
        out.extend_from_slice(&self.round.to_be_bytes());
        out.extend_from_slice(&self.slot.to_be_bytes());
        out.extend_from_slice(self.h.as_bytes());
        out.extend_from_slice(self.k.as_bytes());
        match &self.question {
            Question::Bit(accusation, answers) => {
                out.push(1);
                if let Accusation::Bit(_, bit, signature) = accusation {
                    out.extend_from_slice(&bit.to_be_bytes());
                    out.extend_from_slice(signature);
                }
                out.extend_from_slice(&u16::try_from(answers.len()).unwrap_or(0).to_be_bytes());
                answers.iter().for_each(|answer| put(&mut out, answer));
            }
            Question::Key => out.push(2),
            Question::Pair { client, trustee, ask, answers } => {
                out.push(3);
                out.extend_from_slice(&client.to_be_bytes());
                out.extend_from_slice(&trustee.to_be_bytes());
                put(&mut out, ask);
                answers.iter().for_each(|answer| put(&mut out, answer));
            }
        }
        out
    }

    /// The bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = self.unsigned();
        out.extend_from_slice(&self.signature);
        out
    }

    /// Strictly one question.
    ///
    /// # Errors
    /// Says what is missing or too much.
    pub fn parse(body: &[u8]) -> Result<Self, DcnetError> {
        let mut reader = Reader::new("ASK", body);
        let (number, round, slot) = (reader.u32()?, reader.u64()?, reader.u16()?);
        let (h, k) = (reader.scalar()?, reader.scalar()?);
        let question = match reader.u8()? {
            1 => {
                let accusation = Accusation::Bit(round, reader.u32()?, reader.array()?);
                let count = reader.u16()?;
                let answers = (0..count).map(|_| get(&mut reader)).collect::<Result<_, _>>()?;
                Question::Bit(accusation, answers)
            }
            2 => Question::Key,
            3 => Question::Pair {
                client: reader.u16()?,
                trustee: reader.u16()?,
                ask: get(&mut reader)?,
                answers: [get(&mut reader)?, get(&mut reader)?],
            },
            other => {
                return Err(DcnetError::malformed("ASK", "question 1 to 3", other.to_string()));
            }
        };
        let signature = reader.array()?;
        reader.end()?;
        Ok(Self { number, round, slot, h, k, question, signature })
    }

    /// Signs it for an interval.
    #[must_use]
    pub fn signed(mut self, hash: &[u8; 32], relay: &Identity) -> Self {
        self.signature = relay.sign("ask", &[hash.as_slice(), &self.unsigned()].concat()).0;
        self
    }

    /// Whether the relay asks this, in this interval, with a signature of the slot's owner.
    ///
    /// # Errors
    /// Says what does not hold.
    pub fn check(&self, view: &View<'_>) -> Result<(), DcnetError> {
        let bad = |what| DcnetError::BadProof { what, who: "the relay".into() };
        let signed = [view.hash.as_slice(), &self.unsigned()].concat();
        if self.number != view.interval.number
            || !view.group.relay.verify("ask", &signed, &self.signature)
        {
            return Err(bad("a question of blame"));
        }
        if let Question::Bit(accusation, _) = &self.question
            && !accusation.verify(view, self.slot)
        {
            return Err(bad("the pseudonym's accusation shown"));
        }
        Ok(())
    }

    /// What an answer is bound to: the question without what only trustees get.
    pub fn id(&self) -> [u8; 32] {
        let mut bare = self.clone();
        if let Question::Bit(_, answers) = &mut bare.question {
            answers.clear();
        }
        crate::dcnet::hash::hash("ask id", &[&bare.unsigned()])
    }
}
