//! What `verify` looks for in the content of sections, beyond checksums: things that no writer
//! makes, so that a file from elsewhere can be trusted once it is verified.

use super::clusters::check_clusters;
use super::ids::{check_ids, Ids, Order};
use super::Index;
use crate::codes::ValueKind;
use crate::control::Control;
use crate::error::FormatProblem;
use crate::format::section;
use crate::search::postings::block_lists;
use crate::search::Mode;
use crate::{Error, Result};

/// Rows between two looks at the control.
const ROWS_A_CHECK: usize = 4096;

pub(super) fn content(section: &str, row: usize, reason: String) -> Error {
    FormatProblem::Content {
        section: section.into(),
        row: row as u64,
        reason,
    }
    .into()
}

/// Checks rows, offsets, scales, ids, dictionary and metadata.
pub fn check_content(index: &Index, control: &Control) -> Result<()> {
    check_offsets(index)?;
    check_rows(index, control)?;
    check_clusters(index, control)?;
    for &mode in index.modes() {
        check_scales(index, mode)?;
    }
    check_postings(index, control)?;
    if let Some(atoms) = index.atoms() {
        if let Some(at) = atoms.rows().iter().position(|a| !a.is_finite()) {
            let reason = format!("holds {}, expected finite numbers", atoms.rows()[at]);
            return Err(content(section::DICTIONARY, at / atoms.d(), reason));
        }
    }
    if let Some(at) = index
        .mean()
        .and_then(|mean| mean.iter().position(|m| !m.is_finite()))
    {
        return Err(content(section::MEAN, at, "not a finite number".into()));
    }
    check_names(index)?;
    if let Some(metadata) = index.metadata() {
        serde_json::from_slice::<serde::de::IgnoredAny>(metadata)
            .map_err(|error| content(section::METADATA, 0, format!("not JSON: {error}")))?;
    }
    Ok(())
}

/// Ids are unique, and their order is as it says.
fn check_names(index: &Index) -> Result<()> {
    let ids = index.all_ids();
    let name = if ids.are_strings() {
        section::ID_OFFSETS
    } else {
        section::IDS
    };
    check_ids(ids, index.len()).map_err(|error| content(name, 0, error.to_string()))?;
    if index.header.ids_ascend && !ids.ascend() {
        return Err(content(
            name,
            0,
            "ids do not ascend as the header says".into(),
        ));
    }
    match index.stored_order() {
        Some(Order::Rows(rows)) if !matches!(ids, Ids::Positions(_)) => {
            // strictly ascending ids also show that no row is named twice
            let out_of_order = (0..rows.len()).find(|&i| {
                rows.get(i) >= index.len()
                    || i > 0 && ids.compare(rows.get(i - 1), rows.get(i)).is_ge()
            });
            match out_of_order {
                Some(at) => Err(content(
                    section::ID_ORDER,
                    at,
                    format!("row {} is not the next by id", rows.get(at)),
                )),
                None => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

fn check_offsets(index: &Index) -> Result<()> {
    let Some(offsets) = index.section(section::ROW_OFFSETS) else {
        return Ok(());
    };
    let nonzeros = index.rows().nonzeros() as u64;
    let is_narrow = offsets.as_slice().len() == (index.len() + 1) * 4;
    let at = |i: usize| -> u64 {
        if is_narrow {
            u64::from(offsets.numbers::<u32>()[i])
        } else {
            offsets.numbers::<u64>()[i]
        }
    };
    if at(0) != 0 || at(index.len()) != nonzeros {
        let reason = format!(
            "offsets go from {} to {}, expected 0 to {nonzeros}",
            at(0),
            at(index.len())
        );
        return Err(content(section::ROW_OFFSETS, 0, reason));
    }
    match (0..index.len()).find(|&i| at(i) > at(i + 1)) {
        Some(row) => Err(content(
            section::ROW_OFFSETS,
            row,
            format!("offsets fall from {} to {}", at(row), at(row + 1)),
        )),
        None => Ok(()),
    }
}

fn check_rows(index: &Index, control: &Control) -> Result<()> {
    let rows = index.rows();
    let kind = index.value_kind();
    let mut latents = Vec::new();
    for row in 0..rows.len() {
        if row % ROWS_A_CHECK == 0 {
            control.check()?;
        }
        latents.clear();
        let mut last = f64::INFINITY;
        for (rank, (latent, value)) in rows.pairs(row).into_iter().enumerate() {
            if latent as usize >= index.dim() {
                let reason = format!(
                    "latent {latent} at rank {rank}, expected less than {}",
                    index.dim()
                );
                return Err(content(section::ROWS, row, reason));
            }
            // Levels of rank-coded values are in order on average only: coordinate descent may
            // take a level of a lower rank above that of a higher one. Comparing this way round
            // refuses NaN too; the first value meets infinity.
            let in_order = value.abs() <= last || kind == ValueKind::Ranked;
            let max_level = kind.max_level().map_or(f64::MAX, f64::from);
            let is_level = value.abs() <= max_level;
            if !in_order || !is_level {
                let reason = format!(
                    "value {value} at rank {rank} after one of magnitude {last}; expected \
                     finite {kind:?} values by descending magnitude"
                );
                return Err(content(section::ROWS, row, reason));
            }
            last = value.abs();
            if value != 0.0 {
                latents.push(latent);
            }
        }
        latents.sort_unstable();
        // an empty rank-coded row has scale 0, and levels that mean nothing
        let is_empty = kind == ValueKind::Ranked && index.row_is_empty(row);
        if let Some(two) = latents.windows(2).find(|two| two[0] == two[1] && !is_empty) {
            let reason = format!("latent {} appears more than once", two[0]);
            return Err(content(section::ROWS, row, reason));
        }
        if kind == ValueKind::Float32 && index.width().is_none() && last == 0.0 {
            let reason = "a stored zero in a row without padding".into();
            return Err(content(section::ROWS, row, reason));
        }
    }
    Ok(())
}

fn check_scales(index: &Index, mode: Mode) -> Result<()> {
    let scales = index.scales(mode);
    match (0..index.len()).find(|&row| !(scales.get(row).is_finite() && scales.get(row) >= 0.0)) {
        Some(row) => Err(content(
            index.header.modes[mode.name()]
                .as_deref()
                .expect("a mode with scales names their section"),
            row,
            format!(
                "scale {}, expected a finite number of at least 0",
                scales.get(row)
            ),
        )),
        None => Ok(()),
    }
}

/// Builds every block of postings again and compares: there is one right content.
fn check_postings(index: &Index, control: &Control) -> Result<()> {
    let Some(postings) = index.postings() else {
        return Ok(());
    };
    let latents = postings.latents();
    if let Some(at) = latents.windows(2).position(|two| two[0] >= two[1]) {
        let reason = format!("latent {} after {}", latents[at + 1], latents[at]);
        return Err(content(section::POSTINGS_LATENTS, at + 1, reason));
    }
    let (rows, scales) = (index.rows(), index.scales(Mode::Sparse));
    let items = postings.block_items();
    let mut is_used = vec![false; latents.len()];
    let mut n_chunks = 0;
    for (block, start) in (0..rows.len()).step_by(items).enumerate() {
        let range = start..rows.len().min(start + items);
        let expected = block_lists(&rows, &scales, range, items, control)?;
        let mut first = 0;
        for (&key, &length) in expected.keys.iter().zip(&expected.lengths) {
            let chunks = &expected.chunks[first..first + length as usize];
            first += chunks.len();
            let slot = postings.slot(key / 2);
            if slot.map(|slot| postings.list(slot, key % 2 == 1, block)) != Some(chunks) {
                let sign = if key % 2 == 1 { "negative" } else { "positive" };
                let reason = format!(
                    "the list of {sign} values of latent {} in the block from this row on is not \
                     what the rows say",
                    key / 2
                );
                return Err(content(section::POSTINGS, start, reason));
            }
            slot.into_iter().for_each(|slot| is_used[slot] = true);
        }
        n_chunks += expected.chunks.len();
        let norm = postings.norm(block);
        if norm.to_bits() != expected.norm.to_bits() {
            let reason = format!("{norm} in block {block}, the rows make {}", expected.norm);
            return Err(content(section::POSTINGS_NORMS, start, reason));
        }
    }
    if let Some(slot) = is_used.iter().position(|is_used| !is_used) {
        let reason = format!("latent {} is in no row", latents[slot]);
        return Err(content(section::POSTINGS_LATENTS, slot, reason));
    }
    // all that is right is there, so that what there is too much is wrong
    let listed = postings.n_listed();
    if n_chunks != postings.n_chunks() || listed != n_chunks {
        let reason = format!(
            "{} chunks, {listed} of them in lists; the rows make {n_chunks}",
            postings.n_chunks()
        );
        return Err(content(section::POSTINGS, 0, reason));
    }
    Ok(())
}
