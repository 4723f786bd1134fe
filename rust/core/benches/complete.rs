//! Search of complete rows, one thread: products in single precision, beside the integer pass and the
//! scan that they stand in for. Values fall with the axis, as principal axes' do; real ones are in
//! the study.
//!
//! `cargo bench -p sparse_retrieval --bench complete`

use divan::counter::ItemsCount;
use divan::{black_box, Bencher};
use sparse_retrieval::codes::{pack_ranked, Codes, MagnitudeBits, RowCoding, RowsView};
use sparse_retrieval::control::Control;
use sparse_retrieval::kernels::Kernels;
use sparse_retrieval::search::{
    batch, product, scan, Guesses, Metric, Mode, Queries, Scales, ScanRows, Selection, WeightSource,
};

const ROWS: usize = 20_000;
const K: usize = 100;
/// Axes and queries.
const SIZES: [(usize, usize); 4] = [(128, 1), (128, 64), (374, 1), (374, 64)];

fn main() {
    divan::main();
}

/// A way of search, told apart by name.
#[derive(Debug, Clone, Copy)]
enum Way {
    Scan,
    IntegerPass,
    Product,
}

fn codes(rows: usize, width: usize, mut seed: u64) -> Codes {
    let mut draw = || {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as f32 / (1u32 << 30) as f32 - 1.0
    };
    let indptr: Vec<i64> = (0..=rows).map(|row| (row * width) as i64).collect();
    let latents: Vec<i64> = (0..rows).flat_map(|_| 0..width as i64).collect();
    let values: Vec<f32> = (0..rows)
        .flat_map(|_| 0..width)
        // a sum of four is nearly normal; a zero would be no value
        .map(|axis| (draw() + draw() + draw() + draw() + 1e-6) / (1.0 + axis as f32 / 40.0))
        .collect();
    Codes::from_csr(&indptr, &latents, &values, width).expect("codes are sound")
}

fn ask(bencher: Bencher, way: Way, (width, n_queries): (usize, usize)) {
    let control = Control::new();
    let items = codes(ROWS, width, 1);
    let bits = MagnitudeBits::Complete(1.7);
    let packed = pack_ranked(items.view(), &bits, None, &control).expect("rows fit");
    let rows = RowsView::new(RowCoding::Ranked(&packed.layout), ROWS, width, &packed.data);
    let data = ScanRows {
        rows: rows.expect("rows fit"),
        scales: Scales::Float32(&packed.scales),
    };
    let queries = codes(n_queries, width, 2);
    let source = WeightSource {
        queries: Queries::Codes(queries.view()),
        mode: Mode::Sparse,
        metric: Metric::InnerProduct,
        atoms: None,
        mean: None,
        kernels: Kernels::best(),
    };
    let guesses = Guesses::default();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    let pool = pool.expect("a thread");
    bencher.counter(ItemsCount::new(n_queries)).bench(|| {
        pool.install(|| {
            let (all, source) = (Selection::ALL, black_box(&source));
            match way {
                Way::Scan => scan(&data, source, K, all, &control),
                Way::IntegerPass => batch::search(&data, source, K, all, &guesses, &control),
                Way::Product => product::search(&data, source, K, all, &control),
            }
        })
    });
}

#[divan::bench(args = SIZES, sample_count = 7)]
fn scanned(bencher: Bencher, size: (usize, usize)) {
    ask(bencher, Way::Scan, size);
}

#[divan::bench(args = SIZES, sample_count = 7)]
fn by_the_integer_pass(bencher: Bencher, size: (usize, usize)) {
    ask(bencher, Way::IntegerPass, size);
}

#[divan::bench(args = SIZES, sample_count = 7)]
fn by_products(bencher: Bencher, size: (usize, usize)) {
    ask(bencher, Way::Product, size);
}
