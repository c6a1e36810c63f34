//! A program that prints the key for data at rest: run without a shell, bounded in time and in what it may say.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use zeroize::Zeroizing;

/// A key with a line end has at most 66 bytes.
const OUTPUT_BYTES_MAX: usize = 128;
/// What of its complaints is kept for the log.
const COMPLAINT_BYTES_MAX: usize = 1024;
/// A word as long as this may be a secret: a key in base64 has 43 characters and more, tokens have more than 24.
const SECRET_BYTES_MIN: usize = 24;

/// What is known of a program so far; in whatever order it becomes known.
#[derive(Default)]
struct Outcome {
    output: Option<Zeroizing<Vec<u8>>>,
    complaint: Option<Vec<u8>>,
    status: Option<ExitStatus>,
}

enum Event {
    Output(Zeroizing<Vec<u8>>),
    Complaint(Vec<u8>),
    Ended(std::io::Result<ExitStatus>),
}

/// Runs `words` (an absolute path and arguments) and gives what it printed. What it writes to standard error goes to
/// the log when it fails, unless that holds what it printed.
pub(super) fn output_of(words: &[String], limit: Duration) -> Result<Zeroizing<Vec<u8>>, String> {
    let [program, arguments @ ..] = words else { return Err("there is no program".into()) };
    let mut command = Command::new(program);
    command.args(arguments).process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Passwords and keys that were meant for the broker.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_none_or(|name| name.starts_with("SEALMQ_") || name.starts_with("RABBITMQ_")) {
            command.env_remove(name);
        }
    }
    let mut child = command.spawn().map_err(|e| format!("it cannot be started: {e}"))?;
    let group = Pid::from_child(&child);
    let (events, heard) = channel();
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (to_output, to_complaint) = (events.clone(), events.clone());
    thread::spawn(move || read(stdout, OUTPUT_BYTES_MAX + 1, to_output, Event::Output));
    thread::spawn(move || read(stderr, COMPLAINT_BYTES_MAX, to_complaint, |b| Event::Complaint(b.to_vec())));
    thread::spawn(move || events.send(Event::Ended(child.wait())));
    let until = Instant::now() + limit;
    let mut outcome = Outcome::default();
    let verdict = loop {
        if let Some(verdict) = verdict(&outcome) {
            break verdict;
        }
        match heard.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(Event::Output(output)) => outcome.output = Some(output),
            Ok(Event::Complaint(complaint)) => outcome.complaint = Some(complaint),
            Ok(Event::Ended(Ok(status))) => outcome.status = Some(status),
            Ok(Event::Ended(Err(e))) => break Err(format!("it cannot be waited for: {e}")),
            Err(RecvTimeoutError::Timeout) => {
                break Err(format!("it took longer than {} s", limit.as_secs()));
            }
            Err(RecvTimeoutError::Disconnected) => break Err("it cannot be watched".into()),
        }
    };
    if verdict.is_err() {
        // Whatever it started as well; there may be nobody left.
        let _ = kill_process_group(group, Signal::KILL);
        report(program, &outcome);
    }
    verdict?;
    outcome.output.ok_or_else(|| "it printed nothing".into())
}

/// Whether it is decided what became of it.
fn verdict(outcome: &Outcome) -> Option<Result<(), String>> {
    if outcome.output.as_ref().is_some_and(|output| output.len() > OUTPUT_BYTES_MAX) {
        return Some(Err(format!("it printed more than {OUTPUT_BYTES_MAX} bytes")));
    }
    let status = outcome.status?;
    if outcome.output.is_none() || outcome.complaint.is_none() {
        // It has ended, and something that it had to say is still on its way.
        return None;
    }
    Some(if status.success() { Ok(()) } else { Err(format!("it failed ({status})")) })
}

fn read(
    from: Option<impl Read>,
    bytes_max: usize,
    to: Sender<Event>,
    event: impl Fn(Zeroizing<Vec<u8>>) -> Event,
) {
    let mut bytes = Zeroizing::new(Vec::with_capacity(bytes_max));
    if let Some(mut from) = from {
        // A pipe that breaks has said all that it will.
        let _ = from.by_ref().take(bytes_max as u64).read_to_end(&mut bytes);
        let full = bytes.len() == bytes_max;
        let _ = to.send(event(bytes));
        if full {
            let _ = std::io::copy(&mut from, &mut std::io::sink());
        }
    }
}

fn report(program: &str, outcome: &Outcome) {
    let printed = outcome.output.as_ref().map(|output| output.trim_ascii()).unwrap_or_default();
    if let Some(text) = loggable(outcome.complaint.as_deref().unwrap_or_default(), printed) {
        tracing::warn!(program, stderr = text, "the key's command said");
    }
}

/// What may be shown of a complaint: nothing when it holds what was printed, and no word that could be a key or a token,
/// which a program may well show when it fails.
fn loggable(complaint: &[u8], printed: &[u8]) -> Option<String> {
    let shows_key = !printed.is_empty() && complaint.windows(printed.len()).any(|part| part == printed);
    if complaint.is_empty() || shows_key {
        return None;
    }
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=_-.".contains(byte);
    let runs = complaint.chunk_by(|one, next| is_word(one) == is_word(next));
    let is_secret = |run: &[u8]| {
        run.contains(&b'=') || run.split(|byte| *byte == b'/').any(|part| part.len() >= SECRET_BYTES_MIN)
    };
    let shown = runs.map(|run| match run {
        [b'/', ..] if !is_secret(run) => run.escape_ascii().to_string(),
        [first, ..] if is_word(first) && run.len() >= SECRET_BYTES_MIN => "[a long word]".to_owned(),
        [first, ..] if !is_word(first) && !run.is_ascii() => "[bytes]".to_owned(),
        _ => run.escape_ascii().to_string(),
    });
    Some(shown.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Result<Zeroizing<Vec<u8>>, String> {
        output_of(&["/bin/sh".into(), "-c".into(), script.into()], limit)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn gives_what_the_program_prints() {
        assert_eq!(shell("printf 0123abcd", LONG).unwrap().as_slice(), b"0123abcd");
        assert_eq!(shell("exit 0", LONG).unwrap().as_slice(), b"");
        let argument = ["/bin/echo".to_owned(), "$HOME; `id`".to_owned()];
        assert_eq!(output_of(&argument, LONG).unwrap().as_slice(), b"$HOME; `id`\n", "no shell looks at it");
    }

    #[test]
    fn a_failure_is_one_whatever_was_printed() {
        assert!(shell("printf 0123; exit 3", LONG).unwrap_err().contains("exit status: 3"));
        assert!(shell("kill -9 $$", LONG).unwrap_err().contains("signal: 9"));
        assert!(output_of(&["/no/such/program".into()], LONG).unwrap_err().contains("cannot be started"));
    }

    /// A command that failed after it had shown the key on its standard error, and nothing on its standard output, had the
    /// key written into the broker's log.
    #[test]
    fn what_it_complains_of_is_logged_without_what_may_be_a_key_or_a_token() {
        let hex = "0123456789abcdef".repeat(4);
        let said = |text: String| loggable(text.as_bytes(), b"").unwrap();
        assert_eq!(said(format!("got {hex}, no use")), "got [a long word], no use");
        assert_eq!(said("token=hvs.CAESIJqXk-3vq_ZbT0Yx1w9".into()), "[a long word]");
        assert_eq!(
            said("/usr/lib/a/long/path/to/somewhere: not found".into()),
            "/usr/lib/a/long/path/to/somewhere: not found"
        );
        assert_eq!(
            said(format!("/{}=", "aB/9".repeat(10))),
            "[a long word]",
            "base64 that begins as a path does"
        );
        assert_eq!(loggable(b"raw \xfe\xff\x00\xfd!", b"").unwrap(), "raw[bytes]");
        assert_eq!(loggable(b"vault: sealed\n", b"").unwrap(), "vault: sealed\\n");
        assert_eq!((loggable(b"it is 0123", b"0123"), loggable(b"", b"")), (None, None));
    }

    #[test]
    fn endless_output_and_endless_waiting_come_to_an_end() {
        assert!(
            shell("while :; do echo 0123456789; done", LONG).unwrap_err().contains("more than 128 bytes")
        );
        let soon = Duration::from_millis(200);
        assert!(shell("sleep 1000", soon).unwrap_err().contains("longer than"));
        // A program that leaves somebody behind with its output in hand has not finished.
        assert!(shell("sleep 1000 & echo key", soon).unwrap_err().contains("longer than"));
    }
}
