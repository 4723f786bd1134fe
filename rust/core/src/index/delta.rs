//! Rows that were added to an index, as a small index of their own in memory: packed with the
//! codebooks of the base, whose dictionary it shares.

use std::sync::{Arc, OnceLock};

use super::batch::Batch;
use super::build::Sections;
use super::Index;
use crate::codes::ValueKind;
use crate::format::{section, Bytes, Dtype};
use crate::Result;

impl Batch {
    /// An index of these rows, which have ids, beside `base`, whose coding they have.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`].
    ///
    /// # Panics
    /// Where the rows have no ids.
    pub fn into_index(self, base: &Index) -> Result<Index> {
        let mut header = base.header().clone();
        let mut sections = Sections::default();
        let coding = base.coding();
        header.rows.count = self.n as u64;
        header.cosines.quantisation = None;
        header.postings = None;
        if coding.kind != ValueKind::Ranked {
            let first = self.lengths.first().copied().unwrap_or(0);
            let is_even = first > 0 && self.lengths.iter().all(|&length| length == first);
            header.rows.width = is_even.then_some(u64::from(first));
            if !is_even {
                let mut offsets = Vec::with_capacity(self.n + 1);
                offsets.push(0u64);
                for &length in &self.lengths {
                    offsets.push(offsets[offsets.len() - 1] + u64::from(length));
                }
                let nonzeros = offsets[offsets.len() - 1] as usize;
                sections.add_unsigned(section::ROW_OFFSETS, &offsets, nonzeros)?;
            }
        }
        let shape = vec![self.rows.len() as u64];
        sections.push(
            section::ROWS,
            Dtype::U8,
            shape,
            None,
            Bytes::from_vec(self.rows),
        );
        for (&name, scales) in coding.scales.iter().zip(&self.scales) {
            let reference = base.scale_reference(name);
            sections.add_scales(name, self.n, |i| scales[i], coding.kind, reference)?;
        }
        for name in [section::LEVELS, section::DICTIONARY, section::MEAN] {
            if let Some((entry, bytes)) = base.entry(name) {
                sections.push_entry(name, entry, bytes);
            }
        }
        let ids = self.ids.as_ref().expect("rows of a delta have ids");
        header.ids_ascend = sections.add_ids(ids.view())?;
        sections.sort();
        header.sections = sections.headers;
        let mut index = Index::from_parts(header, sections.data, None)?;
        index.wide_atoms = Arc::<OnceLock<Vec<f32>>>::clone(&base.wide_atoms);
        Ok(index)
    }
}
