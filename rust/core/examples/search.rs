//! From embeddings to answers in Rust alone: learn a dictionary, encode, write, open, search.
//!
//!     cargo run --release -p sparse_retrieval --example search
//!
//! The embeddings are made up: points around some centres, since rows without structure can't
//! be compressed by anything. `cargo test` runs it too.

use std::path::Path;

use sparse_retrieval::codes::CodesView;
use sparse_retrieval::control::Control;
use sparse_retrieval::format::ItemNorm;
use sparse_retrieval::index::{BuildOptions, DictionaryData, Index, ValueCoding};
use sparse_retrieval::pursuit::encoder::{Encoder, Method, Options};
use sparse_retrieval::pursuit::gram::Precision;
use sparse_retrieval::pursuit::update::Learner;
use sparse_retrieval::search::{Metric, Mode, Queries, Request};
use sparse_retrieval::{Error, Result};

const D: usize = 32;
const ITEMS: usize = 2_000;
const QUERIES: usize = 20;
const ATOMS: usize = 128;
const DEPTH: usize = 10;
const MEMORY_LIMIT_BYTES: u64 = 1 << 30;
const PURSUIT: Options = Options {
    k: 8,
    method: Method::Pursuit { refit_every: 8 },
    normalise: true,
    first_row: 0,
};

fn main() -> Result<()> {
    let folder =
        tempfile::tempdir().map_err(|source| Error::io("make a folder", Path::new("."), source))?;
    let recall = run(&folder.path().join("items.sridx"))?;
    println!("recall@{DEPTH} {recall:.3} against a scan of the embeddings");
    Ok(())
}

/// Builds and asks an index at `path`; returns the recall of what it finds.
fn run(path: &Path) -> Result<f64> {
    let control = Control::new();
    let rows = embeddings(ITEMS + QUERIES);
    let (items, queries) = rows.split_at(ITEMS * D);

    let encoder = learnt(items, 4, &control)?;
    let codes = encoder.encode(items, PURSUIT, &control)?;
    let codes = CodesView::new(&codes.indptr, &codes.latents, &codes.values, encoder.len())?;
    let options = BuildOptions {
        metric: Metric::Cosine,
        values: ValueCoding::from_bits(4.0)?,
        item_norm: ItemNorm::Original,
        reconstruction_cosine: None,
        modes: &[Mode::Dense],
        dictionary: Some(DictionaryData {
            rows: encoder.atoms(),
            d: D,
            mean: None,
        }),
        ids: None,
        metadata: None,
        postings: None,
    };
    Index::build(codes, &options, &control)?.save(path, &control)?;

    let index = Index::open(path, true, &control)?;
    println!(
        "{} items of {} bytes ({} in float32)",
        index.len(),
        index.bytes_per_item(),
        D * 4
    );
    let wide: Vec<f64> = queries.iter().map(|&value| f64::from(value)).collect();
    let asked = Queries::Dense { rows: &wide, d: D };
    let found = index.search(&asked, &Request::new(Mode::Dense, DEPTH), &control)?;
    let hits: usize = (found.iter().zip(queries.chunks_exact(D)))
        .map(|(hits, query)| {
            let truth = scanned(items, query);
            hits.iter()
                .filter(|hit| truth.contains(&(hit.position as usize)))
                .count()
        })
        .sum();
    Ok(hits as f64 / (QUERIES * DEPTH) as f64)
}

/// Some rounds of pursuit and closed-form update, from the first items.
fn learnt(items: &[f32], rounds: usize, control: &Control) -> Result<Encoder> {
    let make = |atoms: &[f32]| Encoder::new(atoms, D, Precision::Int8, MEMORY_LIMIT_BYTES, control);
    let mut encoder = make(&items[..ATOMS * D])?;
    for round in 0..rounds {
        let mut learner = Learner::new(&encoder, MEMORY_LIMIT_BYTES)?;
        learner.add(&encoder, items, PURSUIT, control)?;
        let update = learner.finish(&encoder, 0.01, control)?;
        println!("round {round}: cosine {:.4}", update.cosine);
        encoder = make(&update.atoms)?;
    }
    Ok(encoder)
}

/// Positions of the items of largest inner product, by looking at every one.
fn scanned(items: &[f32], query: &[f32]) -> Vec<usize> {
    let mut scored: Vec<(f32, usize)> = items
        .chunks_exact(D)
        .enumerate()
        .map(|(i, item)| (item.iter().zip(query).map(|(a, b)| a * b).sum(), i))
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    scored.truncate(DEPTH);
    scored.into_iter().map(|(_, i)| i).collect()
}

/// `n` unit rows around 50 centres.
fn embeddings(n: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut noise = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let centres: Vec<f32> = (0..50 * D).map(|_| noise()).collect();
    let mut rows = Vec::with_capacity(n * D);
    for i in 0..n {
        let centre = &centres[i % 50 * D..][..D];
        let row: Vec<f32> = centre.iter().map(|value| value + 0.4 * noise()).collect();
        let norm = row.iter().map(|value| value * value).sum::<f32>().sqrt();
        rows.extend(row.iter().map(|value| value / norm));
    }
    rows
}

#[test]
fn the_example_finds_most_neighbours() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let recall = run(&folder.path().join("items.sridx")).expect("sound input");
    // of 2,000 items 10 at random would be 0.005
    assert!(recall > 0.6, "{recall}");
}
