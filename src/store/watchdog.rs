//! Opening the database with a limit to the time that it may take: RocksDB is known to hang for ever on some damage,
//! and a broker that neither starts nor ends is the worst of refusals.

use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use super::error::StoreError;
use crate::limits::{OPEN_LOG_BYTES_PER_SECOND, OPEN_SECONDS_MAX};

/// How long a database with so many bytes of logs may take to open.
pub(super) fn limit(log_bytes: u64) -> Duration {
    Duration::from_secs(OPEN_SECONDS_MAX + log_bytes / OPEN_LOG_BYTES_PER_SECOND)
}

/// Runs `open` on a thread of its own and waits for it no longer than `limit`. A thread that hangs cannot be ended;
/// it goes with the process.
///
/// # Errors
/// What `open` gives; `E_OPEN_TIMEOUT` with `findings`, when the time is over.
pub(super) fn watched<T: Send + 'static>(
    path: &Path,
    limit: Duration,
    findings: &str,
    open: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let (done, wait) = sync_channel(1);
    let thread = std::thread::Builder::new().name("sealmq-open".into());
    let thread = thread.spawn(move || {
        // Nobody listens any more when the time is over.
        let _ = done.send(open());
    });
    let thread = thread.map_err(|e| StoreError::system(path, e))?;
    match wait.recv_timeout(limit) {
        Ok(opened) => {
            // What it opened has been handed over; nothing is left to go wrong in it.
            let _ = thread.join();
            opened
        }
        Err(RecvTimeoutError::Disconnected) => Err(StoreError::system(path, "opening the database panicked")),
        Err(RecvTimeoutError::Timeout) => Err(StoreError::OpenTimeout {
            path: path.to_path_buf(),
            seconds: limit.as_secs(),
            findings: findings.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_is_given_up_with_what_is_known() {
        let (end, wait) = sync_channel::<()>(1);
        let hang = move || {
            let _ = wait.recv();
            Ok(())
        };
        let error = watched(Path::new("/db"), Duration::from_millis(10), "its 3 logs are whole", hang);
        let error = error.unwrap_err();
        assert_eq!(error.code(), "E_OPEN_TIMEOUT");
        assert!(error.to_string().contains("its 3 logs are whole"), "{error}");
        drop(end);
    }

    #[test]
    fn what_comes_back_in_time_is_handed_on() {
        let minute = Duration::from_secs(60);
        assert_eq!(watched(Path::new("/db"), minute, "", || Ok(7)).unwrap(), 7);
        let refused = || Err::<(), _>(StoreError::Locked { dir: "/db".into() });
        assert_eq!(watched(Path::new("/db"), minute, "", refused).unwrap_err().code(), "E_STORE_LOCKED");
        let panics = || -> Result<(), StoreError> { panic!("in the thread") };
        assert_eq!(watched(Path::new("/db"), minute, "", panics).unwrap_err().code(), "E_SYSTEM");
    }

    #[test]
    fn long_logs_buy_time() {
        assert_eq!(limit(0).as_secs(), 60);
        assert_eq!(limit(256 * 1024 * 1024).as_secs(), 60 + 256);
    }
}
