//! The plain definitions that the kernels are held against; tests only. Shares no code with
//! them: rows are read pair by pair, lanes are spelled out.

use super::{Reached, Sum};
use crate::codes::RowsView;

/// The score of a row by the order that the module's head defines.
pub fn score_row(rows: &RowsView<'_>, row: usize, weights: &[f64]) -> f64 {
    let mut lanes = [0.0f64; 8];
    for (rank, (latent, level)) in rows.pairs(row).into_iter().enumerate() {
        // a latent beyond dim, as only a damaged file holds, weighs nothing
        let weight = weights.get(latent as usize).copied().unwrap_or(0.0);
        lanes[rank % 8] += weight * level;
    }
    ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6]))
        + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]))
}

/// The inner product of an atom and a query in the same order.
pub fn project(atom: &[f32], query: &[f64]) -> f64 {
    let mut lanes = [0.0f64; 8];
    for (i, (&a, &q)) in atom.iter().zip(query).enumerate() {
        lanes[i % 8] += f64::from(a) * q;
    }
    ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6]))
        + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]))
}

/// The places of the sums that are at least `least`.
pub fn at_least<S: Sum>(sums: &[S], least: S) -> Vec<Reached> {
    let places = (0..sums.len()).filter(|&i| sums[i] >= least);
    places
        .map(|i| Reached {
            place: i as u16,
            sum: sums[i].into(),
        })
        .collect()
}

/// What a list of (bound, positions) adds to sums, in double precision.
pub fn add_list(list: &[(f32, Vec<u16>)], weight: f32, cap: f32) -> Vec<(u16, u16)> {
    let gain = |bound: f32| (weight * bound).min(cap).floor() as u16 + 1;
    list.iter()
        .flat_map(|(bound, positions)| positions.iter().map(move |&p| (p, gain(*bound))))
        .collect()
}

/// The sum of the integer pass: before the group of four nonzeros `g`, what was summed so far is
/// doubled `shifts[g]` times.
pub fn integer_sum(nonzeros: &[(u32, i8)], shifts: &[u32], weight: impl Fn(u32) -> i8) -> i32 {
    let mut sum = 0;
    let groups = nonzeros.len().div_ceil(4).max(shifts.len());
    for group in 0..groups {
        sum *= 1 << shifts.get(group).copied().unwrap_or(0);
        for &(latent, level) in nonzeros.iter().skip(4 * group).take(4) {
            sum += i32::from(level) * i32::from(weight(latent));
        }
    }
    sum
}
