//! The kernels of approximate search on every instruction set of this machine, against loops
//! that spell out what they are defined as. Sums in floating point are of small integers, which
//! are exact in any order, or are compared bit for bit with the scalar path.

use proptest::prelude::*;

use super::clusters::{Vectors, COLUMNS, SKETCH_BYTES, SKETCH_LEVELS, SKETCH_ROWS};
use super::*;

fn small() -> impl Strategy<Value = f32> {
    (-8i32..8).prop_map(|x| x as f32)
}

fn any_number() -> impl Strategy<Value = f32> {
    prop_oneof![small(), -1e3f32..1e3, Just(f32::NAN), Just(1e30)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn routes_are_inner_products_of_integers(
        (d, centroids, query) in (1usize..80).prop_flat_map(|d| (
            Just(d),
            proptest::collection::vec(any::<i8>(), d * 5),
            proptest::collection::vec(any::<i16>(), d),
        )),
    ) {
        for kernels in Kernels::available() {
            let mut out = [0; 5];
            kernels.route(&centroids, &query, &mut out);
            for (c, got) in out.into_iter().enumerate() {
                let expected: i64 = (0..d)
                    .map(|i| i64::from(centroids[c * d + i]) * i64::from(query[i]))
                    .sum();
                prop_assert_eq!(i64::from(got), expected);
            }
        }
    }

    #[test]
    fn sketch_sums_are_sums_of_the_entries_that_codes_name(
        (subspaces, block, table) in (1usize..=64).prop_flat_map(|quarter| {
            let subspaces = 4 * quarter;
            let bytes = subspaces * SKETCH_BYTES;
            let entry = prop_oneof![Just(0u8), Just(255), any::<u8>()];
            (
                Just(subspaces),
                proptest::collection::vec(any::<u8>(), bytes),
                prop_oneof![
                    proptest::collection::vec(entry, bytes),
                    Just(vec![255u8; bytes]), // the largest sums that there are
                ],
            )
        }),
        least in prop_oneof![Just(0u16), Just(u16::MAX), any::<u16>()],
    ) {
        for kernels in Kernels::available() {
            let mut out = [7; SKETCH_ROWS];
            let mask = kernels.sketch_sums(&block, &table, least, &mut out);
            for (row, got) in out.into_iter().enumerate() {
                let expected: u32 = (0..subspaces)
                    .map(|m| {
                        let both = block[m * SKETCH_BYTES + row % SKETCH_BYTES];
                        let code = if row < SKETCH_BYTES { both & 15 } else { both >> 4 };
                        u32::from(table[m * SKETCH_LEVELS + usize::from(code)])
                    })
                    .sum();
                prop_assert_eq!(u32::from(got), expected);
                prop_assert_eq!(mask >> row & 1 == 1, got >= least);
            }
        }
    }

    #[test]
    fn the_best_of_a_tile_is_the_largest_sum_and_the_lower_column_on_ties(
        vectors in proptest::collection::vec(
            proptest::collection::vec((0u32..20, small()), 0..9), 0..12),
        tile in proptest::collection::vec(small(), 20 * COLUMNS),
        before in small(),
    ) {
        let mut packed = Vectors::default();
        for vector in &vectors {
            packed.push(vector.iter().copied());
        }
        for kernels in Kernels::available() {
            let mut best = vec![(before, 3); vectors.len()];
            kernels.best_of_tile(&packed, &tile, 64, &mut best);
            for (vector, got) in vectors.iter().zip(best) {
                let mut expected = (before, 3);
                for column in 0..COLUMNS {
                    let sum: f32 = vector
                        .iter()
                        .map(|&(latent, value)| value * tile[latent as usize * COLUMNS + column])
                        .sum();
                    if sum > expected.0 {
                        expected = (sum, 64 + column as u32);
                    }
                }
                prop_assert_eq!(got, expected);
            }
        }
    }

    #[test]
    fn every_instruction_set_multiplies_tiles_and_finds_levels_as_the_scalar_path_does(
        (d, rows, columns) in (1usize..40).prop_flat_map(|d| (
            Just(d),
            proptest::collection::vec(any_number(), d * 3),
            proptest::collection::vec(any_number(), d * COLUMNS),
        )),
    ) {
        let scalar = Kernels::of(Isa::Scalar).unwrap();
        let product = |kernels: Kernels| {
            let mut out = vec![0.0; 3 * COLUMNS];
            kernels.multiply_tile(&rows, &columns, &mut out);
            // any NaN is as good as another
            out.iter().map(|x| if x.is_nan() { 1 } else { x.to_bits() }).collect::<Vec<_>>()
        };
        let levels = |kernels: Kernels| {
            let mut codes = vec![99; d];
            kernels.nearest_levels(&rows[..d], &columns[..d * SKETCH_LEVELS], 1, &mut codes);
            codes
        };
        for kernels in Kernels::available() {
            prop_assert_eq!(product(kernels), product(scalar));
            prop_assert_eq!(levels(kernels), levels(scalar));
        }
        for (x, (&code, book)) in rows
            .iter()
            .zip(levels(scalar).iter().zip(columns.chunks_exact(SKETCH_LEVELS)))
        {
            let distance = |level: f32| (x - level) * (x - level);
            if book.iter().all(|&level| distance(level).is_finite()) {
                let least = book.iter().map(|&y| distance(y)).fold(f32::INFINITY, f32::min);
                let first = book.iter().position(|&y| distance(y) == least).unwrap();
                prop_assert_eq!(usize::from(code), first);
            }
        }
    }

    #[test]
    fn every_instruction_set_assigns_to_the_same_column_bit_for_bit(
        values in proptest::collection::vec(any_number(), 1..30),
        tile in proptest::collection::vec(any_number(), 30 * COLUMNS),
    ) {
        let mut packed = Vectors::default();
        packed.push((0u32..).zip(values.iter().copied()));
        let best = |kernels: Kernels| {
            let mut best = [(f32::NEG_INFINITY, 0)];
            kernels.best_of_tile(&packed, &tile, 0, &mut best);
            (best[0].0.to_bits(), best[0].1)
        };
        let scalar = best(Kernels::of(Isa::Scalar).unwrap());
        for kernels in Kernels::available() {
            prop_assert_eq!(best(kernels), scalar);
        }
    }
}
