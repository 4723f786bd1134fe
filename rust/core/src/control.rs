//! Cancellation and progress of long work, shared between the thread that asked for it and
//! the threads that do it. Knows nothing of who cancels (a signal, a deadline) or of how
//! progress is shown.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crate::{Error, Result};

/// One long operation as seen from outside: how far it is, and whether it should stop.
///
/// Workers call [`Control::advance`] and [`Control::check`] every few milliseconds of work, so
/// that a cancelled operation ends well within a second.
#[derive(Debug, Default)]
pub struct Control {
    cancelled: AtomicBool,
    done: AtomicU64,
    until: Option<Instant>,
}

impl Control {
    /// A fresh operation: nothing done, not cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// A fresh operation that is cancelled by itself at this moment.
    pub fn until(moment: Instant) -> Self {
        Self {
            until: Some(moment),
            ..Self::default()
        }
    }

    /// Asks the workers to stop; they return [`Error::Interrupted`] at their next check.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Fails with [`Error::Interrupted`] once [`Control::cancel`] was called, or its moment has come.
    pub fn check(&self) -> Result<()> {
        let is_late = self.until.is_some_and(|moment| Instant::now() >= moment);
        if is_late || self.cancelled.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        Ok(())
    }

    /// Adds `items` to the count of finished items.
    pub fn advance(&self, items: u64) {
        self.done.fetch_add(items, Ordering::Relaxed);
    }

    /// Items finished so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cancelled_control_fails_its_next_check() {
        let control = Control::new();
        control.advance(3);
        control.advance(4);
        assert_eq!(control.done(), 7);
        assert!(control.check().is_ok());
        control.cancel();
        assert!(matches!(control.check(), Err(Error::Interrupted)));
    }

    #[test]
    fn a_control_whose_moment_has_come_fails_its_next_check() {
        let soon = Instant::now() + std::time::Duration::from_secs(3600);
        assert!(Control::until(soon).check().is_ok());
        let late = Control::until(Instant::now());
        assert!(matches!(late.check(), Err(Error::Interrupted)));
    }
}
