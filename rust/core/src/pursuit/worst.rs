//! The worst reconstructed items of a round, whose residuals make new atoms.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::csr::Encoded;

/// Residuals of squared norm below this say nothing: the item is reconstructed.
const RECONSTRUCTED: f64 = 1e-6;

/// Residuals whose cosine is above this in magnitude would make the same atom twice.
const ALIKE: f32 = 0.9;

struct Candidate {
    cosine: f32,
    row: u64,
    residual: Vec<f32>,
}

/// The better reconstructed, and of equals the later item, is the greater: it leaves first.
impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.cosine.total_cmp(&other.cosine)).then(self.row.cmp(&other.row))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

/// Keeps the residuals of the `capacity` worst reconstructed items of all offered.
pub struct Worst {
    heap: BinaryHeap<Candidate>,
    capacity: usize,
    d: usize,
}

impl Worst {
    /// Nobody yet.
    pub fn new(capacity: usize, d: usize) -> Self {
        Self {
            heap: BinaryHeap::with_capacity(capacity + 1),
            capacity,
            d,
        }
    }

    /// Offers unit `item`, row `row` of a batch whose first row is `first_row`, with its code.
    pub fn offer(
        &mut self,
        item: &[f32],
        codes: &Encoded,
        row: usize,
        first_row: u64,
        atoms: &[f32],
    ) {
        let cosine = codes.cosines[row];
        let full = self.heap.len() == self.capacity;
        if full && self.heap.peek().is_some_and(|best| best.cosine <= cosine) {
            return;
        }
        let mut residual = item.to_vec();
        let (latents, values) = codes.row(row);
        for (&latent, &value) in latents.iter().zip(values) {
            let atom = &atoms[latent as usize * self.d..][..self.d];
            for (left, entry) in residual.iter_mut().zip(atom) {
                *left -= value * entry;
            }
        }
        let norm = residual.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
        if norm < RECONSTRUCTED {
            return;
        }
        let scale = 1.0 / norm.sqrt();
        for left in &mut residual {
            *left = (f64::from(*left) * scale) as f32;
        }
        self.heap.push(Candidate {
            cosine,
            row: first_row + row as u64,
            residual,
        });
        if self.heap.len() > self.capacity {
            self.heap.pop();
        }
    }

    /// The unit residuals, worst item first, without those that are nearly one given before.
    pub fn into_residuals(self) -> impl Iterator<Item = Vec<f32>> {
        let mut given: Vec<Vec<f32>> = Vec::new();
        (self.heap.into_sorted_vec().into_iter()).filter_map(move |candidate| {
            let alike = given.iter().any(|other| {
                let cosine: f32 = (other.iter().zip(&candidate.residual))
                    .map(|(a, b)| a * b)
                    .sum();
                cosine.abs() > ALIKE
            });
            if alike {
                return None;
            }
            given.push(candidate.residual.clone());
            Some(candidate.residual)
        })
    }
}
