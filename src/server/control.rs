//! The control socket: a Unix socket with mode 0600 on which the same user or root asks for pictures of the broker and
//! for a backup of its store, and changes its keyring.
//!
//! ```text
//! client -> {"verb":"list_queues","vhost":"/"}\n
//! server -> {"ok":[..]}\n   or   {"error":{"code":"no_such_vhost","message":".."}}\n   and closes
//! ```
//!
//! One line each way, requests bounded, no AMQP. The only secret that may pass is the passphrase of a new slot of the
//! keyring: a line of its own behind the request, so that it is never part of a document that is parsed or shown. Both
//! ends live here so that they cannot drift apart.

use std::future::Future;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::error::{Error, Result};
use super::key_service::{self, ServicePlace};
use crate::engine::view::{KeyringChange, View};
use crate::limits::PASSPHRASE_BYTES_MAX;
use crate::store::passphrase_from_bytes;
use zeroize::Zeroizing;

/// Largest request in bytes, newline included.
const REQUEST_BYTES_MAX: usize = 4096;

/// Most bytes that are read from a client: a request and a secret line.
const INPUT_BYTES_MAX: usize = REQUEST_BYTES_MAX + PASSPHRASE_BYTES_MAX + 2;

/// Largest answer that the client takes, in bytes: more than a million queues.
const ANSWER_BYTES_MAX: u64 = 1 << 30;

/// Requests answered at the same time; the next one waits in the kernel's backlog.
const REQUESTS_AT_ONCE_MAX: usize = 8;

/// How long a client may take to send its line or to read the answer, in milliseconds.
const PEER_PATIENCE_MS: u64 = 10_000;

/// The folder of the control socket where it exists and is writable.
const RUN_DIR: &str = "/run/sealmq";

const SOCKET_NAME: &str = "ctl.sock";

/// What may be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Whether the broker serves and its store takes writes; answered with `null`.
    Ping,
    /// [`crate::engine::view::StatusView`].
    Status,
    /// A copy of the store, made by the broker in a folder of its host; a [`crate::engine::view::BackupView`].
    Backup {
        /// The folder, as an absolute path; must be empty or not exist.
        dir: String,
    },
    /// A list of [`crate::engine::view::QueueView`].
    ListQueues {
        /// The virtual host.
        vhost: String,
    },
    /// A list of [`crate::engine::view::ExchangeView`].
    ListExchanges {
        /// The virtual host.
        vhost: String,
    },
    /// A list of [`crate::engine::view::BindingView`].
    ListBindings {
        /// The virtual host.
        vhost: String,
    },
    /// [`crate::engine::view::KeyringView`], as for all that follow.
    KeyringStatus,
    /// Adds a slot for the key in a file.
    KeyringAddKey {
        /// An absolute path, as the broker sees it.
        file: PathBuf,
    },
    /// Adds a slot for the passphrase on the next line.
    KeyringAddPassphrase,
    /// Adds a slot for a key that stays in a service.
    KeyringAddService {
        /// Which; its files are absolute paths, as the broker sees them.
        place: ServicePlace,
    },
    /// Removes a slot.
    KeyringRemoveSlot {
        /// The beginning of its id, in hex.
        slot: String,
        /// Even the one that the broker was started with.
        in_use_too: bool,
    },
    /// Makes a new data key.
    KeyringRotateDek,
    /// Seals again what is under old data keys.
    KeyringReseal {
        /// Age of those keys in seconds; older than the current one without it.
        older_than: Option<u64>,
    },
}

impl Request {
    /// Whether a line with a secret follows.
    fn has_secret(&self) -> bool {
        matches!(self, Request::KeyringAddPassphrase)
    }
}

/// Why a request was not answered; the words are part of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not one line of JSON with a known verb.
    BadRequest,
    /// No virtual host of this name.
    NoSuchVhost,
    /// The broker is there but cannot serve.
    Unhealthy,
    /// What was asked for could not be done; the sentence begins with a code of its own.
    Failed,
    /// The broker failed to answer; its log says why.
    Internal,
}

impl Refusal {
    /// The word on the wire.
    pub fn code(self) -> &'static str {
        match self {
            Refusal::BadRequest => "bad_request",
            Refusal::NoSuchVhost => "no_such_vhost",
            Refusal::Unhealthy => "unhealthy",
            Refusal::Failed => "failed",
            Refusal::Internal => "internal",
        }
    }
}

/// The default places, in the order in which a client tries them.
pub fn default_paths(data_dir: &Path) -> [PathBuf; 2] {
    [Path::new(RUN_DIR).join(SOCKET_NAME), data_dir.join(SOCKET_NAME)]
}

/// The place that the server takes: `/run/sealmq/ctl.sock` where that folder is writable, else in the data directory.
pub fn default_path(data_dir: &Path) -> PathBuf {
    let [run, data] = default_paths(data_dir);
    if rustix::fs::access(RUN_DIR, rustix::fs::Access::WRITE_OK).is_ok() { run } else { data }
}

/// A bound control socket; the file goes when this is dropped.
#[derive(Debug)]
pub struct ControlListener {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlListener {
    /// Binds `path` with mode 0600. A socket that nobody serves is replaced; one that answers, and a file that is no
    /// socket, are refused. Must be called within a tokio runtime.
    pub fn bind(path: &Path) -> Result<ControlListener> {
        let fault = |action| move |source| Error::ControlSocket { path: path.to_owned(), action, source };
        match std::fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                let source =
                    io::Error::other("a file that is no socket is in the way; move it or set control.socket");
                return Err(fault("cannot bind")(source));
            }
            Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
                Ok(_) => return Err(Error::ControlSocketBusy { path: path.to_owned() }),
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path).map_err(fault("cannot replace the stale socket"))?;
                }
                Err(e) => return Err(fault("cannot tell whether it is served")(e)),
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(fault("cannot look at it")(e)),
        }
        let listener = UnixListener::bind(path).map_err(fault("cannot bind"))?;
        let bound = ControlListener { listener, path: path.to_owned() };
        // Between bind and chmod others may connect, which is why every peer's uid is checked as well.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
            .map_err(fault("cannot chmod"))?;
        Ok(bound)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ControlListener {
    fn drop(&mut self) {
        // A socket file that stays behind is replaced at the next start.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Answers requests until `shutdown` completes; requests that are being answered then are dropped.
pub async fn serve(listener: ControlListener, view: Arc<dyn View>, shutdown: impl Future<Output = ()>) {
    let permits = Arc::new(Semaphore::new(REQUESTS_AT_ONCE_MAX));
    let mut tasks = tokio::task::JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let next = async {
            // The semaphore is never closed, so a permit always comes.
            let permit = permits.clone().acquire_owned().await.ok();
            (permit, listener.listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            next = next => next,
            Some(_) = tasks.join_next() => continue,
            () = &mut shutdown => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let view = view.clone();
                tasks.spawn(async move {
                    answer(stream, view).await;
                    drop(permit);
                });
            }
            Err(error) => {
                // Out of descriptors, as a rule: give others time to close theirs.
                tracing::warn!(%error, "control socket: accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(mut stream: UnixStream, view: Arc<dyn View>) {
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == 0 || peer.uid() == rustix::process::geteuid().as_raw() => {}
        Ok(peer) => {
            tracing::warn!(uid = peer.uid(), "control socket: refused another user");
            return;
        }
        Err(error) => {
            tracing::warn!(%error, "control socket: the peer cannot be identified");
            return;
        }
    }
    let patience = Duration::from_millis(PEER_PATIENCE_MS);
    let mut input = Zeroizing::new(Vec::with_capacity(INPUT_BYTES_MAX));
    let Ok(Ok(request)) = tokio::time::timeout(patience, read_request(&mut stream, &mut input)).await else {
        return;
    };
    let answer = match request {
        // Pictures take locks and touch the disk: not on a worker that drives connections.
        Ok(request) => {
            let done = move || picture(request, secret_line(&input), view.as_ref());
            match tokio::task::spawn_blocking(done).await {
                Ok(answer) => answer,
                Err(_) => refusal(Refusal::Internal, "the request failed; the broker's log says why"),
            }
        }
        Err(problem) => refusal(Refusal::BadRequest, &problem),
    };
    let mut bytes = answer.to_string().into_bytes();
    bytes.push(b'\n');
    let write = async {
        stream.write_all(&bytes).await?;
        stream.shutdown().await
    };
    if let Ok(Err(error)) = tokio::time::timeout(patience, write).await {
        tracing::debug!(%error, "control socket: the client left before its answer");
    }
}

/// Reads a line into `input`, which has room for all that may come, and a second one if the first asks for it.
async fn read_request(
    stream: &mut UnixStream,
    input: &mut Vec<u8>,
) -> io::Result<std::result::Result<Request, String>> {
    let mut known: Option<Request> = None;
    loop {
        let mut lines = input.splitn(3, |byte| *byte == b'\n');
        let (first, second, rest) = (lines.next().unwrap_or_default(), lines.next(), lines.next());
        let too_long = first.len() >= REQUEST_BYTES_MAX;
        if known.is_none() && (second.is_some() || too_long) {
            match serde_json::from_slice::<Request>(first) {
                Ok(request) => known = Some(request),
                Err(error) => return Ok(Err(format!("not a request: {error}"))),
            }
        }
        match known.take() {
            Some(request) if !request.has_secret() || rest.is_some() => return Ok(Ok(request)),
            waiting => known = waiting,
        }
        if input.len() >= INPUT_BYTES_MAX {
            return Ok(Err("not a request: it is too long".into()));
        }
        // No more than there is room for: a buffer that grows leaves copies behind.
        let left = (INPUT_BYTES_MAX - input.len()) as u64;
        if (&mut *stream).take(left).read_buf(input).await? == 0 {
            let whole =
                serde_json::from_slice::<Request>(input).map_err(|error| format!("not a request: {error}"));
            return Ok(known.map_or(whole, |_| Err("not a request: its second line is missing".into())));
        }
    }
}

fn secret_line(input: &[u8]) -> &[u8] {
    input.split(|byte| *byte == b'\n').nth(1).unwrap_or_default()
}

fn picture(request: Request, secret: &[u8], view: &dyn View) -> Value {
    let keyring = |change| match view.keyring(change) {
        Ok(keyring) => json!({ "ok": keyring }),
        Err(refused) => refusal_of(refused.code, &refused.message),
    };
    match request {
        Request::Ping => match view.ping() {
            Ok(()) => json!({ "ok": null }),
            Err(problem) => refusal(Refusal::Unhealthy, &problem),
        },
        Request::Status => json!({ "ok": view.status() }),
        Request::Backup { dir } => match view.back_up(Path::new(&dir)) {
            Ok(made) => json!({ "ok": made }),
            Err(problem) => refusal(Refusal::Failed, &problem),
        },
        Request::ListQueues { vhost } => list(view.queues(&vhost), &vhost),
        Request::ListExchanges { vhost } => list(view.exchanges(&vhost), &vhost),
        Request::ListBindings { vhost } => list(view.bindings(&vhost), &vhost),
        Request::KeyringStatus => keyring(KeyringChange::None),
        Request::KeyringAddKey { file } if !file.is_absolute() => {
            refusal(Refusal::BadRequest, "the key's file needs an absolute path")
        }
        Request::KeyringAddKey { file } => keyring(KeyringChange::AddKey(file)),
        Request::KeyringAddPassphrase => match passphrase_from_bytes("the request", secret) {
            Ok(passphrase) => keyring(KeyringChange::AddPassphrase(passphrase)),
            Err(error) => refusal_of(error.code(), &format!("{}: {error}", error.code())),
        },
        Request::KeyringAddService { place } if !place.files().iter().all(|path| path.is_absolute()) => {
            refusal(Refusal::BadRequest, "the service's files need absolute paths")
        }
        Request::KeyringAddService { place } => match key_service::connect(&place) {
            Ok(service) => keyring(KeyringChange::AddService(service)),
            Err(error) => refusal_of(error.code, &format!("{}: {error} ({})", error.code, error.remedy)),
        },
        Request::KeyringRemoveSlot { slot, in_use_too } => {
            keyring(KeyringChange::RemoveSlot { slot, in_use_too })
        }
        Request::KeyringRotateDek => keyring(KeyringChange::NewDataKey),
        Request::KeyringReseal { older_than } => {
            keyring(KeyringChange::Reseal { older_than: older_than.map(Duration::from_secs) })
        }
    }
}

fn list<T: Serialize>(rows: Option<Vec<T>>, vhost: &str) -> Value {
    match rows {
        Some(rows) => json!({ "ok": rows }),
        None => refusal(Refusal::NoSuchVhost, &format!("Virtual host '{vhost}' does not exist")),
    }
}

fn refusal(why: Refusal, message: &str) -> Value {
    refusal_of(why.code(), message)
}

fn refusal_of(code: &str, message: &str) -> Value {
    json!({ "error": { "code": code, "message": message } })
}

/// Asks the broker behind `path` and waits at most `timeout` for all of the answer.
pub async fn ask(path: &Path, request: &Request, timeout: Duration) -> Result<Value> {
    ask_with(path, request, &[], timeout).await
}

/// As [`ask`], with the line that [`Request::KeyringAddPassphrase`] wants behind it.
pub async fn ask_with(path: &Path, request: &Request, secret: &[u8], timeout: Duration) -> Result<Value> {
    let path = path.to_owned();
    match tokio::time::timeout(timeout, exchange(&path, request, secret)).await {
        Ok(answer) => answer,
        Err(_) => Err(Error::ControlTimeout { path, timeout_ms: timeout.as_millis() as u64 }),
    }
}

async fn exchange(path: &Path, request: &Request, secret: &[u8]) -> Result<Value> {
    let fault = |action| move |source| Error::ControlSocket { path: path.to_owned(), action, source };
    let odd = |problem: String| Error::ControlAnswer { path: path.to_owned(), problem };
    let mut stream =
        UnixStream::connect(path).await.map_err(fault("cannot connect; is the broker running?"))?;
    let mut line = serde_json::to_vec(request).map_err(|e| odd(e.to_string()))?;
    line.push(b'\n');
    stream.write_all(&line).await.map_err(fault("cannot send"))?;
    if request.has_secret() {
        stream.write_all(secret).await.map_err(fault("cannot send"))?;
        stream.write_all(b"\n").await.map_err(fault("cannot send"))?;
    }
    let mut bytes = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes).await.map_err(fault("cannot receive"))?;
    let mut answer: Value = serde_json::from_slice(&bytes).map_err(|e| odd(e.to_string()))?;
    if let Some(value) = answer.get_mut("ok") {
        return Ok(value.take());
    }
    let text = |field: &str| answer.pointer(field).and_then(Value::as_str).map(str::to_owned);
    match (text("/error/code"), text("/error/message")) {
        (Some(code), Some(message)) => Err(Error::ControlRefused { code, message }),
        _ => Err(odd("neither `ok` nor `error`".into())),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::engine::view::*;

    /// A broker with one queue in `/`.
    pub(crate) struct OneQueue {
        pub(crate) healthy: bool,
    }

    impl View for OneQueue {
        fn ping(&self) -> std::result::Result<(), String> {
            if self.healthy { Ok(()) } else { Err("the store takes no writes".into()) }
        }

        fn status(&self) -> StatusView {
            let listener =
                ListenerView { port: 5671, protocol: "amqp/ssl".into(), ..ListenerView::default() };
            StatusView {
                running: true,
                data_dir: "/d".into(),
                listeners: vec![listener],
                ..StatusView::default()
            }
        }

        fn back_up(&self, dir: &Path) -> std::result::Result<BackupView, String> {
            match dir.to_str() {
                Some("/full") => Err("E_BACKUP_TARGET: it is not empty".into()),
                dir => Ok(BackupView {
                    dir: dir.unwrap().into(),
                    commit_seq: 7,
                    bytes: 4096,
                    ..BackupView::default()
                }),
            }
        }

        fn queues(&self, vhost: &str) -> Option<Vec<QueueView>> {
            let value = ArgumentValue::Integer(10);
            let limit = ArgumentView { name: "x-max-length".into(), kind: "long".into(), value };
            let queue =
                QueueView { name: "q 1".into(), messages: 3, arguments: vec![limit], ..QueueView::default() };
            (vhost == "/").then(|| vec![queue])
        }

        fn exchanges(&self, vhost: &str) -> Option<Vec<ExchangeView>> {
            (vhost == "/").then(Vec::new)
        }

        fn bindings(&self, _vhost: &str) -> Option<Vec<BindingView>> {
            panic!("a fault inside the broker")
        }

        fn keyring(&self, change: KeyringChange) -> std::result::Result<KeyringView, KeyringRefused> {
            let slot = |id: &str, kind: &str, in_use| SlotView {
                id: id.into(),
                kind: kind.into(),
                state: "active".into(),
                in_use,
                cost: (kind == "passphrase").then(|| "m=262144,t=3,p=1".into()),
            };
            let mut slots = vec![slot("00ff00ff", "key", true)];
            match change {
                KeyringChange::None | KeyringChange::NewDataKey | KeyringChange::Reseal { .. } => {}
                KeyringChange::AddKey(path) => slots.push(slot(&path.display().to_string(), "key", false)),
                KeyringChange::AddPassphrase(_) => slots.push(slot("11ee", "passphrase", false)),
                KeyringChange::AddService(service) => {
                    slots.push(slot("22dd", service.service().name(), false));
                }
                KeyringChange::RemoveSlot { slot, in_use_too } => {
                    let message = format!("E_SLOT_LAST: {slot} {in_use_too}");
                    return Err(KeyringRefused { code: "E_SLOT_LAST", message });
                }
            }
            let key = DataKeyView { id: 7, state: "seals".into(), records: 3, ..DataKeyView::default() };
            let data_keys = vec![key];
            Ok(KeyringView { store: "ab".into(), generation: 9, slots, data_keys, ..KeyringView::default() })
        }
    }

    const PATIENCE: Duration = Duration::from_secs(20);

    struct Running {
        folder: tempfile::TempDir,
        stop: tokio::sync::oneshot::Sender<()>,
        server: tokio::task::JoinHandle<()>,
    }

    impl Running {
        fn start(healthy: bool) -> Running {
            let folder = tempfile::tempdir().unwrap();
            let listener = ControlListener::bind(&folder.path().join("s")).unwrap();
            let (stop, stopped) = tokio::sync::oneshot::channel();
            let shutdown = async move { stopped.await.unwrap_or(()) };
            let server = tokio::spawn(serve(listener, Arc::new(OneQueue { healthy }), shutdown));
            Running { folder, stop, server }
        }

        fn path(&self) -> PathBuf {
            self.folder.path().join("s")
        }

        async fn ask(&self, request: &Request) -> Result<Value> {
            ask(&self.path(), request, PATIENCE).await
        }

        async fn send(&self, bytes: &[u8]) -> String {
            let mut stream = UnixStream::connect(self.path()).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        }
    }

    fn refused(answer: Result<Value>) -> String {
        match answer {
            Err(Error::ControlRefused { code, .. }) => code,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn answers_one_line_with_one_line() {
        let broker = Running::start(true);
        assert_eq!(broker.ask(&Request::Ping).await.unwrap(), Value::Null);
        assert_eq!(broker.ask(&Request::Status).await.unwrap()["data_dir"], "/d");
        let queues = broker.ask(&Request::ListQueues { vhost: "/".into() }).await.unwrap();
        assert_eq!((&queues[0]["name"], &queues[0]["messages"]), (&"q 1".into(), &3.into()));
        assert_eq!(queues[0]["arguments"][0]["value"], 10);
    }

    #[tokio::test]
    async fn says_why_not() {
        let broker = Running::start(false);
        assert_eq!(refused(broker.ask(&Request::Ping).await), "unhealthy");
        assert_eq!(refused(broker.ask(&Request::ListQueues { vhost: "v".into() }).await), "no_such_vhost");
        assert_eq!(refused(broker.ask(&Request::Backup { dir: "/full".into() }).await), "failed");
        assert_eq!(refused(broker.ask(&Request::ListBindings { vhost: "/".into() }).await), "internal");
        for bytes in [&b"nonsense\n"[..], b"{\"verb\":\"shutdown\"}\n", b"\n"] {
            assert!(broker.send(bytes).await.contains("bad_request"));
        }
        assert_eq!(refused(broker.ask(&Request::Ping).await), "unhealthy");
    }

    #[tokio::test]
    async fn a_passphrase_comes_on_a_line_of_its_own() {
        let broker = Running::start(true);
        let request = Request::KeyringAddPassphrase;
        let added = ask_with(&broker.path(), &request, b"correct horse", PATIENCE).await.unwrap();
        assert_eq!(added["slots"][1]["type"], "passphrase");
        let short = ask_with(&broker.path(), &request, b"1234567", PATIENCE).await;
        assert_eq!(refused(short), "E_KEK_UNAVAILABLE");
        let verb = b"{\"verb\":\"keyring_add_passphrase\"}\n".as_slice();
        let long = [verb, &vec![b'x'; INPUT_BYTES_MAX - verb.len()]].concat();
        assert!(broker.send(&long).await.contains("bad_request"));
        let shown = broker.ask(&Request::KeyringStatus).await.unwrap();
        assert_eq!((&shown["generation"], &shown["data_keys"][0]["records"]), (&9.into(), &3.into()));
    }

    #[tokio::test]
    async fn reads_no_more_than_a_request() {
        let broker = Running::start(true);
        let endless = vec![b' '; REQUEST_BYTES_MAX];
        assert!(broker.send(&endless).await.contains("bad_request"));
    }

    #[tokio::test]
    async fn the_socket_is_private_and_goes_with_the_server() {
        let broker = Running::start(true);
        let mode = std::fs::metadata(broker.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let path = broker.path();
        broker.stop.send(()).unwrap();
        broker.server.await.unwrap();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn replaces_a_stale_socket_and_refuses_a_live_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let live = ControlListener::bind(&path).unwrap();
        assert!(matches!(ControlListener::bind(&path), Err(Error::ControlSocketBusy { .. })));
        drop(live);
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(ControlListener::bind(&path), Err(Error::ControlSocket { .. })));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn a_missing_broker_and_a_silent_one_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        assert!(matches!(ask(&path, &Request::Ping, PATIENCE).await, Err(Error::ControlSocket { .. })));
        let _silent = UnixListener::bind(&path).unwrap();
        let soon = Duration::from_millis(20);
        assert!(matches!(ask(&path, &Request::Ping, soon).await, Err(Error::ControlTimeout { .. })));
    }
}
