//! Thread pools by size, made on first use and kept. Safe after `fork`: a child process has
//! none of its parent's threads, so it gets pools of its own (the parent's are leaked there,
//! since their locks may be held by threads that no longer exist).
//!
//! Calls that ask for the same number share its pool. A pool for each call that runs was tried:
//! 8 callers of searches of 6 ms, 2 cores with a load of 14, median of 8 runs each: p99 3.5 times
//! the median instead of 2.2 with the threads left open, and with one thread each 250 searches a
//! second instead of 153, but p99 5.1 times the median instead of 1.4. Queueing is fairer.

use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::OnceLock;

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::{Error, Result};

/// The most threads that one call may ask for.
pub const MAX_THREADS: usize = 1024;

struct Registry {
    process: u32,
    pools: Vec<OnceLock<std::result::Result<ThreadPool, String>>>,
}

static REGISTRY: AtomicPtr<Registry> = AtomicPtr::new(std::ptr::null_mut());

/// The registry of this process. No lock is taken, so a fork at any moment leaves the child
/// able to make its own.
fn registry() -> &'static Registry {
    let process = std::process::id();
    loop {
        let current = REGISTRY.load(Ordering::Acquire);
        // SAFETY: a registry, once stored in REGISTRY, is never freed or moved (it is leaked
        // below on purpose), so a non-null pointer read from REGISTRY stays valid for ever.
        if let Some(registry) = unsafe { current.as_ref() } {
            if registry.process == process {
                return registry;
            }
        }
        let fresh = Box::into_raw(Box::new(Registry {
            process,
            pools: (0..=MAX_THREADS).map(|_| OnceLock::new()).collect(),
        }));
        if REGISTRY
            .compare_exchange(current, fresh, Ordering::AcqRel, Ordering::Acquire)
            .is_err()
        {
            // SAFETY: `fresh` came from Box::into_raw just above and lost the race, so nobody
            // else has seen it.
            drop(unsafe { Box::from_raw(fresh) });
        }
    }
}

/// How many threads `None` means: `RAYON_NUM_THREADS` where it is set to a positive number,
/// else the processors that this process may use.
pub fn default_threads() -> usize {
    std::env::var("RAYON_NUM_THREADS")
        .ok()
        .and_then(|text| text.trim().parse::<usize>().ok())
        .filter(|&n| n > 0)
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
        .min(MAX_THREADS)
}

/// The pool of `threads` threads of this process; `None` is [`default_threads`].
///
/// # Errors
/// [`Error::Argument`] for 0 or more than [`MAX_THREADS`] threads, or where the system refuses
/// to start that many.
pub fn pool(threads: Option<usize>) -> Result<&'static ThreadPool> {
    let threads = threads.unwrap_or_else(default_threads);
    if threads == 0 || threads > MAX_THREADS {
        return Err(Error::argument(format!(
            "threads is {threads}; expected 1 to {MAX_THREADS}, or None for all processors"
        )));
    }
    registry().pools[threads]
        .get_or_init(|| {
            ThreadPoolBuilder::new()
                .num_threads(threads)
                .thread_name(|i| format!("sparse-retrieval-{i}"))
                .build()
                .map_err(|error| error.to_string())
        })
        .as_ref()
        .map_err(|error| Error::argument(format!("cannot start {threads} threads: {error}")))
}

/// Runs `work` on threads of its own, as many as [`pool`] would have, which end with it.
///
/// For work under a lock: a thread of a pool that waits for its share of the work may be given
/// another call's, and if that wants the lock it waits for itself.
///
/// # Errors
/// As [`pool`].
pub fn apart<T: Send>(threads: Option<usize>, work: impl FnOnce() -> T + Send) -> Result<T> {
    let n = threads.unwrap_or_else(default_threads);
    let run = || {
        ThreadPoolBuilder::new()
            .num_threads(n)
            .thread_name(|i| format!("sparse-retrieval-{i}"))
            .build_scoped(rayon::ThreadBuilder::run, |pool| pool.install(work))
    };
    // the calling thread may be of a pool itself: it sleeps, and takes no other work meanwhile
    let done = std::thread::scope(|scope| scope.spawn(run).join());
    match done {
        Ok(done) => {
            done.map_err(|error| Error::argument(format!("cannot start {n} threads: {error}")))
        }
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_has_the_threads_asked_for_and_is_kept() {
        let two = pool(Some(2)).unwrap();
        assert_eq!(two.current_num_threads(), 2);
        assert!(std::ptr::eq(two, pool(Some(2)).unwrap()));
        assert_eq!(pool(None).unwrap().current_num_threads(), default_threads());
    }

    #[test]
    fn zero_and_too_many_threads_are_refused_with_the_number() {
        for wrong in [0, MAX_THREADS + 1] {
            let message = pool(Some(wrong)).unwrap_err().to_string();
            assert!(message.contains(&wrong.to_string()), "{message}");
        }
    }
}
