//! Items and atoms as they come in: checked for NaN and infinity, scaled to unit norm.

use crate::{Error, Result};

/// Rows of width `d` scaled to unit norm (zero rows stay zero), and the norms they had.
///
/// # Errors
/// [`Error::Argument`] naming the first row that holds NaN or infinity, counted from
/// `first_row`, and `what` it is a row of.
pub fn normalised(
    rows: &[f32],
    d: usize,
    first_row: u64,
    what: &str,
) -> Result<(Vec<f32>, Vec<f32>)> {
    let mut out = Vec::with_capacity(rows.len());
    let mut norms = Vec::with_capacity(rows.len() / d);
    for (i, row) in rows.chunks_exact(d).enumerate() {
        // In double precision no finite float32 row overflows or vanishes when squared.
        let squared: f64 = row.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        if !squared.is_finite() {
            let column = row.iter().position(|v| !v.is_finite()).unwrap_or(0);
            return Err(Error::argument(format!(
                "row {} of {what} holds {} in column {column}; every value must be finite",
                first_row + i as u64,
                row[column]
            )));
        }
        let norm = squared.sqrt();
        let scale = if norm > 0.0 { 1.0 / norm } else { 0.0 };
        out.extend(row.iter().map(|&v| (f64::from(v) * scale) as f32));
        norms.push(norm as f32);
    }
    Ok((out, norms))
}
