//! What is added stands in few chunks, is copied rarely, and is found as in an index built anew.

use std::collections::BTreeSet;

use sparse_retrieval::codes::Codes;
use sparse_retrieval::control::Control;
use sparse_retrieval::format::ItemNorm;
use sparse_retrieval::index::{BuildOptions, Id, Ids, Index, LiveIndex, OwnedIds, ValueCoding};
use sparse_retrieval::search::{Metric, Mode, Queries, Request};

/// Codes of two nonzeros whose values are those of their ids.
fn codes(ids: &[i64]) -> Codes {
    let (mut indptr, mut latents, mut values) = (vec![0i64], Vec::new(), Vec::new());
    for &id in ids {
        latents.extend([id % 7, 7 + id % 11]);
        values.extend([(id % 101) as f32 - 50.5, (id % 13) as f32 + 0.5]);
        indptr.push(latents.len() as i64);
    }
    Codes::from_csr(&indptr, &latents, &values, 18).unwrap()
}

fn built(ids: &[i64]) -> Index {
    let options = BuildOptions {
        metric: Metric::InnerProduct,
        values: ValueCoding::Int8,
        item_norm: ItemNorm::Decoded,
        reconstruction_cosine: None,
        modes: &[Mode::Sparse],
        dictionary: None,
        ids: Some(Ids::Numbers(ids)),
        metadata: None,
        postings: None,
    };
    Index::build(codes(ids).view(), &options, &Control::new()).unwrap()
}

fn found(index: &LiveIndex) -> Vec<Vec<(i64, u64)>> {
    let asked = codes(&[3, 77, 5_000_001]);
    let queries = Queries::Codes(asked.view());
    let request = Request::new(Mode::Sparse, 40);
    let snapshot = index.snapshot();
    let hits = snapshot
        .search(&queries, &request, &Control::new())
        .unwrap();
    let named = |hits: &Vec<_>| {
        let hits = hits.iter();
        hits.map(|hit: &sparse_retrieval::search::Hit| {
            (
                snapshot.id_number(hit.position as usize),
                hit.score.to_bits(),
            )
        })
        .collect()
    };
    hits.iter().map(named).collect()
}

#[test]
fn additions_of_any_size_answer_as_an_index_built_anew_and_stand_in_few_chunks() {
    let control = Control::new();
    let mut expected: Vec<i64> = (0..500).collect();
    let index = LiveIndex::new(built(&expected));
    let mut next = 500i64;
    let sizes = [
        1, 3000, 1, 1, 2500, 9000, 1, 700, 6000, 40, 1, 20_000, 5000, 3, 4096, 1,
    ];
    for (step, &size) in sizes.iter().enumerate() {
        let new: Vec<i64> = (next..next + size)
            .map(|id| 1000 + id * 7919 % 1_000_003)
            .collect();
        next += size;
        index
            .add(codes(&new).view(), Some(Ids::Numbers(&new)), &control)
            .unwrap();
        expected.extend(&new);
        // some of every part, and, now and then, most of what came last
        let mut gone: BTreeSet<i64> = expected.iter().copied().skip(step).step_by(97).collect();
        if step % 3 == 1 {
            gone.extend(&new[new.len() / 4..]);
        }
        let gone: Vec<i64> = gone.into_iter().collect();
        index.remove(&OwnedIds::Numbers(gone.clone())).unwrap();
        let is_gone: BTreeSet<i64> = gone.into_iter().collect();
        expected.retain(|id| !is_gone.contains(id));

        let snapshot = index.snapshot();
        let added = snapshot.n_added();
        let most = 2 + (added / 4096 + 1).ilog2() as usize;
        let chunks = snapshot.added().count();
        assert!(chunks <= most, "{chunks} chunks of {added} rows");
        let copied: usize = snapshot.added().map(Index::len).sum();
        assert!(copied <= 2 * added, "{copied} rows are kept for {added}");
        let OwnedIds::Numbers(ids) = snapshot.ids().unwrap() else {
            panic!("ids are numbers")
        };
        assert_eq!(ids, expected);
        let positions: Vec<u64> = snapshot.positions().map(|at| at as u64).collect();
        let ranks: Vec<u64> = (0..positions.len() as u64).collect();
        assert_eq!(snapshot.ranks(&positions).unwrap(), ranks);
        let some: Vec<u64> = positions.iter().copied().skip(step).step_by(13).collect();
        let OwnedIds::Numbers(of_some) = snapshot.ids_at(&some).unwrap() else {
            panic!("ids are numbers")
        };
        let every: Vec<i64> = expected.iter().copied().skip(step).step_by(13).collect();
        assert_eq!(of_some, every);
        assert!(snapshot
            .ranks(&[snapshot.positions().last().unwrap() as u64 + 1])
            .is_err());
        for (&id, &position) in expected.iter().zip(&positions).step_by(31) {
            assert_eq!(snapshot.position(Id::Number(id)), Some(position as usize));
        }
        for &id in is_gone.iter().step_by(11) {
            assert_eq!(snapshot.position(Id::Number(id)), None);
        }
        if step % 4 == 3 {
            assert_eq!(found(&index), found(&LiveIndex::new(built(&expected))));
        }
    }
}

#[test]
fn a_moment_that_is_kept_stays_what_it_was() {
    let control = Control::new();
    let ids: Vec<i64> = (0..300).collect();
    let index = LiveIndex::new(built(&ids));
    let mut moments = Vec::new();
    for step in 0..40i64 {
        let new: Vec<i64> = (0..200).map(|i| 1000 + 200 * step + i).collect();
        index
            .add(codes(&new).view(), Some(Ids::Numbers(&new)), &control)
            .unwrap();
        index
            .remove(&OwnedIds::Numbers(vec![step, new[7]]))
            .unwrap();
        let frozen = index.frozen();
        let answers = found(&frozen);
        moments.push((frozen, answers));
    }
    for (frozen, answers) in moments {
        assert_eq!(found(&frozen), answers);
    }
}
