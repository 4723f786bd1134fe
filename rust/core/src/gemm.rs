//! Matrix products on slices, with lengths checked, over the `matrixmultiply` crate: it picks
//! its kernels at run time (AVX-512, AVX2 + FMA, SSE2, NEON), and an entry of the product does
//! not depend on how many rows are multiplied at once, so a batch equals one by one. The crate
//! `gemm` was 12% faster on 1,024 rows (30 against 34 us a row of 384 against 4,096 atoms, Zen 4,
//! one core) for 50 dependencies, and takes other paths for single rows.
//!
//! Kernels of different CPUs sum in different orders and may fuse: products agree to rounding
//! between CPUs, and to the last bit on one kind of CPU.

/// `out[i, j] = sum_l a[i, l] * b[j, l]`: row-major `a` (m, inner), `b` (n, inner), and `out`
/// (m, n) whose rows are `stride` apart.
pub fn rows_by_rows(a: &[f32], b: &[f32], inner: usize, out: &mut [f32], stride: usize) {
    multiply(a, b, (1, inner), inner, out, stride);
}

/// `out[i, j] = sum_l a[i, l] * b[l, j]`: row-major `a` (m, inner), `b` (inner, n) and `out` (m, n).
pub fn rows_by_columns(a: &[f32], b: &[f32], inner: usize, out: &mut [f32]) {
    let n = b.len() / inner;
    multiply(a, b, (n, 1), inner, out, n);
}

/// The same, where neighbours of `b` are `strides` apart along `l` and along `j`: 1 and the length of
/// the other axis, either way round.
fn multiply(
    a: &[f32],
    b: &[f32],
    strides: (usize, usize),
    inner: usize,
    out: &mut [f32],
    stride: usize,
) {
    let (m, n) = (a.len() / inner, b.len() / inner);
    assert!(a.len() == m * inner && b.len() == n * inner && stride >= n);
    if m == 0 || n == 0 {
        return;
    }
    assert!(out.len() >= (m - 1) * stride + n);
    assert!((inner - 1) * strides.0 + (n - 1) * strides.1 < b.len());
    // SAFETY: the shapes and strides describe a, b and out within the lengths just checked, and
    // `out` is borrowed uniquely, so it overlaps neither input.
    unsafe {
        matrixmultiply::sgemm(
            m,
            inner,
            n,
            1.0,
            a.as_ptr(),
            inner as isize,
            1,
            b.as_ptr(),
            strides.0 as isize,
            strides.1 as isize,
            0.0,
            out.as_mut_ptr(),
            stride as isize,
            1,
        );
    }
}

/// A matrix in a slice: entry (i, j) is `data[i * strides.0 + j * strides.1]`.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    /// The numbers.
    pub data: &'a [f64],
    /// Rows and columns.
    pub shape: (usize, usize),
    /// Distance of neighbours down a column and along a row.
    pub strides: (usize, usize),
}

impl<'a> Matrix<'a> {
    /// Row-major rows that are `stride` apart.
    pub fn rows(data: &'a [f64], shape: (usize, usize), stride: usize) -> Self {
        Self {
            data,
            shape,
            strides: (stride, 1),
        }
    }

    /// Its transpose.
    pub fn transposed(self) -> Self {
        Self {
            data: self.data,
            shape: (self.shape.1, self.shape.0),
            strides: (self.strides.1, self.strides.0),
        }
    }

    fn is_within(&self) -> bool {
        let ((rows, columns), (down, along)) = (self.shape, self.strides);
        rows == 0 || columns == 0 || (rows - 1) * down + (columns - 1) * along < self.data.len()
    }
}

/// `out -= a b`, `out` row-major with rows `stride` apart.
pub fn subtract_product(a: Matrix, b: Matrix, out: &mut [f64], stride: usize) {
    let ((m, inner), (inner_b, n)) = (a.shape, b.shape);
    assert!(inner == inner_b && a.is_within() && b.is_within() && stride >= n);
    if m == 0 || n == 0 || inner == 0 {
        return;
    }
    assert!(out.len() >= (m - 1) * stride + n);
    // SAFETY: the shapes and strides were just checked to lie within the slices, and `out` is
    // borrowed uniquely, so it overlaps neither input.
    unsafe {
        matrixmultiply::dgemm(
            m,
            inner,
            n,
            -1.0,
            a.data.as_ptr(),
            a.strides.0 as isize,
            a.strides.1 as isize,
            b.data.as_ptr(),
            b.strides.0 as isize,
            b.strides.1 as isize,
            1.0,
            out.as_mut_ptr(),
            stride as isize,
            1,
        );
    }
}
