//! Names that go into certificates and file names: what is accepted, and the defaults. No files, no keys.

use std::fmt;
use std::net::IpAddr;

use rustls_pki_types::DnsName;

use super::error::Error;

/// Longest common name (RFC 5280 appendix A.1, `ub-common-name`), in characters.
const COMMON_NAME_CHARS_MAX: usize = 64;

/// The names that every server certificate carries: the Compose service, and this host to itself.
const SANS_DEFAULT: [&str; 4] = ["broker", "localhost", "127.0.0.1", "::1"];

/// One subject alternative name (RFC 5280 section 4.2.1.6) of the two kinds that TLS clients check.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum San {
    /// A host name in lower case, possibly with a leading `*.`.
    Dns(String),
    /// An IPv4 or IPv6 address.
    Ip(IpAddr),
}

impl San {
    /// Reads a name as an operator types it. An address may stand in brackets, a name may end in a dot.
    pub fn parse(text: &str) -> Result<San, Error> {
        let bare = text.trim();
        let unbracketed = bare.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(bare);
        if let Ok(ip) = unbracketed.parse() {
            return Ok(San::Ip(ip));
        }
        let name = bare.strip_suffix('.').unwrap_or(bare).to_ascii_lowercase();
        match DnsName::try_from(name.strip_prefix("*.").unwrap_or(&name)) {
            Ok(_) => Ok(San::Dns(name)),
            Err(_) => Err(Error::Value {
                option: "--san",
                value: text.to_owned(),
                reason: "expected a host name (letters, digits, '-', '.', perhaps a leading '*.') or an IP address",
            }),
        }
    }
}

impl fmt::Display for San {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            San::Dns(name) => f.write_str(name),
            San::Ip(ip) => ip.fmt(f),
        }
    }
}

/// What the server certificate must carry: the operator's names first, then the defaults, then this host.
pub(super) fn wanted_sans(asked: &[String], host_name: Option<&str>) -> Result<Vec<San>, Error> {
    let mut sans = Vec::new();
    let host = host_name.filter(|name| !is_container_id(name)).and_then(|name| San::parse(name).ok());
    let asked = asked.iter().map(String::as_str).filter(|text| !text.trim().is_empty());
    for san in asked.chain(SANS_DEFAULT).map(San::parse).chain(host.map(Ok)) {
        let san = san?;
        if !sans.contains(&san) {
            sans.push(san);
        }
    }
    Ok(sans)
}

/// Docker and Podman name a container by its id unless told otherwise. Such a name changes at each
/// start, and nobody connects to it: as a required name it would cause a new certificate each time.
fn is_container_id(name: &str) -> bool {
    name.len() == 12 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The clients that get a pair of their own: `client` always, then the operator's, each once.
pub(super) fn wanted_clients(asked: &[String]) -> Result<Vec<String>, Error> {
    let mut clients = vec!["client".to_owned()];
    for name in asked {
        check_client(name)?;
        if !clients.contains(name) {
            clients.push(name.clone());
        }
    }
    Ok(clients)
}

/// A client's name becomes a file name and, as common name, a user name (EXTERNAL).
pub(super) fn check_client(name: &str) -> Result<(), Error> {
    let refuse = |reason| Err(Error::Value { option: "--client", value: name.to_owned(), reason });
    let plain = |c: char| c.is_ascii_alphanumeric() || "._@+-".contains(c);
    if name.is_empty() || name.len() > COMMON_NAME_CHARS_MAX {
        return refuse("expected 1 to 64 characters");
    }
    if name.starts_with(['.', '-']) || !name.chars().all(plain) {
        return refuse("expected letters, digits, '.', '_', '@', '+', '-', and no '.' or '-' at the start");
    }
    if matches!(name, "ca" | "server" | "truststore") {
        return refuse("the name is taken by another file of the folder");
    }
    Ok(())
}

/// This host's name as the Linux kernel has it; `None` elsewhere, or where there is none.
pub(super) fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?.trim().to_owned();
    (!name.is_empty() && name != "(none)").then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_and_addresses_as_operators_type_them() {
        for (text, expected) in [
            ("Broker.Example.", "broker.example"),
            (" localhost ", "localhost"),
            ("*.example.com", "*.example.com"),
            ("[::1]", "::1"),
            ("10.0.0.7", "10.0.0.7"),
            ("0:0:0:0:0:0:0:1", "::1"),
        ] {
            assert_eq!(San::parse(text).unwrap().to_string(), expected);
        }
    }

    #[test]
    fn refuses_what_no_client_could_match() {
        for text in ["", "a b", "https://broker", "broker:5671", "*.", "a..b", "*", "-x"] {
            let error = San::parse(text).unwrap_err().to_string();
            assert!(error.contains("--san"), "{text:?}: {error}");
        }
    }

    #[test]
    fn every_name_is_wanted_once_and_the_operators_come_first() {
        let asked = ["mq.example".to_owned(), "localhost".to_owned(), String::new()];
        let sans: Vec<_> = wanted_sans(&asked, Some("Lab7")).unwrap().iter().map(San::to_string).collect();
        assert_eq!(sans, ["mq.example", "localhost", "broker", "127.0.0.1", "::1", "lab7"]);
    }

    #[test]
    fn a_containers_id_is_no_host_name() {
        assert_eq!(wanted_sans(&[], Some("0123456789ab")).unwrap().len(), SANS_DEFAULT.len());
        assert_eq!(wanted_sans(&[], Some("0123456789ax")).unwrap().len(), SANS_DEFAULT.len() + 1);
    }

    #[test]
    fn refuses_a_client_name_that_would_leave_the_folder_or_hit_another_file() {
        for name in ["", "../x", "a/b", ".hidden", "-p", "ca", "server", "truststore", "a b", &"x".repeat(65)]
        {
            assert!(wanted_clients(&[name.to_owned()]).is_err(), "{name:?}");
        }
        let clients = wanted_clients(&["producer".into(), "client".into(), "a@b.example".into()]).unwrap();
        assert_eq!(clients, ["client", "producer", "a@b.example"]);
    }
}
