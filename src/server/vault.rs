//! A key in the transit engine of Vault or OpenBao as a key service: `POST /v1/MOUNT/encrypt/KEY` and `decrypt`, over TLS
//! that trusts the configured authority and no other. A start and a new slot ask it, serving does not.

use std::borrow::Cow;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use ureq::Agent;
use ureq::http::HeaderValue;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};
use zeroize::Zeroizing;

use super::key_service::VaultPlace;
use crate::limits::{KEY_SERVICE_ANSWER_BYTES_MAX, KEY_SERVICE_SECONDS_MAX, PASSPHRASE_BYTES_MAX};
use crate::seal::Kek;
use crate::seal::key_service::{KeyService, Service, ServiceError};
use crate::store::line_from_file;

/// What of Vault's own words is repeated.
const REASON_CHARS_MAX: usize = 200;

/// A transit key, with what it takes to use it.
pub(super) struct Vault {
    place: VaultPlace,
    token: HeaderValue,
    agent: Agent,
}

impl Vault {
    /// Reads what Vault is asked with; asks nothing yet.
    ///
    /// # Errors
    /// `E_VAULT_ADDRESS`, `E_VAULT_TOKEN`, `E_VAULT_TLS`.
    pub(super) fn find(place: &VaultPlace) -> Result<Vault, ServiceError> {
        if let Some(fault) = fault_of(place) {
            let remedy = "correct at_rest.kek.vault.address (https://HOST:PORT), mount or key";
            return Err(failure("E_VAULT_ADDRESS", fault, remedy));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::new_with_certs(&authorities(&place.ca_file)?))
            .unversioned_rustls_crypto_provider(provider)
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .https_only(true)
            .proxy(None)
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent("sealmq")
            .timeout_global(Some(Duration::from_secs(KEY_SERVICE_SECONDS_MAX)));
        let agent = config.build().new_agent();
        Ok(Vault { place: place.clone(), token: token(&place.token_file)?, agent })
    }

    /// One request; the answer's status and its bytes.
    fn ask(&self, verb: &str, body: &str) -> Result<(u16, Zeroizing<Vec<u8>>), ServiceError> {
        let VaultPlace { address, mount, key, namespace, .. } = &self.place;
        tracing::info!(address, "asking Vault");
        let mut request = self
            .agent
            .post(format!("{}/v1/{mount}/{verb}/{key}", address.trim_end_matches('/')))
            .header("X-Vault-Token", self.token.clone())
            .header("X-Vault-Request", "true")
            .content_type("application/json");
        if let Some(namespace) = namespace {
            request = request.header("X-Vault-Namespace", namespace);
        }
        let mut answer = request.send(body).map_err(|error| self.unreached(error))?;
        // Room from the start: a growing buffer would leave copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_SERVICE_ANSWER_BYTES_MAX + 1));
        let reader = answer.body_mut().as_reader();
        let read = reader.take(KEY_SERVICE_ANSWER_BYTES_MAX as u64 + 1).read_to_end(&mut bytes);
        read.map_err(|error| self.unreached(error.into()))?;
        if bytes.len() > KEY_SERVICE_ANSWER_BYTES_MAX {
            return Err(self.not_understood(&format!("more than {KEY_SERVICE_ANSWER_BYTES_MAX} bytes")));
        }
        Ok((answer.status().as_u16(), bytes))
    }

    fn unreached(&self, error: ureq::Error) -> ServiceError {
        let address = &self.place.address;
        let of_tls = match &error {
            ureq::Error::Rustls(_) | ureq::Error::Tls(_) => true,
            ureq::Error::Io(e) => e.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()),
            _ => false,
        };
        if of_tls {
            let remedy = "name the authority of Vault's certificate (at_rest.kek.vault.ca_file), and Vault as the certificate does";
            return failure("E_VAULT_TLS", format!("Vault at {address} is not trusted: {error}"), remedy);
        }
        let reason = format!("Vault at {address} cannot be reached: {error}");
        self.passing(reason)
    }

    fn passing(&self, reason: String) -> ServiceError {
        let remedy = "bring Vault up and unseal it, then start again; a broker that runs does not need it";
        ServiceError { is_passing: true, ..failure("E_VAULT_UNREACHABLE", reason, remedy) }
    }

    fn not_understood(&self, what: &str) -> ServiceError {
        let reason = format!("the answer of Vault at {} is not understood: {what}", self.place.address);
        failure(
            "E_VAULT_ANSWER",
            reason,
            "check that at_rest.kek.vault.address is Vault's own, without a redirect",
        )
    }

    /// Why Vault did not do it.
    fn refused(&self, status: u16, said: &str) -> ServiceError {
        let VaultPlace { address, mount, key, .. } = &self.place;
        let reason = format!("Vault at {address} answers {status} for the key `{key}` in `{mount}`: {said}");
        let no_key = said.contains("key not found") || status == 404;
        match status {
            403 => failure(
                "E_VAULT_DENIED",
                reason,
                "renew the token in at_rest.kek.vault.token_file, and permit it `update` on encrypt and decrypt of the key",
            ),
            400 | 404 if no_key => failure(
                "E_VAULT_KEY",
                reason,
                "make the key (vault write -f transit/keys/NAME), or name another",
            ),
            400..=499 if status != 429 => failure(
                "E_VAULT_REFUSED",
                reason,
                "see what it says; the key must be of a type with associated data, as aes256-gcm96, not derived, and open its old versions",
            ),
            300..=399 => self.not_understood("it leads elsewhere"),
            _ => self.passing(reason),
        }
    }
}

impl KeyService for Vault {
    fn service(&self) -> Service {
        Service::Vault
    }

    fn seal(&self, key: &[u8; 32], context: &[u8]) -> Result<Vec<u8>, ServiceError> {
        let (status, answer) = self.ask("encrypt", &question("plaintext", &encoded(key), context))?;
        let answer = parse(&answer, status).ok_or_else(|| self.not_understood("no JSON"))?;
        match (status, answer.data.and_then(|data| data.ciphertext)) {
            (200, Some(sealed)) if is_plain(sealed.as_bytes()) => Ok(sealed.as_bytes().to_vec()),
            (200, _) => Err(self.not_understood("no ciphertext")),
            _ => Err(self.refused(status, &said(&answer.errors))),
        }
    }

    fn open(&self, sealed: &[u8], context: &[u8]) -> Result<Option<Kek>, ServiceError> {
        let Some(text) = std::str::from_utf8(sealed).ok().filter(|text| is_plain(text.as_bytes())) else {
            return Ok(None);
        };
        let (status, answer) = self.ask("decrypt", &question("ciphertext", text, context))?;
        let answer = parse(&answer, status).ok_or_else(|| self.not_understood("no JSON"))?;
        if status != 200 {
            let said = said(&answer.errors);
            // Older versions say the one, newer ones the other.
            let is_other_key =
                said.contains("message authentication failed") || said.contains("unable to decrypt");
            return if status == 400 && is_other_key { Ok(None) } else { Err(self.refused(status, &said)) };
        }
        let key = answer.data.and_then(|data| data.plaintext).and_then(decoded);
        key.map(Some).ok_or_else(|| self.not_understood("no key of 32 bytes"))
    }
}

/// What Vault answers; the other fields tell about leases.
#[derive(Default, Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    data: Option<Data<'a>>,
    #[serde(borrow, default)]
    errors: Vec<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Data<'a> {
    ciphertext: Option<&'a str>,
    // Borrowed, so that there is no copy to clear.
    plaintext: Option<&'a str>,
}

/// A fault may come without JSON, from whatever stands before Vault.
fn parse(answer: &[u8], status: u16) -> Option<Answer<'_>> {
    serde_json::from_slice(answer).ok().or_else(|| (status != 200).then(Answer::default))
}

fn question(name: &str, value: &str, context: &[u8]) -> Zeroizing<String> {
    // Base64 and what passed `is_plain` need no escapes.
    let context = STANDARD.encode(context);
    let parts = ["{\"", name, "\":\"", value, "\",\"associated_data\":\"", &context, "\"}"];
    let mut text = Zeroizing::new(String::with_capacity(parts.iter().map(|part| part.len()).sum()));
    parts.iter().for_each(|part| text.push_str(part));
    text
}

fn encoded(key: &[u8; 32]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(48));
    STANDARD.encode_string(key, &mut text);
    text
}

fn decoded(text: &str) -> Option<Kek> {
    // The decoder wants room for the padding as well.
    let mut bytes = Zeroizing::new([0; 36]);
    let len = STANDARD.decode_slice(text, bytes.as_mut_slice()).ok()?;
    let mut key = Zeroizing::new(*bytes.first_chunk::<32>().filter(|_| len == 32)?);
    Some(Kek::take(&mut key))
}

/// Whether these are the characters of `vault:v1:` and base64, which mean nothing in JSON.
fn is_plain(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b":+/=_-.".contains(byte))
}

/// Vault's own words, shortened; they do not repeat what was asked.
fn said(errors: &[Cow<'_, str>]) -> String {
    let text = if errors.is_empty() { "it does not say why".into() } else { errors.join("; ") };
    text.chars().take(REASON_CHARS_MAX).flat_map(char::escape_default).collect()
}

/// What keeps a place from being asked.
fn fault_of(place: &VaultPlace) -> Option<String> {
    let host = place.address.strip_prefix("https://").map(|rest| rest.trim_end_matches('/'));
    let is_host = |host: &str| {
        !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_:[]".contains(&b))
    };
    let is_name = |name: &str| {
        let is_part = |part: &str| {
            let known = part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
            known && !part.is_empty() && part != "." && part != ".."
        };
        name.split('/').all(is_part)
    };
    let (mount, key) = (&place.mount, &place.key);
    let namespace = place.namespace.as_deref().map(|name| name.trim_end_matches('/'));
    if !host.is_some_and(is_host) {
        Some(format!("`{}` is no address of the form https://HOST:PORT", place.address.escape_default()))
    } else if !is_name(mount) || !is_name(key) || key.contains('/') {
        let (mount, key) = (mount.escape_default(), key.escape_default());
        Some(format!("`{mount}` and `{key}` are no names of a mount and a key"))
    } else if !namespace.is_none_or(is_name) {
        Some("the namespace is no name".into())
    } else {
        None
    }
}

fn token(path: &Path) -> Result<HeaderValue, ServiceError> {
    let unusable = |reason: String| {
        failure("E_VAULT_TOKEN", reason, "put a token of Vault into a file of mode 0400, on one line")
    };
    let line = line_from_file(path, PASSPHRASE_BYTES_MAX).map_err(&unusable)?;
    let value = HeaderValue::from_bytes(&line).ok().filter(|_| line.iter().all(u8::is_ascii_graphic));
    let value = value.filter(|value| !value.is_empty());
    let mut value = value.ok_or_else(|| unusable(format!("{}: it holds no token", path.display())))?;
    value.set_sensitive(true);
    Ok(value)
}

fn authorities(path: &Path) -> Result<Vec<Certificate<'static>>, ServiceError> {
    let unusable = |reason: String| {
        let reason = format!("the authority of Vault's certificate, {}: {reason}", path.display());
        failure("E_VAULT_TLS", reason, "name a file of certificates in PEM (at_rest.kek.vault.ca_file)")
    };
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = read.map_err(|e| unusable(e.to_string()))?;
    if found.is_empty() {
        return Err(unusable("it holds no certificate".into()));
    }
    Ok(found.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect())
}

fn failure(code: &'static str, reason: String, remedy: &'static str) -> ServiceError {
    ServiceError { code, reason, remedy, is_passing: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_names_that_lead_elsewhere_are_refused() {
        let place = |address: &str, mount: &str, key: &str| VaultPlace {
            address: address.into(),
            mount: mount.into(),
            key: key.into(),
            namespace: None,
            token_file: "/t".into(),
            ca_file: "/c".into(),
        };
        for address in ["https://v", "https://v.example:8200/", "https://[::1]:8200", "https://127.0.0.1"] {
            assert_eq!(fault_of(&place(address, "team/transit", "sealmq.kek-1")), None, "{address}");
        }
        for address in [
            "http://v",
            "v:8200",
            "https://",
            "https://u@v",
            "https://v/path",
            "https://v?x",
            "https://v\r\nX: y",
        ] {
            assert!(fault_of(&place(address, "transit", "k")).is_some(), "{address}");
        }
        for (mount, key) in
            [("", "k"), ("transit", ""), ("../sys", "k"), ("transit/", "k"), ("transit", "a/b"), ("t", "k?x")]
        {
            assert!(fault_of(&place("https://v", mount, key)).is_some(), "{mount} {key}");
        }
    }

    #[test]
    fn a_question_is_json_whatever_the_keyring_holds() {
        let asked: serde_json::Value =
            serde_json::from_str(&question("plaintext", &encoded(&[255; 32]), &[0, 62, 63])).unwrap();
        assert_eq!(asked["plaintext"], STANDARD.encode([255; 32]));
        assert_eq!(asked["associated_data"], "AD4/");
        assert!(is_plain(b"vault:v1:ab+/=="));
        assert!(!is_plain(b"vault:v1:\",\"x\":\"") && !is_plain(b"a\\b") && !is_plain(b""));
    }

    #[test]
    fn only_32_bytes_are_a_key() {
        assert!(
            decoded(&encoded(&[7; 32])).is_some_and(|key| key.slot_id() == Kek::take(&mut [7; 32]).slot_id())
        );
        for text in [
            STANDARD.encode([7; 31]),
            STANDARD.encode([7; 33]),
            "x".repeat(44),
            String::new(),
            "A".repeat(400),
        ] {
            assert!(decoded(&text).is_none(), "{text}");
        }
    }

    #[test]
    fn what_stands_before_vault_may_answer_as_it_likes() {
        assert!(parse(b"<html>", 200).is_none());
        assert!(parse(b"<html>", 502).is_some_and(|answer| answer.errors.is_empty()));
        let answer = parse(br#"{"errors":["a\n\"b\""],"x":1}"#, 400).unwrap();
        assert_eq!(said(&answer.errors), r#"a\n\"b\""#);
        assert!(said(&["y".repeat(1000).into()]).len() <= REASON_CHARS_MAX);
    }
}
