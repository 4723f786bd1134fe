//! The one gate through which Python calls enter the core's long work.
//!
//! The work runs on a rayon pool while the calling thread, detached from the interpreter,
//! waits for it; every [`POLL`] that thread looks for a signal, so that Ctrl-C ends any call
//! within a fraction of a second, and tells the caller's progress function how far it is.

use std::sync::mpsc::{channel, RecvTimeoutError};
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use sparse_retrieval::control::Control;
use sparse_retrieval::{threads, Error, Result};

use crate::error::to_python;

/// How often signals and progress are looked at.
const POLL: Duration = Duration::from_millis(50);

/// What short work may take before it is begun anew at the [`gate`].
const SHORT: Duration = Duration::from_millis(20);

/// Runs `work` on `threads` threads, when its turn has come, and returns its result. `None` is
/// all processors, or, while other calls wait or run, a share of them.
///
/// `progress`, where given, is called with the number of items done so far; an exception that
/// it raises cancels the work and is raised.
pub fn gate<T: Send>(
    py: Python<'_>,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
    work: impl FnOnce(&Control) -> Result<T> + Send,
) -> PyResult<T> {
    let mut call = threads::call(threads).map_err(to_python)?;
    py.detach(|| {
        let control = Control::new();
        while !call.wait(POLL) {
            Python::attach(|py| tell(py, &progress, &control))?;
        }
        let pool = call.pool().map_err(to_python)?;
        let (sender, receiver) = channel();
        let mut raised = None;
        let result = pool.in_place_scope(|scope| {
            let control = &control;
            scope.spawn(move |_| {
                // the receiver outlives this: it is dropped after the scope
                let _ = sender.send(work(control));
            });
            loop {
                match receiver.recv_timeout(POLL) {
                    Ok(result) => return Some(result),
                    // the work panicked: the scope raises it again when it ends
                    Err(RecvTimeoutError::Disconnected) => return None,
                    Err(RecvTimeoutError::Timeout) if raised.is_none() => {
                        raised = Python::attach(|py| tell(py, &progress, control)).err();
                        if raised.is_some() {
                            control.cancel();
                        }
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                }
            }
        });
        match (raised, result) {
            (Some(error), _) => Err(error),
            (None, Some(result)) => result.map_err(to_python),
            (None, None) => unreachable!("the scope raises the work's panic"),
        }
    })
}

/// Runs work that should take less than a millisecond on the calling thread, detached from the
/// interpreter: it is not worth handing to another, and is over before a signal needs looking at.
/// It may not enter a pool: what it does is shared out by [`threads::try_map`] alone.
/// `None` where it was not done within [`SHORT`].
pub fn gate_short<T: Send>(
    py: Python<'_>,
    work: impl FnOnce(&Control) -> Result<T> + Send,
) -> PyResult<Option<T>> {
    let done = py.detach(|| threads::alone(|| work(&Control::until(Instant::now() + SHORT))));
    match done {
        Err(Error::Interrupted) => Ok(None),
        done => done.map(Some).map_err(to_python),
    }
}

fn tell(py: Python<'_>, progress: &Option<Py<PyAny>>, control: &Control) -> PyResult<()> {
    py.check_signals()?;
    if let Some(progress) = progress {
        progress.call1(py, (control.done(),))?;
    }
    Ok(())
}
