//! Asks for a passphrase at the terminal, without showing it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use crate::limits::PASSPHRASE_BYTES_MAX;

/// Turns the echo on again, whatever happens.
struct Quiet<'a> {
    terminal: &'a File,
    before: Termios,
}

impl Quiet<'_> {
    fn new(terminal: &File) -> io::Result<Quiet<'_>> {
        let before = tcgetattr(terminal)?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        tcsetattr(terminal, OptionalActions::Flush, &quiet)?;
        Ok(Quiet { terminal, before })
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        // A terminal that is gone needs no echo.
        let _ = tcsetattr(self.terminal, OptionalActions::Flush, &self.before);
    }
}

/// Writes `question` to the controlling terminal and gives the line that is typed, without its end.
///
/// # Errors
/// When the process has no terminal, or the line is too long.
pub fn passphrase(question: &str) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut terminal = OpenOptions::new().read(true).write(true).open("/dev/tty")?;
    write!(terminal, "{question}: ")?;
    let line = {
        let quiet = Quiet::new(&terminal)?;
        read_line(&mut &*quiet.terminal)?
    };
    writeln!(terminal)?;
    Ok(line)
}

fn read_line(from: &mut impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut line = Zeroizing::new(Vec::with_capacity(PASSPHRASE_BYTES_MAX));
    let mut byte = Zeroizing::new([0]);
    while from.read(byte.as_mut_slice())? == 1 && byte[0] != b'\n' {
        if line.len() == PASSPHRASE_BYTES_MAX {
            return Err(io::Error::other("the line is too long for a passphrase"));
        }
        line.push(byte[0]);
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_where_it_ends_and_is_not_endless() {
        let typed = b"correct horse\nnext";
        assert_eq!(read_line(&mut typed.as_slice()).unwrap().as_slice(), b"correct horse");
        assert_eq!(read_line(&mut b"no end".as_slice()).unwrap().as_slice(), b"no end");
        assert!(read_line(&mut [b'x'; 5000].as_slice()).is_err());
    }
}
