//! The weight vector `u` of a query, in each of the three modes.
//!
//! | mode | `u` |
//! |---|---|
//! | sparse | the query's own code `c` |
//! | reconstructed | `W (W^T c)`, which is the Gram matrix times `c` |
//! | dense | `W q` |
//!
//! With [`Metric::Cosine`] the query is divided by its norm first: `c` in sparse mode, `W^T c`
//! in reconstructed mode, `q` in dense mode. A zero query gets zero weights. All sums are in
//! double precision and in the order of [`crate::kernels`], so `u` is the same on every CPU.

use std::cell::Cell;
use std::ops::Range;

use half::f16;

use crate::codes::{CodesView, RowsView};
use crate::control::Control;
use crate::kernels::{dot, norm, Kernels, WeightTable, PROJECT_QUERIES};
use crate::memory::OwnedSlice;
use crate::search::{Metric, Mode};
use crate::threads::try_map;
use crate::{Error, Result};

/// What memory for embeddings is asked for.
const EMBEDDINGS: &str = "embeddings of queries";

/// Atoms that one task projects onto: some 100 microseconds of work at d = 384.
const ATOMS_A_TASK: usize = 256;

thread_local! {
    /// The table of the last search of this thread.
    static KEPT: Cell<Option<WeightTable>> = const { Cell::new(None) };
}

/// A table for these rows, for [`WeightSource::fill`] to write: the one that was kept on this thread,
/// where it is of their size. To have half a megabyte of zeros from the system, as rows of 16-bit
/// latents need, takes longer than a search of few rows.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn table_for(rows: &RowsView<'_>) -> Result<WeightTable> {
    let kept = KEPT.take().filter(|kept| kept.is_for(rows));
    kept.map_or_else(|| WeightTable::zeros(rows), Ok)
}

/// Keeps a table for the next search of this thread, where it is one of 65,536 entries at most.
pub fn keep_table(table: WeightTable, rows: &RowsView<'_>) {
    if !rows.has_wide_latents() {
        KEPT.set(Some(table));
    }
}

/// The rows of a dictionary `W`, shape (len, d).
#[derive(Debug, Clone, Copy)]
pub struct Atoms<'a> {
    rows: &'a [f32],
    halves: Option<&'a [f16]>,
    d: usize,
}

impl<'a> Atoms<'a> {
    /// Atoms of `d` numbers each.
    ///
    /// # Errors
    /// [`Error::Argument`] where `rows` is not a whole, positive number of atoms.
    pub fn new(rows: &'a [f32], d: usize) -> Result<Self> {
        if d == 0 || rows.is_empty() || !rows.len().is_multiple_of(d) {
            return Err(Error::argument(format!(
                "a dictionary of {} numbers has no whole number of atoms of width {d}",
                rows.len()
            )));
        }
        let halves = None;
        Ok(Self { rows, halves, d })
    }

    /// With the same numbers in half precision too, of which one query reads fewer bytes.
    ///
    /// # Panics
    /// Where they are not as many.
    pub fn with_halves(self, halves: &'a [f16]) -> Self {
        assert_eq!(self.rows.len(), halves.len());
        let halves = Some(halves);
        Self { halves, ..self }
    }

    /// The numbers in half precision, where there are some and reading them is faster.
    fn halves_for(&self, kernels: Kernels) -> Option<&'a [f16]> {
        self.halves.filter(|_| kernels.likes_halves())
    }

    /// Number of atoms.
    pub fn len(&self) -> usize {
        self.rows.len() / self.d
    }

    /// Never true.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Width of an atom, which is the width of embeddings.
    pub fn d(&self) -> usize {
        self.d
    }

    /// All atoms, one after the other.
    pub fn rows(&self) -> &'a [f32] {
        self.rows
    }

    /// The embedding `W^T a` of (latent, value) pairs, added up in their order. A latent that
    /// has no atom, as only a damaged file holds, adds nothing.
    pub fn decode(&self, pairs: impl IntoIterator<Item = (u32, f64)>, out: &mut [f64]) {
        out.fill(0.0);
        for (latent, value) in pairs {
            let start = (latent as usize).saturating_mul(self.d);
            let Some(atom) = self.rows.get(start..start.saturating_add(self.d)) else {
                continue;
            };
            for (sum, &a) in out.iter_mut().zip(atom) {
                *sum += value * f64::from(a);
            }
        }
    }
}

/// Queries as they are asked.
#[derive(Debug, Clone, Copy)]
pub enum Queries<'a> {
    /// Embeddings, row by row, `d` numbers each.
    Dense {
        /// All rows, one after the other; finite.
        rows: &'a [f64],
        /// Numbers a row.
        d: usize,
    },
    /// Codes.
    Codes(CodesView<'a>),
}

impl Queries<'_> {
    /// Number of queries.
    pub fn len(&self) -> usize {
        match self {
            Self::Dense { rows, d } => rows.len().checked_div(*d).unwrap_or(0),
            Self::Codes(codes) => codes.len(),
        }
    }

    /// True where there is no query.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// All that the weights of a search depend on.
#[derive(Debug, Clone, Copy)]
pub struct WeightSource<'a> {
    /// What is asked.
    pub queries: Queries<'a>,
    /// How.
    pub mode: Mode,
    /// What scores are.
    pub metric: Metric,
    /// The dictionary, for the modes that need it.
    pub atoms: Option<Atoms<'a>>,
    /// What is added to every decoded code, `d` numbers.
    pub mean: Option<&'a [f32]>,
    /// The kernels to compute with; the weights do not depend on which.
    pub kernels: Kernels,
}

impl WeightSource<'_> {
    /// Fills one table for each of the queries `first..first + tables.len()`, whatever weights
    /// the tables hold.
    ///
    /// # Errors
    /// [`Error::Argument`] where queries and mode do not fit each other, or a mode lacks its
    /// dictionary; [`Error::Interrupted`].
    pub fn fill(&self, tables: &mut [WeightTable], first: usize, control: &Control) -> Result<()> {
        let queries = first..first + tables.len();
        match self.embeddings(queries)? {
            Some(embeddings) => self.project(tables, &embeddings, self.dictionary()?, control),
            None => {
                for (q, table) in tables.iter_mut().enumerate() {
                    self.fill_code(first + q, table);
                }
                Ok(())
            }
        }
    }

    /// What is projected onto the atoms for the queries of a range, row by row, normalised where
    /// the metric asks for it; `None` in sparse mode, where nothing is.
    ///
    /// # Errors
    /// As [`WeightSource::fill`].
    pub fn embeddings(&self, queries: Range<usize>) -> Result<Option<OwnedSlice<f64>>> {
        let mut embeddings = match (self.mode, self.queries) {
            (Mode::Sparse, Queries::Codes(_)) => return Ok(None),
            (Mode::Reconstructed, Queries::Codes(codes)) => {
                self.decoded(codes, queries, self.dictionary()?)?
            }
            (Mode::Dense, Queries::Dense { rows, d }) => {
                OwnedSlice::copy_of(&rows[queries.start * d..queries.end * d], EMBEDDINGS)?
            }
            (Mode::Dense, Queries::Codes(_)) => return Err(Error::argument(
                "mode \"dense\" takes dense queries, got codes; pass the embeddings themselves, \
                     or search with mode \"reconstructed\" or \"sparse\"",
            )),
            (mode, Queries::Dense { .. }) => {
                return Err(Error::argument(format!(
                    "mode {:?} takes codes as queries, got dense rows; encode them first",
                    mode.name()
                )))
            }
        };
        self.normalise(&mut embeddings, self.dictionary()?.d);
        Ok(Some(embeddings))
    }

    /// Writes the weights of some latents, ascending, of a query whose embedding is given, into a
    /// table: the same numbers that [`WeightSource::fill`] gives. A latent without an atom weighs 0.
    ///
    /// # Errors
    /// [`Error::Argument`] where there is no dictionary.
    pub fn fill_latents(
        &self,
        embedding: &[f64],
        latents: &[u32],
        table: &mut WeightTable,
    ) -> Result<()> {
        let atoms = self.dictionary()?;
        let known = latents.partition_point(|&latent| (latent as usize) < atoms.len());
        let latents = &latents[..known];
        let mut made = vec![0.0; latents.len()];
        let d = atoms.d;
        match atoms.halves_for(self.kernels) {
            Some(halves) => self
                .kernels
                .project_some_halves(halves, d, latents, embedding, &mut made),
            None => self
                .kernels
                .project_some(atoms.rows, d, latents, embedding, &mut made),
        }
        let weights = table.weights_mut();
        for (&latent, weight) in latents.iter().zip(made) {
            weights[latent as usize] = weight;
        }
        Ok(())
    }

    /// Writes the weights of a code in sparse mode into a table; it holds nothing else then.
    pub fn fill_code(&self, query: usize, table: &mut WeightTable) {
        if let Queries::Codes(codes) = &self.queries {
            fill_sparse(table, codes, query, self.metric);
        }
    }

    /// Embeddings of the query codes `rows`, the mean included.
    fn decoded(
        &self,
        codes: CodesView<'_>,
        rows: Range<usize>,
        atoms: Atoms<'_>,
    ) -> Result<OwnedSlice<f64>> {
        let n = rows.len().saturating_mul(atoms.d);
        let mut embeddings = OwnedSlice::zeroed(n, EMBEDDINGS)?;
        for (embedding, row) in embeddings.chunks_exact_mut(atoms.d).zip(rows) {
            let (latents, values) = codes.row(row);
            let values = values.iter().map(|&value| f64::from(value));
            atoms.decode(latents.iter().copied().zip(values), embedding);
            for (sum, &m) in embedding.iter_mut().zip(self.mean.unwrap_or_default()) {
                *sum += f64::from(m);
            }
        }
        Ok(embeddings)
    }

    /// The inner product of each query, as an embedding, with `vector`; normalised first where
    /// the metric asks for it.
    ///
    /// # Errors
    /// As [`WeightSource::fill`].
    pub fn inner_products_with(&self, vector: &[f32]) -> Result<Vec<f64>> {
        let atoms = self.dictionary()?;
        let mut embeddings = match self.queries {
            Queries::Dense { rows, .. } => OwnedSlice::copy_of(rows, EMBEDDINGS)?,
            Queries::Codes(codes) => self.decoded(codes, 0..codes.len(), atoms)?,
        };
        self.normalise(&mut embeddings, atoms.d);
        let vector: Vec<f64> = vector.iter().map(|&x| f64::from(x)).collect();
        Ok(embeddings
            .chunks_exact(atoms.d)
            .map(|embedding| dot(embedding, &vector))
            .collect())
    }

    fn normalise(&self, embeddings: &mut [f64], d: usize) {
        if self.metric == Metric::Cosine {
            for embedding in embeddings.chunks_exact_mut(d) {
                let norm = norm(embedding);
                if norm > 0.0 {
                    embedding.iter_mut().for_each(|x| *x /= norm);
                }
            }
        }
    }

    pub(super) fn dictionary(&self) -> Result<Atoms<'_>> {
        self.atoms.ok_or_else(|| {
            Error::argument(format!(
                "mode {:?} needs a dictionary, and this index holds none",
                self.mode.name()
            ))
        })
    }

    /// `u = W x` for the embeddings `x`.
    fn project(
        &self,
        tables: &mut [WeightTable],
        embeddings: &[f64],
        atoms: Atoms<'_>,
        control: &Control,
    ) -> Result<()> {
        let d = atoms.d;
        // there is one a latent in every index; those that lack one would weigh nothing
        let known = atoms
            .len()
            .min(tables.first().map_or(0, |table| table.weights().len()));
        let rows = &atoms.rows[..known * d];
        for table in tables.iter_mut() {
            table.weights_mut()[known..].fill(0.0);
        }
        if let ([table], Some(halves)) = (&mut *tables, atoms.halves_for(self.kernels)) {
            let outs = table.weights_mut()[..known].chunks_mut(ATOMS_A_TASK);
            let halves = halves[..known * d].chunks(ATOMS_A_TASK * d);
            let tasks = halves.zip(outs).collect();
            try_map(tasks, |(atoms, out)| {
                control.check()?;
                self.kernels.project_halves(atoms, embeddings, out);
                Ok(())
            })?;
            return Ok(());
        }
        // task (g, c) fills the c-th chunk of latents in the tables of the g-th group of queries
        let mut tasks = Vec::new();
        for (tables, embeddings) in tables
            .chunks_mut(PROJECT_QUERIES)
            .zip(embeddings.chunks(PROJECT_QUERIES * d))
        {
            let mut chunks: Vec<_> = tables
                .iter_mut()
                .map(|table| table.weights_mut()[..known].chunks_mut(ATOMS_A_TASK))
                .collect();
            for atoms in rows.chunks(ATOMS_A_TASK * d) {
                let outs: Vec<&mut [f64]> = chunks.iter_mut().filter_map(Iterator::next).collect();
                tasks.push((atoms, embeddings, outs));
            }
        }
        try_map(tasks, |(atoms, embeddings, mut outs)| {
            control.check()?;
            self.kernels.project(atoms, embeddings, d, &mut outs);
            Ok(())
        })?;
        Ok(())
    }
}

fn fill_sparse(table: &mut WeightTable, codes: &CodesView<'_>, query: usize, metric: Metric) {
    let weights = table.weights_mut();
    weights.fill(0.0);
    for (latent, weight) in sparse_weights(codes, query, metric) {
        weights[latent as usize] = weight;
    }
}

/// The weights of a query in sparse mode that are not 0, with their latents, ascending.
pub fn sparse_weights<'a>(
    codes: &CodesView<'a>,
    query: usize,
    metric: Metric,
) -> impl Iterator<Item = (u32, f64)> + use<'a> {
    let (latents, values) = codes.row(query);
    let divisor = match metric {
        Metric::InnerProduct => 1.0,
        Metric::Cosine => {
            let wide: Vec<f64> = values.iter().map(|&value| f64::from(value)).collect();
            norm(&wide) // not 0: a canonical code has no zeros
        }
    };
    let weights = values.iter().map(move |&value| f64::from(value) / divisor);
    latents.iter().copied().zip(weights)
}
