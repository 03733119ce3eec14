//! An alarm that is exact to some microseconds; the runtime's timers are a millisecond wide.
//!
//! In: when to ring. Out: a wait until then. Called by: the relay program, which paces rounds with
//! it, and delays of distant groups.

use std::{cell::Cell, io, os::fd::OwnedFd, time::Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;

/// One alarm, for one waiter.
pub(super) struct Alarm {
    fd: AsyncFd<OwnedFd>,
    /// What it is set to.
    set: Cell<Option<Instant>>,
}

impl Alarm {
    /// An alarm that is not set.
    ///
    /// # Errors
    /// When the system has no more of them.
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        #[expect(deprecated, reason = "an OwnedFd gives the same file all its life")]
        let fd = AsyncFd::new(timerfd_create(TimerfdClockId::Monotonic, flags)?)?;
        Ok(Self { fd, set: Cell::new(None) })
    }

    /// Waits until `due`. A wait that is given up may be taken up again, or another one be begun.
    ///
    /// # Errors
    /// Those of the system.
    pub(super) async fn wait_until(&self, due: Instant) -> io::Result<()> {
        if self.set.get() != Some(due) {
            let rest = due.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return Ok(());
            }
            let it_value = rest.try_into().map_err(io::Error::other)?;
            let once = Itimerspec { it_interval: Timespec::default(), it_value };
            timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &once)?;
            self.set.set(Some(due));
        }
        loop {
            let mut ready = self.fd.readable().await?;
            if let Ok(rung) = ready.try_io(|fd| Ok(rustix::io::read(fd, &mut [0; 8])?)) {
                self.set.set(None);
                return rung.map(drop);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn rings_when_due_even_after_a_wait_that_was_given_up() {
        let alarm = Alarm::new().unwrap();
        let start = Instant::now();
        let (soon, late) = (start + Duration::from_millis(30), start + Duration::from_secs(3600));
        let given_up = timeout(Duration::from_millis(5), alarm.wait_until(late)).await;
        assert!(given_up.is_err(), "an hour has not passed");
        alarm.wait_until(soon).await.unwrap();
        assert!(start.elapsed() >= Duration::from_millis(30));
        let past = timeout(Duration::from_secs(20), alarm.wait_until(start)).await;
        assert!(past.is_ok(), "what is past rings at once");
        // It rang by itself while nobody waited, and is set anew.
        let _ =
            timeout(Duration::ZERO, alarm.wait_until(Instant::now() + Duration::from_millis(1)))
                .await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        let again = Instant::now() + Duration::from_millis(30);
        alarm.wait_until(again).await.unwrap();
        assert!(Instant::now() >= again);
    }
}
