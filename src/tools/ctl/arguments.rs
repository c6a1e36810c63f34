//! The command line: rabbitmqctl's verbs and flags, before or after the verb. Nothing is done here.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::server::values::duration;

/// The name that the program was called by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Its own.
    SealmqCtl,
    /// `rabbitmqctl` or `rabbitmq-diagnostics`: whoever calls those compares RabbitMQ's versions.
    RabbitMq,
}

impl Program {
    /// Decides by the file name of `argv[0]`.
    pub fn of(called: Option<&Path>) -> Program {
        match called.and_then(Path::file_stem).and_then(|name| name.to_str()) {
            Some(name) if name.starts_with("rabbitmq") => Program::RabbitMq,
            _ => Program::SealmqCtl,
        }
    }
}

/// Asks a running SealMQ broker, in the way of rabbitmqctl and rabbitmq-diagnostics.
#[derive(Debug, Parser)]
#[command(
    name = "sealmqctl",
    subcommand_required = true,
    after_help = "Exit codes: 0 done, 64 usage, 65 not found, 69 unavailable or a check failed, 70 internal fault, \
                  73 backup not made, 75 timed out, 78 configuration."
)]
pub struct Arguments {
    /// Flags of every verb.
    #[command(flatten)]
    pub common: Common,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Flags of every verb.
#[derive(Debug, Args)]
pub struct Common {
    /// No informational lines
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// No informational lines and no table headers
    #[arg(short, long, global = true)]
    pub silent: bool,
    /// Virtual host
    #[arg(short = 'p', long, global = true, default_value = "/", value_name = "VHOST")]
    pub vhost: String,
    /// Seconds to wait for the broker, or `infinity`
    #[arg(short, long, global = true, value_parser = parse_timeout, value_name = "SECONDS")]
    pub timeout: Option<Duration>,
    /// No table headers
    #[arg(long, global = true)]
    pub no_table_headers: bool,
    /// How results look
    #[arg(long, global = true, value_enum, default_value = "table")]
    pub formatter: Formatter,
    /// Control socket; found by itself when the broker uses the default place or the usual configuration
    #[arg(long, global = true, env = "SEALMQ_CONTROL_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Configuration file that names the control socket or the data directory
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Vec<PathBuf>,
    /// Accepted and ignored: the broker is always the one on this host
    #[arg(short, long, global = true, value_name = "NODE")]
    pub node: Option<String>,
    /// Accepted and ignored
    #[arg(short, long, global = true)]
    pub longnames: bool,
}

/// How results look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Formatter {
    /// Columns separated by tabs
    Table,
    /// Columns in boxes
    PrettyTable,
    /// Quoted values separated by commas
    Csv,
    /// One JSON array
    Json,
    /// One JSON object per row
    JsonStream,
}

/// The verbs.
#[derive(Debug, Subcommand)]
#[command(rename_all = "snake_case")]
pub enum Verb {
    /// Checks that the broker answers and its store takes writes
    Ping,
    /// Shows the broker's state
    Status,
    /// Lists queues
    ListQueues {
        /// name durable auto_delete exclusive arguments messages_ready messages_unacknowledged messages consumers
        /// state type memory; by default name and messages
        columns: Vec<String>,
    },
    /// Lists exchanges
    ListExchanges {
        /// name type durable auto_delete internal arguments; by default name and type
        columns: Vec<String>,
    },
    /// Lists bindings
    ListBindings {
        /// source_name source_kind destination_name destination_kind routing_key arguments; by default all
        columns: Vec<String>,
    },
    /// Copies the store into a folder while the broker goes on serving; waits for as long as it takes
    Backup {
        /// Folder on the broker's host that is empty or does not exist
        dir: PathBuf,
    },
    /// Shows everything a maintainer would ask for
    Report,
    /// Waits until the broker serves
    AwaitStartup,
    /// Prints the version
    Version,
    /// Checks that the broker is fully started
    CheckRunning,
    /// Checks that each listener accepts connections
    CheckPortConnectivity,
    /// Checks that no resource alarm is in effect
    CheckLocalAlarms,
    /// Shows and changes who can open the store
    #[command(subcommand)]
    Keyring(KeyringVerb),
}

/// What is done with the keyring of the running broker.
#[derive(Debug, Subcommand)]
#[command(rename_all = "kebab-case")]
pub enum KeyringVerb {
    /// Shows slots and data keys; no key bytes
    Status,
    /// Lets one more key or passphrase open the store
    AddSlot(Box<NewSlot>),
    /// Takes the right to open the store from a slot
    RemoveSlot {
        /// The beginning of its id, as `keyring status` shows it
        slot: String,
        /// Even the slot that the broker was started with
        #[arg(long)]
        in_use: bool,
    },
    /// Seals under a new data key from now on
    RotateDek,
    /// Seals again what is under old data keys, while the broker serves; `keyring status` shows how far it is
    Reseal {
        /// Only what is under data keys made so long ago (90s, 15m, 24h, 7d); without it, before the current one
        #[arg(long, value_parser = parse_age, value_name = "AGE")]
        older_than: Option<Duration>,
    },
}

/// Where the new key comes from; never the command line itself.
#[derive(Debug, Args)]
pub struct NewSlot {
    /// One of them.
    #[command(flatten)]
    pub source: SlotSource,
    /// With `--pkcs11`.
    #[command(flatten)]
    pub token: TokenFlags,
    /// With `--vault`.
    #[command(flatten)]
    pub vault: VaultFlags,
}

/// What will open the slot.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct SlotSource {
    /// A key file that the broker can read (32 bytes, 64 hex digits or base64)
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// A passphrase, asked for at the terminal
    #[arg(long)]
    pub passphrase: bool,
    /// A passphrase in a file that nobody else may read
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// A passphrase from an inherited descriptor; 0 is standard input
    #[arg(long, value_name = "NUMBER")]
    pub passphrase_fd: Option<u32>,
    /// A key that stays in a token: with --module, --token, --label and --pin-file
    #[arg(long, requires_all = ["module", "token", "label", "pin_file"])]
    pub pkcs11: bool,
    /// A key that stays in Vault or OpenBao: with --address, --key, --token-file and --ca-file
    #[arg(long, requires_all = ["address", "key", "token_file", "ca_file"])]
    pub vault: bool,
}

/// Which key of which token.
#[derive(Debug, Args)]
pub struct TokenFlags {
    /// The token's PKCS#11 module, as the broker sees it
    #[arg(long, value_name = "FILE", requires = "pkcs11")]
    pub module: Option<PathBuf>,
    /// The token's label
    #[arg(long, value_name = "LABEL", requires = "pkcs11")]
    pub token: Option<String>,
    /// The key's label
    #[arg(long, value_name = "LABEL", requires = "pkcs11")]
    pub label: Option<String>,
    /// A file with the token's PIN that only the broker can read
    #[arg(long, value_name = "FILE", requires = "pkcs11")]
    pub pin_file: Option<PathBuf>,
}

/// Which transit key of which server.
#[derive(Debug, Args)]
pub struct VaultFlags {
    /// https://HOST:PORT
    #[arg(long, value_name = "URL", requires = "vault")]
    pub address: Option<String>,
    /// Where the transit engine is mounted
    #[arg(long, value_name = "PATH", requires = "vault")]
    pub mount: Option<String>,
    /// The key's name
    #[arg(long, value_name = "NAME", requires = "vault")]
    pub key: Option<String>,
    /// The namespace of the mount
    #[arg(long, value_name = "NAMESPACE", requires = "vault")]
    pub namespace: Option<String>,
    /// A file with a token of Vault that only the broker can read
    #[arg(long, value_name = "FILE", requires = "vault")]
    pub token_file: Option<PathBuf>,
    /// A file with the authority of Vault's certificate
    #[arg(long, value_name = "FILE", requires = "vault")]
    pub ca_file: Option<PathBuf>,
}

// A hundred years are as good as for ever, and fit every clock.
pub(super) const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);

fn parse_timeout(text: &str) -> Result<Duration, String> {
    if text == "infinity" {
        return Ok(FOREVER);
    }
    let seconds: f64 = text.parse().map_err(|_| "seconds or infinity".to_owned())?;
    Duration::try_from_secs_f64(seconds).map(|t| t.min(FOREVER)).map_err(|e| e.to_string())
}

fn parse_age(text: &str) -> Result<Duration, String> {
    duration(text).ok_or_else(|| "a time such as 90s, 15m, 24h or 7d".to_owned())
}

impl Common {
    /// Whether the sentence before a result is left out; machine formats never have it.
    pub fn is_quiet(&self) -> bool {
        let for_people = matches!(self.formatter, Formatter::Table | Formatter::PrettyTable);
        self.quiet || self.silent || !for_people
    }

    /// Whether tables have a header line.
    pub fn has_headers(&self) -> bool {
        !self.silent && !self.no_table_headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_stand_before_or_after_the_verb() {
        for line in
            ["x -q -t 5 list_queues name", "x list_queues -q --timeout 5 name", "x list_queues name -q -t5"]
        {
            let parsed = Arguments::try_parse_from(line.split(' ')).unwrap();
            assert!(parsed.common.quiet, "{line}");
            assert_eq!(parsed.common.timeout, Some(Duration::from_secs(5)), "{line}");
            assert!(matches!(parsed.verb, Verb::ListQueues { columns } if columns == ["name"]), "{line}");
        }
    }

    #[test]
    fn knows_by_what_name_it_was_called() {
        let of = |name: &str| Program::of(Some(Path::new(name)));
        assert_eq!(of("/usr/sbin/rabbitmq-diagnostics"), Program::RabbitMq);
        assert_eq!(of("rabbitmqctl"), Program::RabbitMq);
        assert_eq!(of("/usr/bin/sealmqctl"), Program::SealmqCtl);
    }

    #[test]
    fn timeouts_are_seconds_or_infinity() {
        assert_eq!(parse_timeout("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_timeout("infinity"), Ok(FOREVER));
        assert_eq!(parse_timeout("1e300").ok(), None);
        assert!(parse_timeout("-1").is_err() && parse_timeout("soon").is_err());
    }
}
