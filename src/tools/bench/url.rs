//! Which broker: `[NAME=]amqp[s]://[USER[:PASSWORD]@]HOST[:PORT][/VHOST]`, as AMQP's URI scheme of RabbitMQ's
//! documentation writes it, with percent-encoding. A password never leaves this type but for the log-in.

use std::fmt;

/// `amqp://` without a port.
const PORT_PLAIN: u16 = 5672;
/// `amqps://` without a port.
const PORT_TLS: u16 = 5671;

/// One broker to measure.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    /// What tables and plots call it: the name before the URL, else `HOST:PORT`.
    pub name: String,
    /// Whether the connection is TLS.
    pub is_tls: bool,
    /// A host's name or address, without brackets; the server's certificate must be made out to it.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The user.
    pub user: String,
    /// The password; `None` when the URL names a user without one.
    pub password: Option<String>,
    /// The virtual host.
    pub vhost: String,
}

impl Target {
    /// Reads a URL; the error is a sentence that does not repeat the URL, for there may be a password in it.
    pub fn parse(text: &str) -> Result<Target, String> {
        let (name, url) = split_name(text);
        let (scheme, rest) = url.split_once("://").ok_or("expected amqp://HOST or amqps://HOST")?;
        let is_tls = match scheme.to_ascii_lowercase().as_str() {
            "amqp" => false,
            "amqps" => true,
            other => return Err(format!("unknown scheme `{other}`: expected amqp or amqps")),
        };
        if rest.contains(['?', '#']) {
            return Err("a query or fragment means nothing here; write `?` and `#` as %3F and %23".into());
        }
        let (authority, path) = rest.split_once('/').map_or((rest, None), |(a, p)| (a, Some(p)));
        let (login, address) = authority.rsplit_once('@').map_or((None, authority), |(l, a)| (Some(l), a));
        let (host, port) = split_port(address, if is_tls { PORT_TLS } else { PORT_PLAIN })?;
        let (user, password) = match login {
            None => ("guest".to_owned(), Some("guest".to_owned())),
            Some(login) => match login.split_once(':') {
                Some((user, password)) => (decode(user)?, Some(decode(password)?)),
                None => (decode(login)?, None),
            },
        };
        let vhost = match path {
            None | Some("") => "/".to_owned(),
            Some(path) if path.contains('/') => {
                return Err("a `/` in the virtual host's name is written %2F".into());
            }
            Some(path) => decode(path)?,
        };
        if vhost.len() > 255 {
            return Err("a virtual host's name has at most 255 bytes".into());
        }
        let mut target = Target { name: String::new(), is_tls, host, port, user, password, vhost };
        target.name = name.map_or_else(|| target.address(), str::to_owned);
        Ok(target)
    }

    /// `HOST:PORT`, with brackets around an IPv6 address.
    pub fn address(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

/// The URL without user and password.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "amqps" } else { "amqp" };
        write!(f, "{scheme}://{}", self.address())?;
        if self.vhost != "/" {
            write!(f, "/{}", self.vhost.replace('%', "%25").replace('/', "%2F"))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={self}", self.name)
    }
}

/// A `=` behind the scheme belongs to the URL.
fn split_name(text: &str) -> (Option<&str>, &str) {
    match text.split_once('=') {
        Some((name, url)) if !name.is_empty() && !name.contains("://") => (Some(name), url),
        _ => (None, text),
    }
}

fn split_port(address: &str, default: u16) -> Result<(String, u16), String> {
    let (host, port) = match address.strip_prefix('[') {
        Some(rest) => {
            let (host, behind) = rest.split_once(']').ok_or("`[` without `]` in the host")?;
            let port = match behind {
                "" => None,
                behind => Some(behind.strip_prefix(':').ok_or("expected `:PORT` behind `]`")?),
            };
            (host.to_owned(), port)
        }
        None => match address.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err("an IPv6 address stands in brackets: [::1]".into());
            }
            Some((host, port)) => (decode(host)?, Some(port)),
            None => (decode(address)?, None),
        },
    };
    if host.is_empty() {
        return Err("the host is missing".into());
    }
    let port = match port {
        None | Some("") => default,
        Some(port) => {
            port.parse().ok().filter(|port| *port != 0).ok_or("the port is no number from 1 to 65535")?
        }
    };
    Ok((host, port))
}

fn decode(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digit = |byte: &u8| (*byte as char).to_digit(16);
        let [high, low, ..] = rest else { return Err("`%` without two hexadecimal digits".into()) };
        let (Some(high), Some(low)) = (digit(high), digit(low)) else {
            return Err("`%` without two hexadecimal digits".into());
        };
        bytes.push((high * 16 + low) as u8);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).map_err(|_| "what is percent-encoded is not UTF-8".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Target {
        Target::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn what_is_left_out_has_amqps_defaults() {
        let target = parse("amqps://localhost");
        assert_eq!((target.is_tls, target.host.as_str(), target.port), (true, "localhost", 5671));
        assert_eq!((target.user.as_str(), target.password.as_deref()), ("guest", Some("guest")));
        assert_eq!((target.vhost.as_str(), target.name.as_str()), ("/", "localhost:5671"));
        assert_eq!(parse("AMQP://h/").port, 5672);
        assert_eq!(parse("amqp://h:/").port, 5672);
    }

    #[test]
    fn everything_may_be_named_and_percent_encoded() {
        let target = parse("Rabbit 4=amqp://a%40b:p%3a%2f=s@[::1]:1234/%2Fmy%20host");
        assert_eq!((target.name.as_str(), target.host.as_str(), target.port), ("Rabbit 4", "::1", 1234));
        assert_eq!((target.user.as_str(), target.password.as_deref()), ("a@b", Some("p:/=s")));
        assert_eq!(target.vhost, "/my host");
        assert_eq!(parse("amqps://admin@h").password, None);
        assert_eq!(parse("amqp://u:a=b@h").name, "h:5672", "a `=` in the password starts no name");
    }

    #[test]
    fn what_is_shown_has_no_password() {
        let target = parse("x=amqps://user:secret@h/%2Fv");
        assert_eq!(format!("{target} {target:?}"), "amqps://h:5671/%2Fv x=amqps://h:5671/%2Fv");
    }

    #[test]
    fn a_wrong_url_is_refused_without_repeating_it() {
        for (text, wanted) in [
            ("localhost:5672", "expected amqp://"),
            ("http://u:secret@h", "unknown scheme `http`"),
            ("amqp://u:secret@", "host is missing"),
            ("amqp://u:secret@h:0", "port"),
            ("amqp://u:secret@h:99999", "port"),
            ("amqp://u:secret@::1", "brackets"),
            ("amqp://u:secret@[::1", "`[` without `]`"),
            ("amqp://u:secret%2@h", "hexadecimal"),
            ("amqp://u:secret%ff@h", "UTF-8"),
            ("amqp://u:secret@h/a/b", "%2F"),
            ("amqp://u:secret@h?heartbeat=5", "query"),
        ] {
            let error = Target::parse(text).err().unwrap_or_else(|| panic!("{text} was taken"));
            assert!(error.contains(wanted) && !error.contains("secret"), "{text}: {error}");
        }
    }
}
