//! The key and the anchor of a store that exists, for a tool that examines it while no broker runs: from the same
//! sources as the broker's, named by flags, by the environment, or in the broker's own configuration. Nothing is made.

use std::path::{Path, PathBuf};

use crate::seal::Credential;

use super::at_rest::{self, AtRest, KekSource};
use super::config::Sources;
use super::environment::Environment;
use super::error::Error;
use super::key_source::{self, KeyError};
use super::raw_config::{Origin, RawConfig};
use super::settings::Settings;

/// What leads to a key.
#[derive(Debug, Default)]
pub struct Flags {
    /// `--config FILE`: the broker's configuration. Without any, none is read, not even that in `/etc`.
    pub config: Vec<PathBuf>,
    /// Flags that stand for keys of the configuration: (flag as typed, key, value).
    pub keys: Vec<(&'static str, &'static str, String)>,
}

/// What was found.
pub struct Found {
    /// The key or the passphrase; `None` when nothing names one.
    pub credential: Option<Credential>,
    /// Where the anchor lies, if the configuration says so.
    pub anchor: Option<PathBuf>,
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The flags or the configuration do not fit.
    #[error(transparent)]
    Config(#[from] Error),
    /// The source gives none.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// Finds the key of the sealed store in `dir`.
///
/// # Errors
/// When two sources are named, or the one that is does not give a key.
pub fn find(flags: &Flags, dir: &Path) -> Result<Found, OfflineError> {
    find_in(flags, dir, Environment::of_process())
}

fn find_in(flags: &Flags, dir: &Path, environment: Environment) -> Result<Found, OfflineError> {
    let own = |(flag, key, value): &(&'static str, &'static str, String)| {
        ((*flag).to_owned(), (*key).to_owned(), value.clone())
    };
    let key_flags: Vec<_> = flags.keys.iter().map(own).collect();
    let (raw, environment) = if flags.config.is_empty() {
        let mut raw = RawConfig::default();
        for (flag, key, value) in key_flags {
            raw.set(key, value, Origin::Flag { flag });
        }
        (raw, environment)
    } else {
        let etc = PathBuf::from("/etc");
        let sources = Sources { config_flags: flags.config.clone(), key_flags, environment, etc };
        (sources.read()?, sources.environment)
    };
    let mut settings = Settings::new(&raw, &environment);
    let resolved = match at_rest::read(&mut settings, dir) {
        Ok(resolved) => resolved,
        // The broker's default place for a key is empty, and nothing names another.
        Err(Error::KeyMissing { .. } | Error::NoKey { .. })
            if flags.keys.is_empty() && flags.config.is_empty() =>
        {
            return Ok(Found { credential: None, anchor: None });
        }
        Err(error) => return Err(error.into()),
    };
    let credential = match &resolved.at_rest {
        AtRest::PlainInsecure | AtRest::Sealed(KekSource::Generate { .. }) => None,
        AtRest::Sealed(source) => Some(key_source::load(source, dir)?),
    };
    Ok(Found { credential, anchor: resolved.anchor })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    struct Host(tempfile::TempDir);

    impl Host {
        fn new() -> Host {
            let host = Host(tempfile::tempdir().unwrap());
            fs::create_dir(host.0.path().join("data")).unwrap();
            fs::write(host.0.path().join("data/SEALMQ_STORE"), "{}").unwrap();
            for (name, first) in [("kek", 1u8), ("other", 2)] {
                let path = host.0.path().join(name);
                fs::write(&path, (first..first + 32).collect::<Vec<u8>>()).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
            }
            host
        }

        fn path(&self, name: &str) -> String {
            self.0.path().join(name).display().to_string()
        }

        fn find(&self, flags: Flags, environment: &[(&str, &str)]) -> Result<Found, OfflineError> {
            find_in(&flags, &self.0.path().join("data"), Environment::of(environment))
        }
    }

    fn id(found: Result<Found, OfflineError>) -> [u8; 16] {
        match found.unwrap().credential {
            Some(Credential::Key(kek)) => kek.slot_id(),
            _ => panic!("no key"),
        }
    }

    #[test]
    fn a_flag_the_environment_and_the_configuration_lead_to_the_key() {
        let host = Host::new();
        let by_flag = |name: &str| Flags {
            keys: vec![("--kek", "at_rest.kek.file", host.path(name))],
            ..Flags::default()
        };
        let (kek, other) = (id(host.find(by_flag("kek"), &[])), id(host.find(by_flag("other"), &[])));
        assert_ne!(kek, other);
        let hex: String = (1..33).map(|byte| format!("{byte:02x}")).collect();
        let value = [("SEALMQ_AT_REST_KEK", hex.as_str())];
        assert_eq!(id(host.find(Flags::default(), &value)), kek);
        assert_eq!(id(host.find(by_flag("other"), &value)), other, "a flag wins");
        let config = PathBuf::from(host.path("sealmq.conf"));
        let text = "at_rest.kek.file = KEK\nat_rest.anchor.path = /elsewhere/anchor\n";
        fs::write(&config, text.replace("KEK", &host.path("kek"))).unwrap();
        let by_config = || Flags { config: vec![config.clone()], ..Flags::default() };
        assert_eq!(id(host.find(by_config(), &[])), kek);
        let found = host.find(by_config(), &[]).unwrap();
        assert_eq!(found.anchor, Some(PathBuf::from("/elsewhere/anchor")));
    }

    #[test]
    fn nothing_is_made_and_two_sources_are_too_many() {
        let host = Host::new();
        fs::remove_file(host.0.path().join("data/SEALMQ_STORE")).unwrap();
        let path = [("at_rest.kek.generate_path", "made/kek"), ("at_rest.kek.generate_path", "kek")];
        for (at, found) in path.into_iter().zip([false, true]) {
            let flags = Flags { keys: vec![("--x", at.0, host.path(at.1))], ..Flags::default() };
            assert_eq!(host.find(flags, &[]).unwrap().credential.is_some(), found);
        }
        assert!(!host.0.path().join("made").exists());
        let keys = vec![
            ("--kek", "at_rest.kek.file", host.path("kek")),
            ("--passphrase-file", "at_rest.kek.passphrase_file", host.path("other")),
        ];
        let two = host.find(Flags { keys, ..Flags::default() }, &[]);
        assert!(matches!(two, Err(OfflineError::Config(Error::Ambiguous { .. }))));
    }
}
