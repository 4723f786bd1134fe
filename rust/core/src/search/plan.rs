//! Which way a search goes, and why. Every exact way returns the same bytes, so this decides time
//! alone; what it goes by was measured (see `docs/search.md`).

use super::{batch, postings, product, rough, Mode, Request, ScanRows};

/// A way to the best k.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    /// Every admitted row is scored in double precision.
    Scan,
    /// An integer pass over all rows, then scores of what it leaves.
    IntegerPass,
    /// A pass in finer integers for one query after the other, then scores of what it leaves.
    RoughScan,
    /// Complete rows are multiplied by the queries in single precision, then scores of what that
    /// leaves.
    Product,
    /// The lists of the query's latents are walked.
    Postings,
    /// Rows of the nearest clusters alone; not exact, and only where it is asked for.
    Clusters,
}

impl Way {
    /// Its name, as Python says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scan => "scan",
            Self::IntegerPass => "integer_pass",
            Self::RoughScan => "rough_scan",
            Self::Product => "product",
            Self::Postings => "postings",
            Self::Clusters => "clusters",
        }
    }
}

/// A way, and what speaks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The way.
    pub way: Way,
    /// Why, in one sentence.
    pub reason: String,
}

/// Rows of a walk that cost as much to pass as a nonzero to look up.
const ROWS_A_LOOK_UP: usize = 50;
/// What scoring a result and putting it in its place costs, in look-ups.
const LOOK_UPS_A_RESULT: usize = 100;

/// About how long a search of one query takes on one thread, in nonzeros that are looked up, of which
/// some 600 take a microsecond; `d` is the width of atoms, where queries are projected, and `listed`
/// the postings of the query's lists. `None` where that depends on more.
pub fn look_ups(
    way: Way,
    data: &ScanRows<'_>,
    k: usize,
    d: usize,
    listed: Option<usize>,
) -> Option<usize> {
    let n = data.rows.len();
    // a number of an atom costs a quarter as much
    let project = (data.rows.dim() / 4).saturating_mul(d);
    let results = k.min(n).saturating_mul(LOOK_UPS_A_RESULT);
    let rest = project.saturating_add(results);
    match way {
        Way::Scan | Way::RoughScan => {
            let prefix = n.saturating_mul(data.rows.ranks());
            Some(prefix.min(data.rows.nonzeros()).max(n).saturating_add(rest))
        }
        Way::Postings => Some(
            listed?
                .saturating_add(n / ROWS_A_LOOK_UP)
                .saturating_add(rest),
        ),
        // some hundred microseconds, whatever n is
        Way::Clusters => Some(0),
        Way::IntegerPass | Way::Product => None,
    }
}

/// So many queries are answered together sooner than one after the other.
const ROUGH_QUERIES: usize = 8;

/// The way of a search of `n_queries` queries.
pub fn plan(
    data: &ScanRows<'_>,
    n_queries: usize,
    request: &Request<'_>,
    has_postings: bool,
) -> Plan {
    let n = data.rows.len();
    let allowed = request.selection.count(n);
    let to = |way, reason| Plan { way, reason };
    if let Some(setting) = request.approximate {
        let reason = format!(
            "approximate search was asked for: sketches of the rows of {} clusters are read, and \
             {} rows are scored",
            setting.clusters, setting.rerank
        );
        return to(Way::Clusters, reason);
    }
    // the lists hold whole rows, not prefixes of them
    let has_lists = request.mode == Mode::Sparse && has_postings && request.k_row.is_none();
    if has_lists && postings::pays(n, request.selection) {
        let reason = "codes in sparse mode, and the index holds postings: only the lists of the \
                      query's latents are read";
        return to(Way::Postings, reason.into());
    }
    let objection = batch::objection(data, request.k, request.selection);
    if objection.is_none() && product::pays(data) {
        let reason = format!(
            "items have all latents: {n} rows are multiplied by the queries in single precision, \
             and the few that this leaves are scored"
        );
        return to(Way::Product, reason);
    }
    if objection.is_none() && n_queries < ROUGH_QUERIES && rough::pays(data, request.kernels) {
        let reason = format!(
            "{n_queries} of the {} queries that one pass answers, so one after the other: rough \
             scores of {n} rows in 16-bit integers, and exact scores of the few that these leave",
            crate::kernels::TILE
        );
        return to(Way::RoughScan, reason);
    }
    match objection.or_else(|| batch::too_few(n_queries)) {
        None => to(
            Way::IntegerPass,
            format!(
                "{n_queries} queries: {n} rows are read once for {} of them, as 8-bit integers",
                crate::kernels::TILE
            ),
        ),
        Some(objection) => to(
            Way::Scan,
            format!("{objection}: {allowed} of {n} rows are scored in double precision"),
        ),
    }
}
