//! Thread pools, made when they are needed and kept: each call has one of its own while it runs.
//!
//! Calls do not share a pool where it can be helped, because a worker that waits for a part of
//! its call takes up whatever else is queued, which may be another call as a whole; the first
//! is then done no sooner than the second. (8 callers of one pool of 2 threads, searches of 6
//! ms on a loaded machine: median 18 ms, but one in a hundred took 240.) Between pools the
//! system shares out the processors, evenly.
//!
//! Safe after `fork`: a child process has none of its parent's threads, so it gets pools of its
//! own (the parent's are leaked there, since their locks may be held by threads that no longer
//! exist).

use std::ops::Deref;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::{Error, Result};

/// The most threads that one call may ask for.
pub const MAX_THREADS: usize = 1024;

/// For each processor so many threads of pools of one size; further calls share those.
const THREADS_A_PROCESSOR: usize = 2;

struct Registry {
    process: u32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    pools: Vec<Pool>,
    /// Calls now running that left the number of threads open.
    open_calls: usize,
}

struct Pool {
    threads: usize,
    /// Never dropped: a pool's threads may outlive any call.
    pool: &'static ThreadPool,
    /// Calls now running on it.
    calls: usize,
}

static REGISTRY: AtomicPtr<Registry> = AtomicPtr::new(std::ptr::null_mut());

/// The registry of this process. No lock is taken to find it, and a child process never looks
/// into its parent's, so a fork at any moment leaves the child able to make its own.
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
            state: Mutex::default(),
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

impl Registry {
    fn state(&self) -> MutexGuard<'_, State> {
        // a panic leaves no half-done change: each is one assignment or push
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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

/// A pool for one call, given back when dropped.
pub struct Lease {
    registry: &'static Registry,
    /// Its place in the registry.
    number: usize,
    pool: &'static ThreadPool,
    is_open: bool,
}

impl Deref for Lease {
    type Target = ThreadPool;

    fn deref(&self) -> &ThreadPool {
        self.pool
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.registry.process == std::process::id() {
            let mut state = self.registry.state();
            state.pools[self.number].calls -= 1;
            state.open_calls -= usize::from(self.is_open);
        }
    }
}

/// A pool of `threads` threads, which no other call uses unless there are very many.
///
/// `None` is [`default_threads`], shared out between the calls that leave it open: where `n` of
/// them run already, the next one gets a pool of an `n + 1`-th of the threads.
///
/// # Errors
/// [`Error::Argument`] for 0 or more than [`MAX_THREADS`] threads, or where the system refuses
/// to start that many.
pub fn pool(threads: Option<usize>) -> Result<Lease> {
    if let Some(wrong) = threads.filter(|&n| n == 0 || n > MAX_THREADS) {
        return Err(Error::argument(format!(
            "threads is {wrong}; expected 1 to {MAX_THREADS}, or None for all processors"
        )));
    }
    let (processors, is_open) = (default_threads(), threads.is_none());
    let registry = registry();
    let mut state = registry.state();
    let threads = threads.unwrap_or_else(|| (processors / (state.open_calls + 1)).max(1));
    let number = state.pool_of(threads, processors)?;
    state.pools[number].calls += 1;
    state.open_calls += usize::from(is_open);
    Ok(Lease {
        registry,
        number,
        pool: state.pools[number].pool,
        is_open,
    })
}

impl State {
    /// The least busy pool of so many threads; a new one where all are busy and few enough.
    fn pool_of(&mut self, threads: usize, processors: usize) -> Result<usize> {
        let of_size = self.pools.iter().enumerate();
        let of_size = of_size.filter(|(_, pool)| pool.threads == threads);
        let count = of_size.clone().count();
        let least_busy = of_size.min_by_key(|(_, pool)| pool.calls);
        let most = (THREADS_A_PROCESSOR * processors / threads).max(1);
        match least_busy {
            Some((number, pool)) if pool.calls == 0 || count >= most => return Ok(number),
            _ => {}
        }
        let fallback = least_busy.map(|(number, _)| number);
        let built = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("sparse-retrieval-{i}"))
            .build();
        match (built, fallback) {
            (Ok(pool), _) => {
                self.pools.push(Pool {
                    threads,
                    pool: Box::leak(Box::new(pool)),
                    calls: 0,
                });
                Ok(self.pools.len() - 1)
            }
            (Err(_), Some(number)) => Ok(number),
            (Err(error), None) => Err(Error::argument(format!(
                "cannot start {threads} threads: {error}"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_has_the_threads_asked_for_and_is_used_again() {
        // a size that no other test asks for
        let first = pool(Some(37)).unwrap();
        assert_eq!(first.current_num_threads(), 37);
        let address: *const ThreadPool = &*first;
        drop(first);
        assert!(std::ptr::eq(address, &*pool(Some(37)).unwrap()));
    }

    #[test]
    fn calls_at_the_same_time_have_pools_of_their_own_up_to_a_number() {
        let mut state = State::default();
        let mut taken = |threads, processors| {
            let number = state.pool_of(threads, processors).unwrap();
            state.pools[number].calls += 1;
            (number, state.pools[number].pool.current_num_threads())
        };
        assert_eq!([taken(1, 1), taken(1, 1)], [(0, 1), (1, 1)]);
        assert_eq!(
            [taken(1, 1), taken(1, 1)],
            [(0, 1), (1, 1)],
            "the least busy are shared"
        );
        assert_eq!(
            [taken(3, 1), taken(3, 1)],
            [(2, 3), (2, 3)],
            "one of any size there is"
        );
    }

    #[test]
    fn calls_that_leave_the_number_open_share_the_processors() {
        // other tests of this process may run such calls too: there are at least these
        let leases: Vec<_> = (0..=default_threads())
            .map(|_| pool(None).unwrap())
            .collect();
        assert!(leases[0].current_num_threads() <= default_threads());
        assert_eq!(leases[leases.len() - 1].current_num_threads(), 1);
    }

    #[test]
    fn zero_and_too_many_threads_are_refused_with_the_number() {
        for wrong in [0, MAX_THREADS + 1] {
            let message = pool(Some(wrong)).err().unwrap().to_string();
            assert!(message.contains(&wrong.to_string()), "{message}");
        }
    }
}
