//! What can go wrong before the broker serves, and beside it: one variant per cause, each with a message that
//! says what, where and what to do. No variant carries a secret's value.

use std::io;
use std::path::PathBuf;

use super::raw_config::Origin;

/// A fault of configuration, control socket or health check.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A configuration file that was asked for, or found, cannot be read.
    #[error("{}: cannot read the configuration: {source}", path.display())]
    ConfigUnreadable {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line that is no setting.
    #[error("{origin}: {problem}; a line is `key = value`, `# comment` or empty")]
    Syntax {
        /// Where.
        origin: Origin,
        /// What is wrong with it.
        problem: String,
    },
    /// A known key with a value that it cannot have.
    #[error("{key} ({origin}): expected {expected}, found {found}")]
    InvalidValue {
        /// The key.
        key: String,
        /// Where it was written.
        origin: Origin,
        /// What would be right.
        expected: String,
        /// What is there, in quotes; "something else" for a secret.
        found: String,
    },
    /// A value that RabbitMQ's own decoder would have to open.
    #[error(
        "{key} ({origin}): `encrypted:` values need RabbitMQ's decoder and are not read here; put the secret in an \
         environment variable and write $(NAME), or name a file that holds it (default_pass_file)"
    )]
    EncryptedValue {
        /// The key.
        key: String,
        /// Where it was written.
        origin: Origin,
    },
    /// `$(NAME)` names nothing.
    #[error(
        "{key} ({origin}): $({name}) is neither an environment variable nor another key; set {name} or write the value"
    )]
    VariableMissing {
        /// The key.
        key: String,
        /// Where it was written.
        origin: Origin,
        /// The name between the parentheses.
        name: String,
    },
    /// An environment variable holds what it cannot hold.
    #[error("environment variable {name}: expected {expected}")]
    EnvironmentValue {
        /// The variable.
        name: String,
        /// What would be right.
        expected: String,
    },
    /// Two ways to say one thing, and neither outranks the other.
    #[error("{one} and {other} are both set; keep one of them")]
    Ambiguous {
        /// One of them.
        one: String,
        /// The other one.
        other: String,
    },
    /// A file that holds a secret cannot be read.
    #[error("{what}: cannot read {}: {source}", path.display())]
    SecretUnreadable {
        /// Key or variable that names the file.
        what: String,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// TLS is on and something it needs is not configured.
    #[error(
        "AMQPS is on ({origin}) but {key} is not set; run `sealmq-init --certs DIR --secrets DIR` and set {key}, or turn \
         TLS off on purpose with listeners.ssl = none and listeners.tcp.default = 5672"
    )]
    TlsIncomplete {
        /// The key that is missing.
        key: &'static str,
        /// What turned TLS on.
        origin: Origin,
    },
    /// Neither listener is left.
    #[error(
        "no listener is left: listeners.tcp and listeners.ssl are both none; set listeners.ssl.default = 5671"
    )]
    NoListener,
    /// There is no default password, and none was configured.
    #[error(
        "no administrator password: SealMQ has no default one; run `sealmq-init` (it writes admin_password beside the \
         key), or set default_pass_file, SEALMQ_DEFAULT_PASS_FILE, or default_user and default_pass{}",
        looked.as_ref().map(|p| format!(" (looked for {})", p.display())).unwrap_or_default()
    )]
    NoAdministrator {
        /// Where `admin_password` was looked for, if anywhere.
        looked: Option<PathBuf>,
    },
    /// A store exists, its key does not.
    #[error(
        "E_KEK_UNAVAILABLE: {} holds a store, but its key {} is missing; a new key could not open it: put the old key back (at_rest.kek.file)",
        data_dir.display(), key.display()
    )]
    KeyMissing {
        /// The data directory.
        data_dir: PathBuf,
        /// Where the key should be.
        key: PathBuf,
    },
    /// No key, and making one was not allowed.
    #[error(
        "E_KEK_UNAVAILABLE: no key for data at rest: {problem}; run `sealmq-init --secrets DIR` and set at_rest.kek.file = DIR/at_rest_kek, \
         or allow a new one with at_rest.kek.generate = true"
    )]
    NoKey {
        /// What is missing.
        problem: String,
    },
    /// The key lies where the data lies.
    #[error(
        "the key {} lies inside the data directory {}: whoever copies the data would have the key; keep it elsewhere",
        key.display(), data_dir.display()
    )]
    KeyInsideData {
        /// The key file.
        key: PathBuf,
        /// The data directory.
        data_dir: PathBuf,
    },
    /// The log filter cannot be parsed, or a subscriber is there already.
    #[error("logging cannot start: {problem}; SEALMQ_LOG takes filters such as `info` or `sealmq=debug`")]
    Logging {
        /// Why.
        problem: String,
    },
    /// Another broker answers on the control socket.
    #[error("{}: another process serves this control socket; stop it or set control.socket", path.display())]
    ControlSocketBusy {
        /// The socket.
        path: PathBuf,
    },
    /// The control socket cannot be made or used.
    #[error("control socket {}: {action}: {source}", path.display())]
    ControlSocket {
        /// The socket.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The broker did not answer in time.
    #[error("control socket {}: no answer within {timeout_ms} ms", path.display())]
    ControlTimeout {
        /// The socket.
        path: PathBuf,
        /// How long was waited, in milliseconds.
        timeout_ms: u64,
    },
    /// The broker answered something that is not an answer.
    #[error("control socket {}: not an answer: {problem}", path.display())]
    ControlAnswer {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The broker understood and said no.
    #[error("{message}")]
    ControlRefused {
        /// A word for programs, see [`super::control::Refusal`].
        code: String,
        /// A sentence for people.
        message: String,
    },
    /// The health check found the broker unwell.
    #[error("unhealthy: {step}: {problem}")]
    Unhealthy {
        /// Which step failed.
        step: String,
        /// Why.
        problem: String,
    },
}

impl Error {
    /// Whether the operator's configuration is at fault (exit code 78), rather than the running system.
    pub fn is_configuration(&self) -> bool {
        match self {
            Error::ConfigUnreadable { .. }
            | Error::Syntax { .. }
            | Error::InvalidValue { .. }
            | Error::EncryptedValue { .. }
            | Error::VariableMissing { .. }
            | Error::EnvironmentValue { .. }
            | Error::Ambiguous { .. }
            | Error::SecretUnreadable { .. }
            | Error::TlsIncomplete { .. }
            | Error::NoListener
            | Error::NoAdministrator { .. }
            | Error::KeyMissing { .. }
            | Error::NoKey { .. }
            | Error::KeyInsideData { .. }
            | Error::Logging { .. } => true,
            Error::ControlSocketBusy { .. }
            | Error::ControlSocket { .. }
            | Error::ControlTimeout { .. }
            | Error::ControlAnswer { .. }
            | Error::ControlRefused { .. }
            | Error::Unhealthy { .. } => false,
        }
    }
}

/// What the functions of this layer return.
pub type Result<T> = std::result::Result<T, Error>;
