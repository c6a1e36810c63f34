//! `sealmqctl`: asks a running broker over its control socket and prints what rabbitmqctl would print. The same program
//! answers when it is called `rabbitmqctl` or `rabbitmq-diagnostics`. It opens no store, and reads no secret but the
//! passphrase of a new slot.

pub mod arguments;
mod keyring;
pub mod listing;
pub mod status;
pub mod verbs;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;

use clap::Parser;

use crate::server;
use arguments::{Arguments, Program};

/// Exit codes of rabbitmqctl (sysexits).
pub mod exit {
    /// Done.
    pub const OK: u8 = 0;
    /// The command line is wrong.
    pub const USAGE: u8 = 64;
    /// What was named does not exist.
    pub const DATA: u8 = 65;
    /// The broker cannot be reached, or a check failed.
    pub const UNAVAILABLE: u8 = 69;
    /// A fault in the broker or in this program.
    pub const SOFTWARE: u8 = 70;
    /// What was to be made could not be made.
    pub const CANNOT_CREATE: u8 = 73;
    /// The broker did not answer in time.
    pub const TEMPORARY: u8 = 75;
    /// The configuration is wrong.
    pub const CONFIG: u8 = 78;
}

/// Why a verb did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command line asks for something that does not exist.
    #[error("{0}")]
    Usage(String),
    /// The broker could not be asked, or refused.
    #[error(transparent)]
    Broker(#[from] server::Error),
    /// No broker at any of the places where its control socket may be.
    #[error("{0}\nIf the broker runs, name its control socket: --socket PATH or SEALMQ_CONTROL_SOCKET")]
    Unreachable(String),
    /// A check came out negative.
    #[error("{0}")]
    Check(String),
    /// Something did not happen in time.
    #[error("{0}")]
    TimedOut(String),
    /// The broker's answer lacks what it should have.
    #[error("the broker's answer has no usable `{0}`: sealmqctl and sealmq are of different versions")]
    Answer(&'static str),
    /// The output is gone.
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

impl Failure {
    /// The exit code that rabbitmqctl would give.
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Usage(_) => exit::USAGE,
            Failure::Check(_) | Failure::Unreachable(_) => exit::UNAVAILABLE,
            Failure::TimedOut(_) => exit::TEMPORARY,
            Failure::Answer(_) => exit::SOFTWARE,
            // `sealmqctl ... | head` is no failure.
            Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => exit::OK,
            Failure::Output(_) => exit::SOFTWARE,
            Failure::Broker(error) => broker_exit_code(error),
        }
    }
}

fn broker_exit_code(error: &server::Error) -> u8 {
    use server::control::Refusal;
    match error {
        server::Error::ControlTimeout { .. } => exit::TEMPORARY,
        server::Error::ControlSocket { .. } => exit::UNAVAILABLE,
        server::Error::ControlRefused { code, .. } if code == Refusal::NoSuchVhost.code() => exit::DATA,
        server::Error::ControlRefused { code, .. } if code == Refusal::Unhealthy.code() => exit::UNAVAILABLE,
        // What was asked for does not fit the keyring, or the key cannot be used.
        server::Error::ControlRefused { code, .. }
            if KEYRING_FAULTS.iter().any(|fault| code.starts_with(fault)) =>
        {
            exit::DATA
        }
        server::Error::ControlRefused { code, .. } if code == Refusal::Failed.code() => exit::CANNOT_CREATE,
        server::Error::ControlRefused { .. } | server::Error::ControlAnswer { .. } => exit::SOFTWARE,
        error if error.is_configuration() => exit::CONFIG,
        _ => exit::SOFTWARE,
    }
}

/// Beginnings of the codes of what was asked of a keyring and cannot be.
const KEYRING_FAULTS: [&str; 6] =
    ["E_SLOT", "E_KEK_", "E_NO_KEYRING", "E_KEY_SERVICE", "E_PKCS11", "E_VAULT"];

/// Runs one command line, the program's name first, and gives its exit code. Needs a tokio runtime with I/O and time.
pub async fn run(command_line: Vec<OsString>, out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    let program = Program::of(command_line.first().map(Path::new));
    let arguments = match Arguments::try_parse_from(command_line) {
        Ok(arguments) => arguments,
        Err(error) if error.use_stderr() => {
            // Nothing can be done about a standard error that is closed.
            let _ = write!(err, "{error}");
            return exit::USAGE;
        }
        Err(help) => return if write!(out, "{help}").is_ok() { exit::OK } else { exit::SOFTWARE },
    };
    let done = verbs::run(program, &arguments, out).await;
    match done.and_then(|()| out.flush().map_err(Failure::from)) {
        Ok(()) => exit::OK,
        Err(failure) => {
            let code = failure.exit_code();
            if code != exit::OK {
                let _ = writeln!(err, "Error:\n{failure}");
            }
            code
        }
    }
}
