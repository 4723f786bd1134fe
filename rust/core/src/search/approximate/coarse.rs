//! Vectors in 8 bits: what routes and coarse weights are computed with.

use crate::search::Atoms;

/// The largest level.
const MOST: f32 = 127.0;

/// Writes a vector in 8 bits and returns its unit: the step between levels.
pub fn quantise(x: &[f32], levels: &mut [i8]) -> f32 {
    let largest = x.iter().fold(0.0f32, |a, b| a.max(b.abs()));
    let unit = if largest > 0.0 && largest.is_finite() {
        largest / MOST
    } else {
        1.0
    };
    for (level, &x) in levels.iter_mut().zip(x) {
        *level = (x / unit).round() as i8; // saturates
    }
    unit
}

/// The atoms of a dictionary in 8 bits.
#[derive(Debug, Clone)]
pub struct CoarseAtoms {
    /// Levels, atom by atom.
    pub(super) levels: Vec<i8>,
    /// The unit of each atom.
    pub(super) units: Vec<f32>,
}

impl CoarseAtoms {
    /// These atoms, rounded; a quarter of their bytes in single precision.
    pub fn of(atoms: Atoms<'_>) -> Self {
        let d = atoms.d();
        let mut levels = vec![0i8; atoms.rows().len()];
        // some milliseconds, once: not worth a pool, which a single query may not be in
        let units = levels
            .chunks_exact_mut(d)
            .zip(atoms.rows().chunks_exact(d))
            .map(|(levels, atom)| quantise(atom, levels))
            .collect();
        Self { levels, units }
    }
}
