//! The sums that the closed-form dictionary update needs, A^T A and A^T X, gathered batch by
//! batch so that the items may exceed memory. Sums are over items in their order, whatever the
//! number of threads: each latent's row of both sums belongs to one task.

use rayon::prelude::*;

use super::csr::Encoded;
use crate::control::Control;
use crate::{Error, Result};

/// A^T A (its lower triangle) and A^T X over all items added so far, in double precision.
pub struct Normal {
    /// Row-major (s, s); above the diagonal it stays zero.
    pub codes_by_codes: Vec<f64>,
    /// Row-major (s, d).
    pub codes_by_items: Vec<f64>,
    /// Items whose code holds each latent.
    pub usage: Vec<u64>,
    d: usize,
}

impl Normal {
    /// Bytes that the sums of `atoms` atoms of width `d` take.
    pub fn bytes(atoms: usize, d: usize) -> u64 {
        (atoms as u64)
            .saturating_mul(atoms as u64 + d as u64)
            .saturating_mul(8)
    }

    /// Sums over no items.
    ///
    /// # Errors
    /// [`Error::Argument`] if they take more than `limit_bytes`, [`Error::OutOfMemory`].
    pub fn new(atoms: usize, d: usize, limit_bytes: u64) -> Result<Self> {
        let bytes = Self::bytes(atoms, d);
        if bytes > limit_bytes {
            return Err(Error::argument(format!(
                "learning {atoms} atoms takes {bytes} bytes for the normal equations but the \
                 limit is {limit_bytes}; learn fewer atoms or raise the limit"
            )));
        }
        Ok(Self {
            codes_by_codes: zeros(atoms * atoms)?,
            codes_by_items: zeros(atoms * d)?,
            usage: vec![0; atoms],
            d,
        })
    }

    /// Adds a batch: `codes` of the rows of `items` (n, d).
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub fn add(&mut self, items: &[f32], codes: &Encoded, control: &Control) -> Result<()> {
        let (s, d) = (self.usage.len(), self.d);
        let postings = Postings::new(codes, s);
        (self.codes_by_codes.par_chunks_mut(s))
            .zip(self.codes_by_items.par_chunks_mut(d))
            .zip(&mut self.usage)
            .enumerate()
            .try_for_each(|(latent, ((by_codes, by_items), usage))| {
                control.check()?;
                let list = postings.of(latent);
                *usage += list.len() as u64;
                for &(row, value) in list {
                    let value = f64::from(value);
                    let (latents, values) = codes.row(row as usize);
                    for (&other, &theirs) in latents.iter().zip(values) {
                        if other as usize > latent {
                            break;
                        }
                        by_codes[other as usize] += value * f64::from(theirs);
                    }
                    let item = &items[row as usize * d..][..d];
                    for (sum, &entry) in by_items.iter_mut().zip(item) {
                        *sum += value * f64::from(entry);
                    }
                }
                Ok(())
            })
    }
}

/// A batch's codes by latent: which rows hold it, ascending, with what value.
struct Postings {
    starts: Vec<usize>,
    entries: Vec<(u32, f32)>,
}

impl Postings {
    fn new(codes: &Encoded, latents: usize) -> Self {
        let mut starts = vec![0usize; latents + 1];
        for &latent in &codes.latents {
            starts[latent as usize + 1] += 1;
        }
        for latent in 0..latents {
            starts[latent + 1] += starts[latent];
        }
        let mut next = starts.clone();
        let mut entries = vec![(0, 0.0); codes.latents.len()];
        for row in 0..codes.len() {
            let (latents, values) = codes.row(row);
            for (&latent, &value) in latents.iter().zip(values) {
                entries[next[latent as usize]] = (row as u32, value);
                next[latent as usize] += 1;
            }
        }
        Self { starts, entries }
    }

    fn of(&self, latent: usize) -> &[(u32, f32)] {
        &self.entries[self.starts[latent]..self.starts[latent + 1]]
    }
}

fn zeros(length: usize) -> Result<Vec<f64>> {
    bytemuck::allocation::try_zeroed_slice_box(length)
        .map(Vec::from)
        .map_err(|()| Error::OutOfMemory {
            what: "the normal equations of a dictionary",
            bytes: length.saturating_mul(8),
        })
}
