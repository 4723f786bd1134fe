//! Hostile arguments: codes that are validated and packed, and searches of sound indexes.

use sparse_retrieval::codes::{pack, Codes, ValueKind};
use sparse_retrieval::control::Control;
use sparse_retrieval::format::ItemNorm;
use sparse_retrieval::format::{parse, Bytes};
use sparse_retrieval::index::{
    BuildOptions, DictionaryData, Index, LiveIndex, OwnedIds, Snapshot, ValueCoding,
};
use sparse_retrieval::kernels::Kernels;
use sparse_retrieval::search::approximate::build::ClusterOptions;
use sparse_retrieval::search::rescore::{rescore, Numbers, Originals};
use sparse_retrieval::search::{
    Approximate, Bitmap, Exclusions, Hit, Metric, Mode, Queries, Request, Selection,
};

use crate::random::Random;

/// Arrays of a compressed sparse row matrix, validated and packed.
pub fn codes(random: &mut Random<'_>) -> bool {
    let n = random.below(5);
    let mut indptr = vec![0i64];
    let mut latents = Vec::new();
    let mut values = Vec::new();
    for _ in 0..n {
        for _ in 0..random.below(6) {
            latents.push(random.edge() as i64 % if random.below(9) == 0 { i64::MAX } else { 40 });
            values.push(f32::from_bits(random.edge() as u32));
        }
        indptr.push(latents.len() as i64);
    }
    if random.below(4) == 0 {
        let at = random.below(indptr.len());
        indptr[at] = random.edge() as i64;
    }
    let dim = 1 + random.edge() as usize % 70_000;
    let Ok(codes) = Codes::from_csr(&indptr, &latents, &values, dim) else {
        return false;
    };
    for kind in [ValueKind::Float32, ValueKind::Int16, ValueKind::Int8] {
        let packed = pack(codes.view(), kind, &Control::new()).expect("sound codes");
        let view = packed.view().expect("packed as it is read");
        for row in 0..view.len() {
            let pairs = view.pairs(row);
            assert!(pairs.iter().all(|pair| (pair.0 as usize) < dim));
        }
    }
    true
}

/// Sound indexes, and how they are asked.
pub struct Asked {
    indexes: Vec<LiveIndex>,
}

impl Asked {
    /// Those of some files, and one with postings, clusters and changes.
    pub fn of(files: &[Vec<u8>]) -> Self {
        let index = |file: &Vec<u8>| {
            let file = Bytes::copy_of(file).and_then(parse).expect("a sound file");
            LiveIndex::new(Index::from_file(file).expect("a sound file"))
        };
        let mut indexes: Vec<_> = files.iter().map(index).collect();
        indexes.push(changed());
        Self { indexes }
    }

    /// One search; true where it answered.
    pub fn search(&self, random: &mut Random<'_>) -> bool {
        let snapshot = self.indexes[random.below(self.indexes.len())].snapshot();
        let d = snapshot.base().atoms().map_or(5, |atoms| atoms.d());
        let d = if random.below(8) == 0 {
            random.below(9)
        } else {
            d
        };
        let n_queries = random.below(4);
        let rows: Vec<f64> = (0..n_queries * d).map(|_| number(random)).collect();
        let code = code(&snapshot, n_queries, random);
        let queries = match (&code, random.below(2)) {
            (Some(code), 0) => Queries::Codes(code.view()),
            _ => Queries::Dense { rows: &rows, d },
        };
        let allowed = bitmap(snapshot.len(), random);
        let exclusions = exclusions(n_queries, snapshot.len(), random);
        let request = Request {
            k_row: (random.below(3) == 0).then(|| random.edge() as usize),
            selection: Selection {
                allowed: allowed.as_ref(),
                exclusions: exclusions.as_ref(),
            },
            approximate: (random.below(3) == 0).then(|| Approximate {
                clusters: random.edge() as usize,
                rerank: random.edge() as usize,
            }),
            ..Request::new(mode(random), random.edge() as usize)
        };
        let _ = snapshot.base().explain(random.edge() as usize, &request);
        let mut found = Vec::new();
        for kernels in Kernels::available() {
            let request = Request { kernels, ..request };
            let hits = snapshot.search(&queries, &request, &Control::new());
            found.push(hits.map_err(|error| error.to_string()));
        }
        // NaN is never asked for by Python, which refuses it; here it may make any answer but a
        // panic, and so there is no one answer of all kernels
        let is_finite = rows.iter().all(|x| x.is_finite());
        for other in &found[1..] {
            assert!(
                !is_finite || bits(other) == bits(&found[0]),
                "kernels differ"
            );
        }
        let Ok(found) = found.swap_remove(0) else {
            return false;
        };
        assert_eq!(found.len(), queries.len());
        found
            .iter()
            .for_each(|hits| check(hits, &snapshot, &request));
        rescored(&found, &rows, d, random);
        true
    }
}

/// What a search answered, to the last bit.
type Answer = Result<Vec<Vec<(u64, u64)>>, String>;

fn bits(found: &Result<Vec<Vec<Hit>>, String>) -> Answer {
    let of = |hits: &Vec<Hit>| {
        let hits = hits.iter();
        hits.map(|hit| (hit.position, hit.score.to_bits()))
            .collect()
    };
    Ok(found
        .as_ref()
        .map_err(String::clone)?
        .iter()
        .map(of)
        .collect())
}

/// Each hit is an item that there is, once, and the better ones come first.
fn check(hits: &[Hit], snapshot: &Snapshot, request: &Request<'_>) {
    assert!(hits.len() <= request.k);
    let items: Vec<u64> = snapshot
        .positions()
        .map(|position| position as u64)
        .collect();
    let mut positions: Vec<u64> = hits.iter().map(|hit| hit.position).collect();
    positions.sort_unstable();
    assert!(positions.is_sorted_by(|a, b| a < b), "an item twice");
    for position in positions {
        let item = items.binary_search(&position).expect("an item");
        assert!(request.selection.is_allowed(item as u64));
    }
    for pair in hits.windows(2) {
        let in_order = (pair[1].score, pair[0].position) <= (pair[0].score, pair[1].position);
        assert!(in_order, "{pair:?}");
    }
}

/// Vectors for the items that were found, rescored.
fn rescored(found: &[Vec<Hit>], queries: &[f64], d: usize, random: &mut Random<'_>) {
    let most = found.iter().map(Vec::len).max().unwrap_or(0);
    let mut candidates = Vec::new();
    for hits in found {
        let held = hits.iter().map(|hit| hit.position as i64);
        candidates.extend(held.chain(std::iter::repeat(-1)).take(most));
    }
    let mut positions: Vec<u64> = candidates
        .iter()
        .filter_map(|&position| u64::try_from(position).ok())
        .collect();
    positions.sort_unstable();
    positions.dedup();
    if random.below(8) == 0 {
        positions.pop();
    }
    let vectors: Vec<f64> = (0..positions.len() * d).map(|_| number(random)).collect();
    let Ok(originals) = Originals::new(&positions, Numbers::Float64(&vectors), d) else {
        return;
    };
    let metric = [Metric::InnerProduct, Metric::Cosine][random.below(2)];
    let k = random.edge() as usize;
    if let Ok(best) = rescore(&originals, queries, &candidates, metric, k, &Control::new()) {
        let is_sound = |hit: &Hit| !hit.score.is_nan() && positions.contains(&hit.position);
        assert!(best.iter().flatten().all(is_sound));
    }
}

fn number(random: &mut Random<'_>) -> f64 {
    match random.below(8) {
        0 => f64::from_bits(random.edge()),
        1 => f64::from(f32::from_bits(random.edge() as u32)),
        2 => 0.0,
        _ => random.below(256) as f64 / 64.0 - 2.0,
    }
}

fn mode(random: &mut Random<'_>) -> Mode {
    [Mode::Sparse, Mode::Reconstructed, Mode::Dense][random.below(3)]
}

fn code(snapshot: &Snapshot, n: usize, random: &mut Random<'_>) -> Option<Codes> {
    let dim = match random.below(8) {
        0 => random.edge() as usize,
        _ => snapshot.base().dim(),
    };
    let (mut indptr, mut latents, mut values) = (vec![0i64], Vec::new(), Vec::new());
    for _ in 0..n {
        for _ in 0..random.below(6) {
            latents.push(random.below(dim.min(1 << 20)) as i64);
            values.push(number(random) as f32);
        }
        indptr.push(latents.len() as i64);
    }
    Codes::from_csr(&indptr, &latents, &values, dim).ok()
}

fn bitmap(n: usize, random: &mut Random<'_>) -> Option<Bitmap> {
    let len = if random.below(8) == 0 {
        random.below(70)
    } else {
        n
    };
    match random.below(4) {
        0 => {
            let bytes: Vec<u8> = (0..len.div_ceil(8))
                .map(|_| random.below(256) as u8)
                .collect();
            Bitmap::from_packed(len, &bytes).ok()
        }
        1 => {
            let some = (0..random.below(5)).map(|_| random.below(len + 1) as u64);
            Bitmap::from_positions(len, some.collect::<Vec<_>>()).ok()
        }
        _ => None,
    }
}

fn exclusions(n_queries: usize, n: usize, random: &mut Random<'_>) -> Option<Exclusions> {
    if random.below(3) > 0 {
        return None;
    }
    let lists = if random.below(8) == 0 {
        random.below(5)
    } else {
        n_queries
    };
    let (mut starts, mut positions) = (vec![0], Vec::new());
    for _ in 0..lists {
        for _ in 0..random.below(6) {
            positions.push(match random.below(6) {
                0 => random.edge(),
                _ => random.below(n + 2) as u64,
            });
        }
        starts.push(positions.len());
    }
    if random.below(16) == 0 {
        let at = random.below(starts.len());
        starts[at] = random.edge() as usize;
    }
    Exclusions::new(starts, positions).ok()
}

/// An index with everything, and with changes.
fn changed() -> LiveIndex {
    let (dim, d, n) = (24usize, 8, 90);
    let mut random = Random::seeded(7);
    let atoms: Vec<f32> = (0..dim * d)
        .map(|_| random.below(101) as f32 / 50.0 - 1.0)
        .collect();
    let mut codes = |n: usize| {
        let (mut indptr, mut latents, mut values) = (vec![0i64], Vec::new(), Vec::new());
        for _ in 0..n {
            for part in 0..3 {
                latents.push((8 * part + random.below(8)) as i64);
                values.push(random.below(63) as f32 / 16.0 - 2.0 + 1.0 / 64.0);
            }
            indptr.push(latents.len() as i64);
        }
        Codes::from_csr(&indptr, &latents, &values, dim).expect("sound codes")
    };
    let options = BuildOptions {
        metric: Metric::Cosine,
        values: ValueCoding::Int8,
        item_norm: ItemNorm::Decoded,
        reconstruction_cosine: None,
        modes: &[Mode::Sparse, Mode::Reconstructed, Mode::Dense],
        dictionary: Some(DictionaryData {
            rows: &atoms,
            d,
            mean: None,
        }),
        ids: None,
        metadata: None,
        postings: Some(40),
    };
    let control = Control::new();
    let clusters = ClusterOptions {
        clusters: Some(6),
        seed: 0,
        kernels: Kernels::best(),
    };
    let built = Index::build(codes(n).view(), &options, &control)
        .and_then(|index| index.with_clusters(&clusters, &control))
        .expect("sound codes");
    let live = LiveIndex::new(built);
    live.remove(&OwnedIds::Numbers(vec![0, 7, 40, 63, 64]))
        .expect("they are there");
    live.add(codes(20).view(), None, &control)
        .expect("they fit");
    live.remove(&OwnedIds::Numbers(vec![91, 95]))
        .expect("they are there");
    live
}
