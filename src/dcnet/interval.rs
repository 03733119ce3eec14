//! An interval: who is online, and under which keys its rounds run.
//!
//! In: the relay's proposal, the trustees' signatures. Out: [`SignedInterval`], checked; the hash
//! every pad key of the interval is bound to. Called by: relay, trustees and clients at each
//! change of the set, [`crate::dcnet::store`] for `interval.json`.
//!
//! ```text
//! group 32 | session 32 | number 4 | cell size 2 | window 2
//! | clients 2 | (index 2 | nonce 16)* | trustees 2 | (index 2 | nonce 16)*
//! then one 64-byte signature per trustee of the group
//! ```
//!
//! Every party's nonce is fresh for each link it opens, and it takes part only in intervals that
//! carry its nonce: an old interval cannot be run again, so no pad is used twice.

use serde::{Deserialize, Serialize};

use crate::dcnet::{error::DcnetError, group::Group, hash, hex, member::PartyRef};

/// Fresh for each link of a party.
pub type Nonce = [u8; 16];

/// A party of an interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Its place in `system.json`.
    pub index: u16,
    /// Its link's nonce.
    pub nonce: Nonce,
}

/// What the trustees sign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interval {
    /// Hash of `system.json`.
    pub group: [u8; 32],
    /// Hash of `session.json`.
    pub session: [u8; 32],
    /// Counts up.
    pub number: u32,
    /// Bytes of a cell.
    pub cell_size: u16,
    /// Rounds in flight.
    pub window: u16,
    /// The clients online, by index.
    pub clients: Vec<Member>,
    /// The trustees, by index: all of the group but convicted ones.
    pub trustees: Vec<Member>,
}

/// With the signatures of all trustees, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedInterval {
    /// What is signed.
    pub interval: Interval,
    /// By all trustees.
    pub signatures: Vec<[u8; 64]>,
}

/// `interval.json`: readable fields beside the signed bytes, which alone count.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct IntervalFile {
    /// The interval's number.
    pub number: u32,
    /// Indices of the clients online.
    pub online: Vec<u16>,
    /// The signed form.
    #[serde(with = "hex::vec")]
    pub signed: Vec<u8>,
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], DcnetError> {
        let (head, tail) = self.0.split_at_checked(count).ok_or_else(|| {
            DcnetError::malformed(
                "interval",
                format!("{count} more bytes"),
                self.0.len().to_string(),
            )
        })?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DcnetError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn number(&mut self) -> Result<u16, DcnetError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    fn members(&mut self) -> Result<Vec<Member>, DcnetError> {
        let count = self.number()?;
        let mut members: Vec<Member> = Vec::new();
        for _ in 0..count {
            let member = Member { index: self.number()?, nonce: self.array()? };
            if members.last().is_some_and(|last| last.index >= member.index) {
                return Err(DcnetError::malformed(
                    "interval",
                    "indices that rise",
                    member.index.to_string(),
                ));
            }
            members.push(member);
        }
        Ok(members)
    }
}

impl Interval {
    /// The signed bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(76 + 18 * (self.clients.len() + self.trustees.len()));
        out.extend_from_slice(&self.group);
        out.extend_from_slice(&self.session);
        out.extend_from_slice(&self.number.to_be_bytes());
        out.extend_from_slice(&self.cell_size.to_be_bytes());
        out.extend_from_slice(&self.window.to_be_bytes());
        for members in [&self.clients, &self.trustees] {
            out.extend_from_slice(&u16::try_from(members.len()).unwrap_or(u16::MAX).to_be_bytes());
            for member in members {
                out.extend_from_slice(&member.index.to_be_bytes());
                out.extend_from_slice(&member.nonce);
            }
        }
        out
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DcnetError> {
        Ok(Self {
            group: reader.array()?,
            session: reader.array()?,
            number: u32::from_be_bytes(reader.array()?),
            cell_size: reader.number()?,
            window: reader.number()?,
            clients: reader.members()?,
            trustees: reader.members()?,
        })
    }

    /// Strictly one interval.
    ///
    /// # Errors
    /// On a short or long form, or indices out of order.
    pub fn parse(bytes: &[u8]) -> Result<Self, DcnetError> {
        let mut reader = Reader(bytes);
        let interval = Self::read(&mut reader)?;
        if !reader.0.is_empty() {
            return Err(DcnetError::malformed(
                "interval",
                "its end",
                format!("{} bytes", reader.0.len()),
            ));
        }
        Ok(interval)
    }

    /// What every key of the interval is bound to: group, session, number, cell size, the set of
    /// clients and everybody's nonce.
    pub fn hash(&self) -> [u8; 32] {
        hash::hash("interval", &[&self.to_bytes()])
    }

    /// Whether this is an interval of `group`: known members, all trustees, its cell size.
    ///
    /// # Errors
    /// Says what was expected.
    pub fn check(&self, group: &Group, convicted: &[PartyRef]) -> Result<(), DcnetError> {
        let wrong = |expected: &str, got: String| DcnetError::malformed("interval", expected, got);
        if self.group != group.group_id || self.session != group.session.session_id.0 {
            return Err(wrong("this group and session", hex::encode(&self.session)));
        }
        if usize::from(self.cell_size) != group.system.settings.cell_size {
            return Err(wrong("the group's cell size", self.cell_size.to_string()));
        }
        if usize::from(self.window) != group.system.settings.client_window {
            return Err(wrong("the group's window", self.window.to_string()));
        }
        if let Some(member) =
            self.clients.iter().find(|m| usize::from(m.index) >= group.clients.len())
        {
            return Err(wrong("known clients", member.index.to_string()));
        }
        let free = |at: &u16| !convicted.contains(&PartyRef::Trustee(*at));
        let count = u16::try_from(group.trustees.len()).unwrap_or(u16::MAX);
        if !(0..count).filter(free).eq(self.trustees.iter().map(|m| m.index)) {
            return Err(wrong("all trustees but convicted ones", self.trustees.len().to_string()));
        }
        if let Some(member) =
            self.clients.iter().find(|m| convicted.contains(&PartyRef::Client(m.index)))
        {
            return Err(wrong("nobody convicted", format!("client {}", member.index)));
        }
        let min = group.system.settings.min_anonymity_set;
        if self.clients.len() < min {
            return Err(DcnetError::SetTooSmall { got: self.clients.len(), min });
        }
        Ok(())
    }

    /// The place of a client within the interval.
    pub fn place_of_client(&self, index: u16) -> Option<usize> {
        self.clients.iter().position(|member| member.index == index)
    }
}

impl SignedInterval {
    /// `interval | signatures`.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = self.interval.to_bytes();
        for signature in &self.signatures {
            out.extend_from_slice(signature);
        }
        out
    }

    /// Strictly one interval and one signature for each of its trustees.
    ///
    /// # Errors
    /// On a short or long form.
    pub fn parse(bytes: &[u8]) -> Result<Self, DcnetError> {
        let mut reader = Reader(bytes);
        let interval = Interval::read(&mut reader)?;
        let signatures =
            interval.trustees.iter().map(|_| reader.array()).collect::<Result<Vec<_>, _>>()?;
        if !reader.0.is_empty() {
            return Err(DcnetError::malformed(
                "interval",
                "its end",
                format!("{} bytes", reader.0.len()),
            ));
        }
        Ok(Self { interval, signatures })
    }

    /// Checks the interval and every trustee's signature.
    ///
    /// # Errors
    /// Names the trustee whose signature is wrong.
    pub fn check(&self, group: &Group, convicted: &[PartyRef]) -> Result<(), DcnetError> {
        self.interval.check(group, convicted)?;
        let bytes = self.interval.to_bytes();
        for (member, signature) in self.interval.trustees.iter().zip(&self.signatures) {
            let trustee = group.trustees[usize::from(member.index)];
            if !trustee.verify("interval", &bytes, signature) {
                return Err(DcnetError::BadProof {
                    what: "the signature of the interval",
                    who: trustee.id().to_string(),
                });
            }
        }
        Ok(())
    }

    /// As [`SignedInterval::check`], whichever trustees were convicted before.
    ///
    /// # Errors
    /// As [`SignedInterval::check`].
    pub fn check_members(&self, group: &Group) -> Result<(), DcnetError> {
        let signing: Vec<u16> = self.interval.trustees.iter().map(|m| m.index).collect();
        let count = u16::try_from(group.trustees.len()).unwrap_or(u16::MAX);
        let absent: Vec<PartyRef> =
            (0..count).filter(|at| !signing.contains(at)).map(PartyRef::Trustee).collect();
        self.check(group, &absent)
    }

    /// As [`SignedInterval::check`], for the source's wire, whose set is always the whole group.
    ///
    /// # Errors
    /// Names `interval.json`.
    pub fn check_seed(&self, group: &Group) -> Result<(), DcnetError> {
        self.check(group, &[])
            .map_err(|error| DcnetError::config("interval.json", "signed", error.to_string()))
    }

    /// Its file.
    pub fn to_file(&self) -> IntervalFile {
        IntervalFile {
            number: self.interval.number,
            online: self.interval.clients.iter().map(|member| member.index).collect(),
            signed: self.to_bytes(),
        }
    }
}
