//! What a number of an f16 section of scales is multiplied by.
//!
//! Units are powers of two, so that rounding a scale to half precision does not depend on the
//! other scales: rows that are built apart and joined later (in shards, by adding) have the same
//! scales as rows built together. Knows nothing of rows.

use half::f16;

/// The unit for scales up to `largest`: a power of two times `reference`, such that the largest
/// becomes 2^14 to 2^15. So none overflows, and those down to 2^-28 of it keep full precision.
///
/// `reference` is 1, or the unit of scales that were stored before: any number times a power of
/// two holds those exactly.
///
/// The unit of scales that were rounded in it is the same again.
pub fn scale_unit(largest: f64, reference: f64) -> f64 {
    let ratio = largest / reference;
    if !(ratio > 0.0 && ratio.is_finite()) {
        return reference;
    }
    // to the 11 bits of half precision first, so that a scale that will be rounded up to a
    // power of two counts as that
    let steps = 1.0 / f64::from(f16::EPSILON);
    let (mantissa, exponent) = split(ratio);
    let rounded_up = (mantissa * steps).round_ties_even() >= 2.0 * steps;
    let exponent = exponent + i32::from(rounded_up);
    reference * 2f64.powi(exponent - 14)
}

/// A scale in this unit.
pub fn to_half(scale: f64, unit: f64) -> f16 {
    f16::from_f64(scale / unit)
}

/// `x = mantissa * 2^exponent` with a mantissa of 1 to 2; `x` is positive, finite and, as a
/// quotient of numbers of single precision, normal.
fn split(x: f64) -> (f64, i32) {
    let mut exponent = x.log2().floor() as i32;
    let mut mantissa = x / 2f64.powi(exponent);
    // the logarithm may round across a power of two
    if mantissa >= 2.0 {
        mantissa /= 2.0;
        exponent += 1;
    } else if mantissa < 1.0 {
        mantissa *= 2.0;
        exponent -= 1;
    }
    (mantissa, exponent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn no_scales_and_scales_of_zero_take_the_reference() {
        for largest in [0.0, -0.0, f64::NAN] {
            assert_eq!(scale_unit(largest, 1.0), 1.0);
            assert_eq!(scale_unit(largest, 3.0), 3.0);
        }
    }

    #[test]
    fn a_scale_that_rounds_up_to_a_power_of_two_counts_as_that() {
        assert_eq!(scale_unit(1.0, 1.0), 2f64.powi(-14));
        assert_eq!(scale_unit(0.999_999, 1.0), 2f64.powi(-14));
        assert_eq!(scale_unit(0.999, 1.0), 2f64.powi(-15));
    }

    proptest! {
        #[test]
        fn scales_keep_their_value_in_every_later_unit(
            scales in proptest::collection::vec(0f32..1e30, 1..20),
            grown in 1f64..1000.0,
            reference in prop_oneof![Just(1.0f64), 1e-6f64..1e6],
        ) {
            let wide: Vec<f64> = scales.iter().map(|&scale| f64::from(scale)).collect();
            let largest = wide.iter().copied().fold(0.0, f64::max);
            let unit = scale_unit(largest, reference);
            let stored: Vec<f64> =
                wide.iter().map(|&scale| f64::from(to_half(scale, unit)) * unit).collect();
            let again = scale_unit(stored.iter().copied().fold(0.0, f64::max), reference);
            prop_assert_eq!(unit, again);
            let later = scale_unit(largest * grown, unit);
            for &scale in &stored {
                let kept = f64::from(to_half(scale, later)) * later;
                // exact, but for scales 2^-18 of the largest and less
                if scale > 2f64.powi(-17) * largest {
                    prop_assert_eq!(kept, scale);
                }
            }
        }
    }
}
