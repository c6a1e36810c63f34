//! Whether the broker on this host serves: the AMQP port answers the way a client needs it to, and the control socket
//! says that the store takes writes. It logs in nowhere and needs no shell, so that a container can use it as a probe.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::config::Config;
use super::control::{self, Request};
use super::error::{Error, Result};
use super::listeners::{PeerVerification, Tls};
use super::values::Listen;
use crate::limits::PROBE_SECONDS_MAX;

/// For each step; a probe's own time-out is usually longer.
const STEP_PATIENCE: Duration = Duration::from_secs(5);

/// Longer than the broker waits for its disk, so that its reason arrives.
const PING_PATIENCE: Duration = Duration::from_secs(PROBE_SECONDS_MAX + 2);

/// The name that the server's certificate is checked against.
const SERVER_NAME: &str = "localhost";

/// AMQP 0-9-1 section 4.2.2.
const PROTOCOL_HEADER: &[u8; 8] = b"AMQP\x00\x00\x09\x01";

/// A method frame on channel 0 (section 4.2.3); its size follows.
const METHOD_FRAME_HEAD: [u8; 3] = [1, 0, 0];

/// Class 10, method 10 (section 1.4.2.1).
const CONNECTION_START: [u8; 4] = [0, 10, 0, 10];

/// Connects to the first AMQPS listener (the first plain one where TLS is off) as a client would, expects
/// connection.start, then asks the control socket.
pub async fn healthcheck(config: &Config) -> Result<()> {
    match (&config.tls, config.listeners.ssl.first(), config.listeners.tcp.first()) {
        (Some(tls), Some(listen), _) => step(&format!("AMQPS on {listen}"), over_tls(tls, listen)).await?,
        (_, _, Some(listen)) => {
            let plain = async { expect_start(connect(listen).await?).await };
            step(&format!("AMQP on {listen}"), plain).await?;
        }
        _ => return Err(Error::NoListener),
    }
    match control::ask(&config.control_socket, &Request::Ping, PING_PATIENCE).await {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::Unhealthy { step: "control socket".into(), problem: error.to_string() }),
    }
}

async fn step(name: &str, work: impl Future<Output = io::Result<()>>) -> Result<()> {
    let problem = match tokio::time::timeout(STEP_PATIENCE, work).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", STEP_PATIENCE.as_secs()),
    };
    Err(Error::Unhealthy { step: name.to_owned(), problem })
}

async fn connect(listen: &Listen) -> io::Result<TcpStream> {
    let anywhere = |host: &str| host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified());
    match listen.host.as_deref().filter(|host| !anywhere(host)) {
        Some(host) => TcpStream::connect((host, listen.port)).await,
        None => match TcpStream::connect(("127.0.0.1", listen.port)).await {
            Ok(stream) => Ok(stream),
            Err(error) => TcpStream::connect(("::1", listen.port)).await.map_err(|_| error),
        },
    }
}

async fn over_tls(tls: &Tls, listen: &Listen) -> io::Result<()> {
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client_config(tls)?));
    let name = ServerName::try_from(SERVER_NAME).map_err(io::Error::other)?;
    let shaken = connector.connect(name, connect(listen).await?).await;
    if tls.verification != PeerVerification::Required {
        return expect_start(shaken?).await;
    }
    // The check has no client certificate (the server's own is not one), so being sent away for that reason is the
    // right answer. In TLS 1.3 it comes after the handshake; writing first could lose it to a reset.
    let refusal = match shaken {
        Ok(mut stream) => stream.read_u8().await.map(|_| ()),
        Err(error) => Err(error),
    };
    match refusal {
        Err(error) if asks_for_certificate(&error) => Ok(()),
        Err(error) => Err(error),
        Ok(()) => Err(io::Error::other("served without the client certificate that ssl_options demand")),
    }
}

fn asks_for_certificate(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    matches!(
        inner,
        Some(rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired
                | AlertDescription::HandshakeFailure
                | AlertDescription::BadCertificate
        ))
    )
}

async fn expect_start<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> io::Result<()> {
    stream.write_all(PROTOCOL_HEADER).await?;
    stream.flush().await?;
    let mut head = [0; 11];
    stream.read_exact(&mut head).await?;
    let [t, c1, c2, _, _, _, _, method @ ..] = head;
    if [t, c1, c2] != METHOD_FRAME_HEAD || method != CONNECTION_START {
        return Err(io::Error::other("the answer to the AMQP header is not connection.start"));
    }
    // Only politeness from here on: the broker may already have closed.
    let _ = stream.shutdown().await;
    Ok(())
}

fn client_config(tls: &Tls) -> io::Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let pem = |path: &std::path::Path, problem: &dyn std::fmt::Display| {
        io::Error::other(format!("{}: {problem}", path.display()))
    };
    let own = CertificateDer::pem_file_iter(&tls.cert_file)
        .map_err(|e| pem(&tls.cert_file, &e))?
        .next()
        .ok_or_else(|| pem(&tls.cert_file, &"no certificate in it"))?
        .map_err(|e| pem(&tls.cert_file, &e))?;
    let mut authority = None;
    if let Some(path) = &tls.ca_file {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(path).map_err(|e| pem(path, &e))? {
            roots.add(certificate.map_err(|e| pem(path, &e))?).map_err(|e| pem(path, &e))?;
        }
        let built = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
        authority = Some(built.map_err(|e| pem(path, &e))?);
    }
    let verifier = Arc::new(OwnServer { authority, own, provider: provider.clone() });
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}

/// Accepts what the configured CA vouches for under the name `localhost`; and, byte for byte, the configured server
/// certificate where it is made out to another name or signed by a CA that clients get elsewhere. An expired one is
/// refused either way: clients refuse it too.
#[derive(Debug)]
struct OwnServer {
    authority: Option<Arc<WebPkiServerVerifier>>,
    own: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for OwnServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let unknown = || Err(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer));
        let verdict = self.authority.as_ref().map_or_else(unknown, |authority| {
            authority.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
        });
        match verdict {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. }
                | CertificateError::UnknownIssuer,
            )) if *end_entity == self.own => Ok(ServerCertVerified::assertion()),
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use rustls::pki_types::PrivateKeyDer;
    use rustls::server::WebPkiClientVerifier;
    use tokio::net::TcpListener;

    use super::super::config::Sources;
    use super::super::control::ControlListener;
    use super::super::control::tests::OneQueue;
    use super::super::environment::Environment;
    use super::*;

    const START: [u8; 12] = [1, 0, 0, 0, 0, 0, 200, 0, 10, 0, 10, 0];

    struct Host {
        folder: tempfile::TempDir,
        port: u16,
    }

    #[derive(Clone, Copy, PartialEq)]
    enum Serving {
        Plain,
        Tls,
        TlsWithClientCertificate,
    }

    impl Host {
        // A broker's outside: the port says `answer`, the control socket says whether it is healthy.
        async fn start(serving: Serving, san: &str, answer: &'static [u8], healthy: bool) -> Host {
            let folder = tempfile::tempdir().unwrap();
            let config = server_config(folder.path(), san, serving == Serving::TlsWithClientCertificate);
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            tokio::spawn(async move {
                let (stream, _) = listener.accept().await.unwrap();
                if serving == Serving::Plain {
                    speak(stream, answer).await;
                } else if let Ok(stream) = tokio_rustls::TlsAcceptor::from(config).accept(stream).await {
                    speak(stream, answer).await;
                }
            });
            let control = ControlListener::bind(&folder.path().join("ctl.sock")).unwrap();
            tokio::spawn(control::serve(control, Arc::new(OneQueue { healthy }), std::future::pending()));
            Host { folder, port }
        }

        fn config(&self, more: &str) -> Config {
            let text = "default_pass = x\nat_rest.mode = plain-insecure\ncontrol.socket = ROOT/ctl.sock\n\
                        ssl_options.certfile = ROOT/cert.pem\nssl_options.keyfile = ROOT/key.pem\n";
            let root = self.folder.path().display().to_string();
            let text = format!("{text}{more}").replace("ROOT", &root).replace("PORT", &self.port.to_string());
            let file = self.folder.path().join("c.conf");
            std::fs::write(&file, text).unwrap();
            let etc = PathBuf::from("/nowhere");
            let environment = Environment::default();
            Config::load(&Sources { config_flags: vec![file], key_flags: Vec::new(), environment, etc })
                .unwrap()
        }

        async fn check(&self, more: &str) -> std::result::Result<(), String> {
            healthcheck(&self.config(more)).await.map_err(|e| e.to_string())
        }
    }

    async fn speak<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, answer: &[u8]) {
        let mut header = [0; 8];
        if stream.read_exact(&mut header).await.is_ok() && header == *PROTOCOL_HEADER {
            stream.write_all(answer).await.unwrap();
            let _ = stream.shutdown().await;
        }
    }

    fn server_config(folder: &Path, san: &str, ask_client: bool) -> Arc<rustls::ServerConfig> {
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_pem = ca.self_signed(&ca_key).unwrap();
        let issuer = rcgen::Issuer::new(ca, ca_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf =
            rcgen::CertificateParams::new(vec![san.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        std::fs::write(folder.join("ca.pem"), ca_pem.pem()).unwrap();
        std::fs::write(folder.join("cert.pem"), leaf.pem()).unwrap();
        std::fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider.clone());
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(ca_pem.der().clone()).unwrap();
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let builder = if ask_client {
            builder.with_client_cert_verifier(clients)
        } else {
            builder.with_no_client_auth()
        };
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
        Arc::new(builder.with_single_cert(vec![leaf.der().clone()], key).unwrap())
    }

    const TLS: &str = "listeners.ssl.default = PORT\nssl_options.cacertfile = ROOT/ca.pem\n";

    #[tokio::test]
    async fn a_serving_broker_is_healthy() {
        let host = Host::start(Serving::Tls, "localhost", &START, true).await;
        assert_eq!(host.check(TLS).await, Ok(()));
        let host = Host::start(Serving::Plain, "localhost", &START, true).await;
        let plain = "listeners.ssl = none\nlisteners.tcp.1 = 0.0.0.0:PORT\n";
        assert_eq!(host.check(plain).await, Ok(()));
    }

    #[tokio::test]
    async fn its_own_certificate_is_good_under_any_name_and_without_its_ca() {
        let host = Host::start(Serving::Tls, "mq.example.org", &START, true).await;
        assert_eq!(host.check(TLS).await, Ok(()));
        let host = Host::start(Serving::Tls, "localhost", &START, true).await;
        assert_eq!(host.check("listeners.ssl.1 = 127.0.0.1:PORT\n").await, Ok(()));
    }

    #[tokio::test]
    async fn somebody_elses_certificate_is_not() {
        let host = Host::start(Serving::Tls, "localhost", &START, true).await;
        // The files now name another CA and another certificate than the one that is served.
        server_config(host.folder.path(), "localhost", false);
        let problem = host.check(TLS).await.unwrap_err();
        assert!(problem.contains("AMQPS on [::]:") && problem.contains("certificate"), "{problem}");
    }

    #[tokio::test]
    async fn being_asked_for_a_client_certificate_is_healthy_where_that_is_configured() {
        let required =
            format!("{TLS}ssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true\n");
        let host = Host::start(Serving::TlsWithClientCertificate, "localhost", &START, true).await;
        assert_eq!(host.check(&required).await, Ok(()));
        let host = Host::start(Serving::TlsWithClientCertificate, "localhost", &START, true).await;
        assert!(host.check(TLS).await.is_err());
    }

    #[tokio::test]
    async fn a_port_that_does_not_speak_amqp_is_unhealthy() {
        let host = Host::start(Serving::Tls, "localhost", b"HTTP/1.1 400", true).await;
        assert!(host.check(TLS).await.unwrap_err().contains("not connection.start"));
        let host = Host::start(Serving::Plain, "localhost", b"AMQP", true).await;
        assert!(host.check("listeners.ssl = none\nlisteners.tcp.1 = 127.0.0.1:PORT\n").await.is_err());
    }

    #[tokio::test]
    async fn a_store_that_takes_no_writes_is_unhealthy() {
        let host = Host::start(Serving::Tls, "localhost", &START, false).await;
        let problem = host.check(TLS).await.unwrap_err();
        assert_eq!(problem, "unhealthy: control socket: the store takes no writes");
    }
}
