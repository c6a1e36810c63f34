//! `sealmqctl keyring`: shows and changes who can open the store of the running broker.

use std::fmt::Display;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;
use zeroize::Zeroizing;

use super::Failure;
use super::arguments::{Common, Formatter, KeyringVerb, NewSlot};
use super::listing;
use super::verbs::{ask_with, prelude};
use crate::limits::PASSPHRASE_BYTES_MAX;
use crate::server::control::Request;
use crate::server::key_service::{ServicePlace, TokenPlace, VAULT_MOUNT_DEFAULT, VaultPlace};
use crate::server::{descriptor, prompt};

const SLOT_COLUMNS: [&str; 5] = ["id", "type", "state", "in_use", "cost"];
const RESEAL_COLUMNS: [&str; 4] = ["state", "resealed", "left", "unreadable"];
const KEY_COLUMNS: [&str; 5] = ["id", "state", "age_seconds", "records", "queue"];

/// Runs the verb; what it prints goes to `out`.
pub(super) async fn run(verb: &KeyringVerb, common: &Common, out: &mut dyn Write) -> Result<(), Failure> {
    let nothing = || Zeroizing::new(Vec::new());
    match verb {
        KeyringVerb::Status => {
            let keyring = ask_with(common, &Request::KeyringStatus, &nothing()).await?;
            show(&keyring, common, out)
        }
        KeyringVerb::AddSlot(new) => {
            let (request, secret) = new_slot(new)?;
            let keyring = ask_with(common, &request, &secret).await?;
            let slots = rows(&keyring, "slots")?;
            let id = slots.last().and_then(|slot| slot.get("id")).and_then(Value::as_str);
            let id = listing::printable(id.ok_or(Failure::Answer("slots.id"))?);
            changed(
                &keyring,
                common,
                out,
                &format!("Added slot {id}; both copies of the keyring were read back"),
            )
        }
        KeyringVerb::RemoveSlot { slot, in_use } => {
            let request = Request::KeyringRemoveSlot { slot: slot.clone(), in_use_too: *in_use };
            let keyring = ask_with(common, &request, &nothing()).await?;
            let text =
                "Removed the slot; copies of the keyring made before, as in backups, still open with its key";
            changed(&keyring, common, out, text)
        }
        KeyringVerb::RotateDek => {
            let keyring = ask_with(common, &Request::KeyringRotateDek, &nothing()).await?;
            changed(&keyring, common, out, "A new data key seals from now on")
        }
        KeyringVerb::Reseal { older_than } => {
            let request = Request::KeyringReseal { older_than: older_than.map(|age| age.as_secs()) };
            let keyring = ask_with(common, &request, &nothing()).await?;
            let text =
                "What is under old data keys is being sealed again; `keyring status` shows how far it is";
            changed(&keyring, common, out, text)
        }
    }
}

/// The request, and the passphrase that goes with it.
fn new_slot(new: &NewSlot) -> Result<(Request, Zeroizing<Vec<u8>>), Failure> {
    let nothing = Zeroizing::new(Vec::new());
    if let Some(place) = service(new)? {
        return Ok((Request::KeyringAddService { place }, nothing));
    }
    let source = &new.source;
    if let Some(file) = &source.key_file {
        return Ok((Request::KeyringAddKey { file: absolute(file)? }, nothing));
    }
    let passphrase = match (&source.passphrase_file, source.passphrase_fd) {
        (Some(file), _) => from_file(file)?,
        (None, Some(0)) => one_line(&"standard input", io::stdin().lock())?,
        (None, Some(number)) => from_descriptor(number)?,
        (None, None) => {
            let typed = |question| prompt::passphrase(question).map_err(|e| unreadable(&"the terminal", &e));
            let first = typed("New passphrase")?;
            if *first != *typed("Once more")? {
                return Err(Failure::Usage("the two passphrases differ".into()));
            }
            first
        }
    };
    if passphrase.contains(&b'\n') {
        return Err(Failure::Usage("a passphrase is one line".into()));
    }
    Ok((Request::KeyringAddPassphrase, passphrase))
}

/// The service that is to keep the new slot's key, if one was named.
fn service(new: &NewSlot) -> Result<Option<ServicePlace>, Failure> {
    let NewSlot { source, token, vault } = new;
    if let (true, Some(module), Some(name), Some(label)) =
        (source.pkcs11, &token.module, &token.token, &token.label)
    {
        let pin_file = token.pin_file.as_deref().map(absolute).transpose()?;
        let (module, token, label) = (absolute(module)?, name.clone(), label.clone());
        return Ok(Some(ServicePlace::Pkcs11(TokenPlace { module, token, label, pin_file, pin: None })));
    }
    let (true, Some(address), Some(key), Some(token_file), Some(ca_file)) =
        (source.vault, &vault.address, &vault.key, &vault.token_file, &vault.ca_file)
    else {
        return Ok(None);
    };
    Ok(Some(ServicePlace::Vault(VaultPlace {
        address: address.clone(),
        mount: vault.mount.clone().unwrap_or_else(|| VAULT_MOUNT_DEFAULT.into()),
        key: key.clone(),
        namespace: vault.namespace.clone(),
        token_file: absolute(token_file)?,
        ca_file: absolute(ca_file)?,
    })))
}

fn absolute(file: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(file).map_err(|e| Failure::Usage(format!("{}: {e}", file.display())))
}

fn from_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    use std::os::unix::fs::PermissionsExt;
    let name = path.display();
    let file = std::fs::File::open(path).map_err(|e| unreadable(&name, &e))?;
    let mode = file.metadata().map_err(|e| unreadable(&name, &e))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(Failure::Usage(format!(
            "{name}: others may use it (mode {:04o}); chmod 0400 it",
            mode & 0o7777
        )));
    }
    one_line(&name, file)
}

fn from_descriptor(number: u32) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let name = format!("descriptor {number}");
    let file = descriptor::inherited(number).map_err(|e| unreadable(&name, &e))?;
    one_line(&name, file)
}

fn one_line(name: &dyn Display, from: impl Read) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(PASSPHRASE_BYTES_MAX + 3));
    let read = from.take(PASSPHRASE_BYTES_MAX as u64 + 3).read_to_end(&mut bytes);
    read.map_err(|e| unreadable(name, &e))?;
    for end in [b'\n', b'\r'] {
        if bytes.last() == Some(&end) {
            bytes.pop();
        }
    }
    Ok(bytes)
}

fn unreadable(name: &dyn Display, error: &io::Error) -> Failure {
    Failure::Usage(format!("cannot read the passphrase from {name}: {error}"))
}

fn changed(keyring: &Value, common: &Common, out: &mut dyn Write, sentence: &str) -> Result<(), Failure> {
    match common.formatter {
        Formatter::Json | Formatter::JsonStream => Ok(writeln!(out, "{keyring}")?),
        _ => {
            let generation = keyring.get("generation").and_then(Value::as_u64);
            let generation = generation.ok_or(Failure::Answer("generation"))?;
            Ok(prelude(common, out, &format!("{sentence} (generation {generation})."))?)
        }
    }
}

fn show(keyring: &Value, common: &Common, out: &mut dyn Write) -> Result<(), Failure> {
    if let Formatter::Json | Formatter::JsonStream = common.formatter {
        return Ok(writeln!(out, "{keyring}")?);
    }
    let text =
        |field: &str| keyring.get(field).map(|value| value.to_string().replace('"', "")).unwrap_or_default();
    prelude(
        common,
        out,
        &format!(
            "Keyring of store {}, generation {}",
            listing::printable(&text("store")),
            text("generation")
        ),
    )?;
    for (title, field, columns) in
        [("Slots", "slots", &SLOT_COLUMNS[..]), ("Data keys", "data_keys", &KEY_COLUMNS[..])]
    {
        prelude(common, out, &format!("\n{title}\n"))?;
        let columns: Vec<String> = columns.iter().map(|column| column.to_string()).collect();
        listing::write(&rows(keyring, field)?, &columns, common, out)?;
    }
    let reseal = keyring.get("reseal").ok_or(Failure::Answer("reseal"))?;
    prelude(common, out, "\nReseal\n")?;
    let columns = RESEAL_COLUMNS.map(str::to_owned);
    listing::write(std::slice::from_ref(reseal), &columns, common, out)?;
    Ok(())
}

fn rows(keyring: &Value, field: &'static str) -> Result<Vec<Value>, Failure> {
    keyring.get(field).and_then(Value::as_array).cloned().ok_or(Failure::Answer(field))
}
