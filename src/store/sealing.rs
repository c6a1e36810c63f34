//! Records to values and back, in either mode: sealed, or plain with a line of JSON in front (record.rs).

use std::path::Path;

use sha2::{Digest, Sha256};

use super::error::StoreError;
use super::layout::{Family, Key};
use super::record::{BadContent, Record};
use crate::seal::envelope::{HEADER_BYTES, Kind, Malformed, VERSION_PLAIN};
use crate::seal::nonce::NoRandomness;
use crate::seal::padding::Padding;
use crate::seal::record::{NotOpened, Opener, Sealer};
use crate::seal::xaes::{TAG_BYTES, Tag, TooLong};

/// Makes values of records.
pub(super) enum Sealing {
    /// The null sealer of a plain-insecure store.
    Plain,
    /// K_meta for the default column family, the current data key for the others.
    Sealed { meta: Box<Sealer>, data: Box<Sealer>, padding: Padding },
}

impl Sealing {
    /// Fresh nonce prefixes; to be called before each commit.
    pub(super) fn renew(&mut self) -> Result<(), NoRandomness> {
        match self {
            Sealing::Plain => Ok(()),
            Sealing::Sealed { meta, data, .. } => meta.renew().and_then(|()| data.renew()),
        }
    }

    /// The data key of entries and bodies; 0 in a plain store.
    pub(super) fn data_key_id(&self) -> u32 {
        match self {
            Sealing::Plain => 0,
            Sealing::Sealed { data, .. } => data.key_id(),
        }
    }

    pub(super) fn padding(&self) -> Padding {
        match self {
            Sealing::Plain => Padding::None,
            Sealing::Sealed { padding, .. } => *padding,
        }
    }

    pub(super) fn is_plain(&self) -> bool {
        matches!(self, Sealing::Plain)
    }

    /// Makes `value` what is to be stored at the key; gives the record's tag.
    pub(super) fn seal(
        &self,
        record: &impl Record,
        family: Family,
        key: &Key,
        value: &mut Vec<u8>,
    ) -> Result<Tag, TooLong> {
        value.clear();
        match self {
            Sealing::Plain => {
                value.push(VERSION_PLAIN);
                value.extend_from_slice(record.describe().to_string().as_bytes());
                value.push(b'\n');
                record.write(Padding::None, value);
                Ok(Tag::default())
            }
            Sealing::Sealed { meta, data, padding } => {
                let sealer = if family == Family::Meta { meta } else { data };
                seal_with(sealer, *padding, record, family, key, value)
            }
        }
    }
}

impl Sealing {
    /// As [`Sealing::seal`], under a queue's own key where there is one.
    pub(super) fn seal_under(
        &self,
        own: Option<&Sealer>,
        record: &impl Record,
        family: Family,
        key: &Key,
        value: &mut Vec<u8>,
    ) -> Result<Tag, TooLong> {
        match (own, self) {
            (Some(own), Sealing::Sealed { padding, .. }) => {
                value.clear();
                seal_with(own, *padding, record, family, key, value)
            }
            _ => self.seal(record, family, key, value),
        }
    }
}

/// Seals one record under a given sealer; `value` must be empty.
pub(super) fn seal_with(
    sealer: &Sealer,
    padding: Padding,
    record: &impl Record,
    family: Family,
    key: &Key,
    value: &mut Vec<u8>,
) -> Result<Tag, TooLong> {
    value.resize(HEADER_BYTES, 0);
    record.write(padding, value);
    sealer.seal(record.kind(), record.flags(), family.place(key.as_bytes()), value)
}

/// Size of the value that so much plaintext becomes, in bytes.
pub(super) fn sealed_bytes(text_bytes: usize) -> usize {
    HEADER_BYTES + text_bytes + TAG_BYTES
}

/// Why a value cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unreadable {
    #[error(transparent)]
    NotOpened(#[from] NotOpened),
    #[error("a sealed record in a plain store")]
    SealedInPlain,
    #[error("a plain record without its line of JSON")]
    NoHead,
    #[error(transparent)]
    Content(#[from] BadContent),
    #[error("a key that no record has")]
    ForeignKey,
    #[error("the body that it names is not there")]
    BodyMissing,
    #[error("the body that it names is another one")]
    BodySwapped,
    #[error("pieces of the body are missing")]
    BodyCut,
}

impl Unreadable {
    /// The stable code of a quarantined message.
    pub(super) fn code(self) -> &'static str {
        match self {
            Unreadable::NotOpened(NotOpened::Forged) => "E_RECORD_FORGED",
            Unreadable::NotOpened(NotOpened::UnknownKey(_)) => "E_DEK_MISSING",
            Unreadable::NotOpened(NotOpened::Malformed(Malformed::Plain)) => "E_PLAIN_IN_SEALED",
            Unreadable::SealedInPlain => "E_PLAIN_IN_SEALED",
            Unreadable::BodyMissing | Unreadable::BodyCut => "E_BODY_MISSING",
            Unreadable::BodySwapped => "E_BODY_SWAPPED",
            _ => "E_RECORD_DAMAGED",
        }
    }

    /// The refusal of a whole store for the sake of a record.
    pub(super) fn refusal(self, dir: &Path, record: &str) -> StoreError {
        let dir = dir.to_path_buf();
        match self {
            Unreadable::NotOpened(NotOpened::Malformed(Malformed::Plain)) => {
                StoreError::PlainInSealed { dir, what: record.into(), found: "plain", wanted: "sealed" }
            }
            Unreadable::SealedInPlain => {
                StoreError::PlainInSealed { dir, what: record.into(), found: "sealed", wanted: "plain" }
            }
            Unreadable::NotOpened(NotOpened::UnknownKey(key_id)) => {
                StoreError::DataKeyMissing { dir, count: 1, key_id }
            }
            e => StoreError::MetadataDamaged { dir, record: record.into(), reason: e.to_string() },
        }
    }
}

/// By what a record of the default column family is named in a sum (presence.rs): its tag; in a plain store, where
/// tags are zeros, a hash.
pub(super) fn name_of(tag: Tag, is_plain: bool, key: &Key, value: &[u8]) -> Tag {
    if !is_plain {
        return tag;
    }
    let hash = Sha256::new().chain_update(key.as_bytes()).chain_update(value).finalize();
    hash.first_chunk().copied().unwrap_or_default()
}

/// What is known of a value that opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) key_id: u32,
    pub(super) flags: u8,
    pub(super) tag: Tag,
}

/// Makes records of values.
pub(super) enum Opening {
    Plain,
    Sealed(Box<Opener>),
}

impl Opening {
    /// One more, for another thread.
    pub(super) fn another(&self) -> Opening {
        match self {
            Opening::Plain => Opening::Plain,
            Opening::Sealed(opener) => Opening::Sealed(Box::new(opener.another())),
        }
    }

    /// Reads the plaintext of the value at a key into `text`.
    pub(super) fn open(
        &mut self,
        kinds: &[Kind],
        family: Family,
        key: &[u8],
        value: &[u8],
        text: &mut Vec<u8>,
    ) -> Result<Facts, Unreadable> {
        text.clear();
        match self {
            Opening::Sealed(opener) => {
                let opened = opener.open(kinds, family.place(key), value, text)?;
                Ok(Facts { key_id: opened.header.key_id, flags: opened.header.flags, tag: opened.tag })
            }
            Opening::Plain => {
                let rest = value.strip_prefix(&[VERSION_PLAIN]).ok_or(Unreadable::SealedInPlain)?;
                let at = rest.iter().position(|byte| *byte == b'\n').ok_or(Unreadable::NoHead)?;
                text.extend_from_slice(rest.get(at + 1..).unwrap_or_default());
                Ok(Facts::default())
            }
        }
    }

    pub(super) fn is_plain(&self) -> bool {
        matches!(self, Opening::Plain)
    }
}
