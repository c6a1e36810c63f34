//! The broker's picture for the control socket: what the engine shows, with what only the composition
//! root knows (configuration, listeners, the process).

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::engine::Engine;
use crate::engine::view::{
    BackupView, BindingView, ExchangeView, KeyringChange, KeyringRefused, KeyringView, ListenerView,
    QueueView, StatusView, View,
};
use crate::net::Listening;
use crate::store::Backup;

use super::config::{Config, node_name};
use super::{SEALMQ_VERSION, keyring, measure};

/// Implements [`View`] for a running broker.
pub(super) struct Picture {
    engine: Arc<Engine>,
    started: Instant,
    /// what does not change while the broker runs
    fixed: StatusView,
    data_dir: std::path::PathBuf,
}

impl Picture {
    pub fn new(config: &Config, engine: Arc<Engine>, listening: &[Listening]) -> Picture {
        let total = measure::memory_total_bytes().unwrap_or(0);
        let mode = engine.store().mode();
        let fixed = StatusView {
            pid: std::process::id(),
            node: node_name(),
            product: config.identity.product.clone(),
            product_version: config.identity.version.clone(),
            sealmq_version: SEALMQ_VERSION.to_owned(),
            cluster_name: config.identity.cluster_name.clone(),
            data_dir: config.data_dir.display().to_string(),
            at_rest_mode: mode.name().to_owned(),
            config_files: config.files.iter().map(|path| path.display().to_string()).collect(),
            log_files: vec!["<stdout>".to_owned()],
            memory_limit_bytes: config.memory_high_watermark.bytes(total),
            disk_free_limit_bytes: config.disk_free_limit.bytes(total),
            vhosts: 1,
            listeners: listening.iter().map(listener).collect(),
            ..StatusView::default()
        };
        Picture { engine, started: Instant::now(), fixed, data_dir: config.data_dir.clone() }
    }

    fn of_vhost<T>(&self, vhost: &str, view: impl FnOnce(&Engine) -> T) -> Option<T> {
        (vhost == self.engine.vhost()).then(|| view(&self.engine))
    }
}

fn listener(listening: &Listening) -> ListenerView {
    let (protocol, purpose) = match listening.is_tls() {
        true => ("amqp/ssl", "AMQP 0-9-1 over TLS"),
        false => ("amqp", "AMQP 0-9-1"),
    };
    let address = listening.address;
    ListenerView {
        interface: if address.is_ipv6() { format!("[{}]", address.ip()) } else { address.ip().to_string() },
        port: address.port(),
        protocol: protocol.to_owned(),
        purpose: purpose.to_owned(),
    }
}

impl View for Picture {
    fn ping(&self) -> Result<(), String> {
        if self.engine.is_stopping() {
            return Err("the broker is stopping".to_owned());
        }
        self.engine.store().probe().map_err(|e| format!("{}: {e} ({})", e.code(), e.remedy()))
    }

    fn status(&self) -> StatusView {
        let totals = self.engine.totals();
        let (file_descriptors, file_descriptors_limit) = measure::file_descriptors();
        let alarms = match self.engine.alarm() {
            None => Vec::new(),
            Some(reason) => ["memory", "disk"]
                .into_iter()
                .filter(|resource| reason.contains(resource))
                .map(str::to_owned)
                .collect(),
        };
        StatusView {
            uptime_seconds: self.started.elapsed().as_secs(),
            running: !self.engine.is_stopping(),
            alarms,
            memory_bytes: measure::memory_resident_bytes().unwrap_or(0),
            file_descriptors,
            file_descriptors_limit,
            disk_free_bytes: measure::disk_free_bytes(&self.data_dir).unwrap_or(0),
            connections: self.engine.connection_count() as u64,
            consumers: totals.consumers,
            queues: totals.queues,
            messages: totals.messages,
            ..self.fixed.clone()
        }
    }

    fn back_up(&self, dir: &Path) -> Result<BackupView, String> {
        let begun = Instant::now();
        let made = self.engine.store().backup(dir).map_err(|e| {
            tracing::error!(code = e.code(), dir = %dir.display(), "a backup has failed: {e}");
            format!("{}: {e} ({})", e.code(), e.remedy())
        })?;
        let Backup { commit_seq, keyring_generation, bytes, .. } = made;
        let took_ms = begun.elapsed().as_millis() as u64;
        tracing::info!(dir = %made.dir.display(), commit_seq, bytes, took_ms, "backup made");
        Ok(BackupView { dir: made.dir.display().to_string(), commit_seq, keyring_generation, bytes })
    }

    fn queues(&self, vhost: &str) -> Option<Vec<QueueView>> {
        self.of_vhost(vhost, Engine::queue_views)
    }

    fn exchanges(&self, vhost: &str) -> Option<Vec<ExchangeView>> {
        self.of_vhost(vhost, Engine::exchange_views)
    }

    fn bindings(&self, vhost: &str) -> Option<Vec<BindingView>> {
        self.of_vhost(vhost, Engine::binding_views)
    }

    fn keyring(&self, change: KeyringChange) -> Result<KeyringView, KeyringRefused> {
        keyring::change(self.engine.store(), change)
    }
}
