#![doc = include_str!("../README.md")]
//!
//! # Rooms
//!
//! Each may call only those below it:
//!
//! * [`index`]: what a user holds: rows, scales, ids and a dictionary, in memory or mapped.
//! * [`search`]: a query becomes weights, weights become scores, scores become a top k.
//! * [`format`](mod@format): the `.sridx` file: writer, reader, verification.
//! * [`codes`]: validation of codes and the packing of rows.
//! * [`pursuit`]: items become codes, and dictionaries are learnt.
//! * [`gemm`]: matrix products, by a well-kept crate.
//! * [`kernels`]: the hot loops, one table of functions an instruction set, chosen once.
//! * [`memory`]: aligned bytes in large pages.
//! * [`control`], [`threads`], [`error`]: cancellation and progress, thread pools, errors.
//!
//! Nothing here knows of Python, neural networks or where the codes come from.
#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]
#![warn(missing_docs)]

#[cfg(target_endian = "big")]
compile_error!("rows and files are little-endian and are read in place; this target is not");

pub mod codes;
pub mod control;
pub mod error;
pub mod format;
pub mod gemm;
pub mod index;
pub mod kernels;
pub mod memory;
pub mod pursuit;
pub mod search;
pub mod threads;

pub use error::{Error, Result};
