//! A file as a few numbers and a few thousand pixels, however large it is: what the pictures of a report are made of.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

/// Pixels of a byte map in a row.
pub(super) const MAP_WIDTH: usize = 128;
/// Pixels of a byte map; of larger files some bytes are drawn, at equal distances.
pub(super) const MAP_PIXELS_MAX: usize = MAP_WIDTH * 128;
/// Windows whose entropy is drawn.
const WINDOWS_MAX: u64 = 192;
/// Bytes of the shortest window: fewer say little about randomness.
const WINDOW_BYTES_MIN: u64 = 512;
/// How much is read at a time, in bytes.
const CHUNK_BYTES: usize = 256 * 1024;

/// What a byte looks like, and its colour's number; 0 is what stands behind the end of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Look {
    /// 0x00.
    Zero = 1,
    /// Printable ASCII, line ends and tabs.
    Text = 2,
    /// Anything else.
    Other = 3,
    /// Part of something that was looked for.
    Hit = 4,
}

impl Look {
    pub(super) fn of(byte: u8) -> Look {
        match byte {
            0 => Look::Zero,
            0x20..=0x7e | b'\n' | b'\r' | b'\t' => Look::Text,
            _ => Look::Other,
        }
    }
}

/// A file, measured.
pub(super) struct Portrait {
    pub(super) bytes: u64,
    /// One byte in so many is drawn.
    pub(super) step: u64,
    /// A [`Look`] for each byte that is drawn.
    pub(super) map: Vec<u8>,
    /// How often each byte value occurs, in the whole file.
    pub(super) histogram: Histogram,
    /// The entropy of each window, in bits per byte; together they are the whole file.
    pub(super) entropies: Vec<f64>,
    /// Bytes of a window; the last one may be shorter.
    pub(super) window_bytes: u64,
    /// Of the whole file.
    pub(super) sha256: [u8; 32],
}

/// How often each byte value occurs.
pub(super) struct Histogram(pub(super) [u64; 256]);

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram([0; 256])
    }
}

impl Histogram {
    fn count(&mut self, byte: u8) {
        self.0[usize::from(byte)] += 1;
    }
}

/// The window that is being read.
#[derive(Default)]
struct Window {
    histogram: Histogram,
    bytes: u64,
    /// Bytes up to the next one that is drawn.
    until_drawn: u64,
}

impl Portrait {
    /// Reads a file of about `len` bytes; `hits` are places that were found, as first byte and length.
    pub(super) fn of_file(path: &Path, len: u64, hits: &[(u64, u64)]) -> io::Result<Portrait> {
        Portrait::read(File::open(path)?, len, hits)
    }

    fn read(mut source: impl Read, len: u64, hits: &[(u64, u64)]) -> io::Result<Portrait> {
        let step = len.div_ceil(MAP_PIXELS_MAX as u64).max(1);
        let window_bytes = len.div_ceil(WINDOWS_MAX).max(WINDOW_BYTES_MIN);
        let mut portrait = Portrait {
            bytes: 0,
            step,
            map: Vec::new(),
            histogram: Histogram::default(),
            entropies: Vec::new(),
            window_bytes,
            sha256: [0; 32],
        };
        let (mut buffer, mut hash) = (vec![0; CHUNK_BYTES], Sha256::new());
        let mut window = Window::default();
        loop {
            let count = match source.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                count => count?,
            };
            let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else { break };
            hash.update(bytes);
            for byte in bytes {
                portrait.see(*byte, &mut window);
            }
        }
        if window.bytes > 0 {
            portrait.entropies.push(entropy(&window.histogram.0));
        }
        portrait.mark(hits);
        portrait.sha256 = hash.finalize().into();
        Ok(portrait)
    }

    fn see(&mut self, byte: u8, window: &mut Window) {
        if window.until_drawn == 0 {
            // A file that grew meanwhile is drawn up to the length that was announced.
            if self.map.len() < MAP_PIXELS_MAX {
                self.map.push(Look::of(byte) as u8);
            }
            window.until_drawn = self.step;
        }
        window.until_drawn -= 1;
        self.histogram.count(byte);
        window.histogram.count(byte);
        self.bytes += 1;
        window.bytes += 1;
        if window.bytes == self.window_bytes {
            self.entropies.push(entropy(&window.histogram.0));
            *window = Window { until_drawn: window.until_drawn, ..Window::default() };
        }
    }

    /// A hit is drawn even where none of its bytes would be.
    fn mark(&mut self, hits: &[(u64, u64)]) {
        for (offset, len) in hits {
            let (first, last) = (offset / self.step, (offset + len.saturating_sub(1)) / self.step);
            for place in first..=last {
                let pixel = usize::try_from(place).ok().and_then(|place| self.map.get_mut(place));
                pixel.into_iter().for_each(|pixel| *pixel = Look::Hit as u8);
            }
        }
    }

    /// Shannon entropy of the whole file, in bits per byte.
    pub(super) fn entropy(&self) -> f64 {
        entropy(&self.histogram.0)
    }

    /// The share of bytes that are text, 0 to 1. Of random bytes it is 98 in 256.
    pub(super) fn text_share(&self) -> f64 {
        let texts = (0..=255u8).zip(self.histogram.0).filter(|(byte, _)| Look::of(*byte) == Look::Text);
        texts.map(|(_, count)| count).sum::<u64>() as f64 / self.bytes.max(1) as f64
    }

    /// The most frequent byte and its share.
    pub(super) fn peak(&self) -> (u8, f64) {
        let most = (0..=255u8).zip(self.histogram.0).max_by_key(|(_, count)| *count).unwrap_or_default();
        (most.0, most.1 as f64 / self.bytes.max(1) as f64)
    }
}

fn entropy(histogram: &[u64; 256]) -> f64 {
    let total: u64 = histogram.iter().sum();
    let shares = histogram.iter().filter(|count| **count > 0).map(|count| *count as f64 / total as f64);
    shares.map(|share| -share * share.log2()).sum::<f64>().abs()
}

/// The entropy that random bytes show in a window of this length: less than 8, the shorter the less. Found by trying,
/// with a generator that gives the same in each run (xorshift).
pub(super) fn entropy_of_chance(window_bytes: u64) -> f64 {
    const TRIALS: u64 = 16;
    if window_bytes > 1 << 16 {
        return 8.0;
    }
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut sum = 0.0;
    for _ in 0..TRIALS {
        let mut histogram = Histogram::default();
        for _ in 0..window_bytes {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            histogram.count((state >> 32) as u8);
        }
        sum += entropy(&histogram.0);
    }
    sum / TRIALS as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_of_a_small_file_is_a_pixel() {
        let portrait = Portrait::read(&b"text\0\xff\n"[..], 7, &[(1, 2)]).unwrap();
        let looks = [Look::Text, Look::Hit, Look::Hit, Look::Text, Look::Zero, Look::Other, Look::Text];
        assert_eq!(portrait.map, looks.map(|look| look as u8));
        assert_eq!((portrait.step, portrait.bytes, portrait.entropies.len()), (1, 7, 1));
        assert_eq!((portrait.text_share() * 7.0).round(), 5.0);
        assert_eq!(portrait.peak().0, b't');
    }

    #[test]
    fn a_large_file_is_sampled_and_measured_whole() {
        let bytes: Vec<u8> =
            (0..100_000u32).map(|at| if at < 50_000 { 0 } else { ((at * 167) >> 3) as u8 }).collect();
        let portrait = Portrait::read(&bytes[..], bytes.len() as u64, &[(99_999, 1)]).unwrap();
        assert_eq!(portrait.step, 7);
        assert_eq!(portrait.map.len(), 100_000usize.div_ceil(7));
        assert_eq!(portrait.map.last(), Some(&(Look::Hit as u8)));
        assert_eq!(portrait.histogram.0.iter().sum::<u64>(), 100_000);
        assert_eq!(portrait.entropies.len() as u64, 100_000u64.div_ceil(portrait.window_bytes));
        assert_eq!(portrait.entropies.first(), Some(&0.0));
        assert!(portrait.entropies.last().is_some_and(|last| *last > 5.0));
    }

    #[test]
    fn a_file_that_is_not_as_long_as_it_was_does_no_harm() {
        for len in [0, 1, 50, 1 << 40] {
            let portrait = Portrait::read(&[7u8; 40_000][..], len, &[(1 << 39, 3)]).unwrap();
            assert!(portrait.bytes == 40_000 && portrait.map.len() <= MAP_PIXELS_MAX);
        }
        let empty = Portrait::read(&b""[..], 0, &[]).unwrap();
        assert_eq!((empty.entropy(), empty.text_share(), empty.entropies.len()), (0.0, 0.0, 0));
    }

    #[test]
    fn random_bytes_show_less_than_eight_bits_in_short_windows() {
        assert!((7.4..7.7).contains(&entropy_of_chance(512)), "{}", entropy_of_chance(512));
        assert!(entropy_of_chance(60_000) > 7.99);
        assert_eq!(entropy_of_chance(1 << 20), 8.0);
    }
}
