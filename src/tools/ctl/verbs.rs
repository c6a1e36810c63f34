//! One function per verb: ask, then print in rabbitmqctl's words.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::arguments::{Arguments, Common, FOREVER, Formatter, Program, Verb};
use super::listing::{self, Kind};
use super::{Failure, keyring, status};
use crate::server::config::{Sources, control_socket_candidates, node_name};
use crate::server::control::{self, Request};
use crate::server::{self, PRODUCT_VERSION_DEFAULT, SEALMQ_VERSION};

/// rabbitmqctl's time-out for most verbs.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);

/// rabbitmqctl's time-out for `await_startup`.
const STARTUP_TIMEOUT_DEFAULT: Duration = Duration::from_secs(300);

/// Between two looks at a broker that is starting: there is no event to wait for before its socket exists.
const STARTUP_POLL: Duration = Duration::from_millis(100);

type Done = Result<(), Failure>;

/// Runs the verb; what it prints goes to `out`.
pub async fn run(program: Program, arguments: &Arguments, out: &mut dyn Write) -> Done {
    let common = &arguments.common;
    match &arguments.verb {
        Verb::Ping => ping(common, out).await,
        Verb::Status => show_status(common, out).await,
        Verb::ListQueues { columns } => {
            let columns = listing::columns(&listing::QUEUES, columns)?;
            if !common.is_quiet() {
                writeln!(out, "Timeout: {:.1} seconds ...", timeout(common).as_secs_f64())?;
            }
            prelude(common, out, &format!("Listing queues for vhost {} ...", shown_vhost(common)))?;
            list(Request::ListQueues { vhost: common.vhost.clone() }, &columns, common, out).await
        }
        Verb::ListExchanges { columns } => {
            let columns = listing::columns(&listing::EXCHANGES, columns)?;
            prelude(common, out, &format!("Listing exchanges for vhost {} ...", shown_vhost(common)))?;
            list(Request::ListExchanges { vhost: common.vhost.clone() }, &columns, common, out).await
        }
        Verb::ListBindings { columns } => {
            let columns = listing::columns(&listing::BINDINGS, columns)?;
            // RabbitMQ writes no space here.
            prelude(common, out, &format!("Listing bindings for vhost {}...", shown_vhost(common)))?;
            list(Request::ListBindings { vhost: common.vhost.clone() }, &columns, common, out).await
        }
        Verb::Backup { dir } => back_up(dir, common, out).await,
        Verb::Report => report(common, out).await,
        Verb::AwaitStartup => await_startup(common).await,
        Verb::Version => {
            let version = match program {
                Program::SealmqCtl => SEALMQ_VERSION,
                Program::RabbitMq => PRODUCT_VERSION_DEFAULT,
            };
            Ok(writeln!(out, "{version}")?)
        }
        Verb::CheckRunning => check_running(common, out).await,
        Verb::CheckPortConnectivity => check_port_connectivity(common, out).await,
        Verb::CheckLocalAlarms => check_local_alarms(common, out).await,
        Verb::Keyring(verb) => keyring::run(verb, common, out).await,
    }
}

async fn ping(common: &Common, out: &mut dyn Write) -> Done {
    let node = node_name();
    let timeout_ms = timeout(common).as_millis();
    prelude(
        common,
        out,
        &format!(
            "Will ping {node}. This checks that the broker answers and its store takes writes. Timeout: {timeout_ms} ms."
        ),
    )?;
    match ask(common, &Request::Ping).await {
        Ok(_) => Ok(writeln!(out, "Ping succeeded")?),
        Err(Failure::Broker(error @ server::Error::ControlTimeout { .. })) => {
            Err(Failure::Check(format!("Failed to connect to {node} in {timeout_ms} ms: {error}")))
        }
        Err(failure) => Err(failure),
    }
}

async fn show_status(common: &Common, out: &mut dyn Write) -> Done {
    prelude(common, out, &format!("Status of node {} ...", node_name()))?;
    let picture = ask(common, &Request::Status).await?;
    match common.formatter {
        Formatter::Json | Formatter::JsonStream => Ok(writeln!(out, "{picture}")?),
        Formatter::Table | Formatter::PrettyTable | Formatter::Csv => Ok(status::write(&picture, out)?),
    }
}

async fn back_up(dir: &Path, common: &Common, out: &mut dyn Write) -> Done {
    // The broker runs in another folder.
    let dir = std::path::absolute(dir)?;
    let shown = dir.to_str().ok_or_else(|| Failure::Usage("the folder's name is no UTF-8".into()))?;
    prelude(common, out, &format!("Backing up the store of node {} to {shown} ...", node_name()))?;
    let patience = common.timeout.unwrap_or(FOREVER);
    let made = ask_within(patience, common, &Request::Backup { dir: shown.to_owned() }, &[]).await?;
    if matches!(common.formatter, Formatter::Json | Formatter::JsonStream) {
        return Ok(writeln!(out, "{made}")?);
    }
    let number = |name: &'static str| made.get(name).and_then(Value::as_u64).ok_or(Failure::Answer(name));
    let (commit_seq, bytes) = (number("commit_seq")?, number("bytes")?);
    writeln!(out, "{shown}: everything up to commit {commit_seq}, {bytes} bytes")?;
    Ok(prelude(
        common,
        out,
        "It is of no use without the key: keep a copy of that as well, in another place.",
    )?)
}

async fn list(request: Request, columns: &[String], common: &Common, out: &mut dyn Write) -> Done {
    let Value::Array(rows) = ask(common, &request).await? else { return Err(Failure::Answer("list")) };
    Ok(listing::write(&rows, columns, common, out)?)
}

async fn report(common: &Common, out: &mut dyn Write) -> Done {
    let node = node_name();
    prelude(common, out, &format!("Reporting server status of node {node} ..."))?;
    let picture = ask(common, &Request::Status).await?;
    writeln!(out, "\nStatus of node {node} ...")?;
    status::write(&picture, out)?;
    writeln!(out, "\nApplication environment of node {node} ...")?;
    status::write_environment(&picture, out)?;
    let vhost = common.vhost.clone();
    let lists = [
        ("queues", Request::ListQueues { vhost: vhost.clone() }, &listing::QUEUES),
        ("exchanges", Request::ListExchanges { vhost: vhost.clone() }, &listing::EXCHANGES),
        ("bindings", Request::ListBindings { vhost }, &listing::BINDINGS),
    ];
    for (what, request, Kind { columns, .. }) in lists {
        writeln!(out, "\nListing {what} for vhost {} ...", shown_vhost(common))?;
        let columns: Vec<String> = columns.iter().map(|c| c.to_string()).collect();
        list(request, &columns, common, out).await?;
    }
    Ok(())
}

async fn await_startup(common: &Common) -> Done {
    let patience = common.timeout.unwrap_or(STARTUP_TIMEOUT_DEFAULT);
    let deadline = Instant::now() + patience;
    loop {
        let problem = match ask(common, &Request::Status).await {
            Ok(picture) if is_running(&picture)? => return Ok(()),
            Ok(_) => "it is still starting".to_owned(),
            Err(Failure::Broker(error)) if !error.is_configuration() => error.to_string(),
            Err(Failure::Unreachable(problem)) => problem,
            Err(other) => return Err(other),
        };
        if Instant::now() + STARTUP_POLL > deadline {
            let seconds = patience.as_secs_f64();
            return Err(Failure::TimedOut(format!(
                "the broker did not start within {seconds:.1} s: {problem}"
            )));
        }
        tokio::time::sleep(STARTUP_POLL).await;
    }
}

async fn check_running(common: &Common, out: &mut dyn Write) -> Done {
    let node = node_name();
    prelude(common, out, &format!("Checking if RabbitMQ is running on node {node} ..."))?;
    if !is_running(&ask(common, &Request::Status).await?)? {
        return Err(Failure::Check(format!(
            "RabbitMQ on node {node} is not running or has not fully booted yet"
        )));
    }
    Ok(prelude(common, out, &format!("RabbitMQ on node {node} is fully booted and running"))?)
}

async fn check_local_alarms(common: &Common, out: &mut dyn Write) -> Done {
    let node = node_name();
    prelude(common, out, &format!("Asking node {node} to report any local resource alarms ..."))?;
    let picture = ask(common, &Request::Status).await?;
    let alarms = picture.get("alarms").and_then(Value::as_array).ok_or(Failure::Answer("alarms"))?;
    if !alarms.is_empty() {
        let names: Vec<&str> = alarms.iter().filter_map(Value::as_str).collect();
        return Err(Failure::Check(format!(
            "Node {node} reported the following local alarms: {}",
            names.join(", ")
        )));
    }
    Ok(prelude(common, out, &format!("Node {node} reported no local alarms"))?)
}

async fn check_port_connectivity(common: &Common, out: &mut dyn Write) -> Done {
    let node = node_name();
    prelude(common, out, &format!("Testing TCP connections to all active listeners on node {node} ..."))?;
    let picture = ask(common, &Request::Status).await?;
    let listeners = picture.get("listeners").and_then(Value::as_array).ok_or(Failure::Answer("listeners"))?;
    let mut ports = Vec::new();
    for listener in listeners {
        let interface = listener.get("interface").and_then(Value::as_str).unwrap_or_default();
        let port = listener.get("port").and_then(Value::as_u64).and_then(|p| u16::try_from(p).ok());
        let port = port.ok_or(Failure::Answer("listeners.port"))?;
        connect(interface, port, timeout(common)).await?;
        ports.push(port.to_string());
    }
    if ports.is_empty() {
        return Err(Failure::Check(format!("Node {node} has no active listener")));
    }
    Ok(prelude(
        common,
        out,
        &format!("Successfully connected to ports {} on node {node}.", ports.join(", ")),
    )?)
}

async fn connect(interface: &str, port: u16, patience: Duration) -> Done {
    let bare = interface.trim_start_matches('[').trim_end_matches(']');
    let host = match bare {
        "" | "::" | "0.0.0.0" => "127.0.0.1",
        named => named,
    };
    match tokio::time::timeout(patience, tokio::net::TcpStream::connect((host, port))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(Failure::Check(format!("cannot connect to {host} port {port}: {error}"))),
        Err(_) => Err(Failure::Check(format!("cannot connect to {host} port {port}: no answer in time"))),
    }
}

fn is_running(picture: &Value) -> Result<bool, Failure> {
    picture.get("running").and_then(Value::as_bool).ok_or(Failure::Answer("running"))
}

fn timeout(common: &Common) -> Duration {
    common.timeout.unwrap_or(TIMEOUT_DEFAULT)
}

fn shown_vhost(common: &Common) -> String {
    listing::printable(&common.vhost)
}

pub(super) fn prelude(common: &Common, out: &mut dyn Write, sentence: &str) -> std::io::Result<()> {
    if common.is_quiet() { Ok(()) } else { writeln!(out, "{sentence}") }
}

// The first place where a broker can be connected to; which one it uses is known for sure only to the broker.
async fn ask(common: &Common, request: &Request) -> Result<Value, Failure> {
    ask_with(common, request, &[]).await
}

/// As `ask`, with a line that holds a secret.
pub(super) async fn ask_with(common: &Common, request: &Request, secret: &[u8]) -> Result<Value, Failure> {
    ask_within(timeout(common), common, request, secret).await
}

async fn ask_within(
    patience: Duration,
    common: &Common,
    request: &Request,
    secret: &[u8],
) -> Result<Value, Failure> {
    let places: Vec<PathBuf> = match &common.socket {
        Some(path) => vec![path.clone()],
        None => control_socket_candidates(&Sources::of_process(common.config.clone()))?,
    };
    let mut problems = Vec::new();
    for path in &places {
        match control::ask_with(path, request, secret, patience).await {
            Err(error @ server::Error::ControlSocket { .. }) => problems.push(error.to_string()),
            answer => return Ok(answer?),
        }
    }
    Err(Failure::Unreachable(problems.join("\n")))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::sync::Arc;

    use crate::server::control::ControlListener;
    use crate::server::control::tests::OneQueue;
    use crate::tools::ctl::{exit, run};

    struct Broker(tempfile::TempDir);

    impl Broker {
        fn start(healthy: bool) -> Broker {
            let folder = tempfile::tempdir().unwrap();
            let listener = ControlListener::bind(&folder.path().join("s")).unwrap();
            tokio::spawn(crate::server::control::serve(
                listener,
                Arc::new(OneQueue { healthy }),
                std::future::pending(),
            ));
            Broker(folder)
        }

        // (exit code, standard output, standard error); node names are made the same everywhere.
        async fn ctl(&self, line: &str) -> (u8, String, String) {
            let socket = self.0.path().join("s").display().to_string();
            let mut words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
            words.splice(1..1, ["--socket".into(), socket.into()]);
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let code = run(words, &mut out, &mut err).await;
            let text = |bytes| String::from_utf8(bytes).unwrap().replace(&super::node_name(), "NODE");
            (code, text(out), text(err))
        }
    }

    #[tokio::test]
    async fn pings_as_the_labs_health_check_does() {
        let broker = Broker::start(true);
        let (code, out, err) = broker.ctl("rabbitmq-diagnostics -q ping").await;
        assert_eq!((code, out.as_str(), err.as_str()), (exit::OK, "Ping succeeded\n", ""));
        let (code, out, err) = Broker::start(false).ctl("sealmqctl ping").await;
        assert_eq!(code, exit::UNAVAILABLE);
        assert!(out.starts_with("Will ping NODE.") && !out.contains("succeeded"), "{out}");
        assert_eq!(err, "Error:\nthe store takes no writes\n");
    }

    #[tokio::test]
    async fn lists_with_the_prelude_and_a_header() {
        let broker = Broker::start(true);
        let (code, out, _) = broker.ctl("rabbitmqctl list_queues").await;
        let wanted = "Timeout: 60.0 seconds ...\nListing queues for vhost / ...\nname\tmessages\nq 1\t3\n";
        assert_eq!((code, out.as_str()), (exit::OK, wanted));
        let (_, out, _) = broker.ctl("rabbitmqctl list_exchanges").await;
        assert_eq!(out, "Listing exchanges for vhost / ...\n");
        let (_, out, _) = broker.ctl("rabbitmqctl -q list_queues messages,name").await;
        assert_eq!(out, "messages\tname\n3\tq 1\n");
        let (_, out, _) = broker.ctl("rabbitmqctl list_queues --formatter json").await;
        assert_eq!(out, "[\n{\"name\":\"q 1\",\"messages\":3}\n]\n");
    }

    #[tokio::test]
    async fn a_backup_is_asked_for_by_an_absolute_path() {
        let broker = Broker::start(true);
        let (code, out, _) = broker.ctl("sealmqctl backup /b/1").await;
        assert_eq!(code, exit::OK);
        assert!(
            out.contains("/b/1: everything up to commit 7, 4096 bytes\n") && out.contains("without the key"),
            "{out}"
        );
        let (_, out, _) = broker.ctl("sealmqctl backup b --formatter json").await;
        let made: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(made["dir"], std::env::current_dir().unwrap().join("b").to_str().unwrap());
        let (_, _, err) = broker.ctl("sealmqctl backup /full").await;
        assert_eq!(err, "Error:\nE_BACKUP_TARGET: it is not empty\n");
    }

    #[tokio::test]
    async fn exit_codes_are_rabbitmqctls() {
        let broker = Broker::start(true);
        for (line, wanted) in [
            ("x nonsense", exit::USAGE),
            ("x", exit::USAGE),
            ("x list_queues --bogus", exit::USAGE),
            ("x list_queues colour", exit::USAGE),
            ("x ping extra", exit::USAGE),
            ("x list_queues -p nope", exit::DATA),
            ("x list_bindings", exit::SOFTWARE),
            ("x help", exit::OK),
            ("x --help", exit::OK),
            ("x check_running", exit::OK),
            ("x check_local_alarms -n rabbit@elsewhere", exit::OK),
            ("x await_startup", exit::OK),
            ("x version", exit::OK),
            ("x backup", exit::USAGE),
            ("x backup /full", exit::CANNOT_CREATE),
        ] {
            let (code, out, err) = broker.ctl(line).await;
            assert_eq!(code, wanted, "{line}: {out} {err}");
        }
        std::fs::remove_file(broker.0.path().join("s")).unwrap();
        for (line, wanted) in [
            ("x ping", exit::UNAVAILABLE),
            ("x list_queues", exit::UNAVAILABLE),
            ("x await_startup -t 0", exit::TEMPORARY),
        ] {
            assert_eq!(broker.ctl(line).await.0, wanted, "{line}");
        }
    }

    #[tokio::test]
    async fn a_silent_broker_times_out() {
        let folder = tempfile::tempdir().unwrap();
        let _silent = tokio::net::UnixListener::bind(folder.path().join("s")).unwrap();
        let broker = Broker(folder);
        assert_eq!(broker.ctl("x list_queues -t 0.02").await.0, exit::TEMPORARY);
        assert_eq!(broker.ctl("x ping -t 0.02").await.0, exit::UNAVAILABLE);
    }

    #[tokio::test]
    async fn the_keyring_is_shown_and_changed_and_no_secret_is_an_argument() {
        let broker = Broker::start(true);
        let (code, out, _) = broker.ctl("sealmqctl keyring status").await;
        let wanted = "Keyring of store ab, generation 9\n\nSlots\n\nid\ttype\tstate\tin_use\tcost\n\
                      00ff00ff\tkey\tactive\ttrue\t\n\nData keys\n\nid\tstate\tage_seconds\trecords\tqueue\n7\tseals\t0\t3\t\n\nReseal\n\nstate\tresealed\tleft\tunreadable\n\t0\t0\t0\n";
        assert_eq!((code, out.as_str()), (exit::OK, wanted));
        let passphrase = broker.0.path().join("passphrase");
        std::fs::write(&passphrase, "correct horse\n").unwrap();
        let added = format!("sealmqctl keyring add-slot --passphrase-file {}", passphrase.display());
        let permit = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(&passphrase, permit(0o644)).unwrap();
        assert_eq!(broker.ctl(&added).await.0, exit::USAGE, "others may read it");
        std::fs::set_permissions(&passphrase, permit(0o400)).unwrap();
        let (code, out, err) = broker.ctl(&added).await;
        assert_eq!((code, err.as_str()), (exit::OK, ""));
        assert!(out.starts_with("Added slot 11ee;") && out.ends_with("(generation 9).\n"), "{out}");
        let (_, out, _) = broker.ctl("sealmqctl keyring add-slot --key-file /k --formatter json").await;
        assert!(out.contains("\"id\":\"/k\""), "{out}");
        let (code, _, err) = broker.ctl("sealmqctl keyring remove-slot 00ff --in-use").await;
        assert_eq!((code, err.as_str()), (exit::DATA, "Error:\nE_SLOT_LAST: 00ff true\n"));
        assert_eq!(broker.ctl("sealmqctl keyring rotate-dek").await.0, exit::OK);
        for (line, status) in [
            ("reseal", exit::OK),
            ("reseal --older-than 7d", exit::OK),
            ("reseal --older-than soon", exit::USAGE),
        ] {
            assert_eq!(broker.ctl(&format!("sealmqctl keyring {line}")).await.0, status, "{line}");
        }
        for line in ["keyring", "keyring add-slot", "keyring add-slot --passphrase x", "keyring remove-slot"]
        {
            assert_eq!(broker.ctl(&format!("sealmqctl {line}")).await.0, exit::USAGE, "{line}");
        }
    }

    #[tokio::test]
    async fn status_and_report_show_the_data_directory() {
        let broker = Broker::start(true);
        let (code, out, _) = broker.ctl("rabbitmqctl status").await;
        assert_eq!(code, exit::OK);
        assert!(out.starts_with("Status of node NODE ...\nRuntime\n\n"), "{out}");
        let (_, out, _) = broker.ctl("rabbitmqctl status --formatter json").await;
        assert_eq!(serde_json::from_str::<serde_json::Value>(&out).unwrap()["data_dir"], "/d");
        // The bindings of this broker are a fault, but what came before is there.
        let (_, out, _) = broker.ctl("rabbitmqctl report").await;
        assert!(out.contains("Node data directory: /d\n") && out.contains("{data_dir,\"/d\"},\n"), "{out}");
        assert!(out.contains("Listing queues for vhost / ...\nname\tdurable"), "{out}");
    }

    #[tokio::test]
    async fn port_connectivity_is_really_tried() {
        // OneQueue says that it listens on 5671, and nobody does.
        let (code, _, err) = Broker::start(true).ctl("x check_port_connectivity").await;
        assert_eq!(code, exit::UNAVAILABLE);
        assert!(err.contains("cannot connect to 127.0.0.1 port 5671"), "{err}");
    }

    #[tokio::test]
    async fn the_version_depends_on_the_name_it_is_called_by() {
        let broker = Broker::start(true);
        assert_eq!(broker.ctl("rabbitmqctl version").await.1, "4.0.5\n");
        assert_eq!(broker.ctl("sealmqctl version").await.1, format!("{}\n", env!("CARGO_PKG_VERSION")));
    }
}
