//! Threads for calls: how many each has, which they are, and who goes first.
//!
//! A call has a pool of threads to itself while it runs; pools are kept for later calls. A call that
//! leaves the number open has all processors where it is alone, and a share of them where others
//! wait or run. Where the calls that run have all processors, further ones wait in the order in
//! which they came: searches of a few milliseconds that are run side by side on too few
//! processors, or in a pool that they share, interrupt each other, and some take many times as long
//! as others (8 callers of searches of 1.4 ms, 2 processors: p99 5.8 times the median in a shared
//! pool of two threads). Nobody waits for a call that has run for [`LONG`]: beside such a one all
//! run at once, and the system shares out its processors.
//!
//! Safe after `fork`: a child process has none of its parent's threads, so it gets pools of its own,
//! and nobody waits in it (what is its parent's is leaked there, since locks may be held by threads
//! that no longer exist).

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::{Error, Result};

/// The most threads that one call may ask for.
pub const MAX_THREADS: usize = 1024;
/// How long a call runs before others no longer wait for it.
const LONG: Duration = Duration::from_millis(50);
/// How long the number of processors is taken for known: to ask for it takes some 10
/// microseconds.
const KNOWN: Duration = Duration::from_secs(1);

struct Registry {
    process: u32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Calls that wait or run.
    calls: usize,
    /// First come, first served.
    waiting: VecDeque<Arc<Place>>,
    running: Vec<(Instant, Arc<Place>)>,
    /// Pools that no call has, by their number of threads.
    idle: BTreeMap<usize, Vec<ThreadPool>>,
    /// The processors of this process, and when that was looked at.
    processors: Option<(Instant, usize)>,
}

/// A call among others.
#[derive(Debug)]
struct Place {
    threads: usize,
    /// Told when the call may run.
    admitted: Condvar,
}

impl State {
    /// As [`default_threads`].
    fn default_threads(&mut self, now: Instant) -> usize {
        let known = self
            .processors
            .filter(|(looked, _)| now.duration_since(*looked) < KNOWN);
        let (_, processors) = *self
            .processors
            .insert(known.unwrap_or_else(|| (now, processors())));
        asked_for_by_environment()
            .unwrap_or(processors)
            .min(MAX_THREADS)
    }

    /// Lets those calls run whose turn it is.
    fn admit(&mut self, now: Instant) {
        let processors = self.default_threads(now);
        while let Some(first) = self.waiting.front() {
            let not_long = self
                .running
                .iter()
                .filter(|(since, _)| now.duration_since(*since) < LONG);
            let busy: usize = not_long.map(|(_, place)| place.threads).sum();
            if busy > 0 && busy.saturating_add(first.threads) > processors {
                return;
            }
            let first = self.waiting.pop_front().expect("there is one");
            first.admitted.notify_one();
            self.running.push((now, first));
        }
    }

    /// When the next of those that run will have run for long.
    fn next_change(&self, now: Instant) -> Option<Instant> {
        let ends = self.running.iter().map(|(since, _)| *since + LONG);
        ends.filter(|end| *end > now).min()
    }
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
        // nothing that is done under the lock can leave half a change
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many threads a call has that is alone and leaves their number open: `RAYON_NUM_THREADS`
/// where it is set to a positive number, else the processors that this process may use.
pub fn default_threads() -> usize {
    asked_for_by_environment()
        .unwrap_or_else(processors)
        .min(MAX_THREADS)
}

fn asked_for_by_environment() -> Option<usize> {
    let text = std::env::var("RAYON_NUM_THREADS").ok()?;
    text.trim().parse::<usize>().ok().filter(|&n| n > 0)
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Calls of this process that wait for their turn or run.
pub fn calls() -> usize {
    registry().state().calls
}

/// A call: it waits for its turn, then has a pool to itself until it is dropped.
#[derive(Debug)]
pub struct Call {
    registry: &'static Registry,
    place: Arc<Place>,
    pool: Option<ThreadPool>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Registry of process {}", self.process)
    }
}

/// Begins a call on `threads` threads; where `None`, on its share of [`default_threads`], which is
/// all of them, or so many as are left when they are halved until all calls could have as many.
///
/// # Errors
/// [`Error::Argument`] for 0 or more than [`MAX_THREADS`] threads.
pub fn call(threads: Option<usize>) -> Result<Call> {
    check(threads)?;
    let registry = registry();
    let mut state = registry.state();
    let now = Instant::now();
    let all = state.default_threads(now);
    state.calls += 1;
    let halvings = state.calls.next_power_of_two().trailing_zeros();
    let share = all.checked_shr(halvings).unwrap_or(0).max(1);
    let place = Arc::new(Place {
        threads: threads.unwrap_or(share),
        admitted: Condvar::new(),
    });
    state.waiting.push_back(Arc::clone(&place));
    state.admit(now);
    drop(state);
    Ok(Call {
        registry,
        place,
        pool: None,
    })
}

/// Refuses numbers of threads that no call may ask for.
///
/// # Errors
/// [`Error::Argument`] for 0 or more than [`MAX_THREADS`] threads.
pub fn check(threads: Option<usize>) -> Result<()> {
    if let Some(threads) = threads.filter(|n| !(1..=MAX_THREADS).contains(n)) {
        return Err(Error::argument(format!(
            "threads is {threads}; expected 1 to {MAX_THREADS}, or None for all processors"
        )));
    }
    Ok(())
}

impl Call {
    /// Threads of this call.
    pub fn threads(&self) -> usize {
        self.place.threads
    }

    /// Waits for the call's turn, for at most so long. True where it is here.
    pub fn wait(&self, most: Duration) -> bool {
        let until = Instant::now() + most;
        let mut state = self.registry.state();
        loop {
            let now = Instant::now();
            state.admit(now);
            if state
                .running
                .iter()
                .any(|(_, place)| Arc::ptr_eq(place, &self.place))
            {
                return true;
            }
            if now >= until {
                return false;
            }
            let wake = state
                .next_change(now)
                .map_or(until, |change| change.min(until));
            let waited = self.place.admitted.wait_timeout(state, wake - now);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The pool of this call, whose turn it is: waits for that.
    ///
    /// # Errors
    /// [`Error::Argument`] where the system refuses to start that many threads.
    pub fn pool(&mut self) -> Result<&ThreadPool> {
        while !self.wait(LONG) {}
        if self.pool.is_none() {
            let mut state = self.registry.state();
            let idle = state.idle.get_mut(&self.place.threads).and_then(Vec::pop);
            drop(state);
            self.pool = Some(match idle {
                Some(pool) => pool,
                None => new_pool(self.place.threads)?,
            });
        }
        Ok(self.pool.as_ref().expect("set above"))
    }
}

fn new_pool(threads: usize) -> Result<ThreadPool> {
    ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("sparse-retrieval-{i}"))
        .build()
        .map_err(|error| Error::argument(format!("cannot start {threads} threads: {error}")))
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut state = self.registry.state();
        let is_other = |place: &Arc<Place>| !Arc::ptr_eq(place, &self.place);
        state.waiting.retain(is_other);
        state.running.retain(|(_, place)| is_other(place));
        state.calls -= 1;
        let now = Instant::now();
        // so many pools of a size as may run at once; the threads of others end
        let kept = (state.default_threads(now) / self.place.threads).max(1);
        if let Some(pool) = self.pool.take() {
            let idle = state.idle.entry(self.place.threads).or_default();
            if idle.len() < kept {
                idle.push(pool);
            } else {
                self.pool = Some(pool);
            }
        }
        state.admit(now);
    }
}

thread_local! {
    /// Whether what this thread does is to stay on it.
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` on this thread, on which [`try_map`] stays meanwhile: for what is done sooner than
/// others could be told of it.
pub fn alone<T>(work: impl FnOnce() -> T) -> T {
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            ALONE.set(self.0);
        }
    }
    let _before = Before(ALONE.replace(true));
    work()
}

/// Threads between which [`try_map`] shares out work here.
pub fn width() -> usize {
    if ALONE.get() {
        1
    } else {
        rayon::current_num_threads()
    }
}

/// What `each` makes of the items, in their order: on the current rayon pool, or within [`alone`] on
/// this thread, which may then be of no pool.
///
/// # Errors
/// One of those of `each`.
pub fn try_map<I: Send, T: Send>(
    items: Vec<I>,
    each: impl Fn(I) -> Result<T> + Sync + Send,
) -> Result<Vec<T>> {
    if ALONE.get() {
        return items.into_iter().map(each).collect();
    }
    items.into_par_iter().map(each).collect()
}

/// Runs `work` on threads of its own, as many as asked for or [`default_threads`], which end with it.
///
/// For work under a lock: a thread of a pool that waits for its share of the work may be given
/// another part of it, and if that wants the lock it waits for itself.
///
/// # Errors
/// As [`Call::pool`].
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
