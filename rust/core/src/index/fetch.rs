//! Items given back: their codes, and the embeddings that these decode to.

use super::Index;
use crate::codes::{Codes, ValueKind};
use crate::format::section;
use crate::search::Scales;
use crate::{Error, Result};

impl Index {
    /// The code of an item, as (latent, value) pairs in rank order without padding.
    ///
    /// Values are what was stored: with [`ValueKind::Float32`] what was given, else levels times
    /// the row's step. Under cosine the step is not kept, because it cancels: the code is then
    /// scaled so that what it decodes to has norm 1, or, in an index for mode sparse alone, so
    /// that the code has.
    pub fn code(&self, row: usize) -> Vec<(u32, f32)> {
        let factor = self.value_scales().get(row);
        let pairs = self.rows().pairs(row).into_iter();
        pairs
            .map(|(latent, value)| (latent, (value * factor) as f32))
            .filter(|pair| pair.1 != 0.0)
            .collect()
    }

    /// What a stored level is worth.
    fn value_scales(&self) -> Scales<'_> {
        if self.value_kind() == ValueKind::Float32 {
            return Scales::One;
        }
        [
            section::SCALES_STEP,
            section::SCALES_EMBEDDING,
            section::SCALES_CODE,
        ]
        .into_iter()
        .find(|name| self.section(name).is_some())
        .map_or(Scales::One, |name| self.scales_in(name))
    }

    /// Writes the embedding that an item decodes to, the dictionary's mean included.
    ///
    /// # Errors
    /// [`Error::Argument`] where the index holds no dictionary.
    ///
    /// # Panics
    /// Where `out` is not as wide as the dictionary.
    pub fn embedding(&self, row: usize, out: &mut [f32]) -> Result<()> {
        let atoms = self.atoms().ok_or_else(|| {
            Error::argument(
                "this index holds no dictionary to reconstruct with; build it with dictionary=",
            )
        })?;
        assert_eq!(out.len(), atoms.d());
        let mut sum = vec![0.0; atoms.d()];
        let code = self.code(row).into_iter();
        atoms.decode(
            code.map(|(latent, value)| (latent, f64::from(value))),
            &mut sum,
        );
        let mean = self.mean().unwrap_or_default();
        for (j, (out, sum)) in out.iter_mut().zip(sum).enumerate() {
            *out = (sum + mean.get(j).map_or(0.0, |&m| f64::from(m))) as f32;
        }
        Ok(())
    }
}

/// Rows of (latent, value) pairs as canonical codes.
///
/// # Errors
/// [`Error::Argument`] where a row, of a damaged file, is not sound.
pub fn codes_of(rows: &[Vec<(u32, f32)>], dim: usize) -> Result<Codes> {
    let mut indptr = vec![0i64];
    let (mut latents, mut values) = (Vec::new(), Vec::new());
    for row in rows {
        latents.extend(row.iter().map(|pair| pair.0));
        values.extend(row.iter().map(|pair| pair.1));
        indptr.push(latents.len() as i64);
    }
    Codes::from_csr(&indptr, &latents, &values, dim)
}
