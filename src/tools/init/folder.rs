//! The layout of the certificates folder: which name lies where, with which mode. It fits as it is at
//! `/etc/rabbitmq/ssl`: `certs/*_certificate.pem` for everybody, `private/*_key.pem` by `key_mode`.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rcgen::KeyPair;
use zeroize::Zeroizing;

use super::Options;
use super::error::Error;
use super::files::{self, Access};

/// Characters of base64 on a line of PEM (RFC 7468 section 2).
const PEM_LINE_CHARS: usize = 64;

/// Mode of what everybody may read.
const PUBLIC_MODE: u32 = 0o644;

/// Mode of a private key unless the operator says otherwise.
const KEY_MODE_DEFAULT: u32 = 0o400;

/// The folder, prepared; everything in it is reached through here.
pub(super) struct Folder<'a> {
    pub(super) options: &'a Options,
}

impl Folder<'_> {
    /// Creates what is missing of the folder's skeleton.
    pub(super) fn prepare(options: &Options) -> Result<Folder<'_>, Error> {
        let folder = Folder { options };
        let open = folder.access(0o755);
        // Whoever may read a key must be able to reach it.
        let others = options.key_mode.is_some_and(|mode| mode & 0o004 != 0);
        let (private, widen) = if others { (0o755, 0o755) } else { (0o750, 0) };
        files::ensure_folder(&options.certs, open, 0)?;
        files::ensure_folder(&options.certs.join("certs"), open, 0)?;
        files::ensure_folder(&options.certs.join("private"), folder.access(private), widen)?;
        Ok(folder)
    }

    /// `certs/NAME_certificate.pem`.
    pub(super) fn certificate(&self, name: &str) -> PathBuf {
        self.options.certs.join("certs").join(format!("{name}_certificate.pem"))
    }

    /// `private/NAME_key.pem`.
    pub(super) fn key(&self, name: &str) -> PathBuf {
        self.options.certs.join("private").join(format!("{name}_key.pem"))
    }

    /// `private/NAME.p12`.
    pub(super) fn bundle(&self, name: &str) -> PathBuf {
        self.options.certs.join("private").join(format!("{name}.p12"))
    }

    /// `certs/truststore.p12`.
    pub(super) fn trust_store(&self) -> PathBuf {
        self.options.certs.join("certs/truststore.p12")
    }

    /// `private/p12_password`.
    pub(super) fn bundle_password(&self) -> PathBuf {
        self.options.certs.join("private/p12_password")
    }

    /// `manifest.json`.
    pub(super) fn manifest(&self) -> PathBuf {
        self.options.certs.join("manifest.json")
    }

    /// Whether a certificate of a server or client lies in the folder.
    pub(super) fn has_leaves(&self) -> Result<bool, Error> {
        let path = self.options.certs.join("certs");
        for entry in path.read_dir().map_err(Error::io("list", &path))? {
            let name = entry.map_err(Error::io("list", &path))?.file_name();
            let name = name.to_string_lossy();
            if name.ends_with("_certificate.pem") && name != "ca_certificate.pem" {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// How a public file is written.
    pub(super) fn public(&self) -> Access {
        self.access(PUBLIC_MODE)
    }

    /// How a client's or the server's key is written: as asked, else as the file that it replaces.
    pub(super) fn private(&self, path: &Path) -> Result<Access, Error> {
        let mode = match self.options.key_mode {
            Some(mode) => mode,
            None => files::mode_of(path)?.unwrap_or(KEY_MODE_DEFAULT),
        };
        Ok(self.access(mode))
    }

    pub(super) fn write_certificate(&self, name: &str, der: &[u8]) -> Result<(), Error> {
        files::write_atomically(&self.certificate(name), pem("CERTIFICATE", der).as_bytes(), self.public())
    }

    pub(super) fn write_key(&self, name: &str, key: &KeyPair) -> Result<(), Error> {
        let path = self.key(name);
        let access = self.private(&path)?;
        files::write_atomically(&path, pem("PRIVATE KEY", key.serialized_der()).as_bytes(), access)
    }

    /// Never wider than 0400, whatever the mode of the others: with this key anybody could be anybody.
    pub(super) fn write_ca_key(&self, key: &KeyPair) -> Result<(), Error> {
        let text = pem("PRIVATE KEY", key.serialized_der());
        files::write_atomically(&self.key("ca"), text.as_bytes(), self.access(KEY_MODE_DEFAULT))
    }

    fn access(&self, mode: u32) -> Access {
        Access { mode, owner: self.options.owner }
    }
}

/// PEM (RFC 7468) in buffers of their final size, wiped when dropped: the bytes may be a private key.
fn pem(label: &str, der: &[u8]) -> Zeroizing<String> {
    let body = Zeroizing::new(BASE64_STANDARD.encode(der));
    let lines = body.len() / PEM_LINE_CHARS + 1;
    let frame = 2 * (label.len() + "-----BEGIN -----\n".len());
    let mut text = Zeroizing::new(String::with_capacity(body.len() + lines + frame));
    text.push_str("-----BEGIN ");
    text.push_str(label);
    text.push_str("-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(PEM_LINE_CHARS));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}
