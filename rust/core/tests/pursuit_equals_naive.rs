//! The encoder against a naive one in double precision that shares no code with it: full
//! correlations from the residual by definition, least squares by Gaussian elimination.

use proptest::prelude::*;
use sparse_retrieval::control::Control;
use sparse_retrieval::kernels::{Isa, Kernels};
use sparse_retrieval::pursuit::csr::Encoded;
use sparse_retrieval::pursuit::encoder::{Encoder, Method, Options};
use sparse_retrieval::pursuit::gram::Precision;

/// Choices nearer to each other than this may go either way in float32.
const TIE: f64 = 2e-6;
/// The same where choices are made with a projection in 16-bit integers: an entry that lies at the
/// edge of two of them in float32 may fall to either, which moves a correlation by up to 2^-15,
/// and a few entries may do so.
const COARSE_TIE: f64 = 1e-4;

struct Naive {
    atoms: Vec<Vec<f64>>,
    /// The Gram matrix that choices are made with, by row.
    gram: Vec<Vec<f64>>,
    /// Whether choices begin with a projection in 16 bits.
    coarse: bool,
}

struct Answer {
    values: Vec<(usize, f64)>,
    cosine: f64,
    /// Smallest distance between the chosen and the next best, and from the stopping rule.
    margin: f64,
    /// Smallest pivot of the least squares: how far the support is from dependent.
    pivot: f64,
}

fn inner(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn unit(row: &[f32]) -> Vec<f64> {
    let norm = row
        .iter()
        .map(|&v| f64::from(v).powi(2))
        .sum::<f64>()
        .sqrt();
    row.iter()
        .map(|&v| if norm > 0.0 { f64::from(v) / norm } else { 0.0 })
        .collect()
}

/// Solves G y = b by elimination without pivoting; also the smallest pivot met.
fn eliminate(mut g: Vec<Vec<f64>>, mut b: Vec<f64>) -> (Vec<f64>, f64) {
    let n = b.len();
    let mut smallest = f64::INFINITY;
    for i in 0..n {
        smallest = smallest.min(g[i][i]);
        for r in i + 1..n {
            let factor = g[r][i] / g[i][i];
            let (above, row) = g.split_at_mut(r);
            for (entry, other) in row[0][i..].iter_mut().zip(&above[i][i..]) {
                *entry -= factor * other;
            }
            b[r] -= factor * b[i];
        }
    }
    for i in (0..n).rev() {
        let known: f64 = (i + 1..n).map(|c| g[i][c] * b[c]).sum();
        b[i] = (b[i] - known) / g[i][i];
    }
    (b, smallest)
}

impl Naive {
    fn new(atoms: &[f32], d: usize, precision: Precision) -> Self {
        let atoms: Vec<Vec<f64>> = atoms.chunks(d).map(unit).collect();
        let gram = (atoms.iter().enumerate())
            .map(|(i, a)| {
                let row: Vec<f64> = atoms.iter().map(|b| inner(a, b)).collect();
                let top = match precision {
                    Precision::Int8 => 127.0,
                    Precision::Int16 => 32767.0,
                    _ => return row,
                };
                let largest = (row.iter().enumerate())
                    .filter(|(j, _)| *j != i)
                    .fold(0f64, |m, (_, v)| m.max(v.abs()));
                let step = if largest > 0.0 { largest / top } else { 1.0 };
                row.iter().map(|v| (v / step).round() * step).collect()
            })
            .collect();
        let coarse = matches!(precision, Precision::Int8 | Precision::Int16);
        Self {
            atoms,
            gram,
            coarse,
        }
    }

    /// The correlations that choices begin with.
    fn start(&self, item: &[f64]) -> Vec<f64> {
        let entry = |v: f64| match self.coarse {
            // unit rows are kept in float32
            true => {
                (f64::from(v as f32) * 32_768.0)
                    .round_ties_even()
                    .min(32_767.0)
                    / 32_768.0
            }
            false => v,
        };
        let item: Vec<f64> = item.iter().map(|&v| entry(v)).collect();
        (self.atoms.iter())
            .map(|atom| inner(&atom.iter().map(|&v| entry(v)).collect::<Vec<_>>(), &item))
            .collect()
    }

    fn least_squares(&self, item: &[f64], support: &[usize]) -> (Vec<f64>, f64) {
        let g = (support.iter())
            .map(|&i| {
                (support
                    .iter()
                    .map(|&j| inner(&self.atoms[i], &self.atoms[j])))
                .collect()
            })
            .collect();
        let b = support
            .iter()
            .map(|&i| inner(&self.atoms[i], item))
            .collect();
        eliminate(g, b)
    }

    fn pursue(&self, item: &[f64], k: usize, refit_every: usize) -> Answer {
        let start = self.start(item);
        let mut c = start.clone();
        let mut support: Vec<usize> = Vec::new();
        let (mut margin, mut pivot) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..2 * k {
            let best = (0..c.len()).fold(0, |b, j| if c[j].abs() > c[b].abs() { j } else { b });
            let second = (0..c.len())
                .filter(|&j| j != best)
                .fold(0f64, |m, j| m.max(c[j].abs()));
            margin = margin.min((c[best].abs() - 1e-6).abs());
            if c[best].abs() <= 1e-6 {
                break;
            }
            margin = margin.min(c[best].abs() - second);
            if !support.contains(&best) {
                support.push(best);
                let (values, _) = self.least_squares(item, &support);
                let targets: Vec<f64> =
                    (support.iter().map(|&j| inner(&self.atoms[j], item))).collect();
                let left = 1.0 - inner(&values, &targets);
                margin = margin.min((left - 1e-6).abs());
                if support.len() == k || left <= 1e-6 {
                    break;
                }
                if support.len().is_multiple_of(refit_every) {
                    let (values, smallest) = self.least_squares(item, &support);
                    pivot = pivot.min(smallest);
                    c.clone_from(&start);
                    for (&i, value) in support.iter().zip(&values) {
                        for (c, g) in c.iter_mut().zip(&self.gram[i]) {
                            *c -= value * g;
                        }
                    }
                    for &i in &support {
                        c[i] = 0.0;
                    }
                    continue;
                }
            }
            let amount = c[best];
            for (c, g) in c.iter_mut().zip(&self.gram[best]) {
                *c -= amount * g;
            }
            c[best] = 0.0;
        }
        let (values, smallest) = self.least_squares(item, &support);
        self.answer(item, support, values, margin, pivot.min(smallest))
    }

    fn project(&self, item: &[f64], k: usize, refit: bool) -> Answer {
        let start: Vec<f64> = self.atoms.iter().map(|a| inner(a, item)).collect();
        let mut order: Vec<usize> = (0..start.len()).collect();
        order.sort_by(|&a, &b| start[b].abs().total_cmp(&start[a].abs()).then(a.cmp(&b)));
        let mut margin = f64::INFINITY;
        if k < order.len() {
            margin = start[order[k - 1]].abs() - start[order[k]].abs();
        }
        order.truncate(k);
        for &j in &order {
            margin = margin.min((start[j].abs() - 1e-6).abs());
        }
        order.retain(|&j| start[j].abs() > 1e-6);
        if refit {
            let (values, pivot) = self.least_squares(item, &order);
            self.answer(item, order, values, margin, pivot)
        } else {
            let values = order.iter().map(|&j| start[j]).collect();
            self.answer(item, order, values, margin, f64::INFINITY)
        }
    }

    fn answer(
        &self,
        item: &[f64],
        support: Vec<usize>,
        values: Vec<f64>,
        margin: f64,
        pivot: f64,
    ) -> Answer {
        let mut decoded = vec![0.0; item.len()];
        for (&j, value) in support.iter().zip(&values) {
            for (sum, entry) in decoded.iter_mut().zip(&self.atoms[j]) {
                *sum += value * entry;
            }
        }
        let norm = inner(&decoded, &decoded).sqrt();
        let cosine = if norm > 0.0 {
            inner(&decoded, item) / norm
        } else {
            0.0
        };
        let mut values: Vec<(usize, f64)> = support.into_iter().zip(values).collect();
        values.retain(|(_, value)| value.abs() > 1e-6);
        values.sort_by_key(|&(j, _)| j);
        Answer {
            values,
            cosine,
            margin,
            pivot,
        }
    }
}

#[derive(Debug, Clone)]
struct Case {
    d: usize,
    atoms: Vec<f32>,
    items: Vec<f32>,
    k: usize,
}

/// Numbers in -0.5..0.5 (xorshift).
fn noise(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    }
}

fn case() -> impl Strategy<Value = Case> {
    // 63, 64, 65 and 129 atoms: just below, at and above whole blocks
    let atoms = prop_oneof![
        Just(1usize),
        Just(63),
        Just(64),
        Just(65),
        Just(129),
        2..40usize
    ];
    (atoms, 4..40usize, 1..12usize, any::<u64>()).prop_map(|(s, d, k, seed)| {
        let mut noise = noise(seed);
        let mut atoms: Vec<f32> = (0..s * d).map(|_| noise()).collect();
        if s > 3 {
            atoms.copy_within(0..d, 2 * d); // a duplicate atom
        }
        let mut items: Vec<f32> = (0..7 * d).map(|_| noise() * 3.0).collect();
        items[d..2 * d].fill(0.0); // a zero row
        items.copy_within(0..d, 2 * d); // duplicate items
        items[3 * d..4 * d].copy_from_slice(&atoms[..d]); // exactly an atom
        let k = k.min(s).min(d / 2 + 1);
        Case { d, atoms, items, k }
    })
}

fn encode(case: &Case, precision: Precision, method: Method, kernels: Kernels) -> Encoded {
    let control = Control::new();
    let encoder = Encoder::new(&case.atoms, case.d, precision, u64::MAX, &control)
        .unwrap()
        .with_kernels(kernels);
    let options = Options {
        k: case.k,
        method,
        normalise: true,
        first_row: 0,
    };
    encoder.encode(&case.items, options, &control).unwrap()
}

/// Compares, and returns how many rows had no near tie and so were compared exactly.
fn compare(case: &Case, precision: Precision, method: Method) -> Result<usize, TestCaseError> {
    let encoded = encode(case, precision, method, Kernels::best());
    let naive = Naive::new(&case.atoms, case.d, precision);
    let mut exact = 0;
    for (row, item) in case.items.chunks(case.d).enumerate() {
        let item = unit(item);
        let wanted = match method {
            Method::Pursuit { refit_every } => naive.pursue(&item, case.k, refit_every),
            Method::TopK { refit } => naive.project(&item, case.k, refit),
        };
        let (latents, values) = encoded.row(row);
        prop_assert!(latents.len() <= case.k);
        prop_assert!(latents.windows(2).all(|pair| pair[0] < pair[1]));
        if item.iter().all(|&v| v == 0.0) {
            prop_assert!(latents.is_empty() && encoded.cosines[row] == 0.0);
        }
        // float32 correlations and inner products are off by a few 1e-7; a support that is
        // nearly dependent multiplies that by 1 / pivot
        let tolerance = 3e-6 / wanted.pivot.min(0.1);
        let is_coarse = naive.coarse && matches!(method, Method::Pursuit { .. });
        if wanted.margin < if is_coarse { COARSE_TIE } else { TIE } || wanted.pivot < 1e-2 {
            continue;
        }
        exact += 1;
        let support: Vec<usize> = wanted.values.iter().map(|&(j, _)| j).collect();
        let got: Vec<usize> = latents.iter().map(|&j| j as usize).collect();
        prop_assert_eq!(got, support, "row {}", row);
        for (got, (_, wanted)) in values.iter().zip(&wanted.values) {
            prop_assert!(
                (f64::from(*got) - wanted).abs() < tolerance,
                "{} for {}",
                got,
                wanted
            );
        }
        prop_assert!((f64::from(encoded.cosines[row]) - wanted.cosine).abs() < 1e-5);
    }
    Ok(exact)
}

const METHODS: [Method; 5] = [
    Method::Pursuit { refit_every: 8 },
    Method::Pursuit { refit_every: 3 },
    Method::Pursuit { refit_every: 1 },
    Method::TopK { refit: false },
    Method::TopK { refit: true },
];

const PRECISIONS: [Precision; 4] = [
    Precision::Float32,
    Precision::Int16,
    Precision::Int8,
    Precision::Free,
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_method_and_precision_equals_the_naive_encoder(case in case()) {
        for method in METHODS {
            for precision in PRECISIONS {
                compare(&case, precision, method)?;
            }
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bytes(case in case()) {
        for method in METHODS {
            for precision in PRECISIONS {
                let scalar = encode(&case, precision, method, Kernels::of(Isa::Scalar).unwrap());
                for kernels in Kernels::available() {
                    prop_assert_eq!(&encode(&case, precision, method, kernels), &scalar);
                }
            }
        }
    }

    #[test]
    fn a_batch_equals_its_rows_one_by_one_on_any_number_of_threads(case in case()) {
        let control = Control::new();
        for precision in PRECISIONS {
            let encoder =
                Encoder::new(&case.atoms, case.d, precision, u64::MAX, &control).unwrap();
            let options = Options {
                k: case.k,
                method: METHODS[0],
                normalise: true,
                first_row: 0,
            };
            let batch = encoder.encode(&case.items, options, &control).unwrap();
            let mut singly = Encoded::empty();
            for item in case.items.chunks(case.d) {
                singly.append(&encoder.encode(item, options, &control).unwrap());
            }
            prop_assert_eq!(&singly, &batch);
            for threads in [1, 3] {
                let mut call = sparse_retrieval::threads::call(Some(threads)).unwrap();
                let pool = call.pool().unwrap();
                let again = pool.install(|| encoder.encode(&case.items, options, &control));
                prop_assert_eq!(&again.unwrap(), &batch);
            }
        }
    }
}

/// The comparison above passes over near ties; here it is shown that it seldom has to.
#[test]
fn nearly_all_rows_of_a_random_case_are_compared_exactly() {
    let mut noise = noise(0x9e37_79b9_7f4a_7c15);
    let d = 48;
    let case = Case {
        d,
        atoms: (0..200 * d).map(|_| noise()).collect(),
        items: (0..64 * d).map(|_| noise()).collect(),
        k: 10,
    };
    for method in METHODS {
        for precision in PRECISIONS {
            let exact = compare(&case, precision, method).unwrap();
            assert!(exact >= 50, "{method:?} {precision:?}: {exact} of 64 rows");
        }
    }
}
