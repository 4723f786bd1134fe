//! Encoded items as the compressed sparse rows that a batch returns.

/// Rows of (latent, value) pairs, ascending in the latent, and how well each explains its item.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Encoded {
    /// Row `i` is `indptr[i]..indptr[i + 1]` of the two arrays below.
    pub indptr: Vec<u64>,
    /// Latents, ascending within a row.
    pub latents: Vec<u32>,
    /// The value of each latent.
    pub values: Vec<f32>,
    /// Cosine of each item and its decoded code; 0 where the code is empty.
    pub cosines: Vec<f32>,
}

impl Encoded {
    /// No rows.
    pub fn empty() -> Self {
        Self {
            indptr: vec![0],
            ..Self::default()
        }
    }

    /// Rows that it holds.
    pub fn len(&self) -> usize {
        self.cosines.len()
    }

    /// Whether it holds no row.
    pub fn is_empty(&self) -> bool {
        self.cosines.is_empty()
    }

    /// Latents and values of row `row`.
    pub fn row(&self, row: usize) -> (&[u32], &[f32]) {
        let span = self.indptr[row] as usize..self.indptr[row + 1] as usize;
        (&self.latents[span.clone()], &self.values[span])
    }

    /// Appends a row whose entries come in any order; sorts `entries`.
    pub fn push(&mut self, entries: &mut [(u32, f32)], cosine: f32) {
        entries.sort_unstable_by_key(|&(latent, _)| latent);
        self.latents
            .extend(entries.iter().map(|&(latent, _)| latent));
        self.values.extend(entries.iter().map(|&(_, value)| value));
        self.indptr.push(self.latents.len() as u64);
        self.cosines.push(cosine);
    }

    /// Appends all rows of `other`.
    pub fn append(&mut self, other: &Self) {
        let base = self.latents.len() as u64;
        self.indptr
            .extend(other.indptr[1..].iter().map(|end| base + end));
        self.latents.extend_from_slice(&other.latents);
        self.values.extend_from_slice(&other.values);
        self.cosines.extend_from_slice(&other.cosines);
    }
}
