//! From the first byte to connection.open-ok, and all the ways not to get there.

use super::desk::{FRAME_BYTES_MAX, Talk, settings};
use crate::amqp::field_table::Table;
use crate::amqp::frame::PROTOCOL_HEADER;
use crate::amqp::method::Method;
use crate::session::Peer;
use crate::session::port::Mechanism;

fn begin() -> Talk {
    Talk::begin_with(settings(), Peer::default())
}

fn at_start_ok() -> Talk {
    let mut talk = begin();
    talk.input.extend_from_slice(PROTOCOL_HEADER);
    assert_eq!(talk.send().said(), ["0 connection.start"]);
    talk
}

fn at_tune_ok() -> Talk {
    let mut talk = at_start_ok();
    talk.start_ok(&[]).send();
    assert!(talk.session.take_login().is_some());
    talk.session.handle_login(Ok(()));
    assert_eq!(talk.said(), ["0 connection.tune"]);
    talk
}

fn at_open() -> Talk {
    let mut talk = at_tune_ok();
    talk.tune_ok().send();
    talk
}

fn open(virtual_host: &[u8]) -> Method<'_> {
    Method::ConnectionOpen { virtual_host, capabilities: b"", insist: false }
}

fn tune(channel_max: u16, frame_max: u32) -> Method<'static> {
    Method::ConnectionTuneOk { channel_max, frame_max, heartbeat: 30 }
}

#[test]
fn opens_byte_by_byte_as_well() {
    let mut whole = begin();
    whole.input.extend_from_slice(PROTOCOL_HEADER);
    whole.start_ok(&[]);
    let bytes = std::mem::take(&mut whole.input);
    for byte in bytes {
        whole.input.push(byte);
        whole.send();
    }
    assert_eq!(whole.said(), ["0 connection.start"]);
    let login = whole.session.take_login().unwrap();
    assert_eq!((login.user, login.password), (b"me".to_vec(), Some(b"secret".to_vec())));
}

#[test]
fn answers_a_wrong_header_with_its_own_and_ends() {
    for header in [&b"AMQP\x00\x01\x00\x00"[..], b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\x02\x00", b"X"] {
        let mut talk = begin();
        talk.input.extend_from_slice(header);
        assert_eq!(talk.send().said(), ["header"]);
        assert!(talk.session.is_closed() && talk.session.bad_header().is_some() && talk.input.is_empty());
    }
}

#[test]
fn waits_for_the_login_and_reads_nothing_meanwhile() {
    let mut talk = at_start_ok();
    talk.start_ok(&[]).tune_ok().send();
    assert!(talk.session.is_paused() && !talk.input.is_empty());
    assert!(talk.session.take_login().is_some() && talk.session.take_login().is_none());
    talk.session.handle_login(Ok(()));
    assert!(!talk.session.is_paused());
    talk.method(0, open(b"/")).send();
    assert_eq!(talk.said(), ["0 connection.tune", "0 connection.open-ok"]);
    assert!(talk.session.is_open());
}

#[test]
fn tells_of_a_refused_login_those_who_understand_it() {
    let mut talk = at_start_ok();
    talk.start_ok(&["authentication_failure_close"]).send().refuse_login();
    assert_eq!(
        talk.said(),
        [
            "0 connection.close 403 ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. For \
          details see the broker logfile. (0, 0)"
        ]
    );
    assert!(talk.session.is_closing());
    let mut talk = at_start_ok();
    talk.start_ok(&[]).send().refuse_login();
    assert!(talk.said().is_empty() && talk.session.is_closed());
}

#[test]
fn offers_external_to_who_shows_a_certificate() {
    let response = Method::ConnectionStartOk {
        client_properties: Table::default(),
        mechanism: b"EXTERNAL",
        response: b"",
        locale: b"en_US",
    };
    let mut talk = at_start_ok();
    talk.method(0, response).send();
    assert!(talk.session.take_login().is_none() && talk.session.is_closed());
    let peer = Peer { is_loopback: false, certificate_name: Some("alice".to_owned()) };
    let mut talk = Talk::begin_with(settings(), peer);
    talk.input.extend_from_slice(PROTOCOL_HEADER);
    talk.method(0, response).send();
    let login = talk.session.take_login().unwrap();
    assert_eq!((login.mechanism, login.user), (Mechanism::External, b"alice".to_vec()));
}

#[test]
fn refuses_to_be_tuned_beyond_what_it_offered() {
    for (answer, text) in [
        (
            tune(11, FRAME_BYTES_MAX),
            "negotiated channel_max = 11 is higher than the maximum allowed value (10)",
        ),
        (tune(10, 8192), "negotiated frame_max = 8192 is higher than the maximum allowed value (4096)"),
        (tune(10, 0), "negotiated frame_max = no limit is higher than the maximum allowed value (4096)"),
        (tune(10, 100), "negotiated frame_max = 100 is lower than the minimum allowed value (4096)"),
    ] {
        let mut talk = at_tune_ok();
        talk.method(0, answer).send();
        assert_eq!(talk.said(), [format!("0 connection.close 530 NOT_ALLOWED - {text} (10, 31)")]);
    }
}

#[test]
fn keeps_to_what_was_negotiated() {
    let mut talk = at_tune_ok();
    talk.method(0, tune(0, FRAME_BYTES_MAX)).method(0, open(b"/"));
    talk.method(10, Method::ChannelOpen { out_of_band: b"" });
    talk.method(11, Method::ChannelOpen { out_of_band: b"" }).send();
    assert_eq!(talk.session.heartbeat_seconds(), 30);
    let said = talk.said();
    assert_eq!(said[..2], ["0 connection.open-ok", "10 channel.open-ok"]);
    assert!(said[2].starts_with("0 connection.close 530 "), "{said:?}");
}

#[test]
fn refuses_an_unknown_virtual_host() {
    let mut talk = at_open();
    talk.method(0, open(b"other")).send();
    assert_eq!(talk.said(), ["0 connection.close 530 NOT_ALLOWED - vhost other not found (10, 40)"]);
}

#[test]
fn a_method_out_of_its_turn_ends_the_handshake() {
    let mut talk = at_start_ok();
    talk.tune_ok().send();
    assert!(talk.said().is_empty(), "the peer has not shown that it reads methods");
    assert!(talk.session.is_closed());
    let mut talk = at_tune_ok();
    talk.method(0, open(b"/")).send();
    let said = talk.said();
    assert!(said[0].starts_with("0 connection.close 504 CHANNEL_ERROR"), "{said:?}");
}

#[test]
fn channels_wait_for_the_connection_to_be_open() {
    for kind in [1, 2, 3] {
        let mut talk = at_open();
        talk.frame(kind, 1, &[0, 20, 0, 10, 0]).send();
        let said = talk.said();
        assert!(said[0].starts_with("0 connection.close 505 UNEXPECTED_FRAME"), "{said:?}");
    }
}

#[test]
fn rejects_a_large_frame_before_the_login_from_its_header_alone() {
    let mut talk = at_start_ok();
    talk.input.extend_from_slice(&[1, 0, 0, 0, 0, 0x20, 1]);
    talk.send();
    assert!(talk.session.is_closed() && talk.input.is_empty());
}

#[test]
fn a_client_may_close_during_the_handshake() {
    let mut talk = at_open();
    talk.method(0, Method::ConnectionClose { reply_code: 200, reply_text: b"", class_id: 0, method_id: 0 })
        .send();
    assert_eq!(talk.said(), ["0 connection.close-ok"]);
    assert!(talk.session.is_closed());
}
