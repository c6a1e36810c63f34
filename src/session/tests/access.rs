//! Who a connection acts as: the user that is told to the broker, `user_id`, connection.update-secret.

use super::desk::{Talk, settings};
use crate::amqp::method::Method;
use crate::amqp::properties::Properties;
use crate::session::Peer;

#[test]
fn the_broker_is_told_who_enters() {
    let talk = Talk::open();
    assert!(talk.books.borrow().log.contains(&"open me".to_owned()));
}

#[test]
fn an_impersonator_may_claim_any_user_id() {
    let talk = Talk::begin_with(settings(), Peer::default());
    talk.books.borrow_mut().may_impersonate = true;
    let mut talk = talk.opened(&[]);
    let claim = Properties { user_id: Some(b"root"), ..Properties::default() };
    talk.begin_publish(1, "", "q", false).content(1, claim, "for another").send();
    assert_eq!(talk.books.borrow_mut().drain("q"), ["for another"]);
}

#[test]
fn update_secret_is_answered_once_the_connection_is_open() {
    let mut talk = Talk::open();
    talk.method(0, Method::ConnectionUpdateSecret { new_secret: b"new", reason: b"" });
    talk.method(1, Method::ChannelFlow { active: true }).send();
    assert_eq!(talk.said(), ["0 connection.update-secret-ok", "1 channel.flow-ok"]);
}

/// The content was whole, and so forgotten, by the time the exchange was looked at: the close blamed no method.
#[test]
fn a_publish_that_a_transaction_refuses_is_blamed_on_the_publish() {
    let mut talk = Talk::open();
    talk.method(1, Method::TxSelect {});
    talk.begin_publish(1, "nowhere", "q", false).content(1, Properties::default(), "x").send();
    let said = talk.said();
    assert_eq!(
        said.last().unwrap(),
        "1 channel.close 404 NOT_FOUND - no exchange 'nowhere' in vhost '/' (60, 40)"
    );
}
