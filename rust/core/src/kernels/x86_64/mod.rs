//! Kernels for 64-bit Intel and AMD processors. The folder's files may be entered only through
//! [`super::Kernels`], which checks that the CPU has their instructions.

pub mod avx2;
pub mod avx512;
pub mod clusters;
pub mod rough_avx2;
pub mod rough_avx512;
pub mod sums;
pub mod tile_avx2;
pub mod tile_avx512;

use super::generic::LANES;

/// The last, incomplete group of a row, copied to a full group of eight whose missing
/// nonzeros are latent 0, value 0: they add `weight * 0`, which changes no bit of a lane,
/// because a lane is never -0 (it starts at +0).
///
/// `bytes` is the width of an element; the group has room for eight of the widest, 4 bytes.
#[inline(always)]
fn padded_group(rest: &[u8], bytes: usize) -> [u8; LANES * 4] {
    let mut group = [0u8; LANES * 4];
    let length = rest.len().min(LANES * bytes);
    group[..length].copy_from_slice(&rest[..length]);
    group
}
