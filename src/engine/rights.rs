//! Rights: what a user may configure, write and read in the virtual host, as regular expressions on names, and
//! the texts of refusals (RabbitMQ's documentation, "Access Control"). Who has which is kept in access.rs.

use std::collections::HashSet;
use std::sync::Arc;

use regex::bytes::{Regex, RegexBuilder};

use crate::amqp::reply_code::ReplyCode;
use crate::broker::fault::Fault;
use crate::broker::name::{Resource, ResourceKind};
use crate::limits::{PERMISSION_REGEX_BYTES_MAX, WRITABLE_EXCHANGES_MAX};

/// Regular expressions on the names of queues and exchanges, not anchored; an empty one fits no name. They are
/// matched in linear time, so there is neither look-around nor back-reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permissions {
    /// declare and delete
    pub configure: String,
    /// publish to, bind as destination
    pub write: String,
    /// consume, get, purge, bind as source
    pub read: String,
}

impl Permissions {
    /// `.*` each.
    pub fn all() -> Permissions {
        let all = || ".*".to_owned();
        Permissions { configure: all(), write: all(), read: all() }
    }

    /// Whether that expression can be used.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_pattern(pattern: &str) -> Result<(), String> {
        Pattern::compile(pattern).map(drop)
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Right {
    Configure,
    Write,
    Read,
}

impl Right {
    fn name(self) -> &'static str {
        match self {
            Right::Configure => "configure",
            Right::Write => "write",
            Right::Read => "read",
        }
    }
}

/// One expression. The two that nearly all users have cost no search.
#[derive(Debug)]
enum Pattern {
    All,
    Nothing,
    Regex(Regex),
}

impl Pattern {
    fn compile(pattern: &str) -> Result<Pattern, String> {
        match pattern {
            ".*" => Ok(Pattern::All),
            // No resource has an empty name.
            "" | "^$" => Ok(Pattern::Nothing),
            // Names are bytes, and so RabbitMQ matches them.
            other => RegexBuilder::new(other)
                .unicode(false)
                .size_limit(PERMISSION_REGEX_BYTES_MAX)
                .build()
                .map(Pattern::Regex)
                .map_err(|e| e.to_string()),
        }
    }

    fn fits(&self, name: &[u8]) -> bool {
        match self {
            Pattern::All => true,
            Pattern::Nothing => false,
            Pattern::Regex(regex) => regex.is_match(name),
        }
    }
}

/// A user's permissions in the virtual host, ready for use.
#[derive(Debug)]
pub(super) struct Rights {
    configure: Pattern,
    write: Pattern,
    read: Pattern,
}

impl Rights {
    pub fn compile(permissions: &Permissions) -> Result<Rights, String> {
        Ok(Rights {
            configure: Pattern::compile(&permissions.configure)?,
            write: Pattern::compile(&permissions.write)?,
            read: Pattern::compile(&permissions.read)?,
        })
    }

    pub fn none() -> Rights {
        Rights { configure: Pattern::Nothing, write: Pattern::Nothing, read: Pattern::Nothing }
    }

    fn has(&self, right: Right, resource: Resource<'_>) -> bool {
        let name = match (resource.kind, resource.name) {
            (ResourceKind::Exchange, b"") => DEFAULT_EXCHANGE,
            (_, name) => name,
        };
        match right {
            Right::Configure => self.configure.fits(name),
            Right::Write => self.write.fits(name),
            Right::Read => self.read.fits(name),
        }
    }
}

/// What the default exchange, which has no name, is called where rights are concerned.
const DEFAULT_EXCHANGE: &[u8] = b"amq.default";

/// The rights that one connection acts with; nothing may be done before a user has come in.
pub(super) struct Permit {
    pub user: String,
    pub rights: Arc<Rights>,
    /// the version of the users that they were read at; see `Users::version`
    pub version: u64,
    /// exchanges that these rights were found to let it write to: no search for each message
    writable: HashSet<Vec<u8>>,
}

impl Permit {
    pub fn new(user: String, rights: Arc<Rights>, version: u64) -> Permit {
        Permit { user, rights, version, writable: HashSet::new() }
    }

    pub fn nobody() -> Permit {
        Permit::new(String::new(), Arc::new(Rights::none()), 0)
    }

    /// 403, in RabbitMQ's words, without that right.
    pub fn check(&self, right: Right, resource: Resource<'_>) -> Result<(), Fault> {
        match self.rights.has(right, resource) {
            true => Ok(()),
            false => Err(self.refusal(right, resource)),
        }
    }

    /// To look at something any right will do, so that nobody finds out what there is that is not theirs.
    pub fn check_any(&self, resource: Resource<'_>) -> Result<(), Fault> {
        let rights = [Right::Configure, Right::Write, Right::Read];
        match rights.into_iter().any(|right| self.rights.has(right, resource)) {
            true => Ok(()),
            false => Err(self.refusal(Right::Configure, resource)),
        }
    }

    /// The right to publish to that exchange.
    pub fn check_publish(&mut self, exchange: &[u8], vhost: &str) -> Result<(), Fault> {
        if matches!(self.rights.write, Pattern::All) || self.writable.contains(exchange) {
            return Ok(());
        }
        self.check(Right::Write, Resource::exchange(exchange, vhost))?;
        if self.writable.len() >= WRITABLE_EXCHANGES_MAX {
            self.writable.clear();
        }
        self.writable.insert(exchange.to_vec());
        Ok(())
    }

    fn refusal(&self, right: Right, resource: Resource<'_>) -> Fault {
        let shown = match (resource.kind, resource.name) {
            (ResourceKind::Exchange, b"") => Resource { name: DEFAULT_EXCHANGE, ..resource },
            (_, _) => resource,
        };
        let text = format!("{} access to {shown} refused for user '{}'", right.name(), self.user);
        Fault::new(ReplyCode::AccessRefused, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(pattern: &str, name: &[u8]) -> bool {
        Pattern::compile(pattern).unwrap().fits(name)
    }

    #[test]
    fn expressions_are_not_anchored() {
        assert!(fits("orders", b"daily-orders-1") && !fits("^orders", b"daily-orders"));
        assert!(fits("^(a|b)$", b"b") && !fits("^(a|b)$", b"ab"));
    }

    #[test]
    fn an_empty_expression_fits_nothing_and_dot_star_everything() {
        for name in [&b"q"[..], b"", b"\xff\n"] {
            assert!(fits(".*", name) && !fits("", name));
        }
        assert!(!fits("^$", b"q"));
    }

    #[test]
    fn names_that_are_no_text_are_matched_byte_by_byte() {
        assert!(fits("^a.b$", b"a\xffb") && fits("\u{e9}", "caf\u{e9}".as_bytes()));
    }

    #[test]
    fn what_cannot_be_matched_in_linear_time_or_little_memory_is_refused() {
        for pattern in ["(", r"(a)\1", "(?=a)", "((a{999}){999}){999}"] {
            assert!(Permissions::check_pattern(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn what_was_found_writable_is_forgotten_rather_than_kept_without_bound() {
        let permissions = Permissions { write: "^x".to_owned(), ..Permissions::all() };
        let rights = Rights::compile(&permissions).unwrap();
        let mut permit = Permit::new("me".to_owned(), Arc::new(rights), 0);
        for number in 0..3 * WRITABLE_EXCHANGES_MAX {
            permit.check_publish(format!("x{number}").as_bytes(), "/").unwrap();
            assert!(permit.writable.len() <= WRITABLE_EXCHANGES_MAX);
        }
        let refused = permit.check_publish(b"", "/").unwrap_err().reply_text();
        let text = "write access to exchange 'amq.default' in vhost '/' refused for user 'me'";
        assert_eq!(refused, format!("ACCESS_REFUSED - {text}"));
    }
}
