//! Solves M Y = B for a symmetric positive definite M, blocked, on the current rayon pool. What
//! it returns does not depend on the number of threads. Knows nothing of dictionaries.

use rayon::prelude::*;

use crate::control::Control;
use crate::gemm::{subtract_product, Matrix};
use crate::{Error, Result};

/// Rows and columns factored together, and rows that one task updates.
const PANEL: usize = 128;

/// Overwrites row-major `right` (n, columns) by the solution, and the lower triangle of
/// row-major `matrix` (n, n) by its Cholesky factor. Above the diagonal nothing is read.
///
/// # Errors
/// [`Error::Argument`] if `matrix` is not positive definite, [`Error::Interrupted`].
pub fn solve(matrix: &mut [f64], right: &mut [f64], n: usize, control: &Control) -> Result<()> {
    assert!(matrix.len() == n * n && n > 0 && right.len().is_multiple_of(n));
    factor(matrix, n, control)?;
    forward(matrix, right, n, control)?;
    backward(matrix, right, n, control)
}

fn factor(matrix: &mut [f64], n: usize, control: &Control) -> Result<()> {
    for at in (0..n).step_by(PANEL) {
        control.check()?;
        let width = PANEL.min(n - at);
        let (done, below) = matrix.split_at_mut((at + width) * n);
        let corner = &mut done[at * n + at..];
        factor_corner(corner, width, n)?;
        let corner = &*corner;
        below
            .par_chunks_mut(n)
            .for_each(|row| solve_row(corner, width, n, &mut row[at..at + width]));
        // The trailing update reads all of the panel while it writes beside it: from a copy.
        let panel: Vec<f64> = below
            .par_chunks(n)
            .flat_map_iter(|row| row[at..at + width].iter().copied())
            .collect();
        below
            .par_chunks_mut(PANEL * n)
            .enumerate()
            .for_each(|(i, rows)| {
                let (first, count) = (i * PANEL, rows.len() / n);
                let mine = Matrix::rows(&panel[first * width..], (count, width), width);
                let upto = Matrix::rows(&panel, (first + count, width), width);
                subtract_product(mine, upto.transposed(), &mut rows[at + width..], n);
            });
    }
    Ok(())
}

fn factor_corner(corner: &mut [f64], width: usize, stride: usize) -> Result<()> {
    for i in 0..width {
        let (above, row) = corner.split_at_mut(i * stride);
        solve_row(above, i, stride, &mut row[..i]);
        let squared: f64 = row[..i].iter().map(|v| v * v).sum();
        let pivot = row[i] - squared;
        if pivot.is_nan() || pivot <= 0.0 {
            return Err(Error::argument(format!(
                "the normal equations are not positive definite (pivot {pivot}); raise the \
                 regularisation"
            )));
        }
        row[i] = pivot.sqrt();
    }
    Ok(())
}

/// `row` becomes the solution of `row' L^T = row`, L the lower triangle (width, width).
fn solve_row(lower: &[f64], width: usize, stride: usize, row: &mut [f64]) {
    for j in 0..width {
        let known: f64 = (lower[j * stride..j * stride + j].iter())
            .zip(&row[..j])
            .map(|(a, b)| a * b)
            .sum();
        row[j] = (row[j] - known) / lower[j * stride + j];
    }
}

fn forward(lower: &[f64], right: &mut [f64], n: usize, control: &Control) -> Result<()> {
    let columns = right.len() / n;
    for at in (0..n).step_by(PANEL) {
        control.check()?;
        let width = PANEL.min(n - at);
        let (done, below) = right.split_at_mut((at + width) * columns);
        let known = &mut done[at * columns..];
        for i in 0..width {
            let (above, row) = known.split_at_mut(i * columns);
            let factors = &lower[(at + i) * n + at..];
            for (row_above, factor) in above.chunks_exact(columns).zip(factors) {
                take_off(&mut row[..columns], row_above, *factor);
            }
            scale(&mut row[..columns], 1.0 / factors[i]);
        }
        let known = Matrix::rows(known, (width, columns), columns);
        below
            .par_chunks_mut(PANEL * columns)
            .enumerate()
            .for_each(|(i, rows)| {
                let first = at + width + i * PANEL;
                let shape = (rows.len() / columns, width);
                let factors = Matrix::rows(&lower[first * n + at..], shape, n);
                subtract_product(factors, known, rows, columns);
            });
    }
    Ok(())
}

fn backward(lower: &[f64], right: &mut [f64], n: usize, control: &Control) -> Result<()> {
    let columns = right.len() / n;
    for at in (0..n).step_by(PANEL).rev() {
        control.check()?;
        let width = PANEL.min(n - at);
        let (above, here) = right.split_at_mut(at * columns);
        let known = &mut here[..width * columns];
        for i in (0..width).rev() {
            let (row, later) = known[i * columns..].split_at_mut(columns);
            for (j, row_later) in later.chunks_exact(columns).enumerate() {
                take_off(row, row_later, lower[(at + i + 1 + j) * n + at + i]);
            }
            scale(row, 1.0 / lower[(at + i) * n + at + i]);
        }
        let known = Matrix::rows(known, (width, columns), columns);
        above
            .par_chunks_mut(PANEL * columns)
            .enumerate()
            .for_each(|(i, rows)| {
                let shape = (width, rows.len() / columns);
                let factors = Matrix::rows(&lower[at * n + i * PANEL..], shape, n);
                subtract_product(factors.transposed(), known, rows, columns);
            });
    }
    Ok(())
}

fn take_off(row: &mut [f64], other: &[f64], factor: f64) {
    for (value, other) in row.iter_mut().zip(other) {
        *value -= factor * other;
    }
}

fn scale(row: &mut [f64], factor: f64) {
    for value in row {
        *value *= factor;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// M = R R^T + I for a fixed pseudo-random R, and B = M X for a known X.
    fn system(n: usize, columns: usize) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let noise = |i: usize| ((i * 7919 + 13) % 1009) as f64 / 1009.0 - 0.5;
        let mut matrix = vec![0.0; n * n];
        for i in 0..n {
            for j in 0..n {
                let inner: f64 = (0..8).map(|l| noise(i * 8 + l) * noise(j * 8 + l)).sum();
                matrix[i * n + j] = inner + f64::from(u8::from(i == j));
            }
        }
        let wanted: Vec<f64> = (0..n * columns).map(|i| noise(i + 5)).collect();
        let mut right = vec![0.0; n * columns];
        for i in 0..n {
            for j in 0..n {
                for c in 0..columns {
                    right[i * columns + c] += matrix[i * n + j] * wanted[j * columns + c];
                }
            }
        }
        (matrix, right, wanted)
    }

    #[test]
    fn solve_finds_the_known_solution_below_at_and_above_a_panel() {
        for n in [1, 2, 127, 128, 129, 300] {
            let (mut matrix, mut right, wanted) = system(n, 5);
            solve(&mut matrix, &mut right, n, &Control::new()).unwrap();
            for (got, wanted) in right.iter().zip(&wanted) {
                assert!((got - wanted).abs() < 1e-9, "n {n}: {got} for {wanted}");
            }
        }
    }

    #[test]
    fn solve_refuses_a_matrix_that_is_not_positive_definite() {
        let mut matrix = vec![1.0, 0.0, 2.0, 1.0];
        let error = solve(&mut matrix, &mut [1.0, 1.0], 2, &Control::new()).unwrap_err();
        assert!(
            error.to_string().contains("not positive definite"),
            "{error}"
        );
    }
}
