//! `manifest.json`: what is in the folder, for people and for monitoring. It holds nothing secret, and it
//! tells the next run which clients it has to keep fresh.

use std::path::Path;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::certificate::Certificate;
use super::error::Error;
use super::files::{self, Access};
use super::names;

/// Raised when a field changes its meaning.
const FORMAT: u32 = 1;

/// The whole file.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Manifest {
    format: u32,
    tool: String,
    ca: Entry,
    server: Entry,
    clients: Vec<Entry>,
}

/// One certificate.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Entry {
    name: String,
    /// Relative to the manifest.
    certificate: String,
    subject: String,
    serial: String,
    sha256: String,
    sans: Vec<String>,
    /// RFC 3339, UTC.
    not_before: String,
    not_after: String,
}

impl Entry {
    pub(super) fn new(name: &str, certificate: &Certificate) -> Entry {
        Entry {
            name: name.to_owned(),
            certificate: format!("certs/{name}_certificate.pem"),
            subject: certificate.subject.clone(),
            serial: certificate.serial.clone(),
            sha256: certificate.fingerprint(),
            sans: certificate.sans.iter().map(ToString::to_string).collect(),
            not_before: rfc3339(certificate.not_before),
            not_after: rfc3339(certificate.not_after),
        }
    }
}

impl Manifest {
    pub(super) fn new(ca: Entry, server: Entry, clients: Vec<Entry>) -> Manifest {
        let tool = concat!("sealmq-init ", env!("CARGO_PKG_VERSION")).to_owned();
        Manifest { format: FORMAT, tool, ca, server, clients }
    }

    /// The manifest of an earlier run, `None` at the first.
    pub(super) fn read(path: &Path) -> Result<Option<Manifest>, Error> {
        let Some(bytes) = files::read(path)? else { return Ok(None) };
        let manifest: Manifest = serde_json::from_slice(&bytes)
            .map_err(|error| Error::damaged(path, format!("it cannot be read: {error}")))?;
        // The names become paths, and anybody could have edited the file.
        for client in &manifest.clients {
            names::check_client(&client.name).map_err(|error| Error::damaged(path, error.to_string()))?;
        }
        Ok(Some(manifest))
    }

    /// Clients that have a pair of their own.
    pub(super) fn client_names(&self) -> impl Iterator<Item = &str> {
        self.clients.iter().map(|client| client.name.as_str())
    }

    /// Writes the file; the caller has seen that it differs from what is there.
    pub(super) fn write(&self, path: &Path, access: Access) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| Error::io("write", path)(std::io::Error::other(error)))?;
        files::write_atomically(path, format!("{text}\n").as_bytes(), access)
    }
}

/// RFC 3339 in UTC; a date beyond the year 9999, which no certificate of ours has, falls back to ISO order.
pub(super) fn rfc3339(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).unwrap_or_else(|_| time.to_string())
}
