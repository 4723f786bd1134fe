//! Search by the integer pass, by rough scores, and by products of complete rows, against the plain scan, bit for bit, on data made to break their
//! bounds: scales over many orders of magnitude, values and weights that differ by as much, ties,
//! zero rows and queries, any k, any number of queries and threads, every instruction set.

use proptest::prelude::*;
use sparse_retrieval::codes::{
    pack, pack_ranked, Codes, MagnitudeBits, PackedRows, RankedLayout, RankedRows, RowCoding,
    RowsView, ValueKind,
};
use sparse_retrieval::control::Control;
use sparse_retrieval::kernels::Kernels;
use sparse_retrieval::search::{
    batch, product, rough, scan, Atoms, Bitmap, Exclusions, Guesses, Metric, Mode, Queries, Scales,
    ScanRows, Selection, WeightSource,
};

/// A stream of numbers from a seed: a linear congruential generator, good enough to draw from.
struct Draw(u64);

impl Draw {
    fn bits(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn below(&mut self, n: usize) -> usize {
        self.bits() as usize % n
    }

    /// In -1..1.
    fn unit(&mut self) -> f64 {
        self.bits() as f64 / f64::from(1u32 << 30) - 1.0
    }

    /// 10^-range to 10^range.
    fn magnitude(&mut self, range: f64) -> f64 {
        10f64.powf(range * self.unit())
    }
}

#[derive(Debug, Clone)]
struct Case {
    seed: u64,
    n: usize,
    dim: usize,
    width: usize,
    d: usize,
    n_queries: usize,
    /// Orders of magnitude over which values, scales and queries spread.
    spread: f64,
    /// Values are small integers, so that scores tie.
    ties: bool,
    value: usize,
}

fn cases() -> impl Strategy<Value = Case> {
    (
        any::<u64>(),
        1usize..700,
        prop_oneof![Just(1usize), 2usize..60, Just(300), Just(5000)],
        1usize..20,
        1usize..20,
        prop_oneof![1usize..5, Just(64), Just(65), Just(140)],
        prop_oneof![Just(0.0), Just(1.0), Just(6.0)],
        any::<bool>(),
        0usize..8,
    )
        .prop_map(
            |(seed, n, dim, width, d, n_queries, spread, ties, value)| Case {
                seed,
                n,
                // complete rows have a value for each latent
                dim: if value > 5 { dim.min(100) } else { dim },
                width,
                d,
                n_queries,
                spread,
                ties,
                value,
            },
        )
}

impl Case {
    fn codes(&self, draw: &mut Draw, n: usize) -> Codes {
        let (mut indptr, mut latents, mut values) = (vec![0i64], Vec::new(), Vec::new());
        for _ in 0..n {
            let m = if draw.below(10) == 0 {
                0
            } else {
                1 + draw.below(self.width)
            };
            let mut row: Vec<i64> = (0..m).map(|_| draw.below(self.dim) as i64).collect();
            row.sort_unstable();
            row.dedup();
            for latent in row {
                let value = if self.ties {
                    1.0 + draw.below(3) as f64
                } else {
                    draw.magnitude(self.spread / 2.0)
                };
                let sign = if draw.below(2) == 0 { 1.0 } else { -1.0 };
                latents.push(latent);
                values.push((sign * value) as f32);
            }
            indptr.push(latents.len() as i64);
        }
        Codes::from_csr(&indptr, &latents, &values, self.dim).unwrap()
    }

    fn scales(&self, draw: &mut Draw) -> Vec<f32> {
        (0..self.n)
            .map(|_| match draw.below(40) {
                0 => 0.0,
                1 => 1e-42,
                2 => 1e35,
                _ if self.ties => 1.0,
                _ => draw.magnitude(self.spread) as f32,
            })
            .collect()
    }

    fn numbers(&self, draw: &mut Draw, rows: usize) -> Vec<f64> {
        (0..rows)
            .flat_map(|_| {
                let scale = match draw.below(12) {
                    0 => 0.0,
                    1 => 1e-250,
                    2 => 1e25,
                    _ => draw.magnitude(self.spread),
                };
                (0..self.d)
                    .map(|_| {
                        let x = if self.ties {
                            draw.below(3) as f64 - 1.0
                        } else {
                            draw.unit()
                        };
                        x * scale
                    })
                    .collect::<Vec<_>>()
            })
            .collect()
    }
}

enum Rows {
    Plain(PackedRows),
    Ranked(RankedRows),
}

impl Rows {
    fn pack(codes: &Codes, value: usize) -> Self {
        let control = Control::new();
        let kinds = [ValueKind::Float32, ValueKind::Int16, ValueKind::Int8];
        match kinds.get(value) {
            Some(&kind) => Self::Plain(pack(codes.view(), kind, &control).unwrap()),
            None => {
                let bits = match value {
                    6 => MagnitudeBits::Complete(1.5),
                    7 => MagnitudeBits::Complete(8.0),
                    _ => MagnitudeBits::Uniform(value as u8),
                };
                Self::Ranked(pack_ranked(codes.view(), &bits, None, &control).unwrap())
            }
        }
    }

    fn view(&self, codes: &Codes) -> RowsView<'_> {
        match self {
            Self::Plain(rows) => rows.view().unwrap(),
            Self::Ranked(rows) => {
                let coding = RowCoding::Ranked(&rows.layout);
                let n = codes.view().len();
                RowsView::new(coding, n, codes.view().dim(), &rows.data).unwrap()
            }
        }
    }
}

fn bits(found: &[Vec<sparse_retrieval::search::Hit>]) -> Vec<Vec<(u64, u64)>> {
    found
        .iter()
        .map(|hits| {
            hits.iter()
                .map(|hit| (hit.position, hit.score.to_bits()))
                .collect()
        })
        .collect()
}

fn check(
    data: &ScanRows<'_>,
    source: &WeightSource<'_>,
    k: usize,
    selection: Selection<'_>,
    threads: usize,
) -> std::result::Result<(), TestCaseError> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .unwrap();
    let expected = pool
        .install(|| scan(data, source, k, selection, &Control::new()))
        .unwrap();
    let guesses = Guesses::default();
    for kernels in Kernels::available() {
        let source = WeightSource { kernels, ..*source };
        let found = pool
            .install(|| batch::search(data, &source, k, selection, &guesses, &Control::new()))
            .unwrap();
        prop_assert_eq!(bits(&found), bits(&expected), "{:?}", kernels.isa());
        // candidates of each query copied by themselves, or those of some together
        for room in [0, 2_000] {
            let control = Control::new();
            let found = pool
                .install(|| {
                    batch::search_with_room(data, &source, k, selection, room, &guesses, &control)
                })
                .unwrap();
            prop_assert_eq!(bits(&found), bits(&expected), "{} bytes", room);
        }
        if product::pays(data) {
            let found = pool
                .install(|| product::search(data, &source, k, selection, &Control::new()))
                .unwrap();
            prop_assert_eq!(
                bits(&found),
                bits(&expected),
                "product, {:?}",
                kernels.isa()
            );
        }
        // one query after the other: some are enough
        let few = source.queries.len() < 10;
        if few {
            let found = pool
                .install(|| rough::search(data, &source, k, selection, &Control::new()))
                .unwrap();
            prop_assert_eq!(bits(&found), bits(&expected), "rough, {:?}", kernels.isa());
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn dense_queries_find_what_a_scan_finds(
        case in cases(),
        k in prop_oneof![Just(1usize), 2usize..30, Just(10_000)],
        threads in 1usize..4,
        selected in 0usize..3,
        metric in prop_oneof![Just(Metric::InnerProduct), Just(Metric::Cosine)],
    ) {
        let mut draw = Draw(case.seed);
        let codes = case.codes(&mut draw, case.n);
        let rows = Rows::pack(&codes, case.value);
        let scales = case.scales(&mut draw);
        let data = ScanRows { rows: rows.view(&codes), scales: Scales::Float32(&scales) };
        let mut atoms: Vec<f32> = Vec::new();
        for _ in 0..case.dim {
            let scale = if case.spread > 1.0 { draw.magnitude(3.0) } else { 1.0 };
            atoms.extend((0..case.d).map(|_| (draw.unit() * scale) as f32));
        }
        let queries = case.numbers(&mut draw, case.n_queries);
        let source = WeightSource {
            queries: Queries::Dense { rows: &queries, d: case.d },
            mode: Mode::Dense,
            metric,
            atoms: Some(Atoms::new(&atoms, case.d).unwrap()),
            mean: None,
            kernels: Kernels::best(),
        };
        let allowed: Vec<bool> = (0..case.n).map(|_| draw.below(3) > 0).collect();
        let allowed = Bitmap::from_mask(&allowed).unwrap();
        let starts: Vec<usize> = (0..=case.n_queries).map(|query| 3 * query).collect();
        let excluded: Vec<u64> = (0..3 * case.n_queries)
            .map(|_| draw.below(case.n) as u64)
            .collect();
        let exclusions = Exclusions::new(starts, excluded).unwrap();
        let selection = Selection {
            allowed: (selected == 1).then_some(&allowed),
            exclusions: (selected > 0).then_some(&exclusions),
        };
        check(&data, &source, k, selection, threads)?;
    }

    #[test]
    fn codes_find_what_a_scan_finds(
        case in cases(),
        k in prop_oneof![Just(1usize), 2usize..30, Just(10_000)],
        threads in 1usize..4,
        metric in prop_oneof![Just(Metric::InnerProduct), Just(Metric::Cosine)],
    ) {
        let mut draw = Draw(case.seed);
        let codes = case.codes(&mut draw, case.n);
        let rows = Rows::pack(&codes, case.value);
        let scales = case.scales(&mut draw);
        let data = ScanRows { rows: rows.view(&codes), scales: Scales::Float32(&scales) };
        let queries = case.codes(&mut draw, case.n_queries);
        let source = WeightSource {
            queries: Queries::Codes(queries.view()),
            mode: Mode::Sparse,
            metric,
            atoms: None,
            mean: None,
            kernels: Kernels::best(),
        };
        check(&data, &source, k, Selection::ALL, threads)?;
    }
}

/// Dense queries of `d` numbers each, compared by inner product.
fn dense<'a>(queries: &'a [f64], atoms: &'a [f32], d: usize) -> WeightSource<'a> {
    WeightSource {
        queries: Queries::Dense { rows: queries, d },
        mode: Mode::Dense,
        metric: Metric::InnerProduct,
        atoms: Some(Atoms::new(atoms, d).unwrap()),
        mean: None,
        kernels: Kernels::best(),
    }
}

/// Rows whose scores lie closer together than the bound of the pass, so that it must not decide.
#[test]
fn scores_that_differ_by_less_than_the_bound_are_told_apart() {
    let (n, dim, d) = (3000, 64, 8);
    let mut draw = Draw(7);
    let (mut indptr, mut latents, mut values) = (vec![0i64], Vec::new(), Vec::new());
    for row in 0..n {
        for latent in 0..8i64 {
            latents.push(latent * 8);
            values.push(0.5 - latent as f32 * 0.05 + row as f32 * 1e-7);
        }
        indptr.push(latents.len() as i64);
    }
    let codes = Codes::from_csr(&indptr, &latents, &values, dim).unwrap();
    let rows = Rows::pack(&codes, 0);
    let atoms: Vec<f32> = (0..dim * d).map(|_| draw.unit() as f32).collect();
    let queries: Vec<f64> = (0..5 * d).map(|_| draw.unit()).collect();
    let source = dense(&queries, &atoms, d);
    let data = ScanRows {
        rows: rows.view(&codes),
        scales: Scales::One,
    };
    for k in [1, 10, 500] {
        check(&data, &source, k, Selection::ALL, 2).unwrap();
    }
}

/// As the next, of the rough scan: the last row is better than all the others by less than what its
/// roundings take from it and theirs give to them; without nine tenths of the bound it is lost.
#[test]
fn a_row_whose_roundings_all_point_down_is_not_lost_by_rough_scores() {
    // levels of 15 ranks are 8000.49 (rounded down) and 8000.51 (up), and those of the first
    // rank are what makes the unit of levels 1; the largest weight makes that of weights 1
    let rest = 131_072.0 - 15.0 * 8000.51f32;
    let levels = std::iter::repeat_n(rest, 2)
        .chain((0..15).flat_map(|_| [8000.49, 8000.51]))
        .collect();
    let layout = RankedLayout::new(8, vec![1; 16], levels).unwrap();
    let (n, dim) = (600, 256);
    let mut data = vec![0u8; n * layout.row_bytes()];
    for (row, bytes) in data.chunks_exact_mut(layout.row_bytes()).enumerate() {
        let (first, level) = if row == n - 1 { (1, 0) } else { (16, 1) };
        layout.set_field(bytes, 0, 0, false, 0);
        for rank in 1..16 {
            layout.set_field(bytes, rank, first + rank as u32 - 1, false, level);
        }
    }
    let mut weights = vec![0.0; dim];
    weights[0] = 8191.0;
    weights[1..16].fill(4000.49);
    weights[16..31].fill(4000.51);
    weights[30] = 4000.05;
    let identity: Vec<f32> = (0..dim * dim)
        .map(|i| if i % (dim + 1) == 0 { 1.0 } else { 0.0 })
        .collect();
    let data = ScanRows {
        rows: RowsView::new(RowCoding::Ranked(&layout), n, dim, &data).unwrap(),
        scales: Scales::One,
    };
    let source = dense(&weights, &identity, dim);
    let best = scan(&data, &source, 1, Selection::ALL, &Control::new()).unwrap();
    assert_eq!(best[0][0].position, n as u64 - 1);
    check(&data, &source, 1, Selection::ALL, 1).unwrap();
}

/// Two rows of one score but for a little, of which every rounding of the pass takes from the
/// better one and gives to the other: without four fifths of the bound the better one is lost.
#[test]
fn a_row_whose_roundings_all_point_down_is_not_lost() {
    // latent 0 sets the units of values and weights to 1; the better row has latents 1 to 8
    // and the other 9 to 16
    let values_up = [100.51f32; 8];
    let row = |first: i64, values: [f32; 8]| {
        let latents = [0].into_iter().chain(first..first + 8);
        latents
            .zip([127.0].into_iter().chain(values))
            .collect::<Vec<_>>()
    };
    let rows = [row(1, [100.49; 8]), row(9, values_up)].concat();
    let (latents, values): (Vec<i64>, Vec<f32>) = rows.into_iter().unzip();
    let dim = 17;
    let codes = Codes::from_csr(&[0i64, 9, 18], &latents, &values, dim).unwrap();
    let mut weights = vec![127.0];
    weights.extend([90.49; 8]);
    weights.extend([90.51; 7]);
    weights.push(90.20);
    let identity: Vec<f32> = (0..dim * dim)
        .map(|i| if i % (dim + 1) == 0 { 1.0 } else { 0.0 })
        .collect();
    let rows = Rows::pack(&codes, 0);
    let data = ScanRows {
        rows: rows.view(&codes),
        scales: Scales::One,
    };
    let source = dense(&weights, &identity, dim);
    let best = scan(&data, &source, 1, Selection::ALL, &Control::new()).unwrap();
    assert_eq!(best[0][0].position, 0);
    check(&data, &source, 1, Selection::ALL, 1).unwrap();
}

/// A row whose small products single precision loses one and all, so that another, which scores
/// less, has the larger product: it is lost if the bound is made eight times smaller.
#[test]
fn complete_rows_whose_sums_lose_all_small_products_are_found() {
    let width = 300;
    let tiny = f32::powi(2.0, -13);
    let mut levels = vec![1.0, 1.0 + f32::powi(2.0, -17)];
    levels.extend([0.0, tiny].repeat(width - 1));
    let layout = RankedLayout::new(0, vec![1; width], levels).unwrap();
    // the first row has all that is tiny, the second the larger first level
    let mut rows = vec![0u8; 2 * layout.row_bytes()];
    let (first, second) = rows.split_at_mut(layout.row_bytes());
    for rank in 0..width {
        layout.set_field(first, rank, rank as u32, false, u32::from(rank > 0));
        layout.set_field(second, rank, rank as u32, false, u32::from(rank == 0));
    }
    let mut weights = vec![f32::powi(2.0, -12); width];
    weights[0] = 1.0;
    let latents: Vec<i64> = (0..width as i64).collect();
    for n_queries in [1, 5] {
        let indptr: Vec<i64> = (0..=n_queries).map(|i| i * width as i64).collect();
        let repeated = |n: i64| (latents.repeat(n as usize), weights.repeat(n as usize));
        let (latents, weights) = repeated(n_queries);
        let queries = Codes::from_csr(&indptr, &latents, &weights, width).unwrap();
        let source = WeightSource {
            queries: Queries::Codes(queries.view()),
            mode: Mode::Sparse,
            metric: Metric::InnerProduct,
            atoms: None,
            mean: None,
            kernels: Kernels::best(),
        };
        let rows = RowsView::new(RowCoding::Ranked(&layout), 2, width, &rows).unwrap();
        let scales = Scales::One;
        let data = ScanRows { rows, scales };
        let found = product::search(&data, &source, 1, Selection::ALL, &Control::new()).unwrap();
        assert!(found.iter().all(|hits| hits[0].position == 0));
        check(&data, &source, 1, Selection::ALL, 1).unwrap();
    }
}

/// Enough rows for guesses from a sample. Where every 25th row is better than all others, as many
/// as are drawn, the sample lets expect too much, and queries are answered again.
#[test]
fn queries_that_were_guessed_too_high_are_answered_again() {
    let (n, dim, d) = (40_000, 32, 8);
    let mut draw = Draw(11);
    for better in [1.0f32, 4.0] {
        let (mut indptr, mut latents, mut values) = (vec![0i64], Vec::new(), Vec::new());
        for row in 0..n {
            let factor = if row % 25 == 0 { better } else { 1.0 };
            for latent in 0..4 {
                latents.push((latent * 8 + draw.below(8)) as i64);
                values.push(factor * draw.unit() as f32);
            }
            indptr.push(latents.len() as i64);
        }
        let codes = Codes::from_csr(&indptr, &latents, &values, dim).unwrap();
        let rows = Rows::pack(&codes, 0);
        let atoms: Vec<f32> = (0..dim * d).map(|_| draw.unit() as f32).collect();
        let queries: Vec<f64> = (0..5 * d).map(|_| draw.unit()).collect();
        let source = dense(&queries, &atoms, d);
        let data = ScanRows {
            rows: rows.view(&codes),
            scales: Scales::One,
        };
        let guesses = Guesses::default();
        let control = Control::new();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
        let again = pool.unwrap().install(|| {
            let (all, guesses) = (Selection::ALL, &guesses);
            let search = || batch::search(&data, &source, 100, all, guesses, &control);
            (0..2).for_each(|_| drop(search().unwrap()));
            guesses.missed()
        });
        assert_eq!(
            again > 0,
            better > 1.0,
            "{again} queries were answered again"
        );
        for k in [100, 150] {
            check(&data, &source, k, Selection::ALL, 1).unwrap();
        }
    }
}
