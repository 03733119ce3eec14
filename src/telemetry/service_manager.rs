//! What a service manager such as systemd tells a daemon and hears from it.
//!
//! In: signals, the watchdog's period, beats of an event loop.
//! Out: readiness, a line of status, the sign of life that the watchdog waits for.
//! Called by: the services of node, the controller, the commands that run daemons.
//!
//! The watchdog is fed by the event loop itself, never by a thread beside it, so that a loop which
//! hangs starves it and the daemon is restarted. A daemon with a data path on a thread of its own
//! has two loops; the thread feeds ([`Watchdog`]), and only if the runtime gave its [`Pulse`] since.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};

/// Waits for SIGTERM or SIGINT, and tells the service manager that the daemon is about to end.
/// Signals are caught from the call on, not only once the answer is awaited: call it first.
pub fn stop_signal() -> impl Future<Output = ()> {
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    async {
        let (Ok(mut terminate), Ok(mut interrupt)) = signals else {
            return std::future::pending().await;
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tell(&[NotifyState::Stopping]);
    }
}

/// Tells the service manager, if there is one, that the daemon does its work.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// Tells the service manager, if there is one, what the daemon is doing: one line for
/// `systemctl status`. No addresses, no keys.
pub fn status(text: &str) {
    tell(&[NotifyState::Status(text)]);
}

fn tell(states: &[NotifyState<'_>]) {
    // Without a service manager there is nobody to tell.
    let _ = sd_notify::notify(states);
}

/// Feeds the watchdog from the runtime it is awaited on, for ever; for daemons whose only event
/// loop that is. Await it beside the work, in the same task where that is possible.
pub async fn feed_watchdog() {
    let Some(period) = sd_notify::watchdog_enabled() else {
        return std::future::pending().await;
    };
    loop {
        tell(&[NotifyState::Watchdog]);
        tokio::time::sleep(period / 4).await;
    }
}

/// The watchdog as the loop of a data path feeds it.
#[derive(Debug)]
pub struct Watchdog {
    every: Duration,
    next: Instant,
    runtime: Arc<AtomicBool>,
}

impl Watchdog {
    /// The watchdog of this process; none if nobody watches.
    pub fn of_process(now: Instant) -> Option<Self> {
        let period = sd_notify::watchdog_enabled()?;
        Some(Self::new(period, now))
    }

    fn new(period: Duration, now: Instant) -> Self {
        // Four beats a period: one that comes late is no death.
        Self { every: period / 4, next: now, runtime: Arc::new(AtomicBool::new(true)) }
    }

    /// What the runtime beside the loop has to keep up.
    pub fn pulse(&self) -> Pulse {
        Pulse { every: self.every / 2, beats: Arc::clone(&self.runtime) }
    }

    /// A turn of the loop at `now`; feeds when it is time, and the runtime is alive as well.
    pub fn beat(&mut self, now: Instant) {
        if self.is_due(now) {
            tell(&[NotifyState::Watchdog]);
        }
    }

    fn is_due(&mut self, now: Instant) -> bool {
        if now < self.next || !self.runtime.swap(false, Ordering::Relaxed) {
            return false;
        }
        self.next = now + self.every;
        true
    }
}

/// The sign of life of a runtime.
#[derive(Debug)]
pub struct Pulse {
    every: Duration,
    beats: Arc<AtomicBool>,
}

impl Pulse {
    /// Keeps it up for as long as the runtime runs this.
    pub async fn keep(self) {
        loop {
            self.beats.store(true, Ordering::Relaxed);
            tokio::time::sleep(self.every).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fed_four_times_a_period_and_only_with_a_pulse() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(Duration::from_secs(20), start);
        let pulse = watchdog.pulse();
        let beat = || pulse.beats.store(true, Ordering::Relaxed);
        assert!(watchdog.is_due(start));
        beat();
        assert!(!watchdog.is_due(start + Duration::from_secs(4)), "too early");
        assert!(watchdog.is_due(start + Duration::from_secs(5)));
        assert!(!watchdog.is_due(start + Duration::from_secs(30)), "the runtime hangs");
        beat();
        assert!(watchdog.is_due(start + Duration::from_secs(31)));
    }
}
