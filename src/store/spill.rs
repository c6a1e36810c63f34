//! Where transient messages go that have no room in memory: files beside the database, written in blocks, sealed under
//! a key that only this process has and never writes anywhere, in a plain store as well. Nothing here is synced or
//! recovered: [`Folder`] removes what a crash has left, which nobody can read, before the store serves.
//!
//! ```text
//! spill/0123456789abcdef    sealed record | sealed record | ...    one for each block
//! ```
//!
//! A block is written once and read once, as a whole; where it stands and how long it is are known in memory only, so
//! nothing on the disk is believed but what opens. What was read is punched out of its file, and a file goes with its
//! last block ([`Spill::reclaim`]). One thread owns all of this, so there is no lock.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, OFlags};

use super::error::StoreError;
use super::files::FolderLock;
use super::sealing::Unreadable;
use crate::broker::id::Seq;
use crate::broker::message::Message;
use crate::broker::queue::Entry;
use crate::limits::{PAGE_RETRY_MS, SPILL_READ_TRIES_MAX, SPILL_SEGMENT_BYTES_MAX};
use crate::seal::context::Place;
use crate::seal::envelope::{FLAG_PADDED, HEADER_BYTES, Kind};
use crate::seal::key::Dek;
use crate::seal::nonce::{NoRandomness, random};
use crate::seal::padding::Padding;
use crate::seal::record::{Key, Opener, Sealer};

/// The folder in the data directory.
pub const SPILL_DIR: &str = "spill";
/// By what records name the key; no keyring comes near it.
const KEY_ID: u32 = u32::MAX;
/// The letter of these records' places; no column family has it.
const FAMILY: u8 = b't';
/// Digits of a file's name.
const NAME_LEN: usize = 16;
/// What stands in front of each message: see [`write_entry`].
const ENTRY_HEAD_BYTES: usize = 8 + 1 + 4 + 1 + 8 + 4;
/// A larger buffer is not kept for the next block.
const BUFFER_BYTES_KEPT: usize = 1024 * 1024;

/// Blocks on the disk.
pub struct Spill {
    data_dir: PathBuf,
    sealer: Sealer,
    opener: Opener,
    padding: Padding,
    blocks: HashMap<u64, Stretch>,
    /// by number
    segments: HashMap<u64, Segment>,
    /// the one that is written to
    writer: Option<(u64, File)>,
    /// the one that was read last
    reader: Option<(u64, File)>,
    last_segment: u64,
    /// what is still on the disk and needed by nobody
    freed: Vec<Stretch>,
    /// whether the file system gives back parts of files
    can_punch: bool,
    record: Vec<u8>,
    text: Vec<u8>,
}

/// One file.
struct Segment {
    /// written so far, in bytes
    len: u64,
    /// blocks that are not read yet
    live: u32,
}

/// Where a block is.
#[derive(Clone, Copy)]
struct Stretch {
    segment: u64,
    offset: u64,
    /// of the sealed record
    len: usize,
    /// before it was padded
    text_len: usize,
    /// how often it could not be read
    tries: u32,
    /// when that was counted last
    tried_ms: u64,
}

impl Stretch {
    fn end(&self) -> u64 {
        self.offset + self.len as u64
    }
}

/// Blocks could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct NotSpilled {
    /// How many of them were, the first ones.
    pub written: usize,
    /// Why the next was not.
    pub error: StoreError,
}

/// A block cannot be read; unless it says otherwise its messages are lost.
#[derive(Debug, thiserror::Error)]
pub enum SpillLost {
    /// It was read or given up before.
    #[error("there is no such block")]
    Gone,
    /// The disk does not give it this time: it is still there, and not lost.
    #[error("{path} cannot be read now: {source}")]
    NotNow {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The disk has not given it too often.
    #[error("{path} cannot be read: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not what was written.
    #[error("{path} is damaged at byte {offset}: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the block begins.
        offset: u64,
        /// `E_RECORD_FORGED` or `E_RECORD_DAMAGED`.
        code: &'static str,
        /// What is wrong.
        reason: String,
    },
}

impl SpillLost {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            SpillLost::Gone => "E_BODY_MISSING",
            SpillLost::NotNow { .. } | SpillLost::Io { .. } => "E_STORE_IO",
            SpillLost::Damaged { code, .. } => code,
        }
    }
}

/// The folder, empty when a store is opened and when it was closed. With it the store's lock is given back.
pub(super) struct Folder {
    dir: PathBuf,
    _lock: FolderLock,
}

impl Folder {
    /// Removes what an earlier process has left.
    pub(super) fn emptied(data_dir: &Path, lock: FolderLock) -> Result<Folder, StoreError> {
        let folder = Folder { dir: data_dir.join(SPILL_DIR), _lock: lock };
        clear(&folder.dir)?;
        Ok(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = clear(&self.dir) {
            tracing::warn!(code = error.code(), "what was spilled is left to the next start: {error}");
        }
    }
}

/// Removes our files; others' are not touched.
fn clear(dir: &Path) -> Result<(), StoreError> {
    let failed = |e| StoreError::io("clear", dir, e);
    match fs::symlink_metadata(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
        Ok(facts) if !facts.is_dir() => return Err(failed(ErrorKind::NotADirectory.into())),
        Ok(_) => {}
    }
    for found in fs::read_dir(dir).map_err(failed)? {
        let found = found.map_err(failed)?;
        if is_segment(found.file_name().as_encoded_bytes()) {
            remove(&found.path()).map_err(failed)?;
        }
    }
    Ok(())
}

fn is_segment(name: &[u8]) -> bool {
    name.len() == NAME_LEN && name.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn remove(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

impl Spill {
    /// A place without a file yet, under a new key.
    ///
    /// # Errors
    /// When the kernel gives no random bytes.
    pub(super) fn new(data_dir: &Path, store: [u8; 16], padding: Padding) -> Result<Spill, NoRandomness> {
        let key = Arc::new(Key::data(KEY_ID, &Dek::generate()?));
        // Not the names of an earlier one that is still about to remove its files.
        let last_segment = u64::from_be_bytes(random()?) >> 1;
        Ok(Spill {
            data_dir: data_dir.to_path_buf(),
            sealer: Sealer::new(Arc::clone(&key), store)?,
            opener: Opener::new(vec![key], store),
            padding,
            blocks: HashMap::new(),
            segments: HashMap::new(),
            writer: None,
            reader: None,
            last_segment,
            freed: Vec::new(),
            can_punch: true,
            record: Vec::new(),
            text: Vec::new(),
        })
    }

    /// Whether the disk has as many bytes free; false when it cannot be asked.
    pub fn has_free(&self, bytes: u64) -> bool {
        rustix::fs::statvfs(&self.data_dir).is_ok_and(|facts| facts.f_bavail * facts.f_frsize >= bytes)
    }

    /// Writes blocks, each under a number that was never used before. They must not change after this was called:
    /// a memory image that runs twice draws the same nonces for the same text then.
    ///
    /// # Errors
    /// When the disk takes no more; those that were written can be read.
    pub fn write<'e, D: 'e>(
        &mut self,
        blocks: impl IntoIterator<Item = (u64, &'e [Entry<D>])>,
    ) -> Result<(), NotSpilled> {
        let renewed = self.sealer.renew();
        renewed.map_err(|e| NotSpilled { written: 0, error: StoreError::system(&self.data_dir, e) })?;
        for (written, (id, entries)) in blocks.into_iter().enumerate() {
            self.write_block(id, entries).map_err(|error| NotSpilled { written, error })?;
        }
        Ok(())
    }

    fn write_block<D>(&mut self, id: u64, entries: &[Entry<D>]) -> Result<(), StoreError> {
        let mut record = std::mem::take(&mut self.record);
        record.clear();
        record.resize(HEADER_BYTES, 0);
        entries.iter().for_each(|entry| write_entry(entry, &mut record));
        let text_len = record.len() - HEADER_BYTES;
        record.resize(HEADER_BYTES + self.padding.of(text_len), 0);
        let sealed = self.sealer.seal(Kind::Body, FLAG_PADDED, place(&id.to_be_bytes()), &mut record);
        let written = match sealed {
            Ok(_) => self.append(&record),
            Err(e) => Err(StoreError::system(&self.data_dir, e)),
        };
        let len = record.len();
        self.record = kept(record);
        let (segment, offset) = written?;
        self.blocks.insert(id, Stretch { segment, offset, len, text_len, tries: 0, tried_ms: 0 });
        Ok(())
    }

    fn append(&mut self, record: &[u8]) -> Result<(u64, u64), StoreError> {
        let number = self.segment_for(record.len() as u64)?;
        let (Some((_, file)), Some(segment)) = (&self.writer, self.segments.get_mut(&number)) else {
            return Err(StoreError::io("write", &self.data_dir, std::io::Error::from(ErrorKind::NotFound)));
        };
        let offset = segment.len;
        if let Err(error) = file.write_all_at(record, offset) {
            // What has come there is of no use to anybody; if it cannot be taken back, the next block goes over it.
            let _ = file.set_len(offset);
            let path = self.path(number);
            self.drop_if_empty(number);
            return Err(StoreError::io("write", &path, error));
        }
        segment.len += record.len() as u64;
        segment.live += 1;
        Ok((number, offset))
    }

    /// The file that so many bytes go to.
    fn segment_for(&mut self, bytes: u64) -> Result<u64, StoreError> {
        if let Some((number, _)) = &self.writer {
            let len = self.segments.get(number).map_or(0, |segment| segment.len);
            if len == 0 || len + bytes <= SPILL_SEGMENT_BYTES_MAX {
                return Ok(*number);
            }
        }
        self.last_segment += 1;
        let (number, path) = (self.last_segment, self.path(self.last_segment));
        let dir = self.data_dir.join(SPILL_DIR);
        match fs::DirBuilder::new().mode(0o700).create(&dir) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(StoreError::io("create", &dir, e)),
            _ => {}
        }
        let created = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = created.map_err(|e| StoreError::io("create", &path, e))?;
        self.segments.insert(number, Segment { len: 0, live: 0 });
        self.writer = Some((number, file));
        Ok(number)
    }

    /// Reads a block, and gives it up. [`Spill::reclaim`] is to follow, as after [`Spill::give_up`].
    ///
    /// # Errors
    /// When it cannot be read. With [`SpillLost::NotNow`] it is kept, to be tried again in `PAGE_RETRY_MS`; a try that
    /// comes sooner does not count.
    pub fn take<D: Default>(&mut self, id: u64, now_ms: u64) -> Result<Vec<Entry<D>>, SpillLost> {
        let mut stretch = self.blocks.remove(&id).ok_or(SpillLost::Gone)?;
        let read = self.read(id, stretch).map_err(|error| match error {
            SpillLost::Io { path, source } => {
                if stretch.tries == 0 || now_ms.abs_diff(stretch.tried_ms) >= PAGE_RETRY_MS {
                    (stretch.tries, stretch.tried_ms) = (stretch.tries + 1, now_ms);
                }
                match stretch.tries < SPILL_READ_TRIES_MAX {
                    true => SpillLost::NotNow { path, source },
                    false => SpillLost::Io { path, source },
                }
            }
            error => error,
        });
        match &read {
            Err(SpillLost::NotNow { .. }) => {
                self.blocks.insert(id, stretch);
            }
            _ => self.release(stretch),
        }
        read
    }

    /// Gives a block up, if it is there.
    pub fn give_up(&mut self, id: u64) {
        if let Some(stretch) = self.blocks.remove(&id) {
            self.release(stretch);
        }
    }

    fn read<D: Default>(&mut self, id: u64, stretch: Stretch) -> Result<Vec<Entry<D>>, SpillLost> {
        let path = self.path(stretch.segment);
        let mut record = std::mem::take(&mut self.record);
        record.clear();
        record.resize(stretch.len, 0);
        let read =
            self.file(stretch.segment).and_then(|file| file.read_exact_at(&mut record, stretch.offset));
        if let Err(source) = read {
            return Err(SpillLost::Io { path, source });
        }
        let mut text = std::mem::take(&mut self.text);
        let opened = self.opener.open(&[Kind::Body], place(&id.to_be_bytes()), &record, &mut text);
        let entries = match opened {
            Ok(_) => read_entries(text.get(..stretch.text_len).unwrap_or_default())
                .ok_or(("E_RECORD_DAMAGED", "its messages are cut".to_owned())),
            Err(e) => Err((Unreadable::from(e).code(), e.to_string())),
        };
        (self.record, self.text) = (kept(record), kept(text));
        entries.map_err(|(code, reason)| SpillLost::Damaged { path, offset: stretch.offset, code, reason })
    }

    fn file(&mut self, segment: u64) -> std::io::Result<&File> {
        if let Some((number, file)) = &self.writer
            && *number == segment
        {
            return Ok(file);
        }
        let held = match self.reader.take().filter(|(number, _)| *number == segment) {
            Some(held) => held,
            None => {
                let flags = OFlags::NOFOLLOW.bits().cast_signed();
                let path = self.path(segment);
                (segment, OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?)
            }
        };
        Ok(&self.reader.insert(held).1)
    }

    fn release(&mut self, stretch: Stretch) {
        if let Some(segment) = self.segments.get_mut(&stretch.segment) {
            segment.live -= 1;
            self.freed.push(stretch);
        }
    }

    /// Takes off the disk what was given up: whole files, and stretches of those that others still need.
    pub fn reclaim(&mut self) {
        let mut freed = std::mem::take(&mut self.freed);
        freed.retain(|stretch| !self.drop_if_empty(stretch.segment));
        freed.sort_unstable_by_key(|stretch| (stretch.segment, stretch.offset));
        for together in freed.chunk_by(|a, b| a.segment == b.segment && a.end() == b.offset) {
            if let (Some(first), Some(last), true) = (together.first(), together.last(), self.can_punch) {
                self.punch(first.segment, first.offset, last.end() - first.offset);
            }
        }
    }

    fn punch(&mut self, segment: u64, offset: u64, len: u64) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let Ok(file) = self.file(segment) else { return };
        if let Err(error) = rustix::fs::fallocate(file, flags, offset, len) {
            self.can_punch = false;
            tracing::warn!("what has left the spill keeps its room on the disk until its file goes: {error}");
        }
    }

    /// Removes a file that holds nothing any more; true as well when that was done before.
    fn drop_if_empty(&mut self, segment: u64) -> bool {
        match self.segments.get(&segment) {
            None => return true,
            Some(facts) if facts.live > 0 => return false,
            Some(_) => {}
        }
        self.segments.remove(&segment);
        self.writer.take_if(|(number, _)| *number == segment);
        self.reader.take_if(|(number, _)| *number == segment);
        let path = self.path(segment);
        if let Err(error) = remove(&path) {
            tracing::warn!(path = %path.display(), "a file of the spill cannot be removed: {error}");
        }
        true
    }

    fn path(&self, segment: u64) -> PathBuf {
        self.data_dir.join(SPILL_DIR).join(format!("{segment:0NAME_LEN$x}"))
    }
}

impl Drop for Spill {
    fn drop(&mut self) {
        // Nobody can read them any more. What cannot be removed now is at the next start.
        self.segments.keys().for_each(|segment| drop(remove(&self.path(*segment))));
    }
}

fn place(id: &[u8; 8]) -> Place<'_> {
    Place { family: FAMILY, key: id }
}

fn kept(buffer: Vec<u8>) -> Vec<u8> {
    if buffer.capacity() <= BUFFER_BYTES_KEPT { buffer } else { Vec::new() }
}

/// Place u64, redelivered u8, delivery count u32, priority u8, expiry u64, length u32, message.
fn write_entry<D>(entry: &Entry<D>, out: &mut Vec<u8>) {
    let message = entry.message.as_bytes();
    out.reserve(ENTRY_HEAD_BYTES + message.len());
    out.extend_from_slice(&entry.seq.0.to_be_bytes());
    out.push(u8::from(entry.redelivered));
    out.extend_from_slice(&entry.delivery_count.to_be_bytes());
    out.push(entry.priority);
    out.extend_from_slice(&entry.expires_ms.to_be_bytes());
    // A message is bounded far below (`limits::MESSAGE_BYTES_MAX`).
    out.extend_from_slice(&(message.len() as u32).to_be_bytes());
    out.extend_from_slice(message);
}

fn read_entries<D: Default>(mut text: &[u8]) -> Option<Vec<Entry<D>>> {
    let mut entries = Vec::new();
    while !text.is_empty() {
        entries.push(read_entry(&mut text)?);
    }
    Some(entries)
}

fn read_entry<D: Default>(text: &mut &[u8]) -> Option<Entry<D>> {
    let seq = Seq(u64::from_be_bytes(take(text)?));
    let [redelivered] = take(text)?;
    let delivery_count = u32::from_be_bytes(take(text)?);
    let [priority] = take(text)?;
    let expires_ms = u64::from_be_bytes(take(text)?);
    let len = u32::from_be_bytes(take(text)?) as usize;
    let (message, rest) = text.split_at_checked(len)?;
    *text = rest;
    let message = Message::from_bytes(message).ok()?;
    let entry = Entry::new(seq, message, D::default());
    Some(Entry { redelivered: redelivered != 0, delivery_count, priority, expires_ms, ..entry })
}

fn take<const N: usize>(text: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = text.split_first_chunk::<N>()?;
    *text = rest;
    Some(*head)
}
