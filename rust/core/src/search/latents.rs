//! The latents that some rows have, for which exact weights must be made.

use crate::codes::RowsView;

/// A set of latents, one bit each.
#[derive(Debug, Clone)]
pub struct LatentSet {
    words: Vec<u64>,
}

impl LatentSet {
    /// An empty set of latents below `dim`.
    pub fn new(dim: usize) -> Self {
        Self {
            words: vec![0; dim.div_ceil(64)],
        }
    }

    /// Adds the latents of a row.
    #[inline]
    pub fn add_row(&mut self, rows: &RowsView<'_>, row: usize) {
        rows.for_each_latent(row, |latent| self.words[latent / 64] |= 1 << (latent % 64));
    }

    /// Moves all latents to the end of `latents`, ascending.
    pub fn drain_into(&mut self, latents: &mut Vec<u32>) {
        for (word, first) in self.words.iter_mut().zip((0..).step_by(64)) {
            let mut rest = std::mem::take(word);
            while rest != 0 {
                latents.push(first + rest.trailing_zeros());
                rest &= rest - 1;
            }
        }
    }
}
