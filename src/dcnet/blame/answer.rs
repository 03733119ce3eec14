//! What a party answers, and when it refuses.
//!
//! In: a question, a party's secrets and what it heard. Out: a signed answer.
//! Called by: client and trustee cores; the judge reads answers.
//!
//! ```text
//! role 1 | place 2 | question id 32 | ... | signature 64
//! BIT   one bit per counterpart, in the interval's order
//! KEY   share 32 | a commitment per counterpart 32 | client: proof 128, trustee: blinding sum 32
//! PAIR  shared point 32 | proof 64
//! ```

use curve25519_dalek::{RistrettoPoint, Scalar};
use rand::Rng;

use crate::dcnet::{
    error::DcnetError,
    hash,
    identity::Identity,
    member::PartyRef,
    message::Reader,
    pads::{Pads, PairKey},
    proof::{self, EqualLogs, OneOfTwo, Statement},
};

use super::{Accusation, Ask, Question, View};

/// Questions a party answers per interval: enough for an honest relay, no endless work.
const ANSWERS_MAX: u32 = 256;

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// The pads' bits, by counterpart.
    Bits(Vec<bool>),
    /// The share sent, commitments by counterpart, and the proof or the blindings' sum.
    Key(Scalar, Vec<RistrettoPoint>, Box<KeyProof>),
    /// The pair's shared point.
    Pair(RistrettoPoint, EqualLogs),
}

/// The end of an answer to KEY.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyProof {
    /// A client's: its share adds no key, or it owns the slot.
    Client(OneOfTwo),
    /// A trustee's: the sum of its blindings.
    Trustee(Scalar),
}

/// A signed answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Who.
    pub party: PartyRef,
    /// To which question.
    pub ask: [u8; 32],
    /// What.
    pub content: Content,
}

/// A party's secrets, as blame needs them.
pub struct Secrets<'a> {
    /// The party.
    pub me: PartyRef,
    /// Signs the answer.
    pub identity: &'a Identity,
    /// The Diffie-Hellman secret.
    pub secret: &'a Scalar,
    /// The interval's pads.
    pub pads: &'a Pads,
    /// The pseudonym secret, where the question is about the own slot.
    pub owner: Option<&'a Scalar>,
    /// The key sent in the round, zero for everybody but the owner.
    pub own_key: Scalar,
}

/// The commitment to a pair's slot scalar of a round.
pub(super) fn commitment(pair: &PairKey, round: u64) -> RistrettoPoint {
    RistrettoPoint::mul_base(&pair.scalars(round).slot)
        + pair.blinding(round) * hash::second_generator()
}

/// The two statements a client proves one of: it added no key, or it owns the slot.
pub(super) fn statements(
    view: &View<'_>,
    ask: &Ask,
    share: &Scalar,
    commitments: &[RistrettoPoint],
) -> Option<[Statement; 2]> {
    let sum: RistrettoPoint = commitments.iter().sum();
    Some([
        Statement {
            base: hash::second_generator(),
            public: RistrettoPoint::mul_base(share) - ask.h * sum,
        },
        Statement { base: view.group.slots.base, public: view.slot_key(ask.slot)? },
    ])
}

/// What binds a proof to its question and prover.
pub(super) fn proof_context(ask: &Ask, party: PartyRef) -> Vec<u8> {
    [ask.id().as_slice(), &party.to_bytes()].concat()
}

impl Answer {
    /// The signed bytes.
    pub fn to_bytes(&self, identity: &Identity) -> Vec<u8> {
        let mut out = self.party.to_bytes().to_vec();
        out.extend_from_slice(&self.ask);
        match &self.content {
            Content::Bits(bits) => {
                out.push(1);
                out.extend(bits.chunks(8).map(|chunk| {
                    chunk.iter().enumerate().fold(0, |byte, (at, bit)| byte | u8::from(*bit) << at)
                }));
            }
            Content::Key(share, commitments, end) => {
                out.push(2);
                out.extend_from_slice(share.as_bytes());
                for point in commitments {
                    out.extend_from_slice(&proof::bytes(point));
                }
                match &**end {
                    KeyProof::Client(proof) => out.extend_from_slice(&proof.to_bytes()),
                    KeyProof::Trustee(sum) => out.extend_from_slice(sum.as_bytes()),
                }
            }
            Content::Pair(shared, proof) => {
                out.push(3);
                out.extend_from_slice(&proof::bytes(shared));
                out.extend_from_slice(&proof.to_bytes());
            }
        }
        let signature = identity.sign("answer", &out);
        out.extend_from_slice(&signature.0);
        out
    }

    /// Reads an answer and checks its signature.
    ///
    /// # Errors
    /// When it is malformed or not by its party.
    pub fn parse(body: &[u8], view: &View<'_>) -> Result<Self, DcnetError> {
        let (unsigned, signature) =
            body.split_at_checked(body.len().saturating_sub(64)).unwrap_or((body, &[]));
        let mut reader = Reader::new("ANSWER", unsigned);
        let party = PartyRef::read(&mut reader)?;
        let bad = || DcnetError::BadProof { what: "an answer", who: party.to_string() };
        let (members, counterparts) = match party {
            PartyRef::Client(at) => (
                view.interval.clients.iter().any(|member| member.index == at),
                view.interval.trustees.len(),
            ),
            PartyRef::Trustee(at) => (
                view.interval.trustees.iter().any(|member| member.index == at),
                view.interval.clients.len(),
            ),
        };
        let key = party.key(view.group).filter(|_| members).ok_or_else(bad)?;
        let ask = reader.array()?;
        let content = match reader.u8()? {
            1 => {
                let bytes = reader.take(counterparts.div_ceil(8))?;
                Content::Bits(
                    (0..counterparts).map(|at| bytes[at / 8] >> (at % 8) & 1 == 1).collect(),
                )
            }
            2 => {
                let share = reader.scalar()?;
                let mut commitments = Vec::with_capacity(counterparts);
                for _ in 0..counterparts {
                    commitments.push(proof::any_point(&reader.array()?).ok_or_else(bad)?);
                }
                let end = match party {
                    PartyRef::Client(_) => {
                        KeyProof::Client(OneOfTwo::from_bytes(&reader.array()?).ok_or_else(bad)?)
                    }
                    PartyRef::Trustee(_) => KeyProof::Trustee(reader.scalar()?),
                };
                Content::Key(share, commitments, Box::new(end))
            }
            3 => Content::Pair(
                proof::point(&reader.array()?).ok_or_else(bad)?,
                EqualLogs::from_bytes(&reader.array()?).ok_or_else(bad)?,
            ),
            other => {
                return Err(DcnetError::malformed("ANSWER", "content 1 to 3", other.to_string()));
            }
        };
        reader.end()?;
        let signature: &[u8; 64] = signature.try_into().map_err(|_| bad())?;
        if !key.verify("answer", unsigned, signature) {
            return Err(bad());
        }
        Ok(Self { party, ask, content })
    }
}

/// Answers questions, a bounded number of them.
#[derive(Debug, Default)]
pub struct Answerer {
    number: u32,
    answered: u32,
}

impl Answerer {
    /// The answer's bytes; none where this party has nothing to say.
    ///
    /// # Errors
    /// On a question an honest relay does not ask; the link has to be closed.
    pub fn answer(
        &mut self,
        ask: &Ask,
        view: &View<'_>,
        secrets: &mut Secrets<'_>,
        rng: &mut impl Rng,
    ) -> Result<Option<Vec<u8>>, DcnetError> {
        ask.check(view)?;
        if self.number != ask.number {
            *self = Self { number: ask.number, answered: 0 };
        }
        self.answered += 1;
        if self.answered > ANSWERS_MAX {
            return Err(DcnetError::malformed("ASK", "an end to questions", "another one"));
        }
        check_heard(ask, view)?;
        let content = match &ask.question {
            Question::Bit(accusation, clients) => {
                let Accusation::Bit(_, bit, _) = accusation else { return Ok(None) };
                if matches!(secrets.me, PartyRef::Trustee(_)) {
                    check_clients_agree(ask, clients, view)?;
                }
                let bit = usize::try_from(*bit).unwrap_or(usize::MAX);
                if bit >= usize::from(view.interval.cell_size) * 8 {
                    return Err(DcnetError::malformed("ASK", "a bit of the cell", bit.to_string()));
                }
                Content::Bits(
                    secrets.pads.pairs.iter().map(|pair| pair.bit(ask.round, bit)).collect(),
                )
            }
            Question::Key => key_content(ask, view, secrets, rng)?,
            Question::Pair { client, trustee, ask: before, answers } => {
                let Some(other) = own_pair(secrets.me, *client, *trustee) else { return Ok(None) };
                check_contradiction(view, *client, *trustee, before, answers)?;
                let Some(point) = other.point(view.group) else { return Ok(None) };
                Content::Pair(secrets.secret * point, EqualLogs::prove(secrets.secret, &point, rng))
            }
        };
        let answer = Answer { party: secrets.me, ask: ask.id(), content };
        Ok(Some(answer.to_bytes(secrets.identity)))
    }
}

fn own_pair(me: PartyRef, client: u16, trustee: u16) -> Option<PartyRef> {
    if me == PartyRef::Client(client) {
        Some(PartyRef::Trustee(trustee))
    } else if me == PartyRef::Trustee(trustee) {
        Some(PartyRef::Client(client))
    } else {
        None
    }
}

/// A client answers only for rounds it heard as the relay now tells them.
fn check_heard(ask: &Ask, view: &View<'_>) -> Result<(), DcnetError> {
    if matches!(ask.question, Question::Pair { .. }) {
        return Ok(());
    }
    let Some(heard) = view.heard else { return Ok(()) };
    match heard.iter().find(|heard| heard.round == ask.round) {
        Some(heard) if heard.slot == ask.slot && heard.scalar == ask.h => Ok(()),
        Some(heard) if heard.slot == ask.slot => Err(DcnetError::Equivocation { round: ask.round }),
        Some(heard) => Err(DcnetError::malformed(
            "ASK",
            format!("slot {}, whose turn round {} was", heard.slot, ask.round),
            format!("slot {}", ask.slot),
        )),
        None => Err(DcnetError::malformed("ASK", "a recent round", ask.round.to_string())),
    }
}

fn check_clients_agree(ask: &Ask, answers: &[Vec<u8>], view: &View<'_>) -> Result<(), DcnetError> {
    let id = ask.id();
    let mut agreed = std::collections::BTreeSet::new();
    for bytes in answers {
        let answer = Answer::parse(bytes, view)?;
        if answer.ask == id && matches!(answer.content, Content::Bits(_)) {
            agreed.insert(answer.party);
        }
    }
    let all = view.interval.clients.iter().all(|m| agreed.contains(&PartyRef::Client(m.index)));
    if all {
        return Ok(());
    }
    Err(DcnetError::malformed(
        "ASK",
        "every client's answer, as only they know whose slot it was",
        format!("{} of {}", agreed.len(), view.interval.clients.len()),
    ))
}

fn key_content(
    ask: &Ask,
    view: &View<'_>,
    secrets: &Secrets<'_>,
    rng: &mut impl Rng,
) -> Result<Content, DcnetError> {
    let pairs = &secrets.pads.pairs;
    let commitments: Vec<_> = pairs.iter().map(|pair| commitment(pair, ask.round)).collect();
    let sum: Scalar = pairs.iter().map(|pair| pair.scalars(ask.round).slot).sum();
    let blindings: Scalar = pairs.iter().map(|pair| pair.blinding(ask.round)).sum();
    if matches!(secrets.me, PartyRef::Trustee(_)) {
        return Ok(Content::Key(sum, commitments, Box::new(KeyProof::Trustee(blindings))));
    }
    let share = secrets.own_key + ask.h * sum;
    let both = statements(view, ask, &share, &commitments).ok_or_else(|| {
        DcnetError::malformed("ASK", "a slot of the session", ask.slot.to_string())
    })?;
    let context = proof_context(ask, secrets.me);
    let proof = match secrets.owner {
        Some(pseudonym) => OneOfTwo::prove(&both, 1, pseudonym, &context, rng),
        None => OneOfTwo::prove(&both, 0, &-(ask.h * blindings), &context, rng),
    };
    Ok(Content::Key(share, commitments, Box::new(KeyProof::Client(proof))))
}

/// The key of a pair is revealed only where its two have signed what cannot both be true.
fn check_contradiction(
    view: &View<'_>,
    client: u16,
    trustee: u16,
    before: &[u8],
    answers: &[Vec<u8>; 2],
) -> Result<(), DcnetError> {
    let before = Ask::parse(before)?;
    before.check(view)?;
    let wrong = || {
        DcnetError::malformed("ASK", "two answers that contradict each other", "two that do not")
    };
    let first = Answer::parse(&answers[0], view)?;
    let second = Answer::parse(&answers[1], view)?;
    let right = first.party == PartyRef::Client(client)
        && second.party == PartyRef::Trustee(trustee)
        && first.ask == before.id()
        && second.ask == before.id();
    if right && super::judge::contradict(view, &first, &second) { Ok(()) } else { Err(wrong()) }
}
