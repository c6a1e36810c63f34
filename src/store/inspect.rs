//! Single records of a store that nobody uses: what they say without a key, and one message with it, for an
//! incident. Only reads.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::audit::{hold, slot_facts};
use super::descriptor::{Descriptor, Mode, uuid_text};
use super::error::StoreError;
use super::files::{self, FolderLock};
use super::key_admin::SlotFacts;
use super::keyring_file::{COPIES, KeyringFile};
use super::layout::{Family, Key, MetaKey, parse_entry, parse_meta};
use super::open::DATABASE_DIR;
use super::pieces::Pieces;
use super::preflight;
use super::record::{EntryMeta, read_delivery_count, read_entry, read_row};
use super::recovered::Row;
use super::rocks::{Rocks, Tail};
use super::sealing::{Opening, Unreadable};
use super::watchdog::{self, watched};
use crate::broker::id::{BodyId, QueueId, Seq};
use crate::broker::message::Message;
use crate::limits::BODY_CHUNKS_MAX;
use crate::seal::Credential;
use crate::seal::envelope::{self, Header, Kind, Malformed, VERSION_PLAIN};
use crate::seal::keyring::SealedKeyring;
use crate::seal::record::Opener;
use crate::seal::xaes::Tag;

/// A store that is looked into. No broker can open it meanwhile.
pub struct Viewer {
    dir: PathBuf,
    /// What it says it is.
    pub mode: Mode,
    /// Its uuid, as its descriptor or its keyring says; empty when neither does.
    pub store: String,
    /// What is not as it should be, and may hide records.
    pub warnings: Vec<String>,
    rocks: Arc<Rocks>,
    opening: Option<Opening>,
    _lock: FolderLock,
}

/// A record's value as it stands in the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawRecord {
    /// The column family's name.
    pub family: &'static str,
    /// Its RocksDB key.
    pub key: Vec<u8>,
    /// Its bytes.
    pub value: Vec<u8>,
}

/// What a record is, by its bytes alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordFacts {
    /// Not sealed; the line of JSON in front of its content.
    Plain {
        /// For human eyes.
        head: String,
        /// Bytes behind that line.
        content_bytes: usize,
    },
    /// Sealed.
    Sealed {
        /// What stands before the ciphertext.
        header: Header,
        /// Bytes of ciphertext: the plaintext's with its padding.
        sealed_bytes: usize,
        /// What authenticates it.
        tag: Tag,
    },
}

impl RawRecord {
    /// Takes it apart, without any key.
    ///
    /// # Errors
    /// When no record has such bytes.
    pub fn facts(&self) -> Result<RecordFacts, Malformed> {
        if let Some((&VERSION_PLAIN, rest)) = self.value.split_first() {
            let mut parts = rest.splitn(2, |byte| *byte == b'\n');
            let head = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
            return Ok(RecordFacts::Plain { head, content_bytes: parts.next().map_or(0, <[u8]>::len) });
        }
        let (header, sealed, tag) = envelope::parse(&self.value)?;
        Ok(RecordFacts::Sealed { header, sealed_bytes: sealed.len(), tag })
    }
}

/// A message that was opened.
#[derive(Debug)]
pub struct OpenedEntry {
    /// Its facts beside the message.
    pub meta: EntryMeta,
    /// How often it came back from a consumer.
    pub delivery_count: u32,
    /// The body that it shares and its pieces, when it does not stand in the entry.
    pub body: Option<(BodyId, Vec<RawRecord>)>,
    /// The message.
    pub message: Message,
}

/// What the database holds, by what is not sealed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overview {
    /// Records and bytes by column family and kind; plain and unknown ones under those words.
    pub kinds: BTreeMap<(&'static str, String), (u64, u64)>,
    /// Records by data key; key 0 seals what is no message.
    pub keys: BTreeMap<u32, u64>,
    /// Entries by queue: how many, the first and the last place, bytes.
    pub queues: BTreeMap<u64, (u64, u64, u64, u64)>,
    /// The keyring's generation and slots, by its header; it is whole, and not authenticated.
    pub keyring: Option<(u64, Vec<SlotFacts>)>,
}

impl Viewer {
    /// Opens a store for looking; without a credential nothing can be decrypted. Damage is a warning here.
    ///
    /// # Errors
    /// When it is in use, is none, its database cannot be opened, or the key is not its own.
    pub fn open(dir: &Path, credential: Option<&Credential>) -> Result<Viewer, StoreError> {
        let lock = hold(dir)?;
        let mut warnings = Vec::new();
        let descriptor = Descriptor::read(dir).unwrap_or_else(|error| {
            warnings.push(error.to_string());
            None
        });
        let mode = descriptor.as_ref().map_or_else(|| mode_as_found(dir), |descriptor| descriptor.mode);
        let store = descriptor.as_ref().and_then(|descriptor| descriptor.store(dir).ok());
        let (opening, store) = match (mode, credential) {
            (Mode::PlainInsecure, _) => (Some(Opening::Plain), store),
            (Mode::Sealed, None) => (None, store),
            (Mode::Sealed, Some(credential)) => {
                let file = KeyringFile::open(dir, credential)?;
                let store = file.ring().store;
                (Some(Opening::Sealed(Box::new(Opener::new(file.keys(), store)))), Some(store))
            }
        };
        let database = dir.join(DATABASE_DIR);
        let findings = preflight::check_each(&database, |error| {
            warnings.push(format!("{error}; records behind this place are not seen"));
            Ok(())
        })?;
        let Some(findings) = findings else {
            let evidence = "there is no folder db in it".into();
            return Err(StoreError::DatabaseMissing { dir: dir.to_path_buf(), evidence });
        };
        let is_whole = warnings.is_empty() && !findings.is_torn();
        let (limit, path) = (watchdog::limit(findings.bytes), database.clone());
        let tail = if is_whole { Tail::Whole } else { Tail::Torn };
        let rocks = watched(&database, limit, &findings.to_string(), move || Rocks::look(&path, tail))?;
        let store = store.as_ref().map(uuid_text).unwrap_or_default();
        let (dir, rocks) = (dir.to_path_buf(), Arc::new(rocks));
        Ok(Viewer { dir, mode, store, warnings, rocks, opening, _lock: lock })
    }

    /// Whether records can be decrypted.
    pub fn has_key(&self) -> bool {
        self.opening.is_some()
    }

    /// An entry's record; `None` when there is none at this place.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn entry(&self, queue: QueueId, seq: Seq) -> Result<Option<RawRecord>, StoreError> {
        self.raw(Family::Entries, &Key::entry(queue, seq))
    }

    fn raw(&self, family: Family, key: &Key) -> Result<Option<RawRecord>, StoreError> {
        let value = self.rocks.value(family, key)?;
        Ok(value.map(|value| RawRecord { family: family.name(), key: key.as_bytes().to_vec(), value }))
    }

    /// Decrypts a message.
    ///
    /// # Errors
    /// `E_KEK_UNAVAILABLE` without a key; `E_METADATA_DAMAGED`, `E_DEK_MISSING` or `E_PLAIN_IN_SEALED` when it does
    /// not open.
    pub fn open_entry(
        &mut self,
        queue: QueueId,
        seq: Seq,
        record: &RawRecord,
    ) -> Result<OpenedEntry, StoreError> {
        let name = format!("entry {} of queue {}", seq.0, queue.0);
        let count = self.delivery_count(queue, seq)?;
        let dir = self.dir.clone();
        let refused = |error: Unreadable| error.refusal(&dir, &name);
        let missing = || StoreError::KekMissing { dir: dir.clone() };
        let mut text = Vec::new();
        let opening = self.opening.as_mut().ok_or_else(missing)?;
        let opened = opening.open(&[Kind::Entry], Family::Entries, &record.key, &record.value, &mut text);
        let entry = opened.and_then(|_| Ok(read_entry(&text)?)).map_err(refused)?;
        let delivery_count = count.max(entry.meta.delivery_count.into());
        let (message, body) = match entry.content {
            Ok(message) => (message, None),
            Err(wanted) => {
                let records = self.body_records(wanted.id)?;
                let opening = self.opening.as_mut().ok_or_else(missing)?;
                let mut pieces = Pieces::new(wanted.id);
                for (chunk, record) in (0..).zip(&records) {
                    let kinds = &[Kind::Body, Kind::BodyChunk];
                    let opened = opening.open(kinds, Family::Bodies, &record.key, &record.value, &mut text);
                    pieces.add(chunk, opened, &text);
                }
                let (content, found) = pieces.finish(opening.is_plain());
                let message = match content {
                    _ if records.is_empty() => Err(Unreadable::BodyMissing),
                    Ok(_) if found != wanted => Err(Unreadable::BodySwapped),
                    content => content,
                };
                (message.map_err(refused)?, Some((wanted.id, records)))
            }
        };
        Ok(OpenedEntry { meta: entry.meta, delivery_count, body, message })
    }

    fn body_records(&self, body: BodyId) -> Result<Vec<RawRecord>, StoreError> {
        let mut records = Vec::new();
        for chunk in 0..BODY_CHUNKS_MAX {
            match self.raw(Family::Bodies, &Key::body(body, chunk))? {
                Some(record) => records.push(record),
                None => break,
            }
        }
        Ok(records)
    }

    /// 0 when there is no record of it, or none that opens.
    fn delivery_count(&mut self, queue: QueueId, seq: Seq) -> Result<u32, StoreError> {
        let key = Key::delivery_count(queue, seq);
        let record = self.raw(Family::Meta, &key)?;
        let (Some(record), Some(opening)) = (record, &mut self.opening) else { return Ok(0) };
        let mut text = Vec::new();
        let kinds = &[Kind::DeliveryCount];
        let opened = opening.open(kinds, Family::Meta, key.as_bytes(), &record.value, &mut text);
        let counted = opened.and_then(|_| Ok(read_delivery_count(&text)?));
        Ok(counted.map_or(0, |(count, _)| count))
    }

    /// The rows that open; none without a key.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn rows(&mut self) -> Result<Vec<Row>, StoreError> {
        let Viewer { rocks, opening: Some(opening), .. } = self else { return Ok(Vec::new()) };
        let (mut rows, mut text) = (Vec::new(), Vec::new());
        rocks.scan(Family::Meta, |key, value| {
            if let Some(MetaKey::Row(kind, id)) = parse_meta(key)
                && opening.open(&[kind.sealed_as()], Family::Meta, key, value, &mut text).is_ok()
                && let Ok(plaintext) = read_row(&text)
            {
                rows.push(Row { kind, id, plaintext: plaintext.to_vec() });
            }
            Ok(())
        })?;
        Ok(rows)
    }

    /// Counts what there is, by what is not sealed.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn overview(&self) -> Result<Overview, StoreError> {
        let mut overview = Overview { keyring: keyring_header(&self.dir), ..Overview::default() };
        for family in Family::ALL {
            self.rocks.scan(family, |key, value| {
                let kind = match envelope::parse(value) {
                    Ok((header, ..)) => {
                        *overview.keys.entry(header.key_id).or_default() += 1;
                        format!("{:?}", header.kind)
                    }
                    Err(Malformed::Plain) => "plain".to_owned(),
                    Err(_) => "no record".to_owned(),
                };
                let bytes = (key.len() + value.len()) as u64;
                let sum = overview.kinds.entry((family.name(), kind)).or_default();
                *sum = (sum.0 + 1, sum.1 + bytes);
                if let (Family::Entries, Some((queue, seq))) = (family, parse_entry(key)) {
                    let found = overview.queues.entry(queue.0).or_insert((0, seq.0, seq.0, 0));
                    *found = (found.0 + 1, found.1, seq.0, found.3 + bytes);
                }
                Ok(())
            })?;
        }
        Ok(overview)
    }
}

/// What a directory holds, by its descriptor, or by whether it has a keyring where there is none to be read.
pub fn mode_as_found(dir: &Path) -> Mode {
    match Descriptor::read(dir) {
        Ok(Some(descriptor)) => descriptor.mode,
        _ if KeyringFile::exists(dir) => Mode::Sealed,
        _ => Mode::PlainInsecure,
    }
}

/// The newest copy of the keyring that is whole: its generation and slots. No key is needed.
fn keyring_header(dir: &Path) -> Option<(u64, Vec<SlotFacts>)> {
    let copies = COPIES.iter().filter_map(|name| files::read(&dir.join(name)).ok().flatten());
    let whole = copies.filter_map(|bytes| SealedKeyring::parse(bytes).ok());
    let newest = whole.max_by_key(|ring| ring.generation)?;
    let slots = newest.slots.iter().map(|slot| slot_facts(slot, false)).collect();
    Some((newest.generation, slots))
}
