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

impl ServicePlace {
    /// Which service it is.
    pub fn service(&self) -> Service {
        match self {
            ServicePlace::Pkcs11(_) => Service::Pkcs11,
        }
    }

    /// All files that are named.
    pub fn files(&self) -> Vec<&Path> {
        match self {
            ServicePlace::Pkcs11(place) => {
                place.pin_file.as_deref().into_iter().chain([place.module.as_path()]).collect()
            }
        }
    }

    /// The file that holds what the service is asked with.
    pub fn secret_file(&self) -> Option<&Path> {
        match self {
            ServicePlace::Pkcs11(place) => place.pin_file.as_deref(),
        }
    }
}

/// What the configuration names, each with the key that stands for all of its keys.
pub(super) fn read(settings: &Settings) -> Result<Vec<(&'static str, ServicePlace)>> {
    Ok(token(settings)?.into_iter().collect())
}

const TOKEN_KEYS: [&str; 5] = [
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
    }
}

#[cfg(not(feature = "pkcs11"))]
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
    fn a_pin_is_no_part_of_a_request() {
        let found = read_text(&format!("{TOKEN}at_rest.kek.pkcs11.pin_env = THE_PIN\n")).unwrap();
        assert!(!serde_json::to_string(&found[0].1).unwrap().contains("1234"));
        assert!(!format!("{found:?}").contains("1234"));
    }
}
