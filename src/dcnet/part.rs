//! A party's part in one interval: its pads, the chain of what it sent, the next round.
//!
//! In: INTERVAL, questions and verdicts of the relay. Out: checked intervals, shares with their
//! checkpoints, signed answers. Called by: the client and the trustee core, which have this in
//! common.

use curve25519_dalek::{RistrettoPoint, Scalar};
use rand::Rng;

use crate::dcnet::{
    blame::{self, Ask, Blamed, Case, VerdictFile, View},
    error::DcnetError,
    interval::SignedInterval,
    member::{self, Chain, Member},
    message::{self, Share, kind},
    pads::Pads,
};

/// One interval, as a party takes part in it.
pub struct Part {
    /// The interval.
    pub signed: SignedInterval,
    /// Its hash.
    pub hash: [u8; 32],
    /// With every counterpart.
    pub pads: Pads,
    /// Over everything sent in it.
    pub chain: Chain,
    /// The next round.
    pub round: u64,
}

/// What a party brings to a question beside its pads.
pub struct Own<'a> {
    /// What it knows of the interval.
    pub view: View<'a>,
    /// The pseudonym secret, where the question is about the own slot.
    pub owner: Option<&'a Scalar>,
    /// The key sent in the round, zero for everybody but the owner.
    pub key: Scalar,
}

impl Member {
    /// An interval the relay announced, with the relay's key for it: checked, its pads derived.
    ///
    /// # Errors
    /// When it is not newer than `last`, or not one this party takes part in.
    pub fn prepare(
        &mut self,
        body: &[u8],
        last: u32,
    ) -> Result<(RistrettoPoint, Part), DcnetError> {
        let (relay_key, signed) = member::parse_interval(body)?;
        let number = signed.interval.number;
        if number <= last {
            return Err(DcnetError::malformed(
                "INTERVAL",
                format!("a number above {last}"),
                number.to_string(),
            ));
        }
        self.check_interval(&signed)?;
        let hash = signed.interval.hash();
        let pads = self.pads(&signed.interval);
        Ok((relay_key, Part { chain: Chain::new(&hash), hash, pads, signed, round: 0 }))
    }

    /// Judges a verdict for itself; who is convicted stays out.
    ///
    /// # Errors
    /// When the case is not what it claims to be.
    pub fn judge(&self, body: &[u8], view: &View<'_>) -> Result<Blamed, DcnetError> {
        Case::parse(body)?.judge(view)
    }

    /// Judges a verdict of an earlier interval, as a party that joins hears of it.
    ///
    /// # Errors
    /// When the case is not what it claims to be.
    pub fn hear_past(&mut self, body: &[u8]) -> Result<(), DcnetError> {
        let blamed = VerdictFile::parse(body)?.judge(&self.group)?;
        self.convict(blamed);
        Ok(())
    }

    /// Remembers whom a verdict convicted.
    pub fn convict(&mut self, blamed: Blamed) {
        if let Blamed::Party(party) = blamed
            && !self.convicted.contains(&party)
        {
            self.convicted.push(party);
        }
    }
}

impl Part {
    /// The interval's number.
    pub fn number(&self) -> u32 {
        self.signed.interval.number
    }

    /// Appends a share to `out`, and a checkpoint when it is due.
    pub fn send(&mut self, kind: u8, share: &Share<'_>, member: &Member, out: &mut Vec<u8>) {
        self.chain.send(kind, share, &self.hash, &member.identity, out);
    }

    /// Answers a question, if this party has to say something to it.
    ///
    /// # Errors
    /// On a question an honest relay does not ask; the link has to be closed.
    pub fn answer(
        &self,
        ask: &Ask,
        member: &Member,
        own: &Own<'_>,
        answers: &mut blame::Answerer,
        rng: &mut impl Rng,
        out: &mut Vec<u8>,
    ) -> Result<(), DcnetError> {
        let mut secrets = blame::Secrets {
            me: member.me,
            identity: &member.identity,
            secret: &member.secret,
            pads: &self.pads,
            owner: own.owner,
            own_key: own.key,
        };
        if let Some(answer) = answers.answer(ask, &own.view, &mut secrets, rng)? {
            message::frame(out, kind::ANSWER, &[&answer]);
        }
        Ok(())
    }
}

/// `what` came before any interval.
pub fn no_interval(what: &str) -> DcnetError {
    DcnetError::OutOfPlace { what: what.into(), state: "no interval runs".into() }
}
