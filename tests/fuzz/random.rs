//! Random numbers and what is made of them: picks, and mutations of bytes that know no format.

/// SplitMix64: small, quick, and the same for the same seed everywhere.
pub struct Random(u64);

/// Lengths and counts at which things tend to break.
const EDGES: [u64; 14] = [
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x100,
    0x7FFF,
    0xFFFF,
    0x1_0000,
    0x7FFF_FFFF,
    0xFFFF_FFFF,
    0x7FFF_FFFF_FFFF_FFFF,
    0xFFFF_FFFF_FFFF_FFFF,
];

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Less than `n`; 0 when `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { (self.u64() % n as u64) as usize }
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// A number that is often at an edge.
    pub fn number(&mut self) -> u64 {
        match self.below(3) {
            0 => self.pick(&EDGES),
            1 => self.u64() % 300,
            _ => self.u64(),
        }
    }

    /// At most `max` bytes.
    pub fn bytes(&mut self, max: usize) -> Vec<u8> {
        let n = self.below(max + 1);
        (0..n).map(|_| self.u64() as u8).collect()
    }

    /// Changes `bytes` in one to four places; `other` is something to take pieces from.
    pub fn mutate(&mut self, bytes: &mut Vec<u8>, other: &[u8], max: usize) {
        for _ in 0..=self.below(4) {
            self.mutate_once(bytes, other);
        }
        bytes.truncate(max);
    }

    fn mutate_once(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        let at = self.below(bytes.len() + 1);
        let len = self.below((bytes.len() - at).min(64) + 1);
        match self.below(9) {
            0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
            1 if at < bytes.len() => bytes[at] = self.number() as u8,
            2 => drop(bytes.drain(at..at + len)),
            3 => {
                let new = self.bytes(16);
                bytes.splice(at..at, new).for_each(drop);
            }
            4 => {
                let copy = bytes[at..at + len].to_vec();
                let to = self.below(bytes.len() + 1);
                bytes.splice(to..to, copy).for_each(drop);
            }
            5 if !other.is_empty() => {
                let from = self.below(other.len());
                let to = from + self.below((other.len() - from).min(200) + 1);
                bytes.splice(at..at + len, other[from..to].iter().copied()).for_each(drop);
            }
            6 => self.overwrite::<2>(bytes, at),
            7 => self.overwrite::<4>(bytes, at),
            8 => self.overwrite::<8>(bytes, at),
            _ => bytes.truncate(at),
        }
    }

    /// A length field is as good a guess as any.
    fn overwrite<const N: usize>(&mut self, bytes: &mut [u8], at: usize) {
        let number = self.number().to_be_bytes();
        if let Some(target) = bytes.get_mut(at..at + N) {
            target.copy_from_slice(&number[8 - N..]);
        }
    }
}
