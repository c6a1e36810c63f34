//! The server's private key: from its PEM file to what signs handshakes, with nothing of it left behind on the way.
//! rustls keeps what it needs for as long as it serves.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::sign::SigningKey;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};
use zeroize::{Zeroize, Zeroizing};

/// Largest file that is taken for one, in bytes: an RSA key of 16384 bits has 13 KiB, and certificates may stand beside it.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

type Make = fn(Vec<u8>) -> PrivateKeyDer<'static>;

const LABELS: [(&str, Make); 3] = [
    ("PRIVATE KEY", |der| PrivatePkcs8KeyDer::from(der).into()),
    ("RSA PRIVATE KEY", |der| PrivatePkcs1KeyDer::from(der).into()),
    ("EC PRIVATE KEY", |der| PrivateSec1KeyDer::from(der).into()),
];

/// Reads the first private key of a PEM file (RFC 7468) and sets it up for signing.
///
/// # Errors
/// A sentence about the file that shows nothing of it.
pub(super) fn load(path: &Path) -> Result<Arc<dyn SigningKey>, String> {
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    let len = file.metadata().map_err(|e| e.to_string())?.len();
    if len > FILE_BYTES_MAX {
        return Err(format!("{len} bytes are too many for a key"));
    }
    // One allocation that never grows: growing leaves the old place as it was.
    let mut text = Zeroizing::new(Vec::with_capacity(len as usize + 1));
    file.take(len).read_to_end(&mut text).map_err(|e| e.to_string())?;
    let mut key = parse(&text)?;
    let signing = any_supported_type(&key);
    match &mut key {
        PrivateKeyDer::Pkcs1(der) => der.zeroize(),
        PrivateKeyDer::Sec1(der) => der.zeroize(),
        PrivateKeyDer::Pkcs8(der) => der.zeroize(),
        // The enum may grow, and `parse` makes no other.
        _ => {}
    }
    signing.map_err(|e| e.to_string())
}

fn parse(text: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    let text = std::str::from_utf8(text).map_err(|_| "it is no text")?;
    if text.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") || text.contains("Proc-Type: 4,ENCRYPTED") {
        return Err("the key is encrypted with a password, which is not supported".into());
    }
    let found = LABELS.iter().filter_map(|(label, make)| {
        let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
        let from = text.find(&begin)?;
        let body = text.get(from + begin.len()..)?;
        Some((from, body.find(&end).and_then(|to| body.get(..to)), make))
    });
    let (_, body, make) = found.min_by_key(|(from, ..)| *from).ok_or("it holds no private key")?;
    let body = body.ok_or("its private key is cut off")?;
    let mut digits = Zeroizing::new(Vec::with_capacity(body.len()));
    digits.extend(body.bytes().filter(|byte| !byte.is_ascii_whitespace()));
    let mut der = Zeroizing::new(vec![0; digits.len()]);
    let len =
        STANDARD.decode_slice(digits.as_slice(), &mut der).map_err(|_| "its private key is no base64")?;
    // Exactly as long as the key, so that clearing the key clears all of the place.
    Ok(make(der.get(..len).unwrap_or_default().to_vec()))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::seal::tests::Wanted;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    const SEARCH: &str = "SEALMQ_TEST_SEARCH";

    /// The search is made by a process that has never seen the key: what other tests leave behind is not in it, nor
    /// what making a key has left.
    #[test]
    fn neither_the_file_nor_the_key_is_left_in_memory() {
        if let Ok(given) = std::env::var(SEARCH) {
            return search(&given);
        }
        let pair = rcgen::KeyPair::generate().unwrap();
        let (pem, der) = (pair.serialize_pem(), pair.serialize_der());
        let (text, file) = (Wanted::new(pem.lines().nth(1).unwrap().as_bytes()), file(&pem));
        let given =
            format!("{} {} {}", file.path().display(), text.to_hex(), Wanted::new(&der[..48]).to_hex());
        let name = "net::private_key::tests::neither_the_file_nor_the_key_is_left_in_memory";
        let mut child = Command::new(std::env::current_exe().unwrap());
        let child = child.args(["--exact", name, "--nocapture"]).env(SEARCH, given).output().unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success() && said.contains("nothing is left"), "{child:?}");
    }

    fn search(given: &str) {
        let [path, text, der] = given.split(' ').collect::<Vec<_>>().try_into().unwrap();
        let (text, der) = (Wanted::of_hex(text), Wanted::of_hex(der));
        // The control: what is read in the usual way is there for as long as it is kept.
        let usual = Zeroizing::new(std::fs::read_to_string(path).unwrap());
        assert!(text.found() > 0);
        drop(usual);
        assert_eq!((text.found(), der.found()), (0, 0), "the search itself leaves something");
        let signing = load(Path::new(path)).unwrap();
        assert_eq!((text.found(), der.found()), (0, 0), "text and bytes of the key that are left");
        drop(signing);
        println!("nothing is left");
    }

    #[test]
    fn takes_the_first_key_of_each_kind_and_whatever_stands_around_it() {
        let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for text in [
            pem.clone(),
            format!("{certificate}{pem}"),
            format!("Bag Attributes\n{pem}{certificate}"),
            pem.replace('\n', "\r\n"),
        ] {
            assert!(load(file(&text).path()).is_ok(), "{text}");
        }
    }

    #[test]
    fn says_what_is_wrong_and_shows_nothing() {
        let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let secret = pem.lines().nth(1).unwrap().to_owned();
        for (text, wanted) in [
            (String::new(), "no private key"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into(), "no private key"),
            (pem.replace("-----END PRIVATE KEY-----", ""), "cut off"),
            (pem.replace(&secret, &format!("{secret}*")), "no base64"),
            (pem.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"), "encrypted"),
            (pem.replace(&secret, ""), "key"),
        ] {
            let error = load(file(&text).path()).unwrap_err();
            assert!(error.contains(wanted) && !error.contains(&secret), "{error}");
        }
    }
}
