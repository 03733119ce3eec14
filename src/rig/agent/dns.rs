//! One DNS question over UDP, and a server that answers it.
//!
//! In: a server. Out: the addresses it gave. Called by: rig::agent, its servers.

use std::{
    net::{IpAddr, Ipv4Addr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::port;
use crate::rig::{plaintext::DNS_NAME, plan::RECEIVER_V4};

/// What the rig's server answers for every name but [`RECEIVER_NAME`].
pub(super) const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);

/// The name of the receiver itself.
pub const RECEIVER_NAME: &str = "receiver.example";

/// How a question went.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct DnsAnswer {
    /// The address that came.
    pub address: Ipv4Addr,
    /// How long it took.
    pub milliseconds: f64,
}

fn question(id: u16) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    bytes.extend(name_bytes(DNS_NAME));
    bytes.extend([0, 1, 0, 1]);
    bytes
}

/// A name as questions have it.
fn name_bytes(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

/// The answer to a question for an address; none to anything else.
pub(super) fn answer(question: &[u8]) -> Option<Vec<u8>> {
    let header = question.first_chunk::<12>()?;
    if header[2] & 0x80 != 0 || header[4..6] != [0, 1] {
        return None;
    }
    let mut end = 12;
    while *question.get(end)? != 0 {
        end += usize::from(question[end]) + 1;
    }
    let question = question.get(12..end + 5)?;
    let mut bytes = header[..2].to_vec();
    bytes.extend([0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    bytes.extend(question);
    bytes.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    let own = name_bytes(RECEIVER_NAME);
    let address = if question.starts_with(&own) { RECEIVER_V4 } else { ADDRESS };
    bytes.extend(address.octets());
    Some(bytes)
}

pub(super) fn ask(to: IpAddr) -> Result<DnsAnswer> {
    let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect((to, port::DNS))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let started = Instant::now();
    for id in 1..=3 {
        socket.send(&question(id))?;
        let mut bytes = [0; 1500];
        let Ok(len) = socket.recv(&mut bytes) else { continue };
        ensure!(len > 16 && bytes[3] & 0x0f == 0, "expected an answer, got an error");
        let Some(address) = bytes[..len].last_chunk::<4>() else { continue };
        return Ok(DnsAnswer {
            address: Ipv4Addr::from(*address),
            milliseconds: started.elapsed().as_secs_f64() * 1e3,
        });
    }
    bail!("expected an answer from the DNS server at {to}, got none in three seconds")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_answered_and_noise_is_not() {
        let answer = answer(&question(7)).unwrap();
        assert_eq!(answer[..2], [0, 7]);
        assert!(answer.ends_with(&ADDRESS.octets()));
        assert!(super::answer(&answer).is_none(), "an answer is no question");
        for len in 0..question(7).len() {
            assert!(super::answer(&question(7)[..len]).is_none(), "{len}");
        }
        assert!(super::answer(&[0xff; 100]).is_none());
    }
}
