//! `sealmq-init`: makes the certificates that the broker and its clients need, and the broker's secrets.
//! It runs before the broker and shares nothing with it but the files. It opens no socket, and it never
//! replaces an authority or a secret by itself.
//!
//! ```text
//! CERTS/certs/{ca,server,client}_certificate.pem     0644
//! CERTS/private/{server,client}_key.pem              0400, or as asked
//! CERTS/private/ca_key.pem                           0400, always
//! CERTS/manifest.json                                fingerprints, names, dates
//! SECRETS/at_rest_kek, SECRETS/admin_password        0400, never under CERTS
//! ```

use std::fmt;
use std::path::{Component, Path, PathBuf};

use time::OffsetDateTime;

mod authority;
mod bundle;
mod certificate;
mod error;
mod files;
mod folder;
mod issue;
mod manifest;
mod names;
mod pair;
mod secrets;
#[cfg(test)]
mod tests;

pub use error::Error;
pub use files::Owner;
pub use issue::KeyType;
pub use names::San;
pub use pair::Reason;

use authority::Authority;
use files::{Access, FolderLock};
use folder::Folder;
use issue::Role;
use manifest::{Entry, Manifest};
use pair::{Holder, Pair};

/// Default life of a server or client certificate, in days.
pub const DAYS_DEFAULT: u32 = 90;

/// Longest life of a server or client certificate, in days: 398 less one (CA/Browser Forum BR 6.3.2, which
/// Apple's clients enforce also for private authorities).
pub const DAYS_MAX: u32 = 397;

/// What to make, and where.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder that clients may mount; created if missing.
    pub certs: PathBuf,
    /// The folder that only the broker may see; created (0700) if missing. Never inside `certs`.
    pub secrets: PathBuf,
    /// Further names of the server: host names or IP addresses.
    pub sans: Vec<String>,
    /// Further clients that get a pair of their own, beside `client`.
    pub clients: Vec<String>,
    /// Life of a newly issued server or client certificate: 1 to [`DAYS_MAX`].
    pub days: u32,
    /// Kind of new keys; `None`: P-256 for what is new, the present kind for what is reissued.
    pub key: Option<KeyType>,
    /// Write PKCS#12 files as well. Once there, they are kept fresh without being asked again.
    pub p12: bool,
    /// Replace the authority and with it every certificate.
    pub force_ca: bool,
    /// Permission bits of server and client keys; `None`: 0400 for new ones, others keep theirs.
    pub key_mode: Option<u32>,
    /// Owner of all that is written; `None`: whoever runs this.
    pub owner: Option<Owner>,
    /// This host's name, a name of the server. A container's id is ignored: it changes at each start.
    pub host_name: Option<String>,
    /// The present, which tests choose.
    pub now: OffsetDateTime,
}

impl Options {
    /// The defaults, for this host and the present time.
    pub fn new(certs: impl Into<PathBuf>, secrets: impl Into<PathBuf>) -> Options {
        Options {
            certs: certs.into(),
            secrets: secrets.into(),
            sans: Vec::new(),
            clients: Vec::new(),
            days: DAYS_DEFAULT,
            key: None,
            p12: false,
            force_ca: false,
            key_mode: None,
            owner: None,
            host_name: names::host_name(),
            now: OffsetDateTime::now_utc(),
        }
    }

    fn check(&self) -> Result<(), Error> {
        if !(1..=DAYS_MAX).contains(&self.days) {
            let value = self.days.to_string();
            return Err(Error::Value { option: "--days", value, reason: "expected 1 to 397" });
        }
        match self.key_mode {
            Some(mode) if mode & 0o400 == 0 || mode & !0o644 != 0 => Err(Error::Value {
                option: "--key-mode",
                value: format!("{mode:04o}"),
                reason: "expected a mode between 0400 and 0644 that lets nobody but the owner write, such as 0440 or 0444",
            }),
            _ => Ok(()),
        }
    }
}

/// One thing that a run changed on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The first authority was made.
    CaCreated,
    /// The authority was replaced, as asked.
    CaReplaced,
    /// A certificate and its key were issued.
    Issued {
        /// `server`, or the client's name.
        name: String,
        /// Why.
        reason: Reason,
    },
    /// A PKCS#12 file or its password was written.
    BundleWritten(PathBuf),
    /// A file's permission bits were changed.
    ModeChanged(PathBuf, u32),
    /// The key that wraps the store's keys was made.
    KekCreated(PathBuf),
    /// The administrator's password was made.
    PasswordCreated(PathBuf),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::CaCreated => f.write_str("made the certificate authority"),
            Change::CaReplaced => {
                f.write_str("replaced the certificate authority; every client needs the new one")
            }
            Change::Issued { name, reason } => write!(f, "issued the certificate of {name}: {reason}"),
            Change::BundleWritten(path) => write!(f, "wrote {}", path.display()),
            Change::ModeChanged(path, mode) => {
                write!(f, "changed the mode of {} to {mode:04o}", path.display())
            }
            Change::KekCreated(path) => write!(
                f,
                "made the key of the store: {} (keep a copy elsewhere: without it nobody can read the store)",
                path.display()
            ),
            Change::PasswordCreated(path) => {
                write!(f, "made the administrator's password: {}", path.display())
            }
        }
    }
}

/// What a run did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// In the order in which they were made.
    pub changes: Vec<Change>,
    /// What the operator should know though nothing failed.
    pub warnings: Vec<String>,
}

impl Report {
    /// Whether everything was already as asked for.
    pub fn is_up_to_date(&self) -> bool {
        self.changes.is_empty()
    }
}

/// Brings both folders to what `options` ask for. Safe to repeat, to interrupt at any point, and to run
/// twice at once: each file is replaced whole, and a second run waits for the first.
pub fn run(options: &Options) -> Result<Report, Error> {
    options.check()?;
    let sans = names::wanted_sans(&options.sans, options.host_name.as_deref())?;
    let mut clients = names::wanted_clients(&options.clients)?;
    keep_apart(&options.certs, &options.secrets)?;
    let folder = Folder::prepare(options)?;
    files::ensure_folder(&options.secrets, Access { mode: 0o700, owner: options.owner }, 0)?;
    let _locks = lock_both(options)?;

    let mut report = Report::default();
    let old_manifest = Manifest::read(&folder.manifest())?;
    for name in old_manifest.iter().flat_map(Manifest::client_names) {
        // Made by an earlier run; a client whose certificate was deleted is not brought back.
        if !clients.iter().any(|client| client == name) && folder.certificate(name).exists() {
            clients.push(name.to_owned());
        }
    }
    let authority = Authority::ensure(&folder, options.force_ca, &mut report)?;
    let server = Holder { role: Role::Server, name: "server", sans: &sans };
    let holders = clients.iter().map(|name| Holder { role: Role::Client, name, sans: &[] });
    let mut pairs = Vec::new();
    for holder in std::iter::once(server).chain(holders) {
        let pair = pair::ensure(&folder, &authority, &holder, &mut report)?;
        pairs.push((holder.name.to_owned(), pair));
    }
    ensure_bundles(&folder, &authority, &pairs, &mut report)?;
    secrets::ensure(&options.secrets, Access { mode: 0o400, owner: options.owner }, &mut report)?;
    write_manifest(&folder, &authority, &pairs, old_manifest.as_ref())?;
    Ok(report)
}

fn ensure_bundles(
    folder: &Folder<'_>,
    authority: &Authority,
    pairs: &[(String, Pair)],
    report: &mut Report,
) -> Result<(), Error> {
    let password_path = folder.bundle_password();
    if !folder.options.p12 && !password_path.exists() {
        return Ok(());
    }
    let (password, created) = bundle::ensure_password(&password_path, folder.private(&password_path)?)?;
    if created {
        report.changes.push(Change::BundleWritten(password_path));
    }
    let ca = &authority.certificate.der;
    for (name, pair) in pairs {
        let path = folder.bundle(name);
        let chain: [&[u8]; 2] = [&pair.certificate.der, ca];
        if !bundle::holds(&path, &password, &chain)? {
            let bytes = bundle::pair(&path, name, pair.key.serialized_der(), &chain, &password)?;
            files::write_atomically(&path, &bytes, folder.private(&path)?)?;
            report.changes.push(Change::BundleWritten(path));
        }
    }
    let path = folder.trust_store();
    if !bundle::holds(&path, &password, &[ca])? {
        files::write_atomically(&path, &bundle::trust_store(&path, ca, &password)?, folder.public())?;
        report.changes.push(Change::BundleWritten(path));
    }
    Ok(())
}

fn write_manifest(
    folder: &Folder<'_>,
    authority: &Authority,
    pairs: &[(String, Pair)],
    old: Option<&Manifest>,
) -> Result<(), Error> {
    let mut entries = pairs.iter().map(|(name, pair)| Entry::new(name, &pair.certificate));
    let Some(server) = entries.next() else { return Ok(()) };
    let manifest = Manifest::new(Entry::new("ca", &authority.certificate), server, entries.collect());
    if old == Some(&manifest) {
        return Ok(());
    }
    manifest.write(&folder.manifest(), folder.public())
}

/// Clients mount the certificates: a secret under that folder would be theirs.
fn keep_apart(certs: &Path, secrets: &Path) -> Result<(), Error> {
    if resolve(secrets)?.starts_with(resolve(certs)?) {
        return Err(Error::SecretsInsideCerts { secrets: secrets.to_path_buf(), certs: certs.to_path_buf() });
    }
    Ok(())
}

/// The path with its links followed, as far as it exists.
fn resolve(path: &Path) -> Result<PathBuf, Error> {
    let absolute = std::path::absolute(path).map_err(Error::io("resolve", path))?;
    let mut resolved = PathBuf::new();
    for component in absolute.components() {
        match component {
            Component::ParentDir => {
                resolved.pop();
            }
            component => {
                resolved.push(component);
                resolved = resolved.canonicalize().unwrap_or(resolved);
            }
        }
    }
    Ok(resolved)
}

/// In the order of their paths, so that two runs with the folders the other way round cannot wait for
/// each other for ever.
fn lock_both(options: &Options) -> Result<[FolderLock; 2], Error> {
    let mut folders = [resolve(&options.certs)?, resolve(&options.secrets)?];
    folders.sort_unstable();
    let [first, second] = &folders;
    Ok([FolderLock::acquire(first, options.owner)?, FolderLock::acquire(second, options.owner)?])
}
