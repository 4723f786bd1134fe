//! Where the fuzzer's numbers come from.

/// A stream of numbers: those of some bytes, as a guided fuzzer gives them, then those that
/// depend on a seed alone (splitmix64, Steele et al. 2014).
pub struct Random<'a>(u64, &'a [u8]);

impl<'a> Random<'a> {
    /// The numbers of a seed.
    pub fn seeded(seed: u64) -> Self {
        Self(seed, &[])
    }

    /// The numbers of bytes.
    pub fn of(bytes: &'a [u8]) -> Self {
        Self(bytes.len() as u64, bytes)
    }

    /// Any number.
    pub fn next(&mut self) -> u64 {
        if let Some((head, tail)) = self.1.split_first_chunk() {
            self.1 = tail;
            return u64::from_le_bytes(*head);
        }
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which counts as at least 1; of bytes it takes as few as hold it.
    pub fn below(&mut self, n: usize) -> usize {
        let n = n.max(1) as u64;
        let width = ((u64::BITS - (n - 1).leading_zeros()) as usize).div_ceil(8);
        let number = match self.1.split_at_checked(width.max(1)) {
            Some((head, tail)) => {
                self.1 = tail;
                head.iter()
                    .fold(0, |number, &byte| number << 8 | u64::from(byte))
            }
            None => self.next(),
        };
        (number % n) as usize
    }

    /// A number that is likely to lie at an edge.
    pub fn edge(&mut self) -> u64 {
        let edges = [0, 1, 7, 8, 63, 64, 127, 255, 256, 32_767, 65_535, 65_536];
        match self.below(6) {
            0 => u64::MAX - self.below(3) as u64,
            1 => 1 << self.below(64),
            2 => (1u64 << self.below(64)).wrapping_sub(1),
            3 => self.next(),
            _ => edges[self.below(edges.len())],
        }
    }

    /// Changes some bytes in place, or the length.
    pub fn mutate(&mut self, bytes: &mut Vec<u8>, may_resize: bool) {
        for _ in 0..1 + self.below(4) {
            if bytes.is_empty() {
                return;
            }
            let at = self.below(bytes.len());
            match self.below(if may_resize { 7 } else { 4 }) {
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = self.next() as u8,
                2 => {
                    let number = self.edge().to_le_bytes();
                    let n = [1, 2, 4, 8][self.below(4)].min(bytes.len() - at);
                    bytes[at..at + n].copy_from_slice(&number[..n]);
                }
                3 => {
                    let (from, n) = (self.below(bytes.len()), self.below(32));
                    let n = n.min(bytes.len() - at).min(bytes.len() - from);
                    bytes.copy_within(from..from + n, at);
                }
                4 => bytes.truncate(at),
                5 => {
                    let extra = self.below(64);
                    bytes.resize(bytes.len() + extra, 0);
                }
                _ => {
                    let byte = self.next() as u8;
                    bytes.insert(at, byte);
                }
            }
        }
    }
}
