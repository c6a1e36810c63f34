//! Why a measurement came to nothing: one variant for each cause, with what to do where that is known. None of them
//! carries a password.

use std::io;
use std::path::PathBuf;

use super::exit;

/// A fault of the command line, the broker or the way to it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The options contradict each other or name nothing.
    #[error("{0}")]
    Usage(String),
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is there and is not what it should be.
    #[error("{}: {problem}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Nobody listens, or the name leads nowhere.
    #[error("cannot connect to {address}: {source}; is the broker running, and is it this port?")]
    Unreachable {
        /// Where.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The server's certificate is none that may be trusted.
    #[error(
        "the certificate of {address} is not trusted: {problem}; --ca FILE names the authority that issued it"
    )]
    Untrusted {
        /// Where.
        address: String,
        /// What rustls says.
        problem: String,
    },
    /// The TLS handshake failed for another reason.
    #[error("no TLS with {address}: {problem}; does this port speak AMQPS?")]
    NoTls {
        /// Where.
        address: String,
        /// Why.
        problem: String,
    },
    /// The connection was there and is gone.
    #[error("the connection to {address} was lost while {doing}: {problem}")]
    Lost {
        /// Where.
        address: String,
        /// What the connection was used for.
        doing: &'static str,
        /// Why.
        problem: String,
    },
    /// What came is no AMQP 0-9-1.
    #[error("{address} does not speak AMQP 0-9-1: {problem}; a port for TLS wants amqps://")]
    NotAmqp {
        /// Where.
        address: String,
        /// What is wrong with it.
        problem: String,
    },
    /// User or password are wrong, or the user may not come from here.
    #[error("{address} refused the log-in of {user}: {problem}")]
    Login {
        /// Where.
        address: String,
        /// The user.
        user: String,
        /// The broker's words.
        problem: String,
    },
    /// The broker closed the channel or the connection, and said why.
    #[error("{address} refused while {doing}: {code} {text}")]
    Refused {
        /// Where.
        address: String,
        /// What the connection was used for.
        doing: &'static str,
        /// The reply code.
        code: u16,
        /// The reply text.
        text: String,
    },
    /// A negative confirm.
    #[error("{address} did not take a message (basic.nack): a queue is full, or its store has failed")]
    Nacked {
        /// Where.
        address: String,
    },
    /// A consumer's queue went away.
    #[error("{address} cancelled a consumer: somebody deleted its queue")]
    Cancelled {
        /// Where.
        address: String,
    },
    /// Not all that was published came in time.
    #[error(
        "{address}: the run outlasted its {timeout_s} s with {published} messages published and {delivered} \
         delivered; --timeout allows more"
    )]
    TimedOut {
        /// Where.
        address: String,
        /// The limit, in seconds.
        timeout_s: u64,
        /// Messages that were handed to the connection.
        published: u64,
        /// Messages that came.
        delivered: u64,
    },
    /// More came than was published.
    #[error("{address} delivered {delivered} messages and should have delivered {expected}")]
    Miscounted {
        /// Where.
        address: String,
        /// Deliveries that were due.
        expected: u64,
        /// Deliveries that came.
        delivered: u64,
    },
    /// Somebody stopped this program.
    #[error("interrupted; the queues of this run are deleted")]
    Interrupted,
    /// A task of this program failed, or the system refused it something.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    /// The program's exit status.
    pub fn exit_status(&self) -> u8 {
        match self {
            Error::Usage(_) => exit::USAGE,
            Error::File { .. }
            | Error::Unusable { .. }
            | Error::Unreachable { .. }
            | Error::Untrusted { .. }
            | Error::NoTls { .. }
            | Error::Lost { .. }
            | Error::NotAmqp { .. }
            | Error::Login { .. }
            | Error::Refused { .. }
            | Error::Nacked { .. }
            | Error::Cancelled { .. }
            | Error::TimedOut { .. }
            | Error::Miscounted { .. }
            | Error::Interrupted
            | Error::Internal(_) => exit::FAILED,
        }
    }
}

/// What the functions of this tool return.
pub type Result<T> = std::result::Result<T, Error>;
