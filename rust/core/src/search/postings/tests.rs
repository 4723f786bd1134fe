//! The walk against the scan: positions and the bits of scores, for everything that may vary.

use proptest::prelude::*;

use super::*;
use crate::codes::{
    pack, pack_ranked, Codes, CodesView, MagnitudeBits, RowCoding, RowsView, ValueKind,
};
use crate::control::Control;
use crate::kernels::{norm, Kernels};
use crate::search::{
    scan, Bitmap, Exclusions, Guesses, Hit, Metric, Mode, Queries, Scales, ScanRows, WeightSource,
};
use crate::threads;

type Row = std::collections::BTreeMap<u32, f32>;

fn codes_of(rows: &[Row], dim: usize) -> Codes {
    let mut indptr = vec![0i64];
    let (mut latents, mut values) = (Vec::new(), Vec::new());
    for row in rows {
        latents.extend(row.keys().copied());
        values.extend(row.values().copied());
        indptr.push(latents.len() as i64);
    }
    Codes::from_csr(&indptr, &latents, &values, dim).unwrap()
}

fn bits(found: &[Vec<Hit>]) -> Vec<Vec<(u64, u64)>> {
    // -0 and 0 are one score
    let bits = |hit: &Hit| (hit.position, (hit.score + 0.0).to_bits());
    found
        .iter()
        .map(|hits| hits.iter().map(bits).collect())
        .collect()
}

/// What a search is over, owned.
struct Corpus {
    data: Vec<u8>,
    layout: Option<crate::codes::RankedLayout>,
    plain: Option<crate::codes::PackedRows>,
    scales: Option<Vec<f32>>,
    n: usize,
    dim: usize,
}

impl Corpus {
    fn new(rows: &[Row], dim: usize, value: ValueKind, metric: Metric) -> Self {
        let codes = codes_of(rows, dim);
        let control = Control::new();
        let mut corpus = Self {
            data: Vec::new(),
            layout: None,
            plain: None,
            scales: None,
            n: rows.len(),
            dim,
        };
        if value == ValueKind::Ranked {
            let packed =
                pack_ranked(codes.view(), &MagnitudeBits::Uniform(3), None, &control).unwrap();
            corpus.data = packed.data.to_vec();
            corpus.layout = Some(packed.layout);
            corpus.scales = Some(packed.scales);
        } else {
            let packed = pack(codes.view(), value, &control).unwrap();
            corpus.scales = value.has_step().then(|| packed.steps.clone());
            corpus.plain = Some(packed);
        }
        if metric == Metric::Cosine {
            let view = corpus.rows();
            let inverse = |row: usize| {
                // as the index has it: what fills a rank-coded row may be no zeros
                if rows[row].is_empty() {
                    return 0.0;
                }
                let values: Vec<f64> = view.pairs(row).iter().map(|pair| pair.1).collect();
                let norm = norm(&values);
                if norm > 0.0 {
                    (1.0 / norm) as f32
                } else {
                    0.0
                }
            };
            corpus.scales = Some((0..rows.len()).map(inverse).collect());
        }
        corpus
    }

    fn rows(&self) -> RowsView<'_> {
        match (&self.layout, &self.plain) {
            (Some(layout), _) => {
                RowsView::new(RowCoding::Ranked(layout), self.n, self.dim, &self.data).unwrap()
            }
            (None, Some(packed)) => packed.view().unwrap(),
            (None, None) => unreachable!(),
        }
    }

    fn scan_rows(&self) -> ScanRows<'_> {
        ScanRows {
            rows: self.rows(),
            scales: self.scales.as_deref().map_or(Scales::One, Scales::Float32),
        }
    }
}

/// Fails unless walk and scan agree for these queries, on every instruction set, with one to
/// eight threads, all at once and one by one.
fn compare(
    corpus: &Corpus,
    queries: &[Row],
    metric: Metric,
    k: usize,
    block_items: usize,
    selection: Selection<'_>,
) -> std::result::Result<(), TestCaseError> {
    let control = Control::new();
    let data = corpus.scan_rows();
    let guesses = Guesses::default();
    let postings = build(&data.rows, &data.scales, block_items, &control).unwrap();
    let postings = postings.view(corpus.n).unwrap();
    let codes = codes_of(queries, corpus.dim);
    fn source(codes: CodesView<'_>, kernels: Kernels, metric: Metric) -> WeightSource<'_> {
        WeightSource {
            queries: Queries::Codes(codes),
            mode: Mode::Sparse,
            metric,
            atoms: None,
            mean: None,
            kernels,
        }
    }
    let all = source(codes.view(), Kernels::best(), metric);
    let expected = bits(&scan(&data, &all, k, selection, &control).unwrap());
    for kernels in Kernels::available() {
        let all = source(codes.view(), kernels, metric);
        for n_threads in [1, 2, 3, 8] {
            let mut call = threads::call(Some(n_threads)).unwrap();
            let pool = call.pool().unwrap();
            let found =
                pool.install(|| walk(&postings, &data, &all, k, selection, &guesses, &control));
            prop_assert_eq!(&bits(&found.unwrap()), &expected);
        }
    }
    if selection.exclusions.is_none() {
        for (query, expected) in queries.iter().zip(&expected) {
            let one_code = codes_of(std::slice::from_ref(query), corpus.dim);
            let one = source(one_code.view(), Kernels::best(), metric);
            let mut call = threads::call(Some(3)).unwrap();
            let pool = call.pool().unwrap();
            let found =
                pool.install(|| walk(&postings, &data, &one, k, selection, &guesses, &control));
            prop_assert_eq!(&bits(&found.unwrap())[0], expected);
        }
    }
    Ok(())
}

/// Rows over few latents, so that they share them; values of few kinds, so that scores tie, or
/// of many magnitudes; empty rows, repeated rows.
fn rows(most: usize) -> impl Strategy<Value = Vec<Row>> {
    let latent = prop_oneof![0u32..6, 0u32..40];
    let value = prop_oneof![
        (-3i8..4).prop_map(f32::from),
        -1.0f32..1.0,
        (-1.0f32..1.0, -40i32..12).prop_map(|(value, power)| value * 10f32.powi(power)),
    ]
    .prop_filter("a code has no zeros", |value| *value != 0.0);
    let row = proptest::collection::btree_map(latent, value, 0..12);
    (
        proptest::collection::vec(row, 0..most),
        proptest::collection::vec(any::<prop::sample::Index>(), 0..5),
    )
        .prop_map(|(mut rows, repeated)| {
            for index in repeated {
                if !rows.is_empty() {
                    rows.push(index.get(&rows).clone());
                }
            }
            rows
        })
}

fn values() -> impl Strategy<Value = ValueKind> {
    prop_oneof![
        Just(ValueKind::Float32),
        Just(ValueKind::Int16),
        Just(ValueKind::Int8),
        Just(ValueKind::Ranked),
    ]
}

proptest! {
    #[test]
    fn the_walk_finds_what_the_scan_finds_to_the_last_bit(
        rows in rows(120),
        queries in rows(5),
        value in values(),
        is_cosine in any::<bool>(),
        k in prop_oneof![1usize..6, 1usize..130],
        block_items in prop_oneof![1usize..10, Just(64), Just(1000)],
        is_wide in any::<bool>(),
    ) {
        let metric = if is_cosine { Metric::Cosine } else { Metric::InnerProduct };
        let dim = if is_wide && value != ValueKind::Ranked { 70_000 } else { 40 };
        let corpus = Corpus::new(&rows, dim, value, metric);
        compare(&corpus, &queries, metric, k, block_items, Selection::ALL)?;
    }

    #[test]
    fn the_walk_returns_what_a_selection_admits_as_the_scan_does(
        rows in rows(120),
        queries in rows(4),
        k in 1usize..40,
        block_items in prop_oneof![1usize..10, Just(64)],
        allowed in proptest::option::of(proptest::collection::vec(any::<bool>(), 130)),
        excluded in proptest::collection::vec(proptest::collection::vec(0u64..130, 0..40), 9),
    ) {
        let corpus = Corpus::new(&rows, 40, ValueKind::Float32, Metric::InnerProduct);
        let allowed = allowed.map(|mask| Bitmap::from_mask(&mask[..rows.len()]).unwrap());
        let mut starts = vec![0];
        for list in &excluded[..queries.len()] {
            starts.push(starts[starts.len() - 1] + list.len());
        }
        let lists = Exclusions::new(starts, excluded[..queries.len()].concat()).unwrap();
        let selection = Selection { allowed: allowed.as_ref(), exclusions: Some(&lists) };
        compare(&corpus, &queries, Metric::InnerProduct, k, block_items, selection)?;
    }
}

/// Enough rows for several blocks of the usual size, thresholds that rise from block to block,
/// and more candidates than k; values from a fixed sequence.
#[test]
fn several_whole_blocks_with_rising_scores_agree() {
    let mut state = 1u32;
    let mut next = move |below: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % below
    };
    let n = 2 * BLOCK_ITEMS + 777;
    let rows: Vec<Row> = (0..n)
        .map(|i| {
            let size = 1.0 + i as f32 / n as f32;
            let value = |x: u32| (x as f32 / 500.0 - 1.0) * size;
            (0..8)
                .map(|_| (next(64), value(next(1001))))
                .filter(|pair| pair.1 != 0.0)
                .collect()
        })
        .collect();
    let corpus = Corpus::new(&rows, 64, ValueKind::Int8, Metric::InnerProduct);
    let queries = [rows[5].clone(), rows[n - 1].clone(), Row::new()];
    for k in [1, 10, 1000] {
        let all = Selection::ALL;
        let metric = Metric::InnerProduct;
        compare(&corpus, &queries, metric, k, BLOCK_ITEMS, all).unwrap();
    }
}

/// The best rows all at the beginning, or all at the end: what the first blocks let expect of the
/// others is far too much, or far too little.
#[test]
fn rows_by_falling_or_rising_score_agree() {
    let row = |size: f32| Row::from([(0, size), (1, size / 2.0), (2, -size / 8.0)]);
    let n: u16 = 2000;
    for falls in [true, false] {
        let sizes = (1..=n).map(|i| f32::from(if falls { n + 1 - i } else { i }));
        let rows: Vec<Row> = sizes.map(row).collect();
        let corpus = Corpus::new(&rows, 3, ValueKind::Float32, Metric::InnerProduct);
        let allowed = Bitmap::from_positions(rows.len(), (0..u64::from(n)).step_by(3)).unwrap();
        let some = Selection {
            allowed: Some(&allowed),
            exclusions: None,
        };
        // more queries than may be walked twice
        let queries: Vec<Row> = (1..40u16).map(|i| row(f32::from(i))).collect();
        for k in [1, 30, 300] {
            for selection in [Selection::ALL, some] {
                let metric = Metric::InnerProduct;
                compare(&corpus, &queries, metric, k, 100, selection).unwrap();
            }
        }
    }
}

/// Scores at the end of float32: bounds are infinite there.
#[test]
fn values_whose_bounds_are_infinite_agree() {
    let row = |value: f32| Row::from([(1, value), (3, -value), (5, value / 2.0)]);
    let values = [f32::MAX, 3e38, 1.0, 1e-38, f32::from_bits(1), -f32::MAX];
    let rows: Vec<Row> = values.into_iter().map(row).collect();
    let corpus = Corpus::new(&rows, 8, ValueKind::Float32, Metric::InnerProduct);
    for k in 1..8 {
        for block_items in [1, 2, 8] {
            let all = Selection::ALL;
            compare(&corpus, &rows, Metric::InnerProduct, k, block_items, all).unwrap();
        }
    }
}

/// Values so small that weights are infinite in units of single precision, unless units are made
/// coarser for them: every list would add the most that it may, and sums overflow.
#[test]
fn values_at_the_small_end_of_float32_agree() {
    for value in [1e-38, 7e-37, 1e-40, f32::from_bits(1)] {
        let row = |n: u32| (0..n).map(|latent| (latent, value)).collect::<Row>();
        let rows: Vec<Row> = (1..=20).rev().map(row).collect();
        let corpus = Corpus::new(&rows, 24, ValueKind::Float32, Metric::InnerProduct);
        for terms in [20, 24] {
            for weight in [1.0, 1e20] {
                let query = [(0..terms).map(|latent| (latent, weight)).collect()];
                for (k, block_items) in [(1, 20), (1, 3), (7, 20), (7, 5)] {
                    let all = Selection::ALL;
                    compare(&corpus, &query, Metric::InnerProduct, k, block_items, all).unwrap();
                }
            }
        }
    }
}

/// A query with more terms than sums of 16 bits can tell apart is answered all the same.
#[test]
fn a_query_of_too_many_terms_agrees() {
    let dim = walk::MAX_TERMS + 5;
    let row = |first: u32| -> Row {
        (first..dim as u32)
            .step_by(7)
            .map(|latent| (latent, latent as f32 - 4000.0))
            .filter(|pair| pair.1 != 0.0)
            .collect()
    };
    let rows: Vec<Row> = (0..9).map(row).collect();
    let query: Row = (0..dim as u32).map(|latent| (latent, 1.0)).collect();
    let corpus = Corpus::new(&rows, dim, ValueKind::Float32, Metric::InnerProduct);
    let (all, metric) = (Selection::ALL, Metric::InnerProduct);
    compare(&corpus, &[query, row(3)], metric, 4, 4, all).unwrap();
}

/// Whatever postings hold, a search ends, and every row that it returns has its own score.
#[test]
fn damaged_postings_bring_no_panic_and_no_wrong_score() {
    let rows: Vec<Row> = (0..50)
        .map(|i| Row::from([(i % 7, 1.0 + i as f32), (7 + i % 3, -2.0)]))
        .collect();
    let corpus = Corpus::new(&rows, 10, ValueKind::Float32, Metric::InnerProduct);
    let data = corpus.scan_rows();
    let control = Control::new();
    let sound = build(&data.rows, &data.scales, 20, &control).unwrap();
    let codes = codes_of(&rows[..4], 10);
    let source = WeightSource {
        queries: Queries::Codes(codes.view()),
        mode: Mode::Sparse,
        metric: Metric::InnerProduct,
        atoms: None,
        mean: None,
        kernels: Kernels::best(),
    };
    let expected = bits(&scan(&data, &source, 50, Selection::ALL, &control).unwrap());
    let answer = |postings: &Postings| {
        let view = postings.view(50).unwrap();
        walk(
            &view,
            &data,
            &source,
            5,
            Selection::ALL,
            &Guesses::default(),
            &control,
        )
        .unwrap()
    };
    let right = bits(&answer(&sound));
    for word in [0u16, 1, 19, 20, 63, 64, 0x7F80, 0x7FC1, 0xFFFF] {
        for place in 0..sound.chunks.len() * 8 {
            let mut damaged = sound.clone();
            damaged.chunks[place / 8][place % 8] = word;
            for (found, scores) in bits(&answer(&damaged)).iter().zip(&expected) {
                assert!(found.iter().all(|hit| scores.contains(hit)));
            }
            // and leaves nothing behind for the next search
            assert_eq!(bits(&answer(&sound)), right);
        }
        for place in 0..sound.norms.len() {
            let mut damaged = sound.clone();
            damaged.norms[place] = f32::from_bits(u32::from(word) << 16);
            answer(&damaged);
        }
        for place in 0..sound.starts.len() {
            let mut damaged = sound.clone();
            damaged.starts[place] = u32::from(word) * 0x1_0001;
            answer(&damaged);
        }
    }
}
