//! What can stop `sealmq-init`, by cause. Every message names the file and says what to do.

use std::io;
use std::path::{Path, PathBuf};

/// Why no (further) certificate or secret was written. What is on disk stays usable: every file is
/// replaced whole or not at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused; `doing` is the verb phrase, such as "read".
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was being done, as it completes "cannot ...".
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// A file that exists holds something else than it should; it is left as it is.
    #[error("{} is damaged or not what its name says: {reason}. It was left as it is; {remedy}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
        /// What the operator can do.
        remedy: &'static str,
    },
    /// The authority cannot sign what has to be signed, and is never replaced without being asked.
    #[error(
        "{reason} ({}). The authority is never replaced silently: restore the file from a backup, or run again with --force-ca to make a new authority (every client then needs the new ca_certificate.pem)",
        path.display()
    )]
    Authority {
        /// The file at fault.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// An option's value cannot be used.
    #[error("{option}: {value:?} cannot be used: {reason}")]
    Value {
        /// The option, as typed.
        option: &'static str,
        /// What it was given.
        value: String,
        /// What was expected.
        reason: &'static str,
    },
    /// Secrets would be handed to every client that mounts the certificates.
    #[error(
        "the secrets folder {} lies inside the certificates folder {}, which clients mount; choose a folder outside it",
        secrets.display(),
        certs.display()
    )]
    SecretsInsideCerts {
        /// `--secrets`.
        secrets: PathBuf,
        /// `--certs`.
        certs: PathBuf,
    },
    /// A certificate could not be signed.
    #[error("cannot issue the certificate {name:?}: {source}")]
    Issue {
        /// Whose certificate.
        name: String,
        /// The issuing library's answer.
        source: rcgen::Error,
    },
    /// A PKCS#12 file could not be written.
    #[error("cannot put {} together: {source}", path.display())]
    Bundle {
        /// The file.
        path: PathBuf,
        /// The PKCS#12 library's answer.
        source: p12_keystore::error::Error,
    },
    /// The operating system has no random bytes.
    #[error("cannot obtain random bytes from the operating system: {0}")]
    Random(#[from] getrandom::Error),
}

impl Error {
    /// For `map_err`: names what was done to which path.
    pub(super) fn io<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
        move |source| Error::Io { doing, path: path.to_path_buf(), source }
    }

    /// A file whose content cannot be used; deleting it makes the next run write a new one.
    pub(super) fn damaged(path: &Path, reason: impl Into<String>) -> Error {
        Error::Damaged {
            path: path.to_path_buf(),
            reason: reason.into(),
            remedy: "restore it from a backup, or delete it and run again to have a new one issued",
        }
    }

    /// The authority's certificate or key is at fault.
    pub(super) fn authority(path: &Path, reason: impl Into<String>) -> Error {
        Error::Authority { path: path.to_path_buf(), reason: reason.into() }
    }
}
