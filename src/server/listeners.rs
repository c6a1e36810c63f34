//! Which ports are opened and how TLS is set: `listeners.*`, `ssl_options.*`, `TLS_ENABLE`. Certificates are named
//! here, not loaded.

use std::path::PathBuf;

use super::environment::TlsSwitch;
use super::error::{Error, Result};
use super::raw_config::{Entry, Origin};
use super::settings::{Settings, invalid};
use super::values::Listen;

const TCP_PORT_DEFAULT: u16 = 5672;
const SSL_PORT_DEFAULT: u16 = 5671;

/// The addresses to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listeners {
    /// Plain AMQP; empty unless somebody asked for it.
    pub tcp: Vec<Listen>,
    /// AMQPS.
    pub ssl: Vec<Listen>,
}

/// Whether clients are asked for a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerVerification {
    /// They are not (`verify_none`).
    None,
    /// They are; one that is shown must be signed by the CA (`verify_peer`).
    Optional,
    /// They are, and without one there is no connection (`verify_peer` and `fail_if_no_peer_cert`).
    Required,
}

/// A TLS version with AEAD suites.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersion {
    /// RFC 5246.
    Tls12,
    /// RFC 8446.
    Tls13,
}

/// Where EXTERNAL takes the user name from (`ssl_cert_login_from`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginFrom {
    /// The subject's common name.
    CommonName,
    /// The whole subject, as RFC 2253 writes it.
    DistinguishedName,
    /// The first DNS name among the subject alternative names.
    SubjectAlternativeName,
}

/// `ssl_options`, checked for consistency.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// PEM file with the CA certificates that client certificates must chain to.
    pub ca_file: Option<PathBuf>,
    /// PEM file with the server's certificate chain.
    pub cert_file: PathBuf,
    /// PEM file with the server's private key.
    pub key_file: PathBuf,
    /// Client certificates.
    pub verification: PeerVerification,
    /// Allowed versions, newest first; never empty.
    pub versions: Vec<TlsVersion>,
    /// The user name of EXTERNAL.
    pub login_from: LoginFrom,
}

/// Listeners and, where AMQPS is on, its settings.
pub fn read(settings: &mut Settings) -> Result<(Listeners, Option<Tls>)> {
    let switch = settings.environment().tls_switch()?;
    let tcp = addresses(settings, "listeners.tcp")?;
    let ssl = addresses(settings, "listeners.ssl")?;
    let certified = settings.entry("ssl_options.certfile").is_some();
    let tcp_is_asked_for = tcp.as_ref().is_some_and(|list| !list.is_empty());
    let every = |port| vec![Listen { host: None, port }];

    let listeners = match switch {
        TlsSwitch::Only => Listeners {
            tcp: Vec::new(),
            ssl: ssl.filter(|list| !list.is_empty()).unwrap_or_else(|| every(SSL_PORT_DEFAULT)),
        },
        TlsSwitch::PlainToo => Listeners {
            tcp: tcp.filter(|list| !list.is_empty()).unwrap_or_else(|| every(TCP_PORT_DEFAULT)),
            ssl: if certificate_is_there(settings)? {
                ssl.unwrap_or_else(|| every(SSL_PORT_DEFAULT))
            } else {
                settings.warn(
                    "TLS_ENABLE=0 and no certificate: plain AMQP only, nothing is encrypted in transit"
                        .into(),
                );
                Vec::new()
            },
        },
        TlsSwitch::AsConfigured => Listeners {
            // A file that names plain listeners and no certificate means what it means to RabbitMQ.
            ssl: ssl.unwrap_or_else(|| {
                if tcp_is_asked_for && !certified { Vec::new() } else { every(SSL_PORT_DEFAULT) }
            }),
            tcp: tcp.unwrap_or_default(),
        },
    };
    if listeners.tcp.is_empty() && listeners.ssl.is_empty() {
        return Err(Error::NoListener);
    }
    for listen in &listeners.tcp {
        settings.warn(format!("plain AMQP on {listen}: passwords and messages cross the network readable"));
    }
    let tls = if listeners.ssl.is_empty() { None } else { Some(read_tls(settings, switch)?) };
    Ok((listeners, tls))
}

// `None` when the file says nothing; an empty list when it says `none`.
fn addresses(settings: &Settings, key: &str) -> Result<Option<Vec<Listen>>> {
    if let Some(entry) = settings.entry(key) {
        settings.parse_of(entry, "none, or listeners with a name such as listeners.tcp.default", |t| {
            (t == "none").then_some(())
        })?;
        return Ok(Some(Vec::new()));
    }
    let mut found: Vec<Listen> = Vec::new();
    for (_, entry) in settings.below(key) {
        let listen = settings.parse_of(entry, "a port or address:port", Listen::parse)?;
        if !found.contains(&listen) {
            found.push(listen);
        }
    }
    Ok((!found.is_empty()).then_some(found))
}

fn certificate_is_there(settings: &Settings) -> Result<bool> {
    Ok(settings.path("ssl_options.certfile")?.is_some_and(|path| path.exists()))
}

fn read_tls(settings: &mut Settings, switch: TlsSwitch) -> Result<Tls> {
    let cause = match (settings.below("listeners.ssl").first(), switch) {
        (Some((_, entry)), _) => entry.origin.clone(),
        (None, TlsSwitch::Only) => Origin::Environment { variable: "TLS_ENABLE".into() },
        (None, _) => Origin::Default,
    };
    let ca_file = file(settings, "ssl_options.cacertfile")?;
    let require = |found: Option<PathBuf>, key: &'static str| {
        found.ok_or_else(|| Error::TlsIncomplete { key, origin: cause.clone() })
    };
    let cert_file = require(file(settings, "ssl_options.certfile")?, "ssl_options.certfile")?;
    let key_file = require(file(settings, "ssl_options.keyfile")?, "ssl_options.keyfile")?;
    let verification = verification(settings)?;
    if verification != PeerVerification::None && ca_file.is_none() {
        let origin = settings.origin("ssl_options.verify");
        return Err(Error::TlsIncomplete { key: "ssl_options.cacertfile", origin });
    }
    let login_from = settings.parse(
        "ssl_cert_login_from",
        "common_name, distinguished_name or subject_alternative_name",
        |t| match t {
            "common_name" => Some(LoginFrom::CommonName),
            "distinguished_name" => Some(LoginFrom::DistinguishedName),
            "subject_alternative_name" | "subject_alt_name" => Some(LoginFrom::SubjectAlternativeName),
            _ => None,
        },
    )?;
    Ok(Tls {
        ca_file,
        cert_file,
        key_file,
        verification,
        versions: versions(settings)?,
        login_from: login_from.unwrap_or(LoginFrom::CommonName),
    })
}

fn file(settings: &Settings, key: &str) -> Result<Option<PathBuf>> {
    let Some(path) = settings.path(key)? else { return Ok(None) };
    match settings.entry(key) {
        Some(entry) if !path.is_file() => {
            Err(invalid(entry, "a file that exists (`sealmq-init` makes one)", &path.to_string_lossy()))
        }
        _ => Ok(Some(path)),
    }
}

fn verification(settings: &Settings) -> Result<PeerVerification> {
    let peer = settings.parse("ssl_options.verify", "verify_peer or verify_none", |t| match t {
        "verify_peer" => Some(true),
        "verify_none" => Some(false),
        _ => None,
    })?;
    let required = settings.boolean("ssl_options.fail_if_no_peer_cert", false)?;
    match (peer.unwrap_or(false), required, settings.entry("ssl_options.fail_if_no_peer_cert")) {
        (true, true, _) => Ok(PeerVerification::Required),
        (true, false, _) => Ok(PeerVerification::Optional),
        (false, true, Some(entry)) => {
            Err(invalid(entry, "false, or ssl_options.verify = verify_peer beside it", "true"))
        }
        (false, _, _) => Ok(PeerVerification::None),
    }
}

fn versions(settings: &mut Settings) -> Result<Vec<TlsVersion>> {
    let mut found = Vec::new();
    let mut last: Option<&Entry> = None;
    for (_, entry) in settings.below("ssl_options.versions") {
        let version = settings.parse_of(entry, "tlsv1.3 or tlsv1.2", |t| match t {
            "tlsv1.3" => Some(Some(TlsVersion::Tls13)),
            "tlsv1.2" => Some(Some(TlsVersion::Tls12)),
            "tlsv1.1" | "tlsv1" => Some(None),
            _ => None,
        })?;
        match version {
            Some(version) => found.push(version),
            None => settings.warn(format!("{}: TLS below 1.2 is not offered", entry.origin)),
        }
        last = Some(entry);
    }
    match (found.is_empty(), last) {
        (true, Some(entry)) => Err(invalid(entry, "tlsv1.3 or tlsv1.2 among the versions", &entry.value)),
        (true, None) => Ok(vec![TlsVersion::Tls13, TlsVersion::Tls12]),
        (false, _) => {
            found.sort_by_key(|version| std::cmp::Reverse(*version as u8));
            found.dedup();
            Ok(found)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::environment::Environment;
    use super::super::raw_config::RawConfig;
    use super::*;

    // PEM marks the place of a file that exists.
    fn read_text(text: &str, environment: &[(&str, &str)]) -> Result<(Listeners, Option<Tls>)> {
        let pem = tempfile::NamedTempFile::new().unwrap();
        let mut raw = RawConfig::default();
        raw.parse(Path::new("/c"), &text.replace("PEM", &pem.path().display().to_string())).unwrap();
        let environment = Environment::of(environment);
        read(&mut Settings::new(&raw, &environment))
    }

    const CERTIFIED: &str =
        "ssl_options.cacertfile = PEM\nssl_options.certfile = PEM\nssl_options.keyfile = PEM\n";

    fn ports(text: &str, environment: &[(&str, &str)]) -> (Vec<u16>, Vec<u16>) {
        let (listeners, tls) = read_text(text, environment).unwrap();
        assert_eq!(tls.is_some(), !listeners.ssl.is_empty());
        let ports = |list: &[Listen]| list.iter().map(|l| l.port).collect();
        (ports(&listeners.tcp), ports(&listeners.ssl))
    }

    #[test]
    fn the_switch_and_the_file_decide_which_ports_open() {
        let lab = format!("{CERTIFIED}listeners.tcp.default = 5672\nlisteners.ssl.default = 5671\n");
        let tcp = "listeners.tcp.default = 1672\nlisteners.tcp.1 = 127.0.0.1:1673\n";
        let none = format!("{CERTIFIED}listeners.tcp.default = 5672\nlisteners.tcp = none\n");
        let only = [("TLS_ENABLE", "1")];
        let plain = [("TLS_ENABLE", "0")];
        for (text, environment, wanted) in [
            (CERTIFIED, &[][..], (vec![], vec![5671])),
            (&lab, &[], (vec![5672], vec![5671])),
            (&lab, &only, (vec![], vec![5671])),
            (&lab, &plain, (vec![5672], vec![5671])),
            (tcp, &[], (vec![1672, 1673], vec![])),
            (&none, &[], (vec![], vec![5671])),
            (&none, &plain, (vec![5672], vec![5671])),
            ("", &plain, (vec![5672], vec![])),
            ("ssl_options.certfile = /nowhere\n", &plain, (vec![5672], vec![])),
        ] {
            assert_eq!(ports(text, environment), wanted, "{text} {environment:?}");
        }
    }

    #[test]
    fn tls_without_a_certificate_is_refused_with_the_remedy() {
        let error = read_text("", &[]).unwrap_err().to_string();
        assert!(error.contains("ssl_options.certfile") && error.contains("sealmq-init"), "{error}");
        assert!(matches!(read_text("", &[("TLS_ENABLE", "1")]), Err(Error::TlsIncomplete { .. })));
        let missing = read_text("ssl_options.certfile = /nowhere/c.pem\n", &[]).unwrap_err().to_string();
        assert!(missing.starts_with("ssl_options.certfile (/c:1): expected a file that exists"), "{missing}");
    }

    #[test]
    fn no_listener_at_all_is_refused() {
        assert!(matches!(read_text("listeners.ssl = none\n", &[]), Err(Error::NoListener)));
    }

    #[test]
    fn client_certificates_are_asked_for_as_written() {
        let verification =
            |more: &str| read_text(&format!("{CERTIFIED}{more}"), &[]).map(|r| r.1.unwrap().verification);
        let peer = "ssl_options.verify = verify_peer\n";
        let fail = "ssl_options.fail_if_no_peer_cert = true\n";
        assert_eq!(verification("").unwrap(), PeerVerification::None);
        assert_eq!(verification(peer).unwrap(), PeerVerification::Optional);
        assert_eq!(verification(&format!("{peer}{fail}")).unwrap(), PeerVerification::Required);
        assert!(matches!(verification(fail), Err(Error::InvalidValue { .. })));
        let no_ca = format!("{peer}ssl_options.certfile = PEM\nssl_options.keyfile = PEM\n");
        assert!(matches!(read_text(&no_ca, &[]), Err(Error::TlsIncomplete { .. })));
    }

    #[test]
    fn old_tls_versions_are_never_offered() {
        let versions =
            |more: &str| read_text(&format!("{CERTIFIED}{more}"), &[]).map(|r| r.1.unwrap().versions);
        assert_eq!(versions("").unwrap(), [TlsVersion::Tls13, TlsVersion::Tls12]);
        let mixed = "ssl_options.versions.1 = tlsv1.1\nssl_options.versions.2 = tlsv1.2\n";
        assert_eq!(versions(mixed).unwrap(), [TlsVersion::Tls12]);
        assert!(versions("ssl_options.versions.1 = tlsv1\n").is_err());
        assert!(versions("ssl_options.versions.1 = sslv3\n").is_err());
    }
}
