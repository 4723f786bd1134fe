//! The index with clusters for approximate search, and with the setting that was tuned for it.

use serde::{Deserialize, Serialize};

use super::{check::content, Index};
use crate::control::Control;
use crate::format::{section, Bytes, Dtype, SectionHeader};
use crate::kernels::Kernels;
use crate::search::approximate::build::{ClusterOptions, Clustered, Items};
use crate::search::approximate::{Approximate, ClusterParts, Clusters, CoarseAtoms};
use crate::search::{Atoms, Mode};
use crate::{Error, Result};

/// The setting that was found to keep a share of exact results; the section `tuned`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuned {
    /// Nearest clusters whose rows are looked at.
    pub clusters: u32,
    /// Rows that are rescored exactly.
    pub rerank: u32,
    /// The share of exact results that was aimed at.
    pub target: f64,
    /// The share that was reached on the queries it was tuned with.
    pub reached: f64,
    /// How many results a query had.
    pub k: u32,
}

impl Tuned {
    /// The setting itself.
    pub fn setting(&self) -> Approximate {
        Approximate {
            clusters: self.clusters as usize,
            rerank: self.rerank as usize,
        }
    }

    fn check(&self) -> Result<()> {
        self.setting().check()?;
        let is_share = |x: f64| (0.0..=1.0).contains(&x);
        if self.k == 0 || !is_share(self.target) || !is_share(self.reached) {
            return Err(Error::argument(format!(
                "a tuned setting of {self:?}; expected k of at least 1 and shares of 0 to 1"
            )));
        }
        Ok(())
    }
}

impl Index {
    /// The same index with its rows in clusters of similar items, so that approximate search can
    /// look at the nearest clusters only. Rows, ids and exact results stay as they are; a setting
    /// tuned for other clusters is dropped.
    ///
    /// # Errors
    /// [`Error::Argument`] where the index has no mode that compares embeddings, and as
    /// [`Items::cluster`].
    pub fn with_clusters(&self, options: &ClusterOptions, control: &Control) -> Result<Self> {
        let mode = self.modes.iter().find(|mode| mode.needs_dictionary());
        let (Some(&mode), Some(atoms)) = (mode, self.atoms()) else {
            return Err(Error::argument(
                "approximate search compares embeddings, and this index was built for mode \
                 \"sparse\" alone; build it with a dictionary",
            ));
        };
        let made = self.items(mode, atoms).cluster(options, control)?;
        self.with_made(made, atoms.d())
    }

    /// The same index with the clusters of another one of the same dictionary: those themselves,
    /// tuned setting included, where this one has half to twice as many rows, else as many more
    /// or fewer as the square roots of the numbers of rows say, learnt anew. None where there is
    /// no row.
    ///
    /// # Errors
    /// [`Error::Format`] where the other's tuned setting is damaged; [`Error::OutOfMemory`],
    /// [`Error::Interrupted`].
    pub(super) fn with_clusters_of(&self, other: &Self, control: &Control) -> Result<Self> {
        let mode = self.modes.iter().find(|mode| mode.needs_dictionary());
        let (Some(clusters), Some(&mode), Some(atoms)) = (other.clusters()?, mode, self.atoms())
        else {
            return Ok(self.clone());
        };
        let (old, new) = (other.len(), self.len());
        if new == 0 {
            return Ok(self.clone());
        }
        let kernels = Kernels::best();
        if new < old.div_ceil(2) || new / 2 > old || clusters.len() > new {
            let wanted = clusters.len() as f64 * (new as f64 / old.max(1) as f64).sqrt();
            let options = ClusterOptions {
                clusters: Some((wanted as usize).clamp(1, new)),
                seed: 0,
                kernels,
            };
            return self.with_clusters(&options, control);
        }
        let made = self.items(mode, atoms).join(&clusters, kernels, control)?;
        let index = self.with_made(made, atoms.d())?;
        match other.tuned()? {
            Some(tuned) => index.with_tuned(tuned),
            None => Ok(index),
        }
    }

    fn items<'a>(&'a self, mode: Mode, atoms: Atoms<'a>) -> Items<'a> {
        Items {
            rows: self.rows(),
            scales: self.scales(mode),
            atoms,
        }
    }

    fn with_made(&self, made: Clustered, d: usize) -> Result<Self> {
        let (n, d) = (made.scales.len() as u64, d as u64);
        let subspaces = made.subspaces as u64;
        let blocks = (self.len() as u64).div_ceil(32);
        let width = made.book.len() as u64 / 16 / subspaces;
        let mut index = self.without(&section::CLUSTERS).without(&[section::TUNED]);
        let mut add = |name, dtype, shape: Vec<u64>, bytes| index.put(name, dtype, shape, bytes);
        add(
            section::CLUSTER_CENTROIDS,
            Dtype::U8,
            vec![n, d],
            Bytes::copy_of(&made.centroids)?,
        );
        add(
            section::CLUSTER_SCALES,
            Dtype::F32,
            vec![n, 2],
            Bytes::copy_of(&made.scales)?,
        );
        add(
            section::CLUSTER_STARTS,
            Dtype::U32,
            vec![n + 1],
            Bytes::copy_of(&made.starts)?,
        );
        add(
            section::CLUSTER_ROWS,
            Dtype::U32,
            vec![self.len() as u64],
            Bytes::copy_of(&made.rows)?,
        );
        add(
            section::SKETCH_LEVELS,
            Dtype::F32,
            vec![subspaces, width, 16],
            Bytes::copy_of(&made.book)?,
        );
        add(
            section::SKETCHES,
            Dtype::U8,
            vec![blocks, subspaces, 16],
            Bytes::from_vec(made.sketches),
        );
        Ok(index)
    }

    /// The same index with another tuned setting.
    ///
    /// # Errors
    /// [`Error::Argument`] where it has no clusters, or the setting makes no sense.
    pub fn with_tuned(&self, tuned: Tuned) -> Result<Self> {
        tuned.check()?;
        if self.clusters()?.is_none() {
            return Err(no_clusters());
        }
        let json = serde_json::to_vec(&tuned).expect("a setting is plain data");
        let mut index = self.without(&[section::TUNED]);
        let shape = vec![json.len() as u64];
        index.put(section::TUNED, Dtype::U8, shape, Bytes::from_vec(json));
        Ok(index)
    }

    /// The tuned setting, where there is one.
    ///
    /// # Errors
    /// [`Error::Format`] where the file holds something else.
    pub fn tuned(&self) -> Result<Option<Tuned>> {
        let Some(json) = self.section(section::TUNED) else {
            return Ok(None);
        };
        let bad = |reason: String| content(section::TUNED, 0, reason);
        let tuned: Tuned =
            serde_json::from_slice(json.as_slice()).map_err(|error| bad(error.to_string()))?;
        tuned.check().map_err(|error| bad(error.to_string()))?;
        Ok(Some(tuned))
    }

    /// The clusters, where there are some.
    ///
    /// # Errors
    /// [`Error::Argument`] where the sections do not fit each other, which the header's check
    /// has refused.
    pub fn clusters(&self) -> Result<Option<Clusters<'_>>> {
        let part = |name| self.section(name);
        let (Some(levels), Some(atoms)) =
            (self.header.section(section::SKETCH_LEVELS), self.atoms())
        else {
            return Ok(None);
        };
        let [Some(centroids), Some(scales), Some(starts), Some(rows), Some(book), Some(sketches)] =
            section::CLUSTERS.map(part)
        else {
            return Ok(None);
        };
        let parts = ClusterParts {
            centroids: centroids.numbers(),
            scales: scales.numbers(),
            starts: starts.numbers(),
            rows: rows.numbers(),
            book: book.numbers(),
            sketches: sketches.as_slice(),
        };
        let subspaces = levels.shape.first().copied().unwrap_or(0) as usize;
        Clusters::new(parts, atoms.d(), subspaces).map(Some)
    }

    /// The clusters and coarse atoms, for a search in `mode`.
    pub(super) fn approximate_for(&self, mode: Mode) -> Result<(Clusters<'_>, &CoarseAtoms)> {
        if !mode.needs_dictionary() {
            return Err(Error::argument(format!(
                "approximate search compares embeddings; mode {:?} has exact search alone",
                mode.name()
            )));
        }
        let (Some(clusters), Some(atoms)) = (self.clusters()?, self.atoms()) else {
            return Err(no_clusters());
        };
        let coarse = self.coarse_atoms.get_or_init(|| CoarseAtoms::of(atoms));
        Ok((clusters, coarse))
    }

    /// What the items at these positions decode to, one after the other, the mean included: a
    /// stand-in for queries where there are none.
    ///
    /// # Errors
    /// [`Error::Argument`] for a position without an item, or where there is no dictionary.
    pub fn decoded(&self, positions: &[u64]) -> Result<Vec<f64>> {
        let atoms = self
            .atoms()
            .ok_or_else(|| Error::argument("this index holds no dictionary to decode with"))?;
        let rows = self.rows();
        let mut out = vec![0.0; positions.len() * atoms.d()];
        for (&position, out) in positions.iter().zip(out.chunks_exact_mut(atoms.d())) {
            let row = usize::try_from(position)
                .ok()
                .filter(|&row| row < self.len());
            let row = row.ok_or_else(|| {
                Error::argument(format!(
                    "position {position}; expected less than {}",
                    self.len()
                ))
            })?;
            atoms.decode(rows.pairs(row), out);
            for (x, &m) in out.iter_mut().zip(self.mean().unwrap_or_default()) {
                *x += f64::from(m);
            }
        }
        Ok(out)
    }

    /// Number of clusters; 0 where there are none.
    pub fn n_clusters(&self) -> usize {
        self.header
            .section(section::CLUSTER_SCALES)
            .and_then(|entry| entry.shape.first().copied())
            .unwrap_or(0) as usize
    }

    /// The index in memory without some sections.
    fn without(&self, names: &[&str]) -> Self {
        let mut index = self.clone();
        index.file = None;
        index
            .header
            .sections
            .retain(|entry| section::ALL.contains(&entry.name.as_str()));
        let is_kept = |name: &str| !names.contains(&name);
        index.header.sections.retain(|entry| is_kept(&entry.name));
        index.sections.retain(|section| is_kept(section.0));
        index
    }

    /// Adds an optional section, in the order in which sections are written.
    fn put(&mut self, name: &'static str, dtype: Dtype, shape: Vec<u64>, bytes: Bytes) {
        let place = |name: &str| section::ALL.iter().position(|&known| known == name);
        self.header.sections.push(SectionHeader {
            name: name.into(),
            dtype: dtype.name().into(),
            shape,
            // where a section goes and what it hashes to is known when it is written
            offset: 0,
            length: bytes.as_slice().len() as u64,
            checksum: String::new(),
            required: false,
            unit: None,
        });
        self.header
            .sections
            .sort_by_key(|header| place(&header.name));
        self.sections.push((name, bytes));
        self.sections.sort_by_key(|section| place(section.0));
    }
}

fn no_clusters() -> Error {
    Error::argument(
        "this index has no clusters, which approximate search needs; build it with \
         approximate=True, or make one with index.with_clusters()",
    )
}

/// Checks that clusters divide the rows, and that numbers are numbers.
pub(super) fn check_clusters(index: &Index, control: &Control) -> Result<()> {
    index.tuned()?;
    let Some(Clusters { .. }) = index.clusters()? else {
        return Ok(());
    };
    let numbers = |name| index.section(name).expect("Index::clusters found it");
    let scales: &[[f32; 2]] = numbers(section::CLUSTER_SCALES).numbers();
    let is_sound = |[unit, share]: &[f32; 2]| unit.is_finite() && *unit > 0.0 && share.is_finite();
    if let Some(at) = scales.iter().position(|scales| !is_sound(scales)) {
        let reason = format!(
            "scales {:?}, expected a positive and a finite number",
            scales[at]
        );
        return Err(content(section::CLUSTER_SCALES, at, reason));
    }
    let levels: &[f32] = numbers(section::SKETCH_LEVELS).numbers();
    if let Some(at) = levels.iter().position(|level| !level.is_finite()) {
        return Err(content(
            section::SKETCH_LEVELS,
            at,
            "not a finite number".into(),
        ));
    }
    let starts: &[u32] = numbers(section::CLUSTER_STARTS).numbers();
    let ends = (starts.first(), starts.last().map(|&last| last as usize));
    if ends != (Some(&0), Some(index.len())) || !starts.is_sorted() {
        let reason = format!("expected rising numbers from 0 to {}", index.len());
        return Err(content(section::CLUSTER_STARTS, 0, reason));
    }
    let rows: &[u32] = numbers(section::CLUSTER_ROWS).numbers();
    let mut is_seen = vec![false; index.len()];
    for (cluster, range) in starts.windows(2).enumerate() {
        control.check()?;
        let members = &rows[range[0] as usize..range[1] as usize];
        let is_new = |&row: &u32| {
            is_seen
                .get_mut(row as usize)
                .is_some_and(|seen| !std::mem::replace(seen, true))
        };
        if !members.is_sorted() || !members.iter().all(is_new) {
            let reason = format!(
                "cluster {cluster} does not hold rows below {} by ascending position, each in one \
                 cluster",
                index.len()
            );
            return Err(content(section::CLUSTER_ROWS, range[0] as usize, reason));
        }
    }
    Ok(())
}
