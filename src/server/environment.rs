//! The environment as a snapshot, and which variables stand for which keys. The only place that reads the process's
//! environment for the server; tests give their own.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use zeroize::Zeroizing;

use super::error::{Error, Result};
use super::raw_config::{Origin, RawConfig};
use super::secret::Secret;
use super::values;

/// Largest file that a `*_FILE` variable may name, in bytes.
const SECRET_FILE_BYTES_MAX: u64 = 64 * 1024;

/// The variables of one moment. No `Debug`: they hold secrets.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, Zeroizing<String>>);

/// What `TLS_ENABLE` says (the labs' switch).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsSwitch {
    /// `1`: AMQPS only, whatever the file says.
    Only,
    /// `0`: the plain listener is open as well.
    PlainToo,
    /// Not set.
    AsConfigured,
}

struct Alias {
    key: &'static str,
    // The first that is set counts.
    variables: &'static [&'static str],
    file_form: bool,
}

// Where the broker is comes first: a control client may be unable to read the secrets that follow.
const ALIASES: &[Alias] = &[
    Alias { key: "data_dir", variables: &["SEALMQ_DATA_DIR"], file_form: false },
    Alias { key: "control.socket", variables: &["SEALMQ_CONTROL_SOCKET"], file_form: false },
    Alias {
        key: "default_user",
        variables: &["SEALMQ_DEFAULT_USER", "RABBITMQ_DEFAULT_USER"],
        file_form: true,
    },
    Alias {
        key: "default_pass",
        variables: &["SEALMQ_DEFAULT_PASS", "RABBITMQ_DEFAULT_PASS"],
        file_form: true,
    },
    Alias {
        key: "default_vhost",
        variables: &["SEALMQ_DEFAULT_VHOST", "RABBITMQ_DEFAULT_VHOST"],
        file_form: true,
    },
    Alias { key: "at_rest.mode", variables: &["SEALMQ_AT_REST_MODE"], file_form: false },
    Alias { key: "at_rest.kek.file", variables: &["SEALMQ_AT_REST_KEK_FILE"], file_form: false },
];

impl Environment {
    /// The process's own; names and values that are not UTF-8 are left out.
    pub fn of_process() -> Environment {
        let utf8 = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, Zeroizing::new(value.into_string().ok()?)))
        };
        Environment(std::env::vars_os().filter_map(utf8).collect())
    }

    /// A given one.
    pub fn of(variables: &[(&str, &str)]) -> Environment {
        let own = |(name, value): &(&str, &str)| (name.to_string(), Zeroizing::new(value.to_string()));
        Environment(variables.iter().map(own).collect())
    }

    /// The variable's value; an empty one counts as not set, because Compose writes `X=` for a missing X.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|v| v.as_str()).filter(|v| !v.is_empty())
    }

    /// What `TLS_ENABLE` asks for.
    pub fn tls_switch(&self) -> Result<TlsSwitch> {
        let Some(text) = self.value("TLS_ENABLE") else { return Ok(TlsSwitch::AsConfigured) };
        match values::boolean(text) {
            Some(true) => Ok(TlsSwitch::Only),
            Some(false) => Ok(TlsSwitch::PlainToo),
            None => Err(Error::EnvironmentValue {
                name: "TLS_ENABLE".into(),
                expected: "1 (AMQPS only) or 0 (plain AMQP as well)".into(),
            }),
        }
    }

    /// Adds an entry for each variable that stands for a key; `*_FILE` forms are read now.
    pub fn overlay(&self, raw: &mut RawConfig) -> Result<()> {
        for alias in ALIASES {
            let mut found = None;
            for variable in alias.variables {
                found = self.value_or_file(variable, alias.file_form)?;
                if found.is_some() {
                    break;
                }
            }
            if let Some((variable, value)) = found {
                raw.set(alias.key.into(), value.expose().to_owned(), Origin::Environment { variable });
            }
        }
        Ok(())
    }

    fn value_or_file(&self, variable: &str, file_form: bool) -> Result<Option<(String, Secret)>> {
        let file_variable = format!("{variable}_FILE");
        let file = self.value(&file_variable).filter(|_| file_form);
        match (self.value(variable), file) {
            (Some(_), Some(_)) => Err(Error::Ambiguous { one: variable.into(), other: file_variable }),
            (Some(value), None) => Ok(Some((variable.into(), Secret::new(value.into())))),
            (None, Some(path)) => {
                let secret = read_secret(&file_variable, Path::new(path))?;
                Ok(Some((file_variable, secret)))
            }
            (None, None) => Ok(None),
        }
    }
}

/// Reads a file that holds one secret; one trailing newline is not part of it. `what` names who asked, for the error.
pub fn read_secret(what: &str, path: &Path) -> Result<Secret> {
    let unreadable =
        |source| Error::SecretUnreadable { what: what.to_owned(), path: path.to_owned(), source };
    // Room from the start: a growing string would leave copies of the secret behind.
    let mut text = Zeroizing::new(String::with_capacity(SECRET_FILE_BYTES_MAX as usize + 1));
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let read = file.take(SECRET_FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
    let line = text.strip_suffix('\n').map(|t| t.strip_suffix('\r').unwrap_or(t)).unwrap_or(&text);
    if read as u64 > SECRET_FILE_BYTES_MAX || line.is_empty() {
        return Err(unreadable(std::io::Error::other("empty, or too large for a secret")));
    }
    Ok(Secret::new(line.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(environment: &[(&str, &str)], key: &str) -> Result<Option<(String, String)>> {
        let mut raw = RawConfig::default();
        let environment = Environment::of(environment);
        environment.overlay(&mut raw)?;
        Ok(raw.entry(key).map(|e| (e.value.to_string(), e.origin.to_string())))
    }

    #[test]
    fn our_own_variable_wins_over_rabbitmqs() {
        let both = [("RABBITMQ_DEFAULT_USER", "r"), ("SEALMQ_DEFAULT_USER", "s")];
        assert_eq!(value(&both, "default_user").unwrap().unwrap().0, "s");
        let (user, origin) = value(&both[..1], "default_user").unwrap().unwrap();
        assert_eq!((user.as_str(), origin.as_str()), ("r", "environment variable RABBITMQ_DEFAULT_USER"));
        assert_eq!(value(&[("SEALMQ_DEFAULT_USER", "")], "default_user").unwrap(), None);
    }

    #[test]
    fn a_file_form_is_read_and_loses_one_newline() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pass");
        std::fs::write(&path, "a b\n\n").unwrap();
        let path = path.display().to_string();
        let (pass, origin) =
            value(&[("RABBITMQ_DEFAULT_PASS_FILE", &path)], "default_pass").unwrap().unwrap();
        assert_eq!(
            (pass.as_str(), origin.as_str()),
            ("a b\n", "environment variable RABBITMQ_DEFAULT_PASS_FILE")
        );
        let both = [("SEALMQ_DEFAULT_PASS", "x"), ("SEALMQ_DEFAULT_PASS_FILE", path.as_str())];
        assert!(matches!(value(&both, "default_pass"), Err(Error::Ambiguous { .. })));
    }

    #[test]
    fn an_empty_or_missing_secret_file_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pass");
        for make in [false, true] {
            if make {
                std::fs::write(&path, "\n").unwrap();
            }
            let error = read_secret("default_pass_file", &path).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("default_pass_file: cannot read {}", path.display())),
                "{error}"
            );
        }
    }

    #[test]
    fn the_labs_switch_has_three_positions() {
        let switch = |v: &[(&str, &str)]| Environment::of(v).tls_switch();
        assert_eq!(switch(&[("TLS_ENABLE", "1")]).unwrap(), TlsSwitch::Only);
        assert_eq!(switch(&[("TLS_ENABLE", "0")]).unwrap(), TlsSwitch::PlainToo);
        assert_eq!(switch(&[("TLS_ENABLE", "")]).unwrap(), TlsSwitch::AsConfigured);
        assert!(switch(&[("TLS_ENABLE", "maybe")]).is_err());
    }
}
