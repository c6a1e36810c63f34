//! Pictures of the broker for people and tools: plain structs, taken at one moment, that anybody may keep. Domain
//! types are never serialised; these are. No payload, header value or secret may enter them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::seal::Passphrase;
use crate::seal::key_service::KeyService;

/// Who can give pictures. Calls may take short locks and touch the disk: not for a connection's task.
pub trait View: Send + Sync {
    /// Whether the broker serves and its store takes writes; the error is a sentence for people.
    fn ping(&self) -> Result<(), String>;

    /// The broker as a whole.
    fn status(&self) -> StatusView;

    /// Copies the store into a folder while it goes on serving; the error is a sentence that begins with a code.
    fn back_up(&self, dir: &Path) -> Result<BackupView, String>;

    /// The queues of a virtual host; `None` when there is no such virtual host.
    fn queues(&self, vhost: &str) -> Option<Vec<QueueView>>;

    /// The exchanges of a virtual host, the default exchange (empty name) included.
    fn exchanges(&self, vhost: &str) -> Option<Vec<ExchangeView>>;

    /// The bindings of a virtual host, each queue's implicit one to the default exchange included.
    fn bindings(&self, vhost: &str) -> Option<Vec<BindingView>>;

    /// Changes the keyring, and shows it as it is then.
    ///
    /// # Errors
    /// Why it stays as it is.
    fn keyring(&self, change: KeyringChange) -> Result<KeyringView, KeyringRefused>;
}

/// What an operator wants of the keyring.
pub enum KeyringChange {
    /// Only to see it.
    None,
    /// A slot for the key in a file that the broker can read.
    AddKey(PathBuf),
    /// A slot for a passphrase.
    AddPassphrase(Passphrase),
    /// A slot for a key that a service keeps.
    AddService(Box<dyn KeyService>),
    /// One slot less.
    RemoveSlot {
        /// The beginning of its id, in hex.
        slot: String,
        /// Even the one that the broker was started with.
        in_use_too: bool,
    },
    /// A new data key.
    NewDataKey,
    /// What is under keys of this age, or older than the current one, sealed again.
    Reseal {
        /// The age.
        older_than: Option<Duration>,
    },
}

/// A change of the keyring that was not made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyringRefused {
    /// `E_...`
    pub code: &'static str,
    /// A sentence for people, with what to do.
    pub message: String,
}

/// The keyring; no key bytes.
#[derive(Clone, Debug, Default, Serialize)]
pub struct KeyringView {
    /// The store's uuid, hex.
    pub store: String,
    /// Rises by one with each write of the keyring.
    pub generation: u64,
    /// Who can open the store.
    pub slots: Vec<SlotView>,
    /// The data keys, oldest first.
    pub data_keys: Vec<DataKeyView>,
    /// How far the sealing again of old records is.
    pub reseal: ResealView,
}

/// The reseal that is under way, or was the last since the broker was started.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ResealView {
    /// `running` or `idle`.
    pub state: String,
    /// Those of its old data keys that are still there.
    pub keys: Vec<u32>,
    /// Records that it has sealed again.
    pub resealed: u64,
    /// Records that still need its old keys.
    pub left: u64,
    /// Those of them that it could not read.
    pub unreadable: u64,
}

/// A slot of the keyring.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SlotView {
    /// Its public name, hex.
    pub id: String,
    /// `key`, `passphrase`, `pkcs11` or `vault`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `active` or `read-only`.
    pub state: String,
    /// The broker was started with it.
    pub in_use: bool,
    /// What a passphrase costs by Argon2id, as `m=262144,t=3,p=1`.
    pub cost: Option<String>,
}

/// A data key.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DataKeyView {
    /// How records name it.
    pub id: u32,
    /// The number of the queue that has it for itself.
    pub queue: Option<u64>,
    /// `seals` or `opens`.
    pub state: String,
    /// When it was made, Unix milliseconds.
    pub created_ms: u64,
    /// Since then.
    pub age_seconds: u64,
    /// When it stopped sealing, Unix milliseconds.
    pub retired_ms: Option<u64>,
    /// Messages and bodies that need it.
    pub records: u64,
}

/// The broker as a whole.
#[derive(Clone, Debug, Default, Serialize)]
pub struct StatusView {
    /// Process id.
    pub pid: u32,
    /// Node name, as `sealmq@host`.
    pub node: String,
    /// Product name told to clients.
    pub product: String,
    /// Product version told to clients.
    pub product_version: String,
    /// SealMQ's own version.
    pub sealmq_version: String,
    /// Cluster name told to clients.
    pub cluster_name: String,
    /// Seconds since start.
    pub uptime_seconds: u64,
    /// Whether start is over: store recovered, listeners open.
    pub running: bool,
    /// The store's folder.
    pub data_dir: String,
    /// `sealed` or `plain-insecure`.
    pub at_rest_mode: String,
    /// Configuration files in the order in which they were read.
    pub config_files: Vec<String>,
    /// Where logs go: `<stdout>`.
    pub log_files: Vec<String>,
    /// Alarms that stop publishers, as `memory` or `disk`.
    pub alarms: Vec<String>,
    /// Resident memory in bytes.
    pub memory_bytes: u64,
    /// Memory above which publishers are stopped, in bytes.
    pub memory_limit_bytes: u64,
    /// Open file descriptors.
    pub file_descriptors: u64,
    /// File descriptors this process may open.
    pub file_descriptors_limit: u64,
    /// Free space of the data directory's file system in bytes.
    pub disk_free_bytes: u64,
    /// Free space below which publishers are stopped, in bytes.
    pub disk_free_limit_bytes: u64,
    /// Client connections.
    pub connections: u64,
    /// Open channels.
    pub channels: u64,
    /// Consumers.
    pub consumers: u64,
    /// Queues in all virtual hosts.
    pub queues: u64,
    /// Messages in all queues.
    pub messages: u64,
    /// Virtual hosts.
    pub vhosts: u64,
    /// Open ports.
    pub listeners: Vec<ListenerView>,
}

/// A backup that is complete.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BackupView {
    /// Its folder.
    pub dir: String,
    /// It holds everything up to this commit at least.
    pub commit_seq: u64,
    /// The keyring's; 0 in a plain store.
    pub keyring_generation: u64,
    /// All its files together, in bytes.
    pub bytes: u64,
}

/// An open port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ListenerView {
    /// The address as bound; `[::]` is every interface.
    pub interface: String,
    /// The port.
    pub port: u16,
    /// RabbitMQ's word: `amqp` or `amqp/ssl`.
    pub protocol: String,
    /// A sentence, as `AMQP 0-9-1 over TLS`.
    pub purpose: String,
}

/// A queue. Serialised names are rabbitmqctl's columns.
#[derive(Clone, Debug, Default, Serialize)]
pub struct QueueView {
    /// The name.
    pub name: String,
    /// Survives a restart.
    pub durable: bool,
    /// Goes with its last consumer.
    pub auto_delete: bool,
    /// Belongs to one connection.
    pub exclusive: bool,
    /// As declared.
    pub arguments: Vec<ArgumentView>,
    /// Ready for delivery.
    pub messages_ready: u64,
    /// Delivered, not settled.
    pub messages_unacknowledged: u64,
    /// Both together, and dead letters that nobody has taken yet.
    pub messages: u64,
    /// Consumers.
    pub consumers: u64,
    /// `running`.
    pub state: String,
    /// `classic`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Memory in bytes, bodies included.
    #[serde(rename = "memory")]
    pub memory_bytes: u64,
}

/// An exchange. Serialised names are rabbitmqctl's columns.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ExchangeView {
    /// The name; empty for the default exchange.
    pub name: String,
    /// `direct`, `fanout`, `topic`, `headers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Survives a restart.
    pub durable: bool,
    /// Goes with its last binding.
    pub auto_delete: bool,
    /// Cannot be published to.
    pub internal: bool,
    /// Messages that wait for their time, where it is one that delays.
    pub messages_delayed: Option<u64>,
    /// As declared.
    pub arguments: Vec<ArgumentView>,
}

/// A binding. Serialised names are rabbitmqctl's columns.
#[derive(Clone, Debug, Default, Serialize)]
pub struct BindingView {
    /// The exchange that messages come from; empty for the default exchange.
    pub source_name: String,
    /// `exchange`.
    pub source_kind: String,
    /// Where they go.
    pub destination_name: String,
    /// `queue` or `exchange`.
    pub destination_kind: String,
    /// The binding key.
    pub routing_key: String,
    /// As bound.
    pub arguments: Vec<ArgumentView>,
}

/// One field of an argument table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ArgumentView {
    /// The field's name.
    pub name: String,
    /// RabbitMQ's word for its type: `long`, `longstr`, `bool`, `signedint` and so on.
    pub kind: String,
    /// The value.
    pub value: ArgumentValue,
}

/// A field's value, as far as tools show it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum ArgumentValue {
    /// Booleans.
    Flag(bool),
    /// All integers and timestamps.
    Integer(i64),
    /// Floats and doubles.
    Number(f64),
    /// Strings; nested tables and arrays as text.
    Text(String),
}
