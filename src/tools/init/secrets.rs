//! The two secrets of a broker: the key that wraps the store's keys, and the administrator's password.
//! Both are made once and never replaced; without the first, the store cannot be opened by anybody.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use zeroize::Zeroizing;

use super::error::Error;
use super::files::{self, Access};
use super::{Change, Report};

/// 256 bits, the key of AES-256.
const KEK_BYTES: usize = 32;

/// 32 characters out of 62 are 190 bits.
const PASSWORD_CHARS: usize = 32;

/// Letters and digits only: they need no escaping in a URL, a shell or a configuration file.
const PASSWORD_ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// What to do about a key file that cannot be used. Deleting is no remedy: the store would be lost.
const KEK_REMEDY: &str = "put back the key that belongs to the store (32 raw bytes, 64 hex digits or base64); only if no store was ever made with it, delete the file and run again";

/// Makes both secrets where they are missing, and checks what is there.
pub(super) fn ensure(folder: &Path, access: Access, report: &mut Report) -> Result<(), Error> {
    let kek = folder.join("at_rest_kek");
    if keeps(&kek, report)? {
        check_kek(&kek)?;
    } else {
        files::write_atomically(&kek, fresh_kek()?.as_bytes(), access)?;
        report.changes.push(Change::KekCreated(kek));
    }
    let password = folder.join("admin_password");
    if keeps(&password, report)? {
        if files::read(&password)?.is_none_or(|text| text.trim_ascii().is_empty()) {
            return Err(Error::damaged(&password, "it is empty"));
        }
    } else {
        let text = Zeroizing::new(format!("{}\n", *random_password()?));
        files::write_atomically(&password, text.as_bytes(), access)?;
        report.changes.push(Change::PasswordCreated(password));
    }
    Ok(())
}

/// Whether the secret is there already. One that others can read is closed to them: the broker would
/// refuse it.
fn keeps(path: &Path, report: &mut Report) -> Result<bool, Error> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() => {}
        Ok(_) => {
            return Err(Error::Damaged {
                path: path.to_path_buf(),
                reason: "it is no regular file".into(),
                remedy: "a secret must be a file of its own, not a link, a folder or a device",
            });
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(Error::io("look at", path)(error)),
    }
    if files::mode_of(path)?.is_some_and(|mode| mode & 0o077 != 0) {
        files::set_mode(path, 0o400)?;
        report.warnings.push(format!(
            "{} was readable by others; its mode is now 0400. If somebody may have read it, replace it",
            path.display()
        ));
        report.changes.push(Change::ModeChanged(path.to_path_buf(), 0o400));
    }
    Ok(true)
}

fn check_kek(path: &Path) -> Result<(), Error> {
    let damaged = |reason: &str| {
        Err(Error::Damaged { path: path.to_path_buf(), reason: reason.into(), remedy: KEK_REMEDY })
    };
    let Some(bytes) = files::read(path)? else { return damaged("it vanished") };
    let Some(key) = decode_kek(&bytes) else { return damaged("it holds no 256-bit key") };
    match key.first() {
        Some(first) if key.iter().any(|byte| byte != first) => Ok(()),
        _ => damaged("all bytes of the key are equal"),
    }
}

/// The three spellings that the broker takes: 32 raw bytes, 64 hex digits, base64, perhaps with a newline.
fn decode_kek(bytes: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    if bytes.len() == KEK_BYTES {
        return Some(Zeroizing::new(bytes.to_vec()));
    }
    let text = std::str::from_utf8(bytes).ok()?.trim_ascii();
    let key = if text.len() == 2 * KEK_BYTES {
        let digit = |b: &u8| char::from(*b).to_digit(16).and_then(|d| u8::try_from(d).ok());
        text.as_bytes()
            .chunks(2)
            .map(|pair| Some(digit(pair.first()?)? << 4 | digit(pair.get(1)?)?))
            .collect::<Option<Vec<u8>>>()?
    } else {
        BASE64_STANDARD.decode(text).ok()?
    };
    (key.len() == KEK_BYTES).then(|| Zeroizing::new(key))
}

/// 64 hex digits and a newline.
fn fresh_kek() -> Result<Zeroizing<String>, Error> {
    let mut key = Zeroizing::new([0; KEK_BYTES]);
    getrandom::fill(key.as_mut_slice())?;
    // Sized once: a growing string would leave copies of the key in freed memory.
    let mut text = Zeroizing::new(String::with_capacity(2 * KEK_BYTES + 1));
    for byte in key.iter() {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text.push('\n');
    Ok(text)
}

/// A random password of letters and digits, every one equally likely.
pub(super) fn random_password() -> Result<Zeroizing<String>, Error> {
    let mut password = Zeroizing::new(String::with_capacity(PASSWORD_CHARS));
    let mut draw = Zeroizing::new([0; 2 * PASSWORD_CHARS]);
    while password.len() < PASSWORD_CHARS {
        getrandom::fill(draw.as_mut_slice())?;
        // 6 bits pick one of 64; the two that stand for no character are drawn again, so none is favoured.
        let picked = draw.iter().filter_map(|byte| PASSWORD_ALPHABET.get(usize::from(byte & 0x3f)));
        for byte in picked.take(PASSWORD_CHARS - password.len()) {
            password.push(char::from(*byte));
        }
    }
    Ok(password)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_key_is_read_alike() {
        let raw: Vec<u8> = (0..32).collect();
        let hex: String = raw.iter().map(|b| format!("{b:02X}")).collect();
        for text in [raw.clone(), hex.clone().into_bytes(), BASE64_STANDARD.encode(&raw).into_bytes()] {
            assert_eq!(*decode_kek(&text).unwrap(), raw);
        }
        assert_eq!(*decode_kek(format!("{hex}\n").as_bytes()).unwrap(), raw);
        for text in ["", "00", &hex[..62], &hex.replace('0', "g"), &"\u{e9}".repeat(32)] {
            assert!(decode_kek(text.as_bytes()).is_none(), "{text:?}");
        }
    }

    #[test]
    fn fresh_secrets_have_the_promised_shape_and_differ() {
        let (one, two) = (fresh_kek().unwrap(), fresh_kek().unwrap());
        assert_ne!(one, two);
        assert_eq!(one.len(), 65);
        assert!(one.ends_with('\n') && decode_kek(one.as_bytes()).is_some());
        let (one, two) = (random_password().unwrap(), random_password().unwrap());
        assert_ne!(one, two);
        assert!(one.len() == PASSWORD_CHARS && one.bytes().all(|b| b.is_ascii_alphanumeric()));
    }
}
