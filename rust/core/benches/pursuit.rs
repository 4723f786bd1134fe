//! Encoding 1,024 random items on one thread, by precision of the Gram matrix and by method, and
//! the update's solution. Random atoms: real ones are more alike, so that more atoms are chosen
//! twice; `benches/bench_encoding.py` measures those.
//!
//!     cargo bench -p sparse_retrieval --bench pursuit

use divan::counter::ItemsCount;
use divan::Bencher;
use sparse_retrieval::control::Control;
use sparse_retrieval::pursuit::cholesky;
use sparse_retrieval::pursuit::encoder::{Encoder, Method, Options};
use sparse_retrieval::pursuit::gram::Precision;
use sparse_retrieval::threads;

const ATOMS: usize = 4096;
const D: usize = 384;
const ITEMS: usize = 1024;
const K: usize = 32;

fn main() {
    divan::main();
}

fn noise(length: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        })
        .collect()
}

fn encode(bencher: Bencher, precision: Precision, method: Method) {
    let control = Control::new();
    let mut call = threads::call(Some(1)).expect("one thread");
    let pool = call.pool().expect("one thread");
    let encoder = pool
        .install(|| Encoder::new(&noise(ATOMS * D, 1), D, precision, u64::MAX, &control))
        .expect("a sound dictionary");
    let items = noise(ITEMS * D, 2);
    let options = Options {
        k: K,
        method,
        normalise: true,
        first_row: 0,
    };
    bencher.counter(ItemsCount::new(ITEMS)).bench(|| {
        let codes = pool.install(|| encoder.encode(&items, options, &control));
        let codes = codes.expect("sound items");
        assert!(codes.len() == ITEMS && codes.values.len() == ITEMS * K);
        codes
    });
}

#[divan::bench(args = [Precision::Int8, Precision::Int16, Precision::Float32], sample_count = 10)]
fn pursuit(bencher: Bencher, precision: Precision) {
    encode(bencher, precision, Method::Pursuit { refit_every: 8 });
}

#[divan::bench(sample_count = 10)]
fn pursuit_without_inner_refits(bencher: Bencher) {
    encode(bencher, Precision::Int8, Method::Pursuit { refit_every: K });
}

#[divan::bench(sample_count = 10)]
fn orthogonal_pursuit(bencher: Bencher) {
    encode(bencher, Precision::Int8, Method::Pursuit { refit_every: 1 });
}

#[divan::bench(sample_count = 10)]
fn projection(bencher: Bencher) {
    encode(bencher, Precision::Int8, Method::TopK { refit: false });
}

/// The solution of a round's normal equations for 1,024 atoms: its cost grows with the cube.
#[divan::bench(sample_count = 5)]
fn update(bencher: Bencher) {
    const S: usize = 1024;
    let mut matrix: Vec<f64> = noise(S * S, 3).iter().map(|&v| f64::from(v)).collect();
    for i in 0..S {
        matrix[i * S + i] = S as f64; // dominates its row: positive definite
    }
    let right: Vec<f64> = noise(S * D, 4).iter().map(|&v| f64::from(v)).collect();
    let mut call = threads::call(Some(1)).expect("one thread");
    let pool = call.pool().expect("one thread");
    bencher
        .with_inputs(|| (matrix.clone(), right.clone()))
        .bench_values(|(mut matrix, mut right)| {
            pool.install(|| cholesky::solve(&mut matrix, &mut right, S, &Control::new()))
                .expect("positive definite");
            assert!(right.iter().all(|v| v.is_finite()));
            right
        });
}
