//! One test for each MUST of `src/format/README.md`: a sound file is broken in one way, and the
//! reader names that way. Each test breaks the file by bytes or by its header's JSON.

use std::fs;

use serde_json::{json, Value};
use sparse_retrieval::codes::{Codes, MagnitudeBits};
use sparse_retrieval::control::Control;
use sparse_retrieval::error::FormatProblem;
use sparse_retrieval::format::{parse, Bytes, ItemNorm, ALIGNMENT, MAGIC, PREFIX_BYTES};
use sparse_retrieval::index::{BuildOptions, DictionaryData, Ids, Index, ValueCoding};
use sparse_retrieval::search::{Metric, Mode};
use sparse_retrieval::Error;
use xxhash_rust::xxh3::xxh3_64;

/// The bytes of a sound file with every section but `row_offsets`.
fn sound_file() -> Vec<u8> {
    build(&[0, 2, 4], &[1, 3, 0, 2], ValueCoding::Int8)
}

/// The bytes of a sound file whose rows have no common width.
fn file_with_offsets() -> Vec<u8> {
    let mut indptr = vec![0; 20];
    indptr.push(4);
    build(&indptr, &[0, 1, 2, 3], ValueCoding::Int8)
}

/// The bytes of a sound file with rank-coded values.
fn ranked_file() -> Vec<u8> {
    let values = ValueCoding::Ranked(MagnitudeBits::Uniform(2));
    build(&[0, 2, 4], &[1, 3, 0, 2], values)
}

/// Complete rows, a bit of magnitude a latent.
fn complete_file() -> Vec<u8> {
    let values = ValueCoding::complete_from_bits(2.0).unwrap();
    build(&[0, 2, 4], &[1, 3, 0, 2], values)
}

fn build(indptr: &[i64], latents: &[i64], values: ValueCoding) -> Vec<u8> {
    let codes = Codes::from_csr(indptr, latents, &[1.0, 0.25, -2.0, 0.5], 4).unwrap();
    let atoms: Vec<f32> = (0..12).map(|i| i as f32 / 10.0).collect();
    let ids: Vec<i64> = (0..indptr.len() as i64 - 1).map(|i| i * 10).collect();
    let options = BuildOptions {
        metric: Metric::Cosine,
        values,
        item_norm: ItemNorm::Decoded,
        reconstruction_cosine: None,
        modes: &Mode::ALL,
        dictionary: Some(DictionaryData {
            rows: &atoms,
            d: 3,
            mean: None,
        }),
        ids: Some(Ids::Numbers(&ids)),
        metadata: Some("{\"a\": 1}"),
        postings: None,
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sound.sridx");
    let index = Index::build(codes.view(), &options, &Control::new()).unwrap();
    index.save(&path, &Control::new()).unwrap();
    fs::read(path).unwrap()
}

/// The file as an index, from bytes aligned as a map's are.
fn open(bytes: &[u8]) -> Result<Index, Error> {
    Index::from_file(parse(Bytes::copy_of(bytes)?)?)
}

fn problem_of(result: Result<impl std::fmt::Debug, Error>) -> FormatProblem {
    match result.expect_err("a broken file must be refused") {
        Error::Format { problem, .. } => problem,
        other => panic!("expected a format error, got {other}"),
    }
}

fn refused(bytes: &[u8]) -> FormatProblem {
    problem_of(open(bytes))
}

/// The file with its header changed, and everything after it left where the header's new
/// length puts it. Checksums of the header are made right again.
fn with_header(file: &[u8], change: impl Fn(&mut Value)) -> Vec<u8> {
    let length = u64::from_le_bytes(file[16..24].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&file[32..32 + length]).unwrap();
    let old = header["sections"].clone();
    change(&mut header);
    // keep the sections where they are, if need be by blanks inside the header
    let body = old[0]["offset"].as_u64().unwrap() as usize;
    let mut json = serde_json::to_vec(&header).unwrap();
    let room = body - PREFIX_BYTES as usize;
    assert!(json.len() <= room, "the changed header needs more room");
    if json.len() < length {
        json.resize(length, b' ');
    } else if json.len() > length {
        // still before the first section, whose offset stays the next multiple of 64 only if
        // no boundary is crossed
        assert_eq!(
            (PREFIX_BYTES + json.len() as u64).next_multiple_of(ALIGNMENT),
            body as u64
        );
    }
    let mut out = file.to_vec();
    out[32..body].fill(0);
    out[32..32 + json.len()].copy_from_slice(&json);
    out[16..24].copy_from_slice(&(json.len() as u64).to_le_bytes());
    out[24..32].copy_from_slice(&xxh3_64(&json).to_le_bytes());
    out
}

fn section_at(header: &Value, name: &str) -> usize {
    header["sections"]
        .as_array()
        .unwrap()
        .iter()
        .position(|section| section["name"] == name)
        .unwrap()
}

/// Sets a field of a section.
fn with_section(file: &[u8], name: &str, field: &str, value: Value) -> Vec<u8> {
    with_header(file, |header| {
        let at = section_at(header, name);
        assert!(header["sections"][at].get(field).is_some());
        header["sections"][at][field] = value.clone();
    })
}

fn header_reason(problem: FormatProblem) -> String {
    match problem {
        FormatProblem::Header { reason, .. } => reason,
        other => panic!("expected a header error, got {other}"),
    }
}

#[test]
fn a_sound_file_opens_and_verifies() {
    for file in [
        sound_file(),
        file_with_offsets(),
        ranked_file(),
        complete_file(),
    ] {
        let index = open(&file).unwrap();
        index.verify(&Control::new()).unwrap();
    }
}

#[test]
fn complete_rows_of_another_width_or_with_too_many_bits_are_refused() {
    let file = complete_file();
    let narrow = with_header(&file, |header| header["rows"]["width"] = 2.into());
    let reason = header_reason(refused(&narrow));
    assert!(reason.contains("expected rows of all"), "{reason}");
    let many = with_header(&file, |header| {
        header["rows"]["magnitude_bits"] = serde_json::json!([9, 9, 12, 9]);
    });
    let reason = header_reason(refused(&many));
    assert!(reason.contains("0 to 11 a rank"), "{reason}");
    // what is complete cannot be read as if it were not, nor the other way round
    for (file, bits) in [(&file, 3), (&ranked_file(), 0)] {
        let other = with_header(file, |header| header["rows"]["latent_bits"] = bits.into());
        header_reason(refused(&other));
    }
}

#[test]
fn the_unchanged_header_passes_so_that_each_change_is_what_is_refused() {
    let file = sound_file();
    let same = with_header(&file, |_| {});
    open(&same).unwrap();
}

#[test]
fn rejects_another_magic() {
    let mut file = sound_file();
    file[0] = b'X';
    assert!(matches!(
        refused(&file),
        FormatProblem::Magic {
            expected: MAGIC,
            ..
        }
    ));
}

#[test]
fn rejects_fewer_bytes_than_a_prefix() {
    let file = sound_file();
    for length in 0..PREFIX_BYTES as usize {
        let problem = refused(&file[..length]);
        assert!(
            matches!(problem, FormatProblem::TooShort { .. }),
            "{length}: {problem}"
        );
    }
}

#[test]
fn rejects_a_future_version_and_says_which_it_reads() {
    let mut file = sound_file();
    file[8] = 2;
    assert_eq!(
        refused(&file),
        FormatProblem::Version {
            got: 2,
            expected: 1
        }
    );
}

#[test]
fn rejects_a_reserved_word_that_is_not_zero() {
    let mut file = sound_file();
    file[12] = 1;
    assert!(header_reason(refused(&file)).contains("reserved"));
}

#[test]
fn rejects_a_header_that_is_too_short_too_long_or_past_the_end() {
    for length in [0u64, 1, 65_537, u64::MAX, 1 << 40] {
        let mut file = sound_file();
        file[16..24].copy_from_slice(&length.to_le_bytes());
        let problem = refused(&file);
        assert!(
            matches!(problem, FormatProblem::HeaderLength { got, .. } if got == length),
            "{problem}"
        );
    }
}

#[test]
fn rejects_a_header_whose_checksum_differs() {
    let mut file = sound_file();
    file[24] ^= 1;
    assert!(matches!(
        refused(&file),
        FormatProblem::HeaderChecksum { .. }
    ));
}

#[test]
fn rejects_a_header_that_is_not_json_or_lacks_a_key() {
    let file = sound_file();
    for key in ["writer", "rows", "metric", "modes", "sections"] {
        let broken = with_header(&file, |header| {
            header.as_object_mut().unwrap().remove(key);
        });
        assert!(header_reason(refused(&broken)).contains(key), "{key}");
    }
}

#[test]
fn rejects_rows_that_are_not_as_specified() {
    let file = sound_file();
    for (key, value) in [
        ("dim", json!(0)),
        ("dim", json!(1u64 << 31)),
        ("latent_bits", json!(32)),
        ("values", json!("int4")),
        ("width", json!(0)),
        ("count", json!(-1)),
    ] {
        let broken = with_header(&file, |header| header["rows"][key] = value.clone());
        let problem = refused(&broken);
        assert!(
            matches!(problem, FormatProblem::Header { .. }),
            "{key}: {problem}"
        );
    }
}

#[test]
fn rejects_rank_coded_rows_that_are_not_as_specified() {
    let file = ranked_file();
    for (key, value) in [
        ("latent_bits", json!(3)),
        ("latent_bits", json!(16)),
        ("magnitude_bits", json!(null)),
        ("magnitude_bits", json!([2])),
        ("magnitude_bits", json!([2, 8])),
        ("width", json!(null)),
        ("values", json!("int8")),
    ] {
        let broken = with_header(&file, |header| header["rows"][key] = value.clone());
        let problem = refused(&broken);
        assert!(
            matches!(problem, FormatProblem::Header { .. }),
            "{key}: {problem}"
        );
    }
    for (key, value) in [
        ("count", json!(3)),
        ("count", json!(u64::MAX)),
        ("magnitude_bits", json!([2, 1])),
        ("magnitude_bits", json!([7, 7])),
    ] {
        let broken = with_header(&file, |header| header["rows"][key] = value.clone());
        let problem = refused(&broken);
        assert!(
            matches!(problem, FormatProblem::SectionShape { .. }),
            "{key}: {problem}"
        );
    }
}

#[test]
fn rejects_half_precision_scales_without_a_unit_and_units_of_other_types() {
    for (file, unit) in [
        (ranked_file(), json!(null)),
        (ranked_file(), json!(0.0)),
        (ranked_file(), json!(-1.0)),
        (sound_file(), json!(1.0)),
    ] {
        let broken = with_header(&file, |header| {
            let at = section_at(header, "scales_code");
            header["sections"][at]["unit"] = unit.clone();
            header["writer"] = json!("x");
        });
        let problem = refused(&broken);
        assert!(problem.to_string().contains("unit"), "{unit}: {problem}");
    }
}

#[test]
fn rejects_levels_that_are_not_finite() {
    let broken = with_content(&ranked_file(), "levels", |b| {
        b[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    assert!(header_reason(refused(&broken)).contains("finite levels"));
}

#[test]
fn verify_finds_damage_inside_rank_coded_rows_and_search_survives_it() {
    let file = ranked_file();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        // 2 bits of latent, then sign and 2 bits: rank 1 starts at bit 5
        (
            "more than once",
            with_content(&file, "rows", |b| {
                b[0] = (b[0] & 0x1F) | (b[0] & 3) << 5;
            }),
        ),
        (
            "finite number of at least 0",
            with_content(&file, "scales_code", |b| b[..2].fill(0xFF)),
        ),
    ];
    for (expected, broken) in cases {
        let index = open(&broken).unwrap();
        let problem = problem_of(index.verify(&Control::new()));
        assert!(
            problem.to_string().contains(expected),
            "{expected}: {problem}"
        );
        search_all_modes(&index);
    }
}

#[test]
fn rejects_counts_that_do_not_fit_the_bytes_of_the_rows() {
    let file = sound_file();
    for (key, value) in [
        ("count", json!(3)),
        ("count", json!(u64::MAX)),
        ("width", json!(3)),
        ("width", json!(u64::MAX)),
    ] {
        let broken = with_header(&file, |header| header["rows"][key] = value.clone());
        let problem = refused(&broken);
        assert!(
            matches!(problem, FormatProblem::SectionShape { .. }),
            "{key}: {problem}"
        );
    }
}

#[test]
fn rejects_an_unknown_metric_or_mode_and_modes_that_are_empty() {
    let file = sound_file();
    let metric = with_header(&file, |header| header["metric"] = json!("cosmic"));
    assert!(header_reason(refused(&metric)).contains("cosmic"));
    let none = with_header(&file, |header| header["modes"] = json!({}));
    assert!(header_reason(refused(&none)).contains("empty"));
    let unknown = with_header(&file, |header| header["modes"] = json!({"fast": null}));
    assert!(header_reason(refused(&unknown)).contains("fast"));
}

#[test]
fn rejects_scales_other_than_those_that_metric_and_values_ask_for() {
    let file = sound_file();
    let broken = with_header(&file, |header| header["modes"]["sparse"] = json!(null));
    assert!(header_reason(refused(&broken)).contains("modes.sparse"));
}

#[test]
fn rejects_a_section_that_appears_twice() {
    let broken = with_section(
        &sound_file(),
        "scales_embedding",
        "name",
        json!("scales_code"),
    );
    assert_eq!(
        refused(&broken),
        FormatProblem::DuplicateSection {
            section: "scales_code".into()
        }
    );
}

#[test]
fn rejects_a_section_that_is_misaligned_overlaps_or_leaves_a_hole() {
    let file = sound_file();
    for shift in [-64i64, -1, 1, 64] {
        let broken = with_header(&file, |header| {
            let at = section_at(header, "rows");
            let offset = header["sections"][at]["offset"].as_i64().unwrap();
            header["sections"][at]["offset"] = json!(offset + shift);
        });
        let problem = refused(&broken);
        assert!(
            matches!(&problem, FormatProblem::SectionOffset { section, .. } if section == "rows"),
            "{shift}: {problem}"
        );
    }
}

#[test]
fn rejects_a_section_past_the_end_even_where_its_end_overflows() {
    let file = sound_file();
    for length in [1u64 << 40, u64::MAX] {
        let broken = with_section(&file, "metadata", "length", json!(length));
        let problem = refused(&broken);
        assert!(
            matches!(problem, FormatProblem::SectionPastEnd { .. }),
            "{problem}"
        );
    }
}

#[test]
fn rejects_a_file_that_is_longer_or_shorter_than_its_sections() {
    let mut file = sound_file();
    file.push(0);
    assert!(matches!(refused(&file), FormatProblem::FileLength { .. }));
    file.truncate(file.len() - 2);
    assert!(matches!(
        refused(&file),
        FormatProblem::SectionPastEnd { .. }
    ));
}

#[test]
fn rejects_every_truncation() {
    for file in [sound_file(), file_with_offsets(), ranked_file()] {
        for length in 0..file.len() {
            refused(&file[..length]);
        }
    }
}

#[test]
fn rejects_shapes_and_dtypes_that_do_not_fit_a_section() {
    let file = sound_file();
    for (section, field, value) in [
        ("scales_code", "dtype", json!("u32")),
        ("scales_code", "shape", json!([3])),
        ("scales_code", "shape", json!([2, 1])),
        ("dictionary", "shape", json!([3, 4])),
        ("dictionary", "shape", json!([4, 0])),
        ("dictionary", "shape", json!([4, 1u64 << 62])),
        ("ids", "dtype", json!("f32")),
        ("rows", "dtype", json!("f16")),
    ] {
        let broken = with_section(&file, section, field, value.clone());
        let problem = refused(&broken);
        assert!(
            matches!(&problem, FormatProblem::SectionShape { section: s, .. } if s == section),
            "{section} {field} {value}: {problem}"
        );
    }
}

#[test]
fn rejects_a_checksum_that_is_no_checksum() {
    for text in [
        "",
        "0123456789ABCDEF",
        "0123456789abcde",
        "0x23456789abcdef",
    ] {
        let broken = with_section(&sound_file(), "rows", "checksum", json!(text));
        assert!(
            header_reason(refused(&broken)).contains("checksum"),
            "{text}"
        );
    }
}

#[test]
fn rejects_an_unknown_section_that_is_required_and_skips_one_that_is_not() {
    let file = sound_file();
    let renamed = with_section(&file, "metadata", "name", json!("whatever"));
    let index = open(&renamed).unwrap();
    assert_eq!(index.metadata(), None);
    index.verify(&Control::new()).unwrap();

    let required = with_header(&file, |header| {
        let at = section_at(header, "metadata");
        header["sections"][at]["name"] = json!("whatever");
        header["sections"][at]["required"] = json!(true);
    });
    assert_eq!(
        refused(&required),
        FormatProblem::UnknownSection {
            section: "whatever".into()
        }
    );
}

#[test]
fn rejects_a_missing_section() {
    for name in ["rows", "scales_code", "scales_embedding", "dictionary"] {
        let broken = with_header(&sound_file(), |header| {
            let at = section_at(header, name);
            header["sections"][at]["name"] = json!("x");
            header["sections"][at]["required"] = json!(false);
        });
        let problem = refused(&broken);
        assert_eq!(
            problem,
            FormatProblem::MissingSection {
                section: name.into()
            }
        );
    }
    let broken = with_header(&file_with_offsets(), |header| {
        let at = section_at(header, "row_offsets");
        header["sections"][at]["name"] = json!("x");
        header["sections"][at]["required"] = json!(false);
    });
    assert_eq!(
        refused(&broken),
        FormatProblem::MissingSection {
            section: "row_offsets".into()
        }
    );
}

#[test]
fn unknown_keys_of_the_header_are_ignored() {
    let file = with_header(&sound_file(), |header| {
        header["writer"] = json!("x");
        header["new"] = json!([1, 2]);
    });
    open(&file).unwrap();
}

#[test]
fn verify_finds_a_flipped_bit_in_any_byte_that_opening_does_not_refuse() {
    for file in [sound_file(), ranked_file()] {
        flip_every_byte(&file);
    }
}

fn flip_every_byte(file: &[u8]) {
    for at in 0..file.len() {
        let mut flipped = file.to_vec();
        flipped[at] ^= 1 << (at % 8);
        let outcome = open(&flipped).and_then(|index| index.verify(&Control::new()));
        problem_of(outcome);
    }
}

/// Changes bytes of a section and makes its checksum right again, as a hostile writer would.
fn with_content(file: &[u8], name: &str, change: impl Fn(&mut [u8])) -> Vec<u8> {
    let length = u64::from_le_bytes(file[16..24].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&file[32..32 + length]).unwrap();
    let entry = header["sections"][section_at(&header, name)].clone();
    let start = entry["offset"].as_u64().unwrap() as usize;
    let end = start + entry["length"].as_u64().unwrap() as usize;
    let mut out = file.to_vec();
    change(&mut out[start..end]);
    let checksum = format!("{:016x}", xxh3_64(&out[start..end]));
    with_section(&out, name, "checksum", json!(checksum))
}

#[test]
fn verify_finds_content_that_no_writer_makes_and_search_survives_it() {
    let file = sound_file();
    let nan = f32::NAN.to_le_bytes();
    let minus = (-1.0f32).to_le_bytes();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        // width 2: latents at 0 and 2, values at 4 and 5
        (
            "latent 65535",
            with_content(&file, "rows", |b| b[..2].fill(0xFF)),
        ),
        (
            "more than once",
            with_content(&file, "rows", |b| b.copy_within(0..2, 2)),
        ),
        ("magnitude", with_content(&file, "rows", |b| b.swap(4, 5))),
        ("magnitude", with_content(&file, "rows", |b| b[4] = 0x80)),
        (
            "scale NaN",
            with_content(&file, "scales_code", |b| b[..4].copy_from_slice(&nan)),
        ),
        (
            "scale -1",
            with_content(&file, "scales_embedding", |b| {
                b[..4].copy_from_slice(&minus)
            }),
        ),
        (
            "NaN",
            with_content(&file, "dictionary", |b| b[4..8].copy_from_slice(&nan)),
        ),
        (
            "id 0 is given",
            with_content(&file, "ids", |b| b[8..].fill(0)),
        ),
        (
            "the id -1",
            with_content(&file, "ids", |b| b[8..].fill(0xFF)),
        ),
        ("not JSON", with_content(&file, "metadata", |b| b[0] = b'x')),
    ];
    for (expected, broken) in cases {
        let index = open(&broken).unwrap();
        let problem = problem_of(index.verify(&Control::new()));
        assert!(
            problem.to_string().contains(expected),
            "{expected}: {problem}"
        );
        search_all_modes(&index);
    }
}

#[test]
fn verify_finds_offsets_that_fall_or_leave_the_rows_and_search_survives_them() {
    let file = file_with_offsets();
    for (expected, at, value) in [
        ("fall", 4usize, 5u32),
        ("go from 0 to 9", 80, 9),
        ("go from 1 to", 0, 1),
        ("fall", 40, u32::MAX),
    ] {
        let broken = with_content(&file, "row_offsets", |b| {
            b[at..at + 4].copy_from_slice(&value.to_le_bytes());
        });
        let index = open(&broken).unwrap();
        let problem = problem_of(index.verify(&Control::new()));
        assert!(
            problem.to_string().contains(expected),
            "{expected}: {problem}"
        );
        search_all_modes(&index);
    }
}

fn search_all_modes(index: &Index) {
    use sparse_retrieval::kernels::Kernels;
    use sparse_retrieval::search::{Queries, Request};
    let code = Codes::from_csr(&[0, 2], &[0i64, 3], &[1.0, -1.0], 4).unwrap();
    for kernels in Kernels::available() {
        for mode in Mode::ALL {
            let queries = match mode {
                Mode::Dense => Queries::Dense {
                    rows: &[0.1, 0.2, 0.3],
                    d: 3,
                },
                _ => Queries::Codes(code.view()),
            };
            let request = Request {
                kernels,
                ..Request::new(mode, 100)
            };
            let found = index.search(&queries, &request, &Control::new()).unwrap();
            assert!(found[0].len() <= index.len());
            assert!(found[0].iter().all(|hit| !hit.score.is_nan()));
        }
    }
}
