//! The hidden mode in which `git` asks this program for a user name or a token: `GIT_ASKPASS` names `mosaic`, the environment names a
//! descriptor, and the credential is read from that.
//!
//! Flow: the controller writes the credential into a sealed memory file and lets the one `git` that needs it inherit the descriptor;
//! `git` starts this with its prompt as the only argument; the answer goes to standard output, which is a pipe of `git`'s. So the
//! credential is never an argument, an environment variable, part of an address or a file. It is given to no other host than the one
//! that it is for, whatever `git` was talked into asking.

use std::fs::File;
use std::io::Write;
use std::os::fd::{FromRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::process::ExitCode;

/// Names the descriptor; that it is set is what makes this program answer a prompt.
pub const DESCRIPTOR: &str = "MOSAIC_ASKPASS_DESCRIPTOR";
/// Most bytes of a credential with its host and user name.
pub const CREDENTIAL_BYTES_MAX: usize = 16 << 10;

/// What the descriptor holds: host (with port), user name and token, one line each.
#[must_use]
pub fn encode(host: &str, username: &str, token: &str) -> String {
    format!("{host}\n{username}\n{token}")
}

/// Answers `git` if it was `git` that started this program; `None`: it was not.
#[must_use]
pub fn answer_git() -> Option<ExitCode> {
    let descriptor = std::env::var(DESCRIPTOR).ok()?;
    let prompt = std::env::args().nth(1).unwrap_or_default();
    let told = read(&descriptor).and_then(|text| answer(&text, &prompt).map(str::to_owned));
    let written = told.is_some_and(|told| writeln!(std::io::stdout(), "{told}").is_ok());
    Some(if written { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn read(descriptor: &str) -> Option<String> {
    let number: RawFd = descriptor.parse().ok().filter(|number| *number > 2)?;
    // SAFETY: the descriptor was inherited for exactly this; nothing else in this process owns it, and a wrong number only fails to read.
    let file = unsafe { File::from_raw_fd(number) };
    let mut bytes = vec![0; CREDENTIAL_BYTES_MAX];
    // From the start, whatever others read: `git` asks twice, and all share one position.
    let count = file.read_at(&mut bytes, 0).ok()?;
    bytes.truncate(count);
    String::from_utf8(bytes).ok()
}

/// The answer to `Username for 'https://host': ` or `Password for 'https://user@host': `, if that is the host.
fn answer<'t>(credential: &'t str, prompt: &str) -> Option<&'t str> {
    let mut lines = credential.lines();
    let (host, username, token) = (lines.next()?, lines.next()?, lines.next()?);
    let asked = |word: &str| prompt.strip_prefix(word)?.strip_prefix(" for 'https://")?.split('\'').next();
    let is_host = |asked: &str| asked.rsplit('@').next().and_then(|rest| rest.split('/').next()) == Some(host);
    if asked("Username").is_some_and(is_host) {
        Some(username)
    } else if asked("Password").is_some_and(is_host) {
        Some(token)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_host_that_it_is_for_gets_the_credential() {
        let credential = encode("git.example.org:8443", "robot", "token");
        let told = |prompt: &str| answer(&credential, prompt);
        assert_eq!(told("Username for 'https://git.example.org:8443': "), Some("robot"));
        assert_eq!(told("Password for 'https://robot@git.example.org:8443': "), Some("token"));
        assert_eq!(told("Password for 'https://robot%40x@git.example.org:8443/team/x': "), Some("token"));
        for other in [
            "Password for 'https://robot@git.example.org': ",
            "Password for 'https://robot@evil.example.org:8443': ",
            "Password for 'https://evil.example.org/@git.example.org:8443.evil.org': ",
            "Password for 'http://robot@git.example.org:8443': ",
            "Username for 'http://proxy:3128': ",
            "Enter passphrase for key '/x': ",
            "",
        ] {
            assert_eq!(told(other), None, "{other}");
        }
    }
}
