//! PKCS#12 files for Java and .NET: each pair with its chain, and the authority as a trust store.
//! Encrypted with PBES2 (PBKDF2 with HMAC-SHA256, AES-256-CBC), sealed by HMAC-SHA256 (RFC 7292, RFC 8018).

use std::path::Path;

use p12_keystore::{Certificate, KeyStore, KeyStoreEntry, Pkcs12ImportPolicy, PrivateKey, PrivateKeyChain};
use zeroize::Zeroizing;

use super::error::Error;
use super::files::{self, Access};
use super::secrets::random_password;

/// Iterations of PBKDF2 for encryption and MAC: what the JDK itself writes. The password is random and
/// long, so that more would only slow every client's start.
const ITERATIONS: u32 = 10_000;

/// The password of the folder's PKCS#12 files, made at the first need. It lies beside the keys that it
/// protects: PKCS#12 readers insist on one, and whoever may read it may read the keys as well.
pub(super) fn ensure_password(path: &Path, access: Access) -> Result<(Zeroizing<String>, bool), Error> {
    if let Some(bytes) = files::read(path)? {
        let text = std::str::from_utf8(&bytes).map_err(|_| Error::damaged(path, "it is no UTF-8 text"))?;
        let line = text.lines().next().unwrap_or_default();
        if line.is_empty() {
            return Err(Error::damaged(path, "its first line is empty"));
        }
        return Ok((Zeroizing::new(line.to_owned()), false));
    }
    let password = random_password()?;
    files::write_atomically(path, Zeroizing::new(format!("{}\n", *password)).as_bytes(), access)?;
    Ok((password, true))
}

/// Whether the file at `path` opens with `password` and holds exactly these certificates, in any order.
pub(super) fn holds(path: &Path, password: &str, certificates: &[&[u8]]) -> Result<bool, Error> {
    let Some(bytes) = files::read(path)? else { return Ok(false) };
    let Ok(store) = KeyStore::from_pkcs12(&bytes, password, Pkcs12ImportPolicy::Strict) else {
        return Ok(false);
    };
    let mut found: Vec<&[u8]> = Vec::new();
    for (_, entry) in store.entries() {
        match entry {
            KeyStoreEntry::PrivateKeyChain(chain) => {
                found.extend(chain.certs().iter().map(Certificate::as_der))
            }
            KeyStoreEntry::Certificate(certificate) => found.push(certificate.as_der()),
            KeyStoreEntry::Secret(_) => {}
        }
    }
    let mut wanted = certificates.to_vec();
    found.sort_unstable();
    wanted.sort_unstable();
    Ok(found == wanted)
}

/// A key with its chain (leaf first, authority last), under the alias `name`.
pub(super) fn pair(
    path: &Path,
    name: &str,
    key_pkcs8: &[u8],
    chain: &[&[u8]],
    password: &str,
) -> Result<Vec<u8>, Error> {
    let build = || {
        let certificates =
            chain.iter().map(|der| Certificate::from_der(der)).collect::<Result<Vec<_>, _>>()?;
        let chain = PrivateKeyChain::new(name, PrivateKey::from_der(key_pkcs8)?, certificates);
        encode(name, KeyStoreEntry::PrivateKeyChain(chain), password)
    };
    build().map_err(|source| Error::Bundle { path: path.to_path_buf(), source })
}

/// The authority's certificate alone, marked as trusted the way the JDK expects it.
pub(super) fn trust_store(path: &Path, ca: &[u8], password: &str) -> Result<Vec<u8>, Error> {
    Certificate::from_der(ca)
        .and_then(|certificate| encode("sealmq-ca", KeyStoreEntry::Certificate(certificate), password))
        .map_err(|source| Error::Bundle { path: path.to_path_buf(), source })
}

fn encode(alias: &str, entry: KeyStoreEntry, password: &str) -> p12_keystore::Result<Vec<u8>> {
    let mut store = KeyStore::new();
    store.add_entry(alias, entry);
    // The algorithms are the writer's own defaults, but they are part of what is promised: a test reads them back.
    store.writer(password).encryption_iterations(ITERATIONS).mac_iterations(ITERATIONS).write()
}
