//! How single values are read: booleans, sizes, addresses, levels. No key names and no defaults live here.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Host name or address; `None` is every interface.
    pub host: Option<String>,
    /// TCP port.
    pub port: u16,
}

impl Listen {
    /// Reads `5672`, `127.0.0.1:5672`, `[::1]:5672`, `:::5672` or `name:5672`, as RabbitMQ does.
    pub fn parse(text: &str) -> Option<Listen> {
        let Some((host, port)) = text.rsplit_once(':') else {
            return Some(Listen { host: None, port: port(text)? });
        };
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%');
        let fits = !host.is_empty() && host.chars().all(named);
        if !fits || (host.contains(':') && host.parse::<std::net::Ipv6Addr>().is_err()) {
            return None;
        }
        Some(Listen { host: Some(host.to_owned()), port: port_or_zero(port)? })
    }

    /// The socket addresses it stands for. Every interface gives `[::]` (which takes IPv4 as well where the system
    /// allows it), then `0.0.0.0` for a machine without IPv6: bind the first that works.
    pub fn socket_addresses(&self) -> io::Result<Vec<SocketAddr>> {
        match &self.host {
            Some(host) => Ok((host.as_str(), self.port).to_socket_addrs()?.collect()),
            None => {
                Ok(vec![SocketAddr::from(([0u16; 8], self.port)), SocketAddr::from(([0u8; 4], self.port))])
            }
        }
    }
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.host {
            Some(host) if host.contains(':') => write!(f, "[{host}]:{}", self.port),
            Some(host) => write!(f, "{host}:{}", self.port),
            None => write!(f, "[::]:{}", self.port),
        }
    }
}

fn port(text: &str) -> Option<u16> {
    port_or_zero(text).filter(|port| *port > 0)
}

// Port 0 with an address means "any free port", which tests and embedding programs use.
fn port_or_zero(text: &str) -> Option<u16> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// A limit that is a share of what the machine has, or a number of bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Watermark {
    /// A share of the machine's memory; 0.6 is 60 %.
    Relative(f64),
    /// Bytes.
    Absolute(u64),
}

impl Watermark {
    /// The limit in bytes on a machine with `total_bytes` of memory.
    pub fn bytes(self, total_bytes: u64) -> u64 {
        match self {
            Watermark::Relative(share) => (total_bytes as f64 * share) as u64,
            Watermark::Absolute(bytes) => bytes,
        }
    }
}

/// Reads `true`/`false` and the words that people write for them.
pub fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "on" | "yes" | "1" => Some(true),
        "false" | "off" | "no" | "0" => Some(false),
        _ => None,
    }
}

/// Reads a time: `90s`, `15m`, `24h`, `7d`, or a number of seconds; not zero, and ten years at most.
pub fn duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let seconds = match unit.trim_start() {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    let seconds = number.parse::<u64>().ok()?.checked_mul(seconds)?;
    (1..=10 * 365 * 86_400).contains(&seconds).then(|| Duration::from_secs(seconds))
}

/// Reads a number of bytes: `1024`, `50MB`, `2GiB`, `1G`. As RabbitMQ since 3.13 (and Kubernetes) reads them:
/// `k M G T P`, with or without `B`, are powers of 1000; `Ki Mi Gi Ti Pi`, with or without `B`, powers of 1024.
pub fn bytes(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let unit = unit.trim_start().to_ascii_lowercase();
    let unit = unit.strip_suffix('b').unwrap_or(&unit);
    let (letter, base) = match unit.strip_suffix('i') {
        Some(letter) => (letter, 1024u64),
        None => (unit, 1000u64),
    };
    let power = match letter {
        "" if base == 1000 => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return None,
    };
    number.checked_mul(base.checked_pow(power)?)
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Everything that is not payload.
    Debug,
    /// What an operator wants to know.
    Info,
    /// What may need attention.
    Warning,
    /// What does.
    Error,
    /// Nothing.
    Off,
}

impl LogLevel {
    /// Reads RabbitMQ's level names; `critical` and above are errors here, `notice` is information.
    pub fn parse(text: &str) -> Option<LogLevel> {
        match text {
            "debug" => Some(LogLevel::Debug),
            "info" | "notice" => Some(LogLevel::Info),
            "warning" | "warn" => Some(LogLevel::Warning),
            "error" | "critical" | "alert" | "emergency" => Some(LogLevel::Error),
            "none" => Some(LogLevel::Off),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_seconds_or_have_a_unit_and_an_end() {
        let seconds = |text| duration(text).map(|time| time.as_secs());
        assert_eq!(["90", "90s", "15m", "24 h", "7d"].map(seconds), [90, 90, 900, 86_400, 604_800].map(Some));
        assert_eq!(seconds("3650d"), Some(315_360_000));
        for wrong in ["", "s", "0", "0h", "-1", "1.5h", "1y", "3651d", "99999999999999999999d", "1 h 1"] {
            assert_eq!(seconds(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn reads_sizes_as_rabbitmq_does() {
        for (text, wanted) in [
            ("0", Some(0)),
            ("1024", Some(1024)),
            ("50MB", Some(50_000_000)),
            ("2GB", Some(2_000_000_000)),
            ("2G", Some(2_000_000_000)),
            ("2GiB", Some(2 << 30)),
            ("1ki", Some(1024)),
            ("3 kB", Some(3000)),
            ("1PiB", Some(1 << 50)),
            ("", None),
            ("GB", None),
            ("1.5GB", None),
            ("-1", None),
            ("1i", None),
            ("1XB", None),
            ("99999999PB", None),
        ] {
            assert_eq!(bytes(text), wanted, "{text}");
        }
    }

    #[test]
    fn reads_the_forms_of_an_address() {
        for (text, host, port) in [
            ("5672", None, 5672),
            ("127.0.0.1:5672", Some("127.0.0.1"), 5672),
            ("[::1]:5671", Some("::1"), 5671),
            (":::5672", Some("::"), 5672),
            ("localhost:0", Some("localhost"), 0),
        ] {
            let listen = Listen::parse(text).unwrap();
            assert_eq!((listen.host.as_deref(), listen.port), (host, port), "{text}");
        }
        for text in ["", "0", "70000", "+1", "a", ":5672", "a b:1", "1:2:5672", "127.0.0.1:", "h:-1"] {
            assert_eq!(Listen::parse(text), None, "{text}");
        }
    }

    #[test]
    fn every_interface_is_both_families() {
        let all = Listen::parse("5671").unwrap();
        let addresses: Vec<String> = all.socket_addresses().unwrap().iter().map(|a| a.to_string()).collect();
        assert_eq!(addresses, ["[::]:5671", "0.0.0.0:5671"]);
    }

    #[test]
    fn a_watermark_is_a_share_or_bytes() {
        assert_eq!(Watermark::Relative(0.5).bytes(1000), 500);
        assert_eq!(Watermark::Absolute(7).bytes(1000), 7);
    }
}
