//! What a cable can be made to do: a rate, loss, delay, jitter, reordering.
//!
//! In: options. Out: queueing disciplines and rules, or a process between two TAP devices.
//! Called by: rig::network.
//!
//! A rate is the kernel's token bucket, loss is an nftables rule with a random number; delay needs
//! a process, because many kernels lack the discipline for it.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    str::FromStr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rand::RngExt;
use serde::{Deserialize, Serialize};

use super::{
    agent::Tool,
    host::{Agent, Host},
    run,
};
use crate::capture::tap::Tap;

/// How a cable behaves, in both directions.
#[derive(Clone, Copy, Default, PartialEq, Debug, Serialize, Deserialize)]
pub struct LinkOptions {
    /// Bits per second; none: as fast as it goes.
    pub rate: Option<u64>,
    /// The share of packets lost, from 0 to 1.
    pub loss: f64,
    /// How long a packet takes.
    pub delay: Duration,
    /// How much the delay varies at most, either way.
    pub jitter: Duration,
    /// The share of packets sent without delay, which overtake others.
    pub reorder: f64,
}

impl LinkOptions {
    /// Whether the kernel alone cannot do it.
    pub fn needs_process(&self) -> bool {
        !self.delay.is_zero() || !self.jitter.is_zero() || self.reorder > 0.0
    }

    /// Sets rate and loss on a cable that is plugged in.
    ///
    /// # Errors
    /// What the system's tools say.
    pub fn apply(&self, host: &Host, near: &str, switch: &Host, plug: &str) -> Result<()> {
        if self.rate.is_some() || self.loss > 0.0 {
            // Single datagrams, as on a real wire: a lost train would be one loss in sixty.
            host.ip(&format!("link set dev {near} gso_max_segs 1"))?;
            switch.ip(&format!("link set dev {plug} gso_max_segs 1"))?;
        }
        if let Some(rate) = self.rate {
            for (side, interface) in [(host, near), (switch, plug)] {
                let burst = (rate / 8 / 250).max(3000);
                let words = format!(
                    "-n {} qdisc replace dev {interface} root tbf rate {rate}bit burst {burst} latency 50ms",
                    side.namespace
                );
                run::tool("tc", &words.split(' ').collect::<Vec<_>>(), "")?;
            }
        }
        if self.loss > 0.0 {
            for (side, interface) in [(host, near), (switch, plug)] {
                let rule = format!("numgen random mod 100000 < {} drop", (self.loss * 1e5) as u32);
                let rules = format!(
                    "table netdev loss_{table} {{ chain incoming {{ type filter hook ingress device \"{interface}\" priority 0; {rule}; }}; }}\n",
                    table = interface.replace('-', "_")
                );
                let namespace = &side.namespace;
                run::tool("ip", &["netns", "exec", namespace, "nft", "-f", "-"], &rules)?;
            }
        }
        Ok(())
    }
}

impl FromStr for LinkOptions {
    type Err = anyhow::Error;

    /// Reads `rate=100mbit,loss=1%,delay=20ms,jitter=2ms,reorder=1%`.
    fn from_str(text: &str) -> Result<Self> {
        let mut options = Self::default();
        for word in text.split(',').filter(|word| !word.is_empty()) {
            let (name, value) = word.split_once('=').with_context(|| {
                format!(
                    "expected NAME=VALUE, got {word:?}; names: rate, loss, delay, jitter, reorder"
                )
            })?;
            match name {
                "rate" => options.rate = Some(rate(value)?),
                "loss" => options.loss = share(value)?,
                "delay" => options.delay = duration(value)?,
                "jitter" => options.jitter = duration(value)?,
                "reorder" => options.reorder = share(value)?,
                _ => bail!("expected rate, loss, delay, jitter or reorder, got {name:?}"),
            }
        }
        Ok(options)
    }
}

fn rate(text: &str) -> Result<u64> {
    let (number, factor) = if let Some(number) = text.strip_suffix("gbit") {
        (number, 1e9)
    } else if let Some(number) = text.strip_suffix("mbit") {
        (number, 1e6)
    } else if let Some(number) = text.strip_suffix("kbit") {
        (number, 1e3)
    } else {
        bail!("expected a rate such as 100mbit, got {text:?}")
    };
    let rate =
        number.parse::<f64>().with_context(|| format!("expected a rate, got {text:?}"))? * factor;
    ensure!((8_000.0..1e12).contains(&rate), "expected a rate of 8kbit to 1000gbit, got {text:?}");
    Ok(rate as u64)
}

/// Reads `1%` or `0.01`.
pub(super) fn share(text: &str) -> Result<f64> {
    let (number, factor) = text.strip_suffix('%').map_or((text, 1.0), |number| (number, 0.01));
    let share = number
        .parse::<f64>()
        .with_context(|| format!("expected a share such as 1%, got {text:?}"))?
        * factor;
    ensure!((0.0..1.0).contains(&share), "expected a share from 0 to less than 100%, got {text:?}");
    Ok(share)
}

/// Reads `20ms`, `1.5s` or `300us`.
///
/// # Errors
/// When it is not one.
pub fn duration(text: &str) -> Result<Duration> {
    let (number, factor) = if let Some(number) = text.strip_suffix("ms") {
        (number, 1e-3)
    } else if let Some(number) = text.strip_suffix("us") {
        (number, 1e-6)
    } else if let Some(number) = text.strip_suffix('s') {
        (number, 1.0)
    } else {
        bail!("expected a duration such as 20ms, got {text:?}")
    };
    let seconds =
        number.parse::<f64>().with_context(|| format!("expected a duration, got {text:?}"))?
            * factor;
    ensure!((0.0..60.0).contains(&seconds), "expected a duration below a minute, got {text:?}");
    Ok(Duration::from_secs_f64(seconds))
}

/// A process that is a cable.
#[derive(Debug)]
pub struct LinkProcess {
    _agent: Agent,
}

impl LinkProcess {
    /// Starts it and waits until both ends are there.
    ///
    /// # Errors
    /// When the TAP devices cannot be made.
    pub fn start(
        host: &Host,
        near: &str,
        switch: &Host,
        plug: &str,
        options: &LinkOptions,
    ) -> Result<Self> {
        let end = |host: &Host, interface: &str| CableEnd {
            namespace: host.namespace.clone(),
            interface: interface.to_owned(),
        };
        let tool =
            Tool::Cable { ends: Box::new([end(host, near), end(switch, plug)]), options: *options };
        let mut agent = switch.start(&tool)?;
        agent.ready()?;
        Ok(Self { _agent: agent })
    }
}

/// One end of a cable.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct CableEnd {
    /// The namespace it is in.
    pub namespace: String,
    /// The interface that appears there.
    pub interface: String,
}

/// Is a cable until it is killed.
///
/// # Errors
/// When a TAP device cannot be made, or goes.
pub fn be_a_cable(
    ends: &[CableEnd; 2],
    options: &LinkOptions,
    ready: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let open = |end: &CableEnd| -> Result<Tap> {
        Ok(super::network::open(&end.namespace)?.run(|| Tap::create(&end.interface))??)
    };
    let taps = [open(&ends[0])?, open(&ends[1])?];
    ready()?;
    std::thread::scope(|scope| {
        let back = scope.spawn(|| carry(&taps[1], &taps[0], options));
        carry(&taps[0], &taps[1], options)?;
        back.join().map_err(|_| anyhow::anyhow!("a direction of the cable ended"))?
    })
}

/// One direction: frames wait in order of when they are due.
fn carry(from: &Tap, to: &Tap, options: &LinkOptions) -> Result<()> {
    /// Frames on the way at once; a real router drops what does not fit, too.
    const MOST: usize = 20_000;
    let mut rng = rand::rng();
    let mut slots: Vec<Vec<u8>> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    let mut waiting: BinaryHeap<Reverse<(Instant, u64, usize)>> = BinaryHeap::new();
    let mut frame = vec![0; 65_600];
    for number in 0u64.. {
        let now = Instant::now();
        while let Some(Reverse((due, _, slot))) = waiting.peek().copied()
            && due <= now
        {
            waiting.pop();
            to.send(&slots[slot]);
            free.push(slot);
        }
        let due = waiting.peek().map(|Reverse((due, _, _))| due.saturating_duration_since(now));
        if !from.wait(due)? {
            continue;
        }
        let Some(len) = from.recv(&mut frame)? else { continue };
        if waiting.len() >= MOST {
            continue;
        }
        let delay = if options.reorder > 0.0 && rng.random_bool(options.reorder) {
            Duration::ZERO
        } else {
            let jitter = options.jitter.mul_f64(rng.random_range(0.0..2.0));
            (options.delay + jitter).saturating_sub(options.jitter)
        };
        let slot = free.pop().unwrap_or_else(|| {
            slots.push(Vec::new());
            slots.len() - 1
        });
        slots[slot].clear();
        slots[slot].extend_from_slice(&frame[..len]);
        waiting.push(Reverse((Instant::now() + delay, number, slot)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read() {
        let options: LinkOptions =
            "rate=100mbit,loss=1%,delay=20ms,jitter=500us,reorder=0.25".parse().unwrap();
        assert_eq!(options.rate, Some(100_000_000));
        assert!((options.loss - 0.01).abs() < 1e-9);
        assert_eq!(options.delay, Duration::from_millis(20));
        assert_eq!(options.jitter, Duration::from_micros(500));
        assert!((options.reorder - 0.25).abs() < 1e-9);
        assert!(options.needs_process());
        assert!(!"rate=1gbit".parse::<LinkOptions>().unwrap().needs_process());
        for bad in ["fast", "rate=1", "loss=100%", "loss=x", "delay=20", "speed=1mbit", "delay=-1s"]
        {
            assert!(bad.parse::<LinkOptions>().is_err(), "{bad}");
        }
    }
}
