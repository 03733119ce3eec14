//! Text without what tells who and where: addresses, hardware addresses, keys, chosen names.
//!
//! In: reports, logs. Out: the same with numbered stand-ins, one and the same for the same thing.
//! Called by: `cepa bugreport`.

use std::{collections::BTreeMap, net::IpAddr};

/// Stand-ins that were given so far.
#[derive(Debug, Default)]
pub struct Redactor {
    known: BTreeMap<String, String>,
    counts: BTreeMap<&'static str, usize>,
    names: Vec<(String, &'static str)>,
}

impl Redactor {
    /// Also takes this word out, as a `kind`. Words of fewer than 3 bytes are left alone: they are
    /// part of everything.
    pub fn name(&mut self, name: &str, kind: &'static str) {
        if name.len() >= 3 && !self.names.iter().any(|(known, _)| known == name) {
            self.names.push((name.to_owned(), kind));
            // The longest first, or a part of a name would stand in for the whole.
            self.names.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        }
    }

    /// The text with stand-ins.
    pub fn text(&mut self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut word = String::new();
        for character in text.chars() {
            if is_part(character) {
                word.push(character);
                continue;
            }
            self.word(&word, &mut out);
            word.clear();
            out.push(character);
        }
        self.word(&word, &mut out);
        out
    }

    fn word(&mut self, word: &str, out: &mut String) {
        if word.is_empty() {
            return;
        }
        if let Some((_, kind)) = self.names.iter().find(|(name, _)| name == word) {
            let stand_in = self.stand_in(kind, word);
            out.push_str(&stand_in);
            return;
        }
        // What ends a sentence is no part of an address, and `::` is.
        let core = word.trim_end_matches(['.', '-']);
        let core = if core.ends_with(':') && !core.ends_with("::") {
            &core[..core.len() - 1]
        } else {
            core
        };
        let rest = &word[core.len()..];
        match recognise(core) {
            Some((kind, len)) => {
                let stand_in = self.stand_in(kind, &core[..len].to_ascii_lowercase());
                out.push_str(&stand_in);
                out.push_str(&core[len..]);
            }
            None => match core
                .split_once(':')
                .filter(|(head, _)| self.names.iter().any(|(name, _)| name == head))
            {
                // A name with a port behind it.
                Some((head, tail)) => {
                    self.word(head, out);
                    out.push(':');
                    out.push_str(tail);
                }
                None => out.push_str(core),
            },
        }
        out.push_str(rest);
    }

    fn stand_in(&mut self, kind: &'static str, what: &str) -> String {
        if let Some(known) = self.known.get(what) {
            return known.clone();
        }
        let count = self.counts.entry(kind).or_default();
        *count += 1;
        let stand_in = format!("<{kind} {count}>");
        self.known.insert(what.to_owned(), stand_in.clone());
        stand_in
    }
}

/// What addresses, keys and names are made of.
fn is_part(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '.' | ':' | '-' | '_')
}

/// What a word is, and how much of it: a port stays.
fn recognise(word: &str) -> Option<(&'static str, usize)> {
    if let Ok(ip) = word.parse::<IpAddr>() {
        return shown(ip).map(|kind| (kind, word.len()));
    }
    if let Some((head, port)) = word.rsplit_once(':')
        && port.parse::<u16>().is_ok()
        && let Ok(ip) = head.parse::<IpAddr>()
    {
        return shown(ip).map(|kind| (kind, head.len()));
    }
    let hex = |text: &str| text.chars().all(|character| character.is_ascii_hexdigit());
    if word.len() == 17
        && word.split(':').count() == 6
        && word.split(':').all(|part| part.len() == 2 && hex(part))
    {
        return Some(("hardware address", word.len()));
    }
    if word.len() >= 32 && (hex(word) || word.len() >= 40) {
        return Some(("key or id", word.len()));
    }
    None
}

/// Addresses that say nothing about anybody stay.
fn shown(ip: IpAddr) -> Option<&'static str> {
    match ip {
        _ if ip.is_loopback() || ip.is_unspecified() => None,
        IpAddr::V4(v4) if v4.is_private() || v4.is_link_local() => Some("private IPv4"),
        IpAddr::V4(_) => Some("IPv4"),
        IpAddr::V6(v6) if v6.is_unique_local() || v6.is_unicast_link_local() => Some("local IPv6"),
        IpAddr::V6(_) => Some("IPv6"),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_same_thing_has_the_same_stand_in() {
        let mut redactor = Redactor::default();
        redactor.name("otter", "name");
        let text = redactor.text(
            "from 203.0.113.7:5000 (otter) to [2001:db8::7]:5000, again 203.0.113.7. mac \
             02:00:5e:10:00:01; route default via 192.168.1.1, listening on 127.0.0.1:9150, \
             cepa://203.0.113.7:5000/6f1ed002ab5595859014ebf0951522d96f1ed002ab5595859014ebf0951522d9",
        );
        assert_eq!(
            text,
            "from <IPv4 1>:5000 (<name 1>) to [<IPv6 1>]:5000, again <IPv4 1>. mac \
             <hardware address 1>; route default via <private IPv4 1>, listening on \
             127.0.0.1:9150, cepa://<IPv4 1>:5000/<key or id 1>"
        );
    }

    fn surrounded(inner: String) -> impl Strategy<Value = (String, String)> {
        let around =
            prop_oneof![Just(" "), Just("\""), Just("("), Just(", "), Just("/"), Just("=")];
        (around.clone(), around)
            .prop_map(move |(before, after)| (inner.clone(), format!("x{before}{inner}{after}y")))
    }

    proptest! {
        #[test]
        fn no_address_survives(
            (inner, text) in prop_oneof![
                any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits | 0x0100_0000).to_string()),
                any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(bits | 1 << 100).to_string()),
            ].prop_flat_map(surrounded)
        ) {
            prop_assume!(!inner.starts_with("127."));
            let out = Redactor::default().text(&text);
            prop_assert!(!out.contains(&inner), "{text} -> {out}");
        }

        #[test]
        fn any_text_is_taken(text: String) {
            let _ = Redactor::default().text(&text);
        }
    }
}
