//! How calls share the processors, and in which order they have their turns.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use sparse_retrieval::threads::{call, calls, default_threads, Call, MAX_THREADS};

/// Less than what a call may run before others do not wait for it any more.
const SHORT: Duration = Duration::from_millis(40);

/// One test at a time: the calls of another would be counted.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does something until it took so little time that no call ran for long meanwhile.
fn at_once<T>(mut something: impl FnMut() -> T) -> T {
    loop {
        let begun = Instant::now();
        let done = something();
        if begun.elapsed() < SHORT {
            return done;
        }
    }
}

fn is_admitted(call: &Call) -> bool {
    call.wait(Duration::ZERO)
}

fn workers(call: &mut Call) -> Vec<ThreadId> {
    let pool = call.pool().unwrap();
    pool.broadcast(|_| std::thread::current().id())
}

#[test]
fn a_lone_call_has_all_processors_and_others_a_share() {
    let _alone = alone();
    let all = default_threads();
    for _ in 0..2 {
        let shares: Vec<Call> = (0..5).map(|_| call(None).unwrap()).collect();
        let threads: Vec<usize> = shares.iter().map(Call::threads).collect();
        let expected = [1, 2, 4, 4, 8].map(|parts| (all / parts).max(1));
        assert_eq!(threads, expected);
        assert_eq!(calls(), 5);
        drop(shares);
        assert_eq!(calls(), 0);
    }
}

#[test]
fn a_call_has_as_many_threads_as_it_asks_for_whoever_else_runs() {
    let _alone = alone();
    let _other = call(None).unwrap();
    for threads in [1, 3] {
        let mut asked = call(Some(threads)).unwrap();
        assert_eq!(asked.pool().unwrap().current_num_threads(), threads);
    }
}

#[test]
fn zero_and_too_many_threads_are_refused_with_the_number() {
    let _alone = alone();
    for wrong in [0, MAX_THREADS + 1] {
        let message = call(Some(wrong)).unwrap_err().to_string();
        assert!(message.contains(&wrong.to_string()), "{message}");
    }
    assert_eq!(calls(), 0);
}

#[test]
fn calls_have_their_turns_in_the_order_in_which_they_came() {
    let _alone = alone();
    let all = Some(default_threads());
    let turns = at_once(|| {
        let (first, second, third) = (call(all).unwrap(), call(all).unwrap(), call(all).unwrap());
        let before = [&first, &second, &third].map(is_admitted);
        drop(first);
        (before, [&second, &third].map(is_admitted))
    });
    assert_eq!(turns, ([true, false, false], [true, false]));
}

#[test]
fn a_call_that_is_given_up_while_it_waits_lets_the_next_one_go_first() {
    let _alone = alone();
    let all = Some(default_threads());
    let is_next = at_once(|| {
        let (first, second, third) = (call(all).unwrap(), call(all).unwrap(), call(all).unwrap());
        drop(second);
        drop(first);
        is_admitted(&third)
    });
    assert!(is_next);
    assert_eq!(calls(), 0);
}

#[test]
fn as_many_run_at_once_as_there_are_processors() {
    let _alone = alone();
    let all = default_threads();
    let admitted = at_once(|| {
        let one_each: Vec<Call> = (0..all + 2).map(|_| call(Some(1)).unwrap()).collect();
        one_each.iter().filter(|call| is_admitted(call)).count()
    });
    assert_eq!(admitted, all);
}

#[test]
fn nobody_waits_for_a_call_that_runs_for_long() {
    let _alone = alone();
    let all = Some(default_threads());
    let long = call(all).unwrap();
    let mut other = call(all).unwrap();
    other.pool().unwrap();
    assert_eq!(calls(), 2);
    drop((long, other));
}

#[test]
fn calls_at_once_have_pools_of_their_own_which_later_ones_take_over() {
    let _alone = alone();
    let (mut one, mut other) = (call(Some(2)).unwrap(), call(Some(2)).unwrap());
    let (of_one, of_other) = (workers(&mut one), workers(&mut other));
    assert_eq!(of_one.len(), 2);
    assert!(of_one.iter().all(|worker| !of_other.contains(worker)));
    drop((one, other));
    let again = workers(&mut call(Some(2)).unwrap());
    assert!(again == of_one || again == of_other);
}

#[test]
fn a_call_that_panics_is_not_counted_any_more() {
    let _alone = alone();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let mut call = call(None).unwrap();
        let pool = call.pool().unwrap();
        pool.install(|| panic!("as a defect would"));
    }));
    assert!(panicked.is_err());
    assert_eq!(calls(), 0);
    assert_eq!(call(None).unwrap().threads(), default_threads());
}
