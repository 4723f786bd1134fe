//! Pursuit without a Gram matrix: after each choice the correlations of a whole batch are
//! computed anew from the residuals, W r. It takes no memory that grows with the square of the
//! atoms, and about k matrix products where the Gram form takes one.

use super::blocks::{argmax, block_maxima, blocks_for, flat, flat_mut, BLOCK};
use super::gram::zeroed_blocks;
use super::matching::{Atoms, Workspace, NOTHING};
use crate::control::Control;
use crate::gemm;
use crate::Result;

struct Item {
    position: usize,
    steps: usize,
    work: Workspace,
}

/// Encodes unit `items` (n, d); `done` gets each item's position in the batch and its entries,
/// in no particular order.
pub fn pursue_batch(
    atoms: Atoms,
    items: &[f32],
    k: usize,
    refit_every: usize,
    control: &Control,
    mut done: impl FnMut(usize, &mut Workspace),
) -> Result<()> {
    let d = atoms.d;
    let blocks = blocks_for(atoms.rows.len() / d);
    let mut residuals = items.to_vec();
    let mut active: Vec<Item> = (0..items.len() / d)
        .map(|position| Item {
            position,
            steps: 0,
            work: Workspace::default(),
        })
        .collect();
    let mut correlations = zeroed_blocks(active.len() * blocks)?;
    let mut maxima = vec![0u32; blocks];
    while !active.is_empty() {
        control.check()?;
        let out = flat_mut(&mut correlations);
        gemm::rows_by_rows(
            &residuals[..active.len() * d],
            atoms.rows,
            d,
            out,
            blocks * BLOCK,
        );
        let mut kept = 0;
        for slot in 0..active.len() {
            let row = &correlations[slot * blocks..(slot + 1) * blocks];
            block_maxima(atoms.kernels, row, &mut maxima);
            let latent = argmax(atoms.kernels, row, &maxima);
            let item = &mut active[slot];
            let original = &items[item.position * d..(item.position + 1) * d];
            let residual = &mut residuals[slot * d..(slot + 1) * d];
            if advance(
                atoms,
                item,
                original,
                residual,
                (latent, flat(row)[latent]),
                k,
                refit_every,
            ) {
                active.swap(kept, slot);
                residuals.copy_within(slot * d..(slot + 1) * d, kept * d);
                kept += 1;
            } else {
                item.work.settle(atoms, original);
                item.work.finish();
                done(item.position, &mut item.work);
            }
        }
        active.truncate(kept);
    }
    Ok(())
}

/// Takes the chosen atom off the residual; false once the item is done.
fn advance(
    atoms: Atoms,
    item: &mut Item,
    original: &[f32],
    residual: &mut [f32],
    (latent, correlation): (usize, f32),
    k: usize,
    refit_every: usize,
) -> bool {
    if correlation.abs() <= NOTHING || item.steps == 2 * k {
        return false;
    }
    item.steps += 1;
    if !item.work.support.contains(&latent) {
        item.work.choose(latent);
        if item.work.support.len() == k {
            return false;
        }
        if item.work.support.len().is_multiple_of(refit_every) {
            if item.work.settle(atoms, original) {
                return false;
            }
            residual.copy_from_slice(original);
            let values = item.work.refit.solve();
            for (&latent, &value) in item.work.support.iter().zip(values) {
                take_off(residual, atoms.row(latent), value as f32);
            }
            return true;
        }
    }
    take_off(residual, atoms.row(latent), correlation);
    true
}

fn take_off(residual: &mut [f32], atom: &[f32], amount: f32) {
    for (value, entry) in residual.iter_mut().zip(atom) {
        *value -= amount * entry;
    }
}
