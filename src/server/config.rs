//! What the configuration means: validated, typed, complete. Built once at start from files, environment and flags
//! (flag > environment > file > default); nothing else in the program knows keys or variables.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::at_rest::{self, AtRest};
use super::environment::Environment;
use super::error::{Error, Result};
use super::listeners::{self, Listeners, PeerVerification, Tls};
use super::raw_config::{Origin, RawConfig};
use super::settings::{Notice, Settings};
use super::users::{self, Mechanism, User};
use super::values::{self, LogLevel, Watermark};
use super::{PRODUCT_DEFAULT, PRODUCT_VERSION_DEFAULT, control};
use crate::limits;
use crate::store::Padding;

const DATA_DIR_DEFAULT: &str = "/var/lib/sealmq";

/// Everything the server is told. `Debug` shows no secret.
#[derive(Clone, Debug)]
pub struct Config {
    /// The files that were read, in order.
    pub files: Vec<PathBuf>,
    /// Ports.
    pub listeners: Listeners,
    /// AMQPS settings; there whenever `listeners.ssl` is not empty.
    pub tls: Option<Tls>,
    /// SASL mechanisms in the order of preference.
    pub mechanisms: Vec<Mechanism>,
    /// Users who may connect only from this host.
    pub loopback_users: Vec<String>,
    /// Users to create at start, the administrator first.
    pub users: Vec<User>,
    /// The virtual host that exists from the start.
    pub default_vhost: String,
    /// What one connection may do.
    pub connection: ConnectionLimits,
    /// Options of listening sockets and what they accept.
    pub socket: SocketOptions,
    /// Memory in use above which publishers are stopped.
    pub memory_high_watermark: Watermark,
    /// What of a long queue stays in memory.
    pub resident_limit: ResidentLimit,
    /// Free disk space below which publishers are stopped.
    pub disk_free_limit: Watermark,
    /// Console logging.
    pub log: Log,
    /// Who this broker says it is.
    pub identity: Identity,
    /// The store's folder.
    pub data_dir: PathBuf,
    /// Sealed or not, and the key.
    pub at_rest: AtRest,
    /// Where the store's anchor lies, if not in its folder.
    pub anchor: Option<PathBuf>,
    /// How a sealed store hides lengths.
    pub padding: Padding,
    /// When a deleted message has left the disk.
    pub erase_within: Duration,
    /// Age of a data key at which what it sealed is sealed again; `None` for never.
    pub reseal_after: Option<Duration>,
    /// The control socket's path.
    pub control_socket: PathBuf,
    /// What is worth telling, in order; see [`super::logging::tell`].
    pub notices: Vec<Notice>,
}

/// What one connection may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Heartbeat offered in connection.tune; 0 is none.
    pub heartbeat_seconds: u16,
    /// Largest frame in bytes, framing included.
    pub frame_bytes_max: u32,
    /// Largest frame before tune-ok in bytes.
    pub initial_frame_bytes_max: u32,
    /// Channels; 0 is as many as AMQP allows.
    pub channels_max: u16,
    /// Largest message body in bytes.
    pub message_bytes_max: u64,
    /// From accept to open-ok.
    pub handshake_timeout_ms: u64,
    /// From accept to the end of the TLS handshake.
    pub tls_handshake_timeout_ms: u64,
    /// A delivery that is not acknowledged within this time closes its channel; 0 is never.
    pub consumer_timeout_ms: u64,
}

/// Socket options (`tcp_listen_options.*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketOptions {
    /// Connections the kernel keeps waiting for accept.
    pub backlog: u32,
    /// TCP_NODELAY.
    pub nodelay: bool,
    /// SO_KEEPALIVE.
    pub keepalive: bool,
    /// SO_SNDBUF in bytes, where set.
    pub send_buffer_bytes: Option<u32>,
    /// SO_RCVBUF in bytes, where set.
    pub receive_buffer_bytes: Option<u32>,
}

/// Console logging (`log.console*`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Whether anything is written at all.
    pub console: bool,
    /// From which level on.
    pub level: LogLevel,
    /// How it looks.
    pub format: LogFormat,
    /// `SEALMQ_LOG`: a filter that replaces the level.
    pub filter: Option<String>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Plaintext,
    /// One JSON object per line.
    Json,
}

/// What clients are told in connection.start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `product`.
    pub product: String,
    /// `version`.
    pub version: String,
    /// `cluster_name`.
    pub cluster_name: String,
}

/// Where configuration is looked for.
pub struct Sources {
    /// `--config FILE`, in order; folders stand for their `*.conf`.
    pub config_flags: Vec<PathBuf>,
    /// Other flags that stand for keys: (flag as typed, key, value).
    pub key_flags: Vec<(String, String, String)>,
    /// The environment.
    pub environment: Environment,
    /// `/etc`, or a stand-in.
    pub etc: PathBuf,
}

impl Sources {
    /// This process's environment and `/etc`, with these `--config` flags.
    pub fn of_process(config_flags: Vec<PathBuf>) -> Sources {
        let environment = Environment::of_process();
        Sources { config_flags, key_flags: Vec::new(), environment, etc: PathBuf::from("/etc") }
    }

    /// Everything that was written, with ranks; nothing is interpreted yet.
    pub fn read(&self) -> Result<RawConfig> {
        let mut raw = RawConfig::read(&self.config_flags, &self.environment, &self.etc)?;
        self.environment.overlay(&mut raw)?;
        for (flag, key, value) in &self.key_flags {
            raw.set(key.clone(), value.clone(), Origin::Flag { flag: flag.clone() });
        }
        Ok(raw)
    }
}

impl Config {
    /// Reads, checks and types the configuration. Password files are read; keys and certificates are only named.
    pub fn load(sources: &Sources) -> Result<Config> {
        let raw = sources.read()?;
        let mut settings = Settings::new(&raw, &sources.environment);
        let (listeners, tls) = listeners::read(&mut settings)?;
        let data_dir = data_dir(&settings)?;
        let resolved = at_rest::read(&mut settings, &data_dir)?;
        let asks = tls.as_ref().is_some_and(|tls| tls.verification != PeerVerification::None);
        Ok(Config {
            files: raw.files().to_vec(),
            mechanisms: users::read_mechanisms(&mut settings, asks)?,
            loopback_users: users::read_loopback_users(&settings)?,
            users: users::read_users(&settings, resolved.secrets.as_deref())?,
            default_vhost: settings.text("default_vhost")?.unwrap_or_else(|| "/".into()),
            connection: connection_limits(&settings)?,
            socket: socket_options(&settings)?,
            memory_high_watermark: watermark(
                &settings,
                "vm_memory_high_watermark",
                1.0,
                Watermark::Relative(0.6),
            )?,
            resident_limit: resident_limit(&settings)?,
            disk_free_limit: watermark(&settings, "disk_free_limit", 100.0, Watermark::Absolute(50_000_000))?,
            log: log(&settings)?,
            identity: identity(&settings)?,
            control_socket: control_socket(&settings, &data_dir)?,
            at_rest: resolved.at_rest,
            anchor: resolved.anchor,
            padding: resolved.padding,
            erase_within: resolved.erase_within,
            reseal_after: resolved.reseal_after,
            listeners,
            tls,
            data_dir,
            notices: settings.notices,
        })
    }
}

/// How much of each queue stays in memory when there is more and the store has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResidentLimit {
    /// Messages.
    pub messages: usize,
    /// Bytes of their bodies.
    pub bytes: usize,
}

/// Where the store lies.
fn data_dir(settings: &Settings) -> Result<PathBuf> {
    Ok(settings.path("data_dir")?.unwrap_or_else(|| PathBuf::from(DATA_DIR_DEFAULT)))
}

fn control_socket(settings: &Settings, data_dir: &Path) -> Result<PathBuf> {
    Ok(settings.path("control.socket")?.unwrap_or_else(|| control::default_path(data_dir)))
}

/// Where a control socket may be found, best guess first: the configured one, else the two default places. What
/// cannot be read is left out, because the client of a running broker may know less than the broker; but a `--config`
/// that was typed must be readable.
pub fn control_socket_candidates(sources: &Sources) -> Result<Vec<PathBuf>> {
    let mut raw = match RawConfig::read(&sources.config_flags, &sources.environment, &sources.etc) {
        Err(error) if !sources.config_flags.is_empty() => return Err(error),
        read => read.unwrap_or_default(),
    };
    // It fails on secrets that this user cannot read; what it set before that is all that is needed here.
    let _ = sources.environment.overlay(&mut raw);
    let settings = Settings::new(&raw, &sources.environment);
    match settings.path("control.socket")? {
        Some(path) => Ok(vec![path]),
        None => Ok(control::default_paths(&data_dir(&settings)?).to_vec()),
    }
}

fn connection_limits(settings: &Settings) -> Result<ConnectionLimits> {
    let frames = u64::from(limits::FRAME_SIZE_BYTES_MIN)..=limits::MESSAGE_BYTES_MAX;
    let number = |key, unit, range, default| settings.number(key, unit, range, default);
    let u16s = 0..=u64::from(u16::MAX);
    // A day: longer than any useful time-out, short enough for every clock's arithmetic.
    let times = 1..=86_400_000;
    Ok(ConnectionLimits {
        heartbeat_seconds: number(
            "heartbeat",
            "seconds",
            u16s.clone(),
            u64::from(limits::HEARTBEAT_SECONDS_DEFAULT),
        )? as u16,
        frame_bytes_max: number(
            "frame_max",
            "bytes",
            frames.clone(),
            u64::from(limits::FRAME_SIZE_BYTES_DEFAULT),
        )? as u32,
        initial_frame_bytes_max: number(
            "initial_frame_max",
            "bytes",
            frames,
            u64::from(limits::INITIAL_FRAME_SIZE_BYTES_MAX),
        )? as u32,
        channels_max: number("channel_max", "channels", u16s, u64::from(limits::CHANNELS_DEFAULT))? as u16,
        message_bytes_max: number(
            "max_message_size",
            "bytes",
            1..=limits::MESSAGE_BYTES_MAX,
            limits::MESSAGE_BYTES_DEFAULT,
        )?,
        handshake_timeout_ms: number(
            "handshake_timeout",
            "milliseconds",
            times.clone(),
            limits::HANDSHAKE_SECONDS_DEFAULT * 1000,
        )?,
        tls_handshake_timeout_ms: number("ssl_handshake_timeout", "milliseconds", times, 5000)?,
        consumer_timeout_ms: consumer_timeout_ms(settings)?,
    })
}

/// RabbitMQ's users switch it off with `undefined` or `false` in advanced.config; 0 is taken for the same.
fn consumer_timeout_ms(settings: &Settings) -> Result<u64> {
    let parse = |text: &str| match text {
        "undefined" | "false" | "infinity" => Some(0),
        number => number.parse().ok().filter(|ms| *ms <= limits::CONSUMER_TIMEOUT_MS_MAX),
    };
    let expected =
        format!("milliseconds, 0 to {}, or undefined for no timeout", limits::CONSUMER_TIMEOUT_MS_MAX);
    let configured = settings.parse("consumer_timeout", &expected, parse)?;
    Ok(configured.unwrap_or(limits::CONSUMER_TIMEOUT_MS_DEFAULT))
}

fn socket_options(settings: &Settings) -> Result<SocketOptions> {
    let buffer = |key: &str| -> Result<Option<u32>> {
        let size = |t: &str| t.parse().ok().filter(|n| (1024..=1 << 30).contains(n));
        settings.parse(key, "bytes, 1024 to 1073741824", size)
    };
    Ok(SocketOptions {
        backlog: settings.number("tcp_listen_options.backlog", "connections", 1..=65_535, 1024)? as u32,
        nodelay: settings.boolean("tcp_listen_options.nodelay", true)?,
        keepalive: settings.boolean("tcp_listen_options.keepalive", false)?,
        send_buffer_bytes: buffer("tcp_listen_options.sndbuf")?,
        receive_buffer_bytes: buffer("tcp_listen_options.recbuf")?,
    })
}

fn watermark(settings: &Settings, prefix: &str, share_max: f64, default: Watermark) -> Result<Watermark> {
    let (relative, absolute) = (format!("{prefix}.relative"), format!("{prefix}.absolute"));
    let expected = format!("a share, 0.0 to {share_max:.1}");
    let share = |t: &str| t.parse().ok().filter(|share: &f64| (0.0..=share_max).contains(share));
    let relative_value = settings.parse(&relative, &expected, share)?;
    let absolute_value =
        settings.parse(&absolute, "bytes, such as 2GB, 2GiB or 2000000000", values::bytes)?;
    match (relative_value, absolute_value) {
        (Some(_), Some(_)) => Err(Error::Ambiguous { one: relative, other: absolute }),
        (Some(share), None) => Ok(Watermark::Relative(share)),
        (None, Some(bytes)) => Ok(Watermark::Absolute(bytes)),
        (None, None) => Ok(default),
    }
}

fn resident_limit(settings: &Settings) -> Result<ResidentLimit> {
    let number = settings.number(
        "queue.resident_limit.messages",
        "messages",
        1..=u64::from(u32::MAX),
        limits::RESIDENT_MESSAGES_MAX as u64,
    )?;
    let bytes = |text: &str| values::bytes(text).filter(|bytes| *bytes > 0);
    let bytes = settings.parse("queue.resident_limit.bytes", "bytes above 0, such as 32MiB", bytes)?;
    let bytes = bytes.unwrap_or(limits::RESIDENT_BYTES_MAX as u64);
    Ok(ResidentLimit { messages: number as usize, bytes: usize::try_from(bytes).unwrap_or(usize::MAX) })
}

fn log(settings: &Settings) -> Result<Log> {
    let levels = "debug, info, warning, error, critical or none";
    let format = settings.parse("log.console.formatter", "plaintext or json", |t| match t {
        "plaintext" => Some(LogFormat::Plaintext),
        "json" => Some(LogFormat::Json),
        _ => None,
    })?;
    Ok(Log {
        console: settings.boolean("log.console", true)?,
        level: settings.parse("log.console.level", levels, LogLevel::parse)?.unwrap_or(LogLevel::Info),
        format: format.unwrap_or(LogFormat::Plaintext),
        filter: settings.environment().value("SEALMQ_LOG").map(str::to_owned),
    })
}

fn identity(settings: &Settings) -> Result<Identity> {
    let text = |key: &str, default: &str| {
        settings.text(key).map(|value| value.unwrap_or_else(|| default.to_owned()))
    };
    Ok(Identity {
        product: text("server.product", PRODUCT_DEFAULT)?,
        version: text("server.version", PRODUCT_VERSION_DEFAULT)?,
        cluster_name: text("cluster_name", &node_name())?,
    })
}

/// The name of this node in RabbitMQ's shape: `sealmq@host`.
pub fn node_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let short = host.trim().split('.').next().filter(|name| !name.is_empty());
    format!("sealmq@{}", short.unwrap_or("localhost"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::at_rest::KekSource;

    struct Host(tempfile::TempDir);

    impl Host {
        fn new() -> Host {
            let host = Host(tempfile::tempdir().unwrap());
            for name in ["ssl", "secrets"] {
                std::fs::create_dir(host.0.path().join(name)).unwrap();
            }
            for name in ["ssl/ca.pem", "ssl/cert.pem", "ssl/key.pem", "secrets/at_rest_kek"] {
                host.write(name, "x");
            }
            host.write("secrets/admin_password", "generated\n");
            host
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.0.path().join(name), text).unwrap();
        }

        // `ROOT` stands for the host's folder.
        fn load(&self, text: &str, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config> {
            let root = self.0.path().display().to_string();
            self.write("c.conf", &text.replace("ROOT", &root));
            Config::load(&Sources {
                config_flags: vec![self.0.path().join("c.conf")],
                key_flags: flags
                    .iter()
                    .map(|(k, v)| (format!("--{k}"), k.to_string(), v.to_string()))
                    .collect(),
                environment: Environment::of(environment),
                etc: PathBuf::from("/nowhere"),
            })
        }
    }

    // The labs' file, its paths moved.
    const LAB: &str = "
loopback_users.guest = false
log.console = true
log.console.level = info
listeners.tcp.default = 5672
listeners.ssl.default = 5671
ssl_options.cacertfile = ROOT/ssl/ca.pem
ssl_options.certfile = ROOT/ssl/cert.pem
ssl_options.keyfile = ROOT/ssl/key.pem
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = false
default_user = $(RABBITMQ_USER)
default_pass = $(RABBITMQ_PASS)
";
    const LAB_ENVIRONMENT: [(&str, &str); 2] = [("RABBITMQ_USER", "lab"), ("RABBITMQ_PASS", "lab-pass-1")];

    #[test]
    fn the_labs_file_alone_is_enough() {
        let host = Host::new();
        let text = format!("{LAB}data_dir = ROOT/data\nat_rest.kek.generate_path = ROOT/new/at_rest_kek\n");
        let config = host.load(&text, &LAB_ENVIRONMENT, &[]).unwrap();
        assert_eq!((config.listeners.tcp.len(), config.listeners.ssl.len()), (1, 1));
        assert_eq!(config.tls.unwrap().verification, PeerVerification::Optional);
        assert_eq!(config.loopback_users, [""; 0]);
        let user = config.users.first().unwrap();
        assert_eq!((user.name.as_str(), user.password.expose()), ("lab", "lab-pass-1"));
        assert!(matches!(config.at_rest, AtRest::Sealed(KekSource::Generate { .. })));
        assert_eq!(config.padding, Padding::Padme);
        assert_eq!(config.erase_within, Duration::from_secs(24 * 3600));
        assert_eq!(config.reseal_after, Some(Duration::from_secs(30 * 24 * 3600)));
        for (written, expected) in
            [("off", None), ("0", None), ("7d", Some(Duration::from_secs(7 * 24 * 3600)))]
        {
            let text = format!("{text}at_rest.reseal_after = {written}\n");
            assert_eq!(host.load(&text, &LAB_ENVIRONMENT, &[]).unwrap().reseal_after, expected);
        }
        let warnings: Vec<_> = config.notices.iter().filter(|n| matches!(n, Notice::Warning(_))).collect();
        assert_eq!(warnings.len(), 2, "the plain listener and the new key: {warnings:?}");
    }

    #[test]
    fn defaults_are_amqps_only_and_rabbitmqs_limits() {
        let tls = "ssl_options.certfile = ROOT/ssl/cert.pem\nssl_options.keyfile = ROOT/ssl/key.pem\n";
        let text = format!("{tls}at_rest.kek.file = ROOT/secrets/at_rest_kek\n");
        let config = Host::new().load(&text, &[], &[]).unwrap();
        assert_eq!((config.listeners.tcp.len(), config.listeners.ssl.first().unwrap().port), (0, 5671));
        assert_eq!(config.data_dir, Path::new("/var/lib/sealmq"));
        assert_eq!(config.users.first().unwrap().password.expose(), "generated");
        assert_eq!(config.memory_high_watermark, Watermark::Relative(0.6));
        assert_eq!(config.disk_free_limit, Watermark::Absolute(50_000_000));
        let limits = config.connection;
        assert_eq!(
            (limits.heartbeat_seconds, limits.frame_bytes_max, limits.channels_max),
            (60, 131_072, 2047)
        );
        assert_eq!((limits.handshake_timeout_ms, limits.consumer_timeout_ms), (10_000, 1_800_000));
        assert_eq!(
            (config.identity.product.as_str(), config.identity.version.as_str()),
            ("RabbitMQ", "4.0.5")
        );
        assert_eq!(config.notices, []);
    }

    #[test]
    fn the_acknowledgement_timeout_is_milliseconds_or_off() {
        let tls = "ssl_options.certfile = ROOT/ssl/cert.pem\nssl_options.keyfile = ROOT/ssl/key.pem\n";
        let load = |value: &str| {
            let text =
                format!("{tls}at_rest.kek.file = ROOT/secrets/at_rest_kek\nconsumer_timeout = {value}\n");
            Host::new().load(&text, &[], &[]).map(|config| config.connection.consumer_timeout_ms)
        };
        assert_eq!(load("3600000").unwrap(), 3_600_000);
        for off in ["0", "undefined", "false", "infinity"] {
            assert_eq!(load(off).unwrap(), 0, "{off}");
        }
        for wrong in ["-1", "soon", "1.5", "999999999999999"] {
            let message = load(wrong).unwrap_err().to_string();
            assert!(message.contains("consumer_timeout") && message.contains("milliseconds"), "{message}");
        }
    }

    #[test]
    fn flag_beats_environment_beats_file() {
        let host = Host::new();
        let text = format!("{LAB}data_dir = /file\nat_rest.kek.file = ROOT/secrets/at_rest_kek\n");
        let mut environment = LAB_ENVIRONMENT.to_vec();
        let data_dir = |environment: &[(&str, &str)], flags: &[(&str, &str)]| {
            host.load(&text, environment, flags).unwrap().data_dir.display().to_string()
        };
        assert_eq!(data_dir(&environment, &[]), "/file");
        environment.push(("SEALMQ_DATA_DIR", "/environment"));
        assert_eq!(data_dir(&environment, &[]), "/environment");
        assert_eq!(data_dir(&environment, &[("data_dir", "/flag")]), "/flag");
    }

    #[test]
    fn an_invalid_value_of_any_kind_is_an_error_with_its_line() {
        for line in [
            "heartbeat = 70000",
            "frame_max = 100",
            "channel_max = many",
            "max_message_size = 0",
            "vm_memory_high_watermark.relative = 1.5",
            "vm_memory_high_watermark.absolute = 2XB",
            "disk_free_limit.relative = NaN",
            "log.console = maybe",
            "log.console.level = loud",
            "log.console.formatter = xml",
            "tcp_listen_options.backlog = 0",
            "tcp_listen_options.sndbuf = 1",
            "data_dir = relative",
            "default_vhost = ''",
            "default_user_tags.administrator = perhaps",
            "control.socket = ctl.sock",
            "listeners.ssl.default = 0",
            "at_rest.mode = open",
            "at_rest.padding = zeros",
            "at_rest.erase_within = 0",
            "at_rest.erase_within = 5y",
            "at_rest.reseal_after = never",
        ] {
            let base = "at_rest.kek.file = ROOT/secrets/at_rest_kek\n";
            let key = line.split(' ').next().unwrap();
            // The lab's own line of the same key would come first otherwise; the last one wins.
            let text = format!("{LAB}{base}{line}\n");
            let error = Host::new().load(&text, &LAB_ENVIRONMENT, &[]).unwrap_err().to_string();
            assert!(error.starts_with(key) && error.contains("c.conf:15): expected"), "{line}: {error}");
        }
    }

    #[test]
    fn watermarks_are_a_share_or_bytes_but_not_both() {
        let load = |more: &str| {
            let text = format!("{LAB}at_rest.kek.file = ROOT/secrets/at_rest_kek\n{more}");
            Host::new().load(&text, &LAB_ENVIRONMENT, &[])
        };
        let config =
            load("vm_memory_high_watermark.absolute = 2GB\ndisk_free_limit.relative = 1.5\n").unwrap();
        assert_eq!(config.memory_high_watermark, Watermark::Absolute(2_000_000_000));
        assert_eq!(config.disk_free_limit, Watermark::Relative(1.5));
        let both = "disk_free_limit.relative = 1.0\ndisk_free_limit.absolute = 1GB\n";
        assert!(matches!(load(both), Err(Error::Ambiguous { .. })));
    }

    #[test]
    fn debug_shows_no_password() {
        let text = format!("{LAB}at_rest.kek.file = ROOT/secrets/at_rest_kek\n");
        let config = Host::new().load(&text, &LAB_ENVIRONMENT, &[]).unwrap();
        assert!(!format!("{config:?}").contains("lab-pass-1"));
    }

    #[test]
    fn the_control_client_needs_only_the_socket_to_be_readable() {
        let host = Host::new();
        host.write("c.conf", "default_user = $(NOT_SET)\nheartbeat = wrong\ncontrol.socket = /run/x.sock\n");
        let mut sources = Sources {
            config_flags: vec![host.0.path().join("c.conf")],
            key_flags: Vec::new(),
            environment: Environment::of(&[("SEALMQ_DEFAULT_PASS_FILE", "/nowhere/secret")]),
            etc: PathBuf::from("/nowhere"),
        };
        assert_eq!(control_socket_candidates(&sources).unwrap(), [PathBuf::from("/run/x.sock")]);
        sources.config_flags = vec![PathBuf::from("/nowhere/c.conf")];
        assert!(control_socket_candidates(&sources).is_err());
        sources.config_flags = Vec::new();
        sources.environment =
            Environment::of(&[("SEALMQ_CONFIG_FILE", "/nowhere"), ("SEALMQ_DATA_DIR", "/d")]);
        let guesses = control_socket_candidates(&sources).unwrap();
        assert_eq!(guesses, [PathBuf::from("/run/sealmq/ctl.sock"), PathBuf::from("/d/ctl.sock")]);
    }
}
