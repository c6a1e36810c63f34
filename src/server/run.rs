//! The composition root: builds every part in the order of dependency, then binds, then serves, then
//! drains. Nothing here decides anything that a part could decide itself.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;

use crate::engine::{Engine, EngineError, Thresholds, UserSpec};
use crate::net::tls::{self, TlsConfig};
use crate::net::{self, Listening};
use crate::session;
use crate::session::port::Mechanism;
use crate::store::{Mode, OpenOptions, Recovered, Store, StoreError};

use super::at_rest::AtRest;
use super::config::Config;
use super::control::{self, ControlListener};
use super::hardening;
use super::key_source::{self, KeyError};
use super::listeners::{LoginFrom, PeerVerification, Tls, TlsVersion};
use super::logging;
use super::measure;
use super::picture::Picture;
use super::progress_line::{ProgressLine, reading};
use super::users;
use super::values::Listen;

/// How long connections may take to say goodbye before the store is closed without them.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// What keeps the broker from starting, or ended it; each names what is wrong and where.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Configuration, control socket, logging.
    #[error(transparent)]
    Server(#[from] super::error::Error),
    /// The key for data at rest.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The store; has a code and a remedy.
    #[error("{code}: {0} ({remedy})", code = .0.code(), remedy = .0.remedy())]
    Store(#[from] StoreError),
    /// What the store gave back cannot be understood.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// A port.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// as configured
        address: String,
        /// why
        source: std::io::Error,
    },
    /// The runtime or signal handlers.
    #[error("{0}")]
    System(std::io::Error),
    /// The store failed while serving; everything confirmed before is safe.
    #[error(
        "E_COMMIT_FAILED: the store has failed while serving: {0}; nothing was confirmed since, look at the disk and start again"
    )]
    StoreFailed(String),
}

impl RunError {
    /// The exit status of sysexits.h: 78 configuration, 75 a key service that may answer later, 74 the store's disk,
    /// 69 what does not serve, 70 the rest.
    pub fn exit_status(&self) -> u8 {
        match self {
            RunError::Key(KeyError::Service(error)) | RunError::Store(StoreError::KeyService(error)) => {
                if error.is_passing {
                    75
                } else {
                    78
                }
            }
            RunError::Server(super::error::Error::Unhealthy { .. }) => 69,
            RunError::Server(_) | RunError::Tls(_) | RunError::Key(_) => 78,
            RunError::Store(_) | RunError::StoreFailed(_) | RunError::Engine(_) => 74,
            RunError::Listen { .. } => 69,
            RunError::System(_) => 70,
        }
    }
}

/// How serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// after SIGTERM or SIGINT: everything was committed
    Drained,
    /// after a second signal: at once
    AtOnce,
}

/// What an operator accepts at this one start, because the store would be refused otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// A store whose last commit is this one, although its anchor is lost or tells of a later one.
    pub rollback: Option<u64>,
    /// Queues that do not hold what was committed.
    pub quarantine: bool,
}

/// Runs the broker until a signal ends it. Logging must have been started.
///
/// # Errors
/// [`RunError`]; the store is left as it was or committed.
pub fn run(config: &Config, accepted: Accepted) -> Result<Ended, RunError> {
    logging::tell(&config.notices);
    warn_of_unheeded(config);
    let (store, recovered) = open_store(config, accepted)?;
    logging::tell(&hardening::swap_notices());
    let engine = start_engine(config, store.clone(), recovered)?;
    let tls = config.tls.as_ref().map(tls_config).transpose()?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(RunError::System)?;
    let ended = runtime.block_on(serve(config, engine.clone(), tls));
    // Connections that did not drain end here, with their sockets.
    runtime.shutdown_background();
    engine.note_deliveries();
    if let Err(error) = store.close() {
        tracing::error!(code = error.code(), "{error}");
        ended?;
        return Err(error.into());
    }
    tracing::info!("the store is closed");
    ended
}

/// Settings that are read and checked, but not acted on yet: an operator who relies on one must not find
/// out by an accident.
fn warn_of_unheeded(config: &Config) {
    let socket = &config.socket;
    if socket.keepalive || socket.send_buffer_bytes.is_some() || socket.receive_buffer_bytes.is_some() {
        tracing::warn!("tcp_listen_options.keepalive, sndbuf and recbuf are NOT in effect yet");
    }
}

fn open_store(config: &Config, accepted: Accepted) -> Result<(Arc<Store>, Recovered), RunError> {
    let (mode, kek) = match &config.at_rest {
        AtRest::PlainInsecure => (Mode::PlainInsecure, None),
        AtRest::Sealed(source) => (Mode::Sealed, Some(key_source::load(source, &config.data_dir)?)),
    };
    let (from, mut line) = (Instant::now(), ProgressLine::new());
    let (store, recovered) = Store::open(OpenOptions {
        anchor: config.anchor.clone(),
        accept_rollback: accepted.rollback,
        quarantine: accepted.quarantine,
        padding: config.padding,
        erase_within: config.erase_within,
        reseal_after: config.reseal_after,
        progress: Box::new(move |progress| match progress.is_over {
            true => line.clear(),
            false => line.show(|| reading(progress)),
        }),
        ..OpenOptions::new(&config.data_dir, mode, kek)
    })?;
    let held = recovered
        .queues
        .iter()
        .map(|queue| queue.runs.iter().map(|run| run.count).sum::<u64>() + queue.letters.len() as u64);
    let messages: u64 = held.sum();
    tracing::info!(
        messages,
        quarantined = recovered.quarantined.len(),
        faulty_queues = recovered.faults.len(),
        clean = recovered.clean,
        took_ms = from.elapsed().as_millis() as u64,
        data_dir = %config.data_dir.display(),
        "store open"
    );
    for lost in &recovered.quarantined {
        tracing::error!(?lost, "a damaged record is quarantined: it will not be delivered, nor deleted");
    }
    Ok((store, recovered))
}

fn start_engine(config: &Config, store: Arc<Store>, recovered: Recovered) -> Result<Arc<Engine>, RunError> {
    let engine = Engine::start(store, recovered, &config.default_vhost)?;
    engine.set_window(config.resident_limit.messages, config.resident_limit.bytes);
    let memory = measure::memory_total_bytes().unwrap_or(0);
    engine.set_disk_reserve(config.disk_free_limit.bytes(memory));
    for user in &config.users {
        let permissions = user.permissions_in(&config.default_vhost);
        if permissions.is_none() {
            tracing::warn!(user = user.name, "this user has no permissions in the virtual host");
        }
        engine.ensure_user(&UserSpec {
            name: &user.name,
            password: user.password.expose().as_bytes(),
            tags: &user.tags,
            permissions,
        })?;
    }
    engine.users().set_loopback_only(config.loopback_users.iter().cloned());
    Ok(engine)
}

async fn serve(config: &Config, engine: Arc<Engine>, tls: Option<Arc<TlsConfig>>) -> Result<Ended, RunError> {
    let mut signals = Signals::new().map_err(RunError::System)?;
    // Before the ports: who sees a port open may ask sealmqctl about it.
    let control = ControlListener::bind(&config.control_socket)?;
    let listening = bind_all(config, tls)?;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let picture = Arc::new(Picture::new(config, engine.clone(), &listening));
    let control_stop = wait_for(stopped.clone());
    let control = tokio::spawn(control::serve(control, picture, control_stop));
    let mut serving = JoinSet::new();
    for listener in listening {
        let protocol = if listener.is_tls() { "amqps" } else { "amqp" };
        tracing::info!(address = %listener.address, protocol, "listening");
        serving.spawn(net::serve(listener, engine.clone(), settings(config), stopped.clone()));
    }
    let timekeeper = tokio::spawn(engine.clone().keep_time());
    tracing::info!("Server startup complete");
    let ended = tokio::select! {
        () = signals.next() => Ok(Ended::Drained),
        failure = watch(config, &engine) => Err(RunError::StoreFailed(failure)),
    };
    tracing::info!("stopping: connections are told, what was accepted is committed");
    let _ = stop.send(true);
    engine.stop();
    let drained = async { while serving.join_next().await.is_some() {} };
    tokio::select! {
        () = drained => {}
        () = tokio::time::sleep(DRAIN_TIMEOUT) => tracing::warn!("some connections did not say goodbye in time"),
        () = signals.next() => {
            tracing::warn!("a second signal: stopping at once");
            return Ok(Ended::AtOnce);
        }
    }
    timekeeper.abort();
    let _ = control.await;
    ended
}

/// Looks at memory, disk and store, once a second or sooner; returns when the store has failed.
async fn watch(config: &Config, engine: &Engine) -> String {
    let total = measure::memory_total_bytes();
    let thresholds = Thresholds {
        memory_bytes_max: total.map_or(0, |total| config.memory_high_watermark.bytes(total)),
        disk_free_bytes_min: total.map_or(0, |total| config.disk_free_limit.bytes(total)),
    };
    let (mut last, mut was_short_of_disk) = (None, false);
    loop {
        if let Some(failure) = engine.store().failure() {
            return failure.to_string();
        }
        let used = measure::memory_resident_bytes();
        engine.fit_into(used, thresholds.memory_bytes_max);
        // What is not in a table yet goes to the disk a second time before its log is deleted.
        let owed = engine.store().unflushed_bytes();
        let free_now = measure::disk_free_bytes(&config.data_dir);
        let free = free_now.map(|free| free.saturating_sub(owed));
        let alarm = thresholds.judge(used, free);
        if alarm.disk && !was_short_of_disk && !thresholds.judge(used, free_now).disk {
            // While nobody publishes nothing else would have it written, and the alarm would last.
            let store = Arc::clone(engine.store());
            tokio::task::spawn_blocking(move || store.begin_flush());
        }
        was_short_of_disk = alarm.disk;
        engine.set_alarm(alarm);
        let reason = engine.alarm();
        if reason != last {
            match reason {
                Some(reason) => tracing::warn!(reason, "alarm: publishers are blocked"),
                None => tracing::info!("the alarm is over: publishers go on"),
            }
            last = reason;
        }
        tokio::time::sleep(thresholds.look_again_in(used, free)).await;
    }
}

async fn wait_for(mut stopped: net::Stop) {
    // An error means that the sender is gone, which ends the server as well.
    let _ = stopped.changed().await;
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn bind_all(config: &Config, tls: Option<Arc<TlsConfig>>) -> Result<Vec<Listening>, RunError> {
    let mut bound = Vec::new();
    for listen in &config.listeners.ssl {
        bound.push(bind(listen, config, tls.clone())?);
    }
    for listen in &config.listeners.tcp {
        bound.push(bind(listen, config, None)?);
    }
    Ok(bound)
}

fn bind(listen: &Listen, config: &Config, tls: Option<Arc<TlsConfig>>) -> Result<Listening, RunError> {
    let failed = |source| RunError::Listen { address: listen.to_string(), source };
    let addresses: Vec<SocketAddr> = listen.socket_addresses().map_err(failed)?;
    let mut last = std::io::Error::other("the name has no address");
    for address in addresses {
        match net::bind(address, config.socket.backlog, tls.clone()) {
            Ok(listening) => return Ok(listening),
            Err(error) => last = error,
        }
    }
    Err(failed(last))
}

fn tls_config(tls: &Tls) -> Result<Arc<TlsConfig>, tls::TlsError> {
    tls::server_config(&tls::TlsOptions {
        ca_file: tls.ca_file.clone(),
        certificate_file: tls.cert_file.clone(),
        key_file: tls.key_file.clone(),
        client_certificates: match tls.verification {
            PeerVerification::None => tls::ClientCertificates::NotAsked,
            PeerVerification::Optional => tls::ClientCertificates::Verified,
            PeerVerification::Required => tls::ClientCertificates::Required,
        },
        allows_tls12: tls.versions.contains(&TlsVersion::Tls12),
    })
}

fn settings(config: &Config) -> net::Settings {
    let limits = &config.connection;
    let mechanism = |m: &users::Mechanism| match m {
        users::Mechanism::Plain => Mechanism::Plain,
        users::Mechanism::AmqPlain => Mechanism::AmqPlain,
        users::Mechanism::External => Mechanism::External,
    };
    let login_from = config.tls.as_ref().map_or(LoginFrom::CommonName, |tls| tls.login_from);
    net::Settings {
        session: session::Settings {
            identity: session::Identity {
                product: config.identity.product.clone(),
                version: config.identity.version.clone(),
                cluster_name: config.identity.cluster_name.clone(),
            },
            mechanisms: config.mechanisms.iter().map(mechanism).collect(),
            frame_size_bytes_max: limits.frame_bytes_max,
            initial_frame_size_bytes_max: limits.initial_frame_bytes_max,
            channel_max: limits.channels_max,
            heartbeat_seconds: limits.heartbeat_seconds,
            message_bytes_max: limits.message_bytes_max,
            delivery_timeout_ms: limits.consumer_timeout_ms,
        },
        handshake_timeout: Duration::from_millis(limits.handshake_timeout_ms),
        tls_handshake_timeout: Duration::from_millis(limits.tls_handshake_timeout_ms),
        nodelay: config.socket.nodelay,
        login_from: match login_from {
            LoginFrom::CommonName => tls::LoginFrom::CommonName,
            LoginFrom::DistinguishedName => tls::LoginFrom::DistinguishedName,
            LoginFrom::SubjectAlternativeName => tls::LoginFrom::AlternativeName,
        },
    }
}
