//! A query becomes weights, weights become scores, scores become a top k.
//!
//! [`weights`] makes the weight vector `u` of each mode, [`scan()`] scores rows with it, and
//! [`top_k`] keeps the best of those that the [`selection`] admits; [`postings`] spare queries of
//! few nonzeros most rows, [`batch`] reads rows once for many queries, and [`rough`] in small integers for one. Which way a search goes
//! is decided in [`plan`]. Knows rows, scales and atoms as slices, nothing of files or ids.

pub mod approximate;
pub mod batch;
pub mod candidates;
pub mod exact;
pub mod gathered;
pub mod guesses;
pub mod integer;
pub mod latents;
pub mod plan;
pub mod postings;
pub mod product;
pub mod request;
pub mod rescore;
pub mod rough;
pub mod scan;
pub mod selection;
pub mod tiles;
pub mod top_k;
pub mod weights;

pub use approximate::Approximate;
pub use guesses::Guesses;
pub use plan::{Plan, Way};
pub use postings::walk;
pub use request::Request;
pub use rescore::rescore;
pub use scan::{scan, Scales, ScanRows};
pub use selection::{Bitmap, Exclusions, Selection};
pub use top_k::{Hit, TopK};
pub use weights::{Atoms, Queries, WeightSource};

use crate::{Error, Result};

/// How a query is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mode {
    /// Both sides as codes: CompresSAE's fast retrieval.
    Sparse,
    /// Both sides decoded, through the Gram matrix `W W^T`: CompresSAE's accurate retrieval.
    Reconstructed,
    /// The dense query, never encoded, against decoded items.
    Dense,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Sparse, Self::Reconstructed, Self::Dense];

    /// Its name, as Python, the command line and the file say it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sparse => "sparse",
            Self::Reconstructed => "reconstructed",
            Self::Dense => "dense",
        }
    }

    /// The mode of this name.
    ///
    /// # Errors
    /// [`Error::Argument`] for another name.
    pub fn from_name(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|mode| mode.name() == name)
            .ok_or_else(|| {
                Error::argument(format!(
                    "mode is {name:?}; expected \"sparse\", \"reconstructed\" or \"dense\""
                ))
            })
    }

    /// True where items are compared as embeddings, so that a dictionary is needed.
    pub fn needs_dictionary(self) -> bool {
        self != Self::Sparse
    }
}

/// What a score is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Metric {
    /// The inner product of query and item.
    InnerProduct,
    /// The cosine of query and item; 0 where one of them is zero.
    Cosine,
}

impl Metric {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::InnerProduct, Self::Cosine];

    /// Its name, as Python, the command line and the file say it.
    pub fn name(self) -> &'static str {
        match self {
            Self::InnerProduct => "inner_product",
            Self::Cosine => "cosine",
        }
    }

    /// The metric of this name.
    ///
    /// # Errors
    /// [`Error::Argument`] for another name.
    pub fn from_name(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|metric| metric.name() == name)
            .ok_or_else(|| {
                Error::argument(format!(
                    "metric is {name:?}; expected \"inner_product\" or \"cosine\""
                ))
            })
    }
}
