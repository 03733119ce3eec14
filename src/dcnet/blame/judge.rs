//! Who did it: a pure function of signed statements, the same for everybody.
//!
//! In: a question, all answers, perhaps a revealed pair and a signed checkpoint. Out: [`Blamed`].
//! Called by: relay, clients and trustees at a verdict, `cepa dcnet verdict FILE`.

use std::collections::BTreeMap;

use curve25519_dalek::{RistrettoPoint, Scalar};

use crate::dcnet::{
    error::DcnetError,
    hash,
    member::{CHECK_EVERY, Chain, PartyRef},
    message::{Reader, Share},
    pads::PairKey,
};

use super::{
    Accusation, Answer, Ask, Blamed, Content, Question, View,
    answer::{KeyProof, commitment, proof_context, statements},
    ask::{get, put},
};

/// What a party sent, with its own signature: the shares up to a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// The party.
    pub party: PartyRef,
    /// The chain before the first share.
    pub start: [u8; 32],
    /// The shares up to the checkpoint.
    pub shares: Vec<Vec<u8>>,
    /// The checkpoint's round.
    pub round: u64,
    /// The party's signature.
    pub signature: [u8; 64],
}

/// Everything a verdict rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// The question.
    pub ask: Vec<u8>,
    /// All answers.
    pub answers: Vec<Vec<u8>>,
    /// A pair's question and the revealed key, by one of the two.
    pub pair: Option<(Vec<u8>, Vec<u8>)>,
    /// What a party sent against its answer.
    pub evidence: Option<Evidence>,
}

/// Whether two answers to one question cannot both be true.
pub(super) fn contradict(view: &View<'_>, client: &Answer, trustee: &Answer) -> bool {
    let (PartyRef::Client(i), PartyRef::Trustee(j)) = (client.party, trustee.party) else {
        return false;
    };
    let of_trustee = view.interval.clients.iter().position(|member| member.index == i);
    let of_client = view.interval.trustees.iter().position(|member| member.index == j);
    let (Some(i), Some(j)) = (of_trustee, of_client) else { return false };
    match (&client.content, &trustee.content) {
        (Content::Bits(own), Content::Bits(other)) => own.get(j) != other.get(i),
        (Content::Key(_, own, _), Content::Key(_, other, _)) => own.get(j) != other.get(i),
        _ => false,
    }
}

impl Evidence {
    /// The share of `round`, when the signature covers it.
    fn share<'a>(&'a self, view: &View<'_>, round: u64) -> Option<Share<'a>> {
        if self.shares.len() > 2 * usize::try_from(CHECK_EVERY).unwrap_or(0) {
            return None;
        }
        let mut chain = Chain(self.start);
        self.shares.iter().for_each(|share| chain.push(share));
        let signed = chain.signed(view.hash, self.round);
        if !self.party.key(view.group)?.verify("check", &signed, &self.signature) {
            return None;
        }
        let cell = usize::from(view.interval.cell_size);
        self.shares
            .iter()
            .filter_map(|share| Share::parse(share, cell).ok())
            .find(|share| share.round == round && share.number == view.interval.number)
    }
}

impl Case {
    /// The bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, &self.ask);
        out.extend_from_slice(&u16::try_from(self.answers.len()).unwrap_or(0).to_be_bytes());
        self.answers.iter().for_each(|answer| put(&mut out, answer));
        out.push(u8::from(self.pair.is_some()));
        if let Some((ask, answer)) = &self.pair {
            put(&mut out, ask);
            put(&mut out, answer);
        }
        out.push(u8::from(self.evidence.is_some()));
        if let Some(evidence) = &self.evidence {
            out.extend_from_slice(&evidence.party.to_bytes());
            out.extend_from_slice(&evidence.start);
            out.extend_from_slice(&evidence.round.to_be_bytes());
            out.extend_from_slice(&evidence.signature);
            let count = u16::try_from(evidence.shares.len()).unwrap_or(0);
            out.extend_from_slice(&count.to_be_bytes());
            evidence.shares.iter().for_each(|share| put(&mut out, share));
        }
        out
    }

    /// Strictly one case.
    ///
    /// # Errors
    /// Says what is missing or too much.
    pub fn parse(body: &[u8]) -> Result<Self, DcnetError> {
        let mut reader = Reader::new("VERDICT", body);
        let ask = get(&mut reader)?;
        let count = reader.u16()?;
        let answers = (0..count).map(|_| get(&mut reader)).collect::<Result<_, _>>()?;
        let pair =
            if reader.u8()? == 1 { Some((get(&mut reader)?, get(&mut reader)?)) } else { None };
        let evidence = if reader.u8()? == 1 {
            let party = PartyRef::read(&mut reader)?;
            let (start, round, signature) = (reader.array()?, reader.u64()?, reader.array()?);
            let count = reader.u16()?;
            let shares = (0..count).map(|_| get(&mut reader)).collect::<Result<_, _>>()?;
            Some(Evidence { party, start, shares, round, signature })
        } else {
            None
        };
        reader.end()?;
        Ok(Self { ask, answers, pair, evidence })
    }

    /// Judges.
    ///
    /// # Errors
    /// When the case itself is not what it claims to be: signatures missing or wrong.
    pub fn judge(&self, view: &View<'_>) -> Result<Blamed, DcnetError> {
        let ask = Ask::parse(&self.ask)?;
        ask.check(view)?;
        let id = ask.id();
        let mut answers = BTreeMap::new();
        for bytes in &self.answers {
            let answer = Answer::parse(bytes, view)?;
            if answer.ask != id {
                return Err(DcnetError::malformed(
                    "VERDICT",
                    "answers to its question",
                    "another's",
                ));
            }
            answers.insert(answer.party, answer);
        }
        let clients: Vec<&Answer> = self.all(view, &answers, true)?;
        let trustees: Vec<&Answer> = self.all(view, &answers, false)?;
        if let Some(blamed) = relay_contradicts_itself(&ask, view) {
            return Ok(blamed);
        }
        for client in &clients {
            for trustee in &trustees {
                if contradict(view, client, trustee) {
                    return self.judge_pair(view, &ask, client, trustee);
                }
            }
        }
        match &ask.question {
            Question::Bit(Accusation::Bit(_, bit, _), _) => {
                let bit = usize::try_from(*bit).unwrap_or(0);
                Ok(self.judge_bit(view, &ask, bit, &answers))
            }
            Question::Key => Ok(self.judge_key(view, &ask, &clients, &trustees)),
            _ => Ok(Blamed::Nobody),
        }
    }

    fn all<'a>(
        &self,
        view: &View<'_>,
        answers: &'a BTreeMap<PartyRef, Answer>,
        clients: bool,
    ) -> Result<Vec<&'a Answer>, DcnetError> {
        let members = if clients { &view.interval.clients } else { &view.interval.trustees };
        let party = |at| if clients { PartyRef::Client(at) } else { PartyRef::Trustee(at) };
        members
            .iter()
            .map(|member| {
                answers.get(&party(member.index)).ok_or_else(|| {
                    DcnetError::malformed(
                        "VERDICT",
                        format!("an answer of {}", party(member.index)),
                        "none",
                    )
                })
            })
            .collect()
    }

    /// Two signed statements contradict: the pair's key tells who lied.
    fn judge_pair(
        &self,
        view: &View<'_>,
        ask: &Ask,
        client: &Answer,
        trustee: &Answer,
    ) -> Result<Blamed, DcnetError> {
        let (PartyRef::Client(i), PartyRef::Trustee(j)) = (client.party, trustee.party) else {
            return Ok(Blamed::Nobody);
        };
        let Some((pair_ask, reveal)) = &self.pair else { return Ok(Blamed::Pair(i, j)) };
        let pair_ask = Ask::parse(pair_ask)?;
        pair_ask.check(view)?;
        let reveal = Answer::parse(reveal, view)?;
        let Content::Pair(shared, proof) = &reveal.content else { return Ok(Blamed::Pair(i, j)) };
        let other = match reveal.party {
            party if party == client.party => trustee.party,
            party if party == trustee.party => client.party,
            _ => return Ok(Blamed::Pair(i, j)),
        };
        let bad = || DcnetError::BadProof { what: "a revealed key", who: reveal.party.to_string() };
        let (own, other) = (
            reveal.party.point(view.group).ok_or_else(bad)?,
            other.point(view.group).ok_or_else(bad)?,
        );
        if reveal.ask != pair_ask.id() || !proof.verify(&own, &other, shared) {
            return Err(bad());
        }
        let pair = PairKey::new(shared, view.hash);
        let at_client = view.interval.trustees.iter().position(|m| m.index == j).ok_or_else(bad)?;
        let right = match (&client.content, &ask.question) {
            (Content::Bits(bits), Question::Bit(Accusation::Bit(_, bit, _), _)) => {
                let bit = usize::try_from(*bit).unwrap_or(0);
                bits[at_client] == pair.bit(ask.round, bit)
            }
            (Content::Key(_, points, _), _) => points[at_client] == commitment(&pair, ask.round),
            _ => return Ok(Blamed::Nobody),
        };
        Ok(Blamed::Party(if right { trustee.party } else { client.party }))
    }

    fn judge_bit(
        &self,
        view: &View<'_>,
        ask: &Ask,
        bit: usize,
        answers: &BTreeMap<PartyRef, Answer>,
    ) -> Blamed {
        // Every pair agrees, so all pads cancel; somebody sent another bit than its pads.
        if let Some(evidence) = &self.evidence
            && let Some(Content::Bits(bits)) = answers.get(&evidence.party).map(|a| &a.content)
            && let Some((_, cell)) = evidence.share(view, ask.round).and_then(|share| share.slot)
        {
            let sent = cell.get(bit / 8).is_some_and(|byte| byte >> (7 - bit % 8) & 1 == 1);
            if sent != bits.iter().fold(false, |sum, bit| sum ^ bit) {
                return Blamed::Party(evidence.party);
            }
        }
        Blamed::Relay
    }

    fn judge_key(
        &self,
        view: &View<'_>,
        ask: &Ask,
        clients: &[&Answer],
        trustees: &[&Answer],
    ) -> Blamed {
        let mut key = Scalar::ZERO;
        for answer in trustees {
            let Content::Key(share, points, end) = &answer.content else { return Blamed::Nobody };
            let KeyProof::Trustee(blinding) = &**end else { return Blamed::Nobody };
            let sum: RistrettoPoint = points.iter().sum();
            let expected = RistrettoPoint::mul_base(share) + blinding * hash::second_generator();
            if sum != expected || self.sent_another(view, ask, answer.party, share) {
                return Blamed::Party(answer.party);
            }
            key -= ask.h * share;
        }
        for answer in clients {
            let Content::Key(share, points, end) = &answer.content else { return Blamed::Nobody };
            let KeyProof::Client(proof) = &**end else { return Blamed::Nobody };
            let holds = statements(view, ask, share, points)
                .is_some_and(|both| proof.verify(&both, &proof_context(ask, answer.party)));
            if !holds || self.sent_another(view, ask, answer.party, share) {
                return Blamed::Party(answer.party);
            }
            key += share;
        }
        if key == ask.k { Blamed::Nobody } else { Blamed::Relay }
    }

    fn sent_another(&self, view: &View<'_>, ask: &Ask, party: PartyRef, claimed: &Scalar) -> bool {
        self.evidence
            .as_ref()
            .filter(|evidence| evidence.party == party)
            .and_then(|evidence| evidence.share(view, ask.round))
            .and_then(|share| share.slot)
            .is_some_and(|(sent, _)| sent != *claimed)
    }
}

/// What the relay says in its question against what it said to this client at the time.
fn relay_contradicts_itself(ask: &Ask, view: &View<'_>) -> Option<Blamed> {
    let heard = view.heard?.iter().find(|heard| heard.round == ask.round);
    let jammed = view.jammed?.iter().find(|jammed| jammed.round == ask.round);
    let wrong_history = heard.is_some_and(|heard| heard.scalar != ask.h || heard.slot != ask.slot);
    let wrong_key = jammed.is_some_and(|jammed| jammed.key != ask.k);
    let wrong_bit = match (&ask.question, jammed) {
        (Question::Bit(Accusation::Bit(_, bit, _), _), Some(jammed)) => {
            let bit = usize::try_from(*bit).unwrap_or(0);
            jammed.cell.get(bit / 8).is_none_or(|byte| byte >> (7 - bit % 8) & 1 == 0)
        }
        _ => false,
    };
    (wrong_history || wrong_key || wrong_bit).then_some(Blamed::Relay)
}
