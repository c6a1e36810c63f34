//! Which blob file is damaged, and where: RocksDB says only that one is. Looked for when a read has failed, never
//! beforehand, because it reads all of them.
//!
//! A blob file is a header of 30 bytes, records, and a footer of 32 bytes once it is complete. A record is the lengths
//! of key and value, an expiration (u64 each, little-endian), a masked CRC-32C of these, one of key and value, then both.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use super::preflight::masked;

const FILE_HEADER_BYTES: u64 = 30;
const FOOTER_BYTES: u64 = 32;
const RECORD_HEADER_BYTES: u64 = 32;

/// The first damaged place in the first damaged file; `None` when all records are sound or a file cannot be read.
pub(super) fn find_damage(database: &Path) -> Option<(PathBuf, u64)> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(database).ok()?.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|suffix| suffix == "blob"));
    files.sort();
    files.into_iter().find_map(|path| {
        let file = File::open(&path).ok()?;
        let len = file.metadata().ok()?.len();
        damaged_record(BufReader::new(file), len).map(|offset| (path, offset))
    })
}

/// Where the first record begins that is damaged. Lengths are trusted only where their checksum fits.
fn damaged_record(mut file: impl Read, len: u64) -> Option<u64> {
    let mut header = [0; RECORD_HEADER_BYTES as usize];
    file.read_exact(header.get_mut(..FILE_HEADER_BYTES as usize)?).ok()?;
    let mut at = FILE_HEADER_BYTES;
    let mut buffer = vec![0; 64 * 1024];
    while at + RECORD_HEADER_BYTES <= len {
        file.read_exact(&mut header).ok()?;
        let (lengths, sums) = header.split_first_chunk::<24>()?;
        let (of_lengths, of_record) = sums.split_first_chunk::<4>()?;
        if masked(crc32c::crc32c(lengths)) != u32::from_le_bytes(*of_lengths) {
            // The footer has as many bytes as a header.
            return (at + FOOTER_BYTES != len).then_some(at);
        }
        let (key, lengths) = lengths.split_first_chunk::<8>()?;
        let (value, _) = lengths.split_first_chunk::<8>()?;
        let bytes = u64::from_le_bytes(*key).checked_add(u64::from_le_bytes(*value))?;
        let end = (at + RECORD_HEADER_BYTES).checked_add(bytes).filter(|end| *end <= len);
        let Some(end) = end else { return Some(at) };
        let (mut sum, mut left) = (0, bytes);
        while left > 0 {
            let take = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let piece = buffer.get_mut(..take)?;
            file.read_exact(piece).ok()?;
            sum = crc32c::crc32c_append(sum, piece);
            left -= take as u64;
        }
        if masked(sum).to_le_bytes() != *of_record {
            return Some(at);
        }
        at = end;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
        let mut out = [key.len() as u64, value.len() as u64, 0].map(u64::to_le_bytes).concat();
        out.extend_from_slice(&masked(crc32c::crc32c(&out)).to_le_bytes());
        out.extend_from_slice(&masked(crc32c::crc32c(&[key, value].concat())).to_le_bytes());
        [&out[..], key, value].concat()
    }

    #[test]
    fn each_flipped_byte_of_a_record_is_found_at_the_record() {
        let head = vec![5; 30];
        let (first, second) = (record(b"key 1", &[1; 100]), record(b"key 2", &[2; 200]));
        let second_at = 30 + first.len();
        let file = [head, first, second, vec![7; 32]].concat();
        let found = |file: &[u8]| damaged_record(file, file.len() as u64);
        assert_eq!(found(&file), None);
        assert_eq!(found(&file[..file.len() - 32]), None, "a file that was never completed");
        for at in 30..file.len() - 32 {
            let mut damaged = file.clone();
            damaged[at] ^= 0x10;
            let wanted = if at < second_at { 30 } else { second_at };
            assert_eq!(found(&damaged), Some(wanted as u64), "byte {at}");
        }
    }

    #[test]
    fn any_bytes_come_to_an_end() {
        for len in [0, 29, 30, 61, 62, 63, 500] {
            damaged_record(&vec![0xff; len][..], len as u64);
            damaged_record(&vec![0; len][..], len as u64);
        }
    }
}
