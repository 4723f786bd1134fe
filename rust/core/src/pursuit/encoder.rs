//! Batches of items through a pursuit: checks, normalisation, correlations by one matrix product
//! a chunk, items spread over the threads of the current rayon pool, rows gathered in order.
//! What it returns does not depend on the number of threads or the size of the batch.

use std::ops::Range;

use rayon::prelude::*;

use super::blocks::{blocks_for, flat_mut, Block, BLOCK};
use super::csr::Encoded;
use super::gram::{zeroed_blocks, Gram, Precision, Rows};
use super::matching::{pursue, Atoms, Workspace};
use super::projection::Projection;
use super::{blocks, free, items, topk};
use crate::control::Control;
use crate::gemm;
use crate::kernels::Kernels;
use crate::{Error, Result};

/// The most nonzeros that a code may have.
pub const MAX_K: usize = 1024;

/// The most atoms that a dictionary may have.
pub const MAX_ATOMS: usize = 65_536;

/// How atoms are chosen and their values found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Matching pursuit, all values refitted whenever the support has grown by `refit_every`
    /// atoms, and at the end. `refit_every: 1` is orthogonal matching pursuit.
    Pursuit {
        /// Atoms between two refits, 1 or more.
        refit_every: usize,
    },
    /// The atoms most correlated with the item.
    TopK {
        /// Whether values are fitted by least squares; else they are the correlations.
        refit: bool,
    },
}

impl Method {
    /// The method called `name`: "pursuit" (with its `refit_every`), "omp", "topk" (values are
    /// the correlations) or "topk_refit".
    ///
    /// # Errors
    /// [`Error::Argument`] for another name.
    pub fn from_name(name: &str, refit_every: usize) -> Result<Self> {
        match name {
            "pursuit" => Ok(Self::Pursuit { refit_every }),
            "omp" => Ok(Self::Pursuit { refit_every: 1 }),
            "topk" => Ok(Self::TopK { refit: false }),
            "topk_refit" => Ok(Self::TopK { refit: true }),
            _ => Err(Error::argument(format!(
                "method is {name:?}; expected \"pursuit\", \"omp\", \"topk\" or \"topk_refit\""
            ))),
        }
    }
}

/// What [`Encoder::encode`] is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Nonzeros a row at most.
    pub k: usize,
    /// How they are found.
    pub method: Method,
    /// Whether codes are of the items scaled to unit norm. If not, values are multiplied by
    /// the item's norm, so that inner products with the decoded code stay those of the item.
    pub normalise: bool,
    /// Number of the first row, for messages about a batch of a longer stream.
    pub first_row: u64,
}

/// What a thread keeps from one chunk to the next: fresh pages for the correlations took 8%
/// of a profile of encoding.
#[derive(Default)]
struct Scratch {
    starts: Vec<Block<f32>>,
    pairs: Vec<[i16; 2]>,
    work: Workspace,
}

/// A dictionary ready to encode.
pub struct Encoder {
    atoms: Vec<f32>,
    d: usize,
    gram: Gram,
    /// For pursuit with a Gram matrix of integers, which is coarser than this is.
    projection: Option<Projection>,
    kernels: Kernels,
}

impl Encoder {
    /// An encoder of `atoms`, row-major (s, d), which are scaled to unit norm here.
    ///
    /// # Errors
    /// [`Error::Argument`] for atoms that are empty, of zero norm or not finite, for more than
    /// [`MAX_ATOMS`], or where the Gram matrix takes more than `limit_bytes`.
    pub fn new(
        atoms: &[f32],
        d: usize,
        precision: Precision,
        limit_bytes: u64,
        control: &Control,
    ) -> Result<Self> {
        let (atoms, norms) = checked_atoms(atoms, d)?;
        if let Some(zero) = norms.iter().position(|&norm| norm == 0.0) {
            return Err(Error::argument(format!(
                "row {zero} of the dictionary is zero; every atom needs a direction"
            )));
        }
        let gram = Gram::new(&atoms, d, precision, limit_bytes, control)?;
        let projection = match gram {
            Gram::Int8(_) | Gram::Int16(_) => Some(Projection::new(&atoms, d)?),
            Gram::Float32(_) | Gram::Free => None,
        };
        Ok(Self {
            atoms,
            d,
            gram,
            projection,
            kernels: Kernels::from_environment()?,
        })
    }

    /// The same encoder with another compiled version of its loops: for tests.
    pub fn with_kernels(mut self, kernels: Kernels) -> Self {
        self.kernels = kernels;
        self
    }

    /// Atoms of the dictionary.
    pub fn len(&self) -> usize {
        self.atoms.len() / self.d
    }

    /// Never: a dictionary has an atom at least.
    pub fn is_empty(&self) -> bool {
        self.atoms.is_empty()
    }

    /// Width of atoms and items.
    pub fn width(&self) -> usize {
        self.d
    }

    /// The atoms, row-major, of unit norm.
    pub fn atoms(&self) -> &[f32] {
        &self.atoms
    }

    /// Encodes `items`, row-major (n, d), on the current rayon pool.
    ///
    /// # Errors
    /// [`Error::Argument`] for a row that is not finite, k outside 1 to the number of atoms,
    /// or items of another width; [`Error::Interrupted`].
    pub fn encode(&self, items: &[f32], options: Options, control: &Control) -> Result<Encoded> {
        self.check(items, options)?;
        let n = items.len() / self.d;
        let chunk = self.chunk_rows(n);
        let chunks: Vec<Encoded> = items
            .par_chunks((chunk * self.d).max(1))
            .enumerate()
            .map_init(Scratch::default, |scratch, (i, rows)| {
                let options = Options {
                    first_row: options.first_row + (i * chunk) as u64,
                    ..options
                };
                self.encode_chunk(rows, options, scratch, control)
            })
            .collect::<Result<_>>()?;
        let mut all = Encoded::empty();
        for chunk in &chunks {
            all.append(chunk);
        }
        Ok(all)
    }

    fn check(&self, items: &[f32], options: Options) -> Result<()> {
        let Options { k, method, .. } = options;
        if !items.len().is_multiple_of(self.d) {
            return Err(Error::argument(format!(
                "{} values are no whole number of rows of {} columns",
                items.len(),
                self.d
            )));
        }
        if k == 0 || k > self.len().min(MAX_K) {
            return Err(Error::argument(format!(
                "k is {k}; expected 1 to {}, at most the dictionary's {} atoms and {MAX_K}",
                self.len().min(MAX_K),
                self.len()
            )));
        }
        if method == (Method::Pursuit { refit_every: 0 }) {
            return Err(Error::argument("refit_every is 0; expected 1 or more"));
        }
        Ok(())
    }

    /// Rows that go through one matrix product: few enough that their correlations take 16 MB
    /// and that every thread gets some, many enough that packing the atoms costs little.
    fn chunk_rows(&self, n: usize) -> usize {
        let by_memory = (4 << 20) / (blocks_for(self.len()) * BLOCK);
        let by_threads = n.div_ceil(rayon::current_num_threads());
        by_memory.clamp(16, 1024).min(by_threads).max(1)
    }

    fn encode_chunk(
        &self,
        rows: &[f32],
        options: Options,
        scratch: &mut Scratch,
        control: &Control,
    ) -> Result<Encoded> {
        control.check()?;
        let (unit, norms) = items::normalised(rows, self.d, options.first_row, "the items")?;
        let mut encoded = match (&self.gram, options.method) {
            (_, Method::TopK { refit }) => {
                let mut order = Vec::new();
                self.each(&unit, None, scratch, control, |item, start, work| {
                    topk::project(self.view(), item, start, options.k, refit, &mut order, work);
                })?
            }
            (Gram::Float32(gram), Method::Pursuit { refit_every }) => {
                self.pursue_each(gram, &unit, (options.k, refit_every), scratch, control)?
            }
            (Gram::Int16(gram), Method::Pursuit { refit_every }) => {
                self.pursue_each(gram, &unit, (options.k, refit_every), scratch, control)?
            }
            (Gram::Int8(gram), Method::Pursuit { refit_every }) => {
                self.pursue_each(gram, &unit, (options.k, refit_every), scratch, control)?
            }
            (Gram::Free, Method::Pursuit { refit_every }) => {
                self.pursue_free(&unit, options.k, refit_every, control)?
            }
        };
        if !options.normalise {
            for (i, &norm) in norms.iter().enumerate() {
                for value in &mut encoded.values[row_span(&encoded.indptr, i)] {
                    *value *= norm;
                }
            }
        }
        Ok(encoded)
    }

    fn view(&self) -> Atoms<'_> {
        Atoms {
            rows: &self.atoms,
            d: self.d,
            kernels: self.kernels,
        }
    }

    fn pursue_each<E: blocks::Entry>(
        &self,
        gram: &Rows<E>,
        unit: &[f32],
        (k, refit_every): (usize, usize),
        scratch: &mut Scratch,
        control: &Control,
    ) -> Result<Encoded> {
        let projection = self.projection.as_ref();
        self.each(unit, projection, scratch, control, |item, start, work| {
            pursue(self.view(), gram, item, start, k, refit_every, work);
        })
    }

    /// Runs `one` on each item and its correlations in turn: those of `projection`, where it is
    /// given.
    fn each(
        &self,
        unit: &[f32],
        projection: Option<&Projection>,
        scratch: &mut Scratch,
        control: &Control,
        mut one: impl FnMut(&[f32], &[Block<f32>], &mut Workspace),
    ) -> Result<Encoded> {
        let blocks = blocks_for(self.len());
        let Scratch {
            starts,
            pairs,
            work,
        } = scratch;
        let length = unit.len() / self.d * blocks;
        if starts.len() < length {
            *starts = zeroed_blocks(length)?;
        }
        // the padding between rows is never written, so it stays zero
        let starts = &mut starts[..length];
        match projection {
            Some(projection) => projection.project(self.kernels, unit, pairs, starts),
            None => {
                let out = flat_mut(starts);
                gemm::rows_by_rows(unit, &self.atoms, self.d, out, blocks * BLOCK);
            }
        }
        let mut encoded = Encoded::empty();
        for (item, start) in (unit.chunks_exact(self.d)).zip(starts.chunks_exact(blocks)) {
            control.check()?;
            one(item, start, work);
            encoded.push(&mut work.entries, work.cosine as f32);
            control.advance(1);
        }
        Ok(encoded)
    }

    fn pursue_free(
        &self,
        unit: &[f32],
        k: usize,
        refit_every: usize,
        control: &Control,
    ) -> Result<Encoded> {
        let mut rows = vec![(Vec::new(), 0f32); unit.len() / self.d];
        free::pursue_batch(self.view(), unit, k, refit_every, control, |i, work| {
            rows[i] = (std::mem::take(&mut work.entries), work.cosine as f32);
            control.advance(1);
        })?;
        let mut encoded = Encoded::empty();
        for (entries, cosine) in &mut rows {
            encoded.push(entries, *cosine);
        }
        Ok(encoded)
    }
}

fn row_span(indptr: &[u64], row: usize) -> Range<usize> {
    indptr[row] as usize..indptr[row + 1] as usize
}

fn checked_atoms(atoms: &[f32], d: usize) -> Result<(Vec<f32>, Vec<f32>)> {
    if d == 0 || atoms.is_empty() || !atoms.len().is_multiple_of(d) {
        return Err(Error::argument(format!(
            "a dictionary of {} values in rows of {d}; expected 1 or more whole rows",
            atoms.len()
        )));
    }
    if atoms.len() / d > MAX_ATOMS {
        return Err(Error::argument(format!(
            "the dictionary has {} atoms; expected at most {MAX_ATOMS}",
            atoms.len() / d
        )));
    }
    items::normalised(atoms, d, 0, "the dictionary")
}
