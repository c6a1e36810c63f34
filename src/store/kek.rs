//! Reading a key-encryption key or a passphrase from outside: a file, or bytes that another source gave.
//! Error texts name the source and the reason, never a byte of what was read.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::{Mode, OFlags};
use zeroize::{Zeroize, Zeroizing};

use super::error::StoreError;
use crate::limits::PASSPHRASE_BYTES_MAX;
use crate::seal::{Kek, Passphrase};

const KEY_BYTES: usize = 32;
/// Base64 of 32 bytes with a line end is 46 bytes, 64 hex digits with one 66.
const SOURCE_BYTES_MAX: usize = 128;

/// Whom a secret file may belong to and who may read it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    /// The broker's user or root, and nobody else.
    OwnerOnly,
    /// As systemd gives credentials: root's, with an ACL for the broker's user that shows as the group's bits.
    Granted,
}

/// Reads a key file: 32 raw bytes, 64 hex digits, or 44 characters of base64 (one line end is ignored).
///
/// # Errors
/// `E_KEK_UNAVAILABLE` when it is not a regular file of the broker's user (or root's) that nobody else may
/// read, is a link, has another form, or repeats one byte.
pub fn kek_from_file(path: &Path) -> Result<Kek, StoreError> {
    let bytes = secret_file(path, Access::OwnerOnly, SOURCE_BYTES_MAX)?;
    kek_from_bytes(&path.display().to_string(), &bytes)
}

/// Reads a key that systemd has put into `$CREDENTIALS_DIRECTORY`; the forms are those of a file.
///
/// # Errors
/// `E_KEK_UNAVAILABLE` as for a file, except that the file's group may read it.
pub fn kek_from_credential(path: &Path) -> Result<Kek, StoreError> {
    let bytes = secret_file(path, Access::Granted, SOURCE_BYTES_MAX)?;
    kek_from_bytes(&path.display().to_string(), &bytes)
}

/// Reads a passphrase from a file with the access of a key file; one line end at its end is not part of it.
///
/// # Errors
/// `E_KEK_UNAVAILABLE` as for a key file, or when the passphrase is too short or too long.
pub fn passphrase_from_file(path: &Path) -> Result<Passphrase, StoreError> {
    let bytes = secret_file(path, Access::OwnerOnly, PASSPHRASE_BYTES_MAX + 2)?;
    passphrase_from_bytes(&path.display().to_string(), &bytes)
}

/// Reads one line from a file with the access of a key file: what a key service is asked with.
///
/// # Errors
/// A sentence that names the file, when it is not as a key file must be, or longer than `bytes_max`.
pub fn line_from_file(path: &Path, bytes_max: usize) -> Result<Zeroizing<Vec<u8>>, String> {
    let told = |reason: String| format!("{}: {reason}", path.display());
    let bytes = secret_file(path, Access::OwnerOnly, bytes_max + 2).map_err(|e| match e {
        StoreError::KekUnusable { reason, .. } => told(reason),
        other => told(other.to_string()),
    })?;
    let line = without_line_end(&bytes);
    if line.len() > bytes_max || line.contains(&b'\n') {
        return Err(told("it is not one line, or too long".into()));
    }
    Ok(Zeroizing::new(line.to_vec()))
}

/// Takes a passphrase out of what a source gave; one line end at its end is not part of it.
///
/// # Errors
/// `E_KEK_UNAVAILABLE` when it is too short or too long.
pub fn passphrase_from_bytes(source_name: &str, bytes: &[u8]) -> Result<Passphrase, StoreError> {
    let line = without_line_end(bytes);
    Passphrase::take(Zeroizing::new(line.to_vec())).map_err(|e| unusable(source_name, e))
}

/// Takes a key out of what a source gave, in the forms of a key file.
///
/// # Errors
/// `E_KEK_UNAVAILABLE` when it has another form or repeats one byte.
pub fn kek_from_bytes(source_name: &str, bytes: &[u8]) -> Result<Kek, StoreError> {
    parse(bytes).map_err(|reason| unusable(source_name, reason))
}

fn unusable(source_name: &str, reason: impl std::fmt::Display) -> StoreError {
    StoreError::KekUnusable { source_name: source_name.into(), reason: reason.to_string() }
}

fn secret_file(path: &Path, access: Access, bytes_max: usize) -> Result<Zeroizing<Vec<u8>>, StoreError> {
    let unusable = |reason: String| unusable(&path.display().to_string(), reason);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| match e {
        rustix::io::Errno::LOOP => unusable("it is a symbolic link; name the file itself".into()),
        e => unusable(e.to_string()),
    })?;
    let file = File::from(file);
    let facts = file.metadata().map_err(|e| unusable(e.to_string()))?;
    let (uid, mode) = (rustix::process::geteuid().as_raw(), facts.mode());
    let others = if access == Access::Granted { 0o037 } else { 0o077 };
    if !facts.is_file() {
        return Err(unusable("it is not a regular file".into()));
    }
    if mode & others != 0 {
        return Err(unusable(format!("others may use it (mode {:04o}); chmod 0400 it", mode & 0o7777)));
    }
    if facts.uid() != uid && facts.uid() != 0 {
        return Err(unusable(format!("it belongs to user {}, and the broker runs as {uid}", facts.uid())));
    }
    // Room from the start: a growing buffer would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(bytes_max + 1));
    let read = file.take(bytes_max as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|e| unusable(e.to_string()))?;
    Ok(bytes)
}

fn without_line_end(bytes: &[u8]) -> &[u8] {
    bytes.strip_suffix(b"\n").map_or(bytes, |line| line.strip_suffix(b"\r").unwrap_or(line))
}

/// Reads a key from text (64 hex digits or 44 characters of base64), as environment variables hold it.
/// `source_name` is for the error message.
///
/// # Errors
/// `E_KEK_UNAVAILABLE` when it has another form or repeats one byte.
pub fn kek_from_text(source_name: &str, text: &str) -> Result<Kek, StoreError> {
    if text.len() == KEY_BYTES {
        return Err(unusable(source_name, "32 characters are too few: give 64 hex digits or base64"));
    }
    kek_from_bytes(source_name, text.as_bytes())
}

fn parse(source: &[u8]) -> Result<Kek, &'static str> {
    const FORM: &str = "it holds neither 32 raw bytes nor 64 hex digits nor 44 characters of base64";
    let line = without_line_end(source);
    let mut key = Zeroizing::new([0u8; KEY_BYTES]);
    match (source.len(), line.len()) {
        (KEY_BYTES, _) => key.copy_from_slice(source),
        (_, 64) => {
            for (byte, digits) in key.iter_mut().zip(line.chunks_exact(2)) {
                let text = std::str::from_utf8(digits).map_err(|_| FORM)?;
                if !digits.iter().all(u8::is_ascii_hexdigit) {
                    return Err(FORM);
                }
                *byte = u8::from_str_radix(text, 16).map_err(|_| FORM)?;
            }
        }
        (_, 44) => {
            let mut decoded = Zeroizing::new([0u8; KEY_BYTES + 1]);
            let len = STANDARD.decode_slice(line, decoded.as_mut_slice()).map_err(|_| FORM)?;
            let bytes = decoded.get(..len).filter(|bytes| bytes.len() == KEY_BYTES).ok_or(FORM)?;
            key.copy_from_slice(bytes);
        }
        _ => return Err(FORM),
    }
    let first = key.first().copied().unwrap_or_default();
    if key.iter().all(|byte| *byte == first) {
        key.zeroize();
        return Err("all its bytes are equal, so it is no random key");
    }
    Ok(Kek::take(&mut key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn file(dir: &tempfile::TempDir, content: &[u8], mode: u32) -> std::path::PathBuf {
        let path = dir.path().join("kek");
        let _ = fs::remove_file(&path);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn reason(result: Result<Kek, StoreError>) -> String {
        let error = result.err().expect("refused");
        assert_eq!(error.code(), "E_KEK_UNAVAILABLE");
        error.to_string()
    }

    #[test]
    fn one_key_in_three_forms_is_one_key() {
        let dir = tempfile::tempdir().unwrap();
        let raw: [u8; 32] = std::array::from_fn(|i| (i * 7) as u8);
        let hex: String = raw.iter().map(|b| format!("{b:02x}")).collect();
        let base64 = STANDARD.encode(raw);
        let forms = [
            raw.to_vec(),
            hex.clone().into(),
            format!("{hex}\n").into(),
            base64.clone().into(),
            format!("{base64}\r\n").into(),
        ];
        let ids: Vec<_> =
            forms.iter().map(|f| kek_from_file(&file(&dir, f, 0o400)).unwrap().slot_id()).collect();
        assert!(ids.iter().all(|id| *id == ids[0]));
        assert_eq!(kek_from_text("V", &hex.to_uppercase()).unwrap().slot_id(), ids[0]);
    }

    #[test]
    fn refuses_what_others_may_read_links_folders_and_missing_files() {
        let dir = tempfile::tempdir().unwrap();
        let good: Vec<u8> = (0..32).collect();
        for mode in [0o440, 0o404, 0o644, 0o620] {
            assert!(reason(kek_from_file(&file(&dir, &good, mode))).contains("others may use it"));
        }
        let link = dir.path().join("link");
        symlink(file(&dir, &good, 0o400), &link).unwrap();
        assert!(reason(kek_from_file(&link)).contains("symbolic link"));
        assert!(reason(kek_from_file(dir.path())).contains("not a regular file"));
        assert!(reason(kek_from_file(&dir.path().join("none"))).contains("No such file"));
    }

    #[test]
    fn a_credential_may_be_readable_by_its_group_and_by_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let good: Vec<u8> = (0..32).collect();
        assert!(kek_from_credential(&file(&dir, &good, 0o440)).is_ok());
        for mode in [0o444, 0o460, 0o450] {
            assert!(reason(kek_from_credential(&file(&dir, &good, mode))).contains("others may use it"));
        }
        assert!(reason(kek_from_credential(&dir.path().join("none"))).contains("No such file"));
    }

    #[test]
    fn a_passphrase_file_is_one_line_that_nobody_else_may_read() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |content: &[u8], mode| {
            let error = passphrase_from_file(&file(&dir, content, mode)).err().expect("refused");
            assert_eq!(error.code(), "E_KEK_UNAVAILABLE");
            error.to_string()
        };
        assert!(passphrase_from_file(&file(&dir, b"correct horse\n", 0o400)).is_ok());
        assert!(refused(b"correct horse", 0o440).contains("others may use it"));
        assert!(refused(b"1234567\n", 0o400).contains("8 to 1024 bytes"));
        assert!(refused(&[b'x'; 2000], 0o400).contains("8 to 1024 bytes"));
    }

    #[test]
    fn one_line_is_read_from_a_file_that_nobody_else_may_read() {
        let dir = tempfile::tempdir().unwrap();
        let read = |content: &[u8], mode| line_from_file(&file(&dir, content, mode), 8);
        assert_eq!(read(b"1234\r\n", 0o400).unwrap().as_slice(), b"1234");
        assert_eq!(read(b"12345678", 0o400).unwrap().as_slice(), b"12345678");
        assert!(read(b"1234", 0o440).unwrap_err().contains("others may use it"));
        for wrong in [&b"123456789"[..], b"12\n34", b"1234\n\n"] {
            assert!(read(wrong, 0o400).unwrap_err().contains("not one line"));
        }
    }

    #[test]
    fn refuses_other_forms_without_showing_them() {
        let dir = tempfile::tempdir().unwrap();
        let secret = "c0ffee00";
        for content in
            ["", secret, &secret.repeat(7), &secret.repeat(9), &format!("{}zz", &secret.repeat(8)[..62])]
        {
            let text = reason(kek_from_file(&file(&dir, content.as_bytes(), 0o600)));
            assert!(text.contains("neither") && !text.contains(secret), "{text}");
        }
        assert!(reason(kek_from_file(&file(&dir, &[7; 32], 0o600))).contains("all its bytes are equal"));
        assert!(reason(kek_from_text("V", &"0".repeat(64))).contains("all its bytes are equal"));
        assert!(reason(kek_from_text("V", "exactly thirty-two characters !!")).contains("too few"));
    }
}
