//! The linear encoder, for comparison: the k atoms most correlated with the item, with the
//! correlations themselves as values or values fitted by least squares.

use super::blocks::{flat, Block};
use super::matching::{Atoms, Workspace, NOTHING};

/// Encodes one item by the `k` largest |W x|, ties to the lower latent.
pub fn project(
    atoms: Atoms,
    item: &[f32],
    start: &[Block<f32>],
    k: usize,
    refit: bool,
    order: &mut Vec<u32>,
    work: &mut Workspace,
) {
    let start = flat(start);
    let s = atoms.rows.len() / atoms.d;
    work.begin_empty();
    order.clear();
    order.extend(0..s as u32);
    let magnitude = |latent: u32| start[latent as usize].abs();
    let before = |a: &u32, b: &u32| magnitude(*b).total_cmp(&magnitude(*a)).then(a.cmp(b));
    if k < s {
        order.select_nth_unstable_by(k - 1, before);
        order.truncate(k);
    }
    order.sort_unstable_by(before);
    order.retain(|&latent| magnitude(latent) > NOTHING);
    if refit {
        for &latent in order.iter() {
            work.choose(latent as usize);
        }
        work.settle(atoms, item);
        work.finish();
        return;
    }
    let mut decoded = vec![0f64; atoms.d];
    let mut inner = 0f64;
    for &latent in order.iter() {
        let value = start[latent as usize];
        work.entries.push((latent, value));
        inner += f64::from(value) * f64::from(value);
        for (sum, entry) in decoded.iter_mut().zip(atoms.row(latent as usize)) {
            *sum += f64::from(value) * f64::from(*entry);
        }
    }
    let norm = decoded.iter().map(|v| v * v).sum::<f64>().sqrt();
    work.cosine = if norm > 0.0 { inner / norm } else { 0.0 };
}
