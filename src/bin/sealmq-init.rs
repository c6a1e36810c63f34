//! The `sealmq-init` program: parses its arguments, calls the library, maps the result to an exit code.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use sealmq::tools::init::{self, DAYS_DEFAULT, DAYS_MAX, KeyType, Options, Owner};

/// Makes the certificates for AMQPS and the broker's secrets. Run it again at any time: what is good is
/// kept, certificates with less than a third of their life left are reissued under the same authority,
/// and neither the authority nor a secret is ever replaced by itself.
#[derive(Parser)]
#[command(name = "sealmq-init", version, after_help = EXAMPLES)]
struct Arguments {
    /// Folder for certificates and their keys, the one that clients mount (at /etc/rabbitmq/ssl)
    #[arg(long, value_name = "DIR")]
    certs: PathBuf,

    /// Folder for the store's key and the administrator's password, which only the broker may see
    #[arg(long, value_name = "DIR")]
    secrets: PathBuf,

    /// Further name or address of the server; may be repeated or separated by commas. Always there:
    /// broker, localhost, 127.0.0.1, ::1, this host's name, and what $SEALMQ_EXTRA_SANS lists
    #[arg(long = "san", value_name = "NAME", value_delimiter = ',')]
    sans: Vec<String>,

    /// Further client that gets a certificate of its own, beside "client"; its name is the user name
    /// for EXTERNAL; may be repeated or separated by commas
    #[arg(long = "client", value_name = "NAME", value_delimiter = ',')]
    clients: Vec<String>,

    /// Life of newly issued server and client certificates, in days
    #[arg(long, value_name = "N", default_value_t = DAYS_DEFAULT, value_parser = clap::value_parser!(u32).range(1..=i64::from(DAYS_MAX)))]
    days: u32,

    /// Kind of new keys [default: p256, or as the certificate that is reissued]
    #[arg(long, value_enum)]
    key: Option<Key>,

    /// Write PKCS#12 files too (private/NAME.p12, certs/truststore.p12, private/p12_password)
    #[arg(long)]
    p12: bool,

    /// Replace the authority and every certificate; every client then needs the new ca_certificate.pem
    #[arg(long)]
    force_ca: bool,

    /// Mode of server and client keys, such as 0444 for a lab whose clients run as other users
    /// [default: 0400]. The authority's key stays 0400
    #[arg(long, value_name = "OCTAL", value_parser = parse_mode)]
    key_mode: Option<u32>,

    /// Owner of all that is written (as root only)
    #[arg(long, value_name = "UID[:GID]", value_parser = parse_owner)]
    chown: Option<Owner>,
}

const EXAMPLES: &str = "Examples:
  sealmq-init --certs certs --secrets data/secrets
  sealmq-init --certs /certs --secrets /secrets --san mq.example.com --client producer --key-mode 0444

Exit codes: 0 done or up to date, 1 failed (nothing half-written is left), 2 wrong arguments.";

#[derive(Clone, Copy, ValueEnum)]
enum Key {
    P256,
    P384,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (certs, secrets) = (arguments.certs.clone(), arguments.secrets.clone());
    match init::run(&options(arguments)) {
        Ok(report) => {
            for change in &report.changes {
                println!("{change}");
            }
            for warning in &report.warnings {
                eprintln!("warning: {warning}");
            }
            let state = if report.is_up_to_date() { "up to date" } else { "done" };
            println!("{state}: certificates in {}, secrets in {}", certs.display(), secrets.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("sealmq-init: {error}");
            ExitCode::FAILURE
        }
    }
}

fn options(arguments: Arguments) -> Options {
    let extra = std::env::var("SEALMQ_EXTRA_SANS").unwrap_or_default();
    let extra = extra.split([',', ' ', '\n']).filter(|name| !name.is_empty()).map(str::to_owned);
    Options {
        sans: arguments.sans.into_iter().chain(extra).collect(),
        clients: arguments.clients,
        days: arguments.days,
        key: arguments.key.map(|key| match key {
            Key::P256 => KeyType::P256,
            Key::P384 => KeyType::P384,
        }),
        p12: arguments.p12,
        force_ca: arguments.force_ca,
        key_mode: arguments.key_mode,
        owner: arguments.chown,
        ..Options::new(arguments.certs, arguments.secrets)
    }
}

fn parse_mode(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text.strip_prefix("0o").unwrap_or(text), 8)
        .map_err(|_| "expected an octal mode such as 0400 or 0444".to_owned())
}

fn parse_owner(text: &str) -> Result<Owner, String> {
    let number = |part: &str| part.parse().map_err(|_| "expected numbers, such as 999:999".to_owned());
    match text.split_once(':') {
        Some((uid, gid)) => Ok(Owner { uid: number(uid)?, gid: Some(number(gid)?) }),
        None => Ok(Owner { uid: number(text)?, gid: None }),
    }
}
