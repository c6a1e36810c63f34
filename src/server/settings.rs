//! Typed reading of [`RawConfig`] entries: finds the entry that counts, interpolates, parses, and turns what does not
//! parse into one error that names the key, the place and what was expected. Collects what is worth telling.

use std::path::PathBuf;

use zeroize::Zeroizing;

use super::environment::Environment;
use super::error::{Error, Result};
use super::keys::{self, Meaning};
use super::raw_config::{Entry, Origin, RawConfig};
use super::secret::Secret;
use super::values;

/// Something worth telling the operator once logging has started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Nothing is wrong.
    Info(String),
    /// Something may be.
    Warning(String),
}

/// The entries, the environment they may refer to, and the notices gathered on the way.
pub struct Settings<'a> {
    raw: &'a RawConfig,
    environment: &'a Environment,
    /// What was noticed so far, in order.
    pub notices: Vec<Notice>,
}

impl<'a> Settings<'a> {
    /// Starts with a notice for each key that is not obeyed and each value that a `#` cut short.
    pub fn new(raw: &'a RawConfig, environment: &'a Environment) -> Settings<'a> {
        let mut settings = Settings { raw, environment, notices: Vec::new() };
        for Entry { key, origin, .. } in raw.entries() {
            match keys::meaning(key) {
                Meaning::Obeyed => {}
                Meaning::Ignored => settings.info(format!("{origin}: {key} has no meaning here yet")),
                Meaning::IgnoredWithEffect => settings.warn(format!(
                    "{origin}: {key} has no meaning here yet: what it asks for is NOT in effect"
                )),
                Meaning::Unknown => {
                    let hint =
                        keys::suggestion(key).map(|k| format!("; did you mean {k}?")).unwrap_or_default();
                    settings.warn(format!("{origin}: unknown key {key}{hint}"));
                }
            }
        }
        for origin in raw.cut_at_hash() {
            settings.warn(format!(
                "{origin}: the value ends at the `#`; put it in single quotes to keep the rest"
            ));
        }
        settings
    }

    /// Notes a warning.
    pub fn warn(&mut self, text: String) {
        self.notices.push(Notice::Warning(text));
    }

    /// Notes a piece of information.
    pub fn info(&mut self, text: String) {
        self.notices.push(Notice::Info(text));
    }

    /// The environment, for what has no key.
    pub fn environment(&self) -> &'a Environment {
        self.environment
    }

    /// The entry that counts for `key`.
    pub fn entry(&self, key: &str) -> Option<&'a Entry> {
        self.raw.entry(key)
    }

    /// The entries below `prefix.`, see [`RawConfig::below`].
    pub fn below(&self, prefix: &str) -> Vec<(&'a str, &'a Entry)> {
        self.raw.below(prefix)
    }

    /// Where `key` was set; [`Origin::Default`] when it was not.
    pub fn origin(&self, key: &str) -> Origin {
        self.entry(key).map(|e| e.origin.clone()).unwrap_or(Origin::Default)
    }

    /// An entry's value, interpolated.
    pub fn text_of(&self, entry: &Entry) -> Result<Zeroizing<String>> {
        self.raw.resolve(entry, self.environment)
    }

    /// An entry's value, parsed; `expected` completes the sentence "expected ...".
    pub fn parse_of<T>(&self, entry: &Entry, expected: &str, parse: impl Fn(&str) -> Option<T>) -> Result<T> {
        let text = self.text_of(entry)?;
        parse(&text).ok_or_else(|| invalid(entry, expected, &text))
    }

    /// The value of `key`, parsed, if it was set.
    pub fn parse<T>(
        &self,
        key: &str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>> {
        self.entry(key).map(|entry| self.parse_of(entry, expected, parse)).transpose()
    }

    /// The value of `key` as text, if it was set.
    pub fn text(&self, key: &str) -> Result<Option<String>> {
        self.parse(key, "text that is not empty", |t| (!t.is_empty()).then(|| t.to_owned()))
    }

    /// The value of `key` as a secret, if it was set.
    pub fn secret(&self, key: &str) -> Result<Option<Secret>> {
        self.parse(key, "a password that is not empty", |t| {
            (!t.is_empty()).then(|| Secret::new(t.to_owned()))
        })
    }

    /// The value of `key` as an absolute path, if it was set. Relative paths would depend on where the broker starts.
    pub fn path(&self, key: &str) -> Result<Option<PathBuf>> {
        let absolute = |t: &str| Some(PathBuf::from(t)).filter(|p| p.is_absolute());
        self.parse(key, "an absolute path", absolute)
    }

    /// The value of `key` as a boolean.
    pub fn boolean(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self.parse(key, "true or false", values::boolean)?.unwrap_or(default))
    }

    /// The value of `key` as a whole number in `range`.
    pub fn number(
        &self,
        key: &str,
        unit: &str,
        range: std::ops::RangeInclusive<u64>,
        default: u64,
    ) -> Result<u64> {
        let expected = format!("{unit}, {} to {}", range.start(), range.end());
        let parse = |t: &str| t.parse().ok().filter(|n| range.contains(n));
        Ok(self.parse(key, &expected, parse)?.unwrap_or(default))
    }
}

/// The error for an entry whose value is not what was expected; a secret is not repeated.
pub fn invalid(entry: &Entry, expected: &str, found: &str) -> Error {
    let shown: String = found.chars().take(80).flat_map(char::escape_default).collect();
    let found = if keys::is_secret(&entry.key) { "something else".into() } else { format!("`{shown}`") };
    Error::InvalidValue {
        key: entry.key.clone(),
        origin: entry.origin.clone(),
        expected: expected.into(),
        found,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn raw(text: &str) -> RawConfig {
        let mut raw = RawConfig::default();
        raw.parse(Path::new("/c"), text).unwrap();
        raw
    }

    #[test]
    fn an_invalid_value_names_key_place_and_expectation() {
        let raw = raw("heartbeat = soon\n");
        let environment = Environment::default();
        let settings = Settings::new(&raw, &environment);
        let error = settings.number("heartbeat", "seconds", 0..=65535, 60).unwrap_err();
        assert_eq!(error.to_string(), "heartbeat (/c:1): expected seconds, 0 to 65535, found `soon`");
    }

    #[test]
    fn a_secret_is_not_repeated_in_an_error() {
        let raw = raw("default_pass = hunter2\n");
        let entry = raw.entry("default_pass").unwrap();
        assert!(!invalid(entry, "x", &entry.value).to_string().contains("hunter2"));
    }

    #[test]
    fn unknown_ignored_and_cut_values_are_noticed() {
        let raw = raw("hartbeat = 1\nmanagement.tcp.port = 1\nload_definitions = /x\ndefault_vhost = a#b\n");
        let environment = Environment::default();
        let notices = Settings::new(&raw, &environment).notices;
        assert_eq!(
            notices,
            [
                Notice::Warning("/c:1: unknown key hartbeat; did you mean heartbeat?".into()),
                Notice::Info("/c:2: management.tcp.port has no meaning here yet".into()),
                Notice::Warning(
                    "/c:3: load_definitions has no meaning here yet: what it asks for is NOT in effect"
                        .into()
                ),
                Notice::Warning(
                    "/c:4: the value ends at the `#`; put it in single quotes to keep the rest".into()
                ),
            ]
        );
    }

    #[test]
    fn paths_are_absolute() {
        let raw = raw("data_dir = data\n");
        let environment = Environment::default();
        assert!(Settings::new(&raw, &environment).path("data_dir").is_err());
    }
}
