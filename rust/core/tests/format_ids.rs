//! The MUSTs of the sections of ids: a sound file is broken in one way, and the reader names it.

use serde_json::{json, Value};
use sparse_retrieval::codes::Codes;
use sparse_retrieval::control::Control;
use sparse_retrieval::error::FormatProblem;
use sparse_retrieval::format::{parse, Bytes, ItemNorm};
use sparse_retrieval::index::{
    BuildOptions, Id, Ids, Index, Order, OwnedIds, Strings, Unsigned, ValueCoding,
};
use sparse_retrieval::search::{Metric, Mode};
use sparse_retrieval::Error;
use xxhash_rust::xxh3::xxh3_64;

const TEXTS: [&str; 3] = ["b", "", "ä"];

fn file(ids: Ids<'_>) -> Vec<u8> {
    let codes = Codes::from_csr(&[0, 1, 2, 3], &[0i64, 1, 2], &[1.0, 2.0, 3.0], 4).unwrap();
    let options = BuildOptions {
        metric: Metric::InnerProduct,
        values: ValueCoding::Float32,
        item_norm: ItemNorm::Decoded,
        reconstruction_cosine: None,
        modes: &[Mode::Sparse],
        dictionary: None,
        ids: Some(ids),
        metadata: None,
        postings: None,
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sound.sridx");
    let index = Index::build(codes.view(), &options, &Control::new()).unwrap();
    index.save(&path, &Control::new()).unwrap();
    std::fs::read(path).unwrap()
}

fn numbers() -> Vec<u8> {
    file(Ids::Numbers(&[30, 10, 20]))
}

fn strings() -> Vec<u8> {
    file(Ids::Strings(Strings::new(
        Unsigned::Wide(&[0, 1, 1, 3]),
        "bä".as_bytes(),
    )))
}

fn open(bytes: &[u8]) -> Result<Index, Error> {
    Index::from_file(parse(Bytes::copy_of(bytes)?)?)
}

fn problem(result: Result<impl std::fmt::Debug, Error>) -> FormatProblem {
    match result.expect_err("a broken file must be refused") {
        Error::Format { problem, .. } => problem,
        other => panic!("expected a format error, got {other}"),
    }
}

/// The file with its header and the bytes of sections changed, put together again.
fn changed(file: &[u8], change: impl Fn(&mut Value, &mut Vec<(String, Vec<u8>)>)) -> Vec<u8> {
    let length = u64::from_le_bytes(file[16..24].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&file[32..32 + length]).unwrap();
    let mut sections: Vec<(String, Vec<u8>)> = header["sections"]
        .as_array()
        .unwrap()
        .iter()
        .map(|section| {
            let start = section["offset"].as_u64().unwrap() as usize;
            let end = start + section["length"].as_u64().unwrap() as usize;
            let name = section["name"].as_str().unwrap().to_owned();
            (name, file[start..end].to_vec())
        })
        .collect();
    change(&mut header, &mut sections);
    let entries: Vec<Value> = sections
        .iter()
        .map(|(name, bytes)| {
            let mut entry = header["sections"]
                .as_array()
                .unwrap()
                .iter()
                .find(|entry| entry["name"] == *name)
                .unwrap()
                .clone();
            entry["length"] = json!(bytes.len());
            entry["checksum"] = json!(format!("{:016x}", xxh3_64(bytes)));
            entry
        })
        .collect();
    header["sections"] = json!(entries);
    let mut text = Vec::new();
    for _ in 0..4 {
        let mut end = 32 + text.len();
        for (at, (_, bytes)) in sections.iter().enumerate() {
            let start = end.next_multiple_of(64);
            header["sections"][at]["offset"] = json!(start);
            end = start + bytes.len();
        }
        text = serde_json::to_vec(&header).unwrap();
    }
    let mut out = file[..16].to_vec();
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(&xxh3_64(&text).to_le_bytes());
    out.extend_from_slice(&text);
    for (_, bytes) in &sections {
        out.resize(out.len().next_multiple_of(64), 0);
        out.extend_from_slice(bytes);
    }
    out
}

fn without(file: &[u8], name: &str) -> Vec<u8> {
    changed(file, |_, sections| {
        sections.retain(|section| section.0 != name)
    })
}

fn with_bytes(file: &[u8], name: &str, change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    changed(file, |_, sections| {
        let section = sections.iter_mut().find(|section| section.0 == name);
        change(&mut section.unwrap().1);
    })
}

#[test]
fn ids_of_both_kinds_are_found_in_a_file() {
    let index = open(&changed(&numbers(), |_, _| {})).unwrap();
    index.verify(&Control::new()).unwrap();
    for (row, id) in [30, 10, 20].into_iter().enumerate() {
        assert_eq!(index.position(Id::Number(id)), Some(row));
        assert_eq!(index.position(Id::Number(id + 1)), None);
    }
    assert_eq!(index.position(Id::Text("30")), None);
    let index = open(&strings()).unwrap();
    index.verify(&Control::new()).unwrap();
    for (row, text) in TEXTS.into_iter().enumerate() {
        assert_eq!(index.position(Id::Text(text)), Some(row));
    }
    assert_eq!(index.position(Id::Text("c")), None);
    assert_eq!(index.position(Id::Number(0)), None);
}

#[test]
fn a_file_without_an_order_of_ids_as_early_ones_is_searched_all_the_same() {
    for (file, id) in [(numbers(), Id::Number(10)), (strings(), Id::Text(""))] {
        let index = open(&without(&file, "id_order")).unwrap();
        index.verify(&Control::new()).unwrap();
        assert_eq!(index.position(id), Some(1));
    }
}

#[test]
fn strings_need_both_of_their_sections_and_go_with_no_numbers() {
    for name in ["id_offsets", "id_bytes"] {
        let problem = problem(open(&without(&strings(), name)));
        assert_eq!(
            problem,
            FormatProblem::MissingSection {
                section: name.into()
            }
        );
    }
    let both = changed(&strings(), |header, sections| {
        let entry = json!({"name": "ids", "dtype": "i64", "shape": [3], "required": true});
        header["sections"].as_array_mut().unwrap().push(entry);
        sections.push(("ids".into(), vec![0; 24]));
    });
    assert!(matches!(
        problem(open(&both)),
        FormatProblem::DuplicateSection { .. }
    ));
}

#[test]
fn an_order_needs_ids() {
    assert!(matches!(
        problem(open(&without(&numbers(), "ids"))),
        FormatProblem::MissingSection { section } if section == "ids"
    ));
}

#[test]
fn shapes_and_dtypes_of_ids_are_checked() {
    for (file, name, field, value) in [
        (strings(), "id_offsets", "shape", json!([3])),
        (strings(), "id_offsets", "dtype", json!("i64")),
        (strings(), "id_bytes", "shape", json!([4])),
        (strings(), "id_order", "shape", json!([4])),
        (numbers(), "id_order", "dtype", json!("f32")),
    ] {
        let broken = changed(&file, |header, _| {
            for entry in header["sections"].as_array_mut().unwrap() {
                if entry["name"] == name {
                    entry[field] = value.clone();
                }
            }
        });
        assert!(
            matches!(problem(open(&broken)), FormatProblem::SectionShape { section, .. }
                if section == name),
            "{name} {field}"
        );
    }
}

#[test]
fn verify_finds_ids_that_are_not_as_they_say_and_look_ups_survive_them() {
    let u32s = |numbers: [u32; 3]| numbers.map(u32::to_le_bytes).concat();
    let claims_to_ascend = changed(&numbers(), |header, _| header["ids_ascend"] = json!(true));
    let cases = [
        ("do not ascend", claims_to_ascend),
        (
            "not the next by id",
            with_bytes(&numbers(), "id_order", |b| *b = u32s([0, 1, 2])),
        ),
        (
            "not the next by id",
            with_bytes(&numbers(), "id_order", |b| *b = u32s([1, 2, 9])),
        ),
        (
            "not the next by id",
            with_bytes(&strings(), "id_order", |b| *b = u32s([1, 1, 2])),
        ),
        (
            "id 30 is given",
            with_bytes(&numbers(), "ids", |b| b[8] = 30),
        ),
        ("UTF-8", with_bytes(&strings(), "id_bytes", |b| b[1] = 0xff)),
        (
            "spans the bytes",
            with_bytes(&strings(), "id_offsets", |b| b[4] = 0xff),
        ),
        (
            "ids end at byte",
            with_bytes(&strings(), "id_offsets", |b| b[12] = 1),
        ),
    ];
    for (expected, broken) in cases {
        let index = open(&broken).unwrap();
        let problem = problem(index.verify(&Control::new())).to_string();
        assert!(problem.contains(expected), "{expected}: {problem}");
        let ids = index.all_ids();
        for row in 0..3 {
            let mut owned = OwnedIds::none(ids.are_strings());
            owned.push(ids, row);
            if owned.get(0).to_string() != ids.shown(row) {
                continue; // no text
            }
            let found = index.position(owned.get(0));
            assert!(found.is_none_or(|found| ids.shown(found) == ids.shown(row)));
        }
    }
}

#[test]
fn the_writer_of_many_ids_says_where_two_are_the_same() {
    let ids = Ids::Numbers(&[4, 5, 4]);
    let error = sparse_retrieval::index::check_ids(ids, 3).unwrap_err();
    assert!(error.to_string().contains("items 0 and 2"), "{error}");
    assert!(matches!(
        ids.find(Id::Number(5), Order::Ascending),
        None | Some(1)
    ));
}
