//! Copies of rows that are looked at again and again, read once and in their order.
//!
//! A pass over all rows leaves each query some hundred rows here and there, of which latents are
//! listed and scores are made twice. Where memory holds the rows that does no harm. Where they
//! are pages of a file that memory does not hold, each look at a row would be a read of the disk,
//! and of megabytes, because pages are read ahead while a search passes over them. So rows are
//! copied by one more passage from the first to the last, which costs at most what the pass
//! itself does.

use half::f16;
use rayon::prelude::*;

use super::scan::ROWS_AHEAD;
use super::{Scales, ScanRows};
use crate::codes::{RowCoding, RowSpan, RowsView};
use crate::control::Control;
use crate::Result;

/// Rows that are passed over for one query before the next one: a few megabytes, so that queries
/// read the file side by side and not one after the other.
const ROWS_A_STEP: usize = 1 << 16;

/// Copies of rows, for some queries.
#[derive(Debug)]
pub struct Copies {
    /// Where each stood.
    positions: Vec<u64>,
    bytes: Vec<u8>,
    /// Where each starts, in nonzeros, and where the last ends; none where all are as long.
    starts: Vec<u64>,
    scales: CopiedScales,
}

#[derive(Debug)]
enum CopiedScales {
    One,
    Float32(Vec<f32>),
    Float16(Vec<f16>, f64),
}

impl Copies {
    /// Room for `n` copies.
    fn with_room(data: &ScanRows<'_>, n: usize) -> Self {
        let (bytes, starts) = match data.rows.coding() {
            RowCoding::Ranked(layout) => (n * layout.row_bytes(), Vec::new()),
            RowCoding::Plain(format, RowSpan::Fixed(width)) => {
                (n * width * format.nonzero_bytes(), Vec::new())
            }
            RowCoding::Plain(..) => (0, vec![0]),
        };
        Self {
            positions: Vec::with_capacity(n),
            bytes: Vec::with_capacity(bytes),
            starts,
            scales: match data.scales {
                Scales::One => CopiedScales::One,
                Scales::Float32(_) => CopiedScales::Float32(Vec::with_capacity(n)),
                Scales::Float16(_, unit) => CopiedScales::Float16(Vec::with_capacity(n), unit),
            },
        }
    }

    /// Where each copy's row stood.
    pub fn positions(&self) -> &[u64] {
        &self.positions
    }

    /// The copies, coded as the rows that they were made of.
    pub fn data<'a>(&'a self, of: &ScanRows<'a>) -> ScanRows<'a> {
        let coding = match of.rows.coding() {
            RowCoding::Plain(format, RowSpan::Offsets32(_) | RowSpan::Offsets64(_)) => {
                RowCoding::Plain(format, RowSpan::Offsets64(&self.starts))
            }
            of_one_length => of_one_length,
        };
        let rows = RowsView::new(coding, self.positions.len(), of.rows.dim(), &self.bytes);
        ScanRows {
            rows: rows
                .expect("rows are copied whole")
                .with_ranks(of.rows.ranks()),
            scales: match &self.scales {
                CopiedScales::One => Scales::One,
                CopiedScales::Float32(scales) => Scales::Float32(scales),
                CopiedScales::Float16(scales, unit) => Scales::Float16(scales, *unit),
            },
        }
    }

    /// Copies a row, and returns the number of its copy. Beyond `most` bytes, which only rows of a
    /// damaged file that overlap can take, rows are copied as empty ones.
    fn copy(&mut self, data: &ScanRows<'_>, row: usize, most: usize) -> u64 {
        let bytes = data.rows.row_bytes(row);
        if self.starts.is_empty() || self.bytes.len() + bytes.len() <= most {
            self.bytes.extend_from_slice(bytes);
        }
        if let (false, RowCoding::Plain(format, _)) = (self.starts.is_empty(), data.rows.coding()) {
            let nonzeros = self.bytes.len() / format.nonzero_bytes();
            self.starts.push(nonzeros as u64);
        }
        match (&mut self.scales, data.scales) {
            (CopiedScales::Float32(copies), Scales::Float32(scales)) => copies.push(scales[row]),
            (CopiedScales::Float16(copies, _), Scales::Float16(scales, _)) => {
                copies.push(scales[row]);
            }
            _ => {}
        }
        self.positions.push(row as u64);
        self.positions.len() as u64 - 1
    }
}

/// Copies the rows of each query, whose positions ascend, and replaces these by the numbers of the
/// copies. Those of a query are in the copies of its number divided by what is returned with
/// them. Runs on the current rayon pool.
///
/// `most` is what the rows of all queries can take together, unless they are those of one alone.
///
/// # Errors
/// [`crate::Error::Interrupted`].
pub fn gather(
    data: &ScanRows<'_>,
    of_queries: &mut [Option<Vec<u64>>],
    most: usize,
    control: &Control,
) -> Result<(Vec<Copies>, usize)> {
    // every thread passes over the whole file for some queries; the one that is behind finds in
    // memory what the others have read, so they stay together
    let queries_a_thread = of_queries
        .len()
        .div_ceil(rayon::current_num_threads())
        .max(1);
    let most = most + data.rows.bytes().len();
    let copies = of_queries
        .par_chunks_mut(queries_a_thread)
        .map(|some| {
            let n = some.iter().flatten().map(Vec::len).sum();
            let mut copies = Copies::with_room(data, n);
            let mut copied = vec![0; some.len()];
            for start in (0..data.rows.len()).step_by(ROWS_A_STEP) {
                control.check()?;
                let end = (start + ROWS_A_STEP) as u64;
                for (rows, copied) in some.iter_mut().zip(&mut copied) {
                    let Some(rows) = rows else { continue };
                    while let Some(&row) = rows.get(*copied).filter(|&&row| row < end) {
                        if let Some(&ahead) = rows.get(*copied + ROWS_AHEAD) {
                            data.prefetch(ahead as usize);
                        }
                        rows[*copied] = copies.copy(data, row as usize, most);
                        *copied += 1;
                    }
                }
            }
            Ok(copies)
        })
        .collect::<Result<Vec<_>>>()?;
    Ok((copies, queries_a_thread))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes::{RankedLayout, RowFormat, ValueKind};

    const N: usize = 200_000;

    /// Every third row for one query, some far apart for another, none for a third.
    fn asked() -> Vec<Option<Vec<u64>>> {
        let apart = vec![0, 7, 8, 65_535, 65_536, 131_073, N as u64 - 1];
        let many = (1..N as u64).step_by(3).collect();
        vec![Some(many), None, Some(apart), Some(Vec::new())]
    }

    fn check(coding: RowCoding<'_>, bytes: &[u8], ranks: usize) {
        let rows = RowsView::new(coding, N, 500, bytes).unwrap();
        let rows = rows.with_ranks(ranks);
        let single: Vec<f32> = (0..N).map(|row| row as f32 / 8.0).collect();
        let half: Vec<f16> = single.iter().map(|&scale| f16::from_f32(scale)).collect();
        for scales in [
            Scales::One,
            Scales::Float32(&single),
            Scales::Float16(&half, 0.25),
        ] {
            let data = ScanRows { rows, scales };
            let mut places = asked();
            let (copies, each) = gather(&data, &mut places, 0, &Control::new()).unwrap();
            for (query, (places, asked)) in places.into_iter().zip(asked()).enumerate() {
                assert_eq!(places.is_some(), asked.is_some());
                let (places, asked) = (places.unwrap_or_default(), asked.unwrap_or_default());
                assert_eq!(places.len(), asked.len());
                let copies = &copies[query / each];
                let copied = copies.data(&data);
                for (place, row) in places.into_iter().zip(asked) {
                    let (place, row) = (place as usize, row as usize);
                    assert_eq!(copies.positions()[place], row as u64);
                    assert_eq!(copied.rows.pairs(place), rows.pairs(row));
                    assert_eq!(copied.scales.get(place), scales.get(row));
                }
            }
        }
    }

    fn bytes(n: usize) -> Vec<u8> {
        (0..n).map(|i| (i * 31 + i / 509) as u8).collect()
    }

    #[test]
    fn copies_are_the_rows_they_were_made_of_whatever_the_coding() {
        let layout = RankedLayout::new(
            9,
            vec![2, 1, 1],
            vec![4.0, 2.5, 2.0, 1.0, 0.9, 0.5, 0.4, 0.3],
        );
        let layout = layout.unwrap();
        check(
            RowCoding::Ranked(&layout),
            &bytes(N * layout.row_bytes()),
            usize::MAX,
        );
        let format = RowFormat::new(500, ValueKind::Int8);
        check(
            RowCoding::Plain(format, RowSpan::Fixed(2)),
            &bytes(N * 6),
            1,
        );
        let narrow: Vec<u32> = (0..=N as u32).map(|row| row / 2 * 3).collect();
        let wide: Vec<u64> = narrow.iter().map(|&start| u64::from(start)).collect();
        let data = bytes(narrow[N] as usize * 3);
        for ranks in [1, usize::MAX] {
            check(
                RowCoding::Plain(format, RowSpan::Offsets32(&narrow)),
                &data,
                ranks,
            );
            check(
                RowCoding::Plain(format, RowSpan::Offsets64(&wide)),
                &data,
                ranks,
            );
        }
    }

    #[test]
    fn rows_of_a_damaged_file_that_overlap_are_not_copied_beyond_its_size() {
        let format = RowFormat::new(10, ValueKind::Int8);
        let offsets: Vec<u32> = (0..=400).map(|row| row % 2 * 100).collect();
        let data = bytes(300);
        let coding = RowCoding::Plain(format, RowSpan::Offsets32(&offsets));
        let rows = RowsView::new(coding, 400, 10, &data).unwrap();
        let data = ScanRows {
            rows,
            scales: Scales::One,
        };
        let mut asked = vec![Some((0..400).collect())];
        let (copies, _) = gather(&data, &mut asked, 0, &Control::new()).unwrap();
        let copied = copies[0].data(&data);
        assert_eq!(copied.rows.len(), 400);
        assert_eq!(copied.rows.bytes().len(), 300);
    }

    #[test]
    fn a_cancelled_search_stops_gathering() {
        let format = RowFormat::new(10, ValueKind::Int8);
        let data = bytes(300);
        let coding = RowCoding::Plain(format, RowSpan::Fixed(1));
        let data = ScanRows {
            rows: RowsView::new(coding, 100, 10, &data).unwrap(),
            scales: Scales::One,
        };
        let control = Control::new();
        control.cancel();
        gather(&data, &mut [Some(vec![3])], 0, &control).unwrap_err();
    }
}
