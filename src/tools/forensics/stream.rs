//! Searching a stream of any length in bounded memory, and measuring its entropy on the way.

use std::io::{self, Read};

use super::needle::Needles;

/// Bytes read at a time: large enough for memory speed, small enough for the second-level cache, since
/// each chunk is searched once per pattern.
pub(super) const CHUNK_BYTES: usize = 512 * 1024;

/// Places remembered per file and pattern; all are counted.
pub(super) const PLACES_MAX: usize = 16;

/// How often each byte value occurs.
#[derive(Clone, Debug)]
pub(super) struct Histogram([u64; 256]);

impl Histogram {
    pub(super) fn new() -> Histogram {
        Histogram([0; 256])
    }

    pub(super) fn add(&mut self, other: &Histogram) {
        for (sum, count) in self.0.iter_mut().zip(other.0) {
            *sum += count;
        }
    }

    /// Shannon entropy in bits per byte, 0 to 8. Ciphertext comes close to 8 once there are some kilobytes;
    /// `n` bytes cannot exceed log2(n).
    pub(super) fn entropy(&self) -> f64 {
        let total: u64 = self.0.iter().sum();
        let parts = self.0.iter().filter(|count| **count > 0);
        parts.map(|count| *count as f64 / total as f64).map(|share| -share * share.log2()).sum::<f64>().abs()
    }

    fn count(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0[usize::from(*byte)] += 1;
        }
    }
}

/// The hits of one pattern in one stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// All of them, overlapping ones included.
    pub(super) count: u64,
    /// Offsets in bytes of the first [`PLACES_MAX`].
    pub(super) offsets: Vec<u64>,
}

impl Tally {
    pub(super) fn add(&mut self, offset: u64) {
        self.count += 1;
        if self.offsets.len() < PLACES_MAX {
            self.offsets.push(offset);
        }
    }
}

/// What a stream holds.
pub(super) struct Searched {
    pub(super) bytes: u64,
    pub(super) histogram: Histogram,
    /// One for each of [`Needles::patterns`], in that order.
    pub(super) tallies: Vec<Tally>,
}

/// A buffer that is used for one stream after the other.
pub(super) struct Searcher<'n> {
    needles: &'n Needles,
    buffer: Vec<u8>,
    /// The end of one chunk is searched again with the beginning of the next: one byte less than the
    /// longest pattern, so that no hit is cut in two.
    overlap: usize,
}

impl<'n> Searcher<'n> {
    /// Reads `chunk_bytes` (at least 1) at a time.
    pub(super) fn new(needles: &'n Needles, chunk_bytes: usize) -> Searcher<'n> {
        let overlap = needles.longest() - 1;
        Searcher { needles, buffer: vec![0; overlap + chunk_bytes.max(1)], overlap }
    }

    /// Reads `stream` to its end.
    pub(super) fn search(&mut self, mut stream: impl Read) -> io::Result<Searched> {
        let mut searched = Searched {
            bytes: 0,
            histogram: Histogram::new(),
            tallies: vec![Tally::default(); self.needles.patterns().len()],
        };
        let mut carried = 0;
        loop {
            let (_, space) = self.buffer.split_at_mut(carried);
            let fresh = fill(&mut stream, space)?;
            if fresh == 0 {
                return Ok(searched);
            }
            let filled = carried + fresh;
            let window = self.buffer.get(..filled).unwrap_or_default();
            searched.histogram.count(window.get(carried..).unwrap_or_default());
            let window_offset = searched.bytes - carried as u64;
            for (pattern, tally) in self.needles.patterns().iter().zip(&mut searched.tallies) {
                // What ends within the carried bytes was counted with the chunk before.
                let mut from = (carried + 1).saturating_sub(pattern.len());
                while let Some(at) = pattern.finder.find(window.get(from..).unwrap_or_default()) {
                    tally.add(window_offset + (from + at) as u64);
                    from += at + 1;
                }
            }
            searched.bytes += fresh as u64;
            carried = filled.min(self.overlap);
            self.buffer.copy_within(filled - carried..filled, 0);
        }
    }
}

/// Reads until `space` is full or the stream ends; says how much.
fn fill(stream: &mut impl Read, space: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = space.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match stream.read(rest) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same by the plainest means.
    fn naive(needles: &Needles, bytes: &[u8]) -> Vec<Tally> {
        let search = |pattern: &super::super::needle::Pattern| {
            let mut tally = Tally::default();
            for (offset, window) in bytes.windows(pattern.len()).enumerate() {
                if window == pattern.finder.needle() {
                    tally.add(offset as u64);
                }
            }
            tally
        };
        needles.patterns().iter().map(search).collect()
    }

    proptest! {
        #[test]
        fn chunks_change_nothing_about_what_is_found(
            bytes in prop::collection::vec(prop::sample::select(b"ab\0".to_vec()), 0..300),
            chunk_bytes in 1usize..40,
        ) {
            let needles = Needles::new(["ab", "aab", "aaaa", "b", "abababab"]).unwrap();
            let searched = Searcher::new(&needles, chunk_bytes).search(bytes.as_slice()).unwrap();
            prop_assert_eq!(&searched.tallies, &naive(&needles, &bytes));
            prop_assert_eq!(searched.bytes, bytes.len() as u64);
            prop_assert_eq!(searched.histogram.0.iter().sum::<u64>(), bytes.len() as u64);
        }
    }

    #[test]
    fn a_needle_across_every_chunk_border_is_found_once() {
        let needles = Needles::new(["canary-of-a-certain-length"]).unwrap();
        let mut searcher = Searcher::new(&needles, 64);
        for offset in 0..200u64 {
            let mut bytes = vec![0xee; 300];
            let place = usize::try_from(offset).unwrap();
            bytes[place..place + 26].copy_from_slice(b"canary-of-a-certain-length");
            let searched = searcher.search(bytes.as_slice()).unwrap();
            assert_eq!(searched.tallies[0], Tally { count: 1, offsets: vec![offset] });
        }
    }

    #[test]
    fn counts_every_hit_but_remembers_only_the_first() {
        let needles = Needles::new(["x"]).unwrap();
        let searched = Searcher::new(&needles, 7).search([b'x'; 1000].as_slice()).unwrap();
        assert_eq!(searched.tallies[0].count, 1000);
        assert_eq!(searched.tallies[0].offsets, (0..PLACES_MAX as u64).collect::<Vec<_>>());
    }

    #[test]
    fn a_read_error_in_the_middle_is_no_end_of_file() {
        struct Fails(usize);
        impl Read for Fails {
            fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
                self.0 += 1;
                match self.0 {
                    1 => Err(io::ErrorKind::Interrupted.into()),
                    2 => Ok(space.len().min(3)),
                    _ => Err(io::Error::other("bad sector")),
                }
            }
        }
        let needles = Needles::new(["x"]).unwrap();
        assert!(Searcher::new(&needles, 8).search(Fails(0)).is_err());
    }

    #[test]
    fn entropy_is_that_of_the_textbook() {
        let entropy = |bytes: &[u8]| {
            let mut histogram = Histogram::new();
            histogram.count(bytes);
            histogram.entropy()
        };
        assert_eq!(entropy(b""), 0.0);
        assert_eq!(entropy(b"aaaa"), 0.0);
        assert_eq!(entropy(b"abab"), 1.0);
        assert_eq!(entropy(&(0..=255).collect::<Vec<u8>>()), 8.0);
    }
}
