//! Users' permissions over a real store: what a restart keeps, and what a change means for who is connected.

use super::*;
use crate::broker::fault::Fault;
use crate::session::port::{Login, Mechanism};
use crate::store::RowKind;

fn only(configure: &str, write: &str, read: &str) -> Permissions {
    Permissions { configure: configure.to_owned(), write: write.to_owned(), read: read.to_owned() }
}

fn refusal(seat: &mut Seat, exchange: &str) -> Option<String> {
    match seat.publish(vec![publish(exchange, "q", b"x", false)]).pop() {
        Some(Outcome::Fault(fault)) => Some(fault.reply_text()),
        _ => None,
    }
}

fn open(house: &House, user: &str) -> Result<(), Fault> {
    house.engine.connect().0.open(user.as_bytes(), b"/")
}

const TO_DEFAULT: &str =
    "ACCESS_REFUSED - write access to exchange 'amq.default' in vhost '/' refused for user 'al'";

#[test]
fn permissions_survive_a_restart_without_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    ensure_user(&house.engine, "al", &["impersonator".to_owned()], Some(&only("", "^amq\\.topic$", "^q$")));
    ensure_user(&house.engine, "outside", &[], None);
    house.close();

    let house = House::open(dir.path());
    house.client().declare("q", DURABLE);
    let mut al = house.client_of("al");
    assert_eq!(refusal(&mut al, "").as_deref(), Some(TO_DEFAULT));
    assert_eq!(refusal(&mut al, "amq.topic"), None);
    assert!(al.client.get(b"q").is_ok() && al.client.get(b"other").is_err());
    assert!(al.client.may_impersonate() && !house.client().client.may_impersonate());
    let text = "NOT_ALLOWED - access to vhost '/' refused for user 'outside'";
    assert_eq!(open(&house, "outside").unwrap_err().reply_text(), text);
}

#[test]
fn nobody_may_do_anything_before_a_user_has_come_in() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let (client, outbox) = house.engine.connect();
    let mut nobody = Seat { client, outbox, credit: Arc::default(), next_key: 0 };
    assert!(refusal(&mut nobody, "").is_some());
    assert!(nobody.client.declare_queue(&QueueSpec { name: b"q", ..DURABLE }).is_err());
    assert!(open(&house, "who").is_err());
}

#[test]
fn a_change_of_permissions_reaches_a_connection_that_publishes_already() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    house.client().declare("q", TRANSIENT);
    ensure_user(&house.engine, "al", &[], Some(&only("", "default$", "")));
    let mut al = house.client_of("al");
    assert_eq!((refusal(&mut al, ""), refusal(&mut al, "")), (None, None), "and its route is remembered");
    ensure_user(&house.engine, "al", &[], Some(&only("", "^topic", "")));
    assert_eq!(refusal(&mut al, "").as_deref(), Some(TO_DEFAULT));
    ensure_user(&house.engine, "al", &[], Some(&Permissions::all()));
    assert_eq!(refusal(&mut al, ""), None);
    ensure_user(&house.engine, "al", &[], None);
    assert_eq!(refusal(&mut al, "").as_deref(), Some(TO_DEFAULT));
}

/// Versions before permissions were enforced stored users without any. Reading such a row as "no permissions"
/// would lock the administrator out; reading it as "all" would let everybody in for ever.
#[test]
fn a_row_from_before_permissions_leaves_administrators_all_and_others_nothing() {
    #[derive(minicbor::Encode)]
    struct Before {
        #[n(0)]
        name: String,
        #[n(1)]
        password_hash: String,
        #[n(2)]
        tags: Vec<String>,
    }
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    for (name, tag) in [("root", "administrator"), ("al", "management")] {
        let row = house.store.next_row_id();
        let before =
            Before { name: name.to_owned(), password_hash: String::new(), tags: vec![tag.to_owned()] };
        house.store.appender().put_row(RowKind::User, row, minicbor::to_vec(before).unwrap());
    }
    house.close();

    let house = House::open(dir.path());
    assert_eq!(refusal(&mut house.client_of("root"), "amq.topic"), None);
    assert!(open(&house, "al").is_err());
}

#[test]
fn a_user_whose_permissions_change_keeps_its_password_and_its_row() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    ensure_user(&house.engine, "al", &[], Some(&Permissions::all()));
    ensure_user(&house.engine, "al", &[], Some(&only("a", "b", "c")));
    house.close();
    let house = House::open(dir.path());
    let login = Login {
        mechanism: Mechanism::Plain,
        user: b"al".to_vec(),
        password: Some(b"secret".to_vec()),
        is_loopback: true,
    };
    assert!(house.engine.users().check(&login).is_ok());
    let names: Vec<_> = house.engine.users().list().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["al", "me"]);
}

#[test]
fn a_permission_that_is_no_regular_expression_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    ensure_user(&house.engine, "al", &[], Some(&Permissions::all()));
    let broken = only("(", "", "");
    let spec = UserSpec { name: "al", password: b"secret", tags: &[], permissions: Some(&broken) };
    assert!(house.engine.ensure_user(&spec).is_err());
    assert_eq!(refusal(&mut house.client_of("al"), "amq.topic"), None);
}
