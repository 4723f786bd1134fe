//! Least squares on a support that grows: the Cholesky factor of the support's Gram matrix gets
//! a row for each new atom, in double precision, and is solved when a refit is due. Knows
//! nothing of how the atoms were chosen.

/// The smallest squared distance that a new atom is taken to have from the span of those before
/// it. Exact duplicates have 0 up to rounding and would divide by it; at 1e-6 they get finite
/// values and leave the other atoms' values right to about 1e-6.
const PIVOT_FLOOR: f64 = 1e-6;

/// The Cholesky factor of a Gram matrix, one row a support atom, and the values it solves for.
#[derive(Default)]
pub struct Refit {
    /// Lower triangle, row after row: row `t` starts at `t (t + 1) / 2`.
    factor: Vec<f64>,
    /// 1 / diagonal of the factor.
    inverse_diagonal: Vec<f64>,
    /// Inner products of the item and each support atom.
    targets: Vec<f64>,
    /// Forward solution L y = targets: known once an atom is in, since rows above never change.
    forward: Vec<f64>,
    values: Vec<f64>,
    explained: f64,
}

impl Refit {
    /// Empties the support.
    pub fn clear(&mut self) {
        self.factor.clear();
        self.inverse_diagonal.clear();
        self.targets.clear();
        self.forward.clear();
        self.values.clear();
        self.explained = 0.0;
    }

    /// Atoms in the support.
    pub fn len(&self) -> usize {
        self.targets.len()
    }

    /// Whether the support has none.
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    /// Adds an atom: its inner product with the item, and those with each atom of the support
    /// in order, the last one being itself.
    pub fn push(&mut self, target: f32, inner_products: &[f32]) {
        let size = self.targets.len();
        assert_eq!(inner_products.len(), size + 1);
        let start = self.factor.len();
        let mut pivot = f64::from(inner_products[size]);
        let mut forward = f64::from(target);
        for (t, &product) in inner_products[..size].iter().enumerate() {
            let row = &self.factor[t * (t + 1) / 2..][..t];
            let new = &self.factor[start..start + t];
            let inner: f64 = row.iter().zip(new).map(|(a, b)| a * b).sum();
            let entry = (f64::from(product) - inner) * self.inverse_diagonal[t];
            pivot -= entry * entry;
            forward -= entry * self.forward[t];
            self.factor.push(entry);
        }
        let diagonal = pivot.max(PIVOT_FLOOR).sqrt();
        self.factor.push(diagonal);
        self.inverse_diagonal.push(1.0 / diagonal);
        self.targets.push(f64::from(target));
        self.forward.push(forward / diagonal);
        self.explained += (forward / diagonal).powi(2);
    }

    /// The values that minimise the residual over all atoms pushed so far, in their order.
    pub fn solve(&mut self) -> &[f64] {
        self.values.clone_from(&self.forward);
        for t in (0..self.values.len()).rev() {
            let value = self.values[t] * self.inverse_diagonal[t];
            let row = &self.factor[t * (t + 1) / 2..][..t];
            for (above, entry) in self.values[..t].iter_mut().zip(row) {
                *above -= entry * value;
            }
            self.values[t] = value;
        }
        &self.values
    }

    /// Squared norm of what the support explains of the item when its values are fitted: for a
    /// unit item the residual has squared norm 1 minus this. It needs no solution: the forward
    /// solution's squared norm is it.
    pub fn explained(&self) -> f64 {
        self.explained
    }
}
