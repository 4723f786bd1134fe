//! Items become codes by greedy pursuit over a dictionary, and dictionaries are learnt from
//! items in closed form. Knows nothing of files, of packed rows or of searching.
//!
//! * [`encoder`]: a batch of items to codes; the place to start reading.
//! * [`matching`], [`free`], [`topk`]: one item, by pursuit over the Gram matrix, by pursuit
//!   without it, by the linear projection.
//! * [`gram`], [`blocks`], [`refit`], [`projection`]: what they are made of.
//! * [`update`], [`normal`], [`cholesky`], [`worst`]: a round of learning the dictionary.
//! * [`items`], [`csr`]: what goes in and what comes out.

pub mod blocks;
pub mod cholesky;
pub mod csr;
pub mod encoder;
pub mod free;
pub mod gram;
pub mod items;
pub mod matching;
pub mod normal;
pub mod projection;
pub mod refit;
pub mod topk;
pub mod update;
pub mod worst;
