//! Where the key for data at rest comes from, and when a new one may be made: `at_rest.*`. Key material is not read,
//! parsed or made here (`seal` and `store` do that); only a value given in the environment passes through, as a secret.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::{Error, Result};
use super::key_service::{self, ServicePlace};
use super::secret::Secret;
use super::settings::{Settings, invalid};
use super::values::duration;
use crate::limits::{ERASE_HOURS_DEFAULT, RESEAL_DAYS_DEFAULT};
use crate::store::Padding;

/// The file that every store has at its top; a key is never made where it exists.
pub const STORE_FILE: &str = "SEALMQ_STORE";

/// Where a key is made when none is configured: outside the data directory.
pub const GENERATED_KEK_DEFAULT: &str = "/var/lib/sealmq-secrets/at_rest_kek";

/// The key encryption key's source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KekSource {
    /// An existing file.
    File(PathBuf),
    /// A value from the environment: 64 hex digits or 44 base64 characters, checked by whoever loads it.
    Value(Secret),
    /// A file that systemd has put into `$CREDENTIALS_DIRECTORY`.
    Credential(PathBuf),
    /// A descriptor that the broker inherits, with the content of a key file.
    Descriptor(u32),
    /// A program and its arguments that prints the content of a key file; no shell.
    Command(Vec<String>),
    /// A passphrase in a file.
    PassphraseFile(PathBuf),
    /// A passphrase from a descriptor that the broker inherits.
    PassphraseDescriptor(u32),
    /// A passphrase that somebody types at the terminal.
    PassphrasePrompt,
    /// A key that stays in a token or a key server.
    Service(ServicePlace),
    /// No key and no store exist yet: make one at this path (0400, its folder 0700), say loudly where it is.
    Generate {
        /// The file to make.
        path: PathBuf,
    },
}

/// How the store is kept; chosen when it is created, never mixed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AtRest {
    /// Everything sealed.
    Sealed(KekSource),
    /// Everything readable: only to compare with.
    PlainInsecure,
}

/// What `at_rest.*` says.
pub struct Resolved {
    /// The mode and its key.
    pub at_rest: AtRest,
    /// Where the store's anchor lies, if not in the data directory.
    pub anchor: Option<PathBuf>,
    /// How a sealed store hides lengths.
    pub padding: Padding,
    /// When a deleted message has left the disk.
    pub erase_within: Duration,
    /// Age of a data key at which what it sealed is sealed again; `None` for never.
    pub reseal_after: Option<Duration>,
    /// The folder that the key lies in, or would: where `sealmq-init` puts the administrator's password as well.
    pub secrets: Option<PathBuf>,
}

/// Resolves `at_rest.*` for a store in `data_dir`. Looks whether files exist; reads none.
pub fn read(settings: &mut Settings, data_dir: &Path) -> Result<Resolved> {
    let sealed = settings.parse("at_rest.mode", "sealed or plain-insecure", |t| match t {
        "sealed" => Some(true),
        "plain-insecure" => Some(false),
        _ => None,
    })?;
    let anchor = settings.path("at_rest.anchor.path")?;
    let padding =
        settings.parse("at_rest.padding", "none, padme or pow2", Padding::parse)?.unwrap_or_default();
    let erase_within = settings
        .parse("at_rest.erase_within", "a time such as 90s, 15m, 24h or 7d", duration)?
        .unwrap_or(Duration::from_secs(ERASE_HOURS_DEFAULT * 3600));
    let reseal_after = settings
        .parse("at_rest.reseal_after", "off, or a time such as 24h or 30d", |text| match text {
            "off" | "0" => Some(None),
            _ => duration(text).map(Some),
        })?
        .unwrap_or(Some(Duration::from_secs(RESEAL_DAYS_DEFAULT * 86_400)));
    let file = settings.path("at_rest.kek.file")?;
    let generate_path =
        settings.path("at_rest.kek.generate_path")?.unwrap_or_else(|| PathBuf::from(GENERATED_KEK_DEFAULT));
    let folder_of = |path: &Path| path.parent().map(Path::to_owned);
    if sealed == Some(false) {
        settings.warn(format!(
            "at_rest.mode = plain-insecure ({}): NOTHING in {} is encrypted; every message can be read from the disk",
            settings.origin("at_rest.mode"),
            data_dir.display()
        ));
        let secrets = folder_of(file.as_deref().unwrap_or(&generate_path));
        let at_rest = AtRest::PlainInsecure;
        return Ok(Resolved { at_rest, padding, erase_within, reseal_after, anchor, secrets });
    }
    let source = kek_source(settings, data_dir, file.as_deref(), &generate_path)?;
    let secrets = match &source {
        KekSource::File(path) | KekSource::Generate { path } => {
            outside(path, data_dir)?;
            folder_of(path)
        }
        KekSource::Credential(path) => folder_of(path),
        KekSource::PassphraseFile(path) => {
            outside(path, data_dir)?;
            folder_of(path)
        }
        KekSource::Service(place) => {
            place.files().into_iter().try_for_each(|path| outside(path, data_dir))?;
            place.secret_file().or(file.as_deref()).and_then(folder_of)
        }
        _ => file.as_deref().and_then(folder_of),
    };
    let at_rest = AtRest::Sealed(source);
    Ok(Resolved { at_rest, padding, erase_within, reseal_after, anchor, secrets })
}

fn kek_source(
    settings: &mut Settings,
    data_dir: &Path,
    file: Option<&Path>,
    generate_path: &Path,
) -> Result<KekSource> {
    let generate = settings.parse("at_rest.kek.generate", "true or false", super::values::boolean)?;
    if let Some((source, name)) = chosen(settings, file)? {
        if let KekSource::Value(_) = source {
            settings.warn(format!(
                "the key for data at rest comes from the environment variable {name}, which other processes of this user \
                 can read (/proc/PID/environ); a file is safer: at_rest.kek.file"
            ));
        }
        return Ok(source);
    }
    let (path, may_generate) = match file {
        Some(path) => (path, generate == Some(true)),
        None => (generate_path, generate != Some(false)),
    };
    // What cannot be looked at is not taken for missing: whoever loads it will say why.
    if path.try_exists().unwrap_or(true) {
        return Ok(KekSource::File(path.to_owned()));
    }
    if data_dir.join(STORE_FILE).try_exists().unwrap_or(true) {
        return Err(Error::KeyMissing { data_dir: data_dir.to_owned(), key: path.to_owned() });
    }
    if !may_generate {
        let problem = match file {
            Some(_) => format!("{} ({}) does not exist", path.display(), settings.origin("at_rest.kek.file")),
            None => "at_rest.kek.file is not set and at_rest.kek.generate is false".into(),
        };
        return Err(Error::NoKey { problem });
    }
    settings.warn(format!(
        "no key for data at rest exists yet: a new one is made at {}. KEEP IT SAFE: without it the data in {} is lost, and \
         with it everybody can read them. Back it up apart from the data",
        path.display(),
        data_dir.display()
    ));
    Ok(KekSource::Generate { path: path.to_owned() })
}

struct Candidate {
    source: KekSource,
    /// The key or variable that names it.
    name: String,
    rank: u8,
}

// The source of the highest rank, with its name; `None` when that is a file, or nothing is set. Two of one rank are
// an error: the operator would believe in the wrong one.
fn chosen(settings: &Settings, file: Option<&Path>) -> Result<Option<(KekSource, String)>> {
    let mut candidates = candidates(settings)?;
    let rank_of = |key: &str| settings.origin(key).rank();
    candidates.extend(file.map(|path| Candidate {
        source: KekSource::File(path.to_owned()),
        name: "at_rest.kek.file".into(),
        rank: rank_of("at_rest.kek.file"),
    }));
    let highest = candidates.iter().map(|candidate| candidate.rank).max();
    candidates.retain(|candidate| Some(candidate.rank) == highest);
    let mut candidates = candidates.into_iter();
    match (candidates.next(), candidates.next()) {
        (Some(one), Some(other)) => Err(Error::Ambiguous { one: one.name, other: other.name }),
        (Some(Candidate { source: KekSource::File(_), .. }), None) => Ok(None),
        (Some(Candidate { source, name, .. }), None) => Ok(Some((source, name))),
        (None, _) => {
            Ok(offered_by_systemd(settings).map(|path| (KekSource::Credential(path), "systemd".into())))
        }
    }
}

// Every source that is set, except a file.
fn candidates(settings: &Settings) -> Result<Vec<Candidate>> {
    let mut found = Vec::new();
    if let Some((value, name, rank)) = value_from_environment(settings)? {
        found.push(Candidate { source: KekSource::Value(value), name, rank });
    }
    let mut add = |key: &str, source: Option<KekSource>| {
        let rank = settings.origin(key).rank();
        found.extend(source.map(|source| Candidate { source, name: key.into(), rank }));
    };
    let descriptor = |t: &str| t.parse().ok().filter(|n| (3..65_536).contains(n));
    const DESCRIPTOR: &str = "the number of an inherited descriptor, 3 or more";
    let key = "at_rest.kek.credential";
    add(key, settings.entry(key).map(|_| credential(settings, key)).transpose()?);
    let key = "at_rest.kek.fd";
    add(key, settings.parse(key, DESCRIPTOR, descriptor)?.map(KekSource::Descriptor));
    let key = "at_rest.kek.passphrase_file";
    add(key, settings.path(key)?.map(KekSource::PassphraseFile));
    let key = "at_rest.kek.passphrase_fd";
    add(key, settings.parse(key, DESCRIPTOR, descriptor)?.map(KekSource::PassphraseDescriptor));
    let key = "at_rest.kek.passphrase_prompt";
    add(key, settings.boolean(key, false)?.then_some(KekSource::PassphrasePrompt));
    let command = command(settings)?;
    add("at_rest.kek.command.1", command.map(KekSource::Command));
    for (key, place) in key_service::read(settings)? {
        add(key, Some(KekSource::Service(place)));
    }
    Ok(found)
}

fn credential(settings: &Settings, key: &str) -> Result<KekSource> {
    let plain = |t: &str| (!t.is_empty() && !t.contains('/') && t != "..").then(|| t.to_owned());
    let name = settings.parse(key, "the name of a credential", plain)?.unwrap_or_default();
    let Some(folder) = settings.environment().value("CREDENTIALS_DIRECTORY") else {
        let problem = format!(
            "{key} = {name}, but $CREDENTIALS_DIRECTORY is not set: systemd sets it for LoadCredential="
        );
        return Err(Error::NoKey { problem });
    };
    Ok(KekSource::Credential(Path::new(folder).join(name)))
}

/// The credential that is taken without being asked for.
const CREDENTIAL_NAME: &str = "sealmq.kek";

fn offered_by_systemd(settings: &Settings) -> Option<PathBuf> {
    let path = Path::new(settings.environment().value("CREDENTIALS_DIRECTORY")?).join(CREDENTIAL_NAME);
    path.exists().then_some(path)
}

// `at_rest.kek.command.1` is the program, `.2` and so on are its arguments.
fn command(settings: &Settings) -> Result<Option<Vec<String>>> {
    const PREFIX: &str = "at_rest.kek.command";
    let mut words = Vec::new();
    for (number, entry) in settings.below(PREFIX) {
        let text = settings.text_of(entry)?;
        let Ok(number) = number.parse::<u32>() else {
            return Err(invalid(
                entry,
                "at_rest.kek.command.1 (the program), .2 and so on (its arguments)",
                number,
            ));
        };
        if number == 1 && !Path::new(text.as_str()).is_absolute() {
            return Err(invalid(entry, "the absolute path of a program", &text));
        }
        words.push((number, text.to_string(), entry));
    }
    words.sort_by_key(|(number, ..)| *number);
    if let Some((_, (_, text, entry))) = (1..).zip(&words).find(|(wanted, (number, ..))| wanted != number) {
        return Err(invalid(entry, "numbers from 1 on without a gap", text));
    }
    let words: Vec<String> = words.into_iter().map(|(_, text, _)| text).collect();
    Ok(Some(words).filter(|words| !words.is_empty()))
}

// The value, the variable's name, and the rank of what named it.
fn value_from_environment(settings: &Settings) -> Result<Option<(Secret, String, u8)>> {
    let environment = settings.environment();
    let own =
        environment.value("SEALMQ_AT_REST_KEK").map(|value| (value, "SEALMQ_AT_REST_KEK".to_owned(), 2));
    let named = match settings.entry("at_rest.kek.env") {
        None => None,
        Some(entry) => {
            let name = settings.text_of(entry)?;
            let Some(value) = environment.value(&name) else {
                return Err(invalid(entry, "the name of an environment variable that is set", &name));
            };
            Some((value, name.to_string(), entry.origin.rank()))
        }
    };
    let strongest = [own, named].into_iter().flatten().max_by_key(|(_, _, rank)| *rank);
    Ok(strongest.map(|(value, name, rank)| (Secret::new(value.to_owned()), name, rank)))
}

fn outside(key: &Path, data_dir: &Path) -> Result<()> {
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let folder = key.parent().unwrap_or(key);
    if key.starts_with(data_dir) || real(folder).starts_with(real(data_dir)) {
        return Err(Error::KeyInsideData { key: key.to_owned(), data_dir: data_dir.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::environment::Environment;
    use super::super::raw_config::RawConfig;
    use super::super::settings::Notice;
    use super::*;

    struct Host {
        folder: tempfile::TempDir,
    }

    impl Host {
        fn new() -> Host {
            let folder = tempfile::tempdir().unwrap();
            std::fs::create_dir(folder.path().join("data")).unwrap();
            std::fs::create_dir(folder.path().join("secrets")).unwrap();
            Host { folder }
        }

        fn touch(&self, name: &str) {
            std::fs::write(self.folder.path().join(name), "x").unwrap();
        }

        // `ROOT` in the text and in the environment stands for the host's folder.
        fn read(&self, text: &str, environment: &[(&str, &str)]) -> Result<(AtRest, Vec<Notice>)> {
            let root = self.folder.path().display().to_string();
            let mut raw = RawConfig::default();
            let text = format!("at_rest.kek.generate_path = ROOT/made/at_rest_kek\n{text}");
            raw.parse(Path::new("/c"), &text.replace("ROOT", &root)).unwrap();
            let placed: Vec<_> = environment.iter().map(|(n, v)| (*n, v.replace("ROOT", &root))).collect();
            let placed: Vec<_> = placed.iter().map(|(n, v)| (*n, v.as_str())).collect();
            let environment = Environment::of(&placed);
            environment.overlay(&mut raw).unwrap();
            let mut settings = Settings::new(&raw, &environment);
            let resolved = read(&mut settings, &self.folder.path().join("data"))?;
            Ok((resolved.at_rest, settings.notices))
        }

        fn file(&self, name: &str) -> AtRest {
            AtRest::Sealed(KekSource::File(self.folder.path().join(name)))
        }

        fn generate(&self, name: &str) -> AtRest {
            AtRest::Sealed(KekSource::Generate { path: self.folder.path().join(name) })
        }
    }

    const FILE: &str = "at_rest.kek.file = ROOT/secrets/kek\n";

    #[test]
    fn an_existing_file_is_the_key() {
        let host = Host::new();
        host.touch("secrets/kek");
        assert_eq!(host.read(FILE, &[]).unwrap(), (host.file("secrets/kek"), vec![]));
        let by_environment = [("SEALMQ_AT_REST_KEK_FILE", "ROOT/secrets/kek")];
        assert_eq!(host.read("", &by_environment).unwrap().0, host.file("secrets/kek"));
    }

    #[test]
    fn a_configured_key_that_is_missing_is_made_only_when_asked_for() {
        let host = Host::new();
        let error = host.read(FILE, &[]).unwrap_err().to_string();
        assert!(
            error.contains("secrets/kek (/c:2) does not exist") && error.contains("sealmq-init"),
            "{error}"
        );
        let (at_rest, _) = host.read(&format!("{FILE}at_rest.kek.generate = true\n"), &[]).unwrap();
        assert_eq!(at_rest, host.generate("secrets/kek"));
    }

    #[test]
    fn without_any_key_a_new_one_is_made_loudly_and_found_again() {
        let host = Host::new();
        let (at_rest, notices) = host.read("", &[]).unwrap();
        assert_eq!(at_rest, host.generate("made/at_rest_kek"));
        assert!(
            matches!(&notices[..], [Notice::Warning(text)] if text.contains("KEEP IT SAFE")),
            "{notices:?}"
        );
        std::fs::create_dir(host.folder.path().join("made")).unwrap();
        host.touch("made/at_rest_kek");
        host.touch("data/SEALMQ_STORE");
        assert_eq!(host.read("", &[]).unwrap(), (host.file("made/at_rest_kek"), vec![]));
        let never = host.read("at_rest.kek.generate = false\n", &[]).unwrap().0;
        assert_eq!(never, host.file("made/at_rest_kek"));
    }

    #[test]
    fn never_makes_a_key_beside_an_existing_store() {
        let host = Host::new();
        host.touch("data/SEALMQ_STORE");
        for text in ["", "at_rest.kek.generate = true\n", FILE] {
            assert!(matches!(host.read(text, &[]), Err(Error::KeyMissing { .. })), "{text}");
        }
    }

    #[test]
    fn generation_can_be_forbidden() {
        let error = Host::new().read("at_rest.kek.generate = false\n", &[]).unwrap_err();
        assert!(matches!(error, Error::NoKey { .. }));
    }

    #[test]
    fn refuses_a_key_inside_the_data_directory() {
        let host = Host::new();
        host.touch("data/kek");
        std::os::unix::fs::symlink(host.folder.path().join("data"), host.folder.path().join("link")).unwrap();
        for text in ["at_rest.kek.file = ROOT/data/kek\n", "at_rest.kek.file = ROOT/link/kek\n"] {
            assert!(matches!(host.read(text, &[]), Err(Error::KeyInsideData { .. })), "{text}");
        }
    }

    #[test]
    fn a_value_from_the_environment_outranks_the_file_and_equals_are_refused() {
        let host = Host::new();
        host.touch("secrets/kek");
        let value = AtRest::Sealed(KekSource::Value(Secret::new("00ff".into())));
        let own = ("SEALMQ_AT_REST_KEK", "00ff");
        assert_eq!(host.read(FILE, &[own]).unwrap().0, value);
        assert_eq!(host.read("at_rest.kek.env = K\n", &[("K", "00ff")]).unwrap().0, value);
        let both = [own, ("SEALMQ_AT_REST_KEK_FILE", "ROOT/secrets/kek")];
        assert!(matches!(host.read("", &both), Err(Error::Ambiguous { .. })));
        let named = format!("{FILE}at_rest.kek.env = K\n");
        assert!(matches!(host.read(&named, &[("K", "00ff")]), Err(Error::Ambiguous { .. })));
        assert!(matches!(host.read("at_rest.kek.env = K\n", &[]), Err(Error::InvalidValue { .. })));
    }

    #[test]
    fn the_anchors_place_is_an_absolute_path_in_either_mode() {
        let read = |text: &str| {
            let mut raw = RawConfig::default();
            let text = format!("at_rest.kek.generate_path = /nowhere/made\n{text}");
            raw.parse(Path::new("/c"), &text).unwrap();
            let environment = Environment::default();
            let mut settings = Settings::new(&raw, &environment);
            read(&mut settings, Path::new("/nowhere/data")).map(|resolved| resolved.anchor)
        };
        assert_eq!(read("").unwrap(), None);
        let place = Some(PathBuf::from("/other/disk/anchor"));
        assert_eq!(read("at_rest.anchor.path = /other/disk/anchor\n").unwrap(), place);
        let plain = "at_rest.mode = plain-insecure\nat_rest.anchor.path = /other/disk/anchor\n";
        assert_eq!(read(plain).unwrap(), place);
        assert!(read("at_rest.anchor.path = anchor\n").is_err());
    }

    #[test]
    fn there_is_one_source_whatever_its_kind() {
        let host = Host::new();
        host.touch("secrets/kek");
        let words = ["/bin/vault-read".to_owned(), "kek".to_owned(), "-raw".to_owned()];
        let command = "at_rest.kek.command.2 = kek\nat_rest.kek.command.1 = /bin/vault-read\nat_rest.kek.command.3 = -raw\n";
        for (text, wanted) in [
            ("at_rest.kek.fd = 3\n", KekSource::Descriptor(3)),
            ("at_rest.kek.passphrase_fd = 4\n", KekSource::PassphraseDescriptor(4)),
            ("at_rest.kek.passphrase_prompt = true\n", KekSource::PassphrasePrompt),
            (
                "at_rest.kek.passphrase_file = ROOT/secrets/p\n",
                KekSource::PassphraseFile(host.folder.path().join("secrets/p")),
            ),
            (command, KekSource::Command(words.to_vec())),
            ("at_rest.kek.credential = c\n", KekSource::Credential("/run/credentials/c".into())),
        ] {
            let environment = [("CREDENTIALS_DIRECTORY", "/run/credentials")];
            assert_eq!(host.read(text, &environment).unwrap(), (AtRest::Sealed(wanted), vec![]), "{text}");
            for other in [FILE, "at_rest.kek.fd = 9\n", command] {
                if !text.starts_with(&other[..15]) {
                    let both = host.read(&format!("{text}{other}"), &environment);
                    assert!(matches!(both, Err(Error::Ambiguous { .. })), "{text}{other}");
                }
            }
        }
        // What outranks the file is not ambiguous: somebody insists.
        let own = [("SEALMQ_AT_REST_KEK", "00ff")];
        let value = AtRest::Sealed(KekSource::Value(Secret::new("00ff".into())));
        assert_eq!(host.read("at_rest.kek.fd = 3\n", &own).unwrap().0, value);
    }

    #[test]
    fn sources_that_cannot_be_are_refused() {
        for text in [
            "at_rest.kek.fd = 2\n",
            "at_rest.kek.fd = stdin\n",
            "at_rest.kek.passphrase_fd = -1\n",
            "at_rest.kek.passphrase_file = relative\n",
            "at_rest.kek.command.1 = relative\n",
            "at_rest.kek.command.2 = x\n",
            "at_rest.kek.command.1 = /bin/x\nat_rest.kek.command.3 = x\n",
            "at_rest.kek.command.first = /bin/x\n",
        ] {
            assert!(matches!(Host::new().read(text, &[]), Err(Error::InvalidValue { .. })), "{text}");
        }
        let inside = "at_rest.kek.passphrase_file = ROOT/data/p\n";
        assert!(matches!(Host::new().read(inside, &[]), Err(Error::KeyInsideData { .. })));
        let error = Host::new().read("at_rest.kek.credential = c\n", &[]).unwrap_err().to_string();
        assert!(error.starts_with("E_KEK_UNAVAILABLE") && error.contains("LoadCredential="), "{error}");
        let climbing =
            Host::new().read("at_rest.kek.credential = ../c\n", &[("CREDENTIALS_DIRECTORY", "/c")]);
        assert!(matches!(climbing, Err(Error::InvalidValue { .. })));
    }

    #[test]
    fn systemds_credential_is_found_when_nothing_else_is_set() {
        let host = Host::new();
        host.touch("secrets/sealmq.kek");
        host.touch("secrets/kek");
        let systemd = [("CREDENTIALS_DIRECTORY", "ROOT/secrets")];
        let credential = AtRest::Sealed(KekSource::Credential(host.folder.path().join("secrets/sealmq.kek")));
        assert_eq!(host.read("", &systemd).unwrap(), (credential, vec![]));
        assert_eq!(host.read(FILE, &systemd).unwrap().0, host.file("secrets/kek"));
    }

    #[test]
    fn plain_mode_needs_no_key_and_says_so() {
        let (at_rest, notices) = Host::new().read("at_rest.mode = plain-insecure\n", &[]).unwrap();
        assert_eq!(at_rest, AtRest::PlainInsecure);
        assert!(matches!(&notices[..], [Notice::Warning(text)] if text.contains("NOTHING")), "{notices:?}");
        assert!(Host::new().read("at_rest.mode = plain\n", &[]).is_err());
    }
}
