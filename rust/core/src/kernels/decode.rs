//! Rows of a rank coding as numbers, rank by rank.

use crate::codes::RankedLayout;

/// Writes the level of one rank of each row: `levels` has one for each of the layout's signed levels,
/// in their order, `rows` the bytes of as many rows as `out` has numbers.
///
/// Rank by rank, because where a field lies and which levels it chooses from are then numbers in
/// registers, which row by row are loaded anew for each field. Of so many rows that they leave the
/// first-level cache that gains nothing: give strips.
///
/// # Panics
/// Where there is no such rank, or `rows` or `levels` have not their lengths.
pub fn decode_rank(
    layout: &RankedLayout,
    rank: usize,
    levels: &[f32],
    rows: &[u8],
    out: &mut [f32],
) {
    assert!(rank < layout.width());
    assert_eq!(levels.len(), layout.signed_levels().len());
    assert_eq!(rows.len(), out.len() * layout.row_bytes());
    let [offset, shift, mask, base] = layout.groups().map(|numbers| numbers[rank] as usize);
    let shift = shift as u32 + layout.latent_bits();
    let levels = &levels[base..=base + mask];
    // a field's four bytes end with the row or before it
    let rows = rows.chunks_exact(layout.row_bytes());
    for (out, row) in out.iter_mut().zip(rows) {
        let bytes: [u8; 4] = row[offset..offset + 4].try_into().expect("four bytes");
        *out = levels[(u32::from_le_bytes(bytes) >> shift) as usize & mask];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes::ranked::max_magnitude_bits;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_rank_is_decoded_as_its_fields_are_read(
            (latent_bits, bits) in (0u32..=16).prop_flat_map(|latent_bits| (
                Just(latent_bits),
                proptest::collection::vec(0u8..=max_magnitude_bits(latent_bits), 1..40),
            )),
            bytes in proptest::collection::vec(any::<u8>(), 0..2000),
        ) {
            let n_levels: usize = bits.iter().map(|&b| 1usize << b).sum();
            let levels = (0..n_levels).map(|i| i as f32 + 1.0).collect();
            let layout = RankedLayout::new(latent_bits, bits, levels).unwrap();
            let singles: Vec<f32> = layout.signed_levels().iter().map(|&l| l as f32).collect();
            let n = bytes.len() / layout.row_bytes();
            let rows = &bytes[..n * layout.row_bytes()];
            let mut out = vec![f32::NAN; n];
            for rank in 0..layout.width() {
                decode_rank(&layout, rank, &singles, rows, &mut out);
                for (row, &got) in rows.chunks_exact(layout.row_bytes()).zip(&out) {
                    prop_assert_eq!(f64::from(got), layout.field(row, rank).1);
                }
            }
        }
    }
}
