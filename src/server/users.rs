//! Who may log in according to configuration: the administrator, further `default_users`, who is bound to loopback,
//! and which SASL mechanisms are offered. Passwords are carried, not checked or hashed.

use std::path::{Path, PathBuf};

use regex::Regex;

use super::environment::read_secret;
use super::error::{Error, Result};
use super::secret::Secret;
use super::settings::Settings;
use crate::engine::Permissions;

/// The administrator's name when only a password was provided.
const ADMINISTRATOR_DEFAULT: &str = "admin";

/// The file that `sealmq-init` puts beside the key.
const ADMINISTRATOR_FILE: &str = "admin_password";

/// A user from configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The name.
    pub name: String,
    /// The password, in clear until the engine has hashed it.
    pub password: Secret,
    /// `administrator`, `monitoring` and so on.
    pub tags: Vec<String>,
    /// A regular expression on the names of virtual hosts that the permissions are for; `None` is all of them.
    pub vhost_pattern: Option<String>,
    /// What it may do there.
    pub permissions: Permissions,
}

impl User {
    /// What it may do in that virtual host, if it may enter.
    pub fn permissions_in(&self, vhost: &str) -> Option<&Permissions> {
        let fits = |pattern: &String| Regex::new(pattern).is_ok_and(|regex| regex.is_match(vhost));
        self.vhost_pattern.as_ref().is_none_or(fits).then_some(&self.permissions)
    }
}

/// A SASL mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// RFC 4616.
    Plain,
    /// AMQP 0-8's, still asked for by old clients.
    AmqPlain,
    /// The client certificate names the user (RFC 4422 appendix A).
    External,
}

/// `default_*`, `default_users.*`: the administrator first. `secrets` is the folder that the key lies in.
pub fn read_users(settings: &Settings, secrets: Option<&Path>) -> Result<Vec<User>> {
    let mut tags = Vec::new();
    for (tag, entry) in settings.below("default_user_tags") {
        if settings.parse_of(entry, "true or false", super::values::boolean)? {
            tags.push(tag.to_owned());
        }
    }
    if tags.is_empty() {
        tags.push("administrator".into());
    }
    let permission = |which: &str| pattern(settings, &[&format!("default_permissions.{which}")]);
    let administrator = User {
        name: settings.text("default_user")?.unwrap_or_else(|| ADMINISTRATOR_DEFAULT.into()),
        password: administrator_password(settings, secrets)?,
        tags,
        vhost_pattern: None,
        permissions: Permissions {
            configure: permission("configure")?,
            write: permission("write")?,
            read: permission("read")?,
        },
    };
    let mut users = vec![administrator];
    for name in further_names(settings)? {
        users.push(further_user(settings, &name)?);
    }
    Ok(users)
}

fn administrator_password(settings: &Settings, secrets: Option<&Path>) -> Result<Secret> {
    let direct = settings.origin("default_pass").rank();
    let by_file = settings.origin("default_pass_file").rank();
    if direct > 0 && direct == by_file {
        return Err(Error::Ambiguous { one: "default_pass".into(), other: "default_pass_file".into() });
    }
    if direct > by_file
        && let Some(password) = settings.secret("default_pass")?
    {
        return Ok(password);
    }
    if let Some(path) = settings.path("default_pass_file")? {
        return read_secret("default_pass_file", &path);
    }
    let looked: Option<PathBuf> = secrets.map(|folder| folder.join(ADMINISTRATOR_FILE));
    match &looked {
        Some(path) if path.exists() => read_secret("administrator password", path),
        _ => Err(Error::NoAdministrator { looked }),
    }
}

// A user's name may hold dots; the field is the last segment.
fn further_names(settings: &Settings) -> Result<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    for (rest, entry) in settings.below("default_users") {
        let name = rest.rsplit_once('.').filter(|(_, field)| FIELDS.contains(field)).map(|(name, _)| name);
        let Some(name) = name else {
            let expected = format!("default_users.NAME.FIELD with a FIELD of {}", FIELDS.join(", "));
            return Err(super::settings::invalid(entry, &expected, rest));
        };
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

// RabbitMQ's documentation has had the permissions under both names.
const FIELDS: &[&str] = &[
    "password",
    "vhost_pattern",
    "tags",
    "configure",
    "write",
    "read",
    "configure_pattern",
    "write_pattern",
    "read_pattern",
];

/// A permission under the first of its keys that was set; everything where none was.
fn pattern(settings: &Settings, keys: &[&str]) -> Result<String> {
    for key in keys {
        let Some(entry) = settings.entry(key) else { continue };
        let written = settings.text_of(entry)?;
        return match Permissions::check_pattern(&written) {
            Ok(()) => Ok(written.to_string()),
            Err(_) => Err(super::settings::invalid(entry, PATTERN_EXPECTED, &written)),
        };
    }
    Ok(".*".into())
}

const PATTERN_EXPECTED: &str = "a regular expression without look-around and back-references";

fn further_user(settings: &Settings, name: &str) -> Result<User> {
    let key = |field: &str| format!("default_users.{name}.{field}");
    let text = |field: &str, default: &str| {
        settings.text(&key(field)).map(|value| value.unwrap_or_else(|| default.into()))
    };
    let Some(password) = settings.secret(&key("password"))? else {
        let first = settings.below("default_users").into_iter().find(|(rest, _)| rest.starts_with(name));
        let origin = first.map(|(_, e)| e.origin.clone()).unwrap_or(super::raw_config::Origin::Default);
        let expected = "a password for this user".into();
        return Err(Error::InvalidValue { key: key("password"), origin, expected, found: "none".into() });
    };
    let tags = text("tags", "")?;
    let valid_regex = |t: &str| Regex::new(t).is_ok().then(|| t.to_owned());
    let permission = |which: &str| pattern(settings, &[&key(which), &key(&format!("{which}_pattern"))]);
    Ok(User {
        name: name.to_owned(),
        password,
        tags: tags.split([',', ' ']).filter(|t| !t.is_empty()).map(str::to_owned).collect(),
        vhost_pattern: settings.parse(&key("vhost_pattern"), PATTERN_EXPECTED, valid_regex)?,
        permissions: Permissions {
            configure: permission("configure")?,
            write: permission("write")?,
            read: permission("read")?,
        },
    })
}

/// `loopback_users`: who may connect only from this host. `guest` unless lifted.
pub fn read_loopback_users(settings: &Settings) -> Result<Vec<String>> {
    if let Some(entry) = settings.entry("loopback_users") {
        settings.parse_of(entry, "none, or loopback_users.NAME = true | false", |t| {
            (t == "none").then_some(())
        })?;
        return Ok(Vec::new());
    }
    let mut users = vec!["guest".to_owned()];
    for (name, entry) in settings.below("loopback_users") {
        let bound = settings.parse_of(entry, "true or false", super::values::boolean)?;
        users.retain(|known| known != name);
        if bound {
            users.push(name.to_owned());
        }
    }
    Ok(users)
}

/// `auth_mechanisms`; by default PLAIN and AMQPLAIN, and EXTERNAL where client certificates are asked for.
pub fn read_mechanisms(settings: &mut Settings, certificates: bool) -> Result<Vec<Mechanism>> {
    let written = settings.below("auth_mechanisms");
    if written.is_empty() {
        let mut offered = vec![Mechanism::Plain, Mechanism::AmqPlain];
        if certificates {
            offered.push(Mechanism::External);
        }
        return Ok(offered);
    }
    let mut offered = Vec::new();
    for (_, entry) in &written {
        let mechanism = settings.parse_of(entry, "PLAIN, AMQPLAIN or EXTERNAL", |t| match t {
            "PLAIN" => Some(Some(Mechanism::Plain)),
            "AMQPLAIN" => Some(Some(Mechanism::AmqPlain)),
            "EXTERNAL" => Some(Some(Mechanism::External)),
            "ANONYMOUS" | "RABBIT-CR-DEMO" => Some(None),
            _ => None,
        })?;
        match mechanism {
            Some(mechanism) if !offered.contains(&mechanism) => offered.push(mechanism),
            Some(_) => {}
            None => settings.warn(format!("{}: {} is not offered here", entry.origin, entry.value.as_str())),
        }
    }
    if offered.contains(&Mechanism::External) && !certificates {
        settings
            .warn("EXTERNAL is offered, but no client certificate is asked for (ssl_options.verify)".into());
    }
    match (offered.is_empty(), written.last()) {
        (true, Some((_, entry))) => {
            Err(super::settings::invalid(entry, "PLAIN, AMQPLAIN or EXTERNAL among them", &entry.value))
        }
        _ => Ok(offered),
    }
}

#[cfg(test)]
mod tests {
    use super::super::environment::Environment;
    use super::super::raw_config::{Origin, RawConfig};
    use super::*;

    fn raw(text: &str) -> RawConfig {
        let mut raw = RawConfig::default();
        raw.parse(Path::new("/c"), text).unwrap();
        raw
    }

    fn users(text: &str, secrets: Option<&Path>) -> Result<Vec<User>> {
        read_users(&Settings::new(&raw(text), &Environment::default()), secrets)
    }

    #[test]
    fn there_is_no_default_password() {
        assert!(matches!(users("", None), Err(Error::NoAdministrator { looked: None })));
        let folder = tempfile::tempdir().unwrap();
        let error = users("default_user = ada\n", Some(folder.path())).unwrap_err().to_string();
        assert!(error.contains("sealmq-init") && error.contains("admin_password"), "{error}");
    }

    #[test]
    fn the_password_beside_the_key_is_the_administrators() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("admin_password"), "s3cret\n").unwrap();
        let administrator = users("", Some(folder.path())).unwrap().remove(0);
        assert_eq!((administrator.name.as_str(), administrator.password.expose()), ("admin", "s3cret"));
        assert_eq!(administrator.tags, ["administrator"]);
        assert_eq!(administrator.permissions_in("/any"), Some(&Permissions::all()));
        let written =
            users("default_user = guest\ndefault_pass = guest\n", Some(folder.path())).unwrap().remove(0);
        assert_eq!((written.name.as_str(), written.password.expose()), ("guest", "guest"));
    }

    #[test]
    fn a_password_and_a_password_file_of_one_rank_are_refused_else_the_higher_wins() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p");
        std::fs::write(&path, "from file").unwrap();
        let text = format!("default_pass_file = {}\n", path.display());
        assert_eq!(users(&text, None).unwrap().remove(0).password.expose(), "from file");
        let both = format!("{text}default_pass = x\n");
        assert!(matches!(users(&both, None), Err(Error::Ambiguous { .. })));
        let mut raw = raw(&text);
        raw.set("default_pass".into(), "env".into(), Origin::Environment { variable: "X".into() });
        let found = read_users(&Settings::new(&raw, &Environment::default()), None).unwrap().remove(0);
        assert_eq!(found.password.expose(), "env");
    }

    #[test]
    fn further_users_come_with_tags_vhost_and_permissions() {
        let text = "default_pass = x\ndefault_users.bo\\.b.password = y\ndefault_users.bo\\.b.tags = monitoring, m2\n\
                    default_users.bo\\.b.configure = ^bob\ndefault_users.bo\\.b.write_pattern = ''\n\
                    default_users.bo\\.b.vhost_pattern = ^/v\n";
        let bob = users(text, None).unwrap().remove(1);
        assert_eq!((bob.name.as_str(), bob.password.expose()), ("bo.b", "y"));
        assert_eq!(bob.tags, ["monitoring", "m2"]);
        let p = bob.permissions_in("/v2").unwrap();
        assert_eq!((p.configure.as_str(), p.write.as_str(), p.read.as_str()), ("^bob", "", ".*"));
        assert_eq!(bob.permissions_in("/"), None);
        let error = users("default_pass = x\ndefault_users.bob.tags = t\n", None).unwrap_err().to_string();
        assert!(error.starts_with("default_users.bob.password (/c:2): expected a password"), "{error}");
        assert!(users("default_pass = x\ndefault_users.bob.colour = t\n", None).is_err());
    }

    #[test]
    fn a_permission_that_is_no_regular_expression_is_an_error_with_its_line() {
        for key in ["default_permissions.write", "default_users.b.read", "default_users.b.vhost_pattern"] {
            let text = format!("default_pass = x\ndefault_users.b.password = y\n{key} = '(?=a)('\n");
            let error = users(&text, None).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{key} (/c:3): expected a regular expression")), "{error}");
        }
    }

    #[test]
    fn guest_stays_on_loopback_until_lifted() {
        let read = |text: &str| read_loopback_users(&Settings::new(&raw(text), &Environment::default()));
        assert_eq!(read("").unwrap(), ["guest"]);
        assert_eq!(read("loopback_users.guest = false\n").unwrap(), [""; 0]);
        assert_eq!(read("loopback_users = none\n").unwrap(), [""; 0]);
        assert_eq!(read("loopback_users.bob = true\n").unwrap(), ["guest", "bob"]);
        assert!(read("loopback_users = guest\n").is_err());
    }

    #[test]
    fn external_is_offered_where_certificates_are_asked_for() {
        let read = |text: &str, certificates| {
            read_mechanisms(&mut Settings::new(&raw(text), &Environment::default()), certificates)
        };
        assert_eq!(read("", false).unwrap(), [Mechanism::Plain, Mechanism::AmqPlain]);
        assert_eq!(read("", true).unwrap().last(), Some(&Mechanism::External));
        let some = "auth_mechanisms.1 = EXTERNAL\nauth_mechanisms.2 = ANONYMOUS\n";
        assert_eq!(read(some, true).unwrap(), [Mechanism::External]);
        assert!(read("auth_mechanisms.1 = ANONYMOUS\n", true).is_err());
        assert!(read("auth_mechanisms.1 = CRAM-MD5\n", true).is_err());
    }
}
