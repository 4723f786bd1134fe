//! Rows on their way into a file, in memory that does not grow with them: columns of rows,
//! scales and ids are spilled, and put together when all have come.

use std::io::Write;
use std::path::PathBuf;

use half::f16;

use super::batch::{Batch, Coding};
use super::column::{Column, ColumnReader, Place};
use super::id_spool::IdSpool;
use super::scale_unit::{scale_unit, to_half};
use crate::codes::pack::fits_u32;
use crate::codes::ValueKind;
use crate::control::Control;
use crate::format::{
    section, write_into, write_streamed, Bytes, DiskFile, Dtype, Header, RowsHeader, SectionHeader,
    StreamedSection,
};
use crate::{Error, Result};

/// Bytes that are put together before they are written.
const WRITE_BYTES: usize = 1 << 16;

/// What the file says beside its rows.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Metric, modes, item norm and the program; the rest is filled in from the rows.
    pub header: Header,
    /// Sections that do not grow with the rows, each with its entry of the header.
    pub fixed: Vec<(SectionHeader, Bytes)>,
    /// The units of each section of scales are this times a power of two.
    pub unit_references: Vec<f64>,
}

/// Rows that are being collected.
pub struct Spool {
    coding: Coding,
    place: Place,
    rows: Column,
    lengths: Column,
    scales: Vec<(Column, f64)>,
    ids: Option<IdSpool>,
    n: u64,
    nonzeros: u64,
    longest: u64,
    cosines: f64,
    nonempty: u64,
}

impl Spool {
    /// No rows yet.
    pub fn new(coding: Coding, place: Place) -> Self {
        Self {
            rows: Column::new(&place),
            lengths: Column::new(&place),
            scales: coding
                .scales
                .iter()
                .map(|_| (Column::new(&place), 0.0))
                .collect(),
            ids: None,
            n: 0,
            nonzeros: 0,
            longest: 1,
            cosines: 0.0,
            nonempty: 0,
            coding,
            place,
        }
    }

    /// How rows are packed.
    pub fn coding(&self) -> &Coding {
        &self.coding
    }

    /// Rows so far.
    pub fn len(&self) -> u64 {
        self.n
    }

    /// Says of which kind ids are before there are any, so that a file without rows keeps it.
    ///
    /// # Panics
    /// Where there are rows.
    pub fn announce_ids(&mut self, are_strings: bool) {
        assert_eq!(self.n, 0);
        self.ids = Some(IdSpool::new(&self.place, are_strings));
    }

    /// Takes rows.
    ///
    /// # Errors
    /// [`Error::Argument`] where some rows have ids and others have none, or numbers meet
    /// strings, or an id is -1: nothing is taken then. [`Error::Io`], after which the spool is of
    /// no use.
    pub fn push(&mut self, batch: &Batch) -> Result<()> {
        self.push_ids(batch)?;
        self.rows.push(&batch.rows)?;
        for &length in &batch.lengths {
            self.lengths.push(&length.to_le_bytes())?;
            self.nonzeros += u64::from(length);
            self.longest = self.longest.max(u64::from(length));
        }
        for ((column, largest), scales) in self.scales.iter_mut().zip(&batch.scales) {
            for &scale in scales {
                column.push(&scale.to_le_bytes())?;
                *largest = largest.max(scale);
            }
        }
        // one sum over all rows in their order, so that it does not depend on the batches
        for &cosine in &batch.cosines {
            self.cosines += cosine;
        }
        self.nonempty += batch.nonempty;
        self.n += batch.n as u64;
        Ok(())
    }

    fn push_ids(&mut self, batch: &Batch) -> Result<()> {
        match (&batch.ids, &mut self.ids) {
            _ if batch.n == 0 => Ok(()),
            (None, None) => Ok(()),
            (Some(ids), None) if self.n == 0 => {
                let mut spool = IdSpool::new(&self.place, ids.view().are_strings());
                spool.push(ids.view())?;
                self.ids = Some(spool);
                Ok(())
            }
            (Some(ids), Some(spool)) if ids.view().are_strings() == spool.are_strings() => {
                spool.push(ids.view())
            }
            (Some(_), Some(spool)) => Err(Error::argument(format!(
                "ids are {} here and {} before; use one kind",
                kind(!spool.are_strings()),
                kind(spool.are_strings())
            ))),
            (given, _) => Err(Error::argument(format!(
                "{} from item {} on, but {} before; give ids for all items or for none",
                given.as_ref().map_or("no ids", |_| "ids"),
                self.n,
                given.as_ref().map_or("ids", |_| "none")
            ))),
        }
    }

    /// Writes the file: the lock of the target is held by the caller.
    ///
    /// # Errors
    /// [`Error::Argument`] where ids are not unique, [`Error::Io`], [`Error::Interrupted`]; the
    /// target is then as it was.
    pub fn finish(self, frame: Frame, control: &Control) -> Result<()> {
        let Place { disk, target } = self.place.clone();
        let (header, sections) = self.laid_out(frame, control)?;
        write_streamed(&*disk, &target, header, sections, control)
    }

    /// Writes a file that is not the target's yet, nor synced, and returns its path. Whoever
    /// called this removes it; where it dies, the next writer of the target does.
    ///
    /// # Errors
    /// As [`Spool::finish`]; no file is left then.
    pub fn finish_beside(self, frame: Frame, control: &Control) -> Result<PathBuf> {
        let Place { disk, target } = self.place.clone();
        let (mut file, path) = disk
            .temporary(&target)
            .map_err(|error| Error::io("write", &target, error))?;
        let written = self.finish_into(&mut *file, frame, control);
        if written.is_err() {
            let _ = disk.remove(&path); // else the next writer of this target does
        }
        written.map(|()| path)
    }

    /// Writes into a file that is empty.
    ///
    /// # Errors
    /// As [`Spool::finish`].
    pub fn finish_into(
        self,
        file: &mut dyn DiskFile,
        frame: Frame,
        control: &Control,
    ) -> Result<()> {
        let target = self.place.target.clone();
        let (header, sections) = self.laid_out(frame, control)?;
        write_into(file, &target, header, sections, control)
    }

    fn laid_out(
        mut self,
        frame: Frame,
        control: &Control,
    ) -> Result<(Header, Vec<StreamedSection<'_>>)> {
        let mut header = frame.header;
        let width = self.width();
        header.rows = RowsHeader {
            count: self.n,
            dim: self.coding.dim as u64,
            latent_bits: match &self.coding.layout {
                Some(layout) => layout.latent_bits(),
                None => crate::codes::RowFormat::new(self.coding.dim, self.coding.kind).latent_bits,
            },
            values: self.coding.kind.into(),
            width,
            magnitude_bits: self
                .coding
                .layout
                .as_ref()
                .map(|layout| layout.magnitude_bits().to_vec()),
        };
        header.postings = None; // they are of the rows, and are made again where they are wanted
        header.ids_ascend = self.ids.as_ref().is_some_and(IdSpool::ascend);
        let order = match &mut self.ids {
            Some(ids) if !ids.ascend() => Some(ids.order(control)?),
            _ => None,
        };
        let target = self.place.target.clone();
        let mut sections = self.into_sections(order, width, &frame.unit_references, control);
        for (entry, bytes) in frame.fixed {
            let place = target.clone();
            sections.push(StreamedSection {
                entry,
                stream: Box::new(move |out| {
                    out.write_all(bytes.as_slice())
                        .map_err(|error| Error::io("write", &place, error))
                }),
            });
        }
        let place = |name: &str| section::ALL.iter().position(|&known| known == name);
        sections.sort_by_key(|section| place(&section.entry.name));
        Ok((header, sections))
    }

    /// The mean cosine that quantisation left, where it is known.
    pub fn quantisation(&self) -> Option<f64> {
        (self.coding.kind == ValueKind::Ranked).then(|| self.cosines / self.nonempty.max(1) as f64)
    }

    /// One width where that takes no more bytes than offsets would, as [`crate::codes::pack`]
    /// decides.
    fn width(&self) -> Option<u64> {
        if let Some(layout) = &self.coding.layout {
            return Some(layout.width() as u64);
        }
        let nonzero_bytes = self.coding.nonzero_bytes() as u128;
        let offset_bytes = if fits_u32(self.nonzeros as usize) {
            4
        } else {
            8
        };
        let fixed = u128::from(self.n) * u128::from(self.longest) * nonzero_bytes;
        let varying =
            u128::from(self.nonzeros) * nonzero_bytes + (u128::from(self.n) + 1) * offset_bytes;
        (fixed <= varying).then_some(self.longest)
    }

    fn into_sections<'a>(
        self,
        order: Option<Column>,
        width: Option<u64>,
        unit_references: &[f64],
        control: &'a Control,
    ) -> Vec<StreamedSection<'a>> {
        let Self {
            coding,
            place,
            rows,
            lengths,
            scales,
            ids,
            n,
            nonzeros,
            ..
        } = self;
        let mut sections = Vec::new();
        let maker = Maker { place, control, n };
        match (coding.kind, width) {
            (ValueKind::Ranked, _) => sections.push(maker.copied(section::ROWS, Dtype::U8, rows)),
            (_, Some(width)) => sections.push(maker.padded(rows, lengths, width, &coding)),
            (_, None) => {
                sections.push(maker.copied(section::ROWS, Dtype::U8, rows));
                sections.push(maker.offsets(lengths, nonzeros));
            }
        }
        for ((&name, (column, largest)), &reference) in
            coding.scales.iter().zip(scales).zip(unit_references)
        {
            let unit = (coding.kind == ValueKind::Ranked).then(|| scale_unit(largest, reference));
            sections.push(maker.scales(name, column, unit));
        }
        if let Some(ids) = ids {
            maker.push_ids(ids, order, &mut sections);
        }
        sections
    }
}

fn kind(are_strings: bool) -> &'static str {
    if are_strings {
        "strings"
    } else {
        "numbers"
    }
}

/// Makes sections of columns.
struct Maker<'a> {
    place: Place,
    control: &'a Control,
    n: u64,
}

impl<'a> Maker<'a> {
    fn section(
        &self,
        name: &'static str,
        dtype: Dtype,
        numbers: u64,
        unit: Option<f64>,
        stream: impl FnOnce(&mut dyn Write, &Place, &Control) -> Result<()> + 'a,
    ) -> StreamedSection<'a> {
        let (place, control) = (self.place.clone(), self.control);
        StreamedSection {
            entry: SectionHeader {
                name: name.into(),
                dtype: dtype.name().into(),
                shape: vec![numbers],
                offset: 0,
                length: numbers * dtype.bytes(),
                checksum: String::new(),
                required: !section::OPTIONAL.contains(&name),
                unit,
            },
            stream: Box::new(move |out| stream(out, &place, control)),
        }
    }

    fn copied(&self, name: &'static str, dtype: Dtype, mut column: Column) -> StreamedSection<'a> {
        let numbers = column.len() / dtype.bytes();
        self.section(name, dtype, numbers, None, move |out, place, control| {
            let mut reader = column.reader();
            loop {
                control.check()?;
                let bytes = reader.some()?;
                if bytes.is_empty() {
                    return Ok(());
                }
                out.write_all(bytes)
                    .map_err(|error| place.io("write", error))?;
            }
        })
    }

    /// A section of `count` numbers, each made from what is read next.
    fn each(
        &self,
        name: &'static str,
        dtype: Dtype,
        count: u64,
        unit: Option<f64>,
        mut column: Column,
        mut write: impl FnMut(&mut ColumnReader<'_>, &mut Vec<u8>) -> Result<()> + 'a,
    ) -> StreamedSection<'a> {
        self.section(name, dtype, count, unit, move |out, place, control| {
            let mut reader = column.reader();
            let mut bytes = Vec::new();
            for _ in 0..count {
                write(&mut reader, &mut bytes)?;
                if bytes.len() >= WRITE_BYTES {
                    control.check()?;
                    out.write_all(&bytes)
                        .map_err(|error| place.io("write", error))?;
                    bytes.clear();
                }
            }
            out.write_all(&bytes)
                .map_err(|error| place.io("write", error))
        })
    }

    fn scales(&self, name: &'static str, column: Column, unit: Option<f64>) -> StreamedSection<'a> {
        let dtype = if unit.is_some() {
            Dtype::F16
        } else {
            Dtype::F32
        };
        self.each(name, dtype, self.n, unit, column, move |reader, out| {
            let scale = f64::from_bits(reader.u64()?);
            match unit {
                Some(unit) => {
                    let half: f16 = to_half(scale, unit);
                    out.extend_from_slice(&half.to_le_bytes());
                }
                None => out.extend_from_slice(&(scale as f32).to_le_bytes()),
            }
            Ok(())
        })
    }

    fn offsets(&self, lengths: Column, nonzeros: u64) -> StreamedSection<'a> {
        let dtype = unsigned(nonzeros);
        let mut next = 0u64;
        let mut is_first = true;
        let name = section::ROW_OFFSETS;
        self.each(
            name,
            dtype,
            self.n + 1,
            None,
            lengths,
            move |reader, out| {
                if !std::mem::take(&mut is_first) {
                    next += u64::from(reader.u32()?);
                }
                push_unsigned(out, next, dtype);
                Ok(())
            },
        )
    }

    fn padded(
        &self,
        mut rows: Column,
        mut lengths: Column,
        width: u64,
        coding: &Coding,
    ) -> StreamedSection<'a> {
        let format = crate::codes::RowFormat::new(coding.dim, coding.kind);
        let (latent, value) = (format.latent_bytes(), format.value_bytes());
        let (n, width) = (self.n, width as usize);
        let bytes = n * (width * (latent + value)) as u64;
        self.section(
            section::ROWS,
            Dtype::U8,
            bytes,
            None,
            move |out, place, control| {
                let (mut rows, mut lengths) = (rows.reader(), lengths.reader());
                let mut padded = Vec::new();
                for _ in 0..n {
                    let m = lengths.u32()? as usize;
                    let bytes = rows.take(m * (latent + value))?;
                    padded.extend_from_slice(&bytes[..m * latent]);
                    padded.resize(padded.len() + (width - m) * latent, 0);
                    padded.extend_from_slice(&bytes[m * latent..]);
                    padded.resize(padded.len() + (width - m) * value, 0);
                    if padded.len() >= WRITE_BYTES {
                        control.check()?;
                        out.write_all(&padded)
                            .map_err(|error| place.io("write", error))?;
                        padded.clear();
                    }
                }
                out.write_all(&padded)
                    .map_err(|error| place.io("write", error))
            },
        )
    }

    fn push_ids(
        &self,
        mut ids: IdSpool,
        order: Option<Column>,
        sections: &mut Vec<StreamedSection<'a>>,
    ) {
        let numbers = std::mem::replace(ids.numbers(), Column::new(&self.place));
        if ids.are_strings() {
            let dtype = unsigned(ids.string_bytes());
            let mut is_first = true;
            let name = section::ID_OFFSETS;
            sections.push(self.each(
                name,
                dtype,
                self.n + 1,
                None,
                numbers,
                move |reader, out| {
                    let end = if std::mem::take(&mut is_first) {
                        0
                    } else {
                        reader.u64()?
                    };
                    push_unsigned(out, end, dtype);
                    Ok(())
                },
            ));
            let bytes = std::mem::replace(ids.bytes(), Column::new(&self.place));
            sections.push(self.copied(section::ID_BYTES, Dtype::U8, bytes));
        } else {
            sections.push(self.copied(section::IDS, Dtype::I64, numbers));
        }
        if let Some(order) = order {
            let dtype = unsigned(self.n);
            let name = section::ID_ORDER;
            sections.push(
                self.each(name, dtype, self.n, None, order, move |reader, out| {
                    push_unsigned(out, reader.u64()?, dtype);
                    Ok(())
                }),
            );
        }
    }
}

/// The type that holds numbers up to `largest`.
fn unsigned(largest: u64) -> Dtype {
    if fits_u32(largest as usize) {
        Dtype::U32
    } else {
        Dtype::U64
    }
}

fn push_unsigned(out: &mut Vec<u8>, number: u64, dtype: Dtype) {
    if dtype == Dtype::U32 {
        out.extend_from_slice(&(number as u32).to_le_bytes());
    } else {
        out.extend_from_slice(&number.to_le_bytes());
    }
}
