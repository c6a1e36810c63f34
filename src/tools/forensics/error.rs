//! What keeps a search from starting. What goes wrong with a single file is part of the report instead:
//! the others are still searched, and the outcome says that the search was not complete.

use std::io;
use std::path::PathBuf;

/// Why nothing was searched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No needle, or an empty one, which would be found everywhere.
    #[error("a needle is empty or missing; give each as --needle TEXT")]
    EmptyNeedle,
    /// The folder cannot be looked at.
    #[error("cannot look at {}: {source}; check the path and run as a user who may read it", path.display())]
    Root {
        /// As given.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// A folder without a file proves nothing about a store.
    #[error("there is no file in {}, so that finding nothing would prove nothing; is it the data directory?", path.display())]
    NothingToSearch {
        /// As given.
        path: PathBuf,
    },
}
