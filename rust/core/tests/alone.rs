//! One query is answered on the thread that asks, whatever the way, and no pool is entered: in a
//! process that was forked the threads of the pool that everybody shares would be missing.

use sparse_retrieval::codes::{Codes, MagnitudeBits};
use sparse_retrieval::control::Control;
use sparse_retrieval::format::ItemNorm;
use sparse_retrieval::index::{BuildOptions, DictionaryData, Index, LiveIndex, ValueCoding};
use sparse_retrieval::kernels::Kernels;
use sparse_retrieval::search::approximate::build::ClusterOptions;
use sparse_retrieval::search::{Approximate, Hit, Metric, Mode, Queries, Request, Way};
use sparse_retrieval::threads::{alone, try_map, width};

const ROWS: usize = 1200;
const LATENTS: usize = 24;
const D: usize = 8;

/// A number between -1 and 1.
fn number(seed: usize) -> f32 {
    let mixed = (seed as u32 ^ 0x9E37).wrapping_mul(2_654_435_761) >> 8;
    mixed as f32 / (1 << 23) as f32 - 1.0
}

/// Codes of three nonzeros.
fn codes(n: usize) -> Codes {
    let (mut indptr, mut latents, mut values) = (vec![0i64], Vec::new(), Vec::new());
    for row in 0..n {
        for rank in 0..3 {
            latents.push(((row * 7 + row / 24) % 8 + 8 * rank) as i64);
            values.push(number(3 * row + rank) + 1.5);
        }
        indptr.push(latents.len() as i64);
    }
    Codes::from_csr(&indptr, &latents, &values, LATENTS).unwrap()
}

fn options(values: ValueCoding, postings: Option<usize>, atoms: &[f32]) -> BuildOptions<'_> {
    BuildOptions {
        metric: Metric::InnerProduct,
        values,
        item_norm: ItemNorm::Decoded,
        reconstruction_cosine: None,
        modes: &Mode::ALL,
        dictionary: Some(DictionaryData {
            rows: atoms,
            d: D,
            mean: None,
        }),
        ids: None,
        metadata: None,
        postings,
    }
}

fn built(values: ValueCoding, postings: Option<usize>, control: &Control) -> Index {
    let atoms: Vec<f32> = (0..LATENTS * D).map(number).collect();
    let options = options(values, postings, &atoms);
    Index::build(codes(ROWS).view(), &options, control).unwrap()
}

fn bits(found: &[Vec<Hit>]) -> Vec<(u64, u64)> {
    let hits = found.iter().flatten();
    hits.map(|hit| (hit.position, hit.score.to_bits()))
        .collect()
}

#[test]
fn every_way_answers_one_query_without_a_pool_as_in_one() {
    let control = Control::new();
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(3)
        .build()
        .unwrap();
    let clusters = ClusterOptions {
        clusters: None,
        seed: 0,
        kernels: Kernels::best(),
    };
    let ranked = || ValueCoding::Ranked(MagnitudeBits::Uniform(2));
    let (plain, posted, coded, complete, clustered) = pool.install(|| {
        (
            built(ValueCoding::Int8, None, &control),
            built(ValueCoding::Int8, Some(100), &control),
            built(ranked(), None, &control),
            built(
                ValueCoding::complete_from_bits(2.0).unwrap(),
                None,
                &control,
            ),
            built(ranked(), None, &control)
                .with_clusters(&clusters, &control)
                .unwrap(),
        )
    });
    let row: Vec<f64> = (0..D).map(|i| f64::from(number(i + 77))).collect();
    let dense = Queries::Dense { rows: &row, d: D };
    let code = codes(1);
    let sparse = Queries::Codes(code.view());
    let exact = |mode| Request::new(mode, 7);
    let near = Request {
        approximate: Some(Approximate {
            clusters: 3,
            rerank: 50,
        }),
        ..exact(Mode::Dense)
    };
    let cases = [
        (&plain, sparse, exact(Mode::Sparse), Way::Scan),
        (&plain, sparse, exact(Mode::Reconstructed), Way::Scan),
        (&posted, sparse, exact(Mode::Sparse), Way::Postings),
        (&coded, dense, exact(Mode::Dense), Way::RoughScan),
        (&complete, dense, exact(Mode::Dense), Way::Product),
        (&clustered, dense, near, Way::Clusters),
    ];
    for (index, queries, request, way) in cases {
        let planned = index.explain(1, &request).unwrap().way;
        // without AVX2 a rough scan of fields that are no words does not pay
        let is_plain_cpu = planned == Way::Scan && way == Way::RoughScan;
        assert!(planned == way || is_plain_cpu, "{planned:?}, not {way:?}");
        let search = || index.search(&queries, &request, &control).unwrap();
        let expected = bits(&pool.install(search));
        assert_eq!(expected.len(), 7);
        assert_eq!(bits(&alone(search)), expected, "{way:?}");
    }
    let is_short = |index: Index, queries: &Queries<'_>, request: &Request<'_>, threads| {
        LiveIndex::new(index)
            .snapshot()
            .is_short(queries, request, threads)
    };
    let few = 7;
    let many = 1000;
    let of = |k| Request::new(Mode::Sparse, k);
    let two = codes(2);
    let pair = Queries::Codes(two.view());
    assert!(is_short(plain.clone(), &sparse, &of(few), None));
    assert!(is_short(posted.clone(), &sparse, &of(few), None));
    assert!(is_short(clustered, &dense, &near, None));
    // a thousand results are long, but no other thread is there to help
    assert!(!is_short(posted.clone(), &sparse, &of(many), None));
    assert!(is_short(posted.clone(), &sparse, &of(many), Some(1)));
    assert!(!is_short(plain.clone(), &pair, &of(few), Some(1)));
    assert!(!is_short(complete, &dense, &exact(Mode::Dense), Some(1)));
    let wide = codes(400 * ROWS);
    let options = BuildOptions {
        dictionary: None,
        modes: &[Mode::Sparse],
        ..options(ValueCoding::Int8, None, &[])
    };
    let large = pool.install(|| Index::build(wide.view(), &options, &control).unwrap());
    assert!(!is_short(large, &sparse, &of(few), Some(1)));
    assert_eq!(alone(width), 1);
    let panicked = std::panic::catch_unwind(|| alone(|| panic!("on purpose")));
    assert!(panicked.is_err());
    assert_eq!(pool.install(width), 3);
    assert_eq!(pool.install(|| (alone(|| alone(width)), width())), (1, 3));
    let errors: sparse_retrieval::Result<Vec<()>> = alone(|| {
        try_map(vec![1, 2, 3], |i| match i {
            2 => Err(sparse_retrieval::Error::Interrupted),
            _ => Ok(()),
        })
    });
    assert!(errors.is_err());
    // fails where the pool that everybody shares is there already
    rayon::ThreadPoolBuilder::new().build_global().unwrap();
}
