//! `SEALMQ_STORE`: what the directory is. Its mode is fixed when it is made; in a sealed store a tag under
//! the root key says that nobody has changed it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::StoreError;
use super::files;
use crate::seal::key::RootKey;

/// The descriptor's file name.
pub const DESCRIPTOR_FILE: &str = "SEALMQ_STORE";

const FORMAT: u32 = 1;

/// Whether a store's records are sealed. Chosen when the store is made, for its whole life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Everything is sealed with AES-256-GCM.
    Sealed,
    /// Nothing is; for demonstrations.
    PlainInsecure,
}

impl Mode {
    /// The word in the descriptor and in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Sealed => "sealed",
            Mode::PlainInsecure => "plain-insecure",
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Descriptor {
    format: u32,
    pub(super) mode: Mode,
    store_uuid: String,
    pub(super) created: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hmac: Option<String>,
}

impl Descriptor {
    pub(super) fn new(mode: Mode, store: &[u8; 16], created: String, root: Option<&RootKey>) -> Descriptor {
        let mut made = Descriptor { format: FORMAT, mode, store_uuid: uuid_text(store), created, hmac: None };
        made.hmac = root.map(|root| hex(&root.descriptor_tag(made.tagged().as_bytes())));
        made
    }

    /// Reads the descriptor; `None` when there is none.
    pub(super) fn read(dir: &Path) -> Result<Option<Descriptor>, StoreError> {
        let Some(bytes) = files::read(&dir.join(DESCRIPTOR_FILE))? else { return Ok(None) };
        let read: Descriptor =
            serde_json::from_slice(&bytes).map_err(|e| corrupt(dir, format!("it is no descriptor: {e}")))?;
        if read.format != FORMAT {
            return Err(corrupt(dir, format!("its format is {}, this program knows {FORMAT}", read.format)));
        }
        Ok(Some(read))
    }

    pub(super) fn write(&self, dir: &Path) -> Result<(), StoreError> {
        let mut text = serde_json::to_vec_pretty(self).map_err(|e| corrupt(dir, e.to_string()))?;
        text.push(b'\n');
        files::replace(dir, DESCRIPTOR_FILE, &text, |_| Ok(()))
    }

    pub(super) fn store(&self, dir: &Path) -> Result<[u8; 16], StoreError> {
        let digits: Vec<u8> = self.store_uuid.bytes().filter(|byte| *byte != b'-').collect();
        let store = unhex::<16>(&digits).ok_or_else(|| corrupt(dir, "its store_uuid is none".into()))?;
        Ok(store)
    }

    /// Checks the tag of a sealed store's descriptor.
    pub(super) fn verify(&self, dir: &Path, root: &RootKey) -> Result<(), StoreError> {
        let tag = self.hmac.as_ref().and_then(|hmac| unhex::<32>(hmac.as_bytes()));
        match tag {
            Some(tag) if root.verifies_descriptor(self.tagged().as_bytes(), &tag) => Ok(()),
            _ => Err(corrupt(dir, "its hmac does not fit".into())),
        }
    }

    fn tagged(&self) -> String {
        format!("{}\n{}\n{}\n{}", self.format, self.mode.name(), self.store_uuid, self.created)
    }
}

fn corrupt(dir: &Path, reason: String) -> StoreError {
    let path: PathBuf = dir.join(DESCRIPTOR_FILE);
    StoreError::Descriptor { path, reason }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn uuid_text(store: &[u8; 16]) -> String {
    let digits = hex(store);
    let part = |from: usize, to: usize| digits.get(from..to).unwrap_or_default();
    [part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-")
}

fn unhex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if digits.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let value = |digit: &u8| char::from(*digit).to_digit(16);
        let (high, low) = (value(pair.first()?)?, value(pair.last()?)?);
        *byte = (high << 4 | low) as u8;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_as_it_was_written_and_names_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Descriptor::read(dir.path()).unwrap().is_none());
        let root = RootKey::generate().unwrap();
        let store = std::array::from_fn(|i| i as u8);
        Descriptor::new(Mode::Sealed, &store, "now".into(), Some(&root)).write(dir.path()).unwrap();
        let text = std::fs::read_to_string(dir.path().join(DESCRIPTOR_FILE)).unwrap();
        assert!(text.contains(r#""mode": "sealed""#), "{text}");
        assert!(text.contains("00010203-0405-0607-0809-0a0b0c0d0e0f"), "{text}");
        let read = Descriptor::read(dir.path()).unwrap().unwrap();
        assert_eq!((read.mode, read.store(dir.path()).unwrap()), (Mode::Sealed, store));
        read.verify(dir.path(), &root).unwrap();
    }

    #[test]
    fn a_changed_field_does_not_verify() {
        let dir = tempfile::tempdir().unwrap();
        let root = RootKey::generate().unwrap();
        let made = || Descriptor::new(Mode::Sealed, &[1; 16], "now".into(), Some(&root));
        let changes: [fn(&mut Descriptor); 5] = [
            |d| d.mode = Mode::PlainInsecure,
            |d| d.store_uuid = uuid_text(&[2; 16]),
            |d| d.created = "then".into(),
            |d| d.hmac = None,
            |d| d.hmac = Some("00".repeat(32)),
        ];
        for change in changes {
            let mut changed = made();
            change(&mut changed);
            let error = changed.verify(dir.path(), &root).unwrap_err();
            assert_eq!(error.code(), "E_DESCRIPTOR_CORRUPT");
        }
        made().verify(dir.path(), &root).unwrap();
        let other = RootKey::generate().unwrap();
        assert!(made().verify(dir.path(), &other).is_err());
    }

    #[test]
    fn refuses_what_is_no_descriptor() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "{}", "[1]", r#"{"format":2,"mode":"sealed","store_uuid":"","created":""}"#] {
            std::fs::write(dir.path().join(DESCRIPTOR_FILE), text).unwrap();
            assert_eq!(Descriptor::read(dir.path()).err().unwrap().code(), "E_DESCRIPTOR_CORRUPT", "{text}");
        }
    }
}
