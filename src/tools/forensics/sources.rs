//! Where a store's key comes from, as `verify` and `inspect` are told on the command line.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use clap::Args;

use crate::server::offline::{self, Flags, Found};
use crate::store::{Mode, mode_as_found};

/// The key's source: one of these, or `SEALMQ_AT_REST_KEK` in the environment.
#[derive(Args, Clone, Debug, Default)]
pub struct KeyArguments {
    /// The key file, mode 0400
    #[arg(long, value_name = "FILE")]
    pub(super) kek: Option<PathBuf>,
    /// The environment variable that holds the key
    #[arg(long, value_name = "NAME")]
    pub(super) kek_env: Option<String>,
    /// An inherited descriptor with the key, as in `3< FILE`
    #[arg(long, value_name = "NUMBER")]
    pub(super) kek_fd: Option<u32>,
    /// A file with the passphrase, mode 0400
    #[arg(long, value_name = "FILE")]
    pub(super) passphrase_file: Option<PathBuf>,
    /// An inherited descriptor with the passphrase
    #[arg(long, value_name = "NUMBER")]
    pub(super) passphrase_fd: Option<u32>,
    /// Ask for the passphrase at the terminal
    #[arg(long)]
    pub(super) passphrase: bool,
    /// The broker's configuration: its at_rest.kek.* and at_rest.anchor.path
    #[arg(long, value_name = "FILE")]
    pub(super) config: Vec<PathBuf>,
}

impl KeyArguments {
    fn flags(&self) -> Result<Flags> {
        let path = |path: &Option<PathBuf>| -> Result<Option<String>> {
            let Some(path) = path else { return Ok(None) };
            let path = std::path::absolute(path).with_context(|| path.display().to_string())?;
            Ok(Some(path.to_str().context("the key file's path is not UTF-8")?.to_owned()))
        };
        let number = |number: Option<u32>| number.map(|number| number.to_string());
        let given = [
            ("--kek", "at_rest.kek.file", path(&self.kek)?),
            ("--kek-env", "at_rest.kek.env", self.kek_env.clone()),
            ("--kek-fd", "at_rest.kek.fd", number(self.kek_fd)),
            ("--passphrase-file", "at_rest.kek.passphrase_file", path(&self.passphrase_file)?),
            ("--passphrase-fd", "at_rest.kek.passphrase_fd", number(self.passphrase_fd)),
            ("--passphrase", "at_rest.kek.passphrase_prompt", self.passphrase.then(|| "true".to_owned())),
        ];
        let keys = given.into_iter().filter_map(|(flag, key, value)| value.map(|value| (flag, key, value)));
        Ok(Flags { config: self.config.clone(), keys: keys.collect() })
    }

    /// The key of the store in `dir`, or none: of a plain store, or when nothing names one.
    ///
    /// # Errors
    /// When what is named does not give a key.
    pub(super) fn find(&self, dir: &Path) -> Result<Found> {
        if mode_as_found(dir) == Mode::PlainInsecure && self.config.is_empty() {
            return Ok(Found { credential: None, anchor: None });
        }
        // Its text says all that its causes say.
        offline::find(&self.flags()?, dir).map_err(|error| anyhow!("{error}"))
    }

    /// The same where decrypting is asked for by naming a source, and not by what lies about.
    ///
    /// # Errors
    /// When what is named does not give a key.
    pub(super) fn find_if_named(&self, dir: &Path) -> Result<Found> {
        let flags = self.flags()?;
        if flags.keys.is_empty() && flags.config.is_empty() {
            return Ok(Found { credential: None, anchor: None });
        }
        self.find(dir)
    }
}
