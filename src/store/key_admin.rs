//! The keyring of a running store, as its operator sees and changes it. The committer does the work, between two
//! commits; what takes long (a passphrase's Argon2id) is done before, on the caller's thread.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use super::Store;
use super::error::{SlotRefusal, StoreError};
use crate::limits::KEYRING_CHANGE_SECONDS_MAX;
use crate::seal::Credential;
use crate::seal::slot_key::{Cost, SlotKey};

use super::descriptor::Mode;

/// A keyring without its secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyringFacts {
    /// The store's uuid, hex.
    pub store: String,
    /// Rises by one with each write.
    pub generation: u64,
    /// Who can open it.
    pub slots: Vec<SlotFacts>,
    /// The data keys, oldest first.
    pub keys: Vec<DataKeyFacts>,
    /// How far the sealing again of old records is.
    pub reseal: ResealFacts,
}

/// The reseal that is under way, or was the last since the store was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResealFacts {
    /// It is under way.
    pub is_running: bool,
    /// Those of its old keys that are still there.
    pub keys: Vec<u32>,
    /// Entries and bodies that it has sealed again.
    pub resealed: u64,
    /// Entries and bodies that still need its old keys.
    pub left: u64,
    /// Those of them that it could not read.
    pub unreadable: u64,
}

/// A slot without its secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotFacts {
    /// Its public name, hex.
    pub id: String,
    /// How its key is got: `key`, `passphrase`, `pkcs11`, `vault`.
    pub kind: &'static str,
    /// Not kept for opening only.
    pub is_active: bool,
    /// The store was opened by it.
    pub is_in_use: bool,
    /// What its passphrase costs.
    pub cost: Option<Cost>,
}

/// A data key without its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataKeyFacts {
    /// How records name it.
    pub key_id: u32,
    /// The queue that has it for itself.
    pub queue: Option<u64>,
    /// New records are sealed under it.
    pub seals: bool,
    /// When it was made, Unix milliseconds.
    pub created_ms: u64,
    /// When it stopped sealing, Unix milliseconds.
    pub retired_ms: Option<u64>,
    /// Entries and bodies that need it.
    pub records: u64,
}

/// What is to become of the keyring.
pub(super) enum KeyChange {
    None,
    AddSlot(SlotKey),
    RemoveSlot {
        id: String,
        in_use_too: bool,
    },
    NewDataKey,
    /// What is under keys of such an age, or older than the current one, is to be sealed again.
    Reseal {
        older_than: Option<Duration>,
    },
}

/// A change, and where its outcome goes.
pub(super) struct KeyRequest {
    pub(super) change: KeyChange,
    answer: SyncSender<Result<KeyringFacts, StoreError>>,
}

impl KeyRequest {
    fn new(change: KeyChange) -> (Arc<KeyRequest>, Receiver<Result<KeyringFacts, StoreError>>) {
        let (answer, answered) = sync_channel(1);
        (Arc::new(KeyRequest { change, answer }), answered)
    }

    pub(super) fn give(&self, answer: Result<KeyringFacts, StoreError>) {
        // Whoever asked may have stopped waiting.
        let _ = self.answer.try_send(answer);
    }
}

impl Store {
    /// The keyring as it is. Blocks for a commit, as all of these do.
    ///
    /// # Errors
    /// `E_NO_KEYRING` in a plain store, `E_COMMIT_FAILED` and `E_COMMIT_STUCK`.
    pub fn keyring(&self) -> Result<KeyringFacts, StoreError> {
        self.ask_for(KeyChange::None)
    }

    /// Lets one more key, passphrase or key service open the store. A passphrase takes a second and 256 MiB.
    ///
    /// # Errors
    /// `E_SLOTS_FULL`, `E_SLOT_EXISTS`, a service's own; `E_STORE_IO` when it could not be written: then it may or may not be there
    /// after a restart.
    pub fn add_slot(&self, credential: Credential) -> Result<KeyringFacts, StoreError> {
        if self.mode() == Mode::PlainInsecure {
            return Err(SlotRefusal::NoKeyring.into());
        }
        let key = SlotKey::new(credential, Cost::DEFAULT).map_err(|e| StoreError::slot_key(&self.dir, e))?;
        self.ask_for(KeyChange::AddSlot(key))
    }

    /// Takes the right to open the store from the slot whose id begins with `id`, in hex.
    ///
    /// # Errors
    /// `E_SLOT_UNKNOWN`, `E_SLOT_LAST`, `E_SLOT_IN_USE` unless `in_use_too`; `E_STORE_IO` as above.
    pub fn remove_slot(&self, id: &str, in_use_too: bool) -> Result<KeyringFacts, StoreError> {
        self.ask_for(KeyChange::RemoveSlot { id: id.to_owned(), in_use_too })
    }

    /// Seals under a new data key from now on; the former ones go when their last record does.
    ///
    /// # Errors
    /// `E_NO_KEYRING`, `E_STORE_IO`.
    pub fn rotate_data_key(&self) -> Result<KeyringFacts, StoreError> {
        self.ask_for(KeyChange::NewDataKey)
    }

    /// Begins to seal again what is under data keys that were made `older_than` ago, or before the current one;
    /// [`Store::keyring`] tells how far it is. Old keys go with their last record.
    ///
    /// # Errors
    /// `E_NO_KEYRING`, `E_STORE_IO`.
    pub fn reseal(&self, older_than: Option<Duration>) -> Result<KeyringFacts, StoreError> {
        self.ask_for(KeyChange::Reseal { older_than })
    }

    fn ask_for(&self, change: KeyChange) -> Result<KeyringFacts, StoreError> {
        let changes = !matches!(change, KeyChange::None);
        let (request, answered) = KeyRequest::new(change);
        self.appender().keys(request);
        let facts = match answered.recv_timeout(Duration::from_secs(KEYRING_CHANGE_SECONDS_MAX)) {
            Ok(answer) => answer?,
            Err(RecvTimeoutError::Timeout) => {
                return Err(StoreError::Stuck { dir: self.dir.clone(), seconds: KEYRING_CHANGE_SECONDS_MAX });
            }
            // The request was dropped unanswered: the store has stopped, or is closed.
            Err(RecvTimeoutError::Disconnected) => {
                self.check()?;
                return Err(StoreError::system(&self.dir, "it is closed"));
            }
        };
        if changes {
            // From now on the commit row names the new generation, and the old keyring is refused as rolled back.
            self.probe()?;
        }
        Ok(facts)
    }
}
