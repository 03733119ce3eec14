//! A client in a trial: it answers questions, and judges verdicts for itself.
//!
//! In: ASK and VERDICT. Out: ANSWER, a remembered conviction. Called by: the client core.

use curve25519_dalek::Scalar;
use rand::Rng;

use crate::dcnet::{
    blame,
    error::DcnetError,
    part::{self, Own},
};

use super::{Client, ClientEvent, Running};

impl Running {
    fn view<'a>(&'a self, group: &'a crate::dcnet::group::Group) -> blame::View<'a> {
        blame::View {
            group,
            interval: &self.part.signed.interval,
            hash: &self.part.hash,
            jammed: Some(&self.jammed),
            heard: Some(&self.heard),
        }
    }
}

impl Client {
    pub(super) fn handle_ask(&mut self, body: &[u8], rng: &mut impl Rng) -> Result<(), DcnetError> {
        let ask = blame::Ask::parse(body)?;
        let Some(running) = &self.running else { return Err(part::no_interval("ASK")) };
        let view = running.view(&self.member.group);
        let sent = running.sent.iter().find(|sent| sent.round == ask.round);
        let own = Own {
            view,
            owner: (self.slot == ask.slot).then_some(&*self.pseudonym),
            key: sent.map_or(Scalar::ZERO, |sent| sent.key),
        };
        let answers = &mut self.answers;
        running.part.answer(&ask, &self.member, &own, answers, rng, &mut self.out)
    }

    pub(super) fn handle_verdict(&mut self, body: &[u8]) -> Result<(), DcnetError> {
        let Some(running) = &self.running else { return Ok(()) };
        let blamed = self.member.judge(body, &running.view(&self.member.group))?;
        self.member.convict(blamed);
        self.events.push_back(ClientEvent::Verdict(blamed));
        self.events.push_back(ClientEvent::Remember);
        Ok(())
    }
}
