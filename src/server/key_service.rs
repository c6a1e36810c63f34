//! Where a key service is, as the configuration or `sealmqctl keyring add-slot` says, and the way to it. What a program
//! that was built without a service does with it: it says so.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::secret::Secret;
use super::settings::Settings;
use crate::seal::key_service::{KeyService, Service, ServiceError};

/// A key in a service. No secrets, except for a PIN that came from the environment, and that never leaves the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "service", rename_all = "snake_case", deny_unknown_fields)]
pub enum ServicePlace {
    /// A token.
    Pkcs11(TokenPlace),
    /// A key server.
    Vault(VaultPlace),
}

/// A key in a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenPlace {
    /// The shared library that speaks PKCS#11 for the token.
    pub module: PathBuf,
    /// The token's label (CKA_LABEL of the token).
    pub token: String,
    /// The key's label (CKA_LABEL).
    pub label: String,
    /// A file with the user's PIN.
    pub pin_file: Option<PathBuf>,
    /// The PIN itself, when it is not in a file.
    #[serde(skip)]
    pub pin: Option<Secret>,
}

/// A key in the transit engine of Vault or OpenBao.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultPlace {
    /// `https://HOST:PORT`.
    pub address: String,
    /// Where the engine is mounted.
    pub mount: String,
    /// The key's name.
    pub key: String,
    /// The namespace of the mount, if there are any.
    pub namespace: Option<String>,
    /// A file with a token that may encrypt and decrypt under the key.
    pub token_file: PathBuf,
    /// A file with the authorities, in PEM, that Vault's certificate may come from.
    pub ca_file: PathBuf,
}

/// Where the transit engine is unless somebody has put it elsewhere.
pub const VAULT_MOUNT_DEFAULT: &str = "transit";

impl ServicePlace {
    /// Which service it is.
    pub fn service(&self) -> Service {
        match self {
            ServicePlace::Pkcs11(_) => Service::Pkcs11,
            ServicePlace::Vault(_) => Service::Vault,
        }
    }

    /// All files that are named.
    pub fn files(&self) -> Vec<&Path> {
        match self {
            ServicePlace::Pkcs11(place) => {
                place.pin_file.as_deref().into_iter().chain([place.module.as_path()]).collect()
            }
            ServicePlace::Vault(place) => vec![&place.token_file, &place.ca_file],
        }
    }

    /// The file that holds what the service is asked with.
    pub fn secret_file(&self) -> Option<&Path> {
        match self {
            ServicePlace::Pkcs11(place) => place.pin_file.as_deref(),
            ServicePlace::Vault(place) => Some(&place.token_file),
        }
    }
}

/// What the configuration names, each with the key that stands for all of its keys.
pub(super) fn read(settings: &Settings) -> Result<Vec<(&'static str, ServicePlace)>> {
    Ok(token(settings)?.into_iter().chain(vault(settings)?).collect())
}

/// The keys of a PKCS#11 token.
pub(super) const TOKEN_KEYS: [&str; 5] = [
    "at_rest.kek.pkcs11.module",
    "at_rest.kek.pkcs11.token",
    "at_rest.kek.pkcs11.label",
    "at_rest.kek.pkcs11.pin_file",
    "at_rest.kek.pkcs11.pin_env",
];

fn token(settings: &Settings) -> Result<Option<(&'static str, ServicePlace)>> {
    let [module, token, label, pin_file, pin_env] = TOKEN_KEYS;
    if !TOKEN_KEYS.iter().any(|key| settings.entry(key).is_some()) {
        return Ok(None);
    }
    let pin = match settings.text(pin_env)? {
        None => None,
        Some(name) => match settings.environment().value(&name) {
            Some(value) => Some(Secret::new(value.to_owned())),
            None => {
                return Err(Error::NoKey { problem: format!("{pin_env} = {name}, and {name} is not set") });
            }
        },
    };
    let place = TokenPlace {
        module: settings.path(module)?.ok_or_else(|| missing(module))?,
        token: settings.text(token)?.ok_or_else(|| missing(token))?,
        label: settings.text(label)?.ok_or_else(|| missing(label))?,
        pin_file: settings.path(pin_file)?,
        pin,
    };
    match (&place.pin_file, &place.pin) {
        (Some(_), Some(_)) => Err(Error::Ambiguous { one: pin_file.into(), other: pin_env.into() }),
        (None, None) => Err(missing(pin_file)),
        _ => Ok(Some((module, ServicePlace::Pkcs11(place)))),
    }
}

/// The keys of Vault's transit engine.
pub(super) const VAULT_KEYS: [&str; 6] = [
    "at_rest.kek.vault.address",
    "at_rest.kek.vault.mount",
    "at_rest.kek.vault.key",
    "at_rest.kek.vault.namespace",
    "at_rest.kek.vault.token_file",
    "at_rest.kek.vault.ca_file",
];

fn vault(settings: &Settings) -> Result<Option<(&'static str, ServicePlace)>> {
    let [address, mount, key, namespace, token_file, ca_file] = VAULT_KEYS;
    if !VAULT_KEYS.iter().any(|key| settings.entry(key).is_some()) {
        return Ok(None);
    }
    let place = VaultPlace {
        address: settings.text(address)?.ok_or_else(|| missing(address))?,
        mount: settings.text(mount)?.unwrap_or_else(|| VAULT_MOUNT_DEFAULT.into()),
        key: settings.text(key)?.ok_or_else(|| missing(key))?,
        namespace: settings.text(namespace)?,
        token_file: settings.path(token_file)?.ok_or_else(|| missing(token_file))?,
        ca_file: settings.path(ca_file)?.ok_or_else(|| missing(ca_file))?,
    };
    Ok(Some((address, ServicePlace::Vault(place))))
}

fn missing(key: &str) -> Error {
    Error::NoKey { problem: format!("{key} is not set, and others of its kind are") }
}

/// The way to the service. What can be found out without a key to open is found out here.
///
/// # Errors
/// `E_KEY_SERVICE_MISSING` when this program was built without it; the service's own.
pub(super) fn connect(place: &ServicePlace) -> std::result::Result<Box<dyn KeyService>, ServiceError> {
    match place {
        #[cfg(feature = "pkcs11")]
        ServicePlace::Pkcs11(place) => Ok(Box::new(super::pkcs11::Token::find(place)?)),
        #[cfg(not(feature = "pkcs11"))]
        ServicePlace::Pkcs11(_) => Err(not_built_in(place.service(), "build it with `--features pkcs11`")),
        #[cfg(feature = "vault")]
        ServicePlace::Vault(place) => Ok(Box::new(super::vault::Vault::find(place)?)),
        #[cfg(not(feature = "vault"))]
        ServicePlace::Vault(_) => Err(not_built_in(place.service(), "build it with `--features vault`")),
    }
}

#[cfg(not(all(feature = "pkcs11", feature = "vault")))]
fn not_built_in(service: Service, remedy: &'static str) -> ServiceError {
    ServiceError {
        code: "E_KEY_SERVICE_MISSING",
        reason: format!("this program was built without {}", service.title()),
        remedy,
        is_passing: false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::environment::Environment;
    use super::super::raw_config::RawConfig;
    use super::*;

    fn read_text(text: &str) -> Result<Vec<(&'static str, ServicePlace)>> {
        let mut raw = RawConfig::default();
        raw.parse(Path::new("/c"), text).unwrap();
        let environment = Environment::of(&[("THE_PIN", "1234")]);
        read(&Settings::new(&raw, &environment))
    }

    const TOKEN: &str =
        "at_rest.kek.pkcs11.module = /lib/m.so\nat_rest.kek.pkcs11.token = t\nat_rest.kek.pkcs11.label = l\n";

    #[test]
    fn a_token_has_a_module_a_name_a_key_and_one_pin() {
        let place = |pin_file: Option<&str>, pin: Option<&str>| TokenPlace {
            module: "/lib/m.so".into(),
            token: "t".into(),
            label: "l".into(),
            pin_file: pin_file.map(PathBuf::from),
            pin: pin.map(|pin| Secret::new(pin.into())),
        };
        assert_eq!(read_text("").unwrap(), []);
        for (line, wanted) in [
            ("at_rest.kek.pkcs11.pin_file = /s/pin\n", place(Some("/s/pin"), None)),
            ("at_rest.kek.pkcs11.pin_env = THE_PIN\n", place(None, Some("1234"))),
        ] {
            let found = read_text(&format!("{TOKEN}{line}")).unwrap();
            assert_eq!(found, [("at_rest.kek.pkcs11.module", ServicePlace::Pkcs11(wanted))]);
        }
        for wrong in [
            TOKEN.to_owned(),
            format!("{TOKEN}at_rest.kek.pkcs11.pin_file = /s/pin\nat_rest.kek.pkcs11.pin_env = THE_PIN\n"),
            format!("{TOKEN}at_rest.kek.pkcs11.pin_env = NOT_SET\n"),
            format!("{TOKEN}at_rest.kek.pkcs11.pin_file = pin\n"),
            "at_rest.kek.pkcs11.pin_file = /s/pin\n".to_owned(),
        ] {
            assert!(read_text(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn vault_has_an_address_a_key_a_token_and_an_authority() {
        let whole = "at_rest.kek.vault.address = https://v:8200\nat_rest.kek.vault.key = k\nat_rest.kek.vault.token_file = /s/token\nat_rest.kek.vault.ca_file = /c/ca.pem\n";
        let place = VaultPlace {
            address: "https://v:8200".into(),
            mount: "transit".into(),
            key: "k".into(),
            namespace: None,
            token_file: "/s/token".into(),
            ca_file: "/c/ca.pem".into(),
        };
        let wanted = |place| [("at_rest.kek.vault.address", ServicePlace::Vault(place))];
        assert_eq!(read_text(whole).unwrap(), wanted(place.clone()));
        let named = format!("{whole}at_rest.kek.vault.mount = t/x\nat_rest.kek.vault.namespace = n\n");
        let (mount, namespace) = ("t/x".into(), Some("n".into()));
        assert_eq!(read_text(&named).unwrap(), wanted(VaultPlace { mount, namespace, ..place }));
        for line in whole.lines() {
            assert!(read_text(&whole.replace(line, "")).is_err(), "without {line}");
        }
        assert_eq!(
            read_text(&format!("{whole}{TOKEN}at_rest.kek.pkcs11.pin_file = /s/pin\n")).unwrap().len(),
            2
        );
    }

    #[test]
    fn a_pin_is_no_part_of_a_request() {
        let found = read_text(&format!("{TOKEN}at_rest.kek.pkcs11.pin_env = THE_PIN\n")).unwrap();
        assert!(!serde_json::to_string(&found[0].1).unwrap().contains("1234"));
        assert!(!format!("{found:?}").contains("1234"));
    }
}
