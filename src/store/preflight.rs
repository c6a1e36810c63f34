//! A look at the database's logs (write-ahead logs and the MANIFEST) before RocksDB reads them, because RocksDB
//! takes some damage for an interrupted write, drops what stands behind it without a word, and hangs on one kind.
//!
//! A log is blocks of 32 KiB. A record is a masked CRC-32C, a length and a type (7 bytes, little-endian), then its
//! bytes; one that does not fit into its block is cut into pieces. Each commit is synced before the next is written,
//! so behind a commit that was cut short nothing begins: if something does, the commit before it was damaged later.
//! Whether a log that was cut short lacks anything that was promised cannot be seen here; the anchor tells.

use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::error::StoreError;
use super::files;

const BLOCK_BYTES: usize = 32 * 1024;
const HEADER_BYTES: usize = 7;

/// What the structure of a log says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogState {
    /// One record behind the other up to its end.
    Whole,
    /// It ends with something that is no record: a write was cut short, or the last record is damaged.
    Torn {
        /// Where the first record begins that is not whole.
        offset: u64,
    },
    /// A record is damaged that was written before others, or is of a type that is never written here.
    Corrupt {
        /// Where it begins.
        offset: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// Reads a log to its end, a block at a time.
///
/// # Errors
/// What reading gives.
pub fn check_log(mut source: impl Read) -> io::Result<LogState> {
    let mut block = Block { bytes: vec![0; BLOCK_BYTES], len: 0, start: 0 };
    let mut walk = Walk { unfinished: None, flaw: None };
    while block.read_next(&mut source)? {
        if let Err((offset, reason)) = walk.block(&block) {
            return Ok(LogState::Corrupt { offset, reason });
        }
    }
    let torn = walk.flaw.map(|flaw| flaw.commit).or(walk.unfinished);
    Ok(torn.map_or(LogState::Whole, |offset| LogState::Torn { offset }))
}

struct Block {
    bytes: Vec<u8>,
    len: usize,
    /// Where in the file it begins.
    start: u64,
}

impl Block {
    /// Whether there was anything left; only the last block is not full.
    fn read_next(&mut self, source: &mut impl Read) -> io::Result<bool> {
        self.start += self.len as u64;
        self.len = 0;
        while let Some(room) = self.bytes.get_mut(self.len..).filter(|room| !room.is_empty()) {
            match source.read(room) {
                Ok(0) => break,
                Ok(count) => self.len += count,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(self.len > 0)
    }

    fn rest(&self, at: usize) -> &[u8] {
        self.bytes.get(at..self.len).unwrap_or_default()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Piece {
    Full,
    First,
    Middle,
    Last,
}

impl Piece {
    fn begins(self) -> bool {
        matches!(self, Piece::Full | Piece::First)
    }
}

enum Found {
    /// A piece whose checksum fits, and its length with the header.
    Piece(Piece, usize),
    /// Nothing but a block's filler is left.
    End,
    /// Something that a cut may have left.
    Flaw(&'static str),
    /// A type that is never written here; RocksDB may hang on it or ignore it.
    Foreign,
}

fn find(rest: &[u8], block_is_full: bool) -> Found {
    let Some((header, payload)) = rest.split_first_chunk::<HEADER_BYTES>() else {
        let is_filler = block_is_full || rest.is_empty();
        return if is_filler { Found::End } else { Found::Flaw("its header is cut short") };
    };
    let [c0, c1, c2, c3, l0, l1, kind] = *header;
    let piece = match kind {
        0 => return Found::Flaw("zeros where a record should be"),
        1 => Piece::Full,
        2 => Piece::First,
        3 => Piece::Middle,
        4 => Piece::Last,
        _ => return Found::Foreign,
    };
    let len = usize::from(u16::from_le_bytes([l0, l1]));
    let Some(payload) = payload.get(..len) else { return Found::Flaw("it is longer than what is left") };
    let sum = crc32c::crc32c_append(crc32c::crc32c(&[kind]), payload);
    if masked(sum) != u32::from_le_bytes([c0, c1, c2, c3]) {
        return Found::Flaw("its checksum does not fit");
    }
    Found::Piece(piece, HEADER_BYTES + len)
}

/// How RocksDB stores a CRC-32C, so that a checksum over checksums is none by itself.
pub(super) fn masked(sum: u32) -> u32 {
    sum.rotate_right(15).wrapping_add(0xa282_ead8)
}

#[derive(Clone, Copy)]
struct Flaw {
    offset: u64,
    /// Where the commit begins that it is part of.
    commit: u64,
    reason: &'static str,
}

struct Walk {
    /// Where a commit began whose last piece has not come.
    unfinished: Option<u64>,
    /// The first thing that is no record; from then on only a later commit is looked for.
    flaw: Option<Flaw>,
}

impl Walk {
    /// Gives the place of what must be refused.
    fn block(&mut self, block: &Block) -> Result<(), (u64, &'static str)> {
        let (mut at, is_full) = (0, block.len == BLOCK_BYTES);
        loop {
            let offset = block.start + at as u64;
            match find(block.rest(at), is_full) {
                Found::End => return Ok(()),
                Found::Foreign => return Err((offset, "its type is never written by this program")),
                Found::Piece(piece, len) => {
                    self.piece(piece, offset)?;
                    at += len;
                }
                Found::Flaw(reason) => {
                    // Its length cannot be trusted, but the next block begins with a header.
                    let is_first = self.flaw.is_none();
                    self.flawed(offset, reason);
                    if is_first && (at + 1..block.len).any(|at| begins_commit(block.rest(at), is_full)) {
                        return Err((offset, reason));
                    }
                    return Ok(());
                }
            }
        }
    }

    fn piece(&mut self, piece: Piece, offset: u64) -> Result<(), (u64, &'static str)> {
        if let Some(flaw) = self.flaw {
            return if piece.begins() { Err((flaw.offset, flaw.reason)) } else { Ok(()) };
        }
        match (self.unfinished, piece) {
            (Some(commit), Piece::Full | Piece::First) => return Err((commit, "its end is missing")),
            (None, Piece::Middle | Piece::Last) => self.flawed(offset, "its beginning is missing"),
            (_, Piece::First) => self.unfinished = Some(offset),
            (_, Piece::Last) => self.unfinished = None,
            (_, Piece::Full | Piece::Middle) => {}
        }
        Ok(())
    }

    fn flawed(&mut self, offset: u64, reason: &'static str) {
        let commit = self.unfinished.unwrap_or(offset);
        self.flaw.get_or_insert(Flaw { offset, commit, reason });
    }
}

fn begins_commit(rest: &[u8], block_is_full: bool) -> bool {
    matches!(find(rest, block_is_full), Found::Piece(piece, _) if piece.begins())
}

/// A log that was cut short.
#[derive(Debug)]
pub(super) struct Tear {
    path: PathBuf,
    offset: u64,
}

/// What the logs of a database look like; none of them is corrupt.
#[derive(Debug, Default)]
pub(super) struct Findings {
    tears: Vec<Tear>,
    logs: usize,
    /// Of all logs together.
    pub(super) bytes: u64,
    /// What is cut may reach further than the last commit.
    pub(super) is_deep: bool,
}

impl Findings {
    pub(super) fn is_torn(&self) -> bool {
        !self.tears.is_empty()
    }
}

impl std::fmt::Display for Findings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Some(tear) = self.tears.first() else {
            return write!(f, "its {} logs ({} bytes) are whole", self.logs, self.bytes);
        };
        write!(f, "{} is cut short at byte {}", tear.path.display(), tear.offset)
    }
}

/// Looks at CURRENT, the MANIFEST that it names, and all write-ahead logs. `None` when there is no database yet.
///
/// # Errors
/// `E_CURRENT_CORRUPT`, `E_MANIFEST_CORRUPT`, `E_WAL_CORRUPT` with file and offset; `E_DB_MISSING` when there are
/// files of a database without CURRENT.
pub(super) fn check(database: &Path) -> Result<Option<Findings>, StoreError> {
    check_each(database, Err)
}

/// The same, with each damage shown to `fault`, which says whether to go on.
pub(super) fn check_each(
    database: &Path,
    mut fault: impl FnMut(StoreError) -> Result<(), StoreError>,
) -> Result<Option<Findings>, StoreError> {
    let failed = |e| StoreError::io("read", database, e);
    let (mut logs, mut contents) = (Vec::new(), None);
    let folder = match std::fs::read_dir(database) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        folder => folder.map_err(failed)?,
    };
    for entry in folder {
        let path = entry.map_err(failed)?.path();
        let number =
            path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<u64>().ok());
        let suffix = path.extension().and_then(|suffix| suffix.to_str());
        match (number, suffix) {
            (Some(number), Some("log")) => logs.push((number, path)),
            (Some(_), Some("sst" | "blob")) => contents = Some(path),
            _ => {}
        }
    }
    logs.sort();
    let Some(manifest) = current(database)? else {
        return match contents.or(logs.pop().map(|(_, path)| path)) {
            None => Ok(None),
            Some(path) => Err(StoreError::DatabaseMissing {
                dir: database.to_path_buf(),
                evidence: format!("{} is there, CURRENT is not", path.display()),
            }),
        };
    };
    let mut findings = Findings::default();
    findings.is_deep |= findings.add(&manifest, "E_MANIFEST_CORRUPT", &mut fault)?;
    let last = logs.last().map(|(number, _)| *number);
    for (number, path) in &logs {
        let is_torn = findings.add(path, "E_WAL_CORRUPT", &mut fault)?;
        findings.is_deep |= is_torn && Some(*number) != last;
    }
    Ok(Some(findings))
}

impl Findings {
    /// Whether the log was cut short.
    fn add(
        &mut self,
        path: &Path,
        code: &'static str,
        fault: &mut impl FnMut(StoreError) -> Result<(), StoreError>,
    ) -> Result<bool, StoreError> {
        let failed = |e| StoreError::io("read", path, e);
        let corrupt =
            |offset, reason| StoreError::LogCorrupt { code, path: path.to_path_buf(), offset, reason };
        let file = match files::open(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return fault(corrupt(0, "it is missing, and CURRENT names it")).map(|()| false);
            }
            file => file.map_err(failed)?,
        };
        self.logs += 1;
        self.bytes += file.metadata().map_err(failed)?.len();
        match check_log(file).map_err(failed)? {
            LogState::Whole => Ok(false),
            LogState::Corrupt { offset, reason } => fault(corrupt(offset, reason)).map(|()| false),
            LogState::Torn { offset } => {
                self.tears.push(Tear { path: path.to_path_buf(), offset });
                Ok(true)
            }
        }
    }
}

/// The MANIFEST that is in force; `None` when there is no CURRENT.
fn current(database: &Path) -> Result<Option<PathBuf>, StoreError> {
    let path = database.join("CURRENT");
    let Some(bytes) = files::read(&path)? else { return Ok(None) };
    let name = bytes.strip_suffix(b"\n").and_then(|name| std::str::from_utf8(name).ok());
    let number = name.and_then(|name| name.strip_prefix("MANIFEST-"));
    match (name, number) {
        (Some(name), Some(number)) if number.len() >= 6 && number.bytes().all(|b| b.is_ascii_digit()) => {
            Ok(Some(database.join(name)))
        }
        _ => Err(StoreError::LogCorrupt {
            code: "E_CURRENT_CORRUPT",
            path,
            offset: 0,
            reason: "it names no MANIFEST",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A log as RocksDB writes it: each payload one commit. Gives the places of all headers as well.
    fn log(payloads: &[Vec<u8>]) -> (Vec<u8>, Vec<usize>) {
        let (mut out, mut headers) = (Vec::new(), Vec::new());
        for payload in payloads {
            let (mut left, mut is_first) = (&payload[..], true);
            loop {
                let mut room = BLOCK_BYTES - out.len() % BLOCK_BYTES;
                if room < HEADER_BYTES {
                    out.resize(out.len() + room, 0);
                    room = BLOCK_BYTES;
                }
                let (piece, rest) = left.split_at(left.len().min(room - HEADER_BYTES));
                let kind = match (is_first, rest.is_empty()) {
                    (true, true) => 1,
                    (true, false) => 2,
                    (false, false) => 3,
                    (false, true) => 4,
                };
                headers.push(out.len());
                out.extend_from_slice(&checksum(kind, piece).to_le_bytes());
                out.extend_from_slice(&(piece.len() as u16).to_le_bytes());
                out.push(kind);
                out.extend_from_slice(piece);
                (left, is_first) = (rest, false);
                if rest.is_empty() {
                    break;
                }
            }
        }
        (out, headers)
    }

    fn checksum(kind: u8, piece: &[u8]) -> u32 {
        masked(crc32c::crc32c(&[&[kind], piece].concat()))
    }

    fn payloads() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let payload = prop_oneof![0..200usize, 32_700..32_800usize, 60_000..100_000usize];
        proptest::collection::vec((payload, any::<u64>()), 1..5).prop_map(|commits| {
            let noise = |seed: u64| move |i: usize| (seed.wrapping_mul(i as u64 * 2 + 1) >> 29) as u8;
            commits.into_iter().map(|(len, seed)| (0..len).map(noise(seed)).collect()).collect()
        })
    }

    fn state(bytes: &[u8]) -> LogState {
        check_log(bytes).unwrap()
    }

    /// Gives a few bytes at a time, as a pipe may.
    struct Trickle<'a>(&'a [u8]);

    impl Read for Trickle<'_> {
        fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
            let len = room.len().min(self.0.len()).min(1000);
            let (now, later) = self.0.split_at(len);
            room[..len].copy_from_slice(now);
            self.0 = later;
            Ok(len)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_log_is_whole_however_it_is_read(payloads in payloads()) {
            let (bytes, _) = log(&payloads);
            prop_assert_eq!(state(&bytes), LogState::Whole);
            prop_assert_eq!(check_log(Trickle(&bytes)).unwrap(), LogState::Whole);
        }

        #[test]
        fn a_cut_log_is_torn_at_a_commit_or_whole_where_one_ends(payloads in payloads(), cut: prop::sample::Index) {
            let (bytes, _) = log(&payloads);
            let cut = cut.index(bytes.len() + 1);
            let mut end = 0;
            let ends: Vec<usize> = (1..=payloads.len()).map(|n| log(&payloads[..n]).0.len()).collect();
            for at in ends {
                if at <= cut {
                    end = at;
                }
            }
            match state(&bytes[..cut]) {
                // The filler of a block belongs to no commit.
                LogState::Whole => prop_assert!(cut == end || bytes[end..cut].iter().all(|b| *b == 0)),
                LogState::Torn { offset } => prop_assert!(offset as usize >= end && offset as usize <= cut),
                LogState::Corrupt { .. } => prop_assert!(false, "a cut is no corruption"),
            }
        }

        #[test]
        fn any_flipped_bit_is_found_and_refused_unless_it_stands_in_the_last_commit(
            payloads in payloads(),
            at: prop::sample::Index,
            bit in 0..8u8,
        ) {
            let (mut bytes, headers) = log(&payloads);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let last = log(&payloads[..payloads.len() - 1]).0.len();
            let in_filler = {
                let (block, within) = (at / BLOCK_BYTES, at % BLOCK_BYTES);
                let of_block = headers.iter().filter(|h| **h / BLOCK_BYTES == block).max();
                let end = of_block.map_or(0, |h| {
                    let len = usize::from(u16::from_le_bytes([bytes[h + 4], bytes[h + 5]]));
                    h % BLOCK_BYTES + HEADER_BYTES + len
                });
                within > BLOCK_BYTES - HEADER_BYTES && end <= within
            };
            match state(&bytes) {
                LogState::Whole => prop_assert!(in_filler),
                LogState::Torn { offset } => prop_assert!(at >= last && offset as usize >= last),
                LogState::Corrupt { offset, .. } => prop_assert!(offset as usize <= at),
            }
        }

        #[test]
        fn nothing_makes_it_fail_or_hang(bytes in proptest::collection::vec(any::<u8>(), 0..100_000)) {
            state(&bytes);
        }
    }

    #[test]
    fn a_type_that_makes_rocksdb_hang_is_refused_even_in_the_last_record() {
        for kind in 5..=255 {
            let (mut bytes, headers) = log(&[vec![1; 40], vec![2; 40]]);
            let at = headers[1];
            bytes[at + 6] = kind;
            for sum_fits in [false, true] {
                if sum_fits {
                    let sum = checksum(kind, &[2; 40]).to_le_bytes();
                    bytes[at..at + 4].copy_from_slice(&sum);
                }
                let LogState::Corrupt { offset, .. } = state(&bytes) else { panic!("type {kind} passed") };
                assert_eq!(offset as usize, at);
            }
        }
    }

    #[test]
    fn a_tail_of_zeros_is_torn_and_zeros_before_a_commit_are_corrupt() {
        let (bytes, headers) = log(&[vec![1; 40], vec![2; 40], vec![3; 40]]);
        for zeros in [1, 6, 7, 4096, 3 * BLOCK_BYTES] {
            let tail = [&bytes[..], &vec![0; zeros]].concat();
            assert_eq!(state(&tail), LogState::Torn { offset: bytes.len() as u64 }, "{zeros}");
        }
        let mut hole = bytes;
        hole[headers[1]..headers[2]].fill(0);
        assert!(matches!(state(&hole), LogState::Corrupt { offset: 47, .. }));
    }

    #[test]
    fn a_hole_of_whole_blocks_is_corrupt() {
        let (mut bytes, headers) = log(&[vec![1; 100_000], vec![2; 100_000], vec![3; 10]]);
        bytes[BLOCK_BYTES..2 * BLOCK_BYTES].fill(0);
        assert!(matches!(state(&bytes), LogState::Corrupt { offset: 32_768, .. }));
        let (mut bytes, _) = log(&[vec![1; 100_000], vec![2; 100_000], vec![3; 10]]);
        let middle = headers[5];
        bytes.truncate(middle);
        bytes.extend_from_slice(&log(&[vec![9; 10]]).0);
        assert!(
            matches!(state(&bytes), LogState::Corrupt { .. }),
            "a commit without its end, and one behind it"
        );
    }

    #[test]
    fn adversarial_blocks_take_no_time_worth_mentioning() {
        // Each byte could begin a record that reaches to the end of its block.
        let bytes: Vec<u8> = [0x01, 0x40].iter().copied().cycle().take(8 * BLOCK_BYTES).collect();
        assert!(matches!(state(&bytes), LogState::Corrupt { .. } | LogState::Torn { .. }));
    }

    #[test]
    fn files_of_a_database_without_current_are_no_new_database() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check(&dir.path().join("none")).unwrap().is_none());
        assert!(check(dir.path()).unwrap().is_none());
        std::fs::write(dir.path().join("MANIFEST-000001"), "a creation that was cut short").unwrap();
        assert!(check(dir.path()).unwrap().is_none());
        std::fs::write(dir.path().join("000007.sst"), "a table").unwrap();
        assert_eq!(check(dir.path()).unwrap_err().code(), "E_DB_MISSING");
        std::fs::write(dir.path().join("CURRENT"), "MANIFEST-00001x\n").unwrap();
        assert_eq!(check(dir.path()).unwrap_err().code(), "E_CURRENT_CORRUPT");
        std::fs::write(dir.path().join("CURRENT"), "MANIFEST-000002\n").unwrap();
        assert_eq!(check(dir.path()).unwrap_err().code(), "E_MANIFEST_CORRUPT");
    }

    #[test]
    fn a_cut_in_any_log_but_the_last_is_deep() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
        let (whole, _) = log(&[vec![1; 40], vec![2; 40]]);
        let cut = &whole[..whole.len() - 1];
        write("CURRENT", b"MANIFEST-000004\n");
        for (manifest, first, last, is_torn, is_deep) in [
            (&whole[..], &whole[..], &whole[..], false, false),
            (&whole, &whole, cut, true, false),
            (&whole, cut, &whole, true, true),
            (cut, &whole, &whole, true, true),
        ] {
            write("MANIFEST-000004", manifest);
            write("000009.log", first);
            write("000010.log", last);
            let findings = check(dir.path()).unwrap().unwrap();
            assert_eq!((findings.is_torn(), findings.is_deep), (is_torn, is_deep));
        }
        let said = check(dir.path()).unwrap().unwrap().to_string();
        assert!(said.contains("MANIFEST-000004 is cut short at byte 47"), "{said}");
    }
}
