//! What the operator wrote: rabbitmq.conf's format as entries with file and line, in order. What a key means, and
//! whether it exists, is not decided here; values are kept as written until [`RawConfig::resolve`] is asked.
//!
//! ```text
//! key = value          # comment      a later entry of the same key wins
//! key = 'a # b'                       quotes keep `#` and spaces
//! key = $(NAME)                       another key's value, else an environment variable
//! ```

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeroize::Zeroizing;

use super::environment::Environment;
use super::error::{Error, Result};

/// Largest configuration file in bytes; a larger one is not a configuration.
const CONFIG_FILE_BYTES_MAX: u64 = 1024 * 1024;

/// How many `$(..)` may lead to each other; more is a circle.
const REFERENCE_DEPTH_MAX: u32 = 8;

/// Where a setting comes from; later variants outrank earlier ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A line of a configuration file; lines count from 1.
    File {
        /// The file.
        path: Arc<Path>,
        /// The line, from 1.
        line: u32,
    },
    /// An environment variable.
    Environment {
        /// Its name.
        variable: String,
    },
    /// A flag of the command line.
    Flag {
        /// Its name, dashes included.
        flag: String,
    },
}

impl Origin {
    /// Precedence: flag > environment > file > default.
    pub fn rank(&self) -> u8 {
        match self {
            Origin::Default => 0,
            Origin::File { .. } => 1,
            Origin::Environment { .. } => 2,
            Origin::Flag { .. } => 3,
        }
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Environment { variable } => write!(f, "environment variable {variable}"),
            Origin::Flag { flag } => write!(f, "flag {flag}"),
        }
    }
}

/// One setting as written. The value may be a secret, so `Debug` leaves it out.
#[derive(Clone)]
pub struct Entry {
    /// The dotted key.
    pub key: String,
    /// The value as written, `$(..)` unresolved.
    pub value: Zeroizing<String>,
    /// Where it was written.
    pub origin: Origin,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.key, self.origin)
    }
}

/// All entries in reading order, and the files they come from.
#[derive(Clone, Debug, Default)]
pub struct RawConfig {
    entries: Vec<Entry>,
    files: Vec<PathBuf>,
    suspicious: Vec<Origin>,
}

impl RawConfig {
    /// Reads the files that the search order names: `flags` (`--config`), else `$SEALMQ_CONFIG_FILE`, else
    /// `$RABBITMQ_CONFIG_FILE` and `$RABBITMQ_CONFIG_FILES`, else `etc`/sealmq, else `etc`/rabbitmq.
    /// Every name may be a folder, which stands for its `*.conf` in order. No file at all is an empty configuration.
    pub fn read(flags: &[PathBuf], environment: &Environment, etc: &Path) -> Result<RawConfig> {
        let mut raw = RawConfig::default();
        for path in search(flags, environment, etc)? {
            raw.read_file(&path)?;
        }
        Ok(raw)
    }

    /// Appends the entries of a file's text.
    pub fn parse(&mut self, path: &Path, text: &str) -> Result<()> {
        let path: Arc<Path> = Arc::from(path);
        for (number, line) in (1u32..).zip(text.lines()) {
            let origin = Origin::File { path: path.clone(), line: number };
            let line = if number == 1 { line.trim_start_matches('\u{feff}') } else { line };
            match parse_line(line) {
                Ok(None) => {}
                Ok(Some(Setting { key, value, cut_at_hash })) => {
                    if cut_at_hash {
                        self.suspicious.push(origin.clone());
                    }
                    self.set(key, value, origin);
                }
                Err(problem) => return Err(Error::Syntax { origin, problem }),
            }
        }
        Ok(())
    }

    /// Appends one entry; it wins over earlier ones of the same key unless they outrank it.
    pub fn set(&mut self, key: String, value: String, origin: Origin) {
        self.entries.push(Entry { key, value: Zeroizing::new(value), origin });
    }

    /// The entry that counts for `key`: highest rank, then last written.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().filter(|e| e.key == key).max_by_key(|e| e.origin.rank())
    }

    /// The entries below `prefix.`, one for each key, in order of first appearance, with what follows the prefix.
    pub fn below<'a>(&'a self, prefix: &str) -> Vec<(&'a str, &'a Entry)> {
        let mut found: Vec<(&str, &Entry)> = Vec::new();
        for entry in &self.entries {
            let Some(name) = entry.key.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.')) else {
                continue;
            };
            match found.iter_mut().find(|(known, _)| *known == name) {
                Some((_, kept)) if kept.origin.rank() > entry.origin.rank() => {}
                Some((_, kept)) => *kept = entry,
                None => found.push((name, entry)),
            }
        }
        found
    }

    /// All entries in reading order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The files that were read, in order.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Lines whose unquoted value was cut at a `#` that follows a character directly, as in `pass = a#b`.
    pub fn cut_at_hash(&self) -> &[Origin] {
        &self.suspicious
    }

    /// The entry's value with every `$(NAME)` replaced; `encrypted:` values are refused.
    pub fn resolve(&self, entry: &Entry, environment: &Environment) -> Result<Zeroizing<String>> {
        self.resolve_at(entry, environment, 0)
    }

    fn resolve_at(&self, entry: &Entry, environment: &Environment, depth: u32) -> Result<Zeroizing<String>> {
        if entry.value.starts_with("encrypted:") {
            return Err(Error::EncryptedValue { key: entry.key.clone(), origin: entry.origin.clone() });
        }
        let syntax = |problem: &str| Error::Syntax { origin: entry.origin.clone(), problem: problem.into() };
        let mut out = Zeroizing::new(String::new());
        let mut rest = entry.value.as_str();
        while let Some((before, after)) = rest.split_once("$(") {
            out.push_str(before);
            let (name, tail) = after.split_once(')').ok_or_else(|| syntax("`$(` without `)`"))?;
            if depth >= REFERENCE_DEPTH_MAX {
                return Err(syntax("$(..) refers to itself"));
            }
            if let Some(other) = self.entry(name) {
                out.push_str(&self.resolve_at(other, environment, depth + 1)?);
            } else if let Some(value) = environment.value(name) {
                out.push_str(value);
            } else {
                return Err(Error::VariableMissing {
                    key: entry.key.clone(),
                    origin: entry.origin.clone(),
                    name: name.to_owned(),
                });
            }
            rest = tail;
        }
        out.push_str(rest);
        Ok(out)
    }

    fn read_file(&mut self, path: &Path) -> Result<()> {
        let unreadable = |source| Error::ConfigUnreadable { path: path.to_owned(), source };
        let mut text = Zeroizing::new(String::new());
        let file = std::fs::File::open(path).map_err(unreadable)?;
        let read = file.take(CONFIG_FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
        if read as u64 > CONFIG_FILE_BYTES_MAX {
            let problem = format!("larger than {CONFIG_FILE_BYTES_MAX} bytes");
            return Err(unreadable(std::io::Error::other(problem)));
        }
        self.parse(path, &text)?;
        self.files.push(path.to_owned());
        Ok(())
    }
}

fn search(flags: &[PathBuf], environment: &Environment, etc: &Path) -> Result<Vec<PathBuf>> {
    if !flags.is_empty() {
        return flags.iter().map(|path| expand(path)).collect::<Result<Vec<_>>>().map(|v| v.concat());
    }
    if let Some(path) = environment.value("SEALMQ_CONFIG_FILE") {
        return expand(Path::new(path));
    }
    let mut named = Vec::new();
    if let Some(path) = environment.value("RABBITMQ_CONFIG_FILE") {
        // RabbitMQ takes this name with and without its extension.
        let with_extension = PathBuf::from(format!("{path}.conf"));
        let bare = Path::new(path);
        named.extend(expand(if !bare.exists() && with_extension.exists() { &with_extension } else { bare })?);
    }
    if let Some(path) = environment.value("RABBITMQ_CONFIG_FILES") {
        named.extend(expand(Path::new(path.strip_suffix("/*.conf").unwrap_or(path)))?);
    }
    if !named.is_empty() {
        return Ok(named);
    }
    for program in ["sealmq", "rabbitmq"] {
        let folder = etc.join(program);
        let main = folder.join(format!("{program}.conf"));
        let mut found = Vec::new();
        if main.exists() {
            found.push(main);
        }
        if folder.join("conf.d").is_dir() {
            found.extend(expand(&folder.join("conf.d"))?);
        }
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Ok(Vec::new())
}

fn expand(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let unreadable = |source| Error::ConfigUnreadable { path: path.to_owned(), source };
    let mut files = Vec::new();
    for item in std::fs::read_dir(path).map_err(unreadable)? {
        let item = item.map_err(unreadable)?.path();
        if item.extension().is_some_and(|e| e == "conf") {
            files.push(item);
        }
    }
    files.sort();
    Ok(files)
}

struct Setting {
    key: String,
    value: String,
    cut_at_hash: bool,
}

fn parse_line(line: &str) -> std::result::Result<Option<Setting>, String> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    if line.starts_with("include ") || line.starts_with("include\t") {
        return Err("`include` is not read here: use conf.d or several --config".into());
    }
    let (key, value) = line.split_once('=').ok_or("no `=`")?;
    let key = parse_key(key.trim())?;
    let value = value.trim();
    if let Some(quoted) = value.strip_prefix('\'') {
        let (inside, after) = quoted.split_once('\'').ok_or("the quote ' is not closed")?;
        let after = after.trim_start();
        if !after.is_empty() && !after.starts_with('#') {
            return Err("text after the closing quote '".into());
        }
        return Ok(Some(Setting { key, value: inside.to_owned(), cut_at_hash: false }));
    }
    let (kept, cut_at_hash) = match value.split_once('#') {
        Some((before, _)) => (before.trim_end(), !before.is_empty() && !before.ends_with([' ', '\t'])),
        None => (value, false),
    };
    if kept.is_empty() {
        return Err(format!("{key} has no value"));
    }
    Ok(Some(Setting { key, value: kept.to_owned(), cut_at_hash }))
}

fn parse_key(written: &str) -> std::result::Result<String, String> {
    // `\.` is a dot that belongs to a name, as in default_users.a\.b.password.
    let key = written.replace("\\.", ".");
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if key.is_empty() || key.starts_with('.') || key.ends_with('.') || !key.chars().all(fits) {
        let shown: String = written.chars().take(60).flat_map(char::escape_default).collect();
        return Err(format!("`{shown}` is not a key (letters, digits, `_`, `-`, separated by dots)"));
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> RawConfig {
        let mut raw = RawConfig::default();
        raw.parse(Path::new("/etc/x.conf"), text).unwrap();
        raw
    }

    fn value(raw: &RawConfig, key: &str, environment: &[(&str, &str)]) -> Result<String> {
        let environment = Environment::of(environment);
        raw.resolve(raw.entry(key).unwrap(), &environment).map(|v| v.as_str().to_owned())
    }

    #[test]
    fn reads_the_lines_that_rabbitmq_reads() {
        let raw = parsed(
            "# c\n\n  heartbeat=30 # why\r\na.b = 'x # y' # c\nlisteners.tcp.1 = [::1]:5672\np = it's\n",
        );
        assert_eq!(value(&raw, "heartbeat", &[]).unwrap(), "30");
        assert_eq!(value(&raw, "a.b", &[]).unwrap(), "x # y");
        assert_eq!(value(&raw, "listeners.tcp.1", &[]).unwrap(), "[::1]:5672");
        assert_eq!(value(&raw, "p", &[]).unwrap(), "it's");
        assert_eq!(raw.entry("heartbeat").unwrap().origin.to_string(), "/etc/x.conf:3");
    }

    #[test]
    fn names_file_and_line_of_what_it_cannot_read() {
        for (text, wanted) in [
            ("a = 1\nnonsense\n", "/etc/x.conf:2: no `=`"),
            ("a =\n", "/etc/x.conf:1: a has no value"),
            ("a = # c\n", "/etc/x.conf:1: a has no value"),
            ("a = 'x\n", "/etc/x.conf:1: the quote ' is not closed"),
            ("a = 'x' y\n", "/etc/x.conf:1: text after the closing quote '"),
            ("a b = 1\n", "/etc/x.conf:1: `a b` is not a key"),
            (".a = 1\n", "/etc/x.conf:1: `.a` is not a key"),
            ("include conf.d/*.conf\n", "/etc/x.conf:1: `include` is not read here"),
        ] {
            let error = RawConfig::default().parse(Path::new("/etc/x.conf"), text).unwrap_err().to_string();
            assert!(error.starts_with(wanted), "{text:?}: {error}");
        }
    }

    #[test]
    fn later_wins_within_a_rank_and_a_higher_rank_wins_always() {
        let mut raw = RawConfig::default();
        raw.set("k".into(), "environment".into(), Origin::Environment { variable: "K".into() });
        raw.parse(Path::new("/a"), "k = 1\nk = 2\n").unwrap();
        assert_eq!(value(&raw, "k", &[]).unwrap(), "environment");
        raw.set("k".into(), "flag".into(), Origin::Flag { flag: "--k".into() });
        assert_eq!(value(&raw, "k", &[]).unwrap(), "flag");
        assert_eq!(value(&parsed("k = 1\nk = 2\n"), "k", &[]).unwrap(), "2");
    }

    #[test]
    fn interpolates_the_environment_and_other_keys() {
        let raw = parsed("u = $(USER_NAME)\nv = <$(u)-$(HOST)>\nw = $(NOT_THERE)\nx = $(x)\ny = $(open\n");
        let environment = [("USER_NAME", "ada"), ("HOST", "h")];
        assert_eq!(value(&raw, "v", &environment).unwrap(), "<ada-h>");
        let missing = value(&raw, "w", &environment).unwrap_err().to_string();
        assert!(missing.starts_with("w (/etc/x.conf:3): $(NOT_THERE) is neither"), "{missing}");
        assert!(matches!(value(&raw, "x", &environment), Err(Error::Syntax { .. })));
        assert!(matches!(value(&raw, "y", &environment), Err(Error::Syntax { .. })));
    }

    #[test]
    fn refuses_encrypted_values() {
        let raw = parsed("default_pass = encrypted:cPAymwqmMnbPXXRVqVzpxJdrS8mHEKuo\n");
        assert!(matches!(value(&raw, "default_pass", &[]), Err(Error::EncryptedValue { .. })));
    }

    #[test]
    fn remembers_values_that_a_hash_cut_short() {
        let raw = parsed("a = x#y\nb = x # y\nc = 'x#y'\n");
        assert_eq!(raw.cut_at_hash().iter().map(Origin::to_string).collect::<Vec<_>>(), ["/etc/x.conf:1"]);
    }

    #[test]
    fn debug_shows_no_value() {
        assert!(!format!("{:?}", parsed("default_pass = hunter2\n")).contains("hunter2"));
    }

    fn files(flags: &[PathBuf], environment: &[(&str, &str)], etc: &Path) -> Vec<String> {
        let raw = RawConfig::read(flags, &Environment::of(environment), etc).unwrap();
        raw.files().iter().map(|p| p.strip_prefix(etc).unwrap().display().to_string()).collect()
    }

    #[test]
    fn searches_flag_then_environment_then_sealmq_then_rabbitmq() {
        let etc = tempfile::tempdir().unwrap();
        let path = |name: &str| etc.path().join(name);
        assert_eq!(files(&[], &[], etc.path()), [""; 0]);
        std::fs::create_dir_all(path("rabbitmq/conf.d")).unwrap();
        std::fs::create_dir_all(path("sealmq/conf.d")).unwrap();
        for name in ["rabbitmq/conf.d/20-b.conf", "rabbitmq/conf.d/10-a.conf", "rabbitmq/conf.d/note.txt"] {
            std::fs::write(path(name), "heartbeat = 1\n").unwrap();
        }
        assert_eq!(files(&[], &[], etc.path()), ["rabbitmq/conf.d/10-a.conf", "rabbitmq/conf.d/20-b.conf"]);
        std::fs::write(path("rabbitmq/rabbitmq.conf"), "").unwrap();
        assert_eq!(files(&[], &[], etc.path()).first().unwrap(), "rabbitmq/rabbitmq.conf");
        std::fs::write(path("sealmq/conf.d/1.conf"), "").unwrap();
        assert_eq!(files(&[], &[], etc.path()), ["sealmq/conf.d/1.conf"]);
        std::fs::write(path("r.conf"), "").unwrap();
        let r = path("r").display().to_string();
        assert_eq!(files(&[], &[("RABBITMQ_CONFIG_FILE", &r)], etc.path()), ["r.conf"]);
        let glob = format!("{}/rabbitmq/conf.d/*.conf", etc.path().display());
        assert_eq!(files(&[], &[("RABBITMQ_CONFIG_FILES", &glob)], etc.path()).len(), 2);
        let s = path("r.conf").display().to_string();
        let both = [("RABBITMQ_CONFIG_FILE", "/nowhere"), ("SEALMQ_CONFIG_FILE", s.as_str())];
        assert_eq!(files(&[], &both, etc.path()), ["r.conf"]);
        assert_eq!(files(&[path("rabbitmq/rabbitmq.conf")], &both, etc.path()), ["rabbitmq/rabbitmq.conf"]);
    }

    #[test]
    fn a_file_that_was_asked_for_must_be_there() {
        let asked = [PathBuf::from("/nowhere/x.conf")];
        let error = RawConfig::read(&asked, &Environment::of(&[]), Path::new("/nowhere")).unwrap_err();
        assert!(error.to_string().starts_with("/nowhere/x.conf: cannot read the configuration"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_an_answer_never_a_panic(text in "\\PC*(\n\\PC*){0,4}") {
            let _ = RawConfig::default().parse(Path::new("/x"), &text);
        }
    }
}
