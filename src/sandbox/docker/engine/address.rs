//! Where the engine is: the rules of the `docker` program, as far as they name an engine that can be used here.
//!
//! `DOCKER_HOST`, else the current context (`DOCKER_CONTEXT`, else `currentContext` of `~/.docker/config.json`), else the usual socket.
//! Spoken are Unix sockets, `tcp://` and `http(s)://`, with TLS as `DOCKER_TLS_VERIFY` and `DOCKER_CERT_PATH` say. Not spoken is `ssh://`, and
//! the certificates of a context are not read: such an engine does not share our files, and is refused for that anyway.

use super::EngineError;
use crate::sandbox::folder::hash;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The usual socket.
const SOCKET: &str = "unix:///var/run/docker.sock";
/// The name of the context that means the usual socket.
const CONTEXT_DEFAULT: &str = "default";
/// Largest file of the `docker` program that is read.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Finds the address that the environment names.
pub(super) fn find() -> Result<String, EngineError> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    if let Some(host) = variable("DOCKER_HOST") {
        return Ok(host);
    }
    let folder = variable("DOCKER_CONFIG").map(PathBuf::from).or_else(|| Some(Path::new(&variable("HOME")?).join(".docker")));
    let Some(folder) = folder else { return Ok(SOCKET.to_owned()) };
    let context = variable("DOCKER_CONTEXT").or_else(|| text_at(&read(&folder.join("config.json"))?, &["currentContext"]));
    match context.filter(|name| name != CONTEXT_DEFAULT) {
        None => Ok(SOCKET.to_owned()),
        Some(name) => of_context(&folder, &name)
            .ok_or_else(|| EngineError::Address { host: name, why: "there is no such docker context with an engine's address".to_owned() }),
    }
}

fn of_context(folder: &Path, name: &str) -> Option<String> {
    text_at(&read(&folder.join("contexts/meta").join(hash(name.as_bytes())).join("meta.json"))?, &["Endpoints", "docker", "Host"])
}

fn read(path: &Path) -> Option<Value> {
    let size = std::fs::metadata(path).ok()?.len();
    if size > FILE_BYTES_MAX {
        return None;
    }
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn text_at(value: &Value, path: &[&str]) -> Option<String> {
    path.iter().try_fold(value, |value, name| value.get(name))?.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

/// Checks that an address is of a kind that is spoken.
pub(super) fn check(host: &str) -> Result<(), String> {
    match host.split_once("://") {
        Some(("unix", path)) if path.starts_with('/') => Ok(()),
        Some(("unix", _)) => Err("a socket is named by its absolute path: unix:///path/to/docker.sock".to_owned()),
        Some(("tcp" | "http" | "https", rest)) if !rest.is_empty() => Ok(()),
        Some(("ssh", _)) => {
            Err("engines over ssh are not spoken to: they share no files with this machine; run mosaic over there".to_owned())
        }
        _ => Err("write it as unix:///path/to/docker.sock or tcp://HOST:PORT".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_leads_to_its_address() {
        let folder = tempfile::tempdir().unwrap();
        let meta = folder.path().join("contexts/meta").join("7b1b763ee8f62eb88e4742a760f912d0b19bcd58b2b948999784bacc15a7f4d7");
        std::fs::create_dir_all(&meta).unwrap();
        std::fs::write(meta.join("meta.json"), r#"{"Name": "x", "Endpoints": {"docker": {"Host": "unix:///run/other.sock"}}}"#).unwrap();
        assert_eq!(of_context(folder.path(), "elsewhere").as_deref(), Some("unix:///run/other.sock"));
        assert_eq!(of_context(folder.path(), "unknown"), None);
    }

    #[test]
    fn addresses_that_are_not_spoken_are_refused_with_what_would_do() {
        for host in ["unix:///var/run/docker.sock", "tcp://127.0.0.1:2375", "https://engine:2376"] {
            assert_eq!(check(host), Ok(()), "{host}");
        }
        for (host, word) in [
            ("ssh://user@host", "over there"),
            ("unix://relative", "absolute"),
            ("/var/run/docker.sock", "unix://"),
            ("npipe:////./pipe/x", "unix://"),
        ] {
            assert!(check(host).unwrap_err().contains(word), "{host}");
        }
    }
}
