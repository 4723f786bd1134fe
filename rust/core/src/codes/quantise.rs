//! From codes to rank-coded rows.
//!
//! 1. `levels` learns a codebook for each rank from a sample of the rows.
//! 2. The levels of a row are chosen by coordinate descent on what counts, the distance of the
//!    decoded rows: with the Gram matrix `G` of the row's atoms, values `v` and scale `s`,
//!    `(v - s l)^T G (v - s l)`. One level's error is then made up for by the others. Without a
//!    dictionary `G` is the identity, and the nearest level is the best.
//! 3. The scale is the least-squares factor `s = <v, l>_G / <l, l>_G`.
//!
//! Steps 2 and 3 are those of `row_quantiser`.
//!
//! Where `v` are the least-squares values of an item `x` on its support, as pursuit with a refit
//! leaves them, `x - W^T v` is orthogonal to every atom of the support, so that this distance
//! differs from that of `x` by a constant: the scale is then the one computed from `x` itself.
//!
//! Complete rows, which have every latent, have a codebook for each latent, and each value takes the
//! level nearest to it: they are for atoms at right angles, where no error makes up for another.
//! Which level is nearest depends on what values are divided by, and the scale is stored anyway,
//! so a few divisors are tried and the one is kept whose levels point most nearly where the values
//! do (as extended RaBitQ does on its grid: Gao et al., arXiv:2409.09913).
//!
//! Deterministic: a row depends on the codebooks and itself alone.

use rayon::prelude::*;

use super::levels::{RowLengths, Samples};
use super::ranked::{latent_bits_of, max_magnitude_bits, RankedLayout};
use super::row_quantiser::{AtomRows, RowQuantiser};
use super::CodesView;
use crate::control::Control;
use crate::memory::OwnedBytes;
use crate::{Error, Result};

/// How many more bits than the mean a rank may get: one more is worth it for a variance 4 times as
/// large, so that this is for 16,000 times the variance of the mean. Above all that `Average` allows.
const MORE_BITS: u8 = 7;
/// Rows that one task packs.
const ROWS_A_TASK: usize = 256;

/// How many bits magnitudes take.
#[derive(Debug, Clone, PartialEq)]
pub enum MagnitudeBits {
    /// The same number at every rank.
    Uniform(u8),
    /// This many a rank on average, spent where they lessen the error most.
    Average(f64),
    /// This many a latent on average, for rows that have every latent: a complete coding.
    Complete(f64),
}

impl MagnitudeBits {
    /// True where rows are to have every latent.
    pub fn are_complete(&self) -> bool {
        matches!(self, Self::Complete(_))
    }
}

/// Rank-coded rows, owned.
#[derive(Debug)]
pub struct RankedRows {
    /// Where fields lie, and the levels.
    pub layout: RankedLayout,
    /// The rows, one after the other.
    pub data: OwnedBytes,
    /// What a row's levels are multiplied by; 0 for an empty row.
    pub scales: Vec<f32>,
    /// Cosine of each decoded row before and after quantisation; 0 for an empty row.
    pub cosines: Vec<f64>,
}

impl RankedRows {
    /// The mean of the cosines, over rows that are not zero.
    pub fn mean_cosine(&self) -> f64 {
        let nonempty = self.scales.iter().filter(|&&scale| scale != 0.0).count();
        // folded from 0: the sum of no number would be -0, which JSON tells from 0
        self.cosines.iter().fold(0.0, |sum, cosine| sum + cosine) / nonempty.max(1) as f64
    }
}

/// Packs codes as rank-coded rows, each as wide as the longest, with codebooks of their own.
///
/// # Errors
/// As [`learn_layout`] and [`pack_with_layout`].
///
/// # Panics
/// Where `atoms` are given and a latent has none.
pub fn pack_ranked(
    codes: CodesView<'_>,
    bits: &MagnitudeBits,
    atoms: Option<AtomRows<'_>>,
    control: &Control,
) -> Result<RankedRows> {
    let layout = learn_layout(codes, bits, RowLengths::of(codes), control)?;
    pack_with_layout(codes, layout, atoms, control)
}

/// Learns the codebooks of rows whose lengths are as `lengths` says.
///
/// # Errors
/// [`Error::Argument`] for more than 65,536 latents or bits out of range;
/// [`Error::Interrupted`].
///
/// # Panics
/// Where a row is longer than the longest.
pub fn learn_layout(
    codes: CodesView<'_>,
    bits: &MagnitudeBits,
    lengths: RowLengths,
    control: &Control,
) -> Result<RankedLayout> {
    let of_dim = latent_bits_of(codes.dim())?;
    let (latent_bits, width, samples) = if bits.are_complete() {
        (0, codes.dim(), Samples::by_latent(codes))
    } else {
        (of_dim, lengths.longest, Samples::draw(codes, lengths))
    };
    control.check()?;
    let most = max_magnitude_bits(latent_bits);
    let magnitude_bits = match *bits {
        MagnitudeBits::Uniform(bits) if bits <= most => vec![bits; width],
        MagnitudeBits::Average(average) | MagnitudeBits::Complete(average)
            if (0.0..=f64::from(most)).contains(&average) =>
        {
            let budget = (average * width as f64).floor() as usize;
            // codebooks of many bits take long to learn, and are only for the largest variances
            samples.allocate(budget, most.min(average as u8 + MORE_BITS), control)?
        }
        ref other => {
            return Err(Error::argument(format!(
                "{other:?} bits of magnitude; expected 0 to {most}"
            )))
        }
    };
    let levels: Vec<f32> = (0..width)
        .into_par_iter()
        .map(|rank| samples.codebook(rank, magnitude_bits[rank]).0)
        .collect::<Vec<_>>()
        .concat();
    control.check()?;
    RankedLayout::new(latent_bits, magnitude_bits, levels)
}

/// Packs codes as rank-coded rows of a given layout.
///
/// # Errors
/// [`Error::Argument`] for a row that has more nonzeros than ranks, or fewer where the next
/// rank has no level of 0; [`Error::OutOfMemory`], [`Error::Interrupted`].
///
/// # Panics
/// Where `atoms` are given and a latent has none.
pub fn pack_with_layout(
    codes: CodesView<'_>,
    layout: RankedLayout,
    atoms: Option<AtomRows<'_>>,
    control: &Control,
) -> Result<RankedRows> {
    let n = codes.len();
    check_lengths(codes, &layout)?;
    let bytes = n
        .checked_mul(layout.row_bytes())
        .ok_or_else(|| out_of_memory(usize::MAX))?;
    let mut data = OwnedBytes::zeroed(bytes, "packed rows")?;
    let mut scales = vec![0.0f32; n];
    let mut cosines = vec![0.0f64; n];
    data.par_chunks_mut(ROWS_A_TASK * layout.row_bytes())
        .zip(scales.par_chunks_mut(ROWS_A_TASK))
        .zip(cosines.par_chunks_mut(ROWS_A_TASK))
        .enumerate()
        .try_for_each(|(task, ((data, scales), cosines))| {
            control.check()?;
            let mut row = RowQuantiser::new(&layout);
            for (i, out) in data.chunks_exact_mut(layout.row_bytes()).enumerate() {
                let (latents, values) = codes.row(task * ROWS_A_TASK + i);
                (scales[i], cosines[i]) = row.quantise(latents, values, atoms, out);
            }
            control.advance(scales.len() as u64);
            Ok::<(), Error>(())
        })?;
    Ok(RankedRows {
        layout,
        data,
        scales,
        cosines,
    })
}

/// Refuses rows that the layout cannot hold.
fn check_lengths(codes: CodesView<'_>, layout: &RankedLayout) -> Result<()> {
    if layout.is_complete() {
        // a latent that a row lacks has value 0, and the level nearest to it
        return match codes.dim() {
            dim if dim == layout.width() => Ok(()),
            dim => Err(Error::argument(format!(
                "codes over {dim} latents, the codebooks are for rows of all {}",
                layout.width()
            ))),
        };
    }
    let width = layout.width();
    // rows may end at a rank only if all ranks from there on can say 0
    let shortest = (0..width)
        .rev()
        .find(|&rank| layout.levels()[layout.levels_of(rank).start] != 0.0)
        .map_or(0, |rank| rank + 1);
    for row in 0..codes.len() {
        let length = codes.span(row).len();
        if length > width {
            return Err(Error::argument(format!(
                "row {row} has {length} nonzeros, the codebooks are for {width}; cut codes with \
                 .top({width}), or learn the codebooks for more"
            )));
        }
        if length > 0 && length < shortest {
            return Err(Error::argument(format!(
                "row {row} has {length} nonzeros, but the codebooks were learnt from rows of at \
                 least {shortest}, so that later ranks have no level of 0; learn them from rows \
                 as short, or for as short ones"
            )));
        }
    }
    Ok(())
}

fn out_of_memory(bytes: usize) -> Error {
    Error::OutOfMemory {
        what: "packed rows",
        bytes,
    }
}
