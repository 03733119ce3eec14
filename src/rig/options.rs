//! What a person can choose about the rig's network.
//!
//! In: text. Out: options. Called by: `cepa rig`.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use super::{
    link::{self, LinkOptions},
    plan::Plan,
};

/// The network's options.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct NetworkOptions {
    /// Cables that do not behave like cables.
    pub links: BTreeMap<String, LinkOptions>,
    /// Nodes of the client's path.
    pub hops: u8,
    /// Exits let packets out by sockets, without privileges.
    pub userspace: bool,
}

impl NetworkOptions {
    /// Reads `HOST:rate=100mbit,delay=20ms` for each cable.
    ///
    /// # Errors
    /// When a host or an option is not known.
    pub fn read(links: &[String], hops: u8) -> Result<Self> {
        let plan = Plan::full();
        let mut read = BTreeMap::new();
        for text in links {
            let (host, options) = text
                .split_once(':')
                .with_context(|| format!("expected HOST:NAME=VALUE, got {text:?}"))?;
            let names: Vec<&str> = plan.hosts.iter().map(|host| host.name).collect();
            ensure!(names.contains(&host), "expected one of {}, got {host:?}", names.join(", "));
            read.insert(host.to_owned(), options.parse()?);
        }
        Ok(Self { links: read, hops, userspace: false })
    }

    /// Adds a round trip and a loss to the sender's cable, which every path has in common.
    ///
    /// # Errors
    /// When one is not a duration or a share.
    pub fn with_path(mut self, rtt: Option<&str>, loss: Option<&str>) -> Result<Self> {
        let options = self.links.entry("sender".to_owned()).or_default();
        if let Some(rtt) = rtt {
            options.delay = link::duration(rtt)? / 2;
        }
        if let Some(loss) = loss {
            options.loss = link::share(loss)?;
        }
        if *options == LinkOptions::default() {
            self.links.remove("sender");
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_checked() {
        let options = NetworkOptions::read(&["n2:loss=1%".to_owned()], 3).unwrap();
        assert!(options.links.contains_key("n2"));
        let error = NetworkOptions::read(&["n9:loss=1%".to_owned()], 3).unwrap_err();
        assert!(error.to_string().contains("n1, n2"), "{error}");
        assert!(NetworkOptions::read(&["loss=1%".to_owned()], 3).is_err());
    }

    #[test]
    fn a_path_without_wishes_is_left_alone() {
        let plain = NetworkOptions::default().with_path(None, None).unwrap();
        assert!(plain.links.is_empty());
        let slow = NetworkOptions::default().with_path(Some("20ms"), Some("1%")).unwrap();
        assert_eq!(slow.links["sender"].delay.as_millis(), 10);
    }
}
