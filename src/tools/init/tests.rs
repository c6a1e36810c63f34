//! The claims of `sealmq-init`, checked on real folders: what it writes satisfies strict verifiers, and a
//! further run changes what has to change and nothing else. Time is an option, so nothing waits.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use time::Duration;

use super::*;

/// Two folders that vanish after the test, and options for them.
struct Lab {
    root: tempfile::TempDir,
}

impl Lab {
    fn new() -> Lab {
        Lab { root: tempfile::tempdir().unwrap() }
    }

    fn options(&self) -> Options {
        let host_name = Some("lab-host".to_owned());
        Options { host_name, ..Options::new(self.root.path().join("ssl"), self.root.path().join("secrets")) }
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.root.path().join(relative)
    }

    fn bytes(&self, relative: &str) -> Vec<u8> {
        fs::read(self.path(relative)).unwrap()
    }

    fn mode(&self, relative: &str) -> u32 {
        fs::metadata(self.path(relative)).unwrap().permissions().mode() & 0o7777
    }

    /// Every file's bytes, by path.
    fn content(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        for folder in ["ssl", "ssl/certs", "ssl/private", "secrets"] {
            for entry in fs::read_dir(self.path(folder)).unwrap() {
                let path = entry.unwrap().path();
                if path.is_file() {
                    found.insert(path.clone(), fs::read(&path).unwrap());
                }
            }
        }
        found
    }

    fn certificate(&self, name: &str) -> certificate::Certificate {
        let path = self.path(&format!("ssl/certs/{name}_certificate.pem"));
        certificate::Certificate::read(&path).unwrap().unwrap()
    }

    /// Runs a program, and says loudly where it is not installed.
    fn run_program(&self, program: &str, arguments: &[&str]) -> Option<std::process::Output> {
        match Command::new(program).args(arguments).current_dir(self.root.path()).output() {
            Ok(output) => Some(output),
            Err(error) => {
                eprintln!("NOT CHECKED: {program} cannot be run here ({error})");
                None
            }
        }
    }

    fn assert_program(&self, program: &str, arguments: &[&str], expected: &str) {
        let Some(output) = self.run_program(program, arguments) else { return };
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && text.contains(expected), "{program} {arguments:?}: {text}");
    }
}

fn issued(report: &Report) -> Vec<(&str, &Reason)> {
    let issued = report.changes.iter().filter_map(|change| match change {
        Change::Issued { name, reason } => Some((name.as_str(), reason)),
        _ => None,
    });
    issued.collect()
}

#[test]
fn writes_the_layout_that_labs_mount_with_its_modes() {
    let lab = Lab::new();
    let report = run(&Options { clients: vec!["producer".into()], ..lab.options() }).unwrap();
    assert!(!report.is_up_to_date() && report.warnings.is_empty(), "{report:?}");
    for name in ["ca", "server", "client", "producer"] {
        assert_eq!(lab.mode(&format!("ssl/certs/{name}_certificate.pem")), 0o644);
        assert_eq!(lab.mode(&format!("ssl/private/{name}_key.pem")), 0o400);
    }
    for secret in ["secrets/at_rest_kek", "secrets/admin_password"] {
        assert_eq!(lab.mode(secret), 0o400);
    }
    let folders = ["ssl", "ssl/certs", "ssl/private", "secrets"];
    assert_eq!(folders.map(|folder| lab.mode(folder)), [0o755, 0o755, 0o750, 0o700]);
    let manifest: serde_json::Value = serde_json::from_slice(&lab.bytes("ssl/manifest.json")).unwrap();
    assert_eq!(manifest["server"]["sha256"], lab.certificate("server").fingerprint());
    assert_eq!(manifest["clients"][1]["name"], "producer");
    assert!(!lab.content().into_keys().any(|path| path.extension() == Some("tmp".as_ref())));
}

#[test]
fn the_server_carries_every_wanted_name_and_each_leaf_one_purpose() {
    let lab = Lab::new();
    run(&Options { sans: vec!["mq.example".into(), "10.1.2.3".into()], ..lab.options() }).unwrap();
    let server = lab.certificate("server");
    let sans: Vec<_> = server.sans.iter().map(San::to_string).collect();
    assert_eq!(sans, ["mq.example", "10.1.2.3", "broker", "localhost", "127.0.0.1", "::1", "lab-host"]);
    assert!(server.usage.server_auth && !server.usage.client_auth);
    let client = lab.certificate("client");
    assert!(client.usage.client_auth && !client.usage.server_auth);
    assert!(client.subject.contains("CN=client"), "{}", client.subject);
    assert_ne!(server.serial, client.serial);
}

#[test]
fn openssl_accepts_every_leaf_strictly_and_only_for_its_purpose() {
    for key in [KeyType::P256, KeyType::P384] {
        let lab = Lab::new();
        run(&Options { key: Some(key), ..lab.options() }).unwrap();
        let verify = ["verify", "-x509_strict", "-CAfile", "ssl/certs/ca_certificate.pem", "-purpose"];
        let server = "ssl/certs/server_certificate.pem";
        let client = "ssl/certs/client_certificate.pem";
        for (purpose, leaf) in [("sslserver", server), ("sslclient", client)] {
            lab.assert_program("openssl", &[&verify[..], &[purpose, leaf]].concat(), "OK");
        }
        for (purpose, leaf) in [("sslclient", server), ("sslserver", client)] {
            if let Some(output) = lab.run_program("openssl", &[&verify[..], &[purpose, leaf]].concat()) {
                assert!(!output.status.success(), "{leaf} passed as {purpose}");
            }
        }
        for name in ["server", "client", "ca"] {
            let key = format!("ssl/private/{name}_key.pem");
            lab.assert_program("openssl", &["pkey", "-in", &key, "-check", "-noout"], "valid");
        }
    }
}

/// Python's default context from 3.13 on sets VERIFY_X509_STRICT; older ones can be told to.
#[test]
fn pythons_strict_context_shakes_hands_with_both_sides() {
    let lab = Lab::new();
    run(&lab.options()).unwrap();
    let script = r#"
import ssl
def context(side, name):
    made = ssl.create_default_context(side, cafile="ssl/certs/ca_certificate.pem")
    made.load_cert_chain(f"ssl/certs/{name}_certificate.pem", f"ssl/private/{name}_key.pem")
    made.verify_flags |= ssl.VERIFY_X509_STRICT
    made.verify_mode = ssl.CERT_REQUIRED
    return made
for host in ("broker", "localhost", "127.0.0.1", "::1", "lab-host"):
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context(ssl.Purpose.SERVER_AUTH, "client").wrap_bio(to_client, to_server, server_hostname=host)
    server = context(ssl.Purpose.CLIENT_AUTH, "server").wrap_bio(to_server, to_client, server_side=True)
    waiting = [client, server]
    while waiting:
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                pass
    assert dict(pair[0] for pair in server.getpeercert()["subject"])["commonName"] == "client"
print("shaken")
"#;
    lab.assert_program("python3", &["-c", script], "shaken");
}

#[test]
fn rustls_on_ring_loads_each_key_and_accepts_both_sides() {
    let lab = Lab::new();
    run(&lab.options()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let load = |name: &str| {
        let certificate =
            CertificateDer::from_pem_file(lab.path(&format!("ssl/certs/{name}_certificate.pem")));
        let key = PrivateKeyDer::from_pem_file(lab.path(&format!("ssl/private/{name}_key.pem")));
        (vec![certificate.unwrap()], key.unwrap())
    };
    let (ca, ca_key) = load("ca");
    provider.key_provider.load_private_key(ca_key).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca[0].clone()).unwrap();
    let roots = Arc::new(roots);
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone());
    let (chain, key) = load("server");
    let server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(chain, key)
        .unwrap();
    let (chain, key) = load("client");
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    let name = ServerName::try_from("::1").unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(client), name).unwrap();
    let mut server = rustls::ServerConnection::new(Arc::new(server)).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        server.read_tls(&mut wire.as_slice()).unwrap();
        server.process_new_packets().unwrap();
        wire.clear();
        server.write_tls(&mut wire).unwrap();
        client.read_tls(&mut wire.as_slice()).unwrap();
        client.process_new_packets().unwrap();
    }
    assert_eq!(server.peer_certificates().unwrap()[0], lab.certificate("client").der);
}

#[test]
fn a_second_run_is_up_to_date_and_changes_no_byte() {
    let lab = Lab::new();
    let options = Options { p12: true, clients: vec!["producer".into()], ..lab.options() };
    run(&options).unwrap();
    let before = lab.content();
    for again in [options, lab.options()] {
        assert!(run(&again).unwrap().is_up_to_date());
        assert!(before == lab.content());
    }
}

#[test]
fn a_missing_name_reissues_the_server_alone_and_keeps_the_names_it_had() {
    let lab = Lab::new();
    run(&Options { sans: vec!["old.example".into()], ..lab.options() }).unwrap();
    let (ca, client, kek) =
        (lab.certificate("ca"), lab.certificate("client"), lab.bytes("secrets/at_rest_kek"));
    let report = run(&Options { sans: vec!["new.example".into()], ..lab.options() }).unwrap();
    let missing = Reason::SansMissing(vec![San::Dns("new.example".into())]);
    assert_eq!(issued(&report), [("server", &missing)]);
    assert_eq!(lab.certificate("ca").der, ca.der);
    assert_eq!(lab.certificate("client").der, client.der);
    assert_eq!(lab.bytes("secrets/at_rest_kek"), kek);
    let server = lab.certificate("server");
    assert!(server.is_issued_by(&ca));
    for name in ["old.example", "new.example"] {
        assert!(server.sans.contains(&San::Dns(name.into())), "{name}");
    }
}

#[test]
fn a_leaf_is_reissued_exactly_when_less_than_a_third_of_its_life_is_left() {
    let lab = Lab::new();
    let start = lab.options();
    run(&start).unwrap();
    let ca = lab.certificate("ca").der;
    let server = lab.certificate("server");
    let third = (server.not_after - server.not_before) / 3;
    let young = Options { now: server.not_after - third, ..start.clone() };
    assert!(run(&young).unwrap().is_up_to_date());
    let old = Options { now: server.not_after - third + Duration::SECOND, ..start };
    let report = run(&old).unwrap();
    let names: Vec<_> = issued(&report).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["server", "client"]);
    assert!(matches!(issued(&report)[0].1, Reason::Ageing(_)));
    assert_eq!(lab.certificate("ca").der, ca);
    assert!(lab.certificate("server").not_after > server.not_after);
}

#[test]
fn a_leaf_never_outlives_its_authority() {
    let lab = Lab::new();
    let options = lab.options();
    run(&options).unwrap();
    let ca = lab.certificate("ca");
    run(&Options { now: ca.not_after - Duration::days(10), ..options.clone() }).unwrap();
    assert_eq!(lab.certificate("server").not_after, ca.not_after);
    let error = run(&Options { now: ca.not_after, ..options }).unwrap_err().to_string();
    assert!(error.contains("expired") && error.contains("--force-ca"), "{error}");
}

#[test]
fn another_kind_of_key_is_reissued_only_when_asked_for_and_kept_afterwards() {
    let lab = Lab::new();
    run(&lab.options()).unwrap();
    let report = run(&Options { key: Some(KeyType::P384), ..lab.options() }).unwrap();
    assert_eq!(issued(&report), [("server", &Reason::OtherKeyType), ("client", &Reason::OtherKeyType)]);
    assert!(run(&lab.options()).unwrap().is_up_to_date());
    run(&Options { sans: vec!["x.example".into()], ..lab.options() }).unwrap();
    assert_eq!(lab.certificate("server").public_key.len(), 97);
}

#[test]
fn a_pair_that_does_not_fit_is_reissued() {
    let lab = Lab::new();
    run(&lab.options()).unwrap();
    fs::copy(lab.path("ssl/private/server_key.pem"), lab.path("stolen.pem")).unwrap();
    fs::rename(lab.path("stolen.pem"), lab.path("ssl/private/client_key.pem")).unwrap();
    assert_eq!(issued(&run(&lab.options()).unwrap()), [("client", &Reason::KeyDoesNotFit)]);
    fs::remove_file(lab.path("ssl/private/client_key.pem")).unwrap();
    assert_eq!(issued(&run(&lab.options()).unwrap()), [("client", &Reason::KeyDoesNotFit)]);
}

#[test]
fn force_ca_replaces_the_authority_and_all_that_it_signed_but_no_secret() {
    let lab = Lab::new();
    run(&Options { p12: true, ..lab.options() }).unwrap();
    let (ca, kek) = (lab.certificate("ca"), lab.bytes("secrets/at_rest_kek"));
    let report = run(&Options { force_ca: true, ..lab.options() }).unwrap();
    assert_eq!(report.changes[0], Change::CaReplaced);
    assert_eq!(issued(&report), [("server", &Reason::OtherAuthority), ("client", &Reason::OtherAuthority)]);
    let replaced = lab.certificate("ca");
    assert_ne!(replaced.subject, ca.subject);
    assert!(lab.certificate("server").is_issued_by(&replaced));
    assert_eq!(lab.bytes("secrets/at_rest_kek"), kek);
    assert!(run(&lab.options()).unwrap().is_up_to_date());
}

#[test]
fn without_the_authoritys_key_nothing_is_reissued_but_what_is_valid_stays() {
    let lab = Lab::new();
    run(&lab.options()).unwrap();
    fs::remove_file(lab.path("ssl/private/ca_key.pem")).unwrap();
    assert!(run(&lab.options()).unwrap().is_up_to_date());
    let ageing = Options { now: lab.certificate("server").not_after - Duration::DAY, ..lab.options() };
    let report = run(&ageing).unwrap();
    assert!(report.is_up_to_date() && report.warnings.len() == 2, "{report:?}");
    let error = run(&Options { sans: vec!["x.example".into()], ..lab.options() }).unwrap_err().to_string();
    assert!(error.contains("ca_key.pem") && error.contains("--force-ca"), "{error}");
}

#[test]
fn an_authority_that_is_lost_or_does_not_fit_is_never_replaced_silently() {
    for damage in ["remove certificate", "foreign key", "leaf as authority", "no PEM"] {
        let lab = Lab::new();
        run(&lab.options()).unwrap();
        let certificate = lab.path("ssl/certs/ca_certificate.pem");
        match damage {
            "remove certificate" => fs::remove_file(&certificate).unwrap(),
            "foreign key" => {
                let key = lab.path("ssl/private/ca_key.pem");
                fs::remove_file(&key).unwrap();
                fs::copy(lab.path("ssl/private/server_key.pem"), &key).unwrap();
            }
            "leaf as authority" => {
                fs::copy(lab.path("ssl/certs/server_certificate.pem"), &certificate).unwrap();
            }
            _ => fs::write(&certificate, "-----BEGIN").unwrap(),
        }
        let before = lab.content();
        let error = run(&lab.options()).unwrap_err().to_string();
        assert!(error.contains("ssl/") && error.contains("--force-ca"), "{damage}: {error}");
        assert!(before == lab.content(), "{damage}");
    }
}

#[test]
fn a_run_that_was_killed_after_the_authoritys_key_goes_on_with_it() {
    let lab = Lab::new();
    run(&lab.options()).unwrap();
    let key = lab.bytes("ssl/private/ca_key.pem");
    fs::remove_dir_all(lab.path("ssl/certs")).unwrap();
    run(&lab.options()).unwrap();
    assert_eq!(lab.bytes("ssl/private/ca_key.pem"), key);
    assert!(lab.certificate("server").is_issued_by(&lab.certificate("ca")));
}

#[test]
fn a_broken_file_is_named_and_left_as_it_is() {
    let cut = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
    let sec1 = "-----BEGIN EC PRIVATE KEY-----\nMIIB\n-----END EC PRIVATE KEY-----\n";
    for (file, text, says) in [
        ("ssl/certs/server_certificate.pem", "", "no certificate"),
        ("ssl/certs/client_certificate.pem", cut, "X.509"),
        ("ssl/private/server_key.pem", "garbage", "no private key"),
        ("ssl/private/client_key.pem", sec1, "openssl pkcs8"),
        ("ssl/manifest.json", "{", "cannot be read"),
        ("secrets/at_rest_kek", "0000", "no 256-bit key"),
        ("secrets/at_rest_kek", &"00".repeat(32), "equal"),
        ("secrets/admin_password", "\n", "empty"),
    ] {
        let lab = Lab::new();
        run(&lab.options()).unwrap();
        let path = lab.path(file);
        fs::remove_file(&path).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        let error = run(&lab.options()).unwrap_err().to_string();
        assert!(error.contains(file) && error.contains(says), "{file}: {error}");
        assert_eq!(fs::read(&path).unwrap(), text.as_bytes());
    }
}

#[test]
fn two_runs_at_once_agree_on_one_authority_and_one_key() {
    let lab = Lab::new();
    let start = std::sync::Barrier::new(4);
    let reports: Vec<Report> = std::thread::scope(|scope| {
        let go = || {
            start.wait();
            run(&lab.options()).unwrap()
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(go)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let working = reports.iter().filter(|report| !report.is_up_to_date()).count();
    assert_eq!(working, 1, "{reports:?}");
    assert!(lab.certificate("server").is_issued_by(&lab.certificate("ca")));
}

#[test]
fn the_key_mode_opens_leaf_keys_also_later_but_never_the_authoritys() {
    let lab = Lab::new();
    run(&lab.options()).unwrap();
    let report = run(&Options { key_mode: Some(0o444), ..lab.options() }).unwrap();
    assert_eq!(report.changes.len(), 2, "{report:?}");
    run(&Options { sans: vec!["x.example".into()], ..lab.options() }).unwrap();
    let modes = ["ssl/private", "ssl/private/server_key.pem", "ssl/private/client_key.pem"];
    assert_eq!(modes.map(|path| lab.mode(path)), [0o755, 0o444, 0o444]);
    assert_eq!(lab.mode("ssl/private/ca_key.pem"), 0o400);
    assert_eq!(lab.mode("secrets/at_rest_kek"), 0o400);
    for mode in [0o000, 0o044, 0o666, 0o500, 0o4400] {
        assert!(run(&Options { key_mode: Some(mode), ..lab.options() }).is_err(), "{mode:o}");
    }
}

#[test]
fn a_secret_that_others_could_read_is_closed_and_reported() {
    let lab = Lab::new();
    run(&lab.options()).unwrap();
    let (path, before) = (lab.path("secrets/at_rest_kek"), lab.bytes("secrets/at_rest_kek"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let report = run(&lab.options()).unwrap();
    assert_eq!(report.changes, [Change::ModeChanged(path, 0o400)]);
    assert_eq!(report.warnings.len(), 1);
    assert_eq!((lab.mode("secrets/at_rest_kek"), lab.bytes("secrets/at_rest_kek")), (0o400, before));
}

#[test]
fn refuses_secrets_inside_the_folder_that_clients_mount() {
    let lab = Lab::new();
    fs::create_dir(lab.path("ssl")).unwrap();
    std::os::unix::fs::symlink(lab.path("ssl"), lab.path("alias")).unwrap();
    for secrets in ["ssl", "ssl/secrets", "x/../ssl/secrets", "alias/secrets"] {
        let options = Options { secrets: lab.path(secrets), ..lab.options() };
        assert!(matches!(run(&options), Err(Error::SecretsInsideCerts { .. })), "{secrets}");
    }
    assert_eq!(fs::read_dir(lab.path("ssl")).unwrap().count(), 0);
}

#[test]
fn pkcs12_files_open_with_their_password_in_openssl_and_java_and_follow_their_certificate() {
    let lab = Lab::new();
    run(&Options { p12: true, ..lab.options() }).unwrap();
    let password = String::from_utf8(lab.bytes("ssl/private/p12_password")).unwrap();
    let password = password.trim();
    let openssl = ["pkcs12", "-in", "ssl/private/client.p12", "-info", "-noout", "-passin"];
    let pass = format!("pass:{password}");
    lab.assert_program("openssl", &[&openssl[..], &[&pass]].concat(), "PBES2, PBKDF2, AES-256-CBC");
    for (file, entry) in
        [("ssl/private/server.p12", "PrivateKeyEntry"), ("ssl/certs/truststore.p12", "trustedCertEntry")]
    {
        lab.assert_program("keytool", &["-list", "-keystore", file, "-storepass", password], entry);
    }
    let before = lab.bytes("ssl/private/client.p12");
    let report = run(&Options { sans: vec!["x.example".into()], ..lab.options() }).unwrap();
    assert!(
        report.changes.contains(&Change::BundleWritten(lab.path("ssl/private/server.p12"))),
        "{report:?}"
    );
    assert_eq!(lab.bytes("ssl/private/client.p12"), before);
    assert_eq!(lab.mode("ssl/private/client.p12"), 0o400);
}

#[test]
fn a_client_of_an_earlier_run_is_kept_fresh_until_its_certificate_is_deleted() {
    let lab = Lab::new();
    run(&Options { clients: vec!["producer".into()], ..lab.options() }).unwrap();
    let later = Options { now: lab.certificate("producer").not_after, ..lab.options() };
    let report = run(&later).unwrap();
    assert!(issued(&report).iter().any(|(name, _)| *name == "producer"), "{report:?}");
    fs::remove_file(lab.path("ssl/certs/producer_certificate.pem")).unwrap();
    assert!(issued(&run(&later).unwrap()).is_empty());
    assert!(!String::from_utf8(lab.bytes("ssl/manifest.json")).unwrap().contains("producer"));
}

#[test]
fn refuses_days_that_no_client_would_accept() {
    let lab = Lab::new();
    for days in [0, DAYS_MAX + 1] {
        let error = run(&Options { days, ..lab.options() }).unwrap_err().to_string();
        assert!(error.contains("--days"), "{error}");
    }
}
