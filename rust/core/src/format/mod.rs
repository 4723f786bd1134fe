//! The `.sridx` file: writer, reader, verification. `README.md` beside this file is the
//! byte-level specification, and each MUST of it is a variant of
//! [`FormatProblem`](crate::error::FormatProblem).
//!
//! Knows sections and what they must look like, nothing of queries or scores.

mod bytes;
pub mod disk;
mod header;
pub mod journal;
pub mod lock;
mod reader;
mod writer;

pub use bytes::Bytes;
pub use disk::{Disk, DiskFile, SystemDisk};
pub use header::{
    scales_of, Cosines, Dtype, Header, ItemNorm, PostingsHeader, RowsHeader, SectionHeader,
    ValueName,
};
pub use lock::WriteLock;
pub use reader::{parse, read_file, FilePart};
pub use writer::{
    replacing, streamed, write_file, write_into, write_streamed, SectionData, Stream,
    StreamedSection,
};

/// The first bytes of every file. The first is not ASCII, and the line ends catch transfers
/// that translate them.
pub const MAGIC: [u8; 8] = *b"\x89SRIX\r\n\x1a";

/// The version that this release writes and reads.
pub const VERSION: u32 = 1;

/// Every section starts at a multiple of this.
pub const ALIGNMENT: u64 = crate::memory::LINE_BYTES as u64;

/// Bytes before the header: magic, version, reserved, header length, header checksum.
pub const PREFIX_BYTES: u64 = 32;

/// The longest header that is read.
pub const MAX_HEADER_BYTES: u64 = 1 << 16;

/// Names of sections.
pub mod section {
    /// The packed rows.
    pub const ROWS: &str = "rows";
    /// Where rows start, where they have no common width.
    pub const ROW_OFFSETS: &str = "row_offsets";
    /// Levels of rank-coded values.
    pub const LEVELS: &str = "levels";
    /// One scale a row: what its levels are worth.
    pub const SCALES_STEP: &str = "scales_step";
    /// One scale a row, for cosines in code space.
    pub const SCALES_CODE: &str = "scales_code";
    /// One scale a row, for cosines in embedding space.
    pub const SCALES_EMBEDDING: &str = "scales_embedding";
    /// The atoms.
    pub const DICTIONARY: &str = "dictionary";
    /// What is added to every decoded item.
    pub const MEAN: &str = "mean";
    /// What the user calls each row, where that is a number.
    pub const IDS: &str = "ids";
    /// Where each id starts in `id_bytes`, where ids are strings.
    pub const ID_OFFSETS: &str = "id_offsets";
    /// The ids, where they are strings.
    pub const ID_BYTES: &str = "id_bytes";
    /// Rows by ascending id.
    pub const ID_ORDER: &str = "id_order";
    /// The latents that have postings.
    pub const POSTINGS_LATENTS: &str = "postings_latents";
    /// Where their lists start.
    pub const POSTINGS_STARTS: &str = "postings_starts";
    /// How far a row's bounds go in each block.
    pub const POSTINGS_NORMS: &str = "postings_norms";
    /// The lists.
    pub const POSTINGS: &str = "postings";
    /// The user's JSON.
    pub const METADATA: &str = "metadata";

    /// Centroids of the clusters of approximate search; two's complement.
    pub const CLUSTER_CENTROIDS: &str = "cluster_centroids";
    /// For each cluster the unit of its centroid and the share that rows have of it.
    pub const CLUSTER_SCALES: &str = "cluster_scales";
    /// Where clusters start among `cluster_rows`.
    pub const CLUSTER_STARTS: &str = "cluster_starts";
    /// Rows, cluster by cluster.
    pub const CLUSTER_ROWS: &str = "cluster_rows";
    /// Codebooks of sketches.
    pub const SKETCH_LEVELS: &str = "sketch_levels";
    /// A sketch of each row, in the order of `cluster_rows`.
    pub const SKETCHES: &str = "sketches";
    /// How far approximate search looks by default; JSON.
    pub const TUNED: &str = "tuned";

    /// What approximate search reads; a file has all of them or none.
    pub const CLUSTERS: [&str; 6] = [
        CLUSTER_CENTROIDS,
        CLUSTER_SCALES,
        CLUSTER_STARTS,
        CLUSTER_ROWS,
        SKETCH_LEVELS,
        SKETCHES,
    ];

    /// All that this release knows.
    pub const ALL: [&str; 24] = [
        ROWS,
        ROW_OFFSETS,
        LEVELS,
        SCALES_STEP,
        SCALES_CODE,
        SCALES_EMBEDDING,
        DICTIONARY,
        MEAN,
        IDS,
        ID_OFFSETS,
        ID_BYTES,
        ID_ORDER,
        POSTINGS_LATENTS,
        POSTINGS_STARTS,
        POSTINGS_NORMS,
        POSTINGS,
        CLUSTER_CENTROIDS,
        CLUSTER_SCALES,
        CLUSTER_STARTS,
        CLUSTER_ROWS,
        SKETCH_LEVELS,
        SKETCHES,
        TUNED,
        METADATA,
    ];

    /// Those that a reader may skip: without them exact search finds the same, more slowly, or less
    /// is known.
    pub const OPTIONAL: [&str; 13] = [
        ID_ORDER,
        POSTINGS_LATENTS,
        POSTINGS_STARTS,
        POSTINGS_NORMS,
        POSTINGS,
        CLUSTER_CENTROIDS,
        CLUSTER_SCALES,
        CLUSTER_STARTS,
        CLUSTER_ROWS,
        SKETCH_LEVELS,
        SKETCHES,
        TUNED,
        METADATA,
    ];
}
