//! Every instruction set of this machine against the oracle, bit for bit.

use proptest::prelude::*;

use super::*;
use crate::codes::{
    pack, pack_ranked, Codes, MagnitudeBits, RankedLayout, RowCoding, RowSpan, ValueKind,
};
use crate::control::Control;

#[test]
fn the_scalar_path_is_always_there_and_best_is_the_widest() {
    let available = Kernels::available();
    assert_eq!(available[0].isa(), Isa::Scalar);
    assert_eq!(available.last().unwrap().isa(), Kernels::best().isa());
    println!("kernels tested here: {available:?}");
}

fn packed_rows(rows: &[Vec<(u32, f32)>], dim: usize, value: ValueKind) -> crate::codes::PackedRows {
    let codes = codes_of(rows, dim);
    pack(codes.view(), value, &Control::new()).unwrap()
}

fn codes_of(rows: &[Vec<(u32, f32)>], dim: usize) -> Codes {
    let mut indptr = vec![0i64];
    let (mut latents, mut values) = (Vec::new(), Vec::new());
    for row in rows {
        for &(latent, v) in row {
            latents.push(latent);
            values.push(v);
        }
        indptr.push(latents.len() as i64);
    }
    Codes::from_csr(&indptr, &latents, &values, dim).unwrap()
}

fn rows_strategy(dim: u32) -> impl Strategy<Value = Vec<Vec<(u32, f32)>>> {
    let row = proptest::collection::btree_map(0..dim, -100.0f32..100.0, 0..40)
        .prop_map(|row| row.into_iter().collect());
    proptest::collection::vec(row, 0..30)
}

proptest! {
    #[test]
    fn every_instruction_set_scores_rows_as_the_oracle_does(
        (dim, rows, weights) in prop_oneof![Just(40u32), Just(4096), Just(65_536), Just(70_000)]
            .prop_flat_map(|dim| (
                Just(dim as usize),
                rows_strategy(dim),
                proptest::collection::vec(-1e3f64..1e3, 64),
            )),
        value in prop_oneof![
            Just(ValueKind::Float32), Just(ValueKind::Int16), Just(ValueKind::Int8)],
        cut in 0usize..3,
    ) {
        let packed = packed_rows(&rows, dim, value);
        let view = packed.view().unwrap();
        let mut table = WeightTable::zeros(&view).unwrap();
        for (latent, weight) in table.weights_mut().iter_mut().enumerate() {
            *weight = weights[latent % 64] + latent as f64;
        }
        let start = cut.min(view.len());
        let expected: Vec<u64> = (start..view.len())
            .map(|row| oracle::score_row(&view, row, table.weights()).to_bits())
            .collect();
        for kernels in Kernels::available() {
            let mut out = vec![f64::NAN; view.len() - start];
            kernels.score_rows(&view, start..view.len(), &table, &mut out);
            let got: Vec<u64> = out.iter().map(|score| score.to_bits()).collect();
            prop_assert_eq!(&got, &expected, "{:?}", kernels.isa());
        }
    }

    #[test]
    fn every_instruction_set_scores_rank_coded_rows_as_the_oracle_does(
        (dim, rows) in prop_oneof![Just(40u32), Just(4096), Just(8192), Just(65_536)]
            .prop_flat_map(|dim| (Just(dim as usize), rows_strategy(dim))),
        bits in 0u8..=7,
        complete in any::<bool>(),
        ranks in 1usize..40,
    ) {
        let codes = codes_of(&rows, dim);
        let bits = if complete && dim <= 40 {
            MagnitudeBits::Complete(f64::from(bits) * 1.5)
        } else {
            MagnitudeBits::Uniform(bits)
        };
        let packed = pack_ranked(codes.view(), &bits, None, &Control::new()).unwrap();
        for layout in [packed.layout.clone(), packed.layout.prefix(ranks)] {
            let n = codes.view().len();
            let view = RowsView::new(RowCoding::Ranked(&layout), n, dim, &packed.data).unwrap();
            let mut table = WeightTable::zeros(&view).unwrap();
            for (latent, weight) in table.weights_mut().iter_mut().enumerate() {
                *weight = (latent as f64 * 0.37).sin();
            }
            let expected: Vec<u64> = (0..n)
                .map(|row| oracle::score_row(&view, row, table.weights()).to_bits())
                .collect();
            for kernels in Kernels::available() {
                let mut out = vec![f64::NAN; n];
                kernels.score_rows(&view, 0..n, &table, &mut out);
                let got: Vec<u64> = out.iter().map(|score| score.to_bits()).collect();
                prop_assert_eq!(&got, &expected, "{:?}", kernels.isa());
            }
        }
    }

    #[test]
    fn every_instruction_set_makes_the_same_rough_sums(
        latent_bits in 1u32..=16,
        bits in proptest::collection::vec(0u8..=4, 6..40),
        wide in proptest::collection::vec((0usize..40, 5u8..=7), 0..4),
        words in any::<bool>(),
        n in 0usize..50,
        seed in any::<u64>(),
    ) {
        let (latent_bits, mut bits) = if words { (12, vec![3u8; 16]) } else { (latent_bits, bits) };
        for &(rank, many) in wide.iter().filter(|_| !words) {
            let at = rank % bits.len();
            bits[at] = many;
        }
        let n_levels: usize = bits.iter().map(|&b| 1usize << b).sum();
        let layout = RankedLayout::new(latent_bits, bits, vec![1.0; n_levels]).unwrap();
        let mut state = seed;
        let mut draw = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
            (state >> 40) as i16
        };
        let weights: Vec<i16> = (0..1usize << latent_bits).map(|_| draw() / 8).collect();
        let mut levels: Vec<i16> = layout.signed_levels().iter().map(|_| draw() / 8).collect();
        *levels.last_mut().unwrap() = 0;
        let rows: Vec<u8> = (0..n * layout.row_bytes()).map(|_| draw() as u8).collect();
        for layout in [layout.clone(), layout.prefix(5)] {
            let mut levels = levels[..layout.signed_levels().len()].to_vec();
            *levels.last_mut().unwrap() = 0;
            let many = layout.magnitude_bits().iter().filter(|&&bits| bits > 4).count();
            let can_be_read = layout.row_bytes() >= 16 && 6 * many <= layout.width();
            prop_assert_eq!(RoughQuery::can_read(&layout), can_be_read);
            if !can_be_read {
                continue;
            }
            let query = RoughQuery::new(&layout, &weights, &levels);
            let expected: Vec<i32> = rows
                .chunks_exact(layout.row_bytes())
                .map(|row| {
                    (0..layout.width())
                        .map(|rank| {
                            let (latent, index) = layout.indexed_field(row, rank);
                            i32::from(weights[latent as usize]) * i32::from(levels[index])
                        })
                        .sum()
                })
                .collect();
            for kernels in Kernels::available() {
                let mut out = vec![-1; n];
                kernels.rough_sums(&query, &rows, &mut out);
                prop_assert_eq!(&out, &expected, "{:?}", kernels.isa());
            }
        }
    }

    #[test]
    fn every_instruction_set_finds_the_rows_that_reach_a_bound(
        rows in proptest::collection::vec((-1_000_000i32..1_000_000, 0.0f32..2.0), 0..90),
        unsound in proptest::option::weighted(
            0.3,
            (any::<proptest::sample::Index>(), prop_oneof![Just(-1.0f32), Just(f32::NAN), Just(f32::INFINITY)]),
        ),
        edge in proptest::option::of((any::<proptest::sample::Index>(), 0usize..6)),
        least in prop_oneof![-1e6f32..1e6, Just(0.0)],
        error in 0.0f32..1e4,
    ) {
        let sums: Vec<i32> = rows.iter().map(|row| row.0).collect();
        let mut halves: Vec<half::f16> = rows
            .iter()
            .map(|row| half::f16::from_f32((row.1 - 0.2).max(0.0)))
            .collect();
        if let (Some((at, scale)), false) = (unsound, rows.is_empty()) {
            *at.get_mut(&mut halves) = half::f16::from_f32(scale);
        }
        let mut singles: Vec<f32> = halves.iter().map(|half| half.to_f32()).collect();
        let bounds = [rough::SOUND_SCALES.start, rough::SOUND_SCALES.end.next_down(), -0.0];
        let beyond = [bounds[0].next_down(), rough::SOUND_SCALES.end, f32::MIN_POSITIVE];
        let edges = [bounds, beyond].concat();
        if let (Some((at, edge)), false) = (edge, rows.is_empty()) {
            *at.get_mut(&mut singles) = edges[edge];
        }
        let wide_halves: Vec<f32> = halves.iter().map(|half| half.to_f32()).collect();
        let ones = vec![1.0f32; rows.len()];
        for kernels in Kernels::available() {
            for (scales, wide) in [
                (RoughScales::Half(&halves), &wide_halves),
                (RoughScales::Single(&singles), &singles),
                (RoughScales::One, &ones),
            ] {
                let mut found = vec![7];
                let is_sound = kernels.rough_reached(&sums, scales, error, least, &mut found);
                let sound = |s: &f32| *s == 0.0 || rough::SOUND_SCALES.contains(s);
                prop_assert_eq!(is_sound, wide.iter().all(sound));
                let expected: Vec<u16> = (0..rows.len())
                    .filter(|&row| (sums[row] as f32 + error) * wide[row] >= least)
                    .map(|row| row as u16)
                    .collect();
                if is_sound {
                    prop_assert_eq!(&found[1..], &expected, "{:?}", kernels.isa());
                }
            }
        }
    }

    #[test]
    fn halves_project_as_the_same_numbers_in_single_precision(
        d in 1usize..70,
        n_atoms in 0usize..9,
        seed in proptest::collection::vec(-10.0f32..10.0, 61),
    ) {
        let halves: Vec<half::f16> =
            (0..n_atoms * d).map(|i| half::f16::from_f32(seed[i * 7 % 61])).collect();
        let query: Vec<f64> = (0..d).map(|i| f64::from(seed[i * 11 % 61]) / 3.0).collect();
        for kernels in Kernels::available() {
            let mut out = vec![f64::NAN; n_atoms];
            kernels.project_halves(&halves, &query, &mut out);
            for (got, atom) in out.iter().zip(halves.chunks_exact(d)) {
                let atom: Vec<f32> = atom.iter().map(|half| half.to_f32()).collect();
                let expected = oracle::project(&atom, &query);
                prop_assert_eq!(got.to_bits(), expected.to_bits(), "{:?}", kernels.isa());
            }
        }
    }

    #[test]
    fn every_instruction_set_projects_as_the_oracle_does(
        d in 1usize..70,
        n_atoms in 0usize..9,
        n_queries in 0..=PROJECT_QUERIES,
        seed in proptest::collection::vec(-10.0f32..10.0, 61),
    ) {
        let atoms: Vec<f32> = (0..n_atoms * d).map(|i| seed[i * 7 % 61] * 1.01).collect();
        let queries: Vec<f64> = (0..n_queries * d)
            .map(|i| f64::from(seed[i * 11 % 61]) / 3.0)
            .collect();
        for kernels in Kernels::available() {
            let mut out = vec![vec![f64::NAN; n_atoms]; n_queries];
            let mut slices: Vec<&mut [f64]> = out.iter_mut().map(Vec::as_mut_slice).collect();
            kernels.project(&atoms, &queries, d, &mut slices);
            for (out, query) in out.iter().zip(queries.chunks_exact(d)) {
                for (got, atom) in out.iter().zip(atoms.chunks_exact(d)) {
                    let expected = oracle::project(atom, query);
                    prop_assert_eq!(got.to_bits(), expected.to_bits(), "{:?}", kernels.isa());
                }
            }
        }
    }

    #[test]
    fn every_instruction_set_projects_some_as_all(
        d in 1usize..70,
        latents in proptest::collection::vec(0u32..9, 0..14),
        seed in proptest::collection::vec(-10.0f32..10.0, 61),
    ) {
        let atoms: Vec<f32> = (0..9 * d).map(|i| seed[i * 7 % 61] * 1.01).collect();
        let query: Vec<f64> = (0..d).map(|i| f64::from(seed[i * 11 % 61]) / 3.0).collect();
        for kernels in Kernels::available() {
            let mut out = vec![f64::NAN; latents.len()];
            kernels.project_some(&atoms, d, &latents, &query, &mut out);
            let wide: Vec<f64> = atoms.iter().map(|&x| f64::from(x)).collect();
            let moved: Vec<u32> = latents.iter().map(|latent| latent + 5).collect();
            let mut out_wide = vec![f64::NAN; latents.len()];
            kernels.project_some_wide(&wide, d, 5, &moved, &query, &mut out_wide);
            let halves: Vec<half::f16> = atoms.iter().map(|&x| half::f16::from_f32(x)).collect();
            let mut out_halves = vec![f64::NAN; latents.len()];
            kernels.project_some_halves(&halves, d, &latents, &query, &mut out_halves);
            for (&latent, got) in latents.iter().zip(out_halves) {
                let half = &halves[latent as usize * d..][..d];
                let single: Vec<f32> = half.iter().map(|x| x.to_f32()).collect();
                let expected = oracle::project(&single, &query);
                prop_assert_eq!(got.to_bits(), expected.to_bits(), "{:?}", kernels.isa());
            }
            for (&latent, (got, wide)) in latents.iter().zip(out.iter().zip(out_wide)) {
                let expected = oracle::project(&atoms[latent as usize * d..][..d], &query);
                prop_assert_eq!(got.to_bits(), expected.to_bits(), "{:?}", kernels.isa());
                prop_assert_eq!(wide.to_bits(), expected.to_bits(), "{:?}", kernels.isa());
            }
        }
    }

    #[test]
    fn every_instruction_set_reads_integer_rows_field_by_field(
        (latent_bits, bits) in (0u32..=16).prop_flat_map(|latent_bits| (
            Just(latent_bits),
            prop_oneof![
                proptest::collection::vec(0u8..=4, 1..41),
                // whole words, where a row may have them
                (1usize..6).prop_map(move |eights| {
                    vec![15u32.saturating_sub(latent_bits).min(4) as u8; 8 * eights]
                }),
            ],
        )),
        dim in prop_oneof![Just(1u32), 1u32..70_000],
        noise in proptest::collection::vec(any::<u8>(), 211),
        numbers in proptest::collection::vec(any::<u64>(), 37),
    ) {
        let n_levels = bits.iter().map(|&bits| 1usize << bits).sum();
        let layout = RankedLayout::new(latent_bits, bits, vec![1.0; n_levels]).unwrap();
        let row: Vec<u8> = (0..layout.row_bytes()).map(|i| noise[i % 211]).collect();
        let mut entries: Vec<u64> =
            (0..2 * n_levels).map(|i| numbers[i % 37].rotate_left(i as u32)).collect();
        entries.push(0);
        let fields: Vec<_> = (0..layout.width()).map(|rank| layout.indexed_field(&row, rank)).collect();
        for kernels in Kernels::available() {
            let room = Kernels::integer_row_room(&layout);
            let (mut lines, mut levels) = (vec![u32::MAX; room], vec![55i8; room]);
            let out = IntegerRow { lines: &mut lines, levels: &mut levels };
            let sum = kernels.integer_row(&layout, &entries, &row, dim, out);
            let mut expected = 0u64;
            for (rank, &(latent, index)) in fields.iter().enumerate() {
                prop_assert_eq!(lines[rank], latent.min(dim) * TILE as u32);
                prop_assert_eq!(levels[rank], entries[index] as i8);
                expected = expected.wrapping_add(entries[index] >> 8);
            }
            prop_assert_eq!(sum, expected, "{:?}", kernels.isa());
            prop_assert!(lines[layout.width()..].iter().all(|&line| line <= dim * TILE as u32));
            prop_assert!(levels[layout.width()..].iter().all(|&level| level == 0));
        }
    }

    #[test]
    fn every_instruction_set_passes_the_rows_that_the_oracle_passes(
        dim in 1usize..90,
        rows in proptest::collection::vec(
            (proptest::collection::vec((0u32..100, -127i8..=127), 0..30), -5000i32..5000, 0usize..3),
            0..120),
        shifts in proptest::collection::vec(prop_oneof![3 => Just(0u32), 1 => 1u32..3], 0..8)
            .prop_filter("at most 7 in all", |shifts| shifts.iter().skip(1).sum::<u32>() <= 7),
        seed in proptest::collection::vec(-127i8..=127, 61),
        threshold in prop_oneof![Just(f32::NEG_INFINITY), -1e6f32..1e6, Just(f32::INFINITY)],
    ) {
        let mut shifts = shifts;
        if let Some(first) = shifts.first_mut() {
            *first = 0;
        }
        let all: u32 = shifts.iter().sum();
        let weight = |latent: usize, query: usize| seed[(latent * 13 + query * 7) % 61];
        let offsets: [i32; TILE] = std::array::from_fn(|query| i32::from(seed[query % 61]) * 9);
        let thresholds: [f32; TILE] = std::array::from_fn(|query| threshold * (1.0 + query as f32 / 64.0));
        let mut expected = Vec::new();
        for (row, (nonzeros, offset, scale)) in rows.iter().enumerate() {
            for query in 0..TILE {
                let sum = oracle::integer_sum(nonzeros, &shifts, |latent| {
                    if (latent as usize) < dim { weight(latent as usize, query) } else { 0 }
                });
                let scaled = (sum + ((offset + offsets[query]) << all)) as f32 * [0.0, 1.0, 0.37][*scale];
                if scaled >= thresholds[query] {
                    expected.push((row, query, scaled.to_bits()));
                }
            }
        }
        expected.sort_unstable();
        for kernels in Kernels::available() {
            let layout = kernels.tile_layout();
            let mut tile = Tile::zeros(dim, layout).unwrap();
            for latent in 0..dim {
                tile.set_weights(latent, &std::array::from_fn(|query| weight(latent, query)));
            }
            tile.set_offsets(&offsets);
            let mut block = IntegerRows::new(dim, &shifts, layout);
            for (nonzeros, offset, scale) in &rows {
                block.push(nonzeros.len(), |latents, levels| {
                    for (i, &(latent, level)) in nonzeros.iter().enumerate() {
                        (latents[i], levels[i]) = (latent, level);
                    }
                    (*offset, [0.0, 1.0, 0.37][*scale])
                });
            }
            let (mut next, mut passed, mut got) = (0, Passed::new(), Vec::new());
            while next < block.len() {
                let range = next..block.len();
                next = kernels.pass_rows(&tile, &block, range, &thresholds, &mut passed);
                got.extend(passed.drain().map(|(row, query, sum)| (row, query, sum.to_bits())));
            }
            got.sort_unstable();
            prop_assert_eq!(&got, &expected, "{:?}", kernels.isa());
        }
    }

    #[test]
    fn norm_and_dot_match_their_definitions(
        a in proptest::collection::vec(-1e3f64..1e3, 0..40),
        power in -300i32..300,
    ) {
        let scale = 10f64.powi(power);
        let scaled: Vec<f64> = a.iter().map(|x| x * scale).collect();
        let plain = a.iter().map(|x| x * x).sum::<f64>();
        // 40 terms, each rounded twice: 1e-13 is a thousand times the worst case
        prop_assert!((dot(&a, &a) - plain).abs() <= 1e-13 * plain);
        let expected = plain.sqrt() * scale;
        prop_assert!((norm(&scaled) - expected).abs() <= 1e-13 * expected);
    }
}

#[test]
fn latents_beyond_the_table_as_only_a_damaged_file_holds_weigh_nothing() {
    for (dim, latent_bytes) in [(10usize, 2usize), (70_000, 4)] {
        let format = crate::codes::RowFormat::new(dim, ValueKind::Int8);
        let mut data = vec![0xFF; 9 * latent_bytes];
        data.extend([1; 9]);
        let view =
            RowsView::new(RowCoding::Plain(format, RowSpan::Fixed(9)), 1, dim, &data).unwrap();
        let mut table = WeightTable::zeros(&view).unwrap();
        table.weights_mut().fill(1.0);
        for kernels in Kernels::available() {
            let mut out = [f64::NAN];
            kernels.score_rows(&view, 0..1, &table, &mut out);
            assert_eq!(out[0], 0.0, "{:?}", kernels.isa());
        }
    }
}

#[test]
#[should_panic(expected = "left == right")]
fn a_table_of_another_format_is_refused() {
    let narrow = packed_rows(&[vec![(1, 1.0)]], 10, ValueKind::Int8);
    let wide = packed_rows(&[vec![(1, 1.0)]], 70_000, ValueKind::Int8);
    let table = WeightTable::zeros(&wide.view().unwrap()).unwrap();
    Kernels::best().score_rows(&narrow.view().unwrap(), 0..1, &table, &mut [0.0]);
}

fn finds_what_the_oracle_finds<S: Sum + std::fmt::Debug>(
    sums: &[S],
    least: S,
) -> std::result::Result<(), TestCaseError> {
    let expected = oracle::at_least(sums, least);
    for kernels in Kernels::available() {
        let isa = kernels.isa();
        prop_assert_eq!(
            kernels.count_at_least(sums, least),
            expected.len(),
            "{:?}",
            isa
        );
        let mut left = sums.to_vec();
        let mut found = vec![Reached { place: 7, sum: 7 }];
        kernels.find_at_least(&mut left, least, false, &mut found);
        prop_assert_eq!(&found[1..], &expected[..], "{:?}", isa);
        prop_assert_eq!(&left[..], sums, "{:?}", isa);
        found.clear();
        kernels.find_at_least(&mut left, least, true, &mut found);
        prop_assert_eq!(&found, &expected, "{:?}", isa);
        prop_assert!(left.iter().all(|&sum| sum == S::default()), "{:?}", isa);
    }
    Ok(())
}

proptest! {
    #[test]
    fn every_instruction_set_finds_the_sums_that_the_oracle_finds(
        sums in prop_oneof![
            proptest::collection::vec(0u16..6, 0..200),
            proptest::collection::vec(any::<u16>(), 0..200),
            (60usize..200, any::<u16>()).prop_map(|(n, sum)| vec![sum; n]),
        ],
        least in prop_oneof![0u16..7, any::<u16>(), Just(u16::MAX)],
    ) {
        finds_what_the_oracle_finds(&sums, least)?;
        let narrow: Vec<u8> = sums.iter().map(|&sum| sum as u8).collect();
        finds_what_the_oracle_finds(&narrow, least as u8)?;
    }

    #[test]
    fn a_list_adds_what_the_oracle_adds(
        bounds in proptest::collection::vec(0u16..0x7F81, 0..20),
        weight in prop_oneof![Just(0.0f32), 1e-30f32..1e30, 0.0f32..1e3, Just(f32::INFINITY)],
        cap in 0.0f32..65_000.0,
        seed in any::<u32>(),
    ) {
        let position = |i: usize| (seed.wrapping_mul(31).wrapping_add(i as u32 * 7919) >> 3) as u16;
        let mut list = Vec::new();
        let mut plain = Vec::new();
        for (c, &bound) in bounds.iter().enumerate() {
            let mut chunk = [bound; POSITIONS + 1];
            for (i, place) in chunk[1..].iter_mut().enumerate() {
                *place = position(c * POSITIONS + i);
            }
            plain.push((bound_value(bound), chunk[1..].to_vec()));
            list.push(chunk);
        }
        let mut sums = vec![0u16; SUMS];
        let mut expected = sums.clone();
        for (place, gain) in oracle::add_list(&plain, weight, cap) {
            expected[usize::from(place)] = expected[usize::from(place)].wrapping_add(gain);
        }
        add_list::<u16>(&list, weight, cap, (&mut sums[..]).try_into().unwrap());
        prop_assert_eq!(sums, expected);
        let cap = cap.min(254.0);
        let mut sums = vec![0u8; SUMS];
        let mut expected = sums.clone();
        for (place, gain) in oracle::add_list(&plain, weight, cap) {
            expected[usize::from(place)] = expected[usize::from(place)].wrapping_add(gain as u8);
        }
        add_list::<u8>(&list, weight, cap, (&mut sums[..]).try_into().unwrap());
        prop_assert_eq!(sums, expected);
    }
}
