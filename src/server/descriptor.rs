//! Descriptors that this process inherited, by their number.

use std::fs::File;
use std::io;

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// A duplicate of an inherited descriptor; the descriptor itself stays open.
///
/// Opening `/proc/self/fd/N` would ask for the file's permissions once more, and what root opened for the broker's user is
/// handed over as a descriptor just because that user may not open it. It is the second choice, for kernels
/// before 5.6 and system call filters.
///
/// # Errors
/// When there is no such descriptor.
pub fn inherited(number: u32) -> io::Result<File> {
    let raw = i32::try_from(number).map_err(io::Error::other)?;
    let duplicate = pidfd_open(getpid(), PidfdFlags::empty())
        .and_then(|own| pidfd_getfd(own, raw, PidfdGetfdFlags::empty()));
    match duplicate {
        Ok(descriptor) => Ok(File::from(descriptor)),
        Err(_) => File::open(format!("/proc/self/fd/{number}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    /// Descriptors were opened anew by their number, so a broker that is not root could not read what root had opened for
    /// it (systemd's `OpenFile=`), and nobody could read a socket. A socket shows it to root as well.
    #[test]
    fn what_cannot_be_opened_again_can_be_read() {
        let (mut giving, taking) = UnixStream::pair().unwrap();
        giving.write_all(b"key").unwrap();
        drop(giving);
        let number = taking.as_raw_fd() as u32;
        assert!(File::open(format!("/proc/self/fd/{number}")).is_err(), "the control");
        let mut text = String::new();
        inherited(number).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "key");
        assert!(inherited(60_000).is_err() && inherited(u32::MAX).is_err());
    }
}
