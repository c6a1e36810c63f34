//! From the protocol header to connection.open-ok (AMQP 0-9-1 section 2.2.4). Passwords are checked
//! elsewhere, for that takes milliseconds: the session says whom to check ([`Login`]) and is told.

use crate::amqp::field_table::{Table, TableWriter, Value};
use crate::amqp::frame::{self, PROTOCOL_HEADER};
use crate::amqp::method::Method;
use crate::amqp::reply_code::ReplyCode;
use crate::broker::fault::{Fault, lossy};
use crate::limits;

use super::connection::{Phase, Session, unexpected_in_state};
use super::port::{Broker, Login, LoginRefused, Mechanism};

/// What the broker calls itself in connection.start; clients choose behaviour by it (kombu, for one).
#[derive(Clone, Debug)]
pub struct Identity {
    /// `RabbitMQ` by default
    pub product: String,
    /// a version that clients can compare, `4.0.5` by default
    pub version: String,
    /// the cluster's name
    pub cluster_name: String,
}

/// What a session is told by the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// who we say we are
    pub identity: Identity,
    /// SASL mechanisms in the order offered
    pub mechanisms: Vec<Mechanism>,
    /// bytes, framing included; 0 is no limit
    pub frame_size_bytes_max: u32,
    /// bytes, before tune-ok
    pub initial_frame_size_bytes_max: u32,
    /// channels, 0 is no limit
    pub channel_max: u16,
    /// seconds, 0 is none
    pub heartbeat_seconds: u16,
    /// body bytes
    pub message_bytes_max: u64,
    /// milliseconds that a delivery may wait for its acknowledgement, where queue and consumer say nothing; 0 for ever
    pub delivery_timeout_ms: u64,
}

/// Who is at the other end, as the transport knows it.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// the peer's address is a loopback address
    pub is_loopback: bool,
    /// the name that a verified client certificate gives, for EXTERNAL
    pub certificate_name: Option<String>,
}

/// What the client can do, from its properties.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Capabilities {
    pub authentication_failure_close: bool,
    pub consumer_cancel_notify: bool,
    pub connection_blocked: bool,
}

impl Capabilities {
    fn of(properties: Table<'_>) -> Capabilities {
        let Some(Value::Table(caps)) = properties.find(b"capabilities") else {
            return Capabilities::default();
        };
        let has = |name: &[u8]| caps.find(name) == Some(Value::Bool(true));
        Capabilities {
            authentication_failure_close: has(b"authentication_failure_close"),
            consumer_cancel_notify: has(b"consumer_cancel_notify"),
            connection_blocked: has(b"connection.blocked"),
        }
    }
}

impl<B: Broker> Session<B> {
    /// The protocol header, once eight bytes are there: the right one is answered with
    /// connection.start, any other with ours and the end of the connection.
    pub(super) fn handle_header(&mut self, bytes: &[u8]) -> Option<usize> {
        let header = bytes.first_chunk::<8>();
        let may_become_right = PROTOCOL_HEADER.starts_with(bytes) && bytes.len() < 8;
        match header {
            None if may_become_right => None,
            // 0-9 clients write their version differently and speak the same protocol.
            Some(h) if h == PROTOCOL_HEADER || h == b"AMQP\x01\x01\x00\x09" => {
                self.write_start();
                self.phase = Phase::StartOk;
                Some(8)
            }
            Some(_) | None => {
                self.out.frames.extend_from_slice(PROTOCOL_HEADER);
                self.bad_header = Some(describe_header(bytes));
                self.phase = Phase::Closed;
                Some(bytes.len())
            }
        }
    }

    fn write_start(&mut self) {
        let capabilities = [
            "publisher_confirms",
            "exchange_exchange_bindings",
            "basic.nack",
            "consumer_cancel_notify",
            "connection.blocked",
            "consumer_priorities",
            "authentication_failure_close",
            "per_consumer_qos",
            "direct_reply_to",
        ]
        .iter()
        .fold(TableWriter::new(), |table, name| table.entry(name, Value::Bool(true)));
        let identity = &self.settings.identity;
        let properties = TableWriter::new()
            .entry("capabilities", Value::Table(capabilities.as_table()))
            .entry("cluster_name", Value::LongStr(identity.cluster_name.as_bytes()))
            .entry("copyright", Value::LongStr(b"The SealMQ authors"))
            .entry("information", Value::LongStr(b"Licensed under Apache 2.0"))
            .entry("platform", Value::LongStr(b"SealMQ"))
            .entry("product", Value::LongStr(identity.product.as_bytes()))
            .entry("version", Value::LongStr(identity.version.as_bytes()));
        let offered = self.offered_mechanisms();
        let names = offered.iter().map(|m| m.name()).collect::<Vec<_>>().join(" ");
        let start = Method::ConnectionStart {
            version_major: 0,
            version_minor: 9,
            server_properties: properties.as_table(),
            mechanisms: names.as_bytes(),
            locales: b"en_US",
        };
        frame::write_method(&mut self.out.frames, 0, &start);
    }

    /// EXTERNAL is only offered to who has shown a certificate.
    fn offered_mechanisms(&self) -> Vec<Mechanism> {
        let has_certificate = self.peer.certificate_name.is_some();
        let usable = |m: &Mechanism| *m != Mechanism::External || has_certificate;
        self.settings.mechanisms.iter().copied().filter(usable).collect()
    }

    /// A method before the connection is open.
    pub(super) fn handle_handshake_method(&mut self, method: Method<'_>) -> Result<(), Fault> {
        match (self.phase, method) {
            (Phase::StartOk, Method::ConnectionStartOk { client_properties, mechanism, response, .. }) => {
                client_properties.validate().map_err(syntax_error)?;
                self.capabilities = Capabilities::of(client_properties);
                self.client_name = connection_name(client_properties);
                self.start_login(mechanism, response)
            }
            (Phase::TuneOk, Method::ConnectionTuneOk { channel_max, frame_max, heartbeat }) => {
                self.tune(channel_max, frame_max, heartbeat)
            }
            (Phase::Open, Method::ConnectionOpen { virtual_host, .. }) => {
                self.broker.open(&self.user, virtual_host)?;
                self.may_impersonate = self.broker.may_impersonate();
                self.phase = Phase::Running;
                frame::write_method(&mut self.out.frames, 0, &Method::ConnectionOpenOk { known_hosts: b"" });
                Ok(())
            }
            (_, Method::ConnectionClose { .. }) => {
                frame::write_method(&mut self.out.frames, 0, &Method::ConnectionCloseOk {});
                self.phase = Phase::Closed;
                Ok(())
            }
            (Phase::TuneOk, _) => Err(unexpected_in_state("tuning")),
            (Phase::Open, _) => Err(unexpected_in_state("opening")),
            (_, _) => Err(unexpected_in_state("starting")),
        }
    }

    fn start_login(&mut self, mechanism: &[u8], response: &[u8]) -> Result<(), Fault> {
        let chosen = self.offered_mechanisms().into_iter().find(|m| m.name().as_bytes() == mechanism);
        let Some(mechanism) = chosen else {
            let text = format!("unknown authentication mechanism '{}'", lossy(mechanism));
            return Err(Fault::new(ReplyCode::CommandInvalid, text));
        };
        let credentials = match mechanism {
            Mechanism::Plain => plain(response),
            Mechanism::AmqPlain => amqplain(response),
            Mechanism::External => self.peer.certificate_name.clone().map(|name| (name.into_bytes(), None)),
        };
        let Some((user, password)) = credentials else {
            let text = format!("malformed {} response", mechanism.name());
            return Err(Fault::in_numbers(ReplyCode::SyntaxError, text));
        };
        self.user.clone_from(&user);
        self.login_mechanism = mechanism.name();
        let is_loopback = self.peer.is_loopback;
        self.login = Some(Login { mechanism, user, password, is_loopback });
        self.phase = Phase::Login;
        Ok(())
    }

    /// The answer to [`Session::take_login`].
    pub fn handle_login(&mut self, outcome: Result<(), LoginRefused>) {
        if self.phase != Phase::Login {
            return;
        }
        match outcome {
            Ok(()) => {
                let s = &self.settings;
                let tune = Method::ConnectionTune {
                    channel_max: s.channel_max,
                    frame_max: s.frame_size_bytes_max,
                    heartbeat: s.heartbeat_seconds,
                };
                frame::write_method(&mut self.out.frames, 0, &tune);
                self.phase = Phase::TuneOk;
            }
            Err(LoginRefused) if self.capabilities.authentication_failure_close => {
                let text = format!(
                    "Login was refused using authentication mechanism {}. For details see the broker logfile.",
                    self.login_mechanism
                );
                self.close_connection(&Fault::in_numbers(ReplyCode::AccessRefused, text).hard(), (0, 0));
            }
            // AMQP 0-9-1 2.2.4: an old client is told by the end of the connection.
            Err(LoginRefused) => self.phase = Phase::Closed,
        }
    }

    fn tune(&mut self, channel_max: u16, frame_max: u32, heartbeat: u16) -> Result<(), Fault> {
        let s = &self.settings;
        let too_high = |name: &str, got: u64, limit: u64| {
            let text =
                format!("negotiated {name} = {got} is higher than the maximum allowed value ({limit})");
            Err(Fault::in_numbers(ReplyCode::NotAllowed, text))
        };
        let unlimited_or_over = |got: u64, limit: u64| limit != 0 && (got == 0 || got > limit);
        if unlimited_or_over(frame_max.into(), s.frame_size_bytes_max.into()) {
            return match frame_max {
                0 => Err(Fault::in_numbers(
                    ReplyCode::NotAllowed,
                    format!(
                        "negotiated frame_max = no limit is higher than the maximum allowed value ({})",
                        s.frame_size_bytes_max
                    ),
                )),
                n => too_high("frame_max", n.into(), s.frame_size_bytes_max.into()),
            };
        }
        if frame_max != 0 && frame_max < limits::FRAME_SIZE_BYTES_MIN {
            let text = format!(
                "negotiated frame_max = {frame_max} is lower than the minimum allowed value ({})",
                limits::FRAME_SIZE_BYTES_MIN
            );
            return Err(Fault::in_numbers(ReplyCode::NotAllowed, text));
        }
        // amqplib sends channel_max 0 for "whatever you offered"; RabbitMQ refuses a larger one only.
        if s.channel_max != 0 && channel_max > s.channel_max {
            return too_high("channel_max", channel_max.into(), s.channel_max.into());
        }
        self.channel_max = if channel_max == 0 { s.channel_max } else { channel_max };
        let unlimited = s.message_bytes_max.min(u64::from(u32::MAX)) as u32;
        self.frame_size_bytes_max = if frame_max == 0 { unlimited } else { frame_max };
        self.heartbeat_seconds = heartbeat;
        self.phase = Phase::Open;
        Ok(())
    }
}

/// 502 for bytes that could not be decoded.
pub(super) fn syntax_error(error: crate::amqp::reader::DecodeError) -> Fault {
    Fault::in_numbers(ReplyCode::SyntaxError, error.to_string())
}

fn connection_name(properties: Table<'_>) -> Option<String> {
    match properties.find(b"connection_name") {
        Some(Value::LongStr(name)) => Some(lossy(&name[..name.len().min(255)]).into_owned()),
        Some(_) | None => None,
    }
}

type Credentials = (Vec<u8>, Option<Vec<u8>>);

/// RFC 4616: authorisation id, NUL, user, NUL, password. Nobody may act for another here, so the first
/// must be empty; RabbitMQ refuses it as well.
fn plain(response: &[u8]) -> Option<Credentials> {
    let mut parts = response.strip_prefix(&[0])?.split(|b| *b == 0);
    let (user, password) = (parts.next()?, parts.next()?);
    // RFC 4616 has no NUL in a password.
    parts.next().is_none().then(|| (user.to_vec(), Some(password.to_vec())))
}

/// A field table without its length: LOGIN and PASSWORD.
fn amqplain(response: &[u8]) -> Option<Credentials> {
    let table = Table::from_raw(response);
    match (table.find(b"LOGIN"), table.find(b"PASSWORD")) {
        (Some(Value::LongStr(user)), Some(Value::LongStr(password))) => {
            Some((user.to_vec(), Some(password.to_vec())))
        }
        (_, _) => None,
    }
}

/// What stands where the protocol header should, for the log: only kinds, no bytes of the peer.
fn describe_header(bytes: &[u8]) -> &'static str {
    const TLS_HANDSHAKE: u8 = 22;
    match bytes {
        [TLS_HANDSHAKE, 3, ..] => "a TLS handshake on a plain listener",
        [b'G', b'E', b'T', ..] | [b'P', b'O', b'S', b'T', ..] | [b'H', b'E', b'A', b'D', ..] => {
            "an HTTP request"
        }
        [b'A', b'M', b'Q', b'P', 0, 1, 0, 0, ..] | [b'A', b'M', b'Q', b'P', 3, ..] => "AMQP 1.0",
        [b'A', b'M', b'Q', b'P', ..] => "another version of AMQP",
        _ => "no AMQP",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_is_a_user_and_a_password_each_behind_a_nul() {
        assert_eq!(plain(b"\0me\0a b"), Some((b"me".to_vec(), Some(b"a b".to_vec()))));
        assert_eq!(plain(b"\0me\0"), Some((b"me".to_vec(), Some(Vec::new()))));
        for malformed in [&b"me:secret"[..], b"", b"\0me", b"other\0me\0a", b"\0me\0a\0b"] {
            assert_eq!(plain(malformed), None, "{malformed:?}");
        }
    }

    #[test]
    fn amqplain_is_a_bare_table() {
        let table =
            TableWriter::new().entry("LOGIN", Value::LongStr(b"me")).entry("PASSWORD", Value::LongStr(b"x"));
        assert_eq!(amqplain(table.as_table().raw()), Some((b"me".to_vec(), Some(b"x".to_vec()))));
        assert!(amqplain(b"\x05LOGIN").is_none());
    }

    #[test]
    fn says_what_stands_in_place_of_the_header() {
        assert_eq!(describe_header(&[22, 3, 1, 2, 0]), "a TLS handshake on a plain listener");
        assert_eq!(describe_header(b"GET / HT"), "an HTTP request");
        assert_eq!(describe_header(b"AMQP\0\x01\0\0"), "AMQP 1.0");
        assert_eq!(describe_header(&[0x80; 8]), "no AMQP");
    }
}
