//! A histogram of times in microseconds, log-linear: each power of two has 128 buckets of equal width, so that a value
//! is told to better than one percent, from one microsecond to nineteen hours, in 30 KiB and without a branch too many.

/// Buckets in each power of two, as a power of two.
const SUB_BITS: u32 = 7;
/// Values below this have a bucket each.
const EXACT: u64 = 1 << (SUB_BITS + 1);
/// Larger values count as this one: nineteen hours.
const VALUE_MAX: u64 = (1 << 36) - 1;
const BUCKETS: usize = index(VALUE_MAX) + 1;

const fn index(value: u64) -> usize {
    if value < EXACT {
        return value as usize;
    }
    let shift = value.ilog2() - SUB_BITS;
    (((shift as u64) << SUB_BITS) + (value >> shift)) as usize
}

/// The largest value that counts in this bucket.
const fn largest(index: usize) -> u64 {
    let index = index as u64;
    if index < EXACT {
        return index;
    }
    let shift = (index >> SUB_BITS) - 1;
    (((index & ((1 << SUB_BITS) - 1)) + (1 << SUB_BITS) + 1) << shift) - 1
}

/// Counts values; answers quantiles.
#[derive(Clone)]
pub struct Histogram {
    counts: Box<[u64]>,
    total: u64,
    sum: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { counts: vec![0; BUCKETS].into_boxed_slice(), total: 0, sum: 0, max: 0 }
    }
}

impl Histogram {
    /// Counts one value, in microseconds.
    pub fn record(&mut self, value_us: u64) {
        let value = value_us.min(VALUE_MAX);
        self.counts[index(value)] += 1;
        self.total += 1;
        self.sum += value;
        self.max = self.max.max(value);
    }

    /// Counts all that the other one has counted.
    pub fn add(&mut self, other: &Histogram) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(mine, theirs)| *mine += theirs);
        self.total += other.total;
        self.sum += other.sum;
        self.max = self.max.max(other.max);
    }

    /// How many values were counted.
    pub fn count(&self) -> u64 {
        self.total
    }

    /// The largest value, exactly.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The mean of the values, exactly; 0 without any.
    pub fn mean(&self) -> f64 {
        if self.total == 0 { 0.0 } else { self.sum as f64 / self.total as f64 }
    }

    /// The smallest value that at least this share (0 to 1) of all does not exceed, at most one percent too
    /// high; 0 without any.
    pub fn quantile(&self, share: f64) -> u64 {
        let wanted = ((share.clamp(0.0, 1.0) * self.total as f64).ceil() as u64).max(1);
        let mut seen = 0;
        let at = self.counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        at.map_or(self.max, |at| largest(at).min(self.max))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_bucket_begins_where_the_one_before_ends() {
        for at in 0..BUCKETS {
            assert_eq!(index(largest(at)), at);
            assert!(at + 1 == BUCKETS || index(largest(at) + 1) == at + 1, "behind bucket {at}");
        }
        assert_eq!(largest(BUCKETS - 1), VALUE_MAX);
    }

    #[test]
    fn an_empty_one_and_one_of_a_single_value() {
        let mut histogram = Histogram::default();
        assert_eq!((histogram.quantile(0.5), histogram.max(), histogram.mean()), (0, 0, 0.0));
        histogram.record(u64::MAX);
        assert_eq!((histogram.quantile(0.0), histogram.quantile(1.0)), (VALUE_MAX, VALUE_MAX));
    }

    proptest! {
        #[test]
        fn a_quantile_is_at_most_one_percent_above_the_sorted_values_own(
            mut values in proptest::collection::vec(0u64..10_000_000_000, 1..300),
            share in 0.0f64..=1.0,
        ) {
            let mut histogram = Histogram::default();
            values.iter().for_each(|value| histogram.record(*value));
            values.sort_unstable();
            let rank = ((share * values.len() as f64).ceil() as usize).max(1);
            let exact = values[rank - 1];
            let told = histogram.quantile(share);
            prop_assert!(told >= exact && told as f64 <= exact as f64 * 1.01 + 1.0, "{told} for {exact}");
            prop_assert_eq!(histogram.max(), *values.last().unwrap());
            let mean = values.iter().sum::<u64>() as f64 / values.len() as f64;
            prop_assert!((histogram.mean() - mean).abs() <= 1.0);
        }

        #[test]
        fn two_added_are_one_of_both(
            one in proptest::collection::vec(0u64..1_000_000, 0..100),
            other in proptest::collection::vec(0u64..1_000_000, 0..100),
        ) {
            let of = |values: &[u64]| {
                let mut histogram = Histogram::default();
                values.iter().for_each(|value| histogram.record(*value));
                histogram
            };
            let mut sum = of(&one);
            sum.add(&of(&other));
            let both = of(&[one, other].concat());
            prop_assert_eq!(sum.counts, both.counts);
            prop_assert_eq!((sum.total, sum.sum, sum.max), (both.total, both.sum, both.max));
        }
    }
}
